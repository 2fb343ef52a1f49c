/*
 * class.c
 *		Tables that change their class, from eventual to strong or back: nobody begins to
 *		write one that lets its last transactions of the old class end.
 *
 * The supervisor locks the table, so that whoever has written it has ended, and notes that
 * with the lock in hand (repl_ml.change_classes): the table is closed.  Who comes later gets
 * core's lock behind it, finds that here before its statement runs, and waits until all
 * members have done the same, and have all that was written before.
 *
 * Not here: which tables are closed (commit/level.c), nor what the members tell each other
 * (sql/parts/classes.sql).  Locks: core's of the table, until the transaction ends.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/namespace.h"
#include "catalog/pg_inherits.h"
#include "miscadmin.h"
#include "nodes/plannodes.h"
#include "parser/parsetree.h"
#include "storage/latch.h"
#include "storage/lmgr.h"
#include "storage/proc.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/snapmgr.h"

#include "commit/commit.h"
#include "compat.h"
#include "row/row.h"
#include "server/server.h"
#include "write/write.h"

#define FIRST_STEP_MS	1		/* between two looks, twice as long each time */
#define LAST_STEP_MS	32

static bool await_table(Oid relid);
static void refuse_to_wait(Oid root, uint64 begun);

/*
 * Called by strong.c before a statement that writes, with core's locks in hand: waits until
 * none of the tables that it writes, or locks rows of, is closed.  Returns whether it waited,
 * so that the statement's snapshot may be older than what it is to see; raises 57P03 after
 * repl_ml.write_timeout, and 55P03 after lock_timeout.
 */
bool
repl_ml_class_await(const PlannedStmt *plan)
{
	bool		waited = false;
	ListCell   *lc;

	foreach(lc, plan->resultRelations)
		waited |= await_table(rt_fetch(lfirst_int(lc), plan->rtable)->relid);
	foreach(lc, plan->rowMarks)
	{
		const PlanRowMark *mark = lfirst_node(PlanRowMark, lc);
		const RangeTblEntry *range = rt_fetch(mark->rti, plan->rtable);

		if (RowMarkRequiresRowShareLock(mark->markType) && range->rtekind == RTE_RELATION)
			waited |= await_table(range->relid);
	}
	return waited;
}

/*
 * Called by strong.c before a utility statement that writes or locks a table: as
 * repl_ml_class_await, but it has no lock of it yet, and must not find the table open and
 * write it when it is closed.  Who may not write the table gets none from here.
 */
bool
repl_ml_class_await_range(const RangeVar *range)
{
	Oid			relid = RangeVarGetRelid(range, NoLock, true);

	if (!OidIsValid(relid) ||
		pg_class_aclmask(relid, GetUserId(), ACL_INSERT | ACL_UPDATE | ACL_DELETE | ACL_TRUNCATE,
						 ACLMASK_ANY) == 0)
		return false;
	LockRelationOid(relid, RowExclusiveLock);
	return await_table(relid);
}

/* Waits as long as this table, or what it is a partition of, is closed; says whether it did. */
static bool
await_table(Oid relid)
{
	Oid			root = OidIsValid(relid) ? repl_ml_table_root(relid) : InvalidOid;
	uint64		begun = repl_ml_monotonic_now();
	int			step = FIRST_STEP_MS;
	bool		waited = false;

	while (OidIsValid(root) && repl_ml_level_is_closed(root))
	{
		waited = true;
		refuse_to_wait(root, begun);
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, step,
						 wait_event_compat("ReplMlTableClass"));
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
		AcceptInvalidationMessages();
		step = Min(2 * step, LAST_STEP_MS);
	}
	return waited;
}

/*
 * Raises an error if who waits since then has waited for long enough, or what it waits for may
 * wait for it: a transaction on another node that has written the table.
 */
static void
refuse_to_wait(Oid root, uint64 begun)
{
	uint64		waited = (repl_ml_monotonic_now() - begun) / 1000;

	if (waited >= DeadlockTimeout && repl_ml_lease_is_kept_from_others())
		ereport(ERROR,
				(errcode(ERRCODE_T_R_DEADLOCK_DETECTED),
				 errmsg("deadlock detected"),
				 errdetail("Table \"%s\" is changing its class, which waits for who has written "
						   "it; this transaction has the lease of strong tables, for which "
						   "somebody on another node waits.",
						   get_rel_name(root)),
				 errhint("Run the transaction again.")));
	if (LockTimeout > 0 && waited >= LockTimeout)
		ereport(ERROR,
				(errcode(ERRCODE_LOCK_NOT_AVAILABLE),
				 errmsg("canceling statement due to lock timeout"),
				 errdetail("Table \"%s\" is changing its class.", get_rel_name(root))));
	if (repl_ml_write_timeout() > 0 && waited >= repl_ml_write_timeout())
		ereport(ERROR,
				(errcode(ERRCODE_CANNOT_CONNECT_NOW),
				 errmsg("table \"%s\" cannot be written now: it is changing its class",
						get_rel_name(root)),
				 errdetail("Some member has not let the transactions end that have written it, or "
						   "does not have all that was written before (repl_ml.write_timeout)."),
				 errhint("See the column problem of repl_ml.tables on each node.")));
}

PG_FUNCTION_INFO_V1(repl_ml_let_writers_end);

/*
 * repl_ml.let_writers_end(relation): returns when all transactions have ended that have written
 * a table or locked rows of it, and keeps others from it until this one ends; raises 55P03 after
 * lock_timeout.  For the supervisor, and for members that are asked whether that can be done.
 */
Datum
repl_ml_let_writers_end(PG_FUNCTION_ARGS)
{
	Oid			relid = PG_GETARG_OID(0);

	LockRelationOid(relid, ExclusiveLock);
	if (get_rel_relkind(relid) == RELKIND_PARTITIONED_TABLE)
		(void) find_all_inheritors(relid, ExclusiveLock, NULL);
	PG_RETURN_VOID();
}
