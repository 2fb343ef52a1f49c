/*
 * server.c
 *		What the code under test uses of PostgreSQL: memory, lists, slots, errors.
 *
 * Memory is handed out from two areas: one for what a history consists of, one
 * for what a single join leaves behind.  Rows have the columns of node.c.
 * Whatever else the object files refer to is not linked, and not called.
 */
#include "postgres.h"

#include "access/tupdesc.h"
#include "catalog/pg_type.h"
#include "executor/tuptable.h"
#include "utils/lsyscache.h"
#include "utils/typcache.h"

#include "algebra.h"

#define AREA_SIZE		(1024 * 1024)
#define HEADER_SIZE		16

typedef struct Area
{
	Size		used;
	char		bytes[AREA_SIZE] pg_attribute_aligned(16);
} Area;

static Area kept;
static Area passing;

static void *
take(Area *area, Size size)
{
	char	   *result = area->bytes + area->used + HEADER_SIZE;

	area->used += HEADER_SIZE + TYPEALIGN(16, size);
	if (area->used > AREA_SIZE)
		algebra_give_up("out of memory");
	*(Size *) (result - HEADER_SIZE) = size;
	return result;
}

/* Memory until algebra_forget_kept. */
void *
algebra_keep(Size size)
{
	return take(&kept, size);
}

void
algebra_forget_kept(void)
{
	kept.used = 0;
}

/* Frees what was palloc'd. */
void
algebra_free_all(void)
{
	passing.used = 0;
}

void *
palloc(Size size)
{
	return take(&passing, size);
}

void *
palloc0(Size size)
{
	return memset(palloc(size), 0, size);
}

void *
repalloc(void *pointer, Size size)
{
	return memcpy(palloc(size), pointer, Min(size, *(Size *) ((char *) pointer - HEADER_SIZE)));
}

void
pfree(void *pointer)
{
}

/* Lists, which only grow. */

List *
lappend(List *list, void *datum)
{
	if (list == NIL)
	{
		list = palloc0(sizeof(List));
		list->type = T_List;
	}
	if (list->length == list->max_length)
	{
		list->max_length = Max(4, 2 * list->max_length);
		list->elements = list->elements == NULL ? palloc(list->max_length * sizeof(ListCell)) :
			repalloc(list->elements, list->max_length * sizeof(ListCell));
	}
	list->elements[list->length++].ptr_value = datum;
	return list;
}

List *
list_concat(List *list1, const List *list2)
{
	for (int i = 0; list2 != NIL && i < list2->length; i++)
		list1 = lappend(list1, list2->elements[i].ptr_value);
	return list1;
}

/* Slots: virtual ones, always with all values. */

static void
clear_slot(TupleTableSlot *slot)
{
}

static const TupleTableSlotOps slot_ops = {.clear = clear_slot};

static void
set_attribute(TupleDesc desc, int i, const char *name, Oid type)
{
	Form_pg_attribute att = TupleDescAttr(desc, i);

	att->attnum = i + 1;
	att->atttypid = type;
	memcpy(NameStr(att->attname), name, strlen(name));
}

static TupleDesc
row_desc(void)
{
	/* more than any server version needs */
	static char room[sizeof(struct TupleDescData) + 4 * (sizeof(FormData_pg_attribute) + 64)] pg_attribute_aligned(16);
	TupleDesc	desc = (TupleDesc) room;

	if (desc->natts == 0)
	{
		desc->natts = 4;
		set_attribute(desc, 0, "id", INT4OID);
		set_attribute(desc, 1, "event", INT4OID);
		set_attribute(desc, 2, "rank", INT4OID);
		set_attribute(desc, 3, REPL_ML_CLOCK_COLUMN, BYTEAOID);
	}
	return desc;
}

TupleTableSlot *
algebra_make_slot(bool keep)
{
	TupleDesc	desc = row_desc();
	TupleTableSlot *slot = take(keep ? &kept : &passing, sizeof(TupleTableSlot));

	memset(slot, 0, sizeof(TupleTableSlot));
	*(const TupleTableSlotOps **) &slot->tts_ops = &slot_ops;
	slot->tts_tupleDescriptor = desc;
	slot->tts_nvalid = desc->natts;
	slot->tts_values = take(keep ? &kept : &passing, desc->natts * sizeof(Datum));
	slot->tts_isnull = take(keep ? &kept : &passing, desc->natts * sizeof(bool));
	return ExecStoreAllNullTuple(slot);
}

TupleTableSlot *
ExecStoreVirtualTuple(TupleTableSlot *slot)
{
	return slot;
}

TupleTableSlot *
ExecStoreAllNullTuple(TupleTableSlot *slot)
{
	memset(slot->tts_values, 0, slot->tts_tupleDescriptor->natts * sizeof(Datum));
	memset(slot->tts_isnull, true, slot->tts_tupleDescriptor->natts * sizeof(bool));
	return slot;
}

/* Columns and types: there are integers. */

AttrNumber
get_attnum(Oid relid, const char *attname)
{
	TupleDesc	desc = row_desc();

	for (int i = 0; i < desc->natts; i++)
	{
		if (strcmp(NameStr(TupleDescAttr(desc, i)->attname), attname) == 0)
			return i + 1;
	}
	return InvalidAttrNumber;
}

TypeCacheEntry *
lookup_type_cache(Oid type_id, int flags)
{
	static TypeCacheEntry entry = {.cmp_proc_finfo.fn_oid = 1};

	return &entry;
}

Datum
FunctionCall2Coll(FmgrInfo *flinfo, Oid collation, Datum arg1, Datum arg2)
{
	return Int32GetDatum(DatumGetInt32(arg1) - DatumGetInt32(arg2));
}

struct varlena *
pg_detoast_datum_packed(struct varlena *datum)
{
	return datum;
}

/* Errors: none is expected. */

static char message[1000];

bool
errstart(int elevel, const char *domain)
{
	return elevel >= ERROR;
}

bool
errstart_cold(int elevel, const char *domain)
{
	return errstart(elevel, domain);
}

int
errcode(int sqlerrcode)
{
	return 0;
}

int
errmsg(const char *fmt,...)
{
	va_list		args;

	va_start(args, fmt);
	vsnprintf(message, sizeof(message), fmt, args);
	va_end(args);
	return 0;
}

int
errmsg_internal(const char *fmt,...)
{
	va_list		args;

	va_start(args, fmt);
	vsnprintf(message, sizeof(message), fmt, args);
	va_end(args);
	return 0;
}

int
errdetail(const char *fmt,...)
{
	return 0;
}

int
errhint(const char *fmt,...)
{
	return 0;
}

void
errfinish(const char *filename, int lineno, const char *funcname)
{
	algebra_give_up(message);
}
