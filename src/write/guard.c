/*
 * guard.c
 *		Statements about enrolled tables: what the clock column would break is
 *		mended, what would break replication is refused.
 *
 * COPY without a column list gets one without the clock, so that files keep
 * their columns.  Dropping or changing the clock column or our triggers,
 * dropping, renaming or moving the table (its name is its identity in the
 * group) and truncating a single partition are refused with the way to do it;
 * what takes a table along (its schema, its owner, the extension) is caught by
 * the object access hook.  So is what would change the group's publication or
 * the extension's own tables; where the library was not there to refuse it, the
 * supervisor mends the publication.  What may take a table's key or our triggers
 * away is noted, and judged when the transaction commits (definition.c).
 * A replicated table neither has children nor is one, and its partitions are
 * logged: rows of others would be seen on this node only.
 * repl_ml's own functions work on the table under repl_ml.guard_off.
 *
 * Not here: rows (stamp.c).  Runs in backends, also where the library is not
 * preloaded.  Takes the locks of catalogs it reads, and of a table that is to
 * become a partition.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/namespace.h"
#include "catalog/index.h"
#include "catalog/objectaccess.h"
#include "catalog/pg_constraint.h"
#include "catalog/pg_inherits.h"
#include "catalog/pg_publication.h"
#include "catalog/pg_publication_rel.h"
#include "catalog/pg_trigger.h"
#include "commands/extension.h"
#include "commands/dbcommands.h"
#include "commands/trigger.h"
#include "executor/tuptable.h"
#include "miscadmin.h"
#include "nodes/makefuncs.h"
#include "nodes/parsenodes.h"
#include "replication/logicalworker.h"
#include "storage/lmgr.h"
#include "tcop/utility.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"

#include "commit/commit.h"
#include "compat.h"
#include "read/read.h"
#include "row/row.h"
#include "server/server.h"
#include "write/write.h"

static ProcessUtility_hook_type previous_hook = NULL;
static object_access_hook_type previous_access_hook = NULL;

/* repl_ml.guard_off: meant for our own functions, which set it while they run */
static bool guard_off = false;

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

static void run_utility(void *argument);
static ReplMlColumn *describe_column(Oid relid, const char *name);
static bool takes_all(Oid relid, List *former);
static void run_rename(Utility *utility);
static void run_alter_table(Utility *utility);
static void guard_statement(PlannedStmt *pstmt, const char *query_string, bool read_only_tree,
							ProcessUtilityContext context, ParamListInfo params,
							QueryEnvironment *query_env, DestReceiver *dest, QueryCompletion *qc);
static void list_copy_columns(CopyStmt *stmt);
static void check_drop_database(DropdbStmt *stmt);
static bool is_our_trigger(Oid relid, const char *name);
static void refuse_trigger_change(Oid relid, const char *name);
static void check_drop(DropStmt *stmt);
static Oid	group_publication(void);
static void check_create(CreateStmt *stmt);
static void check_alter_table(AlterTableStmt *stmt);
static void check_rename(RenameStmt *stmt);
static void check_new_schema(AlterObjectSchemaStmt *stmt);
static void check_truncate(TruncateStmt *stmt);
static void check_access(ObjectAccessType access, Oid class_id, Oid object, int sub_id, void *arg);
static void check_object_drop(Oid class_id, Oid object, int sub_id);
static void note_change(Oid relid);
static Oid	get_constraint_relation(Oid constraint);
static Oid	get_trigger_relation(Oid trigger);
static void check_unpublish(Oid membership);
static void refuse_publication_change(void);
static void check_alter_publication(AlterPublicationStmt *stmt);
static void check_extension_contents(AlterExtensionContentsStmt *stmt);
static void check_own_table(RangeVar *range);
static bool is_harmless(AlterTableType subtype);
static void check_new_partition(Oid root, PartitionCmd *cmd);
static bool is_enrolled(RangeVar *range, Oid *relid);
static bool is_replicated(RangeVar *range, Oid *relid);
static bool has_unlogged(Oid root);

