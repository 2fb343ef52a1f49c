--
-- Tables that change their class while they are written: see test/model/class.pml
--

CREATE FUNCTION repl_ml.let_writers_end(relation regclass) RETURNS void
    AS 'MODULE_PATHNAME', 'repl_ml_let_writers_end' LANGUAGE C VOLATILE STRICT;
COMMENT ON FUNCTION repl_ml.let_writers_end(regclass) IS 'returns when all transactions have ended that have written a table, and keeps others from it until this one ends';

-- Whoever has written it, or has locked rows of it; readers do not matter
CREATE FUNCTION repl_ml.writers(relation regclass) RETURNS text
    LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
    AS $$
    SELECT pg_catalog.string_agg(DISTINCT coalesce('process ' || l.pid, pg_catalog.format('prepared transaction %L', p.gid), 'a prepared transaction'), ', ')
      FROM pg_catalog.pg_locks l
      LEFT JOIN (pg_catalog.pg_locks x JOIN pg_catalog.pg_prepared_xacts p ON p.transaction = x.transactionid)
             ON l.pid IS NULL AND x.pid IS NULL AND x.locktype = 'transactionid' AND x.virtualtransaction = l.virtualtransaction
     WHERE l.locktype = 'relation' AND l.database = (SELECT d.oid FROM pg_catalog.pg_database d WHERE d.datname = pg_catalog.current_database())
       AND l.relation IN (SELECT writers.relation UNION SELECT p.relid FROM pg_catalog.pg_partition_tree(writers.relation) p)
       AND l.granted AND l.mode <> 'AccessShareLock' AND l.pid IS DISTINCT FROM pg_catalog.pg_backend_pid()
    $$;
COMMENT ON FUNCTION repl_ml.writers(regclass) IS 'the processes and prepared transactions that have a lock of a table that is not only a reader''s; null if there are none';

-- Asked by the member on which it is ordered
CREATE FUNCTION repl_ml.class_obstacle(of_schema name, of_table name) RETURNS text
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET lock_timeout = '1s'
    AS $$
    DECLARE
        relation regclass := repl_ml.find_table(of_schema, of_table)::regclass;
    BEGIN
        IF relation IS NULL OR NOT repl_ml.is_published(relation) THEN
            RETURN pg_catalog.format('table %I.%I is not replicated there yet', of_schema, of_table);
        END IF;
        PERFORM repl_ml.let_writers_end(relation);
        RETURN coalesce(repl_ml.strong_obstacle(of_schema, of_table), '');
    EXCEPTION WHEN lock_not_available OR deadlock_detected THEN
        RETURN pg_catalog.format('transactions that have written table %I.%I do not end: %s', of_schema, of_table, repl_ml.writers(relation));
    END
    $$;
COMMENT ON FUNCTION repl_ml.class_obstacle(name, name) IS 'called by a member on which somebody changes the class of a table: what is in the way of that here; empty if nothing is';

CREATE FUNCTION repl_ml.set_table_class(relation regclass, class text) RETURNS void
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
    AS $$
    DECLARE
        listed repl_ml.replicated_table;
        names name[];
        dsns text[];
        a record;
    BEGIN
        PERFORM repl_ml.refuse_nulls('relation, class', pg_catalog.num_nulls(relation, class));
        PERFORM repl_ml.require_member();
        IF class <> ALL ('{eventual, strong}') THEN
            RAISE EXCEPTION 'class "%" does not exist', class USING ERRCODE = 'invalid_parameter_value', HINT = 'Use eventual or strong.';
        END IF;
        SELECT t.* INTO listed FROM repl_ml.require_replicated(relation) r JOIN repl_ml.replicated_table t ON t.schema_name = r.schema_name AND t.table_name = r.table_name;
        IF coalesce(listed.pending_class, listed.class) = class THEN
            RETURN;
        ELSIF listed.pending_class IS NOT NULL THEN
            RAISE EXCEPTION 'table % is changing its class already, from % to %', relation, listed.class, listed.pending_class USING ERRCODE = 'object_in_use',
                HINT = pg_catalog.format('Run SELECT repl_ml.wait_for_table_class(%L) first.', relation);
        END IF;
        SELECT pg_catalog.array_agg(m.node_name ORDER BY m.node_id), pg_catalog.array_agg(m.dsn ORDER BY m.node_id) INTO names, dsns
          FROM repl_ml.member m, repl_ml.local_node l WHERE m.state <> 'dropped' AND m.node_id <> l.node_id;
        IF names IS NULL THEN
            PERFORM repl_ml.let_writers_end(relation);
            UPDATE repl_ml.replicated_table t SET class = set_table_class.class, class_change = pg_catalog.clock_timestamp()
             WHERE t.schema_name = listed.schema_name AND t.table_name = listed.table_name;
            RETURN;
        END IF;
        PERFORM repl_ml.require_ready(m.node_name) FROM repl_ml.member m WHERE m.state = 'joining';
        -- from the order on whoever writes the table waits for all of them
        FOR a IN SELECT x.node_name, x.obstacle FROM ROWS FROM (pg_catalog.unnest(names), pg_catalog.unnest(repl_ml.ask_members(dsns, pg_catalog.format('SELECT repl_ml.class_obstacle(%L, %L)', listed.schema_name, listed.table_name)))) x (node_name, obstacle)
                  WHERE x.obstacle IS NULL OR x.obstacle <> '' LOOP
            IF a.obstacle IS NULL THEN
                RAISE EXCEPTION 'the class of table % cannot be changed now: node "%" does not answer', relation, a.node_name USING ERRCODE = 'cannot_connect_now',
                    DETAIL = 'All members have to let the transactions end that have written the table.',
                    HINT = pg_catalog.format('Try again when it is back; for a node that will not come back, run SELECT repl_ml.drop_node(%L).', a.node_name);
            END IF;
            RAISE EXCEPTION 'the class of table % cannot be changed now: on node "%" %', relation, a.node_name, a.obstacle USING ERRCODE = 'object_not_in_prerequisite_state',
                HINT = pg_catalog.format('Try again when that is over; see SELECT * FROM repl_ml.health on node "%s".', a.node_name);
        END LOOP;
        -- one after the other, and after changes of the schema
        PERFORM repl_ml.take_lease();
        UPDATE repl_ml.replicated_table t SET pending_class = set_table_class.class, class_change = pg_catalog.clock_timestamp()
         WHERE t.schema_name = listed.schema_name AND t.table_name = listed.table_name AND t.state = 'enrolled' AND t.class = listed.class AND t.pending_class IS NULL;
        IF NOT FOUND THEN
            RAISE EXCEPTION 'table % has been changed meanwhile', relation USING ERRCODE = 'serialization_failure', HINT = 'Run it again.';
        END IF;
        PERFORM repl_ml.wake_workers();
    END
    $$;
