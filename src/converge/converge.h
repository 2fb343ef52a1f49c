/*
 * converge.h
 *		Versions of a row become one, whoever brings them: the stream, a copy, a
 *		parked change or a person.  Nothing here knows of a stream, and nothing
 *		is in shared memory; what is locked is locked in the tables.
 */
#ifndef REPL_ML_CONVERGE_H
#define REPL_ML_CONVERGE_H

#include "repl_ml.h"
#include "nodes/pg_list.h"
#include "row/row.h"
#include "server/server.h"
#include "wire/wire.h"

/* Where a version came from, for the history. */
typedef struct ReplMlSource
{
	uint16		node;
	TransactionId xid;
	XLogRecPtr	lsn;
	TimestampTz commit_time;	/* 0: not known */
	bool		inserted;		/* the version came as an INSERT */
	bool		late;			/* it was parked: tombstones may have been
								 * removed since */
	bool		copied;			/* most such versions are here already */
	ReplMlCounts *counts;		/* what becomes of the version is counted there; NULL:
								 * nowhere */
} ReplMlSource;

/* What a row becomes of its concurrent versions. */
typedef struct ReplMlResolution
{
	const ReplMlPolicy *policy;
	const ReplMlVersion *winner;
	bool		deleted;
	bool		keeps_both;		/* losers are kept for a person */
	TupleTableSlot *row;		/* NULL if deleted */
	const ReplMlClock *clock;	/* of what remains, with its marks */
} ReplMlResolution;

/* A conflict as the history keeps it: one losing version; rows are NULL for a deletion. */
typedef struct ReplMlConflict
{
	NameData	schema_name;
	NameData	table_name;
	Datum		key;			/* text[] */
	uint64		key_hash;
	bool		arriving_lost;
	const char *type;
	const char *resolution;
	const ReplMlClock *winner_clock;
	const ReplMlClock *loser_clock;
	const ReplMlClock *result_clock;
	char	   *winner_row;		/* JSON; NULL: jsonb cannot hold it */
	char	   *loser_row;
	Datum		winner_content; /* text[] as of version.c; 0 for a deletion */
	Datum		loser_content;
	List	   *lost_columns;	/* of char * */
	const char *parked_as;		/* "evicted", "kept": the loser is parked;
								 * NULL: it is not */
	int			parked_sqlstate;
	const char *parked_because;
} ReplMlConflict;

/*
 * A deletion on its way into the table; with "eviction" just the version with
 * this clock is to go.
 */
typedef struct ReplMlBurial
{
	const ReplMlClock *clock;
	const char *eviction;
	const ReplMlSource *source;
} ReplMlBurial;

/* A version on its way into the table. */
typedef struct ReplMlJoin
{
	ReplMlTarget *target;
	Datum		key[INDEX_MAX_KEYS];
	const ReplMlSource *source;
	TupleTableSlot *searched;	/* has at least the key */
	ReplMlVersion arriving;
	const ReplMlClock *winner_clock;	/* of the version whose row is stored */
	const char *eviction;		/* JSON: what the deletion, or the arriving
								 * row's loss of a unique key, is due to */
	List	   *conflicts;		/* of ReplMlConflict, to be recorded with the
								 * worker's rights */
	List	   *no_losers;		/* of ReplMlVoid: what is to be taken back from
								 * the history */
} ReplMlJoin;

/* A version of a key that is no loser any more, or was overwritten after it had lost. */
typedef struct ReplMlVoid
{
	NameData	schema_name;
	NameData	table_name;
	Datum		key;			/* text[] */
	const ReplMlClock *clock;
} ReplMlVoid;

/* in target.c */
extern ReplMlTarget *repl_ml_targets_get(Oid relid);
extern ReplMlTarget *repl_ml_targets_route(ReplMlTarget *root, TupleTableSlot *slot,
										   TupleTableSlot **leaf_slot);
extern void repl_ml_targets_renew(void);
extern void repl_ml_targets_close(void);
extern void repl_ml_targets_forget(void);
extern ErrorData *repl_ml_targets_try(void (*step) (void *argument), void *argument);
extern void repl_ml_targets_in_session(void (*step) (void *argument), void *argument);

/* in deletion.c */
extern int	repl_ml_deletion_join(Oid relid, Datum columns, Datum key_array,
								  const ReplMlClock *clock, const char *eviction,
								  const ReplMlSource *source);
extern int	repl_ml_deletion_supersede(Oid relid, const AttrNumber *key, int count,
									   TupleTableSlot *row, const ReplMlSource *source);

