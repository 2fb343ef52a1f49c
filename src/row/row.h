/*
 * row.h
 *		What the writing backend and whoever applies do to a row: know its clock and
 *		key, remember that it was deleted, store a version of it; with whose rights.
 */
#ifndef REPL_ML_ROW_H
#define REPL_ML_ROW_H

#include "repl_ml.h"
#include "access/htup.h"
#include "access/skey.h"
#include "access/tupdesc.h"
#include "executor/tuptable.h"
#include "nodes/execnodes.h"
#include "storage/lockdefs.h"
#include "utils/numeric.h"
#include "utils/rel.h"
#include "utils/snapshot.h"
#include "wire/wire.h"

/* The table of ours that keeps versions beside rows; see version.c. */
#define REPL_ML_VERSION_TABLE	"concurrent_version"

/*
 * An enrolled table (or a partition of one) as its rows need it: where the
 * clock is, what the key is made of, which name the group knows it by.  Lives
 * in a per-process cache until the relation changes.  Of a former key, and of
 * one that a peer has, there is such a struct too (shape.c).
 */
typedef struct ReplMlTable
{
	Oid			relid;			/* hash key */
	bool		valid;
	Oid			root;			/* the enrolled table: relid or its topmost
								 * parent */
	NameData	schema_name;	/* of the root */
	NameData	table_name;
	AttrNumber	clock_attnum;
	bool		clock_is_last;	/* no attribute behind the clock */
	Oid			key_index;
	int			key_natts;
	bool		key_plain;		/* key's text form depends on no setting */
	AttrNumber	key_attnums[INDEX_MAX_KEYS];	/* in index order */
	Oid			key_types[INDEX_MAX_KEYS];
	Oid			key_collations[INDEX_MAX_KEYS];
	int32		key_typmods[INDEX_MAX_KEYS];
	Oid			key_ioparams[INDEX_MAX_KEYS];
	FmgrInfo	key_out[INDEX_MAX_KEYS];
	FmgrInfo	key_in[INDEX_MAX_KEYS];
	FmgrInfo	key_eq[INDEX_MAX_KEYS];
	FmgrInfo	key_hash[INDEX_MAX_KEYS];	/* fn_oid invalid: not hashable */
	Datum		key_columns;	/* text[]: each column's name and type */
	bool		key_listed;		/* in repl_ml.key_shape */
	int			former_count;	/* other keys that tombstones here may have */
	struct ReplMlTable **former;
	MemoryContext functions;	/* what these functions remember */
} ReplMlTable;

/* A table opened for storing versions of rows; see store.c. */
typedef struct ReplMlTarget
{
	Relation	rel;
	ReplMlTable *table;
	EState	   *estate;
	ResultRelInfo *result;
	EPQState	epqstate;
	TupleTableSlot *found;		/* the version in the table, locked */
	TupleTableSlot *incoming;	/* for the caller: a row to store */
	TupleTableSlot *scratch;	/* ... and one to build another from it */
	TupleTableSlot *stored;		/* a row as it is stored; store.c's */
	TupleTableSlot *rival;		/* another row, locked: see
								 * converge/unique.c */
	TupleTableSlot *rival_key;
	MemoryContext context;		/* dies with the target */
} ReplMlTarget;

/* Who we were before we became a table's owner. */
typedef struct ReplMlUser
{
	Oid			user;
	int			context;
	int			guc_level;
} ReplMlUser;

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

/* A row, or its deletion, as one write left it. */
typedef struct ReplMlVersion
{
	const ReplMlClock *clock;	/* as its writer left it, with its marks */
	ReplMlClockEntry dot;		/* the write itself */
	bool		deleted;
	TupleTableSlot *row;		/* NULL for a deletion */
	const char *eviction;		/* JSON, if the deletion is the loss of a unique
								 * key; see converge/unique.c */
} ReplMlVersion;

/* Concurrent versions of one row, sorted by dot. */
typedef struct ReplMlVersions
{
	int			count;
	int			room;
	ReplMlVersion *all;
} ReplMlVersions;

