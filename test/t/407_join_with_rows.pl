# A database joins with rows of its own (copy_data => false): they are compared with the group's and joined by their clocks,
# both ways; rows without a clock that differ are asked about before anything is done; afterwards all members are equal, and
# what was lost or replaced is listed. Also where the worker or either server is killed meanwhile.
#
# Seen failing before there was meet.c: what was changed after the dump differs for good; and, of two that join at once, where
# the one that joined later did not copy from the other. A node that waits for its donor heard of no invitation before await.c
# read the donor's catalogs meanwhile, and could not write down who joins: two that came back at once waited for each other, 30 s.
use strict;
use warnings;
use Membership;
use ReplMl;
use PostgreSQL::Test::Utils;
use Situations;
use Test::More;

my ($n1, $n2) = new_group(2, <<'SQL');
CREATE TABLE t (id int PRIMARY KEY, v text);
CREATE TABLE u (id int PRIMARY KEY, v text UNIQUE);
CREATE TABLE parted (id int, k text, v text, PRIMARY KEY (k, id)) PARTITION BY RANGE (id);
CREATE TABLE parted_1 PARTITION OF parted FOR VALUES FROM (0) TO (50);
CREATE TABLE parted_2 (v text, k text NOT NULL, id int NOT NULL); ALTER TABLE parted ATTACH PARTITION parted_2 DEFAULT;
INSERT INTO t SELECT g, md5(g::text) FROM generate_series(1, 10000) g;
INSERT INTO u SELECT g, 'u' || g FROM generate_series(1, 20) g;
INSERT INTO parted SELECT g, 'k' || g, 'p' FROM generate_series(1, 99) g;
SELECT * FROM repl_ml.add_all_tables();
SQL
my @tables = qw(t u parted);
poll_until($n2, q(SELECT count(*) = 3 AND sum(pending_copies) = 0 FROM repl_ml.tables WHERE state = 'replicated'));
my $whole = sql($n2, q(SELECT bytes FROM repl_ml.table_sync WHERE table_name = 't'));
my $dump = PostgreSQL::Test::Utils::tempdir() . '/dump.sql';
command_ok([ 'pg_dump', '-d', dsn($n1), '-f', $dump ], 'pg_dump of a member');

sub join_own
{
	my ($node, $more) = @_;
	return 'SELECT repl_ml.join_group(' . join(', ', map { literal($_) } $node->name, dsn($node), dsn($n1)) . ", copy_data => false$more)";
}

# All members have the same rows, and say so.
sub is_settled
{
	my ($name, @nodes) = @_;
	poll_until($_, q(SELECT count(*) = 0 FROM repl_ml.table_sync WHERE state = 'pending')) foreach @nodes;
	is_equal_everywhere(\@nodes, $_, "$name: $_") foreach 't', 'u';
	my $parted = 'SELECT count(*), md5(string_agg(concat(id, k, v, __repl_clock), chr(10) ORDER BY id)) FROM parted';
	is(sql($_, $parted), sql($n1, $parted), "$name: parted on " . $_->name) foreach @nodes;
	poll_until($_, q(SELECT bool_and(status = 'consistent') FROM repl_ml.verify_all())) foreach @nodes;
	return;
}

sub history { my ($node) = @_; return sql($node, q(SELECT table_name, key, action, verdict, before ->> 'v', after ->> 'v' FROM repl_ml.repair_history ORDER BY table_name, key::text COLLATE "C")) }

