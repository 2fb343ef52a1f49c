-- Median over the rounds of the ratio within a round, and of the CPU time a row.
SELECT p.kind AS statement, sum(p.rows) AS rows, count(*) AS rounds,
       round((percentile_cont(0.5) WITHIN GROUP (ORDER BY p.ns / p.rows) / 1000)::numeric, 2) AS "plain, us",
       round((percentile_cont(0.5) WITHIN GROUP (ORDER BY e.ns / e.rows) / 1000)::numeric, 2) AS "enrolled, us",
       round((percentile_cont(0.5) WITHIN GROUP (ORDER BY e.ns::float8 / p.ns))::numeric, 3) AS ratio,
       round(min(e.ns::numeric / p.ns), 3) AS least, round(max(e.ns::numeric / p.ns), 3) AS greatest
  FROM bench.result p JOIN bench.result e USING (round, step)
 WHERE NOT p.enrolled AND e.enrolled GROUP BY p.step, p.kind ORDER BY p.step;
