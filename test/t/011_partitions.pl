# A partitioned table is one replicated table: each node may lay its partitions out in its own way,
# and rows, keys that move a row and deletions find their place on every node.
use strict;
use warnings;
use lib 'test';
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use ReplMl;
use Test::More;

my ($n1, $n2) = my @nodes = new_group(2, <<'SQL');
CREATE TABLE event (day date, id int, v text, n int DEFAULT 0, PRIMARY KEY (day, id)) PARTITION BY RANGE (day);
CREATE TABLE event_2024 PARTITION OF event FOR VALUES FROM ('2024-01-01') TO ('2025-01-01');
CREATE TABLE event_2025 PARTITION OF event FOR VALUES FROM ('2025-01-01') TO ('2026-01-01');
CREATE TABLE deep (a text, b int, v text, PRIMARY KEY (b, a)) PARTITION BY LIST (a);
CREATE TABLE deep_x PARTITION OF deep FOR VALUES IN ('x') PARTITION BY RANGE (b);
CREATE TABLE deep_x1 PARTITION OF deep_x FOR VALUES FROM (0) TO (100);
CREATE TABLE deep_rest PARTITION OF deep DEFAULT;
INSERT INTO event SELECT day, 1, 'before' FROM unnest('{2024-03-01, 2025-03-01}'::date[]) day;
SELECT repl_ml.add_all_tables();
SQL

is(sql($_, q(SELECT string_agg(relation::text, ' ' ORDER BY relation::text) FROM repl_ml.tables)), 'deep event', 'roots are replicated, ' . $_->name)
  foreach @nodes;
psql_fails($n1, q(SELECT repl_ml.add_table('event_2024')), '55000', 'event_2024 is a partition', 'add_table.*public.event');
is_equal_everywhere(\@nodes, 'event', 'rows from before');

sub exchange { wait_converged(\@nodes) }

# Tests the rows of a query on both nodes, after an exchange.
sub rows_are
{
	my ($query, $rows, $name) = @_;
	exchange();
	is(sql($_, $query), $rows, "$name, on " . $_->name) foreach @nodes;
}

my $events = 'SELECT tableoid::regclass, day, id, v FROM event ORDER BY day, id';

writes();
new_partitions();
row_movement();
column_order();
truncates();
detached_partition();
missing_partition();
other_bounds();

exchange();
is_equal_everywhere(\@nodes, $_) foreach qw(event deep other);
foreach my $node (@nodes)
{
	is(conflict_rows($node), '', 'no conflict on ' . $node->name);
	is(sql($node, 'SELECT count(*) FROM repl_ml.parked_changes'), '0', 'nothing parked on ' . $node->name);
}
done_testing();

sub writes
{
	sql($n1, <<'SQL');
INSERT INTO event VALUES ('2024-05-05', 2, 'root'), ('2025-05-05', 2, 'root');
INSERT INTO event_2025 VALUES ('2025-06-06', 3, 'leaf');
COPY event FROM STDIN (FORMAT csv);
2024-07-07,4,copied,1
\.
COPY event_2025 FROM STDIN;
2025-07-07	4	copied	1
\.
INSERT INTO deep VALUES ('x', 1, 'x1'), ('x', 2, 'x2'), ('y', 1, 'y1');
SQL
	is(sql($n1, 'COPY event_2025 TO STDOUT'), "2025-03-01\t1\tbefore\t0\n2025-05-05\t2\troot\t0\n2025-06-06\t3\tleaf\t0\n2025-07-07\t4\tcopied\t1", 'COPY of a partition has no clock');
	exchange();
	sql($n2, <<'SQL');
UPDATE event SET v = 'updated' WHERE day = '2024-05-05';
UPDATE event_2025 SET v = 'updated' WHERE id = 3;
DELETE FROM event WHERE id = 1;
DELETE FROM event_2025 WHERE id = 2;
DELETE FROM deep_x1 WHERE b = 2;
UPDATE deep SET v = 'y' WHERE a = 'y';
INSERT INTO event VALUES ('2024-05-05', 2, 'not this') ON CONFLICT (day, id) DO UPDATE SET v = event.v || ' twice';
SQL
	rows_are($events, "event_2024|2024-05-05|2|updated twice\nevent_2024|2024-07-07|4|copied\nevent_2025|2025-06-06|3|updated\nevent_2025|2025-07-07|4|copied", 'rows of partitions');
	rows_are('SELECT tableoid::regclass, a, b, v FROM deep ORDER BY a, b', "deep_x1|x|1|x1\ndeep_rest|y|1|y", 'rows of partitions of partitions');
	exchange();
	sql($n1, "INSERT INTO event VALUES ('2024-03-01', 1, 'again'); INSERT INTO event_2025 VALUES ('2025-05-05', 2, 'again'); INSERT INTO deep VALUES ('x', 2, 'again')");
	rows_are("SELECT v FROM event WHERE v = 'again' UNION ALL SELECT v FROM deep WHERE v = 'again'", "again\nagain\nagain", 'rows inserted again');
	is(conflict_rows($_), '', 'no conflict by inserting again, on ' . $_->name) foreach @nodes;
}

