/*
 * clock.c
 *		The vector clock: bytes, order and merge.  Its text form is vclock.c's.
 *
 * A clock says, for every node that ever wrote a row, the counter of that
 * node's last write the row's value knows of.  A node that is missing counts
 * as counter 0.  Two clocks are compared entry by entry: if each is at least
 * the other they are equal, if only one is, the other came before it, and if
 * neither is, the two writes were concurrent: a conflict.
 *
 * On disk a clock is a varlena whose payload is count times nine bytes: two of
 * node id and seven of counter, both big-endian, sorted by node id, each node
 * once, no counter 0.  So every clock has exactly one form, equality and
 * hashing work on the bytes, and memcmp orders node ids and counters.
 *
 * A row of a table with column merge rules may carry marks (marks.c).  They
 * are in front of the entries: two zero bytes, where an entry would have its
 * node, four of the marks' length, big-endian, and the marks.  Order, merge,
 * equality and hash know of the entries only; what is made here has no marks.
 *
 * This is not where counters are chosen (server/ticker.c does that), nor where
 * a conflict is decided (converge/conflict.c).  Backends make clocks here when
 * they stamp rows, apply workers compare and merge them here.  No locks, no
 * catalogs, no state; results are palloc'd in the current memory context and
 * arguments are never changed.
 */
#include "postgres.h"

#include "fmgr.h"

#include "compat.h"
#include "wire/wire.h"

/* the node id's part of an entry; the counter has the rest */
#define NODE_SIZE	2
#define ENTRY_SIZE	REPL_ML_CLOCK_ENTRY_SIZE
/* what is in front of marks: no node, and their length */
#define MARKS_HEADER_SIZE	(NODE_SIZE + 4)

static Size size_before_entries(const ReplMlClock *clock);
static Size marks_size(const ReplMlClock *clock);
static Size measure_marks(const ReplMlClock *clock);
static const uint8 *first_entry(const ReplMlClock *clock);
static const uint8 *end_of_entries(const ReplMlClock *clock);
static uint16 read_node(const uint8 *entry);
static uint64 read_counter(const uint8 *entry);
static void write_entry(uint8 *entry, uint16 node, uint64 counter);
static void check_own_entry(uint16 node, uint64 counter);
static ReplMlClock *allocate_clock(int count);
static void set_count(ReplMlClock *clock, int count);

/*
 * Returns the number of entries of a clock.  Every reader comes through here
 * first, so a damaged datum is an error with the right SQLSTATE and is never
 * read past its end.
 */
int
repl_ml_clock_count(const ReplMlClock *clock)
{
	Size		size = VARSIZE_ANY_EXHDR(clock) - size_before_entries(clock);

	if (unlikely(size % ENTRY_SIZE != 0))
		ereport(ERROR,
				(errcode(ERRCODE_DATA_CORRUPTED),
				 errmsg("stored vector clock is damaged"),
				 errdetail("Its %zu bytes are not a whole number of %d-byte entries.",
						   size, ENTRY_SIZE),
				 errhint(REPL_ML_DAMAGED_HINT)));

	return (int) (size / ENTRY_SIZE);
}

/*
 * Returns the i'th entry, counted from 0 in the order of node ids.  The caller
 * stays below repl_ml_clock_count().
 */
ReplMlClockEntry
repl_ml_clock_entry(const ReplMlClock *clock, int i)
{
	Assert(i >= 0 && i < repl_ml_clock_count(clock));

	return repl_ml_clock_unpack(first_entry(clock) + i * ENTRY_SIZE);
}

/* Returns a node's counter; 0 if the clock does not have the node. */
uint64
repl_ml_clock_counter(const ReplMlClock *clock, uint16 node)
{
	const uint8 *end = end_of_entries(clock);

	for (const uint8 *entry = first_entry(clock); entry < end; entry += ENTRY_SIZE)
	{
		if (read_node(entry) == node)
			return read_counter(entry);
	}
	return 0;
}

