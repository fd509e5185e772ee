-- What the triggers of {{.Table}} run. Each writes the keys of the rows that were
-- changed, and nothing else, to the segment whose turn it is.
--
-- The text is static, and each INSERT scans one set of rows once: its plan, which a
-- session makes at the first call and keeps, is as good for a million rows as for one.
-- Nobody needs rights on schema millrace for it (SECURITY DEFINER), and nothing that
-- the caller set changes what a name means (search_path).
--
-- "renamed" answers for a key column that no longer has its name: the writer's
-- statement goes on, the logged key is NULL, and the stream stops, because the key of
-- the table is another.
-- Locks: none that anybody else waits for.
{{- range .Functions}}

CREATE OR REPLACE FUNCTION {{.Name}}() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $millrace$
#variable_conflict use_column
BEGIN
    CASE millrace.segment({{$.Period}})
{{- $f := .}}
{{- range $i, $segment := $.Segments}}
    {{if eq $i 2}}ELSE{{else}}WHEN {{$i}} THEN{{end}}
{{- if eq $f.Action "T"}}
        INSERT INTO {{$segment}} (txid, action, changed_at, changed_by)
        VALUES (txid_current(), 'T', transaction_timestamp(), session_user);
{{- else}}
        INSERT INTO {{$segment}} (txid, action, changed_at, changed_by, {{$.LogColumns}})
        SELECT txid_current(), '{{$f.Action}}', transaction_timestamp(), session_user, key.*
        FROM (SELECT {{range $.Keys}}(NULL::{{$segment}}).{{.Log}} AS {{.Column}}{{if not .Last}}, {{end}}{{end}}) renamed
        {{- if $f.Rows}}
        CROSS JOIN {{$f.Rows}} changed
        {{- end}}
        CROSS JOIN LATERAL (SELECT {{$.KeyColumns}} FROM (SELECT {{$f.Source}}.*) r) key;
{{- end}}
{{- end}}
    END CASE;
    RETURN NULL;
END
$millrace$;
REVOKE ALL ON FUNCTION {{.Name}}() FROM PUBLIC;
{{- end}}
