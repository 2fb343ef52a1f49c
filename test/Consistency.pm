# Helper of the write consistency tests: peers that do not answer, sessions that wait.
package Consistency;

use strict;
use warnings;
use Exporter 'import';
use IPC::Run;
use Membership;
use PostgreSQL::Test::Utils;
use ReplMl;
use Test::More;

our @EXPORT = qw(stop_answers continue_answers kill_stopped never_miss_heartbeats soon_miss_heartbeats
  begin_session finish_session wait_for_waiters is_visible);

my @stopped;

# The nodes no longer apply, nor acknowledge, what "from" writes; they stay connected.
sub stop_answers
{
	my ($from, @where) = @_;
	my $name = literal($from->name);

	foreach my $node (@where)
	{
		my $pid = '';
		# after a member has left, workers connect anew
		until ($pid)
		{
			poll_until($node, "SELECT state = 'streaming' FROM repl_ml.stat_apply WHERE node_name = $name");
			$pid = sql($node, "SELECT pid FROM repl_ml.stat_apply WHERE node_name = $name AND state = 'streaming'");
		}
		kill STOP => $pid;
		push @stopped, [ $node->name, $pid ];
	}
	return;
}

# The nodes (all of them by default) go on.
sub continue_answers
{
	my @names = map { $_->name } @_;

	foreach my $worker (@stopped)
	{
		kill CONT => $worker->[1] if !@names || grep { $_ eq $worker->[0] } @names;
	}
	@stopped = grep { my $name = $_->[0]; @names && !grep { $_ eq $name } @names } @stopped;
	return;
}

# Kills a server of which a worker is stopped, without letting that say anything more.
sub kill_stopped
{
	my ($node) = @_;
	my $name = $node->name;

	kill KILL => map { $_->[1] } grep { $_->[0] eq $name } @stopped;
	@stopped = grep { $_->[0] ne $name } @stopped;
	kill_server($node);
	return;
}

# a test that dies must not leave processes that a server waits for
END { kill CONT => map { $_->[1] } @stopped }

# Peers that do not answer count as reachable all the same: what is written to them waits instead of being refused.
sub never_miss_heartbeats { set_heartbeat('60s', @_); return; }

# They are missed at once.
sub soon_miss_heartbeats { set_heartbeat('100ms', @_); return; }

sub set_heartbeat
{
	my ($interval, @nodes) = @_;

	foreach my $node (@nodes)
	{
		sql($node, "ALTER SYSTEM SET repl_ml.heartbeat_interval = '$interval'");
		sql($node, 'SELECT pg_reload_conf()');
		poll_until($node, q(SELECT setting || unit FROM pg_settings WHERE name = 'repl_ml.heartbeat_interval'),
			{ '60s' => '60000ms', '100ms' => '100ms' }->{$interval});
	}
	return;
}

# Statements in a session of its own, which is not waited for. All of them are run, whatever fails.
sub begin_session
{
	my ($node, @statements) = @_;
	my %session = (out => '');

	$session{harness} = IPC::Run::start(
		[ 'psql', '-XAt', '-v', 'VERBOSITY=verbose', '-d', dsn($node), map { ('-c', $_) } @statements ],
		'>&', \$session{out}, IPC::Run::timeout($PostgreSQL::Test::Utils::timeout_default));
	return \%session;
}

# Waits for the session's end; what it printed, results and errors.
sub finish_session
{
	my ($session) = @_;
	$session->{harness}->finish;
	return $session->{out};
}

# Waits until so many commits of a node wait to be acknowledged.
sub wait_for_waiters
{
	my ($node, $count) = @_;
	poll_until($node, "SELECT count(*) = $count FROM pg_stat_activity WHERE wait_event = 'SyncRep'");
	return;
}

# Does a node show such rows of a table?
sub is_visible
{
	my ($node, $table, $condition) = @_;
	return sql($node, "SELECT count(*) > 0 FROM $table WHERE $condition") eq 't';
}

1;
