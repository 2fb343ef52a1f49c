/*
 * key.c
 *		repl_ml.row_history and repl_ml.row_status: what is known of one key, here
 *		and on all members, for somebody who wants to know why a row is as it is.
 *
 * Who may ask is as in report.c: the table's owner and members of repl_ml_admin;
 * rows are shown to who may read all of the table.  What is found, and how, is in
 * sql/parts/verify.sql (repl_ml.row_facts, repl_ml.row_sights).  Called by backends.
 * No locks but the table's, ACCESS SHARE.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "funcapi.h"
#include "miscadmin.h"

#include "server/server.h"
#include "verify/verify.h"

/*
 * Returns, as the rows of the function called, those of a query of ours with table,
 * key, and whether the caller may see rows, run with the extension's rights.
 */
static Datum
query_key(FunctionCallInfo fcinfo, const char *query)
{
	ReturnSetInfo *result = (ReturnSetInfo *) fcinfo->resultinfo;
	Oid			types[3] = {REGCLASSOID, TEXTARRAYOID, BOOLOID};
	Datum		values[3] = {0};
	ReplMlComparison comparison;
	ReplMlCaller caller;
	ReplMlUser	saved;

	repl_ml_refuse_nulls(fcinfo);
	caller = repl_ml_report_begin(PG_GETARG_OID(0), &comparison, 0, 0);
	values[0] = ObjectIdGetDatum(caller.relid);
	values[1] = PG_GETARG_DATUM(1);
	values[2] = BoolGetDatum(caller.may_read);
	InitMaterializedSRF(fcinfo, 0);
	repl_ml_report_become_extension(&saved);
	SPI_connect();
	SPI_execute_with_args(query, lengthof(types), types, values, NULL, false, 0);
	for (uint64 i = 0; i < SPI_processed; i++)
		tuplestore_puttuple(result->setResult, SPI_tuptable->vals[i]);
	SPI_finish();
	SetUserIdAndSecContext(saved.user, saved.context);
	return (Datum) 0;
}

PG_FUNCTION_INFO_V1(repl_ml_row_history);

/* repl_ml.row_history(relation, key): returns what this node knows of the key. */
Datum
repl_ml_row_history(PG_FUNCTION_ARGS)
{
	return query_key(fcinfo, "SELECT * FROM repl_ml.row_facts($1, $2, $3)");
}

PG_FUNCTION_INFO_V1(repl_ml_row_status);

/* repl_ml.row_status(relation, key): returns what each member has of the key. */
Datum
repl_ml_row_status(PG_FUNCTION_ARGS)
{
	return query_key(fcinfo, "SELECT * FROM repl_ml.row_sights($1, $2, $3)");
}
