/*
 * fetch.c
 *		Copies one table from the peer: asks what it is there, and has COPY send its
 *		rows, those that can be sent.
 *
 * A copy is of one moment of the peer and any number of transactions here (piece.c); it may
 * overlap with the stream, be repeated, and start over after a failure: each row is
 * joined (rows.c).
 *
 * Not which tables are due (sync.c), nor which rows a donor leaves out (donor.c).
 * Runs in the apply worker.  Locks: ACCESS SHARE on the donor's table; here ROW
 * EXCLUSIVE on the table, until a piece ends.
 */
#include "postgres.h"

#include "access/table.h"
#include "access/xact.h"
#include "catalog/pg_type.h"
#include "commands/copy.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "parser/parse_relation.h"
#include "replication/origin.h"
#include "storage/latch.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

#include "apply/apply.h"
#include "commit/commit.h"
#include "compat.h"
#include "converge/converge.h"
#include "copy/copy.h"
#include "row/row.h"
#include "server/server.h"
#include "wire/wire.h"

/* What NextCopyFrom reads from; set only while a copy runs. */
static WalReceiverConn *copy_source = NULL;
static char *copy_buffer = NULL;
static int	copy_left = 0;
static int64 copy_bytes = 0;	/* that have travelled for the present copy */

/* Which rows of a table are copied. */
typedef struct CopyOf
{
	const char *schema_name;	/* those about this table; NULL: whatever */
	const char *table_name;
	bool		differing;		/* those that the peer has been told to send */
	bool		careful;		/* see rows.c */
} CopyOf;

static bool replaces = false;	/* what is here goes: set only while such a copy runs */

static void fetch_floors(ReplMlApply *apply, WalReceiverConn *conn, const char *schema_name,
						 const char *table_name);
static int64 copy_content(ReplMlApply *apply, WalReceiverConn *conn, Oid relid,
						  const char *schema_name, const char *table_name);
static void require_same_table(WalReceiverConn *conn, const char *schema_name,
							   const char *table_name);
static int64 copy_rows(ReplMlApply *apply, WalReceiverConn *conn, Oid relid, bool careful);
static int64 copy_rows_about(ReplMlApply *apply, WalReceiverConn *conn, Oid relid,
							 const char *schema_name, const char *table_name, bool careful);
static int64 copy_users_table(ReplMlApply *apply, WalReceiverConn *conn, Oid relid);
static int64 copy_sendable(ReplMlApply *apply, WalReceiverConn *conn, ReplMlCopied *copied,
						   const char *name, const CopyOf *of);
static int64 copy_leaves(ReplMlApply *apply, WalReceiverConn *conn, ReplMlCopied *copied,
						 const CopyOf *of);
static int64 copy_from(ReplMlApply *apply, WalReceiverConn *conn, ReplMlCopied *copied,
					   const char *command, bool careful);
static List *list_columns(Relation rel, StringInfo list);
static int	read_copy(void *out, int min, int max);

/*
 * Learns, before a table of users is copied, which tombstones their writers had
 * removed when they wrote the rows of that moment: a tombstone that is still here
 * does not count for these (tombstone.c), and the streams that tell of the
 * removals may be behind the copy.  In a transaction of its own, as streams write
 * the same few rows.  The table is locked there first, so that the moment is not
 * before the last one that rewrote it.
 */
static void
fetch_floors(ReplMlApply *apply, WalReceiverConn *conn, const char *schema_name,
			 const char *table_name)
{
	if (strcmp(schema_name, REPL_ML_SCHEMA) == 0)
		return;
	repl_ml_piece_begin();
	if (OidIsValid(repl_ml_table_local(schema_name, table_name)))
	{
		repl_ml_stream_utility(conn, psprintf("LOCK TABLE %s IN ACCESS SHARE MODE",
											  quote_qualified_identifier(schema_name, table_name)));
		(void) copy_rows(apply, conn, repl_ml_catalog_oid("collection"), false);
	}
	repl_ml_piece_end();
}

/*
 * Called by sync.c: joins all rows of one table of the peer, and ticks it off with the
 * last of them.  A row that the peer has resolved from several versions must
 * come after these, or it would pass for one of them: so they are copied first,
 * of the same moment.
 */
