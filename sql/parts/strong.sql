--
-- Strong tables: the lease
--

-- Whoever votes or accepts takes it exclusively, and who applies a transaction of strong tables shares it as it commits
CREATE FUNCTION repl_ml.lock_strong_changes() RETURNS void
    AS 'MODULE_PATHNAME', 'repl_ml_lock_strong_changes' LANGUAGE C VOLATILE STRICT;
COMMENT ON FUNCTION repl_ml.lock_strong_changes() IS 'until the transaction ends, which is durable then, no change of strong tables that comes from a peer is committed here';

CREATE FUNCTION repl_ml.lease_close(unclean boolean, counted bigint) RETURNS void
    AS 'MODULE_PATHNAME', 'repl_ml_lease_close' LANGUAGE C VOLATILE;
COMMENT ON FUNCTION repl_ml.lease_close(boolean, bigint) IS 'no client of this node commits in the tenure that it had, nor reads strong tables from now on if they are unclean, and the process of the lease looks what has become of it; what this node has written beyond "counted" is waited for by nobody';

CREATE FUNCTION repl_ml.lease_end() RETURNS bigint
    AS 'MODULE_PATHNAME', 'repl_ml_lease_end' LANGUAGE C VOLATILE STRICT;
COMMENT ON FUNCTION repl_ml.lease_end() IS 'up to where in this node''s WAL there may be transactions of strong tables of its present tenure';

CREATE FUNCTION repl_ml.hears(node integer) RETURNS boolean
    AS 'MODULE_PATHNAME', 'repl_ml_hears' LANGUAGE C VOLATILE STRICT;
COMMENT ON FUNCTION repl_ml.hears(integer) IS 'whether this node is connected with that one and has heard from it within a second';

CREATE FUNCTION repl_ml.strong_places() RETURNS repl_ml.vclock
    LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp
    AS $$
    SELECT coalesce('{' || string_agg(format('%s:%s', p.node_id, p.lsn), ',' ORDER BY p.node_id) || '}', '{}')::repl_ml.vclock
      FROM (SELECT w.node_id, w.lsn FROM repl_ml.strong_place w, repl_ml.local_node l WHERE w.node_id <> l.node_id AND w.lsn > 0
            UNION ALL SELECT l.node_id, repl_ml.lease_end() FROM repl_ml.local_node l, repl_ml.lease_state s WHERE s.holder = l.node_id AND repl_ml.lease_end() > 0) p
    $$;
COMMENT ON FUNCTION repl_ml.strong_places() IS 'up to where this node has what each node wrote to strong tables';

CREATE FUNCTION repl_ml.strong_given_up() RETURNS bigint
    AS 'MODULE_PATHNAME', 'repl_ml_strong_given_up' LANGUAGE C VOLATILE STRICT;
COMMENT ON FUNCTION repl_ml.strong_given_up() IS 'up to where this node''s WAL has transactions of strong tables that can be seen here and have not been acknowledged, as their wait was given up; 0: there are none';

CREATE FUNCTION repl_ml.strong_shows(lsn bigint) RETURNS boolean
    AS 'MODULE_PATHNAME', 'repl_ml_strong_shows' LANGUAGE C VOLATILE STRICT;
COMMENT ON FUNCTION repl_ml.strong_shows(bigint) IS 'whether all that was committed on this node up to this position of its WAL can be seen here: none of it waits to be acknowledged';

CREATE FUNCTION repl_ml.covered_lsn(node integer) RETURNS bigint
    AS 'MODULE_PATHNAME', 'repl_ml_covered_lsn' LANGUAGE C VOLATILE STRICT;
COMMENT ON FUNCTION repl_ml.covered_lsn(integer) IS 'up to which position of that node''s WAL everything has come, and has been applied or put aside, since this server''s start; 0: not known';

-- A node may have acknowledged more than it remembers after a restart: where nothing is for it, nothing is written here
CREATE FUNCTION repl_ml.strong_reaches(of_node integer) RETURNS bigint
    LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp
    AS $$
    SELECT greatest(coalesce(repl_ml.counter(repl_ml.strong_places(), of_node), 0),
               CASE WHEN NOT EXISTS (SELECT FROM repl_ml.heard h WHERE h.node_id = of_node AND h.incomplete)
                    THEN least(greatest((repl_ml.received_lsn(of_node) - '0/0')::bigint, repl_ml.covered_lsn(of_node)),
                               (SELECT (pg_catalog.min(p.origin_lsn) - '0/0')::bigint - 1 FROM repl_ml.parked_change p WHERE p.put_aside AND p.origin_node = of_node)) ELSE 0 END)
    $$;
