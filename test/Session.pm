# Questions to a server over one psql that stays, for ReplMl's sql() and poll_until(): starting psql and a backend for
# each of them was most of what the tests cost. Only statements that leave nothing behind in a session come here.
package Session;

use strict;
use warnings;
use IO::Handle;
use IO::Select;
use IPC::Open2;

my %sessions;
my $end = 'end of the answer';

# True where a statement can run in a session that others have used and will use: one query, which is no call of ours
# that does something, and nothing that is the session's own.
sub fits
{
	my ($sql) = @_;

	return 0 if $ENV{PGOPTIONS} || $ENV{PGUSER};
	$sql =~ s/;\s*\z//;
	return $sql =~ /\A\s*(?:SELECT|WITH|TABLE|VALUES)\b/i
	  && $sql !~ /;|^\s*\\|\\g/m
	  && $sql !~ /set_config|\bsetval|nextval|currval|lastval|advisory|_backend_pid|pg_export|\btxid|\bpg_current_xact/i;
}

# Runs the query and returns what psql prints, or undef where it failed or there is no server. Of a server that does
# not answer at all it is undef after the timeout, in seconds.
sub ask
{
	my ($node, $sql, $timeout) = @_;
	my $name = $node->connstr('postgres');

	# one that has come to its end since is known by its silence
	foreach my $try (1, 2)
	{
		my $kept = defined $sessions{$name};
		my $session = $sessions{$name} ||= start($node);
		my ($answer, $failed) = say_and_hear($session, $sql, $timeout);

		return $failed ? undef : $answer if defined $answer;
		finish($name);
		last unless $kept;
	}
	return;
}

# A psql that waits for statements. Whatever goes wrong in it is seen by its silence.
sub start
{
	my ($node) = @_;
	my ($out, $in);
	my $pid = open2($out, $in, qw(psql -XAtq -v ON_ERROR_STOP=0 -f - -d), $node->connstr('postgres'));

	return { pid => $pid, in => $in, out => $out, heard => IO::Select->new($out) };
}

# Ends the session with this server, before something that sessions are in the way of or that only new ones notice.
sub finish
{
	my ($name) = @_;
	my $session = delete $sessions{$name} or return;
	local $?;

	close $session->{in};
	kill 'TERM', $session->{pid};
	waitpid $session->{pid}, 0;
	return;
}

# What comes back up to the mark, without the last line's end, and whether the statement failed; nothing when psql is gone.
sub say_and_hear
{
	my ($session, $sql, $timeout) = @_;
	my ($text, $until) = ('', time + $timeout);
	local $SIG{PIPE} = 'IGNORE';

	print { $session->{in} } "$sql\n;\n\\echo '$end' :ERROR\n" or return;
	$session->{in}->flush or return;
	until ($text =~ /^\Q$end\E (true|false)\n\z/m)
	{
		my $left = $until - time;
		return if $left <= 0 || !$session->{heard}->can_read($left);
		return unless sysread $session->{out}, $text, 65536, length $text;
	}
	my $failed = $text =~ s/^\Q$end\E true\n\z//m;
	$text =~ s/^\Q$end\E false\n\z//m;
	chomp $text;
	return ($text, $failed);
}

END { finish($_) foreach keys %sessions }

1;
