--
-- Who is a member: admission, identity, groups and leaving them
--

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

-- A joining node puts itself on the members' lists, also on those of members that are joining themselves
CREATE FUNCTION repl_ml.register_node(group_id uuid, node_id integer, node_name name, dsn text, host text, port integer,
                                      dbname text, system_identifier bigint, joined_at timestamptz, secret text DEFAULT NULL,
                                      former_id integer DEFAULT NULL, former_safe bigint DEFAULT NULL, former_counter bigint DEFAULT NULL) RETURNS boolean
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET repl_ml.guard_off = on
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
        INSERT INTO repl_ml.member (node_id, node_name, dsn, host, port, dbname, system_identifier, state, joined_at, former_id, former_safe, former_counter, preferred_writer)
        VALUES (node_id, node_name, dsn, host, port, dbname, system_identifier, 'joining', joined_at, former_id, former_safe, former_counter,
                coalesce((SELECT m.preferred_writer FROM repl_ml.member m WHERE m.node_id = register_node.former_id), false))
        ON CONFLICT DO NOTHING;
        PERFORM repl_ml.wake_workers();
        RETURN true;
    END
    $$;
COMMENT ON FUNCTION repl_ml.register_node(uuid, integer, name, text, text, integer, text, bigint, timestamptz, text, integer, bigint, bigint) IS
    'called on members by a joining node; false if the node id is taken, null if this member knows of no invitation (yet)';

-- For the supervisor: notes what this server has found when it was started; once a start
CREATE FUNCTION repl_ml.note_start(counter bigint) RETURNS void
    LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp
    AS $$
    INSERT INTO repl_ml.server_start (started_at, sequence, lsn, safe_counter, counter)
    SELECT pg_catalog.pg_postmaster_start_time(), coalesce(h.sequence, 0), c.redo_lsn, coalesce(h.safe_counter, 0), note_start.counter
      FROM pg_catalog.pg_control_checkpoint() c CROSS JOIN repl_ml.local_node l LEFT JOIN repl_ml.heartbeat h ON h.node_id = l.node_id
    ON CONFLICT ON CONSTRAINT server_start_pkey DO NOTHING;
    -- of an older one a member that has been away for that long would have to know
    DELETE FROM repl_ml.server_start s WHERE s.started_at < (SELECT n.started_at FROM repl_ml.server_start n ORDER BY n.started_at DESC OFFSET 1000 LIMIT 1)
    $$;
COMMENT ON FUNCTION repl_ml.note_start(bigint) IS 'notes what this server found at its start, whose WAL began with the checkpoint that still is the last one; counter: from which its counters went on';

-- What a peer knows of this node: did its server, at the first start that the peer does not know of, have that much? And does it know
-- of the start that the peer has last heard of? Two servers that were both promoted have the same positions for what each has written.
-- If not, this node was set back before that start. Then it takes no part until it has come back, under its next id.
CREATE FUNCTION repl_ml.note_set_back(peer integer, known_start timestamptz, sequence bigint, lsn pg_lsn, counter bigint) RETURNS text
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
    AS $$
    DECLARE
        self repl_ml.local_node;
        start repl_ml.server_start;
        reason text;
    BEGIN
        SELECT * INTO self FROM repl_ml.local_node;
        IF self.state = 'set_back' THEN
            RETURN 'It has found that out and comes back by itself.';
        ELSIF self.node_id IS NULL OR self.state = 'dropped' OR known_start IS NULL OR (SELECT i.fenced FROM repl_ml.local_info() i) THEN
            RETURN NULL;
        END IF;
        IF NOT EXISTS (SELECT FROM repl_ml.server_start s WHERE s.started_at = pg_catalog.pg_postmaster_start_time()) THEN
            RAISE EXCEPTION 'node "%" has just been started', self.node_name USING ERRCODE = 'cannot_connect_now', HINT = 'Try again.';
        END IF;
        SELECT s.* INTO start FROM repl_ml.server_start s LEFT JOIN repl_ml.server_start k ON k.started_at = known_start
         WHERE CASE WHEN k.started_at IS NULL THEN s.started_at > known_start ELSE (s.lsn, s.started_at) > (k.lsn, k.started_at) END
         ORDER BY s.lsn, s.started_at LIMIT 1;
        IF NOT FOUND THEN
            IF EXISTS (SELECT FROM repl_ml.server_start s WHERE s.started_at = known_start) THEN
                RETURN NULL;
            END IF;
            SELECT s.* INTO start FROM repl_ml.server_start s ORDER BY s.lsn DESC, s.started_at DESC LIMIT 1;
        END IF;
        IF NOT EXISTS (SELECT FROM repl_ml.server_start s WHERE s.started_at = known_start) AND EXISTS (SELECT FROM repl_ml.server_start s WHERE s.started_at < known_start) THEN
            -- it had noted that one before anybody could hear of it
            reason := pg_catalog.format('Members have been connected with a server that was started as it at %s, of which it does not know.', known_start);
        ELSIF sequence > start.sequence THEN
            reason := pg_catalog.format('It has sent its heartbeat number %s, and the last one that its server found when it was started at %s was number %s.', sequence, start.started_at, start.sequence);
        ELSIF lsn > start.lsn THEN
            reason := pg_catalog.format('Changes up to %s have been applied from it, and its WAL ended at %s when its server was started at %s.', lsn, start.lsn, start.started_at);
        ELSIF counter > start.safe_counter AND counter < start.counter THEN
            reason := pg_catalog.format('Members have heard its heartbeat with counter %s, and the last one that its server found when it was started at %s had %s.', counter, start.started_at, start.safe_counter);
        ELSE
            RETURN NULL;
        END IF;
        -- the first one that finds it out has said since when
        UPDATE repl_ml.local_node l SET state = 'set_back', donor = note_set_back.peer, former_node = l.node_id, former_safe = start.safe_counter, former_counter = start.counter, secret_hash = NULL
         WHERE l.node_id = self.node_id AND l.state <> 'set_back';
        IF NOT FOUND THEN
            RETURN reason;
        END IF;
        RAISE LOG 'node "%" has been set back to an older state and leaves its group, to come back under a new id', self.node_name
            USING DETAIL = reason;
        PERFORM repl_ml.wake_workers();
        RETURN reason;
    END
    $$;
COMMENT ON FUNCTION repl_ml.note_set_back(integer, timestamptz, bigint, pg_lsn, bigint) IS 'called by a peer, or here with what a peer says: whether this node was set back, which is noted; null if it was not';

-- For an apply worker that has been let in by a server that it does not know yet, before it reads from it
CREATE FUNCTION repl_ml.server_starts() RETURNS jsonb
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
    AS $$
    SELECT coalesce(pg_catalog.jsonb_agg(l), '[]')
      FROM (SELECT s.started_at, pg_catalog.lag(s.started_at) OVER (ORDER BY s.lsn, s.started_at) AS follows, s.sequence, s.lsn, s.safe_counter, s.counter
              FROM repl_ml.server_start s ORDER BY s.lsn DESC, s.started_at DESC LIMIT 100) l
    $$;
COMMENT ON FUNCTION repl_ml.server_starts() IS 'called by peers: the last hundred starts of this server, as they are kept in repl_ml.peer_start';

-- Each member writes them itself, so that its stream has them before what it writes above what it has read
CREATE FUNCTION repl_ml.note_peer_starts(node integer, starts jsonb) RETURNS void
    LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp
    AS $$
    INSERT INTO repl_ml.peer_start AS p (told_by, node_id, started_at, follows, sequence, lsn, safe_counter, counter)
    SELECT l.node_id, node, s.* FROM repl_ml.local_node l, pg_catalog.jsonb_to_recordset(starts) s (started_at timestamptz, follows timestamptz, sequence bigint, lsn pg_lsn, safe_counter bigint, counter bigint)
    ON CONFLICT ON CONSTRAINT peer_start_pkey DO NOTHING;
    DELETE FROM repl_ml.peer_start p USING repl_ml.local_node l WHERE (p.told_by, p.node_id) = (l.node_id, node)
       AND p.started_at < (SELECT n.started_at FROM repl_ml.peer_start n WHERE (n.told_by, n.node_id) = (l.node_id, node) ORDER BY n.started_at DESC OFFSET 100 LIMIT 1)
    $$;
