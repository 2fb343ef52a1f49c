/*
 * sync.c
 *		Copies of tables: which are due, and what becomes of one that fails.
 *
 * The group's catalogs are copied at each connection, over it, before it
 * streams; enrolled tables when repl_ml.table_sync says so (link.c, enrol.c and
 * SQL write it), over a connection of their own beside the stream's.  What is
 * wrong with a table is noted, and it is tried again later (enrol.c).
 *
 * Not how a table is copied (fetch.c), nor which rows a donor leaves out
 * (donor.c).  Runs in the apply worker, between transactions of the stream.
 * Takes repl_ml_shared->lock for moments.
 */
#include "postgres.h"

#include "access/xact.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "replication/origin.h"
#include "storage/latch.h"
#include "utils/builtins.h"
#include "utils/memutils.h"

#include "apply/apply.h"
#include "commit/commit.h"
#include "compat.h"
#include "copy/copy.h"
#include "row/row.h"
#include "server/server.h"
#include "wire/wire.h"

#define POLL_MS				100

static bool next_pending(ReplMlApply *apply, bool banned, char **schema_name, char **table_name);
static bool is_replaced(ReplMlApply *apply, const char *schema_name, const char *table_name);
static bool is_of_the_table(ReplMlApply *apply, int sqlstate);
static void describe_lock(ReplMlApply *apply, ErrorData *error);
static void copy_over_connection(ReplMlApply *apply, const char *schema_name,
								 const char *table_name);
static ErrorData *try_copy(ReplMlApply *apply, const char *schema_name, const char *table_name);
static void copy_or_note(ReplMlApply *apply, const char *schema_name, const char *table_name);
static void note_banned(ReplMlApply *apply, char *schema_name, char *table_name);
static void note_open_tables(ReplMlApply *apply);

/*
 * Joins the peer's list of members and of tables into ours, over whatever
 * connection; called by the apply worker before it streams and where it has
 * missed something.
 */
void
repl_ml_sync_catalogs(ReplMlApply *apply, WalReceiverConn *conn)
{
	repl_ml_fetch_table(apply, conn, REPL_ML_SCHEMA, "member");
	repl_ml_fetch_table(apply, conn, REPL_ML_SCHEMA, "replicated_table");
	repl_ml_fetch_table(apply, conn, REPL_ML_SCHEMA, "conflict_policy");
	repl_ml_fetch_table(apply, conn, REPL_ML_SCHEMA, "invitation");
	repl_ml_fetch_table(apply, conn, REPL_ML_SCHEMA, "collection");
	repl_ml_fetch_table(apply, conn, REPL_ML_SCHEMA, "table_shape");
	repl_ml_fetch_table(apply, conn, REPL_ML_SCHEMA, "verification");
	repl_ml_fetch_table(apply, conn, REPL_ML_SCHEMA, "sequence_use");
	repl_ml_fetch_table(apply, conn, REPL_ML_SCHEMA, "group_sequence");
	repl_ml_fetch_table(apply, conn, REPL_ML_SCHEMA, "peer_start");
	repl_ml_shmem_wake_supervisor(MyDatabaseId);
}

/*
 * Sets the next table to be copied from the peer, or returns false.  One that
 * could not be enrolled here is left for later (enrol.c), unless this node
 * joins, and so is one whose copy failed lately: it must not keep all others
 * from being streamed.  All of a peer that joins with rows of its own waits until
 * it is ready, as these have not met the group's before; and while we join, all that
 * is not of the donor does.  Those whose rows take the server down are left, or, with
 * "banned", only they are found.
 */
