/*
 * range.c
 *		What of a sequence is this node's, and getting more of it.
 *
 * A sequence is the group's if repl_ml.group_sequence has it, under the name that it
 * had then: to this transaction, if that has put it there.  From then on only numbers of
 * ranges are given that more than half of the members have agreed to.  Ranges are in
 * repl_ml.sequence_mark, and are got by a session of its own over this node's connection
 * string (repl_ml.get_range), since they must stay whatever becomes of the client's
 * transaction.  What members agree to is in sql/parts/sequences.sql.
 *
 * Called by number.c.  A place counts the way in which the sequence goes: it is a number,
 * or its negation where the sequence counts down.  Locks: none that stays.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/xact.h"
#include "catalog/pg_sequence.h"
#include "commands/trigger.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "storage/latch.h"
#include "storage/lmgr.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/hsearch.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/syscache.h"
#include "utils/timestamp.h"
#include "utils/wait_event.h"

#include "compat.h"
#include "server/server.h"
#include "wire/wire.h"
#include "write/write.h"

#define PATIENCE_MS			5000	/* for a range that is being got */
#define PAUSE_MS			20
#define ANSWER_MS			15000	/* a session of ours answers by then */

#define MEMBER_TABLE		"member"
#define LIST_TABLE			"group_sequence"
#define LIST_KEY			"group_sequence_pkey"
#define LIST_NOW			"group_sequence_now"
#define USE_TABLE			"sequence_use"
#define USE_KEY				"sequence_use_pkey"
#define MARK_TABLE			"sequence_mark"
#define MARK_KEY			"sequence_mark_pkey"
#define MARK_SEQUENCE		"sequence_mark_sequence"

enum
{
	Anum_list_schema_name = 1,
	Anum_list_sequence_name,
	Anum_list_state,
	Anum_list_by_table,
	Anum_list_enrolled_by,
	Anum_list_descending,
	Anum_list_obstacle,
	Anum_list_now_schema,
	Anum_list_now_name,
	Anum_list_clock,
	Natts_list = Anum_list_clock
};

enum
{
	Anum_use_schema_name = 1,
	Anum_use_sequence_name,
	Anum_use_node_id,
	Anum_use_place,
	Anum_use_clock,
	Natts_use = Anum_use_clock
};

enum
{
	Anum_mark_schema_name = 1,
	Anum_mark_sequence_name,
	Anum_mark_sequence,
	Anum_mark_closed,
	Anum_mark_closed_at,
	Anum_mark_promised,
	Anum_mark_server_start,
	Anum_mark_first,
	Anum_mark_last,
	Anum_mark_next_first,
	Anum_mark_next_last,
	Anum_mark_size,
	Anum_mark_obtained,
	Anum_mark_obtained_at,
	Anum_mark_in_vain,
	Natts_mark = Anum_mark_in_vain
};

enum
{
	Anum_member_node_id = 1,
	Anum_member_dsn = 3
};

/* A row of one of these tables; the columns are of the longest. */
typedef struct Row
{
	Datum		values[Natts_mark];
	bool		nulls[Natts_mark];
} Row;

/* Of each sequence that this process has asked about, what it knows; see below. */
static HTAB *sequences = NULL;

/* The tables that a change of any row of has all of it read again; set with that. */
static Oid	list_table = InvalidOid;
static Oid	use_table = InvalidOid;

static void load_numbers(ReplMlNumbers *numbers);
static bool find_entry(ReplMlNumbers *numbers, Row *mark);
static bool is_listed(const char *index, Name schema_name, Name name, bool of_name,
					  ReplMlNumbers *numbers);
static bool find_mark(ReplMlNumbers *numbers, Row *mark);
static int64 find_floor(const ReplMlNumbers *numbers);
static void take_ranges(ReplMlNumbers *numbers, const Row *mark);
static bool read_row(const char *table, const char *index, ScanKey keys, int nkeys, int natts,
					 Row *row);
static void raise_shortage(Oid sequence, const char *reason);

/* ---- what is known of a sequence ---- */

