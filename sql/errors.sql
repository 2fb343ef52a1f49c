-- Bad arguments and wrong states: each function says so with a SQLSTATE and what to do, and leaves nothing half done.

SELECT format('host=%s port=%s user=%s dbname=%s', split_part(current_setting('unix_socket_directories'), ', ', 1),
              current_setting('port'), current_user, current_database()) AS dsn,
       format('host=%s port=%s user=%s dbname=postgres', split_part(current_setting('unix_socket_directories'), ', ', 1),
              current_setting('port'), current_user) AS other_dsn \gset
CREATE SCHEMA errors;
CREATE TABLE errors.t (id int PRIMARY KEY);
CREATE FUNCTION errors.of(statement text, OUT state text, OUT message text, OUT hint text) LANGUAGE plpgsql AS $$
BEGIN
    EXECUTE statement;
    state := 'none';
EXCEPTION WHEN OTHERS THEN
    GET STACKED DIAGNOSTICS state = RETURNED_SQLSTATE, message = MESSAGE_TEXT, hint = PG_EXCEPTION_HINT;
END
$$;
CREATE FUNCTION errors.leftovers() RETURNS text LANGUAGE sql AS $$
SELECT format('%s identity, %s members, %s tables, %s publications, %s slots, %s origins, %s clock columns',
       (SELECT count(*) FROM repl_ml.local_node), (SELECT count(*) FROM repl_ml.member), (SELECT count(*) FROM repl_ml.replicated_table),
       (SELECT count(*) FROM pg_publication), (SELECT count(*) FROM pg_replication_slots), (SELECT count(*) FROM pg_replication_origin),
       (SELECT count(*) FROM pg_attribute WHERE attname = '__repl_clock' AND NOT attisdropped
           AND attrelid NOT IN (SELECT oid FROM pg_class WHERE relnamespace = 'repl_ml'::regnamespace)))
$$;
SELECT errors.leftovers();

-- every function that changes something refuses NULL, whichever argument it is
SELECT p.oid::regprocedure::text COLLATE "C" AS function, a.n AS argument, e.state, e.message, e.hint
  FROM pg_proc p, generate_series(1, p.pronargs) a(n),
       LATERAL (SELECT string_agg(CASE WHEN i = a.n THEN 'NULL::' || p.proargtypes[i - 1]::regtype
                                       WHEN p.proargtypes[i - 1] = 'interval'::regtype THEN '''1 s'''
                                       WHEN p.proargtypes[i - 1] = 'boolean'::regtype THEN 'false'
                                       WHEN p.proargtypes[i - 1] = 'bigint'::regtype THEN '1'
                                       WHEN p.proargtypes[i - 1] = 'regclass'::regtype THEN '''errors.t'''
                                       ELSE '''x''' END, ', ' ORDER BY i) AS list
                  FROM generate_series(1, p.pronargs) i) l,
       errors.of(format('SELECT repl_ml.%I(%s)', p.proname, l.list)) e
 WHERE p.pronamespace = 'repl_ml'::regnamespace
   AND p.proname IN ('create_group', 'join_group', 'leave_group', 'drop_node', 'wait_for_node', 'add_table', 'add_all_tables', 'remove_table',
                     'pause_apply', 'resume_apply', 'retry_parked', 'discard_parked')
 ORDER BY 1, 2;
SELECT errors.leftovers();

-- before there is a group
SELECT statement, e.* FROM unnest(ARRAY[
    'SELECT repl_ml.add_table(''errors.t'')',
    'SELECT repl_ml.add_all_tables()',
    'SELECT repl_ml.remove_table(''errors.t'')',
    'SELECT repl_ml.drop_node(''n2'')',
    'SELECT repl_ml.drop_node(''n2'', true)',
    'SELECT repl_ml.leave_group()',
    'SELECT repl_ml.leave_group(true)',
    'SELECT repl_ml.wait_for_node(''n1'', ''1 s'')',
    'SELECT repl_ml.pause_apply(''n2'')',
    'SELECT repl_ml.resume_apply(''n2'')',
    'SELECT repl_ml.retry_parked(1)',
    'SELECT repl_ml.discard_parked(1)']) statement, errors.of(statement) e;
