--
-- Conflicts
--

-- The name of a replicated table; an error if it is none
CREATE FUNCTION repl_ml.require_replicated(relation regclass, OUT schema_name name, OUT table_name name)
    LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
    AS $$
    BEGIN
        SELECT t.schema_name, t.table_name INTO schema_name, table_name
          FROM repl_ml.replicated_table t JOIN pg_catalog.pg_namespace n ON n.nspname = t.schema_name
          JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid AND c.relname = t.table_name
         WHERE c.oid = relation AND t.state = 'enrolled';
        IF NOT FOUND THEN
            RAISE EXCEPTION 'table % is not replicated', relation USING ERRCODE = 'object_not_in_prerequisite_state',
                HINT = pg_catalog.format('Run SELECT repl_ml.add_table(%L).', relation);
        END IF;
    END
    $$;
COMMENT ON FUNCTION repl_ml.require_replicated(regclass) IS 'the group''s name of a replicated table, or an error that says that it is none';

CREATE FUNCTION repl_ml.has_order(type regtype) RETURNS boolean
    AS 'MODULE_PATHNAME', 'repl_ml_has_order' LANGUAGE C STABLE STRICT;
COMMENT ON FUNCTION repl_ml.has_order(regtype) IS 'whether values of a type can be sorted';

-- Name and arguments of a resolver such as newest_by(event_ts, created_ts), checked against the table
CREATE FUNCTION repl_ml.parse_resolver(relation regclass, resolver text, OUT rule text, OUT arguments text[])
    LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
    AS $$
    DECLARE
        parts text[];
        argument text;
        id text;
        f regprocedure;
        row_type regtype;
    BEGIN
        parts := pg_catalog.regexp_match(resolver, '^\s*(\w+)\s*(?:\(\s*(.*?)\s*\))?\s*$');
        rule := pg_catalog.lower(parts[1]);
        IF rule IS NULL OR rule <> ALL ('{last_write, newest_by, node_priority, function, keep_both}') THEN
            RAISE EXCEPTION 'conflict resolver "%" does not exist', resolver USING ERRCODE = 'undefined_object',
                HINT = 'Use last_write, newest_by(column, ...), node_priority(node, ...), function(name) or keep_both.';
        END IF;
        arguments := coalesce(pg_catalog.regexp_split_to_array(nullif(parts[2], ''), '\s*,\s*'), '{}');
        IF (rule IN ('newest_by', 'node_priority') AND arguments = '{}') OR (rule = 'function' AND pg_catalog.cardinality(arguments) <> 1)
           OR (rule IN ('last_write', 'keep_both') AND arguments <> '{}') THEN
            RAISE EXCEPTION 'conflict resolver % has the wrong number of arguments', rule USING ERRCODE = 'invalid_parameter_value',
                HINT = 'For example: last_write, newest_by(event_ts, created_ts), node_priority(n1, n2), function(public.merge_rows), keep_both.';
        END IF;
        IF rule = 'function' THEN
            row_type := (SELECT c.reltype FROM pg_catalog.pg_class c WHERE c.oid = relation);
            f := pg_catalog.to_regprocedure(pg_catalog.format('%s(%s, %s, repl_ml.vclock, repl_ml.vclock)', arguments[1], row_type, row_type));
            IF f IS NULL OR NOT EXISTS (SELECT FROM pg_catalog.pg_proc p WHERE p.oid = f AND p.prorettype = row_type AND NOT p.proretset) THEN
                RAISE EXCEPTION 'function %(%, %, repl_ml.vclock, repl_ml.vclock) returning % does not exist', arguments[1], row_type, row_type, row_type
                    USING ERRCODE = 'undefined_function',
                    HINT = 'Create it on every node first; write its name with its schema.';
            END IF;
            IF EXISTS (SELECT FROM pg_catalog.pg_proc p WHERE p.oid = f AND p.provolatile = 'v') THEN
                RAISE EXCEPTION 'function % is volatile', f USING ERRCODE = 'invalid_parameter_value',
                    DETAIL = 'Every node has to compute the same row of the same two versions.',
                    HINT = pg_catalog.format('If its result depends on its arguments only, run ALTER FUNCTION %s IMMUTABLE on every node.', f);
            END IF;
            arguments := ARRAY[(SELECT pg_catalog.format('%I.%I', n.nspname, p.proname) FROM pg_catalog.pg_proc p JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace WHERE p.oid = f)];
        END IF;
        FOR i IN 1 .. pg_catalog.cardinality(arguments) LOOP
            argument := CASE WHEN rule = 'function' THEN arguments[i] WHEN arguments[i] ~ '^".*"$' THEN pg_catalog.replace(pg_catalog.substr(arguments[i], 2, pg_catalog.length(arguments[i]) - 2), '""', '"')
                             WHEN rule = 'newest_by' THEN pg_catalog.lower(arguments[i]) ELSE arguments[i] END;
            IF rule = 'newest_by' THEN
                IF NOT EXISTS (SELECT FROM pg_catalog.pg_attribute a WHERE a.attrelid = relation AND a.attname = argument AND a.attnum > 0 AND NOT a.attisdropped) THEN
                    RAISE EXCEPTION 'column "%" of table % does not exist', argument, relation USING ERRCODE = 'undefined_column',
                        HINT = 'Name columns of the table; write names with upper-case letters in double quotes.';
                END IF;
                IF EXISTS (SELECT FROM pg_catalog.pg_attribute a WHERE a.attrelid = relation AND a.attname = argument AND a.attgenerated <> '') OR argument = '__repl_clock' THEN
                    RAISE EXCEPTION 'column "%" of table % is not written by users', argument, relation USING ERRCODE = 'invalid_parameter_value',
                        HINT = 'Name a column that says which version is newer, as event_ts.';
                END IF;
                IF NOT (SELECT repl_ml.has_order(a.atttypid) FROM pg_catalog.pg_attribute a WHERE a.attrelid = relation AND a.attname = argument AND NOT a.attisdropped) THEN
                    RAISE EXCEPTION 'values of column "%" of table % have no order', argument, relation USING ERRCODE = 'invalid_parameter_value',
                        HINT = 'Name a column of a type that can be sorted.';
                END IF;
            ELSIF rule = 'node_priority' THEN
                SELECT m.node_id::text INTO id FROM repl_ml.member m WHERE m.node_name = argument AND m.state <> 'dropped';
                IF NOT FOUND THEN
                    RAISE EXCEPTION 'node "%" does not exist', argument USING ERRCODE = 'undefined_object',
                        HINT = 'Run SELECT node_name, state FROM repl_ml.nodes.';
                END IF;
                argument := id;
            END IF;
            arguments[i] := argument;
        END LOOP;
    END
    $$;