/* Called by core when a relation has changed, or anything. */
static void
invalidate(Datum arg, Oid relid)
{
	HASH_SEQ_STATUS scan;
	ReplMlNumbers *numbers;

	if (relid != InvalidOid && relid != list_table && relid != use_table)
	{
		numbers = hash_search(sequences, &relid, HASH_FIND, NULL);
		if (numbers != NULL)
			numbers->valid = false;
		return;
	}
	hash_seq_init(&scan, sequences);
	while ((numbers = hash_seq_search(&scan)) != NULL)
		numbers->valid = false;
}

/* Returns what is known of a sequence, read again if that has changed. */
ReplMlNumbers *
repl_ml_range_known(Oid sequence)
{
	ReplMlNumbers *numbers;
	bool		found;

	if (sequences == NULL)
	{
		HASHCTL		ctl = {.keysize = sizeof(Oid),.entrysize = sizeof(ReplMlNumbers)};

		sequences = hash_create("repl_ml sequences", 64, &ctl, HASH_ELEM | HASH_BLOBS);
		CacheRegisterRelcacheCallback(invalidate, (Datum) 0);
	}
	numbers = hash_search(sequences, &sequence, HASH_ENTER, &found);
	if (!found)
		numbers->valid = false;
	if (!numbers->valid)
		load_numbers(numbers);
	return numbers;
}

/* Reads whether a sequence is the group's, and what of it is this node's. */
static void
load_numbers(ReplMlNumbers *numbers)
{
	Oid			sequence = numbers->sequence;
	HeapTuple	tuple;
	Row			mark;

	memset(numbers, 0, sizeof(*numbers));
	numbers->sequence = sequence;
	/* what changes while it is read has it read again */
	numbers->valid = true;
	if (!repl_ml_identity()->member)
		return;
	tuple = SearchSysCache1(SEQRELID, ObjectIdGetDatum(sequence));
	if (!HeapTupleIsValid(tuple))
		return;
	numbers->increment = ((Form_pg_sequence) GETSTRUCT(tuple))->seqincrement;
	numbers->step = numbers->increment < 0 ? -numbers->increment : numbers->increment;
	numbers->descending = numbers->increment < 0;
	numbers->least = numbers->descending ? -((Form_pg_sequence) GETSTRUCT(tuple))->seqmax :
		((Form_pg_sequence) GETSTRUCT(tuple))->seqmin;
	numbers->greatest = numbers->descending ?
		-Max(((Form_pg_sequence) GETSTRUCT(tuple))->seqmin, -PG_INT64_MAX) :
		((Form_pg_sequence) GETSTRUCT(tuple))->seqmax;
	ReleaseSysCache(tuple);

	list_table = repl_ml_catalog_oid(LIST_TABLE);
	use_table = repl_ml_catalog_oid(USE_TABLE);
	if (!find_entry(numbers, &mark))
		return;
	numbers->shared = true;
	numbers->floor = find_floor(numbers);
	take_ranges(numbers, &mark);
}

/*
 * Finds what the list calls a sequence, whatever its name is now, and this node's mark of
 * it; returns false if it is an ordinary one.
 */
static bool
find_entry(ReplMlNumbers *numbers, Row *mark)
{
	NameData	schema_name;
	NameData	name;
	char	   *relname = get_rel_name(numbers->sequence);
	char	   *nspname = get_namespace_name(get_rel_namespace(numbers->sequence));
	ScanKeyData key;

	/* by itself, once this node has taken it up */
	ScanKeyInit(&key, Anum_mark_sequence, BTEqualStrategyNumber, F_OIDEQ,
				ObjectIdGetDatum(numbers->sequence));
	if (read_row(MARK_TABLE, MARK_SEQUENCE, &key, 1, Natts_mark, mark))
	{
		namestrcpy(&schema_name, NameStr(*DatumGetName(mark->values[Anum_mark_schema_name - 1])));
		namestrcpy(&name, NameStr(*DatumGetName(mark->values[Anum_mark_sequence_name - 1])));
		if (is_listed(LIST_KEY, &schema_name, &name, false, numbers) ||
			DatumGetBool(mark->values[Anum_mark_closed - 1]))
		{
			numbers->schema_name = schema_name;
			numbers->sequence_name = name;
			return true;
		}
	}

	if (relname == NULL || nspname == NULL)
		return false;
	namestrcpy(&schema_name, nspname);
	namestrcpy(&name, relname);
	numbers->schema_name = schema_name;
	numbers->sequence_name = name;
	(void) (is_listed(LIST_NOW, &schema_name, &name, true, numbers) ||
			is_listed(LIST_KEY, &schema_name, &name, true, numbers));
	return (find_mark(numbers, mark) && DatumGetBool(mark->values[Anum_mark_closed - 1])) ||
		numbers->listed;
}

