/*
 * park.c
 *		Changes that cannot be applied: kept with their error, tried again.
 *
 * A change is kept as it came, values by the names of their columns, with what
 * those columns were.  Beyond repl_ml.parked_limit changes of a table are
 * counted only.  When they are tried again is up to copy/retry.c, and to people.
 *
 * Not here: when a change is parked (dispatch.c, aside.c, copy/rows.c).  Locks:
 * an apply worker locks the row of a parked change while it tries it.
 */
#include "postgres.h"

#include "access/table.h"
#include "access/tableam.h"
#include "access/transam.h"
#include "access/xact.h"
#include "catalog/namespace.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "nodes/makefuncs.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/json.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/pg_lsn.h"
#include "utils/snapmgr.h"

#include "apply/apply.h"
#include "compat.h"
#include "converge/converge.h"
#include "row/row.h"
#include "server/server.h"
#include "wire/wire.h"

/* id under which a parked table is known while its change is tried again */
#define PARKED_TABLE_ID		1

#define LOG_INTERVAL_MS		60000
#define LARGEST_VALUE		(64 * 1024 * 1024)	/* of a change that is kept */

/* A parked change in the form it came in. */
typedef struct ParkedChange
{
	ReplMlApply apply;
	LogicalRepTupleData tuple;
} ParkedChange;

static void log_parked(ReplMlRemoteTable *table, const char *action, const char *schema_name,
					   const char *table_name,
					   const ErrorData *error);
static bool is_of_tombstones(ReplMlRemoteTable *table);
static bool is_too_much(LogicalRepTupleData *tuple);
static void write_parked(const ReplMlSource *source, const char *schema_name,
						 const char *table_name, const char *action,
						 const char *change, const char *columns, const ErrorData *error,
						 bool put_aside);
static char *write_columns(ReplMlRemoteTable *table);
static char *find_unfit_column(ParkedChange *change, bool *lacks);
static bool is_counted(int64 id);
static void require_fit(int64 id, ParkedChange *change);
static char *write_values(ReplMlRemoteTable *table, LogicalRepTupleData *tuple);
static bool write_loser(int64 id);
static void run_deferred_triggers(void);
static void require_was_parked(int64 id);
static bool load_change(int64 id, ReplMlApply *apply, LogicalRepTupleData *tuple);
static void apply_change(void *argument);
static ReplMlColumn *load_column(int i, const char *name);
static void delete_parked(int64 id);

/*
 * Keeps a change, as it came, with the error it failed with; a deletion under
 * its table.  For dispatch.c and copies, in their transaction.  One put aside
 * (aside.c) is tried again without a person.  What would fill the disk is
 * counted only: the table is copied when it fits again (copy/retry.c).
 */
void
repl_ml_park(const ReplMlSource *source, ReplMlRemoteTable *table, char action,
			 LogicalRepTupleData *tuple, ErrorData *error, bool put_aside)
{
	const char *schema_name = table->remote.nspname;
	const char *table_name = table->remote.relname;
	const char *action_name = action == 'I' ? "insert" : "update";

	if (is_of_tombstones(table))
	{
		schema_name = repl_ml_relation_text(table, tuple, "schema_name");
		table_name = repl_ml_relation_text(table, tuple, "table_name");
		action_name = "delete";
	}

	/* what is put aside counts as applied, so it is kept whatever it takes */
	if (!put_aside && strcmp(schema_name, REPL_ML_SCHEMA) != 0 && is_too_much(tuple))
		action_name = "counted";
	write_parked(source, schema_name, table_name, action_name,
				 strcmp(action_name, "counted") == 0 ? "{\"changes\": 1}" :
				 write_values(table, tuple),
				 is_of_tombstones(table) ? NULL : write_columns(table), error, put_aside);
	if (put_aside)
		return;
	if (error->sqlerrcode == ERRCODE_LOCK_NOT_AVAILABLE)
		repl_ml_apply_retry_locked();
	else
		repl_ml_apply_retry_soon();
	log_parked(table, action_name, schema_name, table_name, error);
}

/*
 * Says whether keeping the change would take more of the disk than parked
 * changes may have.
 */
