/*
 * heartbeat.c
 *		Writes this node's heartbeat: a row of repl_ml.heartbeat, which tells the others
 *		up to where they have all that it wrote, what it has of them, and how it is.
 *
 * Called by the supervisor, once a second as long as the node lives, so it is most
 * of what an idle node does: the row is read and stored without a statement, and
 * functions are called where there may be something to say.
 *
 * Not what peers make of it (apply/heard.c, repl_ml.stable_vector).  Locks: this
 * node's row, until the transaction ends.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/twophase.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/snapmgr.h"

#include "commit/commit.h"
#include "compat.h"
#include "group/group.h"
#include "row/row.h"
#include "server/server.h"
#include "wire/wire.h"

#define HEARTBEAT_TABLE		"heartbeat"
#define PENDING_COPIES		"table_sync_pending"	/* index of those that are due */

/* columns of repl_ml.heartbeat */
enum
{
	NODE_ID = 1,
	SENT_AT,
	SAFE_COUNTER,
	APPLIED,
	PARKED,
	LACKS,
	BEHIND,
	SEQUENCE,
	TOLD,
	TOLD_AT
};

/* Orders clocks, for qsort: the latest one first. */
static int
compare_later_first(const void *a, const void *b)
{
	int64		x = *(const int64 *) a;
	int64		y = *(const int64 *) b;

	return (x < y) - (x > y);
}

/*
 * Looks at the wall clocks of all members.  Where those of more than half of
 * them are ahead of ours, our counters follow the least of these.  Returns by
 * how many microseconds ours is behind which node's, at least.
 */
static ReplMlClock *
compare_clocks(void)
{
	int64		clocks[REPL_ML_MAX_WORKERS + 1];
	int			nodes[REPL_ML_MAX_WORKERS + 1];
	int			count = 1;
	int64		own = GetCurrentTimestamp() - (int64) repl_ml_monotonic_now();
	int64		majority;
	ReplMlClock *behind = repl_ml_clock_from_entries(NULL, 0);

	clocks[0] = own;
	LWLockAcquire(repl_ml_shared->lock, LW_SHARED);
	foreach_worker(worker, MyDatabaseId)
	{
		if (worker->peer == 0)
			continue;
		nodes[count] = worker->peer;
		clocks[count++] = worker->peer_clock;
	}
	LWLockRelease(repl_ml_shared->lock);

	/* what the heartbeat tells: others' clocks that are ahead of ours */
	for (int i = 1; i < count; i++)
	{
		ReplMlClockEntry entry = {.node = nodes[i],.counter = (uint64) (clocks[i] - own)};

		if (clocks[i] > own)
			behind = repl_ml_clock_merge(behind, repl_ml_clock_from_entries(&entry, 1));
	}

	/* more than half are at least so far */
	qsort(clocks, count, sizeof(int64), compare_later_first);
	majority = clocks[count / 2];
	repl_ml_ticker_follow(majority > own ? majority : 0);
	return behind;
}

/* Says whether one of our tables has a row. */
static bool
has_rows(const char *name)
{
	Relation	rel = table_open(repl_ml_catalog_oid(name), AccessShareLock);
	Snapshot	snapshot = RegisterSnapshot(GetLatestSnapshot());
	TupleTableSlot *slot = table_slot_create(rel, NULL);
	TableScanDesc scan = table_beginscan(rel, snapshot, 0, NULL);
	bool		found = table_scan_getnextslot(scan, ForwardScanDirection, slot);

	table_endscan(scan);
	ExecDropSingleTupleTableSlot(slot);
	UnregisterSnapshot(snapshot);
	table_close(rel, AccessShareLock);
	return found;
}

