/*
 * relation.c
 *		The peer's tables: what it told about each one, and which table that is
 *		here.
 *
 * Core's own map needs a subscription, so this is ours.  An entry is made by
 * a RELATION message and resolved by name at its first use; a change of the
 * local catalogs makes it resolve again.  A table that is not here, or has
 * other columns, is an error that names the difference.
 *
 * Not here: which column is which (row/column.c), what becomes of a change that
 * does not fit (change.c, park.c).  Locks: ROW EXCLUSIVE on the local table,
 * until the transaction ends.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/table.h"
#include "catalog/namespace.h"
#include "catalog/pg_publication.h"
#include "catalog/pg_type.h"
#include "executor/executor.h"
#include "executor/spi.h"
#include "mb/pg_wchar.h"
#include "nodes/makefuncs.h"
#include "optimizer/optimizer.h"
#include "rewrite/rewriteHandler.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/hsearch.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"

#include "apply/apply.h"
#include "compat.h"
#include "row/row.h"
#include "server/server.h"
#include "wire/wire.h"
#include "write/write.h"

#define LOOK_AGAIN_MS		1000	/* at a table that does not fit */

static HTAB *remote_tables = NULL;
static MemoryContext relation_context = NULL;	/* lives as long as a
												 * connection */

static void resolve_table(ReplMlRemoteTable *table);
static void remember_misfit(ReplMlRemoteTable *table);
static ReplMlColumn *copy_columns(LogicalRepRelation *remote, List *columns);
static void require_same_columns(ReplMlRemoteTable *table, Relation rel);
static bool follows_changes(ReplMlRemoteTable *table);
static int find_remote_column(ReplMlRemoteTable *table, Relation rel, Form_pg_attribute att,
							  bool follows);
static bool is_news(ReplMlRemoteTable *table, Relation rel, Form_pg_attribute att);
static void find_fill(ReplMlRemoteTable *table, Relation rel, Form_pg_attribute att);
static bool is_mapped(ReplMlRemoteTable *table, int j);
static bool is_gone(ReplMlRemoteTable *table, int j);
static char *get_seen_here(Relation rel);
static const char *get_seen_there(ReplMlRemoteTable *table);
static void note_other_key(ReplMlRemoteTable *table, Relation rel);
static void map_columns(ReplMlRemoteTable *table, Relation rel);
static void invalidate_remote(Datum arg, Oid relid);

/*
 * Forgets all tables: the ids of a new connection may mean other ones.  Called
 * by the apply worker before it connects, and by backends that try parked
 * changes.
 */
