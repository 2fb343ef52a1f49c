/*
 * quorum_private.h
 *		What members.c, waiter.c and quorum.c keep in shared memory.
 *
 * One lock, repl_ml_quorum->lock, is for all of it; nobody takes core's
 * SyncRepLock while holding it.
 */
#ifndef REPL_ML_QUORUM_PRIVATE_H
#define REPL_ML_QUORUM_PRIVATE_H

#include "miscadmin.h"

#include "commit/commit.h"
#include "server/server.h"

/* a clock of as many entries as there may be, and its header */
#define REPL_ML_ANSWER_BYTES \
	(VARHDRSZ + REPL_ML_MAX_CLOCK_ENTRIES * REPL_ML_CLOCK_ENTRY_SIZE + 64)

#define REPL_ML_BEST_SCORE	8
#define REPL_ML_LINK_SAMPLES	12	/* of what a peer has, for how fast it gets that ... */
#define REPL_ML_LINK_SAMPLE_US	UINT64CONST(5000000)	/* ... taken so often */

/* What a peer had when it spoke. */
typedef struct ReplMlLinkSample
{
	uint64		time;			/* monotonic µs; 0: none */
	XLogRecPtr	lsn;
} ReplMlLinkSample;

/* A peer, as a node that acknowledges. */
typedef struct ReplMlLink
{
	Oid			database;		/* InvalidOid: free */
	int			peer;
	NameData	node_name;
	bool		counts;			/* a ready member: its word counts */
	pid_t		walsender;		/* serves it now; 0: not connected */
	uint64		lost;			/* when it was last connected, monotonic µs */
	uint64		heard;			/* when it last spoke, monotonic µs; 0: never */
	uint64		alive;			/* the same, to our apply worker */
	uint64		paused;			/* when it last said that it reads nothing of this node
								 * because somebody wants that; 0: it does */
	XLogRecPtr	busy;			/* it may be long in applying a large change
								 * that ends here */
	XLogRecPtr	acknowledged;	/* it has everything before, durably applied */
	int			score;			/* how often it was lately among the first that
								 * acknowledged, up to REPL_ML_BEST_SCORE */
	ReplMlLinkSample samples[REPL_ML_LINK_SAMPLES];
	int			newest;			/* of them */
	int64		connections;	/* since "since" */
	int64		sent_bytes;
	ReplMlRate	rate;			/* of them */
	TimestampTz since;			/* when this place became the peer's */
	bool		careful;		/* a change could not be sent to it: see
								 * write/output.c */
	int			ended_with;		/* SQLSTATE of the error that ended the last
								 * walsender; 0: none */
	bool		decides;		/* the level quorum needs it, as it is among the
								 * best */
	bool		answered;		/* has ever answered a barrier: see answers */
} ReplMlLink;

/* A commit under way. */
typedef struct ReplMlWaiter
{
	Oid			database;		/* InvalidOid: none */
	ReplMlLevel level;
	TransactionId xid;
	pid_t		pid;
	TimestampTz since;
	uint64		start;			/* the same, monotonic µs */
	XLogRecPtr	commit;			/* where the commit's record begins, and ends; 0
								 * until it is sent to a peer */
	XLogRecPtr	lsn;
	ReplMlPeerSet lacking;		/* peers that have parked something of it */
} ReplMlWaiter;

/* What became of the commits of one level. */
typedef struct ReplMlLevelCounts
{
	int64		outcomes[REPL_ML_ABORTED];
	uint64		total;			/* of acknowledged ones, µs */
	uint64		least;
	uint64		greatest;
	int64		histogram[REPL_ML_WAIT_BUCKETS];
} ReplMlLevelCounts;

/* One member database; the index is that of repl_ml_shared->databases. */
typedef struct ReplMlQuorumDatabase
{
	bool		members_known;
	int			members;		/* that count, this node included */
	NameData	local_name;
	int			waiters[REPL_ML_LEVELS];
	int			doubtful;		/* of these: some peer has parked something of
								 * them */
	uint64		last_begin;		/* of a wait, monotonic µs; 0: none yet */
	XLogRecPtr	acknowledged[REPL_ML_LEVELS];	/* never goes back */
	XLogRecPtr	let_go[REPL_ML_LEVELS]; /* some walsender sees to it that
										 * whoever waits for less is woken */
	ReplMlLevelCounts counts[REPL_ML_LEVELS];
	TimestampTz counts_since;	/* 0: since the server's start */
} ReplMlQuorumDatabase;

