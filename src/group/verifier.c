/*
 * verifier.c
 *		Compares tables by itself when they are due: a process of its own, which the
 *		supervisor starts and which ends when none is due any more.
 *
 * What is due, and for which node, is decided by the group's list of such
 * comparisons (repl_ml.verification, and repl_ml.verifications_due): each node
 * writes its own rows, so all know what the others have done and are at.  Of
 * those that have a schedule the member with the lowest id begins; the next one
 * only when that is late, as it is when it is down.  So a table is compared by
 * one node at a time, but for a race that costs only time.
 *
 * A comparison keeps to a rate and waits for members that lag (verify/throttle.c).
 * Whatever goes wrong with a table is what came of comparing it, and the next
 * one has its turn.  All there is to know is in tables, so a restart only ends
 * the comparison that was going on.
 *
 * Not here: how tables are compared (verify/).  Locks: repl_ml_shared->lock, for
 * the process's place.
 */
#include "postgres.h"

#include <limits.h>
#include <signal.h>

#include "access/xact.h"
#include "catalog/namespace.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "tcop/tcopprot.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "group/group.h"
#include "server/server.h"
#include "verify/verify.h"

/* settings: default, minimum, maximum */
#define VERIFY_SCHEDULE			0, 0, INT_MAX	/* s */
#define VERIFY_FULL_SCHEDULE	(7 * 24 * 60 * 60), 0, INT_MAX	/* s */

#define START_PATIENCE_MS		5000	/* a verifier that was asked for shows up by then */
#define LOOK_MS					10000	/* between two looks at what is due, at most */
#define LEAST_LOOK_MS			1000
#define PATIENCE_MS				300000	/* for members to catch up */

/* Why a comparison was ended before its end, by us. */
typedef enum Ending
{
	GOES_ON,
	UNWANTED,					/* no schedule any more, or no member */
	ANOTHER_PACE				/* is begun again */
} Ending;

/* A table that is due. */
typedef struct DueTable
{
	char	   *schema_name;
	char	   *table_name;
	bool		full;
} DueTable;

static int	verify_schedule;
static int	verify_full_schedule;

/* Of the process that compares: */
static ReplMlDatabase *place = NULL;	/* its database's; set once at start */
static Ending ending = GOES_ON; /* set by look_around */
static ReplMlPace pace;			/* of the comparison going on */
static MemoryContext table_context = NULL;	/* reset for each table */

static bool start_verifier(ReplMlDatabase *entry);
static void detach_verifier(int code, Datum arg);
static void look_around(void);
static bool find_due(DueTable *due);
static void compare_or_note(const DueTable *due);

/* Called by _PG_init: defines the settings. */
void
repl_ml_verifier_init(void)
{
	DefineCustomIntVariable("repl_ml.verify_full_schedule",
							"Time between two scheduled comparisons that read all rows of a table; "
							"0 lets each of them do so.",
							NULL,
							&verify_full_schedule,
							VERIFY_FULL_SCHEDULE,
							PGC_SIGHUP,
							GUC_UNIT_S,
							NULL,
							NULL,
							NULL);
	DefineCustomIntVariable("repl_ml.verify_schedule",
							"Time between two comparisons of each table with the other members, "
							"which are made in the background; 0 makes none.",
							NULL,
							&verify_schedule,
							VERIFY_SCHEDULE,
							PGC_SIGHUP,
							GUC_UNIT_S,
							NULL,
							NULL,
							NULL);
}

/* ---- the supervisor's part ---- */

/* Says whether the database's verifier runs, or has just been asked for. */
static bool
is_running(const ReplMlDatabase *entry)
{
	TimestampTz now = GetCurrentTimestamp();
	TimestampTz launched;
	bool		running;

	LWLockAcquire(repl_ml_shared->lock, LW_SHARED);
	running = entry->verifier_pid != 0;
	launched = entry->verifier_launched;
	LWLockRelease(repl_ml_shared->lock);
	/* a time to come is of before the clock was set back */
	return running || (launched != 0 && launched <= now &&
					   !TimestampDifferenceExceeds(launched, now, START_PATIENCE_MS));
}

