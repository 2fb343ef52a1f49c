/*
 * recall.c
 *		After a server start: which transactions were committed before it, with a
 *		level above one, and may not have been acknowledged.
 *
 * Who had acknowledged what was in shared memory.  But the peers' slots say what
 * they had at least, and the peers, if they can be asked, what they have.  The
 * WAL since then has every commit, and with it a message with its level
 * (origin/commit.c).  It is read by the supervisor, a bit each round, because
 * the rest of its work cannot wait; the result is the list of unacknowledged.c.
 *
 * Reading begins where the slot's own decoding would, so that the message of
 * each transaction comes before its commit.
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
#include "replication/message.h"
#include "utils/builtins.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"
#include "utils/pg_lsn.h"

#include "compat.h"
#include "group/group.h"
#include "group/query.h"
#include "group/quorum.h"
#include "group/shmem.h"
#include "group/token.h"
#include "group/unacknowledged.h"
#include "wire/ask.h"

#define BIT_MS	100				/* how long one round may read */
#define PATIENCE_MS	2000		/* how long it may wait for the peers, once */

/* What is known of a peer. */
typedef struct Peer
{
	char	   *dsn;
	XLogRecPtr	confirmed;		/* it has everything before; invalid: not
								 * known */
	XLogRecPtr	restart;		/* of its slot: where decoding begins */
} Peer;

/* A transaction that has told its level, until its end. */
typedef struct Told
{
	TransactionId xid;			/* hash key */
	ReplMlLevel level;
	ReplMlLevel prepared_level; /* of COMMIT PREPARED */
} Told;

/*
 * The reading under way; NULL before and after.  Everything of it is in its
 * context, also what the reader allocates as it goes on.
 */
static MemoryContext recall_context = NULL;
static XLogReaderState *reader = NULL;
static HTAB *told = NULL;
static XLogRecPtr acknowledged[REPL_ML_LEVELS]; /* at least so much was */
static bool lost[REPL_ML_LEVELS];

static XLogRecPtr look_at_peers(XLogRecPtr end);
static int	load_peers(Peer *peers, int *self);
static void ask_peers(Peer *peers, int count, int self, XLogRecPtr end);
static void open_reader(XLogRecPtr from);
static bool read_bit(XLogRecPtr end);
static void note_record(void);
static void note_message(void);
static void note_commit(void);
static void finish(void);

/*
 * Goes on with the work, if there is any; true if there is more.  For the
 * supervisor, outside transactions.
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
		finish();
	return more;
}

static int
by_confirmed(const void *a, const void *b)
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
	int			self;
	int			count = load_peers(peers, &self);

	ask_peers(peers, count, self, end);
	qsort(peers, count, sizeof(Peer), by_confirmed);
	for (int level = REPL_ML_QUORUM; level < REPL_ML_LEVELS; level++)
	{
		int			needed = level == REPL_ML_ALL ? count : (count + 1) / 2;
		const Peer *peer = &peers[Max(needed, 1) - 1];

		acknowledged[level] = needed == 0 ? end : peer->confirmed;
		if (acknowledged[level] >= end)
			continue;
		/* of a peer without a slot nothing is kept */
		lost[level] = XLogRecPtrIsInvalid(peer->restart);
		if (!lost[level])
			from = Min(from, peer->restart);
	}
	return from;
}

/* The ready peers and what their slots say, and this node's id; returns how many. */
static int
load_peers(Peer *peers, int *self)
{
	MemoryContext context = CurrentMemoryContext;
	int			count;

	repl_ml_begin();
	*self = repl_ml_identity_require()->node_id;
	SPI_execute("SELECT s.confirmed_flush_lsn, s.restart_lsn, m.dsn FROM repl_ml.member m JOIN repl_ml.local_node l ON l.node_id OPERATOR(pg_catalog.<>) m.node_id"
				" LEFT JOIN pg_catalog.pg_replication_slots s ON s.slot_name OPERATOR(pg_catalog.=) repl_ml.link_name(m.node_id)::pg_catalog.name"
				" WHERE m.state OPERATOR(pg_catalog.=) 'ready'", true, REPL_ML_MAX_WORKERS);
	count = SPI_processed;
	for (int i = 0; i < count; i++)
	{
		bool		none;
		Datum		value = SPI_getbinval(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, 1, &none);

		peers[i].confirmed = none ? InvalidXLogRecPtr : DatumGetLSN(value);
		value = SPI_getbinval(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, 2, &none);
		peers[i].restart = none ? InvalidXLogRecPtr : DatumGetLSN(value);
		peers[i].dsn = MemoryContextStrdup(context, repl_ml_spi_text(i, 2));
	}
	repl_ml_commit();
	MemoryContextSwitchTo(context);
	return count;
}

/*
 * The slots were written out some time before the server ended; the peers know
 * better, those that can be asked.  One that says it has more than this server
 * ever wrote is not believed.
 */
