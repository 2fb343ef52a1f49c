/*
 * history.c
 *		One row a losing version: what won, what was lost.
 *
 * The id is a hash of the table, the key and the losing write, so that every
 * node records it under the same id, and redelivery records it once.
 *
 * A conflict is one of what a transaction leaves behind.  The stream brings
 * every version it wrote, among them the one a row has before the trigger at
 * the statement's end lifts it above the key's tombstones (write/stamp.c).
 * So what was recorded for a version is taken back when a later one of the
 * same transaction shows that there was no conflict, or has one of its own.
 * It is also taken back when the winner was overwritten by someone who did not
 * know it, so that the loser is the row now.
 *
 * Not which version loses (conflict.c, resolve.c, unique.c).  What runs a
 * type's code is here apart from what writes: describing runs with the owner's
 * rights, recording with the caller's.  No locks beyond those of the catalogs'
 * rows; row.c, which calls this, holds the row's or the key's.
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
#include "utils/fmgrprotos.h"
#include "utils/hsearch.h"
#include "utils/json.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/pg_lsn.h"

#include "compat.h"
#include "converge/converge.h"
#include "row/row.h"
#include "server/server.h"
#include "wire/wire.h"

/* the id of a conflict: arguments are those of the statements below */
#define CONFLICT_ID(schema_name, table_name, key, loser_clock) \
	"pg_catalog.encode(pg_catalog.substr(pg_catalog.sha256(pg_catalog.convert_to(" \
	"  pg_catalog.format('%L %L %L %s %s', " schema_name ", " table_name ", " key "," \
	" repl_ml.last_writer(" loser_clock ")," \
	" repl_ml.max_counter(" loser_clock ")), 'UTF8')), 1, 16), 'hex')::pg_catalog.uuid"

/* counts rows of the conflict log; the rows inserted are as many */
#define COUNTED(rows, how_many) \
	" INSERT INTO repl_ml.conflict_news SELECT r.schema_name, r.table_name, r.conflict_type," \
	" r.resolution, r.detected_at, coalesce(r.winner_row OPERATOR(pg_catalog.=) r.loser_row," \
	" false), " how_many " FROM " rows " r"

/* What the transaction being applied has recorded for a key. */
typedef struct RecordedConflicts
{
	uint64		key_hash;		/* hash key; holds the table's OID too */
	Datum		key;			/* text[] */
	List	   *losers;			/* of ReplMlClock */
	bool		reused;			/* it has inserted the key of an evicted row */
} RecordedConflicts;

/* of the transaction recorded_for; written by get_entry and forget_other_transactions */
static HTAB *recorded = NULL;
static MemoryContext recorded_context = NULL;
static ReplMlSource recorded_for;

static ReplMlConflict *make_conflict(ReplMlTarget *target, Datum *key,
									 TupleTableSlot *winner, const ReplMlClock *winner_clock,
									 TupleTableSlot *loser, const ReplMlClock *loser_clock);
static void set_eviction(ReplMlConflict *conflict, const char *index);
static char *write_clock(const ReplMlClock *clock);
static bool same_source(const ReplMlSource *a, const ReplMlSource *b);
static void park_loser(const ReplMlConflict *conflict, const ReplMlSource *source);
static void unpark_loser(const ReplMlConflict *conflict);
static RecordedConflicts *get_entry(uint64 hash, Datum key, const ReplMlSource *source);
static void remember_loser(const ReplMlConflict *conflict, const ReplMlSource *source);
static void forget_other_transactions(const ReplMlSource *source);
static bool is_logged(ReplMlTarget *target, const ReplMlResolution *resolution,
					  const ReplMlVersion *loser);
static const char *name_conflict(const ReplMlVersion *winner, const ReplMlVersion *loser);
static List *find_lost_columns(ReplMlTarget *target, const ReplMlResolution *resolution,
							   const ReplMlVersion *loser);
static void describe_row(ReplMlTarget *target, TupleTableSlot *slot, char **json, Datum *texts);
static bool is_valid_jsonb(const char *json);

/*
 * Describes, for row.c, what a version loses by a resolution; returns NULL if
 * that is nothing, unless repl_ml.log_equal_writes wants it.  Runs with the
 * owner's rights: it calls the output functions of his types.
 */
