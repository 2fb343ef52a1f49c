/*
 * server.h
 *		What all processes of one server share: the shared structure, the node's
 *		clock, who this database is, who its peers are, our catalogs, and what kind
 *		of session this is.
 */
#ifndef REPL_ML_SERVER_H
#define REPL_ML_SERVER_H

#include "repl_ml.h"
#include "access/xlogdefs.h"
#include "executor/spi.h"
#include "nodes/pg_list.h"
#include "port/atomics.h"
#include "portability/instr_time.h"
#include "replication/origin.h"
#include "storage/condition_variable.h"
#include "storage/latch.h"
#include "storage/lwlock.h"
#include "utils/uuid.h"

#define REPL_ML_MAX_WORKERS		128 /* supervisors and apply workers, all
									 * databases */
#define REPL_ML_MAX_DATABASES	32
#define REPL_ML_ERROR_LENGTH	512
#define REPL_ML_DSN_LENGTH		1024
#define REPL_ML_TOMBSTONE_BITS	64

typedef enum ReplMlWorkerState
{
	REPL_ML_WORKER_STARTING,
	REPL_ML_WORKER_CONNECTING,
	REPL_ML_WORKER_PREPARING,	/* slot, catalogs, schema */
	REPL_ML_WORKER_COPYING,		/* initial copy of tables */
	REPL_ML_WORKER_STREAMING,
	REPL_ML_WORKER_PAUSED,
	REPL_ML_WORKER_WAITING,		/* backing off after an error */
	REPL_ML_WORKER_STOPPED
} ReplMlWorkerState;

/*
 * What has become of changes, and which of what kind were met: a worker counts them
 * for the view stat_apply.
 */
typedef enum ReplMlCount
{
	REPL_ML_EQUAL_UPDATES,		/* concurrent ones, of which one may be lost */
	REPL_ML_EQUAL_INSERTS,
	REPL_ML_INSERTED,			/* rows of users' tables that came */
	REPL_ML_UPDATED,
	REPL_ML_DELETED,
	REPL_ML_DUPLICATE,			/* versions that were here already */
	REPL_ML_DOMINATED,			/* older than what was here */
	REPL_ML_MET_TOMBSTONE,		/* of rows that have been deleted since */
	REPL_ML_CONFL_INSERT_EXISTS,	/* conflicts, in core's words */
	REPL_ML_CONFL_UPDATE_ORIGIN_DIFFERS,
	REPL_ML_CONFL_UPDATE_EXISTS,
	REPL_ML_CONFL_UPDATE_DELETED,
	REPL_ML_CONFL_DELETE_ORIGIN_DIFFERS,
	REPL_ML_CONFL_UPDATE_MISSING,
	REPL_ML_CONFL_DELETE_MISSING,
	REPL_ML_COUNTS
} ReplMlCount;

typedef struct ReplMlCounts
{
	int64		of[REPL_ML_COUNTS];
} ReplMlCounts;

/* Where the time of an apply worker goes, µs. */
typedef struct ReplMlTimes
{
	uint64		applying;		/* handling what has come, waits included */
	uint64		locked;			/* until what had met others' locks was applied, or
								 * parked */
	uint64		flushing;		/* making it durable */
} ReplMlTimes;

/* How many bytes came at two moments of the last seconds: see rate.c's functions. */
typedef struct ReplMlRate
{
	uint64		time[2];		/* monotonic µs, the older one first; 0: none yet */
	int64		bytes[2];
} ReplMlRate;

#define REPL_ML_ROUND_TRIPS		120 /* kept, about two minutes' */

/* What an apply worker has measured of its connection to the peer; see apply/network.c. */
typedef struct ReplMlNetwork
{
	uint32		round_trips[REPL_ML_ROUND_TRIPS];	/* µs */
	int64		offsets[REPL_ML_ROUND_TRIPS];	/* by which the peer's clock was ahead then */
	int			next;			/* place in both */
	int			count;			/* how many are there */
	TimestampTz measured_time;	/* of the last one */
	int64		pings;
	int64		pings_lost;		/* not answered when the connection ended */
	uint64		unanswered_since;	/* monotonic; 0: the last one was answered */
	int64		heartbeats;
	int64		heartbeats_late;
	int64		heartbeats_lost;
	int64		connections;
	TimestampTz connected_since;	/* 0: it is not */
	TimestampTz disconnect_time;
	char		disconnect_cause[REPL_ML_ERROR_LENGTH];
	ReplMlRate	rate;
} ReplMlNetwork;

