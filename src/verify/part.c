/*
 * part.c
 *		One node's part of a comparison: sums of the hashes of its rows, chunk by
 *		chunk, and the rows of some chunks.
 *
 * A backend does it, of the node that compares (compare.c), or as the function
 * that it calls on the others.  Which chunk a row is in depends on its key's
 * bytes alone, so that nodes may sort as they like.  Tables are scanned under a
 * snapshot taken now, and partitions with them, whichever there are.  Answers
 * are bytes: what REPL_ML_PART_... says, and if it is IS_THERE what was asked for.
 *
 * Nothing of the table's owner runs here.
 *
 * Not here: what a row's bytes are (image.c), how rows are read (scan.c), on which
 * pages rows of chunks are (places.c), and what is known of some keys (known.c).
 * Locks: ACCESS SHARE on the table and its partitions while it works.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "catalog/namespace.h"
#include "catalog/pg_type.h"
#include "funcapi.h"
#include "libpq/pqformat.h"
#include "miscadmin.h"
#include "storage/lmgr.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timeout.h"

#include "compat.h"
#include "verify/verify.h"

#define ROWS_BETWEEN_NEWS	4096	/* of stat_progress_verify */
#define CLIENT_CHECK_MS		"1000"
#define COPIES_TABLE		"table_sync"

/* has memory fetched that is soon to be written */
#ifdef __GNUC__
#define fetch_soon(address) __builtin_prefetch(address, 1)
#else
#define fetch_soon(address) ((void) 0)
#endif

enum
{
	Anum_copy_schema_name = 2,
	Anum_copy_table_name,
	Anum_copy_state,
	Natts_copy = Anum_copy_state + 2
};

/* ---- opening ---- */

/*
 * Says whether rows of the table are still to be copied from a peer.  Without a
 * query, as that would be a good part of what a comparison costs that reads
 * little.
 */
static bool
is_being_copied(const char *schema_name, const char *table_name)
{
	Relation	rel = table_open(repl_ml_catalog_oid(COPIES_TABLE), AccessShareLock);
	SysScanDesc scan = systable_beginscan(rel, InvalidOid, false, NULL, 0, NULL);
	bool		pending = false;
	HeapTuple	tuple;

	while (!pending && HeapTupleIsValid(tuple = systable_getnext(scan)))
	{
		Datum		values[Natts_copy];
		bool		nulls[Natts_copy];

		heap_deform_tuple(tuple, RelationGetDescr(rel), values, nulls);
		pending = strcmp(NameStr(*DatumGetName(values[Anum_copy_table_name - 1])),
						 table_name) == 0 &&
			strcmp(NameStr(*DatumGetName(values[Anum_copy_schema_name - 1])), schema_name) == 0 &&
			strcmp(TextDatumGetCString(values[Anum_copy_state - 1]), "pending") == 0;
	}
	systable_endscan(scan);
	table_close(rel, AccessShareLock);
	return pending;
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

/*
 * Opens the table that is asked for and begins the answer.  Returns false if
 * the answer is that it cannot be compared.
 */
bool
repl_ml_part_open(const ReplMlInquiry *inquiry, ReplMlPart *part, StringInfo answer)
{
	Oid			relid = find_table(inquiry);
	char	   *signature;

	*part = (ReplMlPart) {0};
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
	part->leaves = repl_ml_scan_open_leaves(part->root);
	part->settings = repl_ml_session_fix_values();
	pq_sendbyte(answer, REPL_ML_PART_IS_THERE);
	return true;
}

/* Closes what repl_ml_part_open opened, and lets the locks go. */
void
repl_ml_part_close(ReplMlPart *part)
{
	repl_ml_session_restore(part->settings);
	repl_ml_scan_close_leaves(part->root, part->leaves, AccessShareLock);
	table_close(part->root, AccessShareLock);
}

/* ---- scanning ---- */

/* How far the reading of all rows of a table is. */
typedef struct Reading
{
	const ReplMlInquiry *inquiry;
	ReplMlPart *part;
	StringInfo	answer;
	ReplMlRowVisitor visitor;
	void	   *argument;		/* of it */
	Snapshot	snapshot;
	double		expected;		/* rows */
	int64		rows;
	List	   *done;			/* Oid of partitions that have been read */
	ReplMlPageSum *page;		/* what the visitor adds up, to be remembered;
								 * or NULL */
	ReplMlPages *pages;			/* of the leaf at hand, or NULL */
	const uint8 *wanted;		/* a bit for each chunk whose rows are wanted, or
								 * NULL: of all, and their places are noted */
	bool		is_noted;		/* places of the leaf at hand are known */
	List	   *made;			/* of ReplMlPages: of those that are done */
	MemoryContext context;		/* of all that does not go while it rests */
	Oid			leaf;			/* the one that has been read in part */
	Oid			file;			/* ... and its file */
	BlockNumber next;			/* ... from there on it has not */
} Reading;

/* Counts rows that have been read, and shows every some thousand how far it is. */
static void
note_rows(void *argument, int rows)
{
	Reading    *reading = argument;
	int			chunks = reading->inquiry->chunks;
	int64		before = reading->rows;
	double		share;

	reading->rows += rows;
	if (before / ROWS_BETWEEN_NEWS == reading->rows / ROWS_BETWEEN_NEWS)
		return;
	share = reading->expected <= 0 ? 0 : Min(reading->rows / reading->expected, 1);
	repl_ml_verify_progress((int64) (share * chunks), reading->rows, -1);
}

/* Counts rows of what cannot be read in parts: it rests with its snapshot. */
static void
note_rows_and_rest(void *argument, int rows)
{
	note_rows(argument, rows);
	if (repl_ml_throttle_count(rows))
		repl_ml_throttle_rest();
}

/*
 * Returns the page from which a relation is to be read.  One that has been
 * written anew while the reader rested has its rows in other places.
 */
static BlockNumber
find_place(const Reading *reading, Relation rel)
{
	if (RelationGetRelid(rel) != reading->leaf)
		return 0;
	if (rel->rd_rel->relfilenode != reading->file)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("table \"%s\" was rewritten while it was compared",
						RelationGetRelationName(rel)),
				 errhint("Compare it again.")));
	return reading->next;
}

