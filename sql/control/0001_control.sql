-- The control schema: what millrace keeps in the source database. It is never
-- captured itself.
CREATE SCHEMA IF NOT EXISTS millrace;

-- Which of the numbered files have been run.
CREATE TABLE millrace.version (
    number     integer     PRIMARY KEY,
    applied_at timestamptz NOT NULL DEFAULT now()
);

-- One row a stream, made by init.
CREATE TABLE millrace.stream (
    name        text        PRIMARY KEY,
    id          uuid        NOT NULL UNIQUE,   -- the 128-bit stream ID
    epoch       bigint      NOT NULL DEFAULT 1,
    capture     text        NOT NULL,          -- wal or trigger
    topic       text        NOT NULL,          -- name of the topic of this epoch
    topic_id    text        NOT NULL,          -- Kafka's identity of it
    publication text,
    slot        text,
    created_at  timestamptz NOT NULL DEFAULT now()
);

-- Who publishes a stream, and since when it has shown life. The exclusive hold
-- itself is a session advisory lock on the connection with this pid.
CREATE TABLE millrace.hold (
    stream      text        PRIMARY KEY REFERENCES millrace.stream (name) ON DELETE CASCADE,
    publisher   uuid        NOT NULL,
    pid         integer     NOT NULL,
    acquired_at timestamptz NOT NULL,
    renewed_at  timestamptz NOT NULL
);

-- What was published and read back from the topic: insert-only, pruned by age.
CREATE TABLE millrace.ledger (
    id           bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    stream       text        NOT NULL REFERENCES millrace.stream (name) ON DELETE CASCADE,
    epoch        bigint      NOT NULL,
    term         bigint      NOT NULL,
    publisher    uuid        NOT NULL,
    first_index  numeric(20) NOT NULL,
    last_index   numeric(20) NOT NULL,
    chain        bytea       NOT NULL,         -- at last_index
    topic_id     text        NOT NULL,
    last_offset  bigint      NOT NULL,         -- of the record that ends at last_index
    state_offset bigint,                       -- of the newest accepted state record
    position     bytea       NOT NULL,         -- encoded Position at last_index
    token        numeric(20) NOT NULL,         -- its comparable part
    captured     jsonb       NOT NULL,         -- counts by table and kind, as capture gave them
    read_back    jsonb       NOT NULL,         -- the same, counted from the topic
    source_time  timestamptz NOT NULL,         -- commit time of the newest unit
    written_at   timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX ledger_newest ON millrace.ledger (stream, epoch, id DESC);
