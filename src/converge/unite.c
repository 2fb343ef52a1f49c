/*
 * unite.c
 *		Sets become one set, and JSON objects one object: the merge rules set_union
 *		and jsonb_merge.
 *
 * Functions of values, in the order of the versions they are of; so that every
 * node makes the same of them, whatever has arrived first.  No locks.
 *
 * Not here: which column follows which rule (merge.c).
 */
#include "postgres.h"

#include "catalog/pg_collation.h"
#include "catalog/pg_type.h"
#include "miscadmin.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/jsonb.h"
#include "utils/lsyscache.h"
#include "utils/typcache.h"

#include "compat.h"
#include "converge/converge.h"

/* An element of a set while sets are united. */
typedef struct Element
{
	Datum		value;
	bool		isnull;
	int			place;
} Element;

typedef struct ElementOrder
{
	FmgrInfo   *function;
	Oid			collation;
} ElementOrder;

static void append_jsonb(Element **elements, int *count, Datum value);
static void append_array(Element **elements, int *count, Oid element_type, Datum value);
static int	remove_repeated(Element *elements, int count, Oid element_type);
static int	compare_elements(const void *a, const void *b, void *argument);
static int	compare_places(const void *a, const void *b);
static bool same_element(const Element *a, const Element *b, TypeCacheEntry *type);
static Datum build_jsonb(const Element *elements, int count);
static Datum build_array(const Element *elements, int count, Oid element_type);
static JsonbValue *push_merged(JsonbParseState **state, JsonbContainer *first,
							   JsonbContainer *second);
static JsonbValue *find_key(JsonbContainer *object, const JsonbValue *key);
static bool is_object(const JsonbValue *value);

/*
 * Called by merge.c for the rule set_union: returns the values' elements, each
 * once, in the order of the values; null if all of them are.
 */
Datum
repl_ml_unite_sets(Oid type, const Datum *values, const bool *nulls, int number, bool *isnull)
{
	Oid			base = getBaseType(type);
	Oid			element_type = base == JSONBOID ? JSONBOID : get_element_type(base);
	Element    *elements = palloc(sizeof(Element));
	int			count = 0;
	Datum		result;

	*isnull = true;
	for (int i = 0; i < number; i++)
	{
		if (nulls[i])
			continue;
		*isnull = false;
		if (base == JSONBOID)
			append_jsonb(&elements, &count, values[i]);
		else
			append_array(&elements, &count, element_type, values[i]);
	}
	if (*isnull)
		return (Datum) 0;
	count = remove_repeated(elements, count, element_type);
	result = base == JSONBOID ? build_jsonb(elements, count) :
		build_array(elements, count, element_type);

	/* the domain's own checks have not seen this value */
	if (base != type)
		domain_check(result, false, type, NULL, NULL);
	return result;
}

/*
 * Appends a jsonb array's elements; an object or a scalar counts as an array
 * of it.
 */
static void
append_jsonb(Element **elements, int *count, Datum value)
{
	Jsonb	   *jsonb = DatumGetJsonbP(value);
	JsonbIterator *iterator;
	JsonbIteratorToken token;
	JsonbValue	element;
	int			more = JB_ROOT_IS_ARRAY(jsonb) ? JB_ROOT_COUNT(jsonb) : 1;

	*elements = repalloc(*elements, (*count + more + 1) * sizeof(Element));
	if (JB_ROOT_IS_OBJECT(jsonb))
	{
		(*elements)[*count] = (Element) {.value = JsonbPGetDatum(jsonb),.place = *count};
		(*count)++;
		return;
	}

	/* a scalar is stored as an array with one element */
	iterator = JsonbIteratorInit(&jsonb->root);
	while ((token = JsonbIteratorNext(&iterator, &element, true)) != WJB_DONE)
	{
		if (token != WJB_ELEM)
			continue;
		(*elements)[*count] = (Element) {.value = JsonbPGetDatum(JsonbValueToJsonb(&element)),
		.place = *count};
		(*count)++;
	}
}

/* Appends an array's elements. */
static void
append_array(Element **elements, int *count, Oid element_type, Datum value)
{
	int16		length;
	bool		by_value;
	char		align;
	Datum	   *values;
	bool	   *nulls;
	int			more;

	get_typlenbyvalalign(element_type, &length, &by_value, &align);
	deconstruct_array(DatumGetArrayTypeP(value), element_type, length, by_value, align, &values,
					  &nulls, &more);
	*elements = repalloc(*elements, (*count + more + 1) * sizeof(Element));
	for (int i = 0; i < more; i++, (*count)++)
		(*elements)[*count] = (Element) {.value = values[i],.isnull = nulls[i],.place = *count};
}

/*
 * Removes all but the first of equal elements, keeps the order, and returns
 * how many are left.
 */
static int
remove_repeated(Element *elements, int count, Oid element_type)
{
	TypeCacheEntry *type = lookup_type_cache(element_type,
											 TYPECACHE_EQ_OPR_FINFO | TYPECACHE_CMP_PROC_FINFO);
	bool		sorted = OidIsValid(type->cmp_proc_finfo.fn_oid);
	ElementOrder order = {&type->cmp_proc_finfo, C_COLLATION_OID};
	int			left = 0;

	if (sorted)
		qsort_arg(elements, count, sizeof(Element), compare_elements, &order);
	for (int i = 0; i < count; i++)
	{
		bool		repeated = false;

		/* without an order, each must be compared with all before it */
		for (int j = left - 1; j >= 0 && !repeated; j = sorted ? -1 : j - 1)
			repeated = same_element(&elements[j], &elements[i], type);
		if (!repeated)
			elements[left++] = elements[i];
	}
	qsort(elements, left, sizeof(Element), compare_places);
	return left;
}

