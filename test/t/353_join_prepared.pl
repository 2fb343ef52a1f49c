# A join that waits for a prepared transaction says for which one and where, goes on by itself when it is over, and loses nothing.
#
# Seen failing: link.c without await_prepared (stat_apply never says that the join waits); stats.c that does not look for
# a transaction prepared here (the error gives no reason).
use strict;
use warnings;
use ReplMl;
use Test::More;

my ($n1) = new_group(1, "CREATE TABLE t (id int PRIMARY KEY); SELECT repl_ml.add_table('t')");
my $n2 = new_node('n2');
my $n3 = new_node('n3');

# Joins, and returns the error that whoever waits for it gets once the query is true.
sub waiting_to_join
{
	my ($node, $query) = @_;
	my ($name, $own, $to) = map { literal($_) } ($node->name, dsn($node), dsn($n1));
	sql($node, 'CREATE EXTENSION repl_ml');
	sql($node, "SELECT repl_ml.join_group($name, $own, $to, wait => false)");
	poll_until($node, $query);
	my (undef, undef, $error) = $node->psql('postgres', "SELECT repl_ml.wait_for_node($name, '1 s')", extra_params => [ '-v', 'VERBOSITY=verbose' ]);
	return $error;
}

# on a member
sql($n1, q(BEGIN; INSERT INTO t VALUES (1); PREPARE TRANSACTION 'it''s forgotten'));
my $error = waiting_to_join($n2, q(SELECT error_message IS NOT NULL FROM repl_ml.stat_apply WHERE state = 'waiting'));
like($error, qr/ERROR:  57014: node "n2" is still joining$/m, 'the join does not end in time');
my $reason = qr/the slot on node "n1" waits for the prepared transaction 'it''s forgotten' of role "[^"]+" in database "postgres", prepared at 20/;
like($error, qr/^DETAIL:  .*$reason.*Hint: Run COMMIT PREPARED 'it''s forgotten' or ROLLBACK PREPARED/m, 'the reason is in the error');
like(sql($n2, q(SELECT error_message FROM repl_ml.stat_apply WHERE node_name = 'n1' AND state = 'waiting')), $reason, 'and in stat_apply');
is(sql($n2, 'SELECT errors FROM repl_ml.stat_apply'), '0', 'to wait is no error');
sql($n1, q(COMMIT PREPARED 'it''s forgotten'));
poll_until($n2, q(SELECT state = 'ready' FROM repl_ml.nodes WHERE node_name = 'n2'));
wait_converged([ $n1, $n2 ], 't');
is(sql($n2, 'SELECT id FROM t'), '1', 'its row is there');

# on the server that joins
sql($n3, q(BEGIN; CREATE TABLE own (); PREPARE TRANSACTION 'of my own'));
$error = waiting_to_join($n3, q(SELECT clock_timestamp() - prepared > '6 s' FROM pg_prepared_xacts));
like($error, qr/^DETAIL:  The transaction 'of my own' of role "[^"]+" in database "postgres", prepared on this server at 20.*, keeps other members from linking to it\.$/m,
	'a transaction that is prepared here is named, too');
sql($n3, q(ROLLBACK PREPARED 'of my own'));
poll_until($n3, q(SELECT state = 'ready' FROM repl_ml.nodes WHERE node_name = 'n3'));
wait_converged([ $n1, $n2, $n3 ], 't');

done_testing();
