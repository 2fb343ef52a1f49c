/*
 * algebra.h
 *		The tester of the join without servers; see algebra.c.
 */
#ifndef REPL_ML_ALGEBRA_H
#define REPL_ML_ALGEBRA_H

#include "converge/converge.h"

/* the server's own are not linked */
#undef printf
#undef fprintf
#undef vsnprintf

#define MAX_NODES	3
#define MAX_EVENTS	8
/* a clock of MAX_NODES entries with its length, and some room */
#define CLOCK_ROOM	40

/* What an event that lost nothing, or was evicted, has instead of a winner. */
#define NOT_LOST	(-1)
#define EVICTED		(-2)

/*
 * A write of the row, a deletion or, if "evicts" is not -1, the announcement
 * that that write lost a unique key.
 */
typedef struct Event
{
	uint16		node;
	uint64		counter;
	bool		deleted;
	int			evicts;
	uint32		seen;			/* writes its node had here */
	uint32		known;			/* ... and what their nodes had, and itself */
	int			rank;			/* the value of the column that newest_by looks at */
	ReplMlClock *clock;
	TupleTableSlot *row;		/* NULL for a deletion */
} Event;

/* Announcements come after the writes. */
typedef struct History
{
	int			count;
	int			writes;
	Event		events[MAX_EVENTS];
} History;

/* Bytes of a clock; those it does not need are 0. */
typedef union StoredClock
{
	struct varlena clock;
	uint8		bytes[CLOCK_ROOM];
} StoredClock;

/* All that a node has of the row: equal bytes, equal states. */
typedef struct NodeState
{
	StoredClock row_clock;
	StoredClock dead;			/* of all tombstones */
	int8		row;			/* the event whose values the row has, or -1 */
	bool		has_tombstone;
	int8		stored_count;	/* repl_ml.concurrent_version */
	uint8		stored_deleted;
	int8		stored[MAX_EVENTS];
	uint8		told;			/* tombstones that tell of an eviction */
	int8		lost_to[MAX_EVENTS];	/* repl_ml.conflicts */
} NodeState;

/* in server.c */
extern void *algebra_keep(Size size);
extern void algebra_forget_kept(void);
extern void algebra_free_all(void);
extern TupleTableSlot *algebra_make_slot(bool keep);

/* in node.c */
extern const char *algebra_problem;
extern void algebra_node_setup(const ReplMlPolicy *policy);
extern void algebra_node_start(NodeState *state);
extern void algebra_node_join(NodeState *state, const History *history, int event);
extern TupleTableSlot *algebra_node_row(int event, int rank);

/* in algebra.c */
extern void algebra_give_up(const char *problem);

#endif							/* REPL_ML_ALGEBRA_H */
