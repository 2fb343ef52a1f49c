/*
 * orphans.c
 *		Rows whose foreign keys refer to rows that are not there.
 *
 * Run by whoever calls repl_ml.orphans(): he has to be allowed to read what is
 * compared.  The two tables may belong to two owners, and a query over both
 * would run the code of each with the rights of the other.  So the referring
 * rows are read as the one, and looked for as the other, a batch at a time.
 * Values pass between them as text under fixed settings; they are compared by
 * the operators of the foreign key itself.
 *
 * Not what is done about such rows: that is for a person.  Locks: ACCESS SHARE
 * on both tables until the transaction ends.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/table.h"
#include "catalog/pg_operator.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/acl.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rls.h"
#include "utils/ruleutils.h"
#include "utils/syscache.h"

#include "compat.h"
#include "row/row.h"
#include "server/server.h"

#define BATCH	1000

/* One foreign key being looked at. */
typedef struct Reference
{
	ForeignKeyCacheInfo *key;
	Relation	child;
	Relation	parent;
	List	   *child_key;		/* attribute numbers of the child's primary key */
	SPIPlanPtr	look;			/* for the values of a batch that the parent
								 * lacks */
} Reference;

static void require_readable(Relation rel, const AttrNumber *columns, int count);
static void find_orphans(Reference *reference, ReturnSetInfo *result);
static Portal open_children(Reference *reference);
static void prepare_look(Reference *reference);
static void look_for_batch(Reference *reference, ReturnSetInfo *result);

/* Returns the attribute numbers of the table's primary key, in its order. */
static List *
get_primary_key(Relation rel)
{
	Oid			index = RelationGetPrimaryKeyIndex_compat(rel);
	Relation	index_rel;
	List	   *columns = NIL;

	if (!OidIsValid(index))
		return NIL;
	index_rel = RelationIdGetRelation(index);
	for (int i = 0; i < IndexRelationGetNumberOfKeyAttributes(index_rel); i++)
		columns = lappend_int(columns, index_rel->rd_index->indkey.values[i]);
	RelationClose(index_rel);
	return columns;
}

/*
 * repl_ml.orphans(relation): returns a row for each foreign key of each row
 * that has no counterpart.
 */
PG_FUNCTION_INFO_V1(repl_ml_orphans);
Datum
repl_ml_orphans(PG_FUNCTION_ARGS)
{
	Relation	child = table_open(PG_GETARG_OID(0), AccessShareLock);
	List	   *child_key = get_primary_key(child);
	List	   *keys = copyObject(RelationGetFKeyList(child));
	AttrNumber	key_columns[INDEX_MAX_KEYS];
	ListCell   *lc;
	int			level;

	InitMaterializedSRF(fcinfo, 0);
	foreach(lc, child_key)
		key_columns[foreach_current_index(lc)] = lfirst_int(lc);
	level = repl_ml_session_fix_values();
	SPI_connect();
	foreach(lc, keys)
	{
		Reference	reference = {.key = lfirst(lc),.child = child,.child_key = child_key};

		reference.parent = table_open(reference.key->confrelid, AccessShareLock);
		require_readable(child, key_columns, list_length(child_key));
		require_readable(child, reference.key->conkey, reference.key->nkeys);
		require_readable(reference.parent, reference.key->confkey, reference.key->nkeys);
		find_orphans(&reference, (ReturnSetInfo *) fcinfo->resultinfo);
		table_close(reference.parent, NoLock);
	}
	SPI_finish();
	repl_ml_session_restore(level);
	table_close(child, NoLock);
	return (Datum) 0;
}

/* Raises an error unless the caller may read these columns of all rows. */
static void
require_readable(Relation rel, const AttrNumber *columns, int count)
{
	Oid			relid = RelationGetRelid(rel);
	bool		may = pg_class_aclcheck(relid, GetUserId(), ACL_SELECT) == ACLCHECK_OK;

	/* the right to the columns that are compared is enough */
	if (!may)
	{
		may = true;
		for (int i = 0; i < count; i++)
			may &= pg_attribute_aclcheck(relid, columns[i], GetUserId(), ACL_SELECT) == ACLCHECK_OK;
	}
	if (!may)
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("permission denied for table %s", RelationGetRelationName(rel)),
				 errdetail("Rows of both tables of a foreign key are compared."),
				 errhint("Run GRANT SELECT ON %s TO %s.",
						 quote_qualified_identifier(get_namespace_name(RelationGetNamespace(rel)),
													RelationGetRelationName(rel)),
						 quote_identifier(GetUserNameFromId(GetUserId(), false)))));
	if (check_enable_rls(relid, InvalidOid, true) == RLS_ENABLED)
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("row-level security hides rows of table \"%s\"",
						RelationGetRelationName(rel)),
				 errhint("Call repl_ml.orphans as the owner of the table.")));
}

