--
-- Who may do what
--

-- A subscription to another member's tables, all of them, would make this database think it is that one
CREATE FUNCTION repl_ml.refuse_subscription() RETURNS pg_catalog.trigger
    AS 'MODULE_PATHNAME', 'repl_ml_refuse_subscription' LANGUAGE C;
COMMENT ON FUNCTION repl_ml.refuse_subscription() IS 'trigger: keeps subscriptions of PostgreSQL''s own out of repl_ml''s tables, and restored dumps out of a member''s';
DO $$
DECLARE
    t regclass;
BEGIN
    FOR t IN SELECT c.oid FROM pg_catalog.pg_class c WHERE c.relnamespace OPERATOR(pg_catalog.=) 'repl_ml'::pg_catalog.regnamespace AND c.relkind OPERATOR(pg_catalog.=) 'r' LOOP
        EXECUTE pg_catalog.format('CREATE TRIGGER refuse_subscription BEFORE INSERT OR UPDATE OR DELETE ON %s FOR EACH ROW EXECUTE FUNCTION repl_ml.refuse_subscription()', t);
        EXECUTE pg_catalog.format('ALTER TABLE %s ENABLE ALWAYS TRIGGER refuse_subscription', t);
    END LOOP;
END
$$;

-- Nothing is for everybody but what reading a clock, writing an enrolled table and making a partition of it needs: that gets
-- our triggers as its owner. Others who make a trigger of them are refused (write/guard.c)
DO $$
DECLARE
    f regprocedure;
BEGIN
    -- what is parsed when it is called reads backslashes as this script does, whatever the caller's session says
    FOR f IN SELECT p.oid FROM pg_catalog.pg_proc p JOIN pg_catalog.pg_language l ON l.oid OPERATOR(pg_catalog.=) p.prolang
              WHERE p.pronamespace OPERATOR(pg_catalog.=) 'repl_ml'::pg_catalog.regnamespace
                AND l.lanname OPERATOR(pg_catalog.=) ANY ('{sql, plpgsql}') AND pg_catalog.strpos(p.prosrc, E'\\') OPERATOR(pg_catalog.>) 0 LOOP
        EXECUTE pg_catalog.format('ALTER FUNCTION %s SET standard_conforming_strings = on', f);
    END LOOP;
    FOR f IN SELECT p.oid FROM pg_catalog.pg_proc p
              WHERE p.pronamespace OPERATOR(pg_catalog.=) 'repl_ml'::pg_catalog.regnamespace
                AND NOT (p.provolatile OPERATOR(pg_catalog.=) 'i' AND p.proparallel OPERATOR(pg_catalog.=) 's')
                AND p.proname OPERATOR(pg_catalog.<>) ALL ('{tick, insert_pending, moved_pending, stamp_insert, stamp_update, stamp_moved, stamp_delete, stamp_truncate, orphans, current_vector, wait_for_vector, barrier, transaction_token, transaction_status, verify_table, verify_all, diff_rows, row_history, row_status, nextval, identity_number}') LOOP
        EXECUTE pg_catalog.format('REVOKE ALL ON ROUTINE %s FROM PUBLIC', f);
    END LOOP;
END
$$;

-- Seeing: connection strings and rows excepted
GRANT EXECUTE ON FUNCTION repl_ml.worker_stats(), repl_ml.worker_rests(integer), repl_ml.write_members(), repl_ml.write_waiters(), repl_ml.write_stats(), repl_ml.lease_stats(), repl_ml.unacknowledged(), repl_ml.verify_progress(),
    repl_ml.wal_end(), repl_ml.lacks_since(pg_lsn), repl_ml.link_name(integer), repl_ml.enrol_obstacle(regclass), repl_ml.sequence_facts(regclass), repl_ml.own_numbers(regclass[]), repl_ml.column_types(regclass), repl_ml.check_setup(text), repl_ml.check_settings(integer),
    repl_ml.listed_tables(), repl_ml.differing_shapes(), repl_ml.forgotten_tables(), repl_ml.planned_checks(), repl_ml.checks(), repl_ml.samples(name) TO pg_monitor;
GRANT SELECT ON repl_ml.nodes, repl_ml.tables, repl_ml.shape_differences, repl_ml.unreplicated_tables, repl_ml.conflict_policies, repl_ml.stat_replication, repl_ml.stat_apply, repl_ml.stat_conflicts,
    repl_ml.stat_write_consistency, repl_ml.stat_write_waiters, repl_ml.strong_lease, repl_ml.stat_strong, repl_ml.void_transactions, repl_ml.stat_progress_verify, repl_ml.consistency_checks, repl_ml.scheduled_checks, repl_ml.sequences, repl_ml.health TO pg_monitor;
-- what pg_dump saves of an extension has to be read by whoever dumps the database
GRANT SELECT ON repl_ml.replicated_table, repl_ml.conflict_policy TO PUBLIC;
-- they filter their rows by themselves
GRANT SELECT ON repl_ml.conflicts, repl_ml.repair_history TO PUBLIC;

