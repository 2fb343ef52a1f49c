/*
 * throttle.c
 *		How fast one node's part of a comparison may be: so many rows a second, and
 *		none while members lag.
 *
 * Called by whoever scans a table for a comparison (part.c), in the process that
 * does so: a backend, or the verifier.  How fast travels with the question, so
 * all nodes keep to what the one that compares has set; each looks itself who
 * lags behind it.  A comparison that a person has asked for is not throttled.
 *
 * Scans tell how many rows they have seen, a few pages at a time, and rest in
 * between.  While they rest they hold neither a snapshot nor a lock, as that
 * may take hours: who scans has closed the table, and the snapshot of a CALL
 * is let go here.
 *
 * Not here: when tables are compared (group/verifier.c).  No locks.
 */
#include "postgres.h"

#include <limits.h>

#include "executor/spi.h"
#include "miscadmin.h"
#include "storage/latch.h"
#include "tcop/pquery.h"
#include "utils/guc.h"
#include "utils/portal.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "verify/verify.h"

/* settings: default, minimum, maximum */
#define VERIFY_MAX_RATE		20000, 0, INT_MAX	/* rows a second */
#define VERIFY_MAX_LAG		10000, 0, INT_MAX	/* ms */

#define LEAST_REST_US		100000	/* shorter ones are put together */
#define LONGEST_REST_MS		1000	/* then it is looked again whether to go on */
#define LAG_INTERVAL_US		1000000 /* between two looks at who lags */

int			repl_ml_verify_max_rate;
int			repl_ml_verify_max_lag;

/* Raises an error if what goes on is not wanted any more; the verifier's. */
static void (*watch) (void) = NULL;

/* What this process keeps to; set by repl_ml_throttle_begin. */
static ReplMlPace pace = {.rate = -1};

/* Until when the rows seen so far would have taken, at the rate: monotonic, µs. */
static uint64 paid_until = 0;
static uint64 last_seen = 0;	/* when rows were last told */
static uint64 lag_looked_at = 0;

/* Called by _PG_init: defines the settings. */
void
repl_ml_throttle_init(void)
{
	DefineCustomIntVariable("repl_ml.verify_max_lag",
							"How late the members' changes may come before comparisons that "
							"repl_ml.verify_schedule makes are paused; 0 pauses them never.",
							NULL,
							&repl_ml_verify_max_lag,
							VERIFY_MAX_LAG,
							PGC_SIGHUP,
							GUC_UNIT_MS,
							NULL,
							NULL,
							NULL);
	DefineCustomIntVariable("repl_ml.verify_max_rate",
							"How many rows a second comparisons that repl_ml.verify_schedule "
							"makes read on each node; 0 for no limit.",
							NULL,
							&repl_ml_verify_max_rate,
							VERIFY_MAX_RATE,
							PGC_SIGHUP,
							0,
							NULL,
							NULL,
							NULL);
}

/* Called by the verifier: lets it look, in every wait, whether to go on. */
void
repl_ml_throttle_watch(void (*look) (void))
{
	watch = look;
}

/* Raises an error if the comparison this process is at is not wanted any more. */
void
repl_ml_throttle_look(void)
{
	if (watch != NULL)
		watch();
}

/* Begins a scan that keeps to this pace. */
void
repl_ml_throttle_begin(ReplMlPace of_scan)
{
	pace = of_scan;
	paid_until = last_seen = repl_ml_monotonic_now();
	lag_looked_at = 0;
}

/* Says whether the scan is to be throttled at all. */
static bool
is_throttled(void)
{
	return pace.rate >= 0;
}

/*
 * Counts rows that have been seen since the last call; returns true if it is
 * time to rest, for which the table is to be closed first.
 */
bool
repl_ml_throttle_count(int64 rows)
{
	uint64		now;

	if (!is_throttled())
		return false;
	now = repl_ml_monotonic_now();
	/* who was slower than he might have been does not catch up */
	paid_until = Max(paid_until, last_seen);
	last_seen = now;
	if (pace.rate > 0)
		paid_until += rows * INT64CONST(1000000) / pace.rate;
	return paid_until > now + LEAST_REST_US ||
		(pace.max_lag_ms > 0 && now > lag_looked_at + LAG_INTERVAL_US);
}

/*
 * Returns, in ms, how late the writes of one of the members that can be reached
 * come here, or those of this node there, whichever is the latest.
 */
static int64
find_lag(void)
{
	int64		lag;

	PushActiveSnapshot(GetTransactionSnapshot());
	SPI_connect();
	lag = repl_ml_query_int("SELECT repl_ml.greatest_lag()");
	SPI_finish();
	PopActiveSnapshot();
	/* looking up what the query needs has taken one, too */
	InvalidateCatalogSnapshot();
	return lag;
}

/* Waits until the time comes, or this process is woken. */
static void
wait_until(uint64 end, const char *event)
{
	uint64		now = repl_ml_monotonic_now();

	if (now >= end)
		return;
	(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
					 Min((end - now) / 1000 + 1, LONGEST_REST_MS), wait_event_compat(event));
	ResetLatch(MyLatch);
	CHECK_FOR_INTERRUPTS();
	repl_ml_throttle_look();
}

/* Waits while a member lags more than it may. */
static void
wait_for_members(void)
{
	while (pace.max_lag_ms > 0 && find_lag() > pace.max_lag_ms)
	{
		repl_ml_verify_phase(REPL_ML_VERIFY_PAUSED);
		wait_until(repl_ml_monotonic_now() + LAG_INTERVAL_US, "ReplMlVerifyLag");
	}
	lag_looked_at = repl_ml_monotonic_now();
}

/*
 * Rests until the scan may go on.  The caller holds no snapshot of his own, nor
 * a lock that anybody would wait for; that of the statement that has called him
 * is let go meanwhile.
 */
void
repl_ml_throttle_rest(void)
{
	ReplMlVerifyPhase phase = repl_ml_verify_phase_now();
	bool		released = repl_ml_throttle_release();

	if (repl_ml_monotonic_now() > lag_looked_at + LAG_INTERVAL_US)
		wait_for_members();
	while (repl_ml_monotonic_now() < paid_until)
	{
		repl_ml_verify_phase(REPL_ML_VERIFY_RESTING);
		wait_until(paid_until, "ReplMlVerifyRate");
	}
	/* what was waited for was not scanned in */
	last_seen = repl_ml_monotonic_now();
	repl_ml_verify_phase(phase);
	if (released)
		EnsurePortalSnapshotExists();
}

/*
 * Lets the snapshot go that a CALL holds while what it calls runs, so that this
 * process holds up no vacuum; returns whether it has, and the caller has to take
 * one again (EnsurePortalSnapshotExists).  Elsewhere a statement keeps its
 * snapshot.
 */
bool
repl_ml_throttle_release(void)
{
	bool		is_own = ActivePortal != NULL && ActiveSnapshotSet() &&
		ActivePortal->portalSnapshot == GetActiveSnapshot();

	if (is_own)
		ForgetPortalSnapshots();
	/* kept for values that are fetched from the result, as a COMMIT in a procedure lets it go */
	if (is_own && ActivePortal->holdSnapshot != NULL)
	{
		UnregisterSnapshotFromOwner(ActivePortal->holdSnapshot, ActivePortal->resowner);
		ActivePortal->holdSnapshot = NULL;
	}
	InvalidateCatalogSnapshot();
	return is_own;
}
