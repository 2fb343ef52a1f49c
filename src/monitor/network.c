/*
 * network.c
 *		Connections to and from peers from SQL, for the view stat_network.
 *
 * What apply workers have measured (apply/network.c), and what walsenders have
 * sent (commit/members.c); percentiles are made here.  Called by backends.  No locks.
 */
#include "postgres.h"

#include "funcapi.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

#include "server/server.h"

#define COLUMNS				20
#define OFFSET_SAMPLES		8	/* the best of the last ones tells of the clock */

/* Orders round trips, for qsort. */
static int
compare_round_trips(const void *a, const void *b)
{
	uint32		x = *(const uint32 *) a;
	uint32		y = *(const uint32 *) b;

	return (x > y) - (x < y);
}

/* Returns a time in µs as an interval, null if it is below 0. */
static Datum
interval_or_null(double time, bool *isnull)
{
	Interval   *interval = palloc0(sizeof(Interval));

	*isnull = time < 0;
	interval->time = (int64) time;
	return IntervalPGetDatum(interval);
}

/* Returns the round trip that a part of all do not exceed; -1 if there are none. */
static double
percentile(const uint32 *sorted, int count, double part)
{
	return count == 0 ? -1 : sorted[Min((int) (count * part), count - 1)];
}

/*
 * Puts the peer's clock at *i of a row: by how much it is ahead of ours, and by how
 * much that may be wrong, out of the shortest of the last round trips.
 */
static void
put_clock(const ReplMlNetwork *network, Datum *values, bool *nulls, int *i)
{
	int			best = -1;

	for (int back = 1; back <= Min(network->count, OFFSET_SAMPLES); back++)
	{
		int			place = (network->next + REPL_ML_ROUND_TRIPS - back) % REPL_ML_ROUND_TRIPS;

		if (best < 0 || network->round_trips[place] < network->round_trips[best])
			best = place;
	}
	values[*i] = interval_or_null(0, &nulls[*i]);
	DatumGetIntervalP(values[*i])->time = best < 0 ? 0 : network->offsets[best];
	nulls[(*i)++] = best < 0;
	values[*i] = interval_or_null(best < 0 ? -1 : network->round_trips[best] / 2.0, &nulls[*i]);
	(*i)++;
}

/* Puts the round trips at *i of a row. */
static void
put_round_trips(const ReplMlNetwork *network, Datum *values, bool *nulls, int *i)
{
	uint32		sorted[REPL_ML_ROUND_TRIPS];
	int			last = (network->next + REPL_ML_ROUND_TRIPS - 1) % REPL_ML_ROUND_TRIPS;
	double		sum = 0;
	double		shown[4];

	memcpy(sorted, network->round_trips, sizeof(sorted));
	qsort(sorted, network->count, sizeof(uint32), compare_round_trips);
	for (int k = 0; k < network->count; k++)
		sum += sorted[k];
	shown[0] = network->count == 0 ? -1 : network->round_trips[last];
	shown[1] = network->count == 0 ? -1 : sum / network->count;
	shown[2] = percentile(sorted, network->count, 0.95);
	shown[3] = percentile(sorted, network->count, 0.99);
	for (int k = 0; k < lengthof(shown); k++)
	{
		values[*i] = interval_or_null(shown[k], &nulls[*i]);
		(*i)++;
	}
	values[(*i)++] = Int32GetDatum(network->count);
	nulls[*i] = network->measured_time == 0;
	values[(*i)++] = TimestampTzGetDatum(network->measured_time);
}

/* Puts a worker's connection into the result. */
static void
put_network(ReturnSetInfo *rsinfo, const ReplMlWorker *worker)
{
	const ReplMlNetwork *network = &worker->network;
	Datum		values[COLUMNS];
	bool		nulls[COLUMNS] = {false};
	double		rate = network->connected_since == 0 ? 0 :
		repl_ml_rate_get(&network->rate, worker->received_bytes);
	int			i = 0;

	values[i++] = Int32GetDatum(worker->peer);
	nulls[i] = network->connected_since == 0;
	values[i++] = TimestampTzGetDatum(network->connected_since);
	put_round_trips(network, values, nulls, &i);
	put_clock(network, values, nulls, &i);
	values[i++] = Int64GetDatum(network->pings);
	values[i++] = Int64GetDatum(network->pings_lost);
	values[i] = interval_or_null(network->unanswered_since == 0 ? -1 :
								 (double) (repl_ml_monotonic_now() - network->unanswered_since),
								 &nulls[i]);
	i++;
	values[i++] = Int64GetDatum(network->heartbeats);
	values[i++] = Int64GetDatum(network->heartbeats_late);
	values[i++] = Int64GetDatum(network->heartbeats_lost);
	values[i++] = Int64GetDatum(network->connections);
	nulls[i] = network->disconnect_time == 0;
	values[i++] = TimestampTzGetDatum(network->disconnect_time);
	nulls[i] = network->disconnect_time == 0;
	values[i++] = CStringGetTextDatum(network->disconnect_cause);
	nulls[i] = rate < 0;
	values[i++] = Float8GetDatum(rate);
	Assert(i == COLUMNS);
	tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
}

PG_FUNCTION_INFO_V1(repl_ml_network_stats);

/* repl_ml.network_stats(): returns a row for each apply worker of this database. */
Datum
repl_ml_network_stats(PG_FUNCTION_ARGS)
{
	int			count;
	ReplMlWorker *copies = repl_ml_shmem_copy_workers(&count);

	InitMaterializedSRF(fcinfo, 0);
	for (int i = 0; i < count; i++)
	{
		/* not the supervisor */
		if (copies[i].peer != 0)
			put_network((ReturnSetInfo *) fcinfo->resultinfo, &copies[i]);
	}
	return (Datum) 0;
}
