/*
 * tombstone.c
 *		Deleted rows: repl_ml.tombstone, one row per deletion seen.
 *
 * Several tombstones of one key count as one whose clock is the join of
 * theirs, so nobody ever updates one and a tombstone may be written twice.
 * They are only removed when no version they suppress can still arrive
 * (group/supervisor.c).  Members do that at different moments.  A row that a
 * node inserts after it has removed a tombstone does not have that tombstone
 * in its clock; elsewhere, where the tombstone may still be, the row must
 * meet it as one it knew.  So each node's removals travel in its own stream,
 * ahead of such rows, as the clock up to which it has removed: its floor.
 *
 * A row and its tombstone are kept apart by order, not by a lock: who inserts
 * a row looks for tombstones after it, who writes a tombstone looks for the
 * row after it, and both wait for a transaction in progress.  So at least one
 * of two concurrent writers sees the other.
 *
 * A tombstone names the columns of its key.  One of another key than the table
 * has now counts for the rows that have its values in those columns (shape.c).
 * Such rows cannot be kept apart by order: who writes such a tombstone beside
 * the present key locks out all writers of the table (converge/deletion.c).
 *
 * Called by the writing backend (write/stamp.c) and by who joins versions
 * (converge/row.c, deletion.c).  Not here: what a deletion does to a row
 * (converge/row.c), when tombstones go (group/supervisor.c).  Locks: the
 * catalog's, while it is read or written.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/xact.h"
#include "catalog/indexing.h"
#include "common/hashfn.h"
#include "miscadmin.h"
#include "storage/lmgr.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/datum.h"
#include "utils/fmgroids.h"
#include "utils/fmgrprotos.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"

#include "row/row.h"
#include "server/server.h"
#include "wire/wire.h"

#define TOMBSTONE_TABLE			"tombstone"
#define TOMBSTONE_INDEX			"tombstone_key_hash_idx"

#define COLLECTION_TABLE		"collection"

enum
{
	Anum_collection_node_id = 1,
	Anum_collection_floor
};

enum
{
	Anum_tombstone_schema_name = 1,
	Anum_tombstone_table_name,
	Anum_tombstone_key,
	Anum_tombstone_key_columns,
	Anum_tombstone_key_hash,
	Anum_tombstone_deleted_at,
	Anum_tombstone_eviction,
	Anum_tombstone_merged,
	Anum_tombstone_clock,
	Natts_tombstone = Anum_tombstone_clock
};

static ReplMlClock *join_tombstones(ReplMlTable *table, Datum *key, uint16 writer,
									const ReplMlClock *except, Relation rel, uint64 hash,
									TransactionId *wait_for);
static SysScanDesc begin_scan(Relation rel, uint64 hash, Snapshot snapshot);
static void insert_tombstone(ReplMlTable *table, Datum *key, const ReplMlClock *clock,
							 const char *eviction,
							 bool merged);
static void write_tombstone(ReplMlTable *table, Datum array, uint64 hash, const ReplMlClock *clock,
							const char *eviction, bool merged);
static bool is_of_table(ReplMlTable *table, const Datum *values);
static bool is_kept(Datum array, uint64 hash, const ReplMlClock *clock);
static bool is_tombstone_of(ReplMlTable *table, Datum *key, Relation rel, HeapTuple tuple,
							ReplMlClock **clock);

/*
 * Returns the joined clock of the key's tombstones, palloc'd, or NULL if it
 * has none.  Those that the node "writer" had removed when it wrote do not
 * count; 0 is for a row written here, which has to know all.  Sees what is
 * committed now, whatever the transaction's snapshot, and waits for a
 * transaction that is writing one.
 */
ReplMlClock *
repl_ml_tombstone_find(ReplMlTable *table, Datum *key, uint16 writer)
{
	return repl_ml_tombstone_find_others(table, key, writer, NULL);
}

/*
 * Returns what repl_ml_tombstone_find does, without those that have just the
 * clock "except".
 */
