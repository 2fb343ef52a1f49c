/*
 * verify.h
 *		Whether a table is the same on all members: hashes of rows, one node's part of
 *		a comparison, and the comparison.
 */
#ifndef REPL_ML_VERIFY_H
#define REPL_ML_VERIFY_H

#include "repl_ml.h"
#include "executor/tuptable.h"
#include "lib/stringinfo.h"
#include "nodes/pg_list.h"
#include "row/row.h"
#include "server/server.h"
#include "storage/buf.h"
#include "utils/array.h"
#include "utils/rel.h"
#include "utils/snapshot.h"
#include "wire/wire.h"

/* A hash of 128 bits, or a sum of such hashes: two lanes that are added each for itself. */
typedef struct ReplMlDigest
{
	uint64		lane[2];
} ReplMlDigest;

/* A relation whose rows are hashed; see image.c. */
typedef struct ReplMlImage ReplMlImage;

/* The rows of a chunk on one node. */
typedef struct ReplMlChunk
{
	uint64		rows;
	ReplMlDigest sum;
} ReplMlChunk;

/* How fast a node's part may be; see throttle.c. */
typedef struct ReplMlPace
{
	int			rate;			/* rows a second; 0: no limit, -1: not throttled */
	int			max_lag_ms;		/* it pauses while a member lags more; 0: never */
} ReplMlPace;

/* What one node is asked about a table. */
typedef struct ReplMlInquiry
{
	const char *schema_name;
	const char *table_name;
	const char *signature;		/* of the asker's table; see image.c */
	int			chunks;
	ReplMlPace	pace;			/* of scans */
} ReplMlInquiry;

/* What an answer begins with. */
#define REPL_ML_PART_IS_THERE	'C'
#define REPL_ML_PART_DIFFERS	'S' /* then its signature */
#define REPL_ML_PART_MISSING	'M'
#define REPL_ML_PART_COPIED		'P' /* still being copied */

/* What an answer about changes goes on with. */
#define REPL_ML_CHANGES_ADDED	'+'
#define REPL_ML_CHANGES_UNKNOWN '?' /* nothing is remembered */
#define REPL_ML_CHANGES_MANY	'*' /* too much has changed */

/* What a row's versions are told by, for repairs. */
#define REPL_ML_ITEM_ROW		'V' /* clock, content */
#define REPL_ML_ITEM_DELETION	'D' /* clock, eviction or none */
#define REPL_ML_ITEM_END		'E'

/* a power of two; so the sums of nine members are below 16 MB */
#define REPL_ML_MAX_CHUNKS		65536

/* A member, and whether its table is compared. */
typedef struct ReplMlCompared
{
	int			node_id;
	char	   *name;
	char	   *dsn;			/* NULL: this node */
	bool		joins;			/* it is not a member with all rows yet */
	char	   *problem;		/* why it is not compared; NULL: it is */
	char	   *hint;			/* ... and what to do, or NULL */
	char	   *signature;		/* its table's, if that is another one */
	bool		lags;			/* it has not caught up with others in time */
	int64		rows;
	ReplMlChunk *chunks;
} ReplMlCompared;

/* What else is asked about a key. */
typedef enum ReplMlDetails
{
	REPL_ML_DETAILS_NONE,
	REPL_ML_DETAILS_PARKED,		/* whether a parked change is of it */
	REPL_ML_DETAILS_ALL			/* ... and the row, and its columns' hashes */
} ReplMlDetails;

/* What one member knew of a key at one moment. */
typedef struct ReplMlSight
{
	char		kind;			/* R: a row, T: a tombstone, A: neither; 0: it has
								 * not been asked */
	bool		damaged;		/* the row's clock cannot be read */
	bool		waits;			/* a change of it will be applied when a lock is
								 * gone */
	const ReplMlClock *clock;	/* the row's, or its deletion's; NULL: none */
	ReplMlDigest content;		/* of the row, without its clock */
	int64		parked;			/* a parked change; 0: none, or details were not
								 * asked for */
	uint64	   *columns;		/* hashes of the row's columns, as details */
	char	   *row;			/* JSON, as a detail */
} ReplMlSight;

/* A key whose rows differ, or seem to. */
typedef struct ReplMlSuspect
{
	char	  **key;			/* texts, in the order of the columns' names */
	ReplMlSight *before;		/* one for each member, of the last round */
	ReplMlSight *now;
	const int  *scanned;		/* rows that each member's scan found; NULL: not known */
	bool	   *astray;			/* members whose key's index does not lead to all rows of
								 * it; NULL: none */
	int			failures;		/* rounds in a row that found it to differ */
	bool		on_its_way;		/* no round has been able to tell */
} ReplMlSuspect;

