# A large transaction holds up nobody: it is sent while it runs, kept on each peer until it commits, and applied
# there beside the stream, whole, once, and whatever happens meanwhile; and nothing says it is there before it is.
#
# Seen failing: position.c without without_put_aside (token, barrier); locked.c, bulk_runs false (the first UPDATE is
# not acknowledged); pieces.c, repl_ml_pieces_is_kept true (rows that were rolled back); worker.c without repl_ml_pieces_forget
# (with a crash, disk full); dispatch.c, progressed also where nothing was applied (disk full: it is tried five times a second).
use strict;
use warnings;
use FindBin;
use lib "$FindBin::Bin/..";
use IPC::Run;
use ReplMl;
use PostgreSQL::Test::Utils;
use Test::More;

my @nodes = new_group(3, <<'SQL');
CREATE TABLE big (id int PRIMARY KEY, v int, pad text);
CREATE TABLE small (id int PRIMARY KEY, v int);
SELECT repl_ml.add_table('big'), repl_ml.add_table('small');
SQL
my ($n1, $n2, $n3) = @nodes;
my $large = "repeat('x', 250) FROM generate_series";
my $none_left = "SELECT NOT EXISTS (SELECT FROM repl_ml.parked_changes WHERE put_aside)";

foreach my $node (@nodes)
{
	# a large transaction need not be very large
	sql($node, "ALTER SYSTEM SET logical_decoding_work_mem = '64kB'");
	sql($node, "ALTER SYSTEM SET repl_ml.apply_lock_timeout = '60s'");
	sql($node, 'ALTER SYSTEM SET restart_after_crash = on');
	sql($node, 'SELECT pg_reload_conf()');
}
wait_converged(\@nodes, 'big');

# On n2 applying stops in the middle of a large transaction, at a row with this id, as long as the gate is closed.
sql($n2, <<'SQL');
CREATE TABLE gate (closed int);
CREATE FUNCTION wait_at_gate() RETURNS trigger LANGUAGE plpgsql SET search_path = public, pg_catalog AS $$
BEGIN
	IF EXISTS (SELECT FROM gate) THEN
		PERFORM pg_try_advisory_xact_lock(4300);
	END IF;
	WHILE EXISTS (SELECT FROM gate) LOOP
		PERFORM count(*) FROM generate_series(1, 10000);
	END LOOP;
	RETURN new;
END $$;
CREATE TRIGGER gate BEFORE INSERT ON big FOR EACH ROW WHEN (new.id % 100000 = 3000) EXECUTE FUNCTION wait_at_gate();
ALTER TABLE big ENABLE ALWAYS TRIGGER gate;
SQL
my $at_gate = q(SELECT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND objid = 4300 AND granted));

# Waits until all have applied everything, also what was put aside, and compares the tables.
sub all_equal
{
	my ($name, @which) = @_;

	wait_converged(\@which, 'small');
	poll_until($_, $none_left) foreach @which;
	is(sql($_, 'SELECT count(*) FROM repl_ml.bulk_piece'), '0', "$name: nothing is kept on " . $_->name)
	  foreach @which;
	my ($first, @others) = map { sql($_, q(SELECT count(*), md5(string_agg(t::text, '' ORDER BY id)) FROM big t)) } @which;
	is($_, $first, "$name: big is equal") foreach @others;
	return;
}

# A session that stays open.
sub open_session
{
	my ($node) = @_;
	my %session = (in => '', out => '');

	$session{harness} = IPC::Run::start([ 'psql', '-XqAt', '-v', 'ON_ERROR_STOP=1', '-d', dsn($node) ],
		'<', \$session{in}, '>&', \$session{out}, IPC::Run::timeout(120));
	return \%session;
}

# Runs SQL in it, to its end.
sub run_in
{
	my ($session, $sql) = @_;

	$session->{out} = '';
	$session->{in} .= "$sql;\n\\echo done\n";
	IPC::Run::pump $session->{harness} until $session->{out} =~ /done\n/;
	return;
}

#
# Applied beside, and meanwhile the stream goes on.
#
sql($n2, 'INSERT INTO gate VALUES (1)');
sql($n1, "SET repl_ml.write_consistency = 'all'; INSERT INTO big SELECT g, g, $large(1, 6000) g");
my $token = sql($n1, 'SELECT repl_ml.current_vector()');
poll_until($n2, $at_gate);
is(sql($n1, "SET repl_ml.write_consistency = 'all'; INSERT INTO small VALUES (1, 1) RETURNING 1"), '1',
	'a commit behind it that all have to have is acknowledged');
