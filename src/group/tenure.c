/*
 * tenure.c
 *		How the lease of strong tables comes from one node to another: a process for each
 *		database that needs one.
 *
 * The lease is a token.  Who has it says so in its repl_ml.lease_state, durably, with an
 * epoch that grows with each tenure.  Who wants it asks the holder over an ordinary
 * connection; the holder lets its clients end, writes down to whom it gives it, and then
 * tells; so whoever loses its way finds it by asking who gave it to whom.  With it goes its
 * base: the positions of former holders' WAL that have to be here before it may be used.
 *
 * The first tenure, and one after the holder has been dropped, takes a vote of every
 * member: none has the lease, none has given it to a member that is not dropped, and
 * nothing of a dropped one comes to any of them any more.  As long as a holder is a member,
 * nobody takes its place: who cannot reach it is told so (57P03).
 *
 * test/model/tenure.pml is the protocol.  Not here: what clients do (commit/lease.c).  The
 * process holds the heavyweight lock of the lease whenever its clients may not write.
 */
#include "postgres.h"

#include <signal.h>

#include "access/transam.h"
#include "access/xact.h"
#include "access/xlog.h"
#include "catalog/pg_type.h"
#include "common/pg_prng.h"
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
#include "group/group.h"
#include "read/read.h"
#include "server/server.h"
#include "wire/wire.h"

#define START_PATIENCE_MS	5000	/* a process that was asked for shows up by then */
#define SILENCE_MS			1500	/* a holder that has not answered by then is gone */
#define ASK_MS				300 /* so long a question waits at the holder */
#define FRESH_US			UINT64CONST(1000000)	/* who asks no more waits no more */
#define LEAST_TENURE_US		UINT64CONST(2000)
#define CATCH_UP_MS			20
#define DEADLOCK_US			UINT64CONST(1000000)
#define CATCH_UP_PATIENCE_US	UINT64CONST(10000000)
#define LOOK_AGAIN_US		UINT64CONST(3000000)
#define PAUSE_MS			10
#define IDLE_MS				1000

/* A round has the id of its candidate in it: no two nodes stand for the same. */
#define NEXT_ROUND(round, node) ((((round) >> 16) + 1) << 16 | (node))

/* Which tenure: of a round, which the members vote for, the so many-th; each giving is one more. */
typedef struct Epoch
{
	int64		round;
	int64		turn;
} Epoch;

/* What this node knows durably: its row of repl_ml.lease_state. */
typedef struct State
{
	int64		promised;		/* the last round it has voted for */
	Epoch		epoch;			/* the last tenure that it had, or gave to somebody */
	int			holder;			/* whose that is; 0: it knows of none */
	int64		timeline;		/* on which it had it */
	ReplMlClock *base;			/* in state_context */
} State;

/* A member that can be asked. */
typedef struct Voter
{
	int			node_id;
	char	   *node_name;
	char	   *dsn;
} Voter;

static ReplMlLease *lease = NULL;	/* of this process's database; set once */
static State state;				/* of this process: as it is in the catalog */
static MemoryContext state_context = NULL;
static MemoryContext work_context = NULL;	/* reset in each round */
static LOCKTAG lock_tag;
static bool has_lock = false;	/* exclusively: no client may write */

/* The last tenure that it has heard of, and who is to be asked for it; 0: not known. */
static Epoch known_epoch = {0};
static int	known_holder = 0;

static int	self = 0;			/* this node's id; set by is_wanted */
static uint64 last_call = 0;	/* when somebody here last wanted the lease, monotonic µs */
static uint64 catching_up = 0;	/* since when it tries to open its tenure; 0: it does not */

static bool start_process(void);
static void detach_process(int code, Datum arg);
static bool is_wanted(void);
static int	act(void);
static bool is_ours(void);
static bool may_have_forgotten(void);
static int	open_or_wait(bool is_needed);
static void end_deadlock(void);
static bool open_tenure(char **why);
static void give_away(void);
static void obtain(void);
static void ask_holder(void);
static void survey(void);
static void stand(const List *voters, int64 promised, int gone);
static void look_again(void);
static List *list_voters(void);
static char **ask_voters(const List *voters, const char *query, int nparams,
						 const char *const *params, char ***errors);
static void refuse(const char *reason);
static void load_state(void);

/* Says whether a tenure comes after another. */
static inline bool
is_after(Epoch a, Epoch b)
{
	return a.round > b.round || (a.round == b.round && a.turn > b.turn);
}

/* ---- the supervisor's part ---- */

