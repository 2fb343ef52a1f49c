/*
 * merge.c
 *		Columns that are merged by a rule of their own, whichever version of the
 *		row wins: a table of rules.
 *
 * A rule sees a column's value in each live one of a row's concurrent
 * versions, in the order of their dots, never which of them is here: every
 * node has to come to the same end.  What else it may know is in the versions'
 * marks (row/share.c), and the marks of the result say what the row's merged
 * clock alone would not.
 *
 * Text is compared byte by byte.  Values are compared as their types do, not
 * by their bytes, which may differ between nodes.
 *
 * Not here: which version wins (resolve.c), who has changed which part of a
 * value (row/share.c), how a counter is added up (row/amount.c), how sets and
 * JSON objects become one (unite.c).  No locks: row.c, which calls this by way of
 * resolve.c, holds the row's or the key's.
 */
#include "postgres.h"

#include "access/table.h"
#include "catalog/pg_collation.h"
#include "catalog/pg_type.h"
#include "utils/builtins.h"
#include "utils/datum.h"
#include "utils/fmgrprotos.h"
#include "utils/jsonb.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/syscache.h"
#include "utils/typcache.h"

#include "compat.h"
#include "converge/converge.h"
#include "row/row.h"
#include "wire/wire.h"

/* One column while it is merged. */
typedef struct Column
{
	Form_pg_attribute att;
	const char *name;
	int			count;			/* live versions, sorted by dot */
	const ReplMlVersion *live;
	const ReplMlMarks *marks;	/* of each */
	Datum	   *values;			/* in each */
	bool	   *nulls;
	const ReplMlClock *clock;	/* of the result */
	ReplMlMarks *result_marks;
	Datum		value;			/* the result; at first the last version's */
	bool		isnull;
} Column;

typedef struct Rule
{
	const char *name;			/* as in repl_ml.conflict_policy.rule */
	const char *types;			/* for people: what it is for */
	bool		(*fits) (Oid base_type);
	/* sets the result, of two versions or more */
	void		(*merge) (Column *column);
	/* keeps marks: is called for one version and for equal values, too */
	bool		has_marks;
	/* is the loser's value lost?  NULL: never */
	bool		(*loses) (const Column *loser, const Column *result);
} Rule;

static const Rule *get_rule(const ReplMlRule *rule, Form_pg_attribute att);
static const Rule *find_rule(const char *name);
static void take_values(Column *column, const ReplMlVersion *live, int count,
						Form_pg_attribute att);
static bool all_equal(const Column *column);
static int	compare_values(const TypeCacheEntry *type, Datum a, Datum b);
static bool can_be_ordered(Oid base_type);
static bool can_be_united(Oid base_type);
static bool is_jsonb(Oid base_type);
static bool takes_any(Oid base_type);
static void merge_max(Column *column);
static void merge_min(Column *column);
static void merge_counter(Column *column);
static void merge_set_union(Column *column);
static void merge_jsonb(Column *column);
static void merge_independent(Column *column);
static bool loses_jsonb(const Column *loser, const Column *result);
static bool loses_independent(const Column *loser, const Column *result);

static const Rule rules[] = {
	{.name = "max",.types = "columns whose type can be ordered",
	.fits = can_be_ordered,.merge = merge_max},
	{.name = "min",.types = "columns whose type can be ordered",
	.fits = can_be_ordered,.merge = merge_min},
	{.name = "counter",
		.types = "smallint, integer, bigint, numeric, real, double precision and arrays of them",
	.fits = repl_ml_amount_fits,.merge = merge_counter,.has_marks = true},
	{.name = "set_union",.types = "jsonb and arrays whose elements can be compared",
	.fits = can_be_united,.merge = merge_set_union},
	{.name = "jsonb_merge",.types = "jsonb",
	.fits = is_jsonb,.merge = merge_jsonb,.loses = loses_jsonb},
	{.name = "independent",.types = "any column",
	.fits = takes_any,.merge = merge_independent,.has_marks = true,.loses = loses_independent},
};