/* Says whether a table is to be copied: of those that have been there may be many rows. */
static bool
has_pending_copies(void)
{
	Relation	rel = table_open(repl_ml_catalog_oid("table_sync"), AccessShareLock);
	Relation	index = index_open(repl_ml_catalog_oid(PENDING_COPIES), AccessShareLock);
	Snapshot	snapshot = RegisterSnapshot(GetLatestSnapshot());
	TupleTableSlot *slot = table_slot_create(rel, NULL);
	IndexScanDesc scan = index_beginscan_compat(rel, index, snapshot, 0);
	bool		found;

	index_rescan(scan, NULL, 0, NULL, 0);
	found = index_getnext_slot(scan, ForwardScanDirection, slot);
	index_endscan(scan);
	ExecDropSingleTupleTableSlot(slot);
	UnregisterSnapshot(snapshot);
	index_close(index, AccessShareLock);
	table_close(rel, AccessShareLock);
	return found;
}

/* Says whether a transaction of this database is prepared: it may have written anything. */
static bool
has_prepared(void)
{
	static SPIPlanPtr plan = NULL;
	Oid			type = OIDOID;
	Datum		value = ObjectIdGetDatum(MyDatabaseId);

	if (max_prepared_xacts == 0)
		return false;
	SPI_execute_plan(repl_ml_spi_plan(&plan, "SELECT FROM pg_catalog.pg_prepared_xact() x"
									  " WHERE x.dbid OPERATOR(pg_catalog.=) $1", 1, &type),
					 &value, NULL, true, 1);
	return SPI_processed > 0;
}

/* Sets a column to what a query says, which has no parameters and a plan that is kept. */
static void
set_from_query(SPIPlanPtr *plan, const char *query, Datum *value, bool *isnull)
{
	SPI_execute_plan(repl_ml_spi_plan(plan, query, 0, NULL), NULL, NULL, false, 1);
	*value = SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, isnull);
}

/*
 * Returns what this node has applied: what the others' heartbeats say, and the
 * counter below which it has all of its own.
 */
static ReplMlClock *
find_applied(Relation rel, uint16 self, uint64 safe)
{
	ReplMlClock *applied = repl_ml_clock_make(self, safe);
	Snapshot	snapshot = RegisterSnapshot(GetLatestSnapshot());
	SysScanDesc scan = systable_beginscan(rel, InvalidOid, false, snapshot, 0, NULL);
	HeapTuple	tuple;

	while (HeapTupleIsValid(tuple = systable_getnext(scan)))
	{
		bool		isnull;
		int			node = DatumGetInt32(heap_getattr(tuple, NODE_ID, RelationGetDescr(rel),
													  &isnull));
		int64		counter = DatumGetInt64(heap_getattr(tuple, SAFE_COUNTER,
														 RelationGetDescr(rel), &isnull));

		/* a peer may have written anything */
		if (node != self && node > 0 && node <= REPL_ML_MAX_NODE_ID && counter > 0 &&
			counter <= REPL_ML_MAX_COUNTER)
			applied = repl_ml_clock_merge(applied, repl_ml_clock_make(node, counter));
	}
	systable_endscan(scan);
	UnregisterSnapshot(snapshot);
	return applied;
}

/*
 * Fills in what changes with each heartbeat; "values" are those of the last one, so
 * what is not told now is what was told then.
 */
static void
fill_heartbeat(Relation rel, uint16 self, uint64 safe, bool tells, const ReplMlClock *behind,
			   Datum *values, bool *nulls)
{
	static SPIPlanPtr holds = NULL;
	static SPIPlanPtr lacks = NULL;
	static SPIPlanPtr status = NULL;

	values[SAFE_COUNTER - 1] = Int64GetDatum((int64) safe);
	values[APPLIED - 1] = PointerGetDatum(find_applied(rel, self, safe));
	values[BEHIND - 1] = PointerGetDatum(behind);
	values[PARKED - 1] = BoolGetDatum(false);
	if (has_rows("parked_change") || has_rows("eviction") || has_pending_copies())
		set_from_query(&holds, "SELECT repl_ml.holds_late_changes()", &values[PARKED - 1],
					   &nulls[PARKED - 1]);
	nulls[LACKS - 1] = true;
	if (has_rows("unsent"))
		set_from_query(&lacks, "SELECT repl_ml.lacking()", &values[LACKS - 1],
					   &nulls[LACKS - 1]);
	if (tells)
	{
		set_from_query(&status, "SELECT repl_ml.own_status()", &values[TOLD - 1],
					   &nulls[TOLD - 1]);
		values[TOLD_AT - 1] = TimestampTzGetDatum(GetCurrentTimestamp());
		nulls[TOLD_AT - 1] = false;
	}
	values[SENT_AT - 1] = TimestampTzGetDatum(GetCurrentTimestamp());
}

