/*
 * pages.c
 *		What comparisons remember of the pages of a heap: of each how many rows it
 *		has and the sum of their hashes, so that the next one reads only pages that
 *		have changed.
 *
 * It is in repl_ml.verified_page, an ordinary table that is local: a row for each
 * 64 pages, and one, as segment -1, with the total.  A full pass (part.c) writes
 * it, one that is incremental (changes.c) brings it up to date.
 *
 * A page whose LSN is not above where the WAL was before it was read has not
 * been written since.  Its visible rows are the same then, if all that is on it
 * was settled: no transaction of it was in progress (scan.c), and no clock of it
 * was news that a member may lack.  Pages that were not settled are listed, and
 * are read the next time.  What is remembered counts as long as the relation has
 * the same file, and hashes depend on the same definitions (image.c).  Wrong it
 * could only be if the pages were written without WAL, or by damage: to find
 * that is what full passes are for.
 *
 * One transaction at a time writes it for a relation, and nobody waits for that:
 * others only read.  It is read under a snapshot of its own, so that those who
 * keep theirs for long can write it, too.  A full pass writes at its end, as who
 * has written holds up vacuum, and it may take hours.
 *
 * Locks: an advisory lock of a kind of our own until commit, for who writes.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/xact.h"
#include "access/xlog.h"
#include "catalog/indexing.h"
#include "catalog/pg_type.h"
#include "executor/executor.h"
#include "miscadmin.h"
#include "storage/lock.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/snapmgr.h"
#include "utils/tuplestore.h"

#include "compat.h"
#include "verify/verify.h"

#define PAGES_TABLE		"verified_page"
#define PAGES_INDEX		"verified_page_pkey"
#define LOCK_KIND		4		/* version.c has 3, clients 1 and 2 */
#define TOTAL_SEGMENT	(-1)
#define SEGMENT_PAGES	64

/* a full pass is not much dearer: a tenth of all pages, or so many at least and at most */
#define LEAST_SOME		256
#define MOST_SOME		(1024 * 1024)

/* of a full pass so much is kept in memory, and more in a temporary file */
#define MADE_KB			4096

enum
{
	Anum_page_relid = 1,
	Anum_page_segment,
	Anum_page_content,
	Natts_page = Anum_page_content
};

/* The content of segment -1. */
typedef struct Total
{
	ReplMlDigest shape;			/* of rows' images */
	XLogRecPtr	since;			/* whose LSN is not above it has not changed */
	Oid			file;			/* InvalidOid: nothing is known */
	BlockNumber pages;
	ReplMlChunk rows;
	uint32		unsettled_count;
	BlockNumber unsettled[FLEXIBLE_ARRAY_MEMBER];	/* in their order */
} Total;

struct ReplMlPages
{
	Oid			relid;
	Oid			file;
	ReplMlDigest shape;
	BlockNumber count;			/* so many pages there are, or have been put */
	Tuplestorestate *made;		/* where it is made afresh: segments so far */
	TupleTableSlot *slot;		/* ... for one of them */
	Relation	catalog;
	CatalogIndexState indexes;	/* of what is written */
	Snapshot	snapshot;		/* of what is read */
	bool		writes;
	bool		has_read;		/* some page has been put */
	Total	   *old;			/* NULL: nothing that counts is known */
	uint32		next_unsettled; /* of the old ones */
	ReplMlChunk rows;			/* of all pages that have been put, and those
								 * known */
	XLogRecPtr	since;
	uint32		most_unsettled; /* if they are more, nothing is remembered */
	uint32		unsettled_count;	/* of what is put now */
	StringInfoData unsettled;	/* ... the first of these */
	int			segment;		/* that is at hand, or TOTAL_SEGMENT */
	ItemPointerData place;		/* where that is stored; invalid: nowhere */
	bool		dirty;			/* it has to be written */
	ReplMlChunk page[SEGMENT_PAGES];
};

/* ---- stored rows ---- */

