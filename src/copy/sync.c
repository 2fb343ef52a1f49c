/*
 * sync.c
 *		Copies tables from the peer: each row is joined, so a copy may overlap
 *		with the stream, be repeated, and start over after a failure.
 *
 * The group's catalogs are copied at each connection, over it, before it
 * streams; enrolled tables when repl_ml.table_sync says so, over a connection
 * of their own beside the stream's.
 *
 * Not which tables are due (repl_ml.table_sync, written by link.c, enrol.c and
 * SQL), nor which rows a donor leaves out (donor.c).  Locks: ACCESS SHARE on
 * the donor's table; here ROW EXCLUSIVE on the table and what joining rows
 * takes (converge/), until the copy's transaction ends.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/table.h"
#include "access/xact.h"
#include "catalog/pg_type.h"
#include "commands/copy.h"
#include "executor/executor.h"
#include "miscadmin.h"
#include "nodes/makefuncs.h"
#include "parser/parse_relation.h"
#include "pgstat.h"
#include "replication/origin.h"
#include "storage/latch.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/pg_lsn.h"
#include "utils/resowner.h"
#include "utils/snapmgr.h"

#include "apply/apply.h"
#include "compat.h"
#include "converge/converge.h"
#include "copy/copy.h"
#include "row/row.h"
#include "server/server.h"
#include "wire/wire.h"

#define DONOR_PATIENCE_MS	30000	/* how long a donor may take to catch up */
#define POLL_MS				100

#define CHUNK_ROWS			500 /* that are joined together, and as long as all are ... */
#define MOST_CHUNK_ROWS		16000	/* ... so many: each chunk is a subtransaction */
#define CHUNK_BYTES			(4 * 1024 * 1024)
#define MOST_FAILURES		1000	/* of rows, after which it is the table's */
#define COPIED_TABLE_ID		2	/* as which relation.c knows it for a moment */

#define VERSION_TABLE		"concurrent_version"

/* How the rows of a copy become values of the table; lives as long as the copy. */
typedef struct RowReader
{
	Relation	rel;
	bool		joining;		/* this node is */
	int			count;			/* of its stored columns, which the rows have */
	AttrNumber *attnums;
	FmgrInfo   *input;
	Oid		   *input_param;
	Datum	   *values;			/* of the row that was read last */
	bool	   *nulls;
	MemoryContext row_context;	/* of what these point to, and of joining it */
} RowReader;

/*
 * Rows of a copy that are joined together, as they came: if one fails, each by
 * itself; this file only.
 */
static struct
{
	MemoryContext context;		/* of the rows; reset with each chunk */
	List	   *rows;			/* of char **, the values as text, NULL for null */
	Size		size;
	int			enough;			/* rows */
	int			failures;		/* in a row that were not of the row's values */
} chunk;

/* What NextCopyFrom reads from; set only while a copy runs. */
static WalReceiverConn *copy_source = NULL;
static char *copy_buffer = NULL;
static int	copy_left = 0;

typedef struct OtherMember
{
	int			node_id;
	XLogRecPtr	from;			/* what the donor must have of it, invalid: no
								 * link yet */
	bool		fails;			/* connecting to it has failed */
	bool		donor_has_it;
} OtherMember;

/* A tombstone or stored version of a table that a copy brings. */
typedef struct CopiedVersion
{
	Oid			relid;
	Datum		columns;		/* the shape of its key */
	Datum		key;
	Datum		content;		/* 0 for a deletion */
	const char *eviction;
	ReplMlClock *clock;
	ReplMlSource source;
} CopiedVersion;

static void note_open_tables(ReplMlApply *apply);
static void set_progress(ReplMlApply *apply, Oid relid, int64 rows);
static void copy_table(ReplMlApply *apply, WalReceiverConn *conn, const char *schema_name,
					   const char *table_name);
static int64 copy_rows(ReplMlApply *apply, WalReceiverConn *conn, Oid relid, bool careful);
static int64 copy_rows_about(ReplMlApply *apply, WalReceiverConn *conn, Oid relid,
							 const char *schema_name, const char *table_name, bool careful);
static int64 copy_sendable(ReplMlApply *apply, WalReceiverConn *conn, Relation rel,
						   const char *name, const char *schema_name, const char *table_name,
						   bool careful);
static int64 copy_partitions(ReplMlApply *apply, WalReceiverConn *conn, Relation rel, bool careful);
static char *quote_table(Relation rel);
static int64 copy_from(ReplMlApply *apply, WalReceiverConn *conn, Relation rel, const char *command,
					   bool careful);
static RowReader *make_reader(Relation rel);
static int64 join_rows(ReplMlApply *apply, RowReader *reader, CopyFromState copy, bool careful);
static void join_one(ReplMlApply *apply, RowReader *reader, char **fields);
static void forget_chunk(void);
static void add_to_chunk(ReplMlApply *apply, RowReader *reader, char **fields);
static void join_chunk(ReplMlApply *apply, RowReader *reader);
static void join_copied_row(ReplMlApply *apply, Relation rel, Datum *values, bool *nulls);
static void join_tombstone(ReplMlApply *apply, Datum *values, bool *nulls);
static void join_version(ReplMlApply *apply, Datum *values, bool *nulls);
static void join_copied_deletion(void *argument);
static void join_copied_version(void *argument);
static bool try_copied(void (*step) (void *argument), CopiedVersion *copied);
static int	read_copy(void *out, int min, int max);

/*
 * Joins the peer's list of members and of tables into ours, over whatever
 * connection; called by the apply worker before it streams and where it has
 * missed something.
 */
void
repl_ml_sync_catalogs(ReplMlApply *apply, WalReceiverConn *conn)
{
	copy_table(apply, conn, REPL_ML_SCHEMA, "member");
	copy_table(apply, conn, REPL_ML_SCHEMA, "replicated_table");
	copy_table(apply, conn, REPL_ML_SCHEMA, "conflict_policy");
	copy_table(apply, conn, REPL_ML_SCHEMA, "invitation");
	copy_table(apply, conn, REPL_ML_SCHEMA, "collection");
	copy_table(apply, conn, REPL_ML_SCHEMA, "table_shape");
	repl_ml_shmem_wake_supervisor(MyDatabaseId);
}

