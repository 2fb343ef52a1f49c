/*
 * launcher.c
 *		One process a server: starts a supervisor for each database that is a
 *		member of a group, keeps the clock file ahead of the clock, and lets
 *		commits go that nobody else would.
 *
 * It is connected to no database, so it cannot read whether one is a member.
 * After a start it probes them, one at a time: it starts a supervisor, which
 * ends at once where there is nothing to do.  Later a database says itself
 * that it wants one (ReplMlDatabase.member).
 *
 * Not what a supervisor does (supervisor.c).  Locks: repl_ml_shared->lock, for
 * the slots of workers and for its own pid.
 */
#include "postgres.h"

#include "access/heapam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/pg_database.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/proc.h"
#include "tcop/tcopprot.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/snapmgr.h"

#include "commit/commit.h"
#include "compat.h"
#include "group/group.h"
#include "server/server.h"

#define NO_ROOM				"out of background worker slots"
#define NO_ROOM_HINT		"Raise max_worker_processes; SELECT * FROM repl_ml.check_setup() " \
							"says how far."
#define PERSIST_INTERVAL_MS		2000
#define PROBE_INTERVAL_MS		10
#define START_PATIENCE_MS		5000	/* a worker that was asked for shows
										 * up by then */

static void detach_launcher(int code, Datum arg);
static void show_no_room(int slot);
static List *list_databases(List **closed);
static bool probe_next(List **unprobed);
static void start_supervisors(void);

/*
 * Makes the postmaster start the launcher with the server; called when the
 * library is loaded at server start.
 */
void
repl_ml_launcher_register(void)
{
	BackgroundWorker worker = {0};

	worker.bgw_flags = BGWORKER_SHMEM_ACCESS | BGWORKER_BACKEND_DATABASE_CONNECTION;
	worker.bgw_start_time = BgWorkerStart_RecoveryFinished;
	worker.bgw_restart_time = 1;
	snprintf(worker.bgw_library_name, sizeof(worker.bgw_library_name), "repl_ml");
	snprintf(worker.bgw_function_name, sizeof(worker.bgw_function_name), "repl_ml_launcher_main");
	snprintf(worker.bgw_name, sizeof(worker.bgw_name), "repl_ml launcher");
	snprintf(worker.bgw_type, sizeof(worker.bgw_type), "repl_ml launcher");
	RegisterBackgroundWorker(&worker);
}

/* The launcher.  The postmaster starts it again whenever it ends. */
void
repl_ml_launcher_main(Datum arg)
{
	List	   *unprobed;
	List	   *closed = NIL;

	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	pqsignal(SIGTERM, SignalHandlerForShutdownRequest);
	repl_ml_crash_watch();
	BackgroundWorkerUnblockSignals();
	BackgroundWorkerInitializeConnection(NULL, NULL, 0);
	repl_ml_session_settle();

	/* the postmaster starts us as soon as there may be transactions */
	if (pg_atomic_read_u64(&repl_ml_shared->first_xid) == 0)
		pg_atomic_write_u64(&repl_ml_shared->first_xid,
							U64FromFullTransactionId(ReadNextFullTransactionId()));
	LWLockAcquire(repl_ml_shared->lock, LW_EXCLUSIVE);
	repl_ml_shared->launcher_pid = MyProcPid;
	repl_ml_shared->launcher_latch = MyLatch;
	LWLockRelease(repl_ml_shared->lock);
	before_shmem_exit(detach_launcher, (Datum) 0);

	unprobed = list_databases(&closed);
	while (!ShutdownRequestPending)
	{
		bool		probing = probe_next(&unprobed);

		repl_ml_ticker_persist(false);
		repl_ml_quorum_dismiss_strangers();
		start_supervisors();
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
						 probing ? PROBE_INTERVAL_MS : PERSIST_INTERVAL_MS,
						 wait_event_compat("ReplMlLauncherMain"));
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
		if (ConfigReloadPending)
		{
			ConfigReloadPending = false;
			ProcessConfigFile(PGC_SIGHUP);
		}
	}
	repl_ml_ticker_persist(true);

	/*
	 * not 0: whoever ended us, the postmaster starts us again unless it stops
	 * itself
	 */
	proc_exit(1);
}

/* Takes the launcher's latch away from those who wake it, when it ends. */
static void
detach_launcher(int code, Datum arg)
{
	LWLockAcquire(repl_ml_shared->lock, LW_EXCLUSIVE);
	repl_ml_shared->launcher_pid = 0;
	repl_ml_shared->launcher_latch = NULL;
	LWLockRelease(repl_ml_shared->lock);
}

