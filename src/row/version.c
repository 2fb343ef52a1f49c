/*
 * version.c
 *		Concurrent versions of a row: repl_ml.concurrent_version.
 *
 * A row that was resolved from versions of which none knew another can only
 * be resolved again, when one more arrives, from these versions themselves:
 * who joined two of them first must come to the same end as who joined them
 * last.  So they are kept beside the row, each as its writer left it, with
 * the columns as text under fixed settings.
 *
 * What is stored for a key counts only as long as the greatest of its dots is
 * that of the row's clock: any later write knows them all, and makes them
 * stale.
 * Stale ones are replaced when the key has a conflict again, and go like the
 * others when no member can write without knowing them (group/supervisor.c).
 *
 * Columns go by their names, so versions follow when those of their table
 * become others (write/guard.c): renamed, without the values of dropped ones,
 * and removed where ALTER TABLE has computed the values of rows anew.
 *
 * Not here: which versions are concurrent (converge/conflict.c), what the row
 * becomes of them (converge/resolve.c).  Locks: callers hold the row's lock or,
 * where there is no row, the key's (repl_ml_version_lock), an advisory one of a
 * kind that users cannot take; it is held until the transaction ends.  Who
 * alters a table has that to itself.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/indexing.h"
#include "catalog/pg_type.h"
#include "executor/executor.h"
#include "miscadmin.h"
#include "storage/lock.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/datum.h"
#include "utils/fmgroids.h"
#include "utils/fmgrprotos.h"
#include "utils/lsyscache.h"
#include "utils/snapmgr.h"

#include "row/row.h"
#include "server/server.h"
#include "wire/wire.h"

#define VERSION_INDEX	"concurrent_version_key_hash_idx"

/* advisory locks of this kind: 1 and 2 are the users' */
#define KEY_LOCK_KIND	3

enum
{
	Anum_version_schema_name = 1,
	Anum_version_table_name,
	Anum_version_key,
	Anum_version_key_columns,
	Anum_version_key_hash,
	Anum_version_content,
	Anum_version_eviction,
	Anum_version_clock,
	Natts_version = Anum_version_clock
};

typedef bool (*VersionVisitor) (Relation rel, HeapTuple tuple, Datum *values, bool *nulls,
								void *argument);

/* A version under a key that the table no longer has. */
typedef struct StoredVersion
{
	HeapTuple	tuple;
	Datum		values[Natts_version];
	bool		nulls[Natts_version];
	bool		done;
} StoredVersion;

/* What load_version fills. */
typedef struct LoadState
{
	TupleDesc	desc;
	ReplMlVersions *versions;
} LoadState;

/* Which columns have other names now, see repl_ml_version_rename. */
typedef struct Renaming
{
	List	   *forgotten;
	const char *from;
	const char *to;
} Renaming;

static int	compare_versions(const void *a, const void *b);
static void visit_versions(ReplMlTable *table, Datum *key, LOCKMODE lockmode,
						   VersionVisitor visitor, void *argument);
static void visit_versions_of_table(Oid relid, VersionVisitor visitor, void *argument);
static bool is_named(const char *schema_name, const char *table_name, Datum *values);
static bool is_of_table(ReplMlTable *table, Datum *values);
static bool is_of_key(ReplMlTable *table, Datum *key, Datum *values);
static bool load_version(Relation rel, HeapTuple tuple, Datum *values, bool *nulls, void *argument);
static bool remove_version(Relation rel, HeapTuple tuple, Datum *values, bool *nulls,
						   void *argument);
static bool rename_version(Relation rel, HeapTuple tuple, Datum *values, bool *nulls,
						   void *argument);
static Datum rename_in_content(Datum content, const Renaming *renaming);
static void replace_content(Relation rel, HeapTuple tuple, Datum *values, bool *nulls,
							Datum content);
static void insert_version(ReplMlTable *table, Datum *key, Relation rel,
						   const ReplMlVersion *version);
static void rekey_row(ReplMlTable *table, TupleDesc desc, Relation rel, List *stale, int first);
static bool is_of_row(const StoredVersion *stored, const StoredVersion *of);
static bool find_present_key(ReplMlTable *table, TupleDesc desc, List *stale, int first,
							 Datum *key);

