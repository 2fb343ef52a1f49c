/*
 * image.c
 *		What a row is, as bytes that are the same on every node, and hashes of them.
 *
 * Rows are equal if their columns have equal names and bit for bit equal
 * values.  Columns are taken in the order of their names, those of the primary
 * key first, generated ones and the clock not.  A value's bytes are those that
 * are stored, without header, compression and place, as long as these are the
 * same wherever the value is: within containers (arrays, ranges, composite types)
 * they are taken value by value, since a container's header has OIDs in it, and
 * an enum's value is its label.  Integers of all widths are alike, as values
 * travel between them.  Of types that no node can read without looking names
 * up (regclass and the like), whose padding may differ (tsvector), whose text
 * says less than what is stored (xml), or that are not core's, it is the text
 * form.  Whatever is read that way is a function of
 * core, or of an extension that a superuser has installed; no operator, cast,
 * domain or trigger runs.  Rows travel as text, mostly, where a NaN has no sign:
 * so it has none here (what processors make of Infinity - Infinity has one on
 * x86).  One that means something by its other bits differs from the plain one.
 *
 * Hashes are MurmurHash3's for 128 bits (Austin Appleby, public domain), which
 * takes a third of the time of two of core's; of a row it begins with the hash of
 * the key, which says in which chunk the row is.  Two rows that differ have the
 * same 128 bits with a probability of 2^-128, so that of a thousand million rows
 * some pair does is below 2^-69.  Of a chunk the hashes are added, each lane for
 * itself, modulo 2^64: the order does not matter, and other than with XOR a row
 * that is there twice does not vanish.  Chunks with
 * other rows have equal sums with a probability of 2^-128 each: a comparison of
 * 65,536 chunks every second for a thousand years misses one with a probability
 * of 2^-77.  That is for accidents; who wants to deceive can.
 *
 * Not here: which rows are hashed (part.c) and compared (compare.c).  No locks
 * but those of catalog look-ups.  An image lives in the context it was opened
 * in; what values need for themselves goes with each row.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/tupmacs.h"
#include "catalog/pg_enum.h"
#include "catalog/pg_type.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/catcache.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/multirangetypes.h"
#include "utils/rangetypes.h"
#include "utils/syscache.h"
#include "utils/typcache.h"

#include "access/transam.h"
#include "compat.h"
#include "verify/verify.h"

static const ReplMlDigest seed = {
	{UINT64CONST(0x9e3779b97f4a7c15), UINT64CONST(0xc2b2ae3d27d4eb4f)}
};

/* a hash takes so many bytes at once */
#define BLOCK_SIZE		16

/* a value that is longer goes into the image of its row as its hash */
#define LONG_VALUE		1024
#define LENGTH_IS_HASHED 0x80000000U

/* the NaN that a float's text form "NaN" is read as, and the one that x86 makes */
#define POSITIVE_NAN_4	0x7fc00000U
#define NEGATIVE_NAN_4	0xffc00000U
#define POSITIVE_NAN_8	UINT64CONST(0x7ff8000000000000)
#define NEGATIVE_NAN_8	UINT64CONST(0xfff8000000000000)

/* How the bytes of a type's values are found. */
typedef enum ValueKind
{
	VALUE_INTEGER,
	VALUE_PLAIN,				/* as they are stored: fixed length */
	VALUE_FLOATS,				/* one or more numbers of 4 or 8 bytes */
	VALUE_VARLENA,
	VALUE_TEXT,					/* by the type's output function */
	VALUE_ENUM,
	VALUE_ARRAY,
	VALUE_RANGE,
	VALUE_MULTIRANGE,
	VALUE_COMPOSITE
} ValueKind;

typedef struct ValueType
{
	ValueKind	kind;
	Oid			type;
	int16		length;
	bool		by_value;
	char		align;
	FmgrInfo	output;			/* of VALUE_TEXT */
	TypeCacheEntry *cache;		/* of a range, or of a multirange's */
	TupleDesc	desc;			/* of VALUE_COMPOSITE */
	struct ValueType **parts;	/* an array's or range's one, or one for each
								 * attribute; NULL for a dropped one */
} ValueType;

