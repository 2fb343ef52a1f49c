/*
 * quorum.c
 *		What enough members have, and letting the commits go that wait for it.
 *
 * A commit waits where core's synchronous replication waits: after its WAL is
 * flushed and before anybody sees the transaction.  It sits in core's queue of
 * "flush" waiters for the level quorum and of "remote apply" waiters for all;
 * no standby of core's releases it (synchronous_standby_names holds a name
 * that nobody has), but the walsender that hears the deciding peer does, here.
 *
 * Members confirm positions of this server's WAL, so what a level has
 * acknowledged is a position, too: the least one that enough members have
 * confirmed.  It is kept per database, each of which has a group of its own;
 * core's own shortcut for commits that come late to the queue, one position
 * for the whole server, gets the least of all databases.
 *
 * A peer that has parked something of a transaction has not applied it, though
 * it goes on and acknowledges positions behind it.  It says so before
 * (group/worker.c, commit/reply.c), and does not count for that transaction,
 * which is let go, unacknowledged, when too few others are left.
 *
 * Called by walsenders (commit/reply.c, write/output.c) and by supervisors, when
 * the members are others (members.c).
 *
 * Not here: a commit's own part of its wait (waiter.c), what each member has and
 * whether it can be reached (members.c), nor what becomes of commits whose wait
 * was given up (unacknowledged.c).  The lock is repl_ml_quorum->lock; core's
 * SyncRepLock is taken for its queue, after ours has been given back.
 */
#include "postgres.h"

#include "access/xlog.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "replication/syncrep.h"
#include "replication/walsender.h"
#include "replication/walsender_private.h"
#include "storage/latch.h"
#include "storage/proc.h"
#include "storage/spin.h"
#include "utils/timestamp.h"

#include "commit/commit.h"
#include "commit/quorum_private.h"
#include "compat.h"
#include "server/server.h"

#define IN_USE_US		UINT64CONST(60000000)
#define AGAIN_MS		5
#define WOKEN_AT_ONCE	64		/* so many latches are set after the lock is
								 * given back */

ReplMlQuorum *repl_ml_quorum = NULL;

static const char *const urgency_names[] = {
	[REPL_ML_WHENEVER] = "whenever",
	[REPL_ML_SOON] = "soon",
	[REPL_ML_NOW] = "now",
};

/* What becomes of somebody who waits, whatever has been acknowledged. */
typedef enum Verdict
{
	BY_POSITION,
	STAYS,						/* the positions are those of peers that lack it */
	GOES						/* too few are left that do not */
} Verdict;

static bool release_commits(ReplMlQuorumDatabase *database);
static const Verdict *judge_waiters(const ReplMlQuorumDatabase *database);
static bool has_waiters(const ReplMlQuorumDatabase *database);
static bool wake_waiters(ReplMlLevel level, XLogRecPtr position, XLogRecPtr for_all,
						 const Verdict *verdicts);

/* Returns the space repl_ml_quorum_shmem_init needs. */
Size
repl_ml_quorum_shmem_size(void)
{
	return add_size(offsetof(ReplMlQuorum, waiters), mul_size(MaxBackends, sizeof(ReplMlWaiter)));
}

/*
 * Called by shmem.c: adopts shared memory, which is zeroed at a server's
 * start; in other processes than the first it is filled already.
 */
void
repl_ml_quorum_shmem_init(void *space, LWLock *lock)
{
	repl_ml_quorum = space;
	repl_ml_quorum->lock = lock;
}

/* Returns the word for an urgency, as in messages to peers. */
const char *
repl_ml_urgency_name(ReplMlUrgency urgency)
{
	return urgency_names[urgency];
}

/* Sets the urgency of a word; returns false if it is none. */
bool
repl_ml_urgency_parse(const char *name, ReplMlUrgency *urgency)
{
	for (int i = 0; i < lengthof(urgency_names); i++)
	{
		if (strcmp(name, urgency_names[i]) == 0)
		{
			*urgency = i;
			return true;
		}
	}
	return false;
}

/*
 * Returns a database's entry; NULL where it has none, see
 * repl_ml_shmem_database.
 */
