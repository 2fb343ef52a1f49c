/*
 * apply.h
 *		The stream of one peer: from its messages to changes of rows, and what becomes
 *		of those that fail.  All of it is the apply worker's, but for parked
 *		changes that a person tries again (again.c).
 */
#ifndef REPL_ML_APPLY_H
#define REPL_ML_APPLY_H

#include "repl_ml.h"
#include "commit/commit.h"
#include "converge/converge.h"
#include "replication/logicalproto.h"
#include "replication/origin.h"
#include "replication/walreceiver.h"
#include "row/row.h"
#include "server/server.h"

#define REPL_ML_BULK	"bulk"	/* action in repl_ml.parked_change of a large transaction */
#define REPL_ML_PIECE_OF_ABORTED	(-1)	/* with the subtransactions that were rolled back */
#define REPL_ML_SMALL_TRANSACTION	50	/* changes of one that may share one of ours */
#define REPL_ML_HEARTBEAT_LEISURE_MS	250 /* they are flushed later than others' changes */

/* The message of a parked change that is a person's, with SQLSTATE 38000. */
#define REPL_ML_CRASHED_AGAIN	"trying the change again took the server down"

/*
 * How a transaction is applied.  One that failed is tried again carefully,
 * each change in a subtransaction, so that just the failing ones are parked;
 * one that fails even so (at commit, say) is parked as a whole.
 */
typedef enum ReplMlApplyMode
{
	REPL_ML_APPLY_NORMAL,
	REPL_ML_APPLY_CAREFUL,
	REPL_ML_APPLY_PARK,
	REPL_ML_APPLY_ASIDE			/* nothing is applied now: see aside.c */
} ReplMlApplyMode;

/* A table as the peer describes it, and what it is here. */
typedef struct ReplMlRemoteTable
{
	LogicalRepRelId remote_id;	/* hash key */
	LogicalRepRelation remote;
	ReplMlColumn *described;	/* what its columns are, or NULL: it is not
								 * known */
	bool		late;			/* of a parked change: columns it lacks have
								 * been added since */
	int			careful;		/* so many changes more get a subtransaction each,
								 * as one has failed */
	ErrorData  *misfit;			/* why no change of it can be applied, or NULL;
								 * in "description" */
	TimestampTz misfit_until;	/* then look again, whatever has changed */
	ErrorData  *locked;			/* what was said when it was found locked, or
								 * NULL; in "description" */
	Oid			locked_as;		/* the local table then */
	char	   *columns;		/* what they are, for park.c, or NULL; in
								 * "description" */
	TimestampTz logged_at;		/* when a parked change of it was */
	bool		valid;			/* the fields below fit the local catalogs */
	Oid			local;			/* InvalidOid: dropped from the group, ignore */
	int			natts;			/* of the local table */
	int		   *remote_column;	/* local attribute - 1 -> remote column or -1 */
	int			other_key_count;	/* of columns of the peer's key, if that is
									 * another than ours */
	AttrNumber	other_key[INDEX_MAX_KEYS];
	Datum	   *fill;			/* of local attributes that the peer lacks: what rows of
								 * before have there ... */
	bool	   *has_fill;		/* ... if that is known, and not null */
	FmgrInfo   *input;
	Oid		   *input_param;
	FmgrInfo   *receive;		/* fn_oid is invalid where the two types are
								 * not the same on all nodes */
	MemoryContext description;	/* of what "remote" points to, and above
								 * "context" */
	MemoryContext context;		/* of remote_column and what follows it */
} ReplMlRemoteTable;

/* The remote transaction being applied. */
typedef struct ReplMlTransaction
{
	bool		open;			/* BEGIN seen, COMMIT not yet */
	bool		started;		/* a local transaction is running for it */
	ReplMlApplyMode mode;
	TransactionId xid;
	XLogRecPtr	final_lsn;
	TimestampTz commit_time;
	bool		catalogs_changed;
	ReplMlUrgency urgency;		/* with which its commit waits for us */
	bool		impatient;		/* what of it is locked is parked */
	bool		put_aside;		/* some of its changes are */
	bool		lacks;			/* some of its changes, which the peer could not
								 * send */
	int64		changes;
	int64		heartbeats;		/* changes that are just that */
	int64		conflicts;
	ReplMlCounts counts;
	int64		parked;
	int64		round;			/* in which it wrote strong tables; 0: it did not, or
								 * has not said so yet */
	bool		is_void;		/* what it wrote there is passed over */
} ReplMlTransaction;

