/*
 * key.c
 *		The primary key of a row: as datums, as text every node reads alike,
 *		as a hash.
 *
 * A key travels between nodes as an array of the columns' text forms under
 * fixed settings.  Its hash and its equality are those of the columns' types,
 * so that values which are equal without being identical (numeric 1.0 and
 * 1.00) are one key.  Key datums are arrays of key_natts values, never NULL.
 *
 * Not here: which columns a key has, and had (table.c, shape.c).  Called by
 * whoever writes or joins a row.  No locks; results are palloc'd.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/stratnum.h"
#include "catalog/pg_type.h"
#include "common/hashfn.h"
#include "executor/tuptable.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"

#include "compat.h"
#include "row/row.h"
#include "server/server.h"

#define SAME_KEY_HINT	"Make the primary key of the table the same on all nodes."

/*
 * Raises the error of a row without a key, as a peer sends whose key has other
 * columns.
 */
static void
refuse_null(ReplMlTable *table, int i, TupleDesc desc)
{
	ereport(ERROR,
			(errcode(ERRCODE_NOT_NULL_VIOLATION),
			 errmsg("null value in key column \"%s\" of table \"%s.%s\"",
					NameStr(TupleDescAttr(desc, table->key_attnums[i] - 1)->attname),
					NameStr(table->schema_name), NameStr(table->table_name)),
			 errhint(SAME_KEY_HINT)));
}

/* Sets the key's datums in "tuple"; they point into it. */
void
repl_ml_key_from_tuple(ReplMlTable *table, HeapTuple tuple, TupleDesc desc, Datum *key)
{
	bool		isnull;

	for (int i = 0; i < table->key_natts; i++)
	{
		key[i] = heap_getattr(tuple, table->key_attnums[i], desc, &isnull);
		if (isnull)
			refuse_null(table, i, desc);
	}
}

/* Sets the key's datums in "slot"; they are valid as long as the slot's. */
void
repl_ml_key_from_slot(ReplMlTable *table, TupleTableSlot *slot, Datum *key)
{
	bool		isnull;

	for (int i = 0; i < table->key_natts; i++)
	{
		key[i] = slot_getattr(slot, table->key_attnums[i], &isnull);
		if (isnull)
			refuse_null(table, i, slot->tts_tupleDescriptor);
	}
}

/*
 * Returns a hash that equal keys of one table share; columns whose type has
 * none add nothing to it.
 */
uint64
repl_ml_key_hash(ReplMlTable *table, Datum *key)
{
	uint64		hash = table->root;

	for (int i = 0; i < table->key_natts; i++)
	{
		if (OidIsValid(table->key_hash[i].fn_oid))
			hash = hash_combine64(hash,
								  DatumGetUInt64(FunctionCall2Coll(&table->key_hash[i],
																   table->key_collations[i],
																   key[i], UInt64GetDatum(0))));
	}
	return hash;
}

/* Says whether two keys name the same row. */
bool
repl_ml_key_equal(ReplMlTable *table, Datum *a, Datum *b)
{
	for (int i = 0; i < table->key_natts; i++)
	{
		if (!DatumGetBool(FunctionCall2Coll(&table->key_eq[i], table->key_collations[i], a[i],
											b[i])))
			return false;
	}
	return true;
}

/*
 * Sets the keys of a scan of a primary key's index for rows that are equal, but
 * for what they are to be equal to: the caller's.
 */
void
repl_ml_key_scan(Relation index, int natts, ScanKey keys)
{
	for (int i = 0; i < natts; i++)
	{
		Oid			equal = get_opfamily_member(index->rd_opfamily[i], index->rd_opcintype[i],
												index->rd_opcintype[i], BTEqualStrategyNumber);

		ScanKeyEntryInitialize(&keys[i], 0, i + 1, BTEqualStrategyNumber, InvalidOid,
							   index->rd_indcollation[i], get_opcode(equal), (Datum) 0);
	}
}

/*
 * Returns a key column's text form.  A bytea's is hex whatever bytea_output
 * says: setting that for each row would cost more than the deletion itself.
 */
static Datum
print_column(ReplMlTable *table, int i, Datum value)
{
	struct varlena *bytes;
	text	   *hex;
	Size		length;

	if (table->key_types[i] != BYTEAOID)
		return CStringGetTextDatum(OutputFunctionCall(&table->key_out[i], value));
	bytes = PG_DETOAST_DATUM_PACKED(value);
	length = VARHDRSZ + 2 + 2 * VARSIZE_ANY_EXHDR(bytes);
	hex = palloc(length);
	SET_VARSIZE(hex, length);
	memcpy(VARDATA(hex), "\\x", 2);
	hex_encode(VARDATA_ANY(bytes), VARSIZE_ANY_EXHDR(bytes), VARDATA(hex) + 2);
	return PointerGetDatum(hex);
}

/* Returns the key as text[], the same on every node. */
Datum
repl_ml_key_to_array(ReplMlTable *table, Datum *key)
{
	Datum		texts[INDEX_MAX_KEYS];
	int			level = table->key_plain ? 0 : repl_ml_session_fix_values();

	for (int i = 0; i < table->key_natts; i++)
		texts[i] = print_column(table, i, key[i]);
	repl_ml_session_restore(level);
	return PointerGetDatum(construct_array(texts, table->key_natts, TEXTOID, -1, false,
										   TYPALIGN_INT));
}

/*
 * Sets the datums of a key that came as text[]; raises an error if it is not
 * one of this table.
 */
void
repl_ml_key_from_array(ReplMlTable *table, Datum array, Datum *key)
{
	Datum	   *texts;
	bool	   *nulls;
	int			count;
	int			level;

	deconstruct_array(DatumGetArrayTypeP(array), TEXTOID, -1, false, TYPALIGN_INT,
					  &texts, &nulls, &count);
	if (count != table->key_natts)
		ereport(ERROR,
				(errcode(ERRCODE_PROTOCOL_VIOLATION),
				 errmsg("a deleted row of table \"%s.%s\" has %d key columns instead of %d",
						NameStr(table->schema_name), NameStr(table->table_name),
						count, table->key_natts),
				 errhint(SAME_KEY_HINT)));

	/* under the settings they were written with */
	level = table->key_plain ? 0 : repl_ml_session_fix_values();
	for (int i = 0; i < count; i++)
	{
		if (nulls[i])
			ereport(ERROR,
					(errcode(ERRCODE_PROTOCOL_VIOLATION),
					 errmsg("a deleted row of table \"%s.%s\" has a null key column",
							NameStr(table->schema_name), NameStr(table->table_name)),
					 errhint(SAME_KEY_HINT)));
		key[i] = InputFunctionCall(&table->key_in[i], TextDatumGetCString(texts[i]),
								   table->key_ioparams[i], table->key_typmods[i]);
	}
	repl_ml_session_restore(level);
}
