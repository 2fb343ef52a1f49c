--
-- Whether tables are the same on all members
--

-- What members ask each other; answers are for src/verify/ only
-- Procedures, as a function's snapshot could not be let go while it rests
CREATE PROCEDURE repl_ml.verify_sums(schema_name text, table_name text, signature text, chunks integer, stable repl_ml.vclock, rate integer, max_lag integer, INOUT answer bytea)
    AS 'MODULE_PATHNAME', 'repl_ml_verify_sums' LANGUAGE C SECURITY DEFINER SET search_path = pg_catalog, pg_temp;
COMMENT ON PROCEDURE repl_ml.verify_sums(text, text, text, integer, repl_ml.vclock, integer, integer, bytea) IS 'sums of the hashes of this node''s rows of a table, for each chunk of keys; stable is a clock that all members have; read at this rate and not while members lag more';
CREATE PROCEDURE repl_ml.verify_rows(schema_name text, table_name text, signature text, chunks integer, wanted bytea, rate integer, max_lag integer, INOUT answer bytea)
    AS 'MODULE_PATHNAME', 'repl_ml_verify_rows' LANGUAGE C SECURITY DEFINER SET search_path = pg_catalog, pg_temp;
COMMENT ON PROCEDURE repl_ml.verify_rows(text, text, text, integer, bytea, integer, integer, bytea) IS 'keys, hashes and clocks of this node''s rows in the chunks whose bits are set, read at this rate and not while members lag more';
CREATE FUNCTION repl_ml.verify_keys(schema_name text, table_name text, signature text, chunks integer, keys text[], wanted repl_ml.vclock, patience integer, details integer) RETURNS bytea
    AS 'MODULE_PATHNAME', 'repl_ml_verify_keys' LANGUAGE C VOLATILE STRICT SECURITY DEFINER SET search_path = pg_catalog, pg_temp;
COMMENT ON FUNCTION repl_ml.verify_keys(text, text, text, integer, text[], repl_ml.vclock, integer, integer) IS 'what this node knows of these keys, after it has caught up with these positions or has waited for so many milliseconds';
CREATE FUNCTION repl_ml.verify_positions() RETURNS repl_ml.vclock
    AS 'MODULE_PATHNAME', 'repl_ml_verify_positions' LANGUAGE C VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp;
COMMENT ON FUNCTION repl_ml.verify_positions() IS 'a token for everything that can have been seen or written on this node, which the others are told at once';

-- Both in one transaction, under its snapshot
CREATE FUNCTION repl_ml.verify_changes(schema_name text, table_name text, signature text, chunks integer, stable repl_ml.vclock) RETURNS bytea
    AS 'MODULE_PATHNAME', 'repl_ml_verify_changes' LANGUAGE C VOLATILE STRICT SECURITY DEFINER SET search_path = pg_catalog, pg_temp;
COMMENT ON FUNCTION repl_ml.verify_changes(text, text, text, integer, repl_ml.vclock) IS 'the sum of the hashes of this node''s rows of a table, for which only changed pages are read, and the keys of rows and deletions that are above a clock that all members have';
CREATE FUNCTION repl_ml.verify_news(schema_name text, table_name text, signature text, chunks integer, keys text[]) RETURNS bytea
    AS 'MODULE_PATHNAME', 'repl_ml_verify_news' LANGUAGE C VOLATILE STRICT SECURITY DEFINER SET search_path = pg_catalog, pg_temp;
COMMENT ON FUNCTION repl_ml.verify_news(text, text, text, integer, text[]) IS 'hashes and clocks of this node''s rows with these keys';

-- Of a member that cannot be reached nobody knows how late it is
CREATE FUNCTION repl_ml.greatest_lag() RETURNS bigint
    LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
    AS $$
    SELECT coalesce(pg_catalog.max(greatest(EXTRACT(epoch FROM pg_catalog.clock_timestamp() - h.sent_at) * 1000 - coalesce(repl_ml.counter(h.behind, l.node_id), 0) / 1000,
                                            (o.safe_counter - repl_ml.counter(h.applied, l.node_id)) / 1000)), 0)::bigint
      FROM repl_ml.local_node l JOIN repl_ml.heartbeat o ON o.node_id = l.node_id
      JOIN repl_ml.heartbeat h ON h.node_id <> l.node_id JOIN repl_ml.write_members() w ON w.node_id = h.node_id AND w.reachable
    $$;
COMMENT ON FUNCTION repl_ml.greatest_lag() IS 'how late, in milliseconds, the changes of a member come here, or those of this node there, at most, by their heartbeats; members that cannot be reached are left out';

-- Who is at it, too, may be so for long: what it removes is left
CREATE FUNCTION repl_ml.forget_checks(of_schema name, of_table name) RETURNS void
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
    AS $$
    BEGIN
        DELETE FROM repl_ml.consistency_check c WHERE c.id IN (
            SELECT x.id FROM repl_ml.consistency_check x
             WHERE x.schema_name = of_schema AND x.table_name = of_table
               AND x.id NOT IN (SELECT y.id FROM repl_ml.consistency_check y WHERE y.schema_name = of_schema AND y.table_name = of_table ORDER BY y.id DESC LIMIT 10)
               AND x.id IS DISTINCT FROM (SELECT pg_catalog.max(y.id) FROM repl_ml.consistency_check y WHERE y.schema_name = of_schema AND y.table_name = of_table AND y.status = 'consistent')
               AND NOT (x.unwatched AND NOT EXISTS (SELECT FROM repl_ml.consistency_check y WHERE y.schema_name = of_schema AND y.table_name = of_table AND y.status = 'consistent' AND y.id > x.id))
               FOR UPDATE SKIP LOCKED);
    END $$;
