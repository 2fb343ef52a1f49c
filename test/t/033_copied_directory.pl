# A copied, restored or promoted data directory does not go on as the node it was made from.
use strict;
use warnings;
use Membership;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use ReplMl;
use Test::More;

my ($n1, $n2) = new_group(2, <<'SQL');
CREATE TABLE item (id integer PRIMARY KEY, v text);
CREATE TABLE plain (id integer PRIMARY KEY);
INSERT INTO item SELECT i, i FROM generate_series(1, 100) i;
SELECT repl_ml.add_table('item');
SQL
wait_converged([ $n1, $n2 ], 'item');

# A server whose data directory is filled by hand, with settings of its own.
sub copy_node
{
	my ($name, $fill) = @_;
	my $copy = PostgreSQL::Test::Cluster->new($name);

	mkdir $copy->basedir;
	$fill->($copy);
	$copy->append_conf('postgresql.conf', 'port = ' . $copy->port);
	return $copy;
}

sub cp { my ($from, $to) = @_; system('cp', '-a', '-T', $from, $to) == 0 or die "cp failed" }

# A copy neither writes enrolled tables nor talks to peers; everything else works.
sub is_fenced
{
	my ($copy, $of) = @_;
	my @error = ('55000', "this data directory is a copy of node \"$of\"", 'leave_group\(force => true\)');

	psql_fails($copy, q(INSERT INTO item VALUES (1000, 'copy')), @error);
	psql_fails($copy, q(UPDATE item SET v = 'copy'), @error);
	psql_fails($copy, 'DELETE FROM item', @error);
	psql_fails($copy, 'TRUNCATE item', @error);
	psql_fails($copy, q(COPY item FROM PROGRAM 'echo 1001,x' CSV), @error);
	psql_fails($copy, q(SELECT repl_ml.add_table('plain')), @error);
	psql_fails($copy, q(SELECT repl_ml.leave_group()), @error);
	psql_fails($copy, q(SELECT repl_ml.drop_node('n2')), @error) if $of ne 'n2';
	sql($copy, 'INSERT INTO plain VALUES (1) ON CONFLICT DO NOTHING');
	is(sql($copy, 'SELECT count(*) > 0 FROM item'), 't', 'a copy can be read');
	poll_until($copy, q(SELECT count(*) = 0 FROM pg_stat_activity WHERE backend_type = 'repl_ml apply'));
	is(sql($copy, q(SELECT bool_and(state = 'stopped') FROM repl_ml.stat_apply)), 't', 'no worker of the copy talks to a peer');
}

# It is not confirmed to be the node that runs elsewhere.
sub refused
{
	my ($copy, $of, $reason) = @_;
	psql_fails($copy, 'SELECT repl_ml.confirm_identity()', '55000', "cannot be confirmed to be node \"$of\"", 'leave_group');
	my (undef, undef, $stderr) = $copy->psql('postgres', 'SELECT repl_ml.confirm_identity()');
	like($stderr, qr/^DETAIL:  .*$reason/m, 'and why');
	return;
}

# the copy of a stopped node, started beside it
$n1->stop;
my $copy = copy_node('copy', sub { cp($n1->data_dir, $_[0]->data_dir) });
$n1->start;
$copy->start;
is_fenced($copy, 'n1');
refused($copy, 'n1', 'is connected with another server that runs as node n1');
sql($n1, q(INSERT INTO item VALUES (101, 'n1'); UPDATE item SET v = 'n1' WHERE id = 1));
sql($n2, q(INSERT INTO item VALUES (102, 'n2')));
wait_converged([ $n1, $n2 ], 'item');
is(sql($copy, 'SELECT max(id) FROM item'), '100', 'and nothing gets to the copy');

# the copy can become a node of its own
sql($copy, 'SELECT repl_ml.leave_group(force => true)');
is_clean($copy, 'the copy has left');
sql($copy, 'DROP TABLE item');
sql($copy, call('join_group', 'copy', dsn($copy), dsn($n1)));
is(sql($copy, 'SELECT node_id FROM repl_ml.local_node'), '3', 'as a node of its own it has a new id');
sql($copy, q(INSERT INTO item VALUES (103, 'copy')));
wait_converged([ $n1, $n2, $copy ], 'item');
sql($copy, 'SELECT repl_ml.leave_group()');
$copy->stop;

