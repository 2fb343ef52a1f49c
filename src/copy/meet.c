/*
 * meet.c
 *		A node joins with rows of its own: what becomes of those that clocks say
 *		nothing of, and of those that only this node has.
 *
 * Its rows are compared with its donor's as in any copy (differing.c), and versions
 * under clocks are joined.  The rest is decided here:
 *
 * *  A row without a clock (of an ordinary table, or written while this database
 *    was in no group) that is equal to the group's gets its clock.  One that is
 *    not goes, or is a write of this node from now on, as join_group was told;
 *    that comes before everything else, so that whatever the group has meets
 *    rows with clocks.  One that has the group's clock and other values, as
 *    somebody has changed it past our triggers, makes way or is written anew.
 * *  A row that the donor does not have, though it has had all versions up to its
 *    clock and has removed tombstones since, was deleted in the group: it goes.
 *    Any other one is new to the group and stays, as a write of this node now:
 *    above what its members have removed, each at another moment perhaps.
 *
 * What stays goes to the members when this node is ready: each copies from it
 * what differs (link.c).  Whatever is lost or replaced here is a row of
 * repl_ml.repair_history.
 *
 * Runs in the apply worker of the donor's link, in the copy's transaction; what
 * only counts, in the join worker.  Locks: the rows, until that transaction ends.
 */
#include "postgres.h"

#include "access/table.h"
#include "catalog/namespace.h"
#include "catalog/pg_type.h"
#include "executor/executor.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/datum.h"
#include "utils/fmgrprotos.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

#include "compat.h"
#include "converge/converge.h"
#include "copy/copy.h"
#include "row/row.h"
#include "server/server.h"
#include "verify/verify.h"
#include "wire/wire.h"

#define BATCH_ROWS		(256 * 1024)	/* of which the donor is asked together */

/* A row that was here before, as it is met by the group's. */
typedef struct Own
{
	Datum		key;			/* text[], in the order of the index */
	Datum		content;		/* text[], see row/version.c */
	const ReplMlClock *clock;	/* empty: it has none */
	bool		unstamped;
	char	   *json;
} Own;

/* Rows that only this node has. */
typedef struct Rest
{
	WalReceiverConn *conn;
	Relation	rel;
	int			donor;
	int			chunks;
	ReplMlDigest *sums;			/* of this node's rows */
	int64	   *rows;			/* ... and how many they are */
	bool		unstamped;		/* only those without a clock, by all of the row */
	bool	   *wanted;			/* chunks of the present batch */
	ReplMlRowDigest *have;		/* what the donor is asked for */
	int64		have_count;
	uint64	   *lacking;		/* those that the donor does not have, sorted */
	int			lacking_count;
	List	   *found;			/* of Datum: the keys of these rows */
	const ReplMlClock *removed; /* see repl_ml.removed_up_to() */
} Rest;

/* Says whether this node is joining with rows of its own. */
bool
repl_ml_meet_is_due(void)
{
	const ReplMlIdentity *self = repl_ml_identity();

	return self->joining && self->own_rows != REPL_ML_NO_OWN_ROWS;
}

/* Says whether rows of this node stay where clocks do not tell. */
static bool
keeps_mine(void)
{
	return repl_ml_identity()->own_rows == REPL_ML_KEEP_MINE;
}

/* Returns what the content says of a row, under a clock, for a target; also for former.c. */
TupleTableSlot *
repl_ml_meet_make(ReplMlTarget *target, Datum content, const ReplMlClock *clock)
{
	TupleTableSlot *row = repl_ml_version_to_slot(content, RelationGetDescr(target->rel));

	row->tts_values[target->table->clock_attnum - 1] = PointerGetDatum(clock);
	row->tts_isnull[target->table->clock_attnum - 1] = false;
	return row;
}

/* Describes the row in target->found; with the rights of the owner. */
static Own
describe(ReplMlTarget *target)
{
	ReplMlTable *table = target->table;
	Own			own = {0};
	Datum		key[INDEX_MAX_KEYS];
	bool		isnull;
	Datum		clock = slot_getattr(target->found, table->clock_attnum, &isnull);

	repl_ml_key_from_slot(table, target->found, key);
	own.key = repl_ml_key_to_array(table, key);
	own.content = repl_ml_version_from_slot(target->found, table->clock_attnum);
	own.clock = isnull ? NULL : (ReplMlClock *) DatumGetByteaPCopy(clock);
	own.unstamped = own.clock == NULL || !repl_ml_clock_is_whole(own.clock) ||
		repl_ml_clock_count(own.clock) == 0;
	if (own.unstamped)
		own.clock = repl_ml_clock_empty();
	own.json = repl_ml_history_row_as_json(target->rel, table->clock_attnum, target->found);
	return own;
}

