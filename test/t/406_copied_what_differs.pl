# A copy of a table that is here already moves the rows that differ and no others: after a lost slot, whatever was written
# on either side meanwhile, and however often one of the two is killed in the middle, both nodes are equal and nothing is lost.
#
# Seen failing with copies of the whole table (all rows come), and where the chunks are compared without the clock (what was
# written anew with the same values keeps its old clock). Where a copy is one transaction, copies after all slots were lost are
# not done when the wait for them gives up.
use strict;
use warnings;
use Membership;
use ReplMl;
use Situations;
use PostgreSQL::Test::Utils;
use Test::More;

my @nodes = my ($n1, $n2) = new_group(2);

# another order of columns, other partitions
sql($n2, q(CREATE TABLE swapped (v text, b int, a int, PRIMARY KEY (b, a));
CREATE TABLE parted (id int PRIMARY KEY, v text) PARTITION BY RANGE (id);
CREATE TABLE parted_all PARTITION OF parted DEFAULT));
sql($n1, <<'SQL');
CREATE TABLE t (id int PRIMARY KEY, v text, x bytea);
CREATE TABLE swapped (a int, b int, v text, PRIMARY KEY (b, a));
CREATE TABLE parted (id int PRIMARY KEY, v text) PARTITION BY RANGE (id);
CREATE TABLE parted_1 PARTITION OF parted FOR VALUES FROM (0) TO (3000);
CREATE TABLE parted_2 (v text, id int NOT NULL); ALTER TABLE parted ATTACH PARTITION parted_2 FOR VALUES FROM (3000) TO (20000);
CREATE TABLE damaged (id int PRIMARY KEY, v text, x repl_ml.vclock);
CREATE TABLE small (id int PRIMARY KEY, v text);
CREATE TABLE changed (id int PRIMARY KEY, v text);
CREATE CAST (bytea AS repl_ml.vclock) WITHOUT FUNCTION;
INSERT INTO t SELECT g, md5(g::text), CASE WHEN g % 500 = 0 THEN decode(repeat(md5(g::text), 200), 'hex') END FROM generate_series(1, 20000) g;
INSERT INTO swapped SELECT g % 7, g, md5(g::text) FROM generate_series(1, 6000) g;
INSERT INTO parted SELECT g, md5(g::text) FROM generate_series(1, 6000) g;
INSERT INTO damaged SELECT g, md5(g::text) FROM generate_series(1, 4000) g;
UPDATE damaged SET x = '\x01'::bytea::repl_ml.vclock WHERE id = 7;
INSERT INTO small SELECT g, 'v' FROM generate_series(1, 10) g;
INSERT INTO changed SELECT g, md5(g::text) FROM generate_series(1, 4000) g;
SELECT * FROM repl_ml.add_all_tables();
SQL
my @tables = qw(t parted small changed);
my $swapped = 'SELECT count(*), md5(string_agg(concat(a, b, v, __repl_clock), chr(10) ORDER BY b)) FROM swapped';
poll_until($n2, q(SELECT count(*) = 6 AND sum(pending_copies) = 0 FROM repl_ml.tables WHERE state = 'replicated'));
wait_converged(\@nodes, @tables);
my $slot = sql($n1, 'SELECT repl_ml.link_name(2)');
my $whole = sql($n2, q(SELECT bytes FROM repl_ml.table_sync WHERE table_name = 't' AND rows = 20000));
cmp_ok($whole, '>', 20000 * 60, 'the first copy moved all of it');

# n2 does not read while this happens, and what its slot kept is lost.
sub lose_slot
{
	my (@sql) = @_;
	cut($n2, $n1);
	poll_until($n1, "SELECT NOT active FROM pg_replication_slots WHERE slot_name = '$slot'");
	sql($_->[0], $_->[1]) foreach @sql;
	sql($n1, "SELECT pg_drop_replication_slot('$slot')");
	heal($n2, $n1);
	return;
}

sub await_copies
{
	poll_until($n2, q(SELECT bool_and(state = 'streaming' AND tables_to_copy = 0) FROM repl_ml.stat_apply));
	return;
}

sub copied { return sql($n2, q(SELECT string_agg(table_name || ' ' || rows, ', ' ORDER BY table_name) FROM repl_ml.table_sync WHERE schema_name = 'public')) }

# Nothing has changed: no row of the large tables comes.
lose_slot();
await_copies();
is(copied(), 'changed 0, damaged 3999, parted 0, small 10, swapped 0, t 0', 'no row of what is equal comes; what cannot be compared is copied whole, and what is small');
cmp_ok(sql($n2, q(SELECT bytes FROM repl_ml.table_sync WHERE table_name = 't')), '<', $whole / 40, 'and few bytes');

