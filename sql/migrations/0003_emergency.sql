-- Tables of the source whose names lead to the target, for clients that nobody has
-- sent there.
CREATE TABLE millrace.migration_emergency (
    name       text        NOT NULL,      -- of the migration
    table_name text        NOT NULL,      -- schema.table, as the migration file has it
    aside      text        NOT NULL,      -- what the table itself is called meanwhile, in the same schema
    writes     boolean     NOT NULL,      -- rows may be written too
    made_at    timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (name, table_name)
);

-- Who uses them: at most one row a minute for a session, table and kind of use. It is
-- only added to, so that those who are counted never wait for each other.
CREATE TABLE millrace.migration_use (
    name        text        NOT NULL,
    table_name  text        NOT NULL,
    kind        text        NOT NULL,     -- READ, INSERT, UPDATE, DELETE
    role        text        NOT NULL,     -- that has logged in
    application text        NOT NULL,
    address     inet,                     -- NULL for a local socket
    at          timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX migration_use_age ON millrace.migration_use (name, at);

-- Notes a use, and says true. A transaction that may write nothing cannot be noted
-- here, and says so in the server's log.
CREATE FUNCTION millrace.migration_note(migration text, table_name text, kind text) RETURNS boolean
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    noted text := 'millrace.noted_' || md5(migration || ' ' || table_name || ' ' || kind);
    minute text := floor(extract(epoch FROM clock_timestamp()) / 60)::bigint::text;
BEGIN
    IF current_setting(noted, true) IS NOT DISTINCT FROM minute THEN
        RETURN true;
    END IF;
    PERFORM set_config(noted, minute, false);
    IF current_setting('transaction_read_only') = 'on' THEN
        RAISE LOG 'millrace: migration %: % of table % by role %, application %', migration, kind, table_name, session_user, current_setting('application_name');
        RETURN true;
    END IF;
    INSERT INTO millrace.migration_use (name, table_name, kind, role, application, address)
    VALUES (migration, table_name, kind, session_user, current_setting('application_name'), inet_client_addr());
    RETURN true;
END
$$;

-- The same for the statements that triggers see.
CREATE FUNCTION millrace.migration_note_write() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM millrace.migration_note(TG_ARGV[0], TG_ARGV[1], TG_OP);
    RETURN NULL;
END
$$;
