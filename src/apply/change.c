/*
 * change.c
 *		One change of the stream: joined, put aside or parked.
 *
 * A change is applied straight, or in a subtransaction that parks it when it
 * fails: see ReplMlApplyMode.  One of a table that does not fit the peer's is
 * parked at once.  Before this on the way of a change: dispatch.c; after it:
 * relation.c and converge/row.c.
 *
 * Not here: how a change is kept (park.c), nor transactions (dispatch.c).  Locks:
 * the tables' and rows' that converge/ takes, until the transaction ends.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "miscadmin.h"
#include "replication/logicalproto.h"
#include "storage/lmgr.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/memutils.h"

#include "apply/apply.h"
#include "compat.h"
#include "converge/converge.h"
#include "row/row.h"
#include "server/server.h"
#include "wire/wire.h"

#define TRIES_ON_UNIQUE_VIOLATION	3
#define CAREFUL_CHANGES		100 /* of a table, after one that failed */

/* A change being handled. */
typedef struct OneChange
{
	ReplMlApply *apply;
	LogicalRepRelId id;
	char		action;
	LogicalRepTupleData *tuple;
} OneChange;

static void apply_watched(void *argument);
static void apply_carefully(OneChange *one);
static void note_lock(ReplMlApply *apply, ReplMlRemoteTable *table, ErrorData *error);
static bool is_still_locked(ReplMlRemoteTable *table);
static void park_change(ReplMlApply *apply, LogicalRepRelId id, char action,
						LogicalRepTupleData *tuple, ErrorData *error);
static ReplMlSource get_source(ReplMlApply *apply);
static void note_table_written(Oid relid, const char *schema_name, const char *table_name);
static bool is_stamped_by(uint16 node, ReplMlTarget *target);
static void apply_tombstone(ReplMlApply *apply, ReplMlRemoteTable *table,
							LogicalRepTupleData *tuple);

/* Has heard.c look at a start of some member's server. */
static void
note_start(ReplMlApply *apply, ReplMlRemoteTable *table, LogicalRepTupleData *tuple)
{
	static const char *const columns[] = {"node_id", "started_at", "sequence", "lsn",
	"safe_counter", "counter"};
	Datum		values[lengthof(columns)];

	for (int i = 0; i < lengthof(columns); i++)
	{
		char	   *text = repl_ml_relation_text(table, tuple, columns[i]);

		/* a member that sends none of these says nothing */
		if (text == NULL)
			return;
		values[i] = CStringGetTextDatum(text);
	}
	repl_ml_heard_peer_start(apply, values);
}

/* Returns the table here that a change, or a deletion, is of; InvalidOid if there is none. */
static Oid
find_written(LogicalRepRelId id, LogicalRepTupleData *tuple)
{
	ReplMlRemoteTable *table = repl_ml_relation_get(id);
	Oid			relid = table->local;

	if (strcmp(table->remote.nspname, REPL_ML_SCHEMA) == 0 &&
		strcmp(table->remote.relname, "tombstone") == 0)
	{
		char	   *schema_name = repl_ml_relation_text(table, tuple, "schema_name");
		char	   *table_name = repl_ml_relation_text(table, tuple, "table_name");

		relid = schema_name == NULL || table_name == NULL ? InvalidOid :
			repl_ml_table_local(schema_name, table_name);
	}
	return relid;
}

/*
 * Called by dispatch.c: applies one change in the way of its transaction, and of
 * its table.
 */
