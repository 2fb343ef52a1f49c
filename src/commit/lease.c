/*
 * lease.c
 *		The lease of strong tables, as clients take it: at any time at most one node
 *		of the group has it, and its clients alone write these tables.
 *
 * Clients hold a heavyweight lock of core's in share mode until the end of their
 * transaction, which is after the wait of their commit.  The process of group/tenure.c
 * holds it exclusively as long as this node may not write.  So waiting for the lease is
 * waiting for a lock: lock_timeout, statement_timeout, cancel, pg_locks and the
 * detection of deadlocks are core's.  To give the lease away the process asks for its
 * lock: who comes later stands behind it, and when it has it, all have ended.
 *
 * Not here: which statements need the lease (write/strong.c), and how it comes from one
 * node to another (group/tenure.c).  The shared state is under the lock of commit/.
 */
#include "postgres.h"

#include "access/transam.h"
#include "access/xact.h"
#include "access/xlog.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "replication/message.h"
#include "storage/lock.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "commit/commit.h"
#include "commit/quorum_private.h"
#include "compat.h"
#include "server/server.h"

#define LOCK_KIND		5		/* of advisory locks: version.c and pages.c have 3 and 4 */
#define FRESH_US		UINT64CONST(2000000) /* so long nobody waits for what was just refused */
#define NO_PROCESS_US	UINT64CONST(10000000)	/* so long one waits for the process to run */
#define STEP_MS			2

static ReplMlLease *leases = NULL;	/* by index of repl_ml_shared->databases */
static LWLock *leases_lock = NULL;

/* The tenure in which this transaction last took the lease; 0: it has not. */
static uint64 taken_in = 0;
static int64 taken_round = 0;	/* of which round that is */
static bool has_written = false;	/* as it commits: something that travels */

static void forget_lease(XactEvent event, void *arg);
static void wait_for_lease(ReplMlLease *lease, const LOCKTAG *tag);
static void refuse_if_told(ReplMlLease *lease, uint64 begun);
static void refuse_cut_off(void);

/* Returns the space repl_ml_lease_shmem_init needs. */
Size
repl_ml_lease_shmem_size(void)
{
	return mul_size(REPL_ML_MAX_DATABASES, sizeof(ReplMlLease));
}

/* Called by shmem.c: adopts shared memory, which is zeroed at a server's start. */
void
repl_ml_lease_shmem_init(void *space, LWLock *lock)
{
	leases = space;
	leases_lock = lock;
}

/* Called by _PG_init: installs the callback that ends what a transaction has taken. */
void
repl_ml_lease_init(void)
{
	if (process_shared_preload_libraries_in_progress)
		RegisterXactCallback(forget_lease, NULL);
}

/*
 * A backend's callback, before core lets the lock go: who gets the lease next has to
 * have all up to the end of this transaction.  The next one begins anew.
 */
static void
forget_lease(XactEvent event, void *arg)
{
	if (event == XACT_EVENT_PRE_COMMIT)
		has_written = repl_ml_ticker_used();
	if (event == XACT_EVENT_COMMIT && taken_in != 0 && has_written)
	{
		ReplMlLease *lease = repl_ml_lease();

		LWLockAcquire(leases_lock, LW_EXCLUSIVE);
		lease->last_end = Max(lease->last_end, XactLastCommitEnd);
		LWLockRelease(leases_lock);
	}
	if (event == XACT_EVENT_COMMIT || event == XACT_EVENT_ABORT || event == XACT_EVENT_PREPARE)
		taken_in = 0;
}

/* Returns the lease of this database; NULL where that is no member. */
ReplMlLease *
repl_ml_lease(void)
{
	ReplMlDatabase *entry = repl_ml_shared == NULL ? NULL : repl_ml_shmem_database(MyDatabaseId);

	return entry == NULL ? NULL : &leases[entry - repl_ml_shared->databases];
}

