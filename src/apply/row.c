/*
 * row.c
 *		Joins a version of a row, or its deletion, into the table.
 *
 * The same for a change from the stream, a row of an initial copy and a parked
 * change tried again: a join may be repeated and reordered.  The verdict is
 * conflict.c's, the storing row/store.c's.  All of it runs with the rights of
 * the table's owner; only the history is written with the worker's own.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "executor/executor.h"
#include "utils/array.h"
#include "utils/datum.h"

#include "apply/apply.h"
#include "compat.h"

static int	update_history(ReplMlTable *table, ReplMlRecordedConflict *no_longer,
						   const ReplMlConflict *conflict, const ReplMlSource *source);
static ReplMlConflict *join_row(ReplMlTarget *target, Datum *key, TupleTableSlot *arriving, bool late);
static ReplMlConflict *join_into_row(ReplMlTarget *target, Datum *key, TupleTableSlot *arriving, const ReplMlClock *clock);
static ReplMlConflict *join_into_nothing(ReplMlTarget *target, Datum *key, TupleTableSlot *arriving, const ReplMlClock *clock, bool late);
static ReplMlConflict *bury_row(ReplMlTarget *target, Datum *key, TupleTableSlot *searched, const ReplMlClock *clock, bool late);
static ReplMlConflict *settle_with_tombstone(ReplMlTarget *target, Datum *key, TupleTableSlot *searched, const ReplMlClock *dead);
static TupleTableSlot *with_clock(ReplMlTarget *target, TupleTableSlot *slot, const ReplMlClock *clock);
static const ReplMlClock *clock_of(ReplMlTarget *target, TupleTableSlot *slot);
static bool same_content(ReplMlTarget *target, TupleTableSlot *a, TupleTableSlot *b);

/*
 * Joins a row (of the enrolled table "relid") into the table.  Returns the
 * number of conflicts resolved; -1 if the row shows that the one its
 * transaction had with an earlier version is none.
 */
int
repl_ml_row_join(Oid relid, TupleTableSlot *incoming, const ReplMlSource *source)
{
	ReplMlTarget *root = repl_ml_targets_get(relid);
	ReplMlTarget *target;
	TupleTableSlot *slot;
	ReplMlConflict *conflict;
	ReplMlRecordedConflict *no_longer;
	ReplMlUser	saved;
	Datum		key[INDEX_MAX_KEYS];

	repl_ml_become_owner(root->rel, &saved);
	target = repl_ml_targets_route(root, incoming, &slot);
	repl_ml_key_from_slot(target->table, slot, key);
	no_longer = repl_ml_history_find_void(target->table, key, clock_of(target, slot), source);
	conflict = join_row(target, key, slot, source->late);
	repl_ml_become_self(&saved);
	return update_history(target->table, no_longer, conflict, source);
}

/* Joins a deletion; as repl_ml_row_join.  "key_array" is the key as text[]. */
int
repl_ml_row_bury(Oid relid, Datum key_array, const ReplMlClock *clock, const ReplMlSource *source)
{
	ReplMlTarget *root = repl_ml_targets_get(relid);
	ReplMlTarget *target;
	TupleTableSlot *slot = root->scratch;
	ReplMlConflict *conflict;
	ReplMlRecordedConflict *no_longer;
	ReplMlUser	saved;
	Datum		key[INDEX_MAX_KEYS];

	repl_ml_become_owner(root->rel, &saved);
	repl_ml_key_from_array(root->table, key_array, key);
	ExecClearTuple(slot);
	ExecStoreAllNullTuple(slot);
	for (int i = 0; i < root->table->key_natts; i++)
	{
		slot->tts_values[root->table->key_attnums[i] - 1] = key[i];
		slot->tts_isnull[root->table->key_attnums[i] - 1] = false;
	}
	target = repl_ml_targets_route(root, slot, &slot);
	repl_ml_key_from_slot(target->table, slot, key);
	no_longer = repl_ml_history_find_void(target->table, key, clock, source);
	conflict = bury_row(target, key, slot, clock, source->late);
	repl_ml_become_self(&saved);
	return update_history(target->table, no_longer, conflict, source);
}

