/*
 * starts.c
 *		Starts of members' servers: before a node reads from a peer it knows whether that
 *		may have what some node wrote late, after it had been set back.
 *
 * Who knows that a node had more than its server found at a start tells it so
 * (link.c), and the node comes back under its next id, whose are the late writes then
 * (row/late.c).  But another member, which did not know it, may have read them
 * before, may have written above them, and may be read by one that knows.  So every
 * member writes down the starts from which it reads (repl_ml.peer_start), durably
 * and for all, before it reads what was written since: in its stream that comes before
 * all that it writes above it.  And who finds there that a node was set back reads
 * nothing of such a peer before it knows what the node has become.  If it comes back no more,
 * or had forgotten that start, too, nobody can say whose the writes are: then the rows
 * of that time are listed, and reading goes on.
 *
 * Runs in the apply worker: of a peer's server that it has not read from, before it does
 * (link.c), and before each stream (group/worker.c).  What comes of it in a stream
 * apply/heard.c looks at.  No lock is held while it waits or a peer is asked.
 */
#include "postgres.h"

#include "access/table.h"
#include "access/xact.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "replication/origin.h"
#include "storage/latch.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

#include "apply/apply.h"
#include "compat.h"
#include "copy/copy.h"
#include "row/row.h"
#include "server/server.h"
#include "verify/verify.h"
#include "wire/wire.h"

#define PATIENCE_MS		10000	/* how long the connection waits: then the next one */
#define POLL_MS			200

/* A node that was set back, as repl_ml.find_late() describes it; in the message's memory. */
typedef struct LateNode
{
	int			node_id;
	char	   *node_name;
	char	   *started_at;
	uint64		safe;			/* it had its own up to there */
	bool		gone;			/* it comes back no more */
	char	   *dsn;
	char	   *question;		/* by which it is told */
} LateNode;

/* Rows of a table that know more of a node. */
typedef struct LateRows
{
	Relation	rel;
	const LateNode *late;
	MemoryContext context;
} LateRows;

/* Returns what the peer answers to a query of one text. */
static char *
ask_text(ReplMlApply *apply, const char *query)
{
	static const Oid types[1] = {TEXTOID};
	ReplMlResult *result = repl_ml_stream_query(apply->connection.stream, query, 1, types);
	char	   *answer = NULL;

	if (repl_ml_stream_next(result) &&
		(slot_getallattrs(result->slot), !result->slot->tts_isnull[0]))
		answer = MemoryContextStrdup(apply->message_context,
									 TextDatumGetCString(result->slot->tts_values[0]));
	repl_ml_stream_free(result);
	MemoryContextSwitchTo(apply->message_context);
	if (answer == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_PROTOCOL_VIOLATION),
				 errmsg("node \"%s\" does not say which starts of servers it knows",
						apply->peer->node_name),
				 errhint(REPL_ML_SAME_VERSION_HINT)));
	return answer;
}

/*
 * Called by link.c when the peer has as much as this node knows of it, and before anything
 * is read that its server wrote since its present start: writes down, as a change of this
 * node and durably, at which starts it found what.
 */
void
repl_ml_starts_note(ReplMlApply *apply)
{
	RepOriginId origin = replorigin_session_origin;
	char	   *starts = ask_text(apply,
								  "SELECT repl_ml.server_starts()::pg_catalog.text");

	/* what is written here is this node's, and goes to all peers */
	replorigin_session_origin = InvalidRepOriginId;
	repl_ml_applying = false;
	PG_TRY();
	{
		repl_ml_begin();
		SPI_execute(psprintf("SELECT repl_ml.note_peer_starts(%d, %s)", apply->peer->node_id,
							 quote_literal_cstr(starts)), false, 0);
		ForceSyncCommit();
		repl_ml_commit();
	}
	PG_FINALLY();
	{
		repl_ml_applying = true;
		replorigin_session_origin = origin;
	}
	PG_END_TRY();
	MemoryContextSwitchTo(apply->message_context);
}

/* Sets what is shown by what the peer knows; returns false if that is nothing. */
static bool
find_late(ReplMlApply *apply, const char *known, LateNode *late)
{
	char	   *fields[7];

	SPI_execute(psprintf("SELECT node_id, node_name, started_at, safe_counter, is_gone, dsn,"
						 " question FROM repl_ml.find_late(%s)", quote_literal_cstr(known)),
				false, 1);
	if (repl_ml_spi_text(0, 0) == NULL)
		return false;
	for (int i = 0; i < lengthof(fields); i++)
		fields[i] = MemoryContextStrdup(apply->message_context, repl_ml_spi_text(0, i));
	late->node_id = atoi(fields[0]);
	late->node_name = fields[1];
	late->started_at = fields[2];
	late->safe = strtoull(fields[3], NULL, 10);
	late->gone = fields[4][0] == 't';
	late->dsn = fields[5];
	late->question = fields[6];
	return true;
}

/* ---- rows of which nobody will know whose they are ---- */

/* A visitor: lists a row that knows more of the node than what that found at its start. */
static void
list_row(Relation rel, ReplMlImage *image, TupleTableSlot *slot, void *argument)
{
	LateRows   *rows = argument;
	ReplMlTable *table = repl_ml_table_get(rel);
	MemoryContext old = MemoryContextSwitchTo(rows->context);
	bool		isnull;
	Datum		clock = slot_getattr(slot, table->clock_attnum, &isnull);
	ReplMlUser	saved;
	Datum		key[INDEX_MAX_KEYS];
	Datum		array;
	char	   *row;

	if (!isnull &&
		repl_ml_clock_counter(DatumGetReplMlClockP(clock), rows->late->node_id) > rows->late->safe)
	{
		repl_ml_become_owner(rows->rel, &saved);
		repl_ml_key_from_slot(table, slot, key);
		array = repl_ml_key_to_array(table, key);
		row = repl_ml_history_row_as_json(rel, table->clock_attnum, slot);
		repl_ml_become_self(&saved);
		repl_ml_mend_record(table, array, "none", "set_back", rows->late->node_id, row, NULL);
	}
	MemoryContextSwitchTo(old);
	MemoryContextReset(rows->context);
}

