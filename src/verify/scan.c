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
#include "access/multixact.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/transam.h"
#include "access/visibilitymap.h"
#include "access/xact.h"
#include "catalog/pg_inherits.h"
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
 * Opens what of a table that is locked has rows: itself, or its partitions,
 * under ACCESS SHARE; returns a list of Relation.
 */
List *
repl_ml_scan_open_leaves(Relation root)
{
	List	   *leaves = NIL;
	ListCell   *lc;

	if (root->rd_rel->relkind != RELKIND_PARTITIONED_TABLE)
		return list_make1(root);
	foreach(lc, find_all_inheritors(RelationGetRelid(root), AccessShareLock, NULL))
	{
		Relation	rel = table_open(lfirst_oid(lc), NoLock);

		/* the root's lock is not of this list */
		if (RELKIND_HAS_TABLE_AM(rel->rd_rel->relkind))
			leaves = lappend(leaves, rel);
		else
			table_close(rel, lfirst_oid(lc) == RelationGetRelid(root) ? NoLock : AccessShareLock);
	}
	return leaves;
}

/* Closes them, but for the root; lets these locks go, or none where it is NoLock. */
void
repl_ml_scan_close_leaves(Relation root, List *leaves, LOCKMODE lockmode)
{
	ListCell   *lc;

	foreach(lc, leaves)
	{
		if (lfirst(lc) != root)
			table_close((Relation) lfirst(lc), lockmode);
	}
	list_free(leaves);
}

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
	if (BufferIsValid(scan->map))
		ReleaseBuffer(scan->map);
	ExecDropSingleTupleTableSlot(scan->slot);
	repl_ml_image_close(scan->image);
}

/*
 * Says whether a transaction has ended as the snapshot sees it: no later one
 * sees anything else of it.
 */
static bool
has_ended(TransactionId xid, Snapshot snapshot)
{
	return !TransactionIdIsNormal(xid) ||
		(!XidInMVCCSnapshot(xid, snapshot) && !TransactionIdIsCurrentTransactionId(xid));
}

/* Says whether all snapshots from now on will see the tuple, or all will not. */
static bool
is_settled(HeapTupleHeader header, Snapshot snapshot)
{
	if (header->t_infomask & HEAP_MOVED)
		return false;
	if (!HeapTupleHeaderXminFrozen(header) &&
		!has_ended(HeapTupleHeaderGetRawXmin(header), snapshot))
		return false;
	if ((header->t_infomask & HEAP_XMAX_INVALID) || HEAP_XMAX_IS_LOCKED_ONLY(header->t_infomask))
		return true;
	return has_ended(HeapTupleHeaderGetUpdateXid(header), snapshot);
}

/*
 * Finds the tuples of a page that the snapshot sees; returns how many, and
 * notes whether later ones will see the same until the page is written.  The
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
	scan->settled = true;
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
		if (!all_visible && scan->settled)
			scan->settled = is_settled((HeapTupleHeader) PageGetItem(page, item), scan->snapshot);
	}
	LockBuffer(buffer, BUFFER_LOCK_UNLOCK);
	return count;
}

/*
 * Lets the visitor see the rows of one page of a heap; returns how many, and
 * sets "settled": as long as the page's LSN stays, its rows are these.
 */
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

/* Returns the LSN of a page that is pinned. */
static XLogRecPtr
read_lsn(Buffer buffer)
{
	XLogRecPtr	lsn;

	/* the lock, as the LSN may be written in halves */
	LockBuffer(buffer, BUFFER_LOCK_SHARE);
	lsn = PageGetLSN(BufferGetPage(buffer));
	LockBuffer(buffer, BUFFER_LOCK_UNLOCK);
	return lsn;
}

/*
 * Returns a bit for each page of a run, from "first" on, that may have been
 * written since a position in the WAL, as far as the scan's snapshot sees what
 * was written.  A page that has been all-visible since then is not read for it.
 */
uint32
repl_ml_scan_changed(ReplMlScan *scan, BlockNumber first, XLogRecPtr since)
{
	int			count = Min(scan->pages - first, REPL_ML_PAGES_IN_RUN);
	uint32		visible = 0;
	uint32		changed = 0;

	for (int i = 0; i < count; i++)
	{
		if (VM_ALL_VISIBLE(scan->rel, first + i, &scan->map))
			visible |= (uint32) 1 << i;
	}
	/* after the bits: who sets one again, writes the map's LSN */
	if (visible != 0 && read_lsn(scan->map) > since)
	{
		scan->map_is_newer = true;
		visible = 0;
	}
	for (int i = 0; i < count; i++)
	{
		Buffer		buffer;

		if (visible & ((uint32) 1 << i))
			continue;
		CHECK_FOR_INTERRUPTS();
		buffer = ReadBufferExtended(scan->rel, MAIN_FORKNUM, first + i, RBM_NORMAL, scan->strategy);
		if (read_lsn(buffer) > since)
			changed |= (uint32) 1 << i;
		ReleaseBuffer(buffer);
	}
	return changed;
}