void
repl_ml_fetch_table(ReplMlApply *apply, WalReceiverConn *conn, const char *schema_name,
					const char *table_name)
{
	/* what is remembered from piece to piece is in it; after an error it goes with its parent */
	MemoryContext context = AllocSetContextCreate(apply->message_context, "repl_ml copied table",
												  ALLOCSET_DEFAULT_SIZES);
	Oid			types[3] = {INT4OID, TEXTOID, TEXTOID};
	Datum		values[3];
	Oid			relid;
	int64		rows = 0;

	copy_bytes = 0;
	if (replaces)
		repl_ml_replace_begin(apply, conn);
	repl_ml_stream_utility(conn, "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY");
	MemoryContextSwitchTo(context);
	fetch_floors(apply, conn, schema_name, table_name);
	repl_ml_piece_begin();
	repl_ml_crash_copies();
	relid = repl_ml_table_local(schema_name, table_name);
	if (OidIsValid(relid))
	{
		if (replaces)
			repl_ml_replace_empty(relid, schema_name, table_name);
		rows = copy_content(apply, conn, relid, schema_name, table_name);
	}
	else
		repl_ml_park_forget_copied(apply->peer->node_id, schema_name, table_name);
	repl_ml_stream_utility(conn, "COMMIT");
	repl_ml_unsent_copied(apply, schema_name, table_name);

	/* in the same transaction: after a crash it is copied again */
	values[0] = Int32GetDatum(apply->peer->node_id);
	values[1] = CStringGetTextDatum(schema_name);
	values[2] = CStringGetTextDatum(table_name);
	repl_ml_spi_execute(psprintf("UPDATE repl_ml.table_sync"
								 " SET state = 'copied', rows = " INT64_FORMAT ", bytes = "
								 INT64_FORMAT
								 " WHERE node_id OPERATOR(pg_catalog.=) $1"
								 " AND schema_name OPERATOR(pg_catalog.=) $2::pg_catalog.name"
								 " AND table_name OPERATOR(pg_catalog.=) $3::pg_catalog.name",
								 rows, copy_bytes),
						3, types, values, NULL);
	repl_ml_targets_close();
	if (replaces)
		repl_ml_replace_finish(apply, conn);
	repl_ml_piece_end();
	repl_ml_crash_rests();
	MemoryContextSwitchTo(apply->message_context);
	MemoryContextDelete(context);
	repl_ml_apply_show_copy(apply, InvalidOid, 0);
}

/*
 * Called by sync.c: replaces what is here of a strong table by what the peer has of it; see
 * replace.c.  After an error the caller unblocks changes of strong tables.
 */
void
repl_ml_fetch_instead(ReplMlApply *apply, WalReceiverConn *conn, const char *schema_name,
					  const char *table_name)
{
	PG_TRY();
	{
		replaces = true;
		repl_ml_fetch_table(apply, conn, schema_name, table_name);
	}
	PG_FINALLY();
	{
		replaces = false;
	}
	PG_END_TRY();
	repl_ml_round_unblock();
}

/* Says whether this node joins, or has joined, through that one. */
static bool
is_donor(int node_id)
{
	Oid			types[1] = {INT4OID};
	Datum		values[1] = {Int32GetDatum(node_id)};

	return repl_ml_spi_execute("SELECT FROM repl_ml.local_node"
							   " WHERE donor OPERATOR(pg_catalog.=) $1", 1, types, values,
							   NULL) > 0;
}

/* Says whether the member has come back under another id after it was set back. */
static bool
was_set_back(int node_id)
{
	Oid			types[1] = {INT4OID};
	Datum		values[1] = {Int32GetDatum(node_id)};

	return repl_ml_spi_execute("SELECT FROM repl_ml.member"
							   " WHERE node_id OPERATOR(pg_catalog.=) $1"
							   " AND former_counter IS NOT NULL", 1, types, values, NULL) > 0;
}

/*
 * Joins the rows of a table, of one moment, in the order they must come.  What
 * was parked of the peer's changes of it comes with them; what fails is
 * parked, as of the stream.  Also while this node joins: it would never be
 * ready for one row that does not fit here, and the peers' streams would wait.
 */
