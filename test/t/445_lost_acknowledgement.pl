# A node whose storage has lost what it acknowledged last gets that again, also where no heartbeat tells: the peer knows which
# commit was acknowledged.
#
# Seen failing before peers kept that: the node streamed, all was well, and it lacked the row for good.
use strict;
use warnings;
use Membership;
use ReplMl;
use PostgreSQL::Test::Utils;
use Test::More;

my ($n1, $n2) = my @nodes = new_group(2, <<'SQL');
CREATE TABLE t (id int PRIMARY KEY, v text);
INSERT INTO t SELECT g, 'old' FROM generate_series(1, 100) g;
SELECT * FROM repl_ml.add_all_tables();
SQL
wait_converged(\@nodes, 't');
poll_until($_, q(SELECT count(*) = 2 AND bool_and(reachable) FROM repl_ml.write_members())) foreach @nodes;

# A snapshot of n2's volume while it runs.  Its supervisor and that of n1 stand still, so that there is no heartbeat after it.
sub processes { my ($node, $which) = @_; return split /\n/, sql($node, "SELECT pid FROM pg_stat_activity WHERE $which") }
my @supervisors = map { processes($_, q(backend_type = 'repl_ml supervisor')) } @nodes;
kill 'STOP', @supervisors;
my ($postmaster) = split /\n/, PostgreSQL::Test::Utils::slurp_file($n2->data_dir . '/postmaster.pid');
my @processes = ($postmaster, processes($n2, "backend_type <> 'client backend'"));
kill 'STOP', @processes;
my $saved = save_directory($n2);
kill 'CONT', grep { my $pid = $_; !grep { $_ eq $pid } @supervisors } @processes;

sql($n1, q(SET repl_ml.write_consistency = quorum; INSERT INTO t VALUES (1000, 'acknowledged'); DELETE FROM t WHERE id = 1));
is(sql($n2, q(SELECT count(*) FROM t WHERE id IN (1, 1000) AND v = 'acknowledged')), '1', 'n2 has it, and has said so');
kill 'STOP', $postmaster;
kill 'KILL', $supervisors[1];
kill_server($n2);
kill 'CONT', $supervisors[0];
restore_in_place($saved, $n2->data_dir);
unlink $n2->data_dir . '/postmaster.pid';
$n2->start;
wait_converged(\@nodes, 't');
is(sql($_, q(SELECT count(*) FROM t WHERE id IN (1, 1000))), '1', 'both have it: ' . $_->name) foreach @nodes;
like(PostgreSQL::Test::Utils::slurp_file($n2->logfile), qr/a part of what node "n1" has written was passed over, so the link is made anew/, 'it says why');
is(sql($n2, 'SELECT node_id FROM repl_ml.local_node'), '2', 'what it had sent it still had, so it is who it was');

# A server that has lost nothing is not taken for one, however it ends.
poll_until($n1, q(SELECT bool_and(state = 'streaming') FROM repl_ml.stat_apply));
my $offset = -s $n2->logfile;
foreach my $how (qw(fast immediate kill))
{
	poll_until($n1, q(SELECT count(*) = 2 AND bool_and(reachable) FROM repl_ml.write_members()));
	sql($n1, "SET repl_ml.write_consistency = quorum; INSERT INTO t SELECT max(id) + 1, '$how' FROM t");
	$how eq 'kill' ? kill_server($n2) : $n2->stop($how);
	$n2->start;
	sql($n1, q(SELECT repl_ml.barrier('30 s')));
}
wait_converged(\@nodes, 't');
unlike(PostgreSQL::Test::Utils::slurp_file($n2->logfile, $offset), qr/passed over|set back/, 'nothing was passed over');
done_testing();
