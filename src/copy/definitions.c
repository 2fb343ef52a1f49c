/*
 * definitions.c
 *		What of the definitions that a member sends is run on another one.
 *
 * A member of a group creates tables that another one has added by running the
 * output of pg_dump about that one, as a superuser.  The other one decides what
 * is in there.  So the script is looked at first: it may hold nothing but
 * definitions of the tables that are to be created; and, when they are there,
 * whether one of them would run code of others with the rights of a superuser.
 * (A joining node restores all that its donor has; see schema.c.)
 *
 * Called by schema.c.  No locks; the second look runs as SQL, in the
 * transaction that has created the tables.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "lib/stringinfo.h"
#include "nodes/parsenodes.h"
#include "parser/parser.h"
#include "tcop/utility.h"
#include "utils/builtins.h"

#include "compat.h"
#include "copy/copy.h"
#include "server/server.h"

/* What is known while the statements are looked at, in their order. */
typedef struct Script
{
	List	   *tables;			/* quoted, qualified names that may be created */
	List	   *created;		/* ... of what the statements so far create */
} Script;

static bool is_allowed(Script *script, Node *statement);
static bool alters_table(Script *script, AlterTableStmt *statement);
static bool alters_allowed(Script *script, AlterTableCmd *command);

/*
 * Raises an error if the script holds more than definitions of these tables
 * (quoted, qualified names), or would touch anything that it does not create.
 */
void
repl_ml_definitions_check(const char *text, List *tables)
{
	Script		script = {.tables = tables};
	ListCell   *lc;

	foreach(lc, raw_parser(text, RAW_PARSE_DEFAULT))
	{
		Node	   *statement = lfirst_node(RawStmt, lc)->stmt;

		if (!is_allowed(&script, statement))
			ereport(ERROR,
					(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
					 errmsg("the definitions of the peer's tables hold a statement %s that is not "
							"run here",
							GetCommandTagName(CreateCommandTag(statement))),
					 errdetail("Of what another member has, only definitions of the tables that it "
							   "has added are created."),
					 errhint("Create the table on this node.")));
	}
}

/* Returns a name as it stands in the lists. */
static char *
qualify_name(const char *schema, const char *name)
{
	return quote_qualified_identifier(schema, name);
}

/* Notes that the script creates this. */
static void
note_created(Script *script, const char *schema, const char *name)
{
	script->created = lappend(script->created, makeString(qualify_name(schema, name)));
}

/*
 * Says whether an earlier statement creates it. pg_dump qualifies all names.
 */
static bool
is_created(Script *script, const char *schema, const char *name)
{
	return schema != NULL && name != NULL &&
		list_member(script->created, makeString(qualify_name(schema, name)));
}

/* Says whether an earlier statement creates the relation. */
static bool
is_created_relation(Script *script, RangeVar *relation)
{
	return relation != NULL && is_created(script, relation->schemaname, relation->relname);
}

/*
 * Says whether all relations of a list are created by the script, and there is
 * one.
 */
static bool
are_created(Script *script, List *relations)
{
	ListCell   *lc;

	foreach(lc, relations)
	{
		if (!IsA(lfirst(lc), RangeVar) || !is_created_relation(script, lfirst(lc)))
			return false;
	}
	return relations != NIL;
}

/*
 * Says whether it is one of a session's settings of form, which are put back
 * at the end.
 */
static bool
is_harmless_setting(const VariableSetStmt *statement)
{
	static const char *const names[] = {"statement_timeout", "lock_timeout",
	"idle_in_transaction_session_timeout",
		"transaction_timeout", "client_encoding", "standard_conforming_strings",
		"check_function_bodies", "xmloption",
	"client_min_messages", "row_security", "default_tablespace", "default_table_access_method"};

	for (int i = 0; i < lengthof(names); i++)
	{
		if (statement->name != NULL && strcmp(statement->name, names[i]) == 0)
			return true;
	}
	return false;
}

/*
 * Says whether it is SELECT pg_catalog.set_config('search_path', '', false),
 * the only one of its kind.
 */
static bool
is_empty_search_path(const SelectStmt *statement)
{
	FuncCall   *call;
	List	   *arguments;

	if (statement->op != SETOP_NONE || list_length(statement->targetList) != 1 ||
		statement->fromClause != NIL ||
		statement->whereClause != NULL || statement->valuesLists != NIL ||
		statement->withClause != NULL ||
		statement->intoClause != NULL || statement->sortClause != NIL ||
		statement->limitCount != NULL ||
		statement->limitOffset != NULL || statement->groupClause != NIL ||
		statement->havingClause != NULL)
		return false;
	call = (FuncCall *) linitial_node(ResTarget, statement->targetList)->val;
	if (!IsA(call, FuncCall) || list_length(call->funcname) != 2 || list_length(call->args) != 3 ||
		call->agg_order != NIL || call->agg_filter != NULL || call->over != NULL ||
		strcmp(strVal(linitial(call->funcname)), "pg_catalog") != 0 ||
		strcmp(strVal(lsecond(call->funcname)), "set_config") != 0)
		return false;
	arguments = call->args;
	return IsA(linitial(arguments), A_Const) && IsA(lsecond(arguments), A_Const) &&
		IsA(&linitial_node(A_Const, arguments)->val, String) &&
		strcmp(strVal(&linitial_node(A_Const, arguments)->val), "search_path") == 0 &&
		!IsA(lthird(arguments), FuncCall);
}