static bool
next_pending(ReplMlApply *apply, bool banned, char **schema_name, char **table_name)
{
	bool		found;
	const char *without = "";
	char	   *tables = repl_ml_crash_banned();

	repl_ml_begin();
	if (repl_ml_identity_require()->joining)
		without = " AND EXISTS (SELECT FROM repl_ml.local_node l"
			" WHERE l.donor OPERATOR(pg_catalog.=) y.node_id)";
	else
		without = " AND NOT EXISTS (SELECT FROM repl_ml.pending_tables() p"
			" WHERE p.schema_name OPERATOR(pg_catalog.=) y.schema_name"
			" AND p.table_name OPERATOR(pg_catalog.=) y.table_name"
			" AND p.action OPERATOR(pg_catalog.<>) 'remove')"
			" AND NOT repl_ml.waits_to_retry(y.node_id, y.schema_name, y.table_name, 'copy')";

	/* our own tables first: tombstones before the rows they are of */
	SPI_execute(psprintf("SELECT schema_name, table_name FROM repl_ml.table_sync y"
						 " WHERE node_id OPERATOR(pg_catalog.=) %d"
						 " AND state OPERATOR(pg_catalog.=) 'pending'%s"
						 " AND NOT EXISTS (SELECT FROM repl_ml.member m"
						 " WHERE m.node_id OPERATOR(pg_catalog.=) y.node_id"
						 " AND m.state OPERATOR(pg_catalog.=) 'joining')"
						 " AND coalesce(pg_catalog.to_regclass("
						 "pg_catalog.format('%%I.%%I', schema_name, table_name))"
						 "::pg_catalog.oid, 0)"
						 " OPERATOR(pg_catalog.%s ('%s'::pg_catalog.oid[])"
						 " ORDER BY schema_name OPERATOR(pg_catalog.<>) 'repl_ml', 1, 2",
						 apply->peer->node_id, without, banned ? "=) ANY" : "<>) ALL", tables),
				true, 1);
	found = SPI_processed > 0;
	if (found)
	{
		*schema_name = MemoryContextStrdup(apply->message_context, repl_ml_spi_text(0, 0));
		*table_name = MemoryContextStrdup(apply->message_context, repl_ml_spi_text(0, 1));
	}
	repl_ml_commit();
	MemoryContextSwitchTo(apply->message_context);
	return found;
}

/*
 * Says whether the error is that of the table, and not of the connection, the
 * server or a lost race for a key.
 */
static bool
is_of_the_table(ReplMlApply *apply, int sqlstate)
{
	return repl_ml_locked_is_race(sqlstate) ||
		(repl_ml_dispatch_is_permanent(sqlstate) &&
		 ERRCODE_TO_CATEGORY(sqlstate) != ERRCODE_CONNECTION_EXCEPTION &&
	/* a key may have been inserted since we looked, see worker.c */
		 (sqlstate != ERRCODE_UNIQUE_VIOLATION || apply->retry.races > 0));
}

/* Says in the error what is locked, and by whom. */
static void
describe_lock(ReplMlApply *apply, ErrorData *error)
{
	StartTransactionCommand();
	MemoryContextSwitchTo(apply->message_context);
	if (repl_ml_locked_describe(error))
		error->detail = NULL;
	CommitTransactionCommand();
	MemoryContextSwitchTo(apply->message_context);
}

/* Says whether the copy of the table replaces what is here. */
static bool
is_replaced(ReplMlApply *apply, const char *schema_name, const char *table_name)
{
	bool		replaced;

	repl_ml_begin();
	replaced = repl_ml_query_int(psprintf("SELECT y.replaces::pg_catalog.int4"
										  " FROM repl_ml.table_sync y"
										  " WHERE y.node_id OPERATOR(pg_catalog.=) %d"
										  " AND y.schema_name OPERATOR(pg_catalog.=) %s"
										  " AND y.table_name OPERATOR(pg_catalog.=) %s",
										  apply->peer->node_id, quote_literal_cstr(schema_name),
										  quote_literal_cstr(table_name))) != 0;
	repl_ml_commit();
	MemoryContextSwitchTo(apply->message_context);
	return replaced;
}

/* Copies a table over the connection for that, which is made if there is none. */
static void
copy_over_connection(ReplMlApply *apply, const char *schema_name, const char *table_name)
{
	if (apply->connection.copy == NULL)
		apply->connection.copy = repl_ml_stream_connect(apply->peer->dsn, "copy");
	repl_ml_apply_set_state(apply, REPL_ML_WORKER_COPYING);
	if (is_replaced(apply, schema_name, table_name))
		repl_ml_fetch_instead(apply, apply->connection.copy, schema_name, table_name);
	else
		repl_ml_fetch_table(apply, apply->connection.copy, schema_name, table_name);
}

/*
 * Tries to copy a table; returns the error if it is the table's, and NULL if
 * there is none.  The caller watches what it waits for.
 */
static ErrorData *
try_copy(ReplMlApply *apply, const char *schema_name, const char *table_name)
{
	ErrorData  *volatile error = NULL;

	PG_TRY();
	{
		copy_over_connection(apply, schema_name, table_name);
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(apply->message_context);
		if (!is_of_the_table(apply, geterrcode()))
			PG_RE_THROW();
		error = CopyErrorData();
		FlushErrorState();
		replorigin_session_origin_lsn = InvalidXLogRecPtr;
		replorigin_session_origin_timestamp = 0;
		AbortOutOfAnyTransaction();
		repl_ml_round_unblock();
		repl_ml_dispatch_reset(apply);
		/* it may be in the middle of a copy */
		repl_ml_stream_disconnect(apply->connection.copy);
		apply->connection.copy = NULL;
		repl_ml_apply_show_copy(apply, InvalidOid, 0);
	}
	PG_END_TRY();
	MemoryContextSwitchTo(apply->message_context);
	return error;
}

