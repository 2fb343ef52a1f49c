/*
 * stamp.c
 *		Puts the clock into a row as it is written.
 *
 * INSERT is stamped by the clock column's default, repl_ml.tick(), because a
 * BEFORE INSERT trigger would switch off COPY's multi-insert.  An AFTER INSERT
 * trigger, whose WHEN clause is false for nearly every row, then mends what
 * the default cannot know: the key's tombstones, and a clock that the user
 * supplied.  UPDATE and DELETE have BEFORE triggers.  All are ENABLE ALWAYS
 * and do nothing for what is applied (repl_ml_applying).  What a user's
 * trigger writes while a change is applied would stay on this node, so it is
 * refused.
 *
 * What leaves here with the row: a clock strictly above that of the version
 * it replaces, and above the tombstones of its key.  Next on the way:
 * output.c.
 *
 * Not here: what a counter is (server/ticker.c), and tombstones' order with the
 * rows of other transactions (row/tombstone.c).  No locks but those of the
 * statement.
 */
#include "postgres.h"

#include "access/detoast.h"
#include "access/htup_details.h"
#include "access/sysattr.h"
#include "access/xact.h"
#include "access/table.h"
#include "access/tableam.h"
#include "catalog/pg_inherits.h"
#include "catalog/pg_trigger.h"
#include "commands/trigger.h"
#include "executor/executor.h"
#include "executor/instrument.h"
#include "miscadmin.h"
#include "nodes/bitmapset.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

#include "commit/commit.h"
#include "compat.h"
#include "row/row.h"
#include "server/server.h"
#include "wire/wire.h"
#include "write/write.h"

/* Counter of the last row that this process gave another key; written by stamp_update. */
static uint64 last_moved = 0;

static const ReplMlIdentity *writing_member(void);
static ReplMlClock *advance_clock(const ReplMlClock *clock, const ReplMlIdentity *self);
static void refuse_in_apply(int own_depth);
static ReplMlTable *trigger_table(FunctionCallInfo fcinfo, TriggerEvent when, const char *name);
static ReplMlClock *tuple_clock(ReplMlTable *table, HeapTuple tuple, TupleDesc desc);
static ReplMlClock *replaced_clock(TriggerData *trigdata, ReplMlTable *table,
								   const ReplMlIdentity *self);
static void refuse_later_triggers(TriggerData *trigdata);
static HeapTuple copy_with_clock(ReplMlTable *table, TupleDesc desc, HeapTuple tuple,
								 const ReplMlClock *clock);
static HeapTuple copy_with_whole_values(HeapTuple tuple, TupleDesc desc);
static ReplMlClock *above_former(ReplMlTable *table, TupleTableSlot *slot, ReplMlClock *clock);
static bool was_much_written(void);
static void check_size(Relation rel, HeapTuple tuple);
static bool key_changes(TriggerData *trigdata, ReplMlTable *table);
static bool is_own_tick(const ReplMlClock *clock, const ReplMlIdentity *self);
static void raise_above_tombstones(TriggerData *trigdata, ReplMlTable *table, TupleTableSlot *slot,
								   bool only_own);
static ReplMlClock *trusted_clock(ReplMlClock *clock, const ReplMlIdentity *self);
static void restamp_row(Relation rel, TupleTableSlot *slot, const ReplMlClock *clock);

PG_FUNCTION_INFO_V1(repl_ml_tick);

/*
 * repl_ml.tick() returns vclock: the clock of a row that a backend is
 * inserting.
 *
 * The clock column's default.  It is declared STABLE, not VOLATILE, so that
 * COPY keeps its multi-insert; it is evaluated once a row all the same.  In a
 * database that is not a member of a group (a restored dump) it is empty.
 */