/*
 * Notes whether the list has a sequence under this name, of then or of now, and what it
 * calls it.  With of_name one that has another name now does not count.
 */
static bool
is_listed(const char *index, Name schema_name, Name name, bool of_name, ReplMlNumbers *numbers)
{
	bool		by_now = strcmp(index, LIST_NOW) == 0;
	ScanKeyData keys[2];
	Row			row;

	ScanKeyInit(&keys[0], by_now ? Anum_list_now_schema : Anum_list_schema_name,
				BTEqualStrategyNumber, F_NAMEEQ, NameGetDatum(schema_name));
	ScanKeyInit(&keys[1], by_now ? Anum_list_now_name : Anum_list_sequence_name,
				BTEqualStrategyNumber, F_NAMEEQ, NameGetDatum(name));
	if (!read_row(LIST_TABLE, index, keys, 2, Natts_list, &row) ||
		(of_name && !by_now && !row.nulls[Anum_list_now_name - 1]) ||
		strcmp(TextDatumGetCString(row.values[Anum_list_state - 1]), "enrolled") != 0 ||
		!row.nulls[Anum_list_obstacle - 1])
		return false;
	numbers->listed = true;
	numbers->schema_name = *DatumGetName(row.values[Anum_list_schema_name - 1]);
	numbers->sequence_name = *DatumGetName(row.values[Anum_list_sequence_name - 1]);
	return true;
}

/* Finds this node's mark by the name that the list has. */
static bool
find_mark(ReplMlNumbers *numbers, Row *mark)
{
	ScanKeyData keys[2];

	memset(mark->nulls, true, sizeof(mark->nulls));
	ScanKeyInit(&keys[0], Anum_mark_schema_name, BTEqualStrategyNumber, F_NAMEEQ,
				NameGetDatum(&numbers->schema_name));
	ScanKeyInit(&keys[1], Anum_mark_sequence_name, BTEqualStrategyNumber, F_NAMEEQ,
				NameGetDatum(&numbers->sequence_name));
	return read_row(MARK_TABLE, MARK_KEY, keys, 2, Natts_mark, mark);
}

/* Returns the last place that any node had used before. */
static int64
find_floor(const ReplMlNumbers *numbers)
{
	Relation	rel = table_open(repl_ml_catalog_oid(USE_TABLE), AccessShareLock);
	ScanKeyData keys[2];
	SysScanDesc scan;
	HeapTuple	tuple;
	int64		result = -PG_INT64_MAX;

	ScanKeyInit(&keys[0], Anum_use_schema_name, BTEqualStrategyNumber, F_NAMEEQ,
				NameGetDatum(&numbers->schema_name));
	ScanKeyInit(&keys[1], Anum_use_sequence_name, BTEqualStrategyNumber, F_NAMEEQ,
				NameGetDatum(&numbers->sequence_name));
	scan = systable_beginscan(rel, repl_ml_catalog_oid(USE_KEY), true, NULL, 2, keys);
	while (HeapTupleIsValid(tuple = systable_getnext(scan)))
	{
		bool		isnull;
		int64		place = DatumGetInt64(heap_getattr(tuple, Anum_use_place,
													   RelationGetDescr(rel), &isnull));

		result = Max(result, place);
	}
	systable_endscan(scan);
	table_close(rel, AccessShareLock);
	return result;
}