/*
 * One worker, running or not.  A slot belongs to (database, peer) from the
 * first start on and keeps its counters over restarts; peer 0 is the
 * database's supervisor.  Written by the worker itself under the lock.
 */
typedef struct ReplMlWorker
{
	Oid			database;		/* InvalidOid: free */
	int			peer;			/* node id, 0 for the supervisor */
	pid_t		pid;			/* 0: not running */
	Latch	   *latch;			/* valid while pid is set */
	bool		pause;			/* asked to pause, by pause_apply */
	bool		retry_parked;	/* asked to, by retry_parked */
	bool		compare;		/* asked to, by the supervisor: what the peer has
								 * of dropped nodes */
	bool		stop;			/* not to be started: its database is leaving */
	TimestampTz launch_time;	/* when the process was last asked for */
	uint64		round_time;		/* monotonic: when it last came round, or handled a
								 * message; 0: it has not yet */
	ReplMlWorkerState state;
	XLogRecPtr	target_lsn;		/* peer's WAL end when we connected */
	XLogRecPtr	received_lsn;	/* peer's WAL read so far */
	XLogRecPtr	applied_lsn;	/* end of the last remote transaction applied */
	XLogRecPtr	peer_lsn;		/* peer's WAL end as it last told */
	XLogRecPtr	covered_lsn;	/* peer's WAL received, and applied or put
								 * aside, so far */
	bool		covered_known;
	XLogRecPtr	reached_lsn;	/* the origin of the link is not beyond it, or
								 * somebody has moved it; 0: not known */
	TimestampTz applied_commit_time;	/* commit time of that transaction */
	TimestampTz applied_time;	/* when anything was applied here last */
	TimestampTz last_message_time;
	int64		peer_clock;		/* peer's wall clock less our monotonic one,
								 * at least; 0: not known */
	TimestampTz start_time;
	int64		transactions;
	int64		changes;
	int64		conflicts;
	ReplMlCounts counts;
	int64		received_bytes;
	ReplMlNetwork network;
	ReplMlTimes times;
	TimestampTz counts_since;
	TimestampTz sent_time;		/* of the last message, by the peer's clock */
	XLogRecPtr	told_lsn;		/* what the peer knows to be applied here, durably ... */
	TimestampTz told_time;		/* ... and since when */
	int64		parked;
	int64		retries;		/* transactions replayed after a lock or race
								 * loss */
	int64		errors;			/* connection or apply attempts ended by an
								 * error */
	int64		sync_errors;	/* of these, in copies of tables */
	TransactionId current_xid;	/* the peer's transaction being applied, else
								 * InvalidTransactionId */
	XLogRecPtr	current_lsn;	/* where it ends */
	TimestampTz current_since;
	pg_atomic_uint64 current_changes;	/* of it, so far; without the lock, as ... */
	pg_atomic_uint64 current_parked;
	TimestampTz locked_since;	/* it has met others' locks, and is tried again; 0: it
								 * has not */
	Oid			copy_relation;	/* table being copied, else InvalidOid */
	int64		copy_rows;
	bool		failing;		/* the last error, or what it waited for, is why
								 * it does not go on now */
	TimestampTz error_time;		/* of the last one; 0: there was none */
	int			error_sqlstate;
	char		error_message[REPL_ML_ERROR_LENGTH];
	char		error_hint[REPL_ML_ERROR_LENGTH];
	char		error_context[REPL_ML_ERROR_LENGTH];
} ReplMlWorker;

/*
 * A member database, or one that was a member lately: the launcher gives the
 * entry free then.
 *
 * Which enrolled tables of the database have deleted rows: bit hash(relid) is
 * set before a tombstone is written and never cleared while the server runs.
 * Until the supervisor has read the tombstones every bit counts as set.
 */
