/*
 * part.c
 *		One node's part of a comparison: sums of the hashes of its rows, chunk by
 *		chunk; the rows of some chunks; and what it knows of some keys.
 *
 * A backend does it, of the node that compares (compare.c), or as the function
 * that it calls on the others.  Which chunk a row is in depends on its key's
 * bytes alone, so that nodes may sort as they like.  Tables are scanned under a
 * snapshot taken now, and partitions with them, whichever there are.  Answers
 * are bytes: what REPL_ML_PART_... says, and if it is IS_THERE what was asked for.
 *
 * Nothing of the table's owner runs here, but for what reading a key may run
 * (a domain's constraint), and making JSON of a row: that has his rights.
 *
 * Not here: what a row's bytes are (image.c).  Locks: ACCESS SHARE on the table
 * and its partitions while it works.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/relscan.h"
#include "access/stratnum.h"
#include "access/table.h"
#include "access/tableam.h"
#include "catalog/namespace.h"
#include "catalog/pg_inherits.h"
#include "catalog/pg_type.h"
#include "executor/executor.h"
#include "libpq/pqformat.h"
#include "miscadmin.h"
#include "storage/condition_variable.h"
#include "storage/lmgr.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timeout.h"

#include "compat.h"
#include "converge/converge.h"
#include "read/read.h"
#include "verify/verify.h"

#define ROWS_BETWEEN_NEWS	4096	/* of stat_progress_verify */
#define CLIENT_CHECK_MS		"1000"
#define LONGEST_ROW_SHOWN	(1024 * 1024)

/* A table of which a part is asked. */
typedef struct Part
{
	Relation	root;
	ReplMlTable *table;
	List	   *leaves;			/* of Relation: those that have rows */
	int			settings;		/* level of what fixes the form of values */
} Part;

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
	Part	   *part;
	Snapshot	snapshot;
	int			count;
	Leaf	   *leaves;
	bool		details;
	bool		as_they_are;	/* rows, not what they were resolved from */
	int			order[INDEX_MAX_KEYS];
	MemoryContext context;		/* of the scans, which keep things from one key
								 * to the next */
} Search;

typedef void (*KeyTeller) (Search *search, char **texts, Datum *key, StringInfo answer);
typedef void (*RowVisitor) (ReplMlImage *image, TupleTableSlot *slot, void *argument);

static bool open_part(const ReplMlInquiry *inquiry, Part *part, StringInfo answer);
static void close_part(Part *part);
static int64 visit_rows(Part *part, int chunks, RowVisitor visitor, void *argument);

/* ---- opening ---- */

/* Says whether rows of the table are still to be copied from a peer. */
static bool
is_being_copied(const char *schema_name, const char *table_name)
{
	Oid			types[2] = {TEXTOID, TEXTOID};
	Datum		values[2] = {CStringGetTextDatum(schema_name), CStringGetTextDatum(table_name)};

	return repl_ml_spi_execute("SELECT FROM repl_ml.table_sync"
							   " WHERE schema_name OPERATOR(pg_catalog.=) $1::pg_catalog.name"
							   " AND table_name OPERATOR(pg_catalog.=) $2::pg_catalog.name"
							   " AND state OPERATOR(pg_catalog.=) 'pending'",
							   2, types, values, NULL) > 0;
}

/* Returns the replicated table of that name, locked; InvalidOid if there is none. */
static Oid
find_table(const ReplMlInquiry *inquiry)
{
	Oid			schema = get_namespace_oid(inquiry->schema_name, true);
	Oid			relid = OidIsValid(schema) ? get_relname_relid(inquiry->table_name, schema) :
		InvalidOid;

	if (!OidIsValid(relid))
		return InvalidOid;
	LockRelationOid(relid, AccessShareLock);
	if (repl_ml_table_clock_attnum(relid) != InvalidAttrNumber)
		return relid;
	UnlockRelationOid(relid, AccessShareLock);
	return InvalidOid;
}

/* Opens what of the table has rows: itself, or its partitions. */
static void
open_leaves(Part *part)
{
	ListCell   *lc;
	List	   *all;

	if (part->root->rd_rel->relkind != RELKIND_PARTITIONED_TABLE)
	{
		part->leaves = list_make1(part->root);
		return;
	}
	all = find_all_inheritors(RelationGetRelid(part->root), AccessShareLock, NULL);
	foreach(lc, all)
	{
		Relation	rel = table_open(lfirst_oid(lc), NoLock);

		/* the root's lock is not of this list */
		if (RELKIND_HAS_TABLE_AM(rel->rd_rel->relkind))
			part->leaves = lappend(part->leaves, rel);
		else
			table_close(rel, lfirst_oid(lc) == RelationGetRelid(part->root) ? NoLock :
						AccessShareLock);
	}
}

