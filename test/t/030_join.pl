# A node that joins while all members are written, and one of them may be down, ends with what they have.
use strict;
use warnings;
use Membership;
use PostgreSQL::Test::Utils;
use ReplMl;
use Test::More;

# tables, and what they need, with rows from before there was a group
my $n1 = new_node('n1');
sql($n1, <<'SQL');
CREATE SCHEMA "Shop";
CREATE TYPE "Shop".colour AS ENUM ('red', 'green');
CREATE DOMAIN "Shop".positive AS integer CHECK (VALUE > 0);
CREATE FUNCTION "Shop".label(integer) RETURNS text LANGUAGE sql IMMUTABLE AS $$ SELECT 'no. ' || $1 $$;
CREATE SEQUENCE "Shop".ticket START 100;
CREATE TABLE "Shop"."Item" (
    id serial PRIMARY KEY, ticket bigint DEFAULT nextval('"Shop".ticket'), number "Shop".positive,
    colour "Shop".colour NOT NULL DEFAULT 'red', label text GENERATED ALWAYS AS ("Shop".label(number)) STORED,
    CHECK ("Shop".label(number) <> ''));
CREATE TABLE "Shop".part (id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY, item integer REFERENCES "Shop"."Item", data bytea);
CREATE TABLE counter (id integer PRIMARY KEY, n integer NOT NULL, by text);
CREATE TABLE written (id uuid PRIMARY KEY DEFAULT gen_random_uuid(), by text);
CREATE TABLE seat (id integer PRIMARY KEY, by text);
CREATE TABLE reading (at integer, value text, PRIMARY KEY (at)) PARTITION BY RANGE (at);
CREATE TABLE reading_low PARTITION OF reading FOR VALUES FROM (0) TO (50);
CREATE TABLE reading_high PARTITION OF reading FOR VALUES FROM (50) TO (100);
CREATE VIEW stock AS SELECT colour, count(*) FROM "Shop"."Item" GROUP BY colour;
INSERT INTO "Shop"."Item" (number, colour) SELECT i, CASE i % 2 WHEN 0 THEN 'red' ELSE 'green' END::"Shop".colour FROM generate_series(1, 200) i;
INSERT INTO "Shop".part (item, data) SELECT i, decode(repeat(md5(i::text), 500), 'hex') FROM generate_series(1, 20) i;
INSERT INTO counter SELECT i, 0 FROM generate_series(1, 30) i;
INSERT INTO reading SELECT i, i FROM generate_series(0, 99) i;
CREATE EXTENSION repl_ml;
SQL
sql($n1, "SELECT repl_ml.create_group('g', 'n1', " . literal(dsn($n1)) . ")");
is(sql($n1, q(SELECT count(*) FROM repl_ml.add_all_tables('{public,Shop}') WHERE status = 'added')),
	'6', 'all tables are added');
# deleted, and changed again, before the others come
sql($n1, 'DELETE FROM counter WHERE id = 30; DELETE FROM reading WHERE at = 5; INSERT INTO reading VALUES (5, NULL)');
my @tables = qw("Shop"."Item" "Shop".part counter written seat reading);

# What each node goes on writing while others join.
sub writer
{
	my ($node) = @_;
	my $by = $node->name;
	return start_writer($node, <<"SQL");
\\set c random(1, 29)
\\set s random(1, 100)
BEGIN;
INSERT INTO written (by) VALUES ('$by');
UPDATE counter SET n = n + 1, by = '$by' WHERE id = :c;
DELETE FROM seat WHERE id = :s;
INSERT INTO seat VALUES (:s + 1, '$by') ON CONFLICT (id) DO UPDATE SET by = excluded.by;
UPDATE reading SET value = '$by' || value WHERE at = :s % 100;
UPDATE "Shop".part SET item = :c WHERE id = :c;
END;
SQL
}

sub count_written { my ($node, $by) = @_; return sql($node, "SELECT count(*) FROM written WHERE by = '$by'") }

# the second and third node
my ($n2, $n3) = map { new_node($_) } qw(n2 n3);
my @writers = writer($n1);
poll_until($n1, 'SELECT count(*) > 10 FROM written');
my $before = count_written($n1, 'n1');
join_node($n2, $n1);
cmp_ok(count_written($n1, 'n1'), '>', $before, 'n1 was written while n2 joined');
push @writers, writer($n2);
poll_until($n2, q(SELECT count(*) > 10 FROM written WHERE by = 'n2'));
join_node($n3, $n2);
stop_writer($_) foreach @writers;
wait_converged([ $n1, $n2, $n3 ], @tables);
no_errors([ $n1, $n2, $n3 ]);
is(count_written($n3, $_->name), count_written($_, $_->name), 'n3 has all that ' . $_->name . ' wrote')
  foreach $n1, $n2;

