/*
 * store.c
 *		Storing a version of a row through the executor: find, insert, update,
 *		delete.
 *
 * A target is one open table with its indexes and executor state; it is valid
 * in the transaction (and subtransaction) that opened it.  The executor runs in
 * the target's query context, as it does for a statement: what functions of
 * triggers, indexes and constraints remember from one row to the next
 * (FmgrInfo's fn_extra) has to live as long as the target, which points to it.
 * Of the rows themselves nothing stays there.
 *
 * What the row should become is decided by the caller.  Constraints are checked
 * and generated columns computed; foreign keys are left to the origin, because
 * the apply worker runs in replica mode.
 *
 * Which targets are open when is converge/target.c's.  Locks: the row that is
 * found, until the transaction ends; the caller has locked the table.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/pg_index.h"
#include "commands/trigger.h"
#include "executor/executor.h"
#include "miscadmin.h"
#include "utils/datum.h"
#include "utils/fmgroids.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"

#include "compat.h"
#include "row/row.h"

static EState *make_estate(Relation rel);
static void undefer_triggers(ResultRelInfo *result);
static void exempt_old_rows(ReplMlTarget *target);
static MemoryContext begin_change(ReplMlTarget *target);
static void end_change(ReplMlTarget *target, MemoryContext caller);

/*
 * Opens a target on "rel", which the caller keeps open and locked.  With
 * "fire_triggers" false no trigger at all is run.
 */
ReplMlTarget *
repl_ml_target_open(Relation rel, bool fire_triggers)
{
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext, "repl_ml target",
												  ALLOCSET_DEFAULT_SIZES);
	MemoryContext old = MemoryContextSwitchTo(context);
	ReplMlTarget *target = palloc0(sizeof(ReplMlTarget));

	target->context = context;
	target->rel = rel;
	target->table = repl_ml_table_get(rel);
	target->estate = make_estate(rel);
	target->result = makeNode(ResultRelInfo);
	InitResultRelInfo(target->result, rel, 1, NULL, 0);
	if (!fire_triggers)
		target->result->ri_TrigDesc = NULL;
	else
		undefer_triggers(target->result);
	/* "speculative": so that unique indexes can be asked without inserting */
	ExecOpenIndices(target->result, fire_triggers);
	EvalPlanQualInit_compat(&target->epqstate, target->estate);
	target->found = table_slot_create(rel, &target->estate->es_tupleTable);
	target->incoming = ExecInitExtraTupleSlot(target->estate, RelationGetDescr(rel),
											  &TTSOpsVirtual);
	target->scratch = ExecInitExtraTupleSlot(target->estate, RelationGetDescr(rel), &TTSOpsVirtual);
	target->rival = table_slot_create(rel, &target->estate->es_tupleTable);
	target->stored = table_slot_create(rel, &target->estate->es_tupleTable);
	target->rival_key = ExecInitExtraTupleSlot(target->estate, RelationGetDescr(rel),
											   &TTSOpsVirtual);
	MemoryContextSwitchTo(old);
	return target;
}

/* Returns an executor state with the relation as its only one. */
static EState *
make_estate(Relation rel)
{
	EState	   *estate = CreateExecutorState();
	RangeTblEntry *rte = makeNode(RangeTblEntry);

	rte->rtekind = RTE_RELATION;
	rte->relid = RelationGetRelid(rel);
	rte->relkind = rel->rd_rel->relkind;
	rte->rellockmode = AccessShareLock;
	ExecInitRangeTable_compat(estate, rte);
	estate->es_output_cid = GetCurrentCommandId(true);
	return estate;
}

/* Says whether the index is that of an exclusion constraint. */
static bool
is_exclusion(Oid index)
{
	HeapTuple	tuple = SearchSysCache1(INDEXRELID, ObjectIdGetDatum(index));
	bool		result = true;

	if (HeapTupleIsValid(tuple))
	{
		result = ((Form_pg_index) GETSTRUCT(tuple))->indisexclusion;
		ReleaseSysCache(tuple);
	}
	return result;
}

/*
 * Lets deferred triggers run with their change: at commit they would run with
 * the apply worker's rights instead of the table owner's.  Only the check of a
 * unique constraint stays at the commit; it runs no code but that of its
 * types.
 */
static void
undefer_triggers(ResultRelInfo *result)
{
	TriggerDesc *triggers = result->ri_TrigDesc;	/* a copy of our own */

	for (int i = 0; triggers != NULL && i < triggers->numtriggers; i++)
	{
		Trigger    *trigger = &triggers->triggers[i];

		if (trigger->tgfoid == F_UNIQUE_KEY_RECHECK && !is_exclusion(trigger->tgconstrindid))
			continue;
		trigger->tgdeferrable = false;
		trigger->tginitdeferred = false;
	}
}

/* Closes what repl_ml_target_open opened, except the relation. */
void
repl_ml_target_close(ReplMlTarget *target)
{
	EvalPlanQualEnd(&target->epqstate);
	ExecCloseIndices(target->result);
	ExecResetTupleTable(target->estate->es_tupleTable, false);
	ExecCloseResultRelations(target->estate);
	FreeExecutorState(target->estate);
	MemoryContextDelete(target->context);
}

/*
 * Finds the row with the primary key of "searched", waits for whoever is
 * changing it and locks it; its latest version is then in target->found.
 * Returns false if there is none.
 */