sub new_partitions
{
	sql($_, "CREATE TABLE event_2026 PARTITION OF event FOR VALUES FROM ('2026-01-01') TO ('2027-01-01')") foreach @nodes;
	sql($n1, "INSERT INTO event VALUES ('2026-01-01', 1, 'n1')");
	sql($n2, "INSERT INTO event_2026 VALUES ('2026-01-01', 2, 'n2')");
	rows_are("SELECT id, v FROM event_2026 ORDER BY id", "1|n1\n2|n2", 'a new partition on both nodes');
	sql($n1, "DELETE FROM event_2026 WHERE id = 2; UPDATE event_2026 SET v = 'changed'");
	rows_are("SELECT id, v FROM event_2026", '1|changed', 'a new partition stamps updates and deletions');
}

sub row_movement
{
	sql($n1, "UPDATE event SET day = '2025-01-01' WHERE day = '2026-01-01'; UPDATE deep SET a = 'z' WHERE a = 'x' AND b = 1");
	rows_are("SELECT tableoid::regclass, v FROM event WHERE day = '2025-01-01'", 'event_2025|changed', 'a row moves');
	sql($n2, "UPDATE event SET day = '2026-01-01', v = 'back' WHERE day = '2025-01-01'");
	exchange();
	sql($n1, "DELETE FROM event WHERE day = '2025-05-05' AND id = 2; UPDATE event SET day = day + 365 WHERE day = '2024-05-05'");
	exchange();
	sql($n2, "UPDATE deep SET a = 'x' WHERE a = 'z'; MERGE INTO event e USING (VALUES (4)) s (id) ON s.id = e.id AND day = '2024-07-07' WHEN MATCHED THEN UPDATE SET day = '2026-07-07'");
	rows_are($events, "event_2024|2024-03-01|1|again\nevent_2025|2025-05-05|2|updated twice\nevent_2025|2025-06-06|3|updated\nevent_2025|2025-07-07|4|copied\nevent_2026|2026-01-01|1|back\nevent_2026|2026-07-07|4|copied", 'rows after moving');
}

