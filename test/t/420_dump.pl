# A dump of a member brings the list of its tables with it, their levels and their rules: into a new group, into an
# ordinary database, and not into a member.
#
# Seen failing: without pg_extension_config_dump the restored tables are "one" and last_write; without take_up_lists
# they are no tables of the group; without refuse_restored_row the rows of the dump go to all members.
use strict;
use warnings;
use File::Basename qw(dirname);
use PostgreSQL::Test::Utils;
use ReplMl;
use Test::More;

my ($n1) = new_group(1, <<'SQL');
CREATE ROLE owner LOGIN;
CREATE SCHEMA other;
CREATE TABLE account (id int PRIMARY KEY, v text);
CREATE TABLE model (name text PRIMARY KEY, score float8, n bigint NOT NULL DEFAULT 0);
CREATE TABLE other.item (id int PRIMARY KEY);
CREATE TABLE broken (id int PRIMARY KEY, n int);
CREATE TABLE left_out (id int PRIMARY KEY);
CREATE TABLE mine (id int PRIMARY KEY);
CREATE TABLE parted (id int PRIMARY KEY, v text) PARTITION BY HASH (id);
CREATE TABLE parted_0 PARTITION OF parted FOR VALUES WITH (MODULUS 2, REMAINDER 0);
CREATE TABLE parted_1 PARTITION OF parted FOR VALUES WITH (MODULUS 2, REMAINDER 1);
INSERT INTO parted SELECT g, 'v' FROM generate_series(1, 100) g;
INSERT INTO account VALUES (1, 'x');
INSERT INTO model VALUES ('m', 0.5);
ALTER TABLE account OWNER TO owner;
GRANT USAGE ON SCHEMA other TO owner;
GRANT SELECT ON ALL TABLES IN SCHEMA public, other TO owner;
SELECT repl_ml.add_all_tables('{public, other}');
SELECT repl_ml.remove_table('left_out'), repl_ml.remove_table('mine'), repl_ml.keep_local('mine');
SELECT repl_ml.set_table_consistency('account', 'quorum'), repl_ml.set_table_consistency('broken', 'all'),
	repl_ml.set_resolver('model', 'newest_by(name)'), repl_ml.set_resolver('model', 'newest_by(score)'),
	repl_ml.set_column_merge('model', 'score', 'max'), repl_ml.set_column_merge('model', 'n', 'counter'),
	repl_ml.set_column_merge('broken', 'n', 'max'), repl_ml.set_resolver('other.item', 'node_priority(n1)');
SQL

# Dumps n1 into a file.
sub dump_into
{
	my ($name, @options) = @_;
	my $file = PostgreSQL::Test::Utils::tempdir() . "/$name";

	command_ok([ 'pg_dump', '-d', dsn($n1), '-f', $file, @options ], "dump: $name");
	return $file;
}

# Restores a dump into a database of n3; returns what psql said.
my $n3 = new_node('n3');
sub restore
{
	my ($database, $file) = @_;
	my (undef, $stderr) = run_command([ 'psql', '-X', '-q', '-d', $n3->connstr($database), '-f', $file ]);

	return $stderr;
}

my $rules = q(SELECT table_name, column_name, coalesce(resolver, merge) FROM repl_ml.conflict_policies ORDER BY 1, 2);
my $plain = dump_into('plain.sql');
sql($n3, 'CREATE ROLE owner');
sql($n3, "CREATE DATABASE $_") foreach qw(ordinary bare);

# into a new group: create_group is enough, and says what is not as it was
is(restore('postgres', dump_into('inserts.sql', '--inserts')), '', 'a dump of INSERTs is restored without an error');
is(sql($n3, q(SELECT string_agg(DISTINCT state, ',') FROM repl_ml.tables)), 'restored', 'they are not said to be replicated');
like(sql($n3, q(SELECT detail FROM repl_ml.health WHERE check_name = 'membership')), qr/restored from a dump of a member, with 5 of/, 'health tells');
sql($n3, q(INSERT INTO account VALUES (2, 'not of a group')));
sql($n3, 'ALTER TABLE broken DROP CONSTRAINT broken_pkey');
my (undef, undef, $said) = $n3->psql('postgres', "SELECT repl_ml.create_group('again', 'r1', " . literal(dsn($n3)) . ')');
like($said, qr/NOTICE: .* replicated again, with their levels and rules: other\.item, public\.account, public\.model, public\.parted$/m, 'what is as it was');
like($said, qr/WARNING: .* table public\.broken was replicated .*\n.*\nHINT: .*repl_ml\.add_table\('public\.broken'\)/, 'what is not');
like($said, qr/WARNING: .* resolver of table other\.item is not taken up/, 'nodes of another group are not those of this one');
is(sql($n3, q(SELECT table_name, write_consistency, state FROM repl_ml.tables ORDER BY 1)),
	"account|quorum|replicated\nitem|one|replicated\nmodel|one|replicated\nparted|one|replicated", 'tables and levels');
