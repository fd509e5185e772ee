-- What trimming of topics goes by.

-- Places where a topic may begin: state records that the fold of a reigning publisher
-- accepted. They are thinned out with age, and go when the topic begins after them.
CREATE TABLE millrace.mark (
    stream     text        NOT NULL REFERENCES millrace.stream (name) ON DELETE CASCADE,
    epoch      bigint      NOT NULL,
    log_offset bigint      NOT NULL,  -- of the state record
    last_index numeric(20) NOT NULL,  -- that it stands behind
    bytes      numeric(20) NOT NULL,  -- of the records before it, since marks are kept
    marked_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (stream, epoch, log_offset)
);

-- The newest decision to trim a stream's topic: written before anything is deleted, and
-- refused to a publisher whose successor has written anything.
CREATE TABLE millrace.trim (
    stream     text        PRIMARY KEY REFERENCES millrace.stream (name) ON DELETE CASCADE,
    epoch      bigint      NOT NULL,
    term       bigint      NOT NULL,
    publisher  uuid        NOT NULL,
    log_offset bigint      NOT NULL,  -- where the topic is to begin
    last_index numeric(20) NOT NULL,  -- what it begins behind
    forced     boolean     NOT NULL,  -- somebody asked for it whatever edges need
    decided_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