COMMENT ON FUNCTION repl_ml.parse_resolver(regclass, text) IS 'takes a resolver apart and checks it against the table';

CREATE FUNCTION repl_ml.set_resolver(relation regclass, resolver text) RETURNS void
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
    AS $$
    DECLARE
        t record;
        r record;
    BEGIN
        PERFORM repl_ml.refuse_nulls('relation, resolver', pg_catalog.num_nulls(relation, resolver));
        PERFORM repl_ml.require_member();
        SELECT * INTO t FROM repl_ml.require_replicated(relation);
        SELECT * INTO r FROM repl_ml.parse_resolver(relation, resolver);
        INSERT INTO repl_ml.conflict_policy (schema_name, table_name, rule, arguments) VALUES (t.schema_name, t.table_name, r.rule, r.arguments);
    END
    $$;
COMMENT ON FUNCTION repl_ml.set_resolver(regclass, text) IS
    'how conflicts of a table''s rows are resolved from now on, on all nodes: last_write, newest_by(column, ...) (greatest values win), node_priority(node, ...) (the first node wins, nodes not named come last), function(name) (calls name(local row, remote row, local clock, remote clock), which returns the row), keep_both (as last_write; the loser is parked). Superusers only. Errors: 55000 not a member or not replicated, 42704 no such resolver or node, 42703 no such column, 42883 no such function, 22023 wrong argument';

