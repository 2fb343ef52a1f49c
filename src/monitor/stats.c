/*
 * stats.c
 *		The workers from SQL: what they are doing, pausing them, stopping them,
 *		waiting for what they bring about.
 *
 * Called by backends.  Not here: what the workers note of themselves
 * (apply/progress.c), and starting them (group/).  repl_ml_shared->lock is taken
 * to read and to mark workers, and not held while a backend waits for them.
 */
#include "postgres.h"

#include <signal.h>

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "storage/latch.h"
#include "utils/builtins.h"
#include "utils/pg_lsn.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "group/group.h"
#include "server/server.h"

#define STATS_COLUMNS			(36 + 9 + REPL_ML_COUNTS - REPL_ML_INSERTED)
#define COMING_BACK			"coming back"	/* of a node that was set back */
#define ERRORS_UNTIL_TOLD		3	/* of a worker, before a waiter is told */

static int	find_peer(Name node_name);

/* Returns a position, null where there is none. */
static Datum
lsn_or_null(XLogRecPtr lsn, bool *isnull)
{
	*isnull = lsn == InvalidXLogRecPtr;
	return LSNGetDatum(lsn);
}

/* Returns a time, null where there is none. */
static Datum
time_or_null(TimestampTz time, bool *isnull)
{
	*isnull = time == 0;
	return TimestampTzGetDatum(time);
}

/*
 * Puts a worker's last error at *i of a row; nulls if there is none to be shown.
 */
static void
put_error(const ReplMlWorker *worker, bool shown, Datum *values, bool *nulls, int *i)
{
	nulls[*i] = !shown;
	values[(*i)++] = TimestampTzGetDatum(worker->error_time);
	nulls[*i] = !shown;
	values[(*i)++] = CStringGetTextDatum(unpack_sql_state(worker->error_sqlstate));
	nulls[*i] = !shown;
	values[(*i)++] = CStringGetTextDatum(worker->error_message);
	nulls[*i] = !shown || worker->error_hint[0] == '\0';
	values[(*i)++] = CStringGetTextDatum(worker->error_hint);
}

/* Returns a count that is written without the lock. */
static int64
read_count(const pg_atomic_uint64 *count)
{
	return (int64) pg_atomic_read_u64(unconstify(pg_atomic_uint64 *, count));
}

/*
 * Puts what a worker applies now at *i of a row, and since when it has been waiting
 * for locks; nulls if there is none.
 */
static void
put_current(const ReplMlWorker *worker, Datum *values, bool *nulls, int *i)
{
	bool		idle = worker->pid == 0 || !TransactionIdIsValid(worker->current_xid);

	for (int column = 0; column < 5; column++)
		nulls[*i + column] = idle;
	values[(*i)++] = TransactionIdGetDatum(worker->current_xid);
	values[(*i)++] = LSNGetDatum(worker->current_lsn);
	values[(*i)++] = TimestampTzGetDatum(worker->current_since);
	values[(*i)++] = Int64GetDatum(read_count(&worker->current_changes));
	values[(*i)++] = Int64GetDatum(read_count(&worker->current_parked));
	values[*i] = time_or_null(worker->pid == 0 ? 0 : worker->locked_since, &nulls[*i]);
	(*i)++;
	values[*i] = time_or_null(worker->applied_time, &nulls[*i]);
	(*i)++;
}

/* Returns microseconds as milliseconds, as core's views have times. */
static Datum
milliseconds(uint64 time)
{
	return Float8GetDatum(time / 1000.0);
}

/* Puts what a worker has counted at *i of a row, and what goes with its last error. */
static void
put_counts(const ReplMlWorker *worker, Datum *values, bool *nulls, int *i)
{
	values[(*i)++] = Int64GetDatum(worker->received_bytes);
	values[(*i)++] = milliseconds(worker->times.applying);
	values[(*i)++] = milliseconds(worker->times.locked);
	values[(*i)++] = milliseconds(worker->times.flushing);
	values[(*i)++] = TimestampTzGetDatum(worker->counts_since);
	values[*i] = time_or_null(worker->sent_time, &nulls[*i]);
	(*i)++;
	values[*i] = lsn_or_null(worker->told_lsn, &nulls[*i]);
	(*i)++;
	values[*i] = time_or_null(worker->told_time, &nulls[*i]);
	(*i)++;
	nulls[*i] = worker->error_time == 0 || worker->error_context[0] == '\0';
	values[(*i)++] = CStringGetTextDatum(worker->error_context);
	for (int count = REPL_ML_INSERTED; count < REPL_ML_COUNTS; count++)
		values[(*i)++] = Int64GetDatum(worker->counts.of[count]);
}

