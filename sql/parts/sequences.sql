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
        RETURN answer || pg_catalog.jsonb_build_object('round', (SELECT s.promised FROM repl_ml.lease_state s), 'needs', repl_ml.lease_needs(), 'marks', coalesce((SELECT pg_catalog.jsonb_agg(pg_catalog.jsonb_build_array(k.schema_name, k.sequence_name, k.promised)) FROM repl_ml.sequence_mark k), '[]'));
    END
    $$;
COMMENT ON FUNCTION repl_ml.number_marks(uuid, integer, text[]) IS 'called by members: the highest numbers that this node has promised to anybody, and whom it counts; it counts the asker from now on. Null if it does not count itself';

-- What a sequence is called in the group's list, and which one it is here; renaming changes neither
CREATE FUNCTION repl_ml.sequence_key(sequence oid, OUT schema_name name, OUT sequence_name name) RETURNS record
    LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
    AS $$
    BEGIN
        SELECT g.schema_name, g.sequence_name INTO schema_name, sequence_name FROM repl_ml.sequence_mark k JOIN repl_ml.group_sequence g USING (schema_name, sequence_name)
         WHERE k.sequence = sequence_key.sequence AND g.state = 'enrolled';
        IF NOT FOUND THEN
            SELECT g.schema_name, g.sequence_name INTO schema_name, sequence_name FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
              JOIN repl_ml.group_sequence g ON (g.now_schema, g.now_name) = (n.nspname, c.relname) OR g.now_name IS NULL AND (g.schema_name, g.sequence_name) = (n.nspname, c.relname)
             WHERE c.oid = sequence_key.sequence ORDER BY g.state LIMIT 1;
        END IF;
        IF NOT FOUND THEN
            SELECT n.nspname, c.relname INTO schema_name, sequence_name FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = sequence_key.sequence;
            -- another one had that name once, and has another one now
            WHILE EXISTS (SELECT FROM repl_ml.group_sequence g WHERE (g.schema_name, g.sequence_name) = (sequence_key.schema_name, sequence_key.sequence_name)) LOOP
                sequence_name := pg_catalog.left(sequence_name, 60) || '~';
            END LOOP;
        END IF;
    END
    $$;
COMMENT ON FUNCTION repl_ml.sequence_key(oid) IS 'the name of a sequence in the group''s list; of one that is not there the one that it would have';

CREATE FUNCTION repl_ml.sequence_here(of_schema name, of_sequence name) RETURNS oid
    LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
    AS $$
    SELECT coalesce((SELECT c.oid FROM repl_ml.sequence_mark k JOIN pg_catalog.pg_class c ON c.oid = k.sequence AND c.relkind = 'S' WHERE (k.schema_name, k.sequence_name) = (of_schema, of_sequence)),
                    (SELECT c.oid FROM pg_catalog.pg_namespace n JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid AND c.relkind = 'S'
                       LEFT JOIN repl_ml.group_sequence g ON (g.schema_name, g.sequence_name) = (of_schema, of_sequence)
                      WHERE (n.nspname, c.relname) = (coalesce(g.now_schema, of_schema), coalesce(g.now_name, of_sequence))))
    $$;
COMMENT ON FUNCTION repl_ml.sequence_here(name, name) IS 'the sequence of this database that has this name in the group''s list; null if there is none';

CREATE FUNCTION repl_ml.sequence_floor(of_schema name, of_sequence name) RETURNS bigint
    LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
    AS $$
    SELECT coalesce(pg_catalog.max(u.place), -9223372036854775807) FROM repl_ml.sequence_use u WHERE (u.schema_name, u.sequence_name) = (of_schema, of_sequence)
    $$;
COMMENT ON FUNCTION repl_ml.sequence_floor(name, name) IS 'the last place of a sequence that any node had used before it became the group''s, as far as is known here';

-- Nobody else may give what has been given here
CREATE FUNCTION repl_ml.note_use(of_schema name, of_sequence name, here oid) RETURNS void
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
    AS $$
    DECLARE
        used bigint;
    BEGIN
        IF here IS NULL THEN
            RETURN;
        END IF;
        used := repl_ml.used_place(here);
        IF used > repl_ml.sequence_floor(of_schema, of_sequence) THEN
            INSERT INTO repl_ml.sequence_use AS u (schema_name, sequence_name, node_id, place) SELECT of_schema, of_sequence, l.node_id, used FROM repl_ml.local_node l
            ON CONFLICT ON CONSTRAINT sequence_use_pkey DO UPDATE SET place = excluded.place WHERE u.place < excluded.place;
        END IF;
    END
    $$;
COMMENT ON FUNCTION repl_ml.note_use(name, name, oid) IS 'tells the group what this node has used of a sequence by itself, if that is more than is known';