COMMENT ON FUNCTION repl_ml.forget_checks(name, name) IS 'removes the comparisons of a table but for the last ten, the last one without a difference, and what calls for one';

CREATE FUNCTION repl_ml.verify_table(relation regclass, timeout interval DEFAULT '30 s', incremental boolean DEFAULT false, OUT relation regclass, OUT status text, OUT members name[], OUT unreachable name[], OUT rows bigint, OUT chunks integer,
    OUT differing_rows bigint, OUT rechecked_rows bigint, OUT started_at timestamptz, OUT duration interval, OUT detail text, OUT hint text, OUT mode text, OUT hashed_rows bigint)
    AS 'MODULE_PATHNAME', 'repl_ml_verify_table' LANGUAGE C VOLATILE SET search_path = pg_catalog, pg_temp;
COMMENT ON FUNCTION repl_ml.verify_table(regclass, interval, boolean) IS
    'compares a table on all members: consistent, differs, or incomplete where members could not be compared (unreachable, with the reason in detail) or have not caught up within the timeout. With incremental only rows on pages that have changed since the last time are read (mode says whether that was enough); damage of others is found by full ones only. For repl_ml_admin and the owner of the table. Errors: 42501 not allowed, 55000 not a member or not replicated, 25001 in a transaction that has written';

CREATE FUNCTION repl_ml.diff_rows(relation regclass, max_rows integer DEFAULT 1000, timeout interval DEFAULT '30 s', OUT key text[], OUT verdict text, OUT columns name[], OUT versions jsonb, OUT detail text)
    RETURNS SETOF record
    AS 'MODULE_PATHNAME', 'repl_ml_diff_rows' LANGUAGE C VOLATILE SET search_path = pg_catalog, pg_temp;
COMMENT ON FUNCTION repl_ml.diff_rows(regclass, integer, interval) IS
    'the rows of a table that are not the same on all members: the key, why (lagging, missing, extra, concurrent, corrupt, parked; schema for a member whose table is another one), the columns that differ, and by node the clock and the row. Keys and rows are null for who may not read the table. For repl_ml_admin and the owner of the table. Errors: as verify_table, 22023 max_rows is negative';

CREATE FUNCTION repl_ml.verify_all(timeout interval DEFAULT '30 s', incremental boolean DEFAULT false, OUT relation regclass, OUT status text, OUT members name[], OUT unreachable name[], OUT rows bigint, OUT chunks integer,
    OUT differing_rows bigint, OUT rechecked_rows bigint, OUT started_at timestamptz, OUT duration interval, OUT detail text, OUT hint text, OUT mode text, OUT hashed_rows bigint)
    RETURNS SETOF record
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
    AS $$
    DECLARE
        t regclass;
        left_over bigint;
        absent record;
    BEGIN
        FOR t IN SELECT c.oid FROM pg_catalog.pg_publication p
                   JOIN pg_catalog.pg_publication_rel r ON r.prpubid = p.oid
                   JOIN pg_catalog.pg_class c ON c.oid = r.prrelid
                   JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
                  WHERE p.pubname = 'repl_ml' AND n.nspname <> 'repl_ml' AND NOT c.relispartition
                    AND (pg_catalog.pg_has_role(current_user, c.relowner, 'USAGE') OR pg_catalog.pg_has_role(current_user, 'repl_ml_admin', 'USAGE'))
                  ORDER BY n.nspname, c.relname LOOP
            -- one that cannot be compared keeps none of the others from it
            BEGIN
                SELECT v.* INTO relation, status, members, unreachable, rows, chunks, differing_rows, rechecked_rows, started_at, duration, detail, hint, mode, hashed_rows
                  FROM repl_ml.verify_table(t, timeout, incremental) v;
            EXCEPTION
                WHEN query_canceled OR admin_shutdown OR crash_shutdown OR active_sql_transaction THEN
                    RAISE;
                WHEN OTHERS THEN
                    -- dropped since the list was made
                    CONTINUE WHEN NOT EXISTS (SELECT FROM pg_catalog.pg_class c WHERE c.oid = t);
                    relation := t; status := 'incomplete'; members := NULL; unreachable := NULL; rows := NULL; chunks := NULL; differing_rows := NULL; rechecked_rows := NULL;
                    started_at := NULL; duration := NULL; detail := sqlerrm; mode := NULL; hashed_rows := NULL;
                    GET STACKED DIAGNOSTICS hint = PG_EXCEPTION_HINT;
                    hint := nullif(hint, '');
            END;
            -- what no member enforces when it applies: the same on all, or it differs; and rows of which all keep a copy only
            BEGIN
                SELECT pg_catalog.count(*) INTO left_over FROM repl_ml.orphans(t);
                IF left_over > 0 THEN
                    detail := pg_catalog.concat_ws('; ', detail, pg_catalog.format('rows whose foreign keys refer to nothing: %s', left_over));
                    hint := coalesce(hint, pg_catalog.format('Run SELECT * FROM repl_ml.orphans(%L).', t));
                END IF;
                SELECT pg_catalog.count(*) INTO left_over FROM repl_ml.parked_changes p JOIN pg_catalog.pg_class c ON c.oid = t AND c.relname = p.table_name
                  JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace AND n.nspname = p.schema_name WHERE p.action = 'evicted';
                IF left_over > 0 THEN
                    detail := pg_catalog.concat_ws('; ', detail, pg_catalog.format('rows that another node''s row with the same unique key has put aside: %s', left_over));
                    hint := coalesce(hint, 'See SELECT * FROM repl_ml.parked_changes; retry_parked(id) writes a row again, discard_parked(id) forgets it.');
                END IF;
            EXCEPTION
                WHEN query_canceled OR admin_shutdown OR crash_shutdown THEN
                    RAISE;
                WHEN insufficient_privilege OR undefined_table THEN
                    NULL;  -- who may not read both tables, or parked changes, does not hear of it
                WHEN OTHERS THEN
                    detail := pg_catalog.concat_ws('; ', detail, pg_catalog.format('foreign keys could not be looked at: %s', sqlerrm));
            END;
            RETURN NEXT;
        END LOOP;
        -- tables of the group that nobody can own here
        IF pg_catalog.pg_has_role(current_user, 'repl_ml_admin', 'USAGE') THEN
            FOR absent IN SELECT x.schema_name, x.table_name, x.relation, l.node_name FROM repl_ml.tables x JOIN repl_ml.nodes l ON l.is_local
                      WHERE x.state IN ('missing', 'pending') ORDER BY 1, 2 LOOP
                relation := absent.relation; status := 'incomplete'; members := NULL; unreachable := ARRAY[absent.node_name]; rows := NULL; chunks := NULL; differing_rows := NULL; rechecked_rows := NULL;
                started_at := NULL; duration := NULL; mode := NULL; hashed_rows := NULL;
                detail := pg_catalog.format(CASE WHEN absent.relation IS NULL THEN 'table %I.%I is missing on node "%s", this one' ELSE 'table %I.%I is not replicated on node "%s", this one, so far' END, absent.schema_name, absent.table_name, absent.node_name);
                hint := 'See SELECT * FROM repl_ml.tables.';
                RETURN NEXT;
            END LOOP;
        END IF;
    END
    $$;