/*
 * Says whether the statement creates a table that is wanted; its rows' places
 * come with ATTACH PARTITION.
 */
static bool
creates_table(Script *script, CreateStmt *statement)
{
	RangeVar   *relation = statement->relation;

	if (relation->schemaname == NULL || statement->inhRelations != NIL ||
		statement->partbound != NULL || statement->ofTypename != NULL ||
		!list_member(script->tables,
					 makeString(qualify_name(relation->schemaname, relation->relname))))
		return false;
	note_created(script, relation->schemaname, relation->relname);
	return true;
}

/*
 * Says whether the comment is about a table that the script creates, or
 * something of it: that has the table's name in front.
 */
static bool
comments_created(Script *script, CommentStmt *statement)
{
	List	   *name = (List *) statement->object;
	bool		inside = false;

	switch (statement->objtype)
	{
		case OBJECT_COLUMN:
		case OBJECT_TABCONSTRAINT:
		case OBJECT_TRIGGER:
		case OBJECT_RULE:
		case OBJECT_POLICY:
			inside = true;
			break;
		case OBJECT_TABLE:
		case OBJECT_INDEX:
		case OBJECT_SEQUENCE:
		case OBJECT_STATISTIC_EXT:
			break;
		default:
			return false;
	}
	return IsA(name, List) && list_length(name) == (inside ? 3 : 2) &&
		is_created(script, strVal(linitial(name)), strVal(lsecond(name)));
}

/*
 * Says whether it is the identity of a column (row/column.c) of a table that
 * the script creates.
 */
static bool
labels_created(Script *script, SecLabelStmt *statement)
{
	List	   *name = (List *) statement->object;

	return statement->objtype == OBJECT_COLUMN && statement->provider != NULL &&
		strcmp(statement->provider, "repl_ml") == 0 &&
		list_length(name) == 3 && is_created(script, strVal(linitial(name)), strVal(lsecond(name)));
}

/* Says whether the statement may be run, and notes what it creates. */
static bool
is_allowed(Script *script, Node *statement)
{
	/* what creates something notes it, what is about something asks for it */
	switch (nodeTag(statement))
	{
		case T_VariableSetStmt:
			return is_harmless_setting((VariableSetStmt *) statement);
		case T_SelectStmt:
			return is_empty_search_path((SelectStmt *) statement);
		case T_CreateStmt:
			return creates_table(script, (CreateStmt *) statement);
		case T_CreateSeqStmt:
			{
				RangeVar   *sequence = ((CreateSeqStmt *) statement)->sequence;

				if (sequence->schemaname == NULL)
					return false;
				note_created(script, sequence->schemaname, sequence->relname);
				return true;
			}
		case T_AlterSeqStmt:
			return is_created_relation(script, ((AlterSeqStmt *) statement)->sequence);
		case T_IndexStmt:
			{
				IndexStmt  *index = (IndexStmt *) statement;

				if (!is_created_relation(script, index->relation) || index->idxname == NULL)
					return false;
				note_created(script, index->relation->schemaname, index->idxname);
				return true;
			}
		case T_AlterTableStmt:
			return alters_table(script, (AlterTableStmt *) statement);
		case T_CreateTrigStmt:
			return is_created_relation(script, ((CreateTrigStmt *) statement)->relation);
		case T_RuleStmt:
			return is_created_relation(script, ((RuleStmt *) statement)->relation);
		case T_CreatePolicyStmt:
			return is_created_relation(script, ((CreatePolicyStmt *) statement)->table);
		case T_CreateStatsStmt:
			{
				CreateStatsStmt *statistics = (CreateStatsStmt *) statement;

				if (!are_created(script, statistics->relations) ||
					list_length(statistics->defnames) != 2)
					return false;
				note_created(script, strVal(linitial(statistics->defnames)),
							 strVal(lsecond(statistics->defnames)));
				return true;
			}
		case T_AlterOwnerStmt:
			{
				AlterOwnerStmt *owner = (AlterOwnerStmt *) statement;
				List	   *name = (List *) owner->object;

				return owner->objectType == OBJECT_STATISTIC_EXT && list_length(name) == 2 &&
					is_created(script, strVal(linitial(name)), strVal(lsecond(name)));
			}
		case T_AlterStatsStmt:
			{
				List	   *name = ((AlterStatsStmt *) statement)->defnames;

				return list_length(name) == 2 &&
					is_created(script, strVal(linitial(name)), strVal(lsecond(name)));
			}
		case T_CommentStmt:
			return comments_created(script, (CommentStmt *) statement);
		case T_SecLabelStmt:
			return labels_created(script, (SecLabelStmt *) statement);
		case T_GrantStmt:
			{
				GrantStmt  *grant = (GrantStmt *) statement;

				return grant->targtype == ACL_TARGET_OBJECT &&
					(grant->objtype == OBJECT_TABLE || grant->objtype == OBJECT_SEQUENCE) &&
					are_created(script, grant->objects);
			}
		default:
			return false;
	}
}

