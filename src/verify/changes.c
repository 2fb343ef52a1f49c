/*
 * changes.c
 *		One node's part of a comparison of what has changed: the sum over all rows,
 *		of which only changed pages are read, and the keys of rows that are news.
 *
 * For increment.c, which says when the sums are the same: a backend does it, of
 * the node that compares, or as the functions that it calls on the others, both
 * in one transaction and under one snapshot.
 *
 * News are rows whose clock is above what all members are known to have, and
 * deletions that are so: what may still be on its way is among them, on the node
 * that has it.  Their pages are read each time (pages.c).
 *
 * Nothing of the table's owner runs here, but for what known.c says.  Locks:
 * ACCESS SHARE on the table and its partitions while it works.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "libpq/pqformat.h"
#include "miscadmin.h"
#include "port/pg_bitutils.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"

#include "compat.h"
#include "verify/verify.h"

#define MOST_NEWS	20000		/* keys */

/* Adding up what has changed. */
typedef struct Changes
{
	ReplMlPart *part;
	ReplMlPageSum page;			/* that is being read */
	int64		hashed;			/* rows that have been read */
	ReplMlChunk total;
	int			news;			/* rows and deletions */
	StringInfoData keys;		/* of these: texts with their lengths */
	MemoryContext context;		/* of a key's texts */
} Changes;

/* ---- rows ---- */

/* A visitor: adds a row to its page, and tells its key if it is news. */
static void
add_row(ReplMlImage *image, TupleTableSlot *slot, void *argument)
{
	Changes    *changes = argument;
	MemoryContext old;
	ReplMlDigest row;

	(void) repl_ml_image_key(image, slot);
	row = repl_ml_image_row(image, slot, true);
	if (repl_ml_pages_add_row(&changes->page, row, repl_ml_image_clock(image, slot)) ||
		changes->news++ >= MOST_NEWS)
		return;
	MemoryContextReset(changes->context);
	old = MemoryContextSwitchTo(changes->context);
	for (int i = 0; i < changes->part->table->key_natts; i++)
	{
		char	   *text = repl_ml_image_key_text(image, slot, i);

		repl_ml_part_send_bytes(&changes->keys, text, strlen(text));
	}
	MemoryContextSwitchTo(old);
}

/*
 * Returns the pages of a scan that have to be read, palloc'd, and sets how many;
 * NULL if they are too many.
 */
static BlockNumber *
find_pages(ReplMlPages *pages, ReplMlScan *scan, uint32 *count)
{
	uint32		most = repl_ml_pages_some(scan->pages);
	BlockNumber *blocks = palloc(most * sizeof(BlockNumber));

	*count = 0;
	for (BlockNumber first = 0; first < scan->pages; first += REPL_ML_PAGES_IN_RUN)
	{
		uint32		changed = repl_ml_pages_changed(pages, scan, first);

		CHECK_FOR_INTERRUPTS();
		if (*count + pg_popcount32(changed) > most)
		{
			pfree(blocks);
			return NULL;
		}
		for (; changed != 0; changed &= changed - 1)
			blocks[(*count)++] = first + pg_rightmost_one_pos32(changed);
	}
	return blocks;
}

/* Adds a relation's rows, of which those in changed pages are read; false if it does not pay. */
static bool
add_leaf(Changes *changes, ReplMlScan *scan, ReplMlPages *pages)
{
	uint32		count;
	BlockNumber *blocks = find_pages(pages, scan, &count);
	ReplMlChunk rows;

	if (blocks == NULL)
	{
		(void) repl_ml_pages_close(pages, scan, true);
		return false;
	}
	for (uint32 i = 0; i < count; i++)
	{
		repl_ml_pages_begin_page(&changes->page);
		changes->hashed += repl_ml_scan_page(scan, blocks[i], add_row, changes);
		repl_ml_pages_put(pages, blocks[i], &changes->page.rows,
						  scan->settled && changes->page.settled);
	}
	pfree(blocks);
	rows = repl_ml_pages_close(pages, scan, false);
	changes->total.rows += rows.rows;
	changes->total.sum.lane[0] += rows.sum.lane[0];
	changes->total.sum.lane[1] += rows.sum.lane[1];
	return true;
}

/* Adds the rows of all leaves; returns what an answer says of it. */
static char
add_leaves(Changes *changes, Snapshot snapshot)
{
	char		result = REPL_ML_CHANGES_ADDED;
	ListCell   *lc;

	foreach(lc, changes->part->leaves)
	{
		ReplMlScan	scan;
		ReplMlPages *pages;

		repl_ml_scan_begin(&scan, lfirst(lc), snapshot);
		pages = repl_ml_pages_open(&scan);
		if (pages == NULL)
			result = REPL_ML_CHANGES_UNKNOWN;
		else if (!add_leaf(changes, &scan, pages))
			result = REPL_ML_CHANGES_MANY;
		repl_ml_scan_end(&scan);
		if (result != REPL_ML_CHANGES_ADDED)
			break;
	}
	return result;
}