ReplMlQuorumDatabase *
repl_ml_quorum_database(Oid oid)
{
	ReplMlDatabase *entry = repl_ml_shmem_database(oid);

	return entry == NULL ? NULL : &repl_ml_quorum->databases[entry - repl_ml_shared->databases];
}

/* Says whether some commit of the database waits, or is about to. */
static bool
has_waiters(const ReplMlQuorumDatabase *database)
{
	return database->waiters[REPL_ML_QUORUM] > 0 || database->waiters[REPL_ML_ALL] > 0;
}

/* Says, for gate.c, whether commits of this database wait: a hint. */
bool
repl_ml_quorum_has_waiters(void)
{
	ReplMlQuorumDatabase *database = repl_ml_quorum_database(MyDatabaseId);

	return database != NULL && has_waiters(database);
}

/*
 * Called by the launcher: forgets what is known of a database that is no
 * member, and has this index; returns false if some commit there has not
 * ended.
 */
bool
repl_ml_quorum_forget(int index, Oid oid)
{
	ReplMlQuorumDatabase *database = &repl_ml_quorum->databases[index];
	bool		idle;

	LWLockAcquire(repl_ml_quorum->lock, LW_EXCLUSIVE);
	idle = !has_waiters(database);
	if (idle)
	{
		memset(database, 0, sizeof(*database));
		for (int i = 0; i < repl_ml_quorum->links_used; i++)
		{
			ReplMlLink *link = &repl_ml_quorum->links[i];

			/* a walsender that serves it frees its own */
			if (link->database == oid && link->walsender == 0)
				link->database = InvalidOid;
			else if (link->database == oid)
				link->counts = false;
		}
		repl_ml_unacknowledged_forget(index, oid);
		repl_ml_lease_forget(index);
	}
	LWLockRelease(repl_ml_quorum->lock);
	return idle;
}

/* Returns how many members a level needs, this node included. */
int
repl_ml_quorum_required(const ReplMlQuorumDatabase *database, ReplMlLevel level)
{
	switch (level)
	{
		case REPL_ML_ONE:
			return 1;
		case REPL_ML_QUORUM:
			return database->members / 2 + 1;
		case REPL_ML_ALL:
			return database->members;
	}
	return database->members;	/* keep the compiler quiet */
}

/*
 * Returns up to where enough members have this database's WAL.  The caller
 * holds the lock.
 */
static XLogRecPtr
find_position(ReplMlQuorumDatabase *database, ReplMlLevel level)
{
	int			peers = repl_ml_quorum_required(database, level) - 1;
	XLogRecPtr	best = InvalidXLogRecPtr;

	if (!database->members_known)
		return InvalidXLogRecPtr;
	if (peers <= 0)
		return GetFlushRecPtr(NULL);

	/* there are few peers: for each, how many are as far */
	foreach_counting_link(link)
	{
		int			as_far = 0;

		if (link->acknowledged <= best)
			continue;
		foreach_counting_link(other)
		{
			if (other->acknowledged >= link->acknowledged)
				as_far++;
		}
		if (as_far >= peers)
			best = link->acknowledged;
	}
	return best;
}

/*
 * Returns up to where a level is acknowledged in all member databases: what
 * core may let pass without asking us.  Not beyond a commit that some peer
 * lacks: that one has to come into the queue.  The caller holds the lock.
 */
static XLogRecPtr
find_shortcut(ReplMlLevel level)
{
	XLogRecPtr	least = PG_UINT64_MAX;
	int			doubtful = 0;

	for (int i = 0; i < REPL_ML_MAX_DATABASES; i++)
	{
		if (repl_ml_shared->databases[i].member && repl_ml_quorum->databases[i].members > 1)
			least = Min(least, repl_ml_quorum->databases[i].acknowledged[level]);
		doubtful += repl_ml_quorum->databases[i].doubtful;
	}
	for (int i = 0; i < MaxBackends && doubtful > 0; i++)
	{
		const ReplMlWaiter *waiter = &repl_ml_quorum->waiters[i];

		if (OidIsValid(waiter->database) && waiter->level == level &&
			!repl_ml_peer_set_is_empty(&waiter->lacking))
			least = Min(least, waiter->lsn - 1);
	}
	return least == PG_UINT64_MAX ? InvalidXLogRecPtr : least;
}

