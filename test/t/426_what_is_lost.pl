# What doc/operations.md says is lost, by level of write consistency and by what fails, is lost, and nothing else.
use strict;
use warnings;
use ReplMl;
use Test::More;

my ($n1, $n2, $n3) = my @nodes = new_group(3, <<'SQL');
CREATE TABLE t (row text PRIMARY KEY);
SELECT repl_ml.add_table('t');
SQL
wait_converged(\@nodes, 't');

sub insert
{
	my ($node, $level, $row) = @_;
	return sql($node, "SET repl_ml.write_consistency = '$level'; INSERT INTO t VALUES ('$row')");
}

sub refused
{
	my ($node, $level, $row) = @_;
	return psql_fails($node, "SET repl_ml.write_consistency = '$level'; INSERT INTO t VALUES ('$row')", '57P03', 'can be reached');
}

sub rows { my ($node) = @_; return sql($node, q(SELECT string_agg(row, ' ' ORDER BY row COLLATE "C") FROM t)); }

sub levels_work
{
	my ($node, $levels) = @_;
	poll_until($node, "SELECT count(*) = $levels FROM repl_ml.write_members() WHERE reachable");
	return;
}

# a crash: who has been told that it is committed has it when the server is back
levels_work($n1, 3);
insert($n1, $_, "crash-$_") foreach qw(one quorum all);
$n1->stop('immediate');
$n1->start;
my $crash = 'crash-all crash-one crash-quorum';
is(rows($n1), $crash, 'after a crash all is there');
wait_converged(\@nodes, 't');
levels_work($_, 3) foreach @nodes;

# a cut: the minority writes at level one, which goes to the others when it is over; the rest is refused, and not there
cut($_, $n1) foreach $n2, $n3;
cut($n1, $_) foreach $n2, $n3;
levels_work($n1, 1);
levels_work($n2, 2);
insert($n1, 'one', 'cut-one');
refused($n1, $_, "cut-$_") foreach qw(quorum all);
insert($n2, 'quorum', 'majority');
refused($n2, 'all', 'cut-all');
heal($_, $n1) foreach $n2, $n3;
heal($n1, $_) foreach $n2, $n3;
wait_converged(\@nodes, 't');
is(rows($_), "$crash cut-one majority", 'after a cut ' . $_->name . ' has all that was not refused') foreach @nodes;
levels_work($_, 3) foreach @nodes;

# disks: what n1 acknowledges at "all" is everywhere, at "quorum" on n2, at "one" perhaps here only
insert($n1, 'all', 'disk-all');
wait_converged(\@nodes, 't');
cut($n3, $n1);
levels_work($n1, 2);
insert($n1, 'quorum', 'disk-quorum');
cut($n2, $n1);
levels_work($n1, 1);
insert($n1, 'one', 'disk-one');
my $before = "$crash cut-one disk-all";
$n1->stop('immediate');

# of two of three: what only these two had acknowledged
$n2->stop('immediate');
is(rows($n3), "$before majority", 'without the disks of n1 and n2: what was acknowledged at quorum is lost, at all not');
$n2->start;

# of one: what it had not sent
sql($n2, q(SELECT repl_ml.drop_node('n1')));
poll_until($n3, q(SELECT count(*) = 1 FROM t WHERE row = 'disk-quorum'));
is(rows($_), "$before disk-quorum majority", 'without the disk of n1, on ' . $_->name . ': what was written at level one is lost, at quorum not') foreach $n2, $n3;
levels_work($_, 2) foreach $n2, $n3;
insert($n3, 'all', 'goes on');
is(rows($n2), "$before disk-quorum goes on majority", 'and the group goes on');
done_testing();
