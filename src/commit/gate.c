/*
 * gate.c
 *		Strong tables of this node are read when what they show has been acknowledged by a
 *		majority, or never was this node's.
 *
 * A commit that waits to be acknowledged is seen by nobody, as core ends the transaction after
 * the wait.  Two kinds of commits are seen before that: those whose wait was given up (40003, a
 * session that was ended), and those that waited when the server went down.  Another node may
 * take over without them, and then they are void; so a statement that could see one waits until
 * it is acknowledged, and is refused where that cannot be, or takes too long.
 *
 * Called by write/strong.c before a statement that reads or writes strong tables, and by
 * commit.c.  Not here: what is void by now, and the tables of a node that had it (lease.c).
 * The state is in the lease's, under the lock of commit/.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "storage/latch.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "commit/commit.h"
#include "compat.h"
#include "server/server.h"

#define FIRST_STEP_MS	1		/* and twice as long each time */
#define LAST_STEP_MS	32
#define CONNECTED_MS	10000	/* so long after its start a server may not hear the others */

/*
 * Reads this node's row of the lease, as it is now, whatever the transaction's snapshot sees:
 * sets whether the tenure is its own, and whether its strong tables are unclean.
 */
static void
read_row(bool *is_own, bool *unclean)
{
	Oid			relid = repl_ml_catalog_oid("lease_state");
	Relation	rel = table_open(relid, AccessShareLock);
	Snapshot	snapshot = RegisterSnapshot(GetLatestSnapshot());
	SysScanDesc scan = systable_beginscan(rel, InvalidOid, false, snapshot, 0, NULL);
	HeapTuple	tuple = systable_getnext(scan);
	bool		isnull;

	if (!HeapTupleIsValid(tuple))
		elog(ERROR, "no row in repl_ml.lease_state");
	*is_own = DatumGetInt32(heap_getattr(tuple, get_attnum(relid, "holder"), RelationGetDescr(rel),
										 &isnull)) == repl_ml_identity()->node_id;
	*unclean = DatumGetBool(heap_getattr(tuple, get_attnum(relid, "unclean"),
										 RelationGetDescr(rel), &isnull));
	systable_endscan(scan);
	UnregisterSnapshot(snapshot);
	table_close(rel, AccessShareLock);
}

/*
 * Says whether nothing that was committed before the server started is in doubt, and notes
 * that: the tenure was another node's, or a majority has all.
 */
static bool
settle(ReplMlLease *lease)
{
	const ReplMlIdentity *self = repl_ml_identity();
	bool		is_own;
	bool		unclean;

	/* a copy of a node's files counts for nobody, and is looked at by who has made it */
	if (self->fenced || self->dropped)
		return true;
	read_row(&is_own, &unclean);
	if (unclean || (is_own && !repl_ml_unacknowledged_is_settled()))
		return false;
	if (lease != NULL)
		lease->settled = true;
	return true;
}

/*
 * Says whether a transaction of strong tables whose wait was given up has not been acknowledged
 * yet, but may still be.
 */
static bool
is_given_up(ReplMlLease *lease)
{
	XLogRecPtr	lsn = lease->given_up;

	if (lsn == InvalidXLogRecPtr)
		return false;
	/* one that is not on the list yet has a position that is not reached */
	if (lsn > repl_ml_unacknowledged_position(REPL_ML_QUORUM) ||
		repl_ml_unacknowledged_has(lsn, true))
		return true;
	if (!repl_ml_unacknowledged_has(lsn, false))
	{
		LWLockAcquire(repl_ml_lease_lock(), LW_EXCLUSIVE);
		if (lease->given_up == lsn)
			lease->given_up = InvalidXLogRecPtr;
		LWLockRelease(repl_ml_lease_lock());
	}
	return false;
}

/*
 * Called by write/strong.c before it looks which tables a statement reads: says whether some
 * statement may have to wait.  Looks without locks.
 */
bool
repl_ml_gate_is_watched(void)
{
	ReplMlLease *lease = repl_ml_lease();

	return lease == NULL || !lease->settled || lease->closed ||
		lease->given_up != InvalidXLogRecPtr || repl_ml_quorum_has_waiters();
}

/*
 * Says whether whoever reads strong tables with this snapshot, or one of later than now if it
 * is NULL, sees nothing that may be void.
 */
static bool
is_open(Snapshot snapshot)
{
	ReplMlLease *lease = repl_ml_lease();

	if (lease == NULL || !lease->settled)
	{
		if (!settle(lease))
			return false;
		if (lease == NULL)
			return true;
	}
	if (lease->closed)
		return false;
	/* in this order: it is noted as given up before it is announced no more */
	if (snapshot != InvalidSnapshot && repl_ml_waiter_has_left(snapshot))
		return false;
	pg_read_barrier();
	return !is_given_up(lease);
}

/* Raises the error for who would see what has not been acknowledged. */
static void
refuse(void)
{
	ereport(ERROR,
			(errcode(ERRCODE_CANNOT_CONNECT_NOW),
			 errmsg("strong tables cannot be read on this node now"),
			 errdetail("A transaction that wrote them here has not been acknowledged by a "
					   "majority of the members, and may come not to count."),
			 errhint("Try again in a moment, or on another node; see SELECT * FROM "
					 "repl_ml.health.")));
}

/*
 * Called by write/strong.c before a statement that reads strong tables, and by commit.c before
 * the commit of a transaction that has locked rows of them: returns when nothing can be seen
 * with this snapshot that may be void; raises 57P03 if that does not come in so many ms (0: it
 * waits for ever), or cannot.
 */
void
repl_ml_gate_pass(Snapshot snapshot, int timeout)
{
	TimestampTz deadline = 0;
	int			step = FIRST_STEP_MS;

	while (!is_open(snapshot))
	{
		repl_ml_lease_require_clean();
		if (deadline == 0)
			deadline = timeout == 0 ? DT_NOEND :
				TimestampTzPlusMilliseconds(GetCurrentTimestamp(), timeout);
		if (GetCurrentTimestamp() >= deadline ||
			(repl_ml_members_is_cut_off() &&
			 TimestampDifferenceExceeds(PgStartTime, GetCurrentTimestamp(), CONNECTED_MS)))
			refuse();
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, step,
						 wait_event_compat("ReplMlGate"));
		step = Min(2 * step, LAST_STEP_MS);
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
	}
}

PG_FUNCTION_INFO_V1(repl_ml_strong_given_up);

/*
 * repl_ml.strong_given_up(): up to where this node's WAL has transactions of strong tables that
 * can be seen here and have not been acknowledged; 0: there are none.
 */
Datum
repl_ml_strong_given_up(PG_FUNCTION_ARGS)
{
	ReplMlLease *lease;

	repl_ml_shmem_require();
	lease = repl_ml_lease();
	PG_RETURN_INT64(lease == NULL || !is_given_up(lease) ? 0 : (int64) lease->given_up);
}

PG_FUNCTION_INFO_V1(repl_ml_strong_shows);

/*
 * repl_ml.strong_shows(lsn): whether all that was committed on this node before that position
 * can be seen here: no commit before it still waits.
 */
Datum
repl_ml_strong_shows(PG_FUNCTION_ARGS)
{
	repl_ml_shmem_require();
	PG_RETURN_BOOL(!repl_ml_waiter_is_before((XLogRecPtr) PG_GETARG_INT64(0)));
}
