# What write consistency promises: a commit that is acknowledged is durable and applied on as many members as
# its level says, nobody sees it before, and no transaction waits for more than its own level.
#
# Seen failing: commit.c, begin() always at REPL_ML_ONE (nothing waits); quorum.c, required() of quorum one less (it
# does not wait), one more (one answer is not enough); level.c, no minimum noted (the tables' levels);
# is_reachable without RECONNECTION_US (a peer that connects anew).
use strict;
use warnings;
use FindBin;
use lib "$FindBin::Bin/..";
use Consistency;
use Membership;
use ReplMl;
use PostgreSQL::Test::Utils;
use Test::More;

my ($n1, $n2, $n3) = my @nodes = new_group(3, <<'SQL');
CREATE TABLE t (id int PRIMARY KEY, v text);
CREATE TABLE important (id int PRIMARY KEY, v text);
CREATE TABLE parts (id int PRIMARY KEY, v text) PARTITION BY RANGE (id);
CREATE TABLE parts_1 PARTITION OF parts FOR VALUES FROM (0) TO (1000);
SELECT repl_ml.add_all_tables();
INSERT INTO important VALUES (100, 'old');
CREATE TABLE unreplicated (id int PRIMARY KEY, v text);
SQL
wait_converged(\@nodes, 't', 'important', 'parts');
never_miss_heartbeats(@nodes);
sql($n1, 'CREATE ROLE careful LOGIN; GRANT ALL ON ALL TABLES IN SCHEMA public TO careful');

# Inserts a row into a table of n1 with a level, in a session that is not waited for.
sub insert
{
	my ($table, $id, $level, @more) = @_;
	return begin_session($n1, "SET repl_ml.write_consistency = '$level'", 'SET repl_ml.write_timeout = 0', @more,
		"INSERT INTO $table VALUES ($id, '$level')");
}

# The same, waited for.
sub insert_now
{
	my ($table, $id, $level) = @_;
	return finish_session(insert($table, $id, $level));
}

sub is_inserted { my ($out, $name) = @_; like($out, qr/^INSERT 0 1\n\z/m, $name); unlike($out, qr/ERROR/, "$name: no error"); return; }

# acknowledged: applied elsewhere before the client has its answer
like(insert_now('t', 1, 'all'), qr/^INSERT 0 1$/m, 'all is acknowledged');
is(join(' ', map { is_visible($_, 't', 'id = 1') } $n2, $n3), '1 1', 'all: the row is on both others then');
like(insert_now('t', 2, 'quorum'), qr/^INSERT 0 1$/m, 'quorum is acknowledged');
ok((grep { is_visible($_, 't', 'id = 2') } $n2, $n3), 'quorum: the row is on one other then');

# nobody answers: who waits, and what others see
stop_answers($n1, $n2, $n3);
my $quorum = insert('t', 10, 'quorum');
my $all = insert('t', 11, 'all', 'SET synchronous_commit = off');
my $update = begin_session($n1, "SET repl_ml.write_consistency = 'quorum'", 'SET repl_ml.write_timeout = 0',
	"UPDATE t SET v = 'new' WHERE id = 1");
wait_for_waiters($n1, 3);
# the supervisor looks at the members and lets go what it can
my $beat = sql($n1, 'SELECT last_heartbeat FROM repl_ml.nodes WHERE is_local');
sql($n1, 'SELECT pg_reload_conf()');
poll_until($n1, "SELECT last_heartbeat > '$beat' FROM repl_ml.nodes WHERE is_local");
is(sql($n1, "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'"), '3', 'quorum and all wait, also with synchronous_commit = off');
ok(!is_visible($n1, 't', 'id IN (10, 11)'), 'no other session sees an inserted row before');
is(sql($n1, 'SELECT v FROM t WHERE id = 1'), 'all', 'nor an updated one');
psql_fails($n1, 'SELECT * FROM t WHERE id = 1 FOR UPDATE NOWAIT', '55P03', 'could not obtain lock');

