# add_all_tables takes every table that can be replicated, whatever stands beside it, and names the reason for each other one;
# what would make a replicated table one whose rows stay on a node is refused.
#
# Seen failing: without the obstacle of a typed table its row says something else, without a hint; with refuse_inheritance
# that returns at once INHERIT and INHERITS are accepted.
use strict;
use warnings;
use Membership;
use ReplMl;
use Test::More;

my $n1 = new_node('n1');
my $n2 = new_node('n2');
my @nodes = ($n1, $n2);
sql($_, 'CREATE ROLE owner; CREATE EXTENSION repl_ml') foreach @nodes;
sql($n1, call('create_group', 'g', 'n1', dsn($n1)));
sql($n1, <<'SQL');
CREATE EXTENSION postgres_fdw;
CREATE SERVER elsewhere FOREIGN DATA WRAPPER postgres_fdw OPTIONS (dbname 'postgres');
CREATE TYPE address AS (street text, city text);
CREATE DOMAIN code AS text;
CREATE SEQUENCE numbers;
CREATE TABLE here_before (id int PRIMARY KEY);
SELECT repl_ml.add_table('here_before');
SQL
join_node($n2, $n1);

sql($n1, <<'SQL');
-- these can
CREATE TABLE "Odd ""name"" of öäü" ("a b" int PRIMARY KEY DEFAULT nextval('numbers'), "select" text, "c;--" int GENERATED ALWAYS AS ("a b" * 2) STORED);
CREATE TABLE identity_always (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, v address);
CREATE TABLE excluded (id int PRIMARY KEY, during tsrange, EXCLUDE USING gist (during WITH &&));
CREATE TABLE ruled (id int PRIMARY KEY, v text);
CREATE RULE nothing AS ON DELETE TO ruled WHERE old.id = 0 DO INSTEAD NOTHING;
ALTER TABLE ruled OWNER TO owner;
CREATE TABLE secured (id int PRIMARY KEY, v text);
ALTER TABLE secured OWNER TO owner, ENABLE ROW LEVEL SECURITY;
CREATE POLICY mine ON secured USING (v = current_user);
CREATE TABLE parted (id int PRIMARY KEY, v text) PARTITION BY LIST (id);
CREATE TABLE parted_1 PARTITION OF parted FOR VALUES IN (1) PARTITION BY LIST (id);
CREATE TABLE parted_1_1 PARTITION OF parted_1 DEFAULT;
CREATE TABLE referring (id int PRIMARY KEY, "to" int REFERENCES ruled);
CREATE TABLE old_rows (id int PRIMARY KEY, v int);
INSERT INTO old_rows VALUES (1, -1), (2, 2);
ALTER TABLE old_rows ADD CONSTRAINT positive CHECK (v > 0) NOT VALID;
-- these cannot
CREATE TABLE typed OF address (PRIMARY KEY (street));
CREATE TABLE keyless (v text);
CREATE TABLE deferred (id int PRIMARY KEY DEFERRABLE);
CREATE UNLOGGED TABLE unlogged (id int PRIMARY KEY);
CREATE TABLE parent (id int PRIMARY KEY);
CREATE TABLE child (PRIMARY KEY (id)) INHERITS (parent);
CREATE TABLE forced (id int PRIMARY KEY);
ALTER TABLE forced ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
CREATE TABLE half_logged (id int PRIMARY KEY) PARTITION BY LIST (id);
CREATE UNLOGGED TABLE half_logged_1 PARTITION OF half_logged DEFAULT;
CREATE TABLE returning_rule (id int PRIMARY KEY, v text);
CREATE RULE elsewhere AS ON INSERT TO returning_rule DO INSTEAD INSERT INTO ruled VALUES (new.id, new.v) RETURNING *;
CREATE TABLE superusers_rule (id int PRIMARY KEY);
CREATE RULE nothing AS ON DELETE TO superusers_rule WHERE old.id = 0 DO INSTEAD NOTHING;
CREATE TABLE odd_domain (id int PRIMARY KEY, c code[]);
INSERT INTO odd_domain VALUES (1, '{too long}');
ALTER DOMAIN code ADD CONSTRAINT short CHECK (length(value) < 5) NOT VALID;
-- nobody asks for these
CREATE MATERIALIZED VIEW seen AS SELECT * FROM ruled;
CREATE VIEW looked AS SELECT * FROM ruled;
CREATE FOREIGN TABLE foreign_one (id int) SERVER elsewhere;
SQL