Datum
repl_ml_tick(PG_FUNCTION_ARGS)
{
	const ReplMlIdentity *self = writing_member();

	refuse_in_apply(0);
	repl_ml_number_tick();
	if (self == NULL)
		PG_RETURN_POINTER(repl_ml_clock_empty());
	PG_RETURN_POINTER(repl_ml_clock_make(self->node_id, repl_ml_ticker_next(0)));
}

PG_FUNCTION_INFO_V1(repl_ml_insert_pending);

/*
 * repl_ml.insert_pending(clock, relation) returns boolean: whether a row just
 * inserted needs stamp_insert.  The AFTER INSERT trigger's WHEN clause.
 *
 * False for a clock this transaction ticked, unless the table has deleted rows
 * or the row may be too long.
 */
Datum
repl_ml_insert_pending(PG_FUNCTION_ARGS)
{
	refuse_in_apply(0);
	if (repl_ml_applying || repl_ml_shared == NULL)
		PG_RETURN_BOOL(false);
	repl_ml_level_note(PG_GETARG_OID(1));
	if (PG_ARGISNULL(0))
		PG_RETURN_BOOL(true);
	if (repl_ml_shmem_may_have_tombstone(PG_GETARG_OID(1)) || was_much_written())
		PG_RETURN_BOOL(true);
	PG_RETURN_BOOL(!is_own_tick(PG_GETARG_REPL_ML_CLOCK_P(0), repl_ml_identity()));
}

/*
 * Says whether so much has gone into the WAL since the last row that the one
 * just inserted may be too long.  The row itself is not to be seen here.  Rows
 * that COPY inserts together share the answer.
 */
static bool
was_much_written(void)
{
	static uint64 written = 0;
	static bool much = false;

	if (pgWalUsage.wal_bytes != written)
	{
		much = repl_ml_size_is_doubtful(pgWalUsage.wal_bytes - written);
		written = pgWalUsage.wal_bytes;
	}
	return much;
}

PG_FUNCTION_INFO_V1(repl_ml_stamp_insert);

/*
 * The AFTER INSERT ROW trigger: gives the row a clock above the tombstones of
 * its key; a clock that is not of this transaction (a user's, a dump's) is
 * replaced by a fresh one.
 */
Datum
repl_ml_stamp_insert(PG_FUNCTION_ARGS)
{
	TriggerData *trigdata = (TriggerData *) fcinfo->context;
	ReplMlTable *table = trigger_table(fcinfo, TRIGGER_EVENT_AFTER | TRIGGER_EVENT_INSERT,
									   "stamp_insert");

	if (table != NULL && writing_member() != NULL)
	{
		slot_getallattrs(trigdata->tg_trigslot);
		repl_ml_size_check(trigdata->tg_relation, trigdata->tg_trigslot->tts_values,
						   trigdata->tg_trigslot->tts_isnull);
		raise_above_tombstones(trigdata, table, trigdata->tg_trigslot, true);
	}
	return PointerGetDatum(NULL);
}

PG_FUNCTION_INFO_V1(repl_ml_stamp_update);

/*
 * The BEFORE UPDATE ROW trigger: gives the new version a clock strictly above
 * the old one's, with what the merge rules of its columns need to know, and
 * makes it travel whole.  A changed primary key leaves a tombstone under the
 * old one, and the row begins anew.  In a database that is in no group (a
 * restored dump) the row loses its clock.
 */
