/*
 * join.c
 *		The first part of joining, up to where this database is a (joining)
 *		member: checks, a node id that every member agrees to, the identity.
 *
 * It must commit on its own while the caller's SELECT still runs, so a
 * background worker does it, for a request in shared memory (request.c).  What
 * follows (links, schema, rows) is done by the workers of the new member and goes
 * on after a crash.  Of a member that was set back the supervisor does it, in
 * place of a person: under the next id, with what it has.
 *
 * Not here: what has to fit (admission.c), when a joining node is ready
 * (supervisor.c).  Locks: repl_ml_shared->lock, for the request.  No lock is
 * held while a member is asked.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "postmaster/bgworker.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "tcop/tcopprot.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"
#include "utils/uuid.h"

#include "compat.h"
#include "group/group.h"
#include "server/server.h"
#include "wire/wire.h"

#define MAX_ID_TRIES	100
#define ANSWER_MS		30000	/* how long a member may take to answer */
#define FORGET_MS		120000	/* ... to forget us */
#define INVITATION_MS	5000	/* ... and to hear from the donor that we are
								 * invited */
#define POLL_MS			100

/* The columns of repl_ml.member, in the order of Member.row. */
enum
{
	MEMBER_NODE_ID,
	MEMBER_NODE_NAME,
	MEMBER_DSN,
	MEMBER_HOST,
	MEMBER_PORT,
	MEMBER_DBNAME,
	MEMBER_SYSTEM_IDENTIFIER,
	MEMBER_JOINED_AT,
	MEMBER_STATE,
	MEMBER_INCARNATION,
	MEMBER_FORMER_ID,
	MEMBER_FORMER_SAFE,
	MEMBER_FORMER_COUNTER,
	MEMBER_PREFERRED_WRITER,
	MEMBER_CLOCK,
	MEMBER_COLUMNS
};

/* The group as the donor describes it, and what we register with it. */
typedef struct Candidate
{
	char	   *group_id;		/* as a uuid's text form */
	char	   *group_name;
	int			donor;
	int			node_id;
	char	   *own[MEMBER_COLUMNS];	/* our row; joined_at tells us from
										 * another one with the id */
	char	   *secret;			/* shows the members that we are who was
								 * invited */
	List	   *members;		/* of Member, in order of node id */
	bool		returns;		/* it is a member that was set back */
} Candidate;

typedef struct Member
{
	int			node_id;
	char	   *row[MEMBER_COLUMNS];	/* as text */
	bool		asked;			/* to register us: perhaps it has */
} Member;

static void join_group(ReplMlJoinRequest *request);
static void register_and_become(ReplMlJoinRequest *request, Candidate *candidate);
static char *ask_for_admission(ReplMlJoinRequest *request, Candidate *candidate);
static void ask_donor(WalReceiverConn *donor, Candidate *candidate);
static void load_members(WalReceiverConn *donor, Candidate *candidate);
static void describe_self(ReplMlJoinRequest *request, Candidate *candidate);
static void agree_on_id(Candidate *candidate);
static bool register_everywhere(Candidate *candidate);
static void unregister(Candidate *candidate);
static void become_member(ReplMlJoinRequest *request, Candidate *candidate);

/* The join worker, which the backend that called join_group (request.c) has started. */
void
repl_ml_join_main(Datum arg)
{
	ReplMlJoinRequest request;

	pqsignal(SIGTERM, die);
	BackgroundWorkerUnblockSignals();
	LWLockAcquire(repl_ml_shared->lock, LW_SHARED);
	request = repl_ml_shared->join;
	LWLockRelease(repl_ml_shared->lock);

	/* the backend has given up before we began */
	if (request.state != REPL_ML_JOIN_REQUESTED)
		proc_exit(0);
	BackgroundWorkerInitializeConnectionByOid(request.database, InvalidOid, 0);
	repl_ml_session_settle();
	repl_ml_internal_write = true;

	PG_TRY();
	{
		MemoryContextSwitchTo(TopMemoryContext);
		join_group(&request);
		repl_ml_request_answer(&request, REPL_ML_JOIN_DONE, NULL);
	}
	PG_CATCH();
	{
		ErrorData  *error;

		MemoryContextSwitchTo(TopMemoryContext);
		error = CopyErrorData();
		FlushErrorState();
		AbortOutOfAnyTransaction();
		repl_ml_request_answer(&request, REPL_ML_JOIN_FAILED, error);
	}
	PG_END_TRY();
	proc_exit(0);
}

