/*
 * locked.c
 *		What a change waits for: locks that others hold.
 *
 * While a change is applied a timer looks at the lock it waits for.  It
 * interrupts the change in two cases.  A commit that waits to be acknowledged
 * holds the lock, or somebody who waits for such a commit: then it might never
 * be let go (aside.c).  The same is done where a large transaction holds it that
 * is applied beside (bulk.c): the stream need not wait for that.  Or the stream
 * has waited for that lock, or for another one of the same transaction, as long as
 * repl_ml.apply_lock_timeout allows: then the change is parked without waiting
 * again (change.c), and retry.c tries it until the lock is gone.  Looking costs
 * next to nothing where nobody waits.
 *
 * Locks are known by their tags: a row's is that of the transaction that holds
 * it.  What nobody has met for a while is forgotten.
 *
 * Called in apply workers by dispatch.c, change.c, replay.c, again.c,
 * group/worker.c and copy/; takes LWLocks of the lock table only outside the
 * timer's handler.
 */
#include "postgres.h"

#include "access/twophase.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "replication/syncrep.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/lock.h"
#include "storage/proc.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timeout.h"

#include "apply/apply.h"
#include "compat.h"
#include "server/server.h"

#define LOOK_INTERVAL_MS	5
#define SHORT_INTERVAL_MS	2	/* the same, where commits have waited lately, or
								 * a lock is known to stay */
#define STUCK_LOOK_US		500 /* ... and then the first time */
#define LONGEST_CHAIN		8
#define MOST_LOCKS			32
#define FORGET_MS			3000	/* after a lock was met last */

/* A lock that was not granted in time. */
typedef struct MetLock
{
	LOCKTAG		tag;
	VirtualTransactionId holder;	/* invalid: nobody, when we looked */
	TimestampTz since;			/* met first, or another of this holder's */
	TimestampTz last;			/* met last; 0: the entry is free */
} MetLock;

/* Written by this file only; "last" also by the timer's handler. */
static MetLock met[MOST_LOCKS];

/* What interrupted the change that is watched, or was last. */
typedef enum Obstacle
{
	NO_OBSTACLE,
	WAITING_COMMIT,
	STUCK_LOCK
} Obstacle;

/* Of the change that is watched; the handler writes them. */
static volatile sig_atomic_t obstacle = NO_OBSTACLE;
static volatile bool awaits = false;
static LOCKTAG awaited;			/* the last lock it waited for, if "awaits" */
static LOCKMODE awaited_mode;
static bool watching = false;
static bool mind_commits = false;
static TimeoutId timeout_id = MAX_TIMEOUTS;
static const ReplMlDatabase *place = NULL;	/* this database's; set when first known */

static void look_at_lock(void);
static MetLock *find_met(const LOCKTAG *tag, TimestampTz now);
static bool is_stuck(const MetLock *lock, TimestampTz now);
static bool waits_for_commit(PGPROC *proc, int depth);
static char *describe_object(void);
static char *describe_holder(void);

/*
 * Sets how long one wait for a lock may be; the apply worker calls it before
 * the first change, and when settings have changed.
 */
void
repl_ml_locked_settle(void)
{
	char		value[32];

	/* give up before a client that waits for us is told of a deadlock ... */
	snprintf(value, sizeof(value), "%d",
			 Max(Min(DeadlockTimeout * 3 / 4, repl_ml_apply_lock_timeout), 10));
	SetConfigOption("lock_timeout", value, PGC_SUSET, PGC_S_OVERRIDE);
}

/*
 * Begins to watch what a change waits for, until repl_ml_locked_unwatch; where
 * commits wait to be acknowledged these, too.
 */
void
repl_ml_locked_watch(bool commits)
{
	TimestampTz now = GetCurrentTimestamp();
	bool		any = false;
	int			interval;

	if (timeout_id == MAX_TIMEOUTS)
		timeout_id = RegisterTimeout(USER_TIMEOUT, look_at_lock);
	/* the handler must not look for it */
	if (place == NULL)
		place = repl_ml_shmem_database(MyDatabaseId);
	for (int i = 0; i < MOST_LOCKS && !any; i++)
		any = met[i].last != 0 && now - met[i].last <= FORGET_MS * INT64CONST(1000);
	interval = any || commits ? SHORT_INTERVAL_MS : LOOK_INTERVAL_MS;
	obstacle = NO_OBSTACLE;
	awaits = false;
	mind_commits = commits;
	watching = true;
	enable_timeout_every(timeout_id, now + (any ? STUCK_LOOK_US : interval * 1000), interval);
}

/*
 * Called in place of repl_ml_locked_watch where that is not worth its cost: if the
 * change meets a lock, nobody knows which.
 */
void
repl_ml_locked_ignore(void)
{
	obstacle = NO_OBSTACLE;
	awaits = false;
}

/*
 * Ends watching; what the timer asked for and nobody has noticed is forgotten.
 */
