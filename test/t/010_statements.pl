# Whatever a user's statement does to a replicated table arrives on the other node with the same rows
# and clocks, and is no conflict where the writer had seen what it changed.
use strict;
use warnings;
use lib 'test';
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use ReplMl;
use Test::More;

my $long = 'n' x 63;

# Made on n1 before n2 joins, so that n2 gets all of it as a joining node does.
my ($n1, $n2) = my @nodes = new_group(2, <<"SQL");
CREATE TABLE ins (id int PRIMARY KEY, v text DEFAULT 'default', n int);
CREATE TABLE ins_copy (LIKE ins INCLUDING ALL);
CREATE TABLE upd (id int PRIMARY KEY, v text, n int DEFAULT 0);
CREATE TABLE source (id int, v text);
CREATE TABLE cop (id int, gone int, twice int GENERATED ALWAYS AS (id * 2) STORED, v text, "q ""c" text DEFAULT 'q', PRIMARY KEY (id));
ALTER TABLE cop DROP COLUMN gone;
CREATE TABLE key1 (id int PRIMARY KEY, v text);
CREATE TABLE key2 (a int, b text, v text, PRIMARY KEY (b, a));
CREATE TABLE again (id int PRIMARY KEY, v text);
CREATE TABLE trunc (id int PRIMARY KEY, v text);
CREATE TABLE trunc_child (id int PRIMARY KEY, trunc_id int REFERENCES trunc);
CREATE TABLE parent (name text PRIMARY KEY, v text);
CREATE TABLE child (name text REFERENCES parent ON UPDATE CASCADE ON DELETE CASCADE, version int, v text, PRIMARY KEY (name, version));
CREATE TABLE grandchild (name text, version int, key text, PRIMARY KEY (name, version, key),
    FOREIGN KEY (name, version) REFERENCES child ON UPDATE CASCADE ON DELETE CASCADE);
CREATE TABLE loose (id int PRIMARY KEY, name text REFERENCES parent ON UPDATE CASCADE ON DELETE SET NULL);
CREATE TABLE tree (id int PRIMARY KEY, up int REFERENCES tree ON DELETE CASCADE ON UPDATE CASCADE DEFERRABLE INITIALLY DEFERRED);
CREATE TABLE sub (id int PRIMARY KEY, v text);
CREATE TABLE prep (id int PRIMARY KEY, v text);
CREATE TABLE big (id int PRIMARY KEY, v text, n int);
CREATE TABLE replica (id int PRIMARY KEY, v text);
CREATE TABLE gen (id int, a int, b int GENERATED ALWAYS AS (a * 10) STORED, c text GENERATED ALWAYS AS (upper(d)) STORED, d text, PRIMARY KEY (id) INCLUDE (b));
CREATE TABLE ident (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, v text);
CREATE TABLE toast (id int PRIMARY KEY, n int, v text, w bytea);
ALTER TABLE toast ALTER v SET STORAGE EXTERNAL, ALTER w SET STORAGE EXTERNAL;

CREATE TABLE fired (id int PRIMARY KEY, v text, changed int DEFAULT 0);
CREATE TABLE fired_audit (id uuid PRIMARY KEY DEFAULT gen_random_uuid(), what text);
CREATE TABLE fired_local (what text);
CREATE FUNCTION change_row() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN NEW.v := upper(NEW.v); NEW.changed := NEW.changed + 1; RETURN NEW; END';
CREATE FUNCTION audit() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN INSERT INTO public.fired_audit (what) VALUES (TG_OP || '' '' || coalesce(NEW.id, OLD.id)); RETURN NULL; END';
CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN INSERT INTO public.fired_local VALUES (TG_NAME || '' '' || TG_OP || '' '' || coalesce(NEW.id, OLD.id)); RETURN NULL; END';
CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
CREATE TRIGGER change_row BEFORE INSERT OR UPDATE ON fired FOR EACH ROW EXECUTE FUNCTION change_row();
CREATE TRIGGER audit AFTER INSERT OR UPDATE OR DELETE ON fired FOR EACH ROW EXECUTE FUNCTION audit();
CREATE TRIGGER always AFTER INSERT OR UPDATE OR DELETE ON fired FOR EACH ROW EXECUTE FUNCTION note();
CREATE TRIGGER replica_only AFTER INSERT OR UPDATE OR DELETE ON fired FOR EACH ROW EXECUTE FUNCTION note();
CREATE TRIGGER keep BEFORE DELETE ON fired FOR EACH ROW WHEN (OLD.v = 'KEEP') EXECUTE FUNCTION refuse();
ALTER TABLE fired ENABLE ALWAYS TRIGGER always, ENABLE REPLICA TRIGGER replica_only;

CREATE TYPE mood AS ENUM ('sad', 'ok', 'h "a,p''py');
CREATE DOMAIN positive AS int CHECK (VALUE > 0);
CREATE TYPE pair AS (a int, "b ""c" text);
CREATE TABLE types (id int PRIMARY KEY, j json, jb jsonb, arr int[], arr2 text[], nr numeric, f4 float4, f8 float8,
    d date, ts timestamp, tz timestamptz, tm time, tmz timetz, iv interval, r int4range, mr datemultirange, tzr tstzrange, e mood, dom positive,
    comp pair, comps pair[], b bytea, bo boolean, u uuid, c char(5), vc varchar(10), bit bit(3), vb varbit, ip inet, mac macaddr, p point,
    ts_v tsvector, nm name, "char" "char", o oid, lsn pg_lsn);

CREATE SCHEMA "Sch""e.m ä";
CREATE TABLE "Sch""e.m ä"."a""b" ("i ""d" int PRIMARY KEY, "wert.ü" text, "CamelCase" text);
CREATE TABLE "Ünï" ("ключ" text, "select" int, v text, PRIMARY KEY ("select", "ключ"));
CREATE TABLE "with.dot's" ("id'" int PRIMARY KEY, "\\back" text);
CREATE TABLE "$long" ("$long" int PRIMARY KEY, v text);

