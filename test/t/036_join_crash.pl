# A join that a crash of the joining node or of its donor interrupts goes on by itself and ends complete.
use strict;
use warnings;
use Membership;
use ReplMl;
use Test::More;

my $rows = 150_000;
my ($n1, $n2) = new_group(2, <<"SQL");
CREATE TABLE big (id integer PRIMARY KEY, v text NOT NULL);
INSERT INTO big SELECT i, md5(i::text) FROM generate_series(1, $rows) i;
CREATE TABLE small (id integer PRIMARY KEY, n integer NOT NULL DEFAULT 0);
SELECT repl_ml.add_all_tables();
INSERT INTO small SELECT i FROM generate_series(1, 100) i;
DELETE FROM big WHERE id % 1000 = 0;
SQL
my $n3 = new_node('n3');

# Waits until the big table is being copied to n3.
sub await_copy
{
	poll_until($n3, q(SELECT count(*) > 0 FROM repl_ml.stat_apply WHERE copy_relation::text = 'big' AND copy_rows > 0));
}

sub copy_state { return sql($n3, q(SELECT state FROM repl_ml.table_sync WHERE table_name = 'big' AND node_id = 1)) }

my $writer = start_writer($n2, <<'SQL');
\set i random(1, 100)
UPDATE small SET n = n + 1 WHERE id = :i;
DELETE FROM big WHERE id = 140000 + :i;
INSERT INTO big VALUES (140000 + :i, 'again') ON CONFLICT (id) DO UPDATE SET v = 'updated';
SQL

sql($n3, 'CREATE EXTENSION repl_ml');
sql($n3, "SELECT repl_ml.join_group('n3', " . literal(dsn($n3)) . ', ' . literal(dsn($n1)) . ', wait => false)');
foreach my $crash ([ $n3, 'immediate' ], [ $n1, 'immediate' ], [ $n3, 'kill9' ], [ $n1, 'kill9' ])
{
	my ($node, $how) = @$crash;
	await_copy();
	crash_and_restart($node, $how);
	is(copy_state(), 'pending', "$how of " . $node->name . ' was in the middle of the copy');
}

# while it joins it is not for writing
psql_fails($n3, 'INSERT INTO small VALUES (1000)', '55000', 'node "n3" is still joining the group', 'wait_for_node');

poll_until($n3, q(SELECT state = 'ready' FROM repl_ml.nodes WHERE is_local));
stop_writer($writer);
sql($n3, 'INSERT INTO small VALUES (1000)');
wait_converged([ $n1, $n2, $n3 ], qw(big small));
no_errors([ $n1, $n2, $n3 ]);
is(sql($n3, 'SELECT count(*) FROM small'), '101', 'n3 has all rows');

done_testing();
