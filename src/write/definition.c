/*
 * definition.c
 *		What a transaction has done to the definitions of replicated tables:
 *		looked at before it commits.
 *
 * Many statements can take a table's primary key or our triggers away, and what
 * they do may be put right by the next one (a key that is dropped and added
 * anew).  So guard.c only notes which tables a statement may have changed, and
 * at the end of the transaction, in the backend that ran it, each of them has
 * to be one that can be replicated; otherwise the transaction fails.  Where the
 * key is another one than before, what is stored under the former follows
 * (row/shape.c, row/version.c).
 *
 * The table is locked by whoever changed it.
 */
#include "postgres.h"

#include "access/relation.h"
#include "access/xact.h"
#include "catalog/pg_class.h"
#include "commands/trigger.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

#include "compat.h"
#include "row/row.h"
#include "server/server.h"
#include "write/write.h"

#define OUR_TRIGGERS	5		/* as repl_ml.enrol makes them */

/* OIDs of the tables this transaction may have changed; in TopTransactionContext. */
static List *changed = NIL;

static void on_xact_event(XactEvent event, void *arg);
static void check(Oid relid);
static void rekey(Relation rel);
static void check_key(Relation rel);
static void check_triggers(Relation rel);
static void refuse(Relation rel, const char *why, const char *remedy);

/* Installs the callback; to be called after commit.c's, which it has to precede. */
void
repl_ml_definition_init(void)
{
	RegisterXactCallback(on_xact_event, NULL);
}

/* Notes that the transaction may have changed the definition of a replicated table. */
void
repl_ml_definition_note(Oid relid)
{
	MemoryContext old = MemoryContextSwitchTo(TopTransactionContext);

	changed = list_append_unique_oid(changed, relid);
	MemoryContextSwitchTo(old);
}

static void
on_xact_event(XactEvent event, void *arg)
{
	ListCell   *lc;

	switch (event)
	{
		case XACT_EVENT_PRE_COMMIT:
		case XACT_EVENT_PRE_PREPARE:
			if (changed == NIL)
				return;
			PushActiveSnapshot(GetTransactionSnapshot());
			foreach(lc, changed)
				check(lfirst_oid(lc));
			PopActiveSnapshot();
			break;
		case XACT_EVENT_COMMIT:
		case XACT_EVENT_PREPARE:
		case XACT_EVENT_ABORT:
			changed = NIL;
			break;
		default:
			break;
	}
}

/* An error if the table is replicated still and cannot be. */
static void
check(Oid relid)
{
	Relation	rel;
	ReplMlTable *table;

	if (!repl_ml_guard_is_replicated(relid))
		return;
	rel = try_relation_open(relid, AccessShareLock);
	if (rel == NULL)
		return;
	check_key(rel);
	check_triggers(rel);
	if (rel->rd_rel->relreplident == REPLICA_IDENTITY_NOTHING)
		refuse(rel, "has to have a replica identity", "REPLICA IDENTITY DEFAULT");
	if (rel->rd_rel->relrowsecurity && rel->rd_rel->relforcerowsecurity)
		refuse(rel, "cannot have row-level security for its owner", "NO FORCE ROW LEVEL SECURITY");
	table = repl_ml_table_get(rel);
	if (!table->key_listed)
	{
		repl_ml_shape_list(table);
		rekey(rel);
	}
	relation_close(rel, NoLock);
}

/* Stored versions follow their rows to the new key; reading them runs code of the table's owner. */
static void
rekey(Relation rel)
{
	ReplMlUser	saved;

	repl_ml_become_owner(rel, &saved);
	repl_ml_version_rekey(repl_ml_table_get(rel), RelationGetDescr(rel));
	repl_ml_become_self(&saved);
}

/* A row is its key: there has to be one that every row has, at every moment. */
static void
check_key(Relation rel)
{
	Oid			key = RelationGetPrimaryKeyIndex_compat(rel);
	Relation	index;

	if (!OidIsValid(key))
		refuse(rel, "has to have a primary key that is not deferrable", "ADD PRIMARY KEY (...)");
	index = RelationIdGetRelation(key);
	if (index == NULL)
		elog(ERROR, "could not open index with OID %u", key);
	for (int i = 0; i < IndexRelationGetNumberOfKeyAttributes(index); i++)
	{
		if (TupleDescAttr(RelationGetDescr(rel), index->rd_index->indkey.values[i] - 1)->attgenerated != '\0')
			refuse(rel, "cannot have a generated column in its primary key", "ADD PRIMARY KEY (...) with other columns");
	}
	RelationClose(index);
}

/* Without one of them the other nodes would not learn of changes. */
static void
check_triggers(Relation rel)
{
	int			count = 0;

	for (int i = 0; rel->trigdesc != NULL && i < rel->trigdesc->numtriggers; i++)
	{
		Trigger    *trigger = &rel->trigdesc->triggers[i];

		if (trigger->tgenabled == TRIGGER_FIRES_ALWAYS && get_func_namespace(trigger->tgfoid) == repl_ml_schema_oid())
			count++;
	}
	if (count < OUR_TRIGGERS)
		refuse(rel, "has to keep the triggers of repl_ml", NULL);
}

static void
refuse(Relation rel, const char *why, const char *remedy)
{
	char	   *name = quote_qualified_identifier(get_namespace_name(RelationGetNamespace(rel)), RelationGetRelationName(rel));
	const char *removal = psprintf("SELECT repl_ml.remove_table(%s)", quote_literal_cstr(name));

	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("replicated table \"%s\" %s", RelationGetRelationName(rel), why),
			 remedy == NULL ? errhint("To stop replicating the table, run %s.", removal) :
			 errhint("Run ALTER TABLE %s %s in the same statement or transaction, and the same on all nodes; or run %s first.",
					 name, remedy, removal)));
}
