/*
 * link.c
 *		The link to a peer: is it who it should be, the slot there that keeps
 *		its changes for us, the origin here that says how far we are.
 *
 * Slot and origin belong together.  Where one of them is missing the link is
 * made anew from the peer's present position, and what the slot did not keep
 * is copied (sync.c): a join may repeat rows, so nothing has to fit exactly.
 * The peer's slot is told where the origin is on disk, and nothing beyond.  So one
 * that is ahead of it says that this server has lost what it had acknowledged, as its
 * storage was set back, or that somebody has moved one of them; so do the worker's
 * place in shared memory (reached_lsn), and a gap in the peer's heartbeats
 * (apply/heard.c).  Then the link is made anew, too.
 *
 * Called by the apply worker before it streams (group/worker.c).  Not what is
 * copied (sync.c).  Locks: none while the peer is asked; core's on the catalog
 * of origins.
 */
#include "postgres.h"

#include "access/xact.h"
#include "access/xlog.h"
#include "catalog/pg_replication_origin.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "replication/origin.h"
#include "storage/lmgr.h"
#include "utils/builtins.h"
#include "utils/pg_lsn.h"
#include "utils/uuid.h"
#include "utils/fmgrprotos.h"

#include "apply/apply.h"
#include "compat.h"
#include "copy/copy.h"
#include "server/server.h"
#include "wire/wire.h"

#define JOINING_PATIENCE_MS		10000
#define SLOT_PATIENCE_MS		5000	/* making a slot waits for transactions; after
									 * that we look whether some are prepared */
#define PREPARED_POLL_MS		500

#define MOVED_HINT	"Check this server's storage, and leave replication slots and origins whose " \
					"names begin with \"repl_ml_\" to repl_ml."

#define FEWEST_FAILURES	5		/* of a stream, in a row, before its slot is given up; ever
								 * more if another one is no better */

#define KNOWN_COLUMNS	4		/* of repl_ml.known_of() */

/* What the peer says of itself; see repl_ml.local_info(). */
typedef struct PeerInfo
{
	char	   *version;
	char	   *group_id;
	int			node_id;
	char	   *node_name;
	char	   *state;
	bool		fenced;
	bool		we_are_dropped;
	int			incarnation;
	int			our_incarnation;	/* as the peer knows */
	Oid			database;
	XLogRecPtr	flush_lsn;
	TimestampTz server_start;
	bool		brings_rows;	/* it joins, or has joined, with rows of its own */
	char	   *knows_of_us[KNOWN_COLUMNS]; /* see repl_ml.known_of() */
	char	   *succeeded;		/* when we became another member; NULL: we have not */
} PeerInfo;

static PeerInfo ask_peer(ReplMlApply *apply);
static void check_progress(ReplMlApply *apply, const PeerInfo *info);
static void check_peer(ReplMlApply *apply, const PeerInfo *info);
static void end_old_session(ReplMlApply *apply);
static char *find_slot_fault(ReplMlApply *apply, XLogRecPtr *confirmed);
static char *find_stream_fault(ReplMlApply *apply);
static bool is_beyond_reach(ReplMlApply *apply, XLogRecPtr lsn);
static void order_new_link(ReplMlApply *apply, const PeerInfo *info, const char *slot,
						   bool had_origin, const char *fault, bool has_lost);
static XLogRecPtr make_slot(ReplMlApply *apply, const char *slot);
static void make_origin(const char *origin, XLogRecPtr from);
static void order_copies(ReplMlApply *apply, const PeerInfo *info, bool rebuilt);

/*
 * Checks the peer and makes slot and origin where they are missing; sets up
 * the origin for this session.  Returns the position to stream from.
 */