ReplMlConflict *
repl_ml_history_describe(ReplMlTarget *target, Datum *key, const ReplMlResolution *resolution,
						 const ReplMlVersion *loser)
{
	const ReplMlVersion *winner = resolution->winner;
	ReplMlConflict *conflict;
	List	   *lost = NIL;

	/* of two deletions none takes anything from the other */
	if (loser->deleted && resolution->deleted)
		return NULL;
	if (!loser->deleted && !resolution->deleted &&
		(lost = find_lost_columns(target, resolution, loser)) == NIL &&
		!is_logged(target, resolution, loser))
		return NULL;
	conflict = make_conflict(target, key, resolution->row, winner->clock, loser->row, loser->clock);
	conflict->type = name_conflict(winner, loser);
	conflict->resolution = repl_ml_resolve_name(resolution->policy);
	conflict->result_clock = repl_ml_clock_merge(resolution->clock, resolution->clock);
	conflict->lost_columns = lost;

	/* a person has to see what the resolver has not kept */
	if (resolution->keeps_both && loser->row != NULL && (resolution->deleted || lost != NIL))
	{
		conflict->parked_as = "kept";
		conflict->parked_sqlstate = ERRCODE_T_R_SERIALIZATION_FAILURE;
		conflict->parked_because = "the version lost to a concurrent one under the resolver "
								   "keep_both";
	}
	return conflict;
}

/*
 * Describes, for unique.c, that the row "loser" had to leave because "winner"
 * has the same values in the unique index.  Runs with the owner's rights.
 */
ReplMlConflict *
repl_ml_history_describe_eviction(ReplMlTarget *target, Datum *loser_key,
								  TupleTableSlot *loser, const ReplMlClock *loser_clock,
								  TupleTableSlot *winner, const ReplMlClock *winner_clock,
								  const char *index)
{
	ReplMlConflict *conflict = make_conflict(target, loser_key, winner, winner_clock, loser,
											 loser_clock);

	set_eviction(conflict, index);
	return conflict;
}

/*
 * Returns what other nodes are told of an eviction: JSON, for the column
 * "eviction" of the tombstone.
 */
char *
repl_ml_history_eviction_as_json(const ReplMlConflict *conflict, const char *index)
{
	StringInfoData json;

	initStringInfo(&json);
	appendStringInfoString(&json, "{\"index\": ");
	escape_json(&json, index);
	appendStringInfo(&json, ", \"winner_clock\": \"%s\", \"winner_row\": %s}",
					 write_clock(conflict->winner_clock),
					 conflict->winner_row != NULL ? conflict->winner_row : "null");
	return json.data;
}

/*
 * Returns a field of a JSON object as text, NULL if it is not there or null.
 */
static char *
read_field(const char *json, const char *name)
{
	Datum		value;
	LOCAL_FCINFO(fcinfo, 2);

	InitFunctionCallInfoData(*fcinfo, NULL, 2, InvalidOid, NULL, NULL);
	fcinfo->args[0].value = DirectFunctionCall1(jsonb_in, CStringGetDatum(json));
	fcinfo->args[0].isnull = false;
	fcinfo->args[1].value = CStringGetTextDatum(name);
	fcinfo->args[1].isnull = false;
	value = jsonb_object_field_text(fcinfo);
	return fcinfo->isnull ? NULL : TextDatumGetCString(value);
}

/*
 * Describes, for row.c, an eviction that another node has told of; "eviction"
 * is its JSON.  What the winner was comes from there, as this node may not
 * have met it.
 */
ReplMlConflict *
repl_ml_history_describe_told_eviction(ReplMlTarget *target, Datum *key, TupleTableSlot *loser,
									   const ReplMlClock *loser_clock, const char *eviction)
{
	char	   *clock = read_field(eviction, "winner_clock");
	char	   *index = read_field(eviction, "index");
	ReplMlConflict *conflict;

	if (clock == NULL || index == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_PROTOCOL_VIOLATION),
				 errmsg("the peer sent an eviction without a winner's clock or an index"),
				 errhint("Install the same version of the extension \"repl_ml\" on all nodes, then "
						 "run SELECT repl_ml.retry_parked(id).")));
	conflict = make_conflict(target, key, NULL, repl_ml_clock_from_text(clock), loser, loser_clock);
	conflict->winner_row = read_field(eviction, "winner_row");
	set_eviction(conflict, index);
	return conflict;
}

