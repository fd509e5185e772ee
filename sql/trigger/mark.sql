{{- /* The triggers, functions, segments and key columns of log l, as the catalogs have them. */ -}}
jsonb_build_object(
    'triggers', (
        SELECT coalesce(jsonb_object_agg(t.tgname, concat_ws(' ', t.tgenabled, t.oid, t.xmin, t.tgtype, t.tgfoid)), '{}')
        FROM pg_trigger t
        WHERE t.tgrelid = l.table_id AND t.tgname = ANY (ARRAY(SELECT concat('millrace_', l.id, '_', kind)::name FROM unnest('{i,u,k,d,t}'::text[]) kind))),
    'functions', (
        SELECT coalesce(jsonb_object_agg(p.proname, concat_ws(' ', p.oid, p.xmin)), '{}')
        FROM pg_proc p
        WHERE p.pronamespace = 'millrace'::regnamespace AND p.proname = ANY (ARRAY(SELECT concat('log_', l.id, '_', kind)::name FROM unnest('{i,u,k,d,t}'::text[]) kind))),
    'segments', (
        SELECT coalesce(jsonb_object_agg(s.relname, concat_ws(' ', s.oid, s.relfilenode)), '{}')
        FROM pg_class s
        WHERE s.relnamespace = 'millrace'::regnamespace AND s.relname = ANY (ARRAY(SELECT concat('log_', l.id, '_', segment)::name FROM generate_series(0, 2) segment))),
    'key', (
        SELECT coalesce(jsonb_object_agg(a.attname, concat_ws(' ', a.attnum, a.atttypid, a.atttypmod, a.attcollation)), '{}')
        FROM pg_attribute a
        WHERE a.attrelid = l.table_id AND a.attname = ANY (l.key_columns::name[]) AND NOT a.attisdropped)
)