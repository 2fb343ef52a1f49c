/*
 * history.c
 *		One row a resolved conflict: what won, what was lost.
 *
 * The id is a hash of the table, the key and the losing write, so that every
 * node records a conflict under the same id, and redelivery records it once.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "catalog/pg_type.h"
#include "executor/executor.h"
#include "executor/spi.h"
#include "funcapi.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/datum.h"
#include "utils/json.h"
#include "utils/pg_lsn.h"

#include "apply/apply.h"
#include "compat.h"
#include "group/query.h"

static const char *conflict_type(const ReplMlClock *a, const ReplMlClock *b, bool both_live);
static char *row_as_json(ReplMlTarget *target, TupleTableSlot *slot);
static List *differing_columns(ReplMlTarget *target, TupleTableSlot *a, TupleTableSlot *b);

/*
 * Describes a conflict between two versions, of which either slot may be NULL
 * for a deletion.  Runs with the owner's rights: it calls the output functions
 * of his types.
 */
ReplMlConflict *
repl_ml_history_describe(ReplMlTarget *target, Datum *key,
						 TupleTableSlot *here, const ReplMlClock *here_clock,
						 TupleTableSlot *arriving, const ReplMlClock *arriving_clock,
						 bool arriving_wins)
{
	ReplMlConflict *conflict = palloc0(sizeof(ReplMlConflict));
	TupleTableSlot *winner = arriving_wins ? arriving : here;
	TupleTableSlot *loser = arriving_wins ? here : arriving;

	conflict->schema_name = target->table->schema_name;
	conflict->table_name = target->table->table_name;
	conflict->key = repl_ml_key_to_array(target->table, key);
	conflict->type = conflict_type(here_clock, arriving_clock, here != NULL && arriving != NULL);
	conflict->winner_clock = arriving_wins ? arriving_clock : here_clock;
	conflict->loser_clock = arriving_wins ? here_clock : arriving_clock;
	conflict->winner_row = row_as_json(target, winner);
	conflict->loser_row = row_as_json(target, loser);
	if (winner != NULL && loser != NULL)
		conflict->lost_columns = differing_columns(target, winner, loser);

	/* the clocks may point into a row that is about to change */
	conflict->winner_clock = repl_ml_clock_merge(conflict->winner_clock, conflict->winner_clock);
	conflict->loser_clock = repl_ml_clock_merge(conflict->loser_clock, conflict->loser_clock);
	return conflict;
}

/* Two rows without a common past were both inserted. */
static const char *
conflict_type(const ReplMlClock *a, const ReplMlClock *b, bool both_live)
{
	if (!both_live)
		return "update_delete";
	for (int i = 0; i < repl_ml_clock_count(a); i++)
	{
		if (repl_ml_clock_counter(b, repl_ml_clock_entry(a, i).node) != 0)
			return "update_update";
	}
	return "insert_insert";
}

/* Does the column tell versions apart for users: neither the clock nor computed? */
static bool
is_content(ReplMlTarget *target, Form_pg_attribute att)
{
	return !att->attisdropped && att->attgenerated == '\0' && att->attnum != target->table->clock_attnum;
}

/* The row's content as a JSON object, NULL for no row. */
static char *
row_as_json(ReplMlTarget *target, TupleTableSlot *slot)
{
	TupleDesc	desc = RelationGetDescr(target->rel);
	TupleDesc	content;
	Datum	   *values;
	bool	   *nulls;
	int			count = 0;

	if (slot == NULL)
		return NULL;
	for (int i = 0; i < desc->natts; i++)
		count += is_content(target, TupleDescAttr(desc, i));
	content = CreateTemplateTupleDesc(count);
	values = palloc(count * sizeof(Datum));
	nulls = palloc(count * sizeof(bool));
	count = 0;
	for (int i = 0; i < desc->natts; i++)
	{
		if (!is_content(target, TupleDescAttr(desc, i)))
			continue;
		TupleDescCopyEntry(content, count + 1, desc, i + 1);
		values[count] = slot_getattr(slot, i + 1, &nulls[count]);
		count++;
	}
	content = BlessTupleDesc(content);
	return TextDatumGetCString(DirectFunctionCall1(row_to_json,
												   HeapTupleGetDatum(heap_form_tuple(content, values, nulls))));
}

