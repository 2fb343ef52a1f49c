# A change that one node cannot apply is parked there with its error; nothing else is lost or waits,
# and once the cause is mended the change can be tried again.
use strict;
use warnings;
use ReplMl;
use Test::More;

my @nodes = new_group(3, q(
CREATE TABLE keyed (id int PRIMARY KEY, email text UNIQUE, handle text UNIQUE);
CREATE TABLE other (id int PRIMARY KEY, v text);
CREATE TABLE checked (id int PRIMARY KEY, v text);
CREATE TABLE typed (id int PRIMARY KEY, v text);
CREATE TABLE narrow (id int PRIMARY KEY, v text, extra text);
CREATE TABLE wide (id int PRIMARY KEY, v text);
CREATE TABLE triggered (id int PRIMARY KEY, v text);
CREATE TABLE secured (id int PRIMARY KEY, v text);
CREATE TABLE deferred (id int PRIMARY KEY, v text);
CREATE TABLE dropped (id int PRIMARY KEY, v text);
SELECT repl_ml.add_all_tables()));
my ($n1, $n2, $n3) = @nodes;
my $number = 0;

# A transaction of n1 that writes an unrelated row before and after.
sub write_between
{
	my ($sql) = @_;
	my ($before, $after) = ($number + 1, $number + 2);
	$number = $after;
	sql($n1, "BEGIN; INSERT INTO other VALUES ($before, 'before'); $sql; INSERT INTO other VALUES ($after, 'after'); COMMIT");
	return;
}

sub parked
{
	my ($node, $table) = @_;
	return sql($node, <<"SQL");
SELECT table_name, action, origin_node, sqlstate, message, change->>'id', change->>'v'
FROM repl_ml.parked_changes WHERE table_name = '$table' ORDER BY id
SQL
}

sub parked_count { my ($node) = @_; return sql($node, 'SELECT count(*) FROM repl_ml.parked_changes'); }

sub retry
{
	my ($node, $condition) = @_;
	return sql($node, "SELECT count(repl_ml.retry_parked(id)) FROM (SELECT id FROM repl_ml.parked_changes WHERE $condition ORDER BY id) p");
}

# Waits until all nodes have everything of n1, and tests that nothing unrelated is missing.
sub arrived
{
	my ($name) = @_;
	wait_converged(\@nodes);
	is(sql($_, 'SELECT count(*) FROM other WHERE id < 1000'), $number, "$name: the rest of the transaction is on " . $_->name) foreach $n2, $n3;
	return;
}

poll_until($_, q(SELECT count(*) = 10 FROM repl_ml.tables WHERE state = 'replicated' AND pending_copies = 0)) foreach $n2, $n3;
psql_fails($n1, 'SELECT repl_ml.retry_parked(4711)', '42704', 'parked change 4711 does not exist', 'parked_changes');
psql_fails($n1, 'SELECT repl_ml.discard_parked(4711)', '42704', 'parked change 4711 does not exist', 'parked_changes');

# Causes, all of them on n3.
sql($n3, q(
SET repl_ml.guard_off = on;
CREATE ROLE app;
ALTER TABLE checked ADD CHECK (v <> 'bad');
ALTER TABLE typed ALTER v TYPE int USING NULL;
ALTER TABLE narrow DROP COLUMN extra;
ALTER TABLE wide ADD COLUMN own text;
CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	IF coalesce(NEW.v, OLD.v) IN ('bad', 'keep') THEN
		RAISE EXCEPTION 'refused: %', coalesce(NEW.v, OLD.v) USING ERRCODE = 'XY123', DETAIL = 'a detail';
	END IF;
	RETURN coalesce(NEW, OLD);
END $$;
CREATE TRIGGER refuse BEFORE INSERT OR UPDATE OR DELETE ON triggered FOR EACH ROW EXECUTE FUNCTION refuse();
ALTER TABLE triggered ENABLE ALWAYS TRIGGER refuse;
ALTER TABLE secured OWNER TO app;
ALTER TABLE secured ENABLE ROW LEVEL SECURITY;
ALTER TABLE secured FORCE ROW LEVEL SECURITY;
CREATE CONSTRAINT TRIGGER refuse AFTER INSERT ON deferred DEFERRABLE INITIALLY DEFERRED
	FOR EACH ROW EXECUTE FUNCTION refuse();
ALTER TABLE deferred ENABLE ALWAYS TRIGGER refuse;
));

