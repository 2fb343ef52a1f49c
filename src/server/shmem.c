/*
 * shmem.c
 *		The shared structure: size, creation, lookups.
 *
 * Everything is read and written under repl_ml_shared->lock, which is never held
 * over I/O or a wait; but for the atomics, and for the flags of a database
 * (ReplMlDatabase), each of which means something by itself.  Not here: what the
 * values mean (ticker.c for counters, group/supervisor.c and group/worker.c for
 * workers), nor what rooms keep in segments of their own (commit/quorum.c).
 */
#include "postgres.h"

#include "common/hashfn.h"
#include "miscadmin.h"
#include "storage/ipc.h"
#include "storage/shmem.h"
#include "utils/timestamp.h"

#include "server/server.h"

#define LOCK_TRANCHE	"repl_ml"

ReplMlShared *repl_ml_shared = NULL;

static const ReplMlSegment *segments = NULL;	/* beside the shared structure */
static int	segment_count = 0;
static shmem_request_hook_type previous_request_hook = NULL;
static shmem_startup_hook_type previous_startup_hook = NULL;

static void request_space(void);
static void create_struct(void);

/*
 * Called by _PG_init while the server starts: installs the hooks that reserve
 * and create the shared structure, and beside it these segments, which are
 * under one lock of their own and must live as long as the process.
 */
void
repl_ml_shmem_init(const ReplMlSegment *others, int count)
{
	segments = others;
	segment_count = count;
	previous_request_hook = shmem_request_hook;
	shmem_request_hook = request_space;
	previous_startup_hook = shmem_startup_hook;
	shmem_startup_hook = create_struct;
}

/*
 * Returns the size of the shared structure, which depends on max_connections.
 */
static Size
shared_size(void)
{
	return add_size(offsetof(ReplMlShared, first_tick),
					mul_size(MaxBackends, sizeof(pg_atomic_uint64)));
}

/* The postmaster's hook: reserves the space and the locks. */
static void
request_space(void)
{
	if (previous_request_hook)
		previous_request_hook();
	RequestAddinShmemSpace(shared_size());
	for (int i = 0; i < segment_count; i++)
		RequestAddinShmemSpace(segments[i].size());
	RequestNamedLWLockTranche(LOCK_TRANCHE, 3);
}

/*
 * Creates, for create_struct, the space of one segment, all zeros at a
 * server's start, and tells its room where it is.
 */
static void
create_segment(const ReplMlSegment *segment)
{
	bool		found;
	void	   *space = ShmemInitStruct(segment->name, segment->size(), &found);

	if (!found)
		memset(space, 0, segment->size());
	segment->init(space, &GetNamedLWLockTranche(LOCK_TRANCHE)[2].lock);
}

/*
 * The postmaster's hook, again after a crash, and that of each process where
 * processes do not inherit memory: creates the shared structure, or finds it.
 */
static void
create_struct(void)
{
	bool		found;

	if (previous_startup_hook)
		previous_startup_hook();

	LWLockAcquire(AddinShmemInitLock, LW_EXCLUSIVE);
	repl_ml_shared = ShmemInitStruct("repl_ml", shared_size(), &found);
	if (!found)
	{
		LWLockPadded *locks = GetNamedLWLockTranche(LOCK_TRANCHE);

		memset(repl_ml_shared, 0, shared_size());
		repl_ml_shared->lock = &locks[0].lock;
		repl_ml_shared->clock_file_lock = &locks[1].lock;
		ConditionVariableInit(&repl_ml_shared->advanced);
		pg_atomic_init_u64(&repl_ml_shared->counter, 0);
		pg_atomic_init_u64(&repl_ml_shared->counter_bound, 0);
		pg_atomic_init_u64(&repl_ml_shared->group_clock, 0);
		pg_atomic_init_u32(&repl_ml_shared->copies, 0);
		pg_atomic_init_u64(&repl_ml_shared->news_begun, 0);
		pg_atomic_init_u64(&repl_ml_shared->news_ended, 0);
		pg_atomic_init_u64(&repl_ml_shared->news_told, 0);
		pg_atomic_init_u64(&repl_ml_shared->first_xid, 0);
		pg_atomic_init_u32(&repl_ml_shared->peer_walsenders, 0);
		for (int i = 0; i < REPL_ML_MAX_DATABASES; i++)
			pg_atomic_init_u64(&repl_ml_shared->databases[i].tombstones, 0);
		for (int i = 0; i < MaxBackends; i++)
			pg_atomic_init_u64(&repl_ml_shared->first_tick[i], 0);
	}
	for (int i = 0; i < segment_count; i++)
		create_segment(&segments[i]);
	LWLockRelease(AddinShmemInitLock);

	/* both read files, which must not happen under the lock */
	if (!found)
	{
		repl_ml_ticker_startup();
		repl_ml_crash_startup();
	}
}