Datum
repl_ml_stamp_update(PG_FUNCTION_ARGS)
{
	TriggerData *trigdata = (TriggerData *) fcinfo->context;
	ReplMlTable *table = trigger_table(fcinfo, TRIGGER_EVENT_BEFORE | TRIGGER_EVENT_UPDATE,
									   "stamp_update");
	const ReplMlIdentity *self = table == NULL ? NULL : writing_member();
	const ReplMlPolicy *policy;
	TupleDesc	desc;
	HeapTuple	result;
	ReplMlClock *old;
	ReplMlClock *clock;

	if (table == NULL)
		return PointerGetDatum(trigdata->tg_newtuple);
	desc = RelationGetDescr(trigdata->tg_relation);
	/* in no group: what its clock says is not this version's any more */
	if (self == NULL)
		return PointerGetDatum(copy_with_clock(table, desc, trigdata->tg_newtuple,
											   repl_ml_clock_empty()));

	refuse_later_triggers(trigdata);
	old = replaced_clock(trigdata, table, self);
	clock = above_former(table, trigdata->tg_newslot, old);
	clock = advance_clock(clock, self);

	if (key_changes(trigdata, table))
	{
		Datum		key[INDEX_MAX_KEYS];

		repl_ml_key_from_tuple(table, trigdata->tg_trigtuple, desc, key);
		repl_ml_tombstone_insert(table, key, clock, NULL);
		/* the new key's row is a new row; stamp_moved looks for tombstones */
		last_moved = repl_ml_ticker_next(repl_ml_clock_max_counter(clock));
		clock = repl_ml_clock_make(self->node_id, last_moved);
	}
	else if ((policy = repl_ml_policy_now(table)) != NULL && policy->merge_count > 0)
		clock = repl_ml_share_update(policy, desc, trigdata->tg_trigtuple, trigdata->tg_newtuple,
									 old, clock);

	/* what is not next to its clock would be another version's elsewhere */
	result = copy_with_clock(table, desc, trigdata->tg_newtuple, clock);
	if (HeapTupleHasExternal(result) || repl_ml_size_is_doubtful(result->t_len))
		check_size(trigdata->tg_relation, result);
	if (HeapTupleHasExternal(result))
		result = copy_with_whole_values(result, desc);
	return PointerGetDatum(result);
}

/* Raises an error if the row that an update makes is too long. */
static void
check_size(Relation rel, HeapTuple tuple)
{
	TupleDesc	desc = RelationGetDescr(rel);
	Datum	   *values = palloc(desc->natts * sizeof(Datum));
	bool	   *nulls = palloc(desc->natts * sizeof(bool));

	heap_deform_tuple(tuple, desc, values, nulls);
	repl_ml_size_check(rel, values, nulls);
	pfree(values);
	pfree(nulls);
}

/*
 * Returns the clock, merged with those of tombstones that the row in "slot"
 * has by a key which the table had, or a peer has: the row may get their
 * values by an update of columns that are no key now.
 */
static ReplMlClock *
above_former(ReplMlTable *table, TupleTableSlot *slot, ReplMlClock *clock)
{
	ReplMlClock *dead = table->former_count == 0 ? NULL :
		repl_ml_tombstone_find_former(table, slot, 0);

	return dead == NULL ? clock : repl_ml_clock_merge(clock, dead);
}

PG_FUNCTION_INFO_V1(repl_ml_moved_pending);

/*
 * repl_ml.moved_pending(clock) returns boolean: whether a row just updated
 * needs stamp_moved.  The trigger's WHEN clause, so that no event is queued
 * for the others; it names no key column, because a trigger that does could
 * not stay when the key changes.
 */
Datum
repl_ml_moved_pending(PG_FUNCTION_ARGS)
{
	if (repl_ml_applying || last_moved == 0)
		PG_RETURN_BOOL(false);
	PG_RETURN_BOOL(repl_ml_clock_max_counter(PG_GETARG_REPL_ML_CLOCK_P(0)) == last_moved);
}

PG_FUNCTION_INFO_V1(repl_ml_stamp_moved);

/*
 * The AFTER UPDATE ROW trigger: gives a row that moved to another key a clock
 * above that key's tombstones.
 */
Datum
repl_ml_stamp_moved(PG_FUNCTION_ARGS)
{
	TriggerData *trigdata = (TriggerData *) fcinfo->context;
	ReplMlTable *table = trigger_table(fcinfo, TRIGGER_EVENT_AFTER | TRIGGER_EVENT_UPDATE,
									   "stamp_moved");

	if (table != NULL && key_changes(trigdata, table))
		raise_above_tombstones(trigdata, table, trigdata->tg_newslot, false);
	return PointerGetDatum(NULL);
}

