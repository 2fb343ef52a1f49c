--
-- Tables. Not readable by others: DSNs may hold passwords, histories hold rows.
-- The first ones are replicated themselves; the rest is this node's own.
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
    former_id         integer,
    former_safe       bigint,
    former_counter    bigint,
    preferred_writer  boolean NOT NULL DEFAULT false,
    __repl_clock      repl_ml.vclock NOT NULL DEFAULT repl_ml.tick()
);
COMMENT ON TABLE repl_ml.member IS 'members of the group, also former ones; see the view repl_ml.nodes. preferred_writer: the lease of strong tables goes back to it. Of one that is back after it was set back: former_id is what it was; what that wrote above former_counter, when it had its own up to former_safe, is this one''s';

CREATE FUNCTION repl_ml.member_changed() RETURNS pg_catalog.trigger
    AS 'MODULE_PATHNAME', 'repl_ml_member_changed' LANGUAGE C;
COMMENT ON FUNCTION repl_ml.member_changed() IS 'trigger: makes every process read again which members have been set back';
CREATE TRIGGER member_changed AFTER INSERT OR UPDATE OR DELETE ON repl_ml.member
    FOR EACH ROW EXECUTE FUNCTION repl_ml.member_changed();
ALTER TABLE repl_ml.member ENABLE ALWAYS TRIGGER member_changed;

-- Enrolled tables, known by name
CREATE TABLE repl_ml.replicated_table (
    schema_name  name NOT NULL,
    table_name   name NOT NULL,
    state        text NOT NULL CHECK (state IN ('enrolled', 'removed', 'dropped', 'renamed')),
    enrolled_by  integer NOT NULL,
    write_consistency text NOT NULL DEFAULT 'one' CHECK (write_consistency IN ('one', 'quorum', 'all')),
    class        text NOT NULL DEFAULT 'eventual' CHECK (class IN ('eventual', 'strong')),
    pending_class text CHECK (pending_class IN ('eventual', 'strong')),
    class_change timestamptz,
    made_by      bigint NOT NULL DEFAULT 0,
    now_schema   name,
    now_name     name,
    __repl_clock repl_ml.vclock NOT NULL DEFAULT repl_ml.tick(),
    PRIMARY KEY (schema_name, table_name)
);
COMMENT ON TABLE repl_ml.replicated_table IS 'tables the group replicates, and the least consistency of transactions that write them and their class, pending_class what that becomes, as was ordered at class_change; made_by is the number of the change of the schema that has made them ready for it, or has given them this name (0: repl_ml.add_table was called), before which nobody has them; one that is renamed is in the list as now_schema.now_name, and what comes under its former name is for that; see repl_ml.add_table and repl_ml.set_table_consistency';
-- whoever makes a group of a restored dump finds in it what the tables were; see repl_ml.take_up_lists
SELECT pg_catalog.pg_extension_config_dump('repl_ml.replicated_table', '');
CREATE FUNCTION repl_ml.table_consistency_changed() RETURNS pg_catalog.trigger
    AS 'MODULE_PATHNAME', 'repl_ml_table_consistency_changed' LANGUAGE C;
COMMENT ON FUNCTION repl_ml.table_consistency_changed() IS 'trigger: makes every process read the tables'' consistency and class in repl_ml.replicated_table again';
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
    sequence     bigint NOT NULL DEFAULT 1,
    told         jsonb,
    told_at      timestamptz,
    __repl_clock repl_ml.vclock NOT NULL DEFAULT repl_ml.tick()
);
COMMENT ON TABLE repl_ml.heartbeat IS 'each node''s last heartbeat: every write of it below safe_counter came before; applied is what it had of the others; parked whether some of that is parked there or still to be copied, lacks of which tables it lacks rows that others could not send; behind how many microseconds its wall clock is behind that of others, at least; sequence numbers them, so that who misses one knows that something was passed over; told what the node said of itself at told_at, see repl_ml.own_status()';

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
SELECT pg_catalog.pg_extension_config_dump('repl_ml.conflict_policy', '');
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
    class_change timestamptz,
    class_stage  integer,
    __repl_clock repl_ml.vclock NOT NULL DEFAULT repl_ml.tick(),
    PRIMARY KEY (node_id, schema_name, table_name)
);
COMMENT ON TABLE repl_ml.table_shape IS 'what a replicated table is on each member: its columns, types, keys, constraints and partitions, each with a digit for their order, as text that is the same wherever they are the same; null where it is missing; and in seen the identities of all columns it has ever had, or, in the row without names, which is about the database, a sum over all others of the member; class_stage is how far it is with the change of the table''s class that was ordered at class_change, see repl_ml.class_stages()';
CREATE TRIGGER class_stage_changed AFTER UPDATE ON repl_ml.table_shape
    FOR EACH ROW WHEN (OLD.class_change IS DISTINCT FROM NEW.class_change) EXECUTE FUNCTION repl_ml.table_consistency_changed();
