# Every reason why a node cannot join is a clear error, tells no password, and leaves nothing behind.
use strict;
use warnings;
use IPC::Run;
use Membership;
use PostgreSQL::Test::Utils;
use ReplMl;
use Test::More;

my $canary = 'c4nary-p4ssw0rd';
my @quiet = ('log_statement = none');
my ($n1, $n2) = map { new_node($_, @quiet) } qw(n1 n2);
sql($_, 'CREATE EXTENSION repl_ml') foreach $n1, $n2;

# A role of its own for replication, with a password.
sub allow_password
{
	my ($node) = @_;
	my $hba = $node->data_dir . '/pg_hba.conf';
	my $rest = slurp_file($hba);

	sql($node, "SET log_min_error_statement = panic; CREATE ROLE repl LOGIN REPLICATION PASSWORD '$canary' IN ROLE repl_ml_replication, repl_ml_admin");
	unlink $hba;
	append_to_file($hba, "local all repl scram-sha-256\n$rest");
	$node->reload;
}
allow_password($_) foreach $n1, $n2;

sub repl_dsn { my ($node, $password) = @_; return dsn($node) . ' user=repl password=' . ($password || $canary) }

sub join_sql
{
	my ($name, $dsn, $join_dsn, $more) = @_;
	return 'SELECT repl_ml.join_group(' . join(', ', literal($name), literal($dsn), literal($join_dsn), $more || ()) . ')';
}

# The error of joining, and then that n2 is as before and n1 knows of no one.
sub join_fails
{
	my ($what, $arguments, @error) = @_;
	my $sql = ref $arguments ? join_sql(@$arguments) : $arguments;

	note($what);
	psql_fails($n2, $sql, @error);
	is_clean($n2, "nothing left on n2: $what");
	is(sql($n1, q(SELECT slot_name FROM pg_replication_slots UNION ALL SELECT roname FROM pg_replication_origin
		UNION ALL SELECT node_name FROM repl_ml.member WHERE state <> 'dropped' AND node_id <> 1)),
		'', "nothing left on n1: $what");
}

my ($d1, $d2) = map { repl_dsn($_) } $n1, $n2;

# before there is a group
join_fails('not a group', [ 'n2', $d2, $d1 ], '55000', 'join_dsn leads to is not a member', 'create_group');
join_fails('the other as itself', [ 'n2', $d2, $d2 ], '55000', 'is not a member of a repl_ml group', 'create_group');

sql($n1, <<"SQL");
CREATE ROLE owner;
CREATE TABLE item (id integer PRIMARY KEY, v text);
ALTER TABLE item OWNER TO owner;
CREATE TABLE other (id integer PRIMARY KEY);
INSERT INTO item VALUES (1, 'one');
SELECT repl_ml.create_group('g', 'n1', ${\literal($d1)});
SELECT repl_ml.add_table('item');
GRANT pg_read_all_data TO repl;
SQL

# connection strings
(my $no_host = $d1) =~ s/host=\S+/host=\/nowhere/;
(my $no_port = $d1) =~ s/port=\d+/port=1/;
(my $no_db = $d1) =~ s/dbname='?postgres'?/dbname=nothing/;
(my $nobody = $d1) =~ s/user=repl/user=nobody/;
join_fails('own dsn unparsable', [ 'n2', 'host=a b', $d1 ], '22023', 'invalid connection string', 'host=');
join_fails('join_dsn unparsable', [ 'n2', $d2, 'host=a b' ], '22023', 'invalid connection string', 'host=');
join_fails('URI unparsable', [ 'n2', $d2, "postgresql://repl:$canary\@[::1/postgres" ], '22023', 'invalid connection string', 'host=');
join_fails('dsn too long', [ 'n2', $d2, 'host=' . 'a' x 2000 ], '22023', 'longer than');
join_fails('no such host', [ 'n2', $d2, $no_host ], '08001', 'could not connect', 'pg_hba');
join_fails('no such port', [ 'n2', $d2, $no_port ], '08001', 'could not connect', 'pg_hba');
join_fails('no such database', [ 'n2', $d2, $no_db ], '08001', 'could not connect', 'pg_hba');
join_fails('no such role', [ 'n2', $d2, $nobody ], '08001', 'could not connect', 'pg_hba');
join_fails('own dsn unreachable', [ 'n2', $no_port, $d1 ], '08001', 'could not connect', 'pg_hba');
join_fails('dsn of another server', [ 'n2', $d1, $d1 ], '22023', 'does not lead to this database', 'how the other nodes reach');
join_fails('wrong password', [ 'n2', $d2, repl_dsn($n1, "$canary-wrong") ], '08001', 'could not connect', 'pg_hba');
join_fails('wrong own password', [ 'n2', repl_dsn($n2, "$canary-wrong"), $d1 ], '08001', 'could not connect', 'pg_hba');
sql($n1, 'CREATE DATABASE empty');
(my $other_db = $d1) =~ s/dbname='?postgres'?/dbname=empty/;
join_fails('database without the extension', [ 'n2', $d2, $other_db ], '55000', 'is not installed in the database', 'CREATE EXTENSION');

