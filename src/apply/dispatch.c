/*
 * dispatch.c
 *		From a message of the stream to its handler.
 *
 * A table says which message is welcome inside and outside a transaction;
 * anything else is a protocol error, whoever the peer is.  Here the peer's
 * transactions begin and end, alone or several in one of ours.  Before this on
 * the way of a change: replay.c; after it: change.c.
 *
 * Not here: what is tried when again (replay.c, copy/retry.c).  Locks:
 * repl_ml_shared->lock for what the worker shows.
 */
#include "postgres.h"

#include "access/xact.h"
#include "libpq/pqformat.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "replication/logicalproto.h"
#include "replication/origin.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"

#include "apply/apply.h"
#include "commit/commit.h"
#include "compat.h"
#include "converge/converge.h"
#include "read/read.h"
#include "row/row.h"
#include "server/server.h"
#include "wire/wire.h"

#define LARGEST_BATCH		64	/* transactions of the peer in one of ours */
#define FAILURES_TO_PARK	3	/* of a transaction, all of it */

typedef struct MessageKind
{
	char		type;
	const char *name;
	bool		in_transaction; /* welcome only there, or only outside */
	bool		anywhere;		/* welcome in both places */
	void		(*handle) (ReplMlApply *apply, StringInfo message);
} MessageKind;

static void handle_begin(ReplMlApply *apply, StringInfo message);
static void handle_commit(ReplMlApply *apply, StringInfo message);
static void handle_origin(ReplMlApply *apply, StringInfo message);
static void handle_relation(ReplMlApply *apply, StringInfo message);
static void handle_type(ReplMlApply *apply, StringInfo message);
static void handle_logical_message(ReplMlApply *apply, StringInfo message);
static void handle_insert(ReplMlApply *apply, StringInfo message);
static void handle_update(ReplMlApply *apply, StringInfo message);
static void mind_crashes(ReplMlApply *apply);
static void mind_locks(ReplMlApply *apply);
static void show_progress(ReplMlApply *apply);
static bool may_batch(ReplMlApply *apply);

static const MessageKind kinds[] = {
	{.type = LOGICAL_REP_MSG_BEGIN,.name = "BEGIN",.handle = handle_begin},
	{.type = LOGICAL_REP_MSG_COMMIT,.name = "COMMIT",.in_transaction = true,
	.handle = handle_commit},
	{.type = LOGICAL_REP_MSG_ORIGIN,.name = "ORIGIN",.in_transaction = true,
	.handle = handle_origin},
	{.type = LOGICAL_REP_MSG_RELATION,.name = "RELATION",.anywhere = true,
	.handle = handle_relation},
	{.type = LOGICAL_REP_MSG_TYPE,.name = "TYPE",.anywhere = true,.handle = handle_type},
	{.type = LOGICAL_REP_MSG_MESSAGE,.name = "MESSAGE",.anywhere = true,
	.handle = handle_logical_message},
	{.type = LOGICAL_REP_MSG_INSERT,.name = "INSERT",.in_transaction = true,
	.handle = handle_insert},
	{.type = LOGICAL_REP_MSG_UPDATE,.name = "UPDATE",.in_transaction = true,
	.handle = handle_update},
};

/*
 * Handles one message of the stream, for replay.c.  One that is not welcome
 * where it comes is an error, never a crash.
 */