/* Returns what is stored of a segment, palloc'd and with its place; NULL if nothing is. */
static HeapTuple
find_stored(ReplMlPages *pages, int segment)
{
	ScanKeyData keys[2];
	SysScanDesc scan;
	HeapTuple	tuple;

	ScanKeyInit(&keys[0], Anum_page_relid, BTEqualStrategyNumber, F_OIDEQ,
				ObjectIdGetDatum(pages->relid));
	ScanKeyInit(&keys[1], Anum_page_segment, BTEqualStrategyNumber, F_INT4EQ,
				Int32GetDatum(segment));
	scan = systable_beginscan(pages->catalog, repl_ml_catalog_oid(PAGES_INDEX), true,
							  pages->snapshot, 2, keys);
	tuple = systable_getnext(scan);
	tuple = HeapTupleIsValid(tuple) ? heap_copytuple(tuple) : NULL;
	systable_endscan(scan);
	return tuple;
}

/* Returns the content of a stored row, palloc'd. */
static bytea *
read_content(ReplMlPages *pages, HeapTuple tuple)
{
	bool		isnull;

	return DatumGetByteaPCopy(heap_getattr(tuple, Anum_page_content,
										   RelationGetDescr(pages->catalog), &isnull));
}

/* Stores the content of a segment, where it is stored already if that is a place. */
static void
store(ReplMlPages *pages, int segment, ItemPointer place, const void *content, Size size)
{
	bytea	   *bytes = palloc(VARHDRSZ + size);
	Datum		values[Natts_page] = {ObjectIdGetDatum(pages->relid),
	Int32GetDatum(segment), PointerGetDatum(bytes)};
	bool		nulls[Natts_page] = {false};
	HeapTuple	tuple;

	SET_VARSIZE(bytes, VARHDRSZ + size);
	memcpy(VARDATA(bytes), content, size);
	tuple = heap_form_tuple(RelationGetDescr(pages->catalog), values, nulls);
	if (pages->indexes == NULL)
		pages->indexes = CatalogOpenIndexes(pages->catalog);
	if (ItemPointerIsValid(place))
		CatalogTupleUpdateWithInfo(pages->catalog, place, tuple, pages->indexes);
	else
		CatalogTupleInsertWithInfo(pages->catalog, tuple, pages->indexes);
	heap_freetuple(tuple);
	pfree(bytes);
}

/* ---- segments ---- */

/* Stores the segment at hand, if it has changed. */
static void
put_segment_away(ReplMlPages *pages)
{
	if (pages->dirty && pages->writes)
		store(pages, pages->segment, &pages->place, pages->page, sizeof(pages->page));
	pages->dirty = false;
}

/* Takes a segment at hand; what is not stored of it is zeros. */
static void
take_segment(ReplMlPages *pages, int segment)
{
	HeapTuple	tuple;
	bytea	   *content;

	if (pages->segment == segment)
		return;
	put_segment_away(pages);
	pages->segment = segment;
	memset(pages->page, 0, sizeof(pages->page));
	tuple = find_stored(pages, segment);
	if (tuple == NULL)
	{
		ItemPointerSetInvalid(&pages->place);
		pages->dirty = true;
		return;
	}
	pages->place = tuple->t_self;
	content = read_content(pages, tuple);
	if (VARSIZE_ANY_EXHDR(content) == sizeof(pages->page))
		memcpy(pages->page, VARDATA_ANY(content), sizeof(pages->page));
	pfree(content);
	heap_freetuple(tuple);
}

/*
 * Returns how many of so many pages it pays to read by themselves; with more of
 * them a comparison reads all.
 */
uint32
repl_ml_pages_some(BlockNumber pages)
{
	return Min(Max(pages / 10, LEAST_SOME), MOST_SOME);
}

/* Begins to add up the rows of another page. */
void
repl_ml_pages_begin_page(ReplMlPageSum *page)
{
	page->rows = (ReplMlChunk) {0};
	page->settled = true;
}

/*
 * Adds a row to those of its page.  Returns false if a member may lack it, or
 * know it to be overwritten: then its page is not settled.
 */
bool
repl_ml_pages_add_row(ReplMlPageSum *page, ReplMlDigest row, const bytea *stored)
{
	const ReplMlClock *clock = (const ReplMlClock *) stored;
	bool		is_stable = clock != NULL && repl_ml_clock_is_whole(clock) &&
		repl_ml_clock_is_within(clock, page->stable);

	page->rows.rows++;
	page->rows.sum.lane[0] += row.lane[0];
	page->rows.sum.lane[1] += row.lane[1];
	page->settled &= is_stable;
	return is_stable;
}

