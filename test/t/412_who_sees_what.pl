# Who may not read all of a table sees none of its keys and rows in what comparisons and repairs say, here or of other
# members: in diff_rows, repair_table, repair_history, consistency_checks and errors; hashing runs no code of users; and a
# key that a member's types do not take is one key's difference, not a table that cannot be compared.
#
# Seen failing: repair_history as a table that repl_ml_admin may read; an owner without rights on the schema; known.c
# without the subtransaction around the reading of a key.
use strict;
use warnings;
use ReplMl;
use Situations;
use Test::More;

my @nodes = new_group(3);
my ($n1, $n2, $n3) = @nodes;
sql($_, <<'SQL') foreach @nodes;
CREATE ROLE owner;
CREATE ROLE operator;
GRANT repl_ml_admin TO operator;
CREATE SCHEMA closed;
GRANT ALL ON SCHEMA public, closed TO owner;
CREATE TABLE spy (what text);
GRANT ALL ON spy TO PUBLIC;
SET ROLE owner;
CREATE FUNCTION spy(text) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN INSERT INTO public.spy VALUES ($1); RETURN true; END $$;
CREATE TYPE mood AS ENUM ('sad', 'ok');
CREATE FUNCTION mood_json(mood) RETURNS json LANGUAGE plpgsql AS $$ BEGIN PERFORM public.spy('json'); RETURN '"x"'; END $$;
CREATE CAST (mood AS json) WITH FUNCTION mood_json(mood);
CREATE FUNCTION mood_text(mood) RETURNS text LANGUAGE plpgsql AS $$ BEGIN PERFORM public.spy('text'); RETURN 'x'; END $$;
CREATE CAST (mood AS text) WITH FUNCTION mood_text(mood) AS IMPLICIT;
CREATE FUNCTION mood_equal(mood, mood) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN PERFORM public.spy('operator'); RETURN true; END $$;
CREATE OPERATOR = (LEFTARG = mood, RIGHTARG = mood, FUNCTION = mood_equal);
CREATE DOMAIN word AS text CHECK (public.spy('domain'));
CREATE FUNCTION spy_on_row() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM public.spy('trigger'); RETURN NEW; END $$;
CREATE TABLE hostile (k word, m mood, c mood, w word, made text GENERATED ALWAYS AS (k || 'x') STORED, PRIMARY KEY (k, m));
CREATE TRIGGER spies BEFORE INSERT OR UPDATE ON hostile FOR EACH ROW EXECUTE FUNCTION spy_on_row();
ALTER TABLE hostile ENABLE ALWAYS TRIGGER spies;
CREATE DOMAIN name_ AS text;
CREATE TABLE strict (k name_ PRIMARY KEY, v text);
CREATE TABLE closed.secret (id text PRIMARY KEY, v text, w text);
SQL
sql($n1, q(SELECT repl_ml.add_table(t::regclass) FROM unnest('{hostile,strict,closed.secret}'::text[]) t));
poll_until($_, q(SELECT count(*) = 3 FROM repl_ml.tables WHERE state = 'replicated' AND pending_copies = 0)) foreach @nodes;
sql($n1, <<'SQL');
INSERT INTO hostile SELECT 'k' || g, 'ok', 'sad', 'w' FROM generate_series(1, 20) g;
INSERT INTO strict SELECT 'k' || g, 'v' FROM generate_series(1, 20) g;
INSERT INTO closed.secret SELECT 'hidden ' || g, 'hidden', 'open' FROM generate_series(1, 20) g;
SQL
wait_converged(\@nodes);

# ---- whose code runs ----

sql($_, 'TRUNCATE spy') foreach @nodes;
is(sql($_, q(SELECT status FROM repl_ml.verify_table('hostile'))), 'consistent', 'a table with a lot of code is equal, as ' . $_->name . ' sees it') foreach @nodes;
is(sql($_, q(SELECT what, count(*) FROM spy GROUP BY 1)), '', 'none of it has run on ' . $_->name) foreach @nodes;
plant($n2, 'hostile', q(DISCARD TEMP; UPDATE hostile SET c = 'ok' WHERE k = 'k7'));
sql($_, 'TRUNCATE spy') foreach @nodes;
is(sql($n1, q(SELECT status, differing_rows FROM repl_ml.verify_table('hostile'))), 'differs|1', 'a difference in it');
is(sql($_, q(SELECT DISTINCT what FROM spy)), 'domain', 'reading its key takes the domain, on ' . $_->name) foreach @nodes;
sql($n1, q(SELECT FROM repl_ml.repair_table('hostile', false)));
is(sql($n1, q(SELECT status FROM repl_ml.verify_table('hostile'))), 'consistent', 'is mended');

