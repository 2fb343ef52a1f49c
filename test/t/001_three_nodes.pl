# A newcomer's three nodes: what is written on any of them is on all, a conflict ends alike and under
# one id everywhere, and the views keep a row for each peer, also a dead one, and show no password.
use strict;
use warnings;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use ReplMl;

my @nodes = map { new_node("n$_", 'log_statement = none', 'log_replication_commands = off') } 1 .. 3;
my ($n1, $n2, $n3) = @nodes;

# trust authentication ignores the password, so that it may be looked for afterwards
sub secret_dsn { my ($node) = @_; return dsn($node) =~ s/'/''/gr . ' password=open-sesame'; }

# ---- two functions make a group ----

sql($_, 'CREATE EXTENSION repl_ml') foreach @nodes;
is(sql($n1, "SELECT repl_ml.create_group('shop', 'n1', '" . secret_dsn($n1) . "')"), '1', 'the first node is 1');
sql($n1, <<'SQL');
CREATE TABLE feature (entity text, name text, value float8, note text, PRIMARY KEY (entity, name));
CREATE TABLE audit_line (line text);
INSERT INTO feature SELECT 'e' || i, 'clicks', i, 'made before the group grew' FROM generate_series(1, 100) i;
SQL
is(sql($n1, 'SELECT relation, status, detail, hint FROM repl_ml.add_all_tables()'),
	'audit_line|skipped|table public.audit_line has no primary key|Run ALTER TABLE public.audit_line ADD PRIMARY KEY (...).' . "\n"
	  . 'feature|added||', 'add_all_tables says what it did, and what it could not and why');
foreach my $i (2, 3)
{
	my $join = "SELECT repl_ml.join_group('n$i', '" . secret_dsn($nodes[ $i - 1 ]) . "', '" . secret_dsn($n1) . "')";
	is(sql($nodes[ $i - 1 ], $join), $i, "n$i joins as node $i");
}
foreach my $node (@nodes)
{
	my $members = join "\n", map { "$_|n$_|ready|" . ($node->name eq "n$_" ? 't' : 'f') } 1 .. 3;
	poll_until($node, 'SELECT node_id, node_name, state, is_local FROM repl_ml.nodes ORDER BY 1', $members);
	is(sql($node, 'SELECT relation, state, resolver, enrolled_by, pending_copies FROM repl_ml.tables'),
		'feature|replicated|last_write|n1|0', $node->name . ': its list of tables');
}
wait_converged(\@nodes, 'feature');
is(sql($n3, 'SELECT count(*) FROM feature'), '100', 'rows older than the group were copied');

# ---- writing everywhere: an order, no conflict ----

sql($_, "INSERT INTO feature SELECT 'e' || i, '" . $_->name . "', i FROM generate_series(1, 50) i") foreach @nodes;
wait_converged(\@nodes, 'feature');
sql($n1, "UPDATE feature SET value = -value WHERE name = 'n2'");
sql($n2, "UPDATE feature SET note = 'seen by n2' WHERE name = 'n3' AND value <= 10");
sql($n3, "DELETE FROM feature WHERE name = 'n1' AND value > 45");
sql($n3, "INSERT INTO feature VALUES ('e1', 'clicks', 0) ON CONFLICT (entity, name) DO UPDATE SET value = 1000");
wait_converged(\@nodes, 'feature');
is(sql($n1, "SELECT count(*), sum(value), count(*) FILTER (WHERE note = 'seen by n2') FROM feature"),
	'245|' . (5050 + 999 + 1275 - 1275 + 1275 - 240) . '|10', 'inserts, updates and deletes of all three');
is(sql($_, 'SELECT count(*) FROM repl_ml.conflicts'), '0', $_->name . ': one after the other is no conflict')
  foreach @nodes;

# ---- one conflict ----

cut($n1, $n2);
cut($n2, $n1);
sql($n1, "UPDATE feature SET value = 7, note = 'from n1' WHERE (entity, name) = ('e7', 'clicks')");
sql($n2, "UPDATE feature SET value = 7, note = 'from n2' WHERE (entity, name) = ('e7', 'clicks')");
heal($n1, $n2);
heal($n2, $n1);
wait_converged(\@nodes, 'feature');
is(sql($n1, "SELECT value, note, repl_ml.last_writer(__repl_clock) FROM feature WHERE (entity, name) = ('e7', 'clicks')"),
	'7|from n2|2', 'the later write won');
my $verdict = 'SELECT key, conflict_type, resolution, winner_node, loser_node, winner_row, loser_row, lost_columns FROM repl_ml.conflicts';
is(sql($_, $verdict),
	'{e7,clicks}|update_origin_differs|last_write|n2|n1|'
	  . '{"name": "clicks", "note": "from n2", "value": 7, "entity": "e7"}|'
	  . '{"name": "clicks", "note": "from n1", "value": 7, "entity": "e7"}|{note}',
	$_->name . ': who won, and what was lost')
  foreach @nodes;
my $id = sql($n1, 'SELECT conflict_id, winner_clock, loser_clock FROM repl_ml.conflicts');
is(sql($_, 'SELECT conflict_id, winner_clock, loser_clock FROM repl_ml.conflicts'), $id, $_->name . ': the same id and clocks')
  foreach $n2, $n3;
is(sql($_, 'SELECT table_name, conflict_type, conflicts FROM repl_ml.stat_conflicts'), 'feature|update_origin_differs|1',
	$_->name . ': counted')
  foreach @nodes;

# ---- the views, with all peers up and with one down ----

poll_until($n1, 'SELECT node_name, state, heartbeat_lag IS NOT NULL, lag_bytes >= 0 FROM repl_ml.stat_replication ORDER BY 1',
	"n2|streaming|t|t\nn3|streaming|t|t");
poll_until($n1, 'SELECT node_name, state, pid IS NOT NULL FROM repl_ml.stat_apply ORDER BY 1',
	"n2|streaming|t\nn3|streaming|t");
is(sql($n1, 'SELECT node_name, errors, parked, conflicts FROM repl_ml.stat_apply ORDER BY 1'), "n2|0|0|1\nn3|0|0|0",
	'what the workers of n1 have met');

$n3->stop('fast');
poll_until($n1, "SELECT node_name, state FROM repl_ml.stat_replication ORDER BY 1", "n2|streaming\nn3|down");
is(sql($n1, "SELECT pid, sent_lsn, write_lag, flush_lag, heartbeat_lag > '0', slot_name IS NOT NULL, flush_lsn IS NOT NULL"
	  . " FROM repl_ml.stat_replication WHERE node_name = 'n3'"), '||||t|t|t', 'a dead peer has no lag of its own, but its place');
poll_until($n1, "SELECT error_sqlstate, pid IS NOT NULL, state IN ('waiting', 'connecting') FROM repl_ml.stat_apply WHERE node_name = 'n3'",
	'08001|t|t');
is(sql($n1, "SELECT string_agg(node_name || ' ' || state, ', ' ORDER BY 1) FROM repl_ml.nodes"), 'n1 ready, n2 ready, n3 ready',
	'a member that is down is still one');
sql($n1, "INSERT INTO feature VALUES ('late', 'n1', 1)");
sql($n2, "INSERT INTO feature VALUES ('late', 'n2', 2)");
cmp_ok(sql($n1, "SELECT lag_bytes FROM repl_ml.stat_replication WHERE node_name = 'n3'"), '>', 0, 'what waits for it is counted');
$n3->start;
wait_converged(\@nodes, 'feature');
is(sql($n3, "SELECT count(*) FROM feature WHERE entity = 'late'"), '2', 'it has caught up');
poll_until($n1, "SELECT state FROM repl_ml.stat_replication WHERE node_name = 'n3'", 'streaming');
is(sql($_, 'SELECT count(*) FROM repl_ml.parked_changes'), '0', $_->name . ': nothing is parked') foreach @nodes;

# ---- what others may see ----

sql($n1, "CREATE ROLE watcher LOGIN IN ROLE pg_monitor; CREATE ROLE app LOGIN; GRANT ALL ON feature TO app");
foreach my $view (qw(nodes tables stat_replication stat_apply stat_conflicts))
{
	my $rows = sql($n1, "SET ROLE watcher; SELECT to_jsonb(v) FROM repl_ml.$view v");
	like($rows, qr/^\{/, "pg_monitor reads $view");
	unlike($rows, qr/open-sesame|"dsn"/, "no connection string in $view");
}
is(sql($n1, "SET ROLE watcher; SELECT count(*) FROM repl_ml.check_setup() WHERE status = 'error'"), '0', 'pg_monitor checks settings');
is(sql($n1, "SET ROLE watcher; SELECT status, detail FROM repl_ml.check_setup('') WHERE check_name = 'peer'"),
	'error|only a superuser may try a connection string', 'and connects to nowhere with it');
psql_fails($n1, 'SET ROLE watcher; SELECT dsn FROM repl_ml.member', '42501', 'permission denied for table member');
psql_fails($n1, 'SET ROLE app; SELECT * FROM repl_ml.nodes', '42501', 'permission denied for view nodes');
psql_fails($n1, "SET ROLE app; SELECT repl_ml.drop_node('n2')", '42501', 'permission denied for function drop_node');
sql($n1, "SET ROLE app; INSERT INTO feature VALUES ('app', 'x', 1); UPDATE feature SET value = 2 WHERE entity = 'app'; DELETE FROM feature WHERE entity = 'app'");
wait_converged(\@nodes, 'feature');
unlike(slurp_file($_->logfile), qr/open-sesame/, $_->name . ': no password in the log') foreach @nodes;

done_testing();
