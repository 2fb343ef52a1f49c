/*
 * digests.c
 *		The rows of a table as digests, for a copy that moves only what differs:
 *		sums of chunks, and the digests of the rows in some chunks.
 *
 * The same on both sides: the node that copies (differing.c) compares its sums
 * with those of the peer, and tells the peer the digests of its rows in the
 * chunks that differ; the peer's donor.c then passes by the rows whose digest it
 * was told.  What a row and a chunk are is verify/image.c's: a digest is of all
 * the row's values and its clock.
 *
 * Chunks that differ have equal sums with a probability of 2^-128 each.  Of a
 * row 64 bits are told, and compared within its chunk only: one that differs
 * passes for one that is there with a probability of 2^-64 for each row of the
 * chunk.  With 1,000 rows to a chunk and a thousand million rows that differ
 * that is one of these in 10^7 such copies.
 *
 * Nothing of the table's owner runs here.  The peer's functions run in the
 * session of the node that copies, with the rights of its role, and see what
 * its transaction sees.
 *
 * Not here: which table, and which chunks (differing.c).  Locks: ACCESS SHARE on
 * partitions while they are read; the caller has locked the table.
 */
#include "postgres.h"

#include "access/table.h"
#include "access/xact.h"
#include "miscadmin.h"
#include "storage/bufmgr.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

#include "copy/copy.h"
#include "row/row.h"
#include "server/server.h"
#include "verify/verify.h"
#include "write/write.h"

#define ROWS_BETWEEN_NEWS	4096	/* of stat_progress_verify */
#define ROWS_OF_PAGE		50		/* of a table that was never analyzed */

/* What is told of a chunk begins with this: its number, and how many digests follow. */
#define CHUNK_HEAD(chunk, count)	((uint64) (chunk) << 32 | (count))

/* The sums of all chunks, while they are made. */
typedef struct Sums
{
	uint64		mask;
	ReplMlDigest *sums;
	int64	   *rows;
} Sums;

/* The digests of rows in some chunks, while they are collected. */
typedef struct Collection
{
	uint64		mask;
	const bool *wanted;			/* of each chunk */
	ReplMlDigestOf of;
	ReplMlRowDigest *all;
	int64		count;
	int64		room;
} Collection;

/*
 * What the node that copies from this session has told of its rows; this file
 * only.  Until the next one is told, or the session ends.
 */
static struct
{
	MemoryContext context;
	int			chunks;
	uint64	  **digests;		/* of each chunk, sorted; NULL: not wanted */
	uint32	   *counts;
} told;

/* ---- reading rows ---- */

/* What reads a table: the relation at hand, and who sees its rows. */
typedef struct Visit
{
	Relation	rel;
	ReplMlDigestVisitor visitor;
	void	   *argument;		/* of it */
	int64		rows;
} Visit;

/* A visitor of scan.c: lets ours see the row, with its relation. */
static void
visit_row(ReplMlImage *image, TupleTableSlot *slot, void *argument)
{
	Visit	   *visit = argument;

	visit->visitor(visit->rel, image, slot, visit->argument);
}

/* Shows every some thousand rows how far it is. */
static void
note_rows(void *argument, int rows)
{
	Visit	   *visit = argument;
	int64		before = visit->rows;

	visit->rows += rows;
	if (before / ROWS_BETWEEN_NEWS != visit->rows / ROWS_BETWEEN_NEWS)
		repl_ml_verify_progress(-1, visit->rows, -1);
}

/* Lets the visitor see all rows of the table that the snapshot shows. */
void
repl_ml_digests_visit(Relation root, Snapshot snapshot, ReplMlDigestVisitor visitor, void *argument)
{
	Visit		visit = {.visitor = visitor,.argument = argument};
	List	   *leaves = repl_ml_scan_open_leaves(root);
	ListCell   *lc;

	foreach(lc, leaves)
	{
		ReplMlScan	scan;

		visit.rel = lfirst(lc);
		repl_ml_scan_begin(&scan, visit.rel, snapshot);
		for (BlockNumber block = 0; block < scan.pages; block++)
			note_rows(&visit, repl_ml_scan_page(&scan, block, visit_row, &visit));
		if (!scan.has_pages)
			repl_ml_scan_whole(&scan, visit_row, &visit, note_rows, &visit);
		repl_ml_scan_end(&scan);
	}
	repl_ml_scan_close_leaves(root, leaves, NoLock);
}

