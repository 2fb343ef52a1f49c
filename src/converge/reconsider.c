/*
 * reconsider.c
 *		A rule for conflicts arrives after conflicts it should have decided.
 *
 * A conflict is resolved by the rules in force at its greatest dot
 * (row/policy.c).  A node may have resolved one before the rule came: the
 * versions are stored beside the row, so it resolves it again.
 *
 * Not here: which rule is in force when (row/policy.c), how a row is resolved
 * (resolve.c).  Locks: the rules of the table (row/policy.c), then those of row.c,
 * for one key after the other, until the transaction ends.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "catalog/namespace.h"
#include "catalog/pg_type.h"
#include "commands/trigger.h"
#include "executor/spi.h"
#include "utils/builtins.h"
#include "utils/datum.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

#include "converge/converge.h"
#include "row/row.h"
#include "server/server.h"
#include "wire/wire.h"

/* Rows of a table that a rule comes late for. */
typedef struct Undecided
{
	Oid			relid;
	List	   *keys;			/* of lists: shape and key as text[] */
	ReplMlClockEntry since;
} Undecided;

static void reconsider_rule(TriggerData *trigdata);
static void resolve_keys(void *argument);
static List *find_keys_after(const char *schema_name, const char *table_name,
							 ReplMlClockEntry since);

/*
 * Called by backends and apply workers as the AFTER INSERT OR DELETE ROW
 * trigger of repl_ml.conflict_policy: every process reads the rules again, and
 * what the rule comes late for is resolved again.  One that is written here
 * comes late, too, for writes of a node whose counters are ahead.
 */
PG_FUNCTION_INFO_V1(repl_ml_conflict_policy_changed);
Datum
repl_ml_conflict_policy_changed(PG_FUNCTION_ARGS)
{
	TriggerData *trigdata = (TriggerData *) fcinfo->context;

	if (!CALLED_AS_TRIGGER(fcinfo) || !TRIGGER_FIRED_FOR_ROW(trigdata->tg_event) ||
		!TRIGGER_FIRED_AFTER(trigdata->tg_event))
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("function \"%s\" must be called as an AFTER ROW trigger",
						"conflict_policy_changed")));
	CacheInvalidateRelcache(trigdata->tg_relation);
	if (TRIGGER_FIRED_BY_INSERT(trigdata->tg_event))
		reconsider_rule(trigdata);
	return PointerGetDatum(NULL);
}

/*
 * Resolves again what the rule in the trigger's row comes late for: in an
 * apply worker at once, in a backend as an apply worker would.
 */
static void
reconsider_rule(TriggerData *trigdata)
{
	TupleDesc	desc = RelationGetDescr(trigdata->tg_relation);
	HeapTuple	rule = trigdata->tg_trigtuple;
	char	   *schema_name = SPI_getvalue(rule, desc, SPI_fnumber(desc, "schema_name"));
	char	   *table_name = SPI_getvalue(rule, desc, SPI_fnumber(desc, "table_name"));
	bool		isnull;
	ReplMlClock *clock = DatumGetReplMlClockP(heap_getattr(rule,
														   SPI_fnumber(desc, REPL_ML_CLOCK_COLUMN),
														   desc, &isnull));
	ReplMlClockEntry since = repl_ml_clock_dot(clock);
	Oid			relid = get_relname_relid(table_name, get_namespace_oid(schema_name, true));
	List	   *keys;
	Undecided	undecided;

	/* without a table there are neither rows nor who resolves them */
	if (!OidIsValid(relid))
		return;
	/* what a joining node brings along is compared with the donor's, which has done it */
	if (repl_ml_table_is_to_come(schema_name, relid))
		return;
	repl_ml_policy_lock(relid);
	keys = find_keys_after(schema_name, table_name, since);
	if (keys == NIL)
		return;
	/* the rule must be seen by what follows */
	CommandCounterIncrement();
	relid = repl_ml_table_local(schema_name, table_name);
	if (!OidIsValid(relid))
		return;
	undecided = (Undecided) {.relid = relid,.keys = keys,.since = since};
	if (repl_ml_applying)
		resolve_keys(&undecided);
	else
		repl_ml_targets_in_session(resolve_keys, &undecided);
}

/*
 * Resolves the rows of these keys again.  It applies although it runs in a
 * trigger: in ours, not in one that a user has hung on a table.
 */
static void
resolve_keys(void *argument)
{
	Undecided  *undecided = argument;
	ReplMlSource source = {.node = undecided->since.node};

	repl_ml_applying_depth = 1;
	PG_TRY();
	{
		ListCell   *lc;

		foreach(lc, undecided->keys)
			repl_ml_row_resolve_again(undecided->relid, PointerGetDatum(linitial(lfirst(lc))),
									  PointerGetDatum(lsecond(lfirst(lc))), &source);
	}
	PG_FINALLY();
	{
		repl_ml_applying_depth = 0;
	}
	PG_END_TRY();
}

/*
 * Returns the keys of the table's stored versions that were written after the
 * rule: lists of shape (row/shape.c) and key, as text[].  Looks at what has been
 * committed by now, whatever the transaction's own snapshot sees.
 */
static List *
find_keys_after(const char *schema_name, const char *table_name, ReplMlClockEntry since)
{
	MemoryContext context = CurrentMemoryContext;
	Oid			types[4] = {TEXTOID, TEXTOID, INT8OID, INT4OID};
	Datum		values[4] = {CStringGetTextDatum(schema_name), CStringGetTextDatum(table_name),
	Int64GetDatum((int64) since.counter), Int32GetDatum(since.node)};
	List	   *keys = NIL;

	PushActiveSnapshot(GetLatestSnapshot());
	SPI_connect();
	SPI_execute_with_args("SELECT DISTINCT key_columns, key FROM repl_ml.concurrent_version"
						  " WHERE schema_name OPERATOR(pg_catalog.=) $1::pg_catalog.name"
						  " AND table_name OPERATOR(pg_catalog.=) $2::pg_catalog.name"
						  " AND ROW(repl_ml.max_counter(__repl_clock),"
						  " repl_ml.last_writer(__repl_clock)) OPERATOR(pg_catalog.>) ROW($3, $4)",
						  4, types, values, NULL, true, 0);
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		bool		isnull;
		Datum		columns = SPI_getbinval(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, 1,
											&isnull);
		Datum		key = SPI_getbinval(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, 2, &isnull);
		MemoryContext old = MemoryContextSwitchTo(context);

		/* outlives SPI's memory */
		keys = lappend(keys, list_make2(DatumGetPointer(datumCopy(columns, false, -1)),
										DatumGetPointer(datumCopy(key, false, -1))));
		MemoryContextSwitchTo(old);
	}
	SPI_finish();
	PopActiveSnapshot();
	return keys;
}
