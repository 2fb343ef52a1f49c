/*
 * wire.h
 *		Bytes and values: the vector clock and what it keeps for columns, values in
 *		binary form, connections to peers.  Nothing here reads a catalog or shared memory.
 *
 * A clock is a varlena of packed entries and may carry a short header, so it
 * is only read through these functions.  Results are palloc'd in the current
 * memory context; arguments are never changed.
 */
#ifndef REPL_ML_WIRE_H
#define REPL_ML_WIRE_H

#include "repl_ml.h"
#include "access/tupdesc.h"
#include "access/xlogdefs.h"
#include "executor/tuptable.h"
#include "fmgr.h"
#include "lib/stringinfo.h"
#include "replication/walreceiver.h"
#include "utils/rel.h"
#include "utils/timestamp.h"

typedef struct varlena ReplMlClock;

/* one (node, counter) pair on disk: 2 bytes node, 7 bytes counter, big-endian */
#define REPL_ML_CLOCK_ENTRY_SIZE	9
/* a node id is 1 .. 65535; ids are never reused */
#define REPL_ML_MAX_NODE_ID			65535
/* counters are microseconds since 2000-01-01 UTC and fit 55 bits */
#define REPL_ML_MAX_COUNTER			((UINT64CONST(1) << 55) - 1)
/* no clock is longer than this, whatever comes over the wire */
#define REPL_ML_MAX_CLOCK_ENTRIES	128

typedef enum ReplMlClockOrder
{
	REPL_ML_CLOCK_EQUAL,
	REPL_ML_CLOCK_BEFORE,
	REPL_ML_CLOCK_AFTER,
	REPL_ML_CLOCK_CONCURRENT
} ReplMlClockOrder;

typedef struct ReplMlClockEntry
{
	uint16		node;
	uint64		counter;
} ReplMlClockEntry;

/* marks are not longer than this, either */
#define REPL_ML_MAX_MARKS_SIZE		(1024 * 1024)

/* What to do about a row whose clock cannot be read */
#define REPL_ML_DAMAGED_HINT \
	"Run UPDATE ... SET __repl_clock = DEFAULT for the row where it was written: it begins anew."

/* What to do about a peer that says what it should not, or not all */
#define REPL_ML_SAME_VERSION_HINT \
	"Install the same version of the extension \"repl_ml\" on all nodes."

#define DatumGetReplMlClockP(d)		((ReplMlClock *) PG_DETOAST_DATUM_PACKED(d))
#define PG_GETARG_REPL_ML_CLOCK_P(n) DatumGetReplMlClockP(PG_GETARG_DATUM(n))

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

/* what the names of our sessions on other servers begin with */
#define REPL_ML_APPLICATION		"repl_ml "

/*
 * first line of a message that a walsender sends in place of a change: it has
 * the table's schema, name, the key and the error in the next ones
 */
#define REPL_ML_UNSENT			"unsent"

/*
 * Type of a message of the stream that a walsender of ours adds to core's: it has
 * the time of the status that it echoes, and the peer's own.  A status whose time,
 * in microseconds, is odd wants an echo.
 */
#define REPL_ML_ECHO			'e'

/* Rows a query returned, until repl_ml_stream_free. */
typedef struct ReplMlResult
{
	WalRcvExecResult *raw;
	TupleTableSlot *slot;
	bool		own_transaction;	/* ended by repl_ml_stream_free */
} ReplMlResult;

/* the error of a server that has not answered, and has not said why */
#define REPL_ML_ASK_SILENT	"It does not answer in time."

/* One query to several servers, and what is done beside it; see ask.c. */
typedef struct ReplMlQuestions
{
	int			count;
	char	   *const *dsns;
	const char *query;
	int			nparams;
	const char *const *params;	/* as text, NULL for null */
	TimestampTz sent_by;
	TimestampTz deadline;
	void		(*meanwhile) (void *argument);	/* or NULL */
	bool		(*is_hopeless) (int i, void *argument); /* whether to wait for
														 * a server no longer;
														 * or NULL */
	void	   *argument;
	bool		keeps;			/* connections stay open until the transaction ends, and
								 * kept ones are asked */
	bool		goes_on;		/* ... in the transactions that are open on them */
	char	  **answers;		/* set: NULL where there is none */
	char	  **errors;			/* set, if not NULL: why there is none */
} ReplMlQuestions;

