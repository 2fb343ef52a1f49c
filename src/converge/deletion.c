/*
 * deletion.c
 *		Which rows a deletion is of: the one with its key, or, after the table's
 *		primary key has become another, those with its values.
 *
 * Not how a deletion is joined with a row (row.c), nor what a former key is
 * (row/shape.c).  Before this on the way of a change: apply/change.c, and
 * copy/rows.c for copies; after it: row.c.
 *
 * Locks: the table and its partitions in SHARE ROW EXCLUSIVE mode until the
 * transaction ends, for a deletion by columns that are not the present key's.
 */
#include "postgres.h"

#include "catalog/pg_inherits.h"
#include "catalog/pg_operator.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "storage/lmgr.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"
#include "utils/typcache.h"

#include "compat.h"
#include "converge/converge.h"
#include "row/row.h"
#include "server/server.h"
#include "wire/wire.h"

static int	bury_by_columns(ReplMlTarget *root, ReplMlTable *shape, Datum key_array,
							const ReplMlBurial *burial);
static int	bury_by_rest(ReplMlTarget *root, ReplMlTable *shape, Datum key_array, Datum present,
						 const ReplMlBurial *burial);
static void refuse_unknown_key(const ReplMlTable *shape);
static void record_deletion(ReplMlTable *shape, Datum *key, const ReplMlBurial *burial);
static List *find_keys(ReplMlTarget *root, const ReplMlTable *shape, Datum key_array);
static void read_values(const ReplMlTable *shape, TupleDesc desc, Datum key_array, Oid *types,
						Datum *values);
static char *name_equality(Oid type);

/*
 * Joins a deletion, for apply/change.c and copy/rows.c; returns what
 * repl_ml_row_join does.  "columns" is the shape of its key (row/shape.c) and
 * "key_array" the key, as text[]; "eviction" is not NULL if just the version
 * with this clock is to go.  A deletion by another key than the table's
 * present one is of the rows that have its values in its columns.
 */
int
repl_ml_deletion_join(Oid relid, Datum columns, Datum key_array, const ReplMlClock *clock,
					  const char *eviction, const ReplMlSource *source)
{
	ReplMlTarget *root = repl_ml_targets_get(relid);
	ReplMlBurial burial = {.clock = repl_ml_late_rename(clock, NULL),.eviction = eviction,
	.source = source};
	ReplMlTable *shape;
	Datum		present;

	repl_ml_crash_writes(relid);
	if (repl_ml_shape_is(root->table, columns))
		return repl_ml_row_bury(root, key_array, &burial);

	/* the same columns in another order, of other types or with other names */
	shape = repl_ml_shape_get(root->rel, columns);
	present = repl_ml_shape_reorder(shape, key_array, root->table);
	if (present != (Datum) 0 && shape->key_natts == root->table->key_natts)
		return repl_ml_row_bury(root, present, &burial);
	if (repl_ml_shape_missing(shape) == NULL)
		return bury_by_columns(root, shape, key_array, &burial);
	return bury_by_rest(root, shape, key_array, present, &burial);
}

/*
 * Called by apply/change.c for an UPDATE by a node whose key is another:
 * these columns, of which the row has the values it had before.  What is the
 * key here may have changed by it; then the row that was here under the former
 * one is the same row, is known to the update, and goes.  Returns what
 * repl_ml_row_join does.
 */
int
repl_ml_deletion_supersede(Oid relid, const AttrNumber *key, int count, TupleTableSlot *row,
						   const ReplMlSource *source)
{
	ReplMlTarget *root = repl_ml_targets_get(relid);
	ReplMlTable *shape = repl_ml_shape_make(root->rel, key, count);
	ReplMlBurial burial = {.source = source};
	Datum		theirs[INDEX_MAX_KEYS];
	Datum		ours[INDEX_MAX_KEYS];
	List	   *rows = NIL;
	ListCell   *lc;
	bool		isnull;
	ReplMlUser	saved;
	int			grown = 0;

	burial.clock = DatumGetReplMlClockP(slot_getattr(row, root->table->clock_attnum, &isnull));
	burial.clock = repl_ml_late_rename(burial.clock, NULL);
	repl_ml_become_owner(root->rel, &saved);
	repl_ml_key_from_slot(root->table, row, ours);
	if (repl_ml_shape_key(shape, row, theirs))
		rows = find_keys(root, shape, repl_ml_key_to_array(shape, theirs));

	/* the row itself stays, and what is not older than it */
	foreach(lc, rows)
	{
		repl_ml_key_from_array(root->table, PointerGetDatum(lfirst(lc)), theirs);
		if (repl_ml_key_equal(root->table, theirs, ours) ||
			!repl_ml_row_is_older(root, PointerGetDatum(lfirst(lc)), burial.clock))
			rows = foreach_delete_current(rows, lc);
	}
	repl_ml_become_self(&saved);
	foreach(lc, rows)
		grown += repl_ml_row_bury(root, PointerGetDatum(lfirst(lc)), &burial);
	return grown;
}