/* Adds a page's rows to others. */
static void
add(ReplMlChunk *to, const ReplMlChunk *page)
{
	to->rows += page->rows;
	to->sum.lane[0] += page->sum.lane[0];
	to->sum.lane[1] += page->sum.lane[1];
}

/* Takes a page's rows away from others, of which they are. */
static void
subtract(ReplMlChunk *from, const ReplMlChunk *page)
{
	from->rows -= page->rows;
	from->sum.lane[0] -= page->sum.lane[0];
	from->sum.lane[1] -= page->sum.lane[1];
}

/* Where the memory is made afresh: keeps the segment at hand until the end. */
static void
keep_made(ReplMlPages *pages)
{
	bytea	   *bytes = palloc(VARHDRSZ + sizeof(pages->page));
	Datum		value = PointerGetDatum(bytes);
	bool		isnull = false;

	SET_VARSIZE(bytes, VARHDRSZ + sizeof(pages->page));
	memcpy(VARDATA(bytes), pages->page, sizeof(pages->page));
	tuplestore_putvalues(pages->made, pages->slot->tts_tupleDescriptor, &value, &isnull);
	pfree(bytes);
}

/* Takes the next segment at hand, where the memory is made afresh. */
static void
begin_made(ReplMlPages *pages, int segment)
{
	if (pages->segment == segment)
		return;
	if (pages->segment != TOTAL_SEGMENT)
		keep_made(pages);
	Assert(segment == pages->segment + 1);
	pages->segment = segment;
	memset(pages->page, 0, sizeof(pages->page));
}

/*
 * Notes what a page has now.  Pages come in their order; all of them where the
 * memory is made afresh.
 */
void
repl_ml_pages_put(ReplMlPages *pages, BlockNumber block, const ReplMlChunk *page, bool settled)
{
	int			segment = block / SEGMENT_PAGES;
	ReplMlChunk *known = &pages->page[block % SEGMENT_PAGES];

	pages->has_read = true;
	if (pages->made != NULL)
	{
		begin_made(pages, segment);
		pages->count = block + 1;
	}
	else
	{
		take_segment(pages, segment);
		/* what is stored beyond the end of the relation is of no page */
		if (block < pages->old->pages)
			subtract(&pages->rows, known);
		pages->dirty |= memcmp(known, page, sizeof(*known)) != 0;
	}
	*known = *page;
	add(&pages->rows, page);
	if (!settled && pages->unsettled_count++ < pages->most_unsettled)
		appendBinaryStringInfo(&pages->unsettled, (char *) &block, sizeof(block));
}

/* Stores the segments that have been made. */
static void
store_made(ReplMlPages *pages)
{
	if (pages->segment != TOTAL_SEGMENT)
		keep_made(pages);
	pages->segment = TOTAL_SEGMENT;
	for (int segment = 0; tuplestore_gettupleslot(pages->made, true, false, pages->slot); segment++)
	{
		bool		isnull;
		bytea	   *made = DatumGetByteaPP(slot_getattr(pages->slot, 1, &isnull));

		CHECK_FOR_INTERRUPTS();
		take_segment(pages, segment);
		pages->dirty |= memcmp(pages->page, VARDATA_ANY(made), sizeof(pages->page)) != 0;
		memcpy(pages->page, VARDATA_ANY(made), sizeof(pages->page));
	}
}

/* ---- totals ---- */

/* Returns the file that a relation is in. */
static Oid
file_of(Relation rel)
{
	return rel->rd_rel->relfilenode;
}

