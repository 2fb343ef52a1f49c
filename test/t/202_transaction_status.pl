# What became of a transaction, as transaction_status() tells from its token, is the truth on every node, for
# everybody: whatever became of the client's connection, of the node of the transaction, and of the others.
# Transactions that are visible without being acknowledged are counted, also those that a crash left behind.
#
# Seen failing: without keep_xid() in token.c (a killed transaction is taken for the one that got its id); with
# note_record() in recall.c finding nothing (not counted, and acknowledged, after a crash), without either of
# the two bits of the commit record (counted with another level).
use strict;
use warnings;
use FindBin;
use lib "$FindBin::Bin/..";
use IPC::Run;
use Membership;
use PostgreSQL::Test::Utils;
use ReplMl;
use Test::More;

my @nodes = new_group(3, <<'SQL');
CREATE TABLE t (id int PRIMARY KEY, v text);
SELECT repl_ml.add_table('t');
SQL
my ($n1, $n2, $n3) = @nodes;
my $next = 0;
my @stopped;

foreach my $node (@nodes)
{
	# peers that are silent for less than two heartbeats count as reachable
	sql($node, "ALTER SYSTEM SET repl_ml.heartbeat_interval = '60s'");
	sql($node, 'SELECT pg_reload_conf()');
	sql($node, 'CREATE ROLE plain');
}

# The nodes no longer apply what "from" writes, until continue_workers.
sub stop_workers
{
	my ($from, @where) = @_;
	my $name = literal($from->name);

	push @stopped, map { sql($_, "SELECT pid FROM repl_ml.stat_apply WHERE node_name = $name") } @where;
	kill STOP => @stopped;
	return;
}

sub continue_workers
{
	kill CONT => splice @stopped;
	return;
}
END { continue_workers() }

# Runs a transaction that inserts a row and ends as given; returns its token, and what psql said.
sub transaction
{
	my ($node, $level, @end) = @_;
	my $id = ++$next;
	my ($status, $out, $err) = $node->psql('postgres',
		join(";\n", "BEGIN; SET LOCAL repl_ml.write_consistency = '$level'", 'SET LOCAL repl_ml.write_timeout = 500',
			"INSERT INTO t VALUES ($id, '$level')", 'SELECT repl_ml.transaction_token()', @end ? @end : 'COMMIT'),
		extra_params => [ '-v', 'VERBOSITY=verbose' ]);

	return ((split /\n/, $out)[0], $err);
}

# Begins such a transaction in a session that stays open; with no level it writes nothing.
sub open_transaction
{
	my ($node, $level, @end) = @_;
	my $id = ++$next;
	my %session = (in => "BEGIN;\n", out => '', err => '', id => $id);

	$session{in} .= "SET LOCAL repl_ml.write_consistency = '$level'; INSERT INTO t VALUES ($id, '$level');\n" if $level;
	$session{in} .= "SELECT repl_ml.transaction_token();\n";
	$session{in} .= "SELECT pg_backend_pid();\n" . join('', map { "$_;\n" } @end);
	$session{harness} = IPC::Run::start([ 'psql', '-XqAt', '-d', dsn($node) ],
		'<', \$session{in}, '>', \$session{out}, '2>', \$session{err},
		IPC::Run::timeout($PostgreSQL::Test::Utils::timeout_default));
	$session{harness}->pump until $session{out} =~ /^(\S+)\n(\d+)\n/;
	@session{qw(token pid)} = ($1, $2);
	return \%session;
}

# The session's end, whatever it is.
sub close_session
{
	my ($session) = @_;
	eval { $session->{harness}->finish };
	return;
}

# Tests what becomes of a token, on all nodes that are up.
sub is_status
{
	my ($token, $expected, $name, @where) = @_;
	foreach my $node (@where ? @where : @nodes)
	{
		is(sql($node, "SELECT repl_ml.transaction_status('$token')"), $expected, "$name: $expected, says " . $node->name);
	}
	return;
}

# Waits until that becomes true.
sub becomes
{
	my ($token, $expected, $name, @where) = @_;
	foreach my $node (@where ? @where : @nodes)
	{
		ok($node->poll_query_until('postgres', "SELECT repl_ml.transaction_status('$token')", $expected),
			"$name: becomes $expected, says " . $node->name);
	}
	return;
}

