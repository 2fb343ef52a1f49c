/*
 * recall.c
 *		After a server start: which transactions were committed before it, with a
 *		level above one, and may not have been acknowledged.
 *
 * Who had acknowledged what was in shared memory.  But the peers' slots say what
 * they had at least, and the peers, if they can be asked, what they have.  The
 * WAL since then has every commit, with bits that tell its level
 * (commit/commit.c).  It is read by the supervisor, a bit each round, because
 * the rest of its work cannot wait; the result is the list of unacknowledged.c,
 * which takes its lock.  No lock is held while WAL is read or a peer is asked.
 *
 * Not here: who parked what before the start, which the peers know
 * (status.c).
 */
#include "postgres.h"

#include "access/rmgr.h"
#include "access/transam.h"
#include "access/xact.h"
#include "access/xlog.h"
#include "access/xlog_internal.h"
#include "access/xlogreader.h"
#include "access/xlogutils.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/pg_lsn.h"

#include "commit/commit.h"
#include "compat.h"
#include "server/server.h"
#include "wire/wire.h"

#define BIT_MS	100				/* how long one round may read */
#define PATIENCE_MS	2000		/* how long it may wait for the peers, once */

#define WAL_GONE_HINT	"Nothing needs to be done, unless a member stays away: see SELECT * FROM " \
						"repl_ml.health."

/* What is known of a peer. */
typedef struct Peer
{
	char	   *dsn;
	XLogRecPtr	confirmed;		/* it has everything before; invalid: not
								 * known */
	XLogRecPtr	restart;		/* of its slot: where decoding begins */
} Peer;

/*
 * The reading under way; NULL before and after.  Everything of it is in its
 * context, also what the reader allocates as it goes on.
 */
static MemoryContext recall_context = NULL;
static XLogReaderState *reader = NULL;
static XLogRecPtr acknowledged[REPL_ML_LEVELS]; /* at least so much was */
static bool lost[REPL_ML_LEVELS];

static XLogRecPtr look_at_peers(XLogRecPtr end);
static int	load_peers(Peer *peers, int *self, XLogRecPtr *with_dropped);
static void ask_peers(Peer *peers, int count, int self, XLogRecPtr end);
static void open_reader(XLogRecPtr from);
static bool read_bit(XLogRecPtr end);
static void note_record(void);
static void finish_recall(void);

/*
 * Called by the supervisor, outside transactions: goes on with the work, if
 * there is any; returns true if there is more.
 */
bool
repl_ml_recall(void)
{
	XLogRecPtr	end;
	MemoryContext context = CurrentMemoryContext;
	volatile bool more = false;

	if (!repl_ml_unacknowledged_recall_begin(&end))
		return false;
	PG_TRY();
	{
		if (reader == NULL)
		{
			XLogRecPtr	from = look_at_peers(end);

			MemoryContextSwitchTo(context);
			if (from < end)
				open_reader(from);
		}
		if (reader != NULL)
			more = read_bit(end);
	}
	PG_CATCH();
	{
		/*
		 * The WAL is gone: what is not known will be when the levels have
		 * acknowledged more than that.
		 */
		MemoryContextSwitchTo(context);
		EmitErrorReport();
		FlushErrorState();
		AbortOutOfAnyTransaction();
		MemoryContextSwitchTo(context);
		for (int level = REPL_ML_QUORUM; level < REPL_ML_LEVELS; level++)
			lost[level] = true;
		more = false;
	}
	PG_END_TRY();
	if (!more)
		finish_recall();
	return more;
}

/* Orders peers for qsort, the one that has most before the others. */
static int
compare_confirmed(const void *a, const void *b)
{
	XLogRecPtr	one = ((const Peer *) a)->confirmed;
	XLogRecPtr	two = ((const Peer *) b)->confirmed;

	return one < two ? 1 : one > two ? -1 : 0;
}

/*
 * Settles what each level has acknowledged at least, as enough peers say;
 * returns from where on WAL has to be read.
 */
