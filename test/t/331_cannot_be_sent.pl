# What a node cannot send or another cannot hold is refused beforehand, or set aside under its name while everything else goes on.
use strict;
use warnings;
use ReplMl;
use Test::More;

my ($n1, $n2) = my @nodes = new_group(2, q(CREATE TABLE t (id int PRIMARY KEY, v text); SELECT repl_ml.add_table('t')));

# a database of another encoding is told so, before and when it joins
sql($n2, q(CREATE DATABASE latin ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0));
$n2->safe_psql('latin', 'CREATE EXTENSION repl_ml');
my ($status, undef, $error) = $n2->psql('latin', q{SELECT repl_ml.join_group('n3', } . literal($n2->connstr('latin')) . ', ' . literal(dsn($n1)) . ')',
	extra_params => [ '-v', 'VERBOSITY=verbose' ]);
isnt($status, 0, 'a database of another encoding cannot join');
like($error, qr/ERROR:  55000: the encoding of this database is LATIN1, that of the group is UTF8.*HINT:  Run CREATE DATABASE .* ENCODING 'UTF8'/s, 'the error says why');
is($n2->safe_psql('latin', 'SELECT check_name, status, detail FROM repl_ml.check_setup(' . literal(dsn($n1)) . q{) WHERE check_name = 'encoding'}),
	'encoding|error|is LATIN1 here, UTF8 there', 'check_setup says it, too');
is(sql($n1, 'SELECT status FROM repl_ml.check_setup(' . literal(dsn($n2)) . q{) WHERE check_name IN ('encoding', 'locale') ORDER BY check_name}), "ok\nok", 'and is content with the other one');
is(sql($n1, 'SELECT count(*) FROM repl_ml.member'), '2', 'nobody was registered');
done_testing();
