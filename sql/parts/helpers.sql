--
-- Internal helpers
--

-- What functions that change something do with NULL: a strict one would do nothing and not say so
CREATE FUNCTION repl_ml.refuse_nulls(arguments text, nulls integer) RETURNS void
    LANGUAGE plpgsql VOLATILE STRICT SET search_path = pg_catalog, pg_temp
    AS $$
    BEGIN
        IF nulls > 0 THEN
            RAISE EXCEPTION 'null is not allowed for the argument%', CASE WHEN arguments ~ ',' THEN 's ' ELSE ' ' END || arguments
                USING ERRCODE = 'null_value_not_allowed', HINT = 'Give each argument a value; to_regclass() gives null for a table that does not exist.';
        END IF;
    END
    $$;
COMMENT ON FUNCTION repl_ml.refuse_nulls(text, integer) IS 'raises an error if any of the named arguments of a function is null';

-- The place this database lives in
CREATE FUNCTION repl_ml.local_fingerprint(OUT system_identifier bigint, OUT timeline bigint, OUT database oid, OUT directory text)
    AS 'MODULE_PATHNAME', 'repl_ml_local_fingerprint' LANGUAGE C STABLE PARALLEL SAFE;
COMMENT ON FUNCTION repl_ml.local_fingerprint() IS 'what tells this data directory and database from a copy';
CREATE FUNCTION repl_ml.history_with(timeline bigint) RETURNS pg_lsn
    AS 'MODULE_PATHNAME', 'repl_ml_history_with' LANGUAGE C VOLATILE STRICT;
COMMENT ON FUNCTION repl_ml.history_with(bigint) IS 'up to where this server''s WAL is that of the timeline; null if it has not come from it';
CREATE FUNCTION repl_ml.resume_counter(above bigint, OUT counter bigint, OUT first_xid xid8)
    AS 'MODULE_PATHNAME', 'repl_ml_resume_counter' LANGUAGE C VOLATILE STRICT;
COMMENT ON FUNCTION repl_ml.resume_counter(bigint) IS 'called where this server has become the node that another one was, whose counters were known to be so great: lets those of this one go on above; and from which id on transactions are this server''s';

-- Raises an error where this database is not a member that may act
CREATE FUNCTION repl_ml.require_member(OUT node_id integer, OUT node_name name)
    AS 'MODULE_PATHNAME', 'repl_ml_require_member' LANGUAGE C STABLE PARALLEL RESTRICTED;
COMMENT ON FUNCTION repl_ml.require_member() IS 'this node''s id and name, or an error that says why it cannot act';

-- Connects and tells where a connection string leads; 08001 if nowhere
CREATE FUNCTION repl_ml.probe(dsn text, OUT system_identifier bigint, OUT database oid, OUT dbname text, OUT host text, OUT port integer, OUT server_version integer, OUT encoding text, OUT locale text)
    AS 'MODULE_PATHNAME', 'repl_ml_probe' LANGUAGE C VOLATILE STRICT;
COMMENT ON FUNCTION repl_ml.probe(text) IS 'where a connection string leads';

-- Whether the role of a connection string may let a node into the group it leads to
CREATE FUNCTION repl_ml.may_invite(dsn text) RETURNS boolean
    AS 'MODULE_PATHNAME', 'repl_ml_may_invite' LANGUAGE C VOLATILE STRICT;
COMMENT ON FUNCTION repl_ml.may_invite(text) IS 'whether the role of a connection string has the rights of repl_ml_admin on that server';

-- Keeps a password in a statement out of logs and views
CREATE FUNCTION repl_ml.hide_statement() RETURNS void
    AS 'MODULE_PATHNAME', 'repl_ml_hide_statement' LANGUAGE C VOLATILE STRICT;
COMMENT ON FUNCTION repl_ml.hide_statement() IS 'shows the client''s statement neither in pg_stat_activity nor with errors in the log';

-- Runs SQL on a peer
CREATE FUNCTION repl_ml.run_on_peer(dsn text, command text) RETURNS void
    AS 'MODULE_PATHNAME', 'repl_ml_run_on_peer' LANGUAGE C VOLATILE STRICT;
COMMENT ON FUNCTION repl_ml.run_on_peer(text, text) IS 'runs one command on a peer; its error is raised here';

-- Stops this database's workers until the end of the transaction
CREATE FUNCTION repl_ml.stop_workers() RETURNS void
    AS 'MODULE_PATHNAME', 'repl_ml_stop_workers' LANGUAGE C VOLATILE STRICT;