/*
 * Makes the conflict the loss of a unique key, whose loser is parked on each
 * node that has it.
 */
static void
set_eviction(ReplMlConflict *conflict, const char *index)
{
	conflict->type = repl_ml_clock_count(conflict->loser_clock) == 1 ? "insert_exists" :
		"update_exists";
	conflict->resolution = "unique_key";
	conflict->result_clock = conflict->loser_clock;
	conflict->parked_as = "evicted";
	conflict->parked_sqlstate = ERRCODE_UNIQUE_VIOLATION;
	conflict->parked_because = psprintf("another row has the same values in the unique index "
										"\"%s\", and was written later", index);
}

/* Returns a clock's text form. */
static char *
write_clock(const ReplMlClock *clock)
{
	Oid			function;
	bool		is_varlena;

	getTypeOutputInfo(repl_ml_clock_type(), &function, &is_varlena);
	return OidOutputFunctionCall(function, PointerGetDatum(clock));
}

/*
 * Returns, for row.c, a version whose conflict, if any was recorded, is to be
 * taken back.
 */
ReplMlVoid *
repl_ml_history_describe_void(ReplMlTable *table, Datum *key, const ReplMlClock *clock)
{
	ReplMlVoid *version = palloc(sizeof(ReplMlVoid));

	version->schema_name = table->schema_name;
	version->table_name = table->table_name;
	version->key = repl_ml_key_to_array(table, key);
	version->clock = repl_ml_clock_merge(clock, clock);
	return version;
}

/*
 * Returns a conflict of the two rows; NULL stands for a deletion.  Everything
 * is copied: rows and clocks may be about to change.
 */
static ReplMlConflict *
make_conflict(ReplMlTarget *target, Datum *key,
			  TupleTableSlot *winner, const ReplMlClock *winner_clock,
			  TupleTableSlot *loser, const ReplMlClock *loser_clock)
{
	ReplMlConflict *conflict = palloc0(sizeof(ReplMlConflict));

	conflict->schema_name = target->table->schema_name;
	conflict->table_name = target->table->table_name;
	conflict->key = repl_ml_key_to_array(target->table, key);
	conflict->key_hash = repl_ml_key_hash(target->table, key);
	conflict->winner_clock = repl_ml_clock_merge(winner_clock, winner_clock);
	conflict->loser_clock = repl_ml_clock_merge(loser_clock, loser_clock);
	describe_row(target, winner, &conflict->winner_row, &conflict->winner_content);
	describe_row(target, loser, &conflict->loser_row, &conflict->loser_content);
	return conflict;
}

/*
 * Says whether the loser wrote just what the winner wrote, and that is the
 * row.  It is not if columns with a rule of their own made more of it, as a
 * counter does.
 */
bool
repl_ml_history_is_equal(ReplMlTarget *target, const ReplMlResolution *resolution,
						 const ReplMlVersion *loser)
{
	return !loser->deleted && !resolution->deleted && loser->eviction == NULL &&
		!repl_ml_rows_differ(target, resolution->row, loser->row) &&
		!repl_ml_rows_differ(target, resolution->winner->row, loser->row);
}

/* Says whether a loss that took nothing away is to be recorded. */
static bool
is_logged(ReplMlTarget *target, const ReplMlResolution *resolution, const ReplMlVersion *loser)
{
	if (repl_ml_log_equal_writes == REPL_ML_LOG_EQUAL_NONE ||
		!repl_ml_history_is_equal(target, resolution, loser))
		return false;
	return repl_ml_log_equal_writes == REPL_ML_LOG_EQUAL_ALL ||
		!repl_ml_history_is_insert(resolution->winner, loser);
}

/*
 * Says whether both versions, live ones, were inserted: without a common past.
 */
bool
repl_ml_history_is_insert(const ReplMlVersion *winner, const ReplMlVersion *loser)
{
	for (int i = 0; i < repl_ml_clock_count(winner->clock); i++)
	{
		if (repl_ml_clock_counter(loser->clock, repl_ml_clock_entry(winner->clock, i).node) != 0)
			return false;
	}
	return true;
}

/*
 * Returns the name that core's conflict.c has for the conflict.  Two rows
 * without a common past were both inserted; the others are named for what the
 * loser did.
 */