static bool
is_too_much(LogicalRepTupleData *tuple)
{
	Relation	rel = table_open(repl_ml_catalog_oid("parked_change"), AccessShareLock);
	uint64		size = table_relation_size(rel, MAIN_FORKNUM);

	if (OidIsValid(rel->rd_rel->reltoastrelid))
	{
		Relation	toast = table_open(rel->rd_rel->reltoastrelid, AccessShareLock);

		size += table_relation_size(toast, MAIN_FORKNUM);
		table_close(toast, NoLock);
	}
	table_close(rel, NoLock);
	for (int i = 0; i < tuple->ncols; i++)
	{
		if (tuple->colstatus[i] == LOGICALREP_COLUMN_TEXT ||
			tuple->colstatus[i] == LOGICALREP_COLUMN_BINARY)
		{
			size += tuple->colvalues[i].len;
			/* jsonb would not take it either */
			if (tuple->colvalues[i].len > LARGEST_VALUE)
				return true;
		}
	}
	return size >= (uint64) repl_ml_parked_limit * 1024 * 1024;
}

/* Writes one row, or one more in that of the changes that are only counted. */
static void
write_parked(const ReplMlSource *source, const char *schema_name, const char *table_name,
			 const char *action,
			 const char *change, const char *columns, const ErrorData *error, bool put_aside)
{
	static SPIPlanPtr insert = NULL;
	Oid			types[12] = {INT4OID, XIDOID, PG_LSNOID, TEXTOID, TEXTOID, TEXTOID, TEXTOID,
	TEXTOID, TEXTOID, TEXTOID, BOOLOID, TEXTOID};
	Datum		values[12];
	char		nulls[13] = "            ";

	values[0] = Int32GetDatum(source->node);
	values[1] = TransactionIdGetDatum(source->xid);
	values[2] = LSNGetDatum(source->lsn);
	values[3] = CStringGetTextDatum(schema_name);
	values[4] = CStringGetTextDatum(table_name);
	values[5] = CStringGetTextDatum(action);
	values[6] = CStringGetTextDatum(change);
	values[7] = CStringGetTextDatum(unpack_sql_state(error->sqlerrcode));
	values[8] = CStringGetTextDatum(error->message);
	nulls[9] = error->detail == NULL ? 'n' : ' ';
	values[9] = error->detail == NULL ? (Datum) 0 : CStringGetTextDatum(error->detail);
	values[10] = BoolGetDatum(put_aside);
	nulls[11] = columns == NULL ? 'n' : ' ';
	values[11] = columns == NULL ? (Datum) 0 : CStringGetTextDatum(columns);

	PushActiveSnapshot(GetTransactionSnapshot());
	SPI_connect();
	if (SPI_execute_plan(repl_ml_spi_plan(&insert, "INSERT INTO repl_ml.parked_change AS p"
										  " (origin_node, origin_xid, origin_lsn, "
										  "schema_name,"
										  " table_name, action, change, sqlstate, message,"
										  " detail, put_aside, columns)"
										  " VALUES ($1, $2, $3, $4::pg_catalog.name,"
										  " $5::pg_catalog.name, $6, $7::pg_catalog.jsonb,"
										  " $8, $9,"
										  " $10, $11, $12::pg_catalog.jsonb)"
										  " ON CONFLICT (origin_node, schema_name, "
										  "table_name)"
										  " WHERE action OPERATOR(pg_catalog.=) 'counted'"
										  " DO UPDATE SET change ="
										  " pg_catalog.jsonb_build_object('changes',"
										  " (p.change OPERATOR(pg_catalog.->>)"
										  " 'changes')::bigint"
										  " OPERATOR(pg_catalog.+) 1),"
										  " origin_xid = excluded.origin_xid,"
										  " origin_lsn = excluded.origin_lsn,"
										  " sqlstate = excluded.sqlstate,"
										  " message = excluded.message, detail = "
										  "excluded.detail",
										  12, types), values, nulls, false, 0) < 0)
		elog(ERROR, "SPI failed");
	SPI_finish();
	PopActiveSnapshot();
}

/*
 * Returns what the columns of the change are where it comes from: of each the
 * type, its modifier, and the identity (row/column.c).  So it can be told
 * later whether a column of that name is the same.  Kept with the table until
 * something changes; NULL if it is not known.
 */
