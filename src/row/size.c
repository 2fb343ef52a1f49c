/*
 * size.c
 *		How long a row is as text, and how long it may be.
 *
 * Rows travel as text where their types' binary forms are not the same on all
 * nodes, copies are text, and conflicts and parked changes are kept as JSON,
 * which ends at 256 MB.  So one limit (repl_ml.max_row_size) is put to what is
 * written: by stamp.c, which looks only where a row may be near it.  What was
 * there before, or has come to be longer by a type that prints much for few
 * bytes, is met by who sends it: write/output.c.
 *
 * Not what becomes of a row that cannot be sent (copy/donor.c,
 * apply/unsent.c).  No locks, no shared memory.
 */
#include "postgres.h"

#include "access/detoast.h"
#include "catalog/pg_type.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"

#include "compat.h"
#include "row/row.h"

/*
 * repl_ml.max_row_size: default, minimum, maximum, kB; twice the maximum, as
 * COPY may write it, is below 1 GB
 */
#define MAX_ROW_SIZE		(255 * 1024), 64, (500 * 1024)

#define LONGEST_TEXT		8	/* bytes of text for one of a value, as of bit strings */
#define TIGHTEST_PACKING	256 /* bytes of a value in one compressed */

static int	max_row_size;

static int64 measure_row(int count, const Oid *types, const Datum *values, const bool *nulls);
static int64 measure_text(Oid type, Datum value);

/* Defines the setting; called when the library is loaded. */
void
repl_ml_size_init(void)
{
	DefineCustomIntVariable("repl_ml.max_row_size",
							"Longest row, as text, that a replicated table takes.",
							"Above 255 MB a row may be too long to be kept as a conflict or a "
							"parked change.",
							&max_row_size,
							MAX_ROW_SIZE,
							PGC_SIGHUP,
							GUC_UNIT_KB,
							NULL,
							NULL,
							NULL);
}

/*
 * Says whether a row that took so many bytes, compressed perhaps, may be
 * longer than allowed.
 */
bool
repl_ml_size_is_doubtful(uint64 bytes)
{
	return bytes > (uint64) max_row_size * 1024 / (LONGEST_TEXT * TIGHTEST_PACKING);
}

/*
 * Raises an error, in the writer's backend, if the row is longer than allowed.
 */
void
repl_ml_size_check(Relation rel, const Datum *values, const bool *nulls)
{
	TupleDesc	desc = RelationGetDescr(rel);
	Oid		   *types = palloc(desc->natts * sizeof(Oid));
	int64		length;

	/* what has a fixed length is short as text, too */
	for (int i = 0; i < desc->natts; i++)
	{
		Form_pg_attribute att = TupleDescAttr(desc, i);

		types[i] = att->attlen == -1 && !att->attisdropped && att->attgenerated == '\0' ?
			att->atttypid : InvalidOid;
	}
	length = measure_row(desc->natts, types, values, nulls);
	pfree(types);
	if (length > (int64) max_row_size * 1024)
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("row of replicated table \"%s\" is too long", RelationGetRelationName(rel)),
				 errdetail("As text it takes %lld kB, and \"%s\" is %d kB.",
						   (long long) (length / 1024), "repl_ml.max_row_size", max_row_size),
				 errhint("Divide it among several rows, or raise \"%s\" on all nodes.",
						 "repl_ml.max_row_size")));
}

/*
 * Returns the length of these values as text, those of invalid types left out;
 * it is not exact where it is far from the limit.
 */
static int64
measure_row(int count, const Oid *types, const Datum *values, const bool *nulls)
{
	int64		limit = (int64) max_row_size * 1024;
	int64		length = 0;

	for (int i = 0; i < count; i++)
	{
		if (OidIsValid(types[i]) && !nulls[i])
			length += toast_raw_datum_size(values[i]);
	}

	/* most rows need not be printed */
	if (length * LONGEST_TEXT <= limit)
		return length;
	length = 0;
	for (int i = 0; i < count && length <= limit; i++)
	{
		if (OidIsValid(types[i]) && !nulls[i])
			length += measure_text(types[i], values[i]);
	}
	return length;
}

/*
 * Returns the length of a varlena value's text, without printing it where that
 * is known.
 */
static int64
measure_text(Oid type, Datum value)
{
	int64		raw = toast_raw_datum_size(value) - VARHDRSZ;
	Oid			function;
	bool		is_varlena;
	char	   *printed;

	/* these print just what they hold */
	switch (getBaseType(type))
	{
		case TEXTOID:
		case VARCHAROID:
		case BPCHAROID:
		case JSONOID:
		case XMLOID:
			return raw;
		case BYTEAOID:
			return 2 + 2 * raw;
		case BITOID:
		case VARBITOID:
			return (raw - sizeof(int32)) * BITS_PER_BYTE;
		default:
			getTypeOutputInfo(type, &function, &is_varlena);
			printed = OidOutputFunctionCall(function, value);
			raw = strlen(printed);
			pfree(printed);
			return raw;
	}
}
