--
-- Changes of the schema, which all members run
--

-- For the statement that has made the table, or has made it ready
CREATE FUNCTION repl_ml.take_in(relation regclass, number bigint, class text) RETURNS boolean
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
    AS $$
    DECLARE
        obstacle record;
        c pg_catalog.pg_class;
    BEGIN
        SELECT * INTO c FROM pg_catalog.pg_class WHERE oid = relation;
        IF c.relkind NOT IN ('r', 'p') OR c.relpersistence = 't' OR c.relispartition
           OR c.relnamespace = 'repl_ml'::regnamespace OR c.relnamespace::regnamespace::text ~ '^(pg_|information_schema$)'
           OR EXISTS (SELECT FROM pg_catalog.pg_depend d WHERE d.classid = 'pg_catalog.pg_class'::regclass AND d.objid = relation AND d.deptype = 'e')
           -- somebody has said so, of a table of that name
           OR EXISTS (SELECT FROM repl_ml.replicated_table t WHERE t.schema_name = (SELECT n.nspname FROM pg_catalog.pg_namespace n WHERE n.oid = c.relnamespace) AND t.table_name = c.relname AND t.state = 'removed') THEN
            RETURN false;
        END IF;
        SELECT * INTO obstacle FROM repl_ml.enrol_obstacle(relation);
        IF FOUND THEN
            RAISE WARNING 'rows of table % stay on this node: %', relation, obstacle.message USING HINT = obstacle.hint;
            RETURN false;
        END IF;
        PERFORM repl_ml.list_table(relation, class, made_by => number);
        RETURN true;
    END
    $$;
COMMENT ON FUNCTION repl_ml.take_in(regclass, bigint, text) IS 'replicates a table that a change of the schema has made, if it can be and nobody has said that it is not to be; whether it is replicated now. Says why it cannot be';

-- For who applies the change
CREATE FUNCTION repl_ml.take_in_listed(of_schema name, of_table name) RETURNS void
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
    AS $$
    DECLARE
        relation regclass := repl_ml.find_table(of_schema, of_table)::regclass;
    BEGIN
        -- one with rows is enrolled later, and they are compared
        IF relation IS NULL OR repl_ml.is_published(relation) OR EXISTS (SELECT FROM repl_ml.enrol_obstacle(relation)) OR repl_ml.lock_table(relation) THEN
            RETURN;
        END IF;
        PERFORM repl_ml.enrol(relation);
    END
    $$;
COMMENT ON FUNCTION repl_ml.take_in_listed(name, name) IS 'enrols a table that a change of the schema, which is being applied, has made and put on the group''s list';

CREATE FUNCTION repl_ml.schema_number() RETURNS bigint
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
    AS $$
    SELECT greatest(l.schema_base, (SELECT pg_catalog.max(c.number) FROM repl_ml.schema_change c)) FROM repl_ml.local_node l
    $$;
COMMENT ON FUNCTION repl_ml.schema_number() IS 'called by a node that joins: the number of the last change of the schema that is in this database';

