# Clients behind pgbouncer in transaction mode get what doc/clients.md promises them, and connection strings may name several
# hosts, those of clients as well as those of nodes.
use strict;
use warnings;
use IPC::Run;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use ReplMl;
use Test::More;

my ($n1, $n2, $n3) = my @nodes = new_group(3, <<'SQL');
CREATE TABLE t (id int PRIMARY KEY, v text);
SELECT repl_ml.add_table('t');
SQL
wait_converged(\@nodes, 't');

# ---- several hosts ----

# What psql prints, errors included.
sub ask
{
	my ($dsn, $sql) = @_;
	my ($out, $err);

	# each statement by itself, and not from a pipe that psql does not read where it does not get in
	IPC::Run::run([ 'psql', '-XqAt', '-v', 'VERBOSITY=verbose', '-d', $dsn, map { ('-c', $_) } split /;\s*/, $sql ], '>', \$out, '2>', \$err);
	return ($out . $err) =~ s/\n\z//r;
}

sub places
{
	my ($attribute, @of) = @_;
	return sprintf 'host=%s port=%s dbname=postgres target_session_attrs=%s', join(',', map { $n1->host } @of), join(',', @of), $attribute;
}

# a node that has two places, and runs at one of them at a time: one address for both
my $former = $n2->port;
my $later = PostgreSQL::Test::Cluster::get_free_port();
my $both = literal(places('read-write', $later, $former));
sql($n1, "SELECT repl_ml.set_node_address('n2', $both)");
is(sql($n1, q(SELECT port FROM repl_ml.nodes WHERE node_name = 'n2')), $former, 'where it is now');

sub move
{
	my ($port) = @_;

	$n2->stop;
	$n2->{_port} = $port;
	$n2->append_conf('postgresql.conf', "port = $port");
	$n2->start;
	poll_until($_, q(SELECT count(*) = 2 AND bool_and(state = 'streaming') FROM repl_ml.stat_apply)) foreach @nodes;
	sql($n2, "INSERT INTO t VALUES ($port, 'moved') ON CONFLICT (id) DO UPDATE SET v = 'again'");
	wait_converged(\@nodes, 't');
	is(sql($n3, "SELECT v FROM t WHERE id = $port"), sql($n2, "SELECT v FROM t WHERE id = $port"), 'it is found there by itself');
	return;
}

wait_converged(\@nodes);
move($later);
move($former);

# a standby of it in the first place is passed by
$n2->backup('standby');
my $standby = PostgreSQL::Test::Cluster->new('standby');
$standby->init_from_backup($n2, 'standby', has_streaming => 1);
$standby->start;
sql($n1, "SELECT repl_ml.set_node_address('n2', " . literal(places('read-write', $standby->port, $former)) . ')');
wait_converged(\@nodes);
move($former);
$standby->stop;

# so can one join, through a member that is at the second place; each is asked by several connections, pg_dump's among them
my $n4 = new_node('n4');
sql($n4, 'CREATE EXTENSION repl_ml');
sql($n4, "SELECT repl_ml.join_group('n4', " . literal(places('read-write', $later, $n4->port)) . ', ' . literal(places('read-write', $later, $n1->port)) . ')');
wait_converged([ @nodes, $n4 ], 't');
is(sql($n4, q(SET repl_ml.write_consistency = 'all'; INSERT INTO t VALUES (44, 'joined'); SELECT repl_ml.barrier('60 s'); SELECT count(*) FROM repl_ml.verify_all() WHERE status = 'consistent')), "\n1", 'it writes, asks and compares');
is(sql($n4, q(SELECT max(v) FROM t WHERE id = 44)), 'joined', 'and reads');
sql($n4, 'SELECT repl_ml.leave_group(); DROP TABLE t');
$n4->stop;
wait_converged(\@nodes, 't');