COMMENT ON FUNCTION repl_ml.strong_reaches(integer) IS 'up to which position of that node''s WAL all that it wrote to strong tables is here';

CREATE FUNCTION repl_ml.lease_needs() RETURNS repl_ml.vclock
    LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp
    AS $$
    SELECT repl_ml.merge(repl_ml.merge(repl_ml.strong_places(), s.base), coalesce((SELECT r.base FROM repl_ml.lease_round r WHERE r.round = s.accepted), '{}')) FROM repl_ml.lease_state s
    $$;
COMMENT ON FUNCTION repl_ml.lease_needs() IS 'what this node knows to be needed by whoever has the lease of strong tables next: what is here, and the bases of tenures';

-- What members ask each other
CREATE FUNCTION repl_ml.lease_state() RETURNS text
    LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
    AS $$
    SELECT pg_catalog.format('%s %s %s %s %s %s %s', s.promised, s.accepted, s.round, s.turn, s.holder, s.unclean::integer, repl_ml.strong_places()) FROM repl_ml.require_member() m, repl_ml.lease_state s
    $$;
COMMENT ON FUNCTION repl_ml.lease_state() IS 'called by a member that does not know who has the lease of strong tables, or cannot reach it: the last rounds this one has voted for and accepted, the last tenure it knows of, whether its tables are unclean, and up to where they have what each node wrote';

CREATE FUNCTION repl_ml.lease_round() RETURNS jsonb
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
    AS $$
    SELECT pg_catalog.jsonb_build_object('group', l.group_id, 'round', s.accepted, 'is_open', s.opened = s.accepted,
               'chain', (SELECT pg_catalog.jsonb_agg(pg_catalog.jsonb_build_object('round', r.round, 'holder', r.holder, 'base', r.base) ORDER BY r.round) FROM repl_ml.lease_round r))
      FROM repl_ml.require_member() m, repl_ml.local_node l, repl_ml.lease_state s WHERE s.accepted > 0
    $$;
COMMENT ON FUNCTION repl_ml.lease_round() IS 'the last round for the lease of strong tables that this node has accepted, for repl_ml.lease_accept() on others; null: none yet';

CREATE FUNCTION repl_ml.dropped_are_settled() RETURNS boolean
    AS 'MODULE_PATHNAME', 'repl_ml_dropped_are_settled' LANGUAGE C VOLATILE STRICT;
COMMENT ON FUNCTION repl_ml.dropped_are_settled() IS 'whether this node has let go of each dropped node, and has what every other member had of it';

-- A vote: from here on this node takes no changes of older rounds, until it knows which of them count
CREATE FUNCTION repl_ml.lease_vote(in_group uuid, round bigint, candidate integer, ahead bigint, gone integer, known text[]) RETURNS jsonb
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET lock_timeout = '400ms'
    AS $$
    DECLARE
        self record;
        s repl_ml.lease_state;
        reason text;
    BEGIN
        PERFORM repl_ml.require_number_asker(in_group, candidate, known);
        SELECT * INTO self FROM repl_ml.require_member();
        PERFORM repl_ml.lock_strong_changes();
        SELECT * INTO s FROM repl_ml.lease_state FOR UPDATE;
        IF s.promised >= lease_vote.round OR s.accepted > ahead THEN
            RETURN pg_catalog.jsonb_build_object('node', self.node_id, 'later', greatest(s.promised, s.accepted));
        END IF;
        SELECT r.reason INTO reason FROM (
            SELECT 1, 'it has the lease itself' WHERE candidate <> self.node_id AND s.holder = self.node_id AND s.round >= s.promised AND s.timeline = (SELECT f.timeline FROM repl_ml.local_fingerprint() f)
            UNION ALL SELECT 2, 'for it, this node is no ready member' WHERE NOT EXISTS (SELECT FROM repl_ml.member m WHERE m.node_id = candidate AND m.state = 'ready')
            UNION ALL SELECT 3, 'it does not count itself yet, as it has just joined or been started' WHERE NOT repl_ml.counts_numbers()
            UNION ALL SELECT 4, 'it has not compared yet what is left of a dropped node with all members' WHERE NOT repl_ml.dropped_are_settled()
            UNION ALL SELECT 5, pg_catalog.format('it hears node "%s", which has the lease', m.node_name) FROM repl_ml.member m WHERE m.node_id = gone AND gone <> candidate AND repl_ml.hears(gone)
            ) r (place, reason) ORDER BY r.place LIMIT 1;
        IF FOUND THEN
            -- the candidate takes no part in this node's round any more, and perhaps others do not either
            PERFORM repl_ml.lease_want() WHERE s.holder = self.node_id;
            RETURN pg_catalog.jsonb_build_object('node', self.node_id, 'no', reason);
        END IF;
        UPDATE repl_ml.lease_state SET promised = lease_vote.round;
        RETURN repl_ml.number_view() || pg_catalog.jsonb_build_object('needs', repl_ml.lease_needs());
    END
    $$;