XLogRecPtr
repl_ml_link_prepare(ReplMlApply *apply)
{
	PeerInfo	info = ask_peer(apply);
	TimestampTz start = GetCurrentTimestamp();
	char	   *origin;
	char	   *slot;
	RepOriginId id;
	XLogRecPtr	from = InvalidXLogRecPtr;
	XLogRecPtr	confirmed;
	bool		has_lost;
	bool		had_origin;
	bool		moved = apply->connection.passed_over;
	char	   *fault;

	/* a joining node is on the list a moment before it knows itself */
	while (info.node_id == 0 && strcmp(apply->peer->state, "joining") == 0 &&
		   !TimestampDifferenceExceeds(start, GetCurrentTimestamp(), JOINING_PATIENCE_MS))
	{
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, 100,
						 wait_event_compat("ReplMlPeerJoining"));
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
		info = ask_peer(apply);
	}
	check_peer(apply, &info);
	end_old_session(apply);
	apply->connection.peer_database = info.database;
	LWLockAcquire(repl_ml_shared->lock, LW_EXCLUSIVE);
	apply->worker->target_lsn = info.flush_lsn;
	apply->worker->peer_lsn = info.flush_lsn;
	LWLockRelease(repl_ml_shared->lock);

	StartTransactionCommand();
	origin = MemoryContextStrdup(TopMemoryContext,
								 repl_ml_origin_name(MyDatabaseId, apply->peer->node_id));
	slot = MemoryContextStrdup(TopMemoryContext, repl_ml_origin_name(info.database, apply->self));
	id = replorigin_by_name(origin, true);
	if (id != InvalidRepOriginId && !repl_ml_origin_is_ours(id))
	{
		/* a user's, or made by an older version: what is written under it would be sent on */
		replorigin_drop_by_name(origin, false, true);
		id = InvalidRepOriginId;
	}
	had_origin = id != InvalidRepOriginId;
	if (had_origin)
		from = replorigin_get_progress(id, false);
	/* one without a position is what is left of one that was being dropped */
	moved |= is_beyond_reach(apply, from) || (had_origin && from == InvalidXLogRecPtr);
	CommitTransactionCommand();
	check_progress(apply, &info);

	fault = find_slot_fault(apply, &confirmed);
	if (fault == NULL)
		fault = find_stream_fault(apply);
	has_lost = moved || confirmed > from;
	if (!had_origin || fault != NULL || has_lost)
	{
		order_new_link(apply, &info, slot, had_origin, fault, has_lost);
		from = make_slot(apply, slot);
		StartTransactionCommand();
		make_origin(origin, from);
		/* the slot must not be ahead of it after a crash */
		ForceSyncCommit();
		CommitTransactionCommand();
	}

	StartTransactionCommand();

	/* what is applied moves the origin in the same transaction */
	apply->connection.origin = replorigin_by_name(origin, false);
	if (replorigin_session_origin == InvalidRepOriginId)
		replorigin_session_setup_compat(apply->connection.origin);
	replorigin_session_origin = apply->connection.origin;
	from = replorigin_session_get_progress(true);	/* durably */
	CommitTransactionCommand();
	repl_ml_apply_reaches(apply, from);
	return from;
}

/*
 * Says whether the origin is where this worker, since the server was started, has
 * never been about to put it: then somebody else has.
 */
static bool
is_beyond_reach(ReplMlApply *apply, XLogRecPtr lsn)
{
	XLogRecPtr	reached;

	LWLockAcquire(repl_ml_shared->lock, LW_SHARED);
	reached = apply->worker->reached_lsn;
	LWLockRelease(repl_ml_shared->lock);
	return reached != InvalidXLogRecPtr && lsn > reached;
}

/*
 * Says why the link is made anew, and orders the copies, durably, before there
 * is a slot that hides what the old one did not keep.  Where this node may have lost
 * what it had acknowledged, it does not say any more how far it is until these are
 * done: no barrier passes here, or takes its answer, meanwhile.
 */
