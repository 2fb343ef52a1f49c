-- Who may do what. The lists are made from the catalogs, so that no new object can be forgotten.

SELECT format('host=%s port=%s user=%s dbname=%s', split_part(current_setting('unix_socket_directories'), ', ', 1),
              current_setting('port'), current_user, current_database()) AS dsn \gset
SELECT repl_ml.create_group('g', 'n1', :'dsn');
CREATE ROLE regress_repl_ml_plain;
CREATE ROLE regress_repl_ml_monitor IN ROLE pg_monitor;
CREATE ROLE regress_repl_ml_admin IN ROLE repl_ml_admin;
CREATE ROLE regress_repl_ml_peer IN ROLE repl_ml_replication;

-- the roles themselves: none may log in or do more than its name says
SELECT rolname, rolsuper, rolinherit, rolcreaterole, rolcreatedb, rolcanlogin, rolreplication, rolbypassrls
  FROM pg_roles WHERE rolname IN ('repl_ml_admin', 'repl_ml_replication') ORDER BY 1;
SELECT m.roleid::regrole AS role, m.member::regrole, m.admin_option FROM pg_auth_members m
 WHERE m.member IN ('repl_ml_admin'::regrole, 'repl_ml_replication'::regrole) ORDER BY 1, 2;
SELECT r AS may_create_in_schema FROM unnest('{regress_repl_ml_plain, regress_repl_ml_monitor, regress_repl_ml_admin, regress_repl_ml_peer}'::regrole[]) r
 WHERE has_schema_privilege(r, 'repl_ml', 'CREATE');

-- functions: a function of clocks is for everybody, as are the default of the clock column and the
-- condition of the insert trigger; the rest is for those listed
SELECT p.oid::regprocedure::text COLLATE "C" AS everybody_else_may_call FROM pg_proc p
 WHERE p.pronamespace = 'repl_ml'::regnamespace AND has_function_privilege('regress_repl_ml_plain', p.oid, 'EXECUTE')
   AND NOT (p.proname LIKE 'vclock%' OR p.proargtypes[0] = 'repl_ml.vclock'::regtype AND p.provolatile = 'i') ORDER BY 1;
SELECT p.oid::regprocedure::text COLLATE "C" AS function,
       has_function_privilege('regress_repl_ml_monitor', p.oid, 'EXECUTE') AS monitor,
       has_function_privilege('regress_repl_ml_admin', p.oid, 'EXECUTE') AS admin,
       has_function_privilege('regress_repl_ml_peer', p.oid, 'EXECUTE') AS peer
  FROM pg_proc p
 WHERE p.pronamespace = 'repl_ml'::regnamespace AND NOT has_function_privilege('regress_repl_ml_plain', p.oid, 'EXECUTE')
   AND (has_function_privilege('regress_repl_ml_monitor', p.oid, 'EXECUTE') OR has_function_privilege('regress_repl_ml_admin', p.oid, 'EXECUTE')
        OR has_function_privilege('regress_repl_ml_peer', p.oid, 'EXECUTE'))
 ORDER BY 1;

-- tables, views, sequences: any privilege on any of their columns
CREATE FUNCTION privileges(who regrole, relation oid) RETURNS text LANGUAGE sql AS $$
    SELECT string_agg(p, ' ') FROM unnest('{SELECT,INSERT,UPDATE,DELETE,TRUNCATE,REFERENCES,TRIGGER}'::text[]) p
     WHERE has_table_privilege(who, relation, p)
        OR p IN ('SELECT', 'INSERT', 'UPDATE', 'REFERENCES') AND has_any_column_privilege(who, relation, p)
$$;
SELECT c.oid::regclass AS a_plain_role_may FROM pg_class c
 WHERE c.relnamespace = 'repl_ml'::regnamespace AND c.relkind IN ('r', 'p', 'v', 'm', 'f', 'S')
   AND (c.relkind = 'S' AND has_sequence_privilege('regress_repl_ml_plain', c.oid, 'USAGE, SELECT, UPDATE')
        OR c.relkind <> 'S' AND privileges('regress_repl_ml_plain', c.oid) IS NOT NULL) ORDER BY 1;