typedef struct ImageColumn
{
	AttrNumber	attnum;
	const char *name;
	ValueType  *type;
} ImageColumn;

struct ReplMlImage
{
	TupleDesc	desc;
	ReplMlTable *table;
	AttrNumber	clock_attnum;
	int			count;
	int			key_count;		/* the first of these columns */
	ImageColumn *columns;
	int			key_order[INDEX_MAX_KEYS];	/* i-th key column by name -> place in
											 * the index */
	StringInfoData bytes;		/* of the row at hand, or of its key */
	ReplMlDigest key;			/* the hash of that */
	MemoryContext row_context;
};

static ValueType *describe_type(Oid type);
static void append_value(StringInfo bytes, const ValueType *type, Datum value);
static ReplMlDigest make_digest(ReplMlDigest digest, const char *data, Size size);

/* ---- what is hashed ---- */

/* Says whether a column is part of what a row is. */
static bool
is_content(Form_pg_attribute att)
{
	return !att->attisdropped && att->attgenerated == '\0' &&
		strcmp(NameStr(att->attname), REPL_ML_CLOCK_COLUMN) != 0;
}

/* Says whether a column is part of the primary key. */
static bool
is_key(const ReplMlTable *table, AttrNumber attnum)
{
	for (int i = 0; i < table->key_natts; i++)
	{
		if (table->key_attnums[i] == attnum)
			return true;
	}
	return false;
}

/* What compare_columns needs to know. */
typedef struct NamedColumn
{
	bool		in_key;
	Form_pg_attribute att;
} NamedColumn;

/* Orders columns, for qsort: those of the key first, then by name. */
static int
compare_columns(const void *a, const void *b)
{
	const NamedColumn *x = a;
	const NamedColumn *y = b;

	if (x->in_key != y->in_key)
		return x->in_key ? -1 : 1;
	return strcmp(NameStr(x->att->attname), NameStr(y->att->attname));
}

/*
 * Returns the columns that make up a row, in the order in which they are
 * hashed, palloc'd; and how many.
 */
static NamedColumn *
find_columns(const ReplMlTable *table, TupleDesc desc, int *count)
{
	NamedColumn *columns = palloc(Max(desc->natts, 1) * sizeof(NamedColumn));

	*count = 0;
	for (int i = 0; i < desc->natts; i++)
	{
		Form_pg_attribute att = TupleDescAttr(desc, i);

		if (is_content(att))
			columns[(*count)++] = (NamedColumn) {.in_key = is_key(table, att->attnum),.att = att};
	}
	qsort(columns, *count, sizeof(NamedColumn), compare_columns);
	return columns;
}

/*
 * Sets, for each column of the key by name, its place in the index; returns
 * how many there are.
 */
int
repl_ml_image_key_order(ReplMlTable *table, TupleDesc desc, int *order)
{
	int			count;
	NamedColumn *columns = find_columns(table, desc, &count);

	for (int i = 0; i < table->key_natts; i++)
	{
		for (int j = 0; j < table->key_natts; j++)
		{
			if (table->key_attnums[j] == columns[i].att->attnum)
				order[i] = j;
		}
	}
	pfree(columns);
	return table->key_natts;
}

/* ---- signatures ---- */

/* Appends what a type's values are made of, by names. */
static void
append_type_name(StringInfo text, const ValueType *type)
{
	HeapTuple	tuple = SearchSysCache1(TYPEOID, ObjectIdGetDatum(type->type));

	if (type->kind == VALUE_INTEGER)
		appendStringInfoString(text, "integer");
	else if (type->kind != VALUE_ARRAY && HeapTupleIsValid(tuple))
		appendStringInfoString(text, NameStr(((Form_pg_type) GETSTRUCT(tuple))->typname));
	if (HeapTupleIsValid(tuple))
		ReleaseSysCache(tuple);
	if (type->kind == VALUE_ARRAY)
	{
		append_type_name(text, type->parts[0]);
		appendStringInfoString(text, "[]");
	}
	if (type->kind != VALUE_COMPOSITE)
		return;
	appendStringInfoChar(text, '(');
	for (int i = 0; i < type->desc->natts; i++)
	{
		if (type->parts[i] == NULL)
			continue;
		append_type_name(text, type->parts[i]);
		appendStringInfoChar(text, ',');
	}
	appendStringInfoChar(text, ')');
}