COMMENT ON FUNCTION repl_ml.note_peer_starts(integer, jsonb) IS 'writes down, for all members, from which starts of a peer''s server this node reads';

CREATE FUNCTION repl_ml.all_known() RETURNS jsonb
    LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
    AS $$
    SELECT coalesce(pg_catalog.jsonb_agg(pg_catalog.to_jsonb(k) || pg_catalog.jsonb_build_object('node_id', m.node_id, 'holder', l.node_id)), '[]')
      FROM repl_ml.local_node l CROSS JOIN repl_ml.member m CROSS JOIN LATERAL repl_ml.known_of(m.node_id) k WHERE m.node_id <> l.node_id AND k.server_start IS NOT NULL
    $$;
COMMENT ON FUNCTION repl_ml.all_known() IS 'called by peers: what repl_ml.known_of() says here of each member, also of dropped ones';

-- Does a start that some member has read from lack what this node, or the peer that says so (theirs), has heard before? Then what
-- was written since may be somewhere, and passes for newer than what was lost. Not one of which it is known what the node has become:
-- then late writes are that one's. arriving: a start that is just coming.
CREATE FUNCTION repl_ml.find_late(theirs jsonb DEFAULT '[]', arriving jsonb DEFAULT NULL, OUT node_id integer, OUT node_name name, OUT started_at timestamptz, OUT safe_counter bigint,
                                  OUT is_gone boolean, OUT dsn text, OUT question text)
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
    AS $$
    DECLARE
        c record;
        line timestamptz[];
    BEGIN
        FOR c IN
            WITH starts AS (
                SELECT p.node_id, p.started_at, p.sequence, p.lsn, p.safe_counter, p.counter FROM repl_ml.peer_start p
                UNION SELECT a.* FROM pg_catalog.jsonb_to_record(arriving) a (node_id integer, started_at timestamptz, sequence bigint, lsn pg_lsn, safe_counter bigint, counter bigint) WHERE arriving IS NOT NULL)
            SELECT s.*, k.holder, k.server_start, k.sequence AS heard, k.lsn AS applied, k.counter AS told, m.node_name, m.state, m.dsn,
                   coalesce(s.lsn < k.lsn, false) OR coalesce(s.sequence < k.sequence, false) AS is_short
              FROM starts s JOIN pg_catalog.jsonb_to_recordset(repl_ml.all_known() || theirs) k (node_id integer, holder integer, server_start timestamptz, sequence bigint, lsn pg_lsn, counter bigint)
                ON k.node_id = s.node_id
              JOIN repl_ml.member m ON m.node_id = s.node_id JOIN repl_ml.local_node l ON l.node_id <> s.node_id
             WHERE s.started_at > k.server_start AND (s.lsn < k.lsn OR s.sequence < k.sequence) AND EXISTS (SELECT FROM starts e WHERE (e.node_id, e.started_at) = (k.node_id, k.server_start))
                OR k.counter > s.safe_counter AND k.counter < s.counter
             ORDER BY s.node_id, s.started_at LOOP
            -- a clock may have been set back, too: not what that one came from
            CONTINUE WHEN c.is_short AND c.server_start IS NOT NULL AND c.started_at = ANY (repl_ml.line_of(c.node_id, c.server_start))
                      AND NOT coalesce(c.told > c.safe_counter AND c.told < c.counter, false);
            line := repl_ml.line_of(c.node_id, c.started_at);
            CONTINUE WHEN EXISTS (SELECT FROM repl_ml.member f WHERE f.former_id = c.node_id
                                     AND CASE WHEN EXISTS (SELECT FROM repl_ml.peer_start p WHERE (p.node_id, p.counter) = (c.node_id, f.former_counter))
                                              THEN EXISTS (SELECT FROM repl_ml.peer_start p WHERE (p.node_id, p.counter) = (c.node_id, f.former_counter) AND p.started_at = ANY (line))
                                              ELSE f.former_counter = c.counter OR f.former_counter > c.counter
                                                   AND NOT EXISTS (SELECT FROM repl_ml.peer_start p WHERE p.node_id = c.node_id AND p.counter > c.counter AND p.counter < f.former_counter) END);
            CONTINUE WHEN c.started_at = ANY ((SELECT d.listed FROM repl_ml.dropped_node d WHERE d.node_id = c.node_id)::timestamptz[]);
            node_id := c.node_id; node_name := c.node_name; started_at := c.started_at; safe_counter := c.safe_counter; dsn := c.dsn;
            -- it may be on its way back
            is_gone := c.state = 'dropped' AND EXISTS (SELECT FROM repl_ml.dropped_node d WHERE d.node_id = c.node_id)
               AND NOT EXISTS (SELECT FROM repl_ml.invitation i WHERE i.invited_by = pg_catalog.format('node %s', c.node_id)::name AND i.valid_until > pg_catalog.clock_timestamp()
                                  AND NOT EXISTS (SELECT FROM repl_ml.member s WHERE s.former_id = c.node_id AND s.joined_at > c.started_at));
            question := pg_catalog.format('SELECT repl_ml.note_set_back(%s, %L, %L, %L, %L)', c.holder, c.server_start, c.heard, c.applied, c.told);
            RETURN;
        END LOOP;
    END
    $$;
COMMENT ON FUNCTION repl_ml.find_late(jsonb, jsonb) IS 'whether some member may have what a node wrote after it had been set back, and before anybody told it, and it is not known yet what that has become: which node, the first start that shows it, up to where the node had its own then, whether it comes back no more, and how it is told; nulls if not';

-- Which starts a server's storage has been through, as far as they are known
CREATE FUNCTION repl_ml.line_of(node integer, start timestamptz) RETURNS timestamptz[]
    LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
    AS $$
    WITH RECURSIVE line (started_at) AS (
        SELECT start UNION SELECT p.follows FROM line JOIN repl_ml.peer_start p ON (p.node_id, p.started_at) = (node, line.started_at) WHERE p.follows IS NOT NULL)
    SELECT pg_catalog.array_agg(line.started_at) FROM line
    $$;
COMMENT ON FUNCTION repl_ml.line_of(integer, timestamptz) IS 'the starts of a member''s server that the storage had been through which it had at that one, itself included';

-- For an apply worker whose peer says that the other members have dropped this node; succeeded: when it became another one
CREATE FUNCTION repl_ml.note_dropped(peer integer, succeeded timestamptz) RETURNS void
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
    AS $$
    DECLARE
        start repl_ml.server_start;
    BEGIN
        -- its server has been started since then as what it was before
        SELECT * INTO start FROM repl_ml.server_start s WHERE s.started_at > succeeded ORDER BY s.started_at LIMIT 1;
        IF NOT FOUND THEN
            UPDATE repl_ml.local_node SET state = 'dropped';
            RETURN;
        END IF;
        UPDATE repl_ml.local_node l SET state = 'set_back', donor = note_dropped.peer, former_node = l.node_id, former_safe = start.safe_counter, former_counter = start.counter, secret_hash = NULL;
        RAISE LOG 'this node has been set back to what it was under a former id and leaves its group, to come back under a new id';
        PERFORM repl_ml.wake_workers();
    END
    $$;
COMMENT ON FUNCTION repl_ml.note_dropped(integer, timestamptz) IS 'notes that the other members have dropped this node: for good, or, if it has joined under another id since, as one that was set back to before that';

-- A member that is asked to let in a node that was set back looks for itself whether the node says so
CREATE FUNCTION repl_ml.return_secret(in_group uuid, node integer) RETURNS text
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
    AS $$
    SELECT pg_catalog.encode(l.secret_hash, 'hex') FROM repl_ml.local_node l WHERE l.group_id = in_group AND l.node_id = node AND l.state = 'set_back'
    $$;
