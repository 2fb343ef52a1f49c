--
-- Strong tables: the lease
--

-- What members ask each other
CREATE FUNCTION repl_ml.lease_state() RETURNS text
    LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
    AS $$
    SELECT pg_catalog.format('%s %s %s %s', s.promised, s.round, s.turn, s.holder) FROM repl_ml.require_member() m, repl_ml.lease_state s
    $$;
COMMENT ON FUNCTION repl_ml.lease_state() IS 'called by a member that does not know who has the lease of strong tables: the last round this one has voted for, and the last tenure it knows of';

CREATE FUNCTION repl_ml.dropped_are_settled() RETURNS boolean
    AS 'MODULE_PATHNAME', 'repl_ml_dropped_are_settled' LANGUAGE C VOLATILE STRICT;
COMMENT ON FUNCTION repl_ml.dropped_are_settled() IS 'whether this node has let go of each dropped node, and has what every other member had of it';

CREATE FUNCTION repl_ml.lease_vote(round bigint, candidate integer, voters integer[], gone integer) RETURNS text
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET synchronous_commit = local
    AS $$
    DECLARE
        self record;
        s repl_ml.lease_state;
        other name;
    BEGIN
        PERFORM repl_ml.refuse_nulls('round, candidate, voters, gone', pg_catalog.num_nulls(round, candidate, voters, gone));
        SELECT * INTO self FROM repl_ml.require_member();
        SELECT * INTO s FROM repl_ml.lease_state FOR UPDATE;
        IF s.promised >= lease_vote.round OR s.holder = self.node_id AND candidate <> self.node_id THEN
            RETURN 'later';
        END IF;
        -- whoever has it, or was given it and does not know yet, would write beside the candidate
        SELECT m.node_name INTO other FROM repl_ml.member m WHERE m.node_id IN (s.holder, gone) AND m.node_id <> candidate AND m.state <> 'dropped';
        IF FOUND THEN
            RETURN pg_catalog.format('no: for it, node "%s" is a member, and may have it', other);
        END IF;
        IF NOT EXISTS (SELECT FROM repl_ml.member m WHERE m.node_id = candidate AND m.state = 'ready') THEN
            RETURN 'no: for it, this node is no ready member';
        END IF;
        SELECT m.node_name INTO other FROM repl_ml.member m WHERE m.state = 'ready' AND m.node_id <> ALL (voters);
        IF FOUND THEN
            RETURN pg_catalog.format('no: for it, node "%s" is a member, too', other);
        END IF;
        IF NOT repl_ml.dropped_are_settled() THEN
            RETURN 'no: it has not compared yet what is left of a dropped node with all members';
        END IF;
        UPDATE repl_ml.lease_state SET promised = lease_vote.round;
        PERFORM pg_catalog.set_config('synchronous_commit', 'local', true);
        -- also what it has written in a tenure that it may have forgotten
        RETURN pg_catalog.format('yes %s', repl_ml.merge(s.base, repl_ml.current_vector()));
    END
    $$;
COMMENT ON FUNCTION repl_ml.lease_vote(bigint, integer, integer[], integer) IS
    'called by a member that stands for the lease of strong tables, with all members it knows of and the last holder anybody knew of: yes, with the positions this one knows the next holder to need; later, where it has voted in a later round or has the lease itself; or no, and why';

CREATE FUNCTION repl_ml.lease_ask(asker integer) RETURNS text
    AS 'MODULE_PATHNAME', 'repl_ml_lease_ask' LANGUAGE C VOLATILE STRICT SECURITY DEFINER SET search_path = pg_catalog, pg_temp;
COMMENT ON FUNCTION repl_ml.lease_ask(integer) IS 'called by a member that wants the lease of strong tables, on the one that has it: given, with what goes with it; elsewhere, and where; or wait';

CREATE FUNCTION repl_ml.lease_stats(OUT writable boolean, OUT pid integer, OUT refusal text, OUT nodes_waiting integer, OUT elected bigint, OUT taken bigint, OUT given bigint,
    OUT waits bigint, OUT waits_refused bigint, OUT total_wait_time double precision, OUT max_wait_time double precision)
    AS 'MODULE_PATHNAME', 'repl_ml_lease_stats' LANGUAGE C VOLATILE STRICT PARALLEL RESTRICTED;