/*
 * Keeps other workers from joining versions of this key concurrently, until
 * the transaction ends.
 */
void
repl_ml_version_lock(ReplMlTable *table, Datum *key)
{
	uint64		hash = repl_ml_key_hash(table, key);
	LOCKTAG		tag;

	SET_LOCKTAG_ADVISORY(tag, MyDatabaseId, (uint32) (hash >> 32), (uint32) hash, KEY_LOCK_KIND);
	(void) LockAcquire(&tag, ExclusiveLock, false, false);
}

/*
 * Loads the versions that the row under this key, with clock "clock", was
 * resolved from; returns false if there are none: then the row is the only
 * version.  "desc" describes the rows.  Sorted by dot; everything is palloc'd.
 */
bool
repl_ml_version_load(ReplMlTable *table, Datum *key, TupleDesc desc, const ReplMlClock *clock,
					 ReplMlVersions *versions)
{
	LoadState	state = {.desc = desc,.versions = versions};
	ReplMlClockEntry last = repl_ml_clock_dot(clock);

	versions->count = 0;
	visit_versions(table, key, AccessShareLock, load_version, &state);
	if (versions->count > 1)
		qsort(versions->all, versions->count, sizeof(ReplMlVersion), compare_versions);
	if (versions->count > 0 && versions->all[versions->count - 1].dot.node == last.node &&
		versions->all[versions->count - 1].dot.counter == last.counter)
		return true;
	versions->count = 0;
	return false;
}

/* Orders versions, for qsort, by dot. */
static int
compare_versions(const void *a, const void *b)
{
	ReplMlClockEntry left = ((const ReplMlVersion *) a)->dot;
	ReplMlClockEntry right = ((const ReplMlVersion *) b)->dot;

	if (repl_ml_clock_dot_before(left, right))
		return -1;
	return repl_ml_clock_dot_before(right, left) ? 1 : 0;
}

/* Replaces what is stored for the key; one version alone is not stored. */
void
repl_ml_version_save(ReplMlTable *table, Datum *key, const ReplMlVersions *versions)
{
	Relation	rel = table_open(repl_ml_catalog_oid(REPL_ML_VERSION_TABLE), RowExclusiveLock);

	visit_versions(table, key, RowExclusiveLock, remove_version, NULL);
	for (int i = 0; versions->count > 1 && i < versions->count; i++)
		insert_version(table, key, rel, &versions->all[i]);
	table_close(rel, RowExclusiveLock);
	CommandCounterIncrement();
}

/*
 * Calls the visitor for each stored version of the key, until it returns
 * false.  Sees what is committed now: the key's lock says who may write.
 */
static void
visit_versions(ReplMlTable *table, Datum *key, LOCKMODE lockmode, VersionVisitor visitor,
			   void *argument)
{
	Relation	rel = table_open(repl_ml_catalog_oid(REPL_ML_VERSION_TABLE), lockmode);
	Snapshot	snapshot = RegisterSnapshot(GetLatestSnapshot());
	ScanKeyData scankey;
	SysScanDesc scan;
	HeapTuple	tuple;

	ScanKeyInit(&scankey, Anum_version_key_hash, BTEqualStrategyNumber,
				F_INT8EQ, Int64GetDatum((int64) repl_ml_key_hash(table, key)));
	scan = systable_beginscan(rel, repl_ml_catalog_oid(VERSION_INDEX), true, snapshot, 1, &scankey);
	while (HeapTupleIsValid(tuple = systable_getnext(scan)))
	{
		Datum		values[Natts_version];
		bool		nulls[Natts_version];

		Assert(RelationGetNumberOfAttributes(rel) == Natts_version);
		heap_deform_tuple(tuple, RelationGetDescr(rel), values, nulls);
		if (is_of_key(table, key, values) && !visitor(rel, tuple, values, nulls, argument))
			break;
	}
	systable_endscan(scan);
	UnregisterSnapshot(snapshot);
	table_close(rel, NoLock);
}

/* Says whether the stored version is one of the table of this name. */
static bool
is_named(const char *schema_name, const char *table_name, Datum *values)
{
	return strcmp(NameStr(*DatumGetName(values[Anum_version_table_name - 1])), table_name) == 0 &&
		strcmp(NameStr(*DatumGetName(values[Anum_version_schema_name - 1])), schema_name) == 0;
}