static void
order_new_link(ReplMlApply *apply, const PeerInfo *info, const char *slot, bool had_origin,
			   const char *fault, bool has_lost)
{
	if (had_origin && fault != NULL)
	{
		ErrorData	error = {
			.sqlerrcode = ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
			.message = psprintf("slot \"%s\" on node \"%s\" is lost and is made anew: %s",
								slot, apply->peer->node_name, fault)
		};

		repl_ml_apply_show_error(apply, &error);
		ereport(WARNING,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("slot \"%s\" on node \"%s\" is lost and is made anew",
						slot, apply->peer->node_name),
				 errdetail("%s All tables are copied from that node again and joined.", fault)));
	}
	else if (had_origin)
	{
		ErrorData	error = {
			.sqlerrcode = ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
			.message = psprintf("a part of what node \"%s\" has written was passed over",
								apply->peer->node_name),
			.hint = MOVED_HINT
		};

		repl_ml_apply_show_error(apply, &error);
		ereport(WARNING,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("a part of what node \"%s\" has written was passed over, so the link is "
						"made anew", apply->peer->node_name),
				 errdetail("This server has lost what it had acknowledged, as its storage was set "
						   "back or lied about a flush; or somebody has moved the slot \"%s\" on "
						   "that node, or made it anew, or has moved the replication origin \"%s\" "
						   "here. All tables are copied from that node again and joined.", slot,
						   repl_ml_origin_name(MyDatabaseId, apply->peer->node_id)),
				 errhint("%s", MOVED_HINT)));
	}
	StartTransactionCommand();
	repl_ml_heard_forget(apply, had_origin || has_lost);
	order_copies(apply, info, had_origin || has_lost);
	ForceSyncCommit();
	CommitTransactionCommand();

	/* from now on the copies bring it, wherever this ends */
	apply->connection.passed_over = false;
	LWLockAcquire(repl_ml_shared->lock, LW_EXCLUSIVE);
	apply->worker->reached_lsn = InvalidXLogRecPtr;
	if (has_lost)
	{
		apply->worker->covered_known = false;
		apply->worker->covered_lsn = InvalidXLogRecPtr;
	}
	LWLockRelease(repl_ml_shared->lock);
}

/* Returns a call of repl_ml.note_set_back() with what is known of the node that makes it. */
static char *
note_set_back(int asker, char *const *known)
{
	StringInfoData call;

	initStringInfo(&call);
	appendStringInfo(&call, "SELECT repl_ml.note_set_back(%d", asker);
	for (int i = 0; i < KNOWN_COLUMNS; i++)
		appendStringInfo(&call, ", %s", known[i] == NULL ? "NULL" : quote_literal_cstr(known[i]));
	appendStringInfoChar(&call, ')');
	return call.data;
}

/* Sets, in the message's memory, what this node knows of the peer. */
static void
load_known(ReplMlApply *apply, char **known)
{
	repl_ml_begin();
	SPI_execute(psprintf("SELECT server_start, sequence, lsn, counter FROM repl_ml.known_of(%d)",
						 apply->peer->node_id), false, 1);
	for (int i = 0; i < KNOWN_COLUMNS; i++)
	{
		char	   *value = repl_ml_spi_text(0, i);

		known[i] = value == NULL ? NULL : MemoryContextStrdup(apply->message_context, value);
	}
	repl_ml_commit();
	MemoryContextSwitchTo(apply->message_context);
}

/* Asks the peer whether it was set back, as far as this node knows: why, or NULL. */
static char *
ask_set_back(ReplMlApply *apply)
{
	static const Oid types[1] = {TEXTOID};
	char	   *known[KNOWN_COLUMNS];
	char	   *reason = NULL;
	ReplMlResult *result;

	load_known(apply, known);
	result = repl_ml_stream_query(apply->connection.stream, note_set_back(apply->self, known), 1,
								  types);
	if (repl_ml_stream_next(result) &&
		(slot_getallattrs(result->slot), !result->slot->tts_isnull[0]))
		reason = MemoryContextStrdup(apply->message_context,
									 TextDatumGetCString(result->slot->tts_values[0]));
	repl_ml_stream_free(result);
	MemoryContextSwitchTo(apply->message_context);
	return reason;
}

