# Statements that take rows of a replicated table as wholes do what they did before the table had a clock: a record
# without one is inserted with the default, rows are compared and joined, and no client needs repl_ml in its search path.
#
# Seen failing without the hooks of whole_row.c: the first INSERT violates NOT NULL. With the operators = and <>
# outside pg_catalog: "operator does not exist".
use strict;
use warnings;
use ReplMl;
use Test::More;

my @nodes = new_group(2, <<'SQL');
CREATE TABLE t (id int PRIMARY KEY, v text);
CREATE TABLE u (id int PRIMARY KEY, w text);
CREATE TABLE p (id int PRIMARY KEY, v text) PARTITION BY RANGE (id);
CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (1) TO (1000);
SELECT repl_ml.add_all_tables();
CREATE VIEW all_of_t AS SELECT * FROM t;
CREATE TABLE source (id int, v text);
SQL
my ($n1, $n2) = @nodes;

# INSERT: each of them one row
my $record = q(jsonb_populate_record(NULL::t, '{"id": %d, "v": "x"}'));
my $id = 0;
foreach my $insert (
	"INSERT INTO t SELECT * FROM $record",
	"INSERT INTO t SELECT ($record).*",
	"INSERT INTO t (id, v, __repl_clock) VALUES (%d, 'x', NULL)",
	"INSERT INTO t VALUES (%d, 'x', NULL), (-%d, 'y', DEFAULT)",
	"INSERT INTO t SELECT * FROM $record ON CONFLICT (id) DO UPDATE SET (id, v, __repl_clock) = ROW (EXCLUDED.*)",
	"INSERT INTO all_of_t SELECT * FROM $record",
	"WITH i AS (INSERT INTO t SELECT * FROM $record RETURNING *) SELECT FROM i",
	"MERGE INTO t USING $record s ON t.id = s.id WHEN NOT MATCHED THEN INSERT VALUES (s.id, s.v, s.__repl_clock)",
	"DO \$\$ DECLARE r t; BEGIN r.id := %d; r.v := 'x'; INSERT INTO t VALUES (r.*); END \$\$",
	"PREPARE i (int, text, repl_ml.vclock) AS INSERT INTO t VALUES (\$1, \$2, \$3); EXECUTE i (%d, 'x', NULL)",
	"INSERT INTO p SELECT * FROM jsonb_populate_record(NULL::p, '{\"id\": %d}')")
{
	$id++;
	sql($n1, sprintf($insert, $id, $id));
	is(sql($n1, "SELECT count(*) FROM (TABLE t UNION ALL TABLE p) r WHERE id = $id AND repl_ml.last_writer(__repl_clock) = 1"), '1', $insert);
}
sql($n1, sprintf("INSERT INTO t SELECT * FROM $record ON CONFLICT (id) DO UPDATE SET (id, v, __repl_clock) = ROW (EXCLUDED.*)", 5));
sql($n1, 'CREATE RULE also AS ON INSERT TO source DO ALSO INSERT INTO t VALUES (NEW.id, NEW.v, NULL)');
sql($n1, q(INSERT INTO source VALUES (50, 'by a rule')));
wait_converged(\@nodes, qw(t p));
is(sql($n2, 'SELECT count(*) FROM t WHERE id = 50'), '1', 'a rule inserts');

# comparing whole rows
is(sql($n1, $_), '1', $_) foreach
  'SELECT count(*) FROM t a JOIN t b USING (id) WHERE ROW (a.*) = ROW (b.*) AND id = 1',
  'SELECT count(*) FROM t a JOIN t b USING (id) WHERE NOT ROW (a.*) <> ROW (b.*) AND id = 1',
  'SELECT count(*) FROM t a JOIN t b USING (id) WHERE NOT ROW (a.*) IS DISTINCT FROM ROW (b.*) AND id = 1',
  'SELECT count(*) FROM t a, t b WHERE a = b AND a.id = 1',
  'SELECT count(DISTINCT t.*) FROM t WHERE id = 1',
  'SELECT count(*) FROM (SELECT t FROM t WHERE id = 1 GROUP BY t) q',
  'SELECT count(*) FROM (TABLE t UNION TABLE t) q WHERE id = 1',
  'SELECT count(*) FROM (SELECT t FROM t WHERE id = 1 ORDER BY t) q',
  'SET enable_hashjoin = off; SET enable_nestloop = off; SELECT count(*) FROM t a NATURAL JOIN t b WHERE id = 1';

