# A table that has rows changes its class while it is written on all nodes: who writes it waits until all that was written
# in the old class is everywhere, then goes on in the new one; nothing is lost, nothing is a conflict that was not one.
#
# Seen failing: class.c without the wait, without the deadlock, change_classes without let_writers_end (who has open transactions is not waited for), without what others have told.
use strict;
use warnings;
use FindBin;
use lib "$FindBin::Bin/..";
use Consistency;
use Membership;
use ReplMl;
use PostgreSQL::Test::Utils;
use Test::More;

my ($n1, $n2, $n3) = my @nodes = new_group(3, <<'SQL');
CREATE TABLE t (id int PRIMARY KEY, n int NOT NULL, v text);
INSERT INTO t SELECT i, 0 FROM generate_series(1, 100) i;
CREATE TABLE parts (id int PRIMARY KEY, n int) PARTITION BY RANGE (id);
CREATE TABLE parts_1 PARTITION OF parts FOR VALUES FROM (0) TO (1000);
INSERT INTO parts SELECT i, 0 FROM generate_series(1, 10) i;
CREATE TABLE other (id int PRIMARY KEY);
SELECT repl_ml.add_all_tables();
SQL
sql($_, 'CREATE ROLE app LOGIN; GRANT ALL ON t, parts, parts_1 TO app') foreach @nodes;

