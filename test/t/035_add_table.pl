# A table added to or removed from a group that exists is so on all members, and their rows are joined.
use strict;
use warnings;
use Membership;
use PostgreSQL::Test::Utils;
use ReplMl;
use Test::More;

my ($n1, $n2, $n3) = my @nodes = new_group(3);

sub wait_replicated
{
	my ($table) = @_;
	poll_until($_, "SELECT count(*) = 1 FROM repl_ml.tables WHERE relation = to_regclass('$table') AND state = 'replicated' AND pending_copies = 0")
	  foreach @nodes;
}

# The others have no such table, nor its schema.
sql($n2, <<'SQL');
CREATE SCHEMA "New schema";
CREATE TABLE "New schema"."it's" (id serial PRIMARY KEY, "a ""b" text DEFAULT 'x', twice integer GENERATED ALWAYS AS (id * 2) STORED);
CREATE INDEX ON "New schema"."it's" ("a ""b");
INSERT INTO "New schema"."it's" ("a ""b") SELECT i FROM generate_series(1, 500) i;
SELECT repl_ml.add_table('"New schema"."it''s"');
INSERT INTO "New schema"."it's" ("a ""b") VALUES ('after');
SQL
wait_replicated(q("New schema"."it''s"));
sql($n3, q(UPDATE "New schema"."it's" SET "a ""b" = 'from n3' WHERE id <= 10; DELETE FROM "New schema"."it's" WHERE id = 20));
wait_converged(\@nodes, q("New schema"."it's"));
is(sql($n1, q(SELECT count(*), sum(twice), count(*) FILTER (WHERE "a ""b" = 'from n3') FROM "New schema"."it's")),
	'500|251462|10', 'n1 has the table and its rows');
is(sql($n1, q(SELECT count(*) FROM pg_indexes WHERE schemaname = 'New schema')), '2', 'and its indexes');

# All have the table, two have rows: they are joined, and differing ones are conflicts.
my $shared = 'CREATE TABLE shared (id integer PRIMARY KEY, v text)';
sql($n1, "$shared; INSERT INTO shared VALUES (1, 'same'), (2, 'of n1'), (3, 'only n1')");
sql($n2, $shared);
sql($n3, "$shared; INSERT INTO shared VALUES (1, 'same'), (2, 'of n3'), (4, 'only n3')");
sql($n1, q(SELECT repl_ml.add_table('shared')));
wait_replicated('shared');
wait_converged(\@nodes, 'shared');
is(sql($n2, 'SELECT id, v FROM shared WHERE id <> 2 ORDER BY 1'), "1|same\n3|only n1\n4|only n3", 'rows of both');
# A member that copies after another has resolved it gets the joined version and sees no conflict.
my %seen;
foreach my $node (@nodes)
{
	$seen{$_}++ foreach split /\n/, sql($node, q(SELECT conflict_id, key, winner_row ->> 'v' IN ('of n1', 'of n3'), loser_row ->> 'v' IN ('of n1', 'of n3') FROM repl_ml.conflicts WHERE table_name = 'shared'));
}
is(scalar(keys %seen), 1, 'one conflict, under one id on whoever saw both rows');
like((keys %seen)[0], qr/\|\{2\}\|t\|t$/, 'and it holds both rows');

# A client writes a table that has been made from n1's definition, with its clock, and is not enrolled yet.
sql($n2, q(CREATE TABLE early (id integer PRIMARY KEY, v text, __repl_clock repl_ml.vclock NOT NULL DEFAULT repl_ml.tick());
	INSERT INTO early VALUES (1, 'n2'), (2, 'only n2')));
sql($n1, q(CREATE TABLE early (id integer PRIMARY KEY, v text); INSERT INTO early VALUES (1, 'n1'), (3, 'only n1'); SELECT repl_ml.add_table('early')));
wait_replicated('early');
wait_converged(\@nodes, 'early');
is(sql($n3, q(SELECT string_agg(id::text, ',' ORDER BY id) FROM early)), '1,2,3', 'what was written before the table was enrolled reaches all');