static char *
write_columns(ReplMlRemoteTable *table)
{
	StringInfoData json;

	if (table->columns != NULL || table->described == NULL)
		return table->columns;
	initStringInfo(&json);
	for (int i = 0; i < table->remote.natts; i++)
	{
		const ReplMlColumn *column = &table->described[i];

		appendStringInfoChar(&json, i == 0 ? '{' : ',');
		escape_json(&json, table->remote.attnames[i]);
		appendStringInfoString(&json, ":[");
		escape_json(&json, column->type);
		appendStringInfo(&json, ",%d,", column->typmod);
		escape_json(&json, column->identity);
		appendStringInfoChar(&json, ']');
	}
	appendStringInfoChar(&json, '}');
	table->columns = MemoryContextStrdup(table->description, json.data);
	return table->columns;
}

/* Tells the server's log, but not of each of many changes. */
static void
log_parked(ReplMlRemoteTable *table, const char *action, const char *schema_name,
		   const char *table_name,
		   const ErrorData *error)
{
	TimestampTz now = GetCurrentTimestamp();

	if (!TimestampDifferenceExceeds(table->logged_at, now, LOG_INTERVAL_MS))
		return;
	table->logged_at = now;
	ereport(LOG,
			(errmsg("a change (\"%s\") of table \"%s.%s\" is parked: %s",
					action, schema_name, table_name, error->message),
			 errdetail("Further changes of the table that are parked within a minute are not "
					   "logged."),
			 errhint("See SELECT * FROM repl_ml.parked_changes.")));
}

/* Says whether the table's rows stand for deletions. */
static bool
is_of_tombstones(ReplMlRemoteTable *table)
{
	return strcmp(table->remote.nspname, REPL_ML_SCHEMA) == 0 &&
		strcmp(table->remote.relname, "tombstone") == 0;
}

/* Returns the bytes as two digits each, after \x. */
static char *
write_digits(const StringInfoData *value)
{
	char	   *digits = palloc(value->len * 2 + 3);

	strcpy(digits, "\\x");
	digits[2 + hex_encode(value->data, value->len, digits + 2)] = '\0';
	return digits;
}

/*
 * Returns a value that came in binary form as text, or its bytes if its type
 * does not read them.
 */
static char *
write_binary(ReplMlRemoteTable *table, LogicalRepTupleData *tuple, int column)
{
	MemoryContext context = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	char	   *volatile text = NULL;

	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(context);
	PG_TRY();
	{
		text = repl_ml_relation_column(table, tuple, column);
		ReleaseCurrentSubTransaction();
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(context);
		FlushErrorState();
		RollbackAndReleaseCurrentSubTransaction();
		text = write_digits(&tuple->colvalues[column]);
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
	CurrentResourceOwner = owner;
	return text;
}

/* Returns a value that came as text; its bytes if they are none. */
static char *
write_text(const StringInfoData *value)
{
	return pg_verifymbstr(value->data, value->len, true) ? value->data : write_digits(value);
}

/*
 * Returns the received columns as a JSON object of strings; one that was not
 * sent is not in it.
 */
static char *
write_values(ReplMlRemoteTable *table, LogicalRepTupleData *tuple)
{
	StringInfoData json;
	bool		first = true;

	initStringInfo(&json);
	appendStringInfoChar(&json, '{');
	for (int i = 0; i < Min(tuple->ncols, table->remote.natts); i++)
	{
		if (tuple->colstatus[i] == LOGICALREP_COLUMN_UNCHANGED)
			continue;
		if (!first)
			appendStringInfoChar(&json, ',');
		first = false;
		escape_json(&json, table->remote.attnames[i]);
		appendStringInfoChar(&json, ':');
		if (tuple->colstatus[i] == LOGICALREP_COLUMN_TEXT)
			escape_json(&json, write_text(&tuple->colvalues[i]));
		else if (tuple->colstatus[i] == LOGICALREP_COLUMN_BINARY)
			escape_json(&json, write_binary(table, tuple, i));
		else
			appendStringInfoString(&json, "null");
	}
	appendStringInfoChar(&json, '}');
	return json.data;
}

/*
 * repl_ml.retry_parked(id): joins a parked change again and forgets it, in the
 * backend of who calls it; of the loser of a conflict it makes a new write, as
 * its values.  What fails is raised, and the change stays.  Does nothing where
 * the apply worker's own retry came first.
 */
PG_FUNCTION_INFO_V1(repl_ml_retry_parked);
Datum
repl_ml_retry_parked(PG_FUNCTION_ARGS)
{
	int64		id = PG_GETARG_INT64(0);
	ParkedChange change = {.apply = {.late = true,.message_context = CurrentMemoryContext}};
	ReplMlPeer	peer = {0};

	repl_ml_refuse_nulls(fcinfo);
	change.apply.self = repl_ml_identity_require()->node_id;
	change.apply.peer = &peer;
	if (is_counted(id))
	{
		repl_ml_shmem_retry_parked(MyDatabaseId);
		PG_RETURN_VOID();
	}
	if (!write_loser(id))
	{
		repl_ml_relation_forget_all();
		if (!load_change(id, &change.apply, &change.tuple))
		{
			require_was_parked(id);
			PG_RETURN_VOID();
		}
		require_fit(id, &change);
		repl_ml_targets_in_session(apply_change, &change);
	}
	delete_parked(id);
	PG_RETURN_VOID();
}

/*
 * Raises an error unless the change was parked when the caller's statement
 * began: that has found it in the view, and an apply worker has retried it
 * since.
 */
static void
require_was_parked(int64 id)
{
	Oid			types[1] = {INT8OID};
	Datum		values[1] = {Int64GetDatum(id)};

	SPI_connect();
	/* "read only" looks with the snapshot of the caller's statement */
	SPI_execute_with_args("SELECT FROM repl_ml.parked_change WHERE id OPERATOR(pg_catalog.=) $1",
						  1, types, values, NULL, true, 1);
	if (SPI_processed == 0)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("parked change " INT64_FORMAT " does not exist", id),
				 errhint("Run SELECT id, message FROM repl_ml.parked_changes.")));
	SPI_finish();
}