/*
 * Does what has been asked for.  What members have been told is taken back if
 * it fails.
 */
static void
join_group(ReplMlJoinRequest *request)
{
	Candidate	candidate = {0};
	char	   *dsn = ask_for_admission(request, &candidate);
	WalReceiverConn *donor = repl_ml_stream_connect(dsn, "join");

	ask_donor(donor, &candidate);
	load_members(donor, &candidate);
	repl_ml_admission_check(donor, request->copy_data, request->keep[0] != '\0');
	repl_ml_stream_disconnect(donor);
	register_and_become(request, &candidate);
}

/*
 * Agrees with the members on an id, and becomes a member under it.  What members
 * have been told is taken back if that fails.
 */
static void
register_and_become(ReplMlJoinRequest *request, Candidate *candidate)
{
	describe_self(request, candidate);

	/* from here on the members may have something to take back */
	PG_TRY();
	{
		agree_on_id(candidate);
		become_member(request, candidate);
	}
	PG_CATCH();
	{
		ErrorData  *error;

		MemoryContextSwitchTo(TopMemoryContext);
		error = CopyErrorData();
		FlushErrorState();
		AbortOutOfAnyTransaction();
		MemoryContextSwitchTo(TopMemoryContext);
		unregister(candidate);
		ReThrowError(error);
	}
	PG_END_TRY();
	repl_ml_shmem_note_membership();
	repl_ml_shmem_set_member(MyDatabaseId);
	repl_ml_shmem_wake_launcher();
}

/* Returns a value of the row, NULL for null. */
static char *
get_text(ReplMlResult *result, int column)
{
	return result->slot->tts_isnull[column] ? NULL :
		TextDatumGetCString(result->slot->tts_values[column]);
}

/* Returns a value that the peer has to give. */
static char *
get_required_text(ReplMlResult *result, int column)
{
	char	   *value = get_text(result, column);

	if (value == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_PROTOCOL_VIOLATION),
				 errmsg("the peer described itself without \"%s\"",
						NameStr(TupleDescAttr(result->slot->tts_tupleDescriptor,
											  column)->attname)),
				 errhint(REPL_ML_SAME_VERSION_HINT)));
	return value;
}

/* Returns when whoever is asked now has to have answered. */
static TimestampTz
deadline_after(int milliseconds)
{
	return TimestampTzPlusMilliseconds(GetCurrentTimestamp(), milliseconds);
}

/*
 * Refuses a join_dsn that does not lead to a database with this version of the
 * extension.
 */
static void
check_group_version(ReplMlJoinRequest *request)
{
	char	   *version = repl_ml_ask_one(request->join_dsn,
										  "SELECT pg_catalog.max(extversion)"
										  " FROM pg_catalog.pg_extension"
										  " WHERE extname OPERATOR(pg_catalog.=) 'repl_ml'",
										  0, NULL, deadline_after(ANSWER_MS));

	if (version == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("the extension repl_ml is not installed in the database join_dsn leads to"),
				 errhint("Run CREATE EXTENSION repl_ml and SELECT repl_ml.create_group(...) there "
						 "first.")));
	if (strcmp(version, REPL_ML_VERSION) != 0)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("the group runs repl_ml %s, this database %s", version, REPL_ML_VERSION),
				 errhint("Run ALTER EXTENSION repl_ml UPDATE where the version is older.")));
}

/*
 * Asks the donor to let us in: that takes a right of join_dsn's role, or an
 * invitation.  Returns how members reach the donor; from here on we talk to it
 * as they do.
 */
static char *
ask_for_admission(ReplMlJoinRequest *request, Candidate *candidate)
{
	const char *params[2];
	char	   *dsn;
	pg_uuid_t	secret;

	check_group_version(request);
	if (!pg_strong_random(secret.data, UUID_LEN))
		ereport(ERROR,
				(errcode(ERRCODE_INTERNAL_ERROR),
				 errmsg("could not generate random values")));
	candidate->secret = DatumGetCString(DirectFunctionCall1(uuid_out, UUIDPGetDatum(&secret)));

	/* with the secret we show the members later that we are who was let in */
	params[0] = NameStr(request->node_name);
	params[1] = candidate->secret;
	dsn = repl_ml_ask_one(request->join_dsn, "SELECT repl_ml.admit_node($1, $2)", 2, params,
						  deadline_after(ANSWER_MS));
	if (dsn == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("the database join_dsn leads to is not a member of a repl_ml group"),
				 errhint("Run SELECT repl_ml.create_group(...) there first.")));
	return dsn;
}

