-- ENABLE ALWAYS: also for sessions with session_replication_role = replica, and for
-- the worker that applies a subscription.
-- Locks: none beyond those held.
{{- range .Triggers}}
ALTER TABLE {{$.Table}} ENABLE ALWAYS TRIGGER {{.}};
{{- end}}
{{- range $partition := .Partitions}}
{{- range $.RowTriggers}}
ALTER TABLE {{$partition}} ENABLE ALWAYS TRIGGER {{.}};
{{- end}}
{{- end}}
