/*
 * guard.c
 *		Statements about replicated tables that would break replication are
 *		refused, with the way to do what is meant.
 *
 * Dropping or changing the clock column or our triggers, dropping, renaming or
 * moving the table (its name is its identity in the group), truncating a single
 * partition.  What may take a table's key or our triggers away is noted, and
 * judged when the transaction commits (definition.c).  A replicated table
 * neither has children nor is one, and its partitions are logged: rows of others
 * would be seen on this node only.  repl_ml's own functions work on the table
 * under repl_ml.guard_off.
 *
 * Not here: rows (stamp.c), the hook that brings statements (statement.c), and
 * what repl_ml itself stands on (own.c).  Runs in backends, also where the
 * library is not preloaded.  Takes the locks of catalogs it reads, and of a
 * table that is to become a partition.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/tableam.h"
#include "catalog/namespace.h"
#include "catalog/pg_constraint.h"
#include "catalog/pg_inherits.h"
#include "catalog/pg_publication.h"
#include "catalog/pg_trigger.h"
#include "commands/trigger.h"
#include "executor/tuptable.h"
#include "miscadmin.h"
#include "nodes/makefuncs.h"
#include "nodes/parsenodes.h"
#include "parser/parse_func.h"
#include "storage/lmgr.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"

#include "compat.h"
#include "row/row.h"
#include "server/server.h"
#include "write/write.h"

/*
 * repl_ml.guard_off: meant for our own functions, which set it while they run;
 * written by the setting only.
 */
bool		repl_ml_guard_off = false;

static void check_create(CreateStmt *stmt);
static void refuse_inheritance(Oid relid);
static void refuse_unlogged(Oid root);
static void check_alter_table(AlterTableStmt *stmt);
static void check_new_parent(AlterTableStmt *stmt);
static bool is_not_null_of_clock(Oid relid, const char *name);
static void refuse_clock_change(Oid relid);
static void check_trigger_function(List *name);
static bool is_our_trigger(Oid relid, const char *name);
static void refuse_trigger_change(Oid relid, const char *name);
static void check_new_partition(Oid root, PartitionCmd *cmd);
static void note_former_partition(Oid root, PartitionCmd *cmd);
static bool has_unlogged(Oid root);
static bool has_rows(Oid root);
static void check_rename(RenameStmt *stmt);
static void check_rename_schema(const char *schema_name);
static void take_new_name(Oid relid);
static void check_new_schema(AlterObjectSchemaStmt *stmt);
static void check_drop(DropStmt *stmt);
static void check_truncate(TruncateStmt *stmt);

/* Called by _PG_init: defines the switch. */
void
repl_ml_guard_init(void)
{
	DefineCustomBoolVariable("repl_ml.guard_off",
							 "Lets repl_ml's own functions change enrolled tables.",
							 NULL,
							 &repl_ml_guard_off,
							 false,
							 PGC_SUSET,
							 GUC_NO_SHOW_ALL | GUC_NOT_IN_SAMPLE | GUC_DISALLOW_IN_FILE,
							 NULL,
							 NULL,
							 NULL);
}

/*
 * Called by statement.c in a database that has the extension: refuses the
 * statement with an error if it would break replication.
 */
void
repl_ml_guard_check(Node *stmt)
{
	switch (nodeTag(stmt))
	{
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
			repl_ml_own_check_publication((AlterPublicationStmt *) stmt);
			break;
		case T_AlterExtensionContentsStmt:
			repl_ml_own_check_extension((AlterExtensionContentsStmt *) stmt);
			break;
		case T_CreateTrigStmt:
			repl_ml_own_check_table(((CreateTrigStmt *) stmt)->relation);
			check_trigger_function(((CreateTrigStmt *) stmt)->funcname);
			break;
		case T_RuleStmt:
			repl_ml_own_check_table(((RuleStmt *) stmt)->relation);
			break;
		default:
			break;
	}
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

	if (repl_ml_guard_off)
		return;
	foreach(lc, stmt->inhRelations)
	{
		if (!repl_ml_guard_names_replicated(lfirst_node(RangeVar, lc), &relid))
			continue;
		if (stmt->partbound == NULL)
			refuse_inheritance(relid);
		if (stmt->relation->relpersistence == RELPERSISTENCE_UNLOGGED)
			refuse_unlogged(relid);
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
	char	   *name = repl_ml_guard_table_name(relid);

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
 * Refuses what ALTER TABLE would do to the clock, our triggers or our own
 * tables, and notes that the table's definition may be another one.
 */
static void
check_alter_table(AlterTableStmt *stmt)
{
	Oid			relid;
	ListCell   *lc;

	if (repl_ml_guard_off)
		return;
	repl_ml_own_check_alter(stmt);
	check_new_parent(stmt);
	/* ALTER INDEX and others take a table as well */
	if (!repl_ml_guard_names_replicated(stmt->relation, &relid))
		return;
	repl_ml_definition_note(relid);
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
			case AT_DetachPartition:
				note_former_partition(relid, castNode(PartitionCmd, cmd->def));
				break;
			default:
				break;
		}
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
			(repl_ml_guard_names_replicated(stmt->relation, &relid) ||
			 repl_ml_guard_names_replicated(castNode(RangeVar, cmd->def), &relid)))
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
					 quote_literal_cstr(repl_ml_guard_table_name(relid)))));
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

