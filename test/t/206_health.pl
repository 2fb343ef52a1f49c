# repl_ml.health tells what is wrong, in words, and that it is over.
#
# Seen failing: each check with its status always ok.
use strict;
use warnings;
use FindBin;
use lib "$FindBin::Bin/..";
use Consistency;
use ReplMl;
use Test::More;

my ($n1, $n2, $n3) = my @nodes = new_group(3, <<'SQL');
CREATE TABLE t (id int PRIMARY KEY, v text);
SELECT repl_ml.add_all_tables();
SQL
wait_converged(\@nodes, 't');

# Each view of ours is planned for as few rows as there are: not so many that the server compiles it.
# Seen failing: without repl_ml.analyze_catalogs (sql/parts/collection.sql), top and stat_apply cost too much.
sql($n1, <<'SQL');
CREATE FUNCTION cost(view regclass) RETURNS float8 LANGUAGE plpgsql AS $$
DECLARE plan json; BEGIN EXECUTE format('EXPLAIN (FORMAT json) SELECT * FROM %s', view) INTO plan; RETURN plan->0->'Plan'->'Total Cost'; END $$
SQL
sql($n1, q(ALTER SYSTEM SET repl_ml.heartbeat_interval = '100ms'));
sql($n1, 'SELECT pg_reload_conf()');
poll_until($n1, q(SELECT count(*) > 10 AND bool_and(cost(oid::regclass) < current_setting('jit_above_cost')::float8) FROM pg_class WHERE relnamespace = 'repl_ml'::regnamespace AND relkind = 'v'));
sql($n1, 'ALTER SYSTEM RESET repl_ml.heartbeat_interval');
sql($n1, 'SELECT pg_reload_conf()');

# Who looks at all of them holds no lock that anybody else waits for.
my $views = sql($n1, q(SELECT string_agg(format('SELECT count(*) FROM %s x WHERE x IS NOT NULL', oid::regclass), '; ') FROM pg_class WHERE relnamespace = 'repl_ml'::regnamespace AND relkind = 'v'));
my @locks = split /\n/, sql($n1, "BEGIN; $views; SELECT 'lock ' || string_agg(DISTINCT mode, ' ') FROM pg_locks WHERE pid = pg_backend_pid() AND locktype <> 'virtualxid'");
is($locks[-1], 'lock AccessShareLock', 'views take no locks but those of readers');

# Waits until a check has a status; tests its detail and hint.
sub becomes
{
	my ($node, $check, $status, $detail, $hint) = @_;
	my $condition = "check_name = '$check' AND status = '$status'";
	my $found = '';

	# on a busy machine it may be over for a moment
	while ($found eq '')
	{
		poll_until($node, "SELECT count(*) = 1 FROM repl_ml.health WHERE $condition");
		$found = sql($node, "SELECT detail || '|' || coalesce(hint, '') FROM repl_ml.health WHERE $condition");
	}
	like($found, qr/^.*(?:$detail)\|/, "$check on " . $node->name . " becomes $status");
	like($found, qr/\|.*$hint/, "$check, $status: what to do") if defined $hint;
	return;
}

# What the check says while a statement is in force that is then taken back.
sub pretended
{
	my ($node, $statement, $check) = @_;
	return sql($node, "BEGIN; $statement; SELECT status, detail, hint FROM repl_ml.health WHERE check_name = '$check'; ROLLBACK");
}

sub all_is_well
{
	my ($node) = @_;
	poll_until($node, q(SELECT coalesce(string_agg(check_name || ' ' || detail, ', '), 'nothing') FROM repl_ml.health WHERE status <> 'ok'), 'nothing');
	return;
}

# nothing
all_is_well($_) foreach @nodes;
is(sql($n1, 'SELECT string_agg(check_name, chr(10)) FROM repl_ml.health'),
	join("\n", qw(membership write_consistency waiting_commits unacknowledged sending applying delay parked_changes slots tables table_shapes unreplicated_tables clock_skew publication unsent prepared_transactions login_roles consistency verify_schedule sequences schema_changes processes)), 'one row for each check');
