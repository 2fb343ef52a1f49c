--
-- Views
--

CREATE VIEW repl_ml.nodes AS
    SELECT m.node_id, m.node_name, m.state, m.node_id = l.node_id AS is_local, m.host, m.port, m.dbname, m.system_identifier, m.joined_at,
           h.sent_at AS last_heartbeat, w.reachable, w.silent_for
      FROM repl_ml.member m LEFT JOIN repl_ml.local_node l ON true LEFT JOIN repl_ml.heartbeat h ON h.node_id = m.node_id
      LEFT JOIN repl_ml.write_members() w ON w.node_id = m.node_id;
COMMENT ON VIEW repl_ml.nodes IS
    'members of the group, also dropped ones; connection strings are not shown. reachable: it counts for commits with write consistency quorum and all now, because it is connected and has spoken, silent_for ago, within two heartbeats; null where that is not known, and for nodes that are not ready';

-- Priorities are kept as node ids, which nobody else gets, and shown as names
CREATE VIEW repl_ml.conflict_policies AS
    SELECT p.schema_name, p.table_name, p.column_name, p.resolver, p.merge, p.set_at, p.set_by
      FROM (SELECT DISTINCT ON (p.schema_name, p.table_name, p.column_name)
                   p.schema_name, p.table_name, nullif(p.column_name, '') AS column_name,
                   CASE WHEN p.column_name = '' THEN
                        p.rule || CASE WHEN p.arguments = '{}' THEN '' ELSE '(' ||
                            (SELECT pg_catalog.string_agg(CASE p.rule WHEN 'node_priority' THEN coalesce(n.node_name::text, a.argument) ELSE a.argument END, ', ' ORDER BY a.place)
                               FROM pg_catalog.unnest(p.arguments) WITH ORDINALITY a (argument, place)
                               LEFT JOIN repl_ml.member n ON p.rule = 'node_priority' AND n.node_id::text = a.argument) || ')' END END AS resolver,
                   CASE WHEN p.column_name <> '' THEN p.rule END AS merge,
                   p.set_at, m.node_name AS set_by
              FROM repl_ml.conflict_policy p LEFT JOIN repl_ml.member m ON m.node_id = repl_ml.last_writer(p.__repl_clock)
             ORDER BY p.schema_name, p.table_name, p.column_name, repl_ml.max_counter(p.__repl_clock) DESC, repl_ml.last_writer(p.__repl_clock) DESC) p
     WHERE p.merge IS DISTINCT FROM 'none';
COMMENT ON VIEW repl_ml.conflict_policies IS
    'how conflicts of replicated tables are resolved now, as far as this node knows: one row for a table''s resolver (column_name null), one for each column with a merge rule; tables without a row use last_write';

-- With many tables a join of what all members have told costs too much for a view that is looked at all the time
CREATE FUNCTION repl_ml.compared_tables(local integer, members integer[], only_different boolean, OUT schema_name name, OUT table_name name, OUT known bigint, OUT seen text, OUT differs_on integer[])
    RETURNS SETOF record
    AS 'MODULE_PATHNAME', 'repl_ml_compared_tables' LANGUAGE C STABLE STRICT ROWS 1000;
COMMENT ON FUNCTION repl_ml.compared_tables(integer, integer[], boolean) IS
    'for each table that this node has told the group of how many of the members have told what it is there, which columns it has had here, and on which of them it is another table (null: none); the row without names, if there is one, is about the database and its server';

-- What is known of the group's tables here. Joins go by hashes, whatever the planner takes the catalogs' sizes for: many tables may have
-- come since they were analyzed
CREATE FUNCTION repl_ml.table_states(only_unready boolean, OUT schema_name name, OUT table_name name, OUT relid oid, OUT enrolled_by integer, OUT state text, OUT pending_copies bigint, OUT write_consistency text, OUT class text, OUT pending_class text)
    RETURNS SETOF record
    LANGUAGE plpgsql STABLE STRICT ROWS 1000 SET search_path = pg_catalog, pg_temp SET jit = off SET enable_nestloop = off SET enable_mergejoin = off
    AS $$
    #variable_conflict use_column
    BEGIN
        RETURN QUERY
        SELECT t.schema_name, t.table_name, t.oid, t.enrolled_by, t.state, coalesce(y.pending, 0), t.write_consistency, t.class, t.pending_class
          -- looked up once for each; as a function in FROM it would take longer than all else
          FROM (SELECT f.*, CASE WHEN f.oid IS NULL THEN 'missing' WHEN NOT EXISTS (SELECT FROM repl_ml.local_node) THEN 'restored' WHEN NOT repl_ml.is_published(f.oid) THEN 'pending' ELSE 'replicated' END AS state
                  FROM (SELECT r.schema_name, r.table_name, r.enrolled_by, r.write_consistency, r.class, r.pending_class, repl_ml.find_table(r.schema_name, r.table_name) AS oid
                          FROM repl_ml.replicated_table r WHERE r.state = 'enrolled' OFFSET 0) f OFFSET 0) t
          LEFT JOIN (SELECT s.schema_name, s.table_name, pg_catalog.count(*) AS pending FROM repl_ml.table_sync s WHERE s.state = 'pending' GROUP BY 1, 2) y
                 ON y.schema_name = t.schema_name AND y.table_name = t.table_name
         WHERE NOT only_unready OR t.state <> 'replicated' OR y.pending > 0 OR t.pending_class IS NOT NULL;
    END
    $$;
COMMENT ON FUNCTION repl_ml.table_states(boolean) IS 'the tables of the group and their state here, all or those that are not replicated here, are to be copied, or change their class, for the view repl_ml.tables and what counts them';

-- This node's tables beside each other member's; where they are the same there is no row
CREATE FUNCTION repl_ml.differing_shapes(OUT schema_name name, OUT table_name name, OUT node_id integer, OUT node_name name, OUT object text, OUT here text, OUT there text)
    RETURNS SETOF record
    LANGUAGE plpgsql STABLE SECURITY DEFINER ROWS 10 SET search_path = pg_catalog, pg_temp SET jit = off SET enable_seqscan = off
    AS $$
    #variable_conflict use_column
    BEGIN
        RETURN QUERY
        SELECT DISTINCT ON (c.schema_name, c.table_name, m.node_id) c.schema_name, c.table_name, m.node_id, m.node_name,
               pg_catalog.substr(k.key, 2), coalesce(k.here, 'missing'), coalesce(k.there, 'missing')
          FROM repl_ml.local_node l
         CROSS JOIN LATERAL repl_ml.compared_tables(l.node_id, (SELECT pg_catalog.array_agg(x.node_id) FROM repl_ml.member x WHERE x.state = 'ready'), true) c
         CROSS JOIN LATERAL pg_catalog.unnest(c.differs_on) d (node_id)
          JOIN repl_ml.member m ON m.node_id = d.node_id
          JOIN repl_ml.table_shape s ON s.node_id = l.node_id AND s.schema_name = c.schema_name AND s.table_name = c.table_name
          JOIN repl_ml.table_shape p ON p.node_id = d.node_id AND p.schema_name = c.schema_name AND p.table_name = c.table_name
          LEFT JOIN repl_ml.replicated_table t ON t.schema_name = c.schema_name AND t.table_name = c.table_name
         CROSS JOIN LATERAL (SELECT coalesce(a.key, b.key) AS key, a.value AS here, b.value AS there
                               FROM pg_catalog.jsonb_each_text(coalesce(s.shape, '{}')) a FULL JOIN pg_catalog.jsonb_each_text(coalesce(p.shape, '{}')) b ON a.key = b.key
                              WHERE a.value IS DISTINCT FROM b.value) k
         WHERE c.table_name = '' OR t.state = 'enrolled'
         ORDER BY c.schema_name, c.table_name, m.node_id, k.key COLLATE "C";
    END
    $$;
COMMENT ON FUNCTION repl_ml.differing_shapes() IS 'the rows of the view repl_ml.shape_differences';

CREATE VIEW repl_ml.shape_differences AS
    SELECT d.schema_name, d.table_name, d.node_id, d.node_name, d.object, d.here, d.there FROM repl_ml.differing_shapes() d;
COMMENT ON VIEW repl_ml.shape_differences IS
    'replicated tables that are not the same here and on another member: one row for each such member, with the first object that differs and what it is here and there; the row without table is about the database and its server';

-- Not those of extensions, temporary ones and partitions; nor those that were taken out of the group or are meant to stay local
CREATE FUNCTION repl_ml.forgotten_tables(OUT schema_name name, OUT table_name name, OUT relid oid)
    RETURNS SETOF record
    LANGUAGE plpgsql STABLE SECURITY DEFINER ROWS 10 SET search_path = pg_catalog, pg_temp SET jit = off SET enable_nestloop = off SET enable_mergejoin = off
    AS $$
    #variable_conflict use_column
    BEGIN
        RETURN QUERY
        SELECT n.nspname, x.relname, x.oid
          -- few are left, and looked up one by one
          FROM (SELECT c.oid, c.relname, c.relnamespace FROM pg_catalog.pg_class c
                 WHERE c.relkind IN ('r', 'p') AND c.relpersistence = 'p' AND NOT c.relispartition AND c.relnamespace <> 'pg_catalog'::regnamespace AND NOT repl_ml.is_published(c.oid) OFFSET 0) x
         CROSS JOIN LATERAL (SELECT s.nspname FROM pg_catalog.pg_namespace s WHERE s.oid = x.relnamespace AND s.nspname NOT IN ('repl_ml', 'information_schema') AND s.nspname NOT LIKE 'pg\_%' OFFSET 0) n
         WHERE EXISTS (SELECT FROM repl_ml.local_node)
           AND (SELECT pg_catalog.count(*) FROM repl_ml.replicated_table t WHERE t.schema_name = n.nspname AND t.table_name = x.relname AND t.state IN ('enrolled', 'removed')) = 0
           AND (SELECT pg_catalog.count(*) FROM pg_catalog.pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = x.oid AND d.deptype = 'e') = 0;
    END
    $$;
COMMENT ON FUNCTION repl_ml.forgotten_tables() IS 'the tables of the view repl_ml.unreplicated_tables';

CREATE VIEW repl_ml.unreplicated_tables AS
    SELECT f.schema_name, f.table_name, f.relid::regclass AS relation,
           -- looked for only where they are asked for
           (SELECT o.message FROM repl_ml.enrol_obstacle(f.relid) o LIMIT 1) AS obstacle,
           (SELECT o.hint FROM repl_ml.enrol_obstacle(f.relid) o LIMIT 1) AS hint
      FROM repl_ml.forgotten_tables() f;
COMMENT ON VIEW repl_ml.unreplicated_tables IS
    'tables of this database that no other node gets rows of, because nobody has added them to the group; obstacle is why one cannot be added, hint what to do about it. See repl_ml.add_table and repl_ml.keep_local';

CREATE FUNCTION repl_ml.listed_tables(OUT schema_name name, OUT table_name name, OUT relation regclass, OUT resolver text, OUT enrolled_by name, OUT state text, OUT pending_copies bigint,
        OUT parked_changes bigint, OUT problem text, OUT write_consistency text, OUT class text, OUT differs_on name[], OUT difference text, OUT pending_class text)
    RETURNS SETOF record
    LANGUAGE plpgsql STABLE SECURITY DEFINER ROWS 1000 SET search_path = pg_catalog, pg_temp SET jit = off SET enable_nestloop = off SET enable_mergejoin = off
    AS $$
    #variable_conflict use_column
    BEGIN
        RETURN QUERY
        SELECT t.schema_name, t.table_name, t.relid::regclass, coalesce(e.resolver, 'last_write'), m.node_name, t.state, t.pending_copies,
               coalesce(k.parked_changes, 0)::bigint, coalesce(f.problem, k.problem, CASE WHEN t.pending_class IS NOT NULL THEN repl_ml.class_problem(t.schema_name, t.table_name) END), t.write_consistency, t.class,
               CASE WHEN h.differs_on IS NOT NULL THEN h.differs_on
                    -- what was just altered here nobody has been told yet
                    WHEN s.known = (SELECT pg_catalog.count(*) FROM repl_ml.member x WHERE x.state = 'ready') AND s.seen IS NOT DISTINCT FROM repl_ml.seen_columns(t.relid) THEN '{}' END, h.difference, t.pending_class
          FROM repl_ml.table_states(false) t
          LEFT JOIN repl_ml.member m ON m.node_id = t.enrolled_by
          LEFT JOIN (SELECT p.schema_name, p.table_name, p.resolver FROM repl_ml.conflict_policies p WHERE p.column_name IS NULL) e
                 ON e.schema_name = t.schema_name AND e.table_name = t.table_name
          LEFT JOIN (SELECT x.schema_name, x.table_name, pg_catalog.sum(CASE x.action WHEN 'counted' THEN (x.change->>'changes')::bigint ELSE 1 END) AS parked_changes,
                            (pg_catalog.array_agg(x.message ORDER BY x.id DESC))[1] AS problem
                       FROM repl_ml.parked_change x WHERE x.action NOT IN ('evicted', 'kept') GROUP BY 1, 2) k ON k.schema_name = t.schema_name AND k.table_name = t.table_name
          LEFT JOIN (SELECT DISTINCT ON (x.schema_name, x.table_name) x.schema_name, x.table_name,
                            pg_catalog.format('could not %s it: %s', x.action, x.message) || coalesce(' (' || x.detail || ')', '') AS problem
                       FROM repl_ml.table_failure x ORDER BY x.schema_name, x.table_name, x.failed_at DESC) f ON f.schema_name = t.schema_name AND f.table_name = t.table_name
          LEFT JOIN (SELECT d.schema_name, d.table_name, pg_catalog.array_agg(d.node_name ORDER BY d.node_id) AS differs_on,
                            (pg_catalog.array_agg(pg_catalog.format('%s: %s here, %s on node "%s"', d.object, d.here, d.there, d.node_name) ORDER BY d.node_id))[1] AS difference
                       FROM repl_ml.differing_shapes() d GROUP BY 1, 2) h ON h.schema_name = t.schema_name AND h.table_name = t.table_name
          LEFT JOIN repl_ml.compared_tables((SELECT l.node_id FROM repl_ml.local_node l), (SELECT pg_catalog.array_agg(x.node_id) FROM repl_ml.member x WHERE x.state = 'ready'), false) s
                 ON s.schema_name = t.schema_name AND s.table_name = t.table_name;
    END
    $$;