is(sql($n2, 'SELECT count(*) FROM small'), '1', 'its row is there');
is(sql($n2, 'SELECT count(*) FROM big'), '0', 'nobody sees a half');
is( sql($n2, q(SELECT action, put_aside, change ->> 'in_order' FROM repl_ml.parked_changes)), 'bulk|t|false',
	'it is shown as put aside');
is(sql($n2, q(SELECT put_aside_lsn IS NOT NULL FROM repl_ml.stat_apply WHERE node_name = 'n1')), 't',
	'stat_apply says where what is there ends');
psql_fails($n2, "SELECT repl_ml.wait_for_vector('$token', '300 ms')", '57014', 'this node does not have everything');
psql_fails($n2, q(SELECT repl_ml.barrier('300 ms')), '57014|40001|55000|57P03', '');
psql_fails($n2, 'SELECT repl_ml.retry_parked(id) FROM repl_ml.parked_changes', '55006', 'is applied by itself');

# rows of it are written meanwhile, at its origin and by somebody who has it
sql($n1, "SET repl_ml.write_consistency = 'all'; SET repl_ml.write_timeout = '20s'; UPDATE big SET v = -1 WHERE id = 5");
poll_until($n3, 'SELECT count(*) = 6000 FROM big');
sql($n3, "SET repl_ml.write_consistency = 'all'; SET repl_ml.write_timeout = '20s'; UPDATE big SET v = -2 WHERE id = 7");
sql($n3, "SET repl_ml.write_consistency = 'all'; SET repl_ml.write_timeout = '20s'; DELETE FROM big WHERE id = 9");
is(sql($n2, 'SELECT count(*) FROM big'), '0', 'still nobody sees anything');

#
# The process that applies it is killed, and with it the server: it is begun again.
#
my $pid = sql($n2, q(SELECT pid FROM pg_stat_activity WHERE backend_type = 'repl_ml bulk apply'));
kill KILL => $pid;
poll_until($n2, "SELECT count(*) = 1 FROM pg_stat_activity WHERE backend_type = 'repl_ml bulk apply' AND pid <> $pid");
poll_until($n2, $at_gate);
is(sql($n2, 'SELECT count(*) FROM big WHERE v > 0'), '0', 'after a crash nothing of it is there');
sql($n2, 'DELETE FROM gate');
sql($n2, "SELECT repl_ml.wait_for_vector('$token', '60 s')");
is(sql($n2, 'SELECT count(*) >= 5999 FROM big'), 't', 'what the token stands for is there when it is covered');
all_equal('written meanwhile', @nodes);
is(sql($n2, 'SELECT v FROM big WHERE id IN (5, 7, 9) ORDER BY id'), "-1\n-2", 'what was written meanwhile has won');
is(sql($_, 'SELECT count(*) FROM repl_ml.conflicts'), '0', 'no conflict on ' . $_->name) foreach @nodes;

#
# Rolled back, in part and as a whole.
#
my $session = open_session($n1);
run_in($session, "BEGIN; INSERT INTO big SELECT g, g, $large(100001, 106000) g");
run_in($session, "SAVEPOINT a; INSERT INTO big SELECT g, g, $large(120001, 122000) g; SAVEPOINT b");
run_in($session, "INSERT INTO big SELECT g, g, $large(130001, 130500) g; RELEASE b; ROLLBACK TO a");
run_in($session, "UPDATE big SET v = 0 WHERE id BETWEEN 100001 AND 100500; COMMIT");
run_in($session, "BEGIN; SAVEPOINT a; INSERT INTO big SELECT g, g, $large(200001, 200500) g; ROLLBACK TO a");
run_in($session, 'INSERT INTO big VALUES (200001, 0); COMMIT');
all_equal('rolled back in part', @nodes);
is(sql($n2, 'SELECT count(*), count(*) FILTER (WHERE v = 0) FROM big WHERE id > 100000'), '6001|501', 'without those');
run_in($session, "BEGIN; INSERT INTO big SELECT g, g, $large(300001, 306000) g");
poll_until($_, 'SELECT count(*) > 2 FROM repl_ml.bulk_piece') foreach $n2, $n3;
run_in($session, 'ROLLBACK');
poll_until($_, 'SELECT count(*) = 0 FROM repl_ml.bulk_piece') foreach $n2, $n3;
all_equal('rolled back', @nodes);

