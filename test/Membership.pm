# Helper of the membership tests: writers in the background, crashes, what a node leaves behind.
package Membership;

use strict;
use warnings;
use Exporter 'import';
use File::Basename qw(basename);
use IPC::Run;
use PostgreSQL::Test::Utils;
use ReplMl;
use Test::More;

our @EXPORT = qw(call start_writer stop_writer crash_and_restart kill_server no_errors left_behind is_clean save_directory restore_in_place);

# A call of one of repl_ml's functions with these texts as arguments.
sub call
{
	my ($function, @arguments) = @_;
	return "SELECT repl_ml.$function(" . join(', ', map { literal($_) } @arguments) . ')';
}

# Runs a pgbench script on a node, again and again, until stop_writer (or a minute has passed).
sub start_writer
{
	my ($node, $script) = @_;
	my $file = PostgreSQL::Test::Utils::tempdir() . '/writer.sql';
	my %writer = (node => $node, out => '');

	PostgreSQL::Test::Utils::append_to_file($file, $script);
	$writer{run} = IPC::Run::start(
		[ 'pgbench', '-n', '-T', 60, '-R', 100, '-f', $file, '-h', $node->host, '-p', $node->port, 'postgres' ],
		'>&', \$writer{out});
	return \%writer;
}

# Ends a writer; tests that none of its transactions failed, unless the server went away under it.
sub stop_writer
{
	my ($writer, $may_fail) = @_;

	# not INT, which a run in the background of a shell ignores
	$writer->{run}->signal('TERM');
	$writer->{run}->finish;
	unlike($writer->{out}, qr/error|aborted/i, 'no write failed on ' . $writer->{node}->name)
	  unless $may_fail;
}

# Ends a server as a power cut does, and starts it again: 'immediate' is a signal to the postmaster,
# 'kill9' says nothing to anybody, so its children have to notice.
sub crash_and_restart
{
	my ($node, $how) = @_;

	if ($how eq 'kill9')
	{
		kill_server($node);
	}
	else
	{
		$node->stop('immediate');
	}
	$node->start;
}

# Kills a server's postmaster, waits until all its children have noticed and ended, and makes it fit for a start.
sub kill_server
{
	my ($node) = @_;
	my $postmaster = $node->{_pid};
	my @processes = ($postmaster, split ' ', `ps -o pid= --ppid $postmaster`);
	my $rounds = 20 * $PostgreSQL::Test::Utils::timeout_default;

	$node->kill9;
	select undef, undef, undef, 0.05 while grep({ is_running($_) } @processes) && $rounds-- > 0;
	die $node->name . ': processes do not notice that their server was killed: ' . join(' ', grep { is_running($_) } @processes)
	  if $rounds <= 0;

	# where nobody asks for its exit status the postmaster stays a zombie, which would pass for a running one
	unlink $node->data_dir . '/postmaster.pid', $node->host . '/.s.PGSQL.' . $node->port . '.lock';
	return;
}

# Is there such a process, and is it not just a zombie?
sub is_running
{
	my ($pid) = @_;
	open my $file, '<', "/proc/$pid/stat" or return 0;
	my $stat = <$file> // '';
	return $stat =~ /\) [^ZX] /;
}

# Tests that nothing is parked for good, and that every apply worker streams: what comes before its table is here is parked
# until then.
sub no_errors
{
	my ($nodes) = @_;
	foreach my $node (@$nodes)
	{
		eval { poll_until($node, 'SELECT count(*) = 0 FROM repl_ml.parked_changes') };
		is(sql($node, 'SELECT table_name, action, message FROM repl_ml.parked_changes'),
			'', 'nothing parked on ' . $node->name);
		poll_until($node, "SELECT bool_and(state = 'streaming') FROM repl_ml.stat_apply");
	}
}

# What a node keeps for the node with this id: slots, origins, catalog rows, tables due for a copy.
sub left_behind
{
	my ($node, $id) = @_;
	return sql($node, <<"SQL");
SELECT 'slot ' || slot_name FROM pg_catalog.pg_replication_slots WHERE slot_name LIKE 'repl\\_ml\\_%\\_$id'
UNION ALL SELECT 'origin ' || roname FROM pg_catalog.pg_replication_origin WHERE roname LIKE 'repl\\_ml\\_%\\_$id'
UNION ALL SELECT 'member ' || state FROM repl_ml.member WHERE node_id = $id AND state <> 'dropped'
UNION ALL SELECT 'copy of ' || table_name FROM repl_ml.table_sync WHERE node_id = $id
SQL
}

# Tests that a database has nothing of a group: no identity, links, publication, columns, triggers, rows.
sub is_clean
{
	my ($node, $name) = @_;
	is(sql($node, <<'SQL'), '', $name);
SELECT 'slot ' || slot_name FROM pg_catalog.pg_replication_slots WHERE plugin = 'repl_ml'
UNION ALL SELECT 'origin ' || roname FROM pg_catalog.pg_replication_origin
UNION ALL SELECT 'publication ' || pubname FROM pg_catalog.pg_publication
UNION ALL SELECT 'column of ' || attrelid::regclass FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_class c ON c.oid = a.attrelid
           WHERE attname = '__repl_clock' AND NOT attisdropped AND c.relnamespace <> 'repl_ml'::regnamespace
UNION ALL SELECT 'trigger ' || tgname FROM pg_catalog.pg_trigger t JOIN pg_catalog.pg_class c ON c.oid = t.tgrelid
           WHERE tgname LIKE '%repl\_ml%' AND c.relnamespace <> 'repl_ml'::regnamespace
UNION ALL SELECT 'identity' FROM repl_ml.local_node
UNION ALL SELECT 'member' FROM repl_ml.member
UNION ALL SELECT 'table' FROM repl_ml.replicated_table
UNION ALL SELECT 'heartbeat' FROM repl_ml.heartbeat
UNION ALL SELECT 'tombstone' FROM repl_ml.tombstone
UNION ALL SELECT 'copy' FROM repl_ml.table_sync
SQL
}

# Copies the data directory of a stopped node; returns the copy.
sub save_directory
{
	my ($node) = @_;
	my $copy = PostgreSQL::Test::Utils::tempdir() . '/saved';
	system('cp', '-a', '-T', $node->data_dir, $copy) == 0 or die 'cp failed';
	return $copy;
}

# Overwrites the files of a directory with those of a backup, so that they keep their inodes, and
# removes what the backup does not have.
sub restore_in_place
{
	my ($from, $to) = @_;
	my @here = split /\n/, `cd '$to' && find . -depth`;
	my %there = map { $_ => 1 } split /\n/, `cd '$from' && find .`;

	foreach my $file (map { "$to/$_" } grep { !$there{$_} } @here)
	{
		-d $file ? rmdir $file : unlink $file;
	}
	# of a file that is there cp writes the contents
	system('cp', '-R', "$from/.", $to) == 0 or die 'cp failed';
	return;
}

1;