PG_FUNCTION_INFO_V1(repl_ml_stamp_delete);

/*
 * The BEFORE DELETE ROW trigger: leaves a tombstone with the deletion's clock.
 */
Datum
repl_ml_stamp_delete(PG_FUNCTION_ARGS)
{
	TriggerData *trigdata = (TriggerData *) fcinfo->context;
	ReplMlTable *table = trigger_table(fcinfo, TRIGGER_EVENT_BEFORE | TRIGGER_EVENT_DELETE,
									   "stamp_delete");
	const ReplMlIdentity *self = table == NULL ? NULL : writing_member();
	TupleDesc	desc;
	Datum		key[INDEX_MAX_KEYS];
	ReplMlClock *old;

	if (self == NULL)
		return PointerGetDatum(trigdata->tg_trigtuple);

	refuse_later_triggers(trigdata);
	desc = RelationGetDescr(trigdata->tg_relation);
	old = tuple_clock(table, trigdata->tg_trigtuple, desc);
	repl_ml_key_from_tuple(table, trigdata->tg_trigtuple, desc, key);
	repl_ml_tombstone_insert(table, key, advance_clock(old, self), NULL);
	return PointerGetDatum(trigdata->tg_trigtuple);
}

/* Leaves a tombstone for every row of one table or partition. */
static void
bury_all_rows(Oid relid, const ReplMlIdentity *self)
{
	Relation	rel = table_open(relid, NoLock);
	ReplMlTable *table = repl_ml_table_get(rel);
	MemoryContext per_row = AllocSetContextCreate(CurrentMemoryContext, "repl_ml truncate",
												  ALLOCSET_DEFAULT_SIZES);
	TupleTableSlot *slot = table_slot_create(rel, NULL);
	Snapshot	snapshot = RegisterSnapshot(GetLatestSnapshot());
	TableScanDesc scan = table_beginscan(rel, snapshot, 0, NULL);

	/* row triggers, which note it otherwise, do not fire */
	repl_ml_level_note(table->root);
	while (table_scan_getnextslot(scan, ForwardScanDirection, slot))
	{
		MemoryContext old = MemoryContextSwitchTo(per_row);
		Datum		key[INDEX_MAX_KEYS];
		ReplMlClock *clock;
		Datum		value;
		bool		isnull;

		CHECK_FOR_INTERRUPTS();
		value = slot_getattr(slot, table->clock_attnum, &isnull);
		clock = repl_ml_table_clock(table, value, isnull);
		repl_ml_key_from_slot(table, slot, key);
		clock = advance_clock(clock, self);
		repl_ml_tombstone_insert(table, key, clock, NULL);
		MemoryContextSwitchTo(old);
		MemoryContextReset(per_row);
	}
	table_endscan(scan);
	UnregisterSnapshot(snapshot);
	ExecDropSingleTupleTableSlot(slot);
	MemoryContextDelete(per_row);
	table_close(rel, NoLock);
}

PG_FUNCTION_INFO_V1(repl_ml_stamp_truncate);

/*
 * The BEFORE TRUNCATE trigger: to the group a TRUNCATE is the deletion of
 * every row this node has, so that a row inserted elsewhere meanwhile survives
 * everywhere.
 */
Datum
repl_ml_stamp_truncate(PG_FUNCTION_ARGS)
{
	TriggerData *trigdata = (TriggerData *) fcinfo->context;
	const ReplMlIdentity *self;
	ListCell   *lc;

	if (!CALLED_AS_TRIGGER(fcinfo) || !TRIGGER_FIRED_BY_TRUNCATE(trigdata->tg_event))
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("function \"%s\" must be called as a BEFORE TRUNCATE trigger",
						"stamp_truncate"),
				 errhint("Make the table's triggers with repl_ml.add_table.")));
	refuse_in_apply(1);
	if (repl_ml_applying || (self = writing_member()) == NULL)
		return PointerGetDatum(NULL);

	/* a partitioned table's trigger stands for its partitions, locked with it */
	foreach(lc, find_all_inheritors(RelationGetRelid(trigdata->tg_relation), NoLock, NULL))
	{
		if (get_rel_relkind(lfirst_oid(lc)) == RELKIND_RELATION)
			bury_all_rows(lfirst_oid(lc), self);
	}
	return PointerGetDatum(NULL);
}

