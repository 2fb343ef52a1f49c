/*
 * position.c
 *		Up to where this node has every node's WAL: causality tokens for
 *		clients, and waiting until a token is covered.
 *
 * A commit is a position in its node's WAL, and a node that has applied all
 * before it shows it.  Apply workers tell in shared memory how far they are;
 * a change that is put aside (apply/aside.c) counts as not applied here.
 * Whoever waits sleeps on repl_ml_shared->advanced, which the workers signal.
 *
 * Not here: what members have acknowledged (commit/members.c), and asking them
 * how far they are (barrier.c).  repl_ml_shared->lock is taken to read the
 * workers, and not held while anybody waits.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/xact.h"
#include "access/xlog.h"
#include "access/xlog_internal.h"
#include "miscadmin.h"
#include "storage/condition_variable.h"
#include "storage/proclist.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/pg_lsn.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "commit/commit.h"
#include "compat.h"
#include "read/read.h"
#include "server/server.h"
#include "wire/wire.h"

#define PARKED_TABLE		"parked_change"
#define PUT_ASIDE_INDEX		"parked_change_put_aside_idx"
#define LONGEST_SLEEP_MS	1000

enum
{
	Anum_parked_origin_node = 3,
	Anum_parked_origin_lsn = 5
};

static ReplMlClock *without_put_aside(const ReplMlClock *received);

/*
 * Returns up to where this node has received, and applied or put aside, each
 * node's WAL; its own up to the end.  Sets *complete to false if that is not
 * known of some member yet, as shortly after a server start.  Needs no
 * transaction.
 */
ReplMlClock *
repl_ml_positions_received(uint16 self, bool *complete)
{
	ReplMlClockEntry entries[REPL_ML_MAX_CLOCK_ENTRIES];
	ReplMlClock *result;
	int			members[REPL_ML_MAX_WORKERS];
	int			count = 0;
	int			member_count = repl_ml_members_peers(members);

	entries[count++] = (ReplMlClockEntry) {.node = self,.counter = GetXLogInsertRecPtr()};
	LWLockAcquire(repl_ml_shared->lock, LW_SHARED);
	for (int i = 0; i < REPL_ML_MAX_WORKERS && count < lengthof(entries); i++)
	{
		ReplMlWorker *worker = &repl_ml_shared->workers[i];

		if (worker->database == MyDatabaseId && worker->peer != 0 && worker->covered_known)
			entries[count++] =
				(ReplMlClockEntry) {.node = worker->peer,.counter = Max(worker->covered_lsn, 1)};
	}
	LWLockRelease(repl_ml_shared->lock);

	/* one by one, as workers are in no order */
	result = repl_ml_clock_empty();
	for (int i = 0; i < count; i++)
		result = repl_ml_clock_merge(result, repl_ml_clock_from_entries(&entries[i], 1));
	*complete = true;
	for (int i = 0; i < member_count; i++)
		*complete &= repl_ml_clock_counter(result, members[i]) != 0;
	return result;
}

/*
 * Returns up to where each node's WAL is applied and visible here.  Takes no
 * transaction snapshot.
 */
ReplMlClock *
repl_ml_positions(void)
{
	bool		complete;

	return without_put_aside(repl_ml_positions_received(repl_ml_identity_require()->node_id,
														&complete));
}

/*
 * Returns these positions, each of which ends before the first change of the
 * node that is put aside.
 */
