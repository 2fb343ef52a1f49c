/*
 * bulk.c
 *		Applies a large transaction that has been put aside.
 *
 * It is read from the pieces that pieces.c has written, and applied as one
 * transaction, which also removes them: so nobody sees a part of it, and after an
 * error or a crash it is begun again.  Who meets its locks meanwhile puts the
 * change aside (locked.c), so it holds up nobody.  How it is applied after it has
 * failed, or met others' locks, is decided as for any transaction
 * (ReplMlApplyMode): in the end what fails of it is parked row by row, though it
 * has counted.
 *
 * Called by the process that applies beside (group/beside.c); and by apply
 * workers, between two connections, where the server has no room for that one.
 * Locks: the row that stands for the transaction, so that it is applied once; and
 * what joining rows takes.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "libpq/pqformat.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "replication/origin.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"

#include "apply/apply.h"
#include "commit/commit.h"
#include "compat.h"
#include "converge/converge.h"
#include "read/read.h"
#include "server/server.h"

/* Reads the messages of a transaction, piece by piece. */
typedef struct Reader
{
	int64		id;
	int			next;			/* piece to be read */
	StringInfoData buffer;		/* what has been read, from "at" on unused */
	int			at;
	TransactionId *aborted;		/* sorted */
	int			aborted_count;
} Reader;

/* May there be some of its peer's that this apply worker has to look for?  This file only. */
static bool owed = true;

static bool apply_and_remove(ReplMlApply *apply, const ReplMlBulk *bulk, MemoryContext context);

/*
 * Called by pieces.c when a large transaction has been put aside: somebody is to
 * look for it.
 */
void
repl_ml_bulk_call(void)
{
	ReplMlDatabase *entry = repl_ml_shmem_database(MyDatabaseId);

	owed = true;
	if (entry == NULL)
		return;
	LWLockAcquire(repl_ml_shared->lock, LW_EXCLUSIVE);
	entry->no_bulk = false;
	LWLockRelease(repl_ml_shared->lock);
	repl_ml_shmem_wake_supervisor(MyDatabaseId);
}

/*
 * Says whether some other process applies a large transaction of this database
 * now.  Looks without a lock, also in a signal handler: a hint.
 */
bool
repl_ml_bulk_runs(void)
{
	const ReplMlDatabase *entry = repl_ml_shmem_database(MyDatabaseId);

	return entry != NULL && entry->bulk_peer != 0 && entry->bulk_pid != MyProcPid;
}

/*
 * Finds the first large transaction put aside behind one of that id: whichever
 * node's, or of one node and of those that are members no more.  Returns false
 * if there is none.  Outside a transaction.
 */
bool
repl_ml_bulk_find(int node, int64 behind, ReplMlBulk *bulk)
{
	bool		found;

	repl_ml_begin();
	found = SPI_execute(psprintf("SELECT p.id, p.origin_node, p.origin_xid, p.origin_lsn"
								 " OPERATOR(pg_catalog.-) '0/0'::pg_catalog.pg_lsn,"
								 " coalesce((p.change OPERATOR(pg_catalog.->>) 'round')::bigint,"
								 " 0),"
								 " coalesce((p.change OPERATOR(pg_catalog.->>) 'end')::bigint, 0),"
								 " (pg_catalog.date_part('epoch', (p.change"
								 " OPERATOR(pg_catalog.->>) 'committed_at')::timestamptz)"
								 " OPERATOR(pg_catalog.*) 1000000)::bigint"
								 " FROM repl_ml.parked_change p"
								 " LEFT JOIN repl_ml.member m"
								 " ON m.node_id OPERATOR(pg_catalog.=) p.origin_node"
								 " WHERE p.put_aside AND p.action OPERATOR(pg_catalog.=)"
								 " '" REPL_ML_BULK "' AND p.id OPERATOR(pg_catalog.>) " INT64_FORMAT
								 " AND (%d OPERATOR(pg_catalog.=) ANY (ARRAY[0, p.origin_node])"
								 " OR coalesce(m.state, 'dropped') OPERATOR(pg_catalog.=)"
								 " 'dropped') ORDER BY p.id LIMIT 1", behind, node), true, 1) > 0 &&
		SPI_processed == 1;
	if (found)
	{
		bulk->id = strtoll(repl_ml_spi_text(0, 0), NULL, 10);
		bulk->node = atoi(repl_ml_spi_text(0, 1));
		bulk->xid = strtoul(repl_ml_spi_text(0, 2), NULL, 10);
		bulk->lsn = strtoull(repl_ml_spi_text(0, 3), NULL, 10);
		bulk->round = strtoll(repl_ml_spi_text(0, 4), NULL, 10);
		bulk->end = strtoull(repl_ml_spi_text(0, 5), NULL, 10);
		bulk->commit_time = time_t_to_timestamptz(0) + strtoll(repl_ml_spi_text(0, 6), NULL, 10);
	}
	repl_ml_commit();
	return found;
}

