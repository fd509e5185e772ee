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
       leaves.list
FROM millrace.key_log l
LEFT JOIN pg_class c ON c.oid = l.table_id
LEFT JOIN pg_namespace n ON n.oid = c.relnamespace
CROSS JOIN LATERAL (
    SELECT {{template "mark.sql"}} AS mark
) now
LEFT JOIN LATERAL (
    -- The partitions, and the copies of the triggers that each has.
    WITH RECURSIVE tree (oid) AS (
        SELECT l.table_id
      UNION
        SELECT i.inhrelid FROM tree JOIN pg_inherits i ON i.inhparent = tree.oid
    )
    SELECT jsonb_agg(jsonb_build_object(
        'id', leaf.oid::bigint, 'name', ns.nspname || '.' || leaf.relname, 'kind', leaf.relkind, 'file', leaf.relfilenode::bigint,
        'always', t.always, 'triggers', coalesce(t.triggers, ''),
        'subscribed', EXISTS (SELECT FROM pg_subscription_rel s WHERE s.srrelid = leaf.oid)) ORDER BY leaf.oid)
    FROM tree
    JOIN pg_class leaf ON leaf.oid = tree.oid
    JOIN pg_namespace ns ON ns.oid = leaf.relnamespace
    CROSS JOIN LATERAL (
        SELECT count(*) FILTER (WHERE t.tgenabled = 'A') AS always,
               string_agg(concat_ws(' ', t.tgname, t.tgenabled, t.oid, t.xmin, t.tgfoid), ', ' ORDER BY t.tgname) AS triggers
        FROM pg_trigger t
        WHERE t.tgrelid = leaf.oid AND t.tgname = ANY (ARRAY(SELECT concat('millrace_', l.id, '_', kind)::name FROM unnest('{i,u,k,d}'::text[]) kind))
    ) t
    WHERE tree.oid <> l.table_id
) leaves (list) ON c.relkind = 'p'
WHERE l.stream = $1
ORDER BY l.id