COMMENT ON FUNCTION repl_ml.verify_all(interval, boolean) IS
    'compares all replicated tables, or those of the caller, on all members, one after the other: a row for each as of repl_ml.verify_table, whose detail also counts rows whose foreign keys refer to nothing, and rows that lost a unique key to another; for repl_ml_admin also one for each table of the group that is missing on this node (relation is null). Errors: 25001 in a transaction that has written';

CREATE FUNCTION repl_ml.repair_source(schema_name text, table_name text, signature text, chunks integer, keys text[], as_they_are boolean) RETURNS bytea
    AS 'MODULE_PATHNAME', 'repl_ml_repair_source' LANGUAGE C VOLATILE STRICT SECURITY DEFINER SET search_path = pg_catalog, pg_temp;
COMMENT ON FUNCTION repl_ml.repair_source(text, text, text, integer, text[], boolean) IS 'the versions of the rows with these keys, for a member that repairs its own';
CREATE FUNCTION repl_ml.repair_rows(schema_name text, table_name text, signature text, chunks integer, keys text[], source integer, replace boolean, seen bytea, verdicts text[]) RETURNS bytea
    AS 'MODULE_PATHNAME', 'repl_ml_repair_rows' LANGUAGE C VOLATILE STRICT SECURITY DEFINER SET search_path = pg_catalog, pg_temp;
COMMENT ON FUNCTION repl_ml.repair_rows(text, text, text, integer, text[], integer, boolean, bytea, text[]) IS 'joins the versions that another member has of these keys; replaces rows that are wrong under their clock, and are what they were seen to be';

CREATE FUNCTION repl_ml.repair_table(relation regclass, dry_run boolean DEFAULT true, source name DEFAULT NULL, timeout interval DEFAULT '30 s', OUT node_name name, OUT key text[], OUT action text, OUT verdict text, OUT before jsonb, OUT after jsonb, OUT detail text)
    RETURNS SETOF record
    AS 'MODULE_PATHNAME', 'repl_ml_repair_table' LANGUAGE C VOLATILE SET search_path = pg_catalog, pg_temp;
COMMENT ON FUNCTION repl_ml.repair_table(regclass, boolean, name, interval) IS
    'makes the rows of a table the same on all members, or says what it would do: the newest versions are joined where they are lacking, as if they had come; of rows that differ under one clock the one that most members have is right, or that of the source. A row for each thing done, or not done and why. What it changes on a node is in repl_ml.repair_history there. Errors: as verify_table, 42704 source is no member that can be compared';

--
-- Comparisons that are made when they are due
--
CREATE FUNCTION repl_ml.verifier_state() RETURNS text
    AS 'MODULE_PATHNAME', 'repl_ml_verifier_state' LANGUAGE C VOLATILE STRICT PARALLEL RESTRICTED;
