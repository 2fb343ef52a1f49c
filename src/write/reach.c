/*
 * reach.c
 *		Which statements change the schema, and on which nodes they are run.
 *
 * What is about databases, roles and other matters of one server is run here, and a notice
 * says so; so is what has transactions of its own, unless the others can run it within one at
 * once.  What only its session sees, and what is
 * about the extension itself, is nobody else's.
 *
 * Not here: how the others get a statement (schema_change.c).  Called by statement.c through
 * that, and by who applies a peer's.  Locks: none that it keeps.
 */
#include "postgres.h"

#include "access/relation.h"
#include "catalog/namespace.h"
#include "catalog/pg_class.h"
#include "nodes/makefuncs.h"
#include "nodes/parsenodes.h"
#include "storage/bufmgr.h"
#include "tcop/cmdtag.h"
#include "tcop/utility.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"

#include "compat.h"
#include "server/server.h"
#include "write/write.h"

#define MOST_PAGES		512		/* of a table that gets an index */

/* Where a statement is run. */
typedef enum Reach
{
	NO_CHANGE,					/* of any schema; or one that only its session sees */
	THIS_NODE,					/* and a notice says so */
	ALL_NODES
} Reach;

static Reach find_reach(Node *stmt);
static Reach find_reach_of_object(ObjectType type);
static bool is_temporary(Node *stmt);
static bool is_temporary_name(List *name);
static bool is_temporary_relation(RangeVar *range);
static bool is_temporary_object(ObjectType type, Node *object);
static bool are_temporary(DropStmt *stmt);
static bool is_of_ours(Node *stmt);
static bool is_concurrent(Node *stmt);
static bool is_quick(Node *stmt);
static void say_local(Node *stmt);
static bool is_about_roles(Node *stmt);

/*
 * Called by schema_change.c: says whether a client's statement is to be run by all members;
 * tells the client of one that is not, though it might be expected.
 */
bool
repl_ml_reach_decide(Node *stmt)
{
	Reach		reach = find_reach(stmt);

	if (reach == NO_CHANGE || is_temporary(stmt) || is_of_ours(stmt))
		return false;
	if (reach == ALL_NODES && (!is_concurrent(stmt) || is_quick(stmt)))
		return true;
	say_local(stmt);
	return false;
}

/* Called by apply/schema_change.c: says whether a peer's statement is one that all members run. */
bool
repl_ml_reach_is_everywhere(Node *stmt)
{
	return find_reach(stmt) == ALL_NODES && !is_of_ours(stmt) &&
		(!IsA(stmt, AlterTableStmt) || !is_concurrent(stmt));
}

/* Called by statement.c: says whether the statement has transactions of its own. */
bool
repl_ml_reach_has_transactions(Node *stmt)
{
	return is_concurrent(stmt);
}

/*
 * Called by apply/schema_change.c, which runs a peer's statement within its transaction.  An index
 * that was made there only, or not to its end, need not be here to be dropped.
 */
void
repl_ml_reach_make_plain(Node *stmt)
{
	if (IsA(stmt, IndexStmt))
		((IndexStmt *) stmt)->concurrent = false;
	else if (IsA(stmt, DropStmt) && ((DropStmt *) stmt)->removeType == OBJECT_INDEX)
	{
		((DropStmt *) stmt)->concurrent = false;
		((DropStmt *) stmt)->missing_ok = true;
	}
}