COMMENT ON FUNCTION repl_ml.stop_workers() IS 'stops the apply workers of this database until the transaction ends';

CREATE FUNCTION repl_ml.give_up_waits() RETURNS void
    AS 'MODULE_PATHNAME', 'repl_ml_give_up_waits' LANGUAGE C VOLATILE STRICT;
COMMENT ON FUNCTION repl_ml.give_up_waits() IS 'ends the waits of this database''s commits, which become errors 40003; later ones are refused until a supervisor runs';

-- Wakes the launcher and the supervisor
CREATE FUNCTION repl_ml.wake_workers() RETURNS void
    AS 'MODULE_PATHNAME', 'repl_ml_wake_workers' LANGUAGE C VOLATILE STRICT;
COMMENT ON FUNCTION repl_ml.wake_workers() IS 'makes the workers of this database look at the catalogs when the transaction commits';

-- The shared memory of the workers
CREATE FUNCTION repl_ml.worker_stats(
    OUT peer integer, OUT pid integer, OUT state text, OUT received_lsn pg_lsn, OUT applied_lsn pg_lsn, OUT peer_lsn pg_lsn, OUT reached_lsn pg_lsn,
    OUT applied_commit_time timestamptz, OUT last_message_time timestamptz, OUT start_time timestamptz,
    OUT transactions bigint, OUT changes bigint, OUT conflicts bigint, OUT equal_updates bigint, OUT equal_inserts bigint, OUT parked bigint, OUT retries bigint, OUT errors bigint, OUT sync_errors bigint,
    OUT copy_relation regclass, OUT copy_rows bigint,
    OUT error_time timestamptz, OUT error_sqlstate text, OUT error_message text, OUT error_hint text,
    OUT last_error_time timestamptz, OUT last_error_sqlstate text, OUT last_error_message text, OUT last_error_hint text,
    OUT current_xid xid, OUT current_lsn pg_lsn, OUT current_since timestamptz, OUT current_changes bigint, OUT current_parked bigint, OUT locked_since timestamptz, OUT last_apply_time timestamptz,
    OUT received_bytes bigint, OUT apply_time double precision, OUT lock_time double precision, OUT flush_time double precision, OUT stats_reset timestamptz,
    OUT last_msg_send_time timestamptz, OUT told_lsn pg_lsn, OUT told_time timestamptz, OUT last_error_context text,
    OUT inserts bigint, OUT updates bigint, OUT deletes bigint, OUT duplicates bigint, OUT dominated bigint, OUT met_tombstones bigint,
    OUT confl_insert_exists bigint, OUT confl_update_origin_differs bigint, OUT confl_update_exists bigint, OUT confl_update_deleted bigint, OUT confl_delete_origin_differs bigint, OUT confl_update_missing bigint, OUT confl_delete_missing bigint)
    RETURNS SETOF record
    AS 'MODULE_PATHNAME', 'repl_ml_worker_stats' LANGUAGE C VOLATILE STRICT PARALLEL RESTRICTED ROWS 3;
COMMENT ON FUNCTION repl_ml.worker_stats() IS 'state and counters of this database''s workers since server start; peer 0 is the supervisor. reached_lsn: the origin of the link is not beyond it, or somebody has moved it; null: not known';

CREATE FUNCTION repl_ml.worker_rests(of_peer integer) RETURNS interval
    AS 'MODULE_PATHNAME', 'repl_ml_worker_rests' LANGUAGE C VOLATILE STRICT PARALLEL RESTRICTED;
COMMENT ON FUNCTION repl_ml.worker_rests(integer) IS 'for how long the apply worker of a peer, or (0) the supervisor, has not come round, which these do with each heartbeat; see repl_ml.health, delay and processes';

-- Looked at only where something is late already: it takes the locks of the lock table
CREATE FUNCTION repl_ml.who_blocks(of_process integer, OUT who text, OUT remedy text)
    LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
    AS $$
    SELECT pg_catalog.string_agg(CASE b.pid WHEN 0 THEN 'a prepared transaction' ELSE pg_catalog.format('process %s', b.pid) || coalesce(pg_catalog.format(' of role "%s"', a.usename), '') END, ', ' ORDER BY b.pid),
           pg_catalog.string_agg(CASE b.pid WHEN 0 THEN 'See SELECT * FROM pg_prepared_xacts, and run COMMIT PREPARED or ROLLBACK PREPARED.' ELSE pg_catalog.format('Have that transaction end, or run SELECT pg_terminate_backend(%s).', b.pid) END, ' ' ORDER BY b.pid)
      FROM (SELECT DISTINCT x.pid FROM pg_catalog.unnest(pg_catalog.pg_blocking_pids(of_process)) x (pid)) b LEFT JOIN pg_catalog.pg_stat_activity a ON a.pid = b.pid
    $$;
