/*
 * dropped.c
 *		Dropped nodes: whoever has less of what one wrote than the peer copies all
 *		tables from it.
 *
 * One may have reached one member and not another before it died, and nothing
 * more comes of it.  So each apply worker compares, before it streams and beside
 * its stream when a node is dropped, and orders the copies (sync.c makes them).
 * Takes no lock but those of the catalogs.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "utils/builtins.h"
#include "utils/pg_lsn.h"

#include "apply/apply.h"
#include "compat.h"
#include "copy/copy.h"
#include "server/server.h"
#include "wire/wire.h"


/* How far a peer had a dropped node. */
typedef struct Final
{
	XLogRecPtr	lsn;			/* 0/0 if it came later */
	char	   *server_start;	/* of which start of its server, if that is known */
} Final;

static bool ask_final(WalReceiverConn *conn, int node_id, Final *final);
static void settle_dropped(ReplMlApply *apply, int node_id, const Final *theirs);

/*
 * Called by the apply worker before it streams, and between transactions of the
 * stream over another connection: compares with the peer how much each has of
 * dropped nodes, and orders a copy of all tables from a peer that has more.
 */
void
repl_ml_dropped_compare(ReplMlApply *apply, WalReceiverConn *conn)
{
	List	   *nodes = NIL;
	ListCell   *lc;

	repl_ml_begin();
	SPI_execute(psprintf("SELECT node_id FROM repl_ml.dropped_node"
						 " WHERE %d OPERATOR(pg_catalog.<>) ALL (compared)", apply->peer->node_id),
				true, 0);
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		MemoryContext old = MemoryContextSwitchTo(apply->message_context);

		nodes = lappend_int(nodes, pg_strtoint32(repl_ml_spi_text(i, 0)));
		MemoryContextSwitchTo(old);
	}
	repl_ml_commit();
	MemoryContextSwitchTo(apply->message_context);
	foreach(lc, nodes)
	{
		Final		theirs = {0};

		/* one of which the peer may still get more is asked for later */
		if (ask_final(conn, lfirst_int(lc), &theirs))
			settle_dropped(apply, lfirst_int(lc), &theirs);
	}
}

/* Sets how far the peer had applied a dropped node; returns false while it may still go on. */
static bool
ask_final(WalReceiverConn *conn, int node_id, Final *final)
{
	static const Oid types[2] = {PG_LSNOID, TEXTOID};
	const char *query = psprintf("SELECT f.lsn, f.server_start::pg_catalog.text"
								 " FROM repl_ml.final_lsn(%d) f", node_id);
	ReplMlResult *result = repl_ml_stream_query(conn, query, 2, types);
	bool		known = false;

	if (repl_ml_stream_next(result))
	{
		slot_getallattrs(result->slot);
		known = !result->slot->tts_isnull[0];
		if (known)
			final->lsn = DatumGetLSN(result->slot->tts_values[0]);
		if (known && !result->slot->tts_isnull[1])
			final->server_start = TextDatumGetCString(result->slot->tts_values[1]);
	}
	repl_ml_stream_free(result);
	return known;
}

/*
 * Notes that the peer's part of a dropped node is known; orders a copy if it
 * has more, or has it of another start of the server: if the node was set back in
 * between, positions are not of one WAL.
 */
static void
settle_dropped(ReplMlApply *apply, int node_id, const Final *theirs)
{
	repl_ml_begin();
	SPI_execute(psprintf("SELECT repl_ml.order_copies(%d) FROM repl_ml.dropped_node d"
						 " WHERE d.node_id OPERATOR(pg_catalog.=) %d"
						 " AND (d.applied_lsn OPERATOR(pg_catalog.<) '%X/%X'::pg_catalog.pg_lsn"
						 " OR d.server_start OPERATOR(pg_catalog.<>) %s::pg_catalog.timestamptz)",
						 apply->peer->node_id, node_id, LSN_FORMAT_ARGS(theirs->lsn),
						 theirs->server_start == NULL ? "NULL" :
						 quote_literal_cstr(theirs->server_start)), false, 0);
	SPI_execute(psprintf("UPDATE repl_ml.dropped_node"
						 " SET compared = compared OPERATOR(pg_catalog.||) %d"
						 " WHERE node_id OPERATOR(pg_catalog.=) %d", apply->peer->node_id, node_id),
				false, 0);
	repl_ml_commit();
	MemoryContextSwitchTo(apply->message_context);
}
