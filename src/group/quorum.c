/*
 * quorum.c
 *		Which members have what this node wrote, which commits wait for it, and
 *		letting them go.
 *
 * A commit waits where core's synchronous replication waits: after its WAL is
 * flushed and before anybody sees the transaction.  It sits in core's queue of
 * "flush" waiters for the level quorum and of "remote apply" waiters for all;
 * no standby of core's releases it (synchronous_standby_names holds a name
 * that nobody has), but the walsender that hears the deciding peer does, here.
 *
 * Members confirm positions of this server's WAL, so what a level has
 * acknowledged is a position, too: the least one that enough members have
 * confirmed.  It is kept per database, each of which has a group of its own;
 * core's own shortcut for commits that come late to the queue, one position
 * for the whole server, gets the least of all databases.
 *
 * Called by committing backends (origin/commit.c), walsenders
 * (origin/reply.c), supervisors (who the members are) and views.  Locks:
 * quorum->lock for everything here, never together with core's SyncRepLock.
 */
#include "postgres.h"

#include "access/xlog.h"
#include "miscadmin.h"
#include "portability/instr_time.h"
#include "replication/syncrep.h"
#include "replication/walsender.h"
#include "replication/walsender_private.h"
#include "storage/ipc.h"
#include "storage/proc.h"
#include "storage/spin.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "group/group.h"
#include "group/position.h"
#include "group/quorum.h"
#include "group/unacknowledged.h"

#define IN_USE_US			UINT64CONST(60000000)
#define HEARTBEATS_MISSED	2	/* after so many a silent peer counts as gone */
#define RECONNECTION_US		UINT64CONST(500000) /* so soon a worker that has
												 * lost a race is back */

/* a clock of as many entries as there may be, and its header */
#define ANSWER_BYTES		(VARHDRSZ + REPL_ML_MAX_CLOCK_ENTRIES * REPL_ML_CLOCK_ENTRY_SIZE + 64)

/* A peer, as a node that acknowledges. */
typedef struct Link
{
	Oid			database;		/* InvalidOid: free */
	int			peer;
	NameData	node_name;
	bool		counts;			/* a ready member: its word counts */
	pid_t		walsender;		/* serves it now; 0: not connected */
	uint64		lost;			/* when it was last connected, monotonic µs */
	uint64		heard;			/* when it last spoke, monotonic µs; 0: never */
	XLogRecPtr	acknowledged;	/* it has everything before, durably applied */
	char		answer[ANSWER_BYTES];	/* a clock: what it last said it had
										 * received of each node */
} Link;

/* A commit under way. */
typedef struct Waiter
{
	Oid			database;		/* InvalidOid: none */
	ReplMlLevel level;
	TransactionId xid;
	pid_t		pid;
	TimestampTz since;
	uint64		start;			/* the same, monotonic µs */
} Waiter;

/* What became of the commits of one level. */
typedef struct LevelStats
{
	int64		outcomes[REPL_ML_ABORTED];
	uint64		total;			/* of acknowledged ones, µs */
	uint64		least;
	uint64		greatest;
	int64		histogram[REPL_ML_WAIT_BUCKETS];
} LevelStats;

/* One member database; the index is that of repl_ml_shared->databases. */
typedef struct Database
{
	bool		members_known;
	int			members;		/* that count, this node included */
	NameData	local_name;
	int			waiters;
	uint64		last_begin;		/* of a wait, monotonic µs; 0: none yet */
	XLogRecPtr	acknowledged[REPL_ML_LEVELS];	/* never goes back */
	LevelStats	stats[REPL_ML_LEVELS];
	TimestampTz stats_since;	/* 0: since the server's start */
} Database;

typedef struct Quorum
{
	LWLock	   *lock;
	Database	databases[REPL_ML_MAX_DATABASES];
	Link		links[REPL_ML_MAX_WORKERS];
	Waiter		waiters[FLEXIBLE_ARRAY_MEMBER]; /* by backend number */
} Quorum;

static Quorum *quorum = NULL;

