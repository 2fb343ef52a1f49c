/*
 * strong.c
 *		Statements that write strong tables, or lock rows of them, take the lease first.
 *
 * Before the executor begins, and before COPY, TRUNCATE and LOCK TABLE.  The statement's
 * snapshot has been taken by then: if the lease came after it, it is taken anew, so that
 * the statement sees what was written on other nodes; a transaction that keeps its
 * snapshot has to begin anew.  Triggers, functions, cascades and foreign keys come here by
 * statements of their own.
 *
 * Not here: the lease (commit/lease.c), nor which tables are strong (commit/level.c).
 * No locks but that of the lease.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/namespace.h"
#include "executor/executor.h"
#include "miscadmin.h"
#include "nodes/plannodes.h"
#include "parser/parsetree.h"
#include "utils/snapmgr.h"

#include "commit/commit.h"
#include "read/read.h"
#include "row/row.h"
#include "server/server.h"
#include "write/write.h"

static ExecutorStart_hook_type previous_hook = NULL;

static void start_executor(QueryDesc *query, int flags);
static void refuse_old_snapshot(bool is_old);
static bool has_strong_tables(void);
static bool needs_lease(const PlannedStmt *plan);
static bool reads_strong(const PlannedStmt *plan);
static bool is_strong(Oid relid);
static bool is_any_strong(List *ranges);

/* Called by _PG_init: installs the hook at server start. */
void
repl_ml_strong_init(void)
{
	if (!process_shared_preload_libraries_in_progress)
		return;
	previous_hook = ExecutorStart_hook;
	ExecutorStart_hook = start_executor;
}

/*
 * The executor's hook: waits where a table is changing its class, and takes the lease for a
 * statement that needs it.
 */
static void
start_executor(QueryDesc *query, int flags)
{
	const PlannedStmt *plan = query->plannedstmt;

	if ((plan->resultRelations != NIL || plan->rowMarks != NIL) &&
		(flags & EXEC_FLAG_EXPLAIN_ONLY) == 0 && has_strong_tables() && repl_ml_class_await(plan))
	{
		refuse_old_snapshot(true);
		if (query->snapshot != InvalidSnapshot)
			repl_ml_read_renew(query);
	}
	if ((plan->resultRelations != NIL || plan->rowMarks != NIL) &&
		(flags & EXEC_FLAG_EXPLAIN_ONLY) == 0 && has_strong_tables() && needs_lease(plan))
	{
		repl_ml_lease_take();
		refuse_old_snapshot(false);
		if (query->snapshot != InvalidSnapshot && repl_ml_lease_is_newer(query->snapshot))
			repl_ml_read_renew(query);
		repl_ml_gate_pass(query->snapshot, repl_ml_read_timeout());
	}
	else if ((flags & EXEC_FLAG_EXPLAIN_ONLY) == 0 && has_strong_tables() &&
			 repl_ml_gate_is_watched() && reads_strong(plan))
		repl_ml_gate_pass(query->snapshot, repl_ml_read_timeout());
	if (previous_hook)
		previous_hook(query, flags);
	else
		standard_ExecutorStart(query, flags);
}

/*
 * Raises 40001 in a transaction that keeps its snapshot, if that is old: may lack what other
 * nodes have written before a change of the class was over, or before the lease came here.
 */
static void
refuse_old_snapshot(bool is_old)
{
	if (IsolationUsesXactSnapshot() && FirstSnapshotSet &&
		(is_old || repl_ml_lease_is_newer(GetTransactionSnapshot())))
		ereport(ERROR,
				(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
				 errmsg("could not serialize access due to concurrent update"),
				 errdetail("Strong tables may have been written on another node since this "
						   "transaction has its snapshot."),
				 errhint("Run the transaction again.")));
}

/*
 * Says whether this is a client's session in a member's database that has tables which are
 * strong or changing their class.
 */
static bool
has_strong_tables(void)
{
	if (repl_ml_level_none_is_strong())
		return false;
	return !repl_ml_internal_write && !repl_ml_applying && IsUnderPostmaster &&
		!IsInParallelMode() && IsTransactionState() && !RecoveryInProgress() &&
		OidIsValid(repl_ml_schema_oid()) && repl_ml_identity()->member &&
		repl_ml_level_any_strong();
}

/* Says whether a statement writes a strong table, or locks rows of one. */
static bool
needs_lease(const PlannedStmt *plan)
{
	ListCell   *lc;

	foreach(lc, plan->resultRelations)
	{
		if (is_strong(rt_fetch(lfirst_int(lc), plan->rtable)->relid))
			return true;
	}
	foreach(lc, plan->rowMarks)
	{
		const PlanRowMark *mark = lfirst_node(PlanRowMark, lc);
		const RangeTblEntry *range = rt_fetch(mark->rti, plan->rtable);

		if (RowMarkRequiresRowShareLock(mark->markType) && range->rtekind == RTE_RELATION &&
			is_strong(range->relid))
			return true;
	}
	return false;
}

/*
 * Says whether a statement reads a strong table.  One that only names it, as an argument, does
 * not: members copy tables with such statements.
 */
static bool
reads_strong(const PlannedStmt *plan)
{
	ListCell   *lc;

	foreach(lc, plan->rtable)
	{
		const RangeTblEntry *range = lfirst_node(RangeTblEntry, lc);

		if (range->rtekind == RTE_RELATION && is_strong(range->relid))
			return true;
	}
	return false;
}

/* Says whether a table, or the table that it is a partition of, is strong. */
static bool
is_strong(Oid relid)
{
	return OidIsValid(relid) && repl_ml_level_is_strong(repl_ml_table_root(relid));
}

/*
 * Called by statement.c before a utility statement is run: as the executor's hook, for one
 * that writes or locks tables itself.
 */
void
repl_ml_strong_utility(Node *stmt)
{
	List	   *ranges = NIL;
	ListCell   *lc;

	if (IsA(stmt, CopyStmt) && castNode(CopyStmt, stmt)->is_from)
		ranges = list_make1(castNode(CopyStmt, stmt)->relation);
	else if (IsA(stmt, TruncateStmt))
		ranges = castNode(TruncateStmt, stmt)->relations;
	else if (IsA(stmt, LockStmt) && castNode(LockStmt, stmt)->mode >= RowShareLock)
		ranges = castNode(LockStmt, stmt)->relations;
	else if (IsA(stmt, CopyStmt) && castNode(CopyStmt, stmt)->relation != NULL &&
			 has_strong_tables() && is_any_strong(list_make1(castNode(CopyStmt, stmt)->relation)))
		repl_ml_gate_pass(ActiveSnapshotSet() ? GetActiveSnapshot() : InvalidSnapshot,
						  repl_ml_read_timeout());
	if (ranges == NIL || !has_strong_tables())
		return;
	foreach(lc, ranges)
	{
		if (repl_ml_level_any_changing() && repl_ml_class_await_range(lfirst(lc)))
			refuse_old_snapshot(true);
	}
	if (!is_any_strong(ranges))
		return;
	repl_ml_lease_take();
	refuse_old_snapshot(false);
}

/* Says whether one of these tables is there and strong. */
static bool
is_any_strong(List *ranges)
{
	ListCell   *lc;

	foreach(lc, ranges)
	{
		if (is_strong(RangeVarGetRelid(lfirst(lc), NoLock, true)))
			return true;
	}
	return false;
}
