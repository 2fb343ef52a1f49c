/*
 * status.c
 *		What became of a transaction: this node's part of the answer, and asking
 *		the other members for theirs.
 *
 * The node where the transaction was knows from its commit log whether it is
 * committed, and from unacknowledged.c whether it is acknowledged.  The others
 * know whether they have applied it.  repl_ml.transaction_status(), in SQL,
 * asks and decides.
 *
 * Not here: tokens (token.c), and what members remember (apply/record.c).  Page
 * locks of repl_ml.transaction_record keep the questions few.
 */
#include "postgres.h"

#include "access/table.h"
#include "access/transam.h"
#include "access/xact.h"
#include "access/xlog.h"
#include "catalog/pg_type.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "storage/lmgr.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/rel.h"
#include "utils/xid8.h"

#include "commit/commit.h"
#include "compat.h"
#include "server/server.h"
#include "wire/wire.h"

#define PATIENCE_MS			2500	/* a question's */
#define QUESTIONS			4	/* at a time */
#define TABLE_OF_RECORDS	"transaction_record"

static const char *log_status(FullTransactionId xid);
static const char *committed_status(TransactionId xid, ReplMlLevel *level);

/*
 * Returns what the commit log says of a transaction id: in progress,
 * committed, aborted; NULL if it is too old.
 */
static const char *
log_status(FullTransactionId xid)
{
	LOCAL_FCINFO(call, 1);
	Datum		result;

	InitFunctionCallInfoData(*call, NULL, 1, InvalidOid, NULL, NULL);
	call->args[0].value = FullTransactionIdGetDatum(xid);
	call->args[0].isnull = false;
	result = pg_xact_status(call);
	return call->isnull ? NULL : TextDatumGetCString(result);
}

/*
 * Returns "acknowledged" or "committed" of a transaction that is committed
 * here, and durable when this returns; its level if it is known to be above
 * one.
 */
static const char *
committed_status(TransactionId xid, ReplMlLevel *level)
{
	XLogRecPtr	lsn = TransactionIdGetCommitLSN(xid);

	/* with synchronous_commit = off a commit may be visible before */
	if (!XLogRecPtrIsInvalid(lsn))
		XLogFlush(lsn);
	return repl_ml_unacknowledged_find(xid, level) == REPL_ML_FATE_ACKNOWLEDGED ? "acknowledged" :
		"committed";
}

PG_FUNCTION_INFO_V1(repl_ml_local_transaction);

/*
 * repl_ml.local_transaction(xid, OUT state, OUT level, OUT past): returns what
 * is known here of a transaction of this node: in progress, aborted, committed
 * (and not known to be acknowledged), acknowledged, unknown.
 */
Datum
repl_ml_local_transaction(PG_FUNCTION_ARGS)
{
	FullTransactionId full = PG_GETARG_FULLTRANSACTIONID(0);
	TransactionId xid = XidFromFullTransactionId(full);
	const char *state = "unknown";
	ReplMlLevel level = REPL_ML_ONE;
	TupleDesc	desc;
	Datum		values[3];
	bool		nulls[3] = {false, false, false};

	repl_ml_shmem_require();
	if (FullTransactionIdPrecedes(full, ReadNextFullTransactionId()))
		state = log_status(full);
	if (state == NULL)
		state = "unknown";
	/* a commit that waits to be acknowledged is in progress for everybody else */
	if (strcmp(state, "committed") == 0 ||
		(strcmp(state, "in progress") == 0 && TransactionIdDidCommit(xid)))
		state = committed_status(xid, &level);

	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	values[0] = CStringGetTextDatum(state);
	values[1] = CStringGetTextDatum(repl_ml_level_name(level));
	nulls[1] = level == REPL_ML_ONE;
	values[2] = BoolGetDatum(repl_ml_unacknowledged_is_past(full));
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(desc), values, nulls)));
}

PG_FUNCTION_INFO_V1(repl_ml_ask_members);

/*
 * repl_ml.ask_members(dsns, question): returns the answers of these servers to
 * a query of one row and column, null where there was none in time.  Few at a
 * time: everybody may ask, and every question takes a connection of each
 * server.
 */
Datum
repl_ml_ask_members(PG_FUNCTION_ARGS)
{
	Relation	rel = table_open(repl_ml_catalog_oid(TABLE_OF_RECORDS), AccessShareLock);
	BlockNumber turn = MyProcPid % QUESTIONS;
	Datum	   *dsns;
	Datum	   *values;
	bool	   *nulls;
	char	  **strings;
	char	  **answers;
	int			count;
	int			lower = 1;

	deconstruct_array(PG_GETARG_ARRAYTYPE_P(0), TEXTOID, -1, false, TYPALIGN_INT, &dsns, NULL,
					  &count);
	strings = palloc0((count + 1) * sizeof(char *));
	answers = palloc0((count + 1) * sizeof(char *));
	values = palloc0((count + 1) * sizeof(Datum));
	nulls = palloc0((count + 1) * sizeof(bool));
	for (int i = 0; i < count; i++)
		strings[i] = TextDatumGetCString(dsns[i]);

	/*
	 * A lock that no user can take, and that goes with the transaction, also
	 * where that is cancelled (test 390).  The pages are numbers, nothing more.
	 */
	LockPage(rel, turn, ExclusiveLock);
	repl_ml_ask(count, strings, text_to_cstring(PG_GETARG_TEXT_PP(1)),
				TimestampTzPlusMilliseconds(GetCurrentTimestamp(), PATIENCE_MS), answers);
	UnlockPage(rel, turn, ExclusiveLock);
	table_close(rel, AccessShareLock);

	for (int i = 0; i < count; i++)
	{
		nulls[i] = answers[i] == NULL;
		if (answers[i] != NULL)
			values[i] = CStringGetTextDatum(answers[i]);
	}
	PG_RETURN_ARRAYTYPE_P(construct_md_array(values, nulls, 1, &count, &lower, TEXTOID, -1, false,
											 TYPALIGN_INT));
}

PG_FUNCTION_INFO_V1(repl_ml_require_fresh_view);

/*
 * repl_ml.require_fresh_view(): raises an error in a transaction that sees
 * only what was there when it began.
 */
Datum
repl_ml_require_fresh_view(PG_FUNCTION_ARGS)
{
	if (IsolationUsesXactSnapshot() && IsTransactionBlock())
		ereport(ERROR,
				(errcode(ERRCODE_ACTIVE_SQL_TRANSACTION),
				 errmsg("function \"%s\" cannot be used in a transaction that sees only what was "
						"there when it began", "transaction_status"),
				 errhint("Call it before BEGIN, or use READ COMMITTED.")));
	PG_RETURN_VOID();
}
