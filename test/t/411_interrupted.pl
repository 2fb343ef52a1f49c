# Comparisons and repairs that are interrupted at any point, on the node that asked or on another, by a cancel, a timeout,
# the end of a process or of a server, a limit, or a connection that says nothing more, leave nothing behind: no process,
# no progress, no change without its row of repair_history and no such row without the change. The next comparison finds
# what is left to find, the next repair mends it, and of what clients wrote meanwhile nothing is lost.
use strict;
use warnings;
use IPC::Run;
use PostgreSQL::Test::Utils;
use ReplMl;
use Situations;
use Test::More;

my $rows = 90;    # planted a round on n2 and on n3: more than are mended at once
my @nodes = new_group(3, 'CREATE TABLE t (id int PRIMARY KEY, v text, n int); SELECT repl_ml.add_all_tables()');
my ($n1, $n2, $n3) = @nodes;
foreach my $node (@nodes)
{
	sql($node, $_) foreach 'ALTER SYSTEM SET restart_after_crash = on', 'SELECT pg_reload_conf()';
	poll_until($node, q(SELECT count(*) = 1 FROM repl_ml.tables WHERE state = 'replicated' AND pending_copies = 0));
}
sql($n1, q(INSERT INTO t SELECT g, 'v', 0 FROM generate_series(1, 2000) g));
wait_converged(\@nodes);

# ---- clients that write, each a row of its own in the same table, and note what was acknowledged ----

my $dir = PostgreSQL::Test::Utils::tempdir();
my %counter = (n1 => 1, n2 => 2, n3 => 3);
my @writers = map {
	my $name = $_->name;
	my $write = "UPDATE t SET n = n + 1 WHERE id = $counter{$name} RETURNING n";
	IPC::Run::start([ 'bash', '-c', qq(while [ ! -e $dir/stop ]; do psql -XAtq -d "\$1" <<<"$write \\watch 0.1" >>$dir/$name 2>/dev/null || true; done), 'writer', dsn($_) ]);
} @nodes;

sub acknowledged
{
	my ($name) = @_;
	my @lines = grep { /^\d+$/ } split /\n/, slurp_file("$dir/$name");
	return $lines[-1] || 0;
}

# ---- interrupting ----

my %statement = (
	verify => q(SELECT * FROM repl_ml.verify_table('t')),
	diff => q(SELECT * FROM repl_ml.diff_rows('t')),
	repair => q(SELECT * FROM repl_ml.repair_table('t', false)));
my $theirs = q(query ~ 'repl_ml\.(verify|repair)_(sums|rows|keys|source)' AND pid <> pg_backend_pid());
my $own = q(application_name = 'victim' AND state = 'active');

