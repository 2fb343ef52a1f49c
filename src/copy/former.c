/*
 * former.c
 *		What this node wrote after it had been set back and before anybody told it.
 *
 * Its clocks say too much.  A version that it wrote then has a greater counter of
 * the node's id than one it had written before and has forgotten, and would pass
 * for newer than that, which it never saw.  So when the node comes back under its
 * next id, these writes become that id's: of its former id they know what
 * the node had when its server was started.  Then clocks tell truly what each
 * knew, and joining does the rest: what both times have written of a row is a
 * conflict, resolved and logged as any other.
 *
 * Only of a counter (merge rule) nobody knows how much was added in either time,
 * as a sum has no history.  Such a row loses its clock: so it makes way for the
 * group's, and is in repl_ml.repair_history with its values (meet.c).
 *
 * Runs in the apply worker of the donor's link, in the copy's transaction, before
 * anything is copied; a second time it finds nothing.  Nothing of these writes
 * has left the node: peers compare before they read (link.c).  Locks: the rows.
 */
#include "postgres.h"

#include "access/table.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

#include "compat.h"
#include "converge/converge.h"
#include "copy/copy.h"
#include "row/row.h"
#include "server/server.h"
#include "verify/verify.h"
#include "wire/wire.h"

#define ROWS_AT_ONCE	100000	/* keys that are kept in memory */

/* Rows of a table that have been found. */
typedef struct Writes
{
	Relation	rel;
	List	   *keys;			/* of Datum: text[] */
} Writes;

/* What was written when, as repl_ml.local_node has it. */
typedef struct Former
{
	uint16		node;
	uint16		self;
	uint64		safe;
	uint64		counter;
} Former;

/* Says whether the write is one of those that become the present id's. */
static bool
is_late(const Former *former, ReplMlClockEntry write)
{
	return write.node == former->node && write.counter > former->counter;
}

/*
 * Renames the writes that the marks name, and sets up to where the former id's are
 * known by them; returns false if a counter is among them.
 */
static bool
rename_marks(const Former *former, ReplMlMarks *marks, uint64 *known)
{
	for (int i = 0; i < marks->count; i++)
	{
		ReplMlMark *mark = &marks->all[i];

		for (int j = 0; mark->is_counter && j < mark->count; j++)
		{
			ReplMlClockEntry write = mark->contributions[j].write;

			if (is_late(former, write))
				return false;
			if (write.node == former->node)
				*known = Max(*known, write.counter);
		}
		if (mark->is_counter)
			continue;
		if (is_late(former, mark->dot))
			mark->dot.node = former->self;
		else if (mark->dot.node == former->node)
			*known = Max(*known, mark->dot.counter);
	}
	return true;
}

/*
 * Returns the clock with the late write of the former id as the present id's; an
 * empty one if the row has a counter that was written late.
 */
static ReplMlClock *
rename_clock(const Former *former, const ReplMlClock *clock)
{
	int			count = repl_ml_clock_count(clock);
	ReplMlClockEntry *entries = palloc((count + 1) * sizeof(ReplMlClockEntry));
	ReplMlMarks marks = repl_ml_marks_read(clock);
	uint64		known = former->safe;
	ReplMlClock *result;
	uint64		late = 0;
	int			kept = 0;

	if (!rename_marks(former, &marks, &known))
		return repl_ml_clock_empty();
	for (int i = 0; i < count; i++)
	{
		ReplMlClockEntry entry = repl_ml_clock_entry(clock, i);

		if (is_late(former, entry))
		{
			late = entry.counter;
			entry.counter = known;
		}
		if (entry.counter > 0)
			entries[kept++] = entry;
	}
	result = repl_ml_clock_merge(repl_ml_clock_from_entries(entries, kept),
								 repl_ml_clock_make(former->self, late));
	return marks.count > 0 ? repl_ml_marks_attach(result, &marks) : result;
}

/* Sets what this node was; returns false if it was not set back. */
static bool
load_former(Former *former)
{
	const ReplMlIdentity *self = repl_ml_identity();

	former->node = self->former_node;
	former->self = self->node_id;
	former->safe = self->former_safe;
	former->counter = self->former_counter;
	return former->node != 0;
}

/* ---- users' tables ---- */

/* A visitor: keeps the key of a row with a late write. */
static void
keep_key(Relation rel, ReplMlImage *image, TupleTableSlot *slot, void *argument)
{
	Writes	   *writes = argument;
	ReplMlTable *table = repl_ml_table_get(rel);
	Former		former;
	bool		isnull;
	Datum		clock = slot_getattr(slot, table->clock_attnum, &isnull);
	Datum		key[INDEX_MAX_KEYS];
	ReplMlUser	saved;

	if (isnull || !load_former(&former) || list_length(writes->keys) >= ROWS_AT_ONCE ||
		repl_ml_clock_counter(DatumGetReplMlClockP(clock), former.node) <= former.counter)
		return;
	repl_ml_become_owner(writes->rel, &saved);
	repl_ml_key_from_slot(table, slot, key);
	writes->keys = lappend(writes->keys, DatumGetPointer(repl_ml_key_to_array(table, key)));
	repl_ml_become_self(&saved);
}

