-- What tells the streams of this database about DDL. init runs this file where
-- its role may make event triggers (a superuser, or the admin role of a managed
-- service); it can be run again.
--
-- Each command that concerns a captured table, a partition of one, or a type
-- writes a logical message into its own transaction. The messages are hints: the
-- capture looks the tables up in the catalogs. Nothing here makes a command fail.

-- The captured tables that a relation is, or is a partition of.
CREATE OR REPLACE FUNCTION millrace.captured(relation oid) RETURNS SETOF oid
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
    WITH RECURSIVE up (oid) AS (
        SELECT relation
      UNION
        SELECT i.inhparent FROM up JOIN pg_inherits i ON i.inhrelid = up.oid
    )
    SELECT up.oid
    FROM up
    WHERE EXISTS (
        SELECT FROM pg_publication_rel r
        JOIN pg_publication p ON p.oid = r.prpubid
        JOIN millrace.stream s ON s.publication = p.pubname
        WHERE r.prrelid = up.oid)
$$;

-- Brings millrace.leaf up to date with the partitions of a captured table. moved
-- says whether rows may have come or gone with them: a partition that was created
-- as one is empty then, and so is one without a block. changed says whether there
-- are others than before.
CREATE OR REPLACE FUNCTION millrace.note_leaves(of_root oid, created boolean, OUT moved boolean, OUT changed boolean)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    WITH RECURSIVE tree (oid) AS (
        SELECT of_root
      UNION
        SELECT i.inhrelid FROM tree JOIN pg_inherits i ON i.inhparent = tree.oid
    ), now (leaf) AS (
        SELECT c.oid FROM tree JOIN pg_class c ON c.oid = tree.oid WHERE c.relkind NOT IN ('p', 'I')
    ), gone AS (
        DELETE FROM millrace.leaf l
        WHERE l.root = of_root AND NOT EXISTS (SELECT FROM now n WHERE n.leaf = l.leaf)
        RETURNING l.leaf
    ), come AS (
        INSERT INTO millrace.leaf (root, leaf, file)
        SELECT of_root, n.leaf, coalesce(pg_relation_filenode(n.leaf), 0) FROM now n
        WHERE NOT EXISTS (SELECT FROM millrace.leaf l WHERE l.root = of_root AND l.leaf = n.leaf)
        RETURNING leaf
    )
    SELECT EXISTS (SELECT FROM gone WHERE coalesce(pg_relation_size(leaf), 1) > 0)
        OR EXISTS (SELECT FROM come WHERE NOT created AND pg_relation_size(leaf) > 0),
        EXISTS (SELECT FROM come) OR EXISTS (SELECT FROM gone)
    INTO moved, changed;
END
$$;

-- Before Postgres 15 a walsender that has met a table while it was published by
-- nobody goes on leaving it out after it has become a partition of one that is, and
-- the other way round. It looks again when any publication's tables change.
CREATE OR REPLACE FUNCTION millrace.look_again(of_root oid) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    passing text := 'millrace_look_again_' || pg_backend_pid();
BEGIN
    EXECUTE format('CREATE PUBLICATION %I FOR TABLE %s', passing, of_root::regclass);
    EXECUTE format('DROP PUBLICATION %I', passing);
END
$$;

-- Writes the message, and an empty one behind it: decoding takes the end of a
-- message for its place, which is where the next record begins, and where that is
-- of another (sub)transaction it may come first. The functions below write in a
-- subtransaction, because they catch errors.
CREATE OR REPLACE FUNCTION millrace.tell(content jsonb) RETURNS pg_lsn
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
    SELECT pg_logical_emit_message(true, 'millrace.ddl', content::text);
    SELECT pg_logical_emit_message(true, 'millrace.ddl.end', '');
$$;

CREATE OR REPLACE FUNCTION millrace.ddl() RETURNS event_trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    command    record;
    captured   oid;
    noted      record;
    tables     oid[] := '{}';
    types      oid[] := '{}';
    rewritten  oid[] := '{}';
    partitions oid[] := '{}';
