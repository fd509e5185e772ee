-- Which side of a migration takes writes. What counts is the row of the side that
-- took them last; nothing can change two databases in one transaction.
CREATE TABLE millrace.migration_manager (
    name       text        PRIMARY KEY,
    active     text        NOT NULL CHECK (active IN ('source', 'target')),
    locked     boolean     NOT NULL DEFAULT false,  -- writers are being held
    term       bigint      NOT NULL,                -- grows each time that writers go over
    fence      text        NOT NULL DEFAULT '',     -- the message behind which changes are the writers' who went over
    changed_at timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- Somebody wants to go over: the process that follows lets go of the migration, and
-- goes on behind that.
ALTER TABLE millrace.migration ADD COLUMN yield boolean NOT NULL DEFAULT false;

-- By what a session shows that it applies changes: known to nobody else, and another
-- one in each term.
CREATE TABLE millrace.migration_applier (
    name  text PRIMARY KEY,
    token text NOT NULL
);
REVOKE ALL ON millrace.migration_applier FROM PUBLIC;

-- Denies writes to the tables of a migration, for every role, on the side that does
-- not take them. Open or closed is read from a sequence, millrace.gate_<name>, which
-- every transaction sees as it is, however old its snapshot: odd is open, and the
-- rest of it the term. A session that applies changes may write where others may not,
-- and nowhere else.
CREATE FUNCTION millrace.migration_deny() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    gate bigint;
    applier text := coalesce(current_setting('millrace.applier', true), '');
BEGIN
    EXECUTE format('SELECT last_value FROM millrace.%I', 'gate_' || TG_ARGV[0]) INTO gate;
    IF applier = '' AND gate % 2 = 1 THEN
        RETURN NULL;
    END IF;
    IF applier <> '' AND gate % 2 = 0 AND EXISTS (SELECT FROM millrace.migration_applier a WHERE a.name = TG_ARGV[0] AND a.token = applier) THEN
        RETURN NULL;
    END IF;
    RAISE EXCEPTION 'table %.% takes no writes here: migration % has it at the other side', TG_TABLE_SCHEMA, TG_TABLE_NAME, TG_ARGV[0]
        USING ERRCODE = 'read_only_sql_transaction', HINT = 'Connect to the side that millrace.migration_manager names.';
END
$$;
REVOKE ALL ON FUNCTION millrace.migration_deny() FROM PUBLIC;