-- For sessions of their own: a client's transaction writes no mark
CREATE FUNCTION repl_ml.take_up(of_schema name, of_sequence name, here oid, place bigint) RETURNS void
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
    AS $$
    BEGIN
        UPDATE repl_ml.sequence_mark k SET sequence = NULL WHERE k.sequence = here AND (k.schema_name, k.sequence_name) <> (of_schema, of_sequence);
        INSERT INTO repl_ml.sequence_mark AS k (schema_name, sequence_name, sequence, closed, promised) VALUES (of_schema, of_sequence, here, true, place)
        ON CONFLICT ON CONSTRAINT sequence_mark_pkey DO UPDATE SET sequence = coalesce(excluded.sequence, k.sequence), closed = true, closed_at = excluded.closed_at, promised = greatest(k.promised, excluded.promised);
        PERFORM repl_ml.sequence_changed(coalesce(here, 0));
    END
    $$;
COMMENT ON FUNCTION repl_ml.take_up(name, name, oid, bigint) IS 'from now on this database gives numbers of a sequence out of ranges only, which are beyond that place';

-- A member that has one of that name, and has not heard that it is the group's
CREATE FUNCTION repl_ml.stop_alone(of_schema name, of_sequence name, here oid) RETURNS boolean
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp SET lock_timeout = '1s'
    AS $$
    BEGIN
        PERFORM repl_ml.lock_sequence(here);
        PERFORM repl_ml.note_use(of_schema, of_sequence, here);
        PERFORM repl_ml.take_up(of_schema, of_sequence, here, repl_ml.used_place(here));
        RETURN true;
    EXCEPTION WHEN lock_not_available THEN
        RETURN false;
    END
    $$;
COMMENT ON FUNCTION repl_ml.stop_alone(name, name, oid) IS 'has this database give numbers of a sequence out of ranges only, and tells what it has used; false if transactions go on that have used it';

-- Asked by who wants a range, in places: is it beyond all that this node has promised? With no range, what that is
CREATE FUNCTION repl_ml.accept_range(in_group uuid, asker integer, known text[], of_schema name, of_sequence name, first bigint, last bigint) RETURNS text
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET lock_timeout = '1s'
    AS $$
    DECLARE
        mark repl_ml.sequence_mark;
        listed boolean;
        here oid;
        may boolean := true;
        accepted boolean := false;
    BEGIN
        PERFORM repl_ml.require_number_asker(in_group, asker, known);
        IF NOT repl_ml.counts_numbers() THEN
            RETURN NULL;
        END IF;
        IF first IS NOT NULL THEN
            SELECT k.* INTO mark FROM repl_ml.sequence_mark k WHERE (k.schema_name, k.sequence_name) = (of_schema, of_sequence);
            IF mark.closed IS NOT TRUE THEN
                -- by name: this node need not have heard of the sequence to promise something of it
                here := repl_ml.sequence_here(of_schema, of_sequence);
                listed := EXISTS (SELECT FROM repl_ml.group_sequence g WHERE (g.schema_name, g.sequence_name) = (of_schema, of_sequence) AND g.state = 'enrolled' AND g.obstacle IS NULL);
                IF here IS NOT NULL AND listed THEN
                    PERFORM repl_ml.take_up(of_schema, of_sequence, here, greatest(repl_ml.used_place(here), repl_ml.sequence_floor(of_schema, of_sequence)));
                ELSIF here IS NOT NULL AND NOT (SELECT f.cycles FROM repl_ml.sequence_facts(here) f) THEN
                    may := repl_ml.stop_alone(of_schema, of_sequence, here);
                END IF;
            END IF;
            IF may AND last >= first AND first > repl_ml.sequence_floor(of_schema, of_sequence) THEN
                INSERT INTO repl_ml.sequence_mark AS k (schema_name, sequence_name, promised) VALUES (of_schema, of_sequence, last)
                ON CONFLICT ON CONSTRAINT sequence_mark_pkey DO UPDATE SET promised = excluded.promised WHERE k.promised < first;
                accepted := FOUND;
            END IF;
            PERFORM repl_ml.sequence_changed(0);
        END IF;
        RETURN repl_ml.number_view() || pg_catalog.jsonb_build_object('accepted', accepted, 'busy', NOT may,
                   'promised', (SELECT k.promised FROM repl_ml.sequence_mark k WHERE (k.schema_name, k.sequence_name) = (of_schema, of_sequence)),
                   'used', (SELECT u.place FROM repl_ml.sequence_use u JOIN repl_ml.local_node l USING (node_id) WHERE (u.schema_name, u.sequence_name) = (of_schema, of_sequence)));
    END
    $$;
COMMENT ON FUNCTION repl_ml.accept_range(uuid, integer, text[], name, name, bigint, bigint) IS 'called by members: promises a range of a sequence to the asker if it is beyond all that was promised before, durably; says whether, what is promised now, what this node had used of it by itself, and whom this node counts. Null if it does not count';

