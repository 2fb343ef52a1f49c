# Applying gives nobody rights he does not have: what a table's owner hangs on his table runs as him, a
# group works with connection roles that are no superusers, and no password is shown anywhere.
use strict;
use warnings;

use PostgreSQL::Test::Utils;
use Test::More;
use ReplMl;

# Both servers ask replicator for his password; the other connections of the test are its own user's.
my $password = 'canary-7Uq';
my ($n1, $n2) = map { new_node($_) } qw(n1 n2);
foreach my $node ($n1, $n2)
{
	sql($node, "CREATE EXTENSION repl_ml; CREATE ROLE mallory LOGIN; CREATE ROLE marvin LOGIN;"
		  . " CREATE ROLE replicator LOGIN REPLICATION PASSWORD '$password' IN ROLE repl_ml_replication, pg_read_all_data");
	my $hba = slurp_file($node->data_dir . '/pg_hba.conf');
	unlink $node->data_dir . '/pg_hba.conf';
	$node->append_conf('pg_hba.conf', "local all replicator scram-sha-256\nlocal replication replicator scram-sha-256\n$hba");
	$node->reload;
}

# as himself, not as a superuser who has taken his role
sub as_mallory
{
	my ($node, $sql) = @_;
	return $node->safe_psql('postgres', $sql, extra_params => [ '-U', 'mallory' ]);
}

sub role_dsn { my ($node) = @_; return dsn($node) . " user=replicator password=$password"; }

# a group whose members only know each other's unprivileged role
sql($n1, "SELECT repl_ml.create_group('g', 'n1', '" . role_dsn($n1) =~ s/'/''/gr . "')");
sql($n1, <<'SQL');
CREATE SCHEMA private AUTHORIZATION marvin;
CREATE SCHEMA mallory AUTHORIZATION mallory;
SET ROLE marvin;
CREATE TYPE private.mood AS ENUM ('sad', 'happy');
CREATE TABLE private.secrets (id serial PRIMARY KEY, v text, m private.mood);
CREATE TABLE private.not_enrolled (id int);
INSERT INTO private.secrets (v, m) VALUES ('one', 'sad'), ('two', 'happy');
SET ROLE mallory;
CREATE TABLE mallory.t (id int PRIMARY KEY, v text, j json);
CREATE TABLE mallory.rows (id int PRIMARY KEY, v text);
CREATE TABLE mallory.log (id serial, what text, who text, super bool, path text, applied boolean);
RESET ROLE;
SELECT repl_ml.add_table('private.secrets');
SELECT repl_ml.add_table('mallory.t');
SQL
sql($n1, "SELECT repl_ml.invite_node('n2')");
sql($n2, "SELECT repl_ml.join_group('n2', '" . role_dsn($n2) =~ s/'/''/gr . "', '" . role_dsn($n1) =~ s/'/''/gr . "')");
is(sql($n2, 'SELECT id, v, m FROM private.secrets ORDER BY id'), "1|one|sad\n2|two|happy", 'rows were copied over an unprivileged connection');
is(sql($n2, "SELECT string_agg(DISTINCT tableowner, ' ') FROM pg_tables WHERE schemaname IN ('private', 'mallory')"), 'mallory marvin', 'owners too');
sql($n2, "INSERT INTO private.secrets VALUES (3, 'three', 'sad')");
sql($n1, "UPDATE private.secrets SET v = 'changed' WHERE id = 1; DELETE FROM private.secrets WHERE id = 2");
wait_converged([ $n1, $n2 ], 'private.secrets');
is(sql($n1, 'SELECT id, v FROM private.secrets ORDER BY id'), "1|changed\n3|three", 'and streams both ways');
is(sql($_, "SELECT string_agg(DISTINCT usename, ' ') FROM pg_stat_replication"), 'replicator', $_->name . ': its peer is the unprivileged role')
  foreach ($n1, $n2);

# mallory's code, on n2, on all ways a row takes into his table
as_mallory($n2, <<'SQL');
SET search_path = mallory;
CREATE FUNCTION attack(what text) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO mallory.log (what, who, super, path, applied)
    VALUES (what, current_user, (SELECT rolsuper FROM pg_catalog.pg_roles WHERE rolname = current_user), pg_catalog.current_setting('search_path'),
            pg_catalog.current_setting('session_replication_role') = 'replica');
    BEGIN
        EXECUTE 'ALTER ROLE mallory SUPERUSER';
    EXCEPTION WHEN OTHERS THEN NULL;
    END;
    BEGIN
        EXECUTE 'SET ROLE postgres';
        EXECUTE 'ALTER ROLE mallory SUPERUSER';
    EXCEPTION WHEN OTHERS THEN NULL;
    END;
    BEGIN
        EXECUTE 'RESET SESSION AUTHORIZATION';
        EXECUTE 'ALTER ROLE mallory SUPERUSER';
    EXCEPTION WHEN OTHERS THEN NULL;
    END;
    RETURN what;