/*
 * Called by the supervisor of a ready member in each round: starts the process when it is
 * needed.
 */
void
repl_ml_tenure_tend(void)
{
	ReplMlLease *own = repl_ml_lease();
	TimestampTz now = GetCurrentTimestamp();
	bool		due;

	if (own == NULL)
		return;
	lease = own;
	LWLockAcquire(repl_ml_lease_lock(), LW_SHARED);
	/* a time to come is of before the clock was set back */
	due = own->wanted && own->pid == 0 &&
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
		lease->launched = GetCurrentTimestamp();
		LWLockRelease(repl_ml_lease_lock());
		return true;
	}
	if (!lease->launch_refused)
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
	lease = repl_ml_lease();
	LWLockAcquire(repl_ml_lease_lock(), LW_EXCLUSIVE);
	attached = lease->pid == 0;
	if (attached)
	{
		lease->pid = MyProcPid;
		lease->latch = MyLatch;
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
	lease->pid = 0;
	lease->latch = NULL;
	lease->busy = false;
	lease->launched = 0;
	LWLockRelease(repl_ml_lease_lock());
}

/* Says whether the process waits in core's queue, which each call would have core log. */
static void
set_busy(bool busy)
{
	LWLockAcquire(repl_ml_lease_lock(), LW_EXCLUSIVE);
	lease->busy = busy;
	LWLockRelease(repl_ml_lease_lock());
}

/*
 * Takes the heavyweight lock; with "now", only if nobody has it.  Returns whether it is
 * here.
 */
static bool
take_lock(bool now)
{
	if (has_lock)
		return true;
	set_busy(!now);
	StartTransactionCommand();
	has_lock = LockAcquire(&lock_tag, ExclusiveLock, true, now) != LOCKACQUIRE_NOT_AVAIL;
	CommitTransactionCommand();
	set_busy(false);
	MemoryContextSwitchTo(work_context);
	return has_lock;
}

/* Lets everybody look who waits for the heavyweight lock. */
static void
let_lock_go(void)
{
	if (has_lock)
		(void) LockRelease(&lock_tag, ExclusiveLock, true);
	has_lock = false;
}

/*
 * Lets everybody who waits for the lock have it for a moment, to look at what has been
 * said.  Where a prepared transaction has it, they look now and then.
 */
