/*
 * pieces.c
 *		Large transactions of the peer, which it sends in pieces while they run.
 *
 * Pieces come between transactions that commit meanwhile.  What comes of a
 * transaction is kept, each message with the (sub)transaction it is of, until
 * the peer says what became of it.  A small one is applied in its place, as if
 * it had come as a whole.  A large one is written to repl_ml.bulk_piece as it
 * comes; when it commits, a row of repl_ml.parked_change puts it aside, durably
 * and whole, in the transaction that moves the origin: so it holds up nobody, it
 * counts as any transaction that is put aside (aside.c), and whatever asks up to
 * where the peer's WAL is applied here stops before it until it is.  bulk.c
 * applies it.
 *
 * One that changes what this node replicates, and how, is awaited before the
 * stream goes on (group/worker.c).  Of one that is not committed yet nothing is
 * left after an error or a crash: the peer sends all of it again.
 *
 * The apply worker's alone.  Before it on the way: group/worker.c; after it:
 * replay.c, or bulk.c.  No locks but those of the catalog.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "libpq/pqformat.h"
#include "miscadmin.h"
#include "port/pg_bswap.h"
#include "replication/logicalproto.h"
#include "replication/origin.h"
#include "utils/builtins.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"
#include "utils/pg_lsn.h"
#include "utils/timestamp.h"

#include "apply/apply.h"
#include "compat.h"
#include "server/server.h"
#include "wire/wire.h"

#define LARGE_BYTES		(1024 * 1024)	/* one that is larger is put aside */
#define ALL_BYTES		(16 * LARGE_BYTES)	/* of all of them that are kept in memory */
#define PIECE_BYTES		(256 * 1024)	/* of a row of repl_ml.bulk_piece */
#define MOST_NOTES		8
#define NOTE_BYTES		512

/* A transaction of which pieces have come. */
typedef struct Streamed
{
	TransactionId xid;			/* hash key */
	MemoryContext context;		/* of what follows; dropped with it */
	StringInfoData content;		/* what is not written yet, see ReplMlPieceHeader */
	uint64		size;			/* of all that has come */
	int64		id;				/* of its row and pieces; 0: none is written */
	int			count;			/* of pieces written */
	bool		in_order;		/* it changes what is replicated, and how */
	List	   *descriptions;	/* the last one of each table: StringInfo */
	List	   *notes;			/* messages that may be about the transaction: StringInfo */
	StringInfoData aborted;		/* subtransactions that were rolled back */
} Streamed;

/* By transaction, and the one of which a piece is coming; this file only. */
static HTAB *streamed = NULL;
static Streamed *current = NULL;
static Size in_memory = 0;		/* bytes of "content" */

static void begin_piece(ReplMlApply *apply, StringInfo message);
static void end_piece(ReplMlApply *apply);
static void keep_message(StringInfo message);
static void keep_description(Streamed *one, StringInfo message);
static void write_pieces(ReplMlApply *apply, Streamed *one, bool all);
static void commit_streamed(ReplMlApply *apply, StringInfo message);
static void apply_in_place(ReplMlApply *apply, Streamed *one, const LogicalRepCommitData *commit);
static void put_aside(ReplMlApply *apply, Streamed *one, const LogicalRepCommitData *commit);
static void abort_streamed(ReplMlApply *apply, StringInfo message);
static void forget(Streamed *one, bool pieces);

/* Raises an error: the peer does not keep to the protocol. */
static void
refuse(const char *what)
{
	ereport(ERROR,
			(errcode(ERRCODE_PROTOCOL_VIOLATION),
			 errmsg("the peer sent %s", what),
			 errhint(REPL_ML_SAME_VERSION_HINT)));
}

/*
 * Called by the apply worker before each stream, outside a transaction: what a
 * former one has sent of transactions that it did not commit comes again.
 */
void
repl_ml_pieces_forget(ReplMlApply *apply)
{
	Oid			types[1] = {INT4OID};
	Datum		values[1] = {Int32GetDatum(apply->worker->peer)};
	Streamed   *one;

	current = NULL;
	if (streamed != NULL)
	{
		HASH_SEQ_STATUS scan;

		hash_seq_init(&scan, streamed);
		while ((one = hash_seq_search(&scan)) != NULL)
			forget(one, false);
	}
	StartTransactionCommand();
	repl_ml_spi_execute("DELETE FROM repl_ml.bulk_piece b"
						" WHERE b.origin_node OPERATOR(pg_catalog.=) $1"
						" AND NOT EXISTS (SELECT FROM repl_ml.parked_change p"
						" WHERE p.id OPERATOR(pg_catalog.=) b.id)", 1, types, values, NULL);
	CommitTransactionCommand();
	MemoryContextSwitchTo(apply->message_context);
}

