# A node whose wall clock is behind those of most members counts by theirs: what it writes after a write that was acknowledged
# elsewhere wins over it. One clock that is ahead of the others carries nobody along. Both sides of a difference are warned.
use strict;
use warnings;
use ReplMl;
use Situations;
use Test::More;

plan skip_all => 'libfaketime is not installed' unless can_skew();

my @nodes = new_group(3, q(CREATE TABLE t (id int PRIMARY KEY, v text);
SELECT repl_ml.add_table('t');
INSERT INTO t SELECT i, 'old' FROM generate_series(1, 20) i));
my ($n1, $n2, $n3) = @nodes;

# How far the counter of a row is ahead of n2's wall clock, in seconds.
sub ahead
{
	my ($id) = @_;
	return sql($n2, q(SELECT round(extract(epoch FROM '2000-01-01 00:00Z'::timestamptz - clock_timestamp()) + repl_ml.max_counter(__repl_clock) / 1e6) FROM t WHERE id = ) . $id);
}

# Polls until a node's health tells this of the clocks.
sub clock_health
{
	my ($node, $pattern) = @_;
	poll_until($node, "SELECT status = 'error' AND detail ~ " . literal($pattern) . q( FROM repl_ml.health WHERE check_name = 'clock_skew'));
	return;
}

# n2 is 30 s behind the two others. (They are the ones whose clocks are wrong, because PostgreSQL 15 starts background workers out
# of a signal handler, where libfaketime does nothing: only their sessions and walsenders see it.)
foreach my $node ($n1, $n3)
{
	Situations::set_skew($node, '+30s');
	Situations::restart_skewed($node, 'fast');
}
clock_health($n2, 'node "n1" is at least (29|30)\.\d seconds ahead of this .*node "n3" is at least (29|30)\.\d seconds ahead of this');
clock_health($_, 'node "n2" is at least (29|30)\.\d seconds behind this') foreach $n1, $n3;

# Without having heard of it, n2 writes after n1 has: n2's is the later write, whatever its clock says.
# Seen failing: with repl_ml_ticker_follow (server/ticker.c) doing nothing, where n1 wins each time.
cut_all(@nodes);
foreach my $id (1 .. 5)
{
	my $first = written($n1, "UPDATE t SET v = 'n1, first' WHERE id = $id");
	# by as much as messages take n2 is behind those whom it follows
	poll_until($n2, "UPDATE t SET v = 'n2' WHERE id = 20 RETURNING repl_ml.max_counter(__repl_clock) > repl_ml.max_counter('$first')", "t\nUPDATE 1");
	written($n2, "UPDATE t SET v = 'n2, later' WHERE id = $id");
}
heal_all(@nodes);
wait_converged(\@nodes, 't');
rows_are(\@nodes, q(SELECT string_agg(DISTINCT v, ' ') FROM t WHERE id <= 5), 'n2, later', 'what was written later wins');
is(sql($n1, 'SELECT count(*), min(winner_node), max(loser_node) FROM repl_ml.conflicts'), '5|n2|n1', 'in conflicts that were some');
cmp_ok(ahead(1), '>', 10, 'n2 counts by the clocks of the others');

# One of three is fast: its own counters are, nobody follows it further than max_clock_skew.
# Seen failing: with the clock of one member instead of most (compare_clocks, group/supervisor.c).
Situations::set_skew($n3, '+0s');
Situations::set_skew($n1, '+3600s');
clock_health($n2, 'node "n1" is at least 3(599|600)\.\d seconds ahead of this');
clock_health($n1, 'node "n2" is at least 3(599|600)\.\d seconds behind this');
written($n1, q(UPDATE t SET v = 'n1, fast' WHERE id = 11));
poll_until($n2, q(SELECT v = 'n1, fast' FROM t WHERE id = 11));
cmp_ok(ahead(11), '>', 3000, 'the counters of n1 are fast');
written($n2, q(UPDATE t SET v = 'n2' WHERE id = 12));
cmp_ok(ahead(12), '<', 600, 'nobody follows one clock');
wait_converged(\@nodes, 't');
nothing_parked(\@nodes);
done_testing();
