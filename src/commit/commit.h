/*
 * commit.h
 *		Write consistency: which members have what this node wrote, which commits
 *		wait for them, and what became of a transaction.
 */
#ifndef REPL_ML_COMMIT_H
#define REPL_ML_COMMIT_H

#include "repl_ml.h"
#include "access/transam.h"
#include "access/xlogdefs.h"
#include "access/xlogreader.h"
#include "nodes/pg_list.h"
#include "server/server.h"
#include "storage/latch.h"
#include "storage/lock.h"
#include "storage/lwlock.h"
#include "utils/snapshot.h"
#include "utils/uuid.h"
#include "wire/wire.h"

/* How many members, this node included, have a transaction before its commit returns. */
typedef enum ReplMlLevel
{
	REPL_ML_ONE,
	REPL_ML_QUORUM,				/* more than half */
	REPL_ML_ALL
} ReplMlLevel;

#define REPL_ML_LEVELS			(REPL_ML_ALL + 1)

/* in synchronous_standby_names; no standby has it: only quorum.c ends the waits */
#define REPL_ML_STANDBY_NAME	"repl_ml_quorum"

#define REPL_ML_PEER_WORDS		2	/* of a set of as many links as there may be */
#define REPL_ML_WAIT_BUCKETS	12	/* of the histogram of waits */

/* When a peer is to make what it has applied durable, and to say so. */
typedef enum ReplMlUrgency
{
	REPL_ML_WHENEVER,			/* nobody waits for it */
	REPL_ML_SOON,				/* somebody does, if others fail to be faster */
	REPL_ML_NOW
} ReplMlUrgency;

/* How a commit ended. */
typedef enum ReplMlOutcome
{
	REPL_ML_ACKNOWLEDGED,
	REPL_ML_REFUSED,			/* before it began */
	REPL_ML_TIMED_OUT,			/* committed here, not acknowledged */
	REPL_ML_CANCELLED,			/* the same, ended by somebody */
	REPL_ML_PARKED,				/* the same: too few can apply it */
	REPL_ML_ABORTED				/* of another cause */
} ReplMlOutcome;

/*
 * Peers of this database, by index of their links: those that lack a transaction
 * though they have acknowledged what is behind it, because they have parked
 * something of it.
 */
typedef struct ReplMlPeerSet
{
	uint64		bits[REPL_ML_PEER_WORDS];
} ReplMlPeerSet;

/* So often a worker that is paused says so to the peer that it does not read, ms. */
#define REPL_ML_PAUSE_TOLD_MS	Min(5000, 5 * repl_ml_heartbeat_interval)

/* A member as repl_ml_members_set takes it. */
typedef struct ReplMlMember
{
	int			node_id;
	NameData	node_name;
	bool		is_local;
} ReplMlMember;

/* A member as views show it. */
typedef struct ReplMlMemberState
{
	int			node_id;		/* 0: this node */
	bool		reachable;
	XLogRecPtr	acknowledged;	/* it has this node's WAL before, durably applied */
	int64		silent;			/* since it last spoke, µs; -1: it has not */
} ReplMlMemberState;

/* The connection of a peer that reads what this node writes, as views show it. */
typedef struct ReplMlLinkState
{
	int			peer;
	bool		paused;			/* it does not read, because somebody there wants that */
	bool		known;			/* whether it can be reached is known, as it is a ready
								 * member */
	bool		reachable;
	int64		silent;			/* since it last spoke, µs; -1: it has not */
	double		rate;			/* at which it has come on with our WAL, bytes a second; -1:
								 * not known */
	int64		connections;	/* that it has made, the present one included */
	int64		sent_bytes;		/* over all of them */
	double		sent_rate;		/* ... a second, lately; -1: not known */
	TimestampTz since;			/* when these two were begun to be counted */
} ReplMlLinkState;

/* A commit that waits to be acknowledged, as views show it. */
typedef struct ReplMlWaiting
{
	int			proc_number;
	pid_t		pid;
	ReplMlLevel level;
	int			required;		/* members, this node included */
	TimestampTz since;
	XLogRecPtr	lsn;			/* of the commit; invalid: its wait begins just now */
	int		   *parked_on;		/* ids of members, palloc'd */
	int			parked_count;
} ReplMlWaiting;

