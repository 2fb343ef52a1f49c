/*
 * named_role.c
 *		Roles that a change of the schema names: they have to be on all members.
 *
 * Roles are each server's own, and who lacks one could only park the change, so that nothing
 * of its transaction is there.  So the members are asked before the statement is run; one that
 * does not answer parks it until it has the role.
 *
 * Not here: roles that functions name in what they run.  Called by schema_change.c, before
 * it takes any lock.
 */
#include "postgres.h"

#include "catalog/namespace.h"
#include "catalog/pg_authid.h"
#include "catalog/pg_type.h"
#include "commands/defrem.h"
#include "miscadmin.h"
#include "nodes/parsenodes.h"
#include "utils/acl.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/memutils.h"

#include "compat.h"
#include "server/server.h"
#include "write/write.h"

/* Those that this session has found on all members: names. */
static List *everywhere = NIL;

static List *list_named(Node *stmt);
static List *list_default_privileges(AlterDefaultPrivilegesStmt *stmt);
static List *list_owners(AlterTableStmt *stmt);
static bool is_known(const char *name);
static void ask_members(Datum *names, int count);

/*
 * Raises an error that says where, if the role that runs the statement, or one that it names,
 * is not on another member that answers.
 */
void
repl_ml_named_role_require(Node *stmt)
{
	List	   *named = list_named(stmt);
	Datum	   *names = palloc((list_length(named) + 1) * sizeof(Datum));
	const char *runs = GetUserNameFromId(GetUserId(), false);
	MemoryContext old;
	int			count = 0;
	ListCell   *lc;

	if (!is_known(runs))
		names[count++] = CStringGetTextDatum(runs);
	foreach(lc, named)
	{
		RoleSpec   *spec = lfirst_node(RoleSpec, lc);

		/* who is nowhere is told by the statement itself */
		if (spec->roletype == ROLESPEC_CSTRING && !is_known(spec->rolename) &&
			OidIsValid(get_role_oid(spec->rolename, true)))
			names[count++] = CStringGetTextDatum(spec->rolename);
	}
	if (count == 0)
		return;
	ask_members(names, count);
	old = MemoryContextSwitchTo(TopMemoryContext);
	for (int i = 0; i < count; i++)
		everywhere = lappend(everywhere, TextDatumGetCString(names[i]));
	MemoryContextSwitchTo(old);
}

/* Returns the roles that the statement names: a List of RoleSpec. */
static List *
list_named(Node *stmt)
{
	switch (nodeTag(stmt))
	{
		case T_AlterDefaultPrivilegesStmt:
			return list_default_privileges((AlterDefaultPrivilegesStmt *) stmt);
		case T_AlterOwnerStmt:
			return list_make1(((AlterOwnerStmt *) stmt)->newowner);
		case T_AlterPolicyStmt:
			return ((AlterPolicyStmt *) stmt)->roles;
		case T_AlterTableStmt:
			return list_owners((AlterTableStmt *) stmt);
		case T_CreatePolicyStmt:
			return ((CreatePolicyStmt *) stmt)->roles;
		case T_CreateSchemaStmt:
			return ((CreateSchemaStmt *) stmt)->authrole == NULL ? NIL :
				list_make1(((CreateSchemaStmt *) stmt)->authrole);
		case T_DropOwnedStmt:
			return ((DropOwnedStmt *) stmt)->roles;
		case T_GrantStmt:
			return ((GrantStmt *) stmt)->grantees;
		case T_ReassignOwnedStmt:
			return lappend(list_copy(((ReassignOwnedStmt *) stmt)->roles),
						   ((ReassignOwnedStmt *) stmt)->newrole);
		default:
			return NIL;
	}
}

/* Returns the roles that ALTER DEFAULT PRIVILEGES names. */
static List *
list_default_privileges(AlterDefaultPrivilegesStmt *stmt)
{
	List	   *roles = list_copy(stmt->action->grantees);
	ListCell   *lc;

	foreach(lc, stmt->options)
	{
		DefElem    *option = lfirst_node(DefElem, lc);

		if (strcmp(option->defname, "roles") == 0)
			roles = list_concat(roles, (List *) option->arg);
	}
	return roles;
}

/* Returns the roles that ALTER TABLE ... OWNER TO names. */
static List *
list_owners(AlterTableStmt *stmt)
{
	List	   *roles = NIL;
	ListCell   *lc;

	foreach(lc, stmt->cmds)
	{
		AlterTableCmd *cmd = lfirst_node(AlterTableCmd, lc);

		if (cmd->subtype == AT_ChangeOwner)
			roles = lappend(roles, cmd->newowner);
	}
	return roles;
}

/* Says whether this session has found the role on all members. */
static bool
is_known(const char *name)
{
	ListCell   *lc;

	foreach(lc, everywhere)
	{
		if (strcmp(lfirst(lc), name) == 0)
			return true;
	}
	return false;
}

/* Raises an error if a member that answers has not got all of these roles. */
static void
ask_members(Datum *names, int count)
{
	Oid			types[1] = {TEXTARRAYOID};
	Datum		values[1] = {PointerGetDatum(construct_array(names, count, TEXTOID, -1, false,
															 TYPALIGN_INT))};
	Oid			user;
	int			context;

	GetUserIdAndSecContext(&user, &context);
	SetUserIdAndSecContext(BOOTSTRAP_SUPERUSERID, context | SECURITY_LOCAL_USERID_CHANGE);
	repl_ml_spi_execute("SELECT repl_ml.require_roles($1)", 1, types, values, NULL);
	SetUserIdAndSecContext(user, context);
}