/*
 * Sets the next table to be copied from the peer, or returns false.  One that
 * could not be enrolled here is left for later (enrol.c), unless this node
 * joins, and so is one whose copy failed lately: it must not keep all others
 * from being streamed.  Those whose rows take the server down are left, or,
 * with "banned", only they are found.
 */
static bool
next_pending(ReplMlApply *apply, bool banned, char **schema_name, char **table_name)
{
	bool		found;
	const char *without = "";
	char	   *tables = repl_ml_crash_banned();

	repl_ml_begin();
	if (!repl_ml_identity_require()->joining)
		without = " AND NOT EXISTS (SELECT FROM repl_ml.pending_tables() p"
			" WHERE p.schema_name OPERATOR(pg_catalog.=) y.schema_name"
			" AND p.table_name OPERATOR(pg_catalog.=) y.table_name"
			" AND p.action OPERATOR(pg_catalog.<>) 'remove')"
			" AND NOT repl_ml.waits_to_retry(y.node_id, y.schema_name, y.table_name, 'copy')";

	/* our own tables first: tombstones before the rows they are of */
	SPI_execute(psprintf("SELECT schema_name, table_name FROM repl_ml.table_sync y"
						 " WHERE node_id OPERATOR(pg_catalog.=) %d"
						 " AND state OPERATOR(pg_catalog.=) 'pending'%s"
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

/* Copies a table over the connection for that, which is made if there is none. */
static void
copy_over_connection(ReplMlApply *apply, const char *schema_name, const char *table_name)
{
	if (apply->connection.copy == NULL)
		apply->connection.copy = repl_ml_stream_connect(apply->peer->dsn, "copy");
	repl_ml_apply_set_state(apply, REPL_ML_WORKER_COPYING);
	copy_table(apply, apply->connection.copy, schema_name, table_name);
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
		repl_ml_dispatch_reset(apply);
		/* it may be in the middle of a copy */
		repl_ml_stream_disconnect(apply->connection.copy);
		apply->connection.copy = NULL;
		set_progress(apply, InvalidOid, 0);
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
													   " UNION ALL SELECT 1"
													   " FROM repl_ml.pending_tables() LIMIT 1",
													   apply->peer->node_id)) != 0;
	repl_ml_commit();
	MemoryContextSwitchTo(apply->message_context);
}

/* Shows in repl_ml.stat_apply how far a copy is. */
static void
set_progress(ReplMlApply *apply, Oid relid, int64 rows)
{
	LWLockAcquire(repl_ml_shared->lock, LW_EXCLUSIVE);
	apply->worker->copy_relation = relid;
	apply->worker->copy_rows = rows;
	LWLockRelease(repl_ml_shared->lock);
}

/* Says whether the column has values that are stored, and so are copied. */
static bool
is_stored(Form_pg_attribute att)
{
	return !att->attisdropped && att->attgenerated == '\0';
}

/* Returns the names of all columns that are stored, also as a list for SQL. */
static List *
list_columns(Relation rel, StringInfo list)
{
	List	   *names = NIL;

	for (int i = 0; i < RelationGetNumberOfAttributes(rel); i++)
	{
		Form_pg_attribute att = TupleDescAttr(RelationGetDescr(rel), i);

		if (!is_stored(att))
			continue;
		appendStringInfo(list, "%s%s", names == NIL ? "" : ", ",
						 quote_identifier(NameStr(att->attname)));
		names = lappend(names, makeString(pstrdup(NameStr(att->attname))));
	}
	return names;
}

/*
 * Raises an error if the table is not the same on the peer; until the copy
 * ends it stays as it is there.
 */
static void
require_same_table(WalReceiverConn *conn, const char *schema_name, const char *table_name)
{
	static const Oid types[1] = {BYTEAOID};
	char	   *name = quote_qualified_identifier(schema_name, table_name);
	LogicalRepRelation remote = {.remoteid = COPIED_TABLE_ID,.nspname = pstrdup(schema_name),
	.relname = pstrdup(table_name)};
	ReplMlResult *result;
	StringInfoData message;
	List	   *columns;
	ListCell   *lc;

	repl_ml_stream_utility(conn, psprintf("LOCK TABLE %s IN ACCESS SHARE MODE", name));
	result = repl_ml_stream_query(conn,
								  psprintf("SELECT repl_ml.send_columns(%s)",
										   quote_literal_cstr(name)), 1, types);
	if (!repl_ml_stream_next(result))
		ereport(ERROR,
				(errcode(ERRCODE_PROTOCOL_VIOLATION),
				 errmsg("the peer does not say what table %s is", name),
				 errhint(REPL_ML_SAME_VERSION_HINT)));
	slot_getallattrs(result->slot);
	initStringInfo(&message);
	if (!result->slot->tts_isnull[0])
	{
		bytea	   *sent = DatumGetByteaPP(result->slot->tts_values[0]);

		appendBinaryStringInfo(&message, VARDATA_ANY(sent), VARSIZE_ANY_EXHDR(sent));
	}
	repl_ml_stream_free(result);

	/* what the stream would be asked, too: each column has to be the same */
	columns = repl_ml_column_receive(&message);
	remote.attnames = palloc(Max(list_length(columns), 1) * sizeof(char *));
	foreach(lc, columns)
		remote.attnames[remote.natts++] = pstrdup(((ReplMlColumn *) lfirst(lc))->name);
	repl_ml_relation_remember(&remote, columns, false);
	(void) repl_ml_relation_get(COPIED_TABLE_ID);
}

/*
 * Joins the rows of a table, of one moment, in the order they must come.  What
 * was parked of the peer's changes of it comes with them; what fails is
 * parked, as of the stream.  Also while this node joins: it would never be
 * ready for one row that does not fit here, and the peers' streams would wait.
 */
static int64
copy_content(ReplMlApply *apply, WalReceiverConn *conn, Oid relid, const char *schema_name,
			 const char *table_name)
{
	bool		is_catalog = strcmp(schema_name, REPL_ML_SCHEMA) == 0;
	bool		is_tombstone = is_catalog && strcmp(table_name, "tombstone") == 0;

	if (is_tombstone)
	{
		(void) copy_rows(apply, conn, repl_ml_catalog_oid(VERSION_TABLE), false);
		repl_ml_record_copy(apply, conn);
		return copy_rows(apply, conn, relid, true);
	}
	if (is_catalog)
		return copy_rows(apply, conn, relid, false);
	require_same_table(conn, schema_name, table_name);
	(void) copy_rows_about(apply, conn, repl_ml_catalog_oid(VERSION_TABLE), schema_name, table_name,
						   false);
	/* deletions are parked, too, perhaps */
	if (repl_ml_park_has(apply->peer->node_id, schema_name, table_name))
	{
		repl_ml_park_forget_copied(apply->peer->node_id, schema_name, table_name);
		(void) copy_rows_about(apply, conn, repl_ml_catalog_oid("tombstone"), schema_name,
							   table_name, true);
	}
	return copy_rows(apply, conn, relid, true);
}

/*
 * Joins all rows of one table of the peer, in one transaction, and ticks it
 * off.  A row that the peer has resolved from several versions must come after
 * these, or it would pass for one of them: so they are copied first, of the
 * same moment.
 */
static void
copy_table(ReplMlApply *apply, WalReceiverConn *conn, const char *schema_name,
		   const char *table_name)
{
	Oid			types[3] = {INT4OID, TEXTOID, TEXTOID};
	Datum		values[3];
	Oid			relid;
	int64		rows = 0;

	StartTransactionCommand();
	PushActiveSnapshot(GetTransactionSnapshot());
	repl_ml_crash_copies();
	relid = repl_ml_table_local(schema_name, table_name);
	if (OidIsValid(relid))
	{
		repl_ml_stream_utility(conn, "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY");
		rows = copy_content(apply, conn, relid, schema_name, table_name);
		repl_ml_stream_utility(conn, "COMMIT");
		repl_ml_targets_close();
	}
	else
		repl_ml_park_forget_copied(apply->peer->node_id, schema_name, table_name);
	repl_ml_unsent_copied(apply, schema_name, table_name);

	/* in the same transaction: after a crash it is copied again */
	values[0] = Int32GetDatum(apply->peer->node_id);
	values[1] = CStringGetTextDatum(schema_name);
	values[2] = CStringGetTextDatum(table_name);
	repl_ml_spi_execute(psprintf("UPDATE repl_ml.table_sync"
								 " SET state = 'copied', rows = " INT64_FORMAT
								 " WHERE node_id OPERATOR(pg_catalog.=) $1"
								 " AND schema_name OPERATOR(pg_catalog.=) $2::pg_catalog.name"
								 " AND table_name OPERATOR(pg_catalog.=) $3::pg_catalog.name",
								 rows),
						3, types, values, NULL);
	PopActiveSnapshot();
	replorigin_session_origin_lsn = InvalidXLogRecPtr;
	replorigin_session_origin_timestamp = 0;
	CommitTransactionCommand();
	repl_ml_crash_rests();
	set_progress(apply, InvalidOid, 0);
}

/* Joins all rows of a table; returns their number. */
static int64
copy_rows(ReplMlApply *apply, WalReceiverConn *conn, Oid relid, bool careful)
{
	return copy_rows_about(apply, conn, relid, NULL, NULL, careful);
}

/*
 * Joins the rows of one of our own tables, only those about another table, if
 * it is named.  The group's list and the like are copied as they are: without
 * one of these rows nothing is right.
 */
static int64
copy_rows_about(ReplMlApply *apply, WalReceiverConn *conn, Oid relid, const char *schema_name,
				const char *table_name, bool careful)
{
	Relation	rel = table_open(relid, RowExclusiveLock);
	char	   *name = quote_table(rel);
	bool		is_whole = RelationGetNamespace(rel) == repl_ml_schema_oid() &&
		relid != repl_ml_catalog_oid("tombstone") && relid != repl_ml_catalog_oid(VERSION_TABLE);
	StringInfoData columns;
	int64		rows;

	set_progress(apply, relid, 0);
	repl_ml_crash_writes(relid);
	initStringInfo(&columns);
	(void) list_columns(rel, &columns);
	if (rel->rd_rel->relkind == RELKIND_PARTITIONED_TABLE)
		rows = copy_partitions(apply, conn, rel, careful);
	else if (is_whole)
		rows = copy_from(apply, conn, rel, psprintf("COPY %s (%s) TO STDOUT", name, columns.data),
						 careful);
	else
		rows = copy_sendable(apply, conn, rel, name, schema_name, table_name, careful);
	table_close(rel, NoLock);
	return rows;
}

/*
 * Joins the rows of the table of that name on the peer that can be sent, and
 * notes the others.  The lines are escaped so that this CSV is what COPY of
 * the table would send, see donor.c.
 */
static int64
copy_sendable(ReplMlApply *apply, WalReceiverConn *conn, Relation rel, const char *name,
			  const char *schema_name, const char *table_name, bool careful)
{
	static const Oid types[1] = {BOOLOID};
	StringInfoData arguments;
	char	   *of_schema = schema_name == NULL ? "NULL" : quote_literal_cstr(schema_name);
	char	   *of_table = table_name == NULL ? "NULL" : quote_literal_cstr(table_name);
	int64		rows;
	ListCell   *lc;

	initStringInfo(&arguments);
	appendStringInfo(&arguments, "%s::pg_catalog.regclass, ARRAY[", quote_literal_cstr(name));
	foreach(lc, list_columns(rel, makeStringInfo()))
		appendStringInfo(&arguments, "%s%s", foreach_current_index(lc) > 0 ? ", " : "",
						 quote_literal_cstr(strVal(lfirst(lc))));
	appendStringInfoString(&arguments, "]::pg_catalog.name[]");
	repl_ml_stream_free(repl_ml_stream_query(conn,
											 psprintf("SELECT repl_ml.require_copyable(%s)",
													  arguments.data), 1, types));
	rows = copy_from(apply, conn, rel,
					 psprintf("COPY (SELECT repl_ml.rows_to_copy(%s, %s, %s)) TO STDOUT"
							  " (FORMAT csv, DELIMITER E'\\x01', QUOTE E'\\x02', NULL E'\\x03')",
							  arguments.data, of_schema, of_table), careful);
	repl_ml_unsent_ask(apply, conn);
	return rows;
}

/* Joins the rows of a partitioned table, which is copied by its partitions. */
static int64
copy_partitions(ReplMlApply *apply, WalReceiverConn *conn, Relation rel, bool careful)
{
	static const Oid types[2] = {TEXTOID, TEXTOID};
	ReplMlResult *result;
	char	   *schema_name;
	char	   *table_name;
	List	   *names = NIL;
	ListCell   *lc;
	int64		rows = 0;

	result = repl_ml_stream_query(conn,
								  psprintf("SELECT n.nspname::pg_catalog.text,"
										   " c.relname::pg_catalog.text"
										   " FROM pg_catalog.pg_partition_tree("
										   "pg_catalog.to_regclass(%s)) t"
										   " JOIN pg_catalog.pg_class c"
										   " ON c.oid OPERATOR(pg_catalog.=) t.relid"
										   " JOIN pg_catalog.pg_namespace n"
										   " ON n.oid OPERATOR(pg_catalog.=) c.relnamespace"
										   " WHERE c.relkind OPERATOR(pg_catalog.=) 'r'",
										   quote_literal_cstr(quote_table(rel))), 2, types);
	while (repl_ml_stream_next(result))
	{
		slot_getallattrs(result->slot);
		schema_name = TextDatumGetCString(result->slot->tts_values[0]);
		table_name = TextDatumGetCString(result->slot->tts_values[1]);
		names = lappend(names, quote_qualified_identifier(schema_name, table_name));
	}
	repl_ml_stream_free(result);
	foreach(lc, names)
		rows += copy_sendable(apply, conn, rel, lfirst(lc), NULL, NULL, careful);
	return rows;
}

/* Returns the table's name as SQL has it, here and on the peer. */
static char *
quote_table(Relation rel)
{
	return quote_qualified_identifier(get_namespace_name(RelationGetNamespace(rel)),
									  RelationGetRelationName(rel));
}

/*
 * Joins what the peer's COPY yields, all stored columns of rows of the table;
 * returns their number.
 */
static int64
copy_from(ReplMlApply *apply, WalReceiverConn *conn, Relation rel, const char *command,
		  bool careful)
{
	ParseState *pstate = make_parsestate(NULL);
	StringInfoData columns;
	CopyFromState copy;
	ReplMlUser	saved;
	int64		rows;

	initStringInfo(&columns);
	repl_ml_stream_copy_out(conn, command);
	copy_source = conn;
	copy_left = 0;

	/*
	 * opening runs the owner's code: column defaults, input functions of
	 * domains
	 */
	(void) addRangeTableEntryForRelation(pstate, rel, AccessShareLock, NULL, false, false);
	repl_ml_become_owner(rel, &saved);
	copy = BeginCopyFrom(pstate, rel, NULL, NULL, false, read_copy, list_columns(rel, &columns),
						 NIL);
	repl_ml_become_self(&saved);
	forget_chunk();
	chunk.enough = CHUNK_ROWS;
	chunk.failures = 0;
	rows = join_rows(apply, make_reader(rel), copy, careful);
	EndCopyFrom(copy);
	return rows;
}

/*
 * Refuses a row of a table of ours that lacks a value: what COPY reads is as
 * yet what the peer says, not what the table allows.
 */
static void
refuse_nulls(Relation rel, const bool *nulls)
{
	for (int i = 0; i < RelationGetNumberOfAttributes(rel); i++)
	{
		Form_pg_attribute att = TupleDescAttr(RelationGetDescr(rel), i);

		if (att->attnotnull && nulls[i])
			ereport(ERROR,
					(errcode(ERRCODE_PROTOCOL_VIOLATION),
					 errmsg("the peer sent a row of table \"%s.%s\" without column \"%s\"",
							REPL_ML_SCHEMA, RelationGetRelationName(rel), NameStr(att->attname)),
					 errhint("Look at this table on the peer.")));
	}
}

/* Returns what reads rows of the table, made in the copy's transaction. */
static RowReader *
make_reader(Relation rel)
{
	TupleDesc	desc = RelationGetDescr(rel);
	RowReader  *reader = palloc0(sizeof(RowReader));

	reader->rel = rel;
	reader->joining = repl_ml_identity_require()->joining;
	reader->attnums = palloc(desc->natts * sizeof(AttrNumber));
	reader->input = palloc(desc->natts * sizeof(FmgrInfo));
	reader->input_param = palloc(desc->natts * sizeof(Oid));
	reader->values = palloc0(desc->natts * sizeof(Datum));
	reader->nulls = palloc(desc->natts * sizeof(bool));
	reader->row_context = AllocSetContextCreate(CurrentMemoryContext, "repl_ml copied row",
												ALLOCSET_DEFAULT_SIZES);
	for (int i = 0; i < desc->natts; i++)
	{
		Form_pg_attribute att = TupleDescAttr(desc, i);
		Oid			function;

		reader->nulls[i] = true;
		if (!is_stored(att))
			continue;
		getTypeInputInfo(att->atttypid, &function, &reader->input_param[reader->count]);
		fmgr_info(function, &reader->input[reader->count]);
		reader->attnums[reader->count++] = att->attnum;
	}
	return reader;
}

/*
 * Sets the values of a row, with the rights of the table's owner, whose types
 * read them.  A null is one, also of a domain that has none, as in the stream.
 */
static void
read_row(RowReader *reader, char **fields)
{
	ReplMlUser	saved;

	repl_ml_become_owner(reader->rel, &saved);
	for (int i = 0; i < reader->count; i++)
	{
		int			column = reader->attnums[i] - 1;

		reader->nulls[column] = fields[i] == NULL;
		reader->values[column] = fields[i] == NULL ? (Datum) 0 :
			InputFunctionCall(&reader->input[i], fields[i], reader->input_param[i],
							  TupleDescAttr(RelationGetDescr(reader->rel), column)->atttypmod);
	}
	repl_ml_become_self(&saved);
}

/*
 * Joins the rows as they come.  With "careful" one that cannot be read or
 * joined is parked, and the others are joined.
 */
static int64
join_rows(ReplMlApply *apply, RowReader *reader, CopyFromState copy, bool careful)
{
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext, "repl_ml copy",
												  ALLOCSET_DEFAULT_SIZES);
	MemoryContext old = MemoryContextSwitchTo(context);
	int64		rows = 0;
	char	  **fields;
	int			count;

	for (;;)
	{
		CHECK_FOR_INTERRUPTS();
		repl_ml_check_server();
		MemoryContextReset(context);
		if (!NextCopyFromRawFields(copy, &fields, &count))
			break;
		if (count != reader->count)
			ereport(ERROR,
					(errcode(ERRCODE_PROTOCOL_VIOLATION),
					 errmsg("the peer sent a row of table \"%s\" with %d columns instead of %d",
							RelationGetRelationName(reader->rel), count, reader->count),
					 errhint(REPL_ML_SAME_VERSION_HINT)));
		repl_ml_targets_renew();
		if (careful)
			add_to_chunk(apply, reader, fields);
		else
			join_one(apply, reader, fields);
		if (++rows % 1000 == 0)
			set_progress(apply, RelationGetRelid(reader->rel), rows);
	}
	if (careful)
		join_chunk(apply, reader);
	MemoryContextSwitchTo(old);
	MemoryContextDelete(context);
	MemoryContextDelete(reader->row_context);
	return rows;
}