CREATE TABLE key_numeric (k numeric PRIMARY KEY, v text);
CREATE TABLE key_float (k float8, k4 float4, v text, PRIMARY KEY (k, k4));
CREATE TABLE key_time (tz timestamptz, ts timestamp, d date, iv interval, v text, PRIMARY KEY (tz, ts, d, iv));
CREATE TABLE key_bytea (k bytea PRIMARY KEY, v text);
CREATE TABLE key_other (e mood, r tstzrange, a float8[], c pair, j jsonb, b boolean, ch char(4), v text, PRIMARY KEY (e, r, a, c, j, b, ch));

SELECT repl_ml.add_all_tables(ARRAY['public', 'Sch"e.m ä']::name[]);
SELECT repl_ml.remove_table('ins_copy');
SQL

is(sql($n1, q(SELECT string_agg(relname, ' ' ORDER BY relname) FROM pg_class c WHERE relkind = 'r'
	AND relnamespace = 'public'::regnamespace AND NOT EXISTS (SELECT FROM repl_ml.tables t WHERE t.relation = c.oid))),
	'fired_local ins_copy source', 'all tables with a primary key are replicated');

# Waits until both nodes have what the other wrote.
sub exchange { wait_converged(\@nodes) }

# Tests the rows of a query on both nodes, after an exchange.
sub rows_are
{
	my ($query, $rows, $name) = @_;
	exchange();
	is(sql($_, $query), $rows, "$name, on " . $_->name) foreach @nodes;
}

# Makes a table on n1 and waits until n2 has it.
sub replicate
{
	my ($name, $definition) = @_;
	sql($n1, "CREATE TABLE $name $definition; SELECT repl_ml.add_table('$name')");
	poll_until($n2, "SELECT state || pending_copies = 'replicated0' FROM repl_ml.tables WHERE table_name = '$name'");
}

inserts();
updates_and_deletes();
copies();
key_changes();
reinsertions();
truncates();
cascades();
subtransactions();
prepared_transactions();
large_transaction();
replica_role();
triggers();
generated_columns();
long_values();
types();
names();
types_of_keys();
keys_without_case();
unprivileged();

# what must hold after all of it
exchange();
my @tables = split /\n/, sql($n1, "SELECT relation FROM repl_ml.tables WHERE table_name <> 'big' ORDER BY 1");
is_equal_everywhere(\@nodes, $_) foreach @tables;
foreach my $node (@nodes)
{
	my $name = $node->name;
	is(conflict_rows($node), '', "no conflict on $name");
	is(sql($node, 'SELECT schema_name, table_name, message FROM repl_ml.parked_changes'), '', "nothing parked on $name");
	is(sql($node, 'SELECT sum(errors), string_agg(last_error_message, $$;$$) FROM repl_ml.stat_apply'), '0|', "nothing was tried twice on $name");
}
trigger_in_apply();
done_testing();

sub inserts
{
	is(sql($n1, <<'SQL'), "1|one\n2|two\n3|default", 'RETURNING');
INSERT INTO ins VALUES (1, 'one', 1) RETURNING id, v;
INSERT INTO ins (id, v) VALUES (2, 'two'), (3, DEFAULT) RETURNING id, v;
SQL
	sql($n2, <<'SQL');
INSERT INTO ins SELECT g, 'g' || g, g FROM generate_series(4, 6) g;
INSERT INTO ins (n, id) VALUES (7, 7);
INSERT INTO ins_copy SELECT g, 'copy' FROM generate_series(10, 12) g;
WITH moved AS (DELETE FROM ins_copy WHERE id < 12 RETURNING *) INSERT INTO ins SELECT * FROM moved;
SQL
	exchange();

	# rows with the clocks of others, read from a replicated table, get clocks of their own
	sql($n1, 'INSERT INTO ins SELECT id + 100, v, n, __repl_clock FROM ins');
	sql($n1, q(INSERT INTO ins VALUES (300, 'forged', 0, '{2:36028797018963000}'), (301, 'empty', 0, '{}'), (302, 'null', 0, DEFAULT)));
	is(sql($n1, "SELECT count(*) FROM ins WHERE id > 100 AND __repl_clock::text !~ '^[{]1:[0-9]{15}[}]\$'"), '0', 'a clock the user gives is replaced');
	is(sql($n1, 'SELECT count(*) - count(DISTINCT __repl_clock::text) FROM ins'), '0', 'each row has its own clock');
	psql_fails($n1, "INSERT INTO ins VALUES (303, 'future', 0, '{1:36028797018963000}')", '22023', 'too far in the future', 'Leave the column out');
	sql($n1, "INSERT INTO ins VALUES (304, 'ahead', 0, format('{1:%s}', repl_ml.max_counter(repl_ml.tick()) + 3000000)::repl_ml.vclock)");
	rows_are('SELECT count(*), count(DISTINCT id), sum(n) FROM ins', '22|22|46', 'inserted rows');
	is_equal_everywhere(\@nodes, 'ins');
	psql_fails($n1, "INSERT INTO ins VALUES (1, 'again')", '23505', 'duplicate key');
}

