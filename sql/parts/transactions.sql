--
-- What became of a transaction
--

CREATE FUNCTION repl_ml.transaction_token() RETURNS text
    AS 'MODULE_PATHNAME', 'repl_ml_transaction_token' LANGUAGE C VOLATILE STRICT;
COMMENT ON FUNCTION repl_ml.transaction_token() IS
    'the name of the transaction it is called in, for repl_ml.transaction_status() after a lost connection. Everybody may call it; the first call in a transaction waits for the disk. Errors: 25000 in a read-only transaction, 55000 not a member';

CREATE FUNCTION repl_ml.token_parts(token text, OUT node_id integer, OUT xid xid8, OUT issued_at timestamptz)
    AS 'MODULE_PATHNAME', 'repl_ml_token_parts' LANGUAGE C VOLATILE STRICT;
COMMENT ON FUNCTION repl_ml.token_parts(text) IS 'what a token says, or an error if it is none of this group';

CREATE FUNCTION repl_ml.ask_members(dsns text[], question text) RETURNS text[]
    AS 'MODULE_PATHNAME', 'repl_ml_ask_members' LANGUAGE C VOLATILE STRICT;
COMMENT ON FUNCTION repl_ml.ask_members(text[], text) IS 'the answers of members to a query of one row and column, null where there is none within seconds';

CREATE FUNCTION repl_ml.require_fresh_view() RETURNS void
    AS 'MODULE_PATHNAME', 'repl_ml_require_fresh_view' LANGUAGE C VOLATILE STRICT;
COMMENT ON FUNCTION repl_ml.require_fresh_view() IS 'an error in a transaction that sees only what was there when it began';

-- Committed is what somebody has; aborted is what nobody can get any more
CREATE FUNCTION repl_ml.judge_transaction(facts jsonb[], origin integer, issued_at timestamptz) RETURNS text
    LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
    AS $$
    WITH f AS (SELECT DISTINCT ON (x.node) x.* FROM pg_catalog.unnest(facts) j,
                      pg_catalog.jsonb_to_record(j) x (node integer, state text, level text, commit_lsn pg_lsn, applied_lsn pg_lsn, has boolean, has_not boolean, lacks boolean)),
         e AS (SELECT max(f.commit_lsn) AS lsn, bool_or(f.state = 'committed') AS committed,
                      -- its node knows the level of those that it knows not to be acknowledged
                      bool_or(f.node = origin AND f.state = 'committed' AND f.level IS NOT NULL) AS is_sure,
                      -- where nobody knows the level, all have to have it
                      CASE WHEN bool_or(f.level = 'all') THEN 'all' WHEN bool_or(f.level = 'quorum') THEN 'quorum'
                           WHEN bool_or(f.level = 'one') THEN 'one' ELSE 'all' END AS level FROM f),
         m AS (SELECT m.node_id, m.state, f.applied_lsn, f.has, f.has_not, coalesce(f.lacks, false) AS lacks FROM repl_ml.member m LEFT JOIN f ON f.node = m.node_id WHERE m.state <> 'dropped'),
         c AS (SELECT count(*) FILTER (WHERE m.state = 'ready') AS ready,
                      count(*) FILTER (WHERE m.state = 'ready' AND NOT m.lacks AND (m.node_id = origin OR m.applied_lsn > e.lsn OR m.has)) AS have,
                      -- who has not answered, or cannot be compared with, may have acknowledged it
                      count(*) FILTER (WHERE m.state = 'ready' AND m.node_id <> origin AND NOT m.lacks AND NOT coalesce(m.has, false)
                                             AND (m.applied_lsn IS NULL OR e.lsn IS NULL)) AS may_have,
                      bool_and(m.node_id <> origin AND coalesce(m.has_not, false)) AS nobody FROM m, e),
         -- who has left the group since then may have had it, and its node had; what all have acknowledged they still have
         g AS (SELECT count(*) AS gone, count(*) FILTER (WHERE m.node_id = origin) AS its_node FROM repl_ml.member m, e
                WHERE e.level = 'quorum' AND m.state = 'dropped'
                  AND repl_ml.max_counter(m.__repl_clock) >= EXTRACT(epoch FROM issued_at - '2000-01-01 00:00:00+00') * 1000000)
    SELECT CASE WHEN e.lsn IS NOT NULL OR e.committed THEN
                -- before its node says so, the next one to be asked may say otherwise
                CASE WHEN e.is_sure THEN 'committed'
                     WHEN c.have >= n.needed OR (g.gone > 0 AND c.have + g.its_node > (c.ready + g.gone) / 2) THEN 'acknowledged'
                     WHEN c.have + c.may_have + g.gone < n.needed THEN 'committed'
                     ELSE 'unknown' END
                -- records are kept for longer than that
                WHEN c.nobody AND issued_at > pg_catalog.clock_timestamp() - '1 day'::interval THEN 'aborted'
                ELSE 'unknown' END
      FROM e, c, g, LATERAL (SELECT CASE e.level WHEN 'one' THEN 0 WHEN 'quorum' THEN c.ready / 2 + 1 ELSE c.ready END AS needed) n
    $$;
