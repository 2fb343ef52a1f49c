/*
 * backlog.c
 *		When this node committed, by position in its WAL: since when a peer
 *		lacks what it lacks.
 *
 * A walsender's lags are those of the last answer.  They stand still with a peer
 * that stands still, though it lacks more each second, and end with the
 * connection.  So backends note positions and times of their commits, and the
 * first of these that is beyond what a peer has says since when it lags, whoever
 * is connected.
 *
 * With them is noted how many commits there have been, so it is known how many a
 * peer lacks.  No more than one commit in 10 ms is noted; of those after it the last
 * one's position is kept, so that an age is too small by 10 ms at most.  When there
 * is no room, notes are left out so that it is wrong by a sixteenth at most, and
 * always too small: there is room for a year's.  Times are those of a clock that nobody sets.  Of
 * the time before the server started nothing is known: see the view
 * stat_replication for what is said then.
 *
 * The lock is that of the room's shared memory (quorum.c), held for a look at
 * this array only.
 */
#include "postgres.h"

#include "access/xlog.h"
#include "access/xlogrecovery.h"
#include "miscadmin.h"
#include "utils/pg_lsn.h"
#include "utils/timestamp.h"

#include "commit/commit.h"
#include "compat.h"
#include "server/server.h"

#define NOTES			512
#define APART			10000	/* µs */
#define WRONG_BY		16		/* a part of the age */

/* A commit. */
typedef struct Note
{
	XLogRecPtr	lsn;			/* who has no more than this lacks it */
	uint64		time;			/* repl_ml_monotonic_now() */
	uint64		number;			/* of commits up to it */
} Note;

/* The commits of a database; by index of repl_ml_shared->databases. */
typedef struct Commits
{
	Oid			database;		/* whose these are; InvalidOid: nobody's */
	XLogRecPtr	known_from;		/* of what is before nothing is known */
	int			count;
	Note		notes[NOTES];	/* in their order */
} Commits;

typedef struct Backlog
{
	LWLock	   *lock;
	pg_atomic_uint64 last[REPL_ML_MAX_DATABASES];	/* times of last notes, to be
													 * looked at without the lock */
	pg_atomic_uint64 number[REPL_ML_MAX_DATABASES]; /* of commits, noted or not */
	pg_atomic_uint64 end[REPL_ML_MAX_DATABASES];	/* position of the last one */
	pg_atomic_uint64 end_time[REPL_ML_MAX_DATABASES];	/* about when that was */
	Commits		commits[REPL_ML_MAX_DATABASES];
} Backlog;

static Backlog *backlog = NULL;

/* Returns the space repl_ml_backlog_shmem_init needs. */
Size
repl_ml_backlog_shmem_size(void)
{
	return sizeof(Backlog);
}

/*
 * Called by shmem.c: adopts shared memory, which is zeroed at a server's
 * start, under quorum.c's lock.
 */
void
repl_ml_backlog_shmem_init(void *space, LWLock *lock)
{
	backlog = space;
	backlog->lock = lock;
}

/* Makes room for a note, by leaving out those whose neighbours will do. */
static void
thin_out(Commits *commits, uint64 now)
{
	Note	   *notes = commits->notes;
	int			kept = 1;

	for (int i = 1; i < NOTES - 1; i++)
	{
		if (notes[i + 1].time - notes[kept - 1].time >= (now - notes[i].time) / WRONG_BY)
			notes[kept++] = notes[i];
	}
	notes[kept++] = notes[NOTES - 1];
	if (kept == NOTES)
	{
		/* a clock that leapt: what is oldest is forgotten */
		commits->known_from = notes[0].lsn;
		memmove(notes, notes + 1, --kept * sizeof(Note));
	}
	commits->count = kept;
}

/* Keeps where the last commit is; of two at once the later one. */
static void
keep_end(int i, XLogRecPtr lsn, uint64 now)
{
	uint64		end = pg_atomic_read_u64(&backlog->end[i]);

	while (end < lsn && !pg_atomic_compare_exchange_u64(&backlog->end[i], &end, lsn))
		;
	pg_atomic_write_u64(&backlog->end_time[i], now);
}

/*
 * Called by a backend whose transaction is about to commit, or to be prepared:
 * notes that, if it has written what goes to peers.
 */
void
repl_ml_backlog_note(void)
{
	ReplMlDatabase *entry;
	Commits    *commits;
	uint64		now = repl_ml_monotonic_now();
	uint64		number;
	int			i;

	if (backlog == NULL || !repl_ml_ticker_used() ||
		(entry = repl_ml_shmem_database(MyDatabaseId)) == NULL)
		return;
	i = entry - repl_ml_shared->databases;
	commits = &backlog->commits[i];
	number = pg_atomic_add_fetch_u64(&backlog->number[i], 1);
	/* its commit record is not written yet, so no peer that has this much has it */
	keep_end(i, GetXLogInsertRecPtr(), now);
	if (commits->database == MyDatabaseId && now < pg_atomic_read_u64(&backlog->last[i]) + APART)
		return;

	LWLockAcquire(backlog->lock, LW_EXCLUSIVE);
	if (commits->database != MyDatabaseId)
	{
		commits->database = MyDatabaseId;
		commits->known_from = GetXLogInsertRecPtr();
		commits->count = 0;
		pg_atomic_write_u64(&backlog->end[i], 0);	/* another database's */
	}
	if (commits->count == NOTES)
		thin_out(commits, now);

	/* the notes are in the order of the WAL */
	commits->notes[commits->count].lsn = GetXLogInsertRecPtr();
	commits->notes[commits->count].number = number;
	commits->notes[commits->count++].time = now;
	pg_atomic_write_u64(&backlog->last[i], now);
	LWLockRelease(backlog->lock);
}

