--
-- Changes of the schema, which all members run
--

-- For the statement that has made the table, or has made it ready
CREATE FUNCTION repl_ml.take_in(relation regclass, number bigint) RETURNS boolean
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
        PERFORM repl_ml.list_table(relation, made_by => number);
        RETURN true;
    END
    $$;
COMMENT ON FUNCTION repl_ml.take_in(regclass, bigint) IS 'replicates a table that a change of the schema has made, if it can be and nobody has said that it is not to be; whether it is replicated now. Says why it cannot be';

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
    UPDATE repl_ml.replicated_table t SET state = 'dropped', write_consistency = 'one', class = 'eventual'
     WHERE tell_others AND t.schema_name = of_schema AND t.table_name = of_table AND t.state = 'enrolled';
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

CREATE FUNCTION repl_ml.run_locally(statement text) RETURNS void
    LANGUAGE plpgsql VOLATILE STRICT SET repl_ml.replicate_ddl = off
    AS $$
    BEGIN
        EXECUTE statement;
    END
    $$;
COMMENT ON FUNCTION repl_ml.run_locally(text) IS 'runs a statement that changes the schema on this node only, as with SET repl_ml.replicate_ddl = off';
