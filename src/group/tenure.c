/*
 * tenure.c
 *		The process that has the lease of strong tables for the clients of this node, gets it
 *		from another one or gives it away: one for each database that needs it.
 *
 * Who has the lease says so in its repl_ml.lease_state, durably, with an epoch that grows
 * with each tenure.  Who wants it asks the holder, which gives it when its clients have ended
 * (holding.c).  If the holder is gone, a majority votes for the next one (election.c): that
 * begins a round, and what the old holder alone has is void.  A node that has such, or had the
 * lease, has its strong tables made as they are on another member (copy/replace.c) before
 * anybody reads or writes them.
 *
 * test/model/failover.pml is the protocol.  Not here: what clients do (commit/lease.c).  The
 * process holds the heavyweight lock of the lease whenever its clients may not write.
 */
#include "postgres.h"

#include <signal.h>

#include "access/transam.h"
#include "access/xact.h"
#include "access/xlog.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/lock.h"
#include "storage/procarray.h"
#include "tcop/tcopprot.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "commit/commit.h"
#include "compat.h"
#include "group/tenure_private.h"
#include "read/read.h"
#include "server/server.h"
#include "wire/wire.h"

#define START_PATIENCE_MS	5000	/* a process that was asked for shows up by then */
#define FRESH_US			UINT64CONST(1000000)	/* who asks no more waits no more */
#define LEAST_TENURE_US		UINT64CONST(2000)
#define OFFER_US			UINT64CONST(2000000)	/* so long nobody has needed it */
#define DEADLOCK_US			UINT64CONST(1000000)
#define RETRY_US			UINT64CONST(5000000)	/* so long it is tried though nobody waits */
#define RETRY_MS			50
#define LOOK_AGAIN_US		UINT64CONST(3000000)	/* and so often later */
#define MEND_PATIENCE_US	UINT64CONST(10000000)
#define BUSY_MS				20
#define MEND_MS				200
#define PAUSE_MS			10
#define IDLE_MS				1000

ReplMlTenure repl_ml_tenure;
static ReplMlTenure *const mine = &repl_ml_tenure;

static MemoryContext state_context = NULL;
static LOCKTAG lock_tag;
static uint64 last_call = 0;	/* when somebody here last wanted the lease, monotonic µs */
static uint64 mending = 0;		/* since when somebody waits for strong tables to be clean; 0:
								 * nobody does */

static bool start_process(void);
static void detach_process(int code, Datum arg);
static bool is_wanted(void);
static int	act(void);
static bool is_ours(void);
static int	mend(bool is_needed);

/* ---- the supervisor's part ---- */

/*
 * Says whether the process has something to do though nobody asks for the lease: this node
 * had it, or its strong tables are unclean.
 */
static bool
has_to_look(void)
{
	bool		has;

	repl_ml_begin();
	has = repl_ml_query_int("SELECT 1 FROM repl_ml.lease_state s, repl_ml.local_node l"
							" WHERE s.unclean OR s.holder OPERATOR(pg_catalog.=) l.node_id") != 0;
	repl_ml_commit();
	return has;
}

/*
 * Called by the supervisor of a ready member in each round: starts the process when it is
 * needed.
 */
void
repl_ml_tenure_tend(void)
{
	ReplMlLease *own = repl_ml_lease();
	TimestampTz now = GetCurrentTimestamp();
	static bool is_first_look = true;
	bool		due;

	if (own == NULL)
		return;
	mine->lease = own;
	if (is_first_look && own->pid == 0 && has_to_look())
		repl_ml_lease_look(own);
	is_first_look = false;
	LWLockAcquire(repl_ml_lease_lock(), LW_SHARED);
	/* a time to come is of before the clock was set back */
	due = (own->wanted || own->look) && own->pid == 0 &&
		(own->launched > now ||
		 TimestampDifferenceExceeds(own->launched, now, START_PATIENCE_MS));
	LWLockRelease(repl_ml_lease_lock());
	if (due)
		own->launch_refused = !start_process();
}

