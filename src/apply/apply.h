/*
 * apply.h
 *		The apply worker: one process a peer, which joins what the peer wrote
 *		into this database.
 */
#ifndef REPL_ML_APPLY_H
#define REPL_ML_APPLY_H

#include "repl_ml.h"
#include "group/group.h"
#include "replication/logicalproto.h"
#include "replication/origin.h"
#include "replication/walreceiver.h"
#include "row/row.h"
#include "wire/clock.h"

/*
 * How a transaction is applied.  One that failed is tried again carefully,
 * each change in a subtransaction, so that just the failing ones are parked;
 * one that fails even so (at commit, say) is parked as a whole.
 */
typedef enum ReplMlApplyMode
{
	REPL_ML_APPLY_NORMAL,
	REPL_ML_APPLY_CAREFUL,
	REPL_ML_APPLY_PARK
} ReplMlApplyMode;

/* A table as the peer describes it, and what it is here. */
typedef struct ReplMlRemoteTable
{
	LogicalRepRelId remote_id;	/* hash key */
	LogicalRepRelation remote;
	bool		valid;			/* the fields below fit the local catalogs */
	Oid			local;			/* InvalidOid: dropped from the group, ignore */
	int			natts;			/* of the local table */
	int		   *remote_column;	/* local attribute - 1 -> remote column or -1 */
	FmgrInfo   *input;
	Oid		   *input_param;
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
	int64		changes;
	int64		conflicts;
	int64		parked;
} ReplMlTransaction;

/* The process's state. */
typedef struct ReplMlApply
{
	ReplMlWorker *worker;		/* our slot in shared memory */
	ReplMlPeer *peer;
	uint16		self;			/* this node's id */
	Oid			peer_database;	/* the peer's, part of its slots' names */
	WalReceiverConn *conn;		/* the stream's */
	WalReceiverConn *copy_conn; /* of a copy beside it */
	RepOriginId origin;
	MemoryContext message_context;	/* reset after each message */
	ReplMlTransaction transaction;
	const char *doing;			/* for the error context: the message handled */
	const char *table;			/* ... and the table, or NULL */
	bool		late;			/* a parked change is tried again */
	bool		blame_transaction;	/* an error now is the transaction's, not
									 * the stream's */
	int			races;			/* transactions lost to clients in a row */
	bool		progressed;		/* a transaction was applied over this
								 * connection */
	XLogRecPtr	failed_lsn;		/* final LSN of the transaction that failed
								 * last */
	int			failures;		/* how often in a row */
	ErrorData  *failure;		/* the error it failed with */
	bool		tables_pending; /* some table could not be created or enrolled */
	XLogRecPtr	message_lsn;	/* in front of the message handled; of a
								 * COMMIT its end */
	XLogRecPtr	received;
	XLogRecPtr	applied;
	XLogRecPtr	durable;
} ReplMlApply;

/* Where a version came from, for the history. */
typedef struct ReplMlSource
{
	uint16		node;
	TransactionId xid;
	XLogRecPtr	lsn;
	bool		late;			/* it was parked: tombstones may have been
								 * removed since */
} ReplMlSource;

/* What a version that arrives does to the version that is here. */
typedef enum ReplMlVerdictAction
{
	REPL_ML_KEEP,				/* what is here is as new or newer */
	REPL_ML_TAKE,				/* what arrives replaces it */
	REPL_ML_KEEP_RECLOCK		/* what is here stays, under the joined clock */
} ReplMlVerdictAction;

typedef struct ReplMlVerdict
{
	ReplMlVerdictAction action;
	bool		conflict;		/* neither version knew the other's write */
	const ReplMlClock *clock;	/* of what remains */
} ReplMlVerdict;

/* A conflict as the history keeps it; rows are JSON, NULL for a deletion. */
typedef struct ReplMlConflict
{
	NameData	schema_name;
	NameData	table_name;
	Datum		key;			/* text[] */
	uint64		key_hash;
	bool		arriving_lost;
	const char *type;
	const ReplMlClock *winner_clock;
	const ReplMlClock *loser_clock;
	char	   *winner_row;
	char	   *loser_row;
	List	   *lost_columns;	/* of char * */
} ReplMlConflict;

