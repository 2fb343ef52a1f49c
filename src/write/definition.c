/*
 * definition.c
 *		What a transaction has done to the definitions of replicated tables:
 *		looked at before it commits.
 *
 * Many statements can take a table's primary key or our triggers away, and what
 * they do may be put right by the next one (a key that is dropped and added
 * anew).  So guard.c and own.c only note which tables may have been changed, and
 * at the end of the transaction, in the backend that ran it, each of them has
 * to be one that can be replicated; otherwise the transaction fails.  Where the
 * key is another one than before, what is stored under the former follows
 * (row/shape.c, row/version.c).
 *
 * Sequences that its columns own now join the group's list there, and one that has another
 * name stays on it.
 *
 * Not here: which statements these are (guard.c, own.c).  The table is locked by whoever
 * changed it.
 */
#include "postgres.h"

#include "access/relation.h"
#include "access/xact.h"
#include "catalog/dependency.h"
#include "catalog/pg_authid.h"
#include "catalog/pg_class.h"
#include "catalog/pg_type.h"
#include "commands/trigger.h"
#include "miscadmin.h"
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

/* Sequences of the group that it may have renamed, as they are known; in TopTransactionContext. */
static List *renamed = NIL;

static void watch_transaction(XactEvent event, void *arg);
static void check_table(Oid relid);
static void share_sequences(Relation rel);
static void tell_name(const ReplMlNumbers *numbers);
static void run_for_list(const char *sql, Oid *types, Datum *values, int count);
static void rekey_versions(Relation rel);
static void check_key(Relation rel);
static void check_triggers(Relation rel);
static void refuse_definition(Relation rel, const char *message, const char *remedy);

/*
 * Called by _PG_init, after commit.c's, whose callback this one has to
 * precede: installs the callback.
 */
void
repl_ml_definition_init(void)
{
	RegisterXactCallback(watch_transaction, NULL);
}

/*
 * Called by guard.c and own.c: has whoever commits the transaction look at the
 * table, or the one it is a partition of; nothing if it is not replicated.
 */
void
repl_ml_definition_note(Oid relid)
{
	MemoryContext old;

	if (!OidIsValid(relid))
		return;
	relid = repl_ml_table_root(relid);
	if (!repl_ml_guard_is_replicated(relid))
		return;
	old = MemoryContextSwitchTo(TopTransactionContext);
	changed = list_append_unique_oid(changed, relid);
	MemoryContextSwitchTo(old);
}

/*
 * Called by own.c before a sequence's new name or schema is seen: whoever commits the
 * transaction tells the group; nothing if it is not the group's.
 */
void
repl_ml_definition_note_sequence(Oid sequence)
{
	MemoryContext old;
	ReplMlNumbers *numbers;

	if (!repl_ml_range_known(sequence)->listed)
		return;
	old = MemoryContextSwitchTo(TopTransactionContext);
	numbers = palloc(sizeof(ReplMlNumbers));
	*numbers = *repl_ml_range_known(sequence);
	renamed = lappend(renamed, numbers);
	MemoryContextSwitchTo(old);
}

/*
 * A backend's callback: checks the tables before the transaction commits, and
 * forgets them at its end.
 */
static void
watch_transaction(XactEvent event, void *arg)
{
	ListCell   *lc;

	switch (event)
	{
		case XACT_EVENT_PRE_COMMIT:
		case XACT_EVENT_PRE_PREPARE:
			/* an error still takes everything back */
			if (changed == NIL && renamed == NIL)
				return;
			PushActiveSnapshot(GetTransactionSnapshot());
			foreach(lc, changed)
				check_table(lfirst_oid(lc));
			foreach(lc, renamed)
				tell_name(lfirst(lc));
			PopActiveSnapshot();
			break;
		case XACT_EVENT_COMMIT:
		case XACT_EVENT_PREPARE:
		case XACT_EVENT_ABORT:
			changed = NIL;
			renamed = NIL;
			break;
		default:
			break;
	}
}

/* Raises an error if the table is replicated still and cannot be. */
static void
check_table(Oid relid)
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
		refuse_definition(rel,
						  gettext_noop("replicated table \"%s\" has to have a replica identity"),
						  "REPLICA IDENTITY DEFAULT");
	if (rel->rd_rel->relrowsecurity && rel->rd_rel->relforcerowsecurity)
		refuse_definition(rel,
						  gettext_noop("replicated table \"%s\" cannot have row-level security "
									   "for its owner"),
						  "NO FORCE ROW LEVEL SECURITY");

	/* the key is another one: what is stored under the former follows */
	table = repl_ml_table_get(rel);
	if (!table->key_listed)
	{
		repl_ml_shape_list(table);
		rekey_versions(rel);
	}
	share_sequences(rel);
	relation_close(rel, NoLock);
}