/*
 * Takes from the donor which group it is of; raises an error unless it is a
 * member that can take us in.
 */
static void
ask_donor(WalReceiverConn *donor, Candidate *candidate)
{
	static const Oid types[6] = {TEXTOID, TEXTOID, TEXTOID, TEXTOID, TEXTOID, BOOLOID};
	ReplMlResult *result;
	Datum		group_id;

	result = repl_ml_stream_query(donor,
								  "SELECT group_id::pg_catalog.text, group_name::pg_catalog.text,"
								  " node_id::pg_catalog.text, node_name::pg_catalog.text, state,"
								  " fenced FROM repl_ml.local_info()", 6, types);
	if (!repl_ml_stream_next(result))
		ereport(ERROR,
				(errcode(ERRCODE_PROTOCOL_VIOLATION),
				 errmsg("the peer returned no row for repl_ml.local_info()"),
				 errhint(REPL_ML_SAME_VERSION_HINT)));
	slot_getallattrs(result->slot);
	if (get_text(result, 0) == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("the database join_dsn leads to is not a member of a repl_ml group"),
				 errhint("Run SELECT repl_ml.create_group(...) there first.")));
	/* only what is a uuid */
	group_id = CStringGetDatum(get_required_text(result, 0));
	group_id = DirectFunctionCall1(uuid_in, group_id);
	candidate->group_id = DatumGetCString(DirectFunctionCall1(uuid_out, group_id));
	candidate->group_name = get_required_text(result, 1);
	candidate->donor = atoi(get_required_text(result, 2));
	if (strcmp(get_required_text(result, 4), "ready") != 0 ||
		DatumGetBool(result->slot->tts_values[5]))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("node \"%s\" is not ready to take in another node",
						get_required_text(result, 3)),
				 errhint("Wait for it with SELECT repl_ml.wait_for_node(%s) there, or join through "
						 "another member.",
						 quote_literal_cstr(get_required_text(result, 3)))));
	repl_ml_stream_free(result);
}

/* Says whether a member's row may lack that. */
static bool
may_be_null(int column)
{
	return column == MEMBER_HOST || column == MEMBER_PORT || column == MEMBER_DBNAME ||
		column == MEMBER_FORMER_ID || column == MEMBER_FORMER_SAFE ||
		column == MEMBER_FORMER_COUNTER;
}

/* Takes the donor's list of members.  What it says is used as values only. */
static void
load_members(WalReceiverConn *donor, Candidate *candidate)
{
	static const Oid types[MEMBER_COLUMNS] = {TEXTOID, TEXTOID, TEXTOID, TEXTOID, TEXTOID, TEXTOID,
	TEXTOID, TEXTOID, TEXTOID, TEXTOID, TEXTOID, TEXTOID, TEXTOID, TEXTOID, TEXTOID};
	ReplMlResult *result = repl_ml_stream_query(donor,
												"SELECT node_id::pg_catalog.text,"
												" node_name::pg_catalog.text, dsn, host,"
												" port::pg_catalog.text, dbname,"
												" system_identifier::pg_catalog.text,"
												" joined_at::pg_catalog.text, state,"
												" incarnation::pg_catalog.text,"
												" former_id::pg_catalog.text,"
												" former_safe::pg_catalog.text,"
												" former_counter::pg_catalog.text,"
												" preferred_writer::pg_catalog.text,"
												" __repl_clock::pg_catalog.text"
												" FROM repl_ml.member ORDER BY node_id",
												MEMBER_COLUMNS, types);

	while (repl_ml_stream_next(result))
	{
		Member	   *member = palloc0(sizeof(Member));

		slot_getallattrs(result->slot);
		for (int i = 0; i < MEMBER_COLUMNS; i++)
			member->row[i] = may_be_null(i) ? get_text(result, i) : get_required_text(result, i);
		member->node_id = pg_strtoint32(member->row[MEMBER_NODE_ID]);
		candidate->members = lappend(candidate->members, member);
		candidate->node_id = Max(candidate->node_id, member->node_id);
	}
	repl_ml_stream_free(result);
}

