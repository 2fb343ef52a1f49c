/*
 * beside.c
 *		Applies large transactions beside the streams: a process of its own, which
 *		the supervisor starts when one has been put aside, and which ends when none
 *		is left.
 *
 * It takes them one after the other, whichever peer's they are, as any order
 * will do.  One that fails, or meets others' locks for too long, has its turn
 * again after the others, and a pause.  All there is to know is in tables, so a
 * restart only begins the present one again.
 *
 * Not here: how they are kept and applied (apply/pieces.c, apply/bulk.c), and
 * who else does it where there is no room for the process (group/worker.c).
 * Locks: repl_ml_shared->lock, for the process's place.
 */
#include "postgres.h"

#include <signal.h>

#include "access/xact.h"
#include "miscadmin.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "replication/origin.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "tcop/tcopprot.h"
#include "utils/guc.h"
#include "utils/memutils.h"

#include "apply/apply.h"
#include "compat.h"
#include "group/group.h"
#include "read/read.h"
#include "server/server.h"

#define START_PATIENCE_MS	5000	/* one that was asked for shows up by then */
#define FIRST_DELAY_MS		200

static ReplMlApply apply;		/* of the process; this file only */
static ReplMlPeer peer;			/* whose transaction is applied */
static ReplMlWorker nowhere;	/* where it shows what is not for repl_ml.stat_apply */
static ReplMlDatabase *place = NULL;	/* its database's; set once at start */

static bool start_process(ReplMlDatabase *entry);
static void detach_process(int code, Datum arg);
static bool attempt(const ReplMlBulk *bulk);
static bool recover(void);

/* ---- the supervisor's part ---- */

/* Says whether any large transaction waits to be applied. */
static bool
is_needed(ReplMlDatabase *entry)
{
	ReplMlBulk	bulk;

	/* before the look, so that what comes meanwhile is seen the next time */
	LWLockAcquire(repl_ml_shared->lock, LW_EXCLUSIVE);
	entry->no_bulk = true;
	LWLockRelease(repl_ml_shared->lock);
	if (!repl_ml_bulk_find(0, 0, &bulk))
		return false;
	LWLockAcquire(repl_ml_shared->lock, LW_EXCLUSIVE);
	entry->no_bulk = false;
	LWLockRelease(repl_ml_shared->lock);
	return true;
}

/*
 * Called by the supervisor in each round: starts the process when there is
 * something for it.
 */
void
repl_ml_beside_tend(void)
{
	ReplMlDatabase *entry = repl_ml_shmem_database(MyDatabaseId);
	TimestampTz now = GetCurrentTimestamp();
	bool		due;

	if (entry == NULL)
		return;
	LWLockAcquire(repl_ml_shared->lock, LW_SHARED);
	/* a time to come is of before the clock was set back */
	due = entry->bulk_pid == 0 && !entry->no_bulk &&
		(entry->bulk_launched > now ||
		 TimestampDifferenceExceeds(entry->bulk_launched, now, START_PATIENCE_MS));
	LWLockRelease(repl_ml_shared->lock);
	if (!due)
		return;
	entry->bulk_refused = is_needed(entry) && !start_process(entry);
}

/* Starts the process; returns false, with a warning once, if the server has no room for it. */
static bool
start_process(ReplMlDatabase *entry)
{
	if (repl_ml_process_start("repl_ml_beside_main", "repl_ml bulk apply",
							  "repl_ml apply of large transactions in database"))
	{
		LWLockAcquire(repl_ml_shared->lock, LW_EXCLUSIVE);
		entry->bulk_launched = GetCurrentTimestamp();
		LWLockRelease(repl_ml_shared->lock);
		return true;
	}
	if (!entry->bulk_refused)
		ereport(WARNING,
				(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
				 errmsg("out of background worker slots: large transactions hold up the others"),
				 errhint("Raise max_worker_processes; SELECT * FROM repl_ml.check_setup() says how "
						 "far.")));
	return false;
}

/*
 * Ends the database's process if it runs, for stop_workers and the supervisor of a
 * node that takes no part any more; returns whether it does.
 */
bool
repl_ml_beside_end(void)
{
	ReplMlDatabase *entry = repl_ml_shmem_database(MyDatabaseId);
	bool		running;

	if (entry == NULL)
		return false;
	LWLockAcquire(repl_ml_shared->lock, LW_SHARED);
	running = entry->bulk_pid != 0;
	if (running)
		kill(entry->bulk_pid, SIGTERM);
	LWLockRelease(repl_ml_shared->lock);
	return running;
}

