/*
 * own.c
 *		What repl_ml itself stands on in a member of a group stays as it is: its
 *		publication, its tables, the extension, the database.
 *
 * Statements that name one of them are refused.  What goes because something
 * else does (a table with its schema or its owner, anything with the extension)
 * is caught by the object access hook, which also notes what may take a
 * replicated table's key or our triggers away, for who judges it when the
 * transaction commits (definition.c).  Where the library was not there to refuse
 * a change of the publication, the supervisor mends it.
 *
 * Not here: statements about users' tables (guard.c).  Runs in backends, also
 * where the library is not preloaded.  Takes the locks of catalogs it reads.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "catalog/index.h"
#include "catalog/namespace.h"
#include "catalog/objectaccess.h"
#include "catalog/pg_constraint.h"
#include "catalog/pg_publication.h"
#include "catalog/pg_publication_rel.h"
#include "catalog/pg_trigger.h"
#include "commands/dbcommands.h"
#include "commands/extension.h"
#include "commands/trigger.h"
#include "miscadmin.h"
#include "nodes/parsenodes.h"
#include "replication/logicalworker.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/syscache.h"

#include "commit/commit.h"
#include "compat.h"
#include "row/row.h"
#include "server/server.h"
#include "write/write.h"

static object_access_hook_type previous_access_hook = NULL;

static void check_access(ObjectAccessType access, Oid class_id, Oid object, int sub_id, void *arg);
static void check_object_drop(Oid class_id, Oid object, int sub_id);
static Oid	get_constraint_relation(Oid constraint);
static Oid	get_trigger_relation(Oid trigger);
static void check_unpublish(Oid membership);
static void refuse_publication_change(void);
static void check_drop_extension(DropStmt *stmt);
static void check_drop_publication(DropStmt *stmt);
static bool is_harmless(AlterTableType subtype);

/* Called by _PG_init: installs the hook. */
void
repl_ml_own_init(void)
{
	previous_access_hook = object_access_hook;
	object_access_hook = check_access;
}

/*
 * The object access hook.  Something is about to be dropped, perhaps because
 * something else is: a table that goes with its schema first leaves its
 * publications.  Or a publication gets another name or owner, or a sequence another name.
 */
static void
check_access(ObjectAccessType access, Oid class_id, Oid object, int sub_id, void *arg)
{
	if (previous_access_hook)
		previous_access_hook(access, class_id, object, sub_id, arg);
	if (repl_ml_guard_off || (access != OAT_DROP && access != OAT_POST_ALTER) ||
		!OidIsValid(repl_ml_schema_oid()))
		return;
	if (access == OAT_DROP && repl_ml_identity()->member)
		check_object_drop(class_id, object, sub_id);
	if (access == OAT_POST_ALTER && class_id == RelationRelationId && sub_id == 0 &&
		get_rel_relkind(object) == RELKIND_SEQUENCE && repl_ml_shared != NULL)
		repl_ml_definition_note_sequence(object);
	if (class_id == PublicationRelationId && object == repl_ml_own_publication())
		refuse_publication_change();
}

/*
 * Refuses a drop, or notes it if what is dropped may be of a replicated table,
 * which has to keep its key and our triggers.
 */
static void
check_object_drop(Oid class_id, Oid object, int sub_id)
{
	switch (class_id)
	{
		case PublicationRelRelationId:
			check_unpublish(object);
			break;
		case ConstraintRelationId:
			repl_ml_definition_note(get_constraint_relation(object));
			break;
		case TriggerRelationId:
			repl_ml_definition_note(get_trigger_relation(object));
			break;
		case RelationRelationId:
			if (sub_id > 0 && repl_ml_schema_change_runs() && repl_ml_guard_is_replicated(object))
				repl_ml_outcome_note_column(object, sub_id);
			/* a column, or an index */
			if (sub_id == 0 && get_rel_relkind(object) != RELKIND_RELATION)
				object = IndexGetRelation(object, true);
			repl_ml_definition_note(object);
			break;
		default:
			break;
	}
}

