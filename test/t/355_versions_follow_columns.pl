# Concurrent versions that are kept beside a row follow the columns of their table: when one more version arrives after
# these were renamed, added anew or given another type, the row is of the values that were written into its columns, and
# the same on all nodes.
#
# Seen failing: without repl_ml_version_rename and repl_ml_version_forget in statement.c (all nodes take the values for others'
# columns alike; of "rounded" changes stay parked for ever).
use strict;
use warnings;
use FindBin;
use lib "$FindBin::Bin/..";
use ReplMl;
use Test::More;

# what is done to each table on all nodes, and what its row is then; n2's version wins: id, 'A2', 'B2', 2, 2.25
my %alter = (
	swapped => [ q(BEGIN; ALTER TABLE swapped RENAME a TO tmp; ALTER TABLE swapped RENAME b TO a; ALTER TABLE swapped RENAME tmp TO b; COMMIT), 'B2,A2,2,2.25' ],
	again => [ q(ALTER TABLE again DROP COLUMN b; ALTER TABLE again ADD COLUMN b text DEFAULT 'new'), 'A2,new,2,2.25' ],
	at_once => [ q(ALTER TABLE at_once DROP COLUMN b, ADD COLUMN b text DEFAULT 'new'), 'A2,new,2,2.25' ],
	taken => [ q(ALTER TABLE taken DROP COLUMN b; ALTER TABLE taken RENAME a TO b; ALTER TABLE taken ADD COLUMN a text DEFAULT 'new'), 'new,A2,2,2.25' ],
	parted => [ q(BEGIN; ALTER TABLE parted RENAME a TO tmp; ALTER TABLE parted RENAME b TO a; ALTER TABLE parted RENAME tmp TO b; COMMIT), 'B2,A2,2,2.25' ],
	cascaded => [ q(DROP DOMAIN word CASCADE; ALTER TABLE cascaded ADD COLUMN b text DEFAULT 'new'), 'A2,new,2,2.25' ],
	computed => [ 'ALTER TABLE computed ALTER n TYPE int USING n * 100', 'A2,B2,200,2.25' ],
	rounded => [ 'ALTER TABLE rounded ALTER r TYPE int', 'A2,B2,2,2' ],
	wider => [ 'ALTER TABLE wider ALTER a TYPE text, ALTER n TYPE bigint', 'A2,B2,2,2.25' ],
	same => [ 'ALTER TABLE same ADD CHECK (n > 0)', 'A2,B2,2,2.25' ]);
my @tables = sort keys %alter;
my ($n1, $n2, $n3) = my @nodes = new_group(3, join("\n", 'CREATE DOMAIN word AS varchar(10);',
	(map { my $word = $_ eq 'cascaded' ? 'word' : 'varchar(10)'; my $parts = $_ eq 'parted' ? ' PARTITION BY RANGE (id)' : '';
		"CREATE TABLE $_ (id int PRIMARY KEY, a varchar(10), b $word, n int NOT NULL DEFAULT 1, r numeric(9, 2))$parts;" } @tables),
	'CREATE TABLE parted_1 PARTITION OF parted DEFAULT;',
	(map { "INSERT INTO $_ VALUES (1, 'a', 'b', 1, 1), (2, 'a', 'b', 1, 1);" } @tables),
	'SELECT repl_ml.add_all_tables();'));
wait_converged(\@nodes, @tables);
sql($n1, join('', map { "SELECT repl_ml.set_resolver('$_', 'node_priority(n2, n1, n3)');" } @tables));
poll_until($_, 'SELECT count(*) = ' . @tables . ' FROM repl_ml.conflict_policies') foreach @nodes;
my $count = @tables;
poll_until($_, "SELECT count(*) = $count AND bool_and(state = 'replicated' AND pending_copies = 0 AND differs_on = '{}') FROM repl_ml.tables") foreach @nodes;

# Writes row "id" of all tables on the k-th node.
sub change
{
	my ($k, $id) = @_;
	sql($nodes[$k - 1], join('', map { "UPDATE $_ SET a = 'A$k', " . ($alter{$_}[1] =~ /new/ && $id == 2 && $k == 3 ? '' : "b = 'B$k', ") . "n = $k, r = $k.25 WHERE id = $id;" } @tables));
	return;
}

# all are cut off: each node writes what the others do not know
foreach my $node (@nodes)
{
	cut($node, $_) foreach grep { $_ != $node } @nodes;
}
change(3, 1);
change(1, $_) foreach 1, 2;
change(2, $_) foreach 1, 2;
heal($n1, $n2);
heal($n2, $n1);
my $versions = 4 * @tables;
poll_until($_, "SELECT count(*) = $versions FROM repl_ml.concurrent_version WHERE schema_name <> 'repl_ml'") foreach $n1, $n2;

foreach my $node (@nodes)
{
	sql($node, $alter{$_}[0]) foreach @tables;
}
is(sql($_, q(SELECT string_agg(DISTINCT table_name, ' ' ORDER BY table_name) FROM repl_ml.concurrent_version WHERE schema_name <> 'repl_ml')), 'again at_once cascaded parted same swapped taken wider', $_->name . ': these can be resolved again') foreach $n1, $n2;
change(3, 2);
heal($n1, $n3);
heal($n2, $n3);
heal($n3, $_) foreach $n1, $n2;
wait_converged(\@nodes);    # what will be parked is
poll_until($_, q(SELECT count(*) = 0 FROM repl_ml.parked_changes)) foreach @nodes;
poll_until($_, "SELECT count(*) = $count AND bool_and(state = 'replicated' AND pending_copies = 0 AND differs_on = '{}') FROM repl_ml.tables") foreach @nodes;
wait_converged(\@nodes, @tables);
foreach my $table (@tables)
{
	is(sql($n1, "SELECT string_agg(concat_ws(',', a, b, n, r), ';' ORDER BY id) FROM $table"), "$alter{$table}[1];$alter{$table}[1]", "$table: n2's version, in the columns it was written into");
}
done_testing();