# Some changed there, some here, some on both sides; deletions; a row that was made anew; values out of line; and clocks only.
sql($n1, 'UPDATE t SET v = v WHERE id = 19000');
wait_converged(\@nodes, 't');
lose_slot(
	[ $n1, q(UPDATE t SET v = 'n1' WHERE id BETWEEN 1 AND 50; DELETE FROM t WHERE id BETWEEN 101 AND 120; INSERT INTO t SELECT g, 'new' FROM generate_series(30001, 30030) g;
UPDATE t SET x = x || '\x00' WHERE id = 500; UPDATE t SET v = v WHERE id = 19001; DELETE FROM t WHERE id = 130; INSERT INTO t VALUES (130, 'again');
UPDATE swapped SET v = 'n1' WHERE b <= 10; UPDATE parted SET v = 'n1' WHERE id IN (1, 2999, 3000, 6000); UPDATE parted SET id = 7000 WHERE id = 5; UPDATE changed SET v = 'n1') ],
	[ $n2, q(UPDATE t SET v = 'n2' WHERE id BETWEEN 41 AND 60; DELETE FROM t WHERE id BETWEEN 116 AND 125; INSERT INTO t SELECT g, 'of n2' FROM generate_series(40001, 40030) g; UPDATE parted SET v = 'n2' WHERE id = 77) ]);
await_copies();
wait_converged(\@nodes, @tables);
is(sql($n2, $swapped), sql($n1, $swapped), 'swapped is equal');
# of n1: 50 + 30 + 1 + 1 + 1; of these 10 are conflicts with n2, and the versions of a conflict that n1 has resolved come by themselves
my ($rows, $bytes) = split /\|/, sql($n2, q(SELECT rows, bytes FROM repl_ml.table_sync WHERE table_name = 't'));
is(sql($n1, q(SELECT count(*) FROM t WHERE v = 'n2')), '20', 'what n2 wrote is there, and won where it was later');
is(sql($_, q(SELECT count(*) FROM t WHERE id BETWEEN 101 AND 125)), '0', 'what was deleted is gone on ' . $_->name) foreach @nodes;
is(sql($n1, q(SELECT count(*) FROM repl_ml.conflicts WHERE table_name = 't')), sql($n2, q(SELECT count(*) FROM repl_ml.conflicts WHERE table_name = 't')), 'both tell of the same conflicts');
cmp_ok($rows, '<=', 50 + 30 + 3, 'only rows that differed have come');
cmp_ok($rows, '>=', 40 + 30 + 3, 'all that differed have come');
cmp_ok($bytes, '<', $whole / 20, 'for less than a twentieth of the bytes');
is(sql($n2, q(SELECT string_agg(table_name || ' ' || rows, ', ' ORDER BY table_name) FROM repl_ml.table_sync WHERE table_name IN ('changed', 'swapped'))),
	'changed 4000, swapped 10', 'a table that differs a lot is copied whole, one of other columns by what differs');
is(sql($n2, q(SELECT string_agg(table_name || ' ' || (rows BETWEEN 5 AND 6), ', ') FROM repl_ml.table_sync WHERE table_name = 'parted')), 'parted true', 'and other partitions');

# What a row was resolved from comes before it: a third writer's version decides the same afterwards.
sql($n1, q(SELECT repl_ml.set_resolver('t', 'keep_both')));
wait_converged(\@nodes, 't');
cut($n1, $n2);
cut($n2, $n1);
sql($_, "UPDATE t SET v = 'by " . $_->name . "' WHERE id = 777") foreach @nodes;
heal($n1, $n2);
poll_until($n1, q(SELECT count(*) = 2 FROM repl_ml.concurrent_version WHERE table_name = 't' AND key = '{777}'));
lose_slot();
await_copies();
wait_converged(\@nodes, 't');
is(sql($n2, q(SELECT count(*) FROM repl_ml.concurrent_version WHERE table_name = 't' AND key = '{777}')), '2', 'the versions that a row was resolved from have come');

