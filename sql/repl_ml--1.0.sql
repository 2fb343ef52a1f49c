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

--
-- The vector clock
--
-- The vector clock of a row: which write of every node its value knows of
CREATE TYPE repl_ml.vclock;

-- Text to clock
CREATE FUNCTION repl_ml.vclock_in(pg_catalog.cstring) RETURNS repl_ml.vclock
    AS 'MODULE_PATHNAME', 'repl_ml_vclock_in'
    LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION repl_ml.vclock_in(pg_catalog.cstring) IS
    'reads a vector clock from text such as {1:829000000000000,3:829000000000001}';

-- Clock to text
CREATE FUNCTION repl_ml.vclock_out(repl_ml.vclock) RETURNS pg_catalog.cstring
    AS 'MODULE_PATHNAME', 'repl_ml_vclock_out'
    LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION repl_ml.vclock_out(repl_ml.vclock) IS
    'writes a vector clock as text';

-- Binary protocol to clock
CREATE FUNCTION repl_ml.vclock_recv(pg_catalog.internal) RETURNS repl_ml.vclock
    AS 'MODULE_PATHNAME', 'repl_ml_vclock_recv'
    LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION repl_ml.vclock_recv(pg_catalog.internal) IS
    'reads a vector clock from the binary protocol';

-- Clock to binary protocol
CREATE FUNCTION repl_ml.vclock_send(repl_ml.vclock) RETURNS pg_catalog.bytea
    AS 'MODULE_PATHNAME', 'repl_ml_vclock_send'
    LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION repl_ml.vclock_send(repl_ml.vclock) IS
    'writes a vector clock for the binary protocol';

-- Nine bytes an entry and a one-byte header, mostly no marks; main keeps it in the row
CREATE TYPE repl_ml.vclock (
    INPUT = repl_ml.vclock_in,
    OUTPUT = repl_ml.vclock_out,
    RECEIVE = repl_ml.vclock_recv,
    SEND = repl_ml.vclock_send,
    INTERNALLENGTH = VARIABLE,
    ALIGNMENT = int4,
    STORAGE = main
);
COMMENT ON TYPE repl_ml.vclock IS
    'vector clock: for every node that wrote a value, the counter of its last write, as in {1:829,3:830}; behind semicolons, what the columns with the merge rules counter and independent need: the hash of the column''s name and each node''s share, as in 811c9dc5=c1:829=10,3:830=-2.5, or the write that last changed it, as in 0a1b2c3d=i1:829';

-- The order of two clocks as a word
CREATE FUNCTION repl_ml.compare(a repl_ml.vclock, b repl_ml.vclock) RETURNS pg_catalog.text
    AS 'MODULE_PATHNAME', 'repl_ml_vclock_compare'
    LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION repl_ml.compare(repl_ml.vclock, repl_ml.vclock) IS
    'how vector clock a stands to b: before, after, equal or concurrent';

-- Whether one clock is strictly before another
CREATE FUNCTION repl_ml.happens_before(a repl_ml.vclock, b repl_ml.vclock) RETURNS pg_catalog.bool
    AS 'MODULE_PATHNAME', 'repl_ml_vclock_happens_before'
    LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION repl_ml.happens_before(repl_ml.vclock, repl_ml.vclock) IS
    'whether vector clock a is strictly before b';

-- Whether two clocks make a conflict
CREATE FUNCTION repl_ml.concurrent(a repl_ml.vclock, b repl_ml.vclock) RETURNS pg_catalog.bool
    AS 'MODULE_PATHNAME', 'repl_ml_vclock_concurrent'
    LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION repl_ml.concurrent(repl_ml.vclock, repl_ml.vclock) IS
    'whether neither vector clock knows all that the other knows';

-- The least clock that knows all two others know
CREATE FUNCTION repl_ml.merge(a repl_ml.vclock, b repl_ml.vclock) RETURNS repl_ml.vclock
    AS 'MODULE_PATHNAME', 'repl_ml_vclock_merge'
    LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION repl_ml.merge(repl_ml.vclock, repl_ml.vclock) IS
    'the least vector clock that contains both a and b';

-- The counter of one node
CREATE FUNCTION repl_ml.counter(clock repl_ml.vclock, node pg_catalog.int4) RETURNS pg_catalog.int8
    AS 'MODULE_PATHNAME', 'repl_ml_vclock_counter'
    LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION repl_ml.counter(repl_ml.vclock, pg_catalog.int4) IS
    'the counter of a node in a vector clock; NULL if it does not have the node';

-- The greatest counter of all nodes
CREATE FUNCTION repl_ml.max_counter(clock repl_ml.vclock) RETURNS pg_catalog.int8
    AS 'MODULE_PATHNAME', 'repl_ml_vclock_max_counter'
    LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION repl_ml.max_counter(repl_ml.vclock) IS
    'the greatest counter in a vector clock; NULL if it is empty';

-- The node of the last write a clock knows of
CREATE FUNCTION repl_ml.last_writer(clock repl_ml.vclock) RETURNS pg_catalog.int4
    AS 'MODULE_PATHNAME', 'repl_ml_vclock_last_writer'
    LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION repl_ml.last_writer(repl_ml.vclock) IS
    'the node with the greatest counter in a vector clock, of equal ones the greatest node id; NULL if it is empty';

-- Function of <@
CREATE FUNCTION repl_ml.vclock_contained(a repl_ml.vclock, b repl_ml.vclock) RETURNS pg_catalog.bool
    AS 'MODULE_PATHNAME', 'repl_ml_vclock_contained'
    LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION repl_ml.vclock_contained(repl_ml.vclock, repl_ml.vclock) IS
    'implementation of the <@ operator';

-- Function of @>
CREATE FUNCTION repl_ml.vclock_contains(a repl_ml.vclock, b repl_ml.vclock) RETURNS pg_catalog.bool
    AS 'MODULE_PATHNAME', 'repl_ml_vclock_contains'
    LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION repl_ml.vclock_contains(repl_ml.vclock, repl_ml.vclock) IS
    'implementation of the @> operator';

-- Function of =
CREATE FUNCTION repl_ml.vclock_eq(a repl_ml.vclock, b repl_ml.vclock) RETURNS pg_catalog.bool
    AS 'MODULE_PATHNAME', 'repl_ml_vclock_eq'
    LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION repl_ml.vclock_eq(repl_ml.vclock, repl_ml.vclock) IS
    'implementation of the = operator';

-- Function of <>
CREATE FUNCTION repl_ml.vclock_ne(a repl_ml.vclock, b repl_ml.vclock) RETURNS pg_catalog.bool
    AS 'MODULE_PATHNAME', 'repl_ml_vclock_ne'
    LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION repl_ml.vclock_ne(repl_ml.vclock, repl_ml.vclock) IS
    'implementation of the <> operator';

-- Hash for joins, grouping and hash indexes
CREATE FUNCTION repl_ml.vclock_hash(clock repl_ml.vclock) RETURNS pg_catalog.int4
    AS 'MODULE_PATHNAME', 'repl_ml_vclock_hash'
    LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION repl_ml.vclock_hash(repl_ml.vclock) IS
    'hash of a vector clock';

-- Hash with a seed for hash partitioning
CREATE FUNCTION repl_ml.vclock_hash_extended(clock repl_ml.vclock, seed pg_catalog.int8) RETURNS pg_catalog.int8
    AS 'MODULE_PATHNAME', 'repl_ml_vclock_hash_extended'
    LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION repl_ml.vclock_hash_extended(repl_ml.vclock, pg_catalog.int8) IS
    'seeded hash of a vector clock';

-- Same clock.  In pg_catalog, as for any other type: rows are compared, and tables
-- joined, by clients who do not have repl_ml in their search path
CREATE OPERATOR pg_catalog.= (
    LEFTARG = repl_ml.vclock,
    RIGHTARG = repl_ml.vclock,
    FUNCTION = repl_ml.vclock_eq,
    COMMUTATOR = OPERATOR(pg_catalog.=),
    NEGATOR = OPERATOR(pg_catalog.<>),
    RESTRICT = pg_catalog.eqsel,
    JOIN = pg_catalog.eqjoinsel,
    HASHES,
    MERGES
);
COMMENT ON OPERATOR pg_catalog.= (repl_ml.vclock, repl_ml.vclock) IS
    'whether two vector clocks are equal';

-- Different clocks
CREATE OPERATOR pg_catalog.<> (
    LEFTARG = repl_ml.vclock,
    RIGHTARG = repl_ml.vclock,
    FUNCTION = repl_ml.vclock_ne,
    COMMUTATOR = OPERATOR(pg_catalog.<>),
    NEGATOR = OPERATOR(pg_catalog.=),
    RESTRICT = pg_catalog.neqsel,
    JOIN = pg_catalog.neqjoinsel
);
COMMENT ON OPERATOR pg_catalog.<> (repl_ml.vclock, repl_ml.vclock) IS
    'whether two vector clocks are different';

-- The same by the names they had first
CREATE OPERATOR repl_ml.= (
    LEFTARG = repl_ml.vclock,
    RIGHTARG = repl_ml.vclock,
    FUNCTION = repl_ml.vclock_eq,
    COMMUTATOR = OPERATOR(repl_ml.=),
    NEGATOR = OPERATOR(repl_ml.<>),
    RESTRICT = pg_catalog.eqsel,
    JOIN = pg_catalog.eqjoinsel
);
COMMENT ON OPERATOR repl_ml.= (repl_ml.vclock, repl_ml.vclock) IS
    'whether two vector clocks are equal';

CREATE OPERATOR repl_ml.<> (
    LEFTARG = repl_ml.vclock,
    RIGHTARG = repl_ml.vclock,
    FUNCTION = repl_ml.vclock_ne,
    COMMUTATOR = OPERATOR(repl_ml.<>),
    NEGATOR = OPERATOR(repl_ml.=),
    RESTRICT = pg_catalog.neqsel,
    JOIN = pg_catalog.neqjoinsel
);
COMMENT ON OPERATOR repl_ml.<> (repl_ml.vclock, repl_ml.vclock) IS
    'whether two vector clocks are different';

-- Before or equal
CREATE OPERATOR repl_ml.<@ (
    LEFTARG = repl_ml.vclock,
    RIGHTARG = repl_ml.vclock,
    FUNCTION = repl_ml.vclock_contained,
    COMMUTATOR = OPERATOR(repl_ml.@>),
    RESTRICT = pg_catalog.contsel,
    JOIN = pg_catalog.contjoinsel
);
COMMENT ON OPERATOR repl_ml.<@ (repl_ml.vclock, repl_ml.vclock) IS
    'whether the left vector clock is before the right one or equal to it';

-- After or equal
CREATE OPERATOR repl_ml.@> (
    LEFTARG = repl_ml.vclock,
    RIGHTARG = repl_ml.vclock,
    FUNCTION = repl_ml.vclock_contains,
    COMMUTATOR = OPERATOR(repl_ml.<@),
    RESTRICT = pg_catalog.contsel,
    JOIN = pg_catalog.contjoinsel
);
COMMENT ON OPERATOR repl_ml.@> (repl_ml.vclock, repl_ml.vclock) IS
    'whether the left vector clock is after the right one or equal to it';

-- Merge
CREATE OPERATOR repl_ml.|| (
    LEFTARG = repl_ml.vclock,
    RIGHTARG = repl_ml.vclock,
    FUNCTION = repl_ml.merge,
    COMMUTATOR = OPERATOR(repl_ml.||)
);
COMMENT ON OPERATOR repl_ml.|| (repl_ml.vclock, repl_ml.vclock) IS
    'the least vector clock that contains both';

-- An order for sorting only, by bytes: clocks as such have no total order
CREATE FUNCTION repl_ml.vclock_bytes_cmp(a repl_ml.vclock, b repl_ml.vclock) RETURNS pg_catalog.int4
    AS 'MODULE_PATHNAME', 'repl_ml_vclock_bytes_cmp'
    LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION repl_ml.vclock_bytes_cmp(repl_ml.vclock, repl_ml.vclock) IS
    'less, equal or greater in the order of the bytes, which says nothing of what happened before';

CREATE FUNCTION repl_ml.vclock_bytes_lt(a repl_ml.vclock, b repl_ml.vclock) RETURNS pg_catalog.bool
    AS 'MODULE_PATHNAME', 'repl_ml_vclock_bytes_lt'
    LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION repl_ml.vclock_bytes_lt(repl_ml.vclock, repl_ml.vclock) IS
    'implementation of the *< operator';
CREATE OPERATOR repl_ml.*< (
    LEFTARG = repl_ml.vclock,
    RIGHTARG = repl_ml.vclock,
    FUNCTION = repl_ml.vclock_bytes_lt,
    COMMUTATOR = OPERATOR(repl_ml.*>),
    NEGATOR = OPERATOR(repl_ml.*>=),
    RESTRICT = pg_catalog.scalarltsel,
    JOIN = pg_catalog.scalarltjoinsel
);
COMMENT ON OPERATOR repl_ml.*< (repl_ml.vclock, repl_ml.vclock) IS
    'whether the left vector clock is before the right one in the order of their bytes';

CREATE FUNCTION repl_ml.vclock_bytes_le(a repl_ml.vclock, b repl_ml.vclock) RETURNS pg_catalog.bool
    AS 'MODULE_PATHNAME', 'repl_ml_vclock_bytes_le'
    LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION repl_ml.vclock_bytes_le(repl_ml.vclock, repl_ml.vclock) IS
    'implementation of the *<= operator';
CREATE OPERATOR repl_ml.*<= (
    LEFTARG = repl_ml.vclock,
    RIGHTARG = repl_ml.vclock,
    FUNCTION = repl_ml.vclock_bytes_le,
    COMMUTATOR = OPERATOR(repl_ml.*>=),
    NEGATOR = OPERATOR(repl_ml.*>),
    RESTRICT = pg_catalog.scalarlesel,
    JOIN = pg_catalog.scalarlejoinsel
);
COMMENT ON OPERATOR repl_ml.*<= (repl_ml.vclock, repl_ml.vclock) IS
    'whether the left vector clock is before or at the right one in the order of their bytes';

CREATE FUNCTION repl_ml.vclock_bytes_ge(a repl_ml.vclock, b repl_ml.vclock) RETURNS pg_catalog.bool
    AS 'MODULE_PATHNAME', 'repl_ml_vclock_bytes_ge'
    LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION repl_ml.vclock_bytes_ge(repl_ml.vclock, repl_ml.vclock) IS
    'implementation of the *>= operator';
CREATE OPERATOR repl_ml.*>= (
    LEFTARG = repl_ml.vclock,
    RIGHTARG = repl_ml.vclock,
    FUNCTION = repl_ml.vclock_bytes_ge,
    COMMUTATOR = OPERATOR(repl_ml.*<=),
    NEGATOR = OPERATOR(repl_ml.*<),
    RESTRICT = pg_catalog.scalargesel,
    JOIN = pg_catalog.scalargejoinsel
);
COMMENT ON OPERATOR repl_ml.*>= (repl_ml.vclock, repl_ml.vclock) IS
    'whether the left vector clock is after or at the right one in the order of their bytes';

CREATE FUNCTION repl_ml.vclock_bytes_gt(a repl_ml.vclock, b repl_ml.vclock) RETURNS pg_catalog.bool
    AS 'MODULE_PATHNAME', 'repl_ml_vclock_bytes_gt'
    LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION repl_ml.vclock_bytes_gt(repl_ml.vclock, repl_ml.vclock) IS
    'implementation of the *> operator';
CREATE OPERATOR repl_ml.*> (
    LEFTARG = repl_ml.vclock,
    RIGHTARG = repl_ml.vclock,
    FUNCTION = repl_ml.vclock_bytes_gt,
    COMMUTATOR = OPERATOR(repl_ml.*<),
    NEGATOR = OPERATOR(repl_ml.*<=),
    RESTRICT = pg_catalog.scalargtsel,
    JOIN = pg_catalog.scalargtjoinsel
);
COMMENT ON OPERATOR repl_ml.*> (repl_ml.vclock, repl_ml.vclock) IS
    'whether the left vector clock is after the right one in the order of their bytes';

-- Makes DISTINCT, merge joins and the comparison of whole rows work for clocks
CREATE OPERATOR FAMILY repl_ml.vclock_bytes_ops USING btree;
COMMENT ON OPERATOR FAMILY repl_ml.vclock_bytes_ops USING btree IS
    'sorting of vector clocks by their bytes';
CREATE OPERATOR CLASS repl_ml.vclock_bytes_ops
    DEFAULT FOR TYPE repl_ml.vclock USING btree FAMILY repl_ml.vclock_bytes_ops AS
        OPERATOR 1 repl_ml.*<,
        OPERATOR 2 repl_ml.*<=,
        OPERATOR 3 pg_catalog.=,
        OPERATOR 4 repl_ml.*>=,
        OPERATOR 5 repl_ml.*>,
        FUNCTION 1 repl_ml.vclock_bytes_cmp(repl_ml.vclock, repl_ml.vclock);
COMMENT ON OPERATOR CLASS repl_ml.vclock_bytes_ops USING btree IS
    'sorting of vector clocks by their bytes';

-- Operators of hash indexes
CREATE OPERATOR FAMILY repl_ml.vclock_hash_ops USING hash;
COMMENT ON OPERATOR FAMILY repl_ml.vclock_hash_ops USING hash IS
    'hashing of vector clocks';

-- Makes hash joins, GROUP BY, DISTINCT and hash partitions work for clocks
CREATE OPERATOR CLASS repl_ml.vclock_hash_ops
    DEFAULT FOR TYPE repl_ml.vclock USING hash FAMILY repl_ml.vclock_hash_ops AS
        OPERATOR 1 pg_catalog.=,
        FUNCTION 1 repl_ml.vclock_hash(repl_ml.vclock),
        FUNCTION 2 repl_ml.vclock_hash_extended(repl_ml.vclock, pg_catalog.int8);
COMMENT ON OPERATOR CLASS repl_ml.vclock_hash_ops USING hash IS
    'hashing of vector clocks';

-- The least clock that contains all of many clocks
CREATE AGGREGATE repl_ml.merge_agg(repl_ml.vclock) (
    SFUNC = repl_ml.merge,
    STYPE = repl_ml.vclock,
    COMBINEFUNC = repl_ml.merge,
    PARALLEL = SAFE
);
COMMENT ON AGGREGATE repl_ml.merge_agg(repl_ml.vclock) IS
    'the least vector clock that contains all; NULL if there are none';

--
-- The clock column's default and triggers
--

-- What an inserted row gets: STABLE for COPY's sake, evaluated once a row
CREATE FUNCTION repl_ml.tick() RETURNS repl_ml.vclock
    AS 'MODULE_PATHNAME', 'repl_ml_tick'
    LANGUAGE C STABLE STRICT PARALLEL RESTRICTED;
COMMENT ON FUNCTION repl_ml.tick() IS
    'the clock of a row that is being inserted on this node; default of the column __repl_clock';

-- WHEN clause of the insert trigger
CREATE FUNCTION repl_ml.insert_pending(clock repl_ml.vclock, relation pg_catalog.regclass) RETURNS pg_catalog.bool
    AS 'MODULE_PATHNAME', 'repl_ml_insert_pending'
    LANGUAGE C VOLATILE CALLED ON NULL INPUT PARALLEL RESTRICTED;
COMMENT ON FUNCTION repl_ml.insert_pending(repl_ml.vclock, pg_catalog.regclass) IS
    'whether a row just inserted needs another clock than its default gave it';

-- WHEN clause of the trigger for rows that got another key
CREATE FUNCTION repl_ml.moved_pending(clock repl_ml.vclock) RETURNS pg_catalog.bool
    AS 'MODULE_PATHNAME', 'repl_ml_moved_pending'
    LANGUAGE C VOLATILE STRICT PARALLEL RESTRICTED;
COMMENT ON FUNCTION repl_ml.moved_pending(repl_ml.vclock) IS
    'whether a row just updated has got another key, and needs a clock above the tombstones of that';

CREATE FUNCTION repl_ml.stamp_insert() RETURNS pg_catalog.trigger
    AS 'MODULE_PATHNAME', 'repl_ml_stamp_insert' LANGUAGE C;
COMMENT ON FUNCTION repl_ml.stamp_insert() IS 'trigger: lifts an inserted row''s clock above the tombstones of its key';
CREATE FUNCTION repl_ml.stamp_update() RETURNS pg_catalog.trigger
    AS 'MODULE_PATHNAME', 'repl_ml_stamp_update' LANGUAGE C;
COMMENT ON FUNCTION repl_ml.stamp_update() IS 'trigger: gives an updated row a clock above its former one';
CREATE FUNCTION repl_ml.stamp_moved() RETURNS pg_catalog.trigger
    AS 'MODULE_PATHNAME', 'repl_ml_stamp_moved' LANGUAGE C;
COMMENT ON FUNCTION repl_ml.stamp_moved() IS 'trigger: lifts the clock of a row that got another key above that key''s tombstones';
CREATE FUNCTION repl_ml.stamp_delete() RETURNS pg_catalog.trigger
    AS 'MODULE_PATHNAME', 'repl_ml_stamp_delete' LANGUAGE C;
COMMENT ON FUNCTION repl_ml.stamp_delete() IS 'trigger: leaves a tombstone for a deleted row';
CREATE FUNCTION repl_ml.stamp_truncate() RETURNS pg_catalog.trigger
    AS 'MODULE_PATHNAME', 'repl_ml_stamp_truncate' LANGUAGE C;
COMMENT ON FUNCTION repl_ml.stamp_truncate() IS 'trigger: leaves a tombstone for every row a TRUNCATE removes';

--
-- Tables. Not readable by others: DSNs may hold passwords, histories hold rows.
-- The first seven are replicated themselves; the rest is this node's own.
--

-- Members, for ever: a dropped one keeps its row, so ids are never reused
CREATE TABLE repl_ml.member (
    node_id           integer PRIMARY KEY CHECK (node_id BETWEEN 1 AND 65535),
    node_name         name NOT NULL,
    dsn               text NOT NULL,
    host              text,
    port              integer,
    dbname            text,
    system_identifier bigint NOT NULL,
    state             text NOT NULL CHECK (state IN ('joining', 'ready', 'dropped')),
    joined_at         timestamptz NOT NULL,
    incarnation       integer NOT NULL DEFAULT 1,
    __repl_clock      repl_ml.vclock NOT NULL DEFAULT repl_ml.tick()
);
COMMENT ON TABLE repl_ml.member IS 'members of the group, also former ones; see the view repl_ml.nodes';

-- Enrolled tables, known by name
CREATE TABLE repl_ml.replicated_table (
    schema_name  name NOT NULL,
    table_name   name NOT NULL,
    state        text NOT NULL CHECK (state IN ('enrolled', 'removed')),
    enrolled_by  integer NOT NULL,
    write_consistency text NOT NULL DEFAULT 'one' CHECK (write_consistency IN ('one', 'quorum', 'all')),
    __repl_clock repl_ml.vclock NOT NULL DEFAULT repl_ml.tick(),
    PRIMARY KEY (schema_name, table_name)
);
COMMENT ON TABLE repl_ml.replicated_table IS 'tables the group replicates, and the least consistency of transactions that write them; see repl_ml.add_table and repl_ml.set_table_consistency';
CREATE FUNCTION repl_ml.table_consistency_changed() RETURNS pg_catalog.trigger
    AS 'MODULE_PATHNAME', 'repl_ml_table_consistency_changed' LANGUAGE C;
COMMENT ON FUNCTION repl_ml.table_consistency_changed() IS 'trigger: makes every process read the tables'' consistency in repl_ml.replicated_table again';
CREATE TRIGGER table_consistency_changed AFTER INSERT OR UPDATE OR DELETE ON repl_ml.replicated_table
    FOR EACH ROW EXECUTE FUNCTION repl_ml.table_consistency_changed();
ALTER TABLE repl_ml.replicated_table ENABLE ALWAYS TRIGGER table_consistency_changed;

-- Each node's pulse: what it has issued and applied
CREATE TABLE repl_ml.heartbeat (
    node_id      integer PRIMARY KEY,
    sent_at      timestamptz NOT NULL,
    safe_counter bigint NOT NULL,
    applied      repl_ml.vclock NOT NULL,
    parked       boolean NOT NULL,
    lacks        text,
    behind       repl_ml.vclock NOT NULL DEFAULT '{}',
    __repl_clock repl_ml.vclock NOT NULL DEFAULT repl_ml.tick()
);
COMMENT ON TABLE repl_ml.heartbeat IS 'each node''s last heartbeat: every write of it below safe_counter came before; applied is what it had of the others; parked whether some of that is parked there, lacks of which tables it lacks rows that others could not send; behind how many microseconds its wall clock is behind that of others, at least';

-- Deleted rows; key_hash is local, everything else travels
CREATE TABLE repl_ml.tombstone (
    schema_name  name NOT NULL,
    table_name   name NOT NULL,
    key          text[] NOT NULL,
    key_columns  text[] NOT NULL,
    key_hash     bigint NOT NULL,
    deleted_at   timestamptz NOT NULL,
    eviction     jsonb,
    merged       boolean NOT NULL DEFAULT false,
    __repl_clock repl_ml.vclock NOT NULL
);
-- as all tables here that have no primary key: a publication FOR ALL TABLES has it, too, and would refuse deletions
ALTER TABLE repl_ml.tombstone REPLICA IDENTITY FULL;
CREATE INDEX tombstone_key_hash_idx ON repl_ml.tombstone (key_hash);
COMMENT ON TABLE repl_ml.tombstone IS 'deleted rows whose deletion may still have to win against a late version, by the key (names and types of its columns in key_columns) that they had; with eviction, the version with just this clock lost a unique key to the row that it names; with merged, it is this node''s resolution of several versions';

-- Which tombstones each node has removed: those at or below its floor
CREATE TABLE repl_ml.collection (
    node_id      integer PRIMARY KEY,
    floor        repl_ml.vclock NOT NULL,
    __repl_clock repl_ml.vclock NOT NULL DEFAULT repl_ml.tick()
);
COMMENT ON TABLE repl_ml.collection IS 'for each node the clock up to which it has removed tombstones: what it writes later cannot know of them and need not';

-- Rules for conflicts: only ever added to, so that every node knows which one was in force when
CREATE TABLE repl_ml.conflict_policy (
    id           uuid PRIMARY KEY DEFAULT pg_catalog.gen_random_uuid(),
    schema_name  name NOT NULL,
    table_name   name NOT NULL,
    column_name  name NOT NULL DEFAULT '',
    rule         text NOT NULL,
    arguments    text[] NOT NULL DEFAULT '{}',
    set_at       timestamptz NOT NULL DEFAULT pg_catalog.now(),
    __repl_clock repl_ml.vclock NOT NULL DEFAULT repl_ml.tick()
);
COMMENT ON TABLE repl_ml.conflict_policy IS 'how conflicts are resolved, each rule from its clock on: the resolver of a table''s rows (column_name empty) or the merge rule of a column; see the view repl_ml.conflict_policies';
CREATE FUNCTION repl_ml.conflict_policy_changed() RETURNS pg_catalog.trigger
    AS 'MODULE_PATHNAME', 'repl_ml_conflict_policy_changed' LANGUAGE C;
COMMENT ON FUNCTION repl_ml.conflict_policy_changed() IS 'trigger: makes every process read repl_ml.conflict_policy again, and resolves again what a rule comes late for';
CREATE TRIGGER conflict_policy_changed AFTER INSERT OR DELETE ON repl_ml.conflict_policy
    FOR EACH ROW EXECUTE FUNCTION repl_ml.conflict_policy_changed();
ALTER TABLE repl_ml.conflict_policy ENABLE ALWAYS TRIGGER conflict_policy_changed;

-- Who may become a member: by name, or by a secret whose hash is here
CREATE TABLE repl_ml.invitation (
    node_name    name PRIMARY KEY,
    secret_hash  bytea,
    valid_until  timestamptz NOT NULL,
    invited_by   name NOT NULL,
    __repl_clock repl_ml.vclock NOT NULL DEFAULT repl_ml.tick()
);
COMMENT ON TABLE repl_ml.invitation IS 'nodes that somebody with the right to do so has let in: whoever joins under this name until then or, with secret_hash, the one who also knows the secret';

-- What each member's tables are, told by itself; the row without names is about the database
CREATE TABLE repl_ml.table_shape (
    node_id      integer NOT NULL,
    schema_name  name NOT NULL,
    table_name   name NOT NULL,
    shape        jsonb,
    seen         text,
    __repl_clock repl_ml.vclock NOT NULL DEFAULT repl_ml.tick(),
    PRIMARY KEY (node_id, schema_name, table_name)
);
COMMENT ON TABLE repl_ml.table_shape IS 'what a replicated table is on each member: its columns, types, keys, constraints and partitions, each with a digit for their order, as text that is the same wherever they are the same; null where it is missing; and in seen the identities of all columns it has ever had';

-- Versions of one row of which none knows another: what the row was resolved from
CREATE TABLE repl_ml.concurrent_version (
    schema_name  name NOT NULL,
    table_name   name NOT NULL,
    key          text[] NOT NULL,
    key_columns  text[] NOT NULL,
    key_hash     bigint NOT NULL,
    content      text[],
    eviction     jsonb,
    __repl_clock repl_ml.vclock NOT NULL
);
ALTER TABLE repl_ml.concurrent_version REPLICA IDENTITY FULL;
CREATE INDEX concurrent_version_key_hash_idx ON repl_ml.concurrent_version (key_hash);
COMMENT ON TABLE repl_ml.concurrent_version IS 'concurrent versions of rows: names and values of the columns, null for a deletion or, with eviction, a version that lost a unique key; kept until no member can write without knowing them';

-- Evicted versions the group has not been told of yet
CREATE TABLE repl_ml.eviction (
    schema_name  name NOT NULL,
    table_name   name NOT NULL,
    key          text[] NOT NULL,
    key_columns  text[] NOT NULL,
    key_hash     bigint NOT NULL,
    eviction     jsonb NOT NULL,
    __repl_clock repl_ml.vclock NOT NULL
);
ALTER TABLE repl_ml.eviction REPLICA IDENTITY FULL;
COMMENT ON TABLE repl_ml.eviction IS 'versions that lost a unique key to another row and are about to be announced to the group';

-- Which columns keys have had that tombstones here may name: see src/row/shape.c
CREATE TABLE repl_ml.key_shape (
    schema_name  name NOT NULL,
    table_name   name NOT NULL,
    columns      text[] NOT NULL,
    attnums      smallint[] NOT NULL,
    in_use       boolean NOT NULL,
    PRIMARY KEY (schema_name, table_name, columns)
);
COMMENT ON TABLE repl_ml.key_shape IS 'the present and former keys of replicated tables, as names and types of their columns, which columns of the table those are or were, and whether there may be tombstones of that key';

-- Who this database is
CREATE TABLE repl_ml.local_node (
    node_id           integer PRIMARY KEY,
    node_name         name NOT NULL,
    group_name        name NOT NULL,
    group_id          uuid NOT NULL,
    state             text NOT NULL CHECK (state IN ('joining', 'copying', 'ready', 'dropped')),
    system_identifier bigint NOT NULL,
    timeline          bigint NOT NULL,
    database          oid NOT NULL,
    directory         text NOT NULL,
    donor             integer,
    copy_data         boolean NOT NULL DEFAULT true,
    incarnation       integer NOT NULL DEFAULT 1
);
CREATE UNIQUE INDEX local_node_singleton ON repl_ml.local_node ((true));
COMMENT ON TABLE repl_ml.local_node IS 'this node: its id and the place it lives in; incarnation: how often it has been found to be the same node in another place';

-- Of two places that ask at once to be one node, each member answers one
CREATE TABLE repl_ml.vouched (
    node_id    integer PRIMARY KEY,
    place      text NOT NULL,
    vouched_at timestamptz NOT NULL
);
COMMENT ON TABLE repl_ml.vouched IS 'for which place this node has last said that it may be a peer''s';

CREATE FUNCTION repl_ml.local_node_changed() RETURNS pg_catalog.trigger
    AS 'MODULE_PATHNAME', 'repl_ml_local_node_changed' LANGUAGE C;
COMMENT ON FUNCTION repl_ml.local_node_changed() IS 'trigger: makes every process read repl_ml.local_node again';
CREATE TRIGGER local_node_changed AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON repl_ml.local_node
    FOR EACH STATEMENT EXECUTE FUNCTION repl_ml.local_node_changed();
