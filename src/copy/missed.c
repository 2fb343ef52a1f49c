/*
 * missed.c
 *		Changes of the schema that no stream brings: fetched from a peer that has them, and run
 *		in their order.
 *
 * A stream brings a change in its place.  But a link that was made anew, or a node that was
 * set back, has passed over some; and while the node that made one is down, or after it was
 * dropped, who has not got it would wait for ever for what its peers have run.  The rows of
 * such a transaction come later, by the stream or by a copy of their tables.  What cannot be
 * run is parked, and tried again like any other (retry.c).
 *
 * Called by the apply worker, outside transactions.  Locks: those of the statements, and that
 * of who changes the schema (write/schema_change.c), in a transaction for each change.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "executor/executor.h"
#include "executor/spi.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "replication/origin.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

#include "apply/apply.h"
#include "compat.h"
#include "converge/converge.h"
#include "copy/copy.h"
#include "server/server.h"
#include "wire/wire.h"

#define COLUMNS		10			/* of repl_ml.schema_change, as text */

/* A change as a peer has it: its columns as text. */
typedef struct Missed
{
	int64		number;
	int			maker;
	char	   *values[COLUMNS];
} Missed;

static ErrorData *try_missed(ReplMlApply *apply, Missed *missed);
static List *load_missed(WalReceiverConn *conn, int64 upto);
static bool is_settled(int64 number);
static bool is_streaming(int node);
static void run_missed(ReplMlApply *apply, Missed *missed);
static void park_missed(Missed *missed, const ErrorData *error);

/*
 * Runs, in their order, the changes up to this number that the peer has and this node has
 * neither run nor parked.  Unless "all", it ends at the first that a stream is about to bring.
 */
void
repl_ml_missed_fetch(ReplMlApply *apply, WalReceiverConn *conn, int64 upto, bool all)
{
	List	   *missed;
	ListCell   *lc;

	MemoryContextSwitchTo(apply->message_context);
	missed = load_missed(conn, upto);
	foreach(lc, missed)
	{
		Missed	   *one = lfirst(lc);
		ErrorData  *error;

		CHECK_FOR_INTERRUPTS();
		if (is_settled(one->number))
			continue;
		if (!all && is_streaming(one->maker))
			return;
		error = try_missed(apply, one);
		if (error != NULL)
			park_missed(one, error);
		apply->transaction.catalogs_changed = true;
	}
}

/* Runs one change; returns the error that it failed with, or NULL. */
static ErrorData *
try_missed(ReplMlApply *apply, Missed *missed)
{
	ErrorData  *volatile error = NULL;

	PG_TRY();
	{
		run_missed(apply, missed);
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(apply->message_context);
		error = CopyErrorData();
		FlushErrorState();
		AbortOutOfAnyTransaction();
		repl_ml_targets_forget();
		repl_ml_applying = true;
	}
	PG_END_TRY();
	MemoryContextSwitchTo(apply->message_context);
	return error;
}

/*
 * Says whether the peer has to be asked before its stream goes on: the link to it was made anew,
 * or this node joins again, from it, with tables that have run some of the changes.
 */
bool
repl_ml_missed_is_due(ReplMlApply *apply)
{
	bool		due = apply->connection.incomplete;

	repl_ml_begin();
	if (!due && repl_ml_identity_require()->joining)
		due = repl_ml_query_int(psprintf("SELECT 1 FROM repl_ml.local_node l"
										 " WHERE l.donor OPERATOR(pg_catalog.=) %d AND EXISTS"
										 " (SELECT FROM repl_ml.schema_change)",
										 apply->peer->node_id)) != 0;
	repl_ml_commit();
	MemoryContextSwitchTo(apply->message_context);
	return due;
}

/* Returns what the peer has behind what this database was made with: a List of Missed. */
static List *
load_missed(WalReceiverConn *conn, int64 upto)
{
	static const Oid types[COLUMNS] = {TEXTOID, TEXTOID, TEXTOID, TEXTOID, TEXTOID, TEXTOID,
	TEXTOID, TEXTOID, TEXTOID, TEXTOID};
	MemoryContext context = CurrentMemoryContext;
	List	   *all = NIL;
	int64		base;
	ReplMlResult *result;

	repl_ml_begin();
	base = repl_ml_query_int("SELECT l.schema_base FROM repl_ml.local_node l");
	repl_ml_commit();
	MemoryContextSwitchTo(context);
	result = repl_ml_stream_query(conn,
								  psprintf("SELECT c.number::pg_catalog.text,"
										   " c.node_id::pg_catalog.text,"
										   " c.changed_at::pg_catalog.text, c.command_tag,"
										   " c.statement, c.role_name::pg_catalog.text,"
										   " c.search_path, c.settings::pg_catalog.text,"
										   " c.filled::pg_catalog.text,"
										   " c.__repl_clock::pg_catalog.text"
										   " FROM repl_ml.schema_change c WHERE c.number"
										   " OPERATOR(pg_catalog.>) " INT64_FORMAT
										   " AND c.number OPERATOR(pg_catalog.<=) " INT64_FORMAT
										   " ORDER BY c.number", base, upto), COLUMNS, types);
	while (repl_ml_stream_next(result))
	{
		Missed	   *missed = palloc0(sizeof(Missed));

		slot_getallattrs(result->slot);
		for (int i = 0; i < COLUMNS; i++)
			missed->values[i] = result->slot->tts_isnull[i] ? NULL :
				TextDatumGetCString(result->slot->tts_values[i]);
		missed->number = strtoll(missed->values[0], NULL, 10);
		missed->maker = atoi(missed->values[1]);
		all = lappend(all, missed);
	}
	repl_ml_stream_free(result);
	return all;
}