ALTER TABLE repl_ml.table_shape ENABLE ALWAYS TRIGGER class_stage_changed;

-- Sequences of the group. Whoever has a row of it gives only what more than half of the members have agreed to
CREATE TABLE repl_ml.group_sequence (
    schema_name   name NOT NULL,
    sequence_name name NOT NULL,
    state         text NOT NULL CHECK (state IN ('enrolled', 'removed')),
    by_table      boolean NOT NULL,
    enrolled_by   integer NOT NULL,
    descending    boolean NOT NULL,
    obstacle      text,
    now_schema    name,
    now_name      name,
    __repl_clock  repl_ml.vclock NOT NULL DEFAULT repl_ml.tick(),
    PRIMARY KEY (schema_name, sequence_name)
);
COMMENT ON TABLE repl_ml.group_sequence IS 'sequences that give no number twice in the group: by_table because a replicated table owns them, else added by repl_ml.add_sequence; under the name that each had then, and now_schema and now_name if it has another one now. With an obstacle it is each node''s own still';
CREATE INDEX group_sequence_now ON repl_ml.group_sequence (now_schema, now_name);

-- Each row is written by its node only: what is greatest is beyond dispute
CREATE TABLE repl_ml.sequence_use (
    schema_name   name NOT NULL,
    sequence_name name NOT NULL,
    node_id       integer NOT NULL,
    place         bigint NOT NULL,
    __repl_clock  repl_ml.vclock NOT NULL DEFAULT repl_ml.tick(),
    PRIMARY KEY (schema_name, sequence_name, node_id)
);
COMMENT ON TABLE repl_ml.sequence_use IS 'the last place that a node had used of a sequence by itself when it became the group''s: nobody''s range begins before that';

-- What has been read of them is read again
CREATE FUNCTION repl_ml.sequence_list_changed() RETURNS pg_catalog.trigger
    AS 'MODULE_PATHNAME', 'repl_ml_sequence_list_changed' LANGUAGE C;
COMMENT ON FUNCTION repl_ml.sequence_list_changed() IS 'trigger: makes every process read again which sequences are the group''s';
CREATE TRIGGER sequence_list_changed AFTER INSERT OR UPDATE OR DELETE ON repl_ml.group_sequence
    FOR EACH ROW EXECUTE FUNCTION repl_ml.sequence_list_changed();
ALTER TABLE repl_ml.group_sequence ENABLE ALWAYS TRIGGER sequence_list_changed;
CREATE TRIGGER sequence_list_changed AFTER INSERT OR UPDATE OR DELETE ON repl_ml.sequence_use
    FOR EACH ROW EXECUTE FUNCTION repl_ml.sequence_list_changed();
ALTER TABLE repl_ml.sequence_use ENABLE ALWAYS TRIGGER sequence_list_changed;

-- What clients have changed of the schema, in the order in which the group has it
CREATE TABLE repl_ml.schema_change (
    number       bigint PRIMARY KEY,
    node_id      integer NOT NULL,
    changed_at   timestamptz NOT NULL DEFAULT pg_catalog.now(),
    command_tag  text NOT NULL,
    statement    text NOT NULL,
    role_name    name NOT NULL,
    search_path  text NOT NULL,
    settings     text[] NOT NULL,
    filled       jsonb NOT NULL DEFAULT '[]',
    __repl_clock repl_ml.vclock NOT NULL DEFAULT repl_ml.tick()
);
COMMENT ON TABLE repl_ml.schema_change IS 'statements that clients have run to change the schema, each written in the transaction that ran it, and run by who applies that: who ran it where, with which search_path and other settings; filled has what columns that it added have in rows that were there before, and the identities of columns that it dropped; see the view repl_ml.schema_changes';

