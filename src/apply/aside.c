/*
 * aside.c
 *		Transactions put aside: those that need a lock which a commit holds that
 *		itself waits to be acknowledged, or somebody who waits for such a commit.
 *
 * Two nodes' commits that write one row and wait for each other would wait
 * for ever: each is applied on the other node only after the row's lock is
 * released there.  So a transaction that meets such a commit is kept, durably
 * and whole, among the parked changes, and counts as applied; the worker tries
 * it again, as one transaction, as soon as the commit has been let go.  Others
 * may overtake it: applying is commutative.  Only locks of waiting commits
 * count; for others the worker waits as long as its lock_timeout allows.
 *
 * What a change is waiting for is looked at by a timer while it waits, so
 * nothing is paid when it does not, and only where commits have waited lately.
 * The transaction that met the commit is rolled back, and its messages, which
 * replay.c has kept, are put aside one by one.
 *
 * Called by worker.c, replay.c and dispatch.c; uses park.c.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "common/pg_prng.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "replication/syncrep.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/lock.h"
#include "storage/proc.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timeout.h"

#include "apply/apply.h"
#include "commit/commit.h"
#include "compat.h"
#include "converge/converge.h"
#include "server/server.h"

#define LOOK_INTERVAL_MS	2
#define RETRY_PATIENCE_MS	10	/* and up to as much again */
#define RETRY_INTERVAL_MS	5
#define RETRY_BATCH			"100"
#define LONGEST_CHAIN		8

/* May the transaction being applied have to be put aside?  Set as it begins, by this file. */
static bool keeping = false;

/* Set while a change is watched: when to give up, and by the timer that we did. */
static TimestampTz give_up_at = 0;
static volatile sig_atomic_t blocked = false;
static TimeoutId timeout_id = MAX_TIMEOUTS;

static void watch(int patience);
static void look(void);
static bool waits_for_commit(PGPROC *proc, int depth);
static bool try_again(ReplMlApply *apply, int64 id);
static ErrorData *attempt(ReplMlApply *apply, int64 id, bool whole);
static void hand_over_crashed(ReplMlApply *apply);
static void hand_over(int64 id, ErrorData *error);

/* Before a transaction of the stream is applied: is there any commit it may have to be put aside for? */
void
repl_ml_aside_begin(void)
{
	keeping = repl_ml_quorum_in_use();
}

/* May the transaction being applied have to be put aside? */
bool
repl_ml_aside_is_keeping(void)
{
	return keeping;
}

/* Begins to watch what a change waits for. */
void
repl_ml_aside_watch(void)
{
	if (keeping)
		watch(0);
}

/* Watches until repl_ml_aside_unwatch; an error 57014 interrupts the change that has waited too long. */
static void
watch(int patience)
{
	if (timeout_id == MAX_TIMEOUTS)
		timeout_id = RegisterTimeout(USER_TIMEOUT, look);
	blocked = false;
	give_up_at = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), patience);
	enable_timeout_every(timeout_id, TimestampTzPlusMilliseconds(GetCurrentTimestamp(), LOOK_INTERVAL_MS), LOOK_INTERVAL_MS);
}

/* Ends watching; what the timer asked for and nobody has noticed is forgotten. */
void
repl_ml_aside_unwatch(void)
{
	if (give_up_at == 0)
		return;
	disable_timeout(timeout_id, false);
	if (blocked)
		QueryCancelPending = false;
	blocked = false;
	give_up_at = 0;
}

/* Is the error being handled the one that a waiting commit was in the way? */
bool
repl_ml_aside_is_blocked(void)
{
	return blocked && geterrcode() == ERRCODE_QUERY_CANCELED;
}

/* The timer's handler, which may also run while the process ends: interrupts the change if it waits for a commit that waits. */
static void
look(void)
{
	if (blocked || proc_exit_inprogress || MyProc == NULL || !waits_for_commit(MyProc, 0) || GetCurrentTimestamp() < give_up_at)
		return;
	blocked = true;
	InterruptPending = true;
	QueryCancelPending = true;
	SetLatch(MyLatch);
}

