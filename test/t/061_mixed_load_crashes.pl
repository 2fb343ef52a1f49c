# The mixed load while one server is killed with SIGKILL and another stopped in immediate mode: after
# the restarts everything that was acknowledged is on every node, all tables are equal, nothing is parked.
use strict;
use warnings;
use FindBin;
use lib "$FindBin::Bin/..";
use Membership;
use MixedLoad;
use ReplMl;
use Test::More;

my $seconds = $ENV{REPL_ML_LOAD_SECONDS} || 25;
my @nodes = load_group();
my $load = start_load($seconds, 2, @nodes);

wait_for_writes($nodes[0], 0.25 * $seconds);
kill_server($nodes[1]);
wait_for_writes($nodes[0], 0.1 * $seconds);
$nodes[1]->start;
wait_for_writes($nodes[1], 0.1 * $seconds);
$nodes[2]->stop('immediate');
wait_for_writes($nodes[0], 0.1 * $seconds);
$nodes[2]->start;

my $result = finish_load($load);

cmp_ok($result->{acked}, '>', 5 * $seconds, "clients wrote: $result->{acked} operations");
cmp_ok($result->{unknown}, '>', 0, 'clients of the servers that went down noticed');
check_load(\@nodes, $result);
done_testing();