sub counts
{
	my ($node, $expected, $name) = @_;
	ok($node->poll_query_until('postgres', "SELECT string_agg(level || ' ' || transactions, ', ' ORDER BY level) FROM repl_ml.unacknowledged()", $expected),
		"$name: counted on " . $node->name . ": $expected");
	return;
}

# ---- the usual ends ----
foreach my $level ('one', 'quorum', 'all')
{
	my ($token) = transaction($n1, $level);
	is_status($token, 'acknowledged', "committed with level $level");
}
counts($_, 'all 0, quorum 0', 'nothing happened') foreach @nodes;
my ($token, $error) = transaction($n1, 'quorum', 'ROLLBACK');
is_status($token, 'aborted', 'rolled back');
($token, $error) = transaction($n1, 'quorum', 'SELECT 1 / 0', 'COMMIT');
is_status($token, 'aborted', 'ended by an error');
($token, $error) = transaction($n1, 'one', 'SAVEPOINT s', "INSERT INTO t VALUES (0, 's')", 'SELECT repl_ml.transaction_token()', 'ROLLBACK TO s', 'COMMIT');
is_status($token, 'acknowledged', 'with a savepoint rolled back');
my $again = sql($n1, 'BEGIN; SAVEPOINT s; SELECT repl_ml.transaction_token(); ROLLBACK TO s; SELECT repl_ml.transaction_token(); COMMIT');
is((split /\n/, $again)[0], (split /\n/, $again)[1], 'a transaction has one token');
is_status((split /\n/, $again)[0], 'acknowledged', 'a transaction without rows');

# ---- clients that lose their connection ----
my $session = open_transaction($n1, 'quorum');
is_status($session->{token}, 'unknown', 'in progress');
sql($n1, "SELECT pg_terminate_backend($session->{pid})");
becomes($session->{token}, 'aborted', 'connection lost in the middle');
close_session($session);

# ---- visible, and not acknowledged ----
foreach my $level ('quorum', 'all')
{
	stop_workers($n1, $n2, $n3);
	($token, $error) = transaction($n1, $level);
	like($error, qr/40003/, "$level, nobody applies it: the client is told");
	is(sql($n1, "SELECT count(*) FROM t WHERE id = $next"), '1', "$level, nobody applies it: the row is visible");
	is_status($token, 'committed', "$level, nobody applies it");
	counts($n1, $level eq 'all' ? 'all 1, quorum 0' : 'all 0, quorum 1', 'nobody applies it');
	continue_workers();
	becomes($token, 'acknowledged', "$level, later applied");
	counts($n1, 'all 0, quorum 0', 'later applied');
}
stop_workers($n1, $n3);
($token, $error) = transaction($n1, 'all');
is_status($token, 'committed', 'all, but n3 does not apply it');
my ($enough) = transaction($n1, 'quorum');
is_status($enough, 'acknowledged', 'quorum, and n3 does not apply it');
continue_workers();
becomes($token, 'acknowledged', 'all, and n3 applies it later');
stop_workers($n1, $n2, $n3);
$session = open_transaction($n1, 'quorum', 'SET LOCAL repl_ml.write_timeout = 0', 'COMMIT');
poll_until($n1, "SELECT wait_event = 'SyncRep' FROM pg_stat_activity WHERE pid = $session->{pid}");
is_status($session->{token}, 'committed', 'while the commit waits');
sql($n1, "SELECT pg_terminate_backend($session->{pid})");
close_session($session);
is_status($session->{token}, 'committed', 'the wait is terminated');
counts($n1, 'all 0, quorum 1', 'the wait is terminated');
continue_workers();
becomes($session->{token}, 'acknowledged', 'the wait is terminated, later applied');

# ---- prepared transactions ----
($token) = transaction($n1, 'quorum', q(PREPARE TRANSACTION 'p'));
is_status($token, 'unknown', 'prepared');
sql($n1, q(COMMIT PREPARED 'p'));
is_status($token, 'acknowledged', 'prepared and committed');
($token) = transaction($n1, 'quorum', q(PREPARE TRANSACTION 'p'));
sql($n1, q(ROLLBACK PREPARED 'p'));
is_status($token, 'aborted', 'prepared and rolled back');
($token) = transaction($n1, 'one', q(PREPARE TRANSACTION 'p'));
stop_workers($n1, $n3);
(undef, undef, $error) = $n1->psql('postgres',
	q(SET repl_ml.write_consistency = 'all'; SET repl_ml.write_timeout = 500; COMMIT PREPARED 'p'), extra_params => [ '-v', 'VERBOSITY=verbose' ]);