void
repl_ml_change_handle(ReplMlApply *apply, LogicalRepRelId id, char action,
					  LogicalRepTupleData *tuple)
{
	ReplMlRemoteTable *table = repl_ml_relation_find(id);
	OneChange	one = {.apply = apply,.id = id,.action = action,.tuple = tuple};

	repl_ml_dispatch_begin(apply);
	/* however it is applied; a gap is the link's fault, not the transaction's */
	if (strcmp(table->remote.nspname, REPL_ML_SCHEMA) == 0 &&
		strcmp(table->remote.relname, "heartbeat") == 0)
		repl_ml_heard_note(apply, repl_ml_relation_text(table, tuple, "sequence"));
	else if (strcmp(table->remote.nspname, REPL_ML_SCHEMA) == 0 &&
			 strcmp(table->remote.relname, "peer_start") == 0)
		note_start(apply, table, tuple);
	apply->blame_transaction = true;
	/* what does not count is not kept either: who tries it again does not know */
	if (apply->transaction.is_void && repl_ml_fence_is_void(apply, find_written(id, tuple)))
		return;
	apply->transaction.changes++;
	/* those that have ended must not wait for it, or for the locks of a changed schema */
	if (apply->batch.count > 0 && (apply->transaction.changes > REPL_ML_SMALL_TRANSACTION ||
								   repl_ml_schema_change_is_of(table)))
	{
		apply->batch.crowded = true;
		ereport(ERROR,
				(errcode(ERRCODE_LOCK_NOT_AVAILABLE),
				 errmsg("a large transaction is applied by itself")));
	}
	if (apply->transaction.mode == REPL_ML_APPLY_ASIDE)
	{
		ReplMlSource source = get_source(apply);

		repl_ml_aside_put(&source, id, action, tuple);
		apply->transaction.put_aside = true;
		/* rows that follow are for the tables that it makes */
		if (repl_ml_schema_change_is_of(table))
		{
			apply->awaits_schema = strtoll(repl_ml_relation_text(table, tuple, "number"), NULL, 10);
			apply->awaits_since = GetCurrentTimestamp();
		}
	}
	else if (apply->transaction.mode == REPL_ML_APPLY_PARK)
		park_change(apply, id, action, tuple, apply->retry.failure);
	else if (table->misfit != NULL && GetCurrentTimestamp() < table->misfit_until)
		park_change(apply, id, action, tuple, table->misfit);
	else if (is_still_locked(table))
		park_change(apply, id, action, tuple, table->locked);
	/* if a change of the schema fails, so does its transaction */
	else if ((apply->transaction.mode == REPL_ML_APPLY_NORMAL && table->careful == 0) ||
			 repl_ml_schema_change_is_of(table))
		apply_watched(&one);
	else
		apply_carefully(&one);
	repl_ml_apply_show_changes(apply);
	repl_ml_crash_writes(InvalidOid);
}

/*
 * Says whether a change may be tried without its locks being looked after: a
 * heartbeat, as nobody else writes these rows, and to look takes more than to apply it.
 * Core's lock_timeout ends the first try of one that does meet a lock.
 */
static bool
is_free(const OneChange *one)
{
	const ReplMlRemoteTable *table = repl_ml_relation_find(one->id);

	return one->apply->retry.races == 0 && table->careful == 0 && !repl_ml_aside_is_keeping() &&
		strcmp(table->remote.relname, "heartbeat") == 0 &&
		strcmp(table->remote.nspname, REPL_ML_SCHEMA) == 0;
}

/*
 * Applies one change; what it waits for is looked after, until its error has
 * been, too.
 */
static void
apply_watched(void *argument)
{
	OneChange  *one = argument;

	if (is_free(one))
		repl_ml_locked_ignore();
	else
		repl_ml_locked_watch(repl_ml_aside_is_keeping());
	repl_ml_change_join(one->apply, one->id, one->action, one->tuple);
	repl_ml_locked_unwatch();
}

/*
 * Applies one change in a subtransaction; if it fails for good, or the stream
 * has waited long enough for what is locked, it is parked with its error, and
 * the rest of the transaction goes on.
 */
static void
apply_carefully(OneChange *one)
{
	ReplMlRemoteTable *table = repl_ml_relation_find(one->id);
	ErrorData  *error;

	for (int tries = TRIES_ON_UNIQUE_VIOLATION; tries > 0; tries--)
	{
		error = repl_ml_targets_try(apply_watched, one);
		if (error == NULL)
		{
			table->careful = Max(table->careful - 1, 0);
			return;
		}
		if (repl_ml_locked_for_long(error->sqlerrcode) ||
			(one->apply->transaction.impatient && repl_ml_locked_is_race(error->sqlerrcode)))
		{
			note_lock(one->apply, table, error);
			break;
		}
		if (!repl_ml_dispatch_is_permanent(error->sqlerrcode))
			ReThrowError(error);
		/* the key may have been inserted here since we looked */
		if (error->sqlerrcode != ERRCODE_UNIQUE_VIOLATION)
			break;
	}
	table->careful = CAREFUL_CHANGES;
	park_change(one->apply, one->id, one->action, one->tuple, error);
}

/*
 * Makes of the error that a lock was in the way what is shown of the parked
 * change.  If it is one of the whole table, the following changes need not
 * try.
 */
static void
note_lock(ReplMlApply *apply, ReplMlRemoteTable *table, ErrorData *error)
{
	MemoryContext old;

	repl_ml_locked_note(apply->transaction.impatient ? apply->retry.locked_since :
						GetCurrentTimestamp());
	repl_ml_locked_unwatch();
	(void) repl_ml_locked_describe(error);
	table->locked_as = repl_ml_locked_table(table->remote.nspname, table->remote.relname);
	if (!OidIsValid(table->locked_as))
		return;
	if (table->locked != NULL)
		FreeErrorData(table->locked);
	old = MemoryContextSwitchTo(table->description);
	table->locked = palloc0(sizeof(ErrorData));
	table->locked->sqlerrcode = error->sqlerrcode;
	table->locked->message = pstrdup(error->message);
	table->locked->detail = pstrdup(error->detail);
	MemoryContextSwitchTo(old);
}

