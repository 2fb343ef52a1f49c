# What is changed of the schema on one node is changed on all, with the rows of its transaction, in one order; who has not got a
# change yet reads no row of the new shape, and rows of the old one meet it by rule.
#
# Seen failing without: await_schema (a row of the new shape is parked), follows_changes in relation.c (nodes differ), what
# change.c does with changes that fail (half of a transaction is there), find_renamed in row/table.c (rows under a former name do not come),
# the trigger follow_renamed (a rule does not follow), the former is_gone of relation.c (a value is lost where one node has dropped its column).
use strict;
use warnings;
use Consistency;
use ReplMl;
use PostgreSQL::Test::Utils;
use Test::More;

my ($n1, $n2, $n3) = my @nodes = new_group(3, q(
CREATE TABLE t (id int PRIMARY KEY, a text, c int, d text);
INSERT INTO t SELECT g, 'old', g, 'x' FROM generate_series(1, 3) g;
CREATE TABLE other (id int PRIMARY KEY);
SELECT repl_ml.add_all_tables()));

sql($_, 'CREATE ROLE app; GRANT CREATE ON SCHEMA public TO app') foreach @nodes;
foreach my $node (@nodes)
{
	sql($node, 'ALTER SYSTEM SET repl_ml.replicate_ddl = on');
	sql($node, q(ALTER SYSTEM SET repl_ml.apply_lock_timeout = '1s'));
	sql($node, 'SELECT pg_reload_conf()');
	poll_until($node, q(SELECT setting = 'on' FROM pg_settings WHERE name = 'repl_ml.replicate_ddl'));
}
sub everywhere
{
	my ($sql, $expected, $name) = @_;
	is(sql($_, $sql), $expected, "$name on " . $_->name) foreach @nodes;
	return;
}
sub nothing_parked { everywhere('SELECT count(*) FROM repl_ml.parked_changes', '0', 'nothing is parked'); return; }

# All of the schema but ourselves, as pg_dump has it.
sub schema_of
{
	my ($node, @options) = @_;
	my ($out, $err) = run_command([ 'pg_dump', '-s', '--no-publications', '-N', 'repl_ml', @options, '-d', dsn($node) ]);
	return join "\n", grep { !/^\\(?:un)?restrict|^SECURITY LABEL FOR repl_ml ON COLUMN \S+\.__repl_clock/ } split /\n/, $out;
}

# ---- a migration in one transaction; n2 does not hear of it, and writes rows of the old shape ----

cut($n2, $n1);
sql($n1, q(
BEGIN;
CREATE TABLE u (id serial PRIMARY KEY, v text);
INSERT INTO u (v) VALUES ('one');
ALTER TABLE t ADD COLUMN b int NOT NULL DEFAULT 7, ADD COLUMN at timestamptz DEFAULT now();
ALTER TABLE t RENAME COLUMN a TO name;
ALTER TABLE t DROP COLUMN d;
ALTER TABLE t ALTER COLUMN c TYPE bigint;
UPDATE t SET b = 8 WHERE id = 1;
COMMIT));
sql($n2, q(INSERT INTO t VALUES (12, 'n2', 12, 'gone')));
sql($n2, q(UPDATE t SET a = 'changed' WHERE id = 2));

# n3 has the new shape; n2 waits with n3's stream until it has it, too
poll_until($n3, q(SELECT name = 'n2' FROM t WHERE id = 12));
sql($n3, q(INSERT INTO t (id, name, b, at) VALUES (13, 'n3', 9, '2020-01-01')));
poll_until($n1, q(SELECT count(*) = 1 FROM t WHERE id = 13));
poll_until($n2, q(SELECT count(*) = 1 FROM repl_ml.stat_apply WHERE node_name = 'n3' AND (received_lsn > applied_lsn OR EXISTS (SELECT FROM repl_ml.parked_changes))));
# after a while n2 would fetch the change
is(sql($n2, q(SELECT (SELECT count(*) FROM pg_attribute WHERE attrelid = 't'::regclass AND attname = 'b') = (SELECT count(*) FROM t WHERE id = 13))), 't', 'a row of a shape that is not here yet waits');
is(sql($n2, 'SELECT count(*) FROM repl_ml.parked_changes'), 0, 'and is not parked');
heal($n2, $n1);
wait_converged(\@nodes, 't', 'u');
everywhere(q(SELECT string_agg(concat_ws(' ', id, name, c, b), ', ' ORDER BY id) FROM t),
	'1 old 1 8, 2 changed 2 7, 3 old 3 7, 12 n2 12 7, 13 n3 9', 'rows of both shapes');