/* One comparison of a table. */
typedef struct ReplMlComparison
{
	Oid			relid;
	ReplMlInquiry inquiry;
	int			key_natts;
	int			count;
	ReplMlCompared *members;	/* this node first */
	int64		patience_ms;	/* for members to catch up */
	TimestampTz deadline;		/* of that; 0: nothing has been looked at so far */
	int			left_chunks;	/* that differ and have not been looked into */
	int			max_rows;		/* so many differences are named */
	char	   *stable;			/* a clock, as text: all members have what is up
								 * to it */
	bool		incremental;	/* only what has changed is to be read */
	char	   *became_full;	/* why all was read all the same, or NULL */
	int64		hashed_rows;	/* of all members, in the first pass */
	List	   *suspects;		/* of ReplMlSuspect: what differs in the end */
	bool		has_more;		/* there were more of them than max_rows */
	int			on_its_way;		/* of these, so many are undecided */
	int64		rechecked;		/* that turned out to be equal */
	MemoryContext context;		/* of all of it */
	MemoryContext batch;		/* of what is looked at now */
} ReplMlComparison;

/* Where a question is in the transactions in which the members answer. */
typedef enum ReplMlTurn
{
	REPL_ML_TURN_ONLY,
	REPL_ML_TURN_FIRST,			/* of two under one snapshot */
	REPL_ML_TURN_LAST
} ReplMlTurn;

/* One question to all members that are compared; see compare.c. */
typedef struct ReplMlPartQuestion
{
	const char *function;		/* "verify_sums" and the like */
	int			nparams;		/* after those that all have */
	const char *params[4];
	ReplMlTurn	turn;
	bool		is_scan;		/* a procedure that is told how fast it may be */
	StringInfo	(*local) (void *argument);	/* does the same here */
	void	   *argument;
	TimestampTz deadline;
	StringInfo *answers;		/* set: one for each member, NULL where there
								 * is none */
} ReplMlPartQuestion;

/* What is kept of the whole of a comparison while it runs, for stat_progress_verify. */
typedef enum ReplMlVerifyPhase
{
	REPL_ML_VERIFY_NONE,
	REPL_ML_VERIFY_HASHING,
	REPL_ML_VERIFY_WAITING,		/* for the other members */
	REPL_ML_VERIFY_NAMING,		/* the rows of chunks that differ */
	REPL_ML_VERIFY_RECHECKING,
	REPL_ML_VERIFY_RESTING,		/* to keep to its rate */
	REPL_ML_VERIFY_PAUSED		/* while a member lags */
} ReplMlVerifyPhase;

/* in image.c */
extern char *repl_ml_image_signature(Relation rel);
extern ReplMlImage *repl_ml_image_open(Relation rel);
extern void repl_ml_image_close(ReplMlImage *image);
extern bool repl_ml_image_shape(ReplMlImage *image, ReplMlDigest *shape);
extern uint64 repl_ml_image_key(ReplMlImage *image, TupleTableSlot *slot);
extern ReplMlDigest repl_ml_image_row(ReplMlImage *image, TupleTableSlot *slot, bool with_clock);
extern char *repl_ml_image_key_text(ReplMlImage *image, TupleTableSlot *slot, int i);
extern bytea *repl_ml_image_clock(ReplMlImage *image, TupleTableSlot *slot);
extern int	repl_ml_image_columns(ReplMlImage *image);
extern const char *repl_ml_image_column_name(ReplMlImage *image, int i);
extern uint64 repl_ml_image_column(ReplMlImage *image, TupleTableSlot *slot, int i);
extern int	repl_ml_image_key_order(ReplMlTable *table, TupleDesc desc, int *order);

/* Sees one row. */
typedef void (*ReplMlRowVisitor) (ReplMlImage *image, TupleTableSlot *slot, void *argument);

/* Reading a relation's rows; see scan.c. */
typedef struct ReplMlScan
{
	Relation	rel;
	Snapshot	snapshot;
	bool		has_pages;		/* it is a heap */
	BlockNumber pages;			/* so many of them */
	BufferAccessStrategy strategy;
	Buffer		map;			/* a page of the visibility map, or none */
	bool		map_is_newer;	/* than repl_ml_scan_changed was to look for */
	bool		settled;		/* the page read last; see repl_ml_scan_page */
	ReplMlImage *image;
	TupleTableSlot *slot;
} ReplMlScan;

/* a page of the visibility map has a whole number of runs */
#define REPL_ML_PAGES_IN_RUN	32

