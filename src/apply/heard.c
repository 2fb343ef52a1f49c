/*
 * heard.c
 *		The numbers of the peer's heartbeats: whether something of its stream was
 *		passed over.
 *
 * A slot and an origin go on from where they are, whoever put them there.  So
 * each node numbers its heartbeats, and here is kept, in the transaction that
 * moves the origin, which one came last.  The stream has every one of them:
 * they are in the peer's WAL in order, a crash there takes the last ones with
 * all that is behind them, and what is acknowledged is durable here.  So after a
 * gap somebody has moved the slot or the origin, or made the slot anew, and
 * the link is made anew (copy/link.c).  A number that is not greater is a
 * repetition.
 *
 * A peer's server has at its start all that an earlier one had sent, as only what
 * is durable is sent.  So it notes the number that it finds then, and who has
 * heard a later one, of a former start, knows that an older state was put in the
 * peer's place: see repl_ml.note_set_back().
 *
 * What goes missing between two heartbeats is found by link.c.  Called by
 * change.c with each heartbeat of the stream, also one that is parked, and
 * by copy/link.c.  No locks but that of the peer's row.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/xact.h"
#include "catalog/indexing.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "utils/builtins.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

#include "apply/apply.h"
#include "server/server.h"

enum
{
	Anum_heard_node_id = 1,
	Anum_heard_sequence
};

/* Makes the row of a peer that has none; nothing that came over its link is known. */
static void
insert_row(int node)
{
	Oid			types[1] = {INT4OID};
	Datum		values[1] = {Int32GetDatum(node)};

	repl_ml_spi_execute("INSERT INTO repl_ml.heard (node_id) VALUES ($1) ON CONFLICT DO NOTHING", 1,
						types, values, NULL);
}

/*
 * Returns the peer's row, in a copy, as this transaction has left it; NULL if there is none.  The
 * table has a row for each peer.
 */
static HeapTuple
find_row(Relation rel, int node)
{
	SysScanDesc scan = systable_beginscan(rel, InvalidOid, false, SnapshotSelf, 0, NULL);
	HeapTuple	tuple;
	HeapTuple	found = NULL;
	bool		isnull;

	while (found == NULL && HeapTupleIsValid(tuple = systable_getnext(scan)))
	{
		if (DatumGetInt32(heap_getattr(tuple, Anum_heard_node_id, RelationGetDescr(rel),
									   &isnull)) == node)
			found = heap_copytuple(tuple);
	}
	systable_endscan(scan);
	return found;
}

/*
 * Writes the number down if it is the next one, or not greater than the last, or the first; else
 * returns false.  Without SQL, as that would be most of what an idle worker does; nobody but the
 * peer's worker writes the row.
 */
static bool
note_sequence(int node, int64 sequence)
{
	Relation	rel = table_open(repl_ml_catalog_oid("heard"), RowExclusiveLock);
	HeapTuple	row = find_row(rel, node);
	int			column = Anum_heard_sequence;
	Datum		value = Int64GetDatum(sequence);
	bool		isnull;
	int64		last;

	if (row == NULL)
	{
		insert_row(node);
		row = find_row(rel, node);
	}
	if (row == NULL)
		elog(ERROR, "node %d has no row in repl_ml.heard", node);
	last = DatumGetInt64(heap_getattr(row, Anum_heard_sequence, RelationGetDescr(rel), &isnull));
	if (!isnull && sequence - 1 > last)
	{
		table_close(rel, NoLock);
		return false;
	}
	isnull = false;
	CatalogTupleUpdate(rel, &row->t_self,
					   heap_modify_tuple_by_cols(row, RelationGetDescr(rel), 1, &column, &value,
												 &isnull));
	CommandCounterIncrement();
	table_close(rel, NoLock);
	return true;
}

/*
 * Called by change.c, in the transaction of the heartbeat, with its number as
 * text.  Raises an error, which is no transaction's, if one is missing before it:
 * nothing of what follows is applied before the link has been made anew.
 */
void
repl_ml_heard_note(ReplMlApply *apply, const char *text)
{
	bool		follows;

	if (text == NULL)
		return;
	follows = note_sequence(apply->peer->node_id, strtoll(text, NULL, 10));
	if (follows)
	{
		repl_ml_network_heartbeat(apply, 0);
		return;
	}
	repl_ml_network_heartbeat(apply, 1);
	apply->connection.passed_over = true;
	ereport(ERROR,
			(errcode(ERRCODE_CONNECTION_FAILURE),
			 errmsg("a part of what node \"%s\" has written was passed over",
					apply->peer->node_name),
			 errhint("Leave it alone: the link is made anew, and all tables are copied from that "
					 "node.")));
}

/*
 * Called by the apply worker before the link is made anew, in the transaction that
 * orders the copies: what came last over the old one means nothing.  "incomplete": until
 * they have been made, how far this node has the peer's WAL is not known.
 */
