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
 * Another node that was set back with it may have had such writes of it: then that
 * renames them in the same way, as repl_ml.member says of each what it is now.
 *
 * Only of a counter (merge rule) nobody knows how much was added in either time,
 * as a sum has no history.  Such a row loses its clock: so it makes way for the
 * group's, and is in repl_ml.repair_history with its values (meet.c).
 *
 * Runs in the apply worker of the donor's link, in the copy's transaction, before
 * anything is copied; a second time it finds nothing.  Nothing of these writes
 * has come to a member that has what was forgotten: peers compare before they read
 * (link.c).  Locks: the rows.
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

/* A node that was set back, and what it is now; see repl_ml.member. */
typedef struct Former
{
	uint16		node;
	uint16		self;
	uint64		safe;			/* it had its own up to there */
	uint64		counter;		/* since then it has written with greater ones */
} Former;

/* All of them, the later ones of an id first; in the transaction's memory. */
typedef struct Formers
{
	Former	   *all;
	int			count;
} Formers;

/* Rows of a table that have been found. */
typedef struct Writes
{
	Relation	rel;
	const Formers *formers;
	List	   *keys;			/* of Datum: text[] */
} Writes;

/* Returns whose late write it is; NULL if it is none. */
static const Former *
find_late(const Formers *formers, ReplMlClockEntry write)
{
	for (int i = 0; i < formers->count; i++)
	{
		if (write.node == formers->all[i].node && write.counter > formers->all[i].counter)
			return &formers->all[i];
	}
	return NULL;
}

/* Says whether the clock knows of a late write. */
static bool
has_late(const Formers *formers, const ReplMlClock *clock)
{
	for (int i = 0; i < repl_ml_clock_count(clock); i++)
	{
		if (find_late(formers, repl_ml_clock_entry(clock, i)) != NULL)
			return true;
	}
	return false;
}

/* Returns up to where the marks know the writes that a former id had before. */
static uint64
known_before(const Formers *formers, const ReplMlMarks *marks, const Former *former)
{
	uint64		known = former->safe;

	for (int i = 0; i < marks->count; i++)
	{
		const ReplMlMark *mark = &marks->all[i];

		for (int j = 0; mark->is_counter && j < mark->count; j++)
		{
			ReplMlClockEntry write = mark->contributions[j].write;

			if (write.node == former->node && find_late(formers, write) == NULL)
				known = Max(known, write.counter);
		}
		if (!mark->is_counter && mark->dot.node == former->node &&
			find_late(formers, mark->dot) == NULL)
			known = Max(known, mark->dot.counter);
	}
	return known;
}

/* Renames the writes that the marks name; returns false if a counter is among them. */
static bool
rename_marks(const Formers *formers, ReplMlMarks *marks)
{
	for (int i = 0; i < marks->count; i++)
	{
		ReplMlMark *mark = &marks->all[i];
		const Former *late;

		for (int j = 0; mark->is_counter && j < mark->count; j++)
		{
			if (find_late(formers, mark->contributions[j].write) != NULL)
				return false;
		}
		if (!mark->is_counter && (late = find_late(formers, mark->dot)) != NULL)
			mark->dot.node = late->self;
	}
	return true;
}

/*
 * Returns the clock with the late writes of former ids as those of what they are now;
 * an empty one if the row has a counter that was written late.
 */
static ReplMlClock *
rename_clock(const Formers *formers, const ReplMlClock *clock)
{
	int			count = repl_ml_clock_count(clock);
	ReplMlClockEntry *entries = palloc((count + 1) * sizeof(ReplMlClockEntry));
	ReplMlMarks marks = repl_ml_marks_read(clock);
	ReplMlClock *late = repl_ml_clock_empty();
	ReplMlClock *result;
	int			kept = 0;

	for (int i = 0; i < count; i++)
	{
		ReplMlClockEntry entry = repl_ml_clock_entry(clock, i);
		const Former *former = find_late(formers, entry);

		if (former != NULL)
		{
			late = repl_ml_clock_merge(late, repl_ml_clock_make(former->self, entry.counter));
			entry.counter = known_before(formers, &marks, former);
		}
		if (entry.counter > 0)
			entries[kept++] = entry;
	}
	if (!rename_marks(formers, &marks))
		return repl_ml_clock_empty();
	result = repl_ml_clock_merge(repl_ml_clock_from_entries(entries, kept), late);
	return marks.count > 0 ? repl_ml_marks_attach(result, &marks) : result;
}

/*
 * Sets who was set back; returns false if this node was not: then it has, of others, what was
 * known to be late when it came.
 */
