/*
 * request.c
 *		A backend asks for this database to be joined to a group, and a worker
 *		answers.
 *
 * The backend files its request in shared memory, where there is place for one in
 * a server, starts the join worker (join.c), waits, and gets the worker's error as
 * its own.  A backend that gives up cancels the worker.
 *
 * Not here: joining itself (join.c).  Locks: repl_ml_shared->lock, for the
 * request; none while the backend waits.
 */
#include "postgres.h"

#include <signal.h>

#include "miscadmin.h"
#include "postmaster/bgworker.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/inval.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "group/group.h"
#include "server/server.h"

static void copy_dsn(char *into, text *dsn, const char *argument);
static void file_request(FunctionCallInfo fcinfo);
static BackgroundWorkerHandle *launch_worker(void);
static void await_worker(TimestampTz deadline, BackgroundWorkerHandle *handle);
static void await_answer(TimestampTz deadline, BackgroundWorkerHandle *handle);
static void raise_answer(const ReplMlJoinRequest *answer);
static void withdraw_request(int code, Datum arg);

/*
 * repl_ml.start_joining(node_name, dsn, join_dsn, copy_data, timeout, keep)
 * returns the node id.  When it returns this database is a joining member, whatever
 * becomes of the caller's transaction; when it raises an error nothing is left
 * behind, here or on the members, but perhaps a node id that is not used
 * again.
 */
PG_FUNCTION_INFO_V1(repl_ml_start_joining);
Datum
repl_ml_start_joining(PG_FUNCTION_ARGS)
{
	Datum		now = TimestampTzGetDatum(GetCurrentTimestamp());
	TimestampTz deadline = DatumGetTimestampTz(DirectFunctionCall2(timestamptz_pl_interval, now,
																   PG_GETARG_DATUM(4)));
	int			node_id;

	repl_ml_shmem_require();
	file_request(fcinfo);
	PG_ENSURE_ERROR_CLEANUP(withdraw_request, (Datum) 0);
	{
		await_worker(deadline, launch_worker());
	}
	PG_END_ENSURE_ERROR_CLEANUP(withdraw_request, (Datum) 0);
	withdraw_request(0, (Datum) 0);
	AcceptInvalidationMessages();
	node_id = repl_ml_identity()->node_id;
	PG_RETURN_INT32(node_id);
}

/* Copies an argument into the request, which has room for so many bytes. */
static void
copy_dsn(char *into, text *dsn, const char *argument)
{
	char	   *value = text_to_cstring(dsn);

	if (strlen(value) >= REPL_ML_DSN_LENGTH)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("argument \"%s\" is longer than %d bytes", argument,
						REPL_ML_DSN_LENGTH - 1),
				 errhint("Move parts of it into a service file or a password file.")));
	strlcpy(into, value, REPL_ML_DSN_LENGTH);
}

/*
 * Puts the backend's request into shared memory, where there is place for one.
 */
static void
file_request(FunctionCallInfo fcinfo)
{
	ReplMlJoinRequest request = {0};
	bool		busy;

	request.state = REPL_ML_JOIN_REQUESTED;
	request.requester = MyProcPid;
	request.requester_latch = MyLatch;
	request.database = MyDatabaseId;
	request.node_name = *PG_GETARG_NAME(0);
	request.copy_data = PG_GETARG_BOOL(3);
	text_to_cstring_buffer(PG_GETARG_TEXT_PP(5), request.keep, sizeof(request.keep));
	copy_dsn(request.dsn, PG_GETARG_TEXT_PP(1), "dsn");
	copy_dsn(request.join_dsn, PG_GETARG_TEXT_PP(2), "join_dsn");

	/* there is place for one */
	LWLockAcquire(repl_ml_shared->lock, LW_EXCLUSIVE);
	busy = repl_ml_shared->join.state != REPL_ML_JOIN_FREE;
	if (!busy)
	{
		request.serial = repl_ml_shared->join.serial + 1;
		repl_ml_shared->join = request;
	}
	LWLockRelease(repl_ml_shared->lock);
	if (busy)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_IN_USE),
				 errmsg("another database of this server is joining a group"),
				 errhint("Try again when it has joined.")));
}

