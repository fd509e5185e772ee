-- The triggers of {{.Table}}, one call a row: it is partitioned, or a partition, or a
-- subscription writes it, and triggers by statement would miss changes there. The
-- server gives each partition a copy of them, also one that is attached later.
-- Locks: SHARE ROW EXCLUSIVE on {{.Table}} and all its partitions, from here to the
-- end of the transaction: readers go on, writers wait. It was taken before, with a
-- time-out.
CREATE OR REPLACE TRIGGER {{.Trigger "i"}} AFTER INSERT ON {{.Table}}
    FOR EACH ROW EXECUTE FUNCTION {{.Function "i"}}();
CREATE OR REPLACE TRIGGER {{.Trigger "u"}} AFTER UPDATE ON {{.Table}}
    FOR EACH ROW EXECUTE FUNCTION {{.Function "u"}}();
CREATE OR REPLACE TRIGGER {{.Trigger "k"}} AFTER UPDATE ON {{.Table}}
    FOR EACH ROW WHEN ({{.KeyChanged}}) EXECUTE FUNCTION {{.Function "k"}}();
CREATE OR REPLACE TRIGGER {{.Trigger "d"}} AFTER DELETE ON {{.Table}}
    FOR EACH ROW EXECUTE FUNCTION {{.Function "d"}}();
CREATE OR REPLACE TRIGGER {{.Trigger "t"}} AFTER TRUNCATE ON {{.Table}}
    FOR EACH STATEMENT EXECUTE FUNCTION {{.Function "t"}}();