CREATE FUNCTION repl_ml.forget_table(of_schema name, of_table name, tell_others boolean) RETURNS void
    LANGUAGE sql VOLATILE STRICT SET search_path = pg_catalog, pg_temp
    AS $$
    UPDATE repl_ml.replicated_table t SET state = 'dropped', write_consistency = 'one', class = 'eventual', pending_class = NULL
     WHERE tell_others AND t.schema_name = of_schema AND t.table_name = of_table AND t.state = 'enrolled';
    UPDATE repl_ml.replicated_table t SET state = 'dropped' WHERE tell_others AND t.state = 'renamed' AND t.now_schema = of_schema AND t.now_name = of_table;
    INSERT INTO repl_ml.conflict_policy (schema_name, table_name, column_name, rule)
    SELECT DISTINCT p.schema_name, p.table_name, p.column_name, CASE p.column_name WHEN '' THEN 'last_write' ELSE 'none' END
      FROM repl_ml.conflict_policy p WHERE tell_others AND p.schema_name = of_schema AND p.table_name = of_table;
    DELETE FROM repl_ml.tombstone t WHERE t.schema_name = of_schema AND t.table_name = of_table;
    DELETE FROM repl_ml.unsent u WHERE u.schema_name = of_schema AND u.table_name = of_table;
    DELETE FROM repl_ml.concurrent_version v WHERE v.schema_name = of_schema AND v.table_name = of_table;
    DELETE FROM repl_ml.eviction e WHERE e.schema_name = of_schema AND e.table_name = of_table;
    DELETE FROM repl_ml.key_shape k WHERE k.schema_name = of_schema AND k.table_name = of_table;
    DELETE FROM repl_ml.parked_change p WHERE p.schema_name = of_schema AND p.table_name = of_table AND p.action IN ('insert', 'update', 'delete', 'counted') AND NOT p.put_aside;
    DELETE FROM repl_ml.table_sync y WHERE y.schema_name = of_schema AND y.table_name = of_table;
    $$;
COMMENT ON FUNCTION repl_ml.forget_table(name, name, boolean) IS 'forgets what this node knows of a replicated table that has been dropped; with tell_others also takes it from the group''s list';

-- Its members tell how far they are by the name that it had when that was ordered
CREATE FUNCTION repl_ml.require_settled_class(of_schema name, of_table name) RETURNS void
    LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
    AS $$
    BEGIN
        IF EXISTS (SELECT FROM repl_ml.replicated_table t WHERE t.schema_name = of_schema AND t.table_name = of_table AND t.state = 'enrolled' AND t.pending_class IS NOT NULL) THEN
            RAISE EXCEPTION 'table %.% is changing its class, and cannot get another name now', pg_catalog.quote_ident(of_schema), pg_catalog.quote_ident(of_table) USING ERRCODE = 'object_in_use',
                HINT = pg_catalog.format('Run SELECT repl_ml.wait_for_table_class(%L) first.', pg_catalog.format('%I.%I', of_schema, of_table));
        END IF;
    END
    $$;
COMMENT ON FUNCTION repl_ml.require_settled_class(name, name) IS 'raises an error if a table is changing its class';

-- The list is the group's: written by the node that has made the change, and until that comes by who has run it
CREATE FUNCTION repl_ml.list_as_renamed(of_schema name, of_table name, new_schema name, new_table name, number bigint, clock text) RETURNS void
    LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp
    AS $$
    SELECT repl_ml.require_settled_class(of_schema, of_table) WHERE clock IS NULL;
    INSERT INTO repl_ml.replicated_table AS n (schema_name, table_name, state, enrolled_by, write_consistency, class, made_by, __repl_clock)
    SELECT new_schema, new_table, t.state, t.enrolled_by, t.write_consistency, t.class, number, coalesce(clock::repl_ml.vclock, repl_ml.tick())
      FROM repl_ml.replicated_table t WHERE t.schema_name = of_schema AND t.table_name = of_table AND t.state = 'enrolled'
    -- one that becomes a partition is what its root is already
    ON CONFLICT ON CONSTRAINT replicated_table_pkey DO UPDATE
       SET state = excluded.state, enrolled_by = excluded.enrolled_by, write_consistency = excluded.write_consistency, class = excluded.class, made_by = excluded.made_by, now_schema = NULL, now_name = NULL
     WHERE n.state <> 'enrolled';
    UPDATE repl_ml.replicated_table t SET state = 'renamed', now_schema = new_schema, now_name = new_table, write_consistency = 'one', class = 'eventual', pending_class = NULL
     WHERE t.schema_name = of_schema AND t.table_name = of_table AND t.state = 'enrolled';
    -- by names that it had before that, too
    UPDATE repl_ml.replicated_table t SET now_schema = new_schema, now_name = new_table WHERE t.state = 'renamed' AND t.now_schema = of_schema AND t.now_name = of_table;
    $$;
