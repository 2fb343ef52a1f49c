/*
 * clock.c
 *		The vector clock: bytes, text, order and merge.
 *
 * A clock says, for every node that ever wrote a row, the counter of that
 * node's last write the row's value knows of.  A node that is missing counts
 * as counter 0.  Two clocks are compared entry by entry: if each is at least
 * the other they are equal, if only one is, the other came before it, and if
 * neither is, the two writes were concurrent: a conflict.
 *
 * On disk a clock is a varlena whose payload is count times nine bytes: two
 * of node id and seven of counter, both big-endian, sorted by node id, each
 * node once, no counter 0.  So every clock has exactly one form, equality and
 * hashing work on the bytes, and memcmp orders node ids and counters.
 *
 * This is not where counters are chosen (that is the hybrid logical clock of
 * the writing node), nor where a conflict is decided.  It is the first file on
 * the way of a change: stamping makes clocks here, apply compares and merges
 * them here.  No locks, no catalogs, no state; results are palloc'd in the
 * current memory context and arguments are never changed.
 */
#include "postgres.h"

#include "common/hashfn.h"
#include "fmgr.h"
#include "lib/stringinfo.h"
#include "libpq/pqformat.h"
#include "mb/pg_wchar.h"
#include "utils/builtins.h"

#include "compat.h"
#include "wire/clock.h"

/* the node id's part of an entry; the counter has the rest */
#define NODE_SIZE	2
#define ENTRY_SIZE	REPL_ML_CLOCK_ENTRY_SIZE

/* a clock from outside while it is read; only add_entry() appends to it */
typedef struct ClockInput
{
	const char *text;			/* the whole text input; NULL if binary */
	const char *next;			/* the first character not read yet */
	uint64		last_node;		/* the node of the last entry, or 0 */
	int			count;
	uint8		entries[REPL_ML_MAX_CLOCK_ENTRIES * ENTRY_SIZE];
} ClockInput;

PG_FUNCTION_INFO_V1(repl_ml_vclock_in);
PG_FUNCTION_INFO_V1(repl_ml_vclock_out);
PG_FUNCTION_INFO_V1(repl_ml_vclock_recv);
PG_FUNCTION_INFO_V1(repl_ml_vclock_send);
PG_FUNCTION_INFO_V1(repl_ml_vclock_compare);
PG_FUNCTION_INFO_V1(repl_ml_vclock_happens_before);
PG_FUNCTION_INFO_V1(repl_ml_vclock_concurrent);
PG_FUNCTION_INFO_V1(repl_ml_vclock_contained);
PG_FUNCTION_INFO_V1(repl_ml_vclock_contains);
PG_FUNCTION_INFO_V1(repl_ml_vclock_eq);
PG_FUNCTION_INFO_V1(repl_ml_vclock_ne);
PG_FUNCTION_INFO_V1(repl_ml_vclock_hash);
PG_FUNCTION_INFO_V1(repl_ml_vclock_hash_extended);
PG_FUNCTION_INFO_V1(repl_ml_vclock_merge);
PG_FUNCTION_INFO_V1(repl_ml_vclock_counter);
PG_FUNCTION_INFO_V1(repl_ml_vclock_max_counter);
PG_FUNCTION_INFO_V1(repl_ml_vclock_last_writer);

static ReplMlClockOrder compare_arguments(FunctionCallInfo fcinfo);
static bool clocks_equal(const ReplMlClock *a, const ReplMlClock *b);
static const uint8 *first_entry(const ReplMlClock *clock);
static const uint8 *end_of_entries(const ReplMlClock *clock);
static uint16 read_node(const uint8 *entry);
static uint64 read_counter(const uint8 *entry);
static void write_entry(uint8 *entry, uint16 node, uint64 counter);
static void check_own_entry(uint16 node, uint64 counter);
static ReplMlClock *allocate_clock(int count);
static void set_count(ReplMlClock *clock, int count);
static void read_text_entry(ClockInput *input);
static uint64 read_number(ClockInput *input);
static bool skip_token(ClockInput *input, char token);
static void expect_token(ClockInput *input, char token);
static void skip_blanks(ClockInput *input);
static void add_entry(ClockInput *input, uint64 node, uint64 counter);
static ReplMlClock *finish_input(const ClockInput *input);
static void refuse_syntax(const ClockInput *input, const char *expected);
static void refuse_input(const ClockInput *input, int sqlstate, const char *detail);

