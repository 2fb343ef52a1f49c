--
-- Enrolled tables: what may be enrolled, adding and removing, their shapes
--

-- The types that values of a table's columns consist of: of domains, arrays, composites and ranges the inner ones too
CREATE FUNCTION repl_ml.column_types(relation regclass, OUT attnum int2, OUT type_id oid)
    RETURNS SETOF record
    LANGUAGE sql STABLE STRICT SET search_path = pg_catalog, pg_temp
    AS $$
    WITH RECURSIVE y AS (
        SELECT a.attnum, a.atttypid AS type_id FROM pg_catalog.pg_attribute a
         WHERE a.attrelid = relation AND a.attnum > 0 AND NOT a.attisdropped AND a.attname <> '__repl_clock'
        UNION
        SELECT y.attnum, x.type_id
          FROM y JOIN pg_catalog.pg_type t ON t.oid = y.type_id
         CROSS JOIN LATERAL (SELECT t.typelem UNION ALL SELECT t.typbasetype
                             UNION ALL SELECT a.atttypid FROM pg_catalog.pg_attribute a WHERE t.typrelid <> 0 AND a.attrelid = t.typrelid AND a.attnum > 0 AND NOT a.attisdropped
                             UNION ALL SELECT r.rngsubtype FROM pg_catalog.pg_range r WHERE r.rngtypid = t.oid OR r.rngmultitypid = t.oid) x (type_id)
         WHERE x.type_id <> 0)
    SELECT y.attnum, y.type_id FROM y
    $$;
COMMENT ON FUNCTION repl_ml.column_types(regclass) IS 'the types a table''s columns have, and those these are made of';

-- Why a table cannot be enrolled; no row if it can
CREATE FUNCTION repl_ml.enrol_obstacle(relation regclass, OUT message text, OUT hint text)
    RETURNS SETOF record
    LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
    AS $$
    DECLARE
        c pg_catalog.pg_class;
        n name;
        i pg_catalog.pg_index;
        part regclass;
        r record;
    BEGIN
        SELECT * INTO c FROM pg_catalog.pg_class WHERE oid = relation;
        IF NOT FOUND THEN
            RETURN QUERY SELECT pg_catalog.format('table with OID %s does not exist', relation), 'Name the table.'::text;
            RETURN;
        END IF;
        n := c.relnamespace::pg_catalog.regnamespace;
        IF c.relkind NOT IN ('r', 'p') THEN
            RETURN QUERY SELECT pg_catalog.format('%s is not a table', relation), 'Only ordinary and partitioned tables can be replicated.'::text;
            RETURN;
        END IF;
        IF c.relpersistence <> 'p' THEN
            RETURN QUERY SELECT pg_catalog.format('table %s is %s', relation, CASE c.relpersistence WHEN 't' THEN 'temporary' ELSE 'unlogged' END),
                CASE c.relpersistence WHEN 't' THEN 'Temporary tables cannot be replicated.' ELSE pg_catalog.format('Run ALTER TABLE %s SET LOGGED.', relation) END;
            RETURN;
        END IF;
        IF n IN ('repl_ml', 'information_schema') OR n LIKE 'pg\_%' THEN
            RETURN QUERY SELECT pg_catalog.format('%s is a system table', relation), 'Only users'' tables can be replicated.'::text;
            RETURN;
        END IF;
        IF c.relispartition THEN
            RETURN QUERY SELECT pg_catalog.format('%s is a partition', relation),
                pg_catalog.format('Run SELECT repl_ml.add_table(%L): its partitions follow.', pg_catalog.pg_partition_root(relation));
            RETURN;
        END IF;
        IF EXISTS (SELECT FROM pg_catalog.pg_inherits h WHERE relation IN (h.inhrelid, h.inhparent)) AND c.relkind = 'r' THEN
            RETURN QUERY SELECT pg_catalog.format('table %s is part of an inheritance tree', relation), 'Use declarative partitioning instead of inheritance.'::text;
            RETURN;
        END IF;
        IF EXISTS (SELECT FROM pg_catalog.pg_partition_tree(relation) p JOIN pg_catalog.pg_class x ON x.oid = p.relid
                    WHERE NOT pg_catalog.pg_has_role(x.relowner, c.relowner, 'USAGE')) THEN
            RETURN QUERY SELECT pg_catalog.format('partition %s belongs to role %s, which does not have the rights of the owner of table %s', p.relid, x.relowner::regrole, relation),
                   pg_catalog.format('Run ALTER TABLE %s OWNER TO %s.', p.relid, c.relowner::regrole)
              FROM pg_catalog.pg_partition_tree(relation) p JOIN pg_catalog.pg_class x ON x.oid = p.relid
             WHERE NOT pg_catalog.pg_has_role(x.relowner, c.relowner, 'USAGE') LIMIT 1;
            RETURN;
        END IF;
        IF c.reloftype <> 0 THEN
            RETURN QUERY SELECT pg_catalog.format('table %s is of type %s and cannot have a column more', relation, c.reloftype::pg_catalog.regtype),
                pg_catalog.format('Run ALTER TABLE %s NOT OF.', relation);
            RETURN;
        END IF;
        FOR part IN SELECT p.relid FROM pg_catalog.pg_partition_tree(relation) p JOIN pg_catalog.pg_class x ON x.oid = p.relid
                     WHERE p.isleaf AND x.relpersistence = 'u' LOOP
            RETURN QUERY SELECT pg_catalog.format('partition %s of table %s is unlogged', part, relation),
                pg_catalog.format('Run ALTER TABLE %s SET LOGGED.', part);
            RETURN;
        END LOOP;
        IF c.relreplident = 'n' THEN
            RETURN QUERY SELECT pg_catalog.format('table %s has no replica identity', relation),
                pg_catalog.format('Run ALTER TABLE %s REPLICA IDENTITY DEFAULT.', relation);
            RETURN;
        END IF;
        IF c.relrowsecurity AND c.relforcerowsecurity THEN
            RETURN QUERY SELECT pg_catalog.format('row-level security is forced on table %s', relation),
                pg_catalog.format('Run ALTER TABLE %s NO FORCE ROW LEVEL SECURITY: changes are applied as the table''s owner.', relation);
            RETURN;
        END IF;
        SELECT * INTO i FROM pg_catalog.pg_index x WHERE x.indrelid = relation AND x.indisprimary;
        IF NOT FOUND THEN
            RETURN QUERY SELECT pg_catalog.format('table %s has no primary key', relation),
                pg_catalog.format('Run ALTER TABLE %s ADD PRIMARY KEY (...).', relation);
            RETURN;
        END IF;
        IF NOT i.indimmediate THEN
            RETURN QUERY SELECT pg_catalog.format('the primary key of table %s is deferrable', relation),
                'Make the primary key NOT DEFERRABLE.'::text;
            RETURN;
        END IF;
        IF EXISTS (SELECT FROM pg_catalog.pg_attribute a WHERE a.attrelid = relation AND a.attnum = ANY ((i.indkey::int2[])[0:i.indnkeyatts - 1]) AND a.attgenerated <> '') THEN
            RETURN QUERY SELECT pg_catalog.format('the primary key of table %s has a generated column', relation),
                pg_catalog.format('Run ALTER TABLE %s ADD PRIMARY KEY (...) with columns that are not generated.', relation);
            RETURN;
        END IF;
        IF EXISTS (SELECT FROM pg_catalog.pg_attribute a WHERE a.attrelid = relation AND a.attname = '__repl_clock' AND NOT a.attisdropped
                      AND a.atttypid <> 'repl_ml.vclock'::pg_catalog.regtype) THEN
            RETURN QUERY SELECT pg_catalog.format('table %s has a column "__repl_clock" of its own', relation),
                pg_catalog.format('Run ALTER TABLE %s RENAME COLUMN __repl_clock TO ....', relation);
            RETURN;
        END IF;
        -- its list is as long as the table had columns, so it cannot be created again with the clock
        FOR r IN SELECT w.rulename FROM pg_catalog.pg_rewrite w
                  WHERE w.ev_class = relation AND w.ev_type <> '1' AND w.is_instead AND w.ev_action::text ~ ':returningList \(' ORDER BY 1 LOOP
            RETURN QUERY SELECT pg_catalog.format('rule %I of table %s has a RETURNING list', r.rulename, relation),
                pg_catalog.format('Run DROP RULE %I ON %s, or create it without RETURNING; a view with an INSTEAD OF trigger can do the same.', r.rulename, relation);
            RETURN;
        END LOOP;
        -- rows that were there before it would break it on the other nodes
        FOR r IN SELECT k.conname, t.typname, k.contypid::pg_catalog.regtype AS domain, a.attname
                   FROM repl_ml.column_types(relation) y JOIN pg_catalog.pg_constraint k ON k.contypid = y.type_id AND NOT k.convalidated
                   JOIN pg_catalog.pg_type t ON t.oid = y.type_id
                   JOIN pg_catalog.pg_attribute a ON a.attrelid = relation AND a.attnum = y.attnum ORDER BY 1, 2 LOOP
            RETURN QUERY SELECT pg_catalog.format('constraint %I of domain %s, the type of column %I of table %s, is not valid', r.conname, r.domain, r.attname, relation),
                pg_catalog.format('Run ALTER DOMAIN %s VALIDATE CONSTRAINT %I.', r.domain, r.conname);
            RETURN;
        END LOOP;
        FOR r IN SELECT k.conname FROM pg_catalog.pg_constraint k WHERE k.conrelid = relation AND k.contype = 'n' AND NOT k.convalidated ORDER BY 1 LOOP
            RETURN QUERY SELECT pg_catalog.format('the NOT NULL constraint %I of table %s is not valid', r.conname, relation),
                pg_catalog.format('Run ALTER TABLE %s VALIDATE CONSTRAINT %I.', relation, r.conname);
            RETURN;
        END LOOP;
    END
    $$;
COMMENT ON FUNCTION repl_ml.enrol_obstacle(regclass) IS 'why a table cannot be replicated, and what to do; no row if it can';

-- What tombstones of a table's rows name as the columns of their key
CREATE FUNCTION repl_ml.key_columns(relation regclass) RETURNS text[]
    AS 'MODULE_PATHNAME', 'repl_ml_key_columns' LANGUAGE C STABLE STRICT;
COMMENT ON FUNCTION repl_ml.key_columns(regclass) IS 'name and type of each column of an enrolled table''s primary key; null if it has none';

-- Before the first deletion, which would have others wait
CREATE FUNCTION repl_ml.list_key(relation regclass) RETURNS void
    AS 'MODULE_PATHNAME', 'repl_ml_list_key' LANGUAGE C VOLATILE STRICT;
COMMENT ON FUNCTION repl_ml.list_key(regclass) IS 'puts the primary key of an enrolled table into repl_ml.key_shape';

