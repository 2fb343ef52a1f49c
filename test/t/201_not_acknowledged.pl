# A commit that is not acknowledged is never reported as success: refused with 57P03 before anything is
# committed when too few members can be reached, else 40003, whatever ends the wait and whatever the protocol.
#
# Seen failing: commit.c, tell_client_later that replaces no message (success of all protocols); waiter.c, begin
# that refuses nothing (the second half); commit.c, the detail with the setting of the moment (SET LOCAL).
use strict;
use warnings;
use FindBin;
use lib "$FindBin::Bin/..";
use Consistency;
use IPC::Run;
use ReplMl;
use PostgreSQL::Test::Utils;
use Test::More;

my ($n1, $n2, $n3) = my @nodes = new_group(3, <<'SQL');
CREATE TABLE t (id int PRIMARY KEY, v text);
CREATE TABLE important (id int PRIMARY KEY, v text);
SELECT repl_ml.add_all_tables();
SELECT repl_ml.set_table_consistency('important', 'all');
CREATE PROCEDURE fill(first int, n int) LANGUAGE plpgsql AS
	'BEGIN FOR i IN first .. first + n - 1 LOOP INSERT INTO t VALUES (i, NULL); COMMIT; END LOOP; END';
CREATE PROCEDURE fail_after_commit(id int) LANGUAGE plpgsql AS
	'BEGIN INSERT INTO t VALUES (id, NULL); COMMIT; RAISE division_by_zero; END';
SQL
wait_converged(\@nodes, 't', 'important');
never_miss_heartbeats($n1);
my $unknown = qr/ERROR:  40003: transaction is committed on this node but not acknowledged by write consistency "quorum"/;

# Statements in one session at level quorum; its output.
sub run
{
	return finish_session(begin_session($n1, "SET repl_ml.write_consistency = 'quorum'", "SET repl_ml.write_timeout = '200ms'", @_));
}

# Tests that the output says 40003 in place of a command tag, and that the row is there all the same.
sub is_unknown
{
	my ($out, $tag, $id, $name) = @_;
	like($out, $unknown, "$name: completion unknown");
	unlike($out, qr/^$tag/m, "$name: no success");
	ok(is_visible($n1, 't', "id = $id"), "$name: committed on this node");
	return;
}

stop_answers($n1, $n2, $n3);

# the simple protocol
my $out = run('INSERT INTO t VALUES (1, NULL)', "SELECT 'goes on'", 'SHOW synchronous_commit');
is_unknown($out, 'INSERT', 1, 'autocommit');
like($out, qr/^DETAIL:  No answer within 200 ms \(repl_ml.write_timeout\) from: n2, n3\.$/m, 'it says who has not answered');
like($out, qr/^HINT:  .*transaction_status/m, 'and how to learn more');
like($out, qr/^goes on\non$/m, 'the session goes on, as it was');
unlike($out, qr/WARNING/, 'core says nothing');
is_unknown(run('BEGIN', 'INSERT INTO t VALUES (2, NULL)', 'COMMIT'), 'COMMIT', 2, 'COMMIT');
is_unknown(run('BEGIN; INSERT INTO t VALUES (3, NULL); COMMIT'), 'COMMIT', 3, 'a block in one message');
is_unknown(run('BEGIN', 'INSERT INTO t VALUES (4, NULL)', 'END'), 'COMMIT', 4, 'END');
$out = run('BEGIN', 'INSERT INTO t VALUES (5, NULL)', 'COMMIT AND CHAIN', 'INSERT INTO t VALUES (105, NULL)', 'COMMIT');
is_unknown($out, 'COMMIT', 5, 'COMMIT AND CHAIN');
ok(!is_visible($n1, 't', 'id = 105'), 'the transaction after it has failed');
is_unknown(run('BEGIN', 'SAVEPOINT a', 'INSERT INTO t VALUES (6, NULL)', 'RELEASE a', 'COMMIT'), 'COMMIT', 6, 'a savepoint');
is_unknown(run('WITH w AS (INSERT INTO t VALUES (7, NULL) RETURNING id) SELECT count(*) FROM w'), 'never', 7, 'a SELECT that writes');
is_unknown(run("DO 'BEGIN INSERT INTO t VALUES (8, NULL); COMMIT; END'"), 'DO', 8, 'COMMIT in a DO');
$out = run('CALL fill(10, 2)');
is_unknown($out, 'CALL', 10, 'COMMIT in a procedure');
ok(is_visible($n1, 't', 'id = 11'), 'COMMIT in a procedure: it went on to its end');
like(run('CALL fail_after_commit(12)'), $unknown, 'an error afterwards does not hide it');
$out = run("BEGIN", "SET LOCAL repl_ml.write_timeout = '150ms'", 'INSERT INTO t VALUES (13, NULL)', 'COMMIT');
is_unknown($out, 'COMMIT', 13, 'SET LOCAL');
like($out, qr/No answer within 150 ms/, 'SET LOCAL: the timeout was the local one');
like(run("SET statement_timeout = '50ms'", 'INSERT INTO t VALUES (14, NULL)'), qr/No answer within 200 ms/, 'statement_timeout does not end the wait');