ALTER TABLE repl_ml.local_node ENABLE ALWAYS TRIGGER local_node_changed;

-- How far a dropped node had been applied here, and which peers have been compared with
CREATE TABLE repl_ml.dropped_node (
    node_id     integer PRIMARY KEY,
    applied_lsn pg_lsn NOT NULL,
    compared    integer[] NOT NULL DEFAULT '{}',
    acknowledged_lsn pg_lsn
);
COMMENT ON TABLE repl_ml.dropped_node IS 'nodes dropped from the group: how far this node had their changes, and the peers known to have no more of them, or copied from; and up to where a quorum, with them, had this node''s changes';

-- Transactions of others that somebody may ask about; commit_lsn is set when they are applied here
CREATE TABLE repl_ml.transaction_record (
    node_id     integer NOT NULL,
    xid         xid8 NOT NULL,
    level       text NOT NULL CHECK (level IN ('one', 'quorum', 'all')),
    commit_lsn  pg_lsn,
    recorded_at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
    PRIMARY KEY (node_id, xid)
);
CREATE INDEX transaction_record_recorded_at_idx ON repl_ml.transaction_record (recorded_at);
COMMENT ON TABLE repl_ml.transaction_record IS 'transactions of other nodes of which a client has a token, and prepared ones with a level above one: their level, and where their commit is in that node''s WAL once they are applied here; kept for two days';

-- Of transactions that came in a copy there is no record
CREATE TABLE repl_ml.record_floor (
    node_id     integer PRIMARY KEY,
    xid         xid8 NOT NULL
);
COMMENT ON TABLE repl_ml.record_floor IS 'up to which of a node''s transactions some may have come here in a copy of tables: that there is no transaction_record of one of them means nothing';

-- Tables to copy from a peer before or beside its stream
CREATE TABLE repl_ml.table_sync (
    node_id     integer NOT NULL,
    schema_name name NOT NULL,
    table_name  name NOT NULL,
    state       text NOT NULL DEFAULT 'pending' CHECK (state IN ('pending', 'copied')),
    rows        bigint,
    PRIMARY KEY (node_id, schema_name, table_name)
);
COMMENT ON TABLE repl_ml.table_sync IS 'copies of tables from a peer that are due or done';

-- What could not be done with a table here, and when it is tried again
CREATE TABLE repl_ml.table_failure (
    node_id     integer NOT NULL,
    schema_name name NOT NULL,
    table_name  name NOT NULL,
    action      text NOT NULL CHECK (action IN ('create', 'enrol', 'remove', 'copy')),
    failures    integer NOT NULL DEFAULT 1,
    failed_at   timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
    retry_at    timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp() + '1 s',
    sqlstate    text NOT NULL,
    message     text NOT NULL,
    detail      text,
    hint        text,
    PRIMARY KEY (node_id, schema_name, table_name)
);
COMMENT ON TABLE repl_ml.table_failure IS 'tables of the group that could not be created, enrolled or removed here, or be copied from a node, why, and when that is tried again; gone when it has worked';
-- Rows that a peer has and cannot send
CREATE TABLE repl_ml.unsent (
    node_id     integer NOT NULL,
    origin_xid  xid,
    origin_lsn  pg_lsn,
    schema_name name NOT NULL,
    table_name  name NOT NULL,
    key         text[] NOT NULL,
    clock       repl_ml.vclock,
    message     text NOT NULL,
    noted_at    timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
    tried_at    timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp()
);
ALTER TABLE repl_ml.unsent REPLICA IDENTITY FULL;
COMMENT ON TABLE repl_ml.unsent IS 'rows that this node lacks because a peer could not send them: in which transaction (null: in a copy of the table), the version if it is known, and when that was tried last';

-- One row a conflict: the same id and verdict on every node that saw it
CREATE TABLE repl_ml.conflict_history (
    conflict_id   uuid PRIMARY KEY,
    detected_at   timestamptz NOT NULL DEFAULT pg_catalog.now(),
    schema_name   name NOT NULL,
    table_name    name NOT NULL,
    key           text[] NOT NULL,
    conflict_type text NOT NULL,
    resolution    text NOT NULL,
    winner_node   integer NOT NULL,
    loser_node    integer NOT NULL,
    winner_clock  repl_ml.vclock NOT NULL,
    loser_clock   repl_ml.vclock NOT NULL,
    result_clock  repl_ml.vclock NOT NULL,
    winner_row    jsonb,
    loser_row     jsonb,
    lost_columns  name[],
    origin_node   integer NOT NULL,
    origin_xid    xid NOT NULL,
    origin_lsn    pg_lsn NOT NULL,
    origin_time   timestamptz
);
CREATE INDEX conflict_history_detected_at_idx ON repl_ml.conflict_history (detected_at);
COMMENT ON TABLE repl_ml.conflict_history IS 'resolved conflicts; see the view repl_ml.conflicts';

-- Changes that could not be applied: kept, never skipped
CREATE TABLE repl_ml.parked_change (
    id            bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    parked_at     timestamptz NOT NULL DEFAULT pg_catalog.now(),
    origin_node   integer NOT NULL,
    origin_xid    xid NOT NULL,
    origin_lsn    pg_lsn NOT NULL,
    schema_name   name NOT NULL,
    table_name    name NOT NULL,
    action        text NOT NULL,
    change        jsonb NOT NULL,
    sqlstate      text NOT NULL,
    message       text NOT NULL,
    detail        text,
    conflict_id   uuid UNIQUE,
    put_aside     boolean NOT NULL DEFAULT false,
    columns       jsonb
);
-- changes that are tried again go by table, in order
CREATE INDEX parked_change_table_idx ON repl_ml.parked_change (schema_name, table_name, id);
CREATE UNIQUE INDEX parked_change_counted_idx ON repl_ml.parked_change (origin_node, schema_name, table_name) WHERE action = 'counted';
CREATE INDEX parked_change_put_aside_idx ON repl_ml.parked_change (id) WHERE put_aside;
CREATE INDEX parked_change_origin_idx ON repl_ml.parked_change (origin_node, origin_lsn);
COMMENT ON TABLE repl_ml.parked_change IS 'changes that failed to apply here; see the view repl_ml.parked_changes';

-- Of these a part is lost here: this node does not count for them
CREATE TABLE repl_ml.discarded_transaction (
    node_id      integer NOT NULL,
    commit_lsn   pg_lsn NOT NULL,
    xid          xid NOT NULL,
    discarded_at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
    PRIMARY KEY (node_id, commit_lsn)
);
COMMENT ON TABLE repl_ml.discarded_transaction IS 'transactions of other nodes of which a parked change was discarded here, kept for two days: whoever asks what became of one must not be told that this node has it';

--
-- Internal helpers
--

-- What functions that change something do with NULL: a strict one would do nothing and not say so
CREATE FUNCTION repl_ml.refuse_nulls(arguments text, nulls integer) RETURNS void
    LANGUAGE plpgsql VOLATILE STRICT SET search_path = pg_catalog, pg_temp
    AS $$
    BEGIN
        IF nulls > 0 THEN
            RAISE EXCEPTION 'null is not allowed for the argument%', CASE WHEN arguments ~ ',' THEN 's ' ELSE ' ' END || arguments
                USING ERRCODE = 'null_value_not_allowed', HINT = 'Give each argument a value; to_regclass() gives null for a table that does not exist.';
        END IF;
    END
    $$;
COMMENT ON FUNCTION repl_ml.refuse_nulls(text, integer) IS 'raises an error if any of the named arguments of a function is null';

-- The place this database lives in
CREATE FUNCTION repl_ml.local_fingerprint(OUT system_identifier bigint, OUT timeline bigint, OUT database oid, OUT directory text)
    AS 'MODULE_PATHNAME', 'repl_ml_local_fingerprint' LANGUAGE C STABLE PARALLEL SAFE;
COMMENT ON FUNCTION repl_ml.local_fingerprint() IS 'what tells this data directory and database from a copy';

-- Raises an error where this database is not a member that may act
CREATE FUNCTION repl_ml.require_member(OUT node_id integer, OUT node_name name)
    AS 'MODULE_PATHNAME', 'repl_ml_require_member' LANGUAGE C STABLE PARALLEL RESTRICTED;
COMMENT ON FUNCTION repl_ml.require_member() IS 'this node''s id and name, or an error that says why it cannot act';

-- Connects and tells where a connection string leads; 08001 if nowhere
CREATE FUNCTION repl_ml.probe(dsn text, OUT system_identifier bigint, OUT database oid, OUT dbname text, OUT host text, OUT port integer, OUT server_version integer, OUT encoding text, OUT locale text)
    AS 'MODULE_PATHNAME', 'repl_ml_probe' LANGUAGE C VOLATILE STRICT;
COMMENT ON FUNCTION repl_ml.probe(text) IS 'where a connection string leads';

-- Whether the role of a connection string may let a node into the group it leads to
CREATE FUNCTION repl_ml.may_invite(dsn text) RETURNS boolean
    AS 'MODULE_PATHNAME', 'repl_ml_may_invite' LANGUAGE C VOLATILE STRICT;
COMMENT ON FUNCTION repl_ml.may_invite(text) IS 'whether the role of a connection string has the rights of repl_ml_admin on that server';

-- Keeps a password in a statement out of logs and views
CREATE FUNCTION repl_ml.hide_statement() RETURNS void
    AS 'MODULE_PATHNAME', 'repl_ml_hide_statement' LANGUAGE C VOLATILE STRICT;
COMMENT ON FUNCTION repl_ml.hide_statement() IS 'shows the client''s statement neither in pg_stat_activity nor with errors in the log';

-- Runs SQL on a peer
CREATE FUNCTION repl_ml.run_on_peer(dsn text, command text) RETURNS void
    AS 'MODULE_PATHNAME', 'repl_ml_run_on_peer' LANGUAGE C VOLATILE STRICT;
COMMENT ON FUNCTION repl_ml.run_on_peer(text, text) IS 'runs one command on a peer; its error is raised here';

-- Stops this database's workers until the end of the transaction
CREATE FUNCTION repl_ml.stop_workers() RETURNS void
    AS 'MODULE_PATHNAME', 'repl_ml_stop_workers' LANGUAGE C VOLATILE STRICT;
COMMENT ON FUNCTION repl_ml.stop_workers() IS 'stops the apply workers of this database until the transaction ends';

CREATE FUNCTION repl_ml.give_up_waits() RETURNS void
    AS 'MODULE_PATHNAME', 'repl_ml_give_up_waits' LANGUAGE C VOLATILE STRICT;
COMMENT ON FUNCTION repl_ml.give_up_waits() IS 'ends the waits of this database''s commits, which become errors 40003; later ones are refused until a supervisor runs';

-- Wakes the launcher and the supervisor
CREATE FUNCTION repl_ml.wake_workers() RETURNS void
    AS 'MODULE_PATHNAME', 'repl_ml_wake_workers' LANGUAGE C VOLATILE STRICT;
COMMENT ON FUNCTION repl_ml.wake_workers() IS 'makes the workers of this database look at the catalogs when the transaction commits';

-- The shared memory of the workers
CREATE FUNCTION repl_ml.worker_stats(
    OUT peer integer, OUT pid integer, OUT state text, OUT received_lsn pg_lsn, OUT applied_lsn pg_lsn, OUT peer_lsn pg_lsn,
    OUT applied_commit_time timestamptz, OUT last_message_time timestamptz, OUT start_time timestamptz,
    OUT transactions bigint, OUT changes bigint, OUT conflicts bigint, OUT equal_updates bigint, OUT equal_inserts bigint, OUT parked bigint, OUT retries bigint, OUT errors bigint,
    OUT copy_relation regclass, OUT copy_rows bigint,
    OUT error_time timestamptz, OUT error_sqlstate text, OUT error_message text, OUT error_hint text)
    RETURNS SETOF record
    AS 'MODULE_PATHNAME', 'repl_ml_worker_stats' LANGUAGE C VOLATILE STRICT PARALLEL RESTRICTED;
COMMENT ON FUNCTION repl_ml.worker_stats() IS 'state and counters of this database''s workers since server start; peer 0 is the supervisor';

-- The shared memory of commit/quorum.c
CREATE FUNCTION repl_ml.write_members(OUT node_id integer, OUT reachable boolean, OUT acknowledged_lsn pg_lsn, OUT silent_for interval)
    RETURNS SETOF record
    AS 'MODULE_PATHNAME', 'repl_ml_write_members' LANGUAGE C VOLATILE STRICT PARALLEL RESTRICTED ROWS 3;
COMMENT ON FUNCTION repl_ml.write_members() IS
    'the members that count for write consistency, as this node sees them: whether they are connected and have spoken within two heartbeats, and up to where they have what this node wrote; no row while this is not known, as on a node that is not ready';
CREATE FUNCTION repl_ml.write_waiters(OUT pid integer, OUT level text, OUT required integer, OUT waiting_since timestamptz, OUT lsn pg_lsn, OUT parked_on integer[])
    RETURNS SETOF record
    AS 'MODULE_PATHNAME', 'repl_ml_write_waiters' LANGUAGE C VOLATILE STRICT PARALLEL RESTRICTED ROWS 2;
COMMENT ON FUNCTION repl_ml.write_waiters() IS 'commits of this database that wait to be acknowledged; lsn is null when the wait begins just now, parked_on are the members that have parked something of it';
CREATE FUNCTION repl_ml.write_stats(OUT level text, OUT commits bigint, OUT refused bigint, OUT timeouts bigint, OUT cancelled bigint,
    OUT total_wait interval, OUT min_wait interval, OUT max_wait interval, OUT histogram_bounds interval[], OUT histogram bigint[], OUT stats_reset timestamptz, OUT parked bigint)
    RETURNS SETOF record
    AS 'MODULE_PATHNAME', 'repl_ml_write_stats' LANGUAGE C VOLATILE STRICT PARALLEL RESTRICTED ROWS 2;
COMMENT ON FUNCTION repl_ml.write_stats() IS 'what became of this database''s commits with write consistency quorum and all';

-- The origin and slot name that belong to a peer of this database
CREATE FUNCTION repl_ml.link_name(node_id integer) RETURNS text
    RETURN (SELECT pg_catalog.format('repl_ml_%s_%s', oid, node_id) FROM pg_catalog.pg_database WHERE datname OPERATOR(pg_catalog.=) pg_catalog.current_database());
COMMENT ON FUNCTION repl_ml.link_name(integer) IS 'name of the origin that tracks a peer here, and of the slot that peer reads from here';

-- What a peer asks before anything else
CREATE FUNCTION repl_ml.local_info(asked_by integer DEFAULT NULL,
    OUT version text, OUT group_id uuid, OUT group_name name, OUT node_id integer, OUT node_name name, OUT state text,
    OUT fenced boolean, OUT system_identifier bigint, OUT database oid, OUT flush_lsn pg_lsn, OUT asker_dropped boolean,
    OUT incarnation integer, OUT asker_incarnation integer)
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
    AS $$
    SELECT e.extversion, l.group_id, l.group_name, l.node_id, l.node_name, l.state,
           (l.system_identifier, l.timeline, l.database, l.directory) IS DISTINCT FROM
           (f.system_identifier, f.timeline, f.database, f.directory),
           f.system_identifier, f.database, pg_catalog.pg_current_wal_flush_lsn(),
           EXISTS (SELECT FROM repl_ml.member m WHERE m.node_id = asked_by AND m.state = 'dropped'),
           l.incarnation, (SELECT m.incarnation FROM repl_ml.member m WHERE m.node_id = asked_by)
      FROM pg_catalog.pg_extension e CROSS JOIN repl_ml.local_fingerprint() f LEFT JOIN repl_ml.local_node l ON true
     WHERE e.extname = 'repl_ml'
    $$;
COMMENT ON FUNCTION repl_ml.local_info(integer) IS 'who this node is: asked by peers';

-- How far this node has another one's WAL: applied, or put aside to be applied
CREATE FUNCTION repl_ml.received_lsn(of_node integer) RETURNS pg_lsn
    LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp
    AS $$
    SELECT coalesce((SELECT d.applied_lsn FROM repl_ml.dropped_node d WHERE d.node_id = of_node),
                    (SELECT pg_catalog.pg_replication_origin_progress(o.roname, true)
                       FROM pg_catalog.pg_replication_origin o
                      WHERE o.roname = repl_ml.link_name(of_node)), '0/0')
    $$;
COMMENT ON FUNCTION repl_ml.received_lsn(integer) IS 'up to which WAL position of a peer this node durably has everything, applied or put aside';

-- A table's rows, as a peer copies them, whether it may, and then those it does not get
CREATE FUNCTION repl_ml.require_copyable(relation regclass, columns name[]) RETURNS boolean
    AS 'MODULE_PATHNAME', 'repl_ml_require_copyable' LANGUAGE C VOLATILE STRICT;
COMMENT ON FUNCTION repl_ml.require_copyable(regclass, name[]) IS 'raises what keeps all of a table from being copied by the caller';
CREATE FUNCTION repl_ml.rows_to_copy(relation regclass, columns name[], of_schema name DEFAULT NULL, of_table name DEFAULT NULL) RETURNS SETOF text
    AS 'MODULE_PATHNAME', 'repl_ml_rows_to_copy' LANGUAGE C VOLATILE;
COMMENT ON FUNCTION repl_ml.rows_to_copy(regclass, name[], name, name) IS 'each row of a table that can be sent, as a line of COPY: what a peer copies';
CREATE FUNCTION repl_ml.rows_left_out() RETURNS TABLE (schema_name text, table_name text, key text, clock text, message text)
    AS 'MODULE_PATHNAME', 'repl_ml_rows_left_out' LANGUAGE C VOLATILE STRICT;
COMMENT ON FUNCTION repl_ml.rows_left_out() IS 'which rows the last rows_to_copy() of this session has left out, and why';

-- How far this node has applied another one's WAL
CREATE FUNCTION repl_ml.applied_lsn(of_node integer) RETURNS pg_lsn
    LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
    AS $$
    SELECT least(repl_ml.received_lsn(of_node),
                 (SELECT pg_catalog.min(p.origin_lsn) - 1 FROM repl_ml.parked_change p WHERE p.put_aside AND p.origin_node = of_node))
    $$;
COMMENT ON FUNCTION repl_ml.applied_lsn(integer) IS 'up to which WAL position of a peer this node has durably applied everything';

-- The last position of a dropped node applied here; NULL as long as it may still grow
CREATE FUNCTION repl_ml.final_lsn(of_node integer) RETURNS pg_lsn
    LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
    AS $$
    SELECT d.applied_lsn FROM repl_ml.dropped_node d WHERE d.node_id = of_node
       AND NOT EXISTS (SELECT FROM repl_ml.parked_change p WHERE p.put_aside AND p.origin_node = of_node)
    $$;
COMMENT ON FUNCTION repl_ml.final_lsn(integer) IS 'up to which WAL position of a dropped node this node had applied its changes; NULL before it has let go of it, and while some of it is put aside';

-- Which commits of a peer this node has by now, or never will have, of those it had parked something of
CREATE FUNCTION repl_ml.decided_commits(of_node integer, commits pg_lsn[]) RETURNS text
    LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
    AS $$
    SELECT coalesce(pg_catalog.array_agg(CASE WHEN d.node_id IS NULL THEN c::text ELSE '-' || c END), '{}')::text
      FROM pg_catalog.unnest(commits) c LEFT JOIN repl_ml.discarded_transaction d ON d.node_id = of_node AND d.commit_lsn = c
     WHERE d.node_id IS NOT NULL OR (c < repl_ml.received_lsn(of_node)
       AND NOT EXISTS (SELECT FROM repl_ml.parked_change p WHERE p.origin_node = of_node AND p.origin_lsn = c AND p.action NOT IN ('evicted', 'kept'))
       AND NOT EXISTS (SELECT FROM repl_ml.unsent u WHERE u.node_id = of_node AND u.origin_lsn = c))
    $$;
COMMENT ON FUNCTION repl_ml.decided_commits(integer, pg_lsn[]) IS 'of these commits of a peer those that are applied here, with nothing parked, and with a minus those of which something was discarded here: asked by that peer, which does not count this node for these and for what is not decided';

-- What became of a transaction of this node
CREATE FUNCTION repl_ml.local_transaction(xid xid8, OUT state text, OUT level text, OUT past boolean)
    AS 'MODULE_PATHNAME', 'repl_ml_local_transaction' LANGUAGE C VOLATILE STRICT;
COMMENT ON FUNCTION repl_ml.local_transaction(xid8) IS 'a transaction of this node: in progress, aborted, committed, acknowledged or unknown, and its level where that is known to be above one; past: it is of before this server started, and whether a member has parked it is known there only';

-- What this node knows of a transaction: asked by peers; null where this is not a node of the group
CREATE FUNCTION repl_ml.transaction_facts(group_id uuid, origin integer, xid xid8) RETURNS text
    LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
    AS $$
    SELECT pg_catalog.jsonb_build_object('node', l.node_id, 'state', t.state, 'level', coalesce(t.level, r.level), 'commit_lsn', r.commit_lsn,
               'past', coalesce(t.past, false),
               'lacks', EXISTS (SELECT FROM repl_ml.parked_change c WHERE c.origin_node = transaction_facts.origin AND c.origin_xid = transaction_facts.xid::xid
                                   AND NOT c.put_aside AND c.action NOT IN ('evicted', 'kept'))
                        OR EXISTS (SELECT FROM repl_ml.unsent c WHERE c.node_id = transaction_facts.origin AND c.origin_xid = transaction_facts.xid::xid)
                        OR EXISTS (SELECT FROM repl_ml.discarded_transaction c WHERE c.node_id = transaction_facts.origin AND c.xid = transaction_facts.xid::xid),
               -- what is put aside counts, as it did when the commit was acknowledged
               'applied_lsn', CASE WHEN p.pending THEN '0/0' ELSE repl_ml.received_lsn(transaction_facts.origin) END,
               'has', r.commit_lsn IS NOT NULL AND d.node_id IS NOT NULL AND NOT p.pending,
               'has_not', r.commit_lsn IS NULL AND d.node_id IS NOT NULL AND NOT p.pending AND (d.applied_lsn > '0/0' OR l.copy_data)
                          AND transaction_facts.xid >= coalesce(f.xid, '0'))::text
      FROM repl_ml.local_node l
      LEFT JOIN repl_ml.transaction_record r ON r.node_id = transaction_facts.origin AND r.xid = transaction_facts.xid
      LEFT JOIN repl_ml.record_floor f ON f.node_id = transaction_facts.origin
      LEFT JOIN repl_ml.dropped_node d ON d.node_id = transaction_facts.origin
      LEFT JOIN LATERAL repl_ml.local_transaction(transaction_facts.xid) t ON l.node_id = transaction_facts.origin
      -- of a dropped node any peer may have more
      CROSS JOIN LATERAL (SELECT EXISTS (SELECT FROM repl_ml.table_sync y WHERE y.state = 'pending'
                                            AND (y.node_id = transaction_facts.origin OR d.node_id IS NOT NULL)) AS pending) p
     WHERE l.group_id = transaction_facts.group_id AND l.state <> 'dropped' AND NOT (SELECT i.fenced FROM repl_ml.local_info() i)
    $$;
COMMENT ON FUNCTION repl_ml.transaction_facts(uuid, integer, xid8) IS 'what this node knows of a transaction of a node (as JSON): asked by peers. lacks: something of it is parked here or was discarded. has and has_not are of a dropped node, of which nothing more can come';

-- A joining node asks to be let in, over the connection string that a person has given it
CREATE FUNCTION repl_ml.admit_node(node_name name, secret text) RETURNS text
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
    AS $$
    DECLARE
        self record;
    BEGIN
        IF NOT EXISTS (SELECT FROM repl_ml.local_node) THEN
            RETURN NULL;
        END IF;
        SELECT * INTO self FROM repl_ml.require_member();
        -- whose session it is, not who owns this function
        IF pg_catalog.pg_has_role(session_user, 'repl_ml_admin', 'USAGE') THEN
            INSERT INTO repl_ml.invitation AS i (node_name, secret_hash, valid_until, invited_by)
            VALUES (admit_node.node_name, pg_catalog.sha256(pg_catalog.convert_to(secret, 'UTF8')), pg_catalog.clock_timestamp() + '10 min', session_user)
            ON CONFLICT ON CONSTRAINT invitation_pkey DO UPDATE SET secret_hash = excluded.secret_hash, valid_until = excluded.valid_until, invited_by = excluded.invited_by;
        ELSIF NOT EXISTS (SELECT FROM repl_ml.invitation i WHERE i.node_name = admit_node.node_name AND i.secret_hash IS NULL AND i.valid_until > pg_catalog.clock_timestamp()) THEN
            RAISE EXCEPTION 'role "%" may not add node "%" to the group', session_user, node_name USING ERRCODE = 'insufficient_privilege',
                HINT = pg_catalog.format('On node "%s" run SELECT repl_ml.invite_node(%L), or GRANT repl_ml_admin TO %I and join again.', self.node_name, node_name, session_user);
        END IF;
        RETURN (SELECT m.dsn FROM repl_ml.member m WHERE m.node_id = self.node_id);
    END
    $$;
COMMENT ON FUNCTION repl_ml.admit_node(name, text) IS
    'called on a member by a node that wants to join: invites it if the role of the session is a member of repl_ml_admin, otherwise it has to be invited already. Returns how members reach this node; null where this is not a member';

-- For persons: lets a node in whose connection string has no right to
CREATE FUNCTION repl_ml.invite_node(node_name name, valid_for interval DEFAULT '1 day') RETURNS void
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
    AS $$
    BEGIN
        PERFORM repl_ml.refuse_nulls('node_name, valid_for', pg_catalog.num_nulls(node_name, valid_for));
        PERFORM repl_ml.require_member();
        IF node_name = '' OR node_name ~ '[[:cntrl:]]' THEN
            RAISE EXCEPTION 'invalid node name %', pg_catalog.quote_literal(node_name) USING ERRCODE = 'invalid_parameter_value',
                HINT = 'A name is 1 to 63 bytes without control characters.';
        END IF;
        IF valid_for <= '0' THEN
            RAISE EXCEPTION 'valid_for must be positive' USING ERRCODE = 'invalid_parameter_value', HINT = 'For example: valid_for => ''1 day''.';
        END IF;
        IF EXISTS (SELECT FROM repl_ml.member m WHERE m.node_name = invite_node.node_name AND m.state <> 'dropped') THEN
            RAISE EXCEPTION 'node name "%" is already in use in the group', node_name USING ERRCODE = 'duplicate_object',
                HINT = pg_catalog.format('Choose another name, or remove the old node with SELECT repl_ml.drop_node(%L).', node_name);
        END IF;
        INSERT INTO repl_ml.invitation AS i (node_name, valid_until, invited_by)
        VALUES (invite_node.node_name, pg_catalog.clock_timestamp() + valid_for, session_user)
        ON CONFLICT ON CONSTRAINT invitation_pkey DO UPDATE SET secret_hash = NULL, valid_until = excluded.valid_until, invited_by = excluded.invited_by;
    END
    $$;
COMMENT ON FUNCTION repl_ml.invite_node(name, interval) IS
    'lets whoever joins under this name become a member until then, also over a connection string whose role is not in repl_ml_admin. Errors: 42710 name in use, 22023 bad argument, 55000 not a member';

-- A joining node puts itself on the members' lists
CREATE FUNCTION repl_ml.register_node(group_id uuid, node_id integer, node_name name, dsn text, host text, port integer,
                                      dbname text, system_identifier bigint, joined_at timestamptz, secret text DEFAULT NULL) RETURNS boolean
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
    AS $$
    BEGIN
        PERFORM repl_ml.hide_statement();
        PERFORM repl_ml.require_member();
        LOCK TABLE repl_ml.member IN SHARE ROW EXCLUSIVE MODE;
        IF NOT EXISTS (SELECT FROM repl_ml.local_node l WHERE l.group_id = register_node.group_id) THEN
            RAISE EXCEPTION 'this node belongs to another group' USING ERRCODE = 'object_not_in_prerequisite_state',
                HINT = 'Remove the other group first with SELECT repl_ml.leave_group().';
        END IF;
        -- the member that let it in may have told us of the node itself already
        IF EXISTS (SELECT FROM repl_ml.member m WHERE (m.node_id, m.node_name, m.joined_at) = (register_node.node_id, register_node.node_name, register_node.joined_at)) THEN
            RETURN true;
        END IF;
        IF EXISTS (SELECT FROM repl_ml.member m WHERE m.node_name = register_node.node_name
                      AND m.state <> 'dropped' AND m.node_id <> register_node.node_id) THEN
            RAISE EXCEPTION 'node name "%" is already in use in the group', node_name USING ERRCODE = 'duplicate_object',
                HINT = pg_catalog.format('Choose another name, or remove the old node with SELECT repl_ml.drop_node(%L).', node_name);
        END IF;
        IF EXISTS (SELECT FROM repl_ml.member m WHERE m.node_id = register_node.node_id
                      AND (m.node_name, m.joined_at) IS DISTINCT FROM (register_node.node_name, register_node.joined_at)) THEN
            RETURN false;
        END IF;
        IF NOT EXISTS (SELECT FROM repl_ml.invitation i WHERE i.node_name = register_node.node_name AND i.valid_until > pg_catalog.clock_timestamp()
                          AND (i.secret_hash IS NULL OR i.secret_hash = pg_catalog.sha256(pg_catalog.convert_to(secret, 'UTF8')))) THEN
            RETURN NULL;
        END IF;
        PERFORM repl_ml.require_setup((SELECT pg_catalog.count(*)::integer + 1 FROM repl_ml.member m
                                        WHERE m.state <> 'dropped' AND m.node_id <> register_node.node_id));
        INSERT INTO repl_ml.member (node_id, node_name, dsn, host, port, dbname, system_identifier, state, joined_at)
        VALUES (node_id, node_name, dsn, host, port, dbname, system_identifier, 'joining', joined_at)
        ON CONFLICT DO NOTHING;
        PERFORM repl_ml.wake_workers();
        RETURN true;
    END
    $$;
COMMENT ON FUNCTION repl_ml.register_node(uuid, integer, name, text, text, integer, text, bigint, timestamptz, text) IS
    'called on members by a joining node; false if the node id is taken, null if this member knows of no invitation (yet)';

-- May the place that asks be the node? Answers 'yes', or why not. Also where this node is fenced itself: all may have moved.
CREATE FUNCTION repl_ml.vouch_for(in_group uuid, node integer, incarnation integer, flush_lsn pg_lsn, last_heartbeat bigint, place text) RETURNS text
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
    AS $$
    DECLARE
        self repl_ml.local_node;
        known repl_ml.member;
        received pg_lsn := repl_ml.received_lsn(node);
        heard bigint := (SELECT h.safe_counter FROM repl_ml.heartbeat h WHERE h.node_id = node);
    BEGIN
        SELECT * INTO self FROM repl_ml.local_node l WHERE l.group_id = in_group AND l.state <> 'dropped';
        SELECT * INTO known FROM repl_ml.member m WHERE m.node_id = node AND m.state <> 'dropped';
        IF self.node_id IS NULL OR known.node_id IS NULL THEN
            RETURN pg_catalog.format('on %I node %s is not a member of its group', coalesce(self.node_name, pg_catalog.current_database()), node);
        ELSIF known.incarnation > vouch_for.incarnation THEN
            RETURN pg_catalog.format('node %I has heard of it in another place since', self.node_name);
        ELSIF EXISTS (SELECT FROM repl_ml.worker_stats() w WHERE w.peer = node AND w.state IN ('streaming', 'copying'))
           OR EXISTS (SELECT FROM pg_catalog.pg_replication_slots s WHERE s.slot_name = repl_ml.link_name(node) AND s.active) THEN
            RETURN pg_catalog.format('node %I is connected with another server that runs as node %I', self.node_name, known.node_name);
        ELSIF received > flush_lsn OR heard > last_heartbeat THEN
            RETURN pg_catalog.format('node %I has more of node %I than is here: this is an older state of it', self.node_name, known.node_name);
        END IF;
        INSERT INTO repl_ml.vouched AS v VALUES (node, place, pg_catalog.clock_timestamp())
        ON CONFLICT (node_id) DO UPDATE SET place = excluded.place, vouched_at = excluded.vouched_at
         WHERE v.place = excluded.place OR v.vouched_at < excluded.vouched_at - '1 min'::interval;
        RETURN CASE WHEN FOUND THEN 'yes' ELSE pg_catalog.format('node %I has been asked the same from another place within the last minute, and says yes to one only', self.node_name) END;
    END
    $$;
