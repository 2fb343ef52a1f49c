/*
 * unique.c
 *		Rows that collide on a unique key other than the primary key.
 *
 * Two nodes may each accept a row with the same unique value.  Wherever the
 * two meet, the one that was written earlier (its dot is less) is evicted: it
 * leaves the table, is recorded as a conflict and parked with its values.
 *
 * Not every node need see them meet: the later row may have got another value
 * by the time the earlier one arrives.  So an eviction is announced to the
 * group, as a deletion with the very clock of the evicted version: not a new
 * event, and whoever sees the collision announces the same.  In the join
 * (conflict.c) it takes the place of just that version; a later version of the
 * row is not affected and may win the key in its turn.
 *
 * What the worker applies travels no further, so the announcement needs a
 * transaction of its own: repl_ml.eviction keeps it until then.
 *
 * Not which of two versions of one row wins (conflict.c, resolve.c), nor how a
 * row is found and written (row/store.c).  Locks: the rival's row, until the
 * transaction ends.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/indexing.h"
#include "catalog/pg_type.h"
#include "executor/executor.h"
#include "executor/spi.h"
#include "executor/nodeModifyTable.h"
#include "miscadmin.h"
#include "replication/origin.h"
#include "utils/fmgrprotos.h"
#include "utils/lsyscache.h"
#include "utils/snapmgr.h"

#include "compat.h"
#include "converge/converge.h"
#include "row/row.h"
#include "server/server.h"
#include "wire/wire.h"

#define EVICTION_TABLE	"eviction"

enum
{
	Anum_eviction_schema_name = 1,
	Anum_eviction_table_name,
	Anum_eviction_key,
	Anum_eviction_key_columns,
	Anum_eviction_key_hash,
	Anum_eviction_eviction,
	Anum_eviction_clock,
	Natts_eviction = Anum_eviction_clock
};

static bool make_room_in(ReplMlJoin *join, Relation index, TupleTableSlot *row,
						 const ReplMlClock *clock, bool replaces_found);
static bool is_free(ReplMlTarget *target, Relation index, TupleTableSlot *row, ItemPointer rival);
static bool evict_rival(ReplMlJoin *join, Relation index, TupleTableSlot *row,
						const ReplMlClock *clock);
/* Has this process evicted something that is not announced yet? */
static bool announcement_due = false;

static void remember_eviction(ReplMlTable *table, Datum *key, const ReplMlClock *clock,
							  const char *eviction);

/*
 * Makes room for "row", a version with "clock", in the unique indexes of the
 * table: evicts the rows that have to yield to it.  Returns false, and has
 * noted the loss in the join, if it has to yield itself.  With
 * "replaces_found" target->found is its own former version.
 */
bool
repl_ml_unique_make_room(ReplMlJoin *join, TupleTableSlot *row, const ReplMlClock *clock,
						 bool replaces_found)
{
	ReplMlTarget *target = join->target;
	ResultRelInfo *result = target->result;
	bool		computed = false;

	for (int i = 0; i < result->ri_NumIndices; i++)
	{
		Relation	index = result->ri_IndexRelationDescs[i];

		if (index == NULL || RelationGetRelid(index) == target->table->key_index ||
			!(index->rd_index->indisunique || index->rd_index->indisexclusion))
			continue;

		/* an index may be on a generated column */
		if (!computed && RelationGetDescr(target->rel)->constr != NULL &&
			RelationGetDescr(target->rel)->constr->has_generated_stored)
			ExecComputeStoredGenerated(result, target->estate, row, CMD_INSERT);
		computed = true;
		if (!make_room_in(join, index, row, clock, replaces_found))
			return false;
	}
	return true;
}

/* Makes room in one index; an exclusion constraint may have several rivals. */
static bool
make_room_in(ReplMlJoin *join, Relation index, TupleTableSlot *row, const ReplMlClock *clock,
			 bool replaces_found)
{
	ReplMlTarget *target = join->target;
	TupleTableSlot *own = target->found;
	bool		has_room = true;
	ItemPointerData rival;

	for (;;)
	{
		bool		free;

		CHECK_FOR_INTERRUPTS();
		free = is_free(target, index, row, &rival);
		if (free || (replaces_found && ItemPointerEquals(&rival, &own->tts_tid)))
			return true;

		/* lock it; what somebody has changed meanwhile is looked at again */
		if (!table_tuple_fetch_row_version(target->rel, &rival, SnapshotAny, target->rival))
			continue;
		ExecCopySlot(target->rival_key, target->rival);
		target->found = target->rival;
		if (repl_ml_target_find(target, target->rival_key) &&
			ItemPointerEquals(&rival, &target->rival->tts_tid))
			has_room = evict_rival(join, index, row, clock);
		target->found = own;
		if (!has_room)
			return false;
	}
}

/*
 * Says whether no other row has the row's values in the index; if one has,
 * "rival" is it.  Also for deferrable constraints, which core does not ask
 * this way: their own check at the end of the transaction does not run while
 * applying.
 */
static bool
is_free(ReplMlTarget *target, Relation index, TupleTableSlot *row, ItemPointer rival)
{
	bool		immediate = index->rd_index->indimmediate;
	volatile bool free = false;

	/*
	 * Written in the relation cache, where core looks before it says that such
	 * constraints cannot be asked: then no row of the tables "pos" and "late"
	 * of test 102 is applied.
	 */
	PushActiveSnapshot(GetLatestSnapshot());
	index->rd_index->indimmediate = true;
	PG_TRY();
	{
		free = ExecCheckIndexConstraints_compat(target->result, row, target->estate, rival,
												list_make1_oid(RelationGetRelid(index)));
	}
	PG_FINALLY();
	{
		index->rd_index->indimmediate = immediate;
	}
	PG_END_TRY();
	PopActiveSnapshot();
	ResetPerTupleExprContext(target->estate);
	return free;
}

