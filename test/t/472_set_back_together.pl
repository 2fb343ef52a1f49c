# Two of three nodes are set back together while the third is down, and write before it can tell them. What one of them has of the
# other's late writes is no newer than what both had forgotten, either: all are in conflict with that, and logged, on every node.
#
# Seen failing before a node that comes back renamed the late writes of others, too (former.c): those that the other one had
# passed for newer, and what had been forgotten went without a word.
use strict;
use warnings;
use Membership;
use ReplMl;
use Test::More;

my ($n1, $n2, $n3) = my @nodes = new_group(3, <<'SQL');
CREATE TABLE t (id int PRIMARY KEY, v text);
CREATE TABLE merged (id int PRIMARY KEY, a text, b text);
INSERT INTO t SELECT g, 'old' FROM generate_series(1, 20) g;
INSERT INTO merged VALUES (1, 'a', 'b');
SELECT * FROM repl_ml.add_all_tables();
SELECT repl_ml.set_column_merge('merged', 'a', 'independent');
SELECT repl_ml.set_column_merge('merged', 'b', 'independent');
SQL
my @tables = qw(t merged);
poll_until($_, q(SELECT count(*) = 2 AND sum(pending_copies) = 0 FROM repl_ml.tables WHERE state = 'replicated')) foreach @nodes;
wait_converged(\@nodes, @tables);

sub id_of { my ($node) = @_; return sql($node, 'SELECT node_id FROM repl_ml.local_node') }
sub all_reachable { poll_until($_, q(SELECT count(*) = 3 AND bool_and(reachable) FROM repl_ml.write_members())) foreach @nodes; return }

# what both forget, of each of them and of n3
$_->stop foreach $n1, $n2;
my %saved = map { $_->name => save_directory($_) } $n1, $n2;
$_->start foreach $n1, $n2;
all_reachable();
sql($n1, q(SET repl_ml.write_consistency = 'all'; UPDATE t SET v = 'forgotten n1' WHERE id IN (1, 5, 6, 8); INSERT INTO t VALUES (101, 'forgotten n1'); UPDATE merged SET a = 'forgotten'));
sql($n2, q(SET repl_ml.write_consistency = 'all'; UPDATE t SET v = 'forgotten n2' WHERE id IN (2, 7)));
sql($n3, q(SET repl_ml.write_consistency = 'all'; UPDATE t SET v = 'by n3' WHERE id = 3; DELETE FROM t WHERE id = 4));
$_->stop foreach @nodes;
foreach my $node ($n1, $n2) { restore_in_place($saved{ $node->name }, $node->data_dir); $node->start }

# what they write late reaches both: of one, of the other, of one above the other's
poll_until($_, q(SELECT count(*) = 2 FROM repl_ml.write_members() WHERE reachable)) foreach $n1, $n2;
sql($n1, q(SET repl_ml.write_consistency = quorum; UPDATE t SET v = 'late n1' WHERE id IN (1, 3, 4, 5, 7, 9); DELETE FROM t WHERE id = 6; INSERT INTO t VALUES (101, 'late n1'), (102, 'late n1'); UPDATE merged SET b = 'late'));
sql($n2, q(SET repl_ml.write_consistency = quorum; UPDATE t SET v = 'late n2' WHERE id IN (2, 5, 10)));
is(sql($_, q(SELECT count(*) FROM t WHERE v LIKE 'late%')), '10', 'both have all that is late: ' . $_->name) foreach $n1, $n2;

$n3->start;
poll_until($_, q(SELECT node_id >= 4 AND state = 'ready' FROM repl_ml.local_node)) foreach $n1, $n2;
all_reachable();
foreach my $node (@nodes)
{
	poll_until($node, q(SELECT count(*) = 0 FROM repl_ml.table_sync y JOIN repl_ml.member m USING (node_id) WHERE y.state = 'pending' AND m.state <> 'dropped'));
	poll_until($node, q(SELECT count(*) = 2 AND bool_and(state = 'streaming') FROM repl_ml.stat_apply));
}
wait_converged(\@nodes, @tables);
is(sql($_, q(SELECT string_agg(id || ' ' || v, ', ' ORDER BY id) FROM t WHERE id <= 10 OR id > 100)),
	'1 late n1, 2 late n2, 3 late n1, 4 late n1, 5 late n2, 7 late n1, 8 forgotten n1, 9 late n1, 10 late n2, 101 late n1, 102 late n1', 'what both times wrote is there: ' . $_->name) foreach @nodes;
is(sql($_, 'SELECT a || b FROM merged'), 'forgottenlate', 'columns of their own are merged: ' . $_->name) foreach @nodes;
is(sql($_, q(SELECT string_agg(DISTINCT key::text || ' ' || (loser_row ->> 'v'), ', ') FROM repl_ml.conflicts WHERE table_name = 't' AND loser_row IS NOT NULL AND loser_row ->> 'v' NOT LIKE 'late%')),
	'{101} forgotten n1, {1} forgotten n1, {2} forgotten n2, {3} by n3, {5} forgotten n1, {6} forgotten n1, {7} forgotten n2', 'what had been forgotten is a conflict: ' . $_->name) foreach @nodes;
my ($one, $two) = map { id_of($_) } $n1, $n2;
is(sql($n3, qq(SELECT count(*) FROM repl_ml.member WHERE (node_id, former_id) IN (($one, 1), ($two, 2)) AND former_counter > former_safe)), '2', 'members know what they were');
is(sql($_, q(SELECT string_agg(detail, ' ') FROM repl_ml.health WHERE check_name IN ('membership', 'applying', 'sending', 'parked_changes') AND status <> 'ok')), '', 'health of ' . $_->name) foreach @nodes;
done_testing();