/*
 * Returns the greatest counter of all nodes, above which a new write of the
 * row has to tick; 0 for the empty clock.
 */
uint64
repl_ml_clock_max_counter(const ReplMlClock *clock)
{
	return repl_ml_clock_dot(clock).counter;
}

/*
 * Returns the write that made this clock: the entry with the greatest counter,
 * and of equal counters the one with the greatest node id; {0, 0} for the
 * empty clock.  Every node finds the same entry.
 */
ReplMlClockEntry
repl_ml_clock_dot(const ReplMlClock *clock)
{
	const uint8 *end = end_of_entries(clock);
	ReplMlClockEntry dot = {0, 0};

	for (const uint8 *entry = first_entry(clock); entry < end; entry += ENTRY_SIZE)
	{
		uint64		counter = read_counter(entry);

		/* later entries have greater node ids, so they win ties */
		if (counter >= dot.counter)
		{
			dot.node = read_node(entry);
			dot.counter = counter;
		}
	}
	return dot;
}

/* Says whether a value with this clock knows of the given write. */
bool
repl_ml_clock_covers(const ReplMlClock *clock, ReplMlClockEntry dot)
{
	return repl_ml_clock_counter(clock, dot.node) >= dot.counter;
}

/*
 * Says whether write a is older than write b, in the order all nodes agree on.
 */
bool
repl_ml_clock_dot_before(ReplMlClockEntry a, ReplMlClockEntry b)
{
	return a.counter != b.counter ? a.counter < b.counter : a.node < b.node;
}

/*
 * Returns the clock of a row nobody has written, which is before every other
 * one.
 */
ReplMlClock *
repl_ml_clock_empty(void)
{
	return allocate_clock(0);
}

/*
 * Makes a clock of "count" entries, which the caller has sorted by node and
 * checked.
 */
ReplMlClock *
repl_ml_clock_from_entries(const ReplMlClockEntry *entries, int count)
{
	ReplMlClock *result = allocate_clock(count);

	for (int i = 0; i < count; i++)
		write_entry((uint8 *) VARDATA(result) + i * ENTRY_SIZE, entries[i].node,
					entries[i].counter);
	return result;
}

/* Makes the clock of a first write, with one entry. */
ReplMlClock *
repl_ml_clock_make(uint16 node, uint64 counter)
{
	ReplMlClock *result;

	check_own_entry(node, counter);

	result = allocate_clock(1);
	write_entry((uint8 *) VARDATA(result), node, counter);
	return result;
}

/*
 * Returns a copy of the clock with the node's counter set, all other entries
 * as they were.  The caller guarantees that the new counter is the larger one.
 */
ReplMlClock *
repl_ml_clock_advance(const ReplMlClock *clock, uint16 node, uint64 counter)
{
	const uint8 *first = first_entry(clock);
	const uint8 *end = end_of_entries(clock);
	const uint8 *split = first;
	Size		before;
	Size		after;
	ReplMlClock *result;
	uint8	   *to;

	check_own_entry(node, counter);

	while (split < end && read_node(split) < node)
		split += ENTRY_SIZE;
	before = split - first;

	/* an entry the node already has is replaced, not kept */
	if (split < end && read_node(split) == node)
		split += ENTRY_SIZE;
	after = end - split;

	result = allocate_clock((before + after) / ENTRY_SIZE + 1);
	to = (uint8 *) VARDATA(result);
	memcpy(to, first, before);
	write_entry(to + before, node, counter);
	memcpy(to + before + ENTRY_SIZE, split, after);
	return result;
}

/*
 * Returns the least clock that knows all that either argument knows: every
 * node of both, with the greater counter.
 */