/* What has been applied and is not shown yet. */
typedef struct ReplMlTally
{
	int64		transactions;
	int64		changes;
	int64		conflicts;
	ReplMlCounts counts;
	int64		parked;
} ReplMlTally;

/*
 * The connections to the peer, and what was seen over the stream's.  That is
 * made and dropped by worker.c, which notes when the peer last spoke, and looked
 * after by copy/link.c; the other one belongs to copy/sync.c and copy/retry.c.
 * dispatch.c and heard.c note what came over the stream.
 */
typedef struct ReplMlConnection
{
	WalReceiverConn *stream;
	WalReceiverConn *copy;		/* of a copy beside it */
	RepOriginId origin;
	Oid			peer_database;	/* the peer's, part of its slots' names */
	bool		answered;		/* it has been made */
	bool		streams;		/* something has come over it */
	bool		progressed;		/* a transaction was applied over it */
	bool		passed_over;	/* a heartbeat is missing: the link is to be
								 * made anew */
	bool		compared;		/* slot and origin have been, or that was tried */
	bool		incomplete;		/* the link was made anew, and what was passed over is
								 * not copied yet */
	bool		listening;		/* what fails now is the peer's stream */
	int			failures;		/* of that, in a row, with nothing applied
								 * between */
	int			failure;		/* SQLSTATE of the last one */
	int			patience;		/* so many, and copy/link.c makes the slot anew */
	TimestampTz last_message_time;
	TimestampTz sent_time;		/* of that message, by the peer's clock */
	uint64		pinged;			/* when an echo was last wanted, monotonic; 0: never */
	int64		clock;			/* as peer_clock, lately */
	int64		former_clock;	/* ... and before */
	uint64		clock_since;	/* monotonic: when "lately" began */
} ReplMlConnection;

/*
 * How far this node is in the peer's WAL, and what the peer knows of it.
 * Written by worker.c; dispatch.c notes what it has committed and how urgently
 * somebody waits for it, again.c and replay.c what they have added.
 */
typedef struct ReplMlProgress
{
	XLogRecPtr	received;
	XLogRecPtr	applied;
	XLogRecPtr	durable;
	XLogRecPtr	kept;			/* where the origin durably is: behind the last
								 * transaction with anything for us */
	XLogRecPtr	told;			/* durable, as the peer knows */
	TimestampTz told_at;
	bool		committed;		/* transactions, since */
	XLogRecPtr	seen;			/* the batch's end when we last waited */
	bool		asked;			/* the peer wants to know how far we are */
	ReplMlUrgency urgency;		/* with which somebody waits for what is not
								 * durable */
	TimestampTz waited_since;	/* ... and the first one's has been applied */
	TimestampTz volatile_since; /* when the oldest such transaction was
								 * applied; 0: there is none */
} ReplMlProgress;

/*
 * The peer's transactions that share our open one.  Written by dispatch.c, and
 * by change.c when a large one comes; worker.c counts what is not ours to apply
 * as ended, replay.c says up to where there is to be no batch.
 */
typedef struct ReplMlBatch
{
	int			count;			/* of those that have ended */
	ReplMlTally tally;			/* of them */
	bool		crowded;		/* a large one is among them, which is an error */
	XLogRecPtr	end;			/* of the last one, applied or not ours */
	TimestampTz commit_time;	/* ... there */
	bool		matters;		/* there is more in it than heartbeats */
	XLogRecPtr	single_until;	/* before this each gets one of its own */
	int64		round;			/* of those that wrote strong tables; 0: none did */
	bool		is_void;		/* ... and that is passed over; then it is one */
	XLogRecPtr	strong_end;		/* of the last of these */
	XLogRecPtr	last_commit;	/* where its commit is */
} ReplMlBatch;

/*
 * What failed, or met others' locks, and is tried again.  Written by dispatch.c,
 * to which worker.c and replay.c bring the error; these two and aside.c say when
 * something is, or need no longer be, put aside, and worker.c counts the races.
 */
typedef struct ReplMlRetry
{
	int			races;			/* transactions lost to clients in a row */
	XLogRecPtr	failed_lsn;		/* final LSN of the transaction that failed
								 * last */
	int			failures;		/* how often in a row */
	ErrorData  *failure;		/* the error it failed with */
	XLogRecPtr	judged_lsn;		/* final LSN of the one that wrote strong tables and
								 * does not count, or is not known to */
	int64		judged_round;	/* ... when it was written */
	XLogRecPtr	judged_end;		/* ... and where it ends */
	XLogRecPtr	blocked_lsn;	/* ... of one to be put aside when it is sent
								 * again */
	XLogRecPtr	locked_lsn;		/* final LSN of the transaction that met
								 * others' locks last */
	TimestampTz locked_since;	/* it has been tried in vain */
	bool		aside;			/* some change may be put aside, to be tried
								 * again */
} ReplMlRetry;