COMMENT ON FUNCTION repl_ml.who_blocks(integer) IS 'who holds the locks that a process waits for now, and how to end that; null: it waits for none';

-- The connections of the peers that read what this node writes
CREATE FUNCTION repl_ml.link_stats(OUT peer integer, OUT paused boolean, OUT reachable boolean, OUT silent_since timestamptz, OUT connections bigint, OUT sent_bytes bigint, OUT stats_reset timestamptz, OUT apply_rate double precision, OUT sent_rate double precision)
    RETURNS SETOF record
    AS 'MODULE_PATHNAME', 'repl_ml_link_stats' LANGUAGE C VOLATILE STRICT PARALLEL RESTRICTED ROWS 3;
COMMENT ON FUNCTION repl_ml.link_stats() IS 'what this server knows of the peers that read what this node writes: paused if one does not because somebody there has paused that, reachable (null: unknown), when it last spoke (null: it has not), since stats_reset how often it has connected and how many bytes of changes were sent to it, and at how many bytes a second of this node''s WAL it has come on in the last minute';
CREATE FUNCTION repl_ml.network_stats(OUT peer integer, OUT connected_since timestamptz,
    OUT round_trip interval, OUT round_trip_mean interval, OUT round_trip_p95 interval, OUT round_trip_p99 interval, OUT round_trips integer, OUT measured_time timestamptz,
    OUT clock_offset interval, OUT clock_uncertainty interval, OUT pings bigint, OUT pings_lost bigint, OUT unanswered_for interval,
    OUT heartbeats bigint, OUT heartbeats_late bigint, OUT heartbeats_lost bigint, OUT connections bigint, OUT disconnect_time timestamptz, OUT disconnect_cause text, OUT received_rate double precision)
    RETURNS SETOF record
    AS 'MODULE_PATHNAME', 'repl_ml_network_stats' LANGUAGE C VOLATILE STRICT PARALLEL RESTRICTED ROWS 3;
COMMENT ON FUNCTION repl_ml.network_stats() IS 'what the apply workers of this database have measured of their connections to peers; see the view repl_ml.stat_network';
CREATE FUNCTION repl_ml.hear_pause(of_node integer) RETURNS void
    AS 'MODULE_PATHNAME', 'repl_ml_hear_pause' LANGUAGE C VOLATILE STRICT;
COMMENT ON FUNCTION repl_ml.hear_pause(integer) IS 'called by a peer as long as it does not read what this node writes because somebody has paused that';

-- The shared memory of commit/quorum.c
CREATE FUNCTION repl_ml.write_members(OUT node_id integer, OUT reachable boolean, OUT acknowledged_lsn pg_lsn, OUT silent_for interval)
    RETURNS SETOF record
    AS 'MODULE_PATHNAME', 'repl_ml_write_members' LANGUAGE C VOLATILE STRICT PARALLEL RESTRICTED ROWS 3;
COMMENT ON FUNCTION repl_ml.write_members() IS
    'the members that count for write consistency, as this node sees them: whether they are connected and have spoken within two heartbeats, and up to where they have what this node wrote; no row while this is not known, as on a node that is not ready';
CREATE FUNCTION repl_ml.write_waiters(OUT pid integer, OUT level text, OUT required integer, OUT waiting_since timestamptz, OUT lsn pg_lsn, OUT parked_on integer[])
    RETURNS SETOF record
    AS 'MODULE_PATHNAME', 'repl_ml_write_waiters' LANGUAGE C VOLATILE STRICT PARALLEL RESTRICTED ROWS 2;
COMMENT ON FUNCTION repl_ml.write_waiters() IS 'commits of this database that wait to be acknowledged; lsn is null when the wait begins just now, parked_on are the members that have parked something of it';
CREATE FUNCTION repl_ml.write_stats(OUT level text, OUT commits bigint, OUT refused bigint, OUT timeouts bigint, OUT cancelled bigint,
    OUT total_wait interval, OUT min_wait interval, OUT max_wait interval, OUT histogram_bounds interval[], OUT histogram bigint[], OUT stats_reset timestamptz, OUT parked bigint)
    RETURNS SETOF record
    AS 'MODULE_PATHNAME', 'repl_ml_write_stats' LANGUAGE C VOLATILE STRICT PARALLEL RESTRICTED ROWS 2;