/* in scan.c */
extern List *repl_ml_scan_open_leaves(Relation root);
extern void repl_ml_scan_close_leaves(Relation root, List *leaves, LOCKMODE lockmode);
extern void repl_ml_scan_begin(ReplMlScan *scan, Relation rel, Snapshot snapshot);
extern void repl_ml_scan_end(ReplMlScan *scan);
extern int	repl_ml_scan_page(ReplMlScan *scan, BlockNumber block, ReplMlRowVisitor visitor,
							  void *argument);
extern void repl_ml_scan_whole(ReplMlScan *scan, ReplMlRowVisitor visitor, void *argument,
							   void (*news) (void *argument, int rows), void *listener);
extern uint32 repl_ml_scan_changed(ReplMlScan *scan, BlockNumber first, XLogRecPtr since);

/* What is added up of a page. */
typedef struct ReplMlPageSum
{
	const ReplMlClock *stable;	/* all members have the rows up to it */
	ReplMlChunk rows;
	bool		settled;		/* all of its rows are so */
} ReplMlPageSum;

/* What is remembered of a heap's pages: pages.c's. */
typedef struct ReplMlPages ReplMlPages;

/* in pages.c */
extern uint32 repl_ml_pages_some(BlockNumber pages);
extern void repl_ml_pages_begin_page(ReplMlPageSum *page);
extern bool repl_ml_pages_add_row(ReplMlPageSum *page, ReplMlDigest row, const bytea *clock);
extern ReplMlPages *repl_ml_pages_make(ReplMlScan *scan);
extern void repl_ml_pages_keep(ReplMlPages *pages, List *relations);
extern ReplMlPages *repl_ml_pages_open(ReplMlScan *scan);
extern uint32 repl_ml_pages_changed(ReplMlPages *pages, ReplMlScan *scan, BlockNumber first);
extern void repl_ml_pages_put(ReplMlPages *pages, BlockNumber block, const ReplMlChunk *page,
							  bool settled);
extern ReplMlChunk repl_ml_pages_close(ReplMlPages *pages, ReplMlScan *scan, bool give_up);

/* in places.c */
extern void repl_ml_places_forget(void);
extern void repl_ml_places_begin(Oid root, int chunks);
extern void repl_ml_places_begin_leaf(Relation rel);
extern void repl_ml_places_add_row(uint64 chunk);
extern void repl_ml_places_end_page(void);
extern void repl_ml_places_end(void);
extern bool repl_ml_places_find(Oid root, int chunks, Relation rel);
extern bool repl_ml_places_is_wanted(BlockNumber block, const uint8 *wanted);

/* A table of which one node's part is asked; see part.c. */
typedef struct ReplMlPart
{
	Relation	root;
	ReplMlTable *table;
	List	   *leaves;			/* of Relation: those that have rows */
	int			settings;		/* level of what fixes the form of values */
} ReplMlPart;

/* in part.c */
extern ReplMlInquiry repl_ml_part_inquiry(FunctionCallInfo fcinfo);
extern Datum repl_ml_part_answer(StringInfo answer);
extern bool repl_ml_part_open(const ReplMlInquiry *inquiry, ReplMlPart *part, StringInfo answer);
extern void repl_ml_part_close(ReplMlPart *part);
extern void repl_ml_part_send_bytes(StringInfo answer, const char *data, Size size);
extern void repl_ml_part_send_clock(StringInfo answer, const bytea *clock);
extern void repl_ml_part_send_digest(StringInfo answer, ReplMlDigest digest);
extern StringInfo repl_ml_part_sums(const ReplMlInquiry *inquiry, const ReplMlClock *stable);
extern StringInfo repl_ml_part_rows(const ReplMlInquiry *inquiry, const bytea *wanted);

/* in known.c */
extern bool repl_ml_known_read_key(Relation rel, ReplMlTable *table, const int *order,
								   char **texts, Datum *key);
extern StringInfo repl_ml_known_keys(const ReplMlInquiry *inquiry, ArrayType *keys,
									 const ReplMlClock *wanted, int patience_ms,
									 ReplMlDetails details);
extern StringInfo repl_ml_known_rows(const ReplMlInquiry *inquiry, ArrayType *keys,
									 Snapshot snapshot);
extern StringInfo repl_ml_known_versions(const ReplMlInquiry *inquiry, ArrayType *keys,
										 bool as_they_are);

/* in changes.c */
extern StringInfo repl_ml_changes_sum(const ReplMlInquiry *inquiry, const ReplMlClock *stable,
									  Snapshot snapshot);

/* Who asks, and about which table; see report.c. */
typedef struct ReplMlCaller
{
	Oid			relid;
	bool		may_read;		/* all of the table */
	int			key_order[INDEX_MAX_KEYS];	/* of the key's columns by name: their
											 * places in the index */
	char	  **columns;		/* as they are hashed */
	int			column_count;
} ReplMlCaller;