/* Reads and joins a row of whatever table is copied. */
static void
join_one(ReplMlApply *apply, RowReader *reader, char **fields)
{
	Oid			relid = RelationGetRelid(reader->rel);
	MemoryContext old;

	MemoryContextReset(reader->row_context);
	old = MemoryContextSwitchTo(reader->row_context);
	read_row(reader, fields);

	/*
	 * users' tables have their own constraints, which the executor checks
	 */
	if (RelationGetNamespace(reader->rel) == repl_ml_schema_oid())
		refuse_nulls(reader->rel, reader->nulls);
	if (relid == repl_ml_catalog_oid("tombstone"))
		join_tombstone(apply, reader->values, reader->nulls);
	else if (relid == repl_ml_catalog_oid(VERSION_TABLE))
		join_version(apply, reader->values, reader->nulls);
	else
		join_copied_row(apply, reader->rel, reader->values, reader->nulls);
	MemoryContextSwitchTo(old);
}

/* Forgets the rows that have been gathered. */
static void
forget_chunk(void)
{
	if (chunk.context == NULL)
		chunk.context = AllocSetContextCreate(TopMemoryContext, "repl_ml copied rows",
											  ALLOCSET_DEFAULT_SIZES);
	MemoryContextReset(chunk.context);
	chunk.rows = NIL;
	chunk.size = 0;
}

