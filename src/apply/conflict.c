/*
 * conflict.c
 *		Which of two versions of a row remains: decided from their clocks alone.
 *
 * A pure function: no table, no globals, no node's point of view except which
 * version is here and which arrives.  Every node that sees the same versions
 * comes to the same end, in whatever order they arrive.
 */
#include "postgres.h"

#include "apply/apply.h"

/*
 * The verdict on two versions of which either may be a deletion.
 *
 * A version's content is its last write, the clock's dot.  Clocks may be
 * concurrent although one side's content was known to the other (it had been
 * joined with a version that lost): then nothing is lost and it is no
 * conflict.  Concurrent versions with the same content are none either.
 */
ReplMlVerdict
repl_ml_conflict_decide(const ReplMlClock *here, const ReplMlClock *arriving, bool same_content)
{
	ReplMlVerdict verdict = {.conflict = false};
	ReplMlClockOrder order = repl_ml_clock_compare(arriving, here);

	if (order == REPL_ML_CLOCK_BEFORE || order == REPL_ML_CLOCK_EQUAL)
	{
		verdict.action = REPL_ML_KEEP;
		verdict.clock = here;
		return verdict;
	}
	if (order == REPL_ML_CLOCK_AFTER)
	{
		verdict.action = REPL_ML_TAKE;
		verdict.clock = arriving;
		return verdict;
	}

	verdict.clock = repl_ml_clock_merge(here, arriving);
	if (same_content || repl_ml_clock_covers(here, repl_ml_clock_dot(arriving)))
		verdict.action = REPL_ML_KEEP_RECLOCK;
	else if (repl_ml_clock_covers(arriving, repl_ml_clock_dot(here)))
		verdict.action = REPL_ML_TAKE;
	else
	{
		verdict.conflict = true;
		verdict.action = repl_ml_resolve_arriving_wins("last_write", here, arriving) ?
			REPL_ML_TAKE : REPL_ML_KEEP_RECLOCK;
	}
	return verdict;
}
