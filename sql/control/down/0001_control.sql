-- Takes back 0001: nothing of the control schema is left. Refused while a stream
-- is registered, and while there is something in the schema that is none of
-- millrace's.
LOCK TABLE millrace.stream IN SHARE ROW EXCLUSIVE MODE;
DO $$
DECLARE
    streams text := (SELECT string_agg(name, ', ' ORDER BY name) FROM millrace.stream);
BEGIN
    IF streams IS NOT NULL THEN
        RAISE EXCEPTION 'streams are registered in it: %', streams
            USING ERRCODE = 'object_in_use', HINT = 'millrace uninstall takes a stream away, and with the last one the control schema';
    END IF;
END
$$;

DROP TABLE millrace.ledger;
DROP TABLE millrace.hold;
DROP TABLE millrace.stream;
DROP TABLE millrace.version;
DROP SCHEMA millrace;
