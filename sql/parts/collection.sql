--
-- Tombstones and versions that nobody needs any more
--

-- What must not be decided without the tombstones it may meet
CREATE FUNCTION repl_ml.holds_late_changes() RETURNS boolean
    LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
    AS $$
    BEGIN
        RETURN EXISTS (SELECT FROM repl_ml.parked_change p WHERE p.action NOT IN ('evicted', 'kept')) OR EXISTS (SELECT FROM repl_ml.eviction)
           OR EXISTS (SELECT FROM repl_ml.table_sync y JOIN repl_ml.member m USING (node_id) JOIN repl_ml.local_node l ON l.node_id <> y.node_id
                       WHERE y.state = 'pending' AND m.state <> 'dropped');
    END
    $$;
COMMENT ON FUNCTION repl_ml.holds_late_changes() IS 'whether something old is parked here, evicted and not announced, or still to be copied: then nobody may remove tombstones';

-- The rows of repl_ml.eviction become tombstones, which travel
CREATE FUNCTION repl_ml.announce_evictions() RETURNS void
    LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp
    AS $$
    WITH evicted AS (DELETE FROM repl_ml.eviction RETURNING *)
    INSERT INTO repl_ml.tombstone (schema_name, table_name, key, key_columns, key_hash, deleted_at, eviction, __repl_clock)
    SELECT e.schema_name, e.table_name, e.key, e.key_columns, e.key_hash, pg_catalog.now(), e.eviction, e.__repl_clock FROM evicted e
    $$;
COMMENT ON FUNCTION repl_ml.announce_evictions() IS 'tells the group which versions lost a unique key here';

-- The clock of an eviction is that of the version that went, and may be old. The winner's writer may have known that
-- version overwritten, before it wrote: so it is kept until everything written up to then, by whomever, is here. All of a
-- key or nothing. The floor is in the stream before whatever is written without these tombstones. Stored versions that
-- one of them knows are stale, and would come back where they are copied to without it.
-- However many there are: where statistics are of an emptier table, nested loops would read all for each.
CREATE FUNCTION repl_ml.collect_tombstones(stable text) RETURNS void
    LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp SET enable_nestloop = off
    AS $$
    WITH kept AS MATERIALIZED (SELECT t.schema_name, t.table_name, t.key_hash FROM repl_ml.tombstone t
                   WHERE t.eviction IS NOT NULL AND repl_ml.max_counter((t.eviction->>'winner_clock')::repl_ml.vclock) >=
                         (SELECT min(coalesce(repl_ml.counter(stable::repl_ml.vclock, m.node_id), 0)) FROM repl_ml.member m WHERE m.state <> 'dropped')),
    gone AS (DELETE FROM repl_ml.tombstone t WHERE t.__repl_clock OPERATOR(repl_ml.<@) stable::repl_ml.vclock
                AND NOT EXISTS (SELECT FROM kept k WHERE (k.schema_name, k.table_name, k.key_hash) = (t.schema_name, t.table_name, t.key_hash))
             RETURNING t.schema_name, t.table_name, t.key_hash, t.__repl_clock),
    stale AS (DELETE FROM repl_ml.concurrent_version v USING gone g
               WHERE (v.schema_name, v.table_name, v.key_hash) = (g.schema_name, g.table_name, g.key_hash)
                 AND v.__repl_clock OPERATOR(repl_ml.<@) g.__repl_clock)
    INSERT INTO repl_ml.collection AS c (node_id, floor)
    SELECT l.node_id, stable::repl_ml.vclock FROM repl_ml.local_node l WHERE EXISTS (SELECT FROM gone)
    ON CONFLICT (node_id) DO UPDATE SET floor = repl_ml.merge(c.floor, excluded.floor)
    $$;
COMMENT ON FUNCTION repl_ml.collect_tombstones(text) IS 'removes tombstones that can no longer decide anything, and tells the group up to where; stable is a clock';

-- All of a key or nothing, and only when every rule that may be in force for them is known and no eviction is kept
CREATE FUNCTION repl_ml.collect_versions(stable text) RETURNS void
    LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp
    AS $$
    WITH k AS (SELECT v.schema_name, v.table_name, v.key_hash FROM repl_ml.concurrent_version v
                GROUP BY 1, 2, 3
               HAVING pg_catalog.bool_and(v.__repl_clock OPERATOR(repl_ml.<@) stable::repl_ml.vclock)
                  AND pg_catalog.max(repl_ml.max_counter(v.__repl_clock)) <
                      (SELECT pg_catalog.min(coalesce(repl_ml.counter(stable::repl_ml.vclock, m.node_id), 0)) FROM repl_ml.member m WHERE m.state <> 'dropped')
                  AND NOT EXISTS (SELECT FROM repl_ml.tombstone t WHERE (t.schema_name, t.table_name, t.key_hash) = (v.schema_name, v.table_name, v.key_hash)
                                     AND t.eviction IS NOT NULL))
    DELETE FROM repl_ml.concurrent_version v USING k
     WHERE (v.schema_name, v.table_name, v.key_hash) = (k.schema_name, k.table_name, k.key_hash)
    $$;
COMMENT ON FUNCTION repl_ml.collect_versions(text) IS 'removes concurrent versions of rows that every later write will know; stable is a clock';