/*
 * Called by the apply worker with each message: handles those of transactions
 * that come in pieces; returns false if it is another one.
 */
bool
repl_ml_pieces_receive(ReplMlApply *apply, StringInfo message)
{
	switch (message->data[message->cursor])
	{
		case LOGICAL_REP_MSG_STREAM_START:
			apply->doing = "STREAM START";
			begin_piece(apply, message);
			break;
		case LOGICAL_REP_MSG_STREAM_STOP:
			apply->doing = "STREAM STOP";
			end_piece(apply);
			break;
		case LOGICAL_REP_MSG_STREAM_COMMIT:
			apply->doing = "STREAM COMMIT";
			commit_streamed(apply, message);
			break;
		case LOGICAL_REP_MSG_STREAM_ABORT:
			apply->doing = "STREAM ABORT";
			abort_streamed(apply, message);
			break;
		default:
			if (current == NULL)
				return false;
			apply->doing = "a piece of a transaction";
			keep_message(message);
			if (current->content.len >= LARGE_BYTES)
				write_pieces(apply, current, false);
	}
	apply->doing = NULL;
	return true;
}

/* Returns the transaction; NULL if nothing of it has come. */
static Streamed *
find_streamed(TransactionId xid)
{
	return streamed == NULL ? NULL : hash_search(streamed, &xid, HASH_FIND, NULL);
}