/* Appends what one foreign key lacks to the result, batch by batch. */
static void
find_orphans(Reference *reference, ReturnSetInfo *result)
{
	Portal		children = open_children(reference);
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext, "repl_ml orphans batch",
												  ALLOCSET_DEFAULT_SIZES);
	ReplMlUser	saved;

	/* a table may be large: what a batch takes goes with it */
	prepare_look(reference);
	for (;;)
	{
		MemoryContext old;

		CHECK_FOR_INTERRUPTS();
		repl_ml_become_owner(reference->child, &saved);
		SPI_cursor_fetch(children, true, BATCH);
		repl_ml_become_self(&saved);
		if (SPI_processed == 0)
			break;
		old = MemoryContextSwitchTo(context);
		look_for_batch(reference, result);
		MemoryContextSwitchTo(old);
		MemoryContextReset(context);
	}
	MemoryContextDelete(context);
	SPI_cursor_close(children);
	SPI_freeplan(reference->look);
}

/* Returns a table's name as it is written in a statement. */
static const char *
quote_table(Relation rel)
{
	return quote_qualified_identifier(get_namespace_name(RelationGetNamespace(rel)),
									  RelationGetRelationName(rel));
}

/* Returns a column's name as it is written in a statement. */
static const char *
quote_column(Relation rel, AttrNumber attnum)
{
	return quote_identifier(NameStr(TupleDescAttr(RelationGetDescr(rel), attnum - 1)->attname));
}

/*
 * Opens a cursor over the rows that refer to something: primary key and
 * referring columns, each an array. format() asks a type's output function,
 * where a cast might be a user's own.
 */
static Portal
open_children(Reference *reference)
{
	StringInfoData sql;
	ReplMlUser	saved;
	SPIPlanPtr	plan;
	Portal		portal;
	ListCell   *lc;

	initStringInfo(&sql);
	appendStringInfoString(&sql, "SELECT ARRAY[");
	foreach(lc, reference->child_key)
		appendStringInfo(&sql, "%spg_catalog.format('%%s', c.%s)", foreach_current_index(lc) == 0 ?
						 "" : ", ",
						 quote_column(reference->child, lfirst_int(lc)));
	appendStringInfoString(&sql, "]::pg_catalog.text[], ARRAY[");
	for (int i = 0; i < reference->key->nkeys; i++)
		appendStringInfo(&sql, "%spg_catalog.format('%%s', c.%s)", i == 0 ? "" : ", ",
						 quote_column(reference->child, reference->key->conkey[i]));
	appendStringInfo(&sql, "]::pg_catalog.text[] FROM %s c WHERE true",
					 quote_table(reference->child));
	for (int i = 0; i < reference->key->nkeys; i++)
		appendStringInfo(&sql, " AND c.%s IS NOT NULL",
						 quote_column(reference->child, reference->key->conkey[i]));

	/* planning runs the owner's code, as reading the rows does */
	repl_ml_become_owner(reference->child, &saved);
	plan = SPI_prepare(sql.data, 0, NULL);
	if (plan == NULL)
		elog(ERROR, "SPI_prepare failed: %s", SPI_result_code_string(SPI_result));
	portal = SPI_cursor_open(NULL, plan, NULL, NULL, true);
	repl_ml_become_self(&saved);
	return portal;
}

/* Returns the schema of an operator as it is written in a statement. */
static const char *
quote_operator_schema(Oid op)
{
	HeapTuple	tuple = SearchSysCache1(OPEROID, ObjectIdGetDatum(op));
	Oid			schema;

	if (!HeapTupleIsValid(tuple))
		elog(ERROR, "cache lookup failed for operator %u", op);
	schema = ((Form_pg_operator) GETSTRUCT(tuple))->oprnamespace;
	ReleaseSysCache(tuple);
	return quote_identifier(get_namespace_name(schema));
}

/*
 * Plans the look for a batch, whose columns are as many arrays: it returns the
 * places of those that are not there.
 */
