/*
 * report.c
 *		repl_ml.verify_table and repl_ml.diff_rows: who may ask, and what he sees.
 *
 * A comparison reads our catalogs and asks members with the extension's
 * rights; the caller needs none but to be the table's owner or a member of
 * repl_ml_admin.  Keys and rows are shown to whoever may read all of the table.
 *
 * Not here: the comparison (compare.c, settle.c).  Locks: the table's, ACCESS
 * SHARE, and only while it is looked at.
 */
#include "postgres.h"

#include "access/table.h"
#include "access/xact.h"
#include "access/xlog.h"
#include "catalog/pg_authid.h"
#include "catalog/pg_inherits.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "storage/bufmgr.h"
#include "utils/acl.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/json.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rls.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "read/read.h"
#include "verify/verify.h"

#define ADMIN_ROLE			"repl_ml_admin"
#define ROWS_IN_CHUNK		32
#define LEAST_ROWS_ON_PAGE	20	/* for tables without statistics */
#define ROWS_AT_ONCE		50	/* whose details are asked for */
#define MAX_DIFFERENCES		10000	/* that verify_table counts */
#define REPORT_COLUMNS		14
#define ROW_COLUMNS			5

static void load_members(ReplMlComparison *comparison);

/* ---- rights ---- */

/* Raises an error unless the caller may compare the table. */
static void
require_right(Relation rel)
{
	Oid			admin = get_role_oid(ADMIN_ROLE, true);

	if (table_ownercheck_compat(RelationGetRelid(rel), GetUserId()) ||
		(OidIsValid(admin) && has_privs_of_role(GetUserId(), admin)))
		return;
	ereport(ERROR,
			(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
			 errmsg("permission denied to compare table \"%s\"", RelationGetRelationName(rel)),
			 errhint("Its owner and members of %s may: GRANT %s TO %s.", ADMIN_ROLE, ADMIN_ROLE,
					 quote_identifier(GetUserNameFromId(GetUserId(), false)))));
}

/* Says whether the caller may read all columns of all rows. */
static bool
may_read_all(Relation rel)
{
	Oid			relid = RelationGetRelid(rel);

	if (check_enable_rls(relid, GetUserId(), true) == RLS_ENABLED ||
		!schema_may_use_compat(RelationGetNamespace(rel), GetUserId()))
		return false;
	return pg_class_aclcheck(relid, GetUserId(), ACL_SELECT) == ACLCHECK_OK ||
		pg_attribute_aclcheck_all(relid, GetUserId(), ACL_SELECT, ACLMASK_ALL) == ACLCHECK_OK;
}

/*
 * Refuses transactions that have written a replicated table: their rows are
 * visible here, and nowhere else; and standbys, whose positions nobody knows.
 */
static void
require_nothing_written(void)
{
	if (RecoveryInProgress())
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("tables cannot be compared on a standby"),
				 errhint("Compare them on a member of the group.")));
	if (repl_ml_ticker_used())
		ereport(ERROR,
				(errcode(ERRCODE_ACTIVE_SQL_TRANSACTION),
				 errmsg("tables cannot be compared in a transaction that has written some"),
				 errhint("Run COMMIT first.")));
}

/* ---- beginning ---- */

/* Returns about how many rows a table that is locked has, its partitions' with them. */
static double
estimate_rows(Oid relid)
{
	List	   *all = find_all_inheritors(relid, AccessShareLock, NULL);
	double		rows = 0;
	ListCell   *lc;

	foreach(lc, all)
	{
		Relation	rel = table_open(lfirst_oid(lc), NoLock);

		if (RELKIND_HAS_TABLE_AM(rel->rd_rel->relkind))
			rows += Max(rel->rd_rel->reltuples,
						(double) RelationGetNumberOfBlocks(rel) * LEAST_ROWS_ON_PAGE);
		/* the root's lock is the caller's */
		table_close(rel, lfirst_oid(lc) == relid ? NoLock : AccessShareLock);
	}
	return rows;
}