BEGIN
    IF tg_event = 'table_rewrite' THEN
        -- Another default or type of a column: 2 and 4. The others keep the rows.
        IF pg_event_trigger_table_rewrite_reason() & 6 <> 0 THEN
            rewritten := ARRAY(SELECT millrace.captured(pg_event_trigger_table_rewrite_oid()));
        END IF;
    ELSIF tg_event = 'sql_drop' THEN
        FOR captured IN
            SELECT DISTINCT l.root
            FROM pg_event_trigger_dropped_objects() o
            JOIN millrace.leaf l ON l.leaf = o.objid
            WHERE o.classid = 'pg_class'::regclass AND o.objsubid = 0
        LOOP
            SELECT * INTO noted FROM millrace.note_leaves(captured, false);
            IF noted.moved THEN
                partitions := partitions || captured;
            END IF;
        END LOOP;
    ELSE
        FOR command IN SELECT classid, objid FROM pg_event_trigger_ddl_commands() LOOP
            IF command.classid = 'pg_type'::regclass THEN
                types := types || command.objid;
            ELSIF command.classid = 'pg_class'::regclass THEN
                -- A composite type is altered as a relation.
                types := types || ARRAY(SELECT reltype FROM pg_class WHERE oid = command.objid AND relkind = 'c');
                FOR captured IN SELECT millrace.captured(command.objid) LOOP
                    tables := tables || captured;
                    IF EXISTS (SELECT FROM pg_class WHERE oid = captured AND relkind = 'p') THEN
                        SELECT * INTO noted FROM millrace.note_leaves(captured, tg_tag <> 'ALTER TABLE');
                        IF noted.moved THEN
                            partitions := partitions || captured;
                        END IF;
                        IF noted.changed AND tg_tag = 'ALTER TABLE' AND current_setting('server_version_num')::int < 150000 THEN
                            PERFORM millrace.look_again(captured);
                        END IF;
                    END IF;
                END LOOP;
            END IF;
        END LOOP;
        -- A partition that was just created, and nothing else.
        IF tg_tag <> 'ALTER TABLE' THEN
            tables := '{}';
        END IF;
    END IF;
    IF cardinality(tables || types || rewritten || partitions) > 0 THEN
        PERFORM millrace.tell(jsonb_build_object('tag', tg_tag,
            'tables', to_jsonb(tables::bigint[]), 'types', to_jsonb(types::bigint[]),
            'rewritten', to_jsonb(rewritten::bigint[]), 'partitions', to_jsonb(partitions::bigint[])));
    END IF;
EXCEPTION WHEN OTHERS THEN
    -- The command goes on. Its streams load their tables, in doubt all of them.
    RAISE WARNING 'millrace: % could not be described: %', tg_tag, sqlerrm
        USING HINT = 'The streams of this database load their tables again.';
    BEGIN
        PERFORM millrace.tell(jsonb_build_object('tag', tg_tag, 'doubt', true));
    EXCEPTION WHEN OTHERS THEN
        RAISE WARNING 'millrace: % could not be told: %', tg_tag, sqlerrm
            USING HINT = 'Load the tables that it concerned: millrace load.';
    END;
END
$$;

REVOKE ALL ON FUNCTION millrace.captured(oid), millrace.note_leaves(oid, boolean), millrace.look_again(oid), millrace.tell(jsonb), millrace.ddl() FROM PUBLIC;

-- ENABLE ALWAYS: also under session_replication_role = replica.
DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_event_trigger WHERE evtname = 'millrace_ddl_end') THEN
        CREATE EVENT TRIGGER millrace_ddl_end ON ddl_command_end
            WHEN TAG IN ('ALTER TABLE', 'CREATE TABLE', 'CREATE SCHEMA', 'ALTER TYPE', 'ALTER DOMAIN')
            EXECUTE FUNCTION millrace.ddl();
    END IF;
    IF NOT EXISTS (SELECT FROM pg_event_trigger WHERE evtname = 'millrace_ddl_drop') THEN
        CREATE EVENT TRIGGER millrace_ddl_drop ON sql_drop EXECUTE FUNCTION millrace.ddl();
    END IF;
    IF NOT EXISTS (SELECT FROM pg_event_trigger WHERE evtname = 'millrace_ddl_rewrite') THEN
        CREATE EVENT TRIGGER millrace_ddl_rewrite ON table_rewrite EXECUTE FUNCTION millrace.ddl();
    END IF;
    IF EXISTS (SELECT FROM pg_event_trigger WHERE evtname LIKE 'millrace\_ddl\_%' AND evtenabled <> 'A') THEN
        ALTER EVENT TRIGGER millrace_ddl_end ENABLE ALWAYS;
        ALTER EVENT TRIGGER millrace_ddl_drop ENABLE ALWAYS;
        ALTER EVENT TRIGGER millrace_ddl_rewrite ENABLE ALWAYS;
    END IF;
END
$$;