/*
 * The number of entries of a clock.  Every reader comes through here first, so
 * a damaged datum is an error with the right SQLSTATE and never read past.
 */
int
repl_ml_clock_count(const ReplMlClock *clock)
{
	Size		size = VARSIZE_ANY_EXHDR(clock);

	if (unlikely(size % ENTRY_SIZE != 0))
		ereport(ERROR,
				(errcode(ERRCODE_DATA_CORRUPTED),
				 errmsg("stored vector clock is damaged"),
				 errdetail("Its %zu bytes are not a whole number of %d-byte entries.",
						   size, ENTRY_SIZE)));

	return (int) (size / ENTRY_SIZE);
}

/*
 * The i'th entry, counted from 0 in the order of node ids.  The caller stays
 * below repl_ml_clock_count().
 */
ReplMlClockEntry
repl_ml_clock_entry(const ReplMlClock *clock, int i)
{
	const uint8 *entry = first_entry(clock) + i * ENTRY_SIZE;
	ReplMlClockEntry result;

	Assert(i >= 0 && i < repl_ml_clock_count(clock));

	result.node = read_node(entry);
	result.counter = read_counter(entry);
	return result;
}

/*
 * A node's counter; 0 if the clock does not have the node.
 */
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
 * The greatest counter of all nodes; 0 for the empty clock.
 */
uint64
repl_ml_clock_max_counter(const ReplMlClock *clock)
{
	return repl_ml_clock_dot(clock).counter;
}

/*
 * The write that made this clock: the entry with the greatest counter, and of
 * equal counters the one with the greatest node id.  {0, 0} for the empty
 * clock.  Every node finds the same entry.
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

/*
 * Whether a value with this clock knows of the given write.
 */
bool
repl_ml_clock_covers(const ReplMlClock *clock, ReplMlClockEntry dot)
{
	return repl_ml_clock_counter(clock, dot.node) >= dot.counter;
}

/* The clock of a row nobody has written: before every other one. */
ReplMlClock *
repl_ml_clock_empty(void)
{
	return allocate_clock(0);
}

/* The clock with this text form; an error as the type's input function's. */
ReplMlClock *
repl_ml_clock_from_text(const char *text)
{
	return DatumGetReplMlClockP(DirectFunctionCall1(repl_ml_vclock_in, CStringGetDatum(text)));
}

/*
 * A new clock with one entry.
 */
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
 * A copy of the clock with the node's counter set, all other entries as they
 * were.  The caller guarantees that the new counter is the larger one.
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
 * The least clock that knows all that either argument knows: every node of
 * both, with the greater counter.
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

/*
 * How a stands to b: equal, before, after or concurrent.
 */
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

/*
 * The word users see for an order; a constant string.
 */
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
 * vclock_in(cstring): reads {node:counter,...}, sorted by node, blanks allowed
 * around every token.  Refuses anything else.
 */
Datum
repl_ml_vclock_in(PG_FUNCTION_ARGS)
{
	ClockInput	input;

	input.text = input.next = PG_GETARG_CSTRING(0);
	input.last_node = 0;
	input.count = 0;

	expect_token(&input, '{');
	if (!skip_token(&input, '}'))
	{
		read_text_entry(&input);
		while (skip_token(&input, ','))
			read_text_entry(&input);
		if (!skip_token(&input, '}'))
			refuse_syntax(&input, "\",\" or \"}\"");
	}

	skip_blanks(&input);
	if (*input.next != '\0')
		refuse_syntax(&input, "the end");
	PG_RETURN_POINTER(finish_input(&input));
}

/* vclock_out(vclock): the text vclock_in() reads, without blanks */
Datum
repl_ml_vclock_out(PG_FUNCTION_ARGS)
{
	ReplMlClock *clock = PG_GETARG_REPL_ML_CLOCK_P(0);
	int			count = repl_ml_clock_count(clock);
	StringInfoData text;

	initStringInfo(&text);
	appendStringInfoChar(&text, '{');
	for (int i = 0; i < count; i++)
	{
		ReplMlClockEntry entry = repl_ml_clock_entry(clock, i);

		appendStringInfo(&text, "%s%u:" UINT64_FORMAT,
						 i > 0 ? "," : "", entry.node, entry.counter);
	}
	appendStringInfoChar(&text, '}');
	PG_RETURN_CSTRING(text.data);
}

/*
 * vclock_recv(internal): reads an int32 count, then an int32 node and an int64
 * counter for every entry.  Trusts nothing that comes over the wire.
 */