/* What became of the commits of a level, as views show it; times in µs. */
typedef struct ReplMlLevelStats
{
	int64		acknowledged;
	int64		refused;
	int64		timeouts;
	int64		cancelled;
	int64		parked;
	uint64		total_wait;		/* of acknowledged ones, as the rest */
	uint64		min_wait;
	uint64		max_wait;
	int64		histogram[REPL_ML_WAIT_BUCKETS];
	TimestampTz since;
} ReplMlLevelStats;

/* A message in the WAL that tells a transaction's level. */
typedef struct ReplMlRecord
{
	ReplMlLevel level;
	bool		of_prepared;	/* before a COMMIT PREPARED, not in the
								 * transaction */
	FullTransactionId xid;
	char		group_id[UUID_LEN * 2 + 5]; /* as text */
} ReplMlRecord;

/* What is known of a committed transaction. */
typedef enum ReplMlFate
{
	REPL_ML_FATE_ACKNOWLEDGED,
	REPL_ML_FATE_COMMITTED,		/* and not acknowledged, as far as known */
	REPL_ML_FATE_UNKNOWN		/* one of the two */
} ReplMlFate;

#define REPL_ML_LEASE_LINE	16	/* nodes that stand in line; others ask again */

/*
 * The lease of a database: who holds it may write strong tables.  Under the lock of
 * commit/, but for "holds", which changes only while nobody of this node has the
 * heavyweight lock, and is read by who has it.
 */
typedef struct ReplMlLease
{
	uint64		holds;			/* another number for each tenure in which this node's
								 * clients may write; 0: they may not */
	uint64		serial;			/* the last one */
	int64		round;			/* of the tenure that it is */
	uint64		closings;		/* another number each time that a tenure is lost */
	bool		closed;			/* something here may be void: nobody reads strong tables */
	bool		settled;		/* nothing of before the server's start is in doubt */
	TransactionId opened_xid;	/* a snapshot that does not see it may lack what others
								 * wrote before; invalid: there is none left */
	XLogRecPtr	last_end;		/* of our transactions that had it; 0: of none */
	XLogRecPtr	void_begin;		/* what of them ends behind that, */
	XLogRecPtr	void_end;		/* and up to there, counts in no tenure */
	XLogRecPtr	given_up;		/* of the last of these whose commit was not acknowledged
								 * when its wait ended; 0: there is none */
	bool		end_unknown;	/* some may have ended behind that: a prepared one, or
								 * before the server started */
	uint64		opened;			/* monotonic µs */
	bool		wanted;			/* somebody here waits for it, or asks us for it */
	bool		look;			/* the process is to look at its row, or asked for something */
	bool		doubted;		/* others may have voted for a later round than ours */
	bool		mistaken;		/* others take it for the holder, which by its row it is not */
	pid_t		pid;			/* of the process that takes it and gives it; 0: none */
	Latch	   *latch;			/* valid while pid is set */
	bool		busy;			/* it waits for our clients to end, and need not be called */
	TimestampTz launched;		/* when the process was last asked for */
	bool		launch_refused; /* the server had no room for it */
	uint64		refused;		/* when it last turned out that nobody gives it,
								 * monotonic µs; 0: it has come since */
	char		reason[REPL_ML_ERROR_LENGTH];	/* why, with a command */
	pid_t		victim;			/* waits for it, and is waited for: a deadlock */
	int			line_count;
	struct
	{
		int			node;
		uint64		seen;		/* when it last asked, monotonic µs */
	}			line[REPL_ML_LEASE_LINE];
	int64		elected;		/* counts, since the server's start */
	int64		taken;
	int64		given;
	int64		waits;			/* of clients, until they had it */
	int64		waits_refused;
	uint64		total_wait;		/* of those that had it, µs */
	uint64		max_wait;
} ReplMlLease;

/* Whether a transaction of strong tables counts: see round.c. */
typedef enum ReplMlJudgement
{
	REPL_ML_UNJUDGED,			/* not known */
	REPL_ML_UNCLEAN,			/* nor looked at, before strong tables here are mended */
	REPL_ML_IS_VALID,
	REPL_ML_IS_VOID
} ReplMlJudgement;

/* in round.c */
extern void repl_ml_round_share(void);
extern void repl_ml_round_block(void);
extern void repl_ml_round_unblock(void);
extern char *repl_ml_round_message(int64 round);
extern bool repl_ml_round_parse(const pg_uuid_t *group, const char *content, int64 *round);
extern ReplMlJudgement repl_ml_round_judge(int node, int64 round, XLogRecPtr end);
extern void repl_ml_round_note(int node, XLogRecPtr end);
extern void repl_ml_round_note_void(int node, XLogRecPtr commit, TransactionId xid);
extern void repl_ml_round_inquire(void);

