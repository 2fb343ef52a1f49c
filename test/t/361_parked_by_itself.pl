# What is parked is tried again by itself when what it failed for has changed, or healed by a copy where its
# columns are not what they were; what has become superfluous goes; nobody has to do anything.
#
# Seen failing with repl_ml_retry_step() that returns at once: the first table stays parked after its constraint is gone.
use strict;
use warnings;
use ReplMl;
use Test::More;

my @tables = qw(checked triggered called parted typed renamed dropped retyped swapped lacking limited toasted deleted gone);
my @nodes = new_group(2, join(';',
	(map { "CREATE TABLE $_ (id int PRIMARY KEY, a text, b text)" } grep { $_ ne 'parted' } @tables),
	'CREATE TABLE parted (id int PRIMARY KEY, a text, b text) PARTITION BY RANGE (id)',
	'CREATE TABLE parted_1 PARTITION OF parted FOR VALUES FROM (0) TO (100)',
	'CREATE TABLE parent (id int PRIMARY KEY)', 'CREATE TABLE keyed (id int PRIMARY KEY, a text UNIQUE)',
	'SELECT repl_ml.add_all_tables()'));
my ($n1, $n2) = @nodes;
poll_until($n2, q(SELECT count(*) = 16 FROM repl_ml.tables WHERE state = 'replicated' AND pending_copies = 0));

sub parked { my ($table) = @_; return sql($n2, "SELECT count(*) FROM repl_ml.parked_changes WHERE table_name = '$table'"); }

# Waits until so many changes of the table are parked on n2.
sub wait_parked
{
	my ($table, $count) = @_;
	poll_until($n2, "SELECT count(*) = $count FROM repl_ml.parked_changes WHERE table_name = '$table'");
	return;
}

# Nothing of the table stays parked, and it is the same on both nodes.
sub heals
{
	my ($table, $content) = @_;
	poll_until($n2, "SELECT count(*) = 0 FROM repl_ml.parked_changes WHERE table_name = '$table'");
	wait_converged(\@nodes, $table);
	is(sql($n2, "SELECT string_agg(concat_ws(' ', id, to_jsonb(t) - 'id' - '__repl_clock'), ';' ORDER BY id) FROM $table t"), $content, "$table: what n1 wrote is on n2");
	return;
}

# A constraint of n2 alone is dropped: several versions of a row, and others.
sql($n2, q(ALTER TABLE checked ADD CONSTRAINT c CHECK (a <> 'bad')));
sql($n1, q(INSERT INTO checked VALUES (1, 'bad', '1'), (2, 'good', '1')));
sql($n1, q(UPDATE checked SET b = '2' WHERE id = 1));
wait_parked('checked', 2);
sql($n2, 'ALTER TABLE checked DROP CONSTRAINT c');
heals('checked', '1 {"a": "bad", "b": "2"};2 {"a": "good", "b": "1"}');

# Deletions and inserts of the same key, while what went before is parked.
sql($n2, q(ALTER TABLE deleted ADD CONSTRAINT c CHECK (a <> 'bad')));
sql($n1, $_) foreach q(INSERT INTO deleted VALUES (1, 'bad', '1'), (2, 'bad', '1'), (3, 'good', '1'), (4, 'bad', '1')),
  q(DELETE FROM deleted WHERE id IN (1, 3, 4)), q(INSERT INTO deleted VALUES (1, 'good', '2'), (3, 'bad', '2')), q(UPDATE deleted SET a = 'good', b = '3' WHERE id = 2);
wait_converged(\@nodes);
is(sql($n2, q(SELECT string_agg(id || a, ',' ORDER BY id) FROM deleted)), '1good,2good', 'deleted: what can be applied is');
sql($n2, 'ALTER TABLE deleted DROP CONSTRAINT c');
heals('deleted', '1 {"a": "good", "b": "2"};2 {"a": "good", "b": "3"};3 {"a": "bad", "b": "2"}');

# A row that it waits for: no catalog changes. The trigger lets it pass when that row is here.
sql($n2, q(CREATE FUNCTION needs_parent() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN IF NOT EXISTS (SELECT FROM public.parent WHERE id = NEW.id) THEN RAISE 'no parent'; END IF; RETURN NEW; END $$;
CREATE TRIGGER t BEFORE INSERT ON triggered FOR EACH ROW EXECUTE FUNCTION needs_parent();
ALTER TABLE triggered ENABLE ALWAYS TRIGGER t));
sql($n1, q(INSERT INTO triggered VALUES (1, 'child', '1')));
wait_parked('triggered', 1);
sql($n1, q(INSERT INTO parent VALUES (1)));
heals('triggered', '1 {"a": "child", "b": "1"}');

