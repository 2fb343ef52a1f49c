/*
 * donor.c
 *		The rows of a table for a peer that copies it, without those that
 *		cannot be sent.
 *
 * COPY of a table ends with the first row that is too long for a message, has a
 * character that the peer's encoding lacks, or a value whose output fails; and
 * no row of the table would come.  So the peer copies what repl_ml.rows_to_copy
 * returns (fetch.c): each row as a line of COPY's text format, made in a
 * subtransaction, and then asks repl_ml.rows_left_out for the others.  The
 * table is scanned, not queried: planning a query runs what its owner has
 * written into an index.
 *
 * Runs in a backend, in the peer's session and with the rights of its role.
 *
 * Not which rows are copied, and when (sync.c).  Locks: ACCESS SHARE on the
 * table until the transaction ends.
 */
#include "postgres.h"

#include "access/relscan.h"
#include "access/skey.h"
#include "access/stratnum.h"
#include "access/table.h"
#include "access/tableam.h"
#include "catalog/pg_type.h"
#include "executor/executor.h"
#include "funcapi.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "utils/acl.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/rls.h"
#include "utils/snapmgr.h"

#include "commit/commit.h"
#include "copy/copy.h"
#include "row/row.h"
#include "server/server.h"
#include "write/write.h"

#define LONGEST_LINE	((Size) MaxAllocSize - 64)	/* with what COPY and text add */

/* A scan that is going on, from one row to the next; lives as long as the query. */
typedef struct CopyScan
{
	Relation	rel;
	TableScanDesc scan;
	TupleTableSlot *slot;
	int			ncolumns;
	AttrNumber *columns;		/* in the order they are wanted */
	FmgrInfo   *output;
	ReplMlImage *image;			/* to pass by what the peer has; NULL: all are
								 * wanted */
	MemoryContext row_context;	/* reset with each row */
} CopyScan;

/* What the last copy of this session has left out; this file only. */
static MemoryContext left_out_context = NULL;
static List *left_out = NIL;	/* of ReplMlRowName */

static void find_columns(Relation rel, ArrayType *names, CopyScan *scan);
static CopyScan *begin_scan(FunctionCallInfo fcinfo);
static int	choose_rows(Relation rel, FunctionCallInfo fcinfo, ScanKeyData *keys);
static void end_scan(Datum argument);
static text *find_next_line(CopyScan *scan, MemoryContext result_context);
static text *make_line(CopyScan *scan, MemoryContext result_context);
static void append_value(StringInfo line, const char *value);
static void note_left_out(CopyScan *scan, const ErrorData *error);

/*
 * repl_ml.require_copyable(relation, columns): raises what rows_to_copy would
 * before the first row.  The peer asks for it by itself, as an error in the
 * middle of a COPY reaches it without its SQLSTATE.
 */
PG_FUNCTION_INFO_V1(repl_ml_require_copyable);
Datum
repl_ml_require_copyable(PG_FUNCTION_ARGS)
{
	Relation	rel = table_open(PG_GETARG_OID(0), AccessShareLock);
	CopyScan	unused = {0};

	repl_ml_donor_require_right(rel);
	/* it has what does not count, perhaps, and is itself to be made another one */
	if (repl_ml_level_is_strong(repl_ml_table_root(RelationGetRelid(rel))))
		repl_ml_lease_require_clean();
	find_columns(rel, PG_GETARG_ARRAYTYPE_P(1), &unused);
	table_close(rel, NoLock);
	PG_RETURN_BOOL(true);
}

/*
 * repl_ml.rows_to_copy(relation, columns, of_schema, of_table, differing): lines
 * of COPY's text format, one for each row that can be sent.  Of a table of ours
 * those about one table, if it is named; of tombstones no merged ones.  With
 * "differing" only those that repl_ml.note_digests has asked for.  Their
 * characters 1 to 3 are escaped, so that COPY as CSV with these as delimiter,
 * quote and NULL sends them as they are.
 */