/* Says whether fewer than "needed" peers do better than this one. */
static bool
is_among_best(const ReplMlLink *link, int needed)
{
	int			better = 0;

	foreach_counting_link(other)
	{
		if (other->walsender != 0 &&
			(other->score > link->score || (other->score == link->score && other < link)))
			better++;
	}
	return better < needed;
}

/*
 * Notes, when the level quorum has just acknowledged everything before a
 * position, who it was that it needed for that.  The caller holds the lock.
 */
static void
note_who_decides(const ReplMlQuorumDatabase *database, XLogRecPtr position)
{
	foreach_link(link)
	{
		if (link->acknowledged >= position)
			link->score = Min(link->score + 1, REPL_ML_BEST_SCORE);
		else
			link->score = Max(link->score - 1, 0);
	}
	foreach_link(link)
		link->decides = is_among_best(link, repl_ml_quorum_required(database, REPL_ML_QUORUM) - 1);
}

/*
 * Returns how many members may still come to have a transaction ("lsn" 0), or
 * have it by now.  The caller holds the lock.
 */
static int
count_members(XLogRecPtr lsn, const ReplMlPeerSet *lacking)
{
	int			count = 1;

	foreach_counting_link(link)
	{
		if (link->acknowledged >= lsn && !repl_ml_peer_set_has(lacking, repl_ml_link_index(link)))
			count++;
	}
	return count;
}

/*
 * Says whether the level has acknowledged a transaction of this database that
 * ends at "lsn" and that these peers lack.  The caller holds the lock.
 */
bool
repl_ml_quorum_has(ReplMlLevel level, XLogRecPtr lsn, const ReplMlPeerSet *lacking)
{
	ReplMlQuorumDatabase *database = repl_ml_quorum_database(MyDatabaseId);

	if (database == NULL || lsn > database->acknowledged[level])
		return false;
	return repl_ml_peer_set_is_empty(lacking) ||
		(database->members_known &&
		 count_members(lsn, lacking) >= repl_ml_quorum_required(database, level));
}

/*
 * Says whether a transaction of this database may still come to be acknowledged
 * if these peers never have it.  The caller holds the lock.
 */
bool
repl_ml_quorum_may_have(ReplMlLevel level, const ReplMlPeerSet *without)
{
	ReplMlQuorumDatabase *database = repl_ml_quorum_database(MyDatabaseId);

	return database == NULL || repl_ml_peer_set_is_empty(without) ||
		count_members(InvalidXLogRecPtr, without) >= repl_ml_quorum_required(database, level);
}

/*
 * Called by a walsender that is about to send a commit: who waits for it
 * learns where it is.  So it is known before the peer can say anything of it.
 */
void
repl_ml_quorum_sent(TransactionId xid, XLogRecPtr commit, XLogRecPtr lsn)
{
	ReplMlQuorumDatabase *database = repl_ml_quorum_database(MyDatabaseId);

	if (database == NULL || !has_waiters(database))
		return;
	for (int i = 0; i < MaxBackends; i++)
	{
		ReplMlWaiter *waiter = &repl_ml_quorum->waiters[i];

		if (waiter->xid != xid || waiter->lsn == lsn)
			continue;
		LWLockAcquire(repl_ml_quorum->lock, LW_EXCLUSIVE);
		if (waiter->database == MyDatabaseId && waiter->xid == xid)
		{
			waiter->commit = commit;
			waiter->lsn = lsn;
		}
		LWLockRelease(repl_ml_quorum->lock);
	}
}

/*
 * Called by a walsender whose peer has parked something of the transaction
 * that ends at "lsn".  If that waits, or is listed as not acknowledged, the
 * peer's word does not count for it; of others nobody asks.
 */