CREATE FUNCTION repl_ml.check_column_merge(relation regclass, column_name name, merge text) RETURNS void
    AS 'MODULE_PATHNAME', 'repl_ml_check_column_merge' LANGUAGE C STABLE STRICT;
COMMENT ON FUNCTION repl_ml.check_column_merge(regclass, name, text) IS 'an error if the column cannot follow that merge rule';

CREATE FUNCTION repl_ml.set_column_merge(relation regclass, column_name name, merge text) RETURNS void
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
    AS $$
    DECLARE
        t record;
    BEGIN
        PERFORM repl_ml.refuse_nulls('relation, column_name, merge', pg_catalog.num_nulls(relation, column_name, merge));
        PERFORM repl_ml.require_member();
        SELECT * INTO t FROM repl_ml.require_replicated(relation);
        PERFORM repl_ml.check_column_merge(relation, column_name, merge);
        INSERT INTO repl_ml.conflict_policy (schema_name, table_name, column_name, rule)
        VALUES (t.schema_name, t.table_name, set_column_merge.column_name, merge);
    END
    $$;
COMMENT ON FUNCTION repl_ml.set_column_merge(regclass, name, text) IS
    'how concurrent values of a column are merged from now on, on all nodes, whichever version of the row wins: max, min, counter (adds up what every node added; also arrays of numbers, by element), set_union (arrays and jsonb arrays), jsonb_merge (objects, by key), independent (the last write of the column itself), none (as the row). Set it before the column is written concurrently. Superusers only. Errors: 55000 not a member or not replicated, 42703 no such column, 22023 no such rule or not for this type';

