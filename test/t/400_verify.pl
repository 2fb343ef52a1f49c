# verify_table and diff_rows find every difference between members, whatever it is in and however small, with its key and
# what it is, and nothing else; a member that cannot be compared is never said to be consistent; who may not read sees
# nothing; nothing is left behind by a comparison that was cancelled or whose process was killed.
#
# Seen failing: without the hash of values past LONG_VALUE, with columns by their numbers, with an enum's OID as its value,
# and with one round in place of several.
use strict;
use warnings;
use IPC::Run;
use PostgreSQL::Test::Utils;
use ReplMl;
use Situations;
use Test::More;

my @nodes = new_group(3, <<'SQL');
CREATE TABLE t (id int PRIMARY KEY, v text, w text, f float8, big text);
ALTER TABLE t ALTER big SET STORAGE EXTERNAL;
CREATE TABLE empty (id int PRIMARY KEY);
CREATE TABLE one (id int PRIMARY KEY, v text);
CREATE TABLE child (id int PRIMARY KEY, one int REFERENCES one);
CREATE TYPE mood AS ENUM ('sad', 'ok', 'happy');
CREATE TYPE pair AS (a int, m mood);
CREATE DOMAIN short AS text CHECK (length(value) < 50);
CREATE TYPE moods AS RANGE (subtype = mood);
CREATE TABLE kinds (gone int, b text, dropped text, a numeric, m mood, c pair, d short, e mood[], p pair[], r int4range, mr nummultirange, j jsonb,
    k text[], u uuid, i interval, ts timestamptz, by bytea, n name, bit varbit, net inet, reg regclass, tv tsvector, mo moods, ch "char", bp char(5), doubled numeric GENERATED ALWAYS AS (a * 2) STORED,
    PRIMARY KEY (b, a));
ALTER TABLE kinds DROP dropped, DROP gone;
SELECT repl_ml.add_all_tables();
SQL
my ($n1, $n2, $n3) = @nodes;
poll_until($_, q(SELECT count(*) = 5 FROM repl_ml.tables WHERE state = 'replicated' AND pending_copies = 0)) foreach @nodes;


# Tables that the nodes have made on their own: another order of columns, dropped ones, other partitions, another collation.
sql($n1, 'CREATE TABLE own (id int PRIMARY KEY, a int, b text, c text); CREATE TABLE parted (id int PRIMARY KEY, v text) PARTITION BY RANGE (id);'
	  . ' CREATE TABLE parted_1 PARTITION OF parted FOR VALUES FROM (0) TO (50); CREATE TABLE parted_2 PARTITION OF parted FOR VALUES FROM (50) TO (1000);'
	  . ' CREATE TABLE named (name text COLLATE "C" PRIMARY KEY, v int)');
sql($_, 'CREATE TABLE own (c text, id int, gone int, b text, a int, PRIMARY KEY (id)); ALTER TABLE own DROP gone; CREATE TABLE parted (v text, id int PRIMARY KEY) PARTITION BY RANGE (id);'
	  . ' CREATE TABLE parted_all PARTITION OF parted FOR VALUES FROM (0) TO (1000); CREATE TABLE named (v int, name text PRIMARY KEY)') foreach $n2, $n3;
sql($n1, "SELECT repl_ml.add_table('$_')") foreach qw(own parted named);
poll_until($_, q(SELECT count(*) = 8 FROM repl_ml.tables WHERE state = 'replicated' AND pending_copies = 0)) foreach @nodes;

sql($n1, <<'SQL');
INSERT INTO t SELECT g, 'v' || g, '', g, repeat(md5(g::text), 200) FROM generate_series(1, 300) g;
UPDATE t SET f = 0 WHERE id = 60;
UPDATE t SET f = 'NaN' WHERE id = 61;
INSERT INTO one VALUES (1, 'v');
INSERT INTO own SELECT g, g, 'b' || g, 'c' || g FROM generate_series(1, 100) g;
INSERT INTO parted SELECT g, 'v' || g FROM generate_series(1, 100) g;
INSERT INTO named SELECT CASE WHEN g % 2 = 0 THEN chr(96 + g) ELSE chr(64 + g) END || g, g FROM generate_series(1, 26) g;
SQL
sql($n2, <<'SQL');
INSERT INTO kinds (b, a, m, c, d, e, p, r, mr, j, k, u, i, ts, by, n, bit, net, reg, tv, mo, ch, bp)
SELECT 'b' || g, g + 0.10, (enum_range(NULL::mood))[1 + g % 3], (g, 'ok'::mood)::pair, 'd' || g, '{sad,NULL,happy}', ARRAY[(1, 'sad'::mood)::pair, NULL, (g, NULL::mood)::pair],
       int4range(g, g + 5), nummultirange(numrange(g, g + 1), numrange(g + 2, NULL)), jsonb_build_object('b', g, 'a', ARRAY[1.50, NULL]), '[2:3][1:1]={{x},{NULL}}'::text[],
       gen_random_uuid(), make_interval(months => g, secs => 1.5), now(), decode('00ff', 'hex'), 'n' || g, B'101', '10.0.0.0/8', 'kinds', to_tsvector('simple', 'b a b'),
       moods('sad', 'happy'), chr(g)::"char", 'x'
  FROM generate_series(1, 100) g;