# A function that is replaced: nothing of the table itself changes.
sql($n2, q(CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'refused'; END $$;
CREATE TRIGGER t BEFORE INSERT ON called FOR EACH ROW EXECUTE FUNCTION refuse();
ALTER TABLE called ENABLE ALWAYS TRIGGER t));
sql($n1, q(INSERT INTO called VALUES (1, 'x', '1')));
wait_parked('called', 1);
sql($n2, q(CREATE OR REPLACE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NEW; END $$));
heals('called', '1 {"a": "x", "b": "1"}');

# A partition that is made later.
sql($n1, q(CREATE TABLE parted_2 PARTITION OF parted FOR VALUES FROM (100) TO (200)));
sql($n1, q(INSERT INTO parted VALUES (101, 'x', '1')));
wait_parked('parted', 1);
sql($n2, q(CREATE TABLE parted_2 PARTITION OF parted FOR VALUES FROM (100) TO (200)));
heals('parted', '101 {"a": "x", "b": "1"}');

# A later version makes it superfluous, though it still cannot be applied itself.
sql($n2, q(ALTER TABLE typed ADD CHECK (b <> 'bad')));
sql($n1, q(INSERT INTO typed VALUES (1, 'x', 'bad')));
wait_parked('typed', 1);
sql($n1, q(UPDATE typed SET b = '7'));
poll_until($n2, q(SELECT count(*) = 0 FROM repl_ml.parked_changes WHERE table_name = 'typed'));
is(sql($n2, 'SELECT b FROM typed'), '7', 'typed: the later version is here, and nothing is parked');

# A column that is renamed on n1, then on n2, and one that is dropped: both are healed by a copy.
sql($n2, q(ALTER TABLE renamed RENAME b TO c));
sql($n1, q(INSERT INTO renamed VALUES (1, 'x', '1'), (2, 'x', '1')));
sql($n1, q(DELETE FROM renamed WHERE id = 2));
# the other one may be superfluous by now
poll_until($n2, q(SELECT count(*) = 1 FROM repl_ml.parked_changes WHERE table_name = 'renamed' AND change->>'id' = '1'));
sql($n1, q(ALTER TABLE renamed RENAME b TO c));
heals('renamed', '1 {"a": "x", "c": "1"}');
sql($n2, q(ALTER TABLE dropped DROP COLUMN b));
sql($n1, q(INSERT INTO dropped VALUES (1, 'x', '1')));
wait_parked('dropped', 1);
psql_fails($n2, q(SELECT repl_ml.retry_parked(id) FROM repl_ml.parked_changes WHERE table_name = 'dropped'), '55000', 'column "b" of parked change', 'copied from there by itself');
sql($n1, q(ALTER TABLE dropped DROP COLUMN b));
heals('dropped', '1 {"a": "x"}');

# A column that n2 has first: what lacks it waits until n1 has it, too.
sql($n2, q(ALTER TABLE lacking ADD c text NOT NULL DEFAULT 'default'));
sql($n1, q(INSERT INTO lacking VALUES (1, 'x', '1')));
wait_parked('lacking', 1);
sql($n1, q(ALTER TABLE lacking ADD c text NOT NULL DEFAULT 'default'));
heals('lacking', '1 {"a": "x", "b": "1", "c": "default"}');

# The same names, but other columns: values would land in the wrong one.
sql($n2, q(ALTER TABLE swapped ADD CONSTRAINT c CHECK (a <> 'bad')));
sql($n1, q(INSERT INTO swapped VALUES (1, 'bad', 'B')));
wait_parked('swapped', 1);
sql($_, q(BEGIN; ALTER TABLE swapped RENAME a TO c; ALTER TABLE swapped RENAME b TO a; ALTER TABLE swapped RENAME c TO b; COMMIT)) foreach $n2, $n1;
sql($n2, 'ALTER TABLE swapped DROP CONSTRAINT c');
heals('swapped', '1 {"a": "B", "b": "bad"}');

# The same column, but another type, and other values for it.
sql($n2, q(ALTER TABLE retyped ADD CONSTRAINT c CHECK (a <> 'bad')));
sql($n1, q(INSERT INTO retyped VALUES (1, 'bad', '12')));
wait_parked('retyped', 1);
sql($n2, 'ALTER TABLE retyped DROP CONSTRAINT c, ALTER b TYPE int USING length(b)');
sql($n1, 'ALTER TABLE retyped ALTER b TYPE int USING length(b)');
heals('retyped', '1 {"a": "bad", "b": 2}');

