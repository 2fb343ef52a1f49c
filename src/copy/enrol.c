/*
 * enrol.c
 *		Brings this database's tables in line with the group's list: creates
 *		what is missing, enrols, removes.
 *
 * Run by an apply worker between transactions, after the list has changed and
 * at each connection; an advisory lock lets one worker at a time do it.  What
 * it writes is this node's own doing, so it runs without the session's origin.
 *
 * Not what enrolling is (repl_ml.adopt in SQL), nor where definitions come
 * from (schema.c).  Locks: the advisory lock, over all of it; in each
 * transaction those of the tables.
 */
#include "postgres.h"

#include "access/table.h"
#include "access/xact.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "replication/origin.h"
#include "storage/lmgr.h"
#include "storage/lock.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/memutils.h"

#include "apply/apply.h"
#include "compat.h"
#include "copy/copy.h"
#include "row/row.h"
#include "server/server.h"

/* "rplml" and a version: the advisory lock of the enrolment */
#define ENROL_LOCK_KEY	INT64CONST(0x72706C6D6C0001)

typedef struct PendingTable
{
	char	   *schema_name;
	char	   *table_name;
	char	   *relation;		/* NULL: not there */
	char	   *action;
	ErrorData  *error;			/* of the last try to create it */
} PendingTable;

typedef void (*EnrolStep) (ReplMlApply *apply, List *tables);

static void enrol_all(ReplMlApply *apply);
static void create_missing(ReplMlApply *apply, bool joining, List *pending);
static ErrorData *run_step(bool joining, EnrolStep step, ReplMlApply *apply, List *tables);
static void note_failure(ReplMlApply *apply, PendingTable *table, ErrorData *error);
static List *load_pending(ReplMlApply *apply);
static void create_tables(ReplMlApply *apply, List *tables);
static void enrol_table(ReplMlApply *apply, List *tables);
static void write_anew(PendingTable *table);
static void run_for(const char *sql, const char *relation);

/*
 * Does what is pending and due; called by the apply worker, cheap when nothing
 * is.
 */
void
repl_ml_enrol_pending(ReplMlApply *apply)
{
	RepOriginId origin = replorigin_session_origin;
	List	   *pending;
	bool		begins;

	repl_ml_begin();
	begins = repl_ml_identity_require()->joining &&
		repl_ml_query_int("SELECT donor FROM repl_ml.local_node") == apply->peer->node_id;
	repl_ml_commit();
	if (begins)
		repl_ml_schema_begin(apply->peer->dsn);
	repl_ml_begin();
	pending = load_pending(apply);
	repl_ml_commit();
	if (pending == NIL)
		return;

	/* the session's lock: each table is enrolled in a transaction of its own */
	StartTransactionCommand();
	DirectFunctionCall1(pg_advisory_lock_int8, Int64GetDatum(ENROL_LOCK_KEY));
	CommitTransactionCommand();

	/* what is written here is this node's, and goes to all peers */
	replorigin_session_origin = InvalidRepOriginId;
	repl_ml_applying = false;
	PG_TRY();
	{
		enrol_all(apply);
	}
	PG_FINALLY();
	{
		repl_ml_applying = true;
		replorigin_session_origin = origin;
	}
	PG_END_TRY();
	repl_ml_enrol_unlock();
}

/*
 * Does all that is due.  A failure is the joining node's, as long as it joins;
 * later it is that table's alone: it is shown and tried again after a while
 * (group/worker.c), and changes of the table are parked meanwhile.
 */
static void
enrol_all(ReplMlApply *apply)
{
	bool		joining;
	bool		from_here;		/* the joining node takes definitions from its
								 * donor, which has all that is to come */
	List	   *pending;
	ListCell   *lc;

	repl_ml_begin();
	joining = repl_ml_identity_require()->joining;
	from_here = !joining ||
		repl_ml_query_int("SELECT donor FROM repl_ml.local_node") == apply->peer->node_id;
	pending = load_pending(apply);
	repl_ml_commit();

	if (from_here)
		create_missing(apply, joining, pending);
	repl_ml_begin();
	pending = load_pending(apply);
	repl_ml_commit();
	foreach(lc, pending)
	{
		PendingTable *table = lfirst(lc);
		ErrorData  *error = NULL;

		if (strcmp(table->action, "create") != 0)
			error = run_step(joining, enrol_table, apply, list_make1(table));
		if (error != NULL)
			note_failure(apply, table, error);
	}
}