COMMENT ON FUNCTION repl_ml.write_stats() IS 'what became of this database''s commits with write consistency quorum and all';

-- The origin and slot name that belong to a peer of this database
CREATE FUNCTION repl_ml.link_name(node_id integer) RETURNS text
    AS 'MODULE_PATHNAME', 'repl_ml_link_name' LANGUAGE C STABLE STRICT;
COMMENT ON FUNCTION repl_ml.link_name(integer) IS 'name of the origin that tracks a peer here, and of the slot that peer reads from here';

-- A standby has no WAL of its own
CREATE FUNCTION repl_ml.lacks_since(lsn pg_lsn) RETURNS timestamptz
    AS 'MODULE_PATHNAME', 'repl_ml_lacks_since' LANGUAGE C VOLATILE STRICT;
COMMENT ON FUNCTION repl_ml.lacks_since(pg_lsn) IS 'when this node committed the oldest transaction that who has no more WAL than this lacks, at most a sixteenth of that time ago too late: null if it lacks none, -infinity if that is not known';

CREATE FUNCTION repl_ml.commits_behind(lsn pg_lsn) RETURNS bigint
    AS 'MODULE_PATHNAME', 'repl_ml_commits_behind' LANGUAGE C VOLATILE STRICT;
COMMENT ON FUNCTION repl_ml.commits_behind(pg_lsn) IS 'how many of this node''s commits who has no more WAL than this lacks, interpolated where there were more than a hundred a second; null if that is not known, as of before the server''s start';

CREATE FUNCTION repl_ml.wal_end() RETURNS pg_lsn
    AS 'MODULE_PATHNAME', 'repl_ml_wal_end' LANGUAGE C VOLATILE STRICT;
COMMENT ON FUNCTION repl_ml.wal_end() IS 'up to where this server''s WAL is durable, or replayed on a standby';

-- How far this node has another one's WAL: applied, or put aside to be applied
CREATE FUNCTION repl_ml.reached_lsn(of_node integer) RETURNS pg_lsn
    LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp
    AS $$
    SELECT coalesce((SELECT d.applied_lsn FROM repl_ml.dropped_node d WHERE d.node_id = of_node),
                    -- what somebody has moved the origin over is not here
                    (SELECT least(pg_catalog.pg_replication_origin_progress(o.roname, true),
                                  (SELECT w.reached_lsn FROM repl_ml.worker_stats() w WHERE w.peer = of_node))
                       FROM pg_catalog.pg_replication_origin o
                      WHERE o.roname = repl_ml.link_name(of_node)), '0/0')
    $$;
COMMENT ON FUNCTION repl_ml.reached_lsn(integer) IS 'up to which WAL position of a peer this node durably has something, and everything once the copies are done that its link was made anew for';
CREATE FUNCTION repl_ml.received_lsn(of_node integer) RETURNS pg_lsn
    LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp
    AS $$
    SELECT CASE WHEN EXISTS (SELECT FROM repl_ml.heard h WHERE h.node_id = of_node AND h.incomplete) THEN '0/0' ELSE repl_ml.reached_lsn(of_node) END
    $$;
COMMENT ON FUNCTION repl_ml.received_lsn(integer) IS 'up to which WAL position of a peer this node durably has everything, applied or put aside';

-- What is known here of a peer that was set back perhaps: the last start of its server and the last heartbeat of it that came, the
-- end of what has been applied, and the greatest counter of its heartbeats that anybody has heard, as far as is known here
CREATE FUNCTION repl_ml.known_of(node integer, OUT server_start timestamptz, OUT sequence bigint, OUT lsn pg_lsn, OUT counter bigint)
    LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp
    AS $$
    SELECT coalesce(h.server_start, d.server_start), coalesce(h.sequence, d.sequence), repl_ml.reached_lsn(node),
           (SELECT pg_catalog.max(repl_ml.counter(b.applied, node)) FROM repl_ml.heartbeat b JOIN repl_ml.member m ON m.node_id = b.node_id
             WHERE m.state <> 'dropped' AND b.node_id <> node)
      FROM (SELECT) one LEFT JOIN repl_ml.heard h ON h.node_id = node LEFT JOIN repl_ml.dropped_node d ON d.node_id = node
    $$;
COMMENT ON FUNCTION repl_ml.known_of(integer) IS 'how far a peer has come, as this node knows: what it must not be behind when it has been started again';