/*
 * Returns, for both sides of a comparison, what the rows of a table are made
 * of: a line for each column.  Tables can be compared if it is the same.
 */
char *
repl_ml_image_signature(Relation rel)
{
	ReplMlTable *table = repl_ml_table_get(rel);
	StringInfoData text;
	int			count;
	NamedColumn *columns = find_columns(table, RelationGetDescr(rel), &count);

	initStringInfo(&text);
	for (int i = 0; i < count; i++)
	{
		appendStringInfo(&text, "%s ", quote_identifier(NameStr(columns[i].att->attname)));
		append_type_name(&text, describe_type(columns[i].att->atttypid));
		appendStringInfoString(&text, columns[i].in_key ? " key\n" : "\n");
	}
	/* what is stored in memory's own order would be another image */
#ifdef WORDS_BIGENDIAN
	appendStringInfoString(&text, "\"\" big-endian\n");
#endif
	return text.data;
}

/* ---- types ---- */

/* Says whether core's type is read by its text form; see the head of this file. */
static bool
is_read_as_text(Oid type)
{
	switch (type)
	{
		case REGPROCOID:
		case REGPROCEDUREOID:
		case REGOPEROID:
		case REGOPERATOROID:
		case REGCLASSOID:
		case REGTYPEOID:
		case REGROLEOID:
		case REGNAMESPACEOID:
		case REGCONFIGOID:
		case REGDICTIONARYOID:
		case REGCOLLATIONOID:
		case ACLITEMOID:
		case TSVECTOROID:
		case TSQUERYOID:
		case JSONPATHOID:
		case XMLOID:
			return true;
		default:
			return type >= FirstNormalObjectId;
	}
}

/* Says whether values of core's type are nothing but floating-point numbers, of a fixed length. */
static bool
is_made_of_floats(Oid type)
{
	return type == FLOAT4OID || type == FLOAT8OID || type == POINTOID || type == LSEGOID ||
		type == BOXOID || type == LINEOID || type == CIRCLEOID;
}

/* Says how values of a base type are read. */
static ValueKind
kind_of_base_type(const ValueType *type)
{
	if (type->type == INT2OID || type->type == INT4OID || type->type == INT8OID)
		return VALUE_INTEGER;
	if (is_read_as_text(type->type) || type->length == -2)
		return VALUE_TEXT;
	if (is_made_of_floats(type->type))
		return VALUE_FLOATS;
	return type->length == -1 ? VALUE_VARLENA : VALUE_PLAIN;
}

/* Fills in the parts of a composite type, its attributes. */
static void
describe_composite(ValueType *result)
{
	TupleDesc	desc = lookup_rowtype_tupdesc(result->type, -1);

	result->kind = VALUE_COMPOSITE;
	result->desc = CreateTupleDescCopy(desc);
	ReleaseTupleDesc(desc);
	result->parts = palloc0(Max(result->desc->natts, 1) * sizeof(ValueType *));
	for (int i = 0; i < result->desc->natts; i++)
	{
		Form_pg_attribute att = TupleDescAttr(result->desc, i);

		if (!att->attisdropped)
			result->parts[i] = describe_type(att->atttypid);
	}
}

/* Gives a container its one part. */
static void
set_part(ValueType *result, ValueKind kind, Oid part)
{
	result->kind = kind;
	result->parts = palloc(sizeof(ValueType *));
	result->parts[0] = describe_type(part);
}