-- Operating. What forms a group stays with superusers: a connection string makes the server connect
-- as its operating system user, and a member creates what other members define.
GRANT pg_monitor TO repl_ml_admin;
GRANT SELECT ON repl_ml.parked_changes TO repl_ml_admin;
GRANT EXECUTE ON FUNCTION repl_ml.pause_apply(name), repl_ml.resume_apply(name), repl_ml.retry_parked(bigint), repl_ml.discard_parked(bigint),
    repl_ml.reset_write_stats(), repl_ml.repair_table(regclass, boolean, name, interval), repl_ml.invite_node(name, interval), repl_ml.admit_node(name, text) TO repl_ml_admin;

-- Replicating: what a peer asks and copies; the stream itself needs the role attribute
GRANT SELECT ON repl_ml.member, repl_ml.replicated_table, repl_ml.tombstone, repl_ml.collection, repl_ml.conflict_policy, repl_ml.table_shape, repl_ml.invitation, repl_ml.verification, repl_ml.group_sequence, repl_ml.sequence_use, repl_ml.schema_change, repl_ml.peer_start, repl_ml.concurrent_version, repl_ml.transaction_record, repl_ml.record_floor TO repl_ml_replication;
GRANT EXECUTE ON FUNCTION repl_ml.local_info(integer), repl_ml.vouch_for(uuid, integer, integer, integer, boolean, pg_lsn, bigint, text), repl_ml.note_set_back(integer, timestamptz, bigint, pg_lsn, bigint), repl_ml.return_secret(uuid, integer), repl_ml.place(uuid, integer), repl_ml.readmit_node(uuid, integer, integer), repl_ml.applied_lsn(integer), repl_ml.decided_commits(integer, pg_lsn[]), repl_ml.final_lsn(integer), repl_ml.end_old_session(integer), repl_ml.slot_fault(integer), repl_ml.stream_ended_with(integer), repl_ml.transaction_facts(uuid, integer, xid8),
    repl_ml.admit_node(name, text), repl_ml.register_node(uuid, integer, name, text, text, integer, text, bigint, timestamptz, text, integer, bigint, bigint), repl_ml.others_return(integer), repl_ml.server_starts(), repl_ml.all_known(),
    repl_ml.forget_node(uuid, integer, timestamptz), repl_ml.cannot_create(jsonb),
    repl_ml.rows_to_copy(regclass, name[], name, name, boolean), repl_ml.chunk_sums(regclass, text, integer), repl_ml.note_digests(integer, bytea), repl_ml.digests_lacking(regclass, text, boolean), repl_ml.removed_up_to(), repl_ml.rows_left_out(), repl_ml.require_copyable(regclass, name[]), repl_ml.send_columns(regclass), repl_ml.parked_tables(),
    repl_ml.verify_keys(text, text, text, integer, text[], repl_ml.vclock, integer, integer),
    repl_ml.verify_positions(), repl_ml.verify_changes(text, text, text, integer, repl_ml.vclock), repl_ml.verify_news(text, text, text, integer, text[]),
    repl_ml.repair_source(text, text, text, integer, text[], boolean), repl_ml.repair_rows(text, text, text, integer, text[], integer, boolean, bytea, text[]) TO repl_ml_replication;
GRANT EXECUTE ON PROCEDURE repl_ml.verify_sums(text, text, text, integer, repl_ml.vclock, integer, integer, bytea), repl_ml.verify_rows(text, text, text, integer, bytea, integer, integer, bytea) TO repl_ml_replication;
GRANT EXECUTE ON FUNCTION repl_ml.number_marks(uuid, integer, text[]), repl_ml.accept_range(uuid, integer, text[], name, name, bigint, bigint), repl_ml.get_range(oid, name, name, bigint, bigint, bigint, bigint, bigint, bigint), repl_ml.tend_sequence(), repl_ml.require_member() TO repl_ml_replication;
GRANT EXECUTE ON FUNCTION repl_ml.lease_state(), repl_ml.lease_round(), repl_ml.lease_vote(uuid, bigint, integer, bigint, integer, text[]), repl_ml.lease_accept(jsonb), repl_ml.lease_want(), repl_ml.lease_ask(integer), repl_ml.may_donate_strong(bigint, text, text, text), repl_ml.class_obstacle(name, name), repl_ml.strong_given_up(), repl_ml.schema_number(), repl_ml.hear_pause(integer), repl_ml.row_sight(name, name, text[]) TO repl_ml_replication;

GRANT EXECUTE ON FUNCTION repl_ml.run_locally(text) TO PUBLIC;
GRANT SELECT ON repl_ml.schema_changes TO pg_monitor;

-- What the views of how it goes are made of
GRANT EXECUTE ON FUNCTION repl_ml.link_stats(), repl_ml.network_stats(), repl_ml.commits_behind(pg_lsn) TO pg_monitor;
GRANT EXECUTE ON FUNCTION repl_ml.own_status(), repl_ml.status(), repl_ml.short_time(interval) TO pg_monitor;
GRANT SELECT ON repl_ml.conflicts_by_hour, repl_ml.stat_network, repl_ml.group_status, repl_ml.top TO pg_monitor;
GRANT EXECUTE ON FUNCTION repl_ml.group_lines() TO pg_monitor;
