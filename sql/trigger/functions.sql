{{- /* The keys of the rows in question, one a row, as k1, k2, … No type is named: the
       owner of the functions may have no right to look into its schema. */ -}}
{{- define "keys" -}}
FROM (SELECT {{range .Log.Keys}}((NULL::{{index $.Log.Segments 0}}).{{.Log}})[1] AS {{.Column}}{{if not .Last}}, {{end}}{{end}}) renamed
        {{- if .Rows}} CROSS JOIN {{.Rows}} changed{{end}}
             CROSS JOIN LATERAL (SELECT {{.Log.KeyColumns}} FROM (SELECT {{.Source}}.*) r) key ({{.Log.LogColumns}})
{{- end -}}
-- What the triggers of {{.Table}} run. Each writes the keys of the rows that were
-- changed, and nothing else, to the segment whose turn it is: in one row, or, where
-- there are more than {{.Run}}, in runs of so many.
--
-- The text is static, and each INSERT scans one set of rows once: its plan, which a
-- session makes at the first call and keeps, is as good for a million rows as for one;
-- but one that was made for millions would be compiled again at each call (jit).
-- Nobody needs rights on schema millrace for it (SECURITY DEFINER), and nothing that
-- the caller set changes what a name means (search_path).
--
{{- if .Except}}
-- Changes of a session that meets a condition are not logged: they have come from where
-- the log leads to. Others pay for one look at a setting.
--
{{- end}}
-- "renamed" answers for a key column that no longer has its name: the writer's
-- statement goes on, the logged key is NULL, and the stream stops, because the key of
-- the table is another.
-- Locks: none that anybody else waits for.
{{- range .Functions}}

CREATE OR REPLACE FUNCTION {{.Name}}() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp{{if .Rows}} SET jit = off{{end}}
AS $millrace$
#variable_conflict use_column
DECLARE
    written integer;
BEGIN
{{- if $.Except}}
    {{range $.Except}}IF {{.}} THEN {{end}}RETURN NULL;{{range $.Except}} END IF;{{end}}
{{- end}}
    CASE millrace.segment({{$.Period}})
{{- $f := .}}
{{- range $i, $segment := $.Segments}}
    {{if eq $i 2}}ELSE{{else}}WHEN {{$i}} THEN{{end}}
{{- if eq $f.Action "T"}}
        INSERT INTO {{$segment}} (txid, changed_at, action, changed_by, n)
        VALUES (txid_current(), transaction_timestamp(), 'T', session_user, 1);
{{- else if not $f.Rows}}
        INSERT INTO {{$segment}} (txid, changed_at, action, changed_by, n, {{$.LogColumns}})
        SELECT txid_current(), transaction_timestamp(), '{{$f.Action}}', session_user, 1, {{$.ArrayOfEach}}
        {{template "keys" $f}};
{{- else}}
        INSERT INTO {{$segment}} (txid, changed_at, action, changed_by, n, {{$.LogColumns}})
        SELECT txid_current(), transaction_timestamp(), '{{$f.Action}}', session_user, count(*), {{$.ArrayOfAll}}
        FROM (SELECT key.* {{template "keys" $f}}
             LIMIT {{$.Run}} + 1) few HAVING count(*) BETWEEN 1 AND {{$.Run}};
        GET DIAGNOSTICS written = ROW_COUNT;
        IF written = 0 THEN
            INSERT INTO {{$segment}} (txid, changed_at, action, changed_by, n, {{$.LogColumns}})
            SELECT txid_current(), transaction_timestamp(), '{{$f.Action}}', session_user, count(*), {{$.ArrayOfAll}}
            FROM (SELECT key.*, row_number() OVER () / {{$.Run}} AS run {{template "keys" $f}}
                 ) many GROUP BY run;
        END IF;
{{- end}}
{{- end}}
    END CASE;
    RETURN NULL;
END
$millrace$;
REVOKE ALL ON FUNCTION {{.Name}}() FROM PUBLIC;
{{- if and (eq $.Mode "row") (ne .Action "T")}}
-- Whoever adds a partition makes copies of the triggers on it, but of that for
-- TRUNCATE: nobody else is to say that there was one.
GRANT EXECUTE ON FUNCTION {{.Name}}() TO {{$.TableOwner}};
{{- end}}
{{- end}}
