/*
 * shape.c
 *		What a key is a key of: the names and types of its columns, its shape.
 *
 * A tombstone names the columns its key had where the row was deleted, because
 * the key of a table may change, on one node before the others, while
 * tombstones of the former one exist or are on their way.  A tombstone says of
 * every row that has its values in its columns that it was deleted, whatever
 * the key is now.
 *
 * repl_ml.key_shape lists the shapes of the tombstones here, those of the
 * present key included: whoever writes a tombstone sees to that first.  So who
 * writes a row knows by which other columns it may have been deleted; each
 * process keeps that in its table entries (table.c), as a ReplMlTable for each
 * former key.  The list also says which columns those are now, so that a column
 * that was renamed is found.  Columns are those of a key if they are still
 * there; a value is read as the type it had.
 *
 * Called by table.c, tombstone.c and those who write rows: write/stamp.c,
 * converge/row.c and deletion.c.  Not here: a key's values (key.c).  Writing to
 * the list takes SHARE ROW EXCLUSIVE on it until the transaction ends; it
 * happens once for a shape.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/xact.h"
#include "catalog/indexing.h"
#include "catalog/pg_type.h"
#include "commands/trigger.h"
#include "storage/lmgr.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/datum.h"
#include "utils/fmgroids.h"
#include "utils/fmgrprotos.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"

#include "compat.h"
#include "row/row.h"
#include "server/server.h"

#define SHAPE_TABLE		"key_shape"
#define SHAPE_INDEX		"key_shape_pkey"

enum
{
	Anum_shape_schema_name = 1,
	Anum_shape_table_name,
	Anum_shape_columns,
	Anum_shape_attnums,
	Anum_shape_in_use,
	Natts_shape = Anum_shape_in_use
};

/* The list, known to invalidations; written by scan_list. */
static Oid	list_relid = InvalidOid;

typedef void (*ShapeVisitor) (Relation list, HeapTuple tuple, Datum *values, void *argument);

typedef struct FillState
{
	ReplMlTable *table;
	Relation	rel;
} FillState;

typedef struct FindState
{
	Datum		columns;
	HeapTuple	tuple;			/* a copy of the shape's row; NULL: not listed */
	Datum		attnums;
	bool		in_use;
} FindState;

static Datum describe_key(const ReplMlTable *table, TupleDesc desc);
static void scan_list(const ReplMlTable *table, Relation list, ShapeVisitor visitor,
					  void *argument);
static void add_former_shape(Relation list, HeapTuple tuple, Datum *values, void *argument);
static void find_shape(Relation list, HeapTuple tuple, Datum *values, void *argument);
static ReplMlTable *resolve_shape(const ReplMlTable *table, TupleDesc desc, Datum columns,
								  Datum attnums,
								  MemoryContext context);
static AttrNumber find_column(const ReplMlTable *table, const char *name, AttrNumber listed);
static Oid	find_type(const char *name);
static bool convert_value(const ReplMlTable *shape, int i, Oid type, Datum value, Datum *converted);

/*
 * Says whether this relation is the list: a change of it makes every table
 * entry invalid.
 */
bool
repl_ml_shape_is_list(Oid relid)
{
	return relid == list_relid;
}

/*
 * Sets what a table entry says of its key's shape and of the former ones;
 * called by table.c when it fills one.
 */
void
repl_ml_shape_fill(ReplMlTable *table, Relation rel)
{
	FillState	state = {.table = table,.rel = rel};
	MemoryContext old = MemoryContextSwitchTo(table->functions);
	Oid			list = get_relname_relid(SHAPE_TABLE, repl_ml_schema_oid());

	table->key_columns = describe_key(table, RelationGetDescr(rel));
	table->key_listed = false;
	table->former_count = 0;
	table->former = NULL;
	MemoryContextSwitchTo(old);
	/* the group's own tables have no tombstones, and a walsender that decodes meets none */
	if (!OidIsValid(list) || RelationGetNamespace(rel) == repl_ml_schema_oid() ||
		HistoricSnapshotActive())
		return;
	scan_list(table, NULL, add_former_shape, &state);
}

/*
 * Returns the shape of the table's key: for each column its name and its
 * type's, as text[].
 */