static int64
copy_content(ReplMlApply *apply, WalReceiverConn *conn, Oid relid, const char *schema_name,
			 const char *table_name)
{
	bool		is_catalog = strcmp(schema_name, REPL_ML_SCHEMA) == 0;
	bool		is_tombstone = is_catalog && strcmp(table_name, "tombstone") == 0;

	if (is_tombstone)
	{
		if (repl_ml_meet_is_due() && is_donor(apply->peer->node_id))
			repl_ml_meet_prepare(conn, apply->peer->node_id);
		else if (was_set_back(apply->peer->node_id))
			repl_ml_former_rename_catalogs();
		(void) copy_rows(apply, conn, repl_ml_catalog_oid(REPL_ML_VERSION_TABLE), false);
		repl_ml_record_copy(apply, conn);
		return copy_rows(apply, conn, relid, true);
	}
	if (is_catalog)
		return copy_rows(apply, conn, relid, false);
	require_same_table(conn, schema_name, table_name);
	(void) copy_rows_about(apply, conn, repl_ml_catalog_oid(REPL_ML_VERSION_TABLE), schema_name,
						   table_name, false);
	/* deletions are parked, too, perhaps */
	if (replaces || repl_ml_park_has(apply->peer->node_id, schema_name, table_name))
	{
		repl_ml_park_forget_copied(apply->peer->node_id, schema_name, table_name);
		(void) copy_rows_about(apply, conn, repl_ml_catalog_oid("tombstone"), schema_name,
							   table_name, true);
	}
	return copy_users_table(apply, conn, relid);
}

/*
 * Raises an error if the table is not the same on the peer; until the copy
 * ends it stays as it is there.
 */
static void
require_same_table(WalReceiverConn *conn, const char *schema_name, const char *table_name)
{
	static const Oid types[1] = {BYTEAOID};
	char	   *name = quote_qualified_identifier(schema_name, table_name);
	LogicalRepRelation remote = {
		.remoteid = REPL_ML_COPIED_TABLE_ID,
		.nspname = pstrdup(schema_name),
		.relname = pstrdup(table_name)
	};
	ReplMlResult *result;
	StringInfoData message;
	List	   *columns;
	ListCell   *lc;

	repl_ml_stream_utility(conn, psprintf("LOCK TABLE %s IN ACCESS SHARE MODE", name));
	result = repl_ml_stream_query(conn,
								  psprintf("SELECT repl_ml.send_columns(%s)",
										   quote_literal_cstr(name)), 1, types);
	if (!repl_ml_stream_next(result))
		ereport(ERROR,
				(errcode(ERRCODE_PROTOCOL_VIOLATION),
				 errmsg("the peer does not say what table %s is", name),
				 errhint(REPL_ML_SAME_VERSION_HINT)));
	slot_getallattrs(result->slot);
	initStringInfo(&message);
	if (!result->slot->tts_isnull[0])
	{
		bytea	   *sent = DatumGetByteaPP(result->slot->tts_values[0]);

		appendBinaryStringInfo(&message, VARDATA_ANY(sent), VARSIZE_ANY_EXHDR(sent));
	}
	repl_ml_stream_free(result);

	/* what the stream would be asked, too: each column has to be the same */
	columns = repl_ml_column_receive(&message);
	remote.attnames = palloc(Max(list_length(columns), 1) * sizeof(char *));
	foreach(lc, columns)
		remote.attnames[remote.natts++] = pstrdup(((ReplMlColumn *) lfirst(lc))->name);
	repl_ml_relation_remember(&remote, columns, false);
	(void) repl_ml_relation_get(REPL_ML_COPIED_TABLE_ID);
}

/*
 * Says whether rows of users' tables, and what belongs to them, may be committed before
 * the copy ends: all but those that replace what is here, and those of a node that joins.
 */
static bool
may_be_in_pieces(void)
{
	return !replaces && !repl_ml_identity_require()->joining;
}

/* Joins all rows of one of our tables; returns their number. */
static int64
copy_rows(ReplMlApply *apply, WalReceiverConn *conn, Oid relid, bool careful)
{
	return copy_rows_about(apply, conn, relid, NULL, NULL, careful);
}

/*
 * Joins the rows of one of our own tables, only those about another table, if
 * it is named.  The group's list and the like are copied as they are: without
 * one of these rows nothing is right.
 */
static int64
copy_rows_about(ReplMlApply *apply, WalReceiverConn *conn, Oid relid, const char *schema_name,
				const char *table_name, bool careful)
{
	bool		of_rows = relid == repl_ml_catalog_oid("tombstone") ||
		relid == repl_ml_catalog_oid(REPL_ML_VERSION_TABLE);
	CopyOf		of = {.schema_name = schema_name,.table_name = table_name,.careful = careful};
	ReplMlCopied copied;
	char	   *name;
	StringInfoData columns;
	int64		rows;

	repl_ml_piece_open(&copied, relid, of_rows && may_be_in_pieces());
	name = repl_ml_fetch_name(copied.rel);
	repl_ml_apply_show_copy(apply, relid, 0);
	repl_ml_crash_writes(relid);
	initStringInfo(&columns);
	(void) list_columns(copied.rel, &columns);
	if (of_rows)
		rows = copy_sendable(apply, conn, &copied, name, &of);
	else
		rows = copy_from(apply, conn, &copied,
						 psprintf("COPY %s (%s) TO STDOUT", name, columns.data), careful);
	repl_ml_piece_close(&copied);
	return rows;
}

