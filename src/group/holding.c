/*
 * holding.c
 *		The lease of strong tables while it is here: opened for clients, given away, and the
 *		answer to who asks for it.
 *
 * A tenure is opened when everything is here that was written in former ones, its base.  It
 * is given to who asked first, when all clients here have ended and a majority has what they
 * wrote: that is written down, durably, and then told.
 *
 * The process of tenure.c, but for repl_ml.lease_ask().  Not here: how it comes (election.c).
 */
#include "postgres.h"

#include "access/transam.h"
#include "access/xact.h"
#include "access/xlog.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "replication/syncrep.h"
#include "storage/latch.h"
#include "storage/lock.h"
#include "storage/proc.h"
#include "storage/procarray.h"
#include "utils/builtins.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "commit/commit.h"
#include "compat.h"
#include "group/tenure_private.h"
#include "read/read.h"
#include "server/server.h"
#include "wire/wire.h"

#define ASK_MS				300 /* so long a question waits at the holder */
#define CATCH_UP_MS			20
#define DEADLOCK_US			UINT64CONST(1000000)
#define GONE_US				UINT64CONST(1000000)
#define CONNECTED_MS		10000	/* so long after its start a server may not hear the others */
#define CATCH_UP_PATIENCE_US	UINT64CONST(10000000)
#define IDLE_MS				1000

static ReplMlTenure *const mine = &repl_ml_tenure;
static uint64 catching_up = 0;	/* since when it tries to open its tenure; 0: it does not */
static bool closing = false;	/* clients that had the lease may not have ended yet */

static void note_gone(void);
static bool open_tenure(char **why);

/* Says whether the process has begun to open its tenure. */
bool
repl_ml_holding_is_opening(void)
{
	return catching_up != 0;
}

/* The tenure is another node's. */
void
repl_ml_holding_stop(void)
{
	catching_up = 0;
}

/*
 * Opens the tenure as soon as everything is here that was written in former ones; if that
 * takes long, those who wait are told, and others get the lease.
 */
int
repl_ml_holding_open(bool is_needed)
{
	char	   *why = NULL;
	uint64		now = repl_ml_monotonic_now();

	if (catching_up == 0)
		catching_up = now;
	if (open_tenure(&why))
	{
		catching_up = 0;
		return 0;
	}
	if (now - catching_up > CATCH_UP_PATIENCE_US || (is_needed && repl_ml_members_is_cut_off()))
	{
		catching_up = 0;
		repl_ml_tenure_refuse(psprintf(_("This node has the lease of strong tables and cannot "
										 "use it: %s"), why));
		if (repl_ml_tenure_is_asked())
			repl_ml_holding_give();
		return IDLE_MS;
	}
	if (now - catching_up > GONE_US)
		note_gone();
	if (now - catching_up > DEADLOCK_US)
		repl_ml_holding_end_deadlock();
	if (!is_needed && now - catching_up > DEADLOCK_US)
		return IDLE_MS;
	(void) repl_ml_position_wait(TimestampTzPlusMilliseconds(GetCurrentTimestamp(), CATCH_UP_MS),
								 "ReplMlLeaseCatchUp");
	return 0;
}

/*
 * What a node that is gone wrote, and this one lacks, comes from another member: strong
 * tables are made as they are there.
 */
static void
note_gone(void)
{
	if (!TimestampDifferenceExceeds(PgStartTime, GetCurrentTimestamp(), CONNECTED_MS))
		return;
	repl_ml_begin();
	SPI_execute("UPDATE repl_ml.lease_state s SET unclean = true WHERE NOT s.unclean"
				" AND EXISTS (SELECT FROM repl_ml.strong_base_lacks() l"
				" WHERE NOT repl_ml.hears(l.node_id))", false, 0);
	repl_ml_commit();
	MemoryContextSwitchTo(mine->context);
}

/*
 * A client that waits for the lease may have locked what an apply worker needs before the
 * lease can be opened, or strong tables are clean: it gets an error, and the others look
 * again.
 */
void
repl_ml_holding_end_deadlock(void)
{
	static uint64 last = 0;
	int64		pid;

	if (repl_ml_monotonic_now() - last < DEADLOCK_US)
		return;
	last = repl_ml_monotonic_now();
	repl_ml_begin();
	pid = repl_ml_query_int("SELECT w.pid FROM pg_catalog.pg_locks w"
							" WHERE w.locktype OPERATOR(pg_catalog.=) 'advisory'"
							" AND w.database OPERATOR(pg_catalog.=) (SELECT d.oid"
							" FROM pg_catalog.pg_database d"
							" WHERE d.datname OPERATOR(pg_catalog.=) pg_catalog.current_database())"
							" AND w.classid OPERATOR(pg_catalog.=) 0"
							" AND w.objid OPERATOR(pg_catalog.=) 0"
							" AND w.objsubid OPERATOR(pg_catalog.=) 5 AND NOT w.granted"
							" AND EXISTS (SELECT FROM repl_ml.worker_stats() s"
							" WHERE w.pid OPERATOR(pg_catalog.=) ANY"
							" (pg_catalog.pg_blocking_pids(s.pid))) LIMIT 1");
	repl_ml_commit();
	if (pid == 0)
		return;
	LWLockAcquire(repl_ml_lease_lock(), LW_EXCLUSIVE);
	mine->lease->victim = pid;
	LWLockRelease(repl_ml_lease_lock());
	repl_ml_tenure_let_all_look();
}

