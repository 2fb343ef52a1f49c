/*
 * read.c
 *		repl_ml.read_consistency = barrier: transactions that see everything
 *		acknowledged anywhere before they began, for clients that cannot call
 *		repl_ml.barrier() themselves.
 *
 * The barrier (read/barrier.c) is run once a transaction, before its first
 * snapshot that counts: at BEGIN, or in front of a statement that is a
 * transaction of its own; there the snapshot, which has been taken already, is
 * taken anew.
 *
 * Not here: the barrier itself.  No locks.
 */
#include "postgres.h"

#include "access/xact.h"
#include "executor/executor.h"
#include "miscadmin.h"
#include "tcop/pquery.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/portal.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "read/read.h"
#include "server/server.h"

/* repl_ml.read_timeout: default, minimum, maximum, ms */
#define READ_TIMEOUT		10000, 1, INT_MAX

typedef enum ReadConsistency
{
	READ_LOCAL,
	READ_BARRIER
} ReadConsistency;

static const struct config_enum_entry choices[] = {
	{"local", READ_LOCAL, false},
	{"barrier", READ_BARRIER, false},
	{NULL, 0, false}
};

static int	read_consistency = READ_LOCAL;
static int	read_timeout;

/* Has this transaction had its barrier?  Reset at its end. */
static bool done = false;

static ExecutorStart_hook_type previous_hook = NULL;

static void start_executor(QueryDesc *query, int flags);
static void forget_barrier(XactEvent event, void *arg);
static bool is_wanted(void);
static void run_barrier(void);
static void require_fresh_snapshots(void);

/*
 * Called by _PG_init: defines the settings and, at server start, installs the
 * hooks.
 */
void
repl_ml_read_init(void)
{
	DefineCustomEnumVariable("repl_ml.read_consistency",
							 "What a transaction sees of other nodes: what is here, or everything "
							 "acknowledged anywhere before it began.",
							 NULL,
							 &read_consistency,
							 READ_LOCAL,
							 choices,
							 PGC_USERSET,
							 0,
							 NULL,
							 NULL,
							 NULL);
	DefineCustomIntVariable("repl_ml.read_timeout",
							"How long a transaction waits for what repl_ml.read_consistency asks "
							"for.",
							NULL,
							&read_timeout,
							READ_TIMEOUT,
							PGC_USERSET,
							GUC_UNIT_MS,
							NULL,
							NULL,
							NULL);
	if (!process_shared_preload_libraries_in_progress)
		return;
	RegisterXactCallback(forget_barrier, NULL);
	previous_hook = ExecutorStart_hook;
	ExecutorStart_hook = start_executor;
}

/* A backend's callback: the next transaction has not had its barrier. */
static void
forget_barrier(XactEvent event, void *arg)
{
	if (event == XACT_EVENT_COMMIT || event == XACT_EVENT_ABORT || event == XACT_EVENT_PREPARE)
		done = false;
}

/*
 * Called by statement.c at BEGIN, before it is run: the transaction has no
 * snapshot yet.
 */
void
repl_ml_read_begin(void)
{
	if (is_wanted())
		run_barrier();
}

/*
 * The executor's hook: runs the barrier before a statement that is a
 * transaction of its own, and gives the statement a snapshot of after it.
 */
static void
start_executor(QueryDesc *query, int flags)
{
	if (is_wanted() && (flags & EXEC_FLAG_EXPLAIN_ONLY) == 0)
	{
		require_fresh_snapshots();
		run_barrier();
		repl_ml_read_renew(query);
	}
	if (previous_hook)
		previous_hook(query, flags);
	else
		standard_ExecutorStart(query, flags);
}

/* Called by statement.c before COPY, which reads a table without the executor. */
void
repl_ml_read_copy(CopyStmt *stmt)
{
	if (stmt->is_from || stmt->relation == NULL || !is_wanted())
		return;
	require_fresh_snapshots();
	run_barrier();
	if (ActivePortal == NULL || ActivePortal->portalSnapshot == NULL || !ActiveSnapshotSet())
		return;
	/* the portal checks at its end that this is its own */
	PopActiveSnapshot();
	PushActiveSnapshotWithLevel(GetTransactionSnapshot(), ActivePortal->createLevel);
	ActivePortal->portalSnapshot = GetActiveSnapshot();
}

/* Raises an error in a transaction that has its snapshot for good. */
static void
require_fresh_snapshots(void)
{
	if (IsolationUsesXactSnapshot())
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("parameter \"%s\" cannot be \"%s\" for a single statement at this "
						"isolation "
						"level", "repl_ml.read_consistency", "barrier"),
				 errhint("Begin a transaction, or use READ COMMITTED.")));
}

/*
 * Says whether this is a client's transaction that has not had its barrier.
 */
static bool
is_wanted(void)
{
	return read_consistency == READ_BARRIER && !done && !repl_ml_internal_write &&
		!repl_ml_applying &&
		IsUnderPostmaster && !IsInParallelMode() && IsTransactionState() &&
		OidIsValid(repl_ml_schema_oid()) && repl_ml_identity()->member;
}

/*
 * Runs the barrier, and leaves no memory behind in the statement's context.  A
 * standby, which could not tell how old it is, refuses.
 */
static void
run_barrier(void)
{
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext, "repl_ml barrier",
												  ALLOCSET_SMALL_SIZES);
	MemoryContext old = MemoryContextSwitchTo(context);

	if (RecoveryInProgress())
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("parameter \"%s\" cannot be \"%s\" on a standby",
						"repl_ml.read_consistency", "barrier"),
				 errhint("Read on a member, or run SET repl_ml.read_consistency = local.")));
	/* what it runs itself needs none */
	done = true;
	repl_ml_barrier_run(TimestampTzPlusMilliseconds(GetCurrentTimestamp(), read_timeout));
	MemoryContextSwitchTo(old);
	MemoryContextDelete(context);
}

/* Returns, for write/strong.c, for how long a read may wait, ms. */
int
repl_ml_read_timeout(void)
{
	return read_timeout;
}

/*
 * Called from a hook before a statement is begun, at READ COMMITTED: gives it a snapshot
 * of now in the place of its own.  Does nothing for one that has none.
 */
void
repl_ml_read_renew(QueryDesc *query)
{
	if (query->snapshot == InvalidSnapshot || !ActiveSnapshotSet())
		return;
	PopActiveSnapshot();
	PushCopiedSnapshot(GetTransactionSnapshot());
	UpdateActiveSnapshotCommandId();
	UnregisterSnapshot(query->snapshot);
	query->snapshot = RegisterSnapshot(GetActiveSnapshot());
}
