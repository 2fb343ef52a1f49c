--
-- Metrics: what the views say, as numbers
--

-- One row each, so that an exporter's files can be written from them: monitoring/exporters.sql
CREATE VIEW repl_ml.metric_families AS
    SELECT f.family::name, f.labels::text[], ('repl_ml_' || f.family || '_' || v.metric)::text AS name, v.metric::name, v.type::text, v.help::text
      FROM (VALUES ('group', '{group_name,node_name,version}'), ('node', '{}'), ('member', '{peer}'), ('replication', '{peer}'), ('apply', '{peer}'), ('network', '{peer}'), ('write', '{level}'),
                   ('conflict', '{schema,table,type,resolution}'), ('parked', '{schema,table}'), ('table', '{state}'), ('sequence', '{state}'), ('verification', '{schema,table}'), ('health', '{check}')) f (family, labels)
      JOIN (VALUES
        ('group', 'info', 'gauge', 'Always 1: which group and node this database is, and the version of repl_ml.'),
        ('node', 'ready', 'gauge', '1 if this node takes part in its group.'),
        ('node', 'members', 'gauge', 'Members of the group, this node included.'),
        ('node', 'members_reachable', 'gauge', 'Members that count for commits now, this node included.'),
        ('node', 'unacknowledged_transactions', 'gauge', 'Transactions of this node that are visible and that their members have not acknowledged.'),
        ('node', 'put_aside_changes', 'gauge', 'Changes that are put aside to be applied soon.'),
        ('node', 'discarded_transactions', 'gauge', 'Transactions of which something was discarded here in the last two days.'),
        ('member', 'reachable', 'gauge', '1 if the peer has spoken within two heartbeats, and counts for commits.'),
        ('member', 'silent_seconds', 'gauge', 'For how long the peer has not spoken.'),
        ('replication', 'streaming', 'gauge', '1 if the peer reads what this node writes, and has caught up.'),
        ('replication', 'paused', 'gauge', '1 if the peer does not read because that is paused there.'),
        ('replication', 'lag_seconds', 'gauge', 'Age of the oldest commit of this node that the peer has not applied; 0 if there is none.'),
        ('replication', 'heartbeat_lag_seconds', 'gauge', 'Age of the newest heartbeat of this node that the peer is known to have applied.'),
        ('replication', 'lag_transactions', 'gauge', 'Transactions of this node that the peer has not applied.'),
        ('replication', 'lag_bytes', 'gauge', 'WAL of this node that the peer has not confirmed.'),
        ('replication', 'wal_kept_bytes', 'gauge', 'WAL that this node keeps for the peer.'),
        ('replication', 'slot_lost', 'gauge', '1 if WAL that the peer had not read is gone; what differs is then copied.'),
        ('replication', 'unreachable_seconds', 'gauge', 'For how long the peer has been out of reach; 0 if it is in reach.'),
        ('replication', 'sent_bytes_total', 'counter', 'Bytes of changes that were sent to the peer.'),
        ('replication', 'reconnects_total', 'counter', 'How often the peer has connected again.'),
        ('apply', 'streaming', 'gauge', '1 if what the peer writes is applied here.'),
        ('apply', 'paused', 'gauge', '1 if that is paused here.'),
        ('apply', 'failing', 'gauge', '1 if there is an error because of which nothing of the peer is applied.'),
        ('apply', 'heartbeat_age_seconds', 'gauge', 'Age of the newest write of the peer that is applied here.'),
        ('apply', 'tables_to_copy', 'gauge', 'Tables that are still to be copied from the peer.'),
        ('apply', 'transactions_total', 'counter', 'Transactions of the peer that were applied.'),
        ('apply', 'changes_total', 'counter', 'Rows of the peer that were applied.'),
        ('apply', 'conflicts_total', 'counter', 'Conflicts with what the peer wrote.'),
        ('apply', 'parked_total', 'counter', 'Changes of the peer that could not be applied when they came.'),
        ('apply', 'retries_total', 'counter', 'Transactions of the peer that were tried again.'),
        ('apply', 'errors_total', 'counter', 'Errors that ended the stream of the peer.'),
        ('network', 'round_trip_seconds', 'gauge', 'Last round trip to the peer, over the connection by which its changes come.'),
        ('network', 'round_trip_p99_seconds', 'gauge', 'What 99 of a hundred of the last round trips were below.'),
        ('network', 'clock_offset_seconds', 'gauge', 'By how much the clock of the peer is ahead of that of this server.'),
        ('network', 'clock_uncertainty_seconds', 'gauge', 'By how much that can be wrong.'),
        ('network', 'unanswered_seconds', 'gauge', 'For how long the peer has not answered whether it is there; 0 if it has.'),
        ('network', 'pings_lost_total', 'counter', 'How often the peer has not answered that before the connection ended.'),
        ('network', 'heartbeats_late_total', 'counter', 'Heartbeats of the peer that came late.'),
        ('network', 'heartbeats_lost_total', 'counter', 'Gaps in the heartbeats of the peer, after which the link was made anew.'),
        ('network', 'received_bytes_total', 'counter', 'Bytes of changes that have come from the peer.'),
        ('write', 'acknowledged_total', 'counter', 'Commits that were acknowledged.'),
        ('write', 'refused_total', 'counter', 'Commits that were refused, as too few members could be reached.'),
        ('write', 'timeouts_total', 'counter', 'Commits that were given up after repl_ml.write_timeout: they are here, and not known to be elsewhere.'),
        ('write', 'cancelled_total', 'counter', 'Commits whose wait was cancelled: they are here, and not known to be elsewhere.'),
        ('write', 'parked_total', 'counter', 'Commits of which too few members could apply all.'),
        ('write', 'wait_seconds_total', 'counter', 'Time that acknowledged commits have waited.'),
        ('write', 'waiting', 'gauge', 'Commits that wait to be acknowledged.'),
        ('write', 'oldest_wait_seconds', 'gauge', 'For how long the one that waits longest has been waiting.'),
        ('conflict', 'resolved_total', 'counter', 'Conflicts that were resolved here.'),
        ('conflict', 'last_hour', 'gauge', 'How many of them were found in the last sixty minutes.'),
        ('conflict', 'last_timestamp_seconds', 'gauge', 'When the last of them was found.'),
        ('parked', 'changes', 'gauge', 'Changes that could not be applied here, and that this node lacks.'),
        ('parked', 'oldest_timestamp_seconds', 'gauge', 'Since when the oldest of them is parked.'),
        ('table', 'listed', 'gauge', 'Tables of the group in this state here.'),
        ('table', 'different', 'gauge', 'Tables of the group in this state that are not the same on some member.'),
        ('sequence', 'listed', 'gauge', 'Sequences of the group in this state here.'),
        ('sequence', 'least_left_ratio', 'gauge', 'What is left of all numbers of the one of them that has least left, 0 to 1.'),
        ('sequence', 'least_in_hand', 'gauge', 'How many numbers this node can give of one of them without asking, at least.'),
        ('verification', 'consistent', 'gauge', '1 if the last comparison found no difference.'),
        ('verification', 'differing_rows', 'gauge', 'Rows that differed in the last comparison.'),
        ('verification', 'last_timestamp_seconds', 'gauge', 'When the last comparison began.'),
        ('verification', 'last_good_timestamp_seconds', 'gauge', 'When the last comparison that found no difference began.'),
        ('health', 'status', 'gauge', 'What the check of repl_ml.health says: 0 ok, 1 warning, 2 error.')) v (family, metric, type, help) USING (family);
