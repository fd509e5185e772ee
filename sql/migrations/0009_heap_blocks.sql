-- How long a heap was when its chunks were cut, in blocks: its last chunk has no end.
ALTER TABLE millrace.migration_heap ADD COLUMN blocks bigint;
