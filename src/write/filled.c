/*
 * filled.c
 *		What a change of the schema makes of the rows that are there.
 *
 * Each node runs the statement for itself, and all have to come to the same values.  What a
 * column that is added has in former rows is written down with the change, for rows of the
 * old shape that come later.  What would be another value in each row, or on each node, is
 * refused, where there are rows.
 *
 * Not here: how the change is written down (schema_change.c).  Locks: those of the statement.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/relation.h"
#include "catalog/pg_attribute.h"
#include "catalog/pg_inherits.h"
#include "nodes/nodeFuncs.h"
#include "nodes/parsenodes.h"
#include "optimizer/optimizer.h"
#include "parser/parse_expr.h"
#include "parser/parse_relation.h"
#include "rewrite/rewriteHandler.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/json.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/syscache.h"

#include "compat.h"
#include "row/row.h"
#include "server/server.h"
#include "write/write.h"

static void add_filled(StringInfo json, Oid relid, const char *column);
static void refuse_volatile(Oid relid, AttrNumber attnum);
static bool differs_by_node(Oid relid, Node *raw);
static bool reads_clock(Node *node, void *context);

/*
 * Called by schema_change.c when a statement has been run: returns what the columns that it
 * has added to a replicated table have in rows that were there before, and which columns it
 * has dropped, as a JSON array; raises an error if the former is another value in each row, which
 * other nodes would not have.
 */
char *
repl_ml_filled_describe(Node *stmt)
{
	StringInfoData json;
	Oid			relid;
	ListCell   *lc;

	initStringInfo(&json);
	appendStringInfoChar(&json, '[');
	if (IsA(stmt, AlterTableStmt) && ((AlterTableStmt *) stmt)->objtype == OBJECT_TABLE &&
		repl_ml_guard_names_replicated(((AlterTableStmt *) stmt)->relation, &relid))
	{
		foreach(lc, ((AlterTableStmt *) stmt)->cmds)
		{
			AlterTableCmd *cmd = lfirst_node(AlterTableCmd, lc);

			if (cmd->subtype == AT_AddColumn)
				add_filled(&json, relid, castNode(ColumnDef, cmd->def)->colname);
		}
	}
	foreach(lc, repl_ml_outcome_columns())
	{
		appendStringInfo(&json, "%s{\"dropped\":", json.len == 1 ? "" : ",");
		escape_json(&json, lfirst(lc));
		appendStringInfoChar(&json, '}');
	}
	appendStringInfoChar(&json, ']');
	return json.data;
}

/* Adds what a new column has in former rows of the table. */
static void
add_filled(StringInfo json, Oid relid, const char *column)
{
	ListCell   *lc;

	/* a partitioned table has no rows of its own */
	foreach(lc, find_all_inheritors(relid, NoLock, NULL))
	{
		Relation	rel = relation_open(lfirst_oid(lc), AccessShareLock);
		AttrNumber	attnum = get_attnum(lfirst_oid(lc), column);
		Form_pg_attribute att = attnum <= 0 ? NULL :
			TupleDescAttr(RelationGetDescr(rel), attnum - 1);

		if (att != NULL && att->atthasmissing)
		{
			int			level = repl_ml_session_fix_values();
			HeapTuple	tuple = SearchSysCache2(ATTNUM, ObjectIdGetDatum(lfirst_oid(lc)),
												Int16GetDatum(attnum));
			bool		isnull;
			Datum		value = SysCacheGetAttr(ATTNUM, tuple, Anum_pg_attribute_attmissingval,
												&isnull);

			/* an array of one, as SetAttrMissing takes it */
			appendStringInfo(json, "%s{\"table\":", json->len == 1 ? "" : ",");
			escape_json(json, repl_ml_guard_table_name(lfirst_oid(lc)));
			appendStringInfoString(json, ",\"column\":");
			escape_json(json, column);
			appendStringInfoString(json, ",\"identity\":");
			escape_json(json, repl_ml_column_identity(relid, get_attnum(relid, column)));
			appendStringInfoString(json, ",\"value\":");
			escape_json(json, OidOutputFunctionCall(F_ARRAY_OUT, value));
			appendStringInfoChar(json, '}');
			ReleaseSysCache(tuple);
			repl_ml_session_restore(level);
		}
		else if (att != NULL && att->attgenerated == '\0')
			refuse_volatile(lfirst_oid(lc), attnum);
		relation_close(rel, AccessShareLock);
	}
}