-- What other members are asked with: those that can be, and what this node knows of each
CREATE FUNCTION repl_ml.ask_about_numbers(question text) RETURNS jsonb[]
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
    AS $$
    DECLARE
        peer record;
        dsns text[];
        answers text[];
        self repl_ml.local_node;
        known text[];
        reached boolean;
        asked integer[] := '{}';
        result jsonb[] := '{}';
    BEGIN
        SELECT * INTO self FROM repl_ml.local_node;
        -- those that are silent only where the others are too few
        FOREACH reached IN ARRAY '{t, f}'::boolean[] LOOP
            -- one question for all: each finds what is known of it by its id
            dsns := '{}';
            known := '{}';
            FOR peer IN SELECT m.node_id, m.dsn, k.* FROM repl_ml.member m LEFT JOIN repl_ml.write_members() w USING (node_id) CROSS JOIN LATERAL repl_ml.known_of(m.node_id) k
                         WHERE m.state <> 'dropped' AND m.node_id <> self.node_id AND m.node_id <> ALL (asked) AND (w.reachable OR NOT reached) ORDER BY m.node_id LOOP
                dsns := dsns || peer.dsn;
                asked := asked || peer.node_id;
                known := known || pg_catalog.format('WHEN %s THEN %L::pg_catalog.text[]', peer.node_id, ARRAY[peer.server_start::text, peer.sequence::text, peer.lsn::text, peer.counter::text]);
            END LOOP;
            CONTINUE WHEN dsns = '{}';
            answers := repl_ml.ask_members(dsns, pg_catalog.replace(question, '$known', pg_catalog.format('CASE (SELECT i.node_id FROM repl_ml.local_info() i) %s END', pg_catalog.array_to_string(known, ' '))));
            result := result || ARRAY(SELECT a::jsonb FROM pg_catalog.unnest(answers) a WHERE a IS NOT NULL);
            EXIT WHEN repl_ml.number_majority(result || repl_ml.number_view());
        END LOOP;
        RETURN result;
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
            INSERT INTO repl_ml.sequence_mark AS k (schema_name, sequence_name, promised) VALUES (told.schema_name, told.sequence_name, told.promised)
            ON CONFLICT ON CONSTRAINT sequence_mark_pkey DO UPDATE SET promised = greatest(k.promised, excluded.promised);
        END LOOP;
        -- the same of the lease of strong tables: the last round that any of them has voted for, and what has to be there for the next
        IF joins OR gone <> '{}' THEN
            FOR told IN SELECT (a->>'round')::bigint AS round, (a->>'needs')::repl_ml.vclock AS needs FROM pg_catalog.unnest(answers) a WHERE a ? 'round' LOOP
                UPDATE repl_ml.lease_state s SET promised = greatest(s.promised, told.round), base = repl_ml.merge(s.base, told.needs);
            END LOOP;
        END IF;
        -- of rows that came from one that is gone, more than a promise may be left
        IF gone <> '{}' THEN
            UPDATE repl_ml.sequence_mark k SET promised = greatest(k.promised, repl_ml.used_place(k.sequence)) FROM pg_catalog.pg_class c WHERE c.oid = k.sequence AND k.closed;
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

-- The group's list: what tables have joins it by themselves
CREATE FUNCTION repl_ml.owned_sequences(relation regclass DEFAULT NULL, OUT sequence oid, OUT schema_name name, OUT sequence_name name) RETURNS SETOF record
    LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
    AS $$
    WITH owned AS (
        SELECT DISTINCT s.oid, n.nspname, s.relname
          FROM repl_ml.replicated_table t JOIN pg_catalog.pg_namespace tn ON tn.nspname = t.schema_name JOIN pg_catalog.pg_class c ON c.relnamespace = tn.oid AND c.relname = t.table_name
         CROSS JOIN LATERAL (SELECT c.oid UNION ALL SELECT p.relid FROM repl_ml.partitions(c.oid) p WHERE c.relkind = 'p') r
          JOIN pg_catalog.pg_depend d ON d.refclassid = 'pg_class'::regclass AND d.refobjid = r.oid AND d.classid = 'pg_class'::regclass AND d.deptype IN ('a', 'i')
          JOIN pg_catalog.pg_class s ON s.oid = d.objid AND s.relkind = 'S' JOIN pg_catalog.pg_namespace n ON n.oid = s.relnamespace
         WHERE t.state = 'enrolled' AND c.oid = coalesce(relation, c.oid))
    SELECT o.oid, coalesce(k.schema_name, p.schema_name, q.schema_name), coalesce(k.sequence_name, p.sequence_name, q.sequence_name)
      FROM owned o
      LEFT JOIN (SELECT m.sequence, g.schema_name, g.sequence_name FROM repl_ml.sequence_mark m JOIN repl_ml.group_sequence g USING (schema_name, sequence_name) WHERE g.state = 'enrolled') k ON k.sequence = o.oid
      LEFT JOIN repl_ml.group_sequence p ON (p.now_schema, p.now_name) = (o.nspname, o.relname)
      LEFT JOIN repl_ml.group_sequence q ON (q.schema_name, q.sequence_name) = (o.nspname, o.relname) AND q.now_name IS NULL
    $$;
COMMENT ON FUNCTION repl_ml.owned_sequences(regclass) IS 'the sequences of serial, identity and other columns of replicated tables, or of one of them, that own one, with their names in the group''s list, if they have been on it';

CREATE FUNCTION repl_ml.rename_sequence(of_schema name, of_sequence name, here oid) RETURNS void
    LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp
    AS $$
    UPDATE repl_ml.group_sequence g SET now_schema = n.nspname, now_name = c.relname FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
     WHERE c.oid = here AND (g.schema_name, g.sequence_name) = (of_schema, of_sequence)
       AND (coalesce(g.now_schema, g.schema_name), coalesce(g.now_name, g.sequence_name)) <> (n.nspname, c.relname)
    $$;
