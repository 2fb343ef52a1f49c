# A node that alters a table again before it has heard of another's first time takes that for its second only until it can tell
# better: a column never becomes one that it once was, what is written to that waits, and nobody is told that tables are the same
# before all know what they are.
#
# Seen failing before columns that a node has had were told from those it has (n1's new column became the former one of all three
# and kept its value when n2 and n3 made theirs anew: so 354 failed once, under load), and before differs_on said when it does not
# know.
use strict;
use warnings;
use ReplMl;
use Test::More;

my ($n1, $n2, $n3) = my @nodes = new_group(3, q(
CREATE TABLE t (id int PRIMARY KEY, b int);
INSERT INTO t VALUES (1, 1), (2, 2);
SELECT repl_ml.add_all_tables()));
my $again = 'ALTER TABLE t DROP b, ADD b int';
my $differs = q(SELECT differs_on FROM repl_ml.tables WHERE table_name = 't');
sub agreed { poll_until($_, "SELECT ($differs) = '{}'") foreach @nodes; return; }
agreed();

# what was altered here a moment ago, and has not been told
my $holder = $n1->background_psql('postgres', on_error_stop => 0);
$holder->query_safe('BEGIN; LOCK repl_ml.table_shape IN SHARE MODE');
sql($n1, $again);
is(sql($n1, "SELECT ($differs) IS NULL"), 't', 'where it has not been told what a table is now nobody knows whether it differs');
$holder->query_safe('COMMIT');
$holder->quit;
sql($_, $again) foreach $n2, $n3;
agreed();

# all alter it once, and n3 is not heard; n1 alters it again, and n2 writes what n1 has not any more
foreach my $node ($n1, $n2) { cut($node, $n3); cut($n3, $node) }
sql($_, $again) foreach @nodes;
poll_until($_, q(SELECT length(repl_ml.column_identity('t', 'b')) > 20)) foreach $n1, $n2;
sql($n1, $again);
sql($n2, 'UPDATE t SET b = 8 WHERE id = 1');
poll_until($n1, q(SELECT count(*) = 1 FROM repl_ml.parked_changes));

# n1 hears of n3's first time before n2 does, and takes it for its own second
heal($n1, $n3);
my $first = sql($n3, q(SELECT repl_ml.column_identity('t', 'b')));
poll_until($n1, "SELECT repl_ml.column_identity('t', 'b') LIKE '%$first%'");
heal($n2, $n3);
heal($n3, $_) foreach $n1, $n2;

# n2 and n3 agree; what n1 has is none of that
poll_until($_, "SELECT ($differs) = '{n1}'") foreach $n2, $n3;
poll_until($n3, 'SELECT b = 8 FROM t WHERE id = 1');
poll_until($n1, "SELECT ($differs) = '{n2,n3}'");
is(sql($n1, 'SELECT count(b) FROM t'), '0', 'n1 has nothing of its former column');
is(sql($n1, 'SELECT count(*) FROM repl_ml.parked_changes'), '1', 'but waits');
sql($_, $again) foreach $n2, $n3;
agreed();
poll_until($_, q(SELECT count(*) = 0 FROM repl_ml.parked_changes)) foreach @nodes;
sql($n3, 'UPDATE t SET b = 9 WHERE id = 2');
wait_converged(\@nodes, 't');
is(sql($n1, q(SELECT string_agg(concat_ws(' ', id, b), ', ' ORDER BY id) FROM t)), '1, 2 9', 'then all have altered it as often');
is(sql($_, 'SELECT count(*) FROM repl_ml.parked_changes'), '0', 'nothing waits on ' . $_->name) foreach @nodes;
done_testing();
