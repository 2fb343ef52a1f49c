-- Writes postgres_exporter.yml: psql -XqAt -f postgres_exporter.sql >postgres_exporter.yml, in a database with repl_ml.
SELECT '# Queries for prometheus-postgres-exporter (--extend.query-path); written by postgres_exporter.sql.';
SELECT E'\nrepl_ml_' || family || E':\n  query: >-\n    SELECT '
    || coalesce((SELECT string_agg(format('labels->>''%1$s'' AS "%1$s"', l), ', ' ORDER BY n) || ', ' FROM unnest(labels) WITH ORDINALITY u (l, n)), '')
    || string_agg(format('max(value) FILTER (WHERE metric = ''%1$s'') AS %1$s', metric), E',\n    ' ORDER BY metric)
    || E'\n    FROM repl_ml.metric_samples WHERE family = ''' || family || E''' GROUP BY labels\n  metrics:'
    || coalesce((SELECT string_agg(format(E'\n    - %1$s: {usage: LABEL, description: %1$s}', l), '' ORDER BY n) FROM unnest(labels) WITH ORDINALITY u (l, n)), '')
    || string_agg(format(E'\n    - %s: {usage: %s, description: "%s"}', metric, upper(type), help), '' ORDER BY metric)
  FROM repl_ml.metric_families GROUP BY family, labels ORDER BY family COLLATE "C";
