/*
 * await.c
 *		Before a node that joins is copied from its donor: waits until the donor has
 *		what nobody keeps for the new node.
 *
 * Our slots on the other members keep what they write from now on; what they
 * wrote before has to be in the copy.  What the donor has parked will not be in
 * it, and is noted here as parked.
 *
 * Runs in the apply worker of the donor's link; holds no lock while it waits.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "storage/latch.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/memutils.h"
#include "utils/pg_lsn.h"

#include "apply/apply.h"
#include "compat.h"
#include "copy/copy.h"
#include "server/server.h"
#include "wire/wire.h"

#define DONOR_PATIENCE_MS	30000	/* how long a donor may take to catch up */
#define POLL_MS				100
#define LOOKS_A_HEARING		5	/* between two of the donor's catalogs */

/* Another member, as the donor has its changes. */
typedef struct OtherMember
{
	int			node_id;
	XLogRecPtr	from;			/* what the donor must have of it, invalid: no
								 * link yet */
	bool		fails;			/* connecting to it has failed */
	bool		donor_has_it;
} OtherMember;

static List *load_others(ReplMlApply *apply);
static bool donor_has(ReplMlApply *apply, OtherMember *other);
static bool donor_is_settled(ReplMlApply *apply, List *others);
static bool others_return(ReplMlApply *apply);
static void stop_waiting(List *others);
static void note_parked_there(ReplMlApply *apply);

/*
 * Called by the apply worker between the slots and the copy: waits, while this
 * node joins and this peer is the donor, until the donor has what the slots of
 * the others do not keep for us.  A member that cannot be reached is not waited for; it is copied
 * from when it is back (link.c), as is one the donor does not catch up with.
 */
void
repl_ml_await_donor(ReplMlApply *apply)
{
	TimestampTz start = GetCurrentTimestamp();
	bool		concerned;
	int			looks = 0;
	List	   *others;

	repl_ml_begin();
	concerned = repl_ml_query_int(psprintf("SELECT 1 FROM repl_ml.local_node"
										   " WHERE state OPERATOR(pg_catalog.=) 'joining'"
										   " AND donor OPERATOR(pg_catalog.=) %d",
										   apply->peer->node_id)) != 0;
	repl_ml_commit();
	if (!concerned)
		return;

	for (;;)
	{
		repl_ml_begin();
		others = load_others(apply);
		repl_ml_commit();
		if ((donor_is_settled(apply, others) && !others_return(apply)) ||
			TimestampDifferenceExceeds(start, GetCurrentTimestamp(), DONOR_PATIENCE_MS))
			break;
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, POLL_MS,
						 wait_event_compat("ReplMlDonor"));
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
		/* who is waited for cannot register here before this node has heard of its invitation */
		if (++looks % LOOKS_A_HEARING == 0)
			repl_ml_sync_catalogs(apply, apply->connection.stream);
	}
	repl_ml_sync_catalogs(apply, apply->connection.stream);
	note_parked_there(apply);
	stop_waiting(others);
}

/*
 * Says whether this node comes back after it was set back, and others do, too, but are not
 * registered yet: what they wrote late may be here, and is renamed first (former.c).
 */
static bool
others_return(ReplMlApply *apply)
{
	static const Oid types[1] = {BOOLOID};
	ReplMlResult *result;
	bool		returns;

	repl_ml_begin();
	returns = repl_ml_identity_require()->former_node != 0;
	repl_ml_commit();
	MemoryContextSwitchTo(apply->message_context);
	if (!returns)
		return false;
	result = repl_ml_stream_query(apply->connection.stream,
								  psprintf("SELECT repl_ml.others_return(%d)", apply->self), 1,
								  types);
	returns = repl_ml_stream_next(result) &&
		(slot_getallattrs(result->slot), DatumGetBool(result->slot->tts_values[0]));
	repl_ml_stream_free(result);
	return returns;
}

/* Returns the other members, our link to each, and whether it fails. */
static List *
load_others(ReplMlApply *apply)
{
	List	   *others = NIL;

	SPI_execute(psprintf("SELECT node_id, lsn, fails FROM repl_ml.link_beginnings(%d)",
						 apply->peer->node_id), false, 0);
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		char	   *lsn = repl_ml_spi_text(i, 1);
		char	   *fails = repl_ml_spi_text(i, 2);
		MemoryContext old = MemoryContextSwitchTo(apply->message_context);
		OtherMember *other = palloc0(sizeof(OtherMember));

		other->node_id = atoi(repl_ml_spi_text(i, 0));
		other->from = lsn == NULL ? InvalidXLogRecPtr :
			DatumGetLSN(DirectFunctionCall1(pg_lsn_in, CStringGetDatum(lsn)));
		other->fails = fails != NULL && strcmp(fails, "t") == 0;
		others = lappend(others, other);
		MemoryContextSwitchTo(old);
	}
	return others;
}

