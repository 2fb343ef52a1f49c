# Applying does not depend on the defaults a database gives its clients.
use strict;
use warnings;
use ReplMl;
use Test::More;

my @nodes = new_group(3, q(
CREATE TABLE t (id int PRIMARY KEY, v text, at timestamptz, span interval, n float8);
SELECT repl_ml.add_table('t');
INSERT INTO t SELECT i, 'old', now(), '1 day -2 hours', 1.0 / 3 FROM generate_series(1, 5) i));
my ($n1, $n2, $n3) = @nodes;

foreach my $setting (
	"default_transaction_read_only = 'on'", "default_transaction_isolation = 'serializable'",
	"default_transaction_deferrable = 'on'", "datestyle = 'SQL, DMY'",
	"intervalstyle = 'sql_standard'", "extra_float_digits = '-5'",
	"search_path = 'nowhere'", "statement_timeout = '5s'",
	"session_replication_role = 'local'", "check_function_bodies = 'off'", "client_encoding = 'LATIN1'")
{
	sql($n2, "SET default_transaction_read_only = off; ALTER DATABASE postgres SET $setting");
}
$n2->restart;

# The comparisons below print values on all nodes in the same way.
$ENV{PGOPTIONS} = '-c datestyle=ISO -c intervalstyle=postgres -c extra_float_digits=3 -c client_encoding=UTF8';

sub write_on_n2 { my ($sql) = @_; return sql($n2, "SET default_transaction_read_only = off; $sql"); }

sql($n1, q(UPDATE public.t SET v = 'ключ n1', at = '2001-02-03 04:05:06.789', span = '-1 day +2 hours', n = 1e-300 / 3 WHERE id = 1));
sql($n3, q(DELETE FROM public.t WHERE id = 2));
write_on_n2(q(UPDATE public.t SET v = 'ключ n2', at = '2002-03-04', span = '-1 month 3 days -4 seconds', n = 2.0 / 3 WHERE id = 3));
wait_converged(\@nodes, 'public.t');

is(sql($_, 'SELECT v FROM public.t WHERE id IN (1, 3) ORDER BY id'), "ключ n1\nключ n2", 'text on ' . $_->name) foreach @nodes;

cut($n2, $n1);
cut($n1, $n2);
write_on_n2(q(UPDATE public.t SET v = 'n2' WHERE id = 4; DELETE FROM public.t WHERE id = 5));
sql($n1, q(UPDATE public.t SET v = 'n1' WHERE id IN (4, 5)));
heal($n2, $n1);
heal($n1, $n2);
wait_converged(\@nodes, 'public.t');
is(conflict_rows($_), "t|{4}|update_origin_differs|n1|n2|{v}\nt|{5}|delete_origin_differs|n1|n2|{}", 'the conflicts, on ' . $_->name)
  foreach @nodes;
is(sql($_, 'SELECT count(*) FROM repl_ml.parked_changes'), '0', 'nothing is parked on ' . $_->name) foreach @nodes;
is(sql($n2, 'SELECT sum(errors) FROM repl_ml.stat_apply'), '0', 'no error');
poll_until($n1, q(SELECT sent_at > now() - interval '10 s' FROM repl_ml.heartbeat h JOIN repl_ml.nodes n USING (node_id) WHERE node_name = 'n2'));
done_testing();