-- Which columns its columns are, as security labels: see src/row/column.c
CREATE FUNCTION repl_ml.identify_columns(relation regclass) RETURNS void
    AS 'MODULE_PATHNAME', 'repl_ml_identify_columns' LANGUAGE C VOLATILE STRICT;
COMMENT ON FUNCTION repl_ml.identify_columns(regclass) IS 'gives each column of a table that has no identity a new one';
CREATE FUNCTION repl_ml.forget_columns(relation regclass) RETURNS void
    AS 'MODULE_PATHNAME', 'repl_ml_forget_columns' LANGUAGE C VOLATILE STRICT;
COMMENT ON FUNCTION repl_ml.forget_columns(regclass) IS 'takes the identities of a table''s columns away';
CREATE FUNCTION repl_ml.send_columns(relation regclass) RETURNS bytea
    AS 'MODULE_PATHNAME', 'repl_ml_send_columns' LANGUAGE C STABLE STRICT;
COMMENT ON FUNCTION repl_ml.send_columns(regclass) IS 'names, types and identities of a table''s columns, for a node that copies it';
CREATE FUNCTION repl_ml.agree_on_column(relation regclass, column_name name, ours text, theirs text) RETURNS boolean
    AS 'MODULE_PATHNAME', 'repl_ml_agree_on_column' LANGUAGE C VOLATILE STRICT;
COMMENT ON FUNCTION repl_ml.agree_on_column(regclass, name, text, text) IS 'gives a column also the identities it has on another node, or a new one if it had been joined with what it is not; false if its table is locked';
CREATE FUNCTION repl_ml.column_identity(relation regclass, column_name name) RETURNS text
    LANGUAGE sql STABLE STRICT SET search_path = pg_catalog, pg_temp
    AS $$
    SELECT s.label FROM pg_catalog.pg_attribute a
      JOIN pg_catalog.pg_seclabel s ON s.provider = 'repl_ml' AND s.classoid = 'pg_class'::regclass AND s.objoid = a.attrelid AND s.objsubid = a.attnum
     WHERE a.attrelid = relation AND a.attname = column_name AND NOT a.attisdropped
    $$;
COMMENT ON FUNCTION repl_ml.column_identity(regclass, name) IS 'the identities of a column, of __repl_clock all that columns of the table have ever had here; null if there are none';

-- Of a thousand tables that are looked at again and again; a join reads all of pg_class for that
CREATE FUNCTION repl_ml.find_table(schema_name name, table_name name) RETURNS oid
    AS 'MODULE_PATHNAME', 'repl_ml_find_table' LANGUAGE C STABLE STRICT;
COMMENT ON FUNCTION repl_ml.find_table(name, name) IS 'the relation of this name; null if there is none';
CREATE FUNCTION repl_ml.is_published(relation oid) RETURNS boolean
    AS 'MODULE_PATHNAME', 'repl_ml_is_published' LANGUAGE C STABLE;
COMMENT ON FUNCTION repl_ml.is_published(oid) IS 'whether a table is in the publication repl_ml; false of null';

CREATE FUNCTION repl_ml.seen_columns(relation oid) RETURNS text
    AS 'MODULE_PATHNAME', 'repl_ml_seen_columns' LANGUAGE C STABLE STRICT;
COMMENT ON FUNCTION repl_ml.seen_columns(oid) IS 'all identities that columns of a table have ever had here; null if there are none';

-- What two nodes have added, each for itself, is one column as soon as one of them has heard of the other's; see repl_ml_column_is_same
CREATE FUNCTION repl_ml.agree_on_columns() RETURNS boolean
    LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp
    AS $$
    SELECT coalesce(pg_catalog.bool_and(repl_ml.agree_on_column(c.relation, a.attname, c.ours, c.theirs)), true)
      FROM repl_ml.local_node l
     CROSS JOIN LATERAL (SELECT s.shape, s.seen, r.oid::regclass AS relation, repl_ml.seen_columns(r.oid) AS seen_here,
                                coalesce(o.shape, repl_ml.describe_table(r.oid)) AS shape_here
                           FROM repl_ml.table_shape s JOIN repl_ml.member m ON m.node_id = s.node_id AND m.state <> 'dropped'
                           JOIN pg_catalog.pg_namespace n ON n.nspname = s.schema_name
                           JOIN pg_catalog.pg_class r ON r.relnamespace = n.oid AND r.relname = s.table_name
                           LEFT JOIN repl_ml.table_shape o ON (o.node_id, o.schema_name, o.table_name) = (l.node_id, s.schema_name, s.table_name)
                          WHERE s.node_id <> l.node_id AND s.seen IS NOT NULL AND s.shape IS DISTINCT FROM o.shape) t
      JOIN pg_catalog.pg_attribute a ON a.attrelid = t.relation AND a.attnum > 0 AND NOT a.attisdropped AND a.attname <> '__repl_clock'
     CROSS JOIN LATERAL (SELECT t.relation, repl_ml.column_identity(t.relation, a.attname) AS ours, t.shape ->> pg_catalog.format('1identity of column %I', a.attname) AS theirs) c
     WHERE NOT pg_catalog.string_to_array(c.ours, ',') @> pg_catalog.string_to_array(c.theirs, ',')
       -- what has something in common and is another all the same has been joined by mistake
       AND (pg_catalog.string_to_array(c.ours, ',') && pg_catalog.string_to_array(c.theirs, ',')
            OR NOT pg_catalog.string_to_array(c.theirs, ',') && pg_catalog.string_to_array(t.seen_here, ','))
       AND NOT EXISTS (SELECT pg_catalog.unnest(pg_catalog.string_to_array(c.ours, ',')) INTERSECT SELECT pg_catalog.unnest(pg_catalog.string_to_array(t.seen, ','))
                       EXCEPT SELECT pg_catalog.unnest(pg_catalog.string_to_array(c.theirs, ',')))
       -- two that changes of the schema have made are not
       AND NOT (c.ours ~ '(^|,)[89a-f]' AND c.theirs ~ '(^|,)[89a-f]')
       -- of one type
       AND t.shape ->> pg_catalog.format('1column %I', a.attname) = t.shape_here ->> pg_catalog.format('1column %I', a.attname)
    $$;
COMMENT ON FUNCTION repl_ml.agree_on_columns() IS 'joins the identities of columns that are the same here and on other members; false if a table was locked';

-- What a node that is copied from here has to get elsewhere
CREATE FUNCTION repl_ml.parked_tables(OUT origin_node integer, OUT origin_xid xid, OUT origin_lsn pg_lsn, OUT schema_name text, OUT table_name text) RETURNS SETOF record
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
    AS $$
    SELECT DISTINCT ON (p.origin_node, p.schema_name, p.table_name) p.origin_node, p.origin_xid, p.origin_lsn, p.schema_name::text, p.table_name::text
      -- who is copied waits until this node has applied large transactions
      FROM repl_ml.parked_change p WHERE p.action NOT IN ('evicted', 'kept', 'bulk')
     ORDER BY p.origin_node, p.schema_name, p.table_name, p.origin_lsn DESC
    $$;
COMMENT ON FUNCTION repl_ml.parked_tables() IS 'the tables of which changes are parked or put aside here, for each node they come from, with the last of its transactions';

-- A former key without tombstones need not be looked for any more
CREATE FUNCTION repl_ml.retire_key_shapes() RETURNS void
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
    AS $$
    BEGIN
        IF NOT EXISTS (SELECT FROM repl_ml.key_shape k WHERE k.in_use GROUP BY k.schema_name, k.table_name HAVING pg_catalog.count(*) > 1) THEN
            RETURN;
        END IF;
        LOCK TABLE repl_ml.key_shape IN SHARE ROW EXCLUSIVE MODE;
        UPDATE repl_ml.key_shape k SET in_use = false
          FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
         WHERE k.in_use AND n.nspname = k.schema_name AND c.relname = k.table_name AND k.columns <> repl_ml.key_columns(c.oid)
           AND NOT EXISTS (SELECT FROM repl_ml.tombstone t WHERE t.schema_name = k.schema_name AND t.table_name = k.table_name AND t.key_columns = k.columns);
    END
    $$;
COMMENT ON FUNCTION repl_ml.retire_key_shapes() IS 'marks former keys of which no tombstone is left';
CREATE FUNCTION repl_ml.key_shape_changed() RETURNS pg_catalog.trigger
    AS 'MODULE_PATHNAME', 'repl_ml_key_shape_changed' LANGUAGE C;
COMMENT ON FUNCTION repl_ml.key_shape_changed() IS 'trigger: makes every process read repl_ml.key_shape again';
CREATE TRIGGER key_shape_changed AFTER INSERT OR UPDATE OR DELETE ON repl_ml.key_shape
    FOR EACH STATEMENT EXECUTE FUNCTION repl_ml.key_shape_changed();
ALTER TABLE repl_ml.key_shape ENABLE ALWAYS TRIGGER key_shape_changed;