/* Returns into how many chunks so many rows go: a power of two. */
static int
count_chunks(double rows)
{
	int			chunks = 1;

	while (chunks < REPL_ML_MAX_CHUNKS && (double) chunks * ROWS_IN_CHUNK < rows)
		chunks *= 2;
	return chunks;
}

/* Remembers the table's columns as they are hashed, and the places of its key's. */
static void
note_columns(Relation rel, ReplMlTable *table, ReplMlCaller *caller)
{
	ReplMlImage *image = repl_ml_image_open(rel);

	(void) repl_ml_image_key_order(table, RelationGetDescr(rel), caller->key_order);
	caller->column_count = repl_ml_image_columns(image);
	caller->columns = palloc(Max(caller->column_count, 1) * sizeof(char *));
	for (int i = 0; i < caller->column_count; i++)
		caller->columns[i] = pstrdup(repl_ml_image_column_name(image, i));
	repl_ml_image_close(image);
}

/* Returns a timeout, an interval, in ms; raises an error if it is negative. */
int64
repl_ml_report_patience(Datum timeout)
{
	return (repl_ml_deadline(timeout) - GetCurrentTimestamp()) / 1000;
}

/* Prepares a comparison of a table for the caller, if he may. */
ReplMlCaller
repl_ml_report_begin(Oid relid, ReplMlComparison *comparison, int max_rows, int64 patience_ms)
{
	ReplMlCaller caller = {.relid = repl_ml_table_root(relid)};
	Relation	rel;
	ReplMlTable *table;

	repl_ml_shmem_require();
	rel = try_table_open(caller.relid, AccessShareLock);
	if (rel == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_TABLE),
				 errmsg("table with OID %u does not exist", caller.relid),
				 errhint("It may have just been dropped.")));
	require_right(rel);
	require_nothing_written();
	(void) repl_ml_identity_require();
	caller.may_read = may_read_all(rel);
	table = repl_ml_table_get(rel);
	note_columns(rel, table, &caller);
	*comparison = (ReplMlComparison) {
		.relid = caller.relid,.key_natts = table->key_natts,.max_rows = max_rows,
		.patience_ms = patience_ms,
		.inquiry = {.pace = {.rate = -1},.schema_name = pstrdup(NameStr(table->schema_name)),
			.table_name = pstrdup(NameStr(table->table_name)),
			.signature = repl_ml_image_signature(rel),
		.chunks = count_chunks(estimate_rows(caller.relid))}
	};
	table_close(rel, AccessShareLock);
	return caller;
}

/* Fills in the members, this node first; called with the extension's rights. */
static void
load_members(ReplMlComparison *comparison)
{
	static SPIPlanPtr members = NULL;
	static SPIPlanPtr stable = NULL;
	MemoryContext context = CurrentMemoryContext;
	MemoryContext old;

	PushActiveSnapshot(GetTransactionSnapshot());
	SPI_connect();
	repl_ml_spi_plan(&members, "SELECT m.node_id, m.node_name, m.dsn, m.state,"
					 " m.node_id OPERATOR(pg_catalog.=) l.node_id"
					 " FROM repl_ml.member m, repl_ml.local_node l"
					 " WHERE m.state OPERATOR(pg_catalog.<>) 'dropped' ORDER BY 5 DESC, 1",
					 0, NULL);
	if (SPI_execute_plan(members, NULL, NULL, true, 0) != SPI_OK_SELECT)
		elog(ERROR, "SPI failed");
	old = MemoryContextSwitchTo(context);
	comparison->count = SPI_processed;
	comparison->members = palloc0(Max(comparison->count, 1) * sizeof(ReplMlCompared));
	for (int i = 0; i < comparison->count; i++)
	{
		ReplMlCompared *member = &comparison->members[i];

		member->node_id = atoi(repl_ml_spi_text(i, 0));
		member->name = pstrdup(repl_ml_spi_text(i, 1));
		member->dsn = i == 0 ? NULL : pstrdup(repl_ml_spi_text(i, 2));
		member->joins = i > 0 && strcmp(repl_ml_spi_text(i, 3), "ready") != 0;
		if (member->joins)
			member->problem = "It is still joining the group.";
	}
	MemoryContextSwitchTo(old);
	/* before anybody looks at the table: so all see what it says */
	repl_ml_spi_plan(&stable, "SELECT repl_ml.stable_vector()", 0, NULL);
	if (SPI_execute_plan(stable, NULL, NULL, true, 0) != SPI_OK_SELECT)
		elog(ERROR, "SPI failed");
	comparison->stable = MemoryContextStrdup(context, repl_ml_spi_text(0, 0));
	SPI_finish();
	PopActiveSnapshot();
}