# what came with the tables
is(sql($n3, 'SELECT colour, count FROM stock ORDER BY 1'), "red|100\ngreen|100", 'a view of the joined node');
is(sql($n3, q(SELECT pg_get_serial_sequence('"Shop"."Item"', 'id') = '"Shop"."Item_id_seq"')),
	't', 'a serial column owns its sequence');
sql($n3, q(SELECT setval('"Shop"."Item_id_seq"', 1000); INSERT INTO "Shop"."Item" (number) VALUES (7)));
wait_converged([ $n1, $n2, $n3 ], '"Shop"."Item"');
is(sql($n1, 'SELECT ticket, number, colour, label FROM "Shop"."Item" WHERE id = 1001'),
	'100|7|red|no. 7', 'defaults of the joined node');
psql_fails($n3, 'INSERT INTO "Shop"."Item" (number) VALUES (-1)', '23514', 'positive');

# A member that is down, with something that only it knows, does not keep a fourth from joining.
cut($_, $n3) foreach $n1, $n2;
sql($n3, q(INSERT INTO written (by) SELECT 'n3' FROM generate_series(1, 50); DELETE FROM seat WHERE id % 2 = 0;
	UPDATE counter SET n = -1; DELETE FROM "Shop"."Item" WHERE id = 100));
$n3->stop;
heal($_, $n3) foreach $n1, $n2;
my $n4 = new_node('n4');
@writers = map { writer($_) } $n1, $n2;
join_node($n4, $n2);
stop_writer($_) foreach @writers;
sql($n4, q(INSERT INTO written (by) VALUES ('n4')));
$n3->start;
poll_until($_, q(SELECT count(*) = 3 AND bool_and(state = 'streaming') FROM repl_ml.stat_apply))
  foreach $n1, $n2, $n3, $n4;
wait_converged([ $n1, $n2, $n3, $n4 ], @tables);
no_errors([ $n1, $n2, $n3, $n4 ]);
is(count_written($n4, 'n3'), '50', 'n4 has what n3 wrote before it went down');
is(count_written($n3, 'n4'), '1', 'n3 has what n4 wrote before they met');
is(sql($n4, 'SELECT count(*) FROM "Shop"."Item" WHERE id = 100'), '0', 'and its deletions');

# A node restored from a dump joins without a copy.
my $n5 = new_node('n5');
my $dump = PostgreSQL::Test::Utils::tempdir() . '/dump.sql';
command_ok([ 'pg_dump', '-d', dsn($n1), '-f', $dump ], 'pg_dump of a member');
$n5->command_ok([ 'psql', '-X', '-q', '-v', 'ON_ERROR_STOP=1', '-d', dsn($n5), '-f', $dump ], 'its restore');
sql($n5, "SELECT repl_ml.join_group('n5', " . literal(dsn($n5)) . ", " . literal(dsn($n1)) . ", copy_data => false)");
sql($n1, q(INSERT INTO written (by) VALUES ('n1 last')));
sql($n5, q(INSERT INTO written (by) VALUES ('n5'); UPDATE counter SET by = 'n5' WHERE id = 1));
wait_converged([ $n1, $n2, $n3, $n4, $n5 ], @tables);
no_errors([ $n1, $n5 ]);
is(sql($n5, 'SELECT count(*) FROM repl_ml.repair_history'), '0', 'nothing was lost or replaced');

# A session that was there before the extension was knows that its database has become a member.
my $n6 = new_node('n6');
sql($n6, "CREATE EXTENSION repl_ml; SELECT repl_ml.join_group('n6', " . literal(dsn($n6)) . ", " . literal(dsn($n1))
	  . "); INSERT INTO written (by) VALUES ('n6'); SELECT repl_ml.drop_node('n5')");
is(sql($n6, q(SELECT count(*) FROM written WHERE by = 'n6' AND repl_ml.last_writer(__repl_clock) = 6)), '1', 'what it writes is stamped');
poll_until($_, q(SELECT count(*) = 1 FROM written WHERE by = 'n6')) foreach $n1, $n4;

done_testing();