ReplMlClock *
repl_ml_tombstone_find_others(ReplMlTable *table, Datum *key, uint16 writer,
							  const ReplMlClock *except)
{
	Relation	rel;
	uint64		hash;

	if (!repl_ml_shmem_may_have_tombstone(table->root))
		return NULL;

	hash = repl_ml_key_hash(table, key);
	rel = table_open(repl_ml_catalog_oid(TOMBSTONE_TABLE), AccessShareLock);

	/* a wait may have been for one that rolls back: then look again */
	for (;;)
	{
		TransactionId busy = InvalidTransactionId;
		ReplMlClock *clock = join_tombstones(table, key, writer, except, rel, hash, &busy);

		if (!TransactionIdIsValid(busy))
		{
			table_close(rel, AccessShareLock);
			return clock;
		}
		XactLockTableWait(busy, NULL, NULL, XLTW_None);
		CHECK_FOR_INTERRUPTS();
	}
}

/*
 * Returns, for who compares tables, the joined clock of those tombstones of the
 * key that the snapshot sees, palloc'd, or NULL if it has none.  Waits for
 * nobody.
 */
ReplMlClock *
repl_ml_tombstone_seen(ReplMlTable *table, Datum *key, Snapshot snapshot)
{
	Relation	rel;
	ReplMlClock *joined = NULL;
	SysScanDesc scan;
	HeapTuple	tuple;

	if (!repl_ml_shmem_may_have_tombstone(table->root))
		return NULL;
	rel = table_open(repl_ml_catalog_oid(TOMBSTONE_TABLE), AccessShareLock);
	scan = begin_scan(rel, repl_ml_key_hash(table, key), snapshot);
	while (HeapTupleIsValid(tuple = systable_getnext(scan)))
	{
		ReplMlClock *clock;

		if (is_tombstone_of(table, key, rel, tuple, &clock))
			joined = joined == NULL ? clock : repl_ml_clock_merge(joined, clock);
	}
	systable_endscan(scan);
	table_close(rel, AccessShareLock);
	return joined;
}

/*
 * Returns, for who repairs tables, the key's tombstones that are versions, as a
 * List of ReplMlVersion, palloc'd: not those that say what several versions
 * amount to.
 */
List *
repl_ml_tombstone_versions(ReplMlTable *table, Datum *key, Snapshot snapshot)
{
	Relation	rel = table_open(repl_ml_catalog_oid(TOMBSTONE_TABLE), AccessShareLock);
	List	   *versions = NIL;
	ScanKeyData scankey;
	SysScanDesc scan;
	HeapTuple	tuple;

	ScanKeyInit(&scankey, Anum_tombstone_key_hash, BTEqualStrategyNumber,
				F_INT8EQ, Int64GetDatum((int64) repl_ml_key_hash(table, key)));
	scan = systable_beginscan(rel, repl_ml_catalog_oid(TOMBSTONE_INDEX), true, snapshot, 1,
							  &scankey);
	while (HeapTupleIsValid(tuple = systable_getnext(scan)))
	{
		TupleDesc	desc = RelationGetDescr(rel);
		ReplMlVersion *version;
		ReplMlClock *clock;
		bool		isnull;
		Datum		eviction;

		if (DatumGetBool(heap_getattr(tuple, Anum_tombstone_merged, desc, &isnull)) ||
			!is_tombstone_of(table, key, rel, tuple, &clock))
			continue;
		eviction = heap_getattr(tuple, Anum_tombstone_eviction, desc, &isnull);
		version = palloc0(sizeof(ReplMlVersion));
		version->clock = clock;
		version->deleted = true;
		if (!isnull)
			version->eviction = DatumGetCString(DirectFunctionCall1(jsonb_out, eviction));
		versions = lappend(versions, version);
	}
	systable_endscan(scan);
	table_close(rel, AccessShareLock);
	return versions;
}

/* Says whether a tombstone's clock, as it is stored, is within another; leaves nothing behind. */
static bool
is_within(Datum stored, const ReplMlClock *clock)
{
	ReplMlClock *its_clock = DatumGetReplMlClockP(stored);
	bool		within = repl_ml_clock_is_within(its_clock, clock);

	if ((Pointer) its_clock != DatumGetPointer(stored))
		pfree(its_clock);
	return within;
}

/*
 * Returns, for who compares tables, the keys of a table's tombstones that are not
 * within a clock, as a List of ArrayType, palloc'd.  Sets *all to false if there
 * are more than so many, or some of another key than the present one.
 */