/* in lease.c */
extern Size repl_ml_lease_shmem_size(void);
extern void repl_ml_lease_shmem_init(void *space, LWLock *lock);
extern void repl_ml_lease_init(void);
extern ReplMlLease *repl_ml_lease(void);
extern LWLock *repl_ml_lease_lock(void);
extern void repl_ml_lease_forget(int index);
extern void repl_ml_lease_tag(LOCKTAG *tag);
extern void repl_ml_lease_call(ReplMlLease *lease);
extern void repl_ml_lease_look(ReplMlLease *lease);
extern void repl_ml_lease_take(void);
extern void repl_ml_lease_require_clean(void);
extern bool repl_ml_lease_is_newer(Snapshot snapshot);
extern bool repl_ml_lease_is_kept_from_others(void);
extern void repl_ml_lease_require(Oid root);
extern bool repl_ml_lease_check(void);
extern void repl_ml_lease_mark(void);
extern void repl_ml_lease_commits_prepared(void);
extern void repl_ml_lease_gives_up(XLogRecPtr lsn, bool had_lease);

/* in gate.c */
extern bool repl_ml_gate_is_watched(void);
extern void repl_ml_gate_pass(Snapshot snapshot, int timeout);

/* in level.c */
extern const char *repl_ml_level_name(ReplMlLevel level);
extern bool repl_ml_level_parse(const char *name, ReplMlLevel *level);
extern void repl_ml_level_init(void);
extern ReplMlLevel repl_ml_level_wanted(void);
extern void repl_ml_level_forget(void);
extern void repl_ml_level_raise(ReplMlLevel level);
extern void repl_ml_level_note(Oid root);
extern ReplMlLevel repl_ml_level_of_tables(List *relids);
extern bool repl_ml_level_none_is_strong(void);
extern bool repl_ml_level_any_strong(void);
extern bool repl_ml_level_is_strong(Oid root);
extern bool repl_ml_level_any_changing(void);
extern bool repl_ml_level_is_closed(Oid root);

/* in commit.c */
extern int	repl_ml_write_timeout(void);
extern void repl_ml_commit_init(void);
extern void repl_ml_commit_prepared(const char *gid, bool is_commit, void (*run) (void *argument),
									void *argument);

/* in reply.c */
extern void repl_ml_reply_watch(void);
extern int	repl_ml_reply_peer(void);
extern void repl_ml_reply_written(Size bytes);

/* in members.c */
extern void repl_ml_members_set(List *members);
extern void repl_ml_members_attach(int peer);
extern void repl_ml_members_set_busy(int peer, XLogRecPtr lsn);
extern void repl_ml_members_alive(int peer);
extern void repl_ml_members_set_careful(int peer, bool careful);
extern void repl_ml_members_set_ended(int sqlstate);
extern int	repl_ml_members_ended(int peer);
extern bool repl_ml_members_is_careful(int peer);
extern int	repl_ml_members_peers(int *peers);
extern int	repl_ml_members_among(const int *peers, int count, int *members);
extern bool repl_ml_members_is_served(Oid database);
extern bool repl_ml_members_is_alone(void);
extern bool repl_ml_members_is_cut_off(void);
extern char *repl_ml_members_missing(XLogRecPtr lsn);
extern int	repl_ml_members_of_set(const ReplMlPeerSet *set, int *peers);
extern int	repl_ml_members_states(ReplMlMemberState *states);
extern int	repl_ml_members_links(ReplMlLinkState *states);
extern void repl_ml_members_sent(int peer, Size bytes);
extern bool repl_ml_members_set_answer(int peer, const ReplMlClock *positions);
extern bool repl_ml_members_answered(uint16 self, XLogRecPtr question, ReplMlClock **positions);
extern char *repl_ml_members_silent(uint16 self, XLogRecPtr question);

