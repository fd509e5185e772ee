-- ENABLE ALWAYS: also for sessions with session_replication_role = replica, and for
-- the worker that applies a subscription.
-- Locks: none beyond those held.
{{- range .Relations}}
{{- $relation := .}}
{{- range $.Triggers}}
ALTER TABLE {{$relation}} ENABLE ALWAYS TRIGGER {{.}};
{{- end}}
{{- end}}