/*
 * Copies a table; what is wrong with it is noted, and it is left for later.
 * Others' locks are no fault of its, as copies from two peers meet each other:
 * it is tried again as long as a change would be.
 */
static void
copy_or_note(ReplMlApply *apply, const char *schema_name, const char *table_name)
{
	TimestampTz began = GetCurrentTimestamp();
	ErrorData  *error;
	bool		race;

	for (;;)
	{
		repl_ml_locked_watch(false);
		error = try_copy(apply, schema_name, table_name);
		race = error != NULL && repl_ml_locked_is_race(error->sqlerrcode);
		if (!race || repl_ml_locked_for_long(error->sqlerrcode) ||
			TimestampDifferenceExceeds(began, GetCurrentTimestamp(), repl_ml_apply_lock_timeout))
			break;

		/* whoever has the locks is let go on, as from the stream's changes */
		repl_ml_locked_note(GetCurrentTimestamp());
		repl_ml_locked_unwatch();
		FreeErrorData(error);
		LWLockAcquire(repl_ml_shared->lock, LW_EXCLUSIVE);
		apply->worker->retries++;
		LWLockRelease(repl_ml_shared->lock);
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, POLL_MS,
						 wait_event_compat("ReplMlApplyDelay"));
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
	}
	if (race)
		describe_lock(apply, error);
	repl_ml_locked_unwatch();
	if (error != NULL)
		repl_ml_table_failed(apply, schema_name, table_name, "copy", error);
}

/*
 * Notes, and so shows, that a table waits to be copied because its rows have
 * taken the server down.
 */
static void
note_banned(ReplMlApply *apply, char *schema_name, char *table_name)
{
	ErrorData	error = {
		.sqlerrcode = ERRCODE_EXTERNAL_ROUTINE_EXCEPTION,
		.message = psprintf("writing rows of table \"%s.%s\" took the server down", schema_name,
							table_name),
		.detail = pstrdup("So it is not copied for now."),
		.hint = pstrdup("Mend or disable what runs for its rows (triggers, constraints, "
						"functions of indexes and types), then restart this server in order, or "
						"run SELECT repl_ml.retry_parked(id) of a parked change of the table.")
	};

	repl_ml_table_failed(apply, schema_name, table_name, "copy", &error);
}

/*
 * Copies the tables that are due from this peer, over a connection of its own;
 * called by the apply worker between transactions of the stream.
 */
void
repl_ml_sync_tables(ReplMlApply *apply)
{
	char	   *schema_name;
	char	   *table_name;
	bool		joining;

	repl_ml_begin();
	joining = repl_ml_identity_require()->joining;
	repl_ml_commit();
	(void) repl_ml_unsent_order_copies(apply);
	while (!joining && next_pending(apply, true, &schema_name, &table_name))
		note_banned(apply, schema_name, table_name);
	while (next_pending(apply, false, &schema_name, &table_name))
	{
		/* while this node joins any error is the join's */
		if (joining)
			copy_over_connection(apply, schema_name, table_name);
		else
			copy_or_note(apply, schema_name, table_name);
	}
	repl_ml_stream_disconnect(apply->connection.copy);
	apply->connection.copy = NULL;
	note_open_tables(apply);
	apply->tables_pending |= repl_ml_unsent_order_copies(apply);
}

/*
 * Forgets failures that are over, and whether anything is left to be tried
 * again.
 */
static void
note_open_tables(ReplMlApply *apply)
{
	repl_ml_begin();
	SPI_execute("SELECT repl_ml.forget_failures()", false, 1);
	apply->tables_pending = repl_ml_query_int(psprintf("SELECT 1 FROM repl_ml.table_failure"
													   " WHERE node_id OPERATOR(pg_catalog.=) %d"
													   " UNION ALL SELECT 1 FROM repl_ml.table_sync"
													   " WHERE node_id OPERATOR(pg_catalog.=) %d"
													   " AND state OPERATOR(pg_catalog.=) 'pending'"
													   " UNION ALL SELECT 1"
													   " FROM repl_ml.pending_tables() LIMIT 1",
													   apply->peer->node_id,
													   apply->peer->node_id)) != 0;
	repl_ml_commit();
	MemoryContextSwitchTo(apply->message_context);
}