# A dump a little old. Meanwhile rows were changed, deleted and inserted in the group, and in the restored database, too.
my $n3 = new_node('n3');
$n3->command_ok([ 'psql', '-X', '-q', '-v', 'ON_ERROR_STOP=1', '-d', dsn($n3), '-f', $dump ], 'its restore');
sql($n1, q(UPDATE t SET v = 'group' WHERE id <= 50; DELETE FROM t WHERE id BETWEEN 101 AND 110; INSERT INTO t SELECT g, 'new' FROM generate_series(20001, 20020) g;
DELETE FROM u WHERE id = 5; UPDATE parted SET v = 'group' WHERE id IN (1, 60); DELETE FROM parted WHERE id = 70));
wait_forgotten($n1, $n2);
# this one is not forgotten yet
sql($n1, 'DELETE FROM t WHERE id = 111');
sql($n3, q(UPDATE t SET v = 'own' WHERE id IN (1, 100, 109, 111); INSERT INTO t VALUES (30000, 'own'); DELETE FROM t WHERE id = 200; UPDATE parted SET v = 'own' WHERE id = 2; INSERT INTO u VALUES (21, 'u21')));
plant($n3, 't', q(UPDATE t SET v = 'altered' WHERE id = 300));
is(sql($n3, q(SELECT string_agg(id || '', ' ' ORDER BY id) FROM t WHERE __repl_clock = '{}')), '1 100 109 111 30000', 'what is written in no group has no clock');
my $before = table_state($n3, 't');
psql_fails($n3, join_own($n3, ''), '55000', '7 rows of this database have no clock and are not what the group has', q(keep => 'theirs'.*keep => 'mine'));
is(table_state($n3, 't') . sql($n3, 'SELECT count(*) FROM repl_ml.local_node'), $before . '0', 'nothing is done then');
psql_fails($n3, join_own($n3, q(, keep => 'both')), '22023', q(keep => 'both' means nothing));
sql($n3, join_own($n3, q(, keep => 'mine')));
is_settled('mine', $n1, $n2, $n3);
is(sql($n2, q(SELECT string_agg(id || '', ' ' ORDER BY id) FROM t WHERE v = 'own')), '1 100 109 111 30000', 'the rows without a clock are on all nodes');
is(sql($n2, 'SELECT v FROM t WHERE id = 300'), 'altered', 'and so is one that was changed under its clock');
is(sql($n3, q(SELECT count(*) FILTER (WHERE v = 'group'), count(*) FILTER (WHERE v = 'new'), count(*) FILTER (WHERE id BETWEEN 101 AND 110), count(*) FILTER (WHERE id = 200) FROM t)), '49|20|1|1', q(and so are the group's));
is(history($n3), join("\n", 'parted|{k70,70}|delete|deleted|p|',
	't|{101}|delete|deleted|' . sql($n1, 'SELECT md5(101::text)') . '|', (map { "t|{$_}|delete|deleted|" . sql($n1, "SELECT md5($_\::text)") . '|' } 102 .. 108, 110), 't|{300}|update|mine|' . sql($n1, 'SELECT md5(300::text)') . '|altered', 'u|{5}|delete|deleted|u5|'),
	'what was deleted in the group is listed');
is(sql($n3, q(SELECT string_agg(table_name || key::text, ' ' ORDER BY table_name, key::text COLLATE "C") FROM repl_ml.conflicts)), 'parted{k2,2} t{100} t{111} t{1}', 'and what was replaced is a conflict');
my ($rows, $bytes) = split /\|/, sql($n3, q(SELECT rows, bytes FROM repl_ml.table_sync WHERE table_name = 't'));
cmp_ok($rows, '<=', 50 + 20 + 3, 'only rows that differ have come');
cmp_ok($bytes, '<', $whole / 15, 'for few bytes');
cmp_ok(sql($n2, q(SELECT rows FROM repl_ml.table_sync WHERE table_name = 't' AND node_id = 3)), '<=', 7, 'and have gone to the others');

# Ordinary tables: no clock anywhere. What is equal gets the group's clock, what differs makes way, and is listed. Both
# servers and the worker are killed meanwhile.
my $n4 = new_node('n4', 'restart_after_crash = on');
sql($n4, <<'SQL');
CREATE EXTENSION repl_ml;
CREATE TABLE t (id int PRIMARY KEY, v text);
CREATE TABLE u (id int PRIMARY KEY, v text UNIQUE);
CREATE TABLE parted (k text, v text, id int, PRIMARY KEY (k, id));
INSERT INTO t SELECT g, md5(g::text) FROM generate_series(1, 10000) g WHERE g NOT BETWEEN 101 AND 108;
INSERT INTO t VALUES (40000, 'extra');
INSERT INTO u VALUES (1, 'u2'), (2, 'u1'), (30, 'u3');
SQL
psql_fails($n4, join_own($n4, ''), '55000', '\d+ rows of this database have no clock', 'theirs');
my $clocks = sql($n1, 'SELECT md5(string_agg(__repl_clock::text, chr(10) ORDER BY id)) FROM t WHERE id BETWEEN 201 AND 9000');
sql($n4, join_own($n4, q(, keep => 'theirs', wait => false)));
foreach my $kill (
	sub { my $pid = sql($n4, q(SELECT min(pid) FROM repl_ml.stat_apply WHERE node_name = 'n1')); kill 'KILL', $pid if $pid },
	sub { kill_server($n4); $n4->start },
	sub { kill_server($n1); $n1->start })
{
	poll_until($n4, q(SELECT EXISTS (SELECT FROM repl_ml.stat_apply WHERE state = 'copying') OR EXISTS (SELECT FROM repl_ml.local_node WHERE state IN ('copying', 'ready'))));
	$kill->();
	poll_until($n4, 'SELECT true');
}
poll_until($n4, q(SELECT state = 'ready' FROM repl_ml.local_node));
is_settled('theirs', $n1, $n2, $n3, $n4);
is(sql($n4, 'SELECT md5(string_agg(__repl_clock::text, chr(10) ORDER BY id)) FROM t WHERE id BETWEEN 201 AND 9000'), $clocks, q(rows that are equal have the group's clocks));
is(sql($n4, q(SELECT string_agg(v, ' ' ORDER BY id) FROM u WHERE id <= 3)), 'u1 u2 u3', q(unique keys are the group's));
is(sql($n4, q(SELECT action, verdict, before ->> 'v', after ->> 'v' FROM repl_ml.repair_history WHERE table_name = 't' AND key IN ('{1}', '{40000}') ORDER BY key)),
	sql($n1, q(SELECT 'delete|theirs|' || md5('1') || '|')) . "\ndelete|theirs|extra|", 'and what made way is listed');
is(sql($n4, q(SELECT count(*) FROM repl_ml.repair_history WHERE table_name = 't')), 51 + 1 + 4, 'just that, once');

# Two at once: one reads the other before the donor has what both wait for
my ($n5, $n6) = map { new_node($_) } qw(n5 n6);
cut($n1, $n2);
sql($n2, q(INSERT INTO t VALUES (50000, 'the donor lacks it')));
foreach my $node ($n5, $n6)
{
	my $own = $node->name;
	sql($node, qq(CREATE EXTENSION repl_ml; CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t VALUES (${\substr($own, 1)} + 60000, '$own'), (1, '$own')));
	sql($node, join_own($node, q(, keep => 'mine', wait => false)));
}
poll_until($n6, q(SELECT state FROM repl_ml.stat_apply WHERE node_name = 'n5'), 'streaming');
is(sql($_, 'SELECT state FROM repl_ml.local_node'), 'joining', $_->name . ' waits') foreach $n5, $n6;

# who waits so hears of another one, and has its voice: else each could wait for the other
sql($n1, q(SELECT repl_ml.invite_node('n7')));
poll_until($n5, q(SELECT EXISTS (SELECT FROM repl_ml.invitation WHERE node_name = 'n7')));
is(sql($n5, q(SELECT repl_ml.register_node(group_id, 60001, 'n7', 'host=nowhere', NULL, NULL, NULL, 1, now()) FROM repl_ml.local_node)), 't', 'it lets another one in');
sql($n5, 'SELECT repl_ml.forget_node(group_id, 60001) FROM repl_ml.local_node');
is(sql($n5, 'SELECT state FROM repl_ml.member WHERE node_id = 60001'), 'dropped', 'and go');
my $client = $n5->background_psql('postgres');
$client->query_safe('BEGIN; LOCK TABLE t');
heal($n1, $n2);
poll_until($n6, q(SELECT state = 'ready' FROM repl_ml.local_node));
is(sql($n5, 'SELECT state FROM repl_ml.local_node'), 'copying', 'the one that began later is ready first');
$client->query_safe('COMMIT');
$client->quit;
poll_until($n5, q(SELECT state = 'ready' FROM repl_ml.local_node));
is_settled('two at once', $n1, $n2, $n3, $n4, $n5, $n6);
is(sql($n1, q(SELECT string_agg(v, ' ' ORDER BY id) FROM t WHERE id IN (60005, 60006) AND v LIKE 'n_')), 'n5 n6', 'both have brought their rows');
done_testing();
