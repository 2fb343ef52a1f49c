-- 40 features of each entity.
INSERT INTO feature
SELECT i / 40, 'feature_' || i % 40, i, array_fill(i::float4, ARRAY[16]), now() FROM generate_series(0, :rows - 1) i;
