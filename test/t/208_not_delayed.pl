# What writes no replicated table never waits for other members, whatever the write consistency: reads, DDL,
# VACUUM, other tables, savepoints, the group's own lists. PREPARE TRANSACTION does not wait, COMMIT PREPARED does.
#
# Seen failing: commit.c, the level of whatever has a transaction id (no group comes about); stamp.c, trigger_table
# without the test of the schema (set_table_consistency, remove_table); commit.c, COMMIT PREPARED always at level
# one (it does not wait), level_of_prepared without AccessExclusiveLock (TRUNCATE).
use strict;
use warnings;
use FindBin;
use lib "$FindBin::Bin/..";
use Consistency;
use ReplMl;
use PostgreSQL::Test::Utils;
use Test::More;

my ($n1, $n2, $n3) = my @nodes = new_group(3, <<'SQL');
CREATE TABLE t (id int PRIMARY KEY, v text);
CREATE TABLE important (id int PRIMARY KEY, v text);
SELECT repl_ml.add_all_tables();
SELECT repl_ml.set_table_consistency('important', 'all');
INSERT INTO t SELECT g, 'old' FROM generate_series(1, 10) g;
INSERT INTO important SELECT g, 'old' FROM generate_series(1, 10) g;
CREATE TABLE unreplicated (id int PRIMARY KEY, v text);
CREATE UNLOGGED TABLE unlogged (id int PRIMARY KEY, v text);
CREATE SEQUENCE s;
CREATE MATERIALIZED VIEW m AS SELECT count(*) FROM t;
SQL
wait_converged(\@nodes, 't', 'important');
never_miss_heartbeats(@nodes);
stop_answers($n1, $n2, $n3);

# a short timeout: what waits is an error, what does not wait never meets it
my @settings = ("SET repl_ml.write_consistency = 'all'", "SET repl_ml.write_timeout = '100ms'");
like(finish_session(begin_session($n1, @settings, "UPDATE t SET v = 'x' WHERE id = 10")), qr/ERROR:  40003/, 'what waits is an error here');

my @statements = (
	'SELECT count(*) FROM t',
	'BEGIN; SELECT count(*) FROM t; COMMIT',
	'BEGIN READ ONLY; SELECT count(*) FROM t; COMMIT',
	'BEGIN ISOLATION LEVEL SERIALIZABLE; SELECT count(*) FROM t; COMMIT',
	'SELECT * FROM t WHERE id = 1 FOR UPDATE',
	'SELECT txid_current()',
	"INSERT INTO unreplicated VALUES (1, 'x')",
	'UPDATE unreplicated SET id = id + 1',
	'BEGIN; SAVEPOINT a; INSERT INTO unreplicated VALUES (3, NULL); SAVEPOINT b; INSERT INTO unreplicated VALUES (4, NULL); ROLLBACK TO b; RELEASE a; COMMIT',
	'INSERT INTO unlogged SELECT g FROM generate_series(1, 10) g',
	'CREATE TEMPORARY TABLE mine (id int PRIMARY KEY)',
	'INSERT INTO mine VALUES (1)',
	'CREATE TEMPORARY TABLE taken ON COMMIT DROP AS SELECT * FROM t',
	"UPDATE t SET v = 'never' WHERE id = 0",
	"BEGIN; UPDATE t SET v = 'rolled back' WHERE id = 1; ROLLBACK",
	"SELECT nextval('s')",
	"NOTIFY channel, 'x'",
	'CREATE TABLE made (id int PRIMARY KEY)',
	'CREATE TABLE copied AS SELECT * FROM t',
	'ALTER TABLE t ADD COLUMN added int DEFAULT 1',
	'CREATE INDEX ON t (v)',
	'CREATE INDEX CONCURRENTLY ON t (added)',
	'ALTER TABLE t DROP COLUMN added',
	'REFRESH MATERIALIZED VIEW m',
	'VACUUM t',
	'VACUUM (FULL) important',
	'ANALYZE t',
	'REINDEX TABLE t',
	'CLUSTER t USING t_pkey',
	'CHECKPOINT',
	'CREATE ROLE somebody',
	'DROP ROLE somebody',
	'CREATE DATABASE another',
	'DROP DATABASE another',
	'DROP TABLE made, copied',
	"SELECT repl_ml.set_table_consistency('t', 'quorum')",
	"SELECT repl_ml.set_table_consistency('t', 'one')",
	"SELECT repl_ml.set_resolver('t', 'last_write')",
	"SELECT repl_ml.add_table('unreplicated')",
	"SELECT repl_ml.remove_table('unreplicated')",
	"BEGIN; INSERT INTO t VALUES (20, 'x'); DELETE FROM important WHERE id = 2; PREPARE TRANSACTION 'both'",
	"BEGIN; INSERT INTO t VALUES (21, 'x'); PREPARE TRANSACTION 'given up'",
	"ROLLBACK PREPARED 'given up'",
	"BEGIN; INSERT INTO copy VALUES (1); PREPARE TRANSACTION 'other'",
	"COMMIT PREPARED 'other'");
