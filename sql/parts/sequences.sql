--
-- Sequences of the group: ranges of numbers that more than half of the members agree to. The rules are those of test/model/ids.pml.
--

-- A place counts the way in which the sequence goes, so a greater one comes later, also where the increment is negative
CREATE FUNCTION repl_ml.sequence_facts(sequence regclass, OUT oid oid, OUT step bigint, OUT first_place bigint, OUT last_place bigint, OUT cycles boolean) RETURNS SETOF record
    LANGUAGE sql STABLE ROWS 1 SET search_path = pg_catalog, pg_temp
    AS $$
    SELECT s.seqrelid, s.seqincrement, CASE WHEN s.seqincrement > 0 THEN s.seqmin ELSE -s.seqmax END,
           CASE WHEN s.seqincrement > 0 THEN s.seqmax ELSE -greatest(s.seqmin, -9223372036854775807) END, s.seqcycle
      FROM pg_catalog.pg_sequence s WHERE s.seqrelid = sequence
    $$;
COMMENT ON FUNCTION repl_ml.sequence_facts(regclass) IS 'how a sequence counts; places are its numbers, or these negated where it counts down';

CREATE FUNCTION repl_ml.lock_sequence(sequence regclass) RETURNS void
    AS 'MODULE_PATHNAME', 'repl_ml_lock_sequence' LANGUAGE C VOLATILE STRICT;
COMMENT ON FUNCTION repl_ml.lock_sequence(regclass) IS 'locks a sequence against whoever takes numbers from it, until the transaction ends';
CREATE FUNCTION repl_ml.sequence_changed(sequence regclass) RETURNS void
    AS 'MODULE_PATHNAME', 'repl_ml_sequence_changed' LANGUAGE C VOLATILE STRICT;
COMMENT ON FUNCTION repl_ml.sequence_changed(regclass) IS 'makes every process read again what a sequence may give; the commit waits for the disk';

-- What queries and defaults call instead of PostgreSQL's own; see src/write/number.c
CREATE FUNCTION repl_ml.nextval(sequence regclass) RETURNS bigint
    AS 'MODULE_PATHNAME', 'repl_ml_nextval' LANGUAGE C VOLATILE STRICT;
COMMENT ON FUNCTION repl_ml.nextval(regclass) IS 'as pg_catalog.nextval, and of a sequence of the group only numbers that are this node''s; put in by the planner in its place';
CREATE FUNCTION repl_ml.identity_number(number bigint) RETURNS bigint
    AS 'MODULE_PATHNAME', 'repl_ml_identity_number' LANGUAGE C VOLATILE STRICT;
COMMENT ON FUNCTION repl_ml.identity_number(bigint) IS 'the same for identity columns; put around them by the planner, and of no use elsewhere';

-- The greatest place that this database has used of a sequence: its own, or in a column that it is for
CREATE FUNCTION repl_ml.used_place(sequence regclass) RETURNS bigint
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
    AS $$
    DECLARE
        f record;
        place bigint;
        r record;
        found_there text[];
    BEGIN
        SELECT * INTO f FROM repl_ml.sequence_facts(sequence);
        EXECUTE pg_catalog.format('SELECT CASE WHEN is_called THEN last_value ELSE last_value - %s END * %s FROM %s', f.step, pg_catalog.sign(f.step), sequence) INTO place;
        FOR r IN SELECT DISTINCT c.oid::regclass AS relation, a.attname FROM (
                        SELECT d.refobjid AS relid, d.refobjsubid AS attnum FROM pg_catalog.pg_depend d
                         WHERE d.classid = 'pg_class'::regclass AND d.objid = sequence AND d.refclassid = 'pg_class'::regclass AND d.deptype IN ('a', 'i')
                        UNION SELECT x.adrelid, x.adnum FROM pg_catalog.pg_depend d JOIN pg_catalog.pg_attrdef x ON x.oid = d.objid
                         WHERE d.classid = 'pg_attrdef'::regclass AND d.refclassid = 'pg_class'::regclass AND d.refobjid = sequence) u
                   JOIN pg_catalog.pg_class c ON c.oid = u.relid AND c.relkind IN ('r', 'p') JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attnum = u.attnum
                  WHERE a.atttypid IN ('int2'::regtype, 'int4'::regtype, 'int8'::regtype) LOOP
            SELECT q INTO found_there FROM repl_ml.query_as_owner(r.relation, pg_catalog.format('SELECT %s(%I) FROM %s', CASE WHEN f.step > 0 THEN 'max' ELSE 'min' END, r.attname, r.relation)) q;
            place := greatest(place, found_there[1]::bigint * pg_catalog.sign(f.step)::bigint);
        END LOOP;
        RETURN place;
    END
    $$;
COMMENT ON FUNCTION repl_ml.used_place(regclass) IS 'the last place of a sequence that is used here, by itself or by a row of a column that it is for';

-- Whom this node counts, and the start of the server with which it has taken over the others' marks
CREATE FUNCTION repl_ml.counts_numbers() RETURNS boolean
    LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
    AS $$
    BEGIN
        RETURN EXISTS (SELECT FROM repl_ml.number_voter v JOIN repl_ml.local_node l USING (node_id) WHERE v.server_start = pg_catalog.pg_postmaster_start_time());
    END
    $$;
COMMENT ON FUNCTION repl_ml.counts_numbers() IS 'whether this node may agree to ranges of numbers: it counts, and has asked the others since its server''s start';

CREATE FUNCTION repl_ml.number_view() RETURNS jsonb
    LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
    AS $$
    SELECT pg_catalog.jsonb_build_object('node', (SELECT l.node_id FROM repl_ml.local_node l),
               'counted', coalesce((SELECT pg_catalog.jsonb_agg(v.node_id) FROM repl_ml.number_voter v), '[]'),
               'dropped', coalesce((SELECT pg_catalog.jsonb_agg(m.node_id) FROM repl_ml.member m WHERE m.state = 'dropped'), '[]'))
    $$;