COMMENT ON FUNCTION repl_ml.listed_tables() IS 'the rows of the view repl_ml.tables';

CREATE VIEW repl_ml.tables AS
    SELECT t.schema_name, t.table_name, t.relation, t.resolver, t.enrolled_by, t.state, t.pending_copies, t.parked_changes, t.problem, t.write_consistency, t.class, t.differs_on, t.difference, t.pending_class
      FROM repl_ml.listed_tables() t;
COMMENT ON VIEW repl_ml.tables IS 'replicated tables and their state on this node (restored: listed in a dump of a member, and not replicated); problem is why it could not be created or copied, or why the last of the parked_changes could not be applied, or what the change of its class waits for, to pending_class (null: none); differs_on the members on which it is another table, null where that is not known, and difference the first object that differs';

CREATE VIEW repl_ml.stat_replication AS
    SELECT s.active_pid AS pid, w.usesysid, w.usename, w.application_name, w.client_addr, w.client_hostname, w.client_port,
           w.backend_start, w.backend_xmin, coalesce(w.state, CASE WHEN i.paused THEN 'paused' ELSE 'down' END) AS state, w.sent_lsn, w.write_lsn,
           coalesce(w.replay_lsn, s.confirmed_flush_lsn) AS flush_lsn, w.replay_lsn,
           -- core's are those of the last answer, and stand still with who stands still
           CASE WHEN k.written IS NULL THEN w.write_lag WHEN k.written > '-infinity' THEN pg_catalog.clock_timestamp() - k.written END AS write_lag,
           CASE WHEN k.replayed IS NULL THEN w.flush_lag WHEN k.replayed > '-infinity' THEN pg_catalog.clock_timestamp() - k.replayed END AS flush_lag,
           CASE WHEN k.replayed IS NULL THEN w.replay_lag WHEN k.replayed > '-infinity' THEN pg_catalog.clock_timestamp() - k.replayed END AS replay_lag,
           w.sync_priority, w.sync_state, w.reply_time,
           m.node_id, m.node_name, s.slot_name, s.wal_status, s.safe_wal_size,
           -- a slot goes on with what has something for the peer, what that has told with everything
           pg_catalog.pg_wal_lsn_diff(repl_ml.wal_end(), greatest(w.replay_lsn, s.confirmed_flush_lsn))::bigint AS lag_bytes,
           CASE WHEN h.applied_own IS NOT NULL THEN
               greatest(pg_catalog.clock_timestamp() - h.applied_own, '0'::interval) END AS heartbeat_lag,
           CASE WHEN k.lacking = '-infinity' THEN h.applied_own ELSE k.lacking END AS lag_since,
           k.behind AS transactions_behind, i.apply_rate,
           CASE WHEN k.lacking IS NULL AND k.behind = 0 THEN '0'::interval
                -- who is not connected does not catch up
                WHEN w.pid IS NOT NULL AND i.apply_rate > 0 THEN least(pg_catalog.pg_wal_lsn_diff(repl_ml.wal_end(), greatest(w.replay_lsn, s.confirmed_flush_lsn))::float8 / i.apply_rate, 1e9) * '1 s'::interval END AS catchup_interval,
           i.sent_bytes, pg_catalog.pg_wal_lsn_diff(repl_ml.wal_end(), s.restart_lsn)::bigint AS wal_kept,
           CASE WHEN NOT i.reachable AND NOT i.paused THEN coalesce(i.silent_since, pg_catalog.pg_postmaster_start_time()) END AS unreachable_since,
           greatest(i.connections - 1, 0) AS reconnects, i.stats_reset
      FROM repl_ml.member m
      JOIN repl_ml.local_node l ON l.node_id <> m.node_id
      LEFT JOIN pg_catalog.pg_replication_slots s ON s.slot_name = repl_ml.link_name(m.node_id)
      LEFT JOIN pg_catalog.pg_stat_replication w ON w.pid = s.active_pid
      LEFT JOIN repl_ml.link_stats() i ON i.peer = m.node_id
      LEFT JOIN LATERAL (SELECT '2000-01-01 00:00:00+00'::timestamptz + repl_ml.counter(b.applied, l.node_id) * '1 us'::interval AS applied_own
                           FROM repl_ml.heartbeat b WHERE b.node_id = m.node_id) h ON true
      LEFT JOIN LATERAL (SELECT repl_ml.lacks_since(w.write_lsn) AS written, repl_ml.lacks_since(w.replay_lsn) AS replayed,
                                repl_ml.lacks_since(greatest(w.replay_lsn, s.confirmed_flush_lsn)) AS lacking,
                                repl_ml.commits_behind(greatest(w.replay_lsn, s.confirmed_flush_lsn)) AS behind) k ON true
     WHERE m.state <> 'dropped';
COMMENT ON VIEW repl_ml.stat_replication IS
    'one row a peer, also when it is down: how far it has confirmed what this node wrote. Lags are the age of the oldest commit of this node that the peer has not written, flushed or applied, else the last ones measured, as in pg_stat_replication; NULL when unknown or idle; lag_since is when this node committed the oldest transaction that the peer has not applied, also while it is down, NULL when there is none; heartbeat_lag is the age of the newest heartbeat of this node that the peer is known to have applied: it includes both directions and the heartbeat interval';

-- node_id and node_name stand for subid and subname
CREATE VIEW repl_ml.stat_apply AS
    SELECT m.node_id, m.node_name, CASE WHEN w.pid > 0 THEN CASE w.state WHEN 'copying' THEN 'table synchronization' ELSE 'apply' END END AS worker_type,
           nullif(w.pid, 0) AS pid, NULL::integer AS leader_pid, w.copy_relation::oid AS relid, w.received_lsn, w.last_msg_send_time, w.last_message_time AS last_msg_receipt_time,
           w.told_lsn AS latest_end_lsn, w.told_time AS latest_end_time, w.errors - w.sync_errors AS apply_error_count, w.sync_errors AS sync_error_count,
           w.confl_insert_exists, w.confl_update_origin_differs, w.confl_update_exists, w.confl_update_deleted, w.confl_update_missing, w.confl_delete_origin_differs, w.confl_delete_missing,
           NULL::bigint AS confl_multiple_unique_conflicts, w.stats_reset,
           coalesce(w.state, 'stopped') AS state, w.applied_lsn, w.peer_lsn, w.applied_commit_time, w.last_message_time, w.start_time,
           w.transactions, w.changes, w.conflicts, w.parked, w.retries, w.errors,
           w.copy_relation, w.copy_rows,
           (SELECT pg_catalog.count(*) FROM repl_ml.table_sync y WHERE y.node_id = m.node_id AND y.state = 'pending') AS tables_to_copy,
           pg_catalog.clock_timestamp() - h.sent_at AS heartbeat_age,
           w.error_time, w.error_sqlstate, w.error_message, w.error_hint, w.equal_updates, w.equal_inserts,
           w.last_error_time, w.last_error_sqlstate, w.last_error_message, w.last_error_hint,
           k.put_aside_lsn, w.inserts, w.updates, w.deletes, w.duplicates, w.dominated, w.met_tombstones,
           k.parked_now, k.put_aside_now, w.received_bytes, w.apply_time, w.lock_time, w.flush_time,
           w.current_xid, w.current_lsn, w.current_since, w.current_changes, w.current_parked, w.locked_since, w.last_apply_time, w.last_error_context
      FROM repl_ml.member m
      JOIN repl_ml.local_node l ON l.node_id <> m.node_id
      LEFT JOIN repl_ml.worker_stats() w ON w.peer = m.node_id
      LEFT JOIN repl_ml.heartbeat h ON h.node_id = m.node_id
     CROSS JOIN LATERAL (SELECT pg_catalog.min(p.origin_lsn) FILTER (WHERE p.put_aside) AS put_aside_lsn, pg_catalog.count(*) FILTER (WHERE p.put_aside) AS put_aside_now,
                                coalesce(pg_catalog.sum(CASE WHEN p.put_aside OR p.action IN ('evicted', 'kept') THEN 0 WHEN p.action = 'counted' THEN (p.change->>'changes')::bigint ELSE 1 END), 0)::bigint AS parked_now
                           FROM repl_ml.parked_change p WHERE p.origin_node = m.node_id) k
     WHERE m.state <> 'dropped';
COMMENT ON VIEW repl_ml.stat_apply IS
    'one row a peer: the worker that applies what the peer writes; first what core says of subscriptions. Counters since stats_reset; error_* is why nothing is applied now, or what is waited for, null while all is well, and last_error_* the last of these since then; heartbeat_age is the age of the peer''s newest write that is applied here. equal_updates and equal_inserts are concurrent writes of the peer that left a row just as another node''s did: no conflict, but of two increments one is lost. put_aside_lsn is where the first of the peer''s transactions is that are put aside to be applied soon, a large one for example: up to there everything is visible here; null: there is none. current_* is the transaction that is being applied';

-- What is measured is measured by who connects
CREATE VIEW repl_ml.stat_network AS
    SELECT m.node_id, m.node_name, 'incoming' AS direction, n.connected_since IS NOT NULL AS connected, n.connected_since,
           n.round_trip, n.round_trip_mean, n.round_trip_p95, n.round_trip_p99, n.round_trips, n.measured_time,
           n.clock_offset, n.clock_uncertainty, n.pings, n.pings_lost, n.unanswered_for, n.heartbeats, n.heartbeats_late, n.heartbeats_lost,
           w.received_bytes AS bytes, n.received_rate AS bytes_per_second, w.last_message_time, greatest(n.connections - 1, 0) AS reconnects,
           n.disconnect_time, n.disconnect_cause, w.stats_reset
      FROM repl_ml.member m JOIN repl_ml.local_node l ON l.node_id <> m.node_id
      LEFT JOIN repl_ml.network_stats() n ON n.peer = m.node_id LEFT JOIN repl_ml.worker_stats() w ON w.peer = m.node_id
     WHERE m.state <> 'dropped'
    UNION ALL
    SELECT m.node_id, m.node_name, 'outgoing', a.pid IS NOT NULL, a.backend_start, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL,
           i.sent_bytes, i.sent_rate, i.silent_since, greatest(i.connections - 1, 0), NULL, NULL, i.stats_reset
      FROM repl_ml.member m JOIN repl_ml.local_node l ON l.node_id <> m.node_id
      LEFT JOIN pg_catalog.pg_replication_slots s ON s.slot_name = repl_ml.link_name(m.node_id)
      LEFT JOIN pg_catalog.pg_stat_replication a ON a.pid = s.active_pid
      LEFT JOIN repl_ml.link_stats() i ON i.peer = m.node_id
     WHERE m.state <> 'dropped';
COMMENT ON VIEW repl_ml.stat_network IS
    'the two connections to each peer: incoming, over which this node reads what the peer writes, and outgoing, over which the peer reads. Round trips, the peer''s clock and heartbeats are measured by who connects, so for outgoing see the row incoming on the peer. A round trip is from the apply worker to the peer''s walsender and back, once a second, over the last round_trips of them; clock_offset is by how much the peer''s clock is ahead, wrong by clock_uncertainty at most';