void
repl_ml_heard_forget(ReplMlApply *apply, bool incomplete)
{
	Oid			types[2] = {INT4OID, BOOLOID};
	Datum		values[2] = {Int32GetDatum(apply->peer->node_id), BoolGetDatum(incomplete)};

	repl_ml_spi_execute("UPDATE repl_ml.heard SET sequence = NULL, incomplete = $2"
						" WHERE node_id OPERATOR(pg_catalog.=) $1", 2, types, values, NULL);
	apply->connection.incomplete = incomplete;
}

/*
 * Says, for the apply worker, whether copies are not done that the link was made anew
 * for, perhaps before a restart.  Within repl_ml_begin and repl_ml_commit.
 */
bool
repl_ml_heard_is_incomplete(const ReplMlApply *apply)
{
	return repl_ml_query_int(psprintf("SELECT 1 FROM repl_ml.heard"
									  " WHERE node_id OPERATOR(pg_catalog.=) %d AND incomplete",
									  apply->peer->node_id)) != 0;
}

/*
 * Called by the apply worker, outside a transaction, when it has made all copies that
 * can be made: what could not be copied, health names.
 */
void
repl_ml_heard_complete(ReplMlApply *apply)
{
	if (!apply->connection.incomplete)
		return;
	repl_ml_begin();
	SPI_execute(psprintf("UPDATE repl_ml.heard SET incomplete = false"
						 " WHERE node_id OPERATOR(pg_catalog.=) %d", apply->peer->node_id), false,
				0);
	repl_ml_commit();
	MemoryContextSwitchTo(apply->message_context);
	apply->connection.incomplete = false;
}

/*
 * Called by the apply worker, in a transaction, when the peer has as much as this
 * node knows of it: its server was started at "server_start", as this incarnation
 * of the node.  What comes from now on comes from there, and what is a lesser one is
 * the node no more.
 */
void
repl_ml_heard_start(const ReplMlApply *apply, TimestampTz server_start, int incarnation)
{
	Oid			types[3] = {INT4OID, TIMESTAMPTZOID, INT4OID};
	Datum		values[3] = {Int32GetDatum(apply->peer->node_id),
	TimestampTzGetDatum(server_start), Int32GetDatum(incarnation)};

	repl_ml_spi_execute("INSERT INTO repl_ml.heard AS h (node_id, server_start, incarnation)"
						" VALUES ($1, $2, $3) ON CONFLICT (node_id) DO UPDATE"
						" SET server_start = excluded.server_start,"
						" incarnation = excluded.incarnation"
						" WHERE (h.server_start, h.incarnation)"
						" IS DISTINCT FROM (excluded.server_start, excluded.incarnation)",
						3, types, values, NULL);
}

/*
 * Raises, also for copy/starts.c, the error that the peer may have what a node wrote late: it is no
 * transaction's, and the next connection waits until that is known to be whose it is.
 */
void
repl_ml_heard_refuse(const ReplMlApply *apply, const char *node_name, const char *started_at)
{
	ereport(ERROR,
			(errcode(ERRCODE_CONNECTION_FAILURE),
			 errmsg("node \"%s\" may have rows that node \"%s\" wrote after it had been set back",
					apply->peer->node_name, node_name),
			 errdetail("Its server was started at %s with less than it had sent. What it has "
					   "written since must not pass for newer than what it had forgotten.",
					   started_at),
			 errhint("It comes back by itself as soon as it and more than half of the other "
					 "members can be reached. If it will not come back, run SELECT "
					 "repl_ml.drop_node(%s).", quote_literal_cstr(node_name))));
}

/*
 * Called by change.c with a row of repl_ml.peer_start that comes in the stream, as texts and in
 * the order of find_late()'s words for it, before anything that the peer has written since: raises
 * an error if it shows a node to have been set back.
 */
void
repl_ml_heard_peer_start(const ReplMlApply *apply, Datum *values)
{
	Oid			types[6] = {TEXTOID, TEXTOID, TEXTOID, TEXTOID, TEXTOID, TEXTOID};
	char	   *name;

	SPI_connect();
	PushActiveSnapshot(GetTransactionSnapshot());
	SPI_execute_with_args("SELECT node_name, started_at FROM repl_ml.find_late('[]',"
						  " pg_catalog.jsonb_build_object('node_id', $1, 'started_at', $2,"
						  " 'sequence', $3, 'lsn', $4, 'safe_counter', $5, 'counter', $6))"
						  " WHERE NOT is_gone", 6, types, values, NULL, false, 1);
	PopActiveSnapshot();
	name = SPI_processed == 0 ? NULL : repl_ml_spi_text(0, 0);
	if (name != NULL)
		repl_ml_heard_refuse(apply, name, repl_ml_spi_text(0, 1));
	SPI_finish();
}
