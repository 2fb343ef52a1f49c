/*
 * consistency.c
 *		Write consistency from SQL: which members can be reached and how they read
 *		what this node writes, which commits wait for whom, what became of those
 *		that did.
 *
 * Under the views nodes, stat_replication, stat_write_waiters,
 * stat_write_consistency and health, which put names to the numbers.  The state
 * itself, and its lock, are those of commit/.  Called by backends only.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/pg_lsn.h"
#include "utils/timestamp.h"

#include "commit/commit.h"
#include "server/server.h"

#define MEMBER_COLUMNS		4
#define LINK_COLUMNS		9
#define WAITER_COLUMNS		6
#define STATS_COLUMNS		12

/* Returns a time as an interval. */
static Datum
microseconds(int64 time)
{
	Interval   *interval = palloc0(sizeof(Interval));

	interval->time = time;
	return IntervalPGetDatum(interval);
}

PG_FUNCTION_INFO_V1(repl_ml_write_members);

/*
 * repl_ml.write_members(): returns a row for each ready member; none while
 * they are not known.
 */
Datum
repl_ml_write_members(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	ReplMlMemberState *states;
	int			count;

	repl_ml_shmem_require();
	InitMaterializedSRF(fcinfo, 0);
	states = palloc((REPL_ML_MAX_WORKERS + 1) * sizeof(ReplMlMemberState));
	count = repl_ml_members_states(states);
	for (int i = 0; i < count; i++)
	{
		/* to commit/ this node is 0 */
		const ReplMlMemberState *state = &states[i];
		int			node_id = state->node_id == 0 ? repl_ml_identity()->node_id : state->node_id;
		Datum		values[MEMBER_COLUMNS] = {Int32GetDatum(node_id),
			BoolGetDatum(state->reachable), LSNGetDatum(state->acknowledged),
			microseconds(state->silent)};
		bool		nulls[MEMBER_COLUMNS] = {false, false,
			XLogRecPtrIsInvalid(state->acknowledged), state->silent < 0};

		tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
	}
	return (Datum) 0;
}

PG_FUNCTION_INFO_V1(repl_ml_link_stats);

/* repl_ml.link_stats(): returns a row for each peer that reads here, or has. */
Datum
repl_ml_link_stats(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	ReplMlLinkState *states;
	int			count;
	TimestampTz now = GetCurrentTimestamp();

	repl_ml_shmem_require();
	InitMaterializedSRF(fcinfo, 0);
	states = palloc(REPL_ML_MAX_WORKERS * sizeof(ReplMlLinkState));
	count = repl_ml_members_links(states);
	for (int i = 0; i < count; i++)
	{
		const ReplMlLinkState *state = &states[i];
		Datum		values[LINK_COLUMNS] = {Int32GetDatum(state->peer),
			BoolGetDatum(state->paused), BoolGetDatum(state->reachable),
			TimestampTzGetDatum(now - state->silent), Int64GetDatum(state->connections),
			Int64GetDatum(state->sent_bytes), TimestampTzGetDatum(state->since),
			Float8GetDatum(state->rate), Float8GetDatum(state->sent_rate)};
		bool		nulls[LINK_COLUMNS] = {false, false, !state->known, state->silent < 0};

		nulls[LINK_COLUMNS - 2] = state->rate < 0;
		nulls[LINK_COLUMNS - 1] = state->sent_rate < 0;
		tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
	}
	return (Datum) 0;
}

/* Returns ids of nodes as an array. */
static Datum
node_array(const int *nodes, int count)
{
	Datum	   *elements = palloc(Max(count, 1) * sizeof(Datum));

	for (int i = 0; i < count; i++)
		elements[i] = Int32GetDatum(nodes[i]);
	return PointerGetDatum(construct_array(elements, count, INT4OID, sizeof(int32), true,
										   TYPALIGN_INT));
}

PG_FUNCTION_INFO_V1(repl_ml_write_waiters);

/*
 * repl_ml.write_waiters(): returns a row for each commit that waits to be
 * acknowledged.
 */