/*
 * Sets, for resolve.c, the columns that have a rule in "result", a virtual
 * slot with the resolver's row, from the "count" live ones of the concurrent
 * versions, sorted by dot.  Returns the row's clock, which is "clock" with
 * marks.
 */
const ReplMlClock *
repl_ml_merge_columns(Relation rel, const ReplMlPolicy *policy, const ReplMlVersion *live,
					  int count,
					  const ReplMlClock *clock, TupleTableSlot *result)
{
	ReplMlMarks *marks = palloc(count * sizeof(ReplMlMarks));
	ReplMlMarks result_marks = {0};

	for (int i = 0; i < count; i++)
		marks[i] = repl_ml_marks_read(live[i].clock);

	/* a column that has been dropped has a rule until somebody removes it */
	for (int i = 0; i < policy->merge_count; i++)
	{
		Form_pg_attribute att = repl_ml_share_attribute(RelationGetDescr(rel),
														NameStr(policy->merges[i]->column));
		Column		column = {.clock = clock,.marks = marks,.result_marks = &result_marks};
		const Rule *rule;

		if (att == NULL)
			continue;
		rule = get_rule(policy->merges[i], att);
		take_values(&column, live, count, att);
		if (rule->has_marks || (count > 1 && !all_equal(&column)))
			rule->merge(&column);
		result->tts_values[att->attnum - 1] = column.value;
		result->tts_isnull[att->attnum - 1] = column.isnull;
	}
	return repl_ml_marks_attach(clock, &result_marks);
}

/*
 * Returns, for the history, the names of the columns with a rule in which the
 * version "loser" has lost what it wrote: the result, with its clock as
 * repl_ml_merge_columns returned it, has something else.
 */
List *
repl_ml_merge_lost_columns(Relation rel, const ReplMlPolicy *policy, const ReplMlVersion *loser,
						   TupleTableSlot *result, const ReplMlClock *result_clock)
{
	ReplMlVersion winner = {.clock = result_clock,.dot = repl_ml_clock_dot(result_clock),
	.row = result};
	ReplMlMarks loser_marks = repl_ml_marks_read(loser->clock);
	ReplMlMarks winner_marks = repl_ml_marks_read(result_clock);
	List	   *names = NIL;

	for (int i = 0; i < policy->merge_count; i++)
	{
		Form_pg_attribute att = repl_ml_share_attribute(RelationGetDescr(rel),
														NameStr(policy->merges[i]->column));
		const Rule *rule = find_rule(policy->merges[i]->name);
		Column		lost = {.marks = &loser_marks};
		Column		kept = {.marks = &winner_marks};

		/* a rule without "loses" loses nothing: it makes the value of all */
		if (att == NULL || rule == NULL || rule->loses == NULL)
			continue;
		take_values(&lost, loser, 1, att);
		take_values(&kept, &winner, 1, att);
		if (rule->loses(&lost, &kept))
			names = lappend(names, pstrdup(NameStr(att->attname)));
	}
	return names;
}

/*
 * Returns the rule for a column; raises an error, which parks the change, if
 * it does not exist or does not fit.
 */
static const Rule *
get_rule(const ReplMlRule *rule, Form_pg_attribute att)
{
	const Rule *found = find_rule(rule->name);

	if (found != NULL && found->fits(getBaseType(att->atttypid)))
		return found;
	ereport(ERROR,
			(errcode(ERRCODE_DATATYPE_MISMATCH),
			 errmsg("column \"%s\" of type %s cannot follow the merge rule \"%s\"",
					NameStr(att->attname), format_type_be(att->atttypid), rule->name),
			 errhint("Run SELECT repl_ml.set_column_merge(...) with another rule or \"none\", then "
					 "SELECT repl_ml.retry_parked(id).")));
	return NULL;				/* keep the compiler quiet */
}

/* Returns the rule of this name; NULL if there is none. */
static const Rule *
find_rule(const char *name)
{
	for (int i = 0; i < lengthof(rules); i++)
	{
		if (strcmp(rules[i].name, name) == 0)
			return &rules[i];
	}
	return NULL;
}

/*
 * Takes a column's values out of the versions; so far the last one's is the
 * result.
 */
