/*
 * news.c
 *		Is there anything for the peers in what a flush has made durable?
 *
 * Core wakes all walsenders after each flush of WAL.  On a node that applies
 * what others write that is in vain: what came from a peer goes to no peer,
 * but decoding it, and saying how far one is, costs a process switch on both
 * sides, several for each transaction of the group.  So apply workers flush
 * without waking anybody, and the walsenders catch up in one go a moment
 * later; unless something of this node's own may be among it.
 *
 * Whoever writes something of this node's own says so before its WAL is there
 * (begin) and after it is flushed (end).  If nothing has begun since the
 * walsenders were last woken, with nothing under way then, there is none.
 * Core itself does the waking for whoever flushes its own WAL; here it is done
 * for those who find theirs flushed by an apply worker.  Walsenders that are
 * not ours, of standbys or core subscriptions, wait for everything: as long as
 * there is one all are woken.
 *
 * Not here: what peers are told (write/output.c), and how soon a commit needs
 * them (commit/quorum.c).  The counts are atomics; no locks.
 */
#include "postgres.h"

#include "access/xact.h"
#include "access/xlog.h"
#include "replication/message.h"
#include "replication/origin.h"
#include "replication/walsender.h"
#include "replication/walsender_private.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "server/server.h"

#define LONGEST_SILENCE_MS	50	/* how long walsenders may sleep over WAL with
								 * nothing for peers */

static bool under_way = false;	/* of this process */
static TimestampTz silent_since = 0;	/* this process flushed without waking
										 * anybody; 0: it has made up for it */

/*
 * Writes a message into the WAL, durably, that goes to all peers, whoever's change is being
 * applied; returns where it ends.
 */
XLogRecPtr
repl_ml_news_write(const char *text)
{
	RepOriginId origin = replorigin_session_origin;
	XLogRecPtr	end;

	replorigin_session_origin = InvalidRepOriginId;
	repl_ml_news_begin();
	end = LogLogicalMessage_compat(REPL_ML_MESSAGE_PREFIX, text, strlen(text), false);
	replorigin_session_origin = origin;
	XLogFlush(end);
	repl_ml_news_end();
	return end;
}

/*
 * Called by a process that is about to write WAL of this node's own; a second
 * call does nothing.
 */
void
repl_ml_news_begin(void)
{
	if (under_way)
		return;
	under_way = true;
	(void) pg_atomic_fetch_add_u64(&repl_ml_shared->news_begun, 1);
}

/*
 * Called by the same process when that WAL is flushed, or will not be; without
 * a begin it does nothing.
 */
void
repl_ml_news_end(void)
{
	if (!under_way)
		return;
	under_way = false;
	(void) pg_atomic_fetch_add_u64(&repl_ml_shared->news_ended, 1);
}

/*
 * Called with 1 by a walsender that begins to serve a peer, with -1 when it
 * ends.
 */
void
repl_ml_news_count_walsender(int change)
{
	(void) pg_atomic_fetch_add_u32(&repl_ml_shared->peer_walsenders, change);
}

/* Says whether every walsender is one that serves a peer. */
static bool
all_are_ours(void)
{
	uint32		active = 0;

	for (int i = 0; i < max_wal_senders; i++)
	{
		/* a glance: one that has just come reads what is there anyway */
		if (WalSndCtl->walsnds[i].pid != 0)
			active++;
	}
	return active <= pg_atomic_read_u32(&repl_ml_shared->peer_walsenders);
}

/*
 * Says whether something of this node's own has been under way since the
 * walsenders were last woken.
 */
static bool
is_there_any(void)
{
	uint64		ended;
	uint64		begun;
	bool		any;

	pg_memory_barrier();
	ended = pg_atomic_read_u64(&repl_ml_shared->news_ended);
	pg_read_barrier();
	begun = pg_atomic_read_u64(&repl_ml_shared->news_begun);
	any = begun != pg_atomic_read_u64(&repl_ml_shared->news_told);
	if (any && begun == ended)
		pg_atomic_write_u64(&repl_ml_shared->news_told, begun);
	return any;
}

/* Wakes the walsenders at once. */
void
repl_ml_news_tell(void)
{
	silent_since = 0;
	wake_walsenders_compat();
}

/*
 * Called after an apply worker's flush: wakes the walsenders if they have to
 * be; otherwise repl_ml_news_settle will.
 */
static void
tell_or_wait(void)
{
	if (is_there_any() || !all_are_ours())
		repl_ml_news_tell();
	else if (silent_since == 0)
		silent_since = GetCurrentTimestamp();
}

/*
 * Called by apply workers: flushes WAL up to "lsn", and wakes walsenders only
 * for this node's own.  Whoever else has flushed it has seen to them.
 */
void
repl_ml_news_flush(XLogRecPtr lsn)
{
	int			walsenders = max_wal_senders;

	if (GetFlushRecPtr(NULL) >= lsn)
		return;
	/* what core looks at before it wakes them; test 390 counts their wake-ups */
	max_wal_senders = 0;
	PG_TRY();
	{
		XLogFlush(lsn);
	}
	PG_FINALLY();
	{
		max_wal_senders = walsenders;
	}
	PG_END_TRY();
	tell_or_wait();
}

/*
 * Called by apply workers: commits, durably, and wakes walsenders only for
 * this node's own.
 */
void
repl_ml_news_commit(void)
{
	int			walsenders = max_wal_senders;
	int			saved = synchronous_commit;

	max_wal_senders = 0;
	synchronous_commit = SYNCHRONOUS_COMMIT_LOCAL_FLUSH;
	PG_TRY();
	{
		CommitTransactionCommand();
	}
	PG_FINALLY();
	{
		max_wal_senders = walsenders;
		synchronous_commit = saved;
	}
	PG_END_TRY();
	tell_or_wait();
}

/*
 * Called by apply workers while repl_ml_news_due says so: wakes the walsenders
 * if they have slept for long enough.
 */
void
repl_ml_news_settle(void)
{
	if (silent_since != 0 &&
		TimestampDifferenceExceeds(silent_since, GetCurrentTimestamp(), LONGEST_SILENCE_MS))
		repl_ml_news_tell();
}

/*
 * Says how soon an apply worker has to call repl_ml_news_settle, in ms; -1: it
 * has nothing to do.
 */
int
repl_ml_news_due(void)
{
	return silent_since == 0 ? -1 : LONGEST_SILENCE_MS;
}

/* Wakes whoever waits for positions, answers or members. */
void
repl_ml_positions_advanced(void)
{
	ConditionVariableBroadcast(&repl_ml_shared->advanced);
}