/*
 * Says whether this node awaits a large transaction of the peer before it goes
 * on with its stream, as that changes what is replicated.  Outside a transaction.
 */
bool
repl_ml_bulk_is_awaited(const ReplMlApply *apply)
{
	bool		awaited;

	repl_ml_begin();
	awaited = repl_ml_query_int(psprintf("SELECT 1 FROM repl_ml.parked_change p WHERE p.put_aside"
										 " AND p.action OPERATOR(pg_catalog.=) '" REPL_ML_BULK "'"
										 " AND p.origin_node OPERATOR(pg_catalog.=) %d"
										 " AND (p.change OPERATOR(pg_catalog.->>)"
										 " 'in_order')::boolean LIMIT 1",
										 apply->worker->peer)) != 0;
	repl_ml_commit();
	MemoryContextSwitchTo(apply->message_context);
	return awaited;
}

/*
 * Says whether the server has no room for the process that would apply large
 * transactions, and there may be some for this apply worker.
 */
bool
repl_ml_bulk_is_refused(void)
{
	const ReplMlDatabase *entry = repl_ml_shmem_database(MyDatabaseId);

	return owed && entry != NULL && entry->bulk_refused;
}

/*
 * Called by an apply worker between two connections: applies its peer's large
 * transactions itself, where the server has no room for the process that would.
 */
void
repl_ml_bulk_apply_here(ReplMlApply *apply)
{
	ErrorData	error = {
		.sqlerrcode = ERRCODE_CONFIGURATION_LIMIT_EXCEEDED,
		.message = "no background worker is free to apply large transactions: they hold up others",
		.hint = "Raise max_worker_processes; SELECT * FROM repl_ml.check_setup() says how far."
	};
	ReplMlBulk	bulk;
	bool		done = true;

	while (done && repl_ml_bulk_is_refused() && !repl_ml_apply_is_to_pause(apply))
	{
		owed = repl_ml_bulk_find(apply->worker->peer, 0, &bulk);
		if (!owed)
			break;
		repl_ml_apply_show_error(apply, &error);
		apply->late = true;
		done = repl_ml_bulk_apply(apply, &bulk);
		apply->late = false;
	}
	/* what is described there is not what the stream describes */
	repl_ml_relation_forget_all();
}

/*
 * Applies the transaction and forgets it; returns false if another process has or
 * is at it, and raises whatever it fails with.  Outside a transaction; apply->peer
 * is the node it comes from, and apply->late is set.
 */
bool
repl_ml_bulk_apply(ReplMlApply *apply, const ReplMlBulk *bulk)
{
	StringInfoData begin;
	MemoryContext context;
	volatile bool ours = false;
	bool		is_void = bulk->round != 0 &&
		repl_ml_fence_wait(apply, bulk->node, bulk->round, bulk->end);

	MemoryContextSwitchTo(apply->message_context);
	initStringInfo(&begin);
	pq_sendbyte(&begin, LOGICAL_REP_MSG_BEGIN);
	pq_sendint64(&begin, bulk->lsn);
	pq_sendint64(&begin, bulk->commit_time);
	pq_sendint32(&begin, bulk->xid);
	repl_ml_dispatch(apply, &begin);
	apply->transaction.is_void = is_void;
	context = AllocSetContextCreate(TopMemoryContext, "repl_ml large transaction",
									ALLOCSET_DEFAULT_SIZES);
	PG_TRY();
	{
		ours = apply_and_remove(apply, bulk, context);
	}
	PG_FINALLY();
	{
		MemoryContextDelete(context);
	}
	PG_END_TRY();
	return ours;
}

