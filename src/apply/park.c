/*
 * park.c
 *		Changes that cannot be applied: kept with their error, tried again on
 *		request.
 */
#include "postgres.h"

#include "access/table.h"
#include "access/xact.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/json.h"
#include "utils/memutils.h"
#include "utils/pg_lsn.h"
#include "utils/snapmgr.h"

#include "apply/apply.h"
#include "compat.h"
#include "group/query.h"
#include "group/session.h"

/* id under which a parked table is known while its change is tried again */
#define PARKED_TABLE_ID		1

#define LOG_INTERVAL_MS		60000

/* A parked change in the form it came in. */
typedef struct ParkedChange
{
	ReplMlApply apply;
	LogicalRepTupleData tuple;
} ParkedChange;

static void log_parked(ReplMlRemoteTable *table, const char *action, const char *schema_name, const char *table_name,
					   const ErrorData *error);
static bool is_tombstone(ReplMlRemoteTable *table);
static char *tuple_as_json(ReplMlRemoteTable *table, LogicalRepTupleData *tuple);
static bool write_loser(int64 id);
static void defer_nothing(void);
static void load_change(int64 id, ReplMlApply *apply, LogicalRepTupleData *tuple);
static void apply_change(void *argument);
static void forget(int64 id);

/*
 * Keeps a change, as it came, with the error it failed with; a deletion under
 * its table.  One put aside (aside.c) is tried again without a person.
 */
void
repl_ml_park(const ReplMlSource *source, ReplMlRemoteTable *table, char action,
			 LogicalRepTupleData *tuple, ErrorData *error, bool put_aside)
{
	Oid			types[11] = {INT4OID, XIDOID, PG_LSNOID, TEXTOID, TEXTOID, TEXTOID, TEXTOID, TEXTOID, TEXTOID, TEXTOID, BOOLOID};
	Datum		values[11];
	char		nulls[12] = "           ";
	static SPIPlanPtr insert = NULL;

	const char *schema_name = table->remote.nspname;
	const char *table_name = table->remote.relname;
	const char *action_name = action == 'I' ? "insert" : "update";

	if (is_tombstone(table))
	{
		schema_name = repl_ml_relation_text(table, tuple, "schema_name");
		table_name = repl_ml_relation_text(table, tuple, "table_name");
		action_name = "delete";
	}
	values[0] = Int32GetDatum(source->node);
	values[1] = TransactionIdGetDatum(source->xid);
	values[2] = LSNGetDatum(source->lsn);
	values[3] = CStringGetTextDatum(schema_name);
	values[4] = CStringGetTextDatum(table_name);
	values[5] = CStringGetTextDatum(action_name);
	values[6] = CStringGetTextDatum(tuple_as_json(table, tuple));
	values[7] = CStringGetTextDatum(unpack_sql_state(error->sqlerrcode));
	values[8] = CStringGetTextDatum(error->message);
	values[9] = (Datum) 0;
	if (error->detail != NULL)
		values[9] = CStringGetTextDatum(error->detail);
	else
		nulls[9] = 'n';
	values[10] = BoolGetDatum(put_aside);
	PushActiveSnapshot(GetTransactionSnapshot());
	SPI_connect();
	if (SPI_execute_plan(repl_ml_spi_plan(&insert, "INSERT INTO repl_ml.parked_change"
										  " (origin_node, origin_xid, origin_lsn, schema_name, table_name, action, change, sqlstate, message, detail, put_aside)"
										  " VALUES ($1, $2, $3, $4::pg_catalog.name, $5::pg_catalog.name, $6, $7::pg_catalog.jsonb, $8, $9, $10, $11)",
										  11, types), values, nulls, false, 0) < 0)
		elog(ERROR, "SPI failed");
	SPI_finish();
	PopActiveSnapshot();
	if (!put_aside)
		log_parked(table, action_name, schema_name, table_name, error);
}

