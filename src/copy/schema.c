/*
 * schema.c
 *		Table definitions from a peer: pg_dump's, run here in a transaction.
 *
 * pg_dump is started without a shell and gets the password through its
 * environment, so that neither a process list nor a log shows it.  What it
 * prints is one script of SQL statements, executed in this process as one
 * transaction: all objects come, or none.  Types, functions and the like that
 * are here already are left as they are.
 *
 * Not which statements of the script may run (definitions.c).  Locks: those of
 * the objects that are created, until the transaction ends; none while pg_dump
 * runs.
 */
#include "postgres.h"

#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include "access/xact.h"
#include "catalog/catalog.h"
#include "catalog/namespace.h"
#include "catalog/pg_namespace.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "lib/stringinfo.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "parser/parser.h"
#include "port.h"
#include "storage/latch.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/resowner.h"
#include "utils/wait_event.h"

#include "compat.h"
#include "copy/copy.h"
#include "server/server.h"
#include "wire/wire.h"

#define DUMP_LIMIT		(256 * 1024 * 1024) /* of a script of definitions */

/* A running pg_dump. */
typedef struct Dump
{
	pid_t		pid;
	int			out;
	int			err;
} Dump;

static int64 ask_number(const char *dsn);
static void begin_at(int64 number);
static void copy_tables(WalReceiverConn *conn, const char *dsn, List *schemas, List *tables,
						bool joining);
static List *find_existing(WalReceiverConn *conn, List *tables);
static List *load_partitions(WalReceiverConn *conn, const char *table, List **schemas);
static void create_schemas(WalReceiverConn *conn, List *schemas);
static char *dump_schema(const char *dsn, List *tables);
static char **build_arguments(const char *conninfo, List *tables);
static void start_dump(Dump *dump, char **arguments, const char *password);
static char *read_script(Dump *dump);
static void run_script(char *script, List *only);
static void run_statement(const char *sql, NodeTag kind);

/*
 * Creates all that the peer has, for enrol.c, in a database that joins and has
 * no table of its own: types, functions and views come with the tables.
 */
void
repl_ml_schema_copy_all(const char *dsn)
{
	char	   *script = NULL;
	int64		before = -1;
	int64		after = ask_number(dsn);

	/* which changes are in the script is known if there were none meanwhile */
	while (before != after)
	{
		CHECK_FOR_INTERRUPTS();
		before = after;
		script = dump_schema(dsn, NIL);
		after = ask_number(dsn);
	}
	run_script(script, NIL);
	begin_at(after);
}

/*
 * Called by enrol.c in a database that joins, before it is copied: notes the last change of
 * the schema that its donor has, as what is made here has it, too; once.
 */
void
repl_ml_schema_begin(const char *dsn)
{
	MemoryContext context = CurrentMemoryContext;
	bool		begun;
	int64		own;

	repl_ml_begin();
	begun = repl_ml_query_int("SELECT 1 FROM repl_ml.local_node l WHERE l.schema_base"
							  " OPERATOR(pg_catalog.>) 0") != 0;
	/* one that was a member has run what it has kept */
	own = repl_ml_query_int("SELECT pg_catalog.min(c.number) FROM repl_ml.schema_change c");
	repl_ml_commit();
	MemoryContextSwitchTo(context);
	if (!begun)
		begin_at(own > 0 ? own - 1 : ask_number(dsn));
	MemoryContextSwitchTo(context);
}

/* Returns the number of the last change of the schema on the server "dsn" leads to. */
static int64
ask_number(const char *dsn)
{
	static const Oid types[1] = {INT8OID};
	WalReceiverConn *conn = repl_ml_stream_connect(dsn, "schema");
	volatile int64 number = 0;

	PG_TRY();
	{
		ReplMlResult *result = repl_ml_stream_query(conn, "SELECT repl_ml.schema_number()", 1,
													types);

		if (repl_ml_stream_next(result))
		{
			slot_getallattrs(result->slot);
			number = DatumGetInt64(result->slot->tts_values[0]);
		}
		repl_ml_stream_free(result);
	}
	PG_FINALLY();
	{
		repl_ml_stream_disconnect(conn);
	}
	PG_END_TRY();
	return number;
}

