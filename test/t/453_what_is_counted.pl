# stat_apply counts what has come of each peer, by kind, and what became of it: rows, versions that were older than what
# was here, rows that had been deleted, conflicts by their types, what is parked; bytes and times; since when.
use strict;
use warnings;
use ReplMl;
use Test::More;

my ($n1, $n2, $n3) = my @nodes = new_group(3, 'CREATE TABLE t (id int PRIMARY KEY, v text); CREATE TABLE u (id int PRIMARY KEY, k int UNIQUE); SELECT repl_ml.add_all_tables()');
wait_converged(\@nodes, 't', 'u');

my @names = qw(inserts updates deletes duplicates dominated met_tombstones parked parked_now confl_insert_exists confl_update_origin_differs confl_update_exists confl_update_deleted confl_delete_origin_differs confl_update_missing confl_delete_missing);

# By how much a node's counts of a peer have grown while something was done, those that have.
sub grown
{
	my ($node, $peer, $do) = @_;
	my $counts = sub { return split /\|/, sql($node, "SELECT " . join(', ', @names) . ' FROM repl_ml.stat_apply WHERE node_name = ' . literal($peer->name)) };
	my @before = $counts->();
	$do->();
	my @after = $counts->();
	return join ' ', map { "$names[$_] " . ($after[$_] - $before[$_]) } grep { $after[$_] != $before[$_] } 0 .. $#names;
}

my $all = sub { wait_converged(\@nodes) };
is(grown($n2, $n1, sub { sql($n1, q(INSERT INTO t SELECT i, 'one' FROM generate_series(1, 5) i; UPDATE t SET v = 'two' WHERE id < 4; DELETE FROM t WHERE id = 5)); $all->(); }),
	'inserts 5 updates 3 deletes 1', 'rows by kind');
is(grown($n2, $n1, sub { sql($n1, q(BEGIN; INSERT INTO t VALUES (9, 'never'); ROLLBACK)); sql($n2, q(INSERT INTO t VALUES (10, 'own'))); $all->(); }), '', 'only what came, of that peer');

# n3 hears of n2 first, who knew what n1 had written
is(grown($n3, $n1, sub {
	cut($n3, $n1);
	sql($n1, q(UPDATE t SET v = 'older' WHERE id = 1; INSERT INTO t VALUES (6, 'deleted soon')));
	poll_until($n2, q(SELECT count(*) = 1 FROM t WHERE id = 6));
	sql($n2, q(UPDATE t SET v = 'newer' WHERE id = 1; DELETE FROM t WHERE id = 6));
	poll_until($n3, q(SELECT v = 'newer' FROM t WHERE id = 1));
	poll_until($n3, q(SELECT count(*) = 1 FROM repl_ml.tombstone WHERE key = '{6}'));
	heal($n3, $n1);
	$all->();
}), 'inserts 1 updates 1 dominated 1 met_tombstones 1', 'what was older than what is here, and what had been deleted');

# nobody has had here what was updated or deleted there; an update brings all that is needed, and a key that changes is a new row
is(grown($n3, $n2, sub {
	cut($n3, $n1);
	sql($n1, q(INSERT INTO t VALUES (7, 'unknown'), (8, 'unknown')));
	poll_until($n2, q(SELECT count(*) = 2 FROM t WHERE id IN (7, 8)));
	sql($n2, q(UPDATE t SET v = 'known' WHERE id = 7; DELETE FROM t WHERE id = 8; INSERT INTO t VALUES (30, 'moves'); UPDATE t SET id = 31 WHERE id = 30));
	poll_until($n3, q(SELECT count(*) = 1 FROM t WHERE id = 31));
	heal($n3, $n1);
	$all->();
}), 'inserts 1 updates 2 deletes 2 confl_update_missing 1 confl_delete_missing 1', 'rows that are missing');

