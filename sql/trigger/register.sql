-- Enters the log of {{.Table}}{{if .Hole}}, complete from this transaction on{{end}}, and how it was left.
-- Locks: none that a writer waits for.
INSERT INTO millrace.key_log AS l (id, stream, table_id, table_name, mode, key_columns, period, definition, complete_since, reason, mark)
VALUES ({{.ID}}, {{.Stream}}, {{.TableID}}, {{.Name}}, '{{.Mode}}', {{.KeyNames}}, {{.Period}}, '{{.Definition}}', txid_current(), {{.Reason}}, '{}')
ON CONFLICT (stream, table_id) DO UPDATE
SET table_name = excluded.table_name, mode = excluded.mode, key_columns = excluded.key_columns, period = excluded.period, definition = excluded.definition
{{- if .Hole}},
    complete_since = excluded.complete_since, reason = excluded.reason
{{- end}};
UPDATE millrace.key_log l SET mark = {{template "mark.sql"}} WHERE l.id = {{.ID}};
