# Whatever code a table's owner puts on the way of a row (triggers, checks, defaults, index expressions, domains,
# partition keys), as a security definer or with settings of its own, runs in apply as often as it should, crashes
# nothing, and in one long transaction takes no more memory at its end than at its beginning.
#
# Seen failing with the executor run in the message's context: apply workers crash in fmgr_security_definer.
use strict;
use warnings;
use ReplMl;
use Test::More;

my @nodes = new_group(2, <<'SQL');
CREATE TABLE audit (what text, n integer, at timestamptz DEFAULT now());
CREATE TABLE memory (at_row integer, context text, bytes bigint);
CREATE FUNCTION audit() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog SET work_mem = '1MB' AS $$
BEGIN
	INSERT INTO public.audit (what, n) VALUES (concat_ws(' ', tg_when, tg_op, tg_argv[0]), coalesce(NEW.id, OLD.id)::integer);
	RETURN coalesce(NEW, OLD);
END $$;
CREATE FUNCTION with_settings(t text) RETURNS text LANGUAGE plpgsql IMMUTABLE SET work_mem = '1MB' AS $$ BEGIN RETURN left(t, 20); END $$;
CREATE FUNCTION as_definer(t text) RETURNS text LANGUAGE sql IMMUTABLE SECURITY DEFINER AS $$ SELECT reverse(left(t, 20)) $$;
CREATE FUNCTION is_short(t text) RETURNS boolean LANGUAGE plpgsql IMMUTABLE SECURITY DEFINER SET work_mem = '1MB' AS $$ BEGIN RETURN length(t) < 100000; END $$;
CREATE DOMAIN short AS text CHECK (public.is_short(VALUE));
CREATE DOMAIN number AS integer CHECK (public.is_short(VALUE::text));
CREATE TABLE coded (
	id integer PRIMARY KEY, v short CHECK (public.is_short(v)), a number[], d text DEFAULT public.as_definer('default'),
	g text GENERATED ALWAYS AS (public.with_settings(v)) STORED, EXCLUDE USING hash ((public.as_definer(id::text)) WITH =));
CREATE UNIQUE INDEX ON coded (public.with_settings(id::text)) WHERE public.is_short(v);
CREATE INDEX ON coded (public.as_definer(v));
CREATE TRIGGER a BEFORE INSERT OR UPDATE OR DELETE ON coded FOR EACH ROW EXECUTE FUNCTION audit();
CREATE TRIGGER b AFTER INSERT OR UPDATE OR DELETE ON coded FOR EACH ROW WHEN (pg_trigger_depth() < 9) EXECUTE FUNCTION audit();
CREATE CONSTRAINT TRIGGER c AFTER INSERT ON coded DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION audit();
CREATE TABLE parted (id short PRIMARY KEY, v short) PARTITION BY HASH (id);
CREATE TABLE parted_0 PARTITION OF parted FOR VALUES WITH (modulus 2, remainder 0);
CREATE TABLE parted_1 PARTITION OF parted FOR VALUES WITH (modulus 2, remainder 1);
CREATE TRIGGER b AFTER INSERT OR UPDATE ON parted FOR EACH ROW EXECUTE FUNCTION audit('parted');
CREATE FUNCTION note_memory() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog AS $$
BEGIN
	IF tg_when = 'AFTER' AND coalesce(NEW.id, OLD.id) = ANY (CASE tg_op WHEN 'INSERT' THEN ARRAY[2000, 20000] ELSE ARRAY[500, 5000] END) THEN
		INSERT INTO public.memory SELECT coalesce(NEW.id, OLD.id), name, sum(used_bytes) FROM pg_backend_memory_contexts GROUP BY name;
	END IF;
	RETURN NEW;
END $$;
-- No generated column: of each update of a row that has one the server itself keeps 32 bytes of trigger events.
CREATE TABLE long (id integer PRIMARY KEY, v short CHECK (public.is_short(v)), o text);
CREATE INDEX ON long (public.as_definer(v));
ALTER TABLE long ALTER o SET STORAGE EXTERNAL;
CREATE UNIQUE INDEX ON long (public.with_settings(id::text));
CREATE TRIGGER note_memory AFTER INSERT OR UPDATE OR DELETE ON long FOR EACH ROW EXECUTE FUNCTION note_memory();
CREATE TRIGGER before BEFORE INSERT OR UPDATE ON long FOR EACH ROW EXECUTE FUNCTION note_memory();
ALTER TABLE coded ENABLE ALWAYS TRIGGER a, ENABLE ALWAYS TRIGGER b, ENABLE REPLICA TRIGGER c;
ALTER TABLE parted ENABLE ALWAYS TRIGGER b;
ALTER TABLE long ENABLE REPLICA TRIGGER note_memory, ENABLE ALWAYS TRIGGER before;
CREATE TABLE resolved (id integer PRIMARY KEY, v text);
CREATE FUNCTION pick(a resolved, b resolved, repl_ml.vclock, repl_ml.vclock) RETURNS resolved LANGUAGE sql IMMUTABLE AS 'SELECT a';
SELECT repl_ml.add_table(t) FROM unnest('{coded,parted,long,resolved}'::regclass[]) t
SQL
my ($n1, $n2) = @nodes;

