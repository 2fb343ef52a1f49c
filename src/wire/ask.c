/*
 * ask.c
 *		One query to several servers at once, with an end: whoever has not
 *		answered by then, or cannot be reached, has no answer.
 *
 * For questions of a client that must not hang on a peer that does not answer.
 * Connections are ordinary ones, closed after the question, unless a talk keeps
 * them for the next one, until the transaction ends; nothing in here blocks but the
 * look-up of a host's name.  Whoever has set the process's latch meanwhile for
 * something else is heard when the question is over: the latch is set again.
 * (stream.c is the connection that stays, over libpqwalreceiver, which has no
 * deadlines.)  No locks, and nobody may hold one while he asks.
 */
#include "postgres.h"

#include "access/xact.h"
#include "libpq-fe.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "storage/fd.h"
#include "storage/latch.h"
#include "utils/memutils.h"
#include "utils/wait_event.h"

#include "compat.h"
#include "wire/wire.h"

#define APPLICATION_NAME	REPL_ML_APPLICATION "question"

/* a wait is never longer than that: deadlines may be far away */
#define LONGEST_WAIT_MS		1000

/* How far a question is. */
typedef enum Phase
{
	CONNECTING,
	SENDING,
	WAITING,
	OVER
} Phase;

typedef struct Question
{
	PGconn	   *conn;			/* holds an external file descriptor */
	Phase		phase;
	int			events;			/* of its socket, to wait for */
	const char *query;
	int			nparams;
	const char *const *params;	/* as text, NULL for null */
	char	  **answer;			/* NULL until there is one */
	bool		answered;		/* perhaps by a null, or no row */
	char	   *error;			/* of the server, or of connecting */
	char	   *sqlstate;		/* NULL: not the server's */
} Question;

/* A connection that has been asked and may be asked again. */
typedef struct Kept
{
	char	   *dsn;
	PGconn	   *conn;			/* holds an external file descriptor */
} Kept;

/* The connections that this process keeps, of Kept, in TopMemoryContext. */
static List *talk = NIL;

/* While it asks: its latch was set, perhaps for something else. */
static bool was_called = false;

static bool talk_goes_on = false;	/* beyond the end of the transaction */

static void ask_all(Question *questions, ReplMlQuestions *all);
static void begin_question(Question *question, const char *dsn);
static bool take_kept(Question *question, const ReplMlQuestions *all, const char *dsn);
static void keep_connection(Question *question, const char *dsn);
static void end_question(Question *question);
static void go_on(Question *question);
static void receive_answer(Question *question);
static bool send_query(Question *question);
static void note_error(Question *question, const PGresult *result);
static bool go_on_with_some(Question *questions, int count, TimestampTz deadline);
static void give_up_some(Question *questions, const ReplMlQuestions *all);
static bool is_all_sent(const Question *questions, int count);
static void pass_call_on(void);
static void ignore_notice(void *arg, const char *message);

/*
 * Raises, for repl_ml_ask_one, what has become of a question that has no
 * answer.
 */
static void
raise_failure(const Question *question)
{
	if (question->sqlstate != NULL)
	{
		char	   *code = question->sqlstate;

		ereport(ERROR,
				(errcode(MAKE_SQLSTATE(code[0], code[1], code[2], code[3], code[4])),
				 errmsg("the peer reported: %s", question->error),
				 strcmp(code, "42501") == 0 && strstr(question->error, "\nHINT: ") == NULL ?
				 errhint("On that server run GRANT repl_ml_replication TO the role of the "
						 "connection string; if it is to let nodes into the group, GRANT "
						 "repl_ml_admin TO it.") : 0));
	}
	ereport(ERROR,
			(errcode(ERRCODE_SQLCLIENT_UNABLE_TO_ESTABLISH_SQLCONNECTION),
			 errmsg("could not connect to the peer"),
			 errdetail_internal("%s", question->error != NULL ? question->error :
								REPL_ML_ASK_SILENT),
			 errhint("Check the connection string, pg_hba.conf on that server, and that the role "
					 "has LOGIN and REPLICATION.")));
}

/*
 * Asks one server, with parameters, over an ordinary connection, which takes
 * no right to replicate.  Returns the value of the first row and column, NULL
 * for null or none; raises 08001 if the server cannot be reached or does not
 * answer until the deadline, else the server's error.  Neither statement nor
 * error holds the parameters.
 */
char *
repl_ml_ask_one(const char *dsn, const char *query, int nparams, const char *const *params,
				TimestampTz deadline)
{
	char	   *conninfo = repl_ml_stream_conninfo(dsn, "question", NULL);
	char	   *answer = NULL;
	Question	question = {.query = query,.nparams = nparams,.params = params,.answer = &answer};

	PG_TRY();
	{
		begin_question(&question, conninfo);
		while (go_on_with_some(&question, 1, deadline))
			;
		if (!question.answered)
			raise_failure(&question);
	}
	PG_FINALLY();
	{
		end_question(&question);
		pass_call_on();
	}
	PG_END_TRY();
	return answer;
}

