# What a server, a database, a role or a connection string sets for clients changes neither what the nodes do nor what values are.
use strict;
use warnings;
use ReplMl;
use Test::More;

my ($n1, $n2) = my @nodes = new_group(2, q(
CREATE TYPE mood AS ENUM ('sad', 'ok');
CREATE TABLE t (id int PRIMARY KEY, v text, at timestamptz, span interval, n float8, a text[], x xml, b bytea, m mood);
CREATE TABLE k (r regclass, at timestamptz, a text[], b bytea, v text, PRIMARY KEY (r, at, a, b));
SELECT repl_ml.add_table(u) FROM unnest('{t, k}'::regclass[]) u;
INSERT INTO t SELECT i, 'old', now(), '1 day -2 hours', 1.0 / 3, ARRAY['x', NULL], 'a<b/>', '\x00ff', 'ok' FROM generate_series(1, 6) i;
INSERT INTO k SELECT 't', timestamptz '2001-02-03 04:05:06+00' + i * interval '1 s', ARRAY['x', NULL, i::text], '\x00ff', 'old' FROM generate_series(1, 6) i));
my $n3 = new_node('n3');

# Whatever could change what a session does, each at one of the levels there are.
my %hostile = (
	'ALTER DATABASE postgres' => [
		"default_transaction_read_only = 'on'", "default_transaction_isolation = 'serializable'",
		"default_transaction_deferrable = 'on'", "datestyle = 'SQL, DMY'", "intervalstyle = 'sql_standard'",
		"extra_float_digits = '-5'", "search_path = 'nowhere'", "statement_timeout = '1ms'", "lock_timeout = '1ms'",
		"idle_in_transaction_session_timeout = '1ms'", "idle_session_timeout = '1ms'", "session_replication_role = 'local'",
		"check_function_bodies = 'off'", "client_encoding = 'LATIN1'", "array_nulls = 'off'", "xmloption = 'document'",
		"bytea_output = 'escape'", "timezone = 'Asia/Kathmandu'", "quote_all_identifiers = 'on'",
		"repl_ml.read_consistency = 'barrier'", "repl_ml.write_consistency = 'all'", "role = 'nobody'" ],
	'ALTER ROLE CURRENT_USER' => [
		"exit_on_error = 'on'", "row_security = 'off'", "transform_null_equals = 'on'", "standard_conforming_strings = 'off'",
		"xmlbinary = 'hex'", "temp_file_limit = '0'", "work_mem = '64kB'", "synchronous_commit = 'remote_apply'", "plan_cache_mode = 'force_generic_plan'" ],
	'ALTER SYSTEM' => [ "enable_indexscan = 'off'", "enable_seqscan = 'off'", "jit_above_cost = '0'" ]);

# The test's own sessions do without; the servers must not inherit that.
my $plainly = join ' ', map { "-c $_" } qw(default_transaction_read_only=off default_transaction_isolation=read\ committed
  default_transaction_deferrable=off datestyle=ISO intervalstyle=postgres extra_float_digits=3 search_path=public
  statement_timeout=0 lock_timeout=0 idle_in_transaction_session_timeout=0 idle_session_timeout=0 client_encoding=UTF8 array_nulls=on
  xmloption=content bytea_output=hex timezone=UTC quote_all_identifiers=off repl_ml.read_consistency=local
  repl_ml.write_consistency=one role=none session_replication_role=origin exit_on_error=off standard_conforming_strings=on
  transform_null_equals=off temp_file_limit=-1);
$plainly =~ s/read\\ -c committed/read\\ committed/;

foreach my $node ($n2, $n3)
{
	sql($node, 'CREATE ROLE nobody; CREATE EXTENSION IF NOT EXISTS repl_ml');
	foreach my $level (sort keys %hostile)
	{
		local $ENV{PGOPTIONS} = $plainly;
		sql($node, "$level SET $_") foreach @{ $hostile{$level} };
	}
	$node->restart;
}
$ENV{PGOPTIONS} = $plainly;

# through a member with such settings, into a database with such settings; the connection string has some more
{
	no warnings 'redefine';
	my $plain = \&ReplMl::dsn;
	local *ReplMl::dsn = sub { return $plain->(@_) . q( options='-c repl_ml.read_consistency=barrier -c array_nulls=off -c statement_timeout=1'); };
	join_node($n3, $n2);
}
push @nodes, $n3;
wait_converged(\@nodes, 't', 'k');
is(sql($n3, 'SELECT count(*) FROM t WHERE a[2] IS NULL'), '6', 'the NULL in an array is copied as NULL');

sql($n1, q(UPDATE t SET v = 'ключ n1', at = '2001-02-03 04:05:06.789', span = '-1 day +2 hours', n = 1e-300 / 3, a = ARRAY[NULL, 'NULL'], x = '<a/>b' WHERE id = 1));
sql($n3, q(DELETE FROM t WHERE id = 2));
sql($n2, q(UPDATE t SET v = 'ключ n2', at = '2002-03-04', span = '-1 month 3 days -4 seconds', n = 2.0 / 3, a = ARRAY[NULL, 'NULL'], x = 'c' WHERE id = 3));
wait_converged(\@nodes, 't');
foreach my $node (@nodes)
{
	is(sql($node, 'SELECT v FROM t WHERE id IN (1, 3) ORDER BY id'), "ключ n1\nключ n2", 'text on ' . $node->name);
	is(sql($node, 'SELECT count(*) FROM t WHERE a[1] IS NULL AND a[2] = $$NULL$$'), '2', 'NULL and "NULL" on ' . $node->name);
}