# Killed again and again: the worker, its walsender and backend there, either server.
foreach my $node (@nodes)
{
	sql($node, 'ALTER SYSTEM SET restart_after_crash = on');
	sql($node, 'SELECT pg_reload_conf()');
}
my $writer = start_writer($n1, q(\set id random(1, 20000)
UPDATE t SET v = md5(random()::text) WHERE id = :id;
INSERT INTO parted VALUES (:id + 20000, 'w') ON CONFLICT (id) DO UPDATE SET v = parted.v || 'w';
));
sub kill_process
{
	my ($node, $query) = @_;
	my $checkpointer = q(FROM pg_stat_activity WHERE backend_type = 'checkpointer');
	my $before = sql($node, "SELECT pid $checkpointer");
	my $pid = sql($node, $query) or return;
	kill 'KILL', $pid;
	# its server has noticed, and is back
	poll_until($node, "SELECT pid <> $before $checkpointer");
	return;
}
my %kill = (
	'the worker' => sub { kill_process($n2, 'SELECT pid FROM repl_ml.stat_apply') },
	'the backend that is copied from' => sub { kill_process($n1, q(SELECT min(pid) FROM pg_stat_activity WHERE application_name LIKE 'repl_ml copy%')) },
	'the server that copies' => sub { kill_server($n2) },
	'the server that is copied from' => sub { kill_server($n1) });
# how many of the seven copies are done by then
my %left = ('the worker' => 6, 'the backend that is copied from' => 4, 'the server that copies' => 2, 'the server that is copied from' => 5);
foreach my $victim (sort keys %kill)
{
	my $node = $victim =~ /worker|that copies/ ? $n2 : $n1;
	sql($n2, q(UPDATE t SET v = 'round' WHERE id % 997 = 1));
	sql($n2, q(SELECT repl_ml.order_copies(1), pg_terminate_backend(pid) FROM repl_ml.stat_apply));
	poll_until($n2, "SELECT tables_to_copy <= $left{$victim} FROM repl_ml.stat_apply");
	$kill{$victim}->();
	$node->start if $victim =~ /^the server/;
	poll_until($node, 'SELECT true');
}
stop_writer($writer, 1);
await_copies();
wait_converged(\@nodes, @tables);
is(sql($n1, q(SELECT count(*) FROM repl_ml.verify_table('t') WHERE status = 'consistent')), '1', 'and compared');

# All slots of three nodes are lost at once, every row was written on each, and what copies write is more than slots may keep: it
# ends. Copies are short transactions that take turns at a table, so that none meets another's rows and parks them.
my $n3 = new_node('n3');
join_node($n3, $n1);
push @nodes, $n3;
sql($_, q(CREATE TABLE everywhere (id int PRIMARY KEY, v text))) foreach @nodes;
sql($n1, q(INSERT INTO everywhere SELECT g, 'v' FROM generate_series(1, 5000) g; SELECT repl_ml.add_table('everywhere')));
poll_until($_, q(SELECT count(*) FROM everywhere), 5000) foreach @nodes;
poll_until($_, q(SELECT count(*) = 0 FROM repl_ml.table_sync WHERE state = 'pending')) foreach @nodes;
foreach my $node (@nodes)
{
	sql($node, $_) foreach q(ALTER SYSTEM SET max_slot_wal_keep_size = '16MB'), 'SELECT pg_reload_conf()';
	cut($node, $_) foreach grep { $_ != $node } @nodes;
}
foreach my $node (@nodes)
{
	poll_until($node, 'SELECT bool_and(NOT active) FROM pg_replication_slots');
	sql($node, "UPDATE everywhere SET v = '" . $node->name . "' || md5(id::text)");
	sql($node, 'SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots');
}
my %log = map { $_->name => -s $_->logfile } @nodes;
foreach my $node (@nodes)
{
	heal($node, $_) foreach grep { $_ != $node } @nodes;
}
poll_until($n1, q{SELECT detail ~ 'Table public.everywhere is being copied \(\d+ rows so far; copies that are left: \d\)' FROM repl_ml.health WHERE check_name = 'tables'});
foreach my $node (@nodes)
{
	# a checkpoint is when slots are lost
	poll_until($node, q(CHECKPOINT; SELECT count(*) FILTER (WHERE state = 'streaming' AND tables_to_copy = 0) = 2 FROM repl_ml.stat_apply), "CHECKPOINT\nt");
}
wait_converged(\@nodes, 'everywhere');
foreach my $node (@nodes)
{
	my $met = () = substr(slurp_file($node->logfile), $log{ $node->name }) =~ /is parked: a row it needs is locked/g;
	is($met, 0, 'no copy on ' . $node->name . q( has met another's rows));
	cmp_ok(sql($node, q(SELECT count(DISTINCT pg_xact_commit_timestamp(xmin)) FROM everywhere)), '>', 2, 'each was several transactions');
}
done_testing();
