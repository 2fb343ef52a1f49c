/*
 * known.c
 *		What one node knows of some keys: rows, their versions, deletions, parked
 *		changes; for who compares (settle.c) and who repairs (mend.c).
 *
 * Keys come as texts and are looked for in the index, in each partition.  A node
 * catches up first with what it is told to have: see src/README.
 *
 * Nothing of the table's owner runs here, but for what reading a key may run
 * (a domain's constraint), and making JSON of a row: that has his rights.
 *
 * Not here: opening the table, and rows by chunks (part.c).  Locks: ACCESS SHARE
 * on the table and its partitions while it works.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "catalog/pg_type.h"
#include "executor/executor.h"
#include "libpq/pqformat.h"
#include "miscadmin.h"
#include "storage/condition_variable.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"

#include "compat.h"
#include "converge/converge.h"
#include "read/read.h"
#include "verify/verify.h"

#define LONGEST_ROW_SHOWN	(1024 * 1024)
#define LOCKED				"55P03" /* of changes that are applied when a lock is gone */
#define KEYS_AT_ONCE		100		/* are read in one subtransaction */

/* A partition, or the table, that rows are looked for in. */
typedef struct Leaf
{
	Relation	rel;
	Relation	index;
	ReplMlImage *image;
	TupleTableSlot *slot;
	IndexScanDesc scan;
	ScanKeyData keys[INDEX_MAX_KEYS];
} Leaf;

/* Looking for keys. */
typedef struct Search
{
	ReplMlPart	   *part;
	Snapshot	snapshot;
	int			count;
	Leaf	   *leaves;
	ReplMlDetails details;
	bool		as_they_are;	/* rows, not what they were resolved from */
	bool		may_be_parked;	/* some change of the table is parked ... */
	bool		may_wait;		/* ... because its row is locked */
	int			order[INDEX_MAX_KEYS];
	MemoryContext context;		/* of the scans, which keep things from one key
								 * to the next */
} Search;

/* The key is NULL if this node cannot read it. */
typedef void (*KeyTeller) (Search *search, char **texts, Datum *key, StringInfo answer);

/* Opens a leaf and prepares its scan keys; their values come later. */
static void
open_leaf(Search *search, Leaf *leaf, Relation rel)
{
	ReplMlTable *table = repl_ml_table_get(rel);

	leaf->rel = rel;
	leaf->image = repl_ml_image_open(rel);
	leaf->slot = table_slot_create(rel, NULL);
	leaf->index = index_open(table->key_index, AccessShareLock);
	repl_ml_key_scan(leaf->index, table->key_natts, leaf->keys);
	leaf->scan = index_beginscan_compat(rel, leaf->index, search->snapshot, table->key_natts);
}

/* Closes a leaf, but for the relation. */
static void
close_leaf(Leaf *leaf)
{
	index_endscan(leaf->scan);
	index_close(leaf->index, AccessShareLock);
	ExecDropSingleTupleTableSlot(leaf->slot);
	repl_ml_image_close(leaf->image);
}

/* Returns the leaf whose slot has the row with this key, or NULL; also for none. */
static Leaf *
find_row(Search *search, Datum *key)
{
	MemoryContext old = MemoryContextSwitchTo(search->context);
	Leaf	   *found = NULL;

	for (int i = 0; key != NULL && i < search->count && found == NULL; i++)
	{
		Leaf	   *leaf = &search->leaves[i];

		for (int j = 0; j < search->part->table->key_natts; j++)
			leaf->keys[j].sk_argument = key[j];
		index_rescan(leaf->scan, leaf->keys, search->part->table->key_natts, NULL, 0);
		if (index_getnext_slot(leaf->scan, ForwardScanDirection, leaf->slot))
			found = leaf;
	}
	MemoryContextSwitchTo(old);
	return found;
}

/* Returns the clock of the deletion of a key, or NULL; also for none. */
static ReplMlClock *
find_deletion(Search *search, Datum *key)
{
	return key == NULL ? NULL :
		repl_ml_tombstone_seen(search->part->table, key, search->snapshot);
}

/*
 * Returns the row in a leaf's slot as JSON, made with the rights of the table's
 * owner; an empty text if that is too long to be shown.
 */
static char *
make_json(Search *search, Leaf *leaf)
{
	ReplMlUser	saved;
	char	   *json;

	repl_ml_become_owner(search->part->root, &saved);
	json = repl_ml_history_row_as_json(leaf->rel, repl_ml_table_get(leaf->rel)->clock_attnum,
									   leaf->slot);
	repl_ml_become_self(&saved);
	return json == NULL || strlen(json) > LONGEST_ROW_SHOWN ? pstrdup("") : json;
}

