/*
 * stream.c
 *		The connection to a peer, over core's libpqwalreceiver.
 *
 * One connection serves SQL first (handshake, slot, copies) and the
 * replication stream after repl_ml_stream_start.  An error of the peer is
 * raised here with the peer's own SQLSTATE.  Messages are read by
 * group/worker.c with walrcv_receive.
 *
 * Not here: questions that must have an end (ask.c), since libpqwalreceiver
 * knows no deadlines.  No locks.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "executor/executor.h"
#include "libpq-fe.h"
#include "libpq/pqformat.h"
#include "miscadmin.h"
#include "replication/walreceiver.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "wire/wire.h"

/* What to do about a server that does not keep to the protocol */
#define PROTOCOL_HINT	"Check that the connection string leads to the PostgreSQL server itself, " \
						"and not to a connection pooler."

/*
 * Where the string does not say otherwise: a network that is back after it has
 * swallowed everything is used again within two seconds.  As long as it swallows,
 * TCP doubles its pauses; so connections give up early enough, and are made anew.
 * A peer that is only busy answers, by its kernel.
 */
static const char *const network_defaults[][2] = {
	{"tcp_user_timeout", "4000"},	/* ms, also while connecting */
	{"keepalives_idle", "1"},	/* s */
	{"keepalives_interval", "1"},
	{"keepalives_count", "3"}
};

static void append_option(StringInfo conninfo, const char *keyword, const char *value);
static void append_network_defaults(StringInfo conninfo, const PQconninfoOption *options);
static WalRcvExecResult *execute_on_peer(WalReceiverConn *conn, const char *sql, int ncolumns,
										 const Oid *types);

/*
 * Returns a connection string, or URI, as keywords and values, under our
 * application's name: by that the server knows whose session it is
 * (server/session.c).  The password goes into *password where the caller has
 * another way for it; it stays where "password" is NULL.  Raises an error if
 * libpq cannot read the string; of a URI, which libpq would quote, it tells
 * nothing.
 */
char *
repl_ml_stream_conninfo(const char *dsn, const char *purpose, char **password)
{
	StringInfoData conninfo;
	char	   *reason = NULL;
	PQconninfoOption *options = PQconninfoParse(dsn, &reason);

	if (options == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("invalid connection string"),
				 reason != NULL && strstr(dsn, "://") == NULL ?
				 errdetail_internal("%s", pchomp(reason)) : 0,
				 errhint("Write it as in 'host=n1.example port=5432 dbname=app user=repl'.")));
	if (password != NULL)
		*password = NULL;

	/* a name the string gives would make the peer take us for a client */
	initStringInfo(&conninfo);
	append_option(&conninfo, "application_name", psprintf(REPL_ML_APPLICATION "%s", purpose));
	for (PQconninfoOption *option = options; option->keyword != NULL; option++)
	{
		if (option->val == NULL || strcmp(option->keyword, "application_name") == 0)
			continue;
		if (password != NULL && strcmp(option->keyword, "password") == 0)
			*password = pstrdup(option->val);
		else
			append_option(&conninfo, option->keyword, option->val);
	}
	append_network_defaults(&conninfo, options);
	PQconninfoFree(options);
	return conninfo.data;
}

/* Appends those of the defaults about which the connection string says nothing. */
static void
append_network_defaults(StringInfo conninfo, const PQconninfoOption *options)
{
	for (const PQconninfoOption *option = options; option->keyword != NULL; option++)
	{
		for (int i = 0; i < lengthof(network_defaults) && option->val == NULL; i++)
		{
			if (strcmp(option->keyword, network_defaults[i][0]) == 0)
				append_option(conninfo, network_defaults[i][0], network_defaults[i][1]);
		}
	}
}