/* Says whether a large transaction of the peer is being applied. */
bool
repl_ml_beside_is_at(int node)
{
	ReplMlDatabase *entry = repl_ml_shmem_database(MyDatabaseId);
	bool		is_at;

	if (entry == NULL)
		return false;
	LWLockAcquire(repl_ml_shared->lock, LW_SHARED);
	is_at = entry->bulk_pid != 0 && entry->bulk_peer == node;
	LWLockRelease(repl_ml_shared->lock);
	return is_at;
}

/* ---- the process ---- */

/*
 * Takes the database's place, and that of its supervisor, which applies nothing,
 * among those who note what they are doing (server/crash.c).  Returns false if
 * there is none, or another process has it.
 */
static bool
attach_process(Oid database)
{
	ReplMlWorker *supervisor = NULL;
	char	   *message;

	place = repl_ml_shmem_database(database);
	if (place == NULL)
		return false;
	LWLockAcquire(repl_ml_shared->lock, LW_EXCLUSIVE);
	if (place->database == database && place->member && place->bulk_pid == 0)
		supervisor = repl_ml_shmem_worker(database, 0);
	/* a database that is being left starts nobody */
	if (supervisor != NULL && supervisor->stop)
		supervisor = NULL;
	if (supervisor != NULL)
	{
		place->bulk_pid = MyProcPid;
		place->bulk_peer = 0;
	}
	LWLockRelease(repl_ml_shared->lock);
	if (supervisor == NULL)
		return false;
	before_shmem_exit(detach_process, (Datum) 0);
	message = repl_ml_crash_attach(supervisor - repl_ml_shared->workers);
	if (message != NULL)
		ereport(LOG,
				(errmsg_internal("%s", message)));
	return true;
}

/* Gives the place back when the process ends, and wakes the supervisor. */
static void
detach_process(int code, Datum arg)
{
	LWLockAcquire(repl_ml_shared->lock, LW_EXCLUSIVE);
	repl_ml_crash_detach(place->member ? code : 0);
	place->bulk_pid = 0;
	place->bulk_peer = 0;
	place->bulk_launched = 0;
	LWLockRelease(repl_ml_shared->lock);
	repl_ml_shmem_wake_supervisor(place->database);
}

/*
 * Says whether the transaction's turn may come now: not while its peer is
 * paused.  From then on pause_apply waits for its end.
 */
static bool
begin_turn(const ReplMlBulk *bulk)
{
	bool		paused = false;

	LWLockAcquire(repl_ml_shared->lock, LW_EXCLUSIVE);
	foreach_worker(worker, MyDatabaseId)
		paused |= worker->peer == bulk->node && worker->pause;
	place->bulk_peer = paused ? 0 : bulk->node;
	LWLockRelease(repl_ml_shared->lock);
	return !paused;
}

/* Ends what begin_turn began. */
static void
end_turn(void)
{
	LWLockAcquire(repl_ml_shared->lock, LW_EXCLUSIVE);
	place->bulk_peer = 0;
	LWLockRelease(repl_ml_shared->lock);
}

/* Notes who this node is, and whose transaction comes next. */
static void
load_names(const ReplMlBulk *bulk)
{
	const ReplMlIdentity *self;
	char	   *name;

	repl_ml_begin();
	self = repl_ml_identity_require();
	apply.self = self->node_id;
	apply.group_id = self->group_id;
	SPI_execute(psprintf("SELECT node_name FROM repl_ml.member"
						 " WHERE node_id OPERATOR(pg_catalog.=) %d", bulk->node), true, 1);
	name = SPI_processed == 1 ? repl_ml_spi_text(0, 0) : NULL;
	if (peer.node_name != NULL)
		pfree(peer.node_name);
	peer.node_name = MemoryContextStrdup(TopMemoryContext, name == NULL ? "" : name);
	peer.node_id = bulk->node;
	repl_ml_commit();
	MemoryContextSwitchTo(apply.message_context);
}

/* Sleeps, as nothing can be done at once. */
static void
pause_for(int delay)
{
	(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, delay,
					 wait_event_compat("ReplMlApplyDelay"));
	ResetLatch(MyLatch);
	CHECK_FOR_INTERRUPTS();
	if (ConfigReloadPending)
	{
		ConfigReloadPending = false;
		ProcessConfigFile(PGC_SIGHUP);
		repl_ml_locked_settle();
	}
}

