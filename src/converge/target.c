/*
 * target.c
 *		The tables open for writing in this transaction, partitions included.
 *
 * Opening a target costs more than storing a row, so targets stay open until
 * the transaction (or subtransaction) ends: repl_ml_targets_close before
 * commit, repl_ml_targets_forget after an abort, which has released them.
 *
 * Not how a row is found and written in a target (row/store.c).  Locks: each
 * table, or partition, in ROW EXCLUSIVE mode until the transaction ends.
 */
#include "postgres.h"

#include "access/table.h"
#include "access/tupconvert.h"
#include "catalog/catalog.h"
#include "executor/execPartition.h"
#include "executor/executor.h"
#include "miscadmin.h"
#include "partitioning/partdesc.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rls.h"
#include "utils/syscache.h"

#include "compat.h"
#include "converge/converge.h"
#include "row/row.h"
#include "server/server.h"

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
static void check_partitions(Relation root, Relation parent);

/*
 * Returns the open target of a table, and opens it if need be.  Opening runs
 * the owner's code already, so it happens with his rights: core computes what
 * is constant in an index's expressions.
 */
ReplMlTarget *
repl_ml_targets_get(Oid relid)
{
	ListCell   *lc;
	OpenTarget *entry;
	MemoryContext old;
	Relation	rel;
	ReplMlUser	saved;

	foreach(lc, open_targets)
	{
		entry = lfirst(lc);
		if (entry->relid == relid)
			return entry->target;
	}

	/*
	 * of the subtransaction, if there is one: its abort frees what it has
	 * opened
	 */
	if (open_context == NULL)
		open_context = AllocSetContextCreate(CurTransactionContext, "repl_ml targets",
											 ALLOCSET_DEFAULT_SIZES);
	old = MemoryContextSwitchTo(open_context);
	rel = table_open(relid, RowExclusiveLock);
	check_target(rel);
	entry = palloc0(sizeof(OpenTarget));
	entry->relid = relid;
	repl_ml_become_owner(rel, &saved);
	entry->target = repl_ml_target_open(rel, true);
	repl_ml_become_self(&saved);
	open_targets = lappend(open_targets, entry);
	MemoryContextSwitchTo(old);
	return entry->target;
}

/*
 * Refuses tables into which the owner may not write: what is applied is
 * written with his rights, and must be no more than he could have written
 * himself.
 */
static void
check_target(Relation rel)
{
	Oid			owner = rel->rd_rel->relowner;
	AclMode		needed = ACL_INSERT | ACL_UPDATE | ACL_DELETE | ACL_SELECT;

	/* a peer names the table: it must not be one of the catalogs */
	if (rel->rd_rel->relpersistence == RELPERSISTENCE_TEMP || IsCatalogRelation(rel))
		ereport(ERROR,
				(errcode(ERRCODE_WRONG_OBJECT_TYPE),
				 errmsg("changes cannot be applied to table \"%s\"",
						RelationGetRelationName(rel)),
				 errhint("See on the node that the change comes from which table it is of, then "
						 "run SELECT repl_ml.discard_parked(id).")));
	/* the first right that is lacking says enough */
	if (pg_class_aclmask(RelationGetRelid(rel), owner, needed, ACLMASK_ALL) != needed)
	{
		for (AclMode mode = ACL_INSERT; mode <= ACL_DELETE; mode <<= 1)
		{
			if (pg_class_aclcheck(RelationGetRelid(rel), owner, mode) != ACLCHECK_OK)
				ereport(ERROR,
						(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
						 errmsg("the owner of table \"%s\" may not write it",
								RelationGetRelationName(rel)),
						 errhint("Run GRANT ALL ON %s TO %s.", RelationGetRelationName(rel),
								 GetUserNameFromId(owner, true))));
		}
	}
	if (check_enable_rls(RelationGetRelid(rel), owner, true) == RLS_ENABLED)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("row-level security of table \"%s\" applies to its owner",
						RelationGetRelationName(rel)),
				 errhint("Run ALTER TABLE %s NO FORCE ROW LEVEL SECURITY.",
						 RelationGetRelationName(rel))));
}

/* Returns a relation's owner, InvalidOid if it is gone. */
static Oid
get_rel_owner(Oid relid)
{
	HeapTuple	tuple = SearchSysCache1(RELOID, ObjectIdGetDatum(relid));
	Oid			owner = InvalidOid;

	if (HeapTupleIsValid(tuple))
	{
		owner = ((Form_pg_class) GETSTRUCT(tuple))->relowner;
		ReleaseSysCache(tuple);
	}
	return owner;
}

/*
 * Refuses partitions of owners who lack the rights of the root's owner:
 * whatever hangs on a partition runs with these rights, as routing a row runs
 * code of both, and its owner would gain them.
 */