/*
 * Begins with a relation, of which nothing has been read: remembers its pages,
 * notes where rows are, or looks whether that is known.
 */
static void
begin_leaf(Reading *reading, ReplMlScan *scan)
{
	MemoryContext old;

	if (reading->wanted != NULL)
		reading->is_noted = repl_ml_places_find(RelationGetRelid(reading->part->root),
												reading->inquiry->chunks, scan->rel);
	else if (scan->has_pages)
		repl_ml_places_begin_leaf(scan->rel);
	if (reading->page == NULL)
		return;
	old = MemoryContextSwitchTo(reading->context);
	reading->pages = repl_ml_pages_make(scan);
	MemoryContextSwitchTo(old);
}

/*
 * Lets the visitor see the rows of a page, and remembers it; returns how many.
 * -1 if none of them are wanted, and it has not been read.
 */
static int
visit_page(Reading *reading, ReplMlScan *scan, BlockNumber block)
{
	int			rows;

	if (reading->is_noted && !repl_ml_places_is_wanted(block, reading->wanted))
		return -1;
	if (reading->page != NULL)
		repl_ml_pages_begin_page(reading->page);
	rows = repl_ml_scan_page(scan, block, reading->visitor, reading->argument);
	if (reading->wanted == NULL)
		repl_ml_places_end_page();
	if (reading->pages != NULL)
		repl_ml_pages_put(reading->pages, block, &reading->page->rows,
						  scan->settled && reading->page->settled);
	return rows;
}

/*
 * Lets the visitor see rows of a relation that the snapshot sees.  Returns false
 * when it is time to rest: the next call goes on from there.
 */
static bool
visit_leaf(Reading *reading, Relation rel)
{
	ReplMlScan	scan;
	BlockNumber block = find_place(reading, rel);
	bool		is_tired = false;

	repl_ml_scan_begin(&scan, rel, reading->snapshot);
	if (block == 0)
		begin_leaf(reading, &scan);
	for (; block < scan.pages && !is_tired; block++)
	{
		int			rows = visit_page(reading, &scan, block);

		CHECK_FOR_INTERRUPTS();
		if (rows < 0)
			continue;
		note_rows(reading, rows);
		/* to read a page without rows is work as well */
		is_tired = repl_ml_throttle_count(Max(rows, 1));
	}
	if (!scan.has_pages)
		repl_ml_scan_whole(&scan, reading->visitor, reading->argument, note_rows_and_rest,
						   reading);
	repl_ml_scan_end(&scan);
	reading->leaf = RelationGetRelid(rel);
	reading->file = rel->rd_rel->relfilenode;
	reading->next = block;
	return !is_tired;
}