/*
 * Returns what of the base is not here by what has come with strong tables, and so has to be
 * here by its position; nothing of this node's own.
 */
static ReplMlClock *
find_wanted(void)
{
	ReplMlClock *wanted = repl_ml_clock_empty();

	SPI_execute("SELECT l.node_id, l.lsn FROM repl_ml.strong_base_lacks() l", true, 0);
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		ReplMlClockEntry entry = {.node = pg_strtoint32(repl_ml_spi_text(i, 0)),
		.counter = strtoull(repl_ml_spi_text(i, 1), NULL, 10)};

		wanted = repl_ml_clock_merge(wanted, repl_ml_clock_from_entries(&entry, 1));
	}
	return wanted;
}

/*
 * Says to clients that they may write, as soon as they get the lock, unless a later round has
 * been accepted meanwhile; whoever accepts one waits until the caller's transaction has ended.
 */
static bool
let_in(void)
{
	TransactionId xid;

	repl_ml_round_share();
	PushActiveSnapshot(GetLatestSnapshot());
	SPI_execute(psprintf("SELECT FROM repl_ml.lease_state s"
						 " WHERE s.holder OPERATOR(pg_catalog.=) %d"
						 " AND s.promised OPERATOR(pg_catalog.=) s.round"
						 " AND s.opened OPERATOR(pg_catalog.=) s.round AND NOT s.unclean",
						 mine->self), true, 1);
	PopActiveSnapshot();
	if (SPI_processed == 0)
		return false;
	/* who sees it sees all that is here now */
	xid = GetTopTransactionId();
	LWLockAcquire(repl_ml_lease_lock(), LW_EXCLUSIVE);
	mine->lease->opened_xid = xid;
	mine->lease->round = mine->state.epoch.round;
	mine->lease->opened = repl_ml_monotonic_now();
	mine->lease->refused = 0;
	mine->lease->settled = true;
	mine->lease->taken++;
	/* another number for each time that it is opened */
	mine->lease->holds = ++mine->lease->serial;
	LWLockRelease(repl_ml_lease_lock());
	return true;
}

/*
 * Lets the clients of this node write if nothing is missing; else returns false and sets
 * what is.
 */
static bool
open_tenure(char **why)
{
	static SPIPlanPtr obstacle = NULL;
	MemoryContext context = CurrentMemoryContext;
	char	   *lacking = NULL;
	bool		opened = false;

	if (repl_ml_members_is_cut_off() && mine->state.opened == mine->state.accepted)
	{
		*why = _("too few members can be reached.");
		return false;
	}
	if (!mine->confirmed && !repl_ml_election_confirm())
	{
		*why = _("a majority of the members has not accepted that it has it.");
		return false;
	}
	if (repl_ml_holding_find_end() > repl_ml_unacknowledged_position(REPL_ML_QUORUM))
	{
		*why = _("a majority does not have yet what was written with it before.");
		return false;
	}
	repl_ml_begin();
	if (!repl_ml_barrier_covers(find_wanted(), &lacking))
		lacking = lacking == NULL ? _("what is left of a dropped node has not been compared.") :
			psprintf("%s.", lacking);
	else if (SPI_execute_plan(repl_ml_spi_plan(&obstacle, "SELECT repl_ml.strong_obstacle()", 0,
											   NULL), NULL, NULL, false, 1) == SPI_OK_SELECT)
		lacking = repl_ml_spi_text(0, 0);
	if (lacking != NULL)
		*why = MemoryContextStrdup(context, lacking);
	if (lacking == NULL)
		opened = let_in();
	repl_ml_commit();
	MemoryContextSwitchTo(context);
	ConditionVariableCancelSleep();
	if (lacking == NULL && !opened)
		*why = _("another node has just been voted for.");
	/* they see what is committed now */
	if (opened)
		repl_ml_tenure_let_go();
	return opened;
}

/* ---- giving ---- */

