/*
 * catalog.c
 *		Our own catalogs: their names, and SQL on them for processes without a client.
 *
 * A worker brackets its work with repl_ml_begin and repl_ml_commit: a
 * transaction with a snapshot and an SPI connection.
 *
 * Not here: what the catalogs say, which is the rooms' own.  No locks but those
 * of the statements.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/namespace.h"
#include "catalog/pg_class.h"
#include "catalog/pg_type.h"
#include "pgstat.h"
#include "storage/ipc.h"
#include "storage/pmsignal.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"
#include "utils/memutils.h"

#include "compat.h"
#include "server/server.h"

/*
 * Ends the process if its postmaster is gone.  Waits do that by themselves;
 * apply workers call this where they may go on without one: as long as such a
 * process lives, the server cannot be started again.
 */
void
repl_ml_check_server(void)
{
	if (!PostmasterIsAlive())
		proc_exit(1);
}

/*
 * Called by our workers: starts a transaction with an SPI connection and a
 * snapshot.
 */
void
repl_ml_begin(void)
{
	repl_ml_check_server();
	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	SPI_connect();
	PushActiveSnapshot(GetTransactionSnapshot());
}

/* Commits what repl_ml_begin started, and tells the statistics. */
void
repl_ml_commit(void)
{
	SPI_finish();
	PopActiveSnapshot();
	CommitTransactionCommand();
	pgstat_report_stat(false);
}

/*
 * Runs one statement with its own SPI connection and snapshot; returns the
 * number of rows.  Inside repl_ml_begin use SPI directly to see rows.
 */
uint64
repl_ml_spi_execute(const char *sql, int nargs, Oid *types, Datum *values, const char *nulls)
{
	uint64		processed;
	int			result;

	PushActiveSnapshot(GetTransactionSnapshot());
	SPI_connect();
	result = SPI_execute_with_args(sql, nargs, types, values, nulls, false, 0);
	if (result < 0)
		elog(ERROR, "SPI failed: %s", SPI_result_code_string(result));
	processed = SPI_processed;
	SPI_finish();
	PopActiveSnapshot();
	return processed;
}

/*
 * Returns the plan of a statement that a worker runs again and again, made on
 * first use.  The caller has an SPI connection.
 */
SPIPlanPtr
repl_ml_spi_plan(SPIPlanPtr *plan, const char *sql, int nargs, Oid *types)
{
	if (*plan == NULL)
	{
		SPIPlanPtr	made = SPI_prepare(sql, nargs, types);

		if (made == NULL || SPI_keepplan(made) != 0)
			elog(ERROR, "SPI_prepare failed: %s", SPI_result_code_string(SPI_result));
		*plan = made;
	}
	return *plan;
}

/*
 * Returns a value of the last result as text, NULL for null; rows and columns
 * count from 0.
 */
char *
repl_ml_spi_text(uint64 row, int column)
{
	return SPI_getvalue(SPI_tuptable->vals[row], SPI_tuptable->tupdesc, column + 1);
}

/*
 * Returns the first value of a query's only row as a number, 0 for none or
 * null.
 */
int64
repl_ml_query_int(const char *sql)
{
	char	   *text;

	if (SPI_execute(sql, false, 1) < 0)
		elog(ERROR, "SPI failed");
	text = SPI_processed == 0 || SPI_tuptable == NULL ? NULL : repl_ml_spi_text(0, 0);
	return text == NULL ? 0 : strtoll(text, NULL, 10);
}

/*
 * Called by SQL functions that are not STRICT: raises an error if an argument
 * is null.
 */
void
repl_ml_refuse_nulls(FunctionCallInfo fcinfo)
{
	for (int i = 0; i < PG_NARGS(); i++)
	{
		if (PG_ARGISNULL(i))
			ereport(ERROR,
					(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
					 errmsg("null is not allowed for argument %d of %s.%s", i + 1, REPL_ML_SCHEMA,
							get_func_name(fcinfo->flinfo->fn_oid)),
					 errhint("Give each argument a value.")));
	}
}

/* Returns the OID of the type repl_ml.vclock. */
Oid
repl_ml_clock_type(void)
{
	return GetSysCacheOid2(TYPENAMENSP, Anum_pg_type_oid,
						   CStringGetDatum("vclock"), ObjectIdGetDatum(repl_ml_schema_oid()));
}

/*
 * Returns the extension's schema, InvalidOid where the extension is not
 * installed.
 */
Oid
repl_ml_schema_oid(void)
{
	return get_namespace_oid(REPL_ML_SCHEMA, true);
}

/*
 * Called by whoever reads one of the extension's own tables row by row: raises an error if
 * somebody has put a view, or something else without storage, in its place.
 */
void
repl_ml_catalog_check(Oid relid, const char *name)
{
	if (get_rel_relkind(relid) != RELKIND_RELATION)
		ereport(ERROR,
				(errcode(ERRCODE_WRONG_OBJECT_TYPE),
				 errmsg("\"%s.%s\" is not a table", REPL_ML_SCHEMA, name),
				 errdetail("Somebody has replaced a table of the extension repl_ml."),
				 errhint("Put it back under its name.")));
}

/*
 * Returns the OID of one of the extension's own tables; raises an error where
 * the extension is not installed, or that is no table.
 */
Oid
repl_ml_catalog_oid(const char *name)
{
	Oid			relid = get_relname_relid(name, repl_ml_schema_oid());

	if (!OidIsValid(relid))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_TABLE),
				 errmsg("table \"%s.%s\" does not exist", REPL_ML_SCHEMA, name),
				 errhint("Run CREATE EXTENSION repl_ml.")));
	/* an index has storage, too */
	if (get_rel_relkind(relid) != RELKIND_INDEX)
		repl_ml_catalog_check(relid, name);
	return relid;
}
