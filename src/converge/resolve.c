/*
 * resolve.c
 *		What a row becomes of its concurrent versions: a table of policies.
 *
 * A policy sees the set of versions, sorted by dot, never which of them is
 * here or arrived last: every node has to come to the same end.  Whether the
 * row lives is decided first, by the last write or, under node_priority, by
 * the first node; then the live versions make up the row, and last the columns
 * that have a rule of their own (merge.c).
 *
 * Not here: which versions are concurrent (conflict.c), which policy is in
 * force (row/policy.c), what is told of a loss (history.c).  No locks: row.c,
 * which calls this, holds the row's or the key's.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/tupconvert.h"
#include "catalog/pg_collation.h"
#include "catalog/pg_proc.h"
#include "executor/executor.h"
#include "funcapi.h"
#include "parser/parse_func.h"
#include "utils/builtins.h"
#include "utils/datum.h"
#include "utils/lsyscache.h"
#include "utils/regproc.h"
#include "utils/rel.h"
#include "utils/typcache.h"

#include "compat.h"
#include "converge/converge.h"
#include "row/row.h"
#include "server/server.h"
#include "wire/wire.h"

/* What a policy works on. */
typedef struct Contest
{
	ReplMlTarget *target;
	const ReplMlRule *rule;		/* NULL: last_write by default */
	const ReplMlVersions *versions;
} Contest;

typedef struct Resolver
{
	const char *name;			/* as in repl_ml.conflict_policy.rule */
	/* says whether a loses against b: a total order, whatever else they meet */
	bool		(*loses) (const Contest *contest, const ReplMlVersion *a, const ReplMlVersion *b);
	bool		ranks_deletions;	/* "loses" decides about deletions, too */
	/* makes a new row of two; NULL: the winner's row stays */
	TupleTableSlot *(*combine) (const Contest *contest, TupleTableSlot *a,
								const ReplMlClock *a_clock,
								const ReplMlVersion *b);
} Resolver;

static bool loses_last_write(const Contest *contest, const ReplMlVersion *a,
							 const ReplMlVersion *b);
static bool loses_newest_by(const Contest *contest, const ReplMlVersion *a, const ReplMlVersion *b);
static bool loses_node_priority(const Contest *contest, const ReplMlVersion *a,
								const ReplMlVersion *b);
static TupleTableSlot *combine_by_function(const Contest *contest, TupleTableSlot *a,
										   const ReplMlClock *a_clock,
										   const ReplMlVersion *b);
static const Resolver *find_resolver(const ReplMlRule *rule);
static const ReplMlVersion *find_winner(const Contest *contest, const Resolver *resolver);
static void merge_columns(const Contest *contest, ReplMlResolution *resolution);
static TupleTableSlot *combine_all(const Contest *contest, const Resolver *resolver);
static TupleTableSlot *call_function(const Contest *contest, TupleTableSlot *a,
									 const ReplMlClock *a_clock,
									 TupleTableSlot *b, const ReplMlClock *b_clock);

static const Resolver resolvers[] = {
	{.name = "last_write",.loses = loses_last_write},
	{.name = "newest_by",.loses = loses_newest_by},
	{.name = "node_priority",.loses = loses_node_priority,.ranks_deletions = true},
	{.name = "function",.loses = loses_last_write,.combine = combine_by_function},
	{.name = "keep_both",.loses = loses_last_write},
};

/*
 * Returns what the row of these versions is, under "clock", the merge of all
 * that was seen of it.  Palloc'd; the rows point into the versions'.  The
 * same on every node that has these versions and the policies up to the last
 * of them.
 */
