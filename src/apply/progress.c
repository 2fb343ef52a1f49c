/*
 * progress.c
 *		What the apply worker shows of itself in shared memory, and tells its peer.
 *
 * Not how far it is (group/worker.c), nor how that is read (monitor/stats.c).
 * Locks: repl_ml_shared->lock.
 */
#include "postgres.h"

#include "miscadmin.h"
#include "pgstat.h"
#include "utils/timestamp.h"

#include "apply/apply.h"
#include "server/server.h"
#include "wire/wire.h"

/* Says whether a worker in that state does what it is to do. */
static bool
is_well(ReplMlWorkerState state)
{
	return state == REPL_ML_WORKER_STREAMING || state == REPL_ML_WORKER_COPYING ||
		state == REPL_ML_WORKER_PAUSED;
}

/*
 * Shows what the worker is doing in repl_ml.stat_apply.  One that works has no
 * error any more, and one that does not copies nothing.
 */
void
repl_ml_apply_set_state(ReplMlApply *apply, ReplMlWorkerState state)
{
	LWLockAcquire(repl_ml_shared->lock, LW_EXCLUSIVE);
	apply->worker->state = state;
	if (is_well(state))
		apply->worker->failing = false;
	if (state == REPL_ML_WORKER_CONNECTING || state == REPL_ML_WORKER_WAITING)
		apply->worker->copy_relation = InvalidOid;
	LWLockRelease(repl_ml_shared->lock);
	pgstat_report_activity(STATE_RUNNING, repl_ml_worker_state_name(state));
}

/* Shows an error in repl_ml.stat_apply: as the last one, where all else goes on. */
void
repl_ml_apply_show_error(ReplMlApply *apply, const ErrorData *error)
{
	ReplMlWorker *shown = apply->worker;

	LWLockAcquire(repl_ml_shared->lock, LW_EXCLUSIVE);
	shown->errors++;
	shown->failing = !is_well(shown->state);
	shown->error_time = GetCurrentTimestamp();
	shown->error_sqlstate = error->sqlerrcode;
	strlcpy(shown->error_message, error->message, REPL_ML_ERROR_LENGTH);
	if (error->detail != NULL &&
		error->sqlerrcode == ERRCODE_SQLCLIENT_UNABLE_TO_ESTABLISH_SQLCONNECTION)
		snprintf(shown->error_message, REPL_ML_ERROR_LENGTH, "%s: %s", error->message,
				 error->detail);
	strlcpy(shown->error_hint, error->hint ? error->hint : "", REPL_ML_ERROR_LENGTH);
	strlcpy(shown->error_context, error->context ? error->context : "", REPL_ML_ERROR_LENGTH);
	LWLockRelease(repl_ml_shared->lock);
}

/* Counts the error that is shown as one of a copy. */
void
repl_ml_apply_count_sync_error(ReplMlApply *apply)
{
	LWLockAcquire(repl_ml_shared->lock, LW_EXCLUSIVE);
	apply->worker->sync_errors++;
	LWLockRelease(repl_ml_shared->lock);
}

/* Shows in repl_ml.stat_apply what the worker waits for, which is no error. */
void
repl_ml_apply_show_wait(ReplMlApply *apply, const char *message, const char *hint)
{
	ReplMlWorker *shown = apply->worker;

	repl_ml_apply_set_state(apply, REPL_ML_WORKER_WAITING);
	LWLockAcquire(repl_ml_shared->lock, LW_EXCLUSIVE);
	shown->failing = true;
	shown->error_time = GetCurrentTimestamp();
	shown->error_sqlstate = ERRCODE_OBJECT_IN_USE;
	strlcpy(shown->error_message, message, REPL_ML_ERROR_LENGTH);
	strlcpy(shown->error_hint, hint, REPL_ML_ERROR_LENGTH);
	shown->error_context[0] = '\0';
	LWLockRelease(repl_ml_shared->lock);
}

/*
 * Shows which of the peer's transactions is being applied: called by dispatch.c
 * when it begins, and when there is none any more.
 */
void
repl_ml_apply_show_transaction(ReplMlApply *apply)
{
	ReplMlWorker *shown = apply->worker;

	LWLockAcquire(repl_ml_shared->lock, LW_EXCLUSIVE);
	shown->current_xid = apply->transaction.open ? apply->transaction.xid : InvalidTransactionId;
	shown->current_lsn = apply->transaction.final_lsn;
	shown->current_since = apply->transaction.open ? GetCurrentTimestamp() : 0;
	pg_atomic_write_u64(&shown->current_changes, 0);
	pg_atomic_write_u64(&shown->current_parked, 0);
	LWLockRelease(repl_ml_shared->lock);
}