/* upper bounds of the histogram's buckets, µs; the last one has none */
const uint64 repl_ml_wait_bounds[REPL_ML_WAIT_BUCKETS - 1] =
{250, 500, 1000, 2000, 5000, 10000, 25000, 50000, 100000, 1000000, 10000000};

static const char *const level_names[REPL_ML_LEVELS] = {
	[REPL_ML_ONE] = "one",
	[REPL_ML_QUORUM] = "quorum",
	[REPL_ML_ALL] = "all",
};

static Database *database_entry(Oid oid);
static Link *find_link(int peer);
static int	required(const Database *database, ReplMlLevel level);
static XLogRecPtr position_of(Database *database, ReplMlLevel level);
static XLogRecPtr shortcut(ReplMlLevel level);
static bool is_reachable(const Link *link);
static bool wake(ReplMlLevel level, XLogRecPtr position, XLogRecPtr for_all);
static void refuse(ReplMlLevel level);
static void detach(int code, Datum arg);

/* The space repl_ml_quorum_shmem_init needs. */
Size
repl_ml_quorum_shmem_size(void)
{
	return add_size(offsetof(Quorum, waiters), mul_size(MaxBackends, sizeof(Waiter)));
}

/* Adopts zeroed shared memory; in other processes than the first it is filled already. */
void
repl_ml_quorum_shmem_init(void *space, LWLock *lock)
{
	quorum = space;
	quorum->lock = lock;
}

/* The word for a level, as in settings and views. */
const char *
repl_ml_level_name(ReplMlLevel level)
{
	return level_names[level];
}

/* The level of a word; false if it is none. */
bool
repl_ml_level_parse(const char *name, ReplMlLevel *level)
{
	for (int i = 0; i < REPL_ML_LEVELS; i++)
	{
		if (strcmp(name, level_names[i]) == 0)
		{
			*level = i;
			return true;
		}
	}
	return false;
}

static uint64
monotonic_now(void)
{
	instr_time	now;

	INSTR_TIME_SET_CURRENT(now);
	return INSTR_TIME_GET_MICROSEC(now);
}

/* NULL where the server has more databases than repl_ml serves. */
static Database *
database_entry(Oid oid)
{
	ReplMlDatabase *entry = repl_ml_shmem_database(oid);

	return entry == NULL ? NULL : &quorum->databases[entry - repl_ml_shared->databases];
}

/* The link of this database to a peer, made if there is room. */
static Link *
find_link(int peer)
{
	Link	   *unused = NULL;

	for (int i = 0; i < REPL_ML_MAX_WORKERS; i++)
	{
		Link	   *link = &quorum->links[i];

		if (link->database == MyDatabaseId && link->peer == peer)
			return link;
		if (unused == NULL && !OidIsValid(link->database))
			unused = link;
	}
	if (unused != NULL)
	{
		memset(unused, 0, sizeof(Link));
		unused->database = MyDatabaseId;
		unused->peer = peer;
	}
	return unused;
}

/*
 * Who the ready members of this database's group are, all at once (list of
 * ReplMlMember): commits that wait are measured against the new list from here
 * on.  Empty while this node is none itself.
 */
void
repl_ml_quorum_set_members(List *members)
{
	Database   *database = database_entry(MyDatabaseId);
	ListCell   *lc;

	if (database == NULL)
		return;
	LWLockAcquire(quorum->lock, LW_EXCLUSIVE);
	for (int i = 0; i < REPL_ML_MAX_WORKERS; i++)
	{
		if (quorum->links[i].database == MyDatabaseId)
			quorum->links[i].counts = false;
	}
	database->members = list_length(members);
	database->members_known = members != NIL;
	foreach(lc, members)
	{
		ReplMlMember *member = lfirst(lc);
		Link	   *link;

		if (member->is_local)
		{
			database->local_name = member->node_name;
			continue;
		}
		link = find_link(member->node_id);
		if (link == NULL)
			continue;			/* it is missing, then, from each count */
		link->node_name = member->node_name;
		link->counts = true;
	}
	for (int i = 0; i < REPL_ML_MAX_WORKERS; i++)
	{
		Link	   *link = &quorum->links[i];

		if (link->database == MyDatabaseId && !link->counts && link->walsender == 0)
			link->database = InvalidOid;
	}
	LWLockRelease(quorum->lock);
	(void) repl_ml_quorum_release();
	repl_ml_positions_advanced();
}

