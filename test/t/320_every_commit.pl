# Whatever a transaction does and however it ends, its commit returns: in a database without the extension, in one
# with it but without a group, in a member, and there at the level quorum.
#
# Seen failing: commit.c, before_commit that sets nothing for a transaction without an id (NOTIFY, temporary tables:
# in every database); without repl_ml_quorum_dismiss_strangers the core subscription gets no further than its
# prepared transaction.
use strict;
use warnings;
use FindBin;
use lib "$FindBin::Bin/..";
use Consistency;
use ReplMl;
use PostgreSQL::Test::Utils;
use Test::More;

# wal_log_hints: setting a hint bit writes WAL, as with checksums
my ($n1, $n2) = my @nodes = (new_node('n1', 'wal_log_hints = on', 'autovacuum_naptime = 1s'), new_node('n2'));
sql($n1, 'CREATE EXTENSION repl_ml');
sql($n1, "SELECT repl_ml.create_group('g', 'n1', " . literal(dsn($n1)) . ')');
join_node($n2, $n1);
never_miss_heartbeats(@nodes);
sql($n1, "CREATE DATABASE $_") foreach ('plain', 'alone');
$n1->safe_psql('alone', 'CREATE EXTENSION repl_ml');

# A page of "pruned" is full of versions nobody sees: who reads it prunes it, which writes WAL without a transaction id.
my $fill = <<'SQL';
DROP TABLE IF EXISTS pruned; CREATE TABLE pruned (a int, b text) WITH (autovacuum_enabled = off);
INSERT INTO pruned VALUES (1, repeat('x', 1000));
SQL
$fill .= "UPDATE pruned SET b = b || 'x';\n" x 7;

