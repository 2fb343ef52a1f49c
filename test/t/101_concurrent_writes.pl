# Situations 2, 3, 4, 5, 11 and 14: two or three writers that do not know each other. Every node ends with
# the same row, under the merge of the writers' clocks, and with the same conflict under the same id.
use strict;
use warnings;
use Consistency;
use ReplMl;
use Situations;
use Test::More;

my @nodes = new_group(3, q(
CREATE TABLE t (id int PRIMARY KEY, a text, b text);
CREATE TABLE frozen (id int PRIMARY KEY, a text);
CREATE TABLE tie (id int PRIMARY KEY, a text);
CREATE TABLE vector (id int PRIMARY KEY, emb text, n int);
ALTER TABLE vector ALTER emb SET STORAGE EXTERNAL;
CREATE TABLE doc (id int PRIMARY KEY, j json, v text);
CREATE TABLE gen (id int PRIMARY KEY, a int, b int GENERATED ALWAYS AS (a * 10) STORED);
CREATE TABLE other (id int PRIMARY KEY);
CREATE TABLE race (id int PRIMARY KEY, v text);
SELECT repl_ml.add_all_tables();
INSERT INTO t SELECT i, 'a0', 'b0' FROM generate_series(1, 12) i;
INSERT INTO frozen SELECT i, 'a0' FROM generate_series(1, 3) i;
INSERT INTO tie SELECT i, 'a0' FROM generate_series(1, 4) i;
INSERT INTO vector SELECT i, repeat('0', 6000), 0 FROM generate_series(1, 4) i;
INSERT INTO doc SELECT i, '{"k": 0}', 'v0' FROM generate_series(1, 3) i;
INSERT INTO gen VALUES (1, 1);
INSERT INTO race SELECT i, 'base' FROM generate_series(1, 12) i));
my ($n1, $n2, $n3) = @nodes;
# the checks look at tombstones, which are removed every ten heartbeats
never_miss_heartbeats(@nodes);

# clocks: $clock{n1}{'t 2'} is what n1's write of row 2 of t got
my %clock;

sub writes
{
	my ($node, $table, $id, $sql) = @_;
	$clock{ $node->name }{"$table $id"} = written($node, $sql);
	return;
}

sub deletes
{
	my ($node, $table, $id, $sql) = @_;
	$clock{ $node->name }{"$table $id"} = deleted($node, $table, $id, $sql);
	return;
}

sub clock { my ($node, $table, $id) = @_; return $clock{$node}{"$table $id"} || die "$node has not written $table $id"; }

# A conflict of two of the writes. Winner and loser are [node, row]; no row is a deletion.
sub lost
{
	my ($table, $id, $type, $winner, $loser, $columns) = @_;
	return conflict($table, $id, $type, 'last_write',
		map({ [ $_->[0], clock($_->[0], $table, $id), $_->[1] ] } $winner, $loser), $columns);
}

# Tests a row, as text, and that its clock is the merge of what the writers (default: n1 and n2) gave it.
sub row_is
{
	my ($table, $id, $row, $name, @writers) = @_;
	rows_are(\@nodes, "SELECT to_jsonb(r) - '__repl_clock' FROM $table r WHERE id = $id", $row, $name);
	clock_is(\@nodes, $table, $id, $name, map { clock($_, $table, $id) } @writers ? @writers : qw(n1 n2));
	return;
}

sub gone
{
	my ($table, $id, $name, @writers) = @_;
	tombstone_is(\@nodes, $table, $id, $name, map { clock($_, $table, $id) } @writers ? @writers : qw(n1 n2));
	return;
}

prepare_ties();
cut_all(@nodes);
write_first($n1);
write_second($n2);
write_third($n3);
freeze();
heal_all(@nodes);
wait_converged(\@nodes, qw(t frozen tie vector doc gen other));
my @conflicts;
situation_2();
situation_3();
situation_4();
other_writes();
conflicts_are(\@nodes, 't', 'situations 2, 3 and 4 and others', @conflicts);
situation_5();
situation_11();
situation_14();
documents();
generated_columns();
three_writers();
equal_writes();
counted();
nothing_parked(\@nodes);
no_worker_failed(\@nodes);
retention();
done_testing();