void
repl_ml_relation_forget_all(void)
{
	static bool registered = false;
	HASHCTL		ctl = {.keysize = sizeof(LogicalRepRelId),.entrysize = sizeof(ReplMlRemoteTable)};

	if (!registered)
	{
		CacheRegisterRelcacheCallback(invalidate_remote, (Datum) 0);
		registered = true;
	}
	remote_tables = NULL;
	if (relation_context != NULL)
		MemoryContextDelete(relation_context);
	relation_context = AllocSetContextCreate(TopMemoryContext, "repl_ml remote tables",
											 ALLOCSET_DEFAULT_SIZES);
	ctl.hcxt = relation_context;
	remote_tables = hash_create("repl_ml remote tables", 64, &ctl,
								HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
}

/*
 * Called by core when a relation has changed: what is here of the peer's
 * tables is to be looked up again.
 */
static void
invalidate_remote(Datum arg, Oid relid)
{
	HASH_SEQ_STATUS scan;
	ReplMlRemoteTable *table;

	if (remote_tables == NULL)
		return;
	hash_seq_init(&scan, remote_tables);
	while ((table = hash_seq_search(&scan)) != NULL)
	{
		if (relid != InvalidOid && table->local != relid && OidIsValid(table->local))
			continue;
		table->valid = false;
		table->misfit_until = 0;
		table->columns = NULL;
	}
}

/* Returns the columns in the order they are sent in; palloc'd. */
static ReplMlColumn *
copy_columns(LogicalRepRelation *remote, List *columns)
{
	ReplMlColumn *copied = palloc(Max(remote->natts, 1) * sizeof(ReplMlColumn));

	for (int i = 0; i < remote->natts; i++)
	{
		ReplMlColumn column = {.identity = "",.type = "",.typmod = -1};
		ListCell   *lc;

		foreach(lc, columns)
		{
			if (strcmp(((ReplMlColumn *) lfirst(lc))->name, remote->attnames[i]) == 0)
				column = *(ReplMlColumn *) lfirst(lc);
		}
		copied[i].name = remote->attnames[i];
		copied[i].identity = pstrdup(column.identity);
		copied[i].type = pstrdup(column.type);
		copied[i].typmod = column.typmod;
		copied[i].in_key = column.in_key;
	}
	return copied;
}

/*
 * Keeps what a RELATION message says; replaces what an earlier one said.
 * "columns" are those of the table, of ReplMlColumn *, NIL if that is not
 * known; "late" is for the table of a parked change.
 */
void
repl_ml_relation_remember(LogicalRepRelation *remote, List *columns, bool late)
{
	MemoryContext old;
	ReplMlRemoteTable *table;
	bool		found;

	table = hash_search(remote_tables, &remote->remoteid, HASH_ENTER, &found);
	if (found && table->description != NULL)
		MemoryContextDelete(table->description);
	if (!found)
	{
		table->careful = 0;
		table->logged_at = 0;
	}

	/* all of it was said about another description */
	table->misfit = table->locked = NULL;
	table->misfit_until = 0;
	table->columns = NULL;
	table->late = late;
	table->valid = false;
	table->local = InvalidOid;
	table->description = NULL;
	table->context = NULL;
	table->description = AllocSetContextCreate(relation_context, "repl_ml remote table",
											   ALLOCSET_SMALL_SIZES);
	old = MemoryContextSwitchTo(table->description);
	table->remote = *remote;
	table->remote.nspname = pstrdup(remote->nspname);
	table->remote.relname = pstrdup(remote->relname);
	table->remote.attnames = palloc(Max(remote->natts, 1) * sizeof(char *));
	for (int i = 0; i < remote->natts; i++)
		table->remote.attnames[i] = pstrdup(remote->attnames[i]);
	table->remote.atttyps = palloc0(Max(remote->natts, 1) * sizeof(Oid));
	if (remote->atttyps != NULL)
		memcpy(table->remote.atttyps, remote->atttyps, remote->natts * sizeof(Oid));
	table->remote.attkeys = NULL;
	table->described = columns == NIL ? NULL : copy_columns(&table->remote, columns);
	MemoryContextSwitchTo(old);
}

/*
 * Returns the table with the peer's id, as it was described, resolved or not.
 */
ReplMlRemoteTable *
repl_ml_relation_find(LogicalRepRelId id)
{
	ReplMlRemoteTable *table = hash_search(remote_tables, &id, HASH_FIND, NULL);

	if (table == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_PROTOCOL_VIOLATION),
				 errmsg("the peer sent a change of table %u without describing the table", id),
				 errhint(REPL_ML_SAME_VERSION_HINT)));
	return table;
}

/*
 * Returns the table with the peer's id, resolved; its local table may be
 * InvalidOid when the group has removed it and its changes are to be dropped.
 */
ReplMlRemoteTable *
repl_ml_relation_get(LogicalRepRelId id)
{
	ReplMlRemoteTable *table = repl_ml_relation_find(id);

	if (!table->valid)
		resolve_table(table);
	return table;
}

/*
 * Finds the table of that name here, and where its columns are; raises an
 * error if it does not fit.
 */
