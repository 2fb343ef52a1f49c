/*
 * replay.c
 *		What has come of the stream and is not committed here yet: kept, so that
 *		after an error it is applied again in another way, without a new
 *		connection.
 *
 * A change that fails aborts the local transaction, and with it those of the
 * peer that share it.  Their messages are applied again from here: each
 * transaction of the peer by itself, and the one that failed carefully
 * (ReplMlApplyMode), or put aside where a waiting commit was in its way
 * (aside.c).  So a row that cannot be applied costs its own time and no other
 * table's.  A transaction too large to be kept is sent again by the peer.
 *
 * The apply worker's alone.  Called by group/worker.c with each message of the
 * stream and by dispatch.c when it commits; next on the way: dispatch.c.  Not
 * here: what an error means for a connection (group/worker.c).  No locks:
 * those of what failed are let go before it is applied again.
 */
#include "postgres.h"

#include "access/xact.h"
#include "miscadmin.h"
#include "replication/origin.h"
#include "utils/memutils.h"

#include "apply/apply.h"
#include "compat.h"
#include "server/server.h"

#define KEPT_BYTES			(4 * 1024 * 1024)
#define FULL_ENOUGH			(KEPT_BYTES / 2)	/* a batch is committed then */
#define MOST_FAILURES		8	/* of one transaction before the link begins
								 * anew */

/* Before each message in the buffer. */
typedef struct KeptHeader
{
	int			length;
	XLogRecPtr	lsn;			/* the message's place in the peer's WAL */
} KeptHeader;

/* The messages since our last commit; written in this file only. */
static StringInfo kept = NULL;
static bool complete = true;	/* all of them are in it */
static int	handled = 0;		/* up to here, the one being handled included
								 * unless it is a BEGIN */
static int	committed = 0;		/* up to here it is done with */

static void keep_message(ReplMlApply *apply, StringInfo message);
static void note_handled(int end, StringInfo message);
static bool succeeds(ReplMlApply *apply, void (*step) (ReplMlApply *apply, void *argument),
					 void *argument);
static void dispatch_message(ReplMlApply *apply, void *message);
static void commit_batch(ReplMlApply *apply, void *durable);
static void replay_kept(ReplMlApply *apply, void *nothing);
static bool may_replay(ReplMlApply *apply);
static void prepare_replay(ReplMlApply *apply);

/* Forgets all: the peer will send it again. */
void
repl_ml_replay_forget(void)
{
	if (kept != NULL)
		resetStringInfo(kept);
	handled = committed = 0;
	complete = true;
}

/*
 * Handles one message of the stream, and applies again what its error has
 * undone; see the head of the file.
 */
void
repl_ml_replay_dispatch(ReplMlApply *apply, StringInfo message)
{
	if (message->data[message->cursor] == LOGICAL_REP_MSG_BEGIN)
	{
		repl_ml_aside_begin();
		/* one that may be put aside has none before it to take along */
		if (apply->batch.count > 0 &&
			(repl_ml_aside_is_keeping() || (kept != NULL && kept->len > FULL_ENOUGH)))
			repl_ml_dispatch_finish(apply, false);
	}
	keep_message(apply, message);
	if (!succeeds(apply, dispatch_message, message))
	{
		while (!succeeds(apply, replay_kept, NULL))
			;
	}
}

/*
 * Commits the batch; what that fails for is applied again, each transaction by
 * itself.
 */
void
repl_ml_replay_finish(ReplMlApply *apply, bool durable)
{
	if (!succeeds(apply, commit_batch, &durable))
	{
		while (!succeeds(apply, replay_kept, NULL))
			;
	}
}

/*
 * Does a step; returns false if that failed, and what is kept and not
 * committed has to be applied again: everything is given back then, and how is
 * noted.  Other errors are raised.
 */
static bool
succeeds(ReplMlApply *apply, void (*step) (ReplMlApply *apply, void *argument), void *argument)
{
	volatile bool done = true;

	PG_TRY();
	{
		step(apply, argument);
	}
	PG_CATCH();
	{
		if (!may_replay(apply))
			PG_RE_THROW();
		done = false;
	}
	PG_END_TRY();
	if (!done)
		prepare_replay(apply);
	return done;
}

/* Handles a message, as a step of succeeds. */
static void
dispatch_message(ReplMlApply *apply, void *message)
{
	repl_ml_dispatch(apply, message);
}

/* Commits the batch, as a step of succeeds. */
static void
commit_batch(ReplMlApply *apply, void *durable)
{
	repl_ml_dispatch_finish(apply, *(bool *) durable);
}

/* Notes, for dispatch.c, that what has been handled so far is committed. */
void
repl_ml_replay_committed(void)
{
	committed = handled;
	if (kept == NULL || committed >= kept->len)
		repl_ml_replay_forget();
}