is(sql($n1, 'SELECT relation, status, detail, hint FROM repl_ml.add_all_tables() ORDER BY relation::text COLLATE "C"'), <<'ROWS' =~ s/\n\z//r, 'each table has its row');
"Odd ""name"" of öäü"|added|its column takes numbers of sequence public.numbers, which each node gives by itself: no column owns it|Run SELECT repl_ml.add_sequence('public.numbers').
child|skipped|table public.child is part of an inheritance tree|Use declarative partitioning instead of inheritance.
deferred|skipped|the primary key of table public.deferred is deferrable|Make the primary key NOT DEFERRABLE.
excluded|added||
forced|skipped|row-level security is forced on table public.forced|Run ALTER TABLE public.forced NO FORCE ROW LEVEL SECURITY: changes are applied as the table's owner.
half_logged|skipped|partition public.half_logged_1 of table public.half_logged is unlogged|Run ALTER TABLE public.half_logged_1 SET LOGGED.
here_before|already replicated||
identity_always|added||
keyless|skipped|table public.keyless has no primary key|Run ALTER TABLE public.keyless ADD PRIMARY KEY (...).
odd_domain|skipped|constraint short of domain public.code, the type of column c of table public.odd_domain, is not valid|Run ALTER DOMAIN public.code VALIDATE CONSTRAINT short.
old_rows|added||
parent|skipped|table public.parent is part of an inheritance tree|Use declarative partitioning instead of inheritance.
parted|added||
referring|added||
returning_rule|skipped|rule elsewhere of table public.returning_rule has a RETURNING list|Run DROP RULE elsewhere ON public.returning_rule, or create it without RETURNING; a view with an INSTEAD OF trigger can do the same.
ruled|added||
secured|added||
superusers_rule|skipped|on node "n2": table public.superusers_rule would run the rule nothing with a superuser's rights|Create the table there yourself, or give it to a role that is no superuser. This is on node "n2".
typed|skipped|table public.typed is of type public.address and cannot have a column more|Run ALTER TABLE public.typed NOT OF.
unlogged|skipped|table public.unlogged is unlogged|Run ALTER TABLE public.unlogged SET LOGGED.
ROWS

# what was added works
sql($n1, <<'SQL');
INSERT INTO "Odd ""name"" of öäü" ("select") VALUES ('x');
INSERT INTO identity_always (v) VALUES (('a', 'b'));
INSERT INTO excluded VALUES (1, '[2020-01-01,2021-01-01)');
INSERT INTO ruled VALUES (1, 'r');
INSERT INTO secured VALUES (1, 'owner');
INSERT INTO parted VALUES (1, 'p');
INSERT INTO referring VALUES (1, 1);
INSERT INTO old_rows VALUES (3, 3);
SQL
my @added = split /\n/, sql($n1, q(SELECT format('%I.%I', schema_name, table_name) FROM repl_ml.tables ORDER BY 1));
is(scalar(@added), 9, "nine tables");
poll_until($n2, q(SELECT count(*) = 9 AND bool_and(state = 'replicated' AND pending_copies = 0) FROM repl_ml.tables));
wait_converged(\@nodes, @added);
is(sql($n2, 'SELECT id, v FROM old_rows ORDER BY id'), "1|-1\n2|2\n3|3", 'rows from before a constraint that is not valid');
is(sql($n2, q(SELECT convalidated FROM pg_constraint WHERE conname = 'positive')), 'f', 'which is not valid here either');
no_errors(\@nodes);

# children and parents
my $tree = 'cannot be part of an inheritance tree';
sql($n1, 'CREATE TABLE lone (id int NOT NULL, v text)');
psql_fails($n1, 'CREATE TABLE kid () INHERITS (ruled)', '0A000', $tree, 'remove_table');
psql_fails($n1, 'CREATE TABLE kid () INHERITS (lone, ruled)', '0A000', $tree);
psql_fails($n1, 'ALTER TABLE ruled INHERIT lone', '0A000', $tree, 'remove_table');
psql_fails($n1, 'ALTER TABLE lone INHERIT ruled', '0A000', $tree);
psql_fails($n1, 'CREATE UNLOGGED TABLE parted_2 PARTITION OF parted FOR VALUES IN (2)', '0A000', 'cannot be unlogged', 'logged');
psql_fails($n1, 'ALTER TABLE parted_1_1 SET UNLOGGED', '0A000', 'cannot be unlogged');
sql($n1, 'CREATE UNLOGGED TABLE parted_2 (id int PRIMARY KEY, v text, __repl_clock repl_ml.vclock NOT NULL DEFAULT repl_ml.tick())');
psql_fails($n1, 'ALTER TABLE parted ATTACH PARTITION parted_2 FOR VALUES IN (2)', '0A000', 'cannot be unlogged');
sql($n1, 'CREATE TABLE plain_kid () INHERITS (lone)');
sql($n1, 'CREATE TABLE parted_3 PARTITION OF parted FOR VALUES IN (3)');

# and they can be removed
sql($n1, "SELECT repl_ml.remove_table('$_')") foreach @added;
poll_until($_, q(SELECT count(*) = 0 FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid WHERE attname = '__repl_clock' AND NOT attisdropped
	AND c.relnamespace = 'public'::regnamespace AND c.relname <> 'parted_2')) foreach @nodes;

done_testing();