/* Says whether the stored version is one of this table. */
static bool
is_of_table(ReplMlTable *table, Datum *values)
{
	return is_named(NameStr(table->schema_name), NameStr(table->table_name), values);
}

/* Says whether the stored version is this key's; hashes may collide. */
static bool
is_of_key(ReplMlTable *table, Datum *key, Datum *values)
{
	Datum		its_key[INDEX_MAX_KEYS];

	if (!is_of_table(table, values) ||
		!repl_ml_shape_is(table, values[Anum_version_key_columns - 1]))
		return false;
	repl_ml_key_from_array(table, values[Anum_version_key - 1], its_key);
	return repl_ml_key_equal(table, key, its_key);
}

/* Visitor: adds a stored version to the set. */
static bool
load_version(Relation rel, HeapTuple tuple, Datum *values, bool *nulls, void *argument)
{
	LoadState  *state = argument;
	ReplMlClock *clock = (ReplMlClock *) PG_DETOAST_DATUM_COPY(values[Anum_version_clock - 1]);
	ReplMlVersions *versions = state->versions;
	ReplMlVersion *version;

	if (versions->count == versions->room)
	{
		versions->room = Max(4, 2 * versions->room);
		versions->all = versions->all == NULL ? palloc(versions->room * sizeof(ReplMlVersion)) :
			repalloc(versions->all, versions->room * sizeof(ReplMlVersion));
	}
	version = &versions->all[versions->count++];
	version->clock = repl_ml_late_rename(clock, NULL);
	version->dot = repl_ml_clock_dot(version->clock);
	version->row = NULL;
	version->eviction = nulls[Anum_version_eviction - 1] ? NULL :
		DatumGetCString(DirectFunctionCall1(jsonb_out, values[Anum_version_eviction - 1]));
	version->deleted = nulls[Anum_version_content - 1];
	if (!version->deleted)
		version->row = repl_ml_version_to_slot(values[Anum_version_content - 1], state->desc);
	return true;
}

/* Visitor: removes a stored version. */
static bool
remove_version(Relation rel, HeapTuple tuple, Datum *values, bool *nulls, void *argument)
{
	TM_FailureData failure;

	/* the supervisor may be removing it, too; then it is gone as well */
	(void) table_tuple_delete(rel, &tuple->t_self, GetCurrentCommandId(true), GetLatestSnapshot(),
							  InvalidSnapshot, true, &failure, false);
	return true;
}

/* Stores one version, as its writer left it. */
static void
insert_version(ReplMlTable *table, Datum *key, Relation rel, const ReplMlVersion *version)
{
	Datum		values[Natts_version];
	bool		nulls[Natts_version] = {false};
	HeapTuple	tuple;

	values[Anum_version_schema_name - 1] = NameGetDatum(&table->schema_name);
	values[Anum_version_table_name - 1] = NameGetDatum(&table->table_name);
	values[Anum_version_key - 1] = repl_ml_key_to_array(table, key);
	values[Anum_version_key_columns - 1] = table->key_columns;
	values[Anum_version_key_hash - 1] = Int64GetDatum((int64) repl_ml_key_hash(table, key));
	nulls[Anum_version_content - 1] = version->deleted;
	if (!version->deleted)
		values[Anum_version_content - 1] = repl_ml_version_from_slot(version->row,
																	 table->clock_attnum);
	nulls[Anum_version_eviction - 1] = version->eviction == NULL;
	if (version->eviction != NULL)
		values[Anum_version_eviction - 1] = DirectFunctionCall1(jsonb_in,
																CStringGetDatum(version->eviction));
	values[Anum_version_clock - 1] = PointerGetDatum(version->clock);
	tuple = heap_form_tuple(RelationGetDescr(rel), values, nulls);
	CatalogTupleInsert(rel, tuple);
	heap_freetuple(tuple);
}

/*
 * Brings what is stored of the table's rows under a former key under the
 * present one, after that has changed.  "desc" describes the rows.  The versions
 * of a row that would not agree on its key are removed: then the row is the only
 * one.  Called before the commit of the transaction that changed the key.
 */