COMMENT ON FUNCTION repl_ml.number_view() IS 'whom this node counts for a majority, and whom it knows to be dropped';

-- By the count of each of these answers, have more than half given one? Those who are dropped have not.
CREATE FUNCTION repl_ml.number_majority(answers jsonb[]) RETURNS boolean
    LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp
    AS $$
    SELECT count(*) > 0 AND coalesce(bool_and(2 * (SELECT count(DISTINCT b->'node') FROM unnest(answers) b WHERE a->'counted' @> (b->'node') AND NOT a->'dropped' @> (b->'node'))
                                     > jsonb_array_length(a->'counted')), false) FROM unnest(answers) a
    $$;
COMMENT ON FUNCTION repl_ml.number_majority(jsonb[]) IS 'whether, by the count of each of these answers (repl_ml.number_view), more than half of those it counts have answered';

-- Errors for who must not be answered: it was set back, or this node was
CREATE FUNCTION repl_ml.require_number_asker(in_group uuid, asker integer, known text[]) RETURNS void
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
    AS $$
    BEGIN
        PERFORM repl_ml.require_member();
        IF NOT EXISTS (SELECT FROM repl_ml.local_node l WHERE l.group_id = in_group AND l.state NOT IN ('set_back', 'dropped'))
           OR NOT EXISTS (SELECT FROM repl_ml.member m WHERE m.node_id = asker AND m.state <> 'dropped')
           OR asker <> (SELECT l.node_id FROM repl_ml.local_node l)
              AND repl_ml.note_set_back(asker, known[1]::timestamptz, known[2]::bigint, known[3]::pg_lsn, known[4]::bigint) IS NOT NULL THEN
            RAISE EXCEPTION 'node % is not one to agree with about numbers', asker USING ERRCODE = 'object_not_in_prerequisite_state', HINT = 'See SELECT * FROM repl_ml.health on both nodes.';
        END IF;
    END
    $$;
COMMENT ON FUNCTION repl_ml.require_number_asker(uuid, integer, text[]) IS 'raises an error unless this node and the one that asks it about numbers are members; known is what that one knows of this one, to find out whether it was set back';

-- Asked by who joins (and is counted from now on), who was started again, and who no longer counts one that was dropped
CREATE FUNCTION repl_ml.number_marks(in_group uuid, asker integer, known text[]) RETURNS text
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
    AS $$
    DECLARE
        answer jsonb;
    BEGIN
        PERFORM repl_ml.require_number_asker(in_group, asker, known);
        IF NOT EXISTS (SELECT FROM repl_ml.number_voter v JOIN repl_ml.local_node l USING (node_id)) THEN
            RETURN NULL;
        END IF;
        LOCK TABLE repl_ml.number_voter IN SHARE ROW EXCLUSIVE MODE;
        answer := repl_ml.number_view();
        INSERT INTO repl_ml.number_voter (node_id) VALUES (asker) ON CONFLICT DO NOTHING;
        -- after whatever is being accepted: that one has counted without the asker
        PERFORM FROM repl_ml.sequence_mark FOR UPDATE;
        RETURN answer || pg_catalog.jsonb_build_object('marks', coalesce((SELECT pg_catalog.jsonb_agg(pg_catalog.jsonb_build_array(k.schema_name, k.sequence_name, k.promised)) FROM repl_ml.sequence_mark k), '[]'));
    END
    $$;
COMMENT ON FUNCTION repl_ml.number_marks(uuid, integer, text[]) IS 'called by members: the highest numbers that this node has promised to anybody, and whom it counts; it counts the asker from now on. Null if it does not count itself';

-- Asked by who wants a range, in places: is it beyond all that this node has promised? With no range, what that is
CREATE FUNCTION repl_ml.accept_range(in_group uuid, asker integer, known text[], of_schema name, of_sequence name, first bigint, last bigint) RETURNS text
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
    AS $$
    DECLARE
        accepted boolean := false;
        place bigint;
    BEGIN
        PERFORM repl_ml.require_number_asker(in_group, asker, known);
        IF NOT repl_ml.counts_numbers() THEN
            RETURN NULL;
        END IF;
        IF first IS NOT NULL THEN
            UPDATE repl_ml.sequence_mark k SET promised = last WHERE k.schema_name = of_schema AND k.sequence_name = of_sequence AND k.state <> 'free' AND k.promised < first AND last >= first;
            accepted := FOUND;
            PERFORM repl_ml.sequence_changed(0);
        END IF;
        SELECT k.promised INTO place FROM repl_ml.sequence_mark k WHERE k.schema_name = of_schema AND k.sequence_name = of_sequence AND k.state <> 'free';
        IF NOT FOUND THEN
            RETURN NULL;
        END IF;
        RETURN repl_ml.number_view() || pg_catalog.jsonb_build_object('accepted', accepted, 'promised', place);
    END
    $$;
COMMENT ON FUNCTION repl_ml.accept_range(uuid, integer, text[], name, name, bigint, bigint) IS 'called by members: promises a range of a sequence to the asker if it is beyond all that was promised before, durably; says whether, what is promised now, and whom this node counts. Null if it does not count';

