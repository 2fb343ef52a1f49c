-- Medians over the rounds; ratios are medians of the ratio within a round.

CREATE TEMP TABLE result (round int, place int, system text, clients int, p50 float8, p95 float8, p99 float8, tps float8, drain float8,
                          clients_cpu float8, senders_cpu float8, receivers_cpu float8, others_cpu float8);
\copy result from pstdin

CREATE FUNCTION pg_temp.median(float8[], digits int) RETURNS numeric LANGUAGE sql AS
$$ SELECT round((percentile_cont(0.5) WITHIN GROUP (ORDER BY v))::numeric, digits) FROM unnest($1) v $$;

\echo 'Latency in us, drain in ms, CPU in us a transaction: of the clients'' backends, the senders, the receivers and replayers of both peers, the rest'
SELECT system, clients, count(*) AS rounds, pg_temp.median(array_agg(p50), 0) AS p50, pg_temp.median(array_agg(p95), 0) AS p95,
       pg_temp.median(array_agg(p99), 0) AS p99, pg_temp.median(array_agg(tps), 0) AS tps, pg_temp.median(array_agg(drain), 0) AS drain,
       pg_temp.median(array_agg(clients_cpu), 0) AS backends, pg_temp.median(array_agg(senders_cpu), 0) AS senders,
       pg_temp.median(array_agg(receivers_cpu), 0) AS receivers, pg_temp.median(array_agg(others_cpu), 0) AS others
  FROM result GROUP BY clients, place, system ORDER BY clients, place;

-- what is compared, and how far it may be off; NULL for what has no goal
CREATE TEMP TABLE comparison (place int, system text, baseline text, measure text, limits float8[]);
INSERT INTO comparison VALUES
    (1, 'repl_ml quorum', 'physical', 'p50', '{1.25, NULL, 1.25}'), (2, 'repl_ml quorum', 'physical', 'tps', '{0.8, NULL, 0.8}'),
    (3, 'repl_ml quorum', 'logical on', 'p50', '{1, 1, 1}'), (4, 'repl_ml quorum', 'logical on', 'tps', '{1, 1, 1}'),
    (5, 'repl_ml one', 'logical async', 'p50', '{1.05, 1.05, 1.05}'), (6, 'repl_ml one', 'logical async', 'tps', '{0.95, 0.95, 0.95}'),
    (7, 'repl_ml all', 'physical', 'p50', NULL), (8, 'repl_ml all', 'physical', 'tps', NULL);

SELECT c.system, c.baseline, c.measure, clients, pg_temp.median(array_agg(ratio), 2) AS ratio,
       round(min(ratio)::numeric, 2) AS least, round(max(ratio)::numeric, 2) AS greatest,
       CASE measure WHEN 'p50' THEN 'at most ' ELSE 'at least ' END || wanted AS goal,
       CASE WHEN measure = 'p50' THEN pg_temp.median(array_agg(ratio), 2) <= wanted ELSE pg_temp.median(array_agg(ratio), 2) >= wanted END AS met
  FROM comparison c JOIN result s ON s.system = c.system JOIN result b USING (round, clients),
       LATERAL (SELECT CASE measure WHEN 'p50' THEN s.p50 / b.p50 ELSE s.tps / b.tps END) q (ratio),
       LATERAL (SELECT limits[CASE clients WHEN 1 THEN 1 WHEN 4 THEN 2 ELSE 3 END]) l (wanted)
 WHERE b.system = c.baseline
 GROUP BY c.place, c.system, c.baseline, c.measure, clients, wanted ORDER BY c.place, clients;