/* In a walsender: it serves the peer from now on, until it ends. */
void
repl_ml_quorum_attach(int peer)
{
	Link	   *link;

	LWLockAcquire(quorum->lock, LW_EXCLUSIVE);
	link = find_link(peer);
	if (link != NULL)
	{
		link->walsender = MyProcPid;
		link->heard = monotonic_now();
	}
	LWLockRelease(quorum->lock);
	repl_ml_news_count_walsender(1);
	before_shmem_exit(detach, Int32GetDatum(peer));
}

static void
detach(int code, Datum arg)
{
	Link	   *link;

	repl_ml_news_count_walsender(-1);
	LWLockAcquire(quorum->lock, LW_EXCLUSIVE);
	link = find_link(DatumGetInt32(arg));
	if (link != NULL && link->walsender == MyProcPid)
	{
		link->walsender = 0;
		link->lost = monotonic_now();
		if (!link->counts)
			link->database = InvalidOid;
	}
	LWLockRelease(quorum->lock);
}

/* In a walsender: the peer has spoken, and has everything before a position. */
void
repl_ml_quorum_heard(int peer, XLogRecPtr acknowledged)
{
	Link	   *link;

	LWLockAcquire(quorum->lock, LW_EXCLUSIVE);
	link = find_link(peer);
	if (link != NULL)
	{
		link->heard = monotonic_now();
		link->acknowledged = Max(link->acknowledged, acknowledged);
	}
	LWLockRelease(quorum->lock);
}

/* How many members a level needs, this node included. */
static int
required(const Database *database, ReplMlLevel level)
{
	switch (level)
	{
		case REPL_ML_ONE:
			return 1;
		case REPL_ML_QUORUM:
			return database->members / 2 + 1;
		case REPL_ML_ALL:
			return database->members;
	}
	return database->members;	/* keep the compiler quiet */
}

/* Up to where enough members have this database's WAL; the caller holds the lock. */
static XLogRecPtr
position_of(Database *database, ReplMlLevel level)
{
	int			peers = required(database, level) - 1;
	XLogRecPtr	best = InvalidXLogRecPtr;

	if (!database->members_known)
		return InvalidXLogRecPtr;
	if (peers <= 0)
		return GetFlushRecPtr(NULL);
	for (int i = 0; i < REPL_ML_MAX_WORKERS; i++)
	{
		Link	   *link = &quorum->links[i];
		int			as_far = 0;

		if (link->database != MyDatabaseId || !link->counts || link->acknowledged <= best)
			continue;
		for (int j = 0; j < REPL_ML_MAX_WORKERS; j++)
		{
			if (quorum->links[j].database == MyDatabaseId && quorum->links[j].counts &&
				quorum->links[j].acknowledged >= link->acknowledged)
				as_far++;
		}
		if (as_far >= peers)
			best = link->acknowledged;
	}
	return best;
}

/*
 * Up to where a level is acknowledged in all member databases: what core may
 * let pass without asking us.  The caller holds the lock.
 */
static XLogRecPtr
shortcut(ReplMlLevel level)
{
	XLogRecPtr	least = PG_UINT64_MAX;

	for (int i = 0; i < REPL_ML_MAX_DATABASES; i++)
	{
		if (repl_ml_shared->databases[i].member && quorum->databases[i].members > 1)
			least = Min(least, quorum->databases[i].acknowledged[level]);
	}
	return least == PG_UINT64_MAX ? InvalidXLogRecPtr : least;
}

/*
 * Lets this database's commits go that have been acknowledged.  True if it has
 * to be called again soon: a commit is on its way into the queue and might not
 * be seen (only where another database of the server lags behind).
 */
