/*
 * copy.h
 *		What the stream does not bring: the link, definitions and rows of tables, and
 *		parked changes that are tried again.
 */
#ifndef REPL_ML_COPY_H
#define REPL_ML_COPY_H

#include "repl_ml.h"
#include "apply/apply.h"
#include "catalog/pg_attribute.h"
#include "converge/converge.h"
#include "commands/copy.h"
#include "nodes/pg_list.h"
#include "replication/walreceiver.h"
#include "verify/verify.h"

#define REPL_ML_COPIED_TABLE_ID	2	/* as which relation.c knows a table that is
									 * copied, for a moment */

/* Says whether the column has values that are stored, and so are copied. */
static inline bool
repl_ml_copy_is_stored(Form_pg_attribute att)
{
	return !att->attisdropped && att->attgenerated == '\0';
}

/* The digest of a row, and which chunk it is in; see digests.c. */
typedef struct ReplMlRowDigest
{
	uint32		chunk;
	uint64		digest;
} ReplMlRowDigest;

/* What digests are told of. */
typedef enum ReplMlDigestOf
{
	REPL_ML_OF_ROW,				/* all of it, with its clock */
	REPL_ML_OF_UNSTAMPED_ROW,	/* of rows that have no clock */
	REPL_ML_OF_KEY
} ReplMlDigestOf;

typedef void (*ReplMlDigestVisitor) (Relation rel, ReplMlImage *image, TupleTableSlot *slot,
								  void *argument);

/* A table whose rows are joined in pieces; see piece.c. */
typedef struct ReplMlCopied
{
	Relation	rel;			/* open in the present piece */
	bool		in_pieces;		/* else all is one */
	bool		has_turn;		/* no other worker joins rows of it */
	TupleDesc	desc;			/* as the copy has begun with */
} ReplMlCopied;

/* A comparison of a table with the peer's before it is copied; see differing.c. */
typedef struct ReplMlDiffering ReplMlDiffering;

/* in link.c */
extern XLogRecPtr repl_ml_link_prepare(ReplMlApply *apply);

/* in sync.c */
extern void repl_ml_sync_catalogs(ReplMlApply *apply, WalReceiverConn *conn);
extern void repl_ml_sync_tables(ReplMlApply *apply);

/* in replace.c */
extern void repl_ml_replace_begin(ReplMlApply *apply, WalReceiverConn *conn);
extern void repl_ml_replace_empty(Oid relid, const char *schema_name, const char *table_name);
extern void repl_ml_replace_finish(ReplMlApply *apply, WalReceiverConn *conn);

/* in fetch.c */
extern void repl_ml_fetch_instead(ReplMlApply *apply, WalReceiverConn *conn,
								  const char *schema_name, const char *table_name);
extern void repl_ml_fetch_table(ReplMlApply *apply, WalReceiverConn *conn,
								const char *schema_name, const char *table_name);

extern char *repl_ml_fetch_name(Relation rel);

/* in digests.c */
extern double repl_ml_digests_rows(Relation root);
extern int	repl_ml_digests_order(const void *a, const void *b);
extern bool repl_ml_digests_sum(Relation root, int chunks, ReplMlDigest *sums, int64 *rows);
extern bool repl_ml_digests_collect(Relation root, int chunks, const bool *wanted,
									ReplMlDigestOf of, ReplMlRowDigest **have, int64 *count);
extern void repl_ml_digests_visit(Relation root, Snapshot snapshot, ReplMlDigestVisitor visitor,
								  void *argument);
extern bool repl_ml_digests_is_unstamped(Relation rel, TupleTableSlot *slot);
extern bytea *repl_ml_digests_pack(const bool *wanted, int chunks, int *from,
								   const ReplMlRowDigest **next, const ReplMlRowDigest *end,
								   Size size);
extern void repl_ml_digests_require_chunks(int chunks);
extern bool repl_ml_digests_are_wanted(ReplMlImage *image, TupleTableSlot *slot);

/* in differing.c */
extern ReplMlDiffering *repl_ml_differing_begin(WalReceiverConn *conn, Relation rel);
extern bool repl_ml_differing_next(ReplMlDiffering *differing, Relation rel);
extern int64 repl_ml_differing_bytes(const ReplMlDiffering *differing);
extern int	repl_ml_differing_chunks(double rows);
extern ReplMlDigest *repl_ml_differing_ask(WalReceiverConn *conn, Relation rel, int chunks,
										   int64 *bytes);
extern void repl_ml_differing_tell(WalReceiverConn *conn, int chunks, const bool *wanted,
								   const ReplMlRowDigest *have, int64 count, int64 *bytes);

/* in former.c */
extern void repl_ml_former_rename(Relation rel);
extern void repl_ml_former_rename_catalogs(void);

/* in missed.c */
extern bool repl_ml_missed_is_due(ReplMlApply *apply);
extern void repl_ml_missed_fetch(ReplMlApply *apply, WalReceiverConn *conn, int64 upto, bool all);

/* in meet.c */
extern TupleTableSlot *repl_ml_meet_make(ReplMlTarget *target, Datum content,
										 const ReplMlClock *clock);
extern int64 repl_ml_meet_count(WalReceiverConn *conn, const char *schema_name,
								const char *table_name);
extern bool repl_ml_meet_is_due(void);
extern void repl_ml_meet_prepare(WalReceiverConn *conn, int donor);
extern void repl_ml_meet_row(Oid relid, TupleTableSlot *incoming, const ReplMlSource *source);
extern void repl_ml_meet_rest(WalReceiverConn *conn, Relation rel, int donor);

/* in donor.c */
extern void repl_ml_donor_require_right(Relation rel);

/* in piece.c */
extern void repl_ml_piece_begin(void);
extern void repl_ml_piece_end(void);
extern void repl_ml_piece_open(ReplMlCopied *copied, Oid relid, bool in_pieces);
extern void repl_ml_piece_turn(ReplMlCopied *copied);
extern void repl_ml_piece_next(ReplMlCopied *copied);
extern void repl_ml_piece_close(ReplMlCopied *copied);

/* in rows.c */
extern int64 repl_ml_rows_join(ReplMlApply *apply, ReplMlCopied *copied, CopyFromState copy,
							   bool careful);

/* in dropped.c */
extern void repl_ml_dropped_compare(ReplMlApply *apply, WalReceiverConn *conn);

/* in starts.c */
extern void repl_ml_starts_note(ReplMlApply *apply);
extern void repl_ml_starts_await(ReplMlApply *apply);

/* in await.c */
extern void repl_ml_await_donor(ReplMlApply *apply);

/* in enrol.c */
extern void repl_ml_enrol_pending(ReplMlApply *apply);
extern void repl_ml_enrol_unlock(void);
extern void repl_ml_table_failed(ReplMlApply *apply, const char *schema_name,
								 const char *table_name, const char *action, ErrorData *error);

/* in schema.c */
extern bool repl_ml_schema_is_empty(void);
extern void repl_ml_schema_copy_all(const char *dsn);
extern void repl_ml_schema_begin(const char *dsn);
extern void repl_ml_schema_copy(const char *dsn, List *schemas, List *tables);

/* in definitions.c */
extern void repl_ml_definitions_check(const char *text, List *tables);
extern void repl_ml_definitions_check_code(List *tables);

/* in retry.c */
extern void repl_ml_retry_step(ReplMlApply *apply);
extern int	repl_ml_retry_due(void);

#endif							/* REPL_ML_COPY_H */