/* Says whether the change has been run here, or is parked or put aside. */
static bool
is_settled(int64 number)
{
	bool		settled;

	repl_ml_begin();
	settled = repl_ml_query_int(psprintf("SELECT 1 WHERE repl_ml.has_run(" INT64_FORMAT ")"
										 " OR EXISTS (SELECT FROM repl_ml.parked_change p"
										 " WHERE p.schema_name OPERATOR(pg_catalog.=) 'repl_ml'"
										 " AND p.table_name OPERATOR(pg_catalog.=) 'schema_change'"
										 " AND (p.change OPERATOR(pg_catalog.->>) 'number')::bigint"
										 " OPERATOR(pg_catalog.=) " INT64_FORMAT ")", number,
										 number)) != 0;
	repl_ml_commit();
	return settled;
}

/* Says whether the stream of this node comes. */
static bool
is_streaming(int node)
{
	bool		streaming = false;

	LWLockAcquire(repl_ml_shared->lock, LW_SHARED);
	foreach_worker(worker, MyDatabaseId)
		streaming |= worker->peer == node && worker->state == REPL_ML_WORKER_STREAMING;
	LWLockRelease(repl_ml_shared->lock);
	return streaming;
}

/* Runs one change, in a transaction of its own. */
static void
run_missed(ReplMlApply *apply, Missed *missed)
{
	ReplMlSource source = {.node = missed->maker,.late = true};
	ReplMlTarget *target;
	HeapTuple	tuple;

	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	PushActiveSnapshot(GetTransactionSnapshot());
	target = repl_ml_targets_get(repl_ml_catalog_oid("schema_change"));
	tuple = BuildTupleFromCStrings(TupleDescGetAttInMetadata(RelationGetDescr(target->rel)),
								   missed->values);
	ExecForceStoreHeapTuple(tuple, target->incoming, false);
	repl_ml_schema_change_apply(apply, RelationGetRelid(target->rel), target->incoming, &source);
	repl_ml_targets_close();
	PopActiveSnapshot();
	replorigin_session_origin_lsn = InvalidXLogRecPtr;
	CommitTransactionCommand();
}

/* Keeps a change that could not be run with its error; its number stands for a position. */
static void
park_missed(Missed *missed, const ErrorData *error)
{
	Oid			types[14];
	Datum		values[14];
	char		nulls[15] = "              ";

	for (int i = 0; i < COLUMNS; i++)
	{
		types[i] = TEXTOID;
		values[i] = CStringGetTextDatum(missed->values[i] == NULL ? "" : missed->values[i]);
	}
	for (int i = COLUMNS; i < 14; i++)
		types[i] = TEXTOID;
	values[10] = CStringGetTextDatum(unpack_sql_state(error->sqlerrcode));
	values[11] = CStringGetTextDatum(error->message);
	values[12] = CStringGetTextDatum(error->detail == NULL ? "" : error->detail);
	nulls[12] = error->detail == NULL ? 'n' : ' ';
	values[13] = CStringGetTextDatum(psprintf("%X/%X",
											  LSN_FORMAT_ARGS((XLogRecPtr) missed->number)));
	StartTransactionCommand();
	repl_ml_spi_execute("INSERT INTO repl_ml.parked_change (origin_node, origin_xid, origin_lsn,"
						" schema_name, table_name, action, change, sqlstate, message, detail)"
						" SELECT $2::integer, '0', $14::pg_catalog.pg_lsn, 'repl_ml',"
						" 'schema_change', 'insert', pg_catalog.jsonb_build_object('number', $1,"
						" 'node_id', $2, 'changed_at', $3, 'command_tag', $4, 'statement', $5,"
						" 'role_name', $6, 'search_path', $7, 'settings', $8, 'filled', $9,"
						" '__repl_clock', $10), $11, $12, $13", 14, types, values, nulls);
	CommitTransactionCommand();
	repl_ml_apply_retry_soon();
	ereport(LOG,
			(errmsg("change %s of the schema is parked: %s", missed->values[0], error->message),
			 errhint("See SELECT * FROM repl_ml.schema_changes.")));
}
