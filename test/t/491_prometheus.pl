# With Debian's exporters and Prometheus beside three nodes, the alert that belongs to a fault fires when it comes and is gone when
# it has been mended; and every panel of the dashboard shows something. Skipped where these are not installed: make check-monitoring.
use strict;
use warnings;
use File::Basename qw(dirname);
use HTTP::Tiny;
use IPC::Cmd qw(can_run);
use IPC::Run;
use JSON::PP;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use ReplMl;
use Situations qw(plant);
use Test::More;

foreach my $program (qw(prometheus promtool prometheus-postgres-exporter prometheus-sql-exporter))
{
	plan skip_all => "$program is not installed" unless can_run($program);
}

my $files = dirname(__FILE__) . '/../../monitoring';
my ($n1, $n2, $n3) = my @nodes = new_group(3, <<'SQL');
CREATE TABLE t (id int PRIMARY KEY, v text);
CREATE TABLE small (id int PRIMARY KEY);
INSERT INTO t SELECT g, 'v' FROM generate_series(1, 300) g;
SELECT repl_ml.add_all_tables();
SQL
foreach my $node (@nodes)
{
	# as monitoring/README.md says
	sql($node, 'CREATE ROLE repl_ml_exporter LOGIN IN ROLE pg_monitor');
	sql($node, q(ALTER SYSTEM SET max_slot_wal_keep_size = '16MB'));
	sql($node, 'SELECT pg_reload_conf()');
}
wait_converged(\@nodes, 't', 'small');

# ---- exporters, and a Prometheus that asks them ----

my $directory = PostgreSQL::Test::Utils::tempdir();
my (@running, %address);

sub write_file
{
	my ($name, $content) = @_;
	open my $file, '>', "$directory/$name" or die "$name: $!";
	print $file $content;
	close $file;
	return "$directory/$name";
}

sub read_file { return PostgreSQL::Test::Utils::slurp_file("$files/$_[0]") }

# Starts a program in the background, to be ended with this test.
sub start_program
{
	my ($environment, @command) = @_;
	push @running, IPC::Run::start(\@command, '<', \undef, '>', "$directory/" . @running . '.log', '2>&1',
		init => sub { %ENV = (%ENV, %$environment) });
}

END
{
	my $status = $?;
	$_->kill_kill foreach @running;
	$? = $status;
}

sub free_address { return '127.0.0.1:' . PostgreSQL::Test::Cluster::get_free_port() }