/* Returns in how many milliseconds a table is due; ends what a verifier has left behind. */
static int64
find_next(void)
{
	int64		left;

	repl_ml_begin();
	left = repl_ml_query_int("SELECT repl_ml.next_verification()");
	repl_ml_commit();
	return left;
}

/*
 * Called by the supervisor of a ready member in each round: starts a verifier
 * when a table is due.  Where it cannot be started, health says so.
 */
void
repl_ml_verifier_tend(void)
{
	static TimestampTz next_look = 0;
	static int	schedule = -1;
	static bool was_running = true; /* what a former server has left is ended, too */
	ReplMlDatabase *entry = repl_ml_shmem_database(MyDatabaseId);
	bool		running = entry != NULL && is_running(entry);
	int64		left;

	if (entry == NULL || running)
	{
		was_running |= running;
		return;
	}
	if (schedule != verify_schedule || was_running)
		next_look = 0;
	schedule = verify_schedule;
	if (schedule == 0 && !was_running)
	{
		entry->verifier_refused = false;
		return;
	}
	if (GetCurrentTimestamp() < next_look)
		return;
	was_running = false;
	left = find_next();
	if (schedule == 0)
		return;
	if (left <= 0)
		was_running = start_verifier(entry);
	next_look = TimestampTzPlusMilliseconds(GetCurrentTimestamp(),
											Max(Min(left, LOOK_MS), LEAST_LOOK_MS));
}

/* Starts the verifier; returns false, with a warning once, if the server has no room for it. */
static bool
start_verifier(ReplMlDatabase *entry)
{
	LWLockAcquire(repl_ml_shared->lock, LW_EXCLUSIVE);
	entry->verifier_launched = GetCurrentTimestamp();
	LWLockRelease(repl_ml_shared->lock);
	if (repl_ml_process_start("repl_ml_verifier_main", "repl_ml verifier",
							  "repl_ml verifier of database"))
	{
		entry->verifier_refused = false;
		return true;
	}
	if (!entry->verifier_refused)
		ereport(WARNING,
				(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
				 errmsg("out of background worker slots: tables are not compared"),
				 errhint("Raise max_worker_processes; SELECT * FROM repl_ml.check_setup() says how "
						 "far.")));
	entry->verifier_refused = true;
	return false;
}

/*
 * Ends the database's verifier if it runs, for stop_workers and the supervisor of
 * a node that takes no part any more; returns whether it does.
 */
bool
repl_ml_verifier_end(void)
{
	ReplMlDatabase *entry = repl_ml_shmem_database(MyDatabaseId);
	bool		running;

	if (entry == NULL)
		return false;
	LWLockAcquire(repl_ml_shared->lock, LW_SHARED);
	running = entry->verifier_pid != 0;
	if (running)
		kill(entry->verifier_pid, SIGTERM);
	LWLockRelease(repl_ml_shared->lock);
	return running;
}

PG_FUNCTION_INFO_V1(repl_ml_verifier_state);

/* repl_ml.verifier_state(): off, idle, running, or refused for want of a background worker. */
Datum
repl_ml_verifier_state(PG_FUNCTION_ARGS)
{
	ReplMlDatabase *entry;

	repl_ml_shmem_require();
	entry = repl_ml_shmem_database(MyDatabaseId);
	PG_RETURN_TEXT_P(cstring_to_text(entry != NULL && entry->verifier_pid != 0 ? "running" :
									 verify_schedule == 0 ? "off" :
									 entry != NULL && entry->verifier_refused ? "refused" :
									 "idle"));
}

/* ---- the process ---- */

