# A copied, restored or promoted data directory does not go on as the node it was made from.
use strict;
use warnings;
use Membership;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use ReplMl;
use Test::More;

my ($n1, $n2) = new_group(2, <<'SQL');
CREATE TABLE item (id integer PRIMARY KEY, v text);
CREATE TABLE plain (id integer PRIMARY KEY);
INSERT INTO item SELECT i, i FROM generate_series(1, 100) i;
SELECT repl_ml.add_table('item');
SQL
wait_converged([ $n1, $n2 ], 'item');

# A server whose data directory is filled by hand, with settings of its own.
sub copy_node
{
	my ($name, $fill) = @_;
	my $copy = PostgreSQL::Test::Cluster->new($name);

	mkdir $copy->basedir;
	$fill->($copy);
	$copy->append_conf('postgresql.conf', 'port = ' . $copy->port);
	return $copy;
}

sub cp { my ($from, $to) = @_; system('cp', '-a', '-T', $from, $to) == 0 or die "cp failed" }

# A copy neither writes enrolled tables nor talks to peers; everything else works.
sub is_fenced
{
	my ($copy, $of) = @_;
	my @error = ('55000', "this data directory is a copy of node \"$of\"", 'leave_group\(force => true\)');

	psql_fails($copy, q(INSERT INTO item VALUES (1000, 'copy')), @error);
	psql_fails($copy, q(UPDATE item SET v = 'copy'), @error);
	psql_fails($copy, 'DELETE FROM item', @error);
	psql_fails($copy, 'TRUNCATE item', @error);
	psql_fails($copy, q(COPY item FROM PROGRAM 'echo 1001,x' CSV), @error);
	psql_fails($copy, q(SELECT repl_ml.add_table('plain')), @error);
	psql_fails($copy, q(SELECT repl_ml.leave_group()), @error);
	psql_fails($copy, q(SELECT repl_ml.drop_node('n2')), @error) if $of ne 'n2';
	sql($copy, 'INSERT INTO plain VALUES (1) ON CONFLICT DO NOTHING');
	is(sql($copy, 'SELECT count(*) > 0 FROM item'), 't', 'a copy can be read');
	is(sql($copy, q(SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'repl_ml apply')), '0', 'no worker of the copy talks to a peer');
}

# the copy of a stopped node, started beside it
$n1->stop;
my $copy = copy_node('copy', sub { cp($n1->data_dir, $_[0]->data_dir) });
$n1->start;
$copy->start;
is_fenced($copy, 'n1');
sql($n1, q(INSERT INTO item VALUES (101, 'n1'); UPDATE item SET v = 'n1' WHERE id = 1));
sql($n2, q(INSERT INTO item VALUES (102, 'n2')));
wait_converged([ $n1, $n2 ], 'item');
is(sql($copy, 'SELECT max(id) FROM item'), '100', 'and nothing gets to the copy');

# the copy can become a node of its own
sql($copy, 'SELECT repl_ml.leave_group(force => true)');
is_clean($copy, 'the copy has left');
sql($copy, 'DROP TABLE item');
sql($copy, call('join_group', 'copy', dsn($copy), dsn($n1)));
is(sql($copy, 'SELECT node_id FROM repl_ml.local_node'), '3', 'as a node of its own it has a new id');
sql($copy, q(INSERT INTO item VALUES (103, 'copy')));
wait_converged([ $n1, $n2, $copy ], 'item');
sql($copy, 'SELECT repl_ml.leave_group()');
$copy->stop;

# A standby that is promoted is a copy of a node that may still be there.
$n2->backup('base');
my $standby = PostgreSQL::Test::Cluster->new('standby');
$standby->init_from_backup($n2, 'base', has_streaming => 1);
$standby->start;
$n2->wait_for_catchup($standby, 'replay', $n2->lsn('flush'));
is(sql($standby, 'SELECT count(*) FROM item'), sql($n2, 'SELECT count(*) FROM item'), 'a standby of a node');
is(sql($standby, 'SELECT count(*) FROM pg_stat_activity WHERE backend_type LIKE $$repl_ml%$$'), '0', 'no worker on a standby');
$standby->promote;
is_fenced($standby, 'n2');
sql($n2, q(INSERT INTO item VALUES (104, 'n2')));
wait_converged([ $n1, $n2 ], 'item');
$standby->stop;

# The counter goes on above all it has issued, with its file, after a crash, and without the file.
sub newest { my ($node) = @_; return sql($node, 'SELECT max(repl_ml.max_counter(__repl_clock)) FROM item') }
foreach my $what ('kept', 'kept after a crash', 'lost')
{
	my $newest = newest($n1);
	$what =~ /crash/ ? $n1->stop('immediate') : $n1->stop;
	unlink $n1->data_dir . '/repl_ml.clock' or die if $what eq 'lost';
	$n1->start;
	sql($n1, "UPDATE item SET v = '$what' WHERE id = 2");
	is(sql($n1, "SELECT repl_ml.max_counter(__repl_clock) > $newest FROM item WHERE id = 2"), 't', "clock file $what: the next counter is greater");
}
wait_converged([ $n1, $n2 ], 'item');

# An older backup put back in place has the same directory and id; the peers notice.
$n2->stop;
my $backup = PostgreSQL::Test::Utils::tempdir() . '/backup';
cp($n2->data_dir, $backup);
$n2->start;
sql($n2, q(INSERT INTO item SELECT i, 'later' FROM generate_series(200, 300) i));
wait_converged([ $n1, $n2 ], 'item');
$n2->stop;
restore_in_place($backup, $n2->data_dir);
$n2->start;
poll_until($n1, q(SELECT error_sqlstate = '55000' AND error_message LIKE 'node "n2" has been set back%' FROM repl_ml.stat_apply));
like(sql($n1, 'SELECT error_hint FROM repl_ml.stat_apply'), qr/leave_group.*drop_node.*join/, 'with the way out');
is(sql($n1, 'SELECT count(*) FROM item WHERE id >= 200'), '101', 'n1 keeps what n2 has forgotten');

# the way out
sql($n2, 'SELECT repl_ml.leave_group(force => true); DROP TABLE item');
sql($n1, q(SELECT repl_ml.drop_node('n2', if_exists => true)));
sql($n2, call('join_group', 'n2', dsn($n2), dsn($n1)));
sql($n2, q(INSERT INTO item VALUES (400, 'back')));
wait_converged([ $n1, $n2 ], 'item');
is(sql($n2, 'SELECT count(*) FROM item WHERE id >= 200'), '102', 'n2 has everything again');
no_errors([ $n1, $n2 ]);

# Overwrites the files of a directory with those of a backup, so that they keep their inodes, and
# removes what the backup does not have.
sub restore_in_place
{
	my ($from, $to) = @_;
	my @here = split /\n/, `cd '$to' && find . ! -type d`;
	my %there = map { $_ => 1 } split /\n/, `cd '$from' && find . ! -type d`;

	unlink map { "$to/$_" } grep { !$there{$_} } @here;
	foreach my $file (keys %there)
	{
		system("cat '$from/$file' > '$to/$file'") == 0 or die;
	}
}

done_testing();
