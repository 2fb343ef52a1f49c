# repl_ml.metrics says in Prometheus's terms what the other views say, to a role that has pg_monitor only; what is not known is
# null; the exporters' files ask for all of it.
use strict;
use warnings;
use File::Basename qw(dirname);
use IPC::Cmd qw(can_run);
use IPC::Run;
use JSON::PP;
use PostgreSQL::Test::Utils;
use ReplMl;
use Test::More;

my ($n1, $n2, $n3) = my @nodes = new_group(3, <<'SQL');
CREATE TABLE t (id int PRIMARY KEY, v text);
CREATE TABLE small (id int PRIMARY KEY);
SELECT repl_ml.add_all_tables();
CREATE SEQUENCE counted;
SELECT repl_ml.add_sequence('counted');
SQL
my $files = dirname(__FILE__) . '/../../monitoring';

sql($_, 'CREATE ROLE exporter LOGIN IN ROLE pg_monitor') foreach @nodes;

# The value of a metric, as the exporter's role sees it; '' where it is null, undef where there is none.
sub metric
{
	my ($node, $name, %labels) = @_;
	my $labels = JSON::PP->new->encode(\%labels);
	my $found = sql($node, "SET ROLE exporter; SELECT coalesce(value::text, '') FROM repl_ml.metrics WHERE name = 'repl_ml_$name' AND labels @> '$labels'");
	return $found eq '' && sql($node, "SELECT count(*) FROM repl_ml.metrics WHERE name = 'repl_ml_$name' AND labels @> '$labels'") eq '0' ? undef : $found;
}

sub poll_metric
{
	my ($node, $name, $condition, %labels) = @_;
	my $labels = JSON::PP->new->encode(\%labels);
	poll_until($node, "SELECT value $condition FROM repl_ml.metrics WHERE name = 'repl_ml_$name' AND labels @> '$labels'");
}

# ---- something of each family ----

wait_converged(\@nodes, 't', 'small');
sql($n1, q(SET repl_ml.write_consistency = quorum; INSERT INTO t VALUES (1, 'quorum')));
wait_converged(\@nodes, 't', 'small');
cut($n1, $n2), cut($n2, $n1);
sql($n1, q(UPDATE t SET v = 'of n1' WHERE id = 1));
sql($n2, q(UPDATE t SET v = 'of n2' WHERE id = 1));
heal($n1, $n2), heal($n2, $n1);
wait_converged(\@nodes, 't', 'small');
sql($n3, 'ALTER TABLE small ADD CONSTRAINT low CHECK (id < 5)');
sql($n1, 'INSERT INTO small VALUES (7), (8)');
poll_until($n3, 'SELECT count(*) = 2 FROM repl_ml.parked_changes');
sql($n1, q(SELECT repl_ml.verify_table('t')));
my $before = sql($n1, q(SELECT EXTRACT(epoch FROM clock_timestamp())));

is(metric($n1, 'group_info', node_name => 'n1'), '1', 'which node it is');
is(join('|', map { metric($n1, "node_$_") } qw(ready members members_reachable unacknowledged_transactions)), '1|3|3|0', 'of the node');
is(metric($n1, 'write_acknowledged_total', level => 'quorum'), sql($n1, q(SELECT commits FROM repl_ml.stat_write_consistency WHERE level = 'quorum')), 'what was acknowledged');
cmp_ok(metric($n1, 'write_acknowledged_total', level => 'quorum'), '>=', 1, '... was something');
is(metric($_, 'conflict_resolved_total', table => 't', schema => 'public'), sql($_, q(SELECT sum(conflicts) FROM repl_ml.stat_conflicts)), 'conflicts of ' . $_->name) foreach $n1, $n2;
is(metric($n3, 'parked_changes', table => 'small'), '2', 'parked changes');
is(metric($n1, 'parked_changes', table => 'small'), undef, '... are of the node that has them');
is(metric($n3, 'apply_parked_total', peer => 'n1'), '2', '... and are counted');
is(metric($n3, 'health_status', check => 'parked_changes'), '2', 'what health says');
is(metric($n1, 'verification_consistent', table => 't'), '1', 'what a comparison found');
cmp_ok($before - metric($n1, 'verification_last_good_timestamp_seconds', table => 't'), '>', 0, '... and when');
is(metric($n1, 'table_listed', state => 'replicated'), '2', 'tables by state');
cmp_ok(metric($n1, 'replication_sent_bytes_total', peer => 'n2'), '>', 100, 'bytes that were sent');

poll_until($_, q(SELECT state FROM repl_ml.sequences), 'shared') foreach $n1, $n3;
is(metric($n1, 'sequence_listed', state => 'shared'), '1', 'sequences by state');
cmp_ok(metric($n1, 'sequence_least_in_hand', state => 'shared'), '>=', 64, '... and what is in hand');

# every family has been seen, with its own labels and all of its metrics
is(sql($n3, <<'SQL'), '', 'all of what is defined is there, and no more');
SELECT f.family, f.metric, s.metric, s.labels FROM repl_ml.metric_families f FULL JOIN repl_ml.metric_samples s USING (family, metric)
 WHERE CASE WHEN s.metric IS NULL THEN family <> 'verification' WHEN f.metric IS NULL THEN true ELSE (SELECT array_agg(k ORDER BY k) FROM jsonb_object_keys(s.labels) k) IS DISTINCT FROM (SELECT array_agg(l ORDER BY l) FROM unnest(f.labels) l) END
SQL
is(sql($n1, <<'SQL'), '', '... of comparisons, too');
SELECT f.metric FROM repl_ml.metric_families f LEFT JOIN repl_ml.metric_samples s USING (family, metric) WHERE f.family = 'verification' AND s.value IS NULL
SQL
is(sql($n1, 'SELECT name, labels FROM repl_ml.metrics GROUP BY 1, 2 HAVING count(*) > 1'), '', 'no sample is there twice');

