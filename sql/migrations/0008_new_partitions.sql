-- A partition that is made while its table's side is closed would take writes that go to
-- it directly: triggers for statements are not handed down. This is run by an event trigger,
-- where somebody may make one, and puts the gate's triggers on it in the same transaction.
CREATE FUNCTION millrace.migration_guard() RETURNS event_trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    made record;
BEGIN
    FOR made IN
        WITH RECURSIVE touched (oid) AS (
            SELECT c.objid FROM pg_event_trigger_ddl_commands() c WHERE c.classid = 'pg_class'::regclass AND c.object_type = 'table'
          UNION
            SELECT i.inhrelid FROM touched JOIN pg_inherits i ON i.inhparent = touched.oid
        ), above (oid, ancestor) AS (
            SELECT touched.oid, i.inhparent FROM touched JOIN pg_inherits i ON i.inhrelid = touched.oid
          UNION
            SELECT above.oid, i.inhparent FROM above JOIN pg_inherits i ON i.inhrelid = above.ancestor
        ), gates AS (
            SELECT above.oid, min(split_part(encode(g.tgargs, 'escape'), '\000', 1)) AS migration, bool_or(g.oid IS NULL) AS open_above
            FROM above LEFT JOIN pg_trigger g ON g.tgrelid = above.ancestor AND g.tgname = 'millrace_deny' GROUP BY above.oid
        )
        SELECT c.oid::regclass::text AS name, gates.migration, w.name AS trigger, w.text
        FROM gates JOIN pg_class c ON c.oid = gates.oid
        CROSS JOIN (VALUES ('millrace_deny', 'BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON %s FOR EACH STATEMENT'),
                           ('millrace_deny_rows', 'AFTER INSERT OR UPDATE OR DELETE ON %s FOR EACH ROW')) w (name, text)
        WHERE gates.migration IS NOT NULL AND (w.name = 'millrace_deny' OR gates.open_above AND c.relkind = 'r')
          AND NOT EXISTS (SELECT FROM pg_trigger g WHERE g.tgrelid = c.oid AND g.tgname = w.name AND g.tgenabled = 'A')
    LOOP
        EXECUTE format('CREATE OR REPLACE TRIGGER %s ' || made.text || ' EXECUTE FUNCTION millrace.migration_deny(%L)', made.trigger, made.name, made.migration);
        EXECUTE format('ALTER TABLE %s ENABLE ALWAYS TRIGGER %s', made.name, made.trigger);
    END LOOP;
END
$$;
REVOKE ALL ON FUNCTION millrace.migration_guard() FROM PUBLIC;