COMMENT ON FUNCTION repl_ml.vouch_for(uuid, integer, integer, pg_lsn, bigint, text) IS
    'called on members by a server that is fenced and says it is a node that has moved: yes, or what speaks against it';

-- Asks the other members whether this is the node it was, in another place. If more than half of all say so and none objects, it
-- is, under its next incarnation; else the reason is returned. The incarnation before is then fenced by the members.
CREATE FUNCTION repl_ml.claim_identity() RETURNS text
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
    AS $$
    DECLARE
        self repl_ml.local_node;
        here record;
        dsns text[];
        answers text[];
        agreed integer;
    BEGIN
        SELECT * INTO self FROM repl_ml.local_node FOR UPDATE;
        SELECT * INTO here FROM repl_ml.local_fingerprint();
        IF (here.system_identifier, here.database, here.timeline) IS DISTINCT FROM (self.system_identifier, self.database, self.timeline) THEN
            RETURN 'this is not the node''s data directory but made of it (by a promotion, a recovery to an earlier time, a dump or an upgrade)';
        END IF;
        dsns := ARRAY(SELECT m.dsn FROM repl_ml.member m WHERE m.node_id <> self.node_id AND m.state <> 'dropped' ORDER BY m.node_id);
        answers := repl_ml.ask_members(dsns, pg_catalog.format('SELECT repl_ml.vouch_for(%L, %s, %s, %L, %s, %L)',
            self.group_id, self.node_id, self.incarnation, pg_catalog.pg_current_wal_flush_lsn(),
            coalesce((SELECT h.safe_counter FROM repl_ml.heartbeat h WHERE h.node_id = self.node_id), 0),
            here.directory || ' ' || pg_catalog.pg_postmaster_start_time()));
        IF EXISTS (SELECT FROM pg_catalog.unnest(answers) a WHERE a <> 'yes') THEN
            RETURN (SELECT pg_catalog.string_agg(a, '; ') FROM pg_catalog.unnest(answers) a WHERE a <> 'yes');
        END IF;
        agreed := 1 + (SELECT pg_catalog.count(a) FROM pg_catalog.unnest(answers) a);
        IF 2 * agreed <= 1 + pg_catalog.cardinality(dsns) THEN
            RETURN pg_catalog.format('%s of %s members have answered, this one included, and it takes more than half', agreed, 1 + pg_catalog.cardinality(dsns));
        END IF;
        UPDATE repl_ml.local_node SET directory = here.directory, incarnation = self.incarnation + 1;
        UPDATE repl_ml.member SET incarnation = self.incarnation + 1 WHERE node_id = self.node_id;
        PERFORM repl_ml.wake_workers();
        RETURN NULL;
    END
    $$;
COMMENT ON FUNCTION repl_ml.claim_identity() IS 'makes this place that of the node if the other members agree: null, or why not';

CREATE FUNCTION repl_ml.confirm_identity() RETURNS void
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
    AS $$
    DECLARE
        reason text;
    BEGIN
        IF NOT EXISTS (SELECT FROM repl_ml.local_node) OR NOT (SELECT i.fenced FROM repl_ml.local_info() i) THEN
            PERFORM repl_ml.require_member();
            RETURN;
        END IF;
        reason := repl_ml.claim_identity();
        IF reason IS NOT NULL THEN
            RAISE EXCEPTION 'this server cannot be confirmed to be node "%"', (SELECT l.node_name FROM repl_ml.local_node l)
                USING ERRCODE = 'object_not_in_prerequisite_state', DETAIL = pg_catalog.upper(pg_catalog.left(reason, 1)) || pg_catalog.substr(reason, 2) || '.',
                HINT = CASE WHEN reason LIKE '%within the last minute%' THEN 'If the other place was a former one of this node, try again in a minute. If a server runs there, stop it, '
                            ELSE 'Stop the other server, or start the members that do not answer, and try again; ' END ||
                       'or run SELECT repl_ml.leave_group(force => true) here and join under a new node id.';
        END IF;
    END
    $$;
COMMENT ON FUNCTION repl_ml.confirm_identity() IS
    'says that this data directory is the node it was, moved and not copied: the other members are asked, and it is refused if one of them is connected with another server under that identity, or has more of the node than is here';

-- A leaving node, or one whose joining failed, takes itself off the lists
CREATE FUNCTION repl_ml.forget_node(group_id uuid, node_id integer, joined_at timestamptz DEFAULT NULL) RETURNS void
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
    AS $$
    BEGIN
        PERFORM repl_ml.require_member();
        IF NOT EXISTS (SELECT FROM repl_ml.local_node l WHERE l.group_id = forget_node.group_id) THEN
            RAISE EXCEPTION 'this node belongs to another group' USING ERRCODE = 'object_not_in_prerequisite_state';
        END IF;
        UPDATE repl_ml.member m SET state = 'dropped' WHERE m.node_id = forget_node.node_id AND m.state <> 'dropped'
           AND (forget_node.joined_at IS NULL OR m.joined_at = forget_node.joined_at);
        PERFORM repl_ml.wake_workers();
    END
    $$;
COMMENT ON FUNCTION repl_ml.forget_node(uuid, integer, timestamptz) IS 'called on members by a node that leaves, or whose joining failed';

-- The types that values of a table's columns consist of: of domains, arrays, composites and ranges the inner ones too
CREATE FUNCTION repl_ml.column_types(relation regclass, OUT attnum int2, OUT type_id oid)
    RETURNS SETOF record
    LANGUAGE sql STABLE STRICT SET search_path = pg_catalog, pg_temp
    AS $$
    WITH RECURSIVE y AS (
        SELECT a.attnum, a.atttypid AS type_id FROM pg_catalog.pg_attribute a
         WHERE a.attrelid = relation AND a.attnum > 0 AND NOT a.attisdropped AND a.attname <> '__repl_clock'
        UNION
        SELECT y.attnum, x.type_id
          FROM y JOIN pg_catalog.pg_type t ON t.oid = y.type_id
         CROSS JOIN LATERAL (SELECT t.typelem UNION ALL SELECT t.typbasetype
                             UNION ALL SELECT a.atttypid FROM pg_catalog.pg_attribute a WHERE t.typrelid <> 0 AND a.attrelid = t.typrelid AND a.attnum > 0 AND NOT a.attisdropped
                             UNION ALL SELECT r.rngsubtype FROM pg_catalog.pg_range r WHERE r.rngtypid = t.oid OR r.rngmultitypid = t.oid) x (type_id)
         WHERE x.type_id <> 0)
    SELECT y.attnum, y.type_id FROM y
    $$;
COMMENT ON FUNCTION repl_ml.column_types(regclass) IS 'the types a table''s columns have, and those these are made of';

-- Why a table cannot be enrolled; no row if it can
CREATE FUNCTION repl_ml.enrol_obstacle(relation regclass, OUT message text, OUT hint text)
    RETURNS SETOF record
    LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
    AS $$
    DECLARE
        c pg_catalog.pg_class;
        n name;
        i pg_catalog.pg_index;
        part regclass;
        r record;
    BEGIN
        SELECT * INTO c FROM pg_catalog.pg_class WHERE oid = relation;
        IF NOT FOUND THEN
            RETURN QUERY SELECT pg_catalog.format('table with OID %s does not exist', relation), 'Name the table.'::text;
            RETURN;
        END IF;
        n := c.relnamespace::pg_catalog.regnamespace;
        IF c.relkind NOT IN ('r', 'p') THEN
            RETURN QUERY SELECT pg_catalog.format('%s is not a table', relation), 'Only ordinary and partitioned tables can be replicated.'::text;
            RETURN;
        END IF;
        IF c.relpersistence <> 'p' THEN
            RETURN QUERY SELECT pg_catalog.format('table %s is %s', relation, CASE c.relpersistence WHEN 't' THEN 'temporary' ELSE 'unlogged' END),
                CASE c.relpersistence WHEN 't' THEN 'Temporary tables cannot be replicated.' ELSE pg_catalog.format('Run ALTER TABLE %s SET LOGGED.', relation) END;
            RETURN;
        END IF;
        IF n IN ('repl_ml', 'information_schema') OR n LIKE 'pg\_%' THEN
            RETURN QUERY SELECT pg_catalog.format('%s is a system table', relation), 'Only users'' tables can be replicated.'::text;
            RETURN;
        END IF;
        IF c.relispartition THEN
            RETURN QUERY SELECT pg_catalog.format('%s is a partition', relation),
                pg_catalog.format('Run SELECT repl_ml.add_table(%L): its partitions follow.', pg_catalog.pg_partition_root(relation));
            RETURN;
        END IF;
        IF EXISTS (SELECT FROM pg_catalog.pg_inherits h WHERE relation IN (h.inhrelid, h.inhparent)) AND c.relkind = 'r' THEN
            RETURN QUERY SELECT pg_catalog.format('table %s is part of an inheritance tree', relation), 'Use declarative partitioning instead of inheritance.'::text;
            RETURN;
        END IF;
        IF EXISTS (SELECT FROM pg_catalog.pg_partition_tree(relation) p JOIN pg_catalog.pg_class x ON x.oid = p.relid
                    WHERE NOT pg_catalog.pg_has_role(x.relowner, c.relowner, 'USAGE')) THEN
            RETURN QUERY SELECT pg_catalog.format('partition %s belongs to role %s, which does not have the rights of the owner of table %s', p.relid, x.relowner::regrole, relation),
                   pg_catalog.format('Run ALTER TABLE %s OWNER TO %s.', p.relid, c.relowner::regrole)
              FROM pg_catalog.pg_partition_tree(relation) p JOIN pg_catalog.pg_class x ON x.oid = p.relid
             WHERE NOT pg_catalog.pg_has_role(x.relowner, c.relowner, 'USAGE') LIMIT 1;
            RETURN;
        END IF;
        IF c.reloftype <> 0 THEN
            RETURN QUERY SELECT pg_catalog.format('table %s is of type %s and cannot have a column more', relation, c.reloftype::pg_catalog.regtype),
                pg_catalog.format('Run ALTER TABLE %s NOT OF.', relation);
            RETURN;
        END IF;
        FOR part IN SELECT p.relid FROM pg_catalog.pg_partition_tree(relation) p JOIN pg_catalog.pg_class x ON x.oid = p.relid
                     WHERE p.isleaf AND x.relpersistence = 'u' LOOP
            RETURN QUERY SELECT pg_catalog.format('partition %s of table %s is unlogged', part, relation),
                pg_catalog.format('Run ALTER TABLE %s SET LOGGED.', part);
            RETURN;
        END LOOP;
        IF c.relreplident = 'n' THEN
            RETURN QUERY SELECT pg_catalog.format('table %s has no replica identity', relation),
                pg_catalog.format('Run ALTER TABLE %s REPLICA IDENTITY DEFAULT.', relation);
            RETURN;
        END IF;
        IF c.relrowsecurity AND c.relforcerowsecurity THEN
            RETURN QUERY SELECT pg_catalog.format('row-level security is forced on table %s', relation),
                pg_catalog.format('Run ALTER TABLE %s NO FORCE ROW LEVEL SECURITY: changes are applied as the table''s owner.', relation);
            RETURN;
        END IF;
        SELECT * INTO i FROM pg_catalog.pg_index x WHERE x.indrelid = relation AND x.indisprimary;
        IF NOT FOUND THEN
            RETURN QUERY SELECT pg_catalog.format('table %s has no primary key', relation),
                pg_catalog.format('Run ALTER TABLE %s ADD PRIMARY KEY (...).', relation);
            RETURN;
        END IF;
        IF NOT i.indimmediate THEN
            RETURN QUERY SELECT pg_catalog.format('the primary key of table %s is deferrable', relation),
                'Make the primary key NOT DEFERRABLE.'::text;
            RETURN;
        END IF;
        IF EXISTS (SELECT FROM pg_catalog.pg_attribute a WHERE a.attrelid = relation AND a.attnum = ANY ((i.indkey::int2[])[0:i.indnkeyatts - 1]) AND a.attgenerated <> '') THEN
            RETURN QUERY SELECT pg_catalog.format('the primary key of table %s has a generated column', relation),
                pg_catalog.format('Run ALTER TABLE %s ADD PRIMARY KEY (...) with columns that are not generated.', relation);
            RETURN;
        END IF;
        IF EXISTS (SELECT FROM pg_catalog.pg_attribute a WHERE a.attrelid = relation AND a.attname = '__repl_clock' AND NOT a.attisdropped
                      AND a.atttypid <> 'repl_ml.vclock'::pg_catalog.regtype) THEN
            RETURN QUERY SELECT pg_catalog.format('table %s has a column "__repl_clock" of its own', relation),
                pg_catalog.format('Run ALTER TABLE %s RENAME COLUMN __repl_clock TO ....', relation);
            RETURN;
        END IF;
        -- its list is as long as the table had columns, so it cannot be created again with the clock
        FOR r IN SELECT w.rulename FROM pg_catalog.pg_rewrite w
                  WHERE w.ev_class = relation AND w.ev_type <> '1' AND w.is_instead AND w.ev_action::text ~ ':returningList \(' ORDER BY 1 LOOP
            RETURN QUERY SELECT pg_catalog.format('rule %I of table %s has a RETURNING list', r.rulename, relation),
                pg_catalog.format('Run DROP RULE %I ON %s, or create it without RETURNING; a view with an INSTEAD OF trigger can do the same.', r.rulename, relation);
            RETURN;
        END LOOP;
        -- rows that were there before it would break it on the other nodes
        FOR r IN SELECT k.conname, t.typname, k.contypid::pg_catalog.regtype AS domain, a.attname
                   FROM repl_ml.column_types(relation) y JOIN pg_catalog.pg_constraint k ON k.contypid = y.type_id AND NOT k.convalidated
                   JOIN pg_catalog.pg_type t ON t.oid = y.type_id
                   JOIN pg_catalog.pg_attribute a ON a.attrelid = relation AND a.attnum = y.attnum ORDER BY 1, 2 LOOP
            RETURN QUERY SELECT pg_catalog.format('constraint %I of domain %s, the type of column %I of table %s, is not valid', r.conname, r.domain, r.attname, relation),
                pg_catalog.format('Run ALTER DOMAIN %s VALIDATE CONSTRAINT %I.', r.domain, r.conname);
            RETURN;
        END LOOP;
        FOR r IN SELECT k.conname FROM pg_catalog.pg_constraint k WHERE k.conrelid = relation AND k.contype = 'n' AND NOT k.convalidated ORDER BY 1 LOOP
            RETURN QUERY SELECT pg_catalog.format('the NOT NULL constraint %I of table %s is not valid', r.conname, relation),
                pg_catalog.format('Run ALTER TABLE %s VALIDATE CONSTRAINT %I.', relation, r.conname);
            RETURN;
        END LOOP;
    END
    $$;
COMMENT ON FUNCTION repl_ml.enrol_obstacle(regclass) IS 'why a table cannot be replicated, and what to do; no row if it can';

-- What tombstones of a table's rows name as the columns of their key
CREATE FUNCTION repl_ml.key_columns(relation regclass) RETURNS text[]
    AS 'MODULE_PATHNAME', 'repl_ml_key_columns' LANGUAGE C STABLE STRICT;
COMMENT ON FUNCTION repl_ml.key_columns(regclass) IS 'name and type of each column of an enrolled table''s primary key; null if it has none';

-- Before the first deletion, which would have others wait
CREATE FUNCTION repl_ml.list_key(relation regclass) RETURNS void
    AS 'MODULE_PATHNAME', 'repl_ml_list_key' LANGUAGE C VOLATILE STRICT;
COMMENT ON FUNCTION repl_ml.list_key(regclass) IS 'puts the primary key of an enrolled table into repl_ml.key_shape';

-- Which columns its columns are, as security labels: see src/row/column.c
CREATE FUNCTION repl_ml.identify_columns(relation regclass) RETURNS void
    AS 'MODULE_PATHNAME', 'repl_ml_identify_columns' LANGUAGE C VOLATILE STRICT;
COMMENT ON FUNCTION repl_ml.identify_columns(regclass) IS 'gives each column of a table that has no identity a new one';
CREATE FUNCTION repl_ml.forget_columns(relation regclass) RETURNS void
    AS 'MODULE_PATHNAME', 'repl_ml_forget_columns' LANGUAGE C VOLATILE STRICT;
COMMENT ON FUNCTION repl_ml.forget_columns(regclass) IS 'takes the identities of a table''s columns away';
CREATE FUNCTION repl_ml.send_columns(relation regclass) RETURNS bytea
    AS 'MODULE_PATHNAME', 'repl_ml_send_columns' LANGUAGE C STABLE STRICT;
COMMENT ON FUNCTION repl_ml.send_columns(regclass) IS 'names, types and identities of a table''s columns, for a node that copies it';
CREATE FUNCTION repl_ml.agree_on_column(relation regclass, column_name name, ours text, theirs text) RETURNS boolean
    AS 'MODULE_PATHNAME', 'repl_ml_agree_on_column' LANGUAGE C VOLATILE STRICT;
COMMENT ON FUNCTION repl_ml.agree_on_column(regclass, name, text, text) IS 'gives a column also the identities it has on another node; false if its table is locked';
CREATE FUNCTION repl_ml.column_identity(relation regclass, column_name name) RETURNS text
    LANGUAGE sql STABLE STRICT SET search_path = pg_catalog, pg_temp
    AS $$
    SELECT s.label FROM pg_catalog.pg_attribute a
      JOIN pg_catalog.pg_seclabel s ON s.provider = 'repl_ml' AND s.classoid = 'pg_class'::regclass AND s.objoid = a.attrelid AND s.objsubid = a.attnum
     WHERE a.attrelid = relation AND a.attname = column_name AND NOT a.attisdropped
    $$;
COMMENT ON FUNCTION repl_ml.column_identity(regclass, name) IS 'the identities of a column, of __repl_clock all that columns of the table have ever had here; null if there are none';

-- What two nodes have added, each for itself, is one column as soon as one of them has heard of the other's; see repl_ml_column_is_same
CREATE FUNCTION repl_ml.agree_on_columns() RETURNS boolean
    LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp
    AS $$
    SELECT coalesce(pg_catalog.bool_and(repl_ml.agree_on_column(c.relation, a.attname, c.ours, c.theirs)), true)
      FROM repl_ml.local_node l
     CROSS JOIN LATERAL (SELECT s.shape, s.seen, r.oid::regclass AS relation, repl_ml.column_identity(r.oid, '__repl_clock') AS seen_here,
                                coalesce(o.shape, repl_ml.describe_table(r.oid)) AS shape_here
                           FROM repl_ml.table_shape s JOIN repl_ml.member m ON m.node_id = s.node_id AND m.state <> 'dropped'
                           JOIN pg_catalog.pg_namespace n ON n.nspname = s.schema_name
                           JOIN pg_catalog.pg_class r ON r.relnamespace = n.oid AND r.relname = s.table_name
                           LEFT JOIN repl_ml.table_shape o ON (o.node_id, o.schema_name, o.table_name) = (l.node_id, s.schema_name, s.table_name)
                          WHERE s.node_id <> l.node_id AND s.seen IS NOT NULL AND s.shape IS DISTINCT FROM o.shape) t
      JOIN pg_catalog.pg_attribute a ON a.attrelid = t.relation AND a.attnum > 0 AND NOT a.attisdropped AND a.attname <> '__repl_clock'
     CROSS JOIN LATERAL (SELECT t.relation, repl_ml.column_identity(t.relation, a.attname) AS ours, t.shape ->> pg_catalog.format('1identity of column %I', a.attname) AS theirs) c
     WHERE NOT pg_catalog.string_to_array(c.ours, ',') @> pg_catalog.string_to_array(c.theirs, ',')
       AND (pg_catalog.string_to_array(c.ours, ',') && pg_catalog.string_to_array(c.theirs, ',')
            OR NOT pg_catalog.string_to_array(c.theirs, ',') && pg_catalog.string_to_array(t.seen_here, ',')
           AND NOT pg_catalog.string_to_array(c.ours, ',') && pg_catalog.string_to_array(t.seen, ','))
       -- of one type
       AND t.shape ->> pg_catalog.format('1column %I', a.attname) = t.shape_here ->> pg_catalog.format('1column %I', a.attname)
    $$;
COMMENT ON FUNCTION repl_ml.agree_on_columns() IS 'joins the identities of columns that are the same here and on other members; false if a table was locked';

-- What a node that is copied from here has to get elsewhere
CREATE FUNCTION repl_ml.parked_tables(OUT origin_node integer, OUT origin_xid xid, OUT origin_lsn pg_lsn, OUT schema_name text, OUT table_name text) RETURNS SETOF record
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
    AS $$
    SELECT DISTINCT ON (p.origin_node, p.schema_name, p.table_name) p.origin_node, p.origin_xid, p.origin_lsn, p.schema_name::text, p.table_name::text
      FROM repl_ml.parked_change p WHERE p.action NOT IN ('evicted', 'kept')
     ORDER BY p.origin_node, p.schema_name, p.table_name, p.origin_lsn DESC
    $$;
COMMENT ON FUNCTION repl_ml.parked_tables() IS 'the tables of which changes are parked or put aside here, for each node they come from, with the last of its transactions';

-- A former key without tombstones need not be looked for any more
CREATE FUNCTION repl_ml.retire_key_shapes() RETURNS void
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
    AS $$
    BEGIN
        IF NOT EXISTS (SELECT FROM repl_ml.key_shape k WHERE k.in_use GROUP BY k.schema_name, k.table_name HAVING pg_catalog.count(*) > 1) THEN
            RETURN;
        END IF;
        LOCK TABLE repl_ml.key_shape IN SHARE ROW EXCLUSIVE MODE;
        UPDATE repl_ml.key_shape k SET in_use = false
          FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
         WHERE k.in_use AND n.nspname = k.schema_name AND c.relname = k.table_name AND k.columns <> repl_ml.key_columns(c.oid)
           AND NOT EXISTS (SELECT FROM repl_ml.tombstone t WHERE t.schema_name = k.schema_name AND t.table_name = k.table_name AND t.key_columns = k.columns);
    END
    $$;
COMMENT ON FUNCTION repl_ml.retire_key_shapes() IS 'marks former keys of which no tombstone is left';
CREATE FUNCTION repl_ml.key_shape_changed() RETURNS pg_catalog.trigger
    AS 'MODULE_PATHNAME', 'repl_ml_key_shape_changed' LANGUAGE C;
COMMENT ON FUNCTION repl_ml.key_shape_changed() IS 'trigger: makes every process read repl_ml.key_shape again';
CREATE TRIGGER key_shape_changed AFTER INSERT OR UPDATE OR DELETE ON repl_ml.key_shape
    FOR EACH STATEMENT EXECUTE FUNCTION repl_ml.key_shape_changed();
ALTER TABLE repl_ml.key_shape ENABLE ALWAYS TRIGGER key_shape_changed;

-- Makes a table of this database stamp and publish its rows; repeatable
CREATE FUNCTION repl_ml.enrol(relation regclass) RETURNS void
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp SET repl_ml.guard_off = on
    AS $$
    DECLARE
        obstacle record;
    BEGIN
        SELECT * INTO obstacle FROM repl_ml.enrol_obstacle(relation);
        IF FOUND THEN
            RAISE EXCEPTION '%', obstacle.message USING ERRCODE = 'object_not_in_prerequisite_state', HINT = obstacle.hint;
        END IF;
        -- whoever enrols it at the same time has it enrolled then
        IF NOT EXISTS (SELECT FROM pg_catalog.pg_attribute a WHERE a.attrelid = relation AND a.attname = '__repl_clock' AND NOT a.attisdropped) THEN
            EXECUTE pg_catalog.format('LOCK TABLE %s IN ACCESS EXCLUSIVE MODE', relation);
        END IF;
        IF NOT EXISTS (SELECT FROM pg_catalog.pg_attribute a WHERE a.attrelid = relation AND a.attname = '__repl_clock' AND NOT a.attisdropped) THEN
            -- a constant, so the table is not rewritten: what is there counts as written here now
            EXECUTE pg_catalog.format('ALTER TABLE %s ADD COLUMN __repl_clock repl_ml.vclock NOT NULL DEFAULT %L', relation, repl_ml.tick());
        END IF;
        EXECUTE pg_catalog.format('ALTER TABLE %s ALTER COLUMN __repl_clock SET DEFAULT repl_ml.tick()', relation);
        EXECUTE pg_catalog.format('COMMENT ON COLUMN %s.__repl_clock IS %L', relation, 'version of the row in the repl_ml group');
        PERFORM repl_ml.drop_triggers(relation);
        EXECUTE pg_catalog.format('CREATE TRIGGER _repl_ml_insert AFTER INSERT ON %s FOR EACH ROW WHEN (repl_ml.insert_pending(NEW.__repl_clock, %L::pg_catalog.regclass)) EXECUTE FUNCTION repl_ml.stamp_insert()', relation, relation::text);
        EXECUTE pg_catalog.format('CREATE TRIGGER zz_repl_ml_update BEFORE UPDATE ON %s FOR EACH ROW EXECUTE FUNCTION repl_ml.stamp_update()', relation);
        EXECUTE pg_catalog.format('CREATE TRIGGER _repl_ml_moved AFTER UPDATE ON %s FOR EACH ROW WHEN (repl_ml.moved_pending(NEW.__repl_clock)) EXECUTE FUNCTION repl_ml.stamp_moved()', relation);
        EXECUTE pg_catalog.format('CREATE TRIGGER zz_repl_ml_delete BEFORE DELETE ON %s FOR EACH ROW EXECUTE FUNCTION repl_ml.stamp_delete()', relation);
        EXECUTE pg_catalog.format('CREATE TRIGGER zz_repl_ml_truncate BEFORE TRUNCATE ON %s FOR EACH STATEMENT EXECUTE FUNCTION repl_ml.stamp_truncate()', relation);
        EXECUTE pg_catalog.format('ALTER TABLE %s ENABLE ALWAYS TRIGGER _repl_ml_insert, ENABLE ALWAYS TRIGGER zz_repl_ml_update, ENABLE ALWAYS TRIGGER _repl_ml_moved, ENABLE ALWAYS TRIGGER zz_repl_ml_delete, ENABLE ALWAYS TRIGGER zz_repl_ml_truncate', relation);
        IF NOT EXISTS (SELECT FROM pg_catalog.pg_publication_rel r JOIN pg_catalog.pg_publication p ON p.oid = r.prpubid
                        WHERE p.pubname = 'repl_ml' AND r.prrelid = relation) THEN
            EXECUTE pg_catalog.format('ALTER PUBLICATION repl_ml ADD TABLE %s', relation);
        END IF;
        EXECUTE pg_catalog.format('GRANT SELECT ON %s TO repl_ml_replication', relation);
        PERFORM repl_ml.list_key(relation);
        PERFORM repl_ml.identify_columns(relation);
    END
    $$;
COMMENT ON FUNCTION repl_ml.enrol(regclass) IS 'gives a table of this database its clock column and triggers and publishes it';

-- Each failure doubles the time until the next try, up to half a minute
CREATE FUNCTION repl_ml.note_failure(node_id integer, schema_name name, table_name name, action text, sqlstate text, message text, detail text, hint text) RETURNS boolean
    LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp
    AS $$
    INSERT INTO repl_ml.table_failure AS f (node_id, schema_name, table_name, action, sqlstate, message, detail, hint)
    VALUES (note_failure.node_id, note_failure.schema_name, note_failure.table_name, note_failure.action, note_failure.sqlstate, note_failure.message, note_failure.detail, note_failure.hint)
    ON CONFLICT ON CONSTRAINT table_failure_pkey DO UPDATE
       SET action = excluded.action, sqlstate = excluded.sqlstate, message = excluded.message, detail = excluded.detail, hint = excluded.hint,
           failed_at = excluded.failed_at, failures = CASE WHEN (f.action, f.message) = (excluded.action, excluded.message) THEN f.failures + 1 ELSE 1 END,
           retry_at = excluded.failed_at + least(30, 2 ^ least(f.failures, 5)) * '1 s'::interval
    RETURNING failures = 1
    $$;
COMMENT ON FUNCTION repl_ml.note_failure(integer, name, name, text, text, text, text, text) IS 'notes that something could not be done with a table with the help of a node; whether that is news';

CREATE FUNCTION repl_ml.waits_to_retry(with_node integer, of_schema name, of_table name, action text) RETURNS boolean
    LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp
    AS $$
    SELECT EXISTS (SELECT FROM repl_ml.table_failure f
                    WHERE (f.schema_name, f.table_name, f.action) = (of_schema, of_table, waits_to_retry.action) AND f.retry_at > pg_catalog.clock_timestamp()
                      -- only what takes a peer may go better with another one
                      AND (f.node_id = with_node OR f.action IN ('enrol', 'remove')))
    $$;
COMMENT ON FUNCTION repl_ml.waits_to_retry(integer, name, name, text) IS 'whether something failed with a table lately, so that it is not tried again yet';

-- Of what is not to be done any more
CREATE FUNCTION repl_ml.forget_failures() RETURNS void
    LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp
    AS $$
    DELETE FROM repl_ml.table_failure f
     WHERE CASE f.action WHEN 'copy' THEN NOT EXISTS (SELECT FROM repl_ml.table_sync y WHERE (y.node_id, y.schema_name, y.table_name, y.state) = (f.node_id, f.schema_name, f.table_name, 'pending'))
           ELSE NOT EXISTS (SELECT FROM repl_ml.pending_tables() p WHERE (p.schema_name, p.table_name, p.action) = (f.schema_name, f.table_name, f.action)) END
    $$;
COMMENT ON FUNCTION repl_ml.forget_failures() IS 'removes failures that are over';

-- Everything is to be copied from a node, and joined
CREATE FUNCTION repl_ml.order_copies(from_node integer) RETURNS void
    LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp
    AS $$
    INSERT INTO repl_ml.table_sync (node_id, schema_name, table_name)
    SELECT from_node, t.schema_name, t.table_name FROM repl_ml.replicated_table t WHERE t.state = 'enrolled'
    UNION ALL SELECT from_node, 'repl_ml', 'tombstone'
    ON CONFLICT (node_id, schema_name, table_name) DO UPDATE SET state = 'pending', rows = NULL
    $$;
COMMENT ON FUNCTION repl_ml.order_copies(integer) IS 'marks all tables, tombstones first, to be copied from a node';

-- Expressions are trees of calls; a rule or a query in one may do anything
CREATE FUNCTION repl_ml.code_of_others(relation regclass) RETURNS text
    LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
    AS $$
    WITH privileged AS MATERIALIZED (
        SELECT r.oid FROM pg_catalog.pg_roles r
         WHERE r.rolsuper OR r.rolcreaterole OR r.rolreplication OR pg_catalog.pg_has_role(r.oid, 'pg_execute_server_program', 'MEMBER')
            OR pg_catalog.pg_has_role(r.oid, 'pg_write_server_files', 'MEMBER') OR pg_catalog.pg_has_role(r.oid, 'pg_read_server_files', 'MEMBER')),
    expression (tree) AS (
        SELECT d.adbin::text FROM pg_catalog.pg_attrdef d WHERE d.adrelid = relation
        UNION ALL SELECT k.conbin::text FROM pg_catalog.pg_constraint k WHERE k.conrelid = relation
        UNION ALL SELECT pg_catalog.concat(i.indexprs::text, i.indpred::text) FROM pg_catalog.pg_index i WHERE i.indrelid = relation
        UNION ALL SELECT g.tgqual::text FROM pg_catalog.pg_trigger g WHERE g.tgrelid = relation
        UNION ALL SELECT pg_catalog.concat(o.polqual::text, o.polwithcheck::text) FROM pg_catalog.pg_policy o WHERE o.polrelid = relation
        UNION ALL SELECT p.partexprs::text FROM pg_catalog.pg_partitioned_table p WHERE p.partrelid = relation
        UNION ALL SELECT s.stxexprs::text FROM pg_catalog.pg_statistic_ext s WHERE s.stxrelid = relation),
    called (function) AS (
        SELECT m[1]::oid FROM expression e, pg_catalog.regexp_matches(e.tree, ':(?:funcid|opfuncid|aggfnoid|winfnoid) (\d+)', 'g') m
        UNION SELECT g.tgfoid FROM pg_catalog.pg_trigger g WHERE g.tgrelid = relation AND NOT g.tgisinternal),
    code (what) AS (
        SELECT pg_catalog.format('the function %s', f.oid::regprocedure) FROM called c JOIN pg_catalog.pg_proc f ON f.oid = c.function
         WHERE NOT CASE WHEN f.pronamespace = 'repl_ml'::regnamespace THEN true
                        -- built in, and nothing but a value; or what defaults are made of
                        WHEN f.pronamespace = 'pg_catalog'::regnamespace THEN f.provolatile = 'i' OR f.provolatile = 's' AND f.proname !~ '_to_xml'
                             OR f.proname IN ('nextval', 'clock_timestamp', 'timeofday', 'random', 'gen_random_uuid', 'uuidv4', 'uuidv7')
                             OR f.prorettype = 'pg_catalog.trigger'::regtype
                        -- runs as its owner whoever calls it
                        WHEN f.prosecdef AND f.proowner NOT IN (SELECT r.oid FROM privileged r) THEN true
                        -- of somebody who might run it anyway, and not a tool of an extension, which does as its arguments say
                        ELSE f.proowner IN (SELECT r.oid FROM privileged r WHERE pg_catalog.pg_has_role(r.oid, (SELECT t.relowner FROM pg_catalog.pg_class t WHERE t.oid = relation), 'USAGE'))
                             AND (f.provolatile = 'i' OR NOT EXISTS (SELECT FROM pg_catalog.pg_depend d
                                                                      WHERE d.classid = 'pg_catalog.pg_proc'::regclass AND d.objid = f.oid AND d.deptype = 'e')) END
        UNION ALL SELECT pg_catalog.format('the rule %I', r.rulename) FROM pg_catalog.pg_rewrite r WHERE r.ev_class = relation)
    SELECT pg_catalog.min(c.what) FROM code c
     WHERE (SELECT t.relowner FROM pg_catalog.pg_class t WHERE t.oid = relation) IN (SELECT r.oid FROM privileged r)
    $$;