/*
 * Returns who stamps; NULL where there is no group.  Raises an error where
 * this node must not write: a copy of a node, or one that is still joining, unless
 * it is a function of ours that writes down who else joins or leaves.
 */
static const ReplMlIdentity *
writing_member(void)
{
	const ReplMlIdentity *self;

	repl_ml_shmem_require();
	self = repl_ml_identity();
	if (!self->member)
		return NULL;
	if (self->fenced || self->dropped || self->set_back)
		self = repl_ml_identity_require();
	if (self->joining && !repl_ml_internal_write && !repl_ml_guard_off)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("node \"%s\" is still joining the group", NameStr(self->node_name)),
				 errhint("Wait with SELECT repl_ml.wait_for_node(%s, '10 min').",
						 quote_literal_cstr(NameStr(self->node_name)))));
	return self;
}

/* Returns the clock of a write of this node above "clock". */
static ReplMlClock *
advance_clock(const ReplMlClock *clock, const ReplMlIdentity *self)
{
	return repl_ml_clock_advance(clock, self->node_id,
								 repl_ml_ticker_next(repl_ml_clock_max_counter(clock)));
}

/*
 * Returns the table a trigger was fired for, checked to be the trigger it
 * should be; NULL in a process that applies.
 */
static ReplMlTable *
trigger_table(FunctionCallInfo fcinfo, TriggerEvent when, const char *name)
{
	TriggerData *trigdata = (TriggerData *) fcinfo->context;
	ReplMlTable *table;

	if (!CALLED_AS_TRIGGER(fcinfo) || !TRIGGER_FIRED_FOR_ROW(trigdata->tg_event) ||
		(trigdata->tg_event & TRIGGER_EVENT_OPMASK) != (when & TRIGGER_EVENT_OPMASK) ||
		(trigdata->tg_event & TRIGGER_EVENT_TIMINGMASK) != (when & TRIGGER_EVENT_TIMINGMASK))
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("function \"%s\" must be called as the row trigger repl_ml.add_table makes",
						name),
				 errhint("Make the table's triggers with repl_ml.add_table.")));
	refuse_in_apply(1);
	if (repl_ml_applying)
		return NULL;
	table = repl_ml_table_get(trigdata->tg_relation);
	/* the group's own lists wait for nobody: who is missing is dropped by a change of them */
	if (RelationGetNamespace(trigdata->tg_relation) != repl_ml_schema_oid())
		repl_ml_level_note(table->root);
	return table;
}

/*
 * Raises an error if this is run by a user's trigger in a process that
 * applies: by more triggers, that is, than the "own_depth" that a change
 * itself fires.
 */
static void
refuse_in_apply(int own_depth)
{
	if (!repl_ml_applying ||
		DatumGetInt32(DirectFunctionCall1(pg_trigger_depth, (Datum) 0)) <=
		repl_ml_applying_depth + own_depth)
		return;
	ereport(ERROR,
			(errcode(ERRCODE_TRIGGERED_DATA_CHANGE_VIOLATION),
			 errmsg("a trigger wrote a replicated table while a change was applied"),
			 errdetail("What it wrote would not reach the other nodes, where the trigger fires as "
					   "well."),
			 errhint("Run ALTER TABLE ... ENABLE TRIGGER ..., so that the trigger fires where the "
					 "user writes only.")));
}