/*
 * Orders elements, for qsort_arg, by value and equal ones by their places, so
 * that the first one is first.
 */
static int
compare_elements(const void *a, const void *b, void *argument)
{
	const Element *x = a;
	const Element *y = b;
	const ElementOrder *order = argument;
	int			result = (int) x->isnull - (int) y->isnull;

	if (result == 0 && !x->isnull)
		result = DatumGetInt32(FunctionCall2Coll(order->function, order->collation, x->value,
												 y->value));
	return result != 0 ? result : x->place - y->place;
}

/* Orders elements, for qsort, as they stood in the versions. */
static int
compare_places(const void *a, const void *b)
{
	return ((const Element *) a)->place - ((const Element *) b)->place;
}

/*
 * Says whether two elements are equal as their type sees it; NULL is equal to
 * NULL.
 */
static bool
same_element(const Element *a, const Element *b, TypeCacheEntry *type)
{
	if (a->isnull || b->isnull)
		return a->isnull && b->isnull;
	return DatumGetBool(FunctionCall2Coll(&type->eq_opr_finfo, C_COLLATION_OID, a->value,
										  b->value));
}

/* Returns a jsonb array of the elements. */
static Datum
build_jsonb(const Element *elements, int count)
{
	JsonbParseState *state = NULL;

	pushJsonbValue(&state, WJB_BEGIN_ARRAY, NULL);
	for (int i = 0; i < count; i++)
	{
		Jsonb	   *jsonb = DatumGetJsonbP(elements[i].value);
		JsonbValue	element;

		if (!JB_ROOT_IS_SCALAR(jsonb) || !JsonbExtractScalar(&jsonb->root, &element))
		{
			element.type = jbvBinary;
			element.val.binary.data = &jsonb->root;
			element.val.binary.len = VARSIZE_ANY_EXHDR(jsonb);
		}
		pushJsonbValue(&state, WJB_ELEM, &element);
	}
	return JsonbPGetDatum(JsonbValueToJsonb(pushJsonbValue(&state, WJB_END_ARRAY, NULL)));
}

/* Returns an array of the elements. */
static Datum
build_array(const Element *elements, int count, Oid element_type)
{
	Datum	   *values = palloc(Max(count, 1) * sizeof(Datum));
	bool	   *nulls = palloc(Max(count, 1) * sizeof(bool));
	int			lower = 1;
	int16		length;
	bool		by_value;
	char		align;

	if (count == 0)
		return PointerGetDatum(construct_empty_array(element_type));
	for (int i = 0; i < count; i++)
	{
		values[i] = elements[i].value;
		nulls[i] = elements[i].isnull;
	}
	get_typlenbyvalalign(element_type, &length, &by_value, &align);
	return PointerGetDatum(construct_md_array(values, nulls, 1, &count, &lower, element_type,
											  length, by_value, align));
}

/*
 * Called by merge.c for the rule jsonb_merge: returns the one object that all
 * become, key by key, in the order of the values; what is none gives way to the
 * next.  Null if all are.
 */
Datum
repl_ml_unite_objects(Oid type, const Datum *values, const bool *nulls, int number, bool *isnull)
{
	Jsonb	   *result = NULL;

	for (int i = 0; i < number; i++)
	{
		JsonbParseState *state = NULL;
		Jsonb	   *next;

		if (nulls[i])
			continue;
		next = DatumGetJsonbP(values[i]);
		if (result != NULL && JB_ROOT_IS_OBJECT(result) && JB_ROOT_IS_OBJECT(next))
			next = JsonbValueToJsonb(push_merged(&state, &result->root, &next->root));
		result = next;
	}
	*isnull = result == NULL;
	if (result == NULL)
		return (Datum) 0;

	/* the domain's own checks have not seen this value */
	if (type != JSONBOID)
		domain_check(JsonbPGetDatum(result), false, type, NULL, NULL);
	return JsonbPGetDatum(result);
}

/*
 * Pushes an object that has the keys of both: objects in both are merged, else
 * the second one's value counts.
 */
static JsonbValue *
push_merged(JsonbParseState **state, JsonbContainer *first, JsonbContainer *second)
{
	JsonbContainer *sources[2] = {first, second};

	check_stack_depth();
	pushJsonbValue(state, WJB_BEGIN_OBJECT, NULL);
	for (int i = 0; i < 2; i++)
	{
		JsonbIterator *iterator = JsonbIteratorInit(sources[i]);
		JsonbIteratorToken token;
		JsonbValue	key;
		JsonbValue	value;

		while ((token = JsonbIteratorNext(&iterator, &key, true)) != WJB_DONE)
		{
			JsonbValue *other;

			if (token != WJB_KEY)
				continue;
			(void) JsonbIteratorNext(&iterator, &value, true);
			other = find_key(sources[1 - i], &key);
			if (other != NULL && i == 0)
				continue;		/* the second has it as well */
			pushJsonbValue(state, WJB_KEY, &key);
			if (is_object(other) && is_object(&value))
				push_merged(state, other->val.binary.data, value.val.binary.data);
			else
				pushJsonbValue(state, WJB_VALUE, &value);
		}
	}
	return pushJsonbValue(state, WJB_END_OBJECT, NULL);
}

/* Returns the value of an object's key; NULL if it has none. */
static JsonbValue *
find_key(JsonbContainer *object, const JsonbValue *key)
{
	return getKeyJsonValueFromContainer(object, key->val.string.val, key->val.string.len, NULL);
}

/* Says whether a value of a jsonb object is an object itself. */
static bool
is_object(const JsonbValue *value)
{
	return value != NULL && value->type == jbvBinary &&
		JsonContainerIsObject(value->val.binary.data);
}