/* Starts the process; returns false, with a warning once, if the server has no room for it. */
static bool
start_process(void)
{
	if (repl_ml_process_start("repl_ml_tenure_main", "repl_ml lease",
							  "repl_ml lease of strong tables in database"))
	{
		LWLockAcquire(repl_ml_lease_lock(), LW_EXCLUSIVE);
		mine->lease->launched = GetCurrentTimestamp();
		LWLockRelease(repl_ml_lease_lock());
		return true;
	}
	if (!mine->lease->launch_refused)
		ereport(WARNING,
				(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
				 errmsg("out of background worker slots: strong tables cannot be written"),
				 errhint("Raise max_worker_processes; SELECT * FROM repl_ml.check_setup() says how "
						 "far.")));
	return false;
}

/*
 * Ends the database's process if it runs, for stop_workers and the supervisor of a node
 * that takes no part any more; returns whether it does.  Nobody commits in the tenure any
 * more, if it had one.
 */
bool
repl_ml_tenure_end(void)
{
	ReplMlLease *own = repl_ml_lease();
	pid_t		pid = own == NULL ? 0 : own->pid;

	if (own != NULL)
		own->holds = 0;
	if (pid != 0)
		kill(pid, SIGTERM);
	return pid != 0;
}

/* ---- the process ---- */

/* Takes the lease's place; returns false if another process has it, or there is no member. */
static bool
attach_process(Oid database)
{
	bool		attached;

	if (!repl_ml_shmem_is_member(database))
		return false;
	mine->lease = repl_ml_lease();
	LWLockAcquire(repl_ml_lease_lock(), LW_EXCLUSIVE);
	attached = mine->lease->pid == 0;
	if (attached)
	{
		mine->lease->pid = MyProcPid;
		mine->lease->latch = MyLatch;
	}
	LWLockRelease(repl_ml_lease_lock());
	if (attached)
		before_shmem_exit(detach_process, (Datum) 0);
	return attached;
}

/* Gives the place back when the process ends; a tenure that is open stays so. */
static void
detach_process(int code, Datum arg)
{
	LWLockAcquire(repl_ml_lease_lock(), LW_EXCLUSIVE);
	mine->lease->pid = 0;
	mine->lease->latch = NULL;
	mine->lease->busy = false;
	mine->lease->launched = 0;
	LWLockRelease(repl_ml_lease_lock());
}

/* Says whether the process waits in core's queue, which each call would have core log. */
static void
set_busy(bool busy)
{
	LWLockAcquire(repl_ml_lease_lock(), LW_EXCLUSIVE);
	mine->lease->busy = busy;
	LWLockRelease(repl_ml_lease_lock());
}

/*
 * Takes the heavyweight lock; with "now", only if nobody has it.  Returns whether it is
 * here.
 */
bool
repl_ml_tenure_take_lock(bool now)
{
	if (mine->has_lock)
		return true;
	set_busy(!now);
	StartTransactionCommand();
	mine->has_lock = LockAcquire(&lock_tag, ExclusiveLock, true, now) != LOCKACQUIRE_NOT_AVAIL;
	CommitTransactionCommand();
	set_busy(false);
	MemoryContextSwitchTo(mine->context);
	return mine->has_lock;
}

/* Lets everybody look who waits for the heavyweight lock. */
void
repl_ml_tenure_let_go(void)
{
	if (mine->has_lock)
		(void) LockRelease(&lock_tag, ExclusiveLock, true);
	mine->has_lock = false;
}

/*
 * Lets everybody who waits for the lock have it for a moment, to look at what has been
 * said.  Where a prepared transaction has it, they look now and then.
 */
void
repl_ml_tenure_let_all_look(void)
{
	if (!mine->has_lock)
		return;
	repl_ml_tenure_let_go();
	(void) repl_ml_tenure_take_lock(false);
}