ReplMlClock *
repl_ml_clock_merge(const ReplMlClock *a, const ReplMlClock *b)
{
	const uint8 *next_a = first_entry(a);
	const uint8 *next_b = first_entry(b);
	const uint8 *end_a = end_of_entries(a);
	const uint8 *end_b = end_of_entries(b);
	ReplMlClock *result = (ReplMlClock *)
		palloc(VARHDRSZ + (end_a - next_a) + (end_b - next_b));
	uint8	   *first = (uint8 *) VARDATA(result);
	uint8	   *to = first;

	while (next_a < end_a && next_b < end_b)
	{
		int			nodes = memcmp(next_a, next_b, NODE_SIZE);
		bool		take_a = nodes < 0;

		/* of two entries of one node, the greater bytes are the later write */
		if (nodes == 0)
			take_a = memcmp(next_a, next_b, ENTRY_SIZE) > 0;

		memcpy(to, take_a ? next_a : next_b, ENTRY_SIZE);
		to += ENTRY_SIZE;
		next_a += nodes <= 0 ? ENTRY_SIZE : 0;
		next_b += nodes >= 0 ? ENTRY_SIZE : 0;
	}

	/* at most one of the two has a rest */
	memcpy(to, next_a, end_a - next_a);
	to += end_a - next_a;
	memcpy(to, next_b, end_b - next_b);
	to += end_b - next_b;

	set_count(result, (to - first) / ENTRY_SIZE);
	return result;
}

/* Says how a stands to b: equal, before, after or concurrent. */
ReplMlClockOrder
repl_ml_clock_compare(const ReplMlClock *a, const ReplMlClock *b)
{
	const uint8 *next_a = first_entry(a);
	const uint8 *next_b = first_entry(b);
	const uint8 *end_a = end_of_entries(a);
	const uint8 *end_b = end_of_entries(b);
	bool		a_has_more = false;
	bool		b_has_more = false;

	while (next_a < end_a && next_b < end_b && !(a_has_more && b_has_more))
	{
		int			nodes = memcmp(next_a, next_b, NODE_SIZE);
		int			counters = memcmp(next_a + NODE_SIZE, next_b + NODE_SIZE,
									  ENTRY_SIZE - NODE_SIZE);

		/* the smaller node id is one that the other clock does not have */
		a_has_more |= nodes < 0 || (nodes == 0 && counters > 0);
		b_has_more |= nodes > 0 || (nodes == 0 && counters < 0);

		next_a += nodes <= 0 ? ENTRY_SIZE : 0;
		next_b += nodes >= 0 ? ENTRY_SIZE : 0;
	}
	a_has_more |= next_a < end_a;
	b_has_more |= next_b < end_b;

	if (a_has_more && b_has_more)
		return REPL_ML_CLOCK_CONCURRENT;
	if (a_has_more)
		return REPL_ML_CLOCK_AFTER;
	return b_has_more ? REPL_ML_CLOCK_BEFORE : REPL_ML_CLOCK_EQUAL;
}

/* Says whether all that a knows b knows as well. */
bool
repl_ml_clock_is_within(const ReplMlClock *a, const ReplMlClock *b)
{
	ReplMlClockOrder order = repl_ml_clock_compare(a, b);

	return order == REPL_ML_CLOCK_BEFORE || order == REPL_ML_CLOCK_EQUAL;
}

/* Returns the word users see for an order; a constant string. */
const char *
repl_ml_clock_order_name(ReplMlClockOrder order)
{
	static const char *const names[] = {
		[REPL_ML_CLOCK_EQUAL] = "equal",
		[REPL_ML_CLOCK_BEFORE] = "before",
		[REPL_ML_CLOCK_AFTER] = "after",
		[REPL_ML_CLOCK_CONCURRENT] = "concurrent",
	};

	if ((unsigned) order >= lengthof(names))
		elog(ERROR, "unrecognized vector clock order: %d", (int) order);
	return names[order];
}

/*
 * Returns the packed entries, checked to be whole ones.  Clocks are equal if
 * and only if these bytes are.
 */
const uint8 *
repl_ml_clock_entries(const ReplMlClock *clock, Size *size)
{
	*size = (Size) repl_ml_clock_count(clock) * ENTRY_SIZE;
	return first_entry(clock);
}