/* Makes a row of this node a write of its own, now, above a clock. */
static void
write_now(Oid relid, const Own *own, const ReplMlClock *above)
{
	ReplMlTarget *root = repl_ml_targets_get(relid);
	ReplMlSource source = {.node = repl_ml_identity()->node_id};
	ReplMlClock *clock =
		repl_ml_clock_advance(above, source.node,
							  repl_ml_ticker_next(repl_ml_clock_max_counter(above)));
	ReplMlUser	saved;

	repl_ml_become_owner(root->rel, &saved);
	ExecCopySlot(root->incoming, repl_ml_meet_make(root, own->content, clock));
	repl_ml_become_self(&saved);
	(void) repl_ml_row_join(relid, root->incoming, &source);
}

/* ---- rows of the group that come ---- */

/*
 * Finds the row here that has the key and the clock of the incoming one, and
 * other values; with the rights of the owner.
 */
static bool
find_altered(ReplMlTarget *target, TupleTableSlot *row, const ReplMlClock *clock, Own *own)
{
	if (!repl_ml_target_find(target, row))
		return false;
	*own = describe(target);
	return repl_ml_clock_compare(own->clock, clock) == REPL_ML_CLOCK_EQUAL &&
		!datum_image_eq(own->content,
						repl_ml_version_from_slot(row, target->table->clock_attnum), false, -1);
}

/*
 * Joins a row of the group, for rows.c, with what is here, which may be another
 * one under the same clock.
 */
void
repl_ml_meet_row(Oid relid, TupleTableSlot *incoming, const ReplMlSource *source)
{
	ReplMlTarget *root = repl_ml_targets_get(relid);
	ReplMlTarget *target;
	TupleTableSlot *row;
	const ReplMlClock *clock;
	char	   *theirs = NULL;
	Own			own;
	bool		differs;
	bool		isnull;
	Datum		value;
	ReplMlUser	saved;

	repl_ml_become_owner(root->rel, &saved);
	target = repl_ml_targets_route(root, incoming, &row);
	value = slot_getattr(row, target->table->clock_attnum, &isnull);
	clock = repl_ml_table_clock(target->table, value, isnull);
	differs = find_altered(target, row, clock, &own);
	if (differs)
		theirs = repl_ml_history_row_as_json(target->rel, target->table->clock_attnum, row);
	/* it is older than anything then */
	if (differs && !keeps_mine())
		repl_ml_target_update(target, repl_ml_meet_make(target, own.content,
														repl_ml_clock_empty()));
	repl_ml_become_self(&saved);
	if (differs && keeps_mine())
		write_now(relid, &own, clock);
	else
		(void) repl_ml_row_join(relid, incoming, source);
	if (differs)
		repl_ml_mend_record(root->table, own.key, "update", keeps_mine() ? "mine" : "theirs",
							source->node, keeps_mine() ? theirs : own.json,
							keeps_mine() ? own.json : theirs);
}

/* ---- rows that only this node has ---- */

/*
 * Asks the donor which of the digests it was told it lacks; returns false if it
 * cannot tell.
 */
static bool
ask_lacking(Rest *rest)
{
	static const Oid types[1] = {TEXTOID};
	ReplMlResult *result =
		repl_ml_stream_query(rest->conn,
							 psprintf("SELECT pg_catalog.encode(repl_ml.digests_lacking("
									  "%s::pg_catalog.regclass, %s, %s), 'base64')",
									  quote_literal_cstr(repl_ml_fetch_name(rest->rel)),
									  quote_literal_cstr(repl_ml_image_signature(rest->rel)),
									  rest->unstamped ? "false" : "true"), 1, types);
	bytea	   *answer = NULL;

	if (repl_ml_stream_next(result) &&
		(slot_getallattrs(result->slot), !result->slot->tts_isnull[0]))
		answer = DatumGetByteaPCopy(DirectFunctionCall2(binary_decode,
														result->slot->tts_values[0],
														CStringGetTextDatum("base64")));
	repl_ml_stream_free(result);
	if (answer == NULL)
		return false;
	rest->lacking_count = VARSIZE_ANY_EXHDR(answer) / sizeof(uint64);
	rest->lacking = palloc((rest->lacking_count + 1) * sizeof(uint64));
	memcpy(rest->lacking, VARDATA_ANY(answer), rest->lacking_count * sizeof(uint64));
	qsort(rest->lacking, rest->lacking_count, sizeof(uint64), repl_ml_digests_order);
	return true;
}