/* The process; the argument is its database. */
void
repl_ml_tenure_main(Datum arg)
{
	Oid			database = DatumGetObjectId(arg);

	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	pqsignal(SIGTERM, die);
	BackgroundWorkerUnblockSignals();
	BackgroundWorkerInitializeConnectionByOid(database, InvalidOid, 0);
	if (!attach_process(database))
		proc_exit(0);
	repl_ml_internal_write = true;
	repl_ml_session_settle();
	/* what has to be durable says so */
	SetConfigOption("synchronous_commit", "off", PGC_SUSET, PGC_S_OVERRIDE);
	repl_ml_ask_keep();
	state_context = AllocSetContextCreate(TopMemoryContext, "repl_ml lease",
										  ALLOCSET_SMALL_SIZES);
	mine->context = AllocSetContextCreate(TopMemoryContext, "repl_ml lease round",
										 ALLOCSET_DEFAULT_SIZES);
	repl_ml_lease_tag(&lock_tag);
	repl_ml_tenure_load();
	/* its tenure goes on if a majority knows of no later round */
	mine->confirmed = mine->lease->holds != 0;
	if (mine->lease->holds == 0)
	{
		/* what was committed before a restart nobody remembers */
		LWLockAcquire(repl_ml_lease_lock(), LW_EXCLUSIVE);
		mine->lease->end_unknown = true;
		LWLockRelease(repl_ml_lease_lock());
		/* a prepared transaction may have it: then the lease is ours, and opens again */
		if (!repl_ml_tenure_take_lock(true))
			repl_ml_holding_close();
	}
	while (is_wanted())
	{
		int			pause;

		MemoryContextReset(mine->context);
		MemoryContextSwitchTo(mine->context);
		pause = act();
		if (pause > 0)
			(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, pause,
							 wait_event_compat("ReplMlLeaseMain"));
		ResetLatch(MyLatch);
	}
	proc_exit(0);
}

/* Says whether the process is to go on; takes over changed settings. */
static bool
is_wanted(void)
{
	bool		goes_on;

	CHECK_FOR_INTERRUPTS();
	if (ConfigReloadPending)
	{
		ConfigReloadPending = false;
		ProcessConfigFile(PGC_SIGHUP);
	}
	repl_ml_begin();
	goes_on = repl_ml_identity()->member && !repl_ml_identity()->fenced &&
		!repl_ml_identity()->dropped && !repl_ml_identity()->joining;
	mine->self = repl_ml_identity()->node_id;
	repl_ml_commit();
	return goes_on && repl_ml_shmem_is_member(MyDatabaseId);
}

/* Says whether another node stands in line, and forgets those that have not asked again. */
bool
repl_ml_tenure_is_asked(void)
{
	uint64		now = repl_ml_monotonic_now();
	int			kept = 0;

	LWLockAcquire(repl_ml_lease_lock(), LW_EXCLUSIVE);
	for (int i = 0; i < mine->lease->line_count; i++)
	{
		if (now - Min(now, mine->lease->line[i].seen) < FRESH_US)
			mine->lease->line[kept++] = mine->lease->line[i];
	}
	mine->lease->line_count = kept;
	LWLockRelease(repl_ml_lease_lock());
	return kept > 0;
}

/* Says whether somebody here waits for the lease, or has called since the last look. */
static bool
is_called(void)
{
	bool		called;

	LWLockAcquire(repl_ml_lease_lock(), LW_EXCLUSIVE);
	called = mine->lease->wanted;
	mine->lease->wanted = false;
	mine->lease->look = false;
	LWLockRelease(repl_ml_lease_lock());
	return called || (mine->has_lock && LockHasWaiters(&lock_tag, ExclusiveLock, true));
}

/* Says whether no client here has written with the lease for OFFER_US. */
static bool
is_idle(void)
{
	static XLogRecPtr seen_end = 0;
	static uint64 seen_tenure = 0;
	static uint64 since = 0;
	uint64		now = repl_ml_monotonic_now();
	const ReplMlLease *lease = mine->lease;

	if (lease->last_end != seen_end || lease->opened != seen_tenure)
		since = now;
	seen_end = lease->last_end;
	seen_tenure = lease->opened;
	return now - since >= OFFER_US;
}

/* Does what there is to do while clients here may write; returns for how long to sleep, ms. */
static int
act_as_holder(bool asked)
{
	ReplMlLease *lease = mine->lease;
	uint64		tenure = repl_ml_monotonic_now() - lease->opened;

	/* all snapshots are newer by now: numbers of transactions come round again */
	if (TransactionIdIsValid(lease->opened_xid) &&
		TransactionIdPrecedes(lease->opened_xid, GetOldestNonRemovableTransactionId(NULL)))
		lease->opened_xid = InvalidTransactionId;
	if (!asked)
	{
		repl_ml_election_tell();
		if (is_idle())
			repl_ml_election_offer();
		return IDLE_MS;
	}
	if (tenure < LEAST_TENURE_US)
		return 1 + (LEAST_TENURE_US - tenure) / 1000;
	repl_ml_holding_give();
	return lease->holds == 0 ? 0 : BUSY_MS;
}