static void
resolve_table(ReplMlRemoteTable *table)
{
	Oid			relid;
	Relation	rel;

	table->local = InvalidOid;
	/* valid before we look: what changes meanwhile must count */
	table->valid = true;
	PG_TRY();
	{
		relid = repl_ml_table_local(table->remote.nspname, table->remote.relname);
		if (OidIsValid(relid))
		{
			rel = table_open(relid, NoLock);
			if (rel->rd_rel->relkind != RELKIND_RELATION &&
				rel->rd_rel->relkind != RELKIND_PARTITIONED_TABLE)
				ereport(ERROR,
						(errcode(ERRCODE_WRONG_OBJECT_TYPE),
						 errmsg("\"%s.%s\" is not a table on this node",
								table->remote.nspname, table->remote.relname),
						 errhint("Make it a table, as on the other nodes, then run SELECT "
								 "repl_ml.retry_parked(id).")));
			map_columns(table, rel);
			table->local = relid;
			table_close(rel, NoLock);
		}
	}
	PG_CATCH();
	{
		if (table->valid)
			remember_misfit(table);
		table->valid = false;
		PG_RE_THROW();
	}
	PG_END_TRY();
}

/*
 * Keeps an error of resolve_table: until something changes, each change of the
 * table would meet the same one.
 */
static void
remember_misfit(ReplMlRemoteTable *table)
{
	MemoryContext old;

	if (!repl_ml_dispatch_is_permanent(geterrcode()))
		return;
	if (table->misfit != NULL)
		FreeErrorData(table->misfit);
	old = MemoryContextSwitchTo(table->description);
	table->misfit = CopyErrorData();
	MemoryContextSwitchTo(old);
	table->misfit_until = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), LOOK_AGAIN_MS);
}

/*
 * Returns the type here of what the peer sends of a column in binary form;
 * InvalidOid if it should not.
 */
static Oid
find_binary_type(ReplMlRemoteTable *table, int column)
{
	Oid			type = table->remote.atttyps[column];

	if (strcmp(table->remote.attnames[column], REPL_ML_CLOCK_COLUMN) == 0)
		return repl_ml_clock_type();
	return repl_ml_binary_is_portable(type) ? type : InvalidOid;
}

/*
 * Notes which column of the peer's each one here is; raises an error where the
 * two differ.
 */
static void
map_columns(ReplMlRemoteTable *table, Relation rel)
{
	TupleDesc	desc = RelationGetDescr(rel);
	int			matched = 0;
	bool		follows;
	MemoryContext old;

	if (table->context != NULL)
		MemoryContextDelete(table->context);
	table->context = AllocSetContextCreate(table->description, "repl_ml remote table's columns",
										   ALLOCSET_SMALL_SIZES);
	old = MemoryContextSwitchTo(table->context);
	table->natts = desc->natts;
	table->remote_column = palloc(desc->natts * sizeof(int));
	follows = follows_changes(table);
	table->fill = palloc0(desc->natts * sizeof(Datum));
	table->has_fill = palloc0(desc->natts * sizeof(bool));
	table->input = palloc0(desc->natts * sizeof(FmgrInfo));
	table->input_param = palloc0(desc->natts * sizeof(Oid));
	table->receive = palloc0(desc->natts * sizeof(FmgrInfo));
	for (int i = 0; i < desc->natts; i++)
	{
		Form_pg_attribute att = TupleDescAttr(desc, i);
		Oid			function;

		table->remote_column[i] = -1;
		if (att->attisdropped || att->attgenerated != '\0')
			continue;
		table->remote_column[i] = find_remote_column(table, rel, att, follows);

		/* a parked change may be from before the column, and so may the peer be */
		if (table->remote_column[i] < 0 &&
			(table->late || (follows && is_news(table, rel, att))))
		{
			find_fill(table, rel, att);
			continue;
		}
		if (table->remote_column[i] < 0)
			ereport(ERROR,
					(errcode(ERRCODE_UNDEFINED_COLUMN),
					 errmsg("column \"%s\" of table \"%s.%s\" does not exist on the peer",
							NameStr(att->attname), table->remote.nspname, table->remote.relname),
					 errhint("Make the table the same on all nodes, then run SELECT "
							 "repl_ml.retry_parked(id).")));
		matched++;
		getTypeInputInfo(att->atttypid, &function, &table->input_param[i]);
		fmgr_info(function, &table->input[i]);
		if (find_binary_type(table, table->remote_column[i]) == att->atttypid)
		{
			getTypeBinaryInputInfo(att->atttypid, &function, &table->input_param[i]);
			fmgr_info(function, &table->receive[i]);
		}
	}
	MemoryContextSwitchTo(old);

	for (int j = 0; matched < table->remote.natts && j < table->remote.natts; j++)
	{
		AttrNumber	attnum = get_attnum(RelationGetRelid(rel), table->remote.attnames[j]);

		if (follows && (is_mapped(table, j) || is_gone(table, j)))
			continue;
		/* system columns have names, too */
		if (attnum <= InvalidAttrNumber || table->remote_column[attnum - 1] != j)
			ereport(ERROR,
					(errcode(ERRCODE_UNDEFINED_COLUMN),
					 errmsg("column \"%s\" of table \"%s.%s\" does not exist on this node",
							table->remote.attnames[j], table->remote.nspname,
							table->remote.relname),
					 errhint("Make the table the same on all nodes, then run SELECT "
							 "repl_ml.retry_parked(id).")));
	}
	if (table->described != NULL && !follows)
		require_same_columns(table, rel);
	note_other_key(table, rel);
}