typedef struct ReplMlDatabase
{
	Oid			database;
	bool		member;			/* wants a supervisor */
	bool		tombstones_known;
	bool		may_lack;		/* there may be rows of repl_ml.unsent; never
								 * cleared while the server runs */
	int64		group_clock;	/* of most members, as peer_clock; 0: ours is
								 * not behind */
	pg_atomic_uint64 tombstones;
	pid_t		verifier_pid;	/* 0: none runs; under the lock, as is ... */
	TimestampTz verifier_launched;	/* when it was last asked for; 0: it has come
									 * and gone */
	bool		verifier_refused;	/* there was no room for it */
	pid_t		bulk_pid;		/* of who applies large transactions beside; 0:
								 * none runs; under the lock, as is ... */
	TimestampTz bulk_launched;	/* when it was last asked for; 0: it has come and
								 * gone */
	int			bulk_peer;		/* the node whose transaction it applies now; 0: none */
	bool		no_bulk;		/* none was there when the supervisor looked */
	bool		bulk_refused;	/* there was no room for the process */
} ReplMlDatabase;

typedef enum ReplMlJoinState
{
	REPL_ML_JOIN_FREE,
	REPL_ML_JOIN_REQUESTED,
	REPL_ML_JOIN_DONE,
	REPL_ML_JOIN_FAILED
} ReplMlJoinState;

/* One request to the join worker, and its answer.  Under the lock. */
typedef struct ReplMlJoinRequest
{
	ReplMlJoinState state;
	uint64		serial;			/* tells a late answer to a former request */
	pid_t		requester;
	Latch	   *requester_latch;
	Oid			database;
	bool		copy_data;
	char		keep[8];		/* mine, theirs or nothing */
	NameData	node_name;
	char		dsn[REPL_ML_DSN_LENGTH];
	char		join_dsn[REPL_ML_DSN_LENGTH];
	int			error_sqlstate;
	char		error_message[REPL_ML_ERROR_LENGTH];
	char		error_detail[REPL_ML_ERROR_LENGTH];
	char		error_hint[REPL_ML_ERROR_LENGTH];
} ReplMlJoinRequest;

typedef struct ReplMlShared
{
	LWLock	   *lock;
	LWLock	   *clock_file_lock;
	ConditionVariable advanced; /* positions, answers, members; see position.c */
	pg_atomic_uint64 counter;	/* greatest counter issued or seen */
	uint64		start_counter;	/* what "counter" was at server start */
	pg_atomic_uint64 counter_bound; /* durable: no counter above it was issued */
	pg_atomic_uint64 group_clock;	/* greatest of the databases' */
	pg_atomic_uint32 copies;	/* that take numbers of sequences; see
								 * write/number.c */
	pg_atomic_uint64 news_begun;	/* commits of this node's own; see news.c */
	pg_atomic_uint64 news_ended;
	pg_atomic_uint64 news_told; /* of those begun, known to the walsenders */
	pg_atomic_uint32 peer_walsenders;
	pg_atomic_uint64 first_xid; /* of this server since its start or promotion */
	uint64		memberships;	/* commits that may have made a database a member */
	pid_t		launcher_pid;
	Latch	   *launcher_latch;
	ReplMlJoinRequest join;
	ReplMlDatabase databases[REPL_ML_MAX_DATABASES];
	ReplMlWorker workers[REPL_ML_MAX_WORKERS];
	pg_atomic_uint64 first_tick[FLEXIBLE_ARRAY_MEMBER]; /* by backend number;
														 * see ticker.c */
} ReplMlShared;

extern ReplMlShared *repl_ml_shared;

/*
 * Returns the worker of a database that comes after one, or the first; NULL
 * behind the last.  The caller holds the lock.
 */
static inline ReplMlWorker *
repl_ml_worker_after(const ReplMlWorker *worker, Oid database)
{
	ReplMlWorker *end = repl_ml_shared->workers + REPL_ML_MAX_WORKERS;
	ReplMlWorker *next = repl_ml_shared->workers +
		(worker == NULL ? 0 : worker - repl_ml_shared->workers + 1);

	while (next < end && next->database != database)
		next++;
	return next < end ? next : NULL;
}

/*
 * The supervisor's slot and those of apply workers, running or not, as long as
 * "database" is that of the slot.
 */
#define foreach_worker(worker, of_database) \
	for (ReplMlWorker *worker = repl_ml_worker_after(NULL, of_database); worker != NULL; \
		 worker = repl_ml_worker_after(worker, of_database))

/* A part of shared memory that a room has for itself; see shmem.c. */
typedef struct ReplMlSegment
{
	const char *name;
	Size		(*size) (void);
	void		(*init) (void *space, LWLock *lock);
} ReplMlSegment;

