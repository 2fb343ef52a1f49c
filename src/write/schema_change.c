/*
 * schema_change.c
 *		A client's statement that changes the schema: in the group it is run by all members, or
 *		it is said that it is not.
 *
 * Such a statement takes the lease of strong tables first, so at any time one node changes the
 * schema, and it has all changes that were made before.  When the statement has been run it
 * is written down, with the role and the settings that it was run with, as a row of
 * repl_ml.schema_change, in the same transaction: so peers have it where it belongs among the
 * rows that the transaction writes, or nothing of either.  Changes are numbered in the order
 * in which the group has them.  A table that a statement has created is the group's then.
 *
 * What a statement runs by itself (an extension's script, event triggers) is part of it.  What
 * concerns this server only is run here, and a notice says so.
 *
 * Not here: what peers do with the row (apply/schema_change.c), nor which statements would
 * break replication (guard.c).  Runs in backends.  Locks: the lease (commit/lease.c), and an
 * advisory lock of a kind of our own, one at a time changes the schema of the database; both
 * until the transaction ends.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/relation.h"
#include "access/table.h"
#include "catalog/namespace.h"
#include "catalog/pg_attribute.h"
#include "catalog/pg_authid.h"
#include "catalog/pg_class.h"
#include "catalog/pg_inherits.h"
#include "catalog/pg_type.h"
#include "commands/defrem.h"
#include "commands/extension.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "nodes/makefuncs.h"
#include "nodes/parsenodes.h"
#include "optimizer/optimizer.h"
#include "rewrite/rewriteHandler.h"
#include "storage/lmgr.h"
#include "storage/lock.h"
#include "tcop/cmdtag.h"
#include "tcop/utility.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/guc.h"
#include "utils/json.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/ruleutils.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"

#include "commit/commit.h"
#include "compat.h"
#include "row/row.h"
#include "server/server.h"
#include "write/write.h"

#define LOCK_KIND		6		/* of advisory locks: see commit/lease.c */

/* Where a statement is run. */
typedef enum Reach
{
	NO_CHANGE,					/* of any schema; or one that only its session sees */
	THIS_NODE,					/* and a notice says so */
	ALL_NODES
} Reach;

typedef enum NewTables
{
	REPLICATE_NEW_TABLES,
	IGNORE_NEW_TABLES
} NewTables;

static const struct config_enum_entry new_tables_options[] = {
	{"replicate", REPLICATE_NEW_TABLES, false},
	{"ignore", IGNORE_NEW_TABLES, false},
	{NULL, 0, false}
};

/* What a statement may mean otherwise under other values. */
static const char *const settings[] = {
	"array_nulls", "bytea_output", "check_function_bodies", "datestyle",
	"default_table_access_method", "default_text_search_config", "default_toast_compression",
	"intervalstyle", "row_security", "standard_conforming_strings", "timezone",
	"transform_null_equals", "xmlbinary", "xmloption",
};

/* repl_ml.replicate_ddl, repl_ml.run_superusers_ddl, repl_ml.new_tables */
bool		repl_ml_replicate_ddl;
bool		repl_ml_run_superusers_ddl;
static int	new_tables = REPLICATE_NEW_TABLES;

/* A change is being run, also one of a peer's; written by enter and leave. */
static bool running = false;
static bool had_key = false;	/* the table that it alters; of a client's */
static List *dropped = NIL;		/* names of replicated tables that it has dropped: lists of two */
static MemoryContext dropped_context = NULL;

static Reach find_reach(Node *stmt);
static Reach find_reach_of_object(ObjectType type);
static bool is_temporary(Node *stmt);
static bool is_temporary_relation(RangeVar *range);
static bool are_temporary(DropStmt *stmt);
static bool is_of_ours(Node *stmt);
static bool is_concurrent(Node *stmt);
static void say_local(Node *stmt);
static int64 take_number(void);
static void take_lease(void);
static bool has_key(Node *stmt);
static void take_turn(void);
static void write_down(int64 number, const char *tag, const char *statement, const char *filled);
static ArrayType *list_settings(void);
static char *describe_created(CreateTableAsStmt *stmt);
static void take_in(Node *stmt, int64 number);
static void take_in_table(RangeVar *range, int64 number);
static void forget_dropped(void);
static void become_ourselves(Oid *user, int *context);

