/*
 * origin.h
 *		What runs in the writing backend and in its walsender.
 */
#ifndef REPL_ML_ORIGIN_H
#define REPL_ML_ORIGIN_H

#include "repl_ml.h"
#include "group/quorum.h"
#include "nodes/parsenodes.h"

/* in guard.c */
extern void repl_ml_guard_init(void);
extern bool repl_ml_guard_is_replicated(Oid relid);

/* in definition.c */
extern void repl_ml_definition_init(void);
extern void repl_ml_definition_note(Oid relid);

/* in level.c */
extern void repl_ml_level_init(void);
extern ReplMlLevel repl_ml_level_wanted(void);
extern void repl_ml_level_forget(void);
extern void repl_ml_level_note(Oid root);
extern ReplMlLevel repl_ml_level_of_tables(List *relids);

/* in commit.c */
extern void repl_ml_commit_init(void);
extern void repl_ml_commit_prepared(const char *gid, bool is_commit, void (*run) (void *argument), void *argument);

/* in read.c */
extern void repl_ml_read_init(void);
extern void repl_ml_read_begin(void);
extern void repl_ml_read_copy(CopyStmt *stmt);

/* in routing.c */
extern void repl_ml_routing_init(void);
extern void repl_ml_routing_show(const VariableShowStmt *stmt, void (*run) (void *argument), void *argument);

/* in reply.c */
extern void repl_ml_reply_watch(void);
extern int	repl_ml_reply_peer(void);
extern void repl_ml_reply_written(Size bytes);

/* in whole_row.c */
extern void repl_ml_whole_row_init(void);

#endif							/* REPL_ML_ORIGIN_H */
