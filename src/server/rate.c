/*
 * rate.c
 *		How many bytes come, or go, in a second: over the last ten to twenty.
 *
 * A count is noted from time to time by whoever counts, under the lock of what it
 * is in.  Nothing is averaged over what is longer ago, so a rate is 0 as soon as
 * nothing has come for that long.
 */
#include "postgres.h"

#include "server/server.h"

#define APART_US	UINT64CONST(10000000)	/* between the two moments */

/* Called by who counts, with the count so far, as often as he likes. */
void
repl_ml_rate_note(ReplMlRate *rate, int64 bytes)
{
	uint64		now = repl_ml_monotonic_now();

	if (rate->time[1] != 0 && now - rate->time[1] < APART_US)
		return;
	rate->time[0] = rate->time[1];
	rate->bytes[0] = rate->bytes[1];
	rate->time[1] = now;
	rate->bytes[1] = bytes;
}

/* Returns the rate, with the count so far, for views; -1 if it is not known yet. */
double
repl_ml_rate_get(const ReplMlRate *rate, int64 bytes)
{
	uint64		now = repl_ml_monotonic_now();
	int			from = rate->time[0] == 0 ? 1 : 0;

	/* who notes nothing for long has counted nothing lately */
	if (rate->time[1] != 0 && now - rate->time[1] > 2 * APART_US)
		from = 1;
	if (rate->time[from] == 0 || now <= rate->time[from])
		return -1;
	return (bytes - rate->bytes[from]) / ((now - rate->time[from]) / 1e6);
}