SELECT repl_ml.tick(), (SELECT count(*) FROM repl_ml.nodes) AS nodes, (SELECT count(*) FROM repl_ml.stat_replication) AS replication;

-- creating a group
SELECT what, e.* FROM (VALUES
    ('empty group name',       format('SELECT repl_ml.create_group('''', ''n1'', %L)', :'dsn')),
    ('newline in group name',  format('SELECT repl_ml.create_group(E''a\nb'', ''n1'', %L)', :'dsn')),
    ('empty node name',        format('SELECT repl_ml.create_group(''g'', '''', %L)', :'dsn')),
    ('tab in node name',       format('SELECT repl_ml.create_group(''g'', E''a\tb'', %L)', :'dsn')),
    ('no such directory',      'SELECT repl_ml.create_group(''g'', ''n1'', ''host=/nonexistent'')'),
    ('not a dsn',              'SELECT repl_ml.create_group(''g'', ''n1'', ''this is no connection string'')'),
    ('unknown option',         'SELECT repl_ml.create_group(''g'', ''n1'', ''host=/tmp nonsense=1'')'),
    ('unreachable',            'SELECT repl_ml.create_group(''g'', ''n1'', ''host=127.0.0.1 port=1 connect_timeout=2'')'),
    ('unreachable, password',  'SELECT repl_ml.create_group(''g'', ''n1'', ''host=127.0.0.1 port=1 password=canary connect_timeout=2'')'),
    ('no such database',       format('SELECT repl_ml.create_group(''g'', ''n1'', %L)', :'dsn' || ' dbname=nonexistent')),
    ('no such role',           format('SELECT repl_ml.create_group(''g'', ''n1'', %L)', :'dsn' || ' user=nonexistent')),
    ('another database',       format('SELECT repl_ml.create_group(''g'', ''n1'', %L)', :'other_dsn'))) s (what, statement), errors.of(statement) e;
SELECT errors.leftovers();