/* Says whether it stands for changes that were counted and not kept. */
static bool
is_counted(int64 id)
{
	Oid			types[1] = {INT8OID};
	Datum		values[1] = {Int64GetDatum(id)};

	return repl_ml_spi_execute("SELECT FROM repl_ml.parked_change"
							   " WHERE id OPERATOR(pg_catalog.=) $1"
							   " AND action OPERATOR(pg_catalog.=) 'counted'",
							   1, types, values, NULL) > 0;
}

/*
 * Returns a column of the parked change that was loaded which is none of the
 * table now: renamed, dropped, of another type, or not sent at all.  NULL if
 * there is none; then "lacks" says whether the table has columns that the
 * change has not.
 */
static char *
find_unfit_column(ParkedChange *change, bool *lacks)
{
	ReplMlRemoteTable *remote = repl_ml_relation_find(PARKED_TABLE_ID);

	*lacks = false;
	if (is_of_tombstones(remote))
		return NULL;
	for (int i = 0; i < change->tuple.ncols; i++)
	{
		if (change->tuple.colstatus[i] == LOGICALREP_COLUMN_UNCHANGED)
			return remote->remote.attnames[i];
	}
	return repl_ml_relation_unfit(PARKED_TABLE_ID, lacks);
}

/*
 * Raises an error if the parked change cannot be applied to what the table is
 * now; then it is healed otherwise.
 */
static void
require_fit(int64 id, ParkedChange *change)
{
	bool		lacks;
	char	   *column = find_unfit_column(change, &lacks);

	if (column == NULL)
		return;
	repl_ml_shmem_retry_parked(MyDatabaseId);
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("column \"%s\" of parked change " INT64_FORMAT
					" is not the column of the table it was", column, id),
			 errdetail("It has been renamed, dropped or given another type since, or its value was "
					   "not sent."),
			 errhint("As soon as the table has the same columns on the node the change comes from, "
					 "it is copied from there by itself, and the change is no longer parked.")));
}

/* Says whether the parked version, or one that knew it, is in the table. */
static bool
is_superfluous(ParkedChange *change)
{
	ReplMlRemoteTable *remote = repl_ml_relation_find(PARKED_TABLE_ID);
	Oid			relid;
	ReplMlTarget *target;
	char	   *key[INDEX_MAX_KEYS];
	char	   *clock = NULL;

	if (is_of_tombstones(remote))
		return false;
	relid = repl_ml_table_local(remote->remote.nspname, remote->remote.relname);
	if (!OidIsValid(relid))
		return true;			/* no longer replicated */
	target = repl_ml_targets_get(relid);
	memset(key, 0, sizeof(key));
	for (int j = 0; j < remote->remote.natts; j++)
	{
		const char *name = remote->remote.attnames[j];

		if (strcmp(name, REPL_ML_CLOCK_COLUMN) == 0)
			clock = repl_ml_relation_column(remote, &change->tuple, j);
		for (int i = 0; i < target->table->key_natts; i++)
		{
			if (namestrcmp(&TupleDescAttr(RelationGetDescr(target->rel),
										  target->table->key_attnums[i] - 1)->attname, name) == 0)
				key[i] = repl_ml_relation_column(remote, &change->tuple, j);
		}
	}
	return clock != NULL && repl_ml_row_is_known(relid, key, repl_ml_clock_from_text(clock));
}

