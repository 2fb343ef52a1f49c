/*
 * ticker.c
 *		The node's counter: a hybrid logical clock in shared memory.
 *
 * A counter is microseconds since 2000-01-01.  It is never below the wall
 * clock, strictly above every counter this node has issued, and above every
 * counter it has seen, except those further in the future than
 * repl_ml.max_clock_skew: one node's wrong wall clock must not carry the
 * others along.  Where this node's wall clock is the slow one, so that those of
 * most members are ahead of it, theirs counts in its place: a write here would
 * else lose to one that was acknowledged elsewhere before it began.
 *
 * A counter survives a crash through a file, $PGDATA/repl_ml.clock: no counter
 * above the bound in it is issued before the file holds a greater one.  The
 * launcher moves the bound while the node writes (see repl_ml_ticker_persist),
 * so that a backend hardly ever has to.
 *
 * Each backend also publishes a counter below the first one of its running
 * transaction, which is how repl_ml_ticker_safe knows below which counter every
 * transaction has ended.
 *
 * Counter and bound are atomics; repl_ml_shared->clock_file_lock is for the file
 * only.  Not here: what a row's clock becomes with a counter (write/stamp.c).
 */
#include "postgres.h"

#include <fcntl.h>
#include <unistd.h>

#include "access/xact.h"
#include "miscadmin.h"
#include "port/pg_crc32c.h"
#include "storage/fd.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "server/server.h"
#include "wire/wire.h"

#define CLOCK_FILE		"repl_ml.clock"
#define CLOCK_FILE_TMP	"repl_ml.clock.tmp"
#define CLOCK_FILE_MAGIC	0x52504D4C
#define CLOCK_FILE_HINT	"Check the owner of the data directory, and that its disk is not full."
#define SKEW_REPORT_MS	60000
#define BOUND_AHEAD		UINT64CONST(5000000)	/* how far the bound is moved ahead of the
												 * wall clock, µs */
#define LEAST_ROOM		UINT64CONST(100000) /* and at least above the counter */

typedef struct ClockFile
{
	uint32		magic;
	pg_crc32c	crc;			/* of bound */
	uint64		bound;
} ClockFile;

/* below all counters this backend issued in its transaction; 0 outside one */
static uint64 first_in_transaction = 0;
static uint64 last_issued = 0;
static bool callback_registered = false;

static uint64 read_bound(void);
static void write_bound(uint64 bound);
static void raise_bound(uint64 counter);
static void transaction_ended(XactEvent event, void *arg);

/*
 * Called by the postmaster, at its start and after a crash: sets the counter
 * above all that was issued before.
 */
void
repl_ml_ticker_startup(void)
{
	uint64		now = repl_ml_ticker_now();
	uint64		bound = read_bound();

	repl_ml_shared->start_counter = Max(now, bound);
	pg_atomic_write_u64(&repl_ml_shared->counter, repl_ml_shared->start_counter);
	pg_atomic_write_u64(&repl_ml_shared->counter_bound, bound);
}

/*
 * Returns the wall clock as a counter; that of most members where ours is
 * behind.
 */
uint64
repl_ml_ticker_now(void)
{
	TimestampTz now = GetCurrentTimestamp();
	uint64		group = repl_ml_shared == NULL ? 0 :
		pg_atomic_read_u64(&repl_ml_shared->group_clock);

	if (group != 0)
		now = Max(now, (TimestampTz) (group + repl_ml_monotonic_now()));
	return now > 0 ? (uint64) now : 1;
}

/*
 * Called by a supervisor: the wall clocks of most members of its database are
 * at least this much above our monotonic clock; 0 where ours is not behind.
 */
