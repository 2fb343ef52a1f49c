# A write made with knowledge of another wins over it without a conflict, whatever the wall clock of
# its node says: slow, set back, restarted so.
use strict;
use warnings;
use ReplMl;
use Test::More;

# libfaketime (see test/install_deps.sh) reads the skew of n2 from a file, at each look at the clock.
my ($library) = glob '/usr/lib/*/faketime/libfaketimeMT.so.1';
plan skip_all => 'libfaketime is not installed' unless defined $library;

my @nodes = new_group(3);
my ($n1, $n2, $n3) = @nodes;
my $skew_file = $n2->data_dir . '.skew';

sub set_skew
{
	my ($skew) = @_;
	open(my $file, '>', "$skew_file.new") or die "$skew_file.new: $!";
	print $file "$skew\n";
	close($file);
	rename("$skew_file.new", $skew_file) or die "$skew_file: $!";
	return;
}

sub restart_skewed
{
	local $ENV{LD_PRELOAD} = $library;
	local $ENV{FAKETIME_TIMESTAMP_FILE} = $skew_file;
	local $ENV{FAKETIME_NO_CACHE} = 1;
	local $ENV{FAKETIME_DONT_RESET} = 1;
	local $ENV{FAKETIME_DONT_FAKE_MONOTONIC} = 1;
	$n2->restart;
	return;
}

# How far n2's wall clock is ahead of n1's, in seconds.
sub skew
{
	my $now = 'SELECT extract(epoch FROM clock_timestamp())::bigint';
	return sql($n2, $now) - sql($n1, $now);
}

sub value { my ($id) = @_; return sql($n3, "SELECT v FROM t WHERE id = $id"); }

sub no_conflicts
{
	my ($name) = @_;
	is(conflict_rows($_), '', "$name: no conflict on " . $_->name) foreach @nodes;
	return;
}

sql($n1, q(CREATE TABLE t (id int PRIMARY KEY, v text);
SELECT repl_ml.add_table('t');
INSERT INTO t SELECT i, 'old' FROM generate_series(1, 8) i));
poll_until($_, 'SELECT count(*) = 8 FROM t') foreach $n2, $n3;

set_skew('-10s');
restart_skewed();
cmp_ok(skew(), '<', -5, 'the wall clock of n2 is 10 s slow');

# Situation 6.
sub overwrite
{
	my ($id, $name) = @_;
	sql($n1, "UPDATE t SET v = 'n1' WHERE id = $id");
	poll_until($n2, "SELECT v = 'n1' FROM t WHERE id = $id");
	sql($n2, "UPDATE t SET v = 'n2' WHERE id = $id");
	sql($n2, "DELETE FROM t WHERE id = $id + 1");
	wait_converged(\@nodes, 't');
	is(value($id), 'n2', "$name: the later write wins");
	is(value($id + 1), '', "$name: the later delete wins");
	no_conflicts($name);
	return;
}
overwrite(1, '10 s slow');

# Situation 7; further back than repl_ml.max_clock_skew as well.
restart_skewed();
overwrite(3, '10 s slow and restarted');
set_skew('-3600s');
cmp_ok(skew(), '<', -3000, 'the wall clock of n2 is an hour slow');
overwrite(5, 'an hour slow');
restart_skewed();

# Situation 8: the same node writes twice.
set_skew('+0s');
sql($n2, q(UPDATE t SET v = 'first' WHERE id = 7));
set_skew('-3600s');
sql($n2, q(UPDATE t SET v = 'second' WHERE id = 7; INSERT INTO t VALUES (9, 'inserted')));
sql($n2, q(DELETE FROM t WHERE id = 9));
wait_converged(\@nodes, 't');
is(value(7), 'second', 'clock set back between two writes: the second one wins');
is(value(9), '', 'clock set back: an insert and its delete');
no_conflicts('clock set back');

# Two clocks an hour apart and a real conflict: one winner, the same everywhere.
cut($n1, $n2);
cut($n2, $n1);
sql($n2, q(UPDATE t SET v = 'n2 later, slow clock' WHERE id = 8));
sql($n1, q(UPDATE t SET v = 'n1' WHERE id = 8));
sql($n2, q(UPDATE t SET v = 'n2' WHERE id = 7));
heal($n1, $n2);
heal($n2, $n1);
wait_converged(\@nodes, 't');
is(value(8), 'n1', 'a real conflict: the greater counter wins');
is(conflict_rows($_), 't|{8}|update_origin_differs|n1|n2|{v}', 'a real conflict: on ' . $_->name) foreach @nodes;

# Nothing breaks when the clock jumps forward.
set_skew('+3600s');
sql($n2, q(INSERT INTO t VALUES (10, 'future')));
poll_until($n1, q(SELECT v = 'future' FROM t WHERE id = 10));
sql($n1, q(UPDATE t SET v = 'over the future' WHERE id = 10));
wait_converged(\@nodes, 't');
is(value(10), 'over the future', 'a write over one from the future wins');
is(sql($_, 'SELECT count(*) FROM repl_ml.parked_changes'), '0', 'nothing is parked on ' . $_->name) foreach @nodes;
done_testing();
