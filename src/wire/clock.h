/*
 * clock.h
 *		The vector clock as C sees it: a set of (node, counter), sorted by node,
 *		and in front of it, for some rows, marks (wire/marks.h).
 *
 * A clock is a varlena of packed entries and may carry a short header, so it
 * is only read through these functions.  Results are palloc'd in the current
 * memory context; arguments are never changed.
 */
#ifndef REPL_ML_CLOCK_H
#define REPL_ML_CLOCK_H

#include "postgres.h"
#include "fmgr.h"

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
#define REPL_ML_DAMAGED_HINT	"Run UPDATE ... SET __repl_clock = DEFAULT for the row where it was written: it begins anew."

#define DatumGetReplMlClockP(d)		((ReplMlClock *) PG_DETOAST_DATUM_PACKED(d))
#define PG_GETARG_REPL_ML_CLOCK_P(n) DatumGetReplMlClockP(PG_GETARG_DATUM(n))

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
extern ReplMlClock *repl_ml_clock_with_marks(const ReplMlClock *clock, const uint8 *marks, Size size);
extern const uint8 *repl_ml_clock_entries(const ReplMlClock *clock, Size *size);
extern ReplMlClockEntry repl_ml_clock_unpack(const uint8 *entry);
extern void repl_ml_clock_pack(uint8 *entry, ReplMlClockEntry value);

/* in vclock.c */
extern ReplMlClock *repl_ml_clock_from_text(const char *text);
extern char *repl_ml_clock_to_text(const ReplMlClock *clock);

#endif							/* REPL_ML_CLOCK_H */