/*
 * Joins a deletion by other columns than the present key's: it is kept as it
 * is, for rows that have yet to come, and joined with the rows that are here.
 * Nobody writes the table meanwhile, so each row is seen by one of the two.
 */
static int
bury_by_columns(ReplMlTarget *root, ReplMlTable *shape, Datum key_array, const ReplMlBurial *burial)
{
	Datum		key[INDEX_MAX_KEYS];
	List	   *rows;
	ListCell   *lc;
	ReplMlUser	saved;
	int			grown = 0;

	/* an old copy of one whose tombstone we have removed */
	if (!burial->source->late &&
		repl_ml_tombstone_collected(repl_ml_identity()->node_id, burial->clock))
		return 0;

	/* nobody writes a row until we commit, by way of the table or a partition */
	(void) find_all_inheritors(RelationGetRelid(root->rel), ShareRowExclusiveLock, NULL);
	LockRelationOid(RelationGetRelid(root->rel), ShareRowExclusiveLock);
	repl_ml_become_owner(root->rel, &saved);
	repl_ml_key_from_array(shape, key_array, key);
	record_deletion(shape, key, burial);
	rows = find_keys(root, shape, key_array);
	repl_ml_become_self(&saved);
	foreach(lc, rows)
		grown += repl_ml_row_bury_found(root, PointerGetDatum(lfirst(lc)), burial);
	return grown;
}

/*
 * Joins a deletion by a key of which some columns are gone here.  If the rest
 * has the present key, that names the row, unless it is known here that the
 * deleted one is no more: another may have its place.  Nothing else is done to
 * a row which the deletion does not know: a person has to look.
 */
static int
bury_by_rest(ReplMlTarget *root, ReplMlTable *shape, Datum key_array, Datum present,
			 const ReplMlBurial *burial)
{
	Datum		key[INDEX_MAX_KEYS];
	ReplMlUser	saved;
	bool		known;
	bool		applies;

	if (present == (Datum) 0)
		refuse_unknown_key(shape);
	repl_ml_become_owner(root->rel, &saved);
	repl_ml_key_from_array(shape, key_array, key);
	/* who has its tombstone has joined it before */
	known = repl_ml_tombstone_find(shape, key, 0) != NULL;
	applies = !known && repl_ml_row_is_older(root, present, burial->clock);
	if (!known && !applies)
		refuse_unknown_key(shape);
	record_deletion(shape, key, burial);
	repl_ml_become_self(&saved);
	return applies ? repl_ml_row_bury(root, present, burial) : 0;
}

/*
 * Raises the error that parks the deletion: this node cannot tell which row it
 * is of.
 */
static void
refuse_unknown_key(const ReplMlTable *shape)
{
	ereport(ERROR,
			(errcode(ERRCODE_UNDEFINED_COLUMN),
			 errmsg("column \"%s\" of the key of a deleted row of table \"%s.%s\" does not exist "
					"on this node",
					repl_ml_shape_missing(shape), NameStr(shape->schema_name),
					NameStr(shape->table_name)),
			 errhint("Make the table the same on all nodes, then run SELECT "
					 "repl_ml.retry_parked(id); if the column is gone on all,"
					 " delete the row where it is left and run"
					 " SELECT repl_ml.discard_parked(id).")));
}

/* Writes the tombstone of a deletion unless one that is here says as much. */
static void
record_deletion(ReplMlTable *shape, Datum *key, const ReplMlBurial *burial)
{
	const ReplMlClock *dead;

	/* so that nobody takes the shape off the list meanwhile */
	repl_ml_shape_list(shape);
	dead = repl_ml_tombstone_find(shape, key, 0);
	if (dead == NULL || !repl_ml_clock_is_within(burial->clock, dead))
		repl_ml_tombstone_insert(shape, key, burial->clock, burial->eviction);
}