/* Returns how the bytes of values of a type are found; palloc'd. */
static ValueType *
describe_type(Oid type)
{
	ValueType  *result = palloc0(sizeof(ValueType));
	Oid			element;
	Oid			output;
	bool		is_varlena;

	result->type = getBaseType(type);
	get_typlenbyvalalign(result->type, &result->length, &result->by_value, &result->align);
	element = get_element_type(result->type);
	switch (get_typtype(result->type))
	{
		case TYPTYPE_ENUM:
			result->kind = VALUE_ENUM;
			break;
		case TYPTYPE_COMPOSITE:
			describe_composite(result);
			break;
		case TYPTYPE_RANGE:
			result->cache = lookup_type_cache(result->type, TYPECACHE_RANGE_INFO);
			set_part(result, VALUE_RANGE, result->cache->rngelemtype->type_id);
			break;
		case TYPTYPE_MULTIRANGE:
			result->cache =
				lookup_type_cache(result->type, TYPECACHE_MULTIRANGE_INFO)->rngtype;
			set_part(result, VALUE_MULTIRANGE, result->cache->type_id);
			break;
		default:
			if (OidIsValid(element))
				set_part(result, VALUE_ARRAY, element);
			else
				result->kind = kind_of_base_type(result);
	}
	if (result->kind == VALUE_TEXT)
	{
		getTypeOutputInfo(result->type, &output, &is_varlena);
		fmgr_info(output, &result->output);
	}
	return result;
}

/* ---- what images depend on ---- */

/* to be increased with every change of what rows' bytes are */
#define IMAGE_VERSION	2

/* Orders an enum's values, for qsort. */
static int
compare_enum_values(const void *a, const void *b)
{
	Form_pg_enum x = (Form_pg_enum) GETSTRUCT(*(const HeapTuple *) a);
	Form_pg_enum y = (Form_pg_enum) GETSTRUCT(*(const HeapTuple *) b);

	return x->oid < y->oid ? -1 : x->oid > y->oid;
}

/* Appends the labels of an enum type. */
static void
append_labels(StringInfo text, Oid type)
{
	CatCList   *list = SearchSysCacheList1(ENUMTYPOIDNAME, ObjectIdGetDatum(type));
	HeapTuple  *values = palloc(Max(list->n_members, 1) * sizeof(HeapTuple));

	for (int i = 0; i < list->n_members; i++)
		values[i] = &list->members[i]->tuple;
	qsort(values, list->n_members, sizeof(HeapTuple), compare_enum_values);
	for (int i = 0; i < list->n_members; i++)
	{
		Form_pg_enum value = (Form_pg_enum) GETSTRUCT(values[i]);

		appendStringInfo(text, " %u %s", value->oid, quote_identifier(NameStr(value->enumlabel)));
	}
	ReleaseCatCacheList(list);
}

/*
 * Appends what a type's stored values depend on to become bytes; returns false
 * if that is more than its definition.
 */
static bool
append_type_shape(StringInfo text, const ValueType *type)
{
	bool		fixed = true;

	appendStringInfo(text, " %d %u", (int) type->kind, type->type);
	switch (type->kind)
	{
		case VALUE_ENUM:
			append_labels(text, type->type);
			return true;
		case VALUE_TEXT:
			/* the names of other objects, which may be renamed */
			return type->type >= FirstNormalObjectId || type->type == TSVECTOROID ||
				type->type == TSQUERYOID || type->type == JSONPATHOID;
		case VALUE_ARRAY:
		case VALUE_RANGE:
		case VALUE_MULTIRANGE:
			return append_type_shape(text, type->parts[0]);
		case VALUE_COMPOSITE:
			for (int i = 0; i < type->desc->natts; i++)
			{
				appendStringInfo(text, " %d", i);
				if (type->parts[i] != NULL)
					fixed &= append_type_shape(text, type->parts[i]);
			}
			return fixed;
		default:
			return true;
	}
}

/*
 * Sets what, beside its pages, the hashes of a relation's rows depend on, as a
 * hash; returns false if that cannot be told, as some values are read by the
 * names of other objects.
 */