ReplMlResolution *
repl_ml_resolve(ReplMlTarget *target, const ReplMlVersions *versions, const ReplMlClock *clock)
{
	ReplMlResolution *resolution = palloc0(sizeof(ReplMlResolution));
	Contest		contest = {.target = target,.versions = versions};
	const Resolver *resolver;

	resolution->policy = repl_ml_policy_at(target->table, versions->all[versions->count - 1].dot);
	contest.rule = resolution->policy->resolver;
	resolver = find_resolver(contest.rule);
	resolution->keeps_both = strcmp(resolver->name, "keep_both") == 0;
	resolution->winner = find_winner(&contest, resolver);
	resolution->deleted = resolution->winner->deleted;
	resolution->clock = clock;
	if (resolution->deleted)
		return resolution;

	resolution->row = resolver->combine == NULL ? resolution->winner->row :
		combine_all(&contest, resolver);
	if (resolution->policy->merge_count > 0)
		merge_columns(&contest, resolution);
	return resolution;
}

/*
 * Lets the columns that have a rule of their own follow it, in a copy of the
 * resolution's row.
 */
static void
merge_columns(const Contest *contest, ReplMlResolution *resolution)
{
	Relation	rel = contest->target->rel;
	TupleDesc	desc = RelationGetDescr(rel);
	TupleTableSlot *row = MakeTupleTableSlot(CreateTupleDescCopyConstr(desc), &TTSOpsVirtual);
	ReplMlVersion *live = palloc(contest->versions->count * sizeof(ReplMlVersion));
	int			count = 0;

	for (int i = 0; i < contest->versions->count; i++)
	{
		if (!contest->versions->all[i].deleted)
			live[count++] = contest->versions->all[i];
	}
	slot_getallattrs(resolution->row);
	memcpy(row->tts_values, resolution->row->tts_values, desc->natts * sizeof(Datum));
	memcpy(row->tts_isnull, resolution->row->tts_isnull, desc->natts * sizeof(bool));
	ExecStoreVirtualTuple(row);
	resolution->clock = repl_ml_merge_columns(rel, resolution->policy, live, count,
											  resolution->clock, row);
	resolution->row = row;
}

/*
 * Returns the policy's name and arguments, as repl_ml.set_resolver takes them,
 * for the history.
 */
char *
repl_ml_resolve_name(const ReplMlPolicy *policy)
{
	StringInfoData name;

	if (policy->resolver == NULL)
		return pstrdup("last_write");
	initStringInfo(&name);
	appendStringInfoString(&name, policy->resolver->name);
	for (int i = 0; i < policy->resolver->nargs; i++)
		appendStringInfo(&name, "%s%s", i == 0 ? "(" : ", ", policy->resolver->args[i]);
	if (policy->resolver->nargs > 0)
		appendStringInfoChar(&name, ')');
	return name.data;
}

/*
 * Returns the resolver of a rule.  Raises an error, which parks the change,
 * where a later release, or a person, has written one into the catalog that
 * this one does not know.
 */
static const Resolver *
find_resolver(const ReplMlRule *rule)
{
	for (int i = 0; i < lengthof(resolvers); i++)
	{
		if (strcmp(resolvers[i].name, rule == NULL ? "last_write" : rule->name) != 0)
			continue;
		if (resolvers[i].combine != NULL && rule->nargs != 1)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("conflict resolver \"%s\" needs one function, not %d", rule->name,
							rule->nargs),
					 errhint("Run SELECT repl_ml.set_resolver(...), then SELECT "
							 "repl_ml.retry_parked(id).")));
		return &resolvers[i];
	}
	ereport(ERROR,
			(errcode(ERRCODE_UNDEFINED_OBJECT),
			 errmsg("conflict resolver \"%s\" does not exist", rule->name),
			 errhint("Run SELECT repl_ml.set_resolver(...), then SELECT "
					 "repl_ml.retry_parked(id).")));
	return NULL;				/* keep the compiler quiet */
}

/*
 * Returns the version that wins: first it is decided whether the row lives,
 * then which of the live versions wins.
 */
static const ReplMlVersion *
find_winner(const Contest *contest, const Resolver *resolver)
{
	const ReplMlVersions *versions = contest->versions;
	const ReplMlVersion *last = &versions->all[versions->count - 1];
	const ReplMlVersion *winner = NULL;

	if (!resolver->ranks_deletions && last->deleted)
		return last;
	for (int i = 0; i < versions->count; i++)
	{
		const ReplMlVersion *version = &versions->all[i];

		if (version->deleted && !resolver->ranks_deletions)
			continue;
		if (winner == NULL || resolver->loses(contest, winner, version))
			winner = version;
	}
	return winner;
}

