-- What a service asks for after its commit, to read its own write at any edge: a name of
-- this moment. A position of a stream covers it when everything that was committed before
-- is in the stream.

-- The end of the WAL is behind the record of each commit that was acknowledged, and the
-- snapshot sees each of them. Neither is asked for within the transaction that has written,
-- because that is not committed yet. Under another isolation level than READ COMMITTED the
-- snapshot may be of an earlier moment, and is left out: the token then serves for streams
-- that go by the WAL alone.
-- Roles that are to call it need USAGE on schema millrace, and EXECUTE on it.
CREATE FUNCTION millrace.token() RETURNS text
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog
AS $$
BEGIN
    IF pg_current_xact_id_if_assigned() IS NOT NULL THEN
        RAISE EXCEPTION 'millrace.token() is called after the commit, and this transaction has written'
            USING ERRCODE = 'invalid_transaction_state', HINT = 'commit, and call it then';
    END IF;
    RETURN format('1-%s-%s-%s', (SELECT system_identifier FROM pg_control_system()), pg_current_wal_insert_lsn(),
        CASE WHEN current_setting('transaction_isolation') IN ('read committed', 'read uncommitted') THEN pg_current_snapshot()::text END);
END
$$;
REVOKE ALL ON FUNCTION millrace.token() FROM PUBLIC;