Datum
repl_ml_write_waiters(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	ReplMlWaiting *waiting;
	int			count;

	repl_ml_shmem_require();
	InitMaterializedSRF(fcinfo, 0);
	waiting = palloc(MaxBackends * sizeof(ReplMlWaiting));
	count = repl_ml_waiter_list(waiting);
	for (int i = 0; i < count; i++)
	{
		const ReplMlWaiting *waiter = &waiting[i];
		Datum		values[WAITER_COLUMNS] = {Int32GetDatum(waiter->pid),
			CStringGetTextDatum(repl_ml_level_name(waiter->level)), Int32GetDatum(waiter->required),
			TimestampTzGetDatum(waiter->since), LSNGetDatum(waiter->lsn),
			node_array(waiter->parked_on, waiter->parked_count)};
		bool		nulls[WAITER_COLUMNS] = {false, false, false, false,
			XLogRecPtrIsInvalid(waiter->lsn), false};

		tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
	}
	return (Datum) 0;
}

/* Returns how many waits are in each bucket, as an array. */
static Datum
histogram_array(const ReplMlLevelStats *stats)
{
	Datum		elements[REPL_ML_WAIT_BUCKETS];

	for (int i = 0; i < REPL_ML_WAIT_BUCKETS; i++)
		elements[i] = Int64GetDatum(stats->histogram[i]);
	return PointerGetDatum(construct_array(elements, REPL_ML_WAIT_BUCKETS, INT8OID, sizeof(int64),
										   FLOAT8PASSBYVAL, TYPALIGN_DOUBLE));
}

/*
 * Returns the upper bounds of the buckets, as an array; the last one has none.
 */
static Datum
bounds_array(void)
{
	Datum		elements[REPL_ML_WAIT_BUCKETS - 1];

	for (int i = 0; i < REPL_ML_WAIT_BUCKETS - 1; i++)
		elements[i] = microseconds(repl_ml_wait_bounds[i]);
	return PointerGetDatum(construct_array(elements, REPL_ML_WAIT_BUCKETS - 1, INTERVALOID,
										   sizeof(Interval),
										   false, TYPALIGN_DOUBLE));
}

/* Puts what became of the commits of a level into the result. */
static void
put_level(ReturnSetInfo *rsinfo, ReplMlLevel level)
{
	ReplMlLevelStats stats = repl_ml_waiter_stats(level);
	Datum		values[STATS_COLUMNS];
	bool		nulls[STATS_COLUMNS] = {false};
	int			i = 0;

	values[i++] = CStringGetTextDatum(repl_ml_level_name(level));
	values[i++] = Int64GetDatum(stats.acknowledged);
	values[i++] = Int64GetDatum(stats.refused);
	values[i++] = Int64GetDatum(stats.timeouts);
	values[i++] = Int64GetDatum(stats.cancelled);
	values[i++] = microseconds(stats.total_wait);
	/* of no waits there is no least one */
	nulls[i] = stats.acknowledged == 0;
	values[i++] = microseconds(stats.min_wait);
	nulls[i] = stats.acknowledged == 0;
	values[i++] = microseconds(stats.max_wait);
	values[i++] = bounds_array();
	values[i++] = histogram_array(&stats);
	values[i++] = TimestampTzGetDatum(stats.since);
	values[i++] = Int64GetDatum(stats.parked);
	tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
}

PG_FUNCTION_INFO_V1(repl_ml_write_stats);

/* repl_ml.write_stats(): returns a row for each level above one. */
Datum
repl_ml_write_stats(PG_FUNCTION_ARGS)
{
	repl_ml_shmem_require();
	InitMaterializedSRF(fcinfo, 0);
	for (int level = REPL_ML_QUORUM; level < REPL_ML_LEVELS; level++)
		put_level((ReturnSetInfo *) fcinfo->resultinfo, level);
	return (Datum) 0;
}

PG_FUNCTION_INFO_V1(repl_ml_reset_write_stats);

/* repl_ml.reset_write_stats(): makes commits be counted from zero. */
Datum
repl_ml_reset_write_stats(PG_FUNCTION_ARGS)
{
	repl_ml_shmem_require();
	repl_ml_waiter_reset_stats();
	PG_RETURN_VOID();
}