/*
 * Says whether the statement alters only what the script creates, in ways that
 * are allowed.
 */
static bool
alters_table(Script *script, AlterTableStmt *statement)
{
	ListCell   *lc;

	if (!is_created_relation(script, statement->relation))
		return false;
	foreach(lc, statement->cmds)
	{
		AlterTableCmd *command = lfirst(lc);

		if (!alters_allowed(script, command))
			return false;
		/* the index of a key has the constraint's name */
		if (command->subtype == AT_AddConstraint && IsA(command->def, Constraint) &&
			((Constraint *) command->def)->conname != NULL)
			note_created(script, statement->relation->schemaname,
						 ((Constraint *) command->def)->conname);
	}
	return true;
}

/*
 * Says whether the bounds of a partition are constants: anything else would be
 * computed, by us.
 */
static bool
has_constant_bounds(PartitionCmd *command)
{
	List	   *values = NIL;
	ListCell   *lc;

	if (command->bound == NULL)
		return true;
	values = list_concat(list_concat(list_copy(command->bound->listdatums),
									 command->bound->lowerdatums), command->bound->upperdatums);
	foreach(lc, values)
	{
		Node	   *value = lfirst(lc);

		/* MINVALUE and MAXVALUE look like columns, a negative number like an operator */
		if (IsA(value, A_Expr) && ((A_Expr *) value)->lexpr == NULL)
			value = ((A_Expr *) value)->rexpr;
		if (!IsA(value, A_Const) && !IsA(value, ColumnRef))
			return false;
	}
	return true;
}

/*
 * Says whether the command defines the table, as those of pg_dump do, and runs
 * nothing.
 */
static bool
alters_allowed(Script *script, AlterTableCmd *command)
{
	switch (command->subtype)
	{
		case AT_ColumnDefault:
		case AT_SetNotNull:
		case AT_SetStatistics:
		case AT_SetOptions:
		case AT_SetStorage:
		case AT_SetCompression:
		case AT_AddConstraint:
		case AT_ChangeOwner:
		case AT_ClusterOn:
		case AT_SetRelOptions:
		case AT_EnableTrig:
		case AT_EnableAlwaysTrig:
		case AT_EnableReplicaTrig:
		case AT_DisableTrig:
		case AT_EnableRule:
		case AT_EnableAlwaysRule:
		case AT_EnableReplicaRule:
		case AT_DisableRule:
		case AT_ReplicaIdentity:
		case AT_EnableRowSecurity:
		case AT_ForceRowSecurity:
		case AT_AddIdentity:
			return true;
		case AT_AttachPartition:
			return is_created_relation(script, ((PartitionCmd *) command->def)->name) &&
				has_constant_bounds((PartitionCmd *) command->def);
		default:
			return false;
	}
}

/*
 * Raises an error if one of these tables, which have just been created,
 * belongs to a superuser and would run what nobody with such rights has put
 * here.  Between repl_ml_begin and repl_ml_commit.
 */
void
repl_ml_definitions_check_code(List *tables)
{
	ListCell   *lc;

	foreach(lc, tables)
	{
		Oid			types[1] = {TEXTOID};
		Datum		values[1] = {CStringGetTextDatum(strVal(lfirst(lc)))};

		SPI_execute_with_args("SELECT c.code, pg_catalog.pg_get_userbyid(t.relowner)"
							  " FROM pg_catalog.pg_class t, repl_ml.code_of_others(t.oid) c(code)"
							  " WHERE t.oid OPERATOR(pg_catalog.=) pg_catalog.to_regclass($1)"
							  " AND c.code IS NOT NULL",
							  1, types, values, NULL, false, 1);
		if (SPI_processed > 0)
			ereport(ERROR,
					(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
					 errmsg("table %s would run %s with the rights of role \"%s\"",
							strVal(lfirst(lc)), repl_ml_spi_text(0, 0), repl_ml_spi_text(0, 1)),
					 errdetail("So another member has defined it."),
					 errhint("Create the table on this node, or give it on the other one to a role "
							 "that is no superuser.")));
	}
}