/* in clock.c */
extern bool repl_ml_clock_is_whole(const ReplMlClock *clock);
extern int	repl_ml_clock_count(const ReplMlClock *clock);
extern ReplMlClockEntry repl_ml_clock_entry(const ReplMlClock *clock, int i);
extern uint64 repl_ml_clock_counter(const ReplMlClock *clock, uint16 node);
extern uint64 repl_ml_clock_max_counter(const ReplMlClock *clock);
extern ReplMlClockEntry repl_ml_clock_dot(const ReplMlClock *clock);
extern bool repl_ml_clock_covers(const ReplMlClock *clock, ReplMlClockEntry dot);
extern bool repl_ml_clock_dot_before(ReplMlClockEntry a, ReplMlClockEntry b);
extern ReplMlClock *repl_ml_clock_empty(void);
extern ReplMlClock *repl_ml_clock_from_entries(const ReplMlClockEntry *entries, int count);
extern ReplMlClock *repl_ml_clock_make(uint16 node, uint64 counter);
extern ReplMlClock *repl_ml_clock_advance(const ReplMlClock *clock, uint16 node, uint64 counter);
extern ReplMlClock *repl_ml_clock_merge(const ReplMlClock *a, const ReplMlClock *b);
extern ReplMlClockOrder repl_ml_clock_compare(const ReplMlClock *a, const ReplMlClock *b);
extern bool repl_ml_clock_is_within(const ReplMlClock *a, const ReplMlClock *b);
extern const char *repl_ml_clock_order_name(ReplMlClockOrder order);
extern const uint8 *repl_ml_clock_marks(const ReplMlClock *clock, Size *size);
extern ReplMlClock *repl_ml_clock_with_marks(const ReplMlClock *clock, const uint8 *marks,
											 Size size);
extern const uint8 *repl_ml_clock_entries(const ReplMlClock *clock, Size *size);
extern ReplMlClockEntry repl_ml_clock_unpack(const uint8 *entry);
extern void repl_ml_clock_pack(uint8 *entry, ReplMlClockEntry value);

/* in marks.c */
extern uint32 repl_ml_marks_column(const char *name);
extern bool repl_ml_marks_clock_is_whole(const ReplMlClock *clock);
extern ReplMlMarks repl_ml_marks_read(const ReplMlClock *clock);
extern const ReplMlMark *repl_ml_marks_find(const ReplMlMarks *marks, uint32 column);
extern ReplMlClock *repl_ml_marks_attach(const ReplMlClock *clock, ReplMlMarks *marks);
extern const char *repl_ml_marks_decode(const uint8 *bytes, Size size, const ReplMlClock *clock,
										ReplMlMarks *marks);
extern const char *repl_ml_marks_problem(const ReplMlMarks *marks, const ReplMlClock *clock);

/* in vclock.c */
extern ReplMlClock *repl_ml_clock_from_text(const char *text);
extern char *repl_ml_clock_to_text(const ReplMlClock *clock);

/* in binary.c */
extern bool repl_ml_binary_is_portable(Oid type);
extern bool repl_ml_binary_is_table_portable(Relation rel);
extern Datum repl_ml_binary_read(FmgrInfo *receive, Oid param, int32 typmod, StringInfo value);
extern char *repl_ml_binary_as_text(Oid type, StringInfo value);

/* in stream.c */
extern char *repl_ml_stream_conninfo(const char *dsn, const char *purpose, char **password);
extern WalReceiverConn *repl_ml_stream_connect(const char *dsn, const char *purpose);
extern void repl_ml_stream_disconnect(WalReceiverConn *conn);
extern void repl_ml_stream_command(WalReceiverConn *conn, const char *sql);
extern void repl_ml_stream_utility(WalReceiverConn *conn, const char *sql);
extern ReplMlResult *repl_ml_stream_query(WalReceiverConn *conn, const char *sql,
										  int ncolumns, const Oid *types);
extern bool repl_ml_stream_next(ReplMlResult *result);
extern void repl_ml_stream_free(ReplMlResult *result);
extern void repl_ml_stream_copy_out(WalReceiverConn *conn, const char *sql);
extern void repl_ml_stream_start(WalReceiverConn *conn, const char *slot, XLogRecPtr from,
								 const char *publication);
extern TimestampTz repl_ml_stream_status(WalReceiverConn *conn, XLogRecPtr received,
										 XLogRecPtr durable, XLogRecPtr kept, bool reply_wanted,
										 bool echo_wanted);

/* in ask.c */
extern void repl_ml_ask(int count, char *const *dsns, const char *query, TimestampTz deadline,
						char **answers);
extern void repl_ml_ask_beside(ReplMlQuestions *all);
extern bool repl_ml_ask_reaches(const char *dsn, TimestampTz deadline);
extern void repl_ml_ask_end(void);
extern void repl_ml_ask_keep(void);
extern char *repl_ml_ask_one(const char *dsn, const char *query, int nparams,
							 const char *const *params, TimestampTz deadline);

#endif							/* REPL_ML_WIRE_H */