bool
repl_ml_quorum_release(void)
{
	Database   *database = database_entry(MyDatabaseId);
	XLogRecPtr	for_all[REPL_ML_LEVELS];
	XLogRecPtr	positions[REPL_ML_LEVELS];
	bool		again = false;
	bool		waited_for;

	if (database == NULL)
		return false;
	LWLockAcquire(quorum->lock, LW_EXCLUSIVE);
	for (int level = REPL_ML_QUORUM; level < REPL_ML_LEVELS; level++)
	{
		database->acknowledged[level] = Max(database->acknowledged[level], position_of(database, level));
		positions[level] = database->acknowledged[level];
		for_all[level] = shortcut(level);
	}
	waited_for = database->waiters > 0;
	LWLockRelease(quorum->lock);

	if (!waited_for)
		return false;			/* later ones have later positions */
	for (int level = REPL_ML_QUORUM; level < REPL_ML_LEVELS; level++)
		again |= wake(level, positions[level], for_all[level]);
	return again;
}

static inline int
mode_of(ReplMlLevel level)
{
	return level == REPL_ML_ALL ? SYNC_REP_WAIT_APPLY : SYNC_REP_WAIT_FLUSH;
}

/* Does the process in core's queue commit in this database?  One that we do not know must not stay. */
static bool
is_ours(PGPROC *proc)
{
	Waiter	   *waiter = &quorum->waiters[proc_number_compat(proc)];

	return waiter->database == MyDatabaseId || !OidIsValid(waiter->database);
}

/* Is a commit of this level in this database not in core's queue yet? */
static bool
somebody_is_coming(ReplMlLevel level)
{
	for (int i = 0; i < MaxBackends; i++)
	{
		Waiter	   *waiter = &quorum->waiters[i];

		if (waiter->database == MyDatabaseId && waiter->level == level &&
			ProcGlobal->allProcs[i].syncRepState != SYNC_REP_WAITING)
			return true;
	}
	return false;
}

static bool
wake(ReplMlLevel level, XLogRecPtr position, XLogRecPtr for_all)
{
	int			mode = mode_of(level);
	PGPROC	   *proc;
	PGPROC	   *next;

	LWLockAcquire(SyncRepLock, LW_EXCLUSIVE);
	if (WalSndCtl->lsn[mode] < for_all)
		WalSndCtl->lsn[mode] = for_all;
	for (proc = sync_rep_next_compat(mode, NULL); proc != NULL && proc->waitLSN <= position; proc = next)
	{
		next = sync_rep_next_compat(mode, proc);
		if (!is_ours(proc))
			continue;
		sync_rep_unlink_compat(proc);
		/* whoever sees the state must see that it has left the queue */
		pg_write_barrier();
		proc->syncRepState = SYNC_REP_WAIT_COMPLETE;
		SetLatch(&proc->procLatch);
	}
	LWLockRelease(SyncRepLock);
	return for_all < position && somebody_is_coming(level);
}

/* Is the peer connected, or just connecting again, and has it spoken lately? */
static bool
is_reachable(const Link *link)
{
	return link->counts &&
		(link->walsender != 0 || monotonic_now() - link->lost <= RECONNECTION_US) &&
		monotonic_now() - link->heard <= (uint64) repl_ml_heartbeat_interval * HEARTBEATS_MISSED * 1000;
}

static int
count_reachable(void)
{
	int			reachable = 1;

	for (int i = 0; i < REPL_ML_MAX_WORKERS; i++)
	{
		if (quorum->links[i].database == MyDatabaseId && is_reachable(&quorum->links[i]))
			reachable++;
	}
	return reachable;
}

/* "n2, n3": the members that can be reached, or those that cannot. */
static char *
member_names(const Database *database, bool reachable)
{
	StringInfoData names;

	initStringInfo(&names);
	if (reachable)
		appendStringInfoString(&names, NameStr(database->local_name));
	for (int i = 0; i < REPL_ML_MAX_WORKERS; i++)
	{
		Link	   *link = &quorum->links[i];

		if (link->database == MyDatabaseId && link->counts && is_reachable(link) == reachable)
			appendStringInfo(&names, "%s%s", names.len > 0 ? ", " : "", NameStr(link->node_name));
	}
	return names.data;
}