/* Does what there is to do; returns for how many milliseconds to sleep. */
static int
act(void)
{
	bool		called = is_called();
	bool		asked = repl_ml_tenure_is_asked();
	bool		retries;
	int			pause;

	if (called)
		last_call = repl_ml_monotonic_now();
	if (mine->lease->doubted)
	{
		mine->lease->doubted = false;
		if (mine->lease->holds != 0 && !repl_ml_election_counts())
			repl_ml_holding_close();
	}
	if (mine->lease->holds != 0)
		return act_as_holder(asked);
	if (repl_ml_holding_is_closing())
		return BUSY_MS;
	/* who was refused comes again, and is to find that it has come meanwhile; health, too */
	retries = !called && mine->lease->refused != 0 &&
		(repl_ml_monotonic_now() - last_call < RETRY_US ||
		 repl_ml_monotonic_now() - mine->lease->refused > LOOK_AGAIN_US);
	/* who has accepted a round has written the row */
	repl_ml_tenure_load();
	if (mine->state.unclean)
		return mend(called);
	mending = 0;
	if (is_ours())
	{
		if (asked && !called && mine->confirmed && !repl_ml_holding_is_opening())
		{
			repl_ml_holding_give();
			return 0;
		}
		if (!called && !asked)
			repl_ml_election_tell();
		pause = repl_ml_holding_open(called || asked);
		return retries ? Min(pause, RETRY_MS) : pause;
	}
	repl_ml_holding_stop();
	/* they stand in line in vain, and may not know */
	if (called || retries)
	{
		repl_ml_election_obtain();
		return called ? 0 : RETRY_MS;
	}
	if (mine->lease->mistaken)
		repl_ml_election_find_gift();
	repl_ml_election_tell();
	/* who has called may not stand in core's queue yet */
	return repl_ml_monotonic_now() - last_call < FRESH_US ? PAUSE_MS : IDLE_MS;
}

/* Has the apply workers copy what has been ordered. */
static void
call_workers(void)
{
	LWLockAcquire(repl_ml_shared->lock, LW_EXCLUSIVE);
	foreach_worker(worker, MyDatabaseId)
	{
		if (worker->peer == 0 || worker->pid == 0)
			continue;
		worker->compare = true;
		SetLatch(worker->latch);
	}
	LWLockRelease(repl_ml_shared->lock);
}

/*
 * Has strong tables made as they are on another member, when all clients here have ended that
 * wrote them; tells those who wait if that takes long.
 */
static int
mend(bool is_needed)
{
	uint64		now = repl_ml_monotonic_now();

	repl_ml_holding_stop();
	if (is_needed && mending == 0)
		mending = now;
	if (repl_ml_tenure_take_lock(true))
	{
		(void) repl_ml_holding_find_end();
		repl_ml_void_note();
		MemoryContextSwitchTo(mine->context);
		repl_ml_begin();
		SPI_execute("SELECT repl_ml.mend_strong()", false, 1);
		repl_ml_commit();
		MemoryContextSwitchTo(mine->context);
		call_workers();
	}
	if (mending != 0 && now - mending > DEADLOCK_US)
		repl_ml_holding_end_deadlock();
	if (mending != 0 && now - mending > MEND_PATIENCE_US)
	{
		mending = 0;
		repl_ml_tenure_refuse(_("Strong tables are being made here what they are on the other "
								"members, as another node has taken over from this one."));
	}
	return MEND_MS;
}

/*
 * Says whether the tenure that is written down here is this node's, and goes on: not after
 * a promotion, or where it came out of a backup, as what it has given away may be missing.
 */
static bool
is_ours(void)
{
	return mine->state.holder == mine->self && !repl_ml_tenure_has_forgotten() &&
		mine->state.epoch.round >= mine->state.promised;
}

/*
 * Says whether this database may have forgotten tenures: it has been promoted, or came out
 * of a backup, since its row was written.
 */
bool
repl_ml_tenure_has_forgotten(void)
{
	return mine->state.timeline != (int64) GetWALInsertionTimeLine();
}

/* ---- what is written down ---- */