/*
 * Raises the error every entry point gives where the library is not preloaded.
 */
void
repl_ml_shmem_require(void)
{
	if (repl_ml_shared == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("repl_ml must be loaded at server start"),
				 errhint("Add \"repl_ml\" to \"shared_preload_libraries\" in postgresql.conf and "
						 "restart the server.")));
}

/*
 * Returns the entry of a database; NULL if it has none, because it is no
 * member, or nobody has said so since the server started.  The pointer is good
 * as long as the database is a member.
 */
ReplMlDatabase *
repl_ml_shmem_database(Oid database)
{
	static ReplMlDatabase *mine = NULL; /* of this process's database */
	ReplMlDatabase *found = NULL;

	if (mine != NULL && mine->database == database)
		return mine;

	LWLockAcquire(repl_ml_shared->lock, LW_SHARED);
	for (int i = 0; i < REPL_ML_MAX_DATABASES && found == NULL; i++)
	{
		if (repl_ml_shared->databases[i].database == database)
			found = &repl_ml_shared->databases[i];
	}
	LWLockRelease(repl_ml_shared->lock);

	if (database == MyDatabaseId)
		mine = found;
	return found;
}

/*
 * Returns the entry of a database that is, or is about to be, a member, and
 * makes it if need be; NULL if there is none left.
 */
ReplMlDatabase *
repl_ml_shmem_take_database(Oid database)
{
	ReplMlDatabase *found = NULL;

	LWLockAcquire(repl_ml_shared->lock, LW_EXCLUSIVE);
	for (int i = 0; i < REPL_ML_MAX_DATABASES && found == NULL; i++)
	{
		if (repl_ml_shared->databases[i].database == database)
			found = &repl_ml_shared->databases[i];
	}
	for (int i = 0; i < REPL_ML_MAX_DATABASES && found == NULL; i++)
	{
		if (!OidIsValid(repl_ml_shared->databases[i].database))
			found = &repl_ml_shared->databases[i];
	}
	if (found != NULL)
	{
		found->database = database;
		found->member = true;
	}
	LWLockRelease(repl_ml_shared->lock);
	return found;
}

/*
 * Called by the launcher: gives the entry and the worker slots of a database
 * free that is no member, unless somebody still uses them.
 */
void
repl_ml_shmem_release_database(Oid database)
{
	ReplMlDatabase *entry = repl_ml_shmem_database(database);
	bool		in_use;

	if (entry == NULL)
		return;
	LWLockAcquire(repl_ml_shared->lock, LW_EXCLUSIVE);
	in_use = entry->verifier_pid != 0;
	foreach_worker(worker, database)
		in_use |= worker->pid != 0;
	if (!in_use && !entry->member)
	{
		foreach_worker(worker, database)
			worker->database = InvalidOid;
		entry->tombstones_known = false;
		entry->verifier_launched = 0;
		entry->verifier_refused = false;
		pg_atomic_write_u64(&entry->tombstones, 0);
		entry->database = InvalidOid;
	}
	LWLockRelease(repl_ml_shared->lock);
}