/*
 * Returns all databases, in the caller's memory: those that can be connected
 * to, and in "closed" the others.
 */
static List *
list_databases(List **closed)
{
	MemoryContext context = CurrentMemoryContext;
	List	   *databases = NIL;
	Relation	rel;
	TableScanDesc scan;
	HeapTuple	tuple;

	StartTransactionCommand();
	(void) GetTransactionSnapshot();
	rel = table_open(DatabaseRelationId, AccessShareLock);
	scan = table_beginscan_catalog(rel, 0, NULL);
	while (HeapTupleIsValid(tuple = heap_getnext(scan, ForwardScanDirection)))
	{
		Form_pg_database database = (Form_pg_database) GETSTRUCT(tuple);
		MemoryContext old = MemoryContextSwitchTo(context);

		/* outlives the transaction */
		if (database->datallowconn && !database->datistemplate)
			databases = lappend_oid(databases, database->oid);
		else
			*closed = lappend_oid(*closed, database->oid);
		MemoryContextSwitchTo(old);
	}
	table_endscan(scan);
	table_close(rel, AccessShareLock);
	CommitTransactionCommand();
	MemoryContextSwitchTo(context);
	return databases;
}

/*
 * Says whether the supervisor started for a probe has ended, or found a
 * member.
 */
static bool
probe_is_over(Oid database)
{
	bool		over = true;

	LWLockAcquire(repl_ml_shared->lock, LW_SHARED);
	foreach_worker(worker, database)
	{
		if (worker->peer == 0 &&
			worker->state != REPL_ML_WORKER_STREAMING &&
			!TimestampDifferenceExceeds(worker->launch_time, GetCurrentTimestamp(),
										START_PATIENCE_MS))
			over = false;
	}
	LWLockRelease(repl_ml_shared->lock);
	return over;
}

/*
 * Starts the next probe if the one before is over; returns true while there
 * are more.
 */
static bool
probe_next(List **unprobed)
{
	static Oid	probing = InvalidOid;

	if (OidIsValid(probing) && !probe_is_over(probing))
		return true;
	if (*unprobed == NIL)
		return false;
	probing = linitial_oid(*unprobed);
	*unprobed = list_delete_first(*unprobed);
	(void) repl_ml_worker_start(probing, 0);
	return true;
}

/* Says whether a supervisor of the database runs. */
static bool
has_supervisor(Oid database)
{
	bool		running = false;

	LWLockAcquire(repl_ml_shared->lock, LW_SHARED);
	foreach_worker(worker, database)
	{
		if (worker->peer == 0)
			running |= worker->pid != 0;
	}
	LWLockRelease(repl_ml_shared->lock);
	return running;
}

/*
 * Starts a supervisor for each database that wants one.  Before it is started
 * we look whether the database is still there, and lets itself be connected
 * to: nobody tells us when it is dropped.
 */
static void
start_supervisors(void)
{
	List	   *open = NIL;
	List	   *closed = NIL;

	for (int i = 0; i < REPL_ML_MAX_DATABASES; i++)
	{
		ReplMlDatabase *entry = &repl_ml_shared->databases[i];
		Oid			database = entry->database;

		if (!OidIsValid(database) || (entry->member && has_supervisor(database)))
			continue;
		if (entry->member && open == NIL)
			open = list_databases(&closed);
		if (entry->member && list_member_oid(open, database))
			(void) repl_ml_worker_start(database, 0);

		/* gone, or no member any more: the entry is for another one */
		else if (!entry->member || !list_member_oid(closed, database))
		{
			entry->member = false;
			if (repl_ml_quorum_forget(i, database))
				repl_ml_shmem_release_database(database);
		}
	}
	list_free(open);
	list_free(closed);
}

#define SLOT_IN_USE			(-1)
#define SLOTS_EXHAUSTED		(-2)

/*
 * Takes the slot of a worker that neither runs nor is being started, so that
 * of two who start it one does.
 */