static void
ask_peers(Peer *peers, int count, int self, XLogRecPtr end)
{
	char	  **dsns = palloc0((count + 1) * sizeof(char *));
	char	  **answers = palloc0((count + 1) * sizeof(char *));

	for (int i = 0; i < count; i++)
		dsns[i] = peers[i].dsn;
	repl_ml_ask(count, dsns, psprintf("SET statement_timeout = '1s'; SET repl_ml.read_consistency = 'local'; SELECT repl_ml.applied_lsn(%d)", self),
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

/* The reader stands before the first record at or behind "from"; an error if that WAL is gone. */
static void
open_reader(XLogRecPtr from)
{
	HASHCTL		ctl = {.keysize = sizeof(TransactionId),.entrysize = sizeof(Told)};
	MemoryContext old;

	recall_context = AllocSetContextCreate(TopMemoryContext, "repl_ml recall", ALLOCSET_DEFAULT_SIZES);
	old = MemoryContextSwitchTo(recall_context);
	ctl.hcxt = recall_context;
	told = hash_create("repl_ml levels told", 64, &ctl, HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	reader = XLogReaderAllocate(wal_segment_size, NULL,
								XL_ROUTINE(.page_read = read_local_xlog_page_no_wait,
										   .segment_open = wal_segment_open,
										   .segment_close = wal_segment_close),
								palloc0(sizeof(ReadLocalXLogPageNoWaitPrivate)));
	if (reader == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OUT_OF_MEMORY),
				 errmsg("out of memory")));
	/* a slot's position need not be where a record begins */
	if (XLogFindNextRecord(reader, from) == InvalidXLogRecPtr)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("WAL at %X/%X cannot be read", LSN_FORMAT_ARGS(from)),
				 errdetail("Which transactions were not acknowledged before the server started is not known until the members have acknowledged everything up to then.")));
	MemoryContextSwitchTo(old);
}

/* Reads for a while; true if the end has not been reached. */
static bool
read_bit(XLogRecPtr end)
{
	TimestampTz start = GetCurrentTimestamp();
	MemoryContext old = MemoryContextSwitchTo(recall_context);
	bool		more = true;

	while (more && !TimestampDifferenceExceeds(start, GetCurrentTimestamp(), BIT_MS))
	{
		char	   *reason;

		CHECK_FOR_INTERRUPTS();
		if (XLogReadRecord(reader, &reason) == NULL)
		{
			/* as far as was flushed: the end, if it is not where a record ends */
			if (!((ReadLocalXLogPageNoWaitPrivate *) reader->private_data)->end_of_wal)
				ereport(ERROR,
						(errcode(ERRCODE_DATA_CORRUPTED),
						 errmsg("WAL at %X/%X cannot be read", LSN_FORMAT_ARGS(reader->EndRecPtr)),
						 reason != NULL ? errdetail_internal("%s", reason) : 0));
			more = false;
		}
		else if (reader->ReadRecPtr >= end)
			more = false;
		else
			note_record();
	}
	MemoryContextSwitchTo(old);
	return more;
}

static void
note_record(void)
{
	if (XLogRecGetRmid(reader) == RM_LOGICALMSG_ID)
		note_message();
	else if (XLogRecGetRmid(reader) == RM_XACT_ID)
		note_commit();
}

/* A message: if it is ours, and this database's, it may tell a transaction's level. */
static void
note_message(void)
{
	const xl_logical_message *message = (const xl_logical_message *) XLogRecGetData(reader);
	TransactionId xid = XLogRecGetXid(reader);
	ReplMlRecord record;
	Told	   *entry;
	bool		found;
	bool		ours;
	char	   *text;

	if (message->dbId != MyDatabaseId || strcmp(message->message, REPL_ML_MESSAGE_PREFIX) != 0)
		return;
	text = pnstrdup(message->message + message->prefix_size, message->message_size);
	ours = repl_ml_record_parse(text, &record);
	pfree(text);
	if (!ours || record.level == REPL_ML_ONE || record.of_prepared == message->transactional)
		return;
	if (record.of_prepared)
		xid = XidFromFullTransactionId(record.xid);
	entry = hash_search(told, &xid, HASH_ENTER, &found);
	if (!found)
		entry->level = entry->prepared_level = REPL_ML_ONE;
	if (record.of_prepared)
		entry->prepared_level = record.level;
	else
		entry->level = record.level;
}

/*
 * The end of a transaction: if it has told its level and is committed too late
 * to be known as acknowledged, it is on the list.
 */
static void
note_commit(void)
{
	uint8		info = XLogRecGetInfo(reader) & XLOG_XACT_OPMASK;
	TransactionId xid = XLogRecGetXid(reader);
	ReplMlLevel level;
	Told	   *entry;

	if (info == XLOG_XACT_COMMIT_PREPARED)
	{
		xl_xact_parsed_commit parsed;

		ParseCommitRecord(XLogRecGetInfo(reader), (xl_xact_commit *) XLogRecGetData(reader), &parsed);
		xid = parsed.twophase_xid;
	}
	else if (info != XLOG_XACT_COMMIT)
		return;
	entry = hash_search(told, &xid, HASH_FIND, NULL);
	if (entry == NULL)
		return;
	level = info == XLOG_XACT_COMMIT_PREPARED ? entry->prepared_level : entry->level;
	if (level != REPL_ML_ONE && reader->EndRecPtr > acknowledged[level])
		repl_ml_unacknowledged_recall_add(level, xid, reader->EndRecPtr);
	hash_search(told, &xid, HASH_REMOVE, NULL);
}

/* Gives everything back; from here on the count is known. */
static void
finish(void)
{
	if (reader != NULL)
		XLogReaderFree(reader);
	if (recall_context != NULL)
		MemoryContextDelete(recall_context);
	recall_context = NULL;
	reader = NULL;
	told = NULL;
	repl_ml_unacknowledged_recall_end(lost);
}