/* Puts a worker into the result of worker_stats. */
static void
put_worker(ReturnSetInfo *rsinfo, const ReplMlWorker *worker)
{
	Datum		values[STATS_COLUMNS];
	bool		nulls[STATS_COLUMNS] = {false};
	int			i = 0;

	values[i++] = Int32GetDatum(worker->peer);
	nulls[i] = worker->pid == 0;
	values[i++] = Int32GetDatum(worker->pid);
	values[i++] = CStringGetTextDatum(repl_ml_worker_state_name(worker->state));
	values[i] = lsn_or_null(worker->received_lsn, &nulls[i]);
	i++;
	values[i] = lsn_or_null(worker->applied_lsn, &nulls[i]);
	i++;
	values[i] = lsn_or_null(worker->peer_lsn, &nulls[i]);
	i++;
	values[i] = lsn_or_null(worker->reached_lsn, &nulls[i]);
	i++;
	values[i] = time_or_null(worker->applied_commit_time, &nulls[i]);
	i++;
	values[i] = time_or_null(worker->last_message_time, &nulls[i]);
	i++;
	values[i] = time_or_null(worker->pid == 0 ? 0 : worker->start_time, &nulls[i]);
	i++;
	values[i++] = Int64GetDatum(worker->transactions);
	values[i++] = Int64GetDatum(worker->changes);
	values[i++] = Int64GetDatum(worker->conflicts);
	values[i++] = Int64GetDatum(worker->counts.of[REPL_ML_EQUAL_UPDATES]);
	values[i++] = Int64GetDatum(worker->counts.of[REPL_ML_EQUAL_INSERTS]);
	values[i++] = Int64GetDatum(worker->parked);
	values[i++] = Int64GetDatum(worker->retries);
	values[i++] = Int64GetDatum(worker->errors);
	values[i++] = Int64GetDatum(worker->sync_errors);
	nulls[i] = !OidIsValid(worker->copy_relation);
	values[i++] = ObjectIdGetDatum(worker->copy_relation);
	nulls[i] = !OidIsValid(worker->copy_relation);
	values[i++] = Int64GetDatum(worker->copy_rows);

	/* what is wrong now, and what was the last time */
	put_error(worker, worker->failing, values, nulls, &i);
	put_error(worker, worker->error_time != 0, values, nulls, &i);
	put_current(worker, values, nulls, &i);
	put_counts(worker, values, nulls, &i);
	Assert(i == STATS_COLUMNS);
	tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
}

PG_FUNCTION_INFO_V1(repl_ml_worker_stats);

/* repl_ml.worker_stats(): returns a row for each worker of this database. */
Datum
repl_ml_worker_stats(PG_FUNCTION_ARGS)
{
	int			count;
	ReplMlWorker *copies = repl_ml_shmem_copy_workers(&count);

	InitMaterializedSRF(fcinfo, 0);
	for (int i = 0; i < count; i++)
		put_worker((ReturnSetInfo *) fcinfo->resultinfo, &copies[i]);
	return (Datum) 0;
}

PG_FUNCTION_INFO_V1(repl_ml_worker_rests);

/*
 * repl_ml.worker_rests(peer): returns for how long the worker of a peer, or the
 * supervisor, has not come round, by a clock that nobody sets; where it has not since
 * the server's start, since then.
 */
Datum
repl_ml_worker_rests(PG_FUNCTION_ARGS)
{
	int			count;
	ReplMlWorker *copies = repl_ml_shmem_copy_workers(&count);
	Interval   *interval = palloc0(sizeof(Interval));
	uint64		last = 0;

	for (int i = 0; i < count; i++)
	{
		if (copies[i].peer == PG_GETARG_INT32(0))
			last = Max(last, copies[i].round_time);
	}
	interval->time = last != 0 ? (int64) (repl_ml_monotonic_now() - last) :
		GetCurrentTimestamp() - PgStartTime;
	PG_RETURN_INTERVAL_P(interval);
}