static XLogRecPtr
look_at_peers(XLogRecPtr end)
{
	Peer		peers[REPL_ML_MAX_WORKERS];
	XLogRecPtr	from = end;
	XLogRecPtr	with_dropped;
	int			self;
	int			count = load_peers(peers, &self, &with_dropped);

	ask_peers(peers, count, self, end);
	qsort(peers, count, sizeof(Peer), compare_confirmed);
	for (int level = REPL_ML_QUORUM; level < REPL_ML_LEVELS; level++)
	{
		int			needed = level == REPL_ML_ALL ? count : (count + 1) / 2;
		const Peer *peer = &peers[Max(needed, 1) - 1];

		acknowledged[level] = needed == 0 ? end : peer->confirmed;
		if (level == REPL_ML_QUORUM && with_dropped <= end)
			acknowledged[level] = Max(acknowledged[level], with_dropped);
		if (acknowledged[level] >= end)
			continue;
		/* of a peer without a slot nothing is kept */
		lost[level] = XLogRecPtrIsInvalid(peer->restart);
		if (!lost[level])
			from = Min(from, peer->restart);
	}
	return from;
}

/*
 * Reads the ready peers and what their slots say, this node's id, and what a
 * quorum had while it had members that have left since; returns how many peers.
 */
static int
load_peers(Peer *peers, int *self, XLogRecPtr *with_dropped)
{
	MemoryContext context = CurrentMemoryContext;
	int			count;
	bool		none;

	repl_ml_begin();
	*self = repl_ml_identity_require()->node_id;
	SPI_execute("SELECT s.confirmed_flush_lsn, s.restart_lsn, m.dsn FROM repl_ml.member m"
				" JOIN repl_ml.local_node l ON l.node_id OPERATOR(pg_catalog.<>) m.node_id"
				" LEFT JOIN pg_catalog.pg_replication_slots s"
				" ON s.slot_name OPERATOR(pg_catalog.=)"
				" repl_ml.link_name(m.node_id)::pg_catalog.name"
				" WHERE m.state OPERATOR(pg_catalog.=) 'ready'", true, REPL_ML_MAX_WORKERS);
	count = SPI_processed;

	/* a peer without a slot counts as one that has nothing */
	for (int i = 0; i < count; i++)
	{
		Datum		value = SPI_getbinval(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, 1, &none);

		peers[i].confirmed = none ? InvalidXLogRecPtr : DatumGetLSN(value);
		value = SPI_getbinval(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, 2, &none);
		peers[i].restart = none ? InvalidXLogRecPtr : DatumGetLSN(value);
		peers[i].dsn = MemoryContextStrdup(context, repl_ml_spi_text(i, 2));
	}
	SPI_execute("SELECT coalesce(pg_catalog.max(acknowledged_lsn), '0/0')"
				" FROM repl_ml.dropped_node",
				true, 1);
	*with_dropped = DatumGetLSN(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1,
											  &none));
	repl_ml_commit();
	MemoryContextSwitchTo(context);
	return count;
}

/*
 * Asks the peers how far they are.  The slots were written out some time
 * before the server ended; the peers know better, those that can be asked.
 * One that says it has more than this server ever wrote is not believed.
 */
static void
ask_peers(Peer *peers, int count, int self, XLogRecPtr end)
{
	char	  **dsns = palloc0((count + 1) * sizeof(char *));
	char	  **answers = palloc0((count + 1) * sizeof(char *));

	for (int i = 0; i < count; i++)
		dsns[i] = peers[i].dsn;
	repl_ml_ask(count, dsns,
				psprintf("SET statement_timeout = '1s'; SELECT repl_ml.applied_lsn(%d)", self),
				TimestampTzPlusMilliseconds(GetCurrentTimestamp(), PATIENCE_MS), answers);
	for (int i = 0; i < count; i++)
	{
		XLogRecPtr	applied;
		bool		error = false;

		if (answers[i] == NULL)
			continue;
		applied = pg_lsn_in_internal(answers[i], &error);
		if (!error && applied <= end)
			peers[i].confirmed = Max(peers[i].confirmed, applied);
	}
}

/*
 * Returns a reader of this server's WAL, in the current memory context, before the first record
 * at or behind "from"; raises an error if that WAL is gone, with what nobody will know then.
 * Called by void.c, too.
 */