CREATE FUNCTION repl_ml.known_incarnation(node integer) RETURNS integer
    LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
    AS $$
    SELECT greatest(m.incarnation, h.incarnation) FROM repl_ml.member m LEFT JOIN repl_ml.heard h USING (node_id) WHERE m.node_id = node
    $$;
COMMENT ON FUNCTION repl_ml.known_incarnation(integer) IS 'the last incarnation of a node that is known here, from the list or as this node was connected with it';

-- A node that was set back, and came back under another id, may be set back again, to what it was before. So it is with one that a
-- person had leave and join.
CREATE FUNCTION repl_ml.latest_of(node integer, OUT node_id integer, OUT node_name name, OUT dsn text, OUT state text, OUT joined_at timestamptz) RETURNS SETOF record
    LANGUAGE sql STABLE ROWS 1 SET search_path = pg_catalog, pg_temp
    AS $$
    -- whose names may have changed
    WITH RECURSIVE family (node_id) AS (
        SELECT node UNION
        SELECT s.node_id FROM family f JOIN repl_ml.member m ON m.node_id = f.node_id
          JOIN repl_ml.member s ON s.former_id = m.node_id OR s.node_id = m.former_id OR (s.node_name, s.system_identifier) = (m.node_name, m.system_identifier))
    SELECT m.node_id, m.node_name, m.dsn, m.state, m.joined_at FROM family f JOIN repl_ml.member m ON m.node_id = f.node_id WHERE m.node_id >= node ORDER BY m.node_id DESC LIMIT 1
    $$;
COMMENT ON FUNCTION repl_ml.latest_of(integer) IS 'what the database of a node is known as since it has been set back, if it was; also where that has been dropped';
CREATE FUNCTION repl_ml.successor_of(node integer, OUT node_id integer, OUT dsn text, OUT joined_at timestamptz) RETURNS SETOF record
    LANGUAGE sql STABLE ROWS 1 SET search_path = pg_catalog, pg_temp
    AS $$
    SELECT s.node_id, s.dsn, s.joined_at FROM repl_ml.latest_of(node) s JOIN repl_ml.member m ON m.node_id = node
     WHERE m.state = 'dropped' AND s.state <> 'dropped' AND s.node_id > node
    $$;
COMMENT ON FUNCTION repl_ml.successor_of(integer) IS 'the member that the database of a dropped node has become since';

-- What a peer asks before anything else
CREATE FUNCTION repl_ml.local_info(asked_by integer DEFAULT NULL,
    OUT version text, OUT group_id uuid, OUT group_name name, OUT node_id integer, OUT node_name name, OUT state text,
    OUT fenced boolean, OUT system_identifier bigint, OUT database oid, OUT flush_lsn pg_lsn, OUT asker_dropped boolean,
    OUT incarnation integer, OUT asker_incarnation integer, OUT server_start timestamptz, OUT brings_rows boolean,
    OUT asker_start timestamptz, OUT asker_sequence bigint, OUT asker_lsn pg_lsn, OUT asker_counter bigint, OUT asker_succeeded timestamptz)
    LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
    AS $$
    SELECT e.extversion, l.group_id, l.group_name, l.node_id, l.node_name, l.state,
           (l.system_identifier, l.timeline, l.database, l.directory) IS DISTINCT FROM
           (f.system_identifier, f.timeline, f.database, f.directory),
           f.system_identifier, f.database, repl_ml.wal_end(),
           EXISTS (SELECT FROM repl_ml.member m WHERE m.node_id = asked_by AND m.state = 'dropped'),
           l.incarnation, repl_ml.known_incarnation(asked_by),
           pg_catalog.pg_postmaster_start_time(), l.node_id IS NOT NULL AND NOT l.copy_data AND l.donor IS NOT NULL,
           k.server_start, k.sequence, k.lsn, k.counter,
           (SELECT s.joined_at FROM repl_ml.successor_of(asked_by) s)
      FROM pg_catalog.pg_extension e CROSS JOIN repl_ml.local_fingerprint() f LEFT JOIN repl_ml.local_node l ON true
      LEFT JOIN LATERAL (SELECT o.* FROM repl_ml.known_of(asked_by) o WHERE asked_by IS NOT NULL AND NOT pg_catalog.pg_is_in_recovery()) k ON true
     WHERE e.extname = 'repl_ml'
    $$;
COMMENT ON FUNCTION repl_ml.local_info(integer) IS 'who this node is: asked by peers';

-- A table's rows, as a peer copies them, whether it may, and then those it does not get
CREATE FUNCTION repl_ml.require_copyable(relation regclass, columns name[]) RETURNS boolean
    AS 'MODULE_PATHNAME', 'repl_ml_require_copyable' LANGUAGE C VOLATILE STRICT;
