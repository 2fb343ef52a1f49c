/*
 * tenure_private.h
 *		What the files of the lease's process share: tenure.c, holding.c, election.c.
 */
#ifndef REPL_ML_TENURE_PRIVATE_H
#define REPL_ML_TENURE_PRIVATE_H

#include "commit/commit.h"
#include "group/group.h"
#include "wire/wire.h"

/* Which tenure: of a round, which the members vote for, the so many-th; each giving is one more. */
typedef struct Epoch
{
	int64		round;
	int64		turn;
} Epoch;

/* What this node knows durably: its row of repl_ml.lease_state. */
typedef struct State
{
	int64		promised;		/* the last round it has voted for */
	int64		accepted;		/* the last one whose base it knows */
	int64		opened;			/* ... that a majority has accepted, as it knows */
	bool		unclean;		/* its strong tables are to be made as they are elsewhere */
	Epoch		epoch;			/* the last tenure that it had, gave to somebody or accepted */
	int			holder;			/* whose that is; 0: it knows of none */
	int64		timeline;		/* on which that was written */
	ReplMlClock *base;			/* what has to be here before it may be used */
} State;

/* The process's state.  Written by tenure.c only, but for "confirmed". */
typedef struct ReplMlTenure
{
	ReplMlLease *lease;			/* of its database; set once */
	State		state;			/* as it is in the catalog */
	MemoryContext context;		/* reset in each round of work */
	int			self;			/* this node's id */
	bool		has_lock;		/* that of the lease, exclusively: no client may write */
	bool		confirmed;		/* since the process has the tenure a majority has said that
								 * it knows of no later round */
} ReplMlTenure;

/* in tenure.c */
extern ReplMlTenure repl_ml_tenure;
extern bool repl_ml_tenure_take_lock(bool now);
extern void repl_ml_tenure_let_go(void);
extern void repl_ml_tenure_let_all_look(void);
extern bool repl_ml_tenure_is_asked(void);
extern bool repl_ml_tenure_has_forgotten(void);
extern void repl_ml_tenure_load(void);
extern bool repl_ml_tenure_write(Epoch epoch, int holder, const ReplMlClock *base);
extern void repl_ml_tenure_refuse(const char *reason);

/* in holding.c */
extern int	repl_ml_holding_open(bool is_needed);
extern bool repl_ml_holding_is_opening(void);
extern void repl_ml_holding_stop(void);
extern void repl_ml_holding_give(void);
extern XLogRecPtr repl_ml_holding_find_end(void);
extern void repl_ml_holding_close(void);
extern bool repl_ml_holding_is_closing(void);
extern void repl_ml_holding_end_deadlock(void);

/* in election.c */
extern void repl_ml_election_note(Epoch epoch, int holder);
extern void repl_ml_election_obtain(void);
extern bool repl_ml_election_confirm(void);
extern void repl_ml_election_find_gift(void);
extern bool repl_ml_election_counts(void);
extern void repl_ml_election_tell(void);
extern void repl_ml_election_offer(void);

/* Says whether a tenure comes after another. */
static inline bool
is_after(Epoch a, Epoch b)
{
	return a.round > b.round || (a.round == b.round && a.turn > b.turn);
}

#endif							/* REPL_ML_TENURE_PRIVATE_H */