bool
repl_ml_image_shape(ReplMlImage *image, ReplMlDigest *shape)
{
	StringInfoData text;
	bool		fixed = true;

	initStringInfo(&text);
	appendStringInfo(&text, "%d %s %d %d", IMAGE_VERSION, PG_MAJORVERSION, image->clock_attnum,
					 image->key_count);
	for (int i = 0; i < image->count; i++)
	{
		appendStringInfo(&text, "\n%d %s", image->columns[i].attnum,
						 quote_identifier(image->columns[i].name));
		fixed &= append_type_shape(&text, image->columns[i].type);
	}
	*shape = make_digest(seed, text.data, text.len);
	pfree(text.data);
	return fixed;
}

/* ---- hashes ---- */

/* Turns the bits of a number to the left. */
static inline uint64
rotate(uint64 number, int bits)
{
	return number << bits | number >> (64 - bits);
}

/* Lets all bits of a number have to do with all others. */
static inline uint64
finish(uint64 number)
{
	number = (number ^ number >> 33) * UINT64CONST(0xff51afd7ed558ccd);
	number = (number ^ number >> 33) * UINT64CONST(0xc4ceb9fe1a85ec53);
	return number ^ number >> 33;
}

/* Adds a block of bytes to a hash. */
static inline void
add_block(ReplMlDigest *digest, const char *data)
{
	uint64		block[2];

	memcpy(block, data, BLOCK_SIZE);
	digest->lane[0] ^= rotate(block[0] * UINT64CONST(0x87c37b91114253d5), 31) *
		UINT64CONST(0x4cf5ad432745937f);
	digest->lane[0] = (rotate(digest->lane[0], 27) + digest->lane[1]) * 5 + 0x52dce729;
	digest->lane[1] ^= rotate(block[1] * UINT64CONST(0x4cf5ad432745937f), 33) *
		UINT64CONST(0x87c37b91114253d5);
	digest->lane[1] = (rotate(digest->lane[1], 31) + digest->lane[0]) * 5 + 0x38495ab5;
}

/* Returns the hash of some bytes that follow those with the given hash, or a seed. */
static ReplMlDigest
make_digest(ReplMlDigest digest, const char *data, Size size)
{
	Size		done = 0;

	for (; done + BLOCK_SIZE <= size; done += BLOCK_SIZE)
		add_block(&digest, data + done);
	/* the length tells the rest from one that ends in zeros */
	if (done < size)
	{
		char		rest[BLOCK_SIZE] = {0};

		memcpy(rest, data + done, size - done);
		add_block(&digest, rest);
	}
	digest.lane[0] ^= size;
	digest.lane[1] ^= size;
	digest.lane[0] += digest.lane[1];
	digest.lane[1] += digest.lane[0];
	digest.lane[0] = finish(digest.lane[0]);
	digest.lane[1] = finish(digest.lane[1]);
	digest.lane[0] += digest.lane[1];
	digest.lane[1] += digest.lane[0];
	return digest;
}

/* ---- bytes of a value ---- */

/* Appends bytes as they are. */
static inline void
append(StringInfo bytes, const void *data, Size size)
{
	if (unlikely(size >= (Size) (bytes->maxlen - bytes->len)))
		enlargeStringInfo(bytes, size);
	memcpy(bytes->data + bytes->len, data, size);
	bytes->len += size;
}

/* Appends a byte. */
static inline void
append_byte(StringInfo bytes, char byte)
{
	append(bytes, &byte, 1);
}

/* Appends a number that says how many of something follow, or what follows. */
static inline void
append_count(StringInfo bytes, uint32 count)
{
	append(bytes, &count, sizeof(count));
}

/* Appends bytes with their length, or for many of them their hash. */
static inline void
append_bytes(StringInfo bytes, const char *data, Size size)
{
	ReplMlDigest digest;

	if (size <= LONG_VALUE)
	{
		append_count(bytes, size);
		append(bytes, data, size);
		return;
	}
	digest = make_digest(seed, data, size);
	append_count(bytes, (uint32) size | LENGTH_IS_HASHED);
	append(bytes, &digest, sizeof(digest));
}

