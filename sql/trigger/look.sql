-- What is installed for a stream, beside what was left there (mark). One row a
-- captured table. It reads catalogs by their indexes only, as the snapshot of its
-- transaction has them, and takes no locks on tables.
--
-- A trigger or function that somebody alters, replaces, or disables and enables again
-- becomes another tuple of its catalog, with the number of that transaction (xmin): so
-- that is seen for good, however short it was. VACUUM, VACUUM FULL and DDL on other
-- things keep xmin as it is.
--
-- millrace.segment() is not looked at, because no change can be lost by it.
--
-- $1: the stream
SELECT l.id, l.table_id::bigint, l.table_name, l.mode, l.key_columns, l.period, l.definition, l.complete_since, l.reason,
       coalesce(n.nspname, '')::text, coalesce(c.relname, '')::text, coalesce(c.relkind, '')::text, coalesce(c.relfilenode, 0)::bigint,
       -- Where changes of it are made through another table.
       coalesce(c.relispartition, false), EXISTS (SELECT FROM pg_inherits i WHERE l.table_id IN (i.inhrelid, i.inhparent)),
       EXISTS (SELECT FROM pg_subscription_rel s WHERE s.srrelid = l.table_id),
       CASE WHEN l.mark = now.mark THEN NULL ELSE l.mark END, CASE WHEN l.mark = now.mark THEN NULL ELSE now.mark END,
       touched.list
FROM millrace.key_log l
LEFT JOIN pg_class c ON c.oid = l.table_id
LEFT JOIN pg_namespace n ON n.oid = c.relnamespace
CROSS JOIN LATERAL (
    SELECT {{template "mark.sql"}} AS mark
    OFFSET 0 -- computed once
) now
LEFT JOIN LATERAL (
    -- The partitions whose triggers are not as the server copied them: by the
    -- transaction that attached the partition, or what it is part of, or the one that
    -- made those of the table. One that is about to be detached is none any more.
    WITH RECURSIVE tree (oid, transactions, going) AS (
        SELECT l.table_id, ARRAY(SELECT t.xmin FROM pg_trigger t WHERE t.tgrelid = l.table_id AND t.tgname LIKE format('millrace\_%s\_%%', l.id)), false
        WHERE c.relkind = 'p'
      UNION ALL
        SELECT i.inhrelid, tree.transactions || i.xmin, tree.going OR i.inhdetachpending
        FROM tree JOIN pg_inherits i ON i.inhparent = tree.oid
    )
    SELECT jsonb_agg(jsonb_build_object(
        'name', (SELECT n.nspname || '.' || p.relname FROM pg_class p JOIN pg_namespace n ON n.oid = p.relnamespace WHERE p.oid = tree.oid),
        'always', t.always, 'untouched', t.untouched) ORDER BY tree.oid)
    FROM tree
    CROSS JOIN LATERAL (
        SELECT count(*) FILTER (WHERE t.tgenabled = 'A') AS always, count(*) FILTER (WHERE t.xmin = ANY (tree.transactions)) AS untouched
        FROM pg_trigger t
        WHERE t.tgrelid = tree.oid AND t.tgname = ANY (ARRAY(SELECT concat('millrace_', l.id, '_', kind)::name FROM unnest('{i,u,k,d}'::text[]) kind))
        OFFSET 0
    ) t
    WHERE tree.oid <> l.table_id AND NOT tree.going AND (t.always <> 4 OR t.untouched <> 4)
) touched (list) ON true
WHERE l.stream = $1
ORDER BY l.id