static ReplMlClock *
without_put_aside(const ReplMlClock *received)
{
	Relation	rel = table_open(repl_ml_catalog_oid(PARKED_TABLE), AccessShareLock);
	SysScanDesc scan = systable_beginscan(rel, repl_ml_catalog_oid(PUT_ASIDE_INDEX), true, NULL, 0,
										  NULL);
	int			count = repl_ml_clock_count(received);
	ReplMlClockEntry *entries = palloc(count * sizeof(ReplMlClockEntry));
	HeapTuple	tuple;
	ReplMlClock *result;

	for (int i = 0; i < count; i++)
		entries[i] = repl_ml_clock_entry(received, i);
	while (HeapTupleIsValid(tuple = systable_getnext(scan)))
	{
		bool		isnull;
		TupleDesc	desc = RelationGetDescr(rel);
		int			node =
			DatumGetInt32(heap_getattr(tuple, Anum_parked_origin_node, desc, &isnull));
		XLogRecPtr	lsn = DatumGetLSN(heap_getattr(tuple, Anum_parked_origin_lsn, desc, &isnull));

		/* a position says that all before it is here */
		for (int i = 0; i < count; i++)
		{
			if (entries[i].node == node && entries[i].counter >= lsn)
				entries[i].counter = Max(lsn - 1, 1);
		}
	}
	systable_endscan(scan);
	table_close(rel, AccessShareLock);
	result = repl_ml_clock_from_entries(entries, count);
	pfree(entries);
	return result;
}

/*
 * Says whether somebody waits, for apply workers that would let more come.
 * Looks without a lock: a hint.
 */
bool
repl_ml_position_is_awaited(void)
{
	return !proclist_is_empty(&repl_ml_shared->advanced.wakeup);
}

/* Wakes the apply workers, which let no more come when somebody waits. */
static void
hurry_workers(void)
{
	LWLockAcquire(repl_ml_shared->lock, LW_SHARED);
	foreach_worker(worker, MyDatabaseId)
	{
		if (worker->peer != 0 && worker->pid != 0)
			SetLatch(worker->latch);
	}
	LWLockRelease(repl_ml_shared->lock);
}

/*
 * Returns the end of an interval that begins now; raises an error if it is
 * negative.
 */
TimestampTz
repl_ml_deadline(Datum timeout)
{
	TimestampTz now = GetCurrentTimestamp();
	TimestampTz deadline = DatumGetTimestampTz(DirectFunctionCall2(timestamptz_pl_interval,
																   TimestampTzGetDatum(now),
																   timeout));

	if (deadline < now)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("timeout must not be negative"),
				 errhint("For example: '5 s'.")));
	return deadline;
}

/*
 * Sleeps until something may have changed; returns false if the deadline has
 * passed.  The caller looks before and after, and ends with
 * ConditionVariableCancelSleep.
 */
bool
repl_ml_position_wait(TimestampTz deadline, const char *wait_event)
{
	long		left = TimestampDifferenceMilliseconds(GetCurrentTimestamp(), deadline);
	bool		is_first = !repl_ml_position_is_awaited();

	if (left <= 0)
		return false;
	/* the first time it does not sleep, but only gets ready to */
	(void) ConditionVariableTimedSleep(&repl_ml_shared->advanced, Min(left, LONGEST_SLEEP_MS),
									   wait_event_compat(wait_event));
	if (is_first)
		hurry_workers();
	CHECK_FOR_INTERRUPTS();
	return true;
}

/*
 * Returns of which nodes less is here than wanted, as words for an error; NULL
 * if of none.
 */
char *
repl_ml_positions_lacking(const ReplMlClock *wanted, const ReplMlClock *have)
{
	StringInfoData text;

	initStringInfo(&text);
	for (int i = 0; i < repl_ml_clock_count(wanted); i++)
	{
		ReplMlClockEntry entry = repl_ml_clock_entry(wanted, i);
		XLogRecPtr	here = repl_ml_clock_counter(have, entry.node);

		if (here < entry.counter)
			appendStringInfo(&text, "%snode %d up to %X/%X instead of %X/%X",
							 text.len > 0 ? ", " : "", entry.node,
							 LSN_FORMAT_ARGS(here), LSN_FORMAT_ARGS((XLogRecPtr) entry.counter));
	}
	return text.len > 0 ? text.data : NULL;
}

/*
 * Returns the end of the WAL that there is before a position that
 * GetXLogInsertRecPtr has returned: behind the header of a page that has no record so
 * far nothing can be flushed.  And nobody may ask for just the header: walsenders that
 * see that it is flushed read the page again and again, and send nothing any more.
 */
