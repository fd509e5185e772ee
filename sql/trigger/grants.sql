-- What the roles may do in schema millrace; its owner runs it, and can run it again.
-- Locks: none that anybody else waits for.
GRANT USAGE, CREATE ON SCHEMA millrace TO millrace_owner;
GRANT EXECUTE ON FUNCTION millrace.segment(bigint) TO millrace_owner;
GRANT SELECT ON millrace.key_log TO millrace_owner;
GRANT INSERT ON millrace.ddl_event TO millrace_owner;

GRANT USAGE ON SCHEMA millrace TO millrace_capture;
GRANT SELECT ON ALL TABLES IN SCHEMA millrace TO millrace_capture;
GRANT EXECUTE ON FUNCTION millrace.segment(bigint) TO millrace_capture;
GRANT INSERT, UPDATE, DELETE ON millrace.hold, millrace.ledger, millrace.followed TO millrace_capture;
GRANT UPDATE ON millrace.stream TO millrace_capture;
GRANT INSERT, DELETE ON millrace.tick TO millrace_capture;
GRANT DELETE ON millrace.ddl_event TO millrace_capture;
GRANT UPDATE (mark) ON millrace.key_log TO millrace_capture;

GRANT USAGE ON SCHEMA millrace TO millrace_verifier;
GRANT SELECT ON millrace.stream, millrace.ledger, millrace.key_log, millrace.tick, millrace.ddl_event TO millrace_verifier;