-- Makes a table of this database stamp and publish its rows; repeatable
CREATE FUNCTION repl_ml.enrol(relation regclass, clock text DEFAULT NULL) RETURNS void
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp SET repl_ml.guard_off = on
    AS $$
    DECLARE
        obstacle record;
    BEGIN
        SELECT * INTO obstacle FROM repl_ml.enrol_obstacle(relation);
        IF FOUND THEN
            RAISE EXCEPTION '%', obstacle.message USING ERRCODE = 'object_not_in_prerequisite_state', HINT = obstacle.hint;
        END IF;
        -- whoever enrols it at the same time has it enrolled then
        IF NOT EXISTS (SELECT FROM pg_catalog.pg_attribute a WHERE a.attrelid = relation AND a.attname = '__repl_clock' AND NOT a.attisdropped) THEN
            EXECUTE pg_catalog.format('LOCK TABLE %s IN ACCESS EXCLUSIVE MODE', relation);
        END IF;
        IF NOT EXISTS (SELECT FROM pg_catalog.pg_attribute a WHERE a.attrelid = relation AND a.attname = '__repl_clock' AND NOT a.attisdropped) THEN
            -- a constant, so the table is not rewritten: what is there counts as written here now, if nothing else is said
            EXECUTE pg_catalog.format('ALTER TABLE %s ADD COLUMN __repl_clock repl_ml.vclock NOT NULL DEFAULT %L', relation, coalesce(clock, repl_ml.tick()::text));
        END IF;
        EXECUTE pg_catalog.format('ALTER TABLE %s ALTER COLUMN __repl_clock SET DEFAULT repl_ml.tick()', relation);
        EXECUTE pg_catalog.format('COMMENT ON COLUMN %s.__repl_clock IS %L', relation, 'version of the row in the repl_ml group');
        PERFORM repl_ml.drop_triggers(relation);
        EXECUTE pg_catalog.format('CREATE TRIGGER _repl_ml_insert AFTER INSERT ON %s FOR EACH ROW WHEN (repl_ml.insert_pending(NEW.__repl_clock, %L::pg_catalog.regclass)) EXECUTE FUNCTION repl_ml.stamp_insert()', relation, relation::text);
        EXECUTE pg_catalog.format('CREATE TRIGGER zz_repl_ml_update BEFORE UPDATE ON %s FOR EACH ROW EXECUTE FUNCTION repl_ml.stamp_update()', relation);
        EXECUTE pg_catalog.format('CREATE TRIGGER _repl_ml_moved AFTER UPDATE ON %s FOR EACH ROW WHEN (repl_ml.moved_pending(NEW.__repl_clock)) EXECUTE FUNCTION repl_ml.stamp_moved()', relation);
        EXECUTE pg_catalog.format('CREATE TRIGGER zz_repl_ml_delete BEFORE DELETE ON %s FOR EACH ROW EXECUTE FUNCTION repl_ml.stamp_delete()', relation);
        EXECUTE pg_catalog.format('CREATE TRIGGER zz_repl_ml_truncate BEFORE TRUNCATE ON %s FOR EACH STATEMENT EXECUTE FUNCTION repl_ml.stamp_truncate()', relation);
        EXECUTE pg_catalog.format('ALTER TABLE %s ENABLE ALWAYS TRIGGER _repl_ml_insert, ENABLE ALWAYS TRIGGER zz_repl_ml_update, ENABLE ALWAYS TRIGGER _repl_ml_moved, ENABLE ALWAYS TRIGGER zz_repl_ml_delete, ENABLE ALWAYS TRIGGER zz_repl_ml_truncate', relation);
        IF NOT EXISTS (SELECT FROM pg_catalog.pg_publication_rel r JOIN pg_catalog.pg_publication p ON p.oid = r.prpubid
                        WHERE p.pubname = 'repl_ml' AND r.prrelid = relation) THEN
            EXECUTE pg_catalog.format('ALTER PUBLICATION repl_ml ADD TABLE %s', relation);
        END IF;
        EXECUTE pg_catalog.format('GRANT SELECT ON %s TO repl_ml_replication', relation);
        PERFORM repl_ml.list_key(relation);
        PERFORM repl_ml.identify_columns(relation);
    END
    $$;
COMMENT ON FUNCTION repl_ml.enrol(regclass, text) IS 'gives a table of this database its clock column and triggers and publishes it';

-- Each failure doubles the time until the next try, up to half a minute
CREATE FUNCTION repl_ml.note_failure(node_id integer, schema_name name, table_name name, action text, sqlstate text, message text, detail text, hint text) RETURNS boolean
    LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp
    AS $$
    INSERT INTO repl_ml.table_failure AS f (node_id, schema_name, table_name, action, sqlstate, message, detail, hint)
    VALUES (note_failure.node_id, note_failure.schema_name, note_failure.table_name, note_failure.action, note_failure.sqlstate, note_failure.message, note_failure.detail, note_failure.hint)
    ON CONFLICT ON CONSTRAINT table_failure_pkey DO UPDATE
       SET action = excluded.action, sqlstate = excluded.sqlstate, message = excluded.message, detail = excluded.detail, hint = excluded.hint,
           failed_at = excluded.failed_at, failures = CASE WHEN (f.action, f.message) = (excluded.action, excluded.message) THEN f.failures + 1 ELSE 1 END,
           retry_at = excluded.failed_at + least(30, 2 ^ least(f.failures, 5)) * '1 s'::interval
    RETURNING failures = 1
    $$;
COMMENT ON FUNCTION repl_ml.note_failure(integer, name, name, text, text, text, text, text) IS 'notes that something could not be done with a table with the help of a node; whether that is news';

CREATE FUNCTION repl_ml.waits_to_retry(with_node integer, of_schema name, of_table name, action text) RETURNS boolean
    LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp
    AS $$
    SELECT EXISTS (SELECT FROM repl_ml.table_failure f
                    WHERE (f.schema_name, f.table_name, f.action) = (of_schema, of_table, waits_to_retry.action) AND f.retry_at > pg_catalog.clock_timestamp()
                      -- only what takes a peer may go better with another one
                      AND (f.node_id = with_node OR f.action IN ('enrol', 'remove')))
    $$;
COMMENT ON FUNCTION repl_ml.waits_to_retry(integer, name, name, text) IS 'whether something failed with a table lately, so that it is not tried again yet';

-- Of what is not to be done any more
CREATE FUNCTION repl_ml.forget_failures() RETURNS void
    LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp
    AS $$
    DELETE FROM repl_ml.table_failure f
     WHERE CASE f.action WHEN 'copy' THEN NOT EXISTS (SELECT FROM repl_ml.table_sync y WHERE (y.node_id, y.schema_name, y.table_name, y.state) = (f.node_id, f.schema_name, f.table_name, 'pending'))
           ELSE NOT EXISTS (SELECT FROM repl_ml.pending_tables() p WHERE (p.schema_name, p.table_name, p.action) = (f.schema_name, f.table_name, f.action)) END
    $$;
COMMENT ON FUNCTION repl_ml.forget_failures() IS 'removes failures that are over';

-- Everything is to be copied from a node, and joined
CREATE FUNCTION repl_ml.order_copies(from_node integer) RETURNS void
    LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp
    AS $$
    INSERT INTO repl_ml.table_sync (node_id, schema_name, table_name)
    SELECT from_node, t.schema_name, t.table_name FROM repl_ml.replicated_table t WHERE t.state = 'enrolled'
    UNION ALL SELECT from_node, 'repl_ml', 'tombstone'
    ON CONFLICT (node_id, schema_name, table_name) DO UPDATE SET state = 'pending', rows = NULL, bytes = NULL
    $$;
COMMENT ON FUNCTION repl_ml.order_copies(integer) IS 'marks all tables, tombstones first, to be copied from a node';

-- Whether the supervisor of a node that joins may let users write, as far as the catalogs say: all is copied, and every
-- member that is up reads from here
CREATE FUNCTION repl_ml.may_become_ready() RETURNS boolean
    LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp
    AS $$
    SELECT EXISTS (SELECT FROM repl_ml.local_node WHERE state = 'copying')
       AND NOT EXISTS (SELECT FROM repl_ml.table_sync y JOIN repl_ml.local_node l ON l.donor = y.node_id WHERE y.state = 'pending')
       AND NOT EXISTS (SELECT FROM repl_ml.pending_tables())
       -- members that are not ready do not say that they have all, so it has to come later
       AND NOT EXISTS (SELECT FROM repl_ml.replicated_table t WHERE t.state = 'enrolled' AND t.pending_class IS NOT NULL)
       AND NOT EXISTS (
           SELECT FROM repl_ml.member m JOIN repl_ml.local_node l ON l.node_id <> m.node_id
            WHERE m.state = 'ready' AND EXISTS (SELECT FROM repl_ml.worker_stats() w WHERE w.peer = m.node_id AND w.state = 'streaming')
              -- a slot that is still being made keeps nothing yet
              AND NOT EXISTS (SELECT FROM pg_catalog.pg_replication_slots s WHERE s.slot_name = repl_ml.link_name(m.node_id)::name AND s.confirmed_flush_lsn IS NOT NULL))
    $$;
COMMENT ON FUNCTION repl_ml.may_become_ready() IS 'whether all is copied to this node and every member that is up reads from it';

CREATE FUNCTION repl_ml.become_ready() RETURNS void
    LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp
    AS $$
    -- rows that it brings may have numbers that others have in hand
    SELECT repl_ml.note_use(g.schema_name, g.sequence_name, repl_ml.sequence_here(g.schema_name, g.sequence_name))
      FROM repl_ml.group_sequence g CROSS JOIN repl_ml.local_node l WHERE g.state = 'enrolled' AND g.obstacle IS NULL AND NOT l.copy_data AND l.donor IS NOT NULL;
    UPDATE repl_ml.local_node SET state = 'ready', former_node = NULL, former_safe = NULL, former_counter = NULL, secret_hash = NULL;
    -- an invitation is for one node
    UPDATE repl_ml.invitation i SET valid_until = pg_catalog.now() FROM repl_ml.local_node l WHERE i.node_name = l.node_name AND i.valid_until > pg_catalog.now();
    -- of whom copies were ordered before all tables were known
    SELECT repl_ml.order_copies(y.node_id) FROM repl_ml.table_sync y JOIN repl_ml.local_node l ON l.donor <> y.node_id
     WHERE y.schema_name = 'repl_ml' AND y.table_name = 'tombstone' AND y.state = 'pending';
    UPDATE repl_ml.member m SET state = 'ready' FROM repl_ml.local_node l WHERE m.node_id = l.node_id AND m.state = 'joining'
    $$;
COMMENT ON FUNCTION repl_ml.become_ready() IS 'makes a joining node ready, here and for the others';

-- What a donor must have of each other member before this node is copied from it
CREATE FUNCTION repl_ml.link_beginnings(donor integer, OUT node_id integer, OUT lsn pg_lsn, OUT fails boolean) RETURNS SETOF record
    LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp
    AS $$
    SELECT m.node_id, pg_catalog.pg_replication_origin_progress(o.roname, false), w.errors > 0
      FROM repl_ml.member m JOIN repl_ml.local_node l ON l.node_id <> m.node_id
      LEFT JOIN pg_catalog.pg_replication_origin o ON o.roname = repl_ml.link_name(m.node_id)
      LEFT JOIN repl_ml.worker_stats() w ON w.peer = m.node_id
     WHERE m.state = 'ready' AND m.node_id <> donor
    $$;
COMMENT ON FUNCTION repl_ml.link_beginnings(integer) IS 'where the streams from the members but the donor begin, null before there is a link; and whether connecting fails';

-- Two nodes have added the same table by themselves
CREATE FUNCTION repl_ml.meet_table(schema_name name, table_name name, state text, enrolled_by integer) RETURNS void
    LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp
    AS $$
    -- whoever adds it here just now has done so, or has heard of this
    SELECT pg_catalog.pg_advisory_xact_lock(-2, pg_catalog.hashtext(pg_catalog.format('%I.%I', meet_table.schema_name, meet_table.table_name)));
    INSERT INTO repl_ml.table_sync (node_id, schema_name, table_name)
    SELECT l.node_id, t.schema_name, t.table_name FROM repl_ml.local_node l JOIN repl_ml.replicated_table t ON t.enrolled_by = l.node_id AND t.state = 'enrolled'
     WHERE t.schema_name = meet_table.schema_name AND t.table_name = meet_table.table_name AND meet_table.state = 'enrolled' AND meet_table.enrolled_by <> l.node_id
    ON CONFLICT ON CONSTRAINT table_sync_pkey DO NOTHING
    $$;
COMMENT ON FUNCTION repl_ml.meet_table(name, name, text, integer) IS 'orders that this node writes a table''s rows anew, if another node has added the table, too';