/* The process's state: who it works for, what it is at, and the parts above. */
typedef struct ReplMlApply
{
	ReplMlWorker *worker;		/* our slot in shared memory */
	ReplMlPeer *peer;
	uint16		self;			/* this node's id */
	pg_uuid_t	group_id;
	ReplMlConnection connection;
	ReplMlProgress progress;
	ReplMlBatch batch;
	ReplMlRetry retry;
	ReplMlTransaction transaction;
	MemoryContext message_context;	/* reset after each message */
	XLogRecPtr	message_lsn;	/* in front of the message handled; of a
								 * COMMIT its end */
	const char *doing;			/* for the error context: the message handled */
	const char *table;			/* ... and the table, or NULL */
	bool		late;			/* a parked change is tried again */
	ReplMlTimes times;			/* not shown yet, as ... */
	int64		received_bytes;
	bool		blame_transaction;	/* an error now is the transaction's, not
									 * the stream's */
	int64		awaits_schema;	/* the stream waits for this change of the schema; 0: for
								 * none */
	TimestampTz awaits_since;	/* ... since then */
	TimestampTz schema_waited;	/* since when; 0: not yet */
	bool		awaits_bulk;	/* the stream waits for a large transaction,
								 * perhaps */
	bool		catalogs_behind;	/* the peer sends tables that are not here, and
									 * perhaps not on our list */
	bool		tables_pending; /* some table is to be created, enrolled or
								 * copied later */
	void		(*give_way) (void); /* worker.c's, for replay.c: lets others go on
									 * who have locked something */
} ReplMlApply;

/* Before each message in repl_ml.bulk_piece, whose pieces cut it anywhere. */
typedef struct ReplMlPieceHeader
{
	int			length;			/* of what follows */
	TransactionId xid;			/* subtransaction it is of */
	char		type;
} ReplMlPieceHeader;

/* A large transaction that has been put aside; see bulk.c. */
typedef struct ReplMlBulk
{
	int64		id;				/* in repl_ml.parked_change; 0: none */
	int			node;			/* that it comes from */
	TransactionId xid;
	XLogRecPtr	lsn;			/* of its commit there */
	TimestampTz commit_time;
	int64		round;			/* in which it wrote strong tables; 0: it did not */
	XLogRecPtr	end;
} ReplMlBulk;

/* What became of a parked change that was tried again. */
typedef enum ReplMlParkedState
{
	REPL_ML_PARKED_DONE,		/* applied, or superfluous */
	REPL_ML_PARKED_GONE,		/* it is not there, or another process is at it */
	REPL_ML_PARKED_UNFIT,		/* the table's columns are others now */
	REPL_ML_PARKED_LACKS		/* the table has columns that it lacks */
} ReplMlParkedState;

/* One try of a parked change. */
typedef struct ReplMlParkedTry
{
	int64		id;
	bool		with_defaults;	/* for columns it lacks */
	bool		crashed;		/* it took the server down, long ago */
	bool		whole;			/* all that is put aside of its transaction */
	ReplMlParkedState state;	/* what became of it */
} ReplMlParkedTry;

/* in progress.c */
extern void repl_ml_apply_set_state(ReplMlApply *apply, ReplMlWorkerState state);
extern void repl_ml_apply_retry_soon(void);
extern bool repl_ml_apply_retry_is_wanted(void);
extern void repl_ml_apply_retry_locked(void);
extern bool repl_ml_apply_retry_is_locked(void);
extern bool repl_ml_apply_is_to_pause(const ReplMlApply *apply);
extern bool repl_ml_apply_is_to_compare(ReplMlApply *apply);
extern void repl_ml_apply_tell_parked(ReplMlApply *apply, XLogRecPtr end);
extern void repl_ml_apply_reaches(ReplMlApply *apply, XLogRecPtr lsn);
extern void repl_ml_apply_show_wait(ReplMlApply *apply, const char *message, const char *hint);
extern void repl_ml_apply_show_error(ReplMlApply *apply, const ErrorData *error);
extern void repl_ml_apply_count_sync_error(ReplMlApply *apply);
extern void repl_ml_apply_show_transaction(ReplMlApply *apply);
extern void repl_ml_apply_show_changes(ReplMlApply *apply);
extern void repl_ml_apply_show_locked(ReplMlApply *apply, TimestampTz since);
extern void repl_ml_apply_show_copy(ReplMlApply *apply, Oid relid, int64 rows);

