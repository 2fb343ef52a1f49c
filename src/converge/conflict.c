/*
 * conflict.c
 *		Which versions of a row remain when one more arrives: decided from their
 *		clocks alone.
 *
 * Pure functions: no table, no globals, no node's point of view.  What remains
 * is every version that no other one seen knows of, so it does not depend on
 * the order in which they arrive, nor on how often.  What the row becomes is
 * then resolve.c's, from the set as a whole.  No locks: row.c, which calls
 * this, holds the row's or the key's.
 *
 * A version that lost a unique key is followed by a deletion with its very
 * dot, the eviction (unique.c): it takes the version's place in the set.
 */
#include "postgres.h"

#include "converge/converge.h"
#include "row/row.h"
#include "wire/wire.h"

static void remove_known(ReplMlVersions *versions, const ReplMlClock *clock);

/*
 * Adds a version to a set of concurrent ones, "seen" being the merge of all
 * clocks of the row's history so far.  Returns false if that changes nothing:
 * the version, or one that knew of it, was there before.
 */
bool
repl_ml_conflict_add(ReplMlVersions *versions, const ReplMlClock *seen,
					 const ReplMlVersion *arriving)
{
	for (int i = 0; i < versions->count; i++)
	{
		ReplMlVersion *twin = &versions->all[i];

		if (twin->dot.node != arriving->dot.node || twin->dot.counter != arriving->dot.counter)
			continue;
		/*
		 * an eviction takes its version's place; whatever else comes twice
		 * says nothing new
		 */
		if (twin->deleted || !arriving->deleted)
			return false;
		twin->deleted = true;
		twin->row = NULL;
		twin->eviction = arriving->eviction;
		return true;
	}
	if (repl_ml_clock_covers(seen, arriving->dot))
		return false;
	remove_known(versions, arriving->clock);
	*repl_ml_conflict_insert(versions, arriving->dot) = *arriving;
	return true;
}

/* Takes the versions out of the set that the later write knew of. */
static void
remove_known(ReplMlVersions *versions, const ReplMlClock *clock)
{
	int			count = 0;

	for (int i = 0; i < versions->count; i++)
	{
		if (!repl_ml_clock_covers(clock, versions->all[i].dot))
			versions->all[count++] = versions->all[i];
	}
	versions->count = count;
}

/*
 * Makes room in the set for one more version, and returns its place, by its
 * dot: whoever reads the set finds it sorted.  The set is palloc'd, or grown
 * where it is.
 */
ReplMlVersion *
repl_ml_conflict_insert(ReplMlVersions *versions, ReplMlClockEntry dot)
{
	int			place = versions->count;

	if (versions->count == versions->room)
	{
		versions->room = Max(4, 2 * versions->room);
		versions->all = versions->all == NULL ? palloc(versions->room * sizeof(ReplMlVersion)) :
			repalloc(versions->all, versions->room * sizeof(ReplMlVersion));
	}
	for (; place > 0 && repl_ml_clock_dot_before(dot, versions->all[place - 1].dot); place--)
		versions->all[place] = versions->all[place - 1];
	versions->count++;
	memset(&versions->all[place], 0, sizeof(ReplMlVersion));
	versions->all[place].dot = dot;
	return &versions->all[place];
}