static int
claim_slot(Oid database, int peer)
{
	ReplMlWorker *worker;
	int			slot = SLOT_IN_USE;

	LWLockAcquire(repl_ml_shared->lock, LW_EXCLUSIVE);
	worker = repl_ml_shmem_worker(database, peer);
	if (worker == NULL)
		slot = SLOTS_EXHAUSTED;
	else if (worker->pid == 0 && !worker->stop &&
			 (worker->launch_time > GetCurrentTimestamp() ||	/* the clock was set
																 * back */
			  TimestampDifferenceExceeds(worker->launch_time, GetCurrentTimestamp(),
										 START_PATIENCE_MS)))
	{
		worker->launch_time = GetCurrentTimestamp();
		slot = worker - repl_ml_shared->workers;
	}
	LWLockRelease(repl_ml_shared->lock);
	return slot;
}

/*
 * Starts the supervisor (peer 0) or an apply worker of a database, for
 * launcher and supervisor, unless it runs or is being started.  Returns false,
 * with a warning, if the server has no room for it.
 */
bool
repl_ml_worker_start(Oid database, int peer)
{
	BackgroundWorker worker = {0};
	int			slot = claim_slot(database, peer);

	if (slot == SLOT_IN_USE)
		return true;
	if (slot == SLOTS_EXHAUSTED)
	{
		ereport(WARNING,
				(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
				 errmsg("repl_ml runs at most %d workers on a server", REPL_ML_MAX_WORKERS)));
		return false;
	}

	/* not the postmaster but who has asked for it starts it again */
	worker.bgw_flags = BGWORKER_SHMEM_ACCESS | BGWORKER_BACKEND_DATABASE_CONNECTION;
	worker.bgw_start_time = BgWorkerStart_RecoveryFinished;
	worker.bgw_restart_time = BGW_NEVER_RESTART;
	worker.bgw_main_arg = Int32GetDatum(slot);
	snprintf(worker.bgw_library_name, sizeof(worker.bgw_library_name), "repl_ml");
	snprintf(worker.bgw_function_name, sizeof(worker.bgw_function_name), "%s",
			 peer == 0 ? "repl_ml_supervisor_main" : "repl_ml_apply_main");
	if (peer == 0)
		snprintf(worker.bgw_name, sizeof(worker.bgw_name), "repl_ml supervisor of database %u",
				 database);
	else
		snprintf(worker.bgw_name, sizeof(worker.bgw_name),
				 "repl_ml apply of node %d in database %u", peer, database);
	snprintf(worker.bgw_type, sizeof(worker.bgw_type), "%s",
			 peer == 0 ? "repl_ml supervisor" : "repl_ml apply");
	if (RegisterDynamicBackgroundWorker(&worker, NULL))
		return true;
	show_no_room(slot);
	ereport(WARNING,
			(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
			 errmsg(NO_ROOM),
			 errhint(NO_ROOM_HINT)));
	return false;
}

/*
 * Starts a process of this database that works beside its supervisor and ends by itself,
 * for the supervisor (beside.c, tenure.c, verifier.c).  Returns false if the server has
 * no room for it.
 */
bool
repl_ml_process_start(const char *function, const char *type, const char *name)
{
	BackgroundWorker worker = {0};

	worker.bgw_flags = BGWORKER_SHMEM_ACCESS | BGWORKER_BACKEND_DATABASE_CONNECTION;
	worker.bgw_start_time = BgWorkerStart_RecoveryFinished;
	worker.bgw_restart_time = BGW_NEVER_RESTART;
	worker.bgw_main_arg = ObjectIdGetDatum(MyDatabaseId);
	strlcpy(worker.bgw_library_name, "repl_ml", sizeof(worker.bgw_library_name));
	strlcpy(worker.bgw_function_name, function, sizeof(worker.bgw_function_name));
	snprintf(worker.bgw_name, sizeof(worker.bgw_name), "%s %u", name, MyDatabaseId);
	strlcpy(worker.bgw_type, type, sizeof(worker.bgw_type));
	return RegisterDynamicBackgroundWorker(&worker, NULL);
}

/* Shows in repl_ml.stat_apply, and so in repl_ml.health, why a worker does not run. */
static void
show_no_room(int slot)
{
	ReplMlWorker *worker = &repl_ml_shared->workers[slot];

	LWLockAcquire(repl_ml_shared->lock, LW_EXCLUSIVE);
	worker->errors++;
	worker->failing = true;
	worker->error_time = GetCurrentTimestamp();
	worker->error_sqlstate = ERRCODE_CONFIGURATION_LIMIT_EXCEEDED;
	strlcpy(worker->error_message, NO_ROOM, REPL_ML_ERROR_LENGTH);
	strlcpy(worker->error_hint, NO_ROOM_HINT, REPL_ML_ERROR_LENGTH);
	LWLockRelease(repl_ml_shared->lock);
}