/* Makes the process's state and settings. */
static void
prepare(void)
{
	repl_ml_worker_prepare(&apply);
	apply.peer = &peer;
	apply.worker = &nowhere;
	apply.late = true;
	/* what is parked of it has counted: there is nobody to tell */
	apply.progress.told = PG_UINT64_MAX;
	/* it stays on this node, and moves no origin */
	replorigin_session_origin = DoNotReplicateId;
}

/*
 * The process; the argument is its database.  The supervisor starts it again as
 * long as something is left.
 */
void
repl_ml_beside_main(Datum arg)
{
	Oid			database = DatumGetObjectId(arg);
	ReplMlBulk	bulk = {0};
	int			delay = FIRST_DELAY_MS;

	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	pqsignal(SIGTERM, die);
	if (!attach_process(database))
		proc_exit(0);
	BackgroundWorkerUnblockSignals();
	BackgroundWorkerInitializeConnectionByOid(database, InvalidOid, 0);
	prepare();
	for (;;)
	{
		CHECK_FOR_INTERRUPTS();
		MemoryContextReset(apply.message_context);
		MemoryContextSwitchTo(apply.message_context);
		if (!repl_ml_bulk_find(0, bulk.id, &bulk))
		{
			if (bulk.id == 0)
				break;
			/* those that are left have had their turn in vain */
			bulk.id = 0;
			pause_for(delay);
			delay = Min(delay * 2, Max(repl_ml_max_apply_delay, FIRST_DELAY_MS));
			continue;
		}
		if (begin_turn(&bulk) && attempt(&bulk))
		{
			bulk.id = 0;
			delay = FIRST_DELAY_MS;
		}
		end_turn();
	}
	proc_exit(0);
}

/* Applies one; returns false if it failed, and is to be tried again. */
static bool
attempt(const ReplMlBulk *bulk)
{
	volatile bool done = false;

	PG_TRY();
	{
		load_names(bulk);
		repl_ml_relation_forget_all();
		done = repl_ml_bulk_apply(&apply, bulk);
	}
	PG_CATCH();
	{
		/* at once the other way, if there is one */
		done = recover();
	}
	PG_END_TRY();
	return done;
}

/* Shows an error in repl_ml.stat_apply, at the peer whose transaction it is. */
static void
show_error(const ErrorData *error)
{
	LWLockAcquire(repl_ml_shared->lock, LW_SHARED);
	foreach_worker(worker, MyDatabaseId)
	{
		if (worker->peer == peer.node_id)
			apply.worker = worker;
	}
	LWLockRelease(repl_ml_shared->lock);
	repl_ml_apply_show_error(&apply, error);
	apply.worker = &nowhere;
}

/*
 * Gives everything back after an error, and notes how the transaction is to be
 * applied now.  Returns true if that may follow at once.
 */
static bool
recover(void)
{
	ErrorData  *error;
	XLogRecPtr	hit = apply.transaction.open && apply.blame_transaction ?
		apply.transaction.final_lsn : InvalidXLogRecPtr;
	bool		impatient = apply.transaction.impatient;
	bool		race;
	bool		permanent;

	HOLD_INTERRUPTS();
	MemoryContextSwitchTo(TopMemoryContext);
	error = CopyErrorData();
	race = repl_ml_locked_is_race(error->sqlerrcode);
	permanent = repl_ml_dispatch_is_permanent(error->sqlerrcode);
	if (!race)
		EmitErrorReport();
	FlushErrorState();
	AbortOutOfAnyTransaction();
	repl_ml_dispatch_reset(&apply);
	repl_ml_applying = true;
	MemoryContextReset(apply.message_context);
	MemoryContextSwitchTo(apply.message_context);
	if (race && hit != InvalidXLogRecPtr)
		repl_ml_dispatch_locked(&apply, hit, error->sqlerrcode);
	repl_ml_locked_unwatch();
	if (!race)
		show_error(error);
	if (hit != InvalidXLogRecPtr && (race ? impatient : permanent))
		repl_ml_dispatch_blame(&apply, hit, error);
	else
		FreeErrorData(error);
	RESUME_INTERRUPTS();
	return !race && permanent && hit != InvalidXLogRecPtr;
}