COMMENT ON FUNCTION repl_ml.require_copyable(regclass, name[]) IS 'raises what keeps all of a table from being copied by the caller';
CREATE FUNCTION repl_ml.rows_to_copy(relation regclass, columns name[], of_schema name DEFAULT NULL, of_table name DEFAULT NULL, differing boolean DEFAULT false) RETURNS SETOF text
    AS 'MODULE_PATHNAME', 'repl_ml_rows_to_copy' LANGUAGE C VOLATILE;
COMMENT ON FUNCTION repl_ml.rows_to_copy(regclass, name[], name, name, boolean) IS 'each row of a table that can be sent, as a line of COPY: what a peer copies; all, or those that differ from what note_digests() told in this session';
CREATE FUNCTION repl_ml.chunk_sums(relation regclass, signature text, chunks integer) RETURNS bytea
    AS 'MODULE_PATHNAME', 'repl_ml_chunk_sums' LANGUAGE C VOLATILE STRICT;
COMMENT ON FUNCTION repl_ml.chunk_sums(regclass, text, integer) IS 'sums of the digests of this node''s rows, for a peer that copies the table; null if it is to copy all rows';
CREATE FUNCTION repl_ml.note_digests(chunks integer, digests bytea) RETURNS boolean
    AS 'MODULE_PATHNAME', 'repl_ml_note_digests' LANGUAGE C VOLATILE;
COMMENT ON FUNCTION repl_ml.note_digests(integer, bytea) IS 'what a peer that copies a table has of it, for rows_to_copy() in this session; with null what was told before is forgotten';
CREATE FUNCTION repl_ml.digests_lacking(relation regclass, signature text, of_keys boolean) RETURNS bytea
    AS 'MODULE_PATHNAME', 'repl_ml_digests_lacking' LANGUAGE C VOLATILE STRICT;
COMMENT ON FUNCTION repl_ml.digests_lacking(regclass, text, boolean) IS 'those of the digests told in this session, of keys or of rows without their clocks, that no row of this node has; null if they cannot be compared';
CREATE FUNCTION repl_ml.rows_left_out() RETURNS TABLE (schema_name text, table_name text, key text, clock text, message text)
    AS 'MODULE_PATHNAME', 'repl_ml_rows_left_out' LANGUAGE C VOLATILE STRICT;
COMMENT ON FUNCTION repl_ml.rows_left_out() IS 'which rows the last rows_to_copy() of this session has left out, and why';

-- How far this node has applied another one's WAL
CREATE FUNCTION repl_ml.applied_lsn(of_node integer) RETURNS pg_lsn
    LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
    AS $$
    SELECT least(repl_ml.received_lsn(of_node),
                 (SELECT pg_catalog.min(p.origin_lsn) - 1 FROM repl_ml.parked_change p WHERE p.put_aside AND p.origin_node = of_node))
    $$;
COMMENT ON FUNCTION repl_ml.applied_lsn(integer) IS 'up to which WAL position of a peer this node has durably applied everything';

-- The last position of a dropped node applied here, of which start of its server; NULL as long as it may still grow
CREATE FUNCTION repl_ml.final_lsn(of_node integer, OUT lsn pg_lsn, OUT server_start timestamptz)
    LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
    AS $$
    SELECT d.applied_lsn, d.server_start FROM repl_ml.dropped_node d WHERE d.node_id = of_node
       AND NOT EXISTS (SELECT FROM repl_ml.parked_change p WHERE p.put_aside AND p.origin_node = of_node)
    $$;
COMMENT ON FUNCTION repl_ml.final_lsn(integer) IS 'up to which WAL position of a dropped node this node had applied its changes, and of which start of its server; NULL before it has let go of it, and while some of it is put aside';

-- A peer that connects anew has lost its old connection, whether this server has noticed or not
CREATE FUNCTION repl_ml.end_old_session(of_node integer) RETURNS boolean
    LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
    AS $$
    SELECT pg_catalog.bool_and(pg_catalog.pg_terminate_backend(s.active_pid, 2000)) FROM pg_catalog.pg_replication_slots s
     WHERE s.slot_name = repl_ml.link_name(of_node) AND s.active_pid <> pg_catalog.pg_backend_pid()
    $$;
COMMENT ON FUNCTION repl_ml.end_old_session(integer) IS 'ends the walsender that still serves a peer which connects anew, or whoever else has its slot; NULL if there is none';

