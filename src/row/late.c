/*
 * late.c
 *		What a node wrote after it had been set back and before anybody told it.
 *
 * Clocks of that say too much.  A version that it wrote then has a greater counter of
 * the node's id than one it had written before and has forgotten, and would pass
 * for newer than that, which it never saw.  So as soon as the node has its next id
 * these writes are that id's, for every member: of its former id they know what the
 * node had when its server was started.  Then clocks tell truly what each knew, and
 * joining does the rest: what both times have written of a row is a conflict,
 * resolved and logged as any other.  repl_ml.member says of each member what it was;
 * a member reads nothing that may know of late writes before that is there
 * (copy/starts.c).
 *
 * Called wherever a clock is read to be joined, of what comes and of what is here
 * (converge/), so that it makes no difference who has rewritten it already;
 * copy/former.c rewrites what is kept.  A process keeps the list until the
 * catalog changes.  No locks but the catalog's, while it is read.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "commands/trigger.h"
#include "fmgr.h"
#include "utils/builtins.h"
#include "utils/inval.h"
#include "utils/memutils.h"
#include "utils/rel.h"

#include "row/row.h"
#include "server/server.h"
#include "wire/wire.h"

#define MEMBER_TABLE	"member"

enum
{
	Anum_member_node_id = 1,
	Anum_member_former_id = 11,
	Anum_member_former_safe,
	Anum_member_former_counter
};

/* A node that was set back, and what it is now; see repl_ml.member. */
typedef struct Former
{
	uint16		node;
	uint16		self;
	uint64		safe;			/* it had its own up to there */
	uint64		counter;		/* since then it has written with greater ones */
} Former;

/*
 * All of them, the later ones of an id first; written by load_formers, thrown away by
 * invalidate_formers.
 */
static struct
{
	bool		valid;
	Oid			relid;
	MemoryContext context;
	Former	   *all;
	int			count;
} formers;

/* Called by core: something has changed, perhaps the list of members. */
static void
invalidate_formers(Datum arg, Oid relid)
{
	if (relid == InvalidOid || relid == formers.relid)
		formers.valid = false;
}

/* Orders the list, for qsort; of two ids that a node got for one return the first one counts. */
static int
compare_formers(const void *a, const void *b)
{
	const Former *x = a;
	const Former *y = b;

	if (x->node != y->node)
		return x->node < y->node ? -1 : 1;
	if (x->counter != y->counter)
		return x->counter > y->counter ? -1 : 1;
	return (x->self > y->self) - (x->self < y->self);
}

/* Adds what a member was, if it was set back. */
static void
add_former(HeapTuple tuple, TupleDesc desc)
{
	bool		isnull;
	Datum		counter = heap_getattr(tuple, Anum_member_former_counter, desc, &isnull);
	Former	   *former;

	if (isnull)
		return;
	formers.all = formers.all == NULL ? MemoryContextAlloc(formers.context, sizeof(Former)) :
		repalloc(formers.all, (formers.count + 1) * sizeof(Former));
	former = &formers.all[formers.count++];
	former->counter = DatumGetInt64(counter);
	former->node = DatumGetInt32(heap_getattr(tuple, Anum_member_former_id, desc, &isnull));
	former->safe = DatumGetInt64(heap_getattr(tuple, Anum_member_former_safe, desc, &isnull));
	former->self = DatumGetInt32(heap_getattr(tuple, Anum_member_node_id, desc, &isnull));
}

/* Reads the list, unless it is known; whatever rights the caller has just now. */
static void
load_formers(void)
{
	Relation	rel;
	SysScanDesc scan;
	HeapTuple	tuple;

	if (formers.valid)
		return;
	if (formers.context == NULL)
	{
		formers.context = AllocSetContextCreate(CacheMemoryContext, "repl_ml former ids",
												ALLOCSET_SMALL_SIZES);
		CacheRegisterRelcacheCallback(invalidate_formers, (Datum) 0);
	}
	MemoryContextReset(formers.context);
	formers.all = NULL;
	formers.count = 0;
	formers.relid = repl_ml_catalog_oid(MEMBER_TABLE);
	rel = table_open(formers.relid, AccessShareLock);
	if (RelationGetNumberOfAttributes(rel) < Anum_member_former_counter)
		elog(ERROR, "table \"%s\" has unexpected columns", MEMBER_TABLE);
	/* before anything is read: what changes meanwhile must count */
	formers.valid = true;
	PG_TRY();
	{
		scan = systable_beginscan(rel, InvalidOid, false, NULL, 0, NULL);
		while (HeapTupleIsValid(tuple = systable_getnext(scan)))
			add_former(tuple, RelationGetDescr(rel));
		systable_endscan(scan);
	}
	PG_CATCH();
	{
		formers.valid = false;
		PG_RE_THROW();
	}
	PG_END_TRY();
	table_close(rel, AccessShareLock);
	if (formers.count > 1)
		qsort(formers.all, formers.count, sizeof(Former), compare_formers);
}