my $expected = "broken|n|max\nmodel|n|counter\nmodel|score|max\nmodel||newest_by(score)";
is(sql($n3, $rules), $expected, 'the newest rules');
is(sql($n3, q(SELECT string_agg(relation::text, ',') FROM repl_ml.unreplicated_tables)), '', 'what stays local stays so');
sql($n3, q(ALTER TABLE broken ADD PRIMARY KEY (id); SELECT repl_ml.add_table('broken')));
is(sql($n3, q(SELECT write_consistency FROM repl_ml.tables WHERE table_name = 'broken')), 'all', 'one that is added later has its level');
my $n4 = new_node('n4');
sql($n4, 'CREATE ROLE owner');
join_node($n4, $n3);
sql($n4, q(UPDATE account SET v = 'y' WHERE id = 2));
wait_converged([ $n3, $n4 ], 'account', 'model', 'parted');
is(sql($n4, $rules), $expected, 'a node that joins knows the rules');
isnt(sql($n3, 'SELECT __repl_clock FROM account WHERE id = 1'), sql($n1, 'SELECT __repl_clock FROM account WHERE id = 1'), 'clocks of the other group are gone');

# into a member: its lists stay
my $before = sql($n3, 'SELECT * FROM repl_ml.replicated_table ORDER BY 1, 2') . sql($n3, 'SELECT * FROM repl_ml.conflict_policy ORDER BY id');
like(restore('postgres', $plain), qr/rows of "repl_ml\.replicated_table" cannot be restored into a member of a group/, 'refused');
is(sql($n3, 'SELECT * FROM repl_ml.replicated_table ORDER BY 1, 2') . sql($n3, 'SELECT * FROM repl_ml.conflict_policy ORDER BY id'), $before, 'nothing of it has come');

# whoever may dump the database may still do so
command_ok([ 'pg_dump', '-d', dsn($n1) . ' user=owner', '-f', '/dev/null' ], 'a dump by an owner');

# into an ordinary database, with the extension's files, and without
my $shape = q(SELECT string_agg(attname, ',' ORDER BY attnum) FROM pg_attribute WHERE attrelid = 'account'::regclass AND attnum > 0 AND NOT attisdropped);
is(restore('ordinary', $plain), '', 'a dump is restored without an error');
$n3->safe_psql('ordinary', 'DROP EXTENSION repl_ml CASCADE; DROP PUBLICATION repl_ml');
my $stubs = slurp_file(dirname(__FILE__) . '/../../doc/operations.md') =~ /^<!-- 420: [^\n]* -->\n```sql\n(.*?)^```/ms ? $1 : '';
isnt($stubs, '', 'the manual says what stands in for the extension');
$n3->safe_psql('bare', $stubs);
my $without = slurp_file($plain) =~ s/^CREATE EXTENSION IF NOT EXISTS repl_ml\b/CREATE EXTENSION IF NOT EXISTS not_here/mr;
append_to_file("$plain.bare", $without);
restore('bare', "$plain.bare");
$n3->safe_psql('bare', 'DROP SCHEMA repl_ml CASCADE; DROP PUBLICATION IF EXISTS repl_ml');
# side by side, which truncates each table before it is filled
$n3->safe_psql('postgres', 'CREATE DATABASE beside');
command_ok([ 'pg_restore', '-j2', '-d', $n3->connstr('beside'), dump_into('directory', '-Fd') ], 'a restore with several jobs');
is($n3->safe_psql('beside', 'SELECT count(*) FROM parted'), '100', 'has the rows of partitions');

foreach my $database (qw(ordinary bare))
{
	is($n3->safe_psql($database, $shape), 'id,v', "$database: the columns");
	is($n3->safe_psql($database, 'INSERT INTO account VALUES (7) RETURNING id; SELECT name, score FROM model'), "7\nm|0.5", "$database: the rows, and it is written");
	is($n3->safe_psql($database, q(SELECT count(*) FROM pg_trigger WHERE tgname ~ 'repl_ml')), '0', "$database: nothing of ours");
}

done_testing();