/*
 * Says whether rows of another shape than the table has here are of an older one: where
 * changes of the schema are run by all members, in one order, a peer's rows are not read
 * before this node has run what the peer had (group/worker.c), unless something is parked.
 */
static bool
follows_changes(ReplMlRemoteTable *table)
{
	return table->described != NULL && strcmp(table->remote.nspname, REPL_ML_SCHEMA) != 0 &&
		repl_ml_replicate_ddl && !repl_ml_schema_change_any_parked();
}

/*
 * Returns which of the peer's columns is the one here, -1 if none is: one with an identity of
 * it, whatever its name is, or one of its name that may be the same.
 */
static int
find_remote_column(ReplMlRemoteTable *table, Relation rel, Form_pg_attribute att, bool follows)
{
	int			named = -1;
	char	   *ours = follows ? repl_ml_column_identity(RelationGetRelid(rel), att->attnum) : NULL;
	bool		is_clock = strcmp(NameStr(att->attname), REPL_ML_CLOCK_COLUMN) == 0;

	for (int j = 0; j < table->remote.natts; j++)
	{
		if (strcmp(table->remote.attnames[j], NameStr(att->attname)) == 0)
			named = j;
		else if (follows && !is_clock &&
				 strcmp(table->remote.attnames[j], REPL_ML_CLOCK_COLUMN) != 0 &&
				 repl_ml_column_shares(table->described[j].identity, ours))
			return j;
	}
	if (named >= 0 && follows && !is_clock &&
		!repl_ml_column_is_same(table->described[named].identity, get_seen_there(table), ours,
								get_seen_here(rel)))
		return -1;
	return named;
}

/* Says whether the peer has never had the column. */
static bool
is_news(ReplMlRemoteTable *table, Relation rel, Form_pg_attribute att)
{
	char	   *ours = repl_ml_column_identity(RelationGetRelid(rel), att->attnum);

	return ours[0] != '\0' && !repl_ml_column_shares(get_seen_there(table), ours);
}

/*
 * Notes what the change of the schema that has added the column has given to rows that were
 * there before, if it says: all nodes fill it into rows of before with the same value.
 */