-- What each heartbeat, or every fifth, tells the others of this node
CREATE FUNCTION repl_ml.own_status() RETURNS jsonb
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET jit = off
    AS $$
    BEGIN
        RETURN (
            SELECT pg_catalog.jsonb_build_object('state', l.state, 'quorum', q.quorum,
                       'version', (SELECT x.extversion FROM pg_catalog.pg_extension x WHERE x.extname = 'repl_ml'),
                       'server_version', pg_catalog.current_setting('server_version'), 'server_start', pg_catalog.pg_postmaster_start_time(),
                       'schema_number', repl_ml.schema_number(), 'schema_parked', coalesce(z.parked, '[]'), 'conflicts', a.conflicts, 'parked', p.parked, 'put_aside', p.put_aside, 'wal_kept', r.wal_kept,
                       'commits_waiting', c.waiting, 'longest_wait', c.longest,
                       'receiving', coalesce(a.receiving, '{}'), 'sending', coalesce(r.sending, '{}'))
              FROM repl_ml.local_node l
             CROSS JOIN (SELECT pg_catalog.count(*) FILTER (WHERE w.reachable) > pg_catalog.count(*) / 2 AS quorum FROM repl_ml.write_members() w) q
             -- what stat_apply says, and no more of it: this is done all the time
             CROSS JOIN LATERAL (SELECT pg_catalog.sum(w.conflicts) AS conflicts,
                                pg_catalog.jsonb_object_agg(m.node_name, pg_catalog.jsonb_build_object('state', coalesce(w.state, 'stopped'), 'lag', pg_catalog.round(EXTRACT(epoch FROM pg_catalog.clock_timestamp() - h.sent_at), 3), 'error', w.error_message)) AS receiving
                           FROM repl_ml.member m LEFT JOIN repl_ml.worker_stats() w ON w.peer = m.node_id LEFT JOIN repl_ml.heartbeat h ON h.node_id = m.node_id
                          WHERE m.node_id <> l.node_id AND m.state <> 'dropped') a
             CROSS JOIN (SELECT coalesce(pg_catalog.sum(CASE WHEN k.put_aside OR k.action IN ('evicted', 'kept') THEN 0 WHEN k.action = 'counted' THEN (k.change->>'changes')::bigint ELSE 1 END), 0)::bigint AS parked,
                                pg_catalog.count(*) FILTER (WHERE k.put_aside) AS put_aside FROM repl_ml.parked_change k) p
             CROSS JOIN (SELECT pg_catalog.jsonb_agg((k.change->>'number')::bigint) AS parked FROM repl_ml.parked_change k WHERE k.schema_name = 'repl_ml' AND k.table_name = 'schema_change') z
             CROSS JOIN (SELECT pg_catalog.max(s.wal_kept) AS wal_kept,
                                pg_catalog.jsonb_object_agg(s.node_name, pg_catalog.jsonb_build_object('state', s.state,
                                    'lag', CASE WHEN s.lag_since IS NOT NULL THEN pg_catalog.round(EXTRACT(epoch FROM pg_catalog.clock_timestamp() - s.lag_since), 3) WHEN s.transactions_behind = 0 THEN 0 END,
                                    'transactions_behind', s.transactions_behind)) AS sending
                           FROM repl_ml.stat_replication s) r
             CROSS JOIN (SELECT pg_catalog.count(*) AS waiting, pg_catalog.round(EXTRACT(epoch FROM pg_catalog.max(pg_catalog.clock_timestamp() - w.waiting_since)), 3) AS longest FROM repl_ml.write_waiters() w) c);
    END
    $$;
COMMENT ON FUNCTION repl_ml.own_status() IS 'what this node knows of itself, as it tells the others; see the view repl_ml.group_status';

CREATE VIEW repl_ml.group_status AS
    SELECT m.node_id, m.node_name, m.node_id = l.node_id AS is_local, coalesce(t.told->>'state', m.state) AS state,
           CASE WHEN m.state <> 'ready' THEN m.state WHEN (t.told->>'quorum')::boolean THEN 'writer' WHEN NOT (t.told->>'quorum')::boolean THEN 'minority' END AS role,
           t.told_at, greatest(pg_catalog.clock_timestamp() - t.told_at, '0'::interval) AS told_age,
           w.reachable, (t.told->>'conflicts')::bigint AS conflicts, (t.told->>'parked')::bigint AS parked, (t.told->>'put_aside')::bigint AS put_aside, (t.told->>'wal_kept')::bigint AS wal_kept,
           (t.told->>'commits_waiting')::bigint AS commits_waiting, (t.told->>'longest_wait')::float8 * '1 s'::interval AS longest_wait,
           t.told->>'version' AS version, t.told->>'server_version' AS server_version, (t.told->>'server_start')::timestamptz AS server_start,
           t.told_at - (t.told->>'server_start')::timestamptz AS uptime, t.told->'receiving' AS receiving, t.told->'sending' AS sending
      FROM repl_ml.member m JOIN repl_ml.local_node l ON true
      LEFT JOIN repl_ml.heartbeat h ON h.node_id = m.node_id
      LEFT JOIN repl_ml.write_members() w ON w.node_id = m.node_id
     CROSS JOIN LATERAL (SELECT CASE WHEN m.node_id = l.node_id THEN repl_ml.own_status() ELSE h.told END AS told,
                                CASE WHEN m.node_id = l.node_id THEN pg_catalog.clock_timestamp() ELSE h.told_at END AS told_at) t
     WHERE m.state <> 'dropped';
COMMENT ON VIEW repl_ml.group_status IS
    'one row a member, with the numbers that it has told of itself, and when (told_at, by its clock): of this node those of now. What a member that is down or cut off has told last is as old as told_age says; null: it has told nothing. receiving and sending have an entry for each of its peers, with the state and lag in seconds of its two connections';

CREATE VIEW repl_ml.schema_changes AS
    SELECT c.number, c.changed_at, m.node_name, c.role_name, c.command_tag, c.statement, c.state, c.error, t.missing_on
      FROM (SELECT s.number, s.changed_at, s.node_id, s.role_name, s.command_tag, s.statement, 'run' AS state, NULL::text AS error FROM repl_ml.schema_change s
            UNION ALL
            SELECT (p.change->>'number')::bigint, (p.change->>'changed_at')::timestamptz, p.origin_node, (p.change->>'role_name')::name, p.change->>'command_tag', p.change->>'statement',
                   CASE WHEN p.put_aside THEN 'put aside' ELSE 'parked' END, CASE WHEN NOT p.put_aside THEN p.message END
              FROM repl_ml.parked_change p WHERE p.schema_name = 'repl_ml' AND p.table_name = 'schema_change') c
      LEFT JOIN repl_ml.member m ON m.node_id = c.node_id
     CROSS JOIN LATERAL (SELECT coalesce(pg_catalog.array_agg(o.node_name ORDER BY o.node_id) FILTER (WHERE (h.told->>'schema_number')::bigint < c.number OR h.told->'schema_parked' @> pg_catalog.to_jsonb(c.number)), '{}') AS missing_on
                           FROM repl_ml.local_node l JOIN repl_ml.member o ON o.node_id <> l.node_id AND o.state <> 'dropped'
                           LEFT JOIN repl_ml.heartbeat h ON h.node_id = o.node_id) t;
COMMENT ON VIEW repl_ml.schema_changes IS
    'changes of the schema that all members run, in their order, as far as this node has heard of them since it joined: whether its statement has been run here, or is parked with its transaction, and why; and which other members had not run it when they last told';

CREATE FUNCTION repl_ml.status() RETURNS jsonb
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp SET jit = off
    AS $$
    BEGIN
        RETURN (
            SELECT pg_catalog.jsonb_build_object('group', n.detail, 'node', g.node, 'date', pg_catalog.clock_timestamp(), 'status', n.status, 'members', coalesce(g.members, '[]'), 'health', n.health)
              FROM (SELECT CASE WHEN pg_catalog.bool_or(h.status = 'error') THEN 'error' WHEN pg_catalog.bool_or(h.status = 'warning') THEN 'warning' ELSE 'ok' END AS status,
                           pg_catalog.min(h.detail) FILTER (WHERE h.check_name = 'membership') AS detail,
                           pg_catalog.jsonb_agg(pg_catalog.to_jsonb(h)) AS health
                      FROM repl_ml.health h) n
             CROSS JOIN (SELECT pg_catalog.min(s.node_name::text) FILTER (WHERE s.is_local) AS node, pg_catalog.jsonb_agg(pg_catalog.to_jsonb(s) ORDER BY s.node_id) AS members
                           FROM repl_ml.group_status s) g);
    END
    $$;
COMMENT ON FUNCTION repl_ml.status() IS 'the group as this node sees it, in one document: members with what each has told of itself, and this node''s health. Errors: none';

CREATE FUNCTION repl_ml.short_time(duration interval) RETURNS text
    LANGUAGE sql STABLE STRICT PARALLEL SAFE SET search_path = pg_catalog, pg_temp
    AS $$
    SELECT CASE WHEN x.s < 100 THEN pg_catalog.round(x.s, 1) || 's' WHEN x.s < 6000 THEN pg_catalog.round(x.s / 60) || 'm'
                WHEN x.s < 360000 THEN pg_catalog.round(x.s / 3600) || 'h' ELSE pg_catalog.round(x.s / 86400) || 'd' END
      FROM (SELECT greatest(EXTRACT(epoch FROM duration), 0) AS s) x
    $$;
COMMENT ON FUNCTION repl_ml.short_time(interval) IS 'a time in no more than five characters, up to a hundred years';

-- For \watch: no row is longer than 100 columns, with numbers below a hundred thousand
-- A function, so that a session plans it once: that takes longer than to look
CREATE FUNCTION repl_ml.group_lines(OUT node text, OUT told text, OUT "from" text, OUT lag text, OUT "to" text, OUT behind text, OUT rtt numeric, OUT conf bigint, OUT park bigint, OUT wait bigint, OUT wal_mb numeric)
    RETURNS SETOF record
    LANGUAGE plpgsql STABLE ROWS 10 SET search_path = pg_catalog, pg_temp SET jit = off
    AS $$
    #variable_conflict use_column
    BEGIN
        RETURN QUERY
        SELECT pg_catalog.left(s.node_name::text, 8) || CASE WHEN s.is_local THEN '*' ELSE '' END AS node,
               CASE WHEN s.is_local THEN 'now' ELSE coalesce(repl_ml.short_time(s.told_age), 'never') END AS told,
               CASE WHEN s.is_local THEN '' ELSE coalesce(pg_catalog.left(a.state, 9), '?') END AS "from", repl_ml.short_time(a.heartbeat_age) AS lag,
               CASE WHEN s.is_local THEN '' ELSE coalesce(pg_catalog.left(r.state, 9), '?') END AS "to", repl_ml.short_time(pg_catalog.clock_timestamp() - r.lag_since) AS behind,
               -- of a connection that has ended it says nothing any more
               CASE WHEN n.connected THEN pg_catalog.round((EXTRACT(epoch FROM n.round_trip) * 1000)::numeric, 1) END AS rtt,
               s.conflicts AS conf, s.parked AS park, s.commits_waiting AS wait, pg_catalog.round(s.wal_kept / 1048576.0) AS wal_mb
          FROM repl_ml.group_status s
          LEFT JOIN repl_ml.stat_apply a ON a.node_id = s.node_id
          LEFT JOIN repl_ml.stat_replication r ON r.node_id = s.node_id
          LEFT JOIN repl_ml.stat_network n ON n.node_id = s.node_id AND n.direction = 'incoming'
         ORDER BY s.node_id;
    END
    $$;
COMMENT ON FUNCTION repl_ml.group_lines() IS 'the rows of the view repl_ml.top';

CREATE VIEW repl_ml.top AS
    SELECT g.node, g.told, g."from", g.lag, g."to", g.behind, g.rtt, g.conf, g.park, g.wait, g.wal_mb FROM repl_ml.group_lines() g;
COMMENT ON VIEW repl_ml.top IS
    'the group at a glance, for SELECT * FROM repl_ml.top and \watch in psql: of each member (* this one) what it told last, and how long ago; from and to are the connections of this node to it';

CREATE VIEW repl_ml.conflicts WITH (security_barrier) AS
    SELECT c.conflict_id, c.detected_at, c.schema_name, c.table_name, c.key, c.conflict_type, c.resolution,
           coalesce(w.node_name, c.winner_node::text::name) AS winner_node, coalesce(l.node_name, c.loser_node::text::name) AS loser_node,
           c.winner_clock, c.loser_clock, c.result_clock, c.winner_row, c.loser_row, c.lost_columns,
           coalesce(o.node_name, c.origin_node::text::name) AS origin_node, c.origin_xid, c.origin_lsn, c.origin_time
      FROM repl_ml.conflict_history c
      LEFT JOIN repl_ml.member w ON w.node_id = c.winner_node
      LEFT JOIN repl_ml.member l ON l.node_id = c.loser_node
      LEFT JOIN repl_ml.member o ON o.node_id = c.origin_node
     WHERE pg_catalog.pg_has_role(current_user, 'pg_monitor', 'USAGE')
        OR EXISTS (SELECT FROM pg_catalog.pg_class t JOIN pg_catalog.pg_namespace n ON n.oid = t.relnamespace
                     JOIN repl_ml.replicated_table r ON r.schema_name = n.nspname AND r.table_name = t.relname AND r.state = 'enrolled'
                    WHERE n.nspname = c.schema_name AND t.relname = c.table_name AND pg_catalog.pg_has_role(current_user, t.relowner, 'USAGE'));
COMMENT ON VIEW repl_ml.conflicts IS
    'versions of rows that lost to another of which neither knew the other, as resolved on this node; conflict_id is the same on all nodes. Members of pg_monitor see all, others those of their own tables; kept for repl_ml.conflict_retention';

