# A peer that has nothing to say answers when it is asked whether it is there. One that falls silent is noticed, also
# by a worker that was hurried last for a heartbeat only.
#
# Seen failing: reply.c, putmessage_noblock without regard to what the peer has received (the errors); worker.c, settle
# without the end of an urgency where nothing is volatile, and leisure without regard to what is volatile (the worker
# never waits for the stream again, and so never misses the peer); without end_old_session n4 never gets its slot.
use strict;
use warnings;
use IPC::Run;
use ReplMl;
use Test::More;

# of four members the level quorum needs two peers, and n4 is to be the third: of equal ones it is the last
my @nodes = new_group(4, q(CREATE TABLE t (id int PRIMARY KEY); SELECT repl_ml.add_table('t')));
my ($n1, $n2, $n3, $n4) = @nodes;

sub set_on
{
	my ($setting, @where) = @_;
	foreach my $node (@where)
	{
		sql($node, "ALTER SYSTEM SET $setting");
		sql($node, 'SELECT pg_reload_conf()');
	}
	return;
}

# nobody writes: what is sent last is the last of the WAL, and then there is nothing but answers
set_on("repl_ml.heartbeat_interval = '60s'", @nodes);
set_on("wal_receiver_timeout = '2s'", @nodes);
foreach my $round (1 .. 4)
{
	sql($n1, "INSERT INTO t VALUES (100 + $round)");
	wait_converged(\@nodes);
	my $then = sql($n4, 'SELECT clock_timestamp()');
	poll_until($_, "SELECT last_message_time > timestamptz '$then' + '1500 ms' FROM repl_ml.stat_apply WHERE node_name = 'n1'") foreach $n2, $n3, $n4;
}
is(sql($_, q(SELECT string_agg(last_error_message, ' ') FROM repl_ml.stat_apply WHERE last_error_message LIKE '%silent%')), '', 'nobody was missed on ' . $_->name)
  foreach @nodes;

# peers that are silent for less than two heartbeats count as reachable
set_on("repl_ml.heartbeat_interval = '5s'", $n1);

sub signal_worker
{
	my ($signal, @where) = @_;
	kill $signal => sql($_, q(SELECT pid FROM repl_ml.stat_apply WHERE node_name = 'n1')) foreach @where;
	return;
}

# n4 is the slowest for a while
cut($n4, $n1);
sql($n1, "SET repl_ml.write_consistency = quorum; INSERT INTO t VALUES ($_)") foreach 1 .. 10;
heal($n4, $n1);
wait_converged(\@nodes);
sql($n1, 'SET repl_ml.write_consistency = quorum; INSERT INTO t VALUES (11)');

# while a commit waits for the others, n4 hears of it in a heartbeat that has nothing else in it
signal_worker('STOP', $n2, $n3);
my $out = '';
my $write = IPC::Run::start([ 'psql', '-XqAt', '-v', 'ON_ERROR_STOP=1', '-d', dsn($n1), '-c', 'SET repl_ml.write_consistency = quorum',
		'-c', 'SET repl_ml.write_timeout = 0', '-c', 'INSERT INTO t VALUES (12)' ], '>&', \$out, IPC::Run::timeout(60));
poll_until($n4, 'SELECT count(*) = 1 FROM t WHERE id = 12');
my $heartbeat = q(SELECT sent_at FROM repl_ml.heartbeat JOIN repl_ml.nodes USING (node_id) WHERE node_name = 'n1');
my $last = sql($n4, $heartbeat);
poll_until($n4, "SELECT ($heartbeat) > '$last'");
is(sql($n1, q(SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep')), '1', 'the commit still waits');
signal_worker('CONT', $n2, $n3);
ok($write->finish, 'the commit is acknowledged when the others go on') or diag($out);

# on a busy machine it may be connecting anew
my $walsender = '';
until ($walsender)
{
	poll_until($n1, q(SELECT count(*) = 1 FROM pg_stat_replication WHERE application_name = 'repl_ml n4' AND state = 'streaming'));
	$walsender = sql($n1, q(SELECT pid FROM pg_stat_replication WHERE application_name = 'repl_ml n4' AND state = 'streaming'));
}
# the next try, a moment later, has another error
my $said = -s $n4->logfile;
kill STOP => $walsender;
$n4->wait_for_log(qr/ERROR:  node "n1" has been silent/, $said);
kill CONT => $walsender;
wait_converged(\@nodes, 't');

# a session that has the slot and serves nobody is ended by the peer that connects anew; here one of another reader
sql($n4, q(SELECT repl_ml.pause_apply('n1')));
my $slot = sql($n1, 'SELECT repl_ml.link_name(4)');
poll_until($n1, "SELECT NOT active FROM pg_replication_slots WHERE slot_name = '$slot'");
my $reader = IPC::Run::start([ 'pg_recvlogical', '-d', dsn($n1), '--slot', $slot, '--start', '--no-loop', '--status-interval=0', '--fsync-interval=0',
		'-f', '/dev/null', '-o', 'proto_version=1', '-o', 'publication_names=repl_ml', '-o', 'messages=true' ], '>&', \$out, IPC::Run::timeout(60));
poll_until($n1, "SELECT active FROM pg_replication_slots WHERE slot_name = '$slot'");
sql($n4, q(SELECT repl_ml.resume_apply('n1')));
sql($n1, 'INSERT INTO t VALUES (13)');
wait_converged(\@nodes, 't');
$reader->finish;
like($out, qr/terminating connection due to administrator command/, 'it was ended');
done_testing();
