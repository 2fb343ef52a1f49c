/* repl_ml 1.0: installed by CREATE EXTENSION repl_ml */

-- complain if script is sourced in psql, rather than via CREATE EXTENSION
\echo Use "CREATE EXTENSION repl_ml" to load this file. \quit

COMMENT ON SCHEMA repl_ml IS 'active-active replication with row clocks';

--
-- Roles: shared by all databases of the server, so they may exist already
--
DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname OPERATOR(pg_catalog.=) 'repl_ml_admin') THEN
        CREATE ROLE repl_ml_admin NOLOGIN;
    END IF;
    IF NOT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname OPERATOR(pg_catalog.=) 'repl_ml_replication') THEN
        CREATE ROLE repl_ml_replication NOLOGIN REPLICATION;
    END IF;
    COMMENT ON ROLE repl_ml_admin IS 'operates repl_ml: sees all but connection strings, pauses and resumes applying, retries and discards parked changes, lets nodes into the group; forming groups and adding tables needs a superuser';
    COMMENT ON ROLE repl_ml_replication IS 'what the login role of repl_ml connection strings needs, beside LOGIN, REPLICATION and, for copies of definitions and rows, pg_read_all_data; it may not let a node into the group';
END
$$;

-- types can be named and views be looked up; each object guards itself
GRANT USAGE ON SCHEMA repl_ml TO PUBLIC;