/*
 * Rests without snapshot and locks, and opens the table again.  Returns false if
 * it cannot be compared any more; then the answer says so.
 */
static bool
rest(Reading *reading, MemoryContext context)
{
	StringInfo	answer;

	repl_ml_verify_progress(-1, reading->rows, -1);
	UnregisterSnapshot(reading->snapshot);
	repl_ml_part_close(reading->part);
	MemoryContextReset(context);
	repl_ml_throttle_rest();
	answer = makeStringInfo();
	if (repl_ml_part_open(reading->inquiry, reading->part, answer))
	{
		reading->snapshot = RegisterSnapshot(GetLatestSnapshot());
		return true;
	}
	resetStringInfo(reading->answer);
	appendBinaryStringInfo(reading->answer, answer->data, answer->len);
	return false;
}

/* Returns a partition, or the table itself, that has not been read; NULL if there is none. */
static Relation
next_leaf(const Reading *reading)
{
	ListCell   *lc;

	foreach(lc, reading->part->leaves)
	{
		if (!list_member_oid(reading->done, RelationGetRelid((Relation) lfirst(lc))))
			return lfirst(lc);
	}
	return NULL;
}

/* Notes that a relation has been read to its end. */
static void
end_leaf(Reading *reading, Relation rel)
{
	MemoryContext old = MemoryContextSwitchTo(reading->context);

	reading->done = lappend_oid(reading->done, RelationGetRelid(rel));
	if (reading->pages != NULL)
		reading->made = lappend(reading->made, reading->pages);
	reading->pages = NULL;
	MemoryContextSwitchTo(old);
}

/*
 * Remembers the pages that have been read, if all have been.  Only at the end, as
 * who has written holds up vacuum.
 */
static void
remember(Reading *reading, bool all)
{
	ListCell   *lc;

	foreach(lc, reading->made)
		repl_ml_pages_keep(lfirst(lc), all ? reading->part->leaves : NIL);
	if (reading->pages != NULL)
		repl_ml_pages_keep(reading->pages, NIL);
}

/* Returns about how many rows the table has. */
static double
expected_rows(const ReplMlPart *part)
{
	double		rows = 0;
	ListCell   *lc;

	foreach(lc, part->leaves)
		rows += Max(((Relation) lfirst(lc))->rd_rel->reltuples, 0);
	return rows;
}

/*
 * Lets the visitor see all rows of a table that is open, or those on pages that
 * have some that are wanted; returns how many.  They are those that are committed
 * now, or where the scan is throttled, when their page is read: a row that is
 * written meanwhile may be seen twice, or not at all, and then looks as if it
 * differed.  Returns -1 if the table could not be read to its end; then it is
 * closed, and the answer says why.
 */
static int64
visit_rows(Reading *reading)
{
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext,
												  "repl_ml rows between two rests",
												  ALLOCSET_DEFAULT_SIZES);
	bool		goes_on = true;
	Relation	rel;

	reading->expected = expected_rows(reading->part);
	reading->snapshot = RegisterSnapshot(GetLatestSnapshot());
	reading->context = MemoryContextSwitchTo(context);
	while (goes_on && (rel = next_leaf(reading)) != NULL)
	{
		if (!visit_leaf(reading, rel))
			goes_on = rest(reading, context);
		else
			end_leaf(reading, rel);
	}
	MemoryContextSwitchTo(reading->context);
	if (goes_on)
		UnregisterSnapshot(reading->snapshot);
	if (goes_on && reading->wanted == NULL)
		repl_ml_places_end();
	remember(reading, goes_on);
	return goes_on ? reading->rows : -1;
}

/* so many rows later what their sums are in has come from memory */
#define ROWS_WAITING	16

/* The sums of all chunks; their number is a power of two. */
typedef struct Sums
{
	uint64		mask;
	ReplMlChunk *chunks;
	struct
	{
		ReplMlChunk *chunk;		/* NULL: none is waiting */
		ReplMlDigest row;
	}			waiting[ROWS_WAITING];	/* rows that are not in the sums yet */
	int			next;			/* of these, the one that has waited the longest */
	ReplMlPageSum page;			/* that is being read */
} Sums;

