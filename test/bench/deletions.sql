-- Last, because from its first deletion on an enrolled table looks for tombstones at every insert.

CALL bench.make_pair('deleted');
INSERT INTO bench.plain_deleted SELECT * FROM bench.source;
INSERT INTO bench.enrolled_deleted SELECT * FROM bench.source;

SELECT format('CALL bench.measure(%s, %s, %L, %L, %L)', round, 10 + step, kind, enrolled,
              format(statement, CASE WHEN enrolled THEN 'enrolled' ELSE 'plain' END))
  FROM (VALUES
    (1, 'DELETE of all rows', 'DELETE FROM bench.%s_deleted'),
    (2, 'COPY after deletions', 'COPY bench.%s_deleted FROM ' || quote_literal(:'file'))
  ) s (step, kind, statement), (VALUES (1), (2)) r (round), (VALUES (false), (true)) e (enrolled)
 ORDER BY round, step, enrolled = (round % 2 = 1)
\gexec