/*
 * Joins the rows of a user's table: those that differ from what is here, or all
 * of them; returns their number.
 */
static int64
copy_users_table(ReplMlApply *apply, WalReceiverConn *conn, Oid relid)
{
	ReplMlCopied copied;
	CopyOf		of = {.careful = true};
	ReplMlDiffering *differing;
	int64		rows = 0;

	repl_ml_piece_open(&copied, relid, may_be_in_pieces());
	repl_ml_apply_show_copy(apply, relid, 0);
	repl_ml_crash_writes(relid);
	/* what it wrote late may have come here, too */
	if (!repl_ml_meet_is_due() && was_set_back(apply->peer->node_id))
		repl_ml_former_rename(copied.rel);
	repl_ml_piece_next(&copied);
	differing = replaces ? NULL : repl_ml_differing_begin(conn, copied.rel);
	of.differing = differing != NULL;
	while (differing == NULL || repl_ml_differing_next(differing, copied.rel))
	{
		rows += copy_leaves(apply, conn, &copied, &of);
		if (differing == NULL)
			break;
	}
	if (differing != NULL)
		copy_bytes += repl_ml_differing_bytes(differing);
	if (repl_ml_meet_is_due() && is_donor(apply->peer->node_id))
		repl_ml_meet_rest(conn, copied.rel, apply->peer->node_id);
	repl_ml_piece_close(&copied);
	return rows;
}

/* Returns a text as SQL has it. */
static const char *
quote_or_null(const char *text)
{
	return text == NULL ? "NULL" : quote_literal_cstr(text);
}

/*
 * Joins the rows of the table of that name on the peer that can be sent, and
 * notes the others.  The lines are escaped so that this CSV is what COPY of
 * the table would send, see donor.c.
 */
static int64
copy_sendable(ReplMlApply *apply, WalReceiverConn *conn, ReplMlCopied *copied, const char *name,
			  const CopyOf *of)
{
	static const Oid types[1] = {BOOLOID};
	StringInfoData arguments;
	int64		rows;
	ListCell   *lc;

	initStringInfo(&arguments);
	appendStringInfo(&arguments, "%s::pg_catalog.regclass, ARRAY[", quote_literal_cstr(name));
	foreach(lc, list_columns(copied->rel, makeStringInfo()))
		appendStringInfo(&arguments, "%s%s", foreach_current_index(lc) > 0 ? ", " : "",
						 quote_literal_cstr(strVal(lfirst(lc))));
	appendStringInfoString(&arguments, "]::pg_catalog.name[]");
	repl_ml_stream_free(repl_ml_stream_query(conn,
											 psprintf("SELECT repl_ml.require_copyable(%s)",
													  arguments.data), 1, types));
	rows = copy_from(apply, conn, copied,
					 psprintf("COPY (SELECT repl_ml.rows_to_copy(%s, %s, %s, %s)) TO STDOUT"
							  " (FORMAT csv, DELIMITER E'\\x01', QUOTE E'\\x02', NULL E'\\x03')",
							  arguments.data, quote_or_null(of->schema_name),
							  quote_or_null(of->table_name), of->differing ? "true" : "false"),
					 of->careful);
	repl_ml_unsent_ask(apply, conn);
	return rows;
}

/*
 * Joins the rows of a table of the peer, or of its partitions there: it need not
 * be cut alike here, nor be partitioned.
 */
static int64
copy_leaves(ReplMlApply *apply, WalReceiverConn *conn, ReplMlCopied *copied, const CopyOf *of)
{
	static const Oid types[2] = {TEXTOID, TEXTOID};
	char	   *name = quote_literal_cstr(repl_ml_fetch_name(copied->rel));
	ReplMlResult *result;
	char	   *schema_name;
	char	   *table_name;
	List	   *names = NIL;
	ListCell   *lc;
	int64		rows = 0;

	result = repl_ml_stream_query(conn,
								  psprintf("SELECT n.nspname::pg_catalog.text,"
										   " c.relname::pg_catalog.text"
										   " FROM (SELECT relid FROM pg_catalog.pg_partition_tree("
										   "pg_catalog.to_regclass(%s))"
										   " UNION SELECT pg_catalog.to_regclass(%s)) t"
										   " JOIN pg_catalog.pg_class c"
										   " ON c.oid OPERATOR(pg_catalog.=) t.relid"
										   " JOIN pg_catalog.pg_namespace n"
										   " ON n.oid OPERATOR(pg_catalog.=) c.relnamespace"
										   " WHERE c.relkind OPERATOR(pg_catalog.=) 'r'",
										   name, name), 2, types);
	while (repl_ml_stream_next(result))
	{
		slot_getallattrs(result->slot);
		schema_name = TextDatumGetCString(result->slot->tts_values[0]);
		table_name = TextDatumGetCString(result->slot->tts_values[1]);
		names = lappend(names, quote_qualified_identifier(schema_name, table_name));
	}
	repl_ml_stream_free(result);

	/* each row goes where it belongs here */
	foreach(lc, names)
		rows += copy_sendable(apply, conn, copied, lfirst(lc), of);
	return rows;
}