COMMENT ON FUNCTION repl_ml.return_secret(uuid, integer) IS 'called by members on a node that was set back and wants to come back under its name: the hash of what it will show; null where that is not so';

CREATE FUNCTION repl_ml.readmit_node(in_group uuid, node integer, incarnation integer) RETURNS void
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
    AS $$
    DECLARE
        known record;
        secret text;
        reason text;
    BEGIN
        PERFORM repl_ml.require_member();
        -- under the name and at the address that it had last
        SELECT m.* INTO known FROM repl_ml.local_node l CROSS JOIN LATERAL repl_ml.latest_of(node) m WHERE l.group_id = in_group AND l.node_id <> node;
        -- one that a person has dropped does not come back by itself
        IF known.state = 'dropped' AND NOT EXISTS (SELECT FROM repl_ml.invitation i WHERE i.node_name = known.node_name AND i.invited_by = pg_catalog.format('node %s', node)::name) THEN
            known.node_id := NULL;
        END IF;
        IF known.node_id IS NULL THEN
            reason := 'It is no member of the group.';
        ELSIF repl_ml.known_incarnation(node) > incarnation THEN
            reason := pg_catalog.format('Another server has become node "%s" since.', known.node_name);
        ELSIF EXISTS (SELECT FROM repl_ml.worker_stats() w WHERE w.peer IN (node, known.node_id) AND w.state IN ('streaming', 'copying'))
           OR EXISTS (SELECT FROM pg_catalog.pg_replication_slots s WHERE s.slot_name IN (repl_ml.link_name(node), repl_ml.link_name(known.node_id)) AND s.active) THEN
            reason := pg_catalog.format('This node is connected with a server that runs as node "%s".', known.node_name);
        ELSE
            reason := pg_catalog.format('What is found as node "%s" does not say that it has been set back, or cannot be reached.', known.node_name);
            secret := (repl_ml.ask_members(ARRAY[known.dsn], pg_catalog.format('SELECT repl_ml.return_secret(%L, %s)', in_group, node)))[1];
        END IF;
        IF secret IS NULL THEN
            RAISE EXCEPTION 'node % cannot come back to the group by itself', node USING ERRCODE = 'object_not_in_prerequisite_state',
                DETAIL = reason, HINT = CASE WHEN known.node_id IS NULL THEN 'Run SELECT repl_ml.leave_group(force => true, keep_clocks => true) there, and join it again with copy_data => false.'
                            ELSE 'If the node has another address now, run SELECT repl_ml.set_node_address(...) on a member. If the one that asks is a copy of a node that runs, run SELECT repl_ml.leave_group(force => true) there.' END;
        END IF;
        -- what is found there is not what came after it, either
        UPDATE repl_ml.member m SET state = 'dropped', incarnation = CASE m.node_id WHEN node THEN readmit_node.incarnation ELSE m.incarnation END WHERE m.node_id IN (node, known.node_id) AND m.state <> 'dropped';
        INSERT INTO repl_ml.invitation AS i (node_name, secret_hash, valid_until, invited_by)
        VALUES (known.node_name, pg_catalog.decode(secret, 'hex'), pg_catalog.clock_timestamp() + '10 min', pg_catalog.format('node %s', node)::name)
        ON CONFLICT ON CONSTRAINT invitation_pkey DO UPDATE SET secret_hash = excluded.secret_hash, valid_until = excluded.valid_until, invited_by = excluded.invited_by;
        PERFORM repl_ml.wake_workers();
    END
    $$;
COMMENT ON FUNCTION repl_ml.readmit_node(uuid, integer, integer) IS 'called on a member by a node that was set back: drops its former id and invites it under its name, if what is found at its address says the same, and nobody else is it. Errors: 55000';

-- Nodes that were set back together have had of each other what they wrote late, and rename it once they know what each is now
CREATE FUNCTION repl_ml.others_return(asker integer) RETURNS boolean
    LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
    AS $$
    SELECT EXISTS (SELECT FROM repl_ml.invitation i JOIN repl_ml.member m ON i.invited_by = pg_catalog.format('node %s', m.node_id)::name
                    WHERE m.state = 'dropped' AND i.valid_until > pg_catalog.clock_timestamp()
                      AND NOT EXISTS (SELECT FROM repl_ml.member s WHERE s.former_id = m.node_id AND s.state <> 'dropped'))
        OR 'true' = ANY (repl_ml.ask_members(ARRAY(SELECT m.dsn FROM repl_ml.member m JOIN repl_ml.local_node l ON l.node_id <> m.node_id WHERE m.state <> 'dropped' AND m.node_id <> asker),
                                             $ask$SELECT (state = 'set_back')::text FROM repl_ml.local_info()$ask$))
    $$;
COMMENT ON FUNCTION repl_ml.others_return(integer) IS 'asked by a node that is coming back after it was set back: whether others are, too, and have no new id yet';

-- What it wrote stays here as that of a former member; who writes still does so under an id that is none any more
CREATE FUNCTION repl_ml.leave_set_back() RETURNS void
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp SET lock_timeout = '3s'
    AS $$
    DECLARE
        t regclass;
    BEGIN
        PERFORM repl_ml.give_up_waits();
        FOR t IN SELECT c.oid::regclass FROM repl_ml.replicated_table r JOIN pg_catalog.pg_namespace n ON n.nspname = r.schema_name
                   JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid AND c.relname = r.table_name AND c.relkind IN ('r', 'p')
                  WHERE r.state = 'enrolled' ORDER BY c.oid LOOP
            BEGIN
                EXECUTE pg_catalog.format('LOCK TABLE %s IN SHARE MODE', t);
            EXCEPTION WHEN lock_not_available THEN
                PERFORM pg_catalog.pg_terminate_backend(k.pid) FROM (SELECT DISTINCT k.pid FROM pg_catalog.pg_locks k JOIN pg_catalog.pg_stat_activity a ON a.pid = k.pid AND a.backend_type = 'client backend'
                  WHERE k.granted AND k.mode IN ('RowExclusiveLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock')
                    AND k.database = (SELECT d.oid FROM pg_catalog.pg_database d WHERE d.datname = pg_catalog.current_database())
                    AND k.relation IN (SELECT p.relid FROM pg_catalog.pg_partition_tree(t) p UNION ALL SELECT t)) k;
                RAISE EXCEPTION 'table % is still being written', t USING ERRCODE = 'lock_not_available',
                    HINT = 'If there are prepared transactions, end them: see SELECT * FROM pg_prepared_xacts.';
            END;
        END LOOP;
        PERFORM repl_ml.forget_group(true);
    END
    $$;
COMMENT ON FUNCTION repl_ml.leave_set_back() IS 'for a node that was set back, in the transaction that makes it a member again: waits until nobody writes, ends who does for long, and forgets the group';

-- Where a node runs, of which two cannot be the same
CREATE FUNCTION repl_ml.place(in_group uuid, node integer) RETURNS text
    LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
    AS $$
    SELECT f.directory || ' ' || EXTRACT(epoch FROM pg_catalog.pg_postmaster_start_time())
      FROM repl_ml.local_node l, repl_ml.local_fingerprint() f WHERE l.group_id = in_group AND l.node_id = node AND l.state <> 'dropped' AND l.directory <> 'superseded' AND NOT pg_catalog.pg_is_in_recovery()
    $$;
COMMENT ON FUNCTION repl_ml.place(uuid, integer) IS 'called by members: in which files, and since when, a server runs as this node, fenced or not; null where none does, as on a standby';

