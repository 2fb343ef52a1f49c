# Helper of the history tests: runs a program of test/history and makes its lines tests.
package History;

use strict;
use warnings;
use Exporter 'import';
use File::Basename qw(dirname);
use PostgreSQL::Test::Utils;
use ReplMl;
use Test::More;

our @EXPORT = qw(history);

my $testdir = dirname(__FILE__);

# It starts its servers itself, each in a network of its own.
sub history
{
	my ($program, @options) = @_;
	my $directory = PostgreSQL::Test::Utils::tempdir('history');
	my $conf = "$directory/repl_ml.conf";

	chomp(my $bindir = `pg_config --bindir`);
	PostgreSQL::Test::Utils::append_to_file($conf, ReplMl::server_conf());
	my ($test) = $0 =~ m{([^/]*)\.pl$};
	open my $output, '-|', '/usr/bin/python3', "$testdir/history/$program", '--bin', $bindir, '--conf', $conf, '--directory', $directory,
	  '--sockets', PostgreSQL::Test::Utils::tempdir_short(), '--logs', $PostgreSQL::Test::Utils::log_path, '--prefix', "${test}_", @options
	  or die "$program: $!";
	while (my $line = <$output>)
	{
		chomp $line;
		if    ($line =~ /^ok (.*)/)     { pass($1) }
		elsif ($line =~ /^not ok (.*)/) { fail($1) }
		else                            { diag("  $line") }
	}
	close $output;
	is($? >> 8, 0, "$program ends well");
}

1;
