# A node that leaves or is dropped is gone for the others, and what it keeps is ordinary.
use strict;
use warnings;
use Membership;
use ReplMl;
use Test::More;

my @tables = ('item', '"Odd ""name"');
my ($n1, $n2, $n3) = my @nodes = new_group(3, <<'SQL');
CREATE TABLE item (id integer PRIMARY KEY, v text);
CREATE TABLE "Odd ""name" (id integer PRIMARY KEY, item integer REFERENCES item);
CREATE TABLE not_enrolled (id integer PRIMARY KEY);
INSERT INTO item SELECT i, i FROM generate_series(1, 100) i;
SELECT repl_ml.add_table('item'), repl_ml.add_table('"Odd ""name"');
SQL

sub gone_everywhere
{
	my ($id, @from) = @_;
	poll_until($_, "SELECT state = 'dropped' FROM repl_ml.nodes WHERE node_id = $id") foreach @from;
	foreach my $node (@from)
	{
		my $like = "LIKE 'repl\\_ml\\_%\\_$id'";
		poll_until($node, "SELECT NOT EXISTS (SELECT FROM pg_replication_slots WHERE slot_name $like) AND NOT EXISTS (SELECT FROM pg_replication_origin WHERE roname $like)"
			  . " AND NOT EXISTS (SELECT FROM repl_ml.stat_apply WHERE node_id = $id)");
		is(left_behind($node, $id), '', $node->name . " keeps nothing for node $id");
	}
}

# what it wrote last goes to the others before it leaves
sql($n3, q(INSERT INTO item VALUES (101, 'last of n3'); DELETE FROM item WHERE id = 50));
sql($n3, 'SELECT repl_ml.leave_group()');
is_clean($n3, 'n3 has nothing of the group');
gone_everywhere(3, $n1, $n2);
wait_converged([ $n1, $n2 ], @tables);
is(sql($n1, q(SELECT count(*), max(id) FROM item)), '100|101', 'n1 has the last writes of n3');
sql($n3, q(UPDATE item SET v = 'alone'; TRUNCATE item CASCADE; ALTER TABLE item RENAME TO renamed; DROP TABLE renamed CASCADE));
sql($n1, q(INSERT INTO item VALUES (200, 'n1'))); sql($n2, q(UPDATE item SET v = 'n2' WHERE id = 1));
wait_converged([ $n1, $n2 ], @tables);
psql_fails($n3, 'SELECT repl_ml.leave_group()', '55000', 'not a member', 'Nothing needs to be done');
psql_fails($n3, q(SELECT repl_ml.add_table('not_enrolled')), '55000', 'not a member', 'create_group');

# under its old name it comes back with a new id
sql($n3, 'DROP TABLE "Odd ""name"');
sql($n3, call('join_group', 'n3', dsn($n3), dsn($n2)));
poll_until($_, q(SELECT string_agg(node_id || ' ' || state, ', ' ORDER BY node_id) FROM repl_ml.nodes WHERE node_name = 'n3'),
	'3 dropped, 4 ready') foreach @nodes;
wait_converged(\@nodes, @tables);

# dropping: whom, and by whom
psql_fails($n1, q(SELECT repl_ml.drop_node('nobody')), '42704', 'node "nobody" does not exist', 'repl_ml.nodes');
is(sql($n1, q(SELECT repl_ml.drop_node('nobody', if_exists => true))), '', 'drop_node if exists');
psql_fails($n1, q(SELECT repl_ml.drop_node('n1')), '22023', 'cannot drop itself', 'leave_group');

# a node that is dropped while it is up finds out, and refuses to write what nobody would get
sql($n1, q(SELECT repl_ml.drop_node('n3')));
gone_everywhere(4, $n1, $n2);
poll_until($n3, q(SELECT state = 'dropped' FROM repl_ml.local_node));
psql_fails($n3, q(INSERT INTO item VALUES (300)), '55000', 'node "n3" has been dropped from its group', 'leave_group\(force => true\)');
psql_fails($n3, q(UPDATE item SET v = 'x'), '55000', 'has been dropped');
psql_fails($n3, q(DELETE FROM item), '55000', 'has been dropped');
psql_fails($n3, q(TRUNCATE item CASCADE), '55000', 'has been dropped');
psql_fails($n3, q(SELECT repl_ml.add_table('not_enrolled')), '55000', 'has been dropped', 'leave_group');
sql($n3, 'INSERT INTO not_enrolled VALUES (1)');
psql_fails($n3, q(SELECT repl_ml.drop_node('n1')), '55000', 'has been dropped');
sql($n3, 'SELECT repl_ml.leave_group(force => true)');
is_clean($n3, 'forced out, n3 has nothing of the group');
sql($n3, q(INSERT INTO item VALUES (300)));

