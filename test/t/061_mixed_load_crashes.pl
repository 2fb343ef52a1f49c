# The mixed load while one server is killed with SIGKILL and another stopped in immediate mode: after
# the restarts everything that was acknowledged is on every node, all tables are equal, nothing is parked.
use strict;
use warnings;
use FindBin;
use lib "$FindBin::Bin/..";
use MixedLoad;
use ReplMl;
use Test::More;

# A server does not start as long as processes of the killed one have not noticed that it is gone.
sub start_again
{
	my ($node) = @_;
	my $until = time + 60;

	until ($node->start(fail_ok => 1))
	{
		die $node->name . ' does not start again' if time > $until;
	}
	return;
}

my $seconds = $ENV{REPL_ML_LOAD_SECONDS} || 60;
my @nodes = load_group();
my $load = start_load($seconds, 2, @nodes);

wait_for_writes($nodes[0], 0.25 * $seconds);
$nodes[1]->kill9;
wait_for_writes($nodes[0], 0.1 * $seconds);
start_again($nodes[1]);
wait_for_writes($nodes[1], 0.1 * $seconds);
$nodes[2]->stop('immediate');
wait_for_writes($nodes[0], 0.1 * $seconds);
$nodes[2]->start;

my $result = finish_load($load);

cmp_ok($result->{acked}, '>', 5 * $seconds, "clients wrote: $result->{acked} operations");
cmp_ok($result->{unknown}, '>', 0, 'clients of the servers that went down noticed');
check_load(\@nodes, $result);
done_testing();
