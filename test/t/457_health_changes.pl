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

# Waits until the supervisor has looked at health some times more.
sub has_looked
{
	my $beats = sql($n1, 'SELECT sequence FROM repl_ml.heartbeat WHERE node_id = 1');
	poll_until($n1, "SELECT sequence > $beats + 15 FROM repl_ml.heartbeat WHERE node_id = 1");
	return;
}

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
has_looked();
is_deeply(logged('applying', $from), ['health of this node: "applying" is now warning, was ok: Nothing of node "n2" is applied (paused).'], 'told once, with what it is');
like(slurp_file($n1->logfile, $from), qr/HINT:  Run SELECT repl_ml\.resume_apply\('n2'\)\./, 'and with what to do');
my ($payload) = grep { /"applying"/ } $listener->query('SELECT 1') =~ /notification "repl_ml_health" with payload "(\{.*\})" received/g;
my $told = decode_json($payload // '{}');
is(join('|', map { $told->{$_} // '' } qw(check_name status detail)), 'applying|warning|Nothing of node "n2" is applied (paused).', 'who listens hears it');
sql($n1, q(SELECT repl_ml.resume_apply('n2')));
$n1->wait_for_log(qr/health of this node: "applying" is now ok, was warning/, $from);
is(scalar(@{ logged('applying', $from) }), 2, 'that it is over is told, too');

# after a start what is not well is told again
sql($n1, q(CREATE TABLE forgotten (id int)));
$n1->wait_for_log(qr/health of this node: "unreplicated_tables" is now warning/, $from);
$from = -s $n1->logfile;
$n1->restart;
$n1->wait_for_log(qr/health of this node: "unreplicated_tables" is now warning, was ok/, $from);
wait_converged(\@nodes, 't');
done_testing();