like($error, qr/40003/, 'prepared with level one, committed with all: the client is told');
is_status($token, 'committed', 'prepared with level one, committed with all');
counts($n1, 'all 1, quorum 0', 'prepared with level one, committed with all');
continue_workers();
becomes($token, 'acknowledged', 'prepared with level one, committed with all, later applied');

# ---- who may ask, and what ----
($token) = transaction($n2, 'quorum');
is(sql($n1, "SET ROLE plain; SELECT repl_ml.transaction_status('$token')"), 'acknowledged', 'a role without rights may ask');
like(sql($n1, 'SET ROLE plain; SELECT repl_ml.transaction_token()'), qr/^1\.1\.\d+\.\d+\.[0-9a-f]{8}\.[0-9a-f]{8}$/, 'and have a token');
psql_fails($n1, "SELECT repl_ml.transaction_status('$_')", '22023', 'invalid transaction token', 'whole text')
  foreach ('', 'x', $token . '0', substr($token, 1), '9' . $token, 'x' x 1000);
psql_fails($n1, 'SELECT repl_ml.transaction_status(NULL)', '22004', 'null is not allowed', 'value');
psql_fails($n1, 'BEGIN READ ONLY; SELECT repl_ml.transaction_token()', '25000', 'read-only transaction has no token', 'that writes');
psql_fails($n1, "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT repl_ml.transaction_status('$token')", '25001', 'when it began', 'READ COMMITTED');

# ---- a node that accepts connections and does not answer ----
($token) = transaction($n2, 'quorum');
push @stopped, $n2->{_pid};
kill STOP => $n2->{_pid};
is_status($token, 'acknowledged', 'its node does not answer', $n1, $n3);
continue_workers();
is_status($token, 'acknowledged', 'its node answers again');

# ---- refused ----
$n2->stop;
$n3->stop;
poll_until($n1, q(SELECT count(*) = 0 FROM repl_ml.nodes WHERE reachable AND NOT is_local));
($token, $error) = transaction($n1, 'quorum');
like($error, qr/57P03/, 'too few members: refused');
is_status($token, 'aborted', 'refused', $n1);
($enough) = transaction($n1, 'one');
is_status($enough, 'acknowledged', 'with level one, alone', $n1);
$_->start foreach ($n2, $n3);
is_status($token, 'aborted', 'refused');
wait_converged(\@nodes, 't');

# ---- the node of the transaction is killed ----
($token) = transaction($n1, 'quorum');
stop_workers($n1, $n2, $n3);
my $waiting = open_transaction($n1, 'quorum', 'SET LOCAL repl_ml.write_timeout = 0', 'COMMIT');
poll_until($n1, "SELECT wait_event = 'SyncRep' FROM pg_stat_activity WHERE pid = $waiting->{pid}");
# bits of the commit record tell the levels afterwards
my ($of_all) = transaction($n1, 'all');
my ($of_one) = transaction($n1, 'one');
my $last = open_transaction($n1, 'quorum');
my $empty = open_transaction($n1, '');
kill_server($n1);
close_session($_) foreach ($waiting, $last, $empty);
is_status($token, 'acknowledged', 'acknowledged before the kill', $n2, $n3);
is_status($waiting->{token}, 'unknown', 'killed in its wait', $n2, $n3);
is_status($last->{token}, 'unknown', 'killed in the transaction', $n2, $n3);
$n1->start;
# others may not pass for them
sql($n1, "INSERT INTO t VALUES ($_, 'new')") foreach (1001 .. 1005);
is_status($_->{token}, 'aborted', 'killed in the transaction, up again') foreach ($last, $empty);
is(sql($n1, "SELECT count(*) FROM t WHERE id = $waiting->{id}"), '1', 'killed in its wait, up again: the row is visible');
counts($n1, 'all 1, quorum 1', 'killed in its wait, up again');
is_status($of_all, 'committed', 'given up with level all, up again', $n1);
is_status($of_one, 'acknowledged', 'committed with level one, up again', $n1);
is_status($waiting->{token}, 'committed', 'killed in its wait, up again');
is_status($token, 'acknowledged', 'acknowledged before the kill, up again');
continue_workers();
becomes($waiting->{token}, 'acknowledged', 'killed in its wait, later applied');
counts($n1, 'all 0, quorum 0', 'killed in its wait, later applied');