/*
 * Says whether a connection to the server is answered until the deadline, be it by
 * refusing it: then asking has an end.  What is begun is given up.
 */
bool
repl_ml_ask_reaches(const char *dsn, TimestampTz deadline)
{
	char	   *conninfo = repl_ml_stream_conninfo(dsn, "question", NULL);
	char	   *answer = NULL;
	Question	question = {.query = "SELECT 1",.answer = &answer};
	volatile bool reached = false;

	PG_TRY();
	{
		begin_question(&question, conninfo);
		while (question.phase == CONNECTING && PQstatus(question.conn) == CONNECTION_STARTED &&
			   go_on_with_some(&question, 1, deadline))
			;
		reached = question.phase != CONNECTING || PQstatus(question.conn) != CONNECTION_STARTED;
	}
	PG_FINALLY();
	{
		end_question(&question);
		pass_call_on();
	}
	PG_END_TRY();
	pfree(conninfo);
	return reached;
}

/*
 * Sends each of the servers the query, which has one row and column, and waits
 * until all have answered, or cannot, or the deadline comes.  The answers are
 * palloc'd, NULL where there is none.
 */
void
repl_ml_ask(int count, char *const *dsns, const char *query, TimestampTz deadline, char **answers)
{
	ReplMlQuestions all = {.count = count,.dsns = dsns,.query = query,.sent_by = deadline,
	.deadline = deadline,.answers = answers};

	repl_ml_ask_beside(&all);
}

/*
 * Does what repl_ml_ask does, with parameters and, in this process, something
 * else beside it: when all servers have the query, or cannot be reached until
 * "sent_by".  Sets the errors of those that have no answer, too.
 */
void
repl_ml_ask_beside(ReplMlQuestions *all)
{
	Question   *questions = palloc0(Max(all->count, 1) * sizeof(Question));

	PG_TRY();
	{
		ask_all(questions, all);
	}
	PG_FINALLY();
	{
		/* file descriptors are few, also for who was cancelled */
		for (int i = 0; i < all->count; i++)
			end_question(&questions[i]);
		pass_call_on();
	}
	PG_END_TRY();
	pfree(questions);
}

/*
 * Called when a question is over, also by an error: the loop that has asked has its
 * latch set, as it would have been if it had not waited here.
 */
static void
pass_call_on(void)
{
	if (was_called)
		SetLatch(MyLatch);
	was_called = false;
}

/* Does repl_ml_ask_beside's work; who called it ends the questions. */
static void
ask_all(Question *questions, ReplMlQuestions *all)
{
	for (int i = 0; i < all->count; i++)
	{
		all->answers[i] = NULL;
		questions[i].query = all->query;
		questions[i].nparams = all->nparams;
		questions[i].params = all->params;
		questions[i].answer = &all->answers[i];
		if (!all->keeps || !take_kept(&questions[i], all, all->dsns[i]))
			begin_question(&questions[i], all->dsns[i]);
	}
	while (!is_all_sent(questions, all->count) &&
		   go_on_with_some(questions, all->count, all->sent_by))
		;
	/* whoever has not got it by now does not get it later, either */
	for (int i = 0; i < all->count; i++)
	{
		if (questions[i].phase == CONNECTING || questions[i].phase == SENDING)
			questions[i].phase = OVER;
	}
	if (all->meanwhile != NULL)
		all->meanwhile(all->argument);
	while (go_on_with_some(questions, all->count, all->deadline))
		give_up_some(questions, all);
	for (int i = 0; i < all->count && all->errors != NULL; i++)
		all->errors[i] = questions[i].answered ? NULL :
			questions[i].error != NULL ? questions[i].error : REPL_ML_ASK_SILENT;
	for (int i = 0; i < all->count && all->keeps; i++)
		keep_connection(&questions[i], all->dsns[i]);
}

/* Closes a connection that is kept. */
static void
close_kept(Kept *kept)
{
	talk = list_delete_ptr(talk, kept);
	PQfinish(kept->conn);
	ReleaseExternalFD();
	pfree(kept->dsn);
	pfree(kept);
}

/* Closes the connections that are kept; what is open on them is rolled back. */
void
repl_ml_ask_end(void)
{
	while (talk != NIL)
		close_kept(linitial(talk));
}

/* Called as a transaction ends: with it the connections do. */
static void
end_with_transaction(XactEvent event, void *arg)
{
	if (!talk_goes_on &&
		(event == XACT_EVENT_COMMIT || event == XACT_EVENT_ABORT || event == XACT_EVENT_PREPARE))
		repl_ml_ask_end();
}