/* Returns the lock that the state of leases is under. */
LWLock *
repl_ml_lease_lock(void)
{
	return leases_lock;
}

/*
 * Called by quorum.c: the database with this index is no member any more.  The caller
 * holds the lock.
 */
void
repl_ml_lease_forget(int index)
{
	if (leases[index].pid == 0)
		memset(&leases[index], 0, sizeof(ReplMlLease));
}

/* Sets the tag of the heavyweight lock that stands for this database's lease. */
void
repl_ml_lease_tag(LOCKTAG *tag)
{
	SET_LOCKTAG_ADVISORY(*tag, MyDatabaseId, 0, 0, LOCK_KIND);
}

/* Has the process get the lease, and started if it does not run. */
void
repl_ml_lease_call(ReplMlLease *lease)
{
	lease->wanted = true;
	repl_ml_lease_look(lease);
}

/* Makes the process look at its row, and has it started if it does not run. */
void
repl_ml_lease_look(ReplMlLease *lease)
{
	bool		runs;

	LWLockAcquire(leases_lock, LW_EXCLUSIVE);
	lease->look = true;
	runs = lease->pid != 0;
	if (runs && !lease->busy)
		SetLatch(lease->latch);
	LWLockRelease(leases_lock);
	if (!runs)
		repl_ml_shmem_wake_supervisor(MyDatabaseId);
}

/*
 * Called by write/strong.c before a statement that needs the lease: returns when this
 * node has it and will keep it until the transaction (or the subtransaction) ends;
 * raises 57P03 if it does not come.  The statement's snapshot may be older than what
 * came with it: see repl_ml_lease_is_newer.
 */
void
repl_ml_lease_take(void)
{
	ReplMlLease *lease = repl_ml_lease();
	LOCKTAG		tag;

	if (lease == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_CANNOT_CONNECT_NOW),
				 errmsg("strong tables cannot be written: this node is not connected to its group "
						"yet"),
				 errhint("Try again in a moment; see SELECT * FROM repl_ml.health.")));
	repl_ml_lease_tag(&tag);
	switch (LockAcquire(&tag, ShareLock, false, true))
	{
		case LOCKACQUIRE_ALREADY_HELD:
			return;
		case LOCKACQUIRE_NOT_AVAIL:
			wait_for_lease(lease, &tag);
			break;
		default:
			if (lease->holds != 0)
				break;
			(void) LockRelease(&tag, ShareLock, false);
			wait_for_lease(lease, &tag);
	}
	taken_in = lease->holds;
	taken_round = lease->round;
	if (repl_ml_members_is_cut_off())
		refuse_cut_off();
}

/* Waits in core's queue until the lease is here, and this transaction has its lock. */
static void
wait_for_lease(ReplMlLease *lease, const LOCKTAG *tag)
{
	uint64		begun = repl_ml_monotonic_now();
	uint64		waited;

	repl_ml_lease_call(lease);
	refuse_if_told(lease, begun - Min(begun, FRESH_US));
	for (;;)
	{
		(void) LockAcquire(tag, ShareLock, false, false);
		if (lease->holds != 0)
			break;
		/* the process has let everybody look, or does not run */
		(void) LockRelease(tag, ShareLock, false);
		refuse_if_told(lease, begun);
		if (lease->pid == 0 && repl_ml_monotonic_now() - begun > NO_PROCESS_US)
			ereport(ERROR,
					(errcode(ERRCODE_CANNOT_CONNECT_NOW),
					 errmsg("strong tables cannot be written: the process that takes the lease "
							"does not run"),
					 errhint("See the log of the server, and SELECT * FROM repl_ml.check_setup() "
							 "for max_worker_processes.")));
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, STEP_MS,
						 wait_event_compat("ReplMlLease"));
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
		repl_ml_lease_call(lease);
	}
	waited = repl_ml_monotonic_now() - begun;
	LWLockAcquire(leases_lock, LW_EXCLUSIVE);
	lease->waits++;
	lease->total_wait += waited;
	lease->max_wait = Max(lease->max_wait, waited);
	LWLockRelease(leases_lock);
}