/* Gives the row with this key its other clock. */
static void
rename_row(Relation rel, Datum key)
{
	ReplMlTarget *root;
	ReplMlTarget *target;
	Former		former;
	ReplMlUser	saved;

	repl_ml_targets_renew();
	root = repl_ml_targets_get(RelationGetRelid(rel));
	repl_ml_become_owner(root->rel, &saved);
	target = repl_ml_row_find(root, key);
	if (target != NULL && load_former(&former))
	{
		AttrNumber	attnum = target->table->clock_attnum;
		bool		isnull;
		Datum		clock = slot_getattr(target->found, attnum, &isnull);
		ReplMlClock *renamed = isnull ? NULL :
			rename_clock(&former, (ReplMlClock *) DatumGetByteaPCopy(clock));

		if (renamed != NULL)
			repl_ml_target_update(target,
								  repl_ml_meet_make(target,
													repl_ml_version_from_slot(target->found,
																			  attnum), renamed));
	}
	repl_ml_become_self(&saved);
}

/* Finds rows with late writes, so many at once; returns whether there may be more. */
static bool
rename_rows(Relation rel)
{
	Writes		writes = {.rel = rel};
	Snapshot	snapshot;
	ListCell   *lc;

	CommandCounterIncrement();
	snapshot = RegisterSnapshot(GetLatestSnapshot());
	repl_ml_digests_visit(rel, snapshot, keep_key, &writes);
	UnregisterSnapshot(snapshot);
	foreach(lc, writes.keys)
	{
		CHECK_FOR_INTERRUPTS();
		rename_row(rel, PointerGetDatum(lfirst(lc)));
	}
	return list_length(writes.keys) >= ROWS_AT_ONCE;
}

/* Called by meet.c: makes the late writes of a table those of the present id. */
void
repl_ml_former_rename(Relation rel)
{
	MemoryContext context;
	MemoryContext old;
	Former		former;
	bool		more = true;

	if (!load_former(&former))
		return;
	context = AllocSetContextCreate(CurrentMemoryContext, "repl_ml rows of a former id",
									ALLOCSET_DEFAULT_SIZES);
	old = MemoryContextSwitchTo(context);
	while (more)
	{
		more = rename_rows(rel);
		MemoryContextReset(context);
	}
	MemoryContextSwitchTo(old);
	MemoryContextDelete(context);
}

/* ---- what is kept beside rows ---- */

/* Gives the row of a catalog of ours its other clock. */
static void
rename_entry(const char *table, ItemPointer place, const ReplMlClock *clock)
{
	Oid			types[2] = {TIDOID, repl_ml_clock_type()};
	Datum		values[2] = {PointerGetDatum(place), PointerGetDatum(clock)};

	SPI_execute_with_args(psprintf("UPDATE repl_ml.%s SET __repl_clock = $2"
								   " WHERE ctid OPERATOR(pg_catalog.=) $1", table), 2, types,
						  values, NULL, false, 0);
}

/*
 * Called by meet.c: does the same with deletions and with the versions that are
 * kept beside rows.
 */
void
repl_ml_former_rename_catalogs(void)
{
	static const char *const tables[] = {"tombstone", "concurrent_version", "eviction"};
	Former		former;

	if (!load_former(&former))
		return;
	SPI_connect();
	for (int i = 0; i < lengthof(tables); i++)
	{
		SPITupleTable *found;

		SPI_execute(psprintf("SELECT ctid, __repl_clock FROM repl_ml.%s"
							 " WHERE repl_ml.counter(__repl_clock, %u)"
							 " OPERATOR(pg_catalog.>) " UINT64_FORMAT, tables[i], former.node,
							 former.counter), false, 0);
		found = SPI_tuptable;
		for (uint64 j = 0; j < found->numvals; j++)
		{
			bool		isnull;
			Datum		place = SPI_getbinval(found->vals[j], found->tupdesc, 1, &isnull);
			Datum		clock = SPI_getbinval(found->vals[j], found->tupdesc, 2, &isnull);

			CHECK_FOR_INTERRUPTS();
			rename_entry(tables[i], (ItemPointer) DatumGetPointer(place),
						 rename_clock(&former, DatumGetReplMlClockP(clock)));
		}
		SPI_freetuptable(found);
	}
	SPI_finish();
}