/* Notes the ranges of a mark.  Those of a server that has ended do not count. */
static void
take_ranges(ReplMlNumbers *numbers, const Row *mark)
{
	if (mark->nulls[Anum_mark_schema_name - 1] || mark->nulls[Anum_mark_server_start - 1] ||
		mark->nulls[Anum_mark_first - 1] ||
		DatumGetTimestampTz(mark->values[Anum_mark_server_start - 1]) != PgStartTime)
		return;
	numbers->first = Max(DatumGetInt64(mark->values[Anum_mark_first - 1]), numbers->floor + 1);
	numbers->last = DatumGetInt64(mark->values[Anum_mark_last - 1]);
	numbers->in_hand = numbers->first <= numbers->last;
	numbers->size = DatumGetInt64(mark->values[Anum_mark_size - 1]);
	numbers->half = numbers->last - numbers->size / 2;
	numbers->has_next = !mark->nulls[Anum_mark_next_first - 1];
}

/* Reads a row by an index; returns false if there is none. */
static bool
read_row(const char *table, const char *index, ScanKey keys, int nkeys, int natts, Row *row)
{
	Relation	rel = table_open(repl_ml_catalog_oid(table), AccessShareLock);
	SysScanDesc scan = systable_beginscan(rel, repl_ml_catalog_oid(index), true, NULL, nkeys,
										  keys);
	HeapTuple	tuple = systable_getnext(scan);
	bool		found = HeapTupleIsValid(tuple);

	if (RelationGetNumberOfAttributes(rel) != natts)
		elog(ERROR, "table \"%s\" has unexpected columns", table);
	if (found)
		heap_deform_tuple(heap_copytuple(tuple), RelationGetDescr(rel), row->values, row->nulls);
	systable_endscan(scan);
	table_close(rel, AccessShareLock);
	return found;
}

PG_FUNCTION_INFO_V1(repl_ml_sequence_list_changed);

/* AFTER trigger of the list and of what was used: every process reads them again. */
Datum
repl_ml_sequence_list_changed(PG_FUNCTION_ARGS)
{
	if (!CALLED_AS_TRIGGER(fcinfo))
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("function \"%s\" must be called as a trigger", "sequence_list_changed")));
	CacheInvalidateRelcache(((TriggerData *) fcinfo->context)->tg_relation);
	return PointerGetDatum(NULL);
}

PG_FUNCTION_INFO_V1(repl_ml_sequence_changed);

/*
 * repl_ml.sequence_changed(sequence): every process reads again what it may give; what
 * is promised is on the disk before anybody hears of it, whatever the session's settings.
 */
Datum
repl_ml_sequence_changed(PG_FUNCTION_ARGS)
{
	ForceSyncCommit();
	if (SearchSysCacheExists1(RELOID, PG_GETARG_DATUM(0)))
		CacheInvalidateRelcacheByRelid(PG_GETARG_OID(0));
	PG_RETURN_VOID();
}

PG_FUNCTION_INFO_V1(repl_ml_lock_sequence);

/*
 * repl_ml.lock_sequence(sequence): waits for all transactions that have taken numbers
 * from it, and lets nobody take more until this one ends.
 */
Datum
repl_ml_lock_sequence(PG_FUNCTION_ARGS)
{
	LockRelationOid(PG_GETARG_OID(0), ShareRowExclusiveLock);
	PG_RETURN_VOID();
}

/* ---- getting more ---- */

/* Returns how members reach this node, which is how it reaches itself; NULL if it is no member. */
static char *
own_dsn(void)
{
	int			self = repl_ml_identity()->node_id;
	Relation	rel = table_open(repl_ml_catalog_oid(MEMBER_TABLE), AccessShareLock);
	SysScanDesc scan = systable_beginscan(rel, InvalidOid, false, NULL, 0, NULL);
	HeapTuple	tuple;
	char	   *result = NULL;

	while (result == NULL && HeapTupleIsValid(tuple = systable_getnext(scan)))
	{
		bool		isnull;
		TupleDesc	desc = RelationGetDescr(rel);

		if (DatumGetInt32(heap_getattr(tuple, Anum_member_node_id, desc, &isnull)) == self)
			result = TextDatumGetCString(heap_getattr(tuple, Anum_member_dsn, desc, &isnull));
	}
	systable_endscan(scan);
	table_close(rel, AccessShareLock);
	return result;
}