void
repl_ml_version_rekey(ReplMlTable *table, TupleDesc desc)
{
	Relation	rel = table_open(repl_ml_catalog_oid(REPL_ML_VERSION_TABLE), RowExclusiveLock);
	Snapshot	snapshot = RegisterSnapshot(GetLatestSnapshot());
	SysScanDesc scan = systable_beginscan(rel, InvalidOid, false, snapshot, 0, NULL);
	List	   *stale = NIL;
	HeapTuple	tuple;

	while (HeapTupleIsValid(tuple = systable_getnext(scan)))
	{
		StoredVersion *stored = palloc0(sizeof(StoredVersion));

		heap_deform_tuple(tuple, RelationGetDescr(rel), stored->values, stored->nulls);
		if (!is_of_table(table, stored->values) ||
			repl_ml_shape_is(table, stored->values[Anum_version_key_columns - 1]))
			continue;

		/* what it points to has to outlive the scan */
		stored->tuple = heap_copytuple(tuple);
		heap_deform_tuple(stored->tuple, RelationGetDescr(rel), stored->values, stored->nulls);
		stale = lappend(stale, stored);
	}
	systable_endscan(scan);
	UnregisterSnapshot(snapshot);
	for (int i = 0; i < list_length(stale); i++)
		rekey_row(table, desc, rel, stale, i);
	table_close(rel, NoLock);
}

/*
 * Brings the versions of one row under the present key: those from number
 * "first" on with its former key.  They go where they do not agree on one.
 */
static void
rekey_row(ReplMlTable *table, TupleDesc desc, Relation rel, List *stale, int first)
{
	StoredVersion *of = list_nth(stale, first);
	Datum		key[INDEX_MAX_KEYS];
	bool		agree;

	if (of->done)
		return;
	agree = find_present_key(table, desc, stale, first, key);
	for (int i = first; i < list_length(stale); i++)
	{
		StoredVersion *stored = list_nth(stale, i);
		TM_FailureData failure;

		if (!is_of_row(stored, of))
			continue;
		stored->done = true;
		/* the supervisor may be removing it, too; then it is gone */
		if (table_tuple_delete(rel, &stored->tuple->t_self, GetCurrentCommandId(true),
							   GetLatestSnapshot(),
							   InvalidSnapshot, true, &failure, false) != TM_Ok || !agree)
			continue;
		stored->values[Anum_version_key - 1] = repl_ml_key_to_array(table, key);
		stored->values[Anum_version_key_columns - 1] = table->key_columns;
		stored->values[Anum_version_key_hash - 1] = Int64GetDatum((int64) repl_ml_key_hash(table,
																						   key));
		CatalogTupleInsert(rel,
						   heap_form_tuple(RelationGetDescr(rel), stored->values, stored->nulls));
	}
}

/* Says whether two versions are stored under the same former key. */
static bool
is_of_row(const StoredVersion *stored, const StoredVersion *of)
{
	return datum_image_eq(stored->values[Anum_version_key - 1], of->values[Anum_version_key - 1],
						  false, -1) &&
		datum_image_eq(stored->values[Anum_version_key_columns - 1],
					   of->values[Anum_version_key_columns - 1], false, -1);
}

/* Stored versions whose present key is looked for: those of the first one's row. */
typedef struct PresentKey
{
	ReplMlTable *table;
	TupleDesc	desc;
	List	   *stale;
	int			first;
	Datum	   *key;
	bool		found;
	bool		agree;
} PresentKey;

/* A step of repl_ml_attempt: reads the keys of the versions' contents. */
static void
read_present_keys(void *argument)
{
	PresentKey *it = argument;

	for (int i = it->first; i < list_length(it->stale); i++)
	{
		StoredVersion *stored = list_nth(it->stale, i);
		Datum		own_key[INDEX_MAX_KEYS];

		if (!is_of_row(stored, list_nth(it->stale, it->first)) ||
			stored->nulls[Anum_version_content - 1])
			continue;
		repl_ml_key_from_slot(it->table,
							  repl_ml_version_to_slot(stored->values[Anum_version_content - 1],
													  it->desc),
							  it->found ? own_key : it->key);
		it->agree &= !it->found || repl_ml_key_equal(it->table, it->key, own_key);
		it->found = true;
	}
}