/* Called by _PG_init: installs the hooks and the switch. */
void
repl_ml_guard_init(void)
{
	DefineCustomBoolVariable("repl_ml.guard_off",
							 "Lets repl_ml's own functions change enrolled tables.",
							 NULL,
							 &guard_off,
							 false,
							 PGC_SUSET,
							 GUC_NO_SHOW_ALL | GUC_NOT_IN_SAMPLE | GUC_DISALLOW_IN_FILE,
							 NULL,
							 NULL,
							 NULL);
	previous_hook = ProcessUtility_hook;
	ProcessUtility_hook = guard_statement;
	previous_access_hook = object_access_hook;
	object_access_hook = check_access;
}

/*
 * Called by the hook in a database that has the extension: refuses the statement
 * with an error if it would break replication, changes it, or runs it.  Returns
 * true if it has been run.
 */
static bool
check_statement(Utility *utility)
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
			break;
		case T_VariableShowStmt:
			repl_ml_routing_show((VariableShowStmt *) stmt, run_utility, utility);
			return true;
		case T_CreateStmt:
			check_create((CreateStmt *) stmt);
			break;
		case T_AlterTableStmt:
			check_alter_table((AlterTableStmt *) stmt);
			break;
		case T_RenameStmt:
			check_rename((RenameStmt *) stmt);
			break;
		case T_AlterObjectSchemaStmt:
			check_new_schema((AlterObjectSchemaStmt *) stmt);
			break;
		case T_DropStmt:
			check_drop((DropStmt *) stmt);
			break;
		case T_TruncateStmt:
			check_truncate((TruncateStmt *) stmt);
			break;
		case T_AlterPublicationStmt:
			check_alter_publication((AlterPublicationStmt *) stmt);
			break;
		case T_AlterExtensionContentsStmt:
			check_extension_contents((AlterExtensionContentsStmt *) stmt);
			break;
		case T_CreateTrigStmt:
			check_own_table(((CreateTrigStmt *) stmt)->relation);
			break;
		case T_RuleStmt:
			check_own_table(((RuleStmt *) stmt)->relation);
			break;
		default:
			break;
	}
	return false;
}

/*
 * The hook of utility statements: passes each to who has to do with it, which
 * may change it, run it himself or refuse it, and then runs it.
 */
static void
guard_statement(PlannedStmt *pstmt, const char *query_string, bool read_only_tree,
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
		check_drop_database(castNode(DropdbStmt, pstmt->utilityStmt));

	/* where the extension is not installed nothing is enrolled */
	if (IsTransactionState() && OidIsValid(repl_ml_schema_oid()) && check_statement(&utility))
		return;
	if (IsA(utility.pstmt->utilityStmt, AlterTableStmt))
		run_alter_table(&utility);
	else if (IsA(utility.pstmt->utilityStmt, RenameStmt))
		run_rename(&utility);
	else
		run_utility(&utility);
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

	if (guard_off || !IsTransactionState() || !OidIsValid(repl_ml_schema_oid()) ||
		!is_replicated(stmt->relation, &relid))
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
		!guard_off && IsTransactionState() && OidIsValid(repl_ml_schema_oid()) &&
		is_replicated(stmt->relation, &relid);

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

/*
 * Gives COPY t FROM/TO a list of the columns the user knows: all but the
 * clock.
 */
static void
list_copy_columns(CopyStmt *stmt)
{
	Relation	rel;
	Oid			relid;

	if (stmt->relation == NULL || stmt->attlist != NIL || !is_enrolled(stmt->relation, &relid))
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

/* Returns a table's name as SQL takes it. */
static char *
qualified_name(Oid relid)
{
	return quote_qualified_identifier(get_namespace_name(get_rel_namespace(relid)),
									  get_rel_name(relid));
}

/* Raises the error for a change of the clock column. */
static void
refuse_clock_change(Oid relid)
{
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("column \"%s\" of replicated table \"%s\" cannot be changed or dropped",
					REPL_ML_CLOCK_COLUMN, get_rel_name(relid)),
			 errdetail("It holds the version of each row."),
			 errhint("To stop replicating the table, run SELECT repl_ml.remove_table(%s).",
					 quote_literal_cstr(qualified_name(relid)))));
}

/*
 * Says whether it is one of the triggers repl_ml.enrol makes: their function
 * tells.
 */