COMMENT ON FUNCTION repl_ml.code_of_others(regclass) IS
    'of a table whose owner is a superuser, or as good as one: what it would run with his rights that is neither built in and harmless nor written by somebody with these rights; null if there is nothing, and for other owners';

-- Looks into the heap: a query over a table runs what its owner has written, be it only when it is planned
CREATE FUNCTION repl_ml.lock_table(relation regclass) RETURNS boolean
    AS 'MODULE_PATHNAME', 'repl_ml_lock_table' LANGUAGE C VOLATILE STRICT;
COMMENT ON FUNCTION repl_ml.lock_table(regclass) IS 'locks a table and its partitions until the transaction ends; whether they have rows';

-- Only for our own functions: it is a way to become somebody else
CREATE FUNCTION repl_ml.query_as_owner(relation regclass, statement text, arguments text[] DEFAULT '{}') RETURNS SETOF text[]
    AS 'MODULE_PATHNAME', 'repl_ml_query_as_owner' LANGUAGE C VOLATILE STRICT;
COMMENT ON FUNCTION repl_ml.query_as_owner(regclass, text, text[]) IS 'the rows of a query, each as an array, run with the rights of the table''s owner in a security-restricted operation';

-- One table is to be copied from a node, and joined
CREATE FUNCTION repl_ml.order_copy(from_node integer, of_schema name, of_table name) RETURNS void
    LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp
    AS $$
    INSERT INTO repl_ml.table_sync (node_id, schema_name, table_name) VALUES (from_node, of_schema, of_table)
    ON CONFLICT (node_id, schema_name, table_name) DO UPDATE SET state = 'pending', rows = NULL
    $$;
COMMENT ON FUNCTION repl_ml.order_copy(integer, name, name) IS 'marks a table to be copied from a node';

-- Enrols a table another node has added, and orders the copy of its rows
CREATE FUNCTION repl_ml.adopt(relation regclass) RETURNS boolean
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
    AS $$
    DECLARE
        self repl_ml.local_node;
        t repl_ml.replicated_table;
        has_rows boolean;
        obstacle record;
    BEGIN
        -- nobody may put something else in its place while we look, and it may be a view already
        has_rows := repl_ml.lock_table(relation);
        SELECT * INTO obstacle FROM repl_ml.enrol_obstacle(relation);
        IF FOUND THEN
            RAISE EXCEPTION '%', obstacle.message USING ERRCODE = 'object_not_in_prerequisite_state', HINT = obstacle.hint;
        END IF;
        SELECT * INTO self FROM repl_ml.local_node;
        -- tables of an extension are its code's, as a scheduler's list of jobs: that takes a person here
        IF self.state = 'ready' AND EXISTS (SELECT FROM pg_catalog.pg_depend d WHERE d.classid = 'pg_catalog.pg_class'::regclass AND d.objid = relation AND d.deptype = 'e') THEN
            RAISE EXCEPTION 'table % belongs to an extension, and another node has added it', relation USING ERRCODE = 'insufficient_privilege',
                HINT = pg_catalog.format('If it is to be replicated here, too, run SELECT repl_ml.add_table(%L) on this node.', relation);
        END IF;
        SELECT r.* INTO t FROM repl_ml.replicated_table r, pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
         WHERE c.oid = relation AND r.schema_name = n.nspname AND r.table_name = c.relname;
        IF has_rows AND self.state <> 'ready' AND self.copy_data THEN
            RAISE EXCEPTION 'table % of the joining database is not empty', relation USING ERRCODE = 'object_not_in_prerequisite_state',
                HINT = pg_catalog.format('Run SELECT repl_ml.leave_group(force => true), then TRUNCATE %s or drop it, and join again; or join with copy_data => false if it holds the group''s rows already.', relation);
        END IF;
        PERFORM repl_ml.enrol(relation);
        PERFORM repl_ml.agree_on_columns();
        INSERT INTO repl_ml.table_sync AS y (node_id, schema_name, table_name)
        SELECT coalesce(CASE WHEN self.state <> 'ready' THEN self.donor END, t.enrolled_by), t.schema_name, t.table_name
         WHERE self.copy_data OR self.state = 'ready'
        ON CONFLICT ON CONSTRAINT table_sync_pkey DO UPDATE SET state = 'pending', rows = NULL;
        DELETE FROM repl_ml.table_sync y WHERE y.node_id = self.node_id;
        -- also rows with a clock: a client may have written the table since it was made from a member's definition
        RETURN has_rows AND self.state = 'ready';
    END
    $$;
COMMENT ON FUNCTION repl_ml.adopt(regclass) IS 'enrols a table that another node added to the group and orders the copy of its rows; whether it has rows that the others lack';

CREATE FUNCTION repl_ml.drop_triggers(relation regclass) RETURNS void
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
    AS $$
    DECLARE
        t name;
    BEGIN
        FOR t IN SELECT g.tgname FROM pg_catalog.pg_trigger g JOIN pg_catalog.pg_proc p ON p.oid = g.tgfoid
                  WHERE g.tgrelid = relation AND p.pronamespace = 'repl_ml'::pg_catalog.regnamespace AND g.tgparentid = 0
        LOOP
            EXECUTE pg_catalog.format('DROP TRIGGER %I ON %s', t, relation);
        END LOOP;
    END
    $$;
COMMENT ON FUNCTION repl_ml.drop_triggers(regclass) IS 'removes repl_ml''s triggers from a table';

-- The reverse of enrol
CREATE FUNCTION repl_ml.disenrol(relation regclass) RETURNS void
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp SET repl_ml.guard_off = on
    AS $$
    BEGIN
        PERFORM repl_ml.drop_triggers(relation);
        IF EXISTS (SELECT FROM pg_catalog.pg_publication_rel r JOIN pg_catalog.pg_publication p ON p.oid = r.prpubid
                    WHERE p.pubname = 'repl_ml' AND r.prrelid = relation) THEN
            EXECUTE pg_catalog.format('ALTER PUBLICATION repl_ml DROP TABLE %s', relation);
        END IF;
        PERFORM repl_ml.forget_columns(relation);
        EXECUTE pg_catalog.format('ALTER TABLE %s DROP COLUMN IF EXISTS __repl_clock', relation);
        EXECUTE pg_catalog.format('REVOKE SELECT ON %s FROM repl_ml_replication', relation);
        DELETE FROM repl_ml.tombstone t USING pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
         WHERE c.oid = relation AND t.schema_name = n.nspname AND t.table_name = c.relname;
        DELETE FROM repl_ml.unsent u USING pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
         WHERE c.oid = relation AND u.schema_name = n.nspname AND u.table_name = c.relname;
        DELETE FROM repl_ml.concurrent_version v USING pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
         WHERE c.oid = relation AND v.schema_name = n.nspname AND v.table_name = c.relname;
        DELETE FROM repl_ml.key_shape k USING pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
         WHERE c.oid = relation AND k.schema_name = n.nspname AND k.table_name = c.relname;
    END
    $$;
COMMENT ON FUNCTION repl_ml.disenrol(regclass) IS 'makes a table of this database an ordinary one again';

-- An expression as it is after a dump and restore too, and on other majors: without casts and parentheses
CREATE FUNCTION repl_ml.plain_expression(expression text) RETURNS text
    LANGUAGE sql STABLE STRICT SET search_path = pg_catalog, pg_temp
    AS $$
    SELECT pg_catalog.btrim(pg_catalog.regexp_replace(pg_catalog.regexp_replace(pg_catalog.regexp_replace(expression,
               '::("[^"]*"|[a-z_][a-z0-9_]*)(\.("[^"]*"|[a-z_][a-z0-9_]*))?( varying| precision)?(\([0-9, ]*\))?( with(out)? time zone)?(\[\])*', '', 'g'),
               '[()\s]+', ' ', 'g'), '\s*([\[\],])\s*', '\1', 'g'))
    $$;
COMMENT ON FUNCTION repl_ml.plain_expression(text) IS 'text of an expression without what differs though the expression is the same';

CREATE FUNCTION repl_ml.describe_type(type_id oid) RETURNS text
    LANGUAGE sql STABLE STRICT SET search_path = pg_catalog, pg_temp
    AS $$
    SELECT CASE t.typtype
           WHEN 'e' THEN 'enum (' || (SELECT pg_catalog.string_agg(pg_catalog.quote_literal(e.enumlabel), ', ' ORDER BY e.enumsortorder) FROM pg_catalog.pg_enum e WHERE e.enumtypid = t.oid) || ')'
           WHEN 'd' THEN pg_catalog.format_type(t.typbasetype, t.typtypmod) || CASE WHEN t.typcollation <> b.typcollation THEN ' COLLATE ' || t.typcollation::regcollation ELSE '' END
                         || CASE WHEN t.typnotnull THEN ' NOT NULL' ELSE '' END
                         || coalesce((SELECT pg_catalog.string_agg(' ' || repl_ml.plain_expression(pg_catalog.regexp_replace(pg_catalog.pg_get_constraintdef(k.oid), ' NOT VALID$', '')), '' ORDER BY 1)
                                        FROM pg_catalog.pg_constraint k WHERE k.contypid = t.oid AND k.contype = 'c'), '')
           WHEN 'c' THEN '(' || (SELECT pg_catalog.string_agg(pg_catalog.quote_ident(a.attname) || ' ' || pg_catalog.format_type(a.atttypid, a.atttypmod), ', ' ORDER BY a.attnum)
                                   FROM pg_catalog.pg_attribute a WHERE a.attrelid = t.typrelid AND a.attnum > 0 AND NOT a.attisdropped AND a.attname <> '__repl_clock') || ')'
           WHEN 'r' THEN 'range of ' || (SELECT r.rngsubtype::regtype FROM pg_catalog.pg_range r WHERE r.rngtypid = t.oid) END
      FROM pg_catalog.pg_type t LEFT JOIN pg_catalog.pg_type b ON b.oid = t.typbasetype WHERE t.oid = type_id
    $$;
COMMENT ON FUNCTION repl_ml.describe_type(oid) IS 'what a type is, as text that is the same on all nodes where it is the same';

-- As pg_partition_tree, which locks partitions, and not their table, until the transaction ends: what then waits for
-- the table, or for another, is in the way of a command that changes them
CREATE FUNCTION repl_ml.partitions(relation regclass, OUT relid regclass, OUT parentrelid regclass) RETURNS SETOF record
    LANGUAGE sql STABLE STRICT SET search_path = pg_catalog, pg_temp
    AS $$
    WITH RECURSIVE p AS (
        SELECT i.inhrelid, i.inhparent FROM pg_catalog.pg_inherits i WHERE i.inhparent = relation AND NOT i.inhdetachpending
        UNION ALL
        SELECT i.inhrelid, i.inhparent FROM p JOIN pg_catalog.pg_inherits i ON i.inhparent = p.inhrelid AND NOT i.inhdetachpending)
    SELECT p.inhrelid, p.inhparent FROM p JOIN pg_catalog.pg_class c ON c.oid = p.inhrelid AND c.relispartition AND c.relkind IN ('r', 'p', 'f')
    $$;
COMMENT ON FUNCTION repl_ml.partitions(regclass) IS 'the partitions of a table, and theirs, without locking them';

-- What has to be the same on all members for each other's rows to fit; defaults, triggers and plain indexes need not be
CREATE FUNCTION repl_ml.describe_table(relation regclass) RETURNS jsonb
    LANGUAGE sql STABLE STRICT SET search_path = pg_catalog, pg_temp SET datestyle = 'ISO, MDY' SET intervalstyle = postgres SET timezone = 'UTC'
    AS $$
    SELECT pg_catalog.jsonb_object_agg(f.object, f.value) FROM (
        SELECT '0the table', 'there'
        UNION ALL
        SELECT pg_catalog.format('1column %I', a.attname),
               pg_catalog.format_type(a.atttypid, a.atttypmod) || CASE WHEN a.attcollation <> t.typcollation THEN ' COLLATE ' || a.attcollation::regcollation ELSE '' END
               || CASE WHEN a.attnotnull THEN ' NOT NULL' ELSE '' END
               || CASE WHEN a.attgenerated <> '' THEN pg_catalog.format(' GENERATED ALWAYS AS (%s)', repl_ml.plain_expression(pg_catalog.pg_get_expr(d.adbin, d.adrelid))) ELSE '' END
          FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_type t ON t.oid = a.atttypid
          LEFT JOIN pg_catalog.pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
         WHERE a.attrelid = relation AND a.attnum > 0 AND NOT a.attisdropped AND a.attname <> '__repl_clock'
        UNION ALL
        SELECT pg_catalog.format('1identity of column %I', a.attname), repl_ml.column_identity(relation, a.attname)
          FROM pg_catalog.pg_attribute a WHERE a.attrelid = relation AND a.attnum > 0 AND NOT a.attisdropped AND a.attname <> '__repl_clock' AND a.attgenerated = ''
        UNION ALL
        SELECT pg_catalog.format('2type %s', y.type_id::regtype), repl_ml.describe_type(y.type_id)
          FROM (SELECT DISTINCT c.type_id FROM repl_ml.column_types(relation) c) y JOIN pg_catalog.pg_type t ON t.oid = y.type_id
         WHERE t.typtype IN ('e', 'd', 'c', 'r') AND t.typnamespace <> 'pg_catalog'::regnamespace
           AND NOT EXISTS (SELECT FROM pg_catalog.pg_depend e WHERE e.classid = 'pg_type'::regclass AND e.objid = t.oid AND e.deptype = 'e')
        UNION ALL
        SELECT '3the primary key', '(' || pg_catalog.string_agg(pg_catalog.quote_ident(a.attname), ', ' ORDER BY k.place) || ')'
          FROM pg_catalog.pg_index i CROSS JOIN LATERAL ROWS FROM (pg_catalog.unnest(i.indkey)) WITH ORDINALITY k (attnum, place)
          JOIN pg_catalog.pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
         WHERE i.indrelid = relation AND i.indisprimary AND k.place <= i.indnkeyatts HAVING pg_catalog.count(*) > 0
        UNION ALL
        SELECT pg_catalog.format('4unique key %s', CASE WHEN i.indexprs IS NULL AND i.indpred IS NULL THEN x.definition ELSE repl_ml.plain_expression(x.definition) END),
               CASE WHEN i.indisvalid THEN 'there' ELSE 'not valid' END
          FROM pg_catalog.pg_index i
         CROSS JOIN LATERAL (SELECT pg_catalog.substring(pg_catalog.pg_get_indexdef(i.indexrelid), ' USING (.*)$') AS definition) x
         WHERE i.indrelid = relation AND i.indisunique AND NOT i.indisprimary
        UNION ALL
        SELECT pg_catalog.format('5constraint %s', CASE WHEN k.contype = 'f' THEN x.definition ELSE repl_ml.plain_expression(x.definition) END), 'there'
          FROM pg_catalog.pg_constraint k CROSS JOIN LATERAL (SELECT pg_catalog.regexp_replace(pg_catalog.pg_get_constraintdef(k.oid), ' NOT VALID$', '') AS definition) x
         WHERE k.conrelid = relation AND k.contype IN ('c', 'f', 'x') AND k.conparentid = 0
        UNION ALL
        SELECT '6the partition key', repl_ml.plain_expression(pg_catalog.pg_get_partkeydef(relation)) WHERE pg_catalog.pg_get_partkeydef(relation) IS NOT NULL
        UNION ALL
        SELECT pg_catalog.format('7partition %s', p.relid), pg_catalog.format('%s of %s', pg_catalog.pg_get_expr(c.relpartbound, c.oid), p.parentrelid)
          FROM repl_ml.partitions(relation) p JOIN pg_catalog.pg_class c ON c.oid = p.relid) f (object, value)
     WHERE f.value IS NOT NULL
    $$;
COMMENT ON FUNCTION repl_ml.describe_table(regclass) IS 'what a table is, object by object, as text that is the same on all nodes where it is the same';

CREATE FUNCTION repl_ml.describe_database() RETURNS jsonb
    LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
    AS $$
    SELECT pg_catalog.jsonb_build_object('0the server', 'PostgreSQL ' || pg_catalog.current_setting('server_version_num')::integer / 10000,
               '1the encoding', pg_catalog.pg_encoding_to_char(d.encoding),
               '2the collation of the database', pg_catalog.format('%s (%s)', coalesce(pg_catalog.to_jsonb(d) ->> 'datlocale', pg_catalog.to_jsonb(d) ->> 'daticulocale', d.datcollate),
                                                     CASE d.datlocprovider WHEN 'c' THEN 'libc' WHEN 'i' THEN 'icu' ELSE 'builtin' END))
      FROM pg_catalog.pg_database d WHERE d.datname = pg_catalog.current_database()
    $$;
COMMENT ON FUNCTION repl_ml.describe_database() IS 'what of the database and its server matters for the values of all tables';

CREATE FUNCTION repl_ml.tell_shapes() RETURNS void
    LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp
    AS $$
    WITH present AS MATERIALIZED (
        SELECT l.node_id, x.schema_name, x.table_name, x.shape, x.seen
          FROM repl_ml.local_node l, (
               SELECT t.schema_name, t.table_name, repl_ml.describe_table(c.oid) AS shape, repl_ml.column_identity(c.oid, '__repl_clock') AS seen
                 FROM repl_ml.replicated_table t LEFT JOIN (pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace)
                   ON n.nspname = t.schema_name AND c.relname = t.table_name AND c.relkind IN ('r', 'p')
                WHERE t.state = 'enrolled'
               UNION ALL SELECT '', '', repl_ml.describe_database(), NULL) x)
    INSERT INTO repl_ml.table_shape (node_id, schema_name, table_name, shape, seen)
    SELECT p.* FROM present p
     WHERE NOT EXISTS (SELECT FROM repl_ml.table_shape s WHERE (s.node_id, s.schema_name, s.table_name) = (p.node_id, p.schema_name, p.table_name)
                          AND s.shape IS NOT DISTINCT FROM p.shape AND s.seen IS NOT DISTINCT FROM p.seen)
    ON CONFLICT ON CONSTRAINT table_shape_pkey DO UPDATE SET shape = excluded.shape, seen = excluded.seen
    $$;
COMMENT ON FUNCTION repl_ml.tell_shapes() IS 'tells the group what this node''s tables are, where that has changed';

-- The list of enrolled tables against what this database has; used after the list changed
CREATE FUNCTION repl_ml.pending_tables(OUT schema_name name, OUT table_name name, OUT relation regclass, OUT action text, OUT enrolled_by integer)
    RETURNS SETOF record
    LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
    AS $$
    SELECT t.schema_name, t.table_name, c.oid::pg_catalog.regclass,
           CASE WHEN t.state = 'removed' THEN 'remove' WHEN c.oid IS NULL THEN 'create' ELSE 'enrol' END, t.enrolled_by
      FROM repl_ml.replicated_table t
      LEFT JOIN (pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace)
             ON n.nspname = t.schema_name AND c.relname = t.table_name
      LEFT JOIN (pg_catalog.pg_publication_rel r JOIN pg_catalog.pg_publication p ON p.oid = r.prpubid AND p.pubname = 'repl_ml')
             ON r.prrelid = c.oid
     WHERE (t.state = 'enrolled') <> (r.oid IS NOT NULL) AND t.schema_name <> 'repl_ml'
    UNION ALL
    -- another node has added it, too: what was in it before is to be sent
    SELECT y.schema_name, y.table_name, c.oid::pg_catalog.regclass, 'write', l.node_id
      FROM repl_ml.local_node l JOIN repl_ml.table_sync y ON y.node_id = l.node_id AND y.state = 'pending'
      JOIN pg_catalog.pg_namespace n ON n.nspname = y.schema_name
      JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid AND c.relname = y.table_name
      JOIN repl_ml.replicated_table t ON t.schema_name = y.schema_name AND t.table_name = y.table_name AND t.state = 'enrolled'
     ORDER BY 1, 2
    $$;
COMMENT ON FUNCTION repl_ml.pending_tables() IS 'tables whose state in this database differs from the group''s list, and what to do';

--
-- Setting up
--

-- One row a setting: what it is, what it should be, the line to write
CREATE FUNCTION repl_ml.check_settings(members integer, OUT check_name text, OUT status text, OUT detail text, OUT hint text)
    RETURNS SETOF record
    LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
    AS $$
    DECLARE
        peers integer := members - 1;
        v text;
        need record;
    BEGIN
        check_name := 'shared_preload_libraries';
        v := pg_catalog.current_setting('shared_preload_libraries');
        detail := pg_catalog.format('is %L', v);
        IF v ~ '(^|,)\s*"?(\$libdir/)?repl_ml"?\s*(,|$)' THEN
            status := 'ok'; hint := NULL;
        ELSE
            status := 'error';
            hint := pg_catalog.format('Write %s into postgresql.conf and restart the server.',
                'shared_preload_libraries = ' || pg_catalog.quote_literal(CASE v WHEN '' THEN '' ELSE v || ', ' END || 'repl_ml'));
        END IF;
        RETURN NEXT;

        check_name := 'wal_level';
        v := pg_catalog.current_setting('wal_level');
        detail := pg_catalog.format('is %L', v);
        IF v = 'logical' THEN
            status := 'ok'; hint := NULL;
        ELSE
            status := 'error'; hint := 'Write wal_level = logical into postgresql.conf and restart the server.';
        END IF;
        RETURN NEXT;

        FOR need IN
            SELECT * FROM (VALUES
                ('max_worker_processes', 4 + peers,
                 pg_catalog.format('the server''s own, a launcher, a supervisor, a join worker and %s for applying', peers)),
                ('max_wal_senders', 2 * peers, pg_catalog.format('a stream and a copy for each of %s peers', peers)),
                ('max_replication_slots', peers + 1, pg_catalog.format('a slot and an origin for each of %s peers', peers))) AS x(name, least, why)
        LOOP
            check_name := need.name;
            detail := pg_catalog.format('is %s, needed for %s members: %s (%s)', pg_catalog.current_setting(need.name), members, need.least, need.why);
            IF pg_catalog.current_setting(need.name)::integer >= need.least THEN
                status := 'ok'; hint := NULL;
            ELSE
                status := 'error';
                hint := pg_catalog.format('Write %s = %s into postgresql.conf and restart the server.', need.name, need.least);
            END IF;
            RETURN NEXT;
        END LOOP;

        v := pg_catalog.current_setting('max_active_replication_origins', true);
        IF v IS NOT NULL THEN
            check_name := 'max_active_replication_origins';
            detail := pg_catalog.format('is %s, needed for %s members: %s', v, members, peers);
            IF v::integer >= peers THEN
                status := 'ok'; hint := NULL;
            ELSE
                status := 'error';
                hint := pg_catalog.format('Write max_active_replication_origins = %s into postgresql.conf and restart the server.', peers);
            END IF;
            RETURN NEXT;
        END IF;

        check_name := 'output_plugin_libraries';
        v := pg_catalog.current_setting('output_plugin_libraries', true);
        hint := NULL;
        IF v IS NULL THEN
            status := 'ok'; detail := 'this server version has no such setting';
        ELSIF v ~ '(^|,)\s*"?repl_ml"?\s*(,|$)' THEN
            status := 'ok'; detail := pg_catalog.format('is %L', v);
        ELSE
            status := 'error'; detail := pg_catalog.format('is %L', v);
            hint := pg_catalog.format('Run ALTER SYSTEM SET output_plugin_libraries = %s, repl_ml; SELECT pg_reload_conf(); (without quotes).', v);
        END IF;
        RETURN NEXT;

        check_name := 'synchronous_standby_names';
        v := pg_catalog.current_setting('synchronous_standby_names');
        detail := pg_catalog.format('is %L', v);
        status := CASE WHEN v = 'repl_ml_quorum' THEN 'ok' ELSE 'warning' END;
        hint := CASE WHEN v <> 'repl_ml_quorum' THEN 'Commits cannot wait for other members (repl_ml.write_consistency). Remove synchronous_standby_names from the configuration, so that repl_ml gives it its value, and reload the server.' END;
        RETURN NEXT;

        check_name := 'max_slot_wal_keep_size';
        v := pg_catalog.current_setting('max_slot_wal_keep_size');
        detail := pg_catalog.format('is %s', v);
        status := CASE WHEN v = '-1' THEN 'warning' ELSE 'ok' END;
        hint := CASE WHEN v = '-1' THEN 'A peer that is down keeps WAL without limit; write, for example, max_slot_wal_keep_size = 50GB into postgresql.conf.' END;
        RETURN NEXT;

    END
    $$;
COMMENT ON FUNCTION repl_ml.check_settings(integer) IS 'this server''s settings against what a group of so many members needs';

-- For a person: the settings for the group's size, and whether a peer can be reached
CREATE FUNCTION repl_ml.check_setup(peer_dsn text DEFAULT NULL, OUT check_name text, OUT status text, OUT detail text, OUT hint text)
    RETURNS SETOF record
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
    AS $$
    DECLARE
        v text;
        p record;
        here text;
        may_invite boolean;
    BEGIN
        RETURN QUERY SELECT * FROM repl_ml.check_settings(
            greatest(2, (SELECT pg_catalog.count(*)::integer FROM repl_ml.nodes m WHERE m.state <> 'dropped')));
        IF peer_dsn IS NOT NULL AND NOT pg_catalog.has_function_privilege('repl_ml.probe(text)', 'EXECUTE') THEN
            check_name := 'peer'; status := 'error'; detail := 'only a superuser may try a connection string';
            hint := 'Run repl_ml.check_setup with the connection string as a superuser.';
            RETURN NEXT;
        ELSIF peer_dsn IS NOT NULL THEN
            PERFORM repl_ml.hide_statement();
            check_name := 'peer';
            BEGIN
                SELECT * INTO p FROM repl_ml.probe(peer_dsn);
                detail := pg_catalog.format('leads to database %I on %s:%s', p.dbname, p.host, p.port);
                status := 'ok'; hint := NULL;
            EXCEPTION WHEN OTHERS THEN
                GET STACKED DIAGNOSTICS v = PG_EXCEPTION_DETAIL;
                detail := sqlerrm || coalesce(': ' || nullif(v, ''), '');
                status := 'error';
                hint := 'Check the connection string, pg_hba.conf on that server, and that the role has LOGIN and REPLICATION.';
            END;
            RETURN NEXT;
            IF status = 'ok' THEN
                check_name := 'encoding';
                detail := pg_catalog.format('is %s here, %s there', pg_catalog.getdatabaseencoding(), p.encoding);
                IF p.encoding <> pg_catalog.getdatabaseencoding() THEN
                    status := 'error';
                    hint := pg_catalog.format('Run CREATE DATABASE ... ENCODING %L TEMPLATE template0, and join with that database.', p.encoding);
                END IF;
                RETURN NEXT;
                check_name := 'locale'; status := 'ok'; hint := NULL;
                SELECT pg_catalog.concat_ws('/', d.datlocprovider, d.datcollate, d.datctype, pg_catalog.to_jsonb(d) ->> 'daticulocale', pg_catalog.to_jsonb(d) ->> 'datlocale') INTO here FROM pg_catalog.pg_database d WHERE d.datname = pg_catalog.current_database();
                detail := pg_catalog.format('is %s here, %s there', here, p.locale);
                IF p.locale <> here THEN
                    status := 'warning';
                    hint := 'Text is sorted, and upper and lower case are told, differently: ranges, indexes on expressions, and CHECK constraints may not agree. Create one of the databases with the other''s LOCALE_PROVIDER, LC_COLLATE and LC_CTYPE.';
                END IF;
                RETURN NEXT;
                check_name := 'joining';
                may_invite := repl_ml.may_invite(peer_dsn);
                status := CASE WHEN may_invite THEN 'ok' ELSE 'warning' END;
                detail := CASE WHEN may_invite THEN 'as join_dsn it lets a node into the group: its role has the rights of repl_ml_admin'
                               ELSE 'good for dsn; as join_dsn it lets no node into the group that is not invited: its role has not the rights of repl_ml_admin' END;
                hint := CASE WHEN NOT may_invite THEN 'To join with it, run SELECT repl_ml.invite_node(...) on that server, or GRANT repl_ml_admin TO its role.' END;
                RETURN NEXT;
            END IF;
        END IF;
    END
    $$;
COMMENT ON FUNCTION repl_ml.check_setup(text) IS
    'checks this server''s settings for the group''s size, and a peer''s connection string; status is ok, warning or error, hint is what to do';

-- Raises the first error of check_setup
CREATE FUNCTION repl_ml.require_setup(members integer) RETURNS void
    LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
    AS $$
    DECLARE
        s record;
    BEGIN
        FOR s IN SELECT * FROM repl_ml.check_settings(members) c WHERE c.status = 'error' LOOP
            RAISE EXCEPTION 'setting "%"% does not allow replication: it %', s.check_name,
                coalesce((SELECT pg_catalog.format(' of node "%s"', l.node_name) FROM repl_ml.local_node l), ''), s.detail
                USING ERRCODE = 'object_not_in_prerequisite_state', HINT = s.hint;
        END LOOP;
    END
    $$;
COMMENT ON FUNCTION repl_ml.require_setup(integer) IS 'raises an error for the first setting that does not allow a group of so many members';

-- What create_group and join_group check before anything is written
CREATE FUNCTION repl_ml.check_new_member(group_name name, node_name name, dsn text, OUT host text, OUT port integer, OUT dbname text)
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
    AS $$
    DECLARE
        here record;
        there record;
        existing record;
    BEGIN
        IF group_name = '' OR group_name ~ '[[:cntrl:]]' THEN
            RAISE EXCEPTION 'invalid group name %', pg_catalog.quote_literal(group_name) USING ERRCODE = 'invalid_parameter_value',
                HINT = 'A name is 1 to 63 bytes without control characters.';
        END IF;
        IF node_name = '' OR node_name ~ '[[:cntrl:]]' THEN
            RAISE EXCEPTION 'invalid node name %', pg_catalog.quote_literal(node_name) USING ERRCODE = 'invalid_parameter_value',
                HINT = 'A name is 1 to 63 bytes without control characters.';
        END IF;
        SELECT * INTO existing FROM repl_ml.local_node;
        IF FOUND THEN
            RAISE EXCEPTION 'this database is already node "%" of group "%"', existing.node_name, existing.group_name
                USING ERRCODE = 'object_not_in_prerequisite_state', HINT = 'To leave that group, run SELECT repl_ml.leave_group().';
        END IF;
        PERFORM repl_ml.require_setup(2);
        SELECT * INTO here FROM repl_ml.local_fingerprint();
        SELECT * INTO there FROM repl_ml.probe(dsn);
        IF (there.system_identifier, there.database, there.dbname) IS DISTINCT FROM
           (here.system_identifier, here.database, pg_catalog.current_database()::text) THEN
            RAISE EXCEPTION 'the connection string of node "%" does not lead to this database', node_name
                USING ERRCODE = 'invalid_parameter_value',
                DETAIL = pg_catalog.format('It leads to database %I on %s:%s.', there.dbname, there.host, there.port),
                HINT = 'The argument dsn is how the other nodes reach this database.';
        END IF;
        -- whoever reaches us that way has to be allowed to replicate
        PERFORM repl_ml.run_on_peer(dsn, 'SELECT version FROM repl_ml.local_info()');
        host := there.host; port := there.port; dbname := there.dbname;
    END
    $$;