CREATE FUNCTION repl_ml.note_written(relation regclass) RETURNS void
    LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp
    AS $$
    UPDATE repl_ml.table_sync y SET state = 'copied'
      FROM repl_ml.local_node l, pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
     WHERE c.oid = relation AND (y.node_id, y.schema_name, y.table_name) = (l.node_id, n.nspname, c.relname)
    $$;
COMMENT ON FUNCTION repl_ml.note_written(regclass) IS 'ticks off that this node has written a table''s rows anew';

-- Expressions are trees of calls; a rule or a query in one may do anything
CREATE FUNCTION repl_ml.code_of_others(relation regclass) RETURNS text
    LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
    AS $$
    WITH privileged AS MATERIALIZED (
        SELECT r.oid FROM pg_catalog.pg_roles r
         WHERE r.rolsuper OR r.rolcreaterole OR r.rolreplication OR pg_catalog.pg_has_role(r.oid, 'pg_execute_server_program', 'MEMBER')
            OR pg_catalog.pg_has_role(r.oid, 'pg_write_server_files', 'MEMBER') OR pg_catalog.pg_has_role(r.oid, 'pg_read_server_files', 'MEMBER')),
    expression (tree) AS (
        SELECT d.adbin::text FROM pg_catalog.pg_attrdef d WHERE d.adrelid = relation
        UNION ALL SELECT k.conbin::text FROM pg_catalog.pg_constraint k WHERE k.conrelid = relation
        UNION ALL SELECT pg_catalog.concat(i.indexprs::text, i.indpred::text) FROM pg_catalog.pg_index i WHERE i.indrelid = relation
        UNION ALL SELECT g.tgqual::text FROM pg_catalog.pg_trigger g WHERE g.tgrelid = relation
        UNION ALL SELECT pg_catalog.concat(o.polqual::text, o.polwithcheck::text) FROM pg_catalog.pg_policy o WHERE o.polrelid = relation
        UNION ALL SELECT p.partexprs::text FROM pg_catalog.pg_partitioned_table p WHERE p.partrelid = relation
        UNION ALL SELECT s.stxexprs::text FROM pg_catalog.pg_statistic_ext s WHERE s.stxrelid = relation),
    called (function) AS (
        SELECT m[1]::oid FROM expression e, pg_catalog.regexp_matches(e.tree, ':(?:funcid|opfuncid|aggfnoid|winfnoid) (\d+)', 'g') m
        UNION SELECT g.tgfoid FROM pg_catalog.pg_trigger g WHERE g.tgrelid = relation AND NOT g.tgisinternal),
    code (what) AS (
        SELECT pg_catalog.format('the function %s', f.oid::regprocedure) FROM called c JOIN pg_catalog.pg_proc f ON f.oid = c.function
         WHERE NOT CASE WHEN f.pronamespace = 'repl_ml'::regnamespace THEN true
                        -- built in, and nothing but a value; or what defaults are made of
                        WHEN f.pronamespace = 'pg_catalog'::regnamespace THEN f.provolatile = 'i' OR f.provolatile = 's' AND f.proname !~ '_to_xml'
                             OR f.proname IN ('nextval', 'clock_timestamp', 'timeofday', 'random', 'gen_random_uuid', 'uuidv4', 'uuidv7')
                             OR f.prorettype = 'pg_catalog.trigger'::regtype
                        -- runs as its owner whoever calls it
                        WHEN f.prosecdef AND f.proowner NOT IN (SELECT r.oid FROM privileged r) THEN true
                        -- of somebody who might run it anyway, and not a tool of an extension, which does as its arguments say
                        ELSE f.proowner IN (SELECT r.oid FROM privileged r WHERE pg_catalog.pg_has_role(r.oid, (SELECT t.relowner FROM pg_catalog.pg_class t WHERE t.oid = relation), 'USAGE'))
                             AND (f.provolatile = 'i' OR NOT EXISTS (SELECT FROM pg_catalog.pg_depend d
                                                                      WHERE d.classid = 'pg_catalog.pg_proc'::regclass AND d.objid = f.oid AND d.deptype = 'e')) END
        UNION ALL SELECT pg_catalog.format('the rule %I', r.rulename) FROM pg_catalog.pg_rewrite r WHERE r.ev_class = relation)
    SELECT pg_catalog.min(c.what) FROM code c
     WHERE (SELECT t.relowner FROM pg_catalog.pg_class t WHERE t.oid = relation) IN (SELECT r.oid FROM privileged r)
    $$;
COMMENT ON FUNCTION repl_ml.code_of_others(regclass) IS
    'of a table whose owner is a superuser, or as good as one: what it would run with his rights that is neither built in and harmless nor written by somebody with these rights; null if there is nothing, and for other owners';

-- Looks into the heap: a query over a table runs what its owner has written, be it only when it is planned
CREATE FUNCTION repl_ml.lock_table(relation regclass) RETURNS boolean
    AS 'MODULE_PATHNAME', 'repl_ml_lock_table' LANGUAGE C VOLATILE STRICT;
COMMENT ON FUNCTION repl_ml.lock_table(regclass) IS 'locks a table and its partitions until the transaction ends; whether they have rows';

-- Only for our own functions: it is a way to become somebody else
CREATE FUNCTION repl_ml.query_as_owner(relation regclass, statement text, arguments text[] DEFAULT '{}') RETURNS SETOF text[]
    AS 'MODULE_PATHNAME', 'repl_ml_query_as_owner' LANGUAGE C VOLATILE STRICT;
COMMENT ON FUNCTION repl_ml.query_as_owner(regclass, text, text[]) IS 'the rows of a query, each as an array, run with the rights of the table''s owner in a security-restricted operation';

-- One table is to be copied from a node, and joined
CREATE FUNCTION repl_ml.order_copy(from_node integer, of_schema name, of_table name) RETURNS void
    LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp
    AS $$
    INSERT INTO repl_ml.table_sync (node_id, schema_name, table_name) VALUES (from_node, of_schema, of_table)
    ON CONFLICT (node_id, schema_name, table_name) DO UPDATE SET state = 'pending', rows = NULL, bytes = NULL
    $$;
COMMENT ON FUNCTION repl_ml.order_copy(integer, name, name) IS 'marks a table to be copied from a node';

-- Enrols a table another node has added, and orders the copy of its rows
CREATE FUNCTION repl_ml.adopt(relation regclass) RETURNS boolean
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
    AS $$
    DECLARE
        self repl_ml.local_node;
        t repl_ml.replicated_table;
        has_rows boolean;
        obstacle record;
    BEGIN
        -- nobody may put something else in its place while we look, and it may be a view already
        has_rows := repl_ml.lock_table(relation);
        SELECT * INTO obstacle FROM repl_ml.enrol_obstacle(relation);
        IF FOUND THEN
            RAISE EXCEPTION '%', obstacle.message USING ERRCODE = 'object_not_in_prerequisite_state', HINT = obstacle.hint;
        END IF;
        SELECT * INTO self FROM repl_ml.local_node;
        -- tables of an extension are its code's, as a scheduler's list of jobs: that takes a person here
        IF self.state = 'ready' AND EXISTS (SELECT FROM pg_catalog.pg_depend d WHERE d.classid = 'pg_catalog.pg_class'::regclass AND d.objid = relation AND d.deptype = 'e') THEN
            RAISE EXCEPTION 'table % belongs to an extension, and another node has added it', relation USING ERRCODE = 'insufficient_privilege',
                HINT = pg_catalog.format('If it is to be replicated here, too, run SELECT repl_ml.add_table(%L) on this node.', relation);
        END IF;
        SELECT r.* INTO t FROM repl_ml.replicated_table r, pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
         WHERE c.oid = relation AND r.schema_name = n.nspname AND r.table_name = c.relname;
        IF has_rows AND self.state <> 'ready' AND self.copy_data THEN
            RAISE EXCEPTION 'table % of the joining database is not empty', relation USING ERRCODE = 'object_not_in_prerequisite_state',
                HINT = pg_catalog.format('Run SELECT repl_ml.leave_group(force => true), then TRUNCATE %s or drop it, and join again; or join with copy_data => false if its rows are to be compared with the group''s.', relation);
        END IF;
        -- nobody has ordered them: they would be written beside the others
        IF has_rows AND t.class = 'strong' AND self.state = 'ready' THEN
            RAISE EXCEPTION 'strong table % has rows here that the group does not have', relation USING ERRCODE = 'object_not_in_prerequisite_state',
                HINT = pg_catalog.format('Run TRUNCATE %s here, if they are not needed.', relation);
        END IF;
        -- rows that a joining node brings have no clock until they are compared
        PERFORM repl_ml.enrol(relation, CASE WHEN self.state <> 'ready' AND NOT self.copy_data THEN '{}' END);
        -- numbers that it has been given by itself are nobody else's
        IF has_rows AND self.state = 'ready' THEN
            PERFORM repl_ml.lock_sequence(o.sequence), repl_ml.note_use(o.schema_name, o.sequence_name, o.sequence)
               FROM repl_ml.owned_sequences(relation) o JOIN repl_ml.group_sequence g USING (schema_name, sequence_name) WHERE g.state = 'enrolled' AND g.obstacle IS NULL;
        END IF;
        PERFORM repl_ml.agree_on_columns();
        INSERT INTO repl_ml.table_sync AS y (node_id, schema_name, table_name)
        SELECT coalesce(CASE WHEN self.state <> 'ready' THEN self.donor END, t.enrolled_by), t.schema_name, t.table_name
        ON CONFLICT ON CONSTRAINT table_sync_pkey DO UPDATE SET state = 'pending', rows = NULL, bytes = NULL;
        DELETE FROM repl_ml.table_sync y WHERE y.node_id = self.node_id;
        -- also rows with a clock: a client may have written the table since it was made from a member's definition
        RETURN has_rows AND self.state = 'ready';
    END
    $$;
COMMENT ON FUNCTION repl_ml.adopt(regclass) IS 'enrols a table that another node added to the group and orders the copy of its rows; whether it has rows that the others lack';

CREATE FUNCTION repl_ml.drop_triggers(relation regclass) RETURNS void
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
    AS $$
    DECLARE
        t name;
    BEGIN
        FOR t IN SELECT g.tgname FROM pg_catalog.pg_trigger g JOIN pg_catalog.pg_proc p ON p.oid = g.tgfoid
                  WHERE g.tgrelid = relation AND p.pronamespace = 'repl_ml'::pg_catalog.regnamespace AND g.tgparentid = 0
        LOOP
            EXECUTE pg_catalog.format('DROP TRIGGER %I ON %s', t, relation);
        END LOOP;
    END
    $$;
COMMENT ON FUNCTION repl_ml.drop_triggers(regclass) IS 'removes repl_ml''s triggers from a table';