-- From here on this database gives no numbers of the sequence but those of a range
CREATE FUNCTION repl_ml.close_sequence(in_group uuid, of_schema name, of_sequence name, steps boolean) RETURNS text
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET lock_timeout = '2s'
    AS $$
    DECLARE
        here regclass := pg_catalog.to_regclass(pg_catalog.format('%I.%I', of_schema, of_sequence));
        f record;
        place bigint;
    BEGIN
        PERFORM repl_ml.require_member();
        IF NOT EXISTS (SELECT FROM repl_ml.local_node l WHERE l.group_id = in_group) THEN
            RETURN NULL;
        END IF;
        SELECT * INTO f FROM repl_ml.sequence_facts(here);
        IF NOT FOUND THEN
            RETURN 'has no such sequence';
        ELSIF f.cycles THEN
            RETURN 'has it with CYCLE';
        ELSIF (f.step > 0) <> steps THEN
            RETURN 'has it counting the other way';
        END IF;
        IF EXISTS (SELECT FROM repl_ml.sequence_mark k WHERE k.schema_name = of_schema AND k.sequence_name = of_sequence AND k.state <> 'free' AND k.sequence = here) THEN
            RETURN (SELECT k.promised FROM repl_ml.sequence_mark k WHERE k.schema_name = of_schema AND k.sequence_name = of_sequence);
        END IF;
        PERFORM repl_ml.lock_sequence(here);
        place := repl_ml.used_place(here);
        INSERT INTO repl_ml.sequence_mark AS k (schema_name, sequence_name, sequence, state, promised, descending)
        VALUES (of_schema, of_sequence, here, 'closed', place, f.step < 0)
        ON CONFLICT ON CONSTRAINT sequence_mark_pkey DO UPDATE SET state = 'closed', sequence = here, descending = excluded.descending, promised = greatest(k.promised, excluded.promised),
               server_start = NULL, first_place = NULL, last_place = NULL, next_first = NULL, next_last = NULL
        RETURNING k.promised INTO place;
        -- rows that it brings may have numbers that others have in hand
        UPDATE repl_ml.group_sequence g SET floor = repl_ml.used_place(here) FROM repl_ml.local_node l
         WHERE g.schema_name = of_schema AND g.sequence_name = of_sequence AND g.floor < repl_ml.used_place(here) AND NOT l.copy_data AND l.donor IS NOT NULL;
        PERFORM repl_ml.sequence_changed(here);
        RETURN place;
    EXCEPTION WHEN lock_not_available THEN
        RETURN 'has transactions that use it, which have to end first';
    END
    $$;
COMMENT ON FUNCTION repl_ml.close_sequence(uuid, name, name, boolean) IS 'called by members: from now on this database gives numbers of the sequence out of ranges only; returns the last place that is used or promised here, or why it cannot be';

-- What other members are asked with: those that can be, and what this node knows of each
CREATE FUNCTION repl_ml.ask_about_numbers(question text) RETURNS jsonb[]
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
    AS $$
    DECLARE
        peer record;
        dsns text[] := '{}';
        answers text[];
        self repl_ml.local_node;
        known text[] := '{}';
    BEGIN
        SELECT * INTO self FROM repl_ml.local_node;
        -- one question for all: each finds what is known of it by its id
        FOR peer IN SELECT m.node_id, m.dsn, k.* FROM repl_ml.member m CROSS JOIN LATERAL repl_ml.known_of(m.node_id) k WHERE m.state <> 'dropped' AND m.node_id <> self.node_id ORDER BY m.node_id LOOP
            dsns := dsns || peer.dsn;
            known := known || pg_catalog.format('WHEN %s THEN %L::pg_catalog.text[]', peer.node_id, ARRAY[peer.server_start::text, peer.sequence::text, peer.lsn::text, peer.counter::text]);
        END LOOP;
        IF dsns = '{}' THEN
            RETURN '{}';
        END IF;
        answers := repl_ml.ask_members(dsns, pg_catalog.replace(question, '$known', pg_catalog.format('CASE (SELECT i.node_id FROM repl_ml.local_info() i) %s END', pg_catalog.array_to_string(known, ' '))));
        RETURN ARRAY(SELECT a::jsonb FROM pg_catalog.unnest(answers) a WHERE a IS NOT NULL);
    END
    $$;
COMMENT ON FUNCTION repl_ml.ask_about_numbers(text) IS 'the answers of the other members; $known in the question is replaced by what this node knows of who is asked';

-- Takes over marks from a majority: before this node counts, after each start of its server, and when one that was dropped is to count no more
CREATE FUNCTION repl_ml.take_marks() RETURNS boolean
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
    AS $$
    DECLARE
        self repl_ml.local_node;
        joins boolean;
        gone integer[];
        answers jsonb[];
        own jsonb;
        told record;
    BEGIN
        SELECT * INTO self FROM repl_ml.local_node;
        joins := NOT EXISTS (SELECT FROM repl_ml.number_voter v WHERE v.node_id = self.node_id);
        gone := ARRAY(SELECT v.node_id FROM repl_ml.number_voter v JOIN repl_ml.member m USING (node_id) WHERE m.state = 'dropped');
        own := repl_ml.number_view();
        answers := repl_ml.ask_about_numbers(pg_catalog.format('SELECT repl_ml.number_marks(%L, %s, $known)', self.group_id, self.node_id));
        -- who does not know of a drop may still agree with the one that was dropped
        answers := ARRAY(SELECT a FROM pg_catalog.unnest(answers) a WHERE a->'dropped' @> pg_catalog.to_jsonb(gone));
        IF NOT joins THEN
            answers := answers || own;
        END IF;
        IF NOT repl_ml.number_majority(answers)
           -- where a person has dropped so many that there is no majority, all that are left have to answer
           AND NOT (gone <> '{}' AND NOT EXISTS (SELECT FROM repl_ml.number_voter v JOIN repl_ml.member m USING (node_id)
                                                  WHERE m.state <> 'dropped' AND v.node_id <> ALL (SELECT (a->>'node')::integer FROM pg_catalog.unnest(answers) a))) THEN
            RETURN false;
        END IF;
        -- before any mark, as number_marks() does
        LOCK TABLE repl_ml.number_voter IN SHARE ROW EXCLUSIVE MODE;
        FOR told IN SELECT k->>0 AS schema_name, k->>1 AS sequence_name, pg_catalog.max((k->>2)::bigint) AS promised
                   FROM pg_catalog.unnest(answers) a CROSS JOIN pg_catalog.jsonb_array_elements(coalesce(a->'marks', '[]')) k GROUP BY 1, 2 ORDER BY 1, 2 LOOP
            INSERT INTO repl_ml.sequence_mark AS k (schema_name, sequence_name, state, promised) VALUES (told.schema_name, told.sequence_name, 'free', told.promised)
            ON CONFLICT ON CONSTRAINT sequence_mark_pkey DO UPDATE SET promised = greatest(k.promised, excluded.promised);
        END LOOP;
        -- of rows that came from one that is gone, more than a promise may be left
        IF gone <> '{}' THEN
            UPDATE repl_ml.sequence_mark k SET promised = greatest(k.promised, repl_ml.used_place(k.sequence)) FROM pg_catalog.pg_class c WHERE c.oid = k.sequence AND k.state <> 'free';
        END IF;
        IF joins THEN
            INSERT INTO repl_ml.number_voter (node_id)
            SELECT DISTINCT c::integer FROM pg_catalog.unnest(answers) a CROSS JOIN pg_catalog.jsonb_array_elements_text(a->'counted') c ON CONFLICT DO NOTHING;
        END IF;
        DELETE FROM repl_ml.number_voter v WHERE v.node_id = ANY (gone);
        INSERT INTO repl_ml.number_voter AS v (node_id, server_start) VALUES (self.node_id, pg_catalog.pg_postmaster_start_time())
        ON CONFLICT ON CONSTRAINT number_voter_pkey DO UPDATE SET server_start = excluded.server_start;
        RETURN true;
    END
    $$;
