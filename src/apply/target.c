/*
 * target.c
 *		The tables open for writing in this transaction, partitions included,
 *		and whose rights they are written with.
 *
 * Opening a target costs more than storing a row, so targets stay open until
 * the transaction (or subtransaction) ends: repl_ml_targets_close before
 * commit, repl_ml_targets_forget after an abort, which has released them.
 */
#include "postgres.h"

#include "access/table.h"
#include "access/tupconvert.h"
#include "catalog/catalog.h"
#include "executor/execPartition.h"
#include "executor/executor.h"
#include "miscadmin.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rls.h"

#include "apply/apply.h"
#include "compat.h"

/* An open target; a partitioned table has a router instead of a target's use. */
typedef struct OpenTarget
{
	Oid			relid;
	ReplMlTarget *target;
	PartitionTupleRouting *router;
	ModifyTableState *modify;
} OpenTarget;

/* Open in the current transaction; lives in TopTransactionContext or below. */
static List *open_targets = NIL;
static MemoryContext open_context = NULL;
static int	changes = 0;		/* since they were opened */

#define CHANGES_BETWEEN_RENEWALS	1000

static void check_target(Relation rel);

/* The open target of a table, opened if need be. */
ReplMlTarget *
repl_ml_targets_get(Oid relid)
{
	ListCell   *lc;
	OpenTarget *entry;
	MemoryContext old;
	Relation	rel;

	foreach(lc, open_targets)
	{
		entry = lfirst(lc);
		if (entry->relid == relid)
			return entry->target;
	}

	if (open_context == NULL)
		open_context = AllocSetContextCreate(CurTransactionContext, "repl_ml targets",
											 ALLOCSET_DEFAULT_SIZES);
	old = MemoryContextSwitchTo(open_context);
	rel = table_open(relid, RowExclusiveLock);
	check_target(rel);
	entry = palloc0(sizeof(OpenTarget));
	entry->relid = relid;
	entry->target = repl_ml_target_open(rel, true);
	open_targets = lappend(open_targets, entry);
	MemoryContextSwitchTo(old);
	return entry->target;
}

/* What the owner may not have written is not written for him either. */
static void
check_target(Relation rel)
{
	Oid			owner = rel->rd_rel->relowner;
	AclMode		needed = ACL_INSERT | ACL_UPDATE | ACL_DELETE | ACL_SELECT;

	if (rel->rd_rel->relpersistence == RELPERSISTENCE_TEMP || IsCatalogRelation(rel))
		ereport(ERROR,
				(errcode(ERRCODE_WRONG_OBJECT_TYPE),
				 errmsg("changes cannot be applied to table \"%s\"", RelationGetRelationName(rel))));
	if (pg_class_aclmask(RelationGetRelid(rel), owner, needed, ACLMASK_ALL) != needed)
	{
		for (AclMode mode = ACL_INSERT; mode <= ACL_DELETE; mode <<= 1)
		{
			if (pg_class_aclcheck(RelationGetRelid(rel), owner, mode) != ACLCHECK_OK)
				ereport(ERROR,
						(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
						 errmsg("the owner of table \"%s\" may not write it", RelationGetRelationName(rel)),
						 errhint("Run GRANT ALL ON %s TO %s.", RelationGetRelationName(rel),
								 GetUserNameFromId(owner, true))));
		}
	}
	if (check_enable_rls(RelationGetRelid(rel), owner, true) == RLS_ENABLED)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("row-level security of table \"%s\" applies to its owner", RelationGetRelationName(rel)),
				 errhint("Run ALTER TABLE %s NO FORCE ROW LEVEL SECURITY.", RelationGetRelationName(rel))));
}

/*
 * The partition the row belongs to, and the row as that partition's tuple.
 * For a table that is not partitioned the table and the row themselves.
 */
ReplMlTarget *
repl_ml_targets_route(ReplMlTarget *root, TupleTableSlot *slot, TupleTableSlot **leaf_slot)
{
	OpenTarget *entry = NULL;
	ResultRelInfo *leaf;
	TupleConversionMap *map;
	ReplMlTarget *target;
	ListCell   *lc;

	*leaf_slot = slot;
	if (root->rel->rd_rel->relkind != RELKIND_PARTITIONED_TABLE)
		return root;

	foreach(lc, open_targets)
	{
		if (((OpenTarget *) lfirst(lc))->target == root)
			entry = lfirst(lc);
	}
	if (entry == NULL)
		elog(ERROR, "target of table \"%s\" is not open", RelationGetRelationName(root->rel));
	if (entry->router == NULL)
	{
		MemoryContext old = MemoryContextSwitchTo(open_context);

		entry->modify = makeNode(ModifyTableState);
		entry->modify->ps.plan = NULL;
		entry->modify->ps.state = root->estate;
		entry->modify->operation = CMD_INSERT;
		entry->modify->resultRelInfo = root->result;
		entry->router = ExecSetupPartitionTupleRouting(root->estate, root->rel);
		MemoryContextSwitchTo(old);
	}
	leaf = ExecFindPartition(entry->modify, root->result, entry->router, slot, root->estate);
	target = repl_ml_targets_get(RelationGetRelid(leaf->ri_RelationDesc));
	map = convert_tuples_by_name(RelationGetDescr(root->rel), RelationGetDescr(target->rel));
	if (map != NULL)
		*leaf_slot = execute_attr_map_slot(map->attrMap, slot, target->incoming);
	return target;
}

/*
 * Called before each change, when nobody uses a target: closes them all once in
 * a while.  Of each row the executor leaves some bytes in the memory of its
 * query (what it compares columns with, for triggers), which in a statement is
 * freed at its end; a transaction has no end that could be waited for.
 */
void
repl_ml_targets_renew(void)
{
	if (++changes >= CHANGES_BETWEEN_RENEWALS)
		repl_ml_targets_close();
}

/* Closes all, in a (sub)transaction that will commit. */
void
repl_ml_targets_close(void)
{
	ListCell   *lc;

	foreach(lc, open_targets)
	{
		OpenTarget *entry = lfirst(lc);
		Relation	rel = entry->target->rel;

		if (entry->router != NULL)
			ExecCleanupTupleRouting(entry->modify, entry->router);
		repl_ml_target_close(entry->target);
		table_close(rel, NoLock);
	}
	if (open_context != NULL)
		MemoryContextDelete(open_context);
	repl_ml_targets_forget();
}

/* Forgets all, after the (sub)transaction they were opened in has aborted. */
void
repl_ml_targets_forget(void)
{
	open_targets = NIL;
	open_context = NULL;
	changes = 0;
}

/*
 * Goes on with the rights of the table's owner and nothing more, as whatever
 * runs on the way of a row into the table (input functions, constraints,
 * triggers) is the owner's code.  An abort undoes it.
 */
void
repl_ml_become_owner(Relation rel, ReplMlUser *saved)
{
	GetUserIdAndSecContext(&saved->user, &saved->context);
	saved->guc_level = 0;
	if (rel->rd_rel->relowner == saved->user)
		return;
	saved->guc_level = NewGUCNestLevel();
	SetUserIdAndSecContext(rel->rd_rel->relowner, saved->context | SECURITY_RESTRICTED_OPERATION);
}

/* Goes back to the worker's own rights. */
void
repl_ml_become_self(ReplMlUser *saved)
{
	if (saved->guc_level == 0)
		return;
	AtEOXact_GUC(false, saved->guc_level);
	SetUserIdAndSecContext(saved->user, saved->context);
}
