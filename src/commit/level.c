/*
 * level.c
 *		Which consistency level a transaction's commit needs: the greater of
 *		repl_ml.write_consistency and the minimums of the tables it wrote; and which
 *		tables are strong.
 *
 * Tables' minimums and classes are in repl_ml.replicated_table, the same on all
 * nodes; each process keeps those above "one" and "eventual" until the catalog
 * changes, under the names the group knows the tables by: a table may come here
 * later than its minimum.
 * The triggers that stamp rows (write/stamp.c) tell which tables are written;
 * commit.c asks at the end.
 *
 * Not here: how many members a level is (quorum.c).  No locks but that of the
 * catalog while it is read.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "commands/trigger.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/guc.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

#include "commit/commit.h"
#include "server/server.h"

#define TABLE_OF_TABLES		"replicated_table"
#define TABLE_OF_SHAPES		"table_shape"
#define KEY_OF_SHAPES		"table_shape_pkey"

enum
{
	Anum_table_schema_name = 1,
	Anum_table_table_name,
	Anum_table_state,
	Anum_table_enrolled_by,
	Anum_table_write_consistency,
	Anum_table_class,
	Anum_table_pending_class,
	Anum_table_class_change
};

enum
{
	Anum_shape_node_id = 1,
	Anum_shape_schema_name,
	Anum_shape_table_name,
	Anum_shape_class_change = 6
};

/* A table with a minimum, or that is strong or closed; it need not be here yet. */
typedef struct Minimum
{
	NameData	schema_name;
	NameData	table_name;
	ReplMlLevel level;
	bool		strong;
	bool		changing;		/* its class is to change */
	bool		closed;			/* ... and is: see write/class.c */
} Minimum;

/* The words for levels, by level. */
static const struct config_enum_entry levels[] = {
	[REPL_ML_ONE] = {"one", REPL_ML_ONE, false},
	[REPL_ML_QUORUM] = {"quorum", REPL_ML_QUORUM, false},
	[REPL_ML_ALL] = {"all", REPL_ML_ALL, false},
	[REPL_ML_LEVELS] = {NULL, 0, false}
};

/* repl_ml.write_consistency */
static int	write_consistency = REPL_ML_ONE;

/*
 * has this transaction written users' tables, and the greatest minimum of
 * these; commit.c resets both
 */
static bool has_written = false;
static ReplMlLevel written = REPL_ML_ONE;

/* the table that was noted last, with the minimums as they are; InvalidOid: none */
static Oid	noted = InvalidOid;

/*
 * Written by load_minimums, which may end in an error anywhere: what it has read
 * counts once it is complete, and as long as nothing has changed since it began.
 */
static Minimum *minimums = NULL;
static int	minimum_count = 0;
static bool any_strong = false; /* or changing, among them */
static bool any_changing = false;
static uint64 changes = 1;		/* of the catalog, as far as we have heard */
static uint64 complete_since = 0;
static Oid	catalog_relid = InvalidOid;

static Minimum *find_minimum(Oid root);
static ReplMlLevel minimum_of(Oid root);
static void load_minimums(void);
static bool read_minimum(Relation rel, HeapTuple tuple, Minimum *minimum);
static bool is_closed(Relation rel, HeapTuple tuple);
static void invalidate_minimums(Datum arg, Oid relid);

/* Called by _PG_init: defines the setting. */
void
repl_ml_level_init(void)
{
	DefineCustomEnumVariable("repl_ml.write_consistency",
							 "How many members have a transaction, durably, before its commit "
							 "returns.",
							 "Counts this node: one, more than half of the members, or all. Tables "
							 "may ask for more.",
							 &write_consistency,
							 REPL_ML_ONE,
							 levels,
							 PGC_USERSET,
							 0,
							 NULL,
							 NULL,
							 NULL);
}

/*
 * Called by commit.c: returns the level this transaction's commit needs, as
 * far as it has come; one where it has written no user's table.
 */
ReplMlLevel
repl_ml_level_wanted(void)
{
	return has_written ? Max((ReplMlLevel) write_consistency, written) : REPL_ML_ONE;
}

/*
 * Called by commit.c at the end of a transaction: begins anew with the next
 * one.
 */
void
repl_ml_level_forget(void)
{
	has_written = false;
	written = REPL_ML_ONE;
	noted = InvalidOid;
}

/* Called by write/schema_change.c: this transaction's commit needs at least this level. */
void
repl_ml_level_raise(ReplMlLevel level)
{
	has_written = true;
	written = Max(written, level);
}

/*
 * Called by a backend's stamping triggers: this transaction writes rows of the
 * table "root".  Raises an error if that is closed, or strong and nothing has
 * taken the lease for it: what passes by the executor's hook (a subscription of core's, a
 * cascading TRUNCATE) must not write it.
 */