# What n1 writes while it hears nobody; n2's and n3's writes come later.
sub write_first
{
	my ($node) = @_;

	writes($node, 't', 2, q(UPDATE t SET a = 'n1' WHERE id = 2));
	writes($node, 't', 3, q(UPDATE t SET a = 'n1' WHERE id = 3));
	deletes($node, 't', 4, q(BEGIN; DELETE FROM t WHERE id = 4; INSERT INTO other VALUES (4); COMMIT));
	writes($node, 't', 5, q(UPDATE t SET a = 'n1' WHERE id = 5));
	deletes($node, 't', 6);
	writes($node, 't', 7, q(UPDATE t SET a = NULL WHERE id = 7));
	writes($node, 't', 8, q(UPDATE t SET a = 'n1' WHERE id = 8));
	writes($node, 't', 9, q(UPDATE t SET a = 'same' WHERE id = 9));
	writes($node, 't', 20, q(INSERT INTO t VALUES (20, 'same', 'same')));
	writes($node, 't', 21, q(INSERT INTO t VALUES (21, 'n1', 'same')));
	writes($node, 't', 22, q(INSERT INTO t VALUES (22, 'n1')));
	writes($node, 'frozen', $_, "UPDATE frozen SET a = 'n1' WHERE id = $_") foreach 1, 2;
	deletes($node, 'frozen', 3);
	writes($node, 'tie', $_, "UPDATE tie SET a = 'n1' WHERE id = $_") foreach 1, 2, 4;
	deletes($node, 'tie', 3);
	writes($node, 'vector', 1, q(UPDATE vector SET emb = repeat('1', 6000) WHERE id = 1));
	writes($node, 'vector', 2, q(UPDATE vector SET n = 1 WHERE id = 2));
	writes($node, 'vector', 3, q(UPDATE vector SET emb = repeat('1', 6000) WHERE id = 3));
	deletes($node, 'vector', 4);
	writes($node, 'doc', 1, q(UPDATE doc SET j = '{"k": 1}' WHERE id = 1));
	writes($node, 'doc', 2, q(UPDATE doc SET j = '{"k": 1}' WHERE id = 2));
	writes($node, 'doc', 3, q(UPDATE doc SET j = '{"k": "n1 \u0000", "n": 1e500000}' WHERE id = 3));
	writes($node, 'gen', 1, q(UPDATE gen SET a = 2 WHERE id = 1));
}

sub write_second
{
	my ($node) = @_;

	writes($node, 't', 2, q(UPDATE t SET a = 'n2' WHERE id = 2));
	writes($node, 't', 3, q(UPDATE t SET b = 'n2' WHERE id = 3));
	writes($node, 't', 4, q(UPDATE t SET b = 'n2' WHERE id = 4));
	deletes($node, 't', 5, q(BEGIN; DELETE FROM t WHERE id = 5; INSERT INTO other VALUES (5); COMMIT));
	deletes($node, 't', 6);
	writes($node, 't', 7, q(UPDATE t SET b = NULL WHERE id = 7));
	deletes($node, 't', 8, q(UPDATE t SET id = 108 WHERE id = 8));
	writes($node, 't', 9, q(UPDATE t SET a = 'same' WHERE id = 9));
	writes($node, 't', 20, q(INSERT INTO t VALUES (20, 'same', 'same')));
	writes($node, 't', 21, q(INSERT INTO t VALUES (21, 'n2', 'same')));
	sql($node, q(UPDATE t SET id = 22 WHERE id = 10));
	$clock{n2}{'t 22'} = sql($node, 'SELECT __repl_clock FROM t WHERE id = 22');
	writes($node, 'frozen', 1, q(UPDATE frozen SET a = 'n2' WHERE id = 1));
	deletes($node, 'frozen', 2);
	writes($node, 'frozen', 3, q(UPDATE frozen SET a = 'n2' WHERE id = 3));
	writes($node, 'tie', $_, "UPDATE tie SET a = 'n2' WHERE id = $_") foreach 1, 2, 3, 4;
	writes($node, 'vector', 1, q(UPDATE vector SET n = 2 WHERE id = 1));
	writes($node, 'vector', 2, q(UPDATE vector SET emb = repeat('2', 6000) WHERE id = 2));
	writes($node, 'vector', 3, q(UPDATE vector SET emb = repeat('2', 6000) WHERE id = 3));
	writes($node, 'vector', 4, q(UPDATE vector SET n = 2 WHERE id = 4));
	writes($node, 'doc', 1, q(UPDATE doc SET j = '{"k":1}' WHERE id = 1));
	writes($node, 'doc', 2, q(UPDATE doc SET j = '{"k": 1}' WHERE id = 2));
	writes($node, 'doc', 3, q(UPDATE doc SET j = '{"k": "n2"}' WHERE id = 3));
	writes($node, 'gen', 1, q(UPDATE gen SET a = 3 WHERE id = 1));
}