COMMENT ON FUNCTION repl_ml.take_marks() IS 'takes over from a majority what it has promised, and counts from then on, without those that were dropped; false if too few members answer';

-- The group's list: what tables have joins it by itself
CREATE FUNCTION repl_ml.owned_sequences(OUT schema_name name, OUT sequence_name name) RETURNS SETOF record
    LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
    AS $$
    SELECT DISTINCT n.nspname, s.relname
      FROM repl_ml.replicated_table t JOIN pg_catalog.pg_namespace tn ON tn.nspname = t.schema_name JOIN pg_catalog.pg_class c ON c.relnamespace = tn.oid AND c.relname = t.table_name
     CROSS JOIN LATERAL (SELECT c.oid UNION ALL SELECT p.relid FROM repl_ml.partitions(c.oid) p WHERE c.relkind = 'p') r
      JOIN pg_catalog.pg_depend d ON d.refclassid = 'pg_class'::regclass AND d.refobjid = r.oid AND d.classid = 'pg_class'::regclass AND d.deptype IN ('a', 'i')
      JOIN pg_catalog.pg_class s ON s.oid = d.objid AND s.relkind = 'S' JOIN pg_catalog.pg_namespace n ON n.oid = s.relnamespace
     WHERE t.state = 'enrolled'
    $$;
COMMENT ON FUNCTION repl_ml.owned_sequences() IS 'the sequences of serial, identity and other columns of replicated tables that own one';

CREATE FUNCTION repl_ml.sequences_to_list(OUT schema_name name, OUT sequence_name name, OUT state text) RETURNS SETOF record
    LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
    AS $$
    SELECT o.schema_name, o.sequence_name, 'enrolled' FROM repl_ml.owned_sequences() o LEFT JOIN repl_ml.group_sequence g USING (schema_name, sequence_name)
     WHERE g.state IS NULL OR g.state = 'removed' AND g.by_table
    UNION ALL
    SELECT g.schema_name, g.sequence_name, 'removed' FROM repl_ml.group_sequence g JOIN repl_ml.local_node l ON l.node_id = g.enrolled_by OR NOT EXISTS (SELECT FROM repl_ml.member m WHERE m.node_id = g.enrolled_by AND m.state <> 'dropped')
     WHERE g.state = 'enrolled' AND g.by_table AND (g.schema_name, g.sequence_name) NOT IN (SELECT o.schema_name, o.sequence_name FROM repl_ml.owned_sequences() o)
    $$;
COMMENT ON FUNCTION repl_ml.sequences_to_list() IS 'what the group''s list of sequences lacks, as tables have them, and has too much';

CREATE FUNCTION repl_ml.list_sequences() RETURNS boolean
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
    AS $$
    BEGIN
        INSERT INTO repl_ml.group_sequence AS g (schema_name, sequence_name, state, by_table, enrolled_by)
        SELECT s.schema_name, s.sequence_name, s.state, true, l.node_id FROM repl_ml.sequences_to_list() s CROSS JOIN repl_ml.local_node l
        ON CONFLICT ON CONSTRAINT group_sequence_pkey DO UPDATE SET state = excluded.state, enrolled_by = excluded.enrolled_by, floor = NULL, obstacle = NULL, listed_at = excluded.listed_at, retry_at = excluded.retry_at;
        RETURN FOUND;
    END
    $$;
COMMENT ON FUNCTION repl_ml.list_sequences() IS 'puts the sequences of replicated tables on the group''s list, and takes those of other tables off it';