/* Says whether nothing has been read yet that the peer's server wrote since it was started then. */
static bool
is_unknown_start(ReplMlApply *apply, TimestampTz server_start)
{
	char	   *known[KNOWN_COLUMNS];

	load_known(apply, known);
	return known[0] == NULL ||
		DatumGetTimestampTz(DirectFunctionCall3(timestamptz_in, CStringGetDatum(known[0]),
												ObjectIdGetDatum(InvalidOid),
												Int32GetDatum(-1))) != server_start;
}

/*
 * Raises an error where the peer has less than has come from it, or this node less
 * than has come to the peer: then it was set back, which it has noted when
 * this returns, and comes back by itself under another id (group/join.c).  Nothing
 * of it is applied before.
 */
static void
check_progress(ReplMlApply *apply, const PeerInfo *info)
{
	char	   *reason = ask_set_back(apply);

	if (reason != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("node \"%s\" has been set back to an older state",
						apply->peer->node_name),
				 errdetail_internal("%s", reason),
				 errhint("It comes back by itself: see SELECT * FROM repl_ml.health there. If it "
						 "is to leave instead, run SELECT repl_ml.drop_node(%s) here.",
						 quote_literal_cstr(apply->peer->node_name))));
	repl_ml_begin();
	SPI_execute(note_set_back(apply->peer->node_id, info->knows_of_us), false, 1);
	repl_ml_commit();
	StartTransactionCommand();
	/* raises the error if that is so */
	(void) repl_ml_identity_require();
	CommitTransactionCommand();
	MemoryContextSwitchTo(apply->message_context);
	if (is_unknown_start(apply, info->server_start))
		repl_ml_starts_note(apply);
	StartTransactionCommand();
	repl_ml_heard_start(apply, info->server_start, info->incarnation);
	/* before anything of it is applied */
	ForceSyncCommit();
	CommitTransactionCommand();
	MemoryContextSwitchTo(apply->message_context);
}

/* Returns what the peer says of itself. */
static PeerInfo
ask_peer(ReplMlApply *apply)
{
	static const Oid types[14 + KNOWN_COLUMNS] = {TEXTOID, TEXTOID, TEXTOID, TEXTOID, TEXTOID,
		BOOLOID, OIDOID, PG_LSNOID, BOOLOID, INT4OID, INT4OID, TIMESTAMPTZOID, BOOLOID, TEXTOID,
	TEXTOID, TEXTOID, TEXTOID, TEXTOID};
	PeerInfo	info = {0};
	char	   *fields[5];
	ReplMlResult *result = repl_ml_stream_query(apply->connection.stream,
												psprintf("SELECT version,"
														 " group_id::pg_catalog.text,"
														 " node_id::pg_catalog.text,"
														 " node_name::pg_catalog.text, state,"
														 " fenced, database, flush_lsn,"
														 " asker_dropped, incarnation,"
														 " asker_incarnation, server_start,"
														 " brings_rows,"
														 " asker_start::pg_catalog.text,"
														 " asker_sequence::pg_catalog.text,"
														 " asker_lsn::pg_catalog.text,"
														 " asker_counter::pg_catalog.text,"
														 " asker_succeeded::pg_catalog.text"
														 " FROM repl_ml.local_info(%d)",
														 apply->self), lengthof(types), types);

	if (!repl_ml_stream_next(result))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("the extension repl_ml is not installed on node \"%s\"",
						apply->peer->node_name),
				 errhint("If it left for good, run SELECT repl_ml.drop_node(%s).",
						 quote_literal_cstr(apply->peer->node_name))));
	slot_getallattrs(result->slot);
	for (int i = 0; i < 5; i++)
		fields[i] = result->slot->tts_isnull[i] ? NULL :
			MemoryContextStrdup(apply->message_context,
								TextDatumGetCString(result->slot->tts_values[i]));
	info.version = fields[0];
	info.group_id = fields[1];
	info.node_id = fields[2] == NULL ? 0 : atoi(fields[2]);
	info.node_name = fields[3];
	info.state = fields[4];
	info.fenced = DatumGetBool(result->slot->tts_values[5]);
	info.database = DatumGetObjectId(result->slot->tts_values[6]);
	info.flush_lsn = DatumGetLSN(result->slot->tts_values[7]);
	info.we_are_dropped = DatumGetBool(result->slot->tts_values[8]);
	info.incarnation = result->slot->tts_isnull[9] ? 0 : DatumGetInt32(result->slot->tts_values[9]);
	info.our_incarnation = result->slot->tts_isnull[10] ? 0 :
		DatumGetInt32(result->slot->tts_values[10]);
	info.server_start = DatumGetTimestampTz(result->slot->tts_values[11]);
	info.brings_rows = DatumGetBool(result->slot->tts_values[12]);
	for (int i = 0; i < KNOWN_COLUMNS; i++)
		info.knows_of_us[i] = result->slot->tts_isnull[13 + i] ? NULL :
			MemoryContextStrdup(apply->message_context,
								TextDatumGetCString(result->slot->tts_values[13 + i]));
	info.succeeded = result->slot->tts_isnull[13 + KNOWN_COLUMNS] ? NULL :
		MemoryContextStrdup(apply->message_context,
							TextDatumGetCString(result->slot->tts_values[13 + KNOWN_COLUMNS]));
	repl_ml_stream_free(result);
	return info;
}