# Only the ties have a third writer.
sub write_third
{
	my ($node) = @_;

	writes($node, 'tie', $_, "UPDATE tie SET a = 'n3' WHERE id = $_") foreach 1, 3;
	deletes($node, 'tie', 2);
}

# Seen failing: this and all below with the row that arrives winning in last_write (converge/resolve.c).
sub situation_2
{
	row_is('t', 2, '{"a": "n2", "b": "b0", "id": 2}', 'situation 2');
	push @conflicts, lost('t', 2, 'update_origin_differs',
		[ 'n2', '{"a": "n2", "b": "b0", "id": 2}' ], [ 'n1', '{"a": "n1", "b": "b0", "id": 2}' ], '{a}');
	is(sql($n1, q(SELECT count(DISTINCT conflict_id) FROM repl_ml.conflicts WHERE table_name = 't' AND key = '{2}')),
		'1', 'situation 2: exactly one conflict id');
}

# Different columns: by default a row is one value. For the rule that keeps both see 026_column_merge.
sub situation_3
{
	row_is('t', 3, '{"a": "a0", "b": "n2", "id": 3}', 'situation 3');
	push @conflicts, lost('t', 3, 'update_origin_differs',
		[ 'n2', '{"a": "a0", "b": "n2", "id": 3}' ], [ 'n1', '{"a": "n1", "b": "b0", "id": 3}' ], '{a,b}');
}

# A deletion against an update, either of them the later one, in a transaction with an unrelated row.
# Seen failing: with find_winner (converge/resolve.c) returning the first deletion, if there is one.
sub situation_4
{
	row_is('t', 4, '{"a": "a0", "b": "n2", "id": 4}', 'situation 4, the update is newer');
	gone('t', 5, 'situation 4, the deletion is newer');
	rows_are(\@nodes, 'SELECT id FROM other ORDER BY id', "4\n5", 'situation 4, the unrelated rows');
	push @conflicts,
	  lost('t', 4, 'delete_origin_differs', [ 'n2', '{"a": "a0", "b": "n2", "id": 4}' ], ['n1'], '{}'),
	  lost('t', 5, 'update_deleted', ['n2'], [ 'n1', '{"a": "n1", "b": "b0", "id": 5}' ], '{}');
}

# Deletions, nulls, a key that changes, identical and different inserts, an insert and a row that moves there.
sub other_writes
{
	gone('t', 6, 'delete and delete');
	row_is('t', 7, '{"a": "a0", "b": null, "id": 7}', 'nulls');
	gone('t', 8, 'update and a changed key');
	rows_are(\@nodes, 'SELECT a FROM t WHERE id = 108', 'a0', 'the row of the changed key');
	row_is('t', 9, '{"a": "same", "b": "b0", "id": 9}', 'identical updates');
	row_is('t', 20, '{"a": "same", "b": "same", "id": 20}', 'identical inserts');
	row_is('t', 21, '{"a": "n2", "b": "same", "id": 21}', 'different inserts');
	row_is('t', 22, '{"a": "a0", "b": "b0", "id": 22}', 'an insert and a row that moves there');
	push @conflicts,
	  lost('t', 7, 'update_origin_differs', [ 'n2', '{"a": "a0", "b": null, "id": 7}' ], [ 'n1', '{"a": null, "b": "b0", "id": 7}' ], '{a,b}'),
	  lost('t', 8, 'update_deleted', ['n2'], [ 'n1', '{"a": "n1", "b": "b0", "id": 8}' ], '{}'),
	  lost('t', 21, 'insert_exists', [ 'n2', '{"a": "n2", "b": "same", "id": 21}' ], [ 'n1', '{"a": "n1", "b": "same", "id": 21}' ], '{a}'),
	  lost('t', 22, 'insert_exists', [ 'n2', '{"a": "a0", "b": "b0", "id": 22}' ], [ 'n1', '{"a": "n1", "b": null, "id": 22}' ], '{a,b}');
}

