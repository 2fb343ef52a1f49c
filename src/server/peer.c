/*
 * peer.c
 *		The other members: what the catalog knows of them, what their link is
 *		called, and commands to them from SQL.
 *
 * Not here: how a link is made (copy/link.c), nor which members can be reached
 * (commit/members.c).  repl_ml_origin_create locks pg_replication_origin while it
 * looks for a number, as core does.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/xact.h"
#include "catalog/indexing.h"
#include "catalog/pg_replication_origin.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "replication/origin.h"
#include "tcop/tcopprot.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"

#include "compat.h"
#include "server/server.h"
#include "wire/wire.h"

#define ANSWER_MS	30000	/* how long a server may take to answer */

/* of origins that repl_ml makes; core would get here after 32,767 others */
#define FIRST_ORIGIN	((RepOriginId) 0x8000)

static bool is_origin_taken(Relation rel, RepOriginId id);

/*
 * Returns the name of the origin that tracks a peer in a database, and, with
 * the peer's database and our id, of the slot there that serves us.
 */
char *
repl_ml_origin_name(Oid database, int peer)
{
	return psprintf("repl_ml_%u_%d", database, peer);
}

PG_FUNCTION_INFO_V1(repl_ml_link_name);

/* repl_ml.link_name(node_id): returns the name of a peer's origin and slot in this database. */
Datum
repl_ml_link_name(PG_FUNCTION_ARGS)
{
	PG_RETURN_TEXT_P(cstring_to_text(repl_ml_origin_name(MyDatabaseId, PG_GETARG_INT32(0))));
}

/* Says whether it is such a name, and sets whose. */
bool
repl_ml_origin_parse(const char *name, Oid *database, int *peer)
{
	int			used = 0;

	return sscanf(name, "repl_ml_%u_%d%n", database, peer, &used) == 2 && name[used] == '\0';
}

/*
 * Makes an origin of ours, in the caller's transaction.  Its number is one that
 * core, which takes the least free one, never gives: so the WAL tells for ever,
 * whichever origins have been dropped and whose number they had, what our apply
 * workers wrote and what came by a subscription of core's or a user's origin.
 */
RepOriginId
repl_ml_origin_create(const char *name)
{
	Relation	rel = table_open(ReplicationOriginRelationId, ExclusiveLock);
	RepOriginId id = FIRST_ORIGIN;
	Datum		values[Natts_pg_replication_origin];
	bool		nulls[Natts_pg_replication_origin] = {false};

	while (id < DoNotReplicateId && is_origin_taken(rel, id))
		id++;
	if (id == DoNotReplicateId)
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("could not find a free number for the replication origin \"%s\"", name),
				 errhint("Remove origins that are not used with pg_replication_origin_drop().")));
	values[Anum_pg_replication_origin_roident - 1] = ObjectIdGetDatum(id);
	values[Anum_pg_replication_origin_roname - 1] = CStringGetTextDatum(name);
	CatalogTupleInsert(rel, heap_form_tuple(RelationGetDescr(rel), values, nulls));
	table_close(rel, ExclusiveLock);
	CommandCounterIncrement();
	return id;
}

/*
 * Says whether some origin has the number, or will if a transaction in
 * progress commits.
 */
static bool
is_origin_taken(Relation rel, RepOriginId id)
{
	SnapshotData dirty;
	ScanKeyData key;
	SysScanDesc scan;
	bool		taken;

	InitDirtySnapshot(dirty);
	ScanKeyInit(&key, Anum_pg_replication_origin_roident, BTEqualStrategyNumber, F_OIDEQ,
				ObjectIdGetDatum(id));
	scan = systable_beginscan(rel, ReplicationOriginIdentIndex, true, &dirty, 1, &key);
	taken = HeapTupleIsValid(systable_getnext(scan));
	systable_endscan(scan);
	return taken;
}

/*
 * Says whether repl_ml_origin_create has given the number, or whether it is
 * core's for what is not to be sent on.
 */
bool
repl_ml_origin_is_ours(RepOriginId id)
{
	return id >= FIRST_ORIGIN;
}

/*
 * Returns a member by its id; raises an error if there is none or it has been
 * dropped.  The result is good until the next call.  An apply worker calls it
 * between repl_ml_begin and repl_ml_commit.
 */
ReplMlPeer *
repl_ml_peer_load(int node_id)
{
	static ReplMlPeer peer;

	SPI_execute(psprintf("SELECT node_name, dsn, state, repl_ml.known_incarnation(node_id)"
						 " FROM repl_ml.member"
						 " WHERE node_id OPERATOR(pg_catalog.=) %d", node_id), true, 1);
	if (SPI_processed == 0 || strcmp(repl_ml_spi_text(0, 2), "dropped") == 0)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("node %d is not a member of the group", node_id),
				 errhint("See SELECT node_id, node_name, state FROM repl_ml.member.")));

	/* it outlives the transaction, so the one before is freed here */
	if (peer.node_name != NULL)
	{
		pfree(peer.node_name);
		pfree(peer.dsn);
		pfree(peer.state);
	}
	peer.node_id = node_id;
	peer.node_name = MemoryContextStrdup(TopMemoryContext, repl_ml_spi_text(0, 0));
	peer.dsn = MemoryContextStrdup(TopMemoryContext, repl_ml_spi_text(0, 1));
	peer.state = MemoryContextStrdup(TopMemoryContext, repl_ml_spi_text(0, 2));
	peer.incarnation = atoi(repl_ml_spi_text(0, 3));
	return &peer;
}

PG_FUNCTION_INFO_V1(repl_ml_probe);

