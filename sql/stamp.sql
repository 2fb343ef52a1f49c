-- On one node: every way of writing an enrolled table leaves a clock above what it replaces, nothing
-- else about the table changes, and what would break the clocks is refused.

SELECT format('host=%s port=%s user=%s dbname=%s', split_part(current_setting('unix_socket_directories'), ', ', 1),
              current_setting('port'), current_user, current_database()) AS dsn \gset
SELECT repl_ml.create_group('g', 'n1', :'dsn');
CREATE SCHEMA stamp;
SET search_path = stamp, public;

-- the clocks and the tombstones since the last look
CREATE TABLE seen (id int PRIMARY KEY, clock repl_ml.vclock);
CREATE VIEW buried AS
SELECT table_name, key, repl_ml.merge_agg(__repl_clock) AS clock FROM repl_ml.tombstone WHERE schema_name = 'stamp' GROUP BY 1, 2;
CREATE FUNCTION look(OUT id int, OUT v text, OUT since text, OUT above_tombstone boolean, OUT nodes int) RETURNS SETOF record LANGUAGE plpgsql AS $$
BEGIN
    RETURN QUERY
    SELECT t.id, left(t.v, 20), coalesce(repl_ml.compare(t.__repl_clock, s.clock), 'new'),
           repl_ml.happens_before(b.clock, t.__repl_clock), array_length(string_to_array(t.__repl_clock::text, ','), 1)
      FROM t LEFT JOIN seen s USING (id) LEFT JOIN buried b ON b.table_name = 't' AND b.key = ARRAY[t.id::text] ORDER BY t.id;
    DELETE FROM seen;
    INSERT INTO seen SELECT t.id, t.__repl_clock FROM t;
END
$$;

CREATE TABLE t (id int PRIMARY KEY, v text);
INSERT INTO t VALUES (1, 'before'), (2, 'before');
SELECT pg_relation_filenode('t') AS file, xmin AS xid FROM t LIMIT 1 \gset
SELECT repl_ml.add_table('t');
SELECT pg_relation_filenode('t') = :file AS same_file, bool_and(xmin = :'xid') AS same_rows FROM t;
SELECT * FROM look();

-- writes of all kinds
INSERT INTO t VALUES (3, 'insert');
INSERT INTO t SELECT i, 'select' FROM generate_series(4, 5) i;
INSERT INTO t (id) VALUES (6) RETURNING id, v, repl_ml.last_writer(__repl_clock);
COPY t FROM stdin;
7	copy
\.
COPY t (v, id) FROM stdin;
copy	8
\.
WITH w AS (INSERT INTO t VALUES (9, 'cte') RETURNING *) SELECT count(*) FROM w;
SELECT * FROM look();
SELECT count(DISTINCT __repl_clock::text) FROM t WHERE id > 2;
UPDATE t SET v = 'update' WHERE id = 3;
UPDATE t SET v = v WHERE id = 4;
INSERT INTO t VALUES (5, 'x') ON CONFLICT (id) DO UPDATE SET v = 'upsert';
INSERT INTO t VALUES (6, 'x') ON CONFLICT DO NOTHING;
MERGE INTO t USING (VALUES (7, 'merge'), (10, 'merge')) AS s (id, v) ON t.id = s.id
 WHEN MATCHED THEN UPDATE SET v = s.v WHEN NOT MATCHED THEN INSERT VALUES (s.id, s.v);
BEGIN;
SAVEPOINT a;
UPDATE t SET v = 'rolled back' WHERE id = 8;
ROLLBACK TO a;
UPDATE t SET v = 'savepoint' WHERE id = 9;
COMMIT;
SELECT * FROM look();

-- a transaction's own writes are ordered too
BEGIN;
SELECT __repl_clock AS c FROM t WHERE id = 3 \gset c0
UPDATE t SET v = 'one' WHERE id = 3 RETURNING __repl_clock AS c \gset c1
UPDATE t SET v = 'two' WHERE id = 3 RETURNING __repl_clock AS c \gset c2
COMMIT;
SELECT repl_ml.happens_before(:'c0c', :'c1c'), repl_ml.happens_before(:'c1c', :'c2c');