# NATURAL JOIN means the user's columns, whichever way it is written
sql($n1, q(INSERT INTO u SELECT id, 'w' FROM t));
my $rows = sql($n1, 'SELECT count(*) FROM t');
foreach my $join ('JOIN', 'LEFT JOIN', 'RIGHT JOIN', 'FULL JOIN')
{
	is(sql($n1, "SELECT count(*), count(v), count(w), count(__repl_clock) FROM t NATURAL $join u"), "$rows|$rows|$rows|$rows", "NATURAL $join");
}
is(sql($n1, 'SELECT count(*) FROM (SELECT * FROM t NATURAL JOIN u WHERE id = 1) q'), '1', 'in a subquery');
is(sql($n1, 'WITH q AS (SELECT * FROM t NATURAL JOIN u) SELECT count(*) FROM q WHERE id = 1'), '1', 'in a common table expression');
is(sql($n1, 'SELECT count(*) FROM t NATURAL JOIN (SELECT id FROM u) q'), $rows, 'without a clock on one side');
is(sql($n1, 'SELECT count(*) FROM t a NATURAL JOIN u b NATURAL JOIN t c'), $rows, 'of three tables');
is(sql($n1, 'SELECT count(*) FROM t JOIN u USING (id, __repl_clock)'), $rows, 'nor does USING compare clocks, which is what a dump makes of it');
is(sql($n1, 'SELECT count(*) > 0 FROM (SELECT __repl_clock FROM t LIMIT 2) a JOIN (SELECT __repl_clock FROM u LIMIT 2) b USING (__repl_clock)'), 't', 'nor if there is nothing else');
is(sql($n1, 'SELECT count(*) FROM t JOIN u ON t.id = u.id AND t.__repl_clock = u.__repl_clock'), '0', 'ON does, for who means it');
# the definition of a view, which a dump has, makes the same view
my $number = 0;
foreach my $query (
	'SELECT * FROM t NATURAL JOIN u', 'SELECT * FROM (t NATURAL JOIN u) j', 'SELECT j.* FROM (t NATURAL LEFT JOIN u) j (a, b, c, d)',
	'SELECT * FROM t NATURAL FULL JOIN u', 'SELECT * FROM t a NATURAL JOIN u b NATURAL JOIN t c', 'SELECT j.c FROM (t NATURAL JOIN u) j (a, b, c) JOIN t ON t.id = j.a',
	'SELECT count(*) FROM (SELECT __repl_clock FROM t LIMIT 2) a NATURAL JOIN (SELECT __repl_clock FROM u LIMIT 2) b')
{
	my ($view, $again) = ('joined' . ++$number, "again$number");
	sql($n1, "CREATE VIEW $view AS $query");
	sql($n1, "CREATE VIEW $again AS " . sql($n1, "SELECT pg_get_viewdef('$view')"));
	is(sql($n1, "SELECT pg_get_viewdef('$again') = pg_get_viewdef('$view'), (SELECT count(*) FROM $again) = (SELECT count(*) FROM ($query) q), count(*) > 0 FROM $view"),
		't|t|t', "a view that is restored: $query");
}
sql($n1, q(CREATE FUNCTION f() RETURNS bigint LANGUAGE plpgsql AS 'BEGIN RETURN (SELECT count(*) FROM t NATURAL JOIN u); END'));
is(sql($n1, 'SELECT f()'), $rows, 'in a function');
is(sql($n1, 'EXPLAIN (COSTS off) SELECT FROM t NATURAL JOIN u') =~ /__repl_clock/ ? 1 : 0, 0, 'EXPLAIN');

# without the extension nothing of it is in the way
sql($n2, 'CREATE DATABASE plain');
is($n2->safe_psql('plain', 'CREATE TABLE t (id int, __repl_clock int); INSERT INTO t VALUES (1, NULL); SELECT count(*) FROM t NATURAL JOIN t u'), '0', 'a database without repl_ml');
done_testing();
