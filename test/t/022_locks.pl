# Applying gives way to clients: it never costs one of them a deadlock, waits as long as they hold a lock
# and is no error; and the workers come back whoever cancels or ends them, with nothing lost.
use strict;
use warnings;
use PostgreSQL::Test::Utils;
use ReplMl;
use Test::More;

my @nodes = new_group(3, q(
CREATE TABLE t (id int PRIMARY KEY, v text);
SELECT repl_ml.add_table('t');
INSERT INTO t SELECT i, 'old' FROM generate_series(1, 20) i));
my ($n1, $n2, $n3) = @nodes;

# A client of a node that keeps a transaction open.
sub client
{
	my ($node) = @_;
	return $node->background_psql('postgres', on_error_stop => 0);
}

sub apply_stat
{
	my ($node, $column) = @_;
	return sql($node, "SELECT $column FROM repl_ml.stat_apply WHERE node_name = 'n1'");
}

sub value { my ($node, $id) = @_; return sql($node, "SELECT v FROM t WHERE id = $id"); }
sub apply_waits
{
	my ($node, $name) = @_;
	poll_until($node, q(SELECT count(*) = 1 FROM pg_stat_activity WHERE backend_type = 'repl_ml apply' AND wait_event_type = 'Lock'));
	return;
}

# Waits until applying has given way at least twice.
sub gave_way
{
	my ($node, $before) = @_;
	poll_until($node, "SELECT retries >= $before + 2 FROM repl_ml.stat_apply WHERE node_name = 'n1'");
	return;
}

# The timeouts apart, so that it is certain whose runs out first: what applying waits for a lock is
# three quarters of deadlock_timeout. And for long enough that nothing is parked, as in 362.
sql($n2, q(ALTER SYSTEM SET deadlock_timeout = '400ms'));
sql($n2, q(ALTER SYSTEM SET repl_ml.apply_lock_timeout = '1h'));
$n2->restart;
wait_converged(\@nodes, 't');

# A row that a client has changed and not committed.
my $client = client($n2);
my $retries = apply_stat($n2, 'retries');
$client->query_safe(q(BEGIN; UPDATE t SET v = 'n2' WHERE id = 1));
sql($n1, q(BEGIN; UPDATE t SET v = 'n1' WHERE id = 1; UPDATE t SET v = 'n1' WHERE id = 2; COMMIT));
gave_way($n2, $retries);
is(value($n2, 2), 'old', 'the waiting transaction is not applied in part');
$client->query_safe('COMMIT');
wait_converged(\@nodes, 't');
is(value($n2, 1) . value($n2, 2), 'n1n1', 'it is applied when the client has committed');
is(conflict_rows($_), 't|{1}|update_origin_differs|n1|n2|{v}', 'the client has lost a conflict on ' . $_->name) foreach @nodes;

# A row that a client only locks, and one it inserts and gives up.
$retries = apply_stat($n2, 'retries');
$client->query_safe(q(BEGIN; SELECT FROM t WHERE id = 3 FOR UPDATE; INSERT INTO t VALUES (30, 'given up')));
sql($n1, q(UPDATE t SET v = 'n1' WHERE id = 3));
sql($n1, q(INSERT INTO t VALUES (30, 'n1')));
gave_way($n2, $retries);
$client->query_safe('ROLLBACK');
wait_converged(\@nodes, 't');
is(value($n2, 3) . value($n2, 30), 'n1n1', 'rows a client has locked or inserted and let go');

# A key that a client inserts as well.
$retries = apply_stat($n2, 'retries');
$client->query_safe(q(BEGIN; INSERT INTO t VALUES (31, 'n2')));
sql($n1, q(INSERT INTO t VALUES (31, 'n1')));
gave_way($n2, $retries);
$client->query_safe('COMMIT');
wait_converged(\@nodes, 't');
is(value($n3, 31), 'n1', 'a key a client has inserted too: a conflict like others');

# A key that a client deletes.
$retries = apply_stat($n2, 'retries');
$client->query_safe(q(BEGIN; DELETE FROM t WHERE id = 4));
sql($n1, q(UPDATE t SET v = 'n1' WHERE id = 4));
gave_way($n2, $retries);
$client->query_safe('COMMIT');
wait_converged(\@nodes, 't');
is(value($n3, 4), 'n1', 'a row a client has deleted: a conflict like others');

# The whole table.
$retries = apply_stat($n2, 'retries');
$client->query_safe(q(BEGIN; LOCK TABLE t IN ACCESS EXCLUSIVE MODE));
sql($n1, q(UPDATE t SET v = 'n1' WHERE id = 5));
gave_way($n2, $retries);
$client->query_safe('COMMIT');
wait_converged(\@nodes, 't');
is(value($n2, 5), 'n1', 'a table that a client has locked');

