-- Hands log and functions to the role that owns nothing else, so that what runs in
-- writers' transactions has no more rights than it needs.
-- Locks: none that anybody else waits for.
{{- range .Segments}}
ALTER TABLE {{.}} OWNER TO {{$.Roles.Owner}};
GRANT SELECT, TRUNCATE ON {{.}} TO {{$.Roles.Capture}};
GRANT SELECT ON {{.}} TO {{$.Roles.Verifier}};
{{- end}}
{{- range .Functions}}
ALTER FUNCTION {{.Name}}() OWNER TO {{$.Roles.Owner}};
{{- end}}
