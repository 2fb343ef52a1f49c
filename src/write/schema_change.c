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
 * in which the group has them.
 *
 * What a statement runs by itself (an extension's script, event triggers) is part of it.
 *
 * Not here: which statements these are (reach.c), what becomes of tables that they have made,
 * dropped or renamed (outcome.c), what peers do with the row (apply/schema_change.c), nor which
 * statements would break replication (guard.c).  Runs in backends.  Locks: the lease
 * (commit/lease.c), and an advisory lock of a kind of our own, one at a time changes the schema of
 * the database; both until the transaction ends.
 */
#include "postgres.h"

#include "catalog/namespace.h"
#include "catalog/pg_authid.h"
#include "catalog/pg_type.h"
#include "commands/extension.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "nodes/parsenodes.h"
#include "storage/lock.h"
#include "tcop/cmdtag.h"
#include "tcop/utility.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"

#include "commit/commit.h"
#include "compat.h"
#include "row/row.h"
#include "server/server.h"
#include "write/write.h"

#define LOCK_KIND		6		/* of advisory locks: see commit/lease.c */

typedef enum NewTables
{
	REPLICATE_NEW_TABLES,
	STRONG_NEW_TABLES,
	IGNORE_NEW_TABLES
} NewTables;

static const struct config_enum_entry new_tables_options[] = {
	{"replicate", REPLICATE_NEW_TABLES, false},
	{"strong", STRONG_NEW_TABLES, false},
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
static bool is_of_a_change(int sqlerrcode, bool is_drop);
static int64 take_number(void);
static void take_lease(void);
static void take_turn(void);
static void write_down(int64 number, const char *tag, const char *statement, const char *filled);
static ArrayType *list_settings(void);
static void become_ourselves(Oid *user, int *context);

/* Called by _PG_init: defines the settings. */
void
repl_ml_schema_change_init(void)
{
	DefineCustomEnumVariable("repl_ml.new_tables",
							 "Whether and how a table that gets a primary key is replicated.",
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
							 true,
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
	if (!repl_ml_replicate_ddl || running || repl_ml_guard_off || repl_ml_applying ||
		repl_ml_internal_write || creating_extension || !IsUnderPostmaster ||
		context == PROCESS_UTILITY_SUBCOMMAND || !repl_ml_identity()->member)
		return false;
	return repl_ml_reach_decide(pstmt->utilityStmt);
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
	repl_ml_named_role_require(pstmt->utilityStmt);
	take_lease();
	take_turn();
	/* nobody is told of a change that only one node has */
	repl_ml_level_raise(REPL_ML_QUORUM);
	number = take_number();
	repl_ml_outcome_begin(pstmt->utilityStmt);
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
	repl_ml_column_follow(number);
}

/* Called when it has been run, or has failed. */
void
repl_ml_schema_change_leave(void)
{
	running = false;
	repl_ml_column_follow(0);
}

/*
 * Called by statement.c where it has failed: raises the error again; who finds that something
 * is there, or is gone, already learns why that may be.
 */
void
repl_ml_schema_change_explain(const PlannedStmt *pstmt)
{
	ErrorData  *error = CopyErrorData();

	FlushErrorState();
	if (error->hint == NULL &&
		is_of_a_change(error->sqlerrcode, IsA(pstmt->utilityStmt, DropStmt)))
		error->hint = pstrdup("Statements that change the schema are run by all members of the "
							  "group: see whether it has come from another node, with SELECT * "
							  "FROM repl_ml.schema_changes. One for this node only is run with "
							  "\"repl_ml.replicate_ddl\" off.");
	ReThrowError(error);
}

/* Says whether what another node has run may be why a statement fails with this code. */
static bool
is_of_a_change(int sqlerrcode, bool is_drop)
{
	switch (sqlerrcode)
	{
		case ERRCODE_DUPLICATE_COLUMN:
		case ERRCODE_DUPLICATE_FUNCTION:
		case ERRCODE_DUPLICATE_OBJECT:
		case ERRCODE_DUPLICATE_SCHEMA:
		case ERRCODE_DUPLICATE_TABLE:
			return true;
		case ERRCODE_UNDEFINED_FUNCTION:
		case ERRCODE_UNDEFINED_OBJECT:
		case ERRCODE_UNDEFINED_SCHEMA:
		case ERRCODE_UNDEFINED_TABLE:
			return is_drop;
		default:
			return false;
	}
}

/* Called by guard.c and own.c: says whether a change is being run that all nodes run. */
bool
repl_ml_schema_change_runs(void)
{
	return running;
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
	Oid			user;
	int			context;

	CommandCounterIncrement();
	if (pstmt->stmt_location >= 0 && pstmt->stmt_len > 0)
		statement = pnstrdup(statement, pstmt->stmt_len);
	if (IsA(stmt, CreateTableAsStmt) && ((CreateTableAsStmt *) stmt)->objtype == OBJECT_TABLE)
		statement = repl_ml_outcome_describe((CreateTableAsStmt *) stmt);
	filled = repl_ml_filled_describe(stmt);
	if (statement != NULL)
		write_down(number, tag, statement, filled);
	PG_TRY();
	{
		/* part of the change, too */
		running = true;
		repl_ml_column_follow(number);
		become_ourselves(&user, &context);
		repl_ml_outcome_follow(number);
		if (new_tables != IGNORE_NEW_TABLES)
			repl_ml_outcome_take_in(stmt, number, new_tables == STRONG_NEW_TABLES);
		SetUserIdAndSecContext(user, context);
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
