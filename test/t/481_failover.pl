# The node that has the lease of strong tables is killed, stopped or cut off: the others go on without a hand, nothing that
# was acknowledged is lost, no number is given twice, and what it alone had committed is gone from it when it is back.
#
# Seen failing: fence.c without the judgement (what was not acknowledged is seen), fetch.c without repl_ml_replace_empty (it stays where it was committed), holding.c
# without given_up, or without closings (the former holder gives away, or keeps, what it has lost), gate.c that lets everybody pass (what no majority has is read), strong.c with relationOids (a copy waits for what waits for it), worker.c
# without end_unfinished (who writes a row waits for wal_receiver_timeout).
use strict;
use warnings;
use FindBin;
use lib "$FindBin::Bin/..";
use Consistency;
use Membership;
use Proxy;
use ReplMl;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

my ($n1, $n2, $n3) = my @nodes = map { new_node($_) } qw(n1 n2 n3);
our $proxy = start_proxy($n1);
END { local $?; $proxy->stop if $proxy }

sql($n1, 'CREATE EXTENSION repl_ml');
sql($n1, "SELECT repl_ml.create_group('g', 'n1', " . literal($proxy->dsn) . ')');
sql($n1, <<'SQL');
CREATE TABLE versions (name text, version int, author text, PRIMARY KEY (name, version));
CREATE TABLE counters (id int PRIMARY KEY, n int NOT NULL);
CREATE TABLE plain (id int PRIMARY KEY, v text);
INSERT INTO plain VALUES (1, 'one');
INSERT INTO counters VALUES (1, 0), (2, 0), (3, 0);
SELECT * FROM repl_ml.add_all_tables();
-- a group of one may change its mind
SELECT repl_ml.add_table('versions', class => 'strong');
SELECT repl_ml.add_table('counters', class => 'strong');
SQL
join_node($_, $n1) foreach $n2, $n3;

# The node gets the lease.
sub have_lease
{
	my ($node) = @_;
	poll_until($node, q(SELECT repl_ml.take_lease() IS NOT NULL));
	return;
}

# All processes of a server, which are stopped from here on, or go on.
our @stopped;
END { kill CONT => @stopped if @stopped }

sub stop_server
{
	my ($node) = @_;
	@stopped = ($node->{_pid}, split ' ', `ps -o pid= --ppid $node->{_pid}`);
	kill STOP => @stopped;
	return;
}

sub wake_server { kill CONT => @stopped; @stopped = (); return; }

# A client that creates versions of a model, max + 1 each, until it is killed or has made so many tries.
sub start_creator
{
	my ($node, $name, $tries) = @_;
	my $file = "$PostgreSQL::Test::Utils::tmp_check/creator_" . $node->name . "_$name";
	my %session = (out => '');

	append_to_file($file, "SET repl_ml.write_timeout = '1s';\n" . <<"SQL" x $tries);
BEGIN;
SELECT coalesce(max(version), 0) + 1 AS v FROM versions WHERE name = '$name' \\gset
INSERT INTO versions VALUES ('$name', :v, '@{[ $node->name ]}');
\\set failed :ERROR
\\if :failed
\\echo refused :SQLSTATE
ROLLBACK;
\\else
COMMIT;
\\if :ERROR
\\echo lost :SQLSTATE
\\else
\\echo created :v
\\endif
\\endif
SELECT count(*) FROM generate_series(1, 10000) \\g /dev/null
SQL
	$session{harness} = IPC::Run::start(
		[ 'psql', '-XAtq', '-d', dsn($node), '-f', $file ], '>&', \$session{out}, IPC::Run::timeout($PostgreSQL::Test::Utils::timeout_default));
	return \%session;
}

# What was acknowledged to these clients is there, on these nodes, and no number was given twice.
sub check_versions
{
	my ($name, $where, @told) = @_;
	my @created = sort { $a <=> $b } join("\n", @told) =~ /^created (\d+)$/mg;
	my %twice;
	my $list = join ',', @created;

	note scalar(@created) . ' versions; ' . scalar(() = "@told" =~ /refused 57P03/g) . ' times 57P03, ' . scalar(() = "@told" =~ /40003/g) . ' times 40003';
	cmp_ok(scalar(@created), '>', 20, "$name: versions are created");
	is(join(' ', grep { $twice{$_}++ } @created), '', "$name: no version is given twice");
	is(join(' ', grep { !/^(?:refused (?:23505|57P03|25P02)|lost (?:57P03|40003))$/ } map { /^((?:refused|lost).*)$/mg } @told), '', "$name: clients meet no other error");
	# what is still on its way to a node comes there
	poll_until($_, "SELECT count(*) = 0 FROM unnest('{$list}'::int[]) v WHERE NOT EXISTS (SELECT FROM versions WHERE name = '$name' AND version = v)") foreach @$where;
	is(sql($_, "SELECT count(*) FROM unnest('{$list}'::int[]) v JOIN versions ON name = '$name' AND version = v"), scalar(@created), "$name: none is lost on " . $_->name) foreach @$where;
	is(sql($where->[0], "SELECT count(*) = max(version) FROM versions WHERE name = '$name'"), 't', "$name: no number is left out");
	return;
}

