--
-- Read consistency
--

CREATE FUNCTION repl_ml.current_vector() RETURNS repl_ml.vclock
    AS 'MODULE_PATHNAME', 'repl_ml_current_vector' LANGUAGE C VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp;
COMMENT ON FUNCTION repl_ml.current_vector() IS
    'a token for everything this session can have written or seen here so far, as {node:WAL position,...}; repl_ml.wait_for_vector waits for it on any node. Errors: 55000 not a member, 0A000 on a standby';
CREATE FUNCTION repl_ml.wait_for_vector(vector repl_ml.vclock, timeout interval) RETURNS void
    AS 'MODULE_PATHNAME', 'repl_ml_wait_for_vector' LANGUAGE C VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp;
COMMENT ON FUNCTION repl_ml.wait_for_vector(repl_ml.vclock, interval) IS
    'waits until what a token of repl_ml.current_vector() stands for is visible on this node. Errors: 57014 timeout, with what is missing, 25001 in a transaction whose snapshot would not show it, 0A000 on a standby';
CREATE FUNCTION repl_ml.barrier(timeout interval) RETURNS void
    AS 'MODULE_PATHNAME', 'repl_ml_barrier' LANGUAGE C VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp;
COMMENT ON FUNCTION repl_ml.barrier(interval) IS
    'waits until everything that was acknowledged by write consistency quorum or all, on whatever node, before the call is visible on this node; needs more than half of the members. Errors: 57014 timeout, with who has not answered or what is missing, 25001 in a transaction whose snapshot would not show it, 55000 joining or not a member, 0A000 on a standby';