# but only places of that node: the first one that answers is asked who it is
psql_fails($n1, "SELECT repl_ml.set_node_address('n2', " . literal(places('any', $n3->port, $n2->port)) . ')', '22023', 'does not lead to node "n2"');
# nor is one passed by because it is cut off from the others
sql($_, 'ALTER SYSTEM SET repl_ml.fenced_read_only = on') foreach @nodes;
$_->reload foreach @nodes;
$n1->stop;
$n3->stop;
poll_until($n2, q(SELECT status = 'error' FROM repl_ml.health WHERE check_name = 'write_consistency'));
is(ask(places('read-write', $n2->port), 'SELECT 1') =~ /read-write|not read-only|session is read-only/ ? 'passed by' : 'taken', 'passed by', 'a client passes by it');
$n1->start;
poll_until($n1, q(SELECT state = 'streaming' FROM repl_ml.stat_apply WHERE node_name = 'n2'));
pass_to($n2, $n1);
$n3->start;

# A client that may choose between nodes lands on the first one that may be written.
sub pass_to
{
	my (@of) = @_;

	poll_until($_, q(SELECT status <> 'error' FROM repl_ml.health WHERE check_name = 'write_consistency')) foreach @of;
	is(ask(places('read-write', 1, map { $_->port } @of), 'SHOW port'), $of[0]->port, 'a client lands on the first that answers');
	return;
}
poll_until($_, q(SELECT bool_and(status = 'ok') FROM repl_ml.health WHERE check_name IN ('write_consistency', 'applying', 'sending'))) foreach @nodes;

# ---- pgbouncer ----

my $process;
END { my $status = $?; $process->kill_kill if $process; $? = $status; }