/* Returns where a statement of this kind is run. */
static Reach
find_reach(Node *stmt)
{
	switch (nodeTag(stmt))
	{
		case T_AlterCollationStmt:
		case T_AlterDefaultPrivilegesStmt:
		case T_AlterDomainStmt:
		case T_AlterEnumStmt:
		case T_AlterEventTrigStmt:
		case T_AlterExtensionContentsStmt:
		case T_AlterExtensionStmt:
		case T_AlterFdwStmt:
		case T_AlterForeignServerStmt:
		case T_AlterFunctionStmt:
		case T_AlterObjectDependsStmt:
		case T_AlterObjectSchemaStmt:
		case T_AlterOpFamilyStmt:
		case T_AlterOperatorStmt:
		case T_AlterPolicyStmt:
		case T_AlterSeqStmt:
		case T_AlterStatsStmt:
		case T_AlterTSConfigurationStmt:
		case T_AlterTSDictionaryStmt:
		case T_AlterTableMoveAllStmt:
		case T_AlterTypeStmt:
		case T_CompositeTypeStmt:
		case T_CreateAmStmt:
		case T_CreateCastStmt:
		case T_CreateConversionStmt:
		case T_CreateDomainStmt:
		case T_CreateEnumStmt:
		case T_CreateEventTrigStmt:
		case T_CreateExtensionStmt:
		case T_CreateFdwStmt:
		case T_CreateForeignServerStmt:
		case T_CreateForeignTableStmt:
		case T_CreateFunctionStmt:
		case T_CreateOpClassStmt:
		case T_CreateOpFamilyStmt:
		case T_CreatePLangStmt:
		case T_CreatePolicyStmt:
		case T_CreateRangeStmt:
		case T_CreateSchemaStmt:
		case T_CreateSeqStmt:
		case T_CreateStatsStmt:
		case T_CreateStmt:
		case T_CreateTableAsStmt:
		case T_CreateTransformStmt:
		case T_CreateTrigStmt:
		case T_DefineStmt:
		case T_DropOwnedStmt:
		case T_ImportForeignSchemaStmt:
		case T_IndexStmt:
		case T_ReassignOwnedStmt:
		case T_RuleStmt:
		case T_ViewStmt:
			return ALL_NODES;
		case T_AlterTableStmt:
			return find_reach_of_object(((AlterTableStmt *) stmt)->objtype);
		case T_AlterOwnerStmt:
			return find_reach_of_object(((AlterOwnerStmt *) stmt)->objectType);
		case T_CommentStmt:
			return find_reach_of_object(((CommentStmt *) stmt)->objtype);
		case T_DropStmt:
			return find_reach_of_object(((DropStmt *) stmt)->removeType);
		case T_GrantStmt:
			return find_reach_of_object(((GrantStmt *) stmt)->objtype);
		case T_RenameStmt:
			return find_reach_of_object(((RenameStmt *) stmt)->renameType);
		case T_SecLabelStmt:
			return find_reach_of_object(((SecLabelStmt *) stmt)->objtype);
		case T_AlterDatabaseSetStmt:
		case T_AlterDatabaseStmt:
		case T_AlterPublicationStmt:
		case T_AlterRoleSetStmt:
		case T_AlterRoleStmt:
		case T_AlterSubscriptionStmt:
		case T_AlterTableSpaceOptionsStmt:
		case T_AlterUserMappingStmt:
		case T_CreatePublicationStmt:
		case T_CreateRoleStmt:
		case T_CreateSubscriptionStmt:
		case T_CreateUserMappingStmt:
		case T_DropRoleStmt:
		case T_DropSubscriptionStmt:
		case T_DropUserMappingStmt:
		case T_GrantRoleStmt:
		case T_RefreshMatViewStmt:
			return THIS_NODE;
		default:
			return NO_CHANGE;
	}
}

/* Returns where a statement about an object of this kind is run. */
static Reach
find_reach_of_object(ObjectType type)
{
	switch (type)
	{
		case OBJECT_DATABASE:
		case OBJECT_LARGEOBJECT:
		case OBJECT_PARAMETER_ACL:
		case OBJECT_PUBLICATION:
		case OBJECT_ROLE:
		case OBJECT_SUBSCRIPTION:
		case OBJECT_TABLESPACE:
		case OBJECT_USER_MAPPING:
			return THIS_NODE;
		default:
			return ALL_NODES;
	}
}