/* The process that runs the transaction, or of which it is a part; NULL if none does. */
static PGPROC *
holder_of(TransactionId xid)
{
	for (int i = 0; i < MaxBackends; i++)
	{
		PGPROC	   *proc = &ProcGlobal->allProcs[i];

		if (proc->xid == xid)
			return proc;
		for (int j = 0; j < Min(proc->subxidStatus.count, PGPROC_MAX_CACHED_SUBXIDS); j++)
		{
			if (proc->subxids.xids[j] == xid)
				return proc;
		}
	}
	return NULL;
}

/* Does any process wait for a commit that waits? */
static bool
anybody_waits_for_commit(int depth)
{
	for (int i = 0; i < MaxBackends; i++)
	{
		LOCK	   *lock = ProcGlobal->allProcs[i].waitLock;

		if (lock != NULL && lock->tag.locktag_type == LOCKTAG_TRANSACTION &&
			waits_for_commit(&ProcGlobal->allProcs[i], depth))
			return true;
	}
	return false;
}

/* Does any commit wait? */
static bool
any_commit_waits(void)
{
	for (int i = 0; i < MaxBackends; i++)
	{
		if (ProcGlobal->allProcs[i].syncRepState == SYNC_REP_WAITING)
			return true;
	}
	return false;
}

/*
 * Does the process wait for a commit that waits, for somebody who does, or,
 * in the line for a row, behind somebody who does?  Looks at others' locks
 * without locks of its own: a wrong answer costs a repetition.
 */
static bool
waits_for_commit(PGPROC *proc, int depth)
{
	LOCK	   *lock = proc->waitLock;
	PGPROC	   *holder;

	if (lock == NULL || depth > LONGEST_CHAIN)
		return false;
	switch (lock->tag.locktag_type)
	{
		case LOCKTAG_TRANSACTION:
			holder = holder_of(lock->tag.locktag_field1);
			return holder != NULL && holder != proc &&
				(holder->syncRepState == SYNC_REP_WAITING || waits_for_commit(holder, depth + 1));
		case LOCKTAG_TUPLE:
			return anybody_waits_for_commit(depth + 1);
		case LOCKTAG_RELATION:
			return any_commit_waits();
		default:
			return false;
	}
}

/* Keeps a change of a transaction that is put aside, in the caller's transaction. */
void
repl_ml_aside_put(const ReplMlSource *source, LogicalRepRelId id, char action, LogicalRepTupleData *tuple)
{
	ErrorData	error = {
		.sqlerrcode = ERRCODE_LOCK_NOT_AVAILABLE,
		.message = "waits for the lock of a commit that waits to be acknowledged"
	};

	repl_ml_park(source, repl_ml_relation_find(id), action, tuple, &error, true);
	CommandCounterIncrement();
}

/*
 * The first changes of transactions put aside behind one of them, oldest
 * first, as a list of palloc'd int64; or of one transaction all changes.
 */