COMMENT ON FUNCTION repl_ml.verifier_state() IS 'what compares tables on this node by repl_ml.verify_schedule: off, idle, running, or refused as no background worker was free';

-- The first in the order of ids begins, the others wait a little for each before them that could
CREATE FUNCTION repl_ml.verify_plan(OUT schedule interval, OUT full_schedule interval, OUT grace interval, OUT since timestamptz, OUT place bigint, OUT patience interval)
    LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
    AS $$
    BEGIN
        schedule := pg_catalog.current_setting('repl_ml.verify_schedule');
        full_schedule := pg_catalog.current_setting('repl_ml.verify_full_schedule');
        grace := least(greatest(schedule / 10, '2 s'), '10 min');
        since := greatest(pg_catalog.pg_postmaster_start_time(), pg_catalog.pg_conf_load_time());
        place := (SELECT pg_catalog.count(*) FROM repl_ml.write_members() w, repl_ml.local_node l WHERE w.reachable AND w.node_id < l.node_id);
        patience := 2 * schedule + (place + 1) * grace;
    END
    $$;
COMMENT ON FUNCTION repl_ml.verify_plan() IS
    'how this node keeps to repl_ml.verify_schedule: how many reachable members are before it, each of which gets the grace before it begins itself; since when; and how long after a comparison the next one is late';

CREATE FUNCTION repl_ml.planned_checks(OUT schema_name name, OUT table_name name, OUT compared_at timestamptz, OUT compared_by name, OUT status text, OUT good_at timestamptz, OUT full_at timestamptz, OUT goes_on_at name,
        OUT is_late boolean, OUT due_at timestamptz, OUT is_full boolean)
    RETURNS SETOF record
    LANGUAGE plpgsql STABLE SECURITY DEFINER ROWS 1000 SET search_path = pg_catalog, pg_temp SET jit = off SET enable_nestloop = off SET enable_mergejoin = off
    AS $$
    #variable_conflict use_column
    BEGIN
        RETURN QUERY
        SELECT r.schema_name, r.table_name, v.compared_at, m.node_name, ('{consistent,differs,incomplete}'::text[])[v.last[3]::integer], v.good_at, v.full_at, g.node_name,
               s.schedule > '0 s' AND coalesce(v.compared_at, s.since) + s.patience < pg_catalog.clock_timestamp(),
               CASE WHEN s.schedule > '0 s' AND v.goes_on IS NULL AND y.table_name IS NULL
                    THEN greatest(coalesce(v.compared_at + s.schedule, s.since) + s.place * s.grace,
                                  -- it was interrupted
                                  CASE WHEN v.compared_at IS DISTINCT FROM v.begun_at THEN v.begun_at + s.grace END) END,
               s.full_schedule <= s.schedule OR v.full_at IS NULL OR v.full_at + s.full_schedule <= pg_catalog.clock_timestamp()
          FROM repl_ml.verify_plan() s
         CROSS JOIN repl_ml.replicated_table r
          LEFT JOIN (SELECT x.schema_name, x.table_name, pg_catalog.max(x.begun_at) AS begun_at, pg_catalog.max(x.compared_at) AS compared_at, pg_catalog.max(x.good_at) AS good_at, pg_catalog.max(x.full_at) AS full_at,
                            -- where and how the last one ended; to sort for that takes longer than all else
                            pg_catalog.max(ARRAY[pg_catalog.date_part('epoch', x.compared_at), x.node_id, pg_catalog.array_position('{consistent,differs,incomplete}', x.status)]) FILTER (WHERE x.compared_at IS NOT NULL) AS last,
                            pg_catalog.max(x.node_id) FILTER (WHERE x.ended_at IS NULL AND w.reachable) AS goes_on
                       FROM repl_ml.verification x LEFT JOIN repl_ml.write_members() w ON w.node_id = x.node_id GROUP BY 1, 2) v
                 ON v.schema_name = r.schema_name AND v.table_name = r.table_name
          LEFT JOIN repl_ml.member m ON m.node_id = v.last[2] LEFT JOIN repl_ml.member g ON g.node_id = v.goes_on
          LEFT JOIN (SELECT DISTINCT x.schema_name, x.table_name FROM repl_ml.table_sync x WHERE x.state = 'pending') y ON y.schema_name = r.schema_name AND y.table_name = r.table_name
         WHERE r.state = 'enrolled';
    END
    $$;
COMMENT ON FUNCTION repl_ml.planned_checks() IS 'the rows of the view repl_ml.scheduled_checks';

CREATE VIEW repl_ml.scheduled_checks AS
    SELECT c.schema_name, c.table_name, c.compared_at, c.compared_by, c.status, c.good_at, c.full_at, c.goes_on_at, c.is_late, c.due_at, c.is_full FROM repl_ml.planned_checks() c;
COMMENT ON VIEW repl_ml.scheduled_checks IS
    'for each replicated table what repl_ml.verify_schedule makes of it: when a scheduled comparison began last and came to an end, on which member, what it found; when one found the table the same on all members, and read all rows; who is at it now; whether the next one is late, when it is due on this node (null: not scheduled here, or somebody is at it, or the table is still to be copied), and whether that one reads all rows';