/* Tells the server's log, but not of each of many changes. */
static void
log_parked(ReplMlRemoteTable *table, const char *action, const char *schema_name, const char *table_name,
		   const ErrorData *error)
{
	TimestampTz now = GetCurrentTimestamp();

	if (!TimestampDifferenceExceeds(table->logged_at, now, LOG_INTERVAL_MS))
		return;
	table->logged_at = now;
	ereport(LOG,
			(errmsg("%s of a row of table \"%s.%s\" is parked: %s",
					action, schema_name, table_name, error->message),
			 errdetail("Further changes of the table that are parked within a minute are not logged."),
			 errhint("See SELECT * FROM repl_ml.parked_changes.")));
}

/* Do the table's rows stand for deletions? */
static bool
is_tombstone(ReplMlRemoteTable *table)
{
	return strcmp(table->remote.nspname, REPL_ML_SCHEMA) == 0 &&
		strcmp(table->remote.relname, "tombstone") == 0;
}

/* The bytes as two digits each, after \x. */
static char *
as_digits(const StringInfoData *value)
{
	char	   *digits = palloc(value->len * 2 + 3);

	strcpy(digits, "\\x");
	digits[2 + hex_encode(value->data, value->len, digits + 2)] = '\0';
	return digits;
}

/* A value that came in binary form: as text, or its bytes if its type does not read them. */
static char *
binary_as_text(ReplMlRemoteTable *table, LogicalRepTupleData *tuple, int column)
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
		text = as_digits(&tuple->colvalues[column]);
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
	CurrentResourceOwner = owner;
	return text;
}

/* The received columns as a JSON object of strings. */
static char *
tuple_as_json(ReplMlRemoteTable *table, LogicalRepTupleData *tuple)
{
	StringInfoData json;

	initStringInfo(&json);
	appendStringInfoChar(&json, '{');
	for (int i = 0; i < Min(tuple->ncols, table->remote.natts); i++)
	{
		if (i > 0)
			appendStringInfoChar(&json, ',');
		escape_json(&json, table->remote.attnames[i]);
		appendStringInfoChar(&json, ':');
		if (tuple->colstatus[i] == LOGICALREP_COLUMN_TEXT)
			escape_json(&json, tuple->colvalues[i].data);
		else if (tuple->colstatus[i] == LOGICALREP_COLUMN_BINARY)
			escape_json(&json, binary_as_text(table, tuple, i));
		else
			appendStringInfoString(&json, "null");
	}
	appendStringInfoChar(&json, '}');
	return json.data;
}

/*
 * repl_ml.retry_parked(id): joins a parked change again and forgets it; of the
 * loser of a conflict it makes a new write, as its values.  What fails is
 * raised, and the change stays.
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
	if (!write_loser(id))
	{
		repl_ml_relation_forget_all();
		load_change(id, &change.apply, &change.tuple);
		repl_ml_apply_in_session(apply_change, &change);
	}
	forget(id);
	PG_RETURN_VOID();
}

/*
 * The same for a change put aside, or for all of its transaction, in an apply
 * worker's transaction; nothing if another worker has been or is at it.  True
 * if the group's catalogs have changed.
 */
