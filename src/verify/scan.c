/*
 * scan.c
 *		Reads the rows of a relation for who hashes them (part.c): page by page
 *		where it is a heap, otherwise as its access method likes.
 *
 * By pages, so that some of them can be read without the others.  A page is read
 * as core's scans of heaps do it, but for pruning: comparing writes nothing
 * but hint bits.
 *
 * Nothing of the table's owner runs here.  Locks: the caller has one on the
 * relation; a page is locked while its rows are looked for, not while they are
 * hashed.
 */
#include "postgres.h"

#include "access/heapam.h"
#include "access/tableam.h"
#include "executor/executor.h"
#include "miscadmin.h"
#include "storage/bufmgr.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

#include "compat.h"
#include "verify/verify.h"

/* core does not let a scan fill more of its buffers than that, either */
#define SHARE_OF_BUFFERS	4

/*
 * Prepares to read rows that the snapshot sees of a relation that stays open,
 * as does the snapshot.
 */
void
repl_ml_scan_begin(ReplMlScan *scan, Relation rel, Snapshot snapshot)
{
	*scan = (ReplMlScan) {.rel = rel,.snapshot = snapshot,.image = repl_ml_image_open(rel),
	.slot = table_slot_create(rel, NULL)};
	if (rel->rd_tableam != GetHeapamTableAmRoutine())
		return;
	scan->has_pages = true;
	scan->pages = RelationGetNumberOfBlocks(rel);
	if (scan->pages > NBuffers / SHARE_OF_BUFFERS)
		scan->strategy = GetAccessStrategy(BAS_BULKREAD);
}

/* Frees what a scan has needed, but for what goes with the caller's context. */
void
repl_ml_scan_end(ReplMlScan *scan)
{
	if (scan->strategy != NULL)
		FreeAccessStrategy(scan->strategy);
	ExecDropSingleTupleTableSlot(scan->slot);
	repl_ml_image_close(scan->image);
}

/*
 * Finds the tuples of a page that the snapshot sees; returns how many.  The
 * caller has pinned the page.
 */
static int
find_tuples(ReplMlScan *scan, Buffer buffer, HeapTupleData *tuples)
{
	Page		page = BufferGetPage(buffer);
	BlockNumber block = BufferGetBlockNumber(buffer);
	OffsetNumber last;
	bool		all_visible;
	int			count = 0;

	LockBuffer(buffer, BUFFER_LOCK_SHARE);
	test_for_old_snapshot_compat(scan->snapshot, scan->rel, page);
	last = PageGetMaxOffsetNumber(page);
	all_visible = PageIsAllVisible(page) && !scan->snapshot->takenDuringRecovery;
	for (OffsetNumber line = FirstOffsetNumber; line <= last; line++)
	{
		ItemId		item = PageGetItemId(page, line);
		HeapTupleData *tuple = &tuples[count];

		if (!ItemIdIsNormal(item))
			continue;
		*tuple = (HeapTupleData) {.t_tableOid = RelationGetRelid(scan->rel),
			.t_data = (HeapTupleHeader) PageGetItem(page, item),.t_len = ItemIdGetLength(item)};
		ItemPointerSet(&tuple->t_self, block, line);
		if (all_visible || HeapTupleSatisfiesVisibility(tuple, scan->snapshot, buffer))
			count++;
	}
	LockBuffer(buffer, BUFFER_LOCK_UNLOCK);
	return count;
}

/* Lets the visitor see the rows of one page of a heap; returns how many. */
int
repl_ml_scan_page(ReplMlScan *scan, BlockNumber block, ReplMlRowVisitor visitor, void *argument)
{
	HeapTupleData tuples[MaxHeapTuplesPerPage];
	Buffer		buffer;
	int			count;

	CHECK_FOR_INTERRUPTS();
	buffer = ReadBufferExtended(scan->rel, MAIN_FORKNUM, block, RBM_NORMAL, scan->strategy);
	count = find_tuples(scan, buffer, tuples);
	for (int i = 0; i < count; i++)
	{
		ExecStoreBufferHeapTuple(&tuples[i], scan->slot, buffer);
		visitor(scan->image, scan->slot, argument);
		CHECK_FOR_INTERRUPTS();
	}
	ExecClearTuple(scan->slot);
	ReleaseBuffer(buffer);
	return count;
}

/*
 * Lets the visitor see all rows of a relation that is no heap; "news" hears
 * of each.
 */
void
repl_ml_scan_whole(ReplMlScan *scan, ReplMlRowVisitor visitor, void *argument,
				   void (*news) (void *argument, int rows), void *listener)
{
	TableScanDesc rows = table_beginscan(scan->rel, scan->snapshot, 0, NULL);

	while (table_scan_getnextslot(rows, ForwardScanDirection, scan->slot))
	{
		CHECK_FOR_INTERRUPTS();
		visitor(scan->image, scan->slot, argument);
		news(listener, 1);
	}
	table_endscan(rows);
}