static Datum
describe_key(const ReplMlTable *table, TupleDesc desc)
{
	Datum		texts[2 * INDEX_MAX_KEYS];

	for (int i = 0; i < table->key_natts; i++)
	{
		Form_pg_attribute att = TupleDescAttr(desc, table->key_attnums[i] - 1);

		texts[2 * i] = CStringGetTextDatum(NameStr(att->attname));
		texts[2 * i + 1] =
			CStringGetTextDatum(format_type_be_qualified(getBaseType(table->key_types[i])));
	}
	return PointerGetDatum(construct_array(texts, 2 * table->key_natts, TEXTOID, -1, false,
										   TYPALIGN_INT));
}

/*
 * Returns, for converge/deletion.c, a shape of these columns of the table, as
 * a peer may have it for its key.  Palloc'd.
 */
ReplMlTable *
repl_ml_shape_make(Relation rel, const AttrNumber *attnums, int count)
{
	ReplMlTable key = {.key_natts = count};

	for (int i = 0; i < count; i++)
	{
		key.key_attnums[i] = attnums[i];
		key.key_types[i] = TupleDescAttr(RelationGetDescr(rel), attnums[i] - 1)->atttypid;
	}
	return repl_ml_shape_get(rel, describe_key(&key, RelationGetDescr(rel)));
}

/* Says whether the key is of just this shape. */
bool
repl_ml_shape_is(const ReplMlTable *table, Datum columns)
{
	return datum_image_eq(table->key_columns, columns, false, -1);
}

/*
 * Calls the visitor for each shape that is listed of the table, in "list" if
 * that is open; also for what this transaction has listed.
 */
static void
scan_list(const ReplMlTable *table, Relation list, ShapeVisitor visitor, void *argument)
{
	Relation	rel = list != NULL ? list :
		table_open(repl_ml_catalog_oid(SHAPE_TABLE), AccessShareLock);
	Snapshot	snapshot = RegisterSnapshot(GetLatestSnapshot());
	ScanKeyData keys[2];
	SysScanDesc scan;
	HeapTuple	tuple;

	/* from now on a change of it is noticed */
	list_relid = RelationGetRelid(rel);
	ScanKeyInit(&keys[0], Anum_shape_schema_name, BTEqualStrategyNumber, F_NAMEEQ,
				NameGetDatum(&table->schema_name));
	ScanKeyInit(&keys[1], Anum_shape_table_name, BTEqualStrategyNumber, F_NAMEEQ,
				NameGetDatum(&table->table_name));
	scan = systable_beginscan(rel, repl_ml_catalog_oid(SHAPE_INDEX), true, snapshot, 2, keys);
	while (HeapTupleIsValid(tuple = systable_getnext(scan)))
	{
		Datum		values[Natts_shape];
		bool		nulls[Natts_shape];

		Assert(RelationGetNumberOfAttributes(rel) == Natts_shape);
		heap_deform_tuple(tuple, RelationGetDescr(rel), values, nulls);
		visitor(rel, tuple, values, argument);
	}
	systable_endscan(scan);
	UnregisterSnapshot(snapshot);
	if (list == NULL)
		table_close(rel, AccessShareLock);
}

/*
 * Visitor: adds a shape to a table entry, if tombstones may have it and its
 * columns are there.
 */
static void
add_former_shape(Relation list, HeapTuple tuple, Datum *values, void *argument)
{
	FillState  *state = argument;
	ReplMlTable *table = state->table;
	MemoryContext old;
	ReplMlTable *shape;

	if (!DatumGetBool(values[Anum_shape_in_use - 1]))
		return;
	if (repl_ml_shape_is(table, values[Anum_shape_columns - 1]))
	{
		table->key_listed = true;
		return;
	}
	shape = resolve_shape(table, RelationGetDescr(state->rel), values[Anum_shape_columns - 1],
						  values[Anum_shape_attnums - 1], table->functions);
	if (repl_ml_shape_missing(shape) != NULL)
		return;

	/* lives as long as the entry is valid */
	old = MemoryContextSwitchTo(table->functions);
	if (table->former == NULL)
		table->former = palloc(sizeof(ReplMlTable *));
	else
		table->former = repalloc(table->former, (table->former_count + 1) * sizeof(ReplMlTable *));
	table->former[table->former_count++] = shape;
	MemoryContextSwitchTo(old);
}