Datum
repl_ml_vclock_recv(PG_FUNCTION_ARGS)
{
	StringInfo	message = (StringInfo) PG_GETARG_POINTER(0);
	ClockInput	input;
	int32		count;

	input.text = input.next = NULL;
	input.last_node = 0;
	input.count = 0;

	count = (int32) pq_getmsgint(message, 4);
	if (count < 0 || count > REPL_ML_MAX_CLOCK_ENTRIES)
		refuse_input(&input, ERRCODE_INVALID_BINARY_REPRESENTATION,
					 psprintf("The number of entries is %d; it can be 0 to %d.",
							  count, REPL_ML_MAX_CLOCK_ENTRIES));

	for (int i = 0; i < count; i++)
	{
		/* negative numbers become large ones, which are refused as well */
		uint64		node = (uint32) pq_getmsgint(message, 4);
		uint64		counter = (uint64) pq_getmsgint64(message);

		add_entry(&input, node, counter);
	}
	PG_RETURN_POINTER(finish_input(&input));
}

/* vclock_send(vclock): the bytes vclock_recv() reads */
Datum
repl_ml_vclock_send(PG_FUNCTION_ARGS)
{
	ReplMlClock *clock = PG_GETARG_REPL_ML_CLOCK_P(0);
	int			count = repl_ml_clock_count(clock);
	StringInfoData message;

	pq_begintypsend(&message);
	pq_sendint32(&message, count);
	for (int i = 0; i < count; i++)
	{
		ReplMlClockEntry entry = repl_ml_clock_entry(clock, i);

		pq_sendint32(&message, entry.node);
		pq_sendint64(&message, entry.counter);
	}
	PG_RETURN_BYTEA_P(pq_endtypsend(&message));
}

/* compare(vclock, vclock): the name of the order, as text */
Datum
repl_ml_vclock_compare(PG_FUNCTION_ARGS)
{
	ReplMlClockOrder order = compare_arguments(fcinfo);

	PG_RETURN_TEXT_P(cstring_to_text(repl_ml_clock_order_name(order)));
}

/* happens_before(vclock, vclock): whether the first is strictly before */
Datum
repl_ml_vclock_happens_before(PG_FUNCTION_ARGS)
{
	PG_RETURN_BOOL(compare_arguments(fcinfo) == REPL_ML_CLOCK_BEFORE);
}

/* concurrent(vclock, vclock): whether neither knows all the other knows */
Datum
repl_ml_vclock_concurrent(PG_FUNCTION_ARGS)
{
	PG_RETURN_BOOL(compare_arguments(fcinfo) == REPL_ML_CLOCK_CONCURRENT);
}

/* vclock <@ vclock: whether the second knows all the first knows */
Datum
repl_ml_vclock_contained(PG_FUNCTION_ARGS)
{
	ReplMlClockOrder order = compare_arguments(fcinfo);

	PG_RETURN_BOOL(order == REPL_ML_CLOCK_BEFORE || order == REPL_ML_CLOCK_EQUAL);
}

/* vclock @> vclock: whether the first knows all the second knows */
Datum
repl_ml_vclock_contains(PG_FUNCTION_ARGS)
{
	ReplMlClockOrder order = compare_arguments(fcinfo);

	PG_RETURN_BOOL(order == REPL_ML_CLOCK_AFTER || order == REPL_ML_CLOCK_EQUAL);
}

/* vclock = vclock */
Datum
repl_ml_vclock_eq(PG_FUNCTION_ARGS)
{
	ReplMlClock *a = PG_GETARG_REPL_ML_CLOCK_P(0);
	ReplMlClock *b = PG_GETARG_REPL_ML_CLOCK_P(1);
	bool		equal = clocks_equal(a, b);

	PG_FREE_IF_COPY(a, 0);
	PG_FREE_IF_COPY(b, 1);
	PG_RETURN_BOOL(equal);
}

/* vclock <> vclock */
Datum
repl_ml_vclock_ne(PG_FUNCTION_ARGS)
{
	PG_RETURN_BOOL(!clocks_equal(PG_GETARG_REPL_ML_CLOCK_P(0),
								 PG_GETARG_REPL_ML_CLOCK_P(1)));
}

/* hash support: equal clocks have equal hashes */
Datum
repl_ml_vclock_hash(PG_FUNCTION_ARGS)
{
	ReplMlClock *clock = PG_GETARG_REPL_ML_CLOCK_P(0);
	Datum		hash = hash_any(first_entry(clock), VARSIZE_ANY_EXHDR(clock));

	PG_FREE_IF_COPY(clock, 0);
	PG_RETURN_DATUM(hash);
}