static void
let_all_look(void)
{
	if (!has_lock)
		return;
	let_lock_go();
	(void) take_lock(false);
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
	work_context = AllocSetContextCreate(TopMemoryContext, "repl_ml lease round",
										 ALLOCSET_DEFAULT_SIZES);
	repl_ml_lease_tag(&lock_tag);
	load_state();
	/* then everybody is asked first */
	if (may_have_forgotten())
		known_holder = 0;
	if (lease->holds == 0)
	{
		/* what was committed before a restart nobody remembers */
		LWLockAcquire(repl_ml_lease_lock(), LW_EXCLUSIVE);
		lease->end_unknown = true;
		LWLockRelease(repl_ml_lease_lock());
		/* a prepared transaction may have it: then the lease is ours, and opens again */
		(void) take_lock(true);
	}
	while (is_wanted())
	{
		int			pause;

		MemoryContextReset(work_context);
		MemoryContextSwitchTo(work_context);
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
	self = repl_ml_identity()->node_id;
	repl_ml_commit();
	return goes_on && repl_ml_shmem_is_member(MyDatabaseId);
}

/* Says whether another node stands in line, and forgets those that have not asked again. */
static bool
is_asked(void)
{
	uint64		now = repl_ml_monotonic_now();
	int			kept = 0;

	LWLockAcquire(repl_ml_lease_lock(), LW_EXCLUSIVE);
	for (int i = 0; i < lease->line_count; i++)
	{
		if (now - Min(now, lease->line[i].seen) < FRESH_US)
			lease->line[kept++] = lease->line[i];
	}
	lease->line_count = kept;
	LWLockRelease(repl_ml_lease_lock());
	return kept > 0;
}

/* Says whether somebody here waits for the lease, or has called since the last look. */
static bool
is_called(void)
{
	bool		called;

	LWLockAcquire(repl_ml_lease_lock(), LW_EXCLUSIVE);
	called = lease->wanted;
	lease->wanted = false;
	LWLockRelease(repl_ml_lease_lock());
	return called || (has_lock && LockHasWaiters(&lock_tag, ExclusiveLock, true));
}

/* Does what there is to do; returns for how many milliseconds to sleep. */
static int
act(void)
{
	bool		called = is_called();
	bool		asked = is_asked();

	if (lease->holds != 0)
	{
		uint64		tenure = repl_ml_monotonic_now() - lease->opened;

		/* all snapshots are newer by now: numbers of transactions come round again */
		if (TransactionIdIsValid(lease->opened_xid) &&
			TransactionIdPrecedes(lease->opened_xid, GetOldestNonRemovableTransactionId(NULL)))
			lease->opened_xid = InvalidTransactionId;
		if (!asked)
			return IDLE_MS;
		if (tenure < LEAST_TENURE_US)
			return 1 + (LEAST_TENURE_US - tenure) / 1000;
		give_away();
		return lease->holds == 0 ? 0 : CATCH_UP_MS;
	}
	if (is_ours())
	{
		if (asked && !called && catching_up == 0)
		{
			give_away();
			return 0;
		}
		return open_or_wait(called || asked);
	}
	catching_up = 0;
	if (called)
	{
		last_call = repl_ml_monotonic_now();
		obtain();
		return 0;
	}
	if (lease->refused != 0)
		look_again();
	/* who has called may not stand in core's queue yet */
	return repl_ml_monotonic_now() - last_call < FRESH_US ? PAUSE_MS : IDLE_MS;
}

/*
 * Called while nobody here wants the lease that could not be had: forgets why, for
 * repl_ml.health, when the member that has it answers again, or all do.
 */
static void
look_again(void)
{
	static uint64 last = 0;
	List	   *voters;
	char	  **errors;
	char	  **answers;
	Epoch		greatest = state.epoch;
	int			holder = state.holder;
	bool		all_answer = true;
	bool		holder_answers = false;

	if (repl_ml_monotonic_now() - Max(last, lease->refused) < LOOK_AGAIN_US)
		return;
	last = repl_ml_monotonic_now();
	voters = list_voters();
	answers = ask_voters(voters, "SELECT repl_ml.lease_state()", 0, NULL, &errors);
	for (int i = 0; i < list_length(voters); i++)
	{
		long long	promised;
		Epoch		epoch;
		long long	round;
		long long	turn;
		int			node;

		if (answers[i] == NULL ||
			sscanf(answers[i], "%lld %lld %lld %d", &promised, &round, &turn, &node) != 4)
		{
			all_answer = false;
			continue;
		}
		epoch = (Epoch) {round, turn};
		holder = is_after(epoch, greatest) ? node : holder;
		greatest = is_after(epoch, greatest) ? epoch : greatest;
	}
	for (int i = 0; i < list_length(voters); i++)
		holder_answers |= answers[i] != NULL && ((Voter *) list_nth(voters, i))->node_id == holder;
	if (!all_answer && !holder_answers)
		return;
	LWLockAcquire(repl_ml_lease_lock(), LW_EXCLUSIVE);
	lease->refused = 0;
	LWLockRelease(repl_ml_lease_lock());
}

/*
 * Says whether the tenure that is written down here is this node's, and goes on: not after
 * a promotion, or where it came out of a backup, as what it has given away may be missing.
 */
static bool
is_ours(void)
{
	return state.holder == self && !may_have_forgotten() && state.epoch.round >= state.promised;
}

/*
 * Says whether this database may have forgotten tenures: it has been promoted, or came out
 * of a backup, since its row was written.
 */
static bool
may_have_forgotten(void)
{
	return state.timeline != (int64) GetWALInsertionTimeLine();
}

/* ---- opening ---- */

/*
 * Opens the tenure as soon as everything is here that was written in former ones; if that
 * takes long, those who wait are told, and others get the lease.
 */
static int
open_or_wait(bool is_needed)
{
	char	   *why = NULL;
	uint64		now = repl_ml_monotonic_now();

	if (catching_up == 0)
		catching_up = now;
	if (open_tenure(&why))
	{
		catching_up = 0;
		return 0;
	}
	if (now - catching_up > CATCH_UP_PATIENCE_US || (is_needed && repl_ml_members_is_cut_off()))
	{
		catching_up = 0;
		refuse(psprintf(_("This node has the lease of strong tables and cannot use it: %s"), why));
		if (is_asked())
			give_away();
		return IDLE_MS;
	}
	if (now - catching_up > DEADLOCK_US)
		end_deadlock();
	if (!is_needed && now - catching_up > DEADLOCK_US)
		return IDLE_MS;
	(void) repl_ml_position_wait(TimestampTzPlusMilliseconds(GetCurrentTimestamp(), CATCH_UP_MS),
								 "ReplMlLeaseCatchUp");
	return 0;
}

/*
 * A client that waits for the lease may have locked what an apply worker needs before the
 * lease can be opened: it gets an error, and the others look again.
 */
static void
end_deadlock(void)
{
	static uint64 last = 0;
	int64		pid;

	if (repl_ml_monotonic_now() - last < DEADLOCK_US)
		return;
	last = repl_ml_monotonic_now();
	repl_ml_begin();
	pid = repl_ml_query_int("SELECT w.pid FROM pg_catalog.pg_locks w"
							" WHERE w.locktype OPERATOR(pg_catalog.=) 'advisory'"
							" AND w.database OPERATOR(pg_catalog.=) (SELECT d.oid"
							" FROM pg_catalog.pg_database d"
							" WHERE d.datname OPERATOR(pg_catalog.=) pg_catalog.current_database())"
							" AND w.classid OPERATOR(pg_catalog.=) 0"
							" AND w.objid OPERATOR(pg_catalog.=) 0"
							" AND w.objsubid OPERATOR(pg_catalog.=) 5 AND NOT w.granted"
							" AND EXISTS (SELECT FROM repl_ml.worker_stats() s"
							" WHERE w.pid OPERATOR(pg_catalog.=) ANY"
							" (pg_catalog.pg_blocking_pids(s.pid))) LIMIT 1");
	repl_ml_commit();
	if (pid == 0)
		return;
	LWLockAcquire(repl_ml_lease_lock(), LW_EXCLUSIVE);
	lease->victim = pid;
	LWLockRelease(repl_ml_lease_lock());
	let_all_look();
}

/* Returns these positions without that of this node, which has what it has. */
static ReplMlClock *
without_self(const ReplMlClock *base)
{
	ReplMlClock *result = repl_ml_clock_empty();

	for (int i = 0; i < repl_ml_clock_count(base); i++)
	{
		ReplMlClockEntry entry = repl_ml_clock_entry(base, i);

		if (entry.node != self)
			result = repl_ml_clock_merge(result, repl_ml_clock_from_entries(&entry, 1));
	}
	return result;
}

/*
 * Lets the clients of this node write if nothing is missing; else returns false and sets
 * what is.
 */
static bool
open_tenure(char **why)
{
	static SPIPlanPtr obstacle = NULL;
	MemoryContext context = CurrentMemoryContext;
	char	   *lacking = NULL;
	TransactionId xid;

	if (repl_ml_members_is_cut_off())
	{
		*why = _("too few members can be reached.");
		return false;
	}
	repl_ml_begin();
	if (!repl_ml_barrier_covers(without_self(state.base), &lacking))
		lacking = lacking == NULL ? _("what is left of a dropped node has not been compared.") :
			psprintf("%s.", lacking);
	else if (SPI_execute_plan(repl_ml_spi_plan(&obstacle, "SELECT repl_ml.strong_obstacle()", 0,
											   NULL), NULL, NULL, false, 1) == SPI_OK_SELECT)
		lacking = repl_ml_spi_text(0, 0);
	if (lacking != NULL)
		*why = MemoryContextStrdup(context, lacking);
	/* who sees it sees all that is here now */
	xid = lacking == NULL ? GetTopTransactionId() : InvalidTransactionId;
	repl_ml_commit();
	MemoryContextSwitchTo(context);
	ConditionVariableCancelSleep();
	if (!TransactionIdIsValid(xid))
		return false;

	LWLockAcquire(repl_ml_lease_lock(), LW_EXCLUSIVE);
	lease->opened_xid = xid;
	lease->opened = repl_ml_monotonic_now();
	lease->refused = 0;
	lease->taken++;
	/* another number for each time that it is opened */
	lease->holds = ++lease->serial;
	LWLockRelease(repl_ml_lease_lock());
	let_lock_go();
	return true;
}

/* ---- giving ---- */

/* Writes into the catalog what is true from now on; returns false if a later round forbids it. */
static bool
write_state(Epoch epoch, int holder, const ReplMlClock *base)
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
							" AND promised OPERATOR(pg_catalog.<=) $1", 5, types);
	written = SPI_execute_plan(update, values, NULL, false, 0) == SPI_OK_UPDATE &&
		SPI_processed == 1;
	/* a crash that loses what was taken loses what was written with it: it is given again */
	if (holder != self)
		ForceSyncCommit();
	repl_ml_commit();
	load_state();
	known_epoch = state.epoch;
	known_holder = state.holder;
	return written;
}