/*
 * Tries something parked again in an apply worker, by "step", in a transaction
 * of its own, outside those of the stream, which must not wait: for a lock at
 * most "patience", ms.  Returns the error it failed with, or NULL.
 */
ErrorData *
repl_ml_park_attempt(ReplMlApply *apply, ReplMlParkedTry *try,
					 void (*step) (ReplMlApply *apply, ReplMlParkedTry *try), int patience)
{
	ErrorData  *volatile error = NULL;
	char		lock_timeout[32];

	snprintf(lock_timeout, sizeof(lock_timeout), "%d", patience);
	PG_TRY();
	{
		int			level;

		SetCurrentStatementStartTimestamp();
		StartTransactionCommand();
		level = NewGUCNestLevel();
		(void) set_config_option("lock_timeout", lock_timeout, PGC_SUSET, PGC_S_OVERRIDE,
								 GUC_ACTION_SAVE, true, 0, false);
		PushActiveSnapshot(GetTransactionSnapshot());
		MemoryContextSwitchTo(apply->message_context);
		repl_ml_crash_retries(try->id, try->crashed);
		repl_ml_locked_watch(false);
		step(apply, try);
		repl_ml_locked_unwatch();
		repl_ml_targets_close();
		PopActiveSnapshot();
		AtEOXact_GUC(true, level);
		replorigin_session_origin_lsn = InvalidXLogRecPtr;
		CommitTransactionCommand();

		/* a peer's commit may wait for it: it is flushed soon */
		if (try->state == REPL_ML_PARKED_DONE && apply->progress.volatile_since == 0)
			apply->progress.volatile_since = GetCurrentTimestamp();
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(apply->message_context);
		error = CopyErrorData();
		FlushErrorState();
		AbortOutOfAnyTransaction();
		repl_ml_targets_forget();
		repl_ml_applying = true;
		if (repl_ml_locked_is_race(error->sqlerrcode))
		{
			error->sqlerrcode = ERRCODE_LOCK_NOT_AVAILABLE;
			repl_ml_locked_note(GetCurrentTimestamp());
		}
		repl_ml_locked_unwatch();
	}
	PG_END_TRY();
	repl_ml_crash_rests();
	MemoryContextSwitchTo(apply->message_context);
	CHECK_FOR_INTERRUPTS();
	return error;
}

/*
 * A step of repl_ml_park_attempt: applies a parked change and forgets it if
 * that works.  Columns that it lacks are filled with their defaults only
 * "with_defaults": when the node it comes from has them, too.
 */
void
repl_ml_park_try(ReplMlApply *apply, ReplMlParkedTry *try)
{
	Oid			types[1] = {INT8OID};
	Datum		values[1] = {Int64GetDatum(try->id)};
	ParkedChange change = {.apply = {.late = true,.self = apply->self,
	.message_context = CurrentMemoryContext}};
	ReplMlPeer	peer = {0};
	bool		lacks;

	try->state = REPL_ML_PARKED_GONE;

	if (repl_ml_spi_execute("SELECT FROM repl_ml.parked_change WHERE id OPERATOR(pg_catalog.=) $1"
							" AND NOT put_aside FOR UPDATE SKIP LOCKED",
							1, types, values, NULL) == 0)
		return;

	/* as dispatch.c has it, with the node it came from */
	change.apply.peer = &peer;
	if (!load_change(try->id, &change.apply, &change.tuple))
		return;
	if (!is_superfluous(&change))
	{
		if (find_unfit_column(&change, &lacks) != NULL)
			try->state = REPL_ML_PARKED_UNFIT;
		else if (lacks && !try->with_defaults)
			try->state = REPL_ML_PARKED_LACKS;
		if (try->state != REPL_ML_PARKED_GONE)
			return;
		apply_change(&change);
	}
	delete_parked(try->id);
	try->state = REPL_ML_PARKED_DONE;
	apply->transaction.catalogs_changed |= change.apply.transaction.catalogs_changed;
}

