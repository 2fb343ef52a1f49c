/*
 * table.c
 *		The per-process cache of enrolled tables: clock column, key, group-wide
 *		name.
 *
 * Filled from the relation's catalogs at the first row, dropped by relcache
 * invalidation.  A returned pointer stays allocated for the life of the
 * process, but its content is rebuilt by the next repl_ml_table_get after an
 * invalidation, so callers fetch it anew for each statement or row.
 *
 * The functions of a key's types may be a user's, and may run when the entry is
 * rebuilt (they, too, can write rows): what they remember lives until the end of
 * that transaction.
 *
 * Not a key's values (key.c), nor former keys (shape.c).  Locks:
 * repl_ml_table_local takes ROW EXCLUSIVE on the table until the transaction
 * ends; for the others the caller has the relation open.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "catalog/namespace.h"
#include "catalog/partition.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "utils/builtins.h"
#include "utils/hsearch.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"
#include "utils/typcache.h"

#include "compat.h"
#include "row/row.h"
#include "server/server.h"
#include "wire/wire.h"

static HTAB *tables = NULL;
static bool plain_allowed = false;	/* written by repl_ml_table_allow_plain */

static void refill_table(ReplMlTable *table, Relation rel);
static void fill_table(ReplMlTable *table, Relation rel);
static void fill_key(ReplMlTable *table, Relation rel);
static bool is_plain_type(Oid type);
static char *quote_name(const ReplMlTable *table);
static void invalidate_tables(Datum arg, Oid relid);

/* Makes the cache, at the first table that this process asks for. */
static void
create_cache(void)
{
	HASHCTL		ctl = {.keysize = sizeof(Oid),.entrysize = sizeof(ReplMlTable)};

	tables = hash_create("repl_ml tables", 64, &ctl, HASH_ELEM | HASH_BLOBS);
	CacheRegisterRelcacheCallback(invalidate_tables, (Datum) 0);
}

/*
 * Called by core when a relation has changed: its entry, or where that is not
 * known every entry, is to be filled anew.
 */
static void
invalidate_tables(Datum arg, Oid relid)
{
	HASH_SEQ_STATUS scan;
	ReplMlTable *table;

	if (relid != InvalidOid && !repl_ml_shape_is_list(relid))
	{
		table = hash_search(tables, &relid, HASH_FIND, NULL);
		if (table != NULL)
			table->valid = false;
		return;
	}
	hash_seq_init(&scan, tables);
	while ((table = hash_seq_search(&scan)) != NULL)
		table->valid = false;
}

/*
 * Returns what is to be known about the rows of "rel"; raises an error that
 * says why if its rows cannot be replicated.
 */
ReplMlTable *
repl_ml_table_get(Relation rel)
{
	Oid			relid = RelationGetRelid(rel);
	ReplMlTable *table;
	bool		found;

	if (tables == NULL)
		create_cache();
	table = hash_search(tables, &relid, HASH_ENTER, &found);
	if (!found)
	{
		table->valid = false;
		table->functions = NULL;
	}
	if (!table->valid)
		refill_table(table, rel);
	return table;
}

/*
 * Fills the entry anew, with a context of its own for what its functions
 * remember; the entry is invalid again if that fails.
 */
static void
refill_table(ReplMlTable *table, Relation rel)
{
	if (table->functions != NULL)
		MemoryContextSetParent(table->functions, TopTransactionContext);
	table->functions = AllocSetContextCreate(CacheMemoryContext, "repl_ml table",
											 ALLOCSET_SMALL_SIZES);
	/* before anything is read: what changes meanwhile must count */
	table->valid = true;
	PG_TRY();
	{
		fill_table(table, rel);
	}
	PG_CATCH();
	{
		table->valid = false;
		PG_RE_THROW();
	}
	PG_END_TRY();
}

/*
 * From now on this process, the join worker, also looks at tables that are not
 * replicated yet: they have no clock column.
 */
void
repl_ml_table_allow_plain(void)
{
	plain_allowed = true;
}

/* Fills the entry from the catalogs. */
static void
fill_table(ReplMlTable *table, Relation rel)
{
	table->relid = RelationGetRelid(rel);
	table->root = repl_ml_table_root(table->relid);
	namestrcpy(&table->table_name, get_rel_name(table->root));
	namestrcpy(&table->schema_name, get_namespace_name(get_rel_namespace(table->root)));

	table->clock_attnum = repl_ml_table_clock_attnum(table->relid);
	if (table->clock_attnum == InvalidAttrNumber && !plain_allowed)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("table \"%s\" is not replicated by repl_ml",
						RelationGetRelationName(rel)),
				 errhint("Run SELECT repl_ml.add_table(%s).",
						 quote_literal_cstr(quote_name(table)))));
	table->clock_is_last = table->clock_attnum == RelationGetNumberOfAttributes(rel);
	fill_key(table, rel);
	repl_ml_shape_fill(table, rel);
}

