# What makes others diverge, as far as no other test has it: keys that are moved to one place, TRUNCATE
# against writes, an update before its insert, identical inserts, partitions attached later, orphans,
# tombstones and a member that goes for ever. On three nodes, n3 hearing the writers in either order.
use strict;
use warnings;
use ReplMl;
use Situations;
use Test::More;

my @nodes = new_group(3, <<'SQL');
CREATE TABLE moved (id int PRIMARY KEY, v text);
CREATE TABLE cleared (id int PRIMARY KEY, v text);
CREATE TABLE vector (id int PRIMARY KEY, emb text, n int);
ALTER TABLE vector ALTER emb SET STORAGE EXTERNAL;
CREATE TABLE same (id int PRIMARY KEY, j json, x float8, arr float4[], emb text, g int GENERATED ALWAYS AS (id * 2) STORED);
ALTER TABLE same ALTER emb SET STORAGE EXTERNAL;
CREATE TABLE event (day date, id int, v text, PRIMARY KEY (day, id)) PARTITION BY RANGE (day);
CREATE TABLE event_2024 PARTITION OF event FOR VALUES FROM ('2024-01-01') TO ('2025-01-01');
CREATE TABLE parent (id int PRIMARY KEY, v text);
CREATE TABLE child (id int PRIMARY KEY, parent_id int REFERENCES parent ON DELETE CASCADE, second_id int REFERENCES parent);
CREATE TABLE kept (id int PRIMARY KEY, v text);
INSERT INTO moved SELECT i, 'row ' || i FROM generate_series(1, 12) i;
INSERT INTO cleared SELECT i, 'old' FROM generate_series(1, 6) i;
INSERT INTO parent SELECT i FROM generate_series(1, 4) i;
INSERT INTO kept SELECT i, 'old' FROM generate_series(1, 6) i;
SELECT repl_ml.add_all_tables();
SQL
my ($n1, $n2, $n3) = @nodes;

foreach my $round (1, 2)
{
	in_one_partition($round);
}
update_before_insert();
partitions_later();
orphans();
parked_and_tried_again();
member_gone();
done_testing();

# Runs SQL on n1 and n2 while they hear nobody; n3 hears n1 first in round 1, n2 first in round 2.
sub in_one_partition
{
	my ($round) = @_;
	my ($first, $second) = $round == 1 ? ($n1, $n2) : ($n2, $n1);
	my $base = 100 * $round;

	sql($n3, "INSERT INTO cleared SELECT i, 'round' FROM generate_series($base + 1, $base + 6) i; INSERT INTO moved SELECT $base + i, 'row ' || i FROM generate_series(1, 12) i");
	wait_converged(\@nodes);
	cut_all(@nodes);
	sql($n2, "UPDATE cleared SET v = 'before' WHERE id = $base + 1");
	sql($n1, $_) foreach moves_of_n1($base), truncate_of_n1($base), identical($base);
	sql($n2, $_) foreach moves_of_n2($base), writes_against_truncate($base), identical($base);
	sql($n3, $_) foreach identical($base);
	let_in($n3, $first);
	let_in($n3, $second);
	heal_all(@nodes);
	wait_converged(\@nodes, qw(moved cleared same));
	moves_are($base, "moved keys, round $round");
	cleared_are($base, "TRUNCATE, round $round");
	rows_are(\@nodes, "SELECT count(*), min(g), length(min(emb)) FROM same WHERE id >= $base", '3|' . 2 * $base . '|6000', "identical inserts, round $round");
	clocks_of_identical($base, "identical inserts, round $round");
	rows_are(\@nodes, q(SELECT count(*) FROM repl_ml.conflicts WHERE table_name = 'same'), '0', "identical inserts, round $round, no conflict");
	return;
}

# Two rows that are moved to one key, a row moved to two keys, a row moved and written, a chain.
# Seen failing: without tombstone_insert in stamp_update (write/stamp.c).
sub moves_of_n1
{
	my ($b) = @_;
	return (
		"UPDATE moved SET id = $b + 20 WHERE id = $b + 1",
		"UPDATE moved SET id = $b + 21 WHERE id = $b + 3",
		"UPDATE moved SET id = $b + 23 WHERE id = $b + 4",
		"UPDATE moved SET id = $b + 25, v = 'n1' WHERE id = $b + 5",
		"UPDATE moved SET id = $b + 27 WHERE id = $b + 7",
		"BEGIN; UPDATE moved SET id = $b + 90 WHERE id = $b + 8; UPDATE moved SET id = $b + 8 WHERE id = $b + 9; UPDATE moved SET id = $b + 9 WHERE id = $b + 90; COMMIT");
}