/*
 * Creates the tables that are not here: all at once, as they may refer to each
 * other; if one of them is in the way, each by itself, as often as that gets
 * any further.
 */
static void
create_missing(ReplMlApply *apply, bool joining, List *pending)
{
	List	   *missing = NIL;
	bool		progress = true;
	ListCell   *lc;

	foreach(lc, pending)
	{
		if (strcmp(((PendingTable *) lfirst(lc))->action, "create") == 0)
			missing = lappend(missing, lfirst(lc));
	}
	if (missing == NIL)
		return;
	repl_ml_apply_set_state(apply, REPL_ML_WORKER_PREPARING);
	if (list_length(missing) > 1 && run_step(joining, create_tables, apply, missing) == NULL)
		return;

	/* one that refers to another comes after it */
	while (progress)
	{
		progress = false;
		foreach(lc, missing)
		{
			PendingTable *table = lfirst(lc);

			table->error = run_step(joining, create_tables, apply, list_make1(table));
			if (table->error != NULL)
				continue;
			progress = true;
			missing = foreach_delete_current(missing, lc);
		}
		progress &= missing != NIL;
	}
	foreach(lc, missing)
		note_failure(apply, lfirst(lc), ((PendingTable *) lfirst(lc))->error);
}

/*
 * Runs one step; returns its error, or NULL.  While the node joins the error
 * is the caller's, and so is always that of a connection: it is not the
 * table's.
 */
static ErrorData *
run_step(bool joining, EnrolStep step, ReplMlApply *apply, List *tables)
{
	MemoryContext context = CurrentMemoryContext;
	ErrorData  *volatile error = NULL;

	PG_TRY();
	{
		step(apply, tables);
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(context);
		if (joining || ERRCODE_TO_CATEGORY(geterrcode()) == ERRCODE_CONNECTION_EXCEPTION)
			PG_RE_THROW();
		error = CopyErrorData();
		FlushErrorState();
		AbortOutOfAnyTransaction();
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
	return error;
}

/* Notes that the table's action has failed. */
static void
note_failure(ReplMlApply *apply, PendingTable *table, ErrorData *error)
{
	repl_ml_table_failed(apply, table->schema_name, table->table_name, table->action, error);
}

/*
 * Notes, for this file and sync.c, outside transactions, that something could
 * not be done with a table, when it is to be tried again, and shows it; the
 * log hears of it when it is news.
 */
void
repl_ml_table_failed(ReplMlApply *apply, const char *schema_name, const char *table_name,
					 const char *action, ErrorData *error)
{
	Oid			types[8] = {INT4OID, TEXTOID, TEXTOID, TEXTOID, TEXTOID, TEXTOID, TEXTOID, TEXTOID};
	Datum		values[8];
	char		nulls[9] = "        ";
	bool		news;

	apply->tables_pending = true;
	repl_ml_apply_show_error(apply, error);
	if (strcmp(action, "copy") == 0)
		repl_ml_apply_count_sync_error(apply);
	repl_ml_begin();
	values[0] = Int32GetDatum(apply->peer->node_id);
	values[1] = CStringGetTextDatum(schema_name);
	values[2] = CStringGetTextDatum(table_name);
	values[3] = CStringGetTextDatum(action);
	values[4] = CStringGetTextDatum(unpack_sql_state(error->sqlerrcode));
	values[5] = CStringGetTextDatum(error->message);
	nulls[6] = error->detail == NULL ? 'n' : ' ';
	values[6] = error->detail == NULL ? (Datum) 0 : CStringGetTextDatum(error->detail);
	nulls[7] = error->hint == NULL ? 'n' : ' ';
	values[7] = error->hint == NULL ? (Datum) 0 : CStringGetTextDatum(error->hint);
	if (SPI_execute_with_args("SELECT repl_ml.note_failure($1, $2::pg_catalog.name,"
							  " $3::pg_catalog.name, $4, $5, $6, $7, $8)",
							  8, types, values, nulls, false, 1) < 0)
		elog(ERROR, "SPI failed");
	news = strcmp(repl_ml_spi_text(0, 0), "t") == 0;
	repl_ml_commit();
	MemoryContextSwitchTo(apply->message_context);

	/* the log has it once, however often it is tried in vain */
	if (news)
		ereport(WARNING,
				(errcode(error->sqlerrcode),
				 errmsg("action \"%s\" failed for replicated table %s: %s", action,
						quote_qualified_identifier(schema_name, table_name), error->message),
				 error->detail != NULL ? errdetail_internal("%s", error->detail) : 0,
				 errhint("It is tried again by itself; see the column problem of "
						 "repl_ml.tables.")));
}

/* Gives the lock back; the apply worker calls it also after an error. */
void
repl_ml_enrol_unlock(void)
{
	LockReleaseSession(USER_LOCKMETHOD);
}

/*
 * Returns a List of PendingTable that are due, in the message context, which
 * outlives our transactions.
 */
static List *
load_pending(ReplMlApply *apply)
{
	List	   *pending = NIL;

	SPI_execute(psprintf("SELECT schema_name, table_name, relation::pg_catalog.text, action"
						 " FROM repl_ml.pending_tables() p"
						 " WHERE NOT repl_ml.waits_to_retry(%d, p.schema_name, p.table_name,"
						 " p.action)", apply->peer->node_id), true, 0);
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		MemoryContext old = MemoryContextSwitchTo(apply->message_context);
		PendingTable *table = palloc0(sizeof(PendingTable));
		char	   *relation = repl_ml_spi_text(i, 2);

		table->schema_name = pstrdup(repl_ml_spi_text(i, 0));
		table->table_name = pstrdup(repl_ml_spi_text(i, 1));
		table->relation = relation == NULL ? NULL : pstrdup(relation);
		table->action = pstrdup(repl_ml_spi_text(i, 3));
		pending = lappend(pending, table);
		MemoryContextSwitchTo(old);
	}
	return pending;
}

