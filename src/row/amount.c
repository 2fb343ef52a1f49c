/*
 * amount.c
 *		What a column with the merge rule "counter" counts, as exact decimals.
 *
 * An amount is a number or an array of numbers, whatever type the column has
 * on this node.  Amounts are added without rounding, so it does not matter in
 * which order; only a result is made to fit the column's type.  A float is the
 * decimal that its text form shows.  Arrays are added element by element, a
 * shorter one as if it had zeros behind it; NULL, the column's or an
 * element's, counts as 0.  Everything is palloc'd.
 *
 * Not here: who has added how much (share.c), nor what versions amount to
 * (converge/merge.c).  No locks, no catalogs but those of types, no state.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "common/shortest_dec.h"
#include "lib/stringinfo.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/lsyscache.h"

#include "compat.h"
#include "row/row.h"

static bool is_number(Oid type);
static ReplMlAmount *make_amount(bool is_array, int count);
static void read_array(ReplMlAmount **amount, Oid element_type, Datum value);
static Numeric make_decimal(Oid type, Datum value);
static Numeric parse_number(const char *text);
static Datum make_datum(Numeric number, Oid type, int32 typmod);
static ReplMlAmount *combine_elements(const ReplMlAmount *a, const ReplMlAmount *b,
									  PGFunction function);

/* Says whether a column of this type can be a counter. */
bool
repl_ml_amount_fits(Oid type)
{
	Oid			base = getBaseType(type);
	Oid			element = get_element_type(base);

	return is_number(OidIsValid(element) ? element : base);
}

/* Says whether values of the type are numbers. */
static bool
is_number(Oid type)
{
	switch (getBaseType(type))
	{
		case INT2OID:
		case INT4OID:
		case INT8OID:
		case NUMERICOID:
		case FLOAT4OID:
		case FLOAT8OID:
			return true;
		default:
			return false;
	}
}

/* Returns an amount with room for so many elements. */
static ReplMlAmount *
make_amount(bool is_array, int count)
{
	ReplMlAmount *amount = palloc(sizeof(ReplMlAmount));

	amount->is_array = is_array;
	amount->count = count;
	amount->elements = palloc(Max(count, 1) * sizeof(Numeric));
	return amount;
}

/* Returns the amount in a column of a type that fits. */
ReplMlAmount *
repl_ml_amount_from_datum(Oid type, Datum value, bool isnull)
{
	Oid			base = getBaseType(type);
	Oid			element = get_element_type(base);
	ReplMlAmount *amount;

	if (OidIsValid(element))
	{
		amount = make_amount(true, 0);
		if (!isnull)
			read_array(&amount, element, value);
		return amount;
	}
	amount = make_amount(false, 1);
	amount->elements[0] = isnull ? int64_to_numeric(0) : make_decimal(base, value);
	return amount;
}

/* Sets the amount in an array of numbers. */
static void
read_array(ReplMlAmount **amount, Oid element_type, Datum value)
{
	Oid			base = getBaseType(element_type);
	int16		length;
	bool		by_value;
	char		align;
	Datum	   *values;
	bool	   *nulls;
	int			count;

	get_typlenbyvalalign(element_type, &length, &by_value, &align);
	deconstruct_array(DatumGetArrayTypeP(value), element_type, length, by_value, align,
					  &values, &nulls, &count);
	*amount = make_amount(true, count);
	for (int i = 0; i < count; i++)
		(*amount)->elements[i] = nulls[i] ? int64_to_numeric(0) :
		make_decimal(base, values[i]);
}

/*
 * Returns a value of a number's type as the decimal that its text form shows.
 */
static Numeric
make_decimal(Oid type, Datum value)
{
	switch (type)
	{
		case INT2OID:
			return int64_to_numeric(DatumGetInt16(value));
		case INT4OID:
			return int64_to_numeric(DatumGetInt32(value));
		case INT8OID:
			return int64_to_numeric(DatumGetInt64(value));
		case NUMERICOID:
			return DatumGetNumericCopy(value);
		case FLOAT4OID:
			return parse_number(float_to_shortest_decimal(DatumGetFloat4(value)));
		case FLOAT8OID:
			return parse_number(double_to_shortest_decimal(DatumGetFloat8(value)));
		default:
			elog(ERROR, "type %u is no number", type);
			return NULL;		/* keep the compiler quiet */
	}
}

/* Returns the number that is written in a text. */
static Numeric
parse_number(const char *text)
{
	return DatumGetNumeric(DirectFunctionCall3(numeric_in, CStringGetDatum(text),
											   ObjectIdGetDatum(InvalidOid), Int32GetDatum(-1)));
}

/*
 * Returns the value of a column with this amount.  Raises an error if the type
 * cannot hold it: a sum of what many nodes have added may be too large.
 */