/* Appends keyword='value', quoted as libpq reads it. */
static void
append_option(StringInfo conninfo, const char *keyword, const char *value)
{
	appendStringInfo(conninfo, "%s='", keyword);
	for (const char *c = value; *c != '\0'; c++)
	{
		if (*c == '\'' || *c == '\\')
			appendStringInfoChar(conninfo, '\\');
		appendStringInfoChar(conninfo, *c);
	}
	appendStringInfoString(conninfo, "' ");
}

/*
 * Connects, or raises 08001 with libpq's reason.  The message never holds the
 * connection string, so no password reaches a log.
 */
WalReceiverConn *
repl_ml_stream_connect(const char *dsn, const char *purpose)
{
	WalReceiverConn *conn;
	char	   *conninfo = repl_ml_stream_conninfo(dsn, purpose, NULL);
	char	   *reason = NULL;
	MemoryContext old;

	load_file("libpqwalreceiver", false);
	/* lives until repl_ml_stream_disconnect, which frees it */
	old = MemoryContextSwitchTo(TopMemoryContext);
	conn = walrcv_connect_compat(conninfo, purpose, &reason);
	MemoryContextSwitchTo(old);
	pfree(conninfo);
	if (conn == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_SQLCLIENT_UNABLE_TO_ESTABLISH_SQLCONNECTION),
				 errmsg("could not connect to the peer"),
				 errdetail_internal("%s", pchomp(reason)),
				 errhint("Check that the server runs, the connection string, pg_hba.conf on that "
						 "server, and that the role has LOGIN and REPLICATION.")));
	return conn;
}

/* Closes the connection; NULL is nothing to close. */
void
repl_ml_stream_disconnect(WalReceiverConn *conn)
{
	if (conn != NULL)
		walrcv_disconnect(conn);
}

/* Runs a query of one column whose result does not matter. */
void
repl_ml_stream_command(WalReceiverConn *conn, const char *sql)
{
	static const Oid types[1] = {TEXTOID};

	repl_ml_stream_free(repl_ml_stream_query(conn, sql, 1, types));
}

/* Runs a command that returns no rows. */
void
repl_ml_stream_utility(WalReceiverConn *conn, const char *sql)
{
	static const Oid none[1] = {InvalidOid};
	WalRcvExecResult *result = execute_on_peer(conn, sql, 0, none);

	if (result->status != WALRCV_OK_COMMAND)
		ereport(ERROR,
				(errcode(ERRCODE_PROTOCOL_VIOLATION),
				 errmsg("the peer did not run the command \"%s\"", sql),
				 errhint(PROTOCOL_HINT)));
	walrcv_clear_result(result);
}

/*
 * Runs a query that returns columns of these types.  Reading values needs the
 * catalogs, so without a transaction it starts one, until the result is freed.
 */
ReplMlResult *
repl_ml_stream_query(WalReceiverConn *conn, const char *sql, int ncolumns, const Oid *types)
{
	ReplMlResult *result = palloc0(sizeof(ReplMlResult));
	MemoryContext context = CurrentMemoryContext;

	if (!IsTransactionState())
	{
		StartTransactionCommand();
		MemoryContextSwitchTo(context);
		result->own_transaction = true;
	}
	result->raw = execute_on_peer(conn, sql, ncolumns, types);
	if (result->raw->status != WALRCV_OK_TUPLES)
		ereport(ERROR,
				(errcode(ERRCODE_PROTOCOL_VIOLATION),
				 errmsg("the peer returned no rows where rows were expected"),
				 errhint(PROTOCOL_HINT)));
	result->slot = MakeSingleTupleTableSlot(result->raw->tupledesc, &TTSOpsMinimalTuple);
	return result;
}

/* Puts the next row into result->slot; returns false after the last one. */
bool
repl_ml_stream_next(ReplMlResult *result)
{
	return tuplestore_gettupleslot(result->raw->tuplestore, true, false, result->slot);
}