/* Returns the table that a constraint is one of; invalid for a domain's. */
static Oid
get_constraint_relation(Oid constraint)
{
	HeapTuple	tuple = SearchSysCache1(CONSTROID, ObjectIdGetDatum(constraint));
	Oid			relid = InvalidOid;

	if (HeapTupleIsValid(tuple))
	{
		relid = ((Form_pg_constraint) GETSTRUCT(tuple))->conrelid;
		ReleaseSysCache(tuple);
	}
	return relid;
}

/* Returns the table that a trigger is on. */
static Oid
get_trigger_relation(Oid trigger)
{
	Relation	rel = table_open(TriggerRelationId, AccessShareLock);
	Oid			relid = InvalidOid;
	ScanKeyData key;
	SysScanDesc scan;
	HeapTuple	tuple;

	ScanKeyInit(&key, Anum_pg_trigger_oid, BTEqualStrategyNumber, F_OIDEQ,
				ObjectIdGetDatum(trigger));
	scan = systable_beginscan(rel, TriggerOidIndexId, true, NULL, 1, &key);
	tuple = systable_getnext(scan);
	if (HeapTupleIsValid(tuple))
		relid = ((Form_pg_trigger) GETSTRUCT(tuple))->tgrelid;
	systable_endscan(scan);
	table_close(rel, AccessShareLock);
	return relid;
}

/*
 * Refuses that a table leaves the group's publication but by our own
 * functions.
 */
static void
check_unpublish(Oid membership)
{
	HeapTuple	tuple = SearchSysCache1(PUBLICATIONREL, ObjectIdGetDatum(membership));
	Oid			relid;
	Oid			publication;

	if (!HeapTupleIsValid(tuple))
		return;
	relid = ((Form_pg_publication_rel) GETSTRUCT(tuple))->prrelid;
	publication = ((Form_pg_publication_rel) GETSTRUCT(tuple))->prpubid;
	ReleaseSysCache(tuple);
	if (publication != repl_ml_own_publication())
		return;

	/* our own tables are in it, too, and go with the extension */
	if (get_rel_namespace(relid) == repl_ml_schema_oid())
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("this database is a member of a repl_ml group and needs what is being "
						"dropped"),
				 errhint("Run SELECT repl_ml.leave_group() first.")));
	if (repl_ml_schema_change_runs())
	{
		repl_ml_outcome_note_drop(relid);
		return;
	}
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("table \"%s\" is replicated and cannot be dropped or taken out of its "
					"publication", get_rel_name(relid)),
			 errhint("Run SELECT repl_ml.remove_table(%s), which all nodes follow, then drop it on "
					 "each node.",
					 quote_literal_cstr(repl_ml_guard_table_name(relid)))));
}

/*
 * Returns the publication of the group; invalid where there is none, as in a
 * restored dump.
 */
Oid
repl_ml_own_publication(void)
{
	return repl_ml_identity()->member ? get_publication_oid(REPL_ML_PUBLICATION, true) : InvalidOid;
}

/*
 * Raises the error for a change of the group's publication: changes that were
 * made while it is another one are lost to the peers, or end their streams.
 */
static void
refuse_publication_change(void)
{
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("publication \"%s\" must stay as it is in a member of a group",
					REPL_ML_PUBLICATION),
			 errdetail("The other members read this node's changes through it."),
			 errhint("Choose tables with repl_ml.add_table and repl_ml.remove_table; make a "
					 "publication of another name for other subscribers.")));
}

/* Refuses ALTER PUBLICATION of the group's. */
void
repl_ml_own_check_publication(AlterPublicationStmt *stmt)
{
	if (strcmp(stmt->pubname, REPL_ML_PUBLICATION) == 0 && !repl_ml_guard_off &&
		OidIsValid(repl_ml_own_publication()))
		refuse_publication_change();
}

/*
 * Called by guard.c: refuses DROP of the extension, also by our own functions,
 * and of the publication.
 */
void
repl_ml_own_check_drop(DropStmt *stmt)
{
	if (stmt->removeType == OBJECT_EXTENSION || stmt->removeType == OBJECT_SCHEMA)
		check_drop_extension(stmt);
	if (stmt->removeType == OBJECT_PUBLICATION && !repl_ml_guard_off)
		check_drop_publication(stmt);
}

/*
 * Refuses DROP EXTENSION in a member: with CASCADE it would lose its clocks,
 * and the others a member they wait for.
 */
