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