/* Frees the rows; what was copied from them stays. */
void
repl_ml_stream_free(ReplMlResult *result)
{
	MemoryContext context = CurrentMemoryContext;

	ExecDropSingleTupleTableSlot(result->slot);
	walrcv_clear_result(result->raw);
	if (result->own_transaction)
	{
		CommitTransactionCommand();
		MemoryContextSwitchTo(context);
	}
	pfree(result);
}

/*
 * Starts a COPY ... TO STDOUT; the rows follow through walrcv_receive.  Rows
 * that a policy hides from our role are an error, not left out (row_security,
 * see server/session.c).
 */
void
repl_ml_stream_copy_out(WalReceiverConn *conn, const char *sql)
{
	static const Oid none[1] = {InvalidOid};
	WalRcvExecResult *result = execute_on_peer(conn, sql, 0, none);

	if (result->status != WALRCV_OK_COPY_OUT)
		ereport(ERROR,
				(errcode(ERRCODE_PROTOCOL_VIOLATION),
				 errmsg("the peer did not start a copy"),
				 errhint(PROTOCOL_HINT)));
	walrcv_clear_result(result);
}

/*
 * Starts the stream of "slot" from "from" on.  START_REPLICATION is sent as
 * SQL because walrcv_startstreaming passes no options of other plugins.
 */
void
repl_ml_stream_start(WalReceiverConn *conn, const char *slot, XLogRecPtr from,
					 const char *publication)
{
	static const Oid none[1] = {InvalidOid};
	WalRcvExecResult *result;
	char	   *sql =
		psprintf("START_REPLICATION SLOT %s LOGICAL %X/%X (proto_version '2', publication_names "
				 "'%s', messages 'true', binary 'true', streaming 'on')",
							   quote_identifier(slot), LSN_FORMAT_ARGS(from),
							   quote_identifier(publication));

	result = execute_on_peer(conn, sql, 0, none);
	if (result->status != WALRCV_OK_COPY_BOTH)
		ereport(ERROR,
				(errcode(ERRCODE_PROTOCOL_VIOLATION),
				 errmsg("the peer did not start the stream of slot \"%s\"", slot),
				 errhint(PROTOCOL_HINT)));
	walrcv_clear_result(result);
	pfree(sql);
}

/*
 * Tells the peer how far we are: WAL received; applied, or passed over as it had
 * nothing for us, durably; and where our origin durably is.  Only the last one lets
 * it forget.  A reply is core's keepalive, an echo REPL_ML_ECHO.  Returns the time
 * that the status has.
 */
TimestampTz
repl_ml_stream_status(WalReceiverConn *conn, XLogRecPtr received, XLogRecPtr durable,
					  XLogRecPtr kept, bool reply_wanted, bool echo_wanted)
{
	TimestampTz time = (GetCurrentTimestamp() & ~INT64CONST(1)) | (echo_wanted ? 1 : 0);
	StringInfoData message;

	initStringInfo(&message);
	pq_sendbyte(&message, 'r');
	pq_sendint64(&message, received);
	pq_sendint64(&message, kept);
	pq_sendint64(&message, durable);
	pq_sendint64(&message, time);
	pq_sendbyte(&message, reply_wanted);
	walrcv_send(conn, message.data, message.len);
	pfree(message.data);
	return time;
}

/* Runs one command and raises the peer's error, if any, as ours. */
static WalRcvExecResult *
execute_on_peer(WalReceiverConn *conn, const char *sql, int ncolumns, const Oid *types)
{
	WalRcvExecResult *result = walrcv_exec(conn, sql, ncolumns, types);

	if (result->status == WALRCV_ERROR)
		ereport(ERROR,
				(errcode(result->sqlstate != 0 ? result->sqlstate : ERRCODE_CONNECTION_FAILURE),
				 errmsg("the peer reported: %s", pchomp(result->err)),
				 result->sqlstate == ERRCODE_INSUFFICIENT_PRIVILEGE ?
				 errhint("On that server run GRANT repl_ml_replication TO the role of the "
						 "connection string.") : 0));
	return result;
}