PG_FUNCTION_INFO_V1(repl_ml_rows_to_copy);
Datum
repl_ml_rows_to_copy(PG_FUNCTION_ARGS)
{
	FuncCallContext *call;
	ExprContext *econtext = ((ReturnSetInfo *) fcinfo->resultinfo)->econtext;
	text	   *line;

	if (SRF_IS_FIRSTCALL())
	{
		MemoryContext old;

		call = SRF_FIRSTCALL_INIT();
		old = MemoryContextSwitchTo(call->multi_call_memory_ctx);
		call->user_fctx = begin_scan(fcinfo);
		MemoryContextSwitchTo(old);
		RegisterExprContextCallback(econtext, end_scan, PointerGetDatum(call->user_fctx));
	}
	call = SRF_PERCALL_SETUP();
	line = find_next_line(call->user_fctx, CurrentMemoryContext);
	if (line != NULL)
		SRF_RETURN_NEXT(call, PointerGetDatum(line));
	UnregisterExprContextCallback(econtext, end_scan, PointerGetDatum(call->user_fctx));
	end_scan(PointerGetDatum(call->user_fctx));
	SRF_RETURN_DONE(call);
}

/* Opens the table, in the memory context of all calls. */
static CopyScan *
begin_scan(FunctionCallInfo fcinfo)
{
	CopyScan   *scan = palloc0(sizeof(CopyScan));
	ScanKeyData *keys = palloc(3 * sizeof(ScanKeyData));	/* the scan refers to it */
	int			nkeys;

	if (PG_ARGISNULL(0) || PG_ARGISNULL(1))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("table and columns must not be null"),
				 errhint("Name a table and an array of its columns.")));
	scan->rel = table_open(PG_GETARG_OID(0), AccessShareLock);
	repl_ml_donor_require_right(scan->rel);
	find_columns(scan->rel, PG_GETARG_ARRAYTYPE_P(1), scan);
	nkeys = choose_rows(scan->rel, fcinfo, keys);
	scan->row_context = AllocSetContextCreate(CurrentMemoryContext, "repl_ml row to copy",
											  ALLOCSET_DEFAULT_SIZES);
	scan->slot = MakeSingleTupleTableSlot(RelationGetDescr(scan->rel),
										  table_slot_callbacks(scan->rel));
	scan->scan = table_beginscan(scan->rel, GetActiveSnapshot(), nkeys, keys);
	if (!PG_ARGISNULL(4) && PG_GETARG_BOOL(4))
		scan->image = repl_ml_image_open(scan->rel);

	if (left_out_context == NULL)
		left_out_context = AllocSetContextCreate(TopMemoryContext, "repl_ml rows left out",
												 ALLOCSET_SMALL_SIZES);
	MemoryContextReset(left_out_context);
	left_out = NIL;
	return scan;
}

/*
 * Closes the table at the end of the query, also where that ends before the
 * last row.
 */
static void
end_scan(Datum argument)
{
	CopyScan   *scan = (CopyScan *) DatumGetPointer(argument);

	table_endscan(scan->scan);
	ExecDropSingleTupleTableSlot(scan->slot);
	table_close(scan->rel, NoLock);
}

/*
 * Raises an error unless this is an ordinary table, all of whose rows the role
 * may read, as COPY would; digests.c asks, too.
 */
void
repl_ml_donor_require_right(Relation rel)
{
	if (rel->rd_rel->relkind != RELKIND_RELATION)
		ereport(ERROR,
				(errcode(ERRCODE_WRONG_OBJECT_TYPE),
				 errmsg("\"%s\" is not a table with rows of its own", RelationGetRelationName(rel)),
				 errhint("Name an ordinary table or a partition.")));
	if (pg_class_aclcheck(RelationGetRelid(rel), GetUserId(), ACL_SELECT) != ACLCHECK_OK)
		aclcheck_error(ACLCHECK_NO_PRIV, OBJECT_TABLE, RelationGetRelationName(rel));
	if (check_enable_rls(RelationGetRelid(rel), InvalidOid, false) == RLS_ENABLED)
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("a policy hides rows of table \"%s\" from role \"%s\"",
						RelationGetRelationName(rel), GetUserNameFromId(GetUserId(), false)),
				 errhint("Run ALTER ROLE %s BYPASSRLS.",
						 quote_identifier(GetUserNameFromId(GetUserId(), false)))));
}

