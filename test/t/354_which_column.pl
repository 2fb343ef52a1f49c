# A change is written into a row only where each of its columns is the one its writer meant, whatever these are called: else
# it waits, other tables go on, and when the table has been altered on all nodes they are equal, with nothing lost or bent.
#
# Seen failing without it: the tables changed on n1 first take n2's values under other columns' names or of another meaning.
use strict;
use warnings;
use ReplMl;
use Test::More;

# what is done to each table, on n1 long before n2, and what then is in it on all nodes; see below for what is written meanwhile
my %waiting = (
	again => [ q(ALTER TABLE again DROP COLUMN b, ADD COLUMN b text DEFAULT 'new'), '1,A,new;2,a2,N;3,a3,new;4,a4,b4' ],
	swapped => [ q(DO $$ BEGIN ALTER TABLE swapped RENAME a TO tmp; ALTER TABLE swapped RENAME b TO a; ALTER TABLE swapped RENAME tmp TO b; END $$), '1,b1,A;2,b2,N;3,b3,a3;4,a4,b4' ],
	computed => [ 'ALTER TABLE computed ALTER n TYPE bigint USING n * 100, ALTER b TYPE text', '1,A,b1,100;2,a2,N,200;3,a3,b3,300;4,a4,b4,4' ],
	rescaled => [ 'ALTER TABLE rescaled ALTER n TYPE int USING n * 100', '1,A,b1,100;2,a2,N,200;3,a3,b3,300;4,a4,b4,4' ],
	rounded => [ 'ALTER TABLE rounded ALTER r TYPE numeric(9, 1)', '1,A,b1,1.3;2,a2,N,2.3;3,a3,b3,3.3;4,a4,b4,4.0' ],
	replaced => [ 'ALTER TABLE replaced ADD c text; UPDATE replaced SET c = upper(b); ALTER TABLE replaced DROP b; ALTER TABLE replaced RENAME c TO b', undef ],
	parted => [ q(BEGIN; ALTER TABLE parted RENAME a TO tmp; ALTER TABLE parted RENAME b TO a; ALTER TABLE parted RENAME tmp TO b; COMMIT), '1,b1,A;2,b2,N;3,b3,a3;4,a4,b4' ]);
# what needs no waiting
my %fitting = (
	wider => 'ALTER TABLE wider ALTER a TYPE varchar(20), ALTER b TYPE text, ALTER n TYPE bigint, ALTER r TYPE numeric(12, 2)',
	named => 'ALTER TABLE named ALTER n TYPE grade',
	undone => 'ALTER TABLE undone RENAME b TO c; ALTER TABLE undone RENAME c TO b',
	backed => 'BEGIN; ALTER TABLE backed DROP b, ADD b text; ROLLBACK',
	indexed => 'CREATE INDEX ON indexed (b); ALTER TABLE indexed ADD CHECK (n > 0), ALTER b SET STATISTICS 10');
my @simple = sort(grep({ $_ ne 'parted' } keys %waiting), keys %fitting, qw(within twice redone labelled late joined));
my $columns = "(id int PRIMARY KEY, a varchar(10), b varchar(10), n int NOT NULL DEFAULT 1, r numeric(9, 2))";
my @nodes = new_group(2, join("\n", 'CREATE DOMAIN grade AS int CHECK (VALUE > 0);',
	(map { "CREATE TABLE $_ $columns;" } @simple),
	q(CREATE TABLE parted (x int, id int PRIMARY KEY, a varchar(10), b varchar(10), n int NOT NULL DEFAULT 1, r numeric(9, 2)) PARTITION BY RANGE (id);
	ALTER TABLE parted DROP x;
	CREATE TABLE parted_1 (b varchar(10), y int, a varchar(10), r numeric(9, 2), id int NOT NULL, n int NOT NULL);
	ALTER TABLE parted_1 DROP y;
	ALTER TABLE parted ATTACH PARTITION parted_1 FOR VALUES FROM (0) TO (3);
	CREATE TABLE parted_2 PARTITION OF parted DEFAULT;),
	(map { "INSERT INTO $_ SELECT g, 'a' || g, 'b' || g, g, g + 0.25 FROM generate_series(1, 2) g;" } @simple, 'parted'),
	'SELECT repl_ml.add_all_tables()'));
my ($n1, $n2) = @nodes;
my $count = @simple + 1;
poll_until($_, "SELECT count(*) = $count AND bool_and(state = 'replicated' AND pending_copies = 0 AND differs_on = '{}') FROM repl_ml.tables") foreach @nodes;

