/*
 * piece.c
 *		The pieces of a copy: short transactions, each of which joins some rows.
 *
 * A long transaction here would hold each row that it has joined against clients and
 * against the workers of other peers, which copy the same table perhaps; and whoever
 * decodes this server's WAL has to keep all from its beginning on, so that what copies
 * write could lose the slots for which they are made.  What a piece has joined stays,
 * whatever becomes of the others: a copy that starts over finds it here, and joining a row
 * that is here writes nothing.  The rows are of one moment of the peer all the same.
 *
 * Some copies are one piece: of the group's lists, of a table that replaces what is here
 * (replace.c), and all of a node that joins, which nobody reads yet.
 *
 * Workers that copy the same table from their peers take turns, piece by piece, so that none
 * meets another's rows, and the second one finds them as they are.  Nobody waits for a turn
 * who has joined something, and who has one gives it back with the piece, whatever the
 * piece waited for.
 *
 * Called by fetch.c and rows.c.  Locks: ROW EXCLUSIVE on the table, and advisory ones that
 * stand for the turn, until the piece ends; between two pieces others may have the table, and
 * change its definition.
 */
#include "postgres.h"

#include "access/table.h"
#include "access/xact.h"
#include "miscadmin.h"
#include "replication/origin.h"
#include "storage/latch.h"
#include "storage/lock.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

#include "compat.h"
#include "converge/converge.h"
#include "copy/copy.h"
#include "row/row.h"
#include "server/server.h"

#define LOCK_KIND	10			/* of advisory locks: see commit/lease.c and write/number.c */
#define POLL_MS		10			/* for a turn */

/* Begins a piece; what is allocated does not end with it. */
void
repl_ml_piece_begin(void)
{
	MemoryContext context = CurrentMemoryContext;

	StartTransactionCommand();
	PushActiveSnapshot(GetTransactionSnapshot());
	MemoryContextSwitchTo(context);
}

/* Commits a piece.  Nobody is told of it: no slot, no origin moves with copies. */
void
repl_ml_piece_end(void)
{
	MemoryContext context = CurrentMemoryContext;

	repl_ml_targets_close();
	PopActiveSnapshot();
	replorigin_session_origin_lsn = InvalidXLogRecPtr;
	replorigin_session_origin_timestamp = 0;
	CommitTransactionCommand();
	MemoryContextSwitchTo(context);
}

/* Opens the table whose rows are joined, until repl_ml_piece_close. */
void
repl_ml_piece_open(ReplMlCopied *copied, Oid relid, bool in_pieces)
{
	copied->rel = table_open(relid, RowExclusiveLock);
	copied->in_pieces = in_pieces;
	copied->has_turn = false;
	copied->desc = in_pieces ? CreateTupleDescCopyConstr(RelationGetDescr(copied->rel)) : NULL;
}

/* Closes it; its lock stays until the piece ends. */
void
repl_ml_piece_close(ReplMlCopied *copied)
{
	table_close(copied->rel, NoLock);
	copied->rel = NULL;
}

/* Waits a moment for whoever has the turn. */
static void
await_turn(void)
{
	(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, POLL_MS,
					 wait_event_compat("ReplMlCopyTurn"));
	ResetLatch(MyLatch);
	CHECK_FOR_INTERRUPTS();
	repl_ml_check_server();
}

/* Takes an advisory lock of copies until the piece ends, if it is free. */
static bool
try_lock(Oid relid, LOCKMODE mode)
{
	LOCKTAG		tag;

	SET_LOCKTAG_ADVISORY(tag, MyDatabaseId, 0, relid, LOCK_KIND);
	return LockAcquire(&tag, mode, false, true) != LOCKACQUIRE_NOT_AVAIL;
}

/*
 * Waits, unless the copy is one piece, until no other worker joins rows of the table;
 * tombstones, and the stored versions that come with them, are of rows of all tables.
 * Called before the piece's first row.
 */
void
repl_ml_piece_turn(ReplMlCopied *copied)
{
	bool		of_all = RelationGetNamespace(copied->rel) == repl_ml_schema_oid();

	if (!copied->in_pieces || copied->has_turn)
		return;
	while (!try_lock(InvalidOid, of_all ? ExclusiveLock : ShareLock))
		await_turn();
	while (!of_all && !try_lock(RelationGetRelid(copied->rel), ExclusiveLock))
		await_turn();
	copied->has_turn = true;
}

/*
 * Commits what has been joined, if the copy may be in pieces and anything was done, and
 * goes on with the next piece.  Raises an error if the table has become another one
 * meanwhile; then it is copied again.
 */
void
repl_ml_piece_next(ReplMlCopied *copied)
{
	Oid			relid = RelationGetRelid(copied->rel);

	if (!copied->in_pieces ||
		(!copied->has_turn && !TransactionIdIsValid(GetTopTransactionIdIfAny())))
		return;
	copied->has_turn = false;
	repl_ml_piece_close(copied);
	repl_ml_piece_end();
	CHECK_FOR_INTERRUPTS();
	repl_ml_piece_begin();
	copied->rel = try_table_open(relid, RowExclusiveLock);
	if (copied->rel == NULL || !equalTupleDescs(copied->desc, RelationGetDescr(copied->rel)))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("the table was changed while it was copied"),
				 errhint("It is copied again by itself.")));
}
