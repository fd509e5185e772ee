-- The log of {{.Table}}: three segments, written in turn. Each has a row for every
-- change of every row, with the row's key: k1, k2, … are its columns {{.KeyColumns}},
-- nullable because a TRUNCATE has none. A change of the key itself has two rows.
-- Locks: none that anybody else waits for; the tables are new.
{{- range .Segments}}
CREATE TABLE {{.}} (
    txid       bigint      NOT NULL, -- of the top-level transaction
    action     "char"      NOT NULL, -- I, U, D, T (TRUNCATE)
    changed_at timestamptz NOT NULL, -- when the transaction began
    changed_by text        NOT NULL, -- session_user
{{- range $.Keys}}
    {{.Log}} {{.Type}}{{if not .Last}},{{end}}
{{- end}}
);
CREATE INDEX ON {{.}} (txid);
COMMENT ON TABLE {{.}} IS {{$.Comment}};
{{- end}}