/*
 * Opens the table that is asked for and begins the answer.  Returns false if
 * the answer is that it cannot be compared.
 */
static bool
open_part(const ReplMlInquiry *inquiry, Part *part, StringInfo answer)
{
	Oid			relid = find_table(inquiry);
	char	   *signature;

	*part = (Part) {0};
	initStringInfo(answer);
	if (!OidIsValid(relid))
	{
		pq_sendbyte(answer, REPL_ML_PART_MISSING);
		return false;
	}
	if (is_being_copied(inquiry->schema_name, inquiry->table_name))
	{
		UnlockRelationOid(relid, AccessShareLock);
		pq_sendbyte(answer, REPL_ML_PART_COPIED);
		return false;
	}
	part->root = table_open(relid, NoLock);
	part->table = repl_ml_table_get(part->root);
	signature = repl_ml_image_signature(part->root);
	if (strcmp(signature, inquiry->signature) != 0)
	{
		table_close(part->root, AccessShareLock);
		pq_sendbyte(answer, REPL_ML_PART_DIFFERS);
		pq_sendbytes(answer, signature, strlen(signature));
		return false;
	}
	open_leaves(part);
	part->settings = repl_ml_session_fix_values();
	pq_sendbyte(answer, REPL_ML_PART_IS_THERE);
	return true;
}

/* Closes what open_part opened, and lets the locks go. */
static void
close_part(Part *part)
{
	ListCell   *lc;

	repl_ml_session_restore(part->settings);
	foreach(lc, part->leaves)
	{
		if (lfirst(lc) != part->root)
			table_close((Relation) lfirst(lc), AccessShareLock);
	}
	table_close(part->root, AccessShareLock);
}

/* ---- scanning ---- */

/* Shows every some thousand rows how far a scan is. */
static void
show_scan(int64 rows, double expected, int chunks)
{
	double		share = expected <= 0 ? 0 : Min(rows / expected, 1);

	if (rows % ROWS_BETWEEN_NEWS == 0)
		repl_ml_verify_progress((int64) (share * chunks), rows, -1);
}

/*
 * Lets the visitor see all rows of the table that are committed now; returns
 * how many.
 */
static int64
visit_rows(Part *part, int chunks, RowVisitor visitor, void *argument)
{
	Snapshot	snapshot = RegisterSnapshot(GetLatestSnapshot());
	double		expected = 0;
	int64		rows = 0;
	ListCell   *lc;

	foreach(lc, part->leaves)
		expected += Max(((Relation) lfirst(lc))->rd_rel->reltuples, 0);
	foreach(lc, part->leaves)
	{
		Relation	rel = lfirst(lc);
		ReplMlImage *image = repl_ml_image_open(rel);
		TupleTableSlot *slot = table_slot_create(rel, NULL);
		TableScanDesc scan = table_beginscan(rel, snapshot, 0, NULL);

		while (table_scan_getnextslot(scan, ForwardScanDirection, slot))
		{
			CHECK_FOR_INTERRUPTS();
			visitor(image, slot, argument);
			show_scan(++rows, expected, chunks);
		}
		table_endscan(scan);
		ExecDropSingleTupleTableSlot(slot);
		repl_ml_image_close(image);
	}
	UnregisterSnapshot(snapshot);
	return rows;
}

/* The sums of all chunks; their number is a power of two. */
typedef struct Sums
{
	uint64		mask;
	ReplMlChunk *chunks;
} Sums;

/* A visitor: adds a row to its chunk. */
static void
add_row(ReplMlImage *image, TupleTableSlot *slot, void *argument)
{
	Sums	   *sums = argument;
	ReplMlChunk *chunk = &sums->chunks[repl_ml_image_key(image, slot) & sums->mask];
	ReplMlDigest row = repl_ml_image_row(image, slot, true);

	chunk->rows++;
	chunk->sum.lane[0] += row.lane[0];
	chunk->sum.lane[1] += row.lane[1];
}

/*
 * Returns, as the first pass of a comparison, how many rows there are, and of
 * each chunk how many and the sum of their hashes.
 */