/* Notes that changes of the schema up to this number are in this database. */
static void
begin_at(int64 number)
{
	MemoryContext context = CurrentMemoryContext;

	repl_ml_begin();
	if (SPI_execute(psprintf("UPDATE repl_ml.local_node SET schema_base = " INT64_FORMAT, number),
					false, 0) < 0)
		elog(ERROR, "SPI failed");
	repl_ml_commit();
	MemoryContextSwitchTo(context);
}

/*
 * Creates the tables (quoted, qualified names; of these schemas), for enrol.c,
 * from the definitions on the server "dsn" leads to: just the tables, their
 * partitions and the schemas of both, in one transaction.  What the peer does
 * not have is left out.  A member runs nothing else that the peer may have put
 * into them; a joining node trusts its donor.
 */
void
repl_ml_schema_copy(const char *dsn, List *schemas, List *tables)
{
	MemoryContext context = CurrentMemoryContext;
	WalReceiverConn *conn;
	bool		joining;

	repl_ml_begin();
	joining = repl_ml_identity_require()->joining;
	repl_ml_commit();
	MemoryContextSwitchTo(context);

	conn = repl_ml_stream_connect(dsn, "schema");
	PG_TRY();
	{
		copy_tables(conn, dsn, schemas, tables, joining);
	}
	PG_FINALLY();
	{
		repl_ml_stream_disconnect(conn);
	}
	PG_END_TRY();
}

/* Creates the tables, with the connection at hand. */
static void
copy_tables(WalReceiverConn *conn, const char *dsn, List *schemas, List *tables, bool joining)
{
	List	   *names = NIL;
	List	   *only = NIL;
	char	   *script;
	ListCell   *lc;

	tables = find_existing(conn, tables);
	if (tables == NIL)
		return;
	foreach(lc, tables)
		names = list_concat(names, load_partitions(conn, lfirst(lc), &schemas));
	names = list_concat(names, tables);
	script = dump_schema(dsn, names);
	create_schemas(conn, schemas);
	foreach(lc, names)
		only = lappend(only, makeString(lfirst(lc)));
	run_script(script, joining ? NIL : only);
}

/*
 * Returns those of the names that mean a table on the peer: it may be behind
 * with the group's list itself.
 */
static List *
find_existing(WalReceiverConn *conn, List *tables)
{
	static const Oid types[1] = {BOOLOID};
	List	   *existing = NIL;
	ListCell   *lc;

	foreach(lc, tables)
	{
		ReplMlResult *result = repl_ml_stream_query(conn,
													psprintf("SELECT pg_catalog.to_regclass(%s) IS"
															 " NOT NULL",
															 quote_literal_cstr(lfirst(lc))), 1,
													types);

		if (repl_ml_stream_next(result))
		{
			slot_getallattrs(result->slot);
			if (DatumGetBool(result->slot->tts_values[0]))
				existing = lappend(existing, lfirst(lc));
		}
		repl_ml_stream_free(result);
	}
	return existing;
}

/*
 * Returns the names of a table's partitions on the peer; adds their schemas to
 * the list.
 */
static List *
load_partitions(WalReceiverConn *conn, const char *table, List **schemas)
{
	static const Oid types[2] = {TEXTOID, TEXTOID};
	char	   *root = quote_literal_cstr(table);
	List	   *names = NIL;
	ReplMlResult *result = repl_ml_stream_query(conn,
												psprintf("SELECT n.nspname::pg_catalog.text,"
														 " c.relname::pg_catalog.text"
														 " FROM pg_catalog.pg_partition_tree("
														 "pg_catalog.to_regclass(%s)) t"
														 " JOIN pg_catalog.pg_class c"
														 " ON c.oid OPERATOR(pg_catalog.=) t.relid"
														 " JOIN pg_catalog.pg_namespace n"
														 " ON n.oid OPERATOR(pg_catalog.=)"
														 " c.relnamespace"
														 " WHERE t.level OPERATOR(pg_catalog.>) 0",
														 root), 2, types);

	while (repl_ml_stream_next(result))
	{
		char	   *schema;
		char	   *name;

		slot_getallattrs(result->slot);
		schema = TextDatumGetCString(result->slot->tts_values[0]);
		name = TextDatumGetCString(result->slot->tts_values[1]);
		names = lappend(names, quote_qualified_identifier(schema, name));
		*schemas = list_append_unique(*schemas, makeString(schema));
	}
	repl_ml_stream_free(result);
	return names;
}

