/*
 * output.c
 *		The output plugin: core's pgoutput with a filter of our own.
 *
 * Publications, row format, spilling and streaming are pgoutput's.  What we
 * add: changes that our own apply workers made are not sent on, while changes
 * of any other origin (a core subscription into an enrolled table, say) are;
 * the peer's replies are listened to (reply.c); and rows travel in binary form
 * where every node reads that alike (wire/binary.c).  The messages of a small
 * transaction leave together, not each in a packet that wakes the peer, and tell
 * it how urgently commits wait for it (commit/quorum.c).
 *
 * A change that cannot be sent (a row too long for a message, a character that
 * the peer's encoding lacks, a type whose output function fails) ends the
 * walsender once.  The next one sends each change in a subtransaction and, in
 * place of the one that fails, says which row it was and why (apply/unsent.c).
 *
 * Runs in the walsender.  Before it: stamp.c; after it: wire/stream.c on the
 * peer.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/partition.h"
#include "catalog/pg_type.h"
#include "fmgr.h"
/* what differs with these is not used, and spares the headers of Kerberos and OpenSSL */
#undef ENABLE_GSS
#undef USE_OPENSSL
#undef USE_SSL
#include "libpq/libpq.h"
#include "mb/pg_wchar.h"
#include "replication/logical.h"
#include "replication/logicalproto.h"
#include "replication/origin.h"
#include "replication/output_plugin.h"
#include "replication/pgoutput.h"
#include "replication/walsender.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/resowner.h"

#include "commit/commit.h"
#include "compat.h"
#include "row/row.h"
#include "server/server.h"
#include "wire/wire.h"
#include "write/write.h"

#define HELD_BYTES	8192		/* so much is sent at once, also within a transaction */
#define LARGE_CHANGE	(1024 * 1024)	/* from here on a change may take a peer longer than a heartbeat */
#define CAREFUL_CHANGES	10000	/* so many without another failure, and subtransactions are spared again */

extern PGDLLEXPORT void _PG_output_plugin_init(OutputPluginCallbacks *cb);

static LogicalDecodeStartupCB core_startup;
static LogicalDecodeChangeCB core_change;
static LogicalDecodeCommitCB core_commit;
static LogicalDecodeMessageCB core_message;
static LogicalOutputPluginWriterWrite core_write;
static Size held = 0;			/* bytes that hold_message has not sent */
static bool binary_wanted;		/* by the peer */
static bool changes_sent = false;	/* of the transaction that is sent */
static int	careful = 0;		/* so many changes are sent in subtransactions */

static void start_up(LogicalDecodingContext *ctx, OutputPluginOptions *options, bool is_init);
static void send_change(LogicalDecodingContext *ctx, ReorderBufferTXN *txn, Relation relation, ReorderBufferChange *change);
static void send_carefully(LogicalDecodingContext *ctx, ReorderBufferTXN *txn, Relation relation, ReorderBufferChange *change);
static void send_apology(LogicalDecodingContext *ctx, Relation relation, ReorderBufferChange *change, const ErrorData *error);
static char *key_of(Relation relation, HeapTuple tuple);
static void append_line(StringInfo message, const char *line);
static bool is_of_the_row(int sqlstate);
static void send_commit(LogicalDecodingContext *ctx, ReorderBufferTXN *txn, XLogRecPtr commit_lsn);
static void send_message(LogicalDecodingContext *ctx, ReorderBufferTXN *txn, XLogRecPtr lsn, bool transactional,
						 const char *prefix, Size size, const char *message);
static void hold_message(LogicalDecodingContext *ctx, XLogRecPtr lsn, TransactionId xid, bool last_write);
static bool filter_by_origin(LogicalDecodingContext *ctx, RepOriginId origin);

/*
 * The plugin's entry point: pgoutput's callbacks, ours around them.  A server
 * that loads the library only for the slot knows neither its own identity nor
 * who waits, so the peer is told what is missing instead.
 */
void
_PG_output_plugin_init(OutputPluginCallbacks *cb)
{
	LogicalOutputPluginInit core_init;

	repl_ml_shmem_require();
	core_init = (LogicalOutputPluginInit)
		load_external_function("pgoutput", "_PG_output_plugin_init", true, NULL);
	core_init(cb);
	cb->filter_by_origin_cb = filter_by_origin;
	core_startup = cb->startup_cb;
	cb->startup_cb = start_up;
	core_change = cb->change_cb;
	cb->change_cb = send_change;
	core_commit = cb->commit_cb;
	cb->commit_cb = send_commit;
	core_message = cb->message_cb;
	cb->message_cb = send_message;
}

