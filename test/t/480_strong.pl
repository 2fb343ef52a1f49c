# What a client believes of one server holds for strong tables on three: a key that exists anywhere is refused at the
# statement, and visible by then; who writes or locks waits for who does so on another node, then sees what that wrote;
# nothing is lost, double or a conflict; and where the lease cannot come the client is told so at once.
#
# Seen failing: strong.c without repl_ml_read_renew (the next number), without refuse_old_snapshot (kept snapshots); tenure.c, give_away without take_lock (lost
# increments, nobody waits), open_tenure without repl_ml_barrier_covers (what was written before; deadlocks), act_as_holder without the offer (it does not go back to the preferred writer).
use strict;
use warnings;
use FindBin;
use lib "$FindBin::Bin/..";
use Consistency;
use Membership;
use ReplMl;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

my $counted = 40;

my ($n1, $n2, $n3) = my @nodes = new_group(3, <<'SQL');
CREATE TABLE eventual (id int PRIMARY KEY, v text);
INSERT INTO eventual VALUES (1, 'one'), (2, 'two');
CREATE TABLE plain (id int PRIMARY KEY, v text);
INSERT INTO plain VALUES (1, 'one'), (2, 'two');
SELECT repl_ml.add_all_tables();
SQL
sql($n2, 'CREATE TABLE filled (id int PRIMARY KEY); INSERT INTO filled VALUES (1)');
sql($n1, <<'SQL');
CREATE TABLE versions (name text, version int, author text, PRIMARY KEY (name, version));
CREATE TABLE counters (id int PRIMARY KEY, n int NOT NULL DEFAULT 0, label text UNIQUE);
CREATE TABLE parents (id int PRIMARY KEY, v text);
CREATE TABLE children (id int PRIMARY KEY, parent int REFERENCES parents ON DELETE CASCADE);
CREATE TABLE parts (id int PRIMARY KEY, v text) PARTITION BY RANGE (id);
CREATE TABLE parts_1 PARTITION OF parts FOR VALUES FROM (0) TO (1000);
CREATE TABLE log (id int PRIMARY KEY, v text);
CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN INSERT INTO public.log SELECT coalesce(max(id), 0) + 1, NEW.v FROM public.log; RETURN NULL; END $$;
CREATE TRIGGER note AFTER UPDATE ON eventual FOR EACH ROW EXECUTE FUNCTION note();
SELECT repl_ml.add_table(t::regclass, class => 'strong') FROM unnest('{versions, counters, parents, parts, log}'::text[]) t;
INSERT INTO counters VALUES (1, 0, 'one'), (2, 0, 'two');
INSERT INTO parents VALUES (1, 'one'), (2, 'two');
SQL
poll_until($_, 'SELECT count(*) = 7 FROM repl_ml.tables WHERE state = \'replicated\' AND pending_copies = 0') foreach $n2, $n3;
sql($n1, <<'SQL');
SELECT repl_ml.add_table('children', class => 'strong');
INSERT INTO children VALUES (1, 1), (2, 1);
SQL
sql($_, 'CREATE OR REPLACE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN INSERT INTO public.log SELECT coalesce(max(id), 0) + 1, NEW.v FROM public.log; RETURN NULL; END $$; DROP TRIGGER IF EXISTS note ON eventual; CREATE TRIGGER note AFTER UPDATE ON eventual FOR EACH ROW EXECUTE FUNCTION note()') foreach $n2, $n3;

# A client's script, in a session that is not waited for.
my $scripts = 0;
sub begin_client
{
	my ($node, $script) = @_;
	my $file = "$PostgreSQL::Test::Utils::tmp_check/client_" . ++$scripts;
	my %session = (out => '');

	append_to_file($file, $script);
	$session{harness} = IPC::Run::start(
		[ 'psql', '-XAtq', '-d', dsn($node), '-f', $file ], '>&', \$session{out}, IPC::Run::timeout($PostgreSQL::Test::Utils::timeout_default));
	return \%session;
}