foreach my $node ($n1, $n2)
{
	$address{ $node->name } = free_address();
	start_program({ DATA_SOURCE_NAME => sprintf("host=%s port=%s user=repl_ml_exporter dbname=postgres sslmode=disable", $node->host, $node->port) },
		'prometheus-postgres-exporter', "--web.listen-address=$address{$node->name}", '--disable-default-metrics', '--disable-settings-metrics',
		"--extend.query-path=$files/postgres_exporter.yml");
}
$address{n3} = free_address();
my $sql_exporter = read_file('sql_exporter.yml');
$sql_exporter =~ s{postgres://\S+}{sprintf 'postgres://repl_ml_exporter@/postgres?host=%s&port=%s&sslmode=disable', $n3->host, $n3->port}e;
$sql_exporter =~ s/interval: 15s/interval: 1s/;
start_program({}, 'prometheus-sql-exporter', '-web.listen-address', $address{n3}, '-config.file', write_file('sql_exporter.yml', $sql_exporter));

# the files that are given away, but for the times
(my $alerts = read_file('alerts.yml')) =~ s/for: \w+/for: 1s/g;
write_file('alerts.yml', $alerts);
my $config = read_file('prometheus.yml');
$config =~ s/15s/1s/g;
$config =~ s/targets: \['n1[^\n]*/targets: ['$address{n1}', '$address{n2}']/;
$config =~ s/targets: \[\]/targets: ['$address{n3}']/;
write_file('prometheus.yml', $config);
my $prometheus = free_address();
start_program({}, 'prometheus', "--config.file=$directory/prometheus.yml", "--storage.tsdb.path=$directory/data", "--web.listen-address=$prometheus", '--log.level=warn');

# What Prometheus's interface answers; undef where it does not.
sub ask
{
	my ($path, %arguments) = @_;
	my $http = HTTP::Tiny->new(timeout => 10);
	my $answer = $http->get("http://$prometheus/api/v1/$path?" . $http->www_form_urlencode(\%arguments));
	return $answer->{success} ? JSON::PP->new->decode($answer->{content})->{data} : undef;
}

# Waits until a function returns true; its value, or undef and a note of what there was.
sub wait_for
{
	my ($what, $function) = @_;
	my $end = time + $PostgreSQL::Test::Utils::timeout_default;
	my $value;
	while (!($value = $function->()) && time < $end)
	{
		select undef, undef, undef, 0.2;
	}
	note "not in time: $what" unless $value;
	return $value;
}

# Alerts that fire now, each as its name and what it is about, of a node.
sub firing
{
	my %name = reverse %address;
	my $data = ask('alerts') or return ();
	return sort map { my $l = $_->{labels}; join ' ', $l->{alertname}, $name{ $l->{instance} }, grep { defined } map { $l->{$_} } qw(peer table check level) }
	  grep { $_->{state} eq 'firing' } @{ $data->{alerts} };
}

sub fires
{
	my ($alert) = @_;
	ok(wait_for($alert, sub { grep { $_ eq $alert } firing() }), "$alert fires") or diag 'firing: ' . join ', ', firing();
}

sub is_gone
{
	my ($alert) = @_;
	ok(wait_for("no $alert", sub { my @firing = firing(); !grep { $_ eq $alert } @firing }), "$alert is gone") or diag 'firing: ' . join ', ', firing();
}

# The nodes of which Prometheus has a metric.
sub nodes_with
{
	my ($metric) = @_;
	my %name = reverse %address;
	my $data = ask('query', query => $metric) or return '';
	return join ' ', sort map { $name{ $_->{metric}{instance} } } @{ $data->{result} };
}

ok(wait_for('metrics', sub { nodes_with('repl_ml_node_ready == 1') eq 'n1 n2 n3' }), 'Prometheus has metrics of three nodes, from either exporter');
is(nodes_with('repl_ml_replication_lag_seconds{peer="n2"} >= 0'), 'n1 n3', '... under the same names and labels');
is(join(', ', firing()), '', 'where all is well no alert fires');

# ---- faults ----

$n2->stop('immediate');
fires('ReplMlNodeGone n2');
fires('ReplMlPeerUnreachable n1 n2');
fires('ReplMlPeerUnreachable n3 n2');
# ... and WAL that it has not read
sql($n1, q(SELECT pg_logical_emit_message(false, 'filler', repeat('x', 10000000)) FROM generate_series(1, 6)));
sql($n1, q(SELECT pg_switch_wal()));
sql($n1, 'CHECKPOINT');
fires('ReplMlSlotLost n1 n2');
$n3->stop('immediate');
fires('ReplMlNoQuorum n1');
$_->start foreach $n2, $n3;
is_gone($_) foreach 'ReplMlNodeGone n2', 'ReplMlPeerUnreachable n1 n2', 'ReplMlPeerUnreachable n3 n2', 'ReplMlSlotLost n1 n2', 'ReplMlNoQuorum n1';
wait_converged(\@nodes, 't', 'small');

sql($n2, q(SELECT repl_ml.pause_apply('n1')));
fires('ReplMlApplyPaused n2 n1');
sql($n2, q(SELECT repl_ml.resume_apply('n1')));
is_gone('ReplMlApplyPaused n2 n1');

sql($n3, 'ALTER TABLE small ADD CONSTRAINT low CHECK (id < 5)');
sql($n1, 'INSERT INTO small VALUES (7)');
fires('ReplMlParkedChanges n3 small');
fires('ReplMlHealth n3 parked_changes');
sql($n3, 'ALTER TABLE small DROP CONSTRAINT low');
is_gone($_) foreach 'ReplMlParkedChanges n3 small', 'ReplMlHealth n3 parked_changes';
wait_converged(\@nodes, 't', 'small');

cut($n1, $n2), cut($n2, $n1);
sql($_, "UPDATE t SET v = '" . $_->name . q(')) foreach $n1, $n2;
heal($n1, $n2), heal($n2, $n1);
wait_converged(\@nodes, 't', 'small');
ok(wait_for('conflicts', sub { grep { /^ReplMlConflicts n[12]/ } firing() }), 'ReplMlConflicts fires');

plant($n2, 't', q(UPDATE t SET v = 'other' WHERE id = 5));
sql($n1, q(SELECT repl_ml.verify_table('t')));
fires('ReplMlDifference n1 t');
sql($n1, q(SELECT repl_ml.repair_table('t', false, 'n1')));
is(sql($n1, q(SELECT status FROM repl_ml.verify_table('t'))), 'consistent', 'mended');
is_gone('ReplMlDifference n1 t');

$_->stop foreach $n2, $n3;
fires('ReplMlNoQuorum n1');
$n1->psql('postgres', q(SET repl_ml.write_consistency = quorum; INSERT INTO t VALUES (1000, 'refused')));
fires('ReplMlNotAcknowledged n1 quorum');
$_->start foreach $n2, $n3;
is_gone('ReplMlNoQuorum n1');

# ---- the dashboard ----

foreach my $panel (@{ JSON::PP->new->decode(read_file('dashboard.json'))->{panels} })
{
	foreach my $target (@{ $panel->{targets} })
	{
		(my $query = $target->{expr}) =~ s/\$instance/.*/g;
		$query =~ s/\$__rate_interval/1m/g;
		my @labels = $target->{legendFormat} =~ /\{\{(\w+)\}\}/g;
		# what is parked is mended by now, and has been seen
		my $data = wait_for($panel->{title}, sub {
			my ($shown) = grep { $_ && @{ $_->{result} } } ask('query', query => $query),
				ask('query_range', query => $query, start => time - 600, end => time, step => '1s');
			return $shown;
		});
		ok($data && !(grep { my $m = $_->{metric}; grep { !defined $m->{$_} } @labels } @{ $data->{result} }), "panel \"$panel->{title}\": $query");
	}
}

done_testing();
