# A link whose slot cannot be read any more is made anew by itself, whatever the reason: the WAL that it needs is gone or damaged, or
# the slot is another one than we made. What differs is copied, nothing else ends, and stat_apply and the log say what happened.
#
# Seen failing before slots were looked at so (resetwal, two segments, held) and streams counted (damaged): the link ended again
# and again, until somebody dropped the slot.
use strict;
use warnings;
use Membership;
use ReplMl;
use PostgreSQL::Test::Utils;
use Test::More;

my ($n1, $n2) = my @nodes = new_group(2, q(
CREATE TABLE t (id int PRIMARY KEY, v text);
INSERT INTO t SELECT g, 'old' FROM generate_series(1, 20) g;
SELECT repl_ml.add_table('t')));
my $slot = sql($n1, 'SELECT repl_ml.link_name(2)');
my $id = 100;

# Segments of n1's WAL by name, from that of the slot's restart_lsn to the one before the last.
sub segments
{
	my $row = sql($n1, "SELECT pg_walfile_name(restart_lsn) || ' ' || pg_walfile_name(pg_current_wal_lsn()) FROM pg_replication_slots WHERE slot_name = '$slot'");
	my ($first, $last) = split / /, $row;
	my $directory = $n1->data_dir . '/pg_wal';
	opendir my $handle, $directory or die $!;
	return map { "$directory/$_" } sort grep { /^[0-9A-F]{24}$/ && $_ ge $first && $_ lt $last } readdir $handle;
}

# Does something with what n2 has not read of n1, and says what becomes of it.
sub ended
{
	my ($name, $fault, $damage) = @_;
	my $log = -s $n2->logfile;
	$id += 10;
	$n2->stop;
	foreach my $step (1 .. 3)
	{
		sql($n1, "INSERT INTO t VALUES ($id + $step, '$name'); UPDATE t SET v = '$name' WHERE id = $step; SELECT pg_switch_wal();");
	}
	sql($n1, "DELETE FROM t WHERE id = $id - 9; CHECKPOINT");
	$damage->();
	sql($n1, "INSERT INTO t VALUES ($id + 4, '$name')");
	$n2->start;
	poll_until($n2, "SELECT count(*) = 4 FROM t WHERE id > $id");
	poll_until($n2, "SELECT bool_and(state = 'copied') FROM repl_ml.table_sync");
	poll_until($_, "SELECT count(*) = 1 AND bool_and(state = 'streaming') FROM repl_ml.stat_apply") foreach @nodes;
	sql($n1, "INSERT INTO t VALUES ($id + 5, '$name')");
	sql($n2, "INSERT INTO t VALUES ($id + 6, '$name')");
	wait_converged(\@nodes, 't');
	like(slurp_file($n2->logfile, $log), qr/slot "$slot" on node "n1" is lost and is made anew\n.*DETAIL:  $fault/, "$name: it is said");
	like(sql($n2, 'SELECT last_error_message FROM repl_ml.stat_apply'), qr/is lost and is made anew: $fault/, "$name: stat_apply, too");
	return;
}

sub while_stopped
{
	my ($do) = @_;
	return sub { my @segments = segments(); $n1->stop; $do->(@segments); $n1->start; return; };
}
sub overwrite
{
	my ($file) = @_;
	open my $handle, '+<', $file or die $!;
	print $handle "\0" x 65536;
	close $handle;
	return;
}

# What a server can see of its slot it says itself.
sub is_seen
{
	my ($fault) = @_;
	like(sql($n1, q(SELECT status || ' ' || detail FROM repl_ml.health WHERE check_name = 'slots')), qr/^error .*$fault/, 'health of n1 says so');
	return;
}
sub make_slot
{
	my ($sql) = @_;
	return sub { sql($n1, "SELECT pg_drop_replication_slot('$slot'); SELECT $sql"); is_seen('for something else'); return; };
}

ended('dropped', 'There is none', sub { sql($n1, "SELECT pg_drop_replication_slot('$slot')"); is_seen('has no slot here') });
ended('physical', 'Somebody has made it', make_slot("pg_create_physical_replication_slot('$slot', true)"));
ended('two phase', 'Somebody has made it', make_slot("pg_create_logical_replication_slot('$slot', 'repl_ml', false, true)"));
my $holder = $n1->background_psql('postgres', on_error_stop => 0);
ended('held', 'There is none', sub
{
	sql($n1, "SELECT pg_drop_replication_slot('$slot')");
	$holder->query_safe("SELECT pg_create_logical_replication_slot('$slot', 'repl_ml', true)");
});
eval { $holder->quit };
ended('resetwal', 'Of the WAL from .* a part is gone', sub { while_stopped(sub { system_or_bail('pg_resetwal', '-f', $n1->data_dir) })->(); is_seen('a part is gone') });
ended('first segment', 'Of the WAL from .* a part is gone', while_stopped(sub { unlink $_[0] or die }));
ended('segment between', 'Of the WAL from .* a part is gone', sub { my @segments = segments(); unlink $segments[-1] or die });
ended('damaged', 'Its stream has ended 5 times with SQLSTATE XX', sub { overwrite((segments())[-1]) });
is(sql($_, q(SELECT string_agg(check_name || ': ' || detail, ' ') FROM repl_ml.health WHERE status = 'error')), '', 'health of ' . $_->name) foreach @nodes;
is(sql($_, 'SELECT string_agg(status, $$ $$) FROM repl_ml.verify_all()'), 'consistent', 'nothing differs: ' . $_->name) foreach @nodes;

done_testing();