/*
 * Fills "scan" with the columns of these names; raises an error if one is
 * missing.
 */
static void
find_columns(Relation rel, ArrayType *names, CopyScan *scan)
{
	Datum	   *elements;
	bool	   *nulls;

	deconstruct_array(names, NAMEOID, NAMEDATALEN, false, TYPALIGN_CHAR, &elements, &nulls,
					  &scan->ncolumns);
	scan->columns = palloc(Max(scan->ncolumns, 1) * sizeof(AttrNumber));
	scan->output = palloc(Max(scan->ncolumns, 1) * sizeof(FmgrInfo));
	for (int i = 0; i < scan->ncolumns; i++)
	{
		const char *name = nulls[i] ? "" : NameStr(*DatumGetName(elements[i]));
		AttrNumber	attnum = get_attnum(RelationGetRelid(rel), name);
		Oid			function;
		bool		is_varlena;

		if (attnum <= 0)
			ereport(ERROR,
					(errcode(ERRCODE_UNDEFINED_COLUMN),
					 errmsg("column \"%s\" of relation \"%s\" does not exist", name,
							RelationGetRelationName(rel)),
					 errhint("Give the table the same columns on all nodes.")));
		scan->columns[i] = attnum;
		getTypeOutputInfo(TupleDescAttr(RelationGetDescr(rel), attnum - 1)->atttypid, &function,
						  &is_varlena);
		fmgr_info(function, &scan->output[i]);
	}
}

/*
 * Sets, as scan keys, which rows of a table of ours are asked for; returns
 * their number.
 */
static int
choose_rows(Relation rel, FunctionCallInfo fcinfo, ScanKeyData *keys)
{
	int			nkeys = 0;

	if (RelationGetNamespace(rel) != repl_ml_schema_oid())
		return 0;
	if (!PG_ARGISNULL(2) && !PG_ARGISNULL(3))
	{
		ScanKeyInit(&keys[nkeys++], get_attnum(RelationGetRelid(rel), "schema_name"),
					BTEqualStrategyNumber, F_NAMEEQ, PG_GETARG_DATUM(2));
		ScanKeyInit(&keys[nkeys++], get_attnum(RelationGetRelid(rel), "table_name"),
					BTEqualStrategyNumber, F_NAMEEQ, PG_GETARG_DATUM(3));
	}
	if (RelationGetRelid(rel) == repl_ml_catalog_oid("tombstone"))
		ScanKeyInit(&keys[nkeys++], get_attnum(RelationGetRelid(rel), "merged"),
					BTEqualStrategyNumber, F_BOOLEQ, BoolGetDatum(false));
	return nkeys;
}

/* One row that is to be sent. */
typedef struct Line
{
	CopyScan   *scan;
	MemoryContext context;		/* of the result */
	text	   *made;
} Line;

/* A step of repl_ml_attempt: makes the line of the row at hand. */
static void
try_line(void *argument)
{
	Line	   *line = argument;

	line->made = make_line(line->scan, line->context);
}

/*
 * Returns the next row that can be sent, or NULL; those before it that cannot
 * are noted.
 */
static text *
find_next_line(CopyScan *scan, MemoryContext result_context)
{
	Line		line = {.scan = scan,.context = result_context};

	while (table_scan_getnextslot(scan->scan, ForwardScanDirection, scan->slot))
	{
		MemoryContext old;
		ErrorData  *error;

		CHECK_FOR_INTERRUPTS();
		if (scan->image != NULL && !repl_ml_digests_are_wanted(scan->image, scan->slot))
			continue;
		MemoryContextReset(scan->row_context);
		old = MemoryContextSwitchTo(scan->row_context);
		error = repl_ml_attempt(try_line, &line);
		/* what is wrong with the server, or with the session, is no row's */
		if (error != NULL && !repl_ml_output_is_of_the_row(error->sqlerrcode))
			ReThrowError(error);
		if (error != NULL)
			note_left_out(scan, error);
		MemoryContextSwitchTo(old);
		if (error == NULL)
			return line.made;
	}
	return NULL;
}