-- Starts of members' servers; written by each member before it reads what was written since
CREATE TABLE repl_ml.peer_start (
    told_by      integer NOT NULL,
    node_id      integer NOT NULL,
    started_at   timestamptz NOT NULL,
    follows      timestamptz,
    sequence     bigint NOT NULL,
    lsn          pg_lsn NOT NULL,
    safe_counter bigint NOT NULL,
    counter      bigint NOT NULL,
    __repl_clock repl_ml.vclock NOT NULL DEFAULT repl_ml.tick(),
    PRIMARY KEY (told_by, node_id, started_at)
);
COMMENT ON TABLE repl_ml.peer_start IS 'what the servers of members found at their last hundred starts, as in repl_ml.server_start there, and which start each follows: told by each member of the starts from which it has read. Who knows that the node had more before knows that rows of those members may be of a time in which it had been set back; see repl_ml.find_late()';

-- What each member has compared by itself, when it was due; written by itself
CREATE TABLE repl_ml.verification (
    node_id      integer NOT NULL,
    schema_name  name NOT NULL,
    table_name   name NOT NULL,
    begun_at     timestamptz NOT NULL,
    ended_at     timestamptz,
    compared_at  timestamptz,
    good_at      timestamptz,
    full_at      timestamptz,
    status       text,
    differing_rows bigint,
    detail       text,
    told_rows    bigint NOT NULL DEFAULT 0,
    __repl_clock repl_ml.vclock NOT NULL DEFAULT repl_ml.tick(),
    PRIMARY KEY (node_id, schema_name, table_name)
);
COMMENT ON TABLE repl_ml.verification IS 'comparisons of tables that repl_ml.verify_schedule has made on each member: when the last one began, and ended (null: it goes on); when the last one began that came to its end (compared_at), that found the table equal (good_at), that read all rows (full_at); what the last one found; and of how many differing rows the log was told last';

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
    state             text NOT NULL CHECK (state IN ('joining', 'copying', 'ready', 'set_back', 'dropped')),
    system_identifier bigint NOT NULL,
    timeline          bigint NOT NULL,
    database          oid NOT NULL,
    directory         text NOT NULL,
    donor             integer,
    copy_data         boolean NOT NULL DEFAULT true,
    incarnation       integer NOT NULL DEFAULT 1,
    keep              text CHECK (keep IN ('mine', 'theirs')),
    former_node       integer,
    former_safe       bigint,
    former_counter    bigint,
    secret_hash       bytea,
    schema_base       bigint NOT NULL DEFAULT 0
);
CREATE UNIQUE INDEX local_node_singleton ON repl_ml.local_node ((true));
COMMENT ON TABLE repl_ml.local_node IS 'this node: its id and the place it lives in; incarnation: how often it has been found to be the same node in another place; copy_data: whether it came without rows; keep: whose rows stay of those that had no clock. Of a node that was set back (state set_back, and then under its next id): former_node is the id under which it was, and what it wrote since then has counters of that id above former_counter, when it had its own writes up to former_safe; with secret_hash it shows who it is. schema_base is the number of the last change of the schema that was in it when the node joined';

-- Whose clocks the rows of this database have, which is in no group now
CREATE TABLE repl_ml.left_group (
    group_id  uuid PRIMARY KEY,
    node_id   integer NOT NULL,
    node_name name NOT NULL,
    left_at   timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
    safe_counter bigint,
    counter   bigint
);
COMMENT ON TABLE repl_ml.left_group IS 'the group that this database has left with the clocks of its rows, and what it was there; safe_counter and counter if it had been set back, as in repl_ml.local_node; see repl_ml.leave_group';

-- What this server found at each of its starts
CREATE TABLE repl_ml.server_start (
    started_at   timestamptz PRIMARY KEY,
    sequence     bigint NOT NULL,
    lsn          pg_lsn NOT NULL,
    safe_counter bigint NOT NULL,
    counter      bigint NOT NULL,
    first_xid    xid8,
    became_at    timestamptz
);
COMMENT ON TABLE repl_ml.server_start IS 'what this server found at each of its starts: number and safe counter of the node''s last heartbeat before it, the end of the WAL, and the counter from which it goes on; where it became the node that another server was, from which transaction id on and when. A peer that has more than the first start that it does not know found knows that the node was set back before that; see repl_ml.note_set_back';