static void
start_up(LogicalDecodingContext *ctx, OutputPluginOptions *options, bool is_init)
{
	core_startup(ctx, options, is_init);
	binary_wanted = !is_init && ((PGOutputData *) ctx->output_plugin_private)->binary;
	if (!is_init)
		repl_ml_reply_watch();
	careful = repl_ml_reply_peer() != 0 && repl_ml_members_is_careful(repl_ml_reply_peer()) ? CAREFUL_CHANGES : 0;
	/* not the SQL functions that read a slot */
	if (am_walsender)
	{
		core_write = ctx->write;
		ctx->write = hold_message;
		held = 0;
	}
}

/*
 * Leaves a message in the output buffer.  The walsender's loop sends what is
 * there after each record it has decoded, so after each commit; the time in
 * the message's head, which core would fill in, is nobody's concern.
 */
static void
hold_message(LogicalDecodingContext *ctx, XLogRecPtr lsn, TransactionId xid, bool last_write)
{
	if (ctx->out->len > LARGE_CHANGE && repl_ml_reply_peer() != 0)
		repl_ml_members_set_busy(repl_ml_reply_peer(), lsn);
	held += ctx->out->len;
	if (held > HELD_BYTES)
	{
		held = 0;
		core_write(ctx, lsn, xid, last_write);
	}
	else
	{
		pq_putmessage_noblock('d', ctx->out->data, ctx->out->len);
		repl_ml_reply_written(ctx->out->len);
	}
}

/* In binary form only what every node reads alike. */
static void
send_change(LogicalDecodingContext *ctx, ReorderBufferTXN *txn, Relation relation, ReorderBufferChange *change)
{
	((PGOutputData *) ctx->output_plugin_private)->binary = binary_wanted && repl_ml_binary_is_table_portable(relation);
	if (careful > 0)
		send_carefully(ctx, txn, relation, change);
	else
	{
		PG_TRY();
		{
			core_change(ctx, txn, relation, change);
		}
		PG_CATCH();
		{
			/* as it is, nothing more can be sent by this process */
			if (repl_ml_reply_peer() != 0 && is_of_the_row(geterrcode()))
				repl_ml_members_set_careful(repl_ml_reply_peer(), true);
			PG_RE_THROW();
		}
		PG_END_TRY();
	}
	changes_sent = true;
}

/* Is it an error that comes again with the row, and not with the server's fate? */
static bool
is_of_the_row(int sqlstate)
{
	int			category = ERRCODE_TO_CATEGORY(sqlstate);

	return category != ERRCODE_TO_CATEGORY(ERRCODE_OPERATOR_INTERVENTION) &&
		category != ERRCODE_TO_CATEGORY(ERRCODE_SYSTEM_ERROR) &&
		category != ERRCODE_TO_CATEGORY(ERRCODE_CONNECTION_EXCEPTION) &&
		sqlstate != ERRCODE_DISK_FULL;
}