COMMENT ON FUNCTION repl_ml.lease_vote(uuid, bigint, integer, bigint, integer, text[]) IS
    'called by a member that stands for the lease of strong tables in this round, and has accepted round "ahead" before; gone is who had the lease; known as in repl_ml.number_marks(). A vote says whom this node counts and what is needed; or it says that it has voted for, or accepted, something later; or no, and why';

-- Whoever accepts a round knows what counts of older ones. What is here beyond that is void.
CREATE FUNCTION repl_ml.lease_accept(told jsonb) RETURNS jsonb
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET lock_timeout = '400ms'
    AS $$
    DECLARE
        self repl_ml.local_node;
        s repl_ml.lease_state;
        last record;
    BEGIN
        PERFORM repl_ml.require_member();
        SELECT * INTO self FROM repl_ml.local_node;
        IF self.group_id <> (told->>'group')::uuid THEN
            RETURN NULL;
        END IF;
        SELECT * INTO s FROM repl_ml.lease_state;
        IF s.accepted < (told->>'round')::bigint THEN
            PERFORM repl_ml.lock_strong_changes();
            SELECT * INTO s FROM repl_ml.lease_state FOR UPDATE;
        END IF;
        IF s.promised > (told->>'round')::bigint OR s.accepted > (told->>'round')::bigint THEN
            RETURN pg_catalog.jsonb_build_object('node', self.node_id, 'later', greatest(s.promised, s.accepted));
        END IF;
        IF s.accepted < (told->>'round')::bigint THEN
            DELETE FROM repl_ml.lease_round;
            INSERT INTO repl_ml.lease_round SELECT c.round, c.holder, c.base FROM pg_catalog.jsonb_to_recordset(told->'chain') c (round bigint, holder integer, base repl_ml.vclock);
            SELECT r.* INTO STRICT last FROM repl_ml.lease_round r WHERE r.round = (told->>'round')::bigint;
            -- who had the lease may have written, or be writing, what nobody else has; and so may who has something beyond the base
            UPDATE repl_ml.lease_state x SET accepted = last.round, promised = last.round, round = last.round, turn = 0, holder = last.holder, since = pg_catalog.clock_timestamp(),
                   base = CASE WHEN s.accepted = 0 THEN repl_ml.merge(last.base, s.base) ELSE last.base END, timeline = (SELECT f.timeline FROM repl_ml.local_fingerprint() f),
                   unclean = s.unclean OR s.holder = self.node_id AND last.holder <> self.node_id AND s.accepted > 0
                             OR EXISTS (SELECT FROM repl_ml.strong_place p WHERE p.node_id <> self.node_id AND p.lsn > coalesce(repl_ml.counter(last.base, p.node_id), 0));
            -- all tables are to be as they are on a member that has accepted it, too
            UPDATE repl_ml.table_sync SET replaces = false, state = 'copied' WHERE replaces;
            UPDATE repl_ml.strong_place p SET lsn = coalesce(repl_ml.counter(last.base, p.node_id), 0) WHERE p.lsn > coalesce(repl_ml.counter(last.base, p.node_id), 0);
            -- what of that could not be applied is not tried again
            DELETE FROM repl_ml.parked_change p USING repl_ml.replicated_table t
             WHERE t.schema_name = p.schema_name AND t.table_name = p.table_name AND t.class = 'strong' AND p.action NOT IN ('evicted', 'kept')
               AND p.origin_node <> self.node_id AND (p.origin_lsn - '0/0')::bigint >= coalesce(repl_ml.counter(last.base, p.origin_node), 0);
            PERFORM repl_ml.lease_close((SELECT x.unclean FROM repl_ml.lease_state x), coalesce(repl_ml.counter(last.base, self.node_id), 0));
        END IF;
        IF (told->>'is_open')::boolean THEN
            UPDATE repl_ml.lease_state SET opened = accepted WHERE opened < accepted;
        END IF;
        RETURN repl_ml.number_view();
    END
    $$;
COMMENT ON FUNCTION repl_ml.lease_accept(jsonb) IS 'accepts a round for the lease of strong tables (repl_ml.lease_round() of another member) and says whom this node counts; or says that it has voted for, or accepted, something later';

