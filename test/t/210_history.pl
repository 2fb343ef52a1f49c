# Clients on all nodes write registers and a set at quorum and all, and read them behind the barrier and with vectors, while the network
# is cut and servers are frozen, killed and their clients' waits ended: nothing acknowledged is lost, no read behind the barrier is stale,
# nobody sees a write before it is acknowledged, what was refused is nowhere, transaction_status is true, and all goes on by itself when
# the last fault is mended. See history/; test/history/run is the long one.
#
# REPL_ML_SEEDS (such as 1,5,10-19) and REPL_ML_HISTORY (options of histories.py) make it another run.
# Seen failing: without barrier and vector, hundreds of no_stale_read and vector_is_enough in each seed; quorum.c, position_of says that
# everything is acknowledged: no_dirty_read (seeds 2, 4).
use strict;
use warnings;
use FindBin;
use lib "$FindBin::Bin/..";
use History;
use Test::More;

history('histories.py', split(' ', $ENV{REPL_ML_HISTORY} || '--seconds 10'), $ENV{REPL_ML_SEEDS} || '1-3');
done_testing();