/*
 * Notes what a parked change failed for now, where that is something else than
 * before.
 */
void
repl_ml_park_note(int64 id, ErrorData *error)
{
	Oid			types[4] = {INT8OID, TEXTOID, TEXTOID, TEXTOID};
	Datum		values[4];

	StartTransactionCommand();
	if (error->sqlerrcode == ERRCODE_LOCK_NOT_AVAILABLE && !repl_ml_locked_describe(error))
	{
		CommitTransactionCommand();
		return;
	}
	values[0] = Int64GetDatum(id);
	values[1] = CStringGetTextDatum(unpack_sql_state(error->sqlerrcode));
	values[2] = CStringGetTextDatum(error->message);
	values[3] = error->detail == NULL ? (Datum) 0 : CStringGetTextDatum(error->detail);
	repl_ml_spi_execute("UPDATE repl_ml.parked_change SET sqlstate = $2, message = $3, detail = $4"
						" WHERE id OPERATOR(pg_catalog.=) $1"
						" AND (sqlstate OPERATOR(pg_catalog.<>) $2"
						" OR message OPERATOR(pg_catalog.<>) $3)",
						4, types, values, error->detail == NULL ? "   n" : NULL);
	CommitTransactionCommand();
}

/*
 * Makes a parked change and all others of its table a person's, after trying
 * it again took the server down: copy/retry.c leaves alone what has this
 * SQLSTATE.
 */
void
repl_ml_park_ban(int64 id, const ErrorData *error)
{
	Oid			types[3] = {INT8OID, TEXTOID, TEXTOID};
	Datum		values[3] = {Int64GetDatum(id),
	CStringGetTextDatum(unpack_sql_state(error->sqlerrcode)),
	CStringGetTextDatum(error->message)};

	StartTransactionCommand();
	repl_ml_spi_execute("UPDATE repl_ml.parked_change p"
						" SET sqlstate = $2, message = $3, detail = NULL"
						" FROM repl_ml.parked_change f"
						" WHERE f.id OPERATOR(pg_catalog.=) $1 AND NOT p.put_aside"
						" AND p.action OPERATOR(pg_catalog.=) ANY ('{insert,update,delete}')"
						" AND p.schema_name OPERATOR(pg_catalog.=) f.schema_name"
						" AND p.table_name OPERATOR(pg_catalog.=) f.table_name",
						3, types, values, NULL);
	CommitTransactionCommand();
}

/* Says whether anything of a node's rows of a table is parked. */
bool
repl_ml_park_has(int node_id, const char *schema_name, const char *table_name)
{
	Oid			types[3] = {INT4OID, TEXTOID, TEXTOID};
	Datum		values[3] = {Int32GetDatum(node_id), CStringGetTextDatum(schema_name),
	CStringGetTextDatum(table_name)};

	return repl_ml_spi_execute("SELECT FROM repl_ml.parked_change"
							   " WHERE origin_node OPERATOR(pg_catalog.=) $1"
							   " AND schema_name OPERATOR(pg_catalog.=) $2::pg_catalog.name"
							   " AND table_name OPERATOR(pg_catalog.=) $3::pg_catalog.name"
							   " AND NOT put_aside LIMIT 1", 3, types, values, NULL) > 0;
}

/*
 * A step of repl_ml_park_attempt: applies a change put aside, or "whole" all
 * of its transaction, and forgets it; does nothing if another apply worker has
 * been or is at it.
 */