/*
 * Raises the error for who waits, if the process has said since then that nobody gives
 * the lease, or that this backend is in its own way.
 */
static void
refuse_if_told(ReplMlLease *lease, uint64 begun)
{
	char		reason[REPL_ML_ERROR_LENGTH];
	bool		is_victim;
	bool		is_refused;

	LWLockAcquire(leases_lock, LW_EXCLUSIVE);
	is_victim = lease->victim == MyProcPid;
	if (is_victim)
		lease->victim = 0;
	is_refused = lease->refused > begun;
	strlcpy(reason, lease->reason, sizeof(reason));
	if (is_refused || is_victim)
		lease->waits_refused++;
	LWLockRelease(leases_lock);
	if (is_victim)
		ereport(ERROR,
				(errcode(ERRCODE_T_R_DEADLOCK_DETECTED),
				 errmsg("deadlock detected"),
				 errdetail("This transaction waits for the lease of strong tables, which cannot "
						   "come before a transaction of another node is applied, which waits for "
						   "a lock of this one."),
				 errhint("Run the transaction again; one that writes a strong table first does not "
						 "get here.")));
	if (is_refused)
		ereport(ERROR,
				(errcode(ERRCODE_CANNOT_CONNECT_NOW),
				 errmsg("strong tables cannot be written on this node now"),
				 errdetail_internal("%s", reason),
				 errhint("See SELECT * FROM repl_ml.health for what to do.")));
}

/* Raises the error for a holder that too few members are connected with. */
static void
refuse_cut_off(void)
{
	ereport(ERROR,
			(errcode(ERRCODE_CANNOT_CONNECT_NOW),
			 errmsg("strong tables cannot be written on this node now"),
			 errdetail("Too few members can be reached for a commit at write consistency \"%s\".",
					   repl_ml_level_name(REPL_ML_QUORUM)),
			 errhint("See SELECT * FROM repl_ml.health for what to do.")));
}

/*
 * Called by gate.c before a statement that reads a strong table, and for a peer that copies one:
 * raises an error if strong tables here may have something that does not count.
 */
void
repl_ml_lease_require_clean(void)
{
	ReplMlLease *lease = repl_ml_lease();

	if (lease == NULL || !lease->closed)
		return;
	ereport(ERROR,
			(errcode(ERRCODE_CANNOT_CONNECT_NOW),
			 errmsg("strong tables cannot be read on this node now"),
			 errdetail("They may have rows that do not count, as another node has taken over, and "
					   "are being made what they are on the other members."),
			 errhint("Try again in a moment, or on another node; see SELECT * FROM "
					 "repl_ml.health.")));
}

/*
 * Says whether a snapshot was taken before the lease came here, and so may lack what was
 * written on other nodes.
 */
bool
repl_ml_lease_is_newer(Snapshot snapshot)
{
	ReplMlLease *lease = repl_ml_lease();
	TransactionId opened = lease == NULL ? InvalidTransactionId : lease->opened_xid;

	return TransactionIdIsValid(opened) && XidInMVCCSnapshot(opened, snapshot);
}

/* Says whether this transaction has the lease, and clients of other nodes wait for it. */
bool
repl_ml_lease_is_kept_from_others(void)
{
	ReplMlLease *lease = repl_ml_lease();
	LOCKTAG		tag;

	repl_ml_lease_tag(&tag);
	return lease != NULL && lease->line_count > 0 && LockHeldByMe_compat(&tag, ShareLock);
}

