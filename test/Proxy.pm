# Helper of the TAP tests: a network between clients and a server that is slow, or swallows everything one way.
package Proxy;

use strict;
use warnings;
use Exporter 'import';
use IO::Select;
use IO::Socket::UNIX;
use POSIX ();
use PostgreSQL::Test::Utils;
use Time::HiRes qw(time);

our @EXPORT = qw(start_proxy);

# Starts a proxy in front of a server; connection strings that lead to it are those of dsn.
sub start_proxy
{
	my ($node) = @_;
	my $self = bless { dir => PostgreSQL::Test::Utils::tempdir_short(), node => $node }, __PACKAGE__;
	my $name = '/.s.PGSQL.' . $node->port;
	my $listener = IO::Socket::UNIX->new(Local => $self->{dir} . $name, Listen => 20) or die "cannot listen: $!";

	$self->bend;
	$self->{pid} = fork // die "cannot fork: $!";
	if ($self->{pid} == 0)
	{
		# whatever happens, it must not stop the servers as the test does at its end
		eval { run($listener, $node->host . $name, "$self->{dir}/how") };
		print STDERR "the proxy has ended: $@";
		POSIX::_exit(1);
	}
	return $self;
}

sub dsn { my ($self) = @_; return "host=$self->{dir} port=" . $self->{node}->port . ' dbname=postgres'; }

# How the network is from now on: there and back (to the server and from it) are milliseconds that everything takes, or
# 'cut': then it waits until that is over; of 100 pieces so many as are lost come 200 ms later, as what TCP sends again does.
# '+N': so many more bytes of each connection come, and then it is cut. What is left out is as it should be.
sub bend
{
	my ($self, %how) = @_;
	my $file = "$self->{dir}/how";

	PostgreSQL::Test::Utils::append_to_file("$file.new", join(' ', map { $how{$_} // 0 } qw(there back lost)));
	rename "$file.new", $file or die "cannot rename: $!";
	return;
}

sub stop
{
	my ($self) = @_;
	kill KILL => $self->{pid};
	waitpid $self->{pid}, 0;
	return;
}

# The proxy's process: each socket has a partner, and what has come of that waits in its queue.
sub run
{
	my ($listener, $server, $file) = @_;
	my $select = IO::Select->new($listener);
	my (%partner, %way, %queue, %passed);
	my $before = '';

	while (1)
	{
		my %how;
		my $told = PostgreSQL::Test::Utils::slurp_file($file);
		%passed = () if $told ne $before;
		$before = $told;
		@how{qw(there back lost)} = split / /, $told;
		foreach my $socket ($select->can_read((grep { @$_ } values %queue) ? 0.002 : 0.05))
		{
			if ($socket == $listener)
			{
				my $client = $listener->accept or next;
				my $to = IO::Socket::UNIX->new(Peer => $server);
				if (!$to) { close $client; next; }
				@partner{ $client, $to } = ($to, $client);
				@way{ $client, $to } = qw(there back);
				@queue{ $client, $to } = ([], []);
				$select->add($client, $to);
				next;
			}
			# nothing: it has ended
			my $data = '';
			$data = undef if !sysread $socket, $data, 65536;
			push @{ $queue{ $partner{$socket} } }, [ time + (rand(100) < $how{lost} ? 0.2 : 0), $data ];
			$select->remove($socket) if !defined $data;
		}
		SOCKET: foreach my $socket (keys %queue)
		{
			next if !$queue{$socket};
			my $from = $partner{$socket};
			my $how = $how{ $way{$from} };
			my $rest = $how =~ s/^\+// ? $how - ($passed{$socket} // 0) : undef;
			$how = 0 if defined $rest;
			while (@{ $queue{$socket} } && $how ne 'cut' && time >= $queue{$socket}[0][0] + $how / 1000)
			{
				last if defined $rest && $rest <= 0;
				if (defined $rest && defined $queue{$socket}[0][1])
				{
					my $part = substr($queue{$socket}[0][1], 0, $rest, '');
					unshift @{ $queue{$socket} }, [ 0, $part ];
					splice @{ $queue{$socket} }, 1, 1 if $queue{$socket}[1][1] eq '';
					$passed{$socket} += length $part;
					$rest -= length $part;
				}
				my $data = (shift @{ $queue{$socket} })->[1];
				if (!defined $data || !defined syswrite($partner{$from}, $data))
				{
					my @both = ($from, $partner{$from});
					$select->remove($_), delete $queue{$_}, close $_ foreach @both;
					next SOCKET;
				}
			}
		}
	}
}

1;