/* Returns how many members are not dropped. */
static int
count_live_members(Candidate *candidate)
{
	int			count = 0;
	ListCell   *lc;

	foreach(lc, candidate->members)
	{
		if (strcmp(((Member *) lfirst(lc))->row[MEMBER_STATE], "dropped") != 0)
			count++;
	}
	return count;
}

/*
 * Sets what every member is told of us; raises an error unless our own
 * settings do for one more member.
 */
static void
describe_self(ReplMlJoinRequest *request, Candidate *candidate)
{
	Oid			types[1] = {INT4OID};
	Oid			texts[1] = {TEXTOID};
	Datum		members[1] = {Int32GetDatum(count_live_members(candidate) + 1)};
	Datum		dsn[1] = {CStringGetTextDatum(request->dsn)};
	static const int columns[] = {MEMBER_HOST, MEMBER_PORT, MEMBER_DBNAME, MEMBER_SYSTEM_IDENTIFIER,
		MEMBER_JOINED_AT, MEMBER_FORMER_ID, MEMBER_FORMER_SAFE, MEMBER_FORMER_COUNTER};

	candidate->own[MEMBER_NODE_NAME] = pstrdup(NameStr(request->node_name));
	candidate->own[MEMBER_DSN] = pstrdup(request->dsn);
	candidate->own[MEMBER_STATE] = "joining";
	candidate->own[MEMBER_INCARNATION] = "1";
	candidate->own[MEMBER_CLOCK] = "{}";
	repl_ml_begin();

	/* where a member reaches us is tried out from here */
	SPI_execute_with_args("SELECT repl_ml.require_setup($1)", 1, types, members, NULL, true, 0);
	SPI_execute_with_args("SELECT p.host, p.port, p.dbname, p.system_identifier, pg_catalog.now(),"
						  " l.former_node, l.former_safe, l.former_counter"
						  " FROM repl_ml.probe($1) p LEFT JOIN repl_ml.local_node l"
						  " ON l.state OPERATOR(pg_catalog.=) 'set_back'",
						  1, texts, dsn, NULL, false, 1);
	for (int i = 0; i < lengthof(columns); i++)
	{
		char	   *value = repl_ml_spi_text(0, i);

		candidate->own[columns[i]] = value == NULL ? NULL :
			MemoryContextStrdup(TopMemoryContext, value);
	}
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
			 errmsg("no node id is free in group \"%s\"", candidate->group_name),
			 errhint("Try again when no other node is joining.")));
}

/*
 * Registers with one member; returns false if the id is taken there.  That we
 * are invited it hears from the donor, which may take a moment; "invited" says
 * whether it has.
 */
static bool
register_with(Candidate *candidate, Member *member, volatile bool *invited)
{
	TimestampTz start = GetCurrentTimestamp();
	const char *params[] = {candidate->group_id, psprintf("%d", candidate->node_id),
		candidate->own[MEMBER_NODE_NAME], candidate->own[MEMBER_DSN], candidate->own[MEMBER_HOST],
		candidate->own[MEMBER_PORT], candidate->own[MEMBER_DBNAME],
		candidate->own[MEMBER_SYSTEM_IDENTIFIER], candidate->own[MEMBER_JOINED_AT],
		candidate->secret, candidate->own[MEMBER_FORMER_ID], candidate->own[MEMBER_FORMER_SAFE],
	candidate->own[MEMBER_FORMER_COUNTER]};
	char	   *answer;

	for (;;)
	{
		/* from now on it may have us, whatever we hear */
		member->asked = true;
		answer = repl_ml_ask_one(member->row[MEMBER_DSN],
								 "SELECT repl_ml.register_node($1, $2, $3, $4, $5, $6, $7, $8, $9,"
								 " $10, $11, $12, $13)",
								 lengthof(params), params, deadline_after(ANSWER_MS));
		*invited = answer != NULL;
		if (answer != NULL)
			return strcmp(answer, "t") == 0;
		if (TimestampDifferenceExceeds(start, GetCurrentTimestamp(), INVITATION_MS))
			ereport(ERROR,
					(errcode(ERRCODE_SQLCLIENT_UNABLE_TO_ESTABLISH_SQLCONNECTION),
					 errmsg("node \"%s\" has not heard that node \"%s\" is invited",
							member->row[MEMBER_NODE_NAME], candidate->own[MEMBER_NODE_NAME]),
					 errhint("See SELECT * FROM repl_ml.stat_apply there.")));
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, POLL_MS,
						 wait_event_compat("ReplMlJoinInvitation"));
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
	}
}