-- Partitions have clones of the row triggers
CREATE FUNCTION repl_ml.trigger_fault(relation regclass) RETURNS text
    LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
    AS $$
    SELECT CASE WHEN pg_catalog.bool_or(g.tgenabled <> 'A') THEN 'were disabled' WHEN pg_catalog.count(*) FILTER (WHERE g.tgrelid = relation) < 5 THEN 'were dropped' END
      FROM pg_catalog.pg_trigger g JOIN pg_catalog.pg_proc p ON p.oid = g.tgfoid
     WHERE p.pronamespace = 'repl_ml'::pg_catalog.regnamespace AND (g.tgrelid = relation OR g.tgrelid IN (SELECT x.relid FROM repl_ml.partitions(relation) x))
    $$;
COMMENT ON FUNCTION repl_ml.trigger_fault(regclass) IS 'what is wrong with the triggers that stamp a table''s rows; null where nothing is';

-- For the supervisor. What was written meanwhile has no clock of its own: only a comparison finds it
CREATE FUNCTION repl_ml.mend_triggers() RETURNS void
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp SET lock_timeout = '1s'
    AS $$
    DECLARE
        t record;
    BEGIN
        FOR t IN SELECT c.oid::pg_catalog.regclass AS relation, n.nspname, c.relname, repl_ml.trigger_fault(c.oid) AS fault
                   FROM pg_catalog.pg_publication p JOIN pg_catalog.pg_publication_rel r ON r.prpubid = p.oid
                   JOIN pg_catalog.pg_class c ON c.oid = r.prrelid JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
                   -- all at once, as one by one takes too long for many tables; of partitions trigger_fault knows
                   LEFT JOIN (SELECT g.tgrelid, pg_catalog.count(*) AS triggers, pg_catalog.bool_or(g.tgenabled <> 'A') AS disabled
                                FROM pg_catalog.pg_trigger g JOIN pg_catalog.pg_proc f ON f.oid = g.tgfoid
                               WHERE f.pronamespace = 'repl_ml'::pg_catalog.regnamespace GROUP BY 1) k ON k.tgrelid = c.oid
                  WHERE p.pubname = 'repl_ml' AND n.nspname <> 'repl_ml'
                    AND CASE WHEN c.relkind = 'p' OR k.disabled OR coalesce(k.triggers, 0) < 5 THEN repl_ml.trigger_fault(c.oid) IS NOT NULL ELSE false END
        LOOP
            -- not of a group that this database is leaving
            PERFORM FROM repl_ml.local_node FOR SHARE;
            EXIT WHEN NOT FOUND;
            BEGIN
                PERFORM repl_ml.enrol(t.relation);
                INSERT INTO repl_ml.consistency_check (schema_name, table_name, status, members, unreachable, rows, chunks, differing_rows, rechecked_rows, started_at, duration, detail, hint, unwatched)
                VALUES (t.nspname, t.relname, 'incomplete', '{}', '{}', 0, 0, 0, 0, pg_catalog.clock_timestamp(), '0', pg_catalog.format('The triggers that stamp its rows %s on this node.', t.fault),
                        pg_catalog.format('Run SELECT * FROM repl_ml.verify_table(%L).', t.relation::text), true);
                RAISE WARNING 'the triggers that stamp rows of table %.% % and are made anew', t.nspname, t.relname, t.fault
                    USING HINT = pg_catalog.format('What was written meanwhile reached no other node: run SELECT * FROM repl_ml.verify_table(%L).', t.relation::text);
            EXCEPTION WHEN OTHERS THEN
                RAISE WARNING 'the triggers that stamp rows of table %.% % and cannot be made anew yet: %', t.nspname, t.relname, t.fault, SQLERRM
                    USING HINT = 'See SELECT * FROM repl_ml.health.';
            END;
        END LOOP;
    END
    $$;
COMMENT ON FUNCTION repl_ml.mend_triggers() IS 'makes the triggers of replicated tables anew where somebody has disabled or dropped them while this library was not loaded, and has health name these tables until they have been compared';

-- The reverse of enrol
CREATE FUNCTION repl_ml.disenrol(relation regclass) RETURNS void
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp SET repl_ml.guard_off = on
    AS $$
    BEGIN
        PERFORM repl_ml.drop_triggers(relation);
        IF EXISTS (SELECT FROM pg_catalog.pg_publication_rel r JOIN pg_catalog.pg_publication p ON p.oid = r.prpubid
                    WHERE p.pubname = 'repl_ml' AND r.prrelid = relation) THEN
            EXECUTE pg_catalog.format('ALTER PUBLICATION repl_ml DROP TABLE %s', relation);
        END IF;
        PERFORM repl_ml.forget_columns(relation);
        EXECUTE pg_catalog.format('ALTER TABLE %s DROP COLUMN IF EXISTS __repl_clock', relation);
        EXECUTE pg_catalog.format('REVOKE SELECT ON %s FROM repl_ml_replication', relation);
        DELETE FROM repl_ml.tombstone t USING pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
         WHERE c.oid = relation AND t.schema_name = n.nspname AND t.table_name = c.relname;
        DELETE FROM repl_ml.unsent u USING pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
         WHERE c.oid = relation AND u.schema_name = n.nspname AND u.table_name = c.relname;
        DELETE FROM repl_ml.concurrent_version v USING pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
         WHERE c.oid = relation AND v.schema_name = n.nspname AND v.table_name = c.relname;
        DELETE FROM repl_ml.key_shape k USING pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
         WHERE c.oid = relation AND k.schema_name = n.nspname AND k.table_name = c.relname;
    END
    $$;
COMMENT ON FUNCTION repl_ml.disenrol(regclass) IS 'makes a table of this database an ordinary one again';

-- An expression as it is after a dump and restore too, and on other majors: without casts and parentheses
CREATE FUNCTION repl_ml.plain_expression(expression text) RETURNS text
    LANGUAGE sql STABLE STRICT SET search_path = pg_catalog, pg_temp
    AS $$
    SELECT pg_catalog.btrim(pg_catalog.regexp_replace(pg_catalog.regexp_replace(pg_catalog.regexp_replace(expression,
               '::("[^"]*"|[a-z_][a-z0-9_]*)(\.("[^"]*"|[a-z_][a-z0-9_]*))?( varying| precision)?(\([0-9, ]*\))?( with(out)? time zone)?(\[\])*', '', 'g'),
               '[()\s]+', ' ', 'g'), '\s*([\[\],])\s*', '\1', 'g'))
    $$;
COMMENT ON FUNCTION repl_ml.plain_expression(text) IS 'text of an expression without what differs though the expression is the same';

CREATE FUNCTION repl_ml.describe_type(type_id oid) RETURNS text
    LANGUAGE sql STABLE STRICT SET search_path = pg_catalog, pg_temp
    AS $$
    SELECT CASE t.typtype
           WHEN 'e' THEN 'enum (' || (SELECT pg_catalog.string_agg(pg_catalog.quote_literal(e.enumlabel), ', ' ORDER BY e.enumsortorder) FROM pg_catalog.pg_enum e WHERE e.enumtypid = t.oid) || ')'
           WHEN 'd' THEN pg_catalog.format_type(t.typbasetype, t.typtypmod) || CASE WHEN t.typcollation <> b.typcollation THEN ' COLLATE ' || t.typcollation::regcollation ELSE '' END
                         || CASE WHEN t.typnotnull THEN ' NOT NULL' ELSE '' END
                         || coalesce((SELECT pg_catalog.string_agg(' ' || repl_ml.plain_expression(pg_catalog.regexp_replace(pg_catalog.pg_get_constraintdef(k.oid), ' NOT VALID$', '')), '' ORDER BY 1)
                                        FROM pg_catalog.pg_constraint k WHERE k.contypid = t.oid AND k.contype = 'c'), '')
           WHEN 'c' THEN '(' || (SELECT pg_catalog.string_agg(pg_catalog.quote_ident(a.attname) || ' ' || pg_catalog.format_type(a.atttypid, a.atttypmod), ', ' ORDER BY a.attnum)
                                   FROM pg_catalog.pg_attribute a WHERE a.attrelid = t.typrelid AND a.attnum > 0 AND NOT a.attisdropped AND a.attname <> '__repl_clock') || ')'
           WHEN 'r' THEN 'range of ' || (SELECT r.rngsubtype::regtype FROM pg_catalog.pg_range r WHERE r.rngtypid = t.oid) END
      FROM pg_catalog.pg_type t LEFT JOIN pg_catalog.pg_type b ON b.oid = t.typbasetype WHERE t.oid = type_id
    $$;
COMMENT ON FUNCTION repl_ml.describe_type(oid) IS 'what a type is, as text that is the same on all nodes where it is the same';

-- As pg_partition_tree, which locks partitions, and not their table, until the transaction ends: what then waits for
-- the table, or for another, is in the way of a command that changes them
CREATE FUNCTION repl_ml.partitions(relation regclass, OUT relid regclass, OUT parentrelid regclass) RETURNS SETOF record
    LANGUAGE sql STABLE STRICT SET search_path = pg_catalog, pg_temp
    AS $$
    WITH RECURSIVE p AS (
        SELECT i.inhrelid, i.inhparent FROM pg_catalog.pg_inherits i WHERE i.inhparent = relation AND NOT i.inhdetachpending
        UNION ALL
        SELECT i.inhrelid, i.inhparent FROM p JOIN pg_catalog.pg_inherits i ON i.inhparent = p.inhrelid AND NOT i.inhdetachpending)
    SELECT p.inhrelid, p.inhparent FROM p JOIN pg_catalog.pg_class c ON c.oid = p.inhrelid AND c.relispartition AND c.relkind IN ('r', 'p', 'f')
    $$;
COMMENT ON FUNCTION repl_ml.partitions(regclass) IS 'the partitions of a table, and theirs, without locking them';