/*
 * Refuses a trigger with a function of ours to all but superusers, as restore dumps: on any
 * other table it would write deletions into the stream that no node has a table for.
 */
static void
check_trigger_function(List *name)
{
	Oid			function = superuser() ? InvalidOid : LookupFuncName(name, 0, NULL, true);

	if (OidIsValid(function) && get_func_namespace(function) == repl_ml_schema_oid())
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("permission denied for function %s", NameListToString(name)),
				 errhint("Run SELECT repl_ml.add_table(...), which makes the triggers of a "
						 "replicated table.")));
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
					 quote_literal_cstr(repl_ml_guard_table_name(relid)))));
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
	if (repl_ml_schema_change_runs() && !has_rows(relid))
	{
		repl_ml_outcome_note_partition(relid, repl_ml_table_root(root));
		return;
	}
	if (get_attnum(relid, REPL_ML_CLOCK_COLUMN) == InvalidAttrNumber && !has_rows(relid))
		ereport(ERROR,
				(errcode(ERRCODE_DATATYPE_MISMATCH),
				 errmsg("table \"%s\" has no column \"%s\" and cannot become a partition of a "
						"replicated table",
						get_rel_name(relid), REPL_ML_CLOCK_COLUMN),
				 errhint("Make an empty one with CREATE TABLE ... (LIKE %s INCLUDING ALL), attach "
						 "it, and insert the rows.",
						 repl_ml_guard_table_name(root))));
	if (!has_rows(relid))
		return;
	ereport(ERROR,
			(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
			 errmsg("table \"%s\" is not empty and cannot become a partition of a replicated table",
					get_rel_name(relid)),
			 errdetail("The other nodes would not get its rows."),
			 errhint("Attach an empty table and run INSERT INTO %s SELECT ... from this one.",
					 repl_ml_guard_table_name(root))));
}

/* Notes that a partition becomes a table by itself, in a statement that all members run. */
static void
note_former_partition(Oid root, PartitionCmd *cmd)
{
	Oid			relid = RangeVarGetRelid(cmd->name, NoLock, true);

	if (OidIsValid(relid) && repl_ml_schema_change_runs())
		repl_ml_outcome_note_detach(relid, repl_ml_table_root(root));
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

/*
 * Refuses to rename a replicated table here only, its clock, our triggers or our own
 * tables.
 */
static void
check_rename(RenameStmt *stmt)
{
	Oid			relid;

	if (repl_ml_guard_off)
		return;
	if (stmt->renameType == OBJECT_SCHEMA)
		check_rename_schema(stmt->subname);
	if (stmt->relation == NULL)
		return;
	repl_ml_own_check_table(stmt->relation);
	if (!repl_ml_guard_names_replicated(stmt->relation, &relid))
		return;
	switch (stmt->renameType)
	{
		case OBJECT_COLUMN:
			if (strcmp(stmt->subname, REPL_ML_CLOCK_COLUMN) == 0)
				refuse_clock_change(relid);
			repl_ml_definition_note(relid);
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
				take_new_name(relid);
			break;
	}
}

/*
 * Refuses to rename a schema with replicated tables here only: its name is part of
 * theirs.
 */
static void
check_rename_schema(const char *schema_name)
{
	Oid			schema = get_namespace_oid(schema_name, true);
	Oid			publication = repl_ml_own_publication();
	ListCell   *lc;

	if (!OidIsValid(publication))
		return;
	foreach(lc, GetPublicationRelations(publication, PUBLICATION_PART_ROOT))
	{
		if (get_rel_namespace(lfirst_oid(lc)) != schema)
			continue;
		if (repl_ml_schema_change_runs())
			repl_ml_outcome_note_rename(lfirst_oid(lc));
		else
			ereport(ERROR,
					(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
					 errmsg("schema \"%s\" has replicated tables and cannot be renamed",
							schema_name),
					 errdetail("The members of a group know a table by its name."),
					 errhint("Switch \"repl_ml.replicate_ddl\" on, so that all members rename "
							 "it; or run SELECT repl_ml.remove_table(...) for its tables, and add "
							 "them again when it has been renamed on every node.")));
	}
}

/*
 * Notes that a table is to be renamed or moved by a statement that all members run; raises an
 * error if only this node does.
 */
static void
take_new_name(Oid relid)
{
	char	   *name = repl_ml_guard_table_name(relid);

	if (repl_ml_schema_change_runs())
	{
		repl_ml_outcome_note_rename(relid);
		return;
	}
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("replicated table \"%s\" cannot be renamed or moved", get_rel_name(relid)),
			 errdetail("The members of a group know a table by its name."),
			 errhint("Switch \"repl_ml.replicate_ddl\" on, so that all members rename it; or "
					 "run SELECT repl_ml.remove_table(%s), and add it again when it has been "
					 "renamed on every node.",
					 quote_literal_cstr(name))));
}

