# What the views say of lags is true in each situation, by markers that a client writes on one node and looks for on the
# other, with a clock of its own. Takes four minutes: make check-truth.
#
# Seen failing: with core's replay_lag for lag_since.
use strict;
use warnings;
use POSIX ();
use Proxy;
use ReplMl;
use Session;
use Situations;
use Time::HiRes qw(clock_gettime CLOCK_MONOTONIC);
use Test::More;

plan skip_all => 'takes long: make check-truth' unless $ENV{TRUTH};
plan skip_all => 'libfaketime is not installed' unless can_skew();

my $tolerance = 1;		# seconds, for a look at two servers and one back
my ($n1, $n2) = my @nodes = map { new_node($_) } qw(n1 n2);
my $proxy = start_proxy($n1);
foreach my $node (@nodes)
{
	Situations::set_skew($node, '+0s');
	Situations::restart_skewed($node, 'fast');
}
sql($n1, 'CREATE EXTENSION repl_ml');
sql($n1, "SELECT repl_ml.create_group('g', 'n1', " . literal($proxy->dsn) . ')');
sql($n1, 'CREATE TABLE marker (id int PRIMARY KEY, at float8); CREATE TABLE t (id serial PRIMARY KEY, v text); SELECT repl_ml.add_all_tables()');
join_node($n2, $n1);
wait_converged(\@nodes, 'marker', 't');
sub set { my ($node, $setting) = @_; sql($node, $_) foreach "ALTER SYSTEM SET $setting", 'SELECT pg_reload_conf()'; return; }
set($_, q(repl_ml.heartbeat_interval = '500ms')) foreach @nodes;

# How often markers are written, and the views looked at; nothing is waited for.
sub pace { select undef, undef, undef, $_[0]; return; }

# Writes a marker each 50 ms, from a process of its own, over whatever happens to the server; its number and when that was.
sub start_markers
{
	my $parent = $$;
	my $pid = fork // die "cannot fork: $!";
	return $pid if $pid;
	eval {
		local $SIG{PIPE} = 'IGNORE';
		my $id = 0;
		open(STDOUT, '>', '/dev/null'), open(STDERR, '>', '/dev/null');
		while (getppid() == $parent)
		{
			open(my $psql, '|-', 'psql', '-Xqd', dsn($n1)) or last;
			$psql->autoflush;
			# when it has ended there is nobody to read
			while (print $psql sprintf("INSERT INTO marker VALUES (%d, %f);\n", ++$id, clock_gettime(CLOCK_MONOTONIC))) { pace(0.05); }
			close $psql;
			pace(0.2);
		}
	};
	POSIX::_exit(0);
}

# How old the oldest marker is that n1 has and n2 has not; 0 when there is none. A server that is down has what it had.
my $has = 0;
sub lacking
{
	$has = Session::ask($n2, 'SELECT coalesce(max(id), 0) FROM marker', 5) // $has;
	my $at = sql($n1, "SELECT min(at) FROM marker WHERE id > $has");
	return $at eq '' ? 0 : clock_gettime(CLOCK_MONOTONIC) - $at;
}