CREATE FUNCTION repl_ml.check_resolver(relation regclass, sample_rows integer DEFAULT 100, OUT check_name text, OUT status text, OUT pairs bigint, OUT detail text, OUT hint text)
    RETURNS SETOF record
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
    AS $$
    DECLARE
        t record;
        p record;
        row_type regtype;
        resolver text;
        keys text;
        other text;
        a record;
        failure text;
        uneven text;
        nothing text;
        moved text;
    BEGIN
        PERFORM repl_ml.refuse_nulls('relation, sample_rows', pg_catalog.num_nulls(relation, sample_rows));
        IF sample_rows < 2 OR sample_rows > 10000 THEN
            RAISE EXCEPTION 'sample_rows is %', sample_rows USING ERRCODE = 'invalid_parameter_value', HINT = 'Sample 2 to 10000 rows.';
        END IF;
        SELECT * INTO t FROM repl_ml.require_replicated(relation);
        SELECT x.rule, x.arguments INTO p FROM repl_ml.conflict_policy x
         WHERE x.schema_name = t.schema_name AND x.table_name = t.table_name AND x.column_name = ''
         ORDER BY repl_ml.max_counter(x.__repl_clock) DESC, repl_ml.last_writer(x.__repl_clock) DESC LIMIT 1;
        pairs := 0;
        IF coalesce(p.rule, 'last_write') <> 'function' THEN
            check_name := 'symmetric'; status := 'ok';
            detail := pg_catalog.format('The resolver %s orders versions and cannot depend on which one is local.', coalesce(p.rule, 'last_write'));
            RETURN NEXT;
            RETURN;
        END IF;
        row_type := (SELECT c.reltype FROM pg_catalog.pg_class c WHERE c.oid = relation);
        SELECT pg_catalog.format('%I.%I', n.nspname, f.proname) INTO resolver FROM pg_catalog.pg_proc f JOIN pg_catalog.pg_namespace n ON n.oid = f.pronamespace
         WHERE f.oid = pg_catalog.to_regprocedure(pg_catalog.format('%s(%s, %s, repl_ml.vclock, repl_ml.vclock)', p.arguments[1], row_type, row_type));
        IF resolver IS NULL THEN
            check_name := 'exists'; status := 'failed';
            detail := pg_catalog.format('The function %s(%s, %s, repl_ml.vclock, repl_ml.vclock) does not exist.', p.arguments[1], row_type, row_type);
            hint := 'Create it on every node.';
            RETURN NEXT;
            RETURN;
        END IF;
        -- pairs of versions as they may meet: the other row under this one's key
        SELECT pg_catalog.string_agg(pg_catalog.format('%L, (x.a).%I', a1.attname, a1.attname), ', ') INTO keys
          FROM pg_catalog.pg_index i JOIN pg_catalog.pg_attribute a1 ON a1.attrelid = i.indrelid AND a1.attnum = ANY (i.indkey)
         WHERE i.indrelid = relation AND i.indisprimary;
        FOR a IN SELECT q.r[1] AS a, q.r[2] AS b FROM repl_ml.query_as_owner(relation, pg_catalog.format(
                'WITH s AS MATERIALIZED (SELECT r AS v, pg_catalog.row_number() OVER () AS n FROM (SELECT r FROM %s r ORDER BY pg_catalog.random() LIMIT %s) q),'
                ' x AS (SELECT s.v AS a, o.v AS b FROM s JOIN s o ON o.n = s.n %% (SELECT pg_catalog.count(*) FROM s) + 1 AND o.n <> s.n)'
                ' SELECT x.a::text AS a, pg_catalog.jsonb_populate_record(x.b, pg_catalog.jsonb_build_object(%s))::text AS b FROM x', relation, sample_rows, keys)) q(r) LOOP
            pairs := pairs + 1;
            BEGIN
                SELECT q.r[1], q.r[2] INTO keys, other FROM repl_ml.query_as_owner(relation, pg_catalog.format(
                    'SELECT pg_catalog.jsonb_strip_nulls(pg_catalog.to_jsonb(l.*) - ''__repl_clock'')::text, pg_catalog.jsonb_strip_nulls(pg_catalog.to_jsonb(r.*) - ''__repl_clock'')::text'
                    ' FROM %1$s($1::%2$s, $2::%2$s, ''{1:1}'', ''{2:2}'') l, %1$s($2::%2$s, $1::%2$s, ''{2:2}'', ''{1:1}'') r', resolver, row_type), ARRAY[a.a, a.b]) q(r);
                IF keys IN ('{}') OR keys IS NULL OR other IN ('{}') OR other IS NULL THEN
                    nothing := a.a || ' and ' || a.b;
                ELSIF keys <> other THEN
                    uneven := a.a || ' and ' || a.b;
                END IF;
            EXCEPTION WHEN OTHERS THEN
                failure := pg_catalog.format('%s (%s) for %s and %s', sqlerrm, sqlstate, a.a, a.b);
            END;
        END LOOP;
        FOR check_name, detail, hint IN VALUES ('raises no error', failure, 'Let the function return a row for every pair of versions.'),
                ('returns a row', nothing, 'The function must not return null.'),
                ('symmetric', uneven, 'The function must return the same row when its arguments change places.') LOOP
            status := CASE WHEN detail IS NOT NULL THEN 'failed' WHEN pairs = 0 THEN 'unknown' ELSE 'ok' END;
            IF detail IS NULL THEN
                hint := CASE WHEN pairs = 0 THEN 'The table needs two rows at least.' END;
            END IF;
            RETURN NEXT;
        END LOOP;
    END
    $$;
COMMENT ON FUNCTION repl_ml.check_resolver(regclass, integer) IS
    'tries the resolver function of a table on pairs of the table''s own rows, both ways round: whether it raises an error, returns null or depends on which version is local; the last failing pair is in detail. Superusers only. Errors: 55000 not replicated, 22023 bad sample_rows';

-- Foreign keys are not enforced while applying
CREATE FUNCTION repl_ml.orphans(relation regclass, OUT constraint_name name, OUT key text[], OUT referenced regclass, OUT missing_key text[])
    RETURNS SETOF record
    AS 'MODULE_PATHNAME', 'repl_ml_orphans' LANGUAGE C STABLE STRICT;
COMMENT ON FUNCTION repl_ml.orphans(regclass) IS
    'rows of a table on this node whose foreign keys refer to rows that are not there: changes are applied without checking foreign keys, so a row deleted on one node while another refers to it leaves such rows, the same on all nodes once they have everything. One row for each foreign key and row. The caller needs to read the tables';