/*
 * Sets the present key of those versions; returns false if they do not agree,
 * or cannot be read any more.
 */
static bool
find_present_key(ReplMlTable *table, TupleDesc desc, List *stale, int first, Datum *key)
{
	PresentKey	it = {.table = table,.desc = desc,.stale = stale,.first = first,.key = key,
	.agree = true};
	ErrorData  *error = repl_ml_attempt(read_present_keys, &it);

	/* what the types refuse is an answer, being cancelled is none */
	if (error != NULL && ERRCODE_TO_CATEGORY(error->sqlerrcode) == ERRCODE_OPERATOR_INTERVENTION)
		ReThrowError(error);
	return error == NULL && it.found && it.agree;
}

/*
 * Makes the table's versions follow its columns: values of the columns
 * "forgotten" (names) are gone, those of "from" are of "to" from now on, each of
 * them if it is not NULL.  Called by the backend that altered the table, which
 * has it locked.
 */
void
repl_ml_version_rename(Oid relid, List *forgotten, const char *from, const char *to)
{
	Renaming	renaming = {.forgotten = forgotten,.from = from,.to = to};

	visit_versions_of_table(relid, rename_version, &renaming);
}

/*
 * Calls the visitor for each stored version of the table's rows, and lets later
 * statements see what it has done.
 */
static void
visit_versions_of_table(Oid relid, VersionVisitor visitor, void *argument)
{
	char	   *schema_name = get_namespace_name(get_rel_namespace(relid));
	char	   *table_name = get_rel_name(relid);
	Relation	rel = table_open(repl_ml_catalog_oid(REPL_ML_VERSION_TABLE), RowExclusiveLock);
	Snapshot	snapshot = RegisterSnapshot(GetLatestSnapshot());
	SysScanDesc scan = systable_beginscan(rel, InvalidOid, false, snapshot, 0, NULL);
	HeapTuple	tuple;

	while (HeapTupleIsValid(tuple = systable_getnext(scan)))
	{
		Datum		values[Natts_version];
		bool		nulls[Natts_version];

		CHECK_FOR_INTERRUPTS();
		heap_deform_tuple(tuple, RelationGetDescr(rel), values, nulls);
		if (is_named(schema_name, table_name, values) &&
			!visitor(rel, tuple, values, nulls, argument))
			break;
	}
	systable_endscan(scan);
	UnregisterSnapshot(snapshot);
	table_close(rel, NoLock);
	CommandCounterIncrement();
}

/* Visitor: renames columns in a stored version. */
static bool
rename_version(Relation rel, HeapTuple tuple, Datum *values, bool *nulls, void *argument)
{
	const Renaming *renaming = argument;
	Datum		content = nulls[Anum_version_content - 1] ? (Datum) 0 :
		rename_in_content(values[Anum_version_content - 1], renaming);

	if (content != (Datum) 0)
		replace_content(rel, tuple, values, nulls, content);
	return true;
}

/* Returns the content with that done, palloc'd; 0 if there is nothing to do. */
static Datum
rename_in_content(Datum content, const Renaming *renaming)
{
	Datum	   *texts;
	bool	   *nulls;
	int			count;
	int			kept = 0;
	bool		renamed = false;
	int			lower = 1;

	deconstruct_array(DatumGetArrayTypePCopy(content), TEXTOID, -1, false, TYPALIGN_INT, &texts,
					  &nulls, &count);
	for (int i = 0; i + 1 < count; i += 2)
	{
		char	   *name = TextDatumGetCString(texts[i]);
		ListCell   *lc;
		bool		gone = false;

		foreach(lc, renaming->forgotten)
			gone |= strcmp(name, lfirst(lc)) == 0;
		if (gone)
			continue;
		if (renaming->from != NULL && strcmp(name, renaming->from) == 0)
		{
			texts[i] = CStringGetTextDatum(renaming->to);
			renamed = true;
		}
		texts[kept] = texts[i];
		texts[kept + 1] = texts[i + 1];
		nulls[kept + 1] = nulls[i + 1];
		kept += 2;
	}
	if (kept == count && !renamed)
		return (Datum) 0;
	return PointerGetDatum(construct_md_array(texts, nulls, 1, &kept, &lower, TEXTOID, -1, false,
											  TYPALIGN_INT));
}