/* Returns the first node in line, which leaves it; 0 if there is none. */
static int
leave_line(void)
{
	int			node = 0;

	LWLockAcquire(repl_ml_lease_lock(), LW_EXCLUSIVE);
	if (mine->lease->line_count > 0)
	{
		node = mine->lease->line[0].node;
		mine->lease->line_count--;
		memmove(&mine->lease->line[0], &mine->lease->line[1],
				mine->lease->line_count * sizeof(mine->lease->line[0]));
	}
	LWLockRelease(repl_ml_lease_lock());
	return node;
}

/*
 * Returns up to where what was written here in this tenure ends in the WAL.  Called by tenure.c,
 * too, before what it needs is asked of others: from there on that does not move.
 */
XLogRecPtr
repl_ml_holding_find_end(void)
{
	XLogRecPtr	end;
	bool		known;

	LWLockAcquire(repl_ml_lease_lock(), LW_SHARED);
	end = mine->lease->last_end;
	known = !mine->lease->end_unknown;
	LWLockRelease(repl_ml_lease_lock());
	if (known)
		return end;
	repl_ml_begin();
	end = repl_ml_clock_counter(repl_ml_positions_to_share(true), mine->self);
	repl_ml_commit();
	LWLockAcquire(repl_ml_lease_lock(), LW_EXCLUSIVE);
	/* nobody writes now; and from here on it is this end, however often it is tried */
	mine->lease->last_end = end;
	mine->lease->end_unknown = false;
	LWLockRelease(repl_ml_lease_lock());
	return end;
}

/*
 * Gives the lease to the first node in line, when all clients here have ended and a
 * majority has what they have written.  Where it has not, or nobody asks any more, they go
 * on.
 */
void
repl_ml_holding_give(void)
{
	uint64		closings = mine->lease->closings;
	uint64		held = mine->lease->holds;
	MemoryContext context = CurrentMemoryContext;
	XLogRecPtr	end;
	int			node = 0;

	(void) repl_ml_tenure_take_lock(false);
	mine->lease->holds = 0;
	end = repl_ml_holding_find_end();
	MemoryContextSwitchTo(context);
	if ((end == 0 || end <= repl_ml_unacknowledged_position(REPL_ML_QUORUM)) &&
		(mine->lease->given_up == 0 || !repl_ml_unacknowledged_has(mine->lease->given_up, false)) &&
		repl_ml_tenure_is_asked())
		node = leave_line();
	if (node != 0)
	{
		ReplMlClockEntry own = {.node = mine->self,.counter = Max(end, 1)};
		Epoch		next = {mine->state.epoch.round, mine->state.epoch.turn + 1};

		if (repl_ml_tenure_write(next, node,
								 repl_ml_clock_merge(mine->state.base,
													 repl_ml_clock_from_entries(&own, 1))))
		{
			LWLockAcquire(repl_ml_lease_lock(), LW_EXCLUSIVE);
			mine->lease->last_end = 0;
			mine->lease->given_up = 0;
			mine->lease->given++;
			/* the others hear where it is, and stand in line there */
			mine->lease->line_count = 0;
			LWLockRelease(repl_ml_lease_lock());
		}
		/* who asks waits for news there */
		repl_ml_positions_advanced();
		return;
	}
	/* they go on, unless another node has been voted for meanwhile */
	LWLockAcquire(repl_ml_lease_lock(), LW_EXCLUSIVE);
	if (mine->lease->closings != closings)
		held = 0;
	mine->lease->holds = held;
	LWLockRelease(repl_ml_lease_lock());
	if (held != 0)
		repl_ml_tenure_let_go();
}

/*
 * Called by tenure.c when others have voted for a later round, and when its process begins
 * where clients still have the lock: nobody begins to write before this node's round is
 * confirmed, or a later one is its own, and it does not stand for that as long as
 * repl_ml_holding_is_closing.
 */
void
repl_ml_holding_close(void)
{
	LWLockAcquire(repl_ml_lease_lock(), LW_EXCLUSIVE);
	mine->lease->holds = 0;
	mine->lease->closings++;
	/* what they have committed is in the base of that, acknowledged or not */
	mine->lease->end_unknown = true;
	LWLockRelease(repl_ml_lease_lock());
	mine->confirmed = false;
	closing = true;
}

/*
 * Says whether a client here has begun to write and may still commit.  Those that have
 * committed, and wait for members that have voted for a later round, are acknowledged in
 * that only: nobody waits for them.
 */