COMMENT ON FUNCTION repl_ml.lease_stats() IS 'what this server knows of the lease of strong tables: whether clients here may write them now, why the lease did not come when it was last wanted, and counters since the server''s start (times in milliseconds)';

-- What keeps this node from having all rows of strong tables, whatever positions say
-- In PL/pgSQL, whose plans stay: it is called at each coming of the lease
CREATE FUNCTION repl_ml.strong_obstacle() RETURNS text
    LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp SET jit = off
    AS $$
    BEGIN
    RETURN (SELECT o.obstacle FROM (
        SELECT 1, pg_catalog.format('table %I.%I is not replicated here yet%s', t.schema_name, t.table_name,
                   (SELECT ': ' || f.message FROM repl_ml.table_failure f WHERE f.schema_name = t.schema_name AND f.table_name = t.table_name LIMIT 1))
          FROM repl_ml.replicated_table t
         WHERE t.class = 'strong' AND t.state = 'enrolled'
           AND NOT EXISTS (SELECT FROM pg_catalog.pg_publication p JOIN pg_catalog.pg_publication_rel r ON r.prpubid = p.oid
                             JOIN pg_catalog.pg_class c ON c.oid = r.prrelid JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
                            WHERE p.pubname = 'repl_ml' AND n.nspname = t.schema_name AND c.relname = t.table_name)
        UNION ALL
        SELECT 2, pg_catalog.format('table %I.%I is still to be copied', y.schema_name, y.table_name)
          FROM repl_ml.table_sync y JOIN repl_ml.replicated_table t USING (schema_name, table_name)
         WHERE y.state = 'pending' AND t.class = 'strong' AND t.state = 'enrolled'
        UNION ALL
        SELECT 3, pg_catalog.format('a change of table %I.%I could not be applied: %s', p.schema_name, p.table_name, p.message)
          FROM repl_ml.parked_change p LEFT JOIN repl_ml.replicated_table t USING (schema_name, table_name)
         WHERE p.action NOT IN ('evicted', 'kept') AND (t.class IS NULL OR t.class = 'strong')
        UNION ALL
        SELECT 4, pg_catalog.format('a row of table %I.%I could not be sent', u.schema_name, u.table_name)
          FROM repl_ml.unsent u JOIN repl_ml.replicated_table t USING (schema_name, table_name) WHERE t.class = 'strong'
        ) o (place, obstacle)
     ORDER BY o.place, o.obstacle LIMIT 1);
    END
    $$;
COMMENT ON FUNCTION repl_ml.strong_obstacle() IS 'why this node lacks rows of strong tables though it has applied what it has received; null if it lacks none';

CREATE VIEW repl_ml.strong_lease AS
    SELECT m.node_name AS holder, s.writable, CASE WHEN l.round > 0 THEN pg_catalog.format('%s.%s', l.round, l.turn) END AS tenure, CASE WHEN l.round > 0 THEN l.since END AS since,
           s.nodes_waiting, s.refusal, s.pid
      FROM repl_ml.local_node n CROSS JOIN repl_ml.lease_state l CROSS JOIN repl_ml.lease_stats() s LEFT JOIN repl_ml.member m ON m.node_id = l.holder;
COMMENT ON VIEW repl_ml.strong_lease IS
    'the lease of strong tables as this node knows it: who has it, or whom this node gave it to (null: it knows of nobody), whether clients of this node may write strong tables at once, the last tenure this node had to do with and since when, how many nodes have asked this one for it, and why it did not come when it was last wanted';

CREATE VIEW repl_ml.stat_strong AS
    SELECT s.taken, s.given, s.elected, s.waits, s.waits_refused, s.total_wait_time, s.max_wait_time FROM repl_ml.local_node n CROSS JOIN repl_ml.lease_stats() s;
COMMENT ON VIEW repl_ml.stat_strong IS
    'what this node has had to do with the lease of strong tables since its server started: how often clients here could write from then on (taken), it was given to another node (given), all members voted for this one (elected); how often clients waited for it, in vain (waits_refused), and how long those that had it waited, all together and at most, in milliseconds';