/* Sends the change, or says that it cannot be sent. */
static void
send_carefully(LogicalDecodingContext *ctx, ReorderBufferTXN *txn, Relation relation, ReorderBufferChange *change)
{
	MemoryContext context = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	ErrorData  *volatile error = NULL;

	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(context);
	PG_TRY();
	{
		core_change(ctx, txn, relation, change);
		/* nothing was written; and pgoutput leaves a relation open, which only an abort takes without a warning */
		RollbackAndReleaseCurrentSubTransaction();
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(context);
		error = CopyErrorData();
		FlushErrorState();
		RollbackAndReleaseCurrentSubTransaction();
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
	CurrentResourceOwner = owner;
	if (error == NULL)
	{
		if (--careful == 0)
			repl_ml_members_set_careful(repl_ml_reply_peer(), false);
		return;
	}
	if (!is_of_the_row(error->sqlerrcode))
		ReThrowError(error);
	careful = CAREFUL_CHANGES;
	send_apology(ctx, relation, change, error);
	FreeErrorData(error);
}

/* In place of a change: of which table, which key, and why; for apply/unsent.c. */
static void
send_apology(LogicalDecodingContext *ctx, Relation relation, ReorderBufferChange *change, const ErrorData *error)
{
	Oid			root = relation->rd_rel->relispartition ? llast_oid(get_partition_ancestors(RelationGetRelid(relation))) :
		RelationGetRelid(relation);
	StringInfoData message;
	MemoryContext old;

	/* it may be a gigabyte long */
	old = MemoryContextSwitchTo(GetMemoryChunkContext(ctx->out));
	pfree(ctx->out->data);
	initStringInfo(ctx->out);
	MemoryContextSwitchTo(old);
	initStringInfo(&message);
	append_line(&message, REPL_ML_UNSENT);
	append_line(&message, get_namespace_name(get_rel_namespace(root)));
	append_line(&message, get_rel_name(root));
	append_line(&message, key_of(relation, change_tuple_compat(change)));
	append_line(&message, error->message);
	ereport(LOG,
			(errmsg("a row of table \"%s\" cannot be sent and is left out: %s", get_rel_name(root), error->message),
			 errdetail("Its key is %s.", key_of(relation, change_tuple_compat(change)))));
	OutputPluginPrepareWrite(ctx, false);
	logicalrep_write_message(ctx->out, InvalidTransactionId, change->lsn, true,
							 REPL_ML_MESSAGE_PREFIX, message.len, message.data);
	OutputPluginWrite(ctx, false);
	pfree(message.data);
}

/* The key as an array's text, where that can be had. */
static char *
key_of(Relation relation, HeapTuple tuple)
{
	MemoryContext context = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	char	   *volatile text = "{}";

	if (tuple == NULL)
		return text;
	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(context);
	PG_TRY();
	{
		ReplMlTable *table = repl_ml_table_get(relation);
		Datum		key[INDEX_MAX_KEYS];
		Oid			function;
		bool		is_varlena;

		repl_ml_key_from_tuple(table, tuple, RelationGetDescr(relation), key);
		getTypeOutputInfo(TEXTARRAYOID, &function, &is_varlena);
		text = OidOutputFunctionCall(function, repl_ml_key_to_array(table, key));
		ReleaseCurrentSubTransaction();
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(context);
		FlushErrorState();
		RollbackAndReleaseCurrentSubTransaction();
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
	CurrentResourceOwner = owner;
	return text;
}

/* One line of a message; what may mean something else in the peer's encoding is left out. */
static void
append_line(StringInfo message, const char *line)
{
	bool		convert = pg_get_client_encoding() != GetDatabaseEncoding();

	for (const char *c = line; *c != '\0'; c++)
		appendStringInfoChar(message, *c == '\n' ? ' ' : convert && IS_HIGHBIT_SET(*c) ? '?' : *c);
	appendStringInfoChar(message, '\n');
}

/*
 * If commits wait for peers, this one or others, the peer is told how urgently:
 * by a message in the transaction, as if it had been in the WAL.
 */
static void
send_commit(LogicalDecodingContext *ctx, ReorderBufferTXN *txn, XLogRecPtr commit_lsn)
{
	ReplMlUrgency urgency = changes_sent ? repl_ml_quorum_urgency(repl_ml_reply_peer()) : REPL_ML_WHENEVER;
	const char *word = repl_ml_urgency_name(urgency);

	if (changes_sent)
		repl_ml_quorum_sent(txn->xid, commit_lsn, txn->end_lsn);
	if (urgency != REPL_ML_WHENEVER)
	{
		OutputPluginPrepareWrite(ctx, false);
		logicalrep_write_message(ctx->out, InvalidTransactionId, commit_lsn, true,
								 REPL_ML_MESSAGE_PREFIX, strlen(word), word);
		OutputPluginWrite(ctx, false);
	}
	changes_sent = false;
	core_commit(ctx, txn, commit_lsn);
}

/* Of the messages in the WAL only our own are for peers. */
static void
send_message(LogicalDecodingContext *ctx, ReorderBufferTXN *txn, XLogRecPtr lsn, bool transactional,
			 const char *prefix, Size size, const char *message)
{
	/* what this process says of itself is not in the WAL */
	if (strcmp(prefix, REPL_ML_MESSAGE_PREFIX) == 0 &&
		(size < strlen(REPL_ML_UNSENT) || strncmp(message, REPL_ML_UNSENT, strlen(REPL_ML_UNSENT)) != 0))
		core_message(ctx, txn, lsn, transactional, prefix, size, message);
}

/*
 * True: the change is not for peers, because it came from one of them.  What
 * any other origin brought was written here, as far as they are concerned.
 */
static bool
filter_by_origin(LogicalDecodingContext *ctx, RepOriginId origin)
{
	return repl_ml_origin_is_ours(origin);
}