/*
 * Raises an error if the table has rows, and what they have in a new column is computed for
 * each.
 */
static void
refuse_volatile(Oid relid, AttrNumber attnum)
{
	Relation	rel = relation_open(relid, AccessShareLock);
	Node	   *expression = build_column_default(rel, attnum);
	bool		computed = expression != NULL && contain_volatile_functions(expression);

	relation_close(rel, AccessShareLock);
	if (!computed || !repl_ml_has_rows(relid, AccessShareLock))
		return;
	ereport(ERROR,
			(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
			 errmsg("column \"%s\" of replicated table \"%s\" cannot be added with a default that "
					"is computed for each row", get_attname(relid, attnum, false),
					get_rel_name(relid)),
			 errdetail("Each node would compute other values for the rows that are there."),
			 errhint("Add it without the default, write its values, and give it the default "
					 "then.")));
}

/*
 * Called by schema_change.c before a statement is run: raises an error if it makes new values
 * of a replicated table's rows that would not be the same on all nodes.
 */
void
repl_ml_filled_refuse(Node *stmt)
{
	Oid			relid;
	ListCell   *lc;

	if (!IsA(stmt, AlterTableStmt) || ((AlterTableStmt *) stmt)->objtype != OBJECT_TABLE ||
		!repl_ml_guard_names_replicated(((AlterTableStmt *) stmt)->relation, &relid))
		return;
	foreach(lc, ((AlterTableStmt *) stmt)->cmds)
	{
		AlterTableCmd *cmd = lfirst_node(AlterTableCmd, lc);
		Node	   *raw = cmd->subtype != AT_AlterColumnType ? NULL :
			castNode(ColumnDef, cmd->def)->raw_default;

		if (raw == NULL || !differs_by_node(relid, raw) ||
			!repl_ml_has_rows(relid, AccessShareLock))
			continue;
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("column \"%s\" of replicated table \"%s\" cannot be altered by an "
						"expression that is not the same on all nodes", cmd->name,
						get_rel_name(relid)),
				 errdetail("Each node would compute other values for the rows that are there."),
				 errhint("Alter it without that, and write its values with UPDATE.")));
	}
}

/* Says whether what ALTER TYPE ... USING says may be another value on another node. */
static bool
differs_by_node(Oid relid, Node *raw)
{
	ParseState *pstate = make_parsestate(NULL);
	Relation	rel = relation_open(relid, AccessShareLock);
	ParseNamespaceItem *item = addRangeTableEntryForRelation(pstate, rel, AccessShareLock, NULL,
															 false, true);
	Node	   *expression;
	bool		differs;

	addNSItemToQuery(pstate, item, false, true, true);
	expression = transformExpr(pstate, copyObject(raw), EXPR_KIND_ALTER_COL_TRANSFORM);
	differs = contain_volatile_functions(expression) || reads_clock(expression, NULL);
	relation_close(rel, AccessShareLock);
	free_parsestate(pstate);
	return differs;
}

/* Says whether an expression has the time of the transaction or statement in it, or the user. */
static bool
reads_clock(Node *node, void *context)
{
	if (node == NULL)
		return false;
	if (IsA(node, SQLValueFunction))
		return true;
	if (IsA(node, FuncExpr) &&
		(((FuncExpr *) node)->funcid == F_NOW ||
		 ((FuncExpr *) node)->funcid == F_TRANSACTION_TIMESTAMP ||
		 ((FuncExpr *) node)->funcid == F_STATEMENT_TIMESTAMP))
		return true;
	return expression_tree_walker(node, reads_clock, context);
}