# A standby that is promoted is a copy of a node that may still be there.
$n2->backup('base');
my $standby = PostgreSQL::Test::Cluster->new('standby');
$standby->init_from_backup($n2, 'base', has_streaming => 1);
$standby->start;
$n2->wait_for_catchup($standby, 'replay', $n2->lsn('flush'));
is(sql($standby, 'SELECT count(*) FROM item'), sql($n2, 'SELECT count(*) FROM item'), 'a standby of a node');
is(sql($standby, 'SELECT count(*) FROM pg_stat_activity WHERE backend_type LIKE $$repl_ml%$$'), '0', 'no worker on a standby');
$standby->promote;
is_fenced($standby, 'n2');
refused($standby, 'n2', 'is connected with another server that runs as node n2');
sql($n2, q(INSERT INTO item VALUES (104, 'n2')));
wait_converged([ $n1, $n2 ], 'item');
$standby->stop;

# A node that has moved to other files goes on when the members agree; the place it left is then fenced, also by a member that
# was not asked, and stays so.
sub moves
{
	my ($from, $to) = @_;
	rename($from, $to) or die "$from: $!";
	return;
}
sub fenced { my ($node) = @_; return sql($node, 'SELECT fenced FROM repl_ml.local_info()'); }
my $place = $n2->data_dir;
$n2->stop;
poll_until($n1, q(SELECT repl_ml.vouch_for(l.group_id, 2, 1, 2, false, '0/0', 0, 'a backup') LIKE '%does not find this server%this is an older state of it' FROM repl_ml.local_node l));
moves($place, "$place.left");
cp("$place.left", $place);
sql($n1, q(INSERT INTO repl_ml.vouched VALUES (2, 'a former place', 2, clock_timestamp() + '1 hour') ON CONFLICT (node_id) DO UPDATE SET place = excluded.place, incarnation = excluded.incarnation, vouched_at = excluded.vouched_at));
$n2->start;
is_fenced($n2, 'n2');
psql_fails($n2, 'SELECT repl_ml.confirm_identity()', '55000', 'cannot be confirmed', 'try again in a minute');
sql($n1, 'DELETE FROM repl_ml.vouched');
poll_until($n2, 'SELECT NOT fenced FROM repl_ml.local_info()');
is(sql($n2, 'SELECT repl_ml.confirm_identity()'), '', 'a second time it says nothing new');
sql($n2, q(INSERT INTO item VALUES (105, 'n2, moved')));
sql($n1, q(INSERT INTO item VALUES (106, 'n1')));
wait_converged([ $n1, $n2 ], 'item');
is(sql($_, q(SELECT incarnation FROM repl_ml.member WHERE node_name = 'n2')), '2', $_->name . ' knows of it') foreach $n1, $n2;
$n2->stop;
moves($place, "$place.moved");
moves("$place.left", $place);
$n2->start;
poll_until($n2, 'SELECT fenced FROM repl_ml.local_info()');
is_fenced($n2, 'n2');
refused($n2, 'n2', 'has heard of it in another place since');
is(sql($n2, 'SELECT count(*) FROM item WHERE id IN (105, 106)'), '0', 'what it left does not go on');
$n2->stop;
moves($place, "$place.left");
moves("$place.moved", $place);
$n2->start;

# Volumes that come back under other device numbers, all at once: the members agree without a person. (What is in the table stands
# for the number there was.)
wait_converged([ $n1, $n2 ], 'item');
sql($_, q(UPDATE repl_ml.local_node SET directory = '999999:' || split_part(directory, ':', 2))) foreach $n1, $n2;
$_->stop foreach $n1, $n2;
$n1->start;
is(fenced($n1), 't', 'n1 is fenced while it cannot ask anybody');
psql_fails($n1, 'SELECT repl_ml.confirm_identity()', '55000', 'cannot be confirmed', 'Start the members that do not answer.*force => true');
$n2->start;
poll_until($_, 'SELECT NOT fenced FROM repl_ml.local_info()') foreach $n1, $n2;
sql($n1, q(INSERT INTO item VALUES (107, 'n1')));
sql($n2, q(INSERT INTO item VALUES (108, 'n2')));
wait_converged([ $n1, $n2 ], 'item');
is(sql($n1, q(SELECT string_agg(node_name || incarnation, ' ' ORDER BY node_id) FROM repl_ml.member WHERE state = 'ready')), 'n12 n23', 'each is its next incarnation');

