# A member's address changes, and one command on any member tells the group: also when that node cannot be reached
# any more, or not yet.
#
# Seen failing: without the UPDATE of repl_ml.member no link of n2's comes back; without the look at who is there n3's
# address is taken for n2.
use strict;
use warnings;
use PostgreSQL::Test::Cluster;
use ReplMl;
use Situations;
use Test::More;

my ($n1, $n2, $n3) = my @nodes = new_group(3, <<'SQL');
CREATE TABLE t (id int PRIMARY KEY, v text);
SELECT repl_ml.add_all_tables();
CREATE ROLE other LOGIN;
SQL
my $n1_port = $n1->port;
wait_converged(\@nodes, 't');

# Lets the server listen on another port.
sub move
{
	my ($node) = @_;

	$node->stop;
	$node->{_port} = PostgreSQL::Test::Cluster::get_free_port();
	$node->append_conf('postgresql.conf', 'port = ' . $node->port);
	return;
}

sub set_address
{
	my ($on, $node) = @_;
	my ($status, undef, $stderr) = $on->psql('postgres', 'SELECT repl_ml.set_node_address(' . literal($node->name) . ', ' . literal(dsn($node)) . ')');

	is($status, 0, $on->name . ' is told of ' . $node->name);
	return $stderr;
}

sub all_stream
{
	my ($name) = @_;

	poll_until($_, q(SELECT count(*) = 2 AND bool_and(state = 'streaming') FROM repl_ml.stat_apply)) foreach @nodes;
	sql($_, "INSERT INTO t SELECT coalesce(max(id), 0) * 3 + right('" . $_->name . "', 1)::int, '$name' FROM t") foreach @nodes;
	wait_converged(\@nodes, 't');
	is(sql($n1, "SELECT count(*) FROM t WHERE v = '$name'"), '3', "$name: every node is heard by all");
	return;
}

# it is there already
move($n2);
$n2->start;
is(set_address($n1, $n2), '', 'n2 is reached there');
all_stream('moved');
rows_are(\@nodes, q(SELECT port FROM repl_ml.member WHERE node_name = 'n2'), $n2->port, 'the new port');

# it is down: believed, with a warning
move($n2);
my $warning = set_address($n3, $n2);
like($warning, qr/WARNING:  node "n2" cannot be reached there from here\nDETAIL:  .*refused|WARNING:  node "n2" cannot be reached there from here\nDETAIL:  .*No such file/s, 'a warning');
like($warning, qr/^HINT:  .*run this function again/m, 'and its hint');
is(sql($n3, q(SELECT host IS NULL AND port IS NULL FROM repl_ml.member WHERE node_name = 'n2')), 't', 'where it is, is not known');
$n2->start;
all_stream('moved while down');

# of the node itself: before it moves, or they would not hear it
move($n1);
my $port = $n1->port;
$n1->append_conf('postgresql.conf', 'port = ' . $n1_port);
$n1->{_port} = $n1_port;
$n1->start;
poll_until($n1, q(SELECT count(*) = 2 AND bool_and(pid IS NOT NULL) FROM repl_ml.stat_replication));
$n1->{_port} = $port;
my $new = literal(dsn($n1));
$n1->{_port} = $n1_port;
my (undef, undef, $stderr) = $n1->psql('postgres', "SELECT repl_ml.set_node_address('n1', $new)");
like($stderr, qr/"n1" cannot be reached there/, 'n1 is not there yet');
unlike($stderr, qr/do not learn/, 'the others learn of it');
wait_converged(\@nodes);
$n1->stop;
$n1->{_port} = $port;
$n1->append_conf('postgresql.conf', "port = $port");
$n1->start;
all_stream('told by itself');
$n2->stop;
poll_until($n1, q(SELECT count(*) = 1 FROM repl_ml.stat_replication WHERE pid IS NULL));
like(set_address($n1, $n1), qr/^psql:<stdin>:1: WARNING:  members that are not connected to this node do not learn of its address: n2\nHINT:  Run the same function on one of them[.]$/, 'n2 does not learn of it');
$n2->start;

# what is wrong is refused, and changes nothing
my $before = sql($n1, q(SELECT node_name, dsn FROM repl_ml.member ORDER BY 1));
my $there = literal(dsn($n3));
psql_fails($n1, "SELECT repl_ml.set_node_address('n2', $there)", '22023', 'does not lead to node "n2"', 'how the other nodes reach');
psql_fails($n1, "SELECT repl_ml.set_node_address('n2', " . literal($n2->connstr('template1')) . ')', '22023', 'does not lead to node "n2"', 'how the other nodes reach');
psql_fails($n1, "SELECT repl_ml.set_node_address('n2', " . literal(dsn($n2) . ' user=other') . ')', '22023', 'cannot be reached with this connection string', 'LOGIN and REPLICATION');
psql_fails($n1, "SELECT repl_ml.set_node_address('n2', " . literal(dsn($n2) . ' user=nobody_') . ')', '22023', 'cannot be reached with this connection string', 'LOGIN and REPLICATION');
psql_fails($n1, "SELECT repl_ml.set_node_address('n2', 'service=foo')", '22023', 'cannot be reached with this connection string', 'LOGIN and REPLICATION');
psql_fails($n1, "SELECT repl_ml.set_node_address('n2', 'nonsense')", '22023|08001|42601', '.', '.');
psql_fails($n1, "SELECT repl_ml.set_node_address('n9', $there)", '42704', 'node "n9" does not exist', 'repl_ml.nodes');
psql_fails($n1, "SELECT repl_ml.set_node_address('n2', NULL)", '22004', 'null is not allowed');
psql_fails($n1, q(SET ROLE other; SELECT repl_ml.set_node_address('n2', 'x')), '42501', 'permission denied');
is(sql($n1, q(SELECT node_name, dsn FROM repl_ml.member ORDER BY 1)), $before, 'nothing is changed by errors');
unlike(join('', map { PostgreSQL::Test::Utils::slurp_file($_->logfile) =~ /^.*STATEMENT:.*set_node_address\('n2', 'port.*$/mg } @nodes), qr/./, 'no connection string in the log of errors');
done_testing();
