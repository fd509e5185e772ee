-- A row of {{.Table}} that was written by a transaction which had not begun in snapshot
-- $1, and whose key was not logged by any that snapshot $1 does not see: proof that
-- something wrote it without the triggers. NULL if there is none. It reads the whole
-- table.
--
-- A row's xmin has 32 bits, may be that of a subtransaction, and stays through VACUUM
-- FULL and CLUSTER; a transaction that began after $1 is one whose distance to its end
-- is not more than this snapshot's. Commands that give all rows another one replace the
-- table's file, and are looked for before.
SELECT (SELECT concat_ws(', ', {{range $i, $k := .Keys}}{{if $i}}, {{end}}t.{{$k.Column}}{{end}})
        FROM {{.Table}} t
        WHERE (t.xmin::text::bigint - before.xmax % 4294967296 + 4294967296) % 4294967296 < now.xmax - before.xmax
          AND NOT EXISTS (
              SELECT FROM (
{{- range $i, $segment := .Segments}}
                  {{if $i}}UNION ALL {{end}}SELECT txid, {{$.Unnested}} FROM {{$segment}} WHERE txid >= before.xmin
{{- end}}
              ) l
              WHERE {{range .Keys}}l.{{.Log}} = t.{{.Column}} AND {{end}}NOT pg_visible_in_snapshot(l.txid::text::xid8, $1::text::pg_snapshot))
        LIMIT 1)
FROM (SELECT pg_snapshot_xmin(s)::text::bigint, pg_snapshot_xmax(s)::text::bigint FROM (SELECT $1::text::pg_snapshot) s (s)) before (xmin, xmax),
     (SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint) now (xmax)