bool
repl_ml_park_retry(int64 id, uint16 self, bool whole)
{
	Oid			types[2] = {INT8OID, BOOLOID};
	Datum		values[2] = {Int64GetDatum(id), BoolGetDatum(whole)};
	MemoryContext context = CurrentMemoryContext;
	bool		catalogs_changed = false;
	int64	   *ids;
	int			count;

	if (repl_ml_spi_execute("SELECT FROM repl_ml.parked_change WHERE id OPERATOR(pg_catalog.=) $1 AND put_aside FOR UPDATE SKIP LOCKED",
							1, types, values, NULL) == 0)
		return false;
	SPI_connect();
	SPI_execute_with_args("SELECT p.id FROM repl_ml.parked_change p JOIN repl_ml.parked_change f USING (origin_node, origin_lsn)"
						  " WHERE f.id OPERATOR(pg_catalog.=) $1 AND p.put_aside AND ($2 OR p.id OPERATOR(pg_catalog.=) f.id) ORDER BY p.id",
						  2, types, values, NULL, false, 0);
	count = (int) SPI_processed;
	ids = MemoryContextAlloc(context, Max(count, 1) * sizeof(int64));
	for (int i = 0; i < count; i++)
		ids[i] = strtoll(repl_ml_spi_text(i, 0), NULL, 10);
	SPI_finish();
	for (int i = 0; i < count; i++)
	{
		ParkedChange change = {.apply = {.late = true,.self = self,.message_context = context}};
		ReplMlPeer	peer = {0};

		change.apply.peer = &peer;
		load_change(ids[i], &change.apply, &change.tuple);
		apply_change(&change);
		forget(ids[i]);
		catalogs_changed |= change.apply.transaction.catalogs_changed;
	}
	return catalogs_changed;
}

/*
 * Forgets the parked changes of a node's rows of a table, after the table has
 * been copied from that node: the copy has brought them or what became of them.
 */
void
repl_ml_park_forget_copied(int node_id, const char *schema_name, const char *table_name)
{
	Oid			types[3] = {INT4OID, TEXTOID, TEXTOID};
	Datum		values[3] = {Int32GetDatum(node_id), CStringGetTextDatum(schema_name), CStringGetTextDatum(table_name)};

	repl_ml_spi_execute("DELETE FROM repl_ml.parked_change WHERE origin_node OPERATOR(pg_catalog.=) $1"
						" AND schema_name OPERATOR(pg_catalog.=) $2::pg_catalog.name AND table_name OPERATOR(pg_catalog.=) $3::pg_catalog.name"
						" AND action OPERATOR(pg_catalog.=) ANY ('{insert,update}') AND NOT put_aside",
						3, types, values, NULL);
}

static void
forget(int64 id)
{
	Oid			types[1] = {INT8OID};
	Datum		values[1] = {Int64GetDatum(id)};

	repl_ml_spi_execute("DELETE FROM repl_ml.parked_change WHERE id OPERATOR(pg_catalog.=) $1", 1, types, values, NULL);
}

/*
 * Writes the losing version of a conflict as a user would, with the rights of
 * the table's owner: so it gets a clock of its own and goes to all nodes.
 * False if the parked change is not one.
 */
static bool
write_loser(int64 id)
{
	Oid			types[1] = {INT8OID};
	Datum		values[1] = {Int64GetDatum(id)};
	bool		is_loser;

	SPI_connect();
	SPI_execute_with_args("SELECT s.relation::pg_catalog.oid, s.statement FROM repl_ml.parked_loser_statement($1) s WHERE s.relation IS NOT NULL",
						  1, types, values, NULL, false, 1);
	is_loser = SPI_processed == 1;
	if (is_loser)
	{
		Relation	rel = table_open(strtoul(repl_ml_spi_text(0, 0), NULL, 10), RowExclusiveLock);
		char	   *statement = repl_ml_spi_text(0, 1);
		ReplMlUser	saved;

		defer_nothing();
		repl_ml_become_owner(rel, &saved);
		SPI_execute(statement, false, 0);
		repl_ml_become_self(&saved);
		table_close(rel, NoLock);
	}
	SPI_finish();
	return is_loser;
}

/*
 * Deferred triggers cannot run as the table's owner at commit, so constraints
 * are checked at once for the rest of the transaction.  What the caller has
 * deferred so far runs now, with his rights as it would at his commit.
 */
static void
defer_nothing(void)
{
	Oid			user;
	int			context;

	GetUserIdAndSecContext(&user, &context);
	SetUserIdAndSecContext(GetOuterUserId(), context);
	SPI_execute("SET CONSTRAINTS ALL IMMEDIATE", false, 0);
	SetUserIdAndSecContext(user, context);
}