static void
check_drop_extension(DropStmt *stmt)
{
	const ReplMlIdentity *self = repl_ml_identity();
	ListCell   *lc;

	foreach(lc, stmt->objects)
	{
		if (!self->member || strcmp(strVal(lfirst(lc)), REPL_ML_SCHEMA) != 0)
			continue;
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("extension \"%s\" cannot be dropped from a member of a group",
						REPL_ML_SCHEMA),
				 errdetail("This database is node \"%s\" of group \"%s\".",
						   NameStr(self->node_name), NameStr(self->group_name)),
				 errhint("Run SELECT repl_ml.leave_group() first.")));
	}
}

/*
 * Refuses DROP PUBLICATION of the group's, before the access hook meets the
 * first of its tables, and speaks of that.
 */
static void
check_drop_publication(DropStmt *stmt)
{
	ListCell   *lc;

	foreach(lc, stmt->objects)
	{
		if (strcmp(strVal(lfirst(lc)), REPL_ML_PUBLICATION) == 0 &&
			OidIsValid(repl_ml_own_publication()))
			refuse_publication_change();
	}
}

/*
 * Raises an error if it is one of the extension's own tables in a member, and
 * somebody else than the extension is at it.
 */
void
repl_ml_own_check_table(RangeVar *range)
{
	Oid			relid = RangeVarGetRelid(range, NoLock, true);

	if (repl_ml_guard_off || creating_extension || !OidIsValid(relid) ||
		get_rel_namespace(relid) != repl_ml_schema_oid() || !repl_ml_identity()->member)
		return;
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("table \"%s.%s\" must stay as it is in a member of a group", REPL_ML_SCHEMA,
					get_rel_name(relid)),
			 errdetail("The nodes work with it."),
			 errhint("Run SELECT repl_ml.leave_group() first.")));
}

/* Called by guard.c: refuses what ALTER TABLE would do to our own tables. */
void
repl_ml_own_check_alter(AlterTableStmt *stmt)
{
	ListCell   *lc;

	if (stmt->objtype != OBJECT_TABLE)
		return;
	foreach(lc, stmt->cmds)
	{
		if (!is_harmless(lfirst_node(AlterTableCmd, lc)->subtype))
			repl_ml_own_check_table(stmt->relation);
	}
}

/*
 * Says whether the change is one that the extension's own tables may have:
 * where and how they are stored, and whose they are.
 */
static bool
is_harmless(AlterTableType subtype)
{
	switch (subtype)
	{
		case AT_ChangeOwner:
		case AT_SetRelOptions:
		case AT_ResetRelOptions:
		case AT_SetStatistics:
		case AT_SetTableSpace:
			return true;
		default:
			return false;
	}
}

/*
 * Refuses to take a member's tables of ours out of the extension: pg_dump and
 * these guards know them by that.
 */
void
repl_ml_own_check_extension(AlterExtensionContentsStmt *stmt)
{
	if (repl_ml_guard_off || strcmp(stmt->extname, "repl_ml") != 0 ||
		!OidIsValid(repl_ml_own_publication()))
		return;
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("extension \"%s\" must stay as it is in a member of a group", stmt->extname),
			 errhint("Run SELECT repl_ml.leave_group() first.")));
}

/*
 * Refuses DROP DATABASE of a member but with FORCE, and while peers read from
 * it: core would say that it is in use, and nothing of the way out.
 */
void
repl_ml_own_check_database(DropdbStmt *stmt)
{
	Oid			database = get_database_oid(stmt->dbname, true);
	bool		force = false;
	ListCell   *lc;

	foreach(lc, stmt->options)
		force |= strcmp(((DefElem *) lfirst(lc))->defname, "force") == 0;
	if (!OidIsValid(database) || !repl_ml_shmem_is_member(database) ||
		(force && !repl_ml_members_is_served(database)))
		return;
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_IN_USE),
			 errmsg("database \"%s\" is a member of a repl_ml group", stmt->dbname),
			 force ? errdetail("Other members read from it.") : 0,
			 errhint("Connect to it and run SELECT repl_ml.leave_group(), or SELECT "
					 "repl_ml.leave_group(force => true) if no other member can be reached.")));
}

PG_FUNCTION_INFO_V1(repl_ml_refuse_subscription);

