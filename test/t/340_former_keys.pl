# A deletion is of the row that was deleted, whatever the primary key is where it arrives: other columns, another order,
# other types, other names. What is kept under a former key has a way on: nothing stays parked, and nodes can join.
use strict;
use warnings;
use ReplMl;
use Test::More;

my %keys = (
	pair => 'DROP CONSTRAINT pair_pkey, ADD PRIMARY KEY (b, a)',
	grown => q(DROP CONSTRAINT grown_pkey, ADD COLUMN ws text NOT NULL DEFAULT 'd', ADD PRIMARY KEY (ws, id)),
	shrunk => 'DROP COLUMN ws, ADD PRIMARY KEY (id)',
	fewer => 'DROP CONSTRAINT fewer_pkey, ADD PRIMARY KEY (id)',
	other => 'DROP CONSTRAINT other_pkey, ADD PRIMARY KEY USING INDEX other_nr',
	wider => 'ALTER id TYPE bigint',
	words => 'ALTER id TYPE text',
	renamed => 'RENAME id TO nr',
	parts => 'DROP CONSTRAINT parts_pkey, ADD PRIMARY KEY (id, ws)',
	counted => q(DROP CONSTRAINT counted_pkey, ADD COLUMN ws text NOT NULL DEFAULT 'd', ADD PRIMARY KEY (ws, id)));
my @tables = sort keys %keys;
my @nodes = new_group(3, q(
CREATE TABLE pair (a text, b text, v int, PRIMARY KEY (a, b));
INSERT INTO pair VALUES ('x', 'y', 1), ('y', 'x', 2), ('1', '2', 3), ('2', '1', 4), ('p', 'q', 5), ('q', 'p', 6);
CREATE TABLE grown (id int PRIMARY KEY, v text);
INSERT INTO grown SELECT g, 'old' FROM generate_series(1, 6) g;
CREATE TABLE shrunk (ws text, id int, v text, PRIMARY KEY (ws, id));
INSERT INTO shrunk SELECT 'd', g, 'old' FROM generate_series(1, 6) g;
CREATE TABLE fewer (ws text, id int, v text, PRIMARY KEY (ws, id));
INSERT INTO fewer SELECT 'd', g, 'old' FROM generate_series(1, 6) g;
CREATE TABLE other (id int PRIMARY KEY, nr int NOT NULL, v text);
CREATE UNIQUE INDEX other_nr ON other (nr);
INSERT INTO other SELECT g, 7 - g, 'old' FROM generate_series(1, 6) g;
CREATE TABLE wider (id int PRIMARY KEY, v text);
INSERT INTO wider SELECT g, 'old' FROM generate_series(1, 6) g;
CREATE TABLE words (id int PRIMARY KEY, v text);
INSERT INTO words SELECT g, 'old' FROM generate_series(1, 6) g;
CREATE TABLE renamed (id int PRIMARY KEY, v text);
INSERT INTO renamed SELECT g, 'old' FROM generate_series(1, 6) g;
CREATE TABLE parts (ws text, id int, v text, PRIMARY KEY (ws, id)) PARTITION BY LIST (id);
CREATE TABLE parts_odd PARTITION OF parts FOR VALUES IN (1, 3, 5);
CREATE TABLE parts_even (v text, id int NOT NULL, ws text NOT NULL);
ALTER TABLE parts ATTACH PARTITION parts_even FOR VALUES IN (2, 4, 6);
INSERT INTO parts SELECT 'd', g, 'old' FROM generate_series(1, 6) g;
CREATE TABLE counted (id int PRIMARY KEY, n int);
INSERT INTO counted VALUES (1, 0);
SELECT repl_ml.add_all_tables();
SELECT repl_ml.set_column_merge('counted', 'n', 'counter')));
my ($n1, $n2, $n3) = @nodes;
foreach my $node (@nodes)
{
	sql($node, q(ALTER SYSTEM SET repl_ml.heartbeat_interval = '100ms'));
	sql($node, 'SELECT pg_reload_conf()');
	poll_until($node, 'SELECT count(*) = 10 AND bool_and(state = $$replicated$$ AND pending_copies = 0) FROM repl_ml.tables');
}

# Gives all tables their new keys on one node.
sub change_keys
{
	my ($node) = @_;
	sql($node, join(' ', map { "ALTER TABLE $_ $keys{$_};" } @tables));
	return;
}

sub parked { my ($node) = @_; return sql($node, 'SELECT table_name, action, message FROM repl_ml.parked_changes ORDER BY 1, 2, 3'); }

# n1 and n2 count at once, and n3 does not hear of it until all keys have changed.
cut($n3, $_) foreach $n1, $n2;
cut($n1, $n2);
cut($n2, $n1);
sql($n1, 'UPDATE counted SET n = n + 1');
sql($n2, 'UPDATE counted SET n = n + 10');
heal($n1, $n2);
heal($n2, $n1);
poll_until($_, 'SELECT n = 11 FROM counted') foreach $n1, $n2;
sql($n3, 'UPDATE counted SET n = n + 100');
poll_until($_, 'SELECT n = 111 FROM counted') foreach $n1, $n2;

