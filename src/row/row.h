/*
 * row.h
 *		What the writing backend and the apply worker both do to a row: know its
 *		clock and key, remember that it was deleted, store a version of it.
 */
#ifndef REPL_ML_ROW_H
#define REPL_ML_ROW_H

#include "repl_ml.h"
#include "access/htup.h"
#include "executor/tuptable.h"
#include "nodes/execnodes.h"
#include "utils/rel.h"
#include "wire/clock.h"

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
	TupleTableSlot *rival;		/* another row, locked: see apply/unique.c */
	TupleTableSlot *rival_key;
	MemoryContext context;		/* dies with the target */
} ReplMlTarget;

/* true while this process applies what came from elsewhere: no stamping */
extern bool repl_ml_applying;
extern int	repl_ml_applying_depth;

/* true in our own workers: they write before the node is ready for users */
extern bool repl_ml_internal_write;

/* in table.c */
extern ReplMlTable *repl_ml_table_get(Relation rel);
extern Oid	repl_ml_table_root(Oid relid);
extern AttrNumber repl_ml_table_clock_attnum(Oid relid);
extern ReplMlClock *repl_ml_table_clock(const ReplMlTable *table, Datum value, bool isnull);
extern void repl_ml_table_fill_key_column(ReplMlTable *table, int i, Oid type, int32 typmod);
extern Oid	repl_ml_schema_oid(void);
extern Oid	repl_ml_catalog_oid(const char *name);

/* in key.c */
extern uint64 repl_ml_key_hash(ReplMlTable *table, Datum *key);
extern bool repl_ml_key_equal(ReplMlTable *table, Datum *a, Datum *b);
extern Datum repl_ml_key_to_array(ReplMlTable *table, Datum *key);
extern void repl_ml_key_from_array(ReplMlTable *table, Datum array, Datum *key);
extern void repl_ml_key_from_tuple(ReplMlTable *table, HeapTuple tuple, TupleDesc desc, Datum *key);
extern void repl_ml_key_from_slot(ReplMlTable *table, TupleTableSlot *slot, Datum *key);

/* in shape.c */
extern void repl_ml_shape_fill(ReplMlTable *table, Relation rel);
extern ReplMlTable *repl_ml_shape_get(Relation rel, Datum columns);
extern bool repl_ml_shape_is(const ReplMlTable *table, Datum columns);
extern void repl_ml_shape_list(ReplMlTable *table);
extern bool repl_ml_shape_key(const ReplMlTable *shape, TupleTableSlot *slot, Datum *key);
extern Datum repl_ml_shape_reorder(const ReplMlTable *shape, Datum array, const ReplMlTable *table);
extern const char *repl_ml_shape_missing(const ReplMlTable *shape);
extern bool repl_ml_shape_is_list(Oid relid);

/* in tombstone.c */
extern ReplMlClock *repl_ml_tombstone_find(ReplMlTable *table, Datum *key, uint16 writer);
extern bool repl_ml_tombstone_collected(uint16 node, const ReplMlClock *clock);
extern void repl_ml_tombstone_insert(ReplMlTable *table, Datum *key, const ReplMlClock *clock, const char *eviction);
extern void repl_ml_tombstone_insert_merged(ReplMlTable *table, Datum *key, const ReplMlClock *clock);
extern ReplMlClock *repl_ml_tombstone_find_former(ReplMlTable *table, TupleTableSlot *row, uint16 writer);
extern void repl_ml_tombstone_keep(ReplMlTable *table, Datum columns, Datum array, const ReplMlClock *clock, const char *eviction);
extern ReplMlClock *repl_ml_tombstone_find_others(ReplMlTable *table, Datum *key, uint16 writer, const ReplMlClock *except);
extern char *repl_ml_tombstone_eviction(ReplMlTable *table, Datum *key, const ReplMlClock *evicted);

/* in store.c */
extern ReplMlTarget *repl_ml_target_open(Relation rel, bool fire_triggers);
extern void repl_ml_target_close(ReplMlTarget *target);
extern bool repl_ml_target_find(ReplMlTarget *target, TupleTableSlot *searched);
extern void repl_ml_target_insert(ReplMlTarget *target, TupleTableSlot *slot);
extern void repl_ml_target_update(ReplMlTarget *target, TupleTableSlot *slot);
extern void repl_ml_target_delete(ReplMlTarget *target);

/* in size.c */
extern void repl_ml_size_init(void);
extern bool repl_ml_size_is_doubtful(uint64 bytes);
extern void repl_ml_size_check(Relation rel, const Datum *values, const bool *nulls);

#endif							/* REPL_ML_ROW_H */
