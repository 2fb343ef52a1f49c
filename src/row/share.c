/*
 * share.c
 *		Who has changed which part of a row: columns with the merge rules
 *		"counter" and "independent".
 *
 * Reads and writes the marks of a row's clock (wire/marks.c) as what they
 * mean: the write that last changed a column, or what each node has added to a
 * counter.  The writing backend says so of each update (write/stamp.c), so
 * that concurrent versions can be merged column by column (converge/merge.c).
 *
 * A mark that says no more than its absence is left out.  Infinite numbers and
 * NaN have no shares: who wrote one is taken to have set the whole value.
 *
 * Not what versions amount to together (converge/merge.c), nor a mark's bytes
 * (wire/marks.c).  No locks, no catalogs, no state; results are palloc'd.
 */
#include "postgres.h"

#include "access/detoast.h"
#include "access/htup_details.h"
#include "utils/datum.h"

#include "row/row.h"
#include "wire/wire.h"

static ReplMlMark *add_mark(ReplMlMarks *marks, const char *column);
static void mark_column(ReplMlMarks *marks, const ReplMlRule *rule, TupleDesc desc, HeapTuple old,
						HeapTuple new,
						const ReplMlMarks *old_marks, const ReplMlClock *old_clock,
						const ReplMlClock *clock);
static void add_share(ReplMlShares *shares, ReplMlClockEntry dot, const ReplMlAmount *delta);
static bool same_write(ReplMlClockEntry a, ReplMlClockEntry b);
static bool is_unchanged(Form_pg_attribute att, Datum old, bool old_null, Datum new, bool new_null);

/* Returns a column by its name; NULL if there is none. */
Form_pg_attribute
repl_ml_share_attribute(TupleDesc desc, const char *column)
{
	for (int i = 0; i < desc->natts; i++)
	{
		Form_pg_attribute att = TupleDescAttr(desc, i);

		if (!att->attisdropped && strcmp(NameStr(att->attname), column) == 0)
			return att;
	}
	return NULL;
}

/*
 * Returns the write that last changed the column, in a row with this clock and
 * its marks.
 */
ReplMlClockEntry
repl_ml_share_dot(const ReplMlMarks *marks, const ReplMlClock *clock, const char *column)
{
	const ReplMlMark *mark = repl_ml_marks_find(marks, repl_ml_marks_column(column));

	return mark != NULL && !mark->is_counter ? mark->dot : repl_ml_clock_dot(clock);
}

/*
 * Returns what each node has added to a counter, in a row with this clock and
 * its marks.  Without a mark the last writer has set the whole value.
 */
ReplMlShares
repl_ml_share_counter(const ReplMlMarks *marks, const ReplMlClock *clock,
					  Form_pg_attribute att, Datum value, bool isnull)
{
	const ReplMlMark *mark = repl_ml_marks_find(marks, repl_ml_marks_column(NameStr(att->attname)));
	ReplMlClockEntry dot = repl_ml_clock_dot(clock);
	ReplMlShares shares = {0};

	if (mark != NULL && mark->is_counter)
	{
		/* one more: add_share may need it */
		shares.all = palloc((mark->count + 1) * sizeof(ReplMlShare));
		for (shares.count = 0; shares.count < mark->count; shares.count++)
		{
			shares.all[shares.count].write = mark->contributions[shares.count].write;
			shares.all[shares.count].amount =
				repl_ml_amount_from_text(mark->contributions[shares.count].sum);
		}
		return shares;
	}
	shares.all = palloc(2 * sizeof(ReplMlShare));
	if (dot.counter != 0)
		shares.all[shares.count++] = (ReplMlShare) {
			.write = dot,.amount = repl_ml_amount_from_datum(att->atttypid, value, isnull)
		};
	return shares;
}

/*
 * Marks that "dot" last changed the column, unless the clock says so itself.
 */
void
repl_ml_share_mark_dot(ReplMlMarks *marks, const ReplMlClock *clock, const char *column,
					   ReplMlClockEntry dot)
{
	if (dot.counter != 0 && !same_write(dot, repl_ml_clock_dot(clock)))
		add_mark(marks, column)->dot = dot;
}

/*
 * Marks what each node has added to the counter's value, unless the clock says
 * so itself.
 */
void
repl_ml_share_mark_counter(ReplMlMarks *marks, const ReplMlClock *clock, const char *column,
						   const ReplMlShares *shares, const ReplMlAmount *value)
{
	ReplMlMark *mark;

	for (int i = 0; i < shares->count; i++)
	{
		if (!repl_ml_amount_is_finite(shares->all[i].amount))
			return;
	}

	/* a mark that says no more than the clock is left out */
	if (!repl_ml_amount_is_finite(value) ||
		(shares->count == 1 && same_write(shares->all[0].write, repl_ml_clock_dot(clock)) &&
		 repl_ml_amount_is_zero(repl_ml_amount_subtract(shares->all[0].amount, value))))
		return;

	mark = add_mark(marks, column);
	mark->is_counter = true;
	mark->count = shares->count;
	mark->contributions = palloc(Max(mark->count, 1) * sizeof(ReplMlContribution));
	for (int i = 0; i < mark->count; i++)
	{
		mark->contributions[i].write = shares->all[i].write;
		mark->contributions[i].sum = repl_ml_amount_to_text(shares->all[i].amount);
	}
}

