# Helper of the tests 100 to 105: partitions of a whole group, what each writer's clock was, and rows and
# conflicts stated exactly for every node.
package Situations;

use strict;
use warnings;
use Exporter 'import';
use ReplMl;
use Test::More;

our @EXPORT = qw(
  cut_all heal_all let_in written deleted merged
  rows_are clock_is tombstone_is conflict conflicts_are nothing_parked no_worker_failed can_skew plant);

# Every node by itself, and together again.
sub cut_all  { each_node('pause_apply',  @_); return; }
sub heal_all { each_node('resume_apply', @_); return; }

sub each_node
{
	my ($function, @nodes) = @_;
	foreach my $to (@nodes)
	{
		my $peers = join ',', map { $_->name } grep { $_ != $to } @nodes;
		sql($to, "SELECT repl_ml.$function(peer) FROM unnest('{$peers}'::name[]) peer");
	}
	return;
}

# Heals one link and waits until everything the peer has written so far has come over it.
sub let_in
{
	my ($node, $peer) = @_;
	my $lsn = sql($peer, 'SELECT pg_current_wal_flush_lsn()');
	heal($node, $peer);
	poll_until($peer, "SELECT greatest(confirmed_flush_lsn, CASE WHEN replay_lsn <= write_lsn THEN replay_lsn END) >= '$lsn'"
		  . ' FROM pg_catalog.pg_replication_slots s LEFT JOIN pg_catalog.pg_stat_replication w ON w.pid = s.active_pid'
		  . " WHERE slot_name = (SELECT repl_ml.link_name(node_id) FROM repl_ml.member WHERE node_name = '" . $node->name . "')");
	return;
}

# Writes one row and returns the clock it was given.
sub written
{
	my ($node, $sql) = @_;
	my $clock = sql($node, "$sql RETURNING __repl_clock");

	like($clock, qr/^\{[0-9:,]+(?:;[^\n]*)?\}$/, $node->name . ": $sql");
	return $clock;
}

# Runs SQL that deletes the row and returns the clock of that deletion.
sub deleted
{
	my ($node, $table, $id, $sql) = @_;
	return sql($node, ($sql || "DELETE FROM $table WHERE id = $id") . '; ' . tombstone($table, $id));
}

sub tombstone
{
	my ($table, $id) = @_;
	return "SELECT repl_ml.merge_agg(__repl_clock) FROM repl_ml.tombstone WHERE table_name = '$table' AND key = '{$id}'";
}

