# row_history says why a row is as it is on a node, and row_status what each member has of it and who lags; both for who
# may know it.
use strict;
use warnings;
use ReplMl;
use Test::More;

my ($n1, $n2, $n3) = my @nodes = new_group(3, <<'SQL');
CREATE TABLE t (id int PRIMARY KEY, v text CHECK (v <> 'bad'));
CREATE TABLE "Two" (a text, "B" date, v int, PRIMARY KEY ("B", a));
SELECT repl_ml.add_all_tables();
SQL
wait_converged(\@nodes, 't');
sql($_, q(CREATE TABLE local (id int PRIMARY KEY); SELECT repl_ml.keep_local('local'))) foreach $n1, $n2;

sub history
{
	my ($node, $key, $columns) = @_;
	return sql($node, "SELECT " . ($columns // q(kind, node_name, content->>'v', detail)) . " FROM repl_ml.row_history('t', '$key') ORDER BY kind, content");
}

sub status
{
	my ($node, $key, $columns) = @_;
	return sql($node, "SELECT " . ($columns // q(node_name, state, verdict, written_by, parked, content->>'v')) . " FROM repl_ml.row_status('t', '$key')");
}

# a row that all have
sql($n1, q(INSERT INTO t VALUES (1, 'first')));
wait_converged(\@nodes, 't');
is(history($n2, '{1}'), 'row|n1|first|', 'a row, and who wrote it');
is(status($n2, '{1}'), "n1|present|newest|n1|0|first\nn2|present|newest|n1|0|first\nn3|present|newest|n1|0|first", 'all have it');
is(sql($n2, q(SELECT count(*), bool_and(s.clock = t.__repl_clock), bool_and(written_at BETWEEN now() - interval '5 min' AND clock_timestamp() + interval '1 s') FROM repl_ml.row_status('t', '{1}') s, t WHERE id = 1)), '3|t|t', 'the version, and when it was written');
is(history($n2, '{7}') . status($n2, '{7}'), "n1|absent|newest||0|\nn2|absent|newest||0|\nn3|absent|newest||0|", 'one that nobody has had');

# one of several columns, in the order of the key
sql($n1, q(INSERT INTO "Two" VALUES ('x', '2026-01-02', 5)));
wait_converged(\@nodes, '"Two"');
is(sql($n3, q(SELECT node_name, content->>'v' FROM repl_ml.row_history('"Two"', '{2026-01-02,x}'))), 'n1|5', 'a key of two columns');

# n3 lags, then has a version that the others do not know
cut($n3, $_) foreach $n1, $n2;
sql($n1, q(UPDATE t SET v = 'second' WHERE id = 1));
poll_until($n2, q(SELECT v = 'second' FROM t WHERE id = 1));
is(status($n2, '{1}'), "n1|present|newest|n1|0|second\nn2|present|newest|n1|0|second\nn3|present|lags|n1|0|first", 'who lags');
cut($_, $n3) foreach $n1, $n2;
sql($n3, q(UPDATE t SET v = 'third' WHERE id = 1));
is(status($n2, '{1}'), "n1|present|concurrent|n1|0|second\nn2|present|concurrent|n1|0|second\nn3|present|concurrent|n3|0|third", 'who has what others do not know');
heal($n3, $_) foreach $n1, $n2;
heal($_, $n3) foreach $n1, $n2;
wait_converged(\@nodes, 't');
like(history($n1, '{1}', q(kind, node_name, content->>'v', detail LIKE '%lost to%"n3"%last_write%')), qr/^conflict\|n1\|second\|t\nrow\|n3\|third\|\nversion\|n1\|second\|f\nversion\|n3\|third\|f$/, 'the conflict, and what it was of');
is(status($n1, '{1}', 'node_name, verdict'), "n1|newest\nn2|newest\nn3|newest", 'and all are the same again');

# parked on one of them, and deleted
sql($n2, 'ALTER TABLE t DROP CONSTRAINT t_v_check');
sql($n2, q(UPDATE t SET v = 'bad' WHERE id = 1));
poll_until($n3, q(SELECT count(*) = 1 FROM repl_ml.parked_changes));
like(history($n3, '{1}'), qr/^parked\|n2\|bad\|update, 23514: .*t_v_check/m, 'what is parked of it');
poll_until($n1, q(SELECT count(*) = 1 FROM repl_ml.parked_changes));
is(status($n3, '{1}', 'node_name, verdict, parked'), "n1|lags|1\nn2|newest|0\nn3|lags|1", 'and on whom');
sql($_, 'ALTER TABLE t DROP CONSTRAINT t_v_check') foreach $n1, $n3;
wait_converged(\@nodes);
poll_until($_, q(SELECT count(*) = 0 FROM repl_ml.parked_changes)) foreach $n1, $n3;
sql($n2, 'DELETE FROM t WHERE id = 1');
wait_converged(\@nodes, 't');
like(history($n3, '{1}'), qr/^tombstone\|n2\|\|$/m, 'its deletion');
is(status($n3, '{1}', 'node_name, state, verdict, written_by'), "n1|deleted|newest|n2\nn2|deleted|newest|n2\nn3|deleted|newest|n2", 'on all');

# one that cannot be asked
sql($n1, q(INSERT INTO t VALUES (2, 'secret')));
wait_converged(\@nodes, 't');
$n3->stop;
is(status($n1, '{2}', 'node_name, state, verdict, clock IS NULL, parked'), "n1|present|newest|f|0\nn2|present|newest|f|0\nn3|unreachable||t|", 'of one that is down nothing is known');
$n3->start;

# who may know it
sql($n1, q(CREATE ROLE plain; CREATE ROLE app; CREATE ROLE operator; GRANT repl_ml_admin TO operator; SET repl_ml.guard_off = on; ALTER TABLE t OWNER TO app));
psql_fails($n1, "SET ROLE plain; SELECT * FROM repl_ml.$_('t', '{2}')", '42501', 'permission denied', 'repl_ml_admin') foreach qw(row_history row_status);
is(sql($n1, q(SET ROLE app; SELECT content->>'v' FROM repl_ml.row_history('t', '{2}'))), 'secret', 'the owner sees it');
is(sql($n1, q(SET ROLE operator; SELECT kind, content IS NULL, clock IS NOT NULL FROM repl_ml.row_history('t', '{2}'))), 'row|t|t', 'who may not read the table does not see the row');
is(sql($n1, q(SET ROLE operator; SELECT count(*), count(content), count(clock) FROM repl_ml.row_status('t', '{2}') WHERE node_name <> 'n3')), '2|0|2', 'of no member');
psql_fails($n1, q(SELECT * FROM repl_ml.row_history('t', '{1,2}')), '22023', 'has 1 column', 'ARRAY');
psql_fails($n1, q(SELECT * FROM repl_ml.row_status('local', '{1}')), '55000', 'not replicated');
is(sql($n2, q(SELECT repl_ml.row_sight('public', 'local', '{1}'), repl_ml.row_sight('repl_ml', 'member', '{1}'))), '{"state": "no table"}|{"state": "no table"}', 'members tell each other of replicated tables only');
wait_converged(\@nodes, 't');
done_testing();