# Situation 2 and its like, with everything frozen before the nodes hear of each other.
sub freeze
{
	foreach my $node (@nodes)
	{
		sql($node, 'VACUUM FREEZE frozen');
		is( sql($node, q(SELECT bool_and(age(f.xmin) > age(relfrozenxid)) FROM frozen f, pg_class c WHERE c.oid = 'frozen'::regclass)),
			't', 'situation 5: all rows are frozen on ' . $node->name);
	}
}

# The clock is in the row, so there is no rule of its own to switch off: fails with situation 2's.
sub situation_5
{
	row_is('frozen', 1, '{"a": "n2", "id": 1}', 'situation 5');
	gone('frozen', 2, 'situation 5, the deletion is newer');
	row_is('frozen', 3, '{"a": "n2", "id": 3}', 'situation 5, the update is newer');
	conflicts_are(\@nodes, 'frozen', 'situation 5',
		lost('frozen', 1, 'update_origin_differs', [ 'n2', '{"a": "n2", "id": 1}' ], [ 'n1', '{"a": "n1", "id": 1}' ], '{a}'),
		lost('frozen', 2, 'update_deleted', ['n2'], [ 'n1', '{"a": "n1", "id": 2}' ], '{}'),
		lost('frozen', 3, 'delete_origin_differs', [ 'n2', '{"a": "n2", "id": 3}' ], ['n1'], '{}'));
}

# Rows with a clock a day ahead, which no trigger gives: a counter that far ahead is followed by the row
# it is in and does not carry the node's own along (server/ticker.c), so whoever writes such a row next
# gives it exactly the counter after. Three nodes that do get three equal counters, the ordinary way.
sub prepare_ties
{
	sql($n1, q(BEGIN;
SET LOCAL repl_ml.guard_off = on;
ALTER TABLE tie DISABLE TRIGGER zz_repl_ml_update;
UPDATE tie SET __repl_clock = format('{1:%s}', repl_ml.max_counter(__repl_clock) + 86400000000)::repl_ml.vclock;
ALTER TABLE tie ENABLE ALWAYS TRIGGER zz_repl_ml_update;
COMMIT));
	wait_converged(\@nodes, 'tie');
}