/* Takes the database's place; returns false if there is none, or another verifier has it. */
static bool
attach_verifier(Oid database)
{
	bool		attached;

	place = repl_ml_shmem_database(database);
	if (place == NULL)
		return false;
	LWLockAcquire(repl_ml_shared->lock, LW_EXCLUSIVE);
	attached = place->database == database && place->member && place->verifier_pid == 0;
	if (attached)
		place->verifier_pid = MyProcPid;
	LWLockRelease(repl_ml_shared->lock);
	if (attached)
		before_shmem_exit(detach_verifier, (Datum) 0);
	return attached;
}

/* Gives the place back when the verifier ends. */
static void
detach_verifier(int code, Datum arg)
{
	LWLockAcquire(repl_ml_shared->lock, LW_EXCLUSIVE);
	place->verifier_pid = 0;
	place->verifier_launched = 0;
	LWLockRelease(repl_ml_shared->lock);
}

/* The verifier; the argument is its database. */
void
repl_ml_verifier_main(Datum arg)
{
	Oid			database = DatumGetObjectId(arg);
	DueTable	due;

	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	pqsignal(SIGTERM, die);
	BackgroundWorkerUnblockSignals();
	if (!attach_verifier(database))
		proc_exit(0);
	BackgroundWorkerInitializeConnectionByOid(database, InvalidOid, 0);
	repl_ml_internal_write = true;
	repl_ml_session_settle();
	/* what it writes is found again by the next comparison */
	SetConfigOption("synchronous_commit", "off", PGC_SUSET, PGC_S_OVERRIDE);
	repl_ml_throttle_watch(look_around);
	repl_ml_ask_keep();
	table_context = AllocSetContextCreate(TopMemoryContext, "repl_ml table to compare",
										  ALLOCSET_DEFAULT_SIZES);
	while (ending != UNWANTED && find_due(&due))
	{
		do
		{
			ending = GOES_ON;
			compare_or_note(&due);
		} while (ending == ANOTHER_PACE);
		MemoryContextReset(table_context);
	}
	proc_exit(0);
}

/*
 * Called in every wait of a comparison: takes over changed settings, and raises
 * an error if it is to end because of them or because this is no member any more.
 */
static void
look_around(void)
{
	if (ConfigReloadPending)
	{
		ConfigReloadPending = false;
		ProcessConfigFile(PGC_SIGHUP);
	}
	if (verify_schedule == 0 || !repl_ml_shmem_is_member(MyDatabaseId))
		ending = UNWANTED;
	else if (pace.rate != repl_ml_verify_max_rate || pace.max_lag_ms != repl_ml_verify_max_lag)
		ending = ANOTHER_PACE;
	if (ending != GOES_ON)
		ereport(ERROR,
				(errcode(ERRCODE_QUERY_CANCELED),
				 errmsg("canceling a comparison because of changed settings"),
				 errhint("It is made with the new ones.")));
}

/* Finds the table that has been due for longest and notes that it is compared now. */
static bool
find_due(DueTable *due)
{
	bool		found;

	CHECK_FOR_INTERRUPTS();
	if (ConfigReloadPending)
	{
		ConfigReloadPending = false;
		ProcessConfigFile(PGC_SIGHUP);
	}
	if (verify_schedule == 0 || !repl_ml_shmem_is_member(MyDatabaseId))
		return false;
	repl_ml_begin();
	SPI_execute("SELECT b.schema_name, b.table_name, b.is_full"
				" FROM repl_ml.begin_verification() b WHERE b.table_name IS NOT NULL", false, 0);
	found = SPI_processed > 0;
	if (found)
	{
		MemoryContext old = MemoryContextSwitchTo(table_context);

		due->schema_name = pstrdup(repl_ml_spi_text(0, 0));
		due->table_name = pstrdup(repl_ml_spi_text(0, 1));
		due->full = strcmp(repl_ml_spi_text(0, 2), "t") == 0;
		MemoryContextSwitchTo(old);
	}
	repl_ml_commit();
	return found;
}

/*
 * Notes what came of a table for the group, in the transaction going on; returns
 * whether it is news that somebody should read in the log.
 */
