/*
 * stream.h
 *		A connection to a peer: SQL over it, then its stream of changes.
 */
#ifndef REPL_ML_STREAM_H
#define REPL_ML_STREAM_H

#include "postgres.h"
#include "access/tupdesc.h"
#include "access/xlogdefs.h"
#include "executor/tuptable.h"
#include "replication/walreceiver.h"

/* what the names of our sessions on other servers begin with */
#define REPL_ML_APPLICATION		"repl_ml "

/* first line of a message that a walsender sends in place of a change: it has the table's schema, name, the
 * key and the error in the next ones */
#define REPL_ML_UNSENT			"unsent"

/* Rows a query returned, until repl_ml_stream_free. */
typedef struct ReplMlResult
{
	WalRcvExecResult *raw;
	TupleTableSlot *slot;
	bool		own_transaction;	/* ended by repl_ml_stream_free */
} ReplMlResult;

extern char *repl_ml_stream_conninfo(const char *dsn, const char *purpose, char **password);
extern WalReceiverConn *repl_ml_stream_connect(const char *dsn, const char *purpose);
extern void repl_ml_stream_disconnect(WalReceiverConn *conn);
extern void repl_ml_stream_command(WalReceiverConn *conn, const char *sql);
extern void repl_ml_stream_utility(WalReceiverConn *conn, const char *sql);
extern ReplMlResult *repl_ml_stream_query(WalReceiverConn *conn, const char *sql,
										  int ncolumns, const Oid *types);
extern bool repl_ml_stream_next(ReplMlResult *result);
extern void repl_ml_stream_free(ReplMlResult *result);
extern void repl_ml_stream_copy_out(WalReceiverConn *conn, const char *sql);
extern void repl_ml_stream_start(WalReceiverConn *conn, const char *slot, XLogRecPtr from,
								 const char *publication);
extern void repl_ml_stream_status(WalReceiverConn *conn, XLogRecPtr received,
								  XLogRecPtr applied, XLogRecPtr durable, bool reply_wanted);

#endif							/* REPL_ML_STREAM_H */