-- May the place that asks be the node, as that incarnation? Answers 'yes'; 'older', and why, if it may, but has less of the node than
-- is here; 'higher' and the last incarnation, if there has been that one; else what speaks against it. Also where this node is
-- fenced itself: all may have moved. A place that is on another timeline, or older, has to be found where the node is: that the
-- node is not found anywhere is no proof that it is gone.
CREATE FUNCTION repl_ml.vouch_for(in_group uuid, node integer, incarnation integer, proposed integer, promoted boolean, lsn pg_lsn, last_heartbeat bigint, place text) RETURNS text
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
    AS $$
    DECLARE
        self repl_ml.local_node;
        known repl_ml.member;
        given repl_ml.vouched;
        older boolean := repl_ml.reached_lsn(node) > lsn OR (SELECT h.safe_counter > last_heartbeat FROM repl_ml.heartbeat h WHERE h.node_id = node);
        there text;
    BEGIN
        SELECT * INTO self FROM repl_ml.local_node l WHERE l.group_id = in_group AND l.state <> 'dropped';
        SELECT * INTO known FROM repl_ml.member m WHERE m.node_id = node AND m.state <> 'dropped';
        IF self.node_id IS NULL OR known.node_id IS NULL THEN
            RETURN pg_catalog.format('on %I node %s is not a member of its group', coalesce(self.node_name, pg_catalog.current_database()), node);
        ELSIF repl_ml.known_incarnation(node) > vouch_for.incarnation THEN
            RETURN pg_catalog.format('node %I has heard of it in another place since', self.node_name);
        ELSIF EXISTS (SELECT FROM repl_ml.worker_stats() w WHERE w.peer = node AND w.state IN ('streaming', 'copying'))
           OR EXISTS (SELECT FROM pg_catalog.pg_replication_slots s WHERE s.slot_name = repl_ml.link_name(node) AND s.active) THEN
            RETURN pg_catalog.format('node %I is connected with another server that runs as node %I', self.node_name, known.node_name);
        END IF;
        there := (repl_ml.ask_members(ARRAY[known.dsn], pg_catalog.format('SELECT repl_ml.place(%L, %s)', in_group, node)))[1];
        IF there <> place THEN
            RETURN pg_catalog.format('node %I finds another server, which runs as node %I, at the address of that', self.node_name, known.node_name);
        ELSIF there IS NULL AND (promoted OR older) THEN
            RETURN pg_catalog.format('node %I does not find this server at the address of node %I', self.node_name, known.node_name) ||
                CASE WHEN older THEN ', and has more of that than is here: this is an older state of it' ELSE '' END;
        END IF;
        INSERT INTO repl_ml.vouched AS v VALUES (node, place, proposed, pg_catalog.clock_timestamp())
        ON CONFLICT (node_id) DO UPDATE SET place = excluded.place, incarnation = excluded.incarnation, vouched_at = excluded.vouched_at
         WHERE CASE WHEN v.place = excluded.place THEN v.incarnation <= excluded.incarnation
                    -- what it has come from itself is settled
                    ELSE v.incarnation <= vouch_for.incarnation OR v.incarnation < excluded.incarnation AND v.vouched_at < excluded.vouched_at - '1 min'::interval END;
        IF FOUND THEN
            RETURN CASE WHEN older THEN pg_catalog.format('older: node %I has more of node %I than is here', self.node_name, known.node_name) ELSE 'yes' END;
        END IF;
        SELECT * INTO given FROM repl_ml.vouched v WHERE v.node_id = node;
        RETURN CASE WHEN given.incarnation >= proposed AND (given.place = place OR given.vouched_at < pg_catalog.clock_timestamp() - '1 min'::interval) THEN 'higher ' || given.incarnation
                    ELSE pg_catalog.format('node %I has been asked the same from another place within the last minute, and says yes to one only', self.node_name) END;
    END
    $$;
COMMENT ON FUNCTION repl_ml.vouch_for(uuid, integer, integer, integer, boolean, pg_lsn, bigint, text) IS
    'called on members by a server that is fenced and says it is a node that has moved, or that it was promoted: yes, or what speaks against it';

-- Called where the other members agree that this server is the node that another one was, whose WAL it has up to there: what was
-- in that one's memory and files, and not in its WAL, is made anew. Nothing of slots and origins: peers and this node compare their tables.
CREATE FUNCTION repl_ml.take_over(lsn pg_lsn) RETURNS bigint
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
    AS $$
    DECLARE
        self repl_ml.local_node;
        resumed record;
    BEGIN
        SELECT * INTO self FROM repl_ml.local_node;
        SELECT * INTO resumed FROM repl_ml.resume_counter(coalesce((SELECT pg_catalog.max(greatest(repl_ml.counter(h.applied, self.node_id), repl_ml.counter(h.__repl_clock, self.node_id))) FROM repl_ml.heartbeat h), 0));
        INSERT INTO repl_ml.server_start (started_at, sequence, lsn, safe_counter, counter, first_xid, became_at)
        SELECT pg_catalog.pg_postmaster_start_time(), coalesce(h.sequence, 0), take_over.lsn, coalesce(h.safe_counter, 0), resumed.counter, resumed.first_xid, pg_catalog.clock_timestamp()
          FROM repl_ml.local_node l LEFT JOIN repl_ml.heartbeat h USING (node_id)
        ON CONFLICT ON CONSTRAINT server_start_pkey DO UPDATE SET lsn = excluded.lsn, counter = excluded.counter, first_xid = excluded.first_xid, became_at = excluded.became_at;
        PERFORM repl_ml.drop_own_slots();
        PERFORM repl_ml.drop_own_origins();
        RETURN resumed.counter;
    END
    $$;
COMMENT ON FUNCTION repl_ml.take_over(pg_lsn) IS 'makes anew what a server, which goes on as the node that another one was, does not have of that one; returns from where counters go on';

-- Asks the other members whether this is the node it was, in another place. If more than half of them say so and none objects, it
-- is, under its next incarnation; if they have more of it than is here, it was set back. Else the reason is returned. The
-- incarnation before is then fenced by the members. This node does not count: two places that ask must not find other halves.
CREATE FUNCTION repl_ml.claim_identity(force boolean DEFAULT false) RETURNS text
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
    AS $$
    DECLARE
        self repl_ml.local_node;
        here record;
        lsn pg_lsn;
        members integer[];
        answers text[];
        proposed integer;
        counter bigint;
        higher integer;
        older integer;
    BEGIN
        SELECT * INTO self FROM repl_ml.local_node FOR UPDATE;
        SELECT * INTO here FROM repl_ml.local_fingerprint();
        lsn := CASE WHEN (here.system_identifier, here.database) = (self.system_identifier, self.database) THEN repl_ml.history_with(self.timeline) END;
        IF lsn IS NULL THEN
            RETURN 'this is not the node''s data directory but made of it (by a dump, an upgrade, or a recovery from another one)';
        END IF;
        members := ARRAY(SELECT m.node_id FROM repl_ml.member m WHERE m.node_id <> self.node_id AND m.state <> 'dropped' ORDER BY m.node_id);
        proposed := self.incarnation + 1;
        FOR attempt IN 1 .. 2 LOOP
            answers := repl_ml.ask_members(ARRAY(SELECT m.dsn FROM repl_ml.member m WHERE m.node_id = ANY (members) ORDER BY m.node_id),
                pg_catalog.format('SELECT repl_ml.vouch_for(%L, %s, %s, %s, %L, %L, %s, %L)', self.group_id, self.node_id, self.incarnation, proposed, here.timeline <> self.timeline, lsn,
                coalesce((SELECT h.safe_counter FROM repl_ml.heartbeat h WHERE h.node_id = self.node_id), 0), repl_ml.place(self.group_id, self.node_id)));
            higher := (SELECT pg_catalog.max(pg_catalog.split_part(a, ' ', 2)::integer) FROM pg_catalog.unnest(answers) a WHERE a LIKE 'higher %');
            EXIT WHEN higher IS NULL;
            proposed := higher + 1;
        END LOOP;
        IF EXISTS (SELECT FROM pg_catalog.unnest(answers) a WHERE a <> 'yes' AND a NOT LIKE 'older: %') THEN
            RETURN (SELECT pg_catalog.string_agg(a, '; ') FROM pg_catalog.unnest(answers) a WHERE a <> 'yes');
        END IF;
        IF NOT force AND 2 * (SELECT pg_catalog.count(a) FROM pg_catalog.unnest(answers) a) <= pg_catalog.cardinality(members) AND members <> '{}' THEN
            RETURN pg_catalog.format('%s of %s other members have answered, and it takes more than half', (SELECT pg_catalog.count(a) FROM pg_catalog.unnest(answers) a), pg_catalog.cardinality(members));
        END IF;
        IF here.timeline <> self.timeline THEN
            counter := repl_ml.take_over(lsn);
        END IF;
        UPDATE repl_ml.local_node SET timeline = here.timeline, directory = here.directory, incarnation = proposed;
        older := (SELECT pg_catalog.min(u.member) FROM ROWS FROM (pg_catalog.unnest(members), pg_catalog.unnest(answers)) u (member, answer) WHERE u.answer LIKE 'older: %');
        IF older IS NULL THEN
            UPDATE repl_ml.member SET incarnation = proposed WHERE node_id = self.node_id;
        ELSE
            UPDATE repl_ml.local_node l SET state = 'set_back', donor = older, former_node = l.node_id, secret_hash = NULL, former_counter = coalesce(counter, (SELECT r.counter FROM repl_ml.resume_counter(0) r)),
                   former_safe = coalesce((SELECT h.safe_counter FROM repl_ml.heartbeat h WHERE h.node_id = l.node_id), 0);
        END IF;
        PERFORM repl_ml.wake_workers();
        RETURN NULL;
    END
    $$;
