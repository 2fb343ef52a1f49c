/*
 * schema_change.c
 *		A change of the schema that a peer has made: its statement is run here, in the
 *		transaction that applies the peer's.
 *
 * The row of repl_ml.schema_change stands in the stream where the statement was run, so what
 * the peer wrote before it and after it finds the tables as they were there.  It is run with
 * the rights of the role that ran it there, by name, under its search_path and settings.  What
 * fails is the whole transaction's: that is parked as one (change.c), and tried again as one
 * (copy/retry.c).
 *
 * Who has run change k says so in the WAL of this node, before the commit: "schema k".  So
 * who reads this node's stream finds that before the first row that was written here with the
 * tables as k has made them, and waits until k has been run there, or parked (group/worker.c;
 * test/model/schema.pml).
 *
 * Called by change.c, dispatch.c and the apply worker.  Not here: which statements are changes,
 * and what becomes of new tables on the node that makes them (write/schema_change.c).  Locks:
 * those of the statement, and one for who changes the schema of the database, until the
 * transaction ends.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/heap.h"
#include "catalog/namespace.h"
#include "catalog/pg_authid.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "nodes/parsenodes.h"
#include "parser/analyze.h"
#include "parser/parser.h"
#include "storage/lock.h"
#include "tcop/dest.h"
#include "tcop/utility.h"
#include "utils/acl.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"

#include "apply/apply.h"
#include "compat.h"
#include "converge/converge.h"
#include "row/row.h"
#include "server/server.h"
#include "write/write.h"

#define HAS_RUN			"schema"	/* verb of the message */

/* Columns of repl_ml.schema_change. */
enum
{
	Anum_change_number = 1,
	Anum_change_statement = 5,
	Anum_change_role = 6,
	Anum_change_search_path = 7,
	Anum_change_settings = 8,
	Anum_change_filled = 9
};

/* A change as the peer has written it down. */
typedef struct Change
{
	int64		number;
	char	   *statement;
	char	   *role;
	char	   *search_path;
	Datum		settings;		/* text[] */
	Datum		filled;			/* jsonb */
} Change;

/* The last change that was run here, and the transaction that did; for take_in_listed. */
static int64 last_number = 0;
static TransactionId last_xid = InvalidTransactionId;

static char *message_head(const pg_uuid_t *group);
static bool read_change(TupleTableSlot *row, Change *change);
static bool is_here(int64 number);
static void run_change(const Change *change);
static bool is_privileged(Oid role);
static Oid	find_role(const char *name);
static void impose_settings(const Change *change);
static RawStmt *parse_change(const Change *change);
static void leave_out_tablespaces(Node *stmt);
static void run_statement(RawStmt *raw, const char *text);
static void fill_columns(Datum filled);

/*
 * Called by change.c with a row of repl_ml.schema_change that comes from a peer: keeps it, and
 * runs its statement, unless this node has done so already.
 */
void
repl_ml_schema_change_apply(ReplMlApply *apply, Oid relid, TupleTableSlot *row,
							const ReplMlSource *source)
{
	Change		change;
	LOCKTAG		tag;

	if (!read_change(row, &change))
		ereport(ERROR,
				(errcode(ERRCODE_PROTOCOL_VIOLATION),
				 errmsg("the peer sent a change of the schema that says too little"),
				 errhint(REPL_ML_SAME_VERSION_HINT)));
	if (is_here(change.number))
		return;
	/* another worker may be running the same one */
	repl_ml_schema_change_tag(&tag);
	(void) LockAcquire(&tag, ExclusiveLock, false, false);
	if (is_here(change.number))
		return;
	(void) repl_ml_row_join(relid, row, source);

	/* what is open would be in the statement's way */
	repl_ml_targets_close();
	run_change(&change);
	CommandCounterIncrement();
	last_number = change.number;
	last_xid = GetTopTransactionId();
	(void) repl_ml_news_write(psprintf("%s" INT64_FORMAT,
									   message_head(&repl_ml_identity_require()->group_id),
									   change.number));
}

/*
 * Returns what the message begins with.  Everybody can write messages into the WAL, but not
 * everybody knows the id of the group.
 */
static char *
message_head(const pg_uuid_t *group)
{
	return psprintf("%s %s ", HAS_RUN,
					DatumGetCString(DirectFunctionCall1(uuid_out, UUIDPGetDatum(group))));
}

