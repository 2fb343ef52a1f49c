/*
 * binary.c
 *		Which rows travel in binary form, and reading what has come so.
 *
 * Numbers, times and vectors as text cost both sides more than the rest of a
 * change.  Binary forms, though, are for equals: they may hold ids that mean
 * something else on the other node (arrays and rows of a user's type, reg...),
 * and whoever keeps a value that cannot be applied needs to know its type.  So
 * a table's rows are sent in binary form only if all its columns are of common
 * types of core, and the clock.  Core's pgoutput decides by table and not by
 * column, too.  Not among them: interval, of which 17 knows infinite ones, that
 * older majors would read as some long time.
 *
 * Not here: what becomes of a value that cannot be read (apply/park.c).  No
 * locks; the catalogs of types are read through core's caches.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "utils/lsyscache.h"

#include "wire/wire.h"

/*
 * Says whether the type has the same id and the same binary form on all nodes,
 * whatever major they run.  Walsenders ask before they send a table's rows so,
 * apply workers before they read a value so.
 */
bool
repl_ml_binary_is_portable(Oid type)
{
	switch (type)
	{
		case BOOLOID:
		case BOOLARRAYOID:
		case INT2OID:
		case INT2ARRAYOID:
		case INT4OID:
		case INT4ARRAYOID:
		case INT8OID:
		case INT8ARRAYOID:
		case FLOAT4OID:
		case FLOAT4ARRAYOID:
		case FLOAT8OID:
		case FLOAT8ARRAYOID:
		case NUMERICOID:
		case NUMERICARRAYOID:
		case TEXTOID:
		case TEXTARRAYOID:
		case VARCHAROID:
		case VARCHARARRAYOID:
		case BPCHAROID:
		case BYTEAOID:
		case BYTEAARRAYOID:
		case UUIDOID:
		case DATEOID:
		case TIMEOID:
		case TIMESTAMPOID:
		case TIMESTAMPTZOID:
		case JSONOID:
		case JSONBOID:
			return true;
		default:
			/* also what a user has made: its id is another one elsewhere */
			return false;
	}
}

/*
 * Says whether all columns are of portable types, but for the clock: then
 * walsenders send the table's rows in binary form.
 */
bool
repl_ml_binary_is_table_portable(Relation rel)
{
	TupleDesc	desc = RelationGetDescr(rel);

	for (int i = 0; i < desc->natts; i++)
	{
		Form_pg_attribute att = TupleDescAttr(desc, i);

		if (!att->attisdropped && att->attgenerated == '\0' &&
			!repl_ml_binary_is_portable(att->atttypid) &&
			strcmp(NameStr(att->attname), REPL_ML_CLOCK_COLUMN) != 0)
			return false;
	}
	return true;
}

/*
 * Reads a value by its type's receive function; raises an error unless that
 * reads all of it.
 */
Datum
repl_ml_binary_read(FmgrInfo *receive, Oid param, int32 typmod, StringInfo value)
{
	Datum		result;

	value->cursor = 0;
	result = ReceiveFunctionCall(receive, value, param, typmod);
	if (value->cursor != value->len)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_BINARY_REPRESENTATION),
				 errmsg("a value has %d bytes more than its type reads",
						value->len - value->cursor),
				 errhint("Check that the column has the same type on both nodes, and that both run "
						 "the same version of repl_ml.")));
	return result;
}

/* Returns what came in binary form as the type's output function prints it. */
char *
repl_ml_binary_as_text(Oid type, StringInfo value)
{
	Oid			function;
	Oid			param;
	bool		is_varlena;
	FmgrInfo	receive;
	Datum		datum;

	getTypeBinaryInputInfo(type, &function, &param);
	fmgr_info(function, &receive);
	datum = repl_ml_binary_read(&receive, param, -1, value);
	getTypeOutputInfo(type, &function, &is_varlena);
	return OidOutputFunctionCall(function, datum);
}