static bool
is_our_trigger(Oid relid, const char *name)
{
	Oid			trigger = name == NULL ? InvalidOid : get_trigger_oid(relid, name, true);
	HeapTuple	tuple;
	Relation	rel;
	ScanKeyData key;
	SysScanDesc scan;
	bool		ours = false;

	if (!OidIsValid(trigger))
		return false;

	/* there is no cache of triggers by OID */
	rel = table_open(TriggerRelationId, AccessShareLock);
	ScanKeyInit(&key, Anum_pg_trigger_oid, BTEqualStrategyNumber, F_OIDEQ,
				ObjectIdGetDatum(trigger));
	scan = systable_beginscan(rel, TriggerOidIndexId, true, NULL, 1, &key);
	tuple = systable_getnext(scan);
	if (HeapTupleIsValid(tuple))
		ours = get_func_namespace(((Form_pg_trigger) GETSTRUCT(tuple))->tgfoid) ==
			repl_ml_schema_oid();
	systable_endscan(scan);
	table_close(rel, AccessShareLock);
	return ours;
}

/* Raises the error for a change of one of our triggers. */
static void
refuse_trigger_change(Oid relid, const char *name)
{
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("trigger \"%s\" of replicated table \"%s\" must stay as it is",
					name, get_rel_name(relid)),
			 errdetail("Without it the other nodes would not learn of changes."),
			 errhint("Name the triggers you mean, or run SELECT repl_ml.remove_table(%s).",
					 quote_literal_cstr(qualified_name(relid)))));
}

/*
 * Refuses DROP EXTENSION in a member: with CASCADE it would lose its clocks,
 * and the others a member they wait for.
 */
static void
check_drop_extension(DropStmt *stmt)
{
	const ReplMlIdentity *self = repl_ml_identity();
	ListCell   *lc;

	foreach(lc, stmt->objects)
	{
		if (!self->member || strcmp(strVal(lfirst(lc)), REPL_ML_SCHEMA) != 0)
			continue;
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("extension \"%s\" cannot be dropped from a member of a group",
						REPL_ML_SCHEMA),
				 errdetail("This database is node \"%s\" of group \"%s\".",
						   NameStr(self->node_name), NameStr(self->group_name)),
				 errhint("Run SELECT repl_ml.leave_group() first.")));
	}
}

/*
 * Refuses DROP PUBLICATION of the group's, before the access hook meets the
 * first of its tables, and speaks of that.
 */
static void
check_drop_publication(DropStmt *stmt)
{
	ListCell   *lc;

	foreach(lc, stmt->objects)
	{
		if (strcmp(strVal(lfirst(lc)), REPL_ML_PUBLICATION) == 0 && OidIsValid(group_publication()))
			refuse_publication_change();
	}
}

/*
 * Refuses to drop our triggers, and a replicated table, which has to be
 * removed from the group before.
 */
static void
check_drop(DropStmt *stmt)
{
	ListCell   *lc;
	Oid			relid;

	if (stmt->removeType == OBJECT_EXTENSION || stmt->removeType == OBJECT_SCHEMA)
		check_drop_extension(stmt);
	if (guard_off)
		return;
	if (stmt->removeType == OBJECT_PUBLICATION)
		check_drop_publication(stmt);
	if (stmt->removeType != OBJECT_TABLE && stmt->removeType != OBJECT_TRIGGER)
		return;
	foreach(lc, stmt->objects)
	{
		List	   *name = castNode(List, lfirst(lc));
		char	   *trigger = NULL;

		/* the last part of the name is the trigger's, the rest its table's */
		if (stmt->removeType == OBJECT_TRIGGER)
		{
			trigger = strVal(llast(name));
			name = list_truncate(list_copy(name), list_length(name) - 1);
		}
		if (!is_replicated(makeRangeVarFromNameList(name), &relid))
			continue;
		if (trigger != NULL && is_our_trigger(relid, trigger))
			refuse_trigger_change(relid, trigger);
		else if (trigger == NULL && !get_rel_relispartition(relid))
			ereport(ERROR,
					(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
					 errmsg("table \"%s\" is replicated and cannot be dropped",
							get_rel_name(relid)),
					 errhint("Run SELECT repl_ml.remove_table(%s), which all nodes follow, then "
							 "drop it on each node.",
							 quote_literal_cstr(qualified_name(relid)))));
	}
}

/*
 * Raises the error for a parent or child of a replicated table.  A child's
 * rows would be its parent's as well, and stay on this node; and what
 * enrolling does to one of the two would be done to the other.
 */
