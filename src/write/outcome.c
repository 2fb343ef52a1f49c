/*
 * outcome.c
 *		What a change of the schema has made of the tables that the group replicates.
 *
 * A table that it has created, or given a primary key, is the group's then; what is known of
 * one that it has dropped is forgotten; one that has another name now is known by that.  The
 * node that ran the statement tells the others by the group's list, in the same transaction;
 * what each node keeps for itself follows when it runs the statement.
 *
 * Rows that come under a former name (their node has not run the change yet) find the table by
 * the list (row/table.c).
 *
 * Called by schema_change.c, and by apply/schema_change.c for a peer's change; guard.c and own.c
 * tell of what is dropped and renamed.  Locks: those of the statement.
 */
#include "postgres.h"

#include "access/relation.h"
#include "access/table.h"
#include "catalog/index.h"
#include "catalog/namespace.h"
#include "catalog/pg_authid.h"
#include "catalog/pg_class.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "nodes/parsenodes.h"
#include "replication/origin.h"
#include "utils/builtins.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/ruleutils.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"

#include "compat.h"
#include "row/row.h"
#include "server/server.h"
#include "write/write.h"

/* A replicated table that is about to be dropped, or to have another name. */
typedef struct Former
{
	Oid			relid;
	char	   *schema_name;
	char	   *table_name;
} Former;

/* Of the change that runs; written by begin and the notes, in a context of its transaction. */
static bool had_key = false;	/* the table that it alters; of a client's */
static List *dropped = NIL;		/* of Former * */
static List *renamed = NIL;
static List *detached = NIL;	/* with the names of their roots */
static List *columns = NIL;		/* identities of those that it has dropped */

static bool has_key(Node *stmt);
static Oid	get_altered(Node *stmt);
static List *add_former(List *list, Oid relid);
static void follow_renamed(const Former *former, int64 number);
static void keep_detached(const Former *former, int64 number);
static void take_in_named(RangeVar *range, int64 number, bool strong);
static void take_in_table(Oid relid, int64 number, bool strong);

/* Called before a change is run, here or by who applies it. */
void
repl_ml_outcome_begin(Node *stmt)
{
	dropped = renamed = detached = columns = NIL;
	had_key = has_key(stmt);
}