# A deadlock that a client closes: it gets its lock before it would be told of one.
my $done = 0;

sub start_query
{
	my ($psql, $sql) = @_;
	$done++;
	$psql->query_until(qr/started $done/, "\\echo started $done\n$sql;\n");
	return;
}

$client->query_safe(q(BEGIN; UPDATE t SET v = 'n2' WHERE id = 7));
sql($n1, q(BEGIN; UPDATE t SET v = 'n1' WHERE id = 6; UPDATE t SET v = 'n1' WHERE id = 7; COMMIT));
apply_waits($n2);
start_query($client, q(UPDATE t SET v = 'n2' WHERE id = 6));
$client->query(q(COMMIT));
is($client->{stderr}, '', 'a deadlock that a client closes: no error for it');
wait_converged(\@nodes, 't');
is(value($n2, 7), 'n1', 'a deadlock that a client closes: both are done');

# A deadlock that applying closes, when the client has been waiting for long: applying sees it first.
sql($n2, q(ALTER SYSTEM SET deadlock_timeout = '8s'));
$n2->restart;
$client = client($n2);
my $holder = client($n2);
sql($n2, q(
CREATE FUNCTION meet() RETURNS trigger LANGUAGE plpgsql AS
	$$ BEGIN PERFORM pg_advisory_xact_lock(4711); RETURN NEW; END $$;
CREATE TRIGGER meet BEFORE UPDATE ON t FOR EACH ROW WHEN (NEW.id = 9) EXECUTE FUNCTION meet();
ALTER TABLE t ENABLE ALWAYS TRIGGER meet));
$holder->query_safe('SELECT pg_advisory_lock(4711)');
$client->query_safe(q(SET deadlock_timeout = '2s'; BEGIN; UPDATE t SET v = 'n2' WHERE id = 10));
sql($n1, q(BEGIN; UPDATE t SET v = 'n1' WHERE id = 8; UPDATE t SET v = 'n1' WHERE id = 9; UPDATE t SET v = 'n1' WHERE id = 10; COMMIT));
apply_waits($n2);
start_query($client, q(UPDATE t SET v = 'n2' WHERE id = 8));
poll_until($n2, q(SELECT count(*) = 1 FROM pg_stat_activity WHERE backend_type = 'client backend' AND wait_event_type = 'Lock'));
$holder->query_safe('SELECT pg_advisory_unlock(4711)');
$client->query(q(COMMIT));
is($client->{stderr}, '', 'a deadlock that applying closes: no error for the client');
wait_converged(\@nodes, 't');
is(value($n2, 9), 'n1', 'a deadlock that applying closes: both are done');
$_->quit foreach $client, $holder;

is(apply_stat($n2, 'errors'), '0', 'none of this is an error');
unlike(slurp_file($n2->logfile), qr/ERROR:  deadlock detected/, 'nobody has been told of a deadlock');

# Whoever cancels or ends a worker: it comes back by itself, and nothing is lost.
sql($n2, q(ALTER SYSTEM RESET deadlock_timeout; DROP TRIGGER meet ON t));
my $row = 100;

sub worker_pid
{
	my ($kind) = @_;
	return sql($n2, "SELECT pid FROM pg_stat_activity WHERE backend_type = 'repl_ml $kind' ORDER BY pid LIMIT 1");
}

foreach my $kind ('launcher', 'supervisor', 'apply')
{
	foreach my $function ('pg_cancel_backend', 'pg_terminate_backend')
	{
		my $all = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'repl_ml $kind'";
		my $count = sql($n2, $all);
		my $pid = worker_pid($kind);

		$row++;
		sql($n1, "INSERT INTO t SELECT $row * 1000 + i, 'n1' FROM generate_series(1, 500) i");
		is(sql($n2, "SELECT $function($pid)"), 't', "$function of the $kind");
		sql($n1, "INSERT INTO t VALUES ($row, 'n1')");
		sql($n2, "INSERT INTO t VALUES ($row * 1000, 'n2')");
		poll_until($n2, "SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE pid = $pid)")
		  if $function eq 'pg_terminate_backend';
		poll_until($n2, $all, $count);
		wait_converged(\@nodes);
	}
}
wait_converged(\@nodes, 't');
is(sql($n2, 'SELECT count(*) FROM t WHERE id > 100'), 6 * 502, 'nothing is lost');
is(sql($n2, q(SELECT count(*) FROM repl_ml.stat_apply WHERE state = 'streaming')), '2', 'both workers apply again');
poll_until($n2, q(SELECT sent_at > now() - interval '10 s' FROM repl_ml.heartbeat JOIN repl_ml.local_node USING (node_id)));
is(sql($_, 'SELECT count(*) FROM repl_ml.parked_changes'), '0', 'nothing is parked on ' . $_->name) foreach @nodes;
done_testing();
