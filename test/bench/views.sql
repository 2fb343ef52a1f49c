-- For test/bench/views: a group with as many further members as :peers, of which there are no servers, and :tables
-- tables that all of them have and have compared; :conflicts in the log.
\set ON_ERROR_STOP on
SET client_min_messages = warning;
SELECT format('CREATE TABLE t%s (id bigint PRIMARY KEY, name text NOT NULL, at timestamptz, value double precision, owner bigint)', i) FROM generate_series(1, :tables) i \gexec
SELECT repl_ml.create_group('bench', 'n1', :'dsn') \g /dev/null
SELECT count(repl_ml.add_table(format('t%s', i)::regclass)) FROM generate_series(1, :tables) i \g /dev/null
SELECT repl_ml.tell_shapes() \g /dev/null
INSERT INTO repl_ml.member (node_id, node_name, dsn, system_identifier, state, joined_at)
SELECT i, 'n' || i, 'host=/nowhere', i, 'ready', now() FROM generate_series(2, :peers + 1) i;
INSERT INTO repl_ml.heartbeat (node_id, sent_at, safe_counter, applied, parked, told, told_at)
SELECT m.node_id, h.sent_at, h.safe_counter, h.applied, h.parked, h.told, h.told_at
  FROM repl_ml.heartbeat h, repl_ml.member m WHERE h.node_id = 1 AND m.node_id > 1;
INSERT INTO repl_ml.table_shape (node_id, schema_name, table_name, shape, seen)
SELECT m.node_id, s.schema_name, s.table_name, s.shape, s.seen FROM repl_ml.table_shape s, repl_ml.member m WHERE s.node_id = 1 AND m.node_id > 1;
INSERT INTO repl_ml.verification (node_id, schema_name, table_name, begun_at, ended_at, compared_at, good_at, full_at, status, differing_rows)
SELECT 1 + (row_number() OVER ()) % (:peers + 1), s.schema_name, s.table_name, now(), now(), now(), now(), now(), 'consistent', 0
  FROM repl_ml.table_shape s WHERE s.node_id = 1 AND s.table_name <> '';
INSERT INTO repl_ml.consistency_check (schema_name, table_name, status, members, unreachable, rows, chunks, differing_rows, rechecked_rows, started_at, duration)
SELECT s.schema_name, s.table_name, 'consistent', '{}', '{}', 0, 0, 0, 0, now(), '1 s'
  FROM repl_ml.table_shape s WHERE s.node_id = 1 AND s.table_name <> '';
SELECT count(pg_create_logical_replication_slot(repl_ml.link_name(m.node_id), 'repl_ml')) FROM repl_ml.member m WHERE m.node_id > 1 \g /dev/null
INSERT INTO repl_ml.conflict_history (conflict_id, detected_at, schema_name, table_name, key, conflict_type, resolution, winner_node, loser_node,
                                      winner_clock, loser_clock, result_clock, winner_row, loser_row, origin_node, origin_xid, origin_lsn)
SELECT gen_random_uuid(), now() - random() * interval '7 days', 'public', 't' || i % 100, ARRAY[i::text], 'update_origin_differs', 'last_write', 1, 2,
       '{1:2}', '{2:1}', '{1:2,2:1}', '{"v": 1}', '{"v": 2}', 2, '7', '0/0' FROM generate_series(1, :conflicts) i;
INSERT INTO repl_ml.conflict_count
SELECT s.span, CASE s.span WHEN 'all' THEN b.since ELSE date_trunc(s.span, h.detected_at, 'UTC') END, h.schema_name, h.table_name, h.conflict_type, h.resolution,
       count(*), 0, min(h.detected_at), max(h.detected_at)
  FROM repl_ml.conflict_history h CROSS JOIN unnest('{all,hour,minute}'::text[]) s (span)
 CROSS JOIN (SELECT min(since) AS since FROM repl_ml.conflict_count) b
 WHERE s.span <> 'minute' OR h.detected_at > now() - interval '1 hour' GROUP BY 1, 2, 3, 4, 5, 6;