/*
 * Prefers the write with the greater counter, then with the greater node id.
 */
static bool
loses_last_write(const Contest *contest, const ReplMlVersion *a, const ReplMlVersion *b)
{
	return repl_ml_clock_dot_before(a->dot, b->dot);
}

/*
 * Orders two values of a column as its type does, text byte by byte; NULL is
 * least.  Collations may differ between nodes, so none is asked.
 */
static int
compare_column(Form_pg_attribute att, TupleTableSlot *a, TupleTableSlot *b)
{
	TypeCacheEntry *type = lookup_type_cache(att->atttypid, TYPECACHE_CMP_PROC_FINFO);
	bool		a_null;
	bool		b_null;
	Datum		a_value = slot_getattr(a, att->attnum, &a_null);
	Datum		b_value = slot_getattr(b, att->attnum, &b_null);

	if (a_null || b_null)
		return (int) b_null - (int) a_null;
	if (!OidIsValid(type->cmp_proc_finfo.fn_oid))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_FUNCTION),
				 errmsg("values of column \"%s\" have no order", NameStr(att->attname)),
				 errhint("Run SELECT repl_ml.set_resolver(...) with another column.")));
	return DatumGetInt32(FunctionCall2Coll(&type->cmp_proc_finfo,
										   OidIsValid(att->attcollation) ? C_COLLATION_OID :
										   InvalidOid,
										   a_value, b_value));
}

/*
 * repl_ml.has_order(type): says, for repl_ml.set_resolver, whether newest_by
 * can compare values of the type.
 */
PG_FUNCTION_INFO_V1(repl_ml_has_order);
Datum
repl_ml_has_order(PG_FUNCTION_ARGS)
{
	TypeCacheEntry *type = lookup_type_cache(PG_GETARG_OID(0), TYPECACHE_CMP_PROC_FINFO);

	PG_RETURN_BOOL(OidIsValid(type->cmp_proc_finfo.fn_oid));
}

/*
 * Prefers the greatest values of the columns, the first one first; then the
 * last write.
 */
static bool
loses_newest_by(const Contest *contest, const ReplMlVersion *a, const ReplMlVersion *b)
{
	Relation	rel = contest->target->rel;

	for (int i = 0; i < contest->rule->nargs; i++)
	{
		AttrNumber	attnum = get_attnum(RelationGetRelid(rel), contest->rule->args[i]);
		int			order;

		if (attnum <= InvalidAttrNumber)
			ereport(ERROR,
					(errcode(ERRCODE_UNDEFINED_COLUMN),
					 errmsg("column \"%s\" of the resolver of table \"%s\" does not exist",
							contest->rule->args[i], RelationGetRelationName(rel)),
					 errhint("Run SELECT repl_ml.set_resolver(...), then SELECT "
							 "repl_ml.retry_parked(id).")));
		order = compare_column(TupleDescAttr(RelationGetDescr(rel), attnum - 1), a->row, b->row);
		if (order != 0)
			return order < 0;
	}
	return loses_last_write(contest, a, b);
}

/*
 * Returns a node's place in the list of node ids; those not listed come last.
 */
static int
find_rank(const ReplMlRule *rule, uint16 node)
{
	for (int i = 0; i < rule->nargs; i++)
	{
		if (strtoul(rule->args[i], NULL, 10) == node)
			return i;
	}
	return rule->nargs;
}

/*
 * Prefers the first node of the list, whatever it did; of one node, or of
 * unlisted ones, the last write.
 */
static bool
loses_node_priority(const Contest *contest, const ReplMlVersion *a, const ReplMlVersion *b)
{
	int			a_rank = find_rank(contest->rule, a->dot.node);
	int			b_rank = find_rank(contest->rule, b->dot.node);

	return a_rank != b_rank ? a_rank > b_rank : loses_last_write(contest, a, b);
}