/* Returns the first node in line, which leaves it; 0 if there is none. */
static int
leave_line(void)
{
	int			node = 0;

	LWLockAcquire(repl_ml_lease_lock(), LW_EXCLUSIVE);
	if (lease->line_count > 0)
	{
		node = lease->line[0].node;
		lease->line_count--;
		memmove(&lease->line[0], &lease->line[1], lease->line_count * sizeof(lease->line[0]));
	}
	LWLockRelease(repl_ml_lease_lock());
	return node;
}

/* Returns up to where what was written here in this tenure ends in the WAL. */
static XLogRecPtr
find_end(void)
{
	XLogRecPtr	end;
	bool		known;

	LWLockAcquire(repl_ml_lease_lock(), LW_SHARED);
	end = lease->last_end;
	known = !lease->end_unknown;
	LWLockRelease(repl_ml_lease_lock());
	if (known)
		return end;
	repl_ml_begin();
	end = repl_ml_clock_counter(repl_ml_positions_to_share(true), self);
	repl_ml_commit();
	LWLockAcquire(repl_ml_lease_lock(), LW_EXCLUSIVE);
	/* nobody writes now; and from here on it is this end, however often it is tried */
	lease->last_end = end;
	lease->end_unknown = false;
	LWLockRelease(repl_ml_lease_lock());
	return end;
}