/* Returns whose late write it is; NULL if it is none. */
static const Former *
find_late(ReplMlClockEntry write)
{
	for (int i = 0; i < formers.count; i++)
	{
		if (write.node == formers.all[i].node && write.counter > formers.all[i].counter)
			return &formers.all[i];
	}
	return NULL;
}

/* Says whether the clock knows of a late write. */
static bool
is_late(const ReplMlClock *clock)
{
	load_formers();
	for (int i = 0; formers.count > 0 && i < repl_ml_clock_count(clock); i++)
	{
		if (find_late(repl_ml_clock_entry(clock, i)) != NULL)
			return true;
	}
	return false;
}

/* Returns up to where the marks know the writes that a former id had before. */
static uint64
known_before(const ReplMlMarks *marks, const Former *former)
{
	uint64		known = former->safe;

	for (int i = 0; i < marks->count; i++)
	{
		const ReplMlMark *mark = &marks->all[i];

		for (int j = 0; mark->is_counter && j < mark->count; j++)
		{
			ReplMlClockEntry write = mark->contributions[j].write;

			if (write.node == former->node && find_late(write) == NULL)
				known = Max(known, write.counter);
		}
		if (!mark->is_counter && mark->dot.node == former->node && find_late(mark->dot) == NULL)
			known = Max(known, mark->dot.counter);
	}
	return known;
}

/* Says whether a counter was written late. */
static bool
is_counted(const ReplMlMarks *marks)
{
	for (int i = 0; i < marks->count; i++)
	{
		const ReplMlMark *mark = &marks->all[i];

		for (int j = 0; mark->is_counter && j < mark->count; j++)
		{
			if (find_late(mark->contributions[j].write) != NULL)
				return true;
		}
	}
	return false;
}

/* Renames the writes that the marks of other columns name. */
static void
rename_marks(ReplMlMarks *marks)
{
	for (int i = 0; i < marks->count; i++)
	{
		const Former *late = marks->all[i].is_counter ? NULL : find_late(marks->all[i].dot);

		if (late != NULL)
			marks->all[i].dot.node = late->self;
	}
}

/*
 * Called by whoever reads a clock to join it: returns it with the late writes of former
 * ids as those of what these nodes are now, palloc'd; or itself, if it knows of none.  So it
 * does with that of a row that has a counter which was written late, and sets "counted", if it is
 * not NULL: as a sum has no history, nobody knows how much was added in either time.
 */
const ReplMlClock *
repl_ml_late_rename(const ReplMlClock *clock, bool *counted)
{
	ReplMlClockEntry *entries;
	ReplMlMarks marks;
	ReplMlClock *late;
	ReplMlClock *result;
	int			kept = 0;

	if (counted != NULL)
		*counted = false;
	if (!is_late(clock))
		return clock;
	marks = repl_ml_marks_read(clock);
	if (is_counted(&marks))
	{
		if (counted != NULL)
			*counted = true;
		return clock;
	}
	entries = palloc((repl_ml_clock_count(clock) + 1) * sizeof(ReplMlClockEntry));
	late = repl_ml_clock_empty();
	for (int i = 0; i < repl_ml_clock_count(clock); i++)
	{
		ReplMlClockEntry entry = repl_ml_clock_entry(clock, i);
		const Former *former;

		/* what it had then may have been late, too, as of an earlier time */
		while ((former = find_late(entry)) != NULL)
		{
			late = repl_ml_clock_merge(late, repl_ml_clock_make(former->self, entry.counter));
			entry.counter = known_before(&marks, former);
		}
		if (entry.counter > 0)
			entries[kept++] = entry;
	}
	rename_marks(&marks);
	result = repl_ml_clock_merge(repl_ml_clock_from_entries(entries, kept), late);
	return marks.count > 0 ? repl_ml_marks_attach(result, &marks) : result;
}

PG_FUNCTION_INFO_V1(repl_ml_member_changed);

/* A row trigger on repl_ml.member: every process reads again who was set back. */
Datum
repl_ml_member_changed(PG_FUNCTION_ARGS)
{
	if (!CALLED_AS_TRIGGER(fcinfo))
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("function \"%s\" must be called as a trigger", "member_changed"),
				 errhint("Leave it to the trigger that repl_ml has made.")));
	CacheInvalidateRelcache(((TriggerData *) fcinfo->context)->tg_relation);
	return PointerGetDatum(NULL);
}