/*
 * Returns the role here that has the name of a schema's owner on the peer;
 * InvalidOid where the peer has no such schema.
 */
static Oid
find_schema_owner(WalReceiverConn *conn, const char *schema)
{
	static const Oid types[1] = {TEXTOID};
	ReplMlResult *result = repl_ml_stream_query(conn,
												psprintf("SELECT pg_catalog.pg_get_userbyid("
														 "nspowner)::pg_catalog.text"
														 " FROM pg_catalog.pg_namespace"
														 " WHERE nspname"
														 " OPERATOR(pg_catalog.=) %s",
														 quote_literal_cstr(schema)), 1,
												types);
	char	   *name = NULL;
	Oid			owner = InvalidOid;

	if (repl_ml_stream_next(result))
	{
		slot_getallattrs(result->slot);
		name = TextDatumGetCString(result->slot->tts_values[0]);
	}
	repl_ml_stream_free(result);
	if (name == NULL)
		return InvalidOid;
	owner = get_role_oid(name, true);
	if (!OidIsValid(owner))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("role \"%s\" does not exist on this server", name),
				 errdetail("Schema \"%s\" of the group belongs to it.", schema),
				 errhint("Run CREATE ROLE %s.", quote_identifier(name))));
	return owner;
}

/*
 * Creates the schemas that are not here, under their owners on the peer; not
 * by a statement, which what the peer says could become a part of.
 */
static void
create_schemas(WalReceiverConn *conn, List *schemas)
{
	ListCell   *lc;

	foreach(lc, schemas)
	{
		char	   *name = strVal(lfirst(lc));
		Oid			owner;

		repl_ml_begin();
		if (!OidIsValid(get_namespace_oid(name, true)))
		{
			if (IsReservedName(name))
				ereport(ERROR,
						(errcode(ERRCODE_RESERVED_NAME),
						 errmsg("unacceptable schema name \"%s\"", name),
						 errdetail("The prefix \"pg_\" is reserved for system schemas."),
						 errhint("Rename the schema on the other nodes.")));
			owner = find_schema_owner(conn, name);
			if (OidIsValid(owner))
				(void) NamespaceCreate(name, owner, false);
		}
		repl_ml_commit();
	}
}

/*
 * Says whether this database has no table of its own.  Between repl_ml_begin
 * and repl_ml_commit.
 */
bool
repl_ml_schema_is_empty(void)
{
	return repl_ml_query_int("SELECT 1 FROM pg_catalog.pg_class c"
							 " WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f', 'S')"
							 " AND c.relnamespace OPERATOR(pg_catalog.<>) ALL (ARRAY['pg_catalog',"
							 " 'information_schema', 'repl_ml']::pg_catalog.regnamespace[])"
							 " AND c.relnamespace::pg_catalog.regnamespace::pg_catalog.text !~"
							 " '^pg_(toast|temp)'"
							 " AND NOT EXISTS (SELECT FROM pg_catalog.pg_depend d"
							 " WHERE d.classid OPERATOR(pg_catalog.=)"
							 " 'pg_catalog.pg_class'::pg_catalog.regclass"
							 "                    AND d.objid OPERATOR(pg_catalog.=) c.oid"
							 " AND d.deptype OPERATOR(pg_catalog.=) 'e') LIMIT 1") == 0;
}

/*
 * Returns pg_dump's script of the tables, or of everything but ourselves if
 * there are none.
 */
static char *
dump_schema(const char *dsn, List *tables)
{
	char	   *password;
	char	   *conninfo = repl_ml_stream_conninfo(dsn, "schema", &password);
	Dump		process;

	start_dump(&process, build_arguments(conninfo, tables), password);
	return read_script(&process);
}

/*
 * Returns the arguments of pg_dump.  The password is none of them: every user
 * of the machine can read them.
 */
