-- The triggers of {{.Table}}, one call a statement. An UPDATE logs the keys as they
-- are after it, and row by row the old keys of rows whose key it changed; so a bulk
-- update is scanned once. The condition also makes the server refuse ALTER TYPE and
-- DROP COLUMN of a key column while it is captured.
-- Locks: SHARE ROW EXCLUSIVE on {{.Table}}, from here to the end of the transaction:
-- readers go on, writers wait. It was taken before, with a time-out.
CREATE OR REPLACE TRIGGER {{.Trigger "i"}} AFTER INSERT ON {{.Table}}
    REFERENCING NEW TABLE AS millrace_rows FOR EACH STATEMENT EXECUTE FUNCTION {{.Function "i"}}();
CREATE OR REPLACE TRIGGER {{.Trigger "u"}} AFTER UPDATE ON {{.Table}}
    REFERENCING NEW TABLE AS millrace_rows FOR EACH STATEMENT EXECUTE FUNCTION {{.Function "u"}}();
CREATE OR REPLACE TRIGGER {{.Trigger "k"}} AFTER UPDATE ON {{.Table}}
    FOR EACH ROW WHEN ({{.KeyChanged}}) EXECUTE FUNCTION {{.Function "k"}}();
CREATE OR REPLACE TRIGGER {{.Trigger "d"}} AFTER DELETE ON {{.Table}}
    REFERENCING OLD TABLE AS millrace_rows FOR EACH STATEMENT EXECUTE FUNCTION {{.Function "d"}}();
CREATE OR REPLACE TRIGGER {{.Trigger "t"}} AFTER TRUNCATE ON {{.Table}}
    FOR EACH STATEMENT EXECUTE FUNCTION {{.Function "t"}}();