/* Gathers a row, and joins the gathered ones when they are enough. */
static void
add_to_chunk(ReplMlApply *apply, RowReader *reader, char **fields)
{
	MemoryContext old = MemoryContextSwitchTo(chunk.context);
	Size		size = reader->count * sizeof(char *);
	char	  **row;
	char	   *text;

	for (int i = 0; i < reader->count; i++)
		size += fields[i] == NULL ? 0 : strlen(fields[i]) + 1;
	row = MemoryContextAllocHuge(chunk.context, size);
	text = (char *) &row[reader->count];
	for (int i = 0; i < reader->count; i++)
	{
		row[i] = fields[i] == NULL ? NULL : text;
		if (fields[i] != NULL)
			text = stpcpy(text, fields[i]) + 1;
	}
	chunk.rows = lappend(chunk.rows, row);
	chunk.size += size;
	MemoryContextSwitchTo(old);
	if (list_length(chunk.rows) >= chunk.enough || chunk.size >= CHUNK_BYTES)
		join_chunk(apply, reader);
}

/* Those of the gathered rows that are joined in one subtransaction. */
typedef struct RowsToJoin
{
	ReplMlApply *apply;
	RowReader  *reader;
	int			from;
	int			to;				/* the first one that is not */
} RowsToJoin;