static const char *
name_conflict(const ReplMlVersion *winner, const ReplMlVersion *loser)
{
	if (loser->deleted)
		return "delete_origin_differs";
	if (winner->deleted)
		return "update_deleted";
	return repl_ml_history_is_insert(winner, loser) ? "insert_exists" : "update_origin_differs";
}

/*
 * Returns the names of the columns in which the loser's values are neither
 * there nor merged.
 */
static List *
find_lost_columns(ReplMlTarget *target, const ReplMlResolution *resolution,
				  const ReplMlVersion *loser)
{
	TupleDesc	desc = RelationGetDescr(target->rel);
	List	   *names = NIL;

	for (int i = 0; i < desc->natts; i++)
	{
		const char *name = NameStr(TupleDescAttr(desc, i)->attname);

		if (repl_ml_column_differs(target, i, resolution->row, loser->row) &&
			repl_ml_policy_merge(resolution->policy, name) == NULL)
			names = lappend(names, pstrdup(name));
	}
	if (resolution->policy->merge_count > 0)
		names = list_concat(names,
							repl_ml_merge_lost_columns(target->rel, resolution->policy, loser,
													   resolution->row, resolution->clock));
	return names;
}

/*
 * Sets the row as JSON and, where jsonb cannot hold that, as names and texts;
 * the latter always, for parking it.
 */
static void
describe_row(ReplMlTarget *target, TupleTableSlot *slot, char **json, Datum *texts)
{
	if (slot == NULL)
		return;
	*texts = repl_ml_version_from_slot(slot, target->table->clock_attnum);
	*json = repl_ml_history_row_as_json(target->rel, target->table->clock_attnum, slot);
}

/*
 * Returns the row's content as a JSON object; NULL if jsonb cannot hold it.
 * Runs casts to json, so the caller has the rights of the table's owner.
 */
char *
repl_ml_history_row_as_json(Relation rel, AttrNumber clock_attnum, TupleTableSlot *slot)
{
	TupleDesc	desc = RelationGetDescr(rel);
	char	   *json;
	TupleDesc	content;
	Datum	   *values = palloc(desc->natts * sizeof(Datum));
	bool	   *nulls = palloc(desc->natts * sizeof(bool));
	AttrNumber *columns = palloc(desc->natts * sizeof(AttrNumber));
	int			count = 0;

	for (int i = 0; i < desc->natts; i++)
	{
		Form_pg_attribute att = TupleDescAttr(desc, i);

		if (att->attisdropped || att->attgenerated != '\0' ||
			att->attnum == clock_attnum)
			continue;
		values[count] = slot_getattr(slot, i + 1, &nulls[count]);
		columns[count++] = i + 1;
	}

	/*
	 * without the columns that are not the user's, and those the row computes
	 */
	content = CreateTemplateTupleDesc(count);
	for (int i = 0; i < count; i++)
		TupleDescCopyEntry(content, i + 1, desc, columns[i]);
	content = BlessTupleDesc(content);
	json = TextDatumGetCString(DirectFunctionCall1(row_to_json,
												   HeapTupleGetDatum(heap_form_tuple(content,
																					 values,
																					 nulls))));
	return is_valid_jsonb(json) ? json : NULL;
}

/* A step of repl_ml_attempt: reads a text as jsonb. */
static void
read_jsonb(void *argument)
{
	(void) DirectFunctionCall1(jsonb_in, CStringGetDatum((const char *) argument));
}

/*
 * Says whether jsonb can hold the text: json takes \u0000 and any number,
 * jsonb does not.
 */
static bool
is_valid_jsonb(const char *json)
{
	ErrorData  *error = repl_ml_attempt(read_jsonb, (void *) json);

	/* what is wrong otherwise, as a lack of memory, is no answer */
	if (error != NULL && ERRCODE_TO_CATEGORY(error->sqlerrcode) != ERRCODE_DATA_EXCEPTION &&
		ERRCODE_TO_CATEGORY(error->sqlerrcode) != ERRCODE_PROGRAM_LIMIT_EXCEEDED)
		ReThrowError(error);
	return error == NULL;
}

/* Returns an array of names. */
static Datum
make_name_array(List *names)
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
	return PointerGetDatum(construct_array(datums, count, NAMEOID, NAMEDATALEN, false,
										   TYPALIGN_CHAR));
}