/*
 * Called by a process that asks in one transaction after the other: it keeps
 * connections until it ends.
 */
void
repl_ml_ask_keep(void)
{
	talk_goes_on = true;
}

/* Says whether a server goes on listening, and is where the question begins. */
static bool
is_usable(PGconn *conn, const ReplMlQuestions *all)
{
	/* what it has said as it left, if it has, and then the end of the connection */
	return PQconsumeInput(conn) && !PQisBusy(conn) && PQconsumeInput(conn) &&
		PQstatus(conn) == CONNECTION_OK &&
		PQtransactionStatus(conn) == (all->goes_on ? PQTRANS_INTRANS : PQTRANS_IDLE);
}

/* Sends the question over a connection that has been kept; false if there is none. */
static bool
take_kept(Question *question, const ReplMlQuestions *all, const char *dsn)
{
	ListCell   *lc;

	foreach(lc, talk)
	{
		Kept	   *kept = lfirst(lc);

		if (strcmp(kept->dsn, dsn) != 0)
			continue;
		if (!is_usable(kept->conn, all))
		{
			close_kept(kept);
			return false;
		}
		question->conn = kept->conn;
		talk = foreach_delete_current(talk, lc);
		pfree(kept->dsn);
		pfree(kept);
		question->events = WL_SOCKET_READABLE | WL_SOCKET_WRITEABLE;
		question->phase = send_query(question) ? SENDING : OVER;
		if (question->phase == OVER)
			note_error(question, NULL);
		return true;
	}
	return false;
}

/* Keeps the connection of a question that has been answered. */
static void
keep_connection(Question *question, const char *dsn)
{
	static bool is_registered = false;
	MemoryContext old;
	Kept	   *kept;

	if (question->conn == NULL || question->phase != OVER || question->error != NULL ||
		PQstatus(question->conn) != CONNECTION_OK ||
		(PQtransactionStatus(question->conn) != PQTRANS_IDLE &&
		 PQtransactionStatus(question->conn) != PQTRANS_INTRANS))
		return;
	old = MemoryContextSwitchTo(TopMemoryContext);
	if (!is_registered)
		RegisterXactCallback(end_with_transaction, NULL);
	is_registered = true;
	kept = palloc(sizeof(Kept));
	*kept = (Kept) {.dsn = pstrdup(dsn),.conn = question->conn};
	question->conn = NULL;
	talk = lappend(talk, kept);
	MemoryContextSwitchTo(old);
}

/* Ends questions that the asker knows not to be answered any more. */
static void
give_up_some(Question *questions, const ReplMlQuestions *all)
{
	for (int i = 0; i < all->count && all->is_hopeless != NULL; i++)
	{
		if (questions[i].phase != OVER && all->is_hopeless(i, all->argument))
			questions[i].phase = OVER;
	}
}

/* Says whether no question is still on its way to its server. */
static bool
is_all_sent(const Question *questions, int count)
{
	for (int i = 0; i < count; i++)
	{
		if (questions[i].phase == CONNECTING || questions[i].phase == SENDING)
			return false;
	}
	return true;
}

/*
 * Begins to connect.  A question that cannot even begin is over at once, and
 * has no answer; the others go on.
 */
static void
begin_question(Question *question, const char *dsn)
{
	const char *const keywords[] = {"dbname", "application_name", "client_encoding", NULL};
	const char *const values[] = {dsn, APPLICATION_NAME, GetDatabaseEncodingName(), NULL};

	/* so far; whoever gets no connection has no answer */
	question->phase = OVER;
	if (!AcquireExternalFD())
		return;
	question->conn = PQconnectStartParams(keywords, values, true);
	if (question->conn == NULL)
	{
		ReleaseExternalFD();
		return;
	}
	if (PQstatus(question->conn) == CONNECTION_BAD)
	{
		note_error(question, NULL);
		return;
	}
	PQsetNoticeProcessor(question->conn, ignore_notice, NULL);
	question->phase = CONNECTING;
	question->events = WL_SOCKET_WRITEABLE;
}

/* Closes the connection; also where the question is not over. */
static void
end_question(Question *question)
{
	if (question->conn == NULL)
		return;
	PQfinish(question->conn);
	question->conn = NULL;
	ReleaseExternalFD();
}

