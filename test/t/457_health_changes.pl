# When a check of health changes its status, the log hears of it once, and so does who listens.
use strict;
use warnings;
use JSON::PP;
use PostgreSQL::Test::Utils;
use ReplMl;
use Test::More;

my ($n1, $n2) = my @nodes = new_group(2, 'CREATE TABLE t (id int PRIMARY KEY); SELECT repl_ml.add_all_tables()');
wait_converged(\@nodes, 't');
sql($n1, $_) foreach q(ALTER SYSTEM SET repl_ml.heartbeat_interval = '100ms'), 'SELECT pg_reload_conf()';
poll_until($n1, q(SELECT coalesce(string_agg(check_name || ' ' || detail, ', '), 'nothing') FROM repl_ml.health WHERE status <> 'ok'), 'nothing');

# What the log says of a check from a position on.
sub logged
{
	my ($check, $from) = @_;
	return [ slurp_file($n1->logfile, $from) =~ /LOG:  (health of this node: "$check" is now .*)/g ];
}

my $listener = $n1->background_psql('postgres');
$listener->query_safe('LISTEN repl_ml_health');
my $from = -s $n1->logfile;
sql($n1, q(SELECT repl_ml.pause_apply('n2')));
$n1->wait_for_log(qr/health of this node: "applying" is now warning/, $from);
# when something else has been told, it has looked again
sql($n1, q(CREATE TABLE forgotten (id int)));
$n1->wait_for_log(qr/health of this node: "unreplicated_tables" is now warning/, $from);
is_deeply(logged('applying', $from), ['health of this node: "applying" is now warning, was ok: Nothing of node "n2" is applied (paused).'], 'told once, with what it is');
like(slurp_file($n1->logfile, $from), qr/HINT:  Run SELECT repl_ml\.resume_apply\('n2'\)\./, 'and with what to do');
my ($payload) = grep { /"applying"/ } $listener->query('SELECT 1') =~ /notification "repl_ml_health" with payload "(\{.*\})" received/g;
my $told = decode_json($payload // '{}');
is(join('|', map { $told->{$_} // '' } qw(check_name status detail)), 'applying|warning|Nothing of node "n2" is applied (paused).', 'who listens hears it');
sql($n1, q(SELECT repl_ml.resume_apply('n2')));
$n1->wait_for_log(qr/health of this node: "applying" is now ok, was warning/, $from);
is(scalar(@{ logged('applying', $from) }), 2, 'that it is over is told, too');

# a look that fails ends nothing else, and is tried again
my $supervisor = q(SELECT pid FROM pg_stat_activity WHERE backend_type = 'repl_ml supervisor');
my $pid = sql($n1, $supervisor);
$from = -s $n1->logfile;
sql($n1, q(SET repl_ml.guard_off = on; ALTER VIEW repl_ml.health RENAME hint TO advice));
$n1->wait_for_log(qr/repl_ml supervisor.* ERROR:  column h.hint does not exist/, $from);
my $beats = sql($n1, 'SELECT sequence FROM repl_ml.heartbeat WHERE node_id = 1');
poll_until($n2, "SELECT sequence > $beats + 50 FROM repl_ml.heartbeat WHERE node_id = 1");
sql($n1, q(SET repl_ml.guard_off = on; ALTER VIEW repl_ml.health RENAME advice TO hint; DROP TABLE forgotten));
$n1->wait_for_log(qr/health of this node: "unreplicated_tables" is now ok/, $from);
is(sql($n1, $supervisor), $pid, 'the supervisor has gone on');
is(scalar(() = slurp_file($n1->logfile, $from) =~ /ERROR:  column h.hint does not exist/g), 1, 'and has said once why it could not look');

# after a start what is not well is told again
sql($n1, q(CREATE TABLE forgotten (id int)));
$n1->wait_for_log(qr/health of this node: "unreplicated_tables" is now warning/, $from);
$from = -s $n1->logfile;
$n1->restart;
$n1->wait_for_log(qr/health of this node: "unreplicated_tables" is now warning, was ok/, $from);
wait_converged(\@nodes, 't');
done_testing();
