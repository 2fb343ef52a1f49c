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
 * A large transaction is sent while it runs, in pieces between those that commit
 * meanwhile, so that its end holds up nobody (apply/pieces.c).
 *
 * A change that cannot be sent (a row too long for a message, a character that
 * the peer's encoding lacks, a type whose output function fails) ends the
 * walsender once.  The next one sends each change in a subtransaction and, in
 * place of the one that fails, says which row it was and why (apply/unsent.c); it
 * sends nothing before its commit, so that these stand where they belong.
 *
 * Runs in the walsender.  Before it: stamp.c; after it: wire/stream.c on the
 * peer.  Not here: when what is written leaves (commit/reply.c).  Takes no lock;
 * what it tells of the peer commit/ keeps under its own.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/partition.h"
#include "catalog/pg_type.h"
#include "commands/defrem.h"
#include "fmgr.h"
/* what differs with these is not used, and spares the headers of Kerberos and OpenSSL */
#undef ENABLE_GSS
#undef USE_OPENSSL
#undef USE_SSL
#include "libpq/libpq.h"
#include "mb/pg_wchar.h"
#include "port/pg_bswap.h"
#include "replication/logical.h"
#include "replication/logicalproto.h"
#include "replication/origin.h"
#include "replication/output_plugin.h"
#include "replication/pgoutput.h"
#include "replication/walsender.h"
#include "utils/builtins.h"
#include "utils/guc.h"
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

/* so much is sent at once, also within a transaction */
#define HELD_BYTES		8192
/* from here on a change may take a peer longer than a heartbeat */
#define LARGE_CHANGE	(1024 * 1024)
/* bytes of the walsender before each message */
#define MESSAGE_HEAD	25
/* so many without another failure, and subtransactions are spared again */
#define CAREFUL_CHANGES	10000
/* from here on a transaction is sent while it runs, unless the server's settings say otherwise */
#define LARGE_TRANSACTION	"4MB"

extern PGDLLEXPORT void _PG_output_plugin_init(OutputPluginCallbacks *cb);

static LogicalDecodeStartupCB core_startup;
static LogicalDecodeChangeCB core_change;
static LogicalDecodeCommitCB core_commit;
static LogicalDecodeMessageCB core_message;
static LogicalDecodeStreamStartCB core_stream_start;
static LogicalDecodeStreamStopCB core_stream_stop;
static LogicalDecodeStreamCommitCB core_stream_commit;
static LogicalOutputPluginWriterWrite core_write;
static Size held = 0;			/* bytes that hold_message has not sent */
static bool binary_wanted;		/* by the peer */
static bool changes_sent = false;	/* of the transaction that is sent */
static int	careful = 0;		/* so many changes are sent in subtransactions */
static bool streaming_wanted = false;	/* by the peer */
static bool in_stream = false;	/* a piece of a transaction that runs is being sent */

static void start_output(LogicalDecodingContext *ctx, OutputPluginOptions *options, bool is_init);
static void require_known_layout(const PGOutputData *data, List *options);
static void describe_columns(StringInfo out);
static void send_change(LogicalDecodingContext *ctx, ReorderBufferTXN *txn, Relation relation,
						ReorderBufferChange *change);
static void send_carefully(LogicalDecodingContext *ctx, ReorderBufferTXN *txn, Relation relation,
						   ReorderBufferChange *change);
static void send_apology(LogicalDecodingContext *ctx, Relation relation,
						 ReorderBufferChange *change, const ErrorData *error);
static void read_name(Relation relation, HeapTuple tuple, ReplMlRowName *name);
static void send_commit(LogicalDecodingContext *ctx, ReorderBufferTXN *txn, XLogRecPtr commit_lsn);
static void send_stream_start(LogicalDecodingContext *ctx, ReorderBufferTXN *txn);
static void send_stream_stop(LogicalDecodingContext *ctx, ReorderBufferTXN *txn);
static void send_stream_commit(LogicalDecodingContext *ctx, ReorderBufferTXN *txn,
							   XLogRecPtr commit_lsn);
static void send_message(LogicalDecodingContext *ctx, ReorderBufferTXN *txn, XLogRecPtr lsn,
						 bool transactional, const char *prefix, Size size, const char *message);
static void hold_message(LogicalDecodingContext *ctx, XLogRecPtr lsn, TransactionId xid,
						 bool last_write);
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
	cb->startup_cb = start_output;
	core_change = cb->change_cb;
	cb->change_cb = send_change;
	core_commit = cb->commit_cb;
	cb->commit_cb = send_commit;
	core_message = cb->message_cb;
	cb->message_cb = send_message;
	/* pgoutput has the same callbacks for changes and messages of a piece */
	cb->stream_change_cb = send_change;
	cb->stream_message_cb = send_message;
	core_stream_start = cb->stream_start_cb;
	cb->stream_start_cb = send_stream_start;
	core_stream_stop = cb->stream_stop_cb;
	cb->stream_stop_cb = send_stream_stop;
	core_stream_commit = cb->stream_commit_cb;
	cb->stream_commit_cb = send_stream_commit;
}

