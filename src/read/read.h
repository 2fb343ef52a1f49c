/*
 * read.h
 *		Read consistency: up to where this node has every node's WAL, and waiting for
 *		more of it.
 *
 * A vector of positions is kept in a ReplMlClock: {node:position,...}.
 */
#ifndef REPL_ML_READ_H
#define REPL_ML_READ_H

#include "repl_ml.h"
#include "executor/execdesc.h"
#include "nodes/parsenodes.h"
#include "utils/uuid.h"
#include "wire/wire.h"

/* in read.c */
extern void repl_ml_read_init(void);
extern void repl_ml_read_begin(void);
extern void repl_ml_read_copy(CopyStmt *stmt);
extern int	repl_ml_read_timeout(void);
extern void repl_ml_read_renew(QueryDesc *query);

/* in position.c */
extern ReplMlClock *repl_ml_positions_received(uint16 self, bool *complete);
extern ReplMlClock *repl_ml_positions(void);
extern ReplMlClock *repl_ml_positions_to_share(bool at_once);
extern bool repl_ml_position_is_awaited(void);
extern TimestampTz repl_ml_deadline(Datum timeout);
extern bool repl_ml_position_wait(TimestampTz deadline, const char *wait_event);
extern char *repl_ml_positions_lacking(const ReplMlClock *wanted, const ReplMlClock *have);

/* in barrier.c */
extern bool repl_ml_barrier_read(const pg_uuid_t *group, int peer, const char *message);
extern void repl_ml_barrier_answer(const pg_uuid_t *group, uint16 self);
extern void repl_ml_barrier_run(TimestampTz deadline);
extern bool repl_ml_barrier_covers(const ReplMlClock *wanted, char **lacking);

/* in routing.c */
extern void repl_ml_routing_init(void);
extern void repl_ml_routing_show(const VariableShowStmt *stmt, void (*run) (void *argument),
								 void *argument);

#endif							/* REPL_ML_READ_H */