-- What is on the list becomes one sequence when all members have closed theirs
CREATE FUNCTION repl_ml.open_sequence(of_schema name, of_sequence name) RETURNS text
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
    AS $$
    DECLARE
        self repl_ml.local_node;
        members text[];
        names name[];
        answers text[];
        reason text;
        f record;
    BEGIN
        SELECT * INTO self FROM repl_ml.local_node;
        SELECT * INTO f FROM repl_ml.sequence_facts(pg_catalog.to_regclass(pg_catalog.format('%I.%I', of_schema, of_sequence)));
        IF NOT FOUND THEN
            RETURN pg_catalog.format('node "%s" has no such sequence', self.node_name);
        ELSIF f.cycles THEN
            RETURN 'it has CYCLE; run ALTER SEQUENCE ... NO CYCLE on all nodes';
        END IF;
        SELECT pg_catalog.array_agg(m.dsn ORDER BY m.node_id), pg_catalog.array_agg(m.node_name ORDER BY m.node_id) INTO members, names FROM repl_ml.member m WHERE m.state = 'ready';
        -- nobody's is closed before all answer, and have it: whoever has closed theirs gives no number until all have
        answers := repl_ml.ask_members(members, pg_catalog.format('SELECT CASE WHEN EXISTS (SELECT FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) c.relnamespace'
            ' WHERE n.nspname OPERATOR(pg_catalog.=) %L AND c.relname OPERATOR(pg_catalog.=) %L AND c.relkind OPERATOR(pg_catalog.=) ''S'') THEN ''ok'' ELSE ''has no such sequence'' END FROM repl_ml.require_member()', of_schema, of_sequence));
        SELECT pg_catalog.string_agg(pg_catalog.format('node "%s" %s', u.n, coalesce(u.a, 'does not answer')), '; ') INTO reason
          FROM ROWS FROM (pg_catalog.unnest(names), pg_catalog.unnest(answers)) u (n, a) WHERE u.a IS DISTINCT FROM 'ok';
        IF reason IS NOT NULL THEN
            RETURN reason;
        END IF;
        answers := repl_ml.ask_members(members, pg_catalog.format('SELECT repl_ml.close_sequence(%L, %L, %L, %L)', self.group_id, of_schema, of_sequence, f.step > 0));
        SELECT pg_catalog.string_agg(pg_catalog.format('node "%s" %s', u.n, coalesce(u.a, 'does not answer')), '; ') INTO reason
          FROM ROWS FROM (pg_catalog.unnest(names), pg_catalog.unnest(answers)) u (n, a) WHERE u.a IS NULL OR u.a !~ '^-?[0-9]+$';
        IF reason IS NOT NULL THEN
            RETURN reason;
        END IF;
        UPDATE repl_ml.group_sequence g SET floor = (SELECT pg_catalog.max(a::bigint) FROM pg_catalog.unnest(answers) a), obstacle = NULL WHERE g.schema_name = of_schema AND g.sequence_name = of_sequence AND g.state = 'enrolled' AND g.floor IS NULL;
        RETURN NULL;
    END
    $$;
COMMENT ON FUNCTION repl_ml.open_sequence(name, name) IS 'has all members close a sequence of theirs, and notes beyond which place the group''s begins; null, or what is in the way';

-- Gets one range: null, or why not. It is proposed at once, unless the last one found too few members: each that agrees in vain keeps
-- the numbers from everybody.
CREATE FUNCTION repl_ml.agree_on_range(of_schema name, of_sequence name, beyond bigint, least_size bigint DEFAULT 64) RETURNS text
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
    AS $$
    DECLARE
        self repl_ml.local_node;
        mark repl_ml.sequence_mark;
        f record;
        answers jsonb[] := '{}';
        start bigint;
        amount numeric;
        until bigint;
        question text := 'SELECT repl_ml.accept_range(%L, %s, $known, %L, %L, %L, %L)';
        agreed boolean := false;
    BEGIN
        SELECT * INTO self FROM repl_ml.local_node;
        SELECT k.* INTO mark FROM repl_ml.sequence_mark k WHERE k.schema_name = of_schema AND k.sequence_name = of_sequence;
        SELECT * INTO f FROM repl_ml.sequence_facts(mark.sequence);
        -- what this node uses in five seconds, since a range costs some milliseconds; but a server start leaves out what is in hand
        amount := greatest(least(mark.obtained / 4, 5 * mark.size / pg_catalog.abs(f.step) / greatest(EXTRACT(epoch FROM pg_catalog.clock_timestamp() - mark.obtained_at), 0.01)), least_size, 64);
        FOR attempt IN 1 .. 5 LOOP
            IF mark.in_vain THEN
                answers := repl_ml.ask_about_numbers(pg_catalog.format(question, self.group_id, self.node_id, of_schema, of_sequence, NULL, NULL));
                EXIT WHEN NOT repl_ml.number_majority(answers || repl_ml.number_view());
            END IF;
            SELECT k.promised INTO start FROM repl_ml.sequence_mark k WHERE k.schema_name = of_schema AND k.sequence_name = of_sequence;
            start := greatest(start + 1, beyond, f.first_place, (SELECT g.floor + 1 FROM repl_ml.group_sequence g WHERE g.schema_name = of_schema AND g.sequence_name = of_sequence),
                              (SELECT pg_catalog.max((a->>'promised')::bigint + 1) FROM pg_catalog.unnest(answers) a));
            IF start > f.last_place THEN
                -- there is nothing to be had any more, also not after the next start
                UPDATE repl_ml.sequence_mark k SET state = 'covered', server_start = pg_catalog.pg_postmaster_start_time(), first_place = NULL, last_place = NULL, next_first = NULL, next_last = NULL
                 WHERE k.schema_name = of_schema AND k.sequence_name = of_sequence AND k.server_start IS DISTINCT FROM pg_catalog.pg_postmaster_start_time();
                RETURN 'exhausted';
            END IF;
            -- the last ones in small pieces, for all
            amount := pg_catalog.trunc(least(amount, 1048576, pg_catalog.ceil((f.last_place::numeric - start) / pg_catalog.abs(f.step) / 64) + 1));
            until := least(start::numeric + amount * pg_catalog.abs(f.step) - 1, f.last_place);
            answers := repl_ml.ask_about_numbers(pg_catalog.format(question, self.group_id, self.node_id, of_schema, of_sequence, start, until));
            mark.in_vain := NOT repl_ml.number_majority(answers || repl_ml.number_view());
            -- its own voice is given last, so that nobody waits for this transaction
            IF repl_ml.number_majority(ARRAY(SELECT a FROM pg_catalog.unnest(answers) a WHERE (a->>'accepted')::boolean) || repl_ml.number_view()) THEN
                UPDATE repl_ml.sequence_mark k SET promised = until WHERE k.schema_name = of_schema AND k.sequence_name = of_sequence AND k.promised < start AND repl_ml.counts_numbers();
                agreed := FOUND;
            END IF;
            agreed := agreed OR repl_ml.number_majority(ARRAY(SELECT a FROM pg_catalog.unnest(answers) a WHERE (a->>'accepted')::boolean));
            EXIT WHEN agreed OR mark.in_vain;
            -- somebody else wanted the same: of two that go on wanting it one is faster
            PERFORM pg_catalog.pg_sleep(pg_catalog.random() * 0.02 * attempt);
        END LOOP;
        IF NOT agreed THEN
            UPDATE repl_ml.sequence_mark k SET in_vain = mark.in_vain WHERE k.schema_name = of_schema AND k.sequence_name = of_sequence AND k.in_vain <> mark.in_vain;
            RETURN CASE WHEN mark.in_vain THEN 'too few members answer' ELSE 'too few members agree' END;
        END IF;
        -- behind what is in hand it is one with that, or the next one; with nothing in hand it is the next one, into which the sequence has to move
        UPDATE repl_ml.sequence_mark k
           SET state = 'covered', server_start = pg_catalog.pg_postmaster_start_time(), obtained = k.obtained + amount, size = until - start + 1, obtained_at = pg_catalog.clock_timestamp(), in_vain = false, promised = greatest(k.promised, until),
               first_place = CASE h.what WHEN 'here' THEN start WHEN 'none' THEN NULL ELSE k.first_place END,
               last_place = CASE h.what WHEN 'none' THEN NULL WHEN 'next' THEN k.last_place ELSE until END,
               next_first = CASE WHEN h.what IN ('next', 'none') THEN start END, next_last = CASE WHEN h.what IN ('next', 'none') THEN until END
          FROM (SELECT CASE WHEN beyond IS NOT NULL THEN 'here' WHEN mark.server_start IS DISTINCT FROM pg_catalog.pg_postmaster_start_time() OR mark.last_place IS NULL THEN 'none'
                            WHEN mark.last_place + 1 = start THEN 'longer' ELSE 'next' END AS what) h
         WHERE k.schema_name = of_schema AND k.sequence_name = of_sequence;
        PERFORM repl_ml.sequence_changed(mark.sequence);
        RETURN NULL;
    END
    $$;