static bool
note_result(const DueTable *due, const ReplMlVerdict *verdict)
{
	Oid			types[6] = {TEXTOID, TEXTOID, TEXTOID, INT8OID, TEXTOID, BOOLOID};
	Datum		values[6] = {CStringGetTextDatum(due->schema_name),
		CStringGetTextDatum(due->table_name), CStringGetTextDatum(verdict->status),
		Int64GetDatum(verdict->differing_rows),
		verdict->detail == NULL ? (Datum) 0 : CStringGetTextDatum(verdict->detail),
	BoolGetDatum(verdict->full)};
	char		nulls[7] = {' ', ' ', ' ', ' ', verdict->detail == NULL ? 'n' : ' ', ' ', '\0'};
	bool		is_news;

	PushActiveSnapshot(GetTransactionSnapshot());
	SPI_connect();
	SPI_execute_with_args("SELECT repl_ml.end_verification($1::pg_catalog.name,"
						  " $2::pg_catalog.name, $3, $4, $5, $6)",
						  6, types, values, nulls, false, 0);
	is_news = strcmp(repl_ml_spi_text(0, 0), "t") == 0;
	SPI_finish();
	PopActiveSnapshot();
	return is_news;
}

/* Tells the log of differences that were not there the last time, or are gone. */
static void
tell_log(const DueTable *due, const ReplMlVerdict *verdict)
{
	char	   *name = quote_qualified_identifier(due->schema_name, due->table_name);

	if (verdict->differing_rows == 0)
		ereport(LOG,
				(errmsg("table \"%s.%s\" does not differ between the members any more",
						due->schema_name, due->table_name)));
	else
		ereport(WARNING,
				(errcode(ERRCODE_DATA_CORRUPTED),
				 errmsg("table \"%s.%s\" is not the same on all members", due->schema_name,
						due->table_name),
				 errdetail_internal("%s", verdict->detail == NULL ? "" : verdict->detail),
				 errhint("Run SELECT * FROM repl_ml.diff_rows(%s).", quote_literal_cstr(name))));
}

/* Compares a table, and notes what came of it, in one transaction. */
static void
compare(const DueTable *due)
{
	ReplMlVerdict verdict = {.status = "incomplete",.detail = "This node lacks the table."};
	MemoryContext old;
	Oid			schema;
	Oid			relid;
	bool		is_news;

	pace = (ReplMlPace) {.rate = repl_ml_verify_max_rate,.max_lag_ms = repl_ml_verify_max_lag};
	StartTransactionCommand();
	old = MemoryContextSwitchTo(table_context);
	schema = get_namespace_oid(due->schema_name, true);
	relid = OidIsValid(schema) ? get_relname_relid(due->table_name, schema) : InvalidOid;
	if (OidIsValid(relid))
		verdict = repl_ml_report_verdict(relid, PATIENCE_MS, pace, !due->full);
	is_news = note_result(due, &verdict);
	MemoryContextSwitchTo(old);
	CommitTransactionCommand();
	MemoryContextSwitchTo(table_context);
	if (is_news)
		tell_log(due, &verdict);
}

/* Notes that a table could not be compared, and why. */
static void
note_failure(const DueTable *due, const ErrorData *error)
{
	ReplMlVerdict verdict = {.status = "incomplete",.detail = error->message};

	StartTransactionCommand();
	MemoryContextSwitchTo(table_context);
	(void) note_result(due, &verdict);
	CommitTransactionCommand();
}

/* Compares a table; an error of it is what came of it. */
static void
compare_or_note(const DueTable *due)
{
	PG_TRY();
	{
		compare(due);
	}
	PG_CATCH();
	{
		ErrorData  *error;

		MemoryContextSwitchTo(table_context);
		error = CopyErrorData();
		/* what is not wanted any more is no failure */
		if (ending == GOES_ON)
			EmitErrorReport();
		FlushErrorState();
		AbortOutOfAnyTransaction();
		if (ending != ANOTHER_PACE)
			note_failure(due, error);
	}
	PG_END_TRY();
}