void
repl_ml_dispatch(ReplMlApply *apply, StringInfo message)
{
	char		type = pq_getmsgbyte(message);

	for (int i = 0; i < lengthof(kinds); i++)
	{
		const MessageKind *kind = &kinds[i];

		if (kind->type != type)
			continue;
		if (!kind->anywhere && kind->in_transaction != apply->transaction.open)
			ereport(ERROR,
					(errcode(ERRCODE_PROTOCOL_VIOLATION),
					 apply->transaction.open ?
					 errmsg("the peer sent the message %s inside a transaction", kind->name) :
					 errmsg("the peer sent the message %s outside a transaction", kind->name),
					 errhint(REPL_ML_SAME_VERSION_HINT)));

		/* for the context of errors */
		apply->doing = kind->name;
		apply->table = NULL;
		kind->handle(apply, message);
		apply->doing = NULL;
		apply->table = NULL;
		apply->blame_transaction = false;
		return;
	}
	ereport(ERROR,
			(errcode(ERRCODE_PROTOCOL_VIOLATION),
			 errmsg("the peer sent a message of the unknown type %d", (unsigned char) type),
			 errhint(REPL_ML_SAME_VERSION_HINT)));
}

/*
 * Forgets the transaction, for the apply worker and replay.c, after it has
 * been aborted.
 */
void
repl_ml_dispatch_reset(ReplMlApply *apply)
{
	memset(&apply->transaction, 0, sizeof(apply->transaction));
	apply->batch.count = 0;
	apply->batch.matters = false;
	apply->doing = NULL;
	apply->table = NULL;
	apply->blame_transaction = false;
	apply->batch.crowded = false;
	memset(&apply->batch.tally, 0, sizeof(apply->batch.tally));
	apply->batch.round = 0;
	repl_ml_apply_show_transaction(apply);
	repl_ml_crash_rests();
	repl_ml_targets_forget();
}

/*
 * Notes that the transaction failed for good: how it is applied next depends
 * on how often it has.  Keeps the error.
 */
void
repl_ml_dispatch_blame(ReplMlApply *apply, XLogRecPtr final_lsn, ErrorData *error)
{
	apply->retry.failures = final_lsn == apply->retry.failed_lsn ? apply->retry.failures + 1 : 1;
	/*
	 * each of its changes has been tried by itself, so the lock is that of the
	 * whole, as at its commit
	 */
	if (repl_ml_locked_is_race(error->sqlerrcode))
	{
		apply->retry.failures = Max(apply->retry.failures, FAILURES_TO_PARK);
		error->sqlerrcode = ERRCODE_LOCK_NOT_AVAILABLE;
	}
	apply->retry.failed_lsn = final_lsn;
	if (apply->retry.failure != NULL)
		FreeErrorData(apply->retry.failure);
	apply->retry.failure = error;
}

/*
 * Notes that the transaction, which has been aborted, met others' locks, with
 * an error of repl_ml_locked_is_race.  When it has been tried for long enough,
 * what is locked of it is parked.
 */
void
repl_ml_dispatch_locked(ReplMlApply *apply, XLogRecPtr final_lsn, int sqlstate)
{
	TimestampTz now = GetCurrentTimestamp();

	if (final_lsn != apply->retry.locked_lsn)
		apply->retry.locked_since = now;
	apply->retry.locked_lsn = final_lsn;
	if (repl_ml_locked_for_long(sqlstate))
		apply->retry.locked_since = Min(apply->retry.locked_since,
								  TimestampTzPlusMilliseconds(now, -repl_ml_apply_lock_timeout));
	repl_ml_apply_show_locked(apply, apply->retry.locked_since);
	repl_ml_locked_note(now);
}

/*
 * Waits, if the transaction that begins was given back as it did not count or was not known
 * to, until that is known; sets whether it is void.
 */
static void
wait_for_verdict(ReplMlApply *apply, XLogRecPtr final_lsn, bool *is_void)
{
	if (final_lsn != apply->retry.judged_lsn)
		return;
	if (apply->batch.count > 0)
		repl_ml_dispatch_finish(apply, false);
	*is_void = repl_ml_fence_wait(apply, apply->peer->node_id, apply->retry.judged_round,
								  apply->retry.judged_end);
}

/*
 * Begins the peer's transaction; a local one begins with its first change.
 * How it is applied depends on what has become of it before.
 */
