# Helper of the TAP tests: groups of real servers, convergence, conflicts, clear failures.
# On PostgreSQL::Test::Cluster of 15, 17 and 18. Nodes are called n1, n2, ... in Perl and in repl_ml.
package ReplMl;

use strict;
use warnings;
use Exporter 'import';
use File::Basename qw(dirname);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Session;
use Test::More;

our @EXPORT = qw(
  new_node new_group join_node dsn sql literal
  wait_converged wait_forgotten table_state is_equal_everywhere conflict_rows
  poll_until psql_fails cut heal);

my $testdir = dirname(__FILE__);

# The settings of a throw-away server, as the other kinds of test use them.
sub server_conf
{
	chomp(my $bindir = `pg_config --bindir`);
	my $conf = `'$testdir/server_conf' '$bindir/postgres'`;
	die "test/server_conf failed" if $? != 0;
	return $conf;
}

# Fills a new server's data directory. What initdb makes for a file's first, second, ... server is kept beside the tests'
# data, and later files take copies of it: initdb is most of the work of a short test. Each server of a file has another
# one, as no two may have the same system identifier.
my $initialized = 0;

sub initialize
{
	my ($node) = @_;
	my $kept = "$PostgreSQL::Test::Utils::tmp_check/initialized_" . ++$initialized;
	my $run = \&PostgreSQL::Test::Utils::system_or_bail;

	no warnings 'redefine';
	local *PostgreSQL::Test::Utils::system_or_bail = sub {
		return $run->(@_) if $_[0] ne 'initdb';
		my @copy = qw(cp -a --sparse=always);
		return $run->(@copy, $kept, $node->data_dir) if -d $kept;
		$run->(@_);
		# of files that get here at once one has its copy kept
		$run->(@copy, $node->data_dir, "$kept.$$");
		rename "$kept.$$", $kept or $run->('rm', '-r', "$kept.$$");
	};
	$node->init;
}

# A running server with repl_ml loaded and nothing created. Extra lines of postgresql.conf may follow.
sub new_node
{
	my ($name, @conf) = @_;
	my $node = PostgreSQL::Test::Cluster->new($name);

	initialize($node);
	$node->append_conf('postgresql.conf', join("\n", server_conf(), @conf) . "\n");
	$node->start;
	return $node;
}

# How the other nodes reach this one.
sub dsn { my ($node) = @_; return $node->connstr('postgres'); }