# The merge of clocks, computed here and not by what is tested. Marks (after a semicolon) are left out.
sub merged
{
	my %merged;
	foreach my $clock (@_)
	{
		my ($entries) = $clock =~ /^\{([0-9:,]*)/ or die "no clock: $clock";
		foreach (split /,/, $entries)
		{
			my ($node, $counter) = split /:/;
			$merged{$node} = $counter if $counter > ($merged{$node} || 0);
		}
	}
	return '{' . join(',', map { "$_:$merged{$_}" } sort { $a <=> $b } keys %merged) . '}';
}

# Tests that a query has this result on every node.
sub rows_are
{
	my ($nodes, $query, $expected, $name) = @_;
	is(sql($_, $query), $expected, "$name: " . $_->name) foreach @$nodes;
	return;
}

# Tests a row's clock on every node: exactly the merge of these.
sub clock_is
{
	my ($nodes, $table, $id, $name, @clocks) = @_;
	rows_are($nodes, "SELECT repl_ml.merge(__repl_clock, __repl_clock) FROM $table WHERE id = $id", merged(@clocks), "$name, the clock");
	return;
}

# Tests that there is no row, and the clock of its deletion, on every node.
sub tombstone_is
{
	my ($nodes, $table, $id, $name, @clocks) = @_;
	rows_are($nodes, "SELECT count(*) FROM $table WHERE id = $id", '0', "$name, no row");
	rows_are($nodes, tombstone($table, $id), merged(@clocks), "$name, the tombstone");
	return;
}

# A conflict as conflicts_are wants it. Winner and loser are [node's name, clock, row as jsonb].
sub conflict
{
	my ($table, $id, $type, $resolution, $winner, $loser, $lost) = @_;
	return join('|', $table, "{$id}", $type, $resolution, $winner->[0], $loser->[0], merged($winner->[1]), merged($loser->[1]),
		merged($winner->[1], $loser->[1]), $lost, $winner->[2] // '', $loser->[2] // '');
}

# Tests that the conflicts of a table are exactly these (in the order of keys, then of losers) on every
# node, under the same ids.
sub conflicts_are
{
	my ($nodes, $table, $name, @expected) = @_;
	my $columns = "table_name, key, conflict_type, resolution, winner_node, loser_node,"
	  . ' repl_ml.merge(winner_clock, winner_clock), repl_ml.merge(loser_clock, loser_clock), repl_ml.merge(result_clock, result_clock),'
	  . ' lost_columns, winner_row, loser_row';
	my $from = "FROM repl_ml.conflicts WHERE table_name = '$table' ORDER BY length(key::text), key, loser_node, loser_clock::text";
	my $ids = sql($nodes->[0], "SELECT conflict_id $from");

	rows_are($nodes, "SELECT $columns $from", join("\n", @expected), "$name, the conflicts");
	is(scalar(split /\n/, $ids), scalar(@expected), "$name: one id a conflict");
	rows_are($nodes, "SELECT conflict_id $from", $ids, "$name, the ids as n1's");
	return;
}

# libfaketime (see test/install_deps.sh) reads a node's skew from a file, at each look at the clock.
my ($library) = glob '/usr/lib/*/faketime/libfaketimeMT.so.1';
sub can_skew { return defined $library; }

# The wall clock of a node that restart_skewed has started is wrong by that much from now on: '-10s'.
sub set_skew
{
	my ($node, $skew) = @_;
	my $name = $node->data_dir . '.skew';

	open(my $file, '>', "$name.new") or die "$name.new: $!";
	print $file "$skew\n";
	close($file);
	rename("$name.new", $name) or die "$name: $!";
	return;
}

# Without a mode the node has been stopped before.
sub restart_skewed
{
	my ($node, $mode) = @_;
	local $ENV{LD_PRELOAD} = $library;
	local $ENV{FAKETIME_TIMESTAMP_FILE} = $node->data_dir . '.skew';
	local $ENV{FAKETIME_NO_CACHE} = 1;
	local $ENV{FAKETIME_DONT_RESET} = 1;
	local $ENV{FAKETIME_DONT_FAKE_MONOTONIC} = 1;
	$node->stop($mode) if defined $mode;
	$node->start;
	return;
}

# Tests that nothing is parked anywhere.
sub nothing_parked
{
	my ($nodes) = @_;
	rows_are($nodes, 'SELECT table_name, action, sqlstate, message FROM repl_ml.parked_changes', '', 'nothing is parked');
	return;
}

# Tests that no worker had to start again: only where no server was.
sub no_worker_failed
{
	my ($nodes) = @_;
	rows_are($nodes, 'SELECT sum(errors), string_agg(last_error_message, $$;$$) FROM repl_ml.stat_apply', '0|', 'no worker failed');
	return;
}

# Changes rows of one node behind everybody's back: without triggers, and under an origin whose changes are sent to nobody.
sub plant
{
	my ($node, $table, $sql) = @_;
	my @triggers = split /\n/, sql($node, "SELECT DISTINCT tgname FROM pg_trigger WHERE tgrelid = '$table'::regclass AND NOT tgisinternal");

	sql($node, q(SET allow_system_table_mods = on; INSERT INTO pg_replication_origin SELECT 65000, 'plants' WHERE NOT EXISTS (SELECT FROM pg_replication_origin WHERE roname = 'plants')));
	sql($node, join ';', 'SET repl_ml.guard_off = on', q(SELECT pg_replication_origin_session_setup('plants')),
		(map { "ALTER TABLE $table DISABLE TRIGGER $_" } @triggers), $sql, (map { "ALTER TABLE $table ENABLE ALWAYS TRIGGER $_" } @triggers));
	return;
}

1;