COMMENT ON FUNCTION repl_ml.rename_sequence(name, name, oid) IS 'tells the group what a sequence on its list is called here now';

-- In the transaction that says so: whoever hears of it hears what was used before, and takes no number but behind that
CREATE FUNCTION repl_ml.share_sequence(sequence regclass, by_table boolean) RETURNS void
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
    AS $$
    DECLARE
        f record;
        key record;
    BEGIN
        SELECT * INTO f FROM repl_ml.sequence_facts(sequence);
        SELECT * INTO key FROM repl_ml.sequence_key(sequence);
        IF NOT f.cycles THEN
            -- who has taken numbers has to end first; nobody takes any until this transaction does
            PERFORM repl_ml.lock_sequence(sequence);
            PERFORM repl_ml.note_use(key.schema_name, key.sequence_name, sequence);
        END IF;
        INSERT INTO repl_ml.group_sequence AS g (schema_name, sequence_name, state, by_table, enrolled_by, descending, obstacle)
        SELECT key.schema_name, key.sequence_name, 'enrolled', share_sequence.by_table, l.node_id, f.step < 0, CASE WHEN f.cycles THEN 'it has CYCLE; run ALTER SEQUENCE ... NO CYCLE on all nodes' END FROM repl_ml.local_node l
        ON CONFLICT ON CONSTRAINT group_sequence_pkey DO UPDATE
           SET state = 'enrolled', by_table = excluded.by_table, enrolled_by = excluded.enrolled_by, descending = excluded.descending, obstacle = excluded.obstacle;
        PERFORM repl_ml.rename_sequence(key.schema_name, key.sequence_name, sequence);
        PERFORM repl_ml.sequence_changed(sequence);
    END
    $$;
COMMENT ON FUNCTION repl_ml.share_sequence(regclass, boolean) IS 'puts a sequence on the group''s list';

CREATE FUNCTION repl_ml.sequences_to_list(OUT sequence oid, OUT schema_name name, OUT sequence_name name, OUT state text) RETURNS SETOF record
    LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
    AS $$
    WITH owned AS MATERIALIZED (SELECT * FROM repl_ml.owned_sequences())
    SELECT o.sequence, o.schema_name, o.sequence_name, 'enrolled' FROM owned o LEFT JOIN repl_ml.group_sequence g USING (schema_name, sequence_name) JOIN pg_catalog.pg_sequence s ON s.seqrelid = o.sequence
     WHERE g.state IS NULL OR g.state = 'removed' AND g.by_table OR g.state = 'enrolled' AND g.obstacle IS NOT NULL AND NOT s.seqcycle
    UNION ALL
    SELECT NULL, g.schema_name, g.sequence_name, 'removed' FROM repl_ml.group_sequence g JOIN repl_ml.local_node l ON l.node_id = g.enrolled_by OR NOT EXISTS (SELECT FROM repl_ml.member m WHERE m.node_id = g.enrolled_by AND m.state <> 'dropped')
     WHERE g.state = 'enrolled' AND g.by_table AND NOT EXISTS (SELECT FROM owned o WHERE (o.schema_name, o.sequence_name) = (g.schema_name, g.sequence_name))
    $$;
COMMENT ON FUNCTION repl_ml.sequences_to_list() IS 'what the group''s list of sequences lacks, as tables have them, and has too much';

-- Called where a table joins the list, or a replicated one is changed
CREATE FUNCTION repl_ml.share_sequences(relation regclass) RETURNS void
    LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp
    AS $$
    SELECT repl_ml.share_sequence(o.sequence, true) FROM repl_ml.owned_sequences(relation) o LEFT JOIN repl_ml.group_sequence g USING (schema_name, sequence_name)
     WHERE g.state IS NULL OR g.state = 'removed' AND g.by_table ORDER BY o.sequence
    $$;
COMMENT ON FUNCTION repl_ml.share_sequences(regclass) IS 'puts the sequences that a replicated table''s columns own on the group''s list, if they are not';

CREATE FUNCTION repl_ml.list_sequences() RETURNS boolean
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp SET lock_timeout = '2s'
    AS $$
    DECLARE
        s record;
        done boolean := false;
    BEGIN
        FOR s IN SELECT * FROM repl_ml.sequences_to_list() ORDER BY schema_name, sequence_name LOOP
            IF s.state = 'removed' THEN
                UPDATE repl_ml.group_sequence g SET state = 'removed' WHERE (g.schema_name, g.sequence_name) = (s.schema_name, s.sequence_name);
                done := true;
            ELSE
                BEGIN
                    PERFORM repl_ml.share_sequence(s.sequence, true);
                    done := true;
                EXCEPTION WHEN lock_not_available THEN
                    NULL;
                END;
            END IF;
        END LOOP;
        RETURN done;
    END
    $$;
COMMENT ON FUNCTION repl_ml.list_sequences() IS 'puts the sequences of replicated tables on the group''s list, and takes those of other tables off it';