-- Of two places that ask at once to be one node, each member answers one
CREATE TABLE repl_ml.vouched (
    node_id     integer PRIMARY KEY,
    place       text NOT NULL,
    incarnation integer NOT NULL DEFAULT 1,
    vouched_at  timestamptz NOT NULL
);
COMMENT ON TABLE repl_ml.vouched IS 'for which place this node has last said that it may be a peer''s, and as which incarnation';

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
    acknowledged_lsn pg_lsn,
    server_start timestamptz,
    sequence    bigint,
    listed      timestamptz[] NOT NULL DEFAULT '{}'
);
COMMENT ON TABLE repl_ml.dropped_node IS 'nodes dropped from the group: how far this node had their changes, and the peers known to have no more of them, or copied from; and up to where a quorum, with them, had this node''s changes; the start of its server and the last heartbeat that were heard, as in repl_ml.heard; and for which of its starts rows have been listed, see repl_ml.find_late()';

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

-- Written with what moves the origin, so that the two cannot disagree unless somebody moves it, or the slot
CREATE TABLE repl_ml.heard (
    node_id     integer PRIMARY KEY,
    sequence    bigint,
    server_start timestamptz,
    incarnation integer NOT NULL DEFAULT 1,
    incomplete  boolean NOT NULL DEFAULT false
);
COMMENT ON TABLE repl_ml.heard IS 'the number of the last heartbeat of each peer that has come over its link, also if it was parked (null: none since the link was made), when the server was started that it came from, and which incarnation of the node that was; incomplete: the link was made anew, and what was passed over is not copied yet';

-- What this node knows of the lease of strong tables; one row, written by whoever votes or accepts, and by the lease's process
CREATE TABLE repl_ml.lease_state (
    lease    name PRIMARY KEY DEFAULT 'strong',
    promised bigint NOT NULL DEFAULT 0,
    accepted bigint NOT NULL DEFAULT 0,
    opened   bigint NOT NULL DEFAULT 0,
    unclean  boolean NOT NULL DEFAULT false,
    mending  repl_ml.vclock NOT NULL DEFAULT '{}',
    round    bigint NOT NULL DEFAULT 0,
    turn     bigint NOT NULL DEFAULT 0,
    holder   integer NOT NULL DEFAULT 0,
    base     repl_ml.vclock NOT NULL DEFAULT '{}',
    timeline bigint NOT NULL DEFAULT 0,
    since    timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp()
);
INSERT INTO repl_ml.lease_state DEFAULT VALUES;
COMMENT ON TABLE repl_ml.lease_state IS 'the last tenure of strong tables'' lease that this node had, gave to another or accepted: round and turn count them, holder is whose it is (0: it knows of none), base the positions that have to be here before it may be used, timeline where it was written. promised is the last round this node has voted for, accepted the last one whose base it knows, opened the last one that it knows a majority to have accepted; unclean: strong tables here may lack rows, or have some that do not count, and are to be made as they are on another member; mending: the positions that this one is to have for that';

-- The rounds whose bases count: what was written in older rounds and is not in the base is void
CREATE TABLE repl_ml.lease_round (
    round  bigint PRIMARY KEY,
    holder integer NOT NULL,
    base   repl_ml.vclock NOT NULL
);
COMMENT ON TABLE repl_ml.lease_round IS 'the rounds of votes for the lease of strong tables that lead to the last one this node has accepted: who was elected, and up to which position of each node what had been written before counts';

-- Up to where strong tables have what each other node wrote
CREATE TABLE repl_ml.strong_place (
    node_id integer PRIMARY KEY,
    lsn     bigint NOT NULL
);
COMMENT ON TABLE repl_ml.strong_place IS 'the end of the last transaction of each other node that wrote strong tables and is here, written with it';

-- Tables to copy from a peer before or beside its stream
CREATE TABLE repl_ml.table_sync (
    node_id     integer NOT NULL,
    schema_name name NOT NULL,
    table_name  name NOT NULL,
    state       text NOT NULL DEFAULT 'pending' CHECK (state IN ('pending', 'copied')),
    rows        bigint,
    bytes       bigint,
    replaces    boolean NOT NULL DEFAULT false,
    PRIMARY KEY (node_id, schema_name, table_name)
);
-- What is asked all the time is whether there is any
CREATE INDEX table_sync_pending ON repl_ml.table_sync (node_id) WHERE state = 'pending';
COMMENT ON TABLE repl_ml.table_sync IS 'copies of tables from a peer that are due or done, which replace all that is here or are joined with it: how many rows have come, only those that differ where most were here, and how many bytes that took';

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