/* Returns a table's name as SQL takes it. */
static char *
qualified_name(Relation rel)
{
	return quote_qualified_identifier(get_namespace_name(RelationGetNamespace(rel)),
									  RelationGetRelationName(rel));
}

/*
 * Raises an error if a user's trigger fires behind ours.  Triggers fire in the
 * order of their names, and ours is to see the row as it will be: one behind
 * it could keep a row whose deletion is recorded already, or give it another
 * key or clock.
 */
static void
refuse_later_triggers(TriggerData *trigdata)
{
	Relation	rel = trigdata->tg_relation;

	/* from the last one down to ours */
	for (int i = rel->trigdesc->numtriggers - 1; i >= 0; i--)
	{
		Trigger    *trigger = &rel->trigdesc->triggers[i];

		if (trigger->tgoid == trigdata->tg_trigger->tgoid)
			return;
		if (trigger->tgenabled != TRIGGER_DISABLED &&
			TRIGGER_FOR_ROW(trigger->tgtype) && TRIGGER_FOR_BEFORE(trigger->tgtype) &&
			(TRIGGER_FIRED_BY_DELETE(trigdata->tg_event) ? TRIGGER_FOR_DELETE(trigger->tgtype) :
			 TRIGGER_FOR_UPDATE(trigger->tgtype)))
			ereport(ERROR,
					(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
					 errmsg("trigger \"%s\" of replicated table \"%s\" fires after \"%s\"",
							trigger->tgname, RelationGetRelationName(rel),
							trigdata->tg_trigger->tgname),
					 errhint("Run ALTER TRIGGER %s ON %s RENAME TO ... with a name that sorts "
							 "before \"%s\".",
							 quote_identifier(trigger->tgname), qualified_name(rel),
							 trigdata->tg_trigger->tgname)));
	}
}

/*
 * Returns a copy of "tuple" with another clock.  Where the clock is the last
 * column and keeps its length, as nearly always, its bytes are at the tuple's
 * end.
 */
static HeapTuple
copy_with_clock(ReplMlTable *table, TupleDesc desc, HeapTuple tuple, const ReplMlClock *clock)
{
	Datum		value = PointerGetDatum(clock);
	bool		isnull;

	if (table->clock_is_last)
	{
		struct varlena *old = (struct varlena *)
			DatumGetPointer(heap_getattr(tuple, table->clock_attnum, desc, &isnull));
		char	   *start = (char *) tuple->t_data;

		if (!isnull && (char *) old > start && (char *) old < start + tuple->t_len &&
			VARATT_IS_SHORT(old) && !VARATT_IS_EXTERNAL(old) &&
			VARSIZE_ANY_EXHDR(old) == VARSIZE_ANY_EXHDR(clock) &&
			(char *) old + VARSIZE_SHORT(old) == start + tuple->t_len)
		{
			HeapTuple	copy = heap_copytuple(tuple);

			memcpy((char *) copy->t_data + (VARDATA_SHORT(old) - start),
				   VARDATA_ANY(clock), VARSIZE_ANY_EXHDR(clock));
			return copy;
		}
	}
	isnull = false;
	return heap_modify_tuple_by_cols(tuple, desc, 1, (int[]) {table->clock_attnum}, &value,
									 &isnull);
}

/*
 * Returns a copy of "tuple" with its out-of-line values inline, so that they
 * are written anew and are in the WAL next to the clock: an unchanged one
 * would not be, and a node that has another version would mix the two.
 */
static HeapTuple
copy_with_whole_values(HeapTuple tuple, TupleDesc desc)
{
	Datum	   *values = palloc(desc->natts * sizeof(Datum));
	bool	   *nulls = palloc(desc->natts * sizeof(bool));
	HeapTuple	result;

	heap_deform_tuple(tuple, desc, values, nulls);
	for (int i = 0; i < desc->natts; i++)
	{
		if (!nulls[i] && TupleDescAttr(desc, i)->attlen == -1 &&
			VARATT_IS_EXTERNAL(DatumGetPointer(values[i])))
		{
			struct varlena *value = (struct varlena *) DatumGetPointer(values[i]);

			values[i] = PointerGetDatum(detoast_external_attr(value));
		}
	}
	result = heap_form_tuple(desc, values, nulls);

	/* what core, which gets this one back, knows of the other */
	result->t_data->t_ctid = tuple->t_data->t_ctid;
	result->t_self = tuple->t_self;
	result->t_tableOid = tuple->t_tableOid;
	return result;
}