COMMENT ON FUNCTION repl_ml.agree_on_range(name, name, bigint, bigint) IS 'gets a range of a sequence that more than half of the members have agreed to: behind what is in hand or, with beyond, in its place. Null, or why not';

-- For a client's session that has no numbers left, or soon will; asked over this node's own connection string, so that it commits by itself
CREATE FUNCTION repl_ml.get_range(wanted oid, beyond bigint, least_size bigint) RETURNS text
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
    AS $$
    DECLARE
        mark repl_ml.sequence_mark;
    BEGIN
        PERFORM repl_ml.require_member();
        SELECT k.* INTO mark FROM repl_ml.sequence_mark k WHERE k.sequence = wanted AND k.state <> 'free';
        IF NOT FOUND THEN
            RETURN 'free';
        ELSIF NOT pg_catalog.pg_try_advisory_xact_lock(-1, wanted::bigint::integer) THEN
            RETURN 'wait';
        ELSIF NOT EXISTS (SELECT FROM repl_ml.group_sequence g WHERE g.schema_name = mark.schema_name AND g.sequence_name = mark.sequence_name AND g.state = 'enrolled' AND g.floor IS NOT NULL) THEN
            RETURN 'not covered';
        ELSIF NOT repl_ml.counts_numbers() THEN
            -- committed before anything is asked again
            RETURN CASE WHEN repl_ml.take_marks() THEN 'wait' ELSE 'too few members answer' END;
        END IF;
        -- the next one is in hand already
        SELECT k.* INTO mark FROM repl_ml.sequence_mark k WHERE k.sequence = wanted;
        IF mark.next_first IS NOT NULL AND mark.server_start = pg_catalog.pg_postmaster_start_time() THEN
            IF beyond > coalesce(mark.last_place, beyond - 1) AND beyond <= mark.next_last THEN
                UPDATE repl_ml.sequence_mark k SET first_place = k.next_first, last_place = k.next_last, next_first = NULL, next_last = NULL WHERE k.sequence = wanted;
                PERFORM repl_ml.sequence_changed(wanted);
                RETURN NULL;
            ELSIF beyond IS NULL THEN
                RETURN NULL;
            END IF;
        END IF;
        RETURN repl_ml.agree_on_range(mark.schema_name, mark.sequence_name, beyond, least_size);
    END
    $$;
COMMENT ON FUNCTION repl_ml.get_range(oid, bigint, bigint) IS 'gets one more range of a sequence; beyond: the place that its next number would have, which is not in hand; least_size: how many numbers it has at least. Null, or why not';

-- Whether there is something for tend_sequence. What tables own is found out only where it may have changed: that takes longest
CREATE FUNCTION repl_ml.sequences_due(tables_changed boolean) RETURNS boolean
    LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
    AS $$
    BEGIN
    RETURN (SELECT l.state = 'ready' AND (NOT repl_ml.counts_numbers()
        OR EXISTS (SELECT FROM repl_ml.number_voter v JOIN repl_ml.member m USING (node_id) WHERE m.state = 'dropped')
        OR EXISTS (SELECT FROM repl_ml.group_sequence g LEFT JOIN repl_ml.sequence_mark k USING (schema_name, sequence_name)
                    WHERE CASE WHEN g.state = 'removed' THEN k.state <> 'free'
                               WHEN g.floor IS NULL THEN g.retry_at <= pg_catalog.clock_timestamp() AND (g.enrolled_by = l.node_id OR g.listed_at < pg_catalog.clock_timestamp() - '10 s'::interval)
                               ELSE k.state IS DISTINCT FROM 'covered' OR k.server_start IS DISTINCT FROM pg_catalog.pg_postmaster_start_time() OR least(k.first_place, k.next_first) <= g.floor
                                    OR k.sequence IS DISTINCT FROM pg_catalog.to_regclass(pg_catalog.format('%I.%I', g.schema_name, g.sequence_name))::oid END)
        OR CASE WHEN tables_changed THEN EXISTS (SELECT FROM repl_ml.sequences_to_list()) ELSE false END)
      FROM repl_ml.local_node l);
    END
    $$;