/* in quorum.c */
extern Size repl_ml_quorum_shmem_size(void);
extern void repl_ml_quorum_shmem_init(void *space, LWLock *lock);
extern const char *repl_ml_urgency_name(ReplMlUrgency urgency);
extern bool repl_ml_urgency_parse(const char *name, ReplMlUrgency *urgency);
extern bool repl_ml_quorum_forget(int index, Oid oid);
extern bool repl_ml_quorum_has_waiters(void);
extern bool repl_ml_quorum_owns_waits(void);
extern void repl_ml_quorum_dismiss_strangers(void);
extern bool repl_ml_quorum_heard(int peer, XLogRecPtr acknowledged);
extern bool repl_ml_quorum_release(void);
extern void repl_ml_quorum_sent(TransactionId xid, XLogRecPtr commit, XLogRecPtr lsn);
extern void repl_ml_quorum_parked(int peer, XLogRecPtr lsn);
extern bool repl_ml_quorum_has(ReplMlLevel level, XLogRecPtr lsn, const ReplMlPeerSet *lacking);
extern bool repl_ml_quorum_may_have(ReplMlLevel level, const ReplMlPeerSet *without);
extern XLogRecPtr repl_ml_quorum_acknowledged(ReplMlLevel level);
extern ReplMlUrgency repl_ml_quorum_urgency(int peer);
extern bool repl_ml_quorum_in_use(void);

/* in waiter.c */
extern const uint64 repl_ml_wait_bounds[REPL_ML_WAIT_BUCKETS - 1];
extern void repl_ml_waiter_begin(ReplMlLevel level, TransactionId xid);
extern ReplMlOutcome repl_ml_waiter_end(XLogRecPtr lsn, ReplMlOutcome otherwise, char *parked_on,
										Size size);
extern bool repl_ml_waiter_find(TransactionId xid, ReplMlLevel *level);
extern bool repl_ml_waiter_is_acknowledged(XLogRecPtr lsn);
extern bool repl_ml_waiter_has_left(Snapshot snapshot);
extern bool repl_ml_waiter_is_before(XLogRecPtr lsn);
extern int	repl_ml_waiter_list(ReplMlWaiting *waiting);
extern ReplMlLevelStats repl_ml_waiter_stats(ReplMlLevel level);
extern void repl_ml_waiter_reset_stats(void);

/* in backlog.c */
extern Size repl_ml_backlog_shmem_size(void);
extern void repl_ml_backlog_shmem_init(void *space, LWLock *lock);
extern void repl_ml_backlog_note(void);

/* in unacknowledged.c */
extern Size repl_ml_unacknowledged_shmem_size(void);
extern void repl_ml_unacknowledged_shmem_init(void *space, LWLock *lock);
extern void repl_ml_unacknowledged_forget(int index, Oid database);
extern void repl_ml_unacknowledged_forget_link(int index);
extern void repl_ml_unacknowledged_settle(void);
extern void repl_ml_unacknowledged_add(ReplMlLevel level, TransactionId xid, XLogRecPtr commit,
									   XLogRecPtr lsn, const ReplMlPeerSet *lacking);
extern void repl_ml_unacknowledged_mark(XLogRecPtr lsn, int index);
extern int	repl_ml_unacknowledged_lacking(int peer, XLogRecPtr *commits, int room);
extern void repl_ml_unacknowledged_is_decided(int peer, XLogRecPtr commit, bool discarded);
extern XLogRecPtr repl_ml_unacknowledged_position(ReplMlLevel level);
extern bool repl_ml_unacknowledged_has(XLogRecPtr lsn, bool hopeful);
extern bool repl_ml_unacknowledged_is_settled(void);
extern int64 repl_ml_unacknowledged_count(ReplMlLevel level);
extern ReplMlFate repl_ml_unacknowledged_find(TransactionId xid, ReplMlLevel *level);
extern bool repl_ml_unacknowledged_is_past(FullTransactionId xid);
extern bool repl_ml_unacknowledged_recall_begin(XLogRecPtr *end);
extern void repl_ml_unacknowledged_recall_end(const bool *lost);
extern void repl_ml_unacknowledged_recall_add(ReplMlLevel level, TransactionId xid, XLogRecPtr lsn);

/* in recall.c */
extern bool repl_ml_recall(void);
extern XLogReaderState *repl_ml_recall_open(XLogRecPtr from, const char *lost_knowledge);
extern bool repl_ml_recall_next(XLogReaderState *from);

/* in void.c */
extern void repl_ml_void_note(void);

/* in lacking.c */
extern void repl_ml_lacking_ask(void);

/* in token.c */
extern bool repl_ml_token_is_out(void);
extern void repl_ml_token_forget(void);
extern char *repl_ml_record_of_transaction(ReplMlLevel level);
extern char *repl_ml_record_of_prepared(ReplMlLevel level, TransactionId xid);
extern bool repl_ml_record_parse(const char *text, ReplMlRecord *record);

#endif							/* REPL_ML_COMMIT_H */