/* Reads the parked change back into the form it came in. */
static void
load_change(int64 id, ReplMlApply *apply, LogicalRepTupleData *tuple)
{
	Oid			types[1] = {INT8OID};
	Datum		values[1] = {Int64GetDatum(id)};
	MemoryContext context = CurrentMemoryContext;
	LogicalRepRelation remote = {.remoteid = PARKED_TABLE_ID};
	int			count;

	SPI_connect();
	SPI_execute_with_args("SELECT CASE p.action WHEN 'delete' THEN 'repl_ml' ELSE p.schema_name END,"
						  " CASE p.action WHEN 'delete' THEN 'tombstone' ELSE p.table_name END, p.origin_node, p.origin_xid, p.origin_lsn, c.key, c.value"
						  " FROM repl_ml.parked_change p, pg_catalog.jsonb_each_text(p.change) c"
						  " WHERE p.id OPERATOR(pg_catalog.=) $1", 1, types, values, NULL, false, 0);
	count = (int) SPI_processed;
	if (count == 0)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("parked change " INT64_FORMAT " does not exist", id),
				 errhint("Run SELECT id, message FROM repl_ml.parked_changes.")));

	MemoryContextSwitchTo(context);
	remote.nspname = pstrdup(repl_ml_spi_text(0, 0));
	remote.relname = pstrdup(repl_ml_spi_text(0, 1));
	apply->peer->node_id = atoi(repl_ml_spi_text(0, 2));
	apply->transaction.xid = strtoul(repl_ml_spi_text(0, 3), NULL, 10);
	apply->transaction.final_lsn = DatumGetLSN(DirectFunctionCall1(pg_lsn_in, CStringGetDatum(repl_ml_spi_text(0, 4))));
	remote.natts = tuple->ncols = count;
	remote.attnames = palloc(count * sizeof(char *));
	tuple->colvalues = palloc0(count * sizeof(StringInfoData));
	tuple->colstatus = palloc(count);
	for (int i = 0; i < count; i++)
	{
		char	   *value = repl_ml_spi_text(i, 6);

		remote.attnames[i] = pstrdup(repl_ml_spi_text(i, 5));
		tuple->colstatus[i] = value == NULL ? LOGICALREP_COLUMN_NULL : LOGICALREP_COLUMN_TEXT;
		initStringInfo(&tuple->colvalues[i]);
		if (value != NULL)
			appendStringInfoString(&tuple->colvalues[i], value);
	}
	repl_ml_relation_remember(&remote, true);
	SPI_finish();
}

/*
 * Runs "step" in this session as a worker would: no stamping, replica triggers,
 * and what it writes stays on this node: each member has the change from where
 * it was made, and resolves it from all the versions that it has.
 */
void
repl_ml_apply_in_session(void (*step) (void *argument), void *argument)
{
	int			level = NewGUCNestLevel();
	int			values_level = repl_ml_session_fix_values();
	RepOriginId origin = replorigin_session_origin;

	(void) set_config_option("session_replication_role", "replica", PGC_SUSET,
							 PGC_S_SESSION, GUC_ACTION_SAVE, true, 0, false);
	repl_ml_applying = true;
	replorigin_session_origin = DoNotReplicateId;
	PG_TRY();
	{
		step(argument);
		repl_ml_targets_close();
	}
	PG_FINALLY();
	{
		replorigin_session_origin = origin;
		repl_ml_applying = false;
		repl_ml_targets_forget();
	}
	PG_END_TRY();
	repl_ml_session_restore(values_level);
	AtEOXact_GUC(true, level);
}

static void
apply_change(void *argument)
{
	ParkedChange *change = argument;

	repl_ml_dispatch_change(&change->apply, PARKED_TABLE_ID, 'U', &change->tuple);
}