# ---- what no majority has: void, also of a node that has the lease for the first time ----

have_lease($n2);
never_miss_heartbeats($n2);
stop_answers($n2, $n1, $n3);
psql_fails($n2, q(SET repl_ml.write_timeout = '100ms'; UPDATE counters SET n = 70 WHERE id = 3), '40003', 'committed on this node');
stop_server($n2);
is(sql($n3, 'UPDATE counters SET n = n + 1 WHERE id = 3 RETURNING n'), '1', 'for the first time: others write upon what had been acknowledged');
continue_answers();
wake_server();
poll_until($n2, q(SELECT undone_at IS NOT NULL FROM repl_ml.void_transactions));
sql($n2, $_) foreach 'ALTER SYSTEM RESET repl_ml.heartbeat_interval', 'SELECT pg_reload_conf()';
wait_converged(\@nodes, 'counters');
is(sql($_, 'SELECT n FROM counters WHERE id = 3'), '1', 'for the first time: it is not on ' . $_->name) foreach @nodes;
is(sql($n2, 'SELECT tables::text || rows FROM repl_ml.void_transactions'), '{public.counters}[{"row": {"n": "70", "id": "3"}, "table": "public.counters"}]', 'for the first time: it is listed');
sql($n1, 'UPDATE counters SET n = 0 WHERE id = 3');
have_lease($_) foreach $n2, $n3, $n1;

# ---- what no majority has: void ----

sql($n1, 'UPDATE counters SET n = 1');
wait_converged(\@nodes, 'counters');
never_miss_heartbeats($n1);
stop_answers($n1, $n2, $n3);
psql_fails($n1, q(SET repl_ml.write_timeout = '100ms'; BEGIN; UPDATE counters SET n = 100 WHERE id = 1; DELETE FROM counters WHERE id = 2; INSERT INTO counters VALUES (4, 4); UPDATE plain SET v = 'mixed'; COMMIT), '40003', 'committed on this node');
poll_until($n1, q(SELECT bool_and(sent_lsn >= pg_current_wal_flush_lsn()) FROM pg_stat_replication));
stop_server($n1);
my $began = time;
sql($n2, 'UPDATE counters SET n = n + 1 WHERE id = 1');
note sprintf 'stopped: another node writes after %.2f s', time - $began;
# what the holder alone has meets a commit that waits there: it is not put aside, to be joined later
stop_answers($n2, $n3);
my $waiting = $n2->background_psql('postgres', on_error_stop => 0);
$waiting->query_until(qr/^$/, "UPDATE counters SET n = n WHERE id = 1;\n\\echo acknowledged :SQLSTATE\n");
poll_until($n2, q(SELECT count(*) > 0 FROM pg_stat_activity WHERE wait_event = 'SyncRep'));
continue_answers($n2);
poll_until($n2, q(SELECT count(*) > 0 FROM repl_ml.discarded_transaction WHERE node_id = 1));
continue_answers();
$waiting->query_until(qr/acknowledged 00000/, "\n");
$waiting->quit;
is(sql($n3, 'UPDATE counters SET n = n + 1 WHERE id IN (1, 2) RETURNING n'), "3\n2", 'stopped: others write upon what had been acknowledged');
is(sql($_, 'SELECT string_agg(id || $$ $$ || n, $$, $$ ORDER BY id) FROM counters'), '1 3, 2 2, 3 1', 'what was not is not seen on ' . $_->name) foreach $n3;
wake_server();
poll_until($n1, q(SELECT string_agg(id || ' ' || n, ', ' ORDER BY id) = '1 3, 2 2, 3 1' FROM counters));
is(sql($n1, q(SELECT jsonb_agg(r ORDER BY r) FROM repl_ml.void_transactions, jsonb_array_elements(rows) r WHERE undone_at > noted_at)), '[{"row": {"n": "100", "id": "1"}, "table": "public.counters"}, {"row": {"n": "4", "id": "4"}, "table": "public.counters"}, {"table": "public.counters", "deleted": {"id": "2"}}]', 'it is listed on the node that wrote it');
pass_converged();
sql($n1, $_) foreach 'ALTER SYSTEM RESET repl_ml.heartbeat_interval', 'SELECT pg_reload_conf()';
have_lease($n1);
is(sql($n1, 'UPDATE counters SET n = n + 1 WHERE id = 1 RETURNING n'), '4', 'the former holder writes again');
is(sql($n2, q(SET statement_timeout = '60s'; UPDATE counters SET n = n + 1 WHERE id = 2 RETURNING n)), '3', 'and gives it away, though nobody acknowledges what is void');
wait_converged(\@nodes, 'counters', 'plain');
is(sql($n3, 'SELECT v FROM plain'), 'mixed', 'what was written to eventual tables stays');
is(sql($_, 'SELECT count(*) FROM repl_ml.conflicts WHERE table_name = $$counters$$'), '0', 'no conflict on ' . $_->name) foreach @nodes;
is(sql($n2, q(SELECT status FROM repl_ml.health WHERE check_name = 'strong_tables')), 'ok', 'health is well');