/* Says whether there is a BEFORE UPDATE row trigger besides stamp_update. */
static bool
others_may_change_row(TriggerDesc *triggers)
{
	int			count = 0;

	for (int i = 0; i < triggers->numtriggers; i++)
	{
		int16		type = triggers->triggers[i].tgtype;

		if (TRIGGER_FOR_ROW(type) && TRIGGER_FOR_BEFORE(type) && TRIGGER_FOR_UPDATE(type))
			count++;
	}
	return count > 1;
}

/*
 * Says whether this UPDATE gives the row another primary key.  A key column
 * that only a user's trigger changes is refused: nobody would look at the new
 * key's tombstones.
 */
static bool
key_changes(TriggerData *trigdata, ReplMlTable *table)
{
	TupleDesc	desc = RelationGetDescr(trigdata->tg_relation);
	Datum		old[INDEX_MAX_KEYS];
	Datum		new[INDEX_MAX_KEYS];
	bool		named = false;

	for (int i = 0; i < table->key_natts; i++)
		named |= bms_is_member(table->key_attnums[i] - FirstLowInvalidHeapAttributeNumber,
							   trigdata->tg_updatedcols);
	if (!named && !others_may_change_row(trigdata->tg_relation->trigdesc))
		return false;
	repl_ml_key_from_tuple(table, trigdata->tg_trigtuple, desc, old);
	repl_ml_key_from_tuple(table, trigdata->tg_newtuple, desc, new);
	if (repl_ml_key_equal(table, old, new))
		return false;
	if (!named)
		ereport(ERROR,
				(errcode(ERRCODE_TRIGGERED_DATA_CHANGE_VIOLATION),
				 errmsg("a trigger changed the primary key of a row of replicated table \"%s\"",
						RelationGetRelationName(trigdata->tg_relation)),
				 errhint("Name the key column in the UPDATE's SET list.")));
	return true;
}

/* Returns the clock of a row. */
static ReplMlClock *
tuple_clock(ReplMlTable *table, HeapTuple tuple, TupleDesc desc)
{
	bool		isnull;
	Datum		value = heap_getattr(tuple, table->clock_attnum, desc, &isnull);

	return repl_ml_table_clock(table, value, isnull);
}

/*
 * Returns the clock of the row that an UPDATE replaces.  If it is NULL or
 * damaged, SET __repl_clock = DEFAULT mends it: the row begins anew, like a
 * new one.
 */
static ReplMlClock *
replaced_clock(TriggerData *trigdata, ReplMlTable *table, const ReplMlIdentity *self)
{
	TupleDesc	desc = RelationGetDescr(trigdata->tg_relation);
	bool		old_null;
	bool		new_null;
	Datum		old = heap_getattr(trigdata->tg_trigtuple, table->clock_attnum, desc, &old_null);
	Datum		new = heap_getattr(trigdata->tg_newtuple, table->clock_attnum, desc, &new_null);

	if ((old_null || !repl_ml_marks_clock_is_whole(DatumGetReplMlClockP(old))) &&
		!new_null && repl_ml_marks_clock_is_whole(DatumGetReplMlClockP(new)) &&
		is_own_tick(DatumGetReplMlClockP(new), self))
		return repl_ml_clock_empty();
	return repl_ml_table_clock(table, old, old_null);
}

/*
 * Says whether this is a clock that repl_ml.tick() has issued in this
 * transaction, not one of an updated row.
 */