END
$$;
CREATE FUNCTION on_row() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM mallory.attack(TG_NAME); RETURN coalesce(NEW, OLD); END $$;
CREATE FUNCTION for_value(what text, v text) RETURNS text LANGUAGE plpgsql IMMUTABLE AS $$ BEGIN PERFORM mallory.attack(what); RETURN v; END $$;
CREATE TRIGGER before_row BEFORE INSERT OR UPDATE OR DELETE ON t FOR EACH ROW EXECUTE FUNCTION on_row();
CREATE TRIGGER after_row AFTER INSERT OR UPDATE OR DELETE ON t FOR EACH ROW EXECUTE FUNCTION on_row();
CREATE CONSTRAINT TRIGGER deferred_row AFTER INSERT OR UPDATE OR DELETE ON t DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION on_row();
ALTER TABLE t ENABLE ALWAYS TRIGGER before_row, ENABLE ALWAYS TRIGGER after_row, ENABLE ALWAYS TRIGGER deferred_row;
CREATE INDEX ON t (for_value('index', v));
ALTER TABLE t ADD CONSTRAINT c CHECK (for_value('check', v) IS NOT NULL);
CREATE DOMAIN d AS text CHECK (for_value('domain', VALUE) IS NOT NULL);
ALTER TABLE t ALTER COLUMN v TYPE d;
CREATE TYPE composite AS (a int);
CREATE FUNCTION to_json(composite) RETURNS json LANGUAGE sql IMMUTABLE AS $$ SELECT mallory.for_value('cast', '"x"')::json $$;
CREATE CAST (composite AS json) WITH FUNCTION to_json(composite);
TRUNCATE log;
SQL
as_mallory($n1, "INSERT INTO mallory.t VALUES (1, 'a'), (2, 'b'); UPDATE mallory.t SET v = 'c' WHERE id = 1; DELETE FROM mallory.t WHERE id = 2");
# a conflict, whose history shows both rows
cut($_->[0], $_->[1]) foreach ([ $n1, $n2 ], [ $n2, $n1 ]);
sql($n1, "UPDATE mallory.t SET v = 'n1' WHERE id = 1");
as_mallory($n2, "UPDATE mallory.t SET v = 'n2' WHERE id = 1");
heal($_->[0], $_->[1]) foreach ([ $n1, $n2 ], [ $n2, $n1 ]);
wait_converged([ $n1, $n2 ], 'mallory.t');
is(sql($n2, 'SELECT count(*) FROM repl_ml.conflicts'), 1, 'the conflict is in the history');
my $tester = sql($n2, 'SELECT current_user');
is(sql($n2, "SELECT string_agg(DISTINCT who || ' ' || super::text, ', ') FROM mallory.log WHERE applied"), 'mallory false', 'all of it ran as mallory');
is(sql($n2, "SELECT string_agg(DISTINCT what, ' ' ORDER BY what) FROM mallory.log WHERE applied"),
	'after_row before_row check deferred_row domain index', 'and all of it ran');
is(sql($n2, 'SELECT count(*) FROM repl_ml.parked_changes'), 0, 'nothing was parked');
is(sql($n2, "SELECT string_agg(DISTINCT path, ' ') FROM mallory.log WHERE applied"), 'pg_catalog, pg_temp', 'under a safe search_path');

# rows that were there before the table was added are written anew: also as their owner
as_mallory($n2, <<'SQL');
INSERT INTO mallory.rows VALUES (1, 'n2');
CREATE TRIGGER adopted BEFORE UPDATE ON mallory.rows FOR EACH ROW EXECUTE FUNCTION mallory.on_row();
ALTER TABLE mallory.rows ENABLE ALWAYS TRIGGER adopted;
SQL
sql($n1, "SELECT repl_ml.add_table('mallory.rows')");
poll_until($n1, 'SELECT count(*) = 1 FROM mallory.rows');
is(sql($n2, "SELECT string_agg(DISTINCT who || ' ' || super::text, ', ') FROM mallory.log WHERE what = 'adopted'"), 'mallory false', 'an adopted row too');

