/*
 * waiter.c
 *		A commit that waits for members: from its announcement to its end, and what
 *		is counted of it.
 *
 * The committing backend says before its commit what it will wait for, so that
 * walsenders hurry, and is refused where too few members can be reached.  It then
 * waits in core's queue, out of which quorum.c takes it, and says here what became
 * of it.  From its announcement to its end it is one of repl_ml_quorum->waiters;
 * from then on it is known as acknowledged, or is on the list of
 * unacknowledged.c, in the same moment.
 *
 * Called by committing backends (commit/commit.c) and by views.  Not here: when
 * it may go (quorum.c).  The lock is repl_ml_quorum->lock; core's SyncRepLock is
 * taken after ours has been given back.
 */
#include "postgres.h"

#include "miscadmin.h"
#include "replication/syncrep.h"
#include "storage/proc.h"
#include "utils/timestamp.h"

#include "commit/commit.h"
#include "commit/quorum_private.h"
#include "compat.h"
#include "server/server.h"

/* upper bounds of the histogram's buckets, µs; the last one has none */
const uint64 repl_ml_wait_bounds[REPL_ML_WAIT_BUCKETS - 1] =
{250, 500, 1000, 2000, 5000, 10000, 25000, 50000, 100000, 1000000, 10000000};

static void refuse_unconnected(ReplMlLevel level);
static void refuse_unreachable(ReplMlLevel level);
static void count_wait(ReplMlLevelCounts *stats, uint64 wait);

/*
 * Called by commit.c: announces the commit of a transaction with a level above
 * one, before anything of it is committed; raises an error if too few members
 * can be reached.
 */
void
repl_ml_waiter_begin(ReplMlLevel level, TransactionId xid)
{
	ReplMlQuorumDatabase *database = repl_ml_quorum_database(MyDatabaseId);
	ReplMlWaiter *waiter = &repl_ml_quorum->waiters[my_proc_number_compat()];

	if (database == NULL)
		refuse_unconnected(level);
	LWLockAcquire(repl_ml_quorum->lock, LW_EXCLUSIVE);
	if (!database->members_known ||
		repl_ml_members_reachable() < repl_ml_quorum_required(database, level))
	{
		database->counts[level].outcomes[REPL_ML_REFUSED]++;
		LWLockRelease(repl_ml_quorum->lock);
		refuse_unreachable(level);
	}

	/* from here on walsenders see it, and hurry */
	waiter->database = MyDatabaseId;
	waiter->level = level;
	waiter->xid = xid;
	waiter->commit = InvalidXLogRecPtr;
	waiter->lsn = InvalidXLogRecPtr;
	waiter->lacking = (ReplMlPeerSet) {{0}};
	waiter->pid = MyProcPid;
	waiter->since = GetCurrentTimestamp();
	waiter->start = repl_ml_monotonic_now();
	database->waiters[level]++;
	database->last_begin = waiter->start;
	LWLockRelease(repl_ml_quorum->lock);
}

/*
 * Raises the error for a level while the supervisor has not said yet who the
 * members are.
 */
static void
refuse_unconnected(ReplMlLevel level)
{
	ereport(ERROR,
			(errcode(ERRCODE_CANNOT_CONNECT_NOW),
			 errmsg("write consistency \"%s\" cannot be reached: this node is not connected to its "
					"group yet", repl_ml_level_name(level)),
			 errhint("Try again in a moment; see SELECT * FROM repl_ml.health.")));
}

/* Raises the error for a level that too few members can be reached for. */
static void
refuse_unreachable(ReplMlLevel level)
{
	ReplMlQuorumDatabase *database = repl_ml_quorum_database(MyDatabaseId);
	char	   *present;
	char	   *missing;
	int			needed;
	int			members;
	int			reachable;
	bool		known;

	/* all at once, so that the numbers fit each other */
	LWLockAcquire(repl_ml_quorum->lock, LW_SHARED);
	known = database->members_known;
	present = repl_ml_members_names(database, true);
	missing = repl_ml_members_names(database, false);
	needed = repl_ml_quorum_required(database, level);
	members = database->members;
	reachable = repl_ml_members_reachable();
	LWLockRelease(repl_ml_quorum->lock);

	if (!known)
		refuse_unconnected(level);
	ereport(ERROR,
			(errcode(ERRCODE_CANNOT_CONNECT_NOW),
			 errmsg("write consistency \"%s\" needs %d of %d members, but only %d can be reached",
					repl_ml_level_name(level), needed, members, reachable),
			 errdetail("Reachable: %s. Missing: %s. Nothing has been committed.", present, missing),
			 errhint("Try again when they are back; see SELECT * FROM repl_ml.health. A node that "
					 "will not come back is removed with SELECT repl_ml.drop_node(...).")));
}