/* Visitor: takes the shape with these columns. */
static void
find_shape(Relation list, HeapTuple tuple, Datum *values, void *argument)
{
	FindState  *state = argument;

	if (state->tuple != NULL ||
		!datum_image_eq(state->columns, values[Anum_shape_columns - 1], false, -1))
		return;
	state->tuple = heap_copytuple(tuple);
	state->attnums = datumCopy(values[Anum_shape_attnums - 1], false, -1);
	state->in_use = DatumGetBool(values[Anum_shape_in_use - 1]);
}

/*
 * Returns, for who applies a deletion, a shape that a peer has named, as it is
 * found in this table.  Columns that are not here have no attribute number
 * (repl_ml_shape_missing).  Palloc'd.
 */
ReplMlTable *
repl_ml_shape_get(Relation rel, Datum columns)
{
	ReplMlTable *table = repl_ml_table_get(rel);
	FindState	state = {.columns = columns};

	scan_list(table, NULL, find_shape, &state);
	return resolve_shape(table, RelationGetDescr(rel), columns, state.attnums,
						 CurrentMemoryContext);
}

/*
 * Returns a shape as it is found in this table.  "attnums" are what the list
 * says of the columns, 0 if it says nothing.  Allocated in "context".
 */
static ReplMlTable *
resolve_shape(const ReplMlTable *table, TupleDesc desc, Datum columns, Datum attnums,
			  MemoryContext context)
{
	MemoryContext old = MemoryContextSwitchTo(context);
	ReplMlTable *shape = palloc0(sizeof(ReplMlTable));
	Datum	   *texts;
	Datum	   *listed = NULL;
	int			count;
	int			listed_count = 0;

	shape->relid = table->relid;
	shape->root = table->root;
	shape->schema_name = table->schema_name;
	shape->table_name = table->table_name;
	shape->clock_attnum = table->clock_attnum;
	shape->functions = context;
	shape->key_plain = true;
	shape->key_columns = datumCopy(columns, false, -1);
	deconstruct_array(DatumGetArrayTypeP(columns), TEXTOID, -1, false, TYPALIGN_INT, &texts, NULL,
					  &count);
	if (attnums != (Datum) 0)
		deconstruct_array(DatumGetArrayTypeP(attnums), INT2OID, sizeof(int16), true, TYPALIGN_SHORT,
						  &listed, NULL, &listed_count);
	if (count % 2 != 0 || count == 0 || count / 2 > INDEX_MAX_KEYS)
		ereport(ERROR,
				(errcode(ERRCODE_PROTOCOL_VIOLATION),
				 errmsg("a deleted row of table \"%s.%s\" came without its key's columns",
						NameStr(table->schema_name), NameStr(table->table_name)),
				 errhint(REPL_ML_SAME_VERSION_HINT)));
	shape->key_natts = count / 2;
	for (int i = 0; i < shape->key_natts; i++)
	{
		AttrNumber	attnum = find_column(table, TextDatumGetCString(texts[2 * i]),
										 i < listed_count ? DatumGetInt16(listed[i]) :
										 InvalidAttrNumber);
		Form_pg_attribute att = attnum == InvalidAttrNumber ? NULL :
			TupleDescAttr(desc, attnum - 1);
		Oid			type = find_type(TextDatumGetCString(texts[2 * i + 1]));

		/*
		 * a type that is not here: the values are read as the column's present
		 * one
		 */
		if (!OidIsValid(type))
			type = att != NULL ? getBaseType(att->atttypid) : TEXTOID;
		shape->key_attnums[i] = attnum;
		shape->key_collations[i] = att != NULL ? att->attcollation : get_typcollation(type);
		repl_ml_table_fill_key_column(shape, i, type, -1);
	}
	MemoryContextSwitchTo(old);
	return shape;
}

/*
 * Returns where a key's column is in the table (or partition) now: the one
 * that the list says it was, whatever that is called, or else the one of its
 * name.
 */
static AttrNumber
find_column(const ReplMlTable *table, const char *name, AttrNumber listed)
{
	char	   *now = listed > 0 ? get_attname(table->root, listed, true) : NULL;
	AttrNumber	attnum = get_attnum(table->relid, now != NULL ? now : name);

	/* system columns have names, too */
	return attnum > 0 ? attnum : InvalidAttrNumber;
}