/* Reads the content of a piece into the buffer; returns false if there is none. */
static bool
read_piece(int64 id, int number, StringInfo buffer)
{
	static SPIPlanPtr plan = NULL;
	Oid			types[2] = {INT8OID, INT4OID};
	Datum		values[2] = {Int64GetDatum(id), Int32GetDatum(number)};
	bool		found;

	PushActiveSnapshot(GetTransactionSnapshot());
	SPI_connect();
	if (SPI_execute_plan(repl_ml_spi_plan(&plan, "SELECT content FROM repl_ml.bulk_piece"
										  " WHERE id OPERATOR(pg_catalog.=) $1"
										  " AND number OPERATOR(pg_catalog.=) $2", 2, types),
						 values, NULL, true, 1) < 0)
		elog(ERROR, "SPI failed");
	found = SPI_processed == 1;
	if (found)
	{
		bool		isnull;
		bytea	   *content = DatumGetByteaPP(SPI_getbinval(SPI_tuptable->vals[0],
															SPI_tuptable->tupdesc, 1, &isnull));

		appendBinaryStringInfo(buffer, VARDATA_ANY(content), VARSIZE_ANY_EXHDR(content));
	}
	SPI_finish();
	PopActiveSnapshot();
	return found;
}

/* Makes so many bytes ready in the reader's buffer; returns false at the end. */
static bool
make_ready(Reader *reader, int bytes)
{
	while (reader->buffer.len - reader->at < bytes)
	{
		StringInfo	buffer = &reader->buffer;

		memmove(buffer->data, buffer->data + reader->at, buffer->len - reader->at);
		buffer->len -= reader->at;
		reader->at = 0;
		if (!read_piece(reader->id, reader->next, buffer))
			return false;
		reader->next++;
	}
	return true;
}

/* Gets ready to read the transaction; the buffers are in the current context. */
static void
begin_reading(Reader *reader, int64 id)
{
	StringInfoData aborted;

	memset(reader, 0, sizeof(Reader));
	reader->id = id;
	initStringInfo(&reader->buffer);
	initStringInfo(&aborted);
	if (read_piece(id, REPL_ML_PIECE_OF_ABORTED, &aborted))
	{
		reader->aborted = (TransactionId *) aborted.data;
		reader->aborted_count = aborted.len / sizeof(TransactionId);
		repl_ml_pieces_sort_aborted(reader->aborted, reader->aborted_count);
	}
}

/*
 * Reads the next message that counts into "message"; returns false behind the
 * last one.
 */
static bool
read_message(Reader *reader, StringInfo message)
{
	ReplMlPieceHeader header;

	while (make_ready(reader, sizeof(header)))
	{
		memcpy(&header, reader->buffer.data + reader->at, sizeof(header));
		if (!make_ready(reader, sizeof(header) + header.length))
			elog(ERROR, "large transaction " INT64_FORMAT " is not whole", reader->id);
		reader->at += sizeof(header) + header.length;
		if (!repl_ml_pieces_is_kept(&header, reader->aborted, reader->aborted_count))
			continue;
		resetStringInfo(message);
		appendStringInfoChar(message, header.type);
		appendBinaryStringInfo(message, reader->buffer.data + reader->at - header.length,
							   header.length);
		return true;
	}
	return false;
}

/* Removes what is kept of the transaction, in the one that has applied it. */
static void
remove_kept(int64 id)
{
	Oid			types[1] = {INT8OID};
	Datum		values[1] = {Int64GetDatum(id)};

	repl_ml_spi_execute("DELETE FROM repl_ml.bulk_piece WHERE id OPERATOR(pg_catalog.=) $1", 1,
						types, values, NULL);
	repl_ml_spi_execute("DELETE FROM repl_ml.parked_change WHERE id OPERATOR(pg_catalog.=) $1", 1,
						types, values, NULL);
}