static char **
build_arguments(const char *conninfo, List *tables)
{
	char	  **arguments = palloc0((12 + 2 * list_length(tables)) * sizeof(char *));
	int			n = 0;
	char		path[MAXPGPATH];
	ListCell   *lc;

	strlcpy(path, my_exec_path, MAXPGPATH);
	get_parent_directory(path);
	arguments[n++] = psprintf("%s/pg_dump", path);
	arguments[n++] = psprintf("--dbname=%s", conninfo);
	arguments[n++] = "--schema-only";
	arguments[n++] = "--no-publications";
	arguments[n++] = "--no-subscriptions";
	arguments[n++] = "--no-tablespaces";
	arguments[n++] = "--no-password";
	arguments[n++] = psprintf("--encoding=%s", GetDatabaseEncodingName());
	if (tables == NIL)
		arguments[n++] = "--exclude-schema=repl_ml";
	foreach(lc, tables)
		arguments[n++] = psprintf("--table=%s", (char *) lfirst(lc));
	return arguments;
}

/* Starts pg_dump, without a shell, and opens pipes to what it prints. */
static void
start_dump(Dump *dump, char **arguments, const char *password)
{
	int			out[2];
	int			err[2];

	if (pipe(out) != 0 || pipe(err) != 0)
		ereport(ERROR,
				(errcode_for_file_access(),
				 errmsg("could not create a pipe: %m")));
	fflush(NULL);
	dump->pid = fork();
	if (dump->pid == 0)
	{
		sigset_t	none;

		/* only what is safe after fork: the next thing is another program */
		sigemptyset(&none);
		sigprocmask(SIG_SETMASK, &none, NULL);
		if (dup2(out[1], STDOUT_FILENO) < 0 || dup2(err[1], STDERR_FILENO) < 0)
			_exit(126);
		for (int fd = STDERR_FILENO + 1; fd < 1024; fd++)
			close(fd);
		if (password != NULL)
			setenv("PGPASSWORD", password, 1);
		execv(arguments[0], arguments);
		_exit(127);
	}
	close(out[1]);
	close(err[1]);
	dump->out = out[0];
	dump->err = err[0];
	if (dump->pid < 0)
	{
		close(out[0]);
		close(err[0]);
		ereport(ERROR,
				(errcode(ERRCODE_SYSTEM_ERROR),
				 errmsg("could not start \"%s\": %m", arguments[0])));
	}
}

/* Reads what is there; returns false at the end of the pipe. */
static bool
drain_pipe(int fd, StringInfo into, int limit)
{
	char		buffer[8192];
	ssize_t		got = read(fd, buffer, sizeof(buffer));

	if (got < 0 && (errno == EINTR || errno == EAGAIN))
		return true;
	if (got <= 0)
		return false;
	if (into->len + got <= limit)
		appendBinaryStringInfo(into, buffer, got);
	return true;
}

/*
 * Waits a while until the pipe has something, and says whether it has; ends
 * pg_dump when we are to end.
 */
static bool
wait_for_output(Dump *dump, int fd)
{
	int			events = WaitLatchOrSocket(MyLatch,
										   WL_SOCKET_READABLE | WL_LATCH_SET | WL_TIMEOUT |
										   WL_EXIT_ON_PM_DEATH,
										   fd, 1000, wait_event_compat("ReplMlSchemaDump"));

	if (events & WL_LATCH_SET)
		ResetLatch(MyLatch);
	if (QueryCancelPending || ProcDiePending)
		kill(dump->pid, SIGTERM);
	return (events & WL_SOCKET_READABLE) != 0;
}

/*
 * Returns what pg_dump has printed; raises an error with what it said if it
 * failed.
 */
static char *
read_script(Dump *dump)
{
	StringInfoData script;
	StringInfoData errors;
	int			status;

	initStringInfo(&script);
	initStringInfo(&errors);
	for (;;)
	{
		if (wait_for_output(dump, dump->out) && !drain_pipe(dump->out, &script, DUMP_LIMIT))
			break;
	}
	while (drain_pipe(dump->err, &errors, 4096))
		;
	close(dump->out);
	close(dump->err);
	while (waitpid(dump->pid, &status, 0) < 0 && errno == EINTR)
		;

	/* only now: no process and no pipe may be left behind */
	CHECK_FOR_INTERRUPTS();
	if (status != 0)
		ereport(ERROR,
				(errcode(ERRCODE_EXTERNAL_ROUTINE_EXCEPTION),
				 errmsg("could not read the table definitions of the peer"),
				 errdetail_internal("%s", errors.len > 0 ? pchomp(errors.data) :
									wait_result_to_str(status)),
				 errhint("The role of the connection string must be able to run pg_dump "
						 "--schema-only there: GRANT pg_read_all_data TO it.")));
	return script.data;
}

