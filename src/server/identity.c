/*
 * identity.c
 *		Who this database is in its group, and whether it still is.
 *
 * The one row of repl_ml.local_node holds the node's id together with a
 * fingerprint of the place it lives in: system identifier, timeline, database
 * and the device and inode of $PGDATA/PG_VERSION.  A copied, restored or
 * promoted data directory has another fingerprint: it is fenced, which means
 * it neither writes enrolled tables nor talks to peers, because two servers
 * that stamp rows with one node id would silently lose each other's writes.
 *
 * The fingerprint only raises the question; the other members answer it.  They
 * know how far the node had come and whether another server runs as it
 * (repl_ml.claim_identity, vouch_for).  Where it is the same server and database
 * in other files, as of a volume that was attached anew or a directory that was
 * moved, or on another timeline, as of a standby that was promoted or a recovery
 * to an earlier time, the supervisor asks them; where too few of them can be
 * reached a person decides, with repl_ml.confirm_identity(force => true).  Each
 * yes is the node's next incarnation: whoever runs under a lesser one is fenced as
 * soon as it meets a member that knows (copy/link.c).  Where they have more of the
 * node than is here, it was set back (repl_ml.note_set_back).
 *
 * What is here of the node is its WAL up to where the timeline was left that it
 * last ran on: whatever came after that is no write of the node's.  What peers have
 * is the end of a transaction in its WAL.  So the one is compared with the other,
 * and never with the end of the WAL here.
 *
 * The row is cached per process; a trigger on the table invalidates it.  Not
 * here: who else is in the group (peer.c).  No locks but that of the table while
 * it is read.
 */
#include "postgres.h"

#include <sys/stat.h>

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/timeline.h"
#include "access/xlog.h"
#include "access/xlogrecovery.h"
#include "catalog/namespace.h"
#include "commands/trigger.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/pg_lsn.h"
#include "utils/snapmgr.h"
#include "utils/xid8.h"

#include "compat.h"
#include "server/server.h"

#define LOCAL_NODE_TABLE	"local_node"
#define SUPERSEDED			"superseded"	/* in place of a directory: see copy/link.c */

enum
{
	Anum_node_id = 1,
	Anum_node_name,
	Anum_group_name,
	Anum_group_id,
	Anum_state,
	Anum_system_identifier,
	Anum_timeline,
	Anum_database,
	Anum_directory,
	Anum_donor,
	Anum_copy_data,
	Anum_incarnation,
	Anum_keep,
	Anum_former_node,
	Anum_former_safe,
	Anum_former_counter,
	Anum_secret_hash,
	Anum_schema_base,
	Natts_local_node = Anum_schema_base
};

static ReplMlIdentity cached;
static bool cache_valid = false;
static Oid	local_node_relid = InvalidOid;

static void load_identity(ReplMlIdentity *identity);
static void compare_fingerprint(Datum *values, ReplMlIdentity *identity);

/*
 * A callback of the relation cache: forgets the cached row when the catalog
 * (or, relid 0, anything) changes.  While the catalog is not known to exist,
 * any new relation may be it.
 */
static void
invalidate(Datum arg, Oid relid)
{
	if (relid == InvalidOid || relid == local_node_relid || local_node_relid == InvalidOid)
		cache_valid = false;
}

/*
 * Returns this database's identity.  "member" is false where there is no group
 * or no extension.  The pointer is good until the next call.  Needs a
 * transaction.
 */
const ReplMlIdentity *
repl_ml_identity(void)
{
	static bool registered = false;

	if (!registered)
	{
		CacheRegisterRelcacheCallback(invalidate, (Datum) 0);
		registered = true;
	}
	if (!cache_valid)
	{
		ReplMlIdentity fresh;

		/* valid before the read: what arrives while we read must count */
		cache_valid = true;
		PG_TRY();
		{
			load_identity(&fresh);
		}
		PG_CATCH();
		{
			cache_valid = false;
			PG_RE_THROW();
		}
		PG_END_TRY();
		cached = fresh;
		/* a standby may be promoted, and then the answer changes */
		if (RecoveryInProgress())
			cache_valid = false;
	}
	return &cached;
}

/*
 * Returns the identity of a member that may act; raises an error with the way
 * out otherwise.
 */