/* Returns about how many rows the table has. */
double
repl_ml_digests_rows(Relation root)
{
	List	   *leaves = repl_ml_scan_open_leaves(root);
	double		rows = 0;
	ListCell   *lc;

	foreach(lc, leaves)
	{
		Relation	rel = lfirst(lc);

		rows += Max(rel->rd_rel->reltuples, (double) RelationGetNumberOfBlocks(rel) * ROWS_OF_PAGE);
	}
	repl_ml_scan_close_leaves(root, leaves, NoLock);
	return rows;
}

/* ---- sums and digests ---- */

/* A visitor: adds a row to its chunk. */
static void
add_row(Relation rel, ReplMlImage *image, TupleTableSlot *slot, void *argument)
{
	Sums	   *sums = argument;
	uint64		chunk = repl_ml_image_key(image, slot) & sums->mask;
	ReplMlDigest row = repl_ml_image_row(image, slot, true);

	sums->sums[chunk].lane[0] += row.lane[0];
	sums->sums[chunk].lane[1] += row.lane[1];
	if (sums->rows != NULL)
		sums->rows[chunk]++;
}

/*
 * Adds up the digests of the rows that the snapshot shows, for each of so many
 * chunks, a power of two; and counts the rows, if "rows" is not NULL.  Both
 * arrays are the caller's, all zeros.
 */
static void
sum_rows(Relation root, Snapshot snapshot, int chunks, ReplMlDigest *sums, int64 *rows)
{
	Sums		state = {.mask = chunks - 1,.sums = sums,.rows = rows};

	repl_ml_digests_visit(root, snapshot, add_row, &state);
}

/*
 * Says whether the row has no clock: it was written in no group, or the table
 * has no clock column yet.
 */
bool
repl_ml_digests_is_unstamped(Relation rel, TupleTableSlot *slot)
{
	AttrNumber	attnum = repl_ml_table_get(rel)->clock_attnum;
	bool		isnull;
	Datum		clock;

	if (attnum == InvalidAttrNumber)
		return true;
	clock = slot_getattr(slot, attnum, &isnull);
	return isnull || repl_ml_clock_count(DatumGetReplMlClockP(clock)) == 0;
}

/* A visitor: keeps the digest of a row in a chunk that is wanted. */
static void
collect_row(Relation rel, ReplMlImage *image, TupleTableSlot *slot, void *argument)
{
	Collection *collection = argument;
	uint64		key = repl_ml_image_key(image, slot);

	if (!collection->wanted[key & collection->mask] ||
		(collection->of == REPL_ML_OF_UNSTAMPED_ROW && !repl_ml_digests_is_unstamped(rel, slot)))
		return;
	if (collection->count == collection->room)
	{
		collection->room *= 2;
		collection->all = repalloc_huge(collection->all,
										collection->room * sizeof(ReplMlRowDigest));
	}
	collection->all[collection->count++] = (ReplMlRowDigest)
	{
		.chunk = key & collection->mask,
			.digest = collection->of == REPL_ML_OF_KEY ? key :
			repl_ml_image_row(image, slot, collection->of == REPL_ML_OF_ROW).lane[0]
	};
}

/* Orders digests, for qsort: by chunk, then by themselves. */
static int
compare_digests(const void *a, const void *b)
{
	const ReplMlRowDigest *x = a;
	const ReplMlRowDigest *y = b;

	if (x->chunk != y->chunk)
		return x->chunk < y->chunk ? -1 : 1;
	return (x->digest > y->digest) - (x->digest < y->digest);
}

/*
 * Returns digests of the rows in the chunks that are wanted, chunk by chunk and
 * sorted, and how many they are; palloc'd.
 */
static ReplMlRowDigest *
collect_digests(Relation root, Snapshot snapshot, int chunks, const bool *wanted,
				ReplMlDigestOf of, int64 *count)
{
	Collection	collection = {.mask = chunks - 1,.wanted = wanted,.of = of,.room = 1024};

	collection.all = palloc(collection.room * sizeof(ReplMlRowDigest));
	repl_ml_digests_visit(root, snapshot, collect_row, &collection);
	qsort(collection.all, collection.count, sizeof(ReplMlRowDigest), compare_digests);
	*count = collection.count;
	return collection.all;
}

