-- The roles of trigger capture. None may log in, none is a superuser, and none can do
-- more than the grants below and those beside each log say. A login role is made a
-- member of what it needs: transfer's of millrace_capture, a verifier's of
-- millrace_verifier. They are of the whole cluster; uninstall leaves them.
--
-- millrace_owner    owns the logs and what the triggers run
-- millrace_capture  reads the logs and the captured tables, writes what transfer keeps
-- millrace_verifier reads
--
-- Whoever runs it needs CREATEROLE; it can be run again.
DO $$
DECLARE
    wanted text;
BEGIN
    FOREACH wanted IN ARRAY '{millrace_owner,millrace_capture,millrace_verifier}'::text[] LOOP
        IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = wanted) THEN
            BEGIN
                EXECUTE format('CREATE ROLE %I NOLOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION', wanted);
            EXCEPTION WHEN duplicate_object OR unique_violation THEN
                NULL; -- another database's init was quicker
            END;
        END IF;
    END LOOP;
    -- Who is to hand something to a role has to be a member of it.
    IF NOT pg_has_role('millrace_owner', 'USAGE') THEN
        EXECUTE format('GRANT millrace_owner TO %I', current_user);
    END IF;
END
$$;