# A partition attached with its columns elsewhere, on one node only.
sub column_order
{
	sql($n1, "CREATE TABLE event_2030 PARTITION OF event FOR VALUES FROM ('2030-01-01') TO ('2031-01-01')");
	sql($n2, <<'SQL');
CREATE TABLE event_2030 (n int DEFAULT 0, gone text, id int NOT NULL, __repl_clock repl_ml.vclock NOT NULL DEFAULT repl_ml.tick(), v text, day date NOT NULL);
ALTER TABLE event_2030 DROP COLUMN gone;
ALTER TABLE event ATTACH PARTITION event_2030 FOR VALUES FROM ('2030-01-01') TO ('2031-01-01');
SQL
	sql($n1, "INSERT INTO event VALUES ('2030-01-01', 1, 'n1', 1), ('2030-01-02', 2, 'n1', 2), ('2026-12-31', 5, 'moves', 5)");
	exchange();
	sql($n2, <<'SQL');
INSERT INTO event VALUES ('2030-01-03', 3, 'n2', 3);
INSERT INTO event_2030 (day, id, v) VALUES ('2030-01-04', 4, 'n2');
UPDATE event SET v = v || '!' WHERE day = '2030-01-01';
UPDATE event_2030 SET day = '2030-02-02' WHERE id = 2;
UPDATE event SET day = '2030-12-31' WHERE day = '2026-12-31';
COPY event_2030 FROM STDIN;
6	6	copied	2030-06-06
\.
SQL
	is(sql($n2, 'COPY event_2030 TO STDOUT (FORMAT csv, HEADER)') =~ /\A(.*)\n/ ? $1 : '', 'n,id,v,day', 'COPY of it');
	rows_are("SELECT day, id, v, n FROM event WHERE day > '2030-01-01' OR id = 1 AND day = '2030-01-01' ORDER BY id",
		"2030-01-01|1|n1!|1\n2030-02-02|2|n1|2\n2030-01-03|3|n2|3\n2030-01-04|4|n2|0\n2030-12-31|5|moves|5\n2030-06-06|6|copied|6", 'other columns order');
	sql($n1, "DELETE FROM event_2030 WHERE id IN (1, 3); UPDATE event SET v = 'n1 ' || v WHERE day > '2030-01-01'");
	exchange();
	sql($n2, "INSERT INTO event VALUES ('2030-01-03', 3, 'again'); DELETE FROM event WHERE id = 4 AND day = '2030-01-04'");
	rows_are("SELECT id, v, n FROM event_2030 ORDER BY id", "2|n1 n1|2\n3|again|0\n5|n1 moves|5\n6|n1 copied|6", 'other columns order, both ways');
	is_equal_everywhere(\@nodes, 'event');

	# rows that come with a partition are not new rows, so nobody would get them
	sql($n1, <<'SQL');
CREATE TABLE event_2031 (LIKE event INCLUDING DEFAULTS);
INSERT INTO event_2031 VALUES ('2031-01-01', 1, 'unseen');
SQL
	psql_fails($n1, "ALTER TABLE event ATTACH PARTITION event_2031 FOR VALUES FROM ('2031-01-01') TO ('2032-01-01')",
		'0A000', '"event_2031" is not empty', 'INSERT INTO');
	sql($n1, "BEGIN; ALTER TABLE event_2031 RENAME TO old; CREATE TABLE event_2031 PARTITION OF event FOR VALUES FROM ('2031-01-01') TO ('2032-01-01')"
		  . '; INSERT INTO event SELECT * FROM old; DROP TABLE old; ROLLBACK; DROP TABLE event_2031');
}

sub truncates
{
	foreach my $table (qw(event_2025 deep_x deep_x1))
	{
		psql_fails($n1, "TRUNCATE $table", '0A000', "partition \"$table\" of a replicated table cannot be truncated", "DELETE FROM public.$table");
	}
	psql_fails($n1, "TRUNCATE event, event_2025", '0A000', 'event_2025', 'DELETE FROM');
	sql($n2, "INSERT INTO deep VALUES ('q', 1, 'q'), ('q', 2, 'q')");
	exchange();

	cut($n1, $n2);
	sql($n2, "INSERT INTO deep VALUES ('x', 50, 'meanwhile')");
	sql($n1, 'TRUNCATE deep');
	heal($n1, $n2);
	rows_are('SELECT a, b, v FROM deep', 'x|50|meanwhile', 'TRUNCATE of the root');
	sql($n2, "INSERT INTO deep VALUES ('q', 1, 'again'), ('x', 2, 'again')");
	rows_are('SELECT count(*) FROM deep', '3', 'rows after TRUNCATE');
	is(conflict_rows($_), '', 'no conflict by TRUNCATE, on ' . $_->name) foreach @nodes;
}

# What no partition takes is kept until there is one.
sub missing_partition
{
	sql($n1, "CREATE TABLE event_2040 PARTITION OF event FOR VALUES FROM ('2040-01-01') TO ('2041-01-01')");
	sql($n1, "BEGIN; INSERT INTO event VALUES ('2040-01-01', 1, 'parked'); INSERT INTO event VALUES ('2025-12-31', 40, 'not parked'); COMMIT");
	exchange();
	is(sql($n2, 'SELECT v FROM event WHERE id = 40'), 'not parked', 'the rest of the transaction is applied');
	is(sql($n2, 'SELECT table_name, sqlstate, message FROM repl_ml.parked_changes'),
		'event|23514|no partition of relation "event" found for row', 'a row that no partition takes is parked');
	sql($n2, "CREATE TABLE event_2040 PARTITION OF event FOR VALUES FROM ('2040-01-01') TO ('2041-01-01')");
	sql($n2, 'SELECT repl_ml.retry_parked(id) FROM repl_ml.parked_changes');
	rows_are("SELECT v FROM event_2040", 'parked', 'and comes when it is tried again');
}