# COPY
IPC::Run::run([ 'psql', '-Xq', '-v', 'VERBOSITY=verbose', '-d', dsn($n1) ], '<',
	\"SET repl_ml.write_consistency = 'quorum';\nSET repl_ml.write_timeout = '200ms';\n\\unset QUIET\nCOPY t FROM STDIN;\n15\t\\N\n\\.\n",
	'>&', \$out);
is_unknown($out, 'COPY', 15, 'COPY');

# the extended protocol: pgbench says why a client ended, and how many transactions succeeded
my $id = 1000;
my %scripts = (
	'autocommit' => 'INSERT INTO t VALUES (:id, NULL);',
	'COMMIT' => "BEGIN;\nINSERT INTO t VALUES (:id, NULL);\nCOMMIT;",
	'CALL' => 'CALL fill(:id, 1);',
	'pipeline' => "\\startpipeline\nINSERT INTO t VALUES (:id, NULL);\nSELECT 1;\n\\endpipeline");
foreach my $protocol ('simple', 'extended', 'prepared')
{
	foreach my $name (sort keys %scripts)
	{
		next if $protocol eq 'simple' && $name eq 'pipeline';
		my $file = PostgreSQL::Test::Utils::tempdir() . '/script.sql';
		$id++;
		append_to_file($file, $scripts{$name});
		local $ENV{PGOPTIONS} = '-c repl_ml.write_consistency=quorum -c repl_ml.write_timeout=200ms';
		IPC::Run::run([ 'pgbench', '-n', '-t', 1, '-M', $protocol, '-D', "id=$id", '-f', $file, dsn($n1) ], '>&', \$out);
		like($out, qr/committed on this node but not acknowledged/, "$protocol, $name: completion unknown");
		like($out, qr/transactions actually processed: 0\/1/, "$protocol, $name: no success");
		ok(is_visible($n1, 't', "id = $id"), "$protocol, $name: committed on this node");
	}
}

# others end the wait
foreach my $function ('pg_cancel_backend', 'pg_terminate_backend')
{
	$id++;
	my $session = begin_session($n1, "SET repl_ml.write_consistency = 'quorum'", 'SET repl_ml.write_timeout = 0', "INSERT INTO t VALUES ($id, NULL)");
	wait_for_waiters($n1, 1);
	is(sql($n1, "SELECT $function(pid) FROM repl_ml.stat_write_waiters"), 't', $function);
	$out = finish_session($session);
	unlike($out, qr/^INSERT/m, "$function: no success");
	like($out, $function eq 'pg_cancel_backend' ? $unknown : qr/terminating connection|server closed the connection/, "$function: what the client hears");
	like($out, qr/^DETAIL:  The wait was cancelled; no answer yet from: n2, n3\.$/m, "$function: who has not answered") if $function eq 'pg_cancel_backend';
	poll_until($n1, "SELECT count(*) = 1 FROM t WHERE id = $id");
}

# they are there for the others later
continue_answers();
wait_converged(\@nodes, 't');
ok(is_visible($n2, 't', "id = $id"), 'what was not acknowledged reaches the others later');

# what is known to be missing is refused; nothing is written
soon_miss_heartbeats($n1);
is(sql($n1, 'SELECT commits > 0 OR refused > 0 FROM repl_ml.stat_write_consistency WHERE level = \'all\''), 'f', 'nothing of level all yet');
my $before = sql($n1, "SELECT commits, refused, timeouts > 20, cancelled FROM repl_ml.stat_write_consistency WHERE level = 'quorum'");
is($before, '0|0|t|2', 'all that is counted');
stop_answers($n1, $n3);
poll_until($n1, q(SELECT string_agg(node_name || reachable, ' ' ORDER BY node_id) FROM repl_ml.nodes), 'n1true n2true n3false');
psql_fails($n1, "SET repl_ml.write_consistency = 'all'; INSERT INTO t VALUES (2000, NULL)", '57P03',
	'write consistency "all" needs 3 of 3 members, but only [12] can be reached', 'repl_ml.health');