void
repl_ml_park_retry(ReplMlApply *apply, ReplMlParkedTry *try)
{
	Oid			types[2] = {INT8OID, BOOLOID};
	Datum		values[2] = {Int64GetDatum(try->id), BoolGetDatum(try->whole)};
	MemoryContext context = CurrentMemoryContext;
	int64	   *ids;
	int			count;

	if (repl_ml_spi_execute("SELECT FROM repl_ml.parked_change WHERE id OPERATOR(pg_catalog.=) $1"
							" AND put_aside FOR UPDATE SKIP LOCKED",
							1, types, values, NULL) == 0)
		return;

	/* the lock on this row keeps other workers from the whole transaction */
	SPI_connect();
	SPI_execute_with_args("SELECT p.id FROM repl_ml.parked_change p"
						  " JOIN repl_ml.parked_change f USING (origin_node, origin_lsn)"
						  " WHERE f.id OPERATOR(pg_catalog.=) $1 AND p.put_aside AND ($2"
						  " OR p.id OPERATOR(pg_catalog.=) f.id) ORDER BY p.id",
						  2, types, values, NULL, false, 0);
	count = (int) SPI_processed;
	ids = MemoryContextAlloc(context, Max(count, 1) * sizeof(int64));
	for (int i = 0; i < count; i++)
		ids[i] = strtoll(repl_ml_spi_text(i, 0), NULL, 10);
	SPI_finish();
	for (int i = 0; i < count; i++)
	{
		ParkedChange change = {.apply = {.late = true,.self = apply->self,
		.message_context = context}};
		ReplMlPeer	peer = {0};

		change.apply.peer = &peer;
		if (!load_change(ids[i], &change.apply, &change.tuple))
			continue;
		apply_change(&change);
		delete_parked(ids[i]);
		apply->transaction.catalogs_changed |= change.apply.transaction.catalogs_changed;
	}
}

/*
 * Forgets the parked changes of a node's rows of a table, after the table has
 * been copied from that node, with its tombstones: the copy has brought them
 * or what became of them.
 */
void
repl_ml_park_forget_copied(int node_id, const char *schema_name, const char *table_name)
{
	Oid			types[3] = {INT4OID, TEXTOID, TEXTOID};
	Datum		values[3] = {Int32GetDatum(node_id), CStringGetTextDatum(schema_name),
	CStringGetTextDatum(table_name)};

	repl_ml_spi_execute("DELETE FROM repl_ml.parked_change"
						" WHERE origin_node OPERATOR(pg_catalog.=) $1"
						" AND schema_name OPERATOR(pg_catalog.=) $2::pg_catalog.name"
						" AND table_name OPERATOR(pg_catalog.=) $3::pg_catalog.name"
						" AND action OPERATOR(pg_catalog.=) ANY ('{insert,update,delete,counted}')"
						" AND NOT put_aside",
						3, types, values, NULL);
}

/* Removes a change from what is parked. */
static void
delete_parked(int64 id)
{
	Oid			types[1] = {INT8OID};
	Datum		values[1] = {Int64GetDatum(id)};

	repl_ml_spi_execute("DELETE FROM repl_ml.parked_change WHERE id OPERATOR(pg_catalog.=) $1", 1,
						types, values, NULL);
}

/*
 * Writes the losing version of a conflict as a user would, with the rights of
 * the table's owner: so it gets a clock of its own and goes to all nodes.
 * Returns false if the parked change is not one.
 */
static bool
write_loser(int64 id)
{
	Oid			types[1] = {INT8OID};
	Datum		values[1] = {Int64GetDatum(id)};
	bool		is_loser;

	SPI_connect();
	SPI_execute_with_args("SELECT s.relation::pg_catalog.oid, s.statement"
						  " FROM repl_ml.parked_loser_statement($1) s WHERE s.relation IS NOT NULL",
						  1, types, values, NULL, false, 1);
	is_loser = SPI_processed == 1;
	if (is_loser)
	{
		Relation	rel = table_open(strtoul(repl_ml_spi_text(0, 0), NULL, 10), RowExclusiveLock);
		char	   *statement = repl_ml_spi_text(0, 1);
		ReplMlUser	saved;

		run_deferred_triggers();
		repl_ml_become_owner(rel, &saved);
		SPI_execute(statement, false, 0);
		repl_ml_become_self(&saved);
		table_close(rel, NoLock);
	}
	SPI_finish();
	return is_loser;
}

/*
 * Checks constraints at once for the rest of the transaction, as deferred
 * triggers cannot run as the table's owner at commit.  What the caller has
 * deferred so far runs now, with his rights as it would at his commit.
 */
static void
run_deferred_triggers(void)
{
	Oid			user;
	int			context;

	GetUserIdAndSecContext(&user, &context);
	SetUserIdAndSecContext(GetOuterUserId(), context);
	SPI_execute("SET CONSTRAINTS ALL IMMEDIATE", false, 0);
	SetUserIdAndSecContext(user, context);
}