/*
 * Returns the row as the peer will read it; raises an error if it could not be
 * sent, or not be read there.
 */
static text *
make_line(CopyScan *scan, MemoryContext result_context)
{
	StringInfoData line;
	Size		sent;
	text	   *result;

	initStringInfo(&line);
	slot_getallattrs(scan->slot);
	for (int i = 0; i < scan->ncolumns; i++)
	{
		AttrNumber	attnum = scan->columns[i];

		if (i > 0)
			appendStringInfoChar(&line, '\t');
		if (scan->slot->tts_isnull[attnum - 1])
			appendStringInfoString(&line, "\\N");
		else
			append_value(&line,
						 OutputFunctionCall(&scan->output[i], scan->slot->tts_values[attnum - 1]));
	}

	/*
	 * in a COPY the peer, or core on the way, would stop at it with all rows
	 * behind
	 */
	(void) pg_verify_mbstr(GetDatabaseEncoding(), line.data, line.len, false);
	sent = strlen(pg_server_to_client(line.data, line.len));
	if (Max(sent, line.len) > LONGEST_LINE)
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("row is too long to be copied")));
	MemoryContextSwitchTo(result_context);
	result = cstring_to_text_with_len(line.data, line.len);
	MemoryContextSwitchTo(scan->row_context);
	return result;
}

/* Appends a value as COPY writes it into a line of text. */
static void
append_value(StringInfo line, const char *value)
{
	for (const char *c = value; *c != '\0'; c++)
	{
		switch (*c)
		{
			case '\\':
				appendStringInfoString(line, "\\\\");
				break;
			case '\n':
				appendStringInfoString(line, "\\n");
				break;
			case '\r':
				appendStringInfoString(line, "\\r");
				break;
			case '\t':
				appendStringInfoString(line, "\\t");
				break;
			case '\001':
			case '\002':
			case '\003':
				appendStringInfo(line, "\\x%02x", *c);
				break;
			default:
				appendStringInfoCharMacro(line, *c);
		}
	}
}

/* Notes the row that the scan is at, for repl_ml.rows_left_out. */
static void
note_left_out(CopyScan *scan, const ErrorData *error)
{
	ReplMlRowName *name = repl_ml_output_name(scan->rel,
											  ExecFetchSlotHeapTuple(scan->slot, false, NULL));
	MemoryContext old = MemoryContextSwitchTo(left_out_context);
	ReplMlRowName *kept = palloc(sizeof(ReplMlRowName));

	*kept = (ReplMlRowName) {
		.schema_name = pstrdup(name->schema_name),.table_name = pstrdup(name->table_name),
		.key = pstrdup(name->key),.clock = name->clock == NULL ? NULL : pstrdup(name->clock),
		.error = pstrdup(error->message)
	};
	left_out = lappend(left_out, kept);
	MemoryContextSwitchTo(old);
	ereport(LOG,
			(errmsg("a row of table \"%s\" cannot be copied and is left out: %s", name->table_name,
					error->message),
			 errdetail("Its key is %s.", name->key)));
}

/*
 * repl_ml.rows_left_out(): returns what the last repl_ml.rows_to_copy of this
 * session has left out, and why.
 */
PG_FUNCTION_INFO_V1(repl_ml_rows_left_out);
Datum
repl_ml_rows_left_out(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *result = (ReturnSetInfo *) fcinfo->resultinfo;
	ListCell   *lc;

	InitMaterializedSRF(fcinfo, 0);
	foreach(lc, left_out)
	{
		ReplMlRowName *name = lfirst(lc);
		const char *texts[5] = {name->schema_name, name->table_name, name->key, name->clock,
		name->error};
		Datum		values[5];
		bool		nulls[5];

		for (int i = 0; i < lengthof(texts); i++)
		{
			nulls[i] = texts[i] == NULL;
			values[i] = nulls[i] ? (Datum) 0 :
				CStringGetTextDatum(repl_ml_output_legible(texts[i]));
		}
		tuplestore_putvalues(result->setResult, result->setDesc, values, nulls);
	}
	return (Datum) 0;
}
