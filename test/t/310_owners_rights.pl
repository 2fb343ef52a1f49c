# What a table's owner has written runs as him wherever repl_ml makes it run, also when a superuser calls the function: he gains nothing, and the function works.
use strict;
use warnings;

use Test::More;
use ReplMl;

my ($n1, $n2) = my @nodes = map { new_node($_) } qw(n1 n2);
sql($_, 'CREATE EXTENSION repl_ml; CREATE ROLE mallory LOGIN; CREATE ROLE zoe LOGIN; CREATE SCHEMA mallory AUTHORIZATION mallory; CREATE SCHEMA zoe AUTHORIZATION zoe')
  foreach @nodes;
sql($n1, "SELECT repl_ml.create_group('g', 'n1', " . literal(dsn($n1)) . ')');

sub as_role
{
	my ($node, $role, $sql) = @_;
	return $node->safe_psql('postgres', $sql, extra_params => [ '-U', $role ]);
}

# Notes as whom it runs, in a table of the one it was written by, and tries to become a superuser.
my $attack = <<'SQL';
CREATE TABLE mallory.log (what text, who text, super bool, path text);
GRANT INSERT ON mallory.log TO PUBLIC;
GRANT USAGE ON SCHEMA mallory TO PUBLIC;
CREATE FUNCTION mallory.attack(what text) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO mallory.log VALUES (what, current_user, (SELECT rolsuper FROM pg_catalog.pg_roles WHERE rolname = current_user), pg_catalog.current_setting('search_path'));
    BEGIN
        ALTER ROLE mallory SUPERUSER;
    EXCEPTION WHEN OTHERS THEN NULL;
    END;
    BEGIN
        RESET SESSION AUTHORIZATION;
        ALTER ROLE mallory SUPERUSER;
    EXCEPTION WHEN OTHERS THEN NULL;
    END;
    RETURN what;
END
$$;
-- constant in an index's expression or a CHECK: computed where a query is planned
CREATE FUNCTION mallory.constant(what text) RETURNS int LANGUAGE plpgsql IMMUTABLE AS $$ BEGIN PERFORM mallory.attack(what); RETURN 1; END $$;
CREATE TYPE mallory.mood AS ENUM ('sad', 'happy', 'angry');
CREATE FUNCTION mallory.as_text(mallory.mood) RETURNS text LANGUAGE plpgsql IMMUTABLE AS $$ BEGIN PERFORM mallory.attack('cast'); RETURN 'x'; END $$;
CREATE CAST (mallory.mood AS text) WITH FUNCTION mallory.as_text(mallory.mood);
SQL

# What is in the log since the last call: what ran as whom.
sub ran
{
	my ($node) = @_;
	return sql($node, <<'SQL');
WITH gone AS (DELETE FROM mallory.log RETURNING *)
SELECT string_agg(DISTINCT who || CASE WHEN super THEN ' (superuser)' ELSE '' END || CASE WHEN path = 'pg_catalog, pg_temp' THEN '' ELSE ' under ' || path END, ', ') FROM gone
SQL
}

sub is_no_superuser
{
	is(sql($_, q(SELECT count(*) FROM pg_roles WHERE rolsuper AND rolname IN ('mallory', 'zoe'))), 0, 'nobody is a superuser on ' . $_->name) foreach @nodes;
}

as_role($_, 'mallory', $attack) foreach @nodes;
as_role($n1, 'mallory', <<'SQL');
CREATE TABLE mallory.t (id mallory.mood PRIMARY KEY, v text);
INSERT INTO mallory.t VALUES ('sad', 'a'), ('happy', 'b');
CREATE INDEX ON mallory.t ((mallory.constant('index') + length(v)));
CREATE FUNCTION mallory.pick(a mallory.t, b mallory.t, ca repl_ml.vclock, cb repl_ml.vclock) RETURNS mallory.t LANGUAGE plpgsql STABLE AS
$$ BEGIN PERFORM mallory.attack('resolver'); IF a.v > b.v THEN RETURN a; END IF; RETURN b; END $$;
CREATE TABLE mallory.child (id mallory.mood PRIMARY KEY, up mallory.mood);
CREATE INDEX ON mallory.child ((mallory.constant('child') + length(up::text)));
INSERT INTO mallory.child VALUES ('sad', 'sad'), ('happy', 'happy');
DELETE FROM mallory.t WHERE id = 'sad';
INSERT INTO mallory.t VALUES ('angry', 'a');
ALTER TABLE mallory.child ADD FOREIGN KEY (up) REFERENCES mallory.t NOT VALID;
CREATE TABLE mallory.parent (id int PRIMARY KEY, v text);
CREATE INDEX ON mallory.parent ((mallory.constant('parent') + length(v)));
GRANT REFERENCES, SELECT ON mallory.parent TO zoe;
INSERT INTO mallory.parent SELECT i FROM generate_series(1, 3000) i WHERE i NOT IN (1, 1500, 3000);
SQL
ran($n1);