static bool
load_formers(Formers *formers)
{
	if (repl_ml_identity()->former_node == 0)
		return false;
	SPI_connect();
	SPI_execute("SELECT former_id, node_id, former_safe, former_counter FROM repl_ml.member"
				" WHERE former_counter IS NOT NULL"
				" ORDER BY former_id, former_counter DESC", false, 0);
	formers->count = SPI_processed;
	formers->all = SPI_palloc(Max(formers->count, 1) * sizeof(Former));
	for (int i = 0; i < formers->count; i++)
	{
		formers->all[i].node = atoi(repl_ml_spi_text(i, 0));
		formers->all[i].self = atoi(repl_ml_spi_text(i, 1));
		formers->all[i].safe = strtoull(repl_ml_spi_text(i, 2), NULL, 10);
		formers->all[i].counter = strtoull(repl_ml_spi_text(i, 3), NULL, 10);
	}
	SPI_finish();
	return formers->count > 0;
}

/* ---- users' tables ---- */

/* A visitor: keeps the key of a row with a late write. */
static void
keep_key(Relation rel, ReplMlImage *image, TupleTableSlot *slot, void *argument)
{
	Writes	   *writes = argument;
	ReplMlTable *table = repl_ml_table_get(rel);
	bool		isnull;
	Datum		clock = slot_getattr(slot, table->clock_attnum, &isnull);
	Datum		key[INDEX_MAX_KEYS];
	ReplMlUser	saved;

	if (isnull || list_length(writes->keys) >= ROWS_AT_ONCE ||
		!has_late(writes->formers, DatumGetReplMlClockP(clock)))
		return;
	repl_ml_become_owner(writes->rel, &saved);
	repl_ml_key_from_slot(table, slot, key);
	writes->keys = lappend(writes->keys, DatumGetPointer(repl_ml_key_to_array(table, key)));
	repl_ml_become_self(&saved);
}

/* Gives the row with this key its other clock. */
static void
rename_row(const Formers *formers, Relation rel, Datum key)
{
	ReplMlTarget *root;
	ReplMlTarget *target;
	ReplMlUser	saved;

	repl_ml_targets_renew();
	root = repl_ml_targets_get(RelationGetRelid(rel));
	repl_ml_become_owner(root->rel, &saved);
	target = repl_ml_row_find(root, key);
	if (target != NULL)
	{
		AttrNumber	attnum = target->table->clock_attnum;
		bool		isnull;
		Datum		clock = slot_getattr(target->found, attnum, &isnull);
		ReplMlClock *renamed = isnull ? NULL :
			rename_clock(formers, (ReplMlClock *) DatumGetByteaPCopy(clock));

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
rename_rows(const Formers *formers, Relation rel)
{
	Writes		writes = {.rel = rel,.formers = formers};
	Snapshot	snapshot;
	ListCell   *lc;

	CommandCounterIncrement();
	snapshot = RegisterSnapshot(GetLatestSnapshot());
	repl_ml_digests_visit(rel, snapshot, keep_key, &writes);
	UnregisterSnapshot(snapshot);
	foreach(lc, writes.keys)
	{
		CHECK_FOR_INTERRUPTS();
		rename_row(formers, rel, PointerGetDatum(lfirst(lc)));
	}
	return list_length(writes.keys) >= ROWS_AT_ONCE;
}

/* Called by meet.c: makes the late writes of a table those of the present id. */
void
repl_ml_former_rename(Relation rel)
{
	MemoryContext context;
	MemoryContext old;
	Formers		formers;
	bool		more = true;

	if (!load_formers(&formers))
		return;
	context = AllocSetContextCreate(CurrentMemoryContext, "repl_ml rows of a former id",
									ALLOCSET_DEFAULT_SIZES);
	old = MemoryContextSwitchTo(context);
	while (more)
	{
		more = rename_rows(&formers, rel);
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

/* Renames the late writes in a catalog of ours. */
static void
rename_entries(const Formers *formers, const char *table)
{
	SPITupleTable *found;

	SPI_execute(psprintf("SELECT t.ctid, t.__repl_clock FROM repl_ml.%s t"
						 " WHERE EXISTS (SELECT FROM repl_ml.member m"
						 " WHERE repl_ml.counter(t.__repl_clock, m.former_id)"
						 " OPERATOR(pg_catalog.>) m.former_counter)", table), false, 0);
	found = SPI_tuptable;
	for (uint64 i = 0; i < found->numvals; i++)
	{
		bool		isnull;
		Datum		place = SPI_getbinval(found->vals[i], found->tupdesc, 1, &isnull);
		Datum		clock = SPI_getbinval(found->vals[i], found->tupdesc, 2, &isnull);

		CHECK_FOR_INTERRUPTS();
		rename_entry(table, (ItemPointer) DatumGetPointer(place),
					 rename_clock(formers, DatumGetReplMlClockP(clock)));
	}
	SPI_freetuptable(found);
}

/*
 * Called by meet.c: does the same with deletions and with the versions that are
 * kept beside rows.
 */
void
repl_ml_former_rename_catalogs(void)
{
	static const char *const tables[] = {"tombstone", "concurrent_version", "eviction"};
	Formers		formers;

	if (!load_formers(&formers))
		return;
	SPI_connect();
	for (int i = 0; i < lengthof(tables); i++)
		rename_entries(&formers, tables[i]);
	SPI_finish();
}
