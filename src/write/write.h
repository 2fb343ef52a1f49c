/*
 * write.h
 *		What happens in the writing backend and in its walsender.
 */
#ifndef REPL_ML_WRITE_H
#define REPL_ML_WRITE_H

#include "repl_ml.h"
#include "nodes/parsenodes.h"

/* in whole_row.c */
extern void repl_ml_whole_row_init(void);

/* in guard.c */
extern void repl_ml_guard_init(void);
extern bool repl_ml_guard_is_replicated(Oid relid);

/* in definition.c */
extern void repl_ml_definition_init(void);
extern void repl_ml_definition_note(Oid relid);

#endif							/* REPL_ML_WRITE_H */
