/*
 * join.c
 *		The first part of joining, up to where this database is a (joining)
 *		member: checks, a node id that every member agrees to, the identity.
 *
 * It must commit on its own while the caller's SELECT still runs, so a
 * background worker does it, for a request in shared memory; the caller waits
 * and gets the worker's error as its own.  What follows (links, schema, rows)
 * is done by the workers of the new member and goes on after a crash.
 */
#include "postgres.h"

#include <signal.h>

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/proc.h"
#include "tcop/tcopprot.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/inval.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "group/group.h"
#include "group/query.h"
#include "group/session.h"
#include "row/row.h"
#include "wire/stream.h"

#define MAX_ID_TRIES	100

/* The group as the donor describes it, and what we register with it. */
typedef struct Candidate
{
	char	   *group_id;
	char	   *group_name;
	char	   *donor_state;
	int			donor;
	int			node_id;
	char	   *registration;	/* arguments of register_node behind the id */
	char	   *joined_at;		/* the last of them: tells us from another one
								 * with the id */
	List	   *members;		/* of Member, in order of node id */
} Candidate;

typedef struct Member
{
	int			node_id;
	char	   *dsn;
	char	   *state;
	char	   *row;			/* as VALUES of repl_ml.member */
	bool		asked;			/* to register us: perhaps it has */
} Member;

static void file_request(FunctionCallInfo fcinfo);
static void await_answer(TimestampTz deadline, BackgroundWorkerHandle *handle);
static void join(ReplMlJoinRequest *request);
static void ask_donor(ReplMlJoinRequest *request, WalReceiverConn *donor, Candidate *candidate);
static void load_members(WalReceiverConn *donor, Candidate *candidate);
static void describe_self(ReplMlJoinRequest *request, Candidate *candidate);
static void agree_on_id(Candidate *candidate);
static bool register_everywhere(Candidate *candidate);
static void unregister(Candidate *candidate);
static void become_member(ReplMlJoinRequest *request, Candidate *candidate);

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
				 errhint("Raise max_worker_processes; SELECT * FROM repl_ml.check_setup() says how far.")));
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
 * repl_ml.start_joining(node_name, dsn, join_dsn, copy_data, timeout) returns
 * the node id.  When it returns this database is a joining member, whatever
 * becomes of the caller's transaction; when it raises an error nothing is left
 * behind, here or on the members, but perhaps a node id that is not used again.
 */