/* Writes into the catalog what is true from now on; returns false if a later round forbids it. */
bool
repl_ml_tenure_write(Epoch epoch, int holder, const ReplMlClock *base)
{
	static SPIPlanPtr update = NULL;
	Oid			types[5] = {INT8OID, INT8OID, INT4OID, TEXTOID, INT8OID};
	Datum		values[5] = {Int64GetDatum(epoch.round), Int64GetDatum(epoch.turn),
		Int32GetDatum(holder), CStringGetTextDatum(repl_ml_clock_to_text(base)),
		Int64GetDatum((int64) GetWALInsertionTimeLine())};
	bool		written;

	repl_ml_begin();
	(void) repl_ml_spi_plan(&update, "UPDATE repl_ml.lease_state SET round = $1, turn = $2,"
							" holder = $3, base = $4::repl_ml.vclock, timeline = $5,"
							" since = pg_catalog.clock_timestamp()"
							" WHERE (round OPERATOR(pg_catalog.<) $1"
							" OR round OPERATOR(pg_catalog.=) $1"
							" AND turn OPERATOR(pg_catalog.<) $2)"
							" AND promised OPERATOR(pg_catalog.<=) $1"
							" AND accepted OPERATOR(pg_catalog.=) $1", 5, types);
	written = SPI_execute_plan(update, values, NULL, false, 0) == SPI_OK_UPDATE &&
		SPI_processed == 1;
	/* a crash that loses what was taken loses what was written with it: it is given again */
	if (holder != mine->self)
		ForceSyncCommit();
	repl_ml_commit();
	repl_ml_tenure_load();
	if (written && holder == mine->self)
		mine->confirmed = true;
	return written;
}

/* Tells all who wait here that the lease does not come, and why. */
void
repl_ml_tenure_refuse(const char *reason)
{
	LWLockAcquire(repl_ml_lease_lock(), LW_EXCLUSIVE);
	strlcpy(mine->lease->reason, reason, sizeof(mine->lease->reason));
	/* libpq's words have lines; views and DETAIL have one */
	for (char *c = mine->lease->reason; *c != '\0'; c++)
	{
		if (*c == '\n' || *c == '\t')
			*c = ' ';
	}
	mine->lease->refused = repl_ml_monotonic_now();
	LWLockRelease(repl_ml_lease_lock());
	repl_ml_tenure_let_all_look();
}

/*
 * Lets clients read strong tables if they are clean.  Whoever accepts a round that makes them
 * unclean closes them before that can be seen in the row, and is waited for.
 */
static void
open_again(void)
{
	repl_ml_begin();
	repl_ml_round_share();
	PushActiveSnapshot(GetLatestSnapshot());
	SPI_execute("SELECT FROM repl_ml.lease_state s WHERE s.unclean", true, 1);
	PopActiveSnapshot();
	if (SPI_processed == 0)
		mine->lease->closed = false;
	repl_ml_commit();
	MemoryContextSwitchTo(mine->context);
}

/* Reads this node's row of the catalog. */
void
repl_ml_tenure_load(void)
{
	static SPIPlanPtr select = NULL;

	repl_ml_begin();
	(void) repl_ml_spi_plan(&select, "SELECT s.promised, s.accepted, s.opened,"
							" s.unclean::pg_catalog.int4, s.round, s.turn, s.holder, s.timeline,"
							" s.base::pg_catalog.text FROM repl_ml.lease_state s", 0, NULL);
	SPI_execute_plan(select, NULL, NULL, false, 1);
	if (SPI_processed != 1)
		elog(ERROR, "no row in repl_ml.lease_state");
	mine->state.promised = strtoll(repl_ml_spi_text(0, 0), NULL, 10);
	mine->state.accepted = strtoll(repl_ml_spi_text(0, 1), NULL, 10);
	mine->state.opened = strtoll(repl_ml_spi_text(0, 2), NULL, 10);
	mine->state.unclean = repl_ml_spi_text(0, 3)[0] == '1';
	mine->state.epoch.round = strtoll(repl_ml_spi_text(0, 4), NULL, 10);
	mine->state.epoch.turn = strtoll(repl_ml_spi_text(0, 5), NULL, 10);
	mine->state.holder = pg_strtoint32(repl_ml_spi_text(0, 6));
	mine->state.timeline = strtoll(repl_ml_spi_text(0, 7), NULL, 10);
	MemoryContextReset(state_context);
	MemoryContextSwitchTo(state_context);
	mine->state.base = repl_ml_clock_from_text(repl_ml_spi_text(0, 8));
	repl_ml_commit();
	MemoryContextSwitchTo(mine->context);
	if (mine->state.unclean)
		mine->lease->closed = true;
	else if (mine->lease->closed)
		open_again();
	repl_ml_election_note(mine->state.epoch, mine->state.holder);
}

