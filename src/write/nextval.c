/*
 * nextval.c
 *		Has queries take numbers of sequences through us.
 *
 * The planner's hook puts repl_ml.nextval() in the place of PostgreSQL's own, and a
 * call of repl_ml.identity_number() around what identity columns get; arguments of
 * CALL and EXECUTE, which are computed without the planner, get the same from
 * statement.c.  So clients, defaults and functions change nothing.
 *
 * Not here: what these functions do (number.c); COPY, whose defaults have no plan.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/transam.h"
#include "access/xact.h"
#include "catalog/pg_language.h"
#include "catalog/pg_proc.h"
#include "catalog/pg_type.h"
#include "nodes/makefuncs.h"
#include "nodes/nodeFuncs.h"
#include "optimizer/optimizer.h"
#include "optimizer/planner.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/syscache.h"

#include "compat.h"
#include "server/server.h"
#include "write/write.h"

/* What a replacement has to know, and tells. */
typedef struct Replacement
{
	Oid			nextval;
	Oid			identity_number;
	List	   *functions;		/* whose bodies or defaults are in the plan now */
} Replacement;

static planner_hook_type previous_hook = NULL;

static PlannedStmt *plan_query(Query *parse, const char *query_string, int cursor_options,
							   ParamListInfo params);
static bool has_number(Node *node, void *context);
static bool may_hide_number(FuncExpr *call);
static Node *replace_numbers(Node *node, void *context);
static Node *replace_identity(NextValueExpr *number, Replacement *replacement);
static bool find_replacement(Replacement *replacement);
static bool rename_nextval(Node *node, void *context);

/* Called by _PG_init: installs the hook. */
void
repl_ml_nextval_init(void)
{
	previous_hook = planner_hook;
	planner_hook = plan_query;
}

/* The planner's hook: numbers in the query are ours. */
static PlannedStmt *
plan_query(Query *parse, const char *query_string, int cursor_options, ParamListInfo params)
{
	Replacement replacement = {0};
	PlannedStmt *result;
	ListCell   *lc;

	if (repl_ml_shared != NULL && IsTransactionState() && OidIsValid(repl_ml_schema_oid()) &&
		has_number((Node *) parse, NULL) && find_replacement(&replacement))
		parse = (Query *) replace_numbers((Node *) parse, &replacement);
	result = (previous_hook ? previous_hook : standard_planner)
		(parse, query_string, cursor_options, params);

	/* as for functions that the planner has put in itself */
	foreach(lc, replacement.functions)
	{
		PlanInvalItem *item = makeNode(PlanInvalItem);

		item->cacheId = PROCOID;
		item->hashValue = GetSysCacheHashValue1(PROCOID, ObjectIdGetDatum(lfirst_oid(lc)));
		result->invalItems = lappend(result->invalItems, item);
	}
	return result;
}

/* Says whether a query or expression takes a number of a sequence, perhaps within a function. */
static bool
has_number(Node *node, void *context)
{
	if (node == NULL)
		return false;
	if (IsA(node, NextValueExpr))
		return true;
	if (IsA(node, FuncExpr) && (((FuncExpr *) node)->funcid == F_NEXTVAL ||
								may_hide_number((FuncExpr *) node)))
		return true;
	if (IsA(node, Query))
		return query_tree_walker((Query *) node, has_number, context, 0);
	return expression_tree_walker(node, has_number, context);
}

/*
 * Says whether the planner may put something else in the place of a call: the body
 * of a function in SQL, or defaults of arguments.
 */
static bool
may_hide_number(FuncExpr *call)
{
	HeapTuple	tuple;
	Form_pg_proc function;
	bool		result;

	if (call->funcid < FirstNormalObjectId)
		return false;
	tuple = SearchSysCache1(PROCOID, ObjectIdGetDatum(call->funcid));
	if (!HeapTupleIsValid(tuple))
		return false;
	function = (Form_pg_proc) GETSTRUCT(tuple);
	result = function->provolatile == PROVOLATILE_VOLATILE &&
		(function->prolang == SQLlanguageId || function->pronargs > list_length(call->args));
	ReleaseSysCache(tuple);
	return result;
}

