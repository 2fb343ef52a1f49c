# What a node cannot send or another cannot hold is refused beforehand, or set aside under its name while everything else goes on.
#
# Seen failing with admission.c that does not compare the encodings: the database joins.
use strict;
use warnings;
use ReplMl;
use Test::More;

my ($n1, $n2) = my @nodes = new_group(2, q(CREATE TABLE t (id int PRIMARY KEY, v text); SELECT repl_ml.add_table('t')));

# a database of another encoding is told so, before and when it joins
sql($n2, q(CREATE DATABASE latin ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0));
$n2->safe_psql('latin', 'CREATE EXTENSION repl_ml');
my ($status, undef, $error) = $n2->psql('latin', q{SELECT repl_ml.join_group('n3', } . literal($n2->connstr('latin')) . ', ' . literal(dsn($n1)) . ')',
	extra_params => [ '-v', 'VERBOSITY=verbose' ]);
isnt($status, 0, 'a database of another encoding cannot join');
like($error, qr/ERROR:  55000: the encoding of this database is LATIN1, that of the group is UTF8.*HINT:  Run CREATE DATABASE .* ENCODING 'UTF8'/s, 'the error says why');
is($n2->safe_psql('latin', 'SELECT check_name, status, detail FROM repl_ml.check_setup(' . literal(dsn($n1)) . q{) WHERE check_name = 'encoding'}),
	'encoding|error|is LATIN1 here, UTF8 there', 'check_setup says it, too');
is(sql($n1, 'SELECT status FROM repl_ml.check_setup(' . literal(dsn($n2)) . q{) WHERE check_name IN ('encoding', 'locale') ORDER BY check_name}), "ok\nok", 'and is content with the other one');
is(sql($n1, 'SELECT count(*) FROM repl_ml.member'), '2', 'nobody was registered');

# a row that is too long is refused where it is written, however it is written
sql($_, q(CREATE TYPE mood AS ENUM ('sad', 'ok'))) foreach @nodes;
sql($n1, q(CREATE TABLE big (id int PRIMARY KEY, m mood DEFAULT 'ok', v text, b bytea, bits varbit, j jsonb, a text[]);
CREATE TABLE parts (id int, v text, PRIMARY KEY (id)) PARTITION BY RANGE (id);
CREATE TABLE parts_1 PARTITION OF parts FOR VALUES FROM (0) TO (100);
SELECT repl_ml.add_table(x) FROM unnest('{big, parts}'::regclass[]) x));
sql($_, 'ALTER SYSTEM SET repl_ml.max_row_size = 64; SELECT pg_reload_conf()') foreach @nodes;
poll_until($n2, q(SELECT count(*) = 2 FROM repl_ml.tables WHERE table_name IN ('big', 'parts') AND state = 'replicated' AND pending_copies = 0));
poll_until($n1, q(SELECT current_setting('repl_ml.max_row_size') = '64kB'));
sql($n1, q(INSERT INTO big (id, v, b) VALUES (1, repeat('x', 60000), repeat('x', 2000)::bytea), (2, repeat(md5('2'), 1800), NULL), (3, 'short', NULL)));
my $text = q(repeat(md5('1'), 2100));
foreach my $write (
	"INSERT INTO big (id, v) VALUES (10, repeat('x', 70000))", "INSERT INTO big (id, v) SELECT i, CASE i WHEN 19 THEN $text END FROM generate_series(10, 20) i",
	"INSERT INTO big (id, b) VALUES (10, repeat('x', 40000)::bytea)", "INSERT INTO big (id, bits) VALUES (10, repeat('1', 70000)::varbit)",
	"INSERT INTO big (id, j) SELECT 10, jsonb_agg(i) FROM generate_series(100000, 110000) i", "INSERT INTO big (id, a) SELECT 10, array_agg(i::text) FROM generate_series(100000, 110000) i",
	"UPDATE big SET b = repeat('y', 3000)::bytea WHERE id = 1", "UPDATE big SET j = to_jsonb(v) WHERE id = 2",
	"INSERT INTO big (id) VALUES (3) ON CONFLICT (id) DO UPDATE SET v = $text", "INSERT INTO parts VALUES (1, $text)",
	q(COPY big (id, v) FROM PROGRAM 'perl -e ''print qq($_\t), $_ == 25 ? q(z) x 70000 : q(z), qq(\n) foreach 20 .. 30'''))
{
	psql_fails($n1, $write, '54000', 'row of replicated table "\w+" is too long', 'raise "repl_ml.max_row_size"');
}
sql($n1, q(UPDATE big SET m = 'sad' WHERE id = 1; INSERT INTO parts VALUES (1, 'short')));
wait_converged(\@nodes, 'big', 'parts');
is(sql($n2, 'SELECT count(*) FROM big'), '3', 'what was not refused has arrived');

