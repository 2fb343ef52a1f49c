# Whatever keeps changes of one table from being applied, parking them costs neither the connection nor any
# other table's changes, and the log hears of it once.
use strict;
use warnings;
use ReplMl;
use Test::More;

use constant CHANGES => 120;    # more than a batch has transactions

# What n2 does to a table (id, v, w), so that n1's changes of it fail there.
my %breaks = (
	dropped_column => 'ALTER TABLE dropped_column DROP COLUMN w',
	own_column => 'ALTER TABLE own_column ADD COLUMN own int NOT NULL',
	other_type => 'ALTER TABLE other_type ALTER v TYPE date USING NULL',
	check_constraint => 'ALTER TABLE check_constraint ADD CHECK (v < 0)',
	before_trigger => 'CREATE TRIGGER t BEFORE INSERT ON before_trigger FOR EACH ROW EXECUTE FUNCTION refuse(); ALTER TABLE before_trigger ENABLE ALWAYS TRIGGER t',
	after_trigger => 'CREATE TRIGGER t AFTER INSERT ON after_trigger FOR EACH ROW EXECUTE FUNCTION refuse(); ALTER TABLE after_trigger ENABLE ALWAYS TRIGGER t',
	row_security => 'SET repl_ml.guard_off = on; ALTER TABLE row_security OWNER TO app; ALTER TABLE row_security ENABLE ROW LEVEL SECURITY; ALTER TABLE row_security FORCE ROW LEVEL SECURITY',
	no_rights => 'ALTER TABLE no_rights OWNER TO app; REVOKE INSERT ON no_rights FROM app',
	missing => 'SET repl_ml.guard_off = on; ALTER TABLE missing RENAME TO elsewhere',
	index_expression => 'CREATE INDEX ON index_expression ((1 / (v - 1)))');
my @kinds = sort keys %breaks;

my ($n1, $n2) = new_group(2, join(';', (map { "CREATE TABLE $_ (id int PRIMARY KEY, v int, w int)" } @kinds),
	'CREATE TABLE other (id int PRIMARY KEY, v text)', 'CREATE TABLE large (id int PRIMARY KEY, v text)',
	'SELECT repl_ml.add_all_tables()'));
poll_until($n2, q(SELECT count(*) = 12 FROM repl_ml.tables WHERE state = 'replicated' AND pending_copies = 0));
sql($n2, q(CREATE ROLE app;
	CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'refused'; END $$));

# n1's process that sends to n2.
sub connection { return sql($n1, q(SELECT pid FROM pg_stat_replication WHERE application_name = 'repl_ml n2')); }

sub parked { my ($table) = @_; return sql($n2, "SELECT count(*) FROM repl_ml.parked_changes WHERE table_name = '$table'"); }

my $connection = connection();
my $written = 0;
foreach my $kind (@kinds)
{
	sql($n2, $breaks{$kind});
	my $log = -s $n2->logfile;

	# each a transaction of its own, every second of them of a table that fits
	my $last = $written + CHANGES;
	sql($n1, join(";\n", map { "INSERT INTO $kind VALUES ($_, 1, 1); INSERT INTO other VALUES ($_, '$kind')" } $written + 1 .. $last));
	$written = $last;
	wait_converged([ $n1, $n2 ], 'other');
	is(parked($kind), CHANGES, "$kind: all are parked");
	is(sql($n2, 'SELECT count(*) FROM other'), $written, "$kind: the other table's have all arrived");
	is(connection(), $connection, "$kind: over the same connection");
	my $logged = () = PostgreSQL::Test::Utils::slurp_file($n2->logfile, $log) =~ /LOG:.*"public\.$kind" is parked/g;
	is($logged, 1, "$kind: it is logged once");
}
is(sql($n2, q(SELECT parked FROM repl_ml.stat_apply)), @kinds * CHANGES, 'each is counted once');

# Deletions need no more than the key, and a table to delete from.
sql($n1, 'DELETE FROM missing');
sql($n1, q(INSERT INTO other VALUES (0, 'after deletions')));
wait_converged([ $n1, $n2 ], 'other');
is(sql($n2, q(SELECT DISTINCT action FROM repl_ml.parked_changes WHERE table_name = 'missing' ORDER BY 1)), "delete\ninsert", 'deletions: parked');
is(connection(), $connection, 'deletions: over the same connection');

# One transaction with changes of everything: just those are parked that fail.
sql($n1, 'BEGIN; ' . join('; ', map { "INSERT INTO $_ VALUES (-1, 1, 1)" } @kinds) . q(; INSERT INTO other VALUES (-1, 'amid'); COMMIT));
wait_converged([ $n1, $n2 ], 'other');
is(sql($n2, q(SELECT count(*) FROM repl_ml.parked_changes WHERE change->>'id' = '-1')), scalar(@kinds), 'one transaction: what fails is parked');
is(sql($n2, 'SELECT v FROM other WHERE id = -1'), 'amid', 'one transaction: the rest is applied');
is(connection(), $connection, 'one transaction: over the same connection');

# A large one behind small ones that wait to be committed with it.
sql($n1, q(INSERT INTO other VALUES (-2, 'small');
	BEGIN; INSERT INTO other SELECT -g, 'large' FROM generate_series(10, 1000) g; INSERT INTO check_constraint VALUES (-2, 1, 1); COMMIT;
	INSERT INTO other VALUES (-3, 'small')));
wait_converged([ $n1, $n2 ], 'other');
is(connection(), $connection, 'a large transaction: over the same connection');

# What is too large to be kept is sent once more.
sql($n2, q(ALTER TABLE large ADD CHECK (v <> 'bad')));
sql($n1, q(BEGIN; INSERT INTO large SELECT g, repeat('x', 100000) FROM generate_series(1, 100) g; INSERT INTO large VALUES (0, 'bad'); COMMIT;
	INSERT INTO other VALUES (-4, 'after it')));
wait_converged([ $n1, $n2 ], 'other');
is(parked('large'), 1, 'more than is kept: what fails is parked');
is(sql($n2, 'SELECT count(*), sum(length(v)) FROM large'), '100|10000000', 'more than is kept: the rest is applied');
is(sql($n2, q(SELECT state FROM repl_ml.stat_apply)), 'streaming', 'more than is kept: the stream goes on');
done_testing();