/*
 * Evicts the rival, in target->found, if it is the one to yield.  Returns
 * false if the row is: then its loss is noted in the join.  Every node decides
 * alike, as only the dots count.
 */
static bool
evict_rival(ReplMlJoin *join, Relation index, TupleTableSlot *row, const ReplMlClock *clock)
{
	ReplMlTarget *target = join->target;
	ReplMlTable *table = target->table;
	Datum		key[INDEX_MAX_KEYS];
	bool		isnull;
	Datum		value = slot_getattr(target->found, table->clock_attnum, &isnull);
	const ReplMlClock *rival =
		repl_ml_late_rename(repl_ml_table_clock(table, value, isnull), NULL);
	ReplMlVersions versions = {0};
	const ReplMlClock *loser;
	const char *index_name = RelationGetRelationName(index);
	ReplMlConflict *conflict;
	bool		resolved;

	if (repl_ml_clock_dot_before(repl_ml_clock_dot(clock), repl_ml_clock_dot(rival)))
	{
		conflict = repl_ml_history_describe_eviction(target, join->key, row, join->winner_clock,
													 target->found, rival, index_name);
		join->conflicts = lappend(join->conflicts, conflict);
		join->eviction = repl_ml_history_eviction_as_json(conflict, index_name);
		return false;
	}

	/* what is evicted is a version, not what a node has made of several */
	repl_ml_key_from_slot(table, target->found, key);
	resolved = repl_ml_version_load(table, key, RelationGetDescr(target->rel), rival, &versions);
	loser = resolved ? repl_ml_resolve(target, &versions, rival)->winner->clock : rival;
	conflict = repl_ml_history_describe_eviction(target, key, target->found, loser, row, clock,
												 index_name);
	join->conflicts = lappend(join->conflicts, conflict);
	repl_ml_unique_evict(target, key, rival, resolved ? &versions : NULL,
						 repl_ml_history_eviction_as_json(conflict, index_name));
	repl_ml_target_delete(target);
	return true;
}

/*
 * Records, for row.c and this file, that the version with "clock" of the row
 * with this key is gone, and orders its announcement.  "versions" are what it
 * was resolved from, NULL for one alone: each of them is evicted.  "eviction"
 * tells for whom, as JSON.  The caller removes the row.
 */
void
repl_ml_unique_evict(ReplMlTarget *target, Datum *key, const ReplMlClock *clock,
					 const ReplMlVersions *versions,
					 const char *eviction)
{
	if (versions == NULL || versions->count < 2)
	{
		repl_ml_tombstone_insert(target->table, key, repl_ml_clock_merge(clock, clock), eviction);
		remember_eviction(target->table, key, clock, eviction);
		return;
	}

	/*
	 * other nodes have the versions it was resolved from: each is evicted
	 * under its own clock
	 */
	repl_ml_tombstone_insert_merged(target->table, key, repl_ml_clock_merge(clock, clock));
	for (int i = 0; i < versions->count; i++)
	{
		ReplMlVersion *version = &versions->all[i];

		if (version->deleted)
			continue;
		repl_ml_tombstone_insert(target->table, key,
								 repl_ml_clock_merge(version->clock, version->clock), eviction);
		remember_eviction(target->table, key, version->clock, eviction);
		version->deleted = true;
		version->row = NULL;
		version->eviction = eviction;
	}
	repl_ml_version_save(target->table, key, versions);
}

/*
 * Writes the row of repl_ml.eviction that lives until the eviction is
 * announced.
 */
static void
remember_eviction(ReplMlTable *table, Datum *key, const ReplMlClock *clock, const char *eviction)
{
	Relation	rel = table_open(repl_ml_catalog_oid(EVICTION_TABLE), RowExclusiveLock);
	Datum		values[Natts_eviction];
	bool		nulls[Natts_eviction] = {false};

	values[Anum_eviction_schema_name - 1] = NameGetDatum(&table->schema_name);
	values[Anum_eviction_table_name - 1] = NameGetDatum(&table->table_name);
	values[Anum_eviction_key - 1] = repl_ml_key_to_array(table, key);
	values[Anum_eviction_key_columns - 1] = table->key_columns;
	values[Anum_eviction_key_hash - 1] = Int64GetDatum((int64) repl_ml_key_hash(table, key));
	values[Anum_eviction_eviction - 1] = DirectFunctionCall1(jsonb_in, CStringGetDatum(eviction));
	values[Anum_eviction_clock - 1] = PointerGetDatum(repl_ml_clock_merge(clock, clock));
	CatalogTupleInsert(rel, heap_form_tuple(RelationGetDescr(rel), values, nulls));
	table_close(rel, RowExclusiveLock);
	announcement_due = true;
}

/*
 * Tells the group what this apply worker has evicted, in a transaction that,
 * other than those it applies, goes to all members.  The worker calls it
 * between transactions; what a crash leaves over is the supervisor's.
 */
void
repl_ml_unique_announce(void)
{
	RepOriginId origin = replorigin_session_origin;

	if (!announcement_due)
		return;
	replorigin_session_origin = InvalidRepOriginId;
	PG_TRY();
	{
		repl_ml_begin();
		SPI_execute("SELECT repl_ml.announce_evictions()", false, 0);
		repl_ml_commit();
	}
	PG_FINALLY();
	{
		replorigin_session_origin = origin;
	}
	PG_END_TRY();
	announcement_due = false;
}