# a peer that is long in applying a large row counts as reachable all the while: as long as this session holds the lock
sql($n2, q(CREATE FUNCTION busy() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN WHILE NOT pg_try_advisory_xact_lock(331) LOOP END LOOP; RETURN NEW; END$$;
CREATE TRIGGER busy BEFORE INSERT ON t FOR EACH ROW WHEN (NEW.id = 100) EXECUTE FUNCTION busy(); ALTER TABLE t ENABLE ALWAYS TRIGGER busy));
my $busy = $n2->background_psql('postgres');
$busy->query_safe('SELECT pg_advisory_lock(331)');
sql($_, q(ALTER SYSTEM SET repl_ml.heartbeat_interval = '200ms'; ALTER SYSTEM SET repl_ml.max_row_size = '4MB'; SELECT pg_reload_conf())) foreach @nodes;
poll_until($n1, q(SELECT current_setting('repl_ml.max_row_size') = '4MB'));
sql($n1, q(INSERT INTO t SELECT 100, string_agg(md5(i::text), '') FROM generate_series(1, 60000) i));
# so long after, what it said before no longer counts
poll_until($n1, q(SELECT bool_and(clock_timestamp() - reply_time > interval '2 s') FROM pg_stat_replication));
is(sql($n1, 'SELECT bool_and(reachable) FROM repl_ml.write_members()'), 't', 'it is reachable while it applies the row');
is(sql($n2, 'SELECT count(*) FROM t WHERE id = 100'), '0', 'and it has not applied it yet');
$busy->quit;
poll_until($n2, 'SELECT count(*) = 1 FROM t WHERE id = 100');
sql($n1, 'DELETE FROM t WHERE id = 100');
sql($_, q(ALTER SYSTEM SET repl_ml.max_row_size = 64; SELECT pg_reload_conf())) foreach @nodes;

# a group that has two encodings all the same: n2 becomes LATIN1, as long as all is ASCII
sql($n1, q(INSERT INTO t SELECT i, 'a' FROM generate_series(1, 3) i));
wait_converged(\@nodes, 't');
sql($n2, q(SET allow_system_table_mods = on; UPDATE pg_database SET encoding = pg_char_to_encoding('LATIN1') WHERE datname = 'postgres'));
$n2->restart;
$ENV{PGCLIENTENCODING} = 'UTF8';
sql($n1, q(INSERT INTO t VALUES (11, 'é'), (12, '€'), (13, 'b'); INSERT INTO parts VALUES (2, 'after it')));
sql($n1, q(INSERT INTO t VALUES (14, '€'); INSERT INTO t VALUES (15, 'c')));
poll_until($n2, 'SELECT count(*) = 3 FROM t WHERE id > 10');
poll_until($n2, 'SELECT count(*) = 1 FROM parts WHERE id = 2');
is(sql($n2, q(SELECT string_agg(id || v, ',' ORDER BY id) FROM t WHERE id > 10)), '11é,13b,15c', 'what the other encoding has has arrived');
is(sql($n2, 'SELECT schema_name, table_name, key FROM repl_ml.unsent ORDER BY key'), "public|t|{12}\npublic|t|{14}", 'what it has not is noted');
like(sql($n2, q(SELECT status, detail FROM repl_ml.health WHERE check_name = 'unsent')),
	qr/^error\|Node "n1" could not send row \{12\} of table public\.t: character .* has no equivalent/, 'health names it where it is lacking');
poll_until($n1, q(SELECT status = 'warning' AND detail ~ 'Node "n2" lacks rows .* public.t of node "n1"' FROM repl_ml.health WHERE check_name = 'unsent'));
is(sql($n2, q(SELECT count(*) FROM repl_ml.stat_apply WHERE state = 'streaming')), '1', 'the link goes on');

# who lacks a row does not count for its transaction
psql_fails($n1, q(BEGIN; SET LOCAL repl_ml.write_consistency = quorum; INSERT INTO t VALUES (16, '€'), (17, 'd'); COMMIT), '40003', 'not acknowledged', 'repl_ml\.health on those nodes');
poll_until($n2, 'SELECT count(*) = 1 FROM t WHERE id = 17');
sql($n1, q(DELETE FROM t WHERE id = 16));
sql($n1, q(BEGIN; SET LOCAL repl_ml.write_consistency = quorum; INSERT INTO t VALUES (18, 'e'); COMMIT));

# the next version that can be sent, or the deletion, heals it
sql($n1, q(UPDATE t SET v = 'euro' WHERE id = 12));
sql($n1, q(DELETE FROM t WHERE id = 14));
poll_until($_, q(SELECT status = 'ok' FROM repl_ml.health WHERE check_name = 'unsent')) foreach $n2, $n1;

done_testing();
