/*
 * policy.c
 *		The rules of a table, as they were in force at any moment.
 *
 * repl_ml.conflict_policy is only ever added to.  A conflict is resolved by
 * the rules that were in force at the greatest dot of its versions, so every
 * node uses the same ones, whenever a rule reaches it; what was resolved
 * before a rule arrived is resolved again (converge/reconsider.c).  The writing
 * backend uses the latest rules it knows.
 *
 * Each process keeps the rules of the tables it has met until the catalog
 * changes.
 *
 * Not what a rule does: converge/resolve.c and merge.c know the rules' names,
 * this file does not.  Locks: ACCESS SHARE on the catalog while it is read;
 * until the transaction ends, one for the rules of each table: SHARE for who
 * resolves, EXCLUSIVE for who adds a rule.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "catalog/pg_type.h"
#include "storage/lmgr.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/hsearch.h"
#include "utils/inval.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"

#include "row/row.h"
#include "server/server.h"
#include "wire/wire.h"

#define POLICY_TABLE	"conflict_policy"

enum
{
	Anum_policy_id = 1,
	Anum_policy_schema_name,
	Anum_policy_table_name,
	Anum_policy_column_name,
	Anum_policy_rule,
	Anum_policy_arguments,
	Anum_policy_set_at,
	Anum_policy_clock
};

/* The rules of one table, oldest first. */
typedef struct TableRules
{
	Oid			root;			/* hash key */
	int			count;
	ReplMlRule *rules;
	ReplMlPolicy *now;			/* NULL: no rule */
} TableRules;

/* Written by get_rules; thrown away by invalidate_policies. */
static HTAB *rules_by_table = NULL;
static MemoryContext rules_context = NULL;
static bool rules_valid = false;
static Oid	policy_relid = InvalidOid;

static void lock_rules(Oid root, LOCKMODE mode);
static TableRules *get_rules(ReplMlTable *table);
static void load_rules(ReplMlTable *table, TableRules *entry);
static void read_rule(Relation rel, HeapTuple tuple, ReplMlRule *rule);
static int	compare_rules(const void *a, const void *b);
static ReplMlPolicy *make_policy(const TableRules *rules, int count);
static void invalidate_policies(Datum arg, Oid relid);

/*
 * Returns, for the writing backend, the latest rules known here, or NULL if
 * the table never had one.  Valid until the next call in this process.
 */
const ReplMlPolicy *
repl_ml_policy_now(ReplMlTable *table)
{
	return get_rules(table)->now;
}

/*
 * Returns, for who resolves a conflict, the rules in force at the write "dot":
 * of each column the latest one before it.  Palloc'd; the rules it points to
 * are valid until the next call.  No rule is added to the table until the
 * caller's transaction has ended.
 */
const ReplMlPolicy *
repl_ml_policy_at(ReplMlTable *table, ReplMlClockEntry dot)
{
	const TableRules *rules;
	int			count = 0;

	lock_rules(table->root, ShareLock);
	rules = get_rules(table);
	while (count < rules->count && repl_ml_clock_dot_before(rules->rules[count].since, dot))
		count++;
	return make_policy(rules, count);
}

/*
 * Called by who adds a rule to the table "root", before it looks for what the
 * rule comes late for.  Whoever resolves a conflict of that table has then
 * either committed, and is found, or will see the rule.
 */
void
repl_ml_policy_lock(Oid root)
{
	lock_rules(root, ExclusiveLock);
}

/* Locks the rules of one table until the transaction ends. */
static void
lock_rules(Oid root, LOCKMODE mode)
{
	LockDatabaseObject(repl_ml_catalog_oid(POLICY_TABLE), root, 0, mode);
}

/* Returns the rule of a column, NULL if it follows the row. */
const ReplMlRule *
repl_ml_policy_merge(const ReplMlPolicy *policy, const char *column)
{
	for (int i = 0; policy != NULL && i < policy->merge_count; i++)
	{
		if (strcmp(NameStr(policy->merges[i]->column), column) == 0)
			return policy->merges[i];
	}
	return NULL;
}