/* Says which note is the first that who has "lsn" lacks; "count" if none is. */
static int
find_first_lacking(const Commits *commits, XLogRecPtr lsn)
{
	int			from = 0;
	int			to = commits->count;

	while (from < to)
	{
		int			middle = (from + to) / 2;

		if (commits->notes[middle].lsn >= lsn)
			to = middle;
		else
			from = middle + 1;
	}
	return from;
}

/*
 * Returns how many of the commits are at or before "lsn", which is in front of
 * "next", the note i or what follows the last one: between two notes they are taken
 * to be evenly spread over the WAL.
 */
static uint64
count_before(const Commits *commits, int i, const Note *next, XLogRecPtr lsn)
{
	const Note *former = &commits->notes[i - 1];
	uint64		between;

	if (i == 0)
		return next->number - 1;
	/* of those between the two */
	between = next->number - former->number - 1;
	return former->number +
		(uint64) ((double) between * (lsn - former->lsn) / Max(next->lsn - former->lsn, 1));
}

/* Returns the last commit, which may not have been noted, as if it had been. */
static Note
get_end(int i, uint64 number)
{
	Note		end = {.lsn = pg_atomic_read_u64(&backlog->end[i]),
		.time = pg_atomic_read_u64(&backlog->end_time[i]),
	.number = number};

	return end;
}

/*
 * Finds the age of the oldest commit that who has "lsn" lacks, 0 if it lacks
 * none, and how many it lacks.  Returns false where that is not known.
 */
static bool
find_lacking(XLogRecPtr lsn, uint64 *age, uint64 *number)
{
	ReplMlDatabase *entry = repl_ml_shmem_database(MyDatabaseId);
	int			place = entry == NULL ? -1 : entry - repl_ml_shared->databases;
	Commits    *commits = entry == NULL ? NULL : &backlog->commits[place];
	bool		known;
	int			first;

	*age = *number = 0;
	if (commits == NULL)
		return false;
	LWLockAcquire(backlog->lock, LW_SHARED);
	known = commits->database == MyDatabaseId && lsn >= commits->known_from;
	first = known ? find_first_lacking(commits, lsn) : 0;
	if (known)
	{
		uint64		total = pg_atomic_read_u64(&backlog->number[place]);
		Note		next = first < commits->count ? commits->notes[first] : get_end(place, total);

		if (next.lsn >= lsn)
		{
			*age = Max(repl_ml_monotonic_now() - next.time, 1);
			*number = total - count_before(commits, first, &next, lsn);
		}
	}
	LWLockRelease(backlog->lock);
	return known;
}

PG_FUNCTION_INFO_V1(repl_ml_wal_end);

/* repl_ml.wal_end(): returns up to where WAL is durable here, or replayed on a standby. */
Datum
repl_ml_wal_end(PG_FUNCTION_ARGS)
{
	XLogRecPtr	end = RecoveryInProgress() ? GetXLogReplayRecPtr(NULL) : GetFlushRecPtr(NULL);

	if (XLogRecPtrIsInvalid(end))
		PG_RETURN_NULL();
	PG_RETURN_LSN(end);
}

PG_FUNCTION_INFO_V1(repl_ml_lacks_since);

/*
 * repl_ml.lacks_since(lsn): returns when this node committed the oldest
 * transaction that who has "lsn" lacks: NULL if it lacks none, -infinity if
 * that is not known.
 */
Datum
repl_ml_lacks_since(PG_FUNCTION_ARGS)
{
	uint64		age;
	uint64		number;

	if (backlog == NULL || !find_lacking(PG_GETARG_LSN(0), &age, &number))
		PG_RETURN_TIMESTAMPTZ(DT_NOBEGIN);
	if (age == 0)
		PG_RETURN_NULL();
	PG_RETURN_TIMESTAMPTZ(GetCurrentTimestamp() - (TimestampTz) age);
}

PG_FUNCTION_INFO_V1(repl_ml_commits_behind);

/*
 * repl_ml.commits_behind(lsn): returns how many of this node's commits who has
 * "lsn" lacks; NULL if that is not known.
 */
Datum
repl_ml_commits_behind(PG_FUNCTION_ARGS)
{
	uint64		age;
	uint64		number;

	if (backlog == NULL || !find_lacking(PG_GETARG_LSN(0), &age, &number))
		PG_RETURN_NULL();
	PG_RETURN_INT64((int64) number);
}