-- The part of the one that stands
CREATE FUNCTION repl_ml.lease_stand(round bigint, gone integer) RETURNS text
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
    AS $$
    DECLARE
        vote jsonb;
    BEGIN
        SELECT repl_ml.lease_vote(l.group_id, lease_stand.round, l.node_id, s.accepted, lease_stand.gone, NULL) INTO STRICT vote FROM repl_ml.local_node l, repl_ml.lease_state s;
        RETURN CASE WHEN vote ? 'later' THEN 'later' WHEN vote ? 'no' THEN pg_catalog.format('This one does not vote either: %s.', vote->>'no') END;
    END
    $$;
COMMENT ON FUNCTION repl_ml.lease_stand(bigint, integer) IS 'this node''s own vote for itself: null; or says why not, "later" if it is to be tried again';

CREATE FUNCTION repl_ml.lease_question(round bigint, gone integer) RETURNS text
    LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp
    AS $$
    SELECT pg_catalog.format('SELECT repl_ml.lease_vote(%L, %s, %s, %s, %s, %s)', l.group_id, lease_question.round, l.node_id, s.accepted, lease_question.gone, coalesce('CASE (SELECT i.node_id FROM repl_ml.local_info() i) '
               || (SELECT pg_catalog.string_agg(pg_catalog.format('WHEN %s THEN %L::pg_catalog.text[]', m.node_id, ARRAY[k.server_start::text, k.sequence::text, k.lsn::text, k.counter::text]), ' ')
                     FROM repl_ml.member m CROSS JOIN LATERAL repl_ml.known_of(m.node_id) k WHERE m.state <> 'dropped' AND m.node_id <> l.node_id) || ' END', 'NULL'))
      FROM repl_ml.local_node l, repl_ml.lease_state s
    $$;
COMMENT ON FUNCTION repl_ml.lease_question(bigint, integer) IS 'what this node asks the other members when it stands in this round: their vote';

CREATE FUNCTION repl_ml.lease_win(round bigint, answers jsonb[]) RETURNS text
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
    AS $$
    DECLARE
        self repl_ml.local_node;
        s repl_ml.lease_state;
        votes jsonb[];
        vote jsonb;
        needs repl_ml.vclock;
        missing text;
    BEGIN
        SELECT * INTO self FROM repl_ml.local_node;
        PERFORM repl_ml.lock_strong_changes();
        SELECT * INTO s FROM repl_ml.lease_state FOR UPDATE;
        IF s.promised <> lease_win.round OR s.accepted >= lease_win.round THEN
            RETURN 'later';
        END IF;
        votes := ARRAY(SELECT a FROM pg_catalog.unnest(answers) a WHERE a ? 'needs') || repl_ml.number_view();
        IF NOT repl_ml.number_majority(votes) THEN
            RETURN CASE WHEN EXISTS (SELECT FROM pg_catalog.unnest(answers) a WHERE a ? 'later') THEN 'later'
                        ELSE coalesce((SELECT pg_catalog.string_agg(pg_catalog.format('Node "%s" does not vote for it: %s.', m.node_name, a->>'no'), ' ' ORDER BY m.node_id)
                                         FROM pg_catalog.unnest(answers) a JOIN repl_ml.member m ON m.node_id = (a->>'node')::integer WHERE a ? 'no'), 'Too few members answer.') END;
        END IF;
        needs := repl_ml.lease_needs();
        FOREACH vote IN ARRAY votes LOOP
            needs := repl_ml.merge(needs, coalesce((vote->>'needs')::repl_ml.vclock, '{}'));
        END LOOP;
        -- what a node that has not voted wrote, and this one lacks, may never come
        SELECT pg_catalog.string_agg(pg_catalog.quote_ident(m.node_name), ', ' ORDER BY m.node_id) INTO missing FROM repl_ml.member m
         WHERE m.state <> 'dropped' AND m.node_id NOT IN (SELECT (v->>'node')::integer FROM pg_catalog.unnest(votes) v)
           AND coalesce(repl_ml.counter(needs, m.node_id), 0) > repl_ml.strong_reaches(m.node_id);
        IF missing IS NOT NULL THEN
            RETURN pg_catalog.format('No member that can be reached has all that was written on these, which cannot: %s.', missing);
        END IF;
        INSERT INTO repl_ml.lease_round VALUES (lease_win.round, self.node_id, needs);
        UPDATE repl_ml.lease_state x SET accepted = lease_win.round, round = lease_win.round, turn = 0, holder = self.node_id, base = needs, since = pg_catalog.clock_timestamp(),
               timeline = (SELECT f.timeline FROM repl_ml.local_fingerprint() f);
        RETURN NULL;
    END
    $$;