# Equal counters: the writer with the greatest id wins, whoever applies.
# Seen failing: with clock_dot_before (wire/clock.c) not comparing nodes: a.counter <= b.counter.
sub situation_11
{
	my %counters;

	foreach my $node (@nodes)
	{
		my ($name, $id) = ($node->name, substr($node->name, 1));
		foreach my $row (1 .. 3)
		{
			my ($counter) = clock($name, 'tie', $row) =~ /\b$id:(\d+)/;
			$counters{$row}{$counter} = 1;
		}
	}
	is(scalar(keys %{ $counters{$_} }), 1, "situation 11: the writers of row $_ have the same counter") foreach 1 .. 3;

	my @all = qw(n1 n2 n3);
	row_is('tie', 1, '{"a": "n3", "id": 1}', 'situation 11, three updates', @all);
	gone('tie', 2, 'situation 11, the deletion has the greatest id', @all);
	row_is('tie', 3, '{"a": "n3", "id": 3}', 'situation 11, the deletion has the smallest id', @all);
	row_is('tie', 4, '{"a": "n2", "id": 4}', 'situation 11, two updates');
	rows_are(\@nodes, q(SELECT key, conflict_type, loser_node, repl_ml.merge(loser_clock, loser_clock), loser_row FROM repl_ml.conflicts WHERE table_name = 'tie' ORDER BY key, loser_node),
		join("\n", map { join '|', @$_ }
			[ '{1}', 'update_origin_differs', 'n1', clock('n1', 'tie', 1), '{"a": "n1", "id": 1}' ],
			[ '{1}', 'update_origin_differs', 'n2', clock('n2', 'tie', 1), '{"a": "n2", "id": 1}' ],
			[ '{2}', 'update_deleted', 'n1', clock('n1', 'tie', 2), '{"a": "n1", "id": 2}' ],
			[ '{2}', 'update_deleted', 'n2', clock('n2', 'tie', 2), '{"a": "n2", "id": 2}' ],
			[ '{3}', 'delete_origin_differs', 'n1', clock('n1', 'tie', 3), '' ],
			[ '{3}', 'update_origin_differs', 'n2', clock('n2', 'tie', 3), '{"a": "n2", "id": 3}' ],
			[ '{4}', 'update_origin_differs', 'n1', clock('n1', 'tie', 4), '{"a": "n1", "id": 4}' ]),
		'situation 11, the conflicts');
	my $ids = q(SELECT conflict_id, winner_node FROM repl_ml.conflicts WHERE table_name = 'tie' ORDER BY 1);
	rows_are(\@nodes, $ids, sql($n1, $ids), 'situation 11, ids and winners as on n1');
}

# 6 kB out of line. The value an update leaves alone is not in what PostgreSQL logs of it by itself.
# Seen failing: without with_whole_values in stamp_update (write/stamp.c).
sub situation_14
{
	my ($old, $one, $two) = map { $_ x 6000 } 0 .. 2;
	my %row = map { my ($id, $emb, $n) = @$_; $_->[3] => qq({"n": $n, "id": $id, "emb": "$emb"}) }
	  [ 1, $one, 0, '1 n1' ], [ 1, $old, 2, '1 n2' ], [ 2, $old, 1, '2 n1' ], [ 2, $two, 0, '2 n2' ],
	  [ 3, $one, 0, '3 n1' ], [ 3, $two, 0, '3 n2' ], [ 4, $old, 2, '4 n2' ];

	row_is('vector', 1, $row{'1 n2'}, 'situation 14, the embedding is older');
	row_is('vector', 2, $row{'2 n2'}, 'situation 14, the embedding is newer');
	row_is('vector', 3, $row{'3 n2'}, 'situation 14, two embeddings');
	row_is('vector', 4, $row{'4 n2'}, 'situation 14, a deletion and a scalar');
	conflicts_are(\@nodes, 'vector', 'situation 14',
		lost('vector', 1, 'update_origin_differs', [ 'n2', $row{'1 n2'} ], [ 'n1', $row{'1 n1'} ], '{emb,n}'),
		lost('vector', 2, 'update_origin_differs', [ 'n2', $row{'2 n2'} ], [ 'n1', $row{'2 n1'} ], '{emb,n}'),
		lost('vector', 3, 'update_origin_differs', [ 'n2', $row{'3 n2'} ], [ 'n1', $row{'3 n1'} ], '{emb}'),
		lost('vector', 4, 'delete_origin_differs', [ 'n2', $row{'4 n2'} ], ['n1'], '{}'));
}

# The type json has no equality: the same text is the same value.
sub documents
{
	rows_are(\@nodes, 'SELECT id, j FROM doc ORDER BY id', qq(1|{"k":1}\n2|{"k": 1}\n3|{"k": "n2"}), 'json');
	clock_is(\@nodes, 'doc', $_, "json $_", clock('n1', 'doc', $_), clock('n2', 'doc', $_)) foreach 1 .. 3;
	rows_are(\@nodes, q(SELECT key, conflict_type, winner_node, loser_node, lost_columns FROM repl_ml.conflicts WHERE table_name = 'doc' ORDER BY key),
		"{1}|update_origin_differs|n2|n1|{j}\n{3}|update_origin_differs|n2|n1|{j}", 'json, the conflicts, also of what jsonb cannot hold');
}