#
# The peer is stopped in the middle of one that runs, and its origin is cut off. What came before comes again.
#
run_in($session, "BEGIN; INSERT INTO big SELECT g, g, $large(300001, 306000) g");
poll_until($n2, 'SELECT count(*) > 2 FROM repl_ml.bulk_piece');
$n2->stop('immediate');
$n2->start;
sql($n3, q(SELECT pg_terminate_backend(pid) FROM repl_ml.stat_apply WHERE node_name = 'n1'));
run_in($session, "INSERT INTO big SELECT g, g, $large(330001, 331000) g; COMMIT");
all_equal('with a crash', @nodes);
is(sql($n2, 'SELECT count(*) FROM big WHERE id > 300000'), '7000', 'all of it is there');

#
# Prepared; and with what changes what is replicated: then its followers wait.
#
sql($n1, "BEGIN; INSERT INTO big SELECT g, g, $large(400001, 406000) g; PREPARE TRANSACTION 'p'");
sql($n1, q(COMMIT PREPARED 'p'));
sql($n1, <<"SQL");
BEGIN;
CREATE TABLE born (id int PRIMARY KEY, v int, pad text);
SELECT repl_ml.add_table('born');
INSERT INTO big SELECT g, g, $large(500001, 506000) g;
INSERT INTO born SELECT g, g, $large(1, 3000) g;
COMMIT;
INSERT INTO born VALUES (0, 0);
SQL
all_equal('prepared', @nodes);
poll_until($_, 'SELECT count(*) = 3001 FROM born') foreach $n2, $n3;
is_equal_everywhere(\@nodes, 'born');
is(sql($n2, 'SELECT count(*) FROM repl_ml.parked_changes'), '0', 'nothing is parked');

#
# A row that cannot be applied is parked, and the rest of the transaction is applied.
#
sql($n3, 'ALTER TABLE big ADD CONSTRAINT odd CHECK (id <> 600007)');
sql($n1, "INSERT INTO big SELECT g, g, $large(600001, 606000) g");
poll_until($n3, q(SELECT count(*) = 1 FROM repl_ml.parked_changes WHERE NOT put_aside AND sqlstate = '23514'));
poll_until($n3, $none_left);
is(sql($n3, 'SELECT count(*) FROM big WHERE id > 600000'), '5999', 'all but the row that does not fit');
sql($n3, 'ALTER TABLE big DROP CONSTRAINT odd');
poll_until($n3, 'SELECT count(*) = 0 FROM repl_ml.parked_changes');
all_equal('parked', @nodes);

#
# While the peer is paused nothing of its is applied; and pause_apply waits for one that is.
#
sql($n3, q(SELECT repl_ml.pause_apply('n1')));
sql($n1, "INSERT INTO big SELECT g, g, $large(650001, 656000) g");
sql($n3, q(SELECT repl_ml.resume_apply('n1')));
all_equal('paused', @nodes);

#
# No room for the process: the apply worker does it by itself, and says so.
#
$n3->append_conf('postgresql.conf', 'max_worker_processes = 5');
$n3->restart;
poll_until($n3, q(SELECT count(*) = 2 FROM repl_ml.stat_apply WHERE state = 'streaming'));
sql($n1, "INSERT INTO big SELECT g, g, $large(700001, 706000) g; INSERT INTO small VALUES (2, 2)");
all_equal('no room', @nodes);
is(sql($n3, 'SELECT count(*) FROM big WHERE id > 700000'), '6000', 'applied without a process for it');
like(slurp_file($n3->logfile), qr/out of background worker slots: large transactions hold up the others/, 'the log says so');
$n3->append_conf('postgresql.conf', 'max_worker_processes = 20');
$n3->restart;
poll_until($_, 'SELECT count(*) = 2 FROM repl_ml.stat_replication WHERE pid IS NOT NULL') foreach $n1, $n3;
poll_until($n1, q(SELECT status = 'ok' FROM repl_ml.health WHERE check_name = 'write_consistency'));

