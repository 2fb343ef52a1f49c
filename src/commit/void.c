/*
 * void.c
 *		Which transactions of this node wrote strong tables and count in no tenure: found in
 *		its WAL when another node has taken over, and written down.
 *
 * A transaction that writes strong tables says in which round, in its WAL (round.c).  What
 * this node wrote behind the base of a later round is void; it is read from there on, to the
 * end, before the tables are made what they are on another member.
 *
 * The process of group/tenure.c.  Not here: what is left of them in the tables, which the copy
 * that replaces these finds (copy/replace.c).  No locks.
 */
#include "postgres.h"

#include "access/rmgr.h"
#include "access/xact.h"
#include "access/xlog.h"
#include "access/xlog_internal.h"
#include "access/xlogreader.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "replication/message.h"
#include "utils/array.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"
#include "utils/pg_lsn.h"
#include "utils/timestamp.h"

#include "commit/commit.h"
#include "compat.h"
#include "server/server.h"

/* A transaction that has said in which round it wrote strong tables. */
typedef struct Writer
{
	TransactionId xid;			/* the key */
	int64		round;
} Writer;

/* One of them that has been committed. */
typedef struct Found
{
	TransactionId xid;
	int64		round;
	XLogRecPtr	end;			/* of its commit's record */
	TimestampTz committed_at;
	ArrayType  *xids;			/* with its subtransactions' */
} Found;

/* What one reading works with; in its own memory context. */
typedef struct Reading
{
	XLogReaderState *reader;
	const pg_uuid_t *group;
	HTAB	   *writers;		/* of Writer */
	List	   *found;			/* of Found */
} Reading;

/* The last round whose void transactions have been written down. */
static int64 noted_round = 0;

/*
 * Sets from where the WAL is to be read for the last round that this node has accepted, and which
 * that is; returns false if it is not known yet whether it counts, or it has been read.
 */
static bool
find_range(XLogRecPtr *from, int64 *round, pg_uuid_t *group)
{
	bool		due;
	int64		base = 0;

	repl_ml_begin();
	*group = repl_ml_identity_require()->group_id;
	SPI_execute("SELECT s.accepted, coalesce(repl_ml.counter(r.base, l.node_id), 0)"
				" FROM repl_ml.lease_state s JOIN repl_ml.lease_round r"
				" ON r.round OPERATOR(pg_catalog.=) s.accepted, repl_ml.local_node l"
				" WHERE s.opened OPERATOR(pg_catalog.=) s.accepted", true, 1);
	due = SPI_processed == 1;
	if (due)
	{
		*round = strtoll(repl_ml_spi_text(0, 0), NULL, 10);
		base = strtoll(repl_ml_spi_text(0, 1), NULL, 10);
	}
	repl_ml_commit();
	/* it had written nothing in former tenures: what its WAL still has may be of the last one */
	*from = base != 0 ? (XLogRecPtr) base :
		(XLogRecPtr) (XLogGetLastRemovedSegno() + 1) * wal_segment_size;
	return due && *round != noted_round;
}

/* Notes the round, if the record at hand is a message that tells it. */
static void
note_message(Reading *reading)
{
	xl_logical_message *message = (xl_logical_message *) XLogRecGetData(reading->reader);
	char	   *content;
	int64		round;
	Writer	   *writer;
	TransactionId xid = XLogRecGetXid(reading->reader);

	if ((XLogRecGetInfo(reading->reader) & ~XLR_INFO_MASK) != XLOG_LOGICAL_MESSAGE ||
		message->dbId != MyDatabaseId || !message->transactional || !TransactionIdIsValid(xid) ||
		strcmp(message->message, REPL_ML_MESSAGE_PREFIX) != 0)
		return;
	content = pnstrdup(message->message + message->prefix_size, message->message_size);
	if (!repl_ml_round_parse(reading->group, content, &round))
		return;
	writer = hash_search(reading->writers, &xid, HASH_ENTER, NULL);
	writer->round = round;
}

/* Returns a transaction's own id and those of its subtransactions. */
static ArrayType *
make_xids(TransactionId xid, const xl_xact_parsed_commit *parsed)
{
	Datum	   *xids = palloc((parsed->nsubxacts + 1) * sizeof(Datum));

	xids[0] = TransactionIdGetDatum(xid);
	for (int i = 0; i < parsed->nsubxacts; i++)
		xids[i + 1] = TransactionIdGetDatum(parsed->subxacts[i]);
	return construct_array(xids, parsed->nsubxacts + 1, XIDOID, sizeof(TransactionId), true,
						   TYPALIGN_INT);
}

