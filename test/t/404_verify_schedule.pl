# repl_ml.verify_schedule compares each table when it is due, on one member; it keeps to its rate on all members, waits
# for those that lag, and holds neither a snapshot nor a lock meanwhile; it obeys changed settings, cancel, termination,
# a restart and leave_group; what it finds is said by health on all members, and once in the log.
#
# Seen failing: without the rate sent to the others, with a snapshot kept while it rests, and with differences logged
# each time.
use strict;
use warnings;
use PostgreSQL::Test::Utils;
use ReplMl;
use Situations;
use Test::More;

my @nodes = new_group(3, <<'SQL');
CREATE TABLE t (id int PRIMARY KEY, v text);
CREATE TABLE u (id int PRIMARY KEY, v text);
INSERT INTO t SELECT g, 'v' || g FROM generate_series(1, 2000) g;
INSERT INTO u VALUES (1, 'one');
SELECT repl_ml.add_all_tables();
SQL
my ($n1, $n2, $n3) = @nodes;
poll_until($_, q(SELECT count(*) = 2 FROM repl_ml.tables WHERE state = 'replicated' AND pending_copies = 0)) foreach @nodes;

# Settings, in force at once.
sub set
{
	my ($settings, @of) = @_;
	foreach my $node (@of)
	{
		sql($node, "ALTER SYSTEM SET repl_ml.verify_$_ = '$settings->{$_}'") foreach sort keys %$settings;
		sql($node, 'SELECT pg_reload_conf()');
	}
	return;
}

# What a check of health says.
sub health
{
	my ($node, $check) = @_;
	return sql($node, "SELECT status, detail FROM repl_ml.health WHERE check_name = '$check'");
}

# How often the log of a node says it.
sub said { my ($node, $what) = @_; return scalar(() = slurp_file($node->logfile) =~ /$what/g); }

# Waits until so many more comparisons of t have come to their end on a node.
sub wait_compared
{
	my ($node, $times) = @_;
	my $last = sql($node, q(SELECT coalesce(max(id), 0) FROM repl_ml.consistency_checks WHERE table_name = 't'));
	poll_until($node, "SELECT count(*) >= $times FROM repl_ml.consistency_checks WHERE table_name = 't' AND id > $last");
	return;
}

is(health($n1, 'verify_schedule'), 'ok|Tables are not compared by themselves.', 'off by default');

# ---- whose turn it is ----

set({ schedule => '1h', full_schedule => 0 }, @nodes);
poll_until($_, q(SELECT count(*) = 2 FROM repl_ml.scheduled_checks WHERE compared_by = 'n1' AND status = 'consistent' AND full_at = compared_at AND goes_on_at IS NULL AND NOT is_late)) foreach @nodes;
is(join(' ', map { sql($_, 'SELECT count(*) FROM repl_ml.consistency_checks') } @nodes), '2 0 0', 'the first member has compared both tables, the others none');
like(health($_, 'verify_schedule'), qr/^ok\|Each table has been found the same on all members/, 'as ' . $_->name . ' knows') foreach @nodes;

# a restart makes nothing due; where no worker is free, that is said
my $due = sql($n1, 'SELECT due_at FROM repl_ml.scheduled_checks ORDER BY table_name');
$n1->append_conf('postgresql.conf', 'max_worker_processes = 5');
$n1->restart;
poll_until($n1, q(SELECT count(*) = 0 FROM repl_ml.health WHERE status <> 'ok'));
is(sql($n1, 'SELECT due_at FROM repl_ml.scheduled_checks ORDER BY table_name'), $due, 'after a restart each table is due when it was');
is(sql($n1, q(SELECT repl_ml.verifier_state(), count(*) FROM repl_ml.consistency_checks)), 'idle|2', 'and nothing is compared');
set({ schedule => '1s' }, $n1);
poll_until($n1, q(SELECT status = 'warning' AND detail ~ 'no background worker is free' AND hint ~ 'max_worker_processes' FROM repl_ml.health WHERE check_name = 'verify_schedule'));
is(sql($n1, q(SELECT status, detail ~ 'one for comparing' FROM repl_ml.check_setup() WHERE check_name = 'max_worker_processes')), 'error|t', 'check_setup says how many it takes');
is(said($n1, 'WARNING:  out of background worker slots: tables'), 1, 'the log is told once');
# n2 does not begin where n1 is only late
set({ schedule => 0 }, $n2, $n3);
set({ schedule => '1h' }, $n1);
$n1->append_conf('postgresql.conf', 'max_worker_processes = 20');
$n1->restart;
poll_until($_, q(SELECT count(*) = 0 FROM repl_ml.health WHERE status <> 'ok')) foreach @nodes;

# ---- the rate, on all members ----