/*
 * Creates tables from the peer's definitions; a joining database without
 * tables gets all the peer has.
 */
static void
create_tables(ReplMlApply *apply, List *tables)
{
	MemoryContext context = CurrentMemoryContext;
	List	   *names = NIL;
	List	   *schemas = NIL;
	bool		everything;
	ListCell   *lc;

	repl_ml_begin();
	everything = repl_ml_identity_require()->joining && repl_ml_schema_is_empty();
	repl_ml_commit();
	MemoryContextSwitchTo(context);
	if (everything)
	{
		repl_ml_schema_copy_all(apply->peer->dsn);
		return;
	}
	foreach(lc, tables)
	{
		PendingTable *table = lfirst(lc);

		names = lappend(names, quote_qualified_identifier(table->schema_name, table->table_name));
		schemas = list_append_unique(schemas, makeString(table->schema_name));
	}
	repl_ml_schema_copy(apply->peer->dsn, schemas, names);
}

/* Enrols or removes one table. */
static void
enrol_table(ReplMlApply *apply, List *tables)
{
	PendingTable *table = linitial(tables);

	repl_ml_begin();
	if (strcmp(table->action, "enrol") == 0)
	{
		run_for("SELECT repl_ml.adopt($1::pg_catalog.regclass)", table->relation);
		if (strcmp(repl_ml_spi_text(0, 0), "t") == 0)
			write_anew(table);
	}
	else if (strcmp(table->action, "write") == 0)
	{
		write_anew(table);
		run_for("SELECT repl_ml.note_written($1::pg_catalog.regclass)", table->relation);
	}
	else if (strcmp(table->action, "remove") == 0 && table->relation != NULL)
		run_for("SELECT repl_ml.disenrol($1::pg_catalog.regclass)", table->relation);
	repl_ml_commit();
}

/*
 * Stamps the rows that were here, so that the others get them; the owner's
 * triggers see it.
 */
static void
write_anew(PendingTable *table)
{
	Relation	rel = table_open(repl_ml_table_local(table->schema_name, table->table_name),
								 RowExclusiveLock);
	ReplMlUser	saved;

	/* deferred triggers are not for what runs as somebody else */
	SPI_execute("SET CONSTRAINTS ALL IMMEDIATE", false, 0);
	repl_ml_become_owner(rel, &saved);
	if (SPI_execute(psprintf("UPDATE %s SET __repl_clock = __repl_clock",
							 quote_qualified_identifier(table->schema_name, table->table_name)),
					false, 0) < 0)
		elog(ERROR, "SPI failed");
	repl_ml_become_self(&saved);
	table_close(rel, NoLock);
}

/* Runs a statement about one table. */
static void
run_for(const char *sql, const char *relation)
{
	Oid			types[1] = {TEXTOID};
	Datum		values[1] = {CStringGetTextDatum(relation)};

	if (SPI_execute_with_args(sql, 1, types, values, NULL, false, 0) < 0)
		elog(ERROR, "SPI failed");
}