/* Called by change.c after each change: shows how far its transaction is. */
void
repl_ml_apply_show_changes(ReplMlApply *apply)
{
	pg_atomic_write_u64(&apply->worker->current_changes, apply->transaction.changes);
	pg_atomic_write_u64(&apply->worker->current_parked, apply->transaction.parked);
}

/*
 * Shows since when what is to be applied has been waiting for others' locks; 0: it
 * does not.
 */
void
repl_ml_apply_show_locked(ReplMlApply *apply, TimestampTz since)
{
	if (apply->worker->locked_since == since)
		return;
	LWLockAcquire(repl_ml_shared->lock, LW_EXCLUSIVE);
	if (since == 0)
		apply->worker->times.locked += Max(GetCurrentTimestamp() - apply->worker->locked_since, 0);
	apply->worker->locked_since = since;
	LWLockRelease(repl_ml_shared->lock);
}

/*
 * Notes, before it happens, that the origin is moved to there: see copy/link.c.
 */
void
repl_ml_apply_reaches(ReplMlApply *apply, XLogRecPtr lsn)
{
	ReplMlWorker *shown = apply->worker;

	LWLockAcquire(repl_ml_shared->lock, LW_EXCLUSIVE);
	shown->reached_lsn = Max(shown->reached_lsn, lsn);
	LWLockRelease(repl_ml_shared->lock);
}

/*
 * Tells the peer, before anything behind it is acknowledged, that something of
 * the transaction that ends at "end" is parked here: so our acknowledgement is
 * not one of that transaction.  The form is that of a status that nobody
 * else sends; why twice, and with a question, see hear_parked in commit/reply.c.
 */
void
repl_ml_apply_tell_parked(ReplMlApply *apply, XLogRecPtr end)
{
	XLogRecPtr	told = apply->progress.told;

	if (end <= told)
		return;
	(void) repl_ml_stream_status(apply->connection.stream, told, end, apply->progress.kept, false,
								 false);
	(void) repl_ml_stream_status(apply->connection.stream, told, end, apply->progress.kept, true,
								 false);
}

/* Set by those who park, cleared when copy/retry.c has seen them; this file only. */
static bool retry_wanted = false;
static bool locked_wanted = false;

/*
 * Called in the apply worker by park.c and change.c: something has been parked
 * that may be tried again, or what it waits for may have come.  The worker's next
 * step of copy/retry.c sees it.
 */
void
repl_ml_apply_retry_soon(void)
{
	retry_wanted = true;
}

/*
 * Says, for copy/retry.c, whether somebody has called repl_ml_apply_retry_soon
 * since the last call.
 */
bool
repl_ml_apply_retry_is_wanted(void)
{
	bool		wanted = retry_wanted;

	retry_wanted = false;
	return wanted;
}

/*
 * Called in the apply worker by park.c: something has been parked that met a
 * lock, which may be gone at any moment.
 */
void
repl_ml_apply_retry_locked(void)
{
	locked_wanted = true;
}

/*
 * Says, for copy/retry.c, whether somebody has called
 * repl_ml_apply_retry_locked since the last call.
 */
bool
repl_ml_apply_retry_is_locked(void)
{
	bool		wanted = locked_wanted;

	locked_wanted = false;
	return wanted;
}

/* Says whether somebody wants the worker to pause. */
bool
repl_ml_apply_is_to_pause(const ReplMlApply *apply)
{
	bool		asked;

	LWLockAcquire(repl_ml_shared->lock, LW_SHARED);
	asked = apply->worker->pause;
	LWLockRelease(repl_ml_shared->lock);
	return asked;
}

/*
 * Says whether the supervisor wants the worker to compare with its peer what
 * each has of dropped nodes, and forgets that.
 */
bool
repl_ml_apply_is_to_compare(ReplMlApply *apply)
{
	bool		asked;

	LWLockAcquire(repl_ml_shared->lock, LW_EXCLUSIVE);
	asked = apply->worker->compare;
	apply->worker->compare = false;
	LWLockRelease(repl_ml_shared->lock);
	return asked;
}

/* Called by copy/: shows in repl_ml.stat_apply how far a copy is. */
void
repl_ml_apply_show_copy(ReplMlApply *apply, Oid relid, int64 rows)
{
	LWLockAcquire(repl_ml_shared->lock, LW_EXCLUSIVE);
	apply->worker->copy_relation = relid;
	apply->worker->copy_rows = rows;
	LWLockRelease(repl_ml_shared->lock);
}
