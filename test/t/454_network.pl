# stat_network shows the network as it is: what a round trip takes, and how sure the peer's clock is; a direction that is
# cut; heartbeats that come late; how often and why a connection ended.
use strict;
use warnings;
use Proxy;
use ReplMl;
use Test::More;

my ($n1, $n2) = map { new_node($_) } qw(n1 n2);
my $proxy = start_proxy($n1);

# how others reach n1
sql($n1, 'CREATE EXTENSION repl_ml');
sql($n1, "SELECT repl_ml.create_group('g', 'n1', " . literal($proxy->dsn) . ')');
sql($n1, 'CREATE TABLE t (id int PRIMARY KEY, v text); SELECT repl_ml.add_all_tables()');
join_node($n2, $n1);
foreach my $node ($n1, $n2)
{
	sql($node, $_) foreach q(ALTER SYSTEM SET repl_ml.heartbeat_interval = '200ms'), 'SELECT pg_reload_conf()';
}
my $in = q(repl_ml.stat_network WHERE node_name = 'n1' AND direction = 'incoming');
my $out = q(repl_ml.stat_network WHERE node_name = 'n2' AND direction = 'outgoing');

# as it should be
poll_until($n2, "SELECT connected AND round_trips > 3 AND heartbeats > 3 FROM $in");
is(sql($n2, "SELECT round_trip <= round_trip_p99, round_trip_p95 <= round_trip_p99, round_trip_mean BETWEEN '0' AND round_trip_p99, pings >= round_trips, unanswered_for IS NULL OR unanswered_for < '1 min' FROM $in"), 't|t|t|t|t', 'round trips');
is(sql($n2, "SELECT abs(extract(epoch FROM clock_offset)) <= extract(epoch FROM clock_uncertainty) + 0.000002 FROM $in"), 't', 'of one clock it is known that it is one');
is(sql($n1, "SELECT connected, round_trip IS NULL, bytes > 0, reconnects >= 0 FROM $out"), 't|t|t|t', 'who is connected to measures nothing');
is(sql($n1, 'SELECT count(*), count(DISTINCT direction) FROM repl_ml.stat_network'), '2|2', 'a row for each direction');

# slow, and slower one way than the other
sub slow
{
	my ($there, $back) = @_;
	my $before = sql($n2, "SELECT pings FROM $in");
	my $least = $there + $back;
	$proxy->bend(there => $there, back => $back);
	# until all that tells of the clock was measured since
	poll_until($n2, "SELECT pings > $before + 9 AND round_trip >= '$least ms' AND clock_uncertainty >= interval '$least ms' / 2 FROM $in");
	is(sql($n2, "SELECT round_trip_p99 >= '$least ms', round_trip_mean > '1 ms', abs(extract(epoch FROM clock_offset)) <= extract(epoch FROM clock_uncertainty) FROM $in"), 't|t|t', "$there ms there and $back ms back");
	return;
}
slow(40, 40);
slow(80, 0);
# lengthy ones are on their way out, but not forgotten at once
$proxy->bend;
poll_until($n2, "SELECT round_trip < '80 ms' AND round_trip_p99 >= '80 ms' FROM $in");

# cut one way: who hears nothing says so, who is heard of does
my ($late, $lost) = split /\|/, sql($n2, "SELECT heartbeats_late, pings_lost FROM $in");
my $since = sql($n1, 'SELECT clock_timestamp()');
$proxy->bend(back => 'cut');
poll_until($n2, "SELECT unanswered_for > '1 s' AND connected FROM $in");
poll_until($n1, "SELECT connected AND last_message_time > '$since' FROM $out");
is(sql($n2, "SELECT heartbeats_late = $late FROM $in"), 't', 'what has not come is not late yet');
$proxy->bend;
poll_until($n2, "SELECT unanswered_for IS NULL AND heartbeats_late > $late FROM $in");
is(sql($n2, "SELECT pings_lost - $lost, heartbeats_lost FROM $in"), '0|0', 'and nothing was lost');

# it ends: how often, when and why
my $reconnects = sql($n2, "SELECT reconnects FROM $in");
$since = sql($n2, 'SELECT clock_timestamp()');
$n1->stop('immediate');
poll_until($n2, "SELECT NOT connected AND disconnect_time > '$since' AND bytes_per_second = 0 FROM $in");
like(sql($n2, "SELECT disconnect_cause FROM $in"), qr/could not receive data|ended the stream|terminat/, 'why');
$n1->start;
poll_until($n2, "SELECT connected AND reconnects > $reconnects FROM $in");
sql($n2, q(SELECT repl_ml.pause_apply('n1')));
is(sql($n2, "SELECT connected, disconnect_cause FROM $in"), 'f|applying was paused here', 'or somebody wanted that');
sql($n2, q(SELECT repl_ml.resume_apply('n1')));
wait_converged([ $n1, $n2 ], 't');
$proxy->stop;
done_testing();
