# A server that lost the library from shared_preload_libraries refuses everything of ours and crashes for nothing. What
# somebody does to a table's triggers meanwhile is undone, and health names the table until it is the same everywhere.
#
# Seen failing: without repl_ml.mend_triggers the triggers stay as they were and health is ok.

use strict;
use warnings;
use FindBin;
use lib "$FindBin::RealBin/..";
use PostgreSQL::Test::Utils;
use ReplMl;
use Test::More;

my ($n1, $n2) = new_group(2, q{
	CREATE TABLE t (id int PRIMARY KEY, v int);
	INSERT INTO t SELECT g, 0 FROM generate_series(1, 10) g;
	CREATE TABLE disabled (id int PRIMARY KEY, v int);
	INSERT INTO disabled SELECT g, 0 FROM generate_series(1, 10) g;
	CREATE TABLE gone (LIKE disabled INCLUDING ALL);
	INSERT INTO gone SELECT * FROM disabled;
	CREATE TABLE parted (id int PRIMARY KEY, v int) PARTITION BY RANGE (id);
	CREATE TABLE part PARTITION OF parted FOR VALUES FROM (0) TO (100);
	INSERT INTO parted SELECT g, 0 FROM generate_series(1, 10) g;
	SELECT repl_ml.add_all_tables()});

$n2->append_conf('postgresql.conf', "shared_preload_libraries = ''");
$n2->restart;

# the peer comes for its stream, is told why there is none, and goes on trying
sql($n1, 'INSERT INTO t VALUES (100, 1)');
poll_until($n1, q{SELECT concat(error_message, error_hint) ~ 'shared_preload_libraries' FROM repl_ml.stat_apply
	WHERE node_name = 'n2'});

# all that write, by each way: ours refuse, others work
for my $write ('INSERT INTO t VALUES (200, 1)', 'UPDATE t SET v = 7 WHERE id = 7', 'DELETE FROM t WHERE id = 8',
	'TRUNCATE t', q{COPY t (id, v) FROM PROGRAM 'echo 300,1' (FORMAT csv)}, q{INSERT INTO t VALUES (1, 1) ON CONFLICT (id) DO UPDATE SET v = 2},
	'MERGE INTO t USING (VALUES (1)) AS s (i) ON t.id = s.i WHEN MATCHED THEN UPDATE SET v = 9')
{
	psql_fails($n2, $write, '55000', qr/must be loaded at server start/, qr/shared_preload_libraries/);
}
sql($n2, 'CREATE TABLE other (id int PRIMARY KEY, v int); INSERT INTO other VALUES (1, 1); UPDATE other SET v = 2; DROP TABLE other');
is(sql($n2, 'SELECT count(*) FROM t'), '10', 'rows can be read');

# every function, with nulls and with values that fit its arguments, and every relation; but for those that work without
# the library, too, and drop slots and origins, which no ROLLBACK brings back
my %sample = (name => "'n1'", text => "'x'", regclass => "'t'", int4 => '1', int8 => '1', bool => 'false',
	interval => "'1 s'", pg_lsn => "'0/0'", 'name[]' => "'{public}'", 'text[]' => "'{1}'", jsonb => "'{}'", json => "'{}'",
	uuid => "'00000000-0000-0000-0000-000000000000'", oid => "'t'::regclass::oid", timestamptz => 'now()', xid => "'3'",
	vclock => "'{}'", regprocedure => "'now()'::regprocedure");
my @functions = split /\n/, sql($n2, q{
	SELECT concat_ws('|', p.proname, p.prokind, (SELECT string_agg(CASE WHEN t.typelem <> 0 AND t.typlen = -1
			THEN format_type(t.oid, NULL) ELSE t.typname END, ',' ORDER BY a.n)
		FROM unnest(p.proargtypes) WITH ORDINALITY a (oid, n) JOIN pg_type t ON t.oid = a.oid))
	FROM pg_proc p WHERE p.pronamespace = 'repl_ml'::regnamespace AND p.prorettype NOT IN ('trigger'::regtype, 'event_trigger'::regtype)
		AND p.prokind <> 'a' AND p.proname NOT IN ('drop_own_slots', 'drop_own_origins', 'forget_group') AND NOT ('internal'::regtype = ANY (p.proargtypes)) AND NOT ('cstring'::regtype = ANY (p.proargtypes)) ORDER BY 1});