# What has run on a node, how often for how many rows.
sub runs { my ($node) = @_; return sql($node, 'SELECT what, count(*), count(DISTINCT n) FROM audit GROUP BY what ORDER BY what COLLATE "C"'); }

# The server has been up since the group was made.
sub has_not_crashed
{
	my ($node, $name) = @_;
	unlike(PostgreSQL::Test::Utils::slurp_file($node->logfile), qr/terminated by signal|out of memory/, "$name: nothing crashed on " . $node->name);
	return;
}

poll_until($n2, q(SELECT count(*) = 4 FROM repl_ml.tables WHERE state = 'replicated' AND pending_copies = 0));
sql($_, 'TRUNCATE audit') foreach @nodes;

# Rows of very different length: what one message leaves behind is not what the next one needs.
my $text = q((SELECT string_agg(md5((i * k)::text), '') FROM generate_series(1, (i * 37) % 300 + 1) k));
sql($n2, "INSERT INTO coded SELECT i, $text, ARRAY[i, i] FROM generate_series(1, 2000) i");
sql($n2, "INSERT INTO coded SELECT i, $text FROM generate_series($_ * 10 + 2001, $_ * 10 + 2010) i") foreach 1 .. 20;
sql($n2, 'UPDATE coded SET v = reverse(v) WHERE id % 4 = 0');
sql($n2, 'DELETE FROM coded WHERE id % 4 = 1');
wait_converged(\@nodes, 'coded');
is(sql($n1, 'SELECT count(*), count(*) FILTER (WHERE g = left(v, 20)) FROM coded'), '1650|1650', 'all rows are there');
is(runs($n1), <<'END' =~ s/\n$//r, 'each trigger has run once for each row');
AFTER DELETE|550|550
AFTER INSERT|4400|2200
AFTER UPDATE|550|550
BEFORE DELETE|550|550
BEFORE INSERT|2200|2200
BEFORE UPDATE|550|550
END
has_not_crashed($n1, 'code of all kinds');

sql($n2, "INSERT INTO parted SELECT i::text, $text FROM generate_series(1, 1000) i");
sql($n2, "INSERT INTO parted VALUES ($_, 'x')") foreach 2001 .. 2020;
sql($n2, 'UPDATE parted SET v = reverse(v)');
wait_converged(\@nodes, 'parted');
is(sql($n1, q(SELECT count(*) FROM audit WHERE what LIKE '%parted%')), '2040', 'partitions: the trigger has run once for each change');
has_not_crashed($n1, 'partitions');

# A function that the table's owner has replaced by one of another type since it became the table's resolver.
sql($n1, q(INSERT INTO resolved VALUES (1, 'base'), (2, 'base')));
sql($n1, q(SELECT repl_ml.set_resolver('resolved', 'function(public.pick)')));
wait_converged(\@nodes, 'resolved');
sql($n1, q(DROP FUNCTION pick));
sql($n1, q(CREATE FUNCTION pick(a resolved, b resolved, repl_ml.vclock, repl_ml.vclock) RETURNS bigint LANGUAGE sql IMMUTABLE AS 'SELECT 4711::bigint'));
cut($n1, $n2);
cut($n2, $n1);
sql($n1, q(UPDATE resolved SET v = 'n1'));
sql($n2, q(UPDATE resolved SET v = 'n2'));
heal($n1, $n2);
heal($n2, $n1);
wait_converged(\@nodes);
is(sql($n1, q(SELECT sqlstate, message, count(*) FROM repl_ml.parked_changes WHERE table_name = 'resolved' GROUP BY 1, 2)),
	'38000|conflict resolver function public.pick does not return one public.resolved any more|2', 'a resolver of another type: the changes are parked');
has_not_crashed($n1, 'a resolver of another type');

# What one transaction leaves in each of the worker's memory contexts, after a tenth of it and at its end.
sub keeps_memory
{
	my ($name, $tenth) = @_;
	wait_converged(\@nodes);
	is(sql($n1, 'SELECT string_agg(DISTINCT at_row::text, $$,$$ ORDER BY at_row::text) FROM memory'), "$tenth,${tenth}0", "$name: its memory was looked at twice");
	is(sql($n1, <<"SQL"), '', "$name: no context has grown");
SELECT context, a.bytes, b.bytes FROM (SELECT * FROM memory WHERE at_row = ${tenth}0) b LEFT JOIN (SELECT * FROM memory WHERE at_row = $tenth) a USING (context)
WHERE b.bytes > coalesce(a.bytes, 0) + 65536
SQL
	has_not_crashed($n1, $name);
	sql($n1, 'TRUNCATE memory');
	return;
}

sql($n2, "INSERT INTO long SELECT i, md5(i::text) FROM generate_series(1, 20000) i");
keeps_memory('20,000 rows inserted', 2000);
sql($n2, 'UPDATE long SET v = reverse(v), o = repeat(v, 100) WHERE id <= 5000');
keeps_memory('5,000 rows updated, with out-of-line values', 500);
sql($n2, 'DELETE FROM long WHERE id <= 5000');
keeps_memory('5,000 rows deleted', 500);
wait_converged(\@nodes, 'long');
is(sql($n1, 'SELECT count(*) FROM long'), 15000, 'long transactions: all rows are there');
done_testing();
