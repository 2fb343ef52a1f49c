# Any node shows the whole group, each member with what it has told of itself and how old that is: also of one that is down
# or paused; status() has it all in one document, and top fits a screen.
use strict;
use warnings;
use JSON::PP;
use ReplMl;
use Test::More;

my ($n1, $n2, $n3) = my @nodes = new_group(3, 'CREATE TABLE t (id int PRIMARY KEY, v text CHECK (v <> $$bad$$)); SELECT repl_ml.add_all_tables()');
wait_converged(\@nodes, 't');
foreach my $node (@nodes)
{
	sql($node, $_) foreach q(ALTER SYSTEM SET repl_ml.heartbeat_interval = '200ms'), 'SELECT pg_reload_conf()';
}

sub member
{
	my ($node, $of, $columns) = @_;
	return sql($node, "SELECT $columns FROM repl_ml.group_status WHERE node_name = " . literal($of->name));
}

# everybody shows everybody, and what each says is what its own views say
foreach my $node (@nodes)
{
	poll_until($node, q(SELECT count(*) = 3 AND bool_and(role = 'writer' AND state = 'ready' AND told_age < '1 min' AND reachable) FROM repl_ml.group_status));
	poll_until($node, q(SELECT bool_and((SELECT count(*) FROM jsonb_each(receiving) e WHERE e.value->>'state' = 'streaming') = 2 AND (SELECT count(*) FROM jsonb_each(sending) e WHERE e.value->>'state' = 'streaming') = 2) FROM repl_ml.group_status));
}
is(member($n1, $n2, 'is_local, version, server_version, server_start'), sql($n2, q(SELECT 'f', '1.0', current_setting('server_version'), pg_postmaster_start_time())), 'what it is, and since when');
is(member($n1, $n1, q(is_local, told_age < '1 s')), 't|t', 'of itself a node tells what is now');

# what is parked on one is seen on all
sql($n2, 'ALTER TABLE t DROP CONSTRAINT t_v_check');
sql($n3, 'ALTER TABLE t DROP CONSTRAINT t_v_check');
sql($n2, q(INSERT INTO t VALUES (1, 'bad')));
poll_until($n3, q(SELECT parked = 1 FROM repl_ml.group_status WHERE node_name = 'n1'));
is(member($n3, $n2, 'parked'), '0', 'it is parked there only');
sql($n1, 'ALTER TABLE t DROP CONSTRAINT t_v_check');
poll_until($n3, q(SELECT parked = 0 FROM repl_ml.group_status WHERE node_name = 'n1'));

# who applies nothing of whom is seen by the third
cut($n1, $n2);
poll_until($n3, q(SELECT receiving->'n2'->>'state' = 'paused' FROM repl_ml.group_status WHERE node_name = 'n1'));
poll_until($n3, q(SELECT sending->'n1'->>'state' = 'paused' FROM repl_ml.group_status WHERE node_name = 'n2'));
sql($n2, q(INSERT INTO t VALUES (2, 'late')));
poll_until($n3, q(SELECT (sending->'n1'->>'lag')::float8 > 0.5 AND (sending->'n1'->>'transactions_behind')::int > 0 FROM repl_ml.group_status WHERE node_name = 'n2'));
heal($n1, $n2);
wait_converged(\@nodes, 't');
poll_until($n3, q(SELECT sending->'n1'->>'state' = 'streaming' FROM repl_ml.group_status WHERE node_name = 'n2'));

# one that is down: what it told last, as old as it is
my $since = sql($n3, 'SELECT clock_timestamp()');
$n2->stop;
poll_until($n3, q(SELECT NOT reachable AND told_age > '1 s' FROM repl_ml.group_status WHERE node_name = 'n2'));
is(member($n3, $n2, "state, role, told_at < clock_timestamp() - interval '1 s', told_at < '$since'::timestamptz + interval '1 min', parked"), 'ready|writer|t|t|0', 'what it told last, with its age');
poll_until($n3, q(SELECT receiving->'n2'->>'state' IN ('waiting', 'connecting') AND receiving->'n2'->>'error' IS NOT NULL FROM repl_ml.group_status WHERE node_name = 'n1'));

# the document
my $status = decode_json(sql($n3, 'SET ROLE pg_monitor; SELECT repl_ml.status()'));
is(join(' ', sort keys %$status), 'date group health members node status', 'the fields of status()');
is("$status->{node} $status->{status}", 'n3 error', 'who says that, and how it is');
is(join(' ', map { "$_->{node_name} " . ($_->{reachable} ? 'yes' : 'no') } @{ $status->{members} }), 'n1 yes n2 no n3 yes', 'the members');
is(scalar(@{ $status->{health} }), sql($n3, 'SELECT count(*) FROM repl_ml.health'), 'all checks');
is(join(' ', sort keys %{ $status->{members}[0] }), sql($n3, q(SELECT string_agg(attname, ' ' ORDER BY attname) FROM pg_attribute WHERE attrelid = 'repl_ml.group_status'::regclass AND attnum > 0)), 'a member has the columns of group_status');

# at a glance
my $aligned = sql($n3, "\\pset format aligned\n\\pset tuples_only off\nSELECT * FROM repl_ml.top");
is((grep { length > 100 } split /\n/, $aligned) + 0, 0, 'no line is longer than 100 columns');
cmp_ok(scalar(split /\n/, $aligned), '>=', 5, 'all members are there');
is(sql($n3, q(SELECT node, "from", "to" FROM repl_ml.top)), "n1|streaming|streaming\nn2|" . sql($n3, q(SELECT "from" FROM repl_ml.top WHERE node = 'n2')) . "|down\nn3*||", 'top');
$n2->start;
wait_converged(\@nodes, 't');
done_testing();
