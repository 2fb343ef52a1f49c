/*
 * level.c
 *		Which consistency level a transaction's commit needs: the greater of
 *		repl_ml.write_consistency and the minimums of the tables it wrote.
 *
 * Tables' minimums are in repl_ml.replicated_table, the same on all nodes; each
 * process keeps those above "one" until the catalog changes.  The triggers that
 * stamp rows (stamp.c) tell which tables are written; commit.c asks at the end.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "catalog/namespace.h"
#include "commands/trigger.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

#include "origin/origin.h"
#include "row/row.h"

#define TABLE_OF_TABLES		"replicated_table"

enum
{
	Anum_table_schema_name = 1,
	Anum_table_table_name,
	Anum_table_state,
	Anum_table_enrolled_by,
	Anum_table_write_consistency
};

/* A table with a minimum. */
typedef struct Minimum
{
	Oid			relid;
	ReplMlLevel level;
} Minimum;

static const struct config_enum_entry levels[] = {
	{"one", REPL_ML_ONE, false},
	{"quorum", REPL_ML_QUORUM, false},
	{"all", REPL_ML_ALL, false},
	{NULL, 0, false}
};

/* repl_ml.write_consistency */
static int	write_consistency = REPL_ML_ONE;

/* has this transaction written users' tables, and the greatest minimum of these; commit.c resets both */
static bool has_written = false;
static ReplMlLevel written = REPL_ML_ONE;

/* written by load, thrown away by invalidate */
static Minimum *minimums = NULL;
static int	minimum_count = 0;
static bool minimums_valid = false;
static Oid	catalog_relid = InvalidOid;

static void load(void);
static void invalidate(Datum arg, Oid relid);

/* Defines the setting. */
void
repl_ml_level_init(void)
{
	DefineCustomEnumVariable("repl_ml.write_consistency",
							 "How many members have a transaction, durably, before its commit returns.",
							 "Counts this node: one, more than half of the members, or all. Tables may ask for more.",
							 &write_consistency,
							 REPL_ML_ONE,
							 levels,
							 PGC_USERSET,
							 0,
							 NULL,
							 NULL,
							 NULL);
}

/* The level this transaction's commit needs, as far as it has come: one where it has written no user's table. */
ReplMlLevel
repl_ml_level_wanted(void)
{
	return has_written ? Max((ReplMlLevel) write_consistency, written) : REPL_ML_ONE;
}

/* Begins anew with the next transaction. */
void
repl_ml_level_forget(void)
{
	has_written = false;
	written = REPL_ML_ONE;
}

/* This transaction writes rows of the table "root". */
void
repl_ml_level_note(Oid root)
{
	has_written = true;
	if (!minimums_valid)
		load();
	for (int i = 0; i < minimum_count; i++)
	{
		if (minimums[i].relid == root)
			written = Max(written, minimums[i].level);
	}
}

/* The level that a transaction needs which has written all these tables, and has this session's setting. */
ReplMlLevel
repl_ml_level_of_tables(List *relids)
{
	ReplMlLevel level = write_consistency;
	ListCell   *lc;

	if (!minimums_valid)
		load();
	foreach(lc, relids)
	{
		for (int i = 0; i < minimum_count; i++)
		{
			if (minimums[i].relid == lfirst_oid(lc))
				level = Max(level, minimums[i].level);
		}
	}
	return level;
}

/* Reads the minimums above "one" of tables that are here. */
static void
load(void)
{
	static bool registered = false;
	Relation	rel;
	Snapshot	snapshot;
	SysScanDesc scan;
	HeapTuple	tuple;
	int			room = 0;

	if (!registered)
		CacheRegisterRelcacheCallback(invalidate, (Datum) 0);
	registered = true;
	catalog_relid = repl_ml_catalog_oid(TABLE_OF_TABLES);
	minimum_count = 0;
	/* before anything is read: what changes meanwhile must count */
	minimums_valid = true;

	rel = table_open(catalog_relid, AccessShareLock);
	snapshot = RegisterSnapshot(GetLatestSnapshot());
	scan = systable_beginscan(rel, InvalidOid, false, snapshot, 0, NULL);
	while (HeapTupleIsValid(tuple = systable_getnext(scan)))
	{
		TupleDesc	desc = RelationGetDescr(rel);
		bool		isnull;
		ReplMlLevel level;
		Oid			schema;
		Oid			relid;

		if (!repl_ml_level_parse(TextDatumGetCString(heap_getattr(tuple, Anum_table_write_consistency, desc, &isnull)), &level) ||
			level == REPL_ML_ONE)
			continue;
		schema = get_namespace_oid(NameStr(*DatumGetName(heap_getattr(tuple, Anum_table_schema_name, desc, &isnull))), true);
		relid = get_relname_relid(NameStr(*DatumGetName(heap_getattr(tuple, Anum_table_table_name, desc, &isnull))), schema);
		if (!OidIsValid(relid))
			continue;
		if (minimum_count == room)
		{
			room = Max(16, 2 * room);
			minimums = minimums == NULL ? MemoryContextAlloc(CacheMemoryContext, room * sizeof(Minimum)) :
				repalloc(minimums, room * sizeof(Minimum));
		}
		minimums[minimum_count++] = (Minimum) {.relid = relid,.level = level};
	}
	systable_endscan(scan);
	UnregisterSnapshot(snapshot);
	table_close(rel, AccessShareLock);
}

/* Also any new table may be one of those named in the catalog. */
static void
invalidate(Datum arg, Oid relid)
{
	if (relid == InvalidOid || relid == catalog_relid)
		minimums_valid = false;
}

/* Row trigger on repl_ml.replicated_table: every process reads the minimums again. */
PG_FUNCTION_INFO_V1(repl_ml_table_consistency_changed);
Datum
repl_ml_table_consistency_changed(PG_FUNCTION_ARGS)
{
	TriggerData *trigdata = (TriggerData *) fcinfo->context;

	if (!CALLED_AS_TRIGGER(fcinfo))
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("function \"%s\" must be called as a trigger", "table_consistency_changed")));
	CacheInvalidateRelcache(trigdata->tg_relation);
	minimums_valid = false;
	return PointerGetDatum(NULL);
}
