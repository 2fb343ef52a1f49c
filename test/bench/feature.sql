-- The table that is written: Feast-like features, with a vector.
CREATE TABLE feature (entity bigint, name text, score float8, embedding float4[], event_ts timestamptz, PRIMARY KEY (entity, name));
