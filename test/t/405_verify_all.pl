# verify_all has a row for each table of the group, also those that this node or another lacks; says what is no difference
# and somebody has to look at: orphans, and rows that lost a unique key to another node's; differences that a parked
# change explains are called so; one table that cannot be compared keeps no other from it, and a cancel ends it all;
# and a member that is silent is waited for once.
#
# Seen failing: without the rows for tables that are missing here, without those put aside, and with parked rows called
# missing; with what a lock holds up called different; with a silent member asked for each table, and a null taken for an answer (a crash).
use strict;
use warnings;
use PostgreSQL::Test::BackgroundPsql;
use PostgreSQL::Test::Utils;
use ReplMl;
use Situations;
use Test::More;

my @nodes = new_group(3, <<'SQL');
CREATE TABLE a (id int PRIMARY KEY, v int);
CREATE TABLE child (id int PRIMARY KEY, a int REFERENCES a);
CREATE TABLE parts (id int PRIMARY KEY, v text) PARTITION BY RANGE (id);
CREATE TABLE parts_1 PARTITION OF parts FOR VALUES FROM (0) TO (100);
CREATE TABLE u (id int PRIMARY KEY, k int UNIQUE);
CREATE TABLE z (id int PRIMARY KEY);
CREATE SCHEMA hidden;
CREATE TABLE hidden.h (id int PRIMARY KEY);
SELECT repl_ml.add_all_tables();
SELECT repl_ml.add_table('hidden.h');
SQL
my ($n1, $n2, $n3) = @nodes;
poll_until($_, q(SELECT count(*) = 6 FROM repl_ml.tables WHERE state = 'replicated' AND pending_copies = 0)) foreach @nodes;
sql($n1, q(INSERT INTO a VALUES (1, 1); INSERT INTO parts VALUES (1, 'one'); INSERT INTO hidden.h VALUES (1)));
sql($n1, q(SET session_replication_role = replica; INSERT INTO child VALUES (1, 99)));

# two rows with one unique key, written on two nodes
cut_all(@nodes);
sql($n1, 'INSERT INTO u VALUES (1, 7)');
sql($n2, 'INSERT INTO u VALUES (2, 7)');
heal_all(@nodes);
wait_converged(\@nodes, 'u');
poll_until($_, q(SELECT count(*) = 1 FROM repl_ml.parked_changes WHERE action = 'evicted')) foreach @nodes;