/* Joins some of the gathered rows, as the step of try_to_join. */
static void
join_some(void *argument)
{
	RowsToJoin *some = argument;

	if (!some->reader->joining)
		repl_ml_locked_watch(false);
	for (int i = some->from; i < some->to; i++)
	{
		CHECK_FOR_INTERRUPTS();
		join_one(some->apply, some->reader, list_nth(chunk.rows, i));
	}
	repl_ml_locked_unwatch();
}

/*
 * Joins some of the gathered rows in a subtransaction; returns the error that it failed with
 * for good, or NULL.  For a lock it waits once: the copy holds others' up.  But
 * a node that joins has nothing else to do, and copies again rather than be
 * ready without the row.
 */
static ErrorData *
try_to_join(ReplMlApply *apply, RowReader *reader, int from, int to)
{
	RowsToJoin	some = {.apply = apply,.reader = reader,.from = from,.to = to};
	ErrorData  *error = repl_ml_targets_try(join_some, &some);

	if (error != NULL && !reader->joining && repl_ml_locked_is_race(error->sqlerrcode))
	{
		repl_ml_locked_note(0);
		repl_ml_locked_unwatch();
		(void) repl_ml_locked_describe(error);
		return error;
	}
	repl_ml_locked_unwatch();
	if (error != NULL && (repl_ml_locked_is_race(error->sqlerrcode) ||
						  !repl_ml_dispatch_is_permanent(error->sqlerrcode)))
		ReThrowError(error);
	return error;
}

/* Parks a copied row as if it had come in the stream. */
static void
park_row(ReplMlApply *apply, RowReader *reader, char **fields, ErrorData *error)
{
	Relation	rel = reader->rel;
	ReplMlSource source = {.node = apply->peer->node_id};
	LogicalRepRelation remote = {.remoteid = COPIED_TABLE_ID,.natts = reader->count};
	LogicalRepTupleData row = {.ncols = reader->count};
	List	   *columns = NIL;

	remote.nspname = get_namespace_name(RelationGetNamespace(rel));
	remote.relname = RelationGetRelationName(rel);
	remote.attnames = palloc(reader->count * sizeof(char *));
	remote.atttyps = palloc(reader->count * sizeof(Oid));
	row.colvalues = palloc0(reader->count * sizeof(StringInfoData));
	row.colstatus = palloc(reader->count);
	for (int i = 0; i < reader->count; i++)
	{
		Form_pg_attribute att = TupleDescAttr(RelationGetDescr(rel), reader->attnums[i] - 1);
		ReplMlColumn *column = palloc0(sizeof(ReplMlColumn));

		remote.attnames[i] = NameStr(att->attname);
		remote.atttyps[i] = att->atttypid;
		row.colstatus[i] = fields[i] == NULL ? LOGICALREP_COLUMN_NULL : LOGICALREP_COLUMN_TEXT;
		row.colvalues[i].data = fields[i];
		row.colvalues[i].len = fields[i] == NULL ? 0 : strlen(fields[i]);
		*column = repl_ml_column_describe(RelationGetRelid(rel), att);
		columns = lappend(columns, column);
	}
	repl_ml_relation_remember(&remote, columns, false);
	repl_ml_park(&source, repl_ml_relation_find(COPIED_TABLE_ID), 'I', &row, error, false);
	CommandCounterIncrement();
}

