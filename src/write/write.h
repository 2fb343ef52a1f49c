/*
 * write.h
 *		What happens in the writing backend and in its walsender.
 */
#ifndef REPL_ML_WRITE_H
#define REPL_ML_WRITE_H

#include "repl_ml.h"
#include "access/htup.h"
#include "nodes/parsenodes.h"
#include "nodes/plannodes.h"
#include "storage/lock.h"
#include "tcop/utility.h"
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

/* What a process knows of a sequence; places are as in repl_ml.sequence_facts(). */
typedef struct ReplMlNumbers
{
	Oid			sequence;		/* hash key */
	bool		valid;
	bool		shared;			/* one of the group; else nothing below is of use */
	bool		listed;			/* ... as the list says, to this transaction */
	NameData	schema_name;	/* what the list calls it */
	NameData	sequence_name;
	bool		descending;
	int64		increment;
	int64		step;			/* the increment, without its sign */
	int64		least;			/* places that it may have */
	int64		greatest;
	int64		floor;			/* the last place that was used before it was the group's */
	bool		in_hand;		/* first to last are this node's */
	bool		has_next;		/* there is one more range */
	int64		first;
	int64		last;
	int64		half;			/* beyond it more is to be got */
	int64		size;			/* of what was got last */
} ReplMlNumbers;

/* in whole_row.c */
extern void repl_ml_whole_row_init(void);

/* in statement.c */
extern void repl_ml_statement_init(void);

/* in guard.c */
extern bool repl_ml_guard_off;
extern void repl_ml_guard_init(void);
extern void repl_ml_guard_check(Node *stmt);
extern bool repl_ml_guard_is_enrolled(RangeVar *range, Oid *relid);
extern bool repl_ml_guard_names_replicated(RangeVar *range, Oid *relid);
extern bool repl_ml_guard_is_replicated(Oid relid);
extern char *repl_ml_guard_table_name(Oid relid);

/* in own.c */
extern void repl_ml_own_init(void);
extern Oid	repl_ml_own_publication(void);
extern void repl_ml_own_check_publication(AlterPublicationStmt *stmt);
extern void repl_ml_own_check_drop(DropStmt *stmt);
extern void repl_ml_own_check_table(RangeVar *range);
extern void repl_ml_own_check_alter(AlterTableStmt *stmt);
extern void repl_ml_own_check_extension(AlterExtensionContentsStmt *stmt);
extern void repl_ml_own_check_database(DropdbStmt *stmt);

/* in strong.c */
extern bool repl_ml_class_await(const PlannedStmt *plan);
extern bool repl_ml_class_await_range(const RangeVar *range);
extern void repl_ml_strong_init(void);
extern void repl_ml_strong_utility(Node *stmt);

/* in reach.c */
extern bool repl_ml_reach_decide(Node *stmt);
extern bool repl_ml_reach_is_everywhere(Node *stmt);
extern bool repl_ml_reach_has_transactions(Node *stmt);
extern void repl_ml_reach_make_plain(Node *stmt);

/* in outcome.c */
extern void repl_ml_outcome_begin(Node *stmt);
extern void repl_ml_outcome_note_drop(Oid relid);
extern void repl_ml_outcome_note_rename(Oid relid);
extern void repl_ml_outcome_note_partition(Oid relid, Oid root);
extern void repl_ml_outcome_note_detach(Oid relid, Oid root);
extern void repl_ml_outcome_note_column(Oid relid, AttrNumber attnum);
extern List *repl_ml_outcome_columns(void);
extern void repl_ml_outcome_follow(int64 number);
extern char *repl_ml_outcome_describe(CreateTableAsStmt *stmt);
extern void repl_ml_outcome_take_in(Node *stmt, int64 number, bool strong);

/* in named_role.c */
extern void repl_ml_named_role_require(Node *stmt);

/* in filled.c */
extern char *repl_ml_filled_describe(Node *stmt);
extern void repl_ml_filled_refuse(Node *stmt);

/* in schema_change.c */
extern bool repl_ml_replicate_ddl;
extern bool repl_ml_run_superusers_ddl;
extern void repl_ml_schema_change_init(void);
extern bool repl_ml_schema_change_is_one(const PlannedStmt *pstmt, ProcessUtilityContext context);
extern bool repl_ml_schema_change_takes_along(const char *setting);
extern int64 repl_ml_schema_change_begin(const PlannedStmt *pstmt);
extern void repl_ml_schema_change_end(int64 number, const PlannedStmt *pstmt,
									  const char *query_string);
extern void repl_ml_schema_change_enter(int64 number);
extern void repl_ml_schema_change_leave(void);
extern void repl_ml_schema_change_explain(const PlannedStmt *pstmt);
extern bool repl_ml_schema_change_runs(void);
extern void repl_ml_schema_change_tag(LOCKTAG *tag);

/* in definition.c */
extern void repl_ml_definition_init(void);
extern void repl_ml_definition_note(Oid relid);
extern void repl_ml_definition_note_sequence(Oid sequence);

/* in nextval.c */
extern void repl_ml_nextval_init(void);
extern void repl_ml_nextval_arguments(Node *stmt);

/* in range.c */
extern ReplMlNumbers *repl_ml_range_known(Oid sequence);
extern char *repl_ml_range_get(Oid sequence, const int64 *beyond, int least_size, bool *again);
extern void repl_ml_range_require(Oid sequence, const int64 *beyond, int least_size);

/* in number.c */
extern void repl_ml_number_copy_begin(CopyStmt *stmt);
extern void repl_ml_number_tick(void);
extern void repl_ml_number_copy_end(bool done);

/* in output.c */
extern bool repl_ml_output_is_of_the_row(int sqlstate);
extern ReplMlRowName *repl_ml_output_name(Relation relation, HeapTuple tuple);
extern char *repl_ml_output_legible(const char *line);

#endif							/* REPL_ML_WRITE_H */
