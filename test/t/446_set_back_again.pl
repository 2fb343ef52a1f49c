# A node that was set back and is back, or on its way, under another id may be set back once more to what it was before: it comes
# back again, with all that it wrote in each of these times, and what it wrote late is in conflict with what it had forgotten.
#
# Seen failing before members knew what a dropped node has become: it was dropped, for a person to repair, and the id that it had
# had last stayed a member that nobody could reach.
use strict;
use warnings;
use Membership;
use ReplMl;
use PostgreSQL::Test::Utils;
use Test::More;

my ($n1, $n2) = my @nodes = new_group(2, <<'SQL');
CREATE TABLE t (id int PRIMARY KEY, v text);
INSERT INTO t SELECT g, 'old' FROM generate_series(1, 20) g;
SELECT * FROM repl_ml.add_all_tables();
SQL
wait_converged(\@nodes, 't');

sub is_back
{
	my ($id) = @_;
	poll_until($n2, "SELECT node_id >= $id AND state = 'ready' FROM repl_ml.local_node");
	poll_until($_, q(SELECT count(*) = 2 AND bool_and(reachable) FROM repl_ml.write_members())) foreach @nodes;
	wait_converged(\@nodes, 't');
	return sql($n2, 'SELECT node_id FROM repl_ml.local_node');
}
sub set_back_to
{
	my ($saved) = @_;
	kill_server($n2);
	restore_in_place($saved, $n2->data_dir);
	$n2->start;
	return;
}

$n2->stop;
my $saved = save_directory($n2);
$n2->start;
poll_until($_, q(SELECT count(*) = 2 AND bool_and(reachable) FROM repl_ml.write_members())) foreach @nodes;
sql($n2, q(SET repl_ml.write_consistency = quorum; INSERT INTO t VALUES (101, 'first'); UPDATE t SET v = 'first' WHERE id IN (1, 2)));
set_back_to($saved);
my $id = is_back(3);
sql($n2, q(SET repl_ml.write_consistency = quorum; INSERT INTO t VALUES (102, 'second'); UPDATE t SET v = 'second' WHERE id = 3; DELETE FROM t WHERE id = 4));

# again, while it cannot be told: it writes
kill_server($n2);
$n1->stop;
restore_in_place($saved, $n2->data_dir);
$n2->start;
sql($n2, q(UPDATE t SET v = 'late' WHERE id IN (1, 3, 4, 5); INSERT INTO t VALUES (103, 'late')));
$n1->start;
$id = is_back($id + 1);
is(sql($_, q(SELECT string_agg(id || ' ' || v, ', ' ORDER BY id) FROM t WHERE id <= 5 OR id > 100)),
	'1 late, 2 first, 3 late, 4 late, 5 late, 101 first, 102 second, 103 late', 'all of it is there: ' . $_->name) foreach @nodes;
is(sql($n2, q(SELECT string_agg(key::text || ' ' || (loser_row ->> 'v'), ', ' ORDER BY key::text) FROM repl_ml.conflicts WHERE key IN ('{1}', '{3}'))), '{1} first, {3} second', 'what was written twice is a conflict');
is(sql($n1, q(SELECT count(*) FROM repl_ml.member WHERE state <> 'dropped')), '2', 'what it was in between is no member any more');

# and while it is on its way
set_back_to($saved);
poll_until($n2, "SELECT node_id > $id FROM repl_ml.local_node");
set_back_to($saved);
is_back($id + 2);

# and when it has had another name since
$id = sql($n2, 'SELECT node_id FROM repl_ml.local_node');
sql($n1, q(SELECT repl_ml.rename_node('n2', 'm2')));
poll_until($n2, q(SELECT node_name = 'm2' FROM repl_ml.local_node));
wait_converged(\@nodes, 't');
set_back_to($saved);
is_back($id + 1);
is(sql($_, q(SELECT string_agg(node_name, ' ' ORDER BY node_id) FROM repl_ml.member WHERE state = 'ready')), 'n1 m2', 'it has its present name: ' . $_->name) foreach @nodes;
is(sql($n2, 'SELECT node_name FROM repl_ml.local_node'), 'm2', 'and knows it');
is(sql($_, q(SELECT string_agg(status, ' ') FROM repl_ml.verify_all())), 'consistent', 'nothing differs: ' . $_->name) foreach @nodes;
is(sql($_, q(SELECT string_agg(detail, ' ') FROM repl_ml.health WHERE check_name IN ('membership', 'applying', 'sending') AND status <> 'ok')), '', 'health of ' . $_->name) foreach @nodes;
done_testing();