sub pass_converged { wait_converged(\@nodes, 'counters', 'versions'); return; }

# ---- killed under load ----

have_lease($n1);
my @creators = map { my $node = $_; map { start_creator($node, 'killed', 60) } 1 .. 2 } @nodes;
poll_until($n2, q(SELECT count(*) > 20 FROM versions));
have_lease($n1);
kill_server($n1);
$began = time;
my $count = sql($n2, 'SELECT count(*) FROM versions');
poll_until($n2, "SELECT count(*) > $count + 2 FROM versions");
note sprintf 'killed: others create versions after %.2f s', time - $began;
my @told = map { eval { finish_session($_) } // $_->{out} } @creators;
check_versions('killed', [ $n2, $n3 ], @told);
$n1->start;
poll_until($n1, 'SELECT count(*) = ' . sql($n2, 'SELECT count(*) FROM versions') . ' FROM versions');
pass_converged();

# ---- cut off, and not stopped ----

have_lease($n1);
@creators = map { start_creator($_, 'cut', 60) } @nodes;
poll_until($n2, q(SELECT count(*) > 10 FROM versions WHERE name = 'cut'));
have_lease($n1);
$proxy->bend(there => 'cut', back => 'cut');
@told = map { finish_session($_) } @creators;
$proxy->bend;
check_versions('cut', \@nodes, @told);

# ---- stopped in the middle of a transaction, and awake again ----

have_lease($n1);
my $asleep = $n1->background_psql('postgres', on_error_stop => 0);
$asleep->query_safe($_) foreach 'BEGIN', 'UPDATE counters SET n = 1000 WHERE id = 1';
$asleep->query('\set VERBOSITY verbose');
stop_server($n1);
sql($n2, 'UPDATE counters SET n = n + 1 WHERE id = 1');
wake_server();
$asleep->query(q(SET repl_ml.write_timeout = '2s'));
$asleep->query('COMMIT');
like($asleep->{stderr}, qr/ERROR:  (?:57P03|40003)/, 'awake: it does not commit what it had begun');
$asleep->quit;
poll_until($n1, q(SELECT n = 5 FROM counters WHERE id = 1));
pass_converged();
is(sql($n3, 'SELECT n FROM counters WHERE id = 1'), '5', 'and nobody has it');

# ---- everybody is restarted, by a crash ----

kill_server($_) foreach @nodes;
$_->start foreach @nodes;
have_lease($n3);
is(sql($n3, 'UPDATE counters SET n = n + 1 WHERE id = 1 RETURNING n'), '6', 'all killed and started: they go on');

# ---- given by a node that is killed then, to one that lacks what it had written ----

have_lease($n1);
cut($n2, $n1);
$count = sql($n1, 'UPDATE counters SET n = n + 1 WHERE id = 3 RETURNING n');
$n2->psql('postgres', q(SET statement_timeout = '1s'; SELECT repl_ml.take_lease()), on_error_stop => 0);
poll_until($n2, 'SELECT holder = 2 FROM repl_ml.lease_state');
kill_server($n1);
heal($n2, $n1);
is(sql($n2, q(SET statement_timeout = '60s'; UPDATE counters SET n = n + 1 WHERE id = 3 RETURNING n)), $count + 1, 'given by one that is gone: what it had written comes from another one');
$n1->start;
pass_converged();

# ---- given to a node where nobody waits any more, and wanted back ----

have_lease($n2);
have_lease($n1);
sql($n1, "BEGIN; UPDATE repl_ml.lease_state SET turn = turn + 1, holder = 2; SELECT repl_ml.lease_close(false, NULL); COMMIT");
is(sql($n1, q(SET statement_timeout = '60s'; UPDATE counters SET n = n WHERE id = 1 RETURNING n)), '6', 'given in vain: who gave it has it again');

# ---- the others have voted for rounds that nobody has won ----

# As if candidates had been cut off, who knew that something of n1 counts: its round does not any more, and no other can be elected.
sub vote_for_nobody
{
	have_lease($n1);
	wait_converged(\@nodes, 'counters');
	my $base = sql($n1, q(SELECT format('{%s:%s}', node_id, pg_current_wal_insert_lsn() - '0/0' + 100000) FROM repl_ml.local_node));
	sql($_, "UPDATE repl_ml.lease_state s SET promised = ((s.promised >> 16) + 1 << 16) + l.node_id, base = repl_ml.merge(base, '$base') FROM repl_ml.local_node l") foreach $n2, $n3;
	return;
}

# Then it is here in the WAL.
sub reach_base { sql($n1, q(SELECT pg_logical_emit_message(false, 'test', repeat('x', 110000)))); return; }

vote_for_nobody();
psql_fails($n1, q(SET repl_ml.write_timeout = '500ms'; UPDATE counters SET n = 7 WHERE id = 1), '40003', 'committed on this node');
reach_base();
is(sql($n2, 'UPDATE counters SET n = n + 1 WHERE id = 1 RETURNING n'), '8', 'voted in vain: the holder stands anew, and what it committed counts');
vote_for_nobody();
$waiting = $n1->background_psql('postgres', on_error_stop => 0);
$waiting->query_safe(q(SET repl_ml.write_timeout = 0));
$waiting->query_until(qr/^$/, "UPDATE counters SET n = 19 WHERE id = 1;\n\\echo acknowledged :SQLSTATE\n");
poll_until($n1, q(SELECT count(*) > 0 FROM pg_stat_activity WHERE wait_event = 'SyncRep'));
reach_base();
is(sql($n2, 'UPDATE counters SET n = n + 1 WHERE id = 1 RETURNING n'), '20', 'voted in vain: another one gets it, and a commit that waits at the holder counts');
$waiting->query_until(qr/acknowledged 00000/, "\n");
$waiting->quit;
is(sql($n1, 'UPDATE counters SET n = n + 1 WHERE id = 1 RETURNING n'), '21', 'and the holder again');
pass_converged();
is(sql($_, 'SELECT count(*) FROM repl_ml.conflicts WHERE table_name = $$counters$$'), '0', 'no conflict on ' . $_->name) foreach @nodes;

# ---- what a majority does not have is not read, either, where it was written ----

sub not_read
{
	my ($when) = @_;
	psql_fails($n1, "SET repl_ml.read_timeout = '300ms'; $_", '57P03', 'strong tables cannot be (?:read|written) on this node now') foreach 'SELECT n FROM counters', 'SELECT n FROM counters FOR SHARE', 'COPY counters TO STDOUT', 'EXPLAIN ANALYZE SELECT n FROM counters';
	is(sql($n1, 'SELECT v FROM plain; EXPLAIN (COSTS off) SELECT n FROM counters'), "mixed\nSeq Scan on counters", "$when: eventual tables are read");
	return;
}

have_lease($n1);
never_miss_heartbeats($n1);
sql($n1, q(BEGIN; UPDATE counters SET n = 600 WHERE id = 2; PREPARE TRANSACTION 'strong'));
stop_answers($n1, $n2, $n3);
$waiting = $n1->background_psql('postgres', on_error_stop => 0);
$waiting->query_until(qr/^$/, "UPDATE counters SET n = 500 WHERE id = 1;\n\\echo acknowledged :SQLSTATE\n");
poll_until($n1, q(SELECT count(*) > 0 FROM pg_stat_activity WHERE wait_event = 'SyncRep'));
my $locking = $n1->background_psql('postgres', on_error_stop => 0);
$locking->query_safe(q(SET repl_ml.read_timeout = '300ms'; SET repl_ml.write_timeout = '300ms'));
$locking->query_until(qr/^$/, "SELECT n FROM counters WHERE id = 1 FOR SHARE;\n\\echo locked :SQLSTATE\n");
poll_until($n1, q(SELECT count(*) > 0 FROM pg_stat_activity WHERE query LIKE '%FOR SHARE%' AND wait_event_type = 'Lock'));
is(sql($n1, 'SELECT n FROM counters WHERE id = 1'), '21', 'in its wait: others see what was before');
sql($n1, q(SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep'));
$waiting->query_until(qr/acknowledged 40003/, "\n");
$locking->query_until(qr/locked 57P03/, "\n");
not_read('given up');
is(sql($n1, q(SELECT length(repl_ml.send_columns('counters')) > 0)), 't', '... but who only names it, as a member that copies it, does not wait');
$locking->query('RESET repl_ml.read_timeout');
$locking->query_until(qr/asked/, "\\echo asked\nSELECT n FROM counters WHERE id = 1;\n");
poll_until($n1, q(SELECT count(*) > 0 FROM pg_stat_activity WHERE query LIKE 'SELECT n FROM counters WHERE id = 1%' AND state = 'active' AND wait_event_type = 'Extension'));
continue_answers();
$locking->query_until(qr/^500$/m, "\n");
stop_answers($n1, $n2, $n3);
psql_fails($n1, q(SET repl_ml.write_timeout = '300ms'; COMMIT PREPARED 'strong'), '40003', 'committed on this node');
not_read('prepared, given up');
continue_answers();
is(sql($n1, 'SELECT n FROM counters WHERE id = 2'), '600', 'acknowledged: it is read');
stop_answers($n1, $n2, $n3);
$waiting->query_until(qr/^$/, "UPDATE counters SET n = 501 WHERE id = 1;\n");
poll_until($n1, q(SELECT count(*) > 0 FROM pg_stat_activity WHERE wait_event = 'SyncRep'));
$proxy->bend(there => 'cut', back => 'cut');
kill_server($n1);
$n1->start;
not_read('after a crash');
continue_answers();
$proxy->bend;
is(sql($n1, 'SELECT n FROM counters WHERE id = 1'), '501', 'after a crash: it is read when others have it');
$_->quit foreach $locking;
sql($n1, $_) foreach 'ALTER SYSTEM RESET repl_ml.heartbeat_interval', 'SELECT pg_reload_conf()';
pass_converged();

# ---- cut off in the middle of what the others read of a transaction ----

have_lease($n1);
$proxy->bend(back => '+500000');
my $half = begin_session($n1, "SET repl_ml.write_timeout = '1s'", q(BEGIN; INSERT INTO versions VALUES ('half', 1, 'n1'); INSERT INTO versions SELECT 'half', 2, string_agg(md5(g::text), '') FROM generate_series(1, 60000) g; COMMIT));
poll_until($_, q(SELECT count(*) = 1 FROM pg_locks l JOIN repl_ml.stat_apply a USING (pid) WHERE a.node_name = 'n1' AND l.locktype = 'transactionid')) foreach $n2, $n3;
$proxy->bend(there => 'cut', back => 'cut');
is(sql($n2, q(SET statement_timeout = '20s'; INSERT INTO versions VALUES ('half', 1, 'n2') RETURNING author)), 'n2', 'another one does not wait for the rest of it');
$proxy->bend;
like(finish_session($half), qr/40003/, 'it was not acknowledged');
poll_until($n1, q(SELECT author = 'n2' FROM versions WHERE name = 'half' AND version = 1));
wait_converged(\@nodes, 'versions');

# ---- five nodes ----

my @five = (@nodes, map { new_node($_) } qw(n4 n5));
join_node($_, $n2) foreach @five[ 3, 4 ];
have_lease($_) foreach @five[ 4, 3, 0 ];
@creators = map { start_creator($_, 'five', 30) } @five;
poll_until($n2, q(SELECT count(*) > 10 FROM versions WHERE name = 'five'));
have_lease($n1);
kill_server($n1);
kill_server($five[4]);
@told = map { eval { finish_session($_) } // $_->{out} } @creators;
check_versions('five', [ @five[ 1 .. 3 ] ], @told);
$_->start foreach @five[ 0, 4 ];
poll_until($_, 'SELECT count(*) = ' . sql($n2, 'SELECT count(*) FROM versions') . ' FROM versions') foreach @five[ 0, 4 ];
wait_converged(\@five, 'counters', 'versions');

# the holder leaves: the others go on
have_lease($five[3]);
sql($five[3], 'SELECT repl_ml.leave_group()');
$count = sql($n2, 'SELECT n FROM counters WHERE id = 1');
is(sql($n2, 'UPDATE counters SET n = n + 1 WHERE id = 1 RETURNING n'), $count + 1, 'the holder has left: another one writes');
done_testing();
