# Tombstones go by themselves on every node once nothing they suppress can still arrive, and no sooner:
# a late version of a deleted row meets its tombstone, and the outcome is the same everywhere.
use strict;
use warnings;
use ReplMl;
use Test::More;

my @nodes = new_group(3, q(
CREATE TABLE t (id int PRIMARY KEY, v text);
CREATE TABLE other (id int PRIMARY KEY);
SELECT repl_ml.add_all_tables();
INSERT INTO other VALUES (1);
INSERT INTO t SELECT i, 'old' FROM generate_series(1, 20) i));
my ($n1, $n2, $n3) = @nodes;
foreach my $node (@nodes)
{
	sql($node, q(ALTER SYSTEM SET repl_ml.heartbeat_interval = '100ms'));
	sql($node, 'SELECT pg_reload_conf()');
}

sub tombstones
{
	my ($node) = @_;
	return sql($node, q(SELECT key[1] FROM repl_ml.tombstone WHERE table_name = 't' GROUP BY 1 ORDER BY key[1]::int));
}

sub wait_until_gone
{
	my ($node) = @_;
	poll_until($node, q(SELECT count(*) = 0 FROM repl_ml.tombstone));
	return;
}

# Lets the node's housekeeping, every 10 heartbeats, run often enough to remove a stable tombstone.
sub wait_for_housekeeping
{
	my ($node) = @_;
	my $counter = q(SELECT repl_ml.max_counter(__repl_clock) FROM repl_ml.heartbeat h JOIN repl_ml.local_node USING (node_id));
	my $now = sql($node, $counter);
	poll_until($node, "SELECT ($counter) > $now + 35 * 100000");
	return;
}

# Nobody is away: they go.
sql($n1, 'DELETE FROM t WHERE id IN (1, 2)');
sql($n2, 'DELETE FROM t WHERE id = 3; INSERT INTO t VALUES (3, $$again$$)');
wait_converged(\@nodes, 't');
wait_until_gone($_) foreach @nodes;
wait_converged(\@nodes, 't');
is(sql($n3, 'SELECT id, v FROM t WHERE id <= 4 ORDER BY id'), "3|again\n4|old", 'the tombstones are gone, and so are the rows');

# n3 does not reach n1 and n2 for a while. What it writes meanwhile is concurrent to their deletions:
# 4 is updated before, 5 after the deletion, 6 deleted and inserted again, 7 deleted there as well.
cut($_, $n3) foreach $n1, $n2;
sql($n3, q(UPDATE t SET v = 'n3' WHERE id = 4));
cut($n3, $_) foreach $n1, $n2;
sql($n1, 'DELETE FROM t WHERE id IN (4, 5, 6, 7)');
poll_until($n2, 'SELECT count(*) = 0 FROM t WHERE id IN (4, 5, 6, 7)');
sql($n3, q(UPDATE t SET v = 'n3' WHERE id = 5));
sql($n3, q(DELETE FROM t WHERE id IN (6, 7)));
sql($n3, q(INSERT INTO t VALUES (6, 'again')));
heal($n3, $n1);
poll_until($n3, 'SELECT count(*) = 0 FROM t WHERE id = 4');
wait_for_housekeeping($n1);
is(tombstones($n1), "4\n5\n6\n7", 'n1 keeps its tombstones while it does not have all of n3');
is(tombstones($n2), "4\n5\n6\n7", 'so does n2');
is(tombstones($n3), "4\n5\n6\n7", 'and n3, which has all');
heal($n3, $n2);
heal($_, $n3) foreach $n1, $n2;
wait_converged(\@nodes, 't');
is(sql($n1, 'SELECT id, v FROM t WHERE id BETWEEN 4 AND 8 ORDER BY id'), "5|n3\n6|again\n8|old", 'the late versions met the tombstones');
foreach my $node (@nodes)
{
	is( sql($node, q(SELECT key, conflict_type, winner_node, loser_node FROM repl_ml.conflicts WHERE key IN ('{4}', '{5}') ORDER BY key)),
		"{4}|update_deleted|n1|n3\n{5}|delete_origin_differs|n3|n1",
		'with the same verdicts on ' . $node->name);
}
wait_until_gone($_) foreach @nodes;
wait_converged(\@nodes, 't');

# A member that is down keeps them too, and what it had not sent before it went is no surprise.
cut($_, $n3) foreach $n1, $n2;
sql($n3, q(UPDATE t SET v = 'before the stop' WHERE id IN (8, 9)));
$n3->stop('immediate');
sql($n1, 'DELETE FROM t WHERE id = 8');
sql($n2, 'DELETE FROM t WHERE id = 9');
poll_until($n1, 'SELECT count(*) = 0 FROM t WHERE id IN (8, 9)');
wait_for_housekeeping($_) foreach $n1, $n2;
is(tombstones($n1), "8\n9", 'n1 keeps tombstones while a member is down');
is(tombstones($n2), "8\n9", 'so does n2');
$n3->start;
heal($_, $n3) foreach $n1, $n2;
wait_converged(\@nodes, 't');
is(sql($n3, 'SELECT count(*) FROM t WHERE id IN (8, 9)'), '0', 'the later deletions win');
wait_until_gone($_) foreach @nodes;

# As long as a change is parked anywhere no tombstone goes: tried again, a version that was deleted does
# not come back, and a deletion still deletes.
sql($n3, q(
CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'refused'; END $$;
CREATE TRIGGER refuse BEFORE UPDATE ON t FOR EACH ROW WHEN (NEW.v = 'bad') EXECUTE FUNCTION refuse();
CREATE TRIGGER refuse_delete BEFORE DELETE ON t FOR EACH ROW WHEN (OLD.id = 11) EXECUTE FUNCTION refuse();
ALTER TABLE t ENABLE ALWAYS TRIGGER refuse, ENABLE ALWAYS TRIGGER refuse_delete));
sql($n1, q(UPDATE t SET v = 'bad' WHERE id = 10));
sql($n1, q(DELETE FROM t WHERE id = 11));
wait_converged(\@nodes);
is(sql($n3, q(SELECT string_agg(action, ' ' ORDER BY id) FROM repl_ml.parked_changes)), 'update delete', 'two changes are parked');
sql($n2, 'DELETE FROM t WHERE id = 10; DELETE FROM other');
wait_converged(\@nodes);
wait_for_housekeeping($_) foreach @nodes, @nodes;
is(sql($_, q(SELECT string_agg(DISTINCT table_name, ' ' ORDER BY table_name) FROM repl_ml.tombstone)), 'other t',
	$_->name . ' keeps tombstones while a change is parked on n3') foreach $n1, $n2;
sql($n3, 'DROP FUNCTION refuse CASCADE');
sql($n3, 'SELECT repl_ml.retry_parked(id) FROM repl_ml.parked_changes ORDER BY id');
is(sql($n3, 'SELECT count(*) FROM t WHERE id IN (10, 11)'), '0', 'tried again they leave no row');
wait_converged(\@nodes, 't', 'other');
is(sql($n1, 'SELECT count(*) FROM t WHERE id IN (10, 11)'), '0', 'nor anywhere else');
wait_until_gone($_) foreach @nodes;
is(sql($_, 'SELECT count(*) FROM repl_ml.parked_changes'), '0', 'nothing is parked on ' . $_->name) foreach @nodes;
done_testing();