-- Gets one range: null, or why not. It is proposed at once, unless the last one found too few members: each that agrees in vain keeps
-- the numbers from everybody.
CREATE FUNCTION repl_ml.agree_on_range(of_schema name, of_sequence name, step bigint, first_place bigint, final_place bigint, beyond bigint, least_size bigint) RETURNS text
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
    AS $$
    DECLARE
        self repl_ml.local_node;
        mark repl_ml.sequence_mark;
        answers jsonb[] := '{}';
        start bigint;
        amount numeric;
        until bigint;
        question text := 'SELECT repl_ml.accept_range(%L, %s, $known, %L, %L, %L, %L)';
        agreed boolean := false;
    BEGIN
        SELECT * INTO self FROM repl_ml.local_node;
        SELECT k.* INTO mark FROM repl_ml.sequence_mark k WHERE k.schema_name = of_schema AND k.sequence_name = of_sequence;
        -- what this node uses in five seconds, since a range costs some milliseconds; but a server start leaves out what is in hand
        amount := greatest(least(mark.obtained / 4, 5 * mark.size / pg_catalog.abs(step) / greatest(EXTRACT(epoch FROM pg_catalog.clock_timestamp() - mark.obtained_at), 0.01)), least_size, 64);
        FOR attempt IN 1 .. 5 LOOP
            IF mark.in_vain THEN
                answers := repl_ml.ask_about_numbers(pg_catalog.format(question, self.group_id, self.node_id, of_schema, of_sequence, NULL, NULL));
                EXIT WHEN NOT repl_ml.number_majority(answers || repl_ml.number_view());
            END IF;
            SELECT k.promised INTO start FROM repl_ml.sequence_mark k WHERE k.schema_name = of_schema AND k.sequence_name = of_sequence;
            start := greatest(start + 1, beyond, agree_on_range.first_place, repl_ml.sequence_floor(of_schema, of_sequence) + 1,
                              (SELECT pg_catalog.max(greatest((a->>'promised')::bigint, (a->>'used')::bigint) + 1) FROM pg_catalog.unnest(answers) a));
            IF start > final_place THEN
                -- there is nothing to be had any more, also not after the next start
                UPDATE repl_ml.sequence_mark k SET server_start = pg_catalog.pg_postmaster_start_time(), first_place = NULL, last_place = NULL, next_first = NULL, next_last = NULL
                 WHERE k.schema_name = of_schema AND k.sequence_name = of_sequence AND k.server_start IS DISTINCT FROM pg_catalog.pg_postmaster_start_time();
                RETURN 'exhausted';
            END IF;
            -- the last ones in small pieces, for all
            amount := pg_catalog.trunc(least(amount, 1048576, pg_catalog.ceil((final_place::numeric - start) / pg_catalog.abs(step) / 64) + 1));
            until := least(start::numeric + amount * pg_catalog.abs(step) - 1, final_place);
            answers := repl_ml.ask_about_numbers(pg_catalog.format(question, self.group_id, self.node_id, of_schema, of_sequence, start, until));
            mark.in_vain := NOT repl_ml.number_majority(answers || repl_ml.number_view());
            -- what one has used by itself is not given, whoever has agreed
            CONTINUE WHEN EXISTS (SELECT FROM pg_catalog.unnest(answers) a WHERE (a->>'used')::bigint >= start);
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
            RETURN CASE WHEN mark.in_vain THEN 'too few members answer' WHEN EXISTS (SELECT FROM pg_catalog.unnest(answers) a WHERE (a->>'busy')::boolean) THEN 'a member has transactions that use a sequence of its own of this name' ELSE 'too few members agree' END;
        END IF;
        -- behind what is in hand it is one with that, or the next one; with nothing in hand it is the next one, into which the sequence has to move
        UPDATE repl_ml.sequence_mark k
           SET server_start = pg_catalog.pg_postmaster_start_time(), obtained = k.obtained + amount, size = until - start + 1, obtained_at = pg_catalog.clock_timestamp(), in_vain = false, promised = greatest(k.promised, until),
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
COMMENT ON FUNCTION repl_ml.agree_on_range(name, name, bigint, bigint, bigint, bigint, bigint) IS 'gets a range of a sequence that more than half of the members have agreed to: behind what is in hand or, with beyond, in its place. Null, or why not';