# Each ends a transaction in a way of its own; \echo says how far the session has come.
my %ways = (
	'01 NOTIFY' => 'NOTIFY news;',
	'02 NOTIFY behind WAL without an id' => "BEGIN; SELECT pg_logical_emit_message(false, 'x', 'y'); NOTIFY news; COMMIT;",
	'03 NOTIFY after pruning' => "$fill BEGIN; SELECT count(*) FROM pruned; NOTIFY news; COMMIT;",
	'04 pruning alone' => "$fill SELECT count(*) FROM pruned;",
	'05 LISTEN, UNLISTEN' => 'LISTEN news; NOTIFY news; UNLISTEN news; BEGIN; LISTEN other; NOTIFY other; COMMIT; UNLISTEN *;',
	'06 NOTIFY in the extended protocol, in DO and in a function' => "DO 'BEGIN NOTIFY news; END'; SELECT pg_notify('news', 'x');",
	'07 a temporary table that loses its rows' => 'CREATE TEMP TABLE tt (a int) ON COMMIT DELETE ROWS; BEGIN; SELECT * FROM tt; COMMIT; BEGIN; INSERT INTO tt VALUES (1); COMMIT; SELECT * FROM tt;',
	'08 the same behind WAL' => "BEGIN; SELECT pg_logical_emit_message(false, 'x', 'y'); SELECT * FROM tt; COMMIT;",
	'09 temporary tables' => 'CREATE TEMP TABLE td (a serial PRIMARY KEY, b text) ON COMMIT DROP; CREATE TEMP TABLE tk (a int); INSERT INTO tk VALUES (1); DROP TABLE tk;',
	'10 hint bits' => 'INSERT INTO t VALUES (1001); CHECKPOINT; SELECT count(*) FROM t; BEGIN; SELECT count(*) FROM t; NOTIFY news; COMMIT;',
	'11 sequences alone' => "CREATE SEQUENCE s; SELECT nextval('s'), nextval('s'); BEGIN; SELECT setval('s', 7); COMMIT; BEGIN; SELECT nextval('s'); ROLLBACK;",
	'12 rows' => 'INSERT INTO t VALUES (1); UPDATE t SET id = 2 WHERE id = 1; DELETE FROM t WHERE id = 2; BEGIN; INSERT INTO t VALUES (3); COMMIT; BEGIN; INSERT INTO t VALUES (4); NOTIFY news; COMMIT AND CHAIN; COMMIT;',
	'13 ROLLBACK and errors' => "BEGIN; INSERT INTO t VALUES (5); ROLLBACK; BEGIN; SELECT 1/0; COMMIT; BEGIN; SELECT pg_logical_emit_message(false, 'x', 'y'); NOTIFY news; ROLLBACK;",
	'14 PREPARE, COMMIT PREPARED' => "BEGIN; INSERT INTO t VALUES (6); PREPARE TRANSACTION 'p'; COMMIT PREPARED 'p';",
	'15 PREPARE, ROLLBACK PREPARED' => "BEGIN; INSERT INTO t VALUES (7); PREPARE TRANSACTION 'p'; ROLLBACK PREPARED 'p';",
	'16 PREPARE of nothing, and of WAL without an id' => "BEGIN; PREPARE TRANSACTION 'p'; COMMIT PREPARED 'p'; BEGIN; SELECT pg_logical_emit_message(false, 'x', 'y'); PREPARE TRANSACTION 'p'; ROLLBACK PREPARED 'p';",
	'17 savepoints' => 'BEGIN; SAVEPOINT a; INSERT INTO t VALUES (8); RELEASE a; SAVEPOINT b; INSERT INTO t VALUES (9); ROLLBACK TO b; COMMIT; BEGIN; SAVEPOINT a; INSERT INTO t VALUES (10); ROLLBACK TO a; NOTIFY news; COMMIT;',
	'18 COMMIT in DO and in a procedure' => "DO 'BEGIN INSERT INTO t VALUES (11); COMMIT; NOTIFY news; COMMIT; PERFORM * FROM pruned; ROLLBACK; END'; CREATE PROCEDURE pr() LANGUAGE plpgsql AS 'BEGIN COMMIT; NOTIFY news; COMMIT; INSERT INTO t VALUES (12); COMMIT; END'; CALL pr();",
	'19 exceptions caught' => "DO 'BEGIN BEGIN INSERT INTO t VALUES (13); PERFORM 1/0; EXCEPTION WHEN division_by_zero THEN NOTIFY news; END; END';",
	'20 parallel queries' => "$fill SET parallel_setup_cost = 0; SET parallel_tuple_cost = 0; SET min_parallel_table_scan_size = 0; ALTER TABLE pruned SET (parallel_workers = 2); BEGIN; SELECT count(*) FROM pruned; NOTIFY news; COMMIT; CREATE TABLE made AS SELECT * FROM pruned; RESET ALL;",
	'22 VACUUM and the like' => "$fill VACUUM pruned; VACUUM (FULL, ANALYZE) pruned; ANALYZE pruned; CREATE INDEX i ON pruned (a); CLUSTER pruned USING i; REINDEX TABLE CONCURRENTLY pruned; CREATE INDEX CONCURRENTLY j ON pruned (b); DROP INDEX CONCURRENTLY j; VACUUM;",
	'23 large objects' => "SELECT lo_create(4711); BEGIN; SELECT lo_open(4711, 131072); COMMIT; BEGIN; SELECT lowrite(lo_open(4711, 131072), 'x'); NOTIFY news; COMMIT; SELECT lo_unlink(4711);",
	'24 tables made, emptied and dropped' => 'CREATE TABLE n (a int); CREATE UNLOGGED TABLE u (a int); INSERT INTO u VALUES (1); TRUNCATE u, n; DROP TABLE n, u; CREATE MATERIALIZED VIEW m AS SELECT 1; REFRESH MATERIALIZED VIEW m; DROP MATERIALIZED VIEW m; BEGIN; CREATE TABLE n (a int); DROP TABLE n; COMMIT;',
	'25 row locks' => 'BEGIN; SELECT * FROM t FOR UPDATE; COMMIT; BEGIN; SELECT * FROM t FOR KEY SHARE; NOTIFY news; COMMIT; BEGIN; LOCK TABLE t; COMMIT;',
	'26 cursors and deferred triggers' => "BEGIN; DECLARE c CURSOR WITH HOLD FOR SELECT nextval('s'); COMMIT; CREATE TABLE d (a int UNIQUE DEFERRABLE INITIALLY DEFERRED); BEGIN; INSERT INTO d VALUES (1); NOTIFY news; COMMIT;",
	'27 isolation levels' => "$fill BEGIN ISOLATION LEVEL SERIALIZABLE; SELECT count(*) FROM pruned; NOTIFY news; COMMIT; BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SELECT count(*) FROM pruned; COMMIT;",
	'28 an id and nothing else' => 'SELECT pg_current_xact_id(); BEGIN; SELECT pg_current_xact_id(); NOTIFY news; COMMIT;',
	'29 messages and administration' => "SELECT pg_logical_emit_message(true, 'x', 'y'); CHECKPOINT; SELECT pg_create_restore_point('r'); SELECT pg_switch_wal() IS NOT NULL; CREATE INDEX g ON made USING brin (a); SELECT brin_summarize_new_values('g'); SELECT pg_reload_conf();",
	'30 synchronous_commit' => join(' ', map { "SET synchronous_commit = $_; BEGIN; SELECT pg_logical_emit_message(false, 'x', 'y'); NOTIFY news; COMMIT; SELECT pg_current_xact_id(); INSERT INTO t VALUES (20); DELETE FROM t WHERE id = 20;" } 'off', 'local', 'remote_write', 'on', 'remote_apply') . ' RESET synchronous_commit;',
	'31 SET within the transaction' => "BEGIN; SET LOCAL synchronous_commit = remote_apply; SELECT pg_logical_emit_message(false, 'x', 'y'); NOTIFY news; COMMIT;",
	'32 COPY' => "COPY t FROM PROGRAM 'echo 30'; COPY (SELECT count(*) FROM pruned) TO PROGRAM 'cat >/dev/null';",
	'33 the session ends with locks and temporary tables' => 'SELECT pg_advisory_lock(1); NOTIFY news;');
