# A worker that is killed from outside, whatever it was doing, is no reason to give a change up: one that was parked for it
# is tried again by itself, once; and an administrator may end a worker as often as he likes.
#
# Seen failing without: the killed change stays parked and its table banned, and the ended one is parked.
use strict;
use warnings;
use ReplMl;
use PostgreSQL::Test::Utils;
use Test::More;

my @nodes = map { new_node("n$_", 'restart_after_crash = on') } 1, 2;
my ($n1, $n2) = @nodes;

sql($n1, 'CREATE EXTENSION repl_ml');
sql($n1, "SELECT repl_ml.create_group('g', 'n1', " . literal(dsn($n1)) . ')');
join_node($n2, $n1);
sql($n1, "CREATE TABLE $_ (id integer PRIMARY KEY, v text)") foreach qw(slow deadly other);
sql($n1, q(SELECT repl_ml.add_table(t) FROM unnest('{slow,deadly,other}'::regclass[]) t));
poll_until($n2, q(SELECT count(*) = 3 FROM repl_ml.tables WHERE state = 'replicated' AND pending_copies = 0));
sql($n2, <<'SQL');
CREATE TABLE gate ();
CREATE FUNCTION act() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	IF TG_TABLE_NAME = 'deadly' AND NEW.v = 'kill' THEN
		COPY (SELECT) TO PROGRAM 'kill -9 $PPID';
	ELSIF NEW.v = 'slow' THEN
		PERFORM pg_catalog.set_config('lock_timeout', '0', true);
		LOCK TABLE public.gate IN ACCESS SHARE MODE;
	END IF;
	RETURN NEW;
END $$;
CREATE TRIGGER act BEFORE INSERT OR UPDATE ON slow FOR EACH ROW EXECUTE FUNCTION act(); ALTER TABLE slow ENABLE ALWAYS TRIGGER act;
CREATE TRIGGER act BEFORE INSERT OR UPDATE ON deadly FOR EACH ROW EXECUTE FUNCTION act(); ALTER TABLE deadly ENABLE ALWAYS TRIGGER act;
SQL

sub crashes { return scalar(() = slurp_file($n2->logfile) =~ /"?repl_ml apply"? \(PID \d+\) was terminated by signal/g); }

# The worker that is at a row of "slow"; not the one of a former call.
my $worker = 0;

sub await_slow
{
	my $query = qq(SELECT pid FROM pg_catalog.pg_locks l JOIN pg_catalog.pg_stat_activity a USING (pid)
		WHERE a.backend_type = 'repl_ml apply' AND l.relation = 'gate'::regclass AND NOT l.granted AND pid <> $worker);
	poll_until($n2, "SELECT count(*) = 1 FROM ($query) q");
	return $worker = sql($n2, $query);
}

# As if what is parked had been so for long.
sub age { sql($n2, q(UPDATE repl_ml.parked_change SET parked_at = parked_at - interval '1 hour')); return; }

# (a lock that nobody's end releases)
sql($n2, q(BEGIN; LOCK TABLE gate; PREPARE TRANSACTION 'gate'));
sql($n1, q(INSERT INTO slow VALUES (1, 'slow')));
sql($n1, 'INSERT INTO other VALUES (1)');
kill 'KILL', await_slow() foreach 1 .. 3;
poll_until($n2, q(SELECT count(*) = 1 FROM other));
is(sql($n2, q(SELECT sqlstate, change->>'id' FROM repl_ml.parked_changes)), '38000|1', 'killed three times: the change is parked, and others go on');
sql($n1, q(INSERT INTO slow VALUES (2, 'good')));
poll_until($n2, q(SELECT count(*) = 2 FROM repl_ml.parked_changes));
sql($n2, q(COMMIT PREPARED 'gate'));
age();
poll_until($n2, q(SELECT count(*) = 0 FROM repl_ml.parked_changes));
sql($n1, q(INSERT INTO slow VALUES (3, 'good')));
wait_converged(\@nodes, qw(slow other));
is(sql($n2, 'SELECT count(*) FROM slow'), '3', 'it has been tried again by itself, and later changes are applied at once');

# ended by an administrator
sql($n2, q(BEGIN; LOCK TABLE gate; PREPARE TRANSACTION 'gate'));
sql($n1, q(INSERT INTO slow VALUES (4, 'slow')));
sql($n2, 'SELECT pg_terminate_backend(' . await_slow() . ')') foreach 1 .. 4;
await_slow();
sql($n2, q(COMMIT PREPARED 'gate'));
wait_converged(\@nodes, qw(slow other));
is(sql($n2, 'SELECT count(*) FROM repl_ml.parked_changes'), '0', 'ended by an administrator: nothing is parked');

# one that does take the server down does so once more, and is a person's then
my $before = crashes();
sql($n1, q(INSERT INTO deadly VALUES (1, 'kill')));
poll_until($n2, q(SELECT count(*) = 1 FROM repl_ml.parked_changes));
is(crashes(), $before + 3, 'guilty: parked after the third time');
age();
poll_until($n2, q(SELECT message = 'trying the change again took the server down' FROM repl_ml.parked_changes));
is(crashes(), $before + 4, 'guilty: tried again once');
sql($n1, q(INSERT INTO deadly VALUES (2, 'good')));
poll_until($n2, q(SELECT count(*) = 2 FROM repl_ml.parked_changes));
age();
sql($n2, q(ALTER TABLE deadly DISABLE TRIGGER act));
sql($n1, 'INSERT INTO other VALUES (2)');
wait_converged(\@nodes, 'other');
is(sql($n2, 'SELECT count(*) FROM repl_ml.parked_changes'), '2', 'guilty: now a person has to try');
sql($n2, 'SELECT repl_ml.retry_parked(id) FROM (SELECT id FROM repl_ml.parked_changes ORDER BY id) p');
wait_converged(\@nodes, qw(deadly other));
is(crashes(), $before + 4, 'guilty: not once more');

done_testing();
