# The recipes of doc/operations.md for servers that are restarted one after the other, tables that are renamed, rows that
# were deleted by mistake, a node that leaves, and a group that is lost, work as they stand there, with the settings that it has.
use strict;
use warnings;
use File::Basename qw(dirname);
use PostgreSQL::Test::Utils;
use Recipes;
use ReplMl;
use Test::More;

my $text = slurp_file(dirname(__FILE__) . '/../../doc/operations.md');
my %conf = $text =~ /^<!-- 427: conf (\w+) -->\n```conf\n(.*?)^```/msg;
my %node = map { $_ => new_node($_, $conf{room}) } qw(n1 n2 n3);
like($conf{room}, qr/\Q$_\E/, 'far: nothing else is set') foreach $conf{far} =~ /^(\S+ = \S+)/mg;
my @nodes = @node{qw(n1 n2 n3)};

sub app { my ($node, $sql) = @_; return $node->safe_psql('app', $sql); }

sub poll_app
{
	my ($node, $sql, $expected) = @_;
	$node->poll_query_until('app', $sql, $expected // 't') or die $node->name . ": timed out: $sql";
	return;
}

foreach my $node (@nodes)
{
	my ($name, $own, $first) = map { literal($_) } $node->name, map { $_->connstr('app') } $node, $node{n1};

	sql($node, 'CREATE DATABASE app');
	app($node, 'CREATE EXTENSION repl_ml; CREATE ROLE replicator LOGIN REPLICATION IN ROLE repl_ml_replication, pg_read_all_data');
	app($node, $name eq literal('n1') ? "SELECT repl_ml.create_group('g', $name, $own); CREATE TABLE account (id int PRIMARY KEY, email text UNIQUE); CREATE TABLE t (id int PRIMARY KEY); SELECT repl_ml.add_all_tables()"
		: "SELECT repl_ml.join_group($name, $own, $first)");
}
poll_app($_, q(SELECT count(*) = 0 FROM repl_ml.health WHERE status <> 'ok')) foreach @nodes;

# ---- one server after the other; each time two others write at quorum ----

my $id = 0;
foreach my $name (qw(n1 n2 n3))
{
	my ($other) = grep { $_->name ne $name } @nodes;

	$node{$name}->stop;
	poll_app($other, q(SELECT status = 'warning' AND detail ~ 'no further failure' FROM repl_ml.health WHERE check_name = 'write_consistency'));
	$id++;
	app($other, "SET repl_ml.write_consistency = 'quorum'; INSERT INTO account VALUES ($id, 'while $name is down')");
	$node{$name}->start;
	poll_app($node{$name}, "SELECT count(*) = $id FROM account");
	poll_app($_, q(SELECT count(*) = 0 FROM repl_ml.health WHERE status <> 'ok')) foreach @nodes;
}
is(follow('restart', \%node), '', 'what to look at');

# ---- rows that were deleted by mistake ----

my %script = $text =~ /^<!-- 427: sh (\w+) -->\n```sh\n(.*?)^```/msg;
my $directory = PostgreSQL::Test::Utils::tempdir();

# Runs a script of the document for a server.
sub run_script
{
	my ($name, $server, $options) = @_;
	local %ENV = (%ENV, PGHOST => $server->host, PGPORT => $server->port);
	command_ok([ 'bash', "-${options}c", "cd '$directory'\n$script{$name}" ], "$name: the script");
	return;
}

command_ok([ 'pg_dump', '-Fc', '-f', "$directory/shop.dump", $node{n2}->connstr('app') ], 'a dump, of another member');
app($node{n3}, q(INSERT INTO account VALUES (100, 'later')));
poll_app($node{n1}, q(SELECT count(*) = 4 FROM account));
app($node{n1}, 'DELETE FROM account WHERE id < 100');
poll_app($_, q(SELECT count(*) = 1 FROM account)) foreach @nodes;
run_script('mistake', $node{n1}, 'e');
poll_app($_, q(SELECT string_agg(id || coalesce(email, ''), ',' ORDER BY id) FROM account), '1while n1 is down,2while n2 is down,3while n3 is down,100later') foreach @nodes;
is(app($_, 'SELECT count(*) FROM repl_ml.conflicts'), '0', 'no conflict on ' . $_->name) foreach @nodes;

# ---- a table gets another name ----

app($node{n1}, 'INSERT INTO t VALUES (1)');
poll_app($_, 'SELECT count(*) = 1 FROM t') foreach @nodes;
follow('rename', \%node, sub { poll_app($_, q(SELECT count(*) = 0 FROM repl_ml.tables WHERE table_name = 't')) foreach @nodes; });
poll_app($_, q(SELECT state FROM repl_ml.tables WHERE table_name = 'u'), 'replicated') foreach @nodes;
app($node{n3}, 'INSERT INTO u VALUES (2)');
poll_app($_, 'SELECT count(*) = 2 FROM u') foreach @nodes;

# ---- a node leaves ----

is(follow('leave', \%node), '', 'a node leaves');
is(app($node{n3}, 'SELECT count(*) FROM account'), '4', 'its tables stay');
app($node{n3}, q(INSERT INTO account VALUES (200, 'its own')));
poll_app($_, q(SELECT detail FROM repl_ml.health WHERE check_name = 'membership'), 'Node "' . $_->name . '" of group "g", members: n1, n2.') foreach @node{qw(n1 n2)};
is(app($node{n1}, 'SELECT count(*) FROM account'), '4', 'and are ordinary ones');

# ---- all are lost, and a group is made anew from a dump ----

app($node{n1}, q(SELECT repl_ml.set_table_consistency('account', 'quorum'), repl_ml.set_column_merge('account', 'email', 'max')));
command_ok([ 'pg_dump', '-Fc', '-f', "$directory/shop.dump", $node{n1}->connstr('app') ], 'a dump');
command_ok([ 'pg_dumpall', '--roles-only', '-f', "$directory/roles.sql", '-d', $node{n1}->connstr('postgres') ], 'and one of roles');
$_->stop('immediate') foreach @nodes;
my ($new, $other) = @node{qw(new other)} = map { new_node($_, $conf{room}) } qw(new other);
run_script('lost', $new, '');
sql($other, PostgreSQL::Test::Utils::slurp_file("$directory/roles.sql") =~ s/^CREATE ROLE (?!repl)\w+;$//mr);
sql($other, 'CREATE DATABASE app');
like(follow('lost', \%node), qr/replicated again, with their levels and rules: public.account, public.u/, 'what is replicated again is said');
is(app($_, 'SELECT count(*) FROM account'), '4', 'the rows are on ' . $_->name) foreach $new, $other;
is(app($_, q(SELECT string_agg(table_name || write_consistency, ' ' ORDER BY table_name) FROM repl_ml.tables)), 'accountquorum uone', 'and the levels') foreach $new, $other;
poll_app($new, q(SELECT count(*) = 2 FROM repl_ml.write_members() WHERE reachable));
app($new, q(INSERT INTO account VALUES (300, 'again')));
is(app($other, q(SELECT email FROM account WHERE id = 300)), 'again', 'which are kept');
all_followed();
done_testing();