void
repl_ml_quorum_parked(int peer, XLogRecPtr lsn)
{
	ReplMlQuorumDatabase *database = repl_ml_quorum_database(MyDatabaseId);
	int			index;

	LWLockAcquire(repl_ml_quorum->lock, LW_EXCLUSIVE);
	index = repl_ml_members_index(peer);
	if (index >= 0)
		repl_ml_unacknowledged_mark(lsn, index);
	for (int i = 0; index >= 0 && i < MaxBackends; i++)
	{
		ReplMlWaiter *waiter = &repl_ml_quorum->waiters[i];

		if (waiter->database != MyDatabaseId || waiter->lsn != lsn)
			continue;
		if (repl_ml_peer_set_is_empty(&waiter->lacking))
			database->doubtful++;
		repl_ml_peer_set_add(&waiter->lacking, index);
	}
	(void) release_commits(database);
}

/*
 * Called by members.c: the link of this index is another one's from now on.
 * The caller holds the lock exclusively.
 */
void
repl_ml_quorum_forget_link(int index)
{
	for (int i = 0; i < MaxBackends; i++)
		repl_ml_peer_set_remove(&repl_ml_quorum->waiters[i].lacking, index);
	repl_ml_unacknowledged_forget_link(index);
}

/*
 * Called by a walsender whose peer has spoken and has everything before a
 * position: lets the commits go that this acknowledges.  Returns what
 * repl_ml_quorum_release does.
 */
bool
repl_ml_quorum_heard(int peer, XLogRecPtr acknowledged)
{
	ReplMlQuorumDatabase *database = repl_ml_quorum_database(MyDatabaseId);

	LWLockAcquire(repl_ml_quorum->lock, LW_EXCLUSIVE);
	repl_ml_members_heard(peer, acknowledged);
	return release_commits(database);
}

/*
 * Lets this database's commits go that have been acknowledged.  Returns true
 * if it has to be called again soon: a commit is on its way into the queue and
 * might not be seen (only where another database of the server lags behind).
 */
bool
repl_ml_quorum_release(void)
{
	ReplMlQuorumDatabase *database = repl_ml_quorum_database(MyDatabaseId);

	LWLockAcquire(repl_ml_quorum->lock, LW_EXCLUSIVE);
	return release_commits(database);
}

/*
 * Does the work of repl_ml_quorum_release for callers that hold the lock;
 * gives it back.
 */
static bool
release_commits(ReplMlQuorumDatabase *database)
{
	XLogRecPtr	for_all[REPL_ML_LEVELS];
	XLogRecPtr	positions[REPL_ML_LEVELS];
	bool		needed[REPL_ML_LEVELS] = {false};
	const Verdict *verdicts = database == NULL ? NULL : judge_waiters(database);
	bool		again = false;

	for (int level = REPL_ML_QUORUM; database != NULL && level < REPL_ML_LEVELS; level++)
	{
		XLogRecPtr	position = find_position(database, level);

		if (level == REPL_ML_QUORUM && database->acknowledged[level] < position)
			note_who_decides(database, position);
		database->acknowledged[level] = Max(database->acknowledged[level], position);
		positions[level] = database->acknowledged[level];
		for_all[level] = find_shortcut(level);
		/* later commits have later positions; others may be in hand already */
		needed[level] = database->waiters[level] > 0 &&
			(database->let_go[level] < positions[level] || for_all[level] < positions[level] ||
			 verdicts != NULL);
		if (needed[level])
			database->let_go[level] = positions[level];
	}
	LWLockRelease(repl_ml_quorum->lock);

	for (int level = REPL_ML_QUORUM; level < REPL_ML_LEVELS; level++)
	{
		if (needed[level])
			again |= wake_waiters(level, positions[level], for_all[level], verdicts);
	}
	return again;
}

/*
 * Says who of those that wait is not judged by positions alone, by backend
 * number; NULL if nobody.  The result is good until the next call.  The caller
 * holds the lock.
 */