/*
 * Called by commit.c: takes back what repl_ml_waiter_begin announced and
 * counts what became of it: acknowledged if what is before "lsn" is, else
 * "otherwise", or parked where it was let go for that; then *parked_on tells
 * where.  A transaction that is committed without is put on the list of
 * unacknowledged.c.
 */
ReplMlOutcome
repl_ml_waiter_end(XLogRecPtr lsn, ReplMlOutcome otherwise, char *parked_on, Size size)
{
	ReplMlQuorumDatabase *database = repl_ml_quorum_database(MyDatabaseId);
	ReplMlWaiter *waiter = &repl_ml_quorum->waiters[my_proc_number_compat()];
	ReplMlOutcome outcome = otherwise;
	ReplMlLevelCounts *stats = &database->counts[waiter->level];
	bool		doubtful;

	LWLockAcquire(repl_ml_quorum->lock, LW_EXCLUSIVE);
	doubtful = !repl_ml_peer_set_is_empty(&waiter->lacking);

	/* what has been acknowledged is, however the wait ended */
	if (otherwise != REPL_ML_ABORTED && repl_ml_quorum_has(waiter->level, lsn, &waiter->lacking))
		outcome = REPL_ML_ACKNOWLEDGED;
	else if (otherwise == REPL_ML_CANCELLED && doubtful)
		outcome = REPL_ML_PARKED;
	if (outcome == REPL_ML_ACKNOWLEDGED)
		count_wait(stats, repl_ml_monotonic_now() - waiter->start);
	if (outcome != REPL_ML_ABORTED)
		stats->outcomes[outcome]++;

	/* under the lock that ends the wait: it is always in one of the places */
	if (outcome == REPL_ML_TIMED_OUT || outcome == REPL_ML_CANCELLED || outcome == REPL_ML_PARKED)
		repl_ml_unacknowledged_add(waiter->level, waiter->xid, waiter->commit, lsn,
								   &waiter->lacking);
	repl_ml_members_name_set(&waiter->lacking, parked_on, size);
	if (doubtful)
		database->doubtful--;
	waiter->database = InvalidOid;
	waiter->xid = InvalidTransactionId;
	database->waiters[waiter->level]--;
	LWLockRelease(repl_ml_quorum->lock);
	return outcome;
}

/* Counts how long an acknowledged commit has waited. */
static void
count_wait(ReplMlLevelCounts *stats, uint64 wait)
{
	int			bucket = 0;

	while (bucket < REPL_ML_WAIT_BUCKETS - 1 && wait > repl_ml_wait_bounds[bucket])
		bucket++;
	stats->histogram[bucket]++;
	if (stats->outcomes[REPL_ML_ACKNOWLEDGED] == 0 || wait < stats->least)
		stats->least = wait;
	stats->greatest = Max(stats->greatest, wait);
	stats->total += wait;
}

/*
 * Says whether the transaction is in its commit, and of which level.  The
 * caller holds the lock.
 */
bool
repl_ml_waiter_find(TransactionId xid, ReplMlLevel *level)
{
	for (int i = 0; i < MaxBackends; i++)
	{
		ReplMlWaiter *waiter = &repl_ml_quorum->waiters[i];

		if (waiter->database != MyDatabaseId || waiter->xid != xid)
			continue;
		*level = waiter->level;
		return true;
	}
	return false;
}

/* Called by lease.c: says whether this process's own commit, which ends there, is acknowledged. */
bool
repl_ml_waiter_is_acknowledged(XLogRecPtr lsn)
{
	const ReplMlWaiter *waiter = &repl_ml_quorum->waiters[my_proc_number_compat()];
	bool		is_acknowledged;

	LWLockAcquire(repl_ml_quorum->lock, LW_SHARED);
	is_acknowledged = repl_ml_quorum_has(REPL_ML_QUORUM, lsn, &waiter->lacking);
	LWLockRelease(repl_ml_quorum->lock);
	return is_acknowledged;
}

/*
 * Called by gate.c, without a lock: says whether a snapshot sees a transaction whose wait has
 * ended and whose announcement has not been taken back yet.
 */
