# Becoming a member takes a right that a person has given, and what a donor says of itself is never run.
use strict;
use warnings;

use Membership;
use ReplMl;
use Test::More;

my @nodes = map { new_node("n$_", 'log_statement = none') } 1 .. 4;
my ($n1, $n2, $n3, $n4) = @nodes;
foreach my $node (@nodes)
{
	sql($node, 'CREATE EXTENSION repl_ml; CREATE ROLE replicator LOGIN REPLICATION IN ROLE repl_ml_replication, pg_read_all_data;'
		  . ' CREATE ROLE operator LOGIN IN ROLE repl_ml_admin; CREATE ROLE nobody LOGIN');
}

sub as { my ($node, $role) = @_; return dsn($node) . " user=$role"; }
sub join_as { my ($node, $member, $role) = @_; return call('join_group', $node->name, as($node, 'replicator'), as($member, $role)); }
sub members { my ($node) = @_; return sql($node, q(SELECT string_agg(node_name, ' ' ORDER BY node_id) FROM repl_ml.nodes WHERE state <> 'dropped')); }

sql($n1, call('create_group', 'g', 'n1', as($n1, 'replicator')));
sql($n1, "CREATE TABLE item (id int PRIMARY KEY); SELECT repl_ml.add_table('item')");

# the replication role's connection string alone
psql_fails($n2, join_as($n2, $n1, 'replicator'), '42501', 'role "replicator" may not add node "n2"', 'invite_node');
psql_fails($n2, join_as($n2, $n1, 'nobody'), '42501', 'permission denied', 'repl_ml_admin');
is(members($n1), 'n1', 'n1 has no other member');
is_clean($n2, 'nothing left on n2');
is($n1->safe_psql('postgres', "SELECT repl_ml.register_node(group_id, 2, 'n2', 'host=evil', '', 1, '', 1, now(), 'guess') IS NULL FROM repl_ml.local_info()", extra_params => [ '-U', 'replicator' ]),
	't', 'nor does it register a node by itself');
is(members($n1), 'n1', 'and has not');
is(sql($n2, 'SELECT check_name, status FROM repl_ml.check_setup(' . literal(as($n1, 'replicator')) . ") WHERE check_name IN ('peer', 'joining') ORDER BY 1"),
	"joining|warning\npeer|ok", 'check_setup says what the role may');
is(sql($n2, 'SELECT status FROM repl_ml.check_setup(' . literal(dsn($n1)) . ") WHERE check_name = 'joining'"), 'ok', 'and of a superuser');

# an invitation is for one name, for a time, and for one node
psql_fails($n1, 'SET ROLE replicator; ' . call('invite_node', 'n2'), '42501', 'permission denied');
psql_fails($n1, call('invite_node', 'n1'), '42710', 'already in use', 'drop_node');
psql_fails($n1, "SELECT repl_ml.invite_node('n2', '0')", '22023', 'must be positive', '1 day');
sql($n1, "SET ROLE operator; SELECT repl_ml.invite_node('other'); SELECT repl_ml.invite_node('n2', '1 us')");
poll_until($n1, "SELECT valid_until < clock_timestamp() FROM repl_ml.invitation WHERE node_name = 'n2'");
psql_fails($n2, join_as($n2, $n1, 'replicator'), '42501', 'may not add node "n2"', 'invite_node');
sql($n1, "SET ROLE operator; SELECT repl_ml.invite_node('n2')");
is(sql($n2, join_as($n2, $n1, 'replicator')), '2', 'an invited node joins');
poll_until($_, "SELECT count(*) = 2 FROM repl_ml.nodes WHERE state = 'ready'") foreach $n1, $n2;
poll_until($n1, "SELECT valid_until < clock_timestamp() FROM repl_ml.invitation WHERE node_name = 'n2'");

# a role that may let nodes in, and cannot replicate; each member hears of it
is(sql($n3, join_as($n3, $n2, 'operator')), '3', 'join_dsn of a member of repl_ml_admin');
poll_until($_, "SELECT count(*) = 3 FROM repl_ml.nodes WHERE state = 'ready'") foreach $n1, $n2, $n3;
is(members($n1), 'n1 n2 n3', 'all are members');
sql($n3, 'INSERT INTO item VALUES (1)');
wait_converged([ $n1, $n2, $n3 ], 'item');
is(sql($n1, q(SELECT string_agg(DISTINCT usename, ' ') FROM pg_stat_replication)), 'replicator', 'nodes talk as the replication role');
psql_fails($n4, join_as($n4, $n3, 'replicator'), '42501', 'may not add node "n4"', 'invite_node');