static void
find_fill(ReplMlRemoteTable *table, Relation rel, Form_pg_attribute att)
{
	Oid			types[1] = {TEXTOID};
	Datum		values[1] =
	{CStringGetTextDatum(repl_ml_column_identity(RelationGetRelid(rel), att->attnum))};
	MemoryContext context = CurrentMemoryContext;

	PushActiveSnapshot(GetTransactionSnapshot());
	SPI_connect();
	SPI_execute_with_args("SELECT x.value FROM repl_ml.schema_change c,"
						  " pg_catalog.jsonb_to_recordset(c.filled) x (identity text, value text)"
						  " WHERE c.filled OPERATOR(pg_catalog.<>) '[]'"
						  " AND pg_catalog.strpos($1, x.identity) OPERATOR(pg_catalog.>) 0"
						  " AND x.identity OPERATOR(pg_catalog.<>) '' LIMIT 1",
						  1, types, values, NULL, true, 1);
	if (SPI_processed == 1)
	{
		Oid			type = get_array_type(att->atttypid);
		MemoryContext old = MemoryContextSwitchTo(context);
		Datum		array = OidIsValid(type) ?
			OidInputFunctionCall(F_ARRAY_IN, repl_ml_spi_text(0, 0), att->atttypid,
								 att->atttypmod) : (Datum) 0;
		int			one = 1;
		bool		isnull = true;

		if (array != (Datum) 0)
			table->fill[att->attnum - 1] = array_get_element(array, 1, &one, -1, att->attlen,
															 att->attbyval, att->attalign,
															 &isnull);
		table->has_fill[att->attnum - 1] = !isnull;
		MemoryContextSwitchTo(old);
	}
	SPI_finish();
	PopActiveSnapshot();
}

/* Says whether some column here is the peer's column j. */
static bool
is_mapped(ReplMlRemoteTable *table, int j)
{
	for (int i = 0; i < table->natts; i++)
	{
		if (table->remote_column[i] == j)
			return true;
	}
	return false;
}

/*
 * Says whether a change of the schema has dropped the peer's column j; one that was dropped on
 * this node only is not gone for those who write it.
 */
static bool
is_gone(ReplMlRemoteTable *table, int j)
{
	Oid			types[1] = {TEXTOID};
	Datum		values[1] = {CStringGetTextDatum(table->described[j].identity)};

	return repl_ml_spi_execute("SELECT FROM repl_ml.schema_change c,"
							   " pg_catalog.jsonb_to_recordset(c.filled) x (dropped text)"
							   " WHERE c.filled OPERATOR(pg_catalog.<>) '[]'"
							   " AND pg_catalog.string_to_array(x.dropped, ',')"
							   " OPERATOR(pg_catalog.&&) pg_catalog.string_to_array($1, ',')",
							   1, types, values, NULL) > 0;
}

/*
 * Notes which columns here are the peer's key, where that is not ours: an
 * UPDATE there may change what is the key here (see
 * repl_ml_deletion_supersede).
 */
static void
note_other_key(ReplMlRemoteTable *table, Relation rel)
{
	ReplMlTable *ours;
	int			shared = 0;
	int			count = 0;

	table->other_key_count = 0;
	/* our own tables are the same everywhere, and some have no key */
	if (strcmp(table->remote.nspname, REPL_ML_SCHEMA) == 0)
		return;
	ours = repl_ml_table_get(rel);
	for (int i = 0; i < table->natts && table->described != NULL; i++)
	{
		int			j = table->remote_column[i];

		if (j < 0 || !table->described[j].in_key)
			continue;
		table->other_key[count++] = i + 1;
		for (int k = 0; k < ours->key_natts; k++)
			shared += ours->key_attnums[k] == i + 1;
	}
	if (shared < count || count < ours->key_natts)
		table->other_key_count = count;
}

/* Returns all identities that there have been in the table here. */
static char *
get_seen_here(Relation rel)
{
	Oid			relid = RelationGetRelid(rel);

	return repl_ml_column_identity(relid, repl_ml_table_clock_attnum(relid));
}

/* Returns all identities that there have been in the table on the peer. */
static const char *
get_seen_there(ReplMlRemoteTable *table)
{
	for (int j = 0; j < table->remote.natts; j++)
	{
		if (strcmp(table->remote.attnames[j], REPL_ML_CLOCK_COLUMN) == 0)
			return table->described[j].identity;
	}
	return "";
}

typedef enum ColumnFit
{
	FITS,
	IS_ANOTHER,
	IS_OF_ANOTHER_TYPE
} ColumnFit;

/*
 * Says whether the peer's column j is the column "att" here, and its values
 * are.
 */