COMMENT ON FUNCTION repl_ml.lease_win(bigint, jsonb[]) IS 'begins this node''s tenure, if a majority has voted for it in this round: null; or says why not, "later" if it is to be tried again';

CREATE FUNCTION repl_ml.lease_open(answers jsonb[]) RETURNS boolean
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
    AS $$
    BEGIN
        IF NOT repl_ml.number_majority(ARRAY(SELECT a FROM pg_catalog.unnest(answers) a WHERE a ? 'counted') || repl_ml.number_view()) THEN
            RETURN false;
        END IF;
        UPDATE repl_ml.lease_state SET opened = accepted WHERE opened < accepted;
        RETURN true;
    END
    $$;
COMMENT ON FUNCTION repl_ml.lease_open(jsonb[]) IS 'whether a majority has accepted the round that this node has accepted, by these answers of repl_ml.lease_accept(); notes it';

-- Asked by who waits to know whether something counts
CREATE FUNCTION repl_ml.lease_inquire() RETURNS void
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
    AS $$
    DECLARE
        told jsonb;
    BEGIN
        FOR told IN SELECT a::jsonb FROM pg_catalog.unnest(repl_ml.ask_members(ARRAY(SELECT m.dsn FROM repl_ml.member m, repl_ml.local_node l WHERE m.state <> 'dropped' AND m.node_id <> l.node_id),
                                                                               'SELECT repl_ml.lease_round()')) a WHERE a IS NOT NULL ORDER BY (a::jsonb->>'round')::bigint DESC LIMIT 1 LOOP
            PERFORM repl_ml.lease_accept(told);
        END LOOP;
    END
    $$;
COMMENT ON FUNCTION repl_ml.lease_inquire() IS 'asks all members for the last round of the lease of strong tables that they have accepted, and accepts the last of these';

CREATE FUNCTION repl_ml.judge_strong(node integer, round bigint, lsn bigint) RETURNS text
    LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
    AS $$
    SELECT CASE WHEN s.promised = s.accepted AND s.accepted = judge_strong.round THEN CASE WHEN s.unclean THEN 'unclean' ELSE 'takes' END
                WHEN s.promised > s.accepted OR s.accepted < judge_strong.round THEN 'waits'
                WHEN EXISTS (SELECT FROM repl_ml.lease_round r WHERE r.round > judge_strong.round AND coalesce(repl_ml.counter(r.base, judge_strong.node), 0) < judge_strong.lsn)
                THEN CASE WHEN s.opened = s.accepted THEN 'void' ELSE 'waits' END
                WHEN s.unclean THEN 'unclean' ELSE 'takes' END FROM repl_ml.lease_state s
    $$;
COMMENT ON FUNCTION repl_ml.judge_strong(integer, bigint, bigint) IS 'whether a transaction that a node wrote to strong tables in this round, and that ends there in its WAL, counts: takes; void; waits, as long as this node does not know; or unclean, as long as its tables are';

-- What of the bases is not here, by what has come with strong tables
CREATE FUNCTION repl_ml.strong_base_lacks(OUT node_id integer, OUT lsn bigint) RETURNS SETOF record
    LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp
    AS $$
    SELECT b.node_id, b.lsn
      FROM (SELECT m.node_id, greatest(coalesce(repl_ml.counter(s.base, m.node_id), 0), (SELECT coalesce(repl_ml.counter(r.base, m.node_id), 0) FROM repl_ml.lease_round r WHERE r.round = s.accepted)) AS lsn
              FROM repl_ml.member m, repl_ml.local_node l, repl_ml.lease_state s WHERE m.node_id <> l.node_id) b LEFT JOIN repl_ml.strong_place p USING (node_id)
     WHERE b.lsn > coalesce(p.lsn, 0)
    $$;
COMMENT ON FUNCTION repl_ml.strong_base_lacks() IS 'the nodes of which this one may lack something that was written to strong tables, and up to where it has to have that before it may write them';

CREATE FUNCTION repl_ml.lease_want() RETURNS void
    AS 'MODULE_PATHNAME', 'repl_ml_lease_want' LANGUAGE C VOLATILE STRICT SECURITY DEFINER SET search_path = pg_catalog, pg_temp;
COMMENT ON FUNCTION repl_ml.lease_want() IS 'called by a member whose holder of the lease is gone, on the one that has most of what was written: it gets the lease as if a client here wanted it; where it has it, it looks whether others have voted for a later round';

CREATE FUNCTION repl_ml.strong_tables() RETURNS text
    LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
    AS $$
    SELECT coalesce(pg_catalog.string_agg(pg_catalog.format('%I.%I', t.schema_name, t.table_name), ', ' ORDER BY t.schema_name, t.table_name), '') FROM repl_ml.replicated_table t WHERE t.class = 'strong' AND t.state = 'enrolled'
    $$;