PG_FUNCTION_INFO_V1(repl_ml_start_joining);
Datum
repl_ml_start_joining(PG_FUNCTION_ARGS)
{
	TimestampTz deadline = DatumGetTimestampTz(DirectFunctionCall2(timestamptz_pl_interval,
																   TimestampTzGetDatum(GetCurrentTimestamp()),
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

static void
copy_dsn(char *into, text *dsn, const char *argument)
{
	char	   *value = text_to_cstring(dsn);

	if (strlen(value) >= REPL_ML_DSN_LENGTH)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("argument \"%s\" is longer than %d bytes", argument, REPL_ML_DSN_LENGTH - 1),
				 errhint("Move parts of it into a service file or a password file.")));
	strlcpy(into, value, REPL_ML_DSN_LENGTH);
}

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
	copy_dsn(request.dsn, PG_GETARG_TEXT_PP(1), "dsn");
	copy_dsn(request.join_dsn, PG_GETARG_TEXT_PP(2), "join_dsn");

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

/* Raises the worker's error as ours. */
static void
raise_answer(const ReplMlJoinRequest *answer)
{
	ereport(ERROR,
			(errcode(answer->error_sqlstate),
			 errmsg("%s", answer->error_message),
			 answer->error_detail[0] != '\0' ? errdetail_internal("%s", answer->error_detail) : 0,
			 answer->error_hint[0] != '\0' ? errhint("%s", answer->error_hint) : 0));
}

static void
await_answer(TimestampTz deadline, BackgroundWorkerHandle *handle)
{
	ReplMlJoinRequest answer;
	pid_t		pid;

	for (;;)
	{
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

static void
answer(const ReplMlJoinRequest *asked, ReplMlJoinState state, const ErrorData *error)
{
	ReplMlJoinRequest *request = &repl_ml_shared->join;

	LWLockAcquire(repl_ml_shared->lock, LW_EXCLUSIVE);
	if (request->state == REPL_ML_JOIN_REQUESTED && request->serial == asked->serial)
	{
		if (error != NULL)
		{
			request->error_sqlstate = error->sqlerrcode;
			strlcpy(request->error_message, error->message, REPL_ML_ERROR_LENGTH);
			strlcpy(request->error_detail, error->detail ? error->detail : "", REPL_ML_ERROR_LENGTH);
			strlcpy(request->error_hint, error->hint ? error->hint : "", REPL_ML_ERROR_LENGTH);
		}
		request->state = state;
		if (request->requester_latch != NULL)
			SetLatch(request->requester_latch);
	}
	LWLockRelease(repl_ml_shared->lock);
}

/* Entry point of the join worker. */
void
repl_ml_join_main(Datum arg)
{
	ReplMlJoinRequest request;

	pqsignal(SIGTERM, die);
	BackgroundWorkerUnblockSignals();
	LWLockAcquire(repl_ml_shared->lock, LW_SHARED);
	request = repl_ml_shared->join;
	LWLockRelease(repl_ml_shared->lock);
	if (request.state != REPL_ML_JOIN_REQUESTED)
		proc_exit(0);
	BackgroundWorkerInitializeConnectionByOid(request.database, InvalidOid, 0);
	repl_ml_session_settle();
	repl_ml_internal_write = true;

	PG_TRY();
	{
		MemoryContextSwitchTo(TopMemoryContext);
		join(&request);
		answer(&request, REPL_ML_JOIN_DONE, NULL);
	}
	PG_CATCH();
	{
		ErrorData  *error;

		MemoryContextSwitchTo(TopMemoryContext);
		error = CopyErrorData();
		FlushErrorState();
		AbortOutOfAnyTransaction();
		answer(&request, REPL_ML_JOIN_FAILED, error);
	}
	PG_END_TRY();
	proc_exit(0);
}

static void
join(ReplMlJoinRequest *request)
{
	WalReceiverConn *donor = repl_ml_stream_connect(request->join_dsn, "join");
	Candidate	candidate = {0};

	ask_donor(request, donor, &candidate);
	load_members(donor, &candidate);
	repl_ml_admission_check(donor, request->copy_data);
	repl_ml_stream_disconnect(donor);
	describe_self(request, &candidate);
	PG_TRY();
	{
		agree_on_id(&candidate);
		become_member(request, &candidate);
	}
	PG_CATCH();
	{
		ErrorData  *error;

		MemoryContextSwitchTo(TopMemoryContext);
		error = CopyErrorData();
		FlushErrorState();
		AbortOutOfAnyTransaction();
		MemoryContextSwitchTo(TopMemoryContext);
		unregister(&candidate);
		ReThrowError(error);
	}
	PG_END_TRY();
	repl_ml_shmem_set_member(MyDatabaseId, true);
	repl_ml_shmem_wake_launcher();
}

static char *
field(ReplMlResult *result, int column)
{
	return result->slot->tts_isnull[column] ? NULL :
		TextDatumGetCString(result->slot->tts_values[column]);
}

/* A value the peer has to give. */
static char *
required_field(ReplMlResult *result, int column)
{
	char	   *value = field(result, column);

	if (value == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_PROTOCOL_VIOLATION),
				 errmsg("the peer described itself without \"%s\"",
						NameStr(TupleDescAttr(result->slot->tts_tupleDescriptor, column)->attname))));
	return value;
}

/* Is the donor a member that can take us in? */
static void
ask_donor(ReplMlJoinRequest *request, WalReceiverConn *donor, Candidate *candidate)
{
	static const Oid types[6] = {TEXTOID, TEXTOID, TEXTOID, TEXTOID, TEXTOID, BOOLOID};
	static const Oid one[1] = {TEXTOID};
	ReplMlResult *result = repl_ml_stream_query(donor, "SELECT pg_catalog.max(extversion) FROM pg_catalog.pg_extension WHERE extname OPERATOR(pg_catalog.=) 'repl_ml'", 1, one);
	char	   *version = NULL;

	if (repl_ml_stream_next(result))
	{
		slot_getallattrs(result->slot);
		version = field(result, 0);
	}
	repl_ml_stream_free(result);
	if (version == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("the extension repl_ml is not installed in the database join_dsn leads to"),
				 errhint("Run CREATE EXTENSION repl_ml and SELECT repl_ml.create_group(...) there first.")));
	if (strcmp(version, REPL_ML_VERSION) != 0)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("the group runs repl_ml %s, this database %s", version, REPL_ML_VERSION),
				 errhint("Run ALTER EXTENSION repl_ml UPDATE where the version is older.")));

	result = repl_ml_stream_query(donor, "SELECT group_id::pg_catalog.text, group_name::pg_catalog.text, node_id::pg_catalog.text, node_name::pg_catalog.text, state, fenced FROM repl_ml.local_info()", 6, types);
	if (!repl_ml_stream_next(result))
		ereport(ERROR,
				(errcode(ERRCODE_PROTOCOL_VIOLATION),
				 errmsg("the peer returned no row for repl_ml.local_info()")));
	slot_getallattrs(result->slot);
	if (field(result, 0) == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("the database join_dsn leads to is not a member of a repl_ml group"),
				 errhint("Run SELECT repl_ml.create_group(...) there first.")));
	candidate->group_id = required_field(result, 0);
	candidate->group_name = required_field(result, 1);
	candidate->donor = atoi(required_field(result, 2));
	if (strcmp(required_field(result, 4), "ready") != 0 || DatumGetBool(result->slot->tts_values[5]))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("node \"%s\" is not ready to take in another node", required_field(result, 3)),
				 errhint("Wait for it with SELECT repl_ml.wait_for_node(%s) there, or join through another member.",
						 quote_literal_cstr(required_field(result, 3)))));
	repl_ml_stream_free(result);
}