SELECT c.relname, privileges('regress_repl_ml_monitor', c.oid) AS monitor, privileges('regress_repl_ml_admin', c.oid) AS admin,
       privileges('regress_repl_ml_peer', c.oid) AS peer
  FROM pg_class c WHERE c.relnamespace = 'repl_ml'::regnamespace AND c.relkind IN ('r', 'p', 'v', 'm', 'f')
 ORDER BY c.relname COLLATE "C";

-- no view shows a connection string
SELECT c.oid::regclass, a.attname FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid
 WHERE c.relnamespace = 'repl_ml'::regnamespace AND c.relkind = 'v' AND a.attname ~ 'dsn|conn' AND a.attname !~ '^(re|dis)?connect';

-- what is granted also works: each one reads every view and calls what he may
CREATE FUNCTION try(who regrole, statement text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    message text;
BEGIN
    EXECUTE format('SET LOCAL ROLE %s', who);
    BEGIN
        EXECUTE statement;
        message := 'works';
    EXCEPTION WHEN OTHERS THEN
        message := sqlstate || ': ' || sqlerrm;
    END;
    RESET ROLE;
    RETURN message;
END
$$;
SELECT c.relname, try('regress_repl_ml_plain', format('TABLE %s', c.oid::regclass)) AS plain,
       try('regress_repl_ml_monitor', format('TABLE %s', c.oid::regclass)) AS monitor,
       try('regress_repl_ml_admin', format('TABLE %s', c.oid::regclass)) AS admin
  FROM pg_class c WHERE c.relnamespace = 'repl_ml'::regnamespace AND c.relkind = 'v' ORDER BY c.relname COLLATE "C";
SELECT statement, try('regress_repl_ml_monitor', statement) AS monitor, try('regress_repl_ml_admin', statement) AS admin
  FROM unnest(ARRAY[
    'SELECT repl_ml.current_vector()',
    'SELECT * FROM repl_ml.unacknowledged()',
    'SELECT repl_ml.transaction_facts(gen_random_uuid(), 1, ''1'')',
    'SELECT repl_ml.ask_members(''{}'', ''SELECT 1'')',
    'SELECT * FROM repl_ml.check_setup()',
    'SELECT repl_ml.pause_apply(''nobody'')',
    'SELECT repl_ml.resume_apply(''nobody'')',
    'SELECT repl_ml.retry_parked(0)',
    'SELECT repl_ml.discard_parked(0)',
    'SELECT repl_ml.add_table(''pg_class'')',
    'SELECT repl_ml.drop_node(''nobody'')',
    'SELECT repl_ml.probe(''host=/nonexistent'')']) statement;
SELECT statement, try('regress_repl_ml_plain', statement) AS plain
  FROM unnest(ARRAY[
    'SELECT repl_ml.transaction_status(repl_ml.transaction_token())',
    'SELECT repl_ml.transaction_status(''nonsense'')',
    'SELECT * FROM repl_ml.unacknowledged()',
    'TABLE repl_ml.transaction_record']) statement;
SELECT statement, try('regress_repl_ml_peer', statement) AS peer
  FROM unnest(ARRAY[
    'SELECT * FROM repl_ml.local_info(2)',
    'SELECT repl_ml.applied_lsn(2)',
    'SELECT repl_ml.transaction_facts(gen_random_uuid(), 1, ''1'')',
    'TABLE repl_ml.transaction_record',
    'TABLE repl_ml.member',
    'TABLE repl_ml.replicated_table',
    'TABLE repl_ml.tombstone',
    'TABLE repl_ml.local_node',
    'SELECT repl_ml.register_node(gen_random_uuid(), 2, ''n2'', '''', '''', 0, '''', 1, now())',
    'SELECT repl_ml.forget_node(gen_random_uuid(), 2)',
    'INSERT INTO repl_ml.heartbeat VALUES (2, now(), 1, ''{}'')']) statement;

-- whoever may write an enrolled table writes it as before, and nothing else
CREATE TABLE enrolled (id int PRIMARY KEY, v text);
SELECT repl_ml.add_table('enrolled');
GRANT SELECT, INSERT, UPDATE, DELETE, TRUNCATE ON enrolled TO regress_repl_ml_plain;
SET ROLE regress_repl_ml_plain;
INSERT INTO enrolled VALUES (1, 'a'), (2, 'b');
COPY enrolled FROM stdin;
3	c
4	d
\.
UPDATE enrolled SET v = v || v;
UPDATE enrolled SET id = 10 WHERE id = 1;
DELETE FROM enrolled WHERE id = 2;
INSERT INTO enrolled VALUES (2, 'again') ON CONFLICT (id) DO UPDATE SET v = excluded.v;
SELECT id, v FROM enrolled ORDER BY id;
TRUNCATE enrolled;
CREATE TABLE pg_temp.mine (id int);
CREATE TRIGGER mine BEFORE UPDATE ON pg_temp.mine FOR EACH ROW EXECUTE FUNCTION repl_ml.stamp_update();
CREATE FUNCTION pg_temp.f() RETURNS int LANGUAGE c AS '$libdir/repl_ml', 'repl_ml_stop_workers';
SET repl_ml.guard_off = on;
SHOW repl_ml.guard_off;
ALTER TABLE enrolled DROP COLUMN __repl_clock;
RESET ROLE;
SELECT key FROM repl_ml.tombstone ORDER BY 1;
SELECT * FROM (SELECT r::regrole AS role FROM unnest('{regress_repl_ml_plain}'::regrole[]) r) x WHERE has_table_privilege(role, 'repl_ml.tombstone', 'INSERT');

-- conflicts are for pg_monitor and for the owner of the table, as long as that is replicated
INSERT INTO repl_ml.conflict_history (conflict_id, schema_name, table_name, key, conflict_type, resolution, winner_node, loser_node,
                                      winner_clock, loser_clock, result_clock, origin_node, origin_xid, origin_lsn)
VALUES (gen_random_uuid(), 'public', 'enrolled', '{1}', 'insert_exists', 'last_write', 1, 2, '{1:2}', '{2:1}', '{1:2,2:1}', 2, '7', '0/0');
CREATE TABLE sees (r regrole, kind text, n bigint);
GRANT INSERT ON sees TO PUBLIC;
SET ROLE regress_repl_ml_plain;
INSERT INTO sees SELECT current_user::regrole, 'any', count(*) FROM repl_ml.conflicts;
SET ROLE regress_repl_ml_monitor;
INSERT INTO sees SELECT current_user::regrole, 'any', count(*) FROM repl_ml.conflicts;
SET ROLE regress_repl_ml_peer;
INSERT INTO sees SELECT current_user::regrole, 'any', count(*) FROM repl_ml.conflicts;
RESET ROLE;
ALTER TABLE enrolled OWNER TO regress_repl_ml_plain;
SET ROLE regress_repl_ml_plain;
INSERT INTO sees SELECT current_user::regrole, 'owner', count(*) FROM repl_ml.conflicts;
RESET ROLE;
UPDATE repl_ml.replicated_table SET state = 'removed';
SET ROLE regress_repl_ml_plain;
INSERT INTO sees SELECT current_user::regrole, 'owner of a table not replicated', count(*) FROM repl_ml.conflicts;
RESET ROLE;
UPDATE repl_ml.replicated_table SET state = 'enrolled';
ALTER TABLE enrolled OWNER TO CURRENT_USER;
SELECT * FROM sees;
DROP TABLE sees;

-- a table's owner without more rights cannot enrol it, nor read through it
SELECT repl_ml.remove_table('enrolled');
ALTER TABLE enrolled OWNER TO regress_repl_ml_plain;
SELECT try('regress_repl_ml_plain', 'SELECT repl_ml.add_table(''enrolled'')');

SELECT repl_ml.leave_group();
DROP TABLE enrolled, pg_temp.mine;
DROP FUNCTION privileges, try;
DROP ROLE regress_repl_ml_plain, regress_repl_ml_monitor, regress_repl_ml_admin, regress_repl_ml_peer;
