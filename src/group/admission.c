/*
 * admission.c
 *		Whether this database fits the group: the donor is asked before anything
 *		is written anywhere, so that a join that cannot end well does not begin.
 *
 * Called by join.c.  What changes after these checks makes the workers of the
 * joining node fail, with the error in repl_ml.stat_apply.  Not here: whether
 * the group lets this node in (repl_ml.admit_node on the donor).  Locks: ACCESS
 * SHARE on tables that are here already.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "mb/pg_wchar.h"
#include "utils/builtins.h"
#include "utils/snapmgr.h"

#include "compat.h"
#include "copy/copy.h"
#include "group/group.h"
#include "row/row.h"
#include "server/server.h"
#include "wire/wire.h"

/* A row of at most three texts. */
typedef struct Row
{
	char	   *fields[3];
} Row;

static void check_own_version(void);
static void check_encoding(WalReceiverConn *donor);
static void check_tables(WalReceiverConn *donor, bool copy_data, bool is_told);
static void check_roles(WalReceiverConn *donor, bool everything);
static void check_donor_readable(WalReceiverConn *donor);
static List *query_donor(WalReceiverConn *donor, int ncolumns, const char *sql);

/* The enrolled tables of the donor, as they are in its catalogs. */
#define ENROLLED_TABLES \
	" FROM repl_ml.replicated_table t" \
	" JOIN pg_catalog.pg_namespace n ON n.nspname OPERATOR(pg_catalog.=) t.schema_name" \
	" JOIN pg_catalog.pg_class c ON c.relnamespace OPERATOR(pg_catalog.=) n.oid" \
	" AND c.relname OPERATOR(pg_catalog.=) t.table_name" \
	" WHERE t.state OPERATOR(pg_catalog.=) 'enrolled'"

/*
 * Raises, in the join worker, an error that says what to do first, or returns.
 * "is_told" is whether it is known whose rows are to stay of those without a
 * clock.
 */
void
repl_ml_admission_check(WalReceiverConn *donor, bool copy_data, bool is_told)
{
	bool		everything;

	check_own_version();
	check_encoding(donor);
	repl_ml_begin();
	everything = repl_ml_schema_is_empty();
	repl_ml_commit();
	check_tables(donor, copy_data, is_told);
	check_roles(donor, everything);
	if (everything)
		check_donor_readable(donor);
}

/*
 * Refuses a database whose SQL objects are of another version than the
 * library.
 */
static void
check_own_version(void)
{
	repl_ml_begin();
	SPI_execute("SELECT extversion FROM pg_catalog.pg_extension"
				" WHERE extname OPERATOR(pg_catalog.=) 'repl_ml'", true, 1);
	if (strcmp(repl_ml_spi_text(0, 0), REPL_ML_VERSION) != 0)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("the extension repl_ml of this database is version %s, the library is %s",
						repl_ml_spi_text(0, 0), REPL_ML_VERSION),
				 errhint("Run ALTER EXTENSION repl_ml UPDATE.")));
	repl_ml_commit();
}

/*
 * Refuses another encoding than the group's: text that one database can hold
 * and another cannot would stop at the border, and which character is the
 * first to, nobody knows.
 */
static void
check_encoding(WalReceiverConn *donor)
{
	List	   *rows = query_donor(donor, 1,
								   "SELECT pg_catalog.getdatabaseencoding()::pg_catalog.text");
	char	   *theirs = rows == NIL ? "" : ((Row *) linitial(rows))->fields[0];

	if (strcmp(theirs, GetDatabaseEncodingName()) != 0)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("the encoding of this database is %s, that of the group is %s",
						GetDatabaseEncodingName(), theirs),
				 errdetail("A character that one of them does not have could not be replicated."),
				 errhint("Run CREATE DATABASE ... ENCODING %s TEMPLATE template0, and join with "
						 "that database.", quote_literal_cstr(theirs))));
}

/*
 * Refuses a table that is here already unless it can be enrolled, and is empty
 * if rows are to come.
 */