COMMENT ON FUNCTION repl_ml.claim_identity(boolean) IS 'makes this place that of the node if the other members agree, with force if none of those that answer objects, or notes that the node was set back: null, or why not';

CREATE FUNCTION repl_ml.confirm_identity(force boolean DEFAULT false) RETURNS void
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
    AS $$
    DECLARE
        reason text;
    BEGIN
        PERFORM repl_ml.refuse_nulls('force', pg_catalog.num_nulls(force));
        IF NOT EXISTS (SELECT FROM repl_ml.local_node) OR NOT (SELECT i.fenced FROM repl_ml.local_info() i) THEN
            PERFORM repl_ml.require_member();
            RETURN;
        END IF;
        reason := repl_ml.claim_identity(force);
        IF reason IS NOT NULL THEN
            RAISE EXCEPTION 'this server cannot be confirmed to be node "%"', (SELECT l.node_name FROM repl_ml.local_node l)
                USING ERRCODE = 'object_not_in_prerequisite_state', DETAIL = pg_catalog.upper(pg_catalog.left(reason, 1)) || pg_catalog.substr(reason, 2) || '.',
                HINT = CASE WHEN reason LIKE '%within the last minute%' THEN 'If the other place was a former one of this node, try again in a minute. If a server runs there, stop it, '
                            WHEN reason LIKE '%it takes more than half' THEN 'Start the members that do not answer. If no other server runs as this node, and none of them will answer, run SELECT repl_ml.confirm_identity(force => true); '
                            ELSE 'Stop the other server, or start the members that do not answer, and try again; ' END ||
                       'or run SELECT repl_ml.leave_group(force => true) here and join under a new node id.';
        END IF;
    END
    $$;
COMMENT ON FUNCTION repl_ml.confirm_identity(boolean) IS
    'says that this data directory is the node it was, moved and not copied, which it finds out by itself where more than half of the members can be reached; with force also where they cannot: the other members are asked, and it is refused if one of them is connected with another server under that identity, or has more of the node than is here';

-- A leaving node, or one whose joining failed, takes itself off the lists
CREATE FUNCTION repl_ml.forget_node(group_id uuid, node_id integer, joined_at timestamptz DEFAULT NULL) RETURNS void
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET repl_ml.guard_off = on
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
        CREATE PUBLICATION repl_ml FOR TABLE repl_ml.member, repl_ml.replicated_table, repl_ml.heartbeat, repl_ml.tombstone, repl_ml.collection, repl_ml.conflict_policy, repl_ml.table_shape, repl_ml.invitation, repl_ml.verification, repl_ml.group_sequence, repl_ml.sequence_use, repl_ml.schema_change, repl_ml.peer_start
            WITH (publish = 'insert, update', publish_via_partition_root = true);
        COMMENT ON PUBLICATION repl_ml IS 'what the repl_ml group replicates; managed by repl_ml.add_table and remove_table';
    END
    $$;
COMMENT ON FUNCTION repl_ml.make_publication() IS 'creates the publication of the group''s catalogs, for tables to be added to';

-- What this node's heartbeat says it lacks
CREATE FUNCTION repl_ml.lacking() RETURNS text
    LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
    AS $$
    BEGIN
    RETURN (SELECT pg_catalog.string_agg(pg_catalog.format('%I.%I of node "%s"', u.schema_name, u.table_name, coalesce(m.node_name, u.node_id::text::name)), ', ')
      FROM (SELECT DISTINCT n.node_id, n.schema_name, n.table_name FROM repl_ml.unsent n ORDER BY 1, 2, 3 LIMIT 20) u
      LEFT JOIN repl_ml.member m ON m.node_id = u.node_id);
    END
    $$;
COMMENT ON FUNCTION repl_ml.lacking() IS 'the tables of which peers could not send rows to this node; null for none';

-- What the publication was changed to while the library was not there to refuse it
CREATE FUNCTION repl_ml.publication_fault() RETURNS text
    LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
    AS $$
    BEGIN
        RETURN (
            SELECT CASE WHEN p.oid IS NULL THEN 'does not exist'
                        WHEN NOT p.pubinsert OR NOT p.pubupdate THEN 'leaves out changes'
                        WHEN p.pubdelete OR p.pubtruncate OR NOT p.pubviaroot OR p.puballtables THEN 'does not publish what the nodes read'
                        WHEN EXISTS (SELECT FROM pg_catalog.pg_publication_rel r WHERE r.prpubid = p.oid AND (r.prqual IS NOT NULL OR r.prattrs IS NOT NULL)) THEN 'leaves out rows or columns'
                        WHEN EXISTS (SELECT FROM pg_catalog.unnest('{member,replicated_table,heartbeat,tombstone,collection,conflict_policy,table_shape,invitation,verification,group_sequence,peer_start}'::name[]) c (name)
                                      WHERE NOT repl_ml.is_published(repl_ml.find_table('repl_ml', c.name))) THEN 'lacks tables of repl_ml' END
              FROM (SELECT) one LEFT JOIN pg_catalog.pg_publication p ON p.pubname = 'repl_ml');
    END
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
        -- not of a group that this database is leaving, or has left a moment ago
        PERFORM FROM repl_ml.local_node FOR SHARE;
        IF NOT FOUND OR repl_ml.publication_fault() IS NULL THEN
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

-- What is of one group only
CREATE FUNCTION repl_ml.empty_lists(keep_clocks boolean DEFAULT false) RETURNS void
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
    AS $$
    BEGIN
        -- what belongs to the rows' clocks
        IF NOT keep_clocks THEN
            DELETE FROM repl_ml.tombstone;
            DELETE FROM repl_ml.concurrent_version;
            DELETE FROM repl_ml.eviction;
            DELETE FROM repl_ml.key_shape;
            DELETE FROM repl_ml.left_group;
            DELETE FROM repl_ml.schema_change;
        END IF;
        DELETE FROM repl_ml.heartbeat;
        DELETE FROM repl_ml.conflict_policy;
        DELETE FROM repl_ml.invitation;
        DELETE FROM repl_ml.collection;
        DELETE FROM repl_ml.table_sync;
        DELETE FROM repl_ml.table_failure;
        DELETE FROM repl_ml.table_shape;
        DELETE FROM repl_ml.verification;
        DELETE FROM repl_ml.group_sequence;
        DELETE FROM repl_ml.sequence_use;
        DELETE FROM repl_ml.sequence_mark k WHERE NOT k.closed;
        -- of a node that comes back: it gives nothing before it has ranges as the new one
        UPDATE repl_ml.sequence_mark SET closed_at = 'infinity', server_start = NULL, first_place = NULL, last_place = NULL, next_first = NULL, next_last = NULL;
        PERFORM repl_ml.sequence_changed(k.sequence) FROM repl_ml.sequence_mark k;
        DELETE FROM repl_ml.number_voter;
        DELETE FROM repl_ml.unsent;
        DELETE FROM repl_ml.bulk_piece;
        DELETE FROM repl_ml.parked_change p WHERE p.action = 'bulk';
        DELETE FROM repl_ml.heard;
        DELETE FROM repl_ml.server_start;
        DELETE FROM repl_ml.peer_start;
        DELETE FROM repl_ml.dropped_node;
        DELETE FROM repl_ml.lease_round;
        DELETE FROM repl_ml.strong_place;
        UPDATE repl_ml.lease_state SET promised = 0, accepted = 0, opened = 0, unclean = false, round = 0, turn = 0, holder = 0, base = '{}', timeline = (SELECT f.timeline FROM repl_ml.local_fingerprint() f);
        DELETE FROM repl_ml.transaction_record;
        DELETE FROM repl_ml.discarded_transaction;
        DELETE FROM repl_ml.void_transaction;
        DELETE FROM repl_ml.record_floor;
    END
    $$;