/* Raises an error unless this transaction has the lease, for a row of the table. */
void
repl_ml_lease_require(Oid root)
{
	LOCKTAG		tag;

	repl_ml_lease_tag(&tag);
	if (LockHeldByMe_compat(&tag, ShareLock))
		return;
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("strong table \"%s\" is written without the lease", get_rel_name(root)),
			 errhint("Run LOCK TABLE %s IN ROW EXCLUSIVE MODE before, in the same transaction; a "
					 "subscription cannot write strong tables.",
					 quote_qualified_identifier(get_namespace_name(get_rel_namespace(root)),
												get_rel_name(root)))));
}

/*
 * Called by commit.c before a commit: raises an error if the transaction has taken the
 * lease in a tenure that is over.  No protocol of ours gets here, as its lock is held
 * until the end: the last line.  Returns whether it has taken it.
 */
bool
repl_ml_lease_check(void)
{
	ReplMlLease *lease = taken_in == 0 ? NULL : repl_ml_lease();
	LOCKTAG		tag;

	if (lease == NULL || lease->holds == taken_in)
		return lease != NULL;
	repl_ml_lease_tag(&tag);
	if (LockHeldByMe_compat(&tag, ShareLock))
		ereport(ERROR,
				(errcode(ERRCODE_CANNOT_CONNECT_NOW),
				 errmsg("the lease of strong tables has been lost before the commit"),
				 errdetail("Nothing has been committed."),
				 errhint("Run the transaction again.")));
	return false;
}

/*
 * Called by commit.c before a commit, or PREPARE TRANSACTION: says in the WAL in which round
 * the transaction has written strong tables.
 */
void
repl_ml_lease_mark(void)
{
	char	   *message;

	if (taken_in == 0 || repl_ml_applying || !repl_ml_ticker_used())
		return;
	message = repl_ml_round_message(taken_round);
	LogLogicalMessage_compat(REPL_ML_MESSAGE_PREFIX, message, strlen(message), true);
}

/*
 * Called by commit.c before COMMIT PREPARED: the transaction may have the lease, and what
 * gives it away has to know that the last end is not known.
 */
void
repl_ml_lease_commits_prepared(void)
{
	ReplMlLease *lease = repl_ml_lease();

	if (lease == NULL)
		return;
	LWLockAcquire(leases_lock, LW_EXCLUSIVE);
	lease->end_unknown = true;
	LWLockRelease(leases_lock);
}

/*
 * Says whether a transaction of this node that ends there counts in no tenure.  The caller
 * holds the lock.
 */
static bool
is_void(const ReplMlLease *lease, XLogRecPtr lsn)
{
	return lsn > lease->void_begin && lsn <= lease->void_end;
}

/*
 * Called by commit.c for a commit whose wait has ended, before its announcement is taken back,
 * and while core still has the transaction's locks: if it has the lease, or had it as a prepared
 * one, and a majority does not have it, nobody reads strong tables (gate.c), and the lease is not
 * given away, before it is acknowledged.  The process looks whether others have voted for a later
 * round, as then nobody acknowledges it.
 */
void
repl_ml_lease_gives_up(XLogRecPtr lsn, bool had_lease)
{
	ReplMlLease *lease = repl_ml_lease();
	LOCKTAG		tag;

	repl_ml_lease_tag(&tag);
	if (lease == NULL || (!had_lease && !LockHeldByMe_compat(&tag, ShareLock)) ||
		repl_ml_waiter_is_acknowledged(lsn))
		return;
	LWLockAcquire(leases_lock, LW_EXCLUSIVE);
	if (!is_void(lease, lsn))
		lease->given_up = Max(lease->given_up, lsn);
	lease->doubted = true;
	LWLockRelease(leases_lock);
	repl_ml_lease_look(lease);
}

PG_FUNCTION_INFO_V1(repl_ml_lease_close);

/*
 * repl_ml.lease_close(unclean, counted): called by who accepts a round of another node: nobody
 * commits in the tenure that this one had.  If strong tables are unclean nobody reads them,
 * until the process of the lease finds that they are not.  What this node has committed beyond
 * "counted", if that is not NULL, is void, and never acknowledged: the lease is given away
 * without it.
 */