/* Says whether the statement is about something that only this session sees. */
static bool
is_temporary(Node *stmt)
{
	switch (nodeTag(stmt))
	{
		case T_CreateStmt:
		case T_CreateForeignTableStmt:
			return is_temporary_relation(((CreateStmt *) stmt)->relation);
		case T_CreateTableAsStmt:
			return is_temporary_relation(((CreateTableAsStmt *) stmt)->into->rel);
		case T_CreateSeqStmt:
			return is_temporary_relation(((CreateSeqStmt *) stmt)->sequence);
		case T_AlterSeqStmt:
			return is_temporary_relation(((AlterSeqStmt *) stmt)->sequence);
		case T_ViewStmt:
			return is_temporary_relation(((ViewStmt *) stmt)->view);
		case T_IndexStmt:
			return is_temporary_relation(((IndexStmt *) stmt)->relation);
		case T_AlterTableStmt:
			return is_temporary_relation(((AlterTableStmt *) stmt)->relation);
		case T_RenameStmt:
			return is_temporary_relation(((RenameStmt *) stmt)->relation);
		case T_AlterObjectSchemaStmt:
			return is_temporary_relation(((AlterObjectSchemaStmt *) stmt)->relation);
		case T_CreateTrigStmt:
			return is_temporary_relation(((CreateTrigStmt *) stmt)->relation);
		case T_RuleStmt:
			return is_temporary_relation(((RuleStmt *) stmt)->relation);
		case T_CommentStmt:
			return ((CommentStmt *) stmt)->objtype == OBJECT_TABLE &&
				is_temporary_relation(makeRangeVarFromNameList((List *)
															   ((CommentStmt *) stmt)->object));
		case T_GrantStmt:
			return ((GrantStmt *) stmt)->targtype == ACL_TARGET_OBJECT &&
				((GrantStmt *) stmt)->objtype == OBJECT_TABLE &&
				is_temporary_relation(linitial(((GrantStmt *) stmt)->objects));
		case T_DropStmt:
			return are_temporary((DropStmt *) stmt);
		case T_CompositeTypeStmt:
			return is_temporary_relation(((CompositeTypeStmt *) stmt)->typevar);
		case T_CreateDomainStmt:
			return is_temporary_name(((CreateDomainStmt *) stmt)->domainname);
		case T_CreateEnumStmt:
			return is_temporary_name(((CreateEnumStmt *) stmt)->typeName);
		case T_CreateFunctionStmt:
			return is_temporary_name(((CreateFunctionStmt *) stmt)->funcname);
		case T_AlterFunctionStmt:
			return is_temporary_name(((AlterFunctionStmt *) stmt)->func->objname);
		case T_CreateRangeStmt:
			return is_temporary_name(((CreateRangeStmt *) stmt)->typeName);
		default:
			return false;
	}
}

/* Says whether a name says that it is of something temporary. */
static bool
is_temporary_name(List *name)
{
	return list_length(name) > 1 && strcmp(strVal(linitial(name)), "pg_temp") == 0;
}

/* Says whether the relation is temporary, or to be; NULL is none. */
static bool
is_temporary_relation(RangeVar *range)
{
	Oid			relid;

	if (range == NULL)
		return false;
	if (range->relpersistence == RELPERSISTENCE_TEMP ||
		(range->schemaname != NULL && strcmp(range->schemaname, "pg_temp") == 0))
		return true;
	relid = RangeVarGetRelid(range, NoLock, true);
	return OidIsValid(relid) && get_rel_persistence(relid) == RELPERSISTENCE_TEMP;
}

/*
 * Says whether all that is to be dropped is temporary; raises an error where some is, as the
 * other nodes have only the rest.
 */
static bool
are_temporary(DropStmt *stmt)
{
	int			count = 0;
	ListCell   *lc;

	foreach(lc, stmt->objects)
		count += is_temporary_object(stmt->removeType, lfirst(lc));
	if (count > 0 && count < list_length(stmt->objects))
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("temporary and other objects cannot be dropped by one statement"),
				 errdetail("The statement is run by all members of the group, which do not have "
						   "what is temporary here."),
				 errhint("Drop the temporary ones by a statement of their own.")));
	return count > 0;
}