/*
 * Goes on with the extension's rights, until the caller restores what is saved,
 * or an abort does.
 */
void
repl_ml_report_become_extension(ReplMlUser *saved)
{
	GetUserIdAndSecContext(&saved->user, &saved->context);
	SetUserIdAndSecContext(BOOTSTRAP_SUPERUSERID, saved->context | SECURITY_LOCAL_USERID_CHANGE);
}

/*
 * Compares the table with the extension's rights, which an error ends, too.
 * Whatever happens, no progress is shown after it.
 */
void
repl_ml_report_compare(ReplMlComparison *comparison)
{
	ReplMlUser	saved;

	repl_ml_report_become_extension(&saved);
	PG_TRY();
	{
		load_members(comparison);
		repl_ml_compare(comparison);
	}
	PG_FINALLY();
	{
		/* the last may fail, as where a disk is full */
		repl_ml_verify_end();
		repl_ml_places_forget();
	}
	PG_END_TRY();
	SetUserIdAndSecContext(saved.user, saved.context);
}

/* ---- verify_table ---- */

/* Returns the names of the members that are compared, or of the others. */
static Datum
member_names(const ReplMlComparison *comparison, bool compared)
{
	Datum	   *names = palloc(Max(comparison->count, 1) * sizeof(Datum));
	int			count = 0;

	for (int i = 0; i < comparison->count; i++)
	{
		Name		name = palloc0(NAMEDATALEN);

		namestrcpy(name, comparison->members[i].name);
		if (repl_ml_compare_is_compared(comparison, i) == compared)
			names[count++] = NameGetDatum(name);
	}
	return PointerGetDatum(construct_array(names, count, NAMEOID, NAMEDATALEN, false,
										   TYPALIGN_CHAR));
}

/* Returns how many differences are certain. */
static int
count_differences(const ReplMlComparison *comparison)
{
	return list_length(comparison->suspects) - comparison->on_its_way;
}

/* Says whether the time was over before all was known. */
static bool
has_run_out_of_time(const ReplMlComparison *comparison)
{
	return comparison->on_its_way > 0 || comparison->left_chunks > 0;
}

/* Says whether some member is not compared. */
static bool
is_incomplete(const ReplMlComparison *comparison)
{
	bool		incomplete = has_run_out_of_time(comparison);

	for (int i = 0; i < comparison->count; i++)
		incomplete |= !repl_ml_compare_is_compared(comparison, i);
	return incomplete;
}

/* Returns what a comparison has come to, in a word. */
static const char *
status_name(const ReplMlComparison *comparison)
{
	return count_differences(comparison) > 0 ? "differs" :
		is_incomplete(comparison) ? "incomplete" : "consistent";
}

/* Appends a part of a sentence, after a semicolon if it is not the first. */
static StringInfo
next_part(StringInfo text)
{
	if (text->len > 0)
		appendStringInfoString(text, "; ");
	return text;
}

/* Appends which members had not caught up when the time was over. */
static void
append_laggards(const ReplMlComparison *comparison, StringInfo text)
{
	for (int i = 0; i < comparison->count && has_run_out_of_time(comparison); i++)
	{
		if (comparison->members[i].lags && repl_ml_compare_is_compared(comparison, i))
			appendStringInfo(next_part(text), "node \"%s\" has not caught up with the others",
							 comparison->members[i].name);
	}
}