-- How many there were. Who records conflicts adds rows to conflict_news, and so waits for nobody else who does; the
-- supervisor makes counts of them. Of the whole time, of hours (UTC), and of the minutes of the last hour.
CREATE TABLE repl_ml.conflict_count (
    span              text NOT NULL CHECK (span IN ('all', 'hour', 'minute')),
    since             timestamptz NOT NULL,
    schema_name       name NOT NULL,
    table_name        name NOT NULL,
    conflict_type     text NOT NULL,
    resolution        text NOT NULL,
    conflicts         bigint NOT NULL,
    equal             bigint NOT NULL,
    first_detected_at timestamptz,
    last_detected_at  timestamptz,
    PRIMARY KEY (span, since, schema_name, table_name, conflict_type, resolution)
);
COMMENT ON TABLE repl_ml.conflict_count IS 'how many conflicts there were since then, in that hour or minute; the row of no table says since when this node counts. See the views stat_conflicts and conflicts_by_hour';
INSERT INTO repl_ml.conflict_count VALUES ('all', pg_catalog.now(), '', '', '', '', 0, 0);

CREATE TABLE repl_ml.conflict_news (
    schema_name   name NOT NULL,
    table_name    name NOT NULL,
    conflict_type text NOT NULL,
    resolution    text NOT NULL,
    detected_at   timestamptz NOT NULL,
    equal         boolean NOT NULL,
    conflicts     integer NOT NULL
);
ALTER TABLE repl_ml.conflict_news REPLICA IDENTITY FULL;
COMMENT ON TABLE repl_ml.conflict_news IS 'conflicts that conflict_count does not count yet; -1: one of them that was taken back by the transaction that had it';

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

-- The content of large transactions: of those that a peer has not committed yet, and of those put aside (action bulk)
CREATE TABLE repl_ml.bulk_piece (
    id          bigint,
    number      integer,
    origin_node integer NOT NULL,
    content     bytea NOT NULL,
    PRIMARY KEY (id, number)
);
ALTER TABLE repl_ml.bulk_piece ALTER COLUMN content SET STORAGE EXTERNAL;
COMMENT ON TABLE repl_ml.bulk_piece IS 'what has come of large transactions that are not applied yet, in pieces; id is that of the row of repl_ml.parked_change that puts it aside, or will; piece -1 has the subtransactions that were rolled back';

-- What came of comparisons that were made here
CREATE TABLE repl_ml.consistency_check (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    schema_name name NOT NULL,
    table_name  name NOT NULL,
    status      text NOT NULL CHECK (status IN ('consistent', 'differs', 'incomplete')),
    members     name[] NOT NULL,
    unreachable name[] NOT NULL,
    rows        bigint NOT NULL,
    chunks      integer NOT NULL,
    differing_rows bigint NOT NULL,
    rechecked_rows bigint NOT NULL,
    started_at  timestamptz NOT NULL,
    duration    interval NOT NULL,
    detail      text,
    hint        text,
    mode        text,
    hashed_rows bigint,
    unwatched   boolean NOT NULL DEFAULT false
);
CREATE INDEX consistency_check_table_idx ON repl_ml.consistency_check (schema_name, table_name, id);
COMMENT ON TABLE repl_ml.consistency_check IS 'comparisons of tables that were made on this node; see the view repl_ml.consistency_checks. unwatched: one that is due, as the table could be written here without anybody''s knowing';

-- What comparisons remember of the pages of tables: see src/verify/pages.c
CREATE TABLE repl_ml.verified_page (
    relid       oid,
    segment     integer,
    content     bytea NOT NULL,
    PRIMARY KEY (relid, segment)
);
COMMENT ON TABLE repl_ml.verified_page IS 'sums of the hashes of rows, for each page of a table here, 64 pages a row, as they were when they were read last; segment -1 is their total';

