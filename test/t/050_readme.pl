# Everything README.md and doc/ tell to do works, on servers configured as they say, and prints what they show.
#
# The documents are read in the order of @documents, on one group. A comment before each block says what to do with it:
#   <!-- run: n1 n2 -->       SQL is run on these nodes, as a superuser in the database app
#   <!-- wait, run: n1 -->    ... after all nodes have everything that was written before
#   <!-- poll: SELECT ... --> on the line before: ... and this is true on them
#   <!-- conf: condition -->  lines of postgresql.conf, for the nodes of this test
#   <!-- 053: n1 -->          left to 053_clients.pl, as what is in Python
#   <!-- check-clients: mlflow -->   left to make check-clients
#   <!-- from: make demo -->  output of test/demo.sh, whose headings must be the script's
# A ```text block right after a run block is what psql prints, on each of the nodes. After
# <!-- varies: reason --> only the columns' names and the number of rows must be the same.
# "host=n1.example" stands for how n1 is reached. With README_OUTPUT set, the text found is put
# into copies of the documents in that directory.
use strict;
use warnings;
use File::Basename qw(basename dirname);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use ReplMl;

my $top = dirname(__FILE__) . '/../..';
my @documents = ('README.md', map { "doc/$_.md" } qw(conflicts consistency clients operations reference limits how-it-works));
my %text = map { $_ => slurp_file("$top/$_") } @documents;
my %nodes;

# ---- the document as a list of blocks: language, text, comment before it, line ----

