/*
 * statement.c
 *		Utility statements: the hook, which passes each to who has to do with it.
 *
 * Some are run otherwise: COPY without a column list gets one without the clock,
 * so that files keep their columns; SHOW, BEGIN and the second phase of commits
 * belong to read/ and commit/.  After ALTER TABLE and RENAME the concurrent
 * versions of a table's rows follow its columns.
 *
 * Statements that change the schema are run by all members (schema_change.c).
 *
 * Not here: what is refused (guard.c, own.c); INSERT and joins (whole_row.c).
 * Runs in backends, also where the library is not preloaded.  Takes the locks of
 * catalogs it reads.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/table.h"
#include "access/xact.h"
#include "nodes/parsenodes.h"
#include "storage/ipc.h"
#include "tcop/utility.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/syscache.h"

#include "commit/commit.h"
#include "compat.h"
#include "read/read.h"
#include "row/row.h"
#include "server/server.h"
#include "write/write.h"

static ProcessUtility_hook_type previous_hook = NULL;

/* The arguments of a ProcessUtility hook, for who has to call the next one later. */
typedef struct Utility
{
	PlannedStmt *pstmt;
	const char *query_string;
	bool		read_only_tree;
	ProcessUtilityContext context;
	ParamListInfo params;
	QueryEnvironment *query_env;
	DestReceiver *dest;
	QueryCompletion *qc;
} Utility;

static void take_statement(PlannedStmt *pstmt, const char *query_string, bool read_only_tree,
						   ProcessUtilityContext context, ParamListInfo params,
						   QueryEnvironment *query_env, DestReceiver *dest, QueryCompletion *qc);
static void run_for_all(Utility *utility);
static void run_before(Utility *utility);
static void run_here(Utility *utility);
static bool run_otherwise(Utility *utility);
static void give_up_copy(int code, Datum arg);
static void run_copy(Utility *utility);
static void list_copy_columns(CopyStmt *stmt);
static void run_alter_table(Utility *utility);
static bool is_computed(AlterTableCmd *cmd);
static ReplMlColumn *describe_column(Oid relid, const char *name);
static bool takes_all(Oid relid, List *former);
static void run_rename(Utility *utility);
static void run_utility(void *argument);

/* Called by _PG_init: installs the hook. */
void
repl_ml_statement_init(void)
{
	previous_hook = ProcessUtility_hook;
	ProcessUtility_hook = take_statement;
}

/*
 * The hook of utility statements: passes each to who has to do with it, which
 * may change it, run it himself or refuse it, and then runs it.
 */
static void
take_statement(PlannedStmt *pstmt, const char *query_string, bool read_only_tree,
			   ProcessUtilityContext context, ParamListInfo params,
			   QueryEnvironment *query_env, DestReceiver *dest, QueryCompletion *qc)
{
	Utility		utility = {pstmt, query_string, read_only_tree, context, params, query_env, dest,
						   qc};

	if (IsA(pstmt->utilityStmt, TransactionStmt))
	{
		TransactionStmt *stmt = castNode(TransactionStmt, pstmt->utilityStmt);

		if (stmt->kind == TRANS_STMT_COMMIT_PREPARED || stmt->kind == TRANS_STMT_ROLLBACK_PREPARED)
			repl_ml_commit_prepared(stmt->gid, stmt->kind == TRANS_STMT_COMMIT_PREPARED,
									run_utility, &utility);
		else
		{
			if (stmt->kind == TRANS_STMT_BEGIN || stmt->kind == TRANS_STMT_START)
				repl_ml_read_begin();
			run_utility(&utility);
		}
		return;
	}

	/* from any database, also one where the extension is not installed */
	if (IsA(pstmt->utilityStmt, DropdbStmt) && repl_ml_shared != NULL)
		repl_ml_own_check_database(castNode(DropdbStmt, pstmt->utilityStmt));

	/* where the extension is not installed nothing is enrolled */
	if (IsTransactionState() && OidIsValid(repl_ml_schema_oid()))
	{
		repl_ml_strong_utility(pstmt->utilityStmt);
		if (repl_ml_schema_change_is_one(pstmt, context))
		{
			run_for_all(&utility);
			return;
		}
		if (run_otherwise(&utility))
			return;
	}
	run_here(&utility);
}