static void
handle_begin(ReplMlApply *apply, StringInfo message)
{
	LogicalRepBeginData begin;
	bool		is_void = false;

	logicalrep_read_begin(message, &begin);
	/* what may take the server down takes nothing else along */
	if (repl_ml_crash_count(begin.final_lsn) > 0)
		repl_ml_dispatch_finish(apply, false);
	wait_for_verdict(apply, begin.final_lsn, &is_void);
	memset(&apply->transaction, 0, sizeof(apply->transaction));
	apply->transaction.open = true;
	apply->transaction.is_void = is_void;
	apply->transaction.xid = begin.xid;
	apply->transaction.final_lsn = begin.final_lsn;
	apply->transaction.commit_time = begin.committime;
	if (begin.final_lsn == apply->retry.failed_lsn && apply->retry.failures > 0)
		apply->transaction.mode = apply->retry.failures < FAILURES_TO_PARK ? REPL_ML_APPLY_CAREFUL :
		REPL_ML_APPLY_PARK;
	mind_crashes(apply);
	if (begin.final_lsn == apply->retry.locked_lsn)
		mind_locks(apply);
	if (begin.final_lsn == apply->retry.blocked_lsn)
		apply->transaction.mode = REPL_ML_APPLY_ASIDE;
	repl_ml_apply_show_transaction(apply);
}

/*
 * Says whether the transaction that met others' locks has been tried for long
 * enough.
 */
bool
repl_ml_dispatch_is_impatient(const ReplMlApply *apply)
{
	return TimestampDifferenceExceeds(apply->retry.locked_since, GetCurrentTimestamp(),
									  repl_ml_apply_lock_timeout);
}

/*
 * Applies what others' locks have held up for long enough row by row: what is
 * still locked of it is parked.
 */
static void
mind_locks(ReplMlApply *apply)
{
	ReplMlTransaction *transaction = &apply->transaction;

	transaction->impatient = repl_ml_dispatch_is_impatient(apply);
	if (transaction->impatient && transaction->mode == REPL_ML_APPLY_NORMAL)
		transaction->mode = REPL_ML_APPLY_CAREFUL;
}

/*
 * Applies a transaction that took the server down row by row, and parks one
 * that did so even then.
 */
static void
mind_crashes(ReplMlApply *apply)
{
	int			crashes = repl_ml_crash_count(apply->transaction.final_lsn);

	if (apply->transaction.mode == REPL_ML_APPLY_NORMAL && crashes >= REPL_ML_CRASHES_CAREFUL)
		apply->transaction.mode = REPL_ML_APPLY_CAREFUL;
	if (crashes < REPL_ML_CRASHES_PARK)
		return;
	apply->transaction.mode = REPL_ML_APPLY_PARK;
	if (apply->retry.failure != NULL)
		FreeErrorData(apply->retry.failure);
	apply->retry.failure = MemoryContextAllocZero(TopMemoryContext, sizeof(ErrorData));
	apply->retry.failure->sqlerrcode = ERRCODE_EXTERNAL_ROUTINE_EXCEPTION;
	apply->retry.failure->message = MemoryContextStrdup(TopMemoryContext,
												  "applying the transaction took the server down "
												  "again and again");
	apply->retry.failure->detail = MemoryContextStrdup(TopMemoryContext,
													   "It does so also row by row.");
}

/*
 * Ends the peer's transaction: it is in the batch now, and committed with it,
 * at once where it may not share it.
 */
