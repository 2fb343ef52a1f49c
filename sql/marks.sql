--
-- Marks of a clock: text and binary form, damaged ones, and that nothing but these sees them.
--
-- Guards: measure_marks (clock.c) against reading past a damaged datum, repl_ml_marks_problem against
-- marks that have no meaning, and size_before_entries in first_entry: with that returning 0, order,
-- merge and equality below are wrong.
--
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS repl_ml;
CREATE SCHEMA marks_test;
SET search_path = marks_test, repl_ml;

-- what a query returns, or the error it ends with
CREATE FUNCTION outcome(query text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    result text;
    detail text;
BEGIN
    EXECUTE query INTO result;
    RETURN result;
EXCEPTION WHEN OTHERS THEN
    GET STACKED DIAGNOSTICS detail = PG_EXCEPTION_DETAIL;
    RETURN format('%s: %s', sqlstate, left(sqlerrm, 100)) || coalesce(nullif(' | ' || detail, ' | '), '');
END $$;
CREATE FUNCTION read_text(input text) RETURNS text LANGUAGE sql AS
$$ SELECT outcome(format('SELECT %L::repl_ml.vclock::text', input)) $$;

CREATE TABLE received (clock vclock);
CREATE FUNCTION read_binary(payload bytea) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    file bytea := '\x5047434f50590aff0d0a000000000000000000'::bytea || int2send(1::int2)
        || int4send(octet_length(payload)) || payload || int2send((-1)::int2);
    program text;
    detail text;
BEGIN
    SELECT format('printf %%b ''%s''', string_agg('\0' ||
            (byte >> 6)::text || ((byte >> 3) & 7)::text || (byte & 7)::text, '' ORDER BY i))
        INTO program
        FROM (SELECT i, get_byte(file, i) AS byte FROM generate_series(0, octet_length(file) - 1) AS i) AS bytes;
    TRUNCATE marks_test.received;
    EXECUTE format('COPY marks_test.received FROM PROGRAM %L (FORMAT binary)', program);
    RETURN (SELECT clock::text FROM marks_test.received);
EXCEPTION WHEN OTHERS THEN
    GET STACKED DIAGNOSTICS detail = PG_EXCEPTION_DETAIL;
    RETURN format('%s: %s', sqlstate, sqlerrm) || coalesce(nullif(' | ' || detail, ' | '), '');
END $$;

--
-- Text
--
SELECT input, read_text(input), read_text(input) = input AS same FROM (VALUES
    (1, '{1:829,3:830;0a1b2c3d=i1:829}'),
    (2, '{1:829,3:830;811c9dc5=c1:829=10,3:830=-2.5}'),
    (3, '{1:829,3:830;0a1b2c3d=i1:829;811c9dc5=c1:829=[10,0.5],3:830=[-2]}'),
    (4, '{1:829;00000000=c1:1=0;ffffffff=c1:829=[]}'),
    (5, '{1:829;00000000=c}'),
    (6, '{1:829;00000000=c;00000001=i1:5}'),
    (7, '{1:829;00000000=c1:5=123456789012345678901234567890.000000000000000000001}'),
    (8, E'{ 1:829 ; 0a1b2c3d = i 1 : 829 ;\n811c9dc5 = c 1 : 829 = 10.50 }')
) AS v(i, input) ORDER BY i;

SELECT input, read_text(input) FROM (VALUES
    -- malformed
    (1, '{1:829;}'), (2, '{;0a1b2c3d=i1:829}'), (3, '{1:829;0a1b2c3d}'), (4, '{1:829;0a1b2c3d=}'),
    (5, '{1:829;0a1b2c3d=i}'), (6, '{1:829;0a1b2c3d=x1:829}'), (7, '{1:829;0a1b2c3=i1:829}'),
    (8, '{1:829;0a1b2c3d4=i1:829}'), (9, '{1:829;0A1B2C3D=i1:829}'), (10, '{1:829;0a1b2c3d=i1}'),
    (11, '{1:829;0a1b2c3d=i1:829;}'), (12, '{1:829;0a1b2c3d=i1:829,2:1}'), (13, '{1:829;0a1b2c3d=c1:829}'),
    (14, '{1:829;0a1b2c3d=c1:829=}'), (15, '{1:829;0a1b2c3d=c1:829=x}'), (16, '{1:829;0a1b2c3d=c1:829=1,}'),
    (17, '{1:829;0a1b2c3d=i1:829'), (18, '{1:829;0a1b2c3d=i1:829}x'), (19, '{1:829,;0a1b2c3d=i1:829}'),
    (20, '{}; 0a1b2c3d=i1:829'),
    -- not in order, or twice
    (30, '{1:829;0a1b2c3d=i1:829;0a1b2c3c=i1:829}'), (31, '{1:829;0a1b2c3d=i1:829;0a1b2c3d=i1:829}'),
    (32, '{1:829,2:829;0a1b2c3d=c2:829=1,1:829=1}'), (33, '{1:829;0a1b2c3d=c1:829=1,1:828=1}'),
    -- writes that cannot be, or that the clock does not know
    (40, '{1:829;0a1b2c3d=i0:829}'), (41, '{1:829;0a1b2c3d=i1:0}'), (42, '{1:829;0a1b2c3d=i65537:829}'),
    (43, '{1:829;0a1b2c3d=i1:830}'), (44, '{1:829;0a1b2c3d=i2:1}'), (45, '{1:829;0a1b2c3d=c1:36028797018963968=1}'),
    -- numbers in other forms
    (50, '{1:829;0a1b2c3d=c1:829=01}'), (51, '{1:829;0a1b2c3d=c1:829=-0}'), (52, '{1:829;0a1b2c3d=c1:829=-0.00}'),
    (53, '{1:829;0a1b2c3d=c1:829=1.}'), (54, '{1:829;0a1b2c3d=c1:829=.5}'), (55, '{1:829;0a1b2c3d=c1:829=1e5}'),
    (56, '{1:829;0a1b2c3d=c1:829=NaN}'), (57, '{1:829;0a1b2c3d=c1:829=+1}'), (58, '{1:829;0a1b2c3d=c1:829=--1}'),
    (59, '{1:829;0a1b2c3d=c1:829=[1,]}'), (60, '{1:829;0a1b2c3d=c1:829=[,1]}'), (61, '{1:829;0a1b2c3d=c1:829=[1}'),
    (62, '{1:829;0a1b2c3d=c1:829=[1]2}'), (63, '{1:829;0a1b2c3d=c1:829=[[1]]}'), (64, '{1:829;0a1b2c3d=c1:829=1.2.3}')
) AS v(i, input) ORDER BY i;

-- as many nodes, marks and bytes as there may be, and more
CREATE FUNCTION long_clock(nodes int, marked int) RETURNS text LANGUAGE sql IMMUTABLE AS $$
    SELECT '{' || string_agg(node || ':' || 1000 + node, ',' ORDER BY node) || ';811c9dc5=c' ||
        (SELECT string_agg(node || ':5=' || node, ',' ORDER BY node) FROM generate_series(1, marked) AS node) || '}'
    FROM generate_series(1, nodes) AS node
$$;
SELECT read_text(long_clock(128, 128)) = long_clock(128, 128) AS nodes_128;
SELECT regexp_replace(read_text(long_clock(128, 129)), '"\{.* \|', '{...} |') AS nodes_129;
CREATE FUNCTION many_marks(n int) RETURNS text LANGUAGE sql IMMUTABLE AS $$
    SELECT '{1:829' || string_agg(format(';%s=i1:%s', lpad(to_hex(i), 8, '0'), i % 800 + 1), '' ORDER BY i) || '}' FROM generate_series(1, n) AS i
$$;
SELECT read_text(many_marks(1600)) = many_marks(1600) AS marks_1600;
SELECT regexp_replace(read_text(many_marks(1601)), '"\{.* \|', '{...} |') AS marks_1601;
SELECT read_text(format('{1:829;811c9dc5=c1:829=%s}', repeat('9', 1048557))) ~ '^\{1' AS bytes_1048576;
SELECT read_text(format('{1:829;811c9dc5=c1:829=%s}', repeat('9', 1048558))) AS bytes_1048577;

--
-- Binary
--
SELECT vclock_send('{1:5;811c9dc5=i1:4}'), vclock_send('{1:5;811c9dc5=c1:4=-2.5}');
CREATE FUNCTION marked(marks bytea) RETURNS bytea LANGUAGE sql IMMUTABLE AS
$$ SELECT int4send(1) || int4send(1) || int8send(829) || int4send(octet_length(marks)) || marks $$;
SELECT what, read_binary(payload) FROM (VALUES
    (1, 'independent', marked('\x811c9dc5'::bytea || '\x69' || '\x00010000000000033d')),
    (2, 'counter', marked('\x811c9dc5'::bytea || '\x63' || '\x01' || '\x00010000000000033d' || int4send(2) || '12')),
    (3, 'both', marked('\x00000000'::bytea || '\x63' || '\x00' || '\x00000001' || '\x69' || '\x000100000000000001')),
    (4, 'no marks', marked('')),
    (5, 'half a length', int4send(1) || int4send(1) || int8send(829) || '\x0000'),
    (6, 'length too great', int4send(1) || int4send(1) || int8send(829) || int4send(15) || '\x811c9dc5' || '\x69' || '\x00010000000000033d'),
    (7, 'length too small', int4send(1) || int4send(1) || int8send(829) || int4send(13) || '\x811c9dc5' || '\x69' || '\x00010000000000033d'),
    (8, 'negative length', int4send(1) || int4send(1) || int8send(829) || int4send(-1) || '\x811c9dc5'),
    (9, 'unknown kind', marked('\x811c9dc5'::bytea || '\x78' || '\x00010000000000033d')),
    (10, 'column cut', marked('\x811c9d')),
    (11, 'kind missing', marked('\x811c9dc5')),
    (12, 'entry cut', marked('\x811c9dc5'::bytea || '\x69' || '\x0001000000000003')),
    (13, 'a node too few', marked('\x811c9dc5'::bytea || '\x63' || '\x02' || '\x00010000000000033d' || int4send(2) || '12')),
    (14, 'too many nodes', marked('\x811c9dc5'::bytea || '\x63' || '\x81')),
    (15, 'sum cut', marked('\x811c9dc5'::bytea || '\x63' || '\x01' || '\x00010000000000033d' || int4send(3) || '12')),
    (16, 'huge sum', marked('\x811c9dc5'::bytea || '\x63' || '\x01' || '\x00010000000000033d' || int4send(-1) || '12')),
    (17, 'empty sum', marked('\x811c9dc5'::bytea || '\x63' || '\x01' || '\x00010000000000033d' || int4send(0))),
    (18, 'sum with a zero byte', marked('\x811c9dc5'::bytea || '\x63' || '\x01' || '\x00010000000000033d' || int4send(2) || '\x3100')),
    (19, 'sum that is none', marked('\x811c9dc5'::bytea || '\x63' || '\x01' || '\x00010000000000033d' || int4send(2) || 'x2')),
    (20, 'unknown write', marked('\x811c9dc5'::bytea || '\x69' || '\x00010000000000033e')),
    (21, 'columns not in order', marked('\x00000001'::bytea || '\x63' || '\x00' || '\x00000000' || '\x63' || '\x00')),
    (22, 'marks of no entry', int4send(0) || int4send(6) || '\x811c9dc5' || '\x63' || '\x00')
) AS v(i, what, payload) ORDER BY i;
SELECT read_binary(vclock_send(c::vclock)) = c AS round_trip FROM (VALUES
    ('{1:829,3:830;0a1b2c3d=i1:829;811c9dc5=c1:829=[10,0.5],3:830=[-2]}'), (long_clock(128, 128)), (many_marks(40))) AS v(c);

--
-- Stored forms: damaged ones are errors, toasted ones are not
--
CREATE CAST (bytea AS vclock) WITHOUT FUNCTION;
CREATE TABLE damaged (i int, what text, clock vclock);
INSERT INTO damaged VALUES
    (1, 'nothing but the sign', '\x0000'::bytea::vclock),
    (2, 'half a length', '\x00000000'::bytea::vclock),
    (3, 'length 0', '\x000000000000'::bytea::vclock),
    (4, 'length past the end', '\x00000000000f811c9dc56900010000000000033d'::bytea::vclock),
    (5, 'huge length', '\x0000ffffffff811c9dc56900010000000000033d00010000000000033d'::bytea::vclock),
    (6, 'entries cut', '\x00000000000e811c9dc56900010000000000033d000100'::bytea::vclock),
    (7, 'no entries', '\x00000000000e811c9dc56900010000000000033d'::bytea::vclock),
    (8, 'marks cut', '\x00000000000d811c9dc569000100000000000300010000000000033d'::bytea::vclock),
    (9, 'sum that is none', '\x000000000015811c9dc5630100010000000000033d00000002782d00010000000000033d'::bytea::vclock);
SELECT what, outcome(format('SELECT clock::text FROM marks_test.damaged WHERE i = %s', i)) FROM damaged ORDER BY i;
-- what looks at the entries only is not bothered by what the marks say
SELECT i, call, outcome(format('SELECT %s FROM marks_test.damaged WHERE i = %s', call, i))
FROM generate_series(3, 9, 3) AS i,
    unnest(ARRAY['repl_ml.vclock_send(clock)', 'repl_ml.compare(clock, ''{1:829}'')',
                 'repl_ml.compare(''{1:829}'', clock)', 'clock || ''{1:1}''', 'repl_ml.vclock_hash(clock) IS NULL', 'clock = clock',
                 'repl_ml.counter(clock, 1)', 'repl_ml.last_writer(clock)']) WITH ORDINALITY AS c(call, n)
ORDER BY i, n;
DROP CAST (bytea AS vclock);

CREATE TABLE stored (storage text, filler text, clock vclock);
ALTER TABLE stored ALTER COLUMN filler SET STORAGE PLAIN;
INSERT INTO stored VALUES ('main', repeat('x', 3000), long_clock(128, 128)::vclock), ('short', '', long_clock(2, 2)::vclock);
ALTER TABLE stored ALTER COLUMN clock SET STORAGE EXTERNAL;
INSERT INTO stored VALUES ('external', repeat('x', 3000), long_clock(128, 128)::vclock);
SELECT storage, clock::text = expected AS text, clock = expected::vclock AS equal, vclock_hash(clock) = vclock_hash(expected::vclock) AS hash,
    counter(clock, 1), max_counter(clock), last_writer(clock), (clock || '{5:2000}')::text ~ ';' AS marked
FROM stored, LATERAL (SELECT CASE storage WHEN 'short' THEN long_clock(2, 2) ELSE long_clock(128, 128) END) AS e(expected)
ORDER BY storage;

--
-- Order, merge and equality see the entries only; what they make has no marks
--
CREATE TABLE marked_clock (i int, clock vclock, plain vclock);
INSERT INTO marked_clock
SELECT i, c::vclock, regexp_replace(c, ';[^}]*', '')::vclock FROM (VALUES
    (1, '{1:829}'), (2, '{1:829;811c9dc5=c1:829=10}'), (3, '{1:829,2:900;811c9dc5=i1:829}'),
    (4, '{2:900;0a1b2c3d=c2:7=[1,2,3];811c9dc5=i2:8}'), (5, '{1:1000,2:900;811c9dc5=i2:900}'), (6, '{}')) AS v(i, c);
SELECT count(*) AS pairs,
    count(*) FILTER (WHERE compare(a.clock, b.clock) = compare(a.plain, b.plain)) AS compare,
    count(*) FILTER (WHERE happens_before(a.clock, b.clock) = happens_before(a.plain, b.plain)) AS happens_before,
    count(*) FILTER (WHERE concurrent(a.clock, b.clock) = concurrent(a.plain, b.plain)) AS concurrent,
    count(*) FILTER (WHERE (a.clock <@ b.clock) = (a.plain <@ b.plain) AND (a.clock @> b.clock) = (a.plain @> b.plain)) AS contained,
    count(*) FILTER (WHERE (a.clock = b.clock) = (a.plain = b.plain) AND (a.clock <> b.clock) = (a.plain <> b.plain)) AS eq,
    count(*) FILTER (WHERE (a.clock || b.clock)::text = (a.plain || b.plain)::text) AS merge
FROM marked_clock AS a, marked_clock AS b;
SELECT count(*) AS clocks,
    count(*) FILTER (WHERE vclock_hash(clock) = vclock_hash(plain)) AS hash,
    count(*) FILTER (WHERE vclock_hash_extended(clock, 42) = vclock_hash_extended(plain, 42)) AS hash_extended,
    count(*) FILTER (WHERE counter(clock, 1) IS NOT DISTINCT FROM counter(plain, 1)) AS counter,
    count(*) FILTER (WHERE max_counter(clock) IS NOT DISTINCT FROM max_counter(plain)) AS max_counter,
    count(*) FILTER (WHERE last_writer(clock) IS NOT DISTINCT FROM last_writer(plain)) AS last_writer,
    merge_agg(clock)
FROM marked_clock;
SELECT count(DISTINCT clock::text) AS texts, (SELECT count(*) FROM (SELECT FROM marked_clock GROUP BY clock) AS g) AS groups FROM marked_clock;
-- the bytes of a clock without marks are what they always were
SELECT i, pg_column_size(clock) AS size, pg_column_size(plain) AS plain_size FROM marked_clock ORDER BY i;

DROP SCHEMA marks_test CASCADE;