# ---- who sees rows ----

plant($n2, 'closed.secret', q(UPDATE closed.secret SET v = 'hidden, too' WHERE id = 'hidden 3'; DELETE FROM closed.secret WHERE id = 'hidden 7'));
plant($n1, 'closed.secret', q(UPDATE closed.secret SET v = 'hidden here' WHERE id = 'hidden 9'));
my @looks = (
	q(SELECT * FROM repl_ml.verify_all()), q(SELECT * FROM repl_ml.diff_rows('closed.secret')), q(SELECT * FROM repl_ml.repair_table('closed.secret')),
	q(SELECT * FROM repl_ml.consistency_checks), q(SELECT * FROM repl_ml.health), q(SELECT * FROM repl_ml.stat_progress_verify), q(SELECT * FROM repl_ml.repair_history));

# All that a role is shown, with what it is warned of.
sub seen
{
	my ($role, @looks) = @_;
	my (undef, $out, $err) = $n1->psql('postgres', join('; ', 'SET client_min_messages = debug1', "SET ROLE $role", map { s/'closed.secret'/(SELECT oid::regclass FROM pg_class WHERE relname = 'secret')/r } @looks));
	return "$out\n$err";
}

unlike(seen('operator', @looks), qr/hidden/, 'an operator sees no rows');
sql($n1, 'GRANT USAGE ON SCHEMA closed TO operator; GRANT SELECT (id, w) ON closed.secret TO operator');
unlike(seen('operator', @looks), qr/hidden/, 'nor with a grant on some columns');
sql($n1, 'GRANT SELECT ON closed.secret TO operator; ALTER TABLE closed.secret ENABLE ROW LEVEL SECURITY');
unlike(seen('operator', @looks), qr/hidden/, 'nor under row-level security');
like(seen('owner', $looks[1]), qr/hidden 3/, 'the owner does');
sql($n1, 'ALTER TABLE closed.secret DISABLE ROW LEVEL SECURITY; REVOKE ALL ON SCHEMA closed FROM owner');
unlike(seen('owner', $looks[1]), qr/hidden/, 'but not without a right on the schema');
sql($n1, 'GRANT USAGE ON SCHEMA closed TO owner; REVOKE SELECT ON closed.secret FROM operator');

sql($n1, q(SET ROLE operator; SELECT FROM repl_ml.repair_table((SELECT oid::regclass FROM pg_class WHERE relname = 'secret'), false)));
is(sql($n1, q(SELECT key, before ->> 'v', after ->> 'v' FROM repl_ml.repair_history WHERE table_name = 'secret')), '{"hidden 9"}|hidden here|hidden', 'what was repaired');
unlike(seen('operator', @looks), qr/hidden/, 'an operator does not see rows that he has repaired');
like(seen('operator', $looks[6]), qr/closed\|secret\|\|replace\|corrupt/, 'but what was done');
like(seen('owner', $looks[6]), qr/hidden here/, 'the owner sees them');
sql($_, 'CREATE ROLE nobody') foreach @nodes;
is(sql($n1, q(SET ROLE nobody; SELECT count(*) FROM repl_ml.repair_history)), 0, 'others see nothing');

# ---- keys that one node does not take ----

sql($n3, q(ALTER DOMAIN name_ ADD CHECK (value <> 'hidden')));
sql($n1, q(INSERT INTO strict VALUES ('hidden', 'x')));
poll_until($n3, q(SELECT count(*) = 1 FROM repl_ml.parked_changes));
plant($n2, 'strict', q(UPDATE strict SET v = 'y' WHERE k = 'k5'));
is(sql($_, q(SELECT status, unreachable, differing_rows FROM repl_ml.verify_table('strict'))), 'differs|{}|2', 'a key that n3 does not take, as ' . $_->name . ' sees it') foreach @nodes;
is(sql($_, q(SELECT key, verdict FROM repl_ml.diff_rows('strict') ORDER BY 1)), "{hidden}|parked\n{k5}|corrupt", 'and which it is') foreach @nodes;
is(sql($n3, q(SELECT key, action FROM repl_ml.repair_table('strict', false) ORDER BY 1)), "{hidden}|none\n{k5}|replace", 'the others are repaired');
unlike(seen('operator', q(SELECT * FROM repl_ml.diff_rows('strict')), q(SELECT * FROM repl_ml.repair_table('strict')), q(SELECT * FROM repl_ml.verify_table('strict'))), qr/hidden/, 'an operator does not see it');

done_testing();