typedef struct ReplMlQuorum
{
	LWLock	   *lock;
	ReplMlQuorumDatabase databases[REPL_ML_MAX_DATABASES];
	int			links_used;		/* those behind have never been used */
	ReplMlLink	links[REPL_ML_MAX_WORKERS];
	char		answers[REPL_ML_MAX_WORKERS][REPL_ML_ANSWER_BYTES]; /* of the peers of links:
																	 * clocks, what each last
																	 * said it had received of
																	 * each node */
	ReplMlWaiter waiters[FLEXIBLE_ARRAY_MEMBER];	/* by backend number */
} ReplMlQuorum;

extern ReplMlQuorum *repl_ml_quorum;

/*
 * Returns the link of this database that comes after one, or the first; NULL
 * behind the last.  The caller holds the lock.
 */
static inline ReplMlLink *
repl_ml_link_after(const ReplMlLink *link)
{
	ReplMlLink *end = repl_ml_quorum->links + repl_ml_quorum->links_used;
	ReplMlLink *next = link == NULL ? repl_ml_quorum->links :
		repl_ml_quorum->links + (link - repl_ml_quorum->links) + 1;

	while (next < end && next->database != MyDatabaseId)
		next++;
	return next < end ? next : NULL;
}

/*
 * Returns the link after one, or the first, of those whose word counts; NULL
 * behind the last.  The caller holds the lock.
 */
static inline ReplMlLink *
repl_ml_counting_link_after(const ReplMlLink *link)
{
	ReplMlLink *next = repl_ml_link_after(link);

	while (next != NULL && !next->counts)
		next = repl_ml_link_after(next);
	return next;
}

#define foreach_link(link) \
	for (ReplMlLink *link = repl_ml_link_after(NULL); link != NULL; link = repl_ml_link_after(link))
#define foreach_counting_link(link) \
	for (ReplMlLink *link = repl_ml_counting_link_after(NULL); link != NULL; \
		 link = repl_ml_counting_link_after(link))

/* Returns the link's place in sets of peers. */
static inline int
repl_ml_link_index(const ReplMlLink *link)
{
	return link - repl_ml_quorum->links;
}

/* Adds the peer whose link has this index. */
static inline void
repl_ml_peer_set_add(ReplMlPeerSet *set, int index)
{
	set->bits[index / 64] |= UINT64CONST(1) << (index % 64);
}

/* Removes the peer whose link has this index. */
static inline void
repl_ml_peer_set_remove(ReplMlPeerSet *set, int index)
{
	set->bits[index / 64] &= ~(UINT64CONST(1) << (index % 64));
}

/* Says whether the peer whose link has this index is in the set. */
static inline bool
repl_ml_peer_set_has(const ReplMlPeerSet *set, int index)
{
	return (set->bits[index / 64] & (UINT64CONST(1) << (index % 64))) != 0;
}

/* Says whether no peer is in the set. */
static inline bool
repl_ml_peer_set_is_empty(const ReplMlPeerSet *set)
{
	StaticAssertStmt(REPL_ML_PEER_WORDS * 64 >= REPL_ML_MAX_WORKERS,
					 "a set must have room for all links");
	return set->bits[0] == 0 && set->bits[1] == 0;
}

/* in quorum.c */
extern ReplMlQuorumDatabase *repl_ml_quorum_database(Oid oid);
extern void repl_ml_quorum_forget_link(int index);
extern int	repl_ml_quorum_required(const ReplMlQuorumDatabase *database, ReplMlLevel level);

/* in members.c */
extern void repl_ml_members_heard(int peer, XLogRecPtr acknowledged);
extern int	repl_ml_members_reachable(void);
extern int	repl_ml_members_index(int peer);
extern void repl_ml_members_name_set(const ReplMlPeerSet *set, char *names, Size size);
extern bool repl_ml_members_decides(int peer);
extern char *repl_ml_members_names(const ReplMlQuorumDatabase *database, bool reachable);

#endif							/* REPL_ML_QUORUM_PRIVATE_H */