/* in table.c */
extern void repl_ml_table_allow_plain(void);
extern ReplMlTable *repl_ml_table_get(Relation rel);
extern Oid	repl_ml_table_root(Oid relid);
extern AttrNumber repl_ml_table_clock_attnum(Oid relid);
extern ReplMlClock *repl_ml_table_clock(const ReplMlTable *table, Datum value, bool isnull);
extern void repl_ml_table_fill_key_column(ReplMlTable *table, int i, Oid type, int32 typmod);
extern Oid	repl_ml_table_local(const char *schema_name, const char *table_name);
extern bool repl_ml_table_is_to_come(const char *schema_name, Oid relid);

/* in attempt.c */
extern ErrorData *repl_ml_attempt(void (*step) (void *argument), void *argument);

/* in owner.c */
extern void repl_ml_become_owner(Relation rel, ReplMlUser *saved);
extern void repl_ml_become_self(const ReplMlUser *saved);
extern bool repl_ml_has_rows(Oid relid, LOCKMODE lockmode);

/* in key.c */
extern uint64 repl_ml_key_hash(ReplMlTable *table, Datum *key);
extern bool repl_ml_key_equal(ReplMlTable *table, Datum *a, Datum *b);
extern void repl_ml_key_scan(Relation index, int natts, ScanKey keys);
extern Datum repl_ml_key_to_array(ReplMlTable *table, Datum *key);
extern void repl_ml_key_from_array(ReplMlTable *table, Datum array, Datum *key);
extern void repl_ml_key_from_tuple(ReplMlTable *table, HeapTuple tuple, TupleDesc desc, Datum *key);
extern void repl_ml_key_from_slot(ReplMlTable *table, TupleTableSlot *slot, Datum *key);

/* in shape.c */
extern void repl_ml_shape_fill(ReplMlTable *table, Relation rel);
extern ReplMlTable *repl_ml_shape_get(Relation rel, Datum columns);
extern ReplMlTable *repl_ml_shape_make(Relation rel, const AttrNumber *attnums, int count);
extern bool repl_ml_shape_is(const ReplMlTable *table, Datum columns);
extern void repl_ml_shape_list(ReplMlTable *table);
extern bool repl_ml_shape_key(const ReplMlTable *shape, TupleTableSlot *slot, Datum *key);
extern Datum repl_ml_shape_reorder(const ReplMlTable *shape, Datum array, const ReplMlTable *table);
extern const char *repl_ml_shape_missing(const ReplMlTable *shape);
extern bool repl_ml_shape_is_list(Oid relid);

/* What a column is, there or here. */
typedef struct ReplMlColumn
{
	const char *name;
	const char *identity;		/* of the clock column all there have been; empty: none */
	const char *type;			/* a domain's is that below it */
	int32		typmod;
	bool		in_key;			/* of the primary key, as far as is known */
} ReplMlColumn;

/* in column.c */
extern void repl_ml_column_init(void);
extern void repl_ml_column_follow(int64 number);
extern bool repl_ml_column_shares(const char *identities, const char *others);
extern char *repl_ml_column_identity(Oid relid, AttrNumber attnum);
extern ReplMlColumn repl_ml_column_describe(Oid relid, Form_pg_attribute att);
extern bool repl_ml_column_is_same(const char *theirs, const char *seen_there, const char *ours,
								   const char *seen_here);
extern bool repl_ml_column_takes(const ReplMlColumn *theirs, const ReplMlColumn *ours);
extern void repl_ml_column_send(StringInfo message, Relation rel);
extern List *repl_ml_column_receive(StringInfo message);
extern List *repl_ml_column_identify(Oid relid, List *rewritten);

/* in size.c */
extern void repl_ml_size_init(void);
extern bool repl_ml_size_is_doubtful(uint64 bytes);
extern void repl_ml_size_check(Relation rel, const Datum *values, const bool *nulls);

/* in late.c */
extern const ReplMlClock *repl_ml_late_rename(const ReplMlClock *clock, bool *counted);

/* in tombstone.c */
extern ReplMlClock *repl_ml_tombstone_find(ReplMlTable *table, Datum *key, uint16 writer);
extern ReplMlClock *repl_ml_tombstone_seen(ReplMlTable *table, Datum *key, Snapshot snapshot);
extern List *repl_ml_tombstone_newer(ReplMlTable *table, const ReplMlClock *clock,
									 Snapshot snapshot, int most, bool *all);