Datum
repl_ml_amount_to_datum(const ReplMlAmount *amount, Oid type, int32 typmod)
{
	int32		base_typmod = typmod;
	Oid			base = getBaseTypeAndTypmod(type, &base_typmod);
	Oid			element = get_element_type(base);
	Datum	   *values;
	Datum		result;
	int16		length;
	bool		by_value;
	char		align;

	if (!OidIsValid(element))
		return make_datum(amount->elements[0], type, typmod);

	values = palloc(Max(amount->count, 1) * sizeof(Datum));
	for (int i = 0; i < amount->count; i++)
		values[i] = make_datum(amount->elements[i], element, base_typmod);
	get_typlenbyvalalign(element, &length, &by_value, &align);
	result = PointerGetDatum(construct_array(values, amount->count, element, length, by_value,
											 align));

	/* the domain's own checks have not seen this value */
	if (base != type)
		domain_check(result, false, type, NULL, NULL);
	return result;
}

/* Returns a number as a value of the type, rounded if that has no decimals. */
static Datum
make_datum(Numeric number, Oid type, int32 typmod)
{
	Oid			base = getBaseType(type);
	Datum		value = NumericGetDatum(number);
	Oid			function;
	Oid			param;

	/* the column may have had decimals once */
	if (base == INT2OID || base == INT4OID || base == INT8OID)
		value = DirectFunctionCall2(numeric_round, value, Int32GetDatum(0));
	getTypeInputInfo(type, &function, &param);
	return OidInputFunctionCall(function, DatumGetCString(DirectFunctionCall1(numeric_out, value)),
								param, typmod);
}

/*
 * Returns the amount that repl_ml_amount_to_text wrote; marks.c has checked
 * the text.
 */
ReplMlAmount *
repl_ml_amount_from_text(const char *text)
{
	ReplMlAmount *amount;
	char	   *copy;
	char	   *next;
	int			count = 1;

	if (*text != '[')
	{
		amount = make_amount(false, 1);
		amount->elements[0] = parse_number(text);
		return amount;
	}
	if (text[1] == ']')
		return make_amount(true, 0);

	/* an array: one element more than commas */
	for (const char *c = text; *c != '\0'; c++)
		count += *c == ',';
	amount = make_amount(true, count);
	next = copy = pstrdup(text + 1);
	for (int i = 0; i < count; i++)
	{
		char	   *end = next + strcspn(next, ",]");

		*end = '\0';
		amount->elements[i] = parse_number(next);
		next = end + 1;
	}
	pfree(copy);
	return amount;
}

/* Returns the form that marks have; the amount is a finite one. */
char *
repl_ml_amount_to_text(const ReplMlAmount *amount)
{
	StringInfoData text;

	initStringInfo(&text);
	if (amount->is_array)
		appendStringInfoChar(&text, '[');
	for (int i = 0; i < amount->count; i++)
	{
		Datum		element = NumericGetDatum(amount->elements[i]);

		appendStringInfo(&text, "%s%s", i > 0 ? "," : "",
						 DatumGetCString(DirectFunctionCall1(numeric_out, element)));
	}
	if (amount->is_array)
		appendStringInfoChar(&text, ']');
	return text.data;
}

/* Returns the sum of two amounts. */
ReplMlAmount *
repl_ml_amount_add(const ReplMlAmount *a, const ReplMlAmount *b)
{
	return combine_elements(a, b, numeric_add);
}

/* Returns the first amount without the second. */
ReplMlAmount *
repl_ml_amount_subtract(const ReplMlAmount *a, const ReplMlAmount *b)
{
	return combine_elements(a, b, numeric_sub);
}

/*
 * Returns what the function makes of two amounts, element by element, the
 * shorter one with zeros.
 */
static ReplMlAmount *
combine_elements(const ReplMlAmount *a, const ReplMlAmount *b, PGFunction function)
{
	ReplMlAmount *result = make_amount(a->is_array || b->is_array, Max(a->count, b->count));
	Numeric		zero = int64_to_numeric(0);

	for (int i = 0; i < result->count; i++)
		result->elements[i] =
			DatumGetNumeric(DirectFunctionCall2(function,
												NumericGetDatum(i < a->count ? a->elements[i] :
																zero),
												NumericGetDatum(i < b->count ? b->elements[i] :
																zero)));
	return result;
}

/* Says whether adding the amount changes nothing. */
bool
repl_ml_amount_is_zero(const ReplMlAmount *amount)
{
	Numeric		zero = int64_to_numeric(0);

	for (int i = 0; i < amount->count; i++)
	{
		if (!DatumGetBool(DirectFunctionCall2(numeric_eq, NumericGetDatum(amount->elements[i]),
											  NumericGetDatum(zero))))
			return false;
	}
	return true;
}

/*
 * Says whether the amount is neither infinite nor not a number: only such
 * amounts can be added and taken away again.
 */
bool
repl_ml_amount_is_finite(const ReplMlAmount *amount)
{
	for (int i = 0; i < amount->count; i++)
	{
		if (numeric_is_nan(amount->elements[i]) || numeric_is_inf(amount->elements[i]))
			return false;
	}
	return true;
}