/* Says whether the error is of a row's values, so that others may fit. */
static bool
is_of_the_row(int sqlstate)
{
	return ERRCODE_TO_CATEGORY(sqlstate) == ERRCODE_DATA_EXCEPTION ||
		ERRCODE_TO_CATEGORY(sqlstate) == ERRCODE_INTEGRITY_CONSTRAINT_VIOLATION;
}

/*
 * Joins some of the gathered rows each by itself, and parks those that fail.
 * Where many fail in a row, and not for their values, it is the table's error,
 * and raised.
 */
static void
join_singly(ReplMlApply *apply, RowReader *reader, int from, int to)
{
	for (int i = from; i < to; i++)
	{
		ErrorData  *error = try_to_join(apply, reader, i, i + 1);

		if (error == NULL)
			chunk.failures = 0;
		else if (!is_of_the_row(error->sqlerrcode) && ++chunk.failures > MOST_FAILURES)
			ReThrowError(error);
		else
			park_row(apply, reader, list_nth(chunk.rows, i), error);
	}
}

/*
 * Joins the rows that have been gathered: together, or, if that fails, in
 * pieces, and a piece that fails row by row.
 */
static void
join_chunk(ReplMlApply *apply, RowReader *reader)
{
	int			count = list_length(chunk.rows);

	if (count == 0 || try_to_join(apply, reader, 0, count) == NULL)
	{
		chunk.failures = 0;
		chunk.enough = Min(chunk.enough * 2, MOST_CHUNK_ROWS);
	}
	else
	{
		chunk.enough = CHUNK_ROWS;
		for (int from = 0; from < count; from += CHUNK_ROWS)
		{
			int			to = Min(from + CHUNK_ROWS, count);

			if (count <= CHUNK_ROWS || try_to_join(apply, reader, from, to) != NULL)
				join_singly(apply, reader, from, to);
			else
				chunk.failures = 0;
		}
	}
	forget_chunk();
}

/* Joins a row of a user's table, or of one of our lists. */
static void
join_copied_row(ReplMlApply *apply, Relation rel, Datum *values, bool *nulls)
{
	ReplMlSource source = {.node = apply->peer->node_id,.copied = !repl_ml_identity()->joining};
	TupleTableSlot *slot = repl_ml_targets_get(RelationGetRelid(rel))->incoming;
	int			natts = slot->tts_tupleDescriptor->natts;

	ExecClearTuple(slot);
	memcpy(slot->tts_values, values, natts * sizeof(Datum));
	memcpy(slot->tts_isnull, nulls, natts * sizeof(bool));
	ExecStoreVirtualTuple(slot);
	if (RelationGetRelid(rel) == repl_ml_catalog_oid("replicated_table"))
		repl_ml_relation_meet(slot);
	repl_ml_row_join(RelationGetRelid(rel), slot, &source);
}

/*
 * Joins a row of repl_ml.tombstone.  One whose key cannot be looked for here,
 * because the table has other columns now, is kept as it came.
 */
static void
join_tombstone(ReplMlApply *apply, Datum *values, bool *nulls)
{
	CopiedVersion copied = {
		.relid = repl_ml_table_local(NameStr(*DatumGetName(values[0])),
									 NameStr(*DatumGetName(values[1]))),
		.key = values[2],.columns = values[3],
		.eviction = nulls[6] ? NULL : DatumGetCString(DirectFunctionCall1(jsonb_out, values[6])),
		.clock = DatumGetReplMlClockP(values[8]),
		.source = {.node = apply->peer->node_id}
	};
	ReplMlTable *table;

	if (!OidIsValid(copied.relid))
		return;
	table = repl_ml_targets_get(copied.relid)->table;
	if (repl_ml_shape_is(table, copied.columns))
		join_copied_deletion(&copied);
	else if (!try_copied(join_copied_deletion, &copied))
		repl_ml_tombstone_keep(repl_ml_targets_get(copied.relid)->table, copied.columns, copied.key,
							   copied.clock, copied.eviction);
}

/*
 * Joins a row of repl_ml.concurrent_version: what one of the copied rows was
 * resolved from.  Joined by itself, so that it is resolved here as well; of
 * one that does not fit the table as it is now there is the row only.  One that
 * is older than the tombstones that this node has removed has been here: where
 * it is not any more, the peer's set is stale.
 */
static void
join_version(ReplMlApply *apply, Datum *values, bool *nulls)
{
	CopiedVersion copied = {
		.relid = repl_ml_table_local(NameStr(*DatumGetName(values[0])),
									 NameStr(*DatumGetName(values[1]))),
		.key = values[2],.columns = values[3],.content = nulls[5] ? (Datum) 0 : values[5],
		.eviction = nulls[6] ? NULL : DatumGetCString(DirectFunctionCall1(jsonb_out, values[6])),
		.clock = DatumGetReplMlClockP(values[7]),
		.source = {.node = apply->peer->node_id}
	};

	if (OidIsValid(copied.relid) &&
		!repl_ml_tombstone_collected(repl_ml_identity()->node_id, copied.clock))
		(void) try_copied(nulls[5] ? join_copied_deletion : join_copied_version, &copied);
}

/* Joins a deletion, as a step of try_copied. */
static void
join_copied_deletion(void *argument)
{
	CopiedVersion *copied = argument;

	repl_ml_deletion_join(copied->relid, copied->columns, copied->key, copied->clock,
						  copied->eviction, &copied->source);
}