write_between(q(INSERT INTO checked VALUES (1, 'bad'), (2, 'good')));
arrived('check violation');
is( parked($n3, 'checked'),
	'checked|insert|n1|23514|new row for relation "checked" violates check constraint "checked_v_check"|1|bad',
	'check violation: the change is parked');

write_between(q(INSERT INTO typed VALUES (1, 'x'), (2, '7')));
arrived('other type');
is( parked($n3, 'typed'),
	join("\n", map { 'typed|insert|n1|42703|column "v" of table "public.typed" is of type integer here and of another one, text, on the peer|' . $_ } '1|x', '2|7'), 'other type: the changes are parked');

write_between(q(INSERT INTO narrow VALUES (1, 'v', 'extra')));
arrived('missing column');
is( parked($n3, 'narrow'),
	'narrow|insert|n1|42703|column "extra" of table "public.narrow" does not exist on this node|1|v',
	'missing column: the change is parked');

write_between(q(INSERT INTO wide VALUES (1, 'v')));
arrived('column of its own');
is( parked($n3, 'wide'),
	'wide|insert|n1|42703|column "own" of table "public.wide" does not exist on the peer|1|v',
	'column of its own: the change is parked');

write_between(q(INSERT INTO triggered VALUES (1, 'bad'), (2, 'good')));
write_between(q(UPDATE triggered SET v = 'bad' WHERE id = 2));
arrived('trigger');
is( parked($n3, 'triggered'),
	"triggered|insert|n1|XY123|refused: bad|1|bad\ntriggered|update|n1|XY123|refused: bad|2|bad",
	'trigger: the changes are parked');
is(sql($n3, q(SELECT DISTINCT detail FROM repl_ml.parked_changes WHERE table_name = 'triggered')),
	'a detail', 'trigger: with the detail of the error');

write_between(q(INSERT INTO secured VALUES (1, 'v')));
arrived('forced row level security');
is( parked($n3, 'secured'),
	'secured|insert|n1|0A000|row-level security of table "secured" applies to its owner|1|v',
	'forced row level security: the change is parked');

# A table that is missing is made again, with its rows, at the first change that does not find it.
write_between(q(INSERT INTO dropped VALUES (1, 'before')));
arrived('missing table, before');
sql($n3, q(SET repl_ml.guard_off = on; DROP TABLE dropped));
write_between(q(INSERT INTO dropped VALUES (2, 'after')));
arrived('missing table');
poll_until($n3, q(SELECT state = 'replicated' AND pending_copies = 0 FROM repl_ml.tables WHERE table_name = 'dropped'));
is(sql($n3, 'SELECT v FROM dropped ORDER BY id'), "before\nafter", 'missing table: it is here again, with all rows');

# A deferred trigger fires with its change, so only that is parked, not what came with it.
sql($n1, q(BEGIN; INSERT INTO deferred VALUES (1, 'bad'); INSERT INTO other VALUES (1000, 'with it'); COMMIT));
sql($n1, q(INSERT INTO deferred VALUES (2, 'good')));
wait_converged(\@nodes);
is(parked($n3, 'deferred'), 'deferred|insert|n1|XY123|refused: bad|1|bad', 'deferred trigger: the change is parked');
is(parked($n3, 'other'), '', 'deferred trigger: nothing else is');
is(sql($n3, 'SELECT v FROM other WHERE id = 1000'), 'with it', 'deferred trigger: what came with it is applied');
is(sql($n3, 'SELECT id, v FROM deferred'), '2|good', 'deferred trigger: the next transaction is applied');

# The stream has not stopped, and does not start again and again.
is(sql($_, q(SELECT count(*) FROM repl_ml.stat_apply WHERE state = 'streaming')), '2', 'all streams run on ' . $_->name)
  foreach @nodes;