void
repl_ml_ticker_follow(int64 group_clock)
{
	ReplMlDatabase *database = repl_ml_shmem_database(MyDatabaseId);
	int64		greatest = 0;

	if (database == NULL || (group_clock == 0 && database->group_clock == 0))
		return;
	LWLockAcquire(repl_ml_shared->lock, LW_EXCLUSIVE);
	database->group_clock = group_clock;
	for (int i = 0; i < REPL_ML_MAX_DATABASES; i++)
		greatest = Max(greatest, repl_ml_shared->databases[i].group_clock);
	pg_atomic_write_u64(&repl_ml_shared->group_clock, (uint64) greatest);
	LWLockRelease(repl_ml_shared->lock);
}

/*
 * Called by a backend that stamps a row: issues a new counter, unique on this
 * node, not below the wall clock and greater than "above".  If "above" is too
 * far in the future, only the result follows it, not the node's counter.
 */
uint64
repl_ml_ticker_next(uint64 above)
{
	uint64		now = repl_ml_ticker_now();
	uint64		limit = now + (uint64) repl_ml_max_clock_skew * 1000;
	uint64		old = pg_atomic_read_u64(&repl_ml_shared->counter);
	uint64		next;

	/* published before a counter is taken, or repl_ml_ticker_safe would pass it */
	if (first_in_transaction == 0)
	{
		if (!callback_registered)
		{
			RegisterXactCallback(transaction_ended, NULL);
			callback_registered = true;
		}
		first_in_transaction = old;
		pg_atomic_write_u64(&repl_ml_shared->first_tick[my_proc_number_compat()], old);
		pg_memory_barrier();
		old = pg_atomic_read_u64(&repl_ml_shared->counter);
	}

	/* a counter that is absurdly far ahead must not carry the node's along */
	do
	{
		next = Max(now, old + 1);
		if (above >= next && above <= limit)
			next = above + 1;
	} while (!pg_atomic_compare_exchange_u64(&repl_ml_shared->counter, &old, next));

	/* after a crash it would be issued again */
	if (next > pg_atomic_read_u64(&repl_ml_shared->counter_bound))
		raise_bound(next);
	last_issued = next;

	if (above >= next)
		next = above + 1;
	if (next > REPL_ML_MAX_COUNTER)
		ereport(ERROR,
				(errcode(ERRCODE_NUMERIC_VALUE_OUT_OF_RANGE),
				 errmsg("row clock counter is exhausted"),
				 errdetail("A counter of " UINT64_FORMAT " has been seen on this row.", above),
				 errhint("Copy the rows without column \"%s\" into another table, and use that.",
						 REPL_ML_CLOCK_COLUMN)));
	return next;
}

/* Warns of a clock that is too far ahead of ours, once a minute at most. */
static void
report_skew(uint64 ahead)
{
	static TimestampTz last = 0;

	if (!TimestampDifferenceExceeds(last, GetCurrentTimestamp(), SKEW_REPORT_MS))
		return;
	last = GetCurrentTimestamp();
	ereport(WARNING,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("a row was written by a node whose clock is "
					UINT64_FORMAT " ms ahead of this one's", ahead / 1000),
			 errdetail("In a conflict the later clock wins, so that node wins more often than it "
					   "should."),
			 errhint("Correct the system clocks; see repl_ml.max_clock_skew.")));
}

/*
 * Called with the clock of each version that arrives, by an apply worker mostly:
 * makes later counters greater than "counter", if that is not absurdly ahead.
 */
void
repl_ml_ticker_observe(uint64 counter)
{
	uint64		old = pg_atomic_read_u64(&repl_ml_shared->counter);
	uint64		now;

	if (counter <= old)
		return;
	now = repl_ml_ticker_now();
	if (counter > now + (uint64) repl_ml_max_clock_skew * 1000)
	{
		report_skew(counter - now);
		return;
	}
	while (old < counter &&
		   !pg_atomic_compare_exchange_u64(&repl_ml_shared->counter, &old, counter))
		;
}

/*
 * Called where this server has become the node that another one was, whose
 * heartbeats had counters up to "above": makes counters go on with a greater one
 * than that server can have issued, which as after a crash is one above its bound.
 * Returns it; it is durable.
 */