/* Returns the name of the member that lets us in. */
static const char *
get_donor_name(Candidate *candidate)
{
	ListCell   *lc;

	foreach(lc, candidate->members)
	{
		Member	   *member = lfirst(lc);

		if (member->node_id == candidate->donor)
			return member->row[MEMBER_NODE_NAME];
	}
	return "";
}

/*
 * Appends why the member has not registered us, as one line of an error's
 * detail.
 */
static void
append_reason(StringInfo reasons, const Member *member, bool invited, const ErrorData *error)
{
	const char *reason = error->detail != NULL ? error->detail : error->message;

	appendStringInfo(reasons, "%sNode \"%s\" ", reasons->len > 0 ? "\n" : "",
					 member->row[MEMBER_NODE_NAME]);
	if (invited)
		appendStringInfo(reasons, "cannot be reached: %s", reason);
	else
		appendStringInfoString(reasons, "answers, but has not heard of the invitation yet.");
	while (reasons->data[reasons->len - 1] == '\n')
		reasons->data[--reasons->len] = '\0';
}

/*
 * Registers with every member that is up, in the order of their ids, so that
 * of two nodes that join at once one is first everywhere.  Returns false if
 * the id is taken.  A member that is down, or does not hear of us, learns of us
 * from the others; if these are no majority, each is named with its reason.
 */
static bool
register_everywhere(Candidate *candidate)
{
	volatile int members = 0;
	volatile int reached = 0;
	volatile bool all_invited = true;
	StringInfo	reasons = makeStringInfo();
	ListCell   *lc;

	foreach(lc, candidate->members)
	{
		Member	   *member = lfirst(lc);
		volatile bool taken = false;
		volatile bool invited = true;
		MemoryContext context = CurrentMemoryContext;

		if (strcmp(member->row[MEMBER_STATE], "dropped") == 0)
			continue;
		members++;
		PG_TRY();
		{
			taken = !register_with(candidate, member, &invited);
			reached++;
		}
		PG_CATCH();
		{
			/* down is all right, a refusal is not */
			if (geterrcode() != ERRCODE_SQLCLIENT_UNABLE_TO_ESTABLISH_SQLCONNECTION ||
				member->node_id == candidate->donor)
				PG_RE_THROW();
			MemoryContextSwitchTo(context);
			append_reason(reasons, member, invited, CopyErrorData());
			all_invited &= invited;
			FlushErrorState();
		}
		PG_END_TRY();
		if (taken)
			return false;
	}
	if (reached * 2 <= members)
		ereport(ERROR,
				(errcode(ERRCODE_SQLCLIENT_UNABLE_TO_ESTABLISH_SQLCONNECTION),
				 errmsg("only %d of %d members of group \"%s\" could register node \"%s\"", reached,
						members, candidate->group_name, candidate->own[MEMBER_NODE_NAME]),
				 errdetail_internal("%s", reasons->data),
				 all_invited ?
				 errhint("Join when a majority is up, or remove dead nodes with SELECT "
						 "repl_ml.drop_node(...) on a member.") :
				 errhint("On nodes that have not heard of the invitation, run SELECT "
						 "repl_ml.invite_node(%s), or resume_apply(%s) if apply is paused there: "
						 "see SELECT * FROM repl_ml.stat_apply.",
						 quote_literal_cstr(candidate->own[MEMBER_NODE_NAME]),
						 quote_literal_cstr(get_donor_name(candidate)))));
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
		const char *params[] = {candidate->group_id, psprintf("%d", candidate->node_id),
		candidate->own[MEMBER_JOINED_AT]};

		if (!member->asked)
			continue;

		/* one that cannot be told must not keep us from telling the others */
		PG_TRY();
		{
			(void) repl_ml_ask_one(member->row[MEMBER_DSN],
								   "SELECT repl_ml.forget_node($1, $2, $3)",
								   lengthof(params), params, deadline_after(FORGET_MS));
		}
		PG_CATCH();
		{
			EmitErrorReport();
			FlushErrorState();
		}
		PG_END_TRY();
		member->asked = false;
	}
}