# Runs SQL that has to succeed and returns what psql prints. Plain questions go to a session that stays; any other
# statement is the whole of a session, and after those that only new sessions notice there is no old one.
sub sql
{
	my ($node, $sql) = @_;

	if (Session::fits($sql) && $sql !~ /repl_ml\.\w+\(/)
	{
		my $answer = Session::ask($node, $sql, $PostgreSQL::Test::Utils::timeout_default);
		return $answer if defined $answer;
	}
	Session::finish($node->connstr('postgres')) if $sql =~ /\b(?:DATABASE|ROLE|USER)\b/i;
	return $node->safe_psql('postgres', $sql);
}

# Text as an SQL literal.
sub literal
{
	my ($text) = @_;
	$text =~ s/'/''/g;
	return "'$text'";
}

# A group of n nodes, n1 .. nN, all of them ready. The SQL runs on n1 once the group
# exists and before the others join, so they have to copy what it makes.
sub new_group
{
	my ($n, $sql) = @_;
	my @nodes = map { new_node("n$_") } 1 .. $n;

	sql($nodes[0], 'CREATE EXTENSION repl_ml');
	sql($nodes[0], "SELECT repl_ml.create_group('g', 'n1', " . literal(dsn($nodes[0])) . ')');
	sql($nodes[0], $sql) if defined $sql;
	join_node($_, $nodes[0]) foreach @nodes[ 1 .. $#nodes ];
	return @nodes;
}

# Joins a server to the group of another, and waits until all members call it ready.
sub join_node
{
	my ($node, $member) = @_;
	my ($name, $own, $to) = map { literal($_) } ($node->name, dsn($node), dsn($member));

	sql($node, 'CREATE EXTENSION IF NOT EXISTS repl_ml');
	sql($node, "SELECT repl_ml.join_group($name, $own, $to)");
	poll_until($_,
		"SELECT count(*) = 1 FROM repl_ml.nodes WHERE node_name = $name AND state = 'ready'")
	  foreach ($node, $member);
}

# Waits until the query gives the result (default: t); dies after the usual timeout,
# PG_TEST_TIMEOUT_DEFAULT, with the last result in the log.
sub poll_until
{
	my ($node, $sql, $expected) = @_;
	my $until = time + $PostgreSQL::Test::Utils::timeout_default;
	my $found;

	return patiently($node, $sql, $expected) unless Session::fits($sql);
	$expected = 't' unless defined $expected;
	while (time < $until)
	{
		$found = Session::ask($node, $sql, $until - time);
		return if defined $found && $found eq $expected;
		select undef, undef, undef, 0.05;
	}
	diag($node->name . ' said last: ' . (defined $found ? $found : 'nothing'));
	die $node->name . ": timed out waiting for: $sql";
}

# The same with a psql for each try, of a statement that is no plain question.
sub patiently
{
	my ($node, $sql, $expected) = @_;
	my $found;

	# psql ends without reading its input where no server is, as after a crash: IPC::Run may die of that
	foreach my $try (1 .. 20)
	{
		last if eval { $found = $node->poll_query_until('postgres', $sql, $expected); 1 };
		die $@ if $@ !~ /Broken pipe/;
	}
	$found or die $node->name . ": timed out waiting for: $sql";
}

# Waits until every node has everything that was committed on any of them before the call, then
# tests that the given tables are equal. All members must be given, and be up.
sub wait_converged
{
	my ($nodes, @tables) = @_;
	my $peers = @$nodes - 1;

	# first all positions, so that nothing committed on a later node meanwhile is waited for; a slot goes on only with what has
	# something for its peer, which tells how far it is with everything
	my @lsns = map { sql($_, 'SELECT pg_current_wal_flush_lsn()') } @$nodes;
	foreach my $i (0 .. $#$nodes)
	{
		poll_until($nodes->[$i],
				"SELECT count(*) >= $peers AND coalesce(bool_and(greatest(confirmed_flush_lsn, CASE WHEN replay_lsn <= write_lsn THEN replay_lsn END) >= '$lsns[$i]'), true)"
			  . " FROM pg_catalog.pg_replication_slots s LEFT JOIN pg_catalog.pg_stat_replication w ON w.pid = s.active_pid WHERE slot_name LIKE 'repl\\_ml\\_%'");
	}
	# large transactions are applied beside, and what met their locks after them
	poll_until($_, 'SELECT NOT EXISTS (SELECT FROM repl_ml.parked_changes WHERE put_aside)') foreach @$nodes;
	is_equal_everywhere($nodes, $_) foreach @tables;
}

# Waits until these nodes have forgotten all deletions, which they may when heartbeats have said that all have had them.
sub wait_forgotten
{
	my (@nodes) = @_;

	foreach my $node (@nodes)
	{
		sql($node, $_) foreach q(ALTER SYSTEM SET repl_ml.heartbeat_interval = '100ms'), 'SELECT pg_reload_conf()';
	}
	poll_until($_, 'SELECT count(*) = 0 FROM repl_ml.tombstone') foreach @nodes;
	foreach my $node (@nodes)
	{
		sql($node, $_) foreach 'ALTER SYSTEM RESET repl_ml.heartbeat_interval', 'SELECT pg_reload_conf()';
	}
	return;
}

# All rows of a table, clocks included, in an order that depends on nothing but their content.
sub table_state
{
	my ($node, $table) = @_;
	my $row = 'pg_catalog.row_to_json(t)::text';
	return sql($node, qq(SELECT $row FROM $table t ORDER BY $row COLLATE "C"));
}

# Tests that a table has the same rows and clocks on all nodes, and clocks at all.
sub is_equal_everywhere
{
	my ($nodes, $table, $name) = @_;
	my ($first, @others) = @$nodes;
	my $state = table_state($first, $table);

	$name ||= "$table is equal";
	is(sql($first, "SELECT count(*) FROM $table WHERE __repl_clock IS NULL"),
		'0', "$name: every row has a clock");
	is(table_state($_, $table), $state, "$name: " . $_->name . ' as ' . $first->name)
	  foreach @others;
}

# A node's resolved conflicts, one line each: table|key|type|winner|loser|lost columns.
sub conflict_rows
{
	my ($node) = @_;
	return sql($node, <<'SQL');
SELECT table_name, key, conflict_type, winner_node, loser_node, lost_columns
FROM repl_ml.conflicts ORDER BY table_name, length(key::text), key, conflict_id
SQL
}

# Tests that SQL fails with this SQLSTATE, message and, where given, hint (regular expressions).
sub psql_fails
{
	my ($node, $sql, $sqlstate, $message, $hint) = @_;
	my ($status, undef, $stderr) =
	  $node->psql('postgres', $sql, extra_params => [ '-v', 'VERBOSITY=verbose' ]);
	my ($short) = split /\n/, $sql;

	isnt($status, 0, "fails: $short");
	like($stderr, qr/(?:ERROR|FATAL):  (?:$sqlstate): .*(?:$message)/, "its error: $short");
	like($stderr, qr/^HINT:  .*(?:$hint)/m, "its hint: $short") if defined $hint;
}

# Stops the apply of the peer's changes on this node, and starts it again.
sub cut
{
	my ($node, $peer) = @_;
	sql($node, 'SELECT repl_ml.pause_apply(' . literal($peer->name) . ')');
}

sub heal
{
	my ($node, $peer) = @_;
	sql($node, 'SELECT repl_ml.resume_apply(' . literal($peer->name) . ')');
}

1;