# what else a member of repl_ml_admin may do, all of it without being a superuser; and nothing more
sql($_, 'CREATE TABLE odd (id int PRIMARY KEY, v text CHECK (v <> ' . literal($_->name) . '))') foreach $n1, $n2, $n3;
sql($n1, "SELECT repl_ml.add_table('odd')");
poll_until($_, "SELECT count(*) = 2 FROM repl_ml.tables WHERE state = 'replicated' AND pending_copies = 0") foreach $n1, $n2, $n3;
sql($n1, "INSERT INTO odd VALUES (1, 'n2'), (2, 'n2'), (3, 'x')");
poll_until($n2, 'SELECT count(*) = 2 FROM repl_ml.parked_changes');
sub operator_does { my ($sql) = @_; return $n2->safe_psql('postgres', $sql, extra_params => [ '-U', 'operator' ]); }
is(operator_does("SELECT repl_ml.pause_apply('n1')") . sql($n2, "SELECT state FROM repl_ml.stat_apply WHERE node_name = 'n1'"), 'paused', 'pause_apply');
is(operator_does("SELECT repl_ml.resume_apply('n1')"), '', 'resume_apply');
is(operator_does('SELECT count(*) FROM repl_ml.parked_changes'), '2', 'parked_changes');
psql_fails($n2, 'SET ROLE operator; SELECT repl_ml.retry_parked(min(id)) FROM repl_ml.parked_changes', '23514', 'violates check constraint "odd_v_check"');
is(operator_does('SELECT count(*) FROM (SELECT repl_ml.discard_parked(id) FROM repl_ml.parked_changes OFFSET 0) x') . sql($n2, 'SELECT count(*) FROM repl_ml.parked_changes'), '20', 'discard_parked');
is(operator_does('SELECT repl_ml.reset_write_stats()'), '', 'reset_write_stats');
is(operator_does("SELECT repl_ml.invite_node('later')"), '', 'invite_node');
is(operator_does("SELECT count(*) > 0 FROM repl_ml.check_setup()"), 't', 'check_setup');
is(operator_does("SELECT count(*) > 0 FROM repl_ml.health"), 't', 'and the views');
foreach my $call (q(create_group('h', 'n', '')), q(join_group('n', '', '')), q(leave_group()), q(drop_node('n3')), q(add_table('odd')), q(add_all_tables()), q(remove_table('odd')),
	q(set_resolver('odd', 'last_write')), q(set_column_merge('odd', 'v', 'max')), q(check_resolver('odd')), q(set_table_consistency('odd', 'all')),
	q(run_on_peer('', '')), q(probe('')), q(query_as_owner('odd', 'SELECT 1')), q(adopt('odd')))
{
	psql_fails($n2, "SET ROLE operator; SELECT repl_ml.$call", '42501', 'permission denied');
}
psql_fails($n2, 'SET ROLE operator; TABLE repl_ml.member', '42501', 'permission denied');

# members that do not register it are named, each with its reason
sql($n2, "SELECT repl_ml.pause_apply('n1')");
$n3->stop;
my (undef, undef, $said) = $n4->psql('postgres', join_as($n4, $n1, 'operator'), extra_params => [ '-v', 'VERBOSITY=verbose' ]);
like($said, qr/ERROR:  08001: only 1 of 3 members of group "g" could register node "n4"/, 'too few members register it');
like($said, qr/Node "n2" answers, but has not heard of the invitation yet\.\s+Node "n3" cannot be reached: .*(?:No such file|refused)/s, 'each of the others is named with its reason');
like($said, qr/HINT: .*invite_node\('n4'\).*resume_apply\('n1'\)/, 'and what helps');
is_clean($n4, 'nothing left on n4 then');
$n3->start;
sql($n2, "SELECT repl_ml.resume_apply('n1')");
poll_until($_, "SELECT state = 'streaming' FROM repl_ml.stat_apply WHERE node_name = 'n1'") foreach $n2, $n3;

# a donor that says of itself what would be SQL where it is pasted
sql($n1, <<'SQL');
BEGIN;
SET LOCAL repl_ml.guard_off = on;
ALTER TABLE repl_ml.member RENAME TO real_member;
DO $do$
BEGIN
    EXECUTE (SELECT format('CREATE VIEW repl_ml.member AS SELECT %s FROM repl_ml.real_member', string_agg(
        CASE attname WHEN 'system_identifier' THEN $$system_identifier::text || ', ''ready'', now(), ''{}''); CREATE ROLE evil SUPERUSER; --' AS system_identifier$$ ELSE quote_ident(attname) END, ', ' ORDER BY attnum))
               FROM pg_attribute WHERE attrelid = 'repl_ml.real_member'::regclass AND attnum > 0 AND NOT attisdropped);
    EXECUTE (SELECT format('CREATE OR REPLACE FUNCTION repl_ml.register_node(%s) RETURNS boolean LANGUAGE sql AS $$SELECT true$$', pg_get_function_arguments(oid))
               FROM pg_proc WHERE proname = 'register_node' AND pronamespace = 'repl_ml'::regnamespace);
END
$do$;
GRANT SELECT ON repl_ml.member TO PUBLIC;
COMMIT;
SQL
psql_fails($n4, join_as($n4, $n1, 'operator'), '\w+', 'invalid input syntax for type bigint');
is(sql($n4, q(SELECT count(*) FROM pg_roles WHERE rolname = 'evil')), '0', 'no role was made');
is_clean($n4, 'nothing left on n4');

# what reads the table row by row says so, and takes nothing down
poll_until($n1, q(SELECT count(*) > 0 FROM repl_ml.stat_apply WHERE error_message ~ '"repl_ml.member" is not a table|table "member" has no primary key'));
sql($n1, 'SET repl_ml.guard_off = on; DROP VIEW repl_ml.member; ALTER TABLE repl_ml.real_member RENAME TO member');
poll_until($n1, q(SELECT bool_and(state = 'streaming') FROM repl_ml.stat_apply));

done_testing();