const ReplMlIdentity *
repl_ml_identity_require(void)
{
	const ReplMlIdentity *identity;

	repl_ml_shmem_require();
	if (RecoveryInProgress())
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("a standby takes no part in a repl_ml group"),
				 errhint("Run it on a member, or promote this server.")));
	identity = repl_ml_identity();
	if (!identity->member)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("this database is not a member of a repl_ml group"),
				 errhint("Run SELECT repl_ml.create_group(...) on the first node, SELECT "
						 "repl_ml.join_group(...) on each other one.")));

	/* two that stamp rows as one node would lose each other's writes */
	if (identity->fenced)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("this data directory is a copy of node \"%s\" and must not act as it",
						NameStr(identity->node_name)),
				 errdetail("The system identifier, timeline, database or data directory differs "
						   "from the one that joined the group."),
				 errhint("If it is the node itself, moved, the other members agree as soon as more "
						 "than half can be reached: SELECT repl_ml.confirm_identity() says what "
						 "speaks against it. Of a copy run SELECT repl_ml.leave_group(force => "
						 "true) here, then SELECT repl_ml.join_group(...) to get a new node id.")));
	if (identity->dropped)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("node \"%s\" has been dropped from its group",
						NameStr(identity->node_name)),
				 errdetail("What is written here would reach nobody."),
				 errhint("Run SELECT repl_ml.leave_group(force => true) to go on as an ordinary "
						 "database, then join again if wanted.")));
	if (identity->set_back)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("node \"%s\" has been set back to an older state and is coming back to "
						"its group", NameStr(identity->node_name)),
				 errdetail("The other members have more of what it wrote than it has itself."),
				 errhint("Wait with SELECT repl_ml.wait_for_node(%s, '10 min'); see SELECT * FROM "
						 "repl_ml.health.", quote_literal_cstr(NameStr(identity->node_name)))));
	return identity;
}

/* Reads the row of repl_ml.local_node; leaves zeros where there is none. */
static void
load_identity(ReplMlIdentity *identity)
{
	Oid			schema = get_namespace_oid(REPL_ML_SCHEMA, true);
	Relation	rel;
	SysScanDesc scan;
	HeapTuple	tuple;

	memset(identity, 0, sizeof(*identity));
	local_node_relid = OidIsValid(schema) ? get_relname_relid(LOCAL_NODE_TABLE, schema) :
		InvalidOid;
	if (!OidIsValid(local_node_relid))
		return;

	repl_ml_catalog_check(local_node_relid, LOCAL_NODE_TABLE);
	rel = table_open(local_node_relid, AccessShareLock);
	/* a transaction sees the group it has just made */
	scan = systable_beginscan(rel, InvalidOid, false, SnapshotSelf, 0, NULL);
	tuple = systable_getnext(scan);
	if (HeapTupleIsValid(tuple))
	{
		Datum		values[Natts_local_node];
		bool		nulls[Natts_local_node];

		if (RelationGetNumberOfAttributes(rel) != Natts_local_node)
			elog(ERROR, "table \"%s\" has unexpected columns", LOCAL_NODE_TABLE);
		heap_deform_tuple(tuple, RelationGetDescr(rel), values, nulls);
		identity->member = true;
		identity->node_id = DatumGetInt32(values[Anum_node_id - 1]);
		identity->node_name = *DatumGetName(values[Anum_node_name - 1]);
		identity->group_name = *DatumGetName(values[Anum_group_name - 1]);
		identity->group_id = *DatumGetUUIDP(values[Anum_group_id - 1]);
		identity->dropped = strcmp(TextDatumGetCString(values[Anum_state - 1]), "dropped") == 0;
		identity->joining = !identity->dropped &&
			strcmp(TextDatumGetCString(values[Anum_state - 1]), "ready") != 0;
		identity->set_back = strcmp(TextDatumGetCString(values[Anum_state - 1]), "set_back") == 0;
		if (!nulls[Anum_former_node - 1])
		{
			identity->former_node = DatumGetInt32(values[Anum_former_node - 1]);
			identity->former_safe = DatumGetInt64(values[Anum_former_safe - 1]);
			identity->former_counter = DatumGetInt64(values[Anum_former_counter - 1]);
		}
		identity->incarnation = DatumGetInt32(values[Anum_incarnation - 1]);
		identity->own_rows = DatumGetBool(values[Anum_copy_data - 1]) ? REPL_ML_NO_OWN_ROWS :
			nulls[Anum_keep - 1] ? REPL_ML_KEEP_UNASKED :
			strcmp(TextDatumGetCString(values[Anum_keep - 1]), "mine") == 0 ?
			REPL_ML_KEEP_MINE : REPL_ML_KEEP_THEIRS;
		compare_fingerprint(values, identity);
	}
	systable_endscan(scan);
	table_close(rel, AccessShareLock);
}

/* Returns device and inode of a file that a running server never replaces. */
static char *
directory_fingerprint(void)
{
	struct stat st;

	if (stat("PG_VERSION", &st) != 0)
		ereport(ERROR,
				(errcode_for_file_access(),
				 errmsg("could not stat file \"%s\": %m", "PG_VERSION"),
				 errhint("Check the owner and the permissions of the data directory.")));
	return psprintf("%llu:%llu", (unsigned long long) st.st_dev, (unsigned long long) st.st_ino);
}