-- What has to be the same on all members for each other's rows to fit; defaults, triggers and plain indexes need not be
CREATE FUNCTION repl_ml.describe_table(relation regclass) RETURNS jsonb
    LANGUAGE sql STABLE STRICT SET search_path = pg_catalog, pg_temp SET datestyle = 'ISO, MDY' SET intervalstyle = postgres SET timezone = 'UTC'
    AS $$
    SELECT pg_catalog.jsonb_object_agg(f.object, f.value) FROM (
        SELECT '0the table', 'there'
        UNION ALL
        SELECT pg_catalog.format('1column %I', a.attname),
               pg_catalog.format_type(a.atttypid, a.atttypmod) || CASE WHEN a.attcollation <> t.typcollation THEN ' COLLATE ' || a.attcollation::regcollation ELSE '' END
               || CASE WHEN a.attnotnull THEN ' NOT NULL' ELSE '' END
               || CASE WHEN a.attgenerated <> '' THEN pg_catalog.format(' GENERATED ALWAYS AS (%s)', repl_ml.plain_expression(pg_catalog.pg_get_expr(d.adbin, d.adrelid))) ELSE '' END
          FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_type t ON t.oid = a.atttypid
          LEFT JOIN pg_catalog.pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
         WHERE a.attrelid = relation AND a.attnum > 0 AND NOT a.attisdropped AND a.attname <> '__repl_clock'
        UNION ALL
        SELECT pg_catalog.format('1identity of column %I', a.attname), repl_ml.column_identity(relation, a.attname)
          FROM pg_catalog.pg_attribute a WHERE a.attrelid = relation AND a.attnum > 0 AND NOT a.attisdropped AND a.attname <> '__repl_clock' AND a.attgenerated = ''
        UNION ALL
        SELECT pg_catalog.format('2type %s', y.type_id::regtype), repl_ml.describe_type(y.type_id)
          FROM (SELECT DISTINCT c.type_id FROM repl_ml.column_types(relation) c) y JOIN pg_catalog.pg_type t ON t.oid = y.type_id
         WHERE t.typtype IN ('e', 'd', 'c', 'r') AND t.typnamespace <> 'pg_catalog'::regnamespace
           AND NOT EXISTS (SELECT FROM pg_catalog.pg_depend e WHERE e.classid = 'pg_type'::regclass AND e.objid = t.oid AND e.deptype = 'e')
        UNION ALL
        SELECT '3the primary key', '(' || pg_catalog.string_agg(pg_catalog.quote_ident(a.attname), ', ' ORDER BY k.place) || ')'
          FROM pg_catalog.pg_index i CROSS JOIN LATERAL ROWS FROM (pg_catalog.unnest(i.indkey)) WITH ORDINALITY k (attnum, place)
          JOIN pg_catalog.pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
         WHERE i.indrelid = relation AND i.indisprimary AND k.place <= i.indnkeyatts HAVING pg_catalog.count(*) > 0
        UNION ALL
        SELECT pg_catalog.format('4unique key %s', CASE WHEN i.indexprs IS NULL AND i.indpred IS NULL THEN x.definition ELSE repl_ml.plain_expression(x.definition) END),
               CASE WHEN i.indisvalid THEN 'there' ELSE 'not valid' END
          FROM pg_catalog.pg_index i
         CROSS JOIN LATERAL (SELECT pg_catalog.substring(pg_catalog.pg_get_indexdef(i.indexrelid), ' USING (.*)$') AS definition) x
         WHERE i.indrelid = relation AND i.indisunique AND NOT i.indisprimary
        UNION ALL
        SELECT pg_catalog.format('5constraint %s', CASE WHEN k.contype = 'f' THEN x.definition ELSE repl_ml.plain_expression(x.definition) END), 'there'
          FROM pg_catalog.pg_constraint k CROSS JOIN LATERAL (SELECT pg_catalog.regexp_replace(pg_catalog.pg_get_constraintdef(k.oid), ' NOT VALID$', '') AS definition) x
         WHERE k.conrelid = relation AND k.contype IN ('c', 'f', 'x') AND k.conparentid = 0
        UNION ALL
        SELECT '6the partition key', repl_ml.plain_expression(pg_catalog.pg_get_partkeydef(relation)) WHERE pg_catalog.pg_get_partkeydef(relation) IS NOT NULL
        UNION ALL
        SELECT pg_catalog.format('7partition %s', p.relid), pg_catalog.format('%s of %s', pg_catalog.pg_get_expr(c.relpartbound, c.oid), p.parentrelid)
          FROM repl_ml.partitions(relation) p JOIN pg_catalog.pg_class c ON c.oid = p.relid) f (object, value)
     WHERE f.value IS NOT NULL
    $$;
COMMENT ON FUNCTION repl_ml.describe_table(regclass) IS 'what a table is, object by object, as text that is the same on all nodes where it is the same';

CREATE FUNCTION repl_ml.describe_database() RETURNS jsonb
    LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
    AS $$
    SELECT pg_catalog.jsonb_build_object('0the server', 'PostgreSQL ' || pg_catalog.current_setting('server_version_num')::integer / 10000,
               '1the encoding', pg_catalog.pg_encoding_to_char(d.encoding),
               '2the collation of the database', pg_catalog.format('%s (%s)', coalesce(pg_catalog.to_jsonb(d) ->> 'datlocale', pg_catalog.to_jsonb(d) ->> 'daticulocale', d.datcollate),
                                                     CASE d.datlocprovider WHEN 'c' THEN 'libc' WHEN 'i' THEN 'icu' ELSE 'builtin' END))
      FROM pg_catalog.pg_database d WHERE d.datname = pg_catalog.current_database()
    $$;
COMMENT ON FUNCTION repl_ml.describe_database() IS 'what of the database and its server matters for the values of all tables';

CREATE FUNCTION repl_ml.tell_shapes() RETURNS void
    LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp
    AS $$
    WITH described AS MATERIALIZED (
        SELECT t.schema_name, t.table_name, repl_ml.describe_table(c.oid) AS shape, repl_ml.seen_columns(c.oid) AS seen
          FROM repl_ml.replicated_table t LEFT JOIN (pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace)
            ON n.nspname = t.schema_name AND c.relname = t.table_name AND c.relkind IN ('r', 'p')
         WHERE t.state = 'enrolled'),
    present AS MATERIALIZED (
        SELECT l.node_id, x.schema_name, x.table_name, x.shape, x.seen
          FROM repl_ml.local_node l, (
               SELECT * FROM described
               -- members whose sums are the same have the same tables, and need not be compared one by one
               UNION ALL SELECT '', '', repl_ml.describe_database(),
                    (SELECT pg_catalog.encode(pg_catalog.sha256(pg_catalog.convert_to(coalesce(pg_catalog.string_agg(pg_catalog.format('%I.%I %s', d.schema_name, d.table_name, d.shape), E'\n' ORDER BY d.schema_name, d.table_name), ''), 'UTF8')), 'hex')
                       FROM described d)) x)
    INSERT INTO repl_ml.table_shape (node_id, schema_name, table_name, shape, seen)
    SELECT p.* FROM present p
     WHERE NOT EXISTS (SELECT FROM repl_ml.table_shape s WHERE (s.node_id, s.schema_name, s.table_name) = (p.node_id, p.schema_name, p.table_name)
                          AND s.shape IS NOT DISTINCT FROM p.shape AND s.seen IS NOT DISTINCT FROM p.seen)
    ON CONFLICT ON CONSTRAINT table_shape_pkey DO UPDATE SET shape = excluded.shape, seen = excluded.seen
    $$;
COMMENT ON FUNCTION repl_ml.tell_shapes() IS 'tells the group what this node''s tables are, where that has changed';

CREATE FUNCTION repl_ml.has_run(number bigint) RETURNS boolean
    LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
    AS $$
    SELECT number = 0 OR EXISTS (SELECT FROM repl_ml.local_node l WHERE l.schema_base >= has_run.number) OR EXISTS (SELECT FROM repl_ml.schema_change c WHERE c.number = has_run.number)
    $$;
COMMENT ON FUNCTION repl_ml.has_run(bigint) IS 'whether this node has a change of the schema';

-- The list of enrolled tables against what this database has; used after the list changed
CREATE FUNCTION repl_ml.pending_tables(OUT schema_name name, OUT table_name name, OUT relation regclass, OUT action text, OUT enrolled_by integer)
    RETURNS SETOF record
    LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
    AS $$
    SELECT t.schema_name, t.table_name, c.oid::pg_catalog.regclass,
           CASE WHEN t.state <> 'enrolled' THEN 'remove' WHEN c.oid IS NULL THEN 'create' ELSE 'enrol' END, t.enrolled_by
      FROM repl_ml.replicated_table t
      LEFT JOIN (pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace)
             ON n.nspname = t.schema_name AND c.relname = t.table_name
      LEFT JOIN (pg_catalog.pg_publication_rel r JOIN pg_catalog.pg_publication p ON p.oid = r.prpubid AND p.pubname = 'repl_ml')
             ON r.prrelid = c.oid
     WHERE (t.state = 'enrolled') <> (r.oid IS NOT NULL) AND t.schema_name <> 'repl_ml'
       -- what a change of the schema makes, or drops, is done by that, where it belongs among rows
       AND t.state NOT IN ('dropped', 'renamed') AND repl_ml.has_run(t.made_by)
    UNION ALL
    -- another node has added it, too: what was in it before is to be sent
    SELECT y.schema_name, y.table_name, c.oid::pg_catalog.regclass, 'write', l.node_id
      FROM repl_ml.local_node l JOIN repl_ml.table_sync y ON y.node_id = l.node_id AND y.state = 'pending'
      JOIN pg_catalog.pg_namespace n ON n.nspname = y.schema_name
      JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid AND c.relname = y.table_name
      JOIN repl_ml.replicated_table t ON t.schema_name = y.schema_name AND t.table_name = y.table_name AND t.state = 'enrolled'
     ORDER BY 1, 2
    $$;
COMMENT ON FUNCTION repl_ml.pending_tables() IS 'tables whose state in this database differs from the group''s list, and what to do';

--
-- Tables of the group
--

CREATE FUNCTION repl_ml.list_table(relation regclass, class text DEFAULT 'eventual', made_by bigint DEFAULT 0) RETURNS void
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
    AS $$
    DECLARE
        self record;
        was_here boolean;
    BEGIN
        SELECT * INTO self FROM repl_ml.require_member();
        -- against meet_table(): one of the two hears of the other
        PERFORM pg_catalog.pg_advisory_xact_lock(-2, pg_catalog.hashtext(pg_catalog.format('%I.%I', n.nspname, c.relname))) FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = relation;
        was_here := repl_ml.is_published(relation);
        IF EXISTS (SELECT FROM pg_catalog.pg_attribute a WHERE a.attrelid = relation AND a.attname = '__repl_clock' AND NOT a.attisdropped
                      AND a.atttypid = 'repl_ml.vclock'::pg_catalog.regtype)
           AND NOT EXISTS (SELECT FROM pg_catalog.pg_publication_rel r JOIN pg_catalog.pg_publication p ON p.oid = r.prpubid
                            WHERE p.pubname = 'repl_ml' AND r.prrelid = relation)
           AND NOT EXISTS (SELECT FROM repl_ml.enrol_obstacle(relation)) THEN
            -- clocks of another group, out of a dump: they mean nothing here
            PERFORM repl_ml.disenrol(relation);
        END IF;
        PERFORM repl_ml.enrol(relation);
        DELETE FROM repl_ml.table_sync y USING pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
         WHERE c.oid = relation AND y.node_id = self.node_id AND y.schema_name = n.nspname AND y.table_name = c.relname;
        INSERT INTO repl_ml.replicated_table AS t (schema_name, table_name, state, enrolled_by, class, made_by)
        SELECT n.nspname, c.relname, 'enrolled', self.node_id, list_table.class, list_table.made_by
          FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = relation
        ON CONFLICT ON CONSTRAINT replicated_table_pkey DO UPDATE SET state = 'enrolled', enrolled_by = excluded.enrolled_by, made_by = excluded.made_by WHERE t.state <> 'enrolled';
        -- another node has added it, too, which was heard of before it was done here: what is in it is to be sent, and fetched
        IF NOT FOUND AND NOT was_here THEN
            INSERT INTO repl_ml.table_sync AS y (node_id, schema_name, table_name)
            SELECT x.id, t.schema_name, t.table_name
              FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace JOIN repl_ml.replicated_table t ON t.schema_name = n.nspname AND t.table_name = c.relname
             CROSS JOIN LATERAL (VALUES (t.enrolled_by), (self.node_id)) x (id)
             WHERE c.oid = relation AND t.enrolled_by <> self.node_id
            ON CONFLICT ON CONSTRAINT table_sync_pkey DO UPDATE SET state = 'pending', rows = NULL, bytes = NULL;
        END IF;
        -- in this transaction, so that nobody hears of the table without them
        PERFORM repl_ml.share_sequences(relation);
        PERFORM repl_ml.wake_workers();
    END
    $$;