COMMENT ON FUNCTION repl_ml.set_table_class(regclass, text) IS
    'changes the class of a replicated table that may have rows, to strong or eventual, on all members, when the transaction commits: statements that write it wait then until all that was written in the old class is on all members, and go on in the new one; column pending_class of the view tables is null then, and wait_for_table_class() returns. All members have to be there. Superusers only. Errors: 55000 not a member, not replicated, a node is joining, transactions do not end or rows are missing somewhere, 55006 it is changing already, 57P03 a node does not answer or the lease of strong tables does not come, 22023 no such class';

CREATE FUNCTION repl_ml.wait_for_table_class(relation regclass, timeout interval DEFAULT '1 min') RETURNS void
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
    AS $$
    DECLARE
        t record;
        until timestamptz := pg_catalog.clock_timestamp() + timeout;
        problem text;
    BEGIN
        PERFORM repl_ml.refuse_nulls('relation, timeout', pg_catalog.num_nulls(relation, timeout));
        IF pg_catalog.current_setting('transaction_isolation') IN ('repeatable read', 'serializable') THEN
            RAISE EXCEPTION 'wait_for_table_class() sees no change in a transaction that keeps its snapshot' USING ERRCODE = 'active_sql_transaction', HINT = 'Call it in READ COMMITTED.';
        END IF;
        SELECT * INTO t FROM repl_ml.require_replicated(relation);
        WHILE EXISTS (SELECT FROM repl_ml.replicated_table r WHERE r.schema_name = t.schema_name AND r.table_name = t.table_name AND r.state = 'enrolled' AND r.pending_class IS NOT NULL) LOOP
            IF pg_catalog.clock_timestamp() > until THEN
                problem := repl_ml.class_problem(t.schema_name, t.table_name);
                RAISE EXCEPTION 'the class of table % has not changed within %', relation, timeout USING ERRCODE = 'query_canceled',
                    DETAIL = coalesce(problem, ''), HINT = 'It goes on; see the column problem of repl_ml.tables on each node.';
            END IF;
            PERFORM pg_catalog.pg_sleep(0.02);
        END LOOP;
    END
    $$;
COMMENT ON FUNCTION repl_ml.wait_for_table_class(regclass, interval) IS
    'waits until this node writes a table in its new class, after set_table_class() or add_table() on any member; returns at once where none is pending. Errors: 57014 timeout, with what is waited for, 55000 not replicated, 25001 in a transaction that keeps its snapshot';

-- How far each member is with the change that is pending: 0, 1: it lets nobody write the table in the old class any more, 2: it has all that was written so
CREATE FUNCTION repl_ml.class_stages(of_schema name, of_table name, OUT node_id integer, OUT node_name name, OUT state text, OUT stage integer) RETURNS SETOF record
    LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
    AS $$
    SELECT m.node_id, m.node_name, m.state, coalesce(s.class_stage, 0)
      FROM repl_ml.replicated_table t CROSS JOIN repl_ml.member m
      LEFT JOIN repl_ml.table_shape s ON s.node_id = m.node_id AND s.schema_name = t.schema_name AND s.table_name = t.table_name AND s.class_change = t.class_change
     WHERE t.schema_name = of_schema AND t.table_name = of_table AND m.state <> 'dropped'
    $$;
