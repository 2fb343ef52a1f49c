-- What CREATE EXTENSION installs keeps the conventions, and what add_table does to a table.

-- every object has a comment
SELECT pg_describe_object(d.classid, d.objid, d.objsubid) AS no_comment
  FROM pg_depend d
 WHERE d.refclassid = 'pg_extension'::regclass AND d.deptype = 'e'
   AND d.refobjid = (SELECT oid FROM pg_extension WHERE extname = 'repl_ml')
   AND obj_description(d.objid, (SELECT relname FROM pg_class WHERE oid = d.classid)) IS NULL
   AND NOT EXISTS (SELECT FROM pg_type t WHERE d.classid = 'pg_type'::regclass AND t.oid = d.objid AND t.typelem <> 0)
   AND NOT EXISTS (SELECT FROM pg_type t WHERE d.classid = 'pg_type'::regclass AND t.oid = d.objid AND t.typrelid <> 0)
   AND NOT EXISTS (SELECT FROM pg_class c WHERE d.classid = 'pg_class'::regclass AND c.oid = d.objid AND c.relkind IN ('S', 'i'))
 ORDER BY 1;
SELECT obj_description('repl_ml'::regnamespace, 'pg_namespace') IS NOT NULL AS schema_has_comment;

-- everything is in the schema, which cannot be moved; dumps have the lists of tables and rules
SELECT extrelocatable, extnamespace::regnamespace, extconfig::regclass[] FROM pg_extension WHERE extname = 'repl_ml';
SELECT trusted, superuser FROM pg_available_extension_versions WHERE name = 'repl_ml' AND installed;

-- functions that lend their owner's rights, or are not written in C, have a fixed search_path
SELECT p.oid::regprocedure AS no_search_path
  FROM pg_proc p JOIN pg_language l ON l.oid = p.prolang
 WHERE p.pronamespace = 'repl_ml'::regnamespace AND (p.prosecdef OR l.lanname <> 'c') AND p.prosqlbody IS NULL
   AND NOT coalesce(p.proconfig, '{}') @> '{"search_path=pg_catalog, pg_temp"}'
   AND p.prokind <> 'a'
 ORDER BY 1;

-- only a receive function takes "internal"
SELECT p.oid::regprocedure AS takes_internal FROM pg_proc p
 WHERE p.pronamespace = 'repl_ml'::regnamespace AND 'internal'::regtype = ANY (p.proargtypes) ORDER BY 1;

-- the clock's functions are immutable and parallel safe
SELECT p.oid::regprocedure AS not_pure FROM pg_proc p
 WHERE p.pronamespace = 'repl_ml'::regnamespace
   AND ('repl_ml.vclock'::regtype = ANY (p.proargtypes) OR p.proname LIKE 'vclock%')
   AND p.proname NOT IN ('insert_pending', 'moved_pending', 'wait_for_vector', 'verify_keys', 'verify_sums', 'verify_changes')
   AND (p.provolatile <> 'i' OR p.proparallel <> 's')
 ORDER BY 1;

-- no other function claims to be immutable, and what is parallel safe only reads what does not change
SELECT p.oid::regprocedure AS pure FROM pg_proc p
 WHERE p.pronamespace = 'repl_ml'::regnamespace AND (p.provolatile = 'i' OR p.proparallel = 's')
   AND NOT ('repl_ml.vclock'::regtype = ANY (p.proargtypes) OR p.proname LIKE 'vclock%')
 ORDER BY 1;

-- functions that lend their owner's rights
SELECT p.oid::regprocedure AS security_definer FROM pg_proc p
 WHERE p.pronamespace = 'repl_ml'::regnamespace AND p.prosecdef ORDER BY p.proname COLLATE "C";

-- the view over replication begins as the server's own does
SELECT o.attnum, o.attname, r.attname AS ours
  FROM pg_attribute o LEFT JOIN pg_attribute r ON r.attrelid = 'repl_ml.stat_replication'::regclass AND r.attnum = o.attnum
 WHERE o.attrelid = 'pg_stat_replication'::regclass AND o.attnum > 0 AND o.attname IS DISTINCT FROM r.attname;