/*
 * Announces the commit of a transaction with a level above one, before anything
 * of it is committed; an error if too few members can be reached.
 */
void
repl_ml_quorum_begin(ReplMlLevel level, TransactionId xid)
{
	Database   *database = database_entry(MyDatabaseId);
	Waiter	   *waiter = &quorum->waiters[my_proc_number_compat()];

	if (database == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
				 errmsg("repl_ml serves at most %d databases of a server", REPL_ML_MAX_DATABASES)));
	LWLockAcquire(quorum->lock, LW_EXCLUSIVE);
	if (!database->members_known || count_reachable() < required(database, level))
	{
		database->stats[level].outcomes[REPL_ML_REFUSED]++;
		LWLockRelease(quorum->lock);
		refuse(level);
	}
	waiter->database = MyDatabaseId;
	waiter->level = level;
	waiter->xid = xid;
	waiter->pid = MyProcPid;
	waiter->since = GetCurrentTimestamp();
	waiter->start = monotonic_now();
	database->waiters++;
	database->last_begin = waiter->start;
	LWLockRelease(quorum->lock);
}

/* Raises the error for a level that too few members can be reached for. */
static void
refuse(ReplMlLevel level)
{
	Database   *database = database_entry(MyDatabaseId);
	char	   *present;
	char	   *missing;
	int			needed;
	int			members;
	int			reachable;
	bool		known;

	LWLockAcquire(quorum->lock, LW_SHARED);
	known = database->members_known;
	present = member_names(database, true);
	missing = member_names(database, false);
	needed = required(database, level);
	members = database->members;
	reachable = count_reachable();
	LWLockRelease(quorum->lock);

	if (!known)
		ereport(ERROR,
				(errcode(ERRCODE_CANNOT_CONNECT_NOW),
				 errmsg("write consistency \"%s\" cannot be reached: this node is not connected to its group yet", level_names[level]),
				 errhint("Try again in a moment; see SELECT * FROM repl_ml.health.")));
	ereport(ERROR,
			(errcode(ERRCODE_CANNOT_CONNECT_NOW),
			 errmsg("write consistency \"%s\" needs %d of %d members, but only %d can be reached",
					level_names[level], needed, members, reachable),
			 errdetail("Reachable: %s. Missing: %s. Nothing has been committed.", present, missing),
			 errhint("Try again when they are back; see SELECT * FROM repl_ml.health. A node that will not come back is removed with SELECT repl_ml.drop_node(...).")));
}

/* The ids of the peers whose word counts, into an array of REPL_ML_MAX_WORKERS; returns how many. */
int
repl_ml_quorum_peers(int *peers)
{
	int			count = 0;

	LWLockAcquire(quorum->lock, LW_SHARED);
	for (int i = 0; i < REPL_ML_MAX_WORKERS; i++)
	{
		if (quorum->links[i].database == MyDatabaseId && quorum->links[i].counts)
			peers[count++] = quorum->links[i].peer;
	}
	LWLockRelease(quorum->lock);
	return count;
}

/* A peer has said what it has received of each node. */
void
repl_ml_quorum_set_answer(int peer, const ReplMlClock *positions)
{
	Link	   *link;

	if (VARSIZE_ANY(positions) > ANSWER_BYTES)
		ereport(ERROR,
				(errcode(ERRCODE_PROTOCOL_VIOLATION),
				 errmsg("the peer sent an answer that is too long")));
	LWLockAcquire(quorum->lock, LW_EXCLUSIVE);
	link = find_link(peer);
	if (link != NULL)
		memcpy(link->answer, positions, VARSIZE_ANY(positions));
	LWLockRelease(quorum->lock);
}