/* Returns the total that is known, or NULL if that is not of the relation as it is now. */
static Total *
find_total(ReplMlPages *pages)
{
	HeapTuple	tuple = find_stored(pages, TOTAL_SEGMENT);
	bytea	   *content;
	Total	   *total;
	Size		size;

	if (tuple == NULL)
		return NULL;
	content = read_content(pages, tuple);
	size = VARSIZE_ANY_EXHDR(content);
	if (size < offsetof(Total, unsettled))
		return NULL;
	/* aligned */
	total = palloc(size);
	memcpy(total, VARDATA_ANY(content), size);
	if (!OidIsValid(total->file) || total->file != pages->file ||
		memcmp(&total->shape, &pages->shape, sizeof(total->shape)) != 0 ||
		total->since > pages->since ||
		size != offsetof(Total, unsettled) + total->unsettled_count * sizeof(BlockNumber))
		return NULL;
	return total;
}

/*
 * Stores the new total.  If too many pages are not settled it is as if nothing
 * were known.
 */
static void
store_total(ReplMlPages *pages)
{
	Size		size = offsetof(Total, unsettled) + pages->unsettled.len;
	Total	   *total = palloc0(size);
	HeapTuple	stored = find_stored(pages, TOTAL_SEGMENT);
	ItemPointerData place;

	ItemPointerSetInvalid(&place);
	if (stored != NULL)
		place = stored->t_self;
	total->shape = pages->shape;
	total->since = pages->since;
	total->file = pages->file;
	total->pages = pages->count;
	total->rows = pages->rows;
	total->unsettled_count = pages->unsettled_count;
	memcpy(total->unsettled, pages->unsettled.data, pages->unsettled.len);
	if (pages->unsettled_count > pages->most_unsettled)
	{
		total->file = InvalidOid;
		size = offsetof(Total, unsettled);
	}
	store(pages, TOTAL_SEGMENT, &place, total, size);
	pfree(total);
}

/* ---- beginning and end ---- */

/* Says whether anything can be remembered of a relation's pages. */
static bool
can_be_known(ReplMlScan *scan)
{
	return scan->has_pages && RelationNeedsWAL(scan->rel) &&
		scan->rel->rd_rel->relpersistence == RELPERSISTENCE_PERMANENT &&
		OidIsValid(file_of(scan->rel));
}

/* Says whether this transaction may write what is remembered of a relation. */
static bool
may_write(Oid relid)
{
	LOCKTAG		tag;

	if (XactReadOnly || RecoveryInProgress())
		return false;
	SET_LOCKTAG_ADVISORY(tag, MyDatabaseId, 0, relid, LOCK_KIND);
	return LockAcquire(&tag, ExclusiveLock, false, true) != LOCKACQUIRE_NOT_AVAIL;
}

/* Opens our table. */
static void
open_catalog(ReplMlPages *pages)
{
	pages->catalog = table_open(repl_ml_catalog_oid(PAGES_TABLE),
								pages->writes ? RowExclusiveLock : AccessShareLock);
	pages->snapshot = RegisterSnapshot(GetLatestSnapshot());
}

/* Frees all that has been needed. */
static void
end(ReplMlPages *pages)
{
	if (pages->indexes != NULL)
	{
		CatalogCloseIndexes(pages->indexes);
		/* whoever looks next in this transaction sees it */
		CommandCounterIncrement();
	}
	if (pages->catalog != NULL)
	{
		UnregisterSnapshot(pages->snapshot);
		table_close(pages->catalog, NoLock);
	}
	if (pages->made != NULL)
	{
		ExecDropSingleTupleTableSlot(pages->slot);
		tuplestore_end(pages->made);
	}
	pfree(pages->unsettled.data);
	pfree(pages);
}

/*
 * Begins to use what is remembered of the pages of a scan, none of which has
 * been read so far; NULL where nothing can be.
 */
static ReplMlPages *
begin(ReplMlScan *scan)
{
	ReplMlPages *pages;
	ReplMlDigest shape;

	if (!can_be_known(scan) || !repl_ml_image_shape(scan->image, &shape))
		return NULL;
	pages = palloc0(sizeof(ReplMlPages));
	pages->relid = RelationGetRelid(scan->rel);
	pages->file = file_of(scan->rel);
	pages->shape = shape;
	pages->segment = TOTAL_SEGMENT;
	pages->since = GetXLogInsertRecPtr();
	pages->writes = may_write(pages->relid);
	pages->most_unsettled = repl_ml_pages_some(scan->pages);
	initStringInfo(&pages->unsettled);
	return pages;
}