static List *
differing_columns(ReplMlTarget *target, TupleTableSlot *a, TupleTableSlot *b)
{
	TupleDesc	desc = RelationGetDescr(target->rel);
	List	   *names = NIL;

	for (int i = 0; i < desc->natts; i++)
	{
		Form_pg_attribute att = TupleDescAttr(desc, i);
		bool		a_null;
		bool		b_null;
		Datum		a_value;
		Datum		b_value;

		if (!is_content(target, att))
			continue;
		a_value = slot_getattr(a, i + 1, &a_null);
		b_value = slot_getattr(b, i + 1, &b_null);
		if (a_null != b_null ||
			(!a_null && !datum_image_eq(a_value, b_value, att->attbyval, att->attlen)))
			names = lappend(names, pstrdup(NameStr(att->attname)));
	}
	return names;
}

static Datum
name_array(List *names)
{
	Datum	   *datums = palloc(Max(list_length(names), 1) * sizeof(Datum));
	int			count = 0;
	ListCell   *lc;

	foreach(lc, names)
	{
		NameData   *name = palloc(sizeof(NameData));

		namestrcpy(name, lfirst(lc));
		datums[count++] = NameGetDatum(name);
	}
	return PointerGetDatum(construct_array(datums, count, NAMEOID, NAMEDATALEN, false, TYPALIGN_CHAR));
}

/* Writes the conflict into repl_ml.conflict_history, unless it is there. */
void
repl_ml_history_record(const ReplMlConflict *conflict, const ReplMlSource *source)
{
	static const char *const sql =
		"INSERT INTO repl_ml.conflict_history (conflict_id, schema_name, table_name, key, conflict_type, resolver,"
		" winner_node, loser_node, winner_clock, loser_clock, winner_row, loser_row, lost_columns,"
		" origin_node, origin_xid, origin_lsn) "
		"SELECT pg_catalog.encode(pg_catalog.substr(pg_catalog.sha256(pg_catalog.convert_to("
		"  pg_catalog.format('%L %L %L %s %s', $1, $2, $3, repl_ml.last_writer($6), repl_ml.max_counter($6)), 'UTF8')), 1, 16), 'hex')::pg_catalog.uuid,"
		" $1, $2, $3, $4, 'last_write', repl_ml.last_writer($5), repl_ml.last_writer($6), $5, $6,"
		" $7::pg_catalog.json, $8::pg_catalog.json, $9,"
		" $10, $11, $12 ON CONFLICT (conflict_id) DO NOTHING";
	Oid			clock_type = repl_ml_clock_type();
	Oid			types[12] = {NAMEOID, NAMEOID, TEXTARRAYOID, TEXTOID, clock_type, clock_type,
	TEXTOID, TEXTOID, NAMEARRAYOID, INT4OID, XIDOID, PG_LSNOID};
	Datum		values[12];
	char		nulls[13] = "            ";

	values[0] = NameGetDatum(&conflict->schema_name);
	values[1] = NameGetDatum(&conflict->table_name);
	values[2] = conflict->key;
	values[3] = CStringGetTextDatum(conflict->type);
	values[4] = PointerGetDatum(conflict->winner_clock);
	values[5] = PointerGetDatum(conflict->loser_clock);
	values[6] = conflict->winner_row ? CStringGetTextDatum(conflict->winner_row) : (Datum) 0;
	values[7] = conflict->loser_row ? CStringGetTextDatum(conflict->loser_row) : (Datum) 0;
	values[8] = name_array(conflict->lost_columns);
	values[9] = Int32GetDatum(source->node);
	values[10] = TransactionIdGetDatum(source->xid);
	values[11] = LSNGetDatum(source->lsn);
	if (conflict->winner_row == NULL)
		nulls[6] = 'n';
	if (conflict->loser_row == NULL)
		nulls[7] = 'n';
	repl_ml_spi_execute(sql, 12, types, values, nulls);
}
