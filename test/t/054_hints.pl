# What a hint tells somebody to run can be run: each command in the sources' hints parses, and the functions, arguments,
# views, columns, settings and roles that it names exist.
#
# Seen failing: with an argument, a column, a view, a setting and a keyword of a hint changed. Not seen:
# what other nodes or a client's tools are told to do, and whether it helps.
use strict;
use warnings;
use File::Basename qw(dirname);
use PostgreSQL::Test::Utils;
use ReplMl;
use Test::More;

my $top = dirname(__FILE__) . '/../..';
my $node = new_node('n1');
sql($node, 'CREATE EXTENSION repl_ml; CREATE TABLE t (id int PRIMARY KEY)');

# The literals of a C file, those that follow each other as one; and those of SQL.
sub c_literals
{
	my ($text) = @_;
	my @literals;

	$text =~ s{/\*.*?\*/}{}gs;
	while ($text =~ /("(?:[^"\\]|\\.)*"(?:\s*"(?:[^"\\]|\\.)*")*)/g)
	{
		my $literal = join '', map { substr $_, 1, -1 } $1 =~ /"(?:[^"\\]|\\.)*"/g;
		push @literals, $literal =~ s/\\n/\n/gr =~ s/\\(.)/$1/gr;
	}
	return @literals;
}

sub sql_literals
{
	my ($text) = @_;
	$text =~ s/^\s*--.*$//mg;
	return map { s/''/'/gr } $text =~ /'((?:[^']|'')*)'/g;
}

# Sentences for people; SQL that the sources run begins with a keyword.
my @hints;
foreach my $file (glob("$top/src/*.[ch] $top/src/*/*.[ch] $top/sql/parts/*.sql"))
{
	my $text = slurp_file($file);
	my $name = $file =~ s{.*/(\w+/\w+\.\w+)$}{$1}r;
	push @hints, map { [ $name, $_ ] } grep { /^[A-Z][a-z]/ && / / } $file =~ /sql$/ ? sql_literals($text) : c_literals($text);
}

# Of the text behind a function's name: its arguments, with their parentheses.
my $arguments = qr/(\((?:[^()]|(?1))*\))/;

# What stands for a value or a name in a hint becomes one.
sub fill
{
	my ($text) = @_;

	$text =~ s/the role of the connection string|its role\b/t/g;
	$text =~ s/ TO it\b/ TO t/g;
	$text =~ s/SELECT \.\.\. from this one/SELECT * FROM t/g;
	$text =~ s/'%s\.%s'/'public.t'/g;
	$text =~ s/(COMMIT|ROLLBACK) PREPARED %s/$1 PREPARED 'x'/g;
	$text =~ s/(ENCODING|IS) %[sL]/$1 'x'/g;
	# what definition.c has there is looked at by 351, in errors
	$text =~ s/ALTER TABLE %s %s/ALTER TABLE t ADD PRIMARY KEY (id)/g;
	$text =~ s/%\d+\$([sLI])/%$1/g;
	$text =~ s/pg_terminate_backend\(%s\)/pg_terminate_backend(1)/g;
	# of a function with "..." for its arguments any may be meant: it has to be there
	$text =~ s/(?:SELECT )?repl_ml\.\w+\(\.\.\.\)//g;
	$text =~ s/(SELECT (?:\* FROM )?repl_ml\.\w+)$arguments/fill_arguments($1, $2)/ge;
	return $text =~ s/%[sLI]|\.\.\./t/gr;
}

sub fill_arguments
{
	my ($function, $values) = @_;
	return $function . $values =~ s/%[sLI]/'t'/gr =~ s/\((?:id|token)\)/(NULL)/r;
}

# The command is analyzed and not run; what has no plan is only parsed, by a transaction that has failed before.
sub refused
{
	my ($command) = @_;
	my (undef, undef, $error) = $command =~ /^SELECT/
	  ? $node->psql('postgres', "PREPARE command AS $command", on_error_stop => 0)
	  : $node->psql('postgres', "BEGIN;\nSELECT 1/0;\n$command;\n", on_error_stop => 0, extra_params => [ '-v', 'VERBOSITY=sqlstate' ]);

	return $error if $command =~ /^SELECT/;
	return $error =~ /ERROR:  25P02\s*\z/ ? '' : $error;
}

my %known = map { $_ => 1 } split /\n/, sql($node, <<'SQL');
SELECT name FROM pg_settings UNION SELECT rolname FROM pg_roles
UNION SELECT proname FROM pg_proc WHERE pronamespace IN ('repl_ml'::regnamespace, 'pg_catalog'::regnamespace)
UNION SELECT unnest(proargnames) FROM pg_proc WHERE pronamespace = 'repl_ml'::regnamespace
UNION SELECT typname FROM pg_type UNION SELECT relname FROM pg_class UNION SELECT attname FROM pg_attribute
SQL
# policies and rules; files and programs of the server, a parameter of libpq, settings of 18 and of some minor releases, columns of an example
$known{$_} = 1 foreach map { slurp_file("$top/src/converge/$_") =~ /"(\w+)"/g } qw(resolve.c merge.c);
$known{$_} = 1 foreach qw(repl_ml repl_ml_quorum pg_catalog pg_dump pg_dumpall pg_hba target_session_attrs max_active_replication_origins output_plugin_libraries set_back event_ts created_ts);
my $end = qr/(?=[.;,:](?: |$)| or | and | with | on every| on that| on node| there\b| here\b| first\b| in the same| the same| where | for |$)/;
my %seen;
my (@wrong_names, @wrong_commands);
foreach my $hint (@hints)
{
	my ($file, $text) = @$hint;

	foreach my $name ($text =~ /\brepl_ml\.(\w+)/g)
	{
		push @wrong_names, "$file: repl_ml.$name in \"$text\"" if !$known{$name} && !$known{"repl_ml.$name"};
	}
	foreach my $name ($text =~ /(?<![.\w"%-])([a-z]+(?:_[a-z]+)+)\b/g)
	{
		push @wrong_names, "$file: $name in \"$text\"" if !$known{$name};
	}
	my @commands;
	$text = fill($text);
	push @commands, $1 while $text =~ /\b(SELECT (?:\*|\w+(?:, \w+)*) FROM \w+(?:\.\w+)?(?:\((?:[^()]|\([^()]*\))*\))?)/g;
	push @commands, $1 while $text =~ /\b(SELECT [\w.]+\((?:[^()]|\([^()]*\))*\))/g;
	push @commands, $1 while $text =~ /\b((?:ALTER (?:SYSTEM|TABLE|ROLE|FUNCTION|EXTENSION|TRIGGER|DATABASE)|GRANT|REVOKE|CREATE (?:ROLE|DATABASE|EXTENSION|TABLE|INDEX)|DROP (?:ROLE|TABLE|SUBSCRIPTION|PUBLICATION)|TRUNCATE t|DELETE FROM|UPDATE t|INSERT INTO|(?:COMMIT|ROLLBACK) PREPARED '|SECURITY LABEL|SET repl_ml).*?)$end/g;
	foreach my $command (@commands)
	{
		next if $seen{$command}++;
		my $error = refused($command);
		push @wrong_commands, "$file: $command: $error in \"$text\"" if $error;
	}
}
cmp_ok(scalar(keys %seen), '>', 40, 'hints have commands');
is(join("\n", @wrong_names), '', 'what they name exists');
is(join("\n", @wrong_commands), '', 'they can be run');
done_testing();
