--
-- Setting up
--

-- One row a setting: what it is, what it should be, the line to write
CREATE FUNCTION repl_ml.check_settings(members integer, OUT check_name text, OUT status text, OUT detail text, OUT hint text)
    RETURNS SETOF record
    LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
    AS $$
    DECLARE
        peers integer := members - 1;
        v text;
        need record;
    BEGIN
        check_name := 'shared_preload_libraries';
        v := pg_catalog.current_setting('shared_preload_libraries');
        detail := pg_catalog.format('is %L', v);
        IF v ~ '(^|,)\s*"?(\$libdir/)?repl_ml"?\s*(,|$)' THEN
            status := 'ok'; hint := NULL;
        ELSE
            status := 'error';
            hint := pg_catalog.format('Write %s into postgresql.conf and restart the server.',
                'shared_preload_libraries = ' || pg_catalog.quote_literal(CASE v WHEN '' THEN '' ELSE v || ', ' END || 'repl_ml'));
        END IF;
        RETURN NEXT;

        check_name := 'wal_level';
        v := pg_catalog.current_setting('wal_level');
        detail := pg_catalog.format('is %L', v);
        IF v = 'logical' THEN
            status := 'ok'; hint := NULL;
        ELSE
            status := 'error'; hint := 'Write wal_level = logical into postgresql.conf and restart the server.';
        END IF;
        RETURN NEXT;

        FOR need IN
            SELECT * FROM (VALUES
                ('max_worker_processes', 5 + peers + EXISTS (SELECT FROM repl_ml.replicated_table t WHERE t.class = 'strong' AND t.state = 'enrolled')::integer + (pg_catalog.current_setting('repl_ml.verify_schedule')::interval > '0 s')::integer,
                 pg_catalog.format('the server''s own, a launcher, a supervisor, a join worker, %s for applying and one for large transactions%s', peers,
                     CASE WHEN pg_catalog.current_setting('repl_ml.verify_schedule')::interval > '0 s' THEN ', one for comparing' ELSE '' END || CASE WHEN EXISTS (SELECT FROM repl_ml.replicated_table t WHERE t.class = 'strong' AND t.state = 'enrolled') THEN ', one for strong tables' ELSE '' END)),
                ('max_wal_senders', 2 * peers, pg_catalog.format('a stream and a copy for each of %s peers', peers)),
                ('max_replication_slots', peers + 1, pg_catalog.format('a slot and an origin for each of %s peers', peers))) AS x(name, least, why)
        LOOP
            check_name := need.name;
            detail := pg_catalog.format('is %s, needed for %s members: %s (%s)', pg_catalog.current_setting(need.name), members, need.least, need.why);
            IF pg_catalog.current_setting(need.name)::integer >= need.least THEN
                status := 'ok'; hint := NULL;
            ELSE
                status := 'error';
                hint := pg_catalog.format('Write %s = %s into postgresql.conf and restart the server.', need.name, need.least);
            END IF;
            RETURN NEXT;
        END LOOP;

        v := pg_catalog.current_setting('max_active_replication_origins', true);
        IF v IS NOT NULL THEN
            check_name := 'max_active_replication_origins';
            detail := pg_catalog.format('is %s, needed for %s members: %s', v, members, peers);
            IF v::integer >= peers THEN
                status := 'ok'; hint := NULL;
            ELSE
                status := 'error';
                hint := pg_catalog.format('Write max_active_replication_origins = %s into postgresql.conf and restart the server.', peers);
            END IF;
            RETURN NEXT;
        END IF;

        check_name := 'output_plugin_libraries';
        v := pg_catalog.current_setting('output_plugin_libraries', true);
        hint := NULL;
        IF v IS NULL THEN
            status := 'ok'; detail := 'this server version has no such setting';
        ELSIF v ~ '(^|,)\s*"?repl_ml"?\s*(,|$)' THEN
            status := 'ok'; detail := pg_catalog.format('is %L', v);
        ELSE
            status := 'error'; detail := pg_catalog.format('is %L', v);
            hint := pg_catalog.format('Run ALTER SYSTEM SET output_plugin_libraries = %s, repl_ml; SELECT pg_reload_conf(); (without quotes).', v);
        END IF;
        RETURN NEXT;

        check_name := 'synchronous_standby_names';
        v := pg_catalog.current_setting('synchronous_standby_names');
        detail := pg_catalog.format('is %L', v);
        status := CASE WHEN v = 'repl_ml_quorum' THEN 'ok' ELSE 'warning' END;
        hint := CASE WHEN v <> 'repl_ml_quorum' THEN 'Commits cannot wait for other members (repl_ml.write_consistency). Remove synchronous_standby_names from the configuration, so that repl_ml gives it its value, and reload the server.' END;
        RETURN NEXT;

        check_name := 'max_slot_wal_keep_size';
        v := pg_catalog.current_setting('max_slot_wal_keep_size');
        detail := pg_catalog.format('is %s', v);
        status := CASE WHEN v = '-1' THEN 'warning' ELSE 'ok' END;
        hint := CASE WHEN v = '-1' THEN 'A peer that is down keeps WAL without limit; write, for example, max_slot_wal_keep_size = 50GB into postgresql.conf.' END;
        RETURN NEXT;

    END
    $$;
COMMENT ON FUNCTION repl_ml.check_settings(integer) IS 'this server''s settings against what a group of so many members needs';