/* ---- this node's rows ---- */

/*
 * Does a step that reads all rows in a subtransaction, and shows it in
 * stat_progress_verify; returns false if some row cannot be read.
 */
static bool
try_to_read(Oid relid, int chunks, void (*step) (void *argument), void *argument)
{
	ErrorData  *error;

	repl_ml_verify_begin(relid, chunks);
	error = repl_ml_targets_try(step, argument);
	repl_ml_verify_end();
	if (error != NULL && !repl_ml_output_is_of_the_row(error->sqlerrcode))
		ReThrowError(error);
	return error == NULL;
}

/* What is asked of the rows that are here. */
typedef struct OwnRows
{
	Relation	root;
	int			chunks;
	ReplMlDigest *sums;
	int64	   *rows;
	const bool *wanted;
	ReplMlDigestOf of;
	ReplMlRowDigest *have;
	int64		count;
} OwnRows;

/* Adds up the rows, as a step of try_to_read. */
static void
sum_own(void *argument)
{
	OwnRows    *own = argument;
	Snapshot	snapshot;

	/* with what this transaction has joined so far */
	CommandCounterIncrement();
	snapshot = RegisterSnapshot(GetLatestSnapshot());
	sum_rows(own->root, snapshot, own->chunks, own->sums, own->rows);
	UnregisterSnapshot(snapshot);
}

/*
 * Adds up the rows that are here, with those of the present transaction, and
 * counts them; both arrays are the caller's, all zeros.  Returns false if some
 * row cannot be read.
 */
bool
repl_ml_digests_sum(Relation root, int chunks, ReplMlDigest *sums, int64 *rows)
{
	OwnRows		own = {.root = root,.chunks = chunks,.sums = sums,.rows = rows};

	return try_to_read(RelationGetRelid(root), chunks, sum_own, &own);
}

/* Collects the digests, as a step of try_to_read. */
static void
collect_own(void *argument)
{
	OwnRows    *own = argument;
	Snapshot	snapshot;

	CommandCounterIncrement();
	snapshot = RegisterSnapshot(GetLatestSnapshot());
	own->have = collect_digests(own->root, snapshot, own->chunks, own->wanted, own->of,
								&own->count);
	UnregisterSnapshot(snapshot);
}

/*
 * Sets the digests of the rows that are here in the chunks that are wanted,
 * chunk by chunk and sorted.  Returns false if some row cannot be read; then
 * they are none.
 */
bool
repl_ml_digests_collect(Relation root, int chunks, const bool *wanted, ReplMlDigestOf of,
						ReplMlRowDigest **have, int64 *count)
{
	OwnRows		own = {.root = root,.chunks = chunks,.wanted = wanted,.of = of};
	bool		known = try_to_read(RelationGetRelid(root), chunks, collect_own, &own);

	*have = known ? own.have : NULL;
	*count = known ? own.count : 0;
	return known;
}

/*
 * Returns, for repl_ml.note_digests on the peer, the digests of the chunks from
 * the "from"-th on that are wanted, as many as make about "size" bytes; sets
 * "from" to the first chunk that is left.  "next" is the first digest of these,
 * and moves on.
 */
bytea *
repl_ml_digests_pack(const bool *wanted, int chunks, int *from, const ReplMlRowDigest **next,
					 const ReplMlRowDigest *end, Size size)
{
	StringInfoData packed;

	initStringInfo(&packed);
	appendStringInfoSpaces(&packed, VARHDRSZ);
	for (; *from < chunks && packed.len < size; (*from)++)
	{
		uint32		count = 0;
		uint64		head;

		if (!wanted[*from])
			continue;
		while (*next + count < end && (*next)[count].chunk == *from)
			count++;
		head = CHUNK_HEAD(*from, count);
		appendBinaryStringInfo(&packed, (char *) &head, sizeof(head));
		for (; count > 0; count--, (*next)++)
			appendBinaryStringInfo(&packed, (char *) &(*next)->digest, sizeof(uint64));
	}
	SET_VARSIZE(packed.data, packed.len);
	return (bytea *) packed.data;
}

/* ---- the peer's side ---- */

/* One question for sums, and its answer. */
typedef struct SumsQuestion
{
	Relation	root;
	int			chunks;
	bytea	   *answer;
} SumsQuestion;