CREATE VIEW repl_ml.stat_conflicts AS
    SELECT k.schema_name, k.table_name, k.conflict_type, k.resolution, (pg_catalog.sum(k.conflicts) FILTER (WHERE k.span = 'all'))::bigint AS conflicts,
           pg_catalog.min(k.first_detected_at) AS first_detected_at, pg_catalog.max(k.last_detected_at) AS last_detected_at,
           (pg_catalog.sum(k.equal) FILTER (WHERE k.span = 'all'))::bigint AS equal,
           coalesce(pg_catalog.sum(k.conflicts) FILTER (WHERE k.span = 'minute'), 0)::bigint AS last_hour,
           (SELECT pg_catalog.min(b.since) FROM repl_ml.conflict_count b WHERE b.span = 'all') AS counted_since
      FROM (SELECT c.span, c.schema_name, c.table_name, c.conflict_type, c.resolution, c.conflicts, c.equal, c.first_detected_at, c.last_detected_at
              FROM repl_ml.conflict_count c WHERE c.span = 'all' OR (c.span = 'minute' AND c.since > pg_catalog.clock_timestamp() - '1 hour'::interval)
            UNION ALL
            SELECT s.span, n.schema_name, n.table_name, n.conflict_type, n.resolution, n.conflicts, CASE WHEN n.equal THEN n.conflicts ELSE 0 END, n.detected_at, n.detected_at
              FROM repl_ml.conflict_news n CROSS JOIN (VALUES ('all'), ('minute')) s (span)) k
     GROUP BY 1, 2, 3, 4 HAVING pg_catalog.sum(k.conflicts) FILTER (WHERE k.span = 'all') > 0;
COMMENT ON VIEW repl_ml.stat_conflicts IS
    'conflicts by table, type and resolution, as they were found: all that this node has had since counted_since, also those that repl_ml.conflicts does not keep any more; equal: those in which both wrote the same (see repl_ml.log_equal_writes); last_hour: those of the last sixty minutes, to the minute';

-- For a chart
CREATE VIEW repl_ml.conflicts_by_hour AS
    SELECT k.hour, k.schema_name, k.table_name, k.conflict_type, pg_catalog.sum(k.conflicts)::bigint AS conflicts
      FROM (SELECT c.since AS hour, c.schema_name, c.table_name, c.conflict_type, c.conflicts FROM repl_ml.conflict_count c WHERE c.span = 'hour'
            UNION ALL
            SELECT pg_catalog.date_trunc('hour', n.detected_at, 'UTC'), n.schema_name, n.table_name, n.conflict_type, n.conflicts FROM repl_ml.conflict_news n) k
     GROUP BY 1, 2, 3, 4 HAVING pg_catalog.sum(k.conflicts) > 0;
COMMENT ON VIEW repl_ml.conflicts_by_hour IS 'conflicts by the hour (of UTC) in which this node resolved them, table and type; an hour without any has no row. How far back that goes: repl_ml.conflict_retention';

CREATE VIEW repl_ml.parked_changes AS
    SELECT p.id, p.parked_at, coalesce(m.node_name, p.origin_node::text::name) AS origin_node, p.origin_xid, p.origin_lsn,
           p.schema_name, p.table_name, p.action, p.change, p.sqlstate, p.message, p.detail, p.conflict_id, p.put_aside, p.columns
      FROM repl_ml.parked_change p LEFT JOIN repl_ml.member m ON m.node_id = p.origin_node;
COMMENT ON VIEW repl_ml.parked_changes IS
    'changes that could not be applied here, with the reason; action counted stands for as many as it says, which were not kept because of repl_ml.parked_limit: the table is copied when that is possible; columns: what they were; put_aside: only because a commit that waits to be acknowledged, or a large transaction that is being applied, has locked the row, and is tried again by itself; action bulk is such a large transaction; see repl_ml.retry_parked and repl_ml.discard_parked';

-- Level one waits for nobody
CREATE VIEW repl_ml.stat_write_consistency AS
    SELECT s.level, s.commits, s.refused, s.timeouts, s.cancelled, u.transactions AS unacknowledged, s.total_wait, s.min_wait, s.max_wait,
           s.total_wait / nullif(s.commits, 0) AS mean_wait, s.histogram_bounds, s.histogram, s.stats_reset, s.parked
      FROM repl_ml.write_stats() s LEFT JOIN repl_ml.unacknowledged() u ON u.level = s.level;
COMMENT ON VIEW repl_ml.stat_write_consistency IS
    'what became of commits with write consistency quorum and all on this node, since stats_reset: acknowledged (commits), refused beforehand, or committed here and given up by timeout or cancel, or because too few members could apply it (parked). unacknowledged is how many are visible here now and not acknowledged so far, also since before a crash (see repl_ml.unacknowledged()). The waits are those of acknowledged ones: histogram[i] counts those up to histogram_bounds[i], the last element those above all bounds';

CREATE VIEW repl_ml.stat_write_waiters AS
    SELECT w.pid, a.usename, a.application_name, w.level, w.required, k.acknowledged, k.acknowledged_by, k.waiting_for, w.waiting_since, w.lsn, k.parked_on
      FROM repl_ml.write_waiters() w
      LEFT JOIN pg_catalog.pg_stat_activity a ON a.pid = w.pid
      CROSS JOIN LATERAL (SELECT (pg_catalog.count(*) FILTER (WHERE x.has))::integer AS acknowledged,
                                 coalesce(pg_catalog.array_agg(x.node_name ORDER BY x.node_id) FILTER (WHERE x.has), '{}') AS acknowledged_by,
                                 coalesce(pg_catalog.array_agg(x.node_name ORDER BY x.node_id) FILTER (WHERE x.has IS NOT TRUE AND NOT x.parked), '{}') AS waiting_for,
                                 coalesce(pg_catalog.array_agg(x.node_name ORDER BY x.node_id) FILTER (WHERE x.parked), '{}') AS parked_on
                            FROM (SELECT m.node_id, m.node_name, m.node_id = ANY (w.parked_on) AS parked,
                                         s.acknowledged_lsn >= w.lsn AND m.node_id <> ALL (w.parked_on) AS has
                                    FROM repl_ml.write_members() s JOIN repl_ml.member m USING (node_id)) x) k;
COMMENT ON VIEW repl_ml.stat_write_waiters IS
    'commits on this node that wait to be acknowledged: by how many members (required, this node counts), who has the transaction (acknowledged_by), who has not (waiting_for), and who has parked something of it and does not count (parked_on), since when';