/*
 * Says whether the whole table was found locked, and still is.  If not it is
 * now, by our transaction.
 */
static bool
is_still_locked(ReplMlRemoteTable *table)
{
	if (table->locked == NULL)
		return false;
	if (!ConditionalLockRelationOid(table->locked_as, RowExclusiveLock))
		return true;
	FreeErrorData(table->locked);
	table->locked = NULL;
	return false;
}

/* Parks one change with the error that keeps it from being applied. */
static void
park_change(ReplMlApply *apply, LogicalRepRelId id, char action, LogicalRepTupleData *tuple,
			ErrorData *error)
{
	ReplMlSource source = get_source(apply);

	/* perhaps it is to be made here; between transactions, see worker.c */
	if (error->sqlerrcode == ERRCODE_UNDEFINED_TABLE)
		apply->tables_pending = apply->catalogs_behind = true;
	repl_ml_park(&source, repl_ml_relation_find(id), action, tuple, error, false);
	CommandCounterIncrement();
	apply->transaction.parked++;
}

/* Returns where the change being handled comes from. */
static ReplMlSource
get_source(ReplMlApply *apply)
{
	ReplMlSource source = {
		.node = apply->peer->node_id,
		.xid = apply->transaction.xid,
		.lsn = apply->transaction.final_lsn,
		.commit_time = apply->transaction.commit_time,
		.late = apply->late,
		.counts = &apply->transaction.counts
	};

	return source;
}

/* Counts a row of users' tables that has come; a deletion comes as a tombstone. */
static void
count_row(ReplMlApply *apply, ReplMlRemoteTable *table, char action)
{
	ReplMlCount count = action == 'I' ? REPL_ML_INSERTED : REPL_ML_UPDATED;

	if (repl_ml_relation_is_of_tombstones(table))
		count = REPL_ML_DELETED;
	else if (strcmp(table->remote.nspname, REPL_ML_SCHEMA) == 0)
		return;
	apply->transaction.counts.of[count]++;
}

/*
 * Joins one change into the local table, in the caller's transaction; again.c
 * calls it, too, for a parked change that is tried again.
 */
void
repl_ml_change_join(ReplMlApply *apply, LogicalRepRelId id, char action,
					LogicalRepTupleData *tuple)
{
	ReplMlRemoteTable *table = repl_ml_relation_get(id);
	ReplMlSource source = get_source(apply);
	ReplMlTarget *target;
	ReplMlUser	saved;
	bool		is_catalog;

	apply->table = table->remote.relname;
	if (!OidIsValid(table->local))
		return;					/* no longer replicated */
	count_row(apply, table, action);

	repl_ml_targets_renew();
	is_catalog = strcmp(table->remote.nspname, REPL_ML_SCHEMA) == 0;
	if (is_catalog && strcmp(table->remote.relname, "tombstone") == 0)
	{
		apply_tombstone(apply, table, tuple);
		return;
	}
	/* it may have changed, or have become another one, while we waited for its lock */
	for (;;)
	{
		target = repl_ml_targets_get(table->local);
		if (table->valid)
			break;
		table = repl_ml_relation_get(id);
		if (!OidIsValid(table->local))
			return;
	}
	note_table_written(table->local, table->remote.nspname, table->remote.relname);
	repl_ml_become_owner(target->rel, &saved);
	repl_ml_relation_fill_slot(table, tuple, target->incoming);
	repl_ml_become_self(&saved);
	if (action == 'I' && !is_stamped_by(source.node, target))
		return;
	/* its number may be another change's by now */
	if (repl_ml_schema_change_is_of(table) && apply->transaction.is_void)
		return;
	if (repl_ml_schema_change_is_of(table))
	{
		repl_ml_schema_change_apply(apply, table->local, target->incoming, &source);
		apply->transaction.catalogs_changed = true;
		return;
	}
	if (is_catalog && strcmp(table->remote.relname, "replicated_table") == 0)
		repl_ml_relation_meet(target->incoming);
	source.inserted = action == 'I';
	if (action == 'U' && table->other_key_count > 0)
		apply->transaction.conflicts +=
			repl_ml_deletion_supersede(table->local, table->other_key, table->other_key_count,
									   target->incoming, &source);
	apply->transaction.conflicts += repl_ml_row_join(table->local, target->incoming, &source);
	if (is_catalog && strcmp(table->remote.relname, "replicated_table") == 0 &&
		strcmp(repl_ml_relation_text(table, tuple, "state"), "enrolled") == 0)
		repl_ml_schema_change_take_in(repl_ml_relation_text(table, tuple, "schema_name"),
									  repl_ml_relation_text(table, tuple, "table_name"));
	if (apply->late)
		repl_ml_crash_pardon(table->local);
	if (!is_catalog)
		repl_ml_unsent_row_arrived(apply, target->table, target->incoming);

	/* what the worker does between transactions depends on our own tables */
	if (is_catalog && strcmp(table->remote.relname, "heartbeat") == 0)
		apply->transaction.heartbeats++;
	else if (is_catalog && strcmp(table->remote.relname, "table_shape") == 0)
	{
		/* the peer's table may have become ours, or its columns have to be agreed on */
		repl_ml_apply_retry_soon();
		apply->transaction.catalogs_changed = true;
	}
	else if (is_catalog && strcmp(table->remote.relname, "collection") != 0 &&
			 strcmp(table->remote.relname, "verification") != 0 &&
			 strcmp(table->remote.relname, "peer_start") != 0)
		apply->transaction.catalogs_changed = true;
}