/*
 * Returns the bytes of a clock's marks, which marks.c reads; NULL if it has
 * none.
 */
const uint8 *
repl_ml_clock_marks(const ReplMlClock *clock, Size *size)
{
	Size		before = size_before_entries(clock);

	if (before == 0)
		return NULL;
	*size = before - MARKS_HEADER_SIZE;
	return (const uint8 *) VARDATA_ANY(clock) + MARKS_HEADER_SIZE;
}

/*
 * Returns a copy of a clock with these marks in place of its own; without any
 * if "size" is 0.
 */
ReplMlClock *
repl_ml_clock_with_marks(const ReplMlClock *clock, const uint8 *marks, Size size)
{
	Size		entries_size;
	const uint8 *entries = repl_ml_clock_entries(clock, &entries_size);
	Size		before = size == 0 ? 0 : MARKS_HEADER_SIZE + size;
	ReplMlClock *result;
	uint8	   *to;

	if (size > REPL_ML_MAX_MARKS_SIZE)
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("what a row has to keep for its columns' merge rules is too long"),
				 errdetail("It would be %zu bytes; the limit is %d.", size, REPL_ML_MAX_MARKS_SIZE),
				 errhint("Keep shorter arrays in columns with the rule \"counter\", or run "
						 "repl_ml.set_column_merge with \"none\" for them.")));

	result = (ReplMlClock *) palloc(VARHDRSZ + before + entries_size);
	SET_VARSIZE(result, VARHDRSZ + before + entries_size);
	to = (uint8 *) VARDATA(result);

	/* no entry begins with node 0, so readers see at once that marks follow */
	if (size > 0)
	{
		memset(to, 0, NODE_SIZE);
		for (int i = 0; i < 4; i++)
			to[NODE_SIZE + i] = (uint8) (size >> (24 - 8 * i));
		memcpy(to + MARKS_HEADER_SIZE, marks, size);
	}
	memcpy(to + before, entries, entries_size);
	return result;
}

/* Reads the entry in nine packed bytes. */
ReplMlClockEntry
repl_ml_clock_unpack(const uint8 *entry)
{
	ReplMlClockEntry result;

	result.node = read_node(entry);
	result.counter = read_counter(entry);
	return result;
}

/* Writes an entry, whose counter fits, as nine packed bytes. */
void
repl_ml_clock_pack(uint8 *entry, ReplMlClockEntry value)
{
	write_entry(entry, value.node, value.counter);
}

/*
 * Says whether these bytes have the form of a clock, but for what its marks
 * say.  Walsenders and triggers ask it of values that may be damaged, so it
 * never raises an error.
 */
bool
repl_ml_clock_is_whole(const ReplMlClock *clock)
{
	const uint8 *start = (const uint8 *) VARDATA_ANY(clock);
	Size		size = VARSIZE_ANY_EXHDR(clock);
	Size		before = 0;
	uint16		last = 0;

	if (size >= NODE_SIZE && read_node(start) == 0 && (before = marks_size(clock)) == 0)
		return false;
	if ((size - before) % ENTRY_SIZE != 0)
		return false;
	for (const uint8 *entry = start + before; entry < start + size; entry += ENTRY_SIZE)
	{
		if (read_node(entry) <= last || read_counter(entry) == 0)
			return false;
		last = read_node(entry);
	}
	return true;
}

/*
 * Returns how many bytes are in front of the entries: 0 unless there are
 * marks.
 */
static inline Size
size_before_entries(const ReplMlClock *clock)
{
	const uint8 *start = (const uint8 *) VARDATA_ANY(clock);

	/* node 0 is no entry's */
	if (likely(VARSIZE_ANY_EXHDR(clock) < NODE_SIZE || start[0] != 0 || start[1] != 0))
		return 0;
	return measure_marks(clock);
}

/*
 * Reads how long the marks are said to be; that many bytes need not be there.
 */