static void
refuse_inheritance(Oid relid)
{
	char	   *name = qualified_name(relid);

	ereport(ERROR,
			(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
			 errmsg("replicated table \"%s\" cannot be part of an inheritance tree",
					get_rel_name(relid)),
			 errdetail("Rows of the other table would be seen here and on no other node."),
			 errhint("Use declarative partitioning or CREATE TABLE ... (LIKE %s), or run SELECT "
					 "repl_ml.remove_table(%s) first.",
					 name, quote_literal_cstr(name))));
}

/*
 * Raises the error for an unlogged partition: what it holds is in no WAL, so
 * no node would get it.
 */
static void
refuse_unlogged(Oid root)
{
	ereport(ERROR,
			(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
			 errmsg("a partition of replicated table \"%s\" cannot be unlogged",
					get_rel_name(root)),
			 errdetail("The other nodes would not get its rows."),
			 errhint("Make it a logged table.")));
}

/*
 * Refuses a new table that is a child of a replicated one; it may be a logged
 * partition.
 */
static void
check_create(CreateStmt *stmt)
{
	ListCell   *lc;
	Oid			relid;

	if (guard_off)
		return;
	foreach(lc, stmt->inhRelations)
	{
		if (!is_replicated(lfirst_node(RangeVar, lc), &relid))
			continue;
		if (stmt->partbound == NULL)
			refuse_inheritance(relid);
		if (stmt->relation->relpersistence == RELPERSISTENCE_UNLOGGED)
			refuse_unlogged(relid);
	}
}

/*
 * Refuses the commands of ALTER TABLE that name a parent, of either of the
 * two.
 */
static void
check_new_parent(AlterTableStmt *stmt)
{
	ListCell   *lc;
	Oid			relid;

	foreach(lc, stmt->cmds)
	{
		AlterTableCmd *cmd = lfirst_node(AlterTableCmd, lc);

		if (cmd->subtype == AT_AddInherit &&
			(is_replicated(stmt->relation, &relid) ||
			 is_replicated(castNode(RangeVar, cmd->def), &relid)))
			refuse_inheritance(relid);
	}
}

/*
 * Says whether a constraint is the clock's NOT NULL, which from 18 on has a
 * name, by which it can be dropped.
 */
static bool
is_not_null_of_clock(Oid relid, const char *name)
{
	Oid			constraint = get_relation_constraint_oid(relid, name, true);
	HeapTuple	tuple = OidIsValid(constraint) ?
		SearchSysCache1(CONSTROID, ObjectIdGetDatum(constraint)) : NULL;
	bool		result = false;

	if (HeapTupleIsValid(tuple))
	{
		result = not_null_column_compat(tuple) == repl_ml_table_clock_attnum(relid);
		ReleaseSysCache(tuple);
	}
	return result;
}

/*
 * Refuses what ALTER TABLE would do to the clock, our triggers or our own
 * tables, and notes that the table's definition may be another one.
 */
static void
check_alter_table(AlterTableStmt *stmt)
{
	Oid			relid;
	ListCell   *lc;

	if (guard_off)
		return;
	foreach(lc, stmt->cmds)
	{
		if (stmt->objtype == OBJECT_TABLE && !is_harmless(lfirst_node(AlterTableCmd, lc)->subtype))
			check_own_table(stmt->relation);
	}
	check_new_parent(stmt);
	/* ALTER INDEX and others take a table as well */
	if (!is_replicated(stmt->relation, &relid))
		return;
	note_change(relid);
	foreach(lc, stmt->cmds)
	{
		AlterTableCmd *cmd = lfirst_node(AlterTableCmd, lc);

		switch (cmd->subtype)
		{
			case AT_SetUnLogged:
				if (get_rel_relispartition(relid))
					refuse_unlogged(repl_ml_table_root(relid));
				break;
			case AT_DropColumn:
			case AT_AlterColumnType:
			case AT_ColumnDefault:
			case AT_DropNotNull:
				if (cmd->name != NULL && strcmp(cmd->name, REPL_ML_CLOCK_COLUMN) == 0)
					refuse_clock_change(relid);
				break;
			case AT_DropConstraint:
				if (is_not_null_of_clock(relid, cmd->name))
					refuse_clock_change(relid);
				break;
			case AT_DisableTrig:
			case AT_EnableTrig:
			case AT_EnableReplicaTrig:
				if (is_our_trigger(relid, cmd->name))
					refuse_trigger_change(relid, cmd->name);
				break;
			case AT_DisableTrigAll:
			case AT_DisableTrigUser:
			case AT_EnableTrigAll:
			case AT_EnableTrigUser:
				refuse_trigger_change(relid, "zz_repl_ml_update");
				break;
			case AT_AttachPartition:
				check_new_partition(relid, castNode(PartitionCmd, cmd->def));
				break;
			default:
				break;
		}
	}
}