COMMENT ON FUNCTION repl_ml.check_new_member(name, name, text) IS 'checks the arguments of create_group and join_group and this server''s settings';

-- The publication, in place of any of that name: a restored dump of a member brings one along
CREATE FUNCTION repl_ml.make_publication() RETURNS void
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp SET repl_ml.guard_off = on
    AS $$
    BEGIN
        IF EXISTS (SELECT FROM pg_catalog.pg_publication WHERE pubname = 'repl_ml') THEN
            DROP PUBLICATION repl_ml;
        END IF;
        CREATE PUBLICATION repl_ml FOR TABLE repl_ml.member, repl_ml.replicated_table, repl_ml.heartbeat, repl_ml.tombstone, repl_ml.collection, repl_ml.conflict_policy, repl_ml.table_shape, repl_ml.invitation
            WITH (publish = 'insert, update', publish_via_partition_root = true);
        COMMENT ON PUBLICATION repl_ml IS 'what the repl_ml group replicates; managed by repl_ml.add_table and remove_table';
    END
    $$;
COMMENT ON FUNCTION repl_ml.make_publication() IS 'creates the publication of the group''s catalogs, for tables to be added to';

-- What this node's heartbeat says it lacks
CREATE FUNCTION repl_ml.lacking() RETURNS text
    LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
    AS $$
    SELECT pg_catalog.string_agg(pg_catalog.format('%I.%I of node "%s"', u.schema_name, u.table_name, coalesce(m.node_name, u.node_id::text::name)), ', ')
      FROM (SELECT DISTINCT n.node_id, n.schema_name, n.table_name FROM repl_ml.unsent n ORDER BY 1, 2, 3 LIMIT 20) u
      LEFT JOIN repl_ml.member m ON m.node_id = u.node_id
    $$;
COMMENT ON FUNCTION repl_ml.lacking() IS 'the tables of which peers could not send rows to this node; null for none';

-- What the publication was changed to while the library was not there to refuse it
CREATE FUNCTION repl_ml.publication_fault() RETURNS text
    LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
    AS $$
    SELECT CASE WHEN p.oid IS NULL THEN 'does not exist'
                WHEN NOT p.pubinsert OR NOT p.pubupdate THEN 'leaves out changes'
                WHEN p.pubdelete OR p.pubtruncate OR NOT p.pubviaroot OR p.puballtables THEN 'does not publish what the nodes read'
                WHEN f.filtered THEN 'leaves out rows or columns'
                WHEN f.catalogs < 8 THEN 'lacks tables of repl_ml' END
      FROM (SELECT) one LEFT JOIN pg_catalog.pg_publication p ON p.pubname = 'repl_ml',
           LATERAL (SELECT pg_catalog.bool_or(r.prqual IS NOT NULL OR r.prattrs IS NOT NULL) AS filtered,
                           pg_catalog.count(*) FILTER (WHERE c.relnamespace = 'repl_ml'::pg_catalog.regnamespace) AS catalogs
                      FROM pg_catalog.pg_publication_rel r JOIN pg_catalog.pg_class c ON c.oid = r.prrelid WHERE r.prpubid = p.oid) f
    $$;
COMMENT ON FUNCTION repl_ml.publication_fault() IS 'what is wrong with the publication repl_ml; null where it is as it should be';

-- For the supervisor. Before it gives up the slots it has a transaction id: a new one begins behind its commit
CREATE FUNCTION repl_ml.mend_publication() RETURNS void
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp SET repl_ml.guard_off = on
    AS $$
    DECLARE
        fault text := repl_ml.publication_fault();
        t record;
    BEGIN
        IF fault IS NULL THEN
            RETURN;
        END IF;
        RAISE LOG 'the publication "repl_ml" % and is made anew', fault
            USING DETAIL = 'The other nodes copy all tables of this one again and join them.';
        PERFORM repl_ml.make_publication();
        FOR t IN SELECT c.oid::pg_catalog.regclass AS relation FROM repl_ml.replicated_table r
                   JOIN pg_catalog.pg_namespace n ON n.nspname = r.schema_name
                   JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid AND c.relname = r.table_name
                   JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attname = '__repl_clock' AND NOT a.attisdropped
                  WHERE r.state = 'enrolled' LOOP
            EXECUTE pg_catalog.format('ALTER PUBLICATION repl_ml ADD TABLE %s', t.relation);
        END LOOP;
        PERFORM repl_ml.drop_own_slots();
    END
    $$;
COMMENT ON FUNCTION repl_ml.mend_publication() IS 'makes the publication what it should be, if it is not, and has the peers copy what they did not get through it';

-- What makes this database a member, as the last thing before commit
CREATE FUNCTION repl_ml.become_member(group_name name, group_id uuid, node_id integer, node_name name, state text, donor integer, copy_data boolean) RETURNS void
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp SET repl_ml.guard_off = on
    AS $$
    BEGIN
        DELETE FROM repl_ml.heartbeat;
        DELETE FROM repl_ml.tombstone;
        DELETE FROM repl_ml.concurrent_version;
        DELETE FROM repl_ml.eviction;
        DELETE FROM repl_ml.key_shape;
        DELETE FROM repl_ml.conflict_policy;
        DELETE FROM repl_ml.invitation;
        DELETE FROM repl_ml.collection;
        DELETE FROM repl_ml.table_sync;
        DELETE FROM repl_ml.table_failure;
        DELETE FROM repl_ml.table_shape;
        DELETE FROM repl_ml.unsent;
        DELETE FROM repl_ml.dropped_node;
        DELETE FROM repl_ml.transaction_record;
        DELETE FROM repl_ml.discarded_transaction;
        DELETE FROM repl_ml.record_floor;
        INSERT INTO repl_ml.local_node (node_id, node_name, group_name, group_id, state, system_identifier, timeline, database, directory, donor, copy_data)
        SELECT become_member.node_id, become_member.node_name, become_member.group_name, become_member.group_id, become_member.state,
               f.system_identifier, f.timeline, f.database, f.directory, become_member.donor, become_member.copy_data
          FROM repl_ml.local_fingerprint() f;
        PERFORM repl_ml.make_publication();
        PERFORM repl_ml.wake_workers();
    END
    $$;
COMMENT ON FUNCTION repl_ml.become_member(name, uuid, integer, name, text, integer, boolean) IS 'writes this database''s identity and wakes the workers';

CREATE FUNCTION repl_ml.create_group(group_name name, node_name name, dsn text) RETURNS integer
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
    AS $$
    DECLARE
        c record;
    BEGIN
        PERFORM repl_ml.hide_statement();
        PERFORM repl_ml.refuse_nulls('group_name, node_name, dsn', pg_catalog.num_nulls(group_name, node_name, dsn));
        SELECT * INTO c FROM repl_ml.check_new_member(group_name, node_name, dsn);
        PERFORM repl_ml.become_member(group_name, pg_catalog.gen_random_uuid(), 1, node_name, 'ready', NULL, false);
        DELETE FROM repl_ml.member;
        DELETE FROM repl_ml.replicated_table;
        INSERT INTO repl_ml.member (node_id, node_name, dsn, host, port, dbname, system_identifier, state, joined_at)
        SELECT 1, node_name, dsn, c.host, c.port, c.dbname, f.system_identifier, 'ready', pg_catalog.now() FROM repl_ml.local_fingerprint() f;
        RETURN 1;
    END
    $$;
COMMENT ON FUNCTION repl_ml.create_group(name, name, text) IS
    'makes this database the first node of a new group; dsn is how the other nodes will reach it. Returns the node id. Superusers only. Errors: 55000 wrong setting or already a member, 08001 unreachable dsn, 22023 bad argument';

CREATE FUNCTION repl_ml.join_group(node_name name, dsn text, join_dsn text, copy_data boolean DEFAULT true, wait boolean DEFAULT true, timeout interval DEFAULT '10 min') RETURNS integer
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
    AS $$
    DECLARE
        c record;
        id integer;
    BEGIN
        PERFORM repl_ml.hide_statement();
        PERFORM repl_ml.refuse_nulls('node_name, dsn, join_dsn, copy_data, wait, timeout', pg_catalog.num_nulls(node_name, dsn, join_dsn, copy_data, wait, timeout));
        IF timeout <= '0' THEN
            RAISE EXCEPTION 'timeout must be positive' USING ERRCODE = 'invalid_parameter_value', HINT = 'For example: timeout => ''10 min''.';
        END IF;
        SELECT * INTO c FROM repl_ml.check_new_member('-', node_name, dsn);
        id := repl_ml.start_joining(node_name, dsn, join_dsn, copy_data, timeout);
        IF wait THEN
            PERFORM repl_ml.wait_for_node(node_name, timeout);
        END IF;
        RETURN id;
    END
    $$;
COMMENT ON FUNCTION repl_ml.join_group(name, text, text, boolean, boolean, interval) IS
    'makes this database a node of the group that join_dsn leads to: schema and rows are copied from that member. The role in join_dsn is a member of repl_ml_admin there (or a superuser), or the node is invited with repl_ml.invite_node. dsn is how the others reach this database. Returns the node id. Superusers only. Errors: 42501 not let in, 08001 unreachable, 42710 name in use, 55000 wrong state or setting, 57014 timeout';

-- The part of joining that must commit on its own: done by a background worker
CREATE FUNCTION repl_ml.start_joining(node_name name, dsn text, join_dsn text, copy_data boolean, timeout interval) RETURNS integer
    AS 'MODULE_PATHNAME', 'repl_ml_start_joining' LANGUAGE C VOLATILE STRICT;
COMMENT ON FUNCTION repl_ml.start_joining(name, text, text, boolean, interval) IS 'registers this database with the group and makes it a joining member; commits by itself';

CREATE FUNCTION repl_ml.wait_for_node(node_name name, timeout interval DEFAULT '10 min') RETURNS void
    AS 'MODULE_PATHNAME', 'repl_ml_wait_for_node' LANGUAGE C VOLATILE;
COMMENT ON FUNCTION repl_ml.wait_for_node(name, interval) IS
    'waits until a node is ready, as seen from here. Errors: 42704 no such node, 57014 timeout, with the last error of the worker that copies';

CREATE FUNCTION repl_ml.drop_node(node_name name, if_exists boolean DEFAULT false) RETURNS void
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
    AS $$
    DECLARE
        self record;
    BEGIN
        PERFORM repl_ml.refuse_nulls('node_name, if_exists', pg_catalog.num_nulls(node_name, if_exists));
        SELECT * INTO self FROM repl_ml.require_member();
        IF drop_node.node_name = self.node_name THEN
            RAISE EXCEPTION 'node "%" cannot drop itself', node_name USING ERRCODE = 'invalid_parameter_value',
                HINT = 'Run SELECT repl_ml.leave_group() here, or drop the node from another member.';
        END IF;
        UPDATE repl_ml.member m SET state = 'dropped' WHERE m.node_name = drop_node.node_name AND m.state <> 'dropped';
        IF NOT FOUND THEN
            IF if_exists THEN
                RAISE NOTICE 'node "%" does not exist, skipping', node_name;
                RETURN;
            END IF;
            RAISE EXCEPTION 'node "%" does not exist', node_name USING ERRCODE = 'undefined_object',
                HINT = 'Run SELECT node_name, state FROM repl_ml.nodes.';
        END IF;
        PERFORM repl_ml.wake_workers();
    END
    $$;
COMMENT ON FUNCTION repl_ml.drop_node(name, boolean) IS
    'removes a node from the group, on all members: for a node that will not come back. Its id is never used again. Superusers only. Errors: 42704 no such node, 22023 this node';

CREATE FUNCTION repl_ml.leave_group(force boolean DEFAULT false) RETURNS void
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp SET repl_ml.guard_off = on
    AS $$
    DECLARE
        self record;
        fenced boolean;
        peer record;
        told integer := 0;
        peers integer := 0;
        reason text;
        start timestamptz := pg_catalog.clock_timestamp();
        lsn pg_lsn;
        r record;
    BEGIN
        PERFORM repl_ml.refuse_nulls('force', pg_catalog.num_nulls(force));
        SELECT * INTO self FROM repl_ml.local_node;
        IF NOT FOUND THEN
            RAISE EXCEPTION 'this database is not a member of a repl_ml group' USING ERRCODE = 'object_not_in_prerequisite_state',
                HINT = 'Nothing needs to be done.';
        END IF;
        -- an error where the library is not preloaded, before any peer is told
        PERFORM repl_ml.wake_workers();
        SELECT i.fenced INTO fenced FROM repl_ml.local_info() i;
        IF fenced AND NOT force THEN
            PERFORM repl_ml.require_member();
        END IF;

        IF NOT fenced THEN
            -- nothing written here may be known only here
            lsn := pg_catalog.pg_current_wal_flush_lsn();
            LOOP
                SELECT pg_catalog.min(m.node_name::text COLLATE "C") AS node_name, pg_catalog.bool_or(s.active) AS active INTO peer
                  FROM repl_ml.member m LEFT JOIN pg_catalog.pg_replication_slots s ON s.slot_name = repl_ml.link_name(m.node_id)
                 WHERE m.node_id <> self.node_id AND m.state = 'ready' AND s.confirmed_flush_lsn < lsn;
                EXIT WHEN force OR peer.node_name IS NULL;
                -- one that reads gets its time, one that is down does not come back soon
                IF pg_catalog.clock_timestamp() > start + (CASE WHEN peer.active THEN '30 s' ELSE '3 s' END)::interval THEN
                    RAISE EXCEPTION 'node "%" has not received everything written on node "%" yet', peer.node_name, self.node_name
                        USING ERRCODE = 'object_not_in_prerequisite_state',
                        HINT = 'See repl_ml.stat_replication and try again, or run SELECT repl_ml.leave_group(force => true) and lose what is not there yet.';
                END IF;
                PERFORM pg_catalog.pg_sleep(0.05);
                PERFORM pg_catalog.pg_stat_clear_snapshot();
            END LOOP;
            -- with force whoever does not answer within seconds is not told
            IF force THEN
                PERFORM repl_ml.ask_members(ARRAY(SELECT m.dsn FROM repl_ml.member m WHERE m.node_id <> self.node_id AND m.state <> 'dropped'),
                    pg_catalog.format('SELECT repl_ml.forget_node(%L, %s)', self.group_id, self.node_id));
            END IF;
            FOR peer IN SELECT * FROM repl_ml.member m WHERE NOT force AND m.node_id <> self.node_id AND m.state <> 'dropped' ORDER BY m.node_id LOOP
                peers := peers + 1;
                BEGIN
                    PERFORM repl_ml.run_on_peer(peer.dsn, pg_catalog.format('SELECT repl_ml.forget_node(%L, %s)', self.group_id, self.node_id));
                    told := told + 1;
                EXCEPTION WHEN OTHERS THEN
                    reason := sqlerrm;
                END;
            END LOOP;
            IF peers > 0 AND told = 0 AND NOT force THEN
                RAISE EXCEPTION 'no member of the group could be told that node "%" leaves', self.node_name
                    USING ERRCODE = 'object_not_in_prerequisite_state', DETAIL = reason,
                    HINT = 'Try again when a member is up, or run SELECT repl_ml.leave_group(force => true) and then SELECT repl_ml.drop_node(...) on a member.';
            END IF;
        END IF;

        PERFORM repl_ml.stop_workers();
        IF force THEN
            -- they hold locks of the tables, and may wait for a peer that does not answer
            PERFORM repl_ml.give_up_waits();
        END IF;
        DELETE FROM repl_ml.local_node;
        FOR r IN SELECT c.oid::regclass AS relation FROM repl_ml.replicated_table t
                   JOIN pg_catalog.pg_namespace n ON n.nspname = t.schema_name
                   JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid AND c.relname = t.table_name LOOP
            PERFORM repl_ml.disenrol(r.relation);
        END LOOP;
        DROP PUBLICATION IF EXISTS repl_ml;
        DELETE FROM repl_ml.member;
        DELETE FROM repl_ml.replicated_table;
        DELETE FROM repl_ml.heartbeat;
        DELETE FROM repl_ml.tombstone;
        DELETE FROM repl_ml.concurrent_version;
        DELETE FROM repl_ml.eviction;
        DELETE FROM repl_ml.key_shape;
        DELETE FROM repl_ml.conflict_policy;
        DELETE FROM repl_ml.invitation;
        DELETE FROM repl_ml.collection;
        DELETE FROM repl_ml.table_sync;
        DELETE FROM repl_ml.table_failure;
        DELETE FROM repl_ml.table_shape;
        DELETE FROM repl_ml.unsent;
        DELETE FROM repl_ml.dropped_node;
        DELETE FROM repl_ml.transaction_record;
        DELETE FROM repl_ml.discarded_transaction;
        DELETE FROM repl_ml.record_floor;
        DELETE FROM repl_ml.vouched;
        FOR r IN SELECT o.roname FROM pg_catalog.pg_replication_origin o
                  WHERE pg_catalog.starts_with(o.roname, repl_ml.link_name(0) COLLATE "C") OR o.roname ~ ('^' || pg_catalog.regexp_replace(repl_ml.link_name(0), '0$', '') || '[0-9]+$') LOOP
            PERFORM pg_catalog.pg_replication_origin_drop(r.roname);
        END LOOP;
        -- also those a copied directory brought along: they would keep WAL for ever
        PERFORM repl_ml.drop_own_slots();
        PERFORM repl_ml.wake_workers();
    END
    $$;
COMMENT ON FUNCTION repl_ml.leave_group(boolean) IS
    'takes this database out of its group: its tables stay, as ordinary ones. With force also when no member can be told, or when this is a copy of a node. Superusers only. Errors: 55000 not a member, or peers are behind or down';

-- Slots that peers read from here, and their walsenders
CREATE FUNCTION repl_ml.drop_own_slots() RETURNS void
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
    AS $$
    DECLARE
        s record;
        until timestamptz := pg_catalog.clock_timestamp() + '30 s';
    BEGIN
        LOOP
            FOR s IN SELECT slot_name, active_pid FROM pg_catalog.pg_replication_slots
                      WHERE database = pg_catalog.current_database() AND plugin = 'repl_ml' LOOP
                BEGIN
                    IF s.active_pid IS NOT NULL THEN
                        PERFORM pg_catalog.pg_terminate_backend(s.active_pid, 2000);
                    END IF;
                    PERFORM pg_catalog.pg_drop_replication_slot(s.slot_name);
                EXCEPTION WHEN object_in_use OR undefined_object THEN
                    IF pg_catalog.clock_timestamp() > until THEN
                        RAISE;
                    END IF;
                END;
            END LOOP;
            EXIT WHEN NOT FOUND;
            PERFORM pg_catalog.pg_sleep(0.02);
        END LOOP;
    END
    $$;
COMMENT ON FUNCTION repl_ml.drop_own_slots() IS 'drops the slots peers read from this database';

--
-- Tables of the group
--

CREATE FUNCTION repl_ml.list_table(relation regclass) RETURNS void
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
    AS $$
    DECLARE
        self record;
    BEGIN
        SELECT * INTO self FROM repl_ml.require_member();
        IF EXISTS (SELECT FROM pg_catalog.pg_attribute a WHERE a.attrelid = relation AND a.attname = '__repl_clock' AND NOT a.attisdropped
                      AND a.atttypid = 'repl_ml.vclock'::pg_catalog.regtype)
           AND NOT EXISTS (SELECT FROM pg_catalog.pg_publication_rel r JOIN pg_catalog.pg_publication p ON p.oid = r.prpubid
                            WHERE p.pubname = 'repl_ml' AND r.prrelid = relation)
           AND NOT EXISTS (SELECT FROM repl_ml.enrol_obstacle(relation)) THEN
            -- clocks of another group, out of a dump: they mean nothing here
            PERFORM repl_ml.disenrol(relation);
        END IF;
        PERFORM repl_ml.enrol(relation);
        DELETE FROM repl_ml.table_sync y USING pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
         WHERE c.oid = relation AND y.node_id = self.node_id AND y.schema_name = n.nspname AND y.table_name = c.relname;
        INSERT INTO repl_ml.replicated_table AS t (schema_name, table_name, state, enrolled_by)
        SELECT n.nspname, c.relname, 'enrolled', self.node_id
          FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = relation
        ON CONFLICT ON CONSTRAINT replicated_table_pkey DO UPDATE SET state = 'enrolled', enrolled_by = excluded.enrolled_by WHERE t.state <> 'enrolled';
        PERFORM repl_ml.wake_workers();
    END
    $$;
COMMENT ON FUNCTION repl_ml.list_table(regclass) IS 'enrols a table of this database and puts it on the group''s list';

-- What has to be on another node before a table can be created there: objects of its columns, constraints, triggers, policies, roles
CREATE FUNCTION repl_ml.table_needs(relation regclass, beside regclass[]) RETURNS jsonb
    LANGUAGE sql STABLE STRICT SET search_path = pg_catalog, pg_temp
    AS $$
    WITH t (oid) AS (SELECT relation::oid UNION SELECT p.relid FROM pg_catalog.pg_partition_tree(relation) p),
    own (classid, objid) AS (
        SELECT 'pg_class'::regclass::oid, t.oid FROM t
        UNION ALL SELECT 'pg_class'::regclass, x.indexrelid FROM t JOIN pg_catalog.pg_index x ON x.indrelid = t.oid
        UNION ALL SELECT 'pg_class'::regclass, d.objid FROM t JOIN pg_catalog.pg_depend d ON d.refclassid = 'pg_class'::regclass AND d.refobjid = t.oid
                         JOIN pg_catalog.pg_class c ON d.classid = 'pg_class'::regclass AND c.oid = d.objid AND c.relkind = 'S' WHERE d.deptype IN ('a', 'i')
        UNION ALL SELECT 'pg_constraint'::regclass, x.oid FROM t JOIN pg_catalog.pg_constraint x ON x.conrelid = t.oid
        UNION ALL SELECT 'pg_attrdef'::regclass, x.oid FROM t JOIN pg_catalog.pg_attrdef x ON x.adrelid = t.oid
        UNION ALL SELECT 'pg_trigger'::regclass, x.oid FROM t JOIN pg_catalog.pg_trigger x ON x.tgrelid = t.oid
        UNION ALL SELECT 'pg_rewrite'::regclass, x.oid FROM t JOIN pg_catalog.pg_rewrite x ON x.ev_class = t.oid
        UNION ALL SELECT 'pg_policy'::regclass, x.oid FROM t JOIN pg_catalog.pg_policy x ON x.polrelid = t.oid
        UNION ALL SELECT 'pg_statistic_ext'::regclass, x.oid FROM t JOIN pg_catalog.pg_statistic_ext x ON x.stxrelid = t.oid),
    needed (classid, objid) AS (
        SELECT d.refclassid, coalesce(y.typelem, d.refobjid) FROM own o JOIN pg_catalog.pg_depend d USING (classid, objid)
          -- of an array its elements' type
          LEFT JOIN pg_catalog.pg_type y ON d.refclassid = 'pg_type'::regclass AND y.oid = d.refobjid AND y.typcategory = 'A' AND y.typelem <> 0
         WHERE d.refclassid IN ('pg_class'::regclass, 'pg_proc'::regclass, 'pg_type'::regclass, 'pg_collation'::regclass, 'pg_opclass'::regclass, 'pg_operator'::regclass,
                                'pg_ts_config'::regclass, 'pg_am'::regclass, 'pg_extension'::regclass)
           AND (d.refclassid, d.refobjid) NOT IN (SELECT o.classid, o.objid FROM own o)
        UNION SELECT s.refclassid, s.refobjid FROM own o JOIN pg_catalog.pg_shdepend s USING (classid, objid)
         WHERE s.refclassid = 'pg_authid'::regclass AND s.dbid = (SELECT b.oid FROM pg_catalog.pg_database b WHERE b.datname = pg_catalog.current_database())
        UNION SELECT 'pg_authid'::regclass, c.relowner FROM t JOIN pg_catalog.pg_class c ON c.oid = t.oid),
    -- what an extension brings is there when the extension is
    named (classid, objid) AS (
        SELECT DISTINCT coalesce(e.refclassid, n.classid), coalesce(e.refobjid, n.objid)
          FROM needed n LEFT JOIN pg_catalog.pg_depend e ON e.classid = n.classid AND e.objid = n.objid AND e.deptype = 'e'
          LEFT JOIN pg_catalog.pg_class c ON n.classid = 'pg_class'::regclass AND c.oid = n.objid
         WHERE c.oid IS NULL OR (c.relkind NOT IN ('i', 'I') AND c.oid <> ALL (beside)))
    SELECT coalesce(pg_catalog.jsonb_agg(pg_catalog.jsonb_build_object('type', a.type, 'names', a.object_names, 'arguments', a.object_args, 'identity', i.identity) ORDER BY a.type, i.identity), '[]')
      FROM named n CROSS JOIN LATERAL pg_catalog.pg_identify_object_as_address(n.classid, n.objid, 0) a
     CROSS JOIN LATERAL pg_catalog.pg_identify_object(n.classid, n.objid, 0) i
     WHERE NOT (a.type = 'extension' AND i.identity = 'repl_ml')
    $$;
COMMENT ON FUNCTION repl_ml.table_needs(regclass, regclass[]) IS 'the functions, types, collations, tables, extensions and roles that the definition of a table refers to, other than the tables that are created beside it';

-- Asked by a member that is about to add tables: why one of them cannot be created here
CREATE FUNCTION repl_ml.cannot_create(tables jsonb) RETURNS text
    LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
    AS $$
    DECLARE
        t record;
        need record;
        here regclass;
        o record;
        answer jsonb := '[]';
    BEGIN
        PERFORM repl_ml.require_member();
        FOR t IN SELECT x.* FROM pg_catalog.jsonb_to_recordset(tables) x ("table" text, needs jsonb, code text) LOOP
            here := pg_catalog.to_regclass(t."table");
            IF here IS NOT NULL THEN
                FOR o IN SELECT * FROM repl_ml.enrol_obstacle(here) LIMIT 1 LOOP
                    answer := answer || pg_catalog.jsonb_build_object('table', t."table", 'message', o.message, 'hint', o.hint);
                END LOOP;
                CONTINUE;
            END IF;
            IF t.code IS NOT NULL THEN
                answer := answer || pg_catalog.jsonb_build_object('table', t."table", 'message', pg_catalog.format('table %s would run %s with a superuser''s rights', t."table", t.code),
                    'hint', 'Create the table there yourself, or give it to a role that is no superuser.');
            END IF;
            FOR need IN SELECT x.* FROM pg_catalog.jsonb_to_recordset(t.needs) x (type text, names text[], arguments text[], identity text) LOOP
                BEGIN
                    PERFORM pg_catalog.pg_get_object_address(need.type, need.names, need.arguments);
                EXCEPTION WHEN OTHERS THEN
                    answer := answer || pg_catalog.jsonb_build_object('table', t."table", 'type', need.type, 'identity', need.identity);
                END;
            END LOOP;
        END LOOP;
        RETURN answer::text;
    END
    $$;
COMMENT ON FUNCTION repl_ml.cannot_create(jsonb) IS 'asked by peers: which of these tables cannot be created or enrolled here, because of what is here under their name or what they need and is not here';

-- No row for a table that can be created everywhere, as far as the members that can be reached know
CREATE FUNCTION repl_ml.peer_obstacles(relations regclass[], OUT relation regclass, OUT message text, OUT hint text)
    RETURNS SETOF record
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
    AS $$
    DECLARE
        names name[];
        dsns text[];
        question text;
    BEGIN
        SELECT pg_catalog.array_agg(m.node_name ORDER BY m.node_id), pg_catalog.array_agg(m.dsn ORDER BY m.node_id) INTO names, dsns
          FROM repl_ml.member m JOIN repl_ml.local_node l ON l.node_id <> m.node_id WHERE m.state = 'ready';
        IF names IS NULL OR relations = '{}' THEN
            RETURN;
        END IF;
        SELECT pg_catalog.format('SELECT repl_ml.cannot_create(%L)', pg_catalog.jsonb_agg(pg_catalog.jsonb_build_object('table', r::text, 'needs', repl_ml.table_needs(r, relations), 'code', repl_ml.code_of_others(r)))::text)
          INTO question FROM pg_catalog.unnest(relations) r;
        RETURN QUERY
        SELECT DISTINCT ON (x."table") x."table"::regclass,
               CASE WHEN x.type IS NULL THEN pg_catalog.format('on node "%s": %s', a.node_name, x.message)
                    ELSE pg_catalog.format('table %s needs %s %s, which node "%s" does not have', x."table", x.type, x.identity, a.node_name) END,
               CASE WHEN x.type IS NULL THEN coalesce(x.hint, '') || pg_catalog.format(' This is on node "%s".', a.node_name)
                    WHEN x.type = 'table' THEN pg_catalog.format('Run SELECT repl_ml.add_table(%L) first, or create it on node "%s".', x.identity, a.node_name)
                    WHEN x.type = 'extension' THEN pg_catalog.format('Run CREATE EXTENSION %s on node "%s".', x.identity, a.node_name)
                    WHEN x.type = 'role' THEN pg_catalog.format('Run CREATE ROLE %s on node "%s".', x.identity, a.node_name)
                    ELSE pg_catalog.format('Create it on node "%s" first, as it is here.', a.node_name) END
          FROM ROWS FROM (pg_catalog.unnest(names), pg_catalog.unnest(repl_ml.ask_members(dsns, question))) WITH ORDINALITY a (node_name, answer, place)
         CROSS JOIN LATERAL pg_catalog.jsonb_to_recordset(a.answer::jsonb) x ("table" text, message text, hint text, type text, identity text)
         ORDER BY x."table", a.place;
    END
    $$;
COMMENT ON FUNCTION repl_ml.peer_obstacles(regclass[]) IS 'why tables cannot be created or enrolled on another member, and what to do; members that do not answer are left out';

CREATE FUNCTION repl_ml.add_table(relation regclass) RETURNS void
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
    AS $$
    DECLARE
        obstacle record;
    BEGIN
        PERFORM repl_ml.refuse_nulls('relation', pg_catalog.num_nulls(relation));
        PERFORM repl_ml.require_member();
        FOR obstacle IN SELECT o.message, o.hint FROM repl_ml.enrol_obstacle(add_table.relation) o
                        UNION ALL SELECT o.message, o.hint FROM repl_ml.peer_obstacles(ARRAY[add_table.relation]) o LIMIT 1 LOOP
            RAISE EXCEPTION '%', obstacle.message USING ERRCODE = 'object_not_in_prerequisite_state', HINT = obstacle.hint;
        END LOOP;
        PERFORM repl_ml.list_table(relation);
    END
    $$;
COMMENT ON FUNCTION repl_ml.add_table(regclass) IS
    'replicates a table on all members: they create it if they lack it and get its rows. Adds the column __repl_clock without rewriting the table. Superusers only. Errors: 55000 not a member, or the table cannot be replicated';