/* Finds out whether any change of the table is parked, as that is rare. */
static void
look_for_parked(Search *search)
{
	static SPIPlanPtr plan = NULL;
	const ReplMlTable *table = search->part->table;
	Oid			types[2] = {TEXTOID, TEXTOID};
	Datum		values[2] = {CStringGetTextDatum(NameStr(table->schema_name)),
	CStringGetTextDatum(NameStr(table->table_name))};
	char	   *locked;

	SPI_connect();
	if (SPI_execute_plan(repl_ml_spi_plan(&plan, "SELECT pg_catalog.bool_or(p.sqlstate"
										  " OPERATOR(pg_catalog.=) '" LOCKED "')"
										  " FROM repl_ml.parked_change p"
										  " WHERE p.schema_name OPERATOR(pg_catalog.=)"
										  " $1::pg_catalog.name"
										  " AND p.table_name OPERATOR(pg_catalog.=)"
										  " $2::pg_catalog.name", 2, types),
						 values, NULL, true, 1) != SPI_OK_SELECT)
		elog(ERROR, "SPI failed");
	locked = repl_ml_spi_text(0, 0);
	search->may_be_parked = locked != NULL;
	search->may_wait = locked != NULL && strcmp(locked, "t") == 0;
	SPI_finish();
}

/*
 * Returns a parked change of the row with this key, or one that is parked only
 * because the row is locked; 0 if there is none.  Keys are texts, in the order of
 * the columns' names.
 */
static int64
find_parked(Search *search, char **texts, bool only_locked)
{
	ReplMlTable *table = search->part->table;
	TupleDesc	desc = RelationGetDescr(search->part->root);
	Datum		pairs[2 * INDEX_MAX_KEYS];
	Datum		in_order[INDEX_MAX_KEYS];
	Oid			types[5] = {TEXTOID, TEXTOID, TEXTARRAYOID, TEXTARRAYOID, BOOLOID};
	Datum		values[5];
	int64		id = 0;

	if (!(only_locked ? search->may_wait : search->may_be_parked))
		return 0;
	for (int i = 0; i < table->key_natts; i++)
	{
		AttrNumber	attnum = table->key_attnums[search->order[i]];

		pairs[2 * i] = CStringGetTextDatum(NameStr(TupleDescAttr(desc, attnum - 1)->attname));
		pairs[2 * i + 1] = CStringGetTextDatum(texts[i]);
		in_order[search->order[i]] = pairs[2 * i + 1];
	}
	values[0] = CStringGetTextDatum(NameStr(table->schema_name));
	values[1] = CStringGetTextDatum(NameStr(table->table_name));
	values[2] = PointerGetDatum(construct_array(pairs, 2 * table->key_natts, TEXTOID, -1, false,
												TYPALIGN_INT));
	values[3] = PointerGetDatum(construct_array(in_order, table->key_natts, TEXTOID, -1, false,
												TYPALIGN_INT));
	values[4] = BoolGetDatum(only_locked);
	SPI_connect();
	if (SPI_execute_with_args("SELECT pg_catalog.max(p.id) FROM repl_ml.parked_change p"
							  " WHERE p.schema_name OPERATOR(pg_catalog.=) $1::pg_catalog.name"
							  " AND p.table_name OPERATOR(pg_catalog.=) $2::pg_catalog.name"
							  " AND (p.action OPERATOR(pg_catalog.=) ANY ('{insert,update}')"
							  " AND p.change OPERATOR(pg_catalog.@>) pg_catalog.jsonb_object($3)"
							  " OR p.action OPERATOR(pg_catalog.=) 'delete'"
							  " AND p.change OPERATOR(pg_catalog.->>) 'key'"
							  " OPERATOR(pg_catalog.=) $4::pg_catalog.text)"
							  " AND (NOT $5 OR p.sqlstate OPERATOR(pg_catalog.=) '" LOCKED "')",
							  5, types, values, NULL, true, 1) == SPI_OK_SELECT)
	{
		char	   *text = repl_ml_spi_text(0, 0);

		id = text == NULL ? 0 : strtoll(text, NULL, 10);
	}
	SPI_finish();
	return id;
}