/* Finds our functions; returns false where the extension has none. */
static bool
find_replacement(Replacement *replacement)
{
	Oid			regclass = REGCLASSOID;
	Oid			number = INT8OID;
	Oid			schema = repl_ml_schema_oid();

	replacement->nextval = GetSysCacheOid3(PROCNAMEARGSNSP, Anum_pg_proc_oid,
										   CStringGetDatum("nextval"),
										   PointerGetDatum(buildoidvector(&regclass, 1)),
										   ObjectIdGetDatum(schema));
	replacement->identity_number = GetSysCacheOid3(PROCNAMEARGSNSP, Anum_pg_proc_oid,
												   CStringGetDatum("identity_number"),
												   PointerGetDatum(buildoidvector(&number, 1)),
												   ObjectIdGetDatum(schema));
	return OidIsValid(replacement->nextval) && OidIsValid(replacement->identity_number);
}

/* Returns a query or expression in which numbers are ours. */
static Node *
replace_numbers(Node *node, void *context)
{
	Replacement *replacement = context;

	if (node == NULL)
		return NULL;
	if (IsA(node, NextValueExpr))
		return replace_identity((NextValueExpr *) node, replacement);
	if (IsA(node, FuncExpr) && may_hide_number((FuncExpr *) node))
	{
		/* what the planner would make of it, if that has numbers */
		Node	   *simple = eval_const_expressions(NULL, node);

		if (!equal(simple, node) && has_number(simple, NULL))
		{
			replacement->functions = lappend_oid(replacement->functions,
												 ((FuncExpr *) node)->funcid);
			if (IsA(simple, FuncExpr) && ((FuncExpr *) simple)->funcid ==
				((FuncExpr *) node)->funcid)
				return expression_tree_mutator(simple, replace_numbers, context);
			return replace_numbers(simple, context);
		}
	}
	if (IsA(node, Query))
		return (Node *) query_tree_mutator((Query *) node, replace_numbers, context, 0);
	node = expression_tree_mutator(node, replace_numbers, context);
	if (IsA(node, FuncExpr) && ((FuncExpr *) node)->funcid == F_NEXTVAL)
		((FuncExpr *) node)->funcid = replacement->nextval;
	return node;
}

/* Returns an identity column's number with a call of repl_ml.identity_number() around it. */
static Node *
replace_identity(NextValueExpr *number, Replacement *replacement)
{
	NextValueExpr *drawn = copyObject(number);
	Node	   *result;

	drawn->typeId = INT8OID;
	result = (Node *) makeFuncExpr(replacement->identity_number, INT8OID, list_make1(drawn),
								   InvalidOid, InvalidOid, COERCE_EXPLICIT_CALL);
	if (number->typeId == INT4OID)
		return (Node *) makeFuncExpr(F_INT4_INT8, INT4OID, list_make1(result), InvalidOid,
									 InvalidOid, COERCE_IMPLICIT_CAST);
	if (number->typeId == INT2OID)
		return (Node *) makeFuncExpr(F_INT2_INT8, INT2OID, list_make1(result), InvalidOid,
									 InvalidOid, COERCE_IMPLICIT_CAST);
	return result;
}

/*
 * Called by statement.c: arguments of CALL and EXECUTE are computed without the
 * planner.  The statement is a copy.
 */
void
repl_ml_nextval_arguments(Node *stmt)
{
	Replacement replacement = {0};

	if (IsA(stmt, ExecuteStmt))
		(void) rename_nextval((Node *) ((ExecuteStmt *) stmt)->params, NULL);
	else
	{
		FuncExpr   *call = castNode(CallStmt, stmt)->funcexpr;

		if (has_number((Node *) call->args, NULL) && find_replacement(&replacement))
			call->args = (List *) replace_numbers((Node *) call->args, &replacement);
	}
}

/* Has arguments that are not analyzed yet call ours: PostgreSQL's own is found first. */
static bool
rename_nextval(Node *node, void *context)
{
	if (node == NULL)
		return false;
	if (IsA(node, FuncCall))
	{
		FuncCall   *call = (FuncCall *) node;
		int			names = list_length(call->funcname);

		if (strcmp(strVal(llast(call->funcname)), "nextval") == 0 &&
			(names == 1 || strcmp(strVal(linitial(call->funcname)), "pg_catalog") == 0))
			call->funcname = list_make2(makeString(REPL_ML_SCHEMA), makeString("nextval"));
	}
	return raw_expression_tree_walker(node, rename_nextval, context);
}