/* hash support with a seed; the low 32 bits with seed 0 are the hash above */
Datum
repl_ml_vclock_hash_extended(PG_FUNCTION_ARGS)
{
	ReplMlClock *clock = PG_GETARG_REPL_ML_CLOCK_P(0);
	Datum		hash = hash_any_extended(first_entry(clock), VARSIZE_ANY_EXHDR(clock),
										 PG_GETARG_INT64(1));

	PG_FREE_IF_COPY(clock, 0);
	PG_RETURN_DATUM(hash);
}

/* merge(vclock, vclock), vclock || vclock and the step of merge_agg(vclock) */
Datum
repl_ml_vclock_merge(PG_FUNCTION_ARGS)
{
	PG_RETURN_POINTER(repl_ml_clock_merge(PG_GETARG_REPL_ML_CLOCK_P(0),
										  PG_GETARG_REPL_ML_CLOCK_P(1)));
}

/*
 * counter(vclock, integer): a node's counter; NULL if the clock does not have
 * the node, or if there can be no such node.
 */
Datum
repl_ml_vclock_counter(PG_FUNCTION_ARGS)
{
	ReplMlClock *clock = PG_GETARG_REPL_ML_CLOCK_P(0);
	int32		node = PG_GETARG_INT32(1);
	uint64		counter;

	if (node < 1 || node > REPL_ML_MAX_NODE_ID)
		PG_RETURN_NULL();

	counter = repl_ml_clock_counter(clock, (uint16) node);
	if (counter == 0)
		PG_RETURN_NULL();
	PG_RETURN_INT64((int64) counter);
}

/* max_counter(vclock): the greatest counter; NULL for the empty clock */
Datum
repl_ml_vclock_max_counter(PG_FUNCTION_ARGS)
{
	uint64		counter = repl_ml_clock_max_counter(PG_GETARG_REPL_ML_CLOCK_P(0));

	if (counter == 0)
		PG_RETURN_NULL();
	PG_RETURN_INT64((int64) counter);
}

/* last_writer(vclock): the node of the last write; NULL for the empty clock */
Datum
repl_ml_vclock_last_writer(PG_FUNCTION_ARGS)
{
	ReplMlClockEntry dot = repl_ml_clock_dot(PG_GETARG_REPL_ML_CLOCK_P(0));

	if (dot.counter == 0)
		PG_RETURN_NULL();
	PG_RETURN_INT32((int32) dot.node);
}

/*
 * How the two clocks an SQL function is called with stand to each other.
 */
static ReplMlClockOrder
compare_arguments(FunctionCallInfo fcinfo)
{
	return repl_ml_clock_compare(PG_GETARG_REPL_ML_CLOCK_P(0),
								 PG_GETARG_REPL_ML_CLOCK_P(1));
}

/*
 * Whether two clocks are the same.  A clock has one form, so this is whether
 * their bytes are.
 */
static bool
clocks_equal(const ReplMlClock *a, const ReplMlClock *b)
{
	Size		size = VARSIZE_ANY_EXHDR(a);

	return size == VARSIZE_ANY_EXHDR(b) &&
		memcmp(first_entry(a), first_entry(b), size) == 0;
}

/*
 * The first entry of a clock, whichever header the clock carries.
 */
static inline const uint8 *
first_entry(const ReplMlClock *clock)
{
	return (const uint8 *) VARDATA_ANY(clock);
}

/*
 * The byte after a clock's last entry; a whole number of entries from the first.
 */
static inline const uint8 *
end_of_entries(const ReplMlClock *clock)
{
	return first_entry(clock) + repl_ml_clock_count(clock) * ENTRY_SIZE;
}

/*
 * The node id of a packed entry.
 */
static inline uint16
read_node(const uint8 *entry)
{
	return (uint16) (entry[0] << 8 | entry[1]);
}

/*
 * The counter of a packed entry.
 */
static inline uint64
read_counter(const uint8 *entry)
{
	uint64		counter = 0;

	for (int i = NODE_SIZE; i < ENTRY_SIZE; i++)
		counter = counter << 8 | entry[i];
	return counter;
}

/*
 * Packs an entry.  The counter fits, everybody who gets here has checked it.
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

/*
 * A clock of count entries, which the caller fills.
 */
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
						REPL_ML_MAX_CLOCK_ENTRIES)));
	SET_VARSIZE(clock, VARHDRSZ + count * ENTRY_SIZE);
}

