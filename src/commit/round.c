/*
 * round.c
 *		Which transactions of strong tables count: those of the last round of votes that
 *		this node has accepted, and of older ones what is in its base.
 *
 * A transaction that writes strong tables says in which round it was written, by a message
 * in its WAL.  Whoever applies it looks, as it commits, whether it counts; a node that has
 * voted for a later round does not know that until it hears what became of it, and waits.
 * What does not count is void: its changes of strong tables are passed over.
 *
 * test/model/failover.pml is the protocol, sql/parts/strong.sql what votes and accepts.  Not
 * here: who waits (apply/fence.c), the lease itself (lease.c).  Locks: an advisory one, which
 * who applies shares as it commits, and who votes or accepts has exclusively.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/xact.h"
#include "catalog/indexing.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "storage/lock.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/pg_lsn.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

#include "commit/commit.h"
#include "compat.h"
#include "server/server.h"

#define LOCK_KIND		8		/* of advisory locks, as that of lease.c */
#define ROUND			"strong"
#define TABLE_OF_LEASE	"lease_state"
#define TABLE_OF_PLACES	"strong_place"

enum
{
	Anum_place_node_id = 1,
	Anum_place_lsn
};

enum
{
	Anum_lease_promised = 2,
	Anum_lease_accepted,
	Anum_lease_unclean = 5
};

/* Sets the tag of the lock. */
static void
set_tag(LOCKTAG *tag)
{
	SET_LOCKTAG_ADVISORY(*tag, MyDatabaseId, 0, 0, LOCK_KIND);
}

/*
 * Called by who applies a transaction of strong tables, or replaces such a table, until it
 * commits: what counts does not change meanwhile.
 */
void
repl_ml_round_share(void)
{
	LOCKTAG		tag;

	set_tag(&tag);
	(void) LockAcquire(&tag, ShareLock, false, false);
}

/*
 * Called by copy/replace.c outside transactions: until repl_ml_round_unblock, no change of
 * strong tables that comes from a peer is committed here.
 */
void
repl_ml_round_block(void)
{
	LOCKTAG		tag;

	set_tag(&tag);
	StartTransactionCommand();
	(void) LockAcquire(&tag, ExclusiveLock, true, false);
	CommitTransactionCommand();
}

/* Lets them go on. */
void
repl_ml_round_unblock(void)
{
	LOCKTAG		tag;

	set_tag(&tag);
	if (LockHeldByMe_compat(&tag, ExclusiveLock))
		(void) LockRelease(&tag, ExclusiveLock, true);
}

PG_FUNCTION_INFO_V1(repl_ml_lock_strong_changes);

/*
 * repl_ml.lock_strong_changes(): waits until whoever is just committing a change of strong
 * tables has done so, and lets nobody else until the transaction ends; that is durable then.
 */
Datum
repl_ml_lock_strong_changes(PG_FUNCTION_ARGS)
{
	LOCKTAG		tag;

	set_tag(&tag);
	(void) LockAcquire(&tag, ExclusiveLock, false, false);
	ForceSyncCommit();
	PG_RETURN_VOID();
}

/* Returns the message that says in which round a transaction was written, palloc'd. */
char *
repl_ml_round_message(int64 round)
{
	const pg_uuid_t *group = &repl_ml_identity_require()->group_id;

	return psprintf(ROUND " %s " INT64_FORMAT,
					DatumGetCString(DirectFunctionCall1(uuid_out, UUIDPGetDatum(group))), round);
}

/*
 * Says whether that is such a message, of this group, and sets the round.  Anybody may write
 * messages into the WAL, and nobody else knows the group's id.
 */
bool
repl_ml_round_parse(const pg_uuid_t *group, const char *content, int64 *round)
{
	char	   *start = psprintf(ROUND " %s ",
								 DatumGetCString(DirectFunctionCall1(uuid_out,
																	 UUIDPGetDatum(group))));

	if (strncmp(content, start, strlen(start)) != 0)
		return false;
	*round = strtoll(content + strlen(start), NULL, 10);
	return *round > 0;
}

/*
 * Says whether that is the round that this node has accepted last, which all that is written in
 * it counts for, and nothing else is to be looked at; without SQL, as each transaction asks.
 */
static bool
is_present_round(int64 round)
{
	Relation	rel = table_open(repl_ml_catalog_oid(TABLE_OF_LEASE), AccessShareLock);
	Snapshot	snapshot = RegisterSnapshot(GetLatestSnapshot());
	SysScanDesc scan = systable_beginscan(rel, InvalidOid, false, snapshot, 0, NULL);
	HeapTuple	tuple = systable_getnext(scan);
	TupleDesc	desc = RelationGetDescr(rel);
	bool		isnull;
	bool		is_present = HeapTupleIsValid(tuple) &&
		DatumGetInt64(heap_getattr(tuple, Anum_lease_promised, desc, &isnull)) == round &&
		DatumGetInt64(heap_getattr(tuple, Anum_lease_accepted, desc, &isnull)) == round &&
		!DatumGetBool(heap_getattr(tuple, Anum_lease_unclean, desc, &isnull));

	systable_endscan(scan);
	UnregisterSnapshot(snapshot);
	table_close(rel, AccessShareLock);
	return is_present;
}

