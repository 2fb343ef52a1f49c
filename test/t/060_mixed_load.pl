# Six clients of MLflow's and Feast's kind write on three nodes at once for a while: afterwards all
# tables are equal, rows and clocks, nothing is parked, no worker had an error, and every conflict
# reported is one.
use strict;
use warnings;
use FindBin;
use lib "$FindBin::Bin/..";
use MixedLoad;
use ReplMl;
use Test::More;

my $seconds = $ENV{REPL_ML_LOAD_SECONDS} || 25;
my @nodes = load_group();
my $load = start_load($seconds, 1, @nodes);
my $result = finish_load($load);

cmp_ok($result->{acked}, '>', 10 * $seconds, "clients wrote: $result->{acked} operations");
is($result->{unknown}, 0, 'no client lost its connection');
check_load(\@nodes, $result);
foreach my $node (@nodes)
{
	is(sql($node, 'SELECT sum(errors) FROM repl_ml.stat_apply'), '0', $node->name . ': no worker had an error');
}
done_testing();