# set_resolver, check_resolver and set_column_merge, called by a superuser
sql($n1, "SELECT repl_ml.add_table('mallory.t')");
sql($n1, "SELECT repl_ml.set_resolver('mallory.t', 'newest_by(v)')");
sql($n1, "SELECT repl_ml.set_resolver('mallory.t', 'function(mallory.pick)')");
sql($n1, "SELECT repl_ml.set_column_merge('mallory.t', 'v', 'max')");
is(ran($n1), '', 'nothing of his runs when a rule is set');
is(sql($n1, "SELECT check_name, status, pairs FROM repl_ml.check_resolver('mallory.t') ORDER BY 1"),
	"raises no error|ok|2\nreturns a row|ok|2\nsymmetric|ok|2", 'check_resolver says how it is');
is(ran($n1), 'mallory', 'and ran it as its owner');
sql($n1, "DROP FUNCTION mallory.pick");
is(sql($n1, "SELECT check_name, status FROM repl_ml.check_resolver('mallory.t')"), 'exists|failed', 'a function that is gone');

# orphans: the cast of a key's type, and the indexes of both tables, which may be two owners'
sql($n1, "SELECT repl_ml.add_table('mallory.child')");
ran($n1);
is(sql($n1, "SELECT constraint_name, key, referenced, missing_key FROM repl_ml.orphans('mallory.child')"), 'child_up_fkey|{sad}|mallory.t|{sad}', 'orphans finds it');
is(ran($n1), 'mallory', 'orphans ran as the owner');
as_role($n1, 'zoe', <<'SQL');
CREATE TABLE zoe.child (id int PRIMARY KEY, "the parent" bigint);
INSERT INTO zoe.child SELECT i, nullif(i, 7) FROM generate_series(1, 3000) i;
ALTER TABLE zoe.child ADD FOREIGN KEY ("the parent") REFERENCES mallory.parent NOT VALID;
SQL
ran($n1);
is(sql($n1, "SELECT key, missing_key FROM repl_ml.orphans('zoe.child') ORDER BY key[1]::int"), "{1}|{1}\n{1500}|{1500}\n{3000}|{3000}", 'orphans of two owners');
is(ran($n1), 'mallory', "the parent's code ran as the parent's owner");
is(as_role($n1, 'zoe', "SELECT count(*) FROM repl_ml.orphans('zoe.child')"), 3, 'for one who may read both');
is(ran($n1), 'mallory', 'and for him, too');
sql($n1, 'REVOKE SELECT ON mallory.parent FROM zoe');
my ($status, undef, $stderr) = $n1->psql('postgres', "SELECT * FROM repl_ml.orphans('zoe.child')", extra_params => [ '-U', 'zoe' ]);
like($stderr, qr/permission denied for table parent.*GRANT SELECT ON mallory.parent TO zoe/s, 'not for one who may not');
sql($n1, 'GRANT SELECT ON mallory.parent TO zoe; ALTER TABLE mallory.parent ENABLE ROW LEVEL SECURITY');
($status, undef, $stderr) = $n1->psql('postgres', "SELECT * FROM repl_ml.orphans('zoe.child')", extra_params => [ '-U', 'zoe' ]);
like($stderr, qr/row-level security hides rows of table "parent"/, 'nor for one from whom rows are hidden');
sql($n1, 'ALTER TABLE mallory.parent DISABLE ROW LEVEL SECURITY');
is_no_superuser();

# tables that both nodes have: looked at, copied on the donor, and applied
sql($n1, "SELECT repl_ml.remove_table('mallory.t'); SELECT repl_ml.remove_table('mallory.child')");
as_role($n1, 'mallory', 'DROP TABLE mallory.child, mallory.t');
as_role($n1, 'zoe', 'DROP TABLE zoe.child');
as_role($n1, 'mallory', 'DROP TABLE mallory.parent');
join_node($n2, $n1);
as_role($_, 'mallory', <<'SQL2') foreach @nodes;
CREATE TABLE mallory.item (id int PRIMARY KEY, v text, CHECK (length(v) < 100 OR mallory.constant('check') = 1));
CREATE INDEX ON mallory.item ((mallory.constant('item') + length(v)));
CREATE TABLE mallory.parts (id int PRIMARY KEY, v text) PARTITION BY LIST (id);
CREATE TABLE mallory.part PARTITION OF mallory.parts FOR VALUES IN (1, 2);
CREATE TABLE mallory."other part" PARTITION OF mallory.parts DEFAULT PARTITION BY RANGE (id);
CREATE TABLE mallory.leaf PARTITION OF mallory."other part" DEFAULT;
CREATE INDEX ON mallory.parts ((mallory.constant('parts') + length(v)));
SQL2
as_role($n1, 'mallory', "INSERT INTO mallory.item SELECT i, 'v' FROM generate_series(1, 3000) i; INSERT INTO mallory.parts SELECT i, 'v' FROM generate_series(1, 10) i");
as_role($n2, 'mallory', "INSERT INTO mallory.item VALUES (5000, 'was here')");
ran($_) foreach @nodes;
sql($n1, "SELECT repl_ml.add_table('mallory.item'); SELECT repl_ml.add_table('mallory.parts')");
poll_until($n2, "SELECT count(*) = 2 FROM repl_ml.tables WHERE state = 'replicated' AND pending_copies = 0");
wait_converged(\@nodes);
is(ran($n1) . ran($n2), 'mallorymallory', 'adding, copying and applying ran all of it as the owner');
as_role($n2, 'mallory', "INSERT INTO mallory.item VALUES (4000, 'x'); UPDATE mallory.item SET v = 'y' WHERE id = 5; DELETE FROM mallory.item WHERE id = 6; INSERT INTO mallory.parts VALUES (11, 'x')");
wait_converged(\@nodes);
is(ran($n1), 'mallory', 'also with changes');
is(as_role($_, 'mallory', 'SELECT (SELECT count(*) FROM mallory.item), (SELECT count(*) FROM mallory.parts), (SELECT count(*) FROM mallory.leaf)'), '3001|11|9', 'all rows are on ' . $_->name) foreach @nodes;
is_no_superuser();