static void
load_members(WalReceiverConn *donor, Candidate *candidate)
{
	static const Oid types[4] = {TEXTOID, TEXTOID, TEXTOID, TEXTOID};
	ReplMlResult *result = repl_ml_stream_query(donor,
												"SELECT node_id::pg_catalog.text, dsn, state, pg_catalog.format('(%s, %L, %L, %L, %L::int, %L, %s, %L, %L, %L)',"
												" node_id, node_name, dsn, host, port, dbname, system_identifier, state, joined_at, __repl_clock)"
												" FROM repl_ml.member ORDER BY node_id", 4, types);

	while (repl_ml_stream_next(result))
	{
		Member	   *member = palloc0(sizeof(Member));

		slot_getallattrs(result->slot);
		member->node_id = atoi(required_field(result, 0));
		member->dsn = required_field(result, 1);
		member->state = required_field(result, 2);
		member->row = required_field(result, 3);
		candidate->members = lappend(candidate->members, member);
		candidate->node_id = Max(candidate->node_id, member->node_id);
	}
	repl_ml_stream_free(result);
}

static int
live_members(Candidate *candidate)
{
	int			count = 0;
	ListCell   *lc;

	foreach(lc, candidate->members)
	{
		if (strcmp(((Member *) lfirst(lc))->state, "dropped") != 0)
			count++;
	}
	return count;
}

/* What every member is told of us; our own settings must do for one more member. */
static void
describe_self(ReplMlJoinRequest *request, Candidate *candidate)
{
	Oid			types[2] = {TEXTOID, TEXTOID};
	Datum		values[2] = {CStringGetTextDatum(NameStr(request->node_name)), CStringGetTextDatum(request->dsn)};

	repl_ml_begin();
	SPI_execute(psprintf("SELECT repl_ml.require_setup(%d)", live_members(candidate) + 1), true, 0);
	SPI_execute_with_args("SELECT pg_catalog.format('%L, %L, %L, %L::int, %L, %s, %L', $1, $2, p.host, p.port, p.dbname, p.system_identifier, pg_catalog.now()),"
						  " pg_catalog.quote_literal(pg_catalog.now())"
						  " FROM repl_ml.probe($2) p", 2, types, values, NULL, false, 1);
	candidate->registration = MemoryContextStrdup(TopMemoryContext, repl_ml_spi_text(0, 0));
	candidate->joined_at = MemoryContextStrdup(TopMemoryContext, repl_ml_spi_text(0, 1));
	repl_ml_commit();
	MemoryContextSwitchTo(TopMemoryContext);
}

/* Finds a node id no member has given away; a majority has to be asked. */
static void
agree_on_id(Candidate *candidate)
{
	for (int i = 0; i < MAX_ID_TRIES; i++)
	{
		if (++candidate->node_id > REPL_ML_MAX_NODE_ID)
			break;
		if (register_everywhere(candidate))
			return;
		unregister(candidate);
	}
	ereport(ERROR,
			(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
			 errmsg("no node id is free in group \"%s\"", candidate->group_name)));
}

/* Registers with one member; false if the id is taken there. */
static bool
register_with(Candidate *candidate, Member *member)
{
	static const Oid types[1] = {BOOLOID};
	WalReceiverConn *conn = repl_ml_stream_connect(member->dsn, "join");
	volatile bool taken = false;

	PG_TRY();
	{
		ReplMlResult *result;

		/*
		 * a refusal comes here: the next statement holds our connection
		 * string
		 */
		repl_ml_stream_command(conn, "SELECT version FROM repl_ml.local_info()");
		member->asked = true;
		result = repl_ml_stream_query(conn, psprintf("SELECT repl_ml.register_node('%s', %d, %s)", candidate->group_id,
													 candidate->node_id, candidate->registration), 1, types);
		if (!repl_ml_stream_next(result))
			ereport(ERROR,
				(errcode(ERRCODE_PROTOCOL_VIOLATION),
				 errmsg("the peer returned no row for repl_ml.register_node()")));
		slot_getallattrs(result->slot);
		taken = !DatumGetBool(result->slot->tts_values[0]);
		repl_ml_stream_free(result);
	}
	PG_FINALLY();
	{
		repl_ml_stream_disconnect(conn);
	}
	PG_END_TRY();
	return !taken;
}