bool
repl_ml_target_find(ReplMlTarget *target, TupleTableSlot *searched)
{
	bool		found;

	PushActiveSnapshot(GetLatestSnapshot());
	found = RelationFindReplTupleByIndex(target->rel, target->table->key_index,
										 LockTupleExclusive, searched, target->found);
	PopActiveSnapshot();
	return found;
}

/*
 * Says whether a row with the primary key of "searched" and this very clock is
 * committed here: then it needs no joining, and neither waiting nor a lock.
 */
bool
repl_ml_target_has(ReplMlTarget *target, TupleTableSlot *searched, const ReplMlClock *clock)
{
	Relation	index = index_open(target->table->key_index, AccessShareLock);
	Snapshot	snapshot = RegisterSnapshot(GetLatestSnapshot());
	IndexScanDesc scan = index_beginscan_compat(target->rel, index, snapshot,
												target->table->key_natts);
	ScanKeyData keys[INDEX_MAX_KEYS];
	bool		has = false;

	repl_ml_key_scan(index, target->table->key_natts, keys);
	for (int i = 0; i < target->table->key_natts; i++)
	{
		AttrNumber	column = target->table->key_attnums[i];

		keys[i].sk_argument = searched->tts_values[column - 1];
		if (searched->tts_isnull[column - 1])
			keys[i].sk_flags |= SK_ISNULL;
	}
	index_rescan(scan, keys, target->table->key_natts, NULL, 0);
	if (index_getnext_slot(scan, ForwardScanDirection, target->found))
	{
		bool		isnull;
		Datum		here = slot_getattr(target->found, target->table->clock_attnum, &isnull);

		has = !isnull && datum_image_eq(here, PointerGetDatum(clock), false, -1);
		ExecClearTuple(target->found);
	}
	index_endscan(scan);
	UnregisterSnapshot(snapshot);
	index_close(index, NoLock);
	return has;
}

/*
 * Returns the row in the table's own form: what triggers and storage would
 * else each make of a virtual row is not freed before the target is.
 */
static TupleTableSlot *
copy_to_stored(ReplMlTarget *target, TupleTableSlot *slot)
{
	return ExecCopySlot(target->stored, slot);
}

/* Inserts the row. */
void
repl_ml_target_insert(ReplMlTarget *target, TupleTableSlot *slot)
{
	MemoryContext caller = begin_change(target);

	ExecSimpleRelationInsert(target->result, target->estate, copy_to_stored(target, slot));
	end_change(target, caller);
}

/* Replaces the version in target->found. */
void
repl_ml_target_update(ReplMlTarget *target, TupleTableSlot *slot)
{
	MemoryContext caller = begin_change(target);

	slot = copy_to_stored(target, slot);
	EvalPlanQualSetSlot(&target->epqstate, slot);
	ExecSimpleRelationUpdate(target->result, target->estate, &target->epqstate,
							 target->found, slot);
	end_change(target, caller);
}

/* Deletes the version in target->found. */
void
repl_ml_target_delete(ReplMlTarget *target)
{
	MemoryContext caller = begin_change(target);

	EvalPlanQualSetSlot(&target->epqstate, target->found);
	ExecSimpleRelationDelete(target->result, target->estate, &target->epqstate,
							 target->found);
	end_change(target, caller);
}

/*
 * Exempts the target from CHECK constraints that are NOT VALID: these do not
 * hold for rows that were there before them, and such a row may be the one
 * that comes, so it is left to the node that wrote the row.  Runs with the
 * owner's rights, as it plans his expressions.
 */
static void
exempt_old_rows(ReplMlTarget *target)
{
	TupleConstr *constraints = RelationGetDescr(target->rel)->constr;
	ExprState **checks = NULL;
	int			count = constraints == NULL ? 0 : constraints->num_check;

	for (int i = 0; i < count && checks == NULL; i++)
	{
		if (!constraints->check[i].ccvalid)
			checks = MemoryContextAllocZero(target->estate->es_query_cxt,
											count * sizeof(ExprState *));
	}
	if (checks == NULL)
		return;
	/* the executor passes over one without an expression */
	for (int i = 0; i < count; i++)
	{
		if (constraints->check[i].ccvalid)
			checks[i] = ExecPrepareExpr(check_expression_compat(target->rel,
																constraints->check[i].ccbin),
										target->estate);
	}
	*check_states_compat(target->result) = checks;
}

/*
 * Begins a change, in the target's query context; returns the context to go
 * back to.  Not in the caller's, which is the message's: the target outlives
 * it.
 */
static MemoryContext
begin_change(ReplMlTarget *target)
{
	PushActiveSnapshot(GetTransactionSnapshot());
	if (*check_states_compat(target->result) == NULL)
		exempt_old_rows(target);
	target->estate->es_output_cid = GetCurrentCommandId(true);
	if (target->result->ri_TrigDesc != NULL)
		AfterTriggerBeginQuery();
	return MemoryContextSwitchTo(target->estate->es_query_cxt);
}

/*
 * Runs what triggers the change queued and makes it visible to the next one.
 */
static void
end_change(ReplMlTarget *target, MemoryContext caller)
{
	if (target->result->ri_TrigDesc != NULL)
		AfterTriggerEndQuery(target->estate);
	ResetPerTupleExprContext(target->estate);
	MemoryContextSwitchTo(caller);
	PopActiveSnapshot();
	CommandCounterIncrement();
}
