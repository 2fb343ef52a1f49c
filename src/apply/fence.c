/*
 * fence.c
 *		Transactions of the peer that wrote strong tables: those that count are applied,
 *		void ones without what they wrote there, and nothing behind one of which this node
 *		does not know that yet.
 *
 * They tell their round at their end.  What has been applied of one that does not count is
 * given back, and it is applied again by itself (replay.c) when it is known what it is.
 * Called by dispatch.c; apply/bulk.c for those that were put aside.
 *
 * Not here: what counts (commit/round.c).  Locks: that of round.c, as the transaction commits.
 */
#include "postgres.h"

#include "access/xact.h"
#include "miscadmin.h"
#include "replication/origin.h"
#include "storage/latch.h"
#include "utils/timestamp.h"

#include "apply/apply.h"
#include "commit/commit.h"
#include "compat.h"
#include "converge/converge.h"
#include "server/server.h"
#include "wire/wire.h"

#define POLL_MS			20
#define INQUIRE_US		UINT64CONST(300000)

/* Gives back what has been applied: it is applied again, each transaction by itself. */
static void
give_back(ReplMlApply *apply)
{
	apply->batch.crowded = true;
	ereport(ERROR,
			(errcode(ERRCODE_LOCK_NOT_AVAILABLE),
			 errmsg("a transaction of strong tables is applied when it is known that it counts")));
}

/*
 * Called by dispatch.c with each message in a transaction of the peer: notes in which round
 * it was written, if it is about that.
 */
void
repl_ml_fence_hear(ReplMlApply *apply, const char *content)
{
	int64		round;

	if (!repl_ml_round_parse(&apply->group_id, content, &round))
		return;
	apply->transaction.round = round;
	/* what is in one batch is judged as one */
	if (apply->batch.count > 0 && apply->batch.round != 0 && apply->batch.round != round)
		give_back(apply);
}

/*
 * Called by dispatch.c at the end of a transaction of the peer that wrote strong tables: it is
 * in the batch now.
 */
void
repl_ml_fence_add(ReplMlApply *apply, XLogRecPtr end)
{
	apply->batch.round = apply->transaction.round;
	apply->batch.strong_end = end;
	apply->batch.is_void = apply->transaction.is_void;
	apply->batch.last_commit = apply->transaction.final_lsn;
}

/*
 * Called by dispatch.c before the batch is committed, in its transaction: raises an error if
 * something in it does not count, or this node does not know.
 */
void
repl_ml_fence_settle(ReplMlApply *apply)
{
	int			node = apply->peer->node_id;

	if (apply->batch.round == 0)
		return;
	if (apply->batch.is_void)
	{
		repl_ml_round_note_void(node, apply->batch.last_commit, apply->transaction.xid);
		return;
	}
	repl_ml_round_share();
	if (repl_ml_round_judge(node, apply->batch.round, apply->batch.strong_end) != REPL_ML_IS_VALID)
	{
		if (apply->batch.count == 1)
		{
			apply->retry.judged_lsn = apply->batch.last_commit;
			apply->retry.judged_round = apply->batch.round;
			apply->retry.judged_end = apply->batch.strong_end;
		}
		give_back(apply);
	}
	repl_ml_round_note(node, apply->batch.strong_end);
}

/* Asks the members, and sees to it that somebody stands for the lease. */
static void
inquire(void)
{
	ReplMlLease *lease = repl_ml_lease();

	replorigin_session_origin_lsn = InvalidXLogRecPtr;
	replorigin_session_origin_timestamp = 0;
	repl_ml_round_inquire();
	if (lease != NULL)
		repl_ml_lease_call(lease);
}

/*
 * Called by dispatch.c when a transaction begins, outside of ours, and by bulk.c: waits, if
 * it was given back, until it is known whether it counts.  Returns whether it is void.
 */
bool
repl_ml_fence_wait(ReplMlApply *apply, int node, int64 round, XLogRecPtr end)
{
	uint64		asked = 0;
	ReplMlJudgement verdict;

	for (;;)
	{
		uint64		now = repl_ml_monotonic_now();

		StartTransactionCommand();
		verdict = repl_ml_round_judge(node, round, end);
		CommitTransactionCommand();
		MemoryContextSwitchTo(apply->message_context);
		if (verdict == REPL_ML_IS_VALID || verdict == REPL_ML_IS_VOID)
			return verdict == REPL_ML_IS_VOID;
		if (asked == 0 || verdict == REPL_ML_UNCLEAN)
			asked = now;
		else if (now - asked > INQUIRE_US)
		{
			inquire();
			MemoryContextSwitchTo(apply->message_context);
			asked = repl_ml_monotonic_now();
		}
		if (apply->give_way != NULL)
			apply->give_way();
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, POLL_MS,
						 wait_event_compat("ReplMlApplyRound"));
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
	}
}

/*
 * Says, for change.c, whether a change is passed over: of a strong table, in a void
 * transaction.
 */
bool
repl_ml_fence_is_void(const ReplMlApply *apply, Oid root)
{
	return apply->transaction.is_void && OidIsValid(root) && repl_ml_level_is_strong(root);
}