like(insert_now('t', 20, 'one'), qr/^INSERT 0 1$/m, 'one is not delayed by those that wait');
ok(is_visible($n1, 't', 'id = 20'), 'and is visible at once');
ok(!is_visible($n2, 't', 'id = 20') && !is_visible($n3, 't', 'id = 20'), 'though nobody else has it');
is(sql($n1, "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'"), '3', 'the others wait on');

# one answers: a quorum
continue_answers($n2);
is_inserted(finish_session($quorum), 'quorum needs one of the others');
like(finish_session($update), qr/^UPDATE 1$/m, 'also for an update');
ok(is_visible($n1, 't', 'id = 10') && is_visible($n2, 't', 'id = 10') && !is_visible($n3, 't', 'id = 10'), 'it is visible on the two that have it');
is(sql($n1, 'SELECT v FROM t WHERE id = 1'), 'new', 'the updated row, too');
wait_for_waiters($n1, 1);
ok(!is_visible($n1, 't', 'id = 11'), 'all waits on, and is not visible yet');
like(insert_now('t', 12, 'quorum'), qr/^INSERT 0 1$/m, 'a quorum behind it in the queue is not delayed');
like(insert_now('t', 21, 'one'), qr/^INSERT 0 1$/m, 'nor is one');

# the tables' minimums, the same on all nodes
sql($n2, "SELECT repl_ml.set_table_consistency('important', 'all')");
sql($n2, "SELECT repl_ml.set_table_consistency('parts', 'quorum')");
poll_until($_, "SELECT string_agg(table_name || ' ' || write_consistency, ',' ORDER BY table_name) FROM repl_ml.tables",
	'important all,parts quorum,t one') foreach ($n1, $n2);
my $important = begin_session($n1, 'SET repl_ml.write_timeout = 0', "INSERT INTO important VALUES (1, 'x')");
wait_for_waiters($n1, 2);
my $mixed = begin_session($n1, 'SET repl_ml.write_timeout = 0',
	"BEGIN; INSERT INTO t VALUES (30, 'x'); INSERT INTO important VALUES (2, 'x'); INSERT INTO unreplicated VALUES (1, 'x'); COMMIT");
wait_for_waiters($n1, 3);
my $delete = begin_session($n1, 'SET repl_ml.write_timeout = 0', 'DELETE FROM important WHERE id = 100');
wait_for_waiters($n1, 4);
ok(!is_visible($n1, 'unreplicated', 'id = 1'), 'all of a transaction that waits is invisible');
stop_answers($n1, $n2);
my $part = begin_session($n1, 'SET repl_ml.write_timeout = 0', "INSERT INTO parts VALUES (1, 'x')");
my $direct = begin_session($n1, 'SET repl_ml.write_timeout = 0', "INSERT INTO parts_1 VALUES (2, 'x')");
wait_for_waiters($n1, 6);
pass('a table raises the level of those who write it, its partitions do, too');
like(insert_now('t', 31, 'one'), qr/^INSERT 0 1$/m, 'other tables keep theirs');
continue_answers($n2);
like(finish_session($_), qr/^INSERT 0 1$/m, 'partitions: one of the others is enough') foreach ($part, $direct);

continue_answers($n3);
is_inserted(finish_session($all), 'all needs both others');
is_inserted(finish_session($important), 'so does a table whose minimum is all');
like(finish_session($_), qr/^(COMMIT|DELETE 1)$/m, 'and all that write it') foreach ($mixed, $delete);
wait_converged(\@nodes, 't', 'important', 'parts');

psql_fails($n1, "SELECT repl_ml.set_table_consistency('t', 'two')", '22023', 'write consistency "two" does not exist', 'one, quorum or all');
psql_fails($n1, "SELECT repl_ml.set_table_consistency('unreplicated', 'all')", '55000', 'table public.unreplicated is not replicated', 'add_table');
psql_fails($n1, "SELECT repl_ml.set_table_consistency('t', NULL)", '22004', 'null is not allowed', 'value');
psql_fails($n1, "SET repl_ml.write_consistency = 'two'", '22023', 'invalid value', 'one, quorum, all');
sql($n3, "SELECT repl_ml.set_table_consistency('important', 'one')");
poll_until($n1, "SELECT write_consistency = 'one' FROM repl_ml.tables WHERE table_name = 'important'");

