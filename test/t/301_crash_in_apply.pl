# Code of a table that ends the server, or its apply worker, whenever a change is applied does so three times: then
# the changes of that table are parked with an error that says so, all others go on, and once the code is mended the
# parked ones can be tried again. Nothing is parked for crashes of others, nor for stops while a change is applied.
#
# Seen failing with crash.c that maps no file (repl_ml_crash_startup returns at once): the server goes down for ever,
# and nothing of the peer arrives.
use strict;
use warnings;
use ReplMl;
use PostgreSQL::Test::Utils;
use Test::More;

my $kill = q(COPY (SELECT) TO PROGRAM 'kill -9 $PPID');
my @nodes = map { new_node("n$_", 'restart_after_crash = on') } 1, 2;
my ($n1, $n2) = @nodes;

sql($n1, 'CREATE EXTENSION repl_ml');
sql($n1, "SELECT repl_ml.create_group('g', 'n1', " . literal(dsn($n1)) . ')');
join_node($n2, $n1);
my $tables = join '', map { "CREATE TABLE $_ (id integer PRIMARY KEY, v text); CREATE TRIGGER act BEFORE INSERT OR UPDATE ON $_"
	  . " FOR EACH ROW EXECUTE FUNCTION act(); ALTER TABLE $_ ENABLE ALWAYS TRIGGER act;" } qw(deadly fatal slow copied other);
sql($_, "CREATE FUNCTION act() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'; $tables") foreach @nodes;
sql($n1, q(INSERT INTO copied VALUES (1, 'good'), (2, 'kill'), (3, 'good')));
sql($n1, q(SELECT repl_ml.add_table(t) FROM unnest('{deadly,fatal,slow,other}'::regclass[]) t));
poll_until($n2, q(SELECT count(*) = 4 FROM repl_ml.tables WHERE state = 'replicated' AND pending_copies = 0));
sql($n2, 'CREATE TABLE gate ()');
sql($n2, <<"SQL");
CREATE OR REPLACE FUNCTION act() RETURNS trigger LANGUAGE plpgsql AS \$\$
BEGIN
	IF NEW.v = 'kill' THEN
		$kill;
	ELSIF NEW.v = 'fatal' THEN
		PERFORM pg_catalog.pg_terminate_backend(pg_catalog.pg_backend_pid());
	ELSIF NEW.v = 'slow' THEN
		PERFORM pg_catalog.set_config('lock_timeout', '0', true);
		LOCK TABLE public.gate IN ACCESS SHARE MODE;
	END IF;
	RETURN NEW;
END \$\$
SQL

# How often n2 has gone down because a process of the name crashed.
sub crashes { my ($name) = @_; return scalar(() = slurp_file($n2->logfile) =~ /"?$name"? \(PID \d+\) was terminated by signal/g); }

sub parked
{
	my ($table) = @_;
	return sql($n2, "SELECT action, sqlstate, message, change->>'id' FROM repl_ml.parked_changes WHERE table_name = '$table' ORDER BY id");
}

sub others_are
{
	my ($expected, $name) = @_;
	poll_until($n2, 'SELECT count(*) FROM other', $expected);
	is(sql($n2, 'SELECT count(*) FROM repl_ml.parked_changes WHERE table_name NOT IN ($$deadly$$, $$fatal$$)'), '0', "$name: nothing else is parked");
	return;
}

# A trigger that kills its process.
sql($n1, q(BEGIN; INSERT INTO other VALUES (1); INSERT INTO deadly VALUES (1, 'good'), (2, 'kill'), (3, 'good'); INSERT INTO other VALUES (2); COMMIT));
sql($n1, 'INSERT INTO other VALUES (3)');
others_are(3, 'killed');
my $because = '38000|applying a change of table "public.deadly" took the server down';
is(parked('deadly'), "insert|$because|1\ninsert|$because|2\ninsert|$because|3", 'killed: the changes of the table are parked');
is(crashes('repl_ml apply'), 3, 'killed: after the third time');
sql($n1, q(INSERT INTO deadly VALUES (4, 'kill'); INSERT INTO other VALUES (4)));
sql($n1, q(UPDATE deadly SET v = 'good' WHERE id = 4; INSERT INTO other VALUES (5)));
others_are(5, 'killed');
is(sql($n2, q(SELECT count(*) FROM repl_ml.parked_changes)), '5', 'killed: later changes of the table are parked at once');
is(crashes('repl_ml apply'), 3, 'killed: and the server stays up');
like(sql($n2, q(SELECT last_error_message FROM repl_ml.stat_apply WHERE node_name = 'n1')), qr/apply worker died .* 3 times in a row|took the server down/, 'killed: stat_apply shows it');