static const Verdict *
judge_waiters(const ReplMlQuorumDatabase *database)
{
	static Verdict *verdicts = NULL;

	if (database->doubtful == 0)
		return NULL;
	if (verdicts == NULL)
		verdicts = MemoryContextAlloc(TopMemoryContext, MaxBackends * sizeof(Verdict));
	for (int i = 0; i < MaxBackends; i++)
	{
		const ReplMlWaiter *waiter = &repl_ml_quorum->waiters[i];
		int			required;

		verdicts[i] = BY_POSITION;
		if (waiter->database != MyDatabaseId || repl_ml_peer_set_is_empty(&waiter->lacking))
			continue;

		/* who has parked something of it acknowledges positions behind it, too */
		required = repl_ml_quorum_required(database, waiter->level);
		if (count_members(InvalidXLogRecPtr, &waiter->lacking) < required)
			verdicts[i] = GOES;
		else if (count_members(waiter->lsn, &waiter->lacking) < required)
			verdicts[i] = STAYS;
	}
	return verdicts;
}

/* Says whether core's commits wait for us, if they wait at all. */
bool
repl_ml_quorum_owns_waits(void)
{
	return SyncRepStandbyNames != NULL && strcmp(SyncRepStandbyNames, REPL_ML_STANDBY_NAME) == 0;
}

/* Returns the queue of core's in which commits of a level wait. */
static inline int
mode_of(ReplMlLevel level)
{
	return level == REPL_ML_ALL ? SYNC_REP_WAIT_APPLY : SYNC_REP_WAIT_FLUSH;
}

/*
 * Says whether the process in core's queue commits in this database, or has
 * announced no commit at all: that one nobody else would wake.
 */
static bool
is_ours(PGPROC *proc)
{
	ReplMlWaiter *waiter = &repl_ml_quorum->waiters[proc_number_compat(proc)];

	return waiter->database == MyDatabaseId || !OidIsValid(waiter->database);
}

/*
 * Says whether a commit of this level in this database is not in core's queue
 * yet.
 */
static bool
somebody_is_coming(ReplMlLevel level)
{
	for (int i = 0; i < MaxBackends; i++)
	{
		ReplMlWaiter *waiter = &repl_ml_quorum->waiters[i];

		if (waiter->database == MyDatabaseId && waiter->level == level &&
			ProcGlobal->allProcs[i].syncRepState != SYNC_REP_WAITING)
			return true;
	}
	return false;
}

/*
 * Takes a process out of core's queue.  The caller holds core's lock, and sets
 * the process's latch.
 */
static void
leave_queue(PGPROC *proc)
{
	sync_rep_unlink_compat(proc);
	/* whoever sees the state must see that it has left the queue */
	pg_write_barrier();
	proc->syncRepState = SYNC_REP_WAIT_COMPLETE;
}

/*
 * Wakes whoever waits for a position before this one, or is judged to go.
 * Sets few latches under core's lock: others are not kept from the queue
 * meanwhile.  Returns true if somebody may come too late to be seen.
 */
static bool
wake_waiters(ReplMlLevel level, XLogRecPtr position, XLogRecPtr for_all, const Verdict *verdicts)
{
	int			mode = mode_of(level);
	PGPROC	   *woken[WOKEN_AT_ONCE];
	int			count = 0;
	PGPROC	   *proc;
	PGPROC	   *next;

	/* who comes later is let pass by core itself */
	LWLockAcquire(SyncRepLock, LW_EXCLUSIVE);
	if (WalSndCtl->lsn[mode] < for_all)
		WalSndCtl->lsn[mode] = for_all;
	for (proc = sync_rep_next_compat(mode, NULL);
		 proc != NULL && (proc->waitLSN <= position || verdicts != NULL); proc = next)
	{
		Verdict		verdict = verdicts == NULL ? BY_POSITION : verdicts[proc_number_compat(proc)];

		next = sync_rep_next_compat(mode, proc);
		if (!is_ours(proc) || verdict == STAYS ||
			(verdict == BY_POSITION && proc->waitLSN > position))
			continue;
		leave_queue(proc);
		if (count < lengthof(woken))
			woken[count++] = proc;
		else
			SetLatch(&proc->procLatch);
	}
	LWLockRelease(SyncRepLock);
	for (int i = 0; i < count; i++)
		SetLatch(&woken[i]->procLatch);
	return for_all < position && somebody_is_coming(level);
}