static void
prepare_look(Reference *reference)
{
	TupleDesc	child = RelationGetDescr(reference->child);
	TupleDesc	parent = RelationGetDescr(reference->parent);
	Oid			types[INDEX_MAX_KEYS];
	StringInfoData sql;
	ReplMlUser	saved;

	initStringInfo(&sql);
	appendStringInfoString(&sql, "SELECT u.place FROM ROWS FROM (");
	for (int i = 0; i < reference->key->nkeys; i++)
	{
		types[i] = TEXTARRAYOID;
		appendStringInfo(&sql, "%spg_catalog.unnest($%d)", i == 0 ? "" : ", ", i + 1);
	}
	appendStringInfoString(&sql, ") WITH ORDINALITY u (");
	for (int i = 0; i < reference->key->nkeys; i++)
		appendStringInfo(&sql, "c%d, ", i);

	/* values come as text, and are read as the referring column's type */
	appendStringInfo(&sql, "place) WHERE NOT EXISTS (SELECT FROM %s p WHERE true",
					 quote_table(reference->parent));
	for (int i = 0; i < reference->key->nkeys; i++)
	{
		Form_pg_attribute from = TupleDescAttr(child, reference->key->conkey[i] - 1);
		Form_pg_attribute to = TupleDescAttr(parent, reference->key->confkey[i] - 1);
		Oid			op = reference->key->conpfeqop[i];

		appendStringInfo(&sql, " AND p.%s OPERATOR(%s.%s) u.c%d::%s",
						 quote_identifier(NameStr(to->attname)),
						 quote_operator_schema(op), get_opname(op), i,
						 format_type_extended(from->atttypid, from->atttypmod,
											  FORMAT_TYPE_TYPEMOD_GIVEN |
											  FORMAT_TYPE_FORCE_QUALIFY));
		if (OidIsValid(to->attcollation))
			appendStringInfo(&sql, " COLLATE %s", generate_collation_name(to->attcollation));
	}
	appendStringInfoString(&sql, ") ORDER BY u.place");

	repl_ml_become_owner(reference->parent, &saved);
	reference->look = SPI_prepare(sql.data, reference->key->nkeys, types);
	if (reference->look == NULL)
		elog(ERROR, "SPI_prepare failed: %s", SPI_result_code_string(SPI_result));
	repl_ml_become_self(&saved);
}

/* Returns the values of one referring column in a batch, as text[]. */
static Datum
collect_column(SPITupleTable *batch, uint64 count, int column)
{
	Datum	   *texts = palloc(count * sizeof(Datum));

	for (uint64 i = 0; i < count; i++)
	{
		bool		isnull;
		Datum	   *values;
		int			nvalues;

		deconstruct_array(DatumGetArrayTypeP(SPI_getbinval(batch->vals[i], batch->tupdesc, 2,
														   &isnull)),
						  TEXTOID, -1, false, TYPALIGN_INT, &values, NULL, &nvalues);
		texts[i] = values[column];
	}
	return PointerGetDatum(construct_array(texts, (int) count, TEXTOID, -1, false, TYPALIGN_INT));
}

/*
 * Looks, as the parent's owner, for what the rows in SPI_tuptable refer to,
 * and appends those that refer to nothing to the result.
 */
static void
look_for_batch(Reference *reference, ReturnSetInfo *result)
{
	SPITupleTable *batch = SPI_tuptable;
	uint64		count = SPI_processed;
	Datum		columns[INDEX_MAX_KEYS];
	NameData	name;
	ReplMlUser	saved;

	for (int i = 0; i < reference->key->nkeys; i++)
		columns[i] = collect_column(batch, count, i);
	repl_ml_become_owner(reference->parent, &saved);
	if (SPI_execute_plan(reference->look, columns, NULL, true, 0) != SPI_OK_SELECT)
		elog(ERROR, "SPI failed");
	repl_ml_become_self(&saved);

	/* the places say which rows of the batch those are */
	namestrcpy(&name, get_constraint_name(reference->key->conoid));
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		bool		isnull;
		int64		place = DatumGetInt64(SPI_getbinval(SPI_tuptable->vals[i],
														SPI_tuptable->tupdesc, 1, &isnull));
		HeapTuple	row = batch->vals[place - 1];
		Datum		values[4] = {NameGetDatum(&name), 0,
		ObjectIdGetDatum(RelationGetRelid(reference->parent)), 0};
		bool		nulls[4] = {false};

		values[1] = SPI_getbinval(row, batch->tupdesc, 1, &nulls[1]);
		values[3] = SPI_getbinval(row, batch->tupdesc, 2, &nulls[3]);
		tuplestore_putvalues(result->setResult, result->setDesc, values, nulls);
	}
	SPI_freetuptable(SPI_tuptable);
	SPI_freetuptable(batch);
}