/* Called by _PG_init: defines the settings. */
void
repl_ml_schema_change_init(void)
{
	DefineCustomEnumVariable("repl_ml.new_tables",
							 "Whether a table that is created with a primary key is replicated.",
							 "Where schema changes are run on all members.",
							 &new_tables,
							 REPLICATE_NEW_TABLES,
							 new_tables_options,
							 PGC_USERSET,
							 0,
							 NULL,
							 NULL,
							 NULL);
	DefineCustomBoolVariable("repl_ml.run_superusers_ddl",
							 "Runs changes of the schema that superusers have made on another "
							 "member.",
							 "Off, they are parked: a member's superuser is then none here.",
							 &repl_ml_run_superusers_ddl,
							 true,
							 PGC_SIGHUP,
							 0,
							 NULL,
							 NULL,
							 NULL);
	DefineCustomBoolVariable("repl_ml.replicate_ddl",
							 "Runs statements that change the schema on all members of the group.",
							 "Off in a session, they are run on this node only.",
							 &repl_ml_replicate_ddl,
							 false,
							 PGC_USERSET,
							 0,
							 NULL,
							 NULL,
							 NULL);
}

/*
 * Called by statement.c in a database that has the extension: says whether the statement is
 * to be run by all members; tells the client of one that is not, though it might be
 * expected.
 */
bool
repl_ml_schema_change_is_one(const PlannedStmt *pstmt, ProcessUtilityContext context)
{
	Node	   *stmt = pstmt->utilityStmt;
	Reach		reach;

	if (!repl_ml_replicate_ddl || running || repl_ml_guard_off || repl_ml_applying ||
		repl_ml_internal_write || creating_extension || !IsUnderPostmaster ||
		context == PROCESS_UTILITY_SUBCOMMAND || !repl_ml_identity()->member)
		return false;
	reach = find_reach(stmt);
	if (reach == NO_CHANGE || is_temporary(stmt) || is_of_ours(stmt))
		return false;
	if (reach == ALL_NODES && !is_concurrent(stmt))
		return true;
	say_local(stmt);
	return false;
}

/* Called by apply/schema_change.c: says whether a peer's statement is one that all members run. */
bool
repl_ml_schema_change_is_run_everywhere(Node *stmt)
{
	return find_reach(stmt) == ALL_NODES && !is_concurrent(stmt) && !is_of_ours(stmt);
}

/* Called by apply/schema_change.c: says whether a statement is run with its session's setting. */
bool
repl_ml_schema_change_takes_along(const char *setting)
{
	for (int i = 0; i < lengthof(settings); i++)
	{
		if (strcmp(settings[i], setting) == 0)
			return true;
	}
	return false;
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
		default:
			return false;
	}
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

	switch (stmt->removeType)
	{
		case OBJECT_TABLE:
		case OBJECT_VIEW:
		case OBJECT_INDEX:
		case OBJECT_SEQUENCE:
			break;
		default:
			return false;
	}
	foreach(lc, stmt->objects)
		count += is_temporary_relation(makeRangeVarFromNameList(castNode(List, lfirst(lc))));
	if (count > 0 && count < list_length(stmt->objects))
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("temporary and other objects cannot be dropped by one statement"),
				 errdetail("The statement is run by all members of the group, which do not have "
						   "what is temporary here."),
				 errhint("Drop the temporary ones by a statement of their own.")));
	return count > 0;
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

/* Tells the client that the statement is run on this node only. */
static void
say_local(Node *stmt)
{
	const char *tag = GetCommandTagName(CreateCommandTag(stmt));

	ereport(NOTICE,
			(is_concurrent(stmt) ?
			 errmsg("%s ... CONCURRENTLY is run on this node only", tag) :
			 errmsg("%s is run on this node only", tag),
			 errhint("Run it on each node of the group that is to have it.")));
}

/*
 * Called by statement.c before a change is run: returns its number when this node may change
 * the schema, and has all changes made before; raises 57P03 if that cannot be.  repl_ml_
 * schema_change_leave has to follow, however the statement ends.
 */
int64
repl_ml_schema_change_begin(const PlannedStmt *pstmt)
{
	const ReplMlIdentity *self = repl_ml_identity_require();
	int64		number;

	if (self->joining)
		ereport(ERROR,
				(errcode(ERRCODE_CANNOT_CONNECT_NOW),
				 errmsg("the schema cannot be changed: node \"%s\" is still joining the group",
						NameStr(self->node_name)),
				 errhint("Wait with SELECT repl_ml.wait_for_node(%s, '10 min').",
						 quote_literal_cstr(NameStr(self->node_name)))));
	repl_ml_shmem_require();
	repl_ml_filled_refuse(pstmt->utilityStmt);
	take_lease();
	take_turn();
	/* nobody is told of a change that only one node has */
	repl_ml_level_raise(REPL_ML_QUORUM);
	number = take_number();
	had_key = has_key(pstmt->utilityStmt);
	repl_ml_schema_change_enter(number);
	return number;
}

