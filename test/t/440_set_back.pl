# A node whose storage is set back in place comes back by itself under a new id: it has all it had sent, takes no write and answers
# no barrier before; what it wrote meanwhile is no newer than what it had forgotten, but in conflict with that, and logged.
#
# Seen failing before the node came back by itself (a person had to have it leave and join), and, of the conflicts, with
# former.c that renames nothing: what was written before goes without a word.
use strict;
use warnings;
use Membership;
use ReplMl;
use PostgreSQL::Test::Utils;
use Test::More;

my ($n1, $n2, $n3) = my @nodes = new_group(3, <<'SQL');
CREATE TABLE t (id int PRIMARY KEY, v text);
CREATE TABLE merged (id int PRIMARY KEY, n int, a text, b text);
CREATE TABLE parted (id int PRIMARY KEY, v text) PARTITION BY RANGE (id);
CREATE TABLE parted_1 PARTITION OF parted FOR VALUES FROM (0) TO (50);
CREATE TABLE parted_2 PARTITION OF parted DEFAULT;
INSERT INTO t SELECT g, 'old' FROM generate_series(1, 100) g;
INSERT INTO merged SELECT g, 10, 'a', 'b' FROM generate_series(1, 3) g;
INSERT INTO parted SELECT g, 'old' FROM generate_series(1, 99) g;
SELECT * FROM repl_ml.add_all_tables();
SELECT repl_ml.set_column_merge('merged', 'n', 'counter');
SELECT repl_ml.set_column_merge('merged', 'a', 'independent');
SELECT repl_ml.set_column_merge('merged', 'b', 'independent');
SQL
my @tables = qw(t merged parted);
poll_until($_, q(SELECT count(*) = 3 AND sum(pending_copies) = 0 FROM repl_ml.tables WHERE state = 'replicated')) foreach @nodes;
sql($n3, 'UPDATE t SET v = $$by n3$$ WHERE id = 50');
wait_converged(\@nodes, @tables);

sub id_of { my ($node) = @_; return sql($node, 'SELECT node_id FROM repl_ml.local_node') }
sub is_back { my ($node, $id) = @_; poll_until($node, "SELECT node_id >= $id AND state = 'ready' FROM repl_ml.local_node"); return }
sub is_settled
{
	my ($name) = @_;
	foreach my $node (@nodes)
	{
		poll_until($node, q(SELECT count(*) = 0 FROM repl_ml.table_sync y JOIN repl_ml.member m USING (node_id) WHERE y.state = 'pending' AND m.state <> 'dropped'));
		poll_until($node, q(SELECT count(*) = 2 AND bool_and(state = 'streaming') FROM repl_ml.stat_apply));
		poll_until($node, q(SELECT bool_and(status = 'consistent') FROM repl_ml.verify_all()));
	}
	wait_converged(\@nodes, @tables);
	is(sql($_, q(SELECT string_agg(detail, ' ') FROM repl_ml.health WHERE check_name IN ('membership', 'applying', 'sending', 'unacknowledged') AND status <> 'ok')), '', "$name: health of " . $_->name) foreach @nodes;
	return;
}

# What it forgets: at quorum, deletions among it, whose tombstones are then gone.
$n3->stop;
my $saved = save_directory($n3);
$n3->start;
poll_until($n3, q(SELECT bool_and(state = 'streaming') FROM repl_ml.stat_apply));
poll_until($n3, q(SELECT count(*) = 3 AND bool_and(reachable) FROM repl_ml.write_members()));
sql($n3, <<'SQL');
SET repl_ml.write_consistency = quorum;
INSERT INTO t SELECT g, 'forgotten' FROM generate_series(1001, 1005) g;
UPDATE t SET v = 'forgotten' WHERE id IN (1, 2, 3, 50);
DELETE FROM t WHERE id IN (4, 5, 6);
UPDATE parted SET v = 'forgotten' WHERE id IN (1, 60);
UPDATE merged SET n = n + 5 WHERE id = 1;
UPDATE merged SET a = 'forgotten' WHERE id = 2;
SQL
sql($n1, q(DELETE FROM t WHERE id = 7; UPDATE t SET v = 'by n1' WHERE id = 8));
wait_converged(\@nodes, @tables);
poll_until($_, 'SELECT count(*) = 0 FROM repl_ml.tombstone') foreach $n1, $n2;
my $status = sql($n3, q(BEGIN; SET LOCAL repl_ml.write_consistency = quorum; INSERT INTO t VALUES (1006, 'forgotten'); SELECT repl_ml.transaction_token(); COMMIT));
wait_converged(\@nodes, @tables);
$_->stop foreach @nodes;
restore_in_place($saved, $n3->data_dir);