/* Makes the answer, as a step of try_to_read. */
static void
make_sums(void *argument)
{
	SumsQuestion *question = argument;
	Size		size = question->chunks * sizeof(ReplMlDigest);

	question->answer = palloc0(VARHDRSZ + size);
	SET_VARSIZE(question->answer, VARHDRSZ + size);
	sum_rows(question->root, GetActiveSnapshot(), question->chunks,
						(ReplMlDigest *) VARDATA(question->answer), NULL);
}

/* Raises an error unless the role may read all rows of the table. */
static void
require_rights(Relation root)
{
	List	   *leaves = repl_ml_scan_open_leaves(root);
	ListCell   *lc;

	foreach(lc, leaves)
		repl_ml_donor_require_right((Relation) lfirst(lc));
	repl_ml_scan_close_leaves(root, leaves, NoLock);
}

/*
 * repl_ml.chunk_sums(relation, signature, chunks): the sums of this node's rows,
 * for a node that copies the table; null if its table is another one, or some
 * row cannot be read: then it copies all rows.
 */
PG_FUNCTION_INFO_V1(repl_ml_chunk_sums);
Datum
repl_ml_chunk_sums(PG_FUNCTION_ARGS)
{
	Relation	root = table_open(PG_GETARG_OID(0), AccessShareLock);
	char	   *signature = text_to_cstring(PG_GETARG_TEXT_PP(1));
	SumsQuestion question = {.root = root,.chunks = PG_GETARG_INT32(2)};
	bool		made;

	repl_ml_digests_require_chunks(question.chunks);
	require_rights(root);
	made = strcmp(repl_ml_image_signature(root), signature) == 0 &&
		try_to_read(RelationGetRelid(root), question.chunks, make_sums, &question);
	table_close(root, NoLock);
	if (!made)
		PG_RETURN_NULL();
	PG_RETURN_BYTEA_P(question.answer);
}

/* Raises an error unless a table can be cut into so many chunks. */
void
repl_ml_digests_require_chunks(int chunks)
{
	if (chunks < 1 || chunks > REPL_ML_MAX_CHUNKS || (chunks & (chunks - 1)) != 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("a table cannot be compared in %d chunks", chunks),
				 errhint(REPL_ML_SAME_VERSION_HINT)));
}

/* Forgets what was told, and makes room for that of so many chunks. */
static void
forget_told(int chunks)
{
	if (told.context == NULL)
		told.context = AllocSetContextCreate(TopMemoryContext, "repl_ml digests told",
											 ALLOCSET_DEFAULT_SIZES);
	told.chunks = 0;
	MemoryContextReset(told.context);
	told.digests = MemoryContextAllocZero(told.context, chunks * sizeof(uint64 *));
	told.counts = MemoryContextAllocZero(told.context, chunks * sizeof(uint32));
	told.chunks = chunks;
}

/*
 * repl_ml.note_digests(chunks, digests): what the node that copies from this
 * session has; with null for the digests what it told before is forgotten.
 */
PG_FUNCTION_INFO_V1(repl_ml_note_digests);
Datum
repl_ml_note_digests(PG_FUNCTION_ARGS)
{
	bytea	   *packed = PG_ARGISNULL(1) ? NULL : PG_GETARG_BYTEA_PP(1);
	Size		left = packed == NULL ? 0 : VARSIZE_ANY_EXHDR(packed);
	const char *next = packed == NULL ? NULL : VARDATA_ANY(packed);

	if (PG_ARGISNULL(0))
		PG_RETURN_NULL();
	repl_ml_digests_require_chunks(PG_GETARG_INT32(0));
	if (packed == NULL || told.chunks != PG_GETARG_INT32(0))
		forget_told(PG_GETARG_INT32(0));
	while (left >= sizeof(uint64))
	{
		uint64		head;
		uint32		chunk;
		uint32		count;

		memcpy(&head, next, sizeof(head));
		chunk = head >> 32;
		count = (uint32) head;
		next += sizeof(head);
		left -= sizeof(head);
		if (chunk >= told.chunks || count > left / sizeof(uint64))
			ereport(ERROR,
					(errcode(ERRCODE_PROTOCOL_VIOLATION),
					 errmsg("the digests of chunk %u are not as many as it is said", chunk),
					 errhint(REPL_ML_SAME_VERSION_HINT)));
		told.counts[chunk] = count;
		told.digests[chunk] = MemoryContextAlloc(told.context, (count + 1) * sizeof(uint64));
		memcpy(told.digests[chunk], next, count * sizeof(uint64));
		next += count * sizeof(uint64);
		left -= count * sizeof(uint64);
	}
	PG_RETURN_BOOL(true);
}