INSERT INTO kinds (b, a) VALUES ('', 'NaN'), (repeat('long ', 500), 0);
SQL
wait_converged(\@nodes);
isnt(sql($n1, q(SELECT 'mood'::regtype::oid)), sql($n2, q(SELECT 'mood'::regtype::oid)), 'an enum has another OID on n2');

# What verify_all says: a line for each table that is not consistent.
sub wrong
{
	my ($node) = @_;
	return sql($node, q(SELECT relation, status, unreachable, detail FROM repl_ml.verify_all() WHERE status <> 'consistent'));
}

is(sql($n1, 'SELECT relation, status, members, unreachable, rows, chunks > 0, differing_rows, detail, hint FROM repl_ml.verify_all()'),
	join("\n", map { "$_->[0]|consistent|{n1,n2,n3}|{}|$_->[1]|t|0||" } [ child => 0 ], [ empty => 0 ], [ kinds => 102 ], [ named => 26 ], [ one => 1 ], [ own => 100 ], [ parted => 100 ], [ t => 300 ]),
	'equal tables of all kinds');
is(wrong($_), '', 'as ' . $_->name . ' sees it') foreach $n2, $n3;
is(sql($n1, q(SELECT status, detail FROM repl_ml.health WHERE check_name = 'consistency')), 'ok|No table differed when it was last compared here.', 'health says so');
sql($n1, q(SET session_replication_role = replica; INSERT INTO child VALUES (1, 99)));
wait_converged(\@nodes);
is(sql($n2, q(SELECT status, detail, hint FROM repl_ml.verify_all() WHERE relation = 'child'::regclass)), q(consistent|rows whose foreign keys refer to nothing: 1|Run SELECT * FROM repl_ml.orphans('public.child').), 'orphans are counted');

# ---- plants ----

# The differences in a table: key, verdict, columns.
sub differences
{
	my ($node, $table) = @_;
	return sql($node, "SELECT key, verdict, columns FROM repl_ml.diff_rows('$table') ORDER BY length(key::text), key");
}

# a deletion that all have, and an update
my $old = sql($n1, 'SELECT __repl_clock FROM t WHERE id = 70');
my $deleted = sql($n1, 'SELECT __repl_clock FROM t WHERE id = 10');
sql($n1, q(DELETE FROM t WHERE id = 10; UPDATE t SET v = 'new' WHERE id = 70));
wait_converged(\@nodes);

plant($n2, 't', q(UPDATE t SET v = 'flipped' WHERE id = 1));
plant($n2, 't', q(UPDATE t SET v = CASE id WHEN 20 THEN 'v21' ELSE 'v20' END WHERE id IN (20, 21)));
plant($n2, 't', q(UPDATE t SET f = f + CASE id WHEN 30 THEN 1 ELSE -1 END WHERE id IN (30, 31)));
plant($n1, 't', q(UPDATE t SET w = NULL WHERE id = 40));
plant($n3, 't', q(UPDATE t SET big = overlay(big placing 'X' from 5000 for 1) WHERE id = 50));
plant($n3, 't', q(UPDATE t SET f = '-0' WHERE id = 60));
plant($n3, 't', q(UPDATE t SET f = 'NaN(0x123)' WHERE id = 61));
plant($n3, 't', "UPDATE t SET v = 'v70', __repl_clock = '$old' WHERE id = 70");
plant($n2, 't', q(UPDATE t SET __repl_clock = repl_ml.merge(__repl_clock, '{2:5}') WHERE id = 80));
plant($n2, 't', q(UPDATE t SET v = 'other', __repl_clock = '{2:700000000000000}' WHERE id = 90));
plant($n3, 't', q(DELETE FROM t WHERE id = 300));
plant($n3, 't', "INSERT INTO t (id, v, __repl_clock) VALUES (10, 'v10', '$deleted')");
plant($n2, 't', q(INSERT INTO t (id, v) VALUES (1000, 'extra')));
my $found = <<'ROWS';
{1}|corrupt|{v}
{10}|extra|{}
{20}|corrupt|{v}
{21}|corrupt|{v}
{30}|corrupt|{f}
{31}|corrupt|{f}
{40}|corrupt|{w}
{50}|corrupt|{big}
{60}|corrupt|{f}
{61}|corrupt|{f}
{70}|lagging|{v,__repl_clock}
{80}|lagging|{__repl_clock}
{90}|concurrent|{v,__repl_clock}
{300}|missing|{}
{1000}|extra|{}
ROWS
is(differences($_, 't') . "\n", $found, 'what ' . $_->name . ' finds in t') foreach @nodes;
is(sql($n1, q(SELECT status, rows, differing_rows, detail, hint FROM repl_ml.verify_table('t'))),
	q(differs|299|15|corrupt: 9; missing: 1; extra: 2; concurrent: 1; lagging: 2|Run SELECT * FROM repl_ml.diff_rows('public.t').), 'and what verify_table says');