# It is alone, and writes, twice started; of rows that it had written, and of others.
$n3->start;
sql($n3, <<'SQL');
UPDATE t SET v = 'late' WHERE id IN (1, 4, 9);
DELETE FROM t WHERE id IN (2, 10);
INSERT INTO t VALUES (5000, 'late'), (1001, 'late');
UPDATE parted SET v = 'late' WHERE id IN (1, 2, 61);
UPDATE merged SET n = n + 100 WHERE id IN (1, 3);
UPDATE merged SET b = 'late' WHERE id = 2;
SQL
psql_fails($n3, q(SET repl_ml.write_consistency = quorum; INSERT INTO t VALUES (5001, 'x')), '57P03', 'write consistency');
psql_fails($n3, q(SELECT repl_ml.barrier('100 ms')), '57014', 'too few members');
$n3->restart;
sql($n3, q(UPDATE t SET v = 'late, too' WHERE id = 3; INSERT INTO t VALUES (5002, 'late')));
# also where its WAL is longer by now than it ever was, and it has sent, to nobody, more heartbeats
my $heard = sql($n3, 'SELECT sequence FROM repl_ml.heartbeat WHERE node_id = 3');
poll_until($n3, 'SELECT sequence > ' . ($heard + 2) . ' FROM repl_ml.heartbeat WHERE node_id = 3');

# With one member it does not come back: an id takes more than half of the others. So what it is like meanwhile can be seen.
my $busy = $n3->background_psql('postgres', on_error_stop => 0);
$busy->query_safe('BEGIN');
$busy->query_safe(q(UPDATE t SET v = 'not committed' WHERE id = 90));
$n1->start;
poll_until($n3, q(SELECT state = 'set_back' FROM repl_ml.local_node));
poll_until($n3, q(SELECT status = 'error' AND detail LIKE '%set back to an older state%only 1 of 2 other members%' FROM repl_ml.health WHERE check_name = 'membership'));
psql_fails($n3, $_, '55000', 'node "n3" has been set back to an older state', 'wait_for_node')
  foreach q(INSERT INTO t VALUES (6000, 'refused')), 'DELETE FROM t WHERE id = 91', q(SELECT repl_ml.barrier('1 s')), q(SET repl_ml.write_consistency = quorum; UPDATE t SET v = 'refused' WHERE id = 20);
is(sql($n3, 'SELECT count(*) > 0 FROM t'), 't', 'it can be read');
psql_fails($n3, q(SELECT repl_ml.wait_for_node('n3', '100 ms')), '57014', 'node "n3" is still coming back');
like(sql($n1, q(SELECT string_agg(node_name || ' ' || state, ', ' ORDER BY node_id) FROM repl_ml.member)), qr/n3 dropped/, 'its former id is none any more');
$n2->start;
is_back($n3, 4);
is_settled('back');
is(sql($n1, q(SELECT count(*) FROM repl_ml.member WHERE node_name = 'n3' AND state = 'ready')), '1', 'under its name');
eval { $busy->quit };
is(sql($n3, 'SELECT v FROM t WHERE id = 90'), 'old', 'who wrote under the former id is ended');

foreach my $node (@nodes)
{
	my $name = $node->name;
	is(sql($node, q(SELECT string_agg(id || ' ' || v, ', ' ORDER BY id) FROM t WHERE id BETWEEN 1 AND 10 OR id IN (50) OR id > 1000)),
		'1 late, 3 late, too, 4 late, 8 by n1, 9 late, 50 forgotten, 1001 late, 1002 forgotten, 1003 forgotten, 1004 forgotten, 1005 forgotten, 1006 forgotten, 5000 late, 5002 late',
		"$name: what was forgotten is back, what was written late is there, the later one of both wins");
	is(sql($node, q(SELECT string_agg(id || ' ' || v, ', ' ORDER BY id) FROM parted WHERE v <> 'old')), '1 late, 2 late, 60 forgotten, 61 late', "$name: of partitions, too");
	is(sql($node, q(SELECT a || ' ' || b FROM merged WHERE id = 2)), 'forgotten late', "$name: columns of their own are merged");
	is(sql($node, q(SELECT string_agg(n || '', ' ' ORDER BY id) FROM merged WHERE id IN (1, 3))), '15 10', "$name: a counter is the group's");
}
is(sql($n3, q(SELECT string_agg(DISTINCT key::text, ' ' ORDER BY key::text) FROM repl_ml.conflicts WHERE table_name = 't')), '{1001} {1} {2} {3}', 'rows that were written in both times are conflicts');
is(sql($n3, q(SELECT loser_row ->> 'v' FROM repl_ml.conflicts WHERE table_name = 't' AND key = '{1}')), 'forgotten', 'with what was lost');
is(sql($n3, q(SELECT string_agg(key::text || ' ' || action || ' ' || (before ->> 'n'), ', ' ORDER BY key::text) FROM repl_ml.repair_history WHERE table_name = 'merged')), '{1} delete 110, {3} delete 110', 'and counters are listed');
is(sql($n3, q(SELECT string_agg(key::text, ' ' ORDER BY key::text) FROM repl_ml.repair_history WHERE table_name = 't')), '{5} {6} {7}', 'so are rows that the group has deleted, and nothing tells of any more');
my $late = sql($n3, q(SELECT count(*) FROM t WHERE repl_ml.counter(__repl_clock, 4) = 0 AND v LIKE 'late%'));
is($late, '0', 'what was written late is the new id\'s');
like(sql($n3, "SELECT repl_ml.transaction_status('$status')"), qr/acknowledged|committed/, 'of a transaction that was forgotten its client hears the truth');
sql($n3, q(SET repl_ml.write_consistency = 'all'; INSERT INTO t VALUES (7000, 'after')));
is(sql($n3, q(SELECT repl_ml.barrier('10 s'))), '', 'barrier() answers again');