# a view in the place of a table is not read with the worker's rights
sql($n1, 'CREATE TABLE public.trap (id int PRIMARY KEY)');
sql($n2, "CREATE FUNCTION mallory.spring() RETURNS int LANGUAGE sql VOLATILE AS \$\$ SELECT mallory.attack('view'); SELECT 1 \$\$;"
	  . " CREATE VIEW public.trap AS SELECT 1 AS id WHERE mallory.spring() > 0; ALTER VIEW public.trap OWNER TO mallory");
psql_fails($n1, "SELECT repl_ml.add_table('public.trap')", '55000', 'on node "n2": public.trap is not a table');
# by hand, as a node that does not ask
sql($n1, "SELECT repl_ml.enrol('public.trap'); INSERT INTO repl_ml.replicated_table (schema_name, table_name, state, enrolled_by) VALUES ('public', 'trap', 'enrolled', 1)");
$n2->wait_for_log(qr/public\.trap is not a table/);
is(sql($n2, "SELECT count(*) FROM mallory.log WHERE what = 'view'"), 0, 'the view was not read');
sql($n1, "SELECT repl_ml.remove_table('public.trap')");

# objects with the names of ours, first in everybody's path
sql($n2, 'ALTER DATABASE postgres SET search_path = mallory, public, pg_catalog');
sql($n2, "CREATE FUNCTION mallory.format(text, VARIADIC anyarray) RETURNS text LANGUAGE sql AS \$\$ SELECT mallory.attack('format') \$\$;"
	  . " CREATE FUNCTION mallory.count(anyelement) RETURNS bigint LANGUAGE sql AS \$\$ SELECT mallory.attack('count'); SELECT 1::bigint \$\$;"
	  . " CREATE FUNCTION mallory.eq(int, int) RETURNS bool LANGUAGE sql AS \$\$ SELECT mallory.attack('='); SELECT true \$\$;"
	  . " CREATE OPERATOR mallory.= (LEFTARG = int, RIGHTARG = int, FUNCTION = mallory.eq);"
	  . " CREATE FUNCTION mallory.now() RETURNS timestamptz LANGUAGE sql AS \$\$ SELECT mallory.attack('now'); SELECT pg_catalog.now() \$\$");
$n2->restart;
poll_until($n2, "SELECT state OPERATOR(pg_catalog.=) 'streaming' FROM repl_ml.stat_apply");
sql($n1, "INSERT INTO private.secrets VALUES (4, 'four', 'sad')");
poll_until($n2, "SELECT pg_catalog.count(*) OPERATOR(pg_catalog.=) 3 FROM private.secrets");
sql($n2, "SELECT * FROM repl_ml.check_setup()");
is(sql($n2, "SELECT pg_catalog.count(*) FROM mallory.log WHERE what OPERATOR(pg_catalog.=) ANY ('{format,count,\"=\",now}')"), 0, 'no name in the search_path was taken for ours');

is(sql($_, "SELECT pg_catalog.string_agg(rolname, ' ') FROM pg_catalog.pg_roles WHERE rolsuper AND rolname OPERATOR(pg_catalog.<>) '$tester'"),
	'', $_->name . ': mallory is no superuser') foreach ($n1, $n2);

# the password is in nothing but the table that holds it, not even when it is wrong
psql_fails($n1, "SELECT repl_ml.join_group('n3', 'host=/nonexistent password=$password', 'password=$password')", '55000', 'already node');
foreach my $node ($n1, $n2)
{
	(my $log = slurp_file($node->logfile)) =~ s/^[^\n]*LOG:  (?:statement|execute [^:\n]*): .*?(?=^\d{4}-|\z)//gms;
	$log =~ s/^.*DETAIL:  [Pp]arameters: .*$//gm;
	$log =~ s/^.*STATEMENT: .*$//gm;
	unlike($log, qr/\Q$password\E/, $node->name . ': no password in the log');
	foreach my $view (split /\n/, sql($node, "SELECT viewname FROM pg_catalog.pg_views WHERE schemaname OPERATOR(pg_catalog.=) 'repl_ml'"), 'pg_stat_activity')
	{
		my $schema = $view eq 'pg_stat_activity' ? 'pg_catalog' : 'repl_ml';
		unlike(sql($node, "SELECT * FROM $schema.$view WHERE pg_catalog.pg_backend_pid() IS NOT NULL"), qr/\Q$password\E/, $node->name . ": nor in $view");
	}
	my ($out) = run_command([ 'pg_dump', '--dbname', dsn($node) ]);
	unlike($out, qr/\Q$password\E/, $node->name . ': nor in a dump');
}

done_testing();
