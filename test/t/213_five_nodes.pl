# Five members: three are a quorum, whichever they are; two may be lost.
#
# Seen failing: quorum.c, repl_ml_quorum_required of quorum one less (a commit that only two have does not wait),
# one more (it waits though three have it); barrier.c, all_dropped_are_compared with a majority of those who are
# left (a barrier that does not know what was acknowledged).
use strict;
use warnings;
use FindBin;
use lib "$FindBin::Bin/..";
use Consistency;
use List::Util 'max';
use Membership;
use ReplMl;
use Test::More;

my @nodes = new_group(5, "CREATE TABLE t (id int PRIMARY KEY); SELECT repl_ml.add_table('t')");
my ($n1, $n2, $n3, $n4, $n5) = @nodes;
my $id = 0;

poll_until($_, "SELECT count(*) = 5 AND bool_and(reachable) FROM repl_ml.nodes WHERE state = 'ready'") foreach @nodes;
never_miss_heartbeats(@nodes);

# Begins to write the next row on n1.
sub begin_insert
{
	my ($level) = @_;
	$id++;
	return begin_session($n1, "SET repl_ml.write_consistency = '$level'", 'SET repl_ml.write_timeout = 0', "INSERT INTO t VALUES ($id)");
}

# The nodes that have the last row, of all that do not have their workers stopped.
sub owners
{
	return join ' ', map { $_->name } grep { is_visible($_, 't', "id = $id") } @_;
}

# any two of the others will do
foreach my $answering ([ $n2, $n3 ], [ $n4, $n5 ], [ $n2, $n5 ])
{
	my $names = join ' and ', map { $_->name } @$answering;
	my @silent = grep { my $node = $_; !grep { $_ == $node } @$answering } ($n2, $n3, $n4, $n5);

	stop_answers($n1, @silent);
	like(finish_session(begin_insert('quorum')), qr/^INSERT 0 1$/m, "quorum with $names");
	is(owners(@nodes), join(' ', map { $_->name } $n1, @$answering), "and the row is on n1, $names");

	# one more is silent: neither of the two left is enough
	stop_answers($n1, $answering->[0]);
	my $waits = begin_insert('quorum');
	poll_until($n1, "SELECT acknowledged = 2 AND required = 3 AND acknowledged_by = '{n1," . $answering->[1]->name . "}' FROM repl_ml.stat_write_waiters");
	ok(!is_visible($n1, 't', "id = $id"), 'with one of them it is not visible');
	continue_answers($answering->[0]);
	like(finish_session($waits), qr/^INSERT 0 1$/m, 'until the other one has it, too');
	continue_answers();
}

# all means five
stop_answers($n1, $n4);
my $all = begin_insert('all');
poll_until($n1, "SELECT acknowledged = 4 AND required = 5 AND waiting_for = '{n4}' FROM repl_ml.stat_write_waiters");
continue_answers();
like(finish_session($all), qr/^INSERT 0 1$/m, 'all');
is(owners(@nodes), 'n1 n2 n3 n4 n5', 'is all five');

# two are killed, and what was acknowledged a moment before is on the rest
like(finish_session(begin_insert('quorum')), qr/^INSERT 0 1$/m, 'quorum, then the origin and another one are killed');
kill_server($_) foreach ($n1, $n2);
ok(owners($n3, $n4, $n5) ne '', 'one of the three has it');
soon_miss_heartbeats($n3, $n4, $n5);
foreach my $node ($n3, $n4, $n5)
{
	poll_until($node, "SELECT array_agg(node_name ORDER BY node_name) FILTER (WHERE NOT reachable) = '{n1,n2}' FROM repl_ml.nodes");
	poll_until($node, "SELECT count(*) = 0 FROM repl_ml.stat_apply WHERE node_name IN ('n1', 'n2') AND state = 'streaming'");
}
# of the WAL of those two no more comes, and the end of it may have reached some only
my @ends = map { my $of = $_; [ map { sql($_, "SELECT repl_ml.counter(repl_ml.current_vector(), $of)") } ($n3, $n4, $n5) ] } (1, 2);
foreach my $i (0 .. 2)
{
	my $node = ($n3, $n4, $n5)[$i];

	if (grep { $_->[$i] < max(@$_) } @ends)
	{
		psql_fails($node, "SELECT repl_ml.barrier('2 s')", '57014', 'does not have everything', 'stat_apply');
	}
	else
	{
		is(sql($node, "SELECT count(repl_ml.barrier('1 min'))"), '1', 'a barrier on ' . $node->name . ' finds a majority');
		ok(is_visible($node, 't', "id = $id"), 'and shows what was acknowledged');
	}
	sql($node, "SET repl_ml.write_consistency = 'quorum'; INSERT INTO t SELECT 100 + max(id) FROM t");
}

# a third one is too many
kill_server($n3);
poll_until($n4, "SELECT count(*) = 3 FROM repl_ml.nodes WHERE NOT reachable");
psql_fails($n4, "SET repl_ml.write_consistency = 'quorum'; INSERT INTO t VALUES (1000)", '57P03', 'needs 3 of 5 members, but only 2 can be reached', 'repl_ml.health');
$_->start foreach ($n1, $n2, $n3);
# a moment's load is no failure of theirs
never_miss_heartbeats($n3, $n4, $n5);
poll_until($n4, "SELECT bool_and(reachable) FROM repl_ml.nodes WHERE state = 'ready'");
$id = 1001;
sql($n4, "SET repl_ml.write_consistency = 'all'; INSERT INTO t VALUES ($id)");
is(owners(@nodes), 'n1 n2 n3 n4 n5', 'everything continues by itself');
wait_converged(\@nodes, 't');
soon_miss_heartbeats($n3, $n4, $n5);

# two are lost and dropped, and of those who are left only the one that is down has what they had acknowledged
cut($_, $n1) foreach ($n4, $n5);
$id++;
sql($n1, "SET repl_ml.write_consistency = 'quorum'; INSERT INTO t VALUES ($id)");
is(owners(@nodes), 'n1 n2 n3', 'acknowledged by n2 and n3');
$n3->stop('immediate');
kill_server($_) foreach ($n1, $n2);
sql($n4, call('drop_node', $_)) foreach ('n1', 'n2');
poll_until($n4, 'SELECT count(*) = 2 AND bool_and(5 = ANY (compared)) FROM repl_ml.dropped_node');
psql_fails($n4, "SELECT repl_ml.barrier('2 s')", '57014', 'does not have everything', 'stat_apply');
$n3->start;
is(sql($n4, "SELECT count(repl_ml.barrier('1 min'))"), '1', 'a barrier has to wait for it');
ok(is_visible($n4, 't', "id = $id"), 'and then shows what was acknowledged');
done_testing();
