/*
 * unacknowledged.c
 *		Transactions that are committed and visible on this node, though their
 *		level has not acknowledged them: since their wait was given up, or since
 *		the server ended during it.
 *
 * A list in shared memory, of which a transaction leaves by itself, when the
 * level has acknowledged it (quorum.c): for good, so before anybody is told, and
 * before the members become others.  The list is never forgotten for want of
 * room: two transactions of a database and level become one entry that counts
 * as both, until the later one is acknowledged.
 *
 * A transaction of which so many peers have discarded something that it can
 * never be acknowledged stays on the list, for whoever asks what became of it,
 * but is not counted: nothing can be done for it.
 *
 * What was committed before the server started comes from the WAL, see
 * recall.c.  Until that is read, and where it cannot be read until the level
 * has acknowledged all that was committed before the start, nobody knows how
 * many there are.
 *
 * Not here: commits that still wait (waiter.c), and asking peers whether they
 * have by now what they lacked (lacking.c).  The lock is that of quorum.c.
 */
#include "postgres.h"

#include "access/transam.h"
#include "access/xlog.h"
#include "catalog/pg_type.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/builtins.h"

#include "commit/commit.h"
#include "commit/quorum_private.h"
#include "compat.h"
#include "server/server.h"

#define ROOM	1024			/* entries, all databases */

typedef struct Entry
{
	Oid			database;		/* InvalidOid: free */
	ReplMlLevel level;
	TransactionId xid;			/* invalid: more than one transaction */
	XLogRecPtr	commit;			/* where the commit's record begins; 0: not known,
								 * or more than one */
	XLogRecPtr	lsn;			/* where the (last) commit ends */
	ReplMlPeerSet lacking;		/* peers that have parked something of it */
	ReplMlPeerSet discarded;	/* of these: have discarded that */
	int64		transactions;
} Entry;

/* What is known of the time before the server started; by index of repl_ml_shared->databases. */
typedef struct Past
{
	XLogRecPtr	end;			/* where the WAL ended then; invalid: not
								 * asked yet */
	FullTransactionId next_xid; /* no transaction of before has it, or a greater
								 * one */
	bool		known;			/* recalled, but for these levels: */
	bool		lost[REPL_ML_LEVELS];
} Past;

typedef struct Unacknowledged
{
	LWLock	   *lock;
	Past		pasts[REPL_ML_MAX_DATABASES];
	Entry		entries[ROOM];
} Unacknowledged;

static Unacknowledged *unacknowledged = NULL;

static Past *past_of_database(void);
static bool is_known(const Past *past, ReplMlLevel level);
static bool is_acknowledged(const Entry *entry);
static void merge_entries(Entry *into, const Entry *entry);
static Entry *make_room(void);

/* Returns the space repl_ml_unacknowledged_shmem_init needs. */
Size
repl_ml_unacknowledged_shmem_size(void)
{
	return sizeof(Unacknowledged);
}

/*
 * Called by shmem.c: adopts shared memory, which is zeroed at a server's
 * start, under quorum.c's lock.
 */
void
repl_ml_unacknowledged_shmem_init(void *space, LWLock *lock)
{
	unacknowledged = space;
	unacknowledged->lock = lock;
}

/*
 * Returns what is known of before the start; NULL where the database has no
 * entry, see repl_ml_shmem_database.
 */
static Past *
past_of_database(void)
{
	ReplMlDatabase *entry = repl_ml_shmem_database(MyDatabaseId);

	return entry == NULL ? NULL : &unacknowledged->pasts[entry - repl_ml_shared->databases];
}

/*
 * Says whether all transactions of before the start, and so all, are on the
 * list.  The caller holds the lock.
 */
static bool
is_known(const Past *past, ReplMlLevel level)
{
	if (past == NULL || past->end == InvalidXLogRecPtr)
		return false;
	return (past->known && !past->lost[level]) || past->end <= repl_ml_quorum_acknowledged(level);
}

/*
 * Says whether the entry counts no more.  The caller holds the lock; entries
 * of other databases are theirs to judge.
 */
static bool
is_acknowledged(const Entry *entry)
{
	return entry->database == MyDatabaseId &&
		repl_ml_quorum_has(entry->level, entry->lsn, &entry->lacking);
}

/*
 * Takes those off the list that are acknowledged by now, whoever leaves the
 * group or parks something later.  The caller holds the lock exclusively.
 */