my $resting = q(SELECT count(*) = 1 FROM repl_ml.stat_progress_verify WHERE relation = 't'::regclass AND phase = 'resting (verify_max_rate)' AND rows > 0);
set({ schedule => '1s', max_rate => 1 }, $n1);
poll_until($_, $resting) foreach @nodes;
is(sql($n1, q(SELECT a.backend_type FROM repl_ml.stat_progress_verify p JOIN pg_stat_activity a USING (pid))), 'repl_ml verifier', 'a process of its own compares');
poll_until($_, q(SELECT count(*) = 1 FROM repl_ml.stat_progress_verify p JOIN pg_stat_activity a USING (pid) WHERE a.backend_xmin IS NULL AND a.backend_xid IS NULL)) foreach @nodes;
is(sql($_, q(SELECT count(*) FROM pg_locks l JOIN repl_ml.stat_progress_verify p USING (pid) WHERE l.relation = 't'::regclass)), 0, 'while ' . $_->name . ' rests it holds no lock') foreach @nodes;
sql($n2, q(SET lock_timeout = '30s'; BEGIN; LOCK TABLE t; COMMIT));
set({ schedule => '1s' }, $n2);
poll_until($n2, q(SELECT goes_on_at = 'n1' AND due_at IS NULL FROM repl_ml.scheduled_checks WHERE table_name = 't'));
set({ schedule => 0 }, $n2);
is(sql($n2, q(SELECT status FROM repl_ml.verify_table('t'))), 'consistent', 'who asks for a comparison meanwhile is not throttled');

# cancelled, it is incomplete and the others have their turn; terminated, it begins again; another rate is in force at once
sql($n1, q(SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE backend_type = 'repl_ml verifier'));
poll_until($n2, q(SELECT count(*) = 1 FROM repl_ml.verification WHERE table_name = 't' AND status = 'incomplete' AND detail ~ 'cancel'));
poll_until($_, $resting) foreach @nodes;
my $first = sql($n1, q(SELECT pg_terminate_backend(pid) AND pid > 0, pid FROM pg_stat_activity WHERE backend_type = 'repl_ml verifier')) =~ s/^t\|//r;
poll_until($n1, $resting . " AND pid <> $first");
poll_until($_, $resting) foreach $n2, $n3;
set({ max_rate => 0 }, $n1);
wait_compared($n1, 1);

# rewritten while it rests, which it does after each page, it has to be compared again
set({ max_rate => 1000 }, $n1);
my $rewritten = q(SELECT count(*) FROM repl_ml.consistency_checks WHERE table_name = 't' AND status = 'incomplete' AND detail ~ 'node "n3" .* rewritten');
foreach my $try (1 .. 500)
{
	last if sql($n1, $rewritten) > 0;
	sql($n3, 'VACUUM FULL t');
}
cmp_ok(sql($n1, $rewritten), '>', 0, 'who rewrites a table meanwhile is noticed');

# ---- members that lag ----

set({ max_rate => 0, max_lag => '3s' }, $n1);
cut($n1, $n2);
poll_until($n1, q(SELECT count(*) = 1 FROM repl_ml.stat_progress_verify WHERE phase = 'paused (verify_max_lag)'));
sql($n1, 'SELECT pg_reload_conf()');
heal($n1, $n2);
wait_compared($n1, 1);

# ---- what has changed only ----

set({ full_schedule => '7d' }, $n1);
poll_until($n1, q(SELECT count(*) >= 1 FROM repl_ml.consistency_checks WHERE table_name = 't' AND mode = 'incremental' AND status = 'consistent'));
is(sql($n1, q(SELECT is_full, full_at < compared_at FROM repl_ml.scheduled_checks WHERE table_name = 't')), 'f|t', 'until the next full one is due');

# ---- what it finds ----

plant($n2, 't', q(UPDATE t SET v = 'flipped' WHERE id = 77));
poll_until($_, q(SELECT status = 'error' AND detail LIKE '%public.t \(1 rows%' FROM repl_ml.health WHERE check_name = 'consistency')) foreach @nodes;
like(health($n3, 'consistency'), qr/, by node "n1"\)/, 'the others say who has found it');
wait_compared($n1, 2);
is(said($n1, 'WARNING:  table "public.t" is not the same on all members'), 1, 'the log is told once');
like(health($n2, 'verify_schedule'), qr/^ok/, 'the schedule itself is well');
is(sql($n2, q(SELECT count(*) FROM repl_ml.repair_table('t', false))), 1, 'repaired');
poll_until($_, q(SELECT status = 'ok' FROM repl_ml.health WHERE check_name = 'consistency')) foreach @nodes;
is(said($n1, 'LOG:  table "public.t" does not differ between the members any more'), 1, 'that is told, too');

# ---- another member's turn, and leaving ----

set({ schedule => '1s', max_rate => 1, full_schedule => 0 }, $n3);
set({ schedule => 0 }, $n1);
poll_until($n1, q(SELECT count(*) = 0 FROM pg_stat_activity WHERE backend_type = 'repl_ml verifier'));
poll_until($n1, $resting);
poll_until($n1, q(SELECT goes_on_at = 'n3' FROM repl_ml.scheduled_checks WHERE table_name = 't'));
is(sql($n1, 'SELECT repl_ml.verifier_state()'), 'off', 'the next member that has a schedule goes on');
sql($n3, 'SELECT repl_ml.leave_group()');
poll_until($n3, q(SELECT count(*) = 0 FROM pg_stat_activity WHERE backend_type = 'repl_ml verifier'));
poll_until($_, q(SELECT count(*) = 0 FROM repl_ml.stat_progress_verify)) foreach @nodes;
is(sql($n3, q(SELECT count(*) FROM repl_ml.verification)), 0, 'who has left the group forgets its comparisons');

# also of a short interval the next member lets the first one's news come, and does not call that late
set({ max_rate => 20000, schedule => '1s' }, $n2);
poll_until($n2, q(SELECT bool_and(compared_by = 'n2' AND due_at >= compared_at + '3 s'::interval AND NOT is_late) FROM repl_ml.scheduled_checks));

done_testing();
