/*
 * shapes.c
 *		What the members have told of the replicated tables, compared with what this
 *		node has told of its own.
 *
 * Called by backends, under the views tables, shape_differences and health.  Each
 * member's row without table has a sum over its others (repl_ml.tell_shapes): where
 * that is ours there is nothing to look for, and with a thousand tables on ten
 * members, of which a join would read for long, there mostly is not.
 *
 * Not here: what a table is, and telling it (group/shape.c), and which object of it
 * differs (sql/parts/views.sql).  No locks but those of a reader of the catalog.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/table.h"
#include "catalog/pg_type.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/hsearch.h"
#include "utils/jsonb.h"
#include "utils/snapmgr.h"

#include "server/server.h"

#define SHAPE_TABLE			"table_shape"
#define SHAPE_KEY			"table_shape_pkey"
#define NODE_ATTNUM			1	/* columns of repl_ml.table_shape */
#define SCHEMA_ATTNUM		2
#define TABLE_ATTNUM		3
#define SHAPE_ATTNUM		4
#define SEEN_ATTNUM			5
#define TABLES_AT_FIRST		1024
#define COMPARED_COLUMNS	5

/* A table's name in the group. */
typedef struct TableName
{
	NameData	schema;
	NameData	table;
} TableName;

/* A table that this node has told of. */
typedef struct ToldTable
{
	TableName	name;			/* hash key */
	Jsonb	   *shape;			/* NULL: missing here */
	text	   *seen;			/* of its columns; NULL: none */
	int			known;			/* how many of the members have told of it */
	int			different;		/* and of how many it is another one */
	Datum	   *differs_on;		/* their ids; NULL: none so far */
} ToldTable;

/* A comparison; all of it lives in the caller's memory context. */
typedef struct Comparison
{
	Relation	rel;			/* repl_ml.table_shape */
	int			local;			/* id of this node */
	int			members;		/* how many are compared */
	const int  *ids;			/* which */
	HTAB	   *tables;			/* of ToldTable */
	ToldTable	database;		/* the row without table, which is in no hash */
} Comparison;

/* Begins to read what a node has told: all, or of its database only. */
static SysScanDesc
begin_scan(const Comparison *comparison, int node, bool database_only)
{
	static NameData nobody;		/* nothing but zeros */
	ScanKeyData keys[3];

	ScanKeyInit(&keys[0], NODE_ATTNUM, BTEqualStrategyNumber, F_INT4EQ, Int32GetDatum(node));
	ScanKeyInit(&keys[1], SCHEMA_ATTNUM, BTEqualStrategyNumber, F_NAMEEQ, NameGetDatum(&nobody));
	ScanKeyInit(&keys[2], TABLE_ATTNUM, BTEqualStrategyNumber, F_NAMEEQ, NameGetDatum(&nobody));
	return systable_beginscan(comparison->rel, repl_ml_catalog_oid(SHAPE_KEY), true,
							  GetActiveSnapshot(), database_only ? 3 : 1, keys);
}

/* Returns a column of a row; NULL for null. */
static Pointer
get_column(const Comparison *comparison, HeapTuple tuple, AttrNumber attnum)
{
	bool		isnull;
	Datum		value = heap_getattr(tuple, attnum, RelationGetDescr(comparison->rel), &isnull);

	return isnull ? NULL : DatumGetPointer(value);
}

/* Returns a copy of a value that may be out of line; NULL of NULL. */
static void *
copy_value(Pointer value)
{
	return value == NULL ? NULL : PG_DETOAST_DATUM_COPY(PointerGetDatum(value));
}

/* Reads what a row says of a table of this node; the name is there. */
static void
read_table(const Comparison *comparison, HeapTuple tuple, ToldTable *table)
{
	table->shape = copy_value(get_column(comparison, tuple, SHAPE_ATTNUM));
	table->seen = copy_value(get_column(comparison, tuple, SEEN_ATTNUM));
	table->known = 0;
	table->different = 0;
	table->differs_on = NULL;
}

/* Returns the table that a row is of, made if that is asked for; NULL if there is none. */
static ToldTable *
find_table(const Comparison *comparison, HeapTuple tuple, HASHACTION action)
{
	TableName	name;
	bool		found;

	/* what is stored has zeros behind it */
	name.schema = *(Name) get_column(comparison, tuple, SCHEMA_ATTNUM);
	name.table = *(Name) get_column(comparison, tuple, TABLE_ATTNUM);
	return hash_search(comparison->tables, &name, action, &found);
}

/* Says whether a row is the one without table. */
static bool
is_of_database(const Comparison *comparison, HeapTuple tuple)
{
	return NameStr(*(Name) get_column(comparison, tuple, TABLE_ATTNUM))[0] == '\0';
}