is(sql($n2, q(SELECT count(DISTINCT at) FROM t WHERE id IN (2, 3, 12))), '1', 'a default is computed once');
nothing_parked();

# ---- kinds of statements, as the role that runs them, from wherever ----

my @statements = split /;;\n/, q(
CREATE SCHEMA app AUTHORIZATION app CREATE TABLE made (id int PRIMARY KEY) CREATE VIEW seen AS SELECT id FROM made;;
SET ROLE app; SET search_path = app, public; CREATE TYPE mood AS ENUM ('sad', 'ok'); CREATE TABLE moods (id int PRIMARY KEY, m mood NOT NULL DEFAULT 'ok'); INSERT INTO moods VALUES (1, 'sad');;
SET search_path = app; ALTER TYPE mood ADD VALUE 'happy' AFTER 'ok'; ALTER TYPE mood RENAME VALUE 'sad' TO 'blue';;
CREATE DOMAIN app.positive AS int CHECK (VALUE > 0); ALTER TABLE app.moods ADD COLUMN n app.positive; COMMENT ON COLUMN app.moods.n IS 'a number';;
CREATE FUNCTION app.f(i int) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT i; SELECT i + 1'; ALTER FUNCTION app.f(int) OWNER TO app;;
CREATE INDEX moods_f ON app.moods (app.f(id)); CREATE UNIQUE INDEX ON app.moods (n); ALTER INDEX app.moods_f RENAME TO moods_g;;
CREATE SEQUENCE app.numbers START 5; ALTER SEQUENCE app.numbers INCREMENT 2;;
CREATE FUNCTION app.note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NEW; END $$; CREATE TRIGGER note BEFORE INSERT ON app.moods FOR EACH ROW EXECUTE FUNCTION app.note();;
CREATE VIEW app.w AS SELECT id FROM app.moods; CREATE MATERIALIZED VIEW app.m AS SELECT id FROM app.moods; GRANT SELECT ON app.w TO app; ALTER VIEW app.w RENAME TO v;;
CREATE EXTENSION citext SCHEMA app; ALTER TABLE app.moods ADD COLUMN c app.citext;;
DO $$ BEGIN FOR i IN 1..2 LOOP EXECUTE format('CREATE TABLE app.part_of_%s (id int PRIMARY KEY, v text)', i); END LOOP; CREATE TABLE app.by_do (id int PRIMARY KEY); END $$;;
CREATE TABLE app.children (id int PRIMARY KEY, parent int REFERENCES app.moods ON DELETE CASCADE); ALTER TABLE app.children ADD CHECK (id > 0), ALTER parent SET NOT NULL;;
SET ROLE app; CREATE TABLE app.parts (id int, day date, PRIMARY KEY (id, day)) PARTITION BY RANGE (day); CREATE TABLE app.parts_1 PARTITION OF app.parts FOR VALUES FROM ('2020-01-01') TO ('2021-01-01'); INSERT INTO app.parts VALUES (1, '2020-05-05');;
CREATE TABLE app.attached (LIKE app.parts INCLUDING ALL); ALTER TABLE app.parts ATTACH PARTITION app.attached FOR VALUES FROM ('2021-01-01') TO ('2022-01-01'); CREATE TABLE app.plain (day date NOT NULL, id int NOT NULL); ALTER TABLE app.parts ATTACH PARTITION app.plain FOR VALUES FROM ('2022-01-01') TO ('2023-01-01'); INSERT INTO app.parts VALUES (2, '2021-03-03'), (3, '2022-03-03');;
ALTER TABLE app.parts DETACH PARTITION app.attached; INSERT INTO app.attached VALUES (4, '2021-04-04'); UPDATE app.attached SET id = 5 WHERE id = 2;;
CREATE TABLE app.dumped (id int NOT NULL) PARTITION BY RANGE (id); CREATE TABLE app.dumped_1 (id int NOT NULL); ALTER TABLE ONLY app.dumped ATTACH PARTITION app.dumped_1 DEFAULT; INSERT INTO app.dumped_1 VALUES (1); ALTER TABLE ONLY app.dumped ADD PRIMARY KEY (id); ALTER TABLE ONLY app.dumped_1 ADD PRIMARY KEY (id); ALTER INDEX app.dumped_pkey ATTACH PARTITION app.dumped_1_pkey;;
SET quote_all_identifiers = on; CREATE TABLE app.quoted (id int PRIMARY KEY, v text); INSERT INTO app.quoted VALUES (1, 'x');;
SET repl_ml.new_tables = strong; CREATE TABLE app.strong (id int PRIMARY KEY); INSERT INTO app.strong VALUES (1); CREATE TABLE app.stronger (id int PRIMARY KEY);;
ALTER TABLE app.stronger RENAME TO strongest; INSERT INTO app.strongest VALUES (1);;
SET repl_ml.new_tables = ignore; CREATE TABLE app.ignored (id int PRIMARY KEY); SELECT repl_ml.add_table('app.made', class => 'strong'); SET ROLE app; INSERT INTO app.made VALUES (1);;
ALTER DEFAULT PRIVILEGES IN SCHEMA app GRANT SELECT ON TABLES TO app; CREATE POLICY p ON app.moods USING (true); CREATE STATISTICS app.s ON id, n FROM app.moods;;
CREATE TABLE app.bytea_default (id int PRIMARY KEY, "weird ""name" text DEFAULT E'a\\'b;--', b bytea DEFAULT '\x00ff'); INSERT INTO app.bytea_default (id) VALUES (1);;
CREATE TABLE app.copied AS SELECT g AS id, 'row ' || g AS v FROM generate_series(1, 3) g; ALTER TABLE app.copied ADD PRIMARY KEY (id);;
DROP TABLE app.part_of_1; DROP VIEW app.seen; DROP SEQUENCE app.numbers;;
DROP TABLE app.part_of_2; CREATE TABLE app.part_of_2 (id int PRIMARY KEY, w int); INSERT INTO app.part_of_2 VALUES (1, 1);;
CREATE SCHEMA gone CREATE TABLE g (id int PRIMARY KEY); INSERT INTO gone.g VALUES (1);;
DROP SCHEMA gone CASCADE;;
ALTER TABLE app.children DROP CONSTRAINT children_parent_fkey, ADD CONSTRAINT fk FOREIGN KEY (parent) REFERENCES app.moods;;
ALTER TABLE app.made SET SCHEMA app, DROP COLUMN IF EXISTS x);
pop @statements;
sql($n1, "SET client_min_messages = error; $_") foreach @statements;
my @made = map { "app.$_" } qw(moods part_of_2 by_do children parts attached dumped quoted strong strongest bytea_default copied made);
wait_converged(\@nodes, @made);
is(schema_of($_), schema_of($n1), 'the schema is the same on ' . $_->name) foreach $n2, $n3;
everywhere(q(SELECT count(*) FROM repl_ml.tables WHERE schema_name = 'app'), '13', 'new tables are replicated');
everywhere(q(SELECT string_agg(table_name, ' ' ORDER BY table_name) FROM repl_ml.replicated_table WHERE class = 'strong'), 'made strong strongest', 'as the class that was asked for');
is(sql($n1, q(SELECT count(*) FROM repl_ml.shape_differences)), '0', 'no difference is told');
nothing_parked();
sql($n2, q(INSERT INTO app.moods VALUES (2, 'blue'); INSERT INTO app.part_of_2 VALUES (2, 2)));
wait_converged(\@nodes, qw(app.moods app.part_of_2));

# ---- other names; n2 does not hear of them, and writes under the former one ----

sql($n1, q(CREATE TABLE named (id serial PRIMARY KEY, v text, n int); INSERT INTO named (v, n) SELECT 'old', g FROM generate_series(1, 4) g; SELECT repl_ml.set_column_merge('named', 'n', 'max'); SELECT repl_ml.set_table_consistency('named', 'quorum')));
sql($n3, q(DELETE FROM named WHERE id = 4));
wait_converged(\@nodes, 'named');
cut($n2, $n1);
sql($n1, q(CREATE SCHEMA elsewhere; BEGIN; ALTER TABLE named RENAME TO called; INSERT INTO called (v, n) VALUES ('n1', 6); ALTER TABLE called SET SCHEMA elsewhere; COMMIT));
sql($n1, q(ALTER SCHEMA elsewhere RENAME TO here));
sql($n2, q(UPDATE named SET v = 'n2' WHERE id = 1; DELETE FROM named WHERE id = 2; INSERT INTO named (v, n) VALUES ('n2', 5); SELECT repl_ml.set_resolver('named', 'keep_both')));
poll_until($n3, q(SELECT string_agg(concat_ws(' ', v, n), ', ' ORDER BY n) = 'n2 1, old 3, n2 5, n1 6' FROM here.called));
heal($n2, $n1);
wait_converged(\@nodes, 'here.called');
everywhere(q(SELECT string_agg(concat_ws(' ', v, n), ', ' ORDER BY n) FROM here.called), 'n2 1, old 3, n2 5, n1 6', 'rows under both names');
everywhere(q(SELECT schema_name, resolver, write_consistency FROM repl_ml.tables WHERE table_name IN ('named', 'called')), 'here|keep_both|quorum', 'what is said of a table follows it');
everywhere(q(SELECT schema_name, table_name, rule FROM repl_ml.conflict_policy WHERE rule = 'max'), 'here|called|max', 'so do the rules of its columns');
everywhere(q(SELECT count(*) FROM repl_ml.tombstone WHERE (schema_name, table_name) = ('here', 'called')), '2', 'and its deletions');
sql($n2, q(CREATE TABLE named (id int PRIMARY KEY); INSERT INTO named VALUES (7); INSERT INTO here.called (v, n) VALUES ('on', 8)));
wait_converged(\@nodes, 'named', 'here.called');
nothing_parked();

# ---- a column that only one node has dropped is not gone for the others ----

sql($n1, q(CREATE TABLE partly (id int PRIMARY KEY, v text, w text)));
wait_converged(\@nodes, 'partly');
sql($n2, q(SELECT repl_ml.run_locally('ALTER TABLE partly DROP COLUMN v')));
sql($n1, q(INSERT INTO partly VALUES (1, 'kept', 'x')));
poll_until($n2, q(SELECT string_agg(message, ' ') = 'column "v" of table "public.partly" does not exist on this node' FROM repl_ml.parked_changes));
is(sql($n2, q(SELECT count(*) FROM partly)), '0', 'what it writes is parked');
sql($n1, q(ALTER TABLE partly DROP COLUMN IF EXISTS v));
poll_until($n2, q(SELECT string_agg(w, ' ') = 'x' FROM partly));
poll_until($n2, q(SELECT count(*) = 0 FROM repl_ml.parked_changes));
wait_converged(\@nodes, 'partly');

# ---- with rows that are sent while the transaction runs ----

sql($n1, q(BEGIN; CREATE TABLE large (id int PRIMARY KEY, v text); INSERT INTO large SELECT g, repeat('x', 100) FROM generate_series(1, 50000) g; ALTER TABLE large ADD COLUMN w int DEFAULT 1; UPDATE large SET w = 2 WHERE id = 1; COMMIT; INSERT INTO large VALUES (0)));
poll_until($_, 'SELECT count(*) = 1 FROM pg_class WHERE relname = \'large\'') foreach $n2, $n3;
wait_converged(\@nodes, 'large');
everywhere('SELECT count(*), sum(w) FROM large', '50001|50002', 'a large transaction');
nothing_parked();

# ---- what is this node's only, and what is refused ----

my (undef, undef, $notice) = $n1->psql('postgres', 'CREATE ROLE a_role');
like($notice, qr/NOTICE:  CREATE ROLE is run on this node only\nHINT:  Run it on each node/, 'a role is this node\'s, as a notice says');
(undef, undef, $notice) = $n1->psql('postgres', 'CREATE INDEX CONCURRENTLY large_w ON large (w)');
like($notice, qr/NOTICE:  CREATE INDEX ... CONCURRENTLY is run on this node only/, 'so is what has transactions of its own');
(undef, undef, $notice) = $n1->psql('postgres', 'CREATE INDEX CONCURRENTLY t_c ON t (c)');
is($notice, '', 'but for an index that is made at once');
poll_until($_, q(SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass('t_c'))) foreach @nodes;
psql_fails($n1, 'BEGIN; CREATE INDEX CONCURRENTLY t_d ON t (c)', '25001', 'cannot run inside a transaction block');
sql($n1, 'DROP INDEX CONCURRENTLY t_c');
poll_until($_, q(SELECT to_regclass('t_c') IS NULL)) foreach @nodes;
(undef, undef, $notice) = $n1->psql('postgres', 'REFRESH MATERIALIZED VIEW app.m');
like($notice, qr/NOTICE:  REFRESH MATERIALIZED VIEW is run on this node only/, 'and what is only computed');
(undef, undef, $notice) = $n1->psql('postgres', 'CREATE TEMP TABLE mine (id int PRIMARY KEY); CREATE INDEX ON mine (id); DROP TABLE mine; CREATE FUNCTION pg_temp.f() RETURNS int LANGUAGE sql AS \'SELECT 1\'; DROP FUNCTION pg_temp.f(); CREATE TYPE pg_temp.e AS ENUM (); DROP TYPE pg_temp.e');
is($notice, '', 'what is temporary is a session\'s');
is(sql($n1, q(SELECT count(*) FROM repl_ml.schema_change WHERE statement ~ 'pg_temp|mine')), '0', 'and nobody else\'s');
sql($n1, q(SELECT repl_ml.run_locally('CREATE TABLE here_only (id int PRIMARY KEY)')));
sql($n1, 'SET repl_ml.replicate_ddl = off; CREATE TABLE here_too (id int PRIMARY KEY)');
(undef, undef, $notice) = $n1->psql('postgres', 'CREATE TABLE keyless (id int)');
like($notice, qr/WARNING:  rows of table public.keyless stay on this node: table public.keyless has no primary key\nHINT:  Run ALTER TABLE public.keyless ADD PRIMARY KEY/, 'of a table without a key a warning says what to do');
psql_fails($n1, 'ALTER TABLE t ADD COLUMN r uuid DEFAULT gen_random_uuid()', '0A000', 'cannot be added with a default that is computed for each row', 'write its values');
psql_fails($n1, "ALTER TABLE t ALTER c TYPE text USING $_", '0A000', 'by an expression that is not the same on all nodes', 'write its values with UPDATE') foreach 'c || random()::text', 'c || now()::text', 'c || current_user';
psql_fails($n1, "SET repl_ml.replicate_ddl = off; $_", '55000', 'cannot be renamed|cannot be dropped', 'Switch "repl_ml.replicate_ddl" on') foreach 'ALTER TABLE t RENAME TO renamed', 'ALTER TABLE t SET SCHEMA app', 'ALTER SCHEMA app RENAME TO b', 'DROP TABLE t';
psql_fails($n2, 'CREATE TABLE t (id int PRIMARY KEY)', '42P07', 'relation "t" already exists', 'run by all members of the group');
psql_fails($n2, 'SET repl_ml.replicate_ddl = off; SET ROLE app; CREATE TRIGGER x BEFORE DELETE ON app.made FOR EACH ROW EXECUTE FUNCTION repl_ml.stamp_delete()', '42501', 'permission denied for (?:schema|function)');
wait_converged(\@nodes, 't');
is(sql($_, q(SELECT to_regclass('here_only') IS NULL AND to_regclass('here_too') IS NULL AND to_regclass('keyless') IS NOT NULL)), 't', 'as it was said on ' . $_->name) foreach $n2, $n3;
psql_fails($n1, 'CREATE UNIQUE INDEX CONCURRENTLY not_unique ON t ((c / c))', '23505', 'could not create unique index');
sql($n1, 'DROP INDEX large_w, not_unique');

# ---- whose rights ----

sql($_, 'CREATE ROLE writer; GRANT pg_write_all_data, pg_read_all_data TO writer') foreach @nodes;
sql($n1, 'GRANT USAGE ON SCHEMA repl_ml TO writer');
psql_fails($n1, "SET ROLE writer; INSERT INTO repl_ml.$_", '42501', 'permission denied', 'superuser')
  foreach q{schema_change (number, node_id, command_tag, statement, role_name, search_path, settings) VALUES (9999, 1, 'x', 'CREATE TABLE evil (id int)', 'postgres', '', '{}')},
  q{parked_change (origin_node, origin_xid, origin_lsn, schema_name, table_name, action, change, sqlstate, message) VALUES (1, '1', '0/1', 'repl_ml', 'schema_change', 'insert', '{}', '00000', '')},
  q{bulk_piece VALUES (1, 1, 1, '')};
sql($n2, 'ALTER SYSTEM SET repl_ml.run_superusers_ddl = off');
sql($n2, 'SELECT pg_reload_conf()');
sql($n1, 'SET ROLE app; CREATE TABLE app.by_owner (id int PRIMARY KEY)');
sql($n1, 'CREATE TABLE by_superuser (id int PRIMARY KEY)');
poll_until($n2, q(SELECT to_regclass('app.by_owner') IS NOT NULL));
poll_until($n2, q(SELECT count(*) > 0 FROM repl_ml.schema_changes WHERE state = 'parked' AND error LIKE 'role "%" has changed the schema on another node, and is a superuser here%'));
sql($n2, 'ALTER SYSTEM RESET repl_ml.run_superusers_ddl');
sql($n2, 'SELECT pg_reload_conf()');
poll_until($n2, q(SELECT to_regclass('by_superuser') IS NOT NULL));
nothing_parked();

# what a node is never to run can be given up there
sql($n2, q(SELECT repl_ml.run_locally('CREATE VIEW in_the_way AS SELECT 1')));
sql($n1, 'CREATE TABLE in_the_way (id int)');
poll_until($n2, q(SELECT count(*) = 1 FROM repl_ml.schema_changes WHERE state = 'parked'));
sql($n2, 'SELECT repl_ml.discard_parked(id) FROM repl_ml.parked_changes');
is(sql($n2, q(SELECT status FROM repl_ml.health WHERE check_name = 'schema_changes')), 'ok', 'a change that was given up is not waited for');
sql($n2, q(SELECT repl_ml.run_locally('DROP VIEW in_the_way; CREATE TABLE in_the_way (id int)')));
nothing_parked();

# ---- two nodes at once: one after the other ----

my $holder = $n1->background_psql('postgres', on_error_stop => 0);
$holder->query_safe('SELECT pg_advisory_lock(1)');
my $first = begin_session($n1, q(BEGIN), 'ALTER TABLE t ADD COLUMN x1 int', q(SELECT pg_advisory_lock(1)), 'COMMIT');
poll_until($n1, q(SELECT count(*) = 1 FROM pg_locks WHERE locktype = 'advisory' AND objsubid = 6));
my $second = begin_session($n2, 'ALTER TABLE t ADD COLUMN x2 int');
poll_until($n2, q(SELECT count(*) > 0 FROM pg_stat_activity WHERE query LIKE 'ALTER TABLE t ADD COLUMN x2%' AND wait_event_type IS NOT NULL));
$holder->quit;
is(finish_session($first) =~ s/\s+/ /gr, 'BEGIN ALTER TABLE COMMIT ', 'the first changes the schema');
is(finish_session($second), "ALTER TABLE\n", 'and then the other');
wait_converged(\@nodes, 't');
everywhere(q(SELECT string_agg(substring(statement FROM 'x\d'), ' ' ORDER BY number) FROM repl_ml.schema_change WHERE statement LIKE '%ADD COLUMN x_ int'), 'x1 x2', 'in one order');

# ---- roles are each server's own: the members are asked before ----

sql($_, 'CREATE ROLE other_role') foreach $n1, $n3;
psql_fails($n1, $_, '42704', 'role other_role does not exist on node "n2"', 'CREATE ROLE other_role on that node')
  foreach 'GRANT SELECT ON t TO other_role', 'ALTER TABLE t OWNER TO other_role', 'CREATE SCHEMA theirs AUTHORIZATION other_role', 'CREATE POLICY q ON t TO other_role',
  'ALTER DEFAULT PRIVILEGES GRANT SELECT ON TABLES TO other_role', 'SET ROLE other_role; CREATE TABLE x (id int PRIMARY KEY)';
psql_fails($n1, 'GRANT SELECT ON t TO nobody_at_all', '42704', 'role "nobody_at_all" does not exist');
sql($n2, 'CREATE ROLE other_role');
sql($n1, 'GRANT SELECT ON t TO other_role');

# ---- what a peer cannot run: the transaction is parked as one, and run when its cause is gone ----

sql($n2, q(SELECT repl_ml.run_locally('CREATE VIEW theirs AS SELECT 1')));
sql($n1, q(BEGIN; CREATE TABLE theirs (id int PRIMARY KEY); INSERT INTO theirs VALUES (1); INSERT INTO t (id) VALUES (20); COMMIT));
poll_until($n2, q(SELECT status = 'error' FROM repl_ml.health WHERE check_name = 'schema_changes'));
like(sql($n2, q(SELECT detail FROM repl_ml.health WHERE check_name = 'schema_changes')), qr/number \d+, CREATE TABLE by role \w+ on node "n1" \(relation "theirs" already exists\)/, 'health says which and why');
is(sql($n2, q(SELECT (SELECT relkind = 'v' FROM pg_class WHERE relname = 'theirs') AND NOT EXISTS (SELECT FROM t WHERE id = 20))), 't', 'nothing of the transaction is there');
psql_fails($n2, 'CREATE TABLE later (id int PRIMARY KEY)', '57P03', 'the schema cannot be changed on this node now');
sql($n1, 'INSERT INTO other VALUES (1)');
poll_until($n2, 'SELECT count(*) = 1 FROM other');
sql($n2, q(SELECT repl_ml.run_locally('DROP VIEW theirs')));
poll_until($n2, q(SELECT count(*) = 1 FROM t WHERE id = 20));
wait_converged(\@nodes, 't', 'theirs');
nothing_parked();

# ---- the node that made a change goes down before another has it ----

cut($n2, $n1);
sql($n1, 'ALTER TABLE t ADD COLUMN y int DEFAULT 3; INSERT INTO other VALUES (2)');
poll_until($n3, q(SELECT count(*) = 1 FROM other WHERE id = 2));
$n1->stop('immediate');
sql($n3, 'INSERT INTO t (id, y) VALUES (30, 4)');
poll_until($n2, q(SELECT count(*) = 1 FROM pg_attribute WHERE attrelid = 't'::regclass AND attname = 'y'));
poll_until($n2, 'SELECT y = 4 FROM t WHERE id = 30');
$n1->start;
heal($n2, $n1);

# ---- a link that is made anew has passed over a change ----

cut($n2, $n1);
# it has just been started
poll_until($n1, q(SELECT repl_ml.take_lease() IS NOT NULL));
sql($n1, q(ALTER TABLE t ADD COLUMN w int DEFAULT 6; CREATE TABLE after_slot (id int PRIMARY KEY); INSERT INTO after_slot VALUES (1)));
sql($n1, q(SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name LIKE 'repl\_ml\_%\_2'));
heal($n2, $n1);
poll_until($n2, q(SELECT to_regclass('after_slot') IS NOT NULL));
poll_until($n2, 'SELECT count(*) = 0 FROM repl_ml.tables WHERE pending_copies > 0');
wait_converged(\@nodes, 't', 'after_slot');
nothing_parked();

# ---- a member that is down has it when it is back; a minority changes nothing ----

$n3->stop('immediate');
poll_until($n1, q(SELECT count(*) = 1 FROM repl_ml.stat_apply WHERE node_name = 'n2' AND state = 'streaming'));
poll_until($n1, q(SELECT repl_ml.take_lease() IS NOT NULL));
sql($n1, q(BEGIN; ALTER TABLE t ADD COLUMN z int DEFAULT 5; CREATE TABLE v (id int PRIMARY KEY); INSERT INTO v VALUES (1); COMMIT));
$n2->stop('immediate');
poll_until($n1, q(SELECT status = 'error' FROM repl_ml.health WHERE check_name = 'write_consistency'));
psql_fails($n1, 'CREATE TABLE later (id int PRIMARY KEY)', '57P03', 'the schema cannot be changed on this node now', 'health');
$_->start foreach $n2, $n3;
wait_converged(\@nodes, 't', 'u', 'v', 'other', @made);
is(schema_of($n3, '--no-security-labels'), schema_of($n2, '--no-security-labels'), 'the schema is the same');
nothing_parked();
done_testing();