/* Says whether an object that is to be dropped is temporary. */
static bool
is_temporary_object(ObjectType type, Node *object)
{
	switch (type)
	{
		case OBJECT_TABLE:
		case OBJECT_VIEW:
		case OBJECT_INDEX:
		case OBJECT_SEQUENCE:
			return is_temporary_relation(makeRangeVarFromNameList(castNode(List, object)));
		case OBJECT_FUNCTION:
		case OBJECT_PROCEDURE:
		case OBJECT_ROUTINE:
			return is_temporary_name(castNode(ObjectWithArgs, object)->objname);
		case OBJECT_DOMAIN:
		case OBJECT_TYPE:
			return is_temporary_name(castNode(TypeName, object)->names);
		default:
			return false;
	}
}

/* Says whether the statement is about the extension itself, or labels of its own. */
static bool
is_of_ours(Node *stmt)
{
	switch (nodeTag(stmt))
	{
		case T_CreateExtensionStmt:
			return strcmp(((CreateExtensionStmt *) stmt)->extname, REPL_ML_SCHEMA) == 0;
		case T_AlterExtensionStmt:
			return strcmp(((AlterExtensionStmt *) stmt)->extname, REPL_ML_SCHEMA) == 0;
		case T_AlterExtensionContentsStmt:
			return strcmp(((AlterExtensionContentsStmt *) stmt)->extname, REPL_ML_SCHEMA) == 0;
		case T_SecLabelStmt:
			return ((SecLabelStmt *) stmt)->provider != NULL &&
				strcmp(((SecLabelStmt *) stmt)->provider, REPL_ML_SCHEMA) == 0;
		case T_AlterTableStmt:
			{
				Oid			relid = RangeVarGetRelid(((AlterTableStmt *) stmt)->relation, NoLock,
													 true);

				return OidIsValid(relid) && get_rel_namespace(relid) == repl_ml_schema_oid();
			}
		default:
			return false;
	}
}

/* Says whether the statement is one with transactions of its own. */
static bool
is_concurrent(Node *stmt)
{
	ListCell   *lc;

	if (IsA(stmt, IndexStmt))
		return ((IndexStmt *) stmt)->concurrent;
	if (IsA(stmt, DropStmt))
		return ((DropStmt *) stmt)->concurrent;
	if (!IsA(stmt, AlterTableStmt))
		return false;
	foreach(lc, ((AlterTableStmt *) stmt)->cmds)
	{
		AlterTableCmd *cmd = lfirst_node(AlterTableCmd, lc);

		if (cmd->subtype == AT_DetachPartition && ((PartitionCmd *) cmd->def)->concurrent)
			return true;
	}
	return false;
}

/*
 * Says whether the others can run within a transaction what has transactions of its own here:
 * they keep writers out for a moment only.
 */
static bool
is_quick(Node *stmt)
{
	Oid			relid;
	Relation	rel;
	bool		quick = false;

	if (!IsA(stmt, IndexStmt))
		return IsA(stmt, DropStmt);
	relid = RangeVarGetRelid(((IndexStmt *) stmt)->relation, NoLock, true);
	rel = OidIsValid(relid) ? try_relation_open(relid, AccessShareLock) : NULL;
	if (rel == NULL)
		return false;
	if (rel->rd_rel->relkind == RELKIND_RELATION)
		quick = RelationGetNumberOfBlocks(rel) <= MOST_PAGES;
	relation_close(rel, AccessShareLock);
	return quick;
}

/* Tells the client that the statement is run on this node only. */
static void
say_local(Node *stmt)
{
	const char *tag = GetCommandTagName(CreateCommandTag(stmt));

	ereport(NOTICE,
			(is_concurrent(stmt) ?
			 errmsg("%s ... CONCURRENTLY is run on this node only", tag) :
			 errmsg("%s is run on this node only", tag),
			 is_about_roles(stmt) ?
			 errhint("Run it on each node of the group, before any statement that names the role: "
					 "those are run by all members.") :
			 errhint("Run it on each node of the group that is to have it.")));
}

/* Says whether the statement makes a role, or is about its rights. */
static bool
is_about_roles(Node *stmt)
{
	return IsA(stmt, CreateRoleStmt) || IsA(stmt, GrantRoleStmt);
}
