--
-- The vector clock: input and output, order and merge, operators, aggregate.
--
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS repl_ml;
CREATE SCHEMA clock_test;
SET search_path = clock_test, repl_ml;

-- what a query returns (nothing for other commands), or the error it ends with
CREATE FUNCTION outcome(query text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    result text;
    detail text;
BEGIN
    IF query ~* '^\s*select' THEN
        EXECUTE query INTO result;
    ELSE
        EXECUTE query;
    END IF;
    RETURN result;
EXCEPTION WHEN OTHERS THEN
    GET STACKED DIAGNOSTICS detail = PG_EXCEPTION_DETAIL;
    RETURN format('%s: %s', sqlstate, sqlerrm) || coalesce(nullif(' | ' || detail, ' | '), '');
END $$;

CREATE FUNCTION read_text(input text) RETURNS text LANGUAGE sql AS
$$ SELECT outcome(format('SELECT %L::repl_ml.vclock::text', input)) $$;

-- reads a payload as the binary form of a clock: COPY in binary format from
-- a program that prints the bytes
CREATE TABLE received (clock vclock);
CREATE FUNCTION read_binary(payload bytea, length int DEFAULT NULL) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    file bytea := '\x5047434f50590aff0d0a000000000000000000'::bytea || int2send(1::int2)
        || int4send(coalesce(length, octet_length(payload))) || payload || int2send((-1)::int2);
    program text;
    error text;
BEGIN
    SELECT format('printf %%b ''%s''', string_agg('\0' ||
            (byte >> 6)::text || ((byte >> 3) & 7)::text || (byte & 7)::text, '' ORDER BY i))
        INTO program
        FROM (SELECT i, get_byte(file, i) AS byte FROM generate_series(0, octet_length(file) - 1) AS i) AS bytes;
    TRUNCATE clock_test.received;
    error := outcome(format('COPY clock_test.received FROM PROGRAM %L (FORMAT binary)', program));
    RETURN coalesce(error, (SELECT clock::text FROM clock_test.received));
END $$;

--
-- Text
--
SELECT to_json(input) AS input, read_text(input) FROM (VALUES
    (1, '{}'),
    (2, ' { } '),
    (3, '{1:1}'),
    (4, '{1:829000000000000,3:829000000000001}'),
    (5, E' \t\n\r\x0b\f{ 1 : 5 ,\n3\t:\t7 } '),
    (6, '{65535:36028797018963967}'),
    (7, '{255:1,256:2,257:3}'),
    (8, '{0001:0002}')
) AS v(i, input) ORDER BY i;

SELECT input, read_text(input) FROM (VALUES
    -- malformed
    (1, ''), (2, ' '), (3, '{'), (4, '}'), (5, '1:1'), (6, '{1:1'), (7, '1:1}'),
    (8, '{1}'), (9, '{1:}'), (10, '{:1}'), (11, '{1;1}'), (12, '{,}'), (13, '{1:1,}'),
    (14, '{,1:1}'), (15, '{1:1,,2:1}'), (16, '{1:1 2:1}'), (17, '{1:1}x'), (18, '{1:1}{}'),
    (19, '{{1:1}}'), (20, '{-1:1}'), (21, '{+1:1}'), (22, '{1:-1}'), (23, '{1:1.5}'),
    (24, '{1:1e3}'), (25, '{0x1:1}'), (26, '{1 1:1}'), (27, '{"1":1}'), (28, 'null'),
    (29, '{1:1,a:1}'), (30, E'{1:1,\x01:1}'),
    -- nodes twice or not in order
    (40, '{1:1,1:1}'), (41, '{1:1,1:2}'), (42, '{1:1,7:2,7:1}'), (43, '{2:1,1:1}'),
    (44, '{1:1,3:1,2:1}'), (45, '{256:1,255:1}'), (46, '{1:1,2:1,1:1}'),
    -- out of range
    (50, '{0:1}'), (51, '{65536:1}'), (52, '{65537:1}'), (53, '{4294967297:1}'),
    (54, '{18446744073709551617:1}'), (55, '{1:0}'), (56, '{1:36028797018963968}'),
    (57, '{1:9223372036854775808}'), (58, '{1:18446744073709551617}'),
    (59, '{1:99999999999999999999999999999999999999}'), (60, '{1:1,2:0}')
) AS v(i, input) ORDER BY i;

-- as many entries as there may be, and one more
CREATE FUNCTION long_clock(first int, last int) RETURNS text LANGUAGE sql IMMUTABLE AS
$$ SELECT '{' || string_agg(node || ':' || 1000 + node, ',' ORDER BY node) || '}' FROM generate_series(first, last) AS node $$;
SELECT read_text(long_clock(1, 128)) = long_clock(1, 128) AS entries_128;
SELECT regexp_replace(read_text(long_clock(1, 129)), '\{.*\}', '{...}') AS entries_129;
SELECT outcome(format('SELECT (%L || %L::repl_ml.vclock)::text', long_clock(1, 128), long_clock(1, 128))) = long_clock(1, 128) AS merge_128;
SELECT outcome(format('SELECT (%L || %L::repl_ml.vclock)::text', long_clock(1, 128), '{129:1}')) AS merge_129;
SELECT outcome(format('SELECT (%L || %L::repl_ml.vclock)::text', long_clock(1, 128), long_clock(200, 327))) AS merge_256;

--
-- Binary
--
SELECT vclock_send('{}'), vclock_send('{1:5}'), vclock_send('{258:36028797018963967,65535:1}');

CREATE FUNCTION entry(node int, counter bigint) RETURNS bytea LANGUAGE sql IMMUTABLE AS
$$ SELECT int4send(node) || int8send(counter) $$;

SELECT what, read_binary(payload) FROM (VALUES
    (1, 'empty', int4send(0)),
    (2, 'one entry', int4send(1) || entry(1, 5)),
    (3, 'two entries', int4send(2) || entry(1, 5) || entry(65535, 36028797018963967)),
    (4, 'no count', ''::bytea),
    (5, 'half a count', '\x0000'::bytea),
    (6, 'negative count', int4send(-1)),
    (7, 'least count', int4send(-2147483648)),
    (8, 'huge count', int4send(2147483647)),
    (9, 'count just too large', int4send(129) || entry(1, 5)),
    (10, 'no entry', int4send(1)),
    (11, 'half a node', int4send(1) || '\x0000'::bytea),
    (12, 'no counter', int4send(1) || int4send(1)),
    (13, 'half a counter', int4send(1) || int4send(1) || '\x00000000'::bytea),
    (14, 'second entry missing', int4send(2) || entry(1, 5)),
    (15, 'an entry too many', int4send(1) || entry(1, 5) || entry(2, 5)),
    (16, 'a byte too many', int4send(0) || '\x00'::bytea),
    (17, 'node 0', int4send(1) || entry(0, 5)),
    (18, 'negative node', int4send(1) || entry(-1, 5)),
    (19, 'node too large', int4send(1) || entry(65536, 5)),
    (20, 'node 1 modulo 65536', int4send(1) || entry(65537, 5)),
    (21, 'counter 0', int4send(1) || entry(1, 0)),
    (22, 'negative counter', int4send(1) || entry(1, -1)),
    (23, 'counter too large', int4send(1) || entry(1, 36028797018963968)),
    (24, 'least counter', int4send(1) || entry(1, -9223372036854775808)),
    (25, 'node twice', int4send(2) || entry(3, 5) || entry(3, 6)),
    (26, 'nodes not in order', int4send(2) || entry(3, 5) || entry(2, 6))
) AS v(i, what, payload) ORDER BY i;
SELECT read_binary(vclock_send(long_clock(1, 128)::vclock)) = long_clock(1, 128) AS entries_128;

--
-- Stored forms: a damaged clock is an error, a toasted one is not
--
CREATE CAST (bytea AS vclock) WITHOUT FUNCTION;
CREATE TABLE damaged (i int, clock vclock);
INSERT INTO damaged VALUES
    (1, '\x01'::bytea::vclock),
    (2, '\x0001000000000000'::bytea::vclock),
    (3, '\x00010000000000000500'::bytea::vclock);
SELECT i, outcome(format('SELECT %s FROM clock_test.damaged WHERE i = %s', call, i))
FROM generate_series(1, 3) AS i,
    unnest(ARRAY['clock::text', 'repl_ml.vclock_send(clock)', 'repl_ml.compare(clock, ''{1:1}'')',
                 'repl_ml.compare(''{1:1}'', clock)', 'clock || ''{1:1}''', '''{1:1}'' || clock',
                 'repl_ml.counter(clock, 1)', 'repl_ml.max_counter(clock)', 'repl_ml.last_writer(clock)'])
        WITH ORDINALITY AS c(call, n)
WHERE i = 1 OR n = 1 ORDER BY i, n;
-- a damaged clock longer than clocks may be
SELECT outcome($$ SELECT (decode(repeat('000100000000000005', 300), 'hex')::repl_ml.vclock || '{1:1}')::text $$);
DROP CAST (bytea AS vclock);
DROP TABLE damaged;

-- the filler makes the row long enough for the clock to be toasted
CREATE TABLE stored (storage text, filler text, clock vclock);
ALTER TABLE stored ALTER COLUMN filler SET STORAGE PLAIN;
INSERT INTO stored VALUES ('main', repeat('x', 3000), long_clock(1, 128)::vclock), ('short', '', '{1:1001}');
ALTER TABLE stored ALTER COLUMN clock SET STORAGE EXTERNAL;
INSERT INTO stored VALUES ('external', repeat('x', 3000), long_clock(1, 128)::vclock);
SELECT storage, pg_column_compression(clock) IS NOT NULL AS compressed,
    CASE WHEN pg_column_compression(clock) IS NULL THEN pg_column_size(clock) END AS size,
    clock::text = expected::text AS text, compare(clock, expected), clock = expected AS equal,
    vclock_hash(clock) = vclock_hash(expected) AS hash, (clock || '{5:2000}') = (expected || '{5:2000}') AS merged,
    counter(clock, 1), counter(clock, 128), max_counter(clock), last_writer(clock)
FROM stored, LATERAL (SELECT (CASE storage WHEN 'short' THEN '{1:1001}' ELSE long_clock(1, 128) END)::vclock) AS e(expected)
ORDER BY storage;
SELECT pg_relation_size(reltoastrelid) > 0 AS toasted FROM pg_class WHERE oid = 'stored'::regclass;

--
-- Examples
--
SELECT a, b, compare(a, b), happens_before(a, b), concurrent(a, b), a <@ b AS contained, a @> b AS contains,
    a = b AS eq, a <> b AS ne, merge(a, b), a || b AS merged
FROM (VALUES
    (1, '{}'::vclock, '{}'::vclock),
    (2, '{}', '{1:1}'),
    (3, '{1:1}', '{}'),
    (4, '{1:1}', '{1:1}'),
    (5, '{1:1}', '{1:2}'),
    (6, '{1:256}', '{1:255}'),
    (7, '{1:1}', '{2:1}'),
    (8, '{2:1}', '{1:1}'),
    (9, '{1:5,2:3}', '{1:5}'),
    (10, '{1:5,2:3}', '{2:3}'),
    (11, '{1:5}', '{1:4,2:3}'),
    (12, '{1:5,2:3}', '{1:4,2:4}'),
    (13, '{1:5,2:3}', '{1:6,2:3}'),
    (14, '{1:1,3:1}', '{1:1,2:1,3:1,4:1}'),
    (15, '{255:1}', '{256:1}')
) AS v(i, a, b) ORDER BY i;

SELECT clock, max_counter(clock), last_writer(clock), counter(clock, 1) AS counter_1, counter(clock, 3) AS counter_3
FROM (VALUES
    (1, '{}'::vclock), (2, '{1:9}'), (3, '{1:9,3:8}'), (4, '{1:8,3:9}'), (5, '{1:9,3:9}'), (6, '{2:9,65535:9}')
) AS v(i, clock) ORDER BY i;
SELECT node, counter('{1:7,65535:8}', node) FROM unnest(ARRAY[-2147483648, -1, 0, 1, 2, 65535, 65536, 65537]) AS node;
SELECT merge(NULL, '{1:1}') IS NULL AS merge, compare('{1:1}', NULL) IS NULL AS compare, counter(NULL, 1) IS NULL AS counter;

--
-- Laws, over random clocks and against a model: an array of counters, 0 for
-- a node that is missing
--
CREATE FUNCTION nodes() RETURNS int[] LANGUAGE sql IMMUTABLE AS
$$ SELECT ARRAY[1, 2, 255, 256, 40000, 65535] $$;
CREATE FUNCTION clock_of(model bigint[]) RETURNS vclock LANGUAGE sql IMMUTABLE AS $$
    SELECT ('{' || coalesce(string_agg(node || ':' || counter, ',' ORDER BY node), '') || '}')::repl_ml.vclock
    FROM unnest(clock_test.nodes(), model) AS e(node, counter) WHERE counter > 0
$$;
CREATE FUNCTION random_model() RETURNS bigint[] LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    counters bigint[] := '{1,2,255,256,829000000000000,36028797018963967}';
    density float8 := random();
    model bigint[] := '{}';
BEGIN
    FOR i IN 1 .. 6 LOOP
        model := model || CASE WHEN random() < density THEN counters[1 + floor(random() * 6)::int] ELSE 0 END;
    END LOOP;
    RETURN model;
END $$;
CREATE FUNCTION model_merge(a bigint[], b bigint[]) RETURNS bigint[] LANGUAGE sql IMMUTABLE AS
$$ SELECT array_agg(greatest(x, y) ORDER BY n) FROM unnest(a, b) WITH ORDINALITY AS e(x, y, n) $$;
CREATE FUNCTION model_compare(a bigint[], b bigint[]) RETURNS text LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE WHEN bool_and(x = y) THEN 'equal' WHEN bool_and(x <= y) THEN 'before'
        WHEN bool_and(x >= y) THEN 'after' ELSE 'concurrent' END
    FROM unnest(a, b) AS e(x, y)
$$;
-- a clock like the one before it, at least it, or unrelated to it
CREATE FUNCTION next_model(model bigint[]) RETURNS bigint[] LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    dice float8 := random();
BEGIN
    RETURN CASE WHEN dice < 0.1 THEN model
        WHEN dice < 0.5 THEN clock_test.model_merge(model, clock_test.random_model())
        ELSE clock_test.random_model() END;
END $$;

CREATE TABLE triples (id int PRIMARY KEY, ma bigint[], mb bigint[], mc bigint[], a vclock, b vclock, c vclock);
DO $$
DECLARE
    ma bigint[];
    mb bigint[];
    mc bigint[];
BEGIN
    PERFORM setseed(0.25);
    FOR i IN 1 .. 4000 LOOP
        ma := clock_test.random_model();
        mb := clock_test.next_model(ma);
        mc := clock_test.next_model(mb);
        INSERT INTO clock_test.triples VALUES (i, ma, mb, mc,
            clock_test.clock_of(ma), clock_test.clock_of(mb), clock_test.clock_of(mc));
    END LOOP;
END $$;
CREATE VIEW singles AS
    SELECT ma AS model, a AS clock FROM triples UNION ALL SELECT mb, b FROM triples UNION ALL SELECT mc, c FROM triples;
ANALYZE triples;

-- enough of each kind to mean something
SELECT model_compare(ma, mb) AS "order", count(*) > 100 AS enough FROM triples GROUP BY 1 ORDER BY 1;
SELECT count(*) > 100 AS enough_chains FROM triples WHERE model_compare(ma, mb) = 'before' AND model_compare(mb, mc) = 'before';

-- each count is of cases that break the law
SELECT
    count(*) FILTER (WHERE compare(a, b) IS DISTINCT FROM model_compare(ma, mb)) AS model,
    count(*) FILTER (WHERE compare(a, a) <> 'equal') AS reflexive,
    count(*) FILTER (WHERE (compare(a, b), compare(b, a)) NOT IN (('equal', 'equal'), ('concurrent', 'concurrent'),
        ('before', 'after'), ('after', 'before'))) AS antisymmetric,
    count(*) FILTER (WHERE a <@ b AND b <@ c AND NOT a <@ c) AS transitive,
    count(*) FILTER (WHERE happens_before(a, b) AND b <@ c AND NOT happens_before(a, c)) AS strictly_transitive
FROM triples;
SELECT
    count(*) FILTER (WHERE happens_before(a, b) <> (compare(a, b) = 'before')) AS happens_before,
    count(*) FILTER (WHERE concurrent(a, b) <> (compare(a, b) = 'concurrent')) AS concurrent,
    count(*) FILTER (WHERE (a <@ b) <> (compare(a, b) IN ('before', 'equal'))) AS contained,
    count(*) FILTER (WHERE (a @> b) <> (b <@ a)) AS contains,
    count(*) FILTER (WHERE (a = b) <> (compare(a, b) = 'equal')) AS eq,
    count(*) FILTER (WHERE (a <> b) = (a = b)) AS ne
FROM triples;
SELECT
    count(*) FILTER (WHERE merge(a, b) IS DISTINCT FROM clock_of(model_merge(ma, mb))) AS model,
    count(*) FILTER (WHERE merge(a, b) <> merge(b, a)) AS commutative,
    count(*) FILTER (WHERE merge(merge(a, b), c) <> merge(a, merge(b, c))) AS associative,
    count(*) FILTER (WHERE merge(a, a) <> a) AS idempotent,
    count(*) FILTER (WHERE merge(a, '{}') <> a OR merge('{}', a) <> a) AS neutral,
    count(*) FILTER (WHERE (a || b) <> merge(a, b)) AS operator
FROM triples;
SELECT
    count(*) FILTER (WHERE NOT (a <@ (a || b) AND b <@ (a || b))) AS upper_bound,
    count(*) FILTER (WHERE a <@ c AND b <@ c AND NOT (a || b) <@ c) AS least,
    count(*) FILTER (WHERE (a <@ b) <> ((a || b) = b)) AS order_and_merge_agree
FROM triples;
SELECT
    count(*) FILTER (WHERE clock::text::vclock IS DISTINCT FROM clock OR clock::text::vclock::text <> clock::text) AS text_round_trip,
    count(*) FILTER (WHERE max_counter(clock) IS DISTINCT FROM
        (SELECT nullif(max(m), 0) FROM unnest(model) AS m)) AS max_counter,
    count(*) FILTER (WHERE last_writer(clock) IS DISTINCT FROM
        (SELECT node FROM unnest(nodes(), model) AS e(node, m) WHERE m > 0 ORDER BY m DESC, node DESC LIMIT 1)) AS last_writer,
    count(*) FILTER (WHERE EXISTS (SELECT FROM unnest(nodes(), model) AS e(node, m)
        WHERE counter(clock, node) IS DISTINCT FROM nullif(m, 0))) AS counter
FROM singles;

-- equal if and only if the hashes are (64 bits; 32 may collide)
SELECT count(DISTINCT model) = count(DISTINCT clock::text) AS text,
    count(DISTINCT model) = count(DISTINCT vclock_hash_extended(clock, 42)) AS hash_extended,
    count(DISTINCT model) = count(DISTINCT (vclock_hash(clock), model)) AS hash,
    bool_and(vclock_hash_extended(clock, 0) & 4294967295 = vclock_hash(clock)::bigint & 4294967295) AS seed_0,
    count(DISTINCT vclock_hash(clock)) > 0.9 * count(DISTINCT model) AS spread
FROM singles;

-- binary round trip, through a file of the server
SELECT current_setting('data_directory') || '/repl_ml_clock_test.bin' AS file,
    format('cat >/dev/null; rm %L', current_setting('data_directory') || '/repl_ml_clock_test.bin') AS remove_file \gset
CREATE TABLE copied (LIKE triples);
COPY triples TO :'file' (FORMAT binary);
COPY copied FROM :'file' (FORMAT binary);
COPY (SELECT) TO PROGRAM :'remove_file';
SELECT count(*), count(*) FILTER (WHERE t.a::text = c.a::text AND t.b = c.b AND t.c = c.c) = count(*) AS same
FROM triples AS t JOIN copied AS c USING (id);
ANALYZE copied;

--
-- Hashing, and no sorting
--
SET enable_nestloop = off;
EXPLAIN (COSTS OFF) SELECT count(*) FROM triples AS t JOIN copied AS c ON t.a = c.a WHERE c.id <= 100;
SELECT count(*) = (SELECT count(*) FROM triples AS t JOIN copied AS c ON t.ma = c.ma) AS hash_join
FROM triples AS t JOIN copied AS c ON t.a = c.a;
RESET enable_nestloop;
SELECT (SELECT count(*) FROM (SELECT DISTINCT clock FROM singles) AS d) = count(DISTINCT model) AS distinct_clocks,
    (SELECT count(*) FROM (SELECT FROM singles GROUP BY clock) AS g) = count(DISTINCT model) AS groups FROM singles;

CREATE INDEX copied_a ON copied USING hash (a);
SET enable_seqscan = off;
SET enable_bitmapscan = off;
EXPLAIN (COSTS OFF) SELECT id FROM copied WHERE a = '{1:1}';
SELECT (SELECT count(*) FROM copied WHERE a = '{1:1}') = count(*) AS hash_index FROM triples WHERE ma = '{1,0,0,0,0,0}';
RESET enable_seqscan;
RESET enable_bitmapscan;

CREATE TABLE parted (clock vclock) PARTITION BY HASH (clock);
CREATE TABLE parted_0 PARTITION OF parted FOR VALUES WITH (MODULUS 2, REMAINDER 0);
CREATE TABLE parted_1 PARTITION OF parted FOR VALUES WITH (MODULUS 2, REMAINDER 1);
INSERT INTO parted SELECT clock FROM singles;
SELECT count(*), count(DISTINCT tableoid) FROM parted;

SELECT outcome('SELECT clock FROM clock_test.singles ORDER BY clock LIMIT 1');
SELECT outcome('CREATE INDEX ON clock_test.triples (a)');

--
-- Aggregate
--
SELECT merge_agg(clock) FROM (VALUES ('{1:5}'::vclock), (NULL), ('{2:3}'), ('{1:4,7:1}'), ('{}')) AS v(clock);
SELECT merge_agg(a) AS none FROM triples WHERE false;
SELECT merge_agg(NULL::vclock) AS only_null FROM triples;
SET max_parallel_workers_per_gather = 0;
SELECT merge_agg(a) AS serial FROM triples WHERE id % 100 = 1 \gset
SELECT :'serial'::vclock = clock_of(ARRAY(SELECT max(ma[n]) FROM triples, generate_subscripts(ma, 1) AS n
    WHERE id % 100 = 1 GROUP BY n ORDER BY n)) AS serial;
SET max_parallel_workers_per_gather = 2;
SET parallel_setup_cost = 0;
SET parallel_tuple_cost = 0;
SET min_parallel_table_scan_size = 0;
ALTER TABLE triples SET (parallel_workers = 2);
EXPLAIN (COSTS OFF) SELECT merge_agg(a) FROM triples WHERE id % 100 = 1;
SELECT merge_agg(a) = :'serial'::vclock AS parallel FROM triples WHERE id % 100 = 1;
EXPLAIN (COSTS OFF) SELECT count(*) FROM triples WHERE happens_before(a, b);
SELECT count(*) = (SELECT count(*) FROM copied WHERE model_compare(ma, mb) = 'before') AS parallel FROM triples WHERE happens_before(a, b);
RESET max_parallel_workers_per_gather;
RESET parallel_setup_cost;
RESET parallel_tuple_cost;
RESET min_parallel_table_scan_size;

--
-- What the catalogs say
--
SELECT oid::regprocedure AS function, provolatile = 'i' AS immutable, proisstrict AS strict, proparallel = 's' AS parallel_safe,
    obj_description(oid, 'pg_proc') IS NOT NULL AS has_comment, has_function_privilege('public', oid, 'execute') AS public
FROM pg_proc WHERE prosrc LIKE 'repl\_ml\_vclock\_%' OR oid = 'merge_agg(vclock)'::regprocedure
ORDER BY oid::regprocedure::text COLLATE "C";
SELECT oid::regoperator AS operator, oprcode, oprcom::regoperator AS commutator, oprnegate::regoperator AS negator,
    oprrest, oprjoin, oprcanhash, oprcanmerge, obj_description(oid, 'pg_operator') IS NOT NULL AS has_comment
FROM pg_operator WHERE 'vclock'::regtype IN (oprleft, oprright) ORDER BY oprname COLLATE "C", oprnamespace::regnamespace::text;
SELECT amname, opcname, opcdefault, obj_description(c.oid, 'pg_opclass') IS NOT NULL AS has_comment, amvalidate(c.oid)
FROM pg_opclass AS c JOIN pg_am AS a ON a.oid = opcmethod WHERE opcintype = 'vclock'::regtype ORDER BY amname;
SELECT typlen, typalign, typstorage, typreceive, typsend, obj_description(oid, 'pg_type') IS NOT NULL AS has_comment
FROM pg_type WHERE oid = 'vclock'::regtype;

DROP SCHEMA clock_test CASCADE;
