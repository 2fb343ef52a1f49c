# What is changed of the schema on one node is changed on all, with the rows of its transaction, in one order; who has not got a
# change yet reads no row of the new shape, and rows of the old one meet it by rule.
use strict;
use warnings;
use ReplMl;
use Test::More;

my ($n1, $n2, $n3) = my @nodes = new_group(3, q(
CREATE TABLE t (id int PRIMARY KEY, a text, c int, d text);
INSERT INTO t SELECT g, 'old', g, 'x' FROM generate_series(1, 3) g;
CREATE ROLE owner;
SELECT repl_ml.add_all_tables()));

sql($_, 'CREATE ROLE owner') foreach $n2, $n3;
foreach my $node (@nodes)
{
	sql($node, 'ALTER SYSTEM SET repl_ml.replicate_ddl = on');
	sql($node, 'SELECT pg_reload_conf()');
}
sub everywhere
{
	my ($sql, $expected, $name) = @_;
	is(sql($_, $sql), $expected, "$name on " . $_->name) foreach @nodes;
	return;
}
sub nothing_parked { everywhere('SELECT count(*) FROM repl_ml.parked_changes', '0', 'nothing is parked'); return; }

# a migration in one transaction; n2 does not hear of it, and writes rows of the old shape
sql($n1, 'CREATE TABLE first (id int PRIMARY KEY)');
cut($n2, $n1);
sql($n1, q(
BEGIN;
CREATE TABLE u (id serial PRIMARY KEY, v text);
INSERT INTO u (v) VALUES ('one');
ALTER TABLE t ADD COLUMN b int NOT NULL DEFAULT 7, ADD COLUMN at timestamptz DEFAULT now();
ALTER TABLE t RENAME COLUMN a TO name;
ALTER TABLE t DROP COLUMN d;
ALTER TABLE t ALTER COLUMN c TYPE bigint;
UPDATE t SET b = 8 WHERE id = 1;
COMMIT));
sql($n2, q(INSERT INTO t VALUES (12, 'n2', 12, 'gone')));
sql($n2, q(UPDATE t SET a = 'changed' WHERE id = 2));

# n3 has the new shape; n2 waits with n3's stream until it has it, too
sql($n3, q(INSERT INTO t (id, name, b, at) VALUES (13, 'n3', 9, '2020-01-01')));
poll_until($n3, q(SELECT name = 'n2' FROM t WHERE id = 12));
poll_until($n2, q(SELECT count(*) = 1 FROM pg_stat_activity WHERE backend_type = 'repl_ml apply' AND wait_event = 'Extension'));
is(sql($n2, 'SELECT count(*) FROM t WHERE id = 13'), 0, 'a row of a shape that is not here yet waits');
is(sql($n2, 'SELECT count(*) FROM repl_ml.parked_changes'), 0, 'and is not parked');
heal($n2, $n1);
wait_converged(\@nodes, 't', 'u', 'first');
everywhere(q(SELECT string_agg(concat_ws(' ', id, name, c, b), ', ' ORDER BY id) FROM t),
	'1 old 1 8, 2 changed 2 7, 3 old 3 7, 12 n2 12 7, 13 n3 9', 'rows of both shapes');
is(sql($n2, q(SELECT at = (SELECT changed_at FROM repl_ml.schema_change WHERE statement LIKE '%now()%') FROM t WHERE id = 3)), 't', 'a default is computed once');
nothing_parked();
done_testing();