/*
 * Says whether the table, or a partition of it, has a row of any transaction;
 * locks them, so that none comes before they are attached.
 */
static bool
has_rows(Oid root)
{
	bool		found = false;
	ListCell   *lc;

	/* waits for those who write: what they have written comes along as well */
	LockRelationOid(root, ShareLock);
	foreach(lc, find_all_inheritors(root, ShareLock, NULL))
	{
		Relation	rel = table_open(lfirst_oid(lc), NoLock);

		if (!found && rel->rd_rel->relkind == RELKIND_RELATION)
		{
			TupleTableSlot *slot = table_slot_create(rel, NULL);
			Snapshot	snapshot = RegisterSnapshot(GetLatestSnapshot());
			TableScanDesc scan = table_beginscan(rel, snapshot, 0, NULL);

			found = table_scan_getnextslot(scan, ForwardScanDirection, slot);
			table_endscan(scan);
			UnregisterSnapshot(snapshot);
			ExecDropSingleTupleTableSlot(slot);
		}
		table_close(rel, NoLock);
	}
	return found;
}

/* Says whether the table, or a partition of it, is unlogged. */
static bool
has_unlogged(Oid root)
{
	ListCell   *lc;

	foreach(lc, find_all_inheritors(root, AccessShareLock, NULL))
	{
		if (get_rel_persistence(lfirst_oid(lc)) == RELPERSISTENCE_UNLOGGED &&
			get_rel_relkind(lfirst_oid(lc)) == RELKIND_RELATION)
			return true;
	}
	return false;
}

/*
 * Refuses a new partition without a clock, or with rows: those that come with
 * it are written by nobody, so no peer gets them.
 */
static void
check_new_partition(Oid root, PartitionCmd *cmd)
{
	Oid			relid = RangeVarGetRelid(cmd->name, NoLock, true);

	/* whoever may not attach it is told so by the server */
	if (!OidIsValid(relid) || !table_ownercheck_compat(relid, GetUserId()))
		return;
	if (has_unlogged(relid))
		refuse_unlogged(root);
	if (get_attnum(relid, REPL_ML_CLOCK_COLUMN) == InvalidAttrNumber)
		ereport(ERROR,
				(errcode(ERRCODE_DATATYPE_MISMATCH),
				 errmsg("table \"%s\" has no column \"%s\" and cannot become a partition of a "
						"replicated table",
						get_rel_name(relid), REPL_ML_CLOCK_COLUMN),
				 errhint("Make an empty one with CREATE TABLE ... (LIKE %s INCLUDING ALL), attach "
						 "it, and insert the rows.",
						 qualified_name(root))));
	if (!has_rows(relid))
		return;
	ereport(ERROR,
			(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
			 errmsg("table \"%s\" is not empty and cannot become a partition of a replicated table",
					get_rel_name(relid)),
			 errdetail("The other nodes would not get its rows."),
			 errhint("Attach an empty table and run INSERT INTO %s SELECT ... from this one.",
					 qualified_name(root))));
}

/* Raises the error for a table that is to be renamed or moved. */
static void
refuse_new_name(Oid relid)
{
	char	   *name = qualified_name(relid);

	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("replicated table \"%s\" cannot be renamed or moved", get_rel_name(relid)),
			 errdetail("The members of a group know a table by its name."),
			 errhint("Run SELECT repl_ml.remove_table(%s), rename it on every node, and add it "
					 "again.",
					 quote_literal_cstr(name))));
}

/*
 * Returns the publication of the group; invalid where there is none, as in a
 * restored dump.
 */
static Oid
group_publication(void)
{
	return repl_ml_identity()->member ? get_publication_oid(REPL_ML_PUBLICATION, true) : InvalidOid;
}

/*
 * Refuses to rename a schema with replicated tables: its name is part of
 * theirs.
 */
