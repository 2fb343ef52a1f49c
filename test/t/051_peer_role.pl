# The role README.md gives to the nodes is enough for an invited node to join and to stream, without being a superuser;
# rows it may not see are an error, never left out silently; and it may do nothing else.
use strict;
use warnings;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use ReplMl;

my ($n1, $n2) = map { new_node($_) } qw(n1 n2);

sub peer_dsn { my ($node) = @_; return "'" . (dsn($node) =~ s/'/''/gr) . " user=replicator'"; }

foreach my $node ($n1, $n2)
{
	sql($node, <<'SQL');
CREATE EXTENSION repl_ml;
CREATE ROLE replicator LOGIN REPLICATION IN ROLE repl_ml_replication, pg_read_all_data;
CREATE ROLE team;
SQL
}
sql($n1, "SELECT repl_ml.create_group('g', 'n1', " . peer_dsn($n1) . ')');
sql($n1, <<'SQL');
CREATE SCHEMA ml AUTHORIZATION team;
SET ROLE team;
CREATE TYPE ml.stage AS ENUM ('none', 'production');
CREATE FUNCTION ml.plain(text) RETURNS text IMMUTABLE LANGUAGE sql RETURN lower($1);
CREATE TABLE ml.model (id serial PRIMARY KEY, name text, stage ml.stage DEFAULT 'none', plain text GENERATED ALWAYS AS (ml.plain(name)) STORED);
CREATE TABLE ml.private (id int PRIMARY KEY, secret text);
ALTER TABLE ml.private ENABLE ROW LEVEL SECURITY;
INSERT INTO ml.model (name) VALUES ('A'), ('B');
INSERT INTO ml.private SELECT i, 'secret ' || i FROM generate_series(1, 5) i;
SQL
is(sql($n1, "SELECT relation, status FROM repl_ml.add_all_tables('{ml}')"), "ml.model|added\nml.private|added", 'two tables');

sql($n1, "SELECT repl_ml.invite_node('n2')");
sql($n2, "SELECT repl_ml.join_group('n2', " . peer_dsn($n2) . ', ' . peer_dsn($n1) . ', wait => false)');
poll_until($n2, "SELECT last_error_sqlstate, last_error_message ~ 'row-level security' FROM repl_ml.stat_apply", '42501|t');
is(sql($n2, 'SELECT count(*) FROM ml.private'), '0', 'nothing of the hidden table is copied');
is(sql($n2, "SELECT state FROM repl_ml.nodes WHERE is_local"), 'joining', 'and the node is not ready');

sql($n1, 'ALTER ROLE replicator BYPASSRLS');
poll_until($_, "SELECT count(*) FROM repl_ml.nodes WHERE state = 'ready'", '2') foreach $n1, $n2;
sql($n2, "INSERT INTO ml.model (id, name) VALUES (1002, 'C')");
sql($n1, "UPDATE ml.private SET secret = 'changed' WHERE id = 3");
wait_converged([ $n1, $n2 ], 'ml.model', 'ml.private');
is(sql($n1, "SELECT name, plain, stage FROM ml.model WHERE id = 1002"), 'C|c|none', 'a row of the other node');
is(sql($n2, 'SELECT count(*), count(*) FILTER (WHERE secret = \'changed\') FROM ml.private'), '5|1', 'all rows are there');
is(sql($n2, "SELECT tableowner FROM pg_tables WHERE tablename = 'private'"), 'team', 'with its owner');

# what is changed about the role while it is connected is said before the connection ends
my $login = q(SELECT status, detail, hint FROM repl_ml.health WHERE check_name = 'login_roles');
is(sql($n1, $login), 'ok|The roles with which other members are connected may connect again.|', 'nothing is wrong with the role');
foreach my $change (
	[ 'ALTER ROLE replicator NOLOGIN', 'may not log in', 'ALTER ROLE replicator LOGIN' ],
	[ 'ALTER ROLE replicator NOREPLICATION', 'lacks the attribute REPLICATION', 'ALTER ROLE replicator REPLICATION' ],
	[ 'ALTER ROLE replicator CONNECTION LIMIT 1', 'has too low a connection limit', 'ALTER ROLE replicator CONNECTION LIMIT -1' ],
	[ q(ALTER ROLE replicator VALID UNTIL '2001-01-01'), 'has a password that is valid no more', q(ALTER ROLE replicator VALID UNTIL 'infinity') ],
	[ 'REVOKE CONNECT ON DATABASE postgres FROM PUBLIC', 'may not connect to this database', 'GRANT CONNECT ON DATABASE postgres TO replicator' ],
	[ 'REVOKE repl_ml_replication FROM replicator', 'is not in repl_ml_replication', 'GRANT repl_ml_replication TO replicator' ])
{
	my ($command, $said, $mended) = @$change;
	sql($n1, $command);
	is(sql($n1, $login), qq(warning|Role "replicator", of node "n2", $said: when the connection ends there is no other.|Run $mended.), $command);
	sql($n1, $mended);
	is(sql($n1, $login), 'ok|The roles with which other members are connected may connect again.|', "... and $mended mends it");
}

psql_fails($n1, "SET ROLE replicator; $_", '42501', 'permission denied')
  foreach "DELETE FROM repl_ml.member", "SELECT repl_ml.drop_node('n2')", "UPDATE ml.model SET name = ''",
  "SELECT repl_ml.run_on_peer('', '')", "SELECT repl_ml.add_table('ml.model')";
is(sql($_, 'SELECT count(*) FROM repl_ml.parked_changes'), '0', $_->name . ': nothing is parked') foreach $n1, $n2;

done_testing();