COMMENT ON FUNCTION repl_ml.list_as_renamed(name, name, name, name, bigint, text) IS 'calls a replicated table by its new name in the group''s list, as a change of the schema with this number does';

CREATE FUNCTION repl_ml.rename_table(of_schema name, of_table name, new_schema name, new_table name, number bigint) RETURNS void
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
    AS $$
    DECLARE
        t name;
    BEGIN
        -- it was empty, and is a partition now
        IF EXISTS (SELECT FROM repl_ml.replicated_table n WHERE (n.schema_name, n.table_name, n.state) = (new_schema, new_table, 'enrolled') AND n.made_by <> number) THEN
            UPDATE repl_ml.replicated_table t SET state = 'renamed', now_schema = new_schema, now_name = new_table, write_consistency = 'one', class = 'eventual', pending_class = NULL
             WHERE t.schema_name = of_schema AND t.table_name = of_table AND t.state = 'enrolled';
            PERFORM repl_ml.forget_table(of_schema, of_table, false);
            RETURN;
        END IF;
        -- what the node that made the change writes comes after it
        PERFORM repl_ml.list_as_renamed(of_schema, of_table, new_schema, new_table, number, '{}');
        FOREACH t IN ARRAY '{tombstone, conflict_policy, concurrent_version, eviction, key_shape, table_sync, table_failure, unsent, conflict_history, conflict_count, conflict_news, parked_change, consistency_check, row_repair}'::name[] LOOP
            -- what there was of a former table of that name
            IF t = ANY ('{key_shape, table_sync, table_failure, conflict_count}'::name[]) THEN
                EXECUTE pg_catalog.format('DELETE FROM repl_ml.%I WHERE schema_name = $1 AND table_name = $2', t) USING new_schema, new_table;
            END IF;
            EXECUTE pg_catalog.format('UPDATE repl_ml.%I SET schema_name = $3, table_name = $4 WHERE schema_name = $1 AND table_name = $2', t)
              USING of_schema, of_table, new_schema, new_table;
        END LOOP;
    END
    $$;
COMMENT ON FUNCTION repl_ml.rename_table(name, name, name, name, bigint) IS 'has what this node keeps of a replicated table follow its new name';

CREATE FUNCTION repl_ml.prepare_partition(relation regclass) RETURNS void
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp SET repl_ml.guard_off = on
    AS $$
    BEGIN
        IF repl_ml.is_published(relation) THEN
            PERFORM repl_ml.drop_triggers(relation);
            EXECUTE pg_catalog.format('ALTER PUBLICATION repl_ml DROP TABLE %s', relation);
        ELSIF NOT EXISTS (SELECT FROM pg_catalog.pg_attribute a WHERE a.attrelid = relation AND a.attname = '__repl_clock' AND NOT a.attisdropped) THEN
            EXECUTE pg_catalog.format('ALTER TABLE %s ADD COLUMN __repl_clock repl_ml.vclock NOT NULL DEFAULT repl_ml.tick()', relation);
        END IF;
    END
    $$;
COMMENT ON FUNCTION repl_ml.prepare_partition(regclass) IS 'makes an empty table ready to become a partition of a replicated one, in a change of the schema';

CREATE FUNCTION repl_ml.keep_detached(relation regclass, root_schema name, root_table name, number bigint, clock text) RETURNS void
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
    AS $$
    BEGIN
        PERFORM repl_ml.require_settled_class(root_schema, root_table) WHERE clock IS NULL;
        PERFORM repl_ml.enrol(relation);
        INSERT INTO repl_ml.replicated_table AS t (schema_name, table_name, state, enrolled_by, write_consistency, class, made_by, __repl_clock)
        SELECT n.nspname, c.relname, 'enrolled', h.node_id, r.write_consistency, r.class, h.number, coalesce(clock::repl_ml.vclock, repl_ml.tick())
          FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
          JOIN repl_ml.replicated_table r ON (r.schema_name, r.table_name) = (root_schema, root_table)
          JOIN repl_ml.schema_change h ON h.number = keep_detached.number
         WHERE c.oid = relation
        ON CONFLICT ON CONSTRAINT replicated_table_pkey DO UPDATE
           SET state = excluded.state, enrolled_by = excluded.enrolled_by, write_consistency = excluded.write_consistency, class = excluded.class, made_by = excluded.made_by, now_schema = NULL, now_name = NULL
         WHERE t.state <> 'enrolled';
    END
    $$;