List *
repl_ml_tombstone_newer(ReplMlTable *table, const ReplMlClock *clock, Snapshot snapshot, int most,
						bool *all)
{
	Relation	rel;
	SysScanDesc scan;
	HeapTuple	tuple;
	List	   *keys = NIL;

	*all = true;
	if (!repl_ml_shmem_may_have_tombstone(table->root))
		return NIL;
	rel = table_open(repl_ml_catalog_oid(TOMBSTONE_TABLE), AccessShareLock);
	scan = systable_beginscan(rel, InvalidOid, false, snapshot, 0, NULL);
	while (*all && HeapTupleIsValid(tuple = systable_getnext(scan)))
	{
		Datum		values[Natts_tombstone];
		bool		nulls[Natts_tombstone];

		CHECK_FOR_INTERRUPTS();
		heap_deform_tuple(tuple, RelationGetDescr(rel), values, nulls);
		if (!is_of_table(table, values) || is_within(values[Anum_tombstone_clock - 1], clock))
			continue;
		*all = repl_ml_shape_is(table, values[Anum_tombstone_key_columns - 1]) &&
			list_length(keys) < most;
		keys = lappend(keys, DatumGetArrayTypePCopy(values[Anum_tombstone_key - 1]));
	}
	systable_endscan(scan);
	table_close(rel, AccessShareLock);
	return keys;
}

/*
 * Returns the joined clock, palloc'd, of the tombstones that the row in "slot"
 * has by other keys than the table's present one; NULL if it has none.
 * "writer" is as in repl_ml_tombstone_find.
 */
ReplMlClock *
repl_ml_tombstone_find_former(ReplMlTable *table, TupleTableSlot *row, uint16 writer)
{
	ReplMlTable **former = table->former;
	int			count = table->former_count;
	ReplMlClock *joined = NULL;

	for (int i = 0; i < count; i++)
	{
		Datum		key[INDEX_MAX_KEYS];
		ReplMlClock *clock;

		if (!repl_ml_shape_key(former[i], row, key))
			continue;
		clock = repl_ml_tombstone_find(former[i], key, writer);
		if (clock != NULL)
			joined = joined == NULL ? clock : repl_ml_clock_merge(joined, clock);
	}
	return joined;
}

/*
 * Looks through the key's tombstones once and returns their joined clock.
 * Where a transaction in progress has written one it sets "wait_for", and the
 * result says nothing.
 */
static ReplMlClock *
join_tombstones(ReplMlTable *table, Datum *key, uint16 writer, const ReplMlClock *except,
				Relation rel, uint64 hash, TransactionId *wait_for)
{
	ReplMlClock *joined = NULL;
	SnapshotData dirty;
	SysScanDesc scan;
	HeapTuple	tuple;

	InitDirtySnapshot(dirty);
	scan = begin_scan(rel, hash, &dirty);
	while (HeapTupleIsValid(tuple = systable_getnext(scan)))
	{
		ReplMlClock *clock;

		/* a writer in progress: its outcome decides; what is being removed counts */
		if (TransactionIdIsValid(dirty.xmin))
		{
			*wait_for = dirty.xmin;
			break;
		}
		if (is_tombstone_of(table, key, rel, tuple, &clock) &&
			(except == NULL || repl_ml_clock_compare(clock, except) != REPL_ML_CLOCK_EQUAL) &&
			(writer == 0 || !repl_ml_tombstone_collected(writer, clock)))
			joined = joined == NULL ? clock : repl_ml_clock_merge(joined, clock);
	}
	systable_endscan(scan);
	return joined;
}

/* Begins to look at the tombstones with this hash of their keys; hashes may collide. */
static SysScanDesc
begin_scan(Relation rel, uint64 hash, Snapshot snapshot)
{
	ScanKeyData key;

	/* the scan has a copy of it */
	ScanKeyInit(&key, Anum_tombstone_key_hash, BTEqualStrategyNumber, F_INT8EQ,
				Int64GetDatum((int64) hash));
	return systable_beginscan(rel, repl_ml_catalog_oid(TOMBSTONE_INDEX), true, snapshot, 1, &key);
}

/*
 * Says whether the node, as far as its stream has told us, has removed a
 * tombstone with this clock.
 */