void
repl_ml_unacknowledged_settle(void)
{
	for (int i = 0; i < ROOM; i++)
	{
		if (is_acknowledged(&unacknowledged->entries[i]))
			unacknowledged->entries[i].database = InvalidOid;
	}
}

/* Says whether one entry can stand for both; "alike": also as to who discarded them. */
static bool
are_mergeable(const Entry *a, const Entry *b, bool alike)
{
	return OidIsValid(a->database) && a->database == b->database && a->level == b->level &&
		(!alike || memcmp(&a->discarded, &b->discarded, sizeof(ReplMlPeerSet)) == 0);
}

/*
 * Makes the entry "into" stand for both from now on, until the later one is
 * acknowledged.
 */
static void
merge_entries(Entry *into, const Entry *entry)
{
	into->xid = InvalidTransactionId;
	into->commit = InvalidXLogRecPtr;
	for (int i = 0; i < REPL_ML_PEER_WORDS; i++)
	{
		into->lacking.bits[i] |= entry->lacking.bits[i];
		/* where they differ both are counted rather than neither */
		into->discarded.bits[i] &= entry->discarded.bits[i];
	}
	into->lsn = Max(into->lsn, entry->lsn);
	into->transactions += entry->transactions;
}

/*
 * Returns a free entry, made by merging two if there is none: of more entries
 * than there are databases and levels, two have both in common.
 */
static Entry *
make_room(void)
{
	for (int i = 0; i < ROOM; i++)
	{
		if (!OidIsValid(unacknowledged->entries[i].database))
			return &unacknowledged->entries[i];
	}
	for (int unlike = 0; unlike <= 1; unlike++)
	{
		for (int i = 0; i < ROOM; i++)
		{
			for (int j = 0; j < i; j++)
			{
				Entry	   *into = &unacknowledged->entries[j];

				if (!are_mergeable(&unacknowledged->entries[i], into, unlike == 0))
					continue;
				merge_entries(into, &unacknowledged->entries[i]);
				return &unacknowledged->entries[i];
			}
		}
	}
	return NULL;				/* not reached */
}

/*
 * Called by waiter.c when a wait was given up: puts a transaction of this
 * database, committed by "lsn", on the list, unless it is there.  The caller
 * holds the lock.
 */
void
repl_ml_unacknowledged_add(ReplMlLevel level, TransactionId xid, XLogRecPtr commit, XLogRecPtr lsn,
						   const ReplMlPeerSet *lacking)
{
	Entry		entry = {.database = MyDatabaseId,.level = level,.xid = xid,
		.commit = commit,.lsn = lsn,.lacking = *lacking,.transactions = 1
	};

	StaticAssertStmt(ROOM > REPL_ML_MAX_DATABASES * REPL_ML_LEVELS, "entries must be mergeable");
	repl_ml_unacknowledged_settle();
	for (int i = 0; i < ROOM; i++)
	{
		const Entry *other = &unacknowledged->entries[i];

		if (other->database == MyDatabaseId && other->level == level && other->lsn == lsn)
			return;
	}
	*make_room() = entry;
}

/*
 * Forgets everything of a database that is no member any more.  The caller
 * holds the lock.
 */
void
repl_ml_unacknowledged_forget(int index, Oid database)
{
	memset(&unacknowledged->pasts[index], 0, sizeof(Past));
	for (int i = 0; i < ROOM; i++)
	{
		if (unacknowledged->entries[i].database == database)
			unacknowledged->entries[i].database = InvalidOid;
	}
}

/*
 * Notes that a peer has parked something of the transaction that ends at
 * "lsn", if that is listed.  The caller holds the lock.
 */
void
repl_ml_unacknowledged_mark(XLogRecPtr lsn, int index)
{
	repl_ml_unacknowledged_settle();
	for (int i = 0; i < ROOM; i++)
	{
		if (unacknowledged->entries[i].database == MyDatabaseId &&
			unacknowledged->entries[i].lsn == lsn)
			repl_ml_peer_set_add(&unacknowledged->entries[i].lacking, index);
	}
}

/*
 * Forgets what a peer lacks whose link's index is another one's from now on.
 * The caller holds the lock.
 */
void
repl_ml_unacknowledged_forget_link(int index)
{
	for (int i = 0; i < ROOM; i++)
	{
		repl_ml_peer_set_remove(&unacknowledged->entries[i].lacking, index);
		repl_ml_peer_set_remove(&unacknowledged->entries[i].discarded, index);
	}
}

/*
 * Called by the supervisor: writes the commits of this database that a peer
 * lacks and has not discarded, as far as there is room; returns how many.
 */