/* Joins a live version, as a step of try_copied. */
static void
join_copied_version(void *argument)
{
	CopiedVersion *copied = argument;
	ReplMlTarget *target = repl_ml_targets_get(copied->relid);
	TupleTableSlot *row;
	ReplMlUser	saved;

	repl_ml_become_owner(target->rel, &saved);
	row = repl_ml_version_to_slot(copied->content, RelationGetDescr(target->rel));
	row->tts_values[target->table->clock_attnum - 1] = PointerGetDatum(copied->clock);
	row->tts_isnull[target->table->clock_attnum - 1] = false;
	ExecCopySlot(target->incoming, row);
	repl_ml_become_self(&saved);
	repl_ml_row_join(copied->relid, target->incoming, &copied->source);
}

/*
 * Does a step in a subtransaction; returns false if it fails in a way that
 * trying again would not mend.
 */
static bool
try_copied(void (*step) (void *argument), CopiedVersion *copied)
{
	ErrorData  *error = repl_ml_targets_try(step, copied);

	if (error != NULL && !repl_ml_dispatch_is_permanent(error->sqlerrcode))
		ReThrowError(error);
	return error == NULL;
}

/*
 * Gives core's COPY the bytes it asks for: waits for the peer, but not longer
 * than its timeout.
 */
static int
read_copy(void *out, int min, int max)
{
	int			got = 0;

	while (got < min)
	{
		pgsocket	fd = PGINVALID_SOCKET;
		int			length;

		if (copy_left > 0)
		{
			length = Min(copy_left, max - got);
			memcpy((char *) out + got, copy_buffer, length);
			copy_buffer += length;
			copy_left -= length;
			got += length;
			continue;
		}
		CHECK_FOR_INTERRUPTS();
		length = walrcv_receive(copy_source, &copy_buffer, &fd);
		if (length > 0)
			copy_left = length;
		else if (length < 0)
			return got;
		else
		{
			if ((WaitLatchOrSocket(MyLatch,
								   WL_SOCKET_READABLE | WL_LATCH_SET | WL_TIMEOUT |
								   WL_EXIT_ON_PM_DEATH,
								   fd, Max(wal_receiver_timeout, 1000),
								   wait_event_compat("ReplMlCopy")) & WL_TIMEOUT) &&
				wal_receiver_timeout > 0)
				ereport(ERROR,
						(errcode(ERRCODE_CONNECTION_FAILURE),
						 errmsg("the peer sends no rows of a copy"),
						 errhint("Check the network to that node, or raise \"%s\".",
								 "wal_receiver_timeout")));
			ResetLatch(MyLatch);
		}
	}
	return got;
}

/*
 * Sets how far the peer had applied a dropped node: 0/0 if it came later.
 * Returns false while it may still go on.
 */
static bool
ask_final_lsn(ReplMlApply *apply, int node_id, XLogRecPtr *lsn)
{
	static const Oid types[1] = {PG_LSNOID};
	ReplMlResult *result = repl_ml_stream_query(apply->connection.stream,
												psprintf("SELECT repl_ml.final_lsn(%d)", node_id),
												1, types);
	bool		known = false;

	if (repl_ml_stream_next(result))
	{
		slot_getallattrs(result->slot);
		known = !result->slot->tts_isnull[0];
		if (known)
			*lsn = DatumGetLSN(result->slot->tts_values[0]);
	}
	repl_ml_stream_free(result);
	return known;
}

/*
 * Notes that the peer's part of a dropped node is known; orders a copy if it
 * has more.
 */
static void
settle_dropped(ReplMlApply *apply, int node_id, XLogRecPtr theirs)
{
	repl_ml_begin();
	SPI_execute(psprintf("SELECT repl_ml.order_copies(%d) FROM repl_ml.dropped_node d"
						 " WHERE d.node_id OPERATOR(pg_catalog.=) %d"
						 " AND d.applied_lsn OPERATOR(pg_catalog.<) '%X/%X'::pg_catalog.pg_lsn",
						 apply->peer->node_id, node_id, LSN_FORMAT_ARGS(theirs)), false, 0);
	SPI_execute(psprintf("UPDATE repl_ml.dropped_node"
						 " SET compared = compared OPERATOR(pg_catalog.||) %d"
						 " WHERE node_id OPERATOR(pg_catalog.=) %d", apply->peer->node_id, node_id),
				false, 0);
	repl_ml_commit();
	MemoryContextSwitchTo(apply->message_context);
}

/*
 * Compares with the peer, before it streams, how much each has of dropped
 * nodes: one may have reached one member and not another before it died.
 * Whoever has less of it copies all tables from the peer that has more.
 */
void
repl_ml_sync_dropped(ReplMlApply *apply)
{
	List	   *nodes = NIL;
	ListCell   *lc;

	repl_ml_begin();
	SPI_execute(psprintf("SELECT node_id FROM repl_ml.dropped_node"
						 " WHERE %d OPERATOR(pg_catalog.<>) ALL (compared)", apply->peer->node_id),
				true, 0);
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		MemoryContext old = MemoryContextSwitchTo(apply->message_context);

		nodes = lappend_int(nodes, pg_strtoint32(repl_ml_spi_text(i, 0)));
		MemoryContextSwitchTo(old);
	}
	repl_ml_commit();
	MemoryContextSwitchTo(apply->message_context);
	foreach(lc, nodes)
	{
		XLogRecPtr	theirs;

		if (ask_final_lsn(apply, lfirst_int(lc), &theirs))
			settle_dropped(apply, lfirst_int(lc), theirs);
	}
}