# The third member hears of a table first from one that did not add it.
cut($n2, $n1);
sql($n1, 'CREATE TABLE late (id integer PRIMARY KEY, v text); INSERT INTO late VALUES (1, $$n1$$)');
sql($n1, q(SELECT repl_ml.add_table('late')));
poll_until($n3, q(SELECT count(*) = 1 FROM repl_ml.tables WHERE table_name = 'late' AND state = 'replicated' AND pending_copies = 0));
sql($n3, q(INSERT INTO late VALUES (2, 'n3'); UPDATE late SET v = 'n3' WHERE id = 1));
poll_until($n2, q(SELECT to_regclass('late') IS NOT NULL));
heal($n2, $n1);
wait_replicated('late');
wait_converged(\@nodes, 'late');
is(sql($n2, 'SELECT id, v FROM late ORDER BY 1'), "1|n3\n2|n3", 'n2 has both rows');

# A type that a member lost before it followed keeps just this table from it, until the type is there.
sql($_, q(CREATE TYPE mood AS ENUM ('good', 'bad'))) foreach @nodes;
foreach my $node ($n2, $n3)
{
	cut($node, $_) foreach grep { $_ != $node } @nodes;
}
sql($n1, <<'SQL');
CREATE SCHEMA people;
CREATE TABLE people.person (id integer PRIMARY KEY, mood mood NOT NULL);
INSERT INTO people.person VALUES (1, 'good');
SELECT repl_ml.add_table('people.person');
INSERT INTO people.person VALUES (2, 'bad');
INSERT INTO late VALUES (3, 'goes on');
SQL
sql($_, 'DROP TYPE mood') foreach $n2, $n3;
foreach my $node ($n2, $n3)
{
	heal($node, $_) foreach grep { $_ != $node } @nodes;
}
poll_until($_, 'SELECT count(*) = 3 FROM late') foreach @nodes;
is(sql($n2, q(SELECT state FROM repl_ml.tables WHERE table_name = 'person')), 'missing', 'the table is shown as missing');
like(sql($n2, q(SELECT problem FROM repl_ml.tables WHERE table_name = 'person')),
	qr/type "public.mood" does not exist/, 'with the reason');
# also where all tables have to be copied again
cut($n2, $n1);
poll_until($n1, q(SELECT NOT active FROM pg_replication_slots WHERE slot_name LIKE 'repl\_ml\_%\_2'));
sql($n1, q(SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name LIKE 'repl\_ml\_%\_2'));
sql($n1, q(INSERT INTO late VALUES (4, 'goes on still')));
heal($n2, $n1);
poll_until($n2, 'SELECT count(*) = 4 FROM late');
sql($n1, q(INSERT INTO late VALUES (5, 'and on')));
ok($n2->poll_query_until('postgres', 'SELECT count(*) = 5 FROM late'), 'a table that cannot be copied does not keep the others from it');
sql($_, q(CREATE TYPE mood AS ENUM ('good', 'bad'))) foreach $n2, $n3;
wait_replicated('people.person');
sql($n2, q(UPDATE people.person SET mood = 'good'));
wait_converged(\@nodes, 'people.person');
is(sql($n3, 'SELECT id, mood FROM people.person ORDER BY 1'), "1|good\n2|good", 'and then it comes with all rows');
sql($_, 'SELECT repl_ml.retry_parked(id) FROM repl_ml.parked_changes') foreach $n2, $n3;
is_equal_everywhere(\@nodes, 'people.person', 'what was parked meanwhile is no news');

# A partitioned table comes with its partitions, wherever they are.
sql($n1, <<'SQL');
CREATE SCHEMA "Old parts";
CREATE TABLE event (day date, id int, v text, PRIMARY KEY (day, id)) PARTITION BY RANGE (day);
CREATE TABLE event_2025 PARTITION OF event FOR VALUES FROM ('2025-01-01') TO ('2026-01-01') PARTITION BY RANGE (id);
CREATE TABLE "Old parts"."event ""2024""" PARTITION OF event FOR VALUES FROM ('2024-01-01') TO ('2025-01-01');
CREATE TABLE event_2025_a PARTITION OF event_2025 DEFAULT;
INSERT INTO event VALUES ('2024-05-05', 1, 'old'), ('2025-05-05', 2, 'new');
SELECT repl_ml.add_table('event');
SQL
wait_replicated('event');
sql($n2, q(INSERT INTO event VALUES ('2024-06-06', 3, 'n2'); UPDATE event SET v = 'n2' WHERE id = 2));
wait_converged(\@nodes, 'event');
is(sql($n3, 'SELECT tableoid::regclass, id, v FROM event ORDER BY id'),
	q("Old parts"."event ""2024"""|1|old) . "\nevent_2025_a|2|n2\n" . q("Old parts"."event ""2024"""|3|n2), 'rows in their partitions');

