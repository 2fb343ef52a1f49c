/*
 * owner.c
 *		Running what a table's owner has written with his rights and no more.
 *
 * More of it runs than meets the eye: not only triggers, constraints, defaults
 * and the functions of his types, but with the mere planning of a query, or
 * with opening the indexes of a table, what is constant in an expression of an
 * index or of a partition key.  So whoever touches a user's table otherwise
 * than by its catalogs and its heap first becomes its owner: apply workers, and
 * backends in functions of ours that a superuser may have called.
 *
 * Not here: whether the owner may write the table (converge/target.c).  Locks:
 * what repl_ml_has_rows looks at, in the mode its caller says.
 */
#include "postgres.h"

#include "access/table.h"
#include "access/tableam.h"
#include "catalog/namespace.h"
#include "catalog/pg_inherits.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "executor/tuptable.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "storage/lmgr.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/snapmgr.h"

#include "compat.h"
#include "row/row.h"

#define SAFE_SEARCH_PATH	"pg_catalog, pg_temp"

static bool heap_has_rows(Relation rel);

/*
 * Goes on with the rights of the table's owner and nothing more, under a
 * search_path that none of his objects is in, and lets no setting of his
 * outlast it.  Apply workers and backends call it; an abort undoes it, too.
 */
void
repl_ml_become_owner(Relation rel, ReplMlUser *saved)
{
	GetUserIdAndSecContext(&saved->user, &saved->context);
	saved->guc_level = NewGUCNestLevel();
	if (strcmp(namespace_search_path, SAFE_SEARCH_PATH) != 0)
		(void) set_config_option("search_path", SAFE_SEARCH_PATH, PGC_USERSET, PGC_S_SESSION,
								 GUC_ACTION_SAVE, true, 0, false);
	if (rel->rd_rel->relowner != saved->user)
		SetUserIdAndSecContext(rel->rd_rel->relowner,
							   saved->context | SECURITY_RESTRICTED_OPERATION);
}

/* Goes back to what repl_ml_become_owner found. */
void
repl_ml_become_self(const ReplMlUser *saved)
{
	AtEOXact_GUC(false, saved->guc_level);
	SetUserIdAndSecContext(saved->user, saved->context);
}

/*
 * Says whether the table, or one of its partitions, has a row.  Looks into the
 * heap, so it runs nobody's code, which a query would.  A foreign partition
 * counts as empty.  All are locked, until the transaction ends.
 */
bool
repl_ml_has_rows(Oid relid, LOCKMODE lockmode)
{
	List	   *relations;
	bool		found = false;
	ListCell   *lc;

	LockRelationOid(relid, lockmode);
	relations = find_all_inheritors(relid, lockmode, NULL);
	foreach(lc, relations)
	{
		Relation	rel = table_open(lfirst_oid(lc), NoLock);

		if (!found && RELKIND_HAS_TABLE_AM(rel->rd_rel->relkind))
			found = heap_has_rows(rel);
		table_close(rel, NoLock);
	}
	return found;
}

/* Says whether a committed row, or one of ours, is in the heap. */
static bool
heap_has_rows(Relation rel)
{
	Snapshot	snapshot = RegisterSnapshot(GetLatestSnapshot());
	TableScanDesc scan = table_beginscan(rel, snapshot, 0, NULL);
	TupleTableSlot *slot = table_slot_create(rel, NULL);
	bool		found = table_scan_getnextslot(scan, ForwardScanDirection, slot);

	ExecDropSingleTupleTableSlot(slot);
	table_endscan(scan);
	UnregisterSnapshot(snapshot);
	return found;
}

/*
 * repl_ml.lock_table(relation), for repl_ml.adopt: locks it against everybody,
 * and says whether it has rows.
 */
PG_FUNCTION_INFO_V1(repl_ml_lock_table);
Datum
repl_ml_lock_table(PG_FUNCTION_ARGS)
{
	PG_RETURN_BOOL(repl_ml_has_rows(PG_GETARG_OID(0), AccessExclusiveLock));
}

/* Returns one row of SPI's result as text[]. */
static Datum
make_row_array(HeapTuple tuple, TupleDesc desc)
{
	Datum	   *texts = palloc(desc->natts * sizeof(Datum));
	bool	   *nulls = palloc(desc->natts * sizeof(bool));
	int			dims[1] = {desc->natts};
	int			lower[1] = {1};

	for (int i = 0; i < desc->natts; i++)
	{
		char	   *text = SPI_getvalue(tuple, desc, i + 1);

		nulls[i] = text == NULL;
		texts[i] = text == NULL ? (Datum) 0 : CStringGetTextDatum(text);
	}
	return PointerGetDatum(construct_md_array(texts, nulls, 1, dims, lower, TEXTOID, -1, false,
											  TYPALIGN_INT));
}

/*
 * repl_ml.query_as_owner(relation, statement, arguments): returns the rows of
 * a query, each as text[], run as the owner of the table.  For our own
 * functions that superusers call: for anybody else it would be a way to become
 * somebody else.
 */
PG_FUNCTION_INFO_V1(repl_ml_query_as_owner);
Datum
repl_ml_query_as_owner(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *result = (ReturnSetInfo *) fcinfo->resultinfo;
	Relation	rel = table_open(PG_GETARG_OID(0), AccessShareLock);
	char	   *statement = text_to_cstring(PG_GETARG_TEXT_PP(1));
	Datum	   *values;
	bool	   *nulls;
	int			count;
	Oid		   *types;
	char	   *flags;
	ReplMlUser	saved;

	InitMaterializedSRF(fcinfo, MAT_SRF_USE_EXPECTED_DESC);
	deconstruct_array(PG_GETARG_ARRAYTYPE_P(2), TEXTOID, -1, false, TYPALIGN_INT, &values, &nulls,
					  &count);
	types = palloc(Max(count, 1) * sizeof(Oid));
	flags = palloc(Max(count, 1));
	for (int i = 0; i < count; i++)
	{
		types[i] = TEXTOID;
		flags[i] = nulls[i] ? 'n' : ' ';
	}

	SPI_connect();
	repl_ml_become_owner(rel, &saved);
	if (SPI_execute_with_args(statement, count, types, values, flags, false, 0) != SPI_OK_SELECT)
		elog(ERROR, "query_as_owner is for queries");
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		Datum		row[1] = {make_row_array(SPI_tuptable->vals[i], SPI_tuptable->tupdesc)};
		bool		null[1] = {false};

		tuplestore_putvalues(result->setResult, result->setDesc, row, null);
	}
	repl_ml_become_self(&saved);
	SPI_finish();
	table_close(rel, NoLock);
	return (Datum) 0;
}