bool
repl_ml_holding_is_closing(void)
{
	if (!closing || repl_ml_tenure_take_lock(true))
		return closing = false;
	closing = false;
	repl_ml_begin();
	SPI_execute("SELECT w.pid FROM pg_catalog.pg_locks w"
				" WHERE w.locktype OPERATOR(pg_catalog.=) 'advisory'"
				" AND w.database OPERATOR(pg_catalog.=) (SELECT d.oid"
				" FROM pg_catalog.pg_database d"
				" WHERE d.datname OPERATOR(pg_catalog.=) pg_catalog.current_database())"
				" AND w.classid OPERATOR(pg_catalog.=) 0 AND w.objid OPERATOR(pg_catalog.=) 0"
				" AND w.objsubid OPERATOR(pg_catalog.=) 5 AND w.granted"
				" AND w.pid IS NOT NULL", true, 0);
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		PGPROC	   *proc = BackendPidGetProc(pg_strtoint32(repl_ml_spi_text(i, 0)));

		LWLockAcquire(SyncRepLock, LW_SHARED);
		closing |= proc != NULL && proc->syncRepState != SYNC_REP_WAITING;
		LWLockRelease(SyncRepLock);
	}
	repl_ml_commit();
	MemoryContextSwitchTo(mine->context);
	return closing;
}

/* ---- the answer to who asks ---- */

/* Puts a node in line, or keeps its place; where the line is full it asks again later. */
static void
stand_in_line(ReplMlLease *own, int node)
{
	int			i = 0;

	LWLockAcquire(repl_ml_lease_lock(), LW_EXCLUSIVE);
	while (i < own->line_count && own->line[i].node != node)
		i++;
	if (i < REPL_ML_LEASE_LINE)
	{
		own->line[i].node = node;
		own->line[i].seen = repl_ml_monotonic_now();
		own->line_count = Max(own->line_count, i + 1);
	}
	LWLockRelease(repl_ml_lease_lock());
}

/* Returns what this node's row of the catalog says to who asks; NULL if the lease is here. */
static char *
read_answer(int asker, int here)
{
	static SPIPlanPtr select = NULL;
	char	   *answer = NULL;
	MemoryContext context = CurrentMemoryContext;
	Oid			types[2] = {INT4OID, INT4OID};
	Datum		values[2] = {Int32GetDatum(asker), Int32GetDatum(here)};

	PushActiveSnapshot(GetLatestSnapshot());
	SPI_connect();
	(void) repl_ml_spi_plan(&select, "SELECT CASE WHEN s.holder OPERATOR(pg_catalog.=) $1"
							" THEN pg_catalog.format('given %s %s %s', s.round, s.turn, s.base)"
							" WHEN s.holder OPERATOR(pg_catalog.<>) $2"
							" THEN pg_catalog.format('elsewhere %s %s %s', s.round, s.turn,"
							" s.holder) END FROM repl_ml.lease_state s"
							" WHERE EXISTS (SELECT FROM repl_ml.member m"
							" WHERE m.node_id OPERATOR(pg_catalog.=) $1"
							" AND m.state OPERATOR(pg_catalog.=) 'ready')", 2, types);
	SPI_execute_plan(select, values, NULL, true, 1);
	if (SPI_processed == 0)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("node %d is no ready member of the group", asker),
				 errhint("Run SELECT node_id, node_name, state FROM repl_ml.nodes.")));
	if (repl_ml_spi_text(0, 0) != NULL)
		answer = MemoryContextStrdup(context, repl_ml_spi_text(0, 0));
	SPI_finish();
	PopActiveSnapshot();
	return answer;
}

PG_FUNCTION_INFO_V1(repl_ml_lease_ask);

/*
 * repl_ml.lease_ask(asker): called by the process of a node that wants the lease, on the
 * one that has it, to its knowledge.  Waits a moment until it is
 * given away; answers "given", with what goes with it, "elsewhere", or "wait".
 */
Datum
repl_ml_lease_ask(PG_FUNCTION_ARGS)
{
	ReplMlLease *own;
	int			asker = PG_GETARG_INT32(0);
	int			here = repl_ml_identity_require()->node_id;
	TimestampTz deadline = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), ASK_MS);
	char	   *answer;

	repl_ml_shmem_require();
	own = repl_ml_lease();
	if (own == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_CANNOT_CONNECT_NOW),
				 errmsg("this node is not connected to its group yet"),
				 errhint("Try again in a moment.")));
	answer = read_answer(asker, here);
	if (answer == NULL)
	{
		stand_in_line(own, asker);
		repl_ml_lease_call(own);
		do
			answer = read_answer(asker, here);
		while (answer == NULL && repl_ml_position_wait(deadline, "ReplMlLeaseAsk"));
		ConditionVariableCancelSleep();
	}
	else if (strncmp(answer, "elsewhere", 9) == 0)
	{
		/* others take it for this node's: it may have been given it, and finds out */
		own->mistaken = true;
		repl_ml_lease_look(own);
	}
	PG_RETURN_TEXT_P(cstring_to_text(answer == NULL ? "wait" : answer));
}