-- joining one
SELECT what, e.* FROM (VALUES
    ('empty node name',         format('SELECT repl_ml.join_group('''', %L, %L)', :'dsn', :'other_dsn')),
    ('other dsn as own',        format('SELECT repl_ml.join_group(''n2'', %L, %L)', :'other_dsn', :'dsn')),
    ('negative timeout',        format('SELECT repl_ml.join_group(''n2'', %L, %L, timeout => ''-1 s'')', :'dsn', :'other_dsn')),
    ('no timeout',              format('SELECT repl_ml.join_group(''n2'', %L, %L, timeout => ''0'')', :'dsn', :'other_dsn')),
    ('unreachable member',      format('SELECT repl_ml.join_group(''n2'', %L, ''host=127.0.0.1 port=1 connect_timeout=2'')', :'dsn')),
    ('no extension there',      format('SELECT repl_ml.join_group(''n2'', %L, %L)', :'dsn', :'other_dsn')),
    ('no group there',          format('SELECT repl_ml.join_group(''n2'', %L, %L)', :'dsn', :'dsn')),
    ('a dsn that is too long',  format('SELECT repl_ml.join_group(''n2'', %L, %L)', :'dsn', :'other_dsn' || repeat(' ', 2000)))) s (what, statement), errors.of(statement) e;
SELECT errors.leftovers();

-- a transaction that creates a group and fails leaves none
BEGIN;
SELECT repl_ml.create_group('g', 'n1', :'dsn');
SELECT repl_ml.add_table('errors.t');
ROLLBACK;
SELECT errors.leftovers();

-- in a group
SELECT repl_ml.create_group('g', 'n1', :'dsn');
SELECT repl_ml.invite_node('n2');
SELECT replace(statement, :'dsn', 'DSN') AS statement, e.* FROM unnest(ARRAY[
    format('SELECT repl_ml.create_group(''h'', ''n1'', %L)', :'dsn'),
    format('SELECT repl_ml.join_group(''n1'', %L, %L)', :'dsn', :'dsn'),
    'SELECT repl_ml.add_table(''errors.nonexistent'')',
    'SELECT repl_ml.add_table(1::regclass)',
    'SELECT repl_ml.remove_table(''errors.t'')',
    'SELECT repl_ml.remove_table(1::regclass)',
    'SELECT repl_ml.add_all_tables(''{nonexistent}'')',
    'SELECT repl_ml.add_all_tables(''{errors,NULL}'')',
    'SELECT repl_ml.add_all_tables(''{}'')',
    'SELECT repl_ml.drop_node(''n1'')',
    'SELECT repl_ml.drop_node(''n2'')',
    'SELECT repl_ml.drop_node('''')',
    'SELECT repl_ml.wait_for_node(''n2'')',
    'SELECT repl_ml.wait_for_node(''n1'', ''-1 s'')',
    'SELECT repl_ml.pause_apply(''n1'')',
    'SELECT repl_ml.pause_apply(''n2'')',
    'SELECT repl_ml.resume_apply(''n2'')',
    'SELECT repl_ml.retry_parked(-1)',
    'SELECT repl_ml.discard_parked(9223372036854775807)',
    'SELECT repl_ml.register_node(gen_random_uuid(), 2, ''n2'', ''host=x'', ''x'', 1, ''x'', 1, now())',
    'SELECT repl_ml.register_node(group_id, 0, ''n2'', ''host=x'', ''x'', 1, ''x'', 1, now()) FROM repl_ml.local_node',
    'SELECT repl_ml.register_node(group_id, 70000, ''n2'', ''host=x'', ''x'', 1, ''x'', 1, now()) FROM repl_ml.local_node',
    'SELECT repl_ml.register_node(group_id, 2, ''n1'', ''host=x'', ''x'', 1, ''x'', 1, now()) FROM repl_ml.local_node',
    'SELECT repl_ml.forget_node(gen_random_uuid(), 1)',
    'SELECT repl_ml.enrol(''repl_ml.member'')',
    'SELECT repl_ml.insert_pending(''{}'', 0)']) statement, errors.of(replace(statement, '%', '%%')) e;
SELECT repl_ml.register_node(group_id, 1, 'n2', 'host=x', 'x', 1, 'x', 1, now()) AS registered FROM repl_ml.local_node;
SELECT node_id, node_name, state FROM repl_ml.nodes;
SELECT errors.leftovers();

-- what the triggers' functions and the default do not take
CREATE TRIGGER wrong BEFORE INSERT ON errors.t FOR EACH ROW EXECUTE FUNCTION repl_ml.stamp_update();
INSERT INTO errors.t VALUES (1);
DROP TRIGGER wrong ON errors.t;
CREATE TRIGGER wrong BEFORE UPDATE ON errors.t FOR EACH ROW EXECUTE FUNCTION repl_ml.stamp_update();
INSERT INTO errors.t VALUES (1);
UPDATE errors.t SET id = 2;
DROP TRIGGER wrong ON errors.t;
CREATE TRIGGER wrong BEFORE UPDATE ON errors.t FOR EACH STATEMENT EXECUTE FUNCTION repl_ml.stamp_truncate();
UPDATE errors.t SET id = 2;
DROP TRIGGER wrong ON errors.t;

-- settings out of bounds
SET repl_ml.max_clock_skew = '1 s';
-- (18 words the message otherwise)
\set VERBOSITY sqlstate
ALTER SYSTEM SET repl_ml.max_clock_skew = '-1 s';
ALTER SYSTEM SET repl_ml.heartbeat_interval = 0;
\set VERBOSITY default
ALTER SYSTEM SET repl_ml.conflict_retention = 'soon';
ALTER SYSTEM SET repl_ml.guard_off = on;

SELECT repl_ml.leave_group();
SELECT errors.leftovers();
SET client_min_messages = warning;
DROP SCHEMA errors CASCADE;
