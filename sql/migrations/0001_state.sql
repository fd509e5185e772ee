-- What a migration keeps in both of its databases. None of these tables is ever
-- captured or moved itself.
CREATE SCHEMA IF NOT EXISTS millrace;

-- Which of the numbered files have been run.
CREATE TABLE millrace.migration_version (
    number     integer     PRIMARY KEY,
    applied_at timestamptz NOT NULL DEFAULT now()
);

-- One row a migration, in both databases. What the target's says counts while rows
-- and changes go there.
CREATE TABLE millrace.migration (
    name       text        PRIMARY KEY,
    id         uuid        NOT NULL,      -- the same on both sides
    side       text        NOT NULL CHECK (side IN ('source', 'target')),
    system     text        NOT NULL,      -- system identifiers: of this side,
    peer       text        NOT NULL,      -- and of the other
    step       text        NOT NULL,      -- the last that is done
    step_at    timestamptz NOT NULL DEFAULT now(),
    paused     boolean     NOT NULL DEFAULT false,
    tables     jsonb       NOT NULL,      -- what the migration file says of tables
    made       text[]      NOT NULL DEFAULT '{}',  -- tables that prepare has made
    created_at timestamptz NOT NULL DEFAULT now()
);

-- How far changes have come, at the target: written in the transaction that holds
-- them.
CREATE TABLE millrace.migration_place (
    name         text        PRIMARY KEY REFERENCES millrace.migration (name) ON DELETE CASCADE,
    checkpoint   bytea       NOT NULL,    -- encoded: index, chain, position, tables
    index        numeric(20) NOT NULL,
    position     text        NOT NULL,    -- for people
    token        numeric(20) NOT NULL,    -- the comparable part of the position
    source_time  timestamptz NOT NULL,    -- when the source committed the newest of them
    applied_at   timestamptz NOT NULL,
    -- Behind this place the copied rows are as their changes say, but for those in
    -- migration_missing.
    horizon      numeric(20),
    converged_at timestamptz              -- when the target first was the source at an index
);

-- The heaps that are copied: tables, or partitions that hold rows.
CREATE TABLE millrace.migration_heap (
    name       text    NOT NULL REFERENCES millrace.migration (name) ON DELETE CASCADE,
    table_name text    NOT NULL,          -- at the source: schema.table
    heap       oid     NOT NULL,
    heap_name  text    NOT NULL,          -- as SQL writes it
    file       oid     NOT NULL,          -- its relfilenode; another one has its rows elsewhere
    again      boolean NOT NULL DEFAULT false,  -- it had another file before, so rows may be there already
    PRIMARY KEY (name, heap)
);

-- Their chunks: ranges of blocks, each copied in a transaction of its own.
CREATE TABLE millrace.migration_chunk (
    name        text        NOT NULL,
    heap        oid         NOT NULL,
    first_block bigint      NOT NULL,
    end_block   bigint      NOT NULL,     -- the first one behind it, 0 for no end
    rows_read   bigint,                   -- NULL until it is copied
    rows_there  bigint,                   -- at the target: copied, or there before
    sum_read    bytea,                    -- of the rows as the source sent them
    sum_there   bytea,                    -- as the target has stored them
    snapshot    text,
    copied_at   timestamptz,
    took        interval,
    PRIMARY KEY (name, heap, first_block),
    FOREIGN KEY (name, heap) REFERENCES millrace.migration_heap (name, heap) ON DELETE CASCADE
);

-- Rows that are not at the target because a change of theirs did not carry all of
-- their values. They are read from the source by key before the target is the source.
CREATE TABLE millrace.migration_missing (
    name     text   NOT NULL REFERENCES millrace.migration (name) ON DELETE CASCADE,
    table_id oid    NOT NULL,
    key      text[] NOT NULL,
    PRIMARY KEY (name, table_id, key)
);

-- What went over, batch by batch: at the source what was captured, at the target
-- what became of it.
CREATE TABLE millrace.migration_batch (
    name        text        NOT NULL REFERENCES millrace.migration (name) ON DELETE CASCADE,
    last_index  numeric(20) NOT NULL,
    first_index numeric(20) NOT NULL,
    chain       bytea       NOT NULL,     -- at last_index
    position    text        NOT NULL,
    units       bigint      NOT NULL,
    counts      jsonb       NOT NULL,     -- by table: see docs/MIGRATIONS.md
    source_time timestamptz NOT NULL,
    written_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (name, last_index)
);
CREATE INDEX migration_batch_age ON millrace.migration_batch (written_at);

-- Passes of verification over tables, and the ranges that they have compared.
CREATE TABLE millrace.migration_range (
    name       text        NOT NULL REFERENCES millrace.migration (name) ON DELETE CASCADE,
    table_name text        NOT NULL,      -- at the source
    pass       bigint      NOT NULL,
    index      numeric(20) NOT NULL,      -- at which the two sides were compared
    low        bytea       NOT NULL,      -- encoded keys: the first of the range,
    high       bytea       NOT NULL,      -- and the first behind it, empty for the end
    left_out   bigint      NOT NULL,      -- keys that took no part, because they changed
    rows       bigint      NOT NULL,
    sum        bytea       NOT NULL,      -- at the source
    rows_there bigint      NOT NULL,
    sum_there  bytea       NOT NULL,      -- at the target
    equal      boolean     NOT NULL,
    found      jsonb,                     -- rows that differ, by key
    checked_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (name, table_name, pass, low)
);

-- A pass that somebody has asked of the process that follows.
CREATE TABLE millrace.migration_wanted (
    name      text        PRIMARY KEY REFERENCES millrace.migration (name) ON DELETE CASCADE,
    wanted_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    taken_at  timestamptz,                -- by the process that follows
    done_at   timestamptz,
    problem   text                        -- why it came to nothing
);