static void
check_existing_table(const Row *table, bool copy_data)
{
	char	   *name = quote_qualified_identifier(table->fields[0], table->fields[1]);
	Oid			types[1] = {TEXTOID};
	Datum		values[1] = {CStringGetTextDatum(name)};

	if (SPI_execute_with_args("SELECT o.message, o.hint"
							  " FROM repl_ml.enrol_obstacle(pg_catalog.to_regclass($1)) o"
							  " WHERE pg_catalog.to_regclass($1) IS NOT NULL", 1, types, values,
							  NULL, true, 1) == SPI_OK_SELECT &&
		SPI_processed > 0)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("%s", repl_ml_spi_text(0, 0)),
				 errdetail("The group replicates a table of that name."),
				 errhint("%s", repl_ml_spi_text(0, 1))));
	SPI_execute_with_args("SELECT pg_catalog.to_regclass($1)::pg_catalog.oid"
						  " WHERE pg_catalog.to_regclass($1) IS NOT NULL",
						  1, types, values, NULL, true, 1);
	if (copy_data && SPI_processed > 0 &&
		repl_ml_has_rows(strtoul(repl_ml_spi_text(0, 0), NULL, 10), AccessShareLock))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("table %s of the joining database is not empty", name),
				 errhint("Run TRUNCATE %s or drop it, and join again; or join with copy_data => "
						 "false if its rows are to be compared with the group's.", name)));
}

/*
 * Refuses rows that have no clock and are not the group's, unless it is told
 * what is to become of them: nobody knows which is the newer one.
 */
static void
check_unstamped_rows(WalReceiverConn *donor, List *tables)
{
	StringInfoData found;
	int64		total = 0;
	ListCell   *lc;

	initStringInfo(&found);
	repl_ml_begin();
	PushActiveSnapshot(GetTransactionSnapshot());
	foreach(lc, tables)
	{
		const Row  *table = lfirst(lc);
		char	   *name = quote_qualified_identifier(table->fields[0], table->fields[1]);
		int64		count = repl_ml_meet_count(donor, table->fields[0], table->fields[1]);

		if (count > 0)
			appendStringInfo(&found, "%s%s: " INT64_FORMAT, found.len > 0 ? ", " : "", name,
							 count);
		total += count;
	}
	PopActiveSnapshot();
	repl_ml_commit();
	if (total > 0)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg(INT64_FORMAT " rows of this database have no clock and are not what the "
						"group has", total),
				 errdetail_internal("%s.", found.data),
				 errhint("Join with keep => 'theirs' to have the group's rows instead of them, or "
						 "with keep => 'mine' to have them on all nodes.")));
}

/* Checks the tables that are here already and the group replicates. */
static void
check_tables(WalReceiverConn *donor, bool copy_data, bool is_told)
{
	ListCell   *lc;
	List	   *tables = query_donor(donor, 2,
									 "SELECT t.schema_name::pg_catalog.text,"
									 " t.table_name::pg_catalog.text" ENROLLED_TABLES);

	repl_ml_begin();
	foreach(lc, tables)
		check_existing_table(lfirst(lc), copy_data);
	repl_ml_commit();
	if (!copy_data && !is_told)
		check_unstamped_rows(donor, tables);
}

/*
 * Requires the owners and grantees here: of the tables, or of all the donor
 * has.
 */