/* Takes the lease; raises an error that speaks of the schema if it does not come. */
static void
take_lease(void)
{
	MemoryContext context = CurrentMemoryContext;

	PG_TRY();
	{
		repl_ml_lease_take();
	}
	PG_CATCH();
	{
		ErrorData  *error;

		if (geterrcode() != ERRCODE_CANNOT_CONNECT_NOW)
			PG_RE_THROW();
		MemoryContextSwitchTo(context);
		error = CopyErrorData();
		FlushErrorState();
		ereport(ERROR,
				(errcode(ERRCODE_CANNOT_CONNECT_NOW),
				 errmsg("the schema cannot be changed on this node now"),
				 errdetail_internal("%s", error->detail != NULL ? error->detail : error->message),
				 errhint("See SELECT * FROM repl_ml.health for what to do, or run the statement on "
						 "this node only with SELECT repl_ml.run_locally(...).")));
	}
	PG_END_TRY();
}

/* Says whether the statement alters a table that has a primary key already. */
static bool
has_key(Node *stmt)
{
	RangeVar   *range = IsA(stmt, AlterTableStmt) ? ((AlterTableStmt *) stmt)->relation : NULL;
	Oid			relid = range == NULL ? InvalidOid : RangeVarGetRelid(range, NoLock, true);
	Relation	rel = OidIsValid(relid) ? try_relation_open(relid, AccessShareLock) : NULL;
	bool		has = false;

	if (rel == NULL)
		return false;
	if (rel->rd_rel->relkind == RELKIND_RELATION ||
		rel->rd_rel->relkind == RELKIND_PARTITIONED_TABLE)
		has = OidIsValid(RelationGetPrimaryKeyIndex_compat(rel));
	relation_close(rel, AccessShareLock);
	return has;
}

/* Waits until no other session here changes the schema; it waits for this one then. */
static void
take_turn(void)
{
	LOCKTAG		tag;

	repl_ml_schema_change_tag(&tag);
	(void) LockAcquire(&tag, ExclusiveLock, false, false);
}

/* Sets the tag of the lock that who changes the schema of this database holds. */
void
repl_ml_schema_change_tag(LOCKTAG *tag)
{
	SET_LOCKTAG_ADVISORY(*tag, MyDatabaseId, 0, 0, LOCK_KIND);
}

/* Returns the number of the next change, which nobody else takes meanwhile. */
static int64
take_number(void)
{
	Oid			user;
	int			context;
	int64		number;

	become_ourselves(&user, &context);
	PushActiveSnapshot(GetLatestSnapshot());
	SPI_connect();
	number = repl_ml_query_int("SELECT greatest(l.schema_base, (SELECT pg_catalog.max(c.number)"
							   " FROM repl_ml.schema_change c)) OPERATOR(pg_catalog.+) 1"
							   " FROM repl_ml.local_node l");
	SPI_finish();
	PopActiveSnapshot();
	SetUserIdAndSecContext(user, context);
	return number;
}

/* Goes on with the rights of the extension, whoever's statement it is. */
static void
become_ourselves(Oid *user, int *context)
{
	GetUserIdAndSecContext(user, context);
	SetUserIdAndSecContext(BOOTSTRAP_SUPERUSERID, *context | SECURITY_LOCAL_USERID_CHANGE);
}

/*
 * Called before a change is run, here or by apply/schema_change.c: what it runs by itself is
 * part of it, and columns that it adds have the same identities on all nodes.
 */
void
repl_ml_schema_change_enter(int64 number)
{
	running = true;
	dropped = NIL;
	repl_ml_column_follow(number);
}

/* Called when it has been run, or has failed. */
void
repl_ml_schema_change_leave(void)
{
	running = false;
	repl_ml_column_follow(0);
}

/* Called by guard.c and own.c: says whether a change is being run that all nodes run. */
bool
repl_ml_schema_change_runs(void)
{
	return running;
}

/* Called by own.c: a replicated table is about to be dropped by the change that runs. */
void
repl_ml_schema_change_drops(Oid relid)
{
	MemoryContext old;

	if (dropped == NIL)
		dropped_context = CurTransactionContext;
	old = MemoryContextSwitchTo(dropped_context);
	dropped = lappend(dropped, list_make2(get_namespace_name(get_rel_namespace(relid)),
										  get_rel_name(relid)));
	MemoryContextSwitchTo(old);
}