/* Appends how many rows have each verdict. */
static void
append_verdicts(const ReplMlComparison *comparison, StringInfo text)
{
	static const char *const verdicts[] = {"corrupt", "missing", "extra", "concurrent", "lagging",
	"parked"};
	ListCell   *lc;

	for (int i = 0; i < lengthof(verdicts); i++)
	{
		int			count = 0;

		foreach(lc, comparison->suspects)
		{
			ReplMlSuspect *suspect = lfirst(lc);

			count += !suspect->on_its_way &&
				strcmp(repl_ml_settle_verdict(comparison, suspect), verdicts[i]) == 0;
		}
		if (count > 0)
			appendStringInfo(next_part(text), "%s: %d", verdicts[i], count);
	}
	if (comparison->has_more)
		appendStringInfoString(next_part(text), "there are more than these");
	if (comparison->on_its_way > 0)
		appendStringInfo(next_part(text), "still on their way: %d", comparison->on_its_way);
	if (comparison->left_chunks > 0)
		appendStringInfo(next_part(text), "chunks not looked into in time: %d",
						 comparison->left_chunks);
	append_laggards(comparison, text);
}

/* Returns what is to be said of a comparison, NULL if nothing is. */
static char *
make_detail(const ReplMlComparison *comparison)
{
	StringInfoData text;

	initStringInfo(&text);
	append_verdicts(comparison, &text);
	for (int i = 0; i < comparison->count; i++)
	{
		if (!repl_ml_compare_is_compared(comparison, i))
			appendStringInfo(next_part(&text), "node \"%s\" is not compared: %s",
							 comparison->members[i].name, comparison->members[i].problem);
	}
	if (comparison->became_full != NULL)
		appendStringInfo(next_part(&text), "all rows were read: %s", comparison->became_full);
	return text.len > 0 ? text.data : NULL;
}

/* Returns what to do about it, NULL if nothing. */
static char *
make_hint(const ReplMlComparison *comparison)
{
	char	   *name = quote_qualified_identifier(comparison->inquiry.schema_name,
												  comparison->inquiry.table_name);

	if (count_differences(comparison) > 0)
		return psprintf("Run SELECT * FROM repl_ml.diff_rows(%s).", quote_literal_cstr(name));
	for (int i = 0; i < comparison->count; i++)
	{
		if (comparison->members[i].hint != NULL)
			return comparison->members[i].hint;
	}
	if (has_run_out_of_time(comparison))
		return "Members get changes later than they are written; SELECT * FROM repl_ml.stat_apply "
			"on each node says how late.  Run it again when less is written, or with a longer "
			"timeout.";
	return is_incomplete(comparison) ?
		"See SELECT * FROM repl_ml.health, and run it again when all members are up and have "
		"caught up." : NULL;
}

/* Returns a text, null where there is none. */
static Datum
text_or_null(const char *text, bool *isnull)
{
	*isnull = text == NULL;
	return text == NULL ? (Datum) 0 : CStringGetTextDatum(text);
}

/*
 * Keeps what came of it for the view consistency_checks, where the transaction
 * may write: of each table the last ones, and the last one without a
 * difference.
 */
static void
record(const ReplMlComparison *comparison, const Datum *values, const bool *nulls)
{
	Oid			types[REPORT_COLUMNS + 1] = {TEXTOID, TEXTOID, NAMEARRAYOID, NAMEARRAYOID, INT8OID,
		INT4OID, INT8OID, INT8OID, TIMESTAMPTZOID, INTERVALOID, TEXTOID, TEXTOID, TEXTOID, INT8OID,
	TEXTOID};
	Datum		arguments[REPORT_COLUMNS + 1];
	char		flags[REPORT_COLUMNS + 2];
	ReplMlUser	saved;
	static SPIPlanPtr insert = NULL;
	static SPIPlanPtr forget = NULL;

