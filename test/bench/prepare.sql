-- What all rounds share: the rows, and the measuring of statements.

CREATE SCHEMA bench;
CREATE TABLE bench.result (round int, step int, kind text, enrolled boolean, ns bigint, rows bigint);

-- rows of Feast's online store: 42 feature values an entity
CREATE TABLE bench.source AS
SELECT decode(lpad(to_hex(i / 42), 32, '0'), 'hex') AS entity_key, 'feature_' || i % 42 AS feature_name,
       decode(md5(i::text), 'hex') AS value, NULL::text AS value_text, NULL::bytea AS vector_value,
       now() AS event_ts, now() AS created_ts
  FROM generate_series(1, :rows) i;
COPY bench.source TO :'file';

CREATE FUNCTION bench.cpu() RETURNS bigint LANGUAGE sql VOLATILE AS
$$ SELECT split_part(pg_read_file('/proc/self/schedstat'), ' ', 1)::bigint $$;

-- CPU time of one statement
CREATE PROCEDURE bench.measure(round int, step int, kind text, enrolled boolean, statement text) LANGUAGE plpgsql AS $$
DECLARE
    before bigint;
    n bigint;
BEGIN
    CHECKPOINT;
    before := bench.cpu();
    EXECUTE statement;
    GET DIAGNOSTICS n = ROW_COUNT;
    INSERT INTO bench.result VALUES (round, step, kind, enrolled, bench.cpu() - before, n);
    COMMIT;
END
$$;

-- CPU time of statements of one row s, prepared, each in its own transaction
CREATE PROCEDURE bench.measure_each(round int, step int, kind text, enrolled boolean, statement text) LANGUAGE plpgsql AS $$
DECLARE
    ns bigint;
    n bigint;
BEGIN
    EXECUTE format($p$
        CREATE OR REPLACE PROCEDURE bench.one_by_one(n bigint, INOUT ns bigint) LANGUAGE plpgsql AS $b$
        DECLARE
            s bench.source;
        BEGIN
            ns := bench.cpu();
            FOR s IN SELECT * FROM bench.source LIMIT n LOOP
                %s;
                COMMIT;
            END LOOP;
            ns := bench.cpu() - ns;
        END $b$ $p$, statement);
    COMMIT;
    CHECKPOINT;
    SELECT count(*) / 5 INTO n FROM bench.source;
    CALL bench.one_by_one(n, ns);
    INSERT INTO bench.result VALUES (round, step, kind, enrolled, ns, n);
    COMMIT;
END
$$;

-- A pair of empty tables, one of them enrolled
CREATE PROCEDURE bench.make_pair(name text) LANGUAGE plpgsql AS $$
DECLARE
    t name;
BEGIN
    FOREACH t IN ARRAY ARRAY['plain_' || name, 'enrolled_' || name] LOOP
        EXECUTE format('CREATE TABLE bench.%I (entity_key bytea, feature_name text, value bytea, value_text text,'
            ' vector_value bytea, event_ts timestamptz, created_ts timestamptz, PRIMARY KEY (entity_key, feature_name))', t);
        EXECUTE format('CREATE INDEX ON bench.%I (entity_key)', t);
    END LOOP;
    PERFORM repl_ml.add_table(format('bench.%I', 'enrolled_' || name));
END
$$;

CREATE PROCEDURE bench.drop_pair(name text) LANGUAGE plpgsql AS $$
BEGIN
    PERFORM repl_ml.remove_table(format('bench.%I', 'enrolled_' || name));
    EXECUTE format('DROP TABLE bench.%I, bench.%I', 'plain_' || name, 'enrolled_' || name);
END
$$;