/*
 * repl_ml.probe(dsn): connects and tells where that leads; raises 08001 if
 * nowhere.
 */
Datum
repl_ml_probe(PG_FUNCTION_ARGS)
{
	static const Oid types[6] = {INT8OID, OIDOID, TEXTOID, INT4OID, TEXTOID, TEXTOID};

	/* the locale's column is daticulocale until 16, datlocale from 17 on */
	static const char *const query =
		"SELECT s.system_identifier, d.oid, d.datname::pg_catalog.text,"
		" pg_catalog.current_setting('server_version_num')::pg_catalog.int4,"
		" pg_catalog.getdatabaseencoding()::pg_catalog.text,"
		" pg_catalog.concat_ws('/', d.datlocprovider, d.datcollate, d.datctype,"
		" pg_catalog.to_jsonb(d) OPERATOR(pg_catalog.->>) 'daticulocale',"
		" pg_catalog.to_jsonb(d) OPERATOR(pg_catalog.->>) 'datlocale')"
		" FROM pg_catalog.pg_control_system() s, pg_catalog.pg_database d"
		" WHERE d.datname OPERATOR(pg_catalog.=) pg_catalog.current_database()";
	WalReceiverConn *conn;
	Datum		values[8];
	bool		nulls[8] = {false};
	TupleDesc	desc;
	HeapTuple volatile tuple = NULL;

	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	conn = repl_ml_stream_connect(text_to_cstring(PG_GETARG_TEXT_PP(0)), "probe");
	PG_TRY();
	{
		ReplMlResult *result = repl_ml_stream_query(conn, query, lengthof(types), types);
		char	   *host = NULL;
		int			port = 0;

		if (!repl_ml_stream_next(result))
			ereport(ERROR,
					(errcode(ERRCODE_PROTOCOL_VIOLATION),
					 errmsg("the peer returned no row for its identity"),
					 errhint("Check that the connection string leads to a PostgreSQL server.")));

		/* host and port are what libpq has found, of several perhaps */
		slot_getallattrs(result->slot);
		walrcv_get_senderinfo(conn, &host, &port);
		values[0] = result->slot->tts_values[0];
		values[1] = result->slot->tts_values[1];
		values[2] = result->slot->tts_values[2];
		values[5] = result->slot->tts_values[3];
		values[6] = result->slot->tts_values[4];
		values[7] = result->slot->tts_values[5];
		nulls[3] = host == NULL;
		values[3] = host == NULL ? (Datum) 0 : CStringGetTextDatum(host);
		values[4] = Int32GetDatum(port);
		tuple = heap_form_tuple(BlessTupleDesc(desc), values, nulls);
		repl_ml_stream_free(result);
	}
	PG_FINALLY();
	{
		repl_ml_stream_disconnect(conn);
	}
	PG_END_TRY();
	PG_RETURN_DATUM(HeapTupleGetDatum(tuple));
}

PG_FUNCTION_INFO_V1(repl_ml_may_invite);

/* repl_ml.may_invite(dsn): says whether join_group would be let in with it. */
Datum
repl_ml_may_invite(PG_FUNCTION_ARGS)
{
	char	   *answer =
		repl_ml_ask_one(text_to_cstring(PG_GETARG_TEXT_PP(0)),
						"SELECT pg_catalog.pg_has_role(oid, 'USAGE') FROM pg_catalog.pg_roles"
						" WHERE rolname OPERATOR(pg_catalog.=) 'repl_ml_admin'",
						0, NULL, TimestampTzPlusMilliseconds(GetCurrentTimestamp(), ANSWER_MS));

	PG_RETURN_BOOL(answer != NULL && strcmp(answer, "t") == 0);
}

PG_FUNCTION_INFO_V1(repl_ml_hide_statement);

/*
 * repl_ml.hide_statement(): the client's statement, which holds a connection
 * string, is shown neither in pg_stat_activity nor with errors in the log.
 */
Datum
repl_ml_hide_statement(PG_FUNCTION_ARGS)
{
	static const char *const shown = "repl_ml: a statement with a connection string";

	if (debug_query_string != NULL)
	{
		debug_query_string = shown;
		pgstat_report_activity(STATE_RUNNING, shown);
	}
	PG_RETURN_VOID();
}

PG_FUNCTION_INFO_V1(repl_ml_run_on_peer);

/*
 * repl_ml.run_on_peer(dsn, command): runs the command there; its error is
 * raised here.
 */
Datum
repl_ml_run_on_peer(PG_FUNCTION_ARGS)
{
	WalReceiverConn *conn = repl_ml_stream_connect(text_to_cstring(PG_GETARG_TEXT_PP(0)),
												   "command");

	PG_TRY();
	{
		repl_ml_stream_command(conn, text_to_cstring(PG_GETARG_TEXT_PP(1)));
	}
	PG_FINALLY();
	{
		repl_ml_stream_disconnect(conn);
	}
	PG_END_TRY();
	PG_RETURN_VOID();
}

PG_FUNCTION_INFO_V1(repl_ml_require_member);

/*
 * repl_ml.require_member(): returns this node's id and name, or raises why it
 * cannot act.
 */
Datum
repl_ml_require_member(PG_FUNCTION_ARGS)
{
	const ReplMlIdentity *self = repl_ml_identity_require();
	NameData	name = self->node_name;
	Datum		values[2] = {Int32GetDatum(self->node_id), NameGetDatum(&name)};
	bool		nulls[2] = {false, false};
	TupleDesc	desc;

	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(desc), values, nulls)));
}