CREATE FUNCTION repl_ml.add_all_tables(schema_names name[] DEFAULT '{public}', OUT relation regclass, OUT status text, OUT detail text, OUT hint text)
    RETURNS SETOF record
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
    AS $$
    DECLARE
        s name;
        obstacle record;
        candidates regclass[];
        refused jsonb;
    BEGIN
        PERFORM repl_ml.refuse_nulls('schema_names', pg_catalog.num_nulls(schema_names));
        PERFORM repl_ml.require_member();
        FOREACH s IN ARRAY schema_names LOOP
            IF s IS NULL OR NOT EXISTS (SELECT FROM pg_catalog.pg_namespace n WHERE n.nspname = s) THEN
                RAISE EXCEPTION 'schema "%" does not exist', s USING ERRCODE = 'invalid_schema_name',
                    HINT = 'Run SELECT nspname FROM pg_catalog.pg_namespace.';
            END IF;
        END LOOP;
        -- tables may refer to each other, so the other members are asked about all of them at once
        candidates := ARRAY(SELECT c.oid FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
                             WHERE n.nspname = ANY (schema_names) AND c.relkind IN ('r', 'p') AND NOT c.relispartition
                               AND NOT EXISTS (SELECT FROM repl_ml.enrol_obstacle(c.oid))
                               AND NOT EXISTS (SELECT FROM pg_catalog.pg_publication_rel r JOIN pg_catalog.pg_publication p ON p.oid = r.prpubid WHERE p.pubname = 'repl_ml' AND r.prrelid = c.oid));
        SELECT coalesce(pg_catalog.jsonb_object_agg(o.relation::text, pg_catalog.jsonb_build_object('message', o.message, 'hint', o.hint)), '{}') INTO refused
          FROM repl_ml.peer_obstacles(candidates) o;
        FOR relation IN SELECT c.oid FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
                  WHERE n.nspname = ANY (schema_names) AND c.relkind IN ('r', 'p') AND NOT c.relispartition
                    AND NOT EXISTS (SELECT FROM pg_catalog.pg_depend d WHERE d.classid = 'pg_catalog.pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e')
                  ORDER BY n.nspname, c.relname LOOP
            SELECT * INTO obstacle FROM repl_ml.enrol_obstacle(relation);
            IF FOUND THEN
                status := 'skipped'; detail := obstacle.message; hint := obstacle.hint;
            ELSIF EXISTS (SELECT FROM pg_catalog.pg_publication_rel r JOIN pg_catalog.pg_publication p ON p.oid = r.prpubid
                           WHERE p.pubname = 'repl_ml' AND r.prrelid = relation) THEN
                status := 'already replicated'; detail := NULL; hint := NULL;
            ELSIF refused ? relation::text THEN
                status := 'skipped'; detail := refused -> relation::text ->> 'message'; hint := refused -> relation::text ->> 'hint';
            ELSE
                -- one that cannot be added keeps none of the others from it
                BEGIN
                    PERFORM repl_ml.list_table(relation);
                    status := 'added'; detail := NULL; hint := NULL;
                EXCEPTION WHEN OTHERS THEN
                    status := 'skipped'; detail := sqlerrm;
                    GET STACKED DIAGNOSTICS hint = PG_EXCEPTION_HINT;
                    hint := nullif(hint, '');
                END;
            END IF;
            RETURN NEXT;
        END LOOP;
    END
    $$;
COMMENT ON FUNCTION repl_ml.add_all_tables(name[]) IS
    'replicates all tables of the schemas; says for each one whether it was added, or why it cannot be and what to do. Superusers only';

CREATE FUNCTION repl_ml.remove_table(relation regclass) RETURNS void
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
    AS $$
    BEGIN
        PERFORM repl_ml.refuse_nulls('relation', pg_catalog.num_nulls(relation));
        PERFORM repl_ml.require_member();
        UPDATE repl_ml.replicated_table t SET state = 'removed', write_consistency = 'one'
          FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
         WHERE c.oid = relation AND t.schema_name = n.nspname AND t.table_name = c.relname AND t.state = 'enrolled';
        IF NOT FOUND THEN
            RAISE EXCEPTION 'table % is not replicated', relation USING ERRCODE = 'undefined_object',
                HINT = 'Run SELECT * FROM repl_ml.tables.';
        END IF;
        -- whoever adds it again begins with no rules
        INSERT INTO repl_ml.conflict_policy (schema_name, table_name, column_name, rule)
        SELECT DISTINCT p.schema_name, p.table_name, p.column_name, CASE p.column_name WHEN '' THEN 'last_write' ELSE 'none' END
          FROM repl_ml.conflict_policy p JOIN pg_catalog.pg_namespace n ON n.nspname = p.schema_name
          JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid AND c.relname = p.table_name WHERE c.oid = relation;
        PERFORM repl_ml.disenrol(relation);
        PERFORM repl_ml.wake_workers();
    END
    $$;
COMMENT ON FUNCTION repl_ml.remove_table(regclass) IS
    'stops replicating a table on all members; the table and its rows stay, the column __repl_clock goes. Superusers only. Errors: 42704 not replicated';

CREATE FUNCTION repl_ml.keep_local(relation regclass) RETURNS void
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
    AS $$
    BEGIN
        PERFORM repl_ml.refuse_nulls('relation', pg_catalog.num_nulls(relation));
        IF NOT EXISTS (SELECT FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
                        WHERE c.oid = relation AND c.relkind IN ('r', 'p') AND NOT c.relispartition AND c.relpersistence <> 't'
                          AND n.nspname NOT IN ('repl_ml', 'pg_catalog', 'information_schema')) THEN
            RAISE EXCEPTION '% is not a table that could be replicated', relation USING ERRCODE = 'wrong_object_type',
                HINT = 'Run SELECT relation FROM repl_ml.unreplicated_tables.';
        END IF;
        INSERT INTO repl_ml.replicated_table AS t (schema_name, table_name, state, enrolled_by)
        SELECT n.nspname, c.relname, 'removed', s.node_id FROM repl_ml.require_member() s, pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = relation
        ON CONFLICT ON CONSTRAINT replicated_table_pkey DO NOTHING;
        IF EXISTS (SELECT FROM repl_ml.replicated_table t JOIN pg_catalog.pg_namespace n ON n.nspname = t.schema_name
                     JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid AND c.relname = t.table_name WHERE c.oid = relation AND t.state = 'enrolled') THEN
            RAISE EXCEPTION 'table % is replicated', relation USING ERRCODE = 'object_not_in_prerequisite_state',
                HINT = pg_catalog.format('Run SELECT repl_ml.remove_table(%L).', relation);
        END IF;
    END
    $$;
COMMENT ON FUNCTION repl_ml.keep_local(regclass) IS
    'says that a table of that name, on whichever node, is not to be replicated: health does not mention it any more. repl_ml.add_table takes it all the same. Superusers only. Errors: 55000 not a member, or the table is replicated';

CREATE FUNCTION repl_ml.set_table_consistency(relation regclass, level text) RETURNS void
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
    AS $$
    DECLARE
        t record;
    BEGIN
        PERFORM repl_ml.refuse_nulls('relation, level', pg_catalog.num_nulls(relation, level));
        PERFORM repl_ml.require_member();
        SELECT * INTO t FROM repl_ml.require_replicated(relation);
        IF level <> ALL ('{one, quorum, all}') THEN
            RAISE EXCEPTION 'write consistency "%" does not exist', level USING ERRCODE = 'invalid_parameter_value',
                HINT = 'Use one, quorum or all.';
        END IF;
        UPDATE repl_ml.replicated_table r SET write_consistency = level
         WHERE r.schema_name = t.schema_name AND r.table_name = t.table_name AND r.write_consistency <> level;
    END
    $$;
COMMENT ON FUNCTION repl_ml.set_table_consistency(regclass, text) IS
    'the least write consistency of transactions that write a table, on all nodes: one, quorum or all; the setting repl_ml.write_consistency may ask for more. Superusers only. Errors: 55000 not a member or not replicated, 22023 no such level';

--
-- Conflicts
--

-- The name of a replicated table; an error if it is none
CREATE FUNCTION repl_ml.require_replicated(relation regclass, OUT schema_name name, OUT table_name name)
    LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
    AS $$
    BEGIN
        SELECT t.schema_name, t.table_name INTO schema_name, table_name
          FROM repl_ml.replicated_table t JOIN pg_catalog.pg_namespace n ON n.nspname = t.schema_name
          JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid AND c.relname = t.table_name
         WHERE c.oid = relation AND t.state = 'enrolled';
        IF NOT FOUND THEN
            RAISE EXCEPTION 'table % is not replicated', relation USING ERRCODE = 'object_not_in_prerequisite_state',
                HINT = pg_catalog.format('Run SELECT repl_ml.add_table(%L).', relation);
        END IF;
    END
    $$;
COMMENT ON FUNCTION repl_ml.require_replicated(regclass) IS 'the group''s name of a replicated table, or an error that says that it is none';

CREATE FUNCTION repl_ml.has_order(type regtype) RETURNS boolean
    AS 'MODULE_PATHNAME', 'repl_ml_has_order' LANGUAGE C STABLE STRICT;
COMMENT ON FUNCTION repl_ml.has_order(regtype) IS 'whether values of a type can be sorted';

-- Name and arguments of a resolver such as newest_by(event_ts, created_ts), checked against the table
CREATE FUNCTION repl_ml.parse_resolver(relation regclass, resolver text, OUT rule text, OUT arguments text[])
    LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
    AS $$
    DECLARE
        parts text[];
        argument text;
        id text;
        f regprocedure;
        row_type regtype;
    BEGIN
        parts := pg_catalog.regexp_match(resolver, '^\s*(\w+)\s*(?:\(\s*(.*?)\s*\))?\s*$');
        rule := pg_catalog.lower(parts[1]);
        IF rule IS NULL OR rule <> ALL ('{last_write, newest_by, node_priority, function, keep_both}') THEN
            RAISE EXCEPTION 'conflict resolver "%" does not exist', resolver USING ERRCODE = 'undefined_object',
                HINT = 'Use last_write, newest_by(column, ...), node_priority(node, ...), function(name) or keep_both.';
        END IF;
        arguments := coalesce(pg_catalog.regexp_split_to_array(nullif(parts[2], ''), '\s*,\s*'), '{}');
        IF (rule IN ('newest_by', 'node_priority') AND arguments = '{}') OR (rule = 'function' AND pg_catalog.cardinality(arguments) <> 1)
           OR (rule IN ('last_write', 'keep_both') AND arguments <> '{}') THEN
            RAISE EXCEPTION 'conflict resolver % has the wrong number of arguments', rule USING ERRCODE = 'invalid_parameter_value',
                HINT = 'For example: last_write, newest_by(event_ts, created_ts), node_priority(n1, n2), function(public.merge_rows), keep_both.';
        END IF;
        IF rule = 'function' THEN
            row_type := (SELECT c.reltype FROM pg_catalog.pg_class c WHERE c.oid = relation);
            f := pg_catalog.to_regprocedure(pg_catalog.format('%s(%s, %s, repl_ml.vclock, repl_ml.vclock)', arguments[1], row_type, row_type));
            IF f IS NULL OR NOT EXISTS (SELECT FROM pg_catalog.pg_proc p WHERE p.oid = f AND p.prorettype = row_type AND NOT p.proretset) THEN
                RAISE EXCEPTION 'function %(%, %, repl_ml.vclock, repl_ml.vclock) returning % does not exist', arguments[1], row_type, row_type, row_type
                    USING ERRCODE = 'undefined_function',
                    HINT = 'Create it on every node first; write its name with its schema.';
            END IF;
            IF EXISTS (SELECT FROM pg_catalog.pg_proc p WHERE p.oid = f AND p.provolatile = 'v') THEN
                RAISE EXCEPTION 'function % is volatile', f USING ERRCODE = 'invalid_parameter_value',
                    DETAIL = 'Every node has to compute the same row of the same two versions.',
                    HINT = pg_catalog.format('If its result depends on its arguments only, run ALTER FUNCTION %s IMMUTABLE on every node.', f);
            END IF;
            arguments := ARRAY[(SELECT pg_catalog.format('%I.%I', n.nspname, p.proname) FROM pg_catalog.pg_proc p JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace WHERE p.oid = f)];
        END IF;
        FOR i IN 1 .. pg_catalog.cardinality(arguments) LOOP
            argument := CASE WHEN rule = 'function' THEN arguments[i] WHEN arguments[i] ~ '^".*"$' THEN pg_catalog.replace(pg_catalog.substr(arguments[i], 2, pg_catalog.length(arguments[i]) - 2), '""', '"')
                             WHEN rule = 'newest_by' THEN pg_catalog.lower(arguments[i]) ELSE arguments[i] END;
            IF rule = 'newest_by' THEN
                IF NOT EXISTS (SELECT FROM pg_catalog.pg_attribute a WHERE a.attrelid = relation AND a.attname = argument AND a.attnum > 0 AND NOT a.attisdropped) THEN
                    RAISE EXCEPTION 'column "%" of table % does not exist', argument, relation USING ERRCODE = 'undefined_column',
                        HINT = 'Name columns of the table; write names with upper-case letters in double quotes.';
                END IF;
                IF EXISTS (SELECT FROM pg_catalog.pg_attribute a WHERE a.attrelid = relation AND a.attname = argument AND a.attgenerated <> '') OR argument = '__repl_clock' THEN
                    RAISE EXCEPTION 'column "%" of table % is not written by users', argument, relation USING ERRCODE = 'invalid_parameter_value',
                        HINT = 'Name a column that says which version is newer, as event_ts.';
                END IF;
                IF NOT (SELECT repl_ml.has_order(a.atttypid) FROM pg_catalog.pg_attribute a WHERE a.attrelid = relation AND a.attname = argument AND NOT a.attisdropped) THEN
                    RAISE EXCEPTION 'values of column "%" of table % have no order', argument, relation USING ERRCODE = 'invalid_parameter_value',
                        HINT = 'Name a column of a type that can be sorted.';
                END IF;
            ELSIF rule = 'node_priority' THEN
                SELECT m.node_id::text INTO id FROM repl_ml.member m WHERE m.node_name = argument AND m.state <> 'dropped';
                IF NOT FOUND THEN
                    RAISE EXCEPTION 'node "%" does not exist', argument USING ERRCODE = 'undefined_object',
                        HINT = 'Run SELECT node_name, state FROM repl_ml.nodes.';
                END IF;
                argument := id;
            END IF;
            arguments[i] := argument;
        END LOOP;
    END
    $$;
COMMENT ON FUNCTION repl_ml.parse_resolver(regclass, text) IS 'takes a resolver apart and checks it against the table';

CREATE FUNCTION repl_ml.set_resolver(relation regclass, resolver text) RETURNS void
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
    AS $$
    DECLARE
        t record;
        r record;
    BEGIN
        PERFORM repl_ml.refuse_nulls('relation, resolver', pg_catalog.num_nulls(relation, resolver));
        PERFORM repl_ml.require_member();
        SELECT * INTO t FROM repl_ml.require_replicated(relation);
        SELECT * INTO r FROM repl_ml.parse_resolver(relation, resolver);
        INSERT INTO repl_ml.conflict_policy (schema_name, table_name, rule, arguments) VALUES (t.schema_name, t.table_name, r.rule, r.arguments);
    END
    $$;
COMMENT ON FUNCTION repl_ml.set_resolver(regclass, text) IS
    'how conflicts of a table''s rows are resolved from now on, on all nodes: last_write, newest_by(column, ...) (greatest values win), node_priority(node, ...) (the first node wins, nodes not named come last), function(name) (calls name(local row, remote row, local clock, remote clock), which returns the row), keep_both (as last_write; the loser is parked). Superusers only. Errors: 55000 not a member or not replicated, 42704 no such resolver or node, 42703 no such column, 42883 no such function, 22023 wrong argument';

CREATE FUNCTION repl_ml.check_column_merge(relation regclass, column_name name, merge text) RETURNS void
    AS 'MODULE_PATHNAME', 'repl_ml_check_column_merge' LANGUAGE C STABLE STRICT;
COMMENT ON FUNCTION repl_ml.check_column_merge(regclass, name, text) IS 'an error if the column cannot follow that merge rule';

CREATE FUNCTION repl_ml.set_column_merge(relation regclass, column_name name, merge text) RETURNS void
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
    AS $$
    DECLARE
        t record;
    BEGIN
        PERFORM repl_ml.refuse_nulls('relation, column_name, merge', pg_catalog.num_nulls(relation, column_name, merge));
        PERFORM repl_ml.require_member();
        SELECT * INTO t FROM repl_ml.require_replicated(relation);
        PERFORM repl_ml.check_column_merge(relation, column_name, merge);
        INSERT INTO repl_ml.conflict_policy (schema_name, table_name, column_name, rule)
        VALUES (t.schema_name, t.table_name, set_column_merge.column_name, merge);
    END
    $$;
COMMENT ON FUNCTION repl_ml.set_column_merge(regclass, name, text) IS
    'how concurrent values of a column are merged from now on, on all nodes, whichever version of the row wins: max, min, counter (adds up what every node added; also arrays of numbers, by element), set_union (arrays and jsonb arrays), jsonb_merge (objects, by key), independent (the last write of the column itself), none (as the row). Set it before the column is written concurrently. Superusers only. Errors: 55000 not a member or not replicated, 42703 no such column, 22023 no such rule or not for this type';

CREATE FUNCTION repl_ml.check_resolver(relation regclass, sample_rows integer DEFAULT 100, OUT check_name text, OUT status text, OUT pairs bigint, OUT detail text, OUT hint text)
    RETURNS SETOF record
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
    AS $$
    DECLARE
        t record;
        p record;
        row_type regtype;
        resolver text;
        keys text;
        other text;
        a record;
        failure text;
        uneven text;
        nothing text;
        moved text;
    BEGIN
        PERFORM repl_ml.refuse_nulls('relation, sample_rows', pg_catalog.num_nulls(relation, sample_rows));
        IF sample_rows < 2 OR sample_rows > 10000 THEN
            RAISE EXCEPTION 'sample_rows is %', sample_rows USING ERRCODE = 'invalid_parameter_value', HINT = 'Sample 2 to 10000 rows.';
        END IF;
        SELECT * INTO t FROM repl_ml.require_replicated(relation);
        SELECT x.rule, x.arguments INTO p FROM repl_ml.conflict_policy x
         WHERE x.schema_name = t.schema_name AND x.table_name = t.table_name AND x.column_name = ''
         ORDER BY repl_ml.max_counter(x.__repl_clock) DESC, repl_ml.last_writer(x.__repl_clock) DESC LIMIT 1;
        pairs := 0;
        IF coalesce(p.rule, 'last_write') <> 'function' THEN
            check_name := 'symmetric'; status := 'ok';
            detail := pg_catalog.format('The resolver %s orders versions and cannot depend on which one is local.', coalesce(p.rule, 'last_write'));
            RETURN NEXT;
            RETURN;
        END IF;
        row_type := (SELECT c.reltype FROM pg_catalog.pg_class c WHERE c.oid = relation);
        SELECT pg_catalog.format('%I.%I', n.nspname, f.proname) INTO resolver FROM pg_catalog.pg_proc f JOIN pg_catalog.pg_namespace n ON n.oid = f.pronamespace
         WHERE f.oid = pg_catalog.to_regprocedure(pg_catalog.format('%s(%s, %s, repl_ml.vclock, repl_ml.vclock)', p.arguments[1], row_type, row_type));
        IF resolver IS NULL THEN
            check_name := 'exists'; status := 'failed';
            detail := pg_catalog.format('The function %s(%s, %s, repl_ml.vclock, repl_ml.vclock) does not exist.', p.arguments[1], row_type, row_type);
            hint := 'Create it on every node.';
            RETURN NEXT;
            RETURN;
        END IF;
        -- pairs of versions as they may meet: the other row under this one's key
        SELECT pg_catalog.string_agg(pg_catalog.format('%L, (x.a).%I', a1.attname, a1.attname), ', ') INTO keys
          FROM pg_catalog.pg_index i JOIN pg_catalog.pg_attribute a1 ON a1.attrelid = i.indrelid AND a1.attnum = ANY (i.indkey)
         WHERE i.indrelid = relation AND i.indisprimary;
        FOR a IN SELECT q.r[1] AS a, q.r[2] AS b FROM repl_ml.query_as_owner(relation, pg_catalog.format(
                'WITH s AS MATERIALIZED (SELECT r AS v, pg_catalog.row_number() OVER () AS n FROM (SELECT r FROM %s r ORDER BY pg_catalog.random() LIMIT %s) q),'
                ' x AS (SELECT s.v AS a, o.v AS b FROM s JOIN s o ON o.n = s.n %% (SELECT pg_catalog.count(*) FROM s) + 1 AND o.n <> s.n)'
                ' SELECT x.a::text AS a, pg_catalog.jsonb_populate_record(x.b, pg_catalog.jsonb_build_object(%s))::text AS b FROM x', relation, sample_rows, keys)) q(r) LOOP
            pairs := pairs + 1;
            BEGIN
                SELECT q.r[1], q.r[2] INTO keys, other FROM repl_ml.query_as_owner(relation, pg_catalog.format(
                    'SELECT pg_catalog.jsonb_strip_nulls(pg_catalog.to_jsonb(l.*) - ''__repl_clock'')::text, pg_catalog.jsonb_strip_nulls(pg_catalog.to_jsonb(r.*) - ''__repl_clock'')::text'
                    ' FROM %1$s($1::%2$s, $2::%2$s, ''{1:1}'', ''{2:2}'') l, %1$s($2::%2$s, $1::%2$s, ''{2:2}'', ''{1:1}'') r', resolver, row_type), ARRAY[a.a, a.b]) q(r);
                IF keys IN ('{}') OR keys IS NULL OR other IN ('{}') OR other IS NULL THEN
                    nothing := a.a || ' and ' || a.b;
                ELSIF keys <> other THEN
                    uneven := a.a || ' and ' || a.b;
                END IF;
            EXCEPTION WHEN OTHERS THEN
                failure := pg_catalog.format('%s (%s) for %s and %s', sqlerrm, sqlstate, a.a, a.b);
            END;
        END LOOP;
        FOR check_name, detail, hint IN VALUES ('raises no error', failure, 'Let the function return a row for every pair of versions.'),
                ('returns a row', nothing, 'The function must not return null.'),
                ('symmetric', uneven, 'The function must return the same row when its arguments change places.') LOOP
            status := CASE WHEN detail IS NOT NULL THEN 'failed' WHEN pairs = 0 THEN 'unknown' ELSE 'ok' END;
            IF detail IS NULL THEN
                hint := CASE WHEN pairs = 0 THEN 'The table needs two rows at least.' END;
            END IF;
            RETURN NEXT;
        END LOOP;
    END
    $$;
COMMENT ON FUNCTION repl_ml.check_resolver(regclass, integer) IS
    'tries the resolver function of a table on pairs of the table''s own rows, both ways round: whether it raises an error, returns null or depends on which version is local; the last failing pair is in detail. Superusers only. Errors: 55000 not replicated, 22023 bad sample_rows';

-- Foreign keys are not enforced while applying
CREATE FUNCTION repl_ml.orphans(relation regclass, OUT constraint_name name, OUT key text[], OUT referenced regclass, OUT missing_key text[])
    RETURNS SETOF record
    AS 'MODULE_PATHNAME', 'repl_ml_orphans' LANGUAGE C STABLE STRICT;
COMMENT ON FUNCTION repl_ml.orphans(regclass) IS
    'rows of a table on this node whose foreign keys refer to rows that are not there: changes are applied without checking foreign keys, so a row deleted on one node while another refers to it leaves such rows, the same on all nodes once they have everything. One row for each foreign key and row. The caller needs to read the tables';

--
-- Operating
--

CREATE FUNCTION repl_ml.pause_apply(peer name) RETURNS void
    AS 'MODULE_PATHNAME', 'repl_ml_pause_apply' LANGUAGE C VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp;
COMMENT ON FUNCTION repl_ml.pause_apply(name) IS 'stops applying what a peer sends, until resume_apply or a restart; returns when applying has stopped. Errors: 42704 no such peer';
CREATE FUNCTION repl_ml.resume_apply(peer name) RETURNS void
    AS 'MODULE_PATHNAME', 'repl_ml_resume_apply' LANGUAGE C VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp;
COMMENT ON FUNCTION repl_ml.resume_apply(name) IS 'goes on applying what a peer sends. Errors: 42704 no such peer';

CREATE FUNCTION repl_ml.reset_write_stats() RETURNS void
    AS 'MODULE_PATHNAME', 'repl_ml_reset_write_stats' LANGUAGE C VOLATILE STRICT;
COMMENT ON FUNCTION repl_ml.reset_write_stats() IS 'sets the counters of repl_ml.stat_write_consistency to zero';

-- Only for the losers of conflicts; no row for other parked changes
CREATE FUNCTION repl_ml.parked_loser_statement(id bigint, OUT relation regclass, OUT statement text)
    LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
    AS $$
    SELECT c.oid::pg_catalog.regclass,
           pg_catalog.format('INSERT INTO %I.%I (%s) OVERRIDING SYSTEM VALUE VALUES (%s) ON CONFLICT (%s) DO %s', p.schema_name, p.table_name,
               pg_catalog.string_agg(pg_catalog.quote_ident(a.attname), ', ' ORDER BY a.attnum),
               pg_catalog.string_agg(pg_catalog.quote_nullable(p.change ->> a.attname::text), ', ' ORDER BY a.attnum),
               (SELECT pg_catalog.string_agg(pg_catalog.quote_ident(k.attname), ', ') FROM pg_catalog.pg_attribute k
                 WHERE k.attrelid = c.oid AND k.attnum = ANY (pg_catalog.min(i.indkey::pg_catalog.int2[]))),
               coalesce('UPDATE SET ' || pg_catalog.string_agg(pg_catalog.format('%1$I = excluded.%1$I', a.attname), ', ')
                                         FILTER (WHERE a.attnum <> ALL (i.indkey) AND a.attidentity <> 'a'), 'NOTHING'))
      FROM repl_ml.parked_change p
      JOIN pg_catalog.pg_namespace n ON n.nspname = p.schema_name
      JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid AND c.relname = p.table_name
      JOIN pg_catalog.pg_index i ON i.indrelid = c.oid AND i.indisprimary
      JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''
     WHERE p.id = parked_loser_statement.id AND p.action IN ('evicted', 'kept') AND p.change ? a.attname::text
     GROUP BY c.oid, p.schema_name, p.table_name
    $$;
COMMENT ON FUNCTION repl_ml.parked_loser_statement(bigint) IS 'the statement that writes the losing version of a conflict again';

CREATE FUNCTION repl_ml.retry_parked(id bigint) RETURNS void
    AS 'MODULE_PATHNAME', 'repl_ml_retry_parked' LANGUAGE C VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp;
COMMENT ON FUNCTION repl_ml.retry_parked(bigint) IS 'applies a parked change again, at once; the losing version of a conflict (action evicted or kept) is written as a new change of this node, which goes to all. It leaves repl_ml.parked_changes if that works. Errors: 42704 no such change, else what the change raises';
CREATE FUNCTION repl_ml.discard_parked(id bigint) RETURNS void
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
    AS $$
    BEGIN
        PERFORM repl_ml.refuse_nulls('id', pg_catalog.num_nulls(id));
        INSERT INTO repl_ml.discarded_transaction (node_id, commit_lsn, xid)
        SELECT p.origin_node, p.origin_lsn, p.origin_xid FROM repl_ml.parked_change p
         WHERE p.id = discard_parked.id AND p.action NOT IN ('evicted', 'kept') ON CONFLICT DO NOTHING;
        DELETE FROM repl_ml.parked_change p WHERE p.id = discard_parked.id;
        IF NOT FOUND THEN
            RAISE EXCEPTION 'parked change % does not exist', id USING ERRCODE = 'undefined_object',
                HINT = 'Run SELECT id, message FROM repl_ml.parked_changes.';
        END IF;
    END
    $$;
COMMENT ON FUNCTION repl_ml.discard_parked(bigint) IS 'gives up a parked change for good: this node then differs from the others, except for the losing version of a conflict (action evicted or kept), which is gone everywhere. Errors: 42704 no such change';

CREATE FUNCTION repl_ml.current_vector() RETURNS repl_ml.vclock
    AS 'MODULE_PATHNAME', 'repl_ml_current_vector' LANGUAGE C VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp;
COMMENT ON FUNCTION repl_ml.current_vector() IS
    'a token for everything this session can have written or seen here so far, as {node:WAL position,...}; repl_ml.wait_for_vector waits for it on any node. Errors: 55000 not a member';
CREATE FUNCTION repl_ml.wait_for_vector(vector repl_ml.vclock, timeout interval) RETURNS void
    AS 'MODULE_PATHNAME', 'repl_ml_wait_for_vector' LANGUAGE C VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp;
COMMENT ON FUNCTION repl_ml.wait_for_vector(repl_ml.vclock, interval) IS
    'waits until what a token of repl_ml.current_vector() stands for is visible on this node. Errors: 57014 timeout, with what is missing, 25001 in a transaction whose snapshot would not show it';
CREATE FUNCTION repl_ml.barrier(timeout interval) RETURNS void
    AS 'MODULE_PATHNAME', 'repl_ml_barrier' LANGUAGE C VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp;
COMMENT ON FUNCTION repl_ml.barrier(interval) IS
    'waits until everything that was acknowledged by write consistency quorum or all, on whatever node, before the call is visible on this node; needs more than half of the members. Errors: 57014 timeout, with who has not answered or what is missing, 25001 in a transaction whose snapshot would not show it, 55000 joining or not a member';

-- What must not be decided without the tombstones it may meet
CREATE FUNCTION repl_ml.holds_late_changes() RETURNS boolean
    LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
    AS $$
    SELECT EXISTS (SELECT FROM repl_ml.parked_change p WHERE p.action NOT IN ('evicted', 'kept')) OR EXISTS (SELECT FROM repl_ml.eviction)
    $$;
COMMENT ON FUNCTION repl_ml.holds_late_changes() IS 'whether something old is parked here, or evicted and not announced: then nobody may remove tombstones';

-- The rows of repl_ml.eviction become tombstones, which travel
CREATE FUNCTION repl_ml.announce_evictions() RETURNS void
    LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp
    AS $$
    WITH evicted AS (DELETE FROM repl_ml.eviction RETURNING *)
    INSERT INTO repl_ml.tombstone (schema_name, table_name, key, key_columns, key_hash, deleted_at, eviction, __repl_clock)
    SELECT e.schema_name, e.table_name, e.key, e.key_columns, e.key_hash, pg_catalog.now(), e.eviction, e.__repl_clock FROM evicted e
    $$;
COMMENT ON FUNCTION repl_ml.announce_evictions() IS 'tells the group which versions lost a unique key here';

-- The clock of an eviction is that of the version that went, and may be old. The winner's writer may have known that
-- version overwritten, before it wrote: so it is kept until everything written up to then, by whomever, is here. All of a
-- key or nothing. The floor is in the stream before whatever is written without these tombstones.
CREATE FUNCTION repl_ml.collect_tombstones(stable text) RETURNS void
    LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp
    AS $$
    WITH kept AS (SELECT t.schema_name, t.table_name, t.key_hash FROM repl_ml.tombstone t
                   WHERE t.eviction IS NOT NULL AND repl_ml.max_counter((t.eviction->>'winner_clock')::repl_ml.vclock) >=
                         (SELECT min(coalesce(repl_ml.counter(stable::repl_ml.vclock, m.node_id), 0)) FROM repl_ml.member m WHERE m.state <> 'dropped')),
    gone AS (DELETE FROM repl_ml.tombstone t WHERE t.__repl_clock OPERATOR(repl_ml.<@) stable::repl_ml.vclock
                AND NOT EXISTS (SELECT FROM kept k WHERE (k.schema_name, k.table_name, k.key_hash) = (t.schema_name, t.table_name, t.key_hash))
             RETURNING 1)
    INSERT INTO repl_ml.collection AS c (node_id, floor)
    SELECT l.node_id, stable::repl_ml.vclock FROM repl_ml.local_node l WHERE EXISTS (SELECT FROM gone)
    ON CONFLICT (node_id) DO UPDATE SET floor = repl_ml.merge(c.floor, excluded.floor)
    $$;
COMMENT ON FUNCTION repl_ml.collect_tombstones(text) IS 'removes tombstones that can no longer decide anything, and tells the group up to where; stable is a clock';

-- All of a key or nothing, and only when every rule that may be in force for them is known and no eviction is kept
CREATE FUNCTION repl_ml.collect_versions(stable text) RETURNS void
    LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp
    AS $$
    WITH k AS (SELECT v.schema_name, v.table_name, v.key_hash FROM repl_ml.concurrent_version v
                GROUP BY 1, 2, 3
               HAVING pg_catalog.bool_and(v.__repl_clock OPERATOR(repl_ml.<@) stable::repl_ml.vclock)
                  AND pg_catalog.max(repl_ml.max_counter(v.__repl_clock)) <
                      (SELECT pg_catalog.min(coalesce(repl_ml.counter(stable::repl_ml.vclock, m.node_id), 0)) FROM repl_ml.member m WHERE m.state <> 'dropped')
                  AND NOT EXISTS (SELECT FROM repl_ml.tombstone t WHERE (t.schema_name, t.table_name, t.key_hash) = (v.schema_name, v.table_name, v.key_hash)
                                     AND t.eviction IS NOT NULL))
    DELETE FROM repl_ml.concurrent_version v USING k
     WHERE (v.schema_name, v.table_name, v.key_hash) = (k.schema_name, k.table_name, k.key_hash)
    $$;