/*
 * Writes the conflict, for row.c, into repl_ml.conflict_history, and parks the
 * loser where that is due.  If the loser is there already, from a resolution
 * with fewer versions, the present one replaces that: so all nodes end with
 * the same.  Returns the number of new rows.
 */
int
repl_ml_history_record(const ReplMlConflict *conflict, const ReplMlSource *source)
{
	static const char *const update =
		"UPDATE repl_ml.conflict_history SET conflict_type = $4, resolution = $5,"
		" winner_node = repl_ml.last_writer($6), winner_clock = $6,"
		" result_clock = $8, winner_row = coalesce($9::pg_catalog.jsonb,"
		" pg_catalog.jsonb_object($10)), lost_columns = $13"
		" WHERE conflict_id OPERATOR(pg_catalog.=) " CONFLICT_ID("$1", "$2", "$3", "$7")
		" AND (resolution OPERATOR(pg_catalog.=) $5) OPERATOR(pg_catalog.=) $18"
		" AND resolution OPERATOR(pg_catalog.<>) ALL"
		" (CASE WHEN $18 OR $5 OPERATOR(pg_catalog.=) 'unique_key' THEN '{}' ELSE '{unique_key}'"
		" END::pg_catalog.text[])";
	static const char *const insert =
		"WITH added AS (INSERT INTO repl_ml.conflict_history"
		" (conflict_id, schema_name, table_name, key,"
		" conflict_type, resolution,"
		" winner_node, loser_node, winner_clock, loser_clock, result_clock, winner_row, loser_row,"
		" lost_columns,"
		" origin_node, origin_xid, origin_lsn, origin_time) "
		"SELECT " CONFLICT_ID("$1", "$2", "$3", "$7") ","
		" $1, $2, $3, $4, $5, repl_ml.last_writer($6), repl_ml.last_writer($7), $6, $7, $8,"
		" coalesce($9::pg_catalog.jsonb, pg_catalog.jsonb_object($10)),"
		" coalesce($11::pg_catalog.jsonb, pg_catalog.jsonb_object($12)), $13,"
		" $14, $15, $16, $17 ON CONFLICT (conflict_id) DO NOTHING RETURNING *)"
		COUNTED("added", "1");
	Oid			clock_type = repl_ml_clock_type();
	Oid			types[18] = {NAMEOID, NAMEOID, TEXTARRAYOID, TEXTOID, TEXTOID, clock_type,
	clock_type, clock_type, TEXTOID, TEXTARRAYOID, TEXTOID, TEXTARRAYOID, NAMEARRAYOID, INT4OID,
	XIDOID, PG_LSNOID, TIMESTAMPTZOID, BOOLOID};
	Datum		values[18];
	char		nulls[19] = "                  ";

	values[0] = NameGetDatum(&conflict->schema_name);
	values[1] = NameGetDatum(&conflict->table_name);
	values[2] = conflict->key;
	values[3] = CStringGetTextDatum(conflict->type);
	values[4] = CStringGetTextDatum(conflict->resolution);
	values[5] = PointerGetDatum(conflict->winner_clock);
	values[6] = PointerGetDatum(conflict->loser_clock);
	values[7] = PointerGetDatum(conflict->result_clock);
	values[8] = conflict->winner_row ? CStringGetTextDatum(conflict->winner_row) : (Datum) 0;
	values[9] = conflict->winner_content;
	values[10] = conflict->loser_row ? CStringGetTextDatum(conflict->loser_row) : (Datum) 0;
	values[11] = conflict->loser_content;
	for (int i = 8; i < 12; i++)
		nulls[i] = values[i] == (Datum) 0 ? 'n' : ' ';
	values[12] = make_name_array(conflict->lost_columns);
	values[13] = Int32GetDatum(source->node);
	values[14] = TransactionIdGetDatum(source->xid);
	values[15] = LSNGetDatum(source->lsn);
	values[16] = TimestampTzGetDatum(source->commit_time);
	nulls[16] = source->commit_time == 0 ? 'n' : ' ';
	values[17] = BoolGetDatum(true);	/* it is there, and resolved alike */
	/* once more, with a resolution of the same kind: nothing to park */
	if (repl_ml_spi_execute(update, 18, types, values, nulls) > 0)
		return 0;
	values[17] = BoolGetDatum(false);
	if (repl_ml_spi_execute(update, 18, types, values, nulls) > 0)
	{
		if (conflict->parked_as == NULL)
			unpark_loser(conflict);
		else
			park_loser(conflict, source);
		return 0;
	}
	if (repl_ml_spi_execute(insert, 17, types, values, nulls) == 0)
		return 0;
	if (conflict->parked_as != NULL)
		park_loser(conflict, source);
	remember_loser(conflict, source);
	return 1;
}