/* Puts the sequences that the table's columns own on the group's list, if one is not there. */
static void
share_sequences(Relation rel)
{
	Datum		value = ObjectIdGetDatum(RelationGetRelid(rel));
	Oid			type = REGCLASSOID;
	ListCell   *lc;

	if (repl_ml_applying)
		return;
	foreach(lc, getOwnedSequences(RelationGetRelid(rel)))
	{
		if (!repl_ml_range_known(lfirst_oid(lc))->listed)
		{
			run_for_list("SELECT repl_ml.share_sequences($1)", &type, &value, 1);
			return;
		}
	}
}

/* Tells the group what a sequence of its list is called now. */
static void
tell_name(const ReplMlNumbers *numbers)
{
	Datum		values[3] = {
		NameGetDatum(&numbers->schema_name), NameGetDatum(&numbers->sequence_name),
		ObjectIdGetDatum(numbers->sequence)
	};
	Oid			types[3] = {NAMEOID, NAMEOID, OIDOID};

	run_for_list("SELECT repl_ml.rename_sequence($1, $2, $3)", types, values, 3);
}

/* Runs a statement about the group's list of sequences with the extension's rights. */
static void
run_for_list(const char *sql, Oid *types, Datum *values, int count)
{
	Oid			user;
	int			context;

	GetUserIdAndSecContext(&user, &context);
	SetUserIdAndSecContext(BOOTSTRAP_SUPERUSERID, context | SECURITY_LOCAL_USERID_CHANGE);
	(void) repl_ml_spi_execute(sql, count, types, values, NULL);
	SetUserIdAndSecContext(user, context);
}

/*
 * Makes stored versions follow their rows to the new key; reading them runs
 * code of the table's owner.
 */
static void
rekey_versions(Relation rel)
{
	ReplMlUser	saved;

	repl_ml_become_owner(rel, &saved);
	repl_ml_version_rekey(repl_ml_table_get(rel), RelationGetDescr(rel));
	repl_ml_become_self(&saved);
}

/*
 * Raises an error unless there is a key that every row has, at every moment: a
 * row is its key.
 */
static void
check_key(Relation rel)
{
	Oid			key = RelationGetPrimaryKeyIndex_compat(rel);
	Relation	index;

	if (!OidIsValid(key))
		refuse_definition(rel,
						  gettext_noop("replicated table \"%s\" has to have a primary key that "
									   "is not deferrable"),
						  "ADD PRIMARY KEY (...)");
	index = RelationIdGetRelation(key);
	if (index == NULL)
		elog(ERROR, "could not open index with OID %u", key);

	/* what is generated does not travel */
	for (int i = 0; i < IndexRelationGetNumberOfKeyAttributes(index); i++)
	{
		AttrNumber	attnum = index->rd_index->indkey.values[i];

		if (TupleDescAttr(RelationGetDescr(rel), attnum - 1)->attgenerated != '\0')
			refuse_definition(rel,
							  gettext_noop("replicated table \"%s\" cannot have a generated "
										   "column in its primary key"),
							  "ADD PRIMARY KEY (...) with other columns");
	}
	RelationClose(index);
}

/*
 * Raises an error unless our triggers are there: without one of them the other
 * nodes would not learn of changes.
 */
static void
check_triggers(Relation rel)
{
	int			count = 0;

	for (int i = 0; rel->trigdesc != NULL && i < rel->trigdesc->numtriggers; i++)
	{
		Trigger    *trigger = &rel->trigdesc->triggers[i];

		if (trigger->tgenabled == TRIGGER_FIRES_ALWAYS &&
			get_func_namespace(trigger->tgfoid) == repl_ml_schema_oid())
			count++;
	}
	if (count < OUR_TRIGGERS)
		refuse_definition(rel,
						  gettext_noop("replicated table \"%s\" has to keep the triggers of "
									   "repl_ml"), NULL);
}

/*
 * Raises the error that says why, with the table's name, and the remedy: what
 * ALTER TABLE has to do; NULL if there is none but to stop replicating it.
 */
static void
refuse_definition(Relation rel, const char *message, const char *remedy)
{
	char	   *name = quote_qualified_identifier(get_namespace_name(RelationGetNamespace(rel)),
												  RelationGetRelationName(rel));
	const char *removal = psprintf("SELECT repl_ml.remove_table(%s)", quote_literal_cstr(name));

	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg(message, RelationGetRelationName(rel)),
			 remedy == NULL ? errhint("To stop replicating the table, run %s.", removal) :
			 errhint("Run ALTER TABLE %s %s in the same statement or transaction, and the same on "
					 "all nodes; or run %s first.",
					 name, remedy, removal)));
}