COMMENT ON FUNCTION repl_ml.collect_versions(text) IS 'removes concurrent versions of rows that every later write will know; stable is a clock';

-- What every member has applied of every node; dropped nodes send nothing more
CREATE FUNCTION repl_ml.stable_vector() RETURNS repl_ml.vclock
    LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
    AS $$
    SELECT coalesce(repl_ml.merge_agg(pg_catalog.format('{%s:%s}', s.node_id, s.least)::repl_ml.vclock), '{}')
      FROM (SELECT w.node_id,
                   CASE WHEN w.state = 'dropped' THEN 36028797018963967
                        ELSE min(coalesce(repl_ml.counter(h.applied, w.node_id), 0)) END AS least
              FROM repl_ml.member w CROSS JOIN repl_ml.member m LEFT JOIN repl_ml.heartbeat h ON h.node_id = m.node_id
             WHERE m.state <> 'dropped' GROUP BY w.node_id, w.state) s
     WHERE s.least > 0
    $$;
COMMENT ON FUNCTION repl_ml.stable_vector() IS 'for each node the counter below which all members have all its writes, as the heartbeats tell';

-- Reached by stable_vector when all have read a newer heartbeat of each member than the present one
CREATE FUNCTION repl_ml.next_heartbeats() RETURNS repl_ml.vclock
    LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
    AS $$
    SELECT repl_ml.merge_agg(pg_catalog.format('{%s:%s}', m.node_id, coalesce(h.safe_counter, 0) + 1)::repl_ml.vclock)
      FROM repl_ml.member m LEFT JOIN repl_ml.heartbeat h USING (node_id) WHERE m.state <> 'dropped'
    $$;
COMMENT ON FUNCTION repl_ml.next_heartbeats() IS 'a vector that stable_vector covers only after another heartbeat of each member has been applied by all';

--
-- What became of a transaction
--

CREATE FUNCTION repl_ml.transaction_token() RETURNS text
    AS 'MODULE_PATHNAME', 'repl_ml_transaction_token' LANGUAGE C VOLATILE STRICT;
COMMENT ON FUNCTION repl_ml.transaction_token() IS
    'the name of the transaction it is called in, for repl_ml.transaction_status() after a lost connection. Everybody may call it; the first call in a transaction waits for the disk. Errors: 25000 in a read-only transaction, 55000 not a member';

CREATE FUNCTION repl_ml.token_parts(token text, OUT node_id integer, OUT xid xid8, OUT issued_at timestamptz)
    AS 'MODULE_PATHNAME', 'repl_ml_token_parts' LANGUAGE C VOLATILE STRICT;
COMMENT ON FUNCTION repl_ml.token_parts(text) IS 'what a token says, or an error if it is none of this group';

CREATE FUNCTION repl_ml.ask_members(dsns text[], question text) RETURNS text[]
    AS 'MODULE_PATHNAME', 'repl_ml_ask_members' LANGUAGE C VOLATILE STRICT;
COMMENT ON FUNCTION repl_ml.ask_members(text[], text) IS 'the answers of members to a query of one row and column, null where there is none within seconds';

CREATE FUNCTION repl_ml.require_fresh_view() RETURNS void
    AS 'MODULE_PATHNAME', 'repl_ml_require_fresh_view' LANGUAGE C VOLATILE STRICT;
COMMENT ON FUNCTION repl_ml.require_fresh_view() IS 'an error in a transaction that sees only what was there when it began';

-- Committed is what somebody has; aborted is what nobody can get any more
CREATE FUNCTION repl_ml.judge_transaction(facts jsonb[], origin integer, issued_at timestamptz) RETURNS text
    LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
    AS $$
    WITH f AS (SELECT DISTINCT ON (x.node) x.* FROM pg_catalog.unnest(facts) j,
                      pg_catalog.jsonb_to_record(j) x (node integer, state text, level text, commit_lsn pg_lsn, applied_lsn pg_lsn, has boolean, has_not boolean, lacks boolean)),
         e AS (SELECT max(f.commit_lsn) AS lsn, bool_or(f.state = 'committed') AS committed,
                      -- its node knows the level of those that it knows not to be acknowledged
                      bool_or(f.node = origin AND f.state = 'committed' AND f.level IS NOT NULL) AS is_sure,
                      -- where nobody knows the level, all have to have it
                      CASE WHEN bool_or(f.level = 'all') THEN 'all' WHEN bool_or(f.level = 'quorum') THEN 'quorum'
                           WHEN bool_or(f.level = 'one') THEN 'one' ELSE 'all' END AS level FROM f),
         m AS (SELECT m.node_id, m.state, f.applied_lsn, f.has, f.has_not, coalesce(f.lacks, false) AS lacks FROM repl_ml.member m LEFT JOIN f ON f.node = m.node_id WHERE m.state <> 'dropped'),
         c AS (SELECT count(*) FILTER (WHERE m.state = 'ready') AS ready,
                      count(*) FILTER (WHERE m.state = 'ready' AND NOT m.lacks AND (m.node_id = origin OR m.applied_lsn > e.lsn OR m.has)) AS have,
                      -- who has not answered, or cannot be compared with, may have acknowledged it
                      count(*) FILTER (WHERE m.state = 'ready' AND m.node_id <> origin AND NOT m.lacks AND NOT coalesce(m.has, false)
                                             AND (m.applied_lsn IS NULL OR e.lsn IS NULL)) AS may_have,
                      bool_and(m.node_id <> origin AND coalesce(m.has_not, false)) AS nobody FROM m, e),
         -- who has left the group since then may have had it, and its node had; what all have acknowledged they still have
         g AS (SELECT count(*) AS gone, count(*) FILTER (WHERE m.node_id = origin) AS its_node FROM repl_ml.member m, e
                WHERE e.level = 'quorum' AND m.state = 'dropped'
                  AND repl_ml.max_counter(m.__repl_clock) >= EXTRACT(epoch FROM issued_at - '2000-01-01 00:00:00+00') * 1000000)
    SELECT CASE WHEN e.lsn IS NOT NULL OR e.committed THEN
                -- before its node says so, the next one to be asked may say otherwise
                CASE WHEN e.is_sure THEN 'committed'
                     WHEN c.have >= n.needed OR (g.gone > 0 AND c.have + g.its_node > (c.ready + g.gone) / 2) THEN 'acknowledged'
                     WHEN c.have + c.may_have + g.gone < n.needed THEN 'committed'
                     ELSE 'unknown' END
                -- records are kept for longer than that
                WHEN c.nobody AND issued_at > pg_catalog.clock_timestamp() - '1 day'::interval THEN 'aborted'
                ELSE 'unknown' END
      FROM e, c, g, LATERAL (SELECT CASE e.level WHEN 'one' THEN 0 WHEN 'quorum' THEN c.ready / 2 + 1 ELSE c.ready END AS needed) n
    $$;
COMMENT ON FUNCTION repl_ml.judge_transaction(jsonb[], integer, timestamptz) IS 'what became of a transaction, from what the members know of it (repl_ml.transaction_facts)';

CREATE FUNCTION repl_ml.transaction_status(token text) RETURNS text
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
    AS $$
    DECLARE
        self record;
        t record;
        question text;
        facts jsonb[];
        origin_state text;
        past boolean;
    BEGIN
        PERFORM repl_ml.refuse_nulls('token', pg_catalog.num_nulls(token));
        PERFORM repl_ml.require_fresh_view();
        SELECT m.node_id, l.group_id INTO self FROM repl_ml.require_member() m, repl_ml.local_node l;
        SELECT * INTO t FROM repl_ml.token_parts(token);
        question := pg_catalog.format('SET statement_timeout = ''2s''; SELECT repl_ml.transaction_facts(%L, %s, %L)', self.group_id, t.node_id, t.xid);

        -- the node of the transaction knows best
        facts := ARRAY[repl_ml.transaction_facts(self.group_id, t.node_id, t.xid)::jsonb];
        IF t.node_id <> self.node_id THEN
            facts := facts || ARRAY(SELECT a::jsonb FROM pg_catalog.unnest(repl_ml.ask_members(ARRAY(
                SELECT m.dsn FROM repl_ml.member m WHERE m.state <> 'dropped' AND m.node_id = t.node_id), question)) a WHERE a IS NOT NULL);
        END IF;
        SELECT f ->> 'state' INTO origin_state FROM pg_catalog.unnest(facts) f WHERE f ->> 'node' = t.node_id::text;
        SELECT (f ->> 'past')::boolean INTO past FROM pg_catalog.unnest(facts) f WHERE f ->> 'node' = t.node_id::text;
        IF origin_state = 'aborted' OR (origin_state = 'acknowledged' AND NOT past) THEN
            RETURN origin_state;
        ELSIF origin_state = 'in progress' THEN
            RETURN 'unknown';
        END IF;

        facts := facts || ARRAY(SELECT a::jsonb FROM pg_catalog.unnest(repl_ml.ask_members(ARRAY(
            SELECT m.dsn FROM repl_ml.member m WHERE m.state <> 'dropped' AND m.node_id NOT IN (t.node_id, self.node_id)), question)) a WHERE a IS NOT NULL);
        IF origin_state = 'acknowledged' AND NOT EXISTS (SELECT FROM pg_catalog.unnest(facts) f WHERE (f ->> 'lacks')::boolean) THEN
            RETURN origin_state;
        END IF;
        RETURN repl_ml.judge_transaction(facts, t.node_id, t.issued_at);
    END
    $$;
COMMENT ON FUNCTION repl_ml.transaction_status(text) IS
    'what became of the transaction of a token, on any node, for everybody: acknowledged (durable and applied on as many members as its level asks for), committed (at its node, and not acknowledged so far), aborted, or unknown (still in progress, or the members that can be asked do not know). Takes at most some seconds. Errors: 22023 not a token of this group, 55000 not a member, 25001 in a transaction that does not see what is new';

CREATE FUNCTION repl_ml.unacknowledged(OUT level text, OUT transactions bigint) RETURNS SETOF record
    AS 'MODULE_PATHNAME', 'repl_ml_unacknowledged' LANGUAGE C VOLATILE STRICT;
COMMENT ON FUNCTION repl_ml.unacknowledged() IS 'for each level above one, how many transactions are visible on this node though the level has not acknowledged them, but may do so, since their wait was given up or the server ended during it; null for a while after a server start, if that is not known';

--
-- Views
--

CREATE VIEW repl_ml.nodes AS
    SELECT m.node_id, m.node_name, m.state, m.node_id = l.node_id AS is_local, m.host, m.port, m.dbname, m.system_identifier, m.joined_at,
           h.sent_at AS last_heartbeat, w.reachable, w.silent_for
      FROM repl_ml.member m LEFT JOIN repl_ml.local_node l ON true LEFT JOIN repl_ml.heartbeat h ON h.node_id = m.node_id
      LEFT JOIN repl_ml.write_members() w ON w.node_id = m.node_id;
COMMENT ON VIEW repl_ml.nodes IS
    'members of the group, also dropped ones; connection strings are not shown. reachable: it counts for commits with write consistency quorum and all now, because it is connected and has spoken, silent_for ago, within two heartbeats; null where that is not known, and for nodes that are not ready';

-- Priorities are kept as node ids, which nobody else gets, and shown as names
CREATE VIEW repl_ml.conflict_policies AS
    SELECT p.schema_name, p.table_name, p.column_name, p.resolver, p.merge, p.set_at, p.set_by
      FROM (SELECT DISTINCT ON (p.schema_name, p.table_name, p.column_name)
                   p.schema_name, p.table_name, nullif(p.column_name, '') AS column_name,
                   CASE WHEN p.column_name = '' THEN
                        p.rule || CASE WHEN p.arguments = '{}' THEN '' ELSE '(' ||
                            (SELECT pg_catalog.string_agg(CASE p.rule WHEN 'node_priority' THEN coalesce(n.node_name::text, a.argument) ELSE a.argument END, ', ' ORDER BY a.place)
                               FROM pg_catalog.unnest(p.arguments) WITH ORDINALITY a (argument, place)
                               LEFT JOIN repl_ml.member n ON p.rule = 'node_priority' AND n.node_id::text = a.argument) || ')' END END AS resolver,
                   CASE WHEN p.column_name <> '' THEN p.rule END AS merge,
                   p.set_at, m.node_name AS set_by
              FROM repl_ml.conflict_policy p LEFT JOIN repl_ml.member m ON m.node_id = repl_ml.last_writer(p.__repl_clock)
             ORDER BY p.schema_name, p.table_name, p.column_name, repl_ml.max_counter(p.__repl_clock) DESC, repl_ml.last_writer(p.__repl_clock) DESC) p
     WHERE p.merge IS DISTINCT FROM 'none';
COMMENT ON VIEW repl_ml.conflict_policies IS
    'how conflicts of replicated tables are resolved now, as far as this node knows: one row for a table''s resolver (column_name null), one for each column with a merge rule; tables without a row use last_write';

-- This node's tables beside each other member's; where they are the same there is no row
CREATE VIEW repl_ml.shape_differences AS
    SELECT DISTINCT ON (p.schema_name, p.table_name, p.node_id) p.schema_name, p.table_name, p.node_id, m.node_name,
           pg_catalog.substr(k.key, 2) AS object, coalesce(k.here, 'missing') AS here, coalesce(k.there, 'missing') AS there
      FROM repl_ml.local_node l
      JOIN repl_ml.table_shape s ON s.node_id = l.node_id
      JOIN repl_ml.table_shape p ON p.schema_name = s.schema_name AND p.table_name = s.table_name AND p.shape IS DISTINCT FROM s.shape
      JOIN repl_ml.member m ON m.node_id = p.node_id AND m.node_id <> l.node_id AND m.state = 'ready'
      LEFT JOIN repl_ml.replicated_table t ON t.schema_name = s.schema_name AND t.table_name = s.table_name
     CROSS JOIN LATERAL (SELECT coalesce(a.key, b.key) AS key, a.value AS here, b.value AS there
                           FROM pg_catalog.jsonb_each_text(coalesce(s.shape, '{}')) a FULL JOIN pg_catalog.jsonb_each_text(coalesce(p.shape, '{}')) b ON a.key = b.key
                          WHERE a.value IS DISTINCT FROM b.value) k
     WHERE s.table_name = '' OR t.state = 'enrolled'
     ORDER BY p.schema_name, p.table_name, p.node_id, k.key COLLATE "C";
COMMENT ON VIEW repl_ml.shape_differences IS
    'replicated tables that are not the same here and on another member: one row for each such member, with the first object that differs and what it is here and there; the row without table is about the database and its server';