CREATE FUNCTION repl_ml.next_verification() RETURNS bigint
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
    AS $$
    BEGIN
        UPDATE repl_ml.verification v SET ended_at = pg_catalog.clock_timestamp() FROM repl_ml.local_node l WHERE v.node_id = l.node_id AND v.ended_at IS NULL;
        -- who can be reached is not known at once after a start
        IF NOT EXISTS (SELECT FROM repl_ml.write_members()) THEN
            RETURN 1000;
        END IF;
        RETURN (SELECT coalesce(EXTRACT(epoch FROM least(pg_catalog.min(d.due_at) - pg_catalog.clock_timestamp(), '1 day')) * 1000, 86400000)::bigint FROM repl_ml.scheduled_checks d);
    END
    $$;
COMMENT ON FUNCTION repl_ml.next_verification() IS 'for the supervisor, when nothing is compared on this node: ends what a process has left behind, and returns in how many milliseconds a table is due';

CREATE FUNCTION repl_ml.begin_verification(OUT schema_name name, OUT table_name name, OUT is_full boolean) RETURNS record
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
    AS $$
    BEGIN
        SELECT d.schema_name, d.table_name, d.is_full INTO schema_name, table_name, is_full
          FROM repl_ml.scheduled_checks d WHERE d.due_at <= pg_catalog.clock_timestamp() ORDER BY d.due_at, d.schema_name, d.table_name LIMIT 1;
        IF table_name IS NOT NULL THEN
            INSERT INTO repl_ml.verification AS v (node_id, schema_name, table_name, begun_at)
            SELECT l.node_id, begin_verification.schema_name, begin_verification.table_name, pg_catalog.clock_timestamp() FROM repl_ml.local_node l
            ON CONFLICT ON CONSTRAINT verification_pkey DO UPDATE SET begun_at = excluded.begun_at, ended_at = NULL;
        END IF;
    END
    $$;
COMMENT ON FUNCTION repl_ml.begin_verification() IS 'for the verifier: the table that has been due for longest, which from now on is compared by this node; null if there is none';

CREATE FUNCTION repl_ml.end_verification(of_schema name, of_table name, result text, differing bigint, why text, all_rows boolean) RETURNS boolean
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
    AS $$
    DECLARE
        told bigint;
    BEGIN
        SELECT v.told_rows INTO told FROM repl_ml.verification v JOIN repl_ml.local_node l USING (node_id) WHERE v.schema_name = of_schema AND v.table_name = of_table;
        UPDATE repl_ml.verification v
           SET ended_at = pg_catalog.clock_timestamp(), compared_at = v.begun_at, good_at = CASE result WHEN 'consistent' THEN v.begun_at ELSE v.good_at END,
               full_at = CASE WHEN all_rows AND result <> 'incomplete' THEN v.begun_at ELSE v.full_at END, status = result, differing_rows = differing, detail = why,
               told_rows = CASE result WHEN 'incomplete' THEN v.told_rows ELSE differing END
          FROM repl_ml.local_node l WHERE v.node_id = l.node_id AND v.schema_name = of_schema AND v.table_name = of_table;
        -- after an incomplete one nobody knows whether anything has changed
        RETURN result <> 'incomplete' AND differing <> told;
    END
    $$;
COMMENT ON FUNCTION repl_ml.end_verification(name, name, text, bigint, text, boolean) IS 'for the verifier: notes what came of a comparison; returns whether the log is to be told, as it differs from what was found before';

CREATE FUNCTION repl_ml.verify_progress(OUT pid integer, OUT relation regclass, OUT phase text, OUT chunks_total bigint, OUT chunks_done bigint, OUT rows bigint, OUT differing_rows bigint, OUT started_at timestamptz)
    RETURNS SETOF record
    AS 'MODULE_PATHNAME', 'repl_ml_verify_progress_rows' LANGUAGE C VOLATILE STRICT;
COMMENT ON FUNCTION repl_ml.verify_progress() IS 'a row for each comparison that is going on in this database; see the view repl_ml.stat_progress_verify';

CREATE VIEW repl_ml.stat_progress_verify AS
    SELECT p.pid, a.datname, p.relation, p.phase, p.chunks_total, p.chunks_done, p.rows, p.differing_rows, p.started_at, a.usename, a.application_name
      FROM repl_ml.verify_progress() p LEFT JOIN pg_catalog.pg_stat_activity a ON a.pid = p.pid;
COMMENT ON VIEW repl_ml.stat_progress_verify IS
    'comparisons of tables that are going on, those that other members ask this node for among them: what is being done, and how many rows have been seen';

--
-- Why a row is as it is
--

-- $1 is the key, in the order of the primary key; operators are those of its index
CREATE FUNCTION repl_ml.key_condition(relation regclass) RETURNS text
    LANGUAGE sql STABLE STRICT SET search_path = pg_catalog, pg_temp
    AS $$
    SELECT pg_catalog.string_agg(pg_catalog.format('t.%I OPERATOR(%I.%s) ($1::text[])[%s]::%s', a.attname, n.nspname, o.oprname, k.place, pg_catalog.format_type(a.atttypid, a.atttypmod)), ' AND ' ORDER BY k.place)
      FROM pg_catalog.pg_index i
     CROSS JOIN LATERAL pg_catalog.generate_series(1, i.indnkeyatts) k(place)
      JOIN pg_catalog.pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[k.place - 1]
      JOIN pg_catalog.pg_opclass c ON c.oid = i.indclass[k.place - 1]
      JOIN pg_catalog.pg_amop m ON m.amopfamily = c.opcfamily AND m.amopstrategy = 3 AND m.amoplefttype = c.opcintype AND m.amoprighttype = c.opcintype
      JOIN pg_catalog.pg_operator o ON o.oid = m.amopopr JOIN pg_catalog.pg_namespace n ON n.oid = o.oprnamespace
     WHERE i.indrelid = relation AND i.indisprimary
    $$;