/*
 * Raises an error unless this is the node the catalog means, and it may act.
 * Where the peer knows better whether we may, that is written down first.
 */
static void
check_peer(ReplMlApply *apply, const PeerInfo *info)
{
	const char *name = apply->peer->node_name;
	const ReplMlIdentity *self;
	char	   *group_id;
	int			incarnation;

	StartTransactionCommand();
	self = repl_ml_identity_require();
	incarnation = self->incarnation;
	group_id = DatumGetCString(DirectFunctionCall1(uuid_out, UUIDPGetDatum(&self->group_id)));
	group_id = MemoryContextStrdup(apply->message_context, group_id);
	CommitTransactionCommand();

	if (info->node_id == 0 || strcmp(info->group_id, group_id) != 0)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("node \"%s\" is not a member of this group", name),
				 errhint("If it left for good, run SELECT repl_ml.drop_node(%s).",
						 quote_literal_cstr(name))));
	if (info->node_id != apply->peer->node_id)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("the connection string of node \"%s\" leads to node \"%s\"", name,
						info->node_name),
				 errhint("Let its host name lead to node \"%s\" again; if that left for good, run "
						 "SELECT repl_ml.drop_node(%s).", name, quote_literal_cstr(name))));

	/*
	 * from here on this node is not to write: who asks for its identity raises
	 * the error
	 */
	if (info->our_incarnation > incarnation)
	{
		/* another server has been confirmed to be this node: see identity.c */
		repl_ml_begin();
		SPI_execute("UPDATE repl_ml.local_node SET directory = 'superseded'", false, 0);
		repl_ml_commit();
		StartTransactionCommand();
		(void) repl_ml_identity_require();
	}
	if (info->we_are_dropped)
	{
		repl_ml_begin();
		SPI_execute(psprintf("SELECT repl_ml.note_dropped(%d, %s)", apply->peer->node_id,
							 info->succeeded == NULL ? "NULL" :
							 quote_literal_cstr(info->succeeded)), false, 0);
		repl_ml_commit();
		StartTransactionCommand();
		(void) repl_ml_identity_require();
	}
	if (info->fenced)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("the server found as node \"%s\" is a copy of it", name),
				 errhint("If it is the node itself, moved, SELECT repl_ml.confirm_identity() there "
						 "says what speaks against it; else run SELECT "
						 "repl_ml.leave_group(force => true), and join it anew.")));
	if (info->incarnation < apply->peer->incarnation)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("the server found as node \"%s\" is what it was before it moved", name),
				 errhint("Stop that server, or run SELECT repl_ml.leave_group(force => true) "
						 "there.")));
	if (strcmp(info->version, REPL_ML_VERSION) != 0)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("node \"%s\" runs repl_ml %s, this node %s", name, info->version,
						REPL_ML_VERSION),
				 errhint("Run ALTER EXTENSION repl_ml UPDATE where the version is older.")));
}