/* Says whether the database is a member, as far as this server knows. */
bool
repl_ml_shmem_is_member(Oid database)
{
	ReplMlDatabase *entry = repl_ml_shmem_database(database);

	return entry != NULL && entry->member;
}

/*
 * Returns the bit that stands for a table, and for others with the same hash.
 */
static uint64
tombstone_bit(Oid relid)
{
	return UINT64CONST(1) << (murmurhash32(relid) % REPL_ML_TOMBSTONE_BITS);
}

/*
 * Called by whoever is about to write a tombstone: tells every backend that
 * "relid" may have deleted rows from now on.
 */
void
repl_ml_shmem_mark_tombstone(Oid relid)
{
	ReplMlDatabase *entry = repl_ml_shmem_database(MyDatabaseId);

	/* the first one since the server started, before the supervisor has come */
	if (entry == NULL)
		entry = repl_ml_shmem_take_database(MyDatabaseId);
	if (entry != NULL)
		pg_atomic_fetch_or_u64(&entry->tombstones, tombstone_bit(relid));
}

/*
 * Says whether a writer of "relid" has to look for tombstones; false only if
 * it certainly has none.
 */
bool
repl_ml_shmem_may_have_tombstone(Oid relid)
{
	ReplMlDatabase *entry = repl_ml_shmem_database(MyDatabaseId);

	return entry == NULL || !entry->tombstones_known ||
		(pg_atomic_read_u64(&entry->tombstones) & tombstone_bit(relid)) != 0;
}

/*
 * Called by an apply worker that finds a row of repl_ml.unsent, or is about to
 * write one.
 */
void
repl_ml_shmem_mark_unsent(void)
{
	ReplMlDatabase *entry = repl_ml_shmem_database(MyDatabaseId);

	if (entry != NULL)
		entry->may_lack = true;
}

/*
 * Says whether an apply worker has to look at repl_ml.unsent; false only if it
 * certainly has no row, which every apply worker looks up when it begins.
 */
bool
repl_ml_shmem_may_lack(void)
{
	ReplMlDatabase *entry = repl_ml_shmem_database(MyDatabaseId);

	return entry == NULL || entry->may_lack;
}

/*
 * Returns the slot of (database, peer), made on first use; NULL when all are
 * taken.  The caller holds the lock exclusively.
 */
ReplMlWorker *
repl_ml_shmem_worker(Oid database, int peer)
{
	ReplMlWorker *unused;

	Assert(LWLockHeldByMe(repl_ml_shared->lock));
	foreach_worker(worker, database)
	{
		if (worker->peer == peer)
			return worker;
	}
	unused = repl_ml_worker_after(NULL, InvalidOid);
	if (unused != NULL)
	{
		memset(unused, 0, sizeof(ReplMlWorker));
		pg_atomic_init_u64(&unused->current_changes, 0);
		pg_atomic_init_u64(&unused->current_parked, 0);
		unused->database = database;
		unused->peer = peer;
		unused->counts_since = GetCurrentTimestamp();
		unused->state = REPL_ML_WORKER_STOPPED;
	}
	return unused;
}

/*
 * Returns copies of this database's workers, as views show them, palloc'd, and sets
 * how many; the supervisor's is among them.
 */
ReplMlWorker *
repl_ml_shmem_copy_workers(int *count)
{
	ReplMlWorker *copies;

	repl_ml_shmem_require();
	copies = palloc(sizeof(ReplMlWorker) * REPL_ML_MAX_WORKERS);
	*count = 0;
	LWLockAcquire(repl_ml_shared->lock, LW_SHARED);
	foreach_worker(worker, MyDatabaseId)
		copies[(*count)++] = *worker;
	LWLockRelease(repl_ml_shared->lock);
	return copies;
}

