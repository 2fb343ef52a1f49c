# An UPDATE is of the row that was updated, also where the table has another primary key than on the node that wrote, and
# what was changed is the key here: no row stays under the former key.
# Seen failing: without repl_ml_deletion_supersede each changed row stays under its former key as well.
use strict;
use warnings;
use ReplMl;
use Test::More;

my @nodes = new_group(2, q(
CREATE TABLE codes (id int NOT NULL, code text NOT NULL, v int, PRIMARY KEY (id));
INSERT INTO codes SELECT g, 'c' || g, 0 FROM generate_series(1, 6) g;
CREATE TABLE grown (id int, ws text NOT NULL, v int, PRIMARY KEY (id));
INSERT INTO grown SELECT g, 'd', 0 FROM generate_series(1, 6) g;
CREATE TABLE parts (id int, ws text, v int, PRIMARY KEY (id)) PARTITION BY RANGE (id);
CREATE TABLE parts_1 PARTITION OF parts FOR VALUES FROM (1) TO (4);
CREATE TABLE parts_2 (v int, id int NOT NULL, ws text);
ALTER TABLE parts ATTACH PARTITION parts_2 FOR VALUES FROM (4) TO (9);
INSERT INTO parts SELECT g, 'd', 0 FROM generate_series(1, 6) g;
SELECT repl_ml.add_all_tables()));
my ($n1, $n2) = @nodes;
my %keys = (
	codes => 'DROP CONSTRAINT codes_pkey, ADD PRIMARY KEY (code)',
	grown => 'DROP CONSTRAINT grown_pkey, ADD PRIMARY KEY (ws, id)',
	parts => 'DROP CONSTRAINT parts_pkey, ADD PRIMARY KEY (ws, id)');
foreach my $node (@nodes)
{
	sql($node, q(ALTER SYSTEM SET repl_ml.heartbeat_interval = '100ms'));
	sql($node, 'SELECT pg_reload_conf()');
}
wait_converged(\@nodes);

sub alter { my ($node) = @_; sql($node, join(' ', map { "ALTER TABLE $_ $keys{$_};" } sort keys %keys)); return; }
sub content { my ($node, $table, $column) = @_; return sql($node, "SELECT string_agg(format('%s%s=%s', id, $column, v), ',' ORDER BY id, v) FROM $table"); }

# n1 has the new keys; n2 changes what they are made of, and other things.
alter($n1);
sql($n2, q(UPDATE codes SET code = 'x' || id, v = 1 WHERE id <= 2; UPDATE codes SET v = 2 WHERE id = 3;
	INSERT INTO codes VALUES (7, 'c7', 7);
	UPDATE grown SET ws = 'e', v = 1 WHERE id = 1; UPDATE grown SET v = 2 WHERE id = 2;
	UPDATE parts SET ws = 'e', v = 1 WHERE id IN (1, 4); UPDATE parts SET v = 2 WHERE id = 2));
# the other way round: what is no key at n1 any more is the key at n2
sql($n1, q(UPDATE codes SET id = 40, v = 3 WHERE code = 'c4'));
# a key that two rows exchange where it is none
sql($n2, q(UPDATE codes SET code = 'other' WHERE id = 5; UPDATE codes SET code = 'c5', v = 6 WHERE id = 6;
	UPDATE codes SET code = 'c6', v = 5 WHERE id = 5));
my %wanted = (
	codes => '1x1=1,2x2=1,3c3=2,5c6=5,6c5=6,7c7=7,40c4=3',
	grown => '1e=1,2d=2,3d=0,4d=0,5d=0,6d=0',
	parts => '1e=1,2d=2,3d=0,4e=1,5d=0,6d=0');
foreach my $node (@nodes)
{
	poll_until($node, q(SELECT count(*) = 1 FROM codes WHERE v = 5));
	poll_until($node, q(SELECT count(*) = 1 FROM codes WHERE v = 3));
	foreach my $table (sort keys %wanted)
	{
		is(content($node, $table, $table eq 'codes' ? 'code' : 'ws'), $wanted{$table}, $node->name . " has each row of $table once");
	}
	is(sql($node, q(SELECT count(*) FROM repl_ml.parked_changes)), '0', $node->name . ' has nothing parked');
	is(sql($node, q(SELECT count(*) FROM repl_ml.conflicts)), '0', $node->name . ' has seen no conflict');
}

# The same everywhere: equal, and what was the key is free again, at the latest when n1 has forgotten that it was one.
alter($n2);
wait_converged(\@nodes, sort keys %wanted);
poll_until($n1, q(SELECT count(*) = 0 FROM repl_ml.tombstone));
sql($n2, q(INSERT INTO codes VALUES (1, 'c1', 8); INSERT INTO grown VALUES (1, 'd', 8)));
poll_until($n1, q(SELECT count(*) = 1 FROM codes WHERE code = 'c1' AND v = 8));
poll_until($n1, q(SELECT count(*) = 1 FROM grown WHERE ws = 'd' AND id = 1 AND v = 8));
wait_converged(\@nodes, sort keys %wanted);
is(sql($n1, q(SELECT count(*) FROM codes)), '8', 'and all rows are there');

done_testing();
