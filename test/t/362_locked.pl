# A lock that somebody holds on one node, of a table, a row or what belongs to it, holds up the changes that need it,
# and nothing else: these are parked under what they are, named by health with who holds the lock, and applied as soon as
# it is gone, without a new connection and without anything in the peer's log.
#
# Seen failing: with a repl_ml_dispatch_is_impatient that always says no (while a table is locked, a quorum commit of another
# table ends after its timeout, unacknowledged).
use strict;
use warnings;
use FindBin;
use lib "$FindBin::Bin/..";
use ReplMl;
use PostgreSQL::Test::Utils;
use Test::More;

my ($n1, $n2) = my @nodes = new_group(2, <<'SQL');
CREATE TABLE t (id int PRIMARY KEY, v int);
CREATE TABLE u (id int PRIMARY KEY, v int);
CREATE TABLE other (id int PRIMARY KEY, v text);
CREATE TABLE part (id int PRIMARY KEY, v int) PARTITION BY RANGE (id);
CREATE TABLE part1 PARTITION OF part FOR VALUES FROM (0) TO (100);
CREATE TABLE part2 PARTITION OF part FOR VALUES FROM (100) TO (200);
CREATE TABLE parent (id int PRIMARY KEY, code text UNIQUE);
CREATE TABLE child (id int PRIMARY KEY, parent text REFERENCES parent (code) ON UPDATE CASCADE);
SELECT repl_ml.add_all_tables();
INSERT INTO t SELECT g, 0 FROM generate_series(1, 300) g;
INSERT INTO u VALUES (1, 0);
INSERT INTO part VALUES (1, 0), (101, 0);
INSERT INTO parent VALUES (1, 'a');
SQL
$_->append_conf('postgresql.conf', "max_prepared_transactions = 5\nrepl_ml.apply_lock_timeout = '300ms'\n") foreach @nodes;
$_->restart foreach @nodes;
wait_converged(\@nodes, qw(t u other part parent child));
poll_until($_, "SELECT bool_and(status = 'ok') FROM repl_ml.health WHERE check_name IN ('write_consistency', 'receiving', 'sending', 'delay')") foreach @nodes;

my $client = $n2->background_psql('postgres', on_error_stop => 0);
my $pid = $client->query_safe('SELECT pg_backend_pid()');
my $number = 0;

sub connection { return sql($n1, q(SELECT pid FROM pg_stat_replication WHERE application_name = 'repl_ml n2')); }

# Other tables' commits get their quorum, which is both nodes, and what they wrote is there at once.
sub others_go_on
{
	my ($name) = @_;
	$number++;
	is(sql($n1, "SET repl_ml.write_consistency = 'quorum'; SET repl_ml.write_timeout = '60s'; INSERT INTO other VALUES ($number, 'x') RETURNING id"), $number, "$name: a quorum commit of another table");
	is(sql($n2, "SELECT count(*) FROM other WHERE id = $number"), '1', "$name: it is there");
	return;
}

sub parked { my ($where) = @_; return sql($n2, "SELECT count(*) FROM repl_ml.parked_changes WHERE sqlstate = '55P03' AND $where"); }