void
repl_ml_level_note(Oid root)
{
	Minimum    *minimum;

	has_written = true;
	if (root == noted && complete_since == changes)
		return;
	minimum = find_minimum(root);
	if (minimum != NULL && minimum->closed)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_IN_USE),
				 errmsg("table \"%s\" cannot be written now: it is changing its class",
						get_rel_name(root)),
				 errhint("Run the transaction again in a moment.")));
	if (minimum != NULL && minimum->strong)
		repl_ml_lease_require(root);
	written = Max(written, minimum == NULL ? REPL_ML_ONE : minimum->level);
	noted = root;
}

/*
 * Returns the level that a transaction needs which has written all these
 * tables, and has this session's setting.
 */
ReplMlLevel
repl_ml_level_of_tables(List *relids)
{
	ReplMlLevel level = write_consistency;
	ListCell   *lc;

	foreach(lc, relids)
		level = Max(level, minimum_of(lfirst_oid(lc)));
	return level;
}

/* Returns the minimum of a table that is here. */
static ReplMlLevel
minimum_of(Oid root)
{
	Minimum    *minimum = find_minimum(root);

	return minimum == NULL ? REPL_ML_ONE : minimum->level;
}

/*
 * Says whether it is known that no table is strong or changing, without a look at any catalog.
 * Called before each statement that writes.
 */
bool
repl_ml_level_none_is_strong(void)
{
	return complete_since == changes && !any_strong;
}

/*
 * Says whether any table is strong or changing, in a member's database; reads the catalog only
 * after it has changed.
 */
bool
repl_ml_level_any_strong(void)
{
	if (complete_since != changes)
		load_minimums();
	return any_strong;
}

/* Says whether a table that is here is strong; a partition is what its root is. */
bool
repl_ml_level_is_strong(Oid root)
{
	Minimum    *minimum = find_minimum(root);

	return minimum != NULL && minimum->strong;
}

/* Says whether the class of any table is to change; after repl_ml_level_any_strong. */
bool
repl_ml_level_any_changing(void)
{
	return any_changing;
}

/* Says whether a table that is here is closed; a partition is what its root is. */
bool
repl_ml_level_is_closed(Oid root)
{
	Minimum    *minimum = find_minimum(root);

	return minimum != NULL && minimum->closed;
}

/* Returns the entry of a table that is here, good until the next call; NULL if it has none. */
static Minimum *
find_minimum(Oid root)
{
	char	   *table_name;
	char	   *schema_name;

	if (complete_since != changes)
		load_minimums();
	if (minimum_count == 0)
		return NULL;
	table_name = get_rel_name(root);
	schema_name = get_namespace_name(get_rel_namespace(root));
	for (int i = 0; i < minimum_count && table_name != NULL && schema_name != NULL; i++)
	{
		if (strcmp(NameStr(minimums[i].table_name), table_name) == 0 &&
			strcmp(NameStr(minimums[i].schema_name), schema_name) == 0)
			return &minimums[i];
	}
	return NULL;
}

/*
 * Reads the minimums above "one" from the catalog, as they are now, whatever
 * the transaction's snapshot sees.
 */
static void
load_minimums(void)
{
	static bool registered = false;
	uint64		before;
	Relation	rel;
	Snapshot	snapshot;
	SysScanDesc scan;
	HeapTuple	tuple;
	int			room = minimum_count;

	if (!registered)
		CacheRegisterRelcacheCallback(invalidate_minimums, (Datum) 0);
	registered = true;

	/* a change that is heard of from here on makes what is read out of date */
	before = changes;
	complete_since = 0;
	minimum_count = 0;
	any_strong = false;
	any_changing = false;
	catalog_relid = repl_ml_catalog_oid(TABLE_OF_TABLES);
	rel = table_open(catalog_relid, AccessShareLock);
	snapshot = RegisterSnapshot(GetLatestSnapshot());
	scan = systable_beginscan(rel, InvalidOid, false, snapshot, 0, NULL);
	while (HeapTupleIsValid(tuple = systable_getnext(scan)))
	{
		if (minimum_count == room || minimums == NULL)
		{
			room = Max(16, 2 * room);
			minimums = minimums == NULL ?
				MemoryContextAlloc(CacheMemoryContext, room * sizeof(Minimum)) :
				repalloc(minimums, room * sizeof(Minimum));
		}
		if (!read_minimum(rel, tuple, &minimums[minimum_count]))
			continue;
		any_changing |= minimums[minimum_count].changing;
		any_strong |= minimums[minimum_count].strong || minimums[minimum_count].changing;
		minimum_count++;
	}
	systable_endscan(scan);
	UnregisterSnapshot(snapshot);
	table_close(rel, AccessShareLock);
	complete_since = before;
}

/*
 * Reads the minimum of a row of the catalog; returns false if the table has
 * none.
 */