COMMENT ON FUNCTION repl_ml.sequences_due(boolean) IS 'whether something is to be done about sequences: see repl_ml.tend_sequence()';

-- One step of what is due, in a transaction: what is asked comes first, what is written last. The supervisor has a session of its own
-- do one after the other
CREATE FUNCTION repl_ml.tend_sequence() RETURNS boolean
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
    AS $$
    DECLARE
        self repl_ml.local_node;
        g repl_ml.group_sequence;
        here regclass;
        reason text;
        r record;
        freed boolean := false;
    BEGIN
        PERFORM repl_ml.require_member();
        SELECT * INTO self FROM repl_ml.local_node;
        IF self.state <> 'ready' OR NOT pg_catalog.pg_try_advisory_xact_lock(-1, 0) THEN
            RETURN false;
        END IF;
        IF NOT repl_ml.counts_numbers() OR EXISTS (SELECT FROM repl_ml.number_voter v JOIN repl_ml.member m USING (node_id) WHERE m.state = 'dropped') THEN
            RETURN repl_ml.take_marks();
        ELSIF repl_ml.list_sequences() THEN
            RETURN true;
        END IF;
        FOR r IN SELECT x.schema_name, x.sequence_name FROM repl_ml.group_sequence x JOIN repl_ml.sequence_mark k USING (schema_name, sequence_name) WHERE x.state = 'removed' AND k.state <> 'free' ORDER BY 1, 2 LOOP
            PERFORM repl_ml.free_sequence(r.schema_name, r.sequence_name);
            freed := true;
        END LOOP;
        IF freed THEN
            RETURN true;
        END IF;
        -- a node has brought rows with greater numbers: what is in hand below is not used
        FOR r IN UPDATE repl_ml.sequence_mark k SET first_place = NULL, last_place = NULL, next_first = NULL, next_last = NULL, server_start = NULL, promised = greatest(k.promised, x.floor)
                   FROM repl_ml.group_sequence x WHERE x.schema_name = k.schema_name AND x.sequence_name = k.sequence_name AND least(k.first_place, k.next_first) <= x.floor
                 RETURNING k.sequence LOOP
            PERFORM repl_ml.sequence_changed(r.sequence);
            freed := true;
        END LOOP;
        IF freed THEN
            RETURN true;
        END IF;
        FOR g IN SELECT x.* FROM repl_ml.group_sequence x LEFT JOIN repl_ml.sequence_mark k USING (schema_name, sequence_name)
                  WHERE x.state = 'enrolled' AND CASE WHEN x.floor IS NULL THEN x.retry_at <= pg_catalog.clock_timestamp() AND (x.enrolled_by = self.node_id OR x.listed_at < pg_catalog.clock_timestamp() - '10 s'::interval)
                                                      ELSE k.state IS DISTINCT FROM 'covered' OR k.server_start IS DISTINCT FROM pg_catalog.pg_postmaster_start_time()
                                                           OR k.sequence IS DISTINCT FROM pg_catalog.to_regclass(pg_catalog.format('%I.%I', x.schema_name, x.sequence_name))::oid END
                  ORDER BY 1, 2 LOOP
            here := pg_catalog.to_regclass(pg_catalog.format('%I.%I', g.schema_name, g.sequence_name));
            IF g.floor IS NULL THEN
                reason := repl_ml.open_sequence(g.schema_name, g.sequence_name);
                UPDATE repl_ml.group_sequence x SET obstacle = reason, retry_at = pg_catalog.clock_timestamp() + '3 s'::interval
                 WHERE x.schema_name = g.schema_name AND x.sequence_name = g.sequence_name AND reason IS NOT NULL;
                RETURN true;
            ELSIF here IS NOT NULL AND NOT EXISTS (SELECT FROM repl_ml.sequence_mark k WHERE k.sequence = here AND k.state <> 'free') THEN
                -- it has come later, or is another one now
                reason := repl_ml.close_sequence(self.group_id, g.schema_name, g.sequence_name, (SELECT f.step > 0 FROM repl_ml.sequence_facts(here) f));
                IF reason ~ '^-?[0-9]+$' THEN
                    RETURN true;
                END IF;
            ELSIF here IS NOT NULL AND pg_catalog.pg_try_advisory_xact_lock(-1, here::oid::bigint::integer) THEN
                -- a first range at once: there is something in hand when the others cannot be reached
                reason := repl_ml.agree_on_range(g.schema_name, g.sequence_name, NULL);
                IF reason IS NULL THEN
                    RETURN true;
                END IF;
                EXIT WHEN reason LIKE 'too few%';
            END IF;
        END LOOP;
        RETURN false;
    END
    $$;
COMMENT ON FUNCTION repl_ml.tend_sequence() IS 'does one thing that is due about sequences; whether there was one: takes over marks, lists the sequences of tables, makes them the group''s, gets first ranges';

-- An ordinary sequence again, behind all that this node knows to be given
CREATE FUNCTION repl_ml.free_sequence(of_schema name, of_sequence name) RETURNS void
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
    AS $$
    DECLARE
        mark repl_ml.sequence_mark;
        f record;
    BEGIN
        SELECT k.* INTO mark FROM repl_ml.sequence_mark k WHERE k.schema_name = of_schema AND k.sequence_name = of_sequence AND k.state <> 'free';
        IF NOT FOUND THEN
            RETURN;
        END IF;
        UPDATE repl_ml.sequence_mark k SET state = 'free' WHERE k.schema_name = of_schema AND k.sequence_name = of_sequence;
        SELECT * INTO f FROM repl_ml.sequence_facts(mark.sequence);
        IF FOUND THEN
            PERFORM pg_catalog.setval(mark.sequence::regclass, least(greatest(mark.promised, repl_ml.used_place(mark.sequence)), f.last_place) * pg_catalog.sign(f.step)::bigint);
            PERFORM repl_ml.sequence_changed(mark.sequence);
        END IF;
    END
    $$;
