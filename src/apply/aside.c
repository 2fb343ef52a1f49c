/*
 * aside.c
 *		Transactions put aside: those that need a lock which a commit holds that
 *		itself waits to be acknowledged, or somebody who waits for such a commit, or
 *		a large transaction that is applied beside.
 *
 * Two nodes' commits that write one row and wait for each other would wait
 * for ever: each is applied on the other node only after the row's lock is
 * released there.  So a transaction that meets such a commit is kept, durably
 * and whole, among the parked changes, and counts as applied; the worker tries
 * it again, as one transaction, as soon as the commit has been let go.  Others
 * may overtake it: applying is commutative.  Only locks of waiting commits
 * and of large transactions count (locked.c, which looks for them only where
 * there may be any); what is behind others is parked in the end, and does not
 * count.  Large transactions are put aside, too, in another form: see pieces.c.
 *
 * The transaction that met the commit is rolled back, and its messages, which
 * replay.c has kept, are put aside one by one.
 *
 * Called by group/worker.c, replay.c and dispatch.c; uses park.c and again.c.
 * Locks: those of the changes it tries, for a moment; none between two tries.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "common/pg_prng.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"

#include "apply/apply.h"
#include "commit/commit.h"
#include "compat.h"
#include "converge/converge.h"
#include "server/server.h"

#define RETRY_PATIENCE_MS	10	/* and up to as much again */
#define RETRY_INTERVAL_MS	5
#define RETRY_BATCH			"100"

/* May the transaction being applied have to be put aside?  Set as it begins, by this file. */
static bool keeping = false;

static bool try_again(ReplMlApply *apply, int64 id);
static ErrorData *try_aside(ReplMlApply *apply, int64 id, bool whole);
static void hand_over_crashed(ReplMlApply *apply);
static void hand_over(int64 id, ErrorData *error);

/*
 * Finds out, before a transaction of the stream is applied, whether there is
 * any commit it may have to be put aside for.
 */
void
repl_ml_aside_begin(void)
{
	keeping = repl_ml_quorum_in_use() || repl_ml_bulk_runs();
}

/* Says whether the transaction being applied may have to be put aside. */
bool
repl_ml_aside_is_keeping(void)
{
	return keeping || repl_ml_bulk_runs();
}

/*
 * Keeps a change of a transaction that is put aside, in the caller's
 * transaction.
 */
void
repl_ml_aside_put(const ReplMlSource *source, LogicalRepRelId id, char action,
				  LogicalRepTupleData *tuple)
{
	ErrorData	error = {
		.sqlerrcode = ERRCODE_LOCK_NOT_AVAILABLE,
		.message = "waits for the lock of a commit that waits to be acknowledged, or of a large "
		"transaction"
	};

	repl_ml_park(source, repl_ml_relation_find(id), action, tuple, &error, true);
	CommandCounterIncrement();
}

/*
 * Returns the first changes of transactions put aside behind one of them,
 * oldest first, as a list of palloc'd int64; or of one transaction all
 * changes.
 */
static List *
find_waiting(int64 id, bool of_its_transaction, MemoryContext context)
{
	List	   *ids = NIL;
	Oid			types[1] = {INT8OID};
	Datum		values[1] = {Int64GetDatum(id)};

	repl_ml_begin();
	SPI_execute_with_args(of_its_transaction ?
						  "SELECT p.id FROM repl_ml.parked_change p"
						  " JOIN repl_ml.parked_change f USING (origin_node, origin_lsn)"
						  " WHERE p.put_aside AND f.put_aside AND f.id OPERATOR(pg_catalog.=) $1"
						  " ORDER BY p.id" :
						  "SELECT pg_catalog.min(id) FROM repl_ml.parked_change WHERE put_aside"
						  " AND action OPERATOR(pg_catalog.<>) '" REPL_ML_BULK "'"
						  " GROUP BY origin_node, origin_lsn"
						  " HAVING pg_catalog.min(id) OPERATOR(pg_catalog.>) $1 ORDER BY 1"
						  " LIMIT " RETRY_BATCH,
						  1, types, values, NULL, true, 0);
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		MemoryContext old = MemoryContextSwitchTo(context);
		int64	   *found = palloc(sizeof(int64));

		*found = strtoll(repl_ml_spi_text(i, 0), NULL, 10);
		ids = lappend(ids, found);
		MemoryContextSwitchTo(old);
	}
	repl_ml_commit();
	MemoryContextSwitchTo(context);
	return ids;
}

