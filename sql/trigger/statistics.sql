-- How many rows the server has counted as written in each captured table, and how many
-- as inserted into its log. Both count rows of transactions that were taken back.
--
-- $1: the stream
SELECT l.id, t.written, coalesce(t.files, ''), s.inserted, s.altered, coalesce(s.files, ''), pg_current_snapshot()::text
FROM millrace.key_log l
CROSS JOIN LATERAL (
    WITH RECURSIVE tree (oid) AS (
        SELECT l.table_id
      UNION
        SELECT i.inhrelid FROM tree JOIN pg_inherits i ON i.inhparent = tree.oid
    )
    SELECT coalesce(sum(pg_stat_get_tuples_inserted(c.oid) + pg_stat_get_tuples_updated(c.oid) + pg_stat_get_tuples_deleted(c.oid)), 0)::bigint AS written,
           string_agg(concat_ws(' ', c.oid, c.relfilenode), ', ' ORDER BY c.oid) AS files
    FROM tree JOIN pg_class c ON c.oid = tree.oid
) t
CROSS JOIN LATERAL (
    SELECT coalesce(sum(pg_stat_get_tuples_inserted(c.oid)), 0)::bigint AS inserted,
           coalesce(sum(pg_stat_get_tuples_updated(c.oid) + pg_stat_get_tuples_deleted(c.oid)), 0)::bigint AS altered,
           string_agg(concat_ws(' ', c.oid, c.relfilenode), ', ' ORDER BY c.oid) AS files
    FROM pg_class c
    WHERE c.relnamespace = 'millrace'::regnamespace AND c.relname = ANY (ARRAY(SELECT concat('log_', l.id, '_', segment)::name FROM generate_series(0, 2) segment))
) s
WHERE l.stream = $1
