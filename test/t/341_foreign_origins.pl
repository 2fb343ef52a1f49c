# What is written to a replicated table reaches all members, whatever replication origin it was written under; only what
# came from a member is not sent on. Numbers of origins that are used again make no difference.
use strict;
use warnings;
use ReplMl;
use Test::More;

my @nodes = new_group(3, q(
CREATE TABLE item (id int PRIMARY KEY, v text);
CREATE TABLE other (id int PRIMARY KEY, v text);
SELECT repl_ml.add_all_tables()));
my ($n1, $n2, $n3) = @nodes;
poll_until($_, q(SELECT count(*) = 2 FROM repl_ml.tables WHERE state = 'replicated' AND pending_copies = 0)) foreach @nodes;

sub ids
{
	my ($node, $table) = @_;
	return sql($node, "SELECT string_agg(id::text, ',' ORDER BY id) FROM $table");
}

# A database outside the group, which n1 subscribes to with core's logical replication.
sql($n2, 'CREATE DATABASE outside');
my $outside = $n2->connstr('outside');
$n2->safe_psql('outside', q(CREATE TABLE item (id int PRIMARY KEY, v text); INSERT INTO item VALUES (1, 'copied'); CREATE PUBLICATION p FOR TABLE item));
sql($n1, 'CREATE SUBSCRIPTION s CONNECTION ' . ReplMl::literal($outside) . ' PUBLICATION p');
poll_until($_, 'SELECT count(*) = 1 FROM item') foreach @nodes;
$n2->safe_psql('outside', q(INSERT INTO item VALUES (2, 'streamed')));
poll_until($_, 'SELECT count(*) = 2 FROM item') foreach @nodes;

# Dropped while n2 and n3 do not listen, and made again: its numbers are given to other origins.
cut($_, $n1) foreach $n2, $n3;
$n2->safe_psql('outside', q(INSERT INTO item VALUES (3, 'late')));
poll_until($n1, 'SELECT count(*) = 3 FROM item');
sql($n1, 'DROP SUBSCRIPTION s');
sql($n1, q(SELECT pg_replication_origin_create('of a user')));
$n2->safe_psql('outside', q(CREATE TABLE other (id int PRIMARY KEY, v text); INSERT INTO other VALUES (1, 'copied'); ALTER PUBLICATION p ADD TABLE other));
sql($n1, 'DELETE FROM item WHERE id = 1');
sql($n1, 'CREATE SUBSCRIPTION s CONNECTION ' . ReplMl::literal($outside) . ' PUBLICATION p WITH (copy_data = false)');
sql($n1, 'ALTER SUBSCRIPTION s SET PUBLICATION p WITH (copy_data = false)');
$n2->safe_psql('outside', q(INSERT INTO item VALUES (4, 'again'); INSERT INTO other VALUES (2, 'streamed')));
poll_until($n1, 'SELECT count(*) = 1 FROM other');
sql($n1, q(SELECT pg_replication_origin_session_setup('of a user'); INSERT INTO item VALUES (5, 'user')));
heal($_, $n1) foreach $n2, $n3;
wait_converged(\@nodes, 'item', 'other');
is(ids($n3, 'item'), '2,3,4,5', 'all that came by the subscriptions and under an origin of a user');
is(ids($n3, 'other'), '2', 'also of a table added later');
sql($n1, 'DROP SUBSCRIPTION s');

# A dropped origin of ours stays known as such: what n2 has resolved of two versions is not sent to n1 as a version.
cut($n2, $n3);
cut($n3, $n2);
cut($n1, $_) foreach $n2, $n3;
sql($n2, q(UPDATE item SET v = 'n2' WHERE id = 2));
sql($n3, q(UPDATE item SET v = 'n3' WHERE id = 2));
heal($n2, $n3);
poll_until($n2, q(SELECT v = 'n3' FROM item WHERE id = 2));
sql($n2, q(SELECT repl_ml.drop_node('n3')));
poll_until($n2, q(SELECT NOT EXISTS (SELECT FROM pg_replication_origin WHERE roname = repl_ml.link_name(3))));
sql($n2, q(SELECT pg_replication_origin_create('another user''s')));
heal($n1, $n2);
pop @nodes;
# what n3 had sent to n2 only is copied when n1 has heard that it is gone
poll_until($n1, q(SELECT v = 'n3' FROM item WHERE id = 2));
wait_converged(\@nodes, 'item', 'other');
is(sql($n2, q(SELECT count(*) FROM pg_replication_origin WHERE roident::int >= 32768 AND roname NOT LIKE 'repl\_ml\_%')), '0', 'other origins have other numbers');

# An origin of a user's that has the name of ours is not taken for ours.
my $n4 = new_node('n4');
sql($n4, 'CREATE EXTENSION repl_ml; SELECT pg_replication_origin_create(repl_ml.link_name(1))');
join_node($n4, $n1);
push @nodes, $n4;
sql($n1, q(INSERT INTO item VALUES (6, 'n1')));
wait_converged(\@nodes, 'item', 'other');
is(sql($n4, q(SELECT roident::int >= 32768 FROM pg_replication_origin WHERE roname = repl_ml.link_name(1))), 't', 'it was replaced');

done_testing();
