# A server that is killed for good right after a client has its answer: what was acknowledged at quorum or all, and what another session
# saw at its origin, is on as many of the survivors as its level leaves; what was refused is nowhere. See history/kills.py;
# test/history/run --kills 300 is the long one.
#
# REPL_ML_SEEDS (one number) and REPL_ML_KILLS (options of kills.py) make it another run.
# Seen failing: with --pretend, which takes level one for the others, about every second kill loses something.
use strict;
use warnings;
use FindBin;
use lib "$FindBin::Bin/..";
use History;
use Test::More;

history('kills.py', split(' ', $ENV{REPL_ML_KILLS} || '--kills 8'), $ENV{REPL_ML_SEEDS} || '5');
done_testing();