/*
 * Adds the row to its chunk that has waited the longest, and lets another one, or
 * none, wait: each row's chunk is another one, far from the last.
 */
static void
add_to_chunk(Sums *sums, ReplMlChunk *chunk, ReplMlDigest row)
{
	ReplMlChunk *to = sums->waiting[sums->next].chunk;

	if (to != NULL)
	{
		to->rows++;
		to->sum.lane[0] += sums->waiting[sums->next].row.lane[0];
		to->sum.lane[1] += sums->waiting[sums->next].row.lane[1];
	}
	fetch_soon(chunk);
	sums->waiting[sums->next].chunk = chunk;
	sums->waiting[sums->next].row = row;
	sums->next = (sums->next + 1) % ROWS_WAITING;
}

/* A visitor: adds a row to its chunk, and to its page. */
static void
add_row(ReplMlImage *image, TupleTableSlot *slot, void *argument)
{
	Sums	   *sums = argument;
	uint64		chunk = repl_ml_image_key(image, slot) & sums->mask;
	ReplMlDigest row = repl_ml_image_row(image, slot, true);

	repl_ml_places_add_row(chunk);
	add_to_chunk(sums, &sums->chunks[chunk], row);
	(void) repl_ml_pages_add_row(&sums->page, row, repl_ml_image_clock(image, slot));
}

/*
 * Returns, as the first pass of a comparison, how many rows there are, and of
 * each chunk how many and the sum of their hashes.  "stable" is a clock up to which
 * all members have the rows.
 */
StringInfo
repl_ml_part_sums(const ReplMlInquiry *inquiry, const ReplMlClock *stable)
{
	StringInfo	answer = makeStringInfo();
	Sums		sums = {.mask = inquiry->chunks - 1,.page = {.stable = stable}};
	ReplMlPart		part;
	int64		rows;

	if (!repl_ml_part_open(inquiry, &part, answer))
		return answer;
	repl_ml_throttle_begin(inquiry->pace);
	repl_ml_verify_join(RelationGetRelid(part.root), inquiry->chunks, REPL_ML_VERIFY_HASHING);
	sums.chunks = palloc0(inquiry->chunks * sizeof(ReplMlChunk));
	repl_ml_places_begin(RelationGetRelid(part.root), inquiry->chunks);
	rows = visit_rows(&(Reading) {.inquiry = inquiry,.part = &part,.answer = answer,
	.visitor = add_row,.argument = &sums,.page = &sums.page});
	if (rows < 0)
		return answer;
	for (int i = 0; i < ROWS_WAITING; i++)
		add_to_chunk(&sums, NULL, (ReplMlDigest) {0});
	pq_sendint64(answer, rows);
	enlargeStringInfo(answer, inquiry->chunks * sizeof(ReplMlChunk));
	for (int i = 0; i < inquiry->chunks; i++)
	{
		pq_sendint64(answer, sums.chunks[i].rows);
		pq_sendint64(answer, sums.chunks[i].sum.lane[0]);
		pq_sendint64(answer, sums.chunks[i].sum.lane[1]);
	}
	pfree(sums.chunks);
	repl_ml_part_close(&part);
	return answer;
}

/* Appends bytes with their length. */
void
repl_ml_part_send_bytes(StringInfo answer, const char *data, Size size)
{
	pq_sendint32(answer, size);
	pq_sendbytes(answer, data, size);
}

/* Appends a clock as it is stored, and -1 for null. */
void
repl_ml_part_send_clock(StringInfo answer, const bytea *clock)
{
	if (clock == NULL)
		pq_sendint32(answer, -1);
	else
		repl_ml_part_send_bytes(answer, VARDATA_ANY(clock), VARSIZE_ANY_EXHDR(clock));
}

/* Appends a hash. */
void
repl_ml_part_send_digest(StringInfo answer, ReplMlDigest digest)
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

		repl_ml_part_send_bytes(rows->answer, text, strlen(text));
	}
	MemoryContextSwitchTo(old);
	repl_ml_part_send_digest(rows->answer, repl_ml_image_row(image, slot, false));
	repl_ml_part_send_clock(rows->answer, repl_ml_image_clock(image, slot));
}