# waiting for a node
psql_fails($n1, q(SELECT repl_ml.wait_for_node('n3')), '42704', 'node "n3" does not exist', 'repl_ml.nodes');
psql_fails($n1, q(SELECT repl_ml.wait_for_node('nobody', '1 s')), '42704', 'node "nobody" does not exist', 'repl_ml.nodes');
is(sql($n1, q(SELECT repl_ml.wait_for_node('n2', '1 s'))), '', 'a node that is ready');

# a dead node: the name is free again, the id is not
$n2->stop;
psql_fails($n1, 'SELECT repl_ml.leave_group()', '55000', 'has not received everything|could be told', 'force => true');
is(sql($n1, 'SELECT count(*) FROM repl_ml.nodes WHERE is_local'), '1', 'n1 is still a member');
sql($n1, q(SELECT repl_ml.drop_node('n2')));
gone_everywhere(2, $n1);
sql($n3, 'DROP TABLE item, "Odd ""name" CASCADE');
is(sql($n3, call('join_group', 'n2', dsn($n3), dsn($n1))), '5', 'the fifth id');
sql($n3, q(INSERT INTO item VALUES (301)));
wait_converged([ $n1, $n3 ], @tables);

# the dead one comes back, is told, and does no harm
$n2->start;
poll_until($n2, q(SELECT state = 'dropped' FROM repl_ml.local_node));
psql_fails($n2, q(INSERT INTO item VALUES (302)), '55000', 'has been dropped', 'leave_group');
is_equal_everywhere([ $n1, $n3 ], 'item');

# leaving while all peers are down
$n1->stop;
psql_fails($n3, 'SELECT repl_ml.leave_group()', '55000', 'has not received everything|could be told', 'force => true');
sql($n3, 'SELECT repl_ml.leave_group(force => true)');
is_clean($n3, 'left with all peers down');
$n1->start;
is(sql($n1, q(SELECT state FROM repl_ml.nodes WHERE node_id = 5)), 'ready', 'n1 does not know');
sql($n1, q(SELECT repl_ml.drop_node('n2')));
gone_everywhere(5, $n1);

# the last one out
sql($n1, 'SELECT repl_ml.leave_group()');
is_clean($n1, 'the last node left');

# two databases of a server are nodes of two groups, which do not mix
sql($n1, 'CREATE DATABASE second');
$n1->safe_psql('second', 'CREATE EXTENSION repl_ml; CREATE TABLE item (id integer PRIMARY KEY, v text)');
(my $second = dsn($n1)) =~ s/dbname='postgres'/dbname='second'/;
$n1->safe_psql('second', call('create_group', 'h', 'h1', $second) . q(; SELECT repl_ml.add_table('item')));
sql($n1, call('create_group', 'g2', 'n1', dsn($n1)) . q(; SELECT repl_ml.add_table('item')));
sql($_, 'DROP TABLE IF EXISTS item, "Odd ""name" CASCADE') foreach $n3;
sql($n3, call('join_group', 'n3', dsn($n3), dsn($n1)));
sql($n2, 'SELECT repl_ml.leave_group(force => true); DROP TABLE item, "Odd ""name" CASCADE');
sql($n2, call('join_group', 'h2', dsn($n2), $second));
$n1->safe_psql('second', q(INSERT INTO item VALUES (1, 'h')));
sql($n1, q(INSERT INTO item VALUES (400, 'g')));
poll_until($n2, q(SELECT count(*) = 1 FROM item WHERE id = 1 AND v = 'h'));
poll_until($n3, q(SELECT count(*) = 1 FROM item WHERE id = 400));
is(sql($n2, 'SELECT count(*) FROM item'), '1', 'the second group has its row');
is(sql($n3, 'SELECT count(*) FROM item WHERE v = $$h$$'), '0', 'and only it');
is($n1->safe_psql('second', 'SELECT count(*) FROM repl_ml.nodes'), '2', 'each has its own members');
$n1->safe_psql('second', 'SELECT repl_ml.leave_group()');
is(sql($n1, q(SELECT count(*) FROM pg_replication_slots WHERE plugin = 'repl_ml')), '1', 'leaving one group leaves the slot of the other');
sql($n1, q(INSERT INTO item VALUES (401, 'g')));
wait_converged([ $n1, $n3 ], 'item');
psql_fails($n2, call('join_group', 'x', dsn($n2), dsn($n1)), '55000', 'already node "h2" of group "h"', 'leave_group');

done_testing();