# A detached partition is a table of its own, and nobody's business any more.
sub detached_partition
{
	sql($_, 'ALTER TABLE event DETACH PARTITION event_2026') foreach @nodes;
	sql($n1, "INSERT INTO event_2026 VALUES ('2026-06-06', 9, 'only here'); DELETE FROM event_2026 WHERE id = 1");
	sql($n1, 'ALTER TABLE event_2026 DROP COLUMN __repl_clock; TRUNCATE event_2026; ALTER TABLE event_2026 RENAME TO old');
	exchange();
	is(sql($n2, 'SELECT id FROM event_2026 ORDER BY id'), "1\n4", 'a detached partition is no longer replicated');
	psql_fails($n1, 'ALTER TABLE event_2025 DROP COLUMN __repl_clock', '55000|42P16', '__repl_clock');
	sql($n1, 'CREATE TABLE event_2040 AS SELECT day, id, v, n FROM event WITH NO DATA');
	psql_fails($n1, q(ALTER TABLE event ATTACH PARTITION event_2040 FOR VALUES FROM ('2040-01-01') TO ('2041-01-01')), '42804',
		'has no column "__repl_clock" and cannot become a partition', 'LIKE public.event INCLUDING ALL');
	sql($n1, 'DROP TABLE event_2040; CREATE TABLE event_2040 (LIKE public.event INCLUDING ALL)');
	sql($n1, q(ALTER TABLE event ATTACH PARTITION event_2040 FOR VALUES FROM ('2040-01-01') TO ('2041-01-01'); ALTER TABLE event DETACH PARTITION event_2040; DROP TABLE event_2040));
	psql_fails($n1, 'ALTER TABLE event DROP COLUMN __repl_clock', '55000', '__repl_clock', 'remove_table');
	sql($n1, 'ALTER TABLE event_2025 RENAME TO event_y2025');
	sql($n1, "INSERT INTO event VALUES ('2025-09-09', 9, 'renamed')");
	rows_are('SELECT v FROM event WHERE id = 9', 'renamed', 'a partition may have any name');
}

sub other_bounds
{
	my $root = 'CREATE TABLE other (k int, h text, v text, PRIMARY KEY (h, k)) PARTITION BY';

	sql($n1, <<"SQL");
$root RANGE (k);
CREATE TABLE other_a PARTITION OF other FOR VALUES FROM (MINVALUE) TO (10);
CREATE TABLE other_b PARTITION OF other FOR VALUES FROM (10) TO (MAXVALUE);
INSERT INTO other SELECT g, 'h' || g, 'n1' FROM generate_series(1, 20) g;
SQL
	sql($n2, <<"SQL");
$root HASH (h);
CREATE TABLE other_0 (v text, k int NOT NULL, h text NOT NULL);
ALTER TABLE other ATTACH PARTITION other_0 FOR VALUES WITH (MODULUS 3, REMAINDER 0);
CREATE TABLE other_1 PARTITION OF other FOR VALUES WITH (MODULUS 3, REMAINDER 1);
CREATE TABLE other_2 PARTITION OF other FOR VALUES WITH (MODULUS 3, REMAINDER 2);
SQL
	sql($n1, q(SELECT repl_ml.add_table('other')));
	poll_until($n2, q(SELECT state || pending_copies = 'replicated0' FROM repl_ml.tables WHERE table_name = 'other'));
	is_equal_everywhere(\@nodes, 'other', 'other bounds, copied');
	sql($n1, "UPDATE other SET k = k + 8 WHERE k < 5; DELETE FROM other WHERE k > 15");
	exchange();
	sql($n2, "UPDATE other SET h = 'moved' || k WHERE k BETWEEN 5 AND 8; UPDATE other SET v = 'n2' WHERE k = 12; INSERT INTO other SELECT g, 'h' || g, 'again' FROM generate_series(16, 18) g; DELETE FROM other WHERE k = 15");
	exchange();
	sql($n1, "UPDATE other SET h = 'moved again' WHERE h = 'moved5'; DELETE FROM other WHERE h = 'moved6'; TRUNCATE other; INSERT INTO other SELECT g, 'h' || g, 'last' FROM generate_series(1, 30, 3) g");
	rows_are('SELECT count(*), min(v), max(v), sum(k) FROM other', '10|last|last|145', 'other bounds');
	cmp_ok(sql($n2, 'SELECT count(DISTINCT tableoid) FROM other'), '>', 1, 'rows are in several partitions');
}
