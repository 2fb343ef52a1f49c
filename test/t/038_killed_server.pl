# When a server is killed with SIGKILL and nobody is told, its processes notice also while they are busy and
# never wait, and end: the server can be started again, and goes on where it was.
#
# Seen failing without repl_ml_check_server() in rows.c (first part) and in worker.c (second part): the worker
# goes on with the rows, for minutes.
use strict;
use warnings;
use Membership;
use ReplMl;
use Test::More;

# what a node applies to "slow" takes it some 40 ms a row, until a row of its table "pace" says otherwise
my $rows = 10_000;
my ($n1, $n2) = map { new_node($_) } qw(n1 n2);

sql($n1, 'CREATE EXTENSION repl_ml');
sql($n1, call('create_group', 'g', 'n1', dsn($n1)));
sql($n1, <<"SQL");
CREATE TABLE slow (id integer PRIMARY KEY);
CREATE TABLE pace (rounds integer);
CREATE FUNCTION take_time() RETURNS trigger LANGUAGE plpgsql AS '
BEGIN
	PERFORM count(md5(i::text)) FROM generate_series(1, (SELECT coalesce(min(rounds), 60000) FROM public.pace)) i;
	RETURN NEW;
END';
CREATE TRIGGER slow BEFORE INSERT ON slow FOR EACH ROW EXECUTE FUNCTION take_time();
ALTER TABLE slow ENABLE REPLICA TRIGGER slow;
SELECT repl_ml.add_all_tables();
INSERT INTO slow SELECT generate_series(1, $rows);
SQL

# the worker of a node that joins copies them
sql($n2, 'CREATE EXTENSION repl_ml');
sql($n2, "SELECT repl_ml.join_group('n2', " . literal(dsn($n2)) . ', ' . literal(dsn($n1)) . ', wait => false)');
poll_until($n2, q(SELECT count(*) > 0 FROM repl_ml.stat_apply WHERE copy_relation::text = 'slow'));
crash_and_restart($n2, 'kill9');
pass('the server starts again after it was killed while it copied');
sql($n2, 'INSERT INTO pace VALUES (0)');
poll_until($n2, q(SELECT state = 'ready' FROM repl_ml.nodes WHERE is_local));
is(sql($n2, 'SELECT count(*) FROM slow'), $rows, 'it has all rows');

# it has a long transaction before it
sql($n2, 'DELETE FROM pace');
sql($n1, "INSERT INTO slow SELECT generate_series($rows + 1, 2 * $rows)");
poll_until($n2, q(SELECT count(*) > 0 FROM pg_locks JOIN pg_stat_activity USING (pid)
	WHERE relation = 'slow'::regclass AND mode = 'RowExclusiveLock' AND backend_type = 'repl_ml apply'));
crash_and_restart($n2, 'kill9');
pass('the server starts again after it was killed while it applied');
sql($n2, 'INSERT INTO pace VALUES (0)');
wait_converged([ $n1, $n2 ], 'slow');
is(sql($n2, 'SELECT count(*) FROM slow'), 2 * $rows, 'it has all rows');

done_testing();