/* Blanks pg_dump's commands for psql, which are not for us. */
static void
blank_psql_commands(char *script)
{
	char	   *line = script;

	while (line != NULL && *line != '\0')
	{
		char	   *end = strchr(line, '\n');

		if (strncmp(line, "\\restrict ", 10) == 0 || strncmp(line, "\\unrestrict ", 12) == 0)
		{
			for (char *c = line; *c != '\0' && *c != '\n'; c++)
				*c = ' ';
		}
		line = end == NULL ? NULL : end + 1;
	}
}

/*
 * Runs the script as one transaction, statement by statement, so that an error
 * names the one it is about and not the whole script; its settings end with
 * it.  With "only" it may define nothing but these tables (strings: quoted,
 * qualified names).
 */
static void
run_script(char *script, List *only)
{
	int			level;
	ListCell   *lc;

	blank_psql_commands(script);
	repl_ml_begin();
	level = NewGUCNestLevel();
	(void) set_config_option("session_replication_role", "origin", PGC_SUSET, PGC_S_SESSION,
							 GUC_ACTION_SAVE, true, 0, false);
	(void) set_config_option("repl_ml.guard_off", "on", PGC_SUSET, PGC_S_SESSION, GUC_ACTION_SAVE,
							 true, 0, false);
	(void) set_config_option("client_min_messages", "error", PGC_SUSET, PGC_S_SESSION,
							 GUC_ACTION_SAVE, true, 0, false);
	(void) set_config_option("standard_conforming_strings", "on", PGC_SUSET, PGC_S_SESSION,
							 GUC_ACTION_SAVE, true, 0, false);
	if (only != NIL)
		repl_ml_definitions_check(script, only);
	foreach(lc, raw_parser(script, RAW_PARSE_DEFAULT))
	{
		RawStmt    *statement = lfirst_node(RawStmt, lc);
		const char *start = script + statement->stmt_location;

		CHECK_FOR_INTERRUPTS();
		run_statement(statement->stmt_len > 0 ? pnstrdup(start, statement->stmt_len) : start,
					  nodeTag(statement->stmt));
	}

	/*
	 * takes back the script's settings too, among them search_path and
	 * lock_timeout
	 */
	AtEOXact_GUC(false, level);
	repl_ml_definitions_check_code(only);
	repl_ml_commit();
}

/*
 * Says whether the statement makes something that may be here before the
 * tables are.
 */
static bool
makes_no_table(NodeTag kind)
{
	switch (kind)
	{
		case T_CreateSchemaStmt:
		case T_CreateFunctionStmt:
		case T_DefineStmt:
		case T_CompositeTypeStmt:
		case T_CreateEnumStmt:
		case T_CreateRangeStmt:
		case T_CreateDomainStmt:
		case T_CreateCastStmt:
		case T_CreateConversionStmt:
		case T_CreateOpClassStmt:
		case T_CreateOpFamilyStmt:
		case T_CreatePLangStmt:
		case T_CreateTransformStmt:
		case T_CreateFdwStmt:
		case T_CreateForeignServerStmt:
		case T_CreateUserMappingStmt:
		case T_CreateEventTrigStmt:
		case T_CreateAmStmt:
			return true;
		default:
			return false;
	}
}

/*
 * Runs one statement of a script; what it would make and is here already stays
 * as it is.
 */
static void
run_statement(const char *sql, NodeTag kind)
{
	MemoryContext context = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;

	if (!makes_no_table(kind))
	{
		if (SPI_execute(sql, false, 0) < 0)
			elog(ERROR, "SPI failed");
		return;
	}

	/* it may be here already */
	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(context);
	PG_TRY();
	{
		if (SPI_execute(sql, false, 0) < 0)
			elog(ERROR, "SPI failed");
		ReleaseCurrentSubTransaction();
	}
	PG_CATCH();
	{
		int			sqlstate = geterrcode();

		if (sqlstate != ERRCODE_DUPLICATE_OBJECT && sqlstate != ERRCODE_DUPLICATE_FUNCTION &&
			sqlstate != ERRCODE_DUPLICATE_SCHEMA)
			PG_RE_THROW();
		MemoryContextSwitchTo(context);
		FlushErrorState();
		RollbackAndReleaseCurrentSubTransaction();
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
	CurrentResourceOwner = owner;
}
