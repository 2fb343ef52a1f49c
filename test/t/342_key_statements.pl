# A replicated table keeps its primary key, its name and our triggers, whatever statement would take them away: what
# works is allowed, also to change the key, and the rest is refused with what works instead.
use strict;
use warnings;
use ReplMl;
use Test::More;

my @nodes = new_group(2);
my ($n1, $n2) = @nodes;
sql($_, q(
CREATE ROLE app;
CREATE TYPE kind AS ENUM ('a', 'b');
CREATE DOMAIN code AS text CHECK (VALUE <> '');
CREATE COLLATION caseless (provider = icu, locale = 'und-u-ks-level2', deterministic = false))) foreach @nodes;
sql($n1, q(
GRANT CREATE ON SCHEMA public TO app;
CREATE TABLE acc (id int PRIMARY KEY, v text, nr int NOT NULL UNIQUE, g int GENERATED ALWAYS AS (nr + 1) STORED);
CREATE TABLE typed (k kind, c code, at timestamptz, w text COLLATE caseless, r int4range, f float8, PRIMARY KEY (k, c, at, w, r, f));
CREATE TABLE part (id int, at date, PRIMARY KEY (id, at)) PARTITION BY RANGE (at);
CREATE TABLE part_1 PARTITION OF part FOR VALUES FROM ('2026-01-01') TO ('2027-01-01');
CREATE TABLE part_2 PARTITION OF part FOR VALUES FROM ('2027-01-01') TO ('2028-01-01');
CREATE SCHEMA app AUTHORIZATION app;
CREATE TABLE app.owned (id int PRIMARY KEY);
ALTER TABLE app.owned OWNER TO app;
SELECT repl_ml.add_all_tables('{public,app}')));
poll_until($_, q(SELECT count(*) = 4 FROM repl_ml.tables WHERE state = 'replicated' AND pending_copies = 0)) foreach @nodes;
sql($n1, q(INSERT INTO acc VALUES (1, 'one', 10), (2, 'two', 20), (3, 'three', 30)));

# Without a key at the end of the transaction.
my $key = 'has to have a primary key that is not deferrable';
my $add = 'ADD PRIMARY KEY .* in the same statement or transaction';
psql_fails($n1, $_, '55000', $key, $add) foreach
  'ALTER TABLE acc DROP CONSTRAINT acc_pkey',
  'ALTER TABLE acc DROP COLUMN id',
  'ALTER TABLE acc DROP COLUMN id CASCADE',
  'ALTER TABLE acc DROP CONSTRAINT acc_pkey, ADD PRIMARY KEY (id) DEFERRABLE',
  'BEGIN; ALTER TABLE acc DROP CONSTRAINT acc_pkey; ALTER TABLE acc ADD UNIQUE (id); COMMIT',
  q(BEGIN; ALTER TABLE acc DROP CONSTRAINT acc_pkey; PREPARE TRANSACTION 'p'),
  q(DO $$ BEGIN ALTER TABLE acc DROP CONSTRAINT acc_pkey; END $$),
  'ALTER TABLE part DROP CONSTRAINT part_pkey',
  'DROP TYPE kind CASCADE',
  'DROP DOMAIN code CASCADE',
  'DROP COLLATION caseless CASCADE';
psql_fails($n1, 'ALTER TABLE acc DROP CONSTRAINT acc_pkey, ADD PRIMARY KEY (g)', '55000', 'cannot have a generated column in its primary key', 'ADD PRIMARY KEY');
psql_fails($n1, 'ALTER TABLE acc REPLICA IDENTITY NOTHING', '55000', 'has to have a replica identity', 'REPLICA IDENTITY DEFAULT');
psql_fails($n1, 'ALTER TABLE acc ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY', '55000', 'row-level security', 'NO FORCE');
psql_fails($n1, 'DROP FUNCTION repl_ml.stamp_moved() CASCADE', '2BP01|55000', 'stamp_moved|triggers');

# Its name and place.
psql_fails($n1, $_, '55000', 'cannot be renamed or moved', 'remove_table') foreach
  'ALTER TABLE acc RENAME TO other', 'ALTER INDEX acc RENAME TO other', 'ALTER TABLE acc SET SCHEMA app', 'ALTER INDEX part RENAME TO other';
