-- What the roles may do in schema millrace; its owner runs it, and can run it again.
-- Locks: none that anybody else waits for.
GRANT USAGE, CREATE ON SCHEMA millrace TO {{.Owner}};
GRANT EXECUTE ON FUNCTION millrace.segment(bigint) TO {{.Owner}};
GRANT SELECT ON millrace.key_log TO {{.Owner}};
GRANT INSERT ON millrace.ddl_event TO {{.Owner}};

GRANT USAGE ON SCHEMA millrace TO {{.Capture}};
GRANT SELECT ON ALL TABLES IN SCHEMA millrace TO {{.Capture}};
GRANT EXECUTE ON FUNCTION millrace.segment(bigint) TO {{.Capture}};
GRANT INSERT, UPDATE, DELETE ON millrace.hold, millrace.ledger, millrace.followed, millrace.mark, millrace.trim TO {{.Capture}};
GRANT UPDATE ON millrace.stream TO {{.Capture}};
GRANT INSERT, DELETE ON millrace.tick TO {{.Capture}};
GRANT INSERT, UPDATE ON millrace.wanted_load TO {{.Capture}};
GRANT DELETE ON millrace.ddl_event TO {{.Capture}};
GRANT UPDATE (mark) ON millrace.key_log TO {{.Capture}};

GRANT USAGE ON SCHEMA millrace TO {{.Verifier}};
GRANT SELECT ON millrace.stream, millrace.ledger, millrace.key_log, millrace.tick, millrace.ddl_event, millrace.mark, millrace.trim TO {{.Verifier}};