/* Runs a statement that all members of the group run. */
static void
run_for_all(Utility *utility)
{
	MemoryContext context = CurrentMemoryContext;
	int64		number;

	if (repl_ml_reach_has_transactions(utility->pstmt->utilityStmt))
	{
		run_before(utility);
		return;
	}
	number = repl_ml_schema_change_begin(utility->pstmt);
	PG_TRY();
	{
		if (!run_otherwise(utility))
			run_here(utility);
	}
	PG_CATCH();
	{
		repl_ml_schema_change_leave();
		MemoryContextSwitchTo(context);
		repl_ml_schema_change_explain(utility->pstmt);
	}
	PG_END_TRY();
	repl_ml_schema_change_leave();
	repl_ml_schema_change_end(number, utility->pstmt, utility->query_string);
}

/*
 * Runs a statement with transactions of its own, which end the lease, before the others do: they
 * get it when it has been run, if the schema could be changed before and still can.
 */
static void
run_before(Utility *utility)
{
	int64		number;

	(void) repl_ml_schema_change_begin(utility->pstmt);
	repl_ml_schema_change_leave();
	if (!run_otherwise(utility))
		run_here(utility);
	number = repl_ml_schema_change_begin(utility->pstmt);
	repl_ml_schema_change_leave();
	repl_ml_schema_change_end(number, utility->pstmt, utility->query_string);
}

/* Runs the statement, and has what belongs to the columns of its table follow. */
static void
run_here(Utility *utility)
{
	if (IsA(utility->pstmt->utilityStmt, AlterTableStmt))
		run_alter_table(utility);
	else if (IsA(utility->pstmt->utilityStmt, RenameStmt))
		run_rename(utility);
	else
		run_utility(utility);
}

/*
 * Called by the hook in a database that has the extension: changes the
 * statement, has guard.c refuse it with an error if it would break replication,
 * or runs it.  Returns true if it has been run.
 */
static bool
run_otherwise(Utility *utility)
{
	Node	   *stmt = utility->pstmt->utilityStmt;

	switch (nodeTag(stmt))
	{
		case T_CopyStmt:
			if (utility->read_only_tree)
			{
				utility->pstmt = copyObject(utility->pstmt);
				utility->read_only_tree = false;
				stmt = utility->pstmt->utilityStmt;
			}
			repl_ml_read_copy((CopyStmt *) stmt);
			list_copy_columns((CopyStmt *) stmt);
			run_copy(utility);
			return true;
		case T_CallStmt:
		case T_ExecuteStmt:
			if (utility->read_only_tree)
			{
				utility->pstmt = copyObject(utility->pstmt);
				utility->read_only_tree = false;
			}
			repl_ml_nextval_arguments(utility->pstmt->utilityStmt);
			break;
		case T_VariableShowStmt:
			repl_ml_routing_show((VariableShowStmt *) stmt, run_utility, utility);
			return true;
		default:
			repl_ml_guard_check(stmt);
			break;
	}
	return false;
}

/* A COPY has ended with an error, or with its session. */
static void
give_up_copy(int code, Datum arg)
{
	repl_ml_number_copy_end(false);
}

/* Runs COPY, whose rows' numbers are looked at. */
static void
run_copy(Utility *utility)
{
	/* also where the session ends in it */
	PG_ENSURE_ERROR_CLEANUP(give_up_copy, (Datum) 0);
	{
		repl_ml_number_copy_begin((CopyStmt *) utility->pstmt->utilityStmt);
		run_utility(utility);
	}
	PG_END_ENSURE_ERROR_CLEANUP(give_up_copy, (Datum) 0);
	repl_ml_number_copy_end(true);
}

/*
 * Gives COPY t FROM/TO a list of the columns the user knows: all but the
 * clock.
 */
static void
list_copy_columns(CopyStmt *stmt)
{
	Relation	rel;
	Oid			relid;

	if (stmt->relation == NULL || stmt->attlist != NIL ||
		!repl_ml_guard_is_enrolled(stmt->relation, &relid))
		return;
	rel = table_open(relid, AccessShareLock);
	for (int i = 0; i < RelationGetNumberOfAttributes(rel); i++)
	{
		Form_pg_attribute att = TupleDescAttr(RelationGetDescr(rel), i);

		if (!att->attisdropped && att->attgenerated == '\0' &&
			strcmp(NameStr(att->attname), REPL_ML_CLOCK_COLUMN) != 0)
			stmt->attlist = lappend(stmt->attlist, makeString(pstrdup(NameStr(att->attname))));
	}
	table_close(rel, AccessShareLock);
}