	if (XactReadOnly)
		return;
	/* names in place of the OID: it is kept for longer than that */
	memcpy(arguments, values, REPORT_COLUMNS * sizeof(Datum));
	arguments[0] = CStringGetTextDatum(comparison->inquiry.schema_name);
	arguments[REPORT_COLUMNS] = CStringGetTextDatum(comparison->inquiry.table_name);
	for (int i = 0; i < REPORT_COLUMNS; i++)
		flags[i] = nulls[i] ? 'n' : ' ';
	flags[REPORT_COLUMNS] = ' ';
	flags[REPORT_COLUMNS + 1] = '\0';
	repl_ml_report_become_extension(&saved);
	PushActiveSnapshot(GetTransactionSnapshot());
	SPI_connect();
	repl_ml_spi_plan(&insert, "INSERT INTO repl_ml.consistency_check (schema_name, status, members,"
					 " unreachable, rows, chunks, differing_rows, rechecked_rows, started_at,"
					 " duration, detail, hint, mode, hashed_rows, table_name)"
					 " VALUES ($1::pg_catalog.name, $2, $3,"
					 " $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15::pg_catalog.name)",
					 REPORT_COLUMNS + 1, types);
	repl_ml_spi_plan(&forget,
					 "SELECT repl_ml.forget_checks($1::pg_catalog.name, $15::pg_catalog.name)",
					 REPORT_COLUMNS + 1, types);
	if (SPI_execute_plan(insert, arguments, flags, false, 0) != SPI_OK_INSERT ||
		SPI_execute_plan(forget, arguments, flags, false, 0) != SPI_OK_SELECT)
		elog(ERROR, "SPI failed");
	SPI_finish();
	PopActiveSnapshot();
	SetUserIdAndSecContext(saved.user, saved.context);
}

/* Finds, for what is said of a comparison, the differences that a parked change explains. */
static void
find_parked(ReplMlComparison *comparison)
{
	MemoryContext old = MemoryContextSwitchTo(comparison->batch);
	ReplMlUser	saved;

	if (count_differences(comparison) > 0)
	{
		repl_ml_report_become_extension(&saved);
		repl_ml_settle_parked(comparison, comparison->suspects);
		SetUserIdAndSecContext(saved.user, saved.context);
	}
	MemoryContextSwitchTo(old);
	MemoryContextReset(comparison->batch);
}

/*
 * Compares a table that a comparison has been prepared for, keeps what came of
 * it, and sets the columns of verify_table's result.
 */
static void
compare_and_record(ReplMlComparison *comparison, Oid relid, Datum *values, bool *nulls)
{
	TimestampTz start = GetCurrentTimestamp();
	Interval   *duration = palloc0(sizeof(Interval));

	repl_ml_report_compare(comparison);
	find_parked(comparison);
	duration->time = GetCurrentTimestamp() - start;
	values[0] = ObjectIdGetDatum(relid);
	values[1] = CStringGetTextDatum(status_name(comparison));
	values[2] = member_names(comparison, true);
	values[3] = member_names(comparison, false);
	values[4] = Int64GetDatum(comparison->members[0].rows);
	values[5] = Int32GetDatum(comparison->inquiry.chunks);
	values[6] = Int64GetDatum(count_differences(comparison));
	values[7] = Int64GetDatum(comparison->rechecked);
	values[8] = TimestampTzGetDatum(start);
	values[9] = IntervalPGetDatum(duration);
	values[10] = text_or_null(make_detail(comparison), &nulls[10]);
	values[11] = text_or_null(make_hint(comparison), &nulls[11]);
	values[12] = CStringGetTextDatum(comparison->incremental && comparison->became_full == NULL ?
									 "incremental" : "full");
	values[13] = Int64GetDatum(comparison->hashed_rows);
	record(comparison, values, nulls);
}

/*
 * Compares a table for the verifier, at this pace, and keeps what came of it.
 * No snapshot is active, so that none is held while others work.
 */
ReplMlVerdict
repl_ml_report_verdict(Oid relid, int64 patience_ms, ReplMlPace of_scans, bool incremental)
{
	ReplMlComparison comparison;
	Datum		values[REPORT_COLUMNS];
	bool		nulls[REPORT_COLUMNS] = {false};

	PushActiveSnapshot(GetTransactionSnapshot());
	(void) repl_ml_report_begin(relid, &comparison, MAX_DIFFERENCES, patience_ms);
	PopActiveSnapshot();
	comparison.inquiry.pace = of_scans;
	comparison.incremental = incremental;
	compare_and_record(&comparison, relid, values, nulls);
	return (ReplMlVerdict) {.status = status_name(&comparison),
		.differing_rows = count_differences(&comparison),
		.detail = make_detail(&comparison),
	.full = !incremental || comparison.became_full != NULL};
}