/*
 * Sets "fenced" if the place is not that of the row, and "moved" if it could
 * be: other files of the same server, or another timeline, which nobody else has
 * been found to be.
 */
static void
compare_fingerprint(Datum *values, ReplMlIdentity *identity)
{
	char	   *there = TextDatumGetCString(values[Anum_directory - 1]);
	char	   *here = directory_fingerprint();
	bool		same_server;

	if (RecoveryInProgress())
		return;					/* nothing can be written here anyway */
	same_server = DatumGetInt64(values[Anum_system_identifier - 1]) ==
		(int64) GetSystemIdentifier() &&
		DatumGetObjectId(values[Anum_database - 1]) == MyDatabaseId;
	identity->fenced = !same_server || strcmp(there, here) != 0 ||
		DatumGetInt64(values[Anum_timeline - 1]) != (int64) GetWALInsertionTimeLine();
	identity->moved = identity->fenced && same_server && strcmp(there, SUPERSEDED) != 0;
}

/* Returns the timeline that this server writes, or replays on a standby. */
static TimeLineID
current_timeline(void)
{
	TimeLineID	timeline;

	if (!RecoveryInProgress())
		return GetWALInsertionTimeLine();
	(void) GetXLogReplayRecPtr(&timeline);
	return timeline;
}

PG_FUNCTION_INFO_V1(repl_ml_local_fingerprint);

/*
 * repl_ml.local_fingerprint(OUT system_identifier, OUT timeline, OUT database,
 * OUT directory): returns the place this database lives in, now.
 */
Datum
repl_ml_local_fingerprint(PG_FUNCTION_ARGS)
{
	TupleDesc	desc;
	Datum		values[4];
	bool		nulls[4] = {false, false, false, false};

	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	values[0] = Int64GetDatum((int64) GetSystemIdentifier());
	values[1] = Int64GetDatum((int64) current_timeline());
	values[2] = ObjectIdGetDatum(MyDatabaseId);
	values[3] = CStringGetTextDatum(directory_fingerprint());
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(desc), values, nulls)));
}

PG_FUNCTION_INFO_V1(repl_ml_history_with);

/*
 * repl_ml.history_with(timeline bigint): returns up to where this server's WAL is
 * that of the timeline; where this one is it, up to where it is durable; null if it
 * has not come from it.
 */
Datum
repl_ml_history_with(PG_FUNCTION_ARGS)
{
	TimeLineID	timeline = (TimeLineID) PG_GETARG_INT64(0);
	TimeLineID	current = current_timeline();
	List	   *history;

	if (timeline == current)
		PG_RETURN_LSN(GetFlushRecPtr(NULL));
	history = readTimeLineHistory(current);
	if (!tliInHistory(timeline, history))
		PG_RETURN_NULL();
	PG_RETURN_LSN(tliSwitchPoint(timeline, history, NULL));
}

PG_FUNCTION_INFO_V1(repl_ml_resume_counter);

/*
 * repl_ml.resume_counter(above bigint, OUT counter bigint, OUT first_xid xid8):
 * called where this server has become the node that another one was.  Has this
 * one's counters go on above those that were issued there, as far as they are known;
 * returns from where, and from which on transaction ids are this server's own.
 */
Datum
repl_ml_resume_counter(PG_FUNCTION_ARGS)
{
	uint64		first_xid;
	TupleDesc	desc;
	Datum		values[2];
	bool		nulls[2] = {false, false};

	repl_ml_shmem_require();
	first_xid = pg_atomic_read_u64(&repl_ml_shared->first_xid);
	nulls[1] = first_xid == 0;
	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	values[0] = Int64GetDatum((int64) repl_ml_ticker_resume((uint64) PG_GETARG_INT64(0)));
	values[1] = FullTransactionIdGetDatum(FullTransactionIdFromU64(first_xid));
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(desc), values, nulls)));
}

PG_FUNCTION_INFO_V1(repl_ml_local_node_changed);

/*
 * A statement trigger on repl_ml.local_node: every process reads the row
 * again.
 */
Datum
repl_ml_local_node_changed(PG_FUNCTION_ARGS)
{
	TriggerData *trigdata = (TriggerData *) fcinfo->context;

	if (!CALLED_AS_TRIGGER(fcinfo))
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("function \"%s\" must be called as a trigger", "local_node_changed"),
				 errhint("Leave it to the trigger that repl_ml has made.")));
	CacheInvalidateRelcache(trigdata->tg_relation);
	cache_valid = false;
	return PointerGetDatum(NULL);
}
