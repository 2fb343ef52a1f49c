-- Tables of the demonstration, as two clients make them.

-- Feast's online store: one table a feature view, named "<project>_<feature view>".
CREATE TABLE IF NOT EXISTS "demo_driver_hourly_stats" (
    entity_key   bytea,
    feature_name text,
    value        bytea,
    value_text   text NULL,
    vector_value bytea NULL,
    event_ts     timestamptz,
    created_ts   timestamptz,
    PRIMARY KEY (entity_key, feature_name)
);
CREATE INDEX IF NOT EXISTS "demo_driver_hourly_stats_ek" ON "demo_driver_hourly_stats" (entity_key);

-- The model registry of MLflow 3.6: models, versions, tags and aliases.
CREATE TABLE registered_models (
    name character varying(256) NOT NULL,
    creation_time bigint,
    last_updated_time bigint,
    description character varying(5000),
    CONSTRAINT registered_model_pk PRIMARY KEY (name)
);
CREATE TABLE model_versions (
    name character varying(256) NOT NULL,
    version integer NOT NULL,
    creation_time bigint,
    last_updated_time bigint,
    description character varying(5000),
    user_id character varying(256),
    current_stage character varying(20),
    source character varying(500),
    run_id character varying(32),
    status character varying(20),
    status_message character varying(500),
    run_link character varying(500),
    storage_location character varying(500),
    CONSTRAINT model_version_pk PRIMARY KEY (name, version),
    CONSTRAINT model_versions_name_fkey FOREIGN KEY (name) REFERENCES registered_models(name) ON UPDATE CASCADE
);
CREATE TABLE model_version_tags (
    key character varying(250) NOT NULL,
    value text,
    name character varying(256) NOT NULL,
    version integer NOT NULL,
    CONSTRAINT model_version_tag_pk PRIMARY KEY (key, name, version),
    CONSTRAINT model_version_tags_name_version_fkey FOREIGN KEY (name, version) REFERENCES model_versions(name, version) ON UPDATE CASCADE
);
CREATE TABLE registered_model_aliases (
    alias character varying(256) NOT NULL,
    version integer NOT NULL,
    name character varying(256) NOT NULL,
    CONSTRAINT registered_model_alias_pk PRIMARY KEY (name, alias),
    CONSTRAINT registered_model_alias_name_fkey FOREIGN KEY (name) REFERENCES registered_models(name) ON UPDATE CASCADE ON DELETE CASCADE
);
