/*
 * token.c
 *		Tokens for transactions: a client takes one inside the transaction, and
 *		asks later, on any node, what became of it.
 *
 * A token names the transaction: the node and its transaction id there.  The
 * members that apply the transaction find its id and its level in a message in
 * its WAL, and remember them (repl_ml.transaction_record); the node itself
 * knows by its commit log.  See status.c for the answers.
 *
 * These messages carry the group's id: anybody may write messages into the WAL.
 * Not here: what is kept of them (apply/record.c).  No locks.
 */
#include "postgres.h"

#include "access/rmgr.h"
#include "access/transam.h"
#include "access/xact.h"
#include "access/xlog.h"
#include "access/xloginsert.h"
#include "catalog/pg_control.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "port/pg_crc32c.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/timestamp.h"
#include "utils/xid8.h"

#include "commit/commit.h"
#include "compat.h"
#include "server/server.h"

#define RECORD			"record"
#define RECORD_PREPARED "prepared"

/* What a token says.  Text: the fields with full stops between, then a checksum of it. */
typedef struct Token
{
	int			node;
	uint64		xid;
	int64		issued;			/* start of the transaction */
	uint32		group;			/* a hash of the group's id, which is not
								 * public */
} Token;

/* The token of this backend's transaction; written by transaction_token, reset by commit.c. */
static struct
{
	bool		out;
	FullTransactionId xid;
	char		group_id[UUID_LEN * 2 + 5];
} current;

static char *print_token(const Token *token);
static bool parse_token(const char *text, Token *token);
static void keep_xid(void);

/*
 * Says whether somebody has a token of the transaction this backend is
 * running.
 */
bool
repl_ml_token_is_out(void)
{
	return current.out;
}

/*
 * Called by commit.c at the end of a transaction: begins anew with the next
 * one.
 */
void
repl_ml_token_forget(void)
{
	current.out = false;
}

/* Returns the group's id as text. */
static char *
group_id_text(const pg_uuid_t *group_id)
{
	return DatumGetCString(DirectFunctionCall1(uuid_out, UUIDPGetDatum(group_id)));
}

/* Returns the checksum of these bytes. */
static uint32
compute_checksum(const void *data, size_t size)
{
	pg_crc32c	crc;

	INIT_CRC32C(crc);
	COMP_CRC32C(crc, data, size);
	FIN_CRC32C(crc);
	return crc;
}

/* Returns a token's text. */
static char *
print_token(const Token *token)
{
	char	   *text = psprintf("1.%d." UINT64_FORMAT "." INT64_FORMAT ".%08x", token->node,
								token->xid, token->issued, token->group);

	return psprintf("%s.%08x", text, compute_checksum(text, strlen(text)));
}

/*
 * Reads a token's text; returns false if it is not just what print_token
 * makes.
 */
static bool
parse_token(const char *text, Token *token)
{
	unsigned long long xid;
	long long	issued;
	unsigned int group;

	if (strlen(text) > 100 ||
		sscanf(text, "1.%d.%llu.%lld.%8x.", &token->node, &xid, &issued, &group) != 4)
		return false;
	token->xid = xid;
	token->issued = issued;
	token->group = group;
	return strcmp(text, print_token(token)) == 0;
}

/*
 * Sees to it that no other transaction gets this one's id, should the server
 * end before anything of it is durable: ids are given out without a trace in
 * the WAL.
 */
static void
keep_xid(void)
{
	char		nothing = 0;

	XLogBeginInsert();
	XLogRegisterData(&nothing, sizeof(nothing));
	XLogFlush(XLogInsert(RM_XLOG_ID, XLOG_NOOP));
}

PG_FUNCTION_INFO_V1(repl_ml_transaction_token);

/*
 * repl_ml.transaction_token(): returns the name of this transaction, for
 * transaction_status.
 */