/* Writes one row of our list of members. */
static void
insert_member(char *const *row)
{
	Oid			types[MEMBER_COLUMNS];
	Datum		values[MEMBER_COLUMNS];
	char		nulls[MEMBER_COLUMNS];

	for (int i = 0; i < MEMBER_COLUMNS; i++)
	{
		types[i] = TEXTOID;
		nulls[i] = row[i] == NULL ? 'n' : ' ';
		values[i] = row[i] == NULL ? (Datum) 0 : CStringGetTextDatum(row[i]);
	}
	SPI_execute_with_args("INSERT INTO repl_ml.member (node_id, node_name, dsn, host, port, dbname,"
						  " system_identifier, joined_at, state, incarnation, former_id,"
						  " former_safe, former_counter, preferred_writer, __repl_clock)"
						  " VALUES ($1::pg_catalog.int4, $2::pg_catalog.name, $3, $4,"
						  " $5::pg_catalog.int4, $6, $7::pg_catalog.int8,"
						  " $8::pg_catalog.timestamptz, $9, $10::pg_catalog.int4,"
						  " $11::pg_catalog.int4, $12::pg_catalog.int8, $13::pg_catalog.int8,"
						  " coalesce($14::pg_catalog.bool, false),"
						  " $15::repl_ml.vclock)",
						  MEMBER_COLUMNS, types, values, nulls, false, 0);
}

/* Makes this database a member; from here on its workers do the rest. */
static void
become_member(ReplMlJoinRequest *request, Candidate *candidate)
{
	Oid			types[8] = {TEXTOID, TEXTOID, INT4OID, TEXTOID, TEXTOID, INT4OID, BOOLOID, TEXTOID};
	Datum		values[8];
	ListCell   *lc;

	values[0] = CStringGetTextDatum(candidate->group_name);
	values[1] = CStringGetTextDatum(candidate->group_id);
	values[2] = Int32GetDatum(candidate->node_id);
	values[3] = CStringGetTextDatum(NameStr(request->node_name));
	values[4] = CStringGetTextDatum("joining");
	values[5] = Int32GetDatum(candidate->donor);
	values[6] = BoolGetDatum(request->copy_data);
	values[7] = CStringGetTextDatum(request->keep);

	/* the list is the donor's: what a former group has left is none of it */
	repl_ml_begin();
	if (candidate->returns)
		SPI_execute("SELECT repl_ml.leave_set_back()", false, 0);
	SPI_execute("DELETE FROM repl_ml.member", false, 0);
	SPI_execute("DELETE FROM repl_ml.replicated_table", false, 0);
	foreach(lc, candidate->members)
		insert_member(((Member *) lfirst(lc))->row);
	SPI_execute_with_args("SELECT repl_ml.become_member($1::pg_catalog.name, $2::pg_catalog.uuid,"
						  " $3, $4::pg_catalog.name, $5, $6, $7, nullif($8, ''))",
						  8, types, values, NULL, false, 0);
	candidate->own[MEMBER_NODE_ID] = psprintf("%d", candidate->node_id);
	insert_member(candidate->own);
	repl_ml_commit();
}

/* ---- a node that was set back ---- */

/* Makes a secret, whose hash members find here when they are asked to let this node in. */
static char *
leave_secret(void)
{
	pg_uuid_t	random;
	char	   *secret;
	Oid			types[1] = {TEXTOID};
	Datum		values[1];

	if (!pg_strong_random(random.data, UUID_LEN))
		ereport(ERROR,
				(errcode(ERRCODE_INTERNAL_ERROR),
				 errmsg("could not generate random values")));
	secret = DatumGetCString(DirectFunctionCall1(uuid_out, UUIDPGetDatum(&random)));
	values[0] = CStringGetTextDatum(secret);
	repl_ml_begin();
	SPI_execute_with_args("UPDATE repl_ml.local_node SET secret_hash ="
						  " pg_catalog.sha256(pg_catalog.convert_to($1, 'UTF8'))",
						  1, types, values, NULL, false, 0);
	/* that it was set back is durable before a member drops it for that */
	ForceSyncCommit();
	repl_ml_commit();
	MemoryContextSwitchTo(TopMemoryContext);
	return secret;
}