/*
 * Says whether a transaction that a node wrote in this round, and that ends there in its
 * WAL, counts, as far as this node knows; in the caller's transaction.  With the lock of
 * repl_ml_round_share the answer holds until that ends.
 */
ReplMlJudgement
repl_ml_round_judge(int node, int64 round, XLogRecPtr end)
{
	static SPIPlanPtr plan = NULL;
	Oid			types[3] = {INT4OID, INT8OID, INT8OID};
	Datum		values[3] = {Int32GetDatum(node), Int64GetDatum(round), Int64GetDatum((int64) end)};
	ReplMlJudgement verdict = REPL_ML_UNJUDGED;
	char	   *word;

	if (is_present_round(round))
		return REPL_ML_IS_VALID;
	PushActiveSnapshot(GetLatestSnapshot());
	SPI_connect();
	(void) repl_ml_spi_plan(&plan, "SELECT repl_ml.judge_strong($1, $2, $3)", 3, types);
	SPI_execute_plan(plan, values, NULL, true, 1);
	word = SPI_processed == 1 ? repl_ml_spi_text(0, 0) : NULL;
	if (word != NULL && strcmp(word, "takes") == 0)
		verdict = REPL_ML_IS_VALID;
	else if (word != NULL && strcmp(word, "void") == 0)
		verdict = REPL_ML_IS_VOID;
	else if (word != NULL && strcmp(word, "unclean") == 0)
		verdict = REPL_ML_UNCLEAN;
	SPI_finish();
	PopActiveSnapshot();
	return verdict;
}

/*
 * Moves up to where this node has what another one wrote to strong tables, if that is noted at
 * all; without SQL, as each transaction does it.
 */
static bool
move_place(int node, XLogRecPtr end)
{
	Relation	rel = table_open(repl_ml_catalog_oid(TABLE_OF_PLACES), RowExclusiveLock);
	TupleDesc	desc = RelationGetDescr(rel);
	Snapshot	snapshot = RegisterSnapshot(GetLatestSnapshot());
	SysScanDesc scan = systable_beginscan(rel, InvalidOid, false, snapshot, 0, NULL);
	int			column = Anum_place_lsn;
	Datum		value = Int64GetDatum((int64) end);
	HeapTuple	tuple;
	bool		isnull = false;

	while (HeapTupleIsValid(tuple = systable_getnext(scan)))
	{
		if (DatumGetInt32(heap_getattr(tuple, Anum_place_node_id, desc, &isnull)) == node)
			break;
	}
	if (HeapTupleIsValid(tuple) &&
		DatumGetInt64(heap_getattr(tuple, Anum_place_lsn, desc, &isnull)) < (int64) end)
	{
		HeapTuple	moved = heap_modify_tuple_by_cols(tuple, desc, 1, &column, &value, &isnull);

		CatalogTupleUpdate(rel, &tuple->t_self, moved);
		heap_freetuple(moved);
		CommandCounterIncrement();
	}
	systable_endscan(scan);
	UnregisterSnapshot(snapshot);
	table_close(rel, NoLock);
	return HeapTupleIsValid(tuple);
}

/*
 * Notes, in the transaction that applies it, up to where this node has what another one wrote
 * to strong tables.  Who else does so of the same node, as the process for large transactions,
 * waits for the end of this one.
 */
void
repl_ml_round_note(int node, XLogRecPtr end)
{
	LOCKTAG		tag;
	static SPIPlanPtr plan = NULL;
	Oid			types[2] = {INT4OID, INT8OID};
	Datum		values[2] = {Int32GetDatum(node), Int64GetDatum((int64) end)};

	SET_LOCKTAG_ADVISORY(tag, MyDatabaseId, 0, node, LOCK_KIND);
	(void) LockAcquire(&tag, ExclusiveLock, false, false);
	if (move_place(node, end))
		return;
	PushActiveSnapshot(GetLatestSnapshot());
	SPI_connect();
	(void) repl_ml_spi_plan(&plan, "INSERT INTO repl_ml.strong_place AS p (node_id, lsn)"
							" VALUES ($1, $2) ON CONFLICT (node_id) DO UPDATE"
							" SET lsn = excluded.lsn"
							" WHERE p.lsn OPERATOR(pg_catalog.<) excluded.lsn", 2, types);
	SPI_execute_plan(plan, values, NULL, false, 0);
	SPI_finish();
	PopActiveSnapshot();
}

/*
 * Notes, in the transaction that passes over it, that this node will never have that
 * transaction of another one: so its node is told when it asks.
 */
void
repl_ml_round_note_void(int node, XLogRecPtr commit, TransactionId xid)
{
	Oid			types[3] = {INT4OID, PG_LSNOID, XIDOID};
	Datum		values[3] = {Int32GetDatum(node), LSNGetDatum(commit), TransactionIdGetDatum(xid)};

	repl_ml_spi_execute("INSERT INTO repl_ml.discarded_transaction (node_id, commit_lsn, xid)"
						" VALUES ($1, $2, $3) ON CONFLICT DO NOTHING", 3, types, values, NULL);
}

/*
 * Called by who waits for a verdict, outside transactions: asks the members what has become
 * of the round that this node has voted for, or of one it has not heard of.
 */
void
repl_ml_round_inquire(void)
{
	repl_ml_begin();
	SPI_execute("SELECT repl_ml.lease_inquire()", false, 1);
	repl_ml_commit();
}
