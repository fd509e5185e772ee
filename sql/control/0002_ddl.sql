-- What the event triggers and the comparison of partitions go by.

-- The partitions that hold rows of each captured partitioned table, as the event
-- triggers last saw them.
CREATE TABLE millrace.leaf (
    root oid NOT NULL,
    leaf oid NOT NULL,
    file oid NOT NULL, -- its relfilenode then: TRUNCATE replaces it
    PRIMARY KEY (root, leaf)
);

-- How a captured table looked when its newest load began: what is compared to
-- notice rows that came or went without being sent.
CREATE TABLE millrace.followed (
    stream   text  NOT NULL REFERENCES millrace.stream (name) ON DELETE CASCADE,
    table_id oid   NOT NULL,
    mark     jsonb NOT NULL,
    PRIMARY KEY (stream, table_id)
);
