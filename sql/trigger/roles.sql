-- The roles of trigger capture. None may log in, none is a superuser, and none can do
-- more than the grants below and those beside each log say. A login role is made a
-- member of what it needs: transfer's of the capture role, which is done here for that
-- of source.url, a verifier's of the verifier role. They are of the whole cluster;
-- uninstall drops them with the last stream where nobody else uses them.
--
-- {{.Owner}} owns the logs and what the triggers run
-- {{.Capture}} reads the logs and the captured tables, writes what transfer keeps
-- {{.Verifier}} reads
--
-- Whoever runs it needs CREATEROLE; it can be run again.
DO $$
DECLARE
    wanted text;
BEGIN
    FOREACH wanted IN ARRAY ARRAY[{{.OwnerName}}, {{.CaptureName}}, {{.VerifierName}}] LOOP
        IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = wanted) THEN
            BEGIN
                EXECUTE format('CREATE ROLE %I NOLOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION', wanted);
            EXCEPTION WHEN duplicate_object OR unique_violation THEN
                NULL; -- another database's init was quicker
            END;
        END IF;
    END LOOP;
    -- Who is to hand something to a role has to be a member of it.
    IF NOT pg_has_role({{.OwnerName}}, 'USAGE') THEN
        EXECUTE format('GRANT %I TO %I', {{.OwnerName}}, current_user);
    END IF;{{if .Login}}
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = {{.LoginName}}) AND NOT pg_has_role({{.LoginName}}, {{.CaptureName}}, 'MEMBER') THEN
        GRANT {{.Capture}} TO {{.Login}};
    END IF;{{end}}
END
$$;