# Waits until a session of a node waits for the lease, or for whatever lock.
sub wait_for_lock { my ($node, $n) = @_; poll_until($node, "SELECT count(*) >= " . ($n // 1) . " FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND backend_type = 'client backend'"); return; }

# A session that has the lease on a node, and keeps it until it is ended.
sub keep_lease
{
	my ($node, @statements) = @_;
	my $session = $node->background_psql('postgres', on_error_stop => 0);

	$session->query_safe($_) foreach 'BEGIN', @statements;
	return $session;
}

is(sql($n1, "SELECT string_agg(table_name || ' ' || class, ', ' ORDER BY table_name) FROM repl_ml.tables"),
	'children strong, counters strong, eventual eventual, log strong, parents strong, parts strong, plain eventual, versions strong', 'the classes are shown');
sql($_, 'UPDATE counters SET n = n WHERE id = 1') foreach @nodes;

# ---- a model's versions: max + 1, and again where that exists ----

my $create = join "\n", (<<'SQL') x 25;
BEGIN;
SELECT coalesce(max(version), 0) + 1 AS v FROM versions WHERE name = 'm' \gset
SELECT count(*) FROM generate_series(1, (200000 * random())::int) \g /dev/null
INSERT INTO versions VALUES ('m', :v, :'author');
\set failed :ERROR
\if :failed
\echo refused :SQLSTATE
ROLLBACK;
SELECT CASE WHEN max(version) >= :v THEN 'visible' ELSE 'not visible' END FROM versions WHERE name = 'm';
\else
COMMIT;
\if :ERROR
\echo lost :SQLSTATE
\else
\echo created :v
\endif
\endif
SQL
my @clients = map { my $node = $_; map { begin_client($node, "\\set author " . $node->name . "\n$create") } 1 .. 2 } @nodes;
my @told = map { finish_session($_) } @clients;
my $told = join "\n", @told;
my @created = sort { $a <=> $b } $told =~ /^created (\d+)$/mg;
note sprintf '%d versions, %d refused', scalar(@created), scalar(() = $told =~ /^refused/mg);
cmp_ok(scalar(@created), '>', 25, 'versions are created');
like($told, qr/^refused/m, 'and some numbers had been taken meanwhile');
is("@created", join(' ', 1 .. @created), 'no version number is given twice, none is left out');
is(join(' ', grep { $_ ne 'refused 23505' } $told =~ /^(?:refused|lost).*$/mg), '', 'clients meet no error but 23505 at the INSERT');
unlike($told, qr/not visible/, 'and see the row that has the key by then');
wait_converged(\@nodes, 'versions');
is(sql($n1, 'SELECT count(*) FROM versions'), scalar(@created), 'none is lost');

# ---- increments ----
sql($_, 'CREATE PROCEDURE count_up(times int) LANGUAGE plpgsql AS $$ BEGIN FOR i IN 1 .. times LOOP UPDATE counters SET n = n + 1 WHERE id = 1; COMMIT; END LOOP; END $$') foreach @nodes;
@clients = map { begin_session($_, "CALL count_up($counted)") } @nodes, @nodes;
@told = map { finish_session($_) } @clients;
unlike("@told", qr/ERROR/, 'concurrent updates of a row from three nodes: no error');
wait_converged(\@nodes, 'counters');
is(sql($n2, 'SELECT n FROM counters WHERE id = 1'), 6 * $counted, 'no increment is lost');

# ---- a client on another node waits, then sees ----

my $writer = keep_lease($n1, q(INSERT INTO versions VALUES ('x', 1, 'n1')), q(UPDATE counters SET n = 1000 WHERE id = 2), q(INSERT INTO parts VALUES (1, 'n1')), q(INSERT INTO versions VALUES ('z', 1, 'n1')));
my %waits = (
	'INSERT of the same key' => [ $n2, q(INSERT INTO versions VALUES ('x', 1, 'n2')), qr/23505: .*"versions_pkey"/ ],
	'INSERT of the next number' => [ $n3, q(INSERT INTO versions SELECT 'z', coalesce(max(version), 0) + 1, 'n3' FROM versions WHERE name = 'z' RETURNING version), qr/^2$/m ],
	'UPDATE' => [ $n3, 'UPDATE counters SET n = n + 1 WHERE id = 2 RETURNING n', qr/^1001$/m ],
	'SELECT FOR UPDATE' => [ $n3, 'SELECT n >= 1000 FROM counters WHERE id = 2 FOR UPDATE', qr/^t$/m ],
	'ON CONFLICT' => [ $n2, q(INSERT INTO versions VALUES ('x', 1, 'n2') ON CONFLICT (name, version) DO UPDATE SET author = versions.author || ' seen' RETURNING author), qr/^n1 seen$/m ],
	'MERGE' => [ $n3, q(MERGE INTO versions v USING (VALUES ('y', 1)) s (name, version) ON v.name = s.name AND v.version = s.version WHEN MATCHED THEN DO NOTHING WHEN NOT MATCHED THEN INSERT VALUES (s.name, s.version, 'merged')), qr/^MERGE 1$/m ],
	'a query that writes' => [ $n2, q(WITH w AS (UPDATE counters SET label = 'a query' WHERE id = 2 RETURNING n) SELECT n >= 1000 FROM w), qr/^t$/m ],
	'COPY' => [ $n2, q(COPY parts FROM PROGRAM 'echo 1,n2' CSV), qr/23505: .*"parts_1_pkey"/ ],
	'LOCK TABLE' => [ $n3, 'BEGIN; LOCK TABLE parents; COMMIT', qr/^COMMIT$/m ]);
my %sessions = map { $_ => begin_session($waits{$_}[0], $waits{$_}[1]) } sort keys %waits;
wait_for_lock($n2, 4);
wait_for_lock($n3, 5);
psql_fails($n2, q(SET lock_timeout = '50ms'; DELETE FROM counters), '55P03', 'lock timeout');
psql_fails($n3, q(SET statement_timeout = '50ms'; TRUNCATE parts), '57014', 'statement timeout');
is(sql($n2, 'EXPLAIN (COSTS OFF) UPDATE counters SET n = 0') =~ /Update on counters/ ? 1 : 0, 1, 'EXPLAIN does not wait');
is(sql($n2, q(SELECT count(*) FROM versions WHERE name = 'x')), '0', 'nor does a reader, who sees nothing of it');
my $cancelled = begin_session($n2, 'UPDATE counters SET n = -1 WHERE id = 2');
wait_for_lock($n2, 5);
sql($n2, q(SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE query LIKE 'UPDATE counters SET n = -1%' AND wait_event_type = 'Lock'));
like(finish_session($cancelled), qr/57014/, 'a cancel ends the wait');
is(sql($n2, q(UPDATE eventual SET v = v WHERE id = 99)), '', 'eventual tables are written meanwhile');
$writer->query_safe('COMMIT');
like(finish_session($sessions{$_}), $waits{$_}[2], "$_: waits for a writer on another node, then sees") foreach sort keys %waits;

# what the last holder has written is applied first, however long that takes
cut($n2, $n1);
sql($n1, 'UPDATE counters SET n = n + 1 WHERE id = 1');
my $seen = sql($n1, 'SELECT n FROM counters WHERE id = 1');
my $late = begin_session($n2, 'UPDATE counters SET n = n + 1 WHERE id = 1 RETURNING n');
poll_until($n2, q(SELECT holder = 'n2' AND NOT writable FROM repl_ml.strong_lease));
heal($n2, $n1);
like(finish_session($late), qr/^@{[ $seen + 1 ]}$/m, 'who gets the lease waits for what was written before');

# a rollback: nothing was there
$writer->query_safe($_) foreach 'BEGIN', q(INSERT INTO versions VALUES ('x', 2, 'n1')), q(SAVEPOINT s), q(UPDATE counters SET n = -1 WHERE id = 2), 'ROLLBACK TO s';
my $second = begin_session($n2, q(INSERT INTO versions VALUES ('x', 2, 'n2')));
wait_for_lock($n2);
$writer->query_safe('ROLLBACK');
like(finish_session($second), qr/^INSERT 0 1$/m, 'after a rollback the key is free');

# a savepoint that took the lease and is rolled back lets it go
$writer->query_safe($_) foreach 'BEGIN', 'SAVEPOINT s', q(INSERT INTO versions VALUES ('x', 3, 'n1')), 'ROLLBACK TO s';
like(finish_session(begin_session($n3, q(SET statement_timeout = '30s'), q(INSERT INTO versions VALUES ('x', 3, 'n3')))), qr/^INSERT 0 1$/m, 'a savepoint that is rolled back keeps nobody away');
like($writer->query(q(INSERT INTO versions VALUES ('x', 3, 'n1'))) . $writer->{stderr}, qr/versions_pkey/, '... and its transaction sees what came meanwhile');
$writer->{stderr} = '';
$writer->query_safe('ROLLBACK');

# ---- snapshots that are kept ----

foreach my $level ('REPEATABLE READ', 'SERIALIZABLE')
{
	my $reader = $n2->background_psql('postgres', on_error_stop => 0);
	$reader->query_safe($_) foreach "BEGIN ISOLATION LEVEL $level", 'SELECT n FROM counters WHERE id = 2';
	sql($n1, 'UPDATE counters SET n = n + 1 WHERE id = 2');
	$reader->query('\set VERBOSITY verbose');
	$reader->query('INSERT INTO log SELECT 1000, n::text FROM counters WHERE id = 2');
	like($reader->{stderr}, qr/40001/, "$level: who has read before the lease came begins again");
	$reader->quit;
	# the lease may have gone once more, and the statement that it comes back for is refused again
	my ($status, $said);
	foreach my $try (1 .. 10)
	{
		($status, undef, $said) = $n2->psql('postgres', "BEGIN ISOLATION LEVEL $level; UPDATE counters SET n = n + 1 WHERE id = 2; COMMIT");
		last if $status == 0 || $said !~ /could not serialize/;
	}
	is($status, 0, "$level: and then writes");
}

# ---- triggers, cascades, foreign keys, what passes by ----

sql($_, 'UPDATE eventual SET v = ' . literal($_->name) . ' WHERE id = 1') foreach @nodes;
is(sql($n3, q(SELECT string_agg(id || ' ' || v, ', ' ORDER BY id) FROM log)), '1 n1, 2 n2, 3 n3', 'a trigger of an eventual table that writes a strong one sees what was written on other nodes');
sql($n2, 'INSERT INTO children VALUES (3, 2)');
sql($n1, 'DELETE FROM parents WHERE id = 1');
is(sql($n1, 'SELECT string_agg(id::text, $$ $$) FROM children'), '3', 'a cascade deletes what another node had inserted');
psql_fails($n2, 'INSERT INTO children VALUES (4, 1)', '23503', 'children_parent_fkey');
sql($n1, q(CREATE TABLE outside (id int PRIMARY KEY); INSERT INTO outside VALUES (1)));
psql_fails($n2, q(SELECT repl_ml.add_table('plain', class => 'other')), '22023', 'class "other" does not exist', 'eventual or strong');
sql($n1, 'CREATE TABLE minors (id int PRIMARY KEY, parent int REFERENCES parents)');
sql($n1, q(SELECT repl_ml.add_table('minors')));
poll_until($n3, q(SELECT count(*) = 1 FROM repl_ml.tables WHERE table_name = 'minors' AND state = 'replicated'));

# ---- deadlocks ----

# over the lease, on one node: core lets in who is waited for, before the process that would give the lease away
my $holder = keep_lease($n2, 'UPDATE counters SET n = n WHERE id = 1');
my $elsewhere = begin_session($n3, 'UPDATE counters SET n = n WHERE id = 1');
poll_until($n2, q(SELECT count(*) = 1 FROM pg_locks WHERE locktype = 'advisory' AND mode = 'ExclusiveLock' AND NOT granted));
my $waiter = begin_client($n2, "BEGIN; UPDATE plain SET v = 'n2' WHERE id = 2; UPDATE counters SET n = n WHERE id = 2; COMMIT;");
wait_for_lock($n2);
$holder->query_safe($_) foreach q(UPDATE plain SET v = 'n2, too' WHERE id = 2), 'COMMIT';
is(finish_session($waiter), '', 'who waits for the lease and is waited for gets it: no deadlock');
unlike(finish_session($elsewhere), qr/ERROR/, '... and then the other node');
is(sql($n2, 'SELECT v FROM plain WHERE id = 2'), 'n2, too', 'in this order');

# a prepared transaction keeps the lease, also over a crash of its server
sql($n2, q(BEGIN; UPDATE counters SET n = n + 1 WHERE id = 1; PREPARE TRANSACTION 'p'));
crash_and_restart($n2, 'immediate');
poll_until($n2, q(SELECT repl_ml.take_lease() IS NOT NULL));
$elsewhere = begin_session($n3, 'UPDATE counters SET n = n + 1 WHERE id = 1');
wait_for_lock($n3);
my $counter = sql($n2, 'SELECT n FROM counters WHERE id = 1');
sql($n2, q(COMMIT PREPARED 'p'));
like(finish_session($elsewhere), qr/^UPDATE 1$/m, 'the other node waits for a prepared transaction');
is(sql($n3, 'SELECT n FROM counters WHERE id = 1'), $counter + 2, '... and has what it wrote');

# with what has to be applied before the lease can come: the waiter ends it
$writer->query_safe($_) foreach 'BEGIN', 'UPDATE counters SET n = n WHERE id = 1', q(UPDATE plain SET v = 'n1' WHERE id = 1);
$waiter = begin_client($n2, "\\set VERBOSITY verbose\nBEGIN; UPDATE plain SET v = 'n2' WHERE id = 1; UPDATE counters SET n = n WHERE id = 2;\nCOMMIT;");
wait_for_lock($n2);
$writer->query_safe('COMMIT');
like(finish_session($waiter), qr/40P01/, 'who waits for the lease and keeps what is to be applied before: a deadlock');
wait_converged(\@nodes, 'plain', 'counters', 'versions', 'parts', 'log', 'children', 'parents');
is(sql($_, 'SELECT count(*) FROM repl_ml.conflicts WHERE table_name <> $$plain$$'), '0', $_->name . ': no conflict on strong tables') foreach @nodes;

# ---- the holder is away ----

sql($n1, 'UPDATE counters SET n = n + 1 WHERE id = 1');
my $before = sql($n1, 'SELECT n FROM counters WHERE id = 1');
$writer->quit;
kill_server($n1);
sql($n2, 'UPDATE counters SET n = n + 1 WHERE id = 1');
is(sql($n2, 'SELECT n FROM counters WHERE id = 1'), $before + 1, 'another node takes over');
$n1->start;
poll_until($n1, qq(SELECT n = $before + 1 FROM counters WHERE id = 1));
like(sql($n2, q(SELECT status, detail FROM repl_ml.health WHERE check_name = 'strong_tables')), qr/^ok\|This node writes/, 'and health is well');

# what is not promised: transactions on two nodes that read in eventual tables what the other one changes
my @skewed = map { $_->background_psql('postgres', on_error_stop => 0) } $n1, $n2;
sql($n1, q(UPDATE plain SET v = 'on call'));
wait_converged(\@nodes, 'plain');
$_->query_safe('BEGIN ISOLATION LEVEL SERIALIZABLE') foreach @skewed;
is($_->query_safe(q(SELECT count(*) FROM plain WHERE v = 'on call')), '2', 'write skew: each sees both') foreach @skewed;
$skewed[$_]->query_safe("UPDATE plain SET v = 'at home' WHERE id = $_ + 1") foreach 0, 1;
foreach my $session (@skewed)
{
	$session->query_safe('COMMIT');
	$session->quit;
}
wait_converged(\@nodes, 'plain');
is(sql($n3, q(SELECT count(*) FROM plain WHERE v = 'on call')), '0', 'write skew: nobody is left');

# it goes back to the preferred writer, also when that was down, and others get it when they need it
sql($n2, q(SELECT repl_ml.set_preferred_writer('n3')));
poll_until($n3, q(SELECT holder = 'n3' AND writable FROM repl_ml.strong_lease));
sql($n1, 'UPDATE counters SET n = n WHERE id = 1');
is(sql($n1, 'SELECT holder, writable, preferred_writers FROM repl_ml.strong_lease'), 'n1|t|{n3}', 'a preferred writer: others write, too');
poll_until($n3, q(SELECT holder = 'n3' AND writable FROM repl_ml.strong_lease));
$n3->stop('immediate');
sql($n1, 'UPDATE counters SET n = n WHERE id = 1');
$n3->start;
poll_until($n3, q(SELECT holder = 'n3' AND writable FROM repl_ml.strong_lease));
psql_fails($n1, q(SELECT repl_ml.set_preferred_writer('n9')), '42704', 'node "n9" does not exist', 'repl_ml\.nodes');
sql($n1, 'SELECT repl_ml.set_preferred_writer(NULL)');
poll_until($_, q(SELECT preferred_writers = '{}' FROM repl_ml.strong_lease)) foreach @nodes;

# the lease outlives a restart of everybody
$_->restart foreach @nodes;
poll_until($n3, q(SELECT repl_ml.take_lease() IS NOT NULL));
sql($n3, 'UPDATE counters SET n = n + 1 WHERE id = 1');

# stopped in the middle of a transaction, dropped, and awake again: it commits nothing
my $asleep = keep_lease($n1, 'UPDATE counters SET n = 0 WHERE id = 1');
$asleep->query('\set VERBOSITY verbose');
our @stopped = ($n1->{_pid}, split ' ', `ps -o pid= --ppid $n1->{_pid}`);
END { kill CONT => @stopped if @stopped }
kill STOP => @stopped;
sql($n2, q(SELECT repl_ml.drop_node('n1')));
poll_until($_, q(SELECT repl_ml.take_lease() IS NOT NULL)) foreach $n2, $n3;
sql($_, 'UPDATE counters SET n = n + 1 WHERE id = 1') foreach $n2, $n3;
is(sql($n3, 'SELECT n FROM counters WHERE id = 1'), $before + 4, 'dropped: the others go on, and have what was acknowledged');
kill CONT => @stopped;
@stopped = ();
$asleep->query('COMMIT');
like($asleep->{stderr}, qr/ERROR:  (?:57P03|40003|55000)/, 'the dropped holder cannot commit what it had begun');
wait_converged([ $n2, $n3 ], 'counters', 'versions');
is(sql($n2, 'SELECT n FROM counters WHERE id = 1'), $before + 4, 'nobody has it');

# a node that joins
my $n4 = new_node('n4');
join_node($n4, $n2);
sql($n4, 'UPDATE counters SET n = n + 1 WHERE id = 1');
is(sql($n4, 'SELECT n FROM counters WHERE id = 1'), $before + 5, 'a node that has joined writes, too');
sql($n2, 'UPDATE counters SET n = n + 1 WHERE id = 1');
$n4->stop;

# a minority
$n3->stop;
poll_until($n2, q(SELECT status = 'error' FROM repl_ml.health WHERE check_name = 'write_consistency'));
psql_fails($n2, 'UPDATE counters SET n = n + 1 WHERE id = 1', '57P03', 'strong tables cannot be written', 'health');
done_testing();