/* Has the peer said anything since it read the question at this position of our WAL? */
static bool
has_answered(const Link *link, uint16 self, XLogRecPtr question)
{
	return link->answer[0] != 0 &&
		repl_ml_clock_counter((const ReplMlClock *) link->answer, self) > question;
}

/*
 * Have more than half of the members, this one included, answered a question?
 * Then *positions is the merge of the answers, palloc'd.
 */
bool
repl_ml_quorum_answered(uint16 self, XLogRecPtr question, ReplMlClock **positions)
{
	Database   *database = database_entry(MyDatabaseId);
	ReplMlClock *merged = repl_ml_clock_empty();
	char		(*copies)[ANSWER_BYTES] = palloc(REPL_ML_MAX_WORKERS * ANSWER_BYTES);
	int			answers = 0;
	bool		enough;

	LWLockAcquire(quorum->lock, LW_SHARED);
	for (int i = 0; i < REPL_ML_MAX_WORKERS; i++)
	{
		Link	   *link = &quorum->links[i];

		if (link->database == MyDatabaseId && link->counts && has_answered(link, self, question))
			memcpy(copies[answers++], link->answer, ANSWER_BYTES);
	}
	enough = database->members_known && answers + 1 >= required(database, REPL_ML_QUORUM);
	LWLockRelease(quorum->lock);
	for (int i = 0; enough && i < answers; i++)
		merged = repl_ml_clock_merge(merged, (const ReplMlClock *) copies[i]);
	pfree(copies);
	*positions = merged;
	return enough;
}

/* The peers that have not answered a question, "n2, n3". */
char *
repl_ml_quorum_silent(uint16 self, XLogRecPtr question)
{
	StringInfoData names;

	initStringInfo(&names);
	LWLockAcquire(quorum->lock, LW_SHARED);
	for (int i = 0; i < REPL_ML_MAX_WORKERS; i++)
	{
		Link	   *link = &quorum->links[i];

		if (link->database == MyDatabaseId && link->counts && !has_answered(link, self, question))
			appendStringInfo(&names, "%s%s", names.len > 0 ? ", " : "", NameStr(link->node_name));
	}
	LWLockRelease(quorum->lock);
	return names.data;
}

/* Are these peers and this node more than half of the members? */
bool
repl_ml_quorum_is_majority(const int *peers, int count)
{
	Database   *database = database_entry(MyDatabaseId);
	int			members = 1;
	bool		result;

	LWLockAcquire(quorum->lock, LW_SHARED);
	for (int i = 0; i < REPL_ML_MAX_WORKERS; i++)
	{
		Link	   *link = &quorum->links[i];

		for (int j = 0; j < count; j++)
		{
			if (link->database == MyDatabaseId && link->counts && link->peer == peers[j])
				members++;
		}
	}
	result = database->members_known && members >= required(database, REPL_ML_QUORUM);
	LWLockRelease(quorum->lock);
	return result;
}

/*
 * Do commits of this database wait now, or did some lately?  Looks without a
 * lock: a hint.
 */
bool
repl_ml_quorum_in_use(void)
{
	Database   *database = database_entry(MyDatabaseId);

	return database != NULL && database->last_begin != 0 &&
		(database->waiters > 0 || monotonic_now() - database->last_begin < IN_USE_US);
}

/* Is this node known to be its group's only member? */
bool
repl_ml_quorum_is_alone(void)
{
	Database   *database = database_entry(MyDatabaseId);
	bool		alone;

	LWLockAcquire(quorum->lock, LW_SHARED);
	alone = database != NULL && database->members_known && database->members == 1;
	LWLockRelease(quorum->lock);
	return alone;
}

/*
 * Is this database a member that cannot reach a majority of its group?  A
 * database that is none, or not known as one yet, is not.
 */
