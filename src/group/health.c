/*
 * health.c
 *		Tells when a check of repl_ml.health changes its status: once to the log, and
 *		to who listens to the channel repl_ml_health.
 *
 * Not what the checks are (sql/parts/views.sql).  The supervisor's alone; what it has
 * told is forgotten with it, so after a start whatever is not well is told again.
 * A look at the view takes milliseconds, so in each round shared memory is asked first
 * whether it may be due.  Locks: those of a look, and repl_ml_shared->lock.
 */
#include "postgres.h"

#include <time.h>

#include "access/xact.h"
#include "commands/async.h"
#include "common/hashfn.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

#include "commit/commit.h"
#include "group/group.h"
#include "server/server.h"

#define CHANNEL			"repl_ml_health"
#define MOST_CHECKS		64
#define REST			1000	/* times the CPU time of a look there is none, */
#define LONGEST_REST	(10 * USECS_PER_SEC)	/* up to this: it may have been planned anew */

/* What has been told of a check. */
typedef struct ToldCheck
{
	NameData	name;
	char		status[16];
} ToldCheck;

static ToldCheck told[MOST_CHECKS];
static int	told_count = 0;

/* Returns what was told of a check, made with "ok" where nothing was; NULL if there is no room. */
static ToldCheck *
find_told(const char *name)
{
	for (int i = 0; i < told_count; i++)
	{
		if (strcmp(NameStr(told[i].name), name) == 0)
			return &told[i];
	}
	if (told_count == MOST_CHECKS)
		return NULL;
	namestrcpy(&told[told_count].name, name);
	strlcpy(told[told_count].status, "ok", sizeof(told[0].status));
	return &told[told_count++];
}

/* Tells a change: the row of SPI's result has check, status, detail, hint and payload. */
static void
tell_change(uint64 row, ToldCheck *check)
{
	const char *status = repl_ml_spi_text(row, 1);
	const char *hint = repl_ml_spi_text(row, 3);

	ereport(LOG,
			(errmsg("health of this node: \"%s\" is now %s, was %s: %s", NameStr(check->name),
					status, check->status, repl_ml_spi_text(row, 2)),
			 hint != NULL ? errhint("%s", hint) : 0));
	Async_Notify(CHANNEL, repl_ml_spi_text(row, 4));
	strlcpy(check->status, status, sizeof(check->status));
}

/* Looks at the view, in a transaction of its own, and tells what has changed. */
static void
look(void)
{
	static SPIPlanPtr plan = NULL;

	repl_ml_begin();
	SPI_execute_plan(repl_ml_spi_plan(&plan,
									  "SELECT h.check_name, h.status, h.detail, h.hint,"
									  " pg_catalog.jsonb_build_object('check_name', h.check_name,"
									  " 'status', h.status,"
									  " 'detail', pg_catalog.left(h.detail, 1000))::pg_catalog.text"
									  " FROM repl_ml.health h", 0, NULL), NULL, NULL, true, 0);
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		ToldCheck  *check = find_told(repl_ml_spi_text(i, 0));

		if (check != NULL && strcmp(check->status, repl_ml_spi_text(i, 1)) != 0)
			tell_change(i, check);
	}
	repl_ml_commit();
}

/* What shared memory knows of a worker that health depends on. */
typedef struct Vital
{
	int			peer;
	bool		runs;
	bool		failing;
	bool		silent;			/* nothing has come for some heartbeats */
	bool		late;			/* ... or only what was sent before */
	bool		locked;
	ReplMlWorkerState state;
	Oid			copied;
	int64		parked;
} Vital;

/*
 * Returns what changes when a worker ends, fails, waits or goes on, or a member can
 * be reached no more, or again.
 */
static uint32
vital_signs(void)
{
	ReplMlMemberState members[REPL_ML_MAX_WORKERS + 1];
	int			count = repl_ml_members_states(members);
	TimestampTz now = GetCurrentTimestamp();
	int			silence = 5 * repl_ml_heartbeat_interval;
	uint32		hash = 0;

	for (int i = 0; i < count; i++)
		hash = hash_combine(hash, members[i].node_id * 2 + members[i].reachable);
	LWLockAcquire(repl_ml_shared->lock, LW_SHARED);
	foreach_worker(worker, MyDatabaseId)
	{
		Vital		vital;

		memset(&vital, 0, sizeof(vital));
		vital.peer = worker->peer;
		vital.runs = worker->pid != 0;
		vital.failing = worker->failing;
		vital.silent = worker->peer != 0 &&
			TimestampDifferenceExceeds(worker->last_message_time, now, silence);
		vital.late = worker->peer != 0 &&
			TimestampDifferenceExceeds(worker->sent_time, now, 2 * silence);
		vital.locked = worker->locked_since != 0;
		vital.state = worker->state;
		vital.copied = worker->copy_relation;
		vital.parked = worker->parked;
		hash = hash_combine(hash, hash_bytes((unsigned char *) &vital, sizeof(vital)));
	}
	LWLockRelease(repl_ml_shared->lock);
	return hash;
}

/*
 * Called by the supervisor in each round, outside transactions: looks with "due", and
 * where shared memory shows that something has changed.  Where many
 * tables make a look costly, looks are fewer.  A look that fails, as when somebody
 * has altered the view, is logged once and tried again; heartbeats go on.
 */
void
repl_ml_health_tell(bool due)
{
	static bool is_due = true;
	static uint32 seen = 0;
	uint32		signs = vital_signs();
	static bool has_planned = false;
	static bool failed = false;
	static TimestampTz next = 0;
	MemoryContext context = CurrentMemoryContext;
	clock_t		began = clock();
	double		took;

	is_due |= due || signs != seen;
	seen = signs;
	if (!is_due || GetCurrentTimestamp() < next)
		return;
	is_due = false;
	PG_TRY();
	{
		look();
		failed = false;
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(context);
		if (!failed)
			EmitErrorReport();
		FlushErrorState();
		AbortOutOfAnyTransaction();
		failed = true;
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
	took = (clock() - began) * (double) USECS_PER_SEC / CLOCKS_PER_SEC;
	/* to plan it takes longest */
	if (has_planned)
		next = GetCurrentTimestamp() + (TimestampTz) Min(took * REST, LONGEST_REST);
	has_planned = true;
}
