/*
 * share.h
 *		Who has changed which part of a row: columns with the merge rules
 *		"counter" and "independent".
 */
#ifndef REPL_ML_SHARE_H
#define REPL_ML_SHARE_H

#include "access/htup.h"
#include "access/tupdesc.h"
#include "row/policy.h"
#include "utils/numeric.h"
#include "wire/marks.h"

/* What a counter counts: a number, or an array of them. */
typedef struct ReplMlAmount
{
	bool		is_array;
	int			count;			/* 1 for a number */
	Numeric    *elements;
} ReplMlAmount;

/* What one node has added to a counter. */
typedef struct ReplMlShare
{
	ReplMlClockEntry write;		/* the node, and its last write that did */
	ReplMlAmount *amount;
} ReplMlShare;

/* All of a counter's value, sorted by node. */
typedef struct ReplMlShares
{
	int			count;
	ReplMlShare *all;
} ReplMlShares;

/* in amount.c */
extern bool repl_ml_amount_fits(Oid type);
extern ReplMlAmount *repl_ml_amount_from_datum(Oid type, Datum value, bool isnull);
extern Datum repl_ml_amount_to_datum(const ReplMlAmount *amount, Oid type, int32 typmod);
extern ReplMlAmount *repl_ml_amount_from_text(const char *text);
extern char *repl_ml_amount_to_text(const ReplMlAmount *amount);
extern ReplMlAmount *repl_ml_amount_add(const ReplMlAmount *a, const ReplMlAmount *b);
extern ReplMlAmount *repl_ml_amount_subtract(const ReplMlAmount *a, const ReplMlAmount *b);
extern bool repl_ml_amount_is_zero(const ReplMlAmount *amount);
extern bool repl_ml_amount_is_finite(const ReplMlAmount *amount);

/* in share.c */
extern Form_pg_attribute repl_ml_share_attribute(TupleDesc desc, const char *column);
extern ReplMlClockEntry repl_ml_share_dot(const ReplMlMarks *marks, const ReplMlClock *clock, const char *column);
extern ReplMlShares repl_ml_share_counter(const ReplMlMarks *marks, const ReplMlClock *clock,
										  Form_pg_attribute att, Datum value, bool isnull);
extern void repl_ml_share_mark_dot(ReplMlMarks *marks, const ReplMlClock *clock, const char *column,
								   ReplMlClockEntry dot);
extern void repl_ml_share_mark_counter(ReplMlMarks *marks, const ReplMlClock *clock, const char *column,
									   const ReplMlShares *shares, const ReplMlAmount *value);
extern ReplMlClock *repl_ml_share_update(const ReplMlPolicy *policy, TupleDesc desc, HeapTuple old, HeapTuple new,
										 const ReplMlClock *old_clock, const ReplMlClock *clock);

#endif							/* REPL_ML_SHARE_H */