/* Returns, also for differing.c, the table's name as SQL has it, here and on the peer. */
char *
repl_ml_fetch_name(Relation rel)
{
	return quote_qualified_identifier(get_namespace_name(RelationGetNamespace(rel)),
									  RelationGetRelationName(rel));
}

/*
 * Joins what the peer's COPY yields, all stored columns of rows of the table;
 * returns their number.
 */
static int64
copy_from(ReplMlApply *apply, WalReceiverConn *conn, ReplMlCopied *copied, const char *command,
		  bool careful)
{
	Relation	rel = copied->rel;
	ParseState *pstate = make_parsestate(NULL);
	StringInfoData columns;
	CopyFromState copy;
	ReplMlUser	saved;
	int64		rows;

	initStringInfo(&columns);
	repl_ml_stream_copy_out(conn, command);
	copy_source = conn;
	copy_left = 0;

	/*
	 * opening runs the owner's code: column defaults, input functions of
	 * domains
	 */
	(void) addRangeTableEntryForRelation(pstate, rel, AccessShareLock, NULL, false, false);
	repl_ml_become_owner(rel, &saved);
	copy = BeginCopyFrom(pstate, rel, NULL, NULL, false, read_copy, list_columns(rel, &columns),
						 NIL);
	repl_ml_become_self(&saved);
	/* from here on it may be another piece's */
	rows = repl_ml_rows_join(apply, copied, copy, careful);
	EndCopyFrom(copy);
	return rows;
}

/* Returns the names of all columns that are stored, also as a list for SQL. */
static List *
list_columns(Relation rel, StringInfo list)
{
	List	   *names = NIL;

	for (int i = 0; i < RelationGetNumberOfAttributes(rel); i++)
	{
		Form_pg_attribute att = TupleDescAttr(RelationGetDescr(rel), i);

		if (!repl_ml_copy_is_stored(att))
			continue;
		appendStringInfo(list, "%s%s", names == NIL ? "" : ", ",
						 quote_identifier(NameStr(att->attname)));
		names = lappend(names, makeString(pstrdup(NameStr(att->attname))));
	}
	return names;
}

/*
 * Gives core's COPY the bytes it asks for: waits for the peer, but not longer
 * than its timeout.
 */
static int
read_copy(void *out, int min, int max)
{
	int			got = 0;

	while (got < min)
	{
		pgsocket	fd = PGINVALID_SOCKET;
		int			length;

		/* first what is left of the last message */
		if (copy_left > 0)
		{
			length = Min(copy_left, max - got);
			memcpy((char *) out + got, copy_buffer, length);
			copy_buffer += length;
			copy_left -= length;
			got += length;
			continue;
		}
		CHECK_FOR_INTERRUPTS();
		length = walrcv_receive(copy_source, &copy_buffer, &fd);
		if (length > 0)
			copy_bytes += copy_left = length;
		else if (length < 0)
			return got;
		else
		{
			/* the peer may be slow, or gone without a word */
			if ((WaitLatchOrSocket(MyLatch,
								   WL_SOCKET_READABLE | WL_LATCH_SET | WL_TIMEOUT |
								   WL_EXIT_ON_PM_DEATH,
								   fd, Max(wal_receiver_timeout, 1000),
								   wait_event_compat("ReplMlCopy")) & WL_TIMEOUT) &&
				wal_receiver_timeout > 0)
				ereport(ERROR,
						(errcode(ERRCODE_CONNECTION_FAILURE),
						 errmsg("the peer sends no rows of a copy"),
						 errhint("Check the network to that node, or raise \"%s\".",
								 "wal_receiver_timeout")));
			ResetLatch(MyLatch);
		}
	}
	return got;
}