/* Appends a version: V with its content, or D for a deletion. */
static void
send_version(StringInfo answer, const ReplMlVersion *version, Datum content)
{
	char	   *text;
	Oid			output;
	bool		is_varlena;

	pq_sendbyte(answer, version->deleted ? REPL_ML_ITEM_DELETION : REPL_ML_ITEM_ROW);
	repl_ml_part_send_clock(answer, (const bytea *) version->clock);
	if (version->deleted)
	{
		if (version->eviction == NULL)
			pq_sendint32(answer, -1);
		else
			repl_ml_part_send_bytes(answer, version->eviction, strlen(version->eviction));
		return;
	}
	getTypeOutputInfo(TEXTARRAYOID, &output, &is_varlena);
	text = OidOutputFunctionCall(output, content);
	repl_ml_part_send_bytes(answer, text, strlen(text));
}

/*
 * Tells the versions of a row: those that it was resolved from, or else itself;
 * of a deleted one its tombstones.  Reads values with the rights of the owner.
 */
static void
tell_versions(Search *search, char **texts, Datum *key, StringInfo answer)
{
	Leaf	   *leaf = find_row(search, key);
	Relation	rel = leaf == NULL ? search->part->root : leaf->rel;
	ReplMlTable *table = repl_ml_table_get(rel);
	bytea	   *stored = leaf == NULL ? NULL : repl_ml_image_clock(leaf->image, leaf->slot);
	const ReplMlClock *clock = leaf == NULL ? find_deletion(search, key) : (ReplMlClock *) stored;
	ReplMlVersions versions = {0};
	ReplMlUser	saved;

	/* of one that is damaged nothing is worth telling */
	if (clock != NULL && !repl_ml_clock_is_whole(clock))
		clock = NULL;
	repl_ml_become_owner(search->part->root, &saved);
	if (clock != NULL && !search->as_they_are &&
		repl_ml_version_load(table, key, RelationGetDescr(rel), clock, &versions))
	{
		for (int i = 0; i < versions.count; i++)
			send_version(answer, &versions.all[i], versions.all[i].deleted ? (Datum) 0 :
						 repl_ml_version_from_slot(versions.all[i].row, table->clock_attnum));
	}
	else if (leaf != NULL && clock != NULL)
		send_version(answer, &(ReplMlVersion) {.clock = clock},
					 repl_ml_version_from_slot(leaf->slot, table->clock_attnum));
	if (leaf == NULL && key != NULL)
	{
		ListCell   *lc;

		foreach(lc, repl_ml_tombstone_versions(table, key, search->snapshot))
			send_version(answer, lfirst(lc), (Datum) 0);
	}
	repl_ml_become_self(&saved);
	pq_sendbyte(answer, REPL_ML_ITEM_END);
}

/*
 * Tells of one key whether there is a row, or what is known of its deletion, and
 * whether a change of it waits for a lock.
 */
static void
tell_key(Search *search, char **texts, Datum *key, StringInfo answer)
{
	Leaf	   *leaf = find_row(search, key);
	ReplMlClock *deleted;

	if (leaf != NULL)
	{
		pq_sendbyte(answer, 'R');
		(void) repl_ml_image_key(leaf->image, leaf->slot);
		repl_ml_part_send_digest(answer, repl_ml_image_row(leaf->image, leaf->slot, false));
		repl_ml_part_send_clock(answer, repl_ml_image_clock(leaf->image, leaf->slot));
	}
	else
	{
		deleted = find_deletion(search, key);
		pq_sendbyte(answer, deleted == NULL ? 'A' : 'T');
		if (deleted != NULL)
			repl_ml_part_send_clock(answer, (bytea *) deleted);
	}
	pq_sendbyte(answer, find_parked(search, texts, true) != 0);
	if (search->details == REPL_ML_DETAILS_NONE)
		return;
	pq_sendint64(answer, find_parked(search, texts, false));
	if (leaf != NULL && search->details == REPL_ML_DETAILS_ALL)
	{
		char	   *json = make_json(search, leaf);

		for (int i = 0; i < repl_ml_image_columns(leaf->image); i++)
			pq_sendint64(answer, repl_ml_image_column(leaf->image, leaf->slot, i));
		repl_ml_part_send_bytes(answer, json, strlen(json));
	}
}

/*
 * Tells of one key whether there is a row, and if so the hash that sums of chunks
 * and pages have of it, and what tell_key tells.
 */