Datum
repl_ml_lease_close(PG_FUNCTION_ARGS)
{
	ReplMlLease *lease = repl_ml_lease();

	if (lease != NULL)
	{
		LWLockAcquire(leases_lock, LW_EXCLUSIVE);
		lease->holds = 0;
		lease->closings++;
		lease->closed |= PG_GETARG_BOOL(0);
		if (!PG_ARGISNULL(1))
		{
			lease->void_begin = (XLogRecPtr) PG_GETARG_INT64(1);
			lease->void_end = GetXLogInsertRecPtr();
			if (is_void(lease, lease->given_up))
				lease->given_up = 0;
		}
		LWLockRelease(leases_lock);
		repl_ml_lease_look(lease);
	}
	PG_RETURN_VOID();
}

PG_FUNCTION_INFO_V1(repl_ml_lease_want);

/*
 * repl_ml.lease_want(): this node gets the lease, if it can, as if a client wanted it; where it
 * has it, its process looks whether the round still counts.
 */
Datum
repl_ml_lease_want(PG_FUNCTION_ARGS)
{
	ReplMlLease *lease;

	repl_ml_shmem_require();
	lease = repl_ml_lease();
	if (lease != NULL)
	{
		lease->doubted = true;
		repl_ml_lease_call(lease);
	}
	PG_RETURN_VOID();
}

PG_FUNCTION_INFO_V1(repl_ml_lease_end);

/*
 * repl_ml.lease_end(): up to where this node's WAL may have transactions of strong tables of
 * its present tenure; 0: there are none.
 */
Datum
repl_ml_lease_end(PG_FUNCTION_ARGS)
{
	ReplMlLease *lease = repl_ml_lease();
	XLogRecPtr	end = GetXLogInsertRecPtr();

	if (lease != NULL)
	{
		LWLockAcquire(leases_lock, LW_SHARED);
		if (!lease->end_unknown)
			end = lease->last_end;
		LWLockRelease(leases_lock);
	}
	PG_RETURN_INT64((int64) end);
}

PG_FUNCTION_INFO_V1(repl_ml_take_lease);

/* repl_ml.take_lease(): takes the lease until the transaction ends. */
Datum
repl_ml_take_lease(PG_FUNCTION_ARGS)
{
	repl_ml_shmem_require();
	repl_ml_lease_take();
	PG_RETURN_VOID();
}

PG_FUNCTION_INFO_V1(repl_ml_lease_stats);

/* repl_ml.lease_stats(): what this server knows of its lease, and its counters. */
Datum
repl_ml_lease_stats(PG_FUNCTION_ARGS)
{
	ReplMlLease *lease;
	ReplMlLease copy = {0};
	TupleDesc	desc;
	Datum		values[11];
	bool		nulls[11] = {false};

	repl_ml_shmem_require();
	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	lease = repl_ml_lease();
	if (lease != NULL)
	{
		LWLockAcquire(leases_lock, LW_SHARED);
		copy = *lease;
		LWLockRelease(leases_lock);
	}
	values[0] = BoolGetDatum(copy.holds != 0);
	values[1] = Int32GetDatum(copy.pid);
	nulls[1] = copy.pid == 0;
	values[2] = copy.refused == 0 ? (Datum) 0 : CStringGetTextDatum(copy.reason);
	nulls[2] = copy.refused == 0;
	values[3] = Int32GetDatum(copy.line_count);
	values[4] = Int64GetDatum(copy.elected);
	values[5] = Int64GetDatum(copy.taken);
	values[6] = Int64GetDatum(copy.given);
	values[7] = Int64GetDatum(copy.waits);
	values[8] = Int64GetDatum(copy.waits_refused);
	values[9] = Float8GetDatum(copy.total_wait / 1000.0);
	values[10] = Float8GetDatum(copy.max_wait / 1000.0);
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(desc, values, nulls)));
}
