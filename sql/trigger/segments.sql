-- The log of {{.Table}}: three segments, written in turn. A row has the keys of up to
-- {{.Run}} rows that one statement changed, as arrays of the same length: k1, k2, … are
-- the columns {{.KeyColumns}}. A TRUNCATE has none. A change of the key itself logs the old
-- key too. To read them one by one:
--     SELECT txid, changed_at, action, changed_by, unnest(k1) … FROM millrace.log_{{.ID}}_0
--
-- Arrays, because a row and an index entry for each key cost a bulk statement more than
-- its own rows do. They are kept as they are: compressing them would cost more again.
-- Locks: none that anybody else waits for; the tables are new.
{{- range .Segments}}
CREATE TABLE {{.}} (
    txid       bigint      NOT NULL, -- of the top-level transaction
    changed_at timestamptz NOT NULL, -- when the transaction began
    action     "char"      NOT NULL, -- I, U, D, T (TRUNCATE)
    changed_by text        NOT NULL, -- session_user
    n          integer     NOT NULL, -- the number of keys; 1 for a TRUNCATE
{{- range $.Keys}}
    {{.Log}} {{.Type}}{{if not .Last}},{{end}}
{{- end}}
);
{{- $segment := .}}
{{- range $.Keys}}
ALTER TABLE {{$segment}} ALTER {{.Log}} SET STORAGE EXTERNAL;
{{- end}}
CREATE INDEX ON {{.}} (txid);
COMMENT ON TABLE {{.}} IS {{$.Comment}};
{{- end}}
