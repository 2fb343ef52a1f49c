# A replicated table that is not the same on all members, and a table that nobody has added, are named by health on every node
# while nobody writes, until it is the same again.
#
# Seen failing with repl_ml_shape_tell() that returns at once: the tables are never said to be the same.
use strict;
use warnings;
use ReplMl;
use Test::More;

my ($n1, $n2, $n3) = my @nodes = new_group(3, <<'SQL');
CREATE TYPE mood AS ENUM ('good', 'bad');
CREATE TYPE address AS (street varchar(10), moods mood[]);
CREATE DOMAIN grade AS int CHECK (value IN (1, 2, 3));
CREATE TABLE parent (id int PRIMARY KEY);
CREATE TABLE thing (id int PRIMARY KEY, kind varchar(10) NOT NULL DEFAULT 'a' CHECK (kind IN ('a', 'b') OR (kind || 'x')::text LIKE 'c%'),
	m mood, a address, g grade, sorted text COLLATE "C" UNIQUE, p int REFERENCES parent, twice int GENERATED ALWAYS AS (id * 2) STORED,
	during tstzrange, EXCLUDE USING gist (during WITH &&));
CREATE UNIQUE INDEX ON thing (lower(kind || 'x'), id) WHERE kind <> 'b' AND (id > 0 OR p IS NULL);
CREATE TABLE event (at timestamptz, id int, PRIMARY KEY (at, id)) PARTITION BY RANGE (at);
CREATE TABLE event_1 PARTITION OF event FOR VALUES FROM ('2024-01-01 00:00+00') TO ('2025-01-01 00:00+00') PARTITION BY LIST (id);
CREATE TABLE event_1_1 PARTITION OF event_1 DEFAULT;
SELECT repl_ml.add_all_tables();
ALTER DATABASE postgres SET timezone = 'Asia/Tokyo';
ALTER DATABASE postgres SET datestyle = 'German';
SQL

# Waits until a check says this, and tests nothing but that.
sub says
{
	my ($node, $check, $status, $detail) = @_;
	poll_until($node, "SELECT status || ': ' || detail FROM repl_ml.health WHERE check_name = '$check'", "$status: $detail");
	return;
}
my $equal = 'As far as the other members have told, the replicated tables are the same there.';
poll_until($_, q(SELECT count(*) = 3 AND bool_and(differs_on = '{}' AND difference IS NULL) FROM repl_ml.tables)) foreach @nodes;
is(sql($_, q(SELECT status, detail FROM repl_ml.health WHERE check_name = 'table_shapes')), "ok|$equal", 'a dump and restore makes no difference: ' . $_->name) foreach @nodes;

# each kind of difference, on a table of its own: made on n2, seen on n1, undone
my @differences = (
	[ 'column_added', 'ADD COLUMN w int NOT NULL', 'column w', 'missing', 'integer NOT NULL', 'DROP COLUMN w' ],
	[ 'column_type', 'ALTER v TYPE bigint', 'column v', 'integer', 'bigint', 'ALTER v TYPE int' ],
	[ 'not_null', 'ALTER v SET NOT NULL', 'column v', 'integer', 'integer NOT NULL', 'ALTER v DROP NOT NULL' ],
	[ 'collated', 'ALTER t TYPE text COLLATE "C"', 'column t', 'text', 'text COLLATE "C"', 'ALTER t TYPE text' ],
	[ 'generated', 'ALTER g DROP EXPRESSION', 'column g', 'integer GENERATED ALWAYS AS (id * 2)', 'integer', 'DROP COLUMN g, ADD COLUMN g int GENERATED ALWAYS AS (id * 2) STORED' ],
	[ 'unique_key', 'ADD UNIQUE (v)', 'unique key btree (v)', 'missing', 'there', 'DROP CONSTRAINT unique_key_v_key' ],
	[ 'checked', 'ADD CHECK (v > 0)', 'constraint CHECK v > 0', 'missing', 'there', 'DROP CONSTRAINT checked_v_check' ],
	[ 'referring', 'ADD FOREIGN KEY (v) REFERENCES parent', 'constraint FOREIGN KEY (v) REFERENCES public.parent(id)', 'missing', 'there', 'DROP CONSTRAINT referring_v_fkey' ]);
sql($n1, join("\n", map { "CREATE TABLE $_->[0] (id int PRIMARY KEY, v int, t text, g int GENERATED ALWAYS AS (id * 2) STORED);" } @differences)
	. 'SELECT count(*) FROM repl_ml.add_all_tables()');
poll_until($_, q(SELECT bool_and(state = 'replicated' AND pending_copies = 0 AND differs_on = '{}') FROM repl_ml.tables)) foreach @nodes;
sql($n2, join('', map { "ALTER TABLE $_->[0] $_->[1];" } @differences)
	. q(ALTER DOMAIN grade DROP CONSTRAINT grade_check; ALTER TYPE mood ADD VALUE 'middling' BEFORE 'bad'; ALTER TYPE address ADD ATTRIBUTE zip int;));