-- What repair_table has changed here
CREATE TABLE repl_ml.row_repair (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    repaired_at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
    schema_name name NOT NULL,
    table_name  name NOT NULL,
    key         text[] NOT NULL,
    action      text NOT NULL CHECK (action IN ('insert', 'update', 'delete', 'replace', 'none')),
    verdict     text NOT NULL,
    source_node integer NOT NULL,
    before      jsonb,
    after       jsonb
);
CREATE INDEX row_repair_repaired_at_idx ON repl_ml.row_repair (repaired_at);
COMMENT ON TABLE repl_ml.row_repair IS 'rows that repl_ml.repair_table has changed on this node; see the view repl_ml.repair_history';

-- What this node alone had committed to strong tables when another one took over
CREATE TABLE repl_ml.void_transaction (
    commit_lsn   pg_lsn PRIMARY KEY,
    xid          xid NOT NULL,
    xids         xid[] NOT NULL,
    committed_at timestamptz NOT NULL,
    round        bigint NOT NULL,
    noted_at     timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
    undone_at    timestamptz
);
CREATE INDEX void_transaction_noted_at_idx ON repl_ml.void_transaction (noted_at);
COMMENT ON TABLE repl_ml.void_transaction IS 'transactions of this node that wrote strong tables and count in no tenure; xids are its own and those of its subtransactions; see the view repl_ml.void_transactions';

CREATE TABLE repl_ml.void_change (
    commit_lsn  pg_lsn NOT NULL REFERENCES repl_ml.void_transaction ON DELETE CASCADE,
    schema_name name NOT NULL,
    table_name  name NOT NULL,
    deleted     boolean NOT NULL,
    content     text[]
);
ALTER TABLE repl_ml.void_change REPLICA IDENTITY FULL;
CREATE INDEX void_change_commit_lsn_idx ON repl_ml.void_change (commit_lsn);
COMMENT ON TABLE repl_ml.void_change IS 'what void transactions had left in strong tables when these were made what they are on other members: rows as names and values, of deleted ones the key; of a table and copy the first thousand. See the view repl_ml.void_transactions';

-- Of these a part is lost here: this node does not count for them
CREATE TABLE repl_ml.discarded_transaction (
    node_id      integer NOT NULL,
    commit_lsn   pg_lsn NOT NULL,
    xid          xid NOT NULL,
    discarded_at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
    PRIMARY KEY (node_id, commit_lsn)
);
COMMENT ON TABLE repl_ml.discarded_transaction IS 'transactions of other nodes of which a parked change was discarded here, kept for two days: whoever asks what became of one must not be told that this node has it';

-- What this node has promised of each sequence, to anybody, and what is its own of it; a place is a number, or its negation where the sequence counts down.
-- No client's transaction writes it: what is promised stays whatever becomes of that
CREATE TABLE repl_ml.sequence_mark (
    schema_name   name NOT NULL,
    sequence_name name NOT NULL,
    sequence      oid,
    closed        boolean NOT NULL DEFAULT false,
    closed_at     timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
    promised      bigint NOT NULL,
    server_start  timestamptz,
    first_place   bigint,
    last_place    bigint,
    next_first    bigint,
    next_last     bigint,
    size          bigint NOT NULL DEFAULT 0,
    obtained      bigint NOT NULL DEFAULT 0,
    obtained_at   timestamptz NOT NULL DEFAULT '2000-01-01',
    in_vain       boolean NOT NULL DEFAULT false,
    PRIMARY KEY (schema_name, sequence_name)
);
COMMENT ON TABLE repl_ml.sequence_mark IS 'for each sequence, named as in repl_ml.group_sequence, the last place promised to anybody by this node, and the ranges that are this node''s (first_place to last_place, then next_first to next_last), which count until its server ends; closed: this database gives none by itself, also where the list does not say so yet, or no longer; size places came last, at obtained_at, obtained numbers in all; in_vain: the last time too few members answered';
CREATE INDEX sequence_mark_sequence ON repl_ml.sequence_mark (sequence);

-- Who has to agree about numbers
CREATE TABLE repl_ml.number_voter (
    node_id      integer PRIMARY KEY,
    server_start timestamptz
);
COMMENT ON TABLE repl_ml.number_voter IS 'the nodes of which more than half have to agree to a range of numbers, as this node counts them: one that joins before it votes itself, one that was dropped until a majority has told what it has promised; server_start, of this node: the start since which it votes';
