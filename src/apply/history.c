/*
 * history.c
 *		One row a resolved conflict: what won, what was lost.
 *
 * The id is a hash of the table, the key and the losing write, so that every
 * node records a conflict under the same id, and redelivery records it once.
 *
 * A conflict is one of what a transaction leaves behind.  The stream brings
 * every version it wrote, among them the one a row has before the trigger at
 * the statement's end lifts it above the key's tombstones (origin/stamp.c).
 * So what was recorded for a version is taken back when a later one of the
 * same transaction shows that there was no conflict, or has one of its own.
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
#include "utils/hsearch.h"
#include "utils/json.h"
#include "utils/memutils.h"
#include "utils/pg_lsn.h"

#include "apply/apply.h"
#include "compat.h"
#include "group/query.h"

/* the id of a conflict: arguments are those of the INSERT and the DELETE below */
#define CONFLICT_ID(schema_name, table_name, key, loser_clock) \
	"pg_catalog.encode(pg_catalog.substr(pg_catalog.sha256(pg_catalog.convert_to(" \
	"  pg_catalog.format('%L %L %L %s %s', " schema_name ", " table_name ", " key ", repl_ml.last_writer(" loser_clock ")," \
	" repl_ml.max_counter(" loser_clock ")), 'UTF8')), 1, 16), 'hex')::pg_catalog.uuid"

/* The last conflict recorded for a key by the transaction being applied. */
struct ReplMlRecordedConflict
{
	uint64		key_hash;		/* hash key; holds the table's OID too */
	Datum		key;			/* text[] */
	bool		arriving_lost;	/* the transaction's own version is the loser */
	ReplMlClock *loser_clock;
};

/* of the transaction recorded_for; written by remember and forget_others */
static HTAB *recorded = NULL;
static MemoryContext recorded_context = NULL;
static ReplMlSource recorded_for;

static bool same_source(const ReplMlSource *a, const ReplMlSource *b);
static void remember(const ReplMlConflict *conflict, const ReplMlSource *source);
static void forget_others(const ReplMlSource *source);
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
	conflict->key_hash = repl_ml_key_hash(target->table, key);
	conflict->arriving_lost = !arriving_wins;
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
		"SELECT " CONFLICT_ID("$1", "$2", "$3", "$6") ","
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
	if (repl_ml_spi_execute(sql, 12, types, values, nulls) > 0)
		remember(conflict, source);
}

/*
 * The conflict recorded for an earlier version of this key by the same
 * transaction that the version with "clock" makes void, or NULL.  Runs with
 * the owner's rights: it calls the functions of his types.
 */
ReplMlRecordedConflict *
repl_ml_history_find_void(ReplMlTable *table, Datum *key, const ReplMlClock *clock, const ReplMlSource *source)
{
	ReplMlRecordedConflict *found;
	uint64		hash;

	if (recorded == NULL || !same_source(&recorded_for, source))
		return NULL;
	hash = repl_ml_key_hash(table, key);
	found = hash_search(recorded, &hash, HASH_FIND, NULL);
	if (found == NULL ||
		!datum_image_eq(found->key, repl_ml_key_to_array(table, key), false, -1))
		return NULL;
	if (!found->arriving_lost && !repl_ml_clock_covers(clock, repl_ml_clock_dot(found->loser_clock)))
		return NULL;
	return found;
}

/* Takes back the conflict, and forgets "conflict". */
void
repl_ml_history_take_back(ReplMlTable *table, ReplMlRecordedConflict *conflict)
{
	Oid			types[4] = {NAMEOID, NAMEOID, TEXTARRAYOID, repl_ml_clock_type()};
	Datum		values[4] = {NameGetDatum(&table->schema_name), NameGetDatum(&table->table_name),
	conflict->key, PointerGetDatum(conflict->loser_clock)};

	repl_ml_spi_execute("DELETE FROM repl_ml.conflict_history WHERE conflict_id OPERATOR(pg_catalog.=) "
						CONFLICT_ID("$1", "$2", "$3", "$4"), 4, types, values, NULL);
	(void) hash_search(recorded, &conflict->key_hash, HASH_REMOVE, NULL);
}

static bool
same_source(const ReplMlSource *a, const ReplMlSource *b)
{
	return a->node == b->node && a->xid == b->xid && a->lsn == b->lsn;
}

static void
remember(const ReplMlConflict *conflict, const ReplMlSource *source)
{
	ReplMlRecordedConflict *entry;
	MemoryContext old;

	if (recorded == NULL || !same_source(&recorded_for, source))
		forget_others(source);
	entry = hash_search(recorded, &conflict->key_hash, HASH_ENTER, NULL);
	old = MemoryContextSwitchTo(recorded_context);
	entry->key = datumCopy(conflict->key, false, -1);
	entry->arriving_lost = conflict->arriving_lost;
	entry->loser_clock = repl_ml_clock_merge(conflict->loser_clock, conflict->loser_clock);
	MemoryContextSwitchTo(old);
}

/* Makes room for the conflicts of a transaction. */
static void
forget_others(const ReplMlSource *source)
{
	HASHCTL		ctl = {.keysize = sizeof(uint64),.entrysize = sizeof(ReplMlRecordedConflict)};

	recorded = NULL;
	if (recorded_context != NULL)
		MemoryContextDelete(recorded_context);
	recorded_context = AllocSetContextCreate(TopMemoryContext, "repl_ml recorded conflicts",
											 ALLOCSET_DEFAULT_SIZES);
	ctl.hcxt = recorded_context;
	recorded = hash_create("repl_ml recorded conflicts", 64, &ctl, HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	recorded_for = *source;
}