/* What one node is to do about some rows; see mend.c. */
typedef struct ReplMlOrder
{
	ArrayType  *keys;
	int			source;			/* node whose versions it is to have */
	bool		replace;		/* the row is wrong under its own clock */
	const bytea *seen;			/* then: what it was seen to be, for each key */
	ArrayType  *verdicts;		/* text[], one for each key */
} ReplMlOrder;

/* What came of a comparison that nobody has asked for. */
typedef struct ReplMlVerdict
{
	const char *status;
	int64		differing_rows;
	const char *detail;			/* or NULL */
	bool		full;			/* all rows were read */
} ReplMlVerdict;

/* in report.c */
extern ReplMlVerdict repl_ml_report_verdict(Oid relid, int64 patience_ms, ReplMlPace of_scans,
											bool incremental);
extern ReplMlCaller repl_ml_report_begin(Oid relid, ReplMlComparison *comparison, int max_rows,
										 int64 patience_ms);
extern int64 repl_ml_report_patience(Datum timeout);
extern void repl_ml_report_compare(ReplMlComparison *comparison);
extern void repl_ml_report_details(ReplMlComparison *comparison, List *some);
extern Datum repl_ml_report_key(const ReplMlComparison *comparison, const ReplMlCaller *caller,
								const ReplMlSuspect *suspect);
extern void repl_ml_report_become_extension(ReplMlUser *saved);

/* in compare.c */
extern void repl_ml_compare(ReplMlComparison *comparison);
extern void repl_ml_compare_ask(ReplMlComparison *comparison, ReplMlPartQuestion *question);
extern StringInfo repl_ml_compare_read_hex(const char *text);
extern void repl_ml_compare_read_clock(StringInfo answer, ReplMlSight *sight);
extern ReplMlDigest repl_ml_compare_read_digest(StringInfo answer);
extern char **repl_ml_compare_read_key(int natts, StringInfo answer, ReplMlDigest *digest);
extern bool repl_ml_compare_are_equal(const ReplMlChunk *a, const ReplMlChunk *b);
extern List *repl_ml_compare_distinct(const ReplMlComparison *comparison, List *suspects);
extern bool repl_ml_compare_is_compared(const ReplMlComparison *comparison, int i);

/* in increment.c */
extern bool repl_ml_increment_compare(ReplMlComparison *comparison);

/* in settle.c */
extern ArrayType *repl_ml_settle_key_array(const ReplMlComparison *comparison, List *suspects);
extern void repl_ml_settle(ReplMlComparison *comparison, List *suspects);
extern void repl_ml_settle_astray(ReplMlComparison *comparison, ReplMlSuspect *suspect);
extern void repl_ml_settle_details(ReplMlComparison *comparison, List *suspects);
extern void repl_ml_settle_parked(ReplMlComparison *comparison, List *suspects);
extern bool repl_ml_settle_same_clocks(const ReplMlClock *a, const ReplMlClock *b);
extern bool repl_ml_settle_is_equal(const ReplMlComparison *comparison,
									const ReplMlSight *sights);
extern const char *repl_ml_settle_verdict(const ReplMlComparison *comparison,
										  const ReplMlSuspect *suspect);

/* in throttle.c */
extern void repl_ml_throttle_init(void);
extern int	repl_ml_verify_max_rate;	/* rows a second */
extern int	repl_ml_verify_max_lag; /* ms */
extern void repl_ml_throttle_watch(void (*look) (void));
extern void repl_ml_throttle_look(void);
extern void repl_ml_throttle_begin(ReplMlPace of_scan);
extern bool repl_ml_throttle_count(int64 rows);
extern void repl_ml_throttle_rest(void);
extern bool repl_ml_throttle_release(void);

/* in mend.c */
extern void repl_ml_mend_record(ReplMlTable *table, Datum key, const char *action,
								const char *verdict, int source, const char *before,
								const char *after);
extern StringInfo repl_ml_mend(const ReplMlInquiry *inquiry, const ReplMlOrder *order);

/* in progress.c */
extern Size repl_ml_verify_shmem_size(void);
extern void repl_ml_verify_shmem_init(void *space, LWLock *lock);
extern void repl_ml_verify_begin(Oid relation, int64 chunks);
extern void repl_ml_verify_join(Oid relation, int64 chunks, ReplMlVerifyPhase phase);
extern void repl_ml_verify_phase(ReplMlVerifyPhase phase);
extern ReplMlVerifyPhase repl_ml_verify_phase_now(void);
extern void repl_ml_verify_progress(int64 chunks_done, int64 rows, int64 differences);
extern void repl_ml_verify_end(void);

#endif							/* REPL_ML_VERIFY_H */