StringInfo
repl_ml_part_sums(const ReplMlInquiry *inquiry)
{
	StringInfo	answer = makeStringInfo();
	Sums		sums = {.mask = inquiry->chunks - 1};
	Part		part;
	int64		rows;

	if (!open_part(inquiry, &part, answer))
		return answer;
	sums.chunks = palloc0(inquiry->chunks * sizeof(ReplMlChunk));
	rows = visit_rows(&part, inquiry->chunks, add_row, &sums);
	pq_sendint64(answer, rows);
	enlargeStringInfo(answer, inquiry->chunks * sizeof(ReplMlChunk));
	for (int i = 0; i < inquiry->chunks; i++)
	{
		pq_sendint64(answer, sums.chunks[i].rows);
		pq_sendint64(answer, sums.chunks[i].sum.lane[0]);
		pq_sendint64(answer, sums.chunks[i].sum.lane[1]);
	}
	pfree(sums.chunks);
	close_part(&part);
	return answer;
}

/* Appends bytes with their length. */
static void
send_bytes(StringInfo answer, const char *data, Size size)
{
	pq_sendint32(answer, size);
	pq_sendbytes(answer, data, size);
}

/* Appends a clock as it is stored, and -1 for null. */
static void
send_clock(StringInfo answer, const bytea *clock)
{
	if (clock == NULL)
		pq_sendint32(answer, -1);
	else
		send_bytes(answer, VARDATA_ANY(clock), VARSIZE_ANY_EXHDR(clock));
}

/* Appends a hash. */
static void
send_digest(StringInfo answer, ReplMlDigest digest)
{
	pq_sendint64(answer, digest.lane[0]);
	pq_sendint64(answer, digest.lane[1]);
}

/* The rows of some chunks. */
typedef struct WantedRows
{
	uint64		mask;
	const uint8 *wanted;		/* a bit for each chunk */
	int			key_natts;
	StringInfo	answer;
	MemoryContext context;		/* of a key's texts */
} WantedRows;

/* A visitor: tells a row of a chunk that is wanted. */
static void
tell_row(ReplMlImage *image, TupleTableSlot *slot, void *argument)
{
	WantedRows *rows = argument;
	uint64		chunk = repl_ml_image_key(image, slot) & rows->mask;
	MemoryContext old;

	if ((rows->wanted[chunk / 8] & (1 << chunk % 8)) == 0)
		return;
	MemoryContextReset(rows->context);
	old = MemoryContextSwitchTo(rows->context);
	for (int i = 0; i < rows->key_natts; i++)
	{
		char	   *text = repl_ml_image_key_text(image, slot, i);

		send_bytes(rows->answer, text, strlen(text));
	}
	MemoryContextSwitchTo(old);
	send_digest(rows->answer, repl_ml_image_row(image, slot, false));
	send_clock(rows->answer, repl_ml_image_clock(image, slot));
}

/*
 * Returns, as the second pass, the key, the hash and the clock of each row in
 * the chunks whose bits are set.
 */
StringInfo
repl_ml_part_rows(const ReplMlInquiry *inquiry, const bytea *wanted)
{
	StringInfo	answer = makeStringInfo();
	WantedRows	rows = {.mask = inquiry->chunks - 1,.wanted = (uint8 *) VARDATA_ANY(wanted)};
	Part		part;

	if (VARSIZE_ANY_EXHDR(wanted) != (inquiry->chunks + 7) / 8)
		ereport(ERROR,
				(errcode(ERRCODE_PROTOCOL_VIOLATION),
				 errmsg("bits of %zu bytes do not stand for %d chunks",
						VARSIZE_ANY_EXHDR(wanted), inquiry->chunks),
				 errhint(REPL_ML_SAME_VERSION_HINT)));
	if (!open_part(inquiry, &part, answer))
		return answer;
	rows.key_natts = part.table->key_natts;
	rows.answer = answer;
	rows.context = AllocSetContextCreate(CurrentMemoryContext, "repl_ml key to tell",
										 ALLOCSET_SMALL_SIZES);
	(void) visit_rows(&part, inquiry->chunks, tell_row, &rows);
	MemoryContextDelete(rows.context);
	close_part(&part);
	return answer;
}

/* ---- looking for keys ---- */