/* Appends a value of a fixed length. */
static inline void
append_plain(StringInfo bytes, const ValueType *type, Datum value)
{
	if (type->by_value)
	{
		char		stored[sizeof(Datum)];

		store_att_byval(stored, value, type->length);
		append(bytes, stored, type->length);
	}
	else
		append(bytes, DatumGetPointer(value), type->length);
}

/* Appends floating-point numbers; see the head of this file for what a NaN is. */
static inline void
append_floats(StringInfo bytes, const ValueType *type, Datum value)
{
	char	   *data;

	append_plain(bytes, type, value);
	data = bytes->data + bytes->len - type->length;
	if (type->type == FLOAT4OID)
	{
		uint32		number;

		memcpy(&number, data, sizeof(number));
		number = number == NEGATIVE_NAN_4 ? POSITIVE_NAN_4 : number;
		memcpy(data, &number, sizeof(number));
		return;
	}
	for (int i = 0; i < type->length; i += sizeof(uint64))
	{
		uint64		number;

		memcpy(&number, data + i, sizeof(number));
		number = number == NEGATIVE_NAN_8 ? POSITIVE_NAN_8 : number;
		memcpy(data + i, &number, sizeof(number));
	}
}

/* Appends an integer, whatever its width is. */
static inline void
append_integer(StringInfo bytes, const ValueType *type, Datum value)
{
	int64		number = type->length == 8 ? DatumGetInt64(value) :
		type->length == 4 ? DatumGetInt32(value) : DatumGetInt16(value);

	append(bytes, &number, sizeof(number));
}

/* Appends the label of an enum's value. */
static void
append_enum(StringInfo bytes, Datum value)
{
	HeapTuple	tuple = SearchSysCache1(ENUMOID, value);

	if (!HeapTupleIsValid(tuple))
	{
		/* not one of the type: damage, which has to differ from all labels */
		append_count(bytes, PG_UINT32_MAX);
		append_count(bytes, DatumGetObjectId(value));
		return;
	}
	append_bytes(bytes, NameStr(((Form_pg_enum) GETSTRUCT(tuple))->enumlabel),
				 strlen(NameStr(((Form_pg_enum) GETSTRUCT(tuple))->enumlabel)));
	ReleaseSysCache(tuple);
}

/* Appends an array: its shape, and its elements. */
static void
append_array(StringInfo bytes, const ValueType *type, Datum value)
{
	ArrayType  *array = DatumGetArrayTypeP(value);
	const ValueType *element = type->parts[0];
	Datum	   *values;
	bool	   *nulls;
	int			count;
	int			ndim = ARR_NDIM(array);
	StringInfoData elements;

	append_count(bytes, ndim);
	append(bytes, ARR_DIMS(array), ndim * sizeof(int));
	append(bytes, ARR_LBOUND(array), ndim * sizeof(int));
	deconstruct_array(array, ARR_ELEMTYPE(array), element->length, element->by_value,
					  element->align, &values, &nulls, &count);
	initStringInfo(&elements);
	for (int i = 0; i < count; i++)
	{
		append_byte(&elements, nulls[i] ? 0 : 1);
		if (!nulls[i])
			append_value(&elements, element, values[i]);
	}
	append_bytes(bytes, elements.data, elements.len);
}

/* Appends one bound of a range. */
static void
append_bound(StringInfo bytes, const ValueType *type, const RangeBound *bound)
{
	append_byte(bytes, (bound->infinite ? 1 : 0) | (bound->inclusive ? 2 : 0));
	if (!bound->infinite)
		append_value(bytes, type, bound->val);
}