/*
 * Returns, as the second pass, the key, the hash and the clock of each row in
 * the chunks whose bits are set, of those on pages that had such rows in the first
 * pass, if this process has made it.
 */
StringInfo
repl_ml_part_rows(const ReplMlInquiry *inquiry, const bytea *wanted)
{
	StringInfo	answer = makeStringInfo();
	WantedRows	rows = {.mask = inquiry->chunks - 1,.wanted = (uint8 *) VARDATA_ANY(wanted)};
	ReplMlPart		part;

	if (VARSIZE_ANY_EXHDR(wanted) != (inquiry->chunks + 7) / 8)
		ereport(ERROR,
				(errcode(ERRCODE_PROTOCOL_VIOLATION),
				 errmsg("bits of %zu bytes do not stand for %d chunks",
						VARSIZE_ANY_EXHDR(wanted), inquiry->chunks),
				 errhint(REPL_ML_SAME_VERSION_HINT)));
	if (!repl_ml_part_open(inquiry, &part, answer))
		return answer;
	repl_ml_throttle_begin(inquiry->pace);
	repl_ml_verify_join(RelationGetRelid(part.root), inquiry->chunks, REPL_ML_VERIFY_NAMING);
	rows.key_natts = part.table->key_natts;
	rows.answer = answer;
	rows.context = AllocSetContextCreate(CurrentMemoryContext, "repl_ml key to tell",
										 ALLOCSET_SMALL_SIZES);
	if (visit_rows(&(Reading) {.inquiry = inquiry,.part = &part,.answer = answer,
				.visitor = tell_row,.argument = &rows,.wanted = rows.wanted}) >= 0)
		repl_ml_part_close(&part);
	MemoryContextDelete(rows.context);
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
		.chunks = PG_GETARG_INT32(3),
		.pace = {.rate = -1}
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

/*
 * Begins a scan for another member: reads, behind "nargs" arguments, how fast it
 * may be.
 */
static ReplMlInquiry
begin_scan(FunctionCallInfo fcinfo, int nargs)
{
	ReplMlInquiry inquiry;

	for (int i = 0; i < nargs + 2; i++)
	{
		if (PG_ARGISNULL(i))
			ereport(ERROR,
					(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
					 errmsg("null is not allowed for argument %d of %s.%s", i + 1, REPL_ML_SCHEMA,
							get_func_name(fcinfo->flinfo->fn_oid)),
					 errhint(REPL_ML_SAME_VERSION_HINT)));
	}
	/* of a scan that has ended with an error */
	repl_ml_verify_end();
	inquiry = repl_ml_part_inquiry(fcinfo);
	inquiry.pace = (ReplMlPace) {.rate = PG_GETARG_INT32(nargs),
	.max_lag_ms = PG_GETARG_INT32(nargs + 1)};
	return inquiry;
}

/*
 * Ends a scan for another member: the answer is the only column of the
 * procedure's result.
 */
static Datum
end_scan(FunctionCallInfo fcinfo, StringInfo answer)
{
	Datum		value = repl_ml_part_answer(answer);
	bool		isnull = false;
	TupleDesc	desc;

	repl_ml_verify_end();
	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	return HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(desc), &value, &isnull));
}

PG_FUNCTION_INFO_V1(repl_ml_verify_sums);

/*
 * repl_ml.verify_sums(schema_name, table_name, signature, chunks, stable, rate,
 * max_lag, answer): see repl_ml_part_sums.
 */
Datum
repl_ml_verify_sums(PG_FUNCTION_ARGS)
{
	ReplMlInquiry inquiry = begin_scan(fcinfo, 5);

	return end_scan(fcinfo, repl_ml_part_sums(&inquiry, PG_GETARG_REPL_ML_CLOCK_P(4)));
}

PG_FUNCTION_INFO_V1(repl_ml_verify_rows);

/*
 * repl_ml.verify_rows(schema_name, table_name, signature, chunks, wanted, rate,
 * max_lag, answer): see repl_ml_part_rows.
 */
Datum
repl_ml_verify_rows(PG_FUNCTION_ARGS)
{
	ReplMlInquiry inquiry = begin_scan(fcinfo, 5);

	return end_scan(fcinfo, repl_ml_part_rows(&inquiry, PG_GETARG_BYTEA_PP(4)));
}