-- settings
SELECT name, boot_val AS setting, unit, context, vartype, min_val, max_val FROM pg_settings WHERE name LIKE 'repl\_ml.%' ORDER BY name COLLATE "C";
SET repl_ml.no_such_setting = 1;

-- nothing is wrong with this server
SELECT check_name, status, hint FROM repl_ml.check_setup() WHERE check_name <> 'max_active_replication_origins';
SELECT check_name, status FROM repl_ml.check_setup(format('host=%s port=%s dbname=%s',
    split_part(current_setting('unix_socket_directories'), ', ', 1), current_setting('port'), current_database())) WHERE check_name = 'peer';
SELECT check_name, status, detail <> '' AS detail, hint FROM repl_ml.check_setup('host=/nonexistent') WHERE check_name = 'peer';

-- a group of one
SELECT format('host=%s port=%s user=%s dbname=%s', split_part(current_setting('unix_socket_directories'), ', ', 1),
              current_setting('port'), current_user, current_database()) AS dsn \gset
SELECT repl_ml.create_group('g', 'n1', :'dsn');
SELECT node_id, node_name, state, is_local FROM repl_ml.nodes;
SELECT pubname, puballtables, pubinsert, pubupdate, pubdelete, pubtruncate, pubviaroot, obj_description(oid, 'pg_publication') FROM pg_publication;
SELECT schemaname, tablename FROM pg_publication_tables ORDER BY 1, 2;

-- an enrolled table, an enrolled partitioned table
CREATE SCHEMA catalogs;
CREATE TABLE catalogs.feature (entity_key bytea, feature_name text, value bytea, event_ts timestamptz, PRIMARY KEY (entity_key, feature_name));
INSERT INTO catalogs.feature VALUES ('\x01', 'a', '\x02', '2026-01-01 00:00:00+00');
SELECT repl_ml.add_table('catalogs.feature');
\d catalogs.feature
CREATE TABLE catalogs.metric (run int, step int, value float8, PRIMARY KEY (run, step)) PARTITION BY LIST (run);
CREATE TABLE catalogs.metric_1 PARTITION OF catalogs.metric FOR VALUES IN (1);
SELECT repl_ml.add_table('catalogs.metric');
CREATE TABLE catalogs.metric_2 PARTITION OF catalogs.metric FOR VALUES IN (2);
\d catalogs.metric_1
\d catalogs.metric_2
SELECT schema_name, table_name, relation, resolver, enrolled_by, state, pending_copies FROM repl_ml.tables ORDER BY 1, 2;

-- again is nothing new
SELECT repl_ml.add_table('catalogs.feature');
SELECT * FROM repl_ml.add_all_tables('{catalogs}');
SELECT count(*) FROM repl_ml.tables;

-- removed, they are what they were
SELECT repl_ml.remove_table('catalogs.feature');
SELECT repl_ml.remove_table('catalogs.metric');
\d catalogs.feature
\d catalogs.metric_2
SELECT * FROM catalogs.feature;
SELECT * FROM repl_ml.tables;
SELECT has_table_privilege('repl_ml_replication', 'catalogs.feature', 'SELECT') AS still_granted;

-- and left, the database is an ordinary one
SELECT repl_ml.add_table('catalogs.feature');
SELECT repl_ml.leave_group();
\d catalogs.feature
SELECT count(*) AS publications FROM pg_publication;
SELECT count(*) AS members FROM repl_ml.member;
SET client_min_messages = warning;
DROP SCHEMA catalogs CASCADE;

-- a publication FOR ALL TABLES refuses to change rows without an identity: every table here has one
SELECT c.oid::regclass AS no_identity FROM pg_class c
 WHERE c.relnamespace = 'repl_ml'::regnamespace AND c.relkind = 'r' AND c.relreplident <> 'f'
   AND NOT EXISTS (SELECT FROM pg_index x WHERE x.indrelid = c.oid AND x.indisprimary);