/* Returns what was kept of a column, from row i of what load_change reads. */
static ReplMlColumn *
load_column(int i, const char *name)
{
	ReplMlColumn *column = palloc0(sizeof(ReplMlColumn));

	column->name = name;
	column->type = pstrdup(repl_ml_spi_text(i, 8));
	column->typmod = pg_strtoint32(repl_ml_spi_text(i, 9));
	column->identity = pstrdup(repl_ml_spi_text(i, 10));
	return column;
}

/*
 * Reads the parked change back into the form it came in; returns false if it
 * is parked no more.
 */
static bool
load_change(int64 id, ReplMlApply *apply, LogicalRepTupleData *tuple)
{
	Oid			types[1] = {INT8OID};
	Datum		values[1] = {Int64GetDatum(id)};
	MemoryContext context = CurrentMemoryContext;
	LogicalRepRelation remote = {.remoteid = PARKED_TABLE_ID};
	List	   *columns = NIL;
	Datum		lsn;
	int			count;

	SPI_connect();
	SPI_execute_with_args("SELECT CASE p.action WHEN 'delete' THEN 'repl_ml' ELSE p.schema_name"
						  " END,"
						  " CASE p.action WHEN 'delete' THEN 'tombstone' ELSE p.table_name END,"
						  " p.origin_node, p.origin_xid, p.origin_lsn,"
						  " x.name, x.value, x.is_missing, x.described OPERATOR(pg_catalog.->>) 0,"
						  " x.described OPERATOR(pg_catalog.->>) 1,"
						  " x.described OPERATOR(pg_catalog.->>) 2"
						  " FROM repl_ml.parked_change p CROSS JOIN LATERAL"
						  " (SELECT coalesce(c.key, d.key), c.value, c.key IS NULL, d.value"
						  " FROM pg_catalog.jsonb_each_text(p.change) c"
						  " FULL JOIN pg_catalog.jsonb_each(p.columns) d"
						  " ON c.key OPERATOR(pg_catalog.=) d.key)"
						  " x (name, value, is_missing, described)"
						  " WHERE p.id OPERATOR(pg_catalog.=) $1", 1, types, values, NULL, false,
						  0);
	count = (int) SPI_processed;
	if (count == 0)
	{
		SPI_finish();
		return false;
	}

	/* a deletion is a row of repl_ml.tombstone, as in the stream */
	MemoryContextSwitchTo(context);
	remote.nspname = pstrdup(repl_ml_spi_text(0, 0));
	remote.relname = pstrdup(repl_ml_spi_text(0, 1));
	apply->peer->node_id = atoi(repl_ml_spi_text(0, 2));
	apply->transaction.xid = strtoul(repl_ml_spi_text(0, 3), NULL, 10);
	lsn = CStringGetDatum(repl_ml_spi_text(0, 4));
	apply->transaction.final_lsn = DatumGetLSN(DirectFunctionCall1(pg_lsn_in, lsn));
	remote.natts = tuple->ncols = count;
	remote.attnames = palloc(count * sizeof(char *));
	tuple->colvalues = palloc0(count * sizeof(StringInfoData));
	tuple->colstatus = palloc(count);
	for (int i = 0; i < count; i++)
	{
		char	   *value = repl_ml_spi_text(i, 6);
		bool		is_missing = strcmp(repl_ml_spi_text(i, 7), "t") == 0;

		remote.attnames[i] = pstrdup(repl_ml_spi_text(i, 5));
		tuple->colstatus[i] = is_missing ? LOGICALREP_COLUMN_UNCHANGED : value == NULL ?
			LOGICALREP_COLUMN_NULL : LOGICALREP_COLUMN_TEXT;
		if (repl_ml_spi_text(i, 8) != NULL)
			columns = lappend(columns, load_column(i, remote.attnames[i]));
		initStringInfo(&tuple->colvalues[i]);
		if (value != NULL)
			appendStringInfoString(&tuple->colvalues[i], value);
	}
	repl_ml_relation_remember(&remote, columns, true);
	SPI_finish();
	return true;
}

/* Joins the parked change that was loaded. */
static void
apply_change(void *argument)
{
	ParkedChange *change = argument;

	repl_ml_dispatch_change(&change->apply, PARKED_TABLE_ID, 'U', &change->tuple);
}