# Removed on one, ordinary on all; its rows stay, and nothing travels any more.
sql($n3, q(SELECT repl_ml.remove_table('shared')));
poll_until($_, q(SELECT count(*) = 0 FROM pg_attribute WHERE attrelid = 'shared'::regclass AND attname = '__repl_clock' AND NOT attisdropped)) foreach @nodes;
is(sql($_, q(SELECT count(*) FROM pg_trigger WHERE tgrelid = 'shared'::regclass)), '0', 'no trigger on ' . $_->name) foreach @nodes;
is(sql($_, q(SELECT count(*) FROM pg_publication_rel WHERE prrelid = 'shared'::regclass)), '0', 'not published on ' . $_->name) foreach @nodes;
sql($n1, q(INSERT INTO shared VALUES (10, 'n1 alone')));
sql($n2, q(DELETE FROM shared WHERE id = 1; INSERT INTO shared VALUES (10, 'n2 alone')));
wait_converged(\@nodes);
is(sql($n1, 'SELECT count(*) FROM shared'), '5', 'a write on n1 stays there');
is(sql($n3, 'SELECT count(*) FROM shared'), '4', 'n3 keeps its rows');
psql_fails($n1, q(SELECT repl_ml.remove_table('shared')), '42704', 'is not replicated', 'repl_ml.tables');

# Added again, with what has become of it on each.
sql($n1, q(SELECT repl_ml.add_table('shared')));
wait_replicated('shared');
wait_converged(\@nodes, 'shared');
is(sql($n3, 'SELECT count(*) FROM shared'), '5', 'the union of all rows');
no_errors(\@nodes);

# Two nodes add it at the same time, before either knows: what was in it before reaches all.
sql($_, "CREATE TABLE twice (id integer PRIMARY KEY, v text); INSERT INTO twice VALUES (1, 'same'), (2, 'of ' || '" . $_->name . "'), (" . ($_ == $n1 ? 3 : 4) . ", 'only here')") foreach $n1, $n2;
cut($n1, $n2);
cut($n2, $n1);
sql($_, q(SELECT repl_ml.add_table('twice'))) foreach $n1, $n2;
heal($n1, $n2);
heal($n2, $n1);
wait_replicated('twice');
wait_converged(\@nodes, 'twice');
is(sql($n3, q(SELECT string_agg(id::text, ',' ORDER BY id) FROM twice)), '1,2,3,4', 'added on two nodes at once: n3 has the rows of both');
is(sql($_, q(SELECT DISTINCT key FROM repl_ml.conflicts WHERE table_name = 'twice')), '{2}', 'added on two nodes at once: the row that differs is a conflict on ' . $_->name) foreach @nodes;

# Whoever enrols a table while another session does waits for it, and finds it enrolled.
sql($n1, q(CREATE TABLE thrice (id integer PRIMARY KEY)));
my ($first, $second) = map { $n1->background_psql('postgres') } 1 .. 2;
$first->query_safe(q(BEGIN; SELECT repl_ml.enrol('thrice')));
$second->query_until(qr/begun/, qq(\\echo begun\nSELECT 'the second says ' || coalesce(repl_ml.enrol('thrice')::text, 'nothing');\n));
poll_until($n1, q(SELECT count(*) = 1 FROM pg_locks WHERE NOT granted AND relation = 'thrice'::regclass));
$first->query_safe('COMMIT');
like($second->query_safe(q(SELECT 'done')), qr/done/, 'the second session has gone on');
$_->quit foreach $first, $second;
unlike(slurp_file($n1->logfile), qr/column "__repl_clock" of relation "thrice" already exists/, 'without an error');

# A table that a member had when it was last heard of is not called missing there.
sql($n3, q(ALTER TABLE shared ADD COLUMN extra integer));
poll_until($n1, q(SELECT detail LIKE '%column extra is missing on node "n1"%on node "n3".%' FROM repl_ml.health WHERE check_name = 'table_shapes'));
$n3->stop;
poll_until($n1, q(SELECT detail LIKE '%on node "n3" (when it was last heard of).%' FROM repl_ml.health WHERE check_name = 'table_shapes'));

done_testing();