int
repl_ml_unacknowledged_lacking(int peer, XLogRecPtr *commits, int room)
{
	int			count = 0;
	int			index;

	LWLockAcquire(unacknowledged->lock, LW_EXCLUSIVE);
	index = repl_ml_members_index(peer);
	for (int i = 0; i < ROOM && index >= 0 && count < room; i++)
	{
		const Entry *entry = &unacknowledged->entries[i];

		if (entry->database == MyDatabaseId && entry->commit != InvalidXLogRecPtr &&
			repl_ml_peer_set_has(&entry->lacking, index) &&
			!repl_ml_peer_set_has(&entry->discarded, index))
			commits[count++] = entry->commit;
	}
	LWLockRelease(unacknowledged->lock);
	return count;
}

/*
 * Called by the supervisor: the peer has that commit by now, whole; or has
 * discarded something of it.
 */
void
repl_ml_unacknowledged_is_decided(int peer, XLogRecPtr commit, bool discarded)
{
	int			index;

	LWLockAcquire(unacknowledged->lock, LW_EXCLUSIVE);
	index = repl_ml_members_index(peer);
	for (int i = 0; i < ROOM && index >= 0; i++)
	{
		Entry	   *entry = &unacknowledged->entries[i];

		if (entry->database != MyDatabaseId || entry->commit != commit)
			continue;
		if (discarded)
			repl_ml_peer_set_add(&entry->discarded, index);
		else
			repl_ml_peer_set_remove(&entry->lacking, index);
	}
	LWLockRelease(unacknowledged->lock);
}

/*
 * Called by the supervisor: returns up to where a level has acknowledged this
 * database's WAL, but for what peers lack of it.
 */
XLogRecPtr
repl_ml_unacknowledged_position(ReplMlLevel level)
{
	XLogRecPtr	position;

	LWLockAcquire(unacknowledged->lock, LW_SHARED);
	position = repl_ml_quorum_acknowledged(level);
	LWLockRelease(unacknowledged->lock);
	return position;
}

/*
 * Says whether a transaction of this database whose commit ends there is on the list and a
 * majority does not have it, also if that can never come, unless "hopeful".
 */
bool
repl_ml_unacknowledged_has(XLogRecPtr lsn, bool hopeful)
{
	bool		has = false;

	LWLockAcquire(unacknowledged->lock, LW_EXCLUSIVE);
	repl_ml_unacknowledged_settle();
	for (int i = 0; i < ROOM; i++)
	{
		const Entry *entry = &unacknowledged->entries[i];

		has |= entry->database == MyDatabaseId && entry->lsn >= lsn && entry->commit < lsn &&
			!repl_ml_quorum_has(REPL_ML_QUORUM, entry->lsn, &entry->lacking) &&
			(!hopeful || repl_ml_quorum_may_have(REPL_ML_QUORUM, &entry->discarded));
	}
	LWLockRelease(unacknowledged->lock);
	return has;
}

/*
 * Called by gate.c: says whether it is known that a majority has all transactions of this
 * database that were committed before the server started with a level above one.
 */
bool
repl_ml_unacknowledged_is_settled(void)
{
	Past	   *past = past_of_database();
	bool		settled;

	LWLockAcquire(unacknowledged->lock, LW_SHARED);
	settled = is_known(past, REPL_ML_QUORUM) && is_known(past, REPL_ML_ALL);
	for (int i = 0; i < ROOM && settled; i++)
	{
		const Entry *entry = &unacknowledged->entries[i];

		settled = entry->database != MyDatabaseId || entry->lsn > past->end ||
			repl_ml_quorum_has(REPL_ML_QUORUM, entry->lsn, &entry->lacking);
	}
	LWLockRelease(unacknowledged->lock);
	return settled;
}

/*
 * Returns how many there are of a level in this database that may still be
 * acknowledged; -1: nobody knows.
 */
int64
repl_ml_unacknowledged_count(ReplMlLevel level)
{
	Past	   *past = past_of_database();
	int64		count = 0;

	LWLockAcquire(unacknowledged->lock, LW_EXCLUSIVE);
	repl_ml_unacknowledged_settle();
	for (int i = 0; i < ROOM; i++)
	{
		const Entry *entry = &unacknowledged->entries[i];

		if (entry->database == MyDatabaseId && entry->level == level &&
			repl_ml_quorum_may_have(level, &entry->discarded))
			count += entry->transactions;
	}
	if (!is_known(past, level))
		count = -1;
	LWLockRelease(unacknowledged->lock);
	return count;
}

