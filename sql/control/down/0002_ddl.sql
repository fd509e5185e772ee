-- Takes back 0002, and the event triggers that go by its tables. Refused while a
-- stream is registered: it needs them to notice altered tables.
LOCK TABLE millrace.stream IN SHARE ROW EXCLUSIVE MODE;
DO $$
DECLARE
    streams text := (SELECT string_agg(name, ', ' ORDER BY name) FROM millrace.stream);
BEGIN
    IF streams IS NOT NULL THEN
        RAISE EXCEPTION 'streams need it: %', streams
            USING ERRCODE = 'object_in_use', HINT = 'millrace uninstall takes a stream away';
    END IF;
END
$$;

-- The event triggers go with their function: the schema's owner may drop it, also
-- where a superuser made them.
DROP FUNCTION IF EXISTS millrace.ddl() CASCADE;
DROP FUNCTION IF EXISTS millrace.tell(jsonb);
DROP FUNCTION IF EXISTS millrace.look_again(oid);
DROP FUNCTION IF EXISTS millrace.note_leaves(oid, boolean);
DROP FUNCTION IF EXISTS millrace.captured(oid);

DROP TABLE millrace.followed;
DROP TABLE millrace.leaf;
