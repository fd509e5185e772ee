-- Takes back 0005.
DROP FUNCTION millrace.token();