sub generated_columns
{
	row_is('gen', 1, '{"a": 3, "b": 30, "id": 1}', 'a generated column');
	rows_are(\@nodes, q(SELECT lost_columns, winner_node FROM repl_ml.conflicts WHERE table_name = 'gen'), '{a}|n2', 'a generated column is not lost');
}

# Three writers: rows 1 to 6 are written in every order of the nodes, in rows 7 to 12 the second writer
# deletes; at every node either of the others' versions comes first.
# Seen failing: where history_record (converge/history.c) kept the first verdict of a loser instead of the last one.
sub three_writers
{
	my @orders = ([ 1, 2, 3 ], [ 1, 3, 2 ], [ 2, 1, 3 ], [ 2, 3, 1 ], [ 3, 1, 2 ], [ 3, 2, 1 ]);

	foreach my $round (1, 2)
	{
		my @clocks;

		cut_all(@nodes);
		foreach my $i (0 .. 11)
		{
			my ($row, @writers) = ($i + 1, map { $nodes[ $_ - 1 ] } @{ $orders[ $i % 6 ] });
			foreach my $j (0 .. 2)
			{
				push @{ $clocks[$row] }, $i >= 6 && $j == 1
				  ? deleted($writers[$j], 'race', $row)
				  : written($writers[$j], "UPDATE race SET v = '$round " . $writers[$j]->name . "' WHERE id = $row");
			}
		}

		# round 1: first what the next node wrote; round 2: first what the one before it wrote
		let_in($nodes[$_], $nodes[ ($_ + $round) % 3 ]) foreach 0 .. 2;
		heal_all(@nodes);
		wait_converged(\@nodes, 'race');
		rows_are(\@nodes, 'SELECT id, v FROM race ORDER BY id',
			join("\n", map { sprintf '%d|%d n%d', $_ + 1, $round, $orders[ $_ % 6 ][2] } 0 .. 11),
			"three writers, round $round, the last one's version");
		clock_is(\@nodes, 'race', $_, "three writers, round $round, row $_", @{ $clocks[$_] }) foreach 1 .. 12;
		rows_are(\@nodes, qq(SELECT key, string_agg(loser_node || ' ' || conflict_type, ', ' ORDER BY loser_node), count(*) FROM repl_ml.conflicts
		                      WHERE table_name = 'race' AND coalesce(winner_row, loser_row)->>'v' LIKE '$round %' GROUP BY key ORDER BY length(key::text), key),
			join("\n", map { verdict_of_three($_, @{ $orders[ $_ % 6 ] }) } 0 .. 11),
			"three writers, round $round, both losers");
	}
	my $ids = q(SELECT conflict_id, loser_node, loser_clock, loser_row FROM repl_ml.conflicts WHERE table_name = 'race' ORDER BY 1);
	rows_are(\@nodes, $ids, sql($n1, $ids), 'three writers, ids as on n1');
}

# The losers of row i of race: the first two of the order.
sub verdict_of_three
{
	my ($i, $first, $second) = @_;
	my %type = ($first => 'update_origin_differs', $second => $i < 6 ? 'update_origin_differs' : 'delete_origin_differs');
	return sprintf '{%d}|%s|2', $i + 1, join(', ', map { "n$_ $type{$_}" } sort keys %type);
}

# A write that one node knows to replace an equal one of another.
sub equal_writes
{
	my %first;

	cut_all(@nodes);
	$first{n1} = written($n1, q(UPDATE t SET a = 'same' WHERE id = 11));
	$first{n2} = written($n2, q(UPDATE t SET a = 'same' WHERE id = 11));
	my $last = written($n2, q(UPDATE t SET a = 'n2' WHERE id = 11));
	my $deleted = deleted($n1, 't', 12);
	sql($n2, 'DELETE FROM t WHERE id = 12');
	sql($n2, q(INSERT INTO t VALUES (12, 'n2')));
	my $again = sql($n2, 'SELECT __repl_clock FROM t WHERE id = 12');
	heal_all(@nodes);
	wait_converged(\@nodes, 't');
	rows_are(\@nodes, 'SELECT a FROM t WHERE id = 11', 'n2', 'an update over one of two equal ones');
	clock_is(\@nodes, 't', 11, 'an update over one of two equal ones', $first{n1}, $last);
	rows_are(\@nodes, 'SELECT a FROM t WHERE id = 12', 'n2', 'an insert over one of two deletions');
	clock_is(\@nodes, 't', 12, 'an insert over one of two deletions', $deleted, $again);
	my $conflicts = q(SELECT conflict_id, key, conflict_type, winner_node, loser_node FROM repl_ml.conflicts WHERE table_name = 't' AND key IN ('{11}', '{12}') ORDER BY key);
	rows_are(\@nodes, $conflicts, sql($n1, $conflicts), 'equal writes, the same conflicts');
	like(sql($n1, $conflicts), qr/\|\{11\}\|update_origin_differs\|n2\|n1\n.*\|\{12\}\|delete_origin_differs\|n2\|n1$/, 'equal writes, the conflicts');
}