COMMENT ON FUNCTION repl_ml.empty_lists(boolean) IS 'forgets what this database knew as a member: all lists but those of members and tables, and what belongs to the clocks of its rows if these stay';

-- What makes this database a member, as the last thing before commit
CREATE FUNCTION repl_ml.become_member(group_name name, group_id uuid, node_id integer, node_name name, state text, donor integer, copy_data boolean, keep text DEFAULT NULL) RETURNS void
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp SET repl_ml.guard_off = on
    AS $$
    DECLARE
        former repl_ml.left_group;
    BEGIN
        SELECT * INTO former FROM repl_ml.left_group g WHERE NOT become_member.copy_data AND become_member.donor IS NOT NULL;
        IF former.group_id <> become_member.group_id THEN
            RAISE EXCEPTION 'the rows of this database have clocks of another group, in which it was node "%"', former.node_name USING ERRCODE = 'object_not_in_prerequisite_state',
                HINT = 'Run DELETE FROM repl_ml.left_group and ALTER TABLE ... DROP COLUMN __repl_clock for each of its tables, and join again: then they are rows without a clock.';
        END IF;
        PERFORM repl_ml.empty_lists(former.group_id IS NOT NULL);
        DELETE FROM repl_ml.left_group;
        INSERT INTO repl_ml.local_node (node_id, node_name, group_name, group_id, state, system_identifier, timeline, database, directory, donor, copy_data, keep, former_node, former_safe, former_counter)
        SELECT become_member.node_id, become_member.node_name, become_member.group_name, become_member.group_id, become_member.state,
               f.system_identifier, f.timeline, f.database, f.directory, become_member.donor, become_member.copy_data, become_member.keep,
               CASE WHEN former.counter IS NOT NULL THEN former.node_id END, former.safe_counter, former.counter
          FROM repl_ml.local_fingerprint() f;
        PERFORM repl_ml.make_publication();
        PERFORM repl_ml.wake_workers();
    END
    $$;
COMMENT ON FUNCTION repl_ml.become_member(name, uuid, integer, name, text, integer, boolean, text) IS 'writes this database''s identity and wakes the workers';

-- A dump of a member has the lists of its tables and rules. Node ids and clocks in them were another group's. What cannot be
-- replicated here keeps its level and rules for whoever adds it later.
CREATE FUNCTION repl_ml.take_up_lists(tables repl_ml.replicated_table[], policies repl_ml.conflict_policy[]) RETURNS void
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
    AS $$
    DECLARE
        t repl_ml.replicated_table;
        p repl_ml.conflict_policy;
        taken text[] := '{}';
        problem text;
        advice text;
    BEGIN
        INSERT INTO repl_ml.replicated_table (schema_name, table_name, state, enrolled_by, write_consistency, class)
        SELECT u.schema_name, u.table_name, 'removed', 1, u.write_consistency, u.class FROM pg_catalog.unnest(tables) u WHERE u.state IN ('enrolled', 'removed');
        FOR p IN SELECT DISTINCT ON (u.schema_name, u.table_name, u.column_name) u.* FROM pg_catalog.unnest(policies) u
                  ORDER BY u.schema_name, u.table_name, u.column_name, repl_ml.max_counter(u.__repl_clock) DESC, repl_ml.last_writer(u.__repl_clock) DESC LOOP
            IF p.rule = 'node_priority' THEN
                RAISE WARNING 'the resolver of table %.% is not taken up from the dump', pg_catalog.quote_ident(p.schema_name), pg_catalog.quote_ident(p.table_name)
                    USING DETAIL = 'It names nodes of the group that was dumped.',
                    HINT = 'When the nodes have joined, run SELECT repl_ml.set_resolver(...).';
            ELSE
                INSERT INTO repl_ml.conflict_policy (schema_name, table_name, column_name, rule, arguments)
                VALUES (p.schema_name, p.table_name, p.column_name, p.rule, p.arguments);
            END IF;
        END LOOP;
        FOR t IN SELECT u.* FROM pg_catalog.unnest(tables) u WHERE u.state = 'enrolled' ORDER BY u.schema_name, u.table_name LOOP
            problem := NULL;
            BEGIN
                SELECT o.message, o.hint INTO problem, advice FROM repl_ml.enrol_obstacle(pg_catalog.format('%I.%I', t.schema_name, t.table_name)::pg_catalog.regclass) o;
                IF problem IS NULL THEN
                    PERFORM repl_ml.list_table(pg_catalog.format('%I.%I', t.schema_name, t.table_name)::pg_catalog.regclass);
                    taken := taken || pg_catalog.format('%I.%I', t.schema_name, t.table_name);
                END IF;
            EXCEPTION WHEN OTHERS THEN
                GET STACKED DIAGNOSTICS problem = MESSAGE_TEXT, advice = PG_EXCEPTION_HINT;
            END;
            IF problem IS NOT NULL THEN
                RAISE WARNING 'table %.% was replicated in the group that was dumped, and is not here', pg_catalog.quote_ident(t.schema_name), pg_catalog.quote_ident(t.table_name)
                    USING DETAIL = problem, HINT = coalesce(nullif(advice, '') || ' ', '') || pg_catalog.format('Then run SELECT repl_ml.add_table(%L): its level and rules are kept.', pg_catalog.format('%I.%I', t.schema_name, t.table_name));
            END IF;
        END LOOP;
        IF taken <> '{}' THEN
            RAISE NOTICE 'tables that were replicated in the group that was dumped are replicated again, with their levels and rules: %', pg_catalog.array_to_string(taken, ', ');
        END IF;
    END
    $$;
COMMENT ON FUNCTION repl_ml.take_up_lists(repl_ml.replicated_table[], repl_ml.conflict_policy[]) IS 'replicates what a restored dump of a member lists as its tables, with their levels and rules';

CREATE FUNCTION repl_ml.create_group(group_name name, node_name name, dsn text) RETURNS integer
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
    AS $$
    DECLARE
        c record;
        tables repl_ml.replicated_table[];
        policies repl_ml.conflict_policy[];
    BEGIN
        PERFORM repl_ml.hide_statement();
        PERFORM repl_ml.refuse_nulls('group_name, node_name, dsn', pg_catalog.num_nulls(group_name, node_name, dsn));
        SELECT * INTO c FROM repl_ml.check_new_member(group_name, node_name, dsn);
        tables := ARRAY(SELECT t FROM repl_ml.replicated_table t);
        policies := ARRAY(SELECT p FROM repl_ml.conflict_policy p);
        PERFORM repl_ml.become_member(group_name, pg_catalog.gen_random_uuid(), 1, node_name, 'ready', NULL, false);
        DELETE FROM repl_ml.member;
        DELETE FROM repl_ml.replicated_table;
        INSERT INTO repl_ml.member (node_id, node_name, dsn, host, port, dbname, system_identifier, state, joined_at)
        SELECT 1, node_name, dsn, c.host, c.port, c.dbname, f.system_identifier, 'ready', pg_catalog.now() FROM repl_ml.local_fingerprint() f;
        INSERT INTO repl_ml.number_voter (node_id) VALUES (1);
        PERFORM repl_ml.take_up_lists(tables, policies);
        RETURN 1;
    END
    $$;