/* Returns the other members, our link to each, and whether it fails. */
static List *
load_others(ReplMlApply *apply)
{
	List	   *others = NIL;

	SPI_execute(psprintf("SELECT m.node_id, pg_catalog.pg_replication_origin_progress(o.roname,"
						 " false), w.errors OPERATOR(pg_catalog.>) 0"
						 " FROM repl_ml.member m LEFT JOIN pg_catalog.pg_replication_origin o"
						 " ON o.roname OPERATOR(pg_catalog.=) repl_ml.link_name(m.node_id)"
						 " LEFT JOIN repl_ml.worker_stats() w"
						 " ON w.peer OPERATOR(pg_catalog.=) m.node_id"
						 " WHERE m.state OPERATOR(pg_catalog.=) 'ready'"
						 " AND m.node_id OPERATOR(pg_catalog.<>) %d"
						 " AND m.node_id OPERATOR(pg_catalog.<>) %d",
						 apply->peer->node_id, apply->self), true, 0);
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		char	   *lsn = repl_ml_spi_text(i, 1);
		char	   *fails = repl_ml_spi_text(i, 2);
		MemoryContext old = MemoryContextSwitchTo(apply->message_context);
		OtherMember *other = palloc0(sizeof(OtherMember));

		other->node_id = atoi(repl_ml_spi_text(i, 0));
		other->from = lsn == NULL ? InvalidXLogRecPtr :
			DatumGetLSN(DirectFunctionCall1(pg_lsn_in, CStringGetDatum(lsn)));
		other->fails = fails != NULL && strcmp(fails, "t") == 0;
		others = lappend(others, other);
		MemoryContextSwitchTo(old);
	}
	return others;
}

/*
 * Says whether the donor has everything that the other member wrote before we
 * linked to it.
 */
static bool
donor_has(ReplMlApply *apply, OtherMember *other)
{
	static const Oid types[1] = {BOOLOID};
	ReplMlResult *result;
	bool		has;

	if (other->from == InvalidXLogRecPtr)
		return false;
	result = repl_ml_stream_query(apply->connection.stream,
								  psprintf("SELECT repl_ml.applied_lsn(%d) OPERATOR(pg_catalog.>=)"
										   " '%X/%X'::pg_catalog.pg_lsn",
										   other->node_id, LSN_FORMAT_ARGS(other->from)), 1, types);
	has = repl_ml_stream_next(result) &&
		(slot_getallattrs(result->slot), DatumGetBool(result->slot->tts_values[0]));
	repl_ml_stream_free(result);
	return has;
}

/*
 * Looks at all others once; returns false while it is worth waiting for one of
 * them.
 */
static bool
donor_is_settled(ReplMlApply *apply, List *others)
{
	bool		settled = true;
	ListCell   *lc;

	foreach(lc, others)
	{
		OtherMember *other = lfirst(lc);

		other->donor_has_it = donor_has(apply, other);
		/* one that was never reached is down: nothing to wait for */
		if (!other->donor_has_it && !(other->fails && other->from == InvalidXLogRecPtr))
			settled = false;
	}
	return settled;
}

/*
 * Orders what the donor lacks of a member from that member, and begins to
 * copy.
 */
static void
stop_waiting(List *others)
{
	ListCell   *lc;

	repl_ml_begin();
	foreach(lc, others)
	{
		OtherMember *other = lfirst(lc);

		if (!other->donor_has_it)
			SPI_execute(psprintf("SELECT repl_ml.order_copies(%d)", other->node_id), false, 0);
	}
	SPI_execute("UPDATE repl_ml.local_node SET state = 'copying'"
				" WHERE state OPERATOR(pg_catalog.=) 'joining'", false, 0);
	repl_ml_commit();
}

/*
 * Notes what the donor has parked, or put aside: it will not be in the copy,
 * nor come in our streams, so for us it is as if it had been counted here, and
 * the tables are copied from where it comes, as soon as they fit (retry.c).
 */
static void
note_parked_there(ReplMlApply *apply)
{
	static const Oid result_types[1] = {TEXTOID};
	ReplMlResult *result = repl_ml_stream_query(apply->connection.stream,
												"SELECT coalesce(pg_catalog.jsonb_agg(p),"
												" '[]')::pg_catalog.text"
												" FROM repl_ml.parked_tables() p",
												1, result_types);
	Oid			types[1] = {TEXTOID};
	Datum		values[1] = {CStringGetTextDatum("[]")};

	if (repl_ml_stream_next(result) &&
		(slot_getallattrs(result->slot), !result->slot->tts_isnull[0]))
	{
		MemoryContextSwitchTo(apply->message_context);
		values[0] = CStringGetTextDatum(TextDatumGetCString(result->slot->tts_values[0]));
	}
	repl_ml_stream_free(result);
	StartTransactionCommand();
	repl_ml_spi_execute("INSERT INTO repl_ml.parked_change (origin_node, origin_xid, origin_lsn,"
						" schema_name, table_name, action, change, sqlstate, message)"
						" SELECT p.origin_node, p.origin_xid, p.origin_lsn, p.schema_name,"
						" p.table_name, 'counted', '{\"changes\": 1}', '55000',"
						" 'the node that this one was copied from had not applied it yet'"
						" FROM pg_catalog.jsonb_to_recordset($1::pg_catalog.jsonb) p"
						" (origin_node int, origin_xid xid, origin_lsn pg_lsn,"
						" schema_name name, table_name name)"
						" ON CONFLICT DO NOTHING", 1, types, values, NULL);
	CommitTransactionCommand();
	MemoryContextSwitchTo(apply->message_context);
}

/*
 * Waits, between the slots and the copy, while this node joins and this peer
 * is the donor, until the donor has what the slots of the others do not keep
 * for us.  A member that cannot be reached is not waited for; it is copied
 * from when it is back (link.c), as is one the donor does not catch up with.
 */
void
repl_ml_sync_await_donor(ReplMlApply *apply)
{
	TimestampTz start = GetCurrentTimestamp();
	bool		concerned;
	List	   *others;

	repl_ml_begin();
	concerned = repl_ml_query_int(psprintf("SELECT 1 FROM repl_ml.local_node"
										   " WHERE state OPERATOR(pg_catalog.=) 'joining'"
										   " AND donor OPERATOR(pg_catalog.=) %d",
										   apply->peer->node_id)) != 0;
	repl_ml_commit();
	if (!concerned)
		return;

	for (;;)
	{
		repl_ml_begin();
		others = load_others(apply);
		repl_ml_commit();
		if (donor_is_settled(apply, others) ||
			TimestampDifferenceExceeds(start, GetCurrentTimestamp(), DONOR_PATIENCE_MS))
			break;
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, POLL_MS,
						 wait_event_compat("ReplMlDonor"));
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
	}
	note_parked_there(apply);
	stop_waiting(others);
}