-- For a client's session that has no numbers left, or soon will; asked over this node's own connection string, so that it commits by itself.
-- It does not see what that session has not committed, so the session says what it knows: the floor, if it sees the sequence on the list
CREATE FUNCTION repl_ml.get_range(wanted oid, of_schema name, of_sequence name, floor bigint, step bigint, first_place bigint, final_place bigint, beyond bigint, least_size bigint) RETURNS text
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
    AS $$
    DECLARE
        listed repl_ml.group_sequence;
        mark repl_ml.sequence_mark;
    BEGIN
        PERFORM repl_ml.require_member();
        IF NOT pg_catalog.pg_try_advisory_xact_lock(-1, pg_catalog.hashtext(pg_catalog.format('%I.%I', of_schema, of_sequence))) THEN
            RETURN 'wait';
        END IF;
        SELECT g.* INTO listed FROM repl_ml.group_sequence g WHERE (g.schema_name, g.sequence_name) = (of_schema, of_sequence);
        SELECT k.* INTO mark FROM repl_ml.sequence_mark k WHERE (k.schema_name, k.sequence_name) = (of_schema, of_sequence);
        IF floor IS NULL AND mark.closed AND listed.state = 'removed' THEN
            PERFORM repl_ml.free_sequence(of_schema, of_sequence);
            RETURN 'free';
        ELSIF floor IS NULL AND mark.closed IS NOT TRUE AND listed.state IS DISTINCT FROM 'enrolled' THEN
            RETURN 'free';
        ELSIF listed.state = 'enrolled' AND listed.descending <> (step < 0) THEN
            RETURN 'it counts the other way here';
        ELSIF NOT repl_ml.counts_numbers() THEN
            -- committed before anything is asked again
            RETURN CASE WHEN repl_ml.take_marks() THEN 'again' ELSE 'too few members answer' END;
        ELSIF mark.closed IS NOT TRUE OR mark.sequence IS DISTINCT FROM wanted THEN
            -- so is this, which other members wait for
            PERFORM repl_ml.take_up(of_schema, of_sequence, wanted, coalesce(floor, repl_ml.sequence_floor(of_schema, of_sequence)));
            RETURN 'again';
        END IF;
        -- the next one is in hand already
        IF mark.next_first IS NOT NULL AND mark.server_start = pg_catalog.pg_postmaster_start_time() THEN
            IF beyond > coalesce(mark.last_place, beyond - 1) AND beyond <= mark.next_last THEN
                UPDATE repl_ml.sequence_mark k SET first_place = k.next_first, last_place = k.next_last, next_first = NULL, next_last = NULL WHERE (k.schema_name, k.sequence_name) = (of_schema, of_sequence);
                PERFORM repl_ml.sequence_changed(wanted);
                RETURN NULL;
            ELSIF beyond IS NULL THEN
                RETURN NULL;
            END IF;
        END IF;
        RETURN repl_ml.agree_on_range(of_schema, of_sequence, step, first_place, final_place, beyond, least_size);
    END
    $$;
COMMENT ON FUNCTION repl_ml.get_range(oid, name, name, bigint, bigint, bigint, bigint, bigint, bigint) IS 'gets one more range of a sequence; floor: null, or where the group''s begins, as the session that wants it knows; beyond: the place that its next number would have, which is not in hand; least_size: how many numbers it has at least. Null, or why not';

-- What of the group's list is not done here yet; in this order
CREATE FUNCTION repl_ml.sequences_to_tend(OUT schema_name name, OUT sequence_name name, OUT sequence oid, OUT action text) RETURNS SETOF record
    LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
    AS $$
    #variable_conflict use_column
    BEGIN
    RETURN QUERY SELECT schema_name, sequence_name, x.here, x.action
      FROM repl_ml.group_sequence g FULL JOIN repl_ml.sequence_mark k USING (schema_name, sequence_name)
      LEFT JOIN pg_catalog.pg_class c ON c.oid = k.sequence
     CROSS JOIN LATERAL (SELECT coalesce(c.oid, pg_catalog.to_regclass(pg_catalog.format('%I.%I', coalesce(g.now_schema, g.schema_name, k.schema_name), coalesce(g.now_name, g.sequence_name, k.sequence_name)))::oid) AS here) h
     CROSS JOIN LATERAL (SELECT h.here, CASE WHEN g.state = 'removed' AND (k.closed OR k.closed IS NULL AND h.here IS NOT NULL) THEN 'free'
                                             -- somebody was to make it the group's, and has not
                                             WHEN g.state IS NULL AND k.closed AND k.closed_at < pg_catalog.clock_timestamp() - '1 min'::interval THEN 'free'
                                             WHEN g.state = 'enrolled' AND g.obstacle IS NULL AND h.here IS NOT NULL THEN
                                                  CASE WHEN k.closed IS NOT TRUE OR k.sequence IS DISTINCT FROM h.here THEN 'take up'
                                                       WHEN k.server_start IS DISTINCT FROM pg_catalog.pg_postmaster_start_time() AND g.descending = (SELECT s.seqincrement < 0 FROM pg_catalog.pg_sequence s WHERE s.seqrelid = h.here) THEN 'get' END END AS action) x
     WHERE x.action IS NOT NULL ORDER BY x.action, 1, 2;
    END
    $$;
COMMENT ON FUNCTION repl_ml.sequences_to_tend() IS 'which sequences this node has to free, take up, or get a first range of';