COMMENT ON FUNCTION repl_ml.keep_detached(regclass, name, name, bigint, text) IS 'replicates a table that was a partition of a replicated one until a change of the schema detached it, with the rows that all nodes have';

-- A rule that was set under a name that the table had before
CREATE FUNCTION repl_ml.follow_renamed() RETURNS pg_catalog.trigger
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
    AS $$
    BEGIN
        SELECT coalesce(pg_catalog.max(t.now_schema), NEW.schema_name), coalesce(pg_catalog.max(t.now_name), NEW.table_name) INTO NEW.schema_name, NEW.table_name
          FROM repl_ml.replicated_table t WHERE t.schema_name = NEW.schema_name AND t.table_name = NEW.table_name AND t.state = 'renamed';
        RETURN NEW;
    END
    $$;
COMMENT ON FUNCTION repl_ml.follow_renamed() IS 'trigger: a rule that comes under a former name of a table is for the table';
CREATE TRIGGER follow_renamed BEFORE INSERT ON repl_ml.conflict_policy FOR EACH ROW EXECUTE FUNCTION repl_ml.follow_renamed();
ALTER TABLE repl_ml.conflict_policy ENABLE ALWAYS TRIGGER follow_renamed;

-- Members that do not answer park what names a role that they have not got
CREATE FUNCTION repl_ml.require_roles(roles text[]) RETURNS void
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
    AS $$
    DECLARE
        names name[];
        dsns text[];
        lacking record;
    BEGIN
        SELECT pg_catalog.array_agg(m.node_name ORDER BY m.node_id), pg_catalog.array_agg(m.dsn ORDER BY m.node_id) INTO names, dsns
          FROM repl_ml.member m JOIN repl_ml.local_node l ON l.node_id <> m.node_id WHERE m.state = 'ready';
        SELECT x.identity AS role, a.node_name INTO lacking
          FROM ROWS FROM (pg_catalog.unnest(names), pg_catalog.unnest(repl_ml.ask_members(dsns, pg_catalog.format('SELECT repl_ml.cannot_create(%L)',
                  (SELECT pg_catalog.jsonb_build_array(pg_catalog.jsonb_build_object('table', 'repl_ml.none', 'needs',
                          pg_catalog.jsonb_agg(pg_catalog.jsonb_build_object('type', 'role', 'names', ARRAY[r], 'arguments', '[]'::jsonb, 'identity', pg_catalog.quote_ident(r)))))
                     FROM pg_catalog.unnest(roles) r)::text)))) a (node_name, answer)
         CROSS JOIN LATERAL pg_catalog.jsonb_to_recordset(a.answer::jsonb) x (identity text) LIMIT 1;
        IF FOUND THEN
            RAISE EXCEPTION 'role % does not exist on node "%"', lacking.role, lacking.node_name USING ERRCODE = 'undefined_object',
                DETAIL = 'The statement is run by all members of the group, and roles are each server''s own.',
                HINT = pg_catalog.format('Run CREATE ROLE %s on that node first.', lacking.role);
        END IF;
    END
    $$;
COMMENT ON FUNCTION repl_ml.require_roles(text[]) IS 'an error if one of the roles, which a change of the schema names, is not on another member that answers';

CREATE FUNCTION repl_ml.run_locally(statement text) RETURNS void
    LANGUAGE plpgsql VOLATILE STRICT SET repl_ml.replicate_ddl = off
    AS $$
    BEGIN
        EXECUTE statement;
    END
    $$;
COMMENT ON FUNCTION repl_ml.run_locally(text) IS 'runs a statement that changes the schema on this node only, as with SET repl_ml.replicate_ddl = off';