/*
 * Ends the walsender that still has our slot: its network may have failed
 * without a word, and it would notice only when its kernel tries again.  Nor may
 * anybody else keep the slot's name.
 */
static void
end_old_session(ReplMlApply *apply)
{
	repl_ml_stream_command(apply->connection.stream,
						   psprintf("SELECT %s.end_old_session(%d)::pg_catalog.text",
									REPL_ML_SCHEMA, apply->self));
}

/*
 * Returns why the slot is of no use: it is not there, not ours, or has not kept
 * everything; NULL if it is of use.  Sets what the slot was told that we have.
 * One that is ahead of the peer's WAL was told so by mistake, and would leave out
 * what comes up to there.
 */
static char *
find_slot_fault(ReplMlApply *apply, XLogRecPtr *confirmed)
{
	static const Oid types[2] = {TEXTOID, PG_LSNOID};
	ReplMlResult *result = repl_ml_stream_query(apply->connection.stream,
												psprintf("SELECT fault, confirmed"
														 " FROM repl_ml.slot_fault(%d)",
														 apply->self), 2, types);
	char	   *fault = NULL;

	if (!repl_ml_stream_next(result))
		elog(ERROR, "no row from repl_ml.slot_fault");
	slot_getallattrs(result->slot);
	if (!result->slot->tts_isnull[0])
		fault = MemoryContextStrdup(apply->message_context,
									TextDatumGetCString(result->slot->tts_values[0]));
	*confirmed = result->slot->tts_isnull[1] ? InvalidXLogRecPtr :
		DatumGetLSN(result->slot->tts_values[1]);
	repl_ml_stream_free(result);
	return fault;
}

/*
 * Returns the SQLSTATE of the error that ended the last stream; 0 if the peer does
 * not know it any more, as after a restart.  Of what ends it while it runs core's
 * client says only that something did.
 */
static int
find_stream_error(ReplMlApply *apply)
{
	static const Oid types[1] = {TEXTOID};
	int			sqlstate = apply->connection.failure;
	ReplMlResult *result;

	if (sqlstate != ERRCODE_PROTOCOL_VIOLATION)
		return sqlstate;
	sqlstate = 0;
	result = repl_ml_stream_query(apply->connection.stream,
								  psprintf("SELECT repl_ml.stream_ended_with(%d)", apply->self),
								  1, types);
	if (repl_ml_stream_next(result) &&
		(slot_getallattrs(result->slot), !result->slot->tts_isnull[0]))
	{
		const char *state = TextDatumGetCString(result->slot->tts_values[0]);

		if (strlen(state) == 5)
			sqlstate = MAKE_SQLSTATE(state[0], state[1], state[2], state[3], state[4]);
	}
	repl_ml_stream_free(result);
	return sqlstate;
}

/* Says whether what ends a stream with that error may be over by itself, or by a setting. */
static bool
may_pass(int sqlstate)
{
	switch (ERRCODE_TO_CATEGORY(sqlstate))
	{
		case 0:					/* it is not known */
		case MAKE_SQLSTATE('0', '8', '0', '0', '0'):	/* connection */
		case MAKE_SQLSTATE('2', '8', '0', '0', '0'):	/* authorization */
		case MAKE_SQLSTATE('4', '0', '0', '0', '0'):	/* rollback */
		case MAKE_SQLSTATE('5', '3', '0', '0', '0'):	/* disk, memory */
		case MAKE_SQLSTATE('5', '7', '0', '0', '0'):	/* shutdown, cancel */
			return true;
		default:
			return sqlstate == ERRCODE_INSUFFICIENT_PRIVILEGE ||
				sqlstate == ERRCODE_OBJECT_IN_USE ||
				sqlstate == ERRCODE_LOCK_NOT_AVAILABLE;
	}
}

