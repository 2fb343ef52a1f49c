# Whatever differs between members, in random tables of all types, keys and shapes, is found with its key and what it is,
# and nothing else is; repair_table makes it what it must be, the majority's where two have the same clock, and then all
# is consistent: see verify/plants.py. What the index of the primary key does not lead to, or leads to twice, is found, too.
#
# REPL_ML_PLANTS and REPL_ML_SEED (how many, which ones) and REPL_ML_NODES make it another run; verify/run is the long one.
# Seen failing: with NaNs by their sign and XML as it is stored (image.c), which members that have it from the stream do
# not have so; the two cases of the index without look_at_indexes().
use strict;
use warnings;
use Consistency;
use FindBin;
use ReplMl;
use Situations;
use Test::More;

my @nodes = new_group($ENV{REPL_ML_NODES} || 3, <<'SQL');
CREATE TABLE lost (id int PRIMARY KEY, v text);
SELECT repl_ml.add_table('lost');
SQL
my ($n1, $n2, $n3) = @nodes;
# what is known of deletions stays
never_miss_heartbeats(@nodes);
sql($n1, q(INSERT INTO lost SELECT g, 'v' || g FROM generate_series(1, 20) g));
wait_converged(\@nodes);

# ---- rows and an index that do not agree ----

sub differences { return sql($_[0], q(SELECT key, verdict, detail FROM repl_ml.diff_rows('lost'))) }

my $astray = 'on node "n2" the index of the primary key does not lead to all rows with this key';
my $index = q(UPDATE pg_index SET %s WHERE indexrelid = 'lost_pkey'::regclass);
plant($n2, 'lost', join ';', sprintf($index, 'indisunique = false'), 'INSERT INTO lost SELECT * FROM lost WHERE id = 5', sprintf($index, 'indisunique = true'));
is(differences($_), "{5}|corrupt|$astray", 'a row that is there twice, as ' . $_->name . ' sees it') foreach @nodes;
is(sql($n1, q(SELECT node_name, action, detail ~ 'REINDEX' FROM repl_ml.repair_table('lost', false))), '|none|t', 'is not for repair_table');
is(sql($n1, q(SELECT status, differing_rows, detail FROM repl_ml.verify_table('lost'))), 'differs|1|corrupt: 1', 'and stays a difference');
sql($n2, q(CREATE EXTENSION pg_surgery; SELECT heap_force_kill('lost', ARRAY[max(ctid)]) FROM lost WHERE id = 5; REINDEX TABLE lost));
is(sql($n1, q(SELECT status FROM repl_ml.verify_table('lost'))), 'consistent', 'until it is removed');

plant($n2, 'lost', join ';', 'DELETE FROM lost WHERE id = 10', sprintf($index, 'indisready = false'), q(INSERT INTO lost VALUES (10, 'unindexed')), sprintf($index, 'indisready = true'));
is(differences($_), "{10}|corrupt|$astray", 'a row that the index does not lead to, as ' . $_->name . ' sees it') foreach @nodes;
is(sql($n3, q(SELECT count(*) FROM repl_ml.repair_table('lost', false) WHERE action <> 'none')), '0', 'is not made two');
sql($n2, 'REINDEX TABLE lost');
is(differences($n1), '{10}|concurrent|', 'with its index it is a version as any');
sql($n1, q(SELECT FROM repl_ml.repair_table('lost', false)));
is(sql($n1, q(SELECT status FROM repl_ml.verify_table('lost'))), 'consistent', 'and is joined');
sql($n1, q(SELECT repl_ml.remove_table('lost')));

# ---- random tables ----

my @options = ('--plants', $ENV{REPL_ML_PLANTS} || 150, '--seed', $ENV{REPL_ML_SEED} || 1);
my @where = map { join '|', $_->name, dsn($_), $_->data_dir, $_->logfile } @nodes;
open my $output, '-|', '/usr/bin/python3', "$FindBin::Bin/../verify/plants.py", @options, @where or die "plants.py: $!";
while (my $line = <$output>)
{
	chomp $line;
	if    ($line =~ /^ok (.*)/)     { pass($1) }
	elsif ($line =~ /^not ok (.*)/) { fail($1) }
	else                            { diag("  $line") }
}
close $output;
is($? >> 8, 0, 'all that was planted was found and mended');
done_testing();
