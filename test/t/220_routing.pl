# With repl_ml.fenced_read_only a client that looks for a node to write on passes by one that cannot reach a
# majority, and nobody else notices anything of it.
#
# Seen failing: routing.c, put_message without its first branch (the client lands on n1), without its last one
# ("on" is never taken back), repl_ml_members_is_cut_off always true (a node that is back is passed by).
use strict;
use warnings;
use FindBin;
use lib "$FindBin::Bin/..";
use IPC::Run;
use ReplMl;
use PostgreSQL::Test::Utils;
use Test::More;

my ($n1, $n2, $n3) = new_group(3, <<'SQL');
CREATE TABLE t (id int PRIMARY KEY, v text);
SELECT repl_ml.add_table('t');
CREATE DATABASE other;
SQL

# The port a client lands on that may choose between n1 and n2, in this order.
sub landing
{
	my ($attribute, $database) = @_;
	my $hosts = join ',', map { $_->host } $n1, $n2;
	my $ports = join ',', map { $_->port } $n1, $n2;
	my ($out, $err);

	IPC::Run::run([ 'psql', '-XqAt', '-d', "host=$hosts port=$ports dbname=$database target_session_attrs=$attribute", '-c', 'SHOW port' ],
		'>', \$out, '2>', \$err) or diag($err);
	chomp $out;
	return $out;
}

# A session that takes statements one by one.
sub open_session
{
	my ($node) = @_;
	my %session = (in => '', out => '');

	$session{harness} = IPC::Run::start([ 'psql', '-XqAt', '-v', 'VERBOSITY=sqlstate', '-d', dsn($node) ],
		'<', \$session{in}, '>', \$session{out}, '2>&1', IPC::Run::timeout($PostgreSQL::Test::Utils::timeout_default));
	return \%session;
}

# What it answers, errors as their SQLSTATE.
sub ask
{
	my ($session, $sql) = @_;

	$session->{out} = '';
	$session->{in} .= "$sql;\n\\echo done\n";
	$session->{harness}->pump until $session->{out} =~ /^done$/m;
	return $session->{out} =~ s/^done\n//mr =~ s/\n$//r;
}

# What the server reports of itself: when the connection was made, and after a statement.
sub reported
{
	my ($node) = @_;
	my $program = <<'PYTHON';
import sys, psycopg2
connection = psycopg2.connect(sys.argv[1])
name = 'default_transaction_read_only'
before = connection.get_parameter_status(name)
connection.cursor().execute('SELECT 1')
print(before, connection.get_parameter_status(name))
PYTHON
	my $out;

	IPC::Run::run([ '/usr/bin/python3', '-c', $program, dsn($node) ], '>', \$out) or die 'python failed';
	chomp $out;
	return $out;
}

sub set_routing
{
	my ($value) = @_;
	sql($n1, "ALTER SYSTEM SET repl_ml.fenced_read_only = $value");
	sql($n1, 'SELECT pg_reload_conf()');
	poll_until($n1, 'SHOW repl_ml.fenced_read_only', $value);
	return;
}

is(sql($n1, 'SHOW repl_ml.fenced_read_only'), 'off', 'it is off by default');
set_routing('on');
is(landing('read-write', 'postgres'), $n1->port, 'a node with a majority is written on');
is(reported($n1), 'off off', 'and says so');
my $old = open_session($n1);
is(ask($old, 'SHOW transaction_read_only'), 'off', 'also to who asks');

# n1 is cut off: nobody reads it
cut($_, $n1) foreach $n2, $n3;
poll_until($n1, 'SHOW transaction_read_only', 'on');
is(landing('read-write', 'postgres'), $n2->port, 'a node that is cut off is passed by');
is(landing('read-only', 'postgres'), $n1->port, 'and found by who only reads');
is(landing('any', 'postgres'), $n1->port, 'who does not look gets there');
is(landing('read-write', 'other'), $n1->port, 'another database of the server is not concerned');
is(reported($n1), 'on off', 'it is said once, while the connection is made');
my $new = open_session($n1);
foreach my $session ($old, $new)
{
	my $name = $session == $old ? 'a session from before' : 'a session of a node that is cut off';

	is(ask($session, 'SHOW default_transaction_read_only'), 'off', "$name is not read-only");
	is(ask($session, 'BEGIN; SHOW transaction_read_only; ROLLBACK'), 'off', "$name: nor are its transactions");
	is(ask($session, 'CREATE TEMP TABLE own (); DROP TABLE own'), '', "$name writes what is its own");
	like(ask($session, "SET repl_ml.write_consistency = quorum; INSERT INTO t VALUES (1, 'refused')"), qr/\b57P03\b/, "$name is refused a majority's write");
}
is(ask($new, "SHOW transaction_read_only\\; RESET repl_ml.write_consistency\\; INSERT INTO t VALUES (2, 'behind SHOW')"), 'off', 'in front of other statements SHOW tells how their transaction is');
is(sql($n1, 'SELECT count(*) FROM t WHERE id = 2'), '1', 'and they write');

# who did not ask for it has it as before
set_routing('off');
is(landing('read-write', 'postgres'), $n1->port, 'when it is off a node that is cut off is not passed by');
is(sql($n1, 'SHOW transaction_read_only'), 'off', 'nor says that it is');
set_routing('on');
is(landing('read-write', 'postgres'), $n2->port, 'when it is on again it is');

# a session's own setting is nobody else's
sql($n1, 'CREATE ROLE reader LOGIN; ALTER ROLE reader SET default_transaction_read_only = on');
is($n1->safe_psql('postgres', 'SHOW default_transaction_read_only', extra_params => [ '-U', 'reader' ]), 'on', 'a role that may only read stays so');

# n1 is back
heal($_, $n1) foreach $n2, $n3;
poll_until($n1, 'SHOW transaction_read_only', 'off');
is(landing('read-write', 'postgres'), $n1->port, 'a node that is back is written on');
is(ask($_, "SET repl_ml.write_consistency = quorum; INSERT INTO t VALUES (" . ($_ == $old ? 3 : 4) . ", 'back')"), '', 'sessions that stayed write at once')
  foreach $old, $new;
$_->{in} .= "\\q\n", $_->{harness}->finish foreach $old, $new;
poll_until($_, 'SELECT count(*) = 3 FROM t') foreach $n2, $n3;
done_testing();