/* Makes the row of a node that has none, which its first heartbeat then changes. */
static void
insert_row(uint16 self)
{
	Oid			types[1] = {INT4OID};
	Datum		values[1] = {Int32GetDatum(self)};

	SPI_execute_with_args("INSERT INTO repl_ml.heartbeat (node_id, sent_at, safe_counter, applied,"
						  " parked) VALUES ($1, pg_catalog.clock_timestamp(), 1, '{}', true)"
						  " ON CONFLICT (node_id) DO NOTHING", 1, types, values, NULL, false, 0);
}

/* Finds and locks this node's row, as target->found; makes one if there is none. */
static void
find_row(ReplMlTarget *target, uint16 self)
{
	TupleTableSlot *searched = target->incoming;

	ExecClearTuple(searched);
	memset(searched->tts_isnull, true, searched->tts_tupleDescriptor->natts * sizeof(bool));
	searched->tts_values[NODE_ID - 1] = Int32GetDatum(self);
	searched->tts_isnull[NODE_ID - 1] = false;
	ExecStoreVirtualTuple(searched);
	if (repl_ml_target_find(target, searched))
		return;
	insert_row(self);
	if (!repl_ml_target_find(target, searched))
		elog(ERROR, "node %d has no heartbeat", self);
}

/*
 * Called by the supervisor, outside transactions: writes this node's heartbeat.
 * Below safe_counter everything of ours comes before it in the WAL.  A prepared
 * transaction holds the counter where it was.  If it "tells", it says anew how this
 * node is (repl_ml.own_status); one that does not repeats what was said last.
 */
void
repl_ml_heartbeat_write(uint16 self, bool tells)
{
	static uint64 safe = 1;
	ReplMlClock *behind = compare_clocks();
	uint64		now = repl_ml_ticker_safe();
	bool		prepared;
	Relation	rel;
	ReplMlTarget *target;
	TupleTableSlot *row;
	int			natts;

	repl_ml_begin();
	/* after the counter was taken: what is prepared by then is seen */
	prepared = has_prepared();
	/* left over by a worker that ended before it told the group */
	if (has_rows("eviction"))
		SPI_execute("SELECT repl_ml.announce_evictions()", false, 0);

	rel = table_open(repl_ml_catalog_oid(HEARTBEAT_TABLE), RowExclusiveLock);
	natts = RelationGetDescr(rel)->natts;
	target = repl_ml_target_open(rel, true);
	find_row(target, self);
	slot_getallattrs(target->found);
	/* what this node has said holds, also if transactions of before are prepared */
	safe = Max(safe, (uint64) DatumGetInt64(target->found->tts_values[SAFE_COUNTER - 1]));
	if (!prepared)
		safe = Max(safe, now);
	row = ExecClearTuple(target->incoming);
	memcpy(row->tts_values, target->found->tts_values, natts * sizeof(Datum));
	memcpy(row->tts_isnull, target->found->tts_isnull, natts * sizeof(bool));
	fill_heartbeat(rel, self, safe, tells, behind, row->tts_values, row->tts_isnull);
	row->tts_values[SEQUENCE - 1] = Int64GetDatum(DatumGetInt64(row->tts_values[SEQUENCE - 1]) + 1);
	ExecStoreVirtualTuple(row);
	/* its trigger stamps it */
	repl_ml_target_update(target, row);
	repl_ml_target_close(target);
	table_close(rel, NoLock);
	repl_ml_commit();
}