psql_fails($n1, 'INSERT INTO important VALUES (2000, NULL)', '57P03', 'write consistency "all" needs 3 of 3 members');
{
	# on a busy machine the other one may come late, and be missed for a moment
	local $ENV{PGOPTIONS} = '-c repl_ml.write_consistency=quorum';
	poll_until($n1, 'WITH w AS (INSERT INTO t VALUES (2001, NULL) RETURNING id) SELECT count(*) = 1 FROM w');
	ok(is_visible($n2, 't', 'id = 2001'), 'quorum has enough');
}
stop_answers($n1, $n2);
poll_until($n1, q(SELECT string_agg(node_name || reachable, ' ' ORDER BY node_id) FROM repl_ml.nodes), 'n1true n2false n3false');
$out = run('INSERT INTO t VALUES (2002, NULL)', 'BEGIN', 'INSERT INTO t VALUES (2003, NULL)', 'COMMIT', 'SELECT txid_current_if_assigned() IS NULL');
is(() = $out =~ /ERROR:  57P03: write consistency "quorum" needs 2 of 3 members, but only 1 can be reached/g, 2, 'quorum is refused');
like($out, qr/^DETAIL:  Reachable: n1\. Missing: n2, n3\. Nothing has been committed\.$/m, 'it says who is missing');
unlike($out, qr/^COMMIT/m, 'COMMIT does not succeed');
ok(!is_visible($n1, 't', 'id IN (2000, 2002, 2003)') && !is_visible($n1, 'important', 'id = 2000'), 'nothing of it is committed');
is(sql($n1, 'INSERT INTO t VALUES (2004, NULL) RETURNING id'), '2004', 'one is possible');
is(sql($n1, "SET repl_ml.write_consistency = 'all'; SELECT count(*) FROM t WHERE id = 2004"), '1', 'and reading');
continue_answers();
{
	local $ENV{PGOPTIONS} = '-c repl_ml.write_consistency=quorum';
	poll_until($n1, 'WITH w AS (INSERT INTO t VALUES (2005, NULL) RETURNING id) SELECT count(*) = 1 FROM w');
	ok(is_visible($n2, 't', 'id = 2005') || is_visible($n3, 't', 'id = 2005'), 'possible again without a hand');
}

# servers that are down
$n2->stop;
$n3->stop('immediate');
poll_until($n1, 'SELECT count(*) = 2 FROM repl_ml.nodes WHERE NOT reachable');
psql_fails($n1, "SET repl_ml.write_consistency = 'quorum'; INSERT INTO t VALUES (2006, NULL)", '57P03', 'needs 2 of 3 members, but only 1 can be reached');
is(sql($n1, "SELECT bool_and(refused >= CASE level WHEN 'all' THEN 2 ELSE 3 END) FROM repl_ml.stat_write_consistency"), 't', 'refusals are counted');
$_->start foreach ($n2, $n3);
wait_converged(\@nodes, 't', 'important');
is(sql($n3, 'SELECT count(*) FROM t WHERE id IN (2000, 2002, 2003, 2006)'), '0', 'what was refused is nowhere');

# counters are the operator's to reset
never_miss_heartbeats($n1);
is(sql($n1, <<'SQL'), '0|0|0|0|t', 'counters at zero');
SELECT FROM repl_ml.reset_write_stats();
SELECT sum(commits), sum(refused), sum(timeouts), sum(cancelled), bool_and(stats_reset > pg_postmaster_start_time() AND min_wait IS NULL)
FROM repl_ml.stat_write_consistency;
SQL
is(sql($n1, "SET repl_ml.write_consistency = 'quorum'; INSERT INTO t VALUES (3000, NULL) RETURNING id"), '3000', 'one commit');
is(sql($n1, <<'SQL'), '1|t|12|1', 'counted with its wait');
SELECT commits, min_wait > '0' AND min_wait = max_wait AND min_wait = total_wait AND min_wait = mean_wait,
       cardinality(histogram), (SELECT sum(h) FROM unnest(histogram) h)
FROM repl_ml.stat_write_consistency WHERE level = 'quorum';
SQL

done_testing();