/* Returns how many more conflicts the history has: -1, 0 or 1. */
static int
update_history(ReplMlTable *table, ReplMlRecordedConflict *no_longer,
			   const ReplMlConflict *conflict, const ReplMlSource *source)
{
	if (no_longer != NULL)
		repl_ml_history_take_back(table, no_longer);
	if (conflict != NULL)
		repl_ml_history_record(conflict, source);
	return (conflict != NULL) - (no_longer != NULL);
}

static ReplMlConflict *
join_row(ReplMlTarget *target, Datum *key, TupleTableSlot *arriving, bool late)
{
	const ReplMlClock *clock = clock_of(target, arriving);

	repl_ml_ticker_observe(repl_ml_clock_max_counter(clock));
	if (repl_ml_target_find(target, arriving))
		return join_into_row(target, key, arriving, clock);
	return join_into_nothing(target, key, arriving, clock, late);
}

/* The row is here, in target->found, locked. */
static ReplMlConflict *
join_into_row(ReplMlTarget *target, Datum *key, TupleTableSlot *arriving, const ReplMlClock *clock)
{
	const ReplMlClock *here = clock_of(target, target->found);
	ReplMlConflict *conflict = NULL;
	ReplMlVerdict verdict;
	bool		same = false;

	if (repl_ml_clock_compare(here, clock) == REPL_ML_CLOCK_CONCURRENT)
		same = same_content(target, target->found, arriving);
	verdict = repl_ml_conflict_decide(here, clock, same);
	if (verdict.conflict)
		conflict = repl_ml_history_describe(target, key, target->found, here, arriving, clock,
											verdict.action == REPL_ML_TAKE);
	if (verdict.action == REPL_ML_TAKE)
		repl_ml_target_update(target, with_clock(target, arriving, verdict.clock));
	else if (verdict.action == REPL_ML_KEEP_RECLOCK)
		repl_ml_target_update(target, with_clock(target, target->found, verdict.clock));
	return conflict;
}

/* The row is not here: it never was, or it was deleted. */
static ReplMlConflict *
join_into_nothing(ReplMlTarget *target, Datum *key, TupleTableSlot *arriving, const ReplMlClock *clock, bool late)
{
	/* what the writer has removed since it wrote a late row does count */
	uint16		writer = late ? 0 : repl_ml_clock_dot(clock).node;
	ReplMlClock *dead = repl_ml_tombstone_find(target->table, key, writer);
	ReplMlVerdict verdict = {.action = REPL_ML_TAKE,.clock = clock};
	ReplMlConflict *conflict = NULL;

	if (dead != NULL)
		verdict = repl_ml_conflict_decide(dead, clock, false);
	if (verdict.conflict)
		conflict = repl_ml_history_describe(target, key, NULL, dead, arriving, clock,
											verdict.action == REPL_ML_TAKE);
	if (verdict.action == REPL_ML_KEEP_RECLOCK)
		repl_ml_tombstone_insert(target->table, key, verdict.clock);
	if (verdict.action != REPL_ML_TAKE)
		return conflict;

	repl_ml_target_insert(target, with_clock(target, arriving, verdict.clock));

	/* a deletion that another worker is applying may not have seen the row */
	dead = repl_ml_tombstone_find(target->table, key, writer);
	if (dead != NULL && repl_ml_clock_compare(dead, verdict.clock) != REPL_ML_CLOCK_BEFORE &&
		repl_ml_clock_compare(dead, verdict.clock) != REPL_ML_CLOCK_EQUAL)
		return settle_with_tombstone(target, key, arriving, dead);
	return conflict;
}