/* Opens a leaf and prepares its scan keys; their values come later. */
static void
open_leaf(Search *search, Leaf *leaf, Relation rel)
{
	ReplMlTable *table = repl_ml_table_get(rel);

	leaf->rel = rel;
	leaf->image = repl_ml_image_open(rel);
	leaf->slot = table_slot_create(rel, NULL);
	leaf->index = index_open(table->key_index, AccessShareLock);
	for (int i = 0; i < table->key_natts; i++)
	{
		Oid			family = leaf->index->rd_opfamily[i];
		Oid			type = leaf->index->rd_opcintype[i];
		Oid			equal = get_opfamily_member(family, type, type, BTEqualStrategyNumber);

		ScanKeyEntryInitialize(&leaf->keys[i], 0, i + 1, BTEqualStrategyNumber, InvalidOid,
							   leaf->index->rd_indcollation[i], get_opcode(equal), (Datum) 0);
	}
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

/* Returns the leaf whose slot has the row with this key, or NULL. */
static Leaf *
find_row(Search *search, Datum *key)
{
	MemoryContext old = MemoryContextSwitchTo(search->context);
	Leaf	   *found = NULL;

	for (int i = 0; i < search->count && found == NULL; i++)
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

/*
 * Returns a parked change of the row with this key, 0 if there is none.  Keys
 * are texts, in the order of the columns' names.
 */
static int64
find_parked(Search *search, char **texts)
{
	ReplMlTable *table = search->part->table;
	TupleDesc	desc = RelationGetDescr(search->part->root);
	Datum		pairs[2 * INDEX_MAX_KEYS];
	Datum		in_order[INDEX_MAX_KEYS];
	Oid			types[4] = {TEXTOID, TEXTOID, TEXTARRAYOID, TEXTARRAYOID};
	Datum		values[4];
	int64		id = 0;

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
	SPI_connect();
	if (SPI_execute_with_args("SELECT pg_catalog.max(p.id) FROM repl_ml.parked_change p"
							  " WHERE p.schema_name OPERATOR(pg_catalog.=) $1::pg_catalog.name"
							  " AND p.table_name OPERATOR(pg_catalog.=) $2::pg_catalog.name"
							  " AND (p.action OPERATOR(pg_catalog.=) ANY ('{insert,update}')"
							  " AND p.change OPERATOR(pg_catalog.@>) pg_catalog.jsonb_object($3)"
							  " OR p.action OPERATOR(pg_catalog.=) 'delete'"
							  " AND p.change OPERATOR(pg_catalog.->>) 'key'"
							  " OPERATOR(pg_catalog.=) $4::pg_catalog.text)",
							  4, types, values, NULL, true, 1) == SPI_OK_SELECT)
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
	send_clock(answer, (const bytea *) version->clock);
	if (version->deleted)
	{
		if (version->eviction == NULL)
			pq_sendint32(answer, -1);
		else
			send_bytes(answer, version->eviction, strlen(version->eviction));
		return;
	}
	getTypeOutputInfo(TEXTARRAYOID, &output, &is_varlena);
	text = OidOutputFunctionCall(output, content);
	send_bytes(answer, text, strlen(text));
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
	const ReplMlClock *clock = leaf == NULL ?
		repl_ml_tombstone_seen(table, key, search->snapshot) : (ReplMlClock *) stored;
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
	if (leaf == NULL)
	{
		ListCell   *lc;

		foreach(lc, repl_ml_tombstone_versions(table, key, search->snapshot))
			send_version(answer, lfirst(lc), (Datum) 0);
	}
	repl_ml_become_self(&saved);
	pq_sendbyte(answer, REPL_ML_ITEM_END);
}

/* Tells of one key whether there is a row, or what is known of its deletion. */
static void
tell_key(Search *search, char **texts, Datum *key, StringInfo answer)
{
	Leaf	   *leaf = find_row(search, key);
	ReplMlClock *deleted;

	if (leaf != NULL)
	{
		pq_sendbyte(answer, 'R');
		(void) repl_ml_image_key(leaf->image, leaf->slot);
		send_digest(answer, repl_ml_image_row(leaf->image, leaf->slot, false));
		send_clock(answer, repl_ml_image_clock(leaf->image, leaf->slot));
	}
	else
	{
		deleted = repl_ml_tombstone_seen(search->part->table, key, search->snapshot);
		pq_sendbyte(answer, deleted == NULL ? 'A' : 'T');
		if (deleted != NULL)
			send_clock(answer, (bytea *) deleted);
	}
	if (!search->details)
		return;
	pq_sendint64(answer, find_parked(search, texts));
	if (leaf != NULL)
	{
		char	   *json = make_json(search, leaf);

		for (int i = 0; i < repl_ml_image_columns(leaf->image); i++)
			pq_sendint64(answer, repl_ml_image_column(leaf->image, leaf->slot, i));
		send_bytes(answer, json, strlen(json));
	}
}

/* Reads the texts of a key into datums, with the rights of the table's owner. */
static void
read_key(Search *search, char **texts, Datum *key)
{
	ReplMlTable *table = search->part->table;
	Datum		in_order[INDEX_MAX_KEYS];
	ReplMlUser	saved;

	for (int i = 0; i < table->key_natts; i++)
		in_order[search->order[i]] = CStringGetTextDatum(texts[i]);
	repl_ml_become_owner(search->part->root, &saved);
	repl_ml_key_from_array(table,
						   PointerGetDatum(construct_array(in_order, table->key_natts, TEXTOID, -1,
														   false, TYPALIGN_INT)),
						   key);
	repl_ml_become_self(&saved);
}

/* Tells of each key what "tell" does; "texts" has the columns of all keys. */
static void
tell_keys(Search *search, Datum *texts, int count, StringInfo answer, KeyTeller tell)
{
	int			natts = search->part->table->key_natts;
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext, "repl_ml key looked for",
												  ALLOCSET_DEFAULT_SIZES);

	search->context = CurrentMemoryContext;
	search->count = list_length(search->part->leaves);
	search->leaves = palloc0(Max(search->count, 1) * sizeof(Leaf));
	for (int i = 0; i < search->count; i++)
		open_leaf(search, &search->leaves[i], list_nth(search->part->leaves, i));
	for (int i = 0; i + natts <= count; i += natts)
	{
		MemoryContext old = MemoryContextSwitchTo(context);
		char	   *columns[INDEX_MAX_KEYS];
		Datum		key[INDEX_MAX_KEYS];

		CHECK_FOR_INTERRUPTS();
		for (int j = 0; j < natts; j++)
			columns[j] = TextDatumGetCString(texts[i + j]);
		read_key(search, columns, key);
		tell(search, columns, key, answer);
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
	send_bytes(answer, floor, strlen(floor));
	SPI_finish();
}

/*
 * Returns what is known here of these keys, after this node has caught up with
 * the positions that are wanted, or for as long as there is patience.  Keys are
 * texts, of each key those of its columns in the order of their names.
 */
StringInfo
repl_ml_part_keys(const ReplMlInquiry *inquiry, ArrayType *keys, const ReplMlClock *wanted,
				  int patience_ms, bool details)
{
	StringInfo	answer = makeStringInfo();
	char	   *lacking = repl_ml_clock_to_text(catch_up(wanted, patience_ms));
	Part		part;
	Search		search = {.part = &part,.details = details};
	Datum	   *texts;
	int			count;

	if (!open_part(inquiry, &part, answer))
		return answer;
	deconstruct_array(keys, TEXTOID, -1, false, TYPALIGN_INT, &texts, NULL, &count);
	(void) repl_ml_image_key_order(part.table, RelationGetDescr(part.root), search.order);
	send_bytes(answer, lacking, strlen(lacking));
	pq_sendint64(answer, find_safe_counter());
	/* what has ended by now is seen */
	search.snapshot = RegisterSnapshot(GetLatestSnapshot());
	PushActiveSnapshot(search.snapshot);
	tell_keys(&search, texts, count, answer, tell_key);
	PopActiveSnapshot();
	UnregisterSnapshot(search.snapshot);
	send_standing(answer, part.table);
	close_part(&part);
	return answer;
}

/*
 * Returns, for who repairs, the versions of the rows with these keys, for each
 * key up to REPL_ML_ITEM_END: joined elsewhere they make of the row what it is
 * here; or the rows as they are.
 */
StringInfo
repl_ml_part_versions(const ReplMlInquiry *inquiry, ArrayType *keys, bool as_they_are)
{
	StringInfo	answer = makeStringInfo();
	Part		part;
	Search		search = {.part = &part,.as_they_are = as_they_are};
	Datum	   *texts;
	int			count;

	if (!open_part(inquiry, &part, answer))
		return answer;
	deconstruct_array(keys, TEXTOID, -1, false, TYPALIGN_INT, &texts, NULL, &count);
	(void) repl_ml_image_key_order(part.table, RelationGetDescr(part.root), search.order);
	search.snapshot = RegisterSnapshot(GetLatestSnapshot());
	PushActiveSnapshot(search.snapshot);
	tell_keys(&search, texts, count, answer, tell_versions);
	PopActiveSnapshot();
	UnregisterSnapshot(search.snapshot);
	close_part(&part);
	return answer;
}

/* ---- for the other members ---- */

/*
 * Ends this work soon after whoever asked for it has gone away, which core
 * would notice only when it sends the answer.
 */
static void
watch_client(void)
{
	/* not every platform can do it */
	if (set_config_option("client_connection_check_interval", CLIENT_CHECK_MS, PGC_USERSET,
						  PGC_S_SESSION, GUC_ACTION_LOCAL, true, DEBUG1, false) == 1 &&
		!get_timeout_active(CLIENT_CONNECTION_CHECK_TIMEOUT))
		enable_timeout_after(CLIENT_CONNECTION_CHECK_TIMEOUT, atoi(CLIENT_CHECK_MS));
}

/* Reads the arguments that all questions begin with. */
ReplMlInquiry
repl_ml_part_inquiry(FunctionCallInfo fcinfo)
{
	ReplMlInquiry inquiry = {
		.schema_name = text_to_cstring(PG_GETARG_TEXT_PP(0)),
		.table_name = text_to_cstring(PG_GETARG_TEXT_PP(1)),
		.signature = text_to_cstring(PG_GETARG_TEXT_PP(2)),
		.chunks = PG_GETARG_INT32(3)
	};

	repl_ml_shmem_require();
	(void) repl_ml_identity_require();
	if (inquiry.chunks < 1 || inquiry.chunks > REPL_ML_MAX_CHUNKS ||
		(inquiry.chunks & (inquiry.chunks - 1)) != 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("a table cannot be compared in %d chunks", inquiry.chunks),
				 errhint(REPL_ML_SAME_VERSION_HINT)));
	watch_client();
	return inquiry;
}

/* Returns an answer as a value. */
Datum
repl_ml_part_answer(StringInfo answer)
{
	bytea	   *result = palloc(VARHDRSZ + answer->len);

	SET_VARSIZE(result, VARHDRSZ + answer->len);
	memcpy(VARDATA(result), answer->data, answer->len);
	return PointerGetDatum(result);
}

PG_FUNCTION_INFO_V1(repl_ml_verify_sums);

/* repl_ml.verify_sums(schema_name, table_name, signature, chunks): see repl_ml_part_sums. */
Datum
repl_ml_verify_sums(PG_FUNCTION_ARGS)
{
	ReplMlInquiry inquiry = repl_ml_part_inquiry(fcinfo);

	return repl_ml_part_answer(repl_ml_part_sums(&inquiry));
}

PG_FUNCTION_INFO_V1(repl_ml_verify_rows);

/*
 * repl_ml.verify_rows(schema_name, table_name, signature, chunks, wanted): see
 * repl_ml_part_rows.
 */
Datum
repl_ml_verify_rows(PG_FUNCTION_ARGS)
{
	ReplMlInquiry inquiry = repl_ml_part_inquiry(fcinfo);

	return repl_ml_part_answer(repl_ml_part_rows(&inquiry, PG_GETARG_BYTEA_PP(4)));
}

PG_FUNCTION_INFO_V1(repl_ml_verify_keys);

/*
 * repl_ml.verify_keys(schema_name, table_name, signature, chunks, keys, wanted,
 * patience, details): see repl_ml_part_keys.
 */
Datum
repl_ml_verify_keys(PG_FUNCTION_ARGS)
{
	ReplMlInquiry inquiry = repl_ml_part_inquiry(fcinfo);

	return repl_ml_part_answer(repl_ml_part_keys(&inquiry, PG_GETARG_ARRAYTYPE_P(4),
										PG_GETARG_REPL_ML_CLOCK_P(5), PG_GETARG_INT32(6),
										PG_GETARG_BOOL(7)));
}

PG_FUNCTION_INFO_V1(repl_ml_repair_source);

/*
 * repl_ml.repair_source(schema_name, table_name, signature, chunks, keys,
 * as_they_are): see repl_ml_part_versions.
 */
Datum
repl_ml_repair_source(PG_FUNCTION_ARGS)
{
	ReplMlInquiry inquiry = repl_ml_part_inquiry(fcinfo);

	return repl_ml_part_answer(repl_ml_part_versions(&inquiry, PG_GETARG_ARRAYTYPE_P(4),
													 PG_GETARG_BOOL(5)));
}