static Size
announced_size(const ReplMlClock *clock)
{
	const uint8 *start = (const uint8 *) VARDATA_ANY(clock);
	Size		size = 0;

	if (VARSIZE_ANY_EXHDR(clock) <= MARKS_HEADER_SIZE)
		return 0;
	for (int i = NODE_SIZE; i < MARKS_HEADER_SIZE; i++)
		size = size << 8 | start[i];
	return size;
}

/*
 * Returns the size of the marks with what is in front of them; 0 if they are
 * not within the datum.
 */
static Size
marks_size(const ReplMlClock *clock)
{
	Size		size = announced_size(clock);

	if (size == 0 || size > REPL_ML_MAX_MARKS_SIZE ||
		size > VARSIZE_ANY_EXHDR(clock) - MARKS_HEADER_SIZE)
		return 0;
	return MARKS_HEADER_SIZE + size;
}

/*
 * Returns marks_size, and raises an error where that is 0: the datum is
 * damaged.
 */
static Size
measure_marks(const ReplMlClock *clock)
{
	Size		size = marks_size(clock);

	if (size == 0)
		ereport(ERROR,
				(errcode(ERRCODE_DATA_CORRUPTED),
				 errmsg("stored vector clock is damaged"),
				 errdetail("It begins like one with marks, but %zu bytes of marks are not within "
						   "its %zu bytes.",
						   announced_size(clock), (Size) VARSIZE_ANY_EXHDR(clock)),
				 errhint(REPL_ML_DAMAGED_HINT)));
	return size;
}

/* Returns the first entry of a clock, whichever header the clock carries. */
static inline const uint8 *
first_entry(const ReplMlClock *clock)
{
	return (const uint8 *) VARDATA_ANY(clock) + size_before_entries(clock);
}

/*
 * Returns the byte after a clock's last entry, a whole number of entries from
 * the first.
 */
static inline const uint8 *
end_of_entries(const ReplMlClock *clock)
{
	return first_entry(clock) + repl_ml_clock_count(clock) * ENTRY_SIZE;
}

/* Reads the node id of a packed entry. */
static inline uint16
read_node(const uint8 *entry)
{
	return (uint16) (entry[0] << 8 | entry[1]);
}

/* Reads the counter of a packed entry. */
static inline uint64
read_counter(const uint8 *entry)
{
	uint64		counter = 0;

	for (int i = NODE_SIZE; i < ENTRY_SIZE; i++)
		counter = counter << 8 | entry[i];
	return counter;
}

/*
 * Packs an entry.  The counter fits: everybody who gets here has checked it.
 */
static inline void
write_entry(uint8 *entry, uint16 node, uint64 counter)
{
	entry[0] = (uint8) (node >> 8);
	entry[1] = (uint8) node;
	for (int i = ENTRY_SIZE - 1; i >= NODE_SIZE; i--)
	{
		entry[i] = (uint8) counter;
		counter >>= 8;
	}
}

/*
 * Stops a caller in C from storing what input would refuse.
 */
static inline void
check_own_entry(uint16 node, uint64 counter)
{
	if (unlikely(node == 0 || counter == 0 || counter > REPL_ML_MAX_COUNTER))
		elog(ERROR, "vector clock entry %u:" UINT64_FORMAT " is out of range",
			 node, counter);
}

/* Allocates a clock of count entries, which the caller fills. */
static ReplMlClock *
allocate_clock(int count)
{
	ReplMlClock *result = (ReplMlClock *) palloc(VARHDRSZ + count * ENTRY_SIZE);

	set_count(result, count);
	return result;
}

/*
 * Gives a new clock its length, which is never one that input would refuse.
 */
static void
set_count(ReplMlClock *clock, int count)
{
	if (unlikely(count > REPL_ML_MAX_CLOCK_ENTRIES))
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("vector clock would have more than %d entries",
						REPL_ML_MAX_CLOCK_ENTRIES),
				 errhint("Write the row on nodes that its clock already names.")));
	SET_VARSIZE(clock, VARHDRSZ + count * ENTRY_SIZE);
}