# Beyond the limit they are counted, and the table is copied.
sql($n2, $_) foreach q(ALTER SYSTEM SET repl_ml.parked_limit = 0), q(SELECT pg_reload_conf());
sql($n1, q(INSERT INTO limited SELECT g, 'old', '1' FROM generate_series(1, 10) g));
wait_converged(\@nodes, 'limited');
poll_until($n2, q(SELECT setting = '0' FROM pg_settings WHERE name = 'repl_ml.parked_limit'));
sql($n2, q(ALTER TABLE limited ADD CONSTRAINT c CHECK (a <> 'bad'); CREATE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'kept'; END $$;
CREATE TRIGGER t BEFORE DELETE ON limited FOR EACH ROW EXECUTE FUNCTION keep(); ALTER TABLE limited ENABLE ALWAYS TRIGGER t));
sql($n1, q(INSERT INTO limited SELECT g, 'bad', '1' FROM generate_series(11, 40) g; UPDATE limited SET a = 'bad' WHERE id = 1; DELETE FROM limited WHERE id = 2));
poll_until($n2, q(SELECT parked_changes = 32 FROM repl_ml.tables WHERE table_name = 'limited'));
is(sql($n2, q(SELECT action, change->>'changes' FROM repl_ml.parked_changes WHERE table_name = 'limited')), 'counted|32', 'limited: they are counted');
like(sql($n2, q(SELECT detail FROM repl_ml.health WHERE check_name = 'parked_changes')), qr/could not be applied here: 32, .*no longer kept for public\.limited/, 'limited: health says so');
is(sql($n2, q(SELECT repl_ml.holds_late_changes())), 't', 'limited: nobody removes tombstones meanwhile');
sql($n2, q(DROP TRIGGER t ON limited; ALTER TABLE limited DROP CONSTRAINT c));
sql($n2, q(SELECT repl_ml.retry_parked(id) FROM repl_ml.parked_changes WHERE action = 'counted'));
heals('limited', sql($n1, "SELECT string_agg(concat_ws(' ', id, to_jsonb(t) - 'id' - '__repl_clock'), ';' ORDER BY id) FROM limited t"));
sql($n2, $_) foreach q(ALTER SYSTEM RESET repl_ml.parked_limit), q(SELECT pg_reload_conf());

# A value that did not travel is not null: an update around the trigger that makes rows travel whole.
sql($n1, q(INSERT INTO toasted SELECT 1, string_agg(md5(g::text), ''), '1' FROM generate_series(1, 1000) g));
wait_converged(\@nodes, 'toasted');
sql($n1, q(SET repl_ml.guard_off = on; ALTER TABLE toasted DISABLE TRIGGER zz_repl_ml_update;
UPDATE toasted SET b = '2', __repl_clock = repl_ml.tick();
ALTER TABLE toasted ENABLE ALWAYS TRIGGER zz_repl_ml_update));
heals('toasted', sql($n1, "SELECT string_agg(concat_ws(' ', id, to_jsonb(t) - 'id' - '__repl_clock'), ';' ORDER BY id) FROM toasted t"));

# Of a table that is not replicated any more nothing is left.
sql($n2, q(ALTER TABLE gone ADD CONSTRAINT c CHECK (a <> 'bad')));
sql($n1, q(INSERT INTO gone VALUES (1, 'bad', '1')));
wait_parked('gone', 1);
sql($n1, q(SELECT repl_ml.remove_table('gone')));
poll_until($n2, q(SELECT count(*) = 0 FROM repl_ml.parked_changes WHERE table_name = 'gone'));

# What lost a conflict stays for a person, though there is room for it now.
sql($_, 'SELECT repl_ml.pause_apply(node_name) FROM repl_ml.stat_apply') foreach @nodes;
sql($n1, q(INSERT INTO keyed VALUES (1, 'x')));
sql($n2, q(INSERT INTO keyed VALUES (2, 'x')));
sql($_, 'SELECT repl_ml.resume_apply(node_name) FROM repl_ml.stat_apply') foreach @nodes;
wait_converged(\@nodes) foreach 1, 2;
sql($n2, q(DELETE FROM keyed));
sql($n2, q(ALTER TABLE called ADD CONSTRAINT c CHECK (a <> 'bad')));
sql($n1, q(INSERT INTO called VALUES (3, 'bad', '1')));
wait_parked('called', 1);
sql($n2, 'ALTER TABLE called DROP CONSTRAINT c');
heals('called', '1 {"a": "x", "b": "1"};3 {"a": "bad", "b": "1"}');
is(sql($n2, q(SELECT table_name, action FROM repl_ml.parked_changes)), 'keyed|evicted', 'the loser of a conflict is still parked');
is(conflict_rows($_), 'keyed|{1}|insert_exists|n2|n1|{}', 'and there was no other conflict on ' . $_->name) foreach @nodes;
done_testing();
