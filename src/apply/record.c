/*
 * record.c
 *		Remembers the peer's transactions that somebody may ask about: that they
 *		are applied here, and what their level was.
 *
 * A row of repl_ml.transaction_record is written in the transaction it is
 * about, so it is there if and only if that is applied.  The level of a
 * prepared transaction comes in a message of its own before it.  See
 * commit/status.c for what the rows are for; the supervisor removes old ones.
 *
 * Called by dispatch.c for the stream and by copy/fetch.c for copies.  No locks
 * but those of the records' rows.
 */
#include "postgres.h"

#include "access/transam.h"
#include "access/xact.h"
#include "access/xlog.h"
#include "catalog/pg_type.h"
#include "replication/origin.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/memutils.h"
#include "utils/pg_lsn.h"
#include "utils/snapmgr.h"
#include "utils/xid8.h"

#include "apply/apply.h"
#include "commit/commit.h"
#include "server/server.h"
#include "wire/wire.h"

static void store_record(int node, Datum xid, const char *level, XLogRecPtr lsn);

/*
 * Says whether the message is of our group, and, in a transaction, about that
 * one.  Anybody may write messages into the WAL.
 */
bool
repl_ml_record_is_wanted(const ReplMlApply *apply, const ReplMlRecord *record)
{
	if (!FullTransactionIdIsValid(record->xid) || record->of_prepared == apply->transaction.open ||
		strcmp(record->group_id,
			   DatumGetCString(DirectFunctionCall1(uuid_out,
												   UUIDPGetDatum(&apply->group_id)))) != 0)
		return false;
	return record->of_prepared || XidFromFullTransactionId(record->xid) == apply->transaction.xid;
}

/* Remembers the transaction that is being applied, in that transaction. */
void
repl_ml_record_transaction(const ReplMlApply *apply, const ReplMlRecord *record)
{
	store_record(apply->peer->node_id, FullTransactionIdGetDatum(record->xid),
				 repl_ml_level_name(record->level),
				 apply->transaction.final_lsn);
}

/*
 * Remembers, durably, the level of a prepared transaction that is about to be
 * committed.
 */
void
repl_ml_record_prepared(const ReplMlApply *apply, const ReplMlRecord *record)
{
	StartTransactionCommand();
	store_record(apply->peer->node_id, FullTransactionIdGetDatum(record->xid),
				 repl_ml_level_name(record->level),
				 InvalidXLogRecPtr);
	replorigin_session_origin_lsn = InvalidXLogRecPtr;
	replorigin_session_origin_timestamp = 0;
	CommitTransactionCommand();
	XLogFlush(XactLastCommitEnd);
	MemoryContextSwitchTo(apply->message_context);
}

/*
 * Writes a row, or what is new of it: "lsn" is where the commit is, invalid as
 * long as it is not applied.
 */
static void
store_record(int node, Datum xid, const char *level, XLogRecPtr lsn)
{
	Oid			types[4] = {INT4OID, XID8OID, TEXTOID, PG_LSNOID};
	Datum		values[4] = {Int32GetDatum(node), xid, CStringGetTextDatum(level),
	LSNGetDatum(lsn)};

	repl_ml_spi_execute("INSERT INTO repl_ml.transaction_record AS r (node_id, xid, level,"
						" commit_lsn) VALUES ($1, $2, $3, $4)"
						" ON CONFLICT (node_id, xid) DO UPDATE"
						" SET commit_lsn = greatest(r.commit_lsn, excluded.commit_lsn),"
						" level = CASE WHEN 'all' IN (r.level, excluded.level) THEN 'all'"
						" WHEN 'quorum' IN (r.level, excluded.level) THEN 'quorum' ELSE 'one' END",
						4, types, values, XLogRecPtrIsInvalid(lsn) ? "   n" : NULL);
}

/*
 * Copies up to where there are no records: rows of the peer's transactions up
 * to now may come in a copy, and so may those of other nodes' that came to the
 * peer in one.
 */
static void
copy_floors(const ReplMlApply *apply, WalReceiverConn *conn)
{
	static const Oid types[2] = {INT4OID, XID8OID};
	char	   *sql = psprintf("SELECT node_id, xid FROM repl_ml.record_floor UNION ALL"
							   " SELECT %d, pg_catalog.pg_snapshot_xmax("
							   "pg_catalog.pg_current_snapshot())",
							   apply->peer->node_id);
	ReplMlResult *result = repl_ml_stream_query(conn, sql, 2, types);

	while (repl_ml_stream_next(result))
	{
		Oid			own_types[2] = {INT4OID, XID8OID};

		slot_getallattrs(result->slot);
		if (DatumGetInt32(result->slot->tts_values[0]) == apply->self)
			continue;
		repl_ml_spi_execute("INSERT INTO repl_ml.record_floor AS f (node_id, xid) VALUES ($1, $2)"
							" ON CONFLICT (node_id) DO UPDATE"
							" SET xid = greatest(f.xid, excluded.xid)",
							2, own_types, result->slot->tts_values, NULL);
	}
	repl_ml_stream_free(result);
}

/*
 * Copies what the peer remembers, of transactions of any node, in the caller's
 * transaction, before it copies rows: whoever gets rows by a copy must be able
 * to tell of whom.
 */
void
repl_ml_record_copy(const ReplMlApply *apply, WalReceiverConn *conn)
{
	static const Oid types[4] = {INT4OID, XID8OID, TEXTOID, PG_LSNOID};
	ReplMlResult *result = repl_ml_stream_query(conn,
												"SELECT node_id, xid, level, commit_lsn"
												" FROM repl_ml.transaction_record"
												" WHERE commit_lsn IS NOT NULL", 4, types);

	while (repl_ml_stream_next(result))
	{
		slot_getallattrs(result->slot);
		if (DatumGetInt32(result->slot->tts_values[0]) == apply->self)
			continue;
		store_record(DatumGetInt32(result->slot->tts_values[0]), result->slot->tts_values[1],
					 TextDatumGetCString(result->slot->tts_values[2]),
					 DatumGetLSN(result->slot->tts_values[3]));
	}
	repl_ml_stream_free(result);
	copy_floors(apply, conn);
}