# A second time; the server is killed while it comes back.
$n3->stop;
$saved = save_directory($n3);
$n3->start;
poll_until($n3, q(SELECT count(*) = 3 AND bool_and(reachable) FROM repl_ml.write_members()));
sql($n3, q(SET repl_ml.write_consistency = quorum; UPDATE t SET v = 'second' WHERE id BETWEEN 60 AND 70));
my $id = id_of($n3);
kill_server($n3);
restore_in_place($saved, $n3->data_dir);
$n3->start;
poll_until($n3, qq(SELECT state = 'set_back' OR node_id > $id FROM repl_ml.local_node));
kill_server($n3);
$n3->start;
is_back($n3, $id + 1);
is_settled('a second time');
is(sql($n3, q(SELECT count(*) FROM t WHERE v = 'second')), '11', 'it has what it had forgotten');

# What else tells: the WAL, and what others have heard. Each start that a peer does not know of is looked at, so a restart
# hides nothing.
my $call = sub { return sql($n3, "BEGIN; SELECT repl_ml.note_set_back(1, $_[0]); ROLLBACK") };
is($call->("(SELECT max(started_at) FROM repl_ml.server_start), 1, '0/1', 0"), '', 'a peer that has heard of this start');
$n3->restart;
poll_until($n3, 'SELECT max(started_at) = pg_postmaster_start_time() FROM repl_ml.server_start');
my $start = '(SELECT started_at FROM repl_ml.server_start ORDER BY lsn DESC OFFSET 1 LIMIT 1)';
my $last = '(SELECT %s FROM repl_ml.server_start ORDER BY lsn DESC LIMIT 1)';
my $of = sub { return sprintf($last, $_[0]) };
is($call->("$start, " . $of->('sequence') . ', ' . $of->('lsn') . ', ' . $of->('safe_counter')), '', 'one that knows as much as the next start found');
like($call->("$start, " . $of->('sequence + 1') . ', NULL, NULL'), qr/^It has sent its heartbeat number/, 'a later heartbeat');
like($call->("$start, " . $of->('sequence') . ', ' . $of->('lsn + 1') . ', NULL'), qr/^Changes up to/, 'more WAL');
like($call->("$start, NULL, NULL, " . $of->('safe_counter + 1')), qr/^Members have heard/, 'what another one has heard');
is($call->("$start, NULL, NULL, " . $of->('counter')), '', 'but not since that start');
like($call->("'2001-01-01', " . $of->('sequence + 1') . ', NULL, NULL'), qr/^It has sent/, 'who knows of a start that this node has forgotten');
is($call->('NULL, 1000000, NULL, NULL'), '', 'who has never compared');
like($call->('clock_timestamp(), NULL, NULL, NULL'), qr/of which it does not know/, 'who was connected with another server');

# One that a person has dropped meanwhile stays out.
$n3->stop;
$saved = save_directory($n3);
$n3->start;
poll_until($n3, q(SELECT count(*) = 3 AND bool_and(reachable) FROM repl_ml.write_members()));
sql($n3, q(SET repl_ml.write_consistency = quorum; UPDATE t SET v = 'third' WHERE id = 60));
$n3->stop;
restore_in_place($saved, $n3->data_dir);
sql($n1, q(SELECT repl_ml.drop_node('n3')));
$n3->start;
poll_until($n3, q(SELECT state = 'dropped' FROM repl_ml.local_node));
my $former = id_of($n3);
psql_fails($n1, "SELECT repl_ml.readmit_node(l.group_id, $former, 1) FROM repl_ml.local_node l", '55000', 'cannot come back to the group by itself', 'leave_group');
psql_fails($n1, q(SELECT repl_ml.readmit_node(l.group_id, 2, 1) FROM repl_ml.local_node l), '55000', 'cannot come back', 'set_node_address');
is(sql($n1, q(SELECT state FROM repl_ml.member WHERE node_id = 2)), 'ready', 'nobody else can have a node leave so');
done_testing();