/* Sees messages before they are sent; methods that are NULL are left to others.  See messages.c. */
typedef struct ReplMlWatcher
{
	int			(*putmessage) (char type, const char *data, size_t length);
	void		(*putmessage_noblock) (char type, const char *data, size_t length);
	int			(*flush_if_writable) (void);
	bool		(*is_send_pending) (void);
	struct ReplMlWatcher *next; /* messages.c's */
} ReplMlWatcher;

/* Adds counts to others. */
static inline void
repl_ml_counts_add(ReplMlCounts *sum, const ReplMlCounts *more)
{
	for (int i = 0; i < REPL_ML_COUNTS; i++)
		sum->of[i] += more->of[i];
}

/* Returns the microseconds of a clock that nobody sets. */
static inline uint64
repl_ml_monotonic_now(void)
{
	instr_time	now;

	INSTR_TIME_SET_CURRENT(now);
	return INSTR_TIME_GET_MICROSEC(now);
}

/* How often a transaction takes the server down before it is applied row by row ... */
#define REPL_ML_CRASHES_CAREFUL	2
/* ... and what stands for: even so, and nobody knows which of its rows it is */
#define REPL_ML_CRASHES_PARK	100

/*
 * Whether a node has joined with rows of its own, and whose row stays where it
 * is not known by clocks.
 */
typedef enum ReplMlOwnRows
{
	REPL_ML_NO_OWN_ROWS,
	REPL_ML_KEEP_UNASKED,		/* there were none of that kind */
	REPL_ML_KEEP_MINE,
	REPL_ML_KEEP_THEIRS
} ReplMlOwnRows;

/* This database in its group; see identity.c. */
typedef struct ReplMlIdentity
{
	bool		member;			/* false: nothing else is set */
	bool		fenced;			/* a copy of the node that joined */
	bool		moved;			/* ... perhaps: in other files, or promoted */
	bool		joining;		/* not ready for users' writes yet */
	bool		dropped;		/* the others have removed us */
	bool		set_back;		/* joining, too: it has lost what others have of it */
	uint16		node_id;
	int			incarnation;	/* see repl_ml.claim_identity() */
	ReplMlOwnRows own_rows;
	uint16		former_node;	/* its id before it was set back; 0: it was not */
	uint64		former_safe;	/* it had all its own up to there */
	uint64		former_counter; /* since then it has written with greater ones */
	NameData	node_name;
	NameData	group_name;
	pg_uuid_t	group_id;
} ReplMlIdentity;

/* A peer as the catalog knows it; see repl_ml_peer_load. */
typedef struct ReplMlPeer
{
	uint16		node_id;
	char	   *node_name;
	char	   *dsn;
	char	   *state;			/* joining, ready, dropped */
	int			incarnation;	/* of which this node knows */
} ReplMlPeer;

/* in shmem.c */
extern void repl_ml_shmem_init(const ReplMlSegment *others, int count);
extern void repl_ml_shmem_require(void);
extern ReplMlDatabase *repl_ml_shmem_database(Oid database);
extern ReplMlDatabase *repl_ml_shmem_take_database(Oid database);
extern void repl_ml_shmem_release_database(Oid database);
extern bool repl_ml_shmem_is_member(Oid database);
extern void repl_ml_shmem_mark_tombstone(Oid relid);
extern bool repl_ml_shmem_may_have_tombstone(Oid relid);
extern void repl_ml_shmem_mark_unsent(void);
extern bool repl_ml_shmem_may_lack(void);
extern ReplMlWorker *repl_ml_shmem_worker(Oid database, int peer);
extern ReplMlWorker *repl_ml_shmem_copy_workers(int *count);
extern void repl_ml_shmem_retry_parked(Oid database);
extern void repl_ml_shmem_wake_supervisor(Oid database);
extern void repl_ml_shmem_set_member(Oid database);
extern void repl_ml_shmem_note_membership(void);
extern uint64 repl_ml_shmem_memberships(void);
extern void repl_ml_shmem_end_member(Oid database, uint64 seen);
extern void repl_ml_shmem_wake_launcher(void);
extern const char *repl_ml_worker_state_name(ReplMlWorkerState state);