-- Whoever has a row with a clock within this and does not find it here had it before it was deleted: this node had all
-- writes up to there, and has removed tombstones. Of a dropped node it had those before its last heartbeat.
CREATE FUNCTION repl_ml.removed_up_to() RETURNS repl_ml.vclock
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
    AS $$
    SELECT coalesce(repl_ml.merge_agg(pg_catalog.format('{%s:%s}', f.node_id, f.known)::repl_ml.vclock), '{}')
      FROM (SELECT m.node_id, CASE WHEN m.state = 'dropped' THEN least(repl_ml.counter(c.floor, m.node_id), h.safe_counter) ELSE repl_ml.counter(c.floor, m.node_id) END AS known
              FROM (SELECT repl_ml.merge_agg(floor) AS floor FROM repl_ml.collection) c CROSS JOIN repl_ml.member m LEFT JOIN repl_ml.heartbeat h ON h.node_id = m.node_id) f
     WHERE f.known > 0
    $$;
COMMENT ON FUNCTION repl_ml.removed_up_to() IS 'the clock up to which this node has had all versions of rows, and may have removed tombstones: what it does not have of them was deleted';

-- What every member has applied of every node; dropped nodes send nothing more
-- Its plan is kept, as it is asked for again and again
CREATE FUNCTION repl_ml.stable_vector() RETURNS repl_ml.vclock
    LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
    AS $$
    BEGIN
        RETURN coalesce((SELECT repl_ml.merge_agg(pg_catalog.format('{%s:%s}', s.node_id, s.least)::repl_ml.vclock)
                           FROM (SELECT w.node_id,
                                        CASE WHEN w.state = 'dropped' THEN 36028797018963967
                                             ELSE min(coalesce(repl_ml.counter(h.applied, w.node_id), 0)) END AS least
                                   FROM repl_ml.member w CROSS JOIN repl_ml.member m LEFT JOIN repl_ml.heartbeat h ON h.node_id = m.node_id
                                  WHERE m.state <> 'dropped' GROUP BY w.node_id, w.state) s
                          WHERE s.least > 0), '{}');
    END $$;
COMMENT ON FUNCTION repl_ml.stable_vector() IS 'for each node the counter below which all members have all its writes, as the heartbeats tell';

-- For the supervisor, who alone writes these counts
CREATE FUNCTION repl_ml.count_conflicts() RETURNS void
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
    AS $$
    BEGIN
        WITH news AS (DELETE FROM repl_ml.conflict_news RETURNING *)
        INSERT INTO repl_ml.conflict_count AS c
        SELECT s.span, CASE s.span WHEN 'all' THEN b.since ELSE pg_catalog.date_trunc(s.span, n.detected_at, 'UTC') END, n.schema_name, n.table_name, n.conflict_type, n.resolution,
               pg_catalog.sum(n.conflicts), coalesce(pg_catalog.sum(n.conflicts) FILTER (WHERE n.equal), 0), pg_catalog.min(n.detected_at), pg_catalog.max(n.detected_at)
          FROM news n CROSS JOIN pg_catalog.unnest('{all,hour,minute}'::text[]) s (span)
         CROSS JOIN (SELECT pg_catalog.min(o.since) AS since FROM repl_ml.conflict_count o WHERE o.span = 'all') b
         GROUP BY 1, 2, 3, 4, 5, 6 HAVING pg_catalog.sum(n.conflicts) <> 0
        ON CONFLICT ON CONSTRAINT conflict_count_pkey DO UPDATE
           SET conflicts = c.conflicts + excluded.conflicts, equal = c.equal + excluded.equal, first_detected_at = least(c.first_detected_at, excluded.first_detected_at),
               last_detected_at = greatest(c.last_detected_at, excluded.last_detected_at);
    END
    $$;
COMMENT ON FUNCTION repl_ml.count_conflicts() IS 'adds what repl_ml.conflict_news has to repl_ml.conflict_count';

-- Reached by stable_vector when all have read a newer heartbeat of each member than the present one
CREATE FUNCTION repl_ml.next_heartbeats() RETURNS repl_ml.vclock
    LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
    AS $$
    SELECT repl_ml.merge_agg(pg_catalog.format('{%s:%s}', m.node_id, coalesce(h.safe_counter, 0) + 1)::repl_ml.vclock)
      FROM repl_ml.member m LEFT JOIN repl_ml.heartbeat h USING (node_id) WHERE m.state <> 'dropped'
    $$;
COMMENT ON FUNCTION repl_ml.next_heartbeats() IS 'a vector that stable_vector covers only after another heartbeat of each member has been applied by all';

-- A table that was never analyzed passes for one of ten pages, and a join of four of them for millions of rows
CREATE FUNCTION repl_ml.analyze_catalogs() RETURNS void
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
    AS $$
    DECLARE
        t regclass;
    BEGIN
        FOR t IN SELECT c.oid FROM pg_catalog.pg_class c
                  WHERE c.relnamespace = 'repl_ml'::pg_catalog.regnamespace AND c.relkind = 'r'
                    AND (c.reltuples < 0 OR (c.relpages = 0 AND pg_catalog.pg_relation_size(c.oid) > 0))
        LOOP
            EXECUTE pg_catalog.format('ANALYZE (SKIP_LOCKED) %s', t);
        END LOOP;
    END
    $$;
COMMENT ON FUNCTION repl_ml.analyze_catalogs() IS 'analyzes the tables of this extension that never were, or were empty then';
