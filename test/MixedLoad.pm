# Helper of the load tests: MLflow's and Feast's schemas on three nodes, test/clients/mixed_writes.py
# on all of them, and what must hold when it is over.
package MixedLoad;

use strict;
use warnings;
use Exporter 'import';
use File::Basename qw(dirname);
use IPC::Run;
use JSON::PP;
use ReplMl;
use Test::More;

our @EXPORT = qw(load_group start_load finish_load wait_for_writes check_load);

my $testdir = dirname(__FILE__);

# Three nodes with both schemas enrolled and the rows all clients share.
sub load_group
{
	my $schema = join '', map { slurp("$testdir/sql/$_.sql") } qw(mlflow feast);

	my @nodes = new_group(3, $schema . <<'SQL');
SELECT repl_ml.add_all_tables();
INSERT INTO experiments (experiment_id, name) VALUES (0, 'Default');
INSERT INTO runs (run_uuid, experiment_id) SELECT 'shared' || g, 0 FROM generate_series(0, 4) g;
INSERT INTO registered_models (name) SELECT 'model' || g FROM generate_series(0, 4) g;
SQL

	# tombstones are removed every ten heartbeats: often enough to be part of the test
	foreach my $node (@nodes)
	{
		sql($node, "ALTER SYSTEM SET repl_ml.heartbeat_interval = '200ms'");
		sql($node, 'SELECT pg_reload_conf()');
	}
	return @nodes;
}

sub slurp
{
	my ($path) = @_;
	open my $file, '<', $path or die "$path: $!";
	local $/;
	return scalar <$file>;
}

# Six clients, two a node, in the background.
sub start_load
{
	my ($seconds, $seed, @nodes) = @_;
	my %load = (out => '', err => '');

	$load{harness} = IPC::Run::start(
		[ '/usr/bin/python3', "$testdir/clients/mixed_writes.py", $seconds, $seed, 6, map { dsn($_) } @nodes ],
		'>', \$load{out}, '2>', \$load{err});
	return \%load;
}

# What the clients say at their end.
sub finish_load
{
	my ($load) = @_;
	$load->{harness}->finish;
	is($load->{err}, '', 'the clients ran without an error of their own');
	return decode_json($load->{out});
}

# Waits until the clients have gone on for about so many seconds, by the times of the rows they write.
sub wait_for_writes
{
	my ($node, $seconds) = @_;
	my $start = sql($node, 'SELECT pg_catalog.clock_timestamp()');
	poll_until($node, "SELECT max(created_ts) > '$start'::timestamptz + '$seconds s' FROM demo_driver_hourly_stats");
}

# Equal tables, nothing parked, true conflicts only, and all acknowledged rows of single writers.
sub check_load
{
	my ($nodes, $result) = @_;
	my @tables = split /\n/, sql($nodes->[0], 'SELECT relation FROM repl_ml.tables');
	my %keys;

	wait_converged($nodes, @tables);
	push @{ $keys{"$_->[0].$_->[1]"} }, $_->[2] foreach @{ $result->{keys} };
	foreach my $node (@$nodes)
	{
		my $name = $node->name;

		is(sql($node, 'SELECT count(*) FROM repl_ml.parked_changes'), '0', "$name: nothing is parked");
		is(sql($node, 'SELECT count(*) FROM repl_ml.conflicts WHERE NOT repl_ml.concurrent(winner_clock, loser_clock)'),
			'0', "$name: every conflict is between concurrent versions");
		foreach my $column (sort keys %keys)
		{
			my ($table, $key) = split /\./, $column;
			my $list = join ',', map { "'$_'" } @{ $keys{$column} };

			is(sql($node, "SELECT count(*) FROM unnest(ARRAY[$list]) k WHERE NOT EXISTS (SELECT FROM $table WHERE $key = k)"),
				'0', "$name: all " . scalar(@{ $keys{$column} }) . " acknowledged rows of $column are there");
		}
	}
}

1;
