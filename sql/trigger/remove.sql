-- Takes away all that capture of {{.Table}} made. What is not there is no error.
{{- if .Exists}}
-- Locks: ACCESS EXCLUSIVE on {{.Table}}{{if .Partitioned}} and all its partitions{{end}}, from here to the end of the
-- transaction, which takes some milliseconds: readers and writers wait. It is asked
-- for with a time-out, and again later if somebody holds it up. (DROP TRIGGER would lock
-- partitions before the table, against the order of writers, who would deadlock with it.)
LOCK TABLE {{.Table}} IN ACCESS EXCLUSIVE MODE;
{{- range .Triggers}}
DROP TRIGGER IF EXISTS {{.}} ON {{$.Table}};
{{- end}}
{{- end}}
{{- range .Functions}}
DROP FUNCTION IF EXISTS {{.Name}}();
{{- end}}
DROP TABLE IF EXISTS {{range $i, $s := .Segments}}{{if $i}}, {{end}}{{$s}}{{end}};
DELETE FROM millrace.key_log WHERE id = {{.ID}};