/*
 * Returns what is known of a transaction of this database that is committed,
 * and its level, if that is known; one that is not on the list may be of level
 * one.
 */
ReplMlFate
repl_ml_unacknowledged_find(TransactionId xid, ReplMlLevel *level)
{
	Past	   *past = past_of_database();
	ReplMlFate	fate = REPL_ML_FATE_ACKNOWLEDGED;

	*level = REPL_ML_ONE;
	LWLockAcquire(unacknowledged->lock, LW_EXCLUSIVE);
	repl_ml_unacknowledged_settle();
	if (!is_known(past, REPL_ML_QUORUM) || !is_known(past, REPL_ML_ALL))
		fate = REPL_ML_FATE_UNKNOWN;
	for (int i = 0; i < ROOM; i++)
	{
		const Entry *entry = &unacknowledged->entries[i];

		if (entry->database != MyDatabaseId)
			continue;
		if (entry->xid == xid)
		{
			fate = REPL_ML_FATE_COMMITTED;
			*level = entry->level;
			break;
		}
		if (!TransactionIdIsValid(entry->xid))
			fate = REPL_ML_FATE_UNKNOWN;
	}
	/* still in its wait, or on the way out of it: looked for under the same lock that moves it */
	if (repl_ml_waiter_find(xid, level))
		fate = REPL_ML_FATE_COMMITTED;
	LWLockRelease(unacknowledged->lock);
	return fate;
}

/*
 * Called by the supervisor, before this node's first commits of a level above
 * one since the server started: returns true if the time before has to be
 * recalled, up to *end.
 */
bool
repl_ml_unacknowledged_recall_begin(XLogRecPtr *end)
{
	Past	   *past = past_of_database();
	bool		due;

	LWLockAcquire(unacknowledged->lock, LW_EXCLUSIVE);
	if (past->end == InvalidXLogRecPtr)
	{
		past->end = GetFlushRecPtr(NULL);
		past->next_xid = ReadNextFullTransactionId();
	}
	*end = past->end;
	due = !past->known;
	LWLockRelease(unacknowledged->lock);
	return due;
}

/*
 * Says whether the transaction may be of before the server started, so that
 * nobody has said here who parked it.
 */
bool
repl_ml_unacknowledged_is_past(FullTransactionId xid)
{
	Past	   *past = past_of_database();
	bool		result;

	LWLockAcquire(unacknowledged->lock, LW_SHARED);
	result = past == NULL || past->end == InvalidXLogRecPtr ||
		FullTransactionIdPrecedes(xid, past->next_xid);
	LWLockRelease(unacknowledged->lock);
	return result;
}

/*
 * Called by the supervisor: a transaction of before the start has been found
 * in the WAL.
 */
void
repl_ml_unacknowledged_recall_add(ReplMlLevel level, TransactionId xid, XLogRecPtr lsn)
{
	LWLockAcquire(unacknowledged->lock, LW_EXCLUSIVE);
	repl_ml_unacknowledged_add(level, xid, InvalidXLogRecPtr, lsn, &(ReplMlPeerSet) {{0}});
	LWLockRelease(unacknowledged->lock);
}

/*
 * Called by the supervisor: all has been recalled that could be; not of the
 * levels that are marked lost.
 */
void
repl_ml_unacknowledged_recall_end(const bool *lost)
{
	Past	   *past = past_of_database();

	LWLockAcquire(unacknowledged->lock, LW_EXCLUSIVE);
	for (int level = 0; level < REPL_ML_LEVELS; level++)
		past->lost[level] = lost[level];
	past->known = true;
	LWLockRelease(unacknowledged->lock);
}

PG_FUNCTION_INFO_V1(repl_ml_unacknowledged);

/*
 * repl_ml.unacknowledged(): returns, for each level above one, how many
 * transactions are visible on this node and not acknowledged; null where that
 * is not known.
 */
Datum
repl_ml_unacknowledged(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *result = (ReturnSetInfo *) fcinfo->resultinfo;

	repl_ml_shmem_require();
	InitMaterializedSRF(fcinfo, 0);
	for (int level = REPL_ML_QUORUM; level < REPL_ML_LEVELS; level++)
	{
		int64		count = repl_ml_unacknowledged_count(level);
		Datum		values[2] = {CStringGetTextDatum(repl_ml_level_name(level)),
								 Int64GetDatum(count)};
		bool		nulls[2] = {false, count < 0};

		tuplestore_putvalues(result->setResult, result->setDesc, values, nulls);
	}
	return (Datum) 0;
}