# conflicts, by what both did without knowing of each other; the second one wins
sub conflict
{
	my ($first, $second) = @_;
	return grown($n1, $n2, sub {
		cut($n1, $n2);
		cut($n2, $n1);
		sql($n1, $first);
		sql($n2, $second);
		heal($n1, $n2);
		heal($n2, $n1);
		$all->();
	});
}
is(conflict(q(UPDATE t SET v = 'n1' WHERE id = 2), q(UPDATE t SET v = 'n2' WHERE id = 2)), 'updates 1 confl_update_origin_differs 1', 'two updates');
is(conflict(q(INSERT INTO t VALUES (20, 'n1')), q(INSERT INTO t VALUES (20, 'n2'))), 'inserts 1 confl_insert_exists 1', 'two insertions');
is(conflict(q(UPDATE t SET v = 'n1' WHERE id = 3), q(DELETE FROM t WHERE id = 3)), 'deletes 1 confl_update_deleted 1', 'an update and a deletion');
is(conflict(q(DELETE FROM t WHERE id = 4), q(UPDATE t SET v = 'n2' WHERE id = 4)), 'updates 1 confl_delete_origin_differs 1', 'the other way round');

# what cannot be applied, with where that was, until it can be
sql($n2, q(ALTER TABLE u ADD CHECK (k < 100)));
is(grown($n2, $n1, sub { sql($n1, 'INSERT INTO u VALUES (1, 100), (2, 1)'); $all->(); }), 'inserts 2 parked 1 parked_now 1', 'parked');
sql($n2, 'ALTER TABLE u DROP CONSTRAINT u_k_check');
poll_until($n2, q(SELECT parked_now = 0 AND parked = 1 FROM repl_ml.stat_apply WHERE node_name = 'n1'));
wait_converged(\@nodes, 't', 'u');

# bytes and times
my $numbers = q(SELECT %s FROM repl_ml.stat_apply WHERE node_name = 'n1');
my ($bytes, $applying) = split /\|/, sql($n2, sprintf $numbers, 'received_bytes, apply_time');
sql($n1, q(INSERT INTO t SELECT i, repeat('x', 10000) FROM generate_series(100, 150) i));
$all->();
# shown when it has been acknowledged
poll_until($n2, sprintf $numbers, "received_bytes - $bytes BETWEEN 500000 AND 1000000 AND apply_time > $applying AND flush_time > 0 AND apply_time < extract(epoch FROM clock_timestamp() - stats_reset) * 1000");
is(sql($n2, sprintf $numbers, 'lock_time, latest_end_lsn <= received_lsn, last_msg_send_time IS NOT NULL, current_xid'), '0|t|t|', 'nobody was waited for, nothing is being applied');
sql($n2, $_) foreach q(ALTER SYSTEM SET repl_ml.apply_lock_timeout = '1h'), 'SELECT pg_reload_conf()';
my $client = $n2->background_psql('postgres');
$client->query_safe('BEGIN; LOCK TABLE t IN SHARE MODE');
my $since = sql($n2, 'SELECT clock_timestamp()');
sql($n1, q(INSERT INTO t VALUES (200, 'locked')));
poll_until($n2, sprintf $numbers, "locked_since > '$since'");
$client->quit;
wait_converged(\@nodes, 't');
poll_until($n2, sprintf $numbers, "lock_time > 0 AND lock_time < extract(epoch FROM clock_timestamp() - '$since') * 1000 AND locked_since IS NULL");

# an error says where it was met; after a restart all begins again, and says so
$n1->stop;
poll_until($n2, sprintf $numbers, "state = 'waiting' AND apply_error_count > 0 AND last_error_message IS NOT NULL");
$n1->start;
my $before = sql($n2, sprintf $numbers, 'stats_reset');
my $conflicts = q(SELECT sum(conflicts), sum(last_hour), min(counted_since) < min(first_detected_at) FROM repl_ml.stat_conflicts);
like(my $had = sql($n2, $conflicts), qr/^4\|4\|t$/, 'conflicts');
$n2->restart;
wait_converged(\@nodes, 't');
is(sql($n2, sprintf $numbers, "stats_reset > '$before', inserts, stats_reset > pg_postmaster_start_time()"), 't|0|t', 'counted since the start');
is(sql($n2, $conflicts), $had, 'conflicts go on');
done_testing();
