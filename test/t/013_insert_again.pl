# A key that is used again by a node that had seen its row deleted or moved away is no conflict, also
# on a node that hears of the deletion only afterwards; one that had not seen it is exactly one.
use strict;
use warnings;
use lib 'test';
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use ReplMl;
use Test::More;

my ($n1, $n2, $n3) = my @nodes = new_group(3, <<'SQL');
CREATE TABLE t (id int PRIMARY KEY, v text);
CREATE TABLE other (id int PRIMARY KEY, v text);
CREATE TABLE own (id int PRIMARY KEY, v text);
CREATE FUNCTION own_row() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN UPDATE public.own SET v = v || ''+'' WHERE id = NEW.id; RETURN NULL; END';
CREATE TRIGGER "A_first" AFTER INSERT ON own FOR EACH ROW EXECUTE FUNCTION own_row();
INSERT INTO t SELECT g, 'first' FROM generate_series(1, 5) g;
SELECT repl_ml.add_all_tables();
SQL

# n3 does not hear n1, who deletes; n2 does, and uses the keys again
cut($n3, $n1);
sql($n1, 'DELETE FROM t WHERE id IN (1, 2, 3); UPDATE t SET id = 40 WHERE id = 4');
poll_until($n2, 'SELECT count(*) = 0 FROM t WHERE id < 5');
sql($n2, "INSERT INTO t VALUES (1, 'again'); INSERT INTO t VALUES (2, 'again') ON CONFLICT (id) DO UPDATE SET v = 'no'; UPDATE t SET id = 3, v = 'moved' WHERE id = 5");
sql($n2, "BEGIN; INSERT INTO t VALUES (4, 'a'); UPDATE t SET v = 'b' WHERE id = 4; DELETE FROM t WHERE id = 4; INSERT INTO t VALUES (4, 'c'); COMMIT");
poll_until($n3, "SELECT count(*) = 1 FROM t WHERE id = 4 AND v = 'c'");
is(sql($n3, 'SELECT string_agg(id || v, $$ $$ ORDER BY id) FROM t'), '1again 2again 3moved 4c', 'the new rows are there before the deletions');
heal($n3, $n1);
wait_converged(\@nodes, 't');
is(sql($n3, 'SELECT string_agg(id || v, $$ $$ ORDER BY id) FROM t'), '1again 2again 3moved 4c 40first', 'rows after the deletions');
is(conflict_rows($_), '', 'no conflict on ' . $_->name) foreach @nodes;

# a trigger before ours may write the new row
sql($n1, "INSERT INTO own VALUES (1, 'x')");
wait_converged(\@nodes);
sql($n1, 'DELETE FROM own');
wait_converged(\@nodes);
sql($n2, "INSERT INTO own VALUES (1, 'y')");
wait_converged(\@nodes, 'own');
is(sql($n3, 'SELECT v FROM own'), 'y+', 'the row its own trigger wrote');
is(conflict_rows($_), '', 'no conflict by it on ' . $_->name) foreach @nodes;

# a transaction that had not seen the other's row loses once, whatever it does to the row
sql($n1, "INSERT INTO other SELECT g, 'first' FROM generate_series(1, 2) g");
wait_converged(\@nodes);
cut($n1, $n2);
cut($n2, $n1);
sql($n1, "BEGIN; UPDATE other SET v = 'n1 a'; UPDATE other SET v = 'n1 b'; DELETE FROM other WHERE id = 2; INSERT INTO other VALUES (2, 'n1 c'); COMMIT");
sql($n2, "UPDATE other SET v = 'n2'");
heal($n1, $n2);
heal($n2, $n1);
wait_converged(\@nodes, 'other');
is(sql($n3, 'SELECT string_agg(id || v, $$ $$ ORDER BY id) FROM other'), '1n2 2n2', 'the later writes won');
is(sql($_, "SELECT key, count(*), count(DISTINCT conflict_id) FROM repl_ml.conflicts WHERE table_name = 'other' GROUP BY 1 ORDER BY 1"), "{1}|1|1\n{2}|1|1", 'one conflict a row on ' . $_->name)
  foreach @nodes;
done_testing();