void
repl_ml_locked_unwatch(void)
{
	if (!watching)
		return;
	disable_timeout(timeout_id, false);
	if (obstacle != NO_OBSTACLE)
		QueryCancelPending = false;
	obstacle = NO_OBSTACLE;
	watching = false;
}

/*
 * Says, until repl_ml_locked_unwatch, whether the change with that error was
 * interrupted because of a waiting commit.
 */
bool
repl_ml_locked_by_commit(int sqlstate)
{
	return obstacle == WAITING_COMMIT && sqlstate == ERRCODE_QUERY_CANCELED;
}

/*
 * Says, until repl_ml_locked_unwatch, whether the change with that error was
 * interrupted because a lock was in its way that the stream waits for no
 * longer.
 */
bool
repl_ml_locked_for_long(int sqlstate)
{
	return obstacle == STUCK_LOCK && sqlstate == ERRCODE_QUERY_CANCELED;
}

/*
 * Says whether the error is the fate of a change that met others' locks, not
 * one of its own.
 */
bool
repl_ml_locked_is_race(int sqlstate)
{
	return sqlstate == ERRCODE_T_R_DEADLOCK_DETECTED || sqlstate == ERRCODE_LOCK_NOT_AVAILABLE ||
		repl_ml_locked_for_long(sqlstate);
}

/*
 * The timer's handler, which may also run while the process ends: interrupts
 * the change if it waits for what is not to be waited for.
 */
static void
look_at_lock(void)
{
	LOCK	   *lock = MyProc == NULL || proc_exit_inprogress ? NULL : MyProc->waitLock;
	TimestampTz now;
	MetLock    *entry;

	if (lock == NULL || obstacle != NO_OBSTACLE)
		return;
	awaited = lock->tag;
	awaited_mode = MyProc->waitLockMode;
	awaits = true;
	now = GetCurrentTimestamp();
	entry = find_met(&awaited, now);
	if (mind_commits && waits_for_commit(MyProc, 0))
		obstacle = WAITING_COMMIT;
	else if (entry != NULL && is_stuck(entry, now))
	{
		entry->last = now;
		obstacle = STUCK_LOCK;
	}
	else
		return;

	/* as a cancel by a person would */
	InterruptPending = true;
	QueryCancelPending = true;
	SetLatch(MyLatch);
}

/* Returns the entry of a lock, if it has been met lately; NULL if not. */
static MetLock *
find_met(const LOCKTAG *tag, TimestampTz now)
{
	for (int i = 0; i < MOST_LOCKS; i++)
	{
		if (met[i].last != 0 && memcmp(&met[i].tag, tag, sizeof(LOCKTAG)) == 0)
			return now - met[i].last <= FORGET_MS * INT64CONST(1000) ? &met[i] : NULL;
	}
	return NULL;
}

/* Says whether the stream has waited for the lock as long as it may. */
static bool
is_stuck(const MetLock *lock, TimestampTz now)
{
	return now - lock->since >= repl_ml_apply_lock_timeout * INT64CONST(1000);
}

/*
 * Returns who holds the lock that was awaited, or another lock in its way;
 * invalid if nobody does any more.
 */
static VirtualTransactionId
find_awaited_holder(void)
{
	VirtualTransactionId holder;

	SetInvalidVirtualTransactionId(holder);
	if (awaits)
		holder = GetLockConflicts(&awaited, awaited_mode, NULL)[0];
	return holder;
}

/*
 * Notes, after an error of repl_ml_locked_is_race, the lock that was in the
 * way.  "waited" says since when its transaction is known to be in the way, 0:
 * for too long.
 */
void
repl_ml_locked_note(TimestampTz waited)
{
	TimestampTz now = GetCurrentTimestamp();
	MetLock    *entry = find_met(&awaited, now);
	VirtualTransactionId holder;

	if (!awaits)
		return;
	holder = find_awaited_holder();

	/* in place of the one that was met longest ago */
	if (entry == NULL)
	{
		entry = &met[0];
		for (int i = 1; i < MOST_LOCKS; i++)
		{
			if (met[i].last < entry->last || memcmp(&met[i].tag, &awaited, sizeof(LOCKTAG)) == 0)
				entry = &met[i];
		}
		entry->last = 0;
		entry->tag = awaited;
		entry->since = now;
	}
	for (int i = 0; i < MOST_LOCKS && VirtualTransactionIdIsValid(holder); i++)
	{
		if (VirtualTransactionIdEquals(met[i].holder, holder) && find_met(&met[i].tag, now) != NULL)
			entry->since = Min(entry->since, met[i].since);
	}
	entry->since = Min(entry->since, waited);
	entry->holder = holder;
	entry->last = now;
}

/*
 * Returns the table of that name, if it was what the last change awaited, as a
 * whole; else InvalidOid.  In a transaction.
 */