bool
repl_ml_quorum_is_cut_off(void)
{
	if (quorum == NULL || !OidIsValid(MyDatabaseId))
		return false;
	for (int i = 0; i < REPL_ML_MAX_DATABASES; i++)
	{
		Database   *database = &quorum->databases[i];
		bool		cut_off;

		if (repl_ml_shared->databases[i].database != MyDatabaseId ||
			!repl_ml_shared->databases[i].member)
			continue;
		LWLockAcquire(quorum->lock, LW_SHARED);
		cut_off = !database->members_known || count_reachable() < required(database, REPL_ML_QUORUM);
		LWLockRelease(quorum->lock);
		return cut_off;
	}
	return false;
}

/* The members that have not acknowledged everything before "lsn", "n2, n3". */
char *
repl_ml_quorum_missing(XLogRecPtr lsn)
{
	StringInfoData names;

	initStringInfo(&names);
	LWLockAcquire(quorum->lock, LW_SHARED);
	for (int i = 0; i < REPL_ML_MAX_WORKERS; i++)
	{
		Link	   *link = &quorum->links[i];

		if (link->database == MyDatabaseId && link->counts && link->acknowledged < lsn)
			appendStringInfo(&names, "%s%s", names.len > 0 ? ", " : "", NameStr(link->node_name));
	}
	LWLockRelease(quorum->lock);
	return names.data;
}

/* Is this node's WAL before "lsn" acknowledged? */
bool
repl_ml_quorum_reached(ReplMlLevel level, XLogRecPtr lsn)
{
	Database   *database = database_entry(MyDatabaseId);
	bool		reached;

	LWLockAcquire(quorum->lock, LW_SHARED);
	reached = database != NULL && lsn <= database->acknowledged[level];
	LWLockRelease(quorum->lock);
	return reached;
}

/* Up to where a level has acknowledged this database's WAL; the caller holds the lock. */
XLogRecPtr
repl_ml_quorum_acknowledged(ReplMlLevel level)
{
	Database   *database = database_entry(MyDatabaseId);

	return database == NULL ? InvalidXLogRecPtr : database->acknowledged[level];
}

/* Is the transaction in its commit, and of which level?  The caller holds the lock. */
bool
repl_ml_quorum_is_waiting(TransactionId xid, ReplMlLevel *level)
{
	for (int i = 0; i < MaxBackends; i++)
	{
		Waiter	   *waiter = &quorum->waiters[i];

		if (waiter->database != MyDatabaseId || waiter->xid != xid)
			continue;
		*level = waiter->level;
		return true;
	}
	return false;
}

static void
count_wait(LevelStats *stats, uint64 wait)
{
	int			bucket = 0;

	while (bucket < REPL_ML_WAIT_BUCKETS - 1 && wait > repl_ml_wait_bounds[bucket])
		bucket++;
	stats->histogram[bucket]++;
	if (stats->outcomes[REPL_ML_ACKNOWLEDGED] == 0 || wait < stats->least)
		stats->least = wait;
	stats->greatest = Max(stats->greatest, wait);
	stats->total += wait;
}

/*
 * Takes back what repl_ml_quorum_begin announced and counts what became of it:
 * acknowledged if what is before "lsn" is, else "otherwise".  A transaction that
 * is committed without is put on the list of unacknowledged.c.
 */
ReplMlOutcome
repl_ml_quorum_end(XLogRecPtr lsn, ReplMlOutcome otherwise)
{
	Database   *database = database_entry(MyDatabaseId);
	Waiter	   *waiter = &quorum->waiters[my_proc_number_compat()];
	ReplMlOutcome outcome = otherwise;
	LevelStats *stats = &database->stats[waiter->level];

	LWLockAcquire(quorum->lock, LW_EXCLUSIVE);
	if (otherwise != REPL_ML_ABORTED && lsn <= database->acknowledged[waiter->level])
		outcome = REPL_ML_ACKNOWLEDGED;
	if (outcome == REPL_ML_ACKNOWLEDGED)
		count_wait(stats, monotonic_now() - waiter->start);
	if (outcome != REPL_ML_ABORTED)
		stats->outcomes[outcome]++;
	if (outcome == REPL_ML_TIMED_OUT || outcome == REPL_ML_CANCELLED)
		repl_ml_unacknowledged_add(waiter->level, waiter->xid, lsn);
	waiter->database = InvalidOid;
	database->waiters--;
	LWLockRelease(quorum->lock);
	return outcome;
}