# What each node has counted of the equal writes of its peers: updates|inserts. n3 hears n1 first.
sub equal_counts
{
	return map { sql($_, 'SELECT sum(equal_updates), sum(equal_inserts) FROM repl_ml.stat_apply') } @nodes;
}

# Two nodes add one to the same number: one increment is lost, the rows are equal, and there is no conflict. It is counted on
# every node that sees both, and recorded where that is wanted. So are equal inserts; not what a counter adds up, nor what
# is delivered twice, nor one write after another.
# Seen failing: without count_equal (converge/row.c); with it counting versions that differ; without is_logged (converge/history.c).
sub counted
{
	my $name = 'two increments at once';
	my $log = sub { my ($what) = @_; foreach my $node (@nodes) { sql($node, "ALTER SYSTEM SET repl_ml.log_equal_writes = '$what'"); $node->reload; } };
	my $both = sub {
		my (@sql) = @_;
		cut_all(@nodes);
		sql($_, join ';', @sql) foreach $n1, $n2;
		let_in($n3, $n1);
		heal_all(@nodes);
		wait_converged(\@nodes, 'number');
	};
	my $recorded = q(SELECT key, conflict_type, winner_row = loser_row, lost_columns, winner_node, loser_node FROM repl_ml.conflicts WHERE table_name = 'number' ORDER BY key);

	sql($n1, q(CREATE TABLE number (id int PRIMARY KEY, n int, added int); SELECT repl_ml.add_table('number')));
	sql($n1, q(SELECT repl_ml.set_column_merge('number', 'added', 'counter'); INSERT INTO number SELECT i, 5, 0 FROM generate_series(1, 4) i));
	wait_converged(\@nodes);
	poll_until($_, q(SELECT count(*) = 4 FROM number)) foreach @nodes;
	my @before = map { [ split /\|/ ] } equal_counts();
	my $are = sub {
		my ($updates, $inserts, $what) = @_;
		is_deeply([ equal_counts() ], [ map { ($_->[0] + $updates) . '|' . ($_->[1] + $inserts) } @before ], $what);
	};

	$both->('UPDATE number SET n = n + 1 WHERE id = 1', 'INSERT INTO number VALUES (10, 1, 0)');
	rows_are(\@nodes, 'SELECT n FROM number WHERE id = 1', '6', $name);
	rows_are(\@nodes, $recorded, '', "$name, no conflict");
	$are->(1, 1, "$name: every node counts it, and the insert");

	$both->('UPDATE number SET added = added + 1 WHERE id = 2');
	sql($n1, 'UPDATE number SET n = 7 WHERE id = 1');
	poll_until($n2, 'SELECT n = 7 FROM number WHERE id = 1');
	sql($n2, 'UPDATE number SET n = 7 WHERE id = 1');
	wait_converged(\@nodes, 'number');
	rows_are(\@nodes, 'SELECT added FROM number WHERE id = 2', '2', 'a counter loses none');
	$are->(1, 1, 'neither a counter nor one update after another is counted');

	$log->('updates');
	poll_until($_, 'SELECT current_setting($$repl_ml.log_equal_writes$$) = $$updates$$') foreach @nodes;
	$both->('UPDATE number SET n = n + 1 WHERE id = 3', 'INSERT INTO number VALUES (11, 1, 0)');
	rows_are(\@nodes, $recorded, '{3}|update_origin_differs|t|{}|n2|n1', "$name, recorded");
	$log->('all');
	poll_until($_, 'SELECT current_setting($$repl_ml.log_equal_writes$$) = $$all$$') foreach @nodes;
	$both->('INSERT INTO number VALUES (12, 1, 0)');
	rows_are(\@nodes, $recorded, "{12}|insert_exists|t|{}|n2|n1\n{3}|update_origin_differs|t|{}|n2|n1", 'equal inserts, recorded');
	$are->(2, 3, 'and counted');
	rows_are(\@nodes, q(SELECT conflict_type, conflicts, equal FROM repl_ml.stat_conflicts WHERE table_name = 'number' ORDER BY 1), "insert_exists|1|1\nupdate_origin_differs|1|1", 'stat_conflicts tells them apart');
	$log->('none');
}

