# The checkers of histories find what is planted into histories of a simulated group, for each of their rules, and complain of
# none that is as it must be: see history/. No server is started.
use strict;
use warnings;
use FindBin;
use Test::More;

foreach my $program ('plant.py', 'strong_plant.py')
{
	foreach my $line (`/usr/bin/python3 $FindBin::Bin/../history/$program`)
	{
		chomp $line;
		if    ($line =~ /^ok (.*)/)     { pass($1) }
		elsif ($line =~ /^not ok (.*)/) { fail($1) }
		else                            { diag("  $line") }
	}
	is($? >> 8, 0, "$program: all planted violations are found");
}
done_testing();