/* Returns the id of a peer by name; raises an error if there is none. */
static int
find_peer(Name node_name)
{
	Oid			types[1] = {NAMEOID};
	Datum		values[1] = {NameGetDatum(node_name)};
	int			node_id = 0;

	(void) repl_ml_identity_require();
	SPI_connect();
	SPI_execute_with_args("SELECT m.node_id FROM repl_ml.member m, repl_ml.local_node l"
						  " WHERE m.node_name OPERATOR(pg_catalog.=) $1"
						  " AND m.state OPERATOR(pg_catalog.<>) 'dropped'"
						  " AND m.node_id OPERATOR(pg_catalog.<>) l.node_id",
						  1, types, values, NULL, true, 1);
	if (SPI_processed > 0)
		node_id = atoi(repl_ml_spi_text(0, 0));
	SPI_finish();
	if (node_id == 0)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("peer \"%s\" does not exist", NameStr(*node_name)),
				 errhint("Run SELECT node_name, state FROM repl_ml.nodes.")));
	return node_id;
}

/*
 * Sets or clears the pause of a peer's worker and wakes it; returns its state,
 * as if it were that one's while a large transaction of the peer is applied
 * beside.
 */
static ReplMlWorkerState
set_pause(int peer, bool pause)
{
	ReplMlWorker *worker;
	ReplMlWorkerState state = REPL_ML_WORKER_STOPPED;

	LWLockAcquire(repl_ml_shared->lock, LW_EXCLUSIVE);
	worker = repl_ml_shmem_worker(MyDatabaseId, peer);
	if (worker != NULL)
	{
		worker->pause = pause;
		if (worker->pid != 0)
		{
			state = worker->state;
			SetLatch(worker->latch);
		}
	}
	LWLockRelease(repl_ml_shared->lock);
	if (repl_ml_beside_is_at(peer))
		state = REPL_ML_WORKER_STREAMING;
	return state;
}

PG_FUNCTION_INFO_V1(repl_ml_pause_apply);

/* repl_ml.pause_apply(peer): returns when the worker has stopped applying. */
Datum
repl_ml_pause_apply(PG_FUNCTION_ARGS)
{
	int			peer;

	repl_ml_refuse_nulls(fcinfo);
	peer = find_peer(PG_GETARG_NAME(0));
	for (;;)
	{
		ReplMlWorkerState state = set_pause(peer, true);

		if (state == REPL_ML_WORKER_PAUSED || state == REPL_ML_WORKER_STOPPED ||
			state == REPL_ML_WORKER_WAITING)
			break;
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, 10,
						 wait_event_compat("ReplMlPause"));
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
	}
	PG_RETURN_VOID();
}

PG_FUNCTION_INFO_V1(repl_ml_resume_apply);

/* repl_ml.resume_apply(peer): lets the worker go on. */
Datum
repl_ml_resume_apply(PG_FUNCTION_ARGS)
{
	repl_ml_refuse_nulls(fcinfo);
	(void) set_pause(find_peer(PG_GETARG_NAME(0)), false);
	PG_RETURN_VOID();
}

static bool workers_stopped = false;	/* by stop_workers, in this
										 * transaction */

/*
 * A backend's callback at the end of the transaction: workers may be started
 * again, if still wanted.  After leaving, what was counted for the former
 * peers is forgotten.  Stays registered: to 15 a callback must not unregister
 * itself.
 */
static void
release_workers(XactEvent event, void *arg)
{
	if (!workers_stopped || (event != XACT_EVENT_COMMIT && event != XACT_EVENT_ABORT))
		return;
	workers_stopped = false;
	LWLockAcquire(repl_ml_shared->lock, LW_EXCLUSIVE);
	foreach_worker(worker, MyDatabaseId)
	{
		worker->stop = false;
		worker->launch_time = 0;
		if (event == XACT_EVENT_COMMIT && worker->pid == 0)
			worker->database = InvalidOid;
	}
	LWLockRelease(repl_ml_shared->lock);
	repl_ml_shmem_wake_launcher();
}

/*
 * Ends this database's workers that still run; returns false when there are
 * none.
 */
