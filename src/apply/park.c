/*
 * park.c
 *		Changes that cannot be applied: kept with their error.
 *
 * A change is kept as it came, values by the names of their columns, with what
 * those columns were.  Beyond repl_ml.parked_limit changes of a table are
 * counted only.
 *
 * Not here: when a change is parked (change.c, aside.c, copy/rows.c), and
 * trying it again (again.c).  Takes no lock but those of the catalog.
 */
#include "postgres.h"

#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "mb/pg_wchar.h"
#include "utils/builtins.h"
#include "utils/json.h"
#include "utils/lsyscache.h"
#include "utils/pg_lsn.h"
#include "utils/snapmgr.h"

#include "apply/apply.h"
#include "compat.h"
#include "row/row.h"
#include "server/server.h"
#include "wire/wire.h"

#define LOG_INTERVAL_MS		60000
#define LARGEST_VALUE		(64 * 1024 * 1024)	/* of a change that is kept */

static void log_parked(ReplMlRemoteTable *table, const char *action, const char *schema_name,
					   const char *table_name,
					   const ErrorData *error);
static bool is_too_much(LogicalRepTupleData *tuple);
static void write_parked(const ReplMlSource *source, const char *schema_name,
						 const char *table_name, const char *action,
						 const char *change, const char *columns, const ErrorData *error,
						 bool put_aside);
static char *write_columns(ReplMlRemoteTable *table);
static char *write_values(ReplMlRemoteTable *table, LogicalRepTupleData *tuple);

/*
 * Keeps a change, as it came, with the error it failed with; a deletion under
 * its table.  For change.c and copies, in their transaction.  One put aside
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

	if (repl_ml_relation_is_of_tombstones(table))
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
				 repl_ml_relation_is_of_tombstones(table) ? NULL : write_columns(table), error,
				 put_aside);
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

	/* what is counted only has one row for each node and table, which goes on counting */
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

/* Returns the bytes as two digits each, after \x. */
static char *
write_digits(const StringInfoData *value)
{
	char	   *digits = palloc(value->len * 2 + 3);

	strcpy(digits, "\\x");
	digits[2 + hex_encode(value->data, value->len, digits + 2)] = '\0';
	return digits;
}

/* A value that came in binary form. */
typedef struct BinaryValue
{
	ReplMlRemoteTable *table;
	LogicalRepTupleData *tuple;
	int			column;
	char	   *text;
} BinaryValue;

/* A step of repl_ml_attempt: has the value's type read and write it. */
static void
read_binary(void *argument)
{
	BinaryValue *it = argument;

	it->text = repl_ml_relation_column(it->table, it->tuple, it->column);
}

/*
 * Returns a value that came in binary form as text, or its bytes if its type
 * does not read them.
 */
static char *
write_binary(ReplMlRemoteTable *table, LogicalRepTupleData *tuple, int column)
{
	BinaryValue it = {.table = table,.tuple = tuple,.column = column};

	return repl_ml_attempt(read_binary, &it) == NULL ? it.text :
		write_digits(&tuple->colvalues[column]);
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

