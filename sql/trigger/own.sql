-- Hands log and functions to the role that owns nothing else, so that what runs in
-- writers' transactions has no more rights than it needs.
-- Locks: none that anybody else waits for.
{{- range .Segments}}
ALTER TABLE {{.}} OWNER TO millrace_owner;
GRANT SELECT, TRUNCATE ON {{.}} TO millrace_capture;
GRANT SELECT ON {{.}} TO millrace_verifier;
{{- end}}
{{- range .Functions}}
ALTER FUNCTION {{.Name}}() OWNER TO millrace_owner;
{{- end}}
