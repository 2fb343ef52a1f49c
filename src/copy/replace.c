/*
 * replace.c
 *		Copies of strong tables that replace what is here, row for row, instead of being
 *		joined with it: what is here may be void, and is newer by its clock.
 *
 * Ordered when this node's strong tables are unclean (repl_ml.mend_strong()).  Meanwhile no
 * client reads or writes them here, and no peer's change of them is committed: so the donor,
 * which has to have all that is here and counts, and all that is needed, has it in the moment
 * that is copied.
 *
 * Runs in the apply worker, within sync.c's copy of the table.  Not here: the rows that come
 * (fetch.c).  Locks: that of commit/round.c, exclusively, until the copy is committed.
 */
#include "postgres.h"

#include "access/heapam.h"
#include "access/sysattr.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/pg_inherits.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/pg_lsn.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

#include "apply/apply.h"
#include "commit/commit.h"
#include "copy/copy.h"
#include "row/row.h"
#include "server/server.h"
#include "wire/wire.h"

#define MOST_REMAINS	1000	/* of void transactions, in one table */
#define MOST_CONTENT	(1024 * 1024)	/* bytes of one of them */
#define MOST_REMAINS_TEXT	CppAsString2(MOST_REMAINS)

/*
 * Called by fetch.c before the donor's moment, outside transactions: raises an error, after
 * which it is tried again, unless the donor's strong tables are what they are to be and have
 * all that is here or needed.
 */
void
repl_ml_replace_begin(ReplMlApply *apply, WalReceiverConn *conn)
{
	static const Oid types[1] = {BOOLOID};
	char	   *question;
	ReplMlResult *result;
	bool		may;

	repl_ml_round_block();
	repl_ml_begin();
	SPI_execute("SELECT pg_catalog.format('SELECT repl_ml.may_donate_strong(%s, %L, %L, %L)',"
				" s.accepted, repl_ml.merge(w.places, s.mending), w.places,"
				" repl_ml.strong_tables())"
				" FROM repl_ml.lease_state s, repl_ml.strong_places() w (places)"
				" WHERE s.promised OPERATOR(pg_catalog.=) s.accepted", false, 1);
	if (SPI_processed == 0)
		ereport(ERROR,
				(errcode(ERRCODE_LOCK_NOT_AVAILABLE),
				 errmsg("this node has voted for a round of which it does not know the end")));
	question = MemoryContextStrdup(apply->message_context, repl_ml_spi_text(0, 0));
	repl_ml_commit();
	MemoryContextSwitchTo(apply->message_context);
	result = repl_ml_stream_query(conn, question, 1, types);
	may = repl_ml_stream_next(result) &&
		(slot_getallattrs(result->slot), !result->slot->tts_isnull[0]) &&
		DatumGetBool(result->slot->tts_values[0]);
	repl_ml_stream_free(result);
	if (!may)
		ereport(ERROR,
				(errcode(ERRCODE_LOCK_NOT_AVAILABLE),
				 errmsg("node \"%s\" does not have all of the strong tables yet",
						apply->peer->node_name)));
}

/* A transaction of this node's, or a subtransaction of it, that is void. */
typedef struct VoidId
{
	TransactionId xid;
	XLogRecPtr	commit;			/* of which transaction */
} VoidId;

/* What has been found of void transactions in the table that is replaced. */
typedef struct Remains
{
	const char *schema_name;
	const char *table_name;
	int			id_count;
	VoidId	   *ids;			/* by id */
	int			noted;
} Remains;

/* Orders void transactions for qsort and bsearch. */
static int
compare_ids(const void *a, const void *b)
{
	TransactionId one = ((const VoidId *) a)->xid;
	TransactionId two = ((const VoidId *) b)->xid;

	return one < two ? -1 : one > two ? 1 : 0;
}