/*
 * Gives the lease to the first node in line, when all clients here have ended and a
 * majority has what they have written.  Where it has not, or nobody asks any more, they go
 * on.
 */
static void
give_away(void)
{
	uint64		held = lease->holds;
	MemoryContext context = CurrentMemoryContext;
	XLogRecPtr	end;
	int			node = 0;

	(void) take_lock(false);
	lease->holds = 0;
	end = find_end();
	MemoryContextSwitchTo(context);
	if ((end == 0 || end <= repl_ml_unacknowledged_position(REPL_ML_QUORUM)) && is_asked())
		node = leave_line();
	if (node != 0)
	{
		ReplMlClockEntry own = {.node = self,.counter = Max(end, 1)};

		if (write_state((Epoch) {state.epoch.round, state.epoch.turn + 1}, node,
						repl_ml_clock_merge(state.base, repl_ml_clock_from_entries(&own, 1))))
		{
			LWLockAcquire(repl_ml_lease_lock(), LW_EXCLUSIVE);
			lease->last_end = 0;
			lease->given++;
			/* the others hear where it is, and stand in line there */
			lease->line_count = 0;
			LWLockRelease(repl_ml_lease_lock());
		}
		/* who asks waits for news there */
		repl_ml_positions_advanced();
		return;
	}
	if (held != 0)
	{
		lease->holds = held;
		let_lock_go();
	}
}

/* ---- taking ---- */

/* Gets the lease from where it is, or finds out where that is. */
static void
obtain(void)
{
	/* where a prepared transaction has it, it has been this node's before */
	(void) take_lock(true);
	if (known_holder == 0 || known_holder == self)
		survey();
	else
		ask_holder();
}

/* Returns the ready members but this one, of Voter; in the work context. */
static List *
list_voters(void)
{
	static SPIPlanPtr select = NULL;
	List	   *voters = NIL;
	Oid			types[1] = {INT4OID};
	Datum		values[1] = {Int32GetDatum(self)};

	repl_ml_begin();
	(void) repl_ml_spi_plan(&select, "SELECT m.node_id, m.node_name, m.dsn FROM repl_ml.member m"
							" WHERE m.state OPERATOR(pg_catalog.=) 'ready'"
							" AND m.node_id OPERATOR(pg_catalog.<>) $1 ORDER BY m.node_id",
							1, types);
	SPI_execute_plan(select, values, NULL, false, 0);
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		MemoryContext old = MemoryContextSwitchTo(work_context);
		Voter	   *voter = palloc(sizeof(Voter));

		voter->node_id = pg_strtoint32(repl_ml_spi_text(i, 0));
		voter->node_name = repl_ml_spi_text(i, 1);
		voter->dsn = repl_ml_spi_text(i, 2);
		voters = lappend(voters, voter);
		MemoryContextSwitchTo(old);
	}
	repl_ml_commit();
	MemoryContextSwitchTo(work_context);
	return voters;
}

/*
 * Asks these members one question; sets an answer for each, NULL where there is none, and
 * why.
 */