# Looks at a situation for some seconds: what the views say is between what is true before and after it was asked, and not
# less than that where it is said that more is not known ("unheard").
# Returns how late the peer was at most.
my @late;    # when that was looked at lately, and how late the peer was then
sub look
{
	my ($what, $seconds, %how) = @_;
	my $end = clock_gettime(CLOCK_MONOTONIC) + $seconds;
	my (@wrong, $looks);
	my $latest = 0;

	# nobody has looked since: so late it may have been until a moment ago
	$late[-1][0] = clock_gettime(CLOCK_MONOTONIC) if @late;
	while (clock_gettime(CLOCK_MONOTONIC) < $end)
	{
		my ($before, $said, $after);
		# a server that is restarted says nothing
		eval {
			local $SIG{__WARN__} = sub { };
			$before = lacking();
			$said = Session::ask($n1, q(SELECT EXTRACT(epoch FROM clock_timestamp() - lag_since), transactions_behind, EXTRACT(epoch FROM replay_lag), EXTRACT(epoch FROM heartbeat_lag), state FROM repl_ml.stat_replication), 5) // die 'no answer';
			$after = lacking();
			1;
		} or pace(0.2), next;
		my ($lag, $behind, $replay, $heartbeat, $state) = split /\|/, $said, -1;
		my ($least, $most) = $before < $after ? ($before, $after) : ($after, $before);
		# that it has it the other has to say first
		push @late, [ clock_gettime(CLOCK_MONOTONIC), $most ];
		shift @late while $late[0][0] < $late[-1][0] - $tolerance;
		$most = $_ > $most ? $_ : $most foreach map { $_->[1] } @late;
		my $slack = $tolerance + $most / 16;
		$looks++;
		$latest = $most if $most > $latest;
		# nothing is said of nothing, and too little never
		push @wrong, "lag_since $lag" if $lag eq '' ? $least > $tolerance : $lag < $least - $slack || (!$how{unheard} && $lag > $most + $slack);
		push @wrong, "transactions_behind $behind" if $behind eq '0' && $least > $tolerance;
		push @wrong, "replay_lag $replay" if $replay ne '' && ($replay < $least - $slack || (!$how{unheard} && $replay > $most + $slack));
		push @wrong, "heartbeat_lag $heartbeat" if !$how{stepped} && $heartbeat ne '' && $heartbeat < $least - $slack;
		$wrong[-1] .= sprintf(' (%s, really %.2f to %.2f)', $state, $least, $most) if @wrong && $wrong[-1] !~ /really/;
		pace(0.1);
	}
	is(join('; ', @wrong), '', "$what: what is said is so");
	cmp_ok($looks // 0, '>', 5, "$what: that was looked at");
	note(sprintf '%s: %d looks, the peer was late by up to %.2f s', $what, $looks // 0, $latest);
	return $latest;
}

# All is as it was: nothing lacks, nothing is wrong.
sub well
{
	my ($what) = @_;
	poll_until($n1, q(SELECT coalesce(EXTRACT(epoch FROM clock_timestamp() - lag_since), 0) < 1 FROM repl_ml.stat_replication));
	poll_until($_, q(SELECT coalesce(string_agg(check_name || ' ' || detail, ', '), 'nothing') FROM repl_ml.health WHERE status <> 'ok'), 'nothing') foreach @nodes;
	return;
}

sub says
{
	my ($node, $check, $said) = @_;
	poll_until($node, "SELECT status || ': ' || detail ~ " . literal($said) . " FROM repl_ml.health WHERE check_name = '$check'");
	return;
}

my $markers = start_markers();
poll_until($n2, 'SELECT count(*) > 5 FROM marker');
well('in peace');
look('in peace', 5);

# load, of many and of one
my $load = $n1->background_psql('postgres');
$load->query_until(qr/begun/, "\\echo begun\nDO \$\$ BEGIN FOR i IN 1 .. 20000 LOOP INSERT INTO t (v) SELECT 'load' FROM generate_series(1, 20); COMMIT; END LOOP; END \$\$;\n");
look('under load', 8);
my $big = $n1->background_psql('postgres');
$big->query_until(qr/begun/, "\\echo begun\nINSERT INTO t (v) SELECT repeat('big', 20) FROM generate_series(1, 200000);\n");
look('with a big transaction', 8);
$big->quit;

# who reads stands still, or is paused
my $worker = sql($n2, q(SELECT pid FROM repl_ml.stat_apply));
kill STOP => $worker;
cmp_ok(look('a worker that is stopped', 6), '>', 4, 'and lacks more and more');
kill CONT => $worker;
# a walsender that is stopped before it has heard of that says what was so before
poll_until($n1, q(SELECT coalesce(clock_timestamp() - lag_since < interval '1 s', transactions_behind = 0) FROM repl_ml.stat_replication));
my $walsender = sql($n1, q(SELECT pid FROM repl_ml.stat_replication));
kill STOP => $walsender;
cmp_ok(look('a walsender that is stopped', 6), '>', 4, 'and lacks more and more');
kill CONT => $walsender;
# without its postmaster the worker goes on
my ($postmaster) = split /\n/, PostgreSQL::Test::Utils::slurp_file($n2->data_dir . '/postmaster.pid');
kill STOP => $postmaster;
look('a postmaster that is stopped', 4);
kill CONT => $postmaster;
sql($n2, q(SELECT repl_ml.pause_apply('n1')));
cmp_ok(look('paused', 6), '>', 4, 'and lacks more and more');
says($n1, 'sending', '^warning: Node "n2" does not read what this node writes, as that is paused there');
sql($n2, q(SELECT repl_ml.resume_apply('n1')));
$load->quit;
well('after all that');

# a network that is slow and loses, and one that is cut one way
$proxy->bend(there => 40, back => 40, lost => 1);
look('80 ms and a loss of 1 %', 8);
says($n2, 'delay', '^ok');
$proxy->bend(back => 'cut');
cmp_ok(look('what is sent does not arrive', 6), '>', 4, 'and lacks more and more');
says($n2, 'delay', 'nothing has come from it for');
$proxy->bend;
well('after a cut');
$proxy->bend(there => 'cut');
look('what is answered does not arrive', 6, unheard => 1);
says($n1, 'sending', '^error: Node "n2" has not answered for');
$proxy->bend;
well('after another cut');

# either is restarted, with and without warning
foreach my $mode (qw(fast immediate))
{
	$n2->stop($mode);
	look("the peer is down ($mode)", 4);
	Situations::restart_skewed($n2, undef);
	look("the peer is back ($mode)", 4);
	well("after its restart ($mode)");
	$n1->stop($mode);
	Situations::restart_skewed($n1, undef);
	# until the other has connected nothing is known but its last heartbeat
	look("this node is back ($mode)", 4, unheard => 1);
	well("after this node's restart ($mode)");
}

# clocks that are set: what is measured by them is wrong until both have sent a heartbeat, all else never. (On PostgreSQL 15
# only sessions and walsenders see that: see 370.)
foreach my $step ('+20s', '-20s', '+0s')
{
	Situations::set_skew($n1, $step);
	look("a clock that leaps to $step", 4, stepped => 1);
}
Situations::set_skew($n1, '+0s');
well('after all leaps');

# where nothing is written, with heartbeats and without, nobody lags
kill KILL => $markers;
waitpid $markers, 0;
wait_converged(\@nodes, 'marker', 't');
look('idle', 5);
set($_, q(repl_ml.heartbeat_interval = '60s')) foreach @nodes;
look('idle, without heartbeats', 10);
is(sql($n1, q(SELECT lag_since, transactions_behind, state FROM repl_ml.stat_replication)), '|0|streaming', 'where nothing is written nobody lags');
$proxy->stop;
done_testing();
