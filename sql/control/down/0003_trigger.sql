-- Takes back 0003, and the event triggers that write to it. Refused while there is a
-- log of keys: the triggers of its table would fail every writer without it.
LOCK TABLE millrace.key_log IN SHARE ROW EXCLUSIVE MODE;
DO $$
DECLARE
    streams text := (SELECT string_agg(DISTINCT stream, ', ' ORDER BY stream) FROM millrace.key_log);
BEGIN
    IF streams IS NOT NULL THEN
        RAISE EXCEPTION 'streams have triggers: %', streams
            USING ERRCODE = 'object_in_use', HINT = 'millrace uninstall takes a stream away';
    END IF;
END
$$;

-- The event triggers go with their function: the schema's owner may drop it, also
-- where a superuser made them.
DROP FUNCTION IF EXISTS millrace.note_ddl() CASCADE;
DROP FUNCTION IF EXISTS millrace.note_ddl_of(oid);

DROP TABLE millrace.ddl_event;
DROP TABLE millrace.wanted_load;
DROP TABLE millrace.tick;
DROP TABLE millrace.key_log;
DROP FUNCTION millrace.segment(bigint);