/* Fills in the primary key, which an enrolled table has to have. */
static void
fill_key(ReplMlTable *table, Relation rel)
{
	Relation	index;

	table->key_index = RelationGetPrimaryKeyIndex_compat(rel);
	if (!OidIsValid(table->key_index))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("table \"%s\" has no primary key", RelationGetRelationName(rel)),
				 errhint("Run ALTER TABLE %s ADD PRIMARY KEY (...).",
						 quote_name(table))));

	index = RelationIdGetRelation(table->key_index);
	if (index == NULL)
		elog(ERROR, "could not open index with OID %u", table->key_index);
	table->key_natts = IndexRelationGetNumberOfKeyAttributes(index);
	table->key_plain = true;

	/* in the order of the index: a key's datums are everywhere */
	for (int i = 0; i < table->key_natts; i++)
	{
		AttrNumber	attnum = index->rd_index->indkey.values[i];

		table->key_attnums[i] = attnum;
		table->key_collations[i] = index->rd_indcollation[i];
		repl_ml_table_fill_key_column(table, i,
									  TupleDescAttr(RelationGetDescr(rel), attnum - 1)->atttypid,
									  TupleDescAttr(RelationGetDescr(rel), attnum - 1)->atttypmod);
	}
	RelationClose(index);
}

/*
 * Fills in, for this file and shape.c, what is to be known of column "i" of
 * the key, which has this type; table->functions lives as long.
 */
void
repl_ml_table_fill_key_column(ReplMlTable *table, int i, Oid type_id, int32 typmod)
{
	TypeCacheEntry *type = lookup_type_cache(type_id,
											 TYPECACHE_EQ_OPR_FINFO |
											 TYPECACHE_HASH_EXTENDED_PROC_FINFO);
	Oid			function;
	bool		is_varlena;

	table->key_types[i] = type_id;
	table->key_typmods[i] = typmod;
	if (!is_plain_type(getBaseType(type_id)))
		table->key_plain = false;
	getTypeOutputInfo(type_id, &function, &is_varlena);
	fmgr_info_cxt(function, &table->key_out[i], table->functions);
	getTypeInputInfo(type_id, &function, &table->key_ioparams[i]);
	fmgr_info_cxt(function, &table->key_in[i], table->functions);
	fmgr_info_copy(&table->key_eq[i], &type->eq_opr_finfo, table->functions);
	table->key_hash[i].fn_oid = InvalidOid;
	if (OidIsValid(type->hash_extended_proc_finfo.fn_oid))
		fmgr_info_copy(&table->key_hash[i], &type->hash_extended_proc_finfo, table->functions);
}

/*
 * Says whether no setting changes the type's output: of the common types only,
 * and for speed only.
 */
static bool
is_plain_type(Oid type)
{
	switch (type)
	{
		case BOOLOID:
		case INT2OID:
		case INT4OID:
		case INT8OID:
		case NUMERICOID:
		case OIDOID:
		case NAMEOID:
		case TEXTOID:
		case VARCHAROID:
		case BPCHAROID:
		case UUIDOID:
		case BYTEAOID:			/* key.c sees to it */
			return true;
		default:
			return false;
	}
}

/* Returns the table's name in the group as it is written in a statement. */
static char *
quote_name(const ReplMlTable *table)
{
	return quote_qualified_identifier(NameStr(table->schema_name), NameStr(table->table_name));
}

/*
 * Returns the clock of a row, the clock column's value; raises an error if the
 * row has none, as after somebody has taken the column's NOT NULL away.
 */
ReplMlClock *
repl_ml_table_clock(const ReplMlTable *table, Datum value, bool isnull)
{
	if (isnull)
		ereport(ERROR,
				(errcode(ERRCODE_NOT_NULL_VIOLATION),
				 errmsg("a row of replicated table \"%s.%s\" has no clock",
						NameStr(table->schema_name), NameStr(table->table_name)),
				 errhint("Run UPDATE %s SET %s = DEFAULT WHERE %s IS NULL where the row was "
						 "written, then ALTER TABLE %s ALTER %s SET NOT NULL.",
						 quote_name(table), REPL_ML_CLOCK_COLUMN, REPL_ML_CLOCK_COLUMN,
						 quote_name(table), REPL_ML_CLOCK_COLUMN)));
	return DatumGetReplMlClockP(value);
}

/*
 * Returns the table that a partition belongs to in the end; any other table is
 * its own.  So is a partition that is just being detached, which has no
 * ancestors any more.
 */
Oid
repl_ml_table_root(Oid relid)
{
	List	   *ancestors = get_rel_relispartition(relid) ? get_partition_ancestors(relid) : NIL;

	return ancestors == NIL ? relid : llast_oid(ancestors);
}