my $script = join '', map { "\\echo -- $_\n$ways{$_}\n" } sort keys %ways;
my $clean = 'DROP TABLE IF EXISTS made, d; DROP SEQUENCE IF EXISTS s; DROP PROCEDURE IF EXISTS pr; DELETE FROM t;';

# Whoever would let go what waits by mistake does not do so during this.
my $launcher = sql($n1, "SELECT pid FROM pg_stat_activity WHERE backend_type = 'repl_ml launcher'");
kill STOP => $launcher;
END { kill CONT => $launcher if $launcher }

# All ways in one session, in a database; tests that it gets to its end and nothing but the expected error was raised.
sub is_ended
{
	my ($database, $name, $options) = @_;
	my ($out, $err, $late) = ('', '', 0);
	local $ENV{PGOPTIONS} = $options || '';

	$n1->psql($database, $clean);
	$n1->psql($database, $script, on_error_stop => 0, stdout => \$out, stderr => \$err,
		timeout => $PostgreSQL::Test::Utils::timeout_default, timed_out => \$late);
	my ($last) = (reverse $out =~ /^-- (.*)$/mg);
	ok(!$late, "$name: every way to end a transaction has ended") or diag("hangs: $last");
	is(join("\n", grep { !/division by zero/ } $err =~ /^.*ERROR: .*$/mg), '', "$name: without an error");
	return;
}

foreach my $database ('plain', 'alone', 'postgres')
{
	$n1->safe_psql($database, 'CREATE TABLE t (id int PRIMARY KEY)');
	sql($n1, "SELECT repl_ml.add_table('t')") if $database eq 'postgres';
	is_ended($database, $database);
}
is_ended('postgres', 'a member, level quorum', '-c repl_ml.write_consistency=quorum');
$n1->safe_psql('plain', $fill . 'ALTER TABLE pruned SET (autovacuum_enabled = on, autovacuum_vacuum_threshold = 1, autovacuum_vacuum_scale_factor = 0); DELETE FROM pruned; INSERT INTO pruned VALUES (1, NULL), (2, NULL); DELETE FROM pruned');
$n1->poll_query_until('plain', "SELECT autovacuum_count > 0 FROM pg_stat_user_tables WHERE relname = 'pruned'");
is($n1->safe_psql('plain', "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'"), '0', 'nobody waits, also no process of the servers own');

# (a stopped process holds up DROP DATABASE)
kill CONT => $launcher;
foreach my $database ('plain', 'postgres')
{
	$n1->safe_psql($database, $_) foreach ('CREATE DATABASE made', 'CREATE DATABASE made2 STRATEGY file_copy', 'DROP DATABASE made', 'DROP DATABASE made2 WITH (FORCE)');
	is($n1->safe_psql($database, "SELECT count(*) FROM pg_database WHERE datname LIKE 'made%'"), '0', "$database: CREATE DATABASE and DROP DATABASE");
}

# core's logical replication, whose worker commits prepared transactions without a statement
$n1->safe_psql($_, 'CREATE TABLE sub (id int PRIMARY KEY)') foreach ('plain', 'alone');
$n1->safe_psql('plain', 'CREATE PUBLICATION p FOR TABLE sub');
$n1->safe_psql('plain', "SELECT pg_create_logical_replication_slot('core_sub', 'pgoutput', false, true)");
$n1->safe_psql('alone', "CREATE SUBSCRIPTION core_sub CONNECTION " . literal($n1->connstr('plain')) . ' PUBLICATION p'
	. " WITH (create_slot = false, copy_data = false, two_phase = true, synchronous_commit = 'on')");
$n1->safe_psql('plain', "BEGIN; INSERT INTO sub VALUES (1); PREPARE TRANSACTION 'p'");
$n1->poll_query_until('alone', 'SELECT count(*) = 1 FROM pg_prepared_xacts WHERE database = current_database()');
$n1->safe_psql('plain', "COMMIT PREPARED 'p'; INSERT INTO sub VALUES (2)");
$n1->poll_query_until('alone', 'SELECT count(*) = 2 FROM sub');
is($n1->safe_psql('alone', 'SELECT string_agg(id::text, $$ $$ ORDER BY id) FROM sub'), '1 2', 'a core subscription with two-phase commit and synchronous_commit goes on');
$n1->safe_psql('alone', 'DROP SUBSCRIPTION core_sub');
wait_converged(\@nodes, 't');

done_testing();