/*
 * Returns the row that the resolver makes of the live versions, in the order
 * of their dots.
 */
static TupleTableSlot *
combine_all(const Contest *contest, const Resolver *resolver)
{
	TupleTableSlot *result = NULL;
	const ReplMlClock *clock = NULL;

	for (int i = 0; i < contest->versions->count; i++)
	{
		const ReplMlVersion *version = &contest->versions->all[i];

		if (version->deleted)
			continue;
		result = result == NULL ? version->row : resolver->combine(contest, result, clock, version);
		clock = clock == NULL ? version->clock : repl_ml_clock_merge(clock, version->clock);
	}
	return result;
}

/*
 * Raises the error that parks the change: the resolver's function is at fault.
 */
static void
blame_function(const Contest *contest, const char *problem)
{
	ereport(ERROR,
			(errcode(ERRCODE_EXTERNAL_ROUTINE_EXCEPTION),
			 errmsg("conflict resolver function %s %s", contest->rule->args[0], problem),
			 errdetail("Two concurrent versions of a row of table \"%s.%s\" could not be resolved.",
					   NameStr(contest->target->table->schema_name),
					   NameStr(contest->target->table->table_name)),
			 errhint("Mend the function on every node, try it with SELECT * FROM "
					 "repl_ml.check_resolver('%s.%s'), then run SELECT repl_ml.retry_parked(id).",
					 NameStr(contest->target->table->schema_name),
					 NameStr(contest->target->table->table_name))));
}

/* Says whether two rows differ in a column that is stored and replicated. */
bool
repl_ml_rows_differ(ReplMlTarget *target, TupleTableSlot *a, TupleTableSlot *b)
{
	TupleDesc	desc = RelationGetDescr(target->rel);

	for (int i = 0; i < desc->natts; i++)
	{
		if (repl_ml_column_differs(target, i, a, b))
			return true;
	}
	return false;
}

/*
 * Says whether a stored, replicated column, other than the clock, differs.
 * Binary images decide: what a type calls equal may still be lost.
 */
bool
repl_ml_column_differs(ReplMlTarget *target, int i, TupleTableSlot *a, TupleTableSlot *b)
{
	Form_pg_attribute att = TupleDescAttr(RelationGetDescr(target->rel), i);
	bool		a_null;
	bool		b_null;
	Datum		a_value;
	Datum		b_value;

	if (att->attisdropped || att->attgenerated != '\0' ||
		att->attnum == target->table->clock_attnum)
		return false;
	a_value = slot_getattr(a, i + 1, &a_null);
	b_value = slot_getattr(b, i + 1, &b_null);
	if (a_null || b_null)
		return a_null != b_null;
	return !datum_image_eq(a_value, b_value, att->attbyval, att->attlen);
}

/*
 * Asks the user's function, both ways round: it must not matter which version
 * is where.  Runs with the rights of the table's owner.
 */
static TupleTableSlot *
combine_by_function(const Contest *contest, TupleTableSlot *a, const ReplMlClock *a_clock,
					const ReplMlVersion *b)
{
	ReplMlTable *table = contest->target->table;
	TupleTableSlot *result = call_function(contest, a, a_clock, b->row, b->clock);
	TupleTableSlot *mirrored = call_function(contest, b->row, b->clock, a, a_clock);
	Datum		key[INDEX_MAX_KEYS];
	Datum		result_key[INDEX_MAX_KEYS];

	if (result == NULL || mirrored == NULL)
		blame_function(contest, "returned null");
	if (repl_ml_rows_differ(contest->target, result, mirrored))
		blame_function(contest,
					   "is not symmetric: its result depends on which version is the local one");
	repl_ml_key_from_slot(table, a, key);
	repl_ml_key_from_slot(table, result, result_key);
	if (!repl_ml_key_equal(table, key, result_key))
		blame_function(contest, "changed the primary key");
	return result;
}

/*
 * Returns the function that resolves, as it is now: whoever owns it may have
 * replaced it since repl_ml.set_resolver looked at it.
 */