/*
 * Finds which digests of the chunks that are wanted the donor lacks; returns
 * false if that cannot be told.
 */
static bool
ask_batch(Rest *rest)
{
	int64		bytes = 0;

	rest->lacking_count = 0;
	if (!repl_ml_digests_collect(rest->rel, rest->chunks, rest->wanted,
								 rest->unstamped ? REPL_ML_OF_UNSTAMPED_ROW : REPL_ML_OF_KEY,
								 &rest->have, &rest->have_count))
		return false;
	if (rest->have_count == 0)
		return true;
	repl_ml_differing_tell(rest->conn, rest->chunks, rest->wanted, rest->have, rest->have_count,
						   &bytes);
	return ask_lacking(rest);
}

/* Asks the donor up to where it may have removed tombstones. */
static const ReplMlClock *
ask_removed(WalReceiverConn *conn)
{
	static const Oid types[1] = {TEXTOID};
	ReplMlResult *result =
		repl_ml_stream_query(conn, "SELECT repl_ml.removed_up_to()::pg_catalog.text", 1, types);
	ReplMlClock *removed = repl_ml_clock_empty();

	if (repl_ml_stream_next(result) &&
		(slot_getallattrs(result->slot), !result->slot->tts_isnull[0]))
		removed = repl_ml_clock_from_text(TextDatumGetCString(result->slot->tts_values[0]));
	repl_ml_stream_free(result);
	return removed;
}

/* A visitor: keeps the key of a row whose digest the donor lacks. */
static void
keep_key(Relation rel, ReplMlImage *image, TupleTableSlot *slot, void *argument)
{
	Rest	   *rest = argument;
	ReplMlTable *table = repl_ml_table_get(rel);
	uint64		hash = repl_ml_image_key(image, slot);
	Datum		key[INDEX_MAX_KEYS];
	ReplMlUser	saved;

	if (!rest->wanted[hash & (rest->chunks - 1)] ||
		(rest->unstamped && !repl_ml_digests_is_unstamped(rel, slot)))
		return;
	if (rest->unstamped)
		hash = repl_ml_image_row(image, slot, false).lane[0];
	if (bsearch(&hash, rest->lacking, rest->lacking_count, sizeof(uint64),
				repl_ml_digests_order) == NULL)
		return;
	repl_ml_become_owner(rest->rel, &saved);
	repl_ml_key_from_slot(table, slot, key);
	rest->found = lappend(rest->found, DatumGetPointer(repl_ml_key_to_array(table, key)));
	repl_ml_become_self(&saved);
}

/*
 * Does what is to be done about a row that the donor does not have, or, while
 * "unstamped", not so and that has no clock: it goes, or stays as a write of
 * this node.
 */
static void
settle_row(Rest *rest, Datum key)
{
	Oid			relid = RelationGetRelid(rest->rel);
	ReplMlTarget *root;
	ReplMlTarget *target;
	Own			own;
	ReplMlClock *dead;
	Datum		datums[INDEX_MAX_KEYS];
	bool		goes;
	ReplMlUser	saved;

	repl_ml_targets_renew();
	root = repl_ml_targets_get(relid);
	repl_ml_become_owner(root->rel, &saved);
	target = repl_ml_row_find(root, key);
	if (target == NULL)
	{
		repl_ml_become_self(&saved);
		return;
	}
	own = describe(target);
	goes = own.unstamped ? repl_ml_identity()->own_rows == REPL_ML_KEEP_THEIRS :
		repl_ml_clock_is_within(own.clock, rest->removed);
	repl_ml_key_from_slot(target->table, target->found, datums);
	dead = goes ? NULL : repl_ml_tombstone_find(target->table, datums, 0);
	if (goes)
		repl_ml_target_delete(target);
	repl_ml_become_self(&saved);
	if (goes)
	{
		repl_ml_mend_record(root->table, own.key, "delete",
							own.unstamped ? "theirs" : "deleted", rest->donor, own.json, NULL);
		return;
	}

	/*
	 * above any tombstone that some member has removed, and another has not; but
	 * what the group may still have of an unstamped row's key it does not know
	 */
	if (dead != NULL)
		own.clock = repl_ml_clock_merge(own.clock, dead);
	if (!own.unstamped)
		own.clock = repl_ml_clock_merge(own.clock, rest->removed);
	write_now(relid, &own, own.clock);
}