/*
 * pgoutput's callback at the beginning, and what we need for a stream: the
 * peer's replies, and whether a former walsender failed at a change.
 */
static void
start_output(LogicalDecodingContext *ctx, OutputPluginOptions *options, bool is_init)
{
	core_startup(ctx, options, is_init);
	if (!is_init)
		require_known_layout(ctx->output_plugin_private, ctx->output_plugin_options);
	binary_wanted = !is_init && ((PGOutputData *) ctx->output_plugin_private)->binary;
	if (!is_init)
		repl_ml_reply_watch();
	careful = repl_ml_reply_peer() != 0 && repl_ml_members_is_careful(repl_ml_reply_peer()) ?
		CAREFUL_CHANGES : 0;
	streaming_wanted = ctx->streaming;
	in_stream = false;
	ctx->streaming &= careful == 0;

	/* not the SQL functions that read a slot */
	if (am_walsender)
	{
		core_write = ctx->write;
		ctx->write = hold_message;
		held = 0;
		/* a piece is short enough for the commits that wait behind it */
		SetConfigOption("logical_decoding_work_mem", LARGE_TRANSACTION, PGC_USERSET,
						PGC_S_DYNAMIC_DEFAULT);
	}
}

/*
 * Raises an error if pgoutput has not left the peer's options where the headers
 * we were built with say: its private data is no interface that minor releases
 * keep, and we read and write it (start_output, send_change).
 */
static void
require_known_layout(const PGOutputData *data, List *options)
{
	bool		binary = false;
	uint32		version = 0;
	ListCell   *lc;

	foreach(lc, options)
	{
		DefElem    *option = lfirst_node(DefElem, lc);

		if (strcmp(option->defname, "binary") == 0)
			binary = defGetBoolean(option);
		else if (strcmp(option->defname, "proto_version") == 0)
			version = strtoul(strVal(option->arg), NULL, 10);
	}
	if (data->protocol_version != version || data->binary != binary)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("the server's \"%s\" is another one than \"%s\" was built for", "pgoutput",
						"repl_ml"),
				 errhint("Build repl_ml with the headers of this server, install it and restart "
						 "the server.")));
}

/*
 * Has a description of a table also say which columns these are, by the
 * catalogs as they were when what follows was written.
 */
static void
describe_columns(StringInfo out)
{
	/* in a piece the transaction comes first */
	int			at = MESSAGE_HEAD + 1 + (in_stream ? sizeof(TransactionId) : 0);
	uint32		relid;
	Relation	rel;

	if (out->len < at + sizeof(relid) || out->data[MESSAGE_HEAD] != LOGICAL_REP_MSG_RELATION)
		return;
	memcpy(&relid, out->data + at, sizeof(relid));
	rel = RelationIdGetRelation(pg_ntoh32(relid));
	if (rel == NULL)
		elog(ERROR, "could not open relation with OID %u", pg_ntoh32(relid));
	repl_ml_column_send(out, rel);
	RelationClose(rel);
}

/*
 * In place of core's: leaves a message in the output buffer.  The walsender's
 * loop sends what is there after each record it has decoded, so after each
 * commit; the time in the message's head, which core would fill in, is
 * nobody's concern.
 */
static void
hold_message(LogicalDecodingContext *ctx, XLogRecPtr lsn, TransactionId xid, bool last_write)
{
	describe_columns(ctx->out);
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

/*
 * pgoutput's callback for a change: sends it in binary form only if every node
 * reads that alike, and notes for the next walsender if it cannot be sent.
 */
static void
send_change(LogicalDecodingContext *ctx, ReorderBufferTXN *txn, Relation relation,
			ReorderBufferChange *change)
{
	((PGOutputData *) ctx->output_plugin_private)->binary =
		binary_wanted && repl_ml_binary_is_table_portable(relation);
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
			if (repl_ml_reply_peer() != 0 && repl_ml_output_is_of_the_row(geterrcode()))
				repl_ml_members_set_careful(repl_ml_reply_peer(), true);
			PG_RE_THROW();
		}
		PG_END_TRY();
	}
	changes_sent |= !in_stream;
}