static ColumnFit
find_fit(ReplMlRemoteTable *table, int j, Relation rel, Form_pg_attribute att,
		 const char *seen_here)
{
	ReplMlColumn ours;

	if (table->described == NULL || strcmp(NameStr(att->attname), REPL_ML_CLOCK_COLUMN) == 0)
		return FITS;
	ours = repl_ml_column_describe(RelationGetRelid(rel), att);
	if (!repl_ml_column_is_same(table->described[j].identity, get_seen_there(table), ours.identity,
								seen_here))
		return IS_ANOTHER;
	return repl_ml_column_takes(&table->described[j], &ours) ? FITS : IS_OF_ANOTHER_TYPE;
}

/*
 * Raises an error where a column of the peer's is not the one here that has
 * its name, or its values might become others here.
 */
static void
require_same_columns(ReplMlRemoteTable *table, Relation rel)
{
	char	   *seen_here = get_seen_here(rel);

	for (int i = 0; i < table->natts; i++)
	{
		Form_pg_attribute att = TupleDescAttr(RelationGetDescr(rel), i);
		int			j = table->remote_column[i];
		ColumnFit	fit = j < 0 ? FITS : find_fit(table, j, rel, att, seen_here);

		if (fit == IS_ANOTHER)
			ereport(ERROR,
					(errcode(ERRCODE_UNDEFINED_COLUMN),
					 errmsg("column \"%s\" of table \"%s.%s\" is another one than on the peer",
							NameStr(att->attname), table->remote.nspname, table->remote.relname),
					 errdetail("It was added, or all its values were computed anew, on one of the "
							   "nodes and not on the other; or columns were renamed."),
					 errhint("Alter the table on all nodes in the same way. If it is the same "
							 "column after all, run SECURITY LABEL FOR repl_ml ON COLUMN %s.%s IS "
							 "%s.",
							 quote_qualified_identifier(table->remote.nspname,
														table->remote.relname),
							 quote_identifier(NameStr(att->attname)),
							 quote_literal_cstr(table->described[j].identity))));
		if (fit == IS_OF_ANOTHER_TYPE)
			ereport(ERROR,
					(errcode(ERRCODE_UNDEFINED_COLUMN),
					 errmsg("column \"%s\" of table \"%s.%s\" is of type %s here and of another "
							"one, %s, on the peer",
							NameStr(att->attname), table->remote.nspname, table->remote.relname,
							format_type_with_typemod(att->atttypid, att->atttypmod),
							table->described[j].type),
					 errhint("Make the table the same on all nodes; then its changes are "
							 "applied.")));
	}
}

/*
 * Returns, for a parked change, the name of a column of the peer's that is not
 * one of the table here (any more), or NULL; then "lacks" says whether the
 * table has columns that the peer's has not.
 */
char *
repl_ml_relation_unfit(LogicalRepRelId id, bool *lacks)
{
	ReplMlRemoteTable *table = repl_ml_relation_find(id);
	Oid			relid = RangeVarGetRelid(makeRangeVar(table->remote.nspname, table->remote.relname,
													  -1), AccessShareLock, true);
	Relation	rel;
	char	   *seen_here;
	int			matched = 0;
	int			here = 0;

	*lacks = false;
	if (!OidIsValid(relid))
		return NULL;
	rel = table_open(relid, NoLock);
	seen_here = repl_ml_column_identity(relid, repl_ml_table_clock_attnum(relid));
	for (int i = 0; i < RelationGetNumberOfAttributes(rel); i++)
		here += !TupleDescAttr(RelationGetDescr(rel), i)->attisdropped &&
		TupleDescAttr(RelationGetDescr(rel), i)->attgenerated == '\0';

	/* all of the change's columns have to be here; more than these may be */
	for (int j = 0; j < table->remote.natts; j++)
	{
		AttrNumber	attnum = get_attnum(relid, table->remote.attnames[j]);
		Form_pg_attribute att = attnum <= InvalidAttrNumber ? NULL :
			TupleDescAttr(RelationGetDescr(rel), attnum - 1);

		if (att == NULL || att->attgenerated != '\0' ||
			find_fit(table, j, rel, att, seen_here) != FITS)
			break;
		matched++;
	}
	table_close(rel, NoLock);
	*lacks = matched == table->remote.natts && here > matched;
	return matched < table->remote.natts ? table->remote.attnames[matched] : NULL;
}

