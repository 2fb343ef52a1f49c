# What repl_ml does with core's insides has the effect it is for, also after a minor release of the server.
#
# An apply worker's flush wakes no walsender (server/news.c sets max_wal_senders around it), and page locks let four
# clients at a time ask the members (commit/status.c). Of the others, indimmediate in the relation cache (converge/unique.c)
# is seen by 102, the bits of the commit record (commit/recall.c) by 202, pgoutput's private data (write/output.c) by
# 014, and at the start of each stream by output.c itself.
#
# Seen failing: news.c without "max_wal_senders = 0" (125 to 180 wake-ups instead of 6); status.c
# without LockPage (nobody waits).
use strict;
use warnings;
use FindBin;
use lib "$FindBin::Bin/..";
use Consistency;
use List::Util qw(min);
use PostgreSQL::Test::Utils;
use ReplMl;
use Test::More;

my @nodes = my ($n1, $n2, $n3) = new_group(3, q(CREATE TABLE t (id int PRIMARY KEY, v int); SELECT repl_ml.add_table('t'); INSERT INTO t VALUES (1, 0)));
wait_converged(\@nodes, 't');

# How often a process has waited for something: each wake-up is one.
sub waits_of
{
	my ($pid) = @_;
	slurp_file("/proc/$pid/status") =~ /^voluntary_ctxt_switches:\s+(\d+)/m or die "no count for $pid";
	return $1;
}

# n1 applies what n3 writes, and flushes it for each commit; its walsender of n2 has nothing to send of it
SKIP:
{
	skip 'needs /proc', 1 if !-r "/proc/$$/status";
	my $commits = 200;
	my $fewest = $commits * 10;
	# on a machine so busy that a commit takes as long as walsenders may rest there is nothing to see
	foreach my $round (1 .. 5)
	{
		my $walsender = sql($n1, q(SELECT pid FROM pg_stat_replication WHERE application_name = 'repl_ml n2'));
		my $before = waits_of($walsender);
		sql($n3, join(' ', "SET repl_ml.write_consistency = 'all';", ('UPDATE t SET v = v + 1;') x $commits));
		$fewest = min($fewest, waits_of($walsender) - $before);
		last if $fewest < $commits / 4;
	}
	cmp_ok($fewest, '<', $commits / 4, "$commits flushes of an apply worker wake walsenders that have nothing to send less often: $fewest times");
}

# a server that answers nobody: who asks it waits for as long as a question may take
my $postmaster = (split /\n/, slurp_file($n3->data_dir . '/postmaster.pid'))[0];
kill STOP => $postmaster;
END { kill CONT => $postmaster if $postmaster }
my $question = 'SELECT repl_ml.ask_members(ARRAY[' . literal(dsn($n3)) . "], 'SELECT 1')";
my @sessions = map { begin_session($n1, $question) } 1 .. 9;
my $locks = q(FROM pg_locks WHERE locktype = 'page' AND relation = 'repl_ml.transaction_record'::regclass);
poll_until($n1, "SELECT count(*) FILTER (WHERE NOT granted) >= 5 AND count(*) FILTER (WHERE granted) > 1 $locks");
is(sql($n1, "SELECT count(*) <= 4 $locks AND granted"), 't', 'not more than four clients ask at a time');
is(sql($n1, "SELECT count(*) > 0 FROM pg_stat_activity WHERE wait_event = 'page' AND wait_event_type = 'Lock'"), 't', 'the others wait for their turn');
sql($n1, "SELECT pg_cancel_backend(pid) $locks");
finish_session($_) foreach @sessions;
is(sql($n1, "SELECT count(*) $locks"), '0', 'whoever is cancelled keeps nobody else waiting');

kill CONT => $postmaster;
undef $postmaster;
wait_converged(\@nodes, 't');
done_testing();