static void
check_rename_schema(const char *schema_name)
{
	Oid			schema = get_namespace_oid(schema_name, true);
	Oid			publication = group_publication();
	ListCell   *lc;

	if (!OidIsValid(publication))
		return;
	foreach(lc, GetPublicationRelations(publication, PUBLICATION_PART_ROOT))
	{
		if (get_rel_namespace(lfirst_oid(lc)) == schema)
			ereport(ERROR,
					(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
					 errmsg("schema \"%s\" has replicated tables and cannot be renamed",
							schema_name),
					 errdetail("The members of a group know a table by its name."),
					 errhint("Run SELECT repl_ml.remove_table(...) for its tables, rename it on "
							 "every node, and add them again.")));
	}
}

/*
 * Refuses to rename a replicated table, its clock, our triggers or our own
 * tables.
 */
static void
check_rename(RenameStmt *stmt)
{
	Oid			relid;

	if (guard_off)
		return;
	if (stmt->renameType == OBJECT_SCHEMA)
		check_rename_schema(stmt->subname);
	if (stmt->relation == NULL)
		return;
	check_own_table(stmt->relation);
	if (!is_replicated(stmt->relation, &relid))
		return;
	switch (stmt->renameType)
	{
		case OBJECT_COLUMN:
			if (strcmp(stmt->subname, REPL_ML_CLOCK_COLUMN) == 0)
				refuse_clock_change(relid);
			note_change(relid);
			break;
		case OBJECT_TRIGGER:
			if (is_our_trigger(relid, stmt->subname))
				refuse_trigger_change(relid, stmt->subname);
			break;
		case OBJECT_TABCONSTRAINT:
		case OBJECT_POLICY:
		case OBJECT_RULE:
			break;
		default:
			/* the table itself, also by ALTER INDEX */
			if (!get_rel_relispartition(relid))
				refuse_new_name(relid);
			break;
	}
}

/* Refuses to move a replicated table to another schema. */
static void
check_new_schema(AlterObjectSchemaStmt *stmt)
{
	Oid			relid;

	if (!guard_off && stmt->relation != NULL && is_replicated(stmt->relation, &relid) &&
		!get_rel_relispartition(relid))
		refuse_new_name(relid);
}

/*
 * Refuses the TRUNCATE of one partition, which the root's trigger does not
 * see.
 */
static void
check_truncate(TruncateStmt *stmt)
{
	ListCell   *lc;

	if (repl_ml_applying)
		return;
	foreach(lc, stmt->relations)
	{
		Oid			relid;

		check_own_table(lfirst_node(RangeVar, lc));
		if (is_enrolled(lfirst_node(RangeVar, lc), &relid) && get_rel_relispartition(relid))
			ereport(ERROR,
					(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
					 errmsg("partition \"%s\" of a replicated table cannot be truncated on its own",
							get_rel_name(relid)),
					 errhint("Run DELETE FROM %s, or TRUNCATE the partitioned table.",
							 qualified_name(relid))));
	}
}

/*
 * Says whether the change is one that the extension's own tables may have:
 * where and how they are stored, and whose they are.
 */
static bool
is_harmless(AlterTableType subtype)
{
	switch (subtype)
	{
		case AT_ChangeOwner:
		case AT_SetRelOptions:
		case AT_ResetRelOptions:
		case AT_SetStatistics:
		case AT_SetTableSpace:
			return true;
		default:
			return false;
	}
}

/*
 * Raises an error if it is one of the extension's own tables in a member, and
 * somebody else than the extension is at it.
 */
static void
check_own_table(RangeVar *range)
{
	Oid			relid = RangeVarGetRelid(range, NoLock, true);

	if (guard_off || creating_extension || !OidIsValid(relid) ||
		get_rel_namespace(relid) != repl_ml_schema_oid() || !repl_ml_identity()->member)
		return;
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("table \"%s.%s\" must stay as it is in a member of a group", REPL_ML_SCHEMA,
					get_rel_name(relid)),
			 errdetail("The nodes work with it."),
			 errhint("Run SELECT repl_ml.leave_group() first.")));
}

/*
 * Raises the error for a change of the group's publication: changes that were
 * made while it is another one are lost to the peers, or end their streams.
 */
static void
refuse_publication_change(void)
{
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("publication \"%s\" must stay as it is in a member of a group",
					REPL_ML_PUBLICATION),
			 errdetail("The other members read this node's changes through it."),
			 errhint("Choose tables with repl_ml.add_table and repl_ml.remove_table; make a "
					 "publication of another name for other subscribers.")));
}