SKIP:
{
	my ($pgbouncer) = grep { -x } '/usr/sbin/pgbouncer', '/usr/bin/pgbouncer', '/usr/local/bin/pgbouncer';
	skip 'pgbouncer is not installed', 1 if !$pgbouncer;

	my $port = PostgreSQL::Test::Cluster::get_free_port();
	my $directory = PostgreSQL::Test::Utils::tempdir_short();
	my $ini = "$directory/pgbouncer.ini";
	my $user = sql($n1, 'SELECT current_user');
	append_to_file($ini, sprintf(<<'INI', $n1->host, $n1->port, $user, $directory, $port, $directory, $directory));
[databases]
app = host=%s port=%s dbname=postgres user=%s pool_size=1
[pgbouncer]
listen_addr =
unix_socket_dir = %s
listen_port = %s
auth_type = any
pool_mode = transaction
ignore_startup_parameters = extra_float_digits
logfile = %s/log
pidfile = %s/pid
INI
	$process = IPC::Run::start([ $pgbouncer, '-q', $ini ], '<', \'', '>', \my $out, '2>', \my $err);
	my $pooled = "host=$directory port=$port dbname=app user=$user";
	foreach (1 .. 300) { last if ask($pooled, 'SELECT 1') eq '1'; }
	is(ask($pooled, 'SHOW port'), $n1->port, 'through the pooler');

	# a setting of the session is whoever's is next in it
	ask($pooled, q(SET repl_ml.write_consistency = 'quorum'));
	is(ask($pooled, 'SHOW repl_ml.write_consistency'), 'quorum', 'SET goes to others, too: do not');
	ask($pooled, 'RESET repl_ml.write_consistency');

	# one of the transaction is not
	my $count = q(SELECT commits + refused FROM repl_ml.stat_write_consistency WHERE level = 'quorum');
	my $commits = sql($n1, $count);
	is(ask($pooled, q(BEGIN; SET LOCAL repl_ml.write_consistency = 'quorum'; INSERT INTO t VALUES (1, 'x'); COMMIT)), '', 'SET LOCAL');
	is(ask($pooled, q(BEGIN; SELECT set_config('repl_ml.write_consistency', 'quorum', true); INSERT INTO t VALUES (2, 'x'); COMMIT)), 'quorum', 'set_config(..., true)');
	is(sql($n1, $count), $commits + 2, 'both waited for a quorum');
	is(ask($pooled, 'SHOW repl_ml.write_consistency'), 'one', 'and the next one is not concerned');
	is(ask($pooled, q(BEGIN; SET LOCAL repl_ml.write_consistency = 'quorum'; INSERT INTO t VALUES (3, 'x'); ROLLBACK; SHOW repl_ml.write_consistency)), 'one', 'nor after ROLLBACK');

	# what a role, a database or a table asks for holds
	my $role_asks_for = sub
	{
		my ($level) = @_;

		sql($n1, "ALTER ROLE \"$user\" IN DATABASE postgres SET repl_ml.write_consistency = '$level'");
		# for who connects from now on
		sql($n1, q(SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()));
		foreach (1 .. 300) { last if ask($pooled, 'SHOW repl_ml.write_consistency') eq $level; }
		is(ask($pooled, 'SHOW repl_ml.write_consistency'), $level, 'a setting of the role');
		return;
	};
	$role_asks_for->('quorum');
	$role_asks_for->('one');
	sql($n1, q(SELECT repl_ml.set_table_consistency('t', 'quorum')));
	$commits = sql($n1, $count);
	is(ask($pooled, q(INSERT INTO t VALUES (4, 'x'))), '', 'a table with a minimum');
	is(sql($n1, $count), $commits + 1, 'its minimum');
	sql($n1, q(SELECT repl_ml.set_table_consistency('t', 'one')));

	# options of the connection are not passed on
	like(ask("$pooled options='-c repl_ml.write_consistency=quorum'", 'SHOW repl_ml.write_consistency'), qr/unsupported startup parameter/, 'options are refused');

	# tokens and vectors are the node's and not the session's
	my $token = ask($pooled, q(BEGIN; SET LOCAL repl_ml.write_consistency = 'quorum'; INSERT INTO t VALUES (5, 'x'); SELECT repl_ml.transaction_token(); COMMIT));
	is(ask($pooled, "SELECT repl_ml.transaction_status('$token')"), 'acknowledged', 'a token');
	is(sql($n2, "SELECT repl_ml.transaction_status('$token')"), 'acknowledged', 'on another node, too');
	ask($pooled, q(INSERT INTO t VALUES (6, 'x')));
	my $vector = ask($pooled, 'SELECT repl_ml.current_vector()');
	is(ask($n3->connstr('postgres'), "SELECT repl_ml.wait_for_vector('$vector', '60 s'); SELECT v FROM t WHERE id = 6"), "\nx", 'what was written in one is read in another session');

	# reads: a barrier in a statement of its own, or in the transaction
	sql($n2, q(SET repl_ml.write_consistency = 'quorum'; INSERT INTO t VALUES (7, 'x')));
	is(ask($pooled, q(SELECT repl_ml.barrier('60 s'); SELECT v FROM t WHERE id = 7)), "\nx", 'a barrier');
	sql($n2, q(SET repl_ml.write_consistency = 'quorum'; INSERT INTO t VALUES (8, 'x')));
	is(ask($pooled, q(BEGIN; SET LOCAL repl_ml.read_consistency = 'barrier'; SET LOCAL repl_ml.read_timeout = '60s'; SELECT v FROM t WHERE id = 8; COMMIT)), 'x', 'SET LOCAL read_consistency');
	cut($n1, $n2);
	sql($n2, q(SET repl_ml.write_consistency = 'quorum'; INSERT INTO t VALUES (9, 'x')));
	like(ask($pooled, q(BEGIN; SET LOCAL repl_ml.read_consistency = 'barrier'; SET LOCAL repl_ml.read_timeout = '1s'; SELECT v FROM t WHERE id = 9)), qr/ERROR:  57014/, 'it does not read what is old');
	is(ask($pooled, q(SELECT count(*) FROM t WHERE id = 9)), '0', 'though it is');
	is(ask($pooled, 'SHOW repl_ml.read_consistency'), 'local', 'the next one is not concerned');
	heal($n1, $n2);

	# nodes talk to servers
	psql_fails($n2, "SELECT repl_ml.set_node_address('n1', " . literal($pooled) . ')', '22023|08P01|08001', 'n1|connect', 'pooler|role');

	# a node that is cut off
	$n2->stop('immediate');
	$n3->stop('immediate');
	poll_until($n1, q(SELECT status = 'error' FROM repl_ml.health WHERE check_name = 'write_consistency'));
	like(ask($pooled, q(BEGIN; SET LOCAL repl_ml.write_consistency = 'quorum'; INSERT INTO t VALUES (10, 'x'); COMMIT)), qr/ERROR:  57P03/, 'too few members: an error');
	is(ask($pooled, q(SELECT count(*) FROM t WHERE id = 10)), '0', 'and nothing is written');
	is(ask("$pooled target_session_attrs=read-write", 'SHOW port'), $n1->port, 'but a client that looks for a node to write on does not pass by: the pooler tells it what it was told');
}
done_testing();
