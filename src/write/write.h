/*
 * write.h
 *		What happens in the writing backend and in its walsender.
 */
#ifndef REPL_ML_WRITE_H
#define REPL_ML_WRITE_H

#include "repl_ml.h"
#include "access/htup.h"
#include "nodes/parsenodes.h"
#include "utils/relcache.h"

/* How a row is called that a peer does not get, and why. */
typedef struct ReplMlRowName
{
	const char *schema_name;
	const char *table_name;
	const char *key;			/* as the text of an array; {}: not known */
	const char *clock;			/* NULL: not known */
	const char *error;
} ReplMlRowName;

/* in whole_row.c */
extern void repl_ml_whole_row_init(void);

/* in guard.c */
extern void repl_ml_guard_init(void);
extern bool repl_ml_guard_is_replicated(Oid relid);

/* in definition.c */
extern void repl_ml_definition_init(void);
extern void repl_ml_definition_note(Oid relid);

/* in output.c */
extern bool repl_ml_output_is_of_the_row(int sqlstate);
extern ReplMlRowName *repl_ml_output_name(Relation relation, HeapTuple tuple);
extern char *repl_ml_output_legible(const char *line);

#endif							/* REPL_ML_WRITE_H */