/*
 * Sets who this node was, and returns how the other members are reached, the one
 * that has found it out first.
 */
static List *
load_former_group(ReplMlJoinRequest *request, const char **group_id, const char **node_id,
				  const char **incarnation)
{
	List	   *donors = NIL;

	repl_ml_begin();
	SPI_execute("SELECT m.dsn, l.node_name, l.group_id, l.node_id, o.dsn, l.incarnation"
				" FROM repl_ml.local_node l"
				" JOIN repl_ml.member o ON o.node_id OPERATOR(pg_catalog.=) l.node_id"
				" JOIN repl_ml.member m ON m.node_id OPERATOR(pg_catalog.<>) l.node_id"
				" AND m.state OPERATOR(pg_catalog.=) 'ready'"
				" ORDER BY m.node_id OPERATOR(pg_catalog.=) l.donor DESC, m.node_id", true, 0);
	if (SPI_processed == 0)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("no other member is known"),
				 errhint("Run SELECT repl_ml.leave_group(force => true, keep_clocks => true), and "
						 "join again with copy_data => false.")));
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		MemoryContext old = MemoryContextSwitchTo(TopMemoryContext);

		donors = lappend(donors, pstrdup(repl_ml_spi_text(i, 0)));
		MemoryContextSwitchTo(old);
	}
	namestrcpy(&request->node_name, repl_ml_spi_text(0, 1));
	*group_id = MemoryContextStrdup(TopMemoryContext, repl_ml_spi_text(0, 2));
	*node_id = MemoryContextStrdup(TopMemoryContext, repl_ml_spi_text(0, 3));
	*incarnation = MemoryContextStrdup(TopMemoryContext, repl_ml_spi_text(0, 5));
	strlcpy(request->dsn, repl_ml_spi_text(0, 4), REPL_ML_DSN_LENGTH);
	repl_ml_commit();
	MemoryContextSwitchTo(TopMemoryContext);
	return donors;
}

/*
 * Asks a member something; returns false if it cannot be reached, or cannot act now,
 * as one that was set back itself, and sets why.
 */
static bool
ask_if_there(const char *dsn, const char *query, int nparams, const char *const *params,
			 ErrorData **error)
{
	volatile bool there = false;

	PG_TRY();
	{
		(void) repl_ml_ask_one(dsn, query, nparams, params, deadline_after(ANSWER_MS));
		there = true;
	}
	PG_CATCH();
	{
		if (geterrcode() == ERRCODE_QUERY_CANCELED)
			PG_RE_THROW();
		MemoryContextSwitchTo(TopMemoryContext);
		*error = CopyErrorData();
		FlushErrorState();
		AbortOutOfAnyTransaction();
	}
	PG_END_TRY();
	return there;
}

/*
 * Has a member let this node in under its name; returns which one, the first that
 * does.
 */
static char *
ask_for_return(List *donors, const char *group_id, const char *node_id, const char *incarnation)
{
	const char *params[] = {group_id, node_id, incarnation};
	ErrorData  *error = NULL;
	ListCell   *lc;

	foreach(lc, donors)
	{
		if (ask_if_there(lfirst(lc), "SELECT repl_ml.readmit_node($1, $2, $3)", lengthof(params),
						 params, &error))
			return lfirst(lc);
	}
	ReThrowError(error);
}

/*
 * Says whether the dropped member is what this node became when it had been set back before,
 * given what is known to be such: one of these says so, by its former id or its name.
 */
static bool
is_later_self(const Member *member, List *selves)
{
	const char *former = member->row[MEMBER_FORMER_ID];
	ListCell   *lc;

	if (strcmp(member->row[MEMBER_STATE], "dropped") != 0)
		return false;
	foreach(lc, selves)
	{
		Member	   *self = lfirst(lc);

		if (strcmp(member->row[MEMBER_NODE_NAME], self->row[MEMBER_NODE_NAME]) == 0 ||
			(former != NULL && strcmp(former, self->row[MEMBER_NODE_ID]) == 0))
			return true;
	}
	return false;
}