/* A conflict as history.c remembers it until the transaction ends. */
typedef struct ReplMlRecordedConflict ReplMlRecordedConflict;

/* in worker.c */
extern PGDLLEXPORT void repl_ml_apply_main(Datum arg);
extern void repl_ml_apply_set_state(ReplMlApply *apply, ReplMlWorkerState state);
extern void repl_ml_apply_show_error(ReplMlApply *apply, const ErrorData *error);

/* in dispatch.c */
extern void repl_ml_dispatch(ReplMlApply *apply, StringInfo message);
extern void repl_ml_dispatch_change(ReplMlApply *apply, LogicalRepRelId id, char action, LogicalRepTupleData *tuple);
extern bool repl_ml_dispatch_is_permanent(int sqlstate);
extern void repl_ml_dispatch_reset(ReplMlApply *apply);

/* in relation.c */
extern void repl_ml_relation_forget_all(void);
extern void repl_ml_relation_remember(LogicalRepRelation *remote);
extern ReplMlRemoteTable *repl_ml_relation_get(LogicalRepRelId id);
extern void repl_ml_relation_fill_slot(ReplMlRemoteTable *table, LogicalRepTupleData *tuple, TupleTableSlot *slot);
extern ReplMlRemoteTable *repl_ml_relation_find(LogicalRepRelId id);
extern Oid	repl_ml_relation_local(const char *schema_name, const char *table_name);
extern char *repl_ml_relation_text(ReplMlRemoteTable *table, LogicalRepTupleData *tuple, const char *column);

/* in target.c */
typedef struct ReplMlUser
{
	Oid			user;
	int			context;
	int			guc_level;
} ReplMlUser;

extern ReplMlTarget *repl_ml_targets_get(Oid relid);
extern ReplMlTarget *repl_ml_targets_route(ReplMlTarget *root, TupleTableSlot *slot, TupleTableSlot **leaf_slot);
extern void repl_ml_targets_close(void);
extern void repl_ml_targets_forget(void);
extern void repl_ml_become_owner(Relation rel, ReplMlUser *saved);
extern void repl_ml_become_self(ReplMlUser *saved);

/* in row.c */
extern int	repl_ml_row_join(Oid relid, TupleTableSlot *incoming, const ReplMlSource *source);
extern int	repl_ml_row_bury(Oid relid, Datum key_array, const ReplMlClock *clock, const ReplMlSource *source);

/* in conflict.c */
extern ReplMlVerdict repl_ml_conflict_decide(const ReplMlClock *here, const ReplMlClock *arriving, bool same_content);

/* in resolve.c */
extern bool repl_ml_resolve_arriving_wins(const char *resolver, const ReplMlClock *here, const ReplMlClock *arriving);

/* in history.c */
extern ReplMlConflict *repl_ml_history_describe(ReplMlTarget *target, Datum *key,
												TupleTableSlot *here, const ReplMlClock *here_clock,
												TupleTableSlot *arriving, const ReplMlClock *arriving_clock,
												bool arriving_wins);
extern void repl_ml_history_record(const ReplMlConflict *conflict, const ReplMlSource *source);
extern ReplMlRecordedConflict *repl_ml_history_find_void(ReplMlTable *table, Datum *key, const ReplMlClock *clock,
														 const ReplMlSource *source);
extern void repl_ml_history_take_back(ReplMlTable *table, ReplMlRecordedConflict *conflict);

/* in park.c */
extern void repl_ml_park(const ReplMlSource *source, ReplMlRemoteTable *table, char action,
						 LogicalRepTupleData *tuple, ErrorData *error);

/* in enrol.c */
extern void repl_ml_enrol_pending(ReplMlApply *apply);
extern void repl_ml_enrol_unlock(void);

/* in sync.c */
extern void repl_ml_sync_catalogs(ReplMlApply *apply);
extern void repl_ml_sync_await_donor(ReplMlApply *apply);
extern void repl_ml_sync_dropped(ReplMlApply *apply);
extern void repl_ml_sync_tables(ReplMlApply *apply);

/* in link.c */
extern XLogRecPtr repl_ml_link_prepare(ReplMlApply *apply);

#endif							/* REPL_ML_APPLY_H */