static void
handle_commit(ReplMlApply *apply, StringInfo message)
{
	LogicalRepCommitData commit;
	ReplMlTransaction *transaction = &apply->transaction;

	logicalrep_read_commit(message, &commit);
	if (commit.commit_lsn != transaction->final_lsn)
		ereport(ERROR,
				(errcode(ERRCODE_PROTOCOL_VIOLATION),
				 errmsg("the peer sent a COMMIT at %X/%X for the transaction that ends at %X/%X",
						LSN_FORMAT_ARGS(commit.commit_lsn),
						LSN_FORMAT_ARGS(transaction->final_lsn)),
				 errhint(REPL_ML_SAME_VERSION_HINT)));
	/* the origin's progress, which must not run ahead of the peer's WAL */
	if (commit.end_lsn != apply->message_lsn)
		ereport(ERROR,
				(errcode(ERRCODE_PROTOCOL_VIOLATION),
				 errmsg("the peer sent a COMMIT that ends at %X/%X in a message of %X/%X",
						LSN_FORMAT_ARGS(commit.end_lsn), LSN_FORMAT_ARGS(apply->message_lsn)),
				 errhint(REPL_ML_SAME_VERSION_HINT)));
	apply->blame_transaction = true;
	if (transaction->started)
		apply->batch.count++;
	if (transaction->changes > transaction->heartbeats)
		apply->batch.matters = true;
	apply->batch.end = commit.end_lsn;
	apply->batch.commit_time = commit.committime;
	if (transaction->round != 0)
		repl_ml_fence_add(apply, commit.end_lsn);

	/* shown when it is committed */
	apply->batch.tally.transactions++;
	apply->batch.tally.changes += transaction->changes;
	apply->batch.tally.conflicts += transaction->conflicts;
	repl_ml_counts_add(&apply->batch.tally.counts, &transaction->counts);
	apply->batch.tally.parked += transaction->parked;

	/* before anything behind it is acknowledged */
	if (transaction->parked > 0 || transaction->lacks || transaction->is_void)
		repl_ml_apply_tell_parked(apply, commit.end_lsn);
	if (!may_batch(apply))
		repl_ml_dispatch_finish(apply, false);
	apply->retry.aside |= transaction->put_aside;
	if (transaction->urgency > REPL_ML_WHENEVER && apply->progress.urgency == REPL_ML_WHENEVER)
		apply->progress.waited_since = GetCurrentTimestamp();
	apply->progress.urgency = Max(apply->progress.urgency, transaction->urgency);
	apply->retry.races = 0;
	/* those before the one that failed are applied again, too */
	if (transaction->final_lsn >= apply->retry.failed_lsn)
	{
		apply->retry.failed_lsn = InvalidXLogRecPtr;
		apply->retry.failures = 0;
	}
	if (transaction->final_lsn >= apply->retry.locked_lsn)
	{
		apply->retry.locked_lsn = InvalidXLogRecPtr;
		repl_ml_apply_show_locked(apply, 0);
	}
	if (transaction->final_lsn >= apply->retry.blocked_lsn)
		apply->retry.blocked_lsn = InvalidXLogRecPtr;
	transaction->open = false;
	transaction->started = false;
	repl_ml_apply_show_transaction(apply);
}

/*
 * Says whether the transaction that ends may share its local one with those
 * that follow.  It may not if it did anything out of the ordinary, or may have
 * to be rolled back on its own; and not where an error lately showed that some
 * transaction fails.  Of one that is parked somebody may be told who waits for
 * it.
 */
static bool
may_batch(ReplMlApply *apply)
{
	const ReplMlTransaction *transaction = &apply->transaction;

	return apply->batch.count > 0 && apply->batch.count < LARGEST_BATCH &&
		transaction->mode == REPL_ML_APPLY_NORMAL && !transaction->catalogs_changed &&
		transaction->conflicts == 0 && !transaction->is_void &&
		((transaction->parked == 0 && !transaction->lacks) ||
		 transaction->urgency == REPL_ML_WHENEVER) &&
		transaction->changes <= REPL_ML_SMALL_TRANSACTION &&
		apply->batch.end > apply->batch.single_until && !repl_ml_aside_is_keeping() &&
		repl_ml_crash_count(transaction->final_lsn) == 0;
}

/*
 * Notes that what has been committed is to be flushed.  If it is heartbeats
 * only there is no hurry: core's WAL writer will do it meanwhile.
 */