/* Returns a column's name as it is written in a statement. */
static const char *
quote_column(TupleDesc desc, AttrNumber attnum)
{
	return quote_identifier(NameStr(TupleDescAttr(desc, attnum - 1)->attname));
}

/*
 * Returns the keys (text[]) of the rows here that have the values "key_array"
 * in the columns of the shape, all of which the table has.  Runs with the
 * owner's rights.  A value that the column cannot have now is an error.
 */
static List *
find_keys(ReplMlTarget *root, const ReplMlTable *shape, Datum key_array)
{
	MemoryContext context = CurrentMemoryContext;
	TupleDesc	desc = RelationGetDescr(root->rel);
	Oid			types[INDEX_MAX_KEYS];
	Datum		values[INDEX_MAX_KEYS];
	StringInfoData sql;
	List	   *keys = NIL;

	initStringInfo(&sql);
	appendStringInfoString(&sql, "SELECT ");
	for (int i = 0; i < root->table->key_natts; i++)
		appendStringInfo(&sql, "%s%s", i == 0 ? "" : ", ",
						 quote_column(desc, root->table->key_attnums[i]));
	appendStringInfo(&sql, " FROM %s WHERE ",
					 quote_qualified_identifier(get_namespace_name(RelationGetNamespace(root->rel)),
												RelationGetRelationName(root->rel)));
	read_values(shape, desc, key_array, types, values);
	for (int i = 0; i < shape->key_natts; i++)
		appendStringInfo(&sql, "%s%s %s $%d", i == 0 ? "" : " AND ",
						 quote_column(desc, shape->key_attnums[i]), name_equality(types[i]), i + 1);

	/*
	 * what others have committed counts, whatever the transaction's snapshot
	 * is
	 */
	SPI_connect();
	PushActiveSnapshot(GetLatestSnapshot());
	SPI_execute_with_args(sql.data, shape->key_natts, types, values, NULL, true, 0);
	for (uint64 row = 0; row < SPI_processed; row++)
	{
		Datum		key[INDEX_MAX_KEYS];
		MemoryContext old = MemoryContextSwitchTo(context);
		bool		isnull;

		for (int i = 0; i < root->table->key_natts; i++)
			/* outlives SPI's memory */
			key[i] = SPI_getbinval(SPI_tuptable->vals[row], SPI_tuptable->tupdesc, i + 1, &isnull);
		keys = lappend(keys, DatumGetPointer(repl_ml_key_to_array(root->table, key)));
		MemoryContextSwitchTo(old);
	}
	PopActiveSnapshot();
	SPI_finish();
	return keys;
}

/*
 * Reads the values of a key into datums of the types that its columns have
 * now.
 */
static void
read_values(const ReplMlTable *shape, TupleDesc desc, Datum key_array, Oid *types, Datum *values)
{
	int			level = repl_ml_session_fix_values();
	Datum	   *texts;
	int			count;

	deconstruct_array(DatumGetArrayTypeP(key_array), TEXTOID, -1, false, TYPALIGN_INT, &texts, NULL,
					  &count);
	for (int i = 0; i < shape->key_natts; i++)
	{
		Oid			function;
		Oid			param;

		types[i] = getBaseType(TupleDescAttr(desc, shape->key_attnums[i] - 1)->atttypid);
		getTypeInputInfo(types[i], &function, &param);
		values[i] = OidInputFunctionCall(function, TextDatumGetCString(texts[i]), param, -1);
	}
	repl_ml_session_restore(level);
}

/*
 * Returns the equality operator of a type as it is written in a statement:
 * whatever the search path is, it is the type's own.
 */
static char *
name_equality(Oid type)
{
	Oid			operator = lookup_type_cache(type, TYPECACHE_EQ_OPR)->eq_opr;
	HeapTuple	tuple = SearchSysCache1(OPEROID, ObjectIdGetDatum(operator));
	Form_pg_operator form;
	char	   *result;

	if (!HeapTupleIsValid(tuple))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_FUNCTION),
				 errmsg("type %s has no equality operator", format_type_be(type)),
				 errhint("Give the column a type that can be compared, then run SELECT "
						 "repl_ml.retry_parked(id).")));
	form = (Form_pg_operator) GETSTRUCT(tuple);
	result = psprintf("OPERATOR(%s.%s)", quote_identifier(get_namespace_name(form->oprnamespace)),
					  NameStr(form->oprname));
	ReleaseSysCache(tuple);
	return result;
}
