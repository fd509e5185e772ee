-- A range that was equal counts until a change goes into it, so that verification goes on
-- where it was cut off, and reads again only what has changed. What was compared before
-- does not say so much.
DELETE FROM millrace.migration_range;
ALTER TABLE millrace.migration_range
    DROP CONSTRAINT migration_range_pkey,
    DROP COLUMN pass,
    ADD COLUMN since   timestamptz NOT NULL,   -- migration_place.converged_at: it counts while the changes go on from there
    ADD COLUMN shape   text        NOT NULL,   -- of the target's table, when it was compared
    ADD COLUMN counted timestamptz NOT NULL,   -- migration_wanted.wanted_at of the newest pass that it counts for
    ADD COLUMN touched numeric(20),            -- the index at which a change first went into it since
    ADD PRIMARY KEY (name, table_name, low);

ALTER TABLE millrace.migration_wanted
    ADD COLUMN whole    boolean NOT NULL DEFAULT false,  -- read every range, whatever was compared before
    ADD COLUMN index    numeric(20),                     -- where the changes stood when it was done,
    ADD COLUMN chain    bytea,                           -- and their chain there
    ADD COLUMN position text;