/* Stores that content in the place of a version's. */
static void
replace_content(Relation rel, HeapTuple tuple, Datum *values, bool *nulls, Datum content)
{
	TM_FailureData failure;

	/* the supervisor may be removing it, too; then it is gone */
	if (table_tuple_delete(rel, &tuple->t_self, GetCurrentCommandId(true), GetLatestSnapshot(),
						   InvalidSnapshot, true, &failure, false) != TM_Ok)
		return;
	values[Anum_version_content - 1] = content;
	CatalogTupleInsert(rel, heap_form_tuple(RelationGetDescr(rel), values, nulls));
}

/*
 * Removes the table's versions, whose values are no longer of its columns'
 * types: its rows are the only ones then.  Called by the backend that altered
 * the table.
 */
void
repl_ml_version_forget(Oid relid)
{
	visit_versions_of_table(relid, remove_version, NULL);
}

/*
 * Returns the columns of a row but its clock, as text[]: name, value, name,
 * value, ...
 */
Datum
repl_ml_version_from_slot(TupleTableSlot *slot, AttrNumber clock_attnum)
{
	TupleDesc	desc = slot->tts_tupleDescriptor;
	Datum	   *texts = palloc(2 * desc->natts * sizeof(Datum));
	bool	   *nulls = palloc0(2 * desc->natts * sizeof(bool));
	int			level = repl_ml_session_fix_values();
	int			count = 0;
	int			dims[1];
	int			lower[1] = {1};

	slot_getallattrs(slot);
	for (int i = 0; i < desc->natts; i++)
	{
		Form_pg_attribute att = TupleDescAttr(desc, i);
		Oid			function;
		bool		is_varlena;

		/* every node computes generated columns itself */
		if (att->attisdropped || att->attgenerated != '\0' || att->attnum == clock_attnum)
			continue;
		texts[count++] = CStringGetTextDatum(NameStr(att->attname));
		nulls[count] = slot->tts_isnull[i];
		if (!slot->tts_isnull[i])
		{
			getTypeOutputInfo(att->atttypid, &function, &is_varlena);
			texts[count] = CStringGetTextDatum(OidOutputFunctionCall(function,
																	 slot->tts_values[i]));
		}
		count++;
	}
	repl_ml_session_restore(level);
	dims[0] = count;
	return PointerGetDatum(construct_md_array(texts, nulls, 1, dims, lower, TEXTOID, -1, false,
											  TYPALIGN_INT));
}

/*
 * Returns the row that repl_ml_version_from_slot wrote, in a slot that needs
 * no release.  A column that the table has got since has what rows from before
 * it have, one it has lost is left out.  The clock is not set.
 */
TupleTableSlot *
repl_ml_version_to_slot(Datum content, TupleDesc desc)
{
	TupleTableSlot *slot = MakeTupleTableSlot(CreateTupleDescCopyConstr(desc), &TTSOpsVirtual);
	int			level = repl_ml_session_fix_values();
	Datum	   *texts;
	bool	   *nulls;
	int			count;

	deconstruct_array(DatumGetArrayTypePCopy(content), TEXTOID, -1, false, TYPALIGN_INT, &texts,
					  &nulls, &count);
	ExecStoreAllNullTuple(slot);
	for (int i = 0; i < desc->natts; i++)
	{
		Form_pg_attribute att = TupleDescAttr(desc, i);
		int			j = 0;
		Oid			function;
		Oid			param;

		if (att->attisdropped || att->attgenerated != '\0')
			continue;

		/* by name: columns may have moved since it was stored */
		while (j + 1 < count && strcmp(TextDatumGetCString(texts[j]), NameStr(att->attname)) != 0)
			j += 2;
		if (j + 1 >= count)
			slot->tts_values[i] = getmissingattr(slot->tts_tupleDescriptor, i + 1,
												 &slot->tts_isnull[i]);
		else if (!nulls[j + 1])
		{
			getTypeInputInfo(att->atttypid, &function, &param);
			slot->tts_values[i] = OidInputFunctionCall(function, TextDatumGetCString(texts[j + 1]),
													   param, att->atttypmod);
			slot->tts_isnull[i] = false;
		}
	}
	repl_ml_session_restore(level);
	return slot;
}