static char **
ask_voters(const List *voters, const char *query, int nparams, const char *const *params,
		   char ***errors)
{
	int			count = list_length(voters);
	char	  **dsns = palloc((count + 1) * sizeof(char *));
	char	  **answers = palloc0((count + 1) * sizeof(char *));
	TimestampTz deadline = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), SILENCE_MS);
	ReplMlQuestions all = {.count = count,.dsns = dsns,.query = query,.nparams = nparams,
		.params = params,.sent_by = deadline,.deadline = deadline,.keeps = true,
	.answers = answers};

	*errors = palloc0((count + 1) * sizeof(char *));
	all.errors = *errors;
	for (int i = 0; i < count; i++)
		dsns[i] = ((Voter *) list_nth(voters, i))->dsn;
	repl_ml_ask_beside(&all);
	return answers;
}

/* Follows a pointer to another holder; one that is not newer than what is known leads nowhere. */
static void
follow(Epoch epoch, int holder)
{
	known_holder = 0;
	if (is_after(epoch, known_epoch))
	{
		known_epoch = epoch;
		known_holder = holder;
	}
	else
		/* who has it has not heard yet that it was given it: it asks now */
		pg_usleep(1000);
}

/* Asks the holder, as far as is known who that is, and takes the lease if it gives it. */
static void
ask_holder(void)
{
	List	   *asked = NIL;
	ListCell   *lc;
	char	  **errors;
	char	   *answer;
	const char *params[1] = {psprintf("%d", self)};
	long long	round;
	long long	turn;
	int			holder;
	int			base = 0;

	foreach(lc, list_voters())
	{
		if (((Voter *) lfirst(lc))->node_id == known_holder)
			asked = list_make1(lfirst(lc));
	}
	if (asked == NIL)
	{
		/* it was dropped, or this node has not heard of it yet */
		known_holder = 0;
		survey();
		return;
	}
	answer = ask_voters(asked, "SELECT repl_ml.lease_ask($1)", 1, params, &errors)[0];
	if (answer == NULL)
		refuse(psprintf(_("Node \"%s\", which has the lease of strong tables, does not answer: %s"),
						((Voter *) linitial(asked))->node_name, errors[0]));
	else if (sscanf(answer, "given %lld %lld %n", &round, &turn, &base) == 2 && base > 0)
	{
		/* what it was given before it forgot, it may have given away as well */
		if ((may_have_forgotten() && !is_after((Epoch) {round, turn}, known_epoch)) ||
			!write_state((Epoch) {round, turn}, self, repl_ml_clock_from_text(answer + base)))
			known_holder = 0;
	}
	else if (sscanf(answer, "elsewhere %lld %lld %d", &round, &turn, &holder) == 3)
		follow((Epoch) {round, turn}, holder);
	/* else it closes: it is asked again as long as somebody waits */
}

/*
 * Finds out where the lease is by asking everybody; where it is nobody's, or a dropped
 * node's, this one stands for it.
 */
static void
survey(void)
{
	List	   *voters = list_voters();
	char	  **errors;
	char	  **answers = ask_voters(voters, "SELECT repl_ml.lease_state()", 0, NULL, &errors);
	StringInfoData missing;
	int64		promised;
	Epoch		greatest;
	int			holder;
	int			teller = 0;
	bool		is_member = false;
	ListCell   *lc;

	/* it may have voted since */
	load_state();
	promised = state.promised;
	greatest = state.epoch;
	holder = state.holder;
	initStringInfo(&missing);
	foreach(lc, voters)
	{
		Voter	   *voter = lfirst(lc);
		const char *answer = answers[foreach_current_index(lc)];
		long long	their_promised;
		long long	round;
		long long	turn;
		int			node;

		if (answer == NULL ||
			sscanf(answer, "%lld %lld %lld %d", &their_promised, &round, &turn, &node) != 4)
		{
			appendStringInfo(&missing, "%s%s", missing.len > 0 ? ", " : "", voter->node_name);
			continue;
		}
		promised = Max(promised, their_promised);
		if (!is_after((Epoch) {round, turn}, greatest))
			continue;
		greatest = (Epoch) {round, turn};
		holder = node;
		teller = voter->node_id;
	}
	foreach(lc, voters)
		is_member |= ((Voter *) lfirst(lc))->node_id == holder;
	known_epoch = greatest;
	known_holder = is_member ? holder : 0;
	/* it has been given it, and not been told yet */
	if (holder == self && teller != 0 && !may_have_forgotten())
		known_holder = teller;
	if (known_holder != 0)
		return;
	if (missing.len > 0)
		refuse(psprintf(_("No member that can be reached knows who has the lease of strong tables, "
						  "and these do not answer: %s."), missing.data));
	else
		stand(voters, promised, holder);
}