# A node removes the conflicts that it found longer ago than its conflict_retention says, and no others; and counts of
# hours, but not what has been counted of the whole time.
# Seen failing: without either DELETE in collect_garbage (group/supervisor.c), and with a stat_conflicts that counts what is kept.
sub retention
{
	my $rest = sql($n1, q(SELECT count(*) FROM repl_ml.conflicts WHERE table_name <> 't'));
	my %keeps = ($n1 => '1h', $n2 => '3h', $n3 => '-1');
	my $counted = sql($n1, q(SELECT sum(conflicts) FROM repl_ml.stat_conflicts WHERE table_name = 't'));
	my $by_hour = q(SELECT coalesce(sum(conflicts), 0) FROM repl_ml.conflicts_by_hour WHERE table_name = 't');
	my $counter = q(SELECT repl_ml.max_counter(__repl_clock) FROM repl_ml.heartbeat JOIN repl_ml.local_node USING (node_id));

	is(sql($n1, q(SELECT count(*) FROM repl_ml.conflicts WHERE table_name = 't')), $counted, 'all are counted');
	is(sql($n1, $by_hour), $counted, 'by the hour');
	is(sql($n1, q(SELECT sum(last_hour) FROM repl_ml.stat_conflicts WHERE table_name = 't')), $counted, 'and in the last one');
	foreach my $node (@nodes)
	{
		sql($node, "ALTER SYSTEM SET repl_ml.conflict_retention = '$keeps{$node}'");
		sql($node, q(ALTER SYSTEM SET repl_ml.heartbeat_interval = '100ms'));
		sql($node, q(SELECT pg_reload_conf()));
		poll_until($node, q(SELECT count(*) = 0 FROM repl_ml.conflict_news));
		is(sql($node, q(SELECT sum(conflicts) FROM repl_ml.stat_conflicts WHERE table_name = 't')), $counted, 'when the supervisor has added them up, too: ' . $node->name);
		sql($node, q(UPDATE repl_ml.conflict_history SET detected_at = now() - interval '2 hours' WHERE table_name = 't'));
		sql($node, q(UPDATE repl_ml.conflict_count SET since = since - interval '2 hours' WHERE span <> 'all' AND table_name = 't'));
	}
	poll_until($n1, q(SELECT count(*) = 0 FROM repl_ml.conflicts WHERE table_name = 't'));
	poll_until($n1, $by_hour, 0);
	poll_until($n1, q(SELECT count(*) = 0 FROM repl_ml.conflict_count WHERE span = 'minute' AND table_name = 't'));
	is(sql($n1, q(SELECT sum(conflicts), sum(last_hour) FROM repl_ml.stat_conflicts WHERE table_name = 't')), "$counted|0", 'retention: what was counted stays so');
	is(sql($n1, 'SELECT count(*) FROM repl_ml.conflicts'), $rest, 'retention: younger conflicts stay');
	foreach my $node ($n2, $n3)
	{
		# housekeeping is done every ten heartbeats
		my $now = sql($node, $counter);
		poll_until($node, "SELECT ($counter) > $now + 35 * 100000");
		cmp_ok(sql($node, q(SELECT count(*) FROM repl_ml.conflicts WHERE table_name = 't')), '>', 0, 'retention: ' . $node->name . ' keeps them longer');
	}
}