/* in row.c */
extern int	repl_ml_row_join(Oid relid, TupleTableSlot *incoming, const ReplMlSource *source);
extern int	repl_ml_row_bury(ReplMlTarget *root, Datum key_array, const ReplMlBurial *burial);
extern int	repl_ml_row_bury_found(ReplMlTarget *root, Datum key_array, const ReplMlBurial *burial);
extern bool repl_ml_row_is_older(ReplMlTarget *root, Datum key_array, const ReplMlClock *clock);
extern bool repl_ml_row_is_known(Oid relid, char **key, const ReplMlClock *clock);
extern ReplMlTarget *repl_ml_row_find(ReplMlTarget *root, Datum key_array);
extern void repl_ml_row_resolve_again(Oid relid, Datum columns, Datum key_array,
									  const ReplMlSource *source);

/* in unique.c */
extern bool repl_ml_unique_make_room(ReplMlJoin *join, TupleTableSlot *row,
									 const ReplMlClock *clock, bool replaces_found);
extern void repl_ml_unique_evict(ReplMlTarget *target, Datum *key, const ReplMlClock *clock,
								 const ReplMlVersions *versions, const char *eviction);
extern void repl_ml_unique_announce(void);

/* in conflict.c */
extern ReplMlVersion *repl_ml_conflict_insert(ReplMlVersions *versions, ReplMlClockEntry dot);
extern bool repl_ml_conflict_add(ReplMlVersions *versions, const ReplMlClock *seen,
								 const ReplMlVersion *arriving);

/* in resolve.c */
extern ReplMlResolution *repl_ml_resolve(ReplMlTarget *target, const ReplMlVersions *versions,
										 const ReplMlClock *clock);
extern char *repl_ml_resolve_name(const ReplMlPolicy *policy);
extern bool repl_ml_rows_differ(ReplMlTarget *target, TupleTableSlot *a, TupleTableSlot *b);
extern bool repl_ml_column_differs(ReplMlTarget *target, int i, TupleTableSlot *a,
								   TupleTableSlot *b);

/* in unite.c */
extern Datum repl_ml_unite_sets(Oid type, const Datum *values, const bool *nulls, int number,
								bool *isnull);
extern Datum repl_ml_unite_objects(Oid type, const Datum *values, const bool *nulls, int number,
								   bool *isnull);

/* in merge.c */
extern const ReplMlClock *repl_ml_merge_columns(Relation rel, const ReplMlPolicy *policy,
												const ReplMlVersion *live, int count,
												const ReplMlClock *clock, TupleTableSlot *result);
extern List *repl_ml_merge_lost_columns(Relation rel, const ReplMlPolicy *policy,
										const ReplMlVersion *loser,
										TupleTableSlot *result, const ReplMlClock *result_clock);

/* in history.c */
extern char *repl_ml_history_row_as_json(Relation rel, AttrNumber clock_attnum,
										 TupleTableSlot *slot);
extern ReplMlConflict *repl_ml_history_describe(ReplMlTarget *target, Datum *key,
												const ReplMlResolution *resolution,
												const ReplMlVersion *loser);
extern ReplMlConflict *repl_ml_history_describe_eviction(ReplMlTarget *target, Datum *loser_key,
														 TupleTableSlot *loser,
														 const ReplMlClock *loser_clock,
														 TupleTableSlot *winner,
														 const ReplMlClock *winner_clock,
														 const char *index);
extern ReplMlConflict *repl_ml_history_describe_told_eviction(ReplMlTarget *target, Datum *key,
															  TupleTableSlot *loser,
															  const ReplMlClock *loser_clock,
															  const char *eviction);
extern char *repl_ml_history_eviction_as_json(const ReplMlConflict *conflict, const char *index);
extern ReplMlVoid *repl_ml_history_describe_void(ReplMlTable *table, Datum *key,
												 const ReplMlClock *clock);
extern int	repl_ml_history_record(const ReplMlConflict *conflict, const ReplMlSource *source);
extern bool repl_ml_history_is_equal(ReplMlTarget *target, const ReplMlResolution *resolution,
									 const ReplMlVersion *loser);
extern bool repl_ml_history_is_insert(const ReplMlVersion *winner, const ReplMlVersion *loser);
extern List *repl_ml_history_find_void(ReplMlTable *table, Datum *key, const ReplMlClock *clock,
									   const ReplMlSource *source);
extern bool repl_ml_history_is_reused(ReplMlTable *table, Datum *key, const ReplMlSource *source);
extern int	repl_ml_history_take_back(const ReplMlVoid *version);

#endif							/* REPL_ML_CONVERGE_H */
