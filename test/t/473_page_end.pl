# Whoever takes a token while the WAL ends with a page does not stop the links: what is flushed for it ends where a record ends, and
# not behind the header of a page that has none.
#
# Seen failing before current_vector() asked for that: the walwriter flushed the header alone, from which walsenders of PostgreSQL do
# not come back: they read the page again and again, and nothing is sent any more.
use strict;
use warnings;
use ReplMl;
use Test::More;

my ($n1, $n2) = new_group(2, q(CREATE TABLE t (id int PRIMARY KEY); SELECT repl_ml.add_table('t')));
foreach my $node ($n1, $n2)
{
	sql($node, $_) foreach q(ALTER SYSTEM SET repl_ml.heartbeat_interval = '60s'), 'ALTER SYSTEM SET autovacuum = off', 'SELECT pg_reload_conf(), repl_ml.wake_workers()';
}
my $slot = sql($n1, 'SELECT repl_ml.link_name(2)');
my $header = 24;
my $offset = q((pg_current_wal_insert_lsn() - '0/0')::numeric % 8192);

# Fills the page with a message that nobody reads, and then takes a token, in one statement after the other of one session; says whether
# nobody else has written meanwhile.
sub take_token_at_page_end
{
	my $ends = sql($n1, <<"SQL");
SELECT pg_logical_emit_message(false, 'fill', '') \\gset before_
SELECT $offset AS offset \\gset
SELECT pg_logical_emit_message(false, 'fill', repeat('x', 400)) \\gset filled_
SELECT ($offset - :offset - 400)::int AS more \\gset
SELECT pg_logical_emit_message(false, 'fill', repeat('x', greatest(8192 - $offset - :more, 0)::int)) \\gset last_
SELECT $offset = $header AS "end" \\gset
SELECT repl_ml.current_vector() \\gset token_
SELECT :'end' AND $offset = $header
SQL
	return $ends eq 't';
}
my $found = 0;
foreach my $try (1 .. 200)
{
	my $before = sql($n1, 'SELECT pg_current_wal_insert_lsn()');
	next if !take_token_at_page_end();
	# the walwriter flushes it, and the walsender looks
	my $end = sql($n1, "SELECT pg_current_wal_insert_lsn() - $header");
	poll_until($n1, "SELECT pg_current_wal_flush_lsn() >= '$end'");
	poll_until($n1, "SELECT sent_lsn >= '$end' FROM pg_stat_replication");
	$found++;
	sql($n1, "INSERT INTO t VALUES ($try)");
	poll_until($n2, "SELECT count(*) = 1 FROM t WHERE id = $try");
	last if $found == 3;
}
is($found, 3, 'a token was taken where a page ends, and what was written after it has come');
done_testing();
