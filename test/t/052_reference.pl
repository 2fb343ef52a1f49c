# doc/reference.md says what is there: each function with its arguments and who may call it, each view column by
# column, each setting, each role, and each SQLSTATE that the sources raise; doc/operations.md quotes what health and
# errors say; test/README has what the Perl modules offer; META.json is of this version; the documents' links lead somewhere.
#
# Seen failing: with an argument, a column, a default, a privilege, a code, a quotation and a link changed.
use strict;
use warnings;
use File::Basename qw(dirname);
use JSON::PP;
use PostgreSQL::Test::Utils;
use ReplMl;
use Test::More;

my $top = dirname(__FILE__) . '/../..';
my $reference = slurp_file("$top/doc/reference.md");
my $node = new_node('n1', 'repl_ml.replicate_ddl = on');
sql($node, 'CREATE EXTENSION repl_ml');

# The text below a heading, up to the next one of its kind or above.
sub section
{
	my ($heading, $document) = @_;
	my ($marks) = $heading =~ /^(#+)/;
	my ($text) = ($document // $reference) =~ /^\Q$heading\E\n(.*?)(?=^#{1,@{[ length $marks ]}} |\z)/ms;

	ok(defined $text, "there is a section \"$heading\"");
	return $text // '';
}

# Compares two lists of lines, and shows what is in one of them only.
sub same_lines
{
	my ($told, $there, $name) = @_;
	my %told = map { $_ => 1 } @$told;
	my %there = map { $_ => 1 } @$there;
	my @wrong = ((map { "not there: $_" } grep { !$there{$_} } @$told), (map { "not told: $_" } grep { !$told{$_} } @$there));

	is(join("\n", @wrong), '', $name);
	return;
}

# ---- functions ----

# The functions for users: everybody's and repl_ml_admin's, but for what the nodes ask each other and what belongs to
# the type and the clock column; and superusers', whose comments say so or name errors.
my $functions = <<'SQL';
SELECT format('%s(%s) → %s · %s', p.proname, a.arguments,
              CASE WHEN p.proretset THEN 'setof ' ELSE '' END || coalesce('(' || a.columns || ')', replace(format_type(p.prorettype, NULL), 'repl_ml.', '')),
              CASE WHEN has_function_privilege('public', p.oid, 'EXECUTE') THEN 'everybody' WHEN NOT has_function_privilege('repl_ml_admin', p.oid, 'EXECUTE') THEN 'superuser'
                   WHEN has_function_privilege('pg_monitor', p.oid, 'EXECUTE') THEN 'pg_monitor' ELSE 'repl_ml_admin' END)
  FROM pg_proc p CROSS JOIN LATERAL (
       SELECT coalesce(string_agg(concat_ws(' ', g.name, replace(format_type(g.type, NULL), 'repl_ml.', ''),
                                  'DEFAULT ' || regexp_replace(pg_get_function_arg_default(p.oid, g.place::int), '::[a-z]+([[][]])?', '')), ', ' ORDER BY g.place) FILTER (WHERE g.mode = 'i'), '') AS arguments,
              string_agg(concat_ws(' ', g.name, format_type(g.type, NULL)), ', ' ORDER BY g.place) FILTER (WHERE g.mode <> 'i') AS columns
         FROM (SELECT u.place, u.type, coalesce(p.proargmodes[u.place], 'i') AS mode, p.proargnames[u.place] AS name
                 FROM unnest(coalesce(p.proallargtypes, p.proargtypes::oid[])) WITH ORDINALITY u (type, place)) g) a
 WHERE p.pronamespace = 'repl_ml'::regnamespace AND p.prorettype <> 'trigger'::regtype
SQL
my $for_users = <<'SQL';
   AND (has_function_privilege('public', p.oid, 'EXECUTE') AND p.proname !~ '^(vclock_.*|tick|insert_pending|moved_pending)$'
        OR has_function_privilege('repl_ml_admin', p.oid, 'EXECUTE') AND NOT has_function_privilege('pg_monitor', p.oid, 'EXECUTE') AND NOT has_function_privilege('repl_ml_replication', p.oid, 'EXECUTE')
        OR NOT has_function_privilege('repl_ml_replication', p.oid, 'EXECUTE') AND obj_description(p.oid, 'pg_proc') ~ 'Superusers only|Errors: '
        OR p.proname = 'check_setup')
SQL
my $told = section('## Functions');
my @told = map { s/`//gr } $told =~ /^\* (`\w+\(.*?\) → [^`]+` · \w+)$/mg;
my @all_functions = split /\n/, sql($node, $functions);
my @user_functions = split /\n/, sql($node, $functions . $for_users);
my %exists = map { $_ => 1 } @all_functions;
cmp_ok(scalar(@told), '>', 30, 'functions are described');
same_lines([ @told, grep { !$exists{$_} } @told ], [ @user_functions, grep { $exists{$_} } @told ], 'the functions are those for users, with arguments, result and rights');
is(scalar(() = $told =~ /^\* `\w+\(/mg), scalar(@told), 'each function is described in that form');

# ---- views ----

my $views = section('## Views');
my @columns;
my ($view, $reader);
foreach (split /\n/, $views)
{
	if (/^### (\w+)$/) { $view = $1; }
	elsif (/^A row for each .* · (\w+)$/) { push @columns, "$view · $1"; }
	elsif (/^\| `(\w+)` \| `([^`]+)` \| /) { push @columns, "$view $1 $2"; }
}
my @there = split /\n/, sql($node, <<'SQL');
SELECT x.line FROM pg_class c CROSS JOIN LATERAL (
    SELECT 0 AS place, format('%s · %s', c.relname, CASE WHEN has_table_privilege('public', c.oid, 'SELECT') THEN 'everybody'
           WHEN has_table_privilege('pg_monitor', c.oid, 'SELECT') THEN 'pg_monitor' WHEN has_table_privilege('repl_ml_admin', c.oid, 'SELECT') THEN 'repl_ml_admin' ELSE 'superuser' END) AS line
    UNION ALL SELECT a.attnum, format('%s %s %s', c.relname, a.attname, replace(format_type(a.atttypid, a.atttypmod), 'repl_ml.', '')) FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0) x
 WHERE c.relnamespace = 'repl_ml'::regnamespace AND c.relkind = 'v' ORDER BY c.relname, x.place
SQL
same_lines(\@columns, \@there, 'the views, their columns and readers');
foreach my $name ($views =~ /^### (\w+)$/mg)
{
	is(join(' ', grep { /^$name / } @columns), join(' ', grep { /^$name / } @there), "$name: its columns are in order");
}

# ---- settings ----

# "10min" or "64kB" in the setting's own unit, which may be "8kB".
sub in_unit
{
	my ($value, $unit) = @_;
	my %factor = (ms => 1, s => 1000, min => 60000, h => 3600000, d => 86400000, kB => 1, MB => 1024, GB => 1048576, '' => 1);
	my ($number, $own) = $value =~ /^(-?\d+)(\w*)$/ or return "\"$value\"";

	return $number if $own eq '';
	return $number * $factor{$own} / $factor{$unit};
}

my %settings = map { my @f = split /\t/; $f[0] => \@f } split /\n/,
  sql($node, q(SELECT concat_ws(E'\t', name, unit, context, vartype, min_val, max_val, array_to_string(enumvals, ', '), '') FROM (SELECT name, coalesce(unit, '') AS unit, context, vartype, coalesce(min_val, '') AS min_val, coalesce(max_val, '') AS max_val, enumvals FROM pg_settings WHERE name LIKE 'repl\_ml.%') s));
my %told_setting;
foreach my $row (section('## Settings') =~ /^\| (`repl_ml\..*)$/mg)
{
	my ($name, $default, $range, $where) = map { s/[` ]//gr } split /\|/, $row;
	$told_setting{$name} = 1;
	my $is = $settings{$name} or next;
	my (undef, $unit, $context, $type, $min, $max, $values) = @$is;

	is($default, sql($node, "SHOW $name"), "$name: its default");
	is($where, { sighup => 'server', user => 'session' }->{$context}, "$name: where it is set");
	if ($type eq 'integer')
	{
		my ($from, $to) = $range =~ /^(.+?)(?:to(\w+)|ormore)$/;
		is(in_unit($from, $unit), $min, "$name: its least value");
		is(defined $to ? in_unit($to, $unit) : '2147483647', $max, "$name: its greatest value");
	}
	else
	{
		is($range, ($values // '') =~ s/ //gr, "$name: its values");
	}
}
same_lines([ keys %told_setting ], [ keys %settings ], 'all settings are described');

# ---- roles ----

my $roles = section('## Roles and connection strings');
same_lines([ do { my %seen; grep { !$seen{$_}++ } $roles =~ /^\* \*\*`(repl_ml_\w+)`\*\*/mg } ],
	[ split /\n/, sql($node, q(SELECT rolname FROM pg_roles WHERE rolname LIKE 'repl\_ml%')) ], 'all roles are described');

# ---- error codes ----

chomp(my $sharedir = `pg_config --sharedir`);
my (%by_macro, %by_name);
foreach (split /\n/, slurp_file("$sharedir/errcodes.txt"))
{
	/^(\w{5})\s+[EWS]\s+ERRCODE_(\w+)\s*(\w*)$/ or next;
	$by_macro{$2} = $1;
	$by_name{$3} //= $1 if $3 ne '';
}
my %raised;
foreach my $path (glob("$top/src/*.[ch] $top/src/*/*.[ch]"))
{
	my $source = slurp_file($path);
	# what is only compared is not raised
	$source =~ s/ERRCODE_TO_CATEGORY(\s*\(\s*ERRCODE_\w+\s*\))?//g;
	$source =~ s/[=!]=\s*ERRCODE_\w+//g;
	push @{ $raised{ $by_macro{$1} // "unknown $1" } }, $path =~ s{^.*/src/}{src/}r while $source =~ /\bERRCODE_(\w+)/g;
}
my $script = slurp_file((glob("$top/sql/repl_ml--*.sql"))[0]);
while ($script =~ /RAISE EXCEPTION(.*?);\n/gs)
{
	my $statement = $1;
	my ($name) = $statement =~ /ERRCODE = '(\w+)'/;
	push @{ $raised{ defined $name ? $by_name{$name} // $name : "none: $statement" } }, 'install script';
}
my %code;
foreach (section('## Error codes') =~ /^(\| `\w{5}` .*)$/mg)
{
	my (undef, $code, $name) = map { s/[` ]//gr } split /\|/;
	ok(!$code{$code}++, "$code is described once");
	is($by_name{$name} // $by_macro{ uc $name } // 'unknown', $code, "$code is $name");
}
same_lines([ keys %code ], [ keys %raised ], 'all SQLSTATEs that the sources raise are described')
  or diag(map { "$_: @{ $raised{$_} }\n" } grep { !$code{$_} } sort keys %raised);

# ---- wait events ----

my %events = map { $_ => 1 } map { slurp_file($_) =~ /"(ReplMl[A-Z][A-Za-z]*)"/g } glob("$top/src/*/*.c");
same_lines([ section('## Wait events') =~ /^\| `(ReplMl\w+)` \| /mg ], [ sort keys %events ], 'all wait events are described');
is(join(' ', grep { /\bPG_WAIT_EXTENSION\b/ } map { slurp_file($_) } glob("$top/src/*/*.c")), '', 'no wait is without a name');

# ---- what operations.md quotes ----

my $operations = slurp_file("$top/doc/operations.md");
# a string may go on in the next line
my $sources = join('', map { slurp_file($_) } glob("$top/src/*/*.c")) =~ s/"\s*\n\s*"//gr;

# Tests that the words of a quotation are in a text: those between its ellipses, and its *values*.
sub is_quoted
{
	my ($quotation, $text) = @_;
	my @words = map { s/^[\s:,.()]+|[\s:,.()]+$//gr } split /…|\*[^*]+\*/, $quotation;

	is(join(' | ', grep { index($text, $_) < 0 } @words), '', "is said: $quotation");
	return;
}

my $health = sql($node, q(SELECT prosrc FROM pg_proc WHERE oid = 'repl_ml.checks'::regproc)) =~ s/''/'/gr;
my $says = section('## What health says', $operations);
is_quoted($_, $health) foreach grep { !/^(it says|-+)$/ } $says =~ /^\| (?! )(.*?) \| /mg;
is_quoted($_, $sources =~ s/\\"/"/gr)
  foreach map { /`([^`]+)`/g } section('## What clients say', $operations) =~ /^\| `\w{5}` \| (.*?) \| /mg;

# ---- test/README: what the Perl modules offer ----

my ($modules) = slurp_file("$top/test/README") =~ /\nPerl modules\n=+\n(.*)\z/s;
foreach my $path (glob("$top/test/*.pm"))
{
	my ($module) = $path =~ m{(\w+)\.pm$};
	my ($names) = slurp_file($path) =~ /^our \@EXPORT = qw\((.*?)\)/ms;
	my ($described) = $modules =~ /^$module +(.*?)(?=^\w|\z)/ms;
	is(join(' ', grep { ($described // '') !~ /\b$_\b/ } split ' ', $names), '', "test/README has what $module.pm offers");
}

# ---- META.json, for PGXN: it has been held against its schema; here, what can become untrue ----

my $meta = decode_json(slurp_file("$top/META.json"));
my ($version) = slurp_file("$top/repl_ml.control") =~ /^default_version = '(.*)'$/m;
is("$meta->{name} $meta->{version} $meta->{'meta-spec'}{version}", "repl_ml $version.0 1.0.0", 'META.json: name and versions');
is(join(' ', grep { !defined $meta->{$_} } qw(abstract maintainer license provides prereqs)), '', 'META.json: what PGXN requires');
is($meta->{provides}{repl_ml}{version}, $meta->{version}, 'META.json: the version of the extension');
ok(-e "$top/$meta->{provides}{repl_ml}{$_}", "META.json: $_ is there") foreach qw(file docfile);

# ---- links between the documents ----

# How GitHub names the place of a heading.
sub anchor
{
	my ($heading) = @_;
	$heading = lc $heading =~ s/[^\w\- ]//gr;
	return $heading =~ s/ /-/gr;
}

my (%places, %prose);
foreach my $path (map { s{^\Q$top\E/}{}r } glob("$top/*.md $top/doc/*.md"))
{
	$prose{$path} = slurp_file("$top/$path") =~ s/^```.*?^```$//msgr;
	$places{$path} = { map { anchor($_) => 1 } $prose{$path} =~ /^#+ (.*)$/mg };
}
# the two that are not only read from top to bottom have all their sections in their contents
foreach my $path (qw(README.md doc/operations.md))
{
	my ($head) = $prose{$path} =~ /\A(.*?)^## /ms;
	my @sections = $prose{$path} =~ /^## (.*)$/mg;

	push @sections, $1 =~ /^### (.*)$/mg if $prose{$path} =~ /^## Tasks\n(.*?)^## /ms;
	is(join(', ', grep { index($head, '(#' . anchor($_) . ')') < 0 } @sections), '', "$path: its contents name all that is in it");
}
foreach my $path (sort keys %prose)
{
	my $folder = dirname($path) eq '.' ? '' : dirname($path) . '/';
	my @broken;

	while ($prose{$path} =~ /\]\((?!\w+:)([^)#\s]*)(?:#([^)\s]*))?\)/g)
	{
		my ($file, $place) = ($1, $2);
		my $target = $file eq '' ? $path : "$folder$file";
		1 while $target =~ s{[^/]+/\.\./}{};
		push @broken, "$file#" . ($place // '') unless -e "$top/$target" && (!defined $place || $places{$target}{$place});
	}
	is("@broken", '', "$path: its links lead somewhere");
}

done_testing();