my $seen = q(SELECT table_name, object, here, there FROM repl_ml.shape_differences WHERE node_name = 'n2' AND table_name <> 'thing' ORDER BY table_name COLLATE "C");
poll_until($n1, "SELECT count(*) = 8 FROM ($seen) s");
is(sql($n1, $seen), join("\n", map { join('|', @$_[ 0, 2 .. 4 ]) } sort { $a->[0] cmp $b->[0] } @differences), 'each column, key and constraint');
is(sql($n1, q(SELECT k.key, a.shape ->> k.key, b.shape ->> k.key FROM repl_ml.table_shape a JOIN repl_ml.table_shape b USING (schema_name, table_name)
	CROSS JOIN LATERAL jsonb_object_keys(b.shape) k (key) WHERE (a.node_id, b.node_id, table_name) = (1, 2, 'thing') AND a.shape -> k.key <> b.shape -> k.key ORDER BY 1)),
	<<'TYPES' =~ s/\n\z//r, 'and type');
2type public.address|(street character varying(10), moods public.mood[])|(street character varying(10), moods public.mood[], zip integer)
2type public.grade|integer CHECK VALUE = ANY ARRAY[1,2,3]|integer
2type public.mood|enum ('good', 'bad')|enum ('good', 'middling', 'bad')
TYPES
poll_until($_->[0], "SELECT detail LIKE '%$_->[1]%' FROM repl_ml.health WHERE check_name = 'table_shapes' AND status = 'warning'") foreach
  [ $n1, 'Table public.column_type: column v is integer on node "n1" and bigint on node "n2".' ],
  [ $n2, 'Table public.column_type: column v is bigint on node "n2" and integer on nodes "n1", "n3".' ];
is(sql($n1, q(SELECT differs_on, difference FROM repl_ml.tables WHERE table_name = 'column_type')), '{n2}|column v: integer here, bigint on node "n2"', 'and in tables');
sql($n2, join('', map { "ALTER TABLE $_->[0] $_->[5];" } @differences)
	. 'ALTER DOMAIN grade ADD CHECK (value IN (1, 2, 3)); ALTER TYPE address DROP ATTRIBUTE zip;');
sql($_, q(ALTER TYPE mood ADD VALUE 'middling' BEFORE 'bad')) foreach $n1, $n3;
says($_, 'table_shapes', 'ok', $equal) foreach @nodes;

# a partition, whose bound is told alike whatever the database makes of time
sql($n2, q(CREATE TABLE event_2 PARTITION OF event FOR VALUES FROM ('2025-01-01 00:00+00') TO ('2026-01-01 00:00+00')));
poll_until($n3, q(SELECT count(*) = 1 FROM repl_ml.shape_differences));
is(sql($n3, 'SELECT object, here, there FROM repl_ml.shape_differences'),
	q(partition public.event_2|missing|FOR VALUES FROM ('2025-01-01 00:00:00+00') TO ('2026-01-01 00:00:00+00') of public.event), 'a partition');
# also while it is being detached
sql($n2, q(BEGIN; LOCK TABLE event IN ACCESS SHARE MODE; PREPARE TRANSACTION 'reader'));
psql_fails($n2, "SET statement_timeout = '300ms';\nALTER TABLE event DETACH PARTITION event_2 CONCURRENTLY", '57014', 'statement timeout');
sql($n2, q(INSERT INTO event_2 VALUES ('2025-05-05', 1); ROLLBACK PREPARED 'reader'; ALTER TABLE event DETACH PARTITION event_2 FINALIZE; DROP TABLE event_2));
says($_, 'table_shapes', 'ok', $equal) foreach @nodes;

# tables that nobody has added
says($n1, 'unreplicated_tables', 'ok', 'No table of this node has been forgotten.');
sql($n1, <<'SQL');
CREATE TABLE forgotten (id int PRIMARY KEY);
CREATE TABLE "Keyless" (id int);
CREATE UNLOGGED TABLE scratch (id int);
CREATE SCHEMA local;
CREATE TABLE local.mine (id int PRIMARY KEY);
SQL
says($n1, 'unreplicated_tables', 'warning', 'Tables of this node that the group does not replicate: local.mine, public."Keyless", public.forgotten.');
is(sql($n1, 'SELECT table_name, obstacle FROM repl_ml.unreplicated_tables ORDER BY schema_name, table_name COLLATE "C"'), qq(mine|\nKeyless|table public."Keyless" has no primary key\nforgotten|), 'with what is in the way');
sql($n1, q(SELECT repl_ml.keep_local('local.mine'), repl_ml.keep_local('"Keyless"'), repl_ml.add_table('forgotten')));
says($n1, 'unreplicated_tables', 'ok', 'No table of this node has been forgotten.');
psql_fails($n1, q(SELECT repl_ml.keep_local('forgotten')), '55000', 'table public.forgotten is replicated', q(remove_table.'public.forgotten'));
psql_fails($n1, "SELECT repl_ml.keep_local('$_')", '42809', 'is not a table that could be replicated', 'unreplicated_tables')
  foreach qw(repl_ml.member repl_ml.nodes pg_catalog.pg_class);
psql_fails($n1, 'ALTER EXTENSION repl_ml DROP TABLE repl_ml.member', '55000', 'must stay as it is', 'leave_group');
# a row that says so all the same removes nothing of the extension's
sql($n1, q(INSERT INTO repl_ml.replicated_table (schema_name, table_name, state, enrolled_by) VALUES ('repl_ml', 'member', 'removed', 1)));
sql($n1, q(SELECT repl_ml.remove_table('forgotten'), repl_ml.add_table('local.mine')));
poll_until($n3, q(SELECT count(*) = 1 FROM repl_ml.tables WHERE table_name = 'mine' AND state = 'replicated'));
poll_until($n1, q(SELECT count(*) = 0 FROM repl_ml.unreplicated_tables));

done_testing();
