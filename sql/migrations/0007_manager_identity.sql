-- Clients that live longer than a migration tell another one of its name, whose terms
-- begin anew and whose sides may be exchanged, by its ID and by which side they ask.
ALTER TABLE millrace.migration_manager
    ADD COLUMN id   uuid,
    ADD COLUMN side text CHECK (side IN ('source', 'target'));  -- that this row is at
UPDATE millrace.migration_manager g SET id = m.id, side = m.side FROM millrace.migration m WHERE m.name = g.name;