uint64
repl_ml_ticker_resume(uint64 above)
{
	uint64		old = pg_atomic_read_u64(&repl_ml_shared->counter);
	uint64		resumed;

	do
	{
		resumed = Max(Max(old, repl_ml_ticker_now()), above + BOUND_AHEAD);
	} while (!pg_atomic_compare_exchange_u64(&repl_ml_shared->counter, &old, resumed));
	raise_bound(resumed);
	return resumed;
}

/*
 * Says whether this counter was issued in the transaction this backend is
 * running.
 */
bool
repl_ml_ticker_issued_here(uint64 counter)
{
	return first_in_transaction != 0 &&
		counter > first_in_transaction && counter <= last_issued;
}

/*
 * Called by the supervisor for its heartbeat: returns a counter below which no
 * transaction of this node is still running, except prepared ones, which the
 * caller must look for.  Whoever logs it in a transaction of his own tells
 * readers of the WAL that they have everything this node wrote below it.
 */
uint64
repl_ml_ticker_safe(void)
{
	uint64		safe = pg_atomic_read_u64(&repl_ml_shared->counter);

	pg_memory_barrier();
	for (int i = 0; i < MaxBackends; i++)
	{
		uint64		first = pg_atomic_read_u64(&repl_ml_shared->first_tick[i]);

		if (first != 0 && i != my_proc_number_compat() && first < safe)
			safe = first;
	}
	return safe;
}

/*
 * A backend's callback: what its transaction has ticked no longer holds up
 * repl_ml_ticker_safe.
 */
static void
transaction_ended(XactEvent event, void *arg)
{
	switch (event)
	{
		case XACT_EVENT_COMMIT:
		case XACT_EVENT_ABORT:
		case XACT_EVENT_PREPARE:
		case XACT_EVENT_PARALLEL_COMMIT:
		case XACT_EVENT_PARALLEL_ABORT:
			repl_ml_ticker_forget();
			break;
		default:
			break;
	}
}

/*
 * Says whether the transaction this backend is running has issued a counter,
 * that is, has written an enrolled table.
 */
bool
repl_ml_ticker_used(void)
{
	return first_in_transaction != 0;
}

/* Takes this backend's transaction off the list of running ones. */
void
repl_ml_ticker_forget(void)
{
	if (first_in_transaction == 0)
		return;
	first_in_transaction = 0;
	pg_atomic_write_u64(&repl_ml_shared->first_tick[my_proc_number_compat()], 0);
}

/*
 * Called by the launcher every two seconds: moves the durable bound ahead of
 * the counter, if the counter has moved since the last call; "exact" leaves no
 * gap (for a clean shutdown).  Writes and syncs a 16 byte file.
 */
void
repl_ml_ticker_persist(bool exact)
{
	uint64		bound;

	if (!exact)
	{
		raise_bound(pg_atomic_read_u64(&repl_ml_shared->counter));
		return;
	}

	/* whoever ticks from here on finds the bound too low and waits for us */
	LWLockAcquire(repl_ml_shared->clock_file_lock, LW_EXCLUSIVE);
	pg_atomic_write_u64(&repl_ml_shared->counter_bound, 0);
	pg_memory_barrier();
	bound = pg_atomic_read_u64(&repl_ml_shared->counter);
	write_bound(bound);
	pg_atomic_write_u64(&repl_ml_shared->counter_bound, bound);
	LWLockRelease(repl_ml_shared->clock_file_lock);
}

/*
 * Says how far above a counter the bound is moved.  After a crash the counter
 * begins at the bound.  So it is kept near the wall clock, and well below what
 * peers would complain about; a counter that is ahead of that gets little
 * room, or it would be further ahead after each crash.
 */