/*
 * Returns the type of a name that format_type wrote; InvalidOid if it is not
 * here.
 */
static Oid
find_type(const char *name)
{
	LOCAL_FCINFO(fcinfo, 1);
	Datum		type;

	InitFunctionCallInfoData(*fcinfo, NULL, 1, InvalidOid, NULL, NULL);
	fcinfo->args[0].value = CStringGetTextDatum(name);
	fcinfo->args[0].isnull = false;
	type = to_regtype(fcinfo);
	return fcinfo->isnull ? InvalidOid : DatumGetObjectId(type);
}

/*
 * Returns the name of a column of the shape that the table does not have; NULL
 * if it has all.
 */
const char *
repl_ml_shape_missing(const ReplMlTable *shape)
{
	Datum	   *texts;
	int			count;

	for (int i = 0; i < shape->key_natts; i++)
	{
		if (shape->key_attnums[i] != InvalidAttrNumber)
			continue;
		deconstruct_array(DatumGetArrayTypeP(shape->key_columns), TEXTOID, -1, false, TYPALIGN_INT,
						  &texts, NULL, &count);
		return TextDatumGetCString(texts[2 * i]);
	}
	return NULL;
}

/*
 * Sees to it, before a tombstone is written, that the key's shape is listed as
 * one that tombstones have.  One that was listed before keeps its columns.
 */
void
repl_ml_shape_list(ReplMlTable *shape)
{
	FindState	state = {.columns = shape->key_columns};
	Datum		attnums[INDEX_MAX_KEYS];
	Datum		values[Natts_shape];
	bool		nulls[Natts_shape] = {false};
	Relation	list;

	if (shape->key_listed)
		return;
	list = table_open(repl_ml_catalog_oid(SHAPE_TABLE), ShareRowExclusiveLock);
	scan_list(shape, list, find_shape, &state);
	if (!state.in_use)
	{
		/* as numbers of the root, which a renamed column keeps */
		for (int i = 0; i < shape->key_natts; i++)
		{
			char	   *name = shape->key_attnums[i] == InvalidAttrNumber ? NULL :
				get_attname(shape->relid, shape->key_attnums[i], true);

			attnums[i] = Int16GetDatum(name == NULL ? InvalidAttrNumber :
									   get_attnum(shape->root, name));
		}
		values[Anum_shape_schema_name - 1] = NameGetDatum(&shape->schema_name);
		values[Anum_shape_table_name - 1] = NameGetDatum(&shape->table_name);
		values[Anum_shape_columns - 1] = shape->key_columns;
		values[Anum_shape_attnums - 1] = state.tuple != NULL ? state.attnums :
			PointerGetDatum(construct_array(attnums, shape->key_natts, INT2OID, sizeof(int16), true,
											TYPALIGN_SHORT));
		values[Anum_shape_in_use - 1] = BoolGetDatum(true);
		if (state.tuple == NULL)
			CatalogTupleInsert(list, heap_form_tuple(RelationGetDescr(list), values, nulls));
		else
			CatalogTupleUpdate(list, &state.tuple->t_self,
							   heap_form_tuple(RelationGetDescr(list), values, nulls));
		CacheInvalidateRelcache(list);
		CommandCounterIncrement();
	}
	table_close(list, NoLock);
}

/*
 * Sets the key that the row in "slot" has by the shape's columns, as datums of
 * the types these had; returns false if there is none, because a value is null
 * or none of that type.
 */
bool
repl_ml_shape_key(const ReplMlTable *shape, TupleTableSlot *slot, Datum *key)
{
	for (int i = 0; i < shape->key_natts; i++)
	{
		Oid			type = getBaseType(TupleDescAttr(slot->tts_tupleDescriptor,
													 shape->key_attnums[i] - 1)->atttypid);
		bool		isnull;

		key[i] = slot_getattr(slot, shape->key_attnums[i], &isnull);
		if (isnull ||
			(type != shape->key_types[i] && !convert_value(shape, i, type, key[i], &key[i])))
			return false;
	}
	return true;
}