Datum
repl_ml_transaction_token(PG_FUNCTION_ARGS)
{
	const ReplMlIdentity *self = repl_ml_identity_require();
	Token		token;

	if (XactReadOnly)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_TRANSACTION_STATE),
				 errmsg("a read-only transaction has no token"),
				 errdetail("It changes nothing, so nothing can become of it."),
				 errhint("Call transaction_token() in a transaction that writes.")));

	/* all tokens of a transaction are the same */
	if (!current.out)
	{
		current.xid = GetTopFullTransactionId();
		strlcpy(current.group_id, group_id_text(&self->group_id), sizeof(current.group_id));
		keep_xid();
		current.out = true;
	}
	token.node = self->node_id;
	token.xid = U64FromFullTransactionId(current.xid);
	token.issued = GetCurrentTransactionStartTimestamp();
	token.group = compute_checksum(&self->group_id, sizeof(pg_uuid_t));
	PG_RETURN_TEXT_P(cstring_to_text(print_token(&token)));
}

PG_FUNCTION_INFO_V1(repl_ml_token_parts);

/*
 * repl_ml.token_parts(token, OUT node_id, OUT xid, OUT issued_at): reads a
 * token; raises an error if it is none, or another group's.
 */
Datum
repl_ml_token_parts(PG_FUNCTION_ARGS)
{
	const ReplMlIdentity *self = repl_ml_identity_require();
	Token		token;
	TupleDesc	desc;
	Datum		values[3];
	bool		nulls[3] = {false, false, false};

	if (!parse_token(text_to_cstring(PG_GETARG_TEXT_PP(0)), &token))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("invalid transaction token"),
				 errhint("Give the whole text that repl_ml.transaction_token() returned in the "
						 "transaction.")));

	/* there may be a node and a transaction of these numbers here, too */
	if (token.group != compute_checksum(&self->group_id, sizeof(pg_uuid_t)))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("the transaction token is of another group"),
				 errhint("Ask a node of the group in which the transaction was begun.")));
	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	values[0] = Int32GetDatum(token.node);
	values[1] = FullTransactionIdGetDatum(FullTransactionIdFromU64(token.xid));
	values[2] = TimestampTzGetDatum(token.issued);
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(desc), values, nulls)));
}

/*
 * Returns the message in the WAL of a transaction that somebody has a token
 * of: its id and its level.
 */
char *
repl_ml_record_of_transaction(ReplMlLevel level)
{
	return psprintf("%s %s " UINT64_FORMAT " %s", RECORD, current.group_id,
					U64FromFullTransactionId(current.xid), repl_ml_level_name(level));
}

/*
 * Returns the message before the commit of a prepared transaction, whose level
 * is not known before.  The transaction exists, so its id is of the last two
 * thousand million.
 */
char *
repl_ml_record_of_prepared(ReplMlLevel level, TransactionId xid)
{
	FullTransactionId next = ReadNextFullTransactionId();
	uint32		epoch = EpochFromFullTransactionId(next);

	if (xid > XidFromFullTransactionId(next))
		epoch--;
	return psprintf("%s %s " UINT64_FORMAT " %s", RECORD_PREPARED,
					group_id_text(&repl_ml_identity_require()->group_id),
					U64FromFullTransactionId(FullTransactionIdFromEpochAndXid(epoch, xid)),
					repl_ml_level_name(level));
}

/*
 * Called by apply workers: reads either message; returns false if it is
 * neither.
 */
bool
repl_ml_record_parse(const char *text, ReplMlRecord *record)
{
	char		verb[16];
	char		level[16];
	unsigned long long xid;
	int			used = 0;

	memset(record, 0, sizeof(*record));
	if (sscanf(text, "%15s %36s %llu %15s%n", verb, record->group_id, &xid, level, &used) != 4 ||
		text[used] != '\0' ||
		!repl_ml_level_parse(level, &record->level))
		return false;
	record->xid = FullTransactionIdFromU64(xid);
	record->of_prepared = strcmp(verb, RECORD_PREPARED) == 0;
	return record->of_prepared || strcmp(verb, RECORD) == 0;
}
