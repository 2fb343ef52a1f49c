/*
 * marks.h
 *		What a row's clock keeps for columns with the merge rules "counter" and
 *		"independent".
 */
#ifndef REPL_ML_MARKS_H
#define REPL_ML_MARKS_H

#include "wire/clock.h"

/* a table has no more columns than this */
#define REPL_ML_MAX_MARKS	1600

/* What one node has added to a counter. */
typedef struct ReplMlContribution
{
	ReplMlClockEntry write;		/* the node, and its last write that did */
	char	   *sum;			/* a number, or [number,...]: see marks.c */
} ReplMlContribution;

typedef struct ReplMlMark
{
	uint32		column;			/* see repl_ml_marks_column */
	bool		is_counter;
	ReplMlClockEntry dot;		/* else: the write that last changed the
								 * column */
	int			count;
	ReplMlContribution *contributions;	/* of a counter, sorted by node */
} ReplMlMark;

/* The marks of a clock, sorted by column. */
typedef struct ReplMlMarks
{
	int			count;
	ReplMlMark *all;
} ReplMlMarks;

/* in marks.c */
extern uint32 repl_ml_marks_column(const char *name);
extern bool repl_ml_marks_clock_is_whole(const ReplMlClock *clock);
extern ReplMlMarks repl_ml_marks_read(const ReplMlClock *clock);
extern const ReplMlMark *repl_ml_marks_find(const ReplMlMarks *marks, uint32 column);
extern ReplMlClock *repl_ml_marks_attach(const ReplMlClock *clock, ReplMlMarks *marks);
extern const char *repl_ml_marks_decode(const uint8 *bytes, Size size, const ReplMlClock *clock, ReplMlMarks *marks);
extern const char *repl_ml_marks_problem(const ReplMlMarks *marks, const ReplMlClock *clock);

#endif							/* REPL_ML_MARKS_H */