psql_fails($n1, 'ALTER VIEW acc RENAME TO other', '42809|55000', 'not a view|renamed');
psql_fails($n1, 'ALTER SEQUENCE acc RENAME TO other', '42809|55000', 'not a sequence|renamed');
psql_fails($n1, $_, '55000', 'replicated', 'remove_table') foreach
  'ALTER SCHEMA app RENAME TO other', 'DROP SCHEMA app CASCADE', 'DROP OWNED BY app', 'DROP TABLE acc', 'DROP TABLE part CASCADE';
is(sql($n1, 'SELECT count(*) FROM acc'), '3', 'the table is as it was');

# What works: on both nodes, one after the other, with changes in between.
sub both
{
	my ($statement, $between) = @_;
	sql($n1, $statement);
	sql($n1, $between) if defined $between;
	sql($n2, $statement);
	wait_converged(\@nodes, qw(acc part typed));
	is(sql($_, 'SELECT count(*) FROM repl_ml.parked_changes'), '0', "nothing is parked: $statement: " . $_->name) foreach @nodes;
	return;
}

wait_converged(\@nodes, qw(acc part typed));
both('ALTER TABLE acc ALTER id TYPE bigint', q(INSERT INTO acc VALUES (4, 'four', 40); DELETE FROM acc WHERE id = 1));
sql($n1, q(INSERT INTO acc VALUES (3000000000, 'large', 50)));
both('BEGIN; SAVEPOINT s; ALTER TABLE acc DROP CONSTRAINT acc_pkey; ROLLBACK TO s; COMMIT', 'DELETE FROM acc WHERE id = 3000000000');
both('ALTER TABLE acc DROP CONSTRAINT acc_pkey, ADD PRIMARY KEY (nr, id)', 'DELETE FROM acc WHERE id = 2');
both('ALTER TABLE acc DROP COLUMN id CASCADE, ADD PRIMARY KEY (nr)', 'DELETE FROM acc WHERE nr = 40');
both('ALTER TABLE acc RENAME CONSTRAINT acc_pkey TO acc_key; ALTER INDEX acc_key RENAME TO acc_pk');
both('ALTER TABLE acc OWNER TO app; ALTER TABLE acc RENAME nr TO number');
both('ALTER TYPE kind RENAME TO sort');
is(sql($n2, 'SELECT string_agg(number::text, $$,$$) FROM acc'), '30', 'what is left');

# A row moves to a key that had a row: the trigger that looks for its tombstone does so for the present key.
sql($n1, 'INSERT INTO acc (v, number) VALUES ($$a$$, 1), ($$b$$, 2)');
wait_converged(\@nodes, 'acc');
cut($n1, $n2);
sql($n2, 'DELETE FROM acc WHERE number = 1');
sql($n2, 'UPDATE acc SET number = 1 WHERE number = 2');
heal($n1, $n2);
wait_converged(\@nodes, 'acc');
is(sql($n1, 'SELECT v FROM acc WHERE number = 1'), 'b', 'moved to the key of a deleted row');

# Keys of all kinds, deleted as other text than they were inserted, and inserted again.
my $row = q{'a', 'x', '2026-01-01 00:00+00', 'Word', '[1,3)', 0.1};
sql($n1, "INSERT INTO typed VALUES ($row)");
wait_converged(\@nodes, 'typed');
cut($n1, $n2);
sql($n2, q(SET timezone = 'Asia/Tokyo'; SET extra_float_digits = 0; DELETE FROM typed WHERE w = 'WORD' AND r = '[1,2]'));
sql($n2, "SET datestyle = 'SQL, DMY'; INSERT INTO typed VALUES ('a', 'x', '2026-01-01 00:00+00', 'wORD', '[1,2]', 0.1)");
heal($n1, $n2);
wait_converged(\@nodes, 'typed');
is(sql($n1, 'SELECT w FROM typed'), 'wORD', 'deleted and inserted again under an equal key');
is(sql($_, 'SELECT count(*) FROM repl_ml.parked_changes'), '0', 'nothing is parked on ' . $_->name) foreach @nodes;

# Partitions come and go.
both('ALTER TABLE part DETACH PARTITION part_2; DROP TABLE part_2', q(INSERT INTO part VALUES (1, '2026-05-05')));
psql_fails($n1, 'TRUNCATE part_1', '0A000', 'cannot be truncated on its own', 'DELETE FROM');
done_testing();