/* Returns the question for one more range; that session may not see what this one has done. */
static char *
compose_question(const ReplMlNumbers *numbers, const int64 *beyond, int least_size)
{
	StringInfoData question;

	initStringInfo(&question);
	appendStringInfo(&question, "SELECT coalesce(repl_ml.get_range(%u, %s, %s, ",
					 numbers->sequence, quote_literal_cstr(NameStr(numbers->schema_name)),
					 quote_literal_cstr(NameStr(numbers->sequence_name)));
	if (numbers->listed)
		appendStringInfo(&question, "'" INT64_FORMAT "'", numbers->floor);
	else
		appendStringInfoString(&question, "NULL");
	appendStringInfo(&question, ", '" INT64_FORMAT "', '" INT64_FORMAT "', '" INT64_FORMAT "', ",
					 numbers->increment, numbers->least, numbers->greatest);
	if (beyond != NULL)
		appendStringInfo(&question, "'" INT64_FORMAT "'", *beyond);
	else
		appendStringInfoString(&question, "NULL");
	appendStringInfo(&question, ", %d), 'ok')", least_size);
	return question.data;
}

/*
 * Gets one more range, behind the one in hand, or in its place and beyond a place.
 * Returns NULL, or why there is none, and whether to try again soon.
 */
char *
repl_ml_range_get(Oid sequence, const int64 *beyond, int least_size, bool *again)
{
	ReplMlNumbers *numbers = repl_ml_range_known(sequence);
	char	   *dsn = own_dsn();
	char	   *answer = NULL;
	char	   *error = NULL;
	ReplMlQuestions all = {.count = 1,.dsns = &dsn,.answers = &answer,.errors = &error};

	*again = false;
	if (dsn == NULL)
		return pstrdup("free");
	dsn = repl_ml_stream_conninfo(dsn, "question", NULL);
	all.query = compose_question(numbers, beyond, least_size);
	all.deadline = all.sent_by = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), ANSWER_MS);
	repl_ml_ask_beside(&all);

	/* of a sequence that this transaction has made no message comes */
	AcceptInvalidationMessages();
	numbers->valid = false;
	*again = answer == NULL || strcmp(answer, "wait") == 0 || strcmp(answer, "again") == 0;
	if (answer == NULL)
		return psprintf("this node asked itself by its own connection string, and that failed: %s",
						error);
	return strcmp(answer, "ok") == 0 ? NULL : answer;
}

/* Does that, and raises an error if there is none; waits for what is under way. */
void
repl_ml_range_require(Oid sequence, const int64 *beyond, int least_size)
{
	TimestampTz deadline = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), PATIENCE_MS);
	char	   *reason;
	bool		again;

	(void) repl_ml_identity_require();
	while ((reason = repl_ml_range_get(sequence, beyond, least_size, &again)) != NULL)
	{
		/* it is none of the group's any more */
		if (strcmp(reason, "free") == 0)
			return;
		if (!again || GetCurrentTimestamp() > deadline)
			raise_shortage(sequence, reason);
		if (strcmp(reason, "again") == 0)
			continue;
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, PAUSE_MS,
						 wait_event_compat("ReplMlNumbers"));
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
	}
}

/* Raises the error that there are no numbers, and says why. */
static void
raise_shortage(Oid sequence, const char *reason)
{
	char	   *name = get_rel_name(sequence);

	if (strcmp(reason, "exhausted") == 0)
		ereport(ERROR,
				(errcode(ERRCODE_SEQUENCE_GENERATOR_LIMIT_EXCEEDED),
				 errmsg("no numbers are left of sequence \"%s\" for this node", name),
				 errdetail("All have been given, or are in the hands of other members."),
				 errhint("SELECT * FROM repl_ml.sequences says who has some left. On all nodes "
						 "make the column a bigint, and run ALTER SEQUENCE ... AS bigint.")));
	ereport(ERROR,
			(errcode(ERRCODE_CANNOT_CONNECT_NOW),
			 errmsg("no numbers of sequence \"%s\" are in hand, and no more can be had now", name),
			 errdetail("More than half of the members have to agree to more: %s.",
					   strcmp(reason, "wait") == 0 || strcmp(reason, "again") == 0 ?
					   "it takes too long" : reason),
			 errhint("See SELECT * FROM repl_ml.health; try again, or write on another node.")));
}