/*
 * Returns the members, in order, that this node has been: the id that it knows, and what it
 * became after that.
 */
static List *
find_selves(Candidate *candidate, const char *node_id)
{
	List	   *selves = NIL;
	ListCell   *lc;

	foreach(lc, candidate->members)
	{
		Member	   *member = lfirst(lc);

		if (strcmp(member->row[MEMBER_NODE_ID], node_id) == 0 || is_later_self(member, selves))
			selves = lappend(selves, member);
	}
	return selves;
}

/*
 * Returns, separated by spaces, the id that this node knows of itself and those that
 * the donor has dropped with it: what it became after that and is no more.
 */
static char *
former_ids(Candidate *candidate, const char *node_id)
{
	StringInfo	ids = makeStringInfo();
	ListCell   *lc;

	foreach(lc, find_selves(candidate, node_id))
		appendStringInfo(ids, "%s%s", ids->len > 0 ? " " : "",
						 ((Member *) lfirst(lc))->row[MEMBER_NODE_ID]);
	return ids->len > 0 ? ids->data : pstrdup(node_id);
}

/*
 * Tells all members that the node is no more who it was.  Raises an error unless
 * more than half of them can be reached: a new id takes so many, and would be
 * used up in vain.
 */
static void
leave_former_id(Candidate *candidate, const char *node_id)
{
	const char *params[] = {candidate->group_id, former_ids(candidate, node_id)};
	int			members = count_live_members(candidate);
	int			reached = 0;
	StringInfo	reasons = makeStringInfo();
	ListCell   *lc;

	foreach(lc, candidate->members)
	{
		Member	   *member = lfirst(lc);
		ErrorData  *error;

		if (strcmp(member->row[MEMBER_STATE], "dropped") == 0)
			continue;
		if (ask_if_there(member->row[MEMBER_DSN],
						 "SELECT pg_catalog.count(repl_ml.forget_node($1,"
						 " i::pg_catalog.int4)::pg_catalog.text)"
						 " FROM pg_catalog.regexp_split_to_table($2, ' ') i",
						 lengthof(params), params, &error))
			reached++;
		else
			append_reason(reasons, member, true, error);
	}
	if (reached * 2 <= members)
		ereport(ERROR,
				(errcode(ERRCODE_SQLCLIENT_UNABLE_TO_ESTABLISH_SQLCONNECTION),
				 errmsg("only %d of %d other members can be reached", reached, members),
				 errdetail_internal("%s", reasons->data),
				 errhint("It comes back when more than half of them can; a node that will not "
						 "return is removed with SELECT repl_ml.drop_node(...) on a member.")));
}

/* Takes name and address under which the group knows the node now. */
static void
take_present_name(ReplMlJoinRequest *request, Candidate *candidate, const char *node_id)
{
	List	   *selves = find_selves(candidate, node_id);
	Member	   *last = selves == NIL ? NULL : llast(selves);

	if (last == NULL)
		return;
	namestrcpy(&request->node_name, last->row[MEMBER_NODE_NAME]);
	strlcpy(request->dsn, last->row[MEMBER_DSN], REPL_ML_DSN_LENGTH);
}

/*
 * Called by the supervisor of a node that was set back, none of whose workers
 * runs: makes it a joining member under its next id, which brings its rows along
 * (copy/meet.c), in place of what it was.  Raises an error if that cannot be done
 * now.
 */
void
repl_ml_come_back(void)
{
	ReplMlJoinRequest request = {.copy_data = false,.keep = "theirs"};
	Candidate	candidate = {.returns = true};
	const char *group_id;
	const char *node_id;
	const char *incarnation;
	List	   *donors = load_former_group(&request, &group_id, &node_id, &incarnation);
	WalReceiverConn *donor;

	candidate.secret = leave_secret();
	donor = repl_ml_stream_connect(ask_for_return(donors, group_id, node_id,
													  incarnation), "join");
	ask_donor(donor, &candidate);
	load_members(donor, &candidate);
	repl_ml_stream_disconnect(donor);
	take_present_name(&request, &candidate, node_id);
	leave_former_id(&candidate, node_id);
	register_and_become(&request, &candidate);
}