/*
 * Called by statement.c when the change with this number has been run: writes it down for the
 * others, and takes the tables that it has created into the group.
 */
void
repl_ml_schema_change_end(int64 number, const PlannedStmt *pstmt, const char *query_string)
{
	Node	   *stmt = pstmt->utilityStmt;
	const char *tag = GetCommandTagName(CreateCommandTag(stmt));
	const char *statement = query_string + Max(pstmt->stmt_location, 0);
	char	   *filled;

	CommandCounterIncrement();
	if (pstmt->stmt_location >= 0 && pstmt->stmt_len > 0)
		statement = pnstrdup(statement, pstmt->stmt_len);
	if (IsA(stmt, CreateTableAsStmt) && ((CreateTableAsStmt *) stmt)->objtype == OBJECT_TABLE)
		statement = describe_created((CreateTableAsStmt *) stmt);
	filled = repl_ml_filled_describe(stmt);
	if (statement != NULL)
		write_down(number, tag, statement, filled);
	PG_TRY();
	{
		/* part of the change, too */
		running = true;
		repl_ml_column_follow(number);
		forget_dropped();
		if (new_tables == REPLICATE_NEW_TABLES)
			take_in(stmt, number);
	}
	PG_FINALLY();
	{
		repl_ml_schema_change_leave();
	}
	PG_END_TRY();
}

/* Writes the row for the other nodes. */
static void
write_down(int64 number, const char *tag, const char *statement, const char *filled)
{
	Oid			types[7] = {INT8OID, TEXTOID, TEXTOID, NAMEOID, TEXTOID, TEXTARRAYOID, TEXTOID};
	Datum		values[7];
	NameData	role;
	Oid			user;
	int			context;

	namestrcpy(&role, GetUserNameFromId(GetUserId(), false));
	values[0] = Int64GetDatum(number);
	values[1] = CStringGetTextDatum(tag);
	values[2] = CStringGetTextDatum(statement);
	values[3] = NameGetDatum(&role);
	values[4] = CStringGetTextDatum(namespace_search_path);
	values[5] = PointerGetDatum(list_settings());
	values[6] = CStringGetTextDatum(filled);
	become_ourselves(&user, &context);
	repl_ml_spi_execute("INSERT INTO repl_ml.schema_change (number, node_id, command_tag,"
						" statement, role_name, search_path, settings, filled)"
						" SELECT $1, l.node_id, $2, $3, $4, $5, $6, $7::pg_catalog.jsonb"
						" FROM repl_ml.local_node l", 7, types, values, NULL);
	SetUserIdAndSecContext(user, context);
}

/* Returns the settings that a statement depends on, each as name=value. */
static ArrayType *
list_settings(void)
{
	Datum		values[lengthof(settings)];
	int			count = 0;

	for (int i = 0; i < lengthof(settings); i++)
	{
		const char *value = GetConfigOption(settings[i], true, false);

		if (value != NULL)
			values[count++] = CStringGetTextDatum(psprintf("%s=%s", settings[i], value));
	}
	return construct_array(values, count, TEXTOID, -1, false, TYPALIGN_INT);
}

/*
 * Returns the statement by which others make the table that CREATE TABLE AS has made here: the
 * query may give something else there.  NULL if there was one already.
 */
static char *
describe_created(CreateTableAsStmt *stmt)
{
	Oid			relid = RangeVarGetRelid(stmt->into->rel, NoLock, true);
	Relation	rel = OidIsValid(relid) ? try_relation_open(relid, AccessShareLock) : NULL;
	StringInfoData text;

	if (rel == NULL || (rel->rd_createSubid == InvalidSubTransactionId && stmt->if_not_exists))
	{
		if (rel != NULL)
			relation_close(rel, AccessShareLock);
		return NULL;
	}
	initStringInfo(&text);
	appendStringInfo(&text, "CREATE %sTABLE %s (",
					 rel->rd_rel->relpersistence == RELPERSISTENCE_UNLOGGED ? "UNLOGGED " : "",
					 repl_ml_guard_table_name(relid));
	for (int i = 0; i < RelationGetNumberOfAttributes(rel); i++)
	{
		Form_pg_attribute att = TupleDescAttr(RelationGetDescr(rel), i);

		appendStringInfo(&text, "%s%s %s", i == 0 ? "" : ", ",
						 quote_identifier(NameStr(att->attname)),
						 format_type_extended(att->atttypid, att->atttypmod,
											  FORMAT_TYPE_TYPEMOD_GIVEN |
											  FORMAT_TYPE_FORCE_QUALIFY));
		if (OidIsValid(att->attcollation) && att->attcollation != get_typcollation(att->atttypid))
			appendStringInfo(&text, " COLLATE %s", generate_collation_name(att->attcollation));
	}
	appendStringInfoChar(&text, ')');
	relation_close(rel, AccessShareLock);
	return text.data;
}