COMMENT ON FUNCTION repl_ml.key_condition(regclass) IS 'the condition that a row t of the table has the primary key $1, a text[]';

-- The version of a key that is here, or its deletion
CREATE FUNCTION repl_ml.row_here(relation regclass, key text[], OUT state text, OUT clock repl_ml.vclock, OUT content jsonb)
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
    AS $$
    DECLARE
        s name;
        t name;
    BEGIN
        SELECT n.nspname, c.relname INTO s, t FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = relation;
        IF pg_catalog.cardinality(key) <> (SELECT i.indnkeyatts FROM pg_catalog.pg_index i WHERE i.indrelid = relation AND i.indisprimary) THEN
            RAISE EXCEPTION 'the primary key of table "%.%" has % columns, and not %', s, t, (SELECT i.indnkeyatts FROM pg_catalog.pg_index i WHERE i.indrelid = relation AND i.indisprimary), pg_catalog.cardinality(key)
                USING ERRCODE = 'invalid_parameter_value', HINT = 'Give the values of the primary key''s columns as text, in their order: ARRAY[''1'', ''x''].';
        END IF;
        SELECT 'present', q.r[1]::repl_ml.vclock, q.r[2]::jsonb INTO state, clock, content
          FROM repl_ml.query_as_owner(relation, pg_catalog.format('SELECT t.__repl_clock::text, (pg_catalog.to_jsonb(t.*) OPERATOR(pg_catalog.-) ''__repl_clock'')::text FROM %s t WHERE %s', relation, repl_ml.key_condition(relation)),
                                      ARRAY[key::text]) q(r);
        IF state IS NULL THEN
            SELECT CASE WHEN pg_catalog.count(*) > 0 THEN 'deleted' ELSE 'absent' END, repl_ml.merge_agg(d.__repl_clock) INTO state, clock
              FROM repl_ml.tombstone d WHERE d.schema_name = s AND d.table_name = t AND d.key = row_here.key AND d.eviction IS NULL;
        END IF;
    END
    $$;
COMMENT ON FUNCTION repl_ml.row_here(regclass, text[]) IS 'what this node has of a key: present with its row, deleted, or absent; and the clock of that';

CREATE FUNCTION repl_ml.row_facts(relation regclass, key text[], may_read boolean, OUT at timestamptz, OUT kind text, OUT node_name name, OUT clock repl_ml.vclock, OUT content jsonb, OUT detail text)
    RETURNS SETOF record
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
    AS $$
    #variable_conflict use_column
    DECLARE
        s name;
        t name;
        names name[];
    BEGIN
        SELECT n.nspname, c.relname INTO s, t FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = relation;
        SELECT pg_catalog.array_agg(a.attname ORDER BY k.place) INTO names
          FROM pg_catalog.pg_index i CROSS JOIN LATERAL pg_catalog.generate_series(1, i.indnkeyatts) k(place)
          JOIN pg_catalog.pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[k.place - 1] WHERE i.indrelid = relation AND i.indisprimary;
        RETURN QUERY
        SELECT f.at, f.kind, m.node_name, f.clock, CASE WHEN may_read THEN f.content END, f.detail
          FROM (SELECT '2000-01-01 00:00:00+00'::timestamptz + repl_ml.max_counter(h.clock) * '1 us'::interval AS at, 'row' AS kind, repl_ml.last_writer(h.clock) AS node, h.clock, h.content, NULL AS detail
                  FROM repl_ml.row_here(relation, row_facts.key) h WHERE h.state = 'present'
                UNION ALL
                SELECT d.deleted_at, 'tombstone', repl_ml.last_writer(d.__repl_clock), d.__repl_clock, NULL,
                       CASE WHEN d.eviction IS NOT NULL THEN 'of a version that lost a unique key' WHEN d.merged THEN 'what several versions were resolved to' END
                  FROM repl_ml.tombstone d WHERE d.schema_name = s AND d.table_name = t AND d.key = row_facts.key
                UNION ALL
                SELECT '2000-01-01 00:00:00+00'::timestamptz + repl_ml.max_counter(v.__repl_clock) * '1 us'::interval, 'version', repl_ml.last_writer(v.__repl_clock), v.__repl_clock,
                       CASE WHEN v.content IS NOT NULL THEN pg_catalog.jsonb_object(v.content) - '__repl_clock' END,
                       CASE WHEN v.eviction IS NOT NULL THEN 'it lost a unique key' WHEN v.content IS NULL THEN 'a deletion' ELSE 'kept, as it and others did not know of each other' END
                  FROM repl_ml.concurrent_version v WHERE v.schema_name = s AND v.table_name = t AND v.key = row_facts.key
                UNION ALL
                SELECT c.detected_at, 'conflict', c.loser_node, c.loser_clock, c.loser_row,
                       pg_catalog.format('%s: it lost to the version %s of node "%s", resolved by %s', c.conflict_type, c.winner_clock, coalesce(w.node_name, c.winner_node::text::name), c.resolution)
                  FROM repl_ml.conflict_history c LEFT JOIN repl_ml.member w ON w.node_id = c.winner_node
                 WHERE c.schema_name = s AND c.table_name = t AND c.key = row_facts.key
                UNION ALL
                SELECT p.parked_at, 'parked', p.origin_node, NULL, p.change,
                       pg_catalog.format('%s, %s: %s', p.action, p.sqlstate, CASE WHEN may_read THEN p.message ELSE 'see repl_ml.parked_changes' END)
                  FROM repl_ml.parked_change p
                 WHERE p.schema_name = s AND p.table_name = t AND p.action NOT IN ('counted', 'bulk')
                   AND (p.change->>'key' = row_facts.key::text
                        OR (SELECT pg_catalog.bool_and(p.change->>(c.name::text) = c.value) FROM ROWS FROM (pg_catalog.unnest(names), pg_catalog.unnest(row_facts.key)) c(name, value)))
                UNION ALL
                SELECT r.repaired_at, 'repair', r.source_node, NULL, r.after, pg_catalog.format('%s, because it was %s', r.action, r.verdict)
                  FROM repl_ml.row_repair r WHERE r.schema_name = s AND r.table_name = t AND r.key = row_facts.key
                UNION ALL
                SELECT u.noted_at, 'unsent', u.node_id, u.clock, NULL, u.message
                  FROM repl_ml.unsent u WHERE u.schema_name = s AND u.table_name = t AND u.key = row_facts.key) f
          LEFT JOIN repl_ml.member m ON m.node_id = f.node
         ORDER BY f.at, f.kind;
    END
    $$;