cmp_ok(scalar @functions, '>', 50, 'the functions are found');
my $script = '';
for my $function (@functions)
{
	my ($name, $kind, $arguments) = split /\|/, $function, 3;
	my @types = split /,/, $arguments // '';
	my $verb = $kind eq 'p' ? 'CALL' : 'SELECT';

	$script .= "BEGIN; $verb repl_ml.$name(" . join(', ', map { $sample{$_} // 'NULL' } @types) . "); ROLLBACK;\n";
	$script .= "BEGIN; $verb repl_ml.$name(" . join(', ', map { 'NULL' } @types) . "); ROLLBACK;\n";
}
my @relations = split /\n/, sql($n2, q{
	SELECT oid::regclass FROM pg_class WHERE relnamespace = 'repl_ml'::regnamespace AND relkind IN ('r', 'v')});
$script .= "TABLE $_;\n" for @relations;
$script .= "SELECT 'the end';\n";
my ($status, $out, $err) = $n2->psql('postgres', $script, on_error_stop => 0, timeout => 120,
	extra_params => [ '-v', 'VERBOSITY=verbose' ]);
like($out, qr/the end/, 'the session lives after all functions and relations');
my @internal = grep { /XX000|08006/ } split /\n/, $err;
is_deeply(\@internal, [], 'no internal error');
unlike(slurp_file($n2->logfile), qr/terminated by signal|TRAP/, 'no process has crashed');

# somebody goes past the triggers
sql($n2, q{ALTER TABLE disabled DISABLE TRIGGER USER; UPDATE disabled SET v = 77 WHERE id = 7; DELETE FROM disabled WHERE id = 8;
	ALTER TABLE part DISABLE TRIGGER USER; UPDATE part SET v = 77 WHERE id = 7; DROP TRIGGER zz_repl_ml_delete ON gone; DELETE FROM gone WHERE id = 9});

# with the library again the other table has not diverged
$n2->adjust_conf('postgresql.conf', 'shared_preload_libraries', "'repl_ml'");
$n2->restart;
sql($n2, 'UPDATE t SET v = 8 WHERE id = 7');
# the link is made anew meanwhile, perhaps
poll_until($n1, 'SELECT v = 8 FROM t WHERE id = 7');
wait_converged([ $n1, $n2 ], 't');
is(sql($n2, 'SELECT count(*), sum(v) FROM t'), '11|9', 'both writes are on n2');


# these have, and are named until they are equal
my $health = q{SELECT status, regexp_replace(detail, '^.* since: ', '') FROM repl_ml.health WHERE check_name = 'consistency'};
poll_until($n2, $health, 'error|public.disabled, public.gone, public.parted.');
is(sql($n2, q{SELECT count(*) FROM pg_trigger g JOIN pg_proc p ON p.oid = g.tgfoid WHERE p.pronamespace = 'repl_ml'::regnamespace
	AND tgrelid IN ('t'::regclass, 'disabled'::regclass, 'gone'::regclass, 'parted'::regclass, 'part'::regclass) AND tgenabled = 'A'}), '24', 'the triggers are there again');
sql($n2, 'DELETE FROM disabled WHERE id = 1; UPDATE part SET v = 1 WHERE id = 1');
is(sql($n2, q{SELECT relation, status, differing_rows FROM repl_ml.verify_all()}), "disabled|differs|2\ngone|differs|1\nparted|differs|1\nt|consistent|0", 'what differs');
is(sql($n2, q{SELECT status, detail ~ 'disabled .2 rows.*public.disabled, public.gone, public.parted[.]$' FROM repl_ml.health WHERE check_name = 'consistency'}), 'error|t', 'both are said');
sql($n2, "SELECT repl_ml.repair_table('$_', false, source => 'n1')") foreach 'disabled', 'gone', 'parted';
is(sql($n2, q{SELECT DISTINCT status FROM repl_ml.verify_all()}), 'consistent', 'all are equal');
is(sql($n2, q{SELECT status FROM repl_ml.health WHERE check_name = 'consistency'}), 'ok', 'and nothing is left to be said');
is(sql($n1, "SELECT string_agg(v::text, ',' ORDER BY id) FROM $_"), sql($n2, "SELECT string_agg(v::text, ',' ORDER BY id) FROM $_"), "$_ is the same") foreach 'disabled', 'gone', 'parted';

$n1->stop;
$n2->stop;
done_testing();