static bool
end_workers(void)
{
	bool		running = false;

	LWLockAcquire(repl_ml_shared->lock, LW_EXCLUSIVE);
	foreach_worker(worker, MyDatabaseId)
	{
		worker->stop = true;
		if (worker->pid != 0)
		{
			kill(worker->pid, SIGTERM);
			running = true;
		}
	}
	LWLockRelease(repl_ml_shared->lock);
	running |= repl_ml_verifier_end();
	running |= repl_ml_beside_end();
	running |= repl_ml_tenure_end();
	return running;
}

PG_FUNCTION_INFO_V1(repl_ml_stop_workers);

/*
 * repl_ml.stop_workers(): none runs when it returns, and none is started
 * before the transaction ends.
 */
Datum
repl_ml_stop_workers(PG_FUNCTION_ARGS)
{
	static bool registered = false;

	repl_ml_shmem_require();
	if (!registered)
		RegisterXactCallback(release_workers, NULL);
	registered = true;
	workers_stopped = true;
	while (end_workers())
	{
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, 20,
						 wait_event_compat("ReplMlStop"));
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
	}
	PG_RETURN_VOID();
}

static bool wake_at_commit = false;

/*
 * A backend's callback: wakes launcher and supervisor once the catalogs say
 * what they are to see.
 */
static void
wake_after_commit(XactEvent event, void *arg)
{
	if (event == XACT_EVENT_COMMIT && wake_at_commit)
	{
		repl_ml_shmem_note_membership();
		repl_ml_shmem_wake_launcher();
		repl_ml_shmem_wake_supervisor(MyDatabaseId);
	}
	if (event == XACT_EVENT_COMMIT || event == XACT_EVENT_ABORT)
		wake_at_commit = false;
}

PG_FUNCTION_INFO_V1(repl_ml_wake_workers);

/*
 * repl_ml.wake_workers(): makes the workers look at the catalogs when we have
 * committed.
 */
Datum
repl_ml_wake_workers(PG_FUNCTION_ARGS)
{
	static bool registered = false;

	repl_ml_shmem_require();
	if (!registered)
		RegisterXactCallback(wake_after_commit, NULL);
	registered = true;
	wake_at_commit = true;
	repl_ml_shmem_set_member(MyDatabaseId);
	PG_RETURN_VOID();
}

/*
 * Returns the state of a node as committed now, palloc'd; NULL if there is
 * none.  For this node while it joins *donor is whom it is copied from, else
 * 0.
 */
static char *
node_state(Name node_name, int *donor)
{
	Oid			types[1] = {NAMEOID};
	Datum		values[1] = {NameGetDatum(node_name)};
	char	   *state = NULL;

	*donor = 0;
	PushActiveSnapshot(GetLatestSnapshot());
	SPI_connect();
	/* of several nodes of that name one that is not dropped comes first */
	SPI_execute_with_args("SELECT CASE WHEN l.state OPERATOR(pg_catalog.=) 'set_back'"
						  " THEN '" COMING_BACK "' ELSE m.state END,"
						  " CASE WHEN l.state OPERATOR(pg_catalog.=) 'set_back' THEN 0"
						  " ELSE coalesce(l.donor, 0) END FROM repl_ml.member m"
						  " LEFT JOIN repl_ml.local_node l"
						  " ON l.node_id OPERATOR(pg_catalog.=) m.node_id"
						  " WHERE m.node_name OPERATOR(pg_catalog.=) $1"
						  " ORDER BY m.state OPERATOR(pg_catalog.=) 'dropped' LIMIT 1",
						  1, types, values, NULL, true, 1);
	if (SPI_processed > 0)
	{
		state = SPI_palloc(32);
		strlcpy(state, repl_ml_spi_text(0, 0), 32);
		*donor = atoi(repl_ml_spi_text(0, 1));
	}
	SPI_finish();
	PopActiveSnapshot();
	return state;
}

/*
 * Finds a worker that keeps failing, or (no errors) waits, and has said why:
 * the peer's or (0) anyone's.  Returns false if there is none.
 */