COMMENT ON FUNCTION repl_ml.create_group(name, name, text) IS
    'makes this database the first node of a new group; dsn is how the other nodes will reach it. In a database restored from a dump of a member its tables are replicated again, with their levels and rules. Returns the node id. Superusers only. Errors: 55000 wrong setting or already a member, 08001 unreachable dsn, 22023 bad argument';

CREATE FUNCTION repl_ml.require_ready(of_name name) RETURNS repl_ml.member
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
    AS $$
    DECLARE
        member repl_ml.member;
    BEGIN
        SELECT m.* INTO member FROM repl_ml.member m WHERE m.node_name = of_name AND m.state <> 'dropped';
        IF NOT FOUND THEN
            RAISE EXCEPTION 'node "%" does not exist', of_name USING ERRCODE = 'undefined_object',
                HINT = 'Run SELECT node_name, state FROM repl_ml.nodes.';
        ELSIF member.state <> 'ready' THEN
            RAISE EXCEPTION 'node "%" is still joining the group', of_name USING ERRCODE = 'object_not_in_prerequisite_state',
                HINT = pg_catalog.format('Wait with SELECT repl_ml.wait_for_node(%L, ''10 min'').', of_name);
        END IF;
        RETURN member;
    END
    $$;
COMMENT ON FUNCTION repl_ml.require_ready(name) IS 'the ready member of this name; raises an error if there is none';

-- Where the others find a node from now on. One that cannot be reached is believed: it may be down, or moving. Only the
-- text of libpq's message tells that from one that is refused, so it has to be in English.
CREATE FUNCTION repl_ml.set_node_address(node_name name, dsn text) RETURNS void
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp SET lc_messages = 'C'
    AS $$
    DECLARE
        member repl_ml.member;
        there record;
        is_there jsonb;
        failure text;
    BEGIN
        PERFORM repl_ml.hide_statement();
        PERFORM repl_ml.refuse_nulls('node_name, dsn', pg_catalog.num_nulls(node_name, dsn));
        PERFORM repl_ml.require_member();
        LOCK TABLE repl_ml.member IN SHARE ROW EXCLUSIVE MODE;
        member := repl_ml.require_ready(node_name);
        SELECT NULL::text AS host, NULL::integer AS port, NULL::text AS dbname INTO there;
        BEGIN
            SELECT p.* INTO there FROM repl_ml.probe(dsn) p;
            is_there := (repl_ml.ask_members(ARRAY[dsn], 'SELECT pg_catalog.json_build_array(group_id, node_id)::pg_catalog.text FROM repl_ml.local_info()'))[1];
            IF is_there IS DISTINCT FROM (SELECT pg_catalog.jsonb_build_array(l.group_id, member.node_id) FROM repl_ml.local_node l) THEN
                RAISE EXCEPTION 'the connection string does not lead to node "%"', node_name USING ERRCODE = 'invalid_parameter_value',
                    DETAIL = pg_catalog.format('It leads to database %I on %s:%s.', there.dbname, there.host, there.port),
                    HINT = 'The argument dsn is how the other nodes reach that node.';
            END IF;
        EXCEPTION WHEN connection_exception OR sqlclient_unable_to_establish_sqlconnection THEN
            GET STACKED DIAGNOSTICS failure = PG_EXCEPTION_DETAIL;
            -- a server that answers, and is not just starting or stopping, would refuse the others, too
            IF failure ~ 'FATAL:' AND failure !~ 'starting up|shutting down|not yet accepting' OR failure !~ 'connection to server' THEN
                RAISE EXCEPTION 'node "%" cannot be reached with this connection string', node_name USING ERRCODE = 'invalid_parameter_value',
                    DETAIL = failure, HINT = 'The role needs LOGIN and REPLICATION on that server, and pg_hba.conf there has to let it in.';
            END IF;
            RAISE WARNING 'node "%" cannot be reached there from here', node_name
                USING DETAIL = failure, HINT = 'If the address is wrong, run this function again; if the node is down, its links come back with it.';
        END;
        -- an unknown host is better than the old one
        UPDATE repl_ml.member m SET dsn = set_node_address.dsn, host = there.host, port = there.port, dbname = coalesce(there.dbname, m.dbname)
         WHERE m.node_id = member.node_id;
        PERFORM repl_ml.wake_workers();
        -- they would read of it where they do not find this node
        IF EXISTS (SELECT FROM repl_ml.local_node l WHERE l.node_id = member.node_id) THEN
            SELECT pg_catalog.string_agg(r.node_name, ', ' ORDER BY r.node_id) INTO failure FROM repl_ml.stat_replication r WHERE r.pid IS NULL;
            IF failure IS NOT NULL THEN
                RAISE WARNING 'members that are not connected to this node do not learn of its address: %', failure
                    USING HINT = 'Run the same function on one of them.';
            END IF;
        END IF;
    END
    $$;
COMMENT ON FUNCTION repl_ml.set_node_address(name, text) IS
    'how the other nodes reach a node from now on: another host, port, database name, role or password. On any member that the others reach; they learn of it as of any change, and use it when they connect next. Superusers only. Warns if the node cannot be reached there. Errors: 42704 no such node, 22023 the string leads to another database or is refused there, 55000 joining or not a member';

-- Names are for persons: clocks, slots and lists know nodes by their ids
CREATE FUNCTION repl_ml.rename_node(node_name name, new_name name) RETURNS void
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
    AS $$
    DECLARE
        member repl_ml.member;
    BEGIN
        PERFORM repl_ml.refuse_nulls('node_name, new_name', pg_catalog.num_nulls(node_name, new_name));
        PERFORM repl_ml.require_member();
        IF new_name = '' OR new_name ~ '[[:cntrl:]]' THEN
            RAISE EXCEPTION 'invalid node name %', pg_catalog.quote_literal(new_name) USING ERRCODE = 'invalid_parameter_value',
                HINT = 'A name is 1 to 63 bytes without control characters.';
        END IF;
        LOCK TABLE repl_ml.member IN SHARE ROW EXCLUSIVE MODE;
        member := repl_ml.require_ready(node_name);
        IF EXISTS (SELECT FROM repl_ml.member m WHERE m.node_name = new_name AND m.state <> 'dropped') THEN
            RAISE EXCEPTION 'node name "%" is already in use in the group', new_name USING ERRCODE = 'duplicate_object',
                HINT = pg_catalog.format('Choose another name, or remove the old node with SELECT repl_ml.drop_node(%L).', new_name);
        END IF;
        UPDATE repl_ml.member m SET node_name = new_name WHERE m.node_id = member.node_id;
        PERFORM repl_ml.mend_members();
        PERFORM repl_ml.wake_workers();
    END
    $$;
COMMENT ON FUNCTION repl_ml.rename_node(name, name) IS
    'gives a node another name, on any member: all learn of it as of any change, also one that is down when it comes back. Superusers only. Errors: 42704 no such node, 42710 name in use, 22023 no name, 55000 joining or not a member';

-- Two members may have changed the row of a node at the same time, and the last one counts
CREATE FUNCTION repl_ml.mend_members() RETURNS void
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
    AS $$
    BEGIN
    -- a node that was dropped stays so, whatever somebody else has called it meanwhile
    UPDATE repl_ml.member m SET state = 'dropped' FROM repl_ml.dropped_node d WHERE d.node_id = m.node_id AND m.state <> 'dropped';
    -- of two nodes that were given one name the older one has it
    UPDATE repl_ml.member m SET node_name = pg_catalog.format('%s_%s', pg_catalog.left(m.node_name, 14), m.node_id) FROM repl_ml.local_node l
     WHERE m.node_id = l.node_id AND m.state = 'ready' AND EXISTS (SELECT FROM repl_ml.member o WHERE o.node_name = m.node_name AND o.state <> 'dropped' AND o.node_id < m.node_id);
    -- its trigger makes all processes plan their statements anew, also where no row is updated
    IF EXISTS (SELECT FROM repl_ml.local_node l JOIN repl_ml.member m ON m.node_id = l.node_id WHERE m.node_name <> l.node_name) THEN
        UPDATE repl_ml.local_node l SET node_name = m.node_name FROM repl_ml.member m WHERE m.node_id = l.node_id AND m.node_name <> l.node_name;
    END IF;
    END
    $$;