/* Reads which transactions of this node are void and have not been undone (commit/void.c). */
static void
load_ids(Remains *remains)
{
	MemoryContext context = CurrentMemoryContext;
	MemoryContext old;
	bool		isnull;

	SPI_connect();
	SPI_execute("SELECT x, v.commit_lsn FROM repl_ml.void_transaction v,"
				" pg_catalog.unnest(v.xids) x WHERE v.undone_at IS NULL", true, 0);
	old = MemoryContextSwitchTo(context);
	remains->id_count = SPI_processed;
	remains->ids = palloc((SPI_processed + 1) * sizeof(VoidId));
	MemoryContextSwitchTo(old);
	for (int i = 0; i < remains->id_count; i++)
	{
		HeapTuple	row = SPI_tuptable->vals[i];

		remains->ids[i].xid = DatumGetTransactionId(SPI_getbinval(row, SPI_tuptable->tupdesc, 1,
																  &isnull));
		remains->ids[i].commit = DatumGetLSN(SPI_getbinval(row, SPI_tuptable->tupdesc, 2,
														   &isnull));
	}
	SPI_finish();
	qsort(remains->ids, remains->id_count, sizeof(VoidId), compare_ids);
}

/* A row that a void transaction has written. */
typedef struct Remnant
{
	TupleTableSlot *slot;
	AttrNumber	clock_attnum;
	Datum		content;		/* as text[] */
} Remnant;

/* A step of repl_ml_attempt: has the types of the row write its values. */
static void
describe_remnant(void *argument)
{
	Remnant    *remnant = argument;

	remnant->content = repl_ml_version_from_slot(remnant->slot, remnant->clock_attnum);
}

/*
 * Writes a row down if a void transaction has written it; no more than MOST_REMAINS of a table,
 * and without its content where that cannot be written as text, or is long.
 */
static void
note_remains(Remains *remains, TupleTableSlot *slot, AttrNumber clock_attnum)
{
	Oid			types[4] = {PG_LSNOID, TEXTOID, TEXTOID, TEXTARRAYOID};
	Datum		values[4];
	char		nulls[5] = "    ";
	Remnant		remnant = {.slot = slot,.clock_attnum = clock_attnum};
	VoidId		wanted;
	VoidId	   *found;
	bool		isnull;

	if (remains->id_count == 0 || remains->noted >= MOST_REMAINS)
		return;
	wanted.xid = DatumGetTransactionId(slot_getsysattr(slot, MinTransactionIdAttributeNumber,
													   &isnull));
	found = bsearch(&wanted, remains->ids, remains->id_count, sizeof(VoidId), compare_ids);
	if (found == NULL)
		return;
	values[0] = LSNGetDatum(found->commit);
	values[1] = CStringGetTextDatum(remains->schema_name);
	values[2] = CStringGetTextDatum(remains->table_name);
	if (repl_ml_attempt(describe_remnant, &remnant) != NULL ||
		VARSIZE_ANY(DatumGetPointer(remnant.content)) > MOST_CONTENT)
		nulls[3] = 'n';
	values[3] = remnant.content;
	repl_ml_spi_execute("INSERT INTO repl_ml.void_change"
						" (commit_lsn, schema_name, table_name, deleted, content)"
						" VALUES ($1, $2::pg_catalog.name, $3::pg_catalog.name, false, $4)", 4,
						types, values, nulls);
	remains->noted++;
}

/*
 * Deletes all rows of a table or partition; no code of users runs, as these rows go nowhere.
 * What void transactions have left there is written down.
 */
static void
empty_relation(Oid relid, Remains *remains)
{
	Relation	rel = table_open(relid, RowExclusiveLock);
	Snapshot	snapshot = RegisterSnapshot(GetLatestSnapshot());
	AttrNumber	clock_attnum = repl_ml_table_clock_attnum(relid);
	TableScanDesc scan;
	TupleTableSlot *slot;

	if (rel->rd_rel->relkind == RELKIND_RELATION)
	{
		slot = table_slot_create(rel, NULL);
		scan = table_beginscan(rel, snapshot, 0, NULL);
		while (table_scan_getnextslot(scan, ForwardScanDirection, slot))
		{
			CHECK_FOR_INTERRUPTS();
			note_remains(remains, slot, clock_attnum);
			simple_table_tuple_delete(rel, &slot->tts_tid, snapshot);
		}
		table_endscan(scan);
		ExecDropSingleTupleTableSlot(slot);
	}
	UnregisterSnapshot(snapshot);
	table_close(rel, NoLock);
}