/*
 * Begins to remember all pages of a scan, none of which has been read so far.
 * Returns NULL where they cannot be.
 */
ReplMlPages *
repl_ml_pages_make(ReplMlScan *scan)
{
	ReplMlPages *pages = begin(scan);
	TupleDesc	desc;

	if (pages == NULL || !pages->writes)
		return NULL;
	desc = CreateTemplateTupleDesc(1);
	TupleDescInitEntry(desc, 1, "content", BYTEAOID, -1, 0);
	pages->slot = MakeSingleTupleTableSlot(desc, &TTSOpsMinimalTuple);
	pages->made = tuplestore_begin_heap(false, false, MADE_KB);
	return pages;
}

/* Says whether a relation is what its pages were read of. */
static bool
is_same(ReplMlPages *pages, Relation rel)
{
	ReplMlImage *image;
	ReplMlDigest shape;
	bool		same;

	if (RelationGetRelid(rel) != pages->relid || file_of(rel) != pages->file)
		return false;
	image = repl_ml_image_open(rel);
	same = repl_ml_image_shape(image, &shape) &&
		memcmp(&shape, &pages->shape, sizeof(shape)) == 0;
	repl_ml_image_close(image);
	return same;
}

/*
 * Ends what repl_ml_pages_make has begun: all pages have been put.  They are
 * remembered if the relation is one of these, and still the same.
 */
void
repl_ml_pages_keep(ReplMlPages *pages, List *relations)
{
	ListCell   *lc;

	foreach(lc, relations)
	{
		if (!is_same(pages, lfirst(lc)))
			continue;
		open_catalog(pages);
		store_made(pages);
		put_segment_away(pages);
		store_total(pages);
		break;
	}
	end(pages);
}

/*
 * Begins to use what is remembered of the pages of a scan, to bring it up to
 * date; NULL if nothing is.
 */
ReplMlPages *
repl_ml_pages_open(ReplMlScan *scan)
{
	ReplMlPages *pages = begin(scan);

	if (pages == NULL)
		return NULL;
	open_catalog(pages);
	pages->old = find_total(pages);
	if (pages->old == NULL)
	{
		end(pages);
		return NULL;
	}
	pages->count = scan->pages;
	pages->rows = pages->old->rows;
	return pages;
}

/* Returns a bit for each page of a run that has to be read; runs come in their order. */
uint32
repl_ml_pages_changed(ReplMlPages *pages, ReplMlScan *scan, BlockNumber first)
{
	Total	   *old = pages->old;
	uint32		changed = repl_ml_scan_changed(scan, first, old->since);

	while (pages->next_unsettled < old->unsettled_count &&
		   old->unsettled[pages->next_unsettled] < first + REPL_ML_PAGES_IN_RUN)
		changed |= (uint32) 1 << (old->unsettled[pages->next_unsettled++] - first);
	for (int i = 0; i < REPL_ML_PAGES_IN_RUN; i++)
	{
		if (first + i >= scan->pages)
			changed &= ~((uint32) 1 << i);
		else if (first + i >= old->pages)
			changed |= (uint32) 1 << i;
	}
	return changed;
}

/* Takes away what is known of pages that the relation has no more. */
static void
forget_missing(ReplMlPages *pages)
{
	ReplMlChunk none = {0};

	for (BlockNumber block = pages->count; block < pages->old->pages; block++)
	{
		CHECK_FOR_INTERRUPTS();
		repl_ml_pages_put(pages, block, &none, true);
	}
}

/*
 * Ends what repl_ml_pages_open has begun: the pages that have changed have been
 * put, or, if "give_up" is set, it does not matter.  Returns the rows of all
 * pages.
 */
ReplMlChunk
repl_ml_pages_close(ReplMlPages *pages, ReplMlScan *scan, bool give_up)
{
	ReplMlChunk rows;

	if (!give_up)
	{
		forget_missing(pages);
		put_segment_away(pages);
		/* also so that what has been looked at is not looked at again */
		if (pages->writes && (pages->has_read || scan->map_is_newer))
			store_total(pages);
	}
	rows = pages->rows;
	end(pages);
	return rows;
}