/* Adds what has been applied to repl_ml.stat_apply, if the peer still has a place there. */
static void
show_applied(int peer, const ReplMlTransaction *transaction)
{
	LWLockAcquire(repl_ml_shared->lock, LW_EXCLUSIVE);
	foreach_worker(worker, MyDatabaseId)
	{
		if (worker->peer != peer)
			continue;
		worker->changes += transaction->changes;
		worker->conflicts += transaction->conflicts;
		repl_ml_counts_add(&worker->counts, &transaction->counts);
		worker->parked += transaction->parked;
	}
	LWLockRelease(repl_ml_shared->lock);
}

/* Applies all messages; the buffers are in "context". */
static void
apply_messages(ReplMlApply *apply, int64 id, MemoryContext context)
{
	Reader		reader;
	StringInfoData message;

	MemoryContextSwitchTo(context);
	begin_reading(&reader, id);
	initStringInfo(&message);
	for (;;)
	{
		CHECK_FOR_INTERRUPTS();
		MemoryContextSwitchTo(context);
		if (!read_message(&reader, &message))
			break;
		message.cursor = 0;
		MemoryContextSwitchTo(apply->message_context);
		repl_ml_dispatch(apply, &message);
		MemoryContextReset(apply->message_context);
	}
	MemoryContextSwitchTo(apply->message_context);
}

/*
 * Raises an error, after which it is tried again, if the transaction counts now and did not
 * before, or the other way round.
 */
static void
require_verdict(const ReplMlBulk *bulk, bool is_void)
{
	if (bulk->round == 0)
		return;
	repl_ml_round_share();
	if (repl_ml_round_judge(bulk->node, bulk->round, bulk->end) !=
		(is_void ? REPL_ML_IS_VOID : REPL_ML_IS_VALID))
		ereport(ERROR,
				(errcode(ERRCODE_LOCK_NOT_AVAILABLE),
				 errmsg("a large transaction of strong tables is applied when it is known that it "
						"counts")));
}

/*
 * Applies the transaction, unless another process is at it, removes what is kept
 * of it, and commits; returns whether it did.
 */
static bool
apply_and_remove(ReplMlApply *apply, const ReplMlBulk *bulk, MemoryContext context)
{
	Oid			types[1] = {INT8OID};
	Datum		values[1] = {Int64GetDatum(bulk->id)};
	bool		ours;

	repl_ml_dispatch_begin(apply);
	ours = repl_ml_spi_execute("SELECT FROM repl_ml.parked_change"
							   " WHERE id OPERATOR(pg_catalog.=) $1 AND put_aside"
							   " FOR UPDATE SKIP LOCKED", 1, types, values, NULL) == 1;
	if (ours)
	{
		apply_messages(apply, bulk->id, context);
		/* an error from here on is the whole transaction's */
		apply->blame_transaction = true;
		repl_ml_targets_close();
		require_verdict(bulk, apply->transaction.is_void);
		remove_kept(bulk->id);
	}
	PopActiveSnapshot();
	/* the origin is behind it already */
	replorigin_session_origin_lsn = InvalidXLogRecPtr;
	replorigin_session_origin_timestamp = 0;
	CommitTransactionCommand();
	MemoryContextSwitchTo(apply->message_context);
	repl_ml_crash_survived(bulk->lsn + 1);
	if (ours)
		show_applied(bulk->node, &apply->transaction);
	if (apply->transaction.catalogs_changed)
		repl_ml_shmem_wake_supervisor(MyDatabaseId);
	repl_ml_dispatch_reset(apply);
	apply->retry.failures = 0;
	apply->retry.failed_lsn = InvalidXLogRecPtr;
	pgstat_report_stat(false);
	repl_ml_unique_announce();
	repl_ml_positions_advanced();
	return ours;
}