# On its way to n3 while the keys change there: the rows numbered 1.
sql($n2, q(DELETE FROM pair WHERE v = 1));
sql($n2, "DELETE FROM $_ WHERE id = 1") foreach grep { !/pair|counted/ } @tables;
poll_until($n1, 'SELECT count(*) = 5 FROM parts');

# n1 first: what n2 deletes by the old keys and n1 by the new ones.
change_keys($n1);
sql($n2, q(DELETE FROM pair WHERE v = 3));
sql($n2, "DELETE FROM $_ WHERE id = 2") foreach grep { !/pair|counted|renamed/ } @tables;
sql($n1, q(DELETE FROM pair WHERE v = 5));
sql($n1, "DELETE FROM $_ WHERE id = '3'") foreach grep { !/pair|counted|renamed|other/ } @tables;
sql($n1, 'DELETE FROM other WHERE nr = 2; DELETE FROM renamed WHERE nr = 3');
sql($n2, 'DELETE FROM renamed WHERE id = 2');
poll_until($n1, 'SELECT count(*) = 3 FROM renamed');
poll_until($n1, "SELECT count(*) = 3 FROM $_") foreach grep { !/counted/ } @tables;
is(parked($n1), '', 'n1 has found all rows that n2 has deleted');
is(sql($n1, q(SELECT string_agg(v::text, ',' ORDER BY v) FROM pair)), '2,4,6', 'and no others: pair');
is(sql($n1, q(SELECT string_agg(id::text, ',' ORDER BY id) FROM other)), '3,4,6', 'and no others: other');

# Then n2 and n3, which has yet to get everything; and a node joins that has never had the old keys.
change_keys($_) foreach $n2, $n3;
is(sql($n1, 'SELECT count(DISTINCT key_columns) FROM repl_ml.tombstone WHERE table_name = $$grown$$'), '2', 'there are tombstones of former keys');
my $n4 = new_node('n4');
sql($n4, 'CREATE EXTENSION repl_ml');
sql($n4, "SELECT repl_ml.join_group('n4', " . literal(dsn($n4)) . ', ' . literal(dsn($n1)) . ', wait => false)');
poll_until($n4, q(SELECT count(*) > 10 AND bool_and(state = 'copied') FROM repl_ml.table_sync WHERE node_id = 1));
# who joins becomes ready when all members read from it, and n3 learns of it only now
heal($n3, $_) foreach $n1, $n2;
poll_until($_, q(SELECT count(*) = 1 FROM repl_ml.nodes WHERE node_name = 'n4' AND state = 'ready')) foreach $n4, $n1;
push @nodes, $n4;
wait_converged(\@nodes);
# n3 got rows of the time before they had the column "ws", n2 a key by the name that its column has now
sql($_, 'SELECT repl_ml.retry_parked(id) FROM repl_ml.parked_changes ORDER BY id') foreach $n2, $n3;
wait_converged(\@nodes, @tables);
is(parked($_), '', 'nothing is parked on ' . $_->name) foreach @nodes;
is(sql($n4, q(SELECT string_agg(v::text, ',' ORDER BY v) FROM pair)), '2,4,6', 'pair');
foreach my $table (grep { !/pair|counted|other/ } @tables)
{
	my $column = $table eq 'renamed' ? 'nr' : 'id';
	is(sql($n3, "SELECT string_agg($column\::text, ',' ORDER BY $column) FROM $table"), '4,5,6', $table);
}
is(sql($n3, q(SELECT string_agg(id::text, ',' ORDER BY id) FROM other)), '3,4,6', 'other');
is(sql($n3, 'SELECT n FROM counted'), '111', 'counted');

# Of a deletion by the old key a later version of the row knows, whoever writes it.
cut($n2, $_) foreach $n1, $n3;
sql($n1, q(INSERT INTO grown (id, v, ws) VALUES (1, 'again', 'd'), (2, 'again', 'e'); INSERT INTO wider VALUES (1, 'again'), (3000000000, 'new')));
sql($n3, q(UPDATE other SET id = 1 WHERE id = 3; INSERT INTO renamed VALUES (1, 'again')));
sql($n4, q(INSERT INTO fewer VALUES ('d', 1, 'again'); INSERT INTO pair VALUES ('x', 'y', 7)));
heal($n2, $_) foreach $n1, $n3;
wait_converged(\@nodes, @tables);
is(sql($n2, q(SELECT count(*) FROM grown WHERE v = 'again')), '2', 'inserted again, by the new key');
is(sql($n2, q(SELECT count(*) FROM other WHERE id = 1)), '1', 'a row may get the values of a deleted one');
is(sql($n2, q(SELECT count(*) FROM repl_ml.conflicts WHERE table_name <> 'counted')), '0', 'no conflicts');

# At last nothing is left of the former keys.
poll_until($_, q(SELECT NOT EXISTS (SELECT FROM repl_ml.tombstone)
	AND NOT EXISTS (SELECT FROM repl_ml.key_shape WHERE in_use GROUP BY schema_name, table_name HAVING count(*) > 1))) foreach @nodes;
wait_converged(\@nodes, @tables);

done_testing();