/* Appends a range. */
static void
append_range(StringInfo bytes, const ValueType *type, Datum value)
{
	RangeBound	lower;
	RangeBound	upper;
	bool		empty;

	range_deserialize(type->cache, DatumGetRangeTypeP(value), &lower, &upper, &empty);
	append_byte(bytes, empty ? 0 : 1);
	if (empty)
		return;
	append_bound(bytes, type->parts[0], &lower);
	append_bound(bytes, type->parts[0], &upper);
}

/* Appends the ranges of a multirange. */
static void
append_multirange(StringInfo bytes, const ValueType *type, Datum value)
{
	RangeType **ranges;
	int32		count;

	multirange_deserialize(type->cache, DatumGetMultirangeTypeP(value), &count, &ranges);
	append_count(bytes, count);
	for (int i = 0; i < count; i++)
		append_range(bytes, type->parts[0], RangeTypePGetDatum(ranges[i]));
}

/* Appends the attributes of a composite value, in their order. */
static void
append_composite(StringInfo bytes, const ValueType *type, Datum value)
{
	HeapTupleHeader header = DatumGetHeapTupleHeader(value);
	HeapTupleData tuple = {.t_len = HeapTupleHeaderGetDatumLength(header),.t_data = header};
	Datum	   *values = palloc(Max(type->desc->natts, 1) * sizeof(Datum));
	bool	   *nulls = palloc(Max(type->desc->natts, 1) * sizeof(bool));

	heap_deform_tuple(&tuple, type->desc, values, nulls);
	for (int i = 0; i < type->desc->natts; i++)
	{
		if (type->parts[i] == NULL)
			continue;
		append_byte(bytes, nulls[i] ? 0 : 1);
		if (!nulls[i])
			append_value(bytes, type->parts[i], values[i]);
	}
}

/* Appends the text form of a value. */
static void
append_text(StringInfo bytes, const ValueType *type, Datum value)
{
	char	   *text = OutputFunctionCall((FmgrInfo *) &type->output, value);

	append_bytes(bytes, text, strlen(text));
}

/* Appends a value that is not null. */
static void
append_value(StringInfo bytes, const ValueType *type, Datum value)
{
	struct varlena *stored;

	switch (type->kind)
	{
		case VALUE_INTEGER:
			append_integer(bytes, type, value);
			break;
		case VALUE_PLAIN:
			append_plain(bytes, type, value);
			break;
		case VALUE_FLOATS:
			append_floats(bytes, type, value);
			break;
		case VALUE_VARLENA:
			stored = PG_DETOAST_DATUM_PACKED(value);
			append_bytes(bytes, VARDATA_ANY(stored), VARSIZE_ANY_EXHDR(stored));
			break;
		case VALUE_TEXT:
			append_text(bytes, type, value);
			break;
		case VALUE_ENUM:
			append_enum(bytes, value);
			break;
		case VALUE_ARRAY:
			append_array(bytes, type, value);
			break;
		case VALUE_RANGE:
			append_range(bytes, type, value);
			break;
		case VALUE_MULTIRANGE:
			append_multirange(bytes, type, value);
			break;
		case VALUE_COMPOSITE:
			append_composite(bytes, type, value);
			break;
	}
}

/* ---- rows ---- */

/*
 * Prepares to hash rows of a relation that stays open.  The caller has fixed
 * the settings that shape values (server/session.c).
 */
ReplMlImage *
repl_ml_image_open(Relation rel)
{
	ReplMlImage *image = palloc0(sizeof(ReplMlImage));
	NamedColumn *columns;

	image->desc = RelationGetDescr(rel);
	image->table = repl_ml_table_get(rel);
	image->clock_attnum = image->table->clock_attnum;
	columns = find_columns(image->table, image->desc, &image->count);
	image->columns = palloc(Max(image->count, 1) * sizeof(ImageColumn));
	for (int i = 0; i < image->count; i++)
		image->columns[i] = (ImageColumn)
	{
		.attnum = columns[i].att->attnum,.name = pstrdup(NameStr(columns[i].att->attname)),
			.type = describe_type(columns[i].att->atttypid)
	};
	image->key_count = repl_ml_image_key_order(image->table, image->desc, image->key_order);
	initStringInfo(&image->bytes);
	image->row_context = AllocSetContextCreate(CurrentMemoryContext, "repl_ml row to hash",
											   ALLOCSET_DEFAULT_SIZES);
	return image;
}