COMMENT ON FUNCTION repl_ml.list_table(regclass, text, bigint) IS 'enrols a table of this database and puts it on the group''s list; one that was on it keeps its class';

-- What has to be on another node before a table can be created there: objects of its columns, constraints, triggers, policies, roles
CREATE FUNCTION repl_ml.table_needs(relation regclass, beside regclass[]) RETURNS jsonb
    LANGUAGE sql STABLE STRICT SET search_path = pg_catalog, pg_temp
    AS $$
    WITH t (oid) AS (SELECT relation::oid UNION SELECT p.relid FROM pg_catalog.pg_partition_tree(relation) p),
    own (classid, objid) AS (
        SELECT 'pg_class'::regclass::oid, t.oid FROM t
        UNION ALL SELECT 'pg_class'::regclass, x.indexrelid FROM t JOIN pg_catalog.pg_index x ON x.indrelid = t.oid
        UNION ALL SELECT 'pg_class'::regclass, d.objid FROM t JOIN pg_catalog.pg_depend d ON d.refclassid = 'pg_class'::regclass AND d.refobjid = t.oid
                         JOIN pg_catalog.pg_class c ON d.classid = 'pg_class'::regclass AND c.oid = d.objid AND c.relkind = 'S' WHERE d.deptype IN ('a', 'i')
        UNION ALL SELECT 'pg_constraint'::regclass, x.oid FROM t JOIN pg_catalog.pg_constraint x ON x.conrelid = t.oid
        UNION ALL SELECT 'pg_attrdef'::regclass, x.oid FROM t JOIN pg_catalog.pg_attrdef x ON x.adrelid = t.oid
        UNION ALL SELECT 'pg_trigger'::regclass, x.oid FROM t JOIN pg_catalog.pg_trigger x ON x.tgrelid = t.oid
        UNION ALL SELECT 'pg_rewrite'::regclass, x.oid FROM t JOIN pg_catalog.pg_rewrite x ON x.ev_class = t.oid
        UNION ALL SELECT 'pg_policy'::regclass, x.oid FROM t JOIN pg_catalog.pg_policy x ON x.polrelid = t.oid
        UNION ALL SELECT 'pg_statistic_ext'::regclass, x.oid FROM t JOIN pg_catalog.pg_statistic_ext x ON x.stxrelid = t.oid),
    needed (classid, objid) AS (
        SELECT d.refclassid, coalesce(y.typelem, d.refobjid) FROM own o JOIN pg_catalog.pg_depend d USING (classid, objid)
          -- of an array its elements' type
          LEFT JOIN pg_catalog.pg_type y ON d.refclassid = 'pg_type'::regclass AND y.oid = d.refobjid AND y.typcategory = 'A' AND y.typelem <> 0
         WHERE d.refclassid IN ('pg_class'::regclass, 'pg_proc'::regclass, 'pg_type'::regclass, 'pg_collation'::regclass, 'pg_opclass'::regclass, 'pg_operator'::regclass,
                                'pg_ts_config'::regclass, 'pg_am'::regclass, 'pg_extension'::regclass)
           AND (d.refclassid, d.refobjid) NOT IN (SELECT o.classid, o.objid FROM own o)
        UNION SELECT s.refclassid, s.refobjid FROM own o JOIN pg_catalog.pg_shdepend s USING (classid, objid)
         WHERE s.refclassid = 'pg_authid'::regclass AND s.dbid = (SELECT b.oid FROM pg_catalog.pg_database b WHERE b.datname = pg_catalog.current_database())
        UNION SELECT 'pg_authid'::regclass, c.relowner FROM t JOIN pg_catalog.pg_class c ON c.oid = t.oid),
    -- what an extension brings is there when the extension is
    named (classid, objid) AS (
        SELECT DISTINCT coalesce(e.refclassid, n.classid), coalesce(e.refobjid, n.objid)
          FROM needed n LEFT JOIN pg_catalog.pg_depend e ON e.classid = n.classid AND e.objid = n.objid AND e.deptype = 'e'
          LEFT JOIN pg_catalog.pg_class c ON n.classid = 'pg_class'::regclass AND c.oid = n.objid
         WHERE c.oid IS NULL OR (c.relkind NOT IN ('i', 'I') AND c.oid <> ALL (beside)))
    SELECT coalesce(pg_catalog.jsonb_agg(pg_catalog.jsonb_build_object('type', a.type, 'names', a.object_names, 'arguments', a.object_args, 'identity', i.identity) ORDER BY a.type, i.identity), '[]')
      FROM named n CROSS JOIN LATERAL pg_catalog.pg_identify_object_as_address(n.classid, n.objid, 0) a
     CROSS JOIN LATERAL pg_catalog.pg_identify_object(n.classid, n.objid, 0) i
     WHERE NOT (a.type = 'extension' AND i.identity = 'repl_ml')
    $$;
COMMENT ON FUNCTION repl_ml.table_needs(regclass, regclass[]) IS 'the functions, types, collations, tables, extensions and roles that the definition of a table refers to, other than the tables that are created beside it';

-- Asked by a member that is about to add tables: why one of them cannot be created here
CREATE FUNCTION repl_ml.cannot_create(tables jsonb) RETURNS text
    LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
    AS $$
    DECLARE
        t record;
        need record;
        here regclass;
        o record;
        answer jsonb := '[]';
    BEGIN
        PERFORM repl_ml.require_member();
        FOR t IN SELECT x.* FROM pg_catalog.jsonb_to_recordset(tables) x ("table" text, needs jsonb, code text) LOOP
            here := pg_catalog.to_regclass(t."table");
            IF here IS NOT NULL THEN
                FOR o IN SELECT * FROM repl_ml.enrol_obstacle(here) LIMIT 1 LOOP
                    answer := answer || pg_catalog.jsonb_build_object('table', t."table", 'message', o.message, 'hint', o.hint);
                END LOOP;
                CONTINUE;
            END IF;
            IF t.code IS NOT NULL THEN
                answer := answer || pg_catalog.jsonb_build_object('table', t."table", 'message', pg_catalog.format('table %s would run %s with a superuser''s rights', t."table", t.code),
                    'hint', 'Create the table there yourself, or give it to a role that is no superuser.');
            END IF;
            FOR need IN SELECT x.* FROM pg_catalog.jsonb_to_recordset(t.needs) x (type text, names text[], arguments text[], identity text) LOOP
                BEGIN
                    PERFORM pg_catalog.pg_get_object_address(need.type, need.names, need.arguments);
                EXCEPTION WHEN OTHERS THEN
                    answer := answer || pg_catalog.jsonb_build_object('table', t."table", 'type', need.type, 'identity', need.identity);
                END;
            END LOOP;
        END LOOP;
        RETURN answer::text;
    END
    $$;
COMMENT ON FUNCTION repl_ml.cannot_create(jsonb) IS 'asked by peers: which of these tables cannot be created or enrolled here, because of what is here under their name or what they need and is not here';

-- No row for a table that can be created everywhere, as far as the members that can be reached know
CREATE FUNCTION repl_ml.peer_obstacles(relations regclass[], OUT relation regclass, OUT message text, OUT hint text)
    RETURNS SETOF record
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
    AS $$
    DECLARE
        names name[];
        dsns text[];
        question text;
    BEGIN
        SELECT pg_catalog.array_agg(m.node_name ORDER BY m.node_id), pg_catalog.array_agg(m.dsn ORDER BY m.node_id) INTO names, dsns
          FROM repl_ml.member m JOIN repl_ml.local_node l ON l.node_id <> m.node_id WHERE m.state = 'ready';
        IF names IS NULL OR relations = '{}' THEN
            RETURN;
        END IF;
        SELECT pg_catalog.format('SELECT repl_ml.cannot_create(%L)', pg_catalog.jsonb_agg(pg_catalog.jsonb_build_object('table', r::text, 'needs', repl_ml.table_needs(r, relations), 'code', repl_ml.code_of_others(r)))::text)
          INTO question FROM pg_catalog.unnest(relations) r;
        RETURN QUERY
        SELECT DISTINCT ON (x."table") x."table"::regclass,
               CASE WHEN x.type IS NULL THEN pg_catalog.format('on node "%s": %s', a.node_name, x.message)
                    ELSE pg_catalog.format('table %s needs %s %s, which node "%s" does not have', x."table", x.type, x.identity, a.node_name) END,
               CASE WHEN x.type IS NULL THEN coalesce(x.hint, '') || pg_catalog.format(' This is on node "%s".', a.node_name)
                    WHEN x.type = 'table' THEN pg_catalog.format('Run SELECT repl_ml.add_table(%L) first, or create it on node "%s".', x.identity, a.node_name)
                    WHEN x.type = 'extension' THEN pg_catalog.format('Run CREATE EXTENSION %s on node "%s".', x.identity, a.node_name)
                    WHEN x.type = 'role' THEN pg_catalog.format('Run CREATE ROLE %s on node "%s".', x.identity, a.node_name)
                    ELSE pg_catalog.format('Create it on node "%s" first, as it is here.', a.node_name) END
          FROM ROWS FROM (pg_catalog.unnest(names), pg_catalog.unnest(repl_ml.ask_members(dsns, question))) WITH ORDINALITY a (node_name, answer, place)
         CROSS JOIN LATERAL pg_catalog.jsonb_to_recordset(a.answer::jsonb) x ("table" text, message text, hint text, type text, identity text)
         ORDER BY x."table", a.place;
    END
    $$;
COMMENT ON FUNCTION repl_ml.peer_obstacles(regclass[]) IS 'why tables cannot be created or enrolled on another member, and what to do; members that do not answer are left out';

CREATE FUNCTION repl_ml.take_lease() RETURNS void
    AS 'MODULE_PATHNAME', 'repl_ml_take_lease' LANGUAGE C VOLATILE STRICT;
COMMENT ON FUNCTION repl_ml.take_lease() IS 'takes the lease of strong tables until the transaction ends, as a statement that writes one does';

