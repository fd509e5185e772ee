-- Keys and unique indexes of tables that prepare has made, at the target. They stand
-- aside while rows are copied, and are made again behind the last chunk of a table.
CREATE TABLE millrace.migration_key (
    name       text    NOT NULL REFERENCES millrace.migration (name) ON DELETE CASCADE,
    table_name text    NOT NULL,          -- schema.table
    heap       text    NOT NULL,          -- the table, or a partition of it, as SQL writes it
    number     integer NOT NULL,          -- they are made in this order
    statement  text    NOT NULL,          -- that makes it
    columns    text[]  NOT NULL,          -- or expressions, as SQL writes them
    predicate  text    NOT NULL,          -- of a partial index, else empty
    one_null   boolean NOT NULL,          -- NULLS NOT DISTINCT
    aside_at   timestamptz NOT NULL DEFAULT clock_timestamp(),
    removed    bigint  NOT NULL DEFAULT 0,  -- rows that were there twice by it
    made_at    timestamptz,               -- NULL while it stands aside
    PRIMARY KEY (name, heap, number)
);
