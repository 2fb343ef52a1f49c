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
        DELETE FROM repl_ml.bulk_piece b WHERE b.id = discard_parked.id;
        INSERT INTO repl_ml.discarded_transaction (node_id, commit_lsn, xid)
        SELECT p.origin_node, p.origin_lsn, p.origin_xid FROM repl_ml.parked_change p
         WHERE p.id = discard_parked.id AND p.action NOT IN ('evicted', 'kept') ON CONFLICT DO NOTHING;
        -- whoever waits for it waits no more
        INSERT INTO repl_ml.schema_change SELECT x.* FROM repl_ml.parked_change p CROSS JOIN LATERAL pg_catalog.jsonb_populate_record(NULL::repl_ml.schema_change,
               p.change || pg_catalog.jsonb_build_object('settings', pg_catalog.to_jsonb((p.change->>'settings')::text[]), 'filled', (p.change->>'filled')::jsonb)) x
         WHERE p.id = discard_parked.id AND p.schema_name = 'repl_ml' AND p.table_name = 'schema_change' ON CONFLICT DO NOTHING;
        DELETE FROM repl_ml.parked_change p WHERE p.id = discard_parked.id;
        IF NOT FOUND THEN
            RAISE EXCEPTION 'parked change % does not exist', id USING ERRCODE = 'undefined_object',
                HINT = 'Run SELECT id, message FROM repl_ml.parked_changes.';
        END IF;
    END
    $$;
COMMENT ON FUNCTION repl_ml.discard_parked(bigint) IS 'gives up a parked change for good: this node then differs from the others, except for the losing version of a conflict (action evicted or kept), which is gone everywhere. Errors: 42704 no such change';

