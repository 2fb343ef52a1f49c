# Concurrent versions of a row end as one version with one clock on every node, in whatever order they
# arrive, under one conflict row that is the same everywhere; ordered versions never conflict.
use strict;
use warnings;
use ReplMl;
use Test::More;

my @nodes = new_group(3);
my ($n1, $n2, $n3) = @nodes;

# Every node by itself, and together again.
sub cut_all  { each_link(\&cut);  return; }
sub heal_all { each_link(\&heal); return; }

sub each_link
{
	my ($act) = @_;
	foreach my $to (@nodes)
	{
		$act->($to, $_) foreach grep { $_ != $to } @nodes;
	}
	return;
}

# All that a conflict row says which has to be the same on every node.
sub verdicts
{
	my ($node, $condition) = @_;
	return sql($node, <<"SQL");
SELECT conflict_id, table_name, key, conflict_type, resolution, winner_node, loser_node, lost_columns, winner_row::text, loser_row::text
FROM repl_ml.conflicts WHERE $condition ORDER BY conflict_id
SQL
}

sub same_verdicts
{
	my ($condition, $name) = @_;
	my $first = verdicts($n1, $condition);
	isnt($first, '', "$name: there are conflicts");
	is(verdicts($_, $condition), $first, "$name: verdicts of " . $_->name . ' as of n1') foreach $n2, $n3;
	return;
}

# The row of an id in "item", short: large values by their first letter.
sub item
{
	my ($id) = @_;
	return sql($n1, "SELECT a, b, doc, left(emb, 1), length(emb), n FROM item WHERE id = $id");
}

sql($n1, <<'SQL');
CREATE TABLE item (id int PRIMARY KEY, a text, b text, doc json, emb text, n int);
ALTER TABLE item ALTER emb SET STORAGE EXTERNAL;
CREATE TABLE race (id int PRIMARY KEY, v text);
SELECT repl_ml.add_all_tables();
INSERT INTO item SELECT i, 'a0', 'b0', '{"k": 0}', repeat('0', 6000), 0 FROM generate_series(1, 16) i;
INSERT INTO race SELECT i, 'base' FROM generate_series(1, 12) i;
SQL
poll_until($_, q(SELECT count(*) = 12 FROM race)) foreach $n2, $n3;
wait_converged(\@nodes, 'item', 'race');

# Situation 1: each update is made where the one before it has arrived.
foreach my $i (1 .. 10)
{
	my $node = $nodes[ $i % 3 ];
	poll_until($node, "SELECT n = $i - 1 FROM item WHERE id = 1");
	sql($node, "UPDATE item SET n = $i, a = 'ping ' || n WHERE id = 1");
}
wait_converged(\@nodes, 'item');
is(item(1), 'ping 9|b0|{"k": 0}|0|6000|10', 'ping-pong: the last update is there');
is(conflict_rows($_), '', 'ping-pong: no conflict on ' . $_->name) foreach @nodes;

# Situations 2, 3, 4, 5, 14 and others, all in one partition: n1 writes first, then n2, whose
# counters are greater.
cut_all();
sql($n1, $_) foreach (
	q(UPDATE item SET a = 'n1' WHERE id = 2),
	q(UPDATE item SET a = 'n1' WHERE id = 3),
	q(BEGIN; DELETE FROM item WHERE id = 4; INSERT INTO item (id, a) VALUES (104, 'unrelated'); COMMIT),
	q(UPDATE item SET a = 'n1' WHERE id = 5),
	q(UPDATE item SET a = 'n1' WHERE id = 6),
	q(DELETE FROM item WHERE id = 7),
	q(INSERT INTO item (id, a, doc, emb) VALUES (20, 'same', '{"k": 1}', repeat('s', 6000))),
	q(INSERT INTO item (id, a, b) VALUES (21, 'n1', 'same')),
	q(UPDATE item SET doc = '{"k": 1}' WHERE id = 8),
	q(UPDATE item SET doc = '{"k": 1}' WHERE id = 9),
	q(UPDATE item SET a = NULL WHERE id = 10),
	q(UPDATE item SET emb = repeat('1', 6000) WHERE id = 11),
	q(UPDATE item SET doc = '{"k": "n1 \u0000", "n": 1e500000}' WHERE id = 12),
	q(UPDATE item SET emb = repeat('1', 6000) WHERE id = 14),
	q(UPDATE item SET n = 1 WHERE id = 15));