/* Orders digests that are told, for qsort and bsearch, also those of meet.c. */
int
repl_ml_digests_order(const void *a, const void *b)
{
	uint64		x = *(const uint64 *) a;
	uint64		y = *(const uint64 *) b;

	return (x > y) - (x < y);
}

/*
 * Says, for donor.c, whether the row is in a chunk that is wanted and was not
 * told.
 */
bool
repl_ml_digests_are_wanted(ReplMlImage *image, TupleTableSlot *slot)
{
	uint64		key = repl_ml_image_key(image, slot);
	int			chunk = told.chunks == 0 ? 0 : key & (told.chunks - 1);
	uint64		digest;

	if (told.chunks == 0 || told.digests[chunk] == NULL)
		return false;
	digest = repl_ml_image_row(image, slot, true).lane[0];
	return bsearch(&digest, told.digests[chunk], told.counts[chunk], sizeof(uint64),
				   repl_ml_digests_order) == NULL;
}

/* Looking for what this node lacks of what it was told. */
typedef struct Lacking
{
	Relation	root;
	bool		of_keys;
	bool	  **seen;			/* of each digest that was told */
	StringInfoData found;
} Lacking;

/* A visitor: ticks off the digest that the row has. */
static void
tick_off(Relation rel, ReplMlImage *image, TupleTableSlot *slot, void *argument)
{
	Lacking    *lacking = argument;
	uint64		digest = repl_ml_image_key(image, slot);
	int			chunk = digest & (told.chunks - 1);
	uint64	   *found;

	if (told.digests[chunk] == NULL)
		return;
	if (!lacking->of_keys)
		digest = repl_ml_image_row(image, slot, false).lane[0];
	found = bsearch(&digest, told.digests[chunk], told.counts[chunk], sizeof(uint64),
					repl_ml_digests_order);
	if (found != NULL)
		lacking->seen[chunk][found - told.digests[chunk]] = true;
}

/* Finds what is lacking, as a step of try_to_read. */
static void
find_lacking(void *argument)
{
	Lacking    *lacking = argument;

	lacking->seen = palloc0(told.chunks * sizeof(bool *));
	for (int i = 0; i < told.chunks; i++)
		lacking->seen[i] = told.counts[i] == 0 ? NULL : palloc0(told.counts[i]);
	repl_ml_digests_visit(lacking->root, GetActiveSnapshot(), tick_off, lacking);
	initStringInfo(&lacking->found);
	appendStringInfoSpaces(&lacking->found, VARHDRSZ);
	for (int i = 0; i < told.chunks; i++)
	{
		for (int j = 0; j < told.counts[i]; j++)
		{
			if (!lacking->seen[i][j])
				appendBinaryStringInfo(&lacking->found, (char *) &told.digests[i][j],
									   sizeof(uint64));
		}
	}
	SET_VARSIZE(lacking->found.data, lacking->found.len);
}

/*
 * repl_ml.digests_lacking(relation, signature, of_keys): those of the digests
 * told in this session, of keys or of rows without their clocks, that no row of this node
 * has; null if that cannot be told.
 */
PG_FUNCTION_INFO_V1(repl_ml_digests_lacking);
Datum
repl_ml_digests_lacking(PG_FUNCTION_ARGS)
{
	Relation	root = table_open(PG_GETARG_OID(0), AccessShareLock);
	char	   *signature = text_to_cstring(PG_GETARG_TEXT_PP(1));
	Lacking		lacking = {.root = root,.of_keys = PG_GETARG_BOOL(2)};
	bool		known;

	require_rights(root);
	known = strcmp(repl_ml_image_signature(root), signature) == 0 &&
		try_to_read(RelationGetRelid(root), told.chunks, find_lacking, &lacking);
	table_close(root, NoLock);
	if (!known)
		PG_RETURN_NULL();
	PG_RETURN_BYTEA_P(lacking.found.data);
}
