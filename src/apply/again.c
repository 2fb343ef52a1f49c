/*
 * again.c
 *		Trying a parked change again.
 *
 * It is read back into the form it came in (park.c has kept it), compared with
 * what the table is now, and joined as if it had just come.  When that is done is
 * up to copy/retry.c and aside.c in an apply worker, and to people, in their own
 * backends.
 *
 * Locks: an apply worker locks the row of a parked change while it tries it; and
 * what joining rows takes (converge/).
 */
#include "postgres.h"

#include "access/table.h"
#include "access/xact.h"
#include "catalog/pg_type.h"
#include "commands/trigger.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/guc.h"
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

/* A parked change in the form it came in. */
typedef struct ParkedChange
{
	ReplMlApply apply;
	LogicalRepTupleData tuple;
} ParkedChange;

static void require_was_parked(int64 id);
static bool is_counted(int64 id);
static void refuse_large(int64 id);
static bool write_loser(int64 id);
static void require_fit(int64 id, ParkedChange *change);
static char *find_unfit_column(ParkedChange *change, bool *lacks);
static bool is_superfluous(ParkedChange *change);
static void join_transaction(ReplMlApply *apply, int64 id, bool whole, bool put_aside);
static void run_deferred_triggers(void);
static void delete_parked(int64 id);
static bool load_change(int64 id, ReplMlApply *apply, LogicalRepTupleData *tuple);
static ReplMlColumn *load_column(int i, const char *name);
static void apply_change(void *argument);

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
	refuse_large(id);
	/* the worker tries a transaction that changes the schema as one */
	if (is_counted(id) || repl_ml_schema_change_is_in(id))
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

/* Raises an error if it stands for a large transaction, which bulk.c applies. */
static void
refuse_large(int64 id)
{
	Oid			types[1] = {INT8OID};
	Datum		values[1] = {Int64GetDatum(id)};

	if (repl_ml_spi_execute("SELECT FROM repl_ml.parked_change"
							" WHERE id OPERATOR(pg_catalog.=) $1"
							" AND action OPERATOR(pg_catalog.=) '" REPL_ML_BULK "'",
							1, types, values, NULL) > 0)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_IN_USE),
				 errmsg("large transaction " INT64_FORMAT " is applied by itself", id),
				 errhint("See SELECT * FROM repl_ml.stat_apply for its last error, if there is "
						 "one.")));
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
	if (repl_ml_relation_is_of_tombstones(remote))
		return NULL;
	for (int i = 0; i < change->tuple.ncols; i++)
	{
		if (change->tuple.colstatus[i] == LOGICALREP_COLUMN_UNCHANGED)
			return remote->remote.attnames[i];
	}
	return repl_ml_relation_unfit(PARKED_TABLE_ID, lacks);
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

	if (repl_ml_relation_is_of_tombstones(remote))
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
repl_ml_again_attempt(ReplMlApply *apply, ReplMlParkedTry *try,
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
 * A step of repl_ml_again_attempt: applies a parked change and forgets it if
 * that works.  Columns that it lacks are filled with their defaults only
 * "with_defaults": when the node it comes from has them, too.
 */
void
repl_ml_again_join(ReplMlApply *apply, ReplMlParkedTry *try)
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
 * A step of repl_ml_again_attempt: applies a change put aside, or "whole" all
 * of its transaction, and forgets it; does nothing if another apply worker has
 * been or is at it.
 */
void
repl_ml_again_join_aside(ReplMlApply *apply, ReplMlParkedTry *try)
{
	Oid			types[1] = {INT8OID};
	Datum		values[1] = {Int64GetDatum(try->id)};

	if (repl_ml_spi_execute("SELECT FROM repl_ml.parked_change WHERE id OPERATOR(pg_catalog.=) $1"
							" AND put_aside FOR UPDATE SKIP LOCKED",
							1, types, values, NULL) == 0)
		return;

	/* the lock on this row keeps other workers from the whole transaction */
	join_transaction(apply, try->id, try->whole, true);
}

/*
 * A step of repl_ml_again_attempt: applies all that is parked of the transaction of a change
 * of the schema, and forgets it, or nothing of it.
 */
void
repl_ml_again_join_whole(ReplMlApply *apply, ReplMlParkedTry *try)
{
	Oid			types[1] = {INT8OID};
	Datum		values[1] = {Int64GetDatum(try->id)};

	try->state = REPL_ML_PARKED_GONE;
	if (repl_ml_spi_execute("SELECT FROM repl_ml.parked_change WHERE id OPERATOR(pg_catalog.=) $1"
							" AND NOT put_aside FOR UPDATE SKIP LOCKED",
							1, types, values, NULL) == 0)
		return;
	join_transaction(apply, try->id, true, false);
	try->state = REPL_ML_PARKED_DONE;
}

/*
 * Applies, in order, what is put aside, or parked, of the transaction of a change, or, unless
 * "whole", that alone, and forgets it.
 */
static void
join_transaction(ReplMlApply *apply, int64 id, bool whole, bool put_aside)
{
	Oid			types[3] = {INT8OID, BOOLOID, BOOLOID};
	Datum		values[3] = {Int64GetDatum(id), BoolGetDatum(whole), BoolGetDatum(put_aside)};
	MemoryContext context = CurrentMemoryContext;
	int64	   *ids;
	int			count;

	SPI_connect();
	SPI_execute_with_args("SELECT p.id FROM repl_ml.parked_change p"
						  " JOIN repl_ml.parked_change f USING (origin_node, origin_lsn)"
						  " WHERE f.id OPERATOR(pg_catalog.=) $1"
						  " AND p.put_aside OPERATOR(pg_catalog.=) $3"
						  " AND p.action OPERATOR(pg_catalog.=) ANY ('{insert,update,delete}')"
						  " AND ($2 OR p.id OPERATOR(pg_catalog.=) f.id) ORDER BY p.id",
						  3, types, values, NULL, false, 0);
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

/* Joins the parked change that was loaded. */
static void
apply_change(void *argument)
{
	ParkedChange *change = argument;

	repl_ml_change_join(&change->apply, PARKED_TABLE_ID, 'U', &change->tuple);
}