/*
 * Says whether it is an error that comes again with the row, and not with the
 * server's fate. copy/donor.c asks, too.
 */
bool
repl_ml_output_is_of_the_row(int sqlstate)
{
	int			category = ERRCODE_TO_CATEGORY(sqlstate);

	/* core says so when a transaction that is sent while it runs aborts */
	return sqlstate != ERRCODE_TRANSACTION_ROLLBACK &&
		category != ERRCODE_TO_CATEGORY(ERRCODE_OPERATOR_INTERVENTION) &&
		category != ERRCODE_TO_CATEGORY(ERRCODE_SYSTEM_ERROR) &&
		category != ERRCODE_TO_CATEGORY(ERRCODE_CONNECTION_EXCEPTION) &&
		sqlstate != ERRCODE_DISK_FULL;
}

/* Sends the change in a subtransaction, or says that it cannot be sent. */
static void
send_carefully(LogicalDecodingContext *ctx, ReorderBufferTXN *txn, Relation relation,
			   ReorderBufferChange *change)
{
	MemoryContext context = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	ErrorData  *volatile error = NULL;

	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(context);
	PG_TRY();
	{
		core_change(ctx, txn, relation, change);

		/*
		 * nothing was written; and pgoutput leaves a relation open, which only
		 * an abort takes without a warning
		 */
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

	/* after a long time without a failure subtransactions are spared again */
	if (error == NULL)
	{
		if (--careful == 0)
		{
			repl_ml_members_set_careful(repl_ml_reply_peer(), false);
			ctx->streaming = streaming_wanted;
		}
		return;
	}
	if (!repl_ml_output_is_of_the_row(error->sqlerrcode))
		ReThrowError(error);
	careful = CAREFUL_CHANGES;
	send_apology(ctx, relation, change, error);
	FreeErrorData(error);
}

/*
 * Sends, in place of a change, of which table, which key and which clock it
 * is, and why it cannot be sent; for apply/unsent.c.
 */
static void
send_apology(LogicalDecodingContext *ctx, Relation relation, ReorderBufferChange *change,
			 const ErrorData *error)
{
	ReplMlRowName *name = repl_ml_output_name(relation, change_tuple_compat(change));
	StringInfoData message;
	MemoryContext old;

	/* it may be a gigabyte long */
	old = MemoryContextSwitchTo(GetMemoryChunkContext(ctx->out));
	pfree(ctx->out->data);
	initStringInfo(ctx->out);
	MemoryContextSwitchTo(old);
	initStringInfo(&message);
	appendStringInfo(&message, "%s\n%s\n%s\n%s\n", REPL_ML_UNSENT,
					 repl_ml_output_legible(name->schema_name),
					 repl_ml_output_legible(name->table_name), repl_ml_output_legible(name->key));
	appendStringInfo(&message, "%s\n%s\n", name->clock == NULL ? "" : name->clock,
					 repl_ml_output_legible(error->message));
	ereport(LOG,
			(errmsg("a row of table \"%s\" cannot be sent and is left out: %s", name->table_name,
					error->message),
			 errdetail("Its key is %s.", name->key)));
	OutputPluginPrepareWrite(ctx, false);
	logicalrep_write_message(ctx->out, InvalidTransactionId, change->lsn, true,
							 REPL_ML_MESSAGE_PREFIX, message.len, message.data);
	OutputPluginWrite(ctx, false);
	pfree(message.data);
}

/*
 * Returns how a row is called that cannot be sent, in the current memory
 * context: its table, and key and clock where these can be had.  A tombstone,
 * or a stored version, is called by the row that it is about. copy/donor.c
 * asks, too.
 */
ReplMlRowName *
repl_ml_output_name(Relation relation, HeapTuple tuple)
{
	MemoryContext context = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	ReplMlRowName *name = palloc0(sizeof(ReplMlRowName));
	Oid			root = relation->rd_rel->relispartition ?
		llast_oid(get_partition_ancestors(RelationGetRelid(relation))) :
		RelationGetRelid(relation);

	name->schema_name = get_namespace_name(get_rel_namespace(root));
	name->table_name = get_rel_name(root);
	name->key = "{}";
	if (tuple == NULL)
		return name;

	/* the row's own values may be what fails */
	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(context);
	PG_TRY();
	{
		read_name(relation, tuple, name);
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
	return name;
}

/* Reads what of the name is in the row, as far as it gets before an error. */
static void
read_name(Relation relation, HeapTuple tuple, ReplMlRowName *name)
{
	TupleDesc	desc = RelationGetDescr(relation);
	ReplMlTable *table = repl_ml_table_get(relation);
	bool		is_ours = RelationGetNamespace(relation) == repl_ml_schema_oid();
	AttrNumber	key_attnum = is_ours ? get_attnum(RelationGetRelid(relation), "key") :
		InvalidAttrNumber;
	Datum		value;
	bool		isnull;
	Datum		key[INDEX_MAX_KEYS];
	Oid			function;
	bool		is_varlena;

	/* a tombstone or a stored version says itself of which row it is */
	getTypeOutputInfo(TEXTARRAYOID, &function, &is_varlena);
	if (AttributeNumberIsValid(key_attnum))
	{
		Oid			relid = RelationGetRelid(relation);

		value = heap_getattr(tuple, get_attnum(relid, "schema_name"), desc, &isnull);
		name->schema_name = pstrdup(NameStr(*DatumGetName(value)));
		value = heap_getattr(tuple, get_attnum(relid, "table_name"), desc, &isnull);
		name->table_name = pstrdup(NameStr(*DatumGetName(value)));
		name->key = OidOutputFunctionCall(function, heap_getattr(tuple, key_attnum, desc, &isnull));
	}
	else
	{
		repl_ml_key_from_tuple(table, tuple, desc, key);
		name->key = OidOutputFunctionCall(function, repl_ml_key_to_array(table, key));
	}
	value = heap_getattr(tuple, table->clock_attnum, desc, &isnull);
	if (!isnull)
		name->clock = repl_ml_clock_to_text(repl_ml_table_clock(table, value, isnull));
}

/*
 * Returns a line of what is told of a row; what may mean something else in the
 * peer's encoding is left out.
 */
char *
repl_ml_output_legible(const char *line)
{
	bool		convert = pg_get_client_encoding() != GetDatabaseEncoding();
	char	   *result = pstrdup(line);

	for (char *c = result; *c != '\0'; c++)
	{
		if (*c == '\n')
			*c = ' ';
		else if (convert && IS_HIGHBIT_SET(*c))
			*c = '?';
	}
	return result;
}

/*
 * pgoutput's callback for a commit.  If commits wait for peers, this one or
 * others, it tells the peer first how urgently: by a message in the
 * transaction, as if it had been in the WAL.
 */
static void
send_commit(LogicalDecodingContext *ctx, ReorderBufferTXN *txn, XLogRecPtr commit_lsn)
{
	ReplMlUrgency urgency = changes_sent ? repl_ml_quorum_urgency(repl_ml_reply_peer()) :
		REPL_ML_WHENEVER;
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

/*
 * pgoutput's callbacks around a piece of a transaction that runs: between them
 * each message says which (sub)transaction it is of.
 */
static void
send_stream_start(LogicalDecodingContext *ctx, ReorderBufferTXN *txn)
{
	core_stream_start(ctx, txn);
	in_stream = true;
}

static void
send_stream_stop(LogicalDecodingContext *ctx, ReorderBufferTXN *txn)
{
	in_stream = false;
	core_stream_stop(ctx, txn);
}

/*
 * pgoutput's callback for the commit of a transaction that was sent while it
 * ran.  The peer hurries by itself.
 */
static void
send_stream_commit(LogicalDecodingContext *ctx, ReorderBufferTXN *txn, XLogRecPtr commit_lsn)
{
	repl_ml_quorum_sent(txn->xid, commit_lsn, txn->end_lsn);
	core_stream_commit(ctx, txn, commit_lsn);
}

/*
 * pgoutput's callback for a message: of those in the WAL only our own are for
 * peers.
 */
static void
send_message(LogicalDecodingContext *ctx, ReorderBufferTXN *txn, XLogRecPtr lsn, bool transactional,
			 const char *prefix, Size size, const char *message)
{
	/* what this process says of itself is not in the WAL */
	if (strcmp(prefix, REPL_ML_MESSAGE_PREFIX) == 0 &&
		(size < strlen(REPL_ML_UNSENT) ||
		 strncmp(message, REPL_ML_UNSENT, strlen(REPL_ML_UNSENT)) != 0))
		core_message(ctx, txn, lsn, transactional, prefix, size, message);
}

/*
 * Says that a change is not for peers, because it came from one of them.  What
 * any other origin brought was written here, as far as they are concerned.
 */
static bool
filter_by_origin(LogicalDecodingContext *ctx, RepOriginId origin)
{
	return repl_ml_origin_is_ours(origin);
}
