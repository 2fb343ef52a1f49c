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
 * it how urgently commits wait for it (group/quorum.c).
 *
 * Runs in the walsender.  Before it: stamp.c; after it: wire/stream.c on the
 * peer.
 */
#include "postgres.h"

#include "fmgr.h"
/* what differs with these is not used, and spares the headers of Kerberos and OpenSSL */
#undef ENABLE_GSS
#undef USE_OPENSSL
#undef USE_SSL
#include "libpq/libpq.h"
#include "replication/logical.h"
#include "replication/logicalproto.h"
#include "replication/origin.h"
#include "replication/output_plugin.h"
#include "replication/pgoutput.h"
#include "replication/walsender.h"

#include "compat.h"
#include "group/group.h"
#include "origin/origin.h"
#include "wire/binary.h"

#define HELD_BYTES	8192		/* so much is sent at once, also within a transaction */

extern PGDLLEXPORT void _PG_output_plugin_init(OutputPluginCallbacks *cb);

static LogicalDecodeStartupCB core_startup;
static LogicalDecodeChangeCB core_change;
static LogicalDecodeCommitCB core_commit;
static LogicalDecodeMessageCB core_message;
static LogicalOutputPluginWriterWrite core_write;
static Size held = 0;			/* bytes that hold_message has not sent */
static bool binary_wanted;		/* by the peer */
static bool changes_sent = false;	/* of the transaction that is sent */

static void start_up(LogicalDecodingContext *ctx, OutputPluginOptions *options, bool is_init);
static void send_change(LogicalDecodingContext *ctx, ReorderBufferTXN *txn, Relation relation, ReorderBufferChange *change);
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
	core_change(ctx, txn, relation, change);
	changes_sent = true;
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
	if (strcmp(prefix, REPL_ML_MESSAGE_PREFIX) == 0)
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