# ---- what is not known, and what is not well ----

# heartbeats are commits, too
poll_metric($n1, 'replication_lag_seconds', '= 0', peer => 'n2');
sql($n2, q(SELECT repl_ml.pause_apply('n1')));
poll_metric($n2, 'apply_paused', '= 1', peer => 'n1');
poll_metric($n1, 'replication_paused', '= 1', peer => 'n2');
sql($n1, q(INSERT INTO t VALUES (2, 'late')));
cmp_ok(metric($n1, 'replication_lag_seconds', peer => 'n2'), '>', 0, 'one that does not has one');
cmp_ok(metric($n1, 'replication_lag_transactions', peer => 'n2'), '>=', 1, '... in transactions');
sql($n2, q(SELECT repl_ml.resume_apply('n1')));
$n3->stop;
poll_metric($n1, 'member_reachable', '= 0', peer => 'n3');
is(metric($n1, 'node_members_reachable'), '2', 'a member that is down counts for none');
$n3->start;
poll_metric($n1, 'member_reachable', '= 1', peer => 'n3');
is(sql($n1, q(SELECT name FROM repl_ml.metrics WHERE value = 'NaN' OR (value < 0 AND name <> 'repl_ml_network_clock_offset_seconds'))), '', 'nothing is less than nothing');

# a copy of the node says that it is none
is(metric($n2, 'replication_slot_lost', peer => 'n1'), '0', 'slots are there');

# ---- names ----

is(sql($n1, <<'SQL'), '', 'names, types and helps are as Prometheus wants them');
SELECT name, type, help FROM repl_ml.metric_families
 WHERE name !~ '^repl_ml_[a-z]+(_[a-z0-9]+)*$' OR (type = 'counter') <> (name ~ '_total$') OR type NOT IN ('counter', 'gauge') OR help !~ '^[A-Z0-9].*\.$' OR help ~ '[\\"\n]'
    OR name ~ '(milli|micro|minutes|hours|kb|percent|count_total)'
SQL
my $exposition = sql($n1, <<'SQL');
SELECT string_agg(format(E'# HELP %1$s %2$s\n# TYPE %1$s %3$s\n%4$s', name, help, type, samples), E'\n' ORDER BY name)
  FROM (SELECT name, help, type, string_agg(name || coalesce((SELECT '{' || string_agg(format('%s="%s"', key, value), ',') || '}' FROM jsonb_each_text(labels)), '') || ' ' || value, E'\n') AS samples
          FROM repl_ml.metrics WHERE value IS NOT NULL GROUP BY 1, 2, 3) m
SQL

# Runs promtool; returns what it says, '' where all is well.
sub promtool
{
	my ($input, @arguments) = @_;
	my $output = '';
	my $good = IPC::Run::run([ 'promtool', @arguments ], '<', \$input, '>', \$output, '2>&1');
	return $good ? '' : $output || 'failed';
}

SKIP:
{
	skip 'promtool is not installed: apt-get install prometheus', 3 unless can_run('promtool');
	is(promtool("$exposition\n", qw(check metrics)), '', 'promtool finds nothing');
	is(promtool('', qw(test rules), "$files/alerts_test.yml"), '', 'every alert fires when it should, and only then');
	is(promtool('', qw(check config), "$files/prometheus.yml"), '', 'the example is a configuration');
}

# ---- files ----

sub read_file { return PostgreSQL::Test::Utils::slurp_file("$files/$_[0]") }

my $written;
IPC::Run::run([ 'psql', '-XqAt', '-d', dsn($n1), '-f', "$files/postgres_exporter.sql" ], '>', \$written) or die 'psql failed';
is(read_file('postgres_exporter.yml'), $written, "postgres_exporter's file is what the views say");
my $queries = 0;
foreach my $query (read_file('postgres_exporter.yml') =~ /query: >-\n((?:    .*\n)+?)  metrics:/g)
{
	sql($n1, "SET ROLE exporter; $query");
	$queries++;
}
is($queries, sql($n1, 'SELECT count(DISTINCT family) FROM repl_ml.metric_families'), '... and asks for each family');
my ($all) = read_file('sql_exporter.yml') =~ /query: \|\n((?:          .*\n)+)/;
is(sql($n1, "SET ROLE exporter; SELECT count(*) = (SELECT count(*) FROM repl_ml.metrics WHERE value IS NOT NULL), bool_and(q IS NOT NULL) FROM ($all) q"), 't|t', "sql_exporter's asks for all");
is(sql($n1, "SELECT string_agg(DISTINCT l, ' ' ORDER BY l) FROM repl_ml.metric_families CROSS JOIN unnest(labels) l"),
	join(' ', sort grep { $_ ne 'name' } split /, /, (read_file('sql_exporter.yml') =~ /labels: \[(.*)\]/)[0]), '... with all labels');

# each metric that an alert or a panel names is one
my %metrics = map { $_ => 1 } split /\n/, sql($n1, 'SELECT name FROM repl_ml.metric_families');
foreach my $file (qw(alerts.yml alerts_test.yml dashboard.json))
{
	my %named = map { $_ => 1 } read_file($file) =~ /\b(repl_ml_[a-z0-9_]+[a-z0-9])/g;
	is(join(' ', grep { !$metrics{$_} } sort keys %named), '', "$file names metrics that there are");
}
is(join(' ', grep { read_file('alerts_test.yml') !~ /alertname: $_\b/ } read_file('alerts.yml') =~ /alert: (\w+)/g), '', 'every alert has a test');

done_testing();