# ---- the whole group goes down at once ----
stop_workers($n1, $n2, $n3);
($token) = transaction($n1, 'quorum');
my ($all) = transaction($n1, 'all');
($enough) = transaction($n1, 'one', q(PREPARE TRANSACTION 'p'));
$n1->psql('postgres', q(SET repl_ml.write_consistency = 'quorum'; SET repl_ml.write_timeout = 500; COMMIT PREPARED 'p'));
counts($n1, 'all 1, quorum 2', 'before a crash of all');
$n1->stop('immediate');
# those that are stopped cannot end
continue_workers();
$_->stop('immediate') foreach ($n2, $n3);
$_->start foreach @nodes;
becomes($_, 'acknowledged', 'after a crash of all') foreach ($token, $all, $enough);
counts($_, 'all 0, quorum 0', 'after a crash of all') foreach @nodes;
wait_converged(\@nodes, 't');

# ---- the node of the transaction is killed, for good ----
foreach my $node (@nodes)
{
	# survivors look after what a dropped node left once a heartbeat
	sql($node, 'ALTER SYSTEM RESET repl_ml.heartbeat_interval');
	sql($node, 'SELECT pg_reload_conf()');
}
($token) = transaction($n1, 'quorum');
($all) = transaction($n1, 'all');
# what has been sent to a worker that is stopped would still arrive
cut($n3, $n1);
my ($reached_n2) = transaction($n1, 'one');
poll_until($n2, "SELECT count(*) = 1 FROM t WHERE id = $next");
cut($n2, $n1);
my ($reached_nobody) = transaction($n1, 'one');
$last = open_transaction($n1, 'one');
kill_server($n1);
close_session($last);
# (an older change that waits for a row's lock, as it may at any time)
sql($n2, q(INSERT INTO repl_ml.parked_change (origin_node, origin_xid, origin_lsn, schema_name, table_name, action, change, sqlstate, message, put_aside)
VALUES (1, '3', '0/1', 'public', 't', 'insert', '{}', '55P03', '', true)));
is_status($all, 'acknowledged', 'acknowledged by all, something put aside at n2', $n2, $n3);
sql($n2, q(DELETE FROM repl_ml.parked_change WHERE put_aside));
is_status($reached_n2, 'acknowledged', 'level one and at n2 only, before the drop', $n2, $n3);
is_status($reached_nobody, 'unknown', 'at nobody, before the drop', $n2, $n3);
sql($n2, q(SELECT repl_ml.drop_node('n1')));
becomes($_, 'aborted', 'at nobody, after the drop', $n2, $n3) foreach ($reached_nobody, $last->{token});
becomes($token, 'acknowledged', 'acknowledged before the drop', $n2, $n3);
becomes($reached_n2, 'acknowledged', 'at n2 only, after the drop', $n2, $n3);
# what they had of it is compared, and copied, beside the streams
poll_until($_, q(SELECT NOT EXISTS (SELECT FROM repl_ml.dropped_node d, repl_ml.stat_apply a WHERE a.node_id <> ALL (d.compared)) AND NOT EXISTS (SELECT FROM repl_ml.table_sync WHERE state = 'pending'))) foreach $n2, $n3;
wait_converged([ $n2, $n3 ], 't');
is(sql($n3, "SELECT count(*) FROM repl_ml.transaction_record WHERE node_id = 1"),
	sql($n2, "SELECT count(*) FROM repl_ml.transaction_record WHERE node_id = 1"), 'n3 has got what n2 remembers');
$n2->stop;
is_status($reached_n2, 'acknowledged', 'at n2 only, which is down now', $n3);
$n2->start;

# ---- a token of another group ----
$n1->start;
# it is told as soon as it connects to a member
poll_until($n1, "SELECT state = 'dropped' FROM repl_ml.local_node");
psql_fails($n1, "SELECT repl_ml.transaction_status('$token')", '55000', 'has been dropped from its group', 'leave_group');
sql($n1, 'SELECT repl_ml.leave_group(force => true)');
psql_fails($n1, "SELECT repl_ml.transaction_status('$token')", '55000', 'not a member', 'create_group');
psql_fails($n1, 'SELECT repl_ml.transaction_token()', '55000', 'not a member', 'create_group');
sql($n1, call('create_group', 'other', 'n1', dsn($n1)));
psql_fails($n1, "SELECT repl_ml.transaction_status('$token')", '22023', 'of another group', 'in which');
is(sql($n1, 'SELECT count(*) FROM repl_ml.transaction_record'), '0', 'records go with the group');

done_testing();