COMMENT ON FUNCTION repl_ml.class_stages(name, name) IS 'how far each member has told that it is with the change of a table''s class: 1: nobody writes it there in the old class any more, 2: it has all that was written so';

CREATE FUNCTION repl_ml.class_problem(of_schema name, of_table name) RETURNS text
    LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
    AS $$
    SELECT pg_catalog.format('it becomes %s: ', t.pending_class) ||
           CASE WHEN me.stage = 0 THEN 'this node waits for ' || coalesce(repl_ml.writers(repl_ml.find_table(of_schema, of_table)::regclass), 'those that write it')
                WHEN o.first IS NOT NULL THEN 'not all transactions that have written it have ended on ' || o.first
                WHEN me.stage = 1 AND x.obstacle IS NOT NULL THEN x.obstacle
                WHEN o.second IS NOT NULL THEN 'not all rows have come to ' || o.second
                ELSE 'all is done' END
      FROM repl_ml.replicated_table t CROSS JOIN repl_ml.local_node l JOIN repl_ml.class_stages(of_schema, of_table) me ON me.node_id = l.node_id
     CROSS JOIN (SELECT pg_catalog.string_agg(pg_catalog.format('node "%s"', s.node_name), ', ' ORDER BY s.node_id) FILTER (WHERE s.stage = 0) AS first,
                        pg_catalog.string_agg(pg_catalog.format('node "%s"', s.node_name), ', ' ORDER BY s.node_id) FILTER (WHERE s.stage < 2) AS second
                   FROM repl_ml.class_stages(of_schema, of_table) s) o
     CROSS JOIN (SELECT repl_ml.class_lacks(of_schema, of_table) AS obstacle) x
     WHERE t.schema_name = of_schema AND t.table_name = of_table AND t.pending_class IS NOT NULL
    $$;
COMMENT ON FUNCTION repl_ml.class_problem(name, name) IS 'what the change of a table''s class waits for, as far as this node knows; null if none is pending';

-- What of the old class may still come, or go, here
CREATE FUNCTION repl_ml.class_lacks(of_schema name, of_table name) RETURNS text
    LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp
    AS $$
    SELECT CASE WHEN s.unclean THEN 'strong tables are being made what they are on the other members'
                WHEN repl_ml.strong_given_up() <> 0 THEN 'a commit of a strong table is not acknowledged yet'
                ELSE repl_ml.strong_obstacle(of_schema, of_table) END
      FROM repl_ml.lease_state s
    $$;
COMMENT ON FUNCTION repl_ml.class_lacks(name, name) IS 'why this node cannot say that it has all that was written to a table, though all members have told that they write it no more; null if it can';

-- One step of each change that is pending
CREATE FUNCTION repl_ml.change_classes() RETURNS void
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp SET lock_timeout = '200ms'
    AS $$
    DECLARE
        t record;
        me record;
        told record;
        relation regclass;
    BEGIN
        FOR t IN SELECT r.schema_name, r.table_name, r.pending_class, r.class_change FROM repl_ml.replicated_table r WHERE r.pending_class IS NOT NULL AND r.state = 'enrolled' ORDER BY 1, 2 LOOP
            relation := repl_ml.find_table(t.schema_name, t.table_name)::regclass;
            SELECT s.* INTO me FROM repl_ml.local_node l JOIN repl_ml.class_stages(t.schema_name, t.table_name) s USING (node_id);
            SELECT pg_catalog.min(s.stage) AS least, pg_catalog.min(s.stage) FILTER (WHERE s.state = 'ready') AS least_ready INTO told FROM repl_ml.class_stages(t.schema_name, t.table_name) s;
            IF me.stage = 0 AND relation IS NOT NULL AND repl_ml.is_published(relation) THEN
                BEGIN
                    PERFORM repl_ml.let_writers_end(relation);
                    UPDATE repl_ml.table_shape s SET class_change = t.class_change, class_stage = 1 WHERE s.node_id = me.node_id AND s.schema_name = t.schema_name AND s.table_name = t.table_name;
                EXCEPTION WHEN lock_not_available OR deadlock_detected THEN
                    CONTINUE;
                END;
            ELSIF me.stage = 1 AND told.least >= 1 AND repl_ml.class_lacks(t.schema_name, t.table_name) IS NULL THEN
                UPDATE repl_ml.table_shape s SET class_stage = 2 WHERE s.node_id = me.node_id AND s.schema_name = t.schema_name AND s.table_name = t.table_name;
            ELSIF me.stage = 2 AND told.least >= 1 AND told.least_ready = 2 THEN
                UPDATE repl_ml.replicated_table r SET class = t.pending_class, pending_class = NULL
                 WHERE r.schema_name = t.schema_name AND r.table_name = t.table_name AND r.class_change = t.class_change AND r.pending_class = t.pending_class;
            END IF;
        END LOOP;
    END
    $$;
COMMENT ON FUNCTION repl_ml.change_classes() IS 'does what is to be done on this node for tables that change their class';