# Nobody can be asked: a person says that no other server runs as the node. One that answers, and objects, still counts.
$_->stop foreach $n1, $n2;
moves($n1->data_dir, $n1->data_dir . '.left');
cp($n1->data_dir . '.left', $n1->data_dir);
$n1->start;
psql_fails($n1, q(INSERT INTO item VALUES (109, 'n1')), '55000', 'copy of node "n1"', 'more than half can be reached');
is(sql($n1, q(SELECT status, hint ~ 'confirm_identity' FROM repl_ml.health WHERE check_name = 'membership')), 'error|t', 'health says what can be done');
sql($n1, 'SELECT repl_ml.confirm_identity(force => true)');
sql($n1, q(INSERT INTO item VALUES (109, 'n1')));
$n2->start;
wait_converged([ $n1, $n2 ], 'item');
is(sql($n2, q(SELECT incarnation FROM repl_ml.member WHERE node_name = 'n1')), '3', 'the other one hears of it');
my $clone = copy_node('clone', sub { cp($n1->data_dir . '.left', $_[0]->data_dir) });
$clone->start;
psql_fails($clone, 'SELECT repl_ml.confirm_identity(force => true)', '55000', 'cannot be confirmed to be node "n1"', 'leave_group');
is_fenced($clone, 'n1');

$clone->stop;

# Also one that takes itself for the node, as on a disk with the same numbers: members have more of the node than it has, and the
# node is found at its address.
$n1->stop;
$clone = copy_node('twin', sub { cp($n1->data_dir, $_[0]->data_dir) });
$n1->start;
my $twin_has = sql($n2, 'SELECT sequence FROM repl_ml.heard WHERE node_id = 1');
poll_until($n2, "SELECT sequence > $twin_has FROM repl_ml.heard WHERE node_id = 1");
$clone->start;
is_fenced($clone, 'n1');
sql($clone, 'UPDATE repl_ml.local_node SET directory = f.directory FROM repl_ml.local_fingerprint() f');
poll_until($clone, q(SELECT state = 'set_back' FROM repl_ml.local_node));
poll_until($clone, q(SELECT status = 'error' AND detail LIKE '%is connected with a server that runs as node "n1"%' AND detail LIKE '%leave_group(force => true)%' FROM repl_ml.health WHERE check_name = 'membership'));
psql_fails($clone, q(INSERT INTO item VALUES (1000, 'clone')), '55000', 'has been set back');
is(sql($n2, q(SELECT string_agg(node_id || ' ' || state, ', ' ORDER BY node_id) FROM repl_ml.member WHERE node_name = 'n1')), '1 ready', 'it does not put the node out');
$clone->stop;
wait_converged([ $n1, $n2 ], 'item');

# Two members, and the other one asks at the address: whoever answers there is the node.
cut($n1, $n2);
cut($n2, $n1);
poll_until($n2, q(SELECT repl_ml.vouch_for(l.group_id, 1, 9, 10, false, '0/0', 0, 'elsewhere') LIKE 'node n2 finds another server%' FROM repl_ml.local_node l));
heal($n1, $n2);
heal($n2, $n1);
wait_converged([ $n1, $n2 ], 'item');

like(sql($n1, q(SELECT repl_ml.vouch_for(l.group_id, 3, 9, 10, false, '0/0', 0, 'x') FROM repl_ml.local_node l)), qr/not a member/, 'nobody vouches for a node that has left');

# The counter goes on above all it has issued, with its file, after a crash, and without the file.
sub newest { my ($node) = @_; return sql($node, 'SELECT max(repl_ml.max_counter(__repl_clock)) FROM item') }
foreach my $what ('kept', 'kept after a crash', 'lost')
{
	my $newest = newest($n1);
	$what =~ /crash/ ? $n1->stop('immediate') : $n1->stop;
	unlink $n1->data_dir . '/repl_ml.clock' or die if $what eq 'lost';
	$n1->start;
	sql($n1, "UPDATE item SET v = '$what' WHERE id = 2");
	is(sql($n1, "SELECT repl_ml.max_counter(__repl_clock) > $newest FROM item WHERE id = 2"), 't', "clock file $what: the next counter is greater");
}
wait_converged([ $n1, $n2 ], 'item');

no_errors([ $n1, $n2 ]);
done_testing();