static uint64
room_above(uint64 counter)
{
	uint64		limit = repl_ml_ticker_now() +
		Min(BOUND_AHEAD, (uint64) repl_ml_max_clock_skew * 1000 / 2);

	return counter + LEAST_ROOM < limit ? Min(limit - counter, BOUND_AHEAD) : LEAST_ROOM;
}

/*
 * Makes the durable bound greater than "counter", with room above it: the
 * launcher does so in time, a backend only if the launcher was too slow.
 */
static void
raise_bound(uint64 counter)
{
	uint64		bound = pg_atomic_read_u64(&repl_ml_shared->counter_bound);
	uint64		room = room_above(counter);

	if (counter + room / 2 <= bound)
		return;

	/* the file has one writer at a time; this lock guards nothing else */
	LWLockAcquire(repl_ml_shared->clock_file_lock, LW_EXCLUSIVE);
	bound = pg_atomic_read_u64(&repl_ml_shared->counter_bound);
	if (counter + room / 2 > bound)
	{
		bound = counter + room;
		write_bound(bound);
		pg_atomic_write_u64(&repl_ml_shared->counter_bound, bound);
	}
	LWLockRelease(repl_ml_shared->clock_file_lock);
}

/* Returns the checksum of a bound in the file. */
static pg_crc32c
bound_crc(uint64 bound)
{
	pg_crc32c	crc;

	INIT_CRC32C(crc);
	COMP_CRC32C(crc, &bound, sizeof(bound));
	FIN_CRC32C(crc);
	return crc;
}

/*
 * Replaces the file by one with this bound; it is durable when this returns.
 */
static void
write_bound(uint64 bound)
{
	ClockFile	content = {.magic = CLOCK_FILE_MAGIC,.crc = bound_crc(bound),.bound = bound};
	int			fd = OpenTransientFile(CLOCK_FILE_TMP, O_CREAT | O_TRUNC | O_WRONLY | PG_BINARY);

	if (fd < 0)
		ereport(ERROR,
				(errcode_for_file_access(),
				 errmsg("could not create file \"%s\": %m", CLOCK_FILE_TMP),
				 errhint(CLOCK_FILE_HINT)));

	/* a disk that is full need not say so */
	errno = 0;
	if (write(fd, &content, sizeof(content)) != sizeof(content))
	{
		if (errno == 0)
			errno = ENOSPC;
		ereport(ERROR,
				(errcode_for_file_access(),
				 errmsg("could not write file \"%s\": %m", CLOCK_FILE_TMP),
				 errhint(CLOCK_FILE_HINT)));
	}
	if (CloseTransientFile(fd) != 0)
		ereport(ERROR,
				(errcode_for_file_access(),
				 errmsg("could not close file \"%s\": %m", CLOCK_FILE_TMP),
				 errhint(CLOCK_FILE_HINT)));
	durable_rename(CLOCK_FILE_TMP, CLOCK_FILE, ERROR);
}

/*
 * Returns the bound in the file; 0 where there is no file, as on a new server.
 */
static uint64
read_bound(void)
{
	ClockFile	content;
	int			fd = OpenTransientFile(CLOCK_FILE, O_RDONLY | PG_BINARY);
	int			got;

	if (fd < 0)
	{
		if (errno == ENOENT)
			return 0;
		ereport(FATAL,
				(errcode_for_file_access(),
				 errmsg("could not open file \"%s\": %m", CLOCK_FILE),
				 errhint(CLOCK_FILE_HINT)));
	}
	got = read(fd, &content, sizeof(content));
	CloseTransientFile(fd);

	/* to go on with a guess could issue counters a second time */
	if (got != sizeof(content) || content.magic != CLOCK_FILE_MAGIC ||
		content.crc != bound_crc(content.bound))
		ereport(FATAL,
				(errcode(ERRCODE_DATA_CORRUPTED),
				 errmsg("file \"%s\" is damaged", CLOCK_FILE),
				 errhint("If the system clock has not been set back, remove the file and start the "
						 "server again.")));
	return content.bound;
}