/* Makes the database's supervisor look at the catalogs again at once. */
void
repl_ml_shmem_wake_supervisor(Oid database)
{
	LWLockAcquire(repl_ml_shared->lock, LW_SHARED);
	foreach_worker(worker, database)
	{
		if (worker->peer == 0 && worker->pid != 0)
			SetLatch(worker->latch);
	}
	LWLockRelease(repl_ml_shared->lock);
}

/*
 * Called by repl_ml.retry_parked(): makes the apply workers of a database try
 * parked changes again at once.
 */
void
repl_ml_shmem_retry_parked(Oid database)
{
	LWLockAcquire(repl_ml_shared->lock, LW_EXCLUSIVE);
	foreach_worker(worker, database)
	{
		if (worker->peer == 0)
			continue;
		worker->retry_parked = true;
		if (worker->pid != 0)
			SetLatch(worker->latch);
	}
	LWLockRelease(repl_ml_shared->lock);
}

/*
 * Called by whoever is about to make a database a member, and by its supervisor: it is
 * to have a supervisor.  Raises an error if the server has no room for one more.
 */
void
repl_ml_shmem_set_member(Oid database)
{
	if (repl_ml_shmem_take_database(database) == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
				 errmsg("repl_ml serves at most %d databases of a server", REPL_ML_MAX_DATABASES),
				 errhint("Run SELECT repl_ml.leave_group() in a database that need not be a "
						 "member, or use another server.")));
}

/*
 * Called after a commit that may have made this database a member: whoever has looked
 * before, and found none, may not end its membership.
 */
void
repl_ml_shmem_note_membership(void)
{
	LWLockAcquire(repl_ml_shared->lock, LW_EXCLUSIVE);
	repl_ml_shared->memberships++;
	LWLockRelease(repl_ml_shared->lock);
	(void) repl_ml_shmem_take_database(MyDatabaseId);
}

/* Returns what a supervisor has to know before it looks whether its database is a member. */
uint64
repl_ml_shmem_memberships(void)
{
	uint64		memberships;

	LWLockAcquire(repl_ml_shared->lock, LW_SHARED);
	memberships = repl_ml_shared->memberships;
	LWLockRelease(repl_ml_shared->lock);
	return memberships;
}

/*
 * Called by the supervisor of a database that was no member when it looked, after it had
 * "seen" repl_ml_shmem_memberships: the launcher starts none any more.  If a commit has
 * come between, the launcher starts one, which looks again.
 */
void
repl_ml_shmem_end_member(Oid database, uint64 seen)
{
	ReplMlDatabase *entry = repl_ml_shmem_database(database);

	LWLockAcquire(repl_ml_shared->lock, LW_EXCLUSIVE);
	if (entry != NULL && entry->database == database && repl_ml_shared->memberships == seen)
		entry->member = false;
	LWLockRelease(repl_ml_shared->lock);
}

/* Makes the launcher look for work at once. */
void
repl_ml_shmem_wake_launcher(void)
{
	LWLockAcquire(repl_ml_shared->lock, LW_SHARED);
	if (repl_ml_shared->launcher_latch != NULL)
		SetLatch(repl_ml_shared->launcher_latch);
	LWLockRelease(repl_ml_shared->lock);
}

/* Returns the name views show for a worker's state. */
const char *
repl_ml_worker_state_name(ReplMlWorkerState state)
{
	static const char *const names[] = {
		[REPL_ML_WORKER_STARTING] = "starting",
		[REPL_ML_WORKER_CONNECTING] = "connecting",
		[REPL_ML_WORKER_PREPARING] = "preparing",
		[REPL_ML_WORKER_COPYING] = "copying",
		[REPL_ML_WORKER_STREAMING] = "streaming",
		[REPL_ML_WORKER_PAUSED] = "paused",
		[REPL_ML_WORKER_WAITING] = "waiting",
		[REPL_ML_WORKER_STOPPED] = "stopped",
	};

	return names[state];
}
