# Whatever process ends, and however, on whichever node: after a restart nothing is lost and all converge.
use strict;
use warnings;
use Membership;
use ReplMl;
use Test::More;

my ($n1, $n2, $n3) = my @nodes = new_group(3, <<'SQL');
CREATE TABLE written (id uuid PRIMARY KEY DEFAULT gen_random_uuid(), by text);
CREATE TABLE counter (id integer PRIMARY KEY, n integer NOT NULL);
INSERT INTO counter SELECT i, 0 FROM generate_series(1, 20) i;
SELECT repl_ml.add_all_tables();
CREATE DATABASE bystander;
SQL
$n1->safe_psql('bystander', 'CREATE TABLE written (id integer PRIMARY KEY)');

foreach (@nodes)
{
	$_->append_conf('postgresql.conf', 'restart_after_crash = on');
	$_->reload;
}

sub writer
{
	my ($node) = @_;
	my $by = $node->name;
	return start_writer($node, <<"SQL");
\\set c random(1, 20)
BEGIN;
INSERT INTO written (by) VALUES ('$by');
UPDATE counter SET n = n + 1 WHERE id = :c;
DELETE FROM written WHERE id = (SELECT id FROM written WHERE by = '$by' ORDER BY id LIMIT 1) AND random() < 0.2;
END;
SQL
}

# Every kind of process, ended in turn on every node while all are written.  The ones a signal to
# which makes the server restart all (SIGKILL) are in the next part.
my @writers = map { writer($_) } @nodes;
my %ended;
foreach my $kind ('repl_ml apply', 'repl_ml supervisor', 'repl_ml launcher', 'walsender')
{
	foreach my $node (@nodes)
	{
		my @pids = split /\n/, sql($node, "SELECT pid FROM pg_stat_activity WHERE backend_type = '$kind'");
		cmp_ok(scalar @pids, '>', 0, "$kind runs on " . $node->name);
		kill 'TERM', $pids[0];
		# another one takes its place
		poll_until($node, "SELECT count(*) >= " . @pids . " AND bool_and(pid <> $pids[0]) FROM pg_stat_activity WHERE backend_type = '$kind'");
		$ended{$kind}++;
	}
}
is(join(' ', map { $ended{$_} } sort keys %ended), '3 3 3 3', 'each kind was ended on each node');
stop_writer($_) foreach @writers;
wait_converged(\@nodes, qw(written counter));
no_errors(\@nodes);

# SIGKILL of a process makes its server recover from the crash; a stop and an immediate stop of the others.
foreach my $kind ('repl_ml apply', 'repl_ml supervisor', 'repl_ml launcher', 'walsender')
{
	my $node = $nodes[ $kind =~ /apply|walsender/ ? 1 : 2 ];
	my $writer = writer($n1);
	my $pid = sql($node, "SELECT min(pid) FROM pg_stat_activity WHERE backend_type = '$kind'");
	my $logged = -s $node->logfile;

	sql($node, "INSERT INTO written (by) VALUES ('before $kind')");
	kill 'KILL', $pid;
	$node->wait_for_log(qr/database system is ready to accept connections/, $logged);
	stop_writer($writer);
	poll_until($_, "SELECT count(*) = 1 FROM written WHERE by = 'before $kind'") foreach @nodes;
}
wait_converged(\@nodes, qw(written counter));
no_errors(\@nodes);

@writers = map { writer($_) } $n2, $n3;
crash_and_restart($n1, 'immediate');
crash_and_restart($n1, 'kill9');
stop_writer($_) foreach @writers;
$n2->restart;
$_->stop foreach @nodes;
$_->start foreach @nodes;
wait_converged(\@nodes, qw(written counter));
no_errors(\@nodes);

# A slot that is lost is made anew, and what it did not keep is copied, in both directions of time.
sub lose_slot
{
	my ($reader, $writer, $sql) = @_;
	my $slot = sql($writer, 'SELECT repl_ml.link_name(' . sql($reader, 'SELECT node_id FROM repl_ml.local_node') . ')');

	cut($reader, $writer);
	sql($writer, $sql);
	poll_until($writer, "SELECT count(*) = 1 FROM pg_replication_slots WHERE NOT active AND slot_name = '$slot'");
	sql($writer, "SELECT pg_drop_replication_slot('$slot')");
	heal($reader, $writer);
}
lose_slot($n3, $n1, q(INSERT INTO written (by) VALUES ('while cut'); UPDATE counter SET n = -7 WHERE id = 7; DELETE FROM counter WHERE id = 8));
poll_until($n3, q(SELECT count(*) = 1 FROM written WHERE by = 'while cut'));
poll_until($n3, q(SELECT bool_and(state = 'streaming') FROM repl_ml.stat_apply));
sql($n1, q(INSERT INTO written (by) VALUES ('after')));
wait_converged(\@nodes, qw(written counter));
is(sql($n3, 'SELECT string_agg(n::text, $$,$$) FROM counter WHERE id IN (7, 8)'), '-7', 'the update and the deletion came too');
is(sql($n1, q(SELECT count(*) FROM pg_replication_slots WHERE plugin = 'repl_ml')), '2', 'as many slots as peers');
no_errors(\@nodes);

# a database of the same server that is no member
$n1->safe_psql('bystander', 'INSERT INTO written VALUES (1); UPDATE written SET id = 2; DELETE FROM written');
is($n1->safe_psql('bystander', q(SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND backend_type LIKE 'repl_ml%')),
	'0', 'no worker in a database that is no member');
$n1->safe_psql('bystander', 'CREATE EXTENSION repl_ml');
psql_fails_in($n1, 'bystander', q(SELECT repl_ml.add_table('written')));
$n1->safe_psql('bystander', 'DROP EXTENSION repl_ml');

sub psql_fails_in
{
	my ($node, $database, $sql) = @_;
	my (undef, undef, $stderr) = $node->psql($database, $sql);
	like($stderr, qr/not a member of a repl_ml group/, "in $database: $sql");
}

# the extension cannot be dropped under a member
psql_fails($n1, $_, '55000', 'cannot be dropped from a member of a group', 'leave_group')
  foreach 'DROP EXTENSION repl_ml', 'DROP EXTENSION repl_ml CASCADE', 'DROP SCHEMA repl_ml CASCADE';
is(sql($n1, 'SELECT count(*) FROM repl_ml.nodes'), '3', 'n1 is still a member');
sql($n1, 'SELECT repl_ml.leave_group(); DROP EXTENSION repl_ml');
is(sql($n1, 'SELECT count(*) > 0 FROM written'), 't', 'without the extension the rows stay');

done_testing();