static bool
failing_worker(ReplMlWorker *copy, int peer, int errors_wanted)
{
	bool		found = false;

	LWLockAcquire(repl_ml_shared->lock, LW_SHARED);
	for (int i = 0; i < REPL_ML_MAX_WORKERS && !found; i++)
	{
		ReplMlWorker *worker = &repl_ml_shared->workers[i];

		found = worker->database == MyDatabaseId && worker->peer != 0 && worker->error_time != 0 &&
			(peer == 0 || worker->peer == peer) &&
			worker->state != REPL_ML_WORKER_STREAMING && worker->errors >= errors_wanted;
		if (found)
			*copy = *worker;
	}
	LWLockRelease(repl_ml_shared->lock);
	return found;
}

/*
 * Returns the oldest transaction of this server that has been prepared for
 * seconds, as a sentence, palloc'd; NULL if none has.
 */
static char *
prepared_transaction(void)
{
	char	   *found = NULL;

	SPI_connect();
	SPI_execute("SELECT pg_catalog.format('The transaction %L of role \"%s\" in database \"%s\","
				" prepared on this server at %s, keeps other members from linking to it.',"
				" gid, owner, database, pg_catalog.date_trunc('second', prepared))"
				" FROM pg_catalog.pg_prepared_xacts"
				" WHERE pg_catalog.clock_timestamp() OPERATOR(pg_catalog.-) prepared"
				" OPERATOR(pg_catalog.>) '5 s'::pg_catalog.interval ORDER BY prepared LIMIT 1",
				true, 1);
	if (SPI_processed > 0)
	{
		char	   *text = repl_ml_spi_text(0, 0);

		found = SPI_palloc(strlen(text) + 1);
		strcpy(found, text);
	}
	SPI_finish();
	return found;
}

/*
 * Raises the error of wait_for_node, with what keeps the node from becoming
 * ready as far as this node knows.
 */
static void
give_up_waiting(Name node_name, const char *state, int sqlstate)
{
	ReplMlWorker worker;
	/* the workers of a former id have nothing to say */
	bool		failing = strcmp(state, COMING_BACK) != 0 && failing_worker(&worker, 0, 0);
	char	   *prepared = failing ? NULL : prepared_transaction();

	ereport(ERROR,
			(errcode(sqlstate),
			 errmsg("node \"%s\" is still %s", NameStr(*node_name), state),
			 !failing ? 0 : worker.error_hint[0] == '\0' ?
			 errdetail("The worker for node %d last said: %s", worker.peer, worker.error_message) :
			 errdetail("The worker for node %d last said: %s Hint: %s", worker.peer,
					   worker.error_message, worker.error_hint),
			 prepared != NULL ? errdetail_internal("%s", prepared) : 0,
			 errhint("Joining goes on by itself. See SELECT * FROM repl_ml.stat_apply; to give up, "
					 "run SELECT repl_ml.leave_group(force => true) on that node.")));
}

PG_FUNCTION_INFO_V1(repl_ml_wait_for_node);

/*
 * repl_ml.wait_for_node(node_name, timeout): returns when the node is ready;
 * raises an error at the deadline, or as soon as it is plain what keeps it.
 */
Datum
repl_ml_wait_for_node(PG_FUNCTION_ARGS)
{
	Name		node_name;
	TimestampTz deadline;

	repl_ml_shmem_require();
	repl_ml_refuse_nulls(fcinfo);
	node_name = PG_GETARG_NAME(0);
	deadline = DatumGetTimestampTz(DirectFunctionCall2(timestamptz_pl_interval,
													   TimestampTzGetDatum(GetCurrentTimestamp()),
													   PG_GETARG_DATUM(1)));
	for (;;)
	{
		int			donor;
		char	   *state = node_state(node_name, &donor);
		ReplMlWorker worker;

		if (state == NULL || strcmp(state, "dropped") == 0)
			ereport(ERROR,
					(errcode(ERRCODE_UNDEFINED_OBJECT),
					 errmsg("node \"%s\" does not exist", NameStr(*node_name)),
					 errhint("Run SELECT node_name, state FROM repl_ml.nodes.")));
		if (strcmp(state, "ready") == 0)
			PG_RETURN_VOID();
		/* only the donor's failure keeps this node from becoming ready */
		if (donor != 0 && failing_worker(&worker, donor, ERRORS_UNTIL_TOLD))
			give_up_waiting(node_name, state, ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE);
		if (GetCurrentTimestamp() >= deadline)
			give_up_waiting(node_name, state, ERRCODE_QUERY_CANCELED);
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, 50,
						 wait_event_compat("ReplMlWaitForNode"));
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
	}
}
