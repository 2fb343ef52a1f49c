# A row whose clock is NULL or damaged, on the node that writes it or on one that applies, is an error that says what
# to do and stops nothing else; doing it mends the row everywhere.
#
# Seen failing with repl_ml_table_clock() that takes NULL for a clock: the first UPDATE of such a row takes the server down.
use strict;
use warnings;
use ReplMl;
use PostgreSQL::Test::Utils;
use Test::More;

my @nodes = new_group(2, <<'SQL');
CREATE TABLE t (id int PRIMARY KEY, v text, u int UNIQUE);
CREATE TABLE other (id int PRIMARY KEY);
SELECT repl_ml.add_all_tables();
SQL
my ($n1, $n2) = @nodes;
my $mend = 'SET __repl_clock = DEFAULT';

poll_until($n2, q(SELECT count(*) = 2 FROM repl_ml.tables WHERE state = 'replicated' AND pending_copies = 0));

# Only with the guard off, or by a hand in the catalogs, can the column lose its NOT NULL.
psql_fails($_, 'ALTER TABLE t ALTER __repl_clock DROP NOT NULL', '55000', 'cannot be changed or dropped', 'remove_table') foreach @nodes;
if (sql($n1, q(SELECT current_setting('server_version_num')::int >= 180000)) eq 't')
{
	my $constraint = sql($n1, q(SELECT conname FROM pg_constraint WHERE conrelid = 't'::regclass AND conname ~ 'repl_clock'));
	psql_fails($n1, "ALTER TABLE t DROP CONSTRAINT $constraint", '55000', 'cannot be changed or dropped', 'remove_table');
}
sql($_, <<'SQL') foreach @nodes;
SET repl_ml.guard_off = on;
ALTER TABLE t ALTER __repl_clock DROP NOT NULL;
CREATE CAST (bytea AS repl_ml.vclock) WITHOUT FUNCTION;
SQL

# Writes into t past our triggers.
sub past_triggers
{
	my ($node, $sql) = @_;
	sql($node, "SET repl_ml.guard_off = on; ALTER TABLE t DISABLE TRIGGER USER; $sql; ALTER TABLE t ENABLE TRIGGER USER;"
		  . join('', map { "ALTER TABLE t ENABLE ALWAYS TRIGGER $_;" } qw(_repl_ml_insert zz_repl_ml_update _repl_ml_moved zz_repl_ml_delete)));
	return;
}

sub goes_on
{
	my ($name) = @_;
	sql($n1, 'INSERT INTO other SELECT count(*) FROM other');
	wait_converged(\@nodes, 'other');
	unlike(slurp_file($_->logfile), qr/terminated by signal/, "$name: nothing crashed on " . $_->name) foreach @nodes;
	return;
}

# NULL as a value stands for the default, also now.
sql($n1, q(INSERT INTO t VALUES (1, 'null', 1, NULL)));
wait_converged(\@nodes, 't');

# The writer's rows.
my %clocks = (10 => 'NULL', 20 => q('\x01'::bytea::repl_ml.vclock), 30 => q('\x0000000000ff'::bytea::repl_ml.vclock), 40 => q('\x00010000000000000000010000000000000001'::bytea::repl_ml.vclock));
foreach my $id (sort keys %clocks)
{
	my ($sqlstate, $message) = $id == 10 ? ('23502', 'a row of replicated table "public.t" has no clock') : ('XX001', 'stored vector clock is damaged');
	# COPY, because an INSERT takes a NULL for the default
	past_triggers($n1, $id == 10 ? "COPY t (id, v, u, __repl_clock) FROM stdin;\n10\tx\t10\t\\N\n\\.\n"
		: "INSERT INTO t VALUES ($id, 'x', $id, $clocks{$id})");
	if ($id < 40)
	{
		psql_fails($n1, $_, $sqlstate, $message, $mend)
		  foreach "UPDATE t SET v = 'y' WHERE id = $id", "UPDATE t SET id = id + 1 WHERE id = $id", "DELETE FROM t WHERE id = $id", 'TRUNCATE t',
		  "INSERT INTO t VALUES ($id, 'z', 0) ON CONFLICT (id) DO UPDATE SET v = EXCLUDED.v";
	}
	goes_on("$clocks{$id} here");
	sql($n1, "UPDATE t SET __repl_clock = DEFAULT WHERE id = $id");
}
wait_converged(\@nodes, 't');
# 22P03 of the bytes that came, 22P02 of the text that is kept of them once it has been tried again
is(sql($n2, q(SELECT count(*) FILTER (WHERE sqlstate IN ('22P02', '22P03')), count(*) FROM repl_ml.parked_changes)), '3|3', 'what nobody can read is parked by the peer');
sql($n2, 'SELECT repl_ml.discard_parked(id) FROM repl_ml.parked_changes');
sql($n1, q(UPDATE t SET v = 'mended'));
wait_converged(\@nodes, 't');

# The applier's rows, under the same key and under the same unique value.
past_triggers($n2, 'UPDATE t SET __repl_clock = NULL WHERE id = 10; UPDATE t SET __repl_clock = ' . $clocks{20} . ' WHERE id = 20');
sql($n1, "$_ WHERE id IN (10, 20)") foreach q(UPDATE t SET v = 'again'), 'DELETE FROM t';
sql($n1, q(INSERT INTO t VALUES (11, 'same u', 10)));
sql($n1, q(INSERT INTO t VALUES (21, 'same u', 20)));
goes_on('at the applier');
is(sql($n2, q(SELECT sqlstate, count(*) FROM repl_ml.parked_changes GROUP BY sqlstate ORDER BY sqlstate)), "23502|3\nXX001|3", 'at the applier: the changes are parked');
is(sql($n2, 'SELECT count(*) FROM t'), '5', 'at the applier: and the rows are as they were');
sql($n2, 'UPDATE t SET __repl_clock = DEFAULT, u = id + 1000 WHERE id IN (10, 20)');
wait_converged(\@nodes);
sql($n2, 'DELETE FROM t WHERE id IN (10, 20)');
# each by itself, and without regard to errors: the apply worker tries them too, and what it has applied is no more there
$n2->psql('postgres', "SELECT repl_ml.retry_parked($_)") foreach split /\n/, sql($n2, 'SELECT id FROM repl_ml.parked_changes ORDER BY id');
poll_until($n2, 'SELECT count(*) = 0 FROM repl_ml.parked_changes');
wait_converged(\@nodes, 't');
is(sql($n2, 'SELECT id FROM t ORDER BY id'), "1\n11\n21\n30\n40", 'mended: the rows are there');

# What arrives.
past_triggers($n1, 'UPDATE t SET __repl_clock = NULL WHERE id = 30');
goes_on('an update without a clock');
is(sql($n2, q(SELECT sqlstate, change->>'id' FROM repl_ml.parked_changes)), '23502|30', 'an update without a clock: it is parked');
done_testing();
