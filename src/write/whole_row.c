/*
 * whole_row.c
 *		Statements that take a row as a whole, as they were written before the
 *		table had a clock.
 *
 * INSERT INTO t SELECT * FROM jsonb_populate_record(NULL::t, ...), or of any
 * record of the table's type, gives NULL for the clock: it stands for the
 * column's default.  NATURAL JOIN means the columns that the user knows: of two
 * tables with clocks it does not compare these, which are equal by accident
 * only; nor does a USING that names the clock, which is how a view with a natural
 * join is dumped.
 *
 * Both are changes of the parsed statement, so that they cost nothing when it
 * runs: of an INSERT when it is planned, after views and rules have been
 * expanded; of a join when it is analyzed, so that views keep it so.
 *
 * Not here: COPY, which has no statement to change (statement.c).  Runs in backends;
 * takes no locks.
 */
#include "postgres.h"

#include "access/table.h"
#include "access/xact.h"
#include "nodes/makefuncs.h"
#include "nodes/nodeFuncs.h"
#include "optimizer/planner.h"
#include "parser/analyze.h"
#include "parser/parsetree.h"
#include "rewrite/rewriteHandler.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"

#include "compat.h"
#include "row/row.h"
#include "server/server.h"
#include "write/write.h"

static planner_hook_type previous_planner = NULL;
static post_parse_analyze_hook_type previous_analyze = NULL;

static PlannedStmt *plan_query(Query *parse, const char *query_string, int cursor_options,
							   ParamListInfo params);
static void fill_clocks(Query *query);
static void fill_clock(List *targets, Oid relid);
static void analyze_query(ParseState *pstate, Query *query, JumbleState *jumble);
static bool mend_joins(Node *node, void *context);
static bool mend_joins_of(Node *node, void *context);
static void leave_clock_out(JoinExpr *join);

/* Called by _PG_init: installs the hooks. */
void
repl_ml_whole_row_init(void)
{
	previous_planner = planner_hook;
	planner_hook = plan_query;
	previous_analyze = post_parse_analyze_hook;
	post_parse_analyze_hook = analyze_query;
}

/* Says whether the extension is there to be looked for. */
static bool
is_installed(void)
{
	return IsTransactionState() && OidIsValid(repl_ml_schema_oid());
}

/*
 * The planner's hook: fills clocks before a statement that may insert is
 * planned.
 */
static PlannedStmt *
plan_query(Query *parse, const char *query_string, int cursor_options, ParamListInfo params)
{
	if ((parse->commandType != CMD_SELECT || parse->hasModifyingCTE) && is_installed())
		fill_clocks(parse);
	return (previous_planner ? previous_planner : standard_planner) (parse, query_string,
																	 cursor_options, params);
}

/* Lets each INSERT of the statement fill the clock where it is given NULL. */
static void
fill_clocks(Query *query)
{
	Oid			relid = query->resultRelation > 0 ?
		rt_fetch(query->resultRelation, query->rtable)->relid : InvalidOid;
	ListCell   *lc;

	if (query->commandType == CMD_INSERT)
		fill_clock(query->targetList, relid);
	foreach(lc, query->mergeActionList)
	{
		MergeAction *action = lfirst_node(MergeAction, lc);

		if (action->commandType == CMD_INSERT)
			fill_clock(action->targetList, relid);
	}
	foreach(lc, query->cteList)
		fill_clocks(castNode(Query, lfirst_node(CommonTableExpr, lc)->ctequery));
}

/*
 * Says whether the value is the default already, as where the user leaves the
 * column out.
 */
static bool
is_default(Expr *value)
{
	return IsA(value, FuncExpr) && ((FuncExpr *) value)->args == NIL &&
		get_func_namespace(((FuncExpr *) value)->funcid) == repl_ml_schema_oid();
}

/* Puts COALESCE(value, default) in the place of the value for the clock. */
static void
fill_clock(List *targets, Oid relid)
{
	AttrNumber	attnum = repl_ml_table_clock_attnum(relid);
	ListCell   *lc;

	foreach(lc, targets)
	{
		TargetEntry *target = lfirst_node(TargetEntry, lc);
		CoalesceExpr *filled;
		Relation	rel;

		if (attnum == InvalidAttrNumber || target->resno != attnum || is_default(target->expr))
			continue;
		/* locked since the statement was analyzed */
		rel = table_open(relid, NoLock);
		filled = makeNode(CoalesceExpr);
		filled->coalescetype = repl_ml_clock_type();
		filled->args = list_make2(target->expr, build_column_default(rel, attnum));
		filled->location = -1;
		if (lsecond(filled->args) != NULL)
			target->expr = (Expr *) filled;
		table_close(rel, NoLock);
	}
}

/*
 * The analyzer's hook: mends joins, also those of views that are made.
 */
static void
analyze_query(ParseState *pstate, Query *query, JumbleState *jumble)
{
	if (previous_analyze)
		previous_analyze(pstate, query, jumble);
	if (is_installed())
		(void) mend_joins((Node *) query, NULL);
}

/* Mends the joins of a query and of all queries in it. */
static bool
mend_joins(Node *node, void *context)
{
	if (node == NULL)
		return false;
	if (!IsA(node, Query))
		return expression_tree_walker(node, mend_joins, context);
	(void) mend_joins_of((Node *) ((Query *) node)->jointree, context);
	return query_tree_walker((Query *) node, mend_joins, context, 0);
}

/* Mends the joins of one query's FROM, not those of queries in it. */
static bool
mend_joins_of(Node *node, void *context)
{
	if (node == NULL || IsA(node, Query))
		return false;
	if (IsA(node, JoinExpr) && ((JoinExpr *) node)->usingClause != NIL)
		leave_clock_out((JoinExpr *) node);
	if (!IsA(node, FromExpr) && !IsA(node, JoinExpr) && !IsA(node, List))
		return false;
	return expression_tree_walker(node, mend_joins_of, context);
}

/*
 * Takes the comparison of clocks out of a join, whatever their columns are called
 * there.  All that the analyzer says of its columns stays: who deparses a view relies
 * on it.
 */
static void
leave_clock_out(JoinExpr *join)
{
	int			count = list_length(join->usingClause);
	List	   *quals = count > 1 ? ((BoolExpr *) join->quals)->args : list_make1(join->quals);
	List	   *others = NIL;
	ListCell   *lc;

	foreach(lc, quals)
	{
		OpExpr	   *qual = (OpExpr *) lfirst(lc);

		if (!IsA(qual, OpExpr) || exprType(linitial(qual->args)) != repl_ml_clock_type())
			others = lappend(others, qual);
	}
	if (list_length(others) == list_length(quals))
		return;
	if (others == NIL)
		join->quals = makeBoolConst(true, false);
	else
		join->quals = list_length(others) == 1 ? linitial(others) :
			(Node *) makeBoolExpr(AND_EXPR, others, -1);
}