/* Has the tables that the statement may have made ready for it replicated. */
static void
take_in(Node *stmt, int64 number)
{
	ListCell   *lc;

	if (IsA(stmt, CreateStmt))
		take_in_table(((CreateStmt *) stmt)->relation, number);
	else if (IsA(stmt, CreateTableAsStmt) && ((CreateTableAsStmt *) stmt)->objtype == OBJECT_TABLE)
		take_in_table(((CreateTableAsStmt *) stmt)->into->rel, number);
	else if (IsA(stmt, AlterTableStmt) && !had_key && has_key(stmt))
		take_in_table(((AlterTableStmt *) stmt)->relation, number);
	else if (IsA(stmt, CreateSchemaStmt))
	{
		CreateSchemaStmt *schema = (CreateSchemaStmt *) stmt;

		foreach(lc, schema->schemaElts)
		{
			RangeVar   *range;

			if (!IsA(lfirst(lc), CreateStmt))
				continue;
			range = copyObject(((CreateStmt *) lfirst(lc))->relation);
			if (range->schemaname == NULL)
				range->schemaname = schema->schemaname;
			if (range->schemaname != NULL)
				take_in_table(range, number);
		}
	}
}

/*
 * Has a table replicated, if it can be and is not; a warning says why it cannot.  Rows that it
 * has are written anew, so that they travel behind the change.
 */
static void
take_in_table(RangeVar *range, int64 number)
{
	Oid			relid = RangeVarGetRelid(range, NoLock, true);
	Oid			types[2] = {REGCLASSOID, INT8OID};
	Datum		values[2] = {ObjectIdGetDatum(relid), Int64GetDatum(number)};
	Oid			user;
	int			context;
	bool		taken;

	if (!OidIsValid(relid) || get_rel_relispartition(relid) || repl_ml_guard_is_replicated(relid))
		return;
	become_ourselves(&user, &context);
	PushActiveSnapshot(GetTransactionSnapshot());
	SPI_connect();
	if (SPI_execute_with_args("SELECT repl_ml.take_in($1, $2)", 2, types, values, NULL, false,
							  1) < 0)
		elog(ERROR, "SPI failed");
	taken = strcmp(repl_ml_spi_text(0, 0), "t") == 0;
	if (taken && repl_ml_has_rows(relid, AccessExclusiveLock))
	{
		Relation	rel = table_open(relid, NoLock);
		ReplMlUser	saved;

		repl_ml_become_owner(rel, &saved);
		if (SPI_execute(psprintf("UPDATE %s SET %s = %s", repl_ml_guard_table_name(relid),
								 REPL_ML_CLOCK_COLUMN, REPL_ML_CLOCK_COLUMN), false, 0) < 0)
			elog(ERROR, "SPI failed");
		repl_ml_become_self(&saved);
		table_close(rel, NoLock);
	}
	SPI_finish();
	PopActiveSnapshot();
	SetUserIdAndSecContext(user, context);
}

/* Forgets what is known of replicated tables that the statement has dropped. */
static void
forget_dropped(void)
{
	Oid			user;
	int			context;

	become_ourselves(&user, &context);
	repl_ml_schema_change_forget_dropped();
	SetUserIdAndSecContext(user, context);
}

/*
 * Forgets what this node knows of replicated tables that the change has dropped; the node that
 * made the change also takes them from the group's list, which the others get.
 */
void
repl_ml_schema_change_forget_dropped(void)
{
	Oid			types[3] = {TEXTOID, TEXTOID, BOOLOID};
	ListCell   *lc;

	foreach(lc, dropped)
	{
		Datum		values[3] = {CStringGetTextDatum(linitial(lfirst(lc))),
		CStringGetTextDatum(lsecond(lfirst(lc))), BoolGetDatum(!repl_ml_applying)};

		repl_ml_spi_execute("SELECT repl_ml.forget_table($1::pg_catalog.name,"
							" $2::pg_catalog.name, $3)", 3, types, values, NULL);
	}
	dropped = NIL;
}