PG_FUNCTION_INFO_V1(repl_ml_verify_table);

/*
 * repl_ml.verify_table(relation, timeout, incremental): compares a table on all
 * members and says in one row what came of it.
 */
Datum
repl_ml_verify_table(PG_FUNCTION_ARGS)
{
	ReplMlComparison comparison;
	ReplMlCaller caller;
	TupleDesc	desc;
	Datum		values[REPORT_COLUMNS];
	bool		nulls[REPORT_COLUMNS] = {false};

	repl_ml_refuse_nulls(fcinfo);
	caller = repl_ml_report_begin(PG_GETARG_OID(0), &comparison, MAX_DIFFERENCES,
								  repl_ml_report_patience(PG_GETARG_DATUM(1)));
	comparison.incremental = PG_GETARG_BOOL(2);
	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	compare_and_record(&comparison, caller.relid, values, nulls);
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(desc), values, nulls)));
}

/* ---- diff_rows ---- */

/* Returns the key, in the order of the primary key here. */
Datum
repl_ml_report_key(const ReplMlComparison *comparison, const ReplMlCaller *caller,
				   const ReplMlSuspect *suspect)
{
	Datum		texts[INDEX_MAX_KEYS];

	for (int i = 0; i < comparison->key_natts; i++)
		texts[caller->key_order[i]] = CStringGetTextDatum(suspect->key[i]);
	return PointerGetDatum(construct_array(texts, comparison->key_natts, TEXTOID, -1, false,
										   TYPALIGN_INT));
}

/* Returns the first member that has the row, -1 if none has. */
static int
first_with_row(const ReplMlComparison *comparison, const ReplMlSight *sights)
{
	for (int i = 0; i < comparison->count; i++)
	{
		if (sights[i].kind == 'R')
			return i;
	}
	return -1;
}

/* Says whether a column, or the clock (-1), is not the same in all rows there are. */
static bool
column_differs(const ReplMlComparison *comparison, const ReplMlSight *sights, int column)
{
	const ReplMlSight *first = &sights[first_with_row(comparison, sights)];

	for (int i = 0; i < comparison->count; i++)
	{
		if (sights[i].kind != 'R')
			continue;
		if (column >= 0 ? sights[i].columns[column] != first->columns[column] :
			!repl_ml_settle_same_clocks(sights[i].clock, first->clock))
			return true;
	}
	return false;
}

/* Returns the names of the columns in which the rows differ. */
static Datum
show_columns(const ReplMlComparison *comparison, const ReplMlCaller *caller,
			 const ReplMlSight *sights)
{
	Datum	   *names = palloc((caller->column_count + 1) * sizeof(Datum));
	int			count = 0;

	for (int i = 0; i <= caller->column_count; i++)
	{
		bool		is_clock = i == caller->column_count;
		Name		name = palloc0(NAMEDATALEN);

		namestrcpy(name, is_clock ? REPL_ML_CLOCK_COLUMN : caller->columns[i]);
		if (column_differs(comparison, sights, is_clock ? -1 : i))
			names[count++] = NameGetDatum(name);
	}
	return PointerGetDatum(construct_array(names, count, NAMEOID, NAMEDATALEN, false,
										   TYPALIGN_CHAR));
}

/* Appends what one member has, as JSON. */
static void
append_version(StringInfo json, const ReplMlSight *sight, bool may_read)
{
	if (sight->kind == 'A')
	{
		appendStringInfoString(json, "null");
		return;
	}
	appendStringInfoString(json, "{\"clock\": ");
	if (sight->clock == NULL)
		appendStringInfoString(json, "null");
	else
		escape_json(json, repl_ml_clock_to_text(sight->clock));
	appendStringInfo(json, ", \"row\": %s}",
					 may_read && sight->kind == 'R' && sight->row[0] != '\0' ? sight->row : "null");
}