# arguments
join_fails('no name', [ '', $d2, $d1 ], '22023', 'invalid node name', '1 to 63');
join_fails('no time', [ 'n2', $d2, $d1, q(timeout => '0') ], '22023', 'timeout must be positive', 'timeout =>');
psql_fails($n2, join_sql('n2', $d2, $d1) =~ s/'n2'/NULL/r, '22004', 'null is not allowed');

# what the two databases have
join_fails('role missing here', [ 'n2', $d2, $d1 ], '42704', 'role "owner" does not exist on this server', 'CREATE ROLE owner');
sql($n2, 'CREATE ROLE owner');
join_fails('name in use', [ 'n1', $d2, $d1 ], '42710', 'node name "n1" is already in use', 'drop_node');
sql($n2, q(CREATE TABLE item (id integer PRIMARY KEY, v text); INSERT INTO item VALUES (7, 'mine')));
join_fails('table with rows', [ 'n2', $d2, $d1 ], '55000', 'table public.item of the joining database is not empty', 'copy_data => false');
sql($n2, 'DROP TABLE item; CREATE TABLE item (id integer, v text)');
join_fails('table without a key', [ 'n2', $d2, $d1 ], '55000', 'table public.item has no primary key', 'ADD PRIMARY KEY');
sql($n2, 'DROP TABLE item');
foreach my $node ($n1, $n2)
{
	sql($node, q(UPDATE pg_extension SET extversion = '0.9' WHERE extname = 'repl_ml'));
	join_fails('version of ' . $node->name, [ 'n2', $d2, $d1 ], '55000', '0\.9', 'ALTER EXTENSION repl_ml UPDATE');
	sql($node, q(UPDATE pg_extension SET extversion = '1.0' WHERE extname = 'repl_ml'));
}

# privileges of the connection strings' roles
sql($n1, 'REVOKE pg_read_all_data FROM repl');
join_fails('tables not readable', [ 'n2', $d2, $d1 ], '42501', 'role "repl", with which members connect to the donor, may not read table public.other', 'GRANT pg_read_all_data TO repl');
sql($n1, 'GRANT pg_read_all_data TO repl; REVOKE repl_ml_replication FROM repl');
join_fails('not a replication role', [ 'n2', $d2, $d1 ], '42501', 'permission denied', 'GRANT repl_ml_replication');
sql($n1, 'GRANT repl_ml_replication TO repl; ALTER ROLE repl NOREPLICATION');
join_fails('role without REPLICATION', [ 'n2', $d2, $d1 ], '08001', 'could not connect', 'REPLICATION');
sql($n1, 'ALTER ROLE repl REPLICATION');
sql($n2, 'REVOKE repl_ml_replication FROM repl');
join_fails('own role not a replication role', [ 'n2', $d2, $d1 ], '42501', 'permission denied', 'GRANT repl_ml_replication');
sql($n2, 'GRANT repl_ml_replication TO repl');

# a member without room for one more
$n1->append_conf('postgresql.conf', 'max_replication_slots = 1');
$n1->restart;
join_fails('no slot left on the member', [ 'n2', $d2, $d1 ], '55000', 'setting "max_replication_slots" of node "n1"', 'max_replication_slots = 2');
$n1->append_conf('postgresql.conf', 'max_replication_slots = 20');
$n1->restart;