/* Reads the row, into the current context; returns false if something is null. */
static bool
read_change(TupleTableSlot *row, Change *change)
{
	slot_getallattrs(row);
	for (int i = Anum_change_number; i <= Anum_change_filled; i++)
	{
		if (row->tts_isnull[i - 1])
			return false;
	}
	change->number = DatumGetInt64(row->tts_values[Anum_change_number - 1]);
	change->statement = TextDatumGetCString(row->tts_values[Anum_change_statement - 1]);
	change->role = pstrdup(NameStr(*DatumGetName(row->tts_values[Anum_change_role - 1])));
	change->search_path = TextDatumGetCString(row->tts_values[Anum_change_search_path - 1]);
	change->settings =
		PointerGetDatum(PG_DETOAST_DATUM_COPY(row->tts_values[Anum_change_settings - 1]));
	change->filled =
		PointerGetDatum(PG_DETOAST_DATUM_COPY(row->tts_values[Anum_change_filled - 1]));
	return true;
}

/* Says whether this node has the change, or was made from a database that had it. */
static bool
is_here(int64 number)
{
	Oid			types[1] = {INT8OID};
	Datum		values[1] = {Int64GetDatum(number)};

	return repl_ml_spi_execute("SELECT FROM repl_ml.local_node l"
							   " WHERE l.schema_base OPERATOR(pg_catalog.>=) $1 UNION ALL"
							   " SELECT FROM repl_ml.schema_change c"
							   " WHERE c.number OPERATOR(pg_catalog.=) $1",
							   1, types, values, NULL) > 0;
}

/*
 * Runs the statement as the role that ran it, which can do no more here than it may; what it
 * says of its objects is as it was there.
 */
static void
run_change(const Change *change)
{
	RawStmt    *raw = parse_change(change);
	Oid			role = find_role(change->role);
	Oid			user;
	int			context;
	int			level = NewGUCNestLevel();

	GetUserIdAndSecContext(&user, &context);
	impose_settings(change);
	repl_ml_outcome_begin(raw->stmt);
	repl_ml_schema_change_enter(change->number);
	PG_TRY();
	{
		SetUserIdAndSecContext(role, superuser_arg(role) ? context :
							   context | SECURITY_RESTRICTED_OPERATION);
		run_statement(raw, change->statement);
		SetUserIdAndSecContext(user, context);
		AtEOXact_GUC(false, level);
		CommandCounterIncrement();
		repl_ml_outcome_follow(change->number);
		fill_columns(change->filled);
	}
	PG_FINALLY();
	{
		repl_ml_schema_change_leave();
	}
	PG_END_TRY();
}

/* Says whether a role can become a superuser by what it may do. */
static bool
is_privileged(Oid role)
{
	return superuser_arg(role) || has_createrole_privilege(role) ||
		has_rolreplication(role) || is_member_of_role(role, ROLE_PG_EXECUTE_SERVER_PROGRAM) ||
		is_member_of_role(role, ROLE_PG_WRITE_SERVER_FILES) ||
		is_member_of_role(role, ROLE_PG_READ_SERVER_FILES);
}

/*
 * Returns the role of that name; raises an error if it is not here, or is one that other
 * members may not be here.
 */
static Oid
find_role(const char *name)
{
	Oid			role = get_role_oid(name, true);

	if (!OidIsValid(role))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("role \"%s\" does not exist on this server", name),
				 errdetail("It has changed the schema on another node; roles are not replicated."),
				 errhint("Run CREATE ROLE %s.", quote_identifier(name))));
	if (!repl_ml_run_superusers_ddl && is_privileged(role))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("role \"%s\" has changed the schema on another node, and is a superuser "
						"here, or as good as one", name),
				 errdetail("\"%s\" is off.", "repl_ml.run_superusers_ddl"),
				 errhint("Run ALTER SYSTEM SET repl_ml.run_superusers_ddl = on, or have such "
						 "changes made by another role.")));
	return role;
}

/*
 * Gives the settings of the session that ran the statement their values, until the caller ends
 * that.
 */
