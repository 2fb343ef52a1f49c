-- Feast's online store: 42 feature values an entity; some have a text beside the value.
INSERT INTO demo_driver_hourly_stats
SELECT decode(lpad(to_hex(i / 42), 32, '0'), 'hex'), 'feature_' || i % 42, decode(md5(i::text), 'hex'),
       CASE WHEN i % 10 = 0 THEN md5(i::text) END, NULL, now(), now()
  FROM generate_series(1, :rows) i;
