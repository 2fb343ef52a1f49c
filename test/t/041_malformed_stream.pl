# A peer that sends damaged messages never brings a server down: each one is refused or parked, the
# link comes back, and what is sent undamaged afterwards is applied.
use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/..";
use IPC::Run qw(start);
use PostgreSQL::Test::Utils;
use Test::More;
use ReplMl;

my $seed = $ENV{MUTATION_SEED} || 1;
my $enough = $ENV{MUTATIONS} || 100;

# n1 is reached through the proxy, n2 directly
my @fast = ('repl_ml.max_apply_delay = 200', 'repl_ml.heartbeat_interval = 100');
my ($n1, $n2) = map { new_node($_, @fast) } qw(n1 n2);
my $directory = PostgreSQL::Test::Utils::tempdir_short();
my $port = $n1->port;
my $switch = "$directory/damage";
my $slots = q(pg_replication_slots WHERE plugin = 'repl_ml');
my $proxy = start([ 'python3', "$FindBin::Bin/../clients/mutating_proxy.py", "$directory/.s.PGSQL.$port",
		$n1->host . "/.s.PGSQL.$port", $seed, '0.1', $switch ]);

END { my $status = $?; $proxy->kill_kill if defined $proxy; $? = $status; }

sub switch_damage
{
	my ($on) = @_;
	return unlink $switch unless $on;
	open my $file, '>', $switch or die "could not create $switch: $!";
	close $file;
}

# Lets the next keepalive claim a position far ahead, which n2 confirms, and ends the connection.
sub lie_once
{
	open my $file, '>', "$switch.lie" or die "could not create $switch.lie: $!";
	close $file;
	poll_until($n1, "SELECT confirmed_flush_lsn > pg_current_wal_flush_lsn() FROM $slots");
	sql($n1, "SELECT pg_terminate_backend(active_pid) FROM $slots");
	return;
}

sub damaged_so_far { return -s "$switch.count" || 0; }

sql($_, 'CREATE EXTENSION repl_ml') foreach ($n1, $n2);
poll_until($n1, "SELECT (pg_stat_file('$directory/.s.PGSQL.$port', true)).size IS NOT NULL");
sql($n1, "SELECT repl_ml.create_group('g', 'n1', 'host=$directory port=$port dbname=postgres')");
sql($n1, <<'SQL');
CREATE TYPE mood AS ENUM ('sad', 'ok', 'happy');
CREATE TABLE victim (id int, k text, b bytea, n numeric, a int[], ts timestamptz, j jsonb, m mood, PRIMARY KEY (id, k));
CREATE TABLE after (id int PRIMARY KEY, v text);
SELECT repl_ml.add_all_tables();
INSERT INTO victim SELECT i, 'ключ ' || i, '\x00ff', i / 7.0, ARRAY[i, NULL], now(), '{"a": [1, "ä"]}', 'ok' FROM generate_series(1, 20) i;
SQL
join_node($n2, $n1);
my $started = sql($n2, 'SELECT pg_postmaster_start_time()');
my $origin = 'SELECT count(*) FROM pg_replication_origin';

# writes of all kinds, as long as it takes
my $round = 0;
my ($damaged, $damaged_at) = (0, time);
switch_damage(1);
while ($damaged < $enough)
{
	($damaged, $damaged_at) = (damaged_so_far(), time) if damaged_so_far() > $damaged;
	die "nothing is sent any more after $damaged damaged messages"
	  if time > $damaged_at + $PostgreSQL::Test::Utils::timeout_default;
	$round++;
	sql($n1, <<"SQL");
INSERT INTO victim SELECT 1000 * $round + i, 'k' || i, decode(md5(i::text), 'hex'), i, '{}', now(), 'null', 'sad' FROM generate_series(1, 5) i;
UPDATE victim SET n = n + 1, b = b || '\\x01', m = 'happy' WHERE id <= 3;
DELETE FROM victim WHERE id % 1000 = $round % 20 AND id > 100;
CREATE TABLE IF NOT EXISTS t@{[ $round % 10 ]} (id int PRIMARY KEY, v text);
SQL
}
switch_damage(0);

# undamaged, the link comes back, in both directions
sql($_, 'INSERT INTO after VALUES (' . $_->port . ", 'from " . $_->name . "')") foreach ($n1, $n2);
poll_until($_, 'SELECT count(*) = 2 FROM after') foreach ($n1, $n2);
sql($n1, "UPDATE after SET v = v || ' changed'");
wait_converged([ $n1, $n2 ], 'after');
poll_until($n2, "SELECT state = 'streaming' FROM repl_ml.stat_apply WHERE node_name = 'n1'");

# a position that was confirmed by mistake does not end the link: the slot is made anew
lie_once();
sql($n1, "INSERT INTO after VALUES (1, 'after the lie')");
poll_until($n2, 'SELECT count(*) = 1 FROM after WHERE id = 1');
poll_until($n1, "SELECT confirmed_flush_lsn <= pg_current_wal_flush_lsn() FROM $slots");
poll_until($n2, "SELECT state = 'streaming' FROM repl_ml.stat_apply WHERE node_name = 'n1'");
wait_converged([ $n1, $n2 ], 'after');

my $errors = sql($n2, "SELECT errors FROM repl_ml.stat_apply WHERE node_name = 'n1'");
note("damaged messages: ", damaged_so_far(), "; connections they ended: $errors; changes parked: ",
	sql($n2, 'SELECT count(*) FROM repl_ml.parked_change'));
cmp_ok($errors, '>', 0, 'damage was noticed');

# and nothing fell over
foreach my $node ($n1, $n2)
{
	my $log = slurp_file($node->logfile);
	unlike($log, qr/terminated by signal|PANIC|TRAP:|server process .* exited/, $node->name . ': no process crashed');
	is(sql($node, $origin), 1, $node->name . ': one origin');
}
is(sql($n2, 'SELECT pg_postmaster_start_time()'), $started, 'n2 was not restarted');
is(sql($n2, "SELECT count(*) FROM pg_stat_activity WHERE backend_type ~ 'repl_ml' AND pid = (SELECT pid FROM repl_ml.stat_apply WHERE node_id = 1)"),
	1, 'its worker runs');

done_testing();