/* Returns a value that came in binary form, as text. */
static char *
print_binary(ReplMlRemoteTable *table, LogicalRepTupleData *tuple, int column)
{
	Oid			type = find_binary_type(table, column);

	if (!OidIsValid(type))
		ereport(ERROR,
				(errcode(ERRCODE_PROTOCOL_VIOLATION),
				 errmsg("the peer sent column \"%s\" of table \"%s.%s\" in binary form, which its "
						"type %u may not have",
						table->remote.attnames[column], table->remote.nspname,
						table->remote.relname, table->remote.atttyps[column]),
				 errhint(REPL_ML_SAME_VERSION_HINT)));
	return repl_ml_binary_as_text(type, &tuple->colvalues[column]);
}

/*
 * Returns a received value as text, NULL for null; raises an error if it is
 * not in the message.
 */
char *
repl_ml_relation_column(ReplMlRemoteTable *table, LogicalRepTupleData *tuple, int column)
{
	if (tuple->ncols != table->remote.natts)
		ereport(ERROR,
				(errcode(ERRCODE_PROTOCOL_VIOLATION),
				 errmsg("a row of table \"%s.%s\" has %d columns instead of %d",
						table->remote.nspname, table->remote.relname,
						tuple->ncols, table->remote.natts),
				 errhint(REPL_ML_SAME_VERSION_HINT)));
	switch (tuple->colstatus[column])
	{
		case LOGICALREP_COLUMN_NULL:
			return NULL;
		case LOGICALREP_COLUMN_TEXT:

			/*
			 * nobody has looked at it yet, and what is stored must be
			 * readable
			 */
			(void) pg_verifymbstr(tuple->colvalues[column].data, tuple->colvalues[column].len,
								  false);
			return tuple->colvalues[column].data;
		case LOGICALREP_COLUMN_BINARY:
			return print_binary(table, tuple, column);
		case LOGICALREP_COLUMN_UNCHANGED:
			ereport(ERROR,
					(errcode(ERRCODE_PROTOCOL_VIOLATION),
					 errmsg("the peer did not send the value of column \"%s\" of table \"%s.%s\"",
							table->remote.attnames[column], table->remote.nspname,
							table->remote.relname),
					 errdetail("An unchanged out-of-line value was updated around the trigger "
							   "\"zz_repl_ml_update\"."),
					 errhint("Update the row again on the peer.")));
			break;
		default:
			ereport(ERROR,
					(errcode(ERRCODE_PROTOCOL_VIOLATION),
					 errmsg("the peer sent column \"%s\" of table \"%s.%s\" in the unknown format "
							"\"%c\"",
							table->remote.attnames[column], table->remote.nspname,
							table->remote.relname, tuple->colstatus[column]),
					 errhint(REPL_ML_SAME_VERSION_HINT)));
	}
	return NULL;				/* keep the compiler quiet */
}

/*
 * Sets what a column has in a row that was written before there was the
 * column: what ALTER TABLE ADD COLUMN has given to those that it found, or its default.
 */
static void
set_default(ReplMlRemoteTable *table, int i, TupleTableSlot *slot)
{
	Relation	rel;
	Node	   *expression;

	if (table->has_fill[i])
	{
		slot->tts_values[i] = table->fill[i];
		slot->tts_isnull[i] = false;
		return;
	}
	rel = table_open(table->local, NoLock);
	expression = build_column_default(rel, i + 1);
	table_close(rel, NoLock);
	if (expression == NULL)
		return;
	/* each node would compute another one; the row comes by a copy when its node has the column */
	if (!table->late && contain_mutable_functions(expression))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_COLUMN),
				 errmsg("column \"%s\" of table \"%s.%s\" does not exist on the peer, and its "
						"default is computed",
						NameStr(TupleDescAttr(slot->tts_tupleDescriptor, i)->attname),
						table->remote.nspname, table->remote.relname),
				 errhint("It is applied as soon as the peer has the column.")));
	slot->tts_values[i] =
		ExecEvalExprSwitchContext(ExecInitExpr(expression_planner((Expr *) expression), NULL),
								  CreateStandaloneExprContext(),
								  &slot->tts_isnull[i]);
}

