-- Who did what to a captured table, its triggers or its log, and which commands gave
-- its rows other values. A superuser's init runs this; it can be run again. Nothing of
-- it is needed to see that something is amiss: it lets the message name who it was, and
-- spares a table a load after VACUUM FULL or CLUSTER. Nothing here makes a command fail.

-- The captured tables that a relation is, or is a partition of.
CREATE OR REPLACE FUNCTION millrace.note_ddl_of(relation oid) RETURNS SETOF oid
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
    WITH RECURSIVE up (oid) AS (
        SELECT relation
      UNION
        SELECT i.inhparent FROM up JOIN pg_inherits i ON i.inhrelid = up.oid
    )
    SELECT DISTINCT l.table_id FROM up JOIN millrace.key_log l ON l.table_id = up.oid
$$;

CREATE OR REPLACE FUNCTION millrace.note_ddl() RETURNS event_trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF coalesce(current_setting('millrace.installing', true), '') = 'on' THEN
        RETURN; -- init and uninstall themselves
    END IF;
    IF tg_event = 'table_rewrite' THEN
        -- Another default or type of a column: 2 and 4. The others keep the values.
        INSERT INTO millrace.ddl_event (txid, who, application, tag, command, table_id, object, rewritten)
        SELECT txid_current(), session_user, current_setting('application_name'), tg_tag, left(coalesce(current_query(), ''), 1000), t.id,
               pg_event_trigger_table_rewrite_oid()::regclass::text, pg_event_trigger_table_rewrite_reason() & 6 <> 0
        FROM millrace.note_ddl_of(pg_event_trigger_table_rewrite_oid()) t (id);
        RETURN;
    END IF;
    IF tg_event = 'sql_drop' THEN
        INSERT INTO millrace.ddl_event (txid, who, application, tag, command, table_id, object, rewritten)
        SELECT txid_current(), session_user, current_setting('application_name'), tg_tag, left(coalesce(current_query(), ''), 1000), l.table_id, o.object_identity, false
        FROM pg_event_trigger_dropped_objects() o
        JOIN millrace.key_log l ON
            o.classid = 'pg_class'::regclass AND o.objid = l.table_id
            OR o.classid = 'pg_trigger'::regclass AND o.object_identity LIKE format('millrace\_%s\_%% on %%', l.id)
            OR o.schema_name = 'millrace' AND o.object_identity LIKE format('millrace.log\_%s\_%%', l.id) AND o.object_type IN ('table', 'function');
        RETURN;
    END IF;
    INSERT INTO millrace.ddl_event (txid, who, application, tag, command, table_id, object, rewritten)
    SELECT txid_current(), session_user, current_setting('application_name'), tg_tag, left(coalesce(current_query(), ''), 1000), o.table_id, o.object, false
    FROM pg_event_trigger_ddl_commands() c
    CROSS JOIN LATERAL (
        SELECT t.id, c.object_identity FROM millrace.note_ddl_of(c.objid) t (id) WHERE c.classid = 'pg_class'::regclass
      UNION
        SELECT t.id, c.object_identity FROM pg_trigger g CROSS JOIN LATERAL millrace.note_ddl_of(g.tgrelid) t (id)
        WHERE c.classid = 'pg_trigger'::regclass AND g.oid = c.objid
      UNION
        SELECT l.table_id, c.object_identity FROM millrace.key_log l
        WHERE c.classid IN ('pg_proc'::regclass, 'pg_class'::regclass) AND c.schema_name = 'millrace'
          AND c.object_identity LIKE format('millrace.log\_%s\_%%', l.id)
      UNION
        -- Which tables it writes is not known before it has begun.
        SELECT 0::oid, c.object_identity WHERE c.classid = 'pg_subscription'::regclass AND EXISTS (SELECT FROM millrace.key_log)
    ) o (table_id, object);
EXCEPTION WHEN OTHERS THEN
    RAISE WARNING 'millrace: % could not be noted: %', tg_tag, sqlerrm
        USING HINT = 'The command itself is done. Where it concerned a captured table, its stream will say so without naming it.';
END
$$;
REVOKE ALL ON FUNCTION millrace.note_ddl_of(oid), millrace.note_ddl() FROM PUBLIC;

DO $$
BEGIN
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = {{.OwnerName}}) THEN
        ALTER FUNCTION millrace.note_ddl_of(oid) OWNER TO {{.Owner}};
        ALTER FUNCTION millrace.note_ddl() OWNER TO {{.Owner}};
    END IF;
    IF NOT EXISTS (SELECT FROM pg_event_trigger WHERE evtname = 'millrace_note_end') THEN
        CREATE EVENT TRIGGER millrace_note_end ON ddl_command_end
            WHEN TAG IN ('ALTER TABLE', 'CREATE TABLE', 'CREATE TRIGGER', 'ALTER TRIGGER', 'CREATE FUNCTION', 'ALTER FUNCTION',
                         'CREATE SUBSCRIPTION', 'ALTER SUBSCRIPTION')
            EXECUTE FUNCTION millrace.note_ddl();
    END IF;
    IF NOT EXISTS (SELECT FROM pg_event_trigger WHERE evtname = 'millrace_note_drop') THEN
        CREATE EVENT TRIGGER millrace_note_drop ON sql_drop EXECUTE FUNCTION millrace.note_ddl();
    END IF;
    IF NOT EXISTS (SELECT FROM pg_event_trigger WHERE evtname = 'millrace_note_rewrite') THEN
        CREATE EVENT TRIGGER millrace_note_rewrite ON table_rewrite EXECUTE FUNCTION millrace.note_ddl();
    END IF;
    -- ENABLE ALWAYS: also under session_replication_role = replica.
    IF EXISTS (SELECT FROM pg_event_trigger WHERE evtname LIKE 'millrace\_note\_%' AND evtenabled <> 'A') THEN
        ALTER EVENT TRIGGER millrace_note_end ENABLE ALWAYS;
        ALTER EVENT TRIGGER millrace_note_drop ENABLE ALWAYS;
        ALTER EVENT TRIGGER millrace_note_rewrite ENABLE ALWAYS;
    END IF;
END
$$;
