/*
 * unacknowledged.h
 *		Transactions that are committed and visible on this node, though their
 *		level has not acknowledged them.
 */
#ifndef REPL_ML_UNACKNOWLEDGED_H
#define REPL_ML_UNACKNOWLEDGED_H

#include "repl_ml.h"
#include "access/transam.h"
#include "group/quorum.h"

/* What is known of a committed transaction. */
typedef enum ReplMlFate
{
	REPL_ML_FATE_ACKNOWLEDGED,
	REPL_ML_FATE_COMMITTED,		/* and not acknowledged, as far as known */
	REPL_ML_FATE_UNKNOWN		/* one of the two */
} ReplMlFate;

/* in unacknowledged.c */
extern Size repl_ml_unacknowledged_shmem_size(void);
extern void repl_ml_unacknowledged_shmem_init(void *space, LWLock *lock);
extern void repl_ml_unacknowledged_forget(int index, Oid database);
extern void repl_ml_unacknowledged_forget_link(int index);
extern void repl_ml_unacknowledged_add(ReplMlLevel level, TransactionId xid, XLogRecPtr commit, XLogRecPtr lsn,
									   const ReplMlPeerSet *lacking);
extern void repl_ml_unacknowledged_mark(XLogRecPtr lsn, int index);
extern int	repl_ml_unacknowledged_lacking(int peer, XLogRecPtr *commits, int room);
extern void repl_ml_unacknowledged_is_whole(int peer, XLogRecPtr commit);
extern int64 repl_ml_unacknowledged_count(ReplMlLevel level);
extern ReplMlFate repl_ml_unacknowledged_find(TransactionId xid, ReplMlLevel *level);
extern bool repl_ml_unacknowledged_is_past(FullTransactionId xid);
extern bool repl_ml_unacknowledged_recall_begin(XLogRecPtr *end);
extern void repl_ml_unacknowledged_recall_end(const bool *lost);
extern void repl_ml_unacknowledged_recall_add(ReplMlLevel level, TransactionId xid, XLogRecPtr lsn);

/* in recall.c */
extern bool repl_ml_recall(void);

/* in lacking.c */
extern void repl_ml_lacking_ask(void);

#endif							/* REPL_ML_UNACKNOWLEDGED_H */