/* Returns what each member has, as JSON. */
static Datum
show_versions(const ReplMlComparison *comparison, const ReplMlCaller *caller,
			  const ReplMlSight *sights)
{
	StringInfoData json;

	initStringInfo(&json);
	appendStringInfoChar(&json, '{');
	for (int i = 0; i < comparison->count; i++)
	{
		if (sights[i].kind == 0)
			continue;
		if (json.len > 1)
			appendStringInfoString(&json, ", ");
		escape_json(&json, comparison->members[i].name);
		appendStringInfoString(&json, ": ");
		append_version(&json, &sights[i], caller->may_read);
	}
	appendStringInfoChar(&json, '}');
	return DirectFunctionCall1(jsonb_in, CStringGetDatum(json.data));
}

/* Returns what else there is to say of a difference, NULL if nothing. */
static char *
describe(const ReplMlComparison *comparison, const ReplMlSuspect *suspect)
{
	StringInfoData text;

	initStringInfo(&text);
	for (int i = 0; i < comparison->count; i++)
	{
		const ReplMlSight *sight = &suspect->now[i];

		if (sight->parked != 0)
			appendStringInfo(next_part(&text), "change " INT64_FORMAT " is parked on node \"%s\"",
							 sight->parked, comparison->members[i].name);
		if (sight->damaged)
			appendStringInfo(next_part(&text), "the clock on node \"%s\" cannot be read",
							 comparison->members[i].name);
		if (suspect->astray != NULL && suspect->astray[i])
			appendStringInfo(next_part(&text), "on node \"%s\" the index of the primary key does "
							 "not lead to all rows with this key", comparison->members[i].name);
	}
	if (suspect->on_its_way)
		appendStringInfoString(next_part(&text),
							   "not all members have caught up with what the others had");
	return text.len > 0 ? text.data : NULL;
}

/* Puts one row into the result. */
static void
put_row(ReturnSetInfo *result, const ReplMlComparison *comparison, const ReplMlCaller *caller,
		const ReplMlSuspect *suspect)
{
	Datum		values[ROW_COLUMNS] = {0};
	bool		nulls[ROW_COLUMNS] = {!caller->may_read};

	if (caller->may_read)
		values[0] = repl_ml_report_key(comparison, caller, suspect);
	values[1] = CStringGetTextDatum(repl_ml_settle_verdict(comparison, suspect));
	nulls[2] = first_with_row(comparison, suspect->now) < 0;
	if (!nulls[2])
		values[2] = show_columns(comparison, caller, suspect->now);
	values[3] = show_versions(comparison, caller, suspect->now);
	values[4] = text_or_null(describe(comparison, suspect), &nulls[4]);
	tuplestore_putvalues(result->setResult, result->setDesc, values, nulls);
}

/* Returns the lines of "these" that are not in the others, as a List of char *. */
static List *
lines_only_in(const char *these, const char *others)
{
	List	   *lines = NIL;

	for (const char *line = these; *line != '\0'; line = strchr(line, '\n') + 1)
	{
		char	   *copy = pnstrdup(line, strchr(line, '\n') - line);

		/* of whole lines, as the first line has none before it */
		if (strstr(psprintf("\n%s", others), psprintf("\n%s\n", copy)) == NULL)
			lines = lappend(lines, copy);
	}
	return lines;
}

/* Returns the names of the columns in these lines. */
static Datum
columns_of_lines(List *lines)
{
	Datum	   *names = palloc(Max(list_length(lines), 1) * sizeof(Datum));
	int			count = 0;
	ListCell   *lc;

	foreach(lc, lines)
	{
		const char *line = lfirst(lc);
		Name		name = palloc0(NAMEDATALEN);

		memcpy(NameStr(*name), line, Min(strcspn(line, " "), NAMEDATALEN - 1));
		names[count++] = NameGetDatum(name);
	}
	return PointerGetDatum(construct_array(names, count, NAMEOID, NAMEDATALEN, false,
										   TYPALIGN_CHAR));
}