is(sql($n1, 'SELECT count(*) FROM repl_ml.health WHERE hint IS NOT NULL OR detail IS NULL'), '0', 'all are explained, and there is nothing to do');
is(sql($n1, "SELECT detail FROM repl_ml.health WHERE check_name IN ('membership', 'write_consistency')"),
	"Node \"n1\" of group \"g\", members: n1, n2, n3.\n3 members, all can be reached, quorum needs 2: can tolerate one failure.", 'a group of three');

# members that do not answer
soon_miss_heartbeats(@nodes);
stop_answers($n1, $n3);
becomes($n1, 'write_consistency', 'warning',
	qr/3 members, 2 can be reached, quorum needs 2: can tolerate no further failure\. Commits with write consistency all are refused\. Missing: n3\./, 'repl_ml.drop_node');
becomes($n1, 'sending', 'error', qr/Node "n3" has not answered for [0-9.]+ seconds\./, 'stat_apply');
stop_answers($n1, $n2);
becomes($n1, 'write_consistency', 'error',
	qr/3 members, only 1 can be reached, quorum needs 2: commits with write consistency quorum and all are refused\. Missing: n2, n3\./, 'drop_node');
is(sql($n1, q(SELECT node_name, reachable, silent_for < '1 hour' FROM repl_ml.nodes ORDER BY node_id)), "n1|t|t\nn2|f|t\nn3|f|t", 'nodes tells who');
continue_answers();
all_is_well($n1);

# a commit that waits
never_miss_heartbeats($n1);
stop_answers($n1, $n2, $n3);
my $session = begin_session($n1, "SET repl_ml.write_consistency = 'quorum'", 'SET repl_ml.write_timeout = 0', "INSERT INTO t VALUES (1, NULL)");
wait_for_waiters($n1, 1);
is(sql($n1, "SELECT status FROM repl_ml.health WHERE check_name = 'waiting_commits'"), 'ok', 'waiting_commits: not yet');
soon_miss_heartbeats($n1);
becomes($n1, 'waiting_commits', 'warning', qr/Commits that wait to be acknowledged: 1, the longest for [0-9.]+ seconds\./, 'stat_write_waiters');
continue_answers();
finish_session($session);
all_is_well($n1);

# applying
sql($n1, "SELECT repl_ml.pause_apply('n2')");
becomes($n1, 'applying', 'warning', qr/Nothing of node "n2" is applied \(paused\)\./, qr/Run SELECT repl_ml.resume_apply\('n2'\)/);
becomes($n1, 'delay', 'warning', qr/What node "n2" wrote in the last [0-9.]+ seconds is not applied here: that is paused here\./, qr/Run SELECT repl_ml.resume_apply\('n2'\)/);
sql($n1, "SELECT repl_ml.resume_apply('n2')");
all_is_well($n1);

# a change that cannot be applied
sql($n2, "ALTER TABLE t ADD CONSTRAINT good CHECK (v <> 'bad')");
sql($n1, "INSERT INTO t VALUES (2, 'bad')");
becomes($n2, 'parked_changes', 'error', qr/Changes that could not be applied here: 1, the last one because: .* violates check constraint "good"\./, 'retry_parked');
sql($n2, 'ALTER TABLE t DROP CONSTRAINT good; SELECT repl_ml.retry_parked(id) FROM repl_ml.parked_changes');
all_is_well($n2);
like(pretended($n1, q(INSERT INTO repl_ml.parked_change (origin_node, origin_xid, origin_lsn, schema_name, table_name, action, change, sqlstate, message)
	VALUES (2, '3', '0/1', 'public', 't', 'evicted', '{}', '23505', 'm'), (2, '3', '0/1', 'public', 't', 'kept', '{}', '23505', 'm')), 'parked_changes'),
	qr/^warning\|Rows that lost a conflict and wait for a decision: 2\.\|.*discard_parked/m, 'parked_changes: losers');