/* Records the deletion first, then looks for the row: see tombstone.c. */
static ReplMlConflict *
bury_row(ReplMlTarget *target, Datum *key, TupleTableSlot *searched, const ReplMlClock *clock, bool late)
{
	ReplMlClock *dead = repl_ml_tombstone_find(target->table, key, 0);

	repl_ml_ticker_observe(repl_ml_clock_max_counter(clock));
	if (!late && repl_ml_tombstone_collected(repl_ml_identity()->node_id, clock))
		return NULL;			/* an old copy of one we have removed */
	if (dead != NULL && (repl_ml_clock_compare(clock, dead) == REPL_ML_CLOCK_BEFORE ||
						 repl_ml_clock_compare(clock, dead) == REPL_ML_CLOCK_EQUAL))
		return NULL;
	repl_ml_tombstone_insert(target->table, key, clock);

	/*
	 * as in join_into_nothing: a row written after its writer had removed the
	 * tombstone
	 */
	if (!late && repl_ml_target_find(target, searched) &&
		repl_ml_tombstone_collected(repl_ml_clock_dot(clock_of(target, target->found)).node, clock))
		return NULL;
	return settle_with_tombstone(target, key, searched, clock);
}

/* Lets the row, if it is here, and a deletion that is recorded decide. */
static ReplMlConflict *
settle_with_tombstone(ReplMlTarget *target, Datum *key, TupleTableSlot *searched, const ReplMlClock *dead)
{
	ReplMlConflict *conflict = NULL;
	ReplMlVerdict verdict;
	const ReplMlClock *here;

	if (!repl_ml_target_find(target, searched))
		return NULL;
	here = clock_of(target, target->found);
	verdict = repl_ml_conflict_decide(here, dead, false);
	if (verdict.conflict)
		conflict = repl_ml_history_describe(target, key, target->found, here, NULL, dead,
											verdict.action == REPL_ML_TAKE);
	if (verdict.action == REPL_ML_TAKE)
	{
		if (repl_ml_clock_compare(verdict.clock, dead) != REPL_ML_CLOCK_EQUAL)
			repl_ml_tombstone_insert(target->table, key, verdict.clock);
		repl_ml_target_delete(target);
	}
	else if (verdict.action == REPL_ML_KEEP_RECLOCK)
		repl_ml_target_update(target, with_clock(target, target->found, verdict.clock));
	return conflict;
}

/* The row in "slot" under another clock, in the target's scratch slot. */
static TupleTableSlot *
with_clock(ReplMlTarget *target, TupleTableSlot *slot, const ReplMlClock *clock)
{
	TupleTableSlot *result = target->scratch;
	int			natts = result->tts_tupleDescriptor->natts;

	slot_getallattrs(slot);
	ExecClearTuple(result);
	memcpy(result->tts_values, slot->tts_values, natts * sizeof(Datum));
	memcpy(result->tts_isnull, slot->tts_isnull, natts * sizeof(bool));
	result->tts_values[target->table->clock_attnum - 1] = PointerGetDatum(clock);
	result->tts_isnull[target->table->clock_attnum - 1] = false;
	return ExecStoreVirtualTuple(result);
}

/* The clock of a version; an error if it has none. */
static const ReplMlClock *
clock_of(ReplMlTarget *target, TupleTableSlot *slot)
{
	bool		isnull;
	Datum		value = slot_getattr(slot, target->table->clock_attnum, &isnull);

	if (isnull)
		ereport(ERROR,
				(errcode(ERRCODE_NOT_NULL_VIOLATION),
				 errmsg("a row of table \"%s.%s\" came without a clock",
						NameStr(target->table->schema_name), NameStr(target->table->table_name))));
	return DatumGetReplMlClockP(value);
}

/* Are the two versions the same but for their clocks?  Binary images decide. */
static bool
same_content(ReplMlTarget *target, TupleTableSlot *a, TupleTableSlot *b)
{
	TupleDesc	desc = RelationGetDescr(target->rel);

	slot_getallattrs(a);
	slot_getallattrs(b);
	for (int i = 0; i < desc->natts; i++)
	{
		Form_pg_attribute att = TupleDescAttr(desc, i);

		if (att->attisdropped || att->attgenerated != '\0' || i == target->table->clock_attnum - 1)
			continue;
		if (a->tts_isnull[i] != b->tts_isnull[i])
			return false;
		if (!a->tts_isnull[i] &&
			!datum_image_eq(a->tts_values[i], b->tts_values[i], att->attbyval, att->attlen))
			return false;
	}
	return true;
}