/*
 * Returns the clock column of a relation, InvalidAttrNumber if it has none of
 * our type.
 */
AttrNumber
repl_ml_table_clock_attnum(Oid relid)
{
	AttrNumber	attnum = get_attnum(relid, REPL_ML_CLOCK_COLUMN);
	Oid			schema;

	if (attnum == InvalidAttrNumber)
		return InvalidAttrNumber;
	schema = repl_ml_schema_oid();
	if (!OidIsValid(schema) ||
		get_atttype(relid, attnum) != GetSysCacheOid2(TYPENAMENSP, Anum_pg_type_oid,
													  CStringGetDatum("vclock"),
													  ObjectIdGetDatum(schema)))
		return InvalidAttrNumber;
	return attnum;
}

/* Says whether the group has stopped replicating the table of this name. */
static bool
is_removed(const char *schema_name, const char *table_name)
{
	Oid			types[2] = {TEXTOID, TEXTOID};
	Datum		values[2] = {CStringGetTextDatum(schema_name), CStringGetTextDatum(table_name)};

	return repl_ml_spi_execute("SELECT FROM repl_ml.replicated_table"
							   " WHERE schema_name OPERATOR(pg_catalog.=) $1::pg_catalog.name"
							   " AND table_name OPERATOR(pg_catalog.=) $2::pg_catalog.name"
							   " AND state OPERATOR(pg_catalog.<>) 'enrolled'",
							   2, types, values, NULL) > 0;
}

/*
 * Says whether a joining node has made the table from its donor's definition,
 * with the clock column, or has brought it along, and has not enrolled it yet:
 * nothing comes into it until it is.
 */
bool
repl_ml_table_is_to_come(const char *schema_name, Oid relid)
{
	return repl_ml_identity()->joining && strcmp(schema_name, REPL_ML_SCHEMA) != 0 &&
		GetRelationPublications(relid) == NIL;
}

/* Returns the enrolled table that has this name, locked; InvalidOid if there is none. */
static Oid
find_enrolled(const char *schema_name, const char *table_name)
{
	RangeVar   *range = makeRangeVar(pstrdup(schema_name), pstrdup(table_name), -1);
	Oid			relid = RangeVarGetRelid(range, RowExclusiveLock, true);

	if (OidIsValid(relid) && repl_ml_table_clock_attnum(relid) != InvalidAttrNumber &&
		!repl_ml_table_is_to_come(schema_name, relid))
		return relid;
	return InvalidOid;
}

/* Returns the enrolled table that had this name once, locked; InvalidOid if there is none. */
static Oid
find_renamed(const char *schema_name, const char *table_name)
{
	Oid			types[2] = {TEXTOID, TEXTOID};
	Datum		values[2] = {CStringGetTextDatum(schema_name), CStringGetTextDatum(table_name)};
	MemoryContext context = CurrentMemoryContext;
	char	   *now_schema = NULL;
	char	   *now_name = NULL;

	PushActiveSnapshot(GetTransactionSnapshot());
	SPI_connect();
	if (SPI_execute_with_args("SELECT t.now_schema, t.now_name FROM repl_ml.replicated_table t"
							  " WHERE t.schema_name OPERATOR(pg_catalog.=) $1::pg_catalog.name"
							  " AND t.table_name OPERATOR(pg_catalog.=) $2::pg_catalog.name"
							  " AND t.state OPERATOR(pg_catalog.=) 'renamed'",
							  2, types, values, NULL, false, 1) < 0)
		elog(ERROR, "SPI failed");
	if (SPI_processed == 1)
	{
		now_schema = MemoryContextStrdup(context, repl_ml_spi_text(0, 0));
		now_name = MemoryContextStrdup(context, repl_ml_spi_text(0, 1));
	}
	SPI_finish();
	PopActiveSnapshot();
	return now_name == NULL ? InvalidOid : find_enrolled(now_schema, now_name);
}

/*
 * Returns the local table of that name, or that had it once, locked until the transaction ends,
 * for who applies or copies rows; InvalidOid if the group has removed it.  Raises
 * an error if it should be here and is not.
 */
Oid
repl_ml_table_local(const char *schema_name, const char *table_name)
{
	Oid			relid = find_enrolled(schema_name, table_name);

	if (!OidIsValid(relid))
		relid = find_renamed(schema_name, table_name);
	if (OidIsValid(relid))
		return relid;
	if (is_removed(schema_name, table_name))
		return InvalidOid;
	ereport(ERROR,
			(errcode(ERRCODE_UNDEFINED_TABLE),
			 errmsg("table \"%s.%s\" is not replicated on this node", schema_name, table_name),
			 errhint("See SELECT * FROM repl_ml.tables.")));
	return InvalidOid;			/* keep the compiler quiet */
}