static void
take_values(Column *column, const ReplMlVersion *live, int count, Form_pg_attribute att)
{
	column->att = att;
	column->name = NameStr(att->attname);
	column->count = count;
	column->live = live;
	column->values = palloc(count * sizeof(Datum));
	column->nulls = palloc(count * sizeof(bool));
	for (int i = 0; i < count; i++)
		column->values[i] = slot_getattr(live[i].row, att->attnum, &column->nulls[i]);
	column->value = column->values[count - 1];
	column->isnull = column->nulls[count - 1];
}

/* Makes the value in the i'th version the result. */
static void
choose_value(Column *column, int i)
{
	column->value = column->values[i];
	column->isnull = column->nulls[i];
}

/*
 * Says whether two values of a column are equal as their type sees it, or by
 * their bytes where it has no equality; NULL is equal to NULL.
 */
static bool
values_equal(Form_pg_attribute att, Datum a, bool a_null, Datum b, bool b_null)
{
	TypeCacheEntry *type = lookup_type_cache(att->atttypid, TYPECACHE_EQ_OPR_FINFO);

	if (a_null || b_null)
		return a_null && b_null;
	if (!OidIsValid(type->eq_opr_finfo.fn_oid))
		return datum_image_eq(a, b, att->attbyval, att->attlen);
	return DatumGetBool(FunctionCall2Coll(&type->eq_opr_finfo, C_COLLATION_OID, a, b));
}

/*
 * Says whether no version has changed the column, or all have in the same way.
 */
static bool
all_equal(const Column *column)
{
	for (int i = 1; i < column->count; i++)
	{
		if (!values_equal(column->att, column->values[0], column->nulls[0], column->values[i],
						  column->nulls[i]))
			return false;
	}
	return true;
}

/* Says whether max and min can follow values of the type. */
static bool
can_be_ordered(Oid base_type)
{
	return OidIsValid(lookup_type_cache(base_type, TYPECACHE_CMP_PROC)->cmp_proc);
}

/* Says whether set_union can compare the elements of the type's values. */
static bool
can_be_united(Oid base_type)
{
	Oid			element = get_element_type(base_type);

	return base_type == JSONBOID ||
		(OidIsValid(element) && OidIsValid(lookup_type_cache(element, TYPECACHE_EQ_OPR)->eq_opr));
}

/* Says whether jsonb_merge fits the type. */
static bool
is_jsonb(Oid base_type)
{
	return base_type == JSONBOID;
}

/*
 * Says that independent fits every type: it looks at the writes, not at the
 * values.
 */
static bool
takes_any(Oid base_type)
{
	return true;
}

/* Orders two values as their type does, text byte by byte. */
static int
compare_values(const TypeCacheEntry *type, Datum a, Datum b)
{
	return DatumGetInt32(FunctionCall2Coll((FmgrInfo *) &type->cmp_proc_finfo, C_COLLATION_OID, a,
										   b));
}

/*
 * Sets the greatest value, or with sign -1 the least; of equal ones the last
 * written.  NULL is no value.
 */
static void
merge_extreme(Column *column, int sign)
{
	TypeCacheEntry *type = lookup_type_cache(column->att->atttypid, TYPECACHE_CMP_PROC_FINFO);
	int			best = 0;

	for (int i = 1; i < column->count; i++)
	{
		if (column->nulls[i])
			continue;
		if (column->nulls[best] ||
			sign * compare_values(type, column->values[i], column->values[best]) >= 0)
			best = i;
	}
	choose_value(column, best);
}

/* Merges by the rule max. */
static void
merge_max(Column *column)
{
	merge_extreme(column, 1);
}

/* Merges by the rule min. */
static void
merge_min(Column *column)
{
	merge_extreme(column, -1);
}

/* Puts a share among the others unless they have a later one of its node. */
static void
join_share(ReplMlShares *shares, const ReplMlShare *share)
{
	int			place = 0;

	while (place < shares->count && shares->all[place].write.node < share->write.node)
		place++;
	if (place == shares->count || shares->all[place].write.node != share->write.node)
	{
		memmove(&shares->all[place + 1], &shares->all[place],
				(shares->count - place) * sizeof(ReplMlShare));
		shares->count++;
	}
	else if (shares->all[place].write.counter >= share->write.counter)
		return;
	shares->all[place] = *share;
}