sub pids { my ($node, $which) = @_; return grep { /^\d+$/ } split /\n/, (eval { sql($node, "SELECT pid FROM pg_stat_activity WHERE $which") } // ''); }

# Some time, as much as looking so often takes; ends early when there is a process to be met.
sub wait_a_little { my ($node, $which, $least) = @_; foreach my $look (1 .. 60) { my @pids = pids($node, $which); return @pids if @pids && $look > $least } return; }

# A session that runs something and then stays, as a client's does, until it is ended.
sub begin_session
{
	my ($node, $name, $sql) = @_;
	my %session = (in => "$sql\n\\echo over\n", out => '', err => '');

	$session{run} = IPC::Run::start([ 'psql', '-XAtq', '-d', dsn($node) . " application_name=$name" ], '<', \$session{in}, '>', \$session{out}, '2>', \$session{err},
		IPC::Run::timeout($PostgreSQL::Test::Utils::timeout_default));
	$session{run}->pump_nb;
	return \%session;
}

# Waits until it has run that, or its server is gone.
sub wait_for_session
{
	my ($session) = @_;
	while ($session->{out} !~ /^over$/m && $session->{run}->pumpable)
	{
		eval { $session->{run}->pump; 1 } or $@ !~ /timeout/ or die $@;
	}
	return;
}

# Ends it; a server that was started meanwhile has inherited what it reads from, so its end is not enough.
sub end_session
{
	my ($session) = @_;
	$session->{in} .= "\\q\n";
	eval { $session->{run}->finish; 1 } or $@ !~ /timeout/ or die $@;
	return;
}

# Who holds up what the comparison or the repair does on n3, at the 21st row of those planted there.
my %hold = (
	table => 'BEGIN; LOCK TABLE t;',
	row => 'BEGIN; SELECT FROM t WHERE id = %d FOR UPDATE;',
	refusal => q(ALTER TABLE t ADD CONSTRAINT refusal CHECK (id <> %d OR v <> 'v') NOT VALID;));

# Where nobody holds it up, any moment; else the one when it waits.
sub wait_for_victim
{
	my ($held) = @_;
	poll_until($n3, "SELECT count(*) = 1 FROM pg_stat_activity WHERE $theirs AND wait_event_type = 'Lock'") if $held;
	wait_a_little($n1, $own, 1) if !$held;
	return;
}

my %interrupt = (
	cancel => sub { sql($n1, "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE $own") },
	'kill here' => sub { kill KILL => pids($n1, $own) },
	'kill there' => sub { kill KILL => wait_a_little($n3, $theirs, 0) },
	'cancel there' => sub { sql($n3, "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE $theirs") },
	'stop there' => sub { $n3->stop('immediate'); $n3->start },
	'silence there' => sub {
		my @pids = pids($n3, $theirs);
		kill STOP => @pids;
		sql($n1, "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE $own");
		poll_until($n1, "SELECT count(*) = 0 FROM pg_stat_activity WHERE $own");
		kill CONT => @pids;
	});

# Runs it, interrupted so; returns the session, which is still there if it has survived that.
sub run_interrupted
{
	my ($what, $how, $held) = @_;
	my $settings = $how =~ /^SET/ ? $how : '';
	my $victim = begin_session($n1, 'victim', "$settings $statement{$what};");

	if ($interrupt{$how})
	{
		wait_for_victim($held);
		$interrupt{$how}->();
	}
	wait_for_session($victim);
	return $victim;
}

# ---- what holds afterwards ----

# Of the rows planted in a round so many are not mended; none is mended without a row of the history, or the other way round.
sub left_planted
{
	my ($node, $round) = @_;
	my $where = "id BETWEEN $round * 100 + 1 AND $round * 100 + $rows AND id % 2 = " . ($node == $n3 ? 1 : 0);
	my $history = "EXISTS (SELECT FROM repl_ml.repair_history h WHERE h.key = ARRAY[t.id::text] AND h.before ->> 'v' LIKE 'planted $round%')";

	is(sql($node, "SELECT count(*) FROM t WHERE $where AND (v LIKE 'planted $round%') = $history"), 0, 'each change has its history on ' . $node->name);
	return sql($node, "SELECT count(*) FROM t WHERE $where AND v LIKE 'planted $round%'");
}

my $round = 0;
foreach my $case ([ verify => 'cancel', 'table' ], [ diff => 'kill there' ], [ repair => 'cancel', 'row' ], [ repair => 'kill here', 'row' ], [ repair => 'kill there', 'row' ],
	[ repair => 'cancel there', 'row' ], [ repair => 'stop there', 'row' ], [ repair => 'silence there', 'row' ], [ repair => 'nothing', 'refusal' ],
	[ repair => q(SET statement_timeout = '150ms' \;) ], [ repair => q(SET work_mem = '64kB' \; SET temp_file_limit = 0 \;) ])
{
	my ($what, $how, $held) = @$case;
	my $range = 'id BETWEEN ' . (++$round * 100 + 1) . ' AND ' . ($round * 100 + $rows);
	my $name = "$what, $how" . ($held ? ", a $held" : '');

	note("round $round: $name");
	# other rows on n2 than on n3, so that two of three have what is right
	plant($n2, 't', "UPDATE t SET v = 'planted $round ' || repeat('x', 500) WHERE $range AND id % 2 = 0");
	plant($n3, 't', "UPDATE t SET v = 'planted $round ' || repeat('x', 500) WHERE $range AND id % 2 = 1");
	my $holder = $held ? begin_session($n3, 'holder', sprintf($hold{$held}, $round * 100 + 41)) : undef;
	wait_for_session($holder) if $holder;
	my $victim = run_interrupted($what, $how, $held);
	note($victim->{err});
	# while it is still held up, and the session is still there
	foreach my $node (@nodes)
	{
		poll_until($node, "SELECT count(*) = 0 FROM pg_stat_activity WHERE $theirs OR $own");
		poll_until($node, 'SELECT count(*) = 0 FROM repl_ml.stat_progress_verify');
	}
	end_session($_) foreach grep { $_ } $victim, $holder;
	my $left = left_planted($n3, $round);
	# fifty differences are mended at once, or none
	is($left > 1, $held ne 'refusal', "$name: what it was at on n3 is undone, but for one row that is refused: $left are left") if $held;
	$left += left_planted($n2, $round);
	sql($n3, 'ALTER TABLE t DROP CONSTRAINT IF EXISTS refusal');
	poll_until($n1, q(SELECT status = 'differs' OR unreachable = '{}' FROM repl_ml.verify_table('t')));
	my $found = sql($n1, q(SELECT status, unreachable, differing_rows FROM repl_ml.verify_table('t', '60 s')));
	is($found, $left > 0 ? "differs|{}|$left" : 'consistent|{}|0', "$name: the next comparison finds the $left rows that are left");
	sql($n1, q(SELECT FROM repl_ml.repair_table('t', false)));
	is(sql($n1, q(SELECT status, differing_rows FROM repl_ml.verify_table('t', '60 s'))), 'consistent|0', 'the next repair mends them');
}

# ---- what the clients wrote ----

append_to_file("$dir/stop", '');
sql($_, q(SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'UPDATE t SET n%' AND pid <> pg_backend_pid())) foreach @nodes;
$_->finish foreach @writers;
wait_converged(\@nodes, 't');
foreach my $node (@nodes)
{
	my $acknowledged = acknowledged($node->name);

	cmp_ok($acknowledged, '>', 20, $node->name . ": $acknowledged writes were acknowledged");
	cmp_ok(sql($_, "SELECT n FROM t WHERE id = $counter{$node->name}"), '>=', $acknowledged, 'and are on ' . $_->name) foreach @nodes;
}
is(sql($n1, q(SELECT count(*) FILTER (WHERE v = 'v'), count(*) FROM t)), '2000|2000', 'all rows are as they were');
is(sql($_, 'SELECT count(*) FROM repl_ml.conflicts'), 0, 'no conflict comes of a repair') foreach @nodes;

done_testing();
