/*
 * former.c
 *		Rewrites, on this node, the clocks of what a node wrote late, after it had been set
 *		back: see row/late.c.
 *
 * Joining does not need it, but comparing does, which is of clocks as they are kept; and a node
 * that comes back itself brings its rows along as those of its new id.  Of a
 * counter (merge rule) that such a node has written late it does not know how much was
 * added in either time.  Its row loses its clock: so it makes way for the
 * group's, and is in repl_ml.repair_history with its values (meet.c).
 *
 * Runs in the apply worker: in a node that comes back, of the donor's link, before
 * anything is copied (meet.c); in every other one before it copies a table from
 * such a node (fetch.c).  In the copy's transaction; a second time it finds nothing.
 * Locks: the rows.
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

/* Says whether some member was set back: if none was, there is nothing to look for. */
static bool
has_formers(void)
{
	bool		has;

	SPI_connect();
	SPI_execute("SELECT FROM repl_ml.member WHERE former_counter IS NOT NULL", true, 1);
	has = SPI_processed > 0;
	SPI_finish();
	return has;
}

/*
 * Returns the clock as it is to be kept, itself if it is.  Of a row of this node's own that has a
 * counter that was written late, while it meets the group's, that is an empty one.
 */
static const ReplMlClock *
rename_clock(const ReplMlClock *clock)
{
	bool		counted;
	const ReplMlClock *renamed = repl_ml_late_rename(clock, &counted);

	return counted && repl_ml_meet_is_due() ? repl_ml_clock_empty() : renamed;
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
	const ReplMlClock *own;
	Datum		key[INDEX_MAX_KEYS];
	ReplMlUser	saved;

	if (isnull || list_length(writes->keys) >= ROWS_AT_ONCE)
		return;
	own = DatumGetReplMlClockP(clock);
	if (rename_clock(own) == own)
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
		const ReplMlClock *own = isnull ? NULL : (ReplMlClock *) DatumGetByteaPCopy(clock);
		const ReplMlClock *renamed = isnull ? NULL : rename_clock(own);

		if (renamed != NULL && renamed != own)
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

/* Called by meet.c and fetch.c: makes the late writes of a table those of the present ids. */
void
repl_ml_former_rename(Relation rel)
{
	MemoryContext context;
	MemoryContext old;
	bool		more = true;

	if (!has_formers())
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

/* Renames the late writes in a catalog of ours. */
static void
rename_entries(const char *table)
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
					 rename_clock(DatumGetReplMlClockP(clock)));
	}
	SPI_freetuptable(found);
}

/*
 * Called by meet.c and fetch.c: does the same with deletions and with the versions that are
 * kept beside rows.
 */
void
repl_ml_former_rename_catalogs(void)
{
	static const char *const tables[] = {"tombstone", "concurrent_version", "eviction"};

	if (!has_formers())
		return;
	SPI_connect();
	for (int i = 0; i < lengthof(tables); i++)
		rename_entries(tables[i]);
	SPI_finish();
}