static bool
read_minimum(Relation rel, HeapTuple tuple, Minimum *minimum)
{
	TupleDesc	desc = RelationGetDescr(rel);
	bool		isnull;

	Datum		level = heap_getattr(tuple, Anum_table_write_consistency, desc, &isnull);
	Datum		class = heap_getattr(tuple, Anum_table_class, desc, &isnull);
	Datum		state = heap_getattr(tuple, Anum_table_state, desc, &isnull);

	minimum->strong = strcmp(TextDatumGetCString(class), "strong") == 0 &&
		strcmp(TextDatumGetCString(state), "enrolled") == 0;
	if (!repl_ml_level_parse(TextDatumGetCString(level), &minimum->level))
		return false;
	/* nobody may be told of a strong transaction that only one node has */
	if (minimum->strong)
		minimum->level = Max(minimum->level, REPL_ML_QUORUM);
	(void) heap_getattr(tuple, Anum_table_pending_class, desc, &isnull);
	minimum->changing = !isnull && strcmp(TextDatumGetCString(state), "enrolled") == 0;
	minimum->closed = minimum->changing && is_closed(rel, tuple);
	if (minimum->level == REPL_ML_ONE && !minimum->changing)
		return false;
	minimum->schema_name =
		*DatumGetName(heap_getattr(tuple, Anum_table_schema_name, desc, &isnull));
	minimum->table_name = *DatumGetName(heap_getattr(tuple, Anum_table_table_name, desc, &isnull));
	return true;
}

/*
 * Says whether the class of the table of a row of the catalog is changing: this node has
 * told that none of its transactions writes it in the old one any more.
 */
static bool
is_closed(Relation rel, HeapTuple tuple)
{
	TupleDesc	desc = RelationGetDescr(rel);
	bool		isnull;
	Datum		change = heap_getattr(tuple, Anum_table_class_change, desc, &isnull);
	bool		closed = false;
	Relation	shapes;
	ScanKeyData keys[3];
	Snapshot	snapshot;
	SysScanDesc scan;
	HeapTuple	shape;

	if (isnull)
		return false;
	ScanKeyInit(&keys[0], Anum_shape_node_id, BTEqualStrategyNumber, F_INT4EQ,
				Int32GetDatum(repl_ml_identity()->node_id));
	ScanKeyInit(&keys[1], Anum_shape_schema_name, BTEqualStrategyNumber, F_NAMEEQ,
				heap_getattr(tuple, Anum_table_schema_name, desc, &isnull));
	ScanKeyInit(&keys[2], Anum_shape_table_name, BTEqualStrategyNumber, F_NAMEEQ,
				heap_getattr(tuple, Anum_table_table_name, desc, &isnull));
	shapes = table_open(repl_ml_catalog_oid(TABLE_OF_SHAPES), AccessShareLock);
	snapshot = RegisterSnapshot(GetLatestSnapshot());
	scan = systable_beginscan(shapes, repl_ml_catalog_oid(KEY_OF_SHAPES), true, snapshot, 3, keys);
	shape = systable_getnext(scan);
	if (HeapTupleIsValid(shape))
	{
		Datum		told = heap_getattr(shape, Anum_shape_class_change, RelationGetDescr(shapes),
										&isnull);

		closed = !isnull && DatumGetTimestampTz(told) == DatumGetTimestampTz(change);
	}
	systable_endscan(scan);
	UnregisterSnapshot(snapshot);
	table_close(shapes, AccessShareLock);
	return closed;
}

/*
 * A callback of the relation cache: the minimums are read again before the
 * next use.
 */
static void
invalidate_minimums(Datum arg, Oid relid)
{
	if (relid == InvalidOid || relid == catalog_relid)
		changes++;
}

PG_FUNCTION_INFO_V1(repl_ml_table_consistency_changed);

/*
 * A row trigger on repl_ml.replicated_table, and on what repl_ml.table_shape tells of
 * changes of a class: every process reads the minimums again.
 */
Datum
repl_ml_table_consistency_changed(PG_FUNCTION_ARGS)
{
	if (!CALLED_AS_TRIGGER(fcinfo))
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("function \"%s\" must be called as a trigger",
						"table_consistency_changed"),
				 errhint("Leave it to the trigger that repl_ml has made.")));
	CacheInvalidateRelcacheByRelid(repl_ml_catalog_oid(TABLE_OF_TABLES));
	changes++;
	return PointerGetDatum(NULL);
}

/* Returns the word for a level, as in settings and views. */
const char *
repl_ml_level_name(ReplMlLevel level)
{
	return levels[level].name;
}

/* Sets the level of a word; returns false if it is none. */
bool
repl_ml_level_parse(const char *name, ReplMlLevel *level)
{
	for (int i = 0; i < REPL_ML_LEVELS; i++)
	{
		if (strcmp(name, levels[i].name) == 0)
		{
			*level = levels[i].val;
			return true;
		}
	}
	return false;
}