is(sql($n1, q(SELECT string_agg(concat_ws(' ', status, is_last, is_last_good), ', ' ORDER BY id) FROM repl_ml.consistency_checks WHERE table_name = 't')), 'consistent f t, differs t f', 'what came of it is kept');
like(sql($n1, q(SELECT status, detail FROM repl_ml.health WHERE check_name = 'consistency')), qr/^error\|Tables that were not the same .*: public\.t \(15 rows/, 'and health names the table');
sql($n1, q(SELECT FROM repl_ml.verify_table('t'))) foreach 1 .. 10;
is(sql($n1, q(SELECT count(*), count(*) FILTER (WHERE is_last_good AND status = 'consistent') FROM repl_ml.consistency_checks WHERE table_name = 't')), '11|1', 'the last ones, and the last good one');
is(sql($n1, q(BEGIN READ ONLY; SELECT status FROM repl_ml.verify_table('one'); COMMIT)), 'consistent', 'also where nothing can be kept');
is(sql($n1, q(SELECT versions -> 'n1' ->> 'row', versions -> 'n2' -> 'row' ->> 'v', versions -> 'n3' ->> 'clock' FROM repl_ml.diff_rows('t') WHERE key = '{1000}')), '|extra|', 'versions by node');
my ($other, $row, $clock) = split /\|/, sql($n1, q(SELECT versions -> 'n3' -> 'row' ->> 'v', versions -> 'n1' ->> 'row', versions -> 'n1' ->> 'clock' FROM repl_ml.diff_rows('t') WHERE key = '{10}')), -1;
is("$other|$row", 'v10|', 'a deleted row is none');
ok($clock ne '' || sql($n1, q(SELECT count(*) FROM repl_ml.tombstone WHERE key = '{10}')) == 0, 'and has a clock as long as its tombstone is there');
is(sql($n1, q(SELECT count(*) FROM repl_ml.diff_rows('t', 3))), 3, 'not more than are wanted');

plant($n2, 'empty', 'INSERT INTO empty VALUES (1)');
plant($n3, 'one', 'DELETE FROM one');
plant($n2, 'own', q(UPDATE own SET b = c, c = b WHERE id = 50));
plant($n2, 'parted_all', q(UPDATE parted SET v = 'x' WHERE id = 49));
plant($n3, 'named', q(UPDATE named SET v = 0 WHERE name = 'Y25'));
plant($n3, 'kinds', q(UPDATE kinds SET m = 'sad' WHERE b = 'b1'; UPDATE kinds SET e = '{sad,NULL,ok}' WHERE b = 'b2'; UPDATE kinds SET p = ARRAY[(1, 'ok')::pair, NULL, (3, NULL)::pair] WHERE b = 'b3';)
	  . q(UPDATE kinds SET r = '[4,5]' WHERE b = 'b4'; UPDATE kinds SET mo = '(sad,happy)' WHERE b = 'b5'; UPDATE kinds SET k = '{{x},{NULL}}' WHERE b = 'b6'; UPDATE kinds SET a = 7.1 WHERE b = 'b7';)
	  . q(UPDATE kinds SET reg = 'one' WHERE b = 'b8'; UPDATE kinds SET tv = to_tsvector('simple', 'b a') WHERE b = 'b9'));
is(join("\n", map { "$_ " . differences($n1, $_) =~ s/\n/ /gr } qw(empty one own parted named)), <<'ROWS' =~ s/\n\z//r, 'in other tables');
empty {1}|extra|{}
one {1}|missing|{}
own {50}|corrupt|{b,c}
parted {49}|corrupt|{v}
named {Y25}|corrupt|{v}
ROWS
is(differences($n2, 'kinds') =~ s/7\.10?\}/7}/r, <<'ROWS' =~ s/\n\z//r, 'in values of all kinds');
{b7,7}|corrupt|{a}
{b1,1.10}|corrupt|{m}
{b2,2.10}|corrupt|{e}
{b3,3.10}|corrupt|{p}
{b4,4.10}|corrupt|{r}
{b5,5.10}|corrupt|{mo}
{b6,6.10}|corrupt|{k}
{b8,8.10}|corrupt|{reg}
{b9,9.10}|corrupt|{tv}
ROWS


# ---- who may ----

sql($_, q(CREATE ROLE owner; CREATE ROLE operator; GRANT repl_ml_admin TO operator; CREATE ROLE nobody)) foreach @nodes;
sql($n1, 'ALTER TABLE t OWNER TO owner; GRANT SELECT ON t TO nobody');
is(sql($n1, q(SET ROLE owner; SELECT relation, differing_rows FROM repl_ml.verify_all())), 't|15', 'an owner compares his tables');
is(sql($n1, q(SET ROLE owner; SELECT key, versions -> 'n2' -> 'row' ->> 'v' FROM repl_ml.diff_rows('t') WHERE key = '{1}')), '{1}|flipped', 'and sees the rows');
is(sql($n1, q(SET ROLE operator; SELECT count(*), count(key), count(nullif(versions -> 'n2' ->> 'row', '')), count(DISTINCT verdict) FROM repl_ml.diff_rows('t'))), '15|0|0|5', 'who may not read the table sees neither keys nor rows');
is(sql($n1, q(SET ROLE operator; SELECT count(*) FROM repl_ml.verify_all())), 8, 'an operator compares all tables');
psql_fails($n1, "SET ROLE nobody; SELECT $_", '42501', 'permission denied', 'owner and members of repl_ml_admin') foreach q(* FROM repl_ml.verify_table('t')), q(* FROM repl_ml.diff_rows('t'));
psql_fails($n1, "SET ROLE operator; $_", '42501', 'permission denied for (function|procedure)') foreach q(CALL repl_ml.verify_sums('public', 't', '', 1, '{}', -1, 0, NULL)),
  q(CALL repl_ml.verify_rows('public', 't', '', 1, '\x00', -1, 0, NULL)), q(SELECT repl_ml.verify_keys('public', 't', '', 1, '{1}', '{}', 1, 2));
is(sql($n1, q(SET ROLE nobody; SELECT count(*) FROM repl_ml.verify_all())), 0, 'others compare nothing');

# ---- what cannot be compared ----

psql_fails($n1, q(BEGIN; INSERT INTO one VALUES (2, 'mine'); SELECT * FROM repl_ml.verify_table('one')), '25001', 'has written', 'COMMIT');
sql($n1, 'CREATE TABLE local (id int PRIMARY KEY)');
psql_fails($n1, q(SELECT * FROM repl_ml.verify_table('local')), '55000', 'is not replicated', 'add_table');
psql_fails($n1, q(SELECT * FROM repl_ml.diff_rows('one', -1)), '22023', 'max_rows', 'For example');
sql($n3, 'ALTER TABLE named ADD note text');
is(sql($n1, q(SELECT status, members, unreachable, detail FROM repl_ml.verify_table('named'))), 'incomplete|{n1,n2}|{n3}|node "n3" is not compared: Its table has other columns or another key.', 'other columns');
is(sql($n1, q(SELECT key, verdict, columns, detail FROM repl_ml.diff_rows('named'))), '|schema|{note}|only here: none; only on node "n3": note text', 'which ones');
sql($n3, 'ALTER TABLE named DROP note');

# a change that could not be applied is why its row is missing
sql($n3, 'ALTER TABLE one ADD CONSTRAINT small CHECK (id < 5)');
sql($n1, q(INSERT INTO one VALUES (7, 'parked')));
poll_until($n3, q(SELECT count(*) = 1 FROM repl_ml.parked_changes));
my $parked = sql($n3, 'SELECT id FROM repl_ml.parked_changes');
is(sql($n1, q(SELECT verdict, detail FROM repl_ml.diff_rows('one') WHERE key = '{7}')), qq(parked|change $parked is parked on node "n3"), 'a parked change is named');
sql($n3, 'ALTER TABLE one DROP CONSTRAINT small');
poll_until($n3, q(SELECT count(*) = 0 FROM repl_ml.parked_changes));

# what is on its way is no difference, and is not said to be none
cut($n2, $n1);
sql($n1, q(INSERT INTO own VALUES (200, 1, 'b', 'c'); DELETE FROM own WHERE id = 50));
poll_until($n3, q(SELECT count(*) FILTER (WHERE id = 200) = 1 AND count(*) FILTER (WHERE id = 50) = 0 FROM own));
is(sql($n1, q(SELECT status, differing_rows, unreachable, detail ~ '^still on their way: 2; .*node "n2" has not caught up with the others' FROM repl_ml.verify_table('own', '1 s'))), 'incomplete|0|{}|t', 'a member that does not catch up');
is(sql($n3, q(SELECT key, verdict, detail IS NOT NULL FROM repl_ml.diff_rows('own', timeout => '1 s') ORDER BY 1)), "{200}|lagging|t\n{50}|lagging|t", 'and what is on its way');
heal($n2, $n1);
is(sql($n1, q(SELECT status, rechecked_rows >= 0 FROM repl_ml.verify_table('own'))), 'consistent|t', 'when it has come');

# ---- while all write ----

sql($_, <<'SQL') foreach @nodes;
CREATE PROCEDURE write(rounds int) LANGUAGE plpgsql AS $$
DECLARE r int;
BEGIN
    FOR i IN 1 .. rounds LOOP
        r := 500 + random() * 40;
        IF random() < 0.2 THEN DELETE FROM parted WHERE id = r;
        ELSE INSERT INTO parted VALUES (r, random()) ON CONFLICT (id) DO UPDATE SET v = excluded.v; END IF;
        COMMIT;
    END LOOP;
END $$;
SQL
plant($n2, 'parted_all', q(UPDATE parted SET v = 'v49' WHERE id = 49));
my @writers = map { IPC::Run::start([ 'psql', '-XAtq', '-d', dsn($_), '-c', 'CALL write(500)' ]) } @nodes;
my ($rounds, %said) = (0);
while (grep { $_->pumpable } @writers)
{
	# one that has ended cannot be pumped
	eval { $_->pump_nb } foreach @writers;
	$said{ sql($nodes[ $rounds++ % 3 ], q(SELECT status || coalesce(': ' || detail, '') FROM repl_ml.verify_table('parted', '60 s'))) }++;
}
$_->finish foreach @writers;
is(join(' ', keys %said), 'consistent', "no false alarm in $rounds comparisons");

# ---- ended before their end ----

# Comparisons that wait for n2, and the part of n3, which waits for its own.
cut($_, $n1) foreach $n2, $n3;
sql($n1, q(INSERT INTO parted VALUES (600, 'held')));
foreach my $end (qw(pg_cancel_backend pg_terminate_backend))
{
	my $waiting = IPC::Run::start([ 'psql', '-XAtq', '-d', dsn($n1), '-c', q(SELECT * FROM repl_ml.verify_table('parted', '10 min')) ], '2>', \my $stderr);
	poll_until($n1, q(SELECT count(*) = 1 FROM repl_ml.stat_progress_verify WHERE relation = 'parted'::regclass AND phase = 'waiting for members' AND chunks_done = chunks_total AND rows > 0));
	poll_until($n3, q(SELECT count(*) = 1 FROM pg_stat_activity WHERE query LIKE '%verify\_keys%' AND pid <> pg_backend_pid()));
	sql($n1, "SELECT $end(pid) FROM repl_ml.stat_progress_verify");
	$waiting->finish;
	like($stderr, qr/canceling|terminating/, "$end ends it");
	poll_until($n1, 'SELECT count(*) = 0 FROM repl_ml.stat_progress_verify');
	poll_until($_, q(SELECT count(*) = 0 FROM pg_stat_activity WHERE query LIKE '%verify\_keys%' AND pid <> pg_backend_pid())) foreach $n2, $n3;
}
heal($_, $n1) foreach $n2, $n3;

# ---- a member that is down ----

$n3->stop;
is(sql($n1, q(SELECT status, members, unreachable, detail ~ '^node "n3" is not compared: connection', hint ~ 'health' FROM repl_ml.verify_table('parted'))), 'incomplete|{n1,n2}|{n3}|t|t', 'a member that is down');
is(sql($n1, q(SELECT status, unreachable FROM repl_ml.verify_table('t'))), 'differs|{n3}', 'differences between the others are found all the same');
my (undef, $out, $err) = $n1->psql('postgres', q(SELECT count(*) FROM repl_ml.diff_rows('parted')));
is($out, '0', 'no rows of its');
like($err, qr/WARNING:  node "n3" is not compared/, 'and a warning');

done_testing();
