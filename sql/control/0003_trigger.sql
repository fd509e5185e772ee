-- What trigger capture keeps: which tables have a log of keys, how far each stream
-- has read, and what DDL the event trigger saw. The logs themselves, their functions
-- and their triggers are made table by table, from sql/trigger.

-- One row a captured table of a stream. Its log is the three tables
-- millrace.log_<id>_0 to _2.
CREATE TABLE millrace.key_log (
    id             integer PRIMARY KEY,
    stream         text    NOT NULL,  -- no reference: init makes the logs before it registers the stream
    table_id       oid     NOT NULL,
    table_name     text    NOT NULL,  -- schema.table, as it was called when the log was made
    mode           text    NOT NULL CHECK (mode IN ('statement', 'row')),
    key_columns    text[]  NOT NULL,  -- the columns whose values stand in k1, k2, …
    period         bigint  NOT NULL,  -- seconds that a segment is written to before the next
    definition     text    NOT NULL,  -- hash of the statements that made functions and triggers
    -- Since when every change is in the log: the transaction (its 64-bit number) that
    -- made the log, or mended it after something was amiss. A load of the table that
    -- began in a snapshot which does not see it may lack changes.
    complete_since bigint  NOT NULL,
    reason         text    NOT NULL DEFAULT '',  -- what was amiss then
    -- The triggers, functions, segments and key columns as they were left: what is
    -- compared with the catalogs in every window, see sql/trigger/look.sql.
    mark           jsonb   NOT NULL,
    UNIQUE (stream, table_id)
);

-- One row a published window, written with a flush before it is published: after a
-- crash the server may hand out again the transaction numbers that a snapshot counts
-- as seen, unless something later than the snapshot is in the write-ahead log.
CREATE TABLE millrace.tick (
    stream   text        NOT NULL,
    epoch    bigint      NOT NULL,
    tick     bigint      NOT NULL,
    before   text        NOT NULL,    -- the snapshot of the window before, '' for the first
    snapshot text        NOT NULL,
    counts   jsonb       NOT NULL,    -- by table: logged changes by action, distinct keys
    taken_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (stream, epoch, tick)
);
CREATE INDEX tick_age ON millrace.tick (taken_at);

-- The newest load of each table that somebody asked for. The first window whose
-- snapshot sees the transaction begins it, so it is begun once, whatever is ended in
-- between.
CREATE TABLE millrace.wanted_load (
    stream    text        NOT NULL,
    table_id  oid         NOT NULL,
    txid      bigint      NOT NULL DEFAULT pg_current_xact_id()::text::bigint,
    reason    text        NOT NULL,
    wanted_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (stream, table_id)
);

-- DDL that concerned a captured table, as the event trigger saw it.
CREATE TABLE millrace.ddl_event (
    id          bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    txid        bigint      NOT NULL,
    happened_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    who         text        NOT NULL,  -- session_user
    application text        NOT NULL,
    tag         text        NOT NULL,  -- such as ALTER TABLE
    command     text        NOT NULL,  -- its first 1,000 characters
    table_id    oid         NOT NULL,  -- the captured table, 0 where it concerned all
    object      text        NOT NULL,  -- what it was done to
    rewritten   boolean     NOT NULL   -- the rows may have other values than before
);
CREATE INDEX ddl_event_table ON millrace.ddl_event (table_id, id);

-- The segment that a transaction writes its keys to: 0, 1 or 2, by the time at which
-- it began. Nothing depends on its being right: a segment is emptied only after a look
-- at what is in it, under a lock that no writer shares. So it needs no change, ever.
CREATE FUNCTION millrace.segment(period bigint) RETURNS integer
LANGUAGE sql STABLE PARALLEL SAFE
RETURN (floor(date_part('epoch', transaction_timestamp()) / period)::bigint % 3)::integer;
REVOKE ALL ON FUNCTION millrace.segment(bigint) FROM PUBLIC;
