/*
 * policy.h
 *		How a table's conflicts are resolved: the rules of repl_ml.conflict_policy.
 */
#ifndef REPL_ML_POLICY_H
#define REPL_ML_POLICY_H

#include "row/row.h"

/* One rule, in force from an event on, until a later rule for the same column. */
typedef struct ReplMlRule
{
	ReplMlClockEntry since;
	NameData	column;			/* empty: the resolver of whole rows */
	char	   *name;			/* "last_write", "max", ... */
	int			nargs;
	char	  **args;
} ReplMlRule;

/* What is in force at one moment. */
typedef struct ReplMlPolicy
{
	const ReplMlRule *resolver; /* NULL: last_write */
	int			merge_count;	/* columns with a rule of their own */
	const ReplMlRule **merges;
} ReplMlPolicy;

/* in policy.c */
extern const ReplMlPolicy *repl_ml_policy_now(ReplMlTable *table);
extern const ReplMlPolicy *repl_ml_policy_at(ReplMlTable *table, ReplMlClockEntry dot);
extern const ReplMlRule *repl_ml_policy_merge(const ReplMlPolicy *policy, const char *column);

#endif							/* REPL_ML_POLICY_H */
