# MLflow's and Feast's own tables are replicated as they are, and what their clients do on three nodes
# is the same on all of them in the end, without a conflict where they hand their objects over.
use strict;
use warnings;
use lib 'test';
use FindBin;
use IPC::Run;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use ReplMl;
use Test::More;

my $test = "$FindBin::Bin/..";
my ($n1) = my @nodes = new_group(1, join '', map { slurp_file("$test/sql/$_.sql") } qw(mlflow feast));

is(sql($n1, 'SELECT status, count(*) FROM repl_ml.add_all_tables() GROUP BY 1 ORDER BY 1'), "added|36\nskipped|1", 'tables that are replicated');
is(sql($n1, "SELECT relation, detail, hint FROM repl_ml.add_all_tables() WHERE status <> 'already replicated'"),
	'feast_driver_hourly_stats|table public.feast_driver_hourly_stats has no primary key'
	  . '|Run ALTER TABLE public.feast_driver_hourly_stats ADD PRIMARY KEY (...).', 'the one that is not, and why');
foreach my $name (qw(n2 n3))
{
	push @nodes, new_node($name);
	join_node($nodes[-1], $n1);
}
my @tables = split /\n/, sql($nodes[2], 'SELECT relation FROM repl_ml.tables ORDER BY 1');
is(scalar(@tables), 36, 'tables on the last node');
is(sql($nodes[2], "SELECT to_regclass('feast_driver_hourly_stats')"), 'feast_driver_hourly_stats', 'the other table is there too');

# MLflow takes experiment ids from a sequence
poll_until($_, q(SELECT count(*) > 0 AND bool_and(state = 'shared') FROM repl_ml.sequences)) foreach @nodes;

clients(sub { my ($i) = @_; return ($nodes[$i]->name, 'create') });
wait_converged(\@nodes);
is(sql($nodes[2], "SELECT format('SELECT %L WHERE NOT EXISTS (SELECT FROM %s)', relation, relation) FROM repl_ml.tables\n\\gexec"),
	'', 'clients wrote to every table');

# each works with its neighbour's objects, then with those of the one behind
foreach my $round (1, 2)
{
	clients(sub { my ($i) = @_; return ($nodes[ ($i + $round) % 3 ]->name, 'change', $round) });
	wait_converged(\@nodes, $round == 2 ? @tables : ());
}

foreach my $node (@nodes)
{
	my $name = $node->name;

	is(conflict_rows($node), '', "no conflict on $name");
	is(sql($node, 'SELECT schema_name, table_name, message FROM repl_ml.parked_changes'), '', "nothing parked on $name");
	is(sql($node, 'SELECT sum(errors), string_agg(last_error_message, $$;$$) FROM repl_ml.stat_apply'), '0|', "nothing was tried twice on $name");
	is(sql($node, q(SELECT count(*) FROM model_versions WHERE name LIKE '%/model 0 renamed 2')), '9', "renames cascaded on $name");
	is(sql($node, q(SELECT count(*) FROM model_version_tags WHERE name LIKE '%/model 0 renamed 2')), '18', "renames cascaded twice on $name");
	is(sql($node, 'SELECT count(*), count(duration_ns) FROM spans'), '18|15', "deletions cascaded on $name");
	is(sql($node, 'SELECT count(*), count(DISTINCT entity_key) FROM demo_driver_hourly_stats'), '570|240', "features on $name");
	is(orphans($node), '', "no row without its parent on $name");
}
done_testing();

# Runs a client on each node, all at once; the code gives its arguments.
sub clients
{
	my ($arguments) = @_;
	my @err = ('') x 3;
	my @runs = map
	{
		IPC::Run::start([ '/usr/bin/python3', "$test/clients/mlflow_feast.py", dsn($nodes[$_]), $arguments->($_) ],
			'>', '/dev/null', '2>', \$err[$_])
	} 0 .. 2;

	$_->finish foreach @runs;
	is($err[$_], '', 'the client on ' . $nodes[$_]->name . ' did it all') foreach 0 .. 2;
}

# Foreign keys that do not hold, which apply does not check.
sub orphans
{
	my ($node) = @_;
	return sql($node, <<'SQL');
SELECT format('SELECT %L WHERE EXISTS (SELECT FROM %s c WHERE NOT EXISTS (SELECT FROM %s p WHERE (%s) = (%s)) AND (%s) IS NOT NULL)',
    conname, conrelid::regclass, confrelid::regclass, c.list, p.list, c.list)
FROM pg_constraint k,
  LATERAL (SELECT string_agg('c.' || quote_ident(attname), ', ' ORDER BY i) FROM unnest(conkey) WITH ORDINALITY u (n, i), pg_attribute WHERE attrelid = conrelid AND attnum = n) c (list),
  LATERAL (SELECT string_agg('p.' || quote_ident(attname), ', ' ORDER BY i) FROM unnest(confkey) WITH ORDINALITY u (n, i), pg_attribute WHERE attrelid = confrelid AND attnum = n) p (list)
WHERE contype = 'f'
\gexec
SQL
}