/*
 * Runs ALTER TABLE; columns of a replicated table that are others after it
 * than before get identities of their own, and concurrent versions of its rows
 * follow.  Versions of which only ALTER TABLE could compute the values are
 * removed: as it has with the rows, with code that cannot be run for others.
 */
static void
run_alter_table(Utility *utility)
{
	AlterTableStmt *stmt = castNode(AlterTableStmt, utility->pstmt->utilityStmt);
	List	   *computed = NIL;
	List	   *retyped = NIL;
	List	   *added;
	Oid			relid;
	ListCell   *lc;

	if (repl_ml_guard_off || !IsTransactionState() || !OidIsValid(repl_ml_schema_oid()) ||
		!repl_ml_guard_names_replicated(stmt->relation, &relid))
	{
		run_utility(utility);
		return;
	}

	/* before it runs, while the columns are what they were */
	relid = repl_ml_table_root(relid);
	foreach(lc, stmt->cmds)
	{
		AlterTableCmd *cmd = lfirst_node(AlterTableCmd, lc);

		if (is_computed(cmd))
			computed = lappend_int(computed, get_attnum(relid, cmd->name));
		else if (cmd->subtype == AT_AlterColumnType)
			retyped = lappend(retyped, describe_column(relid, cmd->name));
	}
	run_utility(utility);
	added = repl_ml_column_identify(relid, computed);
	if (computed != NIL || !takes_all(relid, retyped))
		repl_ml_version_forget(relid);
	else if (added != NIL)
		repl_ml_version_rename(relid, added, NULL, NULL);
}

/*
 * Says whether the value of a column is computed anew, and not just of another
 * type.
 */
static bool
is_computed(AlterTableCmd *cmd)
{
	Node	   *expression = cmd->subtype == AT_AlterColumnType ?
		castNode(ColumnDef, cmd->def)->raw_default : NULL;

	if (expression == NULL)
		return false;
	while (IsA(expression, TypeCast))
		expression = ((TypeCast *) expression)->arg;
	return !IsA(expression, ColumnRef) || list_length(((ColumnRef *) expression)->fields) != 1 ||
		!IsA(linitial(((ColumnRef *) expression)->fields), String) ||
		strcmp(strVal(linitial(((ColumnRef *) expression)->fields)), cmd->name) != 0;
}

/* Returns what a column of the table is, NULL if there is none; palloc'd. */
static ReplMlColumn *
describe_column(Oid relid, const char *name)
{
	HeapTuple	tuple = SearchSysCacheAttName(relid, name);
	ReplMlColumn *column;

	if (!HeapTupleIsValid(tuple))
		return NULL;
	column = palloc(sizeof(ReplMlColumn));
	*column = repl_ml_column_describe(relid, (Form_pg_attribute) GETSTRUCT(tuple));
	ReleaseSysCache(tuple);
	return column;
}

/*
 * Says whether values of these former columns (ReplMlColumn *) are values of
 * those of the same names now, the very same or refused.
 */
static bool
takes_all(Oid relid, List *former)
{
	ListCell   *lc;

	foreach(lc, former)
	{
		const ReplMlColumn *column = lfirst(lc);
		const ReplMlColumn *now = column == NULL ? NULL : describe_column(relid, column->name);

		if (now == NULL || !repl_ml_column_takes(column, now))
			return false;
	}
	return true;
}

/*
 * Runs a statement that renames something; concurrent versions of a replicated
 * table's rows follow its columns.
 */
static void
run_rename(Utility *utility)
{
	RenameStmt *stmt = castNode(RenameStmt, utility->pstmt->utilityStmt);
	Oid			relid;
	bool		is_column = stmt->renameType == OBJECT_COLUMN && stmt->relation != NULL &&
		!repl_ml_guard_off && IsTransactionState() && OidIsValid(repl_ml_schema_oid()) &&
		repl_ml_guard_names_replicated(stmt->relation, &relid);

	run_utility(utility);

	/* values of a former column of the new name went with it */
	if (is_column)
		repl_ml_version_rename(repl_ml_table_root(relid), list_make1(stmt->newname), stmt->subname,
							   stmt->newname);
}

/* Runs the statement, as the next hook or core does. */
static void
run_utility(void *argument)
{
	Utility    *u = argument;

	(previous_hook ? previous_hook : standard_ProcessUtility)
		(u->pstmt, u->query_string, u->read_only_tree, u->context, u->params, u->query_env,
		 u->dest, u->qc);
}