/* Settles the rows whose keys have been found. */
static void
settle_found(Rest *rest)
{
	ListCell   *lc;

	foreach(lc, rest->found)
	{
		CHECK_FOR_INTERRUPTS();
		settle_row(rest, PointerGetDatum(lfirst(lc)));
	}
}

/* Finds the rows here whose digests the donor lacks. */
static void
find_rows(Rest *rest)
{
	Snapshot	snapshot;

	rest->found = NIL;
	if (rest->lacking_count == 0)
		return;
	snapshot = RegisterSnapshot(GetLatestSnapshot());
	repl_ml_digests_visit(rest->rel, snapshot, keep_key, rest);
	UnregisterSnapshot(snapshot);
}

/* Takes the next chunks that differ; returns false if there are none. */
static bool
choose_batch(Rest *rest, const ReplMlDigest *theirs, int *next)
{
	int64		rows = 0;

	memset(rest->wanted, 0, rest->chunks * sizeof(bool));
	for (; *next < rest->chunks && rows < BATCH_ROWS; (*next)++)
	{
		if (memcmp(&rest->sums[*next], &theirs[*next], sizeof(ReplMlDigest)) == 0)
			continue;
		rest->wanted[*next] = rest->rows[*next] > 0;
		rows += rest->rows[*next];
	}
	return rows > 0;
}

/*
 * Called by fetch.c when the donor's rows of a table have been joined: finds
 * those that only this node has, and settles them.
 */
void
repl_ml_meet_rest(WalReceiverConn *conn, Relation rel, int donor)
{
	Rest		rest = {.conn = conn,.rel = rel,.donor = donor,
	.chunks = repl_ml_differing_chunks(repl_ml_digests_rows(rel))};
	ReplMlDigest *theirs = NULL;
	int64		bytes = 0;
	int			next = 0;
	bool		known;
	MemoryContext context;
	MemoryContext old;

	rest.sums = palloc0(rest.chunks * sizeof(ReplMlDigest));
	rest.rows = palloc0(rest.chunks * sizeof(int64));
	rest.wanted = palloc0(rest.chunks * sizeof(bool));
	rest.removed = ask_removed(conn);
	known = repl_ml_digests_sum(rel, rest.chunks, rest.sums, rest.rows) &&
		(theirs = repl_ml_differing_ask(conn, rel, rest.chunks, &bytes)) != NULL;
	context = AllocSetContextCreate(CurrentMemoryContext, "repl_ml rows of this node only",
									ALLOCSET_DEFAULT_SIZES);
	old = MemoryContextSwitchTo(context);
	while (known && choose_batch(&rest, theirs, &next))
	{
		known = ask_batch(&rest);
		if (known)
		{
			find_rows(&rest);
			settle_found(&rest);
		}
		MemoryContextReset(context);
	}
	MemoryContextSwitchTo(old);
	MemoryContextDelete(context);
	if (!known)
		ereport(WARNING,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("rows of table \"%s\" cannot be compared with the donor's",
						RelationGetRelationName(rel)),
				 errdetail("Rows that only this node has stay, also those that the group has "
						   "deleted."),
				 errhint("Run SELECT * FROM repl_ml.diff_rows(%s).",
						 quote_literal_cstr(repl_ml_fetch_name(rel)))));
}

/* ---- rows without a clock ---- */

/* Raises the error that rows without a clock cannot be compared. */
static void
refuse_unknown(const Rest *rest)
{
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("rows of table %s without a clock cannot be compared with the group's",
					repl_ml_fetch_name(rest->rel)),
			 errdetail("The tables differ, or some row cannot be read."),
			 errhint("Give the table the same columns as in the group, or drop it, and join "
					 "again.")));
}