# While what "lock" takes is held on n2, n1 writes "change" of "table"; that is parked with "message".
sub held
{
	my ($name, %case) = @_;
	my $connection = connection();
	my $log = -s $n1->logfile;
	my $holder = $case{holder} // "process $pid";

	$client->query_safe($case{lock});
	sql($n1, $case{change});
	others_go_on($name);
	poll_until($n2, "SELECT count(*) > 0 FROM repl_ml.parked_changes WHERE sqlstate = '55P03' AND table_name = '$case{table}' AND message = " . literal("$case{what} is locked by $holder"));
	is(parked("table_name <> '$case{table}'"), '0', "$name: nothing else is parked");
	is(sql($n2, "SELECT status, detail LIKE '%\"public.$case{table}\"%$case{what} is locked by $holder%', hint FROM repl_ml.health WHERE check_name = 'parked_changes'"),
		'warning|t|They are applied as soon as the lock is gone. See SELECT * FROM pg_stat_activity or pg_prepared_xacts for who holds it.', "$name: health names table and holder");
	others_go_on("$name, parked");
	my ($status, undef, $stderr) = $n1->psql('postgres', "SET repl_ml.write_consistency = 'quorum'; SET repl_ml.write_timeout = '60s'; $case{change}", extra_params => [ '-v', 'VERBOSITY=verbose' ]);
	like($stderr, qr/40003: .*parked on n2/s, "$name: a quorum commit that needs the lock ends with the truth");
	# it is told before it is committed there
	poll_until($n2, "SELECT ($case{free}) = 1") if defined $case{free};
	$client->query_safe($case{unlock} // 'COMMIT');
	poll_until($n2, q(SELECT count(*) = 0 FROM repl_ml.parked_changes));
	wait_converged(\@nodes, $case{table}, 'other');
	is(connection(), $connection, "$name: over the same connection");
	unlike(slurp_file($n1->logfile, $log), qr/logical decoding/, "$name: nothing of it in the peer's log");
	is(sql($n2, q(SELECT errors FROM repl_ml.stat_apply)), '0', "$name: it is no error");
	return;
}

held('ACCESS EXCLUSIVE', lock => 'BEGIN; LOCK TABLE t IN ACCESS EXCLUSIVE MODE', table => 't', change => 'UPDATE t SET v = v + 1 WHERE id = 1', what => 'table "public.t"');
held('row', lock => 'BEGIN; SELECT FROM t WHERE id = 1 FOR UPDATE', table => 't', what => 'a row it needs',
	change => 'UPDATE t SET v = v + 1 WHERE id IN (1, 2)', free => 'SELECT count(*) FROM t WHERE id = 2 AND v = 2');
held('deletion', lock => 'BEGIN; SELECT FROM t WHERE id = 3 FOR SHARE', table => 't', what => 'a row it needs', change => 'DELETE FROM t WHERE id = 3; INSERT INTO t VALUES (3, 0)');
held('foreign key', lock => q(BEGIN; INSERT INTO child VALUES (1, 'a')), table => 'parent', what => 'a row it needs', unlock => 'ROLLBACK',
	change => q(UPDATE parent SET code = 'a' || length(code)));
held('partition', lock => 'BEGIN; LOCK TABLE part1 IN SHARE MODE', table => 'part', what => 'table "public.part1"',
	change => 'UPDATE part SET v = v + 1', free => 'SELECT count(*) FROM part WHERE id = 101 AND v > 0');
held('tombstones', lock => 'BEGIN; LOCK TABLE repl_ml.tombstone IN SHARE MODE', table => 't', what => 'table "repl_ml.tombstone"', change => 'DELETE FROM t WHERE id = 4; INSERT INTO t VALUES (4, 0)');
held('DDL', lock => 'BEGIN; CREATE INDEX i ON t (v)', table => 't', what => 'table "public.t"', change => 'UPDATE t SET v = v + 1 WHERE id = 1', unlock => 'ROLLBACK');
held('REINDEX', lock => 'BEGIN; REINDEX INDEX t_pkey', table => 't', what => 'table "public.t"', change => 'UPDATE t SET v = v + 1 WHERE id = 1');
held('prepared', lock => q(BEGIN; SELECT FROM t WHERE id = 1 FOR UPDATE; PREPARE TRANSACTION 'p'), table => 't', what => 'a row it needs',
	change => 'UPDATE t SET v = v + 1 WHERE id = 1', holder => 'the prepared transaction "p"', unlock => q(COMMIT PREPARED 'p'));
held('several tables', lock => 'BEGIN; LOCK TABLE t, u, part IN ACCESS EXCLUSIVE MODE', table => 'u', what => 'table "public.u"', change => 'UPDATE u SET v = v + 1');

# A copy of a table that is locked is made later, and does not keep the stream from running.
$client->query_safe('BEGIN; LOCK TABLE u IN ACCESS EXCLUSIVE MODE');
sql($n2, q(SELECT repl_ml.order_copy(node_id, 'public', 'u') FROM repl_ml.member WHERE node_name = 'n1'));
cut($n2, $n1);
heal($n2, $n1);
poll_until($n2, "SELECT problem = 'could not copy it: table \"public.u\" is locked by process $pid' FROM repl_ml.tables WHERE table_name = 'u'");
poll_until($n2, q(SELECT state = 'streaming' FROM repl_ml.stat_apply));
sql($n1, q(INSERT INTO other VALUES (-1, 'beside the copy')));
poll_until($n2, 'SELECT count(*) = 1 FROM other WHERE id = -1');
is(sql($n2, q(SELECT pending_copies FROM repl_ml.tables WHERE table_name = 'u')), '1', 'copy: it is still to be made, the stream goes on');
$client->query_safe('COMMIT');
poll_until($n2, q(SELECT problem IS NULL AND pending_copies = 0 FROM repl_ml.tables WHERE table_name = 'u'));
wait_converged(\@nodes, 'u', 'other');
done_testing();