my $errors = sql($n3, q(SELECT errors FROM repl_ml.stat_apply WHERE node_name = 'n1'));
is(parked_count($_), '0', 'nothing is parked on ' . $_->name) foreach $n1, $n2;
my $parked = parked_count($n3);
is($parked, '9', 'all that failed is parked on n3');
# and perhaps the one whose table was missing, unless that was here again before it
my $counted = sql($n3, q(SELECT parked FROM repl_ml.stat_apply WHERE node_name = 'n1'));
like($counted - $parked, qr/^[01]$/, 'and counted');

# Tried again before the cause is mended it fails as before, and stays.
my ($bad) = sql($n3, q(SELECT id FROM repl_ml.parked_changes WHERE table_name = 'checked'));
psql_fails($n3, "SELECT repl_ml.retry_parked($bad)", '23514', 'violates check constraint');
is(parked_count($n3), $parked, 'a change that fails again stays parked');

# A later good version of the row goes over a parked one, which then changes nothing.
sql($n1, q(UPDATE triggered SET v = 'later' WHERE id = 2));
wait_converged(\@nodes);
is(sql($n3, q(SELECT v FROM triggered WHERE id = 2)), 'later', 'a later version is applied over a parked one');

# A deletion that fails is parked under its table.
sql($n1, q(INSERT INTO triggered VALUES (3, 'fine')));
sql($n1, q(UPDATE triggered SET v = 'finer' WHERE id = 3));
wait_converged(\@nodes);
sql($n3, q(ALTER TABLE triggered DISABLE TRIGGER refuse));
sql($n3, q(UPDATE triggered SET v = 'keep' WHERE id = 3));
sql($n3, q(ALTER TABLE triggered ENABLE ALWAYS TRIGGER refuse));
wait_converged(\@nodes);
sql($n1, q(DELETE FROM triggered WHERE id = 3));
wait_converged(\@nodes);
is( sql($n3, q(SELECT table_name, action, sqlstate, message, change->>'key' FROM repl_ml.parked_changes WHERE action = 'delete')),
	'triggered|delete|XY123|refused: keep|{3}', 'a deletion is parked');

# Mended: everything is tried again, and all nodes are equal.
sql($n3, q(
ALTER TABLE checked DROP CONSTRAINT checked_v_check;
ALTER TABLE typed ALTER v TYPE text;
ALTER TABLE wide DROP COLUMN own;
DROP TRIGGER refuse ON triggered;
ALTER TABLE secured NO FORCE ROW LEVEL SECURITY;
DROP TRIGGER refuse ON deferred));
poll_until($n3, q(SELECT count(*) = 1 FROM repl_ml.parked_changes));
is(sql($n3, 'SELECT table_name FROM repl_ml.parked_changes'), 'narrow', 'mended: all are tried again by themselves');
wait_converged(\@nodes, qw(other checked typed wide triggered secured deferred dropped));
is(sql($n3, q(SELECT id, v FROM triggered ORDER BY id)), "1|bad\n2|later", 'mended: the later version has stayed, the deleted row is gone');
is(conflict_rows($_), '', 'mended: no conflict on ' . $_->name) foreach @nodes;

# The column's rows of before are still to come.
# It is another one for all we know; but it was empty, and somebody says that it is the same.
my $identity = sql($n1, q(SELECT repl_ml.column_identity('narrow', 'extra')));
sql($n3, "ALTER TABLE narrow ADD COLUMN extra text; SECURITY LABEL FOR repl_ml ON COLUMN narrow.extra IS '$identity'");
sql($n1, q(INSERT INTO narrow VALUES (2, 'w', 'more')));
wait_converged(\@nodes);
is(sql($n3, q(SELECT id, v, extra FROM narrow WHERE id = 2)), '2|w|more', 'the column is back: new rows arrive');
poll_until($n3, q(SELECT count(*) = 0 FROM repl_ml.parked_changes));
is(sql($n3, q(SELECT id, v, extra FROM narrow WHERE id = 1)), '1|v|extra', 'the column is back: the parked row is tried again');
wait_converged(\@nodes);
is(sql($_, 'SELECT id, v, extra, __repl_clock FROM narrow ORDER BY id'), sql($n1, 'SELECT id, v, extra, __repl_clock FROM narrow ORDER BY id'),
	'the column is back: ' . $_->name . ' as n1') foreach $n2, $n3;