/* Starts the join worker, which finds the request in shared memory. */
static BackgroundWorkerHandle *
launch_worker(void)
{
	BackgroundWorker worker = {0};
	BackgroundWorkerHandle *handle;

	worker.bgw_flags = BGWORKER_SHMEM_ACCESS | BGWORKER_BACKEND_DATABASE_CONNECTION;
	worker.bgw_start_time = BgWorkerStart_RecoveryFinished;
	worker.bgw_restart_time = BGW_NEVER_RESTART;
	worker.bgw_notify_pid = MyProcPid;
	snprintf(worker.bgw_library_name, sizeof(worker.bgw_library_name), "repl_ml");
	snprintf(worker.bgw_function_name, sizeof(worker.bgw_function_name), "repl_ml_join_main");
	snprintf(worker.bgw_name, sizeof(worker.bgw_name), "repl_ml join");
	snprintf(worker.bgw_type, sizeof(worker.bgw_type), "repl_ml join");
	if (!RegisterDynamicBackgroundWorker(&worker, &handle))
		ereport(ERROR,
				(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
				 errmsg("out of background worker slots"),
				 errhint("Raise max_worker_processes; SELECT * FROM repl_ml.check_setup() says how "
						 "far.")));
	return handle;
}

/* Waits for the worker's answer; a cancelled wait cancels the worker too. */
static void
await_worker(TimestampTz deadline, BackgroundWorkerHandle *handle)
{
	PG_TRY();
	{
		await_answer(deadline, handle);
	}
	PG_CATCH();
	{
		pid_t		pid;

		/* an error, unlike termination, makes it take back what it has done */
		if (GetBackgroundWorkerPid(handle, &pid) == BGWH_STARTED)
			kill(pid, SIGINT);
		PG_RE_THROW();
	}
	PG_END_TRY();
}

/*
 * Waits for the worker's answer; returns when this database has become a
 * member, and raises an error otherwise.
 */
static void
await_answer(TimestampTz deadline, BackgroundWorkerHandle *handle)
{
	ReplMlJoinRequest answer;
	pid_t		pid;

	for (;;)
	{
		/* before the answer is looked at, which it may have written last */
		bool		gone = GetBackgroundWorkerPid(handle, &pid) == BGWH_STOPPED;

		LWLockAcquire(repl_ml_shared->lock, LW_SHARED);
		answer = repl_ml_shared->join;
		LWLockRelease(repl_ml_shared->lock);
		if (answer.state == REPL_ML_JOIN_DONE)
			return;
		if (answer.state == REPL_ML_JOIN_FAILED)
			raise_answer(&answer);
		if (gone)
			ereport(ERROR,
					(errcode(ERRCODE_INTERNAL_ERROR),
					 errmsg("the join worker ended unexpectedly"),
					 errhint("See the server log.")));
		if (GetCurrentTimestamp() >= deadline)
			ereport(ERROR,
					(errcode(ERRCODE_QUERY_CANCELED),
					 errmsg("could not join the group in time"),
					 errhint("Try again with a longer timeout.")));
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, 100,
						 wait_event_compat("ReplMlJoin"));
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
	}
}

/* Raises the worker's error as the backend's. */
static void
raise_answer(const ReplMlJoinRequest *answer)
{
	ereport(ERROR,
			(errcode(answer->error_sqlstate),
			 errmsg("%s", answer->error_message),
			 answer->error_detail[0] != '\0' ? errdetail_internal("%s", answer->error_detail) : 0,
			 answer->error_hint[0] != '\0' ? errhint("%s", answer->error_hint) : 0));
}

/*
 * Frees the place of the request, also after an error, so that another
 * database can join.
 */
static void
withdraw_request(int code, Datum arg)
{
	LWLockAcquire(repl_ml_shared->lock, LW_EXCLUSIVE);
	if (repl_ml_shared->join.requester == MyProcPid)
	{
		memset(repl_ml_shared->join.dsn, 0, REPL_ML_DSN_LENGTH);
		memset(repl_ml_shared->join.join_dsn, 0, REPL_ML_DSN_LENGTH);
		repl_ml_shared->join.state = REPL_ML_JOIN_FREE;
		repl_ml_shared->join.requester = 0;
		repl_ml_shared->join.requester_latch = NULL;
	}
	LWLockRelease(repl_ml_shared->lock);
}

/*
 * Called by the join worker: tells the backend, if it still waits, what has
 * become of its request.
 */
void
repl_ml_request_answer(const ReplMlJoinRequest *asked, ReplMlJoinState state,
					   const ErrorData *error)
{
	ReplMlJoinRequest *request = &repl_ml_shared->join;

	LWLockAcquire(repl_ml_shared->lock, LW_EXCLUSIVE);
	if (request->state == REPL_ML_JOIN_REQUESTED && request->serial == asked->serial)
	{
		if (error != NULL)
		{
			request->error_sqlstate = error->sqlerrcode;
			strlcpy(request->error_message, error->message, REPL_ML_ERROR_LENGTH);
			strlcpy(request->error_detail, error->detail ? error->detail : "",
					REPL_ML_ERROR_LENGTH);
			strlcpy(request->error_hint, error->hint ? error->hint : "", REPL_ML_ERROR_LENGTH);
		}
		request->state = state;
		if (request->requester_latch != NULL)
			SetLatch(request->requester_latch);
	}
	LWLockRelease(repl_ml_shared->lock);
}
