#include "postgres.h"
#include "apply/apply.h"
const ReplMlClock *
repl_ml_merge_columns(Relation rel, const ReplMlPolicy *policy, const ReplMlVersion *live, int count,
					  const ReplMlClock *clock, TupleTableSlot *result)
{
	return clock;
}
List *
repl_ml_merge_lost_columns(Relation rel, const ReplMlPolicy *policy, const ReplMlVersion *loser,
						   TupleTableSlot *result, const ReplMlClock *result_clock)
{
	return NIL;
}

PG_FUNCTION_INFO_V1(repl_ml_check_column_merge);
Datum
repl_ml_check_column_merge(PG_FUNCTION_ARGS)
{
	PG_RETURN_VOID();
}