COMMENT ON FUNCTION repl_ml.row_facts(regclass, text[], boolean) IS 'what this node knows of a key; rows only if the asker may read them';

CREATE FUNCTION repl_ml.row_history(relation regclass, key text[], OUT at timestamptz, OUT kind text, OUT node_name name, OUT clock repl_ml.vclock, OUT content jsonb, OUT detail text)
    RETURNS SETOF record
    AS 'MODULE_PATHNAME', 'repl_ml_row_history' LANGUAGE C VOLATILE ROWS 10 SET search_path = pg_catalog, pg_temp;
COMMENT ON FUNCTION repl_ml.row_history(regclass, text[]) IS
    'what this node knows of one row, by its primary key as text: the row, its tombstones, versions that are kept, conflicts, parked changes, repairs, and what could not be sent; when each was written or noted, by which node, under which clock, with the row where there is one. Rows are null for who may not read the table. For repl_ml_admin and the owner of the table. Errors: 42501 it is neither yours nor are you in repl_ml_admin, 22023 the key has another number of columns, 55000 the table is not replicated';

-- What one node tells another that asks
CREATE FUNCTION repl_ml.row_sight(schema_name name, table_name name, key text[]) RETURNS jsonb
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
    AS $$
    DECLARE
        relation regclass := (SELECT c.oid FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
                                JOIN repl_ml.replicated_table r ON r.schema_name = n.nspname AND r.table_name = c.relname AND r.state = 'enrolled'
                               WHERE n.nspname = row_sight.schema_name AND c.relname = row_sight.table_name AND n.nspname <> 'repl_ml');
    BEGIN
        IF relation IS NULL OR repl_ml.key_condition(relation) IS NULL THEN
            RETURN '{"state": "no table"}';
        END IF;
        RETURN (SELECT pg_catalog.jsonb_build_object('state', h.state, 'clock', h.clock::text, 'content', h.content,
                           'parked', (SELECT pg_catalog.count(*) FROM repl_ml.row_facts(relation, row_sight.key, false) f WHERE f.kind = 'parked'))
                  FROM repl_ml.row_here(relation, row_sight.key) h);
    END
    $$;
COMMENT ON FUNCTION repl_ml.row_sight(name, name, text[]) IS 'what this node has of a key, for a member that asks';