static void
note_volatile(ReplMlApply *apply)
{
	TimestampTz since = GetCurrentTimestamp();

	if (!apply->batch.matters)
		since = TimestampTzPlusMilliseconds(since, REPL_ML_HEARTBEAT_LEISURE_MS);
	if (apply->progress.volatile_since == 0 || since < apply->progress.volatile_since)
		apply->progress.volatile_since = since;
}

/*
 * Commits what has been applied of the transactions that have ended, if
 * anything has; durably, or so that the apply worker will flush it.
 */
void
repl_ml_dispatch_finish(ReplMlApply *apply, bool durable)
{
	if (apply->batch.count > 0)
	{
		repl_ml_targets_close();
		repl_ml_fence_settle(apply);
		PopActiveSnapshot();
		repl_ml_apply_reaches(apply, apply->batch.end);
		replorigin_session_origin_lsn = apply->batch.end;
		replorigin_session_origin_timestamp = apply->batch.commit_time;
		if (durable)
		{
			uint64		began = repl_ml_monotonic_now();

			repl_ml_news_commit();
			apply->times.flushing += repl_ml_monotonic_now() - began;
		}
		else
			CommitTransactionCommand();
		pgstat_report_stat(false);
		repl_ml_crash_survived(apply->batch.end);
		apply->connection.progressed = true;
		note_volatile(apply);
		MemoryContextSwitchTo(apply->message_context);
	}
	apply->batch.matters = false;
	apply->batch.count = 0;
	apply->batch.round = 0;
	apply->progress.applied = Max(apply->progress.applied, apply->batch.end);
	apply->progress.committed = true;
	repl_ml_replay_committed();
	show_progress(apply);
}

/* Adds what has been committed to repl_ml.stat_apply. */
static void
show_progress(ReplMlApply *apply)
{
	LWLockAcquire(repl_ml_shared->lock, LW_EXCLUSIVE);
	apply->worker->applied_lsn = apply->batch.end;
	apply->worker->applied_commit_time = apply->batch.commit_time;
	apply->worker->applied_time = GetCurrentTimestamp();
	apply->worker->transactions += apply->batch.tally.transactions;
	apply->worker->changes += apply->batch.tally.changes;
	apply->worker->conflicts += apply->batch.tally.conflicts;
	repl_ml_counts_add(&apply->worker->counts, &apply->batch.tally.counts);
	apply->worker->parked += apply->batch.tally.parked;
	LWLockRelease(repl_ml_shared->lock);
	memset(&apply->batch.tally, 0, sizeof(apply->batch.tally));
}

/*
 * Passes over where the peer had the transaction from: a foreign origin; it is
 * all the same to us.
 */
static void
handle_origin(ReplMlApply *apply, StringInfo message)
{
	XLogRecPtr	origin_lsn;

	(void) logicalrep_read_origin(message, &origin_lsn);
}

/* Remembers what the peer's table is, with the identities of its columns. */
static void
handle_relation(ReplMlApply *apply, StringInfo message)
{
	LogicalRepRelation *remote = logicalrep_read_rel(message);

	repl_ml_relation_remember(remote, repl_ml_column_receive(message), false);
}

/*
 * Passes over a type: types go by the name of the column's type here, so what
 * the peer calls them is unused.
 */
static void
handle_type(ReplMlApply *apply, StringInfo message)
{
	LogicalRepTyp type;

	logicalrep_read_typ(message, &type);
}

/*
 * Handles a message in the WAL of the peer, or one that its walsender added.
 * In a transaction it says that somebody waits for it, or will ask for it;
 * outside it is that of a prepared one, or a question how far we are, or an
 * answer.
 */