/*
 * Refuses, in a member, a row of those of our tables that pg_dump saves which a
 * client has not just written through our functions: it is of another group, or
 * of an older time of this one, and would go to all members.
 */
static void
refuse_restored_row(TriggerData *trigdata)
{
	Relation	rel = trigdata->tg_relation;
	const char *name = RelationGetRelationName(rel);
	const ReplMlClock *clock;
	bool		isnull;
	Datum		value;

	if (MyBackendType != B_BACKEND || !TRIGGER_FIRED_BY_INSERT(trigdata->tg_event) ||
		(strcmp(name, "replicated_table") != 0 && strcmp(name, "conflict_policy") != 0) ||
		!OidIsValid(repl_ml_own_publication()))
		return;
	value = heap_getattr(trigdata->tg_trigtuple, get_attnum(RelationGetRelid(rel),
															REPL_ML_CLOCK_COLUMN),
						 RelationGetDescr(rel), &isnull);
	clock = isnull ? NULL : (ReplMlClock *) PG_DETOAST_DATUM(value);
	if (clock != NULL && repl_ml_clock_is_whole(clock) && repl_ml_clock_count(clock) == 1 &&
		repl_ml_ticker_issued_here(repl_ml_clock_entry(clock, 0).counter))
		return;
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("rows of \"%s.%s\" cannot be restored into a member of a group",
					REPL_ML_SCHEMA, name),
			 errdetail("They list the tables and rules of the group that was dumped."),
			 errhint("Restore the other tables only, and run SELECT repl_ml.add_table(...), or "
					 "restore into an empty database and run SELECT repl_ml.create_group(...) "
					 "there.")));
}

/*
 * Refuses a row that has a statement run by other members, or here, with the rights of whoever
 * it names, unless the extension writes it, or a superuser: who may write all tables would be
 * anybody by it.
 */
static void
refuse_forged_change(TriggerData *trigdata)
{
	Relation	rel = trigdata->tg_relation;
	const char *name = RelationGetRelationName(rel);
	HeapTuple	row = TRIGGER_FIRED_BY_UPDATE(trigdata->tg_event) ? trigdata->tg_newtuple :
		trigdata->tg_trigtuple;

	if (superuser())
		return;
	if (strcmp(name, "parked_change") == 0)
	{
		AttrNumber	attnum = get_attnum(RelationGetRelid(rel), "table_name");
		bool		isnull;
		Datum		value = heap_getattr(row, attnum, RelationGetDescr(rel), &isnull);

		if (isnull || strcmp(NameStr(*DatumGetName(value)), "schema_change") != 0)
			return;
	}
	else if (strcmp(name, "schema_change") != 0 && strcmp(name, "bulk_piece") != 0)
		return;
	ereport(ERROR,
			(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
			 errmsg("permission denied for table %s", name),
			 errdetail("Its rows are run as statements, with the rights of others."),
			 errhint("Leave it to the extension; a superuser may write it.")));
}

/*
 * repl_ml.refuse_subscription(), a trigger of the extension's own tables:
 * refuses what a subscription of core's brings, and in a member what a dump
 * does.  What these tables say is of this node and its group; a publication FOR
 * ALL TABLES of a member has them, too.
 */
Datum
repl_ml_refuse_subscription(PG_FUNCTION_ARGS)
{
	TriggerData *trigdata = (TriggerData *) fcinfo->context;

	if (!CALLED_AS_TRIGGER(fcinfo))
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("function \"%s\" must be called as a trigger", "refuse_subscription"),
				 errhint("Leave it to the triggers that repl_ml has made.")));
	if (IsLogicalWorker())
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("table \"%s.%s\" cannot be written by a subscription", REPL_ML_SCHEMA,
						RelationGetRelationName(trigdata->tg_relation)),
				 errdetail("It belongs to this database and its group; the publication has the "
						   "publisher's."),
				 errhint("On the publisher make a publication of the tables you mean, or FOR "
						 "TABLES IN SCHEMA, instead of one FOR ALL TABLES.")));
	refuse_restored_row(trigdata);
	refuse_forged_change(trigdata);
	return PointerGetDatum(TRIGGER_FIRED_BY_UPDATE(trigdata->tg_event) ? trigdata->tg_newtuple :
						   trigdata->tg_trigtuple);
}