/* Returns these lines in one. */
static char *
join_lines(List *lines)
{
	StringInfoData text;
	ListCell   *lc;

	initStringInfo(&text);
	foreach(lc, lines)
		appendStringInfo(&text, "%s%s", text.len > 0 ? ", " : "", (char *) lfirst(lc));
	return text.len > 0 ? text.data : "none";
}

/* Puts a row into the result for a member whose table has other columns. */
static void
put_schema(ReturnSetInfo *result, const ReplMlComparison *comparison, int i)
{
	const ReplMlCompared *member = &comparison->members[i];
	List	   *here = lines_only_in(comparison->inquiry.signature, member->signature);
	List	   *there = lines_only_in(member->signature, comparison->inquiry.signature);
	Datum		values[ROW_COLUMNS] = {0};
	bool		nulls[ROW_COLUMNS] = {true, false, false, true, false};

	values[1] = CStringGetTextDatum("schema");
	values[2] = columns_of_lines(list_concat(list_copy(here), there));
	values[4] = CStringGetTextDatum(psprintf("only here: %s; only on node \"%s\": %s",
											 join_lines(here), member->name, join_lines(there)));
	tuplestore_putvalues(result->setResult, result->setDesc, values, nulls);
}

/* Looks at some differences once more, with the extension's rights. */
void
repl_ml_report_details(ReplMlComparison *comparison, List *some)
{
	ReplMlUser	saved;

	repl_ml_report_become_extension(&saved);
	repl_ml_settle_details(comparison, some);
	SetUserIdAndSecContext(saved.user, saved.context);
}

/* Puts some differences into the result, looked at once more. */
static void
put_some(ReturnSetInfo *result, ReplMlComparison *comparison, const ReplMlCaller *caller,
		 List *some)
{
	ListCell   *lc;

	repl_ml_report_details(comparison, some);
	foreach(lc, some)
	{
		ReplMlSuspect *suspect = lfirst(lc);

		/* it may have been mended meanwhile */
		if (suspect->astray != NULL || !repl_ml_settle_is_equal(comparison, suspect->now))
			put_row(result, comparison, caller, suspect);
	}
}

/* Puts all differences into the result, some at a time. */
static void
put_all(ReturnSetInfo *result, ReplMlComparison *comparison, const ReplMlCaller *caller)
{
	int			count = list_length(comparison->suspects);

	for (int i = 0; i < count; i += ROWS_AT_ONCE)
	{
		MemoryContext old = MemoryContextSwitchTo(comparison->batch);
		List	   *some = NIL;

		for (int j = i; j < Min(i + ROWS_AT_ONCE, count); j++)
			some = lappend(some, list_nth(comparison->suspects, j));
		put_some(result, comparison, caller, some);
		MemoryContextSwitchTo(old);
		MemoryContextReset(comparison->batch);
	}
}

PG_FUNCTION_INFO_V1(repl_ml_diff_rows);

/*
 * repl_ml.diff_rows(relation, max_rows, timeout): returns a row for each key
 * whose rows are not the same on all members, and for each member whose table
 * is another one.
 */
Datum
repl_ml_diff_rows(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *result = (ReturnSetInfo *) fcinfo->resultinfo;
	ReplMlComparison comparison;
	ReplMlCaller caller;

	repl_ml_refuse_nulls(fcinfo);
	if (PG_GETARG_INT32(1) < 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("max_rows must not be negative"),
				 errhint("For example: 1000.")));
	InitMaterializedSRF(fcinfo, 0);
	caller = repl_ml_report_begin(PG_GETARG_OID(0), &comparison, PG_GETARG_INT32(1),
								  repl_ml_report_patience(PG_GETARG_DATUM(2)));
	repl_ml_report_compare(&comparison);
	put_all(result, &comparison, &caller);
	for (int i = 0; i < comparison.count; i++)
	{
		if (comparison.members[i].signature != NULL)
			put_schema(result, &comparison, i);
		else if (!repl_ml_compare_is_compared(&comparison, i))
			ereport(WARNING,
					(errmsg("node \"%s\" is not compared", comparison.members[i].name),
					 errdetail_internal("%s", comparison.members[i].problem)));
	}
	return (Datum) 0;
}
