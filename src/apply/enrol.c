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

static List *load_pending(MemoryContext context);
static void create_missing(ReplMlApply *apply, List *pending);
static void enrol_table(ReplMlApply *apply, PendingTable *table, bool joining);
static void run_for(const char *sql, const char *relation);

/* Does what is pending; cheap when nothing is. */
void
repl_ml_enrol_pending(ReplMlApply *apply)
{
	RepOriginId origin = replorigin_session_origin;
	bool		joining;
	List	   *pending;
	ListCell   *lc;

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

	repl_ml_begin();
	joining = repl_ml_identity_require()->joining;
	pending = load_pending(apply->message_context);
	repl_ml_commit();
	create_missing(apply, pending);
	repl_ml_begin();
	pending = load_pending(apply->message_context);
	repl_ml_commit();
	foreach(lc, pending)
		enrol_table(apply, lfirst(lc), joining);

	repl_ml_applying = true;
	replorigin_session_origin = origin;
	repl_ml_enrol_unlock();
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
create_missing(ReplMlApply *apply, List *pending)
{
	List	   *names = NIL;
	ListCell   *lc;

	foreach(lc, pending)
	{
		PendingTable *table = lfirst(lc);

		if (strcmp(table->action, "create") == 0)
			names = lappend(names, quote_qualified_identifier(table->schema_name, table->table_name));
	}
	if (names == NIL)
		return;
	repl_ml_apply_set_state(apply, REPL_ML_WORKER_PREPARING);
	repl_ml_schema_copy(apply->peer->dsn, names);
}

/*
 * Enrols or removes one table.  A failure is the joining node's, as long as it
 * joins; later it is this table's alone, whose changes are then parked.
 */
static void
enrol_table(ReplMlApply *apply, PendingTable *table, bool joining)
{
	MemoryContext context = CurrentMemoryContext;
	ErrorData  *error;

	PG_TRY();
	{
		repl_ml_begin();
		if (strcmp(table->action, "enrol") == 0)
		{
			run_for("SELECT repl_ml.adopt($1::pg_catalog.regclass)", table->relation);
		}
		else if (strcmp(table->action, "remove") == 0 && table->relation != NULL)
			run_for("SELECT repl_ml.disenrol($1::pg_catalog.regclass)", table->relation);
		repl_ml_commit();
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(context);
		if (joining)
			PG_RE_THROW();
		error = CopyErrorData();
		FlushErrorState();
		AbortOutOfAnyTransaction();
		MemoryContextSwitchTo(context);
		ereport(WARNING,
				(errcode(error->sqlerrcode),
				 errmsg("table \"%s.%s\" could not be enrolled: %s",
						table->schema_name, table->table_name, error->message),
				 error->hint ? errhint("%s", error->hint) : 0));
	}
	PG_END_TRY();
}

static void
run_for(const char *sql, const char *relation)
{
	Oid			types[1] = {TEXTOID};
	Datum		values[1] = {CStringGetTextDatum(relation)};

	if (SPI_execute_with_args(sql, 1, types, values, NULL, false, 0) < 0)
		elog(ERROR, "SPI failed");
}