Oid
repl_ml_locked_table(const char *schema_name, const char *table_name)
{
	Oid			relid = awaited.locktag_field2;
	char	   *name;

	if (!awaits || awaited.locktag_type != LOCKTAG_RELATION)
		return InvalidOid;
	name = get_rel_name(relid);
	return name != NULL && strcmp(name, table_name) == 0 &&
		strcmp(get_namespace_name(get_rel_namespace(relid)), schema_name) == 0 ? relid : InvalidOid;
}

/*
 * Makes of an error of repl_ml_locked_is_race what is shown of the parked
 * change: what is locked, and by whom; returns false if nobody knows.  In a
 * transaction, and in the current context.
 */
bool
repl_ml_locked_describe(ErrorData *error)
{
	char	   *object = describe_object();
	char	   *holder = describe_holder();

	error->sqlerrcode = ERRCODE_LOCK_NOT_AVAILABLE;
	error->message = psprintf("%s is locked by %s", object, holder);
	error->detail = pstrdup("The change is tried again until it is not.");
	return awaits;
}

/* Returns what is locked, as a person would say it. */
static char *
describe_object(void)
{
	Oid			relid = awaited.locktag_field2;

	if (!awaits)
		return pstrdup("something it needs");
	switch (awaited.locktag_type)
	{
		case LOCKTAG_RELATION:
			if (get_rel_name(relid) == NULL)
				return pstrdup("something it needs");
			return psprintf("%s \"%s.%s\"",
							get_rel_relkind(relid) == RELKIND_INDEX ||
							get_rel_relkind(relid) == RELKIND_PARTITIONED_INDEX ? "index" : "table",
							get_namespace_name(get_rel_namespace(relid)), get_rel_name(relid));
		case LOCKTAG_TRANSACTION:
		case LOCKTAG_TUPLE:
			return pstrdup("a row it needs");
		default:
			return pstrdup("something it needs");
	}
}

/* Returns the name of a prepared transaction; NULL if it has been finished. */
static char *
find_gid(TransactionId xid)
{
	Oid			types[1] = {TEXTOID};
	Datum		values[1] = {CStringGetTextDatum(psprintf("%u", xid))};
	MemoryContext context = CurrentMemoryContext;
	char	   *name = NULL;

	PushActiveSnapshot(GetTransactionSnapshot());
	SPI_connect();
	SPI_execute_with_args("SELECT gid FROM pg_catalog.pg_prepared_xacts"
						  " WHERE transaction::pg_catalog.text OPERATOR(pg_catalog.=) $1",
						  1, types, values, NULL, true, 1);
	if (SPI_processed > 0)
		name = MemoryContextStrdup(context, repl_ml_spi_text(0, 0));
	SPI_finish();
	PopActiveSnapshot();
	return name;
}

/* Returns who holds the lock: a process or a prepared transaction. */
static char *
describe_holder(void)
{
	VirtualTransactionId holder = find_awaited_holder();
	int			count = ProcGlobal->allProcCount + max_prepared_xacts;	/* it excludes these */

	for (int i = 0; VirtualTransactionIdIsValid(holder) && i < count; i++)
	{
		PGPROC	   *proc = &ProcGlobal->allProcs[i];
		VirtualTransactionId its;
		char	   *gid;

		GET_VXID_FROM_PGPROC(its, *proc);
		if (!VirtualTransactionIdEquals(its, holder))
			continue;
		if (proc->pid != 0)
			return psprintf("process %d", proc->pid);
		gid = find_gid(proc->xid);
		if (gid != NULL)
			return psprintf("the prepared transaction \"%s\"", gid);
	}
	return pstrdup("another transaction");
}

/*
 * Returns the process that runs the transaction, or of which it is a part;
 * NULL if none does.
 */
static PGPROC *
find_holder(TransactionId xid)
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

/* Says whether any process waits for a commit that waits. */
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

/* Says whether any commit waits. */
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

/* Says whether a large transaction is applied beside, by another process than this. */
static bool
bulk_runs(void)
{
	return place != NULL && place->bulk_peer != 0 && place->bulk_pid != MyProcPid;
}

/*
 * Says whether the process is one whose transaction is not to be waited for: it
 * is a commit that waits, or a large transaction that is applied beside.
 */
static bool
takes_long(const PGPROC *proc)
{
	return proc->syncRepState == SYNC_REP_WAITING || (bulk_runs() && proc->pid == place->bulk_pid);
}

/*
 * Says whether the process waits for a commit that waits, for somebody who
 * does, or, in the line for a row, behind somebody who does; or for a large
 * transaction that is applied beside.  Looks at others'
 * locks without locks of its own: a wrong answer costs a repetition.
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
			holder = find_holder(lock->tag.locktag_field1);
			return holder != NULL && holder != proc &&
				(takes_long(holder) || waits_for_commit(holder, depth + 1));
		case LOCKTAG_TUPLE:
			return anybody_waits_for_commit(depth + 1);
		case LOCKTAG_RELATION:
			return any_commit_waits() || bulk_runs();
		case LOCKTAG_ADVISORY:
			return bulk_runs();
		default:
			return false;
	}
}