/* Says whether this node may stand, or vote: nothing of a dropped one comes here any more. */
static bool
is_settled(int gone)
{
	bool		settled;

	repl_ml_begin();
	settled = repl_ml_query_int(psprintf("SELECT (repl_ml.dropped_are_settled()"
										 " AND NOT EXISTS (SELECT FROM repl_ml.member m"
										 " WHERE m.node_id OPERATOR(pg_catalog.=) %d"
										 " AND m.node_id OPERATOR(pg_catalog.<>) %d"
										 " AND m.state OPERATOR(pg_catalog.<>) 'dropped'))"
										 "::pg_catalog.int4", gone,
										 self)) == 1;
	repl_ml_commit();
	MemoryContextSwitchTo(work_context);
	return settled;
}

/*
 * Begins a tenure if every member votes for it.  "gone" is the last holder that anybody
 * knows of: this node itself, or one that was dropped.
 */
static void
stand(const List *voters, int64 promised, int gone)
{
	int64		round = NEXT_ROUND(promised, self);
	StringInfoData ids;
	char	  **answers;
	char	  **errors;
	const char *params[4] = {psprintf(INT64_FORMAT, round), psprintf("%d", self), NULL,
	psprintf("%d", gone)};
	ReplMlClock *base = state.base;
	ListCell   *lc;

	if (!is_settled(gone))
	{
		refuse(_("What is left of a dropped node has not been compared with all members yet."));
		return;
	}
	initStringInfo(&ids);
	appendStringInfo(&ids, "{%d", self);
	foreach(lc, voters)
		appendStringInfo(&ids, ",%d", ((Voter *) lfirst(lc))->node_id);
	appendStringInfoChar(&ids, '}');
	params[2] = ids.data;

	/* its own vote, as any other */
	repl_ml_begin();
	SPI_execute(psprintf("UPDATE repl_ml.lease_state SET promised = " INT64_FORMAT
						 " WHERE promised OPERATOR(pg_catalog.<) " INT64_FORMAT, round, round),
				false, 0);
	ForceSyncCommit();
	repl_ml_commit();
	load_state();
	MemoryContextSwitchTo(work_context);
	answers = ask_voters(voters, "SELECT repl_ml.lease_vote($1, $2, $3, $4)", 4, params, &errors);
	foreach(lc, voters)
	{
		Voter	   *voter = lfirst(lc);
		const char *answer = answers[foreach_current_index(lc)];
		int			at = 0;

		if (answer != NULL && strcmp(answer, "later") == 0)
		{
			/* of two that stand at once one is first the next time */
			pg_usleep(1000 + pg_prng_uint64(&pg_global_prng_state) % 20000);
			known_holder = 0;
			return;
		}
		if (answer == NULL || sscanf(answer, "yes %n", &at) != 0 || at == 0)
		{
			refuse(psprintf(_("Node \"%s\" does not vote for this one to have the lease of strong "
							  "tables: %s"), voter->node_name,
							answer == NULL ? errors[foreach_current_index(lc)] : answer));
			return;
		}
		base = repl_ml_clock_merge(base, repl_ml_clock_from_text(answer + at));
	}
	if (write_state((Epoch) {round, 0}, self, base))
		lease->elected++;
}

/* Tells all who wait here that the lease does not come, and why. */
static void
refuse(const char *reason)
{
	LWLockAcquire(repl_ml_lease_lock(), LW_EXCLUSIVE);
	strlcpy(lease->reason, reason, sizeof(lease->reason));
	/* libpq's words have lines; views and DETAIL have one */
	for (char *c = lease->reason; *c != '\0'; c++)
	{
		if (*c == '\n' || *c == '\t')
			*c = ' ';
	}
	lease->refused = repl_ml_monotonic_now();
	LWLockRelease(repl_ml_lease_lock());
	known_holder = 0;
	let_all_look();
}