/* Notes the transaction, if the record at hand is the commit of one that has told its round. */
static void
note_commit(Reading *reading)
{
	uint8		info = XLogRecGetInfo(reading->reader) & XLOG_XACT_OPMASK;
	xl_xact_parsed_commit parsed;
	TransactionId xid;
	Writer	   *writer;
	Found	   *found;

	if (info != XLOG_XACT_COMMIT && info != XLOG_XACT_COMMIT_PREPARED)
		return;
	ParseCommitRecord(XLogRecGetInfo(reading->reader),
					  (xl_xact_commit *) XLogRecGetData(reading->reader), &parsed);
	xid = info == XLOG_XACT_COMMIT ? XLogRecGetXid(reading->reader) : parsed.twophase_xid;
	writer = hash_search(reading->writers, &xid, HASH_FIND, NULL);
	if (writer == NULL)
		return;
	found = palloc(sizeof(Found));
	*found = (Found) {
		.xid = xid,.round = writer->round,.end = reading->reader->EndRecPtr,
		.committed_at = parsed.xact_time,.xids = make_xids(xid, &parsed)
	};
	reading->found = lappend(reading->found, found);
}

/* Reads from there to the end of what has been flushed. */
static void
read_wal(Reading *reading, XLogRecPtr from)
{
	XLogRecPtr	end = GetFlushRecPtr(NULL);

	if (from >= end)
		return;
	reading->reader = repl_ml_recall_open(from, _("Which transactions of strong tables do not "
												  "count is not listed. They are undone all the "
												  "same."));
	while (repl_ml_recall_next(reading->reader) && reading->reader->ReadRecPtr < end)
	{
		CHECK_FOR_INTERRUPTS();
		if (XLogRecGetRmid(reading->reader) == RM_LOGICALMSG_ID)
			note_message(reading);
		else if (XLogRecGetRmid(reading->reader) == RM_XACT_ID)
			note_commit(reading);
	}
}

/* Writes down those of them that are void. */
static void
write_down(const List *transactions)
{
	Oid			types[5] = {PG_LSNOID, XIDOID, XIDARRAYOID, TIMESTAMPTZOID, INT8OID};
	ListCell   *lc;

	repl_ml_begin();
	foreach(lc, transactions)
	{
		const Found *found = lfirst(lc);
		Datum		values[5] = {LSNGetDatum(found->end), TransactionIdGetDatum(found->xid),
			PointerGetDatum(found->xids), TimestampTzGetDatum(found->committed_at),
		Int64GetDatum(found->round)};

		SPI_execute_with_args("INSERT INTO repl_ml.void_transaction"
							  " (commit_lsn, xid, xids, committed_at, round)"
							  " SELECT $1, $2, $3, $4, $5 FROM repl_ml.local_node l"
							  " WHERE repl_ml.judge_strong(l.node_id, $5,"
							  " ($1 OPERATOR(pg_catalog.-) '0/0')::pg_catalog.int8)"
							  " OPERATOR(pg_catalog.=) 'void' ON CONFLICT DO NOTHING", 5, types,
							  values, NULL, false, 0);
		if (SPI_processed > 0)
			ereport(LOG,
					(errmsg("transaction %u of %s, which wrote strong tables, does not count: it "
							"was not acknowledged before another node took over", found->xid,
							timestamptz_to_str(found->committed_at)),
					 errhint("See SELECT * FROM repl_ml.void_transactions.")));
	}
	repl_ml_commit();
}

/*
 * Called by the process of tenure.c, outside transactions, when strong tables here are unclean,
 * no client writes them, and before they are mended: writes down which transactions of this node
 * are void.  If its WAL is gone the log tells that; nothing else waits for it.
 */
void
repl_ml_void_note(void)
{
	MemoryContext caller = CurrentMemoryContext;
	MemoryContext context;
	XLogRecPtr	from;
	int64		round;
	pg_uuid_t	group;
	HASHCTL		control = {.keysize = sizeof(TransactionId),.entrysize = sizeof(Writer)};
	Reading    *reading;

	if (!find_range(&from, &round, &group))
		return;
	noted_round = round;
	context = AllocSetContextCreate(caller, "repl_ml void transactions", ALLOCSET_DEFAULT_SIZES);
	reading = MemoryContextAllocZero(context, sizeof(Reading));
	reading->group = &group;
	PG_TRY();
	{
		MemoryContextSwitchTo(context);
		control.hcxt = context;
		reading->writers = hash_create("repl_ml writers of strong tables", 256, &control,
									   HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
		read_wal(reading, from);
		write_down(reading->found);
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(context);
		EmitErrorReport();
		FlushErrorState();
		AbortOutOfAnyTransaction();
	}
	PG_END_TRY();
	/* with its file, also after an error */
	if (reading->reader != NULL)
		XLogReaderFree(reading->reader);
	MemoryContextSwitchTo(caller);
	MemoryContextDelete(context);
}