static void
check_roles(WalReceiverConn *donor, bool everything)
{
	ListCell   *lc;
	List	   *roles;

	roles = query_donor(donor, 1,
						psprintf("SELECT pg_catalog.pg_get_userbyid(c.relowner)::pg_catalog.text"
								 ENROLLED_TABLES
								 " UNION SELECT r.rolname FROM pg_catalog.pg_shdepend d"
								 " JOIN pg_catalog.pg_roles r"
								 " ON r.oid OPERATOR(pg_catalog.=) d.refobjid"
								 " JOIN pg_catalog.pg_database b"
								 " ON b.oid OPERATOR(pg_catalog.=) d.dbid"
								 " AND b.datname OPERATOR(pg_catalog.=)"
								 " pg_catalog.current_database()"
								 " WHERE d.refclassid OPERATOR(pg_catalog.=)"
								 " 'pg_catalog.pg_authid'::pg_catalog.regclass"
								 " AND d.deptype IN ('o', 'a')"
								 " AND (%s OR (d.classid OPERATOR(pg_catalog.=)"
								 " 'pg_catalog.pg_class'::pg_catalog.regclass"
								 " AND d.objid IN (SELECT c.oid" ENROLLED_TABLES ")))",
								 everything ? "true" : "false"));
	repl_ml_begin();

	/* the definitions that are copied name them */
	foreach(lc, roles)
	{
		char	   *role = ((Row *) lfirst(lc))->fields[0];
		Oid			types[1] = {TEXTOID};
		Datum		values[1] = {CStringGetTextDatum(role)};

		SPI_execute_with_args("SELECT 1 FROM pg_catalog.pg_roles"
							  " WHERE rolname OPERATOR(pg_catalog.=) $1::pg_catalog.name",
							  1, types, values, NULL, true, 1);
		if (SPI_processed == 0)
			ereport(ERROR,
					(errcode(ERRCODE_UNDEFINED_OBJECT),
					 errmsg("role \"%s\" does not exist on this server", role),
					 errdetail("Tables of the group belong to it or are granted to it."),
					 errhint("Run CREATE ROLE %s, or copy all roles with pg_dumpall --roles-only.",
							 quote_identifier(role))));
	}
	repl_ml_commit();
}

/*
 * Requires that the role of the members' connection string may read every
 * table of the donor: pg_dump of everything locks each, which takes that
 * right.
 */
static void
check_donor_readable(WalReceiverConn *donor)
{
	List	   *tables = query_donor(donor, 2,
									 "SELECT c.oid::pg_catalog.regclass::pg_catalog.text,"
									 " CURRENT_USER::pg_catalog.text FROM pg_catalog.pg_class c"
									 " JOIN pg_catalog.pg_namespace n"
									 " ON n.oid OPERATOR(pg_catalog.=) c.relnamespace"
									 " WHERE c.relkind IN ('r', 'p')"
									 " AND c.relpersistence OPERATOR(pg_catalog.<>) 't'"
									 " AND n.nspname NOT IN ('pg_catalog', 'information_schema',"
									 " 'repl_ml')"
									 " AND NOT (pg_catalog.has_schema_privilege(n.oid, 'USAGE')"
									 " AND pg_catalog.has_table_privilege(c.oid, 'SELECT'))"
									 " LIMIT 1");
	Row		   *row = tables == NIL ? NULL : linitial(tables);

	if (row != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("role \"%s\", with which members connect to the donor, may not read table "
						"%s there", row->fields[1], row->fields[0]),
				 errdetail("The definitions of all its tables are copied with pg_dump."),
				 errhint("On that server run GRANT pg_read_all_data TO %s.",
						 quote_identifier(row->fields[1]))));
}

/*
 * Returns the rows of a query to the donor, in the caller's memory; none of
 * the values is null.
 */
static List *
query_donor(WalReceiverConn *donor, int ncolumns, const char *sql)
{
	static const Oid types[3] = {TEXTOID, TEXTOID, TEXTOID};
	MemoryContext context = CurrentMemoryContext;
	ReplMlResult *result = repl_ml_stream_query(donor, sql, ncolumns, types);
	List	   *rows = NIL;

	while (repl_ml_stream_next(result))
	{
		MemoryContext old = MemoryContextSwitchTo(context);
		Row		   *row = palloc0(sizeof(Row));

		slot_getallattrs(result->slot);
		for (int i = 0; i < ncolumns; i++)
			row->fields[i] = TextDatumGetCString(result->slot->tts_values[i]);
		rows = lappend(rows, row);
		MemoryContextSwitchTo(old);
	}
	repl_ml_stream_free(result);
	MemoryContextSwitchTo(context);
	return rows;
}