/*
 * Returns why the slot is given up, though nothing can be seen of it: its stream
 * has ended with an error again and again, as of WAL that is damaged, and nothing
 * came over it.  NULL otherwise.
 */
static char *
find_stream_fault(ReplMlApply *apply)
{
	int			patience = Max(apply->connection.patience, FEWEST_FAILURES);
	int			sqlstate;

	if (apply->connection.failures < patience)
		return NULL;
	sqlstate = find_stream_error(apply);
	if (may_pass(sqlstate))
		return NULL;
	/* if another slot is no better, a copy after each few failures does not help, either */
	apply->connection.patience = Min(patience * 2, INT_MAX / 2);
	apply->connection.failures = 0;
	return psprintf("Its stream has ended %d times with SQLSTATE %s.", patience,
					unpack_sql_state(sqlstate));
}

/*
 * Says whether a transaction of the peer's server is prepared for longer than
 * a slot should take: then the slot waits until somebody ends it, and
 * stat_apply says so.
 */
static bool
shows_prepared(ReplMlApply *apply)
{
	static const Oid types[3] = {TEXTOID, TEXTOID, TEXTOID};
	ReplMlResult *result = repl_ml_stream_query(apply->connection.stream,
												psprintf("SELECT pg_catalog.quote_literal(gid),"
														 " pg_catalog.format("
														 "'role \"%%s\" in database \"%%s\"',"
														 " owner, database),"
														 " pg_catalog.date_trunc('second',"
														 " prepared)::pg_catalog.text"
														 " FROM pg_catalog.pg_prepared_xacts"
														 " WHERE pg_catalog.clock_timestamp()"
														 " OPERATOR(pg_catalog.-) prepared"
														 " OPERATOR(pg_catalog.>)"
														 " '%d ms'::pg_catalog.interval"
														 " ORDER BY prepared LIMIT 1",
														 SLOT_PATIENCE_MS), 3, types);
	bool		found = repl_ml_stream_next(result);

	/* a slot begins where all that was running then has ended */
	if (found)
	{
		char	   *gid;

		slot_getallattrs(result->slot);
		gid = TextDatumGetCString(result->slot->tts_values[0]);
		repl_ml_apply_show_wait(apply,
								psprintf("the slot on node \"%s\" waits for the prepared "
										 "transaction %s of %s, prepared at %s",
										 apply->peer->node_name, gid,
										 TextDatumGetCString(result->slot->tts_values[1]),
										 TextDatumGetCString(result->slot->tts_values[2])),
								psprintf("Run COMMIT PREPARED %s or ROLLBACK PREPARED %s on that "
										 "server.", gid, gid));
	}
	repl_ml_stream_free(result);
	return found;
}

/*
 * Comes back when no transaction of the peer's server has been prepared for
 * long.
 */
static void
await_prepared(ReplMlApply *apply)
{
	bool		told = false;

	while (shows_prepared(apply))
	{
		if (!told)
			ereport(LOG,
					(errmsg("%s", apply->worker->error_message),
					 errhint("%s", apply->worker->error_hint)));
		told = true;
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, PREPARED_POLL_MS,
						 wait_event_compat("ReplMlPrepared"));
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
	}
	if (told)
		repl_ml_apply_set_state(apply, REPL_ML_WORKER_PREPARING);
}

/*
 * Makes the slot; returns false if a transaction there has kept it from that
 * for so long, ms.
 */
