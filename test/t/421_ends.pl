# What ends lets go: a server that stops of a peer that is frozen, a node that was dropped of its slots; and what cannot
# begin says why.
#
# Seen failing: without hurry_at_end n1 does not stop for an hour; without the end of show_fence n3 keeps its slots;
# without show_no_room health has a warning without a reason.
use strict;
use warnings;
use ReplMl;
use Test::More;

my ($n1, $n2, $n3) = new_group(3, q(CREATE TABLE t (id int PRIMARY KEY); SELECT repl_ml.add_table('t')));
sql($n1, q(ALTER SYSTEM SET wal_sender_timeout = '1h'));
sql($n1, 'SELECT pg_reload_conf()');

# a node that is dropped while it runs
sql($n1, q(SELECT repl_ml.drop_node('n3')));
poll_until($n3, q(SELECT count(*) = 0 FROM pg_replication_slots));
is(sql($n3, q(SELECT state FROM repl_ml.local_node)), 'dropped', 'it knows why');
is(sql($n3, 'SELECT count(*) FROM t'), '0', 'and answers');

# a peer that neither reads nor goes away
poll_until($n1, q(SELECT count(*) = 1 FROM pg_stat_replication WHERE state = 'streaming'));
my @frozen = grep { $_ } split /\n/, sql($n2, q(SELECT pid FROM pg_stat_activity WHERE pid <> pg_backend_pid()));
kill STOP => @frozen;
sql($n1, 'INSERT INTO t VALUES (1)');
my $said = -s $n1->logfile;
$n1->stop;
$n1->log_check('it was given up', $said, log_like => [qr/terminating walsender process due to replication timeout/]);
kill CONT => @frozen;

# no room for apply workers, or not even for the supervisor, or our launcher; the launchers, core's and ours, are two
foreach my $workers (3, 2)
{
	$n1->append_conf('postgresql.conf', "max_worker_processes = $workers");
	$n1->stop if $workers == 2;
	$n1->start;
	poll_until($n1, q(SELECT status = 'error' AND detail LIKE '%out of background worker slots%' FROM repl_ml.health WHERE check_name = 'applying'));
	like(sql($n1, q(SELECT hint FROM repl_ml.health WHERE check_name = 'applying')), qr/^Raise max_worker_processes/, "$workers workers");
}
$n1->append_conf('postgresql.conf', 'max_worker_processes = 1');
$n1->restart;
is(sql($n1, q(SELECT status, detail ~ 'no process "repl_ml launcher", for want', hint ~ '^Raise max_worker_processes' FROM repl_ml.health WHERE check_name = 'write_consistency')), 'error|t|t', 'not even for ours');
$n1->append_conf('postgresql.conf', 'max_worker_processes = 16');
$n1->restart;
wait_converged([ $n1, $n2 ], 't');
is(sql($n2, 'SELECT count(*) FROM t'), '1', 'nothing is lost');

done_testing();