-- A function, since to plan it costs more than to run it, and a session plans it once
CREATE FUNCTION repl_ml.checks(OUT check_name text, OUT status text, OUT detail text, OUT hint text)
    RETURNS SETOF record
    LANGUAGE plpgsql STABLE SECURITY DEFINER ROWS 20 SET search_path = pg_catalog, pg_temp SET jit = off SET enable_nestloop = off SET enable_mergejoin = off
    AS $$
    #variable_conflict use_column
    BEGIN
    RETURN QUERY
    WITH self AS (
        SELECT l.node_id, l.node_name, l.group_name, l.state, l.former_node,
               NOT pg_catalog.pg_is_in_recovery()
               AND (l.system_identifier, l.timeline, l.database, l.directory) IS DISTINCT FROM (f.system_identifier, f.timeline, f.database, f.directory) AS fenced,
               pg_catalog.pg_is_in_recovery() AS standby,
               pg_catalog.current_setting('repl_ml.heartbeat_interval')::interval AS heartbeat
          FROM repl_ml.local_fingerprint() f, repl_ml.local_node l),
    -- a node that takes part; of the others only the first check has something to say
    active AS (SELECT s.* FROM self s WHERE NOT s.fenced AND NOT s.standby AND s.state NOT IN ('dropped', 'set_back')),
    peer AS (SELECT m.node_id, m.node_name, m.state FROM repl_ml.member m JOIN active s ON s.node_id <> m.node_id WHERE m.state <> 'dropped'),
    quorum AS (
        SELECT pg_catalog.count(*) AS members, pg_catalog.count(*) / 2 + 1 AS needed, pg_catalog.count(*) FILTER (WHERE w.reachable) AS reachable,
               pg_catalog.string_agg(m.node_name || CASE WHEN i.paused THEN ' (paused there)' ELSE '' END, ', ' ORDER BY m.node_id) FILTER (WHERE NOT w.reachable) AS missing,
               pg_catalog.bool_and(i.paused IS TRUE) FILTER (WHERE NOT w.reachable) AS paused
          FROM repl_ml.write_members() w JOIN repl_ml.member m USING (node_id) LEFT JOIN repl_ml.link_stats() i ON i.peer = m.node_id),
    unready AS MATERIALIZED (SELECT t.* FROM repl_ml.table_states(true) t),
    plan AS MATERIALIZED (SELECT v.*, CASE WHEN v.schedule > '0 s' THEN pg_catalog.clock_timestamp() - v.patience ELSE '-infinity' END AS late_before FROM repl_ml.verify_plan() v),
    compared AS NOT MATERIALIZED (
        SELECT k.schema_name, k.table_name, k.status, k.differing_rows, k.started_at, NULL::name AS by_node FROM repl_ml.consistency_check k WHERE NOT k.unwatched
         UNION ALL SELECT v.schema_name, v.table_name, v.status, v.differing_rows, v.compared_at, m.node_name
          FROM self s JOIN repl_ml.verification v ON v.node_id <> s.node_id JOIN repl_ml.member m ON m.node_id = v.node_id WHERE v.compared_at IS NOT NULL),
    finding (place, check_name, status, detail, hint) AS (
    -- 1. who this node is
    SELECT 1, 'membership',
           CASE WHEN s.fenced OR s.state IN ('dropped', 'set_back') THEN 'error' WHEN s.state = 'ready' OR s.standby THEN 'ok' ELSE 'warning' END,
           CASE WHEN s.standby THEN pg_catalog.format('This server is a standby of node "%s", as of %s: it takes no part in group "%s".', s.node_name, coalesce(pg_catalog.pg_last_xact_replay_timestamp()::text, 'its start'), s.group_name)
                WHEN s.fenced THEN pg_catalog.format('This database is a copy of node "%s": it neither writes replicated tables nor talks to the group.', s.node_name)
                WHEN s.state = 'dropped' THEN pg_catalog.format('The other members have dropped node "%s": it takes no part in group "%s" any more.', s.node_name, s.group_name)
                WHEN s.state = 'set_back' THEN pg_catalog.format('Node "%s" has been set back to an older state: it takes no part in group "%s" until it has come back under a new id%s.', s.node_name, s.group_name,
                     (SELECT ' (' || w.error_message || ')' FROM repl_ml.worker_stats() w WHERE w.peer = 0))
                WHEN s.former_node IS NOT NULL AND s.state <> 'ready' THEN pg_catalog.format('Node "%s" was set back to an older state and gets from group "%s" what it lacks (%s): it must not be written yet.', s.node_name, s.group_name, s.state)
                WHEN s.state <> 'ready' THEN pg_catalog.format('Node "%s" is still joining group "%s" (%s) and must not be written yet.', s.node_name, s.group_name, s.state)
                ELSE pg_catalog.format('Node "%s" of group "%s", members: %s.', s.node_name, s.group_name,
                     (SELECT pg_catalog.string_agg(m.node_name || CASE m.state WHEN 'ready' THEN '' ELSE ' (joining)' END, ', ' ORDER BY m.node_id)
                        FROM repl_ml.member m WHERE m.state <> 'dropped')) END,
           CASE WHEN s.standby THEN 'Look at repl_ml.health on the node itself.'
                WHEN s.fenced THEN 'If it is the node itself, in another place or promoted, it goes on as soon as more than half of the other members agree: SELECT repl_ml.confirm_identity() says what speaks against it. If the node that it is a copy of is gone for good or goes on elsewhere, run SELECT repl_ml.leave_group(force => true) here, and join again.'
                WHEN s.state = 'dropped' THEN 'Run SELECT repl_ml.leave_group(force => true) here; then it can join again.'
                WHEN s.state = 'set_back' THEN coalesce((SELECT w.error_hint FROM repl_ml.worker_stats() w WHERE w.peer = 0), 'It comes back by itself, as soon as more than half of the other members can be reached.')
                WHEN s.state <> 'ready' THEN 'It becomes ready by itself; see how far it is with SELECT * FROM repl_ml.stat_apply.' END
      FROM self s
    UNION ALL
    SELECT 1, 'membership', 'warning', 'This database is in no group: nothing is replicated.' ||
           CASE WHEN r.tables > 0 THEN pg_catalog.format(' It was restored from a dump of a member, with %s of its tables.', r.tables) ELSE '' END,
           CASE WHEN r.tables > 0 THEN 'Run SELECT repl_ml.create_group(...), which replicates these tables again; or DROP EXTENSION repl_ml CASCADE and DROP PUBLICATION IF EXISTS repl_ml, and they are ordinary ones.'
                ELSE 'Run SELECT repl_ml.create_group(...) or repl_ml.join_group(...).' END
      FROM (SELECT pg_catalog.count(*) AS tables FROM unready t WHERE t.state = 'restored') r
     WHERE NOT EXISTS (SELECT FROM self)
    UNION ALL
    -- 2. which commits are possible now
    SELECT 2, 'write_consistency',
           CASE WHEN g.unattended THEN 'error' WHEN q.members = 0 THEN 'warning' WHEN q.members = 1 THEN 'ok' WHEN g.in_the_way OR q.reachable < q.needed THEN 'error'
                WHEN q.reachable < q.members THEN 'warning' ELSE 'ok' END,
           CASE WHEN g.unattended THEN 'There is no process "repl_ml launcher", for want of background worker slots or as it has just ended: nothing is applied here, and commits with write consistency quorum and all are refused.'
                WHEN q.members = 0 THEN 'It is not known yet which members can be reached: commits with write consistency quorum and all are refused.'
                WHEN q.members = 1 THEN 'There is no other member: quorum and all mean this node only.'
                WHEN g.in_the_way THEN pg_catalog.format('The setting synchronous_standby_names is %L: commits with write consistency quorum and all are refused.', g.names)
                WHEN q.reachable < q.needed THEN pg_catalog.format('%s members, only %s can be reached, quorum needs %s: commits with write consistency quorum and all are refused. Missing: %s.', q.members, q.reachable, q.needed, q.missing)
                WHEN q.reachable < q.members THEN pg_catalog.format('%s members, %s can be reached, quorum needs %s: can tolerate %s. Commits with write consistency all are refused. Missing: %s.', q.members, q.reachable, q.needed,
                     CASE q.reachable - q.needed WHEN 0 THEN 'no further failure' WHEN 1 THEN 'one more failure' ELSE pg_catalog.format('%s more failures', q.reachable - q.needed) END, q.missing)
                WHEN q.members = 2 THEN '2 members, both can be reached, quorum needs both: can tolerate no failure.'
                ELSE pg_catalog.format('%s members, all can be reached, quorum needs %s: can tolerate %s.', q.members, q.needed,
                     CASE q.members - q.needed WHEN 1 THEN 'one failure' ELSE pg_catalog.format('%s failures', q.members - q.needed) END) END,
           CASE WHEN g.unattended THEN 'Raise max_worker_processes; SELECT * FROM repl_ml.check_setup() says how far.'
                WHEN q.members = 0 THEN 'This takes a moment after the server''s start; if it stays so, look for errors of "repl_ml supervisor" in the server''s log.'
                WHEN q.members = 1 THEN NULL
                WHEN g.in_the_way THEN 'Remove synchronous_standby_names from the server''s configuration and restart it, or set it to repl_ml_quorum and reload the configuration.'
                WHEN q.paused THEN 'See the check "sending".'
                WHEN q.reachable < q.members THEN 'Start the missing nodes or mend the network to them. A node that will not come back is removed with SELECT repl_ml.drop_node(...), after which the group is smaller.'
                WHEN q.members = 2 THEN 'A third member would let one of them fail.' END
      FROM active s, quorum q,
           LATERAL (SELECT pg_catalog.current_setting('synchronous_standby_names') AS names, pg_catalog.current_setting('synchronous_standby_names') <> 'repl_ml_quorum' AS in_the_way,
                           CASE WHEN q.members = 0 THEN NOT EXISTS (SELECT FROM pg_catalog.pg_stat_get_activity(NULL) a WHERE a.backend_type = 'repl_ml launcher') ELSE false END AS unattended) g
     WHERE s.state = 'ready'
    UNION ALL
    -- 3. commits that wait for longer than it takes to notice that somebody is gone
    SELECT 3, 'waiting_commits', CASE WHEN pg_catalog.count(w.pid) = 0 THEN 'ok' ELSE 'warning' END,
           CASE WHEN pg_catalog.count(w.pid) = 0 THEN 'No commit waits for long.'
                ELSE pg_catalog.format('Commits that wait to be acknowledged: %s, the longest for %s seconds.', pg_catalog.count(w.pid),
                     pg_catalog.round(EXTRACT(epoch FROM pg_catalog.max(pg_catalog.clock_timestamp() - w.waiting_since)), 1)) END,
           CASE WHEN pg_catalog.count(w.pid) > 0 THEN 'See for whom with SELECT * FROM repl_ml.stat_write_waiters; they end with an error after repl_ml.write_timeout.' END
      FROM active s LEFT JOIN repl_ml.write_waiters() w ON pg_catalog.clock_timestamp() - w.waiting_since > 2 * s.heartbeat
    HAVING pg_catalog.count(s.node_id) > 0
    UNION ALL
    -- 4. what is visible here and may be lost with this node
    SELECT 4, 'unacknowledged', CASE WHEN u.transactions = 0 THEN 'ok' ELSE 'warning' END,
           CASE WHEN u.transactions = 0 THEN 'No transaction is visible here that its write consistency has not acknowledged.'
                WHEN u.transactions IS NULL THEN 'It is not known yet which transactions of the time before the server''s start have been acknowledged.'
                WHEN u.transactions = 1 THEN 'One transaction is visible here though its write consistency has not acknowledged it.'
                ELSE pg_catalog.format('%s transactions are visible here though their write consistency has not acknowledged them.', u.transactions) END,
           CASE WHEN u.transactions <> 0 THEN 'They will be as soon as enough members can be reached. How many, and for which level, is in repl_ml.stat_write_consistency.'
                WHEN u.transactions IS NULL THEN 'It will be when the members have everything that was written before.' END
      FROM active s, (SELECT CASE WHEN pg_catalog.bool_and(n.transactions IS NOT NULL) THEN pg_catalog.sum(n.transactions) END AS transactions FROM repl_ml.unacknowledged() n) u
     WHERE s.state = 'ready'
    UNION ALL
    -- 5. peers that do not get what this node writes
    SELECT 5, 'sending', CASE WHEN pg_catalog.count(p.node_id) = 0 THEN 'ok' WHEN pg_catalog.bool_and(i.paused IS TRUE) THEN 'warning' ELSE 'error' END,
           coalesce(pg_catalog.string_agg(pg_catalog.format('Node "%s" %s.', p.node_name,
                        CASE WHEN i.paused THEN 'does not read what this node writes, as that is paused there'
                             WHEN w.silent_for IS NULL THEN 'has not been heard since this server''s start'
                             ELSE pg_catalog.format('has not answered for %s seconds', pg_catalog.round(EXTRACT(epoch FROM w.silent_for), 1)) END), ' ' ORDER BY p.node_id) FILTER (WHERE p.node_id IS NOT NULL),
                    'All members read what this node writes.'),
           CASE WHEN pg_catalog.count(p.node_id) > 0 THEN pg_catalog.concat_ws(' ',
                     pg_catalog.string_agg(pg_catalog.format('On node "%s" run SELECT repl_ml.resume_apply(%L).', p.node_name, s.node_name), ' ' ORDER BY p.node_id) FILTER (WHERE i.paused),
                     CASE WHEN NOT pg_catalog.bool_and(i.paused IS TRUE) THEN 'See whether the server runs and can reach this one: on it, SELECT * FROM repl_ml.stat_apply shows the error.' END,
                     CASE WHEN EXISTS (SELECT FROM pg_catalog.pg_replication_slots r WHERE r.slot_name = ANY (pg_catalog.array_agg(repl_ml.link_name(p.node_id)) FILTER (WHERE p.node_id IS NOT NULL)))
                          THEN 'Until then this server keeps WAL for it.' END) END
      FROM active s LEFT JOIN (repl_ml.write_members() w JOIN peer p USING (node_id) LEFT JOIN repl_ml.link_stats() i ON i.peer = p.node_id) ON NOT w.reachable
    HAVING pg_catalog.count(s.node_id) > 0
    UNION ALL
    -- 6. peers of which this node gets nothing
    SELECT 6, 'applying', CASE WHEN pg_catalog.bool_or(p.failing) THEN 'error' WHEN pg_catalog.count(p.node_id) > 0 THEN 'warning' ELSE 'ok' END,
           coalesce(pg_catalog.string_agg(pg_catalog.format('Nothing of node "%s" is applied (%s)%s.', p.node_name, p.state, ': ' || p.message), ' ' ORDER BY p.node_id) FILTER (WHERE p.node_id IS NOT NULL),
                    'What the other members write is applied here.'),
           coalesce(pg_catalog.string_agg(DISTINCT p.hint, ' ') FILTER (WHERE p.node_id IS NOT NULL),
                    CASE WHEN pg_catalog.count(p.node_id) > 0 THEN 'See SELECT * FROM repl_ml.stat_apply, and the server''s log.' END)
      FROM active s LEFT JOIN (
           -- where there is no supervisor, its error is why there are no workers
           SELECT x.node_id, x.node_name, coalesce(w.state, 'stopped') AS state, coalesce(w.state, 'stopped') <> 'paused' AND e.message IS NOT NULL AS failing,
                  CASE WHEN coalesce(w.state, 'stopped') <> 'paused' THEN pg_catalog.rtrim(pg_catalog.split_part(e.message, E'\n', 1), '.') END AS message,
                  CASE WHEN w.state = 'paused' THEN pg_catalog.format('Run SELECT repl_ml.resume_apply(%L).', x.node_name) ELSE e.hint END AS hint
             FROM peer x LEFT JOIN repl_ml.worker_stats() w ON w.peer = x.node_id
             LEFT JOIN repl_ml.worker_stats() v ON v.peer = 0 AND v.state = 'stopped'
             LEFT JOIN LATERAL (SELECT y.message, y.hint FROM (VALUES (w.error_time, w.error_message, w.error_hint), (v.error_time, v.error_message, v.error_hint)) y (at, message, hint)
                                 WHERE y.at > coalesce(w.last_message_time, '-infinity') ORDER BY y.at DESC LIMIT 1) e ON true
            WHERE coalesce(w.state, 'stopped') NOT IN ('streaming', 'copying', 'preparing')) p ON true
    HAVING pg_catalog.count(s.node_id) > 0
    UNION ALL
    -- 7. peers whose changes come late, and what is in their way: of several causes the first one
    SELECT 7, 'delay', CASE WHEN pg_catalog.count(p.node_id) = 0 THEN 'ok' ELSE 'warning' END,
           coalesce(pg_catalog.string_agg(pg_catalog.format(
                        CASE WHEN p.cause IS NULL THEN 'No heartbeat of node "%s" has come for %s seconds, though it is connected.'
                             WHEN p.cause = p.refused THEN 'The heartbeats that node "%s" has sent in the last %s seconds are parked here, so nobody knows how late the rest comes: %s.'
                             ELSE 'What node "%s" wrote in the last %s seconds is not applied here: %s.' END, p.node_name,
                        pg_catalog.round(EXTRACT(epoch FROM pg_catalog.clock_timestamp() - p.sent_at), 1), p.cause), ' ' ORDER BY p.node_id) FILTER (WHERE p.node_id IS NOT NULL),
                    'What the other members write arrives in time.'),
           pg_catalog.string_agg(DISTINCT p.remedy, ' ')
      FROM active s LEFT JOIN (
           SELECT x.*, f.refused, c.cause, c.remedy
             FROM active a CROSS JOIN LATERAL (
                  SELECT y.node_id, y.node_name, h.sent_at + coalesce(repl_ml.counter(h.behind, a.node_id), 0) * '1 us'::interval AS sent_at
                    FROM peer y JOIN repl_ml.heartbeat h ON h.node_id = y.node_id) x
             LEFT JOIN repl_ml.worker_stats() w ON w.peer = x.node_id
            CROSS JOIN LATERAL (SELECT coalesce(pg_catalog.clock_timestamp() - w.last_message_time > 5 * a.heartbeat, true) AS silent, repl_ml.worker_rests(x.node_id) AS rests,
                                       -- since what is applied now
                                       CASE WHEN w.last_error_time > x.sent_at THEN pg_catalog.rtrim(pg_catalog.split_part(w.last_error_message, E'\n', 1), '.') END AS error,
                                       EXISTS (SELECT FROM repl_ml.parked_change k WHERE k.put_aside AND k.action = 'bulk' AND k.origin_node = x.node_id) AS bulk,
                                       -- they are changes like others
                                       (SELECT pg_catalog.rtrim(pg_catalog.split_part(k.message, E'\n', 1), '.') FROM repl_ml.parked_change k
                                         WHERE k.origin_node = x.node_id AND k.schema_name = 'repl_ml' AND k.table_name = 'heartbeat' AND NOT k.put_aside ORDER BY k.id DESC LIMIT 1) AS refused) f
            CROSS JOIN LATERAL (SELECT b.* FROM (SELECT) one LEFT JOIN repl_ml.who_blocks(w.pid) b ON true) b
            CROSS JOIN LATERAL (
                  SELECT CASE WHEN w.state = 'paused' THEN 'that is paused here'
                              WHEN w.state = 'copying' THEN pg_catalog.format('table %s is being copied from it before', coalesce(w.copy_relation::text, 'after table'))
                              WHEN coalesce(w.state, 'stopped') <> 'streaming' THEN pg_catalog.format('there is no stream from it (%s)', coalesce(w.state, 'stopped')) || coalesce(', and the last one ended with: ' || f.error, '')
                              WHEN w.locked_since IS NOT NULL THEN pg_catalog.format('one of its transactions has been waiting since %s for locks of transactions of this node', pg_catalog.date_trunc('second', w.locked_since)) || coalesce(' (now ' || b.who || ')', '')
                              WHEN b.who IS NOT NULL THEN 'what it sends waits for a lock of ' || b.who
                              WHEN w.current_parked > 0 THEN pg_catalog.format('its transaction %s cannot be applied, and %s of the %s changes of it that have come are parked so far', w.current_xid, w.current_parked, w.current_changes)
                              WHEN pg_catalog.clock_timestamp() - w.current_since > a.heartbeat THEN pg_catalog.format('its transaction %s has been being applied since %s, %s changes so far', w.current_xid, pg_catalog.date_trunc('second', w.current_since), w.current_changes)
                              WHEN f.rests > 5 * a.heartbeat THEN pg_catalog.format('its apply worker here, process %s, has done nothing for %s seconds (wait event: %s)', w.pid, pg_catalog.round(EXTRACT(epoch FROM f.rests), 1),
                                                                                    coalesce((SELECT v.wait_event FROM pg_catalog.pg_stat_activity v WHERE v.pid = w.pid), 'none'))
                              WHEN f.silent THEN pg_catalog.format('nothing has come from it for %s seconds', pg_catalog.round(EXTRACT(epoch FROM pg_catalog.clock_timestamp() - w.last_message_time), 1))
                              WHEN f.refused IS NOT NULL THEN f.refused
                              WHEN f.bulk THEN 'a large transaction of it is being applied before'
                              WHEN pg_catalog.clock_timestamp() - w.last_apply_time <= 2 * a.heartbeat THEN 'what it wrote before is being applied, and more of it comes than can be applied in time'
                              WHEN f.error IS NOT NULL THEN pg_catalog.format('its stream has ended, and been begun again, with: %s', f.error) END,
                         CASE WHEN w.state = 'paused' THEN pg_catalog.format('Run SELECT repl_ml.resume_apply(%L).', x.node_name)
                              WHEN w.state = 'copying' THEN 'See how far that is with SELECT * FROM repl_ml.stat_apply.'
                              WHEN coalesce(w.state, 'stopped') <> 'streaming' THEN coalesce(CASE WHEN f.error IS NOT NULL THEN w.last_error_hint END, 'See the check "applying".')
                              WHEN w.locked_since IS NOT NULL THEN 'See who holds them with SELECT * FROM pg_stat_activity or pg_prepared_xacts; after repl_ml.apply_lock_timeout the changes that meet them are parked.'
                              WHEN b.who IS NOT NULL THEN b.remedy
                              WHEN w.current_parked > 0 THEN 'See the check "parked_changes" for why.'
                              WHEN pg_catalog.clock_timestamp() - w.current_since > a.heartbeat THEN 'See how far that is with SELECT * FROM repl_ml.stat_apply: current_changes should grow.'
                              WHEN f.rests > 5 * a.heartbeat THEN pg_catalog.format('If ps shows it as stopped (T), run kill -CONT %1$s. Otherwise run SELECT pg_terminate_backend(%1$s): it is started again.', w.pid)
                              WHEN f.silent THEN 'Check the network to that node and whether its server still works: a connection that is silent for wal_receiver_timeout is ended.'
                              WHEN f.refused IS NOT NULL THEN 'The rest of what it writes is applied. See the check "parked_changes".'
                              WHEN f.bulk OR pg_catalog.clock_timestamp() - w.last_apply_time <= 2 * a.heartbeat THEN 'See how far that is with SELECT * FROM repl_ml.stat_apply: heartbeat_age should shrink.'
                              WHEN f.error IS NOT NULL THEN coalesce(w.last_error_hint, 'See SELECT * FROM repl_ml.stat_apply, and the server''s log.')
                              ELSE pg_catalog.format('On node "%s" see the check "processes" of repl_ml.health, SHOW repl_ml.heartbeat_interval, and with SELECT * FROM repl_ml.stat_replication whether it is still reading its WAL for this node.', x.node_name) END) c (cause, remedy)
            WHERE pg_catalog.clock_timestamp() - x.sent_at > 10 * a.heartbeat) p ON true
    HAVING pg_catalog.count(s.node_id) > 0
    UNION ALL
    -- 8. changes that could not be applied
    SELECT 8, 'parked_changes', CASE WHEN c.failed > c.locked THEN 'error' WHEN c.failed > 0 OR c.lost > 0 THEN 'warning' ELSE 'ok' END,
           CASE WHEN c.failed > c.locked THEN pg_catalog.format('Changes that could not be applied here: %s, the last one because: %s.', c.failed, pg_catalog.rtrim(c.problem, '.'))
                     || CASE WHEN c.counted IS NULL THEN '' ELSE pg_catalog.format(' Because of repl_ml.parked_limit they are no longer kept for %s.', c.counted) END
                WHEN c.failed > 0 THEN pg_catalog.format('Changes that wait for locks of this node''s transactions: %s. %s', c.failed, c.locks)
                WHEN c.lost > 0 THEN pg_catalog.format('Rows that lost a conflict and wait for a decision: %s.', c.lost)
                ELSE 'None.' END
           || CASE WHEN c.discarded > 0 THEN pg_catalog.format(' Transactions of which something was discarded here in the last two days: %s.', c.discarded) ELSE '' END,
           CASE WHEN c.failed > c.locked THEN 'This node lacks them. Mend the cause: they are then tried again by themselves, or at once by SELECT repl_ml.retry_parked(id) FROM repl_ml.parked_changes.'
                WHEN c.failed > 0 THEN 'They are applied as soon as the lock is gone. See SELECT * FROM pg_stat_activity or pg_prepared_xacts for who holds it.'
                WHEN c.lost > 0 THEN 'See SELECT * FROM repl_ml.parked_changes; retry_parked(id) writes a row again, discard_parked(id) forgets it.' END
      FROM active s,
           (SELECT coalesce(pg_catalog.sum(CASE p.action WHEN 'counted' THEN (p.change->>'changes')::bigint ELSE 1 END) FILTER (WHERE p.action NOT IN ('evicted', 'kept') AND NOT p.put_aside), 0) AS failed,
                   pg_catalog.count(*) FILTER (WHERE p.action IN ('insert', 'update', 'delete') AND NOT p.put_aside AND p.sqlstate = '55P03') AS locked,
                   pg_catalog.string_agg(pg_catalog.format('%I.%I', p.schema_name, p.table_name), ', ') FILTER (WHERE p.action = 'counted') AS counted,
                   pg_catalog.count(*) FILTER (WHERE p.action IN ('evicted', 'kept')) AS lost,
                   (SELECT pg_catalog.count(*) FROM repl_ml.discarded_transaction) AS discarded,
                   (pg_catalog.array_agg(p.message ORDER BY p.id DESC) FILTER (WHERE p.action NOT IN ('evicted', 'kept') AND NOT p.put_aside AND p.sqlstate <> '55P03'))[1] AS problem,
                   (SELECT pg_catalog.string_agg(l.of_table, ' ' ORDER BY l.of_table)
                      FROM (SELECT pg_catalog.format('Of table "%s.%s": %s.', x.schema_name, x.table_name, pg_catalog.rtrim((pg_catalog.array_agg(x.message ORDER BY x.id))[1], '.')) AS of_table
                              FROM repl_ml.parked_change x WHERE x.sqlstate = '55P03' AND NOT x.put_aside GROUP BY x.schema_name, x.table_name LIMIT 10) l) AS locks
              FROM repl_ml.parked_change p) c
    UNION ALL
    -- 9. WAL that is kept for peers
    SELECT 9, 'slots', CASE WHEN pg_catalog.count(p.fault) > 0 THEN 'error' WHEN pg_catalog.count(p.node_id) > 0 THEN 'warning' ELSE 'ok' END,
           coalesce(pg_catalog.string_agg(CASE WHEN p.slot_name IS NULL THEN pg_catalog.format('Node "%s" has no slot here.', p.node_name)
                             WHEN p.wal_status = 'lost' THEN pg_catalog.format('WAL that node "%s" had not read is gone.', p.node_name)
                             WHEN p.fault IS NOT NULL THEN pg_catalog.format('The slot of node "%s" is of no use: %s', p.node_name, p.fault)
                             WHEN p.wal_status = 'unreserved' THEN pg_catalog.format('WAL that node "%s" has not read, %s, is removed at the next checkpoint.', p.node_name, pg_catalog.pg_size_pretty(p.kept))
                             ELSE pg_catalog.format('Node "%s" holds back %s of WAL.', p.node_name, pg_catalog.pg_size_pretty(p.kept)) END, ' ' ORDER BY p.node_id) FILTER (WHERE p.node_id IS NOT NULL),
                    'No member holds back more WAL than max_wal_size.'),
           CASE WHEN pg_catalog.count(p.fault) > 0 THEN 'It is made anew when the node connects, and all tables are then copied and joined.'
                WHEN pg_catalog.count(p.node_id) > 0 THEN 'Watch the disk. Start the node, or remove it with SELECT repl_ml.drop_node(...) if it will not come back.' END
      FROM active s LEFT JOIN (SELECT x.*, r.slot_name, r.wal_status, f.fault, pg_catalog.pg_wal_lsn_diff(repl_ml.wal_end(), r.restart_lsn) AS kept
                          FROM peer x LEFT JOIN pg_catalog.pg_replication_slots r ON r.slot_name = repl_ml.link_name(x.node_id)
                          LEFT JOIN repl_ml.slot_faults((SELECT pg_catalog.array_agg(y.node_id) FROM peer y)) f ON f.node_id = x.node_id) p
             ON s.state = 'ready' AND p.state = 'ready' AND (p.fault IS NOT NULL OR p.wal_status <> 'reserved')
    HAVING pg_catalog.count(s.node_id) > 0
    UNION ALL
    -- 10. tables that are not what the group's list says
    SELECT 10, 'tables', CASE WHEN pg_catalog.bool_or(t.state = 'missing') THEN 'error' WHEN pg_catalog.count(t.table_name) > 0 THEN 'warning' ELSE 'ok' END,
           coalesce(pg_catalog.string_agg(pg_catalog.format('Table %I.%I %s%s.', t.schema_name, t.table_name,
                        CASE t.state WHEN 'missing' THEN 'is not here' WHEN 'pending' THEN 'is not replicated here yet' ELSE CASE WHEN t.pending_copies = 0 THEN 'is changing its class' ELSE 'is being copied' END || CASE WHEN t.copy_rows IS NULL THEN '' ELSE pg_catalog.format(' (%s rows so far; copies that are left: %s)', t.copy_rows, t.pending_copies) END END,
                        ': ' || pg_catalog.rtrim(pg_catalog.split_part(t.problem, E'\n', 1), '.')), ' ' ORDER BY t.schema_name, t.table_name) FILTER (WHERE t.table_name IS NOT NULL),
                    'All of the group''s tables are replicated here.'),
           CASE WHEN pg_catalog.count(t.table_name) > 0 THEN 'This goes on by itself; what keeps it from that is in the column problem of repl_ml.tables.' END
      FROM active s LEFT JOIN (
           SELECT x.schema_name, x.table_name, x.state, x.pending_copies, l.problem,
                  (SELECT pg_catalog.sum(w.copy_rows) FROM repl_ml.worker_stats() w WHERE w.copy_relation = x.relid) AS copy_rows FROM unready x
             -- mostly there is none, and nothing to look for
             LEFT JOIN repl_ml.listed_tables() l ON l.schema_name = x.schema_name AND l.table_name = x.table_name OFFSET 0) t ON true
    HAVING pg_catalog.count(s.node_id) > 0
    UNION ALL
    -- 11. tables that are not the same on all members
    SELECT 11, 'table_shapes', CASE WHEN pg_catalog.count(d.said) = 0 THEN 'ok' ELSE 'warning' END,
           coalesce(pg_catalog.string_agg(d.said, ' ' ORDER BY d.schema_name, d.table_name, d.there) FILTER (WHERE d.said IS NOT NULL),
                    'As far as the other members have told, the replicated tables are the same there.'),
           CASE WHEN pg_catalog.count(d.said) > 0 THEN 'Run the ALTER or CREATE that is missing where it is missing. Changes that do not fit meanwhile are parked, and brought when the tables are the same again. All differences: SELECT * FROM repl_ml.shape_differences.' END
      FROM active s LEFT JOIN (
           SELECT x.schema_name, x.table_name, x.there,
                  CASE x.table_name WHEN '' THEN '' ELSE pg_catalog.format('Table %I.%I: ', x.schema_name, x.table_name) END
                  || pg_catalog.format('%s is %s on node "%s" and %s on %s.', CASE x.table_name WHEN '' THEN 'T' || pg_catalog.substr(x.object, 2) ELSE x.object END, x.here, l.node_name, x.there,
                       CASE pg_catalog.count(*) WHEN 1 THEN 'node ' ELSE 'nodes ' END || pg_catalog.string_agg(pg_catalog.format(CASE WHEN w.reachable THEN '"%s"' ELSE '"%s" (when it was last heard of)' END, x.node_name), ', ' ORDER BY x.node_id)) AS said
             FROM repl_ml.shape_differences x LEFT JOIN repl_ml.write_members() w ON w.node_id = x.node_id CROSS JOIN self l GROUP BY x.schema_name, x.table_name, x.object, x.here, x.there, l.node_name) d ON true
    HAVING pg_catalog.count(s.node_id) > 0
    UNION ALL
    -- 12. tables that are nobody's but this node's
    SELECT 12, 'unreplicated_tables', CASE WHEN u.tables = 0 THEN 'ok' ELSE 'warning' END,
           CASE WHEN u.tables = 0 THEN 'No table of this node has been forgotten.'
                ELSE pg_catalog.format('Tables of this node that the group does not replicate: %s%s.', u.first,
                     CASE WHEN u.tables > 5 THEN pg_catalog.format(' and %s more', u.tables - 5) ELSE '' END) END,
           CASE WHEN u.tables > 0 THEN 'Run SELECT repl_ml.add_table(...), or SELECT repl_ml.keep_local(...) for one that is meant for this node only. All of them: SELECT * FROM repl_ml.unreplicated_tables.' END
      FROM active s, (SELECT pg_catalog.count(*) AS tables, pg_catalog.string_agg(x.relation::text, ', ' ORDER BY x.place) FILTER (WHERE x.place <= 5) AS first
                        FROM (SELECT pg_catalog.format('%I.%I', t.schema_name, t.table_name) AS relation, pg_catalog.row_number() OVER (ORDER BY t.schema_name, t.table_name) AS place
                                FROM repl_ml.unreplicated_tables t) x) u
     WHERE EXISTS (SELECT FROM peer)
    UNION ALL
    -- 13. clocks: what a node sends cannot be from the future; of a clock that is behind its own node tells
    SELECT 13, 'clock_skew', CASE WHEN pg_catalog.bool_or(p.differs > pg_catalog.current_setting('repl_ml.max_clock_skew')::interval) THEN 'error' WHEN pg_catalog.count(p.node_id) > 0 THEN 'warning' ELSE 'ok' END,
           coalesce(pg_catalog.string_agg(pg_catalog.format('The clock of node "%s" is at least %s seconds %s this one''s.', p.node_name, pg_catalog.round(EXTRACT(epoch FROM p.differs), 1), p.direction), ' ' ORDER BY p.node_id) FILTER (WHERE p.node_id IS NOT NULL),
                    'No other member''s clock is known to differ.'),
           CASE WHEN pg_catalog.count(p.node_id) > 0 THEN 'Let NTP set both clocks: of concurrent writes the node with the clock ahead wins.' END
      FROM active s LEFT JOIN (SELECT x.*, c.direction, c.differs
             FROM repl_ml.local_node l JOIN repl_ml.heartbeat o ON o.node_id = l.node_id CROSS JOIN peer x JOIN repl_ml.heartbeat h ON h.node_id = x.node_id
             LEFT JOIN repl_ml.worker_stats() w ON w.peer = x.node_id
            CROSS JOIN LATERAL (VALUES ('ahead of', greatest(h.sent_at - pg_catalog.clock_timestamp(), repl_ml.counter(o.behind, x.node_id) * '1 us'::interval)),
                                       ('behind', CASE WHEN w.state = 'streaming' THEN repl_ml.counter(h.behind, l.node_id) * '1 us'::interval END)) c(direction, differs)) p ON p.differs > '1 s'
    HAVING pg_catalog.count(s.node_id) > 0
    UNION ALL
    -- 14. what the others read
    SELECT 14, 'publication', CASE WHEN p.fault IS NULL THEN 'ok' ELSE 'error' END,
           CASE WHEN p.fault IS NULL THEN 'The publication "repl_ml" is as the other members need it.'
                ELSE pg_catalog.format('The publication "repl_ml" %s.', p.fault) END,
           CASE WHEN p.fault IS NOT NULL THEN 'It is made anew within seconds, and the other members copy this node''s tables again.' END
      FROM active s, repl_ml.publication_fault() p(fault)
    UNION ALL
    -- 15. rows that cannot be sent, here and elsewhere
    SELECT 15, 'unsent', CASE WHEN u.here IS NOT NULL THEN 'error' WHEN u.elsewhere IS NOT NULL THEN 'warning' ELSE 'ok' END,
           coalesce(nullif(pg_catalog.concat_ws(' ', u.here, u.elsewhere), ''), 'Every row can be sent.'),
           CASE WHEN u.here IS NOT NULL THEN 'Change or delete the row on that node. What then is sent heals it; so does the copy of the table that is made once in a while. See SELECT * FROM repl_ml.unsent.'
                WHEN u.elsewhere IS NOT NULL THEN 'See the check "unsent" on that node.' END
      FROM active s, LATERAL (SELECT
           nullif((SELECT pg_catalog.string_agg(pg_catalog.format('Node "%s" could not send %s of table %I.%I: %s.', coalesce(m.node_name, n.node_id::text::name),
                                 pg_catalog.format('row %s', n.key), n.schema_name, n.table_name, pg_catalog.rtrim(n.message, '.')), ' ' ORDER BY n.noted_at, n.key)
                     FROM (SELECT * FROM repl_ml.unsent x ORDER BY x.noted_at LIMIT 5) n LEFT JOIN repl_ml.member m ON m.node_id = n.node_id), '') AS here,
           nullif((SELECT pg_catalog.string_agg(pg_catalog.format('Node "%s" lacks rows that could not be sent to it: %s.', p.node_name, h.lacks), ' ')
                     FROM peer p JOIN repl_ml.heartbeat h ON h.node_id = p.node_id WHERE h.lacks IS NOT NULL), '') AS elsewhere) u
    UNION ALL
    -- 16. prepared transactions
    SELECT 16, 'prepared_transactions', CASE WHEN pg_catalog.count(x.gid) = 0 THEN 'ok' ELSE 'warning' END,
           CASE WHEN pg_catalog.count(x.gid) = 0 THEN 'None is left.'
                ELSE pg_catalog.format('%s, the oldest of %s: they hold locks, and the removal of deleted rows'' tombstones on all nodes.',
                     pg_catalog.string_agg(pg_catalog.quote_literal(x.gid), ', ' ORDER BY x.prepared), pg_catalog.date_trunc('second', pg_catalog.min(x.prepared))) END,
           CASE WHEN pg_catalog.count(x.gid) > 0 THEN 'Run COMMIT PREPARED or ROLLBACK PREPARED for those that nobody will finish.' END
      FROM active s LEFT JOIN pg_catalog.pg_prepared_xacts x ON x.database = pg_catalog.current_database() AND pg_catalog.clock_timestamp() - x.prepared > 10 * s.heartbeat
    HAVING pg_catalog.count(s.node_id) > 0
    UNION ALL
    -- 17. who is connected, and could not connect anew
    SELECT 17, 'login_roles', CASE WHEN pg_catalog.count(f.rolname) = 0 THEN 'ok' ELSE 'warning' END,
           CASE WHEN pg_catalog.count(f.rolname) = 0 THEN 'The roles with which other members are connected may connect again.'
                ELSE pg_catalog.format('%s: when the connection ends there is no other.', pg_catalog.string_agg(f.said, '; ' ORDER BY f.rolname, f.command)) END,
           CASE WHEN pg_catalog.count(f.rolname) > 0 THEN pg_catalog.format('Run %s.', pg_catalog.string_agg(f.command, '; ' ORDER BY f.rolname, f.command)) END
      FROM active s LEFT JOIN (
           SELECT u.rolname, pg_catalog.format(c.command, u.rolname, pg_catalog.current_database()) AS command,
                  pg_catalog.format('Role "%s", of node%s %s, %s', u.rolname, CASE WHEN pg_catalog.count(*) > 1 THEN 's' END,
                                    pg_catalog.string_agg(pg_catalog.format('"%s"', x.node_name), ', ' ORDER BY x.node_id), c.said) AS said
             FROM peer x JOIN pg_catalog.pg_replication_slots r ON r.slot_name = repl_ml.link_name(x.node_id)
             JOIN pg_catalog.pg_stat_activity a ON a.pid = r.active_pid JOIN pg_catalog.pg_roles u ON u.oid = a.usesysid
            CROSS JOIN LATERAL (VALUES (NOT u.rolcanlogin, 'may not log in', 'ALTER ROLE %1$I LOGIN'),
                                       (NOT u.rolreplication AND NOT u.rolsuper, 'lacks the attribute REPLICATION', 'ALTER ROLE %1$I REPLICATION'),
                                       (NOT pg_catalog.pg_has_role(u.oid, 'repl_ml_replication', 'USAGE'), 'is not in repl_ml_replication', 'GRANT repl_ml_replication TO %1$I'),
                                       (NOT pg_catalog.has_database_privilege(u.oid, pg_catalog.current_database()::text, 'CONNECT'), 'may not connect to this database', 'GRANT CONNECT ON DATABASE %2$I TO %1$I'),
                                       (u.rolvaliduntil < pg_catalog.clock_timestamp(), 'has a password that is valid no more', 'ALTER ROLE %1$I VALID UNTIL ''infinity'''),
                                       -- each may want a second connection, to copy or to ask
                                       (NOT u.rolsuper AND u.rolconnlimit BETWEEN 0 AND 2 * (SELECT pg_catalog.count(*) FROM peer) - 1, 'has too low a connection limit', 'ALTER ROLE %1$I CONNECTION LIMIT -1')) c(is_so, said, command)
            WHERE c.is_so GROUP BY u.rolname, c.said, c.command) f ON true
    HAVING pg_catalog.count(s.node_id) > 0
    UNION ALL
    -- 18. tables that differ, as far as somebody has looked
    SELECT 18, 'consistency', CASE WHEN c.bad IS NOT NULL OR u.bad IS NOT NULL THEN 'error' ELSE 'ok' END,
           CASE WHEN c.bad IS NOT NULL OR u.bad IS NOT NULL THEN pg_catalog.concat_ws(' ',
                     'Tables that were not the same on all members when they were last compared here: ' || c.bad || '.',
                     'Tables whose triggers were disabled or dropped here, so that what was written reached nobody, and which have not been found equal since: ' || u.bad || '.')
                WHEN NOT e.compared THEN 'No table has been compared here.'
                ELSE 'No table differed when it was last compared here.' END,
           CASE WHEN c.bad IS NOT NULL OR u.bad IS NOT NULL THEN 'See SELECT * FROM repl_ml.diff_rows(...); repl_ml.repair_table(...) makes them equal. Then compare them again with repl_ml.verify_table(...).' END
      FROM active s,
           -- sorted is only what may differ, and what is found of each table is looked up, which mostly ends at once
           (SELECT pg_catalog.string_agg(pg_catalog.format('%I.%I (%s rows, %s%s)', l.schema_name, l.table_name, l.differing_rows, pg_catalog.date_trunc('second', l.started_at), CASE WHEN l.by_node IS NULL THEN '' ELSE pg_catalog.format(', by node "%s"', l.by_node) END), ', ' ORDER BY l.schema_name, l.table_name) FILTER (WHERE l.status = 'differs') AS bad
              FROM (SELECT DISTINCT ON (x.schema_name, x.table_name) x.* FROM compared x
                     WHERE (x.schema_name, x.table_name) IN (SELECT y.schema_name, y.table_name FROM compared y WHERE y.status = 'differs')
                       AND (SELECT r.state = 'enrolled' FROM repl_ml.replicated_table r WHERE r.schema_name = x.schema_name AND r.table_name = x.table_name)
                     ORDER BY x.schema_name, x.table_name, x.started_at DESC) l) c,
           (SELECT EXISTS (SELECT FROM compared x WHERE (SELECT r.state = 'enrolled' FROM repl_ml.replicated_table r WHERE r.schema_name = x.schema_name AND r.table_name = x.table_name)) AS compared) e,
           (SELECT pg_catalog.string_agg(pg_catalog.format('%I.%I', k.schema_name, k.table_name), ', ' ORDER BY k.schema_name, k.table_name) AS bad
              FROM (SELECT x.schema_name, x.table_name FROM repl_ml.consistency_check x
                     WHERE (x.schema_name, x.table_name) IN (SELECT y.schema_name, y.table_name FROM repl_ml.consistency_check y WHERE y.unwatched) GROUP BY 1, 2
                    HAVING pg_catalog.max(x.id) FILTER (WHERE x.unwatched) > coalesce(pg_catalog.max(x.id) FILTER (WHERE x.status = 'consistent'), 0)) k
             WHERE (SELECT r.state = 'enrolled' FROM repl_ml.replicated_table r WHERE r.schema_name = k.schema_name AND r.table_name = k.table_name)) u
     WHERE s.state = 'ready'
    UNION ALL
    -- 19. tables that are compared by themselves
    SELECT 19, 'verify_schedule', CASE WHEN v.state = 'refused' OR v.overdue IS NOT NULL THEN 'warning' ELSE 'ok' END,
           CASE WHEN v.state = 'off' AND v.compared = 0 THEN 'Tables are not compared by themselves.'
                WHEN v.state = 'refused' THEN 'Tables cannot be compared by themselves, as no background worker is free.'
                WHEN v.overdue IS NOT NULL THEN pg_catalog.format('Comparisons of tables are late: %s.', v.overdue)
                WHEN v.never IS NOT NULL THEN pg_catalog.format('Tables that no scheduled comparison has found the same on all members so far: %s.', v.never)
                ELSE pg_catalog.format('Each table has been found the same on all members, in a comparison of %s or later.', pg_catalog.date_trunc('second', v.oldest)) END,
           CASE WHEN v.state = 'refused' THEN 'Raise max_worker_processes; SELECT * FROM repl_ml.check_setup() says how far.'
                WHEN v.overdue IS NOT NULL THEN 'See SELECT * FROM repl_ml.stat_progress_verify on each node: if it rests, raise repl_ml.verify_max_rate or repl_ml.verify_schedule; if it is paused, see which member lags.' END
      FROM active s, LATERAL (SELECT repl_ml.verifier_state() AS state, pg_catalog.count(d.compared_at) AS compared, pg_catalog.min(d.good_at) AS oldest,
                  pg_catalog.string_agg(pg_catalog.format('%I.%I', d.schema_name, d.table_name), ', ' ORDER BY d.schema_name, d.table_name) FILTER (WHERE d.good_at IS NULL) AS never,
                  pg_catalog.string_agg(pg_catalog.format('%I.%I (%s)', d.schema_name, d.table_name, coalesce('last of ' || pg_catalog.date_trunc('second', d.compared_at)::text, 'none so far')), ', ' ORDER BY d.schema_name, d.table_name) FILTER (WHERE d.is_late) AS overdue
             FROM (SELECT r.schema_name, r.table_name, c.compared_at, c.good_at, coalesce(c.compared_at, (SELECT p.since FROM plan p)) < (SELECT p.late_before FROM plan p) AS is_late
                     FROM repl_ml.replicated_table r
                     LEFT JOIN (SELECT x.schema_name, x.table_name, pg_catalog.max(x.compared_at) AS compared_at, pg_catalog.max(x.good_at) AS good_at FROM repl_ml.verification x GROUP BY 1, 2) c
                            ON c.schema_name = r.schema_name AND c.table_name = r.table_name
                    WHERE r.state = 'enrolled') d) v
     WHERE s.state = 'ready'
    UNION ALL
    -- 20. who may write strong tables, where there are any
    SELECT 20, 'strong_tables', CASE WHEN l.refusal IS NOT NULL OR u.unclean THEN 'error' WHEN k.kept IS NOT NULL THEN 'warning' ELSE 'ok' END,
           CASE WHEN u.unclean THEN 'Another node has taken over strong tables from this one. They are made here what they are on the other members, and cannot be read or written until then.'
                WHEN l.refusal IS NOT NULL THEN pg_catalog.format('Strong tables could not be written here when that was last tried. %s', l.refusal)
                WHEN k.kept IS NOT NULL THEN pg_catalog.format('Another node waits to write strong tables; transactions here have written or locked them and do not end: %s.', k.kept)
                WHEN l.writable THEN 'This node writes strong tables.'
                WHEN l.holder IS NULL THEN 'Nobody has written strong tables from here yet.'
                ELSE pg_catalog.format('Strong tables are written where they are needed; this node last gave them to node "%s".', l.holder) END,
           CASE WHEN u.unclean THEN 'This goes on by itself when a member that has all of them can be reached; prepared transactions of before have to be rolled back. What keeps a copy from coming is in the column problem of repl_ml.tables.'
                WHEN l.refusal IS NOT NULL THEN 'When the nodes that are named can be reached again it goes on by itself. For a node that will not come back, run SELECT repl_ml.drop_node(...) on a member that is left.'
                WHEN k.kept IS NOT NULL THEN 'Have these sessions commit, or end them with pg_terminate_backend(); of prepared transactions run COMMIT PREPARED or ROLLBACK PREPARED.' END
      FROM active s CROSS JOIN repl_ml.strong_lease l CROSS JOIN repl_ml.lease_state u, LATERAL (
           SELECT pg_catalog.string_agg(coalesce('process ' || k.pid, 'a prepared one'), ', ' ORDER BY k.pid) AS kept
             FROM pg_catalog.pg_locks k LEFT JOIN pg_catalog.pg_stat_activity a ON a.pid = k.pid
            WHERE k.locktype = 'advisory' AND k.database = (SELECT d.oid FROM pg_catalog.pg_database d WHERE d.datname = pg_catalog.current_database())
              AND k.classid = 0 AND k.objid = 0 AND k.objsubid = 5 AND k.mode = 'ShareLock' AND k.granted
              AND l.nodes_waiting > 0 AND (k.pid IS NULL OR pg_catalog.clock_timestamp() - a.xact_start > '10 s')) k
     WHERE s.state = 'ready' AND EXISTS (SELECT FROM repl_ml.replicated_table t WHERE t.class = 'strong' AND t.state = 'enrolled')
    UNION ALL
    -- 21. sequences
    SELECT 21, 'sequences', CASE WHEN q.gone IS NOT NULL THEN 'error' WHEN coalesce(q.apart, o.own) IS NOT NULL OR q.without IS NOT NULL OR q.near IS NOT NULL THEN 'warning' ELSE 'ok' END,
           CASE WHEN q.gone IS NOT NULL OR coalesce(q.apart, o.own) IS NOT NULL OR q.without IS NOT NULL OR q.near IS NOT NULL THEN pg_catalog.concat_ws(' ',
                     'Sequences of which no number is left here, so that nextval fails: ' || q.gone || '.', 'Sequences that each node still gives numbers of by itself: ' || nullif(pg_catalog.concat_ws(', ', q.apart, o.own), '') || '.', 'Sequences of which this node has no numbers since its start: ' || q.without || '.',
                     'Sequences with few numbers left: ' || q.near || '.')
                WHEN q.sequences = 0 THEN 'No sequence is shared.' ELSE pg_catalog.format('No number is given twice of %s sequences.', q.sequences) END,
           nullif(pg_catalog.concat_ws(' ', CASE WHEN coalesce(q.apart, o.own) IS NOT NULL THEN 'They are the group''s by themselves when what is in the way is gone. See SELECT * FROM repl_ml.sequences.' END,
                CASE WHEN q.without IS NOT NULL THEN 'More than half of the members have to be reached: see the other checks.' END,
                CASE WHEN q.near IS NOT NULL OR q.gone IS NOT NULL THEN 'On all nodes make the columns bigint, and run ALTER SEQUENCE ... AS bigint.' END), '')
      FROM active s, LATERAL (SELECT pg_catalog.count(*) AS sequences,
                  pg_catalog.string_agg(pg_catalog.format('%I.%I (%s)', x.schema_name, x.sequence_name, x.obstacle), ', ' ORDER BY x.schema_name, x.sequence_name) FILTER (WHERE x.state = 'pending' AND x.sequence IS NULL) AS apart,
                  pg_catalog.string_agg(pg_catalog.format('%I.%I', x.schema_name, x.sequence_name) || coalesce(' (' || x.obstacle || ')', ''), ', ' ORDER BY x.schema_name, x.sequence_name) FILTER (WHERE x.state = 'waiting') AS without,
                  pg_catalog.string_agg(pg_catalog.format('%I.%I (%s)', x.schema_name, x.sequence_name, x.numbers_left), ', ' ORDER BY x.schema_name, x.sequence_name) FILTER (WHERE x.percent_left < 10 AND NOT (x.numbers_left = 0 AND x.in_hand = 0)) AS near,
                  pg_catalog.string_agg(pg_catalog.format('%I.%I', x.schema_name, x.sequence_name), ', ' ORDER BY x.schema_name, x.sequence_name) FILTER (WHERE x.numbers_left = 0 AND x.in_hand = 0) AS gone
             FROM repl_ml.sequences x) q,
           LATERAL (SELECT pg_catalog.string_agg(DISTINCT pg_catalog.format('%s (of table %s: %s)', o.sequence, o.relation, o.hint), ', ') AS own
                      FROM repl_ml.own_numbers(NULL) o WHERE repl_ml.is_published(o.relation)) o
     WHERE s.state = 'ready'
    UNION ALL
    -- 22. changes of the schema
    SELECT 22, 'schema_changes', CASE WHEN q.parked IS NOT NULL THEN 'error' WHEN q.late IS NOT NULL THEN 'warning' ELSE 'ok' END,
           CASE WHEN q.parked IS NOT NULL THEN pg_catalog.format('Changes of the schema that could not be run here: %s.', q.parked)
                WHEN q.late IS NOT NULL THEN pg_catalog.format('Changes of the schema that other members have not run: %s.', q.late)
                WHEN q.number IS NULL THEN 'No change of the schema has been run here.'
                ELSE pg_catalog.format('All members have run the changes of the schema up to number %s.', q.number) END,
           CASE WHEN q.parked IS NOT NULL THEN 'Mend the cause: the whole transaction is tried again by itself, or at once by SELECT repl_ml.retry_parked(id) FROM repl_ml.parked_changes WHERE table_name = ''schema_change''. What fits the tables goes on meanwhile.'
                WHEN q.late IS NOT NULL THEN 'See SELECT * FROM repl_ml.health on these nodes; a node that is down runs them when it is back.' END
      FROM active s, LATERAL (SELECT pg_catalog.max(c.number) AS number,
                  pg_catalog.string_agg(pg_catalog.format('number %s, %s by role %s on node "%s" (%s)', c.number, c.command_tag, c.role_name, c.node_name, pg_catalog.rtrim(c.error, '.')), ', ' ORDER BY c.number) FILTER (WHERE c.state = 'parked') AS parked,
                  pg_catalog.string_agg(pg_catalog.format('number %s, %s (%s)', c.number, c.command_tag, pg_catalog.array_to_string(c.missing_on, ', ')), ', ' ORDER BY c.number)
                      FILTER (WHERE c.missing_on <> '{}' AND c.changed_at < pg_catalog.clock_timestamp() - '10 s'::interval) AS late
             FROM repl_ml.schema_changes c WHERE c.number > (SELECT pg_catalog.max(x.number) FROM repl_ml.schema_change x) - 100 OR c.state <> 'run') q
     WHERE s.state = 'ready'
    UNION ALL
    -- 23. this node's own process, without which it sends no heartbeats
    SELECT 23, 'processes', CASE WHEN p.rests IS NULL THEN 'ok' ELSE 'error' END,
           CASE WHEN p.rests IS NULL THEN 'The supervisor of this node does its work.'
                ELSE pg_catalog.format(CASE WHEN p.pid IS NULL THEN 'There has been no supervisor for %2$s seconds' WHEN b.who IS NOT NULL THEN 'The supervisor, process %1$s, has not come round for %2$s seconds, as it waits for a lock of %3$s'
                                            ELSE 'The supervisor, process %1$s, has not come round for %2$s seconds (wait event: %3$s)' END, p.pid, pg_catalog.round(EXTRACT(epoch FROM p.rests), 1),
                                       coalesce(b.who, (SELECT a.wait_event FROM pg_catalog.pg_stat_activity a WHERE a.pid = p.pid), 'none')) || ': this node sends no heartbeats, and starts no workers.' END,
           CASE WHEN p.rests IS NULL THEN NULL
                WHEN p.pid IS NULL THEN 'It is started again by itself: see the server''s log for why it ends, or raise max_worker_processes if there is no room for it.'
                WHEN b.who IS NOT NULL THEN b.remedy
                ELSE pg_catalog.format('If ps shows it as stopped (T), run kill -CONT %1$s. Otherwise run SELECT pg_terminate_backend(%1$s): it is started again.', p.pid) END
      FROM active s CROSS JOIN LATERAL (
           SELECT (SELECT w.pid FROM repl_ml.worker_stats() w WHERE w.peer = 0) AS pid, CASE WHEN r.rests > greatest(10 * s.heartbeat, '3 s') THEN r.rests END AS rests FROM repl_ml.worker_rests(0) r (rests)) p
     CROSS JOIN LATERAL (SELECT b.* FROM (SELECT) one LEFT JOIN repl_ml.who_blocks(p.pid) b ON p.rests IS NOT NULL) b)
    SELECT f.check_name, f.status, f.detail, f.hint FROM finding f ORDER BY f.place;
    END
    $$;