/* ---- deletions ---- */

/* Tells the keys of deletions that are news; returns false if some cannot be told. */
static bool
add_deletions(Changes *changes, Snapshot snapshot)
{
	ReplMlTable *table = changes->part->table;
	int			order[INDEX_MAX_KEYS];
	bool		all;
	List	   *keys = repl_ml_tombstone_newer(table, changes->page.stable, snapshot, MOST_NEWS,
											   &all);
	ListCell   *lc;

	(void) repl_ml_image_key_order(table, RelationGetDescr(changes->part->root), order);
	foreach(lc, keys)
	{
		Datum	   *texts;
		int			count;

		deconstruct_array(lfirst(lc), TEXTOID, -1, false, TYPALIGN_INT, &texts, NULL, &count);
		for (int i = 0; i < table->key_natts; i++)
		{
			text	   *value = DatumGetTextPP(texts[order[i]]);

			repl_ml_part_send_bytes(&changes->keys, VARDATA_ANY(value), VARSIZE_ANY_EXHDR(value));
		}
		changes->news++;
	}
	return all;
}

/* ---- answers ---- */

/*
 * Returns a byte that says whether the rows could be added up, and if so: how many
 * rows were read for it, all rows and their sum, and the keys of those that are
 * news, as texts in the order of their columns' names.
 */
StringInfo
repl_ml_changes_sum(const ReplMlInquiry *inquiry, const ReplMlClock *stable, Snapshot snapshot)
{
	StringInfo	answer = makeStringInfo();
	ReplMlPart	part;
	Changes		changes = {.part = &part,.page = {.stable = stable}};
	char		result;

	if (!repl_ml_part_open(inquiry, &part, answer))
		return answer;
	repl_ml_verify_join(RelationGetRelid(part.root), inquiry->chunks, REPL_ML_VERIFY_HASHING);
	initStringInfo(&changes.keys);
	changes.context = AllocSetContextCreate(CurrentMemoryContext, "repl_ml key that is news",
											ALLOCSET_SMALL_SIZES);
	result = add_leaves(&changes, snapshot);
	if (result == REPL_ML_CHANGES_ADDED &&
		(!add_deletions(&changes, snapshot) || changes.news > MOST_NEWS))
		result = REPL_ML_CHANGES_MANY;
	pq_sendbyte(answer, result);
	if (result == REPL_ML_CHANGES_ADDED)
	{
		pq_sendint64(answer, changes.hashed);
		pq_sendint64(answer, changes.total.rows);
		repl_ml_part_send_digest(answer, changes.total.sum);
		pq_sendbytes(answer, changes.keys.data, changes.keys.len);
	}
	MemoryContextDelete(changes.context);
	repl_ml_part_close(&part);
	return answer;
}

/*
 * Returns the snapshot under which a backend answers both questions of another
 * member: its transaction's, which core keeps until that ends.
 */
static Snapshot
transaction_snapshot(void)
{
	if (!IsolationUsesXactSnapshot())
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("changes are compared under one snapshot"),
				 errhint(REPL_ML_SAME_VERSION_HINT)));
	return GetTransactionSnapshot();
}

PG_FUNCTION_INFO_V1(repl_ml_verify_changes);

/*
 * repl_ml.verify_changes(schema_name, table_name, signature, chunks, stable): see
 * repl_ml_changes_sum.
 */
Datum
repl_ml_verify_changes(PG_FUNCTION_ARGS)
{
	ReplMlInquiry inquiry = repl_ml_part_inquiry(fcinfo);
	StringInfo	answer = repl_ml_changes_sum(&inquiry, PG_GETARG_REPL_ML_CLOCK_P(4),
											 transaction_snapshot());

	repl_ml_verify_end();
	return repl_ml_part_answer(answer);
}

PG_FUNCTION_INFO_V1(repl_ml_verify_news);

/*
 * repl_ml.verify_news(schema_name, table_name, signature, chunks, keys): see
 * repl_ml_known_rows.
 */
Datum
repl_ml_verify_news(PG_FUNCTION_ARGS)
{
	ReplMlInquiry inquiry = repl_ml_part_inquiry(fcinfo);

	return repl_ml_part_answer(repl_ml_known_rows(&inquiry, PG_GETARG_ARRAYTYPE_P(4),
												  transaction_snapshot()));
}
