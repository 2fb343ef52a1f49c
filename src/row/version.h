/*
 * version.h
 *		Versions of a row, and sets of them of which none knows another.
 */
#ifndef REPL_ML_VERSION_H
#define REPL_ML_VERSION_H

#include "row/policy.h"
#include "row/row.h"

/* A row, or its deletion, as one write left it. */
typedef struct ReplMlVersion
{
	const ReplMlClock *clock;	/* as its writer left it, with its marks */
	ReplMlClockEntry dot;		/* the write itself */
	bool		deleted;
	TupleTableSlot *row;		/* NULL for a deletion */
	const char *eviction;		/* JSON, if the deletion is the loss of a unique
								 * key; see apply/unique.c */
} ReplMlVersion;

/* Concurrent versions of one row, sorted by dot. */
typedef struct ReplMlVersions
{
	int			count;
	int			room;
	ReplMlVersion *all;
} ReplMlVersions;

/* in version.c */
extern void repl_ml_version_lock(ReplMlTable *table, Datum *key);
extern bool repl_ml_version_load(ReplMlTable *table, Datum *key, TupleDesc desc,
								 const ReplMlClock *clock, ReplMlVersions *versions);
extern void repl_ml_version_save(ReplMlTable *table, Datum *key, const ReplMlVersions *versions);
extern void repl_ml_version_rekey(ReplMlTable *table, TupleDesc desc);
extern Datum repl_ml_version_from_slot(TupleTableSlot *slot, AttrNumber clock_attnum);
extern TupleTableSlot *repl_ml_version_to_slot(Datum content, TupleDesc desc);

#endif							/* REPL_ML_VERSION_H */