static void
tell_row(Search *search, char **texts, Datum *key, StringInfo answer)
{
	Leaf	   *leaf = find_row(search, key);

	pq_sendbyte(answer, leaf != NULL ? 'R' : 'A');
	if (leaf == NULL)
		return;
	(void) repl_ml_image_key(leaf->image, leaf->slot);
	repl_ml_part_send_digest(answer, repl_ml_image_row(leaf->image, leaf->slot, true));
	(void) repl_ml_image_key(leaf->image, leaf->slot);
	repl_ml_part_send_digest(answer, repl_ml_image_row(leaf->image, leaf->slot, false));
	repl_ml_part_send_clock(answer, repl_ml_image_clock(leaf->image, leaf->slot));
}

/* The texts of some keys, and what they are read into. */
typedef struct KeyTexts
{
	Relation	rel;
	ReplMlTable *table;
	const int  *order;
	int			count;
	char	  **texts;			/* of each key its columns */
	Datum	   *keys;			/* of each key INDEX_MAX_KEYS */
} KeyTexts;

/* A step of repl_ml_attempt: reads keys with the rights of the table's owner. */
static void
read_keys(void *argument)
{
	const KeyTexts *it = argument;
	int			natts = it->table->key_natts;
	Datum		in_order[INDEX_MAX_KEYS];
	ReplMlUser	saved;

	repl_ml_become_owner(it->rel, &saved);
	for (int i = 0; i < it->count; i++)
	{
		for (int j = 0; j < natts; j++)
			in_order[it->order[j]] = CStringGetTextDatum(it->texts[i * natts + j]);
		repl_ml_key_from_array(it->table,
							   PointerGetDatum(construct_array(in_order, natts, TEXTOID, -1,
															   false, TYPALIGN_INT)),
							   &it->keys[i * INDEX_MAX_KEYS]);
	}
	repl_ml_become_self(&saved);
}

/* Says whether an error is of a value, which its type here does not take. */
static bool
is_of_value(const ErrorData *error)
{
	int			category = ERRCODE_TO_CATEGORY(error->sqlerrcode);

	return category == ERRCODE_DATA_EXCEPTION ||
		category == ERRCODE_INTEGRITY_CONSTRAINT_VIOLATION || category == ERRCODE_PLPGSQL_ERROR;
}

/* Reads keys; returns false if some column's type does not take its text on this node. */
static bool
can_read_keys(KeyTexts *it)
{
	ErrorData  *error = repl_ml_attempt(read_keys, it);

	if (error != NULL && !is_of_value(error))
		ReThrowError(error);
	return error == NULL;
}

/*
 * Reads a key's texts, in the order of the columns' names, into datums.  Returns
 * false if its types do not take them on this node: then it has no such row, and
 * a change that brought it is parked.
 */
bool
repl_ml_known_read_key(Relation rel, ReplMlTable *table, const int *order, char **texts,
					   Datum *key)
{
	return can_read_keys(&(KeyTexts) {.rel = rel,.table = table,.order = order,.count = 1,
									  .texts = texts,.keys = key});
}

/*
 * Tells of so many keys what "tell" does.  They are read at once, and one by one
 * only if one of them cannot be.
 */
static void
tell_some(Search *search, Datum *texts, int count, StringInfo answer, KeyTeller tell)
{
	int			natts = search->part->table->key_natts;
	KeyTexts	it = {.rel = search->part->root,.table = search->part->table,
		.order = search->order,.count = count,
		.texts = palloc(count * natts * sizeof(char *)),
	.keys = palloc(count * INDEX_MAX_KEYS * sizeof(Datum))};
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext, "repl_ml key looked for",
												  ALLOCSET_DEFAULT_SIZES);
	bool		all_read;

	for (int i = 0; i < count * natts; i++)
		it.texts[i] = TextDatumGetCString(texts[i]);
	all_read = can_read_keys(&it);
	for (int i = 0; i < count; i++)
	{
		MemoryContext old = MemoryContextSwitchTo(context);
		char	  **columns = &it.texts[i * natts];
		Datum	   *key = &it.keys[i * INDEX_MAX_KEYS];

		CHECK_FOR_INTERRUPTS();
		tell(search, columns,
			 all_read || repl_ml_known_read_key(it.rel, it.table, it.order, columns, key) ?
			 key : NULL, answer);
		MemoryContextSwitchTo(old);
		MemoryContextReset(context);
	}
	MemoryContextDelete(context);
}