/*
 * Tries the transactions put aside again, whichever peer's, for the apply
 * worker outside a transaction of the stream.  Ends at the first one that is
 * still blocked, because the stream must not wait, and goes on behind it the
 * next time; apply->retry.aside tells whether some are left.
 */
void
repl_ml_aside_retry(ReplMlApply *apply)
{
	static TimestampTz last = 0;
	static int64 behind = 0;
	List	   *ids;
	ListCell   *lc;

	if (!apply->retry.aside ||
		!TimestampDifferenceExceeds(last, GetCurrentTimestamp(), RETRY_INTERVAL_MS))
		return;
	hand_over_crashed(apply);
	ids = find_waiting(behind, false, apply->message_context);

	/* behind the last one it begins with the first again */
	apply->retry.aside = ids != NIL || behind != 0;
	behind = 0;
	foreach(lc, ids)
	{
		int64		id = *(int64 *) lfirst(lc);

		if (!try_again(apply, id))
		{
			behind = id;
			break;
		}
	}
	last = GetCurrentTimestamp();
	repl_ml_positions_advanced();
}

/* Says whether the transaction of the change is applied as one, or not at all. */
static bool
is_whole(int64 id)
{
	bool		whole;

	StartTransactionCommand();
	whole = repl_ml_schema_change_is_in(id);
	CommitTransactionCommand();
	return whole;
}

/*
 * Tries the transaction whose first change this is.  Returns false if somebody
 * is still in its way.  One that fails for good is applied change by change,
 * and what fails of it becomes a person's; all of one that changes the schema.
 */
static bool
try_again(ReplMlApply *apply, int64 id)
{
	ErrorData  *error = try_aside(apply, id, true);
	bool		done = true;
	bool		whole;
	ListCell   *lc;

	if (error == NULL)
		return true;
	if (!repl_ml_dispatch_is_permanent(error->sqlerrcode))
		return false;
	whole = is_whole(id);
	foreach(lc, find_waiting(id, true, apply->message_context))
	{
		int64		change = *(int64 *) lfirst(lc);

		if (!whole)
			error = try_aside(apply, change, false);
		if (error != NULL && repl_ml_dispatch_is_permanent(error->sqlerrcode))
			hand_over(change, error);
		else if (error != NULL)
			done = false;
	}
	return done;
}

/*
 * Applies one change put aside, or its whole transaction; returns the error it
 * failed with, or NULL.  Its patience is random, so that two nodes do not let
 * go at the same moment again and again.
 */
static ErrorData *
try_aside(ReplMlApply *apply, int64 id, bool whole)
{
	ReplMlParkedTry try = {.id = id,.whole = whole};
	int			more = (int) pg_prng_uint64_range(&pg_global_prng_state, 0, RETRY_PATIENCE_MS);

	return repl_ml_again_attempt(apply, &try, repl_ml_again_join_aside, RETRY_PATIENCE_MS + more);
}

/*
 * Makes the change, and with it its transaction, that was being tried when the
 * server went down a person's.
 */
static void
hand_over_crashed(ReplMlApply *apply)
{
	ErrorData	error = {
		.sqlerrcode = ERRCODE_EXTERNAL_ROUTINE_EXCEPTION,
		.message = REPL_ML_CRASHED_AGAIN
	};
	int64		id = repl_ml_crash_retried();
	ListCell   *lc;

	if (id == 0)
		return;
	foreach(lc, find_waiting(id, true, apply->message_context))
		hand_over(*(int64 *) lfirst(lc), &error);
	repl_ml_park_ban(id, &error);
}

/*
 * Makes the change one that a person has to look at: trying again will not
 * help.
 */
static void
hand_over(int64 id, ErrorData *error)
{
	Oid			types[3] = {INT8OID, TEXTOID, TEXTOID};
	Datum		values[3] = {Int64GetDatum(id),
		CStringGetTextDatum(unpack_sql_state(error->sqlerrcode)),
	CStringGetTextDatum(error->message)};

	StartTransactionCommand();
	repl_ml_spi_execute("UPDATE repl_ml.parked_change"
						" SET put_aside = false, sqlstate = $2, message = $3"
						" WHERE id OPERATOR(pg_catalog.=) $1", 3, types, values, NULL);
	CommitTransactionCommand();
	ereport(LOG,
			(errmsg("a change that was put aside is parked: %s", error->message),
			 errhint("See SELECT * FROM repl_ml.parked_changes.")));
}