/* Lists the rows of one table. */
static void
list_table(Oid relid, const LateNode *late)
{
	LateRows	rows = {.late = late,.rel = table_open(relid, AccessShareLock)};
	Snapshot	snapshot = RegisterSnapshot(GetLatestSnapshot());

	rows.context = AllocSetContextCreate(CurrentMemoryContext, "repl_ml listed row",
										 ALLOCSET_DEFAULT_SIZES);
	if (repl_ml_table_clock_attnum(relid) != InvalidAttrNumber)
		repl_ml_digests_visit(rows.rel, snapshot, list_row, &rows);
	UnregisterSnapshot(snapshot);
	MemoryContextDelete(rows.context);
	table_close(rows.rel, NoLock);
}

/* Returns the OIDs of the replicated tables that are here, in the caller's memory. */
static List *
find_tables(void)
{
	MemoryContext context = CurrentMemoryContext;
	List	   *tables = NIL;

	SPI_connect();
	SPI_execute("SELECT c.oid FROM repl_ml.replicated_table t JOIN pg_catalog.pg_namespace n"
				" ON n.nspname OPERATOR(pg_catalog.=) t.schema_name JOIN pg_catalog.pg_class c"
				" ON c.relnamespace OPERATOR(pg_catalog.=) n.oid"
				" AND c.relname OPERATOR(pg_catalog.=) t.table_name"
				" WHERE t.state OPERATOR(pg_catalog.=) 'enrolled'"
				" AND c.relkind OPERATOR(pg_catalog.=) ANY ('{r,p}')", true, 0);
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		MemoryContext old = MemoryContextSwitchTo(context);

		tables = lappend_oid(tables, strtoul(repl_ml_spi_text(i, 0), NULL, 10));
		MemoryContextSwitchTo(old);
	}
	SPI_finish();
	return tables;
}

/*
 * Lists, in repl_ml.repair_history, the rows that may be of either time: of two of one row the
 * later one stays, whether it knew the other or not.  Once for each start.
 */
static void
list_rows(ReplMlApply *apply, const LateNode *late)
{
	ListCell   *lc;

	StartTransactionCommand();
	PushActiveSnapshot(GetTransactionSnapshot());
	foreach(lc, find_tables())
	{
		CHECK_FOR_INTERRUPTS();
		list_table(lfirst_oid(lc), late);
	}
	repl_ml_spi_execute(psprintf("UPDATE repl_ml.dropped_node"
								 " SET listed = pg_catalog.array_append(listed, %s)"
								 " WHERE node_id OPERATOR(pg_catalog.=) %d",
								 quote_literal_cstr(late->started_at), late->node_id),
						0, NULL, NULL, NULL);
	PopActiveSnapshot();
	ForceSyncCommit();
	CommitTransactionCommand();
	MemoryContextSwitchTo(apply->message_context);
	ereport(WARNING,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("node \"%s\" had been set back when its server was started at %s, and comes "
					"back no more", late->node_name, late->started_at),
			 errdetail("Of a row that it wrote before and after that the later version stays, and "
					   "may not have known the other one."),
			 errhint("On each member see SELECT * FROM repl_ml.repair_history WHERE verdict = "
					 "'set_back'.")));
}

/* ---- waiting ---- */

/* Looks once; returns false if there is nothing to wait for. */
static bool
has_late(ReplMlApply *apply, LateNode *late)
{
	char	   *known = ask_text(apply, "SELECT repl_ml.all_known()::pg_catalog.text");
	bool		found;

	repl_ml_begin();
	found = find_late(apply, known, late);
	/* whoever knows it may have no way to tell it */
	if (found && !late->gone)
		SPI_execute(psprintf("SELECT repl_ml.ask_members(ARRAY[%s], %s)",
							 quote_literal_cstr(late->dsn), quote_literal_cstr(late->question)),
					false, 0);
	repl_ml_commit();
	MemoryContextSwitchTo(apply->message_context);
	return found;
}

/*
 * Called by the apply worker when it has the peer's catalogs, before it reads anything else
 * of it: comes back when what some node wrote late is known to be whose it is.  After a
 * while it raises an error instead, so that the worker does what else it has to.
 */
void
repl_ml_starts_await(ReplMlApply *apply)
{
	TimestampTz began = GetCurrentTimestamp();
	LateNode	late;

	while (has_late(apply, &late))
	{
		if (late.gone)
		{
			list_rows(apply, &late);
			continue;
		}
		if (repl_ml_apply_is_to_pause(apply) ||
			TimestampDifferenceExceeds(began, GetCurrentTimestamp(), PATIENCE_MS))
			repl_ml_heard_refuse(apply, late.node_name, late.started_at);
		repl_ml_apply_show_wait(apply,
								psprintf("node \"%s\" may have rows that node \"%s\" wrote after "
										 "it had been set back", apply->peer->node_name,
										 late.node_name),
								"It comes back by itself, and is waited for.");
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, POLL_MS,
						 wait_event_compat("ReplMlSetBack"));
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
		repl_ml_sync_catalogs(apply, apply->connection.stream);
	}
	repl_ml_apply_set_state(apply, REPL_ML_WORKER_PREPARING);
}