COMMENT ON FUNCTION repl_ml.strong_tables() IS 'the names of all strong tables, as far as this node knows';

-- Strong tables that are unclean are made as they are on another member
CREATE FUNCTION repl_ml.mend_strong() RETURNS boolean
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
    AS $$
    DECLARE
        s repl_ml.lease_state;
        needs repl_ml.vclock := repl_ml.lease_needs();
        donors integer[];
    BEGIN
        SELECT * INTO s FROM repl_ml.lease_state;
        -- what would come now is not in its vote
        IF NOT s.unclean OR s.opened < s.accepted OR s.promised > s.accepted THEN
            RETURN false;
        END IF;
        donors := ARRAY(SELECT a::integer FROM pg_catalog.unnest(repl_ml.ask_members(
                ARRAY(SELECT m.dsn FROM repl_ml.member m JOIN repl_ml.worker_stats() w ON w.peer = m.node_id AND w.state IN ('streaming', 'copying') WHERE m.state = 'ready'),
                pg_catalog.format('SELECT i.node_id FROM repl_ml.local_info() i WHERE repl_ml.may_donate_strong(%s, %L, %L, %L)', s.accepted, needs, repl_ml.strong_places(), repl_ml.strong_tables()))) a
                          WHERE a IS NOT NULL AND NOT EXISTS (SELECT FROM repl_ml.table_sync y JOIN repl_ml.replicated_table t USING (schema_name, table_name)
                                                               WHERE y.node_id = a::integer AND y.state = 'pending' AND NOT y.replaces AND t.class = 'strong')
                          ORDER BY a::integer = s.holder DESC, a);
        IF donors = '{}' OR EXISTS (SELECT FROM repl_ml.table_sync y WHERE y.replaces AND y.state = 'pending' AND y.node_id = ANY (donors)) THEN
            RETURN false;
        END IF;
        -- what was ordered from another one may never come
        UPDATE repl_ml.table_sync SET replaces = false, state = 'copied' WHERE replaces;
        UPDATE repl_ml.lease_state SET mending = needs;
        INSERT INTO repl_ml.table_sync (node_id, schema_name, table_name, replaces)
        SELECT donors[1], t.schema_name, t.table_name, true FROM repl_ml.replicated_table t WHERE t.state = 'enrolled' AND t.class = 'strong'
        ON CONFLICT ON CONSTRAINT table_sync_pkey DO UPDATE SET state = 'pending', rows = NULL, bytes = NULL, replaces = true;
        PERFORM repl_ml.finish_mending();
        PERFORM repl_ml.wake_workers();
        RETURN true;
    END
    $$;
COMMENT ON FUNCTION repl_ml.mend_strong() IS 'orders copies of all strong tables from a member that has all of them, which replace what is here, if they are unclean and not ordered yet; whether it did';

CREATE FUNCTION repl_ml.finish_mending() RETURNS void
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
    AS $$
    BEGIN
        IF EXISTS (SELECT FROM repl_ml.table_sync y JOIN repl_ml.replicated_table t USING (schema_name, table_name) WHERE y.replaces AND y.state = 'pending' AND t.state = 'enrolled') THEN
            RETURN;
        END IF;
        UPDATE repl_ml.table_sync SET replaces = false WHERE replaces;
        INSERT INTO repl_ml.strong_place AS p (node_id, lsn)
        SELECT m.node_id, coalesce(repl_ml.counter(s.mending, m.node_id), 0) FROM repl_ml.member m, repl_ml.local_node l, repl_ml.lease_state s
         WHERE m.node_id <> l.node_id AND coalesce(repl_ml.counter(s.mending, m.node_id), 0) > 0
        ON CONFLICT ON CONSTRAINT strong_place_pkey DO UPDATE SET lsn = greatest(p.lsn, excluded.lsn);
        UPDATE repl_ml.void_transaction SET undone_at = pg_catalog.clock_timestamp() WHERE undone_at IS NULL;
        UPDATE repl_ml.lease_state SET unclean = false WHERE unclean;
        PERFORM repl_ml.lease_close(false, NULL);
    END
    $$;
COMMENT ON FUNCTION repl_ml.finish_mending() IS 'called with each copy that replaces a strong table, in its transaction: notes, after the last one, that the tables are what they are on the other members';