/* Returns the rules of a table, read once until the catalog changes. */
static TableRules *
get_rules(ReplMlTable *table)
{
	TableRules *entry;
	bool		found;

	if (rules_context == NULL)
	{
		rules_context = AllocSetContextCreate(CacheMemoryContext, "repl_ml policies",
											  ALLOCSET_SMALL_SIZES);
		CacheRegisterRelcacheCallback(invalidate_policies, (Datum) 0);
	}
	if (!rules_valid)
	{
		HASHCTL		ctl = {.keysize = sizeof(Oid),.entrysize = sizeof(TableRules),
		.hcxt = rules_context};

		rules_by_table = NULL;
		MemoryContextReset(rules_context);
		rules_by_table = hash_create("repl_ml policies", 16, &ctl,
									 HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
		policy_relid = repl_ml_catalog_oid(POLICY_TABLE);
		/* before anything is read: what changes meanwhile must count */
		rules_valid = true;
	}
	entry = hash_search(rules_by_table, &table->root, HASH_ENTER, &found);

	/* an entry that could not be filled must not stay */
	if (!found)
	{
		Oid			root = entry->root;

		memset(entry, 0, sizeof(*entry));
		entry->root = root;
		PG_TRY();
		{
			load_rules(table, entry);
		}
		PG_CATCH();
		{
			rules_valid = false;
			PG_RE_THROW();
		}
		PG_END_TRY();
	}
	return entry;
}

/*
 * Called by core when a relation has changed: the rules are to be read again
 * if that was the catalog, or may have been.
 */
static void
invalidate_policies(Datum arg, Oid relid)
{
	if (relid == InvalidOid || relid == policy_relid)
		rules_valid = false;
}

/* Reads the rules of a table, oldest first, into the memory of all rules. */
static void
load_rules(ReplMlTable *table, TableRules *entry)
{
	Relation	rel = table_open(repl_ml_catalog_oid(POLICY_TABLE), AccessShareLock);
	Snapshot	snapshot = RegisterSnapshot(GetLatestSnapshot());
	SysScanDesc scan = systable_beginscan(rel, InvalidOid, false, snapshot, 0, NULL);
	MemoryContext old = MemoryContextSwitchTo(rules_context);
	int			room = 0;
	HeapTuple	tuple;

	while (HeapTupleIsValid(tuple = systable_getnext(scan)))
	{
		bool		isnull;

		if (strcmp(NameStr(*DatumGetName(heap_getattr(tuple, Anum_policy_table_name,
													  RelationGetDescr(rel), &isnull))),
				   NameStr(table->table_name)) != 0 ||
			strcmp(NameStr(*DatumGetName(heap_getattr(tuple, Anum_policy_schema_name,
													  RelationGetDescr(rel), &isnull))),
				   NameStr(table->schema_name)) != 0)
			continue;

		/* few tables have more than a handful */
		if (entry->count == room)
		{
			room = Max(8, 2 * room);
			entry->rules = entry->rules == NULL ? palloc(room * sizeof(ReplMlRule)) :
				repalloc(entry->rules, room * sizeof(ReplMlRule));
		}
		read_rule(rel, tuple, &entry->rules[entry->count++]);
	}
	if (entry->count > 0)
	{
		qsort(entry->rules, entry->count, sizeof(ReplMlRule), compare_rules);
		entry->now = make_policy(entry, entry->count);
	}
	MemoryContextSwitchTo(old);
	systable_endscan(scan);
	UnregisterSnapshot(snapshot);
	table_close(rel, AccessShareLock);
}

/* Reads one rule. */
static void
read_rule(Relation rel, HeapTuple tuple, ReplMlRule *rule)
{
	TupleDesc	desc = RelationGetDescr(rel);
	bool		isnull;
	Datum	   *arguments;

	rule->since = repl_ml_clock_dot(DatumGetReplMlClockP(heap_getattr(tuple, Anum_policy_clock,
																	  desc, &isnull)));
	rule->column = *DatumGetName(heap_getattr(tuple, Anum_policy_column_name, desc, &isnull));
	rule->name = TextDatumGetCString(heap_getattr(tuple, Anum_policy_rule, desc, &isnull));
	deconstruct_array(DatumGetArrayTypeP(heap_getattr(tuple, Anum_policy_arguments, desc, &isnull)),
					  TEXTOID, -1, false, TYPALIGN_INT, &arguments, NULL, &rule->nargs);
	rule->args = palloc(Max(rule->nargs, 1) * sizeof(char *));
	for (int i = 0; i < rule->nargs; i++)
		rule->args[i] = TextDatumGetCString(arguments[i]);
}

/* Orders rules, for qsort, by the event from which on they are in force. */
static int
compare_rules(const void *a, const void *b)
{
	const ReplMlRule *left = a;
	const ReplMlRule *right = b;

	if (repl_ml_clock_dot_before(left->since, right->since))
		return -1;
	return repl_ml_clock_dot_before(right->since, left->since) ? 1 : 0;
}

/*
 * Returns what the first "count" rules amount to: of each column the last one.
 */
static ReplMlPolicy *
make_policy(const TableRules *rules, int count)
{
	ReplMlPolicy *policy = palloc0(sizeof(ReplMlPolicy));

	policy->merges = palloc(Max(count, 1) * sizeof(ReplMlRule *));
	for (int i = 0; i < count; i++)
	{
		const ReplMlRule *rule = &rules->rules[i];
		int			place = 0;

		if (NameStr(rule->column)[0] == '\0')
		{
			policy->resolver = rule;
			continue;
		}
		while (place < policy->merge_count &&
			   strcmp(NameStr(policy->merges[place]->column), NameStr(rule->column)) != 0)
			place++;
		policy->merges[place] = rule;
		policy->merge_count = Max(policy->merge_count, place + 1);
	}

	/* "none" takes a rule back */
	for (int i = policy->merge_count - 1; i >= 0; i--)
	{
		if (strcmp(policy->merges[i]->name, "none") == 0)
			policy->merges[i] = policy->merges[--policy->merge_count];
	}
	return policy;
}