static bool
try_slot(ReplMlApply *apply, const char *name, int patience, XLogRecPtr *start)
{
	static const Oid types[1] = {PG_LSNOID};
	MemoryContext context = CurrentMemoryContext;
	ReplMlResult *volatile result = NULL;

	repl_ml_stream_command(apply->connection.stream,
						   psprintf("SELECT pg_catalog.set_config('lock_timeout', '%d', false)",
									patience));

	/*
	 * making a slot waits for transactions as for locks, so this timeout ends
	 * it
	 */
	PG_TRY();
	{
		result = repl_ml_stream_query(apply->connection.stream,
									  psprintf("SELECT lsn FROM"
											   " pg_catalog.pg_create_logical_replication_slot(%s,"
											   " '%s')",
											   name, REPL_ML_PLUGIN), 1, types);
	}
	PG_CATCH();
	{
		if (geterrcode() != ERRCODE_LOCK_NOT_AVAILABLE)
		{
			errhint("On node \"%s\" run SELECT * FROM repl_ml.check_setup().",
					apply->peer->node_name);
			PG_RE_THROW();
		}
		MemoryContextSwitchTo(context);
		FlushErrorState();
		AbortOutOfAnyTransaction();
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
	if (result == NULL)
		return false;
	if (!repl_ml_stream_next(result))
		elog(ERROR, "no row from pg_create_logical_replication_slot");
	slot_getallattrs(result->slot);
	*start = DatumGetLSN(result->slot->tts_values[0]);
	repl_ml_stream_free(result);
	return true;
}

/*
 * Makes the slot on the peer, in place of one that is of no use; returns its
 * start.  That waits for the transactions that run there, ever longer, so that
 * long ones do not keep it from that for ever; and between two tries for
 * prepared ones, which it names.
 */
static XLogRecPtr
make_slot(ReplMlApply *apply, const char *slot)
{
	char	   *name = quote_literal_cstr(slot);
	int			patience = SLOT_PATIENCE_MS;
	XLogRecPtr	start;

	repl_ml_stream_command(apply->connection.stream,
						   psprintf("SELECT pg_catalog.pg_drop_replication_slot(slot_name)"
									" FROM pg_catalog.pg_replication_slots"
									" WHERE slot_name OPERATOR(pg_catalog.=) %s", name));
	await_prepared(apply);
	while (!try_slot(apply, name, patience, &start))
	{
		await_prepared(apply);
		patience = Min(patience * 2, INT_MAX / 2);
	}
	repl_ml_stream_command(apply->connection.stream,
						   "SELECT pg_catalog.set_config('lock_timeout', '0', false)");
	return start;
}

/* Makes the origin, or sets it back, to where the new slot begins. */
static void
make_origin(const char *origin, XLogRecPtr from)
{
	RepOriginId id = replorigin_by_name(origin, true);

	if (id == InvalidRepOriginId)
		id = repl_ml_origin_create(origin);
	else if (replorigin_session_origin != InvalidRepOriginId)
	{
		replorigin_session_reset();
		replorigin_session_origin = InvalidRepOriginId;
	}
	LockRelationOid(ReplicationOriginRelationId, RowExclusiveLock);
	replorigin_advance(id, from, InvalidXLogRecPtr, true /* go backward */ , true /* WAL log */ );
	UnlockRelationOid(ReplicationOriginRelationId, RowExclusiveLock);
}

/*
 * Orders copies of what the peer wrote before its slot existed.  Not while we
 * join and the copy from the donor is still to come (it waits for the donor to
 * have everything up to the slots), unless this is the donor; and not from a
 * node that joins itself.  But from one that joins, or has joined, with rows of its
 * own always: these are copied when it is ready, and so are we (sync.c), and no
 * position says whether the donor has them.
 */
static void
order_copies(ReplMlApply *apply, const PeerInfo *info, bool rebuilt)
{
	Oid			types[2] = {INT4OID, BOOLOID};
	Datum		values[2] = {Int32GetDatum(apply->peer->node_id), BoolGetDatum(info->brings_rows)};

	if (!rebuilt && strcmp(info->state, "ready") != 0 && !info->brings_rows)
		return;
	repl_ml_spi_execute("SELECT repl_ml.order_copies($1) FROM repl_ml.local_node l"
						" WHERE l.donor OPERATOR(pg_catalog.=) $1 OR $2"
						" OR l.state OPERATOR(pg_catalog.<>) 'joining'",
						2, types, values, NULL);
}