# a partition of somebody else: his code would run with the rights of the table's owner
sql($n1, 'CREATE TABLE parted (id int PRIMARY KEY, v text) PARTITION BY LIST (id); CREATE TABLE his PARTITION OF parted DEFAULT; ALTER TABLE his OWNER TO mallory');
psql_fails($n1, "SELECT repl_ml.add_table('parted')", '55000', 'partition public.his belongs to role mallory', 'ALTER TABLE public.his OWNER TO postgres');
sql($n1, "ALTER TABLE his OWNER TO postgres; SELECT repl_ml.add_table('parted')");
poll_until($n2, "SELECT count(*) = 1 FROM repl_ml.tables WHERE table_name = 'parted' AND state = 'replicated' AND pending_copies = 0");
sql($n2, 'ALTER TABLE his OWNER TO mallory');
as_role($n2, 'mallory', <<'SQL2');
CREATE FUNCTION mallory.on_row() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM mallory.attack(TG_NAME); RETURN NEW; END $$;
CREATE TRIGGER his BEFORE INSERT ON public.his FOR EACH ROW EXECUTE FUNCTION mallory.on_row();
ALTER TABLE public.his ENABLE ALWAYS TRIGGER his;
SQL2
ran($n2);
sql($n1, "INSERT INTO parted VALUES (1, 'x')");
poll_until($n2, 'SELECT count(*) = 1 FROM repl_ml.parked_changes');
like(sql($n2, 'SELECT message FROM repl_ml.parked_changes'), qr/partition "his" belongs to role "mallory"/, 'set aside, with the reason');
is(ran($n2), '', 'and nothing of his ran');
sql($n2, 'ALTER TABLE his OWNER TO postgres; ALTER TABLE his DISABLE TRIGGER his');
sql($n2, 'SELECT repl_ml.retry_parked(id) FROM repl_ml.parked_changes');
is(sql($n2, 'SELECT id, v FROM parted'), '1|x', 'until it is mended');
is_no_superuser();

# the loser of a conflict, written again, in a table with deferred constraints
as_role($_, 'mallory', <<'SQL2') foreach @nodes;
CREATE TABLE mallory.up (id int PRIMARY KEY);
INSERT INTO mallory.up VALUES (1);
CREATE TABLE mallory.down (id int PRIMARY KEY, up int REFERENCES mallory.up DEFERRABLE INITIALLY DEFERRED, mail text UNIQUE, CHECK (mallory.attack('check') <> ''));
SQL2
sql($n1, "SELECT repl_ml.add_table('mallory.down')");
poll_until($n2, "SELECT count(*) = 1 FROM repl_ml.tables WHERE table_name = 'down' AND state = 'replicated' AND pending_copies = 0");
cut($_->[0], $_->[1]) foreach ([ $n1, $n2 ], [ $n2, $n1 ]);
as_role($n1, 'mallory', "INSERT INTO mallory.down VALUES (1, 1, 'a')");
as_role($n2, 'mallory', "INSERT INTO mallory.down VALUES (2, 1, 'a')");
heal($_->[0], $_->[1]) foreach ([ $n1, $n2 ], [ $n2, $n1 ]);
wait_converged(\@nodes, 'mallory.down');
as_role($n1, 'mallory', "UPDATE mallory.down SET mail = 'b'");
wait_converged(\@nodes);
ran($n1);
sql($n1, 'SELECT repl_ml.retry_parked(id) FROM repl_ml.parked_changes');
is(ran($n1), 'mallory', 'a loser is written as the owner');
is(sql($n1, 'SELECT count(*) FROM mallory.down'), 2, 'also where constraints are deferred');
is_no_superuser();

done_testing();