sub class_of { my ($node, $table) = @_; return sql($node, "SELECT class || coalesce(' becomes ' || pending_class, '') FROM repl_ml.tables WHERE table_name = '" . ($table // 't') . "'"); }
sub problem { my ($node, $says) = @_; $says =~ s/'/''/g; poll_until($node, "SELECT count(*) = 1 FROM repl_ml.tables WHERE table_name = 't' AND problem LIKE '$says'"); return; }
sub wait_for_class { sql($_, q(SELECT repl_ml.wait_for_table_class('t'))) foreach @_; return; }
sub conflicts { return join ' ', map { sql($_, 'SELECT count(*) FROM repl_ml.conflicts') } @nodes; }

# Waits until a client of a node waits for the class.
sub wait_for_waiter
{
	my ($node, $query) = @_;
	poll_until($node, "SELECT count(*) = 1 FROM pg_stat_activity WHERE query LIKE '$query%' AND state = 'active' AND wait_event_type IN ('Extension', 'LWLock') AND backend_type = 'client backend'");
	return;
}

# Writers on all nodes: each inserts keys of its own, and counts in one row.
sub write_on_all
{
	my ($first, $times) = @_;
	my @sessions;

	foreach my $i (0 .. 2)
	{
		push @sessions, begin_session($nodes[$i], "DO \$\$ BEGIN FOR k IN 1 .. $times LOOP INSERT INTO t VALUES ($first + 3 * k + $i, 0); COMMIT; UPDATE t SET n = n + 1 WHERE id = 1; COMMIT; END LOOP; END \$\$");
	}
	return @sessions;
}

# ---- what is refused ----

psql_fails($n1, q(SELECT repl_ml.set_table_class('t', 'other')), '22023', 'class "other" does not exist', 'eventual or strong');
psql_fails($n1, q(SELECT repl_ml.set_table_class('pg_class', 'strong')), '55000', 'is not replicated', 'add_table');
psql_fails($n1, q(SELECT repl_ml.set_table_class('t', NULL)), '22004', 'null');
psql_fails($n1, q(SET ROLE app; SELECT repl_ml.set_table_class('t', 'strong')), '42501', 'permission denied');
my $open = $n3->background_psql('postgres');
$open->query_safe('BEGIN; UPDATE t SET n = 1 WHERE id = 2');
psql_fails($n1, q(SELECT repl_ml.set_table_class('t', 'strong')), '55000', 'on node "n3" transactions that have written table public.t do not end: process ', 'Try again');
$open->query_safe('COMMIT');
is(class_of($n1), 'eventual', 'what is refused leaves nothing behind');
$n3->stop('immediate');
psql_fails($n1, q(SELECT repl_ml.set_table_class('t', 'strong')), '57P03', 'node "n3" does not answer', 'drop_node');
Session::finish($n3->connstr('postgres'));
$n3->start;
poll_until($n1, q(SELECT count(*) = 2 FROM repl_ml.stat_replication WHERE state = 'streaming'));

# ---- under writers of all nodes ----

wait_converged(\@nodes);
my @writers = write_on_all(1000, 40);
sql($n1, q(SELECT repl_ml.set_table_class('t', 'strong')));
wait_for_class(@nodes);
is(join(', ', map { class_of($_) } @nodes), 'strong, strong, strong', 'the table is strong');
unlike(finish_session($_), qr/ERROR/, 'a writer has seen nothing of it') foreach @writers;
wait_converged(\@nodes, 't');
is(sql($_, 'SELECT count(*) FROM t'), 220, 'no row is lost on ' . $_->name) foreach @nodes;
my ($before, $was) = (conflicts(), sql($n1, 'SELECT n FROM t WHERE id = 1'));
@writers = write_on_all(2000, 20);
unlike(finish_session($_), qr/ERROR/, 'a writer of the strong table gets on') foreach @writers;
sql($_, q(SELECT repl_ml.barrier('30 s'))) foreach @nodes;
is(sql($_, 'SELECT n FROM t WHERE id = 1'), $was + 60, 'all that was counted on three nodes is in the row on ' . $_->name) foreach @nodes;
is(conflicts(), $before, 'with no conflict');

# ---- and back ----

sql($n2, q(SELECT repl_ml.set_table_class('t', 'eventual')));
wait_for_class(@nodes);
is(join(', ', map { class_of($_) } @nodes), 'eventual, eventual, eventual', 'the table is eventual');
sql($n1, q(SELECT repl_ml.add_table('other', class => 'strong')));
sql($_, q(SELECT repl_ml.wait_for_table_class('other'))) foreach @nodes;
my $holder = $n1->background_psql('postgres', on_error_stop => 0);
$holder->query_safe('BEGIN; INSERT INTO other VALUES (1); UPDATE t SET n = 1 WHERE id = 7');
is(sql($n2, 'UPDATE t SET n = 2 WHERE id = 8 RETURNING n'), '2', 'nodes write it without the lease');
$holder->query_safe('COMMIT');
is(sql($n1, 'SELECT status FROM repl_ml.health WHERE check_name = $$tables$$'), 'ok', 'nothing is left of the change');

# ---- step by step: n3 hears of it late, and has writers of the old class ----

sub change_with_late_node
{
	sql($n3, q(SELECT repl_ml.pause_apply('n1')));
	sql($n1, q(SELECT repl_ml.set_table_class('t', 'strong')));
	problem($n2, '%not all transactions that have written it have ended on node "n3"');
	sql($n3, 'UPDATE t SET n = 100 WHERE id = 3');
	$open = $n3->background_psql('postgres');
	$open->query_safe('BEGIN; UPDATE t SET n = 100 WHERE id = 4');
	return;
}

change_with_late_node();
my $again = $n3->background_psql('postgres');
$again->query_safe('BEGIN; UPDATE t SET n = 100 WHERE id = 5');
is(class_of($n1), 'eventual becomes strong', 'what it becomes is shown');
my $waiter = begin_session($n1, 'UPDATE t SET n = n + 1 WHERE id IN (3, 4, 5)');
my $reader = begin_session($n1, 'INSERT INTO t SELECT 6000, n / 100 FROM t WHERE id = 5');
wait_for_waiter($n1, 'INSERT INTO t SELECT 6000');
wait_for_waiter($n1, 'UPDATE t SET n = n + 1 WHERE id IN');
psql_fails($n2, q(SET lock_timeout = '200ms'; UPDATE t SET n = -1 WHERE id = 9), '55P03', 'lock timeout');
psql_fails($n2, q(SET repl_ml.write_timeout = '200ms'; UPDATE t SET n = -1 WHERE id = 5), '57P03', 'changing its class', 'repl_ml.tables');
psql_fails($n2, q(SET repl_ml.write_timeout = '200ms'; COPY t (id, n) FROM PROGRAM 'echo 5000,1' WITH (FORMAT csv)), '57P03', 'changing its class');
psql_fails($n2, q(SET repl_ml.write_timeout = '200ms'; SELECT 1 FROM t WHERE id = 5 FOR SHARE), '57P03', 'changing its class');
psql_fails($n2, q(SET statement_timeout = '200ms'; DELETE FROM t WHERE id = 5), '57014', 'statement timeout');
psql_fails($n2, q(SELECT repl_ml.set_table_class('t', 'eventual')), '55006', 'changing its class already, from eventual to strong', 'wait_for_table_class');
psql_fails($n2, q(SELECT repl_ml.wait_for_table_class('t', '100 ms')), '57014', 'has not changed within');
psql_fails($n2, q(SET repl_ml.replicate_ddl = on; ALTER TABLE t RENAME TO t2), '55006', 'changing its class', 'wait_for_table_class');
is(sql($n2, 'SELECT count(*) FROM t'), 280, 'readers go on');
like(sql($n2, q(SELECT status || ' ' || detail FROM repl_ml.health WHERE check_name = 'tables')), qr/^warning Table public.t is changing its class: it becomes strong: not all .* node "n3"\.$/, 'health says what it waits for');
# a server that crashes in between finds its way
crash_and_restart($n2, 'immediate');
sql($n3, q(SELECT repl_ml.resume_apply('n1')));
problem($n3, '%this node waits for process %, process %');
is(class_of($n3), 'eventual becomes strong', 'as long as there is a writer of the old class it is that');
$again->query_safe('UPDATE t SET n = 200 WHERE id = 5');
$holder->query_safe('BEGIN; INSERT INTO other VALUES (2)');
$again->{stdin} .= "INSERT INTO other VALUES (3);\n";
$again->{run}->pump_nb;
poll_until($n3, q(SELECT count(*) = 1 FROM pg_stat_activity WHERE query LIKE 'INSERT INTO other%' AND wait_event_type = 'Lock'));
$holder->query_until(qr/result 40P01/, "UPDATE t SET n = n WHERE id = 10;\n\\echo result :SQLSTATE\n");
$holder->query('ROLLBACK');
$again->query_safe('COMMIT');
problem($n3, '%this node waits for process %');
$open->query_safe('COMMIT');
wait_for_class(@nodes);
unlike(finish_session($_), qr/ERROR/, 'who waited goes on') foreach $waiter, $reader;
is(sql($n1, 'SELECT n FROM t WHERE id = 6000'), 2, 'and reads in the same statement what was written before');
wait_converged(\@nodes, 't');
is(sql($_, 'SELECT string_agg(n::text, $$ $$ ORDER BY id) FROM t WHERE id IN (3, 4, 5)'), '101 101 201', 'after all that was written before, on ' . $_->name) foreach @nodes;
is(conflicts(), $before, 'no conflict');
sql($n1, q(SELECT repl_ml.set_table_class('t', 'eventual')));
wait_for_class(@nodes);

# ---- a snapshot that is older than the change ----

change_with_late_node();
$waiter = begin_session($n2, 'BEGIN ISOLATION LEVEL REPEATABLE READ', 'SELECT count(*) FROM t', 'UPDATE t SET n = -1 WHERE id = 6', 'COMMIT');
wait_for_waiter($n2, 'UPDATE t SET n = -1 WHERE id = 6');
my $copier = begin_session($n2, q(COPY t (id, n) FROM PROGRAM 'echo 5001,1' WITH (FORMAT csv)));
wait_for_waiter($n2, 'COPY t');
# who is prepared has written it, too
$open->query_safe(q(PREPARE TRANSACTION 'p'));
sql($n3, q(SELECT repl_ml.resume_apply('n1')));
problem($n3, q(%this node waits for%prepared transaction 'p'));
sql($n3, q(COMMIT PREPARED 'p'));
wait_for_class(@nodes);
like(finish_session($waiter), qr/could not serialize access due to concurrent update/, 'who keeps a snapshot of before has to begin anew');
unlike(finish_session($copier), qr/ERROR/, 'COPY goes on');

# ---- partitions, by their own name ----

$open = $n2->background_psql('postgres');
$open->query_safe('BEGIN; UPDATE parts_1 SET n = 1 WHERE id = 1');
psql_fails($n1, q(SELECT repl_ml.set_table_class('parts', 'strong')), '55000', 'on node "n2" transactions that have written table public.parts do not end');
$open->query_safe('COMMIT');
sql($n1, q(SELECT repl_ml.set_table_class('parts', 'strong')));
sql($_, q(SELECT repl_ml.wait_for_table_class('parts'))) foreach @nodes;
$open->query_safe('BEGIN; UPDATE parts_1 SET n = n + 1 WHERE id = 1');
$waiter = begin_session($n3, 'UPDATE parts_1 SET n = n + 1 WHERE id = 1');
poll_until($n3, q(SELECT count(*) = 1 FROM pg_stat_activity WHERE query LIKE 'UPDATE parts_1%' AND wait_event_type = 'Lock'));
$open->query_safe('COMMIT');
unlike(finish_session($waiter), qr/ERROR/, 'a partition is what its root is');
is(sql($n3, 'SELECT n FROM parts WHERE id = 1'), 3, 'and its writers wait for each other');

# ---- a node that is gone for good in between ----

sql($n1, q(SELECT repl_ml.set_table_class('t', 'eventual')));
wait_for_class(@nodes);
sql($n3, q(SELECT repl_ml.pause_apply('n1')));
sql($n1, q(SELECT repl_ml.set_table_class('t', 'strong')));
problem($n2, '%node "n3"');
$n3->stop('immediate');
$waiter = begin_session($n2, 'UPDATE t SET n = n + 1 WHERE id = 8');
wait_for_waiter($n2, 'UPDATE t SET n = n + 1 WHERE id = 8');
sql($n1, q(SELECT repl_ml.drop_node('n3')));
wait_for_class($n1, $n2);
unlike(finish_session($waiter), qr/ERROR/, 'when a node that is gone has been dropped the others go on');
is(class_of($n2), 'strong', 'in the new class');

# ---- a table that goes ----

sql($n1, q(SELECT repl_ml.set_table_class('t', 'eventual')));
wait_for_class($n1, $n2);
sql($n2, q(SELECT repl_ml.pause_apply('n1')));
sql($n1, q(SELECT repl_ml.set_table_class('t', 'strong')));
problem($n1, '%ended on node "n2"');
sql($n1, q(SELECT repl_ml.remove_table('t')));
is(sql($n1, 'UPDATE t SET n = 8 WHERE id = 8 RETURNING n'), '8', 'a table that is removed meanwhile is written as ever');
sql($n2, q(SELECT repl_ml.resume_apply('n1')));
poll_until($n2, q(SELECT count(*) = 0 FROM repl_ml.tables WHERE table_name = 't'));
is(sql($n1, q(SELECT string_agg(status, ' ') FROM repl_ml.health WHERE check_name = 'tables')), 'ok', 'nothing is left of the change');

done_testing();