/* Goes on with a question as far as is possible without waiting. */
static void
go_on(Question *question)
{
	if (question->phase == CONNECTING)
	{
		switch (PQconnectPoll(question->conn))
		{
			case PGRES_POLLING_READING:
				question->events = WL_SOCKET_READABLE;
				return;
			case PGRES_POLLING_WRITING:
				question->events = WL_SOCKET_WRITEABLE;
				return;
			case PGRES_POLLING_OK:
				question->phase = PQsetnonblocking(question->conn, 1) == 0 && send_query(question) ?
					SENDING : OVER;
				break;
			default:
				note_error(question, NULL);
				question->phase = OVER;
		}
	}

	/* the server may answer while we still send, so both are awaited */
	if (question->phase == SENDING)
	{
		int			more = PQflush(question->conn);

		question->phase = more < 0 ? OVER : more > 0 ? SENDING : WAITING;
		question->events = more > 0 ? WL_SOCKET_READABLE | WL_SOCKET_WRITEABLE : WL_SOCKET_READABLE;
	}
	if (question->phase == SENDING || question->phase == WAITING)
		receive_answer(question);
}

/*
 * Sends the query.  One without parameters may be several, of which the last
 * one answers.
 */
static bool
send_query(Question *question)
{
	if (question->params == NULL)
		return PQsendQuery(question->conn, question->query);
	return PQsendQueryParams(question->conn, question->query, question->nparams, NULL,
							 question->params, NULL, NULL, 0);
}

/*
 * Keeps the server's error, or without one the connection's, for
 * raise_failure.
 */
static void
note_error(Question *question, const PGresult *result)
{
	char	   *code = result == NULL ? NULL : PQresultErrorField(result, PG_DIAG_SQLSTATE);

	question->error = pchomp(result == NULL ? PQerrorMessage(question->conn) :
							 PQresultErrorMessage(result));
	question->sqlstate = code == NULL || strlen(code) != 5 ? NULL : pstrdup(code);
}

/* Takes what has come; the value of the query's last result is the answer. */
static void
receive_answer(Question *question)
{
	if (!PQconsumeInput(question->conn))
	{
		note_error(question, NULL);
		question->phase = OVER;
		return;
	}

	/* a query may be several; what the last one says counts */
	while (!PQisBusy(question->conn))
	{
		PGresult   *result = PQgetResult(question->conn);

		if (result == NULL)
		{
			question->phase = OVER;
			return;
		}
		if (PQresultStatus(result) == PGRES_TUPLES_OK)
			question->answered = true;
		else if (PQresultStatus(result) != PGRES_COMMAND_OK)
			note_error(question, result);
		if (PQresultStatus(result) == PGRES_TUPLES_OK && PQntuples(result) == 1 &&
			!PQgetisnull(result, 0, 0))
			*question->answer = MemoryContextStrdup(CurrentMemoryContext, PQgetvalue(result, 0, 0));
		PQclear(result);
	}
}

/*
 * Sleeps until some questions can go on, and goes on with these only: libpq
 * takes a connection that is not ready for a broken one.  Returns false when
 * all are over or the deadline has come.
 */
static bool
go_on_with_some(Question *questions, int count, TimestampTz deadline)
{
	WaitEventSet *set;
	WaitEvent  *events;
	int			open = 0;
	int			occurred;
	long		left = TimestampDifferenceMilliseconds(GetCurrentTimestamp(), deadline);

	CHECK_FOR_INTERRUPTS();
	for (int i = 0; i < count; i++)
		open += questions[i].phase != OVER;
	if (open == 0 || left <= 0)
		return false;

	/* two more: our latch, and the death of the postmaster */
	events = palloc((open + 2) * sizeof(WaitEvent));
	set = CreateWaitEventSet_compat(false, open + 2);
	AddWaitEventToSet(set, WL_LATCH_SET, PGINVALID_SOCKET, MyLatch, NULL);
	AddWaitEventToSet(set, WL_EXIT_ON_PM_DEATH, PGINVALID_SOCKET, NULL, NULL);
	for (int i = 0; i < count; i++)
	{
		if (questions[i].phase != OVER)
			AddWaitEventToSet(set, questions[i].events, PQsocket(questions[i].conn), NULL,
							  &questions[i]);
	}
	occurred = WaitEventSetWait(set, Min(left, LONGEST_WAIT_MS), events, open + 2,
								wait_event_compat("ReplMlAsk"));
	FreeWaitEventSet(set);
	for (int i = 0; i < occurred; i++)
	{
		/* one that comes from here on is seen by the next wait, here or elsewhere */
		if (events[i].events & WL_LATCH_SET)
		{
			was_called = true;
			ResetLatch(MyLatch);
		}
	}
	CHECK_FOR_INTERRUPTS();
	for (int i = 0; i < occurred; i++)
	{
		if (events[i].user_data != NULL)
			go_on(events[i].user_data);
	}
	pfree(events);
	return true;
}

/* Keeps a server's notices out of our log. */
static void
ignore_notice(void *arg, const char *message)
{
}