sub content
{
	my ($node, $table) = @_;
	my $list = $table =~ /^(computed|rescaled)$/ ? 'id, a, b, n' : $table eq 'rounded' ? 'id, a, b, r' : 'id, a, b';
	return sql($node, "SELECT string_agg(concat_ws(',', $list), ';' ORDER BY id) FROM $table");
}
sub parked { my ($node, $table) = @_; return sql($node, "SELECT count(*) FROM repl_ml.parked_changes WHERE table_name = '$table'"); }
sub wait_parked { my ($node, $table, $count) = @_; poll_until($node, "SELECT count(*) = $count FROM repl_ml.parked_changes WHERE table_name = '$table'"); return; }
sub agreed { my ($table) = @_; poll_until($_, "SELECT differs_on = '{}' FROM repl_ml.tables WHERE table_name = '$table'") foreach @nodes; return; }

# n1 alters, then n2 writes and knows nothing of it, then n1
sql($n1, $_) foreach map({ $_->[0] } values %waiting), values %fitting;
my %before = map { $_ => content($n1, $_) } keys %waiting;
my $tables = sub { map { $_ eq 'replaced' ? () : $_ } keys %waiting };
sql($n2, "UPDATE $_ SET a = 'A' WHERE id = 1; INSERT INTO $_ (id, a, b, n, r) VALUES (3, 'a3', 'b3', 3, 3.25)") foreach sort(keys %waiting, keys %fitting);
wait_parked($n1, $_, 2) foreach sort keys %waiting;
wait_converged(\@nodes, sort keys %fitting);
is(content($n1, $_), $before{$_}, "$_: nothing of what n2 wrote is in it") foreach sort keys %waiting;
is(parked($n1, $_), 0, "$_: nothing waits") foreach sort keys %fitting;
like(content($n1, $_), qr/^1,A,b1;.*;3,a3,b3$/, "$_: what n2 wrote is here") foreach sort keys %fitting;
is(sql($n1, q(SELECT message FROM repl_ml.parked_changes WHERE table_name = 'again' LIMIT 1)), 'column "b" of table "public.again" is another one than on the peer', 'the reason is told');
is(sql($n1, q(SELECT message FROM repl_ml.parked_changes WHERE table_name = 'rounded' LIMIT 1)),
	'column "r" of table "public.rounded" is of type numeric(9,1) here and of another one, numeric, on the peer', 'also where it is the type');
is(sql($n1, q(SELECT status FROM repl_ml.health WHERE check_name = 'parked_changes')), 'error', 'and by health');
poll_until($_, q(SELECT detail LIKE '%identity of column%' FROM repl_ml.health WHERE check_name = 'table_shapes' AND status = 'warning')) foreach @nodes;
sql($n1, "UPDATE $_ SET b = 'N' WHERE id = 2; INSERT INTO $_ (id, a, b, n, r) VALUES (4, 'a4', 'b4', 4, 4)") foreach $tables->();
wait_parked($n2, $_, 2) foreach sort $tables->();

# a node that joins meanwhile has what its donor has
push @nodes, my $n3 = new_node('n3');
join_node($n3, $n1);
sql($n1, q(INSERT INTO again (id, a, b) VALUES (5, 'a5', 'b5')));
sql($n2, q(INSERT INTO joined VALUES (6, 'a6', 'b6')));
sql($n2, q(INSERT INTO again VALUES (6, 'a6', 'b6')));
poll_until($n3, q(SELECT count(*) = 1 FROM repl_ml.parked_changes WHERE table_name = 'again' AND action = 'insert'));
is(sql($n3, q(SELECT string_agg(DISTINCT table_name::text, ' ' ORDER BY table_name::text) FROM repl_ml.parked_changes WHERE action = 'counted')),
	'again computed parted replaced rescaled rounded swapped', 'and it knows which changes of n2 the donor had not applied');
wait_converged(\@nodes, 'joined');
is(content($n3, 'again'), content($n1, 'again'), 'a node that joins has the columns of its donor');

# n2 is altered, too: all are equal, and the values are those of the columns they were written for
sql($n2, $_) foreach map({ $_->[0] } values %waiting), map({ $fitting{$_} } grep { $_ ne 'undone' && $_ ne 'backed' } keys %fitting);
wait_converged(\@nodes);    # what will be parked is
poll_until($_, 'SELECT count(*) = 0 FROM repl_ml.parked_changes') foreach @nodes;
wait_converged(\@nodes, sort(keys %waiting, keys %fitting));
$waiting{again}[1] .= ';5,a5,b5;6,a6,new';
is(content($n1, $_), $waiting{$_}[1], "$_: what both wrote is in it") foreach sort $tables->();
is(content($n1, 'replaced'), '1,A,B1;2,a2,B2;3,a3,B3', 'replaced: what n2 wrote is in it');

# in one transaction with writes: each is judged by the columns as they were then
sql($n1, q(BEGIN; INSERT INTO within VALUES (3, 'a3', 'b3'); ALTER TABLE within DROP b, ADD b text; INSERT INTO within (id, a, b) VALUES (4, 'a4', 'b4'); COMMIT));
wait_parked($n2, 'within', 1);
is(content($n2, 'within'), '1,a1,b1;2,a2,b2;3,a3,b3', 'within: what came before the change is applied, what came after is not');
sql($_, q(ALTER TABLE within DROP b, ADD b text)) foreach $n2, $n3;
poll_until($_, q(SELECT count(*) = 0 FROM repl_ml.parked_changes WHERE table_name = 'within')) foreach $n2, $n3;
is(content($n2, 'within'), '1,a1;2,a2;3,a3;4,a4,b4', 'within: then that, too');

