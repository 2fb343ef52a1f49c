# Every wait of a session ends when its statement is cancelled, its time is over or the session is terminated, and says
# what it waited for; leave_group(force => true) waits neither for a peer that hangs nor for commits that wait for it.
#
# Seen failing: leave_group without give_up_waits hangs behind the commits that wait.
use strict;
use warnings;
use FindBin;
use lib "$FindBin::Bin/..";
use Consistency;
use Membership;
use ReplMl;
use PostgreSQL::Test::Utils;
use Test::More;

my ($n1, $n2) = my @nodes = new_group(2, <<'SQL');
CREATE TABLE t (id int PRIMARY KEY, v text);
SELECT repl_ml.add_all_tables();
SQL
wait_converged(\@nodes, 't');
never_miss_heartbeats(@nodes);
stop_answers($n1, $n2);
my $far = '{1:1,2:900000000000000}';

# what waits, in a statement of its own; how it ends without a cancel
my %waits = (
	'barrier' => "SELECT repl_ml.barrier('10 min')",
	'a token' => "SELECT repl_ml.wait_for_vector('$far', '10 min')",
	'a read' => 'SELECT count(*) FROM t');
my $reads = "SET repl_ml.read_consistency = 'barrier'; SET repl_ml.read_timeout = '10 min'";

# Does such a thing to the session that waits, once it does.
sub interrupt
{
	my ($how, $statement) = @_;
	my $by = "application_name = 'waits' AND state = 'active' AND wait_event IS NOT NULL";

	poll_until($n1, "SELECT count(*) = 1 FROM pg_stat_activity WHERE $by");
	sql($n1, "SELECT $how(pid) FROM pg_stat_activity WHERE $by");
	return;
}

foreach my $what (sort keys %waits)
{
	my @before = ("SET application_name = 'waits'", $what eq 'a read' ? $reads : 'SELECT 1');
	my $session = begin_session($n1, @before, $waits{$what}, 'SHOW application_name');
	interrupt('pg_cancel_backend');
	my $out = finish_session($session);
	like($out, qr/ERROR:  57014: canceling statement due to user request/, "$what: cancelled");
	like($out, qr/^waits$/m, "$what: the session goes on");
	$session = begin_session($n1, @before, $waits{$what});
	interrupt('pg_terminate_backend');
	like(finish_session($session), qr/FATAL:  57P01/, "$what: terminated");
	like(finish_session(begin_session($n1, @before, "SET statement_timeout = '100ms'", $waits{$what})), qr/ERROR:  57014: canceling statement due to statement timeout/, "$what: statement_timeout");
}

# commits: whoever ends the wait, the client does not read success
foreach my $case ([ 'COMMIT', "INSERT INTO t VALUES (ID, 'x')" ], [ 'COMMIT PREPARED', "BEGIN; INSERT INTO t VALUES (ID, 'x'); PREPARE TRANSACTION 'p'", "COMMIT PREPARED 'p'" ])
{
	my ($what, @statements) = @$case;
	foreach my $how ('pg_cancel_backend', 'pg_terminate_backend')
	{
		my $id = sql($n1, 'SELECT coalesce(max(id), 0) + 1 FROM t');
		my $session = begin_session($n1, "SET repl_ml.write_consistency = 'quorum'", 'SET repl_ml.write_timeout = 0', map { s/ID/$id/r } @statements);
		wait_for_waiters($n1, 1);
		is(sql($n1, 'SELECT level, required, acknowledged, waiting_for FROM repl_ml.stat_write_waiters'), 'quorum|2|1|{n2}', "$what: a view shows who waits for whom");
		sql($n1, "SELECT $how(pid) FROM repl_ml.stat_write_waiters");
		my $out = finish_session($session);
		like($out, $how eq 'pg_cancel_backend' ? qr/ERROR:  40003: .*The wait was cancelled; no answer yet from: n2/s : qr/FATAL:  57P01|server closed/, "$what: $how");
		unlike($out, $what eq 'COMMIT' ? qr/^INSERT/m : qr/^COMMIT PREPARED/m, "$what: $how: no success");
		ok(is_visible($n1, 't', "id = $id"), "$what: $how: it is committed here");
	}
}
continue_answers();
wait_converged(\@nodes, 't');

# a peer that hangs, whatever one asks of it
my $data = $n2->data_dir;
my ($postmaster) = slurp_file("$data/postmaster.pid") =~ /^(\d+)/;
my @hung = ($postmaster, split ' ', `ps -o pid= --ppid $postmaster`);
kill STOP => @hung;
END { kill CONT => @hung if @hung }
my @sessions = map { begin_session($n1, "SET repl_ml.write_consistency = 'quorum'", 'SET repl_ml.write_timeout = 0', "INSERT INTO t VALUES ($_, 'x')") } 101 .. 103;
wait_for_waiters($n1, 3);
psql_fails($n1, "SET statement_timeout = '1s'; SELECT repl_ml.leave_group()", '57014|55000', 'statement timeout|has not received');
sql($n1, 'SELECT repl_ml.leave_group(force => true)');
like(finish_session($_), qr/ERROR:  40003: .*The wait was cancelled; no answer yet from: n2/s, 'leaving ends the waits of commits, honestly') foreach @sessions;
is(sql($n1, "SELECT count(*), count(*) FILTER (WHERE id > 100) FROM t"), '7|3', 'nothing of this node is lost');
is(sql($n1, "INSERT INTO t VALUES (104, 'x'); SELECT count(*) FROM pg_attribute WHERE attrelid = 't'::regclass AND attname = '__repl_clock'"), '0', 'the table is an ordinary one');
kill CONT => @hung;
@hung = ();
sql($n2, "SELECT repl_ml.drop_node('n1', if_exists => true)");
poll_until($n2, "SELECT count(*) = 0 FROM repl_ml.nodes WHERE state = 'ready' AND NOT is_local");
is(sql($n2, "SET repl_ml.write_consistency = 'all'; INSERT INTO t VALUES (200, 'x'); SELECT 1"), '1', 'the one that hung goes on');

done_testing();