/* Says whether the statement alters a table that has a primary key already. */
static bool
has_key(Node *stmt)
{
	Oid			relid = get_altered(stmt);
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

/*
 * Returns the table that the statement alters, also by its index: a partitioned table has its
 * key when its partitions' have been attached to that, as dumps do; invalid if it alters none.
 */
static Oid
get_altered(Node *stmt)
{
	Oid			relid = IsA(stmt, AlterTableStmt) ?
		RangeVarGetRelid(((AlterTableStmt *) stmt)->relation, NoLock, true) : InvalidOid;

	if (!OidIsValid(relid) || get_rel_relkind(relid) != RELKIND_PARTITIONED_INDEX)
		return relid;
	relid = IndexGetRelation(relid, true);
	/* core does not say so when an index becomes valid */
	if (OidIsValid(relid))
		CacheInvalidateRelcacheByRelid(relid);
	CommandCounterIncrement();
	return relid;
}

/* Called by own.c: a replicated table is about to be dropped by the change that runs. */
void
repl_ml_outcome_note_drop(Oid relid)
{
	dropped = add_former(dropped, relid);
}

/* Called by guard.c: a replicated table is about to get another name, or its schema is. */
void
repl_ml_outcome_note_rename(Oid relid)
{
	renamed = add_former(renamed, relid);
}

/*
 * Called by guard.c: an empty table is about to become a partition of a replicated one.  It gets
 * a clock; one that is replicated by itself no longer is, and is known as its root.
 */
void
repl_ml_outcome_note_partition(Oid relid, Oid root)
{
	Oid			types[1] = {REGCLASSOID};
	Datum		values[1] = {ObjectIdGetDatum(relid)};
	Oid			user;
	int			context;

	if (repl_ml_guard_is_replicated(relid))
	{
		renamed = add_former(renamed, relid);
		((Former *) llast(renamed))->relid = root;
	}
	GetUserIdAndSecContext(&user, &context);
	SetUserIdAndSecContext(BOOTSTRAP_SUPERUSERID, context | SECURITY_LOCAL_USERID_CHANGE);
	repl_ml_spi_execute("SELECT repl_ml.prepare_partition($1)", 1, types, values, NULL);
	SetUserIdAndSecContext(user, context);
	CommandCounterIncrement();
}

/* Called by guard.c: a partition of a replicated table is about to be a table by itself. */
void
repl_ml_outcome_note_detach(Oid relid, Oid root)
{
	detached = add_former(detached, root);
	((Former *) llast(detached))->relid = relid;
}

/* Called by own.c: a column of a replicated table is dropped by the change that runs. */
void
repl_ml_outcome_note_column(Oid relid, AttrNumber attnum)
{
	MemoryContext old = MemoryContextSwitchTo(TopTransactionContext);

	columns = lappend(columns, repl_ml_column_identity(relid, attnum));
	MemoryContextSwitchTo(old);
}

/* Called by filled.c: returns the identities of columns that the change has dropped. */
List *
repl_ml_outcome_columns(void)
{
	return columns;
}

/* Adds the table with the names that it has now; lives as long as the transaction. */
static List *
add_former(List *list, Oid relid)
{
	MemoryContext old = MemoryContextSwitchTo(TopTransactionContext);
	Former	   *former = palloc(sizeof(Former));

	former->relid = relid;
	former->schema_name = get_namespace_name(get_rel_namespace(relid));
	former->table_name = get_rel_name(relid);
	list = lappend(list, former);
	MemoryContextSwitchTo(old);
	return list;
}

/*
 * Called when the change with this number has been run, with the extension's rights: forgets
 * what this node knows of replicated tables that it has dropped, and knows others by their new
 * names; the node that made the change also changes the group's list, which the others get.
 */
void
repl_ml_outcome_follow(int64 number)
{
	Oid			types[3] = {TEXTOID, TEXTOID, BOOLOID};
	ListCell   *lc;

	foreach(lc, dropped)
	{
		Former	   *former = lfirst(lc);
		Datum		values[3] = {CStringGetTextDatum(former->schema_name),
		CStringGetTextDatum(former->table_name), BoolGetDatum(!repl_ml_applying)};

		repl_ml_spi_execute("SELECT repl_ml.forget_table($1::pg_catalog.name,"
							" $2::pg_catalog.name, $3)", 3, types, values, NULL);
	}
	foreach(lc, renamed)
		follow_renamed(lfirst(lc), number);
	foreach(lc, detached)
		keep_detached(lfirst(lc), number);
	dropped = renamed = detached = columns = NIL;
}

/*
 * Has everything that names the table name it as it is now.  What this node keeps for itself
 * is written as what comes from peers is: it is sent to none, and keeps its clocks.
 */
static void
follow_renamed(const Former *former, int64 number)
{
	Oid			types[5] = {TEXTOID, TEXTOID, TEXTOID, TEXTOID, INT8OID};
	char	   *schema_name = get_namespace_name(get_rel_namespace(former->relid));
	char	   *table_name = get_rel_name(former->relid);
	bool		applying = repl_ml_applying;
	RepOriginId origin = replorigin_session_origin;
	Datum		values[5];

	/* IF EXISTS, or to the name that it had */
	if (schema_name == NULL || table_name == NULL ||
		(strcmp(schema_name, former->schema_name) == 0 &&
		 strcmp(table_name, former->table_name) == 0))
		return;
	values[0] = CStringGetTextDatum(former->schema_name);
	values[1] = CStringGetTextDatum(former->table_name);
	values[2] = CStringGetTextDatum(schema_name);
	values[3] = CStringGetTextDatum(table_name);
	values[4] = Int64GetDatum(number);
	if (!applying)
	{
		repl_ml_spi_execute("SELECT repl_ml.list_as_renamed($1::pg_catalog.name,"
							" $2::pg_catalog.name, $3::pg_catalog.name,"
							" $4::pg_catalog.name, $5, NULL)", 5, types, values, NULL);
		replorigin_session_origin = DoNotReplicateId;
	}
	repl_ml_applying = true;
	PG_TRY();
	{
		repl_ml_spi_execute("SELECT repl_ml.rename_table($1::pg_catalog.name,"
							" $2::pg_catalog.name, $3::pg_catalog.name,"
							" $4::pg_catalog.name, $5)", 5, types, values, NULL);
	}
	PG_FINALLY();
	{
		repl_ml_applying = applying;
		replorigin_session_origin = origin;
	}
	PG_END_TRY();
	CacheInvalidateRelcacheByRelid(repl_ml_catalog_oid("conflict_policy"));
}

/* Has a table replicated that was a partition: all nodes have its rows, with their clocks. */
static void
keep_detached(const Former *former, int64 number)
{
	Oid			types[5] = {REGCLASSOID, TEXTOID, TEXTOID, INT8OID, TEXTOID};
	Datum		values[5] = {ObjectIdGetDatum(former->relid),
		CStringGetTextDatum(former->schema_name), CStringGetTextDatum(former->table_name),
	Int64GetDatum(number), CStringGetTextDatum("{}")};

	if (!SearchSysCacheExists1(RELOID, ObjectIdGetDatum(former->relid)) ||
		get_rel_relispartition(former->relid))
		return;
	repl_ml_spi_execute("SELECT repl_ml.keep_detached($1, $2::pg_catalog.name,"
						" $3::pg_catalog.name, $4, $5)", 5, types, values,
						repl_ml_applying ? NULL : "    n");
}

/*
 * Called by schema_change.c: returns the statement by which others make the table that CREATE
 * TABLE AS has made here: the query may give something else there.  NULL if there was one
 * already.
 */
char *
repl_ml_outcome_describe(CreateTableAsStmt *stmt)
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

/*
 * Called by schema_change.c on the node that ran the statement, with the extension's rights: has
 * the tables replicated that it may have made ready for it.
 */
void
repl_ml_outcome_take_in(Node *stmt, int64 number, bool strong)
{
	ListCell   *lc;

	if (IsA(stmt, CreateStmt))
		take_in_named(((CreateStmt *) stmt)->relation, number, strong);
	else if (IsA(stmt, CreateTableAsStmt) && ((CreateTableAsStmt *) stmt)->objtype == OBJECT_TABLE)
		take_in_named(((CreateTableAsStmt *) stmt)->into->rel, number, strong);
	else if (IsA(stmt, AlterTableStmt) && !had_key && has_key(stmt))
		take_in_table(get_altered(stmt), number, strong);
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
				take_in_named(range, number, strong);
		}
	}
}

/* Has the table of that name replicated. */
static void
take_in_named(RangeVar *range, int64 number, bool strong)
{
	take_in_table(RangeVarGetRelid(range, NoLock, true), number, strong);
}

/*
 * Has a table replicated, if it can be and is not; a warning says why it cannot.  Rows that it
 * has are written anew, so that they travel behind the change.
 */
static void
take_in_table(Oid relid, int64 number, bool strong)
{
	Oid			types[3] = {REGCLASSOID, INT8OID, TEXTOID};
	Datum		values[3] = {ObjectIdGetDatum(relid), Int64GetDatum(number),
	CStringGetTextDatum(strong ? "strong" : "eventual")};
	bool		taken;

	if (!OidIsValid(relid) || get_rel_relispartition(relid) || repl_ml_guard_is_replicated(relid))
		return;
	PushActiveSnapshot(GetTransactionSnapshot());
	SPI_connect();
	if (SPI_execute_with_args("SELECT repl_ml.take_in($1, $2, $3)", 3, types, values, NULL,
							  false, 1) < 0)
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
}