/*
 * Says whether the donor has everything that the other member wrote before we
 * linked to it.
 */
static bool
donor_has(ReplMlApply *apply, OtherMember *other)
{
	static const Oid types[1] = {BOOLOID};
	ReplMlResult *result;
	bool		has;

	if (other->from == InvalidXLogRecPtr)
		return false;
	result = repl_ml_stream_query(apply->connection.stream,
								  psprintf("SELECT repl_ml.applied_lsn(%d) OPERATOR(pg_catalog.>=)"
										   " '%X/%X'::pg_catalog.pg_lsn",
										   other->node_id, LSN_FORMAT_ARGS(other->from)), 1, types);
	has = repl_ml_stream_next(result) &&
		(slot_getallattrs(result->slot), DatumGetBool(result->slot->tts_values[0]));
	repl_ml_stream_free(result);
	return has;
}

/*
 * Looks at all others once; returns false while it is worth waiting for one of
 * them.
 */
static bool
donor_is_settled(ReplMlApply *apply, List *others)
{
	bool		settled = true;
	ListCell   *lc;

	foreach(lc, others)
	{
		OtherMember *other = lfirst(lc);

		other->donor_has_it = donor_has(apply, other);
		/* one that was never reached is down: nothing to wait for */
		if (!other->donor_has_it && !(other->fails && other->from == InvalidXLogRecPtr))
			settled = false;
	}
	return settled;
}

/*
 * Orders what the donor lacks of a member from that member, and begins to
 * copy.
 */
static void
stop_waiting(List *others)
{
	ListCell   *lc;

	repl_ml_begin();
	foreach(lc, others)
	{
		OtherMember *other = lfirst(lc);

		if (!other->donor_has_it)
			SPI_execute(psprintf("SELECT repl_ml.order_copies(%d)", other->node_id), false, 0);
	}
	SPI_execute("UPDATE repl_ml.local_node SET state = 'copying'"
				" WHERE state OPERATOR(pg_catalog.=) 'joining'", false, 0);
	repl_ml_commit();
}

/*
 * Notes what the donor has parked, or put aside: it will not be in the copy,
 * nor come in our streams, so for us it is as if it had been counted here, and
 * the tables are copied from where it comes, as soon as they fit (retry.c).
 */
static void
note_parked_there(ReplMlApply *apply)
{
	static const Oid result_types[1] = {TEXTOID};
	ReplMlResult *result = repl_ml_stream_query(apply->connection.stream,
												"SELECT coalesce(pg_catalog.jsonb_agg(p),"
												" '[]')::pg_catalog.text"
												" FROM repl_ml.parked_tables() p",
												1, result_types);
	Oid			types[1] = {TEXTOID};
	Datum		values[1] = {CStringGetTextDatum("[]")};

	if (repl_ml_stream_next(result) &&
		(slot_getallattrs(result->slot), !result->slot->tts_isnull[0]))
	{
		MemoryContextSwitchTo(apply->message_context);
		values[0] = CStringGetTextDatum(TextDatumGetCString(result->slot->tts_values[0]));
	}
	repl_ml_stream_free(result);
	StartTransactionCommand();
	repl_ml_spi_execute("INSERT INTO repl_ml.parked_change (origin_node, origin_xid, origin_lsn,"
						" schema_name, table_name, action, change, sqlstate, message)"
						" SELECT p.origin_node, p.origin_xid, p.origin_lsn, p.schema_name,"
						" p.table_name, 'counted', '{\"changes\": 1}', '55000',"
						" 'the node that this one was copied from had not applied it yet'"
						" FROM pg_catalog.jsonb_to_recordset($1::pg_catalog.jsonb) p"
						" (origin_node int, origin_xid xid, origin_lsn pg_lsn,"
						" schema_name name, table_name name)"
						" ON CONFLICT DO NOTHING", 1, types, values, NULL);
	CommitTransactionCommand();
	MemoryContextSwitchTo(apply->message_context);
}