CREATE FUNCTION repl_ml.may_donate_strong(asker_accepted bigint, asker_needs text, asker_places text, asker_tables text) RETURNS boolean
    LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
    AS $$
    SELECT NOT s.unclean AND s.accepted = asker_accepted AND s.promised = s.accepted AND repl_ml.strong_obstacle() IS NULL AND repl_ml.strong_tables() = asker_tables
       AND repl_ml.strong_shows(coalesce(repl_ml.counter(asker_places::repl_ml.vclock, l.node_id), 0))
       AND NOT EXISTS (SELECT FROM repl_ml.member o, LATERAL (SELECT coalesce(repl_ml.counter(asker_needs::repl_ml.vclock, o.node_id), 0) AS lsn) w
                        WHERE o.node_id <> l.node_id AND o.state <> 'dropped' AND w.lsn > repl_ml.strong_reaches(o.node_id))
      FROM repl_ml.local_node l, repl_ml.lease_state s
    $$;
COMMENT ON FUNCTION repl_ml.may_donate_strong(bigint, text, text, text) IS 'called by a member whose strong tables are unclean: whether those here are the same tables and as they are to be, have all that the asker needs, by these positions, and show what it has had';

CREATE FUNCTION repl_ml.lease_ask(asker integer) RETURNS text
    AS 'MODULE_PATHNAME', 'repl_ml_lease_ask' LANGUAGE C VOLATILE STRICT SECURITY DEFINER SET search_path = pg_catalog, pg_temp;
COMMENT ON FUNCTION repl_ml.lease_ask(integer) IS 'called by a member that wants the lease of strong tables, on the one that has it: given, with what goes with it; elsewhere, and where; or wait';

CREATE FUNCTION repl_ml.lease_stats(OUT writable boolean, OUT pid integer, OUT refusal text, OUT nodes_waiting integer, OUT elected bigint, OUT taken bigint, OUT given bigint,
    OUT waits bigint, OUT waits_refused bigint, OUT total_wait_time double precision, OUT max_wait_time double precision)
    AS 'MODULE_PATHNAME', 'repl_ml_lease_stats' LANGUAGE C VOLATILE STRICT PARALLEL RESTRICTED;
COMMENT ON FUNCTION repl_ml.lease_stats() IS 'what this server knows of the lease of strong tables: whether clients here may write them now, why the lease did not come when it was last wanted, and counters since the server''s start (times in milliseconds)';

-- What keeps this node from having all rows of strong tables, whatever positions say
-- In PL/pgSQL, whose plans stay: it is called at each coming of the lease
CREATE FUNCTION repl_ml.strong_obstacle(of_schema name DEFAULT NULL, of_table name DEFAULT NULL) RETURNS text
    LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp SET jit = off
    AS $$
    BEGIN
    RETURN (SELECT o.obstacle FROM (
        SELECT 1, pg_catalog.format('table %I.%I is not replicated here yet%s', t.schema_name, t.table_name,
                   (SELECT ': ' || f.message FROM repl_ml.table_failure f WHERE f.schema_name = t.schema_name AND f.table_name = t.table_name LIMIT 1))
          FROM repl_ml.replicated_table t
         WHERE CASE WHEN of_table IS NULL THEN t.class = 'strong' ELSE t.schema_name = of_schema AND t.table_name = of_table END AND t.state = 'enrolled'
           AND NOT EXISTS (SELECT FROM pg_catalog.pg_publication p JOIN pg_catalog.pg_publication_rel r ON r.prpubid = p.oid
                             JOIN pg_catalog.pg_class c ON c.oid = r.prrelid JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
                            WHERE p.pubname = 'repl_ml' AND n.nspname = t.schema_name AND c.relname = t.table_name)
        UNION ALL
        SELECT 2, pg_catalog.format('table %I.%I is still to be copied', y.schema_name, y.table_name)
          FROM repl_ml.table_sync y JOIN repl_ml.replicated_table t USING (schema_name, table_name)
         WHERE y.state = 'pending' AND CASE WHEN of_table IS NULL THEN t.class = 'strong' ELSE t.schema_name = of_schema AND t.table_name = of_table END AND t.state = 'enrolled'
        UNION ALL
        SELECT 3, pg_catalog.format('a change of table %I.%I could not be applied: %s', p.schema_name, p.table_name, p.message)
          FROM repl_ml.parked_change p LEFT JOIN repl_ml.replicated_table t USING (schema_name, table_name)
         WHERE p.action NOT IN ('evicted', 'kept') AND (t.class IS NULL OR CASE WHEN of_table IS NULL THEN t.class = 'strong' ELSE t.schema_name = of_schema AND t.table_name = of_table END)
        UNION ALL
        SELECT 4, pg_catalog.format('a row of table %I.%I could not be sent', u.schema_name, u.table_name)
          FROM repl_ml.unsent u JOIN repl_ml.replicated_table t USING (schema_name, table_name) WHERE CASE WHEN of_table IS NULL THEN t.class = 'strong' ELSE t.schema_name = of_schema AND t.table_name = of_table END
        ) o (place, obstacle)
     ORDER BY o.place, o.obstacle LIMIT 1);
    END
    $$;