-- For a person: the settings for the group's size, and whether a peer can be reached
CREATE FUNCTION repl_ml.check_setup(peer_dsn text DEFAULT NULL, OUT check_name text, OUT status text, OUT detail text, OUT hint text)
    RETURNS SETOF record
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
    AS $$
    DECLARE
        v text;
        p record;
        here text;
        may_invite boolean;
    BEGIN
        RETURN QUERY SELECT * FROM repl_ml.check_settings(
            greatest(2, (SELECT pg_catalog.count(*)::integer FROM repl_ml.nodes m WHERE m.state <> 'dropped')));
        -- what would be known only when two nodes have given one number
        check_name := 'sequences';
        SELECT pg_catalog.string_agg(pg_catalog.format('%s: %s', o.relation, o.message), '; '), pg_catalog.string_agg(DISTINCT o.hint, ' ') INTO detail, hint
          FROM repl_ml.own_numbers(ARRAY(SELECT c.oid FROM pg_catalog.pg_class c WHERE c.relkind IN ('r', 'p') AND c.relpersistence = 'p' AND c.oid >= 16384
                                            AND NOT EXISTS (SELECT FROM pg_catalog.pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e'))) o;
        status := CASE WHEN detail IS NULL THEN 'ok' ELSE 'warning' END;
        detail := coalesce(detail, 'no table takes numbers of a sequence that would stay each node''s own');
        RETURN NEXT;
        IF peer_dsn IS NOT NULL AND NOT pg_catalog.has_function_privilege('repl_ml.probe(text)', 'EXECUTE') THEN
            check_name := 'peer'; status := 'error'; detail := 'only a superuser may try a connection string';
            hint := 'Run repl_ml.check_setup with the connection string as a superuser.';
            RETURN NEXT;
        ELSIF peer_dsn IS NOT NULL THEN
            PERFORM repl_ml.hide_statement();
            check_name := 'peer';
            BEGIN
                SELECT * INTO p FROM repl_ml.probe(peer_dsn);
                detail := pg_catalog.format('leads to database %I on %s:%s', p.dbname, p.host, p.port);
                status := 'ok'; hint := NULL;
            EXCEPTION WHEN OTHERS THEN
                GET STACKED DIAGNOSTICS v = PG_EXCEPTION_DETAIL;
                detail := sqlerrm || coalesce(': ' || nullif(v, ''), '');
                status := 'error';
                hint := 'Check that the server runs, the connection string, pg_hba.conf on that server, and that the role has LOGIN and REPLICATION.';
            END;
            RETURN NEXT;
            IF status = 'ok' THEN
                check_name := 'encoding';
                detail := pg_catalog.format('is %s here, %s there', pg_catalog.getdatabaseencoding(), p.encoding);
                IF p.encoding <> pg_catalog.getdatabaseencoding() THEN
                    status := 'error';
                    hint := pg_catalog.format('Run CREATE DATABASE ... ENCODING %L TEMPLATE template0, and join with that database.', p.encoding);
                END IF;
                RETURN NEXT;
                check_name := 'locale'; status := 'ok'; hint := NULL;
                SELECT pg_catalog.concat_ws('/', d.datlocprovider, d.datcollate, d.datctype, pg_catalog.to_jsonb(d) ->> 'daticulocale', pg_catalog.to_jsonb(d) ->> 'datlocale') INTO here FROM pg_catalog.pg_database d WHERE d.datname = pg_catalog.current_database();
                detail := pg_catalog.format('is %s here, %s there', here, p.locale);
                IF p.locale <> here THEN
                    status := 'warning';
                    hint := 'Text is sorted, and upper and lower case are told, differently: ranges, indexes on expressions, and CHECK constraints may not agree. Create one of the databases with the other''s LOCALE_PROVIDER, LC_COLLATE and LC_CTYPE.';
                END IF;
                RETURN NEXT;
                check_name := 'joining';
                may_invite := repl_ml.may_invite(peer_dsn);
                status := CASE WHEN may_invite THEN 'ok' ELSE 'warning' END;
                detail := CASE WHEN may_invite THEN 'as join_dsn it lets a node into the group: its role has the rights of repl_ml_admin'
                               ELSE 'good for dsn; as join_dsn it lets no node into the group that is not invited: its role has not the rights of repl_ml_admin' END;
                hint := CASE WHEN NOT may_invite THEN 'To join with it, run SELECT repl_ml.invite_node(...) on that server, or GRANT repl_ml_admin TO its role.' END;
                RETURN NEXT;
            END IF;
        END IF;
    END
    $$;
COMMENT ON FUNCTION repl_ml.check_setup(text) IS
    'checks this server''s settings for the group''s size, and a peer''s connection string; status is ok, warning or error, hint is what to do';

-- Raises the first error of check_setup
CREATE FUNCTION repl_ml.require_setup(members integer) RETURNS void
    LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
    AS $$
    DECLARE
        s record;
    BEGIN
        FOR s IN SELECT * FROM repl_ml.check_settings(members) c WHERE c.status = 'error' LOOP
            RAISE EXCEPTION 'setting "%"% does not allow replication: it %', s.check_name,
                coalesce((SELECT pg_catalog.format(' of node "%s"', l.node_name) FROM repl_ml.local_node l), ''), s.detail
                USING ERRCODE = 'object_not_in_prerequisite_state', HINT = s.hint;
        END LOOP;
    END
    $$;
COMMENT ON FUNCTION repl_ml.require_setup(integer) IS 'raises an error for the first setting that does not allow a group of so many members';