COMMENT ON FUNCTION repl_ml.free_sequence(name, name) IS 'makes a sequence of this database an ordinary one again, which goes on behind all that is used or promised here';

-- For persons
CREATE FUNCTION repl_ml.add_sequence(sequence regclass) RETURNS void
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
    AS $$
    DECLARE
        f record;
        self record;
    BEGIN
        PERFORM repl_ml.refuse_nulls('sequence', pg_catalog.num_nulls(sequence));
        SELECT * INTO self FROM repl_ml.require_member();
        SELECT * INTO f FROM repl_ml.sequence_facts(sequence);
        IF NOT FOUND OR EXISTS (SELECT FROM pg_catalog.pg_class c WHERE c.oid = sequence AND (c.relpersistence <> 'p' OR c.relnamespace IN ('repl_ml'::regnamespace, 'pg_catalog'::regnamespace))) THEN
            RAISE EXCEPTION '% is not a sequence that the group could share', sequence USING ERRCODE = 'wrong_object_type',
                HINT = 'Name an ordinary sequence: SELECT schemaname, sequencename FROM pg_sequences.';
        ELSIF f.cycles THEN
            RAISE EXCEPTION 'sequence % gives its numbers again and again', sequence USING ERRCODE = 'object_not_in_prerequisite_state',
                HINT = pg_catalog.format('Run ALTER SEQUENCE %s NO CYCLE on all nodes.', sequence);
        END IF;
        INSERT INTO repl_ml.group_sequence AS g (schema_name, sequence_name, state, by_table, enrolled_by)
        SELECT n.nspname, c.relname, 'enrolled', false, self.node_id FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = sequence
        ON CONFLICT ON CONSTRAINT group_sequence_pkey DO UPDATE SET state = 'enrolled', by_table = false, enrolled_by = excluded.enrolled_by, floor = NULL, listed_at = excluded.listed_at WHERE g.state = 'removed';
        PERFORM repl_ml.wake_workers();
    END
    $$;
COMMENT ON FUNCTION repl_ml.add_sequence(regclass) IS
    'makes a sequence one of the group, so that no number is given twice; those of replicated tables'' columns are without it. It exists on all members under the same name. Superusers only. Errors: 42809 not a sequence, 55000 not a member, or it has CYCLE';

CREATE FUNCTION repl_ml.remove_sequence(sequence regclass) RETURNS void
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
    AS $$
    BEGIN
        PERFORM repl_ml.refuse_nulls('sequence', pg_catalog.num_nulls(sequence));
        PERFORM repl_ml.require_member();
        UPDATE repl_ml.group_sequence g SET state = 'removed', by_table = false, floor = NULL FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
         WHERE c.oid = sequence AND g.schema_name = n.nspname AND g.sequence_name = c.relname AND g.state = 'enrolled';
        IF NOT FOUND THEN
            RAISE EXCEPTION 'sequence % is not one of the group', sequence USING ERRCODE = 'undefined_object', HINT = 'Run SELECT * FROM repl_ml.sequences.';
        END IF;
        PERFORM repl_ml.wake_workers();
    END
    $$;
COMMENT ON FUNCTION repl_ml.remove_sequence(regclass) IS
    'makes a sequence an ordinary one of each node again, also one of a replicated table''s column; each goes on behind all that is given. Superusers only. Errors: 42704 not one of the group, 55000 not a member';

CREATE VIEW repl_ml.sequences WITH (security_barrier) AS
    SELECT pg_catalog.to_regclass(pg_catalog.format('%I.%I', g.schema_name, g.sequence_name)) AS sequence, g.schema_name, g.sequence_name,
           CASE WHEN k.state = 'covered' AND k.server_start = pg_catalog.pg_postmaster_start_time() THEN 'shared' WHEN g.floor IS NULL THEN 'pending' ELSE 'waiting' END AS state, g.by_table,
           h.in_hand,
           pg_catalog.sign(f.step)::bigint * k.promised AS last_promised,
           CASE WHEN k.state <> 'free' THEN greatest(pg_catalog.div(f.last_place::numeric - k.promised, pg_catalog.abs(f.step)), 0) END AS numbers_left,
           CASE WHEN k.state <> 'free' THEN pg_catalog.round(100 * greatest(f.last_place::numeric - k.promised, 0) / nullif(f.last_place::numeric - f.first_place + 1, 0), 1) END AS percent_left,
           g.obstacle
      FROM repl_ml.group_sequence g LEFT JOIN repl_ml.sequence_mark k USING (schema_name, sequence_name)
      LEFT JOIN LATERAL repl_ml.sequence_facts(k.sequence) f ON true
      LEFT JOIN LATERAL (SELECT coalesce(k.last_place - greatest(k.first_place, CASE WHEN f.step > 0 THEN pg_catalog.pg_sequence_last_value(k.sequence) ELSE -pg_catalog.pg_sequence_last_value(k.sequence) END + 1) + 1, 0) / pg_catalog.abs(f.step)
                                + coalesce(k.next_last - k.next_first + 1, 0) / pg_catalog.abs(f.step) AS in_hand
                          WHERE k.server_start = pg_catalog.pg_postmaster_start_time() AND pg_catalog.has_sequence_privilege(k.sequence, 'SELECT, USAGE')) h ON true
     WHERE g.state = 'enrolled';
COMMENT ON VIEW repl_ml.sequences IS
    'sequences of the group: shared (this node has numbers of its own), pending (not all members have taken it up: obstacle), waiting (this node has had no numbers since its start); in_hand, the numbers that this node can give without asking; last_promised, the last one that this node has agreed to, for anybody; numbers_left behind that';