/* Sets one column of the local table's tuple from the received row. */
static void
set_column(ReplMlRemoteTable *table, LogicalRepTupleData *tuple, TupleTableSlot *slot, int i)
{
	int32		typmod = TupleDescAttr(slot->tts_tupleDescriptor, i)->atttypmod;
	int			column = table->remote_column[i];
	char	   *text;

	if (OidIsValid(table->receive[i].fn_oid) && tuple->ncols == table->remote.natts &&
		tuple->colstatus[column] == LOGICALREP_COLUMN_BINARY)
	{
		slot->tts_isnull[i] = false;
		slot->tts_values[i] = repl_ml_binary_read(&table->receive[i], table->input_param[i], typmod,
												  &tuple->colvalues[column]);
		return;
	}
	text = repl_ml_relation_column(table, tuple, column);
	slot->tts_isnull[i] = text == NULL;
	if (text != NULL)
		slot->tts_values[i] = InputFunctionCall(&table->input[i], text, table->input_param[i],
												typmod);
}

/*
 * Sets the received row as a tuple of the local table, in "slot"; with the
 * owner's rights, whose types read it.
 */
void
repl_ml_relation_fill_slot(ReplMlRemoteTable *table, LogicalRepTupleData *tuple,
						   TupleTableSlot *slot)
{
	TupleDesc	desc = slot->tts_tupleDescriptor;

	ExecClearTuple(slot);
	for (int i = 0; i < desc->natts; i++)
	{
		slot->tts_values[i] = (Datum) 0;
		slot->tts_isnull[i] = true;
		if (table->remote_column[i] >= 0)
			set_column(table, tuple, slot, i);
		else if (!TupleDescAttr(desc, i)->attisdropped &&
				 TupleDescAttr(desc, i)->attgenerated == '\0')
			set_default(table, i, slot);
	}
	ExecStoreVirtualTuple(slot);
}

/* Returns one column of a received row by name, as text; NULL for null. */
char *
repl_ml_relation_text(ReplMlRemoteTable *table, LogicalRepTupleData *tuple, const char *column)
{
	for (int j = 0; j < table->remote.natts; j++)
	{
		if (strcmp(table->remote.attnames[j], column) == 0)
			return repl_ml_relation_column(table, tuple, j);
	}
	ereport(ERROR,
			(errcode(ERRCODE_PROTOCOL_VIOLATION),
			 errmsg("the peer sent table \"%s.%s\" without column \"%s\"",
					table->remote.nspname, table->remote.relname, column),
			 errhint(REPL_ML_SAME_VERSION_HINT)));
	return NULL;				/* keep the compiler quiet */
}

/*
 * Called by change.c and copy/rows.c with each row of the group's list of
 * tables that comes from a peer, before it is joined.  If it says that another
 * node has added a table which this one has added by itself, neither has
 * copied from the other: rows that were in it before are then written anew
 * here, once, as pending_tables() says, and the other node does the same, so
 * that all meet.
 */
void
repl_ml_relation_meet(TupleTableSlot *listed)
{
	Oid			types[4] = {NAMEOID, NAMEOID, TEXTOID, INT4OID};
	Datum		values[4];

	/* schema_name, table_name, state, enrolled_by */
	slot_getsomeattrs(listed, lengthof(values));
	for (int i = 0; i < lengthof(values); i++)
	{
		if (listed->tts_isnull[i])
			return;
		values[i] = listed->tts_values[i];
	}
	repl_ml_spi_execute("SELECT repl_ml.meet_table($1, $2, $3, $4)", 4, types, values, NULL);
}

/* Says whether the table's rows stand for deletions. */
bool
repl_ml_relation_is_of_tombstones(ReplMlRemoteTable *table)
{
	return strcmp(table->remote.nspname, REPL_ML_SCHEMA) == 0 &&
		strcmp(table->remote.relname, "tombstone") == 0;
}
