# The recipes of doc/operations.md for names and places work: a node that is dead is replaced, under its old name and under a
# new one; a node is renamed, gets another password, and its database another name. What two members change at the same
# time ends alike on all.
#
# Seen failing: without mend_members a renamed node does not know its name.
use strict;
use warnings;
use ReplMl;
use Recipes;
use Test::More;

my %node = map { $_ => app_node($_) } qw(n1 n2 n3);
my @left = @node{qw(n1 n2)};

sub app_node
{
	my ($name) = @_;
	my $node = new_node($name);

	sql($node, 'CREATE DATABASE app');
	return $node;
}

# The role is made with the extension, which makes the role it is in.
sub prepare
{
	my ($node) = @_;
	app($node, 'CREATE EXTENSION repl_ml; CREATE ROLE replicator LOGIN REPLICATION IN ROLE repl_ml_replication, pg_read_all_data');
	return;
}

my %database;

sub app
{
	my ($node, $sql) = @_;
	return $node->safe_psql($database{ $node->name } // 'app', $sql);
}

sub poll_app
{
	my ($node, $sql, $expected) = @_;
	$node->poll_query_until($database{ $node->name } // 'app', $sql, $expected // 't') or die $node->name . ": timed out: $sql";
	return;
}

sub fails
{
	my ($node, $sql, $sqlstate, $message, $hint) = @_;
	my ($status, undef, $stderr) = $node->psql($database{ $node->name } // 'app', $sql, extra_params => [ '-v', 'VERBOSITY=verbose' ]);

	isnt($status, 0, "fails: $sql");
	like($stderr, qr/ERROR:  $sqlstate: .*$message.*^HINT:  .*$hint/ms, "its error: $sql");
	return;
}

# Everybody's writes reach everybody.
my $written = 0;

sub all_write
{
	my ($name, @nodes) = @_;

	$written++;
	app($_, "INSERT INTO t SELECT $written, node_name, '$name' FROM repl_ml.nodes WHERE is_local") foreach @nodes;
	poll_app($_, "SELECT count(*) FROM t WHERE v = '$name'", scalar(@nodes)) foreach @nodes;
	poll_app($_, q(SELECT coalesce(bool_and(status = 'ok' OR check_name = 'unreplicated_tables'), false) FROM repl_ml.health)) foreach @nodes;
	return;
}

sub names_are
{
	my ($names, @nodes) = @_;

	poll_app($_, q(SELECT string_agg(node_name, ' ' ORDER BY node_id) FROM repl_ml.nodes WHERE state <> 'dropped'), $names) foreach @nodes;
	# each knows its own
	poll_app($_, q(SELECT l.node_name = n.node_name AND detail LIKE format('Node "%s" of%%', n.node_name) FROM repl_ml.local_node l, repl_ml.nodes n, repl_ml.health WHERE n.is_local AND check_name = 'membership')) foreach @nodes;
	return;
}

sub links { return join "\n", map { app($_, 'SELECT a.node_id, a.pid, a.errors, r.pid FROM repl_ml.stat_apply a JOIN repl_ml.stat_replication r USING (node_id) ORDER BY 1') } @_; }

prepare($_) foreach @node{qw(n1 n2 n3)};
app($node{n1}, q(CREATE TABLE t (id int, node text, v text, PRIMARY KEY (id, node))));
app($node{n1}, "SELECT repl_ml.create_group('g', 'n1', " . literal($node{n1}->connstr('app') . ' user=replicator') . "); SELECT repl_ml.add_table('t')");
foreach my $name (qw(n2 n3))
{
	app($node{n1}, "SELECT repl_ml.invite_node('$name')");
	app($node{$name}, "SELECT repl_ml.join_group('$name', " . literal($node{$name}->connstr('app') . ' user=replicator') . ', ' . literal($node{n1}->connstr('app') . ' user=replicator') . ')');
}
all_write('first', @node{qw(n1 n2 n3)});

# ---- names ----

my $links = links(@node{qw(n1 n2 n3)});
is(follow('rename', \%node), '', 'a node is renamed, and that is all');
names_are('n1 paris n3', @node{qw(n1 n2 n3)});
all_write('renamed', @node{qw(n1 n2 n3)});
is(links(@node{qw(n1 n2 n3)}), $links, 'no link was interrupted');
app($node{n3}, q(SELECT repl_ml.pause_apply('paris'), repl_ml.resume_apply('paris')));
fails($node{n1}, q(SELECT repl_ml.rename_node('n2', 'rome')), '42704', 'node "n2" does not exist', 'repl_ml.nodes');
fails($node{n1}, q(SELECT repl_ml.rename_node('n1', 'n3')), '42710', 'node name "n3" is already in use', 'another name');
fails($node{n1}, q(SELECT repl_ml.rename_node('n1', '')), '22023', 'invalid node name', '1 to 63 bytes');
fails($node{n1}, q(SELECT repl_ml.rename_node('n1', E'a\nb')), '22023', 'invalid node name', '1 to 63 bytes');
fails($node{n1}, q(SELECT repl_ml.rename_node('n1', NULL)), '22004', 'null is not allowed', '.');
app($node{n2}, q(SELECT repl_ml.rename_node('paris', 'n2')));

# one that is down
$node{n3}->stop;
app($node{n1}, q(SELECT repl_ml.rename_node('n3', 'rome')));
$node{n3}->start;
names_are('n1 n2 rome', @node{qw(n1 n2 n3)});
app($node{n3}, q(SELECT repl_ml.rename_node('rome', 'n3')));
names_are('n1 n2 n3', @node{qw(n1 n2 n3)});

# on two members at once: one name for two nodes
app($node{n1}, q(SELECT repl_ml.pause_apply('n2'), repl_ml.pause_apply('n3')));
app($node{n2}, q(SELECT repl_ml.pause_apply('n1'), repl_ml.pause_apply('n3')));
app($node{n1}, q(SELECT repl_ml.rename_node('n2', 'oslo')));
app($node{n2}, q(SELECT repl_ml.rename_node('n3', 'oslo')));
app($node{n1}, q(SELECT repl_ml.resume_apply('oslo'), repl_ml.resume_apply('n3')));
app($node{n2}, q(SELECT repl_ml.resume_apply('n1'), repl_ml.resume_apply('oslo')));
names_are('n1 oslo oslo_3', @node{qw(n1 n2 n3)});
app($node{n1}, q(SELECT repl_ml.rename_node('oslo', 'n2'), repl_ml.rename_node('oslo_3', 'n3')));
names_are('n1 n2 n3', @node{qw(n1 n2 n3)});
all_write('named again', @node{qw(n1 n2 n3)});

# ---- n3 is dead: its old name ----

$node{n3}->stop('immediate');
# whoever renames it, or gives it an address, at the same time, does not bring it back
app($node{n1}, q(SELECT repl_ml.pause_apply('n2')));
app($node{n2}, q(SELECT repl_ml.pause_apply('n1')));
$node{new} = app_node('n3b');
$database{n3b} = 'app';
sql($node{new}, 'CREATE DATABASE spare');
my $first = 1;
follow('dead', \%node, sub {
	return if !$first;
	undef $first;
	poll_app($node{n1}, 'SELECT count(*) = 1 FROM repl_ml.dropped_node');
	app($node{n2}, q(SELECT repl_ml.rename_node('n3', 'zombie')));
	app($node{n1}, q(SELECT repl_ml.resume_apply('n2')));
	app($node{n2}, q(SELECT repl_ml.resume_apply('n1')));
	poll_app($_, q(SELECT node_name || state = 'zombiedropped' FROM repl_ml.nodes WHERE node_id = 3)) foreach @left;
	# roles as on the others, which come with the extension
	$node{new}->safe_psql('spare', 'CREATE EXTENSION repl_ml; CREATE ROLE replicator LOGIN REPLICATION IN ROLE repl_ml_replication, pg_read_all_data');
});
names_are('n1 n2 n3', @left, $node{new});
all_write('replaced', @left, $node{new});
is(app($node{new}, 'SELECT count(*) FROM t'), app($node{n1}, 'SELECT count(*) FROM t'), 'the new one has all rows');

# ---- another one, under a new name first ----

$node{new}->stop('immediate');
$node{new} = app_node('n4');
sql($node{new}, 'CREATE DATABASE spare');
$node{new}->safe_psql('spare', 'CREATE EXTENSION repl_ml; CREATE ROLE replicator LOGIN REPLICATION IN ROLE repl_ml_replication, pg_read_all_data');
follow('replaced', \%node);
names_are('n1 n2 n3', @left, $node{new});
all_write('replaced again', @left, $node{new});

# ---- another address, password and database of n2 ----

is(follow('address', \%node), '', 'an address');
$node{n2}->append_conf('pg_hba.conf', '');
my $hba = $node{n2}->data_dir . '/pg_hba.conf';
my $lines = PostgreSQL::Test::Utils::slurp_file($hba);
open my $file, '>', $hba or die $!;
print $file "local all replicator scram-sha-256\n$lines";
close $file;
$node{n2}->reload;
is(follow('password', \%node), '', 'a password');
# all links to n2 are made anew
poll_app($node{n2}, q(SELECT bool_and(m.dsn LIKE '%password=new%') FROM repl_ml.member m WHERE node_name = 'n2'));
poll_app($node{new}, q(SELECT bool_and(m.dsn LIKE '%password=new%') FROM repl_ml.member m WHERE node_name = 'n2'));
app($node{n2}, 'SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots');
all_write('another password', @left, $node{new});

# without the line, as the recipe for the database has an address without a password
open $file, '>', $hba or die $!;
print $file $lines;
close $file;
$node{n2}->reload;
is(follow('database', \%node, sub { $database{n2} = 'shop' }), '', 'a database');
is(app($node{n1}, q(SELECT dbname FROM repl_ml.nodes WHERE node_name = 'n2')), 'shop', 'the name is shown');
all_write('another database', @left, $node{new});
all_followed();
done_testing();