COMMENT ON FUNCTION repl_ml.checks() IS 'the rows of the view repl_ml.health';

CREATE VIEW repl_ml.health AS
    SELECT c.check_name, c.status, c.detail, c.hint FROM repl_ml.checks() c;
COMMENT ON VIEW repl_ml.health IS
    'how this node and its group are: one row for each check, with status ok, warning (look into it) or error (something does not work, now), what it is (detail) and what to do (hint); ask every node';

--
-- Triggers of the replicated catalogs, and privileges
--
DO $$
DECLARE
    t regclass;
BEGIN
    FOREACH t IN ARRAY '{repl_ml.member, repl_ml.replicated_table, repl_ml.heartbeat, repl_ml.collection, repl_ml.conflict_policy, repl_ml.table_shape, repl_ml.invitation, repl_ml.verification, repl_ml.group_sequence, repl_ml.sequence_use, repl_ml.schema_change, repl_ml.peer_start}'::regclass[] LOOP
        EXECUTE pg_catalog.format('CREATE TRIGGER zz_repl_ml_update BEFORE UPDATE ON %s FOR EACH ROW EXECUTE FUNCTION repl_ml.stamp_update()', t);
        EXECUTE pg_catalog.format('ALTER TABLE %s ENABLE ALWAYS TRIGGER zz_repl_ml_update', t);
    END LOOP;
END
$$;