/*
 * Says whether the version knew of the share and has none of that node: then
 * it was made after the row had been deleted, or by somebody who set the value
 * as a whole.
 */
static bool
has_dropped(const ReplMlVersion *version, const ReplMlShares *shares, ReplMlClockEntry write)
{
	for (int i = 0; i < shares->count; i++)
	{
		if (shares->all[i].write.node == write.node)
			return false;
	}
	return repl_ml_clock_covers(version->clock, write);
}

/*
 * Returns of each node the latest share that any version has, without those
 * that were dropped.
 */
static ReplMlShares
join_shares(const Column *column, const ReplMlShares *shares)
{
	ReplMlShares joined = {0};
	ReplMlShares result = {0};
	int			room = 0;

	for (int i = 0; i < column->count; i++)
		room += shares[i].count;
	joined.all = palloc(Max(room, 1) * sizeof(ReplMlShare));
	for (int i = 0; i < column->count; i++)
	{
		for (int j = 0; j < shares[i].count; j++)
			join_share(&joined, &shares[i].all[j]);
	}

	/* a version that knew of a share and has none has taken it away */
	result.all = palloc(Max(joined.count, 1) * sizeof(ReplMlShare));
	for (int j = 0; j < joined.count; j++)
	{
		bool		dropped = false;

		for (int i = 0; i < column->count; i++)
			dropped |= has_dropped(&column->live[i], &shares[i], joined.all[j].write);
		if (!dropped)
			result.all[result.count++] = joined.all[j];
	}
	return result;
}

/* Merges by the rule counter: sets the sum of what every node has added. */
static void
merge_counter(Column *column)
{
	ReplMlShares *shares = palloc(column->count * sizeof(ReplMlShares));
	ReplMlAmount *sum = repl_ml_amount_from_datum(column->att->atttypid, (Datum) 0, true);
	ReplMlShares joined;
	bool		all_null = true;

	for (int i = 0; i < column->count; i++)
	{
		shares[i] = repl_ml_share_counter(&column->marks[i], column->live[i].clock, column->att,
										  column->values[i], column->nulls[i]);
		all_null &= column->nulls[i];
	}
	joined = join_shares(column, shares);
	for (int i = 0; i < joined.count; i++)
		sum = repl_ml_amount_add(sum, joined.all[i].amount);

	/* no node has counted anything: NULL stays */
	if (column->count > 1 && !(all_null && repl_ml_amount_is_zero(sum)))
	{
		column->value = repl_ml_amount_to_datum(sum, column->att->atttypid, column->att->atttypmod);
		column->isnull = false;
	}
	repl_ml_share_mark_counter(column->result_marks, column->clock, column->name, &joined,
							   repl_ml_amount_from_datum(column->att->atttypid, column->value,
														 column->isnull));
}

/*
 * Merges by the rule independent: sets the value whose write was the last one
 * of the column.
 */
static void
merge_independent(Column *column)
{
	ReplMlClockEntry last = {0, 0};

	for (int i = 0; i < column->count; i++)
	{
		ReplMlClockEntry dot = repl_ml_share_dot(&column->marks[i], column->live[i].clock,
												 column->name);

		if (repl_ml_clock_dot_before(dot, last))
			continue;
		last = dot;
		choose_value(column, i);
	}
	repl_ml_share_mark_dot(column->result_marks, column->clock, column->name, last);
}

/*
 * Says whether the loser's own write changed the column, and another write of
 * the column was kept.
 */
static bool
loses_independent(const Column *loser, const Column *result)
{
	ReplMlClockEntry own = loser->live->dot;
	ReplMlClockEntry lost = repl_ml_share_dot(loser->marks, loser->live->clock, loser->name);
	ReplMlClockEntry kept = repl_ml_share_dot(result->marks, result->live->clock, result->name);

	return lost.node == own.node && lost.counter == own.counter &&
		(kept.node != own.node || kept.counter != own.counter) &&
		!values_equal(loser->att, loser->value, loser->isnull, result->value, result->isnull);
}