-- an out-of-line value that is not changed is written again, next to the new clock
CREATE TABLE wide (id int PRIMARY KEY, n int, v text);
ALTER TABLE wide ALTER v SET STORAGE EXTERNAL;
SELECT repl_ml.add_table('wide');
INSERT INTO wide VALUES (1, 1, repeat('0123456789', 1000));
SELECT reltoastrelid::regclass AS toast FROM pg_class WHERE oid = 'wide'::regclass \gset
SELECT max(chunk_id) AS chunk FROM :toast \gset
UPDATE wide SET n = 2;
SELECT max(chunk_id) <> :chunk AS written_again, (SELECT length(v) FROM wide) FROM :toast;

-- deletions leave tombstones above the row, and a new row of the key is above them
SELECT __repl_clock AS deleted FROM t WHERE id = 1 \gset
DELETE FROM t WHERE id IN (1, 2);
SELECT key, repl_ml.happens_before(:'deleted', clock) AS above_row FROM buried WHERE key = '{1}';
INSERT INTO t VALUES (1, 'again');
COPY t FROM stdin;
2	again
\.
SELECT * FROM look() WHERE id <= 2;
BEGIN;
DELETE FROM t WHERE id = 1;
INSERT INTO t VALUES (1, 'same transaction');
COMMIT;
SELECT * FROM look() WHERE id <= 2;
WITH d AS (DELETE FROM t WHERE id = 2 RETURNING id) INSERT INTO t SELECT 20, 'moved' FROM d;
INSERT INTO t VALUES (2, 'once more');
SELECT * FROM look() WHERE id IN (1, 2, 20);

-- another key is a deletion and an insertion
UPDATE t SET id = 30 WHERE id = 3;
UPDATE t SET id = 3 WHERE id = 30;
UPDATE t SET id = id + 100 WHERE id >= 4 AND id <= 6;
UPDATE t SET id = id WHERE id = 7;
SELECT * FROM look();
SELECT key FROM buried WHERE table_name = 't' ORDER BY key[1]::int;

-- a rolled back deletion is none
BEGIN;
DELETE FROM t WHERE id = 7;
ROLLBACK;
SELECT count(*) FROM buried WHERE key = '{7}';

-- a cascade deletes and moves rows of other tables: each leaves its own tombstone
CREATE TABLE model (name text PRIMARY KEY);
CREATE TABLE version (name text REFERENCES model ON UPDATE CASCADE ON DELETE CASCADE, version int, PRIMARY KEY (name, version));
SELECT relation, status FROM repl_ml.add_all_tables('{stamp}') WHERE status = 'added';
INSERT INTO model VALUES ('m'), ('n');
INSERT INTO version VALUES ('m', 1), ('m', 2), ('n', 1);
UPDATE model SET name = 'k' WHERE name = 'm';
DELETE FROM model WHERE name = 'n';
SELECT name, version FROM version ORDER BY 1, 2;
SELECT table_name, key FROM buried WHERE table_name IN ('model', 'version') ORDER BY 1, 2;

-- TRUNCATE deletes every row
TRUNCATE t;
SELECT count(*) FROM buried WHERE table_name = 't';
SELECT count(*) FROM buried b WHERE table_name = 't' AND EXISTS (SELECT FROM seen s WHERE b.key = ARRAY[s.id::text] AND repl_ml.happens_before(s.clock, b.clock));
INSERT INTO t VALUES (1, 'after truncate');
SELECT * FROM look();
TRUNCATE model CASCADE;
SELECT table_name, key FROM buried WHERE table_name = 'version' AND key = '{k,1}';