/* Tells of each key what "tell" does; "texts" has the columns of all keys. */
static void
tell_keys(Search *search, Datum *texts, int count, StringInfo answer, KeyTeller tell)
{
	int			keys = count / search->part->table->key_natts;
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext, "repl_ml keys looked for",
												  ALLOCSET_DEFAULT_SIZES);

	search->context = CurrentMemoryContext;
	search->count = list_length(search->part->leaves);
	search->leaves = palloc0(Max(search->count, 1) * sizeof(Leaf));
	for (int i = 0; i < search->count; i++)
		open_leaf(search, &search->leaves[i], list_nth(search->part->leaves, i));
	for (int i = 0; i < keys; i += KEYS_AT_ONCE)
	{
		MemoryContext old = MemoryContextSwitchTo(context);

		tell_some(search, texts + i * search->part->table->key_natts, Min(KEYS_AT_ONCE, keys - i),
				  answer, tell);
		MemoryContextSwitchTo(old);
		MemoryContextReset(context);
	}
	for (int i = 0; i < search->count; i++)
		close_leaf(&search->leaves[i]);
	MemoryContextDelete(context);
}

/* Returns those of the positions that this node has not reached. */
static ReplMlClock *
find_lacking(const ReplMlClock *wanted)
{
	ReplMlClock *have = repl_ml_positions();
	int			count = 0;
	ReplMlClockEntry *entries =
		palloc(Max(repl_ml_clock_count(wanted), 1) * sizeof(ReplMlClockEntry));

	for (int i = 0; i < repl_ml_clock_count(wanted); i++)
	{
		ReplMlClockEntry entry = repl_ml_clock_entry(wanted, i);

		if (repl_ml_clock_counter(have, entry.node) < entry.counter)
			entries[count++] = entry;
	}
	return repl_ml_clock_from_entries(entries, count);
}

/*
 * Waits until this node has what the positions say, at most so long; returns
 * those that it has not reached.
 */
static ReplMlClock *
catch_up(const ReplMlClock *wanted, int patience_ms)
{
	TimestampTz deadline = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), patience_ms);
	ReplMlClock *lacking;

	while (repl_ml_clock_count(lacking = find_lacking(wanted)) > 0)
	{
		if (!repl_ml_position_wait(deadline, "ReplMlVerifyCatchUp"))
			break;
	}
	ConditionVariableCancelSleep();
	return lacking;
}

/*
 * Returns the counter up to which every write of this node is of a transaction
 * that has ended, or 0 while one is prepared: the next snapshot shows them.
 */
static uint64
find_safe_counter(void)
{
	uint64		safe = repl_ml_ticker_safe();
	uint64		prepared =
		repl_ml_spi_execute("SELECT FROM pg_catalog.pg_prepared_xacts"
							" WHERE database OPERATOR(pg_catalog.=) pg_catalog.current_database()",
							0, NULL, NULL, NULL);

	return prepared > 0 ? 0 : safe;
}

/* Appends what has to be known of a node that does not show a version. */
static void
send_standing(StringInfo answer, ReplMlTable *table)
{
	Oid			types[3] = {TEXTOID, TEXTOID, INT4OID};
	Datum		values[3] = {CStringGetTextDatum(NameStr(table->schema_name)),
		CStringGetTextDatum(NameStr(table->table_name)),
	Int32GetDatum(repl_ml_identity()->node_id)};
	char	   *floor;

	SPI_connect();
	if (SPI_execute_with_args("SELECT (SELECT c.floor FROM repl_ml.collection c"
							  " WHERE c.node_id OPERATOR(pg_catalog.=) $3),"
							  " EXISTS (SELECT FROM repl_ml.eviction e"
							  " WHERE e.schema_name OPERATOR(pg_catalog.=) $1::pg_catalog.name"
							  " AND e.table_name OPERATOR(pg_catalog.=) $2::pg_catalog.name)",
							  3, types, values, NULL, false, 1) != SPI_OK_SELECT)
		elog(ERROR, "SPI failed");
	floor = repl_ml_spi_text(0, 0);
	pq_sendbyte(answer, strcmp(repl_ml_spi_text(0, 1), "t") == 0);
	floor = floor == NULL ? "{}" : floor;
	repl_ml_part_send_bytes(answer, floor, strlen(floor));
	SPI_finish();
}

/*
 * Appends what "tell" knows of each key, as the snapshot sees it.  Keys are texts,
 * of each key those of its columns in the order of their names.
 */