# from a role's and a database's settings; our own processes do not heed them
sql($n1, "ALTER ROLE careful SET repl_ml.write_consistency = 'quorum'");
sql($_, "ALTER DATABASE postgres SET repl_ml.write_consistency = 'all'") foreach @nodes;
soon_miss_heartbeats(@nodes);
sql($_, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type LIKE 'repl_ml %'") foreach @nodes;
poll_until($_, "SELECT count(*) = 2 AND bool_and(state = 'streaming') FROM repl_ml.stat_apply") foreach @nodes;
never_miss_heartbeats(@nodes);
stop_answers($n1, $n3);
stop_answers($n2, $n3);
my $by_database = begin_session($n1, 'SHOW repl_ml.write_consistency', "INSERT INTO t VALUES (40, 'x')");
wait_for_waiters($n1, 1);
is(sql($n1, "SET repl_ml.write_consistency = 'one'; INSERT INTO t VALUES (41, 'x'); SELECT 1"), '1', 'a session may ask for less');
is($n1->safe_psql('postgres', "INSERT INTO t VALUES (42, 'x'); SHOW repl_ml.write_consistency", extra_params => [ '-U', 'careful' ]),
	'quorum', 'a roles setting has precedence over the database');
is(sql($n2, "SET repl_ml.write_consistency = 'quorum'; INSERT INTO t VALUES (43, 'x'); SELECT 1"), '1', 'n2: quorum');
ok(is_visible($n1, 't', 'id = 43'), 'n1 applied it, and did not wait for n3');
is(sql($n1, "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'"), '1', 'nothing else waits on n1');
continue_answers($n3);
like(finish_session($by_database), qr/^all\nINSERT 0 1$/m, 'a commit with the setting of the database needs all');
sql($_, 'ALTER DATABASE postgres RESET repl_ml.write_consistency') foreach @nodes;

# what the session had set for core's commits stays
is(sql($n1, <<'SQL'), "off\noff\nlocal", 'synchronous_commit is as the session had set it again afterwards');
SET synchronous_commit = off;
SET repl_ml.write_consistency = 'all';
INSERT INTO t VALUES (50, 'x');
SHOW synchronous_commit;
INSERT INTO unreplicated VALUES (50, 'x');
SHOW synchronous_commit;
SET synchronous_commit = local;
INSERT INTO t VALUES (51, 'x');
SHOW synchronous_commit;
SQL

# a peer that loses a race for a row connects anew, and is not missed for that
sql($n2, "BEGIN; UPDATE t SET v = 'held' WHERE id = 1; PREPARE TRANSACTION 'holds'");
sql($n1, "UPDATE t SET v = 'n1' WHERE id = 1");
my $retries = sql($n2, "SELECT retries FROM repl_ml.stat_apply WHERE node_name = 'n1'");
my $id = 200;
my @sessions = map { insert('t', $id++, 'all') } 1 .. 12;
foreach my $lost (1 .. 3)
{
	poll_until($n2, "SELECT retries >= $retries + $lost FROM repl_ml.stat_apply WHERE node_name = 'n1'");
	push @sessions, map { insert('t', $id++, 'all') } 1 .. 8;
}
sql($n2, "ROLLBACK PREPARED 'holds'");
is(join('', grep { !/^INSERT 0 1$/m } map { finish_session($_) } @sessions), '', 'no commit is refused while a peer connects anew');

# power cut of this node as soon as the client has its answer, and then of the one that had acknowledged
stop_answers($n1, $n3);
like(insert_now('t', 60, 'quorum'), qr/^INSERT 0 1$/m, 'quorum, acknowledged by n2 only');
kill_server($n1);
kill_server($n2);
$n2->start;
ok(is_visible($n2, 't', 'id = 60'), 'the row survives n1, on n2, although that was killed as well');
continue_answers($n3);
$n1->start;
wait_converged(\@nodes, 't', 'important', 'parts');
is(sql($n3, 'SELECT count(*) FROM t'), sql($n1, 'SELECT count(*) FROM t'), 'n3 has everything');
is(sql($n3, 'SELECT count(*) FROM t WHERE id = 60'), '1', 'also that row');

done_testing();