/* Adds an empty mark of a column. */
static ReplMlMark *
add_mark(ReplMlMarks *marks, const char *column)
{
	ReplMlMark *mark;

	if (marks->count == 0)
		marks->all = palloc(sizeof(ReplMlMark));
	else
		marks->all = repalloc(marks->all, (marks->count + 1) * sizeof(ReplMlMark));
	mark = &marks->all[marks->count++];
	memset(mark, 0, sizeof(*mark));
	mark->column = repl_ml_marks_column(column);
	return mark;
}

/*
 * Returns, for the backend that stamps an update, the clock, with its marks,
 * of the row that the update by the clock's dot has made of an older version.
 */
ReplMlClock *
repl_ml_share_update(const ReplMlPolicy *policy, TupleDesc desc, HeapTuple old, HeapTuple new,
					 const ReplMlClock *old_clock, const ReplMlClock *clock)
{
	ReplMlMarks old_marks = repl_ml_marks_read(old_clock);
	ReplMlMarks marks = {0};

	for (int i = 0; i < policy->merge_count; i++)
		mark_column(&marks, policy->merges[i], desc, old, new, &old_marks, old_clock, clock);
	return repl_ml_marks_attach(clock, &marks);
}

/* Adds the mark of a column, if it needs one. */
static void
mark_column(ReplMlMarks *marks, const ReplMlRule *rule, TupleDesc desc, HeapTuple old,
			HeapTuple new,
			const ReplMlMarks *old_marks, const ReplMlClock *old_clock, const ReplMlClock *clock)
{
	bool		is_counter = strcmp(rule->name, "counter") == 0;
	Form_pg_attribute att = repl_ml_share_attribute(desc, NameStr(rule->column));
	Datum		old_value;
	Datum		new_value;
	bool		old_null;
	bool		new_null;
	bool		unchanged;

	if (att == NULL || (!is_counter && strcmp(rule->name, "independent") != 0) ||
		(is_counter && !repl_ml_amount_fits(att->atttypid)))
		return;
	old_value = heap_getattr(old, att->attnum, desc, &old_null);
	new_value = heap_getattr(new, att->attnum, desc, &new_null);
	unchanged = is_unchanged(att, old_value, old_null, new_value, new_null);

	/*
	 * a counter's mark has to be renewed also where it is not changed: the
	 * clock has moved on
	 */
	if (is_counter)
	{
		ReplMlShares shares = repl_ml_share_counter(old_marks, old_clock, att, old_value, old_null);
		ReplMlAmount *value = repl_ml_amount_from_datum(att->atttypid, new_value, new_null);

		if (!unchanged)
			add_share(&shares, repl_ml_clock_dot(clock),
					  repl_ml_amount_subtract(value,
											  repl_ml_amount_from_datum(att->atttypid, old_value,
																		old_null)));
		repl_ml_share_mark_counter(marks, clock, NameStr(att->attname), &shares, value);
	}
	else if (unchanged)
		repl_ml_share_mark_dot(marks, clock, NameStr(att->attname),
							   repl_ml_share_dot(old_marks, old_clock, NameStr(att->attname)));
}

/*
 * Adds what the write "dot" has added to the shares; there is room for one
 * more.
 */
static void
add_share(ReplMlShares *shares, ReplMlClockEntry dot, const ReplMlAmount *delta)
{
	int			place = 0;

	if (repl_ml_amount_is_zero(delta))
		return;
	while (place < shares->count && shares->all[place].write.node < dot.node)
		place++;
	if (place == shares->count || shares->all[place].write.node != dot.node)
	{
		memmove(&shares->all[place + 1], &shares->all[place],
				(shares->count - place) * sizeof(ReplMlShare));
		shares->all[place].amount = repl_ml_amount_subtract(delta, delta);
		shares->count++;
	}
	shares->all[place].write = dot;
	shares->all[place].amount = repl_ml_amount_add(shares->all[place].amount, delta);
}

/* Says whether both are the same write. */
static bool
same_write(ReplMlClockEntry a, ReplMlClockEntry b)
{
	return a.node == b.node && a.counter == b.counter;
}

/*
 * Says whether the update has left the column's value alone.  Of values out of
 * line that are the same bytes on disk nothing is read.
 */
static bool
is_unchanged(Form_pg_attribute att, Datum old, bool old_null, Datum new, bool new_null)
{
	if (old_null || new_null)
		return old_null && new_null;
	if (att->attlen == -1 && VARATT_IS_EXTERNAL_ONDISK(DatumGetPointer(old)) &&
		VARATT_IS_EXTERNAL_ONDISK(DatumGetPointer(new)) &&
		memcmp(DatumGetPointer(old), DatumGetPointer(new),
			   VARSIZE_EXTERNAL(DatumGetPointer(old))) == 0)
		return true;
	return datum_image_eq(old, new, att->attbyval, att->attlen);
}