#
# There is no disk space for it: it waits for that, nothing of it is left meanwhile, and the others' commits go on.
#
my $disk = $n3->basedir . '/disk';
my @own = ('unshare', '-U', "--map-user=$>", '--map-group=' . (split ' ', $))[0]);
my @small = ('unshare', '-Urm', 'sh', '-c', 'mount -t tmpfs -o size=16m tmpfs "$0" && "$@"', $disk);
mkdir $disk;
SKIP:
{
	skip 'no file system can be mounted here', 7 if !run_log([ @small, @own, 'true' ]);
	my $tables = 'repl_ml.bulk_piece SET TABLESPACE';
	$n3->stop;
	system_or_bail(@small, 'sh', '-c', 'mkdir -m 700 "$0/space" && head -c 15500k /dev/zero >"$0/filled" && exec "$@"', $disk,
		@own, 'pg_ctl', '-w', '-D', $n3->data_dir, '-l', $n3->logfile, 'start');
	$n3->_update_pid(1);
	my $started = sql($n3, 'SELECT pg_postmaster_start_time()');
	sql($n3, 'VACUUM FULL repl_ml.bulk_piece');
	sql($n3, "CREATE TABLESPACE disk LOCATION '$disk/space'");
	sql($n3, "ALTER TABLE $tables disk");
	poll_until($n3, q(SELECT count(*) = 2 FROM repl_ml.stat_apply WHERE state = 'streaming'));
	sql($n1, q(INSERT INTO big SELECT g, g, (SELECT string_agg(md5(g || ' ' || i), '') FROM generate_series(1, 8) i) FROM generate_series(750001, 756000) g));
	poll_until($n3, q(SELECT last_error_sqlstate = '53100' FROM repl_ml.stat_apply WHERE node_name = 'n1'));
	is(sql($n1, 'SET repl_ml.write_consistency = quorum; INSERT INTO small VALUES (3, 3) RETURNING 3'), '3', 'disk full: a commit is acknowledged by the others');
	is(sql($n3, 'SELECT count(*) FROM repl_ml.bulk_piece'), '0', 'disk full: nothing of it is left');
	poll_until($n3, q(SELECT status = 'error' AND detail ~ 'could not extend file' FROM repl_ml.health WHERE check_name = 'applying'));
	poll_until($n3, q(SELECT errors >= 5 FROM repl_ml.stat_apply WHERE node_name = 'n1'));
	my @tries = slurp_file($n3->logfile) =~ /^(\S+ \S+) UTC.*ERROR:  could not extend file/mg;
	is(sql($n3, "SELECT timestamp '$tries[-1]' - timestamp '$tries[-2]' > '1.2 s'"), 't', 'disk full: it is tried ever more rarely');
	sql($n3, "COPY (SELECT) TO PROGRAM 'rm $disk/filled; cat >/dev/null'");
	all_equal('disk full', @nodes);
	is(sql($n3, 'SELECT count(*) FROM big WHERE id BETWEEN 750001 AND 756000'), '6000', 'disk full: it comes when there is space');
	is(sql($n3, 'SELECT pg_postmaster_start_time()'), $started, 'disk full: the server has stayed up');
	sql($n3, "ALTER TABLE $tables pg_default");
	sql($n3, 'DROP TABLESPACE disk');
}

#
# Its origin is dropped meanwhile: who has it aside has all of it in the end.
#
sql($n2, 'INSERT INTO gate VALUES (1)');
sql($n1, "SET repl_ml.write_consistency = 'all'; INSERT INTO big SELECT g, g, $large(800001, 806000) g");
poll_until($n2, $at_gate);
poll_until($n3, 'SELECT count(*) = 6000 FROM big WHERE id > 800000');
$session->{in} .= "\\q\n";
IPC::Run::finish $session->{harness};
$n1->stop('immediate');
sql($n3, q(SELECT repl_ml.drop_node('n1')));
poll_until($n2, q(SELECT count(*) = 0 FROM repl_ml.nodes WHERE node_name = 'n1' AND state <> 'dropped'));
sql($n2, 'DELETE FROM gate');
all_equal('dropped', $n2, $n3);
is(sql($n2, 'SELECT count(*) FROM big WHERE id > 800000'), '6000', 'all of it is there');

#
# A node leaves while it has one aside: nothing goes on there.
#
sql($n2, 'INSERT INTO gate VALUES (1)');
sql($n3, "SET repl_ml.write_consistency = 'all'; INSERT INTO big SELECT g, g, $large(900001, 906000) g");
poll_until($n2, $at_gate);
sql($n2, 'SELECT repl_ml.leave_group()');
is( sql($n2, q(SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'repl_ml bulk apply')), '0', 'nobody applies it');
is( sql($n2, q(SELECT (SELECT count(*) FROM repl_ml.bulk_piece) + (SELECT count(*) FROM repl_ml.parked_changes WHERE action = 'bulk'))),
	'0', 'nothing of it is left');

done_testing();
