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

# an error is there as long as it is one, and is remembered
my $errors = q(SELECT state = 'streaming', error_time IS NULL, error_sqlstate IS NULL, error_message IS NULL, error_hint IS NULL, last_error_time IS NULL, coalesce(last_error_message, '') FROM repl_ml.stat_apply WHERE node_name = 'n3');
is(sql($n1, $errors), 't|t|t|t|t|t|', 'no error so far');
$n3->stop;
poll_until($n1, q(SELECT state <> 'streaming' AND error_time > now() - '1 h'::interval AND error_sqlstate ~ '^08' AND error_message = last_error_message AND error_time = last_error_time FROM repl_ml.stat_apply WHERE node_name = 'n3'));
poll_until($n1, q(SELECT error_message ~ 'could not connect' FROM repl_ml.stat_apply WHERE node_name = 'n3'));
poll_until($n1, q(SELECT detail ~ '"n3".*could not connect' FROM repl_ml.health WHERE check_name = 'applying'));
$n3->start;
poll_until($n1, q(SELECT state = 'streaming' FROM repl_ml.stat_apply WHERE node_name = 'n3'));
like(sql($n1, $errors), qr/^t\|t\|t\|t\|t\|f\|./, 'it is over, and not forgotten');
is(sql($n1, q(SELECT status FROM repl_ml.health WHERE check_name = 'applying')), 'ok', 'health says so, too');

# what could not be copied from a node is no problem when it is dropped, also where no other peer is
$_->stop foreach $n2, $n3;
sql($n1, q(INSERT INTO repl_ml.table_sync (node_id, schema_name, table_name) VALUES (3, 'public', 't')));
sql($n1, q(SELECT repl_ml.note_failure(3, 'public', 't', 'copy', '22000', 'planted', NULL, NULL)));
is(sql($n1, q(SELECT problem ~ 'planted' FROM repl_ml.tables WHERE table_name = 't')), 't', 'a problem');
sql($n1, q(SELECT repl_ml.drop_node('n3')));
poll_until($n1, q(SELECT problem IS NULL AND pending_copies = 0 FROM repl_ml.tables WHERE table_name = 't'));
$n2->start;

# nor is a process shown that does not run
sql($n2, q(ALTER SYSTEM SET max_worker_processes = 3));
$n2->restart;
poll_until($n2, q(SELECT count(*) > 0 AND bool_and(state = 'stopped' AND pid IS NULL AND start_time IS NULL AND error_message IS NOT NULL) FROM repl_ml.stat_apply));
done_testing();