/* A value that is to become one of another type. */
typedef struct Conversion
{
	const ReplMlTable *shape;
	int			column;
	Oid			output;			/* function of its type */
	Datum		value;
	Datum		converted;
} Conversion;

/* A step of repl_ml_attempt: converts a value by way of its text. */
static void
convert(void *argument)
{
	Conversion *it = argument;
	int			level = repl_ml_session_fix_values();

	it->converted = OidInputFunctionCall(it->shape->key_in[it->column].fn_oid,
										 OidOutputFunctionCall(it->output, it->value),
										 it->shape->key_ioparams[it->column], -1);
	repl_ml_session_restore(level);
}

/*
 * Sets a value as one of the type that the shape's column had, by way of its
 * text; returns false if that type does not read it.
 */
static bool
convert_value(const ReplMlTable *shape, int i, Oid type, Datum value, Datum *converted)
{
	Conversion	it = {.shape = shape,.column = i,.value = value};
	bool		is_varlena;
	ErrorData  *error;

	getTypeOutputInfo(type, &it.output, &is_varlena);
	error = repl_ml_attempt(convert, &it);
	/* what is wrong otherwise, as a lack of memory, is no answer */
	if (error != NULL && ERRCODE_TO_CATEGORY(error->sqlerrcode) != ERRCODE_DATA_EXCEPTION)
		ReThrowError(error);
	*converted = it.converted;
	return error == NULL;
}

/*
 * Returns the values of a key of that shape in the order of the table's key; 0
 * if the shape has not all columns of the key.  Values of further columns are
 * left out.
 */
Datum
repl_ml_shape_reorder(const ReplMlTable *shape, Datum array, const ReplMlTable *table)
{
	Datum		ordered[INDEX_MAX_KEYS];
	Datum	   *texts;
	int			count;

	deconstruct_array(DatumGetArrayTypeP(array), TEXTOID, -1, false, TYPALIGN_INT, &texts, NULL,
					  &count);
	if (count != shape->key_natts)
		return (Datum) 0;

	/* by columns: their order and their names may have changed */
	for (int i = 0; i < table->key_natts; i++)
	{
		int			j = 0;

		while (j < shape->key_natts && shape->key_attnums[j] != table->key_attnums[i])
			j++;
		if (j == shape->key_natts)
			return (Datum) 0;
		ordered[i] = texts[j];
	}
	return PointerGetDatum(construct_array(ordered, table->key_natts, TEXTOID, -1, false,
										   TYPALIGN_INT));
}

/*
 * repl_ml.key_columns(relation) returns text[]: the shape of an enrolled
 * table's key; NULL while it has none.
 */
PG_FUNCTION_INFO_V1(repl_ml_key_columns);
Datum
repl_ml_key_columns(PG_FUNCTION_ARGS)
{
	Relation	rel = table_open(PG_GETARG_OID(0), AccessShareLock);
	Datum		columns = (Datum) 0;

	if (OidIsValid(RelationGetPrimaryKeyIndex_compat(rel)))
		columns = datumCopy(repl_ml_table_get(rel)->key_columns, false, -1);
	table_close(rel, AccessShareLock);
	if (columns == (Datum) 0)
		PG_RETURN_NULL();
	PG_RETURN_DATUM(columns);
}

/*
 * repl_ml.list_key(relation): lists the key's shape, in the backend that
 * enrols the table.
 */
PG_FUNCTION_INFO_V1(repl_ml_list_key);
Datum
repl_ml_list_key(PG_FUNCTION_ARGS)
{
	Relation	rel = table_open(PG_GETARG_OID(0), AccessShareLock);

	repl_ml_shape_list(repl_ml_table_get(rel));
	table_close(rel, AccessShareLock);
	PG_RETURN_VOID();
}

/*
 * AFTER STATEMENT trigger of repl_ml.key_shape: table entries are to be filled
 * anew, in every process.
 */
PG_FUNCTION_INFO_V1(repl_ml_key_shape_changed);
Datum
repl_ml_key_shape_changed(PG_FUNCTION_ARGS)
{
	if (!CALLED_AS_TRIGGER(fcinfo))
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("function \"%s\" must be called as a trigger", "key_shape_changed")));
	CacheInvalidateRelcache(((TriggerData *) fcinfo->context)->tg_relation);
	return PointerGetDatum(NULL);
}