/* in network.c */
extern void repl_ml_network_busy(uint64 time);
extern void repl_ml_network_ping(ReplMlApply *apply, TimestampTz time, uint64 sent);
extern void repl_ml_network_echo(ReplMlApply *apply, TimestampTz time, TimestampTz peer_time);
extern void repl_ml_network_connected(ReplMlApply *apply);
extern void repl_ml_network_ended(ReplMlApply *apply, const char *cause);
extern void repl_ml_network_heartbeat(ReplMlApply *apply, int64 missing);

/* in pieces.c */
extern void repl_ml_pieces_forget(ReplMlApply *apply);
extern bool repl_ml_pieces_receive(ReplMlApply *apply, StringInfo message);
extern void repl_ml_pieces_sort_aborted(TransactionId *aborted, int count);
extern bool repl_ml_pieces_is_kept(const ReplMlPieceHeader *header, const TransactionId *aborted,
								   int count);

/* in bulk.c */
extern void repl_ml_bulk_call(void);
extern bool repl_ml_bulk_runs(void);
extern bool repl_ml_bulk_find(int node, int64 behind, ReplMlBulk *bulk);
extern bool repl_ml_bulk_is_awaited(const ReplMlApply *apply);
extern bool repl_ml_bulk_is_refused(void);
extern void repl_ml_bulk_apply_here(ReplMlApply *apply);
extern bool repl_ml_bulk_apply(ReplMlApply *apply, const ReplMlBulk *bulk);

/* in dispatch.c */
extern void repl_ml_dispatch(ReplMlApply *apply, StringInfo message);
extern void repl_ml_dispatch_begin(ReplMlApply *apply);
extern void repl_ml_dispatch_finish(ReplMlApply *apply, bool durable);
extern bool repl_ml_dispatch_is_permanent(int sqlstate);
extern void repl_ml_dispatch_reset(ReplMlApply *apply);
extern void repl_ml_dispatch_locked(ReplMlApply *apply, XLogRecPtr final_lsn, int sqlstate);
extern bool repl_ml_dispatch_is_impatient(const ReplMlApply *apply);
extern void repl_ml_dispatch_blame(ReplMlApply *apply, XLogRecPtr final_lsn, ErrorData *error);

/* in fence.c */
extern void repl_ml_fence_hear(ReplMlApply *apply, const char *content);
extern void repl_ml_fence_add(ReplMlApply *apply, XLogRecPtr end);
extern void repl_ml_fence_settle(ReplMlApply *apply);
extern bool repl_ml_fence_wait(ReplMlApply *apply, int node, int64 round, XLogRecPtr end);
extern bool repl_ml_fence_is_void(const ReplMlApply *apply, Oid root);

/* in change.c */
extern void repl_ml_change_handle(ReplMlApply *apply, LogicalRepRelId id, char action,
								  LogicalRepTupleData *tuple);
extern void repl_ml_change_join(ReplMlApply *apply, LogicalRepRelId id, char action,
								LogicalRepTupleData *tuple);

/* in replay.c */
extern void repl_ml_replay_dispatch(ReplMlApply *apply, StringInfo message);
extern void repl_ml_replay_finish(ReplMlApply *apply, bool durable);
extern void repl_ml_replay_committed(void);
extern void repl_ml_replay_forget(void);

/* in relation.c */
extern void repl_ml_relation_meet(TupleTableSlot *listed);
extern void repl_ml_relation_forget_all(void);
extern void repl_ml_relation_remember(LogicalRepRelation *remote, List *columns, bool late);
extern char *repl_ml_relation_unfit(LogicalRepRelId id, bool *lacks);
extern ReplMlRemoteTable *repl_ml_relation_get(LogicalRepRelId id);
extern void repl_ml_relation_fill_slot(ReplMlRemoteTable *table, LogicalRepTupleData *tuple,
									   TupleTableSlot *slot);
extern ReplMlRemoteTable *repl_ml_relation_find(LogicalRepRelId id);
extern bool repl_ml_relation_is_of_tombstones(ReplMlRemoteTable *table);
extern char *repl_ml_relation_column(ReplMlRemoteTable *table, LogicalRepTupleData *tuple,
									 int column);
extern char *repl_ml_relation_text(ReplMlRemoteTable *table, LogicalRepTupleData *tuple,
								   const char *column);