sub blocks
{
	my ($name) = @_;
	my (@blocks, $comment, $poll, $block);
	my $line = 0;

	foreach (split /^/, $text{$name})
	{
		$line++;
		if ($block)
		{
			if (/^```$/) { $block->{end} = $line; push @blocks, $block; undef $block; undef $comment; undef $poll; }
			else { $block->{text} .= $_; }
		}
		elsif (/^```(\w*)$/) { $block = { language => $1, text => '', comment => $comment, poll => $poll, line => $line, place => "$name:$line" }; }
		elsif (/^<!-- poll: (.*) -->$/) { $poll = $1; }
		elsif (/^<!-- (.*) -->$/) { $comment = $1; }
		elsif (/\S/) { undef $comment; undef $poll; }
	}
	die "$name ends inside a block" if $block;
	return @blocks;
}

# ---- servers as README.md configures them ----

sub start_node
{
	my ($name, @conf) = @_;
	my $node = PostgreSQL::Test::Cluster->new($name);

	ReplMl::initialize($node);
	$node->append_conf('postgresql.conf', $_) foreach @conf;
	# what the test's own cluster has taken away from the defaults, and less noise
	$node->append_conf('postgresql.conf', "max_wal_senders = 10\nlog_statement = none\nlog_replication_commands = off\n");
	$node->start;
	$node->safe_psql('postgres', 'CREATE DATABASE app');
	return $node;
}

sub server_knows
{
	my ($setting) = @_;
	chomp(my $bindir = `pg_config --bindir`);
	return scalar grep { /^$setting\t/ } `'$bindir/postgres' --describe-config`;
}

# ---- running a block ----

sub run_sql
{
	my ($node, $sql) = @_;
	my ($out, $err);

	$sql =~ s/host=(n\d)\.example/$nodes{$1}->connstr()/ge;
	IPC::Run::run([ 'psql', qw(-X -q -v ON_ERROR_STOP=1 -P pager=off -f -), '-d', $node->connstr('app') ],
		'<', \$sql, '>', \$out, '2>', \$err);
	is($err, '', $node->name . ': no error') or diag($sql);
	$out =~ s/[ \t]+$//mg;
	return $out;
}

# Column names and number of lines of what psql prints.
sub shape
{
	my ($text) = @_;
	my $last = '';
	my @names;

	foreach (split /\n/, $text)
	{
		push @names, map { s/^ +| +$//gr } split /\|/, $last if /^-+(\+-+)*$/;
		$last = $_;
	}
	return join(' ', @names, 'lines:', scalar(split /\n/, $text));
}

sub wait_for_all
{
	my @all = map { $nodes{$_} } sort keys %nodes;
	my @lsns = map { $_->safe_psql('app', 'SELECT pg_current_wal_flush_lsn()') } @all;

	foreach my $i (0 .. $#all)
	{
		$all[$i]->poll_query_until('app',
			"SELECT count(*) = $#all AND bool_and(greatest(confirmed_flush_lsn, replay_lsn) >= '$lsns[$i]') FROM pg_replication_slots s LEFT JOIN pg_stat_replication w ON w.pid = s.active_pid")
		  or die $all[$i]->name . ' is not read by all';
	}
}

# ---- the test ----

is(join(' ', sort @documents), join(' ', sort 'README.md', map { s{^\Q$top\E/}{}r } glob("$top/doc/*.md")), 'all documents are read');
my @configuration = grep { ($_->{comment} // '') =~ /^conf: / } blocks('README.md');
is(scalar(@configuration), 2, 'README.md has two blocks of settings');
my @conf = map { $_->{text} }
  grep { !($_->{comment} =~ /^conf: where (\w+) exists/ && !server_knows($1)) } @configuration;
$nodes{$_} = start_node($_, @conf) foreach qw(n1 n2 n3);

# Runs one block of SQL and returns what each node printed.
sub run_block
{
	my ($block) = @_;
	my ($wait, $names) = ($block->{comment} // '') =~ /^(wait, )?run: (n[123](?: n[123])*)$/;

	ok($names, "$block->{place}: the block says where it is run") or return;
	wait_for_all() if $wait;
	foreach my $node ($block->{poll} ? split(/ /, $names) : ())
	{
		$nodes{$node}->poll_query_until('app', $block->{poll}) or die "$block->{place}: timed out";
	}
	return { map { $_ => run_sql($nodes{$_}, $block->{text}) } split / /, $names };
}

# Compares what was printed with what the document shows.
sub compare_output
{
	my ($block, $printed) = @_;
	my $expected = $block->{text} =~ s/[ \t]+$//mgr;

	foreach my $name (sort keys %$printed)
	{
		my @pair = ($printed->{$name}, $expected);
		@pair = map { shape($_) } @pair if ($block->{comment} // '') =~ /^varies: /;
		is($pair[0], $pair[1], "$block->{place}: output on $name");
	}
}

# Puts what was printed in the place of the block's lines.
sub replace_output
{
	my ($lines, $block, $printed) = @_;
	my $first = (sort keys %$printed)[0];
	my $count = $block->{end} - $block->{line} - 1;

	splice @$lines, $block->{line}, $count, $printed->{$first}, ('') x ($count - 1) if $count > 0;
	$lines->[ $block->{line} - 1 ] .= $printed->{$first} if $count == 0;
}

sub follow
{
	my ($name) = @_;
	my @lines = split /^/, $text{$name};
	my $printed;

	foreach my $block (blocks($name))
	{
		my $language = $block->{language};

		# test/patroni gives Patroni the one in yaml
		next if $language =~ /^(python|yaml)$/ || ($block->{comment} // '') =~ /^(?:\d{3}|check-clients): /;
		if ($language eq 'sql')
		{
			$printed = run_block($block);
		}
		elsif ($language eq 'text' && ($block->{comment} // '') =~ /^from: make demo/)
		{
			my $script = slurp_file("$top/test/demo.sh");
			ok(index($script, "say \"$_\"") >= 0, "make demo prints: $_") foreach $block->{text} =~ /^== (.*) \(\d+ s\)$/mg;
		}
		elsif ($language eq 'text')
		{
			ok($printed, "$block->{place}: output follows the SQL it is of") or next;
			compare_output($block, $printed);
			replace_output(\@lines, $block, $printed);
			undef $printed;
		}
		elsif ($language ne 'sh' && $language ne 'conf')
		{
			fail("$block->{place}: a block of the language \"$language\"");
		}
	}
	append_to_file("$ENV{README_OUTPUT}/" . basename($name), join('', @lines)) if $ENV{README_OUTPUT};
}

follow($_) foreach @documents;

wait_for_all();
foreach my $table (qw(model account run))
{
	my ($first, @others) = map {
		$nodes{$_}->safe_psql('app', "SELECT to_jsonb(t)::text FROM $table t ORDER BY 1")
	} qw(n1 n2 n3);
	like($first, qr/__repl_clock/, "$table has rows with clocks");
	is($_, $first, "$table is the same everywhere in the end") foreach @others;
}
foreach my $name (qw(n1 n2 n3))
{
	is($nodes{$name}->safe_psql('app', 'SELECT count(*) FROM repl_ml.parked_changes'), '0', "$name: nothing is parked in the end");
}

# ---- what the text claims, and no output shows ----

# Tests that a query has this result on every node.
sub holds
{
	my ($query, $expected, $name) = @_;
	is($nodes{$_}->safe_psql('app', $query), $expected, "$name: $_") foreach qw(n1 n2 n3);
	return;
}

holds(q(SELECT write_consistency FROM repl_ml.tables WHERE relation = 'account'::regclass), 'quorum', 'a minimum is in force on all nodes');
holds(q(SELECT table_name, resolver, column_name, merge FROM repl_ml.conflict_policies ORDER BY 1, 3), "model||score|max\nonline_feature|newest_by(event_ts)||", 'so are rules');
holds(q(SELECT count(*) FROM account WHERE id = 4), '1', 'what was acknowledged is there');

# the checks are those there are, and what is to be looked at can be
my ($checks) = $text{'doc/operations.md'} =~ /\n## What health says\n(.*?)\n## /s;
is(join(' ', sort $checks =~ /^### (\w+)$/mg),
	$nodes{n1}->safe_psql('app', q(SELECT string_agg(check_name, ' ' ORDER BY check_name COLLATE "C") FROM repl_ml.health)), 'all checks are described');
my %query = map { $_ => 1 } grep { / FROM / && !/\.\.\./ } $text{'doc/operations.md'} =~ /`(SELECT [^`]+)`/g;
cmp_ok(scalar(keys %query), '>', 10, 'queries are recommended');
is(($nodes{n1}->psql('app', $_))[2], '', "can be run: $_") foreach sort keys %query;

# ---- src/README tells of all files in the order the Makefile builds them ----

my @objects = slurp_file("$top/Makefile") =~ m{^\tsrc/([\w/]+)\.o}mg;
my @told = slurp_file("$top/src/README") =~ m{^  ([\w/]+)\.c(?:  |$)}mg;
is("@told", "@objects", 'src/README has the files in the order of OBJS');

done_testing();