/*
 * Notes that a row of the table is about to be written, by whatever code its
 * owner has put there; raises an error if that has taken the server down
 * before.
 */
static void
note_table_written(Oid relid, const char *schema_name, const char *table_name)
{
	repl_ml_crash_writes(relid);
	if (repl_ml_crash_is_banned(relid))
		ereport(ERROR,
				(errcode(ERRCODE_EXTERNAL_ROUTINE_EXCEPTION),
				 errmsg("applying a change of table \"%s.%s\" took the server down", schema_name,
						table_name),
				 errdetail("So changes of the table are parked."),
				 errhint("Mend or disable what runs for its rows (triggers, constraints, functions "
						 "of indexes and types),"
						 " then run SELECT repl_ml.retry_parked(id); after one of them the others"
						 " are applied again.")));
}

/*
 * Says whether the node stamped the row it inserted.  Otherwise a user of it
 * supplied the clock, and the trigger's update with the real one follows.
 */
static bool
is_stamped_by(uint16 node, ReplMlTarget *target)
{
	bool		isnull;
	Datum		value = slot_getattr(target->incoming, target->table->clock_attnum, &isnull);
	ReplMlClock *clock = isnull ? NULL : DatumGetReplMlClockP(value);

	return clock != NULL && repl_ml_clock_count(clock) == 1 &&
		repl_ml_clock_entry(clock, 0).node == node;
}

/*
 * Joins a row of the peer's repl_ml.tombstone: the deletion of a row of
 * another table.
 */
static void
apply_tombstone(ReplMlApply *apply, ReplMlRemoteTable *table, LogicalRepTupleData *tuple)
{
	ReplMlSource source = get_source(apply);
	char	   *schema_name = repl_ml_relation_text(table, tuple, "schema_name");
	char	   *table_name = repl_ml_relation_text(table, tuple, "table_name");
	char	   *key = repl_ml_relation_text(table, tuple, "key");
	char	   *columns = repl_ml_relation_text(table, tuple, "key_columns");
	char	   *clock = repl_ml_relation_text(table, tuple, REPL_ML_CLOCK_COLUMN);
	Oid			relid;
	Datum		deleted;
	ReplMlClock *deletion;

	if (schema_name == NULL || table_name == NULL || key == NULL || columns == NULL ||
		clock == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_PROTOCOL_VIOLATION),
				 errmsg("the peer sent a deletion without table, key or clock"),
				 errhint(REPL_ML_SAME_VERSION_HINT)));
	relid = repl_ml_table_local(schema_name, table_name);
	if (!OidIsValid(relid))
		return;
	note_table_written(relid, schema_name, table_name);
	deleted = OidInputFunctionCall(F_ARRAY_IN, key, TEXTOID, -1);
	deletion = repl_ml_clock_from_text(clock);
	repl_ml_unsent_arrived(apply, schema_name, table_name, deleted, deletion);
	apply->transaction.conflicts +=
		repl_ml_deletion_join(relid,
							  OidInputFunctionCall(F_ARRAY_IN, columns, TEXTOID, -1),
							  deleted,
							  deletion,
							  repl_ml_relation_text(table, tuple, "eviction"), &source);
	if (apply->late)
		repl_ml_crash_pardon(relid);
}