COMMENT ON FUNCTION repl_ml.mend_members() IS 'keeps dropped nodes dropped, names different, and this node''s own name what the group calls it';

CREATE FUNCTION repl_ml.join_group(node_name name, dsn text, join_dsn text, copy_data boolean DEFAULT true, wait boolean DEFAULT true, timeout interval DEFAULT '10 min', keep text DEFAULT NULL) RETURNS integer
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
    AS $$
    DECLARE
        c record;
        id integer;
        parked bigint;
    BEGIN
        PERFORM repl_ml.hide_statement();
        PERFORM repl_ml.refuse_nulls('node_name, dsn, join_dsn, copy_data, wait, timeout', pg_catalog.num_nulls(node_name, dsn, join_dsn, copy_data, wait, timeout));
        IF timeout <= '0' THEN
            RAISE EXCEPTION 'timeout must be positive' USING ERRCODE = 'invalid_parameter_value', HINT = 'For example: timeout => ''10 min''.';
        END IF;
        IF keep <> ALL ('{mine,theirs}') OR keep IS NOT NULL AND copy_data THEN
            RAISE EXCEPTION 'keep => % means nothing%', pg_catalog.quote_literal(keep), CASE WHEN copy_data THEN ' with copy_data => true' ELSE '' END USING ERRCODE = 'invalid_parameter_value',
                HINT = 'Join with copy_data => false and keep => ''mine'' or ''theirs'', for rows of this database that have no clock.';
        END IF;
        SELECT * INTO c FROM repl_ml.check_new_member('-', node_name, dsn);
        id := repl_ml.start_joining(node_name, dsn, join_dsn, copy_data, timeout, coalesce(keep, ''));
        IF wait THEN
            PERFORM repl_ml.wait_for_node(node_name, timeout);
            SELECT pg_catalog.count(*) INTO parked FROM repl_ml.parked_change p WHERE NOT p.put_aside;
            FOR c IN SELECT o.* FROM repl_ml.own_numbers(ARRAY(SELECT t.relation FROM repl_ml.tables t WHERE t.relation IS NOT NULL)) o LOOP
                RAISE WARNING 'table %: %', c.relation, c.message USING HINT = c.hint;
            END LOOP;
            IF parked > 0 THEN
                RAISE WARNING 'node "%" is ready, but % changes could not be applied here', node_name, parked
                    USING HINT = 'Run SELECT * FROM repl_ml.parked_changes. When the cause is mended, they are applied by themselves.';
            END IF;
        END IF;
        RETURN id;
    END
    $$;
COMMENT ON FUNCTION repl_ml.join_group(name, text, text, boolean, boolean, interval, text) IS
    'makes this database a node of the group that join_dsn leads to: schema and rows are copied from that member. With copy_data => false it may have rows, which are compared with the group''s and joined by their clocks, both ways; of those without a clock that are not the group''s, keep says whether these stay (mine) or the group''s do (theirs). The role in join_dsn is a member of repl_ml_admin there (or a superuser), or the node is invited with repl_ml.invite_node. dsn is how the others reach this database. Returns the node id. Superusers only. Errors: 42501 not let in, 08001 unreachable, 42710 name in use, 55000 wrong state or setting, 57014 timeout';

-- The part of joining that must commit on its own: done by a background worker
CREATE FUNCTION repl_ml.start_joining(node_name name, dsn text, join_dsn text, copy_data boolean, timeout interval, keep text) RETURNS integer
    AS 'MODULE_PATHNAME', 'repl_ml_start_joining' LANGUAGE C VOLATILE STRICT;
COMMENT ON FUNCTION repl_ml.start_joining(name, text, text, boolean, interval, text) IS 'registers this database with the group and makes it a joining member; commits by itself';

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

-- The part of leaving that is done here
CREATE FUNCTION repl_ml.forget_group(keep_clocks boolean) RETURNS void
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp SET repl_ml.guard_off = on
    AS $$
    DECLARE
        self repl_ml.local_node;
        r record;
    BEGIN
        SELECT * INTO self FROM repl_ml.local_node;
        DELETE FROM repl_ml.local_node;
        FOR r IN SELECT c.oid::regclass AS relation FROM repl_ml.replicated_table t
                   JOIN pg_catalog.pg_namespace n ON n.nspname = t.schema_name
                   JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid AND c.relname = t.table_name LOOP
            IF NOT keep_clocks THEN
                PERFORM repl_ml.disenrol(r.relation);
            END IF;
        END LOOP;
        PERFORM repl_ml.free_sequence(g.schema_name, g.sequence_name)
           FROM (SELECT k.schema_name, k.sequence_name FROM repl_ml.sequence_mark k WHERE k.closed UNION SELECT x.schema_name, x.sequence_name FROM repl_ml.group_sequence x WHERE x.state = 'enrolled' AND x.obstacle IS NULL) g;
        DROP PUBLICATION IF EXISTS repl_ml;
        DELETE FROM repl_ml.member;
        DELETE FROM repl_ml.replicated_table;
        PERFORM repl_ml.empty_lists(keep_clocks);
        IF keep_clocks THEN
            INSERT INTO repl_ml.left_group (group_id, node_id, node_name, safe_counter, counter)
            SELECT self.group_id, self.node_id, self.node_name, CASE WHEN self.state = 'set_back' THEN self.former_safe END, CASE WHEN self.state = 'set_back' THEN self.former_counter END;
        END IF;
        DELETE FROM repl_ml.vouched;
        PERFORM repl_ml.drop_own_origins();
        -- also those a copied directory brought along: they would keep WAL for ever
        PERFORM repl_ml.drop_own_slots();
    END
    $$;
COMMENT ON FUNCTION repl_ml.forget_group(boolean) IS 'makes this database one that is in no group';

CREATE FUNCTION repl_ml.leave_group(force boolean DEFAULT false, keep_clocks boolean DEFAULT false) RETURNS void
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
        PERFORM repl_ml.refuse_nulls('force, keep_clocks', pg_catalog.num_nulls(force, keep_clocks));
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
                  LEFT JOIN repl_ml.write_members() w ON w.node_id = m.node_id
                 WHERE m.node_id <> self.node_id AND m.state = 'ready' AND greatest(s.confirmed_flush_lsn, w.acknowledged_lsn) < lsn;
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
        PERFORM repl_ml.forget_group(keep_clocks);
        PERFORM repl_ml.wake_workers();
    END
    $$;
COMMENT ON FUNCTION repl_ml.leave_group(boolean, boolean) IS
    'takes this database out of its group: its tables stay, as ordinary ones, or with the clocks of their rows and what is known of deleted ones, for who joins the same group again with copy_data => false. With force also when no member can be told, or when this is a copy of a node. Superusers only. Errors: 55000 not a member, or peers are behind or down';

-- Slots that peers read from here, and their walsenders
CREATE FUNCTION repl_ml.drop_own_origins() RETURNS void
    LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp
    AS $$
    SELECT pg_catalog.pg_replication_origin_drop(o.roname) FROM pg_catalog.pg_replication_origin o
     WHERE pg_catalog.starts_with(o.roname, repl_ml.link_name(0) COLLATE "C") OR o.roname ~ ('^' || pg_catalog.regexp_replace(repl_ml.link_name(0), '0$', '') || '[0-9]+$')
    $$;
COMMENT ON FUNCTION repl_ml.drop_own_origins() IS 'drops the origins under which this database applies what comes from peers';

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