# prepared transactions
sql($n1, "BEGIN; INSERT INTO t VALUES (3, NULL); PREPARE TRANSACTION 'left'");
becomes($n1, 'prepared_transactions', 'warning', qr/'left', the oldest of .*: they hold locks.*/, 'ROLLBACK PREPARED');
sql($n1, "ROLLBACK PREPARED 'left'");
all_is_well($n1);

# what cannot easily be had: pretended
like(pretended($n1, "UPDATE repl_ml.heartbeat SET sent_at = now() + '5 s' WHERE node_id = 2", 'clock_skew'),
	qr/^warning\|The clock of node "n2" is at least [45]\.\d seconds ahead of this one's\.\|.*NTP/m, 'clock_skew: warning');
like(pretended($n1, "UPDATE repl_ml.heartbeat SET sent_at = now() + '1 h' WHERE node_id = 2", 'clock_skew'), qr/^error\|The clock of node "n2"/m, 'clock_skew: error');
like(pretended($n1, "INSERT INTO repl_ml.replicated_table (schema_name, table_name, state, enrolled_by) VALUES ('public', 'Nowhere', 'enrolled', 2)", 'tables'),
	qr/^error\|Table public\."Nowhere" is not here\.\|.*problem/m, 'tables: missing');
like(pretended($n1, "INSERT INTO repl_ml.table_sync (node_id, schema_name, table_name) VALUES (2, 'public', 't')", 'tables'), qr/^warning\|Table public\.t is being copied\.\|/m, 'tables: copied');
like(pretended($n1, "UPDATE repl_ml.local_node SET state = 'copying'", 'membership'), qr/^warning\|Node "n1" is still joining group "g" \(copying\).*\|.*stat_apply/m, 'membership: joining');
like(pretended($n1, "UPDATE repl_ml.local_node SET state = 'dropped'", 'membership'), qr/^error\|The other members have dropped node "n1".*\|.*leave_group/m, 'membership: dropped');
like(pretended($n1, "UPDATE repl_ml.local_node SET directory = 'elsewhere'", 'membership'), qr/^error\|This database is a copy of node "n1".*\|.*leave_group/m, 'membership: a copy');
is(sql($n1, "BEGIN; UPDATE repl_ml.local_node SET directory = 'elsewhere'; SELECT count(*) FROM repl_ml.health; ROLLBACK"), '1', 'a copy has nothing else to say');
sql($n1, 'CREATE DATABASE other');
is($n1->safe_psql('other', 'CREATE EXTENSION repl_ml; SELECT * FROM repl_ml.health'),
	'membership|warning|This database is in no group: nothing is replicated.|Run SELECT repl_ml.create_group(...) or repl_ml.join_group(...).', 'a database without a group');

# a server that is down, and holds back WAL
sql($n1, "ALTER SYSTEM SET max_wal_size = '32MB'; ALTER SYSTEM SET min_wal_size = '32MB'; SELECT pg_reload_conf()");
$n3->stop;
becomes($n1, 'applying', 'error', qr/Nothing of node "n3" is applied \((?:waiting|connecting)\): [^.].*\./, qr{Check that the server runs|stat_apply|connects again by itself});
sql($n1, 'CREATE TABLE filler (id int); SELECT repl_ml.keep_local($$filler$$); SELECT pg_switch_wal();' . "INSERT INTO filler VALUES (1); SELECT pg_switch_wal();" x 4);
becomes($n1, 'slots', 'warning', qr/.*Node "n3" holds back [0-9]+ MB of WAL\./, 'Watch the disk');
sql($n1, "ALTER SYSTEM SET max_slot_wal_keep_size = '1MB'; SELECT pg_reload_conf()");
sql($n1, "INSERT INTO filler VALUES (1); SELECT pg_switch_wal(); CHECKPOINT");
becomes($n1, 'slots', 'error', qr/.*WAL that node "n3" had not read is gone\./, 'made anew');
$n3->start;
all_is_well($_) foreach @nodes;
wait_converged(\@nodes, 't');

done_testing();