sql($n2, $_) foreach (
	q(UPDATE item SET a = 'n2' WHERE id = 2),
	q(UPDATE item SET b = 'n2' WHERE id = 3),
	q(UPDATE item SET b = 'n2' WHERE id = 4),
	q(UPDATE item SET a = 'n2' WHERE id = 5),
	q(BEGIN; DELETE FROM item WHERE id = 6; INSERT INTO item (id, a) VALUES (106, 'unrelated'); COMMIT),
	q(DELETE FROM item WHERE id = 7),
	q(INSERT INTO item (id, a, doc, emb) VALUES (20, 'same', '{"k": 1}', repeat('s', 6000))),
	q(INSERT INTO item (id, a, b) VALUES (21, 'n2', 'same')),
	q(UPDATE item SET doc = '{"k":1}' WHERE id = 8),
	q(UPDATE item SET doc = '{"k": 1}' WHERE id = 9),
	q(UPDATE item SET b = NULL WHERE id = 10),
	q(UPDATE item SET emb = repeat('2', 6000) WHERE id = 11),
	q(UPDATE item SET doc = '{"k": "n2"}' WHERE id = 12),
	q(UPDATE item SET n = 2 WHERE id = 14),
	q(UPDATE item SET id = 115 WHERE id = 15));
sql($_, 'VACUUM FREEZE item') foreach @nodes;
heal_all();
wait_converged(\@nodes, 'item');

my $emb = '0|6000';
is(item(2), qq(n2|b0|{"k": 0}|$emb|0), 'update/update: the later one');
is(item(3), qq(a0|n2|{"k": 0}|$emb|0), 'different columns: the winner whole');
is(item(4), qq(a0|n2|{"k": 0}|$emb|0), 'delete before update: the row stays');
is(item(5), qq(n2|b0|{"k": 0}|$emb|0), 'update/update of frozen rows: the later one');
is(item(6), '', 'update before delete: the row is gone');
is(item(7), '', 'delete/delete: the row is gone');
is(item(8), qq(a0|b0|{"k":1}|$emb|0), 'equal but not identical json: the later one');
is(item(9), qq(a0|b0|{"k": 1}|$emb|0), 'identical updates');
is(item(10), qq(a0||{"k": 0}|$emb|0), 'nulls: the later row');
is(item(11), qq(a0|b0|{"k": 0}|2|6000|0), 'out-of-line values: the later one');
is(item(12), qq(a0|b0|{"k": "n2"}|$emb|0), 'json that jsonb cannot hold: the later one');
is(item(14), qq(a0|b0|{"k": 0}|$emb|2), 'embedding against scalar: the later row whole');
is(item(15), '', 'update before key change: the row is gone');
is(item(115), qq(a0|b0|{"k": 0}|$emb|0), '... and has moved');
is(item(20), 'same||{"k": 1}|s|6000|', 'identical inserts');
is(item(21), 'n2|same||||', 'insert/insert: the later one');
is(item(104) . item(106), 'unrelated|||||unrelated|||||', 'nothing else of those transactions is lost');

my $expected = <<'END';
item|{2}|update_origin_differs|n2|n1|{a}
item|{3}|update_origin_differs|n2|n1|{a,b}
item|{4}|delete_origin_differs|n2|n1|{}
item|{5}|update_origin_differs|n2|n1|{a}
item|{6}|update_deleted|n2|n1|{}
item|{8}|update_origin_differs|n2|n1|{doc}
item|{10}|update_origin_differs|n2|n1|{a,b}
item|{11}|update_origin_differs|n2|n1|{emb}
item|{12}|update_origin_differs|n2|n1|{doc}
item|{14}|update_origin_differs|n2|n1|{emb,n}
item|{15}|update_deleted|n2|n1|{}
item|{21}|insert_exists|n2|n1|{a}
END
chomp $expected;
is(conflict_rows($_), $expected, 'the conflicts, on ' . $_->name) foreach @nodes;
same_verdicts('true', 'one partition');
is( sql($n1, q(SELECT winner_row->>'b', loser_row IS NULL FROM repl_ml.conflicts WHERE key = '{4}')),
	'n2|t', 'delete before update: the winner is kept in the history');
is( sql($n1, q(SELECT winner_row IS NULL, loser_row->>'a' FROM repl_ml.conflicts WHERE key = '{6}')),
	't|n1', 'update before delete: the lost version is kept in the history');
is( sql($n3, q(SELECT length(winner_row->>'emb'), left(loser_row->>'emb', 1), length(loser_row->>'emb'), loser_row::jsonb ? '__repl_clock'
                 FROM repl_ml.conflicts WHERE key = '{14}')),
	'6000|1|6000|f', 'embedding against scalar: both versions are kept in the history');

