# A commit of which something was discarded on so many members that it can never be acknowledged stays committed, for
# whoever asks, and is no warning of its node any more: it is named where it was discarded.  What has been acknowledged
# remains so, whoever leaves the group.
#
# Seen failing: with whole_commits() instead of decided_commits(), which never says anything of a discarded commit (it is
# counted until a restart); with a list whose entries are judged anew whenever somebody asks (acknowledged, then committed); with a
# judge_transaction that knows nothing of dropped nodes (unknown is committed).
use strict;
use warnings;
use FindBin;
use lib "$FindBin::Bin/..";
use Consistency;
use ReplMl;
use PostgreSQL::Test::Utils;
use Test::More;

my ($n1, $n2, $n3) = my @nodes = new_group(3, <<'SQL');
CREATE TABLE model (id int PRIMARY KEY, score int);
SELECT repl_ml.add_all_tables();
SQL
wait_converged(\@nodes, 'model');
foreach my $node (@nodes)
{
	# not soon missed, and peers asked every few seconds
	sql($node, q(ALTER SYSTEM SET repl_ml.heartbeat_interval = '3s'));
	sql($node, 'SELECT pg_reload_conf()');
}
sql($_, 'ALTER TABLE model ADD CONSTRAINT positive CHECK (score > 0)') foreach ($n2, $n3);

# Writes a row in n1, which n2 and n3 park; the transaction's token.
sub park
{
	my ($level, $id) = @_;
	my $out = finish_session(begin_session($n1, "SET repl_ml.write_consistency = '$level'", "SET repl_ml.write_timeout = '60s'",
		'BEGIN', "INSERT INTO model VALUES ($id, -1)", 'SELECT repl_ml.transaction_token()', 'COMMIT'));
	like($out, qr/40003/, "$level, $id: parked");
	poll_until($_, "SELECT count(*) = 1 FROM repl_ml.parked_changes WHERE change->>'id' = '$id'") foreach ($n2, $n3);
	return $out =~ /^(1\.\S+)$/m ? $1 : undef;
}

sub discard { my ($node, $id) = @_; return sql($node, "SELECT repl_ml.discard_parked(id) FROM repl_ml.parked_changes WHERE change->>'id' = '$id'"); }
sub status { my ($node, $token) = @_; return sql($node, "SELECT repl_ml.transaction_status('$token')"); }
sub counted { return sql($n1, "SELECT string_agg(unacknowledged::text, ' ' ORDER BY level DESC) FROM repl_ml.stat_write_consistency"); }
sub wait_counted { poll_until($n1, "SELECT string_agg(unacknowledged::text, ' ' ORDER BY level DESC) FROM repl_ml.stat_write_consistency", $_[0]); return; }
sub health { my ($node, $check) = @_; return sql($node, "SELECT status, detail FROM repl_ml.health WHERE check_name = '$check'"); }

my $one = park('quorum', 1);
my $two = park('quorum', 2);
my $all = park('all', 3);
my $both = park('quorum', 4);
my $kept = park('quorum', 5);
is(counted(), '4 1', 'quorum and all: all are counted');
discard($n2, $_) foreach 1, 3, 4;
wait_counted('4 0');
is(health($n2, 'parked_changes') =~ /^error\|.* Transactions of which something was discarded here in the last two days: 3\.$/, 1, 'n2: they are named');
discard($n3, 4);
wait_counted('3 0');
is(counted(), '3 0', 'those are that one more member may come to have');

# the cause is mended on both
sql($_, 'ALTER TABLE model DROP CONSTRAINT positive') foreach $n2, $n3;
wait_counted('0 0');
is(health($n1, 'unacknowledged'), 'ok|No transaction is visible here that its write consistency has not acknowledged.', 'n1: nothing to warn of');
is(health($n2, 'parked_changes'), 'ok|None. Transactions of which something was discarded here in the last two days: 3.', 'n2: nor here, it is said');
is(health($n3, 'parked_changes'), 'ok|None. Transactions of which something was discarded here in the last two days: 1.', 'n3: nor here');
foreach my $node (@nodes)
{
	is(status($node, $one), 'acknowledged', $node->name . ': discarded on one, applied on two');
	is(status($node, $two), 'acknowledged', $node->name . ': applied on all');
	is(status($node, $all), 'committed', $node->name . ': discarded on one, of level all');
	is(status($node, $both), 'committed', $node->name . ': discarded on two');
}

# who had it leaves
sql($n3, 'SELECT repl_ml.leave_group()');
poll_until($_, "SELECT count(*) = 2 FROM repl_ml.nodes WHERE state = 'ready'") foreach $n1, $n2;
poll_until($n1, q(SELECT count(*) = 1 FROM repl_ml.write_members() WHERE reachable AND node_id <> 1));
is(counted(), '0 0', 'nobody is warned of it');
foreach my $node ($n1, $n2)
{
	is(status($node, $one), 'acknowledged', $node->name . ': acknowledged, and one that had it has left');
	is(status($node, $kept), 'acknowledged', $node->name . ': acknowledged still');
	is(status($node, $all), 'committed', $node->name . ': still discarded on one, of level all');
	is(status($node, $both), 'committed', $node->name . ': still discarded on the other');
}

# its node forgets who had it, but does not say that nobody had
$n1->stop('immediate');
$n1->start;
poll_until($n1, q(SELECT count(*) = 1 FROM repl_ml.write_members() WHERE reachable AND node_id <> 1));
wait_counted('0 0');
foreach my $node ($n1, $n2)
{
	is(status($node, $one), 'unknown', $node->name . ': after a crash, only one that has left would know');
	is(status($node, $kept), 'acknowledged', $node->name . ': what all have is acknowledged');
	is(status($node, $all), 'committed', $node->name . ': what one has not, of level all, is not');
}

done_testing();