/*
 * Lets everybody go who waits in core's queues and has announced a commit in
 * this database, or, of InvalidOid, none at all.
 */
static void
dismiss_waiters(Oid database)
{
	LWLockAcquire(SyncRepLock, LW_EXCLUSIVE);
	for (int mode = 0; mode < NUM_SYNC_REP_WAIT_MODE; mode++)
	{
		PGPROC	   *next;

		for (PGPROC *proc = sync_rep_next_compat(mode, NULL); proc != NULL; proc = next)
		{
			next = sync_rep_next_compat(mode, proc);
			if (repl_ml_quorum->waiters[proc_number_compat(proc)].database != database)
				continue;
			leave_queue(proc);
			SetLatch(&proc->procLatch);
		}
	}
	LWLockRelease(SyncRepLock);
}

/*
 * Called by the launcher, now and then: ends the waits of those who have not
 * announced a commit. commit/commit.c sees to it that commits of level one do
 * not wait; but who commits a prepared transaction without SQL, as the apply
 * worker of a core subscription does, passes by it, and nobody else would ever
 * wake him.
 */
void
repl_ml_quorum_dismiss_strangers(void)
{
	if (repl_ml_quorum_owns_waits())
		dismiss_waiters(InvalidOid);
}

/*
 * Called in a backend that makes this database leave its group, whatever is
 * not acknowledged: no commit waits any more when this returns, and none
 * begins to until a supervisor, which must not run now, says who the members
 * are.
 */
static void
give_up_waits(void)
{
	ReplMlQuorumDatabase *database = repl_ml_quorum_database(MyDatabaseId);
	bool		waits = database != NULL;

	while (waits)
	{
		LWLockAcquire(repl_ml_quorum->lock, LW_EXCLUSIVE);
		database->members_known = false;
		waits = has_waiters(database);
		LWLockRelease(repl_ml_quorum->lock);
		if (!waits)
			break;
		/* one may still be on its way into the queue */
		dismiss_waiters(MyDatabaseId);
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, AGAIN_MS,
						 wait_event_compat("ReplMlGiveUp"));
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
	}
}

PG_FUNCTION_INFO_V1(repl_ml_give_up_waits);

/* repl_ml.give_up_waits(): see give_up_waits. */
Datum
repl_ml_give_up_waits(PG_FUNCTION_ARGS)
{
	repl_ml_shmem_require();
	give_up_waits();
	PG_RETURN_VOID();
}

/*
 * Called by a walsender: says how urgently what it sends to a peer now is
 * needed, by commits that wait, those that are sent or earlier ones.  Looks
 * without a lock: a hint.
 *
 * The level quorum needs only some of the peers.  If all hurried, the rest
 * would flush and answer for nothing.  So it is asked of those that are the
 * first most of the time, and of the others a moment later: one that is faster
 * in spite of that, because another one is slow or gone, soon takes its place.
 */
ReplMlUrgency
repl_ml_quorum_urgency(int peer)
{
	ReplMlQuorumDatabase *database = repl_ml_quorum_database(MyDatabaseId);

	if (database == NULL || !has_waiters(database))
		return REPL_ML_WHENEVER;
	return database->waiters[REPL_ML_ALL] > 0 || repl_ml_members_decides(peer) ? REPL_ML_NOW :
		REPL_ML_SOON;
}

/*
 * Says whether commits of this database wait now, or did some lately: a hint,
 * too.
 */
bool
repl_ml_quorum_in_use(void)
{
	ReplMlQuorumDatabase *database = repl_ml_quorum_database(MyDatabaseId);

	return database != NULL && database->last_begin != 0 &&
		(has_waiters(database) || repl_ml_monotonic_now() - database->last_begin < IN_USE_US);
}

/*
 * Returns up to where a level has acknowledged this database's WAL.  The
 * caller holds the lock.
 */
XLogRecPtr
repl_ml_quorum_acknowledged(ReplMlLevel level)
{
	ReplMlQuorumDatabase *database = repl_ml_quorum_database(MyDatabaseId);

	return database == NULL ? InvalidXLogRecPtr : database->acknowledged[level];
}