/* Keeps the losing row of a conflict for a person, on this node. */
static void
park_loser(const ReplMlConflict *conflict, const ReplMlSource *source)
{
	static const char *const sql =
		"INSERT INTO repl_ml.parked_change (origin_node, origin_xid, origin_lsn, schema_name,"
		" table_name, action, change, sqlstate, message, conflict_id)"
		" VALUES ($1, $2, $3, $4, $5, $6, pg_catalog.jsonb_object($7), $8, $9, "
		CONFLICT_ID("$4", "$5", "$10", "$11") ")"
		" ON CONFLICT (conflict_id) DO NOTHING";
	Oid			types[11] = {INT4OID, XIDOID, PG_LSNOID, NAMEOID, NAMEOID, TEXTOID, TEXTARRAYOID,
	TEXTOID, TEXTOID, TEXTARRAYOID, repl_ml_clock_type()};
	Datum		values[11];

	values[0] = Int32GetDatum(repl_ml_clock_dot(conflict->loser_clock).node);
	values[1] = TransactionIdGetDatum(source->xid);
	values[2] = LSNGetDatum(source->lsn);
	values[3] = NameGetDatum(&conflict->schema_name);
	values[4] = NameGetDatum(&conflict->table_name);
	values[5] = CStringGetTextDatum(conflict->parked_as);
	values[6] = conflict->loser_content;
	values[7] = CStringGetTextDatum(unpack_sql_state(conflict->parked_sqlstate));
	values[8] = CStringGetTextDatum(conflict->parked_because);
	values[9] = conflict->key;
	values[10] = PointerGetDatum(conflict->loser_clock);
	(void) repl_ml_spi_execute(sql, 11, types, values, NULL);
	ereport(LOG,
			(errmsg("a row of table \"%s.%s\" is parked: %s",
					NameStr(conflict->schema_name), NameStr(conflict->table_name),
					conflict->parked_because),
			 errhint("See SELECT * FROM repl_ml.parked_changes.")));
}

/* Removes a loser that no person has to decide about any more. */
static void
unpark_loser(const ReplMlConflict *conflict)
{
	Oid			types[4] = {NAMEOID, NAMEOID, TEXTARRAYOID, repl_ml_clock_type()};
	Datum		values[4] = {NameGetDatum(&conflict->schema_name),
	NameGetDatum(&conflict->table_name), conflict->key, PointerGetDatum(conflict->loser_clock)};

	(void) repl_ml_spi_execute("DELETE FROM repl_ml.parked_change"
							   " WHERE conflict_id OPERATOR(pg_catalog.=) "
							   CONFLICT_ID("$1", "$2", "$3", "$4"), 4, types, values, NULL);
}

/*
 * Returns, as a list of ReplMlVoid, the losers this transaction has recorded
 * for the key that the version with "clock" makes void: earlier versions of
 * its own, and what it knew after all.  Runs with the owner's rights: it calls
 * the functions of his types.
 */
List *
repl_ml_history_find_void(ReplMlTable *table, Datum *key, const ReplMlClock *clock,
						  const ReplMlSource *source)
{
	uint64		hash = repl_ml_key_hash(table, key);
	RecordedConflicts *found;
	List	   *result = NIL;
	ListCell   *lc;

	/* what copies and repairs bring is of many transactions, and may come twice */
	if (recorded == NULL || !TransactionIdIsValid(source->xid) ||
		!same_source(&recorded_for, source))
		return NIL;
	found = hash_search(recorded, &hash, HASH_FIND, NULL);
	if (found == NULL || !datum_image_eq(found->key, repl_ml_key_to_array(table, key), false, -1))
		return NIL;

	/* what it covers its writer knew; it is told once */
	foreach(lc, found->losers)
	{
		const ReplMlClock *loser = lfirst(lc);

		if (!repl_ml_clock_covers(clock, repl_ml_clock_dot(loser)))
			continue;
		result = lappend(result, repl_ml_history_describe_void(table, key, loser));
		found->losers = foreach_delete_current(found->losers, lc);
	}
	return result;
}