-- Not those of extensions, temporary ones and partitions; nor those that were taken out of the group or are meant to stay local
CREATE VIEW repl_ml.unreplicated_tables AS
    SELECT n.nspname AS schema_name, c.relname AS table_name, c.oid::regclass AS relation,
           -- looked for only where they are asked for
           (SELECT o.message FROM repl_ml.enrol_obstacle(c.oid) o LIMIT 1) AS obstacle,
           (SELECT o.hint FROM repl_ml.enrol_obstacle(c.oid) o LIMIT 1) AS hint
      FROM repl_ml.local_node l
     CROSS JOIN pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
     WHERE c.relkind IN ('r', 'p') AND c.relpersistence = 'p' AND NOT c.relispartition
       AND n.nspname NOT IN ('repl_ml', 'information_schema') AND n.nspname NOT LIKE 'pg\_%'
       AND NOT EXISTS (SELECT FROM repl_ml.replicated_table t WHERE t.schema_name = n.nspname AND t.table_name = c.relname)
       AND NOT EXISTS (SELECT FROM pg_catalog.pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e');
COMMENT ON VIEW repl_ml.unreplicated_tables IS
    'tables of this database that no other node gets rows of, because nobody has added them to the group; obstacle is why one cannot be added, hint what to do about it. See repl_ml.add_table and repl_ml.keep_local';

CREATE VIEW repl_ml.tables AS
    SELECT t.schema_name, t.table_name, c.oid::regclass AS relation,
           coalesce((SELECT p.resolver FROM repl_ml.conflict_policies p
                      WHERE p.schema_name = t.schema_name AND p.table_name = t.table_name AND p.column_name IS NULL), 'last_write') AS resolver,
           m.node_name AS enrolled_by,
           CASE WHEN c.oid IS NULL THEN 'missing' WHEN r.oid IS NULL THEN 'pending' ELSE 'replicated' END AS state,
           (SELECT pg_catalog.count(*) FROM repl_ml.table_sync y
             WHERE y.schema_name = t.schema_name AND y.table_name = t.table_name AND y.state = 'pending') AS pending_copies,
           k.parked_changes, coalesce(f.problem, k.problem) AS problem, t.write_consistency,
           CASE WHEN h.differs_on IS NULL AND s.known = (SELECT pg_catalog.count(*) FROM repl_ml.member x WHERE x.state = 'ready') THEN '{}' ELSE h.differs_on END AS differs_on, h.difference
      FROM repl_ml.replicated_table t
      LEFT JOIN repl_ml.member m ON m.node_id = t.enrolled_by
      LEFT JOIN (pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace)
             ON n.nspname = t.schema_name AND c.relname = t.table_name
      LEFT JOIN (pg_catalog.pg_publication_rel r JOIN pg_catalog.pg_publication p ON p.oid = r.prpubid AND p.pubname = 'repl_ml') ON r.prrelid = c.oid
      CROSS JOIN LATERAL (SELECT coalesce(pg_catalog.sum(CASE x.action WHEN 'counted' THEN (x.change->>'changes')::bigint ELSE 1 END), 0)::bigint AS parked_changes, (pg_catalog.array_agg(x.message ORDER BY x.id DESC))[1] AS problem
                            FROM repl_ml.parked_change x
                           WHERE x.schema_name = t.schema_name AND x.table_name = t.table_name AND x.action NOT IN ('evicted', 'kept')) k
      LEFT JOIN LATERAL (SELECT pg_catalog.format('could not %s it: %s', x.action, x.message) || coalesce(' (' || x.detail || ')', '') AS problem FROM repl_ml.table_failure x
                          WHERE x.schema_name = t.schema_name AND x.table_name = t.table_name ORDER BY x.failed_at DESC LIMIT 1) f ON true
      LEFT JOIN (SELECT d.schema_name, d.table_name, pg_catalog.array_agg(d.node_name ORDER BY d.node_id) AS differs_on,
                        (pg_catalog.array_agg(pg_catalog.format('%s: %s here, %s on node "%s"', d.object, d.here, d.there, d.node_name) ORDER BY d.node_id))[1] AS difference
                   FROM repl_ml.shape_differences d GROUP BY 1, 2) h ON h.schema_name = t.schema_name AND h.table_name = t.table_name
      LEFT JOIN (SELECT s.schema_name, s.table_name, pg_catalog.count(*) AS known FROM repl_ml.table_shape s JOIN repl_ml.member m USING (node_id)
                  WHERE m.state = 'ready' GROUP BY 1, 2) s ON s.schema_name = t.schema_name AND s.table_name = t.table_name
     WHERE t.state = 'enrolled';
COMMENT ON VIEW repl_ml.tables IS 'replicated tables and their state on this node; problem is why it could not be created or copied, or why the last of the parked_changes could not be applied; differs_on the members on which it is another table, null where that is not known, and difference the first object that differs';

CREATE VIEW repl_ml.stat_replication AS
    SELECT s.active_pid AS pid, w.usesysid, w.usename, w.application_name, w.client_addr, w.client_hostname, w.client_port,
           w.backend_start, w.backend_xmin, coalesce(w.state, 'down') AS state, w.sent_lsn, w.write_lsn,
           coalesce(w.flush_lsn, s.confirmed_flush_lsn) AS flush_lsn, w.replay_lsn,
           w.write_lag, w.flush_lag,
           w.replay_lag,
           w.sync_priority, w.sync_state, w.reply_time,
           m.node_id, m.node_name, s.slot_name, s.wal_status, s.safe_wal_size,
           pg_catalog.pg_wal_lsn_diff(pg_catalog.pg_current_wal_flush_lsn(), s.confirmed_flush_lsn)::bigint AS lag_bytes,
           CASE WHEN h.applied_own IS NOT NULL THEN
               greatest(pg_catalog.clock_timestamp() - h.applied_own, '0'::interval) END AS heartbeat_lag
      FROM repl_ml.member m
      JOIN repl_ml.local_node l ON l.node_id <> m.node_id
      LEFT JOIN pg_catalog.pg_replication_slots s ON s.slot_name = repl_ml.link_name(m.node_id)
      LEFT JOIN pg_catalog.pg_stat_replication w ON w.pid = s.active_pid
      LEFT JOIN LATERAL (SELECT '2000-01-01 00:00:00+00'::timestamptz + repl_ml.counter(b.applied, l.node_id) * '1 us'::interval AS applied_own
                           FROM repl_ml.heartbeat b WHERE b.node_id = m.node_id) h ON true
     WHERE m.state <> 'dropped';
COMMENT ON VIEW repl_ml.stat_replication IS
    'one row a peer, also when it is down: how far it has confirmed what this node wrote. Lags are as in pg_stat_replication, NULL when unknown or idle; heartbeat_lag is the age of the newest heartbeat of this node that the peer is known to have applied: it includes both directions and the heartbeat interval';

CREATE VIEW repl_ml.stat_apply AS
    SELECT m.node_id, m.node_name, nullif(w.pid, 0) AS pid, coalesce(w.state, 'stopped') AS state,
           w.received_lsn, w.applied_lsn, w.peer_lsn, w.applied_commit_time, w.last_message_time, w.start_time,
           w.transactions, w.changes, w.conflicts, w.parked, w.retries, w.errors,
           w.copy_relation, w.copy_rows,
           (SELECT pg_catalog.count(*) FROM repl_ml.table_sync y WHERE y.node_id = m.node_id AND y.state = 'pending') AS tables_to_copy,
           pg_catalog.clock_timestamp() - h.sent_at AS heartbeat_age,
           w.error_time, w.error_sqlstate, w.error_message, w.error_hint, w.equal_updates, w.equal_inserts
      FROM repl_ml.member m
      JOIN repl_ml.local_node l ON l.node_id <> m.node_id
      LEFT JOIN repl_ml.worker_stats() w ON w.peer = m.node_id
      LEFT JOIN repl_ml.heartbeat h ON h.node_id = m.node_id
     WHERE m.state <> 'dropped';
COMMENT ON VIEW repl_ml.stat_apply IS
    'one row a peer: the worker that applies what the peer writes. Counters since server start; error_* is the last error; heartbeat_age is the age of the peer''s newest write that is applied here. equal_updates and equal_inserts are concurrent writes of the peer that left a row just as another node''s did: no conflict, but of two increments one is lost';

CREATE VIEW repl_ml.conflicts WITH (security_barrier) AS
    SELECT c.conflict_id, c.detected_at, c.schema_name, c.table_name, c.key, c.conflict_type, c.resolution,
           coalesce(w.node_name, c.winner_node::text::name) AS winner_node, coalesce(l.node_name, c.loser_node::text::name) AS loser_node,
           c.winner_clock, c.loser_clock, c.result_clock, c.winner_row, c.loser_row, c.lost_columns,
           coalesce(o.node_name, c.origin_node::text::name) AS origin_node, c.origin_xid, c.origin_lsn, c.origin_time
      FROM repl_ml.conflict_history c
      LEFT JOIN repl_ml.member w ON w.node_id = c.winner_node
      LEFT JOIN repl_ml.member l ON l.node_id = c.loser_node
      LEFT JOIN repl_ml.member o ON o.node_id = c.origin_node
     WHERE pg_catalog.pg_has_role(current_user, 'pg_monitor', 'USAGE')
        OR EXISTS (SELECT FROM pg_catalog.pg_class t JOIN pg_catalog.pg_namespace n ON n.oid = t.relnamespace
                     JOIN repl_ml.replicated_table r ON r.schema_name = n.nspname AND r.table_name = t.relname AND r.state = 'enrolled'
                    WHERE n.nspname = c.schema_name AND t.relname = c.table_name AND pg_catalog.pg_has_role(current_user, t.relowner, 'USAGE'));
COMMENT ON VIEW repl_ml.conflicts IS
    'versions of rows that lost to another of which neither knew the other, as resolved on this node; conflict_id is the same on all nodes. Members of pg_monitor see all, others those of their own tables; kept for repl_ml.conflict_retention';

CREATE VIEW repl_ml.stat_conflicts AS
    SELECT c.schema_name, c.table_name, c.conflict_type, c.resolution, pg_catalog.count(*) AS conflicts,
           pg_catalog.min(c.detected_at) AS first_detected_at, pg_catalog.max(c.detected_at) AS last_detected_at,
           pg_catalog.count(*) FILTER (WHERE c.winner_row = c.loser_row) AS equal
      FROM repl_ml.conflict_history c GROUP BY 1, 2, 3, 4;
COMMENT ON VIEW repl_ml.stat_conflicts IS 'kept conflicts by table and type; equal: those in which both wrote the same (see repl_ml.log_equal_writes)';

CREATE VIEW repl_ml.parked_changes AS
    SELECT p.id, p.parked_at, coalesce(m.node_name, p.origin_node::text::name) AS origin_node, p.origin_xid, p.origin_lsn,
           p.schema_name, p.table_name, p.action, p.change, p.sqlstate, p.message, p.detail, p.conflict_id, p.put_aside, p.columns
      FROM repl_ml.parked_change p LEFT JOIN repl_ml.member m ON m.node_id = p.origin_node;
COMMENT ON VIEW repl_ml.parked_changes IS
    'changes that could not be applied here, with the reason; action counted stands for as many as it says, which were not kept because of repl_ml.parked_limit: the table is copied when that is possible; columns: what they were; put_aside: only because a commit that waits to be acknowledged has locked the row, and is tried again by itself; see repl_ml.retry_parked and repl_ml.discard_parked';

-- Level one waits for nobody
CREATE VIEW repl_ml.stat_write_consistency AS
    SELECT s.level, s.commits, s.refused, s.timeouts, s.cancelled, u.transactions AS unacknowledged, s.total_wait, s.min_wait, s.max_wait,
           s.total_wait / nullif(s.commits, 0) AS mean_wait, s.histogram_bounds, s.histogram, s.stats_reset, s.parked
      FROM repl_ml.write_stats() s LEFT JOIN repl_ml.unacknowledged() u ON u.level = s.level;
COMMENT ON VIEW repl_ml.stat_write_consistency IS
    'what became of commits with write consistency quorum and all on this node, since stats_reset: acknowledged (commits), refused beforehand, or committed here and given up by timeout or cancel, or because too few members could apply it (parked). unacknowledged is how many are visible here now and not acknowledged so far, also since before a crash (see repl_ml.unacknowledged()). The waits are those of acknowledged ones: histogram[i] counts those up to histogram_bounds[i], the last element those above all bounds';

CREATE VIEW repl_ml.stat_write_waiters AS
    SELECT w.pid, a.usename, a.application_name, w.level, w.required, k.acknowledged, k.acknowledged_by, k.waiting_for, w.waiting_since, w.lsn, k.parked_on
      FROM repl_ml.write_waiters() w
      LEFT JOIN pg_catalog.pg_stat_activity a ON a.pid = w.pid
      CROSS JOIN LATERAL (SELECT (pg_catalog.count(*) FILTER (WHERE x.has))::integer AS acknowledged,
                                 coalesce(pg_catalog.array_agg(x.node_name ORDER BY x.node_id) FILTER (WHERE x.has), '{}') AS acknowledged_by,
                                 coalesce(pg_catalog.array_agg(x.node_name ORDER BY x.node_id) FILTER (WHERE x.has IS NOT TRUE AND NOT x.parked), '{}') AS waiting_for,
                                 coalesce(pg_catalog.array_agg(x.node_name ORDER BY x.node_id) FILTER (WHERE x.parked), '{}') AS parked_on
                            FROM (SELECT m.node_id, m.node_name, m.node_id = ANY (w.parked_on) AS parked,
                                         s.acknowledged_lsn >= w.lsn AND m.node_id <> ALL (w.parked_on) AS has
                                    FROM repl_ml.write_members() s JOIN repl_ml.member m USING (node_id)) x) k;
COMMENT ON VIEW repl_ml.stat_write_waiters IS
    'commits on this node that wait to be acknowledged: by how many members (required, this node counts), who has the transaction (acknowledged_by), who has not (waiting_for), and who has parked something of it and does not count (parked_on), since when';

CREATE VIEW repl_ml.health AS
    -- the limit says to the planner what the table is; many rows expected would have the statement compiled
    WITH self AS (
        SELECT l.node_id, l.node_name, l.group_name, l.state,
               (l.system_identifier, l.timeline, l.database, l.directory) IS DISTINCT FROM (f.system_identifier, f.timeline, f.database, f.directory) AS fenced,
               pg_catalog.current_setting('repl_ml.heartbeat_interval')::interval AS heartbeat
          FROM repl_ml.local_fingerprint() f, repl_ml.local_node l LIMIT 1),
    -- a node that takes part; of the others only the first check has something to say
    active AS (SELECT s.* FROM self s WHERE NOT s.fenced AND s.state <> 'dropped'),
    peer AS (SELECT m.node_id, m.node_name, m.state FROM repl_ml.member m JOIN active s ON s.node_id <> m.node_id WHERE m.state <> 'dropped'),
    quorum AS (
        SELECT pg_catalog.count(*) AS members, pg_catalog.count(*) / 2 + 1 AS needed, pg_catalog.count(*) FILTER (WHERE w.reachable) AS reachable,
               pg_catalog.string_agg(m.node_name, ', ' ORDER BY m.node_id) FILTER (WHERE NOT w.reachable) AS missing
          FROM repl_ml.write_members() w JOIN repl_ml.member m USING (node_id)),
    finding (place, check_name, status, detail, hint) AS (
    -- 1. who this node is
    SELECT 1, 'membership',
           CASE WHEN s.fenced OR s.state = 'dropped' THEN 'error' WHEN s.state = 'ready' THEN 'ok' ELSE 'warning' END,
           CASE WHEN s.fenced THEN pg_catalog.format('This database is a copy of node "%s": it neither writes replicated tables nor talks to the group.', s.node_name)
                WHEN s.state = 'dropped' THEN pg_catalog.format('The other members have dropped node "%s": it takes no part in group "%s" any more.', s.node_name, s.group_name)
                WHEN s.state <> 'ready' THEN pg_catalog.format('Node "%s" is still joining group "%s" (%s) and must not be written yet.', s.node_name, s.group_name, s.state)
                ELSE pg_catalog.format('Node "%s" of group "%s", members: %s.', s.node_name, s.group_name,
                     (SELECT pg_catalog.string_agg(m.node_name || CASE m.state WHEN 'ready' THEN '' ELSE ' (joining)' END, ', ' ORDER BY m.node_id)
                        FROM repl_ml.member m WHERE m.state <> 'dropped')) END,
           CASE WHEN s.fenced THEN 'If the node that it is a copy of is gone for good or goes on elsewhere, run SELECT repl_ml.leave_group(force => true) here, and join again.'
                WHEN s.state = 'dropped' THEN 'Run SELECT repl_ml.leave_group(force => true) here; then it can join again.'
                WHEN s.state <> 'ready' THEN 'It becomes ready by itself; see how far it is with SELECT * FROM repl_ml.stat_apply.' END
      FROM self s
    UNION ALL
    SELECT 1, 'membership', 'warning', 'This database is in no group: nothing is replicated.', 'Run SELECT repl_ml.create_group(...) or repl_ml.join_group(...).'
     WHERE NOT EXISTS (SELECT FROM self)
    UNION ALL
    -- 2. which commits are possible now
    SELECT 2, 'write_consistency',
           CASE WHEN q.members = 0 THEN 'warning' WHEN q.members = 1 THEN 'ok' WHEN g.in_the_way OR q.reachable < q.needed THEN 'error'
                WHEN q.reachable < q.members THEN 'warning' ELSE 'ok' END,
           CASE WHEN q.members = 0 THEN 'It is not known yet which members can be reached: commits with write consistency quorum and all are refused.'
                WHEN q.members = 1 THEN 'There is no other member: quorum and all mean this node only.'
                WHEN g.in_the_way THEN pg_catalog.format('The setting synchronous_standby_names is %L: commits with write consistency quorum and all are refused.', g.names)
                WHEN q.reachable < q.needed THEN pg_catalog.format('%s members, only %s can be reached, quorum needs %s: commits with write consistency quorum and all are refused. Missing: %s.', q.members, q.reachable, q.needed, q.missing)
                WHEN q.reachable < q.members THEN pg_catalog.format('%s members, %s can be reached, quorum needs %s: can tolerate %s. Commits with write consistency all are refused. Missing: %s.', q.members, q.reachable, q.needed,
                     CASE q.reachable - q.needed WHEN 0 THEN 'no further failure' WHEN 1 THEN 'one more failure' ELSE pg_catalog.format('%s more failures', q.reachable - q.needed) END, q.missing)
                WHEN q.members = 2 THEN '2 members, both can be reached, quorum needs both: can tolerate no failure.'
                ELSE pg_catalog.format('%s members, all can be reached, quorum needs %s: can tolerate %s.', q.members, q.needed,
                     CASE q.members - q.needed WHEN 1 THEN 'one failure' ELSE pg_catalog.format('%s failures', q.members - q.needed) END) END,
           CASE WHEN q.members = 0 THEN 'This takes a moment after the server''s start; if it stays so, look for errors of "repl_ml supervisor" in the server''s log.'
                WHEN q.members = 1 THEN NULL
                WHEN g.in_the_way THEN 'Remove synchronous_standby_names from the server''s configuration and restart it, or set it to repl_ml_quorum and reload the configuration.'
                WHEN q.reachable < q.members THEN 'Start the missing nodes or mend the network to them. A node that will not come back is removed with SELECT repl_ml.drop_node(...), after which the group is smaller.'
                WHEN q.members = 2 THEN 'A third member would let one of them fail.' END
      FROM active s, quorum q,
           (SELECT pg_catalog.current_setting('synchronous_standby_names') AS names, pg_catalog.current_setting('synchronous_standby_names') <> 'repl_ml_quorum' AS in_the_way) g
     WHERE s.state = 'ready'
    UNION ALL
    -- 3. commits that wait for longer than it takes to notice that somebody is gone
    SELECT 3, 'waiting_commits', CASE WHEN pg_catalog.count(w.pid) = 0 THEN 'ok' ELSE 'warning' END,
           CASE WHEN pg_catalog.count(w.pid) = 0 THEN 'No commit waits for long.'
                ELSE pg_catalog.format('Commits that wait to be acknowledged: %s, the longest for %s seconds.', pg_catalog.count(w.pid),
                     pg_catalog.round(EXTRACT(epoch FROM pg_catalog.max(pg_catalog.clock_timestamp() - w.waiting_since)), 1)) END,
           CASE WHEN pg_catalog.count(w.pid) > 0 THEN 'See for whom with SELECT * FROM repl_ml.stat_write_waiters; they end with an error after repl_ml.write_timeout.' END
      FROM active s LEFT JOIN repl_ml.write_waiters() w ON pg_catalog.clock_timestamp() - w.waiting_since > 2 * s.heartbeat
    HAVING pg_catalog.count(s.node_id) > 0
    UNION ALL
    -- 4. what is visible here and may be lost with this node
    SELECT 4, 'unacknowledged', CASE WHEN u.transactions = 0 THEN 'ok' ELSE 'warning' END,
           CASE WHEN u.transactions = 0 THEN 'No transaction is visible here that its write consistency has not acknowledged.'
                WHEN u.transactions IS NULL THEN 'It is not known yet which transactions of the time before the server''s start have been acknowledged.'
                WHEN u.transactions = 1 THEN 'One transaction is visible here though its write consistency has not acknowledged it.'
                ELSE pg_catalog.format('%s transactions are visible here though their write consistency has not acknowledged them.', u.transactions) END,
           CASE WHEN u.transactions <> 0 THEN 'They will be as soon as enough members can be reached. How many, and for which level, is in repl_ml.stat_write_consistency.'
                WHEN u.transactions IS NULL THEN 'It will be when the members have everything that was written before.' END
      FROM active s, (SELECT CASE WHEN pg_catalog.bool_and(n.transactions IS NOT NULL) THEN pg_catalog.sum(n.transactions) END AS transactions FROM repl_ml.unacknowledged() n) u
     WHERE s.state = 'ready'
    UNION ALL
    -- 5. peers that do not get what this node writes
    SELECT 5, 'sending', CASE WHEN pg_catalog.count(p.node_id) = 0 THEN 'ok' ELSE 'error' END,
           coalesce(pg_catalog.string_agg(pg_catalog.format('Node "%s" %s.', p.node_name,
                        CASE WHEN w.silent_for IS NULL THEN 'has not been heard since this server''s start'
                             ELSE pg_catalog.format('has not answered for %s seconds', pg_catalog.round(EXTRACT(epoch FROM w.silent_for), 1)) END), ' ' ORDER BY p.node_id) FILTER (WHERE p.node_id IS NOT NULL),
                    'All members read what this node writes.'),
           CASE WHEN pg_catalog.count(p.node_id) > 0 THEN 'See whether the server runs and can reach this one: on it, SELECT * FROM repl_ml.stat_apply shows the error. Until then this server keeps WAL for it.' END
      FROM active s LEFT JOIN (repl_ml.write_members() w JOIN peer p USING (node_id)) ON NOT w.reachable
    HAVING pg_catalog.count(s.node_id) > 0
    UNION ALL
    -- 6. peers of which this node gets nothing
    SELECT 6, 'applying', CASE WHEN pg_catalog.bool_or(p.failing) THEN 'error' WHEN pg_catalog.count(p.node_id) > 0 THEN 'warning' ELSE 'ok' END,
           coalesce(pg_catalog.string_agg(pg_catalog.format('Nothing of node "%s" is applied (%s)%s.', p.node_name, p.state, ': ' || p.message), ' ' ORDER BY p.node_id) FILTER (WHERE p.node_id IS NOT NULL),
                    'What the other members write is applied here.'),
           coalesce(pg_catalog.string_agg(p.hint, ' ' ORDER BY p.node_id) FILTER (WHERE p.node_id IS NOT NULL),
                    CASE WHEN pg_catalog.count(p.node_id) > 0 THEN 'See SELECT * FROM repl_ml.stat_apply, and the server''s log.' END)
      FROM active s LEFT JOIN (
           SELECT x.node_id, x.node_name, coalesce(w.state, 'stopped') AS state, coalesce(w.state, 'stopped') <> 'paused' AND w.error_time > coalesce(w.last_message_time, '-infinity') AS failing,
                  CASE WHEN w.state <> 'paused' AND w.error_time > coalesce(w.last_message_time, '-infinity') THEN pg_catalog.rtrim(pg_catalog.split_part(w.error_message, E'\n', 1), '.') END AS message,
                  CASE WHEN w.state = 'paused' THEN pg_catalog.format('Run SELECT repl_ml.resume_apply(%L).', x.node_name)
                       WHEN w.error_time > coalesce(w.last_message_time, '-infinity') THEN w.error_hint END AS hint
             FROM peer x LEFT JOIN repl_ml.worker_stats() w ON w.peer = x.node_id
            WHERE coalesce(w.state, 'stopped') NOT IN ('streaming', 'copying', 'preparing')) p ON true
    HAVING pg_catalog.count(s.node_id) > 0
    UNION ALL
    -- 7. peers whose changes come late
    SELECT 7, 'delay', CASE WHEN pg_catalog.count(p.node_id) = 0 THEN 'ok' ELSE 'warning' END,
           coalesce(pg_catalog.string_agg(pg_catalog.format('What node "%s" wrote in the last %s seconds is not applied here.', p.node_name,
                        pg_catalog.round(EXTRACT(epoch FROM pg_catalog.clock_timestamp() - p.sent_at), 1)), ' ' ORDER BY p.node_id) FILTER (WHERE p.node_id IS NOT NULL),
                    'What the other members write arrives in time.'),
           CASE WHEN pg_catalog.count(p.node_id) > 0 THEN 'A large transaction or a lock may hold it up: look for the backend "repl_ml apply" in pg_stat_activity.' END
      FROM active s LEFT JOIN (SELECT x.*, h.sent_at + coalesce(repl_ml.counter(h.behind, l.node_id), 0) * '1 us'::interval AS sent_at
                                 FROM repl_ml.local_node l CROSS JOIN peer x JOIN repl_ml.heartbeat h ON h.node_id = x.node_id) p
             ON pg_catalog.clock_timestamp() - p.sent_at > 10 * s.heartbeat
    HAVING pg_catalog.count(s.node_id) > 0
    UNION ALL
    -- 8. changes that could not be applied
    SELECT 8, 'parked_changes', CASE WHEN c.failed > c.locked THEN 'error' WHEN c.failed > 0 OR c.lost > 0 THEN 'warning' ELSE 'ok' END,
           CASE WHEN c.failed > c.locked THEN pg_catalog.format('Changes that could not be applied here: %s, the last one because: %s.', c.failed, pg_catalog.rtrim(c.problem, '.'))
                     || CASE WHEN c.counted IS NULL THEN '' ELSE pg_catalog.format(' Because of repl_ml.parked_limit they are no longer kept for %s.', c.counted) END
                WHEN c.failed > 0 THEN pg_catalog.format('Changes that wait for locks of this node''s transactions: %s. %s', c.failed, c.locks)
                WHEN c.lost > 0 THEN pg_catalog.format('Rows that lost a conflict and wait for a decision: %s.', c.lost)
                ELSE 'None.' END
           || CASE WHEN c.discarded > 0 THEN pg_catalog.format(' Transactions of which something was discarded here in the last two days: %s.', c.discarded) ELSE '' END,
           CASE WHEN c.failed > c.locked THEN 'This node lacks them. Mend the cause: they are then tried again by themselves, or at once by SELECT repl_ml.retry_parked(id) FROM repl_ml.parked_changes.'
                WHEN c.failed > 0 THEN 'They are applied as soon as the lock is gone. See SELECT * FROM pg_stat_activity or pg_prepared_xacts for who holds it.'
                WHEN c.lost > 0 THEN 'See SELECT * FROM repl_ml.parked_changes; retry_parked(id) writes a row again, discard_parked(id) forgets it.' END
      FROM active s,
           (SELECT coalesce(pg_catalog.sum(CASE p.action WHEN 'counted' THEN (p.change->>'changes')::bigint ELSE 1 END) FILTER (WHERE p.action NOT IN ('evicted', 'kept') AND NOT p.put_aside), 0) AS failed,
                   pg_catalog.count(*) FILTER (WHERE p.action IN ('insert', 'update', 'delete') AND NOT p.put_aside AND p.sqlstate = '55P03') AS locked,
                   pg_catalog.string_agg(pg_catalog.format('%I.%I', p.schema_name, p.table_name), ', ') FILTER (WHERE p.action = 'counted') AS counted,
                   pg_catalog.count(*) FILTER (WHERE p.action IN ('evicted', 'kept')) AS lost,
                   (SELECT pg_catalog.count(*) FROM repl_ml.discarded_transaction) AS discarded,
                   (pg_catalog.array_agg(p.message ORDER BY p.id DESC) FILTER (WHERE p.action NOT IN ('evicted', 'kept') AND NOT p.put_aside AND p.sqlstate <> '55P03'))[1] AS problem,
                   (SELECT pg_catalog.string_agg(l.of_table, ' ' ORDER BY l.of_table)
                      FROM (SELECT pg_catalog.format('Of table "%s.%s": %s.', x.schema_name, x.table_name, pg_catalog.rtrim((pg_catalog.array_agg(x.message ORDER BY x.id))[1], '.')) AS of_table
                              FROM repl_ml.parked_change x WHERE x.sqlstate = '55P03' AND NOT x.put_aside GROUP BY x.schema_name, x.table_name LIMIT 10) l) AS locks
              FROM repl_ml.parked_change p) c
    UNION ALL
    -- 9. WAL that is kept for peers
    SELECT 9, 'slots', CASE WHEN pg_catalog.bool_or(p.node_id IS NOT NULL AND (p.wal_status = 'lost' OR p.slot_name IS NULL)) THEN 'error' WHEN pg_catalog.count(p.node_id) > 0 THEN 'warning' ELSE 'ok' END,
           coalesce(pg_catalog.string_agg(CASE WHEN p.slot_name IS NULL THEN pg_catalog.format('Node "%s" has no slot here.', p.node_name)
                             WHEN p.wal_status = 'lost' THEN pg_catalog.format('WAL that node "%s" had not read is gone.', p.node_name)
                             WHEN p.wal_status = 'unreserved' THEN pg_catalog.format('WAL that node "%s" has not read, %s, is removed at the next checkpoint.', p.node_name, pg_catalog.pg_size_pretty(p.kept))
                             ELSE pg_catalog.format('Node "%s" holds back %s of WAL.', p.node_name, pg_catalog.pg_size_pretty(p.kept)) END, ' ' ORDER BY p.node_id) FILTER (WHERE p.node_id IS NOT NULL),
                    'No member holds back more WAL than max_wal_size.'),
           CASE WHEN pg_catalog.bool_or(p.node_id IS NOT NULL AND (p.wal_status = 'lost' OR p.slot_name IS NULL)) THEN 'It is made anew when the node connects, and all tables are then copied and joined.'
                WHEN pg_catalog.count(p.node_id) > 0 THEN 'Watch the disk. Start the node, or remove it with SELECT repl_ml.drop_node(...) if it will not come back.' END
      FROM active s LEFT JOIN (SELECT x.*, r.slot_name, r.wal_status, pg_catalog.pg_wal_lsn_diff(pg_catalog.pg_current_wal_flush_lsn(), r.restart_lsn) AS kept
                          FROM peer x LEFT JOIN pg_catalog.pg_replication_slots r ON r.slot_name = repl_ml.link_name(x.node_id)) p
             ON s.state = 'ready' AND p.state = 'ready' AND (p.slot_name IS NULL OR p.wal_status <> 'reserved')
    HAVING pg_catalog.count(s.node_id) > 0
    UNION ALL
    -- 10. tables that are not what the group's list says
    SELECT 10, 'tables', CASE WHEN pg_catalog.bool_or(t.state = 'missing') THEN 'error' WHEN pg_catalog.count(t.table_name) > 0 THEN 'warning' ELSE 'ok' END,
           coalesce(pg_catalog.string_agg(pg_catalog.format('Table %I.%I %s%s.', t.schema_name, t.table_name,
                        CASE t.state WHEN 'missing' THEN 'is not here' WHEN 'pending' THEN 'is not replicated here yet' ELSE 'is being copied' END,
                        ': ' || pg_catalog.rtrim(pg_catalog.split_part(t.problem, E'\n', 1), '.')), ' ' ORDER BY t.schema_name, t.table_name) FILTER (WHERE t.table_name IS NOT NULL),
                    'All of the group''s tables are replicated here.'),
           CASE WHEN pg_catalog.count(t.table_name) > 0 THEN 'This goes on by itself; what keeps it from that is in the column problem of repl_ml.tables.' END
      FROM active s LEFT JOIN repl_ml.tables t ON t.state <> 'replicated' OR t.pending_copies > 0
    HAVING pg_catalog.count(s.node_id) > 0
    UNION ALL
    -- 11. tables that are not the same on all members
    SELECT 11, 'table_shapes', CASE WHEN pg_catalog.count(d.said) = 0 THEN 'ok' ELSE 'warning' END,
           coalesce(pg_catalog.string_agg(d.said, ' ' ORDER BY d.schema_name, d.table_name, d.there) FILTER (WHERE d.said IS NOT NULL),
                    'As far as the other members have told, the replicated tables are the same there.'),
           CASE WHEN pg_catalog.count(d.said) > 0 THEN 'Run the ALTER or CREATE that is missing where it is missing. Changes that do not fit meanwhile are parked, and brought when the tables are the same again. All differences: SELECT * FROM repl_ml.shape_differences.' END
      FROM active s LEFT JOIN (
           SELECT x.schema_name, x.table_name, x.there,
                  CASE x.table_name WHEN '' THEN '' ELSE pg_catalog.format('Table %I.%I: ', x.schema_name, x.table_name) END
                  || pg_catalog.format('%s is %s on node "%s" and %s on %s.', CASE x.table_name WHEN '' THEN 'T' || pg_catalog.substr(x.object, 2) ELSE x.object END, x.here, l.node_name, x.there,
                       CASE pg_catalog.count(*) WHEN 1 THEN 'node ' ELSE 'nodes ' END || pg_catalog.string_agg(pg_catalog.format(CASE WHEN w.reachable THEN '"%s"' ELSE '"%s" (when it was last heard of)' END, x.node_name), ', ' ORDER BY x.node_id)) AS said
             FROM repl_ml.shape_differences x LEFT JOIN repl_ml.write_members() w ON w.node_id = x.node_id CROSS JOIN self l GROUP BY x.schema_name, x.table_name, x.object, x.here, x.there, l.node_name) d ON true
    HAVING pg_catalog.count(s.node_id) > 0
    UNION ALL
    -- 12. tables that are nobody's but this node's
    SELECT 12, 'unreplicated_tables', CASE WHEN u.tables = 0 THEN 'ok' ELSE 'warning' END,
           CASE WHEN u.tables = 0 THEN 'No table of this node has been forgotten.'
                ELSE pg_catalog.format('Tables of this node that the group does not replicate: %s%s.', u.first,
                     CASE WHEN u.tables > 5 THEN pg_catalog.format(' and %s more', u.tables - 5) ELSE '' END) END,
           CASE WHEN u.tables > 0 THEN 'Run SELECT repl_ml.add_table(...), or SELECT repl_ml.keep_local(...) for one that is meant for this node only. All of them: SELECT * FROM repl_ml.unreplicated_tables.' END
      FROM active s, (SELECT pg_catalog.count(*) AS tables, pg_catalog.string_agg(x.relation::text, ', ' ORDER BY x.place) FILTER (WHERE x.place <= 5) AS first
                        FROM (SELECT pg_catalog.format('%I.%I', t.schema_name, t.table_name) AS relation, pg_catalog.row_number() OVER (ORDER BY t.schema_name, t.table_name) AS place
                                FROM repl_ml.unreplicated_tables t) x) u
     WHERE EXISTS (SELECT FROM peer)
    UNION ALL
    -- 13. clocks: what a node sends cannot be from the future; of a clock that is behind its own node tells
    SELECT 13, 'clock_skew', CASE WHEN pg_catalog.bool_or(p.differs > pg_catalog.current_setting('repl_ml.max_clock_skew')::interval) THEN 'error' WHEN pg_catalog.count(p.node_id) > 0 THEN 'warning' ELSE 'ok' END,
           coalesce(pg_catalog.string_agg(pg_catalog.format('The clock of node "%s" is at least %s seconds %s this one''s.', p.node_name, pg_catalog.round(EXTRACT(epoch FROM p.differs), 1), p.direction), ' ' ORDER BY p.node_id) FILTER (WHERE p.node_id IS NOT NULL),
                    'No other member''s clock is known to differ.'),
           CASE WHEN pg_catalog.count(p.node_id) > 0 THEN 'Let NTP set both clocks: of concurrent writes the node with the clock ahead wins.' END
      FROM active s LEFT JOIN (SELECT x.*, c.direction, c.differs
             FROM repl_ml.local_node l JOIN repl_ml.heartbeat o ON o.node_id = l.node_id CROSS JOIN peer x JOIN repl_ml.heartbeat h ON h.node_id = x.node_id
             LEFT JOIN repl_ml.worker_stats() w ON w.peer = x.node_id
            CROSS JOIN LATERAL (VALUES ('ahead of', greatest(h.sent_at - pg_catalog.clock_timestamp(), repl_ml.counter(o.behind, x.node_id) * '1 us'::interval)),
                                       ('behind', CASE WHEN w.state = 'streaming' THEN repl_ml.counter(h.behind, l.node_id) * '1 us'::interval END)) c(direction, differs)) p ON p.differs > '1 s'
    HAVING pg_catalog.count(s.node_id) > 0
    UNION ALL
    -- 14. what the others read
    SELECT 14, 'publication', CASE WHEN p.fault IS NULL THEN 'ok' ELSE 'error' END,
           CASE WHEN p.fault IS NULL THEN 'The publication "repl_ml" is as the other members need it.'
                ELSE pg_catalog.format('The publication "repl_ml" %s.', p.fault) END,
           CASE WHEN p.fault IS NOT NULL THEN 'It is made anew within seconds, and the other members copy this node''s tables again.' END
      FROM active s, repl_ml.publication_fault() p(fault)
    UNION ALL
    -- 15. rows that cannot be sent, here and elsewhere
    SELECT 15, 'unsent', CASE WHEN u.here IS NOT NULL THEN 'error' WHEN u.elsewhere IS NOT NULL THEN 'warning' ELSE 'ok' END,
           coalesce(nullif(pg_catalog.concat_ws(' ', u.here, u.elsewhere), ''), 'Every row can be sent.'),
           CASE WHEN u.here IS NOT NULL THEN 'Change or delete the row on that node. What then is sent heals it; so does the copy of the table that is made once in a while. See SELECT * FROM repl_ml.unsent.'
                WHEN u.elsewhere IS NOT NULL THEN 'See the check "unsent" on that node.' END
      FROM active s, LATERAL (SELECT
           nullif((SELECT pg_catalog.string_agg(pg_catalog.format('Node "%s" could not send %s of table %I.%I: %s.', coalesce(m.node_name, n.node_id::text::name),
                                 pg_catalog.format('row %s', n.key), n.schema_name, n.table_name, pg_catalog.rtrim(n.message, '.')), ' ' ORDER BY n.noted_at, n.key)
                     FROM (SELECT * FROM repl_ml.unsent x ORDER BY x.noted_at LIMIT 5) n LEFT JOIN repl_ml.member m ON m.node_id = n.node_id), '') AS here,
           nullif((SELECT pg_catalog.string_agg(pg_catalog.format('Node "%s" lacks rows that could not be sent to it: %s.', p.node_name, h.lacks), ' ')
                     FROM peer p JOIN repl_ml.heartbeat h ON h.node_id = p.node_id WHERE h.lacks IS NOT NULL), '') AS elsewhere) u
    UNION ALL
    -- 16. prepared transactions
    SELECT 16, 'prepared_transactions', CASE WHEN pg_catalog.count(x.gid) = 0 THEN 'ok' ELSE 'warning' END,
           CASE WHEN pg_catalog.count(x.gid) = 0 THEN 'None is left.'
                ELSE pg_catalog.format('%s, the oldest of %s: they hold locks, and the removal of deleted rows'' tombstones on all nodes.',
                     pg_catalog.string_agg(pg_catalog.quote_literal(x.gid), ', ' ORDER BY x.prepared), pg_catalog.date_trunc('second', pg_catalog.min(x.prepared))) END,
           CASE WHEN pg_catalog.count(x.gid) > 0 THEN 'Run COMMIT PREPARED or ROLLBACK PREPARED for those that nobody will finish.' END
      FROM active s LEFT JOIN pg_catalog.pg_prepared_xacts x ON x.database = pg_catalog.current_database() AND pg_catalog.clock_timestamp() - x.prepared > 10 * s.heartbeat
    HAVING pg_catalog.count(s.node_id) > 0
    UNION ALL
    -- 17. who is connected, and could not connect anew
    SELECT 17, 'login_roles', CASE WHEN pg_catalog.count(f.rolname) = 0 THEN 'ok' ELSE 'warning' END,
           CASE WHEN pg_catalog.count(f.rolname) = 0 THEN 'The roles with which other members are connected may connect again.'
                ELSE pg_catalog.format('%s: when the connection ends there is no other.', pg_catalog.string_agg(f.said, '; ' ORDER BY f.rolname, f.command)) END,
           CASE WHEN pg_catalog.count(f.rolname) > 0 THEN pg_catalog.format('Run %s.', pg_catalog.string_agg(f.command, '; ' ORDER BY f.rolname, f.command)) END
      FROM active s LEFT JOIN (
           SELECT u.rolname, pg_catalog.format(c.command, u.rolname, pg_catalog.current_database()) AS command,
                  pg_catalog.format('Role "%s", of node%s %s, %s', u.rolname, CASE WHEN pg_catalog.count(*) > 1 THEN 's' END,
                                    pg_catalog.string_agg(pg_catalog.format('"%s"', x.node_name), ', ' ORDER BY x.node_id), c.said) AS said
             FROM peer x JOIN pg_catalog.pg_replication_slots r ON r.slot_name = repl_ml.link_name(x.node_id)
             JOIN pg_catalog.pg_stat_activity a ON a.pid = r.active_pid JOIN pg_catalog.pg_roles u ON u.oid = a.usesysid
            CROSS JOIN LATERAL (VALUES (NOT u.rolcanlogin, 'may not log in', 'ALTER ROLE %1$I LOGIN'),
                                       (NOT u.rolreplication AND NOT u.rolsuper, 'lacks the attribute REPLICATION', 'ALTER ROLE %1$I REPLICATION'),
                                       (NOT pg_catalog.pg_has_role(u.oid, 'repl_ml_replication', 'USAGE'), 'is not in repl_ml_replication', 'GRANT repl_ml_replication TO %1$I'),
                                       (NOT pg_catalog.has_database_privilege(u.oid, pg_catalog.current_database()::text, 'CONNECT'), 'may not connect to this database', 'GRANT CONNECT ON DATABASE %2$I TO %1$I'),
                                       (u.rolvaliduntil < pg_catalog.clock_timestamp(), 'has a password that is valid no more', 'ALTER ROLE %1$I VALID UNTIL ''infinity'''),
                                       -- each may want a second connection, to copy or to ask
                                       (NOT u.rolsuper AND u.rolconnlimit BETWEEN 0 AND 2 * (SELECT pg_catalog.count(*) FROM peer) - 1, 'has too low a connection limit', 'ALTER ROLE %1$I CONNECTION LIMIT -1')) c(is_so, said, command)
            WHERE c.is_so GROUP BY u.rolname, c.said, c.command) f ON true
    HAVING pg_catalog.count(s.node_id) > 0)
    SELECT f.check_name, f.status, f.detail, f.hint FROM finding f ORDER BY f.place;
COMMENT ON VIEW repl_ml.health IS
    'how this node and its group are: one row for each check, with status ok, warning (look into it) or error (something does not work, now), what it is (detail) and what to do (hint); ask every node';

--
-- Triggers of the replicated catalogs, and privileges
--
DO $$
DECLARE
    t regclass;
BEGIN
    FOREACH t IN ARRAY '{repl_ml.member, repl_ml.replicated_table, repl_ml.heartbeat, repl_ml.collection, repl_ml.conflict_policy, repl_ml.table_shape, repl_ml.invitation}'::regclass[] LOOP
        EXECUTE pg_catalog.format('CREATE TRIGGER zz_repl_ml_update BEFORE UPDATE ON %s FOR EACH ROW EXECUTE FUNCTION repl_ml.stamp_update()', t);
        EXECUTE pg_catalog.format('ALTER TABLE %s ENABLE ALWAYS TRIGGER zz_repl_ml_update', t);
    END LOOP;
END
$$;

-- A subscription to another member's tables, all of them, would make this database think it is that one
CREATE FUNCTION repl_ml.refuse_subscription() RETURNS pg_catalog.trigger
    AS 'MODULE_PATHNAME', 'repl_ml_refuse_subscription' LANGUAGE C;
COMMENT ON FUNCTION repl_ml.refuse_subscription() IS 'trigger: keeps subscriptions of PostgreSQL''s own out of repl_ml''s tables';
DO $$
DECLARE
    t regclass;
BEGIN
    FOR t IN SELECT c.oid FROM pg_catalog.pg_class c WHERE c.relnamespace OPERATOR(pg_catalog.=) 'repl_ml'::pg_catalog.regnamespace AND c.relkind OPERATOR(pg_catalog.=) 'r' LOOP
        EXECUTE pg_catalog.format('CREATE TRIGGER refuse_subscription BEFORE INSERT OR UPDATE OR DELETE ON %s FOR EACH ROW EXECUTE FUNCTION repl_ml.refuse_subscription()', t);
        EXECUTE pg_catalog.format('ALTER TABLE %s ENABLE ALWAYS TRIGGER refuse_subscription', t);
    END LOOP;
END
$$;

-- Nothing is for everybody but what reading a clock and writing an enrolled table needs
DO $$
DECLARE
    f regprocedure;
BEGIN
    -- what is parsed when it is called reads backslashes as this script does, whatever the caller's session says
    FOR f IN SELECT p.oid FROM pg_catalog.pg_proc p JOIN pg_catalog.pg_language l ON l.oid OPERATOR(pg_catalog.=) p.prolang
              WHERE p.pronamespace OPERATOR(pg_catalog.=) 'repl_ml'::pg_catalog.regnamespace
                AND l.lanname OPERATOR(pg_catalog.=) ANY ('{sql, plpgsql}') AND pg_catalog.strpos(p.prosrc, E'\\') OPERATOR(pg_catalog.>) 0 LOOP
        EXECUTE pg_catalog.format('ALTER FUNCTION %s SET standard_conforming_strings = on', f);
    END LOOP;
    FOR f IN SELECT p.oid FROM pg_catalog.pg_proc p
              WHERE p.pronamespace OPERATOR(pg_catalog.=) 'repl_ml'::pg_catalog.regnamespace
                AND NOT (p.provolatile OPERATOR(pg_catalog.=) 'i' AND p.proparallel OPERATOR(pg_catalog.=) 's')
                AND p.proname OPERATOR(pg_catalog.<>) ALL ('{tick, insert_pending, moved_pending, orphans, current_vector, wait_for_vector, barrier, transaction_token, transaction_status}') LOOP
        EXECUTE pg_catalog.format('REVOKE ALL ON FUNCTION %s FROM PUBLIC', f);
    END LOOP;
END
$$;

-- Seeing: connection strings and rows excepted
GRANT EXECUTE ON FUNCTION repl_ml.worker_stats(), repl_ml.write_members(), repl_ml.write_waiters(), repl_ml.write_stats(), repl_ml.unacknowledged(), repl_ml.local_fingerprint(),
    repl_ml.link_name(integer), repl_ml.publication_fault(), repl_ml.enrol_obstacle(regclass), repl_ml.column_types(regclass), repl_ml.check_setup(text), repl_ml.check_settings(integer) TO pg_monitor;
GRANT SELECT ON repl_ml.nodes, repl_ml.tables, repl_ml.shape_differences, repl_ml.unreplicated_tables, repl_ml.conflict_policies, repl_ml.stat_replication, repl_ml.stat_apply, repl_ml.stat_conflicts,
    repl_ml.stat_write_consistency, repl_ml.stat_write_waiters, repl_ml.health TO pg_monitor;
-- filters its rows by itself
GRANT SELECT ON repl_ml.conflicts TO PUBLIC;

-- Operating. What forms a group stays with superusers: a connection string makes the server connect
-- as its operating system user, and a member creates what other members define.
GRANT pg_monitor TO repl_ml_admin;
GRANT SELECT ON repl_ml.parked_changes TO repl_ml_admin;
GRANT EXECUTE ON FUNCTION repl_ml.pause_apply(name), repl_ml.resume_apply(name), repl_ml.retry_parked(bigint), repl_ml.discard_parked(bigint),
    repl_ml.reset_write_stats(), repl_ml.invite_node(name, interval), repl_ml.admit_node(name, text) TO repl_ml_admin;

-- Replicating: what a peer asks and copies; the stream itself needs the role attribute
GRANT SELECT ON repl_ml.member, repl_ml.replicated_table, repl_ml.tombstone, repl_ml.collection, repl_ml.conflict_policy, repl_ml.table_shape, repl_ml.invitation, repl_ml.concurrent_version, repl_ml.transaction_record, repl_ml.record_floor TO repl_ml_replication;
GRANT EXECUTE ON FUNCTION repl_ml.local_info(integer), repl_ml.vouch_for(uuid, integer, integer, pg_lsn, bigint, text), repl_ml.applied_lsn(integer), repl_ml.decided_commits(integer, pg_lsn[]), repl_ml.final_lsn(integer), repl_ml.transaction_facts(uuid, integer, xid8),
    repl_ml.admit_node(name, text), repl_ml.register_node(uuid, integer, name, text, text, integer, text, bigint, timestamptz, text),
    repl_ml.forget_node(uuid, integer, timestamptz), repl_ml.cannot_create(jsonb),
    repl_ml.rows_to_copy(regclass, name[], name, name), repl_ml.rows_left_out(), repl_ml.require_copyable(regclass, name[]), repl_ml.send_columns(regclass), repl_ml.parked_tables() TO repl_ml_replication;