sub updates_and_deletes
{
	sql($n1, <<'SQL');
INSERT INTO upd SELECT g, 'v' || g FROM generate_series(1, 20) g;
SQL
	exchange();
	sql($n2, <<'SQL');
INSERT INTO source SELECT g, 'source' || g FROM unnest('{9, 18, 19, 20, 21, 22}'::int[]) g;
UPDATE upd SET n = n + 1 WHERE id <= 3;
UPDATE upd SET n = n + 1 WHERE id <= 2;
BEGIN; UPDATE upd SET n = n + 10 WHERE id = 1; UPDATE upd SET n = n + 10, v = NULL WHERE id = 1; COMMIT;
UPDATE upd u SET v = s.v FROM source s WHERE s.id = u.id;
DELETE FROM upd WHERE id = 4 RETURNING id;
DELETE FROM upd u USING source s WHERE s.id = u.id AND s.id > 18;
MERGE INTO upd u USING source s ON s.id = u.id
  WHEN MATCHED THEN UPDATE SET n = 100
  WHEN NOT MATCHED AND s.id > 21 THEN INSERT (id, v) VALUES (s.id, 'merged');
MERGE INTO upd u USING (VALUES (5), (6)) s (id) ON s.id = u.id WHEN MATCHED AND u.id = 5 THEN DELETE WHEN MATCHED THEN DO NOTHING;
INSERT INTO upd VALUES (7, 'upsert', 7), (30, 'upsert', 30) ON CONFLICT (id) DO UPDATE SET v = EXCLUDED.v, n = upd.n + EXCLUDED.n;
INSERT INTO upd VALUES (8, 'ignored', 7), (31, 'kept', 31) ON CONFLICT DO NOTHING;
SQL
	rows_are('SELECT id, v, n FROM upd WHERE id NOT BETWEEN 10 AND 17 ORDER BY id', <<'ROWS' =~ s/\n\z//r, 'updated rows');
1||22
2|v2|2
3|v3|1
6|v6|0
7|upsert|7
8|v8|0
9|source9|100
18|source18|100
22|merged|0
30|upsert|30
31|kept|31
ROWS
	# each node writes what the other wrote last
	foreach my $i (1 .. 3)
	{
		sql($n1, "UPDATE upd SET n = n + 1 WHERE id < 10");
		exchange();
		sql($n2, "INSERT INTO upd SELECT id, v, 1 FROM upd WHERE id < 10 ON CONFLICT (id) DO UPDATE SET n = upd.n + 1");
		exchange();
	}
	sql($n1, <<'SQL');
DO $$ DECLARE r record; c CURSOR FOR SELECT * FROM upd WHERE id < 3 FOR UPDATE; BEGIN
  FOR r IN c LOOP UPDATE upd SET v = 'cursor' WHERE CURRENT OF c; END LOOP; END $$;
UPDATE upd SET __repl_clock = '{2:36028797018963000}' WHERE id = 6;
UPDATE upd SET __repl_clock = DEFAULT, v = 'default clock' WHERE id = 7;
BEGIN ISOLATION LEVEL SERIALIZABLE; UPDATE upd SET n = 0 WHERE id = 8; DELETE FROM upd WHERE id = 9; INSERT INTO upd VALUES (9, 'serializable'); COMMIT;
SQL
	is(sql($n1, 'SELECT count(*) FROM upd WHERE repl_ml.max_counter(__repl_clock) > 36028797018000000'), '0', 'no clock comes from the future');
	rows_are("SELECT string_agg(id || ' ' || v || ' ' || n, ', ' ORDER BY id) FROM upd WHERE id < 10",
		'1 cursor 28, 2 cursor 8, 3 v3 7, 6 v6 6, 7 default clock 13, 8 v8 0, 9 serializable 0', 'rows written in turns');
}

sub copies
{
	my $file = $n1->basedir . '/cop';

	sql($n1, qq(COPY cop FROM STDIN;\n1\tone\tq1\n2\ttwo\t\\N\n\\.\n));
	sql($n1, qq(COPY cop FROM STDIN (FORMAT csv, HEADER match);\nid,v,"q ""c"\n3,three,"q,3"\n\\.\n));
	sql($n1, qq(COPY cop (v, id) FROM STDIN (DELIMITER ',');\nfour,4\nfive,5\n\\.\n));
	is(sql($n1, 'COPY cop TO STDOUT'), "1\tone\tq1\n2\ttwo\t\\N\n3\tthree\tq,3\n4\tfour\tq\n5\tfive\tq", 'COPY TO has no clock');
	is(sql($n1, 'COPY cop TO STDOUT (FORMAT csv, HEADER)') =~ /\A(.*)\n/ ? $1 : '', 'id,v,"q ""c"', 'nor has its header');
	is(sql($n1, 'COPY (SELECT id, v FROM cop WHERE id = 1) TO STDOUT'), "1\tone", 'COPY of a query');
	sql($n1, "COPY cop TO '$file.bin' (FORMAT binary)");
	exchange();
	sql($n2, 'DELETE FROM cop WHERE id IN (1, 2)');
	exchange();
	sql($n1, "UPDATE cop SET id = id + 10; COPY cop FROM '$file.bin' (FORMAT binary)");
	sql($n1, "COPY cop (id, v) TO '$file.csv' (FORMAT csv); UPDATE cop SET id = id + 100; COPY cop (id, v) FROM '$file.csv' (FORMAT csv) WHERE id <> 15");
	rows_are('SELECT string_agg(id || coalesce("q ""c", v) || twice, $$ $$ ORDER BY id) FROM cop',
		'1q2 2q4 3q6 4q8 5q10 13q26 14q28 101q1202 102two204 103q,3206 104q208 105q210 113q,3226 114q228 115q230', 'copied rows');

	# a clock may be read, but not brought along
	like(sql($n1, 'COPY cop (id, __repl_clock) TO STDOUT'), qr/^1\t\{1:[0-9]+.*\}$/m, 'COPY TO shows the clock when asked');
	sql($n1, qq(COPY cop (id, __repl_clock) FROM STDIN;\n201\t{9:36028797018963000}\n202\t{1:5}\n203\t{}\n\\.\n));
	is(sql($n1, "SELECT count(*) FROM cop WHERE id > 200 AND __repl_clock::text ~ '^[{]1:[0-9]{15}[}]\$'"), '3', 'a copied clock is replaced');
	psql_fails($n1, qq(COPY cop (id, __repl_clock) FROM STDIN;\n204\tnonsense\n\\.\n), '22P02', 'invalid vector clock');
	psql_fails($n1, qq(COPY cop FROM STDIN;\n1\tone\tq1\n\\.\n), '23505', 'duplicate key');
	psql_fails($n1, qq(COPY cop FROM STDIN;\n300\tone\tq1\t{1:5}\n\\.\n), '22P04', 'extra data');
	psql_fails($n1, 'COPY nowhere FROM STDIN', '42P01', 'does not exist');
}

sub key_changes
{
	sql($n1, <<'SQL');
INSERT INTO key1 SELECT g, 'v' || g FROM generate_series(5, 1, -1) g;
INSERT INTO key2 SELECT g, 'b', 'v' || g FROM generate_series(1, 4) g;
UPDATE key1 SET id = id + 1;
SQL
	rows_are('SELECT string_agg(id || v, $$ $$ ORDER BY id) FROM key1', '2v1 3v2 4v3 5v4 6v5', 'a chain of keys');
	sql($n2, 'DO $$ BEGIN FOR i IN 2 .. 6 LOOP UPDATE key1 SET id = i - 1 WHERE id = i; END LOOP; END $$');
	exchange();
	sql($n1, <<'SQL');
BEGIN; UPDATE key1 SET id = 0 WHERE id = 1; UPDATE key1 SET id = 1 WHERE id = 2; UPDATE key1 SET id = 2 WHERE id = 0; COMMIT;
DELETE FROM key1 WHERE id = 4;
SQL
	rows_are('SELECT string_agg(id || v, $$ $$ ORDER BY id) FROM key1', '1v2 2v1 3v3 5v5', 'a swap');
	sql($n2, "UPDATE key1 SET id = 4, v = 'moved' WHERE id = 5; UPDATE key1 SET id = 7 WHERE id = 3; INSERT INTO key1 VALUES (3, 'new'), (5, 'new')");
	exchange();
	sql($n1, <<'SQL');
UPDATE key1 SET id = 8 WHERE id = 4;
BEGIN; UPDATE key1 SET id = 4 WHERE id = 8; UPDATE key1 SET v = 'and changed' WHERE id = 4; COMMIT;
BEGIN; DELETE FROM key1 WHERE id = 5; INSERT INTO key1 VALUES (5, 'a'); DELETE FROM key1 WHERE id = 5; INSERT INTO key1 VALUES (5, 'b'); COMMIT;
BEGIN; INSERT INTO key1 VALUES (9, 'never'); DELETE FROM key1 WHERE id = 9; COMMIT;
UPDATE key1 SET id = id, v = v || '=' WHERE id = 7;
INSERT INTO key1 VALUES (2) ON CONFLICT (id) DO UPDATE SET id = 20;
SQL
	rows_are('SELECT string_agg(id || v, $$ $$ ORDER BY id) FROM key1', '1v2 3new 4and changed 5b 7v3= 20v1', 'keys used again');

	sql($n2, "UPDATE key2 SET a = -a WHERE a > 2; UPDATE key2 SET b = 'B', a = 9 WHERE a = 1; DELETE FROM key2 WHERE a = 2");
	exchange();
	sql($n1, "UPDATE key2 SET a = 2, b = 'b' WHERE a = -3; MERGE INTO key2 USING (VALUES (9, 1)) s (a, x) ON s.a = key2.a WHEN MATCHED THEN UPDATE SET a = s.x, b = 'b'");
	rows_are('SELECT string_agg(a || b || v, $$ $$ ORDER BY a) FROM key2', '-4bv4 1bv1 2bv3', 'keys of two columns');
}

sub reinsertions
{
	my @writers = ($n1, $n1, $n2, $n1, $n2, $n2, $n1);

	sql($n2, "INSERT INTO again SELECT g, 'first' FROM generate_series(1, 6) g");
	foreach my $i (0 .. $#writers)
	{
		exchange();
		sql($writers[$i], 'DELETE FROM again');
		exchange();
		sql($writers[ ($i + 1) % @writers ], <<"SQL");
INSERT INTO again VALUES (1, '$i');
INSERT INTO again VALUES (2, '$i'), (3, '$i');
INSERT INTO again VALUES (4, '$i') ON CONFLICT (id) DO UPDATE SET v = 'not this';
BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT FROM again; INSERT INTO again VALUES (5, '$i'); COMMIT;
COPY again FROM STDIN;
6\t$i
\\.
SQL
		rows_are('SELECT string_agg(id || v, $$ $$ ORDER BY id) FROM again', "1$i 2$i 3$i 4$i 5$i 6$i", "rows inserted again, $i");
	}
	is(conflict_rows($_), '', 'no conflict by inserting again, on ' . $_->name) foreach @nodes;
}

sub truncates
{
	sql($n1, "INSERT INTO trunc SELECT g, 'n1' FROM generate_series(1, 3) g; INSERT INTO trunc_child VALUES (1, 1), (2, 2)");
	exchange();
	sql($n2, "INSERT INTO trunc VALUES (4, 'n2'); UPDATE trunc SET v = 'n2' WHERE id = 2");
	exchange();

	# n1 does not know of row 100 when it truncates
	cut($n1, $n2);
	sql($n2, "INSERT INTO trunc VALUES (100, 'meanwhile')");
	psql_fails($n1, 'TRUNCATE trunc', '0A000', 'foreign key');
	sql($n1, 'TRUNCATE trunc CASCADE');
	heal($n1, $n2);
	rows_are('SELECT id, v FROM trunc', '100|meanwhile', 'what a TRUNCATE did not see stays');
	rows_are('SELECT count(*) FROM trunc_child', '0', 'TRUNCATE cascades');

	sql($n2, "INSERT INTO trunc VALUES (1, 'again'), (4, 'again')");
	exchange();
	sql($n1, "BEGIN; TRUNCATE trunc, trunc_child; INSERT INTO trunc VALUES (1, 'third'); ROLLBACK");
	sql($n1, "BEGIN; TRUNCATE trunc, trunc_child RESTART IDENTITY; INSERT INTO trunc VALUES (1, 'third'); TRUNCATE ONLY trunc CASCADE; INSERT INTO trunc VALUES (4, 'fourth'); COMMIT");
	rows_are('SELECT id, v FROM trunc', '4|fourth', 'TRUNCATE among other statements');
}

sub cascades
{
	sql($n1, <<'SQL');
INSERT INTO parent VALUES ('a'), ('b'), ('c'), ('d');
INSERT INTO child SELECT name, i FROM parent, generate_series(1, 2) i;
INSERT INTO grandchild SELECT name, version, k FROM child, unnest(ARRAY['x', 'y']) k;
INSERT INTO loose SELECT row_number() OVER (), name FROM parent;
INSERT INTO tree VALUES (3, 2), (2, 1), (1, NULL), (10, NULL);
SQL
	exchange();
	sql($n2, <<'SQL');
UPDATE parent SET name = 'renamed' WHERE name = 'a';
UPDATE parent SET v = 'same name' WHERE name = 'b';
DELETE FROM parent WHERE name = 'c';
UPDATE tree SET id = 11, up = 10 WHERE id = 1;
SQL
	exchange();
	sql($n1, <<'SQL');
UPDATE parent SET name = 'a' WHERE name = 'renamed';
INSERT INTO parent VALUES ('c', 'again');
UPDATE child SET name = 'c' WHERE name = 'd' AND version = 2;
DELETE FROM tree WHERE id = 10;
SQL
	rows_are('SELECT string_agg(name || version || key, $$ $$ ORDER BY name, version, key) FROM grandchild',
		'a1x a1y a2x a2y b1x b1y b2x b2y c2x c2y d1x d1y', 'rows written by foreign keys');
	rows_are('SELECT string_agg(id || coalesce(name, $$-$$), $$ $$ ORDER BY id) FROM loose', '1a 2b 3- 4d', 'ON DELETE SET NULL');
	rows_are('SELECT count(*) FROM tree', '0', 'ON DELETE CASCADE within a table');
}

sub subtransactions
{
	sql($n1, <<'SQL');
BEGIN;
INSERT INTO sub VALUES (1, 'one');
SAVEPOINT a;
INSERT INTO sub VALUES (2, 'undone');
UPDATE sub SET v = 'undone' WHERE id = 1;
ROLLBACK TO a;
INSERT INTO sub VALUES (2, 'two');
SAVEPOINT b;
UPDATE sub SET v = 'ONE' WHERE id = 1;
DELETE FROM sub WHERE id = 2;
SAVEPOINT c;
INSERT INTO sub VALUES (2, 'undone');
ROLLBACK TO c;
RELEASE b;
INSERT INTO sub VALUES (3, 'three');
COMMIT;
DO $$ BEGIN
  FOR i IN 1 .. 5 LOOP
    BEGIN
      INSERT INTO sub VALUES (i, 'loop ' || i);
      IF i = 5 THEN RAISE EXCEPTION 'no'; END IF;
    EXCEPTION WHEN unique_violation THEN UPDATE sub SET v = v || ' again' WHERE id = i;
      WHEN raise_exception THEN INSERT INTO sub VALUES (50, 'caught');
    END;
  END LOOP;
END $$;
CREATE PROCEDURE step() LANGUAGE plpgsql AS $$ BEGIN
  INSERT INTO sub VALUES (60, 'p'); COMMIT; INSERT INTO sub VALUES (61, 'p'); ROLLBACK; INSERT INTO sub VALUES (62, 'p'); END $$;
CALL step();
SQL
	rows_are('SELECT string_agg(id || v, $$, $$ ORDER BY id) FROM sub',
		'1ONE again, 2loop 2, 3three again, 4loop 4, 50caught, 60p, 62p', 'subtransactions');
}

sub prepared_transactions
{
	sql($n1, "INSERT INTO prep SELECT g, 'p' FROM generate_series(1, 4) g");
	exchange();
	sql($n2, <<'SQL');
BEGIN; INSERT INTO prep VALUES (10, 'ten'); UPDATE prep SET v = 'two' WHERE id = 2; DELETE FROM prep WHERE id = 3; UPDATE prep SET id = 40 WHERE id = 4;
PREPARE TRANSACTION 'kept';
BEGIN; UPDATE prep SET v = 'lost' WHERE id = 1; INSERT INTO prep VALUES (11, 'lost');
PREPARE TRANSACTION 'lost';
SQL
	sql($n2, "INSERT INTO prep VALUES (20, 'between')");
	exchange();
	is(sql($n1, 'SELECT count(*) FROM prep WHERE id > 9'), '1', 'a prepared transaction is not there before its commit');
	sql($n2, "COMMIT PREPARED 'kept'");
	sql($n2, "ROLLBACK PREPARED 'lost'");
	exchange();
	sql($n1, "INSERT INTO prep VALUES (3, 'again'); DELETE FROM prep WHERE id = 10");
	rows_are('SELECT string_agg(id || v, $$ $$ ORDER BY id) FROM prep', '1p 2two 3again 20between 40p', 'prepared transactions');
}

sub large_transaction
{
	my $digest = 'SELECT count(*), sum(hashtextextended(t::text, 0)) FROM big t';

	sql($n1, "INSERT INTO big SELECT g, repeat('x', 20), 0 FROM generate_series(1, 100000) g");
	exchange();
	sql($n2, 'BEGIN; UPDATE big SET n = 1 WHERE id % 10 = 0; DELETE FROM big WHERE id % 5 = 1; INSERT INTO big SELECT g FROM generate_series(1, 1000, 5) g; COMMIT');
	exchange();
	like(sql($n1, $digest), qr/^80200\|/, 'rows of large transactions');
	is(sql($n2, $digest), sql($n1, $digest), 'large transactions arrive whole');
	sql($n1, 'TRUNCATE big');
	exchange();
	is(sql($n2, 'SELECT count(*) FROM big'), '0', 'a large TRUNCATE');
}

sub replica_role
{
	sql($n1, <<'SQL');
SET session_replication_role = replica;
INSERT INTO replica VALUES (1, 'a'), (2, 'b'), (3, 'c');
UPDATE replica SET v = 'A' WHERE id = 1;
DELETE FROM replica WHERE id = 2;
UPDATE replica SET id = 30 WHERE id = 3;
INSERT INTO replica VALUES (2, 'again');
SQL
	rows_are('SELECT string_agg(id || v, $$ $$ ORDER BY id) FROM replica', '1A 2again 30c', 'a session in replica role');
	sql($n2, 'SET session_replication_role = replica; TRUNCATE replica; INSERT INTO replica VALUES (1)');
	rows_are('SELECT id FROM replica', '1', 'TRUNCATE in replica role');
	sql($n2, 'SET session_replication_role = local; UPDATE replica SET id = 2');
	rows_are('SELECT id FROM replica', '2', 'a session in local role');
}

sub triggers
{
	sql($n1, "INSERT INTO fired VALUES (1, 'a'), (2, 'b'), (3, 'keep'); UPDATE fired SET v = 'c' WHERE id = 1; DELETE FROM fired WHERE id = 2");
	sql($n1, "DELETE FROM fired WHERE id = 3; INSERT INTO fired VALUES (4, 'd') ON CONFLICT (id) DO UPDATE SET v = 'e'");
	exchange();
	sql($n2, "UPDATE fired SET v = 'f' WHERE id = 4");
	rows_are('SELECT id, v, changed FROM fired ORDER BY id', "1|C|2\n3|KEEP|1\n4|F|2", 'a BEFORE trigger changes a row once');
	rows_are('SELECT string_agg(what, $$, $$ ORDER BY what) FROM fired_audit',
		'DELETE 2, INSERT 1, INSERT 2, INSERT 3, INSERT 4, UPDATE 1, UPDATE 4', 'an AFTER trigger fires only where the user wrote');
	my %fired = map { $_->name => sql($_, 'SELECT string_agg(what, $$, $$ ORDER BY what) FROM fired_local') } @nodes;
	is($fired{n1}, 'always DELETE 2, always INSERT 1, always INSERT 2, always INSERT 3, always INSERT 4, always UPDATE 1, always UPDATE 4, replica_only UPDATE 4',
		'ALWAYS and REPLICA triggers on n1');
	like($fired{n2}, qr/^always DELETE 2, always INSERT 1, .*always UPDATE 4, .*replica_only UPDATE 1$/, 'ALWAYS and REPLICA triggers on n2');

	# triggers that run after ours could undo what ours has recorded
	replicate('late', '(id int PRIMARY KEY, v text)');
	sql($n1, <<'SQL');
CREATE FUNCTION late() RETURNS trigger LANGUAGE plpgsql AS
  'BEGIN IF TG_OP = ''DELETE'' THEN IF OLD.v = ''keep'' THEN RETURN NULL; END IF; RETURN OLD; END IF; NEW.__repl_clock := ''{1:1}''; RETURN NEW; END';
CREATE TRIGGER zzz_late BEFORE UPDATE OR DELETE ON late FOR EACH ROW EXECUTE FUNCTION late();
INSERT INTO late VALUES (1, 'keep'), (2, 'go'), (3, 'stay');
SQL
	exchange();
	psql_fails($n1, 'DELETE FROM late WHERE id < 3', '55000', 'trigger "zzz_late" .* fires after "zz_repl_ml_delete"', 'ALTER TRIGGER zzz_late ON public.late RENAME');
	psql_fails($n1, "UPDATE late SET v = 'changed'", '55000', 'fires after "zz_repl_ml_update"', 'RENAME');
	sql($n1, "ALTER TRIGGER zzz_late ON late RENAME TO zz; DELETE FROM late WHERE id < 3; UPDATE late SET v = 'changed'");
	rows_are('SELECT id, v FROM late ORDER BY id', "1|changed\n3|changed", 'triggers after ours');
}

sub generated_columns
{
	sql($n1, "INSERT INTO gen (id, a, d) VALUES (1, 1, 'x'), (2, 2, 'y'); INSERT INTO ident (v) VALUES ('i'), ('j')");
	exchange();
	sql($n2, "UPDATE gen SET a = 5 WHERE id = 1; UPDATE gen SET d = NULL, id = 3 WHERE id = 2; UPDATE ident SET v = 'k' WHERE v = 'j'");
	sql($n2, "INSERT INTO ident OVERRIDING SYSTEM VALUE VALUES (10, 'l')");
	rows_are('SELECT id, a, b, c, d FROM gen ORDER BY id', "1|5|50|X|x\n3|2|20||", 'generated columns');
	rows_are('SELECT v, id = 10 FROM ident ORDER BY v', "i|f\nk|f\nl|t", 'identity columns');
	psql_fails($n1, 'CREATE TABLE gen_key (a int, k int GENERATED ALWAYS AS (a + 1) STORED PRIMARY KEY); SELECT repl_ml.add_table($$gen_key$$)',
		'55000', 'generated column', 'ADD PRIMARY KEY');
	psql_fails($n1, 'CREATE TABLE no_identity (k int PRIMARY KEY); ALTER TABLE no_identity REPLICA IDENTITY NOTHING; SELECT repl_ml.add_table($$no_identity$$)',
		'55000', 'no replica identity', 'REPLICA IDENTITY DEFAULT');
}

sub long_values
{
	my $sums = 'SELECT id, n, length(v), md5(v), md5(w) FROM toast ORDER BY id';

	sql($n1, q(INSERT INTO toast SELECT g, 0, repeat('long' || g, 20000), decode(repeat('00ff', 50000), 'hex') FROM generate_series(1, 3) g));
	exchange();
	sql($n1, 'UPDATE toast SET n = 1 WHERE id = 1');
	sql($n2, 'UPDATE toast SET n = 2, w = NULL WHERE id = 2');
	exchange();

	# n2 has an older value when the unchanged newer one goes by
	cut($n2, $n1);
	sql($n1, "UPDATE toast SET v = repeat('newer', 20000) WHERE id = 1; UPDATE toast SET n = n + 1 WHERE id = 1; UPDATE toast SET n = n + 1, id = 11 WHERE id = 1");
	sql($n1, "INSERT INTO toast SELECT 4, 4, v, w FROM toast WHERE id = 3; UPDATE toast SET n = 5 WHERE id = 4; DELETE FROM toast WHERE id = 3");
	heal($n2, $n1);
	exchange();
	sql($n2, "INSERT INTO toast SELECT 3, n, v, w FROM toast WHERE id = 4; UPDATE toast SET n = 6 WHERE id = 3");
	exchange();
	is(sql($n1, 'SELECT string_agg(id || $$:$$ || n || $$:$$ || length(v) || $$:$$ || coalesce(length(w), -1), $$ $$ ORDER BY id) FROM toast'),
		'2:2:100000:-1 3:6:100000:100000 4:5:100000:100000 11:3:100000:100000', 'out-of-line values');
	is(sql($n2, $sums), sql($n1, $sums), 'out-of-line values are the same');
}

sub types
{
	sql($n1, <<'SQL');
INSERT INTO types (id) VALUES (0);
INSERT INTO types VALUES (1, '{"b" : 1,  "a":[1, null], "b":2}', '{"b": 1, "a": [1e400, null, "\u00e4"]}', '{1,NULL,3}', '[2:3][-1:0]={{a,"b \"c"},{NULL,""}}',
  'NaN', 'NaN', 'Infinity', 'infinity', '-infinity', 'infinity', '24:00', '23:59:59.999999-15:59', '-1 mon +3 days -04:05:06.7', '[1,5)', '{[2020-01-01,2020-02-01),[2021-01-01,)}',
  '["2020-01-01 00:00+03","infinity")', 'h "a,p''py', 5, ROW(1, E'x"\\,\n'), ARRAY[ROW(NULL, NULL), ROW(2, '(')]::pair[], '\x00ff27', true,
  'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11', 'ab', 'ü', '101', '', '::1/64', '08:00:2b:01:02:03', '(1e-300,-0)', '''a'' b:2', 'nm', 'c', 4294967295, '16/B374D848');
INSERT INTO types (id, nr, f4, f8, d, ts, tz, r, jb, j, b, arr, c) VALUES
  (2, 'Infinity', 1.1754944e-38, 4.9406564584124654e-324, '4713-11-24 BC', '294276-12-31 23:59:59.999999', '4713-01-01 00:00 BC', 'empty', 'null', 'null', '', '{}', ''),
  (3, '-Infinity', '-0', 1.7976931348623157e308, '5874897-12-31', 'epoch', '2020-02-29 23:59:59.5+13', '(,)', '"\ud83d\ude00"', '"\u0041"', '\x5c', '{{1},{2}}', 'x'),
  (4, '1.000', 0.1, 0.1, '0001-01-01', '0001-01-01 BC', '1900-01-01 00:00:00 Europe/Amsterdam', '[,5]', '1.10', '1.10', 'a\\000b', '[5:5]={1}', NULL),
  (5, ('1' || repeat('0', 5000) || '.' || repeat('1', 3000))::numeric, 1e38, 0.1 + 0.2, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL);
SQL
	# an update writes the values again; odd settings change nothing
	exchange();
	$n2->safe_psql('postgres', <<'SQL');
SET DateStyle = 'German'; SET IntervalStyle = sql_standard; SET TimeZone = 'Asia/Kathmandu'; SET extra_float_digits = -15; SET bytea_output = escape;
UPDATE types SET vc = 'upd' WHERE id <> 1;
INSERT INTO types SELECT id + 10, j, jb, arr, arr2, nr, f4, f8, d, ts, tz, tm, tmz, iv, r, mr, tzr, e, dom, comp, comps, b, bo, u, c, vc, bit, vb, ip, mac, p, ts_v, nm, "char", o, lsn FROM types;
SQL
	exchange();
	my $text = "SELECT id, array_to_string(ARRAY[types::text], '') FROM types ORDER BY id";
	is(sql($n2, $text), sql($n1, $text), 'values of all types are the same');
	is(sql($n2, 'SELECT count(*) FROM types a JOIN types b ON b.id = a.id + 10 WHERE (a.nr, a.f8, a.tz, a.iv, a.e, a.comp, a.b) IS DISTINCT FROM (b.nr, b.f8, b.tz, b.iv, b.e, b.comp, b.b)'), '0', 'nothing is rounded');
}

sub names
{
	sql($n1, <<"SQL");
INSERT INTO "Sch""e.m ä"."a""b" VALUES (1, 'ä', 'b'), (2, 'ö', 'c');
INSERT INTO "Ünï" VALUES ('ключ', 1, 'x'), ('kl', 2, 'y');
INSERT INTO "with.dot's" VALUES (1, 'x'), (2, 'y');
INSERT INTO "$long" VALUES (1, 'x'), (2, 'y');
SQL
	exchange();
	sql($n2, <<"SQL");
UPDATE "Sch""e.m ä"."a""b" SET "wert.ü" = 'ü' WHERE "i ""d" = 1; DELETE FROM "Sch""e.m ä"."a""b" WHERE "i ""d" = 2;
UPDATE "Ünï" SET "ключ" = 'новый' WHERE "select" = 1; DELETE FROM "Ünï" WHERE "select" = 2;
UPDATE "with.dot's" SET "\\back" = 'z', "id'" = 3 WHERE "id'" = 1; DELETE FROM "with.dot's" WHERE "id'" = 2;
UPDATE "$long" SET v = 'z', "$long" = 3 WHERE "$long" = 1; DELETE FROM "$long" WHERE "$long" = 2;
SQL
	rows_are('SELECT "i ""d", "wert.ü", "CamelCase" FROM "Sch""e.m ä"."a""b"', '1|ü|b', 'quotes in names');
	rows_are('SELECT "ключ", "select", v FROM "Ünï"', 'новый|1|x', 'letters in names');
	rows_are(qq(SELECT "id'", "\\back" FROM "with.dot's"), '3|z', 'dots in names');
	rows_are(qq(SELECT "$long", v FROM "$long"), '3|z', 'long names');
	is(sql($n2, 'COPY "Sch""e.m ä"."a""b" TO STDOUT'), "1\tü\tb", 'COPY of a table with a strange name');
}

sub types_of_keys
{
	my $odd = q(SET DateStyle = 'SQL, DMY'; SET IntervalStyle = iso_8601; SET TimeZone = 'Asia/Kathmandu'; SET extra_float_digits = -15; SET bytea_output = escape; SET search_path = '';);
	my $fill = <<'SQL';
INSERT INTO public.key_float VALUES (0.1, 0.1), (0.30000000000000004, 16777217), ('NaN', '-Infinity'), ('-0', 1e-45), (1e308, 3.4e38);
INSERT INTO public.key_time SELECT t, t, t::date, x FROM unnest('{2020-03-04 05:06:07.000001+00, infinity, -infinity, 0044-03-15 BC, 99999-12-31}'::timestamptz[]) t, unnest('{1 mon -2 days, 30:00:00.5}'::interval[]) x;
INSERT INTO public.key_bytea VALUES ('\x00'), ('\x5c785c'), (''), ('\xe4'), ('abc');
INSERT INTO public.key_other SELECT 'h "a,p''py', '["2020-03-04 05:06:07+00",infinity)', ARRAY[f, NULL, 'NaN'], '(1,x)'::public.pair, '{"a": 1.10}', true, 'ab' FROM unnest('{0.1, 0.30000000000000004, 1e-320}'::float8[]) f;
SQL
	my $count = 'SELECT (SELECT count(*) FROM key_float), (SELECT count(*) FROM key_time), (SELECT count(*) FROM key_bytea), (SELECT count(*) FROM key_other)';

	sql($n1, $fill);
	rows_are($count, '5|10|5|3', 'keys of many types');
	sql($n2, "$odd UPDATE public.key_float SET v = 'u'; UPDATE public.key_time SET v = 'u', d = d + 1 WHERE isfinite(d); UPDATE public.key_bytea SET v = 'u', k = k || '\\x01'; UPDATE public.key_other SET v = 'u', a = a || 1.1");
	rows_are($count, '5|10|5|3', 'changed keys of many types');
	sql($n1, "$odd DELETE FROM public.key_float; DELETE FROM public.key_time; DELETE FROM public.key_bytea; DELETE FROM public.key_other");
	rows_are($count, '0|0|0|0', 'deleted keys of many types');
	sql($n2, $odd . $fill);
	exchange();
	sql($n1, "$odd TRUNCATE public.key_float, public.key_time, public.key_bytea, public.key_other");
	rows_are($count, '0|0|0|0', 'truncated keys of many types');
	sql($n1, $fill);

	# keys that are equal without being identical
	sql($n1, "INSERT INTO key_numeric VALUES (1.0, 'a'), (2.0, 'b'), (3, 'c'), ('NaN', 'n'), (0, 'z')");
	exchange();
	sql($n2, "UPDATE key_numeric SET k = 1.00 WHERE k = 1; DELETE FROM key_numeric WHERE k = 2.000");
	rows_are('SELECT k, v FROM key_numeric ORDER BY k', "0|z\n1.00|a\n3|c\nNaN|n", 'an equal key is the same row');
	sql($n1, "INSERT INTO key_numeric VALUES (2.00, 'again'); DELETE FROM key_numeric WHERE k IN (3, 'NaN', 0)");
	exchange();
	sql($n2, "INSERT INTO key_numeric VALUES (3.00, 'again'), ('nan', 'again'), (0.000, 'again')");
	rows_are('SELECT k, v FROM key_numeric ORDER BY k', "0.000|again\n1.00|a\n2.00|again\n3.00|again\nNaN|again", 'an equal key inserted again');
}

# Keys under a collation that ignores case, where the server has ICU.
sub keys_without_case
{
	my $sql = "CREATE COLLATION nocase (provider = icu, locale = 'und-u-ks-level2', deterministic = false)";

	if ($n1->psql('postgres', $sql) != 0 || $n2->psql('postgres', $sql) != 0)
	{
		note 'no ICU: keys without case are not tested';
		return;
	}
	replicate('key_nocase', '(k text COLLATE nocase PRIMARY KEY, v text)');
	sql($n1, "INSERT INTO key_nocase VALUES ('Key', 'a'), ('other', 'b')");
	exchange();
	sql($n2, "UPDATE key_nocase SET k = 'KEY' WHERE k = 'key'; DELETE FROM key_nocase WHERE k = 'OTHER'");
	exchange();
	sql($n1, "INSERT INTO key_nocase VALUES ('oTHER', 'again')");
	exchange();
	sql($n2, "UPDATE key_nocase SET k = 'third' WHERE k = 'other'; INSERT INTO key_nocase VALUES ('Other', 'moved')");
	rows_are('SELECT k, v FROM key_nocase ORDER BY k', "KEY|a\nOther|moved\nthird|again", 'keys without case');
}

sub unprivileged
{
	my $as = 'SET ROLE plain;';

	sql($_, 'CREATE ROLE plain; GRANT ALL ON ALL TABLES IN SCHEMA public TO plain') foreach @nodes;
	sql($n1, "$as INSERT INTO again VALUES (70, 'plain'), (71, 'plain'); UPDATE again SET v = 'PLAIN' WHERE id = 70; DELETE FROM again WHERE id = 71");
	sql($n1, "$as INSERT INTO again VALUES (71, 'again'); UPDATE again SET id = 72 WHERE id = 71;\nCOPY again FROM STDIN;\n71\tcopied\n\\.\n");
	rows_are('SELECT id, v FROM again WHERE id >= 70 ORDER BY id', "70|PLAIN\n71|copied\n72|again", 'a user without other rights');
	psql_fails($n1, "$as SELECT * FROM repl_ml.tombstone", '42501', 'permission denied');
	sql($n2, "$as TRUNCATE again; INSERT INTO again VALUES (70, 'last')");
	rows_are('SELECT id, v FROM again', '70|last', 'TRUNCATE by a user without other rights');
}

# A trigger that fires on every node may not write replicated tables: each node would have its own rows.
sub trigger_in_apply
{
	sql($_, 'ALTER TABLE fired ENABLE ALWAYS TRIGGER audit') foreach @nodes;
	sql($n1, "INSERT INTO fired VALUES (20, 'x')");
	exchange();
	is(sql($n2, 'SELECT table_name, sqlstate, message FROM repl_ml.parked_changes'),
		'fired|27000|a trigger wrote a replicated table while a change was applied', 'such a change is parked');
	sql($_, 'ALTER TABLE fired ENABLE TRIGGER audit') foreach @nodes;
	sql($n2, 'SELECT repl_ml.retry_parked(id) FROM repl_ml.parked_changes');
	rows_are('SELECT id, v FROM fired WHERE id = 20', '20|X', 'and comes when the trigger is as it should be');
	is_equal_everywhere(\@nodes, $_) foreach qw(fired fired_audit);
	is(conflict_rows($_), '', 'no conflict by triggers on ' . $_->name) foreach @nodes;
}