static Oid
find_function(const Contest *contest, Oid row_type)
{
	Oid			types[4] = {row_type, row_type, repl_ml_clock_type(), repl_ml_clock_type()};
	Oid			function = LookupFuncName(stringToQualifiedNameList_compat(contest->rule->args[0]),
										  4, types, false);

	if (get_func_rettype(function) != row_type || get_func_retset(function) ||
		get_func_prokind(function) != PROKIND_FUNCTION)
		blame_function(contest,
					   psprintf("does not return one %s any more", format_type_be(row_type)));
	return function;
}

/*
 * Returns a row as a value of the row type of the enrolled table, "root",
 * whose type the user's function takes, whichever partition the row is in.
 */
static Datum
make_composite(TupleTableSlot *slot, AttrNumber clock_attnum, const ReplMlClock *clock,
			   Relation root)
{
	TupleDesc	desc = slot->tts_tupleDescriptor;
	TupleConversionMap *map = convert_tuples_by_name(desc, RelationGetDescr(root));
	Datum	   *values = palloc(desc->natts * sizeof(Datum));
	bool	   *nulls = palloc(desc->natts * sizeof(bool));
	HeapTuple	tuple;

	slot_getallattrs(slot);
	memcpy(values, slot->tts_values, desc->natts * sizeof(Datum));
	memcpy(nulls, slot->tts_isnull, desc->natts * sizeof(bool));
	values[clock_attnum - 1] = PointerGetDatum(clock);
	nulls[clock_attnum - 1] = false;
	tuple = heap_form_tuple(desc, values, nulls);
	if (map != NULL)
		tuple = execute_attr_map_tuple(tuple, map);
	return heap_copy_tuple_as_datum(tuple, RelationGetDescr(root));
}

/*
 * Returns a value of that row type as a row of the target, in a slot that
 * needs no release.
 */
static TupleTableSlot *
read_composite(Datum value, Relation root, Relation rel)
{
	HeapTupleHeader header = DatumGetHeapTupleHeader(value);
	HeapTupleData tuple = {.t_len = HeapTupleHeaderGetDatumLength(header),.t_data = header};
	TupleConversionMap *map = convert_tuples_by_name(RelationGetDescr(root), RelationGetDescr(rel));
	HeapTuple	result = map == NULL ? &tuple : execute_attr_map_tuple(&tuple, map);
	TupleTableSlot *slot = MakeTupleTableSlot(CreateTupleDescCopyConstr(RelationGetDescr(rel)),
											  &TTSOpsVirtual);

	heap_deform_tuple(result, RelationGetDescr(rel), slot->tts_values, slot->tts_isnull);
	return ExecStoreVirtualTuple(slot);
}

/*
 * Calls the user's function for two versions and their clocks.  Returns the
 * row it returns, NULL if it returns null.
 */
static TupleTableSlot *
call_function(const Contest *contest, TupleTableSlot *a, const ReplMlClock *a_clock,
			  TupleTableSlot *b, const ReplMlClock *b_clock)
{
	ReplMlTable *table = contest->target->table;
	Relation	root = RelationIdGetRelation(table->root);
	LOCAL_FCINFO(fcinfo, 4);
	FmgrInfo	flinfo;
	TupleTableSlot *result;
	Datum		value;

	fmgr_info(find_function(contest, root->rd_rel->reltype), &flinfo);
	InitFunctionCallInfoData(*fcinfo, &flinfo, 4, InvalidOid, NULL, NULL);
	fcinfo->args[0].value = make_composite(a, table->clock_attnum, a_clock, root);
	fcinfo->args[1].value = make_composite(b, table->clock_attnum, b_clock, root);
	fcinfo->args[2].value = PointerGetDatum(a_clock);
	fcinfo->args[3].value = PointerGetDatum(b_clock);
	for (int i = 0; i < 4; i++)
		fcinfo->args[i].isnull = false;
	value = FunctionCallInvoke(fcinfo);
	result = fcinfo->isnull ? NULL : read_composite(value, root, contest->target->rel);
	RelationClose(root);
	return result;
}