# Given up: this node differs, and says no more about it.
sql($n3, q(ALTER TABLE checked ADD CHECK (v <> 'worse')));
write_between(q(INSERT INTO checked VALUES (3, 'worse')));
arrived('given up');
sql($n3, q(SELECT repl_ml.discard_parked(id) FROM repl_ml.parked_changes));
is(parked_count($n3), '0', 'given up: it is no longer parked');
is(sql($n3, q(SELECT count(*) FROM checked WHERE id = 3)), '0', 'given up: the row is not here');
is(sql($n2, q(SELECT count(*) FROM checked WHERE id = 3)), '1', 'given up: but elsewhere');

# What lost a unique key is parked on every node; retrying on one writes it again, for all.
sub cut_off { cut($n1, $n2);  cut($n2, $n1);  return; }
sub rejoin  { heal($n1, $n2); heal($n2, $n1); return; }

sub keyed { my ($node) = @_; return sql($node, 'SELECT id, email, handle FROM keyed ORDER BY id'); }

sub parked_keys
{
	my ($node) = @_;
	return sql($node, q(SELECT action, sqlstate, change->>'id' FROM repl_ml.parked_changes ORDER BY 3));
}

# Evictions travel behind what caused them: twice around is enough.
sub settled { wait_converged(\@nodes) foreach 1, 2; return; }

cut_off();
write_between(q(INSERT INTO keyed VALUES (1, 'a@x', 'one')));
sql($n2, q(BEGIN; INSERT INTO keyed VALUES (2, 'a@x', 'two'); INSERT INTO other VALUES (2000, 'n2'); COMMIT));
rejoin();
arrived('same secondary key');
settled();
wait_converged(\@nodes, qw(keyed other));
is(keyed($_), '2|a@x|two', 'same secondary key: the later row has it on ' . $_->name) foreach @nodes;
is(parked_keys($_), 'evicted|23505|1', 'same secondary key: the other is parked on ' . $_->name) foreach @nodes;
like(sql($n1, 'SELECT message FROM repl_ml.parked_changes'), qr/"keyed_email_key"/, 'same secondary key: the message names it');
psql_fails($n1, 'SELECT repl_ml.retry_parked(id) FROM repl_ml.parked_changes', '23505', 'keyed_email_key');
is(parked_keys($n1), 'evicted|23505|1', 'same secondary key: as long as it is taken, the loser stays parked');

sql($n2, q(UPDATE keyed SET email = 'b@x' WHERE id = 2));
wait_converged(\@nodes, 'keyed');
retry($n1, 'true');
sql($_, 'SELECT repl_ml.discard_parked(id) FROM repl_ml.parked_changes') foreach $n2, $n3;
is(parked_count($_), '0', 'same secondary key: nothing is parked on ' . $_->name) foreach @nodes;
wait_converged(\@nodes, qw(keyed other));
is(keyed($n3), "1|a\@x|one\n2|b\@x|two", 'same secondary key: both rows are there in the end');

# One row against the keys of two others.
cut_off();
write_between(q(INSERT INTO keyed VALUES (10, 'c@x', 'ten'), (11, 'd@x', 'eleven')));
sql($n2, q(INSERT INTO keyed VALUES (12, 'c@x', 'eleven')));
rejoin();
arrived('two keys');
settled();
wait_converged(\@nodes, qw(keyed other));
is(parked_keys($_), "evicted|23505|10\nevicted|23505|11", 'two keys: the two earlier rows are parked on ' . $_->name) foreach @nodes;
is(sql($n3, 'SELECT id FROM keyed WHERE id >= 10'), '12', 'two keys: the later row has both');
sql($n2, q(DELETE FROM keyed WHERE id = 12));
wait_converged(\@nodes, 'keyed');
# the second call finds what the statement saw and the first one has retried, as the worker may have
sql($n3, 'SELECT repl_ml.retry_parked(id), repl_ml.retry_parked(id) FROM (SELECT id FROM repl_ml.parked_changes ORDER BY id) p');
wait_converged(\@nodes, qw(keyed other));
is(sql($n1, 'SELECT id FROM keyed WHERE id >= 10 ORDER BY id'), "10\n11", 'two keys: the two rows are there in the end');
done_testing();