# Situations 9 and 10: what n2 made of n1's rows arrives at n3 before them.
cut($n3, $n1);
sql($n1, q(INSERT INTO item (id, a) VALUES (30, 'n1'), (31, 'n1')));
poll_until($n2, 'SELECT count(*) = 2 FROM item WHERE id IN (30, 31)');
sql($n2, q(DELETE FROM item WHERE id = 30));
sql($n2, q(UPDATE item SET b = 'n2' WHERE id = 31));
poll_until($n3, 'SELECT count(*) = 1 FROM item WHERE id = 31');
is(sql($n3, 'SELECT a, b FROM item WHERE id = 31'), 'n1|n2', 'an update that arrives before its insert is whole');
heal($n3, $n1);
wait_converged(\@nodes, 'item');
is(item(30), '', 'a row deleted before its insert arrives stays deleted');
is(item(31), 'n1|n2||||', 'a row updated before its insert arrives stays updated');
is(conflict_rows($_), $expected, 'no conflict in that, on ' . $_->name) foreach @nodes;

# Three writers of one row: rows 1 to 6 are written in every order of the nodes, in rows 7 to 12 the
# second writer deletes; at every node either of the others' versions comes first.
my @orders = ([ 1, 2, 3 ], [ 1, 3, 2 ], [ 2, 1, 3 ], [ 2, 3, 1 ], [ 3, 1, 2 ], [ 3, 2, 1 ]);

sub write_race
{
	my ($round) = @_;
	foreach my $i (0 .. 5)
	{
		my ($first, $second, $third) = map { $nodes[ $_ - 1 ] } @{ $orders[$i] };
		my ($row, $with_delete) = ($i + 1, $i + 7);
		sql($_, "UPDATE race SET v = '$round " . $_->name . "' WHERE id IN ($row, $with_delete)") foreach $first;
		sql($second, "UPDATE race SET v = '$round " . $second->name . "' WHERE id = $row; DELETE FROM race WHERE id = $with_delete");
		sql($third, "UPDATE race SET v = '$round " . $third->name . "' WHERE id IN ($row, $with_delete)");
	}
	return;
}

foreach my $round (1, 2)
{
	cut_all();
	write_race($round);
	sql($_, 'INSERT INTO item (id) VALUES (' . (1000 * $round + substr($_->name, 1)) . ')') foreach @nodes;

	# round 1: first what the next node wrote; round 2: first what the one before it wrote
	my @first = map { $nodes[ ($_ + $round) % 3 ] } 0 .. 2;
	heal($nodes[$_], $first[$_]) foreach 0 .. 2;
	poll_until($nodes[$_], 'SELECT count(*) = 1 FROM item WHERE id = ' . (1000 * $round + substr($first[$_]->name, 1)))
	  foreach 0 .. 2;
	heal_all();
	wait_converged(\@nodes, 'race');
	is( sql($n1, 'SELECT id, v FROM race ORDER BY id'),
		join("\n", map { sprintf '%d|%d n%d', $_ + 1, $round, $orders[ $_ % 6 ][2] } 0 .. 11),
		"three writers, round $round: the last writer's version");
	is( sql($_, q(SELECT string_agg(loser_node, ' ' ORDER BY loser_node), count(*) FROM repl_ml.conflicts
	               WHERE table_name = 'race' AND coalesce(winner_row, loser_row)->>'v' LIKE ') . $round . q( %'
	               GROUP BY key ORDER BY length(key::text), key)),
		join("\n", map { join(' ', sort map { "n$_" } @{ $orders[ $_ % 6 ] }[ 0, 1 ]) . '|2' } 0 .. 11),
		"three writers, round $round: both losers are recorded once on " . $_->name)
	  foreach @nodes;
}
my $ids = q(SELECT string_agg(conflict_id::text || loser_node, E'\n' ORDER BY conflict_id) FROM repl_ml.conflicts);
is(sql($_, $ids), sql($n1, $ids), 'three writers: the same conflicts on ' . $_->name) foreach $n2, $n3;

# A write that one node knows to replace an equal one of another: all end alike.
cut_all();
sql($n1, q(DELETE FROM item WHERE id = 13; UPDATE item SET a = 'same' WHERE id = 16));
sql($n2, q(DELETE FROM item WHERE id = 13; UPDATE item SET a = 'same' WHERE id = 16));
sql($n2, q(INSERT INTO item (id, a) VALUES (13, 'n2'); UPDATE item SET a = 'n2' WHERE id = 16));
heal_all();
wait_converged(\@nodes, 'item');
is(item(13), 'n2|||||', 'delete before delete and insert: the new row');
is(item(16), qq(n2|b0|{"k": 0}|$emb|0), 'update before equal update and another: the last one');
	my $seen = q(SELECT conflict_id, loser_node FROM repl_ml.conflicts WHERE key IN ('{13}', '{16}') ORDER BY 1);
	is(sql($_, $seen), sql($n1, $seen), '... and the same conflicts on ' . $_->name) foreach $n2;

is(sql($_, 'SELECT count(*) FROM repl_ml.parked_changes'), '0', 'nothing is parked on ' . $_->name) foreach @nodes;
is(sql($_, 'SELECT sum(errors) FROM repl_ml.stat_apply'), '0', 'no error on ' . $_->name) foreach @nodes;
done_testing();