sql($n1, 'CREATE TABLE copy (id int)');
unlike(finish_session(begin_session($n1, @settings, $_)), qr/ERROR/, "not delayed: $_") foreach grep { !/mine/ } @statements;
is(finish_session(begin_session($n1, @settings, grep { /mine/ } @statements)), "SET\nSET\nCREATE TABLE\nINSERT 0 1\n", 'nor temporary tables');
ok(!is_visible($n1, 't', 'id = 20'), 'a prepared transaction is not visible');

# COMMIT PREPARED waits for what the transaction wrote
sql($n1, "BEGIN; INSERT INTO t VALUES (30, 'x'); PREPARE TRANSACTION 'plain'");
sql($n1, "BEGIN; INSERT INTO t VALUES (31, 'x'); PREPARE TRANSACTION 'given up'");
my $plain = begin_session($n1, "SET repl_ml.write_consistency = 'quorum'", 'SET repl_ml.write_timeout = 0', "COMMIT PREPARED 'plain'");
wait_for_waiters($n1, 1);
my $both = begin_session($n1, 'SET repl_ml.write_timeout = 0', "COMMIT PREPARED 'both'");
wait_for_waiters($n1, 2);
is(sql($n1, 'SELECT level, required FROM repl_ml.stat_write_waiters ORDER BY required'), "quorum|2\nall|3",
	'COMMIT PREPARED waits: at the level of the session, and of the tables');
ok(!is_visible($n1, 't', 'id IN (20, 30)'), 'neither is visible yet');
my $out = finish_session(begin_session($n1, @settings, "COMMIT PREPARED 'given up'"));
like($out, qr/ERROR:  40003: transaction is committed on this node but not acknowledged by write consistency "all"/, 'COMMIT PREPARED, timeout: completion unknown');
unlike($out, qr/^COMMIT/m, 'COMMIT PREPARED, timeout: no success');
ok(is_visible($n1, 't', 'id = 31'), 'COMMIT PREPARED, timeout: committed on this node');
is(sql($n1, "SELECT count(*) FROM pg_prepared_xacts WHERE gid = 'given up'"), '0', 'COMMIT PREPARED, timeout: not prepared any more');
sql($n1, "BEGIN; INSERT INTO t VALUES (33, 'x'); PREPARE TRANSACTION 'one'");
is(sql($n1, "COMMIT PREPARED 'one'; SELECT v FROM t WHERE id = 33"), 'x', 'level one does not wait');
continue_answers($n2);
is(finish_session($plain), "SET\nSET\nCOMMIT PREPARED\n", 'COMMIT PREPARED is acknowledged by a quorum');
ok(is_visible($n2, 't', 'id = 30'), 'which has it');
wait_for_waiters($n1, 1);
ok(!is_visible($n1, 't', 'id = 20'), 'the one of level all waits on');
continue_answers();
is(finish_session($both), "SET\nCOMMIT PREPARED\n", 'COMMIT PREPARED is acknowledged by all');
is(join(' ', map { is_visible($_, 't', 'id = 20') && !is_visible($_, 'important', 'id = 2') } $n2, $n3), '1 1', 'who have it');
wait_converged(\@nodes, 't', 'important');

# refused, it stays prepared
soon_miss_heartbeats($n1);
stop_answers($n1, $n3);
poll_until($n1, q(SELECT NOT reachable FROM repl_ml.nodes WHERE node_name = 'n3'));
sql($n1, "BEGIN; TRUNCATE important; PREPARE TRANSACTION 'truncated'");
$n1->stop('immediate');
$n1->start;
poll_until($n1, q(SELECT NOT reachable FROM repl_ml.nodes WHERE node_name = 'n3'));
psql_fails($n1, "COMMIT PREPARED 'truncated'", '57P03', 'write consistency "all" needs 3 of 3 members, but only [12] can be reached');
is(sql($n1, 'SELECT gid FROM pg_prepared_xacts'), 'truncated', 'a refused COMMIT PREPARED leaves the transaction prepared');
continue_answers();
never_miss_heartbeats($n1);
poll_until($n1, 'SELECT bool_and(reachable) FROM repl_ml.nodes');
sql($n1, "COMMIT PREPARED 'truncated'");
wait_converged(\@nodes, 'important');
is(sql($n3, 'SELECT count(*) FROM important'), '0', 'it is committed later');

done_testing();