/* Refuses ALTER PUBLICATION of the group's. */
static void
check_alter_publication(AlterPublicationStmt *stmt)
{
	if (strcmp(stmt->pubname, REPL_ML_PUBLICATION) == 0 && !guard_off &&
		OidIsValid(group_publication()))
		refuse_publication_change();
}

/*
 * Refuses to take a member's tables of ours out of the extension: pg_dump and
 * these guards know them by that.
 */
static void
check_extension_contents(AlterExtensionContentsStmt *stmt)
{
	if (guard_off || strcmp(stmt->extname, "repl_ml") != 0 || !OidIsValid(group_publication()))
		return;
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("extension \"%s\" must stay as it is in a member of a group", stmt->extname),
			 errhint("Run SELECT repl_ml.leave_group() first.")));
}

PG_FUNCTION_INFO_V1(repl_ml_refuse_subscription);

/*
 * repl_ml.refuse_subscription(), a trigger of the extension's own tables:
 * refuses what a subscription of core's brings.  What these tables say is of
 * this node and its group; a publication FOR ALL TABLES of a member has them,
 * too.
 */
Datum
repl_ml_refuse_subscription(PG_FUNCTION_ARGS)
{
	TriggerData *trigdata = (TriggerData *) fcinfo->context;

	if (!CALLED_AS_TRIGGER(fcinfo))
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("function \"%s\" must be called as a trigger", "refuse_subscription"),
				 errhint("Leave it to the triggers that repl_ml has made.")));
	if (IsLogicalWorker())
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("table \"%s.%s\" cannot be written by a subscription", REPL_ML_SCHEMA,
						RelationGetRelationName(trigdata->tg_relation)),
				 errdetail("It belongs to this database and its group; the publication has the "
						   "publisher's."),
				 errhint("On the publisher make a publication of the tables you mean, or FOR "
						 "TABLES IN SCHEMA, instead of one FOR ALL TABLES.")));
	return PointerGetDatum(TRIGGER_FIRED_BY_UPDATE(trigdata->tg_event) ? trigdata->tg_newtuple :
						   trigdata->tg_trigtuple);
}

/*
 * The object access hook.  Something is about to be dropped, perhaps because
 * something else is: a table that goes with its schema first leaves its
 * publications.  Or a publication gets another name or owner.
 */
static void
check_access(ObjectAccessType access, Oid class_id, Oid object, int sub_id, void *arg)
{
	if (previous_access_hook)
		previous_access_hook(access, class_id, object, sub_id, arg);
	if (guard_off || (access != OAT_DROP && access != OAT_POST_ALTER) ||
		!OidIsValid(repl_ml_schema_oid()))
		return;
	if (access == OAT_DROP && repl_ml_identity()->member)
		check_object_drop(class_id, object, sub_id);
	if (class_id == PublicationRelationId && object == group_publication())
		refuse_publication_change();
}

/*
 * Refuses a drop, or notes it if what is dropped may be of a replicated table,
 * which has to keep its key and our triggers.
 */
static void
check_object_drop(Oid class_id, Oid object, int sub_id)
{
	switch (class_id)
	{
		case PublicationRelRelationId:
			check_unpublish(object);
			break;
		case ConstraintRelationId:
			note_change(get_constraint_relation(object));
			break;
		case TriggerRelationId:
			note_change(get_trigger_relation(object));
			break;
		case RelationRelationId:
			/* a column, or an index */
			note_change(sub_id != 0 || get_rel_relkind(object) == RELKIND_RELATION ? object :
						IndexGetRelation(object, true));
			break;
		default:
			break;
	}
}

/*
 * Has whoever commits the transaction look at the table, or the one it is a
 * partition of; nothing if it is not replicated.
 */
static void
note_change(Oid relid)
{
	if (!OidIsValid(relid))
		return;
	relid = repl_ml_table_root(relid);
	if (repl_ml_guard_is_replicated(relid))
		repl_ml_definition_note(relid);
}

/* Returns the table that a constraint is one of; invalid for a domain's. */
static Oid
get_constraint_relation(Oid constraint)
{
	HeapTuple	tuple = SearchSysCache1(CONSTROID, ObjectIdGetDatum(constraint));
	Oid			relid = InvalidOid;

	if (HeapTupleIsValid(tuple))
	{
		relid = ((Form_pg_constraint) GETSTRUCT(tuple))->conrelid;
		ReleaseSysCache(tuple);
	}
	return relid;
}