static List *
waiting_changes(int64 id, bool of_its_transaction, MemoryContext context)
{
	List	   *ids = NIL;
	Oid			types[1] = {INT8OID};
	Datum		values[1] = {Int64GetDatum(id)};

	repl_ml_begin();
	SPI_execute_with_args(of_its_transaction ?
						  "SELECT p.id FROM repl_ml.parked_change p JOIN repl_ml.parked_change f USING (origin_node, origin_lsn)"
						  " WHERE p.put_aside AND f.put_aside AND f.id OPERATOR(pg_catalog.=) $1 ORDER BY p.id" :
						  "SELECT pg_catalog.min(id) FROM repl_ml.parked_change WHERE put_aside GROUP BY origin_node, origin_lsn"
						  " HAVING pg_catalog.min(id) OPERATOR(pg_catalog.>) $1 ORDER BY 1 LIMIT " RETRY_BATCH,
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
 * Tries the transactions put aside again, whichever peer's, outside a
 * transaction of the stream.  Ends at the first one that is still blocked,
 * because the stream must not wait, and goes on behind it the next time;
 * apply->aside tells whether some are left.
 */
void
repl_ml_aside_retry(ReplMlApply *apply)
{
	static TimestampTz last = 0;
	static int64 behind = 0;
	List	   *ids;
	ListCell   *lc;

	if (!apply->aside ||
		!TimestampDifferenceExceeds(last, GetCurrentTimestamp(), RETRY_INTERVAL_MS))
		return;
	hand_over_crashed(apply);
	ids = waiting_changes(behind, false, apply->message_context);
	apply->aside = ids != NIL || behind != 0;
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

/*
 * The transaction whose first change this is.  False if somebody is still in
 * its way.  One that fails for good is applied change by change, and what
 * fails of it becomes a person's.
 */
static bool
try_again(ReplMlApply *apply, int64 id)
{
	ErrorData  *error = attempt(apply, id, true);
	bool		done = true;
	ListCell   *lc;

	if (error == NULL)
		return true;
	if (!repl_ml_dispatch_is_permanent(error->sqlerrcode))
		return false;
	foreach(lc, waiting_changes(id, true, apply->message_context))
	{
		int64		change = *(int64 *) lfirst(lc);

		error = attempt(apply, change, false);
		if (error != NULL && repl_ml_dispatch_is_permanent(error->sqlerrcode))
			hand_over(change, error);
		else if (error != NULL)
			done = false;
	}
	return done;
}

/* Applies one change put aside, or its whole transaction; the error it failed with, or NULL. */
static ErrorData *
attempt(ReplMlApply *apply, int64 id, bool whole)
{
	ErrorData  *volatile error = NULL;

	PG_TRY();
	{
		SetCurrentStatementStartTimestamp();
		StartTransactionCommand();
		PushActiveSnapshot(GetTransactionSnapshot());
		MemoryContextSwitchTo(apply->message_context);
		repl_ml_crash_retries(id, false);
		watch(RETRY_PATIENCE_MS + (int) pg_prng_uint64_range(&pg_global_prng_state, 0, RETRY_PATIENCE_MS));
		apply->transaction.catalogs_changed |= repl_ml_park_retry(id, apply->self, whole);
		repl_ml_aside_unwatch();
		repl_ml_targets_close();
		PopActiveSnapshot();
		replorigin_session_origin_lsn = InvalidXLogRecPtr;
		CommitTransactionCommand();
		if (apply->volatile_since == 0)
			apply->volatile_since = GetCurrentTimestamp();
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(apply->message_context);
		error = CopyErrorData();
		FlushErrorState();
		repl_ml_aside_unwatch();
		AbortOutOfAnyTransaction();
		repl_ml_targets_forget();
		repl_ml_applying = true;
	}
	PG_END_TRY();
	repl_ml_crash_rests();
	MemoryContextSwitchTo(apply->message_context);
	CHECK_FOR_INTERRUPTS();
	return error;
}

/* The change, and with it its transaction, that was being tried when the server went down. */
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
	foreach(lc, waiting_changes(id, true, apply->message_context))
		hand_over(*(int64 *) lfirst(lc), &error);
	repl_ml_park_ban(id, &error);
}

/* Makes the change one that a person has to look at: trying again will not help. */
static void
hand_over(int64 id, ErrorData *error)
{
	Oid			types[3] = {INT8OID, TEXTOID, TEXTOID};
	Datum		values[3] = {Int64GetDatum(id),
		CStringGetTextDatum(unpack_sql_state(error->sqlerrcode)),
	CStringGetTextDatum(error->message)};

	StartTransactionCommand();
	repl_ml_spi_execute("UPDATE repl_ml.parked_change SET put_aside = false, sqlstate = $2, message = $3"
						" WHERE id OPERATOR(pg_catalog.=) $1", 3, types, values, NULL);
	CommitTransactionCommand();
	ereport(LOG,
			(errmsg("a change that was put aside is parked: %s", error->message),
			 errhint("See SELECT * FROM repl_ml.parked_changes.")));
}