/* Returns a new entry for the transaction. */
static Streamed *
make_streamed(TransactionId xid)
{
	Streamed   *one;
	MemoryContext old;

	if (streamed == NULL)
	{
		HASHCTL		control = {.keysize = sizeof(TransactionId),.entrysize = sizeof(Streamed),
		.hcxt = TopMemoryContext};

		streamed = hash_create("repl_ml transactions in pieces", 16, &control,
							   HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	}
	one = hash_search(streamed, &xid, HASH_ENTER, NULL);
	memset((char *) one + sizeof(xid), 0, sizeof(Streamed) - sizeof(xid));
	one->context = AllocSetContextCreate(TopMemoryContext, "repl_ml transaction in pieces",
										 ALLOCSET_DEFAULT_SIZES);
	old = MemoryContextSwitchTo(one->context);
	initStringInfo(&one->content);
	initStringInfo(&one->aborted);
	MemoryContextSwitchTo(old);
	return one;
}

/* Begins a piece: the messages up to its end are the transaction's. */
static void
begin_piece(ReplMlApply *apply, StringInfo message)
{
	bool		is_first;
	TransactionId xid;

	if (current != NULL || apply->transaction.open)
		refuse("the message STREAM START inside a transaction");
	message->cursor++;
	xid = logicalrep_read_stream_start(message, &is_first);
	current = find_streamed(xid);
	if (is_first != (current == NULL))
		refuse("a piece of a transaction in the wrong order");
	if (is_first)
		current = make_streamed(xid);
}

/* Ends a piece. */
static void
end_piece(ReplMlApply *apply)
{
	Streamed   *one = current;

	if (one == NULL)
		refuse("the message STREAM STOP outside a transaction");
	current = NULL;
	if (one->id != 0 || in_memory > ALL_BYTES)
		write_pieces(apply, one, false);
}

/* Keeps a message of the piece that is coming, without what it is of. */
static void
keep_message(StringInfo message)
{
	char		type = pq_getmsgbyte(message);
	ReplMlPieceHeader header;
	MemoryContext old;

	/* where the peer had the transaction from is all the same to us, see dispatch.c */
	if (type == LOGICAL_REP_MSG_ORIGIN)
		return;
	if (type != LOGICAL_REP_MSG_INSERT && type != LOGICAL_REP_MSG_UPDATE &&
		type != LOGICAL_REP_MSG_RELATION && type != LOGICAL_REP_MSG_TYPE &&
		type != LOGICAL_REP_MSG_MESSAGE)
		refuse("a message in a piece of a transaction that does not belong there");
	header.xid = pq_getmsgint(message, sizeof(TransactionId));
	header.type = type;
	header.length = message->len - message->cursor;
	if (type == LOGICAL_REP_MSG_RELATION ||
		(type == LOGICAL_REP_MSG_MESSAGE && header.length <= NOTE_BYTES))
		keep_description(current, message);
	old = MemoryContextSwitchTo(current->context);
	appendBinaryStringInfo(&current->content, (char *) &header, sizeof(header));
	appendBinaryStringInfo(&current->content, message->data + message->cursor, header.length);
	MemoryContextSwitchTo(old);
	in_memory += sizeof(header) + header.length;
	current->size += sizeof(header) + header.length;
}

/*
 * Keeps a message at hand that matters also when the transaction is put aside:
 * the peer describes a table once for all transactions behind this one, too, and
 * says of the transaction that somebody may ask for it.
 */
static void
keep_description(Streamed *one, StringInfo message)
{
	MemoryContext old = MemoryContextSwitchTo(one->context);
	StringInfo	copy = makeStringInfo();
	ListCell   *lc;

	/* as it is outside of a piece: the type, and what follows the transaction */
	appendStringInfoChar(copy, message->data[message->cursor - 1 - (int) sizeof(TransactionId)]);
	appendBinaryStringInfo(copy, message->data + message->cursor, message->len - message->cursor);
	if (copy->data[0] == LOGICAL_REP_MSG_MESSAGE)
	{
		one->notes = lappend(one->notes, copy);
		if (list_length(one->notes) > MOST_NOTES)
			one->notes = list_delete_first(one->notes);
	}
	else
	{
		StringInfoData read = *copy;
		LogicalRepRelation *remote;

		read.cursor = 1;
		remote = logicalrep_read_rel(&read);
		one->in_order |= strcmp(remote->nspname, REPL_ML_SCHEMA) == 0 &&
			strcmp(remote->relname, "tombstone") != 0;
		/* by the table's id, which comes first */
		foreach(lc, one->descriptions)
		{
			StringInfo	former = lfirst(lc);

			if (memcmp(former->data + 1, copy->data + 1, sizeof(LogicalRepRelId)) == 0)
				one->descriptions = foreach_delete_current(one->descriptions, lc);
		}
		one->descriptions = lappend(one->descriptions, copy);
	}
	MemoryContextSwitchTo(old);
}

/* Writes one piece, in the transaction of write_pieces. */
static void
write_piece(ReplMlApply *apply, int64 id, int number, const char *data, int length)
{
	static SPIPlanPtr insert = NULL;
	Oid			types[4] = {INT8OID, INT4OID, INT4OID, BYTEAOID};
	Datum		values[4] = {Int64GetDatum(id), Int32GetDatum(number),
		Int32GetDatum(apply->peer->node_id),
	PointerGetDatum(cstring_to_text_with_len(data, length))};

	if (SPI_execute_plan(repl_ml_spi_plan(&insert, "INSERT INTO repl_ml.bulk_piece"
										  " (id, number, origin_node, content)"
										  " VALUES ($1, $2, $3, $4)", 4, types),
						 values, NULL, false, 0) < 0)
		elog(ERROR, "SPI failed");
	pfree(DatumGetPointer(values[3]));
}

/*
 * Writes what has come of the transaction, but for less than a piece unless all
 * is wanted, in a transaction of our own that nobody sees a row of.
 */
static void
write_pieces(ReplMlApply *apply, Streamed *one, bool all)
{
	int			written = 0;

	/* what has been applied before is committed first, whatever becomes of it */
	repl_ml_replay_finish(apply, false);
	repl_ml_begin();
	if (one->id == 0)
		one->id = repl_ml_query_int("SELECT pg_catalog.nextval("
									"pg_catalog.pg_get_serial_sequence("
									"'repl_ml.parked_change', 'id'))");
	while (one->content.len - written >= PIECE_BYTES || (all && one->content.len > written))
	{
		int			length = Min(one->content.len - written, PIECE_BYTES);

		CHECK_FOR_INTERRUPTS();
		write_piece(apply, one->id, one->count++, one->content.data + written, length);
		written += length;
	}
	if (all && one->aborted.len > 0)
		write_piece(apply, one->id, REPL_ML_PIECE_OF_ABORTED, one->aborted.data, one->aborted.len);
	replorigin_session_origin_lsn = InvalidXLogRecPtr;
	replorigin_session_origin_timestamp = 0;
	repl_ml_commit();
	MemoryContextSwitchTo(apply->message_context);

	/* a buffer that one long row has made large is given back */
	in_memory -= written;
	one->content.len -= written;
	memmove(one->content.data, one->content.data + written, one->content.len);
	if (one->content.maxlen > 4 * LARGE_BYTES)
	{
		one->content.maxlen = one->content.len + PIECE_BYTES;
		one->content.data = repalloc(one->content.data, one->content.maxlen);
	}
}

/* Ends a transaction that has committed at the peer. */
static void
commit_streamed(ReplMlApply *apply, StringInfo message)
{
	LogicalRepCommitData commit;
	TransactionId xid;
	Streamed   *one;

	message->cursor++;
	xid = logicalrep_read_stream_commit(message, &commit);
	one = find_streamed(xid);
	if (one == NULL || current != NULL || apply->transaction.open)
		refuse("the message STREAM COMMIT in the wrong place");
	if (commit.end_lsn != apply->message_lsn)
		refuse("a STREAM COMMIT that does not end where its message does");
	if (one->id == 0)
		apply_in_place(apply, one, &commit);
	else
		put_aside(apply, one, &commit);
	/* to whoever has put it aside they belong from now on */
	forget(one, false);
}

/* Writes the message BEGIN, or COMMIT, of a transaction that came in pieces. */
static void
write_bound(StringInfo bound, char type, TransactionId xid, const LogicalRepCommitData *commit)
{
	resetStringInfo(bound);
	pq_sendbyte(bound, type);
	if (type == LOGICAL_REP_MSG_COMMIT)
		pq_sendbyte(bound, 0);
	pq_sendint64(bound, commit->commit_lsn);
	if (type == LOGICAL_REP_MSG_COMMIT)
		pq_sendint64(bound, commit->end_lsn);
	pq_sendint64(bound, commit->committime);
	if (type == LOGICAL_REP_MSG_BEGIN)
		pq_sendint32(bound, xid);
}

/* Orders transaction ids, for qsort and bsearch. */
static int
compare_xids(const void *a, const void *b)
{
	TransactionId x = *(const TransactionId *) a;
	TransactionId y = *(const TransactionId *) b;

	return (x > y) - (x < y);
}

/* Sorts the subtransactions that were rolled back, for repl_ml_pieces_is_kept. */
void
repl_ml_pieces_sort_aborted(TransactionId *aborted, int count)
{
	qsort(aborted, count, sizeof(TransactionId), compare_xids);
}

/*
 * Says whether a message in a piece is to be applied: not if its subtransaction
 * was rolled back; but descriptions of tables stand for what follows, too.
 */
bool
repl_ml_pieces_is_kept(const ReplMlPieceHeader *header, const TransactionId *aborted, int count)
{
	return header->type == LOGICAL_REP_MSG_RELATION || count == 0 ||
		bsearch(&header->xid, aborted, count, sizeof(TransactionId), compare_xids) == NULL;
}

/* Hands a message to replay.c, as if it had come alone. */
static void
replay(ReplMlApply *apply, StringInfo message, XLogRecPtr lsn)
{
	CHECK_FOR_INTERRUPTS();
	message->cursor = 0;
	apply->message_lsn = lsn;
	repl_ml_replay_dispatch(apply, message);
	MemoryContextReset(apply->message_context);
}

/* Applies a transaction that is in memory as one that has come as a whole. */
static void
apply_in_place(ReplMlApply *apply, Streamed *one, const LogicalRepCommitData *commit)
{
	TransactionId *aborted = (TransactionId *) one->aborted.data;
	int			count = one->aborted.len / sizeof(TransactionId);
	StringInfoData message;
	MemoryContext old = MemoryContextSwitchTo(one->context);

	initStringInfo(&message);
	MemoryContextSwitchTo(old);
	repl_ml_pieces_sort_aborted(aborted, count);
	write_bound(&message, LOGICAL_REP_MSG_BEGIN, one->xid, commit);
	replay(apply, &message, commit->commit_lsn);
	apply->transaction.urgency = REPL_ML_NOW;
	for (int at = 0; at < one->content.len;)
	{
		ReplMlPieceHeader header;

		memcpy(&header, one->content.data + at, sizeof(header));
		at += sizeof(header);
		if (repl_ml_pieces_is_kept(&header, aborted, count))
		{
			resetStringInfo(&message);
			appendStringInfoChar(&message, header.type);
			appendBinaryStringInfo(&message, one->content.data + at, header.length);
			replay(apply, &message, commit->commit_lsn);
		}
		at += header.length;
	}
	write_bound(&message, LOGICAL_REP_MSG_COMMIT, one->xid, commit);
	replay(apply, &message, commit->end_lsn);
}

/* Writes the row that puts the transaction aside, in the one that is open. */
static void
write_header(ReplMlApply *apply, Streamed *one, const LogicalRepCommitData *commit)
{
	Oid			types[9] = {INT8OID, INT4OID, XIDOID, PG_LSNOID, INT8OID, TIMESTAMPTZOID, BOOLOID,
	INT8OID, INT8OID};
	Datum		values[9] = {Int64GetDatum(one->id), Int32GetDatum(apply->peer->node_id),
		TransactionIdGetDatum(one->xid), LSNGetDatum(commit->commit_lsn),
		Int64GetDatum((int64) one->size), TimestampTzGetDatum(commit->committime),
	BoolGetDatum(one->in_order), Int64GetDatum(apply->transaction.round),
	Int64GetDatum((int64) commit->end_lsn)};

	repl_ml_spi_execute("INSERT INTO repl_ml.parked_change (id, origin_node, origin_xid,"
						" origin_lsn, schema_name, table_name, action, change, sqlstate, message,"
						" put_aside) OVERRIDING SYSTEM VALUE"
						" VALUES ($1, $2, $3, $4, '', '', '" REPL_ML_BULK "',"
						" pg_catalog.jsonb_build_object('bytes', $5, 'committed_at', $6,"
						" 'in_order', $7, 'round', $8, 'end', $9), '00000',"
						" 'a large transaction is applied beside the others', true)",
						9, types, values, NULL);
}

/*
 * Puts the transaction aside: it is whole, and counts.  What it says of itself
 * is noted at once.
 */
static void
put_aside(ReplMlApply *apply, Streamed *one, const LogicalRepCommitData *commit)
{
	StringInfoData message;
	ListCell   *lc;
	MemoryContext old;

	write_pieces(apply, one, true);
	old = MemoryContextSwitchTo(one->context);
	initStringInfo(&message);
	MemoryContextSwitchTo(old);
	write_bound(&message, LOGICAL_REP_MSG_BEGIN, one->xid, commit);
	apply->message_lsn = commit->commit_lsn;
	repl_ml_dispatch(apply, &message);
	apply->transaction.mode = REPL_ML_APPLY_NORMAL;
	foreach(lc, list_concat_copy(one->descriptions, one->notes))
	{
		repl_ml_dispatch(apply, lfirst(lc));
		MemoryContextSwitchTo(apply->message_context);
	}
	repl_ml_dispatch_begin(apply);
	write_header(apply, one, commit);
	apply->batch.matters = true;
	apply->transaction.urgency = REPL_ML_NOW;
	write_bound(&message, LOGICAL_REP_MSG_COMMIT, one->xid, commit);
	apply->message_lsn = commit->end_lsn;
	repl_ml_dispatch(apply, &message);
	repl_ml_dispatch_finish(apply, false);

	apply->awaits_bulk |= one->in_order;
	repl_ml_bulk_call();
}

/* Forgets a transaction, or a part of it, that was rolled back at the peer. */
static void
abort_streamed(ReplMlApply *apply, StringInfo message)
{
	TransactionId xid;
	TransactionId subxid;
	Streamed   *one;

	message->cursor++;
	read_stream_abort_compat(message, &xid, &subxid);
	one = find_streamed(xid);
	if (one == NULL || current != NULL || apply->transaction.open)
		refuse("the message STREAM ABORT in the wrong place");
	if (xid == subxid)
	{
		/* it is removed in a transaction of our own */
		if (one->id != 0)
			repl_ml_replay_finish(apply, false);
		forget(one, one->id != 0);
	}
	else
	{
		MemoryContext old = MemoryContextSwitchTo(one->context);

		appendBinaryStringInfo(&one->aborted, (char *) &subxid, sizeof(subxid));
		MemoryContextSwitchTo(old);
	}
}

/* Forgets a transaction, with its "pieces" if they are nobody else's. */
static void
forget(Streamed *one, bool pieces)
{
	TransactionId xid = one->xid;

	if (pieces)
	{
		Oid			types[1] = {INT8OID};
		Datum		values[1] = {Int64GetDatum(one->id)};
		MemoryContext context = CurrentMemoryContext;

		StartTransactionCommand();
		repl_ml_spi_execute("DELETE FROM repl_ml.bulk_piece WHERE id OPERATOR(pg_catalog.=) $1", 1,
							types, values, NULL);
		replorigin_session_origin_lsn = InvalidXLogRecPtr;
		CommitTransactionCommand();
		MemoryContextSwitchTo(context);
	}
	in_memory -= one->content.len;
	MemoryContextDelete(one->context);
	(void) hash_search(streamed, &xid, HASH_REMOVE, NULL);
}