my $all = 'SELECT relation, status, unreachable, detail FROM repl_ml.verify_all()';
my $aside = q(rows that another node's row with the same unique key has put aside: 1);
my $orphan = 'rows whose foreign keys refer to nothing: 1';
is(sql($n3, $all), <<"ROWS" =~ s/\n\z//r, 'what is no difference, and to be looked at');
hidden.h|consistent|{}|
a|consistent|{}|
child|consistent|{}|$orphan
parts|consistent|{}|
u|consistent|{}|$aside
z|consistent|{}|
ROWS

# a difference that a parked change explains, and one that none does
sql($n3, 'ALTER TABLE a ADD CONSTRAINT small CHECK (v < 10)');
sql($n1, 'INSERT INTO a VALUES (2, 20)');
poll_until($n3, q(SELECT count(*) = 1 FROM repl_ml.parked_changes WHERE action = 'insert'));
plant($n2, 'a', 'UPDATE a SET v = 5 WHERE id = 1');
is(sql($_, q(SELECT status, differing_rows, detail FROM repl_ml.verify_table('a'))), 'differs|2|corrupt: 1; parked: 1', 'parked rows are counted as such: ' . $_->name) foreach $n1, $n3;
sql($n3, 'ALTER TABLE a DROP CONSTRAINT small');
poll_until($n3, q(SELECT count(*) = 0 FROM repl_ml.parked_changes WHERE action = 'insert'));

# a change that waits for a client's lock is on its way, however long that takes
sql($n1, q(SELECT FROM repl_ml.repair_table('a', false)));
sql($n3, $_) foreach q(ALTER SYSTEM SET repl_ml.apply_lock_timeout = '100ms'), 'SELECT pg_reload_conf()';
my $client = $n3->background_psql('postgres');
$client->query_safe('BEGIN; SELECT FROM a WHERE id = 2 FOR UPDATE');
sql($n1, 'UPDATE a SET v = 6 WHERE id = 2');
poll_until($n3, q(SELECT count(*) = 1 FROM repl_ml.parked_changes WHERE sqlstate = '55P03' AND NOT put_aside));
like(sql($_, q(SELECT status, differing_rows, detail FROM repl_ml.verify_table('a', '1 s'))), qr/^incomplete\|0\|still on their way: 1/, 'a change that waits for a lock: ' . $_->name) foreach $n1, $n3;
is(sql($n1, q(SELECT key, verdict FROM repl_ml.diff_rows('a', 10, '1 s'))), '{2}|parked', 'which is said of its row');
$client->query_safe('COMMIT');
$client->quit;
poll_until($n3, q(SELECT count(*) = 0 FROM repl_ml.parked_changes WHERE action = 'update'));
is(sql($n1, q(SELECT status, detail FROM repl_ml.verify_table('a'))), 'consistent|', 'when the lock is gone');

# tables that are missing, and cannot be made anew because of a type of that name
sql($n2, 'SET repl_ml.guard_off = on; BEGIN; DROP TABLE hidden.h; CREATE TYPE hidden.h AS ENUM (); COMMIT');
is(sql($n1, "$all WHERE relation = 'hidden.h'::regclass"), 'hidden.h|incomplete|{n2}|node "n2" is not compared: It does not have the table.', 'missing elsewhere');
is(sql($n2, "$all WHERE relation IS NULL OR relation = 'u'::regclass"), qq(u|consistent|{}|$aside\n|incomplete|{n2}|table hidden.h is missing on node "n2", this one), 'missing here');

# a member that is silent is waited for once, and asked again by the next statement
sql($n3, 'ALTER SYSTEM SET log_connections = on');
sql($n3, 'SELECT pg_reload_conf()');
my $offset = -s $n3->logfile;
my $postmaster = slurp_file($n3->data_dir . '/postmaster.pid') =~ s/\n.*//sr;
kill STOP => $postmaster;
like(sql($n1, q(SELECT string_agg(DISTINCT detail, '; ') FROM repl_ml.verify_all('1 s') WHERE status = 'incomplete' AND unreachable @> '{n3}')), qr/node "n3" is not compared: It does not answer in time\./, 'a member is silent');
kill CONT => $postmaster;
# it takes who has knocked meanwhile first, one after the other
$n3->wait_for_log(qr/connection authorized: .* application_name=repl_ml question/, $offset);
$n3->safe_psql('postgres', 'SELECT 1');
is(scalar(() = slurp_file($n3->logfile, $offset) =~ /connection authorized: .* application_name=repl_ml question/g), 1, 'and waited for once');
is(sql($n1, q(SELECT count(*) FROM repl_ml.verify_all() WHERE unreachable @> '{n3}')), 0, 'not for ever');

# an answer that is none
sql($n2, 'ALTER FUNCTION repl_ml.verify_changes RENAME TO asked; CREATE FUNCTION repl_ml.verify_changes(text, text, text, int, repl_ml.vclock) RETURNS bytea LANGUAGE sql AS $$ SELECT NULL::bytea $$');
is(sql($n1, q(SELECT status, detail, hint IS NOT NULL FROM repl_ml.verify_table('a', '60 s', true))), 'incomplete|node "n2" is not compared: Its answer cannot be read.|t', 'null for an answer');
sql($n2, 'DROP FUNCTION repl_ml.verify_changes; ALTER FUNCTION repl_ml.asked RENAME TO verify_changes');

# who may what
sql($_, 'CREATE ROLE operator; GRANT repl_ml_admin TO operator; CREATE ROLE owner') foreach @nodes;
sql($n1, 'ALTER TABLE u OWNER TO owner; ALTER TABLE hidden.h OWNER TO owner');
is(sql($n1, "SET ROLE operator; $all WHERE status = 'consistent'"), "a|consistent|{}|\nchild|consistent|{}|\nparts|consistent|{}|\nu|consistent|{}|$aside\nz|consistent|{}|", 'an operator, who may not use the schema of one');
is(sql($n1, "SET ROLE owner; SELECT relation, status FROM repl_ml.verify_all()"), "hidden.h|incomplete\nu|consistent", 'an owner, who may not either');

# one that cannot be compared; ended in the middle; dropped meanwhile
my $holder = $n1->background_psql('postgres');
$holder->query_safe('BEGIN; LOCK TABLE child');
is(sql($n1, "SET lock_timeout = '300ms'; $all WHERE relation::text IN ('child', 'parts')"), "child|incomplete||canceling statement due to lock timeout; foreign keys could not be looked at: canceling statement due to lock timeout\nparts|consistent|{}|", 'the others are compared');
psql_fails($n1, "SET statement_timeout = '200ms'; $all", '57014', 'statement timeout');
is(sql($n1, 'SELECT count(*) FROM repl_ml.stat_progress_verify'), 0, 'and nothing goes on');
my $caller = $n1->background_psql('postgres');
$caller->query_until(qr/begun/, "\\echo begun\n$all;\n");
poll_until($n1, q(SELECT count(*) = 1 FROM pg_locks WHERE relation = 'child'::regclass AND NOT granted));
sql($n1, q(SELECT repl_ml.remove_table('z'); DROP TABLE z));
$holder->query_safe('COMMIT');
my $rows = $caller->query('SELECT 1');
like($rows, qr/^parts\|consistent/m, 'the others are compared again');
unlike($rows, qr/^(?:z|\d+)\|/m, 'without the one that is gone');
$_->quit foreach $holder, $caller;

done_testing();