bool
repl_ml_waiter_has_left(Snapshot snapshot)
{
	if (snapshot->snapshot_type != SNAPSHOT_MVCC || !repl_ml_quorum_has_waiters())
		return false;
	for (int i = 0; i < MaxBackends; i++)
	{
		const ReplMlWaiter *waiter = &repl_ml_quorum->waiters[i];
		TransactionId xid = waiter->xid;

		if (waiter->database == MyDatabaseId && waiter->pid != MyProcPid &&
			TransactionIdIsValid(xid) && !XidInMVCCSnapshot(xid, snapshot))
			return true;
	}
	return false;
}

/*
 * Called by gate.c: says whether some commit waits that has been sent to a peer and ends at that
 * position or before it.
 */
bool
repl_ml_waiter_is_before(XLogRecPtr lsn)
{
	bool		is_before = false;

	LWLockAcquire(repl_ml_quorum->lock, LW_SHARED);
	for (int i = 0; i < MaxBackends; i++)
	{
		const ReplMlWaiter *waiter = &repl_ml_quorum->waiters[i];

		is_before |= waiter->database == MyDatabaseId && waiter->lsn != InvalidXLogRecPtr &&
			waiter->lsn <= lsn;
	}
	LWLockRelease(repl_ml_quorum->lock);
	return is_before;
}

/*
 * Writes this database's commits that wait now into an array of MaxBackends;
 * returns how many.
 */
int
repl_ml_waiter_list(ReplMlWaiting *waiting)
{
	ReplMlQuorumDatabase *database = repl_ml_quorum_database(MyDatabaseId);
	int			count = 0;

	if (database == NULL)
		return 0;
	LWLockAcquire(repl_ml_quorum->lock, LW_SHARED);
	for (int i = 0; i < MaxBackends; i++)
	{
		const ReplMlWaiter *waiter = &repl_ml_quorum->waiters[i];

		if (waiter->database != MyDatabaseId)
			continue;
		waiting[count] = (ReplMlWaiting)
			{
				.proc_number = i,
					.pid = waiter->pid,
					.level = waiter->level,
					.required = repl_ml_quorum_required(database, waiter->level),
					.since = waiter->since,
					.parked_on = palloc(REPL_ML_MAX_WORKERS * sizeof(int))
			};
		waiting[count].parked_count = repl_ml_members_of_set(&waiter->lacking,
															 waiting[count].parked_on);
		count++;
	}
	LWLockRelease(repl_ml_quorum->lock);

	/* where the commit is only core's queue knows; never both locks at once */
	LWLockAcquire(SyncRepLock, LW_SHARED);
	for (int i = 0; i < count; i++)
	{
		PGPROC	   *proc = &ProcGlobal->allProcs[waiting[i].proc_number];

		if (proc->pid == waiting[i].pid && proc->syncRepState == SYNC_REP_WAITING)
			waiting[i].lsn = proc->waitLSN;
	}
	LWLockRelease(SyncRepLock);
	return count;
}

/* Returns what became of this database's commits of a level. */
ReplMlLevelStats
repl_ml_waiter_stats(ReplMlLevel level)
{
	ReplMlQuorumDatabase *database = repl_ml_quorum_database(MyDatabaseId);
	ReplMlLevelStats result = {.since = PgStartTime};

	if (database == NULL)
		return result;

	/* all of one moment, so that the numbers fit each other */
	LWLockAcquire(repl_ml_quorum->lock, LW_SHARED);
	{
		const ReplMlLevelCounts *stats = &database->counts[level];

		result.acknowledged = stats->outcomes[REPL_ML_ACKNOWLEDGED];
		result.refused = stats->outcomes[REPL_ML_REFUSED];
		result.timeouts = stats->outcomes[REPL_ML_TIMED_OUT];
		result.cancelled = stats->outcomes[REPL_ML_CANCELLED];
		result.parked = stats->outcomes[REPL_ML_PARKED];
		result.total_wait = stats->total;
		result.min_wait = stats->least;
		result.max_wait = stats->greatest;
		memcpy(result.histogram, stats->histogram, sizeof(result.histogram));
		if (database->counts_since != 0)
			result.since = database->counts_since;
	}
	LWLockRelease(repl_ml_quorum->lock);
	return result;
}

/* Makes this database's commits be counted from zero. */
void
repl_ml_waiter_reset_stats(void)
{
	ReplMlQuorumDatabase *database = repl_ml_quorum_database(MyDatabaseId);

	if (database == NULL)
		return;
	LWLockAcquire(repl_ml_quorum->lock, LW_EXCLUSIVE);
	memset(database->counts, 0, sizeof(database->counts));
	database->counts_since = GetCurrentTimestamp();
	LWLockRelease(repl_ml_quorum->lock);
}