COMMENT ON VIEW repl_ml.metric_families IS
    'what repl_ml.metrics can show: one row for each metric, with the labels that its family has';

-- A function, so that a session plans each family once, and who asks for one pays for no other
CREATE FUNCTION repl_ml.samples(of_family name, OUT labels jsonb, OUT metric name, OUT value float8)
    RETURNS SETOF record
    LANGUAGE plpgsql STABLE STRICT SECURITY DEFINER ROWS 30 SET search_path = pg_catalog, pg_temp SET jit = off
    AS $$
    #variable_conflict use_column
    BEGIN
        CASE of_family
        WHEN 'group' THEN RETURN QUERY
            SELECT pg_catalog.jsonb_build_object('group_name', l.group_name, 'node_name', l.node_name, 'version', e.extversion), 'info'::name, 1::float8
              FROM repl_ml.local_node l, pg_catalog.pg_extension e WHERE e.extname = 'repl_ml';
        WHEN 'node' THEN RETURN QUERY
            SELECT '{}'::jsonb, v.metric::name, v.value::float8
              FROM repl_ml.local_node l
             CROSS JOIN (SELECT pg_catalog.count(*) AS members, pg_catalog.count(*) FILTER (WHERE w.reachable) AS reachable FROM repl_ml.write_members() w) m
             CROSS JOIN (SELECT CASE WHEN pg_catalog.bool_and(u.transactions IS NOT NULL) THEN pg_catalog.sum(u.transactions) END AS transactions FROM repl_ml.unacknowledged() u) u
             CROSS JOIN LATERAL (VALUES ('ready', (l.state = 'ready')::integer::float8), ('members', m.members), ('members_reachable', m.reachable), ('unacknowledged_transactions', u.transactions),
                    ('put_aside_changes', (SELECT pg_catalog.count(*) FROM repl_ml.parked_change p WHERE p.put_aside)),
                    ('discarded_transactions', (SELECT pg_catalog.count(*) FROM repl_ml.discarded_transaction))) v (metric, value);
        WHEN 'member' THEN RETURN QUERY
            SELECT pg_catalog.jsonb_build_object('peer', n.node_name), v.metric::name, v.value::float8
              FROM repl_ml.nodes n CROSS JOIN LATERAL (VALUES ('reachable', n.reachable::integer::float8), ('silent_seconds', EXTRACT(epoch FROM n.silent_for))) v (metric, value)
             WHERE NOT n.is_local AND n.state <> 'dropped';
        WHEN 'replication' THEN RETURN QUERY
            SELECT pg_catalog.jsonb_build_object('peer', r.node_name), v.metric::name, v.value::float8
              FROM repl_ml.stat_replication r
             CROSS JOIN LATERAL (VALUES ('streaming', (r.state = 'streaming')::integer::float8), ('paused', (r.state = 'paused')::integer),
                    ('lag_seconds', CASE WHEN r.lag_since IS NOT NULL THEN greatest(EXTRACT(epoch FROM pg_catalog.clock_timestamp() - r.lag_since), 0) WHEN r.transactions_behind = 0 THEN 0 END),
                    ('heartbeat_lag_seconds', EXTRACT(epoch FROM r.heartbeat_lag)), ('lag_transactions', r.transactions_behind), ('lag_bytes', r.lag_bytes), ('wal_kept_bytes', r.wal_kept),
                    ('slot_lost', (r.wal_status = 'lost')::integer), ('unreachable_seconds', coalesce(EXTRACT(epoch FROM pg_catalog.clock_timestamp() - r.unreachable_since), 0)),
                    ('sent_bytes_total', r.sent_bytes), ('reconnects_total', r.reconnects)) v (metric, value);
        WHEN 'apply' THEN RETURN QUERY
            SELECT pg_catalog.jsonb_build_object('peer', a.node_name), v.metric::name, v.value::float8
              FROM repl_ml.stat_apply a
             CROSS JOIN LATERAL (VALUES ('streaming', (a.state = 'streaming')::integer::float8), ('paused', (a.state = 'paused')::integer), ('failing', (a.error_message IS NOT NULL)::integer),
                    ('heartbeat_age_seconds', EXTRACT(epoch FROM a.heartbeat_age)), ('tables_to_copy', a.tables_to_copy), ('transactions_total', a.transactions), ('changes_total', a.changes),
                    ('conflicts_total', a.conflicts), ('parked_total', a.parked), ('retries_total', a.retries), ('errors_total', a.errors)) v (metric, value);
        WHEN 'network' THEN RETURN QUERY
            SELECT pg_catalog.jsonb_build_object('peer', n.node_name), v.metric::name, v.value::float8
              FROM repl_ml.stat_network n
             CROSS JOIN LATERAL (VALUES ('round_trip_seconds', EXTRACT(epoch FROM n.round_trip)), ('round_trip_p99_seconds', EXTRACT(epoch FROM n.round_trip_p99)),
                    ('clock_offset_seconds', EXTRACT(epoch FROM n.clock_offset)), ('clock_uncertainty_seconds', EXTRACT(epoch FROM n.clock_uncertainty)),
                    ('unanswered_seconds', coalesce(EXTRACT(epoch FROM n.unanswered_for), 0)), ('pings_lost_total', n.pings_lost), ('heartbeats_late_total', n.heartbeats_late),
                    ('heartbeats_lost_total', n.heartbeats_lost), ('received_bytes_total', n.bytes)) v (metric, value)
             WHERE n.direction = 'incoming';
        WHEN 'write' THEN RETURN QUERY
            SELECT pg_catalog.jsonb_build_object('level', c.level), v.metric::name, v.value::float8
              FROM repl_ml.write_stats() c
              LEFT JOIN LATERAL (SELECT pg_catalog.count(*) AS waiting, pg_catalog.min(w.waiting_since) AS since FROM repl_ml.write_waiters() w WHERE w.level = c.level) w ON true
             CROSS JOIN LATERAL (VALUES ('acknowledged_total', c.commits::float8), ('refused_total', c.refused), ('timeouts_total', c.timeouts), ('cancelled_total', c.cancelled), ('parked_total', c.parked),
                    ('wait_seconds_total', EXTRACT(epoch FROM c.total_wait)), ('waiting', w.waiting), ('oldest_wait_seconds', coalesce(EXTRACT(epoch FROM pg_catalog.clock_timestamp() - w.since), 0))) v (metric, value);
        WHEN 'conflict' THEN RETURN QUERY
            SELECT c.labels, v.metric::name, v.value::float8
              FROM (SELECT pg_catalog.jsonb_build_object('schema', x.schema_name, 'table', x.table_name, 'type', x.conflict_type, 'resolution', x.resolution) AS labels, x.conflicts, x.last_hour, x.last_detected_at
                      FROM repl_ml.stat_conflicts x OFFSET 0) c
             CROSS JOIN LATERAL (VALUES ('resolved_total', c.conflicts::float8), ('last_hour', c.last_hour), ('last_timestamp_seconds', EXTRACT(epoch FROM c.last_detected_at))) v (metric, value);
        WHEN 'parked' THEN RETURN QUERY
            SELECT pg_catalog.jsonb_build_object('schema', p.schema_name, 'table', p.table_name), v.metric::name, v.value::float8
              FROM (SELECT x.schema_name, x.table_name, pg_catalog.sum(CASE x.action WHEN 'counted' THEN (x.change->>'changes')::bigint ELSE 1 END) AS changes, pg_catalog.min(x.parked_at) AS since
                      FROM repl_ml.parked_change x WHERE x.action NOT IN ('evicted', 'kept') AND NOT x.put_aside GROUP BY 1, 2) p
             CROSS JOIN LATERAL (VALUES ('changes', p.changes::float8), ('oldest_timestamp_seconds', EXTRACT(epoch FROM p.since))) v (metric, value);
        WHEN 'table' THEN RETURN QUERY
            SELECT pg_catalog.jsonb_build_object('state', t.state), v.metric::name, v.value::float8
              FROM (SELECT x.state, pg_catalog.count(*) AS count, pg_catalog.count(d.table_name) AS different
                      FROM repl_ml.table_states(false) x LEFT JOIN (SELECT DISTINCT y.schema_name, y.table_name FROM repl_ml.differing_shapes() y) d ON d.schema_name = x.schema_name AND d.table_name = x.table_name GROUP BY 1) t
             CROSS JOIN LATERAL (VALUES ('listed', t.count::float8), ('different', t.different)) v (metric, value);
        WHEN 'sequence' THEN RETURN QUERY
            SELECT pg_catalog.jsonb_build_object('state', t.state), v.metric::name, v.value::float8
              FROM (SELECT x.state, pg_catalog.count(*) AS count, pg_catalog.min(x.percent_left) / 100 AS ratio, pg_catalog.min(x.in_hand) AS in_hand FROM repl_ml.sequences x GROUP BY 1) t
             CROSS JOIN LATERAL (VALUES ('listed', t.count::float8), ('least_left_ratio', t.ratio), ('least_in_hand', t.in_hand)) v (metric, value);
        WHEN 'verification' THEN RETURN QUERY
            SELECT c.labels, v.metric::name, v.value::float8
              -- labels are made once for a table, not for each of its values
              FROM (SELECT pg_catalog.jsonb_build_object('schema', x.schema_name, 'table', x.table_name) AS labels,
                           EXTRACT(epoch FROM pg_catalog.max(x.started_at) FILTER (WHERE x.is_last)) AS last, EXTRACT(epoch FROM pg_catalog.max(x.started_at) FILTER (WHERE x.is_last_good)) AS last_good,
                           (pg_catalog.bool_or(x.status = 'consistent') FILTER (WHERE x.is_last))::integer AS consistent, pg_catalog.max(x.differing_rows) FILTER (WHERE x.is_last) AS differing
                      FROM repl_ml.consistency_checks x GROUP BY x.schema_name, x.table_name OFFSET 0) c
             CROSS JOIN LATERAL (VALUES ('consistent', c.consistent::float8), ('differing_rows', c.differing), ('last_timestamp_seconds', c.last), ('last_good_timestamp_seconds', c.last_good)) v (metric, value);
        WHEN 'health' THEN RETURN QUERY
            SELECT pg_catalog.jsonb_build_object('check', h.check_name), 'status'::name, CASE h.status WHEN 'ok' THEN 0 WHEN 'warning' THEN 1 WHEN 'error' THEN 2 END::float8
              FROM repl_ml.health h;
        END CASE;
    END
    $$;
COMMENT ON FUNCTION repl_ml.samples(name) IS 'the values of one family of metrics, for the view repl_ml.metric_samples';

CREATE VIEW repl_ml.metric_samples AS
    SELECT f.family, s.labels, s.metric, s.value
      FROM pg_catalog.unnest('{group,node,member,replication,apply,network,write,conflict,parked,table,sequence,verification,health}'::name[]) f (family) CROSS JOIN LATERAL repl_ml.samples(f.family) s;
COMMENT ON VIEW repl_ml.metric_samples IS
    'the values of repl_ml.metrics by family, for an exporter that asks for one family after the other: WHERE family = ''replication'' reads nothing of the others';

CREATE VIEW repl_ml.metrics AS
    SELECT f.name, f.type, f.help, s.labels, s.value
      FROM repl_ml.metric_samples s JOIN repl_ml.metric_families f ON f.family = s.family AND f.metric = s.metric;
COMMENT ON VIEW repl_ml.metrics IS
    'what the other views say of this node, as metrics for Prometheus: names and types by its conventions, in seconds and bytes; value null where it is not known. Ready files for exporters are in monitoring/';

GRANT SELECT ON repl_ml.metric_families, repl_ml.metric_samples, repl_ml.metrics TO pg_monitor;