/* Reads this node's row of the catalog. */
static void
load_state(void)
{
	static SPIPlanPtr select = NULL;

	repl_ml_begin();
	(void) repl_ml_spi_plan(&select, "SELECT s.promised, s.round, s.turn, s.holder, s.timeline,"
							" s.base::pg_catalog.text FROM repl_ml.lease_state s", 0, NULL);
	SPI_execute_plan(select, NULL, NULL, false, 1);
	if (SPI_processed != 1)
		elog(ERROR, "no row in repl_ml.lease_state");
	state.promised = strtoll(repl_ml_spi_text(0, 0), NULL, 10);
	state.epoch.round = strtoll(repl_ml_spi_text(0, 1), NULL, 10);
	state.epoch.turn = strtoll(repl_ml_spi_text(0, 2), NULL, 10);
	state.holder = pg_strtoint32(repl_ml_spi_text(0, 3));
	state.timeline = strtoll(repl_ml_spi_text(0, 4), NULL, 10);
	MemoryContextReset(state_context);
	MemoryContextSwitchTo(state_context);
	state.base = repl_ml_clock_from_text(repl_ml_spi_text(0, 5));
	repl_ml_commit();
	MemoryContextSwitchTo(work_context);
	if (is_after(state.epoch, known_epoch))
	{
		known_epoch = state.epoch;
		known_holder = state.holder;
	}
}

/* ---- the holder's answer ---- */

/* Puts a node in line, or keeps its place; where the line is full it asks again later. */
static void
stand_in_line(ReplMlLease *own, int node)
{
	int			i = 0;

	LWLockAcquire(repl_ml_lease_lock(), LW_EXCLUSIVE);
	while (i < own->line_count && own->line[i].node != node)
		i++;
	if (i < REPL_ML_LEASE_LINE)
	{
		own->line[i].node = node;
		own->line[i].seen = repl_ml_monotonic_now();
		own->line_count = Max(own->line_count, i + 1);
	}
	LWLockRelease(repl_ml_lease_lock());
}

/* Returns what this node's row of the catalog says to who asks; NULL if the lease is here. */
static char *
read_answer(int asker, int here)
{
	static SPIPlanPtr select = NULL;
	char	   *answer = NULL;
	MemoryContext context = CurrentMemoryContext;
	Oid			types[2] = {INT4OID, INT4OID};
	Datum		values[2] = {Int32GetDatum(asker), Int32GetDatum(here)};

	PushActiveSnapshot(GetLatestSnapshot());
	SPI_connect();
	(void) repl_ml_spi_plan(&select, "SELECT CASE WHEN s.holder OPERATOR(pg_catalog.=) $1"
							" THEN pg_catalog.format('given %s %s %s', s.round, s.turn, s.base)"
							" WHEN s.holder OPERATOR(pg_catalog.<>) $2"
							" THEN pg_catalog.format('elsewhere %s %s %s', s.round, s.turn,"
							" s.holder) END FROM repl_ml.lease_state s"
							" WHERE EXISTS (SELECT FROM repl_ml.member m"
							" WHERE m.node_id OPERATOR(pg_catalog.=) $1"
							" AND m.state OPERATOR(pg_catalog.=) 'ready')", 2, types);
	SPI_execute_plan(select, values, NULL, true, 1);
	if (SPI_processed == 0)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("node %d is no ready member of the group", asker),
				 errhint("Run SELECT node_id, node_name, state FROM repl_ml.nodes.")));
	if (repl_ml_spi_text(0, 0) != NULL)
		answer = MemoryContextStrdup(context, repl_ml_spi_text(0, 0));
	SPI_finish();
	PopActiveSnapshot();
	return answer;
}

PG_FUNCTION_INFO_V1(repl_ml_lease_ask);

/*
 * repl_ml.lease_ask(asker): called by the process of a node that wants the lease, on the
 * one that has it, to its knowledge.  Waits a moment until it is
 * given away; answers "given", with what goes with it, "elsewhere", or "wait".
 */
Datum
repl_ml_lease_ask(PG_FUNCTION_ARGS)
{
	ReplMlLease *own;
	int			asker = PG_GETARG_INT32(0);
	int			here = repl_ml_identity_require()->node_id;
	TimestampTz deadline = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), ASK_MS);
	char	   *answer;

	repl_ml_shmem_require();
	own = repl_ml_lease();
	if (own == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_CANNOT_CONNECT_NOW),
				 errmsg("this node is not connected to its group yet"),
				 errhint("Try again in a moment.")));
	answer = read_answer(asker, here);
	if (answer == NULL)
	{
		stand_in_line(own, asker);
		repl_ml_lease_call(own);
		do
			answer = read_answer(asker, here);
		while (answer == NULL && repl_ml_position_wait(deadline, "ReplMlLeaseAsk"));
		ConditionVariableCancelSleep();
	}
	else if (strncmp(answer, "elsewhere", 9) == 0)
		/* others take it for this node's: so it finds out */
		repl_ml_lease_call(own);
	PG_RETURN_TEXT_P(cstring_to_text(answer == NULL ? "wait" : answer));
}