extern List *repl_ml_tombstone_versions(ReplMlTable *table, Datum *key, Snapshot snapshot);
extern bool repl_ml_tombstone_collected(uint16 node, const ReplMlClock *clock);
extern void repl_ml_tombstone_insert(ReplMlTable *table, Datum *key, const ReplMlClock *clock,
									 const char *eviction);
extern void repl_ml_tombstone_insert_merged(ReplMlTable *table, Datum *key,
											const ReplMlClock *clock);
extern ReplMlClock *repl_ml_tombstone_find_former(ReplMlTable *table, TupleTableSlot *row,
												  uint16 writer);
extern void repl_ml_tombstone_keep(ReplMlTable *table, Datum columns, Datum array,
								   const ReplMlClock *clock, const char *eviction);
extern ReplMlClock *repl_ml_tombstone_find_others(ReplMlTable *table, Datum *key, uint16 writer,
												  const ReplMlClock *except);
extern char *repl_ml_tombstone_eviction(ReplMlTable *table, Datum *key, const ReplMlClock *evicted);

/* in version.c */
extern void repl_ml_version_lock(ReplMlTable *table, Datum *key);
extern bool repl_ml_version_load(ReplMlTable *table, Datum *key, TupleDesc desc,
								 const ReplMlClock *clock, ReplMlVersions *versions);
extern void repl_ml_version_save(ReplMlTable *table, Datum *key, const ReplMlVersions *versions);
extern void repl_ml_version_rekey(ReplMlTable *table, TupleDesc desc);
extern void repl_ml_version_rename(Oid relid, List *forgotten, const char *from, const char *to);
extern void repl_ml_version_forget(Oid relid);
extern Datum repl_ml_version_from_slot(TupleTableSlot *slot, AttrNumber clock_attnum);
extern TupleTableSlot *repl_ml_version_to_slot(Datum content, TupleDesc desc);

/* in policy.c */
extern const ReplMlPolicy *repl_ml_policy_now(ReplMlTable *table);
extern const ReplMlPolicy *repl_ml_policy_at(ReplMlTable *table, ReplMlClockEntry dot);
extern void repl_ml_policy_lock(Oid root);
extern const ReplMlRule *repl_ml_policy_merge(const ReplMlPolicy *policy, const char *column);

/* in share.c */
extern Form_pg_attribute repl_ml_share_attribute(TupleDesc desc, const char *column);
extern ReplMlClockEntry repl_ml_share_dot(const ReplMlMarks *marks, const ReplMlClock *clock,
										  const char *column);
extern ReplMlShares repl_ml_share_counter(const ReplMlMarks *marks, const ReplMlClock *clock,
										  Form_pg_attribute att, Datum value, bool isnull);
extern void repl_ml_share_mark_dot(ReplMlMarks *marks, const ReplMlClock *clock, const char *column,
								   ReplMlClockEntry dot);
extern void repl_ml_share_mark_counter(ReplMlMarks *marks, const ReplMlClock *clock,
									   const char *column,
									   const ReplMlShares *shares, const ReplMlAmount *value);
extern ReplMlClock *repl_ml_share_update(const ReplMlPolicy *policy, TupleDesc desc, HeapTuple old,
										 HeapTuple new,
										 const ReplMlClock *old_clock, const ReplMlClock *clock);

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

/* in store.c */
extern ReplMlTarget *repl_ml_target_open(Relation rel, bool fire_triggers);
extern void repl_ml_target_close(ReplMlTarget *target);
extern bool repl_ml_target_find(ReplMlTarget *target, TupleTableSlot *searched);
extern bool repl_ml_target_has(ReplMlTarget *target, TupleTableSlot *searched,
							   const ReplMlClock *clock);
extern void repl_ml_target_insert(ReplMlTarget *target, TupleTableSlot *slot);
extern void repl_ml_target_update(ReplMlTarget *target, TupleTableSlot *slot);
extern void repl_ml_target_delete(ReplMlTarget *target);

#endif							/* REPL_ML_ROW_H */