/*
 * Keeps a message of a transaction, or of what lies between those of a batch.
 */
static void
keep_message(ReplMlApply *apply, StringInfo message)
{
	KeptHeader	header = {.length = message->len - message->cursor,.lsn = apply->message_lsn};

	if (kept == NULL)
	{
		MemoryContext old = MemoryContextSwitchTo(TopMemoryContext);

		kept = makeStringInfo();
		MemoryContextSwitchTo(old);
	}
	if (!apply->transaction.open && apply->batch.count == 0)
		repl_ml_replay_forget();

	/* too large to be kept: the peer sends it again */
	if (!complete)
		return;
	if (header.length > KEPT_BYTES - kept->len)
	{
		complete = false;
		return;
	}
	appendBinaryStringInfo(kept, (char *) &header, sizeof(header));
	appendBinaryStringInfo(kept, message->data + message->cursor, header.length);
	note_handled(kept->len, message);
}

/*
 * Notes that the message that ends at "end" is being handled.  Before a BEGIN
 * may be a commit of what came before.
 */
static void
note_handled(int end, StringInfo message)
{
	if (message->data[message->cursor] != LOGICAL_REP_MSG_BEGIN)
		handled = end;
}

/*
 * Says whether what is kept may be applied again in another way, after the
 * error being handled.  It may not if the error will go away by itself, or is
 * the stream's; but a lock that somebody holds is waited for here, too.
 */
static bool
may_replay(ReplMlApply *apply)
{
	if (!complete || kept == NULL || kept->len == 0)
		return false;
	if (apply->batch.crowded || repl_ml_locked_by_commit(geterrcode()))
		return true;
	if (repl_ml_locked_is_race(geterrcode()))
		return !repl_ml_apply_is_to_pause(apply);
	if (!repl_ml_dispatch_is_permanent(geterrcode()) || apply->retry.failures >= MOST_FAILURES)
		return false;
	/* at the end of a batch nobody knows whose error it is; alone, they will tell */
	return apply->transaction.open ? apply->blame_transaction :
		apply->message_lsn > apply->batch.single_until;
}

/*
 * Gives everything back after the error, and notes how what it hit is to be
 * applied now.
 */
static void
prepare_replay(ReplMlApply *apply)
{
	bool		crowded = apply->batch.crowded;
	XLogRecPtr	hit = apply->transaction.open && apply->blame_transaction ?
		apply->transaction.final_lsn : InvalidXLogRecPtr;
	bool		impatient = apply->transaction.impatient;
	ErrorData  *error;
	bool		blocked;
	bool		race;

	HOLD_INTERRUPTS();
	MemoryContextSwitchTo(TopMemoryContext);
	error = CopyErrorData();
	FlushErrorState();
	blocked = repl_ml_locked_by_commit(error->sqlerrcode);
	race = !crowded && repl_ml_locked_is_race(error->sqlerrcode);
	replorigin_session_origin_lsn = InvalidXLogRecPtr;
	replorigin_session_origin_timestamp = 0;
	AbortOutOfAnyTransaction();
	repl_ml_dispatch_reset(apply);
	repl_ml_applying = true;
	MemoryContextReset(apply->message_context);
	MemoryContextSwitchTo(apply->message_context);

	/*
	 * Each by itself, so that what ends well is committed; a change's place may be
	 * before the end of a transaction that came first
	 */
	apply->batch.single_until = Max(apply->batch.single_until, apply->progress.received);
	if (blocked)
		apply->retry.blocked_lsn = hit;
	if (race && hit != InvalidXLogRecPtr)
		repl_ml_dispatch_locked(apply, hit, error->sqlerrcode);
	repl_ml_locked_unwatch();
	if (hit == InvalidXLogRecPtr || blocked || crowded || (race && !impatient))
		FreeErrorData(error);
	else
		repl_ml_dispatch_blame(apply, hit, error);
	RESUME_INTERRUPTS();
	if (race && (hit == InvalidXLogRecPtr || impatient || !repl_ml_dispatch_is_impatient(apply)))
		apply->give_way();
}

/* Applies what is kept and not committed. */
static void
replay_kept(ReplMlApply *apply, void *nothing)
{
	for (int at = committed; kept->len > 0 && at < kept->len;)
	{
		StringInfoData message = {.maxlen = -1};
		KeptHeader	header;

		CHECK_FOR_INTERRUPTS();
		memcpy(&header, kept->data + at, sizeof(header));
		message.data = kept->data + at + sizeof(header);
		message.len = header.length;
		at += sizeof(header) + header.length;
		note_handled(at, &message);
		apply->message_lsn = header.lsn;
		repl_ml_dispatch(apply, &message);
		MemoryContextReset(apply->message_context);
	}
}