# Interrupted while it registers: the member is at it until the lock goes, and then forgets.
sql($n1, q(BEGIN; LOCK TABLE repl_ml.member IN EXCLUSIVE MODE; PREPARE TRANSACTION 'hold'));
psql_fails($n2, q(SET statement_timeout = '1s'; ) . join_sql('n2', $d2, $d1), '57014', 'statement timeout');
psql_fails($n2, join_sql('n2', $d2, $d1, q(timeout => '1s')), '57014', 'could not join the group in time', 'longer timeout');
is(sql($n1, q(SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%c4nary%' AND pid <> pg_backend_pid())), '0', 'the waiting statement is not shown');
sql($n1, q(ROLLBACK PREPARED 'hold'));
poll_until($n1, q(SELECT count(*) = 0 FROM pg_stat_activity WHERE application_name IN ('repl_ml join', 'repl_ml question')));
poll_until($n2, q(SELECT count(*) = 0 FROM pg_stat_activity WHERE backend_type = 'repl_ml join'));
join_fails('after interruptions', 'SELECT repl_ml.wait_for_node($$n2$$)', '42704', 'node "n2" does not exist', 'repl_ml.nodes');

# Cancelled while it waits for the copy: joining goes on by itself.
sql($n1, q(BEGIN; LOCK TABLE item; PREPARE TRANSACTION 'hold'));
my $out = '';
my $psql = IPC::Run::start([ 'psql', '-X', '-d', dsn($n2), '-c', join_sql('n2', $d2, $d1) ], '>&', \$out);
poll_until($n2, q(SELECT count(*) = 1 FROM pg_stat_activity WHERE wait_event = 'ReplMlWaitForNode' OR query LIKE 'repl_ml: a statement%' AND EXISTS (SELECT FROM repl_ml.local_node)));
unlike(sql($n2, 'SELECT string_agg(query, chr(10)) FROM pg_stat_activity'), qr/$canary/, 'nor is it here');
sql($n2, q(SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE query LIKE 'repl_ml: a statement%'));
$psql->finish;
like($out, qr/canceling statement due to user request/, 'join_group can be cancelled');
psql_fails($n2, join_sql('n2', $d2, $d1), '55000', 'this database is already node "n2" of group "g"', 'leave_group');
sql($n1, q(ROLLBACK PREPARED 'hold'));
poll_until($_, q(SELECT state = 'ready' FROM repl_ml.nodes WHERE node_name = 'n2' AND state <> 'dropped')) foreach $n1, $n2;
sql($n2, q(INSERT INTO item VALUES (2, 'two')));
wait_converged([ $n1, $n2 ], 'item');
is(sql($n1, q(SELECT id, v FROM item ORDER BY 1)), "1|one\n2|two", 'and then the two replicate');
is(sql($n2, q(SELECT relowner::regrole FROM pg_class WHERE relname = 'item')), 'owner', 'under the same owner');

# settings, as check_setup tells them
my $n3 = new_node('n3', @quiet, 'wal_level = replica', 'max_replication_slots = 1', 'max_wal_senders = 1', 'max_worker_processes = 4');
my $knows = sql($n3, q(SELECT count(*) FROM pg_settings WHERE name = 'output_plugin_libraries'));
if ($knows)
{
	$n3->append_conf('postgresql.conf', q(output_plugin_libraries = 'pgoutput'));
	$n3->reload;
	poll_until($n3, q(SELECT current_setting('output_plugin_libraries') = 'pgoutput'));
}
sql($n3, 'CREATE EXTENSION repl_ml');
my %hints = map { split /\|/, $_, 2 } split /\n/, sql($n3, q(SELECT check_name, hint FROM repl_ml.check_setup() WHERE status = 'error'));
my %lines = (
	wal_level => 'wal_level = logical', max_replication_slots => 'max_replication_slots = 2',
	max_wal_senders => 'max_wal_senders = 2', max_worker_processes => 'max_worker_processes = \d+',
	$knows ? (output_plugin_libraries => 'ALTER SYSTEM SET output_plugin_libraries = pgoutput, repl_ml') : ());
is(join(' ', sort keys %hints), join(' ', sort keys %lines), 'check_setup finds each wrong setting');
like($hints{$_}, qr/$lines{$_}/, "and the line to write: $_") foreach sort keys %lines;
psql_fails($n3, join_sql('n3', dsn($n3), $d1), '55000', 'setting "\w+" does not allow replication', 'Write|Run');
is_clean($n3, 'nothing left on a server with wrong settings');
is(sql($n3, q(SELECT status, hint LIKE '%pg_hba%' FROM repl_ml.check_setup('host=/nowhere') WHERE check_name = 'peer')), 'error|t', 'check_setup of a peer');
is(sql($n3, 'SELECT status FROM repl_ml.check_setup(' . literal($d1) . ") WHERE check_name = 'peer'"), 'ok', 'check_setup of one that is there');
$n3->append_conf('postgresql.conf', q(shared_preload_libraries = ''));
$n3->restart;
is(sql($n3, q(SELECT status, hint FROM repl_ml.check_setup() WHERE check_name = 'shared_preload_libraries')),
	q(error|Write shared_preload_libraries = 'repl_ml' into postgresql.conf and restart the server.), 'not preloaded');
psql_fails($n3, join_sql('n3', dsn($n3), $d1), '55000', 'shared_preload_libraries', 'shared_preload_libraries');

# The password is nowhere but in repl_ml.member.
sql($n1, 'CREATE ROLE watcher IN ROLE pg_monitor');
foreach my $node ($n1, $n2)
{
	my $name = $node->name;
	unlike(slurp_file($node->logfile), qr/$canary/, "no password in the log of $name");
	my ($dump) = run_command([ 'pg_dump', '-d', dsn($node) ]);
	unlike($dump, qr/$canary/, "nor in a dump of $name");
	unlike(sql($node, 'SELECT string_agg(a::text, chr(10)) FROM pg_stat_activity a'), qr/$canary/, "nor in pg_stat_activity of $name");
}
unlike(slurp_file($n3->logfile), qr/$canary/, 'nor in the log of n3');
foreach my $view (split /\n/, sql($n1, q(SELECT c.oid::regclass FROM pg_class c WHERE relkind IN ('v', 'r') AND
	(relnamespace = 'repl_ml'::regnamespace OR relname ~ '^pg_stat' AND relnamespace = 'pg_catalog'::regnamespace) AND has_table_privilege('watcher', c.oid, 'SELECT'))))
{
	unlike(sql($n1, "SET ROLE watcher; SELECT string_agg(v::text, chr(10)) FROM $view v"), qr/$canary/, "pg_monitor sees no password in $view");
}
psql_fails($n1, 'SET ROLE watcher; SELECT dsn FROM repl_ml.member', '42501', 'permission denied');

done_testing();