static XLogRecPtr
get_end_before(XLogRecPtr lsn)
{
	XLogRecPtr	page = lsn - lsn % XLOG_BLCKSZ;
	int			header = XLogSegmentOffset(page, wal_segment_size) == 0 ? SizeOfXLogLongPHD :
		SizeOfXLogShortPHD;

	return lsn % XLOG_BLCKSZ <= header ? page : lsn;
}

/*
 * Returns a token for everything that can have been seen or written here so
 * far, and sees to it that peers will be told of all of it: at once, where
 * somebody is about to wait for that, or within a fraction of a second.
 */
ReplMlClock *
repl_ml_positions_to_share(bool at_once)
{
	ReplMlClock *positions = repl_ml_positions();
	XLogRecPtr	end = get_end_before(repl_ml_clock_counter(positions,
														   repl_ml_identity()->node_id));

	/*
	 * nor does anybody flush what is no transaction's (pruning), before the
	 * next heartbeat
	 */
	XLogSetAsyncXactLSN(end);
	if (at_once)
		XLogFlush(end);
	/* the peers will be asked for all of it, also for what is news to none */
	repl_ml_news_begin();
	repl_ml_news_end();
	repl_ml_news_tell();
	return positions;
}

PG_FUNCTION_INFO_V1(repl_ml_current_vector);

/*
 * repl_ml.current_vector(): returns a token for everything that a client can
 * have seen or written here so far.
 */
Datum
repl_ml_current_vector(PG_FUNCTION_ARGS)
{
	PG_RETURN_POINTER(repl_ml_positions_to_share(false));
}

/* Raises an error where what is waited for could not be seen afterwards. */
static void
require_fresh_snapshots(const char *what)
{
	if (IsolationUsesXactSnapshot() && IsTransactionBlock())
		ereport(ERROR,
				(errcode(ERRCODE_ACTIVE_SQL_TRANSACTION),
				 errmsg("function \"%s\" cannot be used in a transaction that sees only what was "
						"there when it began", what),
				 errhint("Call it before BEGIN, or use READ COMMITTED.")));
}

PG_FUNCTION_INFO_V1(repl_ml_wait_for_vector);

/*
 * repl_ml.wait_for_vector(vector, timeout): what a token stands for is visible
 * here when it returns.
 */
Datum
repl_ml_wait_for_vector(PG_FUNCTION_ARGS)
{
	ReplMlClock *wanted;
	TimestampTz deadline;
	char	   *lacking;

	repl_ml_shmem_require();
	repl_ml_refuse_nulls(fcinfo);
	require_fresh_snapshots("wait_for_vector");
	wanted = PG_GETARG_REPL_ML_CLOCK_P(0);
	deadline = repl_ml_deadline(PG_GETARG_DATUM(1));

	/* looked up anew each time: what is put aside holds a position back, too */
	while ((lacking = repl_ml_positions_lacking(wanted, repl_ml_positions())) != NULL)
	{
		if (!repl_ml_position_wait(deadline, "ReplMlWaitForVector"))
			ereport(ERROR,
					(errcode(ERRCODE_QUERY_CANCELED),
					 errmsg("this node does not have everything the vector stands for yet"),
					 errdetail("It has %s.", lacking),
					 errhint("See SELECT * FROM repl_ml.stat_apply.")));
	}
	ConditionVariableCancelSleep();
	PG_RETURN_VOID();
}

PG_FUNCTION_INFO_V1(repl_ml_barrier);

/*
 * repl_ml.barrier(timeout): everything acknowledged anywhere before the call
 * is visible here when it returns.
 */
Datum
repl_ml_barrier(PG_FUNCTION_ARGS)
{
	repl_ml_shmem_require();
	repl_ml_refuse_nulls(fcinfo);
	require_fresh_snapshots("barrier");
	repl_ml_barrier_run(repl_ml_deadline(PG_GETARG_DATUM(0)));
	PG_RETURN_VOID();
}
