/*
 * absent.c
 *		What the objects under test refer to in functions that the tester does
 *		not call.  No header is included, so that the types need not be right.
 */
#include <stdio.h>
#include <stdlib.h>

#define ABSENT(name) \
	void name(void); \
	void \
	name(void) \
	{ \
		printf("%s was called: it belongs into test/algebra/server.c or node.c\n", #name); \
		exit(1); \
	}

/* resolve.c: the resolver "function" */
ABSENT(CreateTupleDescCopyConstr)
ABSENT(DatumGetHeapTupleHeader)
ABSENT(LookupFuncName)
ABSENT(MakeTupleTableSlot)
ABSENT(RelationClose)
ABSENT(RelationIdGetRelation)
ABSENT(TTSOpsVirtual)
ABSENT(appendStringInfo)
ABSENT(appendStringInfoChar)
ABSENT(appendStringInfoString)
ABSENT(convert_tuples_by_name)
ABSENT(datum_image_eq)
ABSENT(execute_attr_map_tuple)
ABSENT(fmgr_info)
ABSENT(format_type_be)
ABSENT(get_func_prokind)
ABSENT(get_func_retset)
ABSENT(get_func_rettype)
ABSENT(heap_copy_tuple_as_datum)
ABSENT(heap_deform_tuple)
ABSENT(heap_form_tuple)
ABSENT(initStringInfo)
ABSENT(pg_detoast_datum)
ABSENT(psprintf)
ABSENT(pstrdup)
ABSENT(slot_getsomeattrs_int)
ABSENT(stringToQualifiedNameList)
ABSENT(repl_ml_clock_type)
ABSENT(repl_ml_key_equal)

/* resolve.c: columns with merge rules */
ABSENT(repl_ml_merge_columns)

/* row.c: rows that collide on another unique key */
ABSENT(repl_ml_unique_evict)

/* row.c: equal versions are counted for a worker only */
ABSENT(repl_ml_history_is_equal)
ABSENT(repl_ml_history_is_insert)

/* row.c: a key that has become another, and parked changes */
ABSENT(InputFunctionCall)
ABSENT(repl_ml_shape_is)
ABSENT(repl_ml_tombstone_find_former)