-- keys whose text depends on settings are buried alike under all settings
CREATE TABLE keys (ts timestamptz, f float8, b bytea, n numeric, PRIMARY KEY (ts, f, b, n));
SELECT repl_ml.add_table('keys');
INSERT INTO keys VALUES ('2026-01-02 03:04:05.678+00', 0.1, '\x00ff', 1.50);
SET datestyle = 'German, DMY';
SET timezone = 'Asia/Kolkata';
SET extra_float_digits = -10;
SET bytea_output = 'escape';
DELETE FROM keys;
SELECT key FROM buried WHERE table_name = 'keys';
INSERT INTO keys VALUES ('2026-01-02 03:04:05.678+00', 0.1, '\x00ff', 1.5);
RESET ALL;
SET search_path = stamp, public;
SELECT repl_ml.happens_before(clock, __repl_clock) FROM buried, keys WHERE table_name = 'keys';

-- a clock of the user's own is not believed
INSERT INTO t (id, v, __repl_clock) VALUES (50, 'forged', '{1:36028797018963967,9:36028797018963967}'), (51, 'forged', '{}');
COPY t (id, v, __repl_clock) FROM stdin;
52	forged	{1:1}
53	forged	{65535:829000000000000}
\.
UPDATE t SET __repl_clock = '{7:36028797018963967}' WHERE id = 1;
INSERT INTO t VALUES (1, 'x') ON CONFLICT (id) DO UPDATE SET __repl_clock = '{8:36028797018963967}';
CREATE FUNCTION forge() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.__repl_clock := '{6:36028797018963967}'; RETURN NEW; END $$;
CREATE TRIGGER forge BEFORE INSERT OR UPDATE ON t FOR EACH ROW EXECUTE FUNCTION forge();
INSERT INTO t VALUES (54, 'forged by trigger');
UPDATE t SET v = 'by trigger' WHERE id = 51;
DROP TRIGGER forge ON t;
SELECT id, repl_ml.last_writer(__repl_clock) AS writer,
       repl_ml.max_counter(__repl_clock) < extract(epoch FROM clock_timestamp() - '2000-01-01 00:00:00+00') * 1000000 + 60000000 AS counter_of_now,
       __repl_clock::text ~ '^\{1:[0-9]+\}$' AS only_here
  FROM t ORDER BY id;
INSERT INTO t VALUES (55, NULL, NULL);

-- sequences of the session are left alone
CREATE TABLE numbered (id serial PRIMARY KEY, v text);
SELECT repl_ml.add_table('numbered');
INSERT INTO numbered (v) VALUES ('a');
INSERT INTO numbered (v) VALUES ('b'), ('c');
UPDATE numbered SET v = 'd';
DELETE FROM numbered WHERE id = 2;
SELECT lastval();

-- COPY without columns means the columns the user knows
COPY (SELECT id, v FROM numbered ORDER BY id) TO stdout;
COPY numbered TO stdout;
COPY numbered TO stdout WITH (FORMAT csv, HEADER);

-- the clock column and the table's name are not to be changed, nor the table to be dropped, in any way
SET client_min_messages = warning;
ALTER TABLE t DROP COLUMN __repl_clock;
ALTER TABLE t DROP COLUMN v, DROP COLUMN __repl_clock;
ALTER TABLE IF EXISTS stamp.t DROP COLUMN IF EXISTS __repl_clock CASCADE;
ALTER TABLE t ALTER COLUMN __repl_clock TYPE text;
ALTER TABLE t ALTER COLUMN __repl_clock DROP DEFAULT;
ALTER TABLE t ALTER COLUMN __repl_clock SET DEFAULT '{}';
ALTER TABLE t ALTER COLUMN __repl_clock DROP NOT NULL;
ALTER TABLE t RENAME COLUMN __repl_clock TO clock;
ALTER TABLE t RENAME TO u;
ALTER TABLE t SET SCHEMA public;
ALTER SCHEMA stamp RENAME TO stomp;
DROP TABLE t;
DROP TABLE seen, t CASCADE;
DROP SCHEMA stamp CASCADE;
DROP EXTENSION repl_ml CASCADE;
DROP TYPE repl_ml.vclock CASCADE;
ALTER PUBLICATION repl_ml DROP TABLE t;
DROP PUBLICATION repl_ml;
ALTER TABLE t DISABLE TRIGGER zz_repl_ml_update;
ALTER TABLE t DISABLE TRIGGER USER;
ALTER TABLE t DISABLE TRIGGER ALL;
ALTER TABLE t ENABLE REPLICA TRIGGER zz_repl_ml_update;
DROP TRIGGER zz_repl_ml_update ON t;
ALTER TRIGGER zz_repl_ml_update ON t RENAME TO something;
ALTER TABLE t SET UNLOGGED;
ALTER TABLE t ADD COLUMN w int DEFAULT 1;
ALTER TABLE t ALTER COLUMN w TYPE bigint;
ALTER TABLE t RENAME COLUMN w TO x;
ALTER TABLE t DROP COLUMN x;
VACUUM FULL t;
CLUSTER t USING t_pkey;
SELECT count(*), bool_and(repl_ml.last_writer(__repl_clock) = 1) FROM t;
SELECT count(*) FROM pg_trigger WHERE tgrelid = 't'::regclass AND tgenabled = 'A';