/* Merges by the rule set_union: see unite.c. */
static void
merge_set_union(Column *column)
{
	column->value = repl_ml_unite_sets(column->att->atttypid, column->values, column->nulls,
									   column->count, &column->isnull);
}

/* Merges by the rule jsonb_merge: see unite.c. */
static void
merge_jsonb(Column *column)
{
	column->value = repl_ml_unite_objects(column->att->atttypid, column->values, column->nulls,
										  column->count, &column->isnull);
}

/* Says whether some key of the loser's object has another value now. */
static bool
loses_jsonb(const Column *loser, const Column *result)
{
	if (loser->isnull)
		return false;
	return result->isnull ||
		!DatumGetBool(DirectFunctionCall2(jsonb_contains, result->value, loser->value));
}

/*
 * Raises the error that refuses a rule for a column, with what to do instead.
 */
static void
refuse_rule(const char *rule, Form_pg_attribute att, const char *why, const char *hint)
{
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("column \"%s\" cannot follow the merge rule \"%s\"", NameStr(att->attname),
					rule),
			 errdetail_internal("%s", why),
			 errhint("%s", hint)));
}

/*
 * Refuses columns that no version of a row differs in, or that nodes compute.
 */
static void
check_column(Relation rel, Form_pg_attribute att, const char *rule)
{
	ReplMlTable *table = repl_ml_table_get(rel);
	TupleDesc	desc = RelationGetDescr(rel);

	if (att->attnum == table->clock_attnum)
		refuse_rule(rule, att, "It is the row's clock.", "Choose a column of your own.");
	if (att->attgenerated != '\0')
		refuse_rule(rule, att,
					"It is a generated column: every node computes it from the merged row.",
					"Choose the columns it is computed from.");
	for (int i = 0; i < table->key_natts; i++)
	{
		if (table->key_attnums[i] == att->attnum)
			refuse_rule(rule, att,
						"It is part of the primary key, which all versions of a row have in "
						"common.",
						"Choose a column outside of the key.");
	}

	/* marks name columns by hashes of their names (wire/marks.c) */
	for (int i = 0; i < desc->natts; i++)
	{
		Form_pg_attribute other = TupleDescAttr(desc, i);

		if (!other->attisdropped && other->attnum != att->attnum &&
			repl_ml_marks_column(NameStr(other->attname)) ==
			repl_ml_marks_column(NameStr(att->attname)))
			refuse_rule(rule, att,
						psprintf("Its name has the same hash as that of column \"%s\".",
								 NameStr(other->attname)),
						"Rename the column on every node.");
	}
}

/*
 * repl_ml.check_column_merge(relation, column_name, merge): called by
 * repl_ml.set_column_merge, raises an error if the column cannot follow that
 * rule.
 */
PG_FUNCTION_INFO_V1(repl_ml_check_column_merge);
Datum
repl_ml_check_column_merge(PG_FUNCTION_ARGS)
{
	Relation	rel = table_open(PG_GETARG_OID(0), AccessShareLock);
	const char *column = NameStr(*PG_GETARG_NAME(1));
	const char *name = text_to_cstring(PG_GETARG_TEXT_PP(2));
	Form_pg_attribute att = repl_ml_share_attribute(RelationGetDescr(rel), column);
	const Rule *rule = find_rule(name);

	if (att == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_COLUMN),
				 errmsg("column \"%s\" of table \"%s\" does not exist", column,
						RelationGetRelationName(rel)),
				 errhint("Name a column of the table.")));
	if (rule == NULL && strcmp(name, "none") != 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("merge rule \"%s\" does not exist", name),
				 errhint("Use max, min, counter, set_union, jsonb_merge, independent or none.")));
	if (rule != NULL)
	{
		check_column(rel, att, name);
		if (!rule->fits(getBaseType(att->atttypid)))
			refuse_rule(name, att, psprintf("Its type is %s.", format_type_be(att->atttypid)),
						psprintf("This rule is for %s.", rule->types));
	}
	table_close(rel, AccessShareLock);
	PG_RETURN_VOID();
}