/* Reads what this node has told of its tables, unless that was done. */
static void
read_own(Comparison *comparison)
{
	HASHCTL		ctl = {.keysize = sizeof(TableName),.entrysize = sizeof(ToldTable),
	.hcxt = CurrentMemoryContext};
	SysScanDesc scan;
	HeapTuple	tuple;

	if (comparison->tables != NULL)
		return;
	comparison->tables = hash_create("told tables", TABLES_AT_FIRST, &ctl,
									 HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	scan = begin_scan(comparison, comparison->local, false);
	while (HeapTupleIsValid(tuple = systable_getnext(scan)))
	{
		if (!is_of_database(comparison, tuple))
			read_table(comparison, tuple, find_table(comparison, tuple, HASH_ENTER));
	}
	systable_endscan(scan);
}

/*
 * Says whether a table is there what it is here.  Equal values mostly are the same
 * bytes, which costs a hundredth of looking at what they mean.
 */
static bool
is_same(const Jsonb *here, Pointer there)
{
	Jsonb	   *shape;
	bool		same;

	if (here == NULL || there == NULL)
		return here == NULL && there == NULL;
	shape = (Jsonb *) PG_DETOAST_DATUM(PointerGetDatum(there));
	same = VARSIZE(shape) == VARSIZE(here) && memcmp(shape, here, VARSIZE(here)) == 0;
	if (!same)
		same = DatumGetBool(DirectFunctionCall2(jsonb_eq, JsonbPGetDatum(here),
												JsonbPGetDatum(shape)));
	if ((Pointer) shape != there)
		pfree(shape);
	return same;
}

/* Notes what a member has told of a table. */
static void
compare_table(const Comparison *comparison, ToldTable *table, HeapTuple tuple, int node)
{
	table->known++;
	if (is_same(table->shape, get_column(comparison, tuple, SHAPE_ATTNUM)))
		return;
	if (table->differs_on == NULL)
		table->differs_on = palloc(comparison->members * sizeof(Datum));
	table->differs_on[table->different++] = Int32GetDatum(node);
}

/* Compares what a member has told, table by table. */
static void
compare_tables(Comparison *comparison, int node)
{
	SysScanDesc scan = begin_scan(comparison, node, false);
	HeapTuple	tuple;

	read_own(comparison);
	while (HeapTupleIsValid(tuple = systable_getnext(scan)))
	{
		ToldTable  *table = find_table(comparison, tuple, HASH_FIND);

		CHECK_FOR_INTERRUPTS();
		if (table != NULL)
			compare_table(comparison, table, tuple, node);
	}
	systable_endscan(scan);
}

/*
 * Compares what a member has told of its database with ours.  Returns whether its
 * tables are ours, all of them, as far as the sums say.
 */
static bool
compare_database(Comparison *comparison, int node)
{
	SysScanDesc scan = begin_scan(comparison, node, true);
	HeapTuple	tuple = systable_getnext(scan);
	bool		same = false;

	if (HeapTupleIsValid(tuple))
	{
		text	   *here = comparison->database.seen;
		text	   *there = copy_value(get_column(comparison, tuple, SEEN_ATTNUM));

		compare_table(comparison, &comparison->database, tuple, node);
		same = here != NULL && there != NULL && VARSIZE(here) == VARSIZE(there) &&
			memcmp(here, there, VARSIZE(here)) == 0;
	}
	systable_endscan(scan);
	return same;
}

/*
 * Compares all members with this node; returns how many of them, it among them, have
 * all of its tables as they are here.
 */
static int
compare_members(Comparison *comparison)
{
	SysScanDesc scan = begin_scan(comparison, comparison->local, true);
	HeapTuple	tuple = systable_getnext(scan);
	int			same = 0;

	if (HeapTupleIsValid(tuple))
		read_table(comparison, tuple, &comparison->database);
	systable_endscan(scan);
	if (!HeapTupleIsValid(tuple))
		return 0;
	for (int i = 0; i < comparison->members; i++)
	{
		int			node = comparison->ids[i];

		if (compare_database(comparison, node) || node == comparison->local)
			same++;
		else
			compare_tables(comparison, node);
	}
	return same;
}

/* Puts a table into the result, of which so many more members have the same. */
static void
put_table(ReturnSetInfo *rsinfo, const ToldTable *table, int same)
{
	Datum		values[COMPARED_COLUMNS] = {NameGetDatum(&table->name.schema),
		NameGetDatum(&table->name.table), Int64GetDatum(table->known + same),
		PointerGetDatum(table->seen)};
	bool		nulls[COMPARED_COLUMNS] = {false, false, false, table->seen == NULL,
	table->different == 0};

	if (table->different > 0)
		values[COMPARED_COLUMNS - 1] =
			PointerGetDatum(construct_array(table->differs_on, table->different, INT4OID,
											sizeof(int32), true, TYPALIGN_INT));
	tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
}

/* Puts the tables into the result, all or those that differ. */
static void
put_tables(ReturnSetInfo *rsinfo, Comparison *comparison, int same, bool only_different)
{
	HASH_SEQ_STATUS seq;
	ToldTable  *table;

	if (comparison->database.different > 0)
		put_table(rsinfo, &comparison->database, 0);
	if (!only_different)
		read_own(comparison);
	if (comparison->tables == NULL)
		return;
	hash_seq_init(&seq, comparison->tables);
	while ((table = hash_seq_search(&seq)) != NULL)
	{
		if (table->different > 0 || !only_different)
			put_table(rsinfo, table, same);
	}
}

PG_FUNCTION_INFO_V1(repl_ml_compared_tables);

/*
 * repl_ml.compared_tables(local, members, only_different): returns a row for each
 * table that this node has told of, or for each that differs somewhere, and one
 * without names for its database if that does.
 */
Datum
repl_ml_compared_tables(PG_FUNCTION_ARGS)
{
	ArrayType  *ids = PG_GETARG_ARRAYTYPE_P(1);
	Comparison	comparison = {.local = PG_GETARG_INT32(0)};
	int			same;

	if (ARR_NDIM(ids) > 1 || array_contains_nulls(ids))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("members must be ids of nodes in one dimension")));
	comparison.members = ArrayGetNItems(ARR_NDIM(ids), ARR_DIMS(ids));
	comparison.ids = (const int *) ARR_DATA_PTR(ids);
	InitMaterializedSRF(fcinfo, 0);
	comparison.rel = table_open(repl_ml_catalog_oid(SHAPE_TABLE), AccessShareLock);
	same = compare_members(&comparison);
	put_tables((ReturnSetInfo *) fcinfo->resultinfo, &comparison, same, PG_GETARG_BOOL(2));
	table_close(comparison.rel, AccessShareLock);
	return (Datum) 0;
}
