/*
 * enrol.c
 *		Brings this database's tables in line with the group's list: creates
 *		what is missing, enrols, removes.
 *
 * Run by an apply worker between transactions, after the list has changed and
 * at each connection; an advisory lock lets one worker at a time do it.  What
 * it writes is this node's own doing, so it runs without the session's origin.
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
#include "group/query.h"

/* "rplml" and a version: the advisory lock of the enrolment */
#define ENROL_LOCK_KEY	INT64CONST(0x72706C6D6C0001)

typedef struct PendingTable
{
	char	   *schema_name;
	char	   *table_name;
	char	   *relation;		/* NULL: not there */
	char	   *action;
} PendingTable;

typedef void (*EnrolStep) (ReplMlApply *apply, void *argument);

static void enrol_all(ReplMlApply *apply);
static void attempt(ReplMlApply *apply, bool joining, EnrolStep step, void *argument);
static List *load_pending(MemoryContext context);
static void create_missing(ReplMlApply *apply, void *pending);
static void enrol_table(ReplMlApply *apply, void *argument);
static void write_anew(PendingTable *table);
static void run_for(const char *sql, const char *relation);

/* Does what is pending; cheap when nothing is. */
void
repl_ml_enrol_pending(ReplMlApply *apply)
{
	RepOriginId origin = replorigin_session_origin;
	List	   *pending;

	apply->tables_pending = false;
	repl_ml_begin();
	pending = load_pending(apply->message_context);
	repl_ml_commit();
	if (pending == NIL)
		return;

	StartTransactionCommand();
	DirectFunctionCall1(pg_advisory_lock_int8, Int64GetDatum(ENROL_LOCK_KEY));
	CommitTransactionCommand();
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
 * A failure is the joining node's, as long as it joins; later it is these
 * tables' alone: it is shown and tried again after a while (worker.c), and
 * changes of the tables are parked meanwhile.
 */
static void
enrol_all(ReplMlApply *apply)
{
	bool		joining;
	List	   *pending;
	ListCell   *lc;

	repl_ml_begin();
	joining = repl_ml_identity_require()->joining;
	pending = load_pending(apply->message_context);
	repl_ml_commit();

	attempt(apply, joining, create_missing, pending);
	repl_ml_begin();
	pending = load_pending(apply->message_context);
	repl_ml_commit();
	foreach(lc, pending)
		attempt(apply, joining, enrol_table, lfirst(lc));
}

/* Runs one step; while the node joins its error is the caller's. */
static void
attempt(ReplMlApply *apply, bool joining, EnrolStep step, void *argument)
{
	MemoryContext context = CurrentMemoryContext;
	ErrorData  *error;

	PG_TRY();
	{
		step(apply, argument);
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(context);
		if (joining)
			PG_RE_THROW();
		error = CopyErrorData();
		EmitErrorReport();
		FlushErrorState();
		AbortOutOfAnyTransaction();
		MemoryContextSwitchTo(context);
		repl_ml_apply_show_error(apply, error);
		apply->tables_pending = true;
	}
	PG_END_TRY();
}

/* Gives the lock back, also after an error. */
void
repl_ml_enrol_unlock(void)
{
	LockReleaseSession(USER_LOCKMETHOD);
}

/* List of PendingTable in the message context, which outlives our transactions. */
static List *
load_pending(MemoryContext context)
{
	List	   *pending = NIL;

	SPI_execute("SELECT schema_name, table_name, relation::pg_catalog.text, action FROM repl_ml.pending_tables()", true, 0);
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		MemoryContext old = MemoryContextSwitchTo(context);
		PendingTable *table = palloc(sizeof(PendingTable));
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

/* Creates the tables that are not here from the peer's definitions. */
static void
create_missing(ReplMlApply *apply, void *pending)
{
	List	   *names = NIL;
	List	   *schemas = NIL;
	ListCell   *lc;

	foreach(lc, (List *) pending)
	{
		PendingTable *table = lfirst(lc);

		if (strcmp(table->action, "create") != 0)
			continue;
		names = lappend(names, quote_qualified_identifier(table->schema_name, table->table_name));
		schemas = list_append_unique(schemas, makeString(table->schema_name));
	}
	if (names == NIL)
		return;
	repl_ml_apply_set_state(apply, REPL_ML_WORKER_PREPARING);
	repl_ml_schema_copy(apply->peer->dsn, schemas, names);
}

/* Enrols or removes one table. */
static void
enrol_table(ReplMlApply *apply, void *argument)
{
	PendingTable *table = argument;

	repl_ml_begin();
	if (strcmp(table->action, "enrol") == 0)
	{
		run_for("SELECT repl_ml.adopt($1::pg_catalog.regclass)", table->relation);
		if (strcmp(repl_ml_spi_text(0, 0), "t") == 0)
			write_anew(table);
	}
	else if (strcmp(table->action, "remove") == 0 && table->relation != NULL)
		run_for("SELECT repl_ml.disenrol($1::pg_catalog.regclass)", table->relation);
	repl_ml_commit();
}

/* Stamps the rows that were here, so that the others get them; the owner's triggers see it. */
static void
write_anew(PendingTable *table)
{
	Relation	rel = table_open(repl_ml_relation_local(table->schema_name, table->table_name), RowExclusiveLock);
	ReplMlUser	saved;

	/* deferred triggers are not for what runs as somebody else */
	SPI_execute("SET CONSTRAINTS ALL IMMEDIATE", false, 0);
	repl_ml_become_owner(rel, &saved);
	if (SPI_execute(psprintf("UPDATE %s SET __repl_clock = __repl_clock",
							 quote_qualified_identifier(table->schema_name, table->table_name)), false, 0) < 0)
		elog(ERROR, "SPI failed");
	repl_ml_become_self(&saved);
	table_close(rel, NoLock);
}

static void
run_for(const char *sql, const char *relation)
{
	Oid			types[1] = {TEXTOID};
	Datum		values[1] = {CStringGetTextDatum(relation)};

	if (SPI_execute_with_args(sql, 1, types, values, NULL, false, 0) < 0)
		elog(ERROR, "SPI failed");
}