-- What all of them tell
CREATE FUNCTION repl_ml.row_sights(relation regclass, key text[], may_read boolean, OUT node_name name, OUT state text, OUT verdict text, OUT clock repl_ml.vclock, OUT written_at timestamptz, OUT written_by name, OUT parked bigint, OUT content jsonb)
    RETURNS SETOF record
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
    AS $$
    #variable_conflict use_column
    DECLARE
        s name;
        t name;
        dsns text[];
        peers integer[];
        answers text[];
    BEGIN
        SELECT n.nspname, c.relname INTO s, t FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = relation;
        -- a wrong key is an error here, not a silence of all others
        PERFORM repl_ml.row_here(relation, row_sights.key);
        SELECT coalesce(pg_catalog.array_agg(m.dsn ORDER BY m.node_id), '{}'), coalesce(pg_catalog.array_agg(m.node_id ORDER BY m.node_id), '{}') INTO dsns, peers
          FROM repl_ml.member m JOIN repl_ml.local_node l ON l.node_id <> m.node_id WHERE m.state <> 'dropped';
        answers := repl_ml.ask_members(dsns, pg_catalog.format('SELECT repl_ml.row_sight(%L, %L, %L)', s, t, row_sights.key));
        RETURN QUERY
        WITH sight AS (
            SELECT x.node_id, coalesce(x.answer->>'state', 'unreachable') AS state, (x.answer->>'clock')::repl_ml.vclock AS clock, (x.answer->>'parked')::bigint AS parked, x.answer->'content' AS content
              FROM (SELECT l.node_id, repl_ml.row_sight(s, t, row_sights.key) AS answer FROM repl_ml.local_node l
                    UNION ALL SELECT a.node_id, a.answer::jsonb FROM ROWS FROM (pg_catalog.unnest(peers), pg_catalog.unnest(answers)) a(node_id, answer)) x)
        SELECT m.node_name, o.state,
               CASE WHEN o.state NOT IN ('present', 'deleted', 'absent') THEN NULL
                    WHEN NOT EXISTS (SELECT FROM sight z WHERE z.clock IS NOT NULL AND NOT coalesce(z.clock OPERATOR(repl_ml.<@) o.clock, false)) THEN 'newest'
                    WHEN o.clock IS NULL OR EXISTS (SELECT FROM sight z WHERE o.clock OPERATOR(repl_ml.<@) z.clock AND NOT z.clock OPERATOR(repl_ml.<@) o.clock) THEN 'lags'
                    ELSE 'concurrent' END,
               o.clock, '2000-01-01 00:00:00+00'::timestamptz + repl_ml.max_counter(o.clock) * '1 us'::interval, w.node_name, o.parked,
               CASE WHEN may_read THEN nullif(o.content, 'null') END
          FROM sight o JOIN repl_ml.member m ON m.node_id = o.node_id LEFT JOIN repl_ml.member w ON w.node_id = repl_ml.last_writer(o.clock)
         ORDER BY o.node_id;
    END
    $$;
COMMENT ON FUNCTION repl_ml.row_sights(regclass, text[], boolean) IS 'what each member has of a key; rows only if the asker may read them';

CREATE FUNCTION repl_ml.row_status(relation regclass, key text[], OUT node_name name, OUT state text, OUT verdict text, OUT clock repl_ml.vclock, OUT written_at timestamptz, OUT written_by name, OUT parked bigint, OUT content jsonb)
    RETURNS SETOF record
    AS 'MODULE_PATHNAME', 'repl_ml_row_status' LANGUAGE C VOLATILE ROWS 10 SET search_path = pg_catalog, pg_temp;
COMMENT ON FUNCTION repl_ml.row_status(regclass, text[]) IS
    'what each member has of one row, by its primary key as text: present, deleted, absent, no table, or unreachable; whether that is the newest version, lags behind one, or is concurrent with one (verdict), its clock, who wrote it when, how many changes of it are parked there, and the row. Rows are null for who may not read the table. For repl_ml_admin and the owner of the table. Errors: as row_history';

-- Keys and rows are for who may read all of the table, as in diff_rows; of tables that are gone, for superusers
CREATE VIEW repl_ml.repair_history WITH (security_barrier) AS
    SELECT h.id, h.repaired_at, h.schema_name, h.table_name, CASE WHEN may.read THEN h.key END AS key, h.action, h.verdict, h.source_node,
           CASE WHEN may.read THEN h.before END AS before, CASE WHEN may.read THEN h.after END AS after
      FROM repl_ml.row_repair h
      LEFT JOIN pg_catalog.pg_namespace n ON n.nspname = h.schema_name
      LEFT JOIN pg_catalog.pg_class t ON t.relnamespace = n.oid AND t.relname = h.table_name
     CROSS JOIN LATERAL (SELECT coalesce(pg_catalog.has_schema_privilege(n.oid, 'USAGE') AND pg_catalog.has_table_privilege(t.oid, 'SELECT') AND NOT pg_catalog.row_security_active(t.oid),
                                         (SELECT r.rolsuper FROM pg_catalog.pg_roles r WHERE r.rolname = current_user)) AS read) may
     WHERE pg_catalog.pg_has_role(current_user, 'repl_ml_admin', 'USAGE') OR pg_catalog.pg_has_role(current_user, t.relowner, 'USAGE');
COMMENT ON VIEW repl_ml.repair_history IS
    'rows that repl_ml.repair_table has changed on this node, or that are listed because nobody can decide: what differed, from which node it has the version, and the row before and after it (null: none, longer than 1 MB, or of a table that you may not read). Members of repl_ml_admin see all, others those of their own tables; kept for repl_ml.conflict_retention';

CREATE VIEW repl_ml.consistency_checks AS
    SELECT c.id, c.schema_name, c.table_name, c.status, c.members, c.unreachable, c.rows, c.chunks, c.differing_rows, c.rechecked_rows, c.started_at, c.duration, c.detail, c.hint, c.mode, c.hashed_rows,
           c.id = pg_catalog.max(c.id) OVER (PARTITION BY c.schema_name, c.table_name) AS is_last,
           c.id IS NOT DISTINCT FROM pg_catalog.max(c.id) FILTER (WHERE c.status = 'consistent') OVER (PARTITION BY c.schema_name, c.table_name) AS is_last_good
      FROM repl_ml.consistency_check c;
COMMENT ON VIEW repl_ml.consistency_checks IS
    'comparisons of tables by repl_ml.verify_table and verify_all on this node: of each table the last ten, and the last one that found no difference';