XLogReaderState *
repl_ml_recall_open(XLogRecPtr from, const char *lost_knowledge)
{
	XLogReaderRoutine *routine = XL_ROUTINE(.page_read = read_local_xlog_page_no_wait,
											.segment_open = wal_segment_open,
											.segment_close = wal_segment_close);
	XLogReaderState *opened = XLogReaderAllocate(wal_segment_size, NULL, routine,
												 palloc0(sizeof(ReadLocalXLogPageNoWaitPrivate)));

	if (opened == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OUT_OF_MEMORY),
				 errmsg("out of memory")));
	/* a slot's position need not be where a record begins */
	if (XLogFindNextRecord(opened, from) == InvalidXLogRecPtr)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("WAL at %X/%X cannot be read", LSN_FORMAT_ARGS(from)),
				 errdetail_internal("%s", lost_knowledge),
				 errhint(WAL_GONE_HINT)));
	return opened;
}

/*
 * Reads the next record; returns false at the end of what was flushed, and raises an error if
 * the WAL cannot be read.
 */
bool
repl_ml_recall_next(XLogReaderState *from)
{
	char	   *reason;

	if (XLogReadRecord(from, &reason) != NULL)
		return true;
	/* as far as was flushed: the end, if it is not where a record ends */
	if (!((ReadLocalXLogPageNoWaitPrivate *) from->private_data)->end_of_wal)
		ereport(ERROR,
				(errcode(ERRCODE_DATA_CORRUPTED),
				 errmsg("WAL at %X/%X cannot be read", LSN_FORMAT_ARGS(from->EndRecPtr)),
				 reason != NULL ? errdetail_internal("%s", reason) : 0,
				 errhint(WAL_GONE_HINT)));
	return false;
}

/* Opens the reader of this file, in its own context. */
static void
open_reader(XLogRecPtr from)
{
	MemoryContext old;

	recall_context = AllocSetContextCreate(TopMemoryContext, "repl_ml recall",
										   ALLOCSET_DEFAULT_SIZES);
	old = MemoryContextSwitchTo(recall_context);
	reader = repl_ml_recall_open(from, _("Which transactions were not acknowledged before the "
										 "server started is not known until the members have "
										 "acknowledged everything up to then."));
	MemoryContextSwitchTo(old);
}

/* Reads for a while; returns true if the end has not been reached. */
static bool
read_bit(XLogRecPtr end)
{
	TimestampTz start = GetCurrentTimestamp();
	MemoryContext old = MemoryContextSwitchTo(recall_context);
	bool		more = true;

	while (more && !TimestampDifferenceExceeds(start, GetCurrentTimestamp(), BIT_MS))
	{
		CHECK_FOR_INTERRUPTS();
		if (!repl_ml_recall_next(reader))
			more = false;
		else if (reader->ReadRecPtr >= end)
			more = false;
		else
			note_record();
	}
	MemoryContextSwitchTo(old);
	return more;
}

/*
 * Puts the transaction on the list if the record is its commit, in this
 * database, with a level above one, and too late to be known as acknowledged.
 * The two bits of the record are core's for standbys (mark_commit in commit.c
 * sets them); test 202 shows that they still come back as they were written.
 */
static void
note_record(void)
{
	uint8		info = XLogRecGetInfo(reader) & XLOG_XACT_OPMASK;
	xl_xact_parsed_commit parsed;
	ReplMlLevel level;

	if (XLogRecGetRmid(reader) != RM_XACT_ID ||
		(info != XLOG_XACT_COMMIT && info != XLOG_XACT_COMMIT_PREPARED))
		return;
	ParseCommitRecord(XLogRecGetInfo(reader), (xl_xact_commit *) XLogRecGetData(reader), &parsed);
	if (parsed.dbId != MyDatabaseId || !XactCompletionApplyFeedback(parsed.xinfo))
		return;
	level = XactCompletionForceSyncCommit(parsed.xinfo) ? REPL_ML_ALL : REPL_ML_QUORUM;
	if (reader->EndRecPtr > acknowledged[level])
		repl_ml_unacknowledged_recall_add(level, info == XLOG_XACT_COMMIT ? XLogRecGetXid(reader) :
										  parsed.twophase_xid,
										  reader->EndRecPtr);
}

/* Gives everything back; from here on the count is known. */
static void
finish_recall(void)
{
	if (reader != NULL)
		XLogReaderFree(reader);
	if (recall_context != NULL)
		MemoryContextDelete(recall_context);
	recall_context = NULL;
	reader = NULL;
	repl_ml_unacknowledged_recall_end(lost);
}