/*
 * Called by fetch.c in the copy's transaction, before the rows come: nothing is left of the
 * table here, nor of its deletions.
 */
void
repl_ml_replace_empty(Oid relid, const char *schema_name, const char *table_name)
{
	Oid			types[2] = {TEXTOID, TEXTOID};
	Datum		values[2] = {CStringGetTextDatum(schema_name), CStringGetTextDatum(table_name)};
	Remains		remains = {.schema_name = schema_name,.table_name = table_name};
	ListCell   *lc;

	load_ids(&remains);
	foreach(lc, find_all_inheritors(relid, RowExclusiveLock, NULL))
		empty_relation(lfirst_oid(lc), &remains);
	repl_ml_spi_execute("INSERT INTO repl_ml.void_change"
						" (commit_lsn, schema_name, table_name, deleted, content)"
						" SELECT v.commit_lsn, t.schema_name, t.table_name, true,"
						" (SELECT pg_catalog.array_agg(p.part ORDER BY k.place, p.side)"
						" FROM pg_catalog.unnest(t.key) WITH ORDINALITY k (value, place),"
						/* a name and a type for each column */
						" LATERAL (VALUES"
						" (1, t.key_columns[2 OPERATOR(pg_catalog.*) k.place"
						" OPERATOR(pg_catalog.-) 1]), (2, k.value)) p (side, part))"
						" FROM repl_ml.tombstone t JOIN repl_ml.void_transaction v"
						" ON t.xmin OPERATOR(pg_catalog.=) ANY (v.xids)"
						" WHERE v.undone_at IS NULL"
						" AND t.schema_name OPERATOR(pg_catalog.=) $1::pg_catalog.name"
						" AND t.table_name OPERATOR(pg_catalog.=) $2::pg_catalog.name LIMIT "
						MOST_REMAINS_TEXT, 2, types, values, NULL);
	repl_ml_spi_execute("DELETE FROM repl_ml.tombstone"
						" WHERE schema_name OPERATOR(pg_catalog.=) $1::pg_catalog.name"
						" AND table_name OPERATOR(pg_catalog.=) $2::pg_catalog.name", 2, types,
						values, NULL);
	repl_ml_spi_execute("DELETE FROM repl_ml.concurrent_version"
						" WHERE schema_name OPERATOR(pg_catalog.=) $1::pg_catalog.name"
						" AND table_name OPERATOR(pg_catalog.=) $2::pg_catalog.name", 2, types,
						values, NULL);
	CommandCounterIncrement();
	/* what comes meets nothing */
	PopActiveSnapshot();
	PushActiveSnapshot(GetLatestSnapshot());
}

/*
 * Asks the donor up to where it shows what has not been acknowledged: 0 where there is no such
 * transaction.
 */
static int64
ask_given_up(ReplMlApply *apply, WalReceiverConn *conn)
{
	static const Oid types[1] = {INT8OID};
	ReplMlResult *result = repl_ml_stream_query(conn, "SELECT repl_ml.strong_given_up()", 1, types);
	int64		given_up = 0;

	if (repl_ml_stream_next(result))
	{
		slot_getallattrs(result->slot);
		given_up = DatumGetInt64(result->slot->tts_values[0]);
	}
	repl_ml_stream_free(result);
	return given_up;
}

/*
 * Called by fetch.c in the copy's transaction, when all has come: notes it, if this was the
 * last of the tables that are replaced.  What of the donor's may have come with it without
 * being acknowledged is here from now on, and is needed by whoever has the lease next.
 */
void
repl_ml_replace_finish(ReplMlApply *apply, WalReceiverConn *conn)
{
	Oid			types[2] = {INT4OID, INT8OID};
	Datum		values[2] = {Int32GetDatum(apply->peer->node_id),
	Int64GetDatum(ask_given_up(apply, conn))};

	if (DatumGetInt64(values[1]) != 0)
		repl_ml_spi_execute("UPDATE repl_ml.lease_state SET mending = repl_ml.merge(mending,"
							" pg_catalog.format('{%s:%s}', $1, $2)::repl_ml.vclock)", 2, types,
							values, NULL);
	repl_ml_spi_execute("SELECT repl_ml.finish_mending()", 0, NULL, NULL, NULL);
}
