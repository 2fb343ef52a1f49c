# What concerns one node, or no link at all, ends no link between the others: a node that joins, leaves, is dropped, gets
# another address or is not listened to, tables that come and go, settings that are read again.
use strict;
use warnings;
use ReplMl;
use Situations;
use Test::More;

my ($n1, $n2, $n3) = my @nodes = new_group(3, <<'SQL');
CREATE TABLE t (id int PRIMARY KEY, v text);
CREATE TABLE u (id int PRIMARY KEY, v text);
SELECT repl_ml.add_table('t');
SQL
my $n4 = new_node('n4');

# The processes at both ends of each link between the first three, and the errors of the workers.
sub links
{
	return join "\n", map {
		sql($_, q(SELECT a.node_name, a.pid, a.errors, r.pid, r.backend_start FROM repl_ml.stat_apply a JOIN repl_ml.stat_replication r USING (node_id, node_name) WHERE node_name < 'n4' ORDER BY 1))
	} @nodes;
}

my $links;

# All that follows from what was done has happened: everybody has, from everybody, what was written behind it.
my $written = 0;

sub stay
{
	my ($name, @others) = @_;

	$written++;
	sql($_, "INSERT INTO t VALUES ($written * 10 + right('" . $_->name . "', 1)::int, 'x')") foreach @nodes;
	wait_converged([ @nodes, @others ], 't');
	is(links(), $links, "$name: all links stay");
	return;
}

# Everybody knows what everybody has of so many dropped nodes.
sub all_compared
{
	my ($dropped) = @_;

	poll_until($_, "SELECT (SELECT count(*) FROM repl_ml.dropped_node) = $dropped AND NOT EXISTS (SELECT FROM repl_ml.dropped_node d, repl_ml.stat_apply a WHERE a.node_id <> ALL (d.compared))") foreach @nodes;
	return;
}

wait_converged(\@nodes, 't');
poll_until($_, q(SELECT count(*) = 2 AND bool_and(state = 'streaming') FROM repl_ml.stat_apply)) foreach @nodes;
$links = links();
is(() = $links =~ /^n\d\|\d+\|0\|\d+\|/mg, 6, 'six links, without errors');

sql($n1, q(SELECT repl_ml.add_table('u')));
poll_until($_, q(SELECT count(*) = 2 FROM repl_ml.tables WHERE state = 'replicated')) foreach @nodes;
stay('a table is added');
sql($n2, q(SELECT repl_ml.set_resolver('u', 'newest_by(v)')));
stay('a rule');
sql($n2, q(SELECT repl_ml.remove_table('u')));
poll_until($_, q(SELECT count(*) = 1 FROM repl_ml.tables)) foreach @nodes;
stay('a table is removed');
sql($n3, q(SELECT repl_ml.verify_table('t')));
stay('a comparison');
sql($n1, q(SELECT repl_ml.invite_node('n4')));
join_node($n4, $n1);
stay('a node joins', $n4);
sql($n1, "SELECT repl_ml.set_node_address('n4', " . literal(dsn($n4) . ' connect_timeout=9') . ')');
stay('another address of the fourth node', $n4);
cut($n1, $n4);
heal($n1, $n4);
stay('the fourth is not listened to', $n4);
sql($n1, q(ALTER SYSTEM SET repl_ml.heartbeat_interval = '900ms'));
$n1->reload;
stay('settings are read again', $n4);
sql($n4, 'SELECT repl_ml.leave_group()');
all_compared(1);
stay('the fourth leaves');
my $n5 = new_node('n5');
join_node($n5, $n2);
stay('another one joins', $n5);
$n5->stop;
sql($n3, q(SELECT repl_ml.drop_node('n5')));
all_compared(2);
stay('the fifth, which is down, is dropped');
done_testing();