COMMENT ON FUNCTION repl_ml.judge_transaction(jsonb[], integer, timestamptz) IS 'what became of a transaction, from what the members know of it (repl_ml.transaction_facts)';

CREATE FUNCTION repl_ml.transaction_status(token text) RETURNS text
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
    AS $$
    DECLARE
        self record;
        t record;
        question text;
        facts jsonb[];
        origin_state text;
        past boolean;
    BEGIN
        PERFORM repl_ml.refuse_nulls('token', pg_catalog.num_nulls(token));
        PERFORM repl_ml.require_fresh_view();
        SELECT m.node_id, l.group_id INTO self FROM repl_ml.require_member() m, repl_ml.local_node l;
        SELECT * INTO t FROM repl_ml.token_parts(token);
        question := pg_catalog.format('SET statement_timeout = ''2s''; SELECT repl_ml.transaction_facts(%L, %s, %L)', self.group_id, t.node_id, t.xid);

        -- the node of the transaction knows best
        facts := ARRAY[repl_ml.transaction_facts(self.group_id, t.node_id, t.xid)::jsonb];
        IF t.node_id <> self.node_id THEN
            facts := facts || ARRAY(SELECT a::jsonb FROM pg_catalog.unnest(repl_ml.ask_members(ARRAY(
                SELECT m.dsn FROM repl_ml.member m WHERE m.state <> 'dropped' AND m.node_id = t.node_id), question)) a WHERE a IS NOT NULL);
        END IF;
        -- before a standby became the node another server gave out these ids: here the number is another transaction's
        facts := ARRAY(SELECT f FROM pg_catalog.unnest(facts) f WHERE (f ->> 'node' = t.node_id::text AND t.issued_at < (f ->> 'reissued_until')::timestamptz) IS NOT TRUE);
        SELECT f ->> 'state' INTO origin_state FROM pg_catalog.unnest(facts) f WHERE f ->> 'node' = t.node_id::text;
        SELECT (f ->> 'past')::boolean INTO past FROM pg_catalog.unnest(facts) f WHERE f ->> 'node' = t.node_id::text;
        IF origin_state = 'aborted' OR (origin_state = 'acknowledged' AND NOT past) THEN
            RETURN origin_state;
        ELSIF origin_state = 'in progress' THEN
            RETURN 'unknown';
        END IF;

        facts := facts || ARRAY(SELECT a::jsonb FROM pg_catalog.unnest(repl_ml.ask_members(ARRAY(
            SELECT m.dsn FROM repl_ml.member m WHERE m.state <> 'dropped' AND m.node_id NOT IN (t.node_id, self.node_id)), question)) a WHERE a IS NOT NULL);
        IF origin_state = 'acknowledged' AND NOT EXISTS (SELECT FROM pg_catalog.unnest(facts) f WHERE (f ->> 'lacks')::boolean) THEN
            RETURN origin_state;
        END IF;
        RETURN repl_ml.judge_transaction(facts, t.node_id, t.issued_at);
    END
    $$;
COMMENT ON FUNCTION repl_ml.transaction_status(text) IS
    'what became of the transaction of a token, on any node, for everybody: acknowledged (durable and applied on as many members as its level asks for), committed (at its node, and not acknowledged so far), aborted, or unknown (still in progress, or the members that can be asked do not know). Takes at most some seconds. Errors: 22023 not a token of this group, 55000 not a member, 25001 in a transaction that does not see what is new';

CREATE FUNCTION repl_ml.unacknowledged(OUT level text, OUT transactions bigint) RETURNS SETOF record
    AS 'MODULE_PATHNAME', 'repl_ml_unacknowledged' LANGUAGE C VOLATILE STRICT;
COMMENT ON FUNCTION repl_ml.unacknowledged() IS 'for each level above one, how many transactions are visible on this node though the level has not acknowledged them, but may do so, since their wait was given up or the server ended during it; null for a while after a server start, if that is not known';