-- a copy of the table is another table
CREATE TABLE likeness (LIKE t INCLUDING ALL);
INSERT INTO likeness VALUES (1, 'x');
ALTER TABLE likeness DROP COLUMN __repl_clock;
ALTER TABLE likeness RENAME TO portrait;
DROP TABLE portrait;

-- what cannot be replicated is refused, with what to do
RESET client_min_messages;
CREATE TABLE keyless (id int);
CREATE UNLOGGED TABLE unlogged (id int PRIMARY KEY);
CREATE TEMP TABLE temporary (id int PRIMARY KEY);
CREATE VIEW view AS SELECT 1 AS id;
CREATE MATERIALIZED VIEW matview AS SELECT 1 AS id;
CREATE SEQUENCE sequence;
CREATE TABLE parted (id int PRIMARY KEY) PARTITION BY LIST (id);
CREATE TABLE parted_1 PARTITION OF parted FOR VALUES IN (1);
CREATE TABLE deferred (id int PRIMARY KEY DEFERRABLE INITIALLY DEFERRED);
CREATE TABLE parent (id int PRIMARY KEY);
CREATE TABLE child (PRIMARY KEY (id)) INHERITS (parent);
CREATE TABLE forced (id int PRIMARY KEY);
ALTER TABLE forced ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
CREATE TABLE foreign_clock (id int PRIMARY KEY, __repl_clock int);
CREATE FUNCTION refusal(relation regclass) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    hint text;
BEGIN
    PERFORM repl_ml.add_table(relation);
    RETURN 'none';
EXCEPTION WHEN OTHERS THEN
    GET STACKED DIAGNOSTICS hint = PG_EXCEPTION_HINT;
    RETURN format('%s: %s. %s', sqlstate, sqlerrm, hint);
END
$$;
SELECT refusal(r::regclass) FROM unnest('{keyless,unlogged,temporary,view,matview,sequence,parted_1,deferred,parent,child,forced,foreign_clock,t_pkey,
    pg_catalog.pg_class,information_schema.sql_features,repl_ml.member,repl_ml.tombstone}'::text[]) r;
SELECT relation, status, detail, hint FROM repl_ml.add_all_tables('{stamp}') WHERE status = 'skipped';
SELECT relname FROM pg_class JOIN pg_attribute ON attrelid = pg_class.oid
 WHERE relnamespace = 'stamp'::regnamespace AND attname = '__repl_clock' AND relkind IN ('r', 'p', 'f') ORDER BY 1;

-- removed, a table is what it was, with its rows
SELECT * FROM look();
SELECT repl_ml.remove_table('t');
SELECT * FROM t ORDER BY id;
SELECT count(*) FROM buried WHERE table_name = 't';
ALTER TABLE t RENAME TO u;
DROP TABLE u;

SELECT repl_ml.leave_group();
SET client_min_messages = warning;
DROP SCHEMA stamp CASCADE;