static void
tell_found(Search *search, ArrayType *keys, Snapshot snapshot, StringInfo answer, KeyTeller tell)
{
	ReplMlPart *part = search->part;
	Datum	   *texts;
	int			count;

	deconstruct_array(keys, TEXTOID, -1, false, TYPALIGN_INT, &texts, NULL, &count);
	(void) repl_ml_image_key_order(part->table, RelationGetDescr(part->root), search->order);
	search->snapshot = RegisterSnapshot(snapshot);
	PushActiveSnapshot(search->snapshot);
	look_for_parked(search);
	tell_keys(search, texts, count, answer, tell);
	PopActiveSnapshot();
	UnregisterSnapshot(search->snapshot);
}

/*
 * Returns what is known here of these keys, after this node has caught up with
 * the positions that are wanted, or for as long as there is patience.
 */
StringInfo
repl_ml_known_keys(const ReplMlInquiry *inquiry, ArrayType *keys, const ReplMlClock *wanted,
				   int patience_ms, ReplMlDetails details)
{
	StringInfo	answer = makeStringInfo();
	char	   *lacking = repl_ml_clock_to_text(catch_up(wanted, patience_ms));
	ReplMlPart	part;
	Search		search = {.part = &part,.details = details};

	if (!repl_ml_part_open(inquiry, &part, answer))
		return answer;
	repl_ml_part_send_bytes(answer, lacking, strlen(lacking));
	/* before the snapshot: what has ended by now is seen */
	pq_sendint64(answer, find_safe_counter());
	tell_found(&search, keys, GetLatestSnapshot(), answer, tell_key);
	send_standing(answer, part.table);
	repl_ml_part_close(&part);
	return answer;
}

/* Returns, for increment.c, what the snapshot sees of the rows with these keys. */
StringInfo
repl_ml_known_rows(const ReplMlInquiry *inquiry, ArrayType *keys, Snapshot snapshot)
{
	StringInfo	answer = makeStringInfo();
	ReplMlPart	part;
	Search		search = {.part = &part};

	if (!repl_ml_part_open(inquiry, &part, answer))
		return answer;
	tell_found(&search, keys, snapshot, answer, tell_row);
	repl_ml_part_close(&part);
	return answer;
}

/*
 * Returns, for who repairs, the versions of the rows with these keys, for each
 * key up to REPL_ML_ITEM_END: joined elsewhere they make of the row what it is
 * here; or the rows as they are.
 */
StringInfo
repl_ml_known_versions(const ReplMlInquiry *inquiry, ArrayType *keys, bool as_they_are)
{
	StringInfo	answer = makeStringInfo();
	ReplMlPart	part;
	Search		search = {.part = &part,.as_they_are = as_they_are};

	if (!repl_ml_part_open(inquiry, &part, answer))
		return answer;
	tell_found(&search, keys, GetLatestSnapshot(), answer, tell_versions);
	repl_ml_part_close(&part);
	return answer;
}

PG_FUNCTION_INFO_V1(repl_ml_verify_keys);

/*
 * repl_ml.verify_keys(schema_name, table_name, signature, chunks, keys, wanted,
 * patience, details): see repl_ml_known_keys.
 */
Datum
repl_ml_verify_keys(PG_FUNCTION_ARGS)
{
	ReplMlInquiry inquiry = repl_ml_part_inquiry(fcinfo);

	return repl_ml_part_answer(repl_ml_known_keys(&inquiry, PG_GETARG_ARRAYTYPE_P(4),
										PG_GETARG_REPL_ML_CLOCK_P(5), PG_GETARG_INT32(6),
										(ReplMlDetails) PG_GETARG_INT32(7)));
}

PG_FUNCTION_INFO_V1(repl_ml_verify_positions);

/*
 * repl_ml.verify_positions(): what repl_ml.current_vector() returns, for who is
 * going to have others wait for it.
 */
Datum
repl_ml_verify_positions(PG_FUNCTION_ARGS)
{
	repl_ml_shmem_require();
	PG_RETURN_POINTER(repl_ml_positions_to_share(true));
}

PG_FUNCTION_INFO_V1(repl_ml_repair_source);

/*
 * repl_ml.repair_source(schema_name, table_name, signature, chunks, keys,
 * as_they_are): see repl_ml_known_versions.
 */
Datum
repl_ml_repair_source(PG_FUNCTION_ARGS)
{
	ReplMlInquiry inquiry = repl_ml_part_inquiry(fcinfo);

	return repl_ml_part_answer(repl_ml_known_versions(&inquiry, PG_GETARG_ARRAYTYPE_P(4),
													 PG_GETARG_BOOL(5)));
}