static bool
is_own_tick(const ReplMlClock *clock, const ReplMlIdentity *self)
{
	Size		size;

	return repl_ml_clock_count(clock) == 1 && repl_ml_clock_marks(clock, &size) == NULL &&
		repl_ml_clock_entry(clock, 0).node == self->node_id &&
		repl_ml_ticker_issued_here(repl_ml_clock_entry(clock, 0).counter);
}

/*
 * Gives the row that now has the key of "slot" a clock above the key's
 * tombstones.  With "only_own" a clock that this transaction has not issued is
 * not believed but replaced.  No trigger fires for the change.
 */
static void
raise_above_tombstones(TriggerData *trigdata, ReplMlTable *table, TupleTableSlot *slot,
					   bool only_own)
{
	Relation	rel = trigdata->tg_relation;
	const ReplMlIdentity *self = writing_member();
	Datum		key[INDEX_MAX_KEYS];
	ReplMlClock *dead;
	ReplMlClock *clock;
	Datum		value;
	bool		isnull;
	bool		own;

	if (self == NULL)
		return;
	repl_ml_key_from_slot(table, slot, key);
	dead = repl_ml_tombstone_find(table, key, 0);
	if (table->former_count > 0)
		dead = above_former(table, slot, dead != NULL ? dead : repl_ml_clock_empty());
	value = slot_getattr(slot, table->clock_attnum, &isnull);
	/* NULL, as from a record that has no clock, stands for the default */
	clock = isnull && only_own ? repl_ml_clock_empty() : repl_ml_table_clock(table, value, isnull);
	own = !only_own || is_own_tick(clock, self);
	if (own && (dead == NULL || repl_ml_clock_compare(dead, clock) == REPL_ML_CLOCK_BEFORE))
		return;

	if (!own)
		clock = trusted_clock(clock, self);
	if (dead != NULL)
		clock = repl_ml_clock_merge(clock, dead);
	restamp_row(rel, slot, advance_clock(clock, self));
}

/*
 * Returns what a fresh clock has to be above when a user supplied "clock".
 * Peers get the row as it was inserted, too, and take no notice of it unless
 * its clock has just this node's entry (see apply/change.c).
 */
static ReplMlClock *
trusted_clock(ReplMlClock *clock, const ReplMlIdentity *self)
{
	if (repl_ml_clock_count(clock) != 1 || repl_ml_clock_entry(clock, 0).node != self->node_id)
		return repl_ml_clock_empty();
	if (repl_ml_clock_max_counter(clock) >
		repl_ml_ticker_now() + (uint64) repl_ml_max_clock_skew * 1000)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("the value of column \"%s\" is too far in the future",
						REPL_ML_CLOCK_COLUMN),
				 errhint("Leave the column out: repl_ml fills it.")));
	return clock;
}

/*
 * Puts "clock" into the current version of the row with the key of "slot",
 * which a trigger may have changed or deleted since; fires no trigger.
 */
static void
restamp_row(Relation rel, TupleTableSlot *slot, const ReplMlClock *clock)
{
	ReplMlTarget *target = repl_ml_target_open(rel, false);
	TupleTableSlot *stamped = table_slot_create(rel, NULL);

	/* the row is this very command's: only the next one may change it */
	CommandCounterIncrement();
	if (repl_ml_target_find(target, slot))
	{
		bool		should_free;
		HeapTuple	tuple = ExecFetchSlotHeapTuple(target->found, true, &should_free);
		HeapTuple	result = copy_with_clock(target->table, RelationGetDescr(rel), tuple, clock);

		if (HeapTupleHasExternal(result))
			result = copy_with_whole_values(result, RelationGetDescr(rel));
		ExecForceStoreHeapTuple(result, stamped, false);
		repl_ml_target_update(target, stamped);
		if (should_free)
			heap_freetuple(tuple);
	}
	ExecDropSingleTupleTableSlot(stamped);
	repl_ml_target_close(target);
}