-- The slots by which peers read this node; the directory of the WAL is looked at once
CREATE FUNCTION repl_ml.slot_faults(of_nodes integer[], OUT node_id integer, OUT fault text, OUT confirmed pg_lsn)
    RETURNS SETOF record
    LANGUAGE plpgsql VOLATILE STRICT ROWS 10 SET search_path = pg_catalog, pg_temp SET jit = off
    AS $$
    #variable_conflict use_column
    BEGIN
    RETURN QUERY
    WITH wal AS MATERIALIZED (
        SELECT b.size, pg_catalog.div(repl_ml.wal_end() - '0/0' - 1, b.size)::bigint AS last
          FROM (SELECT pg_catalog.pg_size_bytes(pg_catalog.current_setting('wal_segment_size')) AS size) b),
    -- segments have names of 8 digits for the timeline and 16 for the number
    segment AS MATERIALIZED (
        SELECT DISTINCT ('x' || pg_catalog.substr(f.name, 9, 8))::bit(32)::bigint * (4294967296 / w.size) + ('x' || pg_catalog.substr(f.name, 17, 8))::bit(32)::bigint AS number
          FROM pg_catalog.pg_ls_waldir() f, wal w WHERE f.name ~ '^[0-9A-F]{24}$'),
    -- from which one on there is none missing
    whole AS MATERIALIZED (
        SELECT coalesce(pg_catalog.min(x.number), w.last + 1) AS first
          FROM wal w LEFT JOIN (SELECT s.number, s.number + pg_catalog.row_number() OVER (ORDER BY s.number DESC) AS run FROM segment s, wal v WHERE s.number <= v.last) x ON x.run = w.last + 1
         GROUP BY w.last)
    SELECT n.id, CASE WHEN s.slot_name IS NULL THEN 'There is none.'
                WHEN s.plugin IS DISTINCT FROM 'repl_ml' OR s.database <> pg_catalog.current_database() OR s.temporary OR s.two_phase THEN 'Somebody has made it for something else.'
                WHEN s.restart_lsn IS NULL OR s.wal_status IS NULL OR s.wal_status = 'lost' THEN 'The server has let go of what it kept.'
                WHEN s.confirmed_flush_lsn > repl_ml.wal_end() THEN 'It is ahead of the server''s WAL.'
                WHEN pg_catalog.div(s.restart_lsn - '0/0', w.size) < h.first THEN pg_catalog.format('Of the WAL from %s on, which it needs, a part is gone.', s.restart_lsn)
           END, s.confirmed_flush_lsn
      FROM pg_catalog.unnest(of_nodes) n (id) CROSS JOIN wal w CROSS JOIN whole h
      LEFT JOIN pg_catalog.pg_replication_slots s ON s.slot_name = repl_ml.link_name(n.id);
    END
    $$;
COMMENT ON FUNCTION repl_ml.slot_faults(integer[], OUT integer, OUT text, OUT pg_lsn) IS 'for each of these peers why the slot by which it reads this node is of no use and has to be made anew, null if it is of use; and up to where the peer had confirmed';

CREATE FUNCTION repl_ml.slot_fault(of_node integer, OUT fault text, OUT confirmed pg_lsn)
    LANGUAGE sql VOLATILE STRICT SECURITY DEFINER SET search_path = pg_catalog, pg_temp
    AS $$
    SELECT f.fault, f.confirmed FROM repl_ml.slot_faults(ARRAY[of_node]) f
    $$;
COMMENT ON FUNCTION repl_ml.slot_fault(integer, OUT text, OUT pg_lsn) IS 'the same of one peer, asked by it';

-- How the last stream to a peer ended
CREATE FUNCTION repl_ml.stream_ended_with(of_node integer) RETURNS text
    AS 'MODULE_PATHNAME', 'repl_ml_stream_ended_with' LANGUAGE C VOLATILE STRICT;
COMMENT ON FUNCTION repl_ml.stream_ended_with(integer) IS 'asked by a peer that connects anew: the SQLSTATE with which the last walsender that served it ended; null where there was no error, or it is not known any more';