/*
 * Finds, a part of the table after the other, the rows without a clock that the
 * donor does not have so, and returns how many; with "settle" what is to become
 * of them is done.  Raises an error where that cannot be told.
 */
static int64
find_unstamped(Rest *rest, bool settle)
{
	double		rows = repl_ml_digests_rows(rest->rel);
	int64		count = 0;
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext,
												  "repl_ml rows without a clock",
												  ALLOCSET_DEFAULT_SIZES);
	MemoryContext old;
	int			parts;

	rest->unstamped = true;
	rest->chunks = repl_ml_differing_chunks(rows);
	rest->wanted = palloc(rest->chunks * sizeof(bool));
	parts = (int) Min(1 + rows / BATCH_ROWS, rest->chunks);
	old = MemoryContextSwitchTo(context);
	for (int part = 0; part < parts; part++)
	{
		for (int i = 0; i < rest->chunks; i++)
			rest->wanted[i] = i % parts == part;
		if (!ask_batch(rest))
			refuse_unknown(rest);
		count += rest->lacking_count;
		if (settle)
		{
			find_rows(rest);
			settle_found(rest);
		}
		MemoryContextReset(context);
	}
	MemoryContextSwitchTo(old);
	MemoryContextDelete(context);
	return count;
}

/*
 * Returns, for the join worker, how many rows the table of this name has here
 * that have no clock and are not what the donor has.  It need not be replicated
 * yet.
 */
int64
repl_ml_meet_count(WalReceiverConn *conn, const char *schema_name, const char *table_name)
{
	Oid			schema = get_namespace_oid(schema_name, true);
	Oid			relid = OidIsValid(schema) ? get_relname_relid(table_name, schema) : InvalidOid;
	Rest		rest = {.conn = conn};
	int64		count;

	if (!OidIsValid(relid))
		return 0;
	repl_ml_table_allow_plain();
	rest.rel = table_open(relid, AccessShareLock);
	count = find_unstamped(&rest, false);
	table_close(rest.rel, NoLock);
	return count;
}

/* Returns the tables that are to be copied from the donor, as a list of OIDs. */
static List *
list_tables(int donor)
{
	MemoryContext context = CurrentMemoryContext;
	List	   *tables = NIL;

	SPI_connect();
	SPI_execute(psprintf("SELECT c.oid FROM repl_ml.table_sync y"
						 " JOIN pg_catalog.pg_namespace n"
						 " ON n.nspname OPERATOR(pg_catalog.=) y.schema_name"
						 " JOIN pg_catalog.pg_class c"
						 " ON c.relnamespace OPERATOR(pg_catalog.=) n.oid"
						 " AND c.relname OPERATOR(pg_catalog.=) y.table_name"
						 " WHERE y.node_id OPERATOR(pg_catalog.=) %d"
						 " AND y.state OPERATOR(pg_catalog.=) 'pending'"
						 " AND y.schema_name OPERATOR(pg_catalog.<>) 'repl_ml'", donor), true, 0);
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		MemoryContext old = MemoryContextSwitchTo(context);

		tables = lappend_oid(tables, strtoul(repl_ml_spi_text(i, 0), NULL, 10));
		MemoryContextSwitchTo(old);
	}
	SPI_finish();
	return tables;
}

/*
 * Called by fetch.c before anything of users' tables is copied from the donor,
 * tombstones first: does what is to be done about rows without a clock, and about
 * those written since this node was set back.
 */
void
repl_ml_meet_prepare(WalReceiverConn *conn, int donor)
{
	ListCell   *lc;

	repl_ml_former_rename_catalogs();
	foreach(lc, list_tables(donor))
	{
		Rest		rest = {.conn = conn,.donor = donor,.removed = ask_removed(conn)};

		rest.rel = table_open(lfirst_oid(lc), RowExclusiveLock);
		if (repl_ml_table_clock_attnum(lfirst_oid(lc)) != InvalidAttrNumber)
		{
			repl_ml_former_rename(rest.rel);
			(void) find_unstamped(&rest, true);
		}
		table_close(rest.rel, NoLock);
	}
}
