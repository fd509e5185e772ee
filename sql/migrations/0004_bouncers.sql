-- At the target: PgBouncers are held, or were when a process ended that was going over.
-- Whoever comes next lets them go on to the side that takes writes.
ALTER TABLE millrace.migration ADD COLUMN bouncers boolean NOT NULL DEFAULT false;