/*
 * Registers with every member that is up, in the order of their ids, so that
 * of two nodes that join at once one is first everywhere.  False if the id is
 * taken.  A member that is down learns of us from the others.
 */
static bool
register_everywhere(Candidate *candidate)
{
	volatile int members = 0;
	volatile int reached = 0;
	ListCell   *lc;

	foreach(lc, candidate->members)
	{
		Member	   *member = lfirst(lc);
		volatile bool taken = false;
		MemoryContext context = CurrentMemoryContext;

		if (strcmp(member->state, "dropped") == 0)
			continue;
		members++;
		PG_TRY();
		{
			taken = !register_with(candidate, member);
			reached++;
		}
		PG_CATCH();
		{
			/* down is all right, a refusal is not */
			if (geterrcode() != ERRCODE_SQLCLIENT_UNABLE_TO_ESTABLISH_SQLCONNECTION ||
				member->node_id == candidate->donor)
				PG_RE_THROW();
			MemoryContextSwitchTo(context);
			FlushErrorState();
		}
		PG_END_TRY();
		if (taken)
			return false;
	}
	if (reached * 2 <= members)
		ereport(ERROR,
				(errcode(ERRCODE_SQLCLIENT_UNABLE_TO_ESTABLISH_SQLCONNECTION),
				 errmsg("only %d of %d members of group \"%s\" can be reached from here", reached, members, candidate->group_name),
				 errhint("Join when a majority is up, or remove dead nodes with SELECT repl_ml.drop_node(...).")));
	return true;
}

/*
 * Takes registrations back, also one that was asked for and not confirmed: the
 * member may still be at it.  The id stays used up.
 */
static void
unregister(Candidate *candidate)
{
	ListCell   *lc;

	foreach(lc, candidate->members)
	{
		Member	   *member = lfirst(lc);
		WalReceiverConn *volatile conn = NULL;

		if (!member->asked)
			continue;
		PG_TRY();
		{
			conn = repl_ml_stream_connect(member->dsn, "join");
			repl_ml_stream_command(conn, psprintf("SELECT repl_ml.forget_node('%s', %d, %s)",
												  candidate->group_id, candidate->node_id, candidate->joined_at));
		}
		PG_CATCH();
		{
			EmitErrorReport();
			FlushErrorState();
		}
		PG_END_TRY();
		repl_ml_stream_disconnect(conn);
		member->asked = false;
	}
}

/* From here on this database is a member, and its workers do the rest. */
static void
become_member(ReplMlJoinRequest *request, Candidate *candidate)
{
	Oid			types[7] = {TEXTOID, TEXTOID, INT4OID, TEXTOID, TEXTOID, INT4OID, BOOLOID};
	Datum		values[7];
	ListCell   *lc;

	values[0] = CStringGetTextDatum(candidate->group_name);
	values[1] = CStringGetTextDatum(candidate->group_id);
	values[2] = Int32GetDatum(candidate->node_id);
	values[3] = CStringGetTextDatum(NameStr(request->node_name));
	values[4] = CStringGetTextDatum("joining");
	values[5] = Int32GetDatum(candidate->donor);
	values[6] = BoolGetDatum(request->copy_data);
	repl_ml_begin();
	SPI_execute("DELETE FROM repl_ml.member", false, 0);
	SPI_execute("DELETE FROM repl_ml.replicated_table", false, 0);
	foreach(lc, candidate->members)
		SPI_execute(psprintf("INSERT INTO repl_ml.member (node_id, node_name, dsn, host, port, dbname, system_identifier, state, joined_at, __repl_clock) VALUES %s",
							 ((Member *) lfirst(lc))->row), false, 0);
	SPI_execute_with_args("SELECT repl_ml.become_member($1::pg_catalog.name, $2::pg_catalog.uuid, $3, $4::pg_catalog.name, $5, $6, $7)",
						  7, types, values, NULL, false, 0);
	SPI_execute(psprintf("INSERT INTO repl_ml.member (node_id, node_name, dsn, host, port, dbname, system_identifier, joined_at, state, __repl_clock)"
						 " VALUES (%d, %s, 'joining', '{}')", candidate->node_id, candidate->registration), false, 0);
	repl_ml_commit();
}
