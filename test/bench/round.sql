-- One round of inserts and updates on new tables. Nothing is deleted here: see deletions.sql.

CALL bench.make_pair('copy');
CALL bench.make_pair('select');
CALL bench.make_pair('single');

SELECT format('CALL bench.%s(%s, %s, %L, %L, %L)', procedure, round, step, kind, enrolled,
              format(statement, CASE WHEN enrolled THEN 'enrolled' ELSE 'plain' END))
  FROM (VALUES
    (1, 'measure', 'COPY', 'COPY bench.%s_copy FROM ' || quote_literal(:'file')),
    (2, 'measure', 'INSERT ... SELECT', 'INSERT INTO bench.%s_select SELECT * FROM bench.source'),
    (3, 'measure', 'UPDATE of all rows', 'UPDATE bench.%s_copy SET event_ts = now(), created_ts = now()'),
    (4, 'measure_each', 'INSERT of one row', 'INSERT INTO bench.%s_single VALUES (s.*)'),
    (5, 'measure_each', 'UPDATE of one row', 'UPDATE bench.%s_single t SET value = s.value, event_ts = now()'
                        ' WHERE t.entity_key = s.entity_key AND t.feature_name = s.feature_name'),
    (6, 'measure_each', 'upsert of one row', 'INSERT INTO bench.%s_single AS t VALUES (s.*) ON CONFLICT (entity_key, feature_name)'
                        ' DO UPDATE SET value = excluded.value, event_ts = excluded.event_ts')
  ) s (step, procedure, kind, statement), (VALUES (:round)) r (round), (VALUES (false), (true)) e (enrolled)
 ORDER BY step, enrolled = (round % 2 = 1)
\gexec

CALL bench.drop_pair('copy');
CALL bench.drop_pair('select');
CALL bench.drop_pair('single');
