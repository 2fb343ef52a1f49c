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

