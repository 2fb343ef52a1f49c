# A hot standby of a member tells the truth or refuses: it cannot know what has been acknowledged, so barrier and token
# reads are refused with a hint; every view answers, and health says what this server is.
#
# Seen failing: with a standby left out in is_wanted (read/read.c) the old row is read; without the
# look in repl_ml_identity_require; with pg_current_wal_flush_lsn in local_info and the views; without standby in health.
use strict;
use warnings;
use ReplMl;
use Test::More;

my ($n1, $n2) = my @nodes = new_group(2, <<'SQL');
CREATE TABLE t (id int PRIMARY KEY, v text);
SELECT repl_ml.add_all_tables();
INSERT INTO t VALUES (1, 'old');
SQL
wait_converged(\@nodes, 't');
$n1->backup('copy');
my $standby = PostgreSQL::Test::Cluster->new('standby');
$standby->init_from_backup($n1, 'copy', has_streaming => 1);
$standby->start;
poll_until($standby, q(SELECT v = 'old' FROM t));
sql($standby, 'SELECT pg_wal_replay_pause()');
poll_until($standby, q(SELECT pg_get_wal_replay_pause_state() = 'paused'));
sql($n2, q(SET repl_ml.write_consistency = 'all'; UPDATE t SET v = 'new'));

is(sql($standby, 'SELECT v FROM t'), 'old', 'a local read');
foreach my $read ('SELECT v FROM t', 'COPY t TO STDOUT', 'BEGIN')
{
	psql_fails($standby, "SET repl_ml.read_consistency = barrier; $read", '0A000', 'cannot be "barrier" on a standby', 'read_consistency = local');
}
psql_fails($standby, "SELECT repl_ml.$_", '0A000', 'a standby takes no part', 'on a member')
  foreach q(barrier('1 s')), 'current_vector()', q(wait_for_vector('{1:1}', '1 s')), q(add_table('t')), q(set_resolver('t', 'keep_both')), q(pause_apply('n2')), q(set_node_address('n2', 'x')), q(drop_node('n2')), q(invite_node('n9'));

# every view answers
foreach my $view (split /\n/, sql($standby, q(SELECT oid::regclass FROM pg_class WHERE relnamespace = 'repl_ml'::regnamespace AND relkind = 'v' ORDER BY 1::text)))
{
	my ($code, $out, $err) = $standby->psql('postgres', "SELECT * FROM $view");
	is("$code $err", '0 ', "$view answers");
}
is(sql($standby, q(SELECT check_name, status, regexp_replace(detail, 'as of .*:', 'as of then:'), hint FROM repl_ml.health)),
	'membership|ok|This server is a standby of node "n1", as of then: it takes no part in group "g".|Look at repl_ml.health on the node itself.', 'health on a standby');
is(sql($n1, q(SELECT string_agg(DISTINCT status, '') FROM repl_ml.health)), 'ok', 'health on the node');
$standby->stop;
done_testing();
