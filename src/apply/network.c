/*
 * network.c
 *		What the apply worker measures of its connection to the peer: round trips,
 *		the peer's clock, heartbeats, and why connections ended.
 *
 * A status a second asks for an echo (REPL_ML_ECHO).  The stream is in order, so
 * an echo is of the last status that the walsender has looked at, and what it
 * leaves out was not lost.  A round trip is to the peer's walsender and back; those
 * are left out in which this process was at work and could not listen.  The peer's
 * clock is taken to be that of the middle, which is wrong by half a round trip at
 * most.
 *
 * Shown by monitor/network.c.  Called by group/worker.c, and by change.c with
 * heartbeats.  Locks: repl_ml_shared->lock.
 */
#include "postgres.h"

#include "utils/timestamp.h"

#include "apply/apply.h"
#include "server/server.h"

#define PINGS			16		/* that are remembered */
#define LATE_BEATS		2		/* a heartbeat is late when so many should have come */

/* A status that wanted an echo. */
typedef struct Ping
{
	TimestampTz time;			/* that it had; 0: none */
	uint64		sent;			/* monotonic µs */
	uint64		busy;			/* how long we had been at work then */
} Ping;

/* Of this connection, unanswered ones only; this file's. */
static Ping pings[PINGS];
static int	next_ping = 0;
static uint64 busy = 0;			/* µs that messages have taken, ever */
static uint64 last_heartbeat = 0;	/* monotonic; 0: none over this connection */

/* Called with what a message of the stream took: nobody listened meanwhile. */
void
repl_ml_network_busy(uint64 time)
{
	busy += time;
}

/* Called when a status has been sent that wants an echo, with a moment before that. */
void
repl_ml_network_ping(ReplMlApply *apply, TimestampTz time, uint64 sent)
{
	ReplMlNetwork *network = &apply->worker->network;

	pings[next_ping] = (Ping) {.time = time,.sent = sent,.busy = busy};
	next_ping = (next_ping + 1) % PINGS;
	LWLockAcquire(repl_ml_shared->lock, LW_EXCLUSIVE);
	network->pings++;
	if (network->unanswered_since == 0)
		network->unanswered_since = sent;
	LWLockRelease(repl_ml_shared->lock);
}

/* Adds a round trip to those that are shown. */
static void
note_round_trip(ReplMlNetwork *network, uint64 round_trip, int64 offset)
{
	network->round_trips[network->next] = (uint32) Min(round_trip, PG_UINT32_MAX);
	network->offsets[network->next] = offset;
	network->next = (network->next + 1) % REPL_ML_ROUND_TRIPS;
	network->count = Min(network->count + 1, REPL_ML_ROUND_TRIPS);
	network->measured_time = GetCurrentTimestamp();
}

/*
 * Called with an echo: the time of the status that it answers, and the peer's own
 * when it did.
 */
void
repl_ml_network_echo(ReplMlApply *apply, TimestampTz time, TimestampTz peer_time)
{
	/* in this order: a moment between them makes the round trip longer, and not the clock wrong */
	int64		wall = GetCurrentTimestamp();
	uint64		now = repl_ml_monotonic_now();
	ReplMlNetwork *network = &apply->worker->network;
	const Ping *answered = NULL;

	for (int i = 0; i < PINGS; i++)
	{
		if (pings[i].time == time)
			answered = &pings[i];
	}
	if (answered == NULL)
		return;
	LWLockAcquire(repl_ml_shared->lock, LW_EXCLUSIVE);
	network->unanswered_since = 0;
	if (busy - answered->busy <= (now - answered->sent) / 4)
		note_round_trip(network, now - answered->sent,
						peer_time - (wall - (int64) (now - answered->sent) / 2));
	LWLockRelease(repl_ml_shared->lock);

	/* those before it have not been lost, either; time is that of a clock that may be set */
	for (int i = 0; i < PINGS; i++)
	{
		if (pings[i].sent <= answered->sent && &pings[i] != answered)
			pings[i].time = 0;
	}
	pings[answered - pings].time = 0;
}

/* Called when something has come over a new connection. */
void
repl_ml_network_connected(ReplMlApply *apply)
{
	last_heartbeat = 0;
	LWLockAcquire(repl_ml_shared->lock, LW_EXCLUSIVE);
	apply->worker->network.connections++;
	apply->worker->network.connected_since = GetCurrentTimestamp();
	LWLockRelease(repl_ml_shared->lock);
}

/* Called when the connection has ended, if there was one, with why. */
void
repl_ml_network_ended(ReplMlApply *apply, const char *cause)
{
	ReplMlNetwork *network = &apply->worker->network;
	int			lost = 0;

	for (int i = 0; i < PINGS; i++)
		lost += pings[i].time != 0;
	memset(pings, 0, sizeof(pings));
	LWLockAcquire(repl_ml_shared->lock, LW_EXCLUSIVE);
	if (network->connected_since != 0)
	{
		network->connected_since = 0;
		network->disconnect_time = GetCurrentTimestamp();
		network->pings_lost += lost;
		strlcpy(network->disconnect_cause, cause, REPL_ML_ERROR_LENGTH);
	}
	network->unanswered_since = 0;
	LWLockRelease(repl_ml_shared->lock);
}

/*
 * Called by heard.c with each heartbeat, and how many are missing before it: late
 * is one that comes when the next one should have come, too.
 */
void
repl_ml_network_heartbeat(ReplMlApply *apply, int64 missing)
{
	uint64		now = repl_ml_monotonic_now();
	bool		late = last_heartbeat != 0 &&
		now - last_heartbeat > (uint64) repl_ml_heartbeat_interval * LATE_BEATS * 1000;

	last_heartbeat = now;
	LWLockAcquire(repl_ml_shared->lock, LW_EXCLUSIVE);
	apply->worker->network.heartbeats++;
	apply->worker->network.heartbeats_late += late;
	apply->worker->network.heartbeats_lost += missing;
	LWLockRelease(repl_ml_shared->lock);
}