/* Returns the table that a trigger is on. */
static Oid
get_trigger_relation(Oid trigger)
{
	Relation	rel = table_open(TriggerRelationId, AccessShareLock);
	Oid			relid = InvalidOid;
	ScanKeyData key;
	SysScanDesc scan;
	HeapTuple	tuple;

	ScanKeyInit(&key, Anum_pg_trigger_oid, BTEqualStrategyNumber, F_OIDEQ,
				ObjectIdGetDatum(trigger));
	scan = systable_beginscan(rel, TriggerOidIndexId, true, NULL, 1, &key);
	tuple = systable_getnext(scan);
	if (HeapTupleIsValid(tuple))
		relid = ((Form_pg_trigger) GETSTRUCT(tuple))->tgrelid;
	systable_endscan(scan);
	table_close(rel, AccessShareLock);
	return relid;
}

/*
 * Refuses that a table leaves the group's publication but by our own
 * functions.
 */
static void
check_unpublish(Oid membership)
{
	HeapTuple	tuple = SearchSysCache1(PUBLICATIONREL, ObjectIdGetDatum(membership));
	Oid			relid;
	Oid			publication;

	if (!HeapTupleIsValid(tuple))
		return;
	relid = ((Form_pg_publication_rel) GETSTRUCT(tuple))->prrelid;
	publication = ((Form_pg_publication_rel) GETSTRUCT(tuple))->prpubid;
	ReleaseSysCache(tuple);
	if (publication != group_publication())
		return;

	/* our own tables are in it, too, and go with the extension */
	if (get_rel_namespace(relid) == repl_ml_schema_oid())
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("this database is a member of a repl_ml group and needs what is being "
						"dropped"),
				 errhint("Run SELECT repl_ml.leave_group() first.")));
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("table \"%s\" is replicated and cannot be dropped or taken out of its "
					"publication", get_rel_name(relid)),
			 errhint("Run SELECT repl_ml.remove_table(%s), which all nodes follow, then drop it on "
					 "each node.",
					 quote_literal_cstr(qualified_name(relid)))));
}

/*
 * Says whether "range" names a table with our clock column; false where it
 * does not exist.
 */
static bool
is_enrolled(RangeVar *range, Oid *relid)
{
	*relid = RangeVarGetRelid(range, NoLock, true);
	return OidIsValid(*relid) &&
		repl_ml_table_clock_attnum(*relid) != InvalidAttrNumber &&
		get_rel_namespace(*relid) != repl_ml_schema_oid();
}

/*
 * Says whether the group replicates the table, or the one it is a partition
 * of.
 */
static bool
is_replicated(RangeVar *range, Oid *relid)
{
	return is_enrolled(range, relid) && repl_ml_guard_is_replicated(repl_ml_table_root(*relid));
}

/* Says whether the group replicates this table, which is no partition. */
bool
repl_ml_guard_is_replicated(Oid relid)
{
	Oid			publication = group_publication();

	return OidIsValid(publication) && get_rel_namespace(relid) != repl_ml_schema_oid() &&
		SearchSysCacheExists2(PUBLICATIONRELMAP, ObjectIdGetDatum(relid),
							  ObjectIdGetDatum(publication));
}

/*
 * Refuses DROP DATABASE of a member but with FORCE, and while peers read from
 * it: core would say that it is in use, and nothing of the way out.
 */
static void
check_drop_database(DropdbStmt *stmt)
{
	Oid			database = get_database_oid(stmt->dbname, true);
	bool		force = false;
	ListCell   *lc;

	foreach(lc, stmt->options)
		force |= strcmp(((DefElem *) lfirst(lc))->defname, "force") == 0;
	if (!OidIsValid(database) || !repl_ml_shmem_is_member(database) ||
		(force && !repl_ml_members_is_served(database)))
		return;
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_IN_USE),
			 errmsg("database \"%s\" is a member of a repl_ml group", stmt->dbname),
			 force ? errdetail("Other members read from it.") : 0,
			 errhint("Connect to it and run SELECT repl_ml.leave_group(), or SELECT "
					 "repl_ml.leave_group(force => true) if no other member can be reached.")));
}