static void
impose_settings(const Change *change)
{
	Datum	   *values;
	bool	   *nulls;
	int			count;

	(void) set_config_option("search_path", change->search_path, PGC_SUSET, PGC_S_SESSION,
							 GUC_ACTION_SAVE, true, 0, false);
	deconstruct_array(DatumGetArrayTypeP(change->settings), TEXTOID, -1, false, TYPALIGN_INT,
					  &values, &nulls, &count);
	for (int i = 0; i < count; i++)
	{
		char	   *name = nulls[i] ? NULL : TextDatumGetCString(values[i]);
		char	   *value = name == NULL ? NULL : strchr(name, '=');

		if (value == NULL)
			continue;
		*value++ = '\0';
		/* another major may lack it */
		if (repl_ml_schema_change_takes_along(name) && GetConfigOption(name, true, false) != NULL)
			(void) set_config_option(name, value, PGC_USERSET, PGC_S_SESSION, GUC_ACTION_SAVE, true,
									 0, false);
	}
}

/*
 * Returns the statement; raises an error if it is not just one, of a kind that all members
 * run: the peer says what it is.
 */
static RawStmt *
parse_change(const Change *change)
{
	List	   *parsed = raw_parser(change->statement, RAW_PARSE_DEFAULT);
	RawStmt    *raw = list_length(parsed) == 1 ? linitial_node(RawStmt, parsed) : NULL;

	if (raw == NULL || !repl_ml_reach_is_everywhere(raw->stmt))
		ereport(ERROR,
				(errcode(ERRCODE_PROTOCOL_VIOLATION),
				 errmsg("the peer sent a change of the schema that is none"),
				 errhint(REPL_ML_SAME_VERSION_HINT)));
	leave_out_tablespaces(raw->stmt);
	repl_ml_reach_make_plain(raw->stmt);
	return raw;
}

/* Where things are stored is each server's own. */
static void
leave_out_tablespaces(Node *stmt)
{
	if (IsA(stmt, CreateStmt))
		((CreateStmt *) stmt)->tablespacename = NULL;
	else if (IsA(stmt, IndexStmt))
		((IndexStmt *) stmt)->tableSpace = NULL;
	else if (IsA(stmt, CreateTableAsStmt))
		((CreateTableAsStmt *) stmt)->into->tableSpaceName = NULL;
	else if (IsA(stmt, AlterTableStmt))
	{
		AlterTableStmt *alter = (AlterTableStmt *) stmt;
		ListCell   *lc;

		foreach(lc, alter->cmds)
		{
			if (lfirst_node(AlterTableCmd, lc)->subtype == AT_SetTableSpace)
				alter->cmds = foreach_delete_current(alter->cmds, lc);
		}
	}
}

/* Runs the statement as a client's would be. */
static void
run_statement(RawStmt *raw, const char *text)
{
	Query	   *query;
	PlannedStmt *planned = makeNode(PlannedStmt);

	if (IsA(raw->stmt, AlterTableStmt) && ((AlterTableStmt *) raw->stmt)->cmds == NIL)
		return;
	PushActiveSnapshot(GetTransactionSnapshot());
	query = parse_analyze_fixedparams(raw, text, NULL, 0, NULL);
	planned->commandType = CMD_UTILITY;
	planned->canSetTag = true;
	planned->utilityStmt = query->utilityStmt;
	planned->stmt_location = raw->stmt_location;
	planned->stmt_len = raw->stmt_len;
	ProcessUtility(planned, text, false, PROCESS_UTILITY_QUERY, NULL, NULL, None_Receiver, NULL);
	if (ActiveSnapshotSet())
		PopActiveSnapshot();
}

/*
 * Gives rows that were there before the statement the values that they have on the node that
 * made the change, in columns that it has added.
 */
static void
fill_columns(Datum filled)
{
	Oid			types[1] = {JSONBOID};
	Datum		values[1] = {filled};
	int			count;

	PushActiveSnapshot(GetTransactionSnapshot());
	SPI_connect();
	if (SPI_execute_with_args("SELECT a.attrelid, x.\"column\", x.value"
							  " FROM pg_catalog.jsonb_to_recordset($1)"
							  " x (\"table\" text, \"column\" text, value text)"
							  " JOIN pg_catalog.pg_attribute a ON a.attrelid"
							  " OPERATOR(pg_catalog.=) pg_catalog.to_regclass(x.\"table\")"
							  " AND a.attname OPERATOR(pg_catalog.=) x.\"column\"::pg_catalog.name"
							  " AND a.atthasmissing",
							  1, types, values, NULL, false, 0) < 0)
		elog(ERROR, "SPI failed");
	count = (int) SPI_processed;
	for (int i = 0; i < count; i++)
	{
		Oid			relid = strtoul(repl_ml_spi_text(i, 0), NULL, 10);

		if (repl_ml_guard_is_replicated(repl_ml_table_root(relid)))
			SetAttrMissing(relid, repl_ml_spi_text(i, 1), repl_ml_spi_text(i, 2));
	}
	SPI_finish();
	PopActiveSnapshot();
	CommandCounterIncrement();
}