CREATE FUNCTION repl_ml.add_table(relation regclass, class text DEFAULT NULL) RETURNS void
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
    AS $$
    DECLARE
        obstacle record;
        listed repl_ml.replicated_table;
    BEGIN
        PERFORM repl_ml.refuse_nulls('relation', pg_catalog.num_nulls(relation));
        PERFORM repl_ml.require_member();
        SELECT t.* INTO listed FROM repl_ml.replicated_table t JOIN pg_catalog.pg_namespace n ON n.nspname = t.schema_name
          JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid AND c.relname = t.table_name WHERE c.oid = relation;
        class := coalesce(class, listed.pending_class, listed.class, 'eventual');
        IF class <> ALL ('{eventual, strong}') THEN
            RAISE EXCEPTION 'class "%" does not exist', class USING ERRCODE = 'invalid_parameter_value', HINT = 'Use eventual or strong.';
        ELSIF listed.state = 'enrolled' AND (listed.class <> class OR listed.pending_class IS NOT NULL) THEN
            PERFORM repl_ml.set_table_class(relation, class);
            RETURN;
        ELSIF class = 'strong' THEN
            -- whoever has the lease later has heard of the table before
            PERFORM repl_ml.take_lease();
        END IF;
        FOR obstacle IN SELECT o.message, o.hint FROM repl_ml.enrol_obstacle(add_table.relation) o
                        UNION ALL SELECT o.message, o.hint FROM repl_ml.peer_obstacles(ARRAY[add_table.relation]) o LIMIT 1 LOOP
            RAISE EXCEPTION '%', obstacle.message USING ERRCODE = 'object_not_in_prerequisite_state', HINT = obstacle.hint;
        END LOOP;
        UPDATE repl_ml.replicated_table t SET class = add_table.class
         WHERE t.schema_name = listed.schema_name AND t.table_name = listed.table_name AND t.class <> add_table.class;
        PERFORM repl_ml.list_table(relation, class);
    END
    $$;
COMMENT ON FUNCTION repl_ml.add_table(regclass, text) IS
    'replicates a table on all members: they create it if they lack it and get its rows. Adds the column __repl_clock without rewriting the table. Of class strong it is written by one node at a time, with the lease (see the view strong_lease), else by all at once (eventual, the default). Of one that is replicated already it changes the class, as set_table_class() does. Superusers only. Errors: 55000 not a member, or the table cannot be replicated, 22023 no such class, 57P03 the lease of strong tables does not come, and those of set_table_class()';

CREATE FUNCTION repl_ml.add_all_tables(schema_names name[] DEFAULT '{public}', OUT relation regclass, OUT status text, OUT detail text, OUT hint text)
    RETURNS SETOF record
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
    AS $$
    DECLARE
        s name;
        obstacle record;
        candidates regclass[];
        refused jsonb;
    BEGIN
        PERFORM repl_ml.refuse_nulls('schema_names', pg_catalog.num_nulls(schema_names));
        PERFORM repl_ml.require_member();
        FOREACH s IN ARRAY schema_names LOOP
            IF s IS NULL OR NOT EXISTS (SELECT FROM pg_catalog.pg_namespace n WHERE n.nspname = s) THEN
                RAISE EXCEPTION 'schema "%" does not exist', s USING ERRCODE = 'invalid_schema_name',
                    HINT = 'Run SELECT nspname FROM pg_catalog.pg_namespace.';
            END IF;
        END LOOP;
        -- tables may refer to each other, so the other members are asked about all of them at once
        candidates := ARRAY(SELECT c.oid FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
                             WHERE n.nspname = ANY (schema_names) AND c.relkind IN ('r', 'p') AND NOT c.relispartition
                               AND NOT EXISTS (SELECT FROM repl_ml.enrol_obstacle(c.oid))
                               AND NOT EXISTS (SELECT FROM pg_catalog.pg_publication_rel r JOIN pg_catalog.pg_publication p ON p.oid = r.prpubid WHERE p.pubname = 'repl_ml' AND r.prrelid = c.oid));
        SELECT coalesce(pg_catalog.jsonb_object_agg(o.relation::text, pg_catalog.jsonb_build_object('message', o.message, 'hint', o.hint)), '{}') INTO refused
          FROM repl_ml.peer_obstacles(candidates) o;
        FOR relation IN SELECT c.oid FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
                  WHERE n.nspname = ANY (schema_names) AND c.relkind IN ('r', 'p') AND NOT c.relispartition
                    AND NOT EXISTS (SELECT FROM pg_catalog.pg_depend d WHERE d.classid = 'pg_catalog.pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e')
                  ORDER BY n.nspname, c.relname LOOP
            SELECT * INTO obstacle FROM repl_ml.enrol_obstacle(relation);
            IF FOUND THEN
                status := 'skipped'; detail := obstacle.message; hint := obstacle.hint;
            ELSIF EXISTS (SELECT FROM pg_catalog.pg_publication_rel r JOIN pg_catalog.pg_publication p ON p.oid = r.prpubid
                           WHERE p.pubname = 'repl_ml' AND r.prrelid = relation) THEN
                status := 'already replicated'; detail := NULL; hint := NULL;
            ELSIF refused ? relation::text THEN
                status := 'skipped'; detail := refused -> relation::text ->> 'message'; hint := refused -> relation::text ->> 'hint';
            ELSE
                -- one that cannot be added keeps none of the others from it
                BEGIN
                    PERFORM repl_ml.list_table(relation);
                    status := 'added'; detail := NULL; hint := NULL;
                    SELECT pg_catalog.string_agg(o.message, '; '), pg_catalog.string_agg(o.hint, ' ') INTO detail, hint FROM repl_ml.own_numbers(ARRAY[add_all_tables.relation]) o;
                EXCEPTION WHEN OTHERS THEN
                    status := 'skipped'; detail := sqlerrm;
                    GET STACKED DIAGNOSTICS hint = PG_EXCEPTION_HINT;
                    hint := nullif(hint, '');
                END;
            END IF;
            RETURN NEXT;
        END LOOP;
    END
    $$;
COMMENT ON FUNCTION repl_ml.add_all_tables(name[]) IS
    'replicates all tables of the schemas; says for each one whether it was added, with sequences that are not the group''s with it, or why it cannot be and what to do. Superusers only';

CREATE FUNCTION repl_ml.remove_table(relation regclass) RETURNS void
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
    AS $$
    BEGIN
        PERFORM repl_ml.refuse_nulls('relation', pg_catalog.num_nulls(relation));
        PERFORM repl_ml.require_member();
        UPDATE repl_ml.replicated_table t SET state = 'removed', write_consistency = 'one', class = 'eventual', pending_class = NULL
          FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
         WHERE c.oid = relation AND t.schema_name = n.nspname AND t.table_name = c.relname AND t.state = 'enrolled';
        IF NOT FOUND THEN
            RAISE EXCEPTION 'table % is not replicated', relation USING ERRCODE = 'undefined_object',
                HINT = 'Run SELECT * FROM repl_ml.tables.';
        END IF;
        -- whoever adds it again begins with no rules
        INSERT INTO repl_ml.conflict_policy (schema_name, table_name, column_name, rule)
        SELECT DISTINCT p.schema_name, p.table_name, p.column_name, CASE p.column_name WHEN '' THEN 'last_write' ELSE 'none' END
          FROM repl_ml.conflict_policy p JOIN pg_catalog.pg_namespace n ON n.nspname = p.schema_name
          JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid AND c.relname = p.table_name WHERE c.oid = relation;
        PERFORM repl_ml.disenrol(relation);
        PERFORM repl_ml.wake_workers();
    END
    $$;
COMMENT ON FUNCTION repl_ml.remove_table(regclass) IS
    'stops replicating a table on all members; the table and its rows stay, the column __repl_clock goes. Superusers only. Errors: 42704 not replicated';

CREATE FUNCTION repl_ml.keep_local(relation regclass) RETURNS void
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
    AS $$
    BEGIN
        PERFORM repl_ml.refuse_nulls('relation', pg_catalog.num_nulls(relation));
        IF NOT EXISTS (SELECT FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
                        WHERE c.oid = relation AND c.relkind IN ('r', 'p') AND NOT c.relispartition AND c.relpersistence <> 't'
                          AND n.nspname NOT IN ('repl_ml', 'pg_catalog', 'information_schema')) THEN
            RAISE EXCEPTION '% is not a table that could be replicated', relation USING ERRCODE = 'wrong_object_type',
                HINT = 'Run SELECT relation FROM repl_ml.unreplicated_tables.';
        END IF;
        INSERT INTO repl_ml.replicated_table AS t (schema_name, table_name, state, enrolled_by)
        SELECT n.nspname, c.relname, 'removed', s.node_id FROM repl_ml.require_member() s, pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = relation
        ON CONFLICT ON CONSTRAINT replicated_table_pkey DO UPDATE SET state = 'removed' WHERE t.state IN ('dropped', 'renamed');
        IF EXISTS (SELECT FROM repl_ml.replicated_table t JOIN pg_catalog.pg_namespace n ON n.nspname = t.schema_name
                     JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid AND c.relname = t.table_name WHERE c.oid = relation AND t.state = 'enrolled') THEN
            RAISE EXCEPTION 'table % is replicated', relation USING ERRCODE = 'object_not_in_prerequisite_state',
                HINT = pg_catalog.format('Run SELECT repl_ml.remove_table(%L).', relation);
        END IF;
    END
    $$;
COMMENT ON FUNCTION repl_ml.keep_local(regclass) IS
    'says that a table of that name, on whichever node, is not to be replicated: health does not mention it any more. repl_ml.add_table takes it all the same. Superusers only. Errors: 55000 not a member, or the table is replicated';

CREATE FUNCTION repl_ml.set_table_consistency(relation regclass, level text) RETURNS void
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
    AS $$
    DECLARE
        t record;
    BEGIN
        PERFORM repl_ml.refuse_nulls('relation, level', pg_catalog.num_nulls(relation, level));
        PERFORM repl_ml.require_member();
        SELECT * INTO t FROM repl_ml.require_replicated(relation);
        IF level <> ALL ('{one, quorum, all}') THEN
            RAISE EXCEPTION 'write consistency "%" does not exist', level USING ERRCODE = 'invalid_parameter_value',
                HINT = 'Use one, quorum or all.';
        END IF;
        UPDATE repl_ml.replicated_table r SET write_consistency = level
         WHERE r.schema_name = t.schema_name AND r.table_name = t.table_name AND r.write_consistency <> level;
    END
    $$;
COMMENT ON FUNCTION repl_ml.set_table_consistency(regclass, text) IS
    'the least write consistency of transactions that write a table, on all nodes: one, quorum or all; the setting repl_ml.write_consistency may ask for more. Superusers only. Errors: 55000 not a member or not replicated, 22023 no such level';