-- Which commits of a peer this node has by now, or never will have, of those it had parked something of
CREATE FUNCTION repl_ml.decided_commits(of_node integer, commits pg_lsn[]) RETURNS text
    LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
    AS $$
    SELECT coalesce(pg_catalog.array_agg(CASE WHEN d.node_id IS NULL THEN c::text ELSE '-' || c END), '{}')::text
      FROM pg_catalog.unnest(commits) c LEFT JOIN repl_ml.discarded_transaction d ON d.node_id = of_node AND d.commit_lsn = c
     WHERE d.node_id IS NOT NULL OR (c < repl_ml.received_lsn(of_node)
       AND NOT EXISTS (SELECT FROM repl_ml.parked_change p WHERE p.origin_node = of_node AND p.origin_lsn = c AND p.action NOT IN ('evicted', 'kept'))
       AND NOT EXISTS (SELECT FROM repl_ml.unsent u WHERE u.node_id = of_node AND u.origin_lsn = c)
       -- what was parked before a copy is forgotten when that begins
       AND NOT EXISTS (SELECT FROM repl_ml.table_sync y WHERE y.node_id = of_node AND y.state = 'pending'))
    $$;
COMMENT ON FUNCTION repl_ml.decided_commits(integer, pg_lsn[]) IS 'of these commits of a peer those that are applied here, with nothing parked, and with a minus those of which something was discarded here: asked by that peer, which does not count this node for these and for what is not decided';

-- What became of a transaction of this node
CREATE FUNCTION repl_ml.local_transaction(xid xid8, OUT state text, OUT level text, OUT past boolean)
    AS 'MODULE_PATHNAME', 'repl_ml_local_transaction' LANGUAGE C VOLATILE STRICT;
COMMENT ON FUNCTION repl_ml.local_transaction(xid8) IS 'a transaction of this node: in progress, aborted, committed, acknowledged or unknown, and its level where that is known to be above one; past: it is of before this server started, and whether a member has parked it is known there only';

-- What this node knows of a transaction: asked by peers; null where this is not a node of the group
CREATE FUNCTION repl_ml.transaction_facts(group_id uuid, origin integer, xid xid8) RETURNS text
    LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
    AS $$
    SELECT pg_catalog.jsonb_build_object('node', l.node_id, 'state', t.state, 'level', coalesce(t.level, r.level), 'commit_lsn', r.commit_lsn,
               'past', coalesce(t.past, false),
               'lacks', EXISTS (SELECT FROM repl_ml.parked_change c WHERE c.origin_node = transaction_facts.origin AND c.origin_xid = transaction_facts.xid::xid
                                   AND NOT c.put_aside AND c.action NOT IN ('evicted', 'kept'))
                        OR EXISTS (SELECT FROM repl_ml.unsent c WHERE c.node_id = transaction_facts.origin AND c.origin_xid = transaction_facts.xid::xid)
                        OR EXISTS (SELECT FROM repl_ml.discarded_transaction c WHERE c.node_id = transaction_facts.origin AND c.xid = transaction_facts.xid::xid),
               -- what is put aside counts, as it did when the commit was acknowledged
               'reissued_until', (SELECT pg_catalog.max(s.became_at) FROM repl_ml.server_start s WHERE s.first_xid <= transaction_facts.xid),
               'applied_lsn', CASE WHEN p.pending THEN '0/0' ELSE repl_ml.received_lsn(transaction_facts.origin) END,
               'has', r.commit_lsn IS NOT NULL AND d.node_id IS NOT NULL AND NOT p.pending,
               'has_not', r.commit_lsn IS NULL AND d.node_id IS NOT NULL AND NOT p.pending AND (d.applied_lsn > '0/0' OR l.copy_data)
                          AND transaction_facts.xid >= coalesce(f.xid, '0'))::text
      FROM repl_ml.local_node l
      LEFT JOIN repl_ml.transaction_record r ON r.node_id = transaction_facts.origin AND r.xid = transaction_facts.xid
      LEFT JOIN repl_ml.record_floor f ON f.node_id = transaction_facts.origin
      LEFT JOIN repl_ml.dropped_node d ON d.node_id = transaction_facts.origin
      LEFT JOIN LATERAL repl_ml.local_transaction(transaction_facts.xid) t ON l.node_id = transaction_facts.origin
      -- of a dropped node any peer may have more
      CROSS JOIN LATERAL (SELECT EXISTS (SELECT FROM repl_ml.table_sync y WHERE y.state = 'pending'
                                            AND (y.node_id = transaction_facts.origin OR d.node_id IS NOT NULL)) AS pending) p
     WHERE l.group_id = transaction_facts.group_id AND l.state <> 'dropped' AND NOT (SELECT i.fenced FROM repl_ml.local_info() i)
    $$;
COMMENT ON FUNCTION repl_ml.transaction_facts(uuid, integer, xid8) IS 'what this node knows of a transaction of a node (as JSON): asked by peers. lacks: something of it is parked here or was discarded. has and has_not are of a dropped node, of which nothing more can come';