COMMENT ON FUNCTION repl_ml.strong_obstacle(name, name) IS 'why this node lacks rows of strong tables, or of one table, though it has applied what it has received; null if it lacks none';

-- Where the lease goes back to
CREATE FUNCTION repl_ml.set_preferred_writer(node_name name) RETURNS void
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
    AS $$
    BEGIN
        PERFORM repl_ml.require_member();
        LOCK TABLE repl_ml.member IN SHARE ROW EXCLUSIVE MODE;
        IF node_name IS NOT NULL THEN
            PERFORM repl_ml.require_ready(node_name);
        END IF;
        UPDATE repl_ml.member m SET preferred_writer = NOT m.preferred_writer
         WHERE m.preferred_writer <> (m.state <> 'dropped' AND m.node_name IS NOT DISTINCT FROM set_preferred_writer.node_name);
    END
    $$;
COMMENT ON FUNCTION repl_ml.set_preferred_writer(name) IS
    'the node to which the lease of strong tables goes back whenever nobody on the node that has it needs it for two seconds, as long as that hears it; others get it when they need it, as ever. null: none. On any member; all learn of it. Superusers only. Errors: 42704 no such node, 55000 joining or not a member';

CREATE VIEW repl_ml.strong_lease AS
    SELECT m.node_name AS holder, s.writable, CASE WHEN l.round > 0 THEN pg_catalog.format('%s.%s', l.round, l.turn) END AS tenure, CASE WHEN l.round > 0 THEN l.since END AS since,
           s.nodes_waiting, s.refusal, s.pid,
           ARRAY(SELECT p.node_name FROM repl_ml.member p WHERE p.preferred_writer AND p.state <> 'dropped' ORDER BY p.node_name) AS preferred_writers
      FROM repl_ml.local_node n CROSS JOIN repl_ml.lease_state l CROSS JOIN repl_ml.lease_stats() s LEFT JOIN repl_ml.member m ON m.node_id = l.holder;
COMMENT ON VIEW repl_ml.strong_lease IS
    'the lease of strong tables as this node knows it: who has it, or whom this node gave it to (null: it knows of nobody), whether clients of this node may write strong tables at once, the last tenure this node had to do with and since when, how many nodes have asked this one for it, why it did not come when it was last wanted, and where it goes back to';

CREATE VIEW repl_ml.void_transactions AS
    SELECT v.xid, v.commit_lsn, v.committed_at, v.round >> 16 AS round, v.noted_at, v.undone_at, c.tables, c.rows
      FROM repl_ml.local_node n CROSS JOIN repl_ml.void_transaction v
      CROSS JOIN LATERAL (SELECT coalesce(pg_catalog.array_agg(DISTINCT pg_catalog.format('%I.%I', d.schema_name, d.table_name)), '{}') AS tables,
                                 coalesce(pg_catalog.jsonb_agg(pg_catalog.jsonb_build_object('table', pg_catalog.format('%I.%I', d.schema_name, d.table_name), CASE WHEN d.deleted THEN 'deleted' ELSE 'row' END, pg_catalog.jsonb_object(d.content))), '[]') AS rows
                            FROM repl_ml.void_change d WHERE d.commit_lsn = v.commit_lsn) c;
COMMENT ON VIEW repl_ml.void_transactions IS
    'transactions of this node that wrote strong tables and were not acknowledged before another node took over from it: they count nowhere. When they were committed here, in which round of votes, when that was found, when it was undone (null: not yet), and what was left of them in these tables then, the first thousand rows of each; kept for repl_ml.conflict_retention';

CREATE VIEW repl_ml.stat_strong AS
    SELECT s.taken, s.given, s.elected, s.waits, s.waits_refused, s.total_wait_time, s.max_wait_time, pg_catalog.pg_postmaster_start_time() AS stats_reset FROM repl_ml.local_node n CROSS JOIN repl_ml.lease_stats() s;
COMMENT ON VIEW repl_ml.stat_strong IS
    'what this node has had to do with the lease of strong tables since its server started: how often clients here could write from then on (taken), it was given to another node (given), a majority voted for this one (elected); how often clients waited for it, in vain (waits_refused), how long those that had it waited, all together and at most, in milliseconds, and since when all this is counted: the server''s start';