# keys as text, written in a client's session that has such settings
my $settings = q(SET array_nulls = off; SET datestyle = 'SQL, DMY'; SET timezone = 'Asia/Kathmandu'; SET bytea_output = escape; SET quote_all_identifiers = on;);
sql($n2, "$settings DELETE FROM public.k WHERE a[3] = '1'; SET search_path = nowhere; DELETE FROM public.k WHERE a[3] = '2'");
sql($n1, "$settings SET search_path = public; DELETE FROM k WHERE a[3] = '3'");
wait_converged(\@nodes, 'k');
is(sql($_, 'SELECT count(*) FROM k'), '3', 'the rows are deleted on ' . $_->name) foreach @nodes;

# a table that comes later is created and copied
sql($n2, q(CREATE TABLE late (id int PRIMARY KEY, a text[], x xml, m mood); INSERT INTO late VALUES (1, ARRAY['x', NULL], 'a<b/>', 'sad'); SELECT repl_ml.add_table('late')));
poll_until($_, q(SELECT count(*) = 1 FROM repl_ml.tables WHERE table_name = 'late' AND state = 'replicated' AND pending_copies = 0)) foreach @nodes;
wait_converged(\@nodes, 'late');
is(sql($_, 'SELECT count(*) FROM late WHERE a[2] IS NULL'), '1', 'and is the same on ' . $_->name) foreach @nodes;

# what is called in a session with such settings does as it does elsewhere
{
	local $ENV{PGOPTIONS} = "$plainly -c standard_conforming_strings=off -c backslash_quote=off -c array_nulls=off -c xmloption=document -c DateStyle=SQL,DMY -c IntervalStyle=sql_standard"
	  . ' -c bytea_output=escape -c extra_float_digits=-15 -c quote_all_identifiers=on -c transform_null_equals=on -c plpgsql.variable_conflict=use_column -c plpgsql.extra_errors=all -c search_path= -c TimeZone=Asia/Kathmandu';
	sql($n1, q(CREATE TABLE public.hostile (id int PRIMARY KEY, v text DEFAULT E'a\\\\b', d date DEFAULT '2001-02-03'::date CHECK (d <> date '2001-03-04'), n numeric, b bytea DEFAULT decode('00ff5c', 'hex'))));
	sql($n1, $_) foreach q(SELECT repl_ml.add_table('public.hostile')), q(SELECT * FROM repl_ml.add_all_tables('{public}')), q(SELECT repl_ml.set_resolver('public.hostile', 'newest_by(n, v)')),
	  q(SELECT repl_ml.set_column_merge('public.hostile', 'n', 'max')), q(SELECT repl_ml.check_setup()), q(SELECT * FROM repl_ml.unreplicated_tables), q(SELECT * FROM repl_ml.health),
	  q(INSERT INTO public.hostile (id, n) VALUES (1, 0.1), (2, 0.3)), q(UPDATE public.hostile SET n = n + 1 WHERE id = 1);
	is(sql($n1, q(SELECT resolver FROM repl_ml.tables WHERE table_name = 'hostile')), 'newest_by(n, v)', 'a resolver set in a session with odd settings');
}
poll_until($_, q(SELECT count(*) = 1 FROM repl_ml.tables WHERE table_name = 'hostile' AND state = 'replicated' AND pending_copies = 0)) foreach @nodes;
wait_converged(\@nodes, 'hostile');
is(sql($_, q(SELECT d, encode(b, 'hex') FROM hostile WHERE id = 2)), '2001-02-03|00ff5c', 'and the defaults of a table added there, on ' . $_->name) foreach @nodes;
is(sql($_, q(INSERT INTO hostile (id) VALUES (3) RETURNING d, encode(b, 'hex'))), '2001-02-03|00ff5c', '... which ' . $_->name . ' computes, too') foreach $n3;

# stored versions and conflicts
cut($n2, $n1);
cut($n1, $n2);
sql($n2, q(UPDATE t SET v = 'n2', a = ARRAY[NULL, 'n2'] WHERE id = 4; DELETE FROM t WHERE id = 5));
sql($n1, q(UPDATE t SET v = 'n1', a = ARRAY[NULL, 'n1'] WHERE id IN (4, 5)));
heal($n2, $n1);
heal($n1, $n2);
wait_converged(\@nodes, 't');
is(conflict_rows($_), "t|{4}|update_origin_differs|n1|n2|{v,a}\nt|{5}|delete_origin_differs|n1|n2|{}", 'the conflicts, on ' . $_->name)
  foreach @nodes;
my $history = 'SELECT conflict_id, winner_row, loser_row FROM repl_ml.conflicts ORDER BY 1';
is(sql($_, $history), sql($n1, $history), 'their rows are written alike on ' . $_->name) foreach $n2, $n3;

is(sql($_, 'SELECT count(*) FROM repl_ml.parked_changes'), '0', 'nothing is parked on ' . $_->name) foreach @nodes;
is(sql($_, 'SELECT coalesce(sum(errors), 0) FROM repl_ml.stat_apply'), '0', 'no error on ' . $_->name) foreach $n2, $n3;
poll_until($n1, q(SELECT bool_and(sent_at > now() - interval '10 s') FROM repl_ml.heartbeat h JOIN repl_ml.nodes n USING (node_id)));
done_testing();