# Mended: one that is tried again with success is enough.
sql($n2, q(ALTER TABLE deadly DISABLE TRIGGER act));
sql($n2, 'SELECT repl_ml.retry_parked(min(id)) FROM repl_ml.parked_changes');
sql($n1, q(INSERT INTO deadly VALUES (5, 'kill')));
wait_converged(\@nodes);
is(sql($n2, 'SELECT id FROM deadly ORDER BY id'), "1\n5", 'mended: what comes now is applied');
sql($n2, 'SELECT repl_ml.retry_parked(id) FROM (SELECT id FROM repl_ml.parked_changes ORDER BY id) p');
wait_converged(\@nodes, qw(deadly other));

# A trigger that ends its process in an orderly way: a worker that ends for ever applies nothing, either.
sql($n1, q(BEGIN; INSERT INTO fatal VALUES (1, 'fatal'); INSERT INTO other VALUES (6); COMMIT));
others_are(6, 'ended');
like(parked('fatal'), qr/^insert\|38000\|.*"public.fatal" took the server down\|1$/, 'ended: the change is parked');

# Others' crashes, and stops of all kinds, while a change is applied.
# (a lock that nobody's end releases)
sql($n2, q(BEGIN; LOCK TABLE gate; PREPARE TRANSACTION 'gate'));
sql($n1, q(BEGIN; INSERT INTO slow VALUES (1, 'slow'); INSERT INTO other VALUES (7); COMMIT));

sub await_slow
{
	poll_until($n2, q(SELECT count(*) > 0 FROM pg_catalog.pg_locks l JOIN pg_catalog.pg_stat_activity a USING (pid)
		WHERE a.backend_type = 'repl_ml apply' AND l.relation = 'gate'::regclass AND NOT l.granted));
	return;
}

foreach my $i (1 .. 3)
{
	await_slow();
	$n2->psql('postgres', $kill);
	await_slow();
	$n2->restart('immediate') if $i < 3;
	$n2->restart('fast') if $i == 3;
}
is(crashes('client backend') + crashes('server process'), 3, 'innocent: clients were killed');
await_slow();
sql($n2, q(COMMIT PREPARED 'gate'));
others_are(7, 'innocent');
wait_converged(\@nodes, qw(slow other));

# A change put aside that a worker tries again. (The restarts have lifted the bans.)
my $before = crashes('repl_ml apply');
sql($n2, q(ALTER TABLE deadly ENABLE ALWAYS TRIGGER act));
sql($n2, q(INSERT INTO repl_ml.parked_change (origin_node, origin_xid, origin_lsn, schema_name, table_name, action, change, sqlstate, message, put_aside)
SELECT origin_node, origin_xid, origin_lsn, schema_name, 'deadly', action, jsonb_set(jsonb_set(change, '{id}', '"7"'), '{v}', '"kill"'), sqlstate, message, true FROM repl_ml.parked_change));
$n2->restart('fast');
poll_until($n2, q(SELECT count(*) FROM repl_ml.parked_change WHERE NOT put_aside), '2');
is(parked('deadly'), 'insert|38000|trying the change again took the server down|7', 'put aside: it becomes a person\'s');
is(crashes('repl_ml apply'), $before + 1, 'put aside: after the first time');

# A row of a copy.
sql($n2, 'SELECT repl_ml.discard_parked(id) FROM repl_ml.parked_changes');
$before = crashes('repl_ml apply');
sql($n1, q(SELECT repl_ml.add_table('copied')));
sql($n1, 'INSERT INTO other VALUES (8)');
others_are(8, 'copied');
poll_until($n2, q(SELECT count(*) = 1 FROM repl_ml.stat_apply WHERE state = 'streaming'));
is(crashes('repl_ml apply'), $before + 2, 'copied: it was tried twice');
poll_until($n2, q(SELECT coalesce(problem LIKE 'could not copy it: writing rows of table "public.copied" took the server down%', false) FROM repl_ml.tables WHERE table_name = 'copied'));
like(sql($n2, q(SELECT hint FROM repl_ml.table_failure WHERE table_name = 'copied')), qr/restart this server in order/, 'copied: what it waits for is shown, with what helps');
is(sql($n2, q(SELECT pending_copies FROM repl_ml.tables WHERE table_name = 'copied')), '1', 'copied: the copy is still due');
sql($n2, q(CREATE OR REPLACE FUNCTION act() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'));

# The file is damaged, then missing, then one that nobody may write.
my $file = $n2->data_dir . '/repl_ml.applying';
ok(-e $file, 'the file is there');
$n2->stop('fast');
open my $out, '>', $file or die "$file: $!";
print $out 'x' x 1000;
close $out;
$n2->start;
poll_until($n2, q(SELECT pending_copies = 0 FROM repl_ml.tables WHERE table_name = 'copied'));
wait_converged(\@nodes, qw(copied deadly other));
$n2->stop('fast');
unlink $file;
$n2->start;
ok(-e $file, 'the file is there again');
$n2->stop('immediate');
unlink $file;
mkdir $file;
$n2->start;
sql($n1, 'INSERT INTO other VALUES (9)');
others_are(9, 'without the file');
like(slurp_file($n2->logfile), qr/could not prepare file "repl_ml.applying"/, 'without the file: the log says so');
done_testing();