/* Frees what values have needed; the rest goes with the caller's context. */
void
repl_ml_image_close(ReplMlImage *image)
{
	MemoryContextDelete(image->row_context);
}

/* Appends some columns of the row in "slot" to its bytes. */
static void
append_columns(ReplMlImage *image, TupleTableSlot *slot, int from, int to)
{
	MemoryContext old = MemoryContextSwitchTo(image->row_context);

	for (int i = from; i < to; i++)
	{
		const ImageColumn *column = &image->columns[i];
		bool		isnull;
		Datum		value = slot_getattr(slot, column->attnum, &isnull);

		append_byte(&image->bytes, isnull ? 0 : 1);
		if (!isnull)
			append_value(&image->bytes, column->type, value);
	}
	MemoryContextSwitchTo(old);
}

/*
 * Returns the hash of the row's key, which says in which chunk it is on every
 * node; repl_ml_image_row goes on from there.
 */
uint64
repl_ml_image_key(ReplMlImage *image, TupleTableSlot *slot)
{
	MemoryContextReset(image->row_context);
	resetStringInfo(&image->bytes);
	slot_getallattrs(slot);
	append_columns(image, slot, 0, image->key_count);
	image->key = make_digest(seed, image->bytes.data, image->bytes.len);
	return image->key.lane[0];
}

/*
 * Returns the hash of the row whose key has just been hashed: all of it, and
 * its clock if that is asked for.
 */
ReplMlDigest
repl_ml_image_row(ReplMlImage *image, TupleTableSlot *slot, bool with_clock)
{
	resetStringInfo(&image->bytes);
	append_columns(image, slot, image->key_count, image->count);
	if (with_clock)
	{
		bytea	   *clock = repl_ml_image_clock(image, slot);

		append_byte(&image->bytes, clock == NULL ? 0 : 1);
		if (clock != NULL)
			append_bytes(&image->bytes, VARDATA_ANY(clock), VARSIZE_ANY_EXHDR(clock));
	}
	return make_digest(image->key, image->bytes.data, image->bytes.len);
}

/*
 * Returns the clock of the row as it is stored, with its marks, NULL for null.
 * Nobody has looked whether it is whole.  Goes with the next row.
 */
bytea *
repl_ml_image_clock(ReplMlImage *image, TupleTableSlot *slot)
{
	bool		isnull;
	Datum		value = slot_getattr(slot, image->clock_attnum, &isnull);
	MemoryContext old = MemoryContextSwitchTo(image->row_context);
	bytea	   *clock = isnull ? NULL : (bytea *) PG_DETOAST_DATUM_PACKED(value);

	MemoryContextSwitchTo(old);
	return clock;
}

/* Returns the text of the i-th column of the key, by name. */
char *
repl_ml_image_key_text(ReplMlImage *image, TupleTableSlot *slot, int i)
{
	int			place = image->key_order[i];
	bool		isnull;
	Datum		value = slot_getattr(slot, image->table->key_attnums[place], &isnull);

	/* damage, as a key has no nulls; it is in no index either */
	return isnull ? pstrdup("") : OutputFunctionCall(&image->table->key_out[place], value);
}

/* Returns how many columns a row has. */
int
repl_ml_image_columns(ReplMlImage *image)
{
	return image->count;
}

/* Returns the name of a column. */
const char *
repl_ml_image_column_name(ReplMlImage *image, int i)
{
	return image->columns[i].name;
}

/* Returns the hash of one column of a row. */
uint64
repl_ml_image_column(ReplMlImage *image, TupleTableSlot *slot, int i)
{
	MemoryContextReset(image->row_context);
	resetStringInfo(&image->bytes);
	append_columns(image, slot, i, i + 1);
	return make_digest(seed, image->bytes.data, image->bytes.len).lane[0];
}