# all alter, none writes: nothing waits, nothing is copied; also where one does it in more steps (in one transaction: of
# a column that it adds and drops again the others may hear, take theirs for that one, and have to drop it, too)
my $copies = q(SELECT string_agg(node_id || table_name || state, ' ' ORDER BY node_id, table_name) FROM repl_ml.table_sync WHERE table_name IN ('twice', 'redone'));
my @copied = map { sql($_, $copies) } @nodes;
sql($n1, 'BEGIN; ALTER TABLE redone ADD c text; ALTER TABLE redone DROP c; ALTER TABLE redone ADD d text; ALTER TABLE redone RENAME d TO c; COMMIT');
sql($_, 'ALTER TABLE redone ADD c text') foreach $n2, $n3;
sql($_, 'ALTER TABLE twice DROP b, ADD b int') foreach @nodes;
agreed($_) foreach qw(twice redone);
sql($n2, q(UPDATE twice SET b = 7 WHERE id = 1; UPDATE redone SET c = 'c' WHERE id = 1));
wait_converged(\@nodes, qw(twice redone));
is(sql($_, 'SELECT count(*) FROM repl_ml.parked_changes'), 0, 'nothing waits on ' . $_->name) foreach @nodes;
is_deeply([ map { sql($_, $copies) } @nodes ], \@copied, 'and nothing is copied');
# once they have agreed, a further change is told from that
sql($n1, 'ALTER TABLE twice DROP b, ADD b int');
sql($n2, q(UPDATE twice SET b = 8 WHERE id = 1));
wait_parked($n1, 'twice', 1);
is(sql($n1, 'SELECT count(b) FROM twice'), 0, 'twice: the column that n1 has made anew stays empty');
sql($_, 'ALTER TABLE twice DROP b, ADD b int') foreach $n2, $n3;
wait_converged(\@nodes);    # what will be parked is
poll_until($_, q(SELECT count(*) = 0 FROM repl_ml.parked_changes)) foreach @nodes;
wait_converged(\@nodes, 'twice');

# a node that is down while the others alter
$n3->stop;
sql($_, 'ALTER TABLE late DROP b, ADD b text') foreach $n1, $n2;
sql($n1, q(UPDATE late SET b = 'new' WHERE id = 1));
$n3->start;
sql($n3, q(UPDATE late SET b = 'old', a = 'n3' WHERE id = 2));
wait_parked($_, 'late', 1) foreach @nodes;
sql($n3, 'ALTER TABLE late DROP b, ADD b text');
wait_converged(\@nodes);    # what will be parked is
poll_until($_, q(SELECT count(*) = 0 FROM repl_ml.parked_changes)) foreach @nodes;
wait_converged(\@nodes, 'late');
is(content($n1, 'late'), '1,a1,new;2,n3', 'late: what was written to the former column has gone with it');

# somebody says that it is the same column, and that is believed
sql($n1, 'ALTER TABLE labelled DROP b, ADD b varchar(10)');
sql($n2, q(INSERT INTO labelled VALUES (3, 'a3', 'b3')));
wait_parked($n1, 'labelled', 1);
psql_fails($n1, q(SECURITY LABEL FOR repl_ml ON COLUMN labelled.b IS 'the same'), '22023', 'invalid identity of a column: "the same"', 'repl_ml.shape_differences');
psql_fails($n1, q(SECURITY LABEL FOR repl_ml ON TABLE labelled IS '0123456789abcdef'), '42809', 'only columns have labels');
my $identity = sql($n2, q(SELECT repl_ml.column_identity('labelled', 'b')));
sql($n1, "SECURITY LABEL FOR repl_ml ON COLUMN labelled.b IS '$identity'");
wait_converged(\@nodes);    # what will be parked is
poll_until($_, q(SELECT count(*) = 0 FROM repl_ml.parked_changes)) foreach @nodes;
is(sql($n1, q(SELECT b FROM labelled WHERE id = 3)), 'b3', 'labelled: it has what was written to it');

# a table that is no longer replicated has no identities
sql($n1, q(SELECT repl_ml.remove_table('labelled')));
poll_until($_, q(SELECT count(*) = 0 FROM pg_seclabels WHERE objoid = 'labelled'::regclass)) foreach @nodes;
agreed($_) foreach qw(again swapped computed rescaled rounded replaced parted within twice late);
is(sql($_, q(SELECT string_agg(check_name || ': ' || detail, ' ') FROM repl_ml.health WHERE check_name IN ('parked_changes', 'table_shapes', 'tables') AND status <> 'ok')), '', 'all is well on ' . $_->name) foreach @nodes;
done_testing();