bool
repl_ml_tombstone_collected(uint16 node, const ReplMlClock *clock)
{
	Relation	rel = table_open(repl_ml_catalog_oid(COLLECTION_TABLE), AccessShareLock);
	SysScanDesc scan = systable_beginscan(rel, InvalidOid, false, SnapshotSelf, 0, NULL);
	bool		collected = false;
	HeapTuple	tuple;

	while (HeapTupleIsValid(tuple = systable_getnext(scan)))
	{
		bool		isnull;
		ReplMlClock *floor;

		if (DatumGetInt32(heap_getattr(tuple, Anum_collection_node_id, RelationGetDescr(rel),
									   &isnull)) != node)
			continue;
		floor = DatumGetReplMlClockP(heap_getattr(tuple, Anum_collection_floor,
												  RelationGetDescr(rel), &isnull));

		/* the floor is the clock up to which it has removed them */
		switch (repl_ml_clock_compare(clock, floor))
		{
			case REPL_ML_CLOCK_BEFORE:
			case REPL_ML_CLOCK_EQUAL:
				collected = true;
				break;
			default:
				break;
		}
	}
	systable_endscan(scan);
	table_close(rel, AccessShareLock);
	return collected;
}

/* Says whether a tombstone with these values is of a row of the table. */
static bool
is_of_table(ReplMlTable *table, const Datum *values)
{
	return strcmp(NameStr(*DatumGetName(values[Anum_tombstone_table_name - 1])),
				  NameStr(table->table_name)) == 0 &&
		strcmp(NameStr(*DatumGetName(values[Anum_tombstone_schema_name - 1])),
			   NameStr(table->schema_name)) == 0;
}

/*
 * Says whether this tombstone is the key's, as hashes may collide, and sets a
 * copy of its clock, with late writes as whose they are.
 */
static bool
is_tombstone_of(ReplMlTable *table, Datum *key, Relation rel, HeapTuple tuple, ReplMlClock **clock)
{
	Datum		values[Natts_tombstone];
	bool		nulls[Natts_tombstone];
	Datum		its_key[INDEX_MAX_KEYS];

	Assert(RelationGetNumberOfAttributes(rel) == Natts_tombstone);
	heap_deform_tuple(tuple, RelationGetDescr(rel), values, nulls);
	if (!is_of_table(table, values) ||
		!repl_ml_shape_is(table, values[Anum_tombstone_key_columns - 1]))
		return false;
	repl_ml_key_from_array(table, values[Anum_tombstone_key - 1], its_key);
	if (!repl_ml_key_equal(table, key, its_key))
		return false;
	*clock = (ReplMlClock *) PG_DETOAST_DATUM_COPY(values[Anum_tombstone_clock - 1]);
	*clock = unconstify(ReplMlClock *, repl_ml_late_rename(*clock, NULL));
	return true;
}

/*
 * Returns what is recorded, as JSON, of the eviction of the version that is
 * the last one in this clock; NULL if it was not evicted.
 */
char *
repl_ml_tombstone_eviction(ReplMlTable *table, Datum *key, const ReplMlClock *evicted)
{
	Relation	rel;
	ReplMlClockEntry wanted = repl_ml_clock_dot(evicted);
	char	   *result = NULL;
	SysScanDesc scan;
	HeapTuple	tuple;

	if (!repl_ml_shmem_may_have_tombstone(table->root))
		return NULL;
	rel = table_open(repl_ml_catalog_oid(TOMBSTONE_TABLE), AccessShareLock);
	scan = begin_scan(rel, repl_ml_key_hash(table, key), SnapshotSelf);
	while (result == NULL && HeapTupleIsValid(tuple = systable_getnext(scan)))
	{
		ReplMlClock *clock;
		ReplMlClockEntry dot;
		bool		isnull;
		Datum		eviction = heap_getattr(tuple, Anum_tombstone_eviction, RelationGetDescr(rel),
											&isnull);

		if (isnull || !is_tombstone_of(table, key, rel, tuple, &clock))
			continue;

		/* several versions of a row may have been evicted */
		dot = repl_ml_clock_dot(clock);
		if (dot.node == wanted.node && dot.counter == wanted.counter)
			result = DatumGetCString(DirectFunctionCall1(jsonb_out, eviction));
	}
	systable_endscan(scan);
	table_close(rel, AccessShareLock);
	return result;
}

/*
 * Records that the row with this key was deleted by the event "clock" stands
 * for or, with "eviction" (JSON), that its version with this clock lost a
 * unique key.  Written with the extension's rights: whoever may delete the row
 * may do this.
 */
void
repl_ml_tombstone_insert(ReplMlTable *table, Datum *key, const ReplMlClock *clock,
						 const char *eviction)
{
	insert_tombstone(table, key, clock, eviction, false);
}

/*
 * Records that the row's concurrent versions, merged under "clock", amount to
 * no row.  Other than a deletion that is no version, and stays here.
 */