/*
 * Says whether the transaction has inserted the key of a row that was evicted:
 * then it knew that, and takes nothing back. row.c asks it of each of the
 * transaction's versions that comes upon such a key.
 */
bool
repl_ml_history_is_reused(ReplMlTable *table, Datum *key, const ReplMlSource *source)
{
	uint64		hash = repl_ml_key_hash(table, key);
	RecordedConflicts *entry;

	if (source->inserted)
	{
		entry = get_entry(hash, repl_ml_key_to_array(table, key), source);
		entry->reused = true;
		return true;
	}
	if (recorded == NULL || !same_source(&recorded_for, source))
		return false;
	entry = hash_search(recorded, &hash, HASH_FIND, NULL);
	return entry != NULL && entry->reused;
}

/*
 * Takes back what is recorded of the version; returns how many conflicts that
 * were.
 */
int
repl_ml_history_take_back(const ReplMlVoid *version)
{
	Oid			types[4] = {NAMEOID, NAMEOID, TEXTARRAYOID, repl_ml_clock_type()};
	Datum		values[4] = {NameGetDatum(&version->schema_name),
	NameGetDatum(&version->table_name), version->key, PointerGetDatum(version->clock)};

	(void) repl_ml_spi_execute("DELETE FROM repl_ml.parked_change"
							   " WHERE conflict_id OPERATOR(pg_catalog.=) "
							   CONFLICT_ID("$1", "$2", "$3", "$4"), 4, types, values, NULL);
	return repl_ml_spi_execute("WITH gone AS (DELETE FROM repl_ml.conflict_history"
							   " WHERE conflict_id OPERATOR(pg_catalog.=) "
							   CONFLICT_ID("$1", "$2", "$3", "$4") " RETURNING *)"
							   COUNTED("gone", "-1"), 4, types, values, NULL);
}

/* Says whether both are of one transaction. */
static bool
same_source(const ReplMlSource *a, const ReplMlSource *b)
{
	return a->node == b->node && a->xid == b->xid && a->lsn == b->lsn;
}

/*
 * Returns the entry of a key, made if need be, of the transaction that is
 * being applied.
 */
static RecordedConflicts *
get_entry(uint64 hash, Datum key, const ReplMlSource *source)
{
	RecordedConflicts *entry;
	MemoryContext old;
	bool		found;

	if (recorded == NULL || !same_source(&recorded_for, source))
		forget_other_transactions(source);
	entry = hash_search(recorded, &hash, HASH_ENTER, &found);
	old = MemoryContextSwitchTo(recorded_context);
	if (!found || !datum_image_eq(entry->key, key, false, -1))
	{
		entry->key = datumCopy(key, false, -1);
		entry->losers = NIL;
		entry->reused = false;
	}
	MemoryContextSwitchTo(old);
	return entry;
}

/*
 * Remembers what has been recorded, for later versions of the same
 * transaction.
 */
static void
remember_loser(const ReplMlConflict *conflict, const ReplMlSource *source)
{
	RecordedConflicts *entry = get_entry(conflict->key_hash, conflict->key, source);
	MemoryContext old = MemoryContextSwitchTo(recorded_context);

	entry->losers = lappend(entry->losers,
							repl_ml_clock_merge(conflict->loser_clock, conflict->loser_clock));
	MemoryContextSwitchTo(old);
}

/*
 * Forgets the conflicts of the transaction before, and makes room for those of
 * this one.
 */
static void
forget_other_transactions(const ReplMlSource *source)
{
	HASHCTL		ctl = {.keysize = sizeof(uint64),.entrysize = sizeof(RecordedConflicts)};

	recorded = NULL;
	if (recorded_context != NULL)
		MemoryContextDelete(recorded_context);
	recorded_context = AllocSetContextCreate(TopMemoryContext, "repl_ml recorded conflicts",
											 ALLOCSET_DEFAULT_SIZES);
	ctl.hcxt = recorded_context;
	recorded = hash_create("repl_ml recorded conflicts", 64, &ctl,
						   HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	recorded_for = *source;
}