/*
 * Reads node:counter and appends it.
 */
static void
read_text_entry(ClockInput *input)
{
	uint64		node = read_number(input);
	uint64		counter;

	expect_token(input, ':');
	counter = read_number(input);
	add_entry(input, node, counter);
}

/*
 * Reads decimal digits, at least one and no sign.  A number too large to be a
 * counter comes back as some number too large to be one.
 */
static uint64
read_number(ClockInput *input)
{
	uint64		number = 0;

	skip_blanks(input);
	if (*input->next < '0' || *input->next > '9')
		refuse_syntax(input, "a number");

	for (; *input->next >= '0' && *input->next <= '9'; input->next++)
	{
		if (number <= REPL_ML_MAX_COUNTER)
			number = number * 10 + (*input->next - '0');
	}
	return number;
}

/*
 * Reads past the token if it comes next, and says whether it did.
 */
static bool
skip_token(ClockInput *input, char token)
{
	skip_blanks(input);
	if (*input->next != token)
		return false;
	input->next++;
	return true;
}

/*
 * Reads past the token, which must come next.
 */
static void
expect_token(ClockInput *input, char token)
{
	if (!skip_token(input, token))
		refuse_syntax(input, psprintf("\"%c\"", token));
}

/*
 * Reads past the characters that array input takes for blanks, in any locale.
 */
static void
skip_blanks(ClockInput *input)
{
	while (*input->next == ' ' || (*input->next >= '\t' && *input->next <= '\r'))
		input->next++;
}

/*
 * Appends an entry, after everything that makes a clock valid has been checked.
 */
static void
add_entry(ClockInput *input, uint64 node, uint64 counter)
{
	if (input->count == REPL_ML_MAX_CLOCK_ENTRIES)
		refuse_input(input, ERRCODE_PROGRAM_LIMIT_EXCEEDED,
					 psprintf("A clock can have at most %d entries.",
							  REPL_ML_MAX_CLOCK_ENTRIES));
	if (node == 0 || node > REPL_ML_MAX_NODE_ID)
		refuse_input(input, ERRCODE_NUMERIC_VALUE_OUT_OF_RANGE,
					 psprintf("Node ids are 1 to %d.", REPL_ML_MAX_NODE_ID));
	if (counter == 0 || counter > REPL_ML_MAX_COUNTER)
		refuse_input(input, ERRCODE_NUMERIC_VALUE_OUT_OF_RANGE,
					 psprintf("The counter of node " UINT64_FORMAT " is out of range; counters are 1 to " UINT64_FORMAT ".",
							  node, REPL_ML_MAX_COUNTER));
	if (node == input->last_node)
		refuse_input(input, ERRCODE_INVALID_TEXT_REPRESENTATION,
					 psprintf("Node " UINT64_FORMAT " appears more than once.", node));
	if (node < input->last_node)
		refuse_input(input, ERRCODE_INVALID_TEXT_REPRESENTATION,
					 psprintf("Node " UINT64_FORMAT " comes after node " UINT64_FORMAT "; nodes must be in ascending order.",
							  node, input->last_node));

	write_entry(input->entries + input->count * ENTRY_SIZE,
				(uint16) node, counter);
	input->last_node = node;
	input->count++;
}

/*
 * The clock that was read.
 */
static ReplMlClock *
finish_input(const ClockInput *input)
{
	ReplMlClock *result = allocate_clock(input->count);

	memcpy(VARDATA(result), input->entries,
		   input->count * ENTRY_SIZE);
	return result;
}

/*
 * Refuses text that has something else where the expected token belongs.
 */
static void
refuse_syntax(const ClockInput *input, const char *expected)
{
	int			position = pg_mbstrlen_with_len(input->text,
												input->next - input->text) + 1;

	refuse_input(input, ERRCODE_INVALID_TEXT_REPRESENTATION,
				 psprintf("Expected %s at character %d.", expected, position));
}

/*
 * Refuses input.  Whatever is wrong with binary input has the one SQLSTATE
 * that clients know for it.
 */
static void
refuse_input(const ClockInput *input, int sqlstate, const char *detail)
{
	if (input->text == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_BINARY_REPRESENTATION),
				 errmsg("invalid binary vector clock"),
				 errdetail_internal("%s", detail)));
	ereport(ERROR,
			(errcode(sqlstate),
			 errmsg("invalid vector clock: \"%s\"", input->text),
			 errdetail_internal("%s", detail)));
}