/* in locked.c */
extern void repl_ml_locked_settle(void);
extern void repl_ml_locked_watch(bool commits);
extern void repl_ml_locked_ignore(void);
extern void repl_ml_locked_unwatch(void);
extern bool repl_ml_locked_by_commit(int sqlstate);
extern bool repl_ml_locked_for_long(int sqlstate);
extern bool repl_ml_locked_is_race(int sqlstate);
extern void repl_ml_locked_note(TimestampTz waited);
extern Oid	repl_ml_locked_table(const char *schema_name, const char *table_name);
extern bool repl_ml_locked_describe(ErrorData *error);

/* in aside.c */
extern void repl_ml_aside_begin(void);
extern bool repl_ml_aside_is_keeping(void);
extern void repl_ml_aside_put(const ReplMlSource *source, LogicalRepRelId id, char action,
							  LogicalRepTupleData *tuple);
extern void repl_ml_aside_retry(ReplMlApply *apply);

/* in schema_change.c */
extern void repl_ml_schema_change_apply(ReplMlApply *apply, Oid relid, TupleTableSlot *row,
										const ReplMlSource *source);
extern void repl_ml_schema_change_take_in(const char *schema_name, const char *table_name);
extern int64 repl_ml_schema_change_read(const pg_uuid_t *group, const char *message);
extern bool repl_ml_schema_change_is_settled(int64 number);
extern bool repl_ml_schema_change_any_parked(void);
extern bool repl_ml_schema_change_is_in(int64 id);
extern bool repl_ml_schema_change_is_of(const ReplMlRemoteTable *table);

/* in park.c */
extern void repl_ml_park(const ReplMlSource *source, ReplMlRemoteTable *table, char action,
						 LogicalRepTupleData *tuple, ErrorData *error, bool put_aside);
extern void repl_ml_park_forget_copied(int node_id, const char *schema_name,
									   const char *table_name);
extern bool repl_ml_park_has(int node_id, const char *schema_name, const char *table_name);
extern void repl_ml_park_ban(int64 id, const ErrorData *error);
extern void repl_ml_park_note(int64 id, ErrorData *error);

/* in again.c */
extern ErrorData *repl_ml_again_attempt(ReplMlApply *apply, ReplMlParkedTry *try,
										void (*step) (ReplMlApply *apply, ReplMlParkedTry *try),
										int patience);
extern void repl_ml_again_join(ReplMlApply *apply, ReplMlParkedTry *try);
extern void repl_ml_again_join_whole(ReplMlApply *apply, ReplMlParkedTry *try);
extern void repl_ml_again_join_aside(ReplMlApply *apply, ReplMlParkedTry *try);

/* in record.c */
extern bool repl_ml_record_is_wanted(const ReplMlApply *apply, const ReplMlRecord *record);
extern void repl_ml_record_transaction(const ReplMlApply *apply, const ReplMlRecord *record);
extern void repl_ml_record_prepared(const ReplMlApply *apply, const ReplMlRecord *record);
extern void repl_ml_record_copy(const ReplMlApply *apply, WalReceiverConn *conn);

/* in heard.c */
extern void repl_ml_heard_note(ReplMlApply *apply, const char *text);
extern void repl_ml_heard_forget(ReplMlApply *apply, bool incomplete);
extern bool repl_ml_heard_is_incomplete(const ReplMlApply *apply);
extern void repl_ml_heard_complete(ReplMlApply *apply);
extern void repl_ml_heard_refuse(const ReplMlApply *apply, const char *node_name,
								 const char *started_at);
extern void repl_ml_heard_peer_start(const ReplMlApply *apply, Datum *values);
extern void repl_ml_heard_start(const ReplMlApply *apply, TimestampTz server_start,
								int incarnation);

/* in unsent.c */
extern bool repl_ml_unsent_order_copies(ReplMlApply *apply);
extern bool repl_ml_unsent_is_meant(const char *content);
extern void repl_ml_unsent_ask(ReplMlApply *apply, WalReceiverConn *conn);
extern void repl_ml_unsent_note(ReplMlApply *apply, char *content);
extern void repl_ml_unsent_arrived(const ReplMlApply *apply, const char *schema_name,
								   const char *table_name, Datum key, const ReplMlClock *clock);
extern void repl_ml_unsent_row_arrived(const ReplMlApply *apply, ReplMlTable *table,
									   TupleTableSlot *slot);
extern void repl_ml_unsent_copied(const ReplMlApply *apply, const char *schema_name,
								  const char *table_name);

#endif							/* REPL_ML_APPLY_H */