static void
check_partitions(Relation root, Relation parent)
{
	PartitionDesc partitions = RelationGetPartitionDesc(parent, false);
	Oid			owner = root->rd_rel->relowner;

	for (int i = 0; i < partitions->nparts; i++)
	{
		Oid			relid = partitions->oids[i];
		Oid			its_owner = get_rel_owner(relid);
		Oid			schema = get_rel_namespace(relid);

		if (OidIsValid(its_owner) && its_owner != owner && !has_privs_of_role(its_owner, owner))
			ereport(ERROR,
					(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
					 errmsg("partition \"%s\" belongs to role \"%s\", which does not have the "
							"rights of the owner of table \"%s\"",
							get_rel_name(relid), GetUserNameFromId(its_owner, true),
							RelationGetRelationName(root)),
					 errhint("Run ALTER TABLE %s OWNER TO %s.",
							 quote_qualified_identifier(get_namespace_name(schema),
														get_rel_name(relid)),
							 quote_identifier(GetUserNameFromId(owner, true)))));
		/* a partition may have partitions of its own */
		if (!partitions->is_leaf[i])
		{
			Relation	rel = table_open(relid, AccessShareLock);

			check_partitions(root, rel);
			table_close(rel, NoLock);
		}
	}
}

/*
 * Returns the partition the row belongs to, opened, and in "leaf_slot" the row
 * as that partition's tuple.  Of a table that is not partitioned these are the
 * table and the row themselves.
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
	/* the executor keeps what it has found out about partitions */
	if (entry->router == NULL)
	{
		MemoryContext old = MemoryContextSwitchTo(open_context);

		check_partitions(root->rel, root->rel);
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
	/* a partition may have its columns in another order */
	map = convert_tuples_by_name(RelationGetDescr(root->rel), RelationGetDescr(target->rel));
	if (map != NULL)
		*leaf_slot = execute_attr_map_slot(map->attrMap, slot, target->incoming);
	return target;
}

/*
 * Closes all targets once in a while; callers call it before each change, when
 * nobody uses one.  Of each row the executor leaves some bytes in the memory
 * of its query (what it compares columns with, for triggers), which in a
 * statement is freed at its end; a transaction has no end that could be waited
 * for.
 */
void
repl_ml_targets_renew(void)
{
	if (++changes >= CHANGES_BETWEEN_RENEWALS)
		repl_ml_targets_close();
}

/* Closes all targets, in a transaction or subtransaction that will commit. */
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

/*
 * Forgets all targets, after the transaction or subtransaction they were
 * opened in has aborted, and released them.
 */
void
repl_ml_targets_forget(void)
{
	open_targets = NIL;
	open_context = NULL;
	changes = 0;
}

/*
 * Runs "step" in a session of a user, for again.c and reconsider.c, as an apply
 * worker would: without stamping, with replica triggers only, and so that what
 * it writes stays on this node.  Each member has the change from where it was
 * made, and resolves it from all the versions that it has.
 */
void
repl_ml_targets_in_session(void (*step) (void *argument), void *argument)
{
	int			level = NewGUCNestLevel();
	int			values_level = repl_ml_session_fix_values();
	RepOriginId origin = replorigin_session_origin;

	(void) set_config_option("session_replication_role", "replica", PGC_SUSET,
							 PGC_S_SESSION, GUC_ACTION_SAVE, true, 0, false);
	repl_ml_applying = true;
	replorigin_session_origin = DoNotReplicateId;
	/* what is set here must not outlive an error that the user catches */
	PG_TRY();
	{
		step(argument);
		repl_ml_targets_close();
	}
	PG_FINALLY();
	{
		replorigin_session_origin = origin;
		repl_ml_applying = false;
		repl_ml_targets_forget();
	}
	PG_END_TRY();
	repl_ml_session_restore(values_level);
	AtEOXact_GUC(true, level);
}

/* A step of repl_ml_targets_try. */
typedef struct TargetsStep
{
	void		(*step) (void *argument);
	void	   *argument;
} TargetsStep;

/* Does the step, and closes the targets that it has opened. */
static void
do_step(void *argument)
{
	TargetsStep *it = argument;

	it->step(it->argument);
	repl_ml_targets_close();
}

/*
 * Does a step in a subtransaction with targets of its own, for change.c and
 * copies; returns the error that it failed with, in the caller's context, or
 * NULL.
 */
ErrorData *
repl_ml_targets_try(void (*step) (void *argument), void *argument)
{
	ErrorData  *error;

	/* what is open belongs to the transaction it was opened in */
	repl_ml_targets_close();
	error = repl_ml_attempt(do_step, &(TargetsStep) {.step = step,.argument = argument});
	if (error != NULL)
		repl_ml_targets_forget();
	return error;
}
