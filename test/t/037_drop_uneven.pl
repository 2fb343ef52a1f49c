# A dropped node whose last changes had reached one member and not another leaves the members equal
# all the same: the one that has less copies from the one that has more.
use strict;
use warnings;
use FindBin;
use lib "$FindBin::Bin/..";
use ReplMl;
use Test::More;

my ($n1, $n2, $n3) = new_group(3, <<'SQL');
CREATE TABLE models (name text PRIMARY KEY, stage text);
INSERT INTO models VALUES ('a', 'staging'), ('b', 'staging'), ('c', 'staging');
SELECT repl_ml.add_table('models');
SQL

cut($n2, $n3);
sql($n3, "INSERT INTO models VALUES ('d', 'production'); UPDATE models SET stage = 'production' WHERE name = 'a'; DELETE FROM models WHERE name = 'b'");
poll_until($n1, "SELECT string_agg(name || ':' || stage, ',' ORDER BY name) FROM models",
	'a:production,c:staging,d:production');
is(sql($n2, "SELECT string_agg(name || ':' || stage, ',' ORDER BY name) FROM models"),
	'a:staging,b:staging,c:staging', 'n2 has nothing of it yet');

$n3->stop('immediate');
sql($n1, "SELECT repl_ml.drop_node('n3')");
poll_until($n2, "SELECT string_agg(name || ':' || stage, ',' ORDER BY name) FROM models",
	'a:production,c:staging,d:production');
is_equal_everywhere([ $n1, $n2 ], 'models');
is(sql($n2, 'SELECT count(*) FROM repl_ml.conflicts'), '0', 'none of it is a conflict');

foreach my $node ($n1, $n2)
{
	poll_until($node, "SELECT count(*) = 1 FROM pg_catalog.pg_replication_slots");
	poll_until($node, "SELECT count(*) = 1 FROM pg_catalog.pg_replication_origin");
	is(sql($node, "SELECT count(*) FROM repl_ml.stat_apply"), '1', $node->name . ' has one peer left');
}

# a member that came later has nothing of it, and is asked once
my $n4 = new_node('n4');
join_node($n4, $n1);
poll_until($_, 'SELECT 4 = ANY (compared) FROM repl_ml.dropped_node WHERE node_id = 3') foreach $n1, $n2;
is_equal_everywhere([ $n1, $n4 ], 'models');

# the dropped node is alive again: it learns of it and refuses to write what nobody would get
$n3->start;
poll_until($n3, "SELECT state = 'dropped' FROM repl_ml.local_node");
psql_fails($n3, "INSERT INTO models VALUES ('e', 'lost')", '55000', 'has been dropped', 'leave_group');
done_testing();