void
repl_ml_tombstone_insert_merged(ReplMlTable *table, Datum *key, const ReplMlClock *clock)
{
	insert_tombstone(table, key, clock, NULL, true);
}

/*
 * Writes the tombstone after its key's shape has been listed, so that who
 * writes a row knows where to look.
 */
static void
insert_tombstone(ReplMlTable *table, Datum *key, const ReplMlClock *clock, const char *eviction,
				 bool merged)
{
	repl_ml_shape_list(table);
	write_tombstone(table, repl_ml_key_to_array(table, key), repl_ml_key_hash(table, key), clock,
					eviction, merged);
}

/* Writes the row of repl_ml.tombstone. */
static void
write_tombstone(ReplMlTable *table, Datum array, uint64 hash, const ReplMlClock *clock,
				const char *eviction, bool merged)
{
	Relation	rel = table_open(repl_ml_catalog_oid(TOMBSTONE_TABLE), RowExclusiveLock);
	Datum		values[Natts_tombstone];
	bool		nulls[Natts_tombstone] = {false};
	HeapTuple	tuple;

	values[Anum_tombstone_schema_name - 1] = NameGetDatum(&table->schema_name);
	values[Anum_tombstone_table_name - 1] = NameGetDatum(&table->table_name);
	values[Anum_tombstone_key - 1] = array;
	values[Anum_tombstone_key_columns - 1] = table->key_columns;
	values[Anum_tombstone_key_hash - 1] = Int64GetDatum((int64) hash);
	values[Anum_tombstone_deleted_at - 1] =
		TimestampTzGetDatum(GetCurrentTransactionStartTimestamp());
	values[Anum_tombstone_eviction - 1] = (Datum) 0;
	nulls[Anum_tombstone_eviction - 1] = eviction == NULL;
	if (eviction != NULL)
		values[Anum_tombstone_eviction - 1] = DirectFunctionCall1(jsonb_in,
																  CStringGetDatum(eviction));
	values[Anum_tombstone_merged - 1] = BoolGetDatum(merged);
	values[Anum_tombstone_clock - 1] = PointerGetDatum(clock);
	tuple = heap_form_tuple(RelationGetDescr(rel), values, nulls);

	/* seen by whoever inserts the key, from before the tombstone on */
	repl_ml_shmem_mark_tombstone(table->root);
	CatalogTupleInsert(rel, tuple);
	heap_freetuple(tuple);
	table_close(rel, RowExclusiveLock);
}

/*
 * Keeps, for copy/rows.c, a tombstone that a copy has brought and whose key
 * cannot be read here, as it came: it is part of what the next one copies from
 * here, and goes like the others.
 */
void
repl_ml_tombstone_keep(ReplMlTable *table, Datum columns, Datum array, const ReplMlClock *clock,
					   const char *eviction)
{
	ReplMlTable as_it_came = *table;
	struct varlena *bytes = PG_DETOAST_DATUM_PACKED(array);
	uint64		hash = hash_bytes_extended((unsigned char *) VARDATA_ANY(bytes),
										   VARSIZE_ANY_EXHDR(bytes), table->root);

	as_it_came.key_columns = columns;
	if (!is_kept(array, hash, clock))
		write_tombstone(&as_it_came, array, hash, clock, eviction, false);
}

/* Says whether this very tombstone is there already. */
static bool
is_kept(Datum array, uint64 hash, const ReplMlClock *clock)
{
	Relation	rel = table_open(repl_ml_catalog_oid(TOMBSTONE_TABLE), AccessShareLock);
	bool		found = false;
	SysScanDesc scan;
	HeapTuple	tuple;

	scan = begin_scan(rel, hash, SnapshotSelf);
	while (!found && HeapTupleIsValid(tuple = systable_getnext(scan)))
	{
		bool		isnull;
		Datum		its_key = heap_getattr(tuple, Anum_tombstone_key, RelationGetDescr(rel),
										   &isnull);
		Datum		its_clock = heap_getattr(tuple, Anum_tombstone_clock, RelationGetDescr(rel),
											 &isnull);

		found = datum_image_eq(array, its_key, false, -1) &&
			repl_ml_clock_compare(clock, DatumGetReplMlClockP(its_clock)) == REPL_ML_CLOCK_EQUAL;
	}
	systable_endscan(scan);
	table_close(rel, AccessShareLock);
	return found;
}