sub moves_of_n2
{
	my ($b) = @_;
	return (
		"UPDATE moved SET id = $b + 20 WHERE id = $b + 2",
		"INSERT INTO moved VALUES ($b + 21, 'n2')",
		"UPDATE moved SET id = $b + 24 WHERE id = $b + 4",
		"UPDATE moved SET v = 'n2' WHERE id = $b + 5",
		"DELETE FROM moved WHERE id = $b + 7",
		"UPDATE moved SET v = 'n2' WHERE id = $b + 8");
}

# n2's writes are the later ones, so: its row has key 20 and 21; row 4 is at both its places; row 5 is
# where it was, as n2 wrote it, and where n1 moved it; row 7 is gone and where n1 moved it.
sub moves_are
{
	my ($b, $name) = @_;
	rows_are(\@nodes, "SELECT id - $b, v FROM moved WHERE id BETWEEN $b AND $b + 99 ORDER BY id", <<'END' =~ s/\n\z//r, $name);
5|n2
6|row 6
8|n2
9|row 8
10|row 10
11|row 11
12|row 12
20|row 2
21|n2
23|row 4
24|row 4
25|n1
27|row 7
END
	rows_are(\@nodes, "SELECT key[1]::int - $b, conflict_type, winner_node, loser_node FROM repl_ml.conflicts WHERE table_name = 'moved' AND key[1]::int BETWEEN $b AND $b + 99 ORDER BY 1",
		"5|delete_origin_differs|n2|n1\n8|update_origin_differs|n2|n1\n20|insert_exists|n2|n1\n21|insert_exists|n2|n1", "$name, the conflicts");
	my $ids = q(SELECT conflict_id FROM repl_ml.conflicts WHERE table_name = 'moved' ORDER BY 1);
	rows_are(\@nodes, $ids, sql($n1, $ids), "$name, the ids");
	return;
}

# A TRUNCATE deletes what its node has: rows inserted elsewhere meanwhile stay, later updates win,
# earlier ones lose, and both are recorded.
# Seen failing: without bury_all_rows in stamp_truncate (write/stamp.c).
sub truncate_of_n1
{
	my ($b) = @_;
	return ('TRUNCATE cleared', "INSERT INTO cleared VALUES ($b + 2, 'n1 again')");
}

sub writes_against_truncate
{
	my ($b) = @_;
	return (
		"UPDATE cleared SET v = 'after' WHERE id = $b + 3",
		"INSERT INTO cleared VALUES ($b + 10, 'meanwhile')",
		"DELETE FROM cleared WHERE id = $b + 4",
		"BEGIN; DELETE FROM cleared WHERE id = $b + 5; INSERT INTO cleared VALUES ($b + 5, 'again'); COMMIT");
}

sub cleared_are
{
	my ($b, $name) = @_;
	rows_are(\@nodes, "SELECT id - $b, v FROM cleared WHERE id > $b ORDER BY id", "2|n1 again\n3|after\n5|again\n10|meanwhile", $name);
	rows_are(\@nodes, "SELECT count(*) FROM cleared WHERE id < $b", '0', "$name, rows from before");
	rows_are(\@nodes, "SELECT key[1]::int - $b, conflict_type, winner_node, loser_node FROM repl_ml.conflicts WHERE table_name = 'cleared' AND key[1]::int > $b ORDER BY 1",
		"1|update_deleted|n1|n2\n3|delete_origin_differs|n2|n1\n5|delete_origin_differs|n2|n1", "$name, the conflicts");
	return;
}

# The same row inserted on all three nodes, to the last bit: floats, json, out-of-line values.
# Seen failing: with history_describe (converge/history.c) recording also where no column differs.
sub identical
{
	my ($b) = @_;
	return "INSERT INTO same SELECT i, '{\"a\":  1}', 'NaN', '{NaN,0.1}', repeat('e', 6000) FROM generate_series($b, $b + 2) i";
}

sub clocks_of_identical
{
	my ($b, $name) = @_;
	rows_are(\@nodes, "SELECT count(*) FROM same WHERE id >= $b AND __repl_clock::text LIKE '{1:%,2:%,3:%}'", '3', "$name, the clocks know all writers");
	return;
}

# n3 gets n2's update of what it does not have yet, with a large value that the update left alone.
# Seen failing: without with_whole_values in stamp_update (write/stamp.c); with what arrives last staying (converge/row.c).
sub update_before_insert
{
	my $name = 'an update before its insert';

	cut($n3, $n1);
	sql($n1, q(INSERT INTO vector SELECT i, repeat('1', 6000), 1 FROM generate_series(1, 3) i));
	poll_until($n2, 'SELECT count(*) = 3 FROM vector');
	my $clock = written($n2, 'UPDATE vector SET n = 2 WHERE id = 1');
	sql($n2, 'UPDATE vector SET id = 12 WHERE id = 2');
	my $deleted = deleted($n2, 'vector', 3);
	poll_until($n3, 'SELECT count(*) = 2 FROM vector');
	is(sql($n3, q(SELECT id, n, emb = repeat('1', 6000) FROM vector ORDER BY id)), "1|2|t\n12|1|t", "$name, whole");
	heal($n3, $n1);
	wait_converged(\@nodes, 'vector');
	rows_are(\@nodes, q(SELECT id, n, emb = repeat('1', 6000) FROM vector ORDER BY id), "1|2|t\n12|1|t", $name);
	clock_is(\@nodes, 'vector', 1, $name, $clock);
	tombstone_is(\@nodes, 'vector', 3, "$name, and a deletion", $deleted);
	rows_are(\@nodes, q(SELECT count(*) FROM repl_ml.conflicts WHERE table_name = 'vector'), '0', "$name, no conflict");
	return;
}

# A partition that comes later, also by ATTACH and with its columns elsewhere, resolves like the others.
sub partitions_later
{
	my $name = 'a partition attached later';
	my $bounds = "FOR VALUES FROM ('2025-01-01') TO ('2026-01-01')";

	sql($n1, "CREATE TABLE event_2025 PARTITION OF event $bounds");
	sql($_, "CREATE TABLE event_2025 (v text, id int NOT NULL, __repl_clock repl_ml.vclock NOT NULL DEFAULT repl_ml.tick(), day date NOT NULL); ALTER TABLE event ATTACH PARTITION event_2025 $bounds") foreach $n2, $n3;
	sql($n1, q(INSERT INTO event SELECT '2025-01-01', i, 'n1' FROM generate_series(1, 4) i));
	wait_converged(\@nodes, 'event');
	cut_all(@nodes);
	sql($n1, q(UPDATE event SET v = 'n1 later' WHERE id <= 3; INSERT INTO event VALUES ('2025-02-02', 9, 'n1'); UPDATE event SET v = 'n1' WHERE id = 4));
	sql($n2, q(UPDATE event SET v = 'n2' WHERE id = 1; DELETE FROM event_2025 WHERE id = 2; INSERT INTO event_2025 (day, id, v) VALUES ('2025-02-02', 9, 'n2'); UPDATE event SET day = '2024-05-05' WHERE id = 3));
	heal_all(@nodes);
	wait_converged(\@nodes, 'event');
	rows_are(\@nodes, 'SELECT tableoid::regclass, id, v FROM event ORDER BY day, id', "event_2024|3|n1\nevent_2025|1|n2\nevent_2025|4|n1\nevent_2025|9|n2", $name);
	rows_are(\@nodes, q(SELECT key, table_name, conflict_type, loser_node FROM repl_ml.conflicts WHERE table_name LIKE 'event%' ORDER BY key),
		"{2025-01-01,1}|event|update_origin_differs|n1\n{2025-01-01,2}|event|update_deleted|n1\n{2025-01-01,3}|event|update_deleted|n1\n{2025-02-02,9}|event|insert_exists|n1", "$name, the conflicts");
	return;
}

# Apply does not check foreign keys: a child without its parent is found afterwards, the same on every node.
sub orphans
{
	my $name = 'orphans';

	rows_are(\@nodes, q(SELECT count(*) FROM repl_ml.orphans('child')), '0', "$name, none");
	cut_all(@nodes);
	sql($n1, 'DELETE FROM parent WHERE id IN (1, 2)');
	sql($n2, 'INSERT INTO child VALUES (1, 1, 3), (2, 3, 2), (3, 1, 2), (4, 3, 4), (5, NULL, NULL)');
	heal_all(@nodes);
	wait_converged(\@nodes, 'parent', 'child');
	my $orphans = q(SELECT o::text FROM repl_ml.orphans('child') o ORDER BY 1);
	is(sql($n1, q(SELECT string_agg(constraint_name || key::text || ' ' || referenced || missing_key::text, ', ' ORDER BY constraint_name, key) FROM repl_ml.orphans('child'))),
		'child_parent_id_fkey{1} parent{1}, child_parent_id_fkey{3} parent{1}, child_second_id_fkey{2} parent{2}, child_second_id_fkey{3} parent{2}',
		"$name, each row and key that lacks its parent");
	rows_are(\@nodes, $orphans, sql($n1, $orphans), "$name, as on n1");
	sql($n3, q(INSERT INTO parent VALUES (1, 'again'); DELETE FROM child WHERE second_id = 2));
	wait_converged(\@nodes, 'parent', 'child');
	rows_are(\@nodes, q(SELECT count(*) FROM repl_ml.orphans('child')), '0', "$name, none any more");
	return;
}

# A change that one node cannot apply, and later versions of its row, that a third node makes of it.
# Seen failing: with what arrives last staying ("if (true)" in join_into_row, converge/row.c).
sub parked_and_tried_again
{
	my $name = 'a parked version and concurrent ones';

	sql($n3, q(ALTER TABLE kept ADD CHECK (v <> 'bad')));
	cut_all(@nodes);
	sql($n1, q(UPDATE kept SET v = 'bad' WHERE id IN (1, 2)));
	sql($n2, q(UPDATE kept SET v = 'n2' WHERE id IN (1, 3)));
	sql($n3, q(UPDATE kept SET v = 'n3' WHERE id = 2));
	sql($n1, q(UPDATE kept SET v = 'bad' WHERE id = 3));
	heal_all(@nodes);
	wait_converged(\@nodes);
	rows_are([ $n1, $n2 ], 'SELECT id, v FROM kept WHERE id < 4 ORDER BY id', "1|n2\n2|n3\n3|bad", $name);
	like(sql($n3, q(SELECT string_agg(change->>'id', ' ' ORDER BY change->>'id') FROM repl_ml.parked_changes)), qr/3$/, "$name, parked on n3");
	sql($n3, 'ALTER TABLE kept DROP CONSTRAINT kept_v_check');
	sql($n3, 'SELECT repl_ml.retry_parked(id) FROM repl_ml.parked_changes ORDER BY id');
	wait_converged(\@nodes, 'kept');
	rows_are(\@nodes, 'SELECT id, v FROM kept WHERE id < 4 ORDER BY id', "1|n2\n2|n3\n3|bad", "$name, tried again");
	my $ids = q(SELECT conflict_id, loser_node, loser_row FROM repl_ml.conflicts WHERE table_name = 'kept' ORDER BY 1);
	rows_are(\@nodes, $ids, sql($n1, $ids), "$name, the conflicts as on n1");
	is(sql($n1, q(SELECT key, loser_node FROM repl_ml.conflicts WHERE table_name = 'kept' ORDER BY key)), "{1}|n1\n{2}|n1\n{3}|n2", "$name, the conflicts");
	return;
}

# While a member is down tombstones stay, for what it has written; once it is dropped they go.
# Seen failing: with stable_vector (the SQL script) waiting for dropped members too.
sub member_gone
{
	my $name = 'a member that is gone';
	my @left = ($n1, $n2);
	my $tombstones = q(SELECT count(DISTINCT key) FROM repl_ml.tombstone WHERE table_name = 'kept');

	foreach my $node (@nodes)
	{
		sql($node, q(ALTER SYSTEM SET repl_ml.heartbeat_interval = '100ms'));
		sql($node, 'SELECT pg_reload_conf()');
	}
	poll_until($_, 'SELECT count(*) = 0 FROM repl_ml.tombstone') foreach @nodes;

	# n2 has n3's last writes, n1 has not; rows 1 and 3 are deleted by who has not seen them
	cut($n1, $n3);
	sql($n3, q(UPDATE kept SET v = 'last' WHERE id IN (1, 2)));
	poll_until($n2, q(SELECT count(*) = 2 FROM kept WHERE v = 'last'));
	$n3->stop('immediate');
	sql($n1, 'DELETE FROM kept WHERE id IN (1, 3)');
	let_in($n2, $n1);
	housekeeping($_) foreach @left;
	rows_are(\@left, $tombstones, '2', "$name, tombstones stay while it is down");
	sql($n1, q(SELECT repl_ml.drop_node('n3')));
	poll_until($n1, q(SELECT v = 'last' FROM kept WHERE id = 2));
	poll_until($_, 'SELECT count(*) = 0 FROM repl_ml.tombstone') foreach @left;
	is_equal_everywhere(\@left, 'kept', $name);
	rows_are(\@left, 'SELECT id, v FROM kept WHERE id < 4 ORDER BY id', '2|last', "$name, n3's last write is everywhere, the later deletions too");
	sql($n1, q(INSERT INTO kept VALUES (1, 'again'), (3, 'again')));
	poll_until($n2, q(SELECT count(*) = 2 FROM kept WHERE v = 'again'));
	return;
}

# Lets the node's housekeeping, every 10 heartbeats, run often enough to remove a stable tombstone.
sub housekeeping
{
	my ($node) = @_;
	my $counter = q(SELECT repl_ml.max_counter(__repl_clock) FROM repl_ml.heartbeat h JOIN repl_ml.local_node USING (node_id));
	my $now = sql($node, $counter);
	poll_until($node, "SELECT ($counter) > $now + 35 * 100000");
	return;
}