static void
handle_logical_message(ReplMlApply *apply, StringInfo message)
{
	char	   *content;
	int			length;
	ReplMlRecord record;
	ReplMlUrgency urgency;
	bool		wanted;

	(void) pq_getmsgbyte(message);	/* flags */
	(void) pq_getmsgint64(message); /* position */
	if (strcmp(pq_getmsgstring(message), REPL_ML_MESSAGE_PREFIX) != 0)
		return;
	length = pq_getmsgint(message, 4);
	content = pnstrdup(pq_getmsgbytes(message, length), length);
	wanted = repl_ml_record_parse(content, &record) && repl_ml_record_is_wanted(apply, &record);
	if (apply->transaction.open)
	{
		if (repl_ml_urgency_parse(content, &urgency))
			apply->transaction.urgency = Max(apply->transaction.urgency, urgency);
		repl_ml_fence_hear(apply, content);
		/* also where there is nothing else for this node: how far it is, matters */
		if (apply->transaction.round != 0)
		{
			repl_ml_dispatch_begin(apply);
			apply->batch.matters = true;
		}
		if (repl_ml_unsent_is_meant(content))
		{
			repl_ml_dispatch_begin(apply);
			apply->batch.matters = true;
			repl_ml_unsent_note(apply, content);
		}
		if (!wanted)
			return;
		repl_ml_dispatch_begin(apply);
		apply->batch.matters = true;
		repl_ml_record_transaction(apply, &record);
	}
	else if (wanted)
	{
		repl_ml_dispatch_finish(apply, false);
		repl_ml_record_prepared(apply, &record);
	}
	else if (repl_ml_schema_change_read(&apply->group_id, content) > 0)
	{
		repl_ml_dispatch_finish(apply, false);
		apply->awaits_schema = repl_ml_schema_change_read(&apply->group_id, content);
		apply->awaits_since = 0;
	}
	else if (repl_ml_barrier_read(&apply->group_id, apply->peer->node_id, content))
		apply->progress.asked = true;
}

/* Handles a row that was inserted. */
static void
handle_insert(ReplMlApply *apply, StringInfo message)
{
	LogicalRepTupleData tuple;
	LogicalRepRelId id = logicalrep_read_insert(message, &tuple);

	repl_ml_change_handle(apply, id, 'I', &tuple);
}

/*
 * Handles a row that was updated.  The new version is whole, so what it
 * replaced does not matter.
 */
static void
handle_update(ReplMlApply *apply, StringInfo message)
{
	LogicalRepTupleData old;
	LogicalRepTupleData new;
	bool		has_old;
	LogicalRepRelId id = logicalrep_read_update(message, &has_old, &old, &new);

	repl_ml_change_handle(apply, id, 'U', &new);
}

/*
 * Called by change.c, too: begins the local transaction, unless it is running,
 * at the first thing in the peer's that leads to something here.
 */
void
repl_ml_dispatch_begin(ReplMlApply *apply)
{
	if (!apply->transaction.started && apply->batch.count == 0)
	{
		SetCurrentStatementStartTimestamp();
		StartTransactionCommand();
		PushActiveSnapshot(GetTransactionSnapshot());
		MemoryContextSwitchTo(apply->message_context);
	}
	apply->transaction.started = true;
	repl_ml_crash_applies(apply->transaction.final_lsn,
						  apply->transaction.mode != REPL_ML_APPLY_NORMAL);
}

/*
 * Says whether the change will fail again, however often it is simply tried
 * again.
 */
bool
repl_ml_dispatch_is_permanent(int sqlstate)
{
	switch (ERRCODE_TO_CATEGORY(sqlstate))
	{
		case MAKE_SQLSTATE('5', '3', '0', '0', '0'):	/* disk, memory */
		case MAKE_SQLSTATE('5', '7', '0', '0', '0'):	/* shutdown, cancel */
		case MAKE_SQLSTATE('5', '8', '0', '0', '0'):	/* I/O */
			return false;
		default:

			/*
			 * other errors of class 40 do not arise by themselves: triggers
			 * raise them
			 */
			return sqlstate != ERRCODE_LOCK_NOT_AVAILABLE &&
				sqlstate != ERRCODE_T_R_DEADLOCK_DETECTED;
	}
}