/*
 * Called by change.c when a row of the group's list of tables has been applied: a table that a
 * change in the same transaction has made is replicated from here on, so that its rows, which
 * follow, find it so.
 */
void
repl_ml_schema_change_take_in(const char *schema_name, const char *table_name)
{
	Oid			types[2] = {TEXTOID, TEXTOID};
	Datum		values[2] = {CStringGetTextDatum(schema_name), CStringGetTextDatum(table_name)};

	if (!TransactionIdIsValid(last_xid) || last_xid != GetTopTransactionIdIfAny())
		return;
	repl_ml_targets_close();
	repl_ml_column_follow(last_number);
	PG_TRY();
	{
		repl_ml_spi_execute("SELECT repl_ml.take_in_listed($1::pg_catalog.name,"
							" $2::pg_catalog.name)", 2, types, values, NULL);
	}
	PG_FINALLY();
	{
		repl_ml_column_follow(0);
	}
	PG_END_TRY();
	CommandCounterIncrement();
}

/*
 * Called by dispatch.c with a message of the peer's, outside its transactions: returns the
 * number of the change that the peer has run by then; 0 if it says nothing of the kind.
 */
int64
repl_ml_schema_change_read(const pg_uuid_t *group, const char *message)
{
	char	   *head = message_head(group);

	if (strncmp(message, head, strlen(head)) != 0)
		return 0;
	return Max(strtoll(message + strlen(head), NULL, 10), 0);
}

/*
 * Says whether a change has been run here, or is parked so that nothing is to wait for it.
 * Called by the apply worker, outside transactions.
 */
bool
repl_ml_schema_change_is_settled(int64 number)
{
	Oid			types[1] = {INT8OID};
	Datum		values[1] = {Int64GetDatum(number)};
	bool		settled;

	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	settled = is_here(number) ||
		repl_ml_spi_execute("SELECT FROM repl_ml.parked_change p"
							" WHERE p.schema_name OPERATOR(pg_catalog.=) 'repl_ml'"
							" AND p.table_name OPERATOR(pg_catalog.=) 'schema_change'"
							" AND NOT p.put_aside"
							" AND (p.change OPERATOR(pg_catalog.->>) 'number')::bigint"
							" OPERATOR(pg_catalog.=) $1", 1, types, values, NULL) > 0;
	CommitTransactionCommand();
	return settled;
}

/*
 * Says whether changes of the schema are parked or put aside here: then a peer may have run
 * what this node has not.  In a transaction.
 */
bool
repl_ml_schema_change_any_parked(void)
{
	return repl_ml_spi_execute("SELECT FROM repl_ml.parked_change p"
							   " WHERE p.schema_name OPERATOR(pg_catalog.=) 'repl_ml'"
							   " AND p.table_name OPERATOR(pg_catalog.=) 'schema_change' LIMIT 1",
							   0, NULL, NULL, NULL) > 0;
}

/* Says whether the parked change with this id is part of a transaction that changes the schema. */
bool
repl_ml_schema_change_is_in(int64 id)
{
	Oid			types[1] = {INT8OID};
	Datum		values[1] = {Int64GetDatum(id)};

	return repl_ml_spi_execute("SELECT FROM repl_ml.parked_change p"
							   " JOIN repl_ml.parked_change f USING (origin_node, origin_lsn)"
							   " WHERE f.id OPERATOR(pg_catalog.=) $1"
							   " AND p.schema_name OPERATOR(pg_catalog.=) 'repl_ml'"
							   " AND p.table_name OPERATOR(pg_catalog.=) 'schema_change' LIMIT 1",
							   1, types, values, NULL) > 0;
}

/* Says whether the table of a peer's is the one that lists changes of the schema. */
bool
repl_ml_schema_change_is_of(const ReplMlRemoteTable *table)
{
	return strcmp(table->remote.nspname, REPL_ML_SCHEMA) == 0 &&
		strcmp(table->remote.relname, "schema_change") == 0;
}