-- Whether there is something for tend_sequence. What tables own is found out only where it may have changed: that takes longest
CREATE FUNCTION repl_ml.sequences_due(tables_changed boolean) RETURNS boolean
    LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
    AS $$
    BEGIN
    RETURN (SELECT l.state = 'ready' AND (NOT repl_ml.counts_numbers()
        OR EXISTS (SELECT FROM repl_ml.number_voter v JOIN repl_ml.member m USING (node_id) WHERE m.state = 'dropped')
        OR EXISTS (SELECT FROM repl_ml.sequences_to_tend())
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
        t record;
        f record;
        reason text;
        done boolean := false;
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
        FOR t IN SELECT * FROM repl_ml.sequences_to_tend() LOOP
            -- nothing is asked while what has been written is not committed: others wait for it
            EXIT WHEN done AND t.action = 'get';
            CONTINUE WHEN NOT pg_catalog.pg_try_advisory_xact_lock(-1, pg_catalog.hashtext(pg_catalog.format('%I.%I', t.schema_name, t.sequence_name)));
            IF t.action = 'free' THEN
                PERFORM repl_ml.free_sequence(t.schema_name, t.sequence_name);
                done := true;
            ELSIF t.action = 'take up' THEN
                PERFORM repl_ml.take_up(t.schema_name, t.sequence_name, t.sequence, greatest(repl_ml.used_place(t.sequence), repl_ml.sequence_floor(t.schema_name, t.sequence_name)));
                done := true;
            ELSE
                -- a first range at once: there is something in hand when the others cannot be reached
                SELECT * INTO f FROM repl_ml.sequence_facts(t.sequence);
                reason := repl_ml.agree_on_range(t.schema_name, t.sequence_name, f.step, f.first_place, f.last_place, NULL, 64);
                IF reason IS NULL THEN
                    RETURN true;
                END IF;
                EXIT WHEN reason LIKE 'too few%';
            END IF;
        END LOOP;
        RETURN done;
    END
    $$;
COMMENT ON FUNCTION repl_ml.tend_sequence() IS 'does something that is due about sequences; whether there was: takes over marks, lists the sequences of tables, takes up what is listed, gets first ranges';

-- An ordinary sequence again, behind all that this node knows to be given
CREATE FUNCTION repl_ml.free_sequence(of_schema name, of_sequence name) RETURNS void
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
    AS $$
    DECLARE
        here oid := repl_ml.sequence_here(of_schema, of_sequence);
        f record;
        place bigint;
    BEGIN
        INSERT INTO repl_ml.sequence_mark AS k (schema_name, sequence_name, promised) VALUES (of_schema, of_sequence, repl_ml.sequence_floor(of_schema, of_sequence))
        ON CONFLICT ON CONSTRAINT sequence_mark_pkey DO UPDATE SET closed = false, sequence = NULL, server_start = NULL, first_place = NULL, last_place = NULL, next_first = NULL, next_last = NULL
        RETURNING k.promised INTO place;
        SELECT * INTO f FROM repl_ml.sequence_facts(here);
        IF FOUND THEN
            place := least(greatest(place, repl_ml.used_place(here)), f.last_place);
            IF place >= f.first_place THEN
                PERFORM pg_catalog.setval(here::regclass, place * pg_catalog.sign(f.step)::bigint);
            END IF;
            PERFORM repl_ml.sequence_changed(here);
        END IF;
    END
    $$;
COMMENT ON FUNCTION repl_ml.free_sequence(name, name) IS 'makes a sequence of this database an ordinary one again, which goes on behind all that is used or promised here';

-- What is said of tables: by add_all_tables, join_group, check_setup and health
CREATE FUNCTION repl_ml.own_numbers(relations regclass[], OUT relation regclass, OUT sequence regclass, OUT message text, OUT hint text) RETURNS SETOF record
    LANGUAGE plpgsql STABLE SECURITY DEFINER ROWS 1 SET search_path = pg_catalog, pg_temp SET jit = off SET enable_nestloop = off SET enable_mergejoin = off
    AS $$
    #variable_conflict use_column
    DECLARE
        loose oid[];
    BEGIN
        loose := ARRAY(
            SELECT s.seqrelid FROM pg_catalog.pg_sequence s
             -- by its number, and few are left to be looked up by their names
             CROSS JOIN LATERAL (SELECT n.nspname, c.relname FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = s.seqrelid AND n.nspname <> 'repl_ml' OFFSET 0) q
             WHERE NOT EXISTS (SELECT FROM repl_ml.sequence_mark k JOIN repl_ml.group_sequence g USING (schema_name, sequence_name) WHERE k.sequence = s.seqrelid AND g.state = 'enrolled' AND g.obstacle IS NULL)
               AND (q.nspname, q.relname) NOT IN (SELECT coalesce(g.now_schema, g.schema_name), coalesce(g.now_name, g.sequence_name) FROM repl_ml.group_sequence g WHERE g.state = 'enrolled' AND g.obstacle IS NULL));
        -- mostly there is none, and nothing to look for
        IF loose = '{}' THEN
            RETURN;
        END IF;
        RETURN QUERY
        WITH taken AS (
            SELECT d.relid, s.seqrelid, s.seqcycle
              FROM pg_catalog.unnest(loose) l (id) JOIN pg_catalog.pg_sequence s ON s.seqrelid = l.id
             -- few, and each found by an index
             CROSS JOIN LATERAL (SELECT x.adrelid AS relid FROM pg_catalog.pg_depend p JOIN pg_catalog.pg_attrdef x ON x.oid = p.objid
                                  WHERE p.refclassid = 'pg_class'::regclass AND p.refobjid = s.seqrelid AND p.classid = 'pg_attrdef'::regclass
                                    AND (s.seqcycle OR NOT EXISTS (SELECT FROM pg_catalog.pg_depend o WHERE o.classid = 'pg_class'::regclass AND o.objid = s.seqrelid AND o.refclassid = 'pg_class'::regclass AND o.deptype IN ('a', 'i')))
                                 UNION
                                 SELECT p.refobjid FROM pg_catalog.pg_depend p WHERE s.seqcycle AND p.classid = 'pg_class'::regclass AND p.objid = s.seqrelid AND p.refclassid = 'pg_class'::regclass AND p.deptype = 'i') d)
        SELECT t.relid::regclass, t.seqrelid::regclass,
               pg_catalog.format('its column takes numbers of sequence %s, which each node gives by itself: %s', t.seqrelid::regclass, CASE WHEN t.seqcycle THEN 'it has CYCLE' ELSE 'no column owns it' END),
               CASE WHEN t.seqcycle THEN pg_catalog.format('Run ALTER SEQUENCE %s NO CYCLE on all nodes.', t.seqrelid::regclass) ELSE pg_catalog.format('Run SELECT repl_ml.add_sequence(%L).', t.seqrelid::regclass::text) END
          FROM taken t WHERE t.relid = ANY (relations) OR relations IS NULL ORDER BY 1, 2;
    END
    $$;
COMMENT ON FUNCTION repl_ml.own_numbers(regclass[]) IS 'which of these tables (null: of all) have a column whose numbers two nodes may both give, and what to do';

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
        PERFORM repl_ml.share_sequence(sequence, false);
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
        UPDATE repl_ml.group_sequence g SET state = 'removed', by_table = false FROM repl_ml.sequence_key(remove_sequence.sequence) k
         WHERE (g.schema_name, g.sequence_name) = (k.schema_name, k.sequence_name) AND g.state = 'enrolled';
        IF NOT FOUND THEN
            RAISE EXCEPTION 'sequence % is not one of the group', sequence USING ERRCODE = 'undefined_object', HINT = 'Run SELECT * FROM repl_ml.sequences.';
        END IF;
        PERFORM repl_ml.wake_workers();
    END
    $$;
COMMENT ON FUNCTION repl_ml.remove_sequence(regclass) IS
    'makes a sequence an ordinary one of each node again, also one of a replicated table''s column; each goes on behind all that is given. Superusers only. Errors: 42704 not one of the group, 55000 not a member';

CREATE VIEW repl_ml.sequences WITH (security_barrier) AS
    SELECT h.sequence::regclass AS sequence, coalesce(g.now_schema, g.schema_name) AS schema_name, coalesce(g.now_name, g.sequence_name) AS sequence_name,
           CASE WHEN g.obstacle IS NOT NULL THEN 'pending' WHEN k.server_start = pg_catalog.pg_postmaster_start_time() THEN 'shared' ELSE 'waiting' END AS state, g.by_table,
           i.in_hand,
           pg_catalog.sign(f.step)::bigint * CASE WHEN k.promised >= f.first_place THEN k.promised END AS last_promised,
           CASE WHEN g.obstacle IS NULL THEN greatest(pg_catalog.div(f.last_place::numeric - greatest(k.promised, f.first_place - 1), pg_catalog.abs(f.step)), 0) END AS numbers_left,
           CASE WHEN g.obstacle IS NULL THEN pg_catalog.round(100 * greatest(f.last_place::numeric - greatest(k.promised, f.first_place - 1), 0) / nullif(f.last_place::numeric - f.first_place + 1, 0), 1) END AS percent_left,
           coalesce(g.obstacle, CASE WHEN h.sequence IS NULL THEN 'there is none here' WHEN g.descending <> (f.step < 0) THEN 'it counts the other way here' END) AS obstacle
      FROM repl_ml.group_sequence g LEFT JOIN repl_ml.sequence_mark k USING (schema_name, sequence_name)
      LEFT JOIN pg_catalog.pg_class c ON c.oid = k.sequence
     CROSS JOIN LATERAL (SELECT coalesce(c.oid, pg_catalog.to_regclass(pg_catalog.format('%I.%I', coalesce(g.now_schema, g.schema_name), coalesce(g.now_name, g.sequence_name)))::oid) AS sequence) h
      LEFT JOIN LATERAL repl_ml.sequence_facts(h.sequence) f ON true
      LEFT JOIN LATERAL (SELECT coalesce(k.last_place - greatest(k.first_place, CASE WHEN f.step > 0 THEN pg_catalog.pg_sequence_last_value(h.sequence) ELSE -pg_catalog.pg_sequence_last_value(h.sequence) END + 1) + 1, 0) / pg_catalog.abs(f.step)
                                + coalesce(k.next_last - k.next_first + 1, 0) / pg_catalog.abs(f.step) AS in_hand
                          WHERE k.server_start = pg_catalog.pg_postmaster_start_time() AND pg_catalog.has_sequence_privilege(h.sequence, 'SELECT, USAGE')) i ON true
     WHERE g.state = 'enrolled';
COMMENT ON VIEW repl_ml.sequences IS
    'sequences of the group: shared (this node has numbers in hand, or knows that there are none left), waiting (it has had none since its start), pending (each node''s own still: obstacle); in_hand, the numbers that this node can give without asking; last_promised, the last one that this node has agreed to, for anybody; numbers_left behind that';