/* Refuses to move a replicated table to another schema here only. */
static void
check_new_schema(AlterObjectSchemaStmt *stmt)
{
	Oid			relid;

	if (!repl_ml_guard_off && stmt->relation != NULL &&
		repl_ml_guard_names_replicated(stmt->relation, &relid) && !get_rel_relispartition(relid))
		take_new_name(relid);
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

	repl_ml_own_check_drop(stmt);
	if (repl_ml_guard_off ||
		(stmt->removeType != OBJECT_TABLE && stmt->removeType != OBJECT_TRIGGER))
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
		if (!repl_ml_guard_names_replicated(makeRangeVarFromNameList(name), &relid))
			continue;
		if (trigger != NULL && is_our_trigger(relid, trigger))
			refuse_trigger_change(relid, trigger);
		else if (trigger == NULL && !get_rel_relispartition(relid) &&
				 !repl_ml_schema_change_runs())
			ereport(ERROR,
					(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
					 errmsg("table \"%s\" is replicated and cannot be dropped",
							get_rel_name(relid)),
					 errhint("Switch \"repl_ml.replicate_ddl\" on, so that all members drop it; "
							 "or run SELECT repl_ml.remove_table(%s), which all nodes follow, then "
							 "drop it on each node.",
							 quote_literal_cstr(repl_ml_guard_table_name(relid)))));
	}
}

/*
 * Refuses the TRUNCATE of one partition, which the root's trigger does not
 * see; not where a dump of a member is restored, which runs it.
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

		repl_ml_own_check_table(lfirst_node(RangeVar, lc));
		if (repl_ml_guard_is_enrolled(lfirst_node(RangeVar, lc), &relid) &&
			get_rel_relispartition(relid) && OidIsValid(repl_ml_own_publication()))
			ereport(ERROR,
					(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
					 errmsg("partition \"%s\" of a replicated table cannot be truncated on its own",
							get_rel_name(relid)),
					 errhint("Run DELETE FROM %s, or TRUNCATE %s.",
							 repl_ml_guard_table_name(relid),
							 repl_ml_guard_table_name(repl_ml_table_root(relid)))));
	}
}

/*
 * Says whether "range" names a table with our clock column; false where it
 * does not exist.
 */
bool
repl_ml_guard_is_enrolled(RangeVar *range, Oid *relid)
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
bool
repl_ml_guard_names_replicated(RangeVar *range, Oid *relid)
{
	return repl_ml_guard_is_enrolled(range, relid) &&
		repl_ml_guard_is_replicated(repl_ml_table_root(*relid));
}

/* Says whether the group replicates this table, which is no partition. */
bool
repl_ml_guard_is_replicated(Oid relid)
{
	Oid			publication = repl_ml_own_publication();

	return OidIsValid(publication) && get_rel_namespace(relid) != repl_ml_schema_oid() &&
		SearchSysCacheExists2(PUBLICATIONRELMAP, ObjectIdGetDatum(relid),
							  ObjectIdGetDatum(publication));
}

/* Returns a table's name as SQL takes it. */
char *
repl_ml_guard_table_name(Oid relid)
{
	return quote_qualified_identifier(get_namespace_name(get_rel_namespace(relid)),
									  get_rel_name(relid));
}