/*
 * The ready members of this database's group, this node first, into an array
 * of REPL_ML_MAX_WORKERS + 1; returns how many, 0 while they are not known.
 */
int
repl_ml_quorum_member_states(ReplMlMemberState *states)
{
	Database   *database = database_entry(MyDatabaseId);
	int			count = 0;

	LWLockAcquire(quorum->lock, LW_SHARED);
	if (database != NULL && database->members_known)
	{
		uint64		now = monotonic_now();

		states[count++] = (ReplMlMemberState) {.reachable = true,.acknowledged = GetFlushRecPtr(NULL)};
		for (int i = 0; i < REPL_ML_MAX_WORKERS; i++)
		{
			const Link *link = &quorum->links[i];

			if (link->database == MyDatabaseId && link->counts)
				states[count++] = (ReplMlMemberState)
				{
					.node_id = link->peer,
						.reachable = is_reachable(link),
						.acknowledged = link->acknowledged,
						.silent = link->heard == 0 ? -1 : (int64) (now - Min(link->heard, now))
				};
		}
	}
	LWLockRelease(quorum->lock);
	return count;
}

/* This database's commits that wait now, into an array of MaxBackends; returns how many. */
int
repl_ml_quorum_waiting(ReplMlWaiting *waiting)
{
	Database   *database = database_entry(MyDatabaseId);
	int			count = 0;

	if (database == NULL)
		return 0;
	LWLockAcquire(quorum->lock, LW_SHARED);
	for (int i = 0; i < MaxBackends; i++)
	{
		const Waiter *waiter = &quorum->waiters[i];

		if (waiter->database == MyDatabaseId)
			waiting[count++] = (ReplMlWaiting)
			{
				.proc_number = i,
					.pid = waiter->pid,
					.level = waiter->level,
					.required = required(database, waiter->level),
					.since = waiter->since
			};
	}
	LWLockRelease(quorum->lock);

	LWLockAcquire(SyncRepLock, LW_SHARED);
	for (int i = 0; i < count; i++)
	{
		PGPROC	   *proc = &ProcGlobal->allProcs[waiting[i].proc_number];

		if (proc->pid == waiting[i].pid && proc->syncRepState == SYNC_REP_WAITING)
			waiting[i].lsn = proc->waitLSN;
	}
	LWLockRelease(SyncRepLock);
	return count;
}

/* What became of this database's commits of a level. */
ReplMlLevelStats
repl_ml_quorum_stats(ReplMlLevel level)
{
	Database   *database = database_entry(MyDatabaseId);
	ReplMlLevelStats result = {.since = PgStartTime};

	if (database == NULL)
		return result;
	LWLockAcquire(quorum->lock, LW_SHARED);
	{
		const LevelStats *stats = &database->stats[level];

		result.acknowledged = stats->outcomes[REPL_ML_ACKNOWLEDGED];
		result.refused = stats->outcomes[REPL_ML_REFUSED];
		result.timeouts = stats->outcomes[REPL_ML_TIMED_OUT];
		result.cancelled = stats->outcomes[REPL_ML_CANCELLED];
		result.total_wait = stats->total;
		result.min_wait = stats->least;
		result.max_wait = stats->greatest;
		memcpy(result.histogram, stats->histogram, sizeof(result.histogram));
		if (database->stats_since != 0)
			result.since = database->stats_since;
	}
	LWLockRelease(quorum->lock);
	return result;
}

/* Counts this database's commits from zero. */
void
repl_ml_quorum_reset_stats(void)
{
	Database   *database = database_entry(MyDatabaseId);

	if (database == NULL)
		return;
	LWLockAcquire(quorum->lock, LW_EXCLUSIVE);
	memset(database->stats, 0, sizeof(database->stats));
	database->stats_since = GetCurrentTimestamp();
	LWLockRelease(quorum->lock);
}