/* in session.c */
extern void repl_ml_session_init(void);
extern void repl_ml_session_settle(void);
extern int	repl_ml_session_fix_values(void);
extern void repl_ml_session_restore(int level);
extern bool repl_ml_applying;
extern int	repl_ml_applying_depth;
extern bool repl_ml_internal_write;

/* in catalog.c */
extern void repl_ml_refuse_nulls(FunctionCallInfo fcinfo);
extern uint64 repl_ml_spi_execute(const char *sql, int nargs, Oid *types, Datum *values,
								  const char *nulls);
extern SPIPlanPtr repl_ml_spi_plan(SPIPlanPtr *plan, const char *sql, int nargs, Oid *types);
extern void repl_ml_check_server(void);
extern void repl_ml_begin(void);
extern void repl_ml_commit(void);
extern Oid	repl_ml_clock_type(void);
extern char *repl_ml_spi_text(uint64 row, int column);
extern int64 repl_ml_query_int(const char *sql);
extern Oid	repl_ml_schema_oid(void);
extern Oid	repl_ml_catalog_oid(const char *name);
extern void repl_ml_catalog_check(Oid relid, const char *name);

/* in ticker.c */
extern void repl_ml_ticker_startup(void);
extern uint64 repl_ml_ticker_next(uint64 above);
extern void repl_ml_ticker_observe(uint64 counter);
extern uint64 repl_ml_ticker_resume(uint64 above);
extern uint64 repl_ml_ticker_now(void);
extern void repl_ml_ticker_follow(int64 group_clock);
extern uint64 repl_ml_ticker_safe(void);
extern bool repl_ml_ticker_used(void);
extern void repl_ml_ticker_forget(void);
extern bool repl_ml_ticker_issued_here(uint64 counter);
extern void repl_ml_ticker_persist(bool exact);

/* in identity.c */
extern const ReplMlIdentity *repl_ml_identity(void);
extern const ReplMlIdentity *repl_ml_identity_require(void);

/* in peer.c */
extern char *repl_ml_origin_name(Oid database, int peer);
extern bool repl_ml_origin_parse(const char *name, Oid *database, int *peer);
extern RepOriginId repl_ml_origin_create(const char *name);
extern bool repl_ml_origin_is_ours(RepOriginId id);
extern ReplMlPeer *repl_ml_peer_load(int node_id);

/* in news.c */
extern void repl_ml_news_begin(void);
extern void repl_ml_news_end(void);
extern void repl_ml_news_count_walsender(int change);
extern void repl_ml_news_flush(XLogRecPtr lsn);
extern XLogRecPtr repl_ml_news_write(const char *text);
extern void repl_ml_news_commit(void);
extern void repl_ml_news_tell(void);
extern void repl_ml_news_settle(void);
extern int	repl_ml_news_due(void);
extern void repl_ml_positions_advanced(void);

/* in rate.c */
extern void repl_ml_rate_note(ReplMlRate *rate, int64 bytes);
extern double repl_ml_rate_get(const ReplMlRate *rate, int64 bytes);

/* in messages.c */
extern void repl_ml_messages_watch(ReplMlWatcher *watcher);
extern void repl_ml_messages_leave(ReplMlWatcher *watcher);
extern int	repl_ml_messages_put(const ReplMlWatcher *watcher, char type, const char *data,
								 size_t length);
extern void repl_ml_messages_put_noblock(char type, const char *data, size_t length);
extern int	repl_ml_messages_flush_if_writable(void);
extern bool repl_ml_messages_is_send_pending(void);

/* in crash.c */
extern void repl_ml_crash_startup(void);
extern void repl_ml_crash_watch(void);
extern char *repl_ml_crash_attach(int worker);
extern void repl_ml_crash_applies(XLogRecPtr lsn, bool careful);
extern void repl_ml_crash_copies(void);
extern void repl_ml_crash_retries(int64 parked, bool banned);
extern void repl_ml_crash_writes(Oid relid);
extern void repl_ml_crash_rests(void);
extern void repl_ml_crash_detach(int status);
extern void repl_ml_crash_survived(XLogRecPtr end);
extern int	repl_ml_crash_count(XLogRecPtr lsn);
extern int64 repl_ml_crash_retried(void);
extern bool repl_ml_crash_is_banned(Oid relid);
extern char *repl_ml_crash_banned(void);
extern void repl_ml_crash_pardon(Oid relid);

#endif							/* REPL_ML_SERVER_H */
