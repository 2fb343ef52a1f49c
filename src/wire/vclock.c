/*
 * vclock.c
 *		The SQL type repl_ml.vclock: text and binary form, functions, operators.
 *
 * What comes from outside is checked here, entry by entry, before clock.c
 * makes a clock of it; everything else is a call of clock.c.  No locks, no
 * catalogs, no state.
 *
 * A clock is {node:counter,...}, for example {1:829,3:830}.  One with marks
 * (marks.c) has them behind its entries, each behind a semicolon: the hash of
 * the column's name in hexadecimal, "=", and for the rule "independent"
 *	i node:counter
 * and for the rule "counter"
 *	c node:counter=sum,...
 * as in {1:829,3:830;0a1b2c3d=i1:829;811c9dc5=c1:829=10,3:830=-2.5} or, of an
 * array, 811c9dc5=c1:829=[10,0].  In binary form the marks' bytes follow the
 * entries.
 */
#include "postgres.h"

#include "common/hashfn.h"
#include "fmgr.h"
#include "lib/stringinfo.h"
#include "libpq/pqformat.h"
#include "mb/pg_wchar.h"
#include "replication/slot.h"
#include "replication/walsender.h"
#include "utils/builtins.h"

#include "compat.h"
#include "wire/wire.h"

/* a clock from outside while it is read; only add_entry() appends to it */
typedef struct ClockInput
{
	const char *text;			/* the whole text input; NULL if binary */
	const char *next;			/* the first character not read yet */
	uint64		last_node;		/* the node of the last entry, or 0 */
	int			count;
	ReplMlClockEntry entries[REPL_ML_MAX_CLOCK_ENTRIES];
	ReplMlMarks marks;
} ClockInput;

PG_FUNCTION_INFO_V1(repl_ml_vclock_in);
PG_FUNCTION_INFO_V1(repl_ml_vclock_out);
PG_FUNCTION_INFO_V1(repl_ml_vclock_recv);
PG_FUNCTION_INFO_V1(repl_ml_vclock_send);
PG_FUNCTION_INFO_V1(repl_ml_vclock_compare);
PG_FUNCTION_INFO_V1(repl_ml_vclock_bytes_cmp);
PG_FUNCTION_INFO_V1(repl_ml_vclock_bytes_lt);
PG_FUNCTION_INFO_V1(repl_ml_vclock_bytes_le);
PG_FUNCTION_INFO_V1(repl_ml_vclock_bytes_ge);
PG_FUNCTION_INFO_V1(repl_ml_vclock_bytes_gt);
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

static bool is_sent_damaged(const ReplMlClock *clock);
static ReplMlClockOrder compare_arguments(FunctionCallInfo fcinfo);
static bool clocks_equal(const ReplMlClock *a, const ReplMlClock *b);
static void read_text_entry(ClockInput *input);
static uint64 read_number(ClockInput *input);
static bool skip_token(ClockInput *input, char token);
static void expect_token(ClockInput *input, char token);
static void skip_blanks(ClockInput *input);
static void add_entry(ClockInput *input, uint64 node, uint64 counter);
static void read_text_marks(ClockInput *input);
static void read_text_mark(ClockInput *input, ReplMlMark *mark);
static void read_text_contributions(ClockInput *input, ReplMlMark *mark);
static ReplMlClockEntry read_mark_entry(ClockInput *input);
static char *read_sum(ClockInput *input);
static void append_marks(StringInfo text, const ReplMlMarks *marks);
static void read_binary_marks(ClockInput *input, StringInfo message, const ReplMlClock *clock);
static ReplMlClock *finish_input(ClockInput *input);
static void refuse_syntax(const ClockInput *input, const char *expected);
static void refuse_input(const ClockInput *input, int sqlstate, const char *detail);

/*
 * Returns the clock with this text form; raises the errors of the type's input
 * function.
 */
ReplMlClock *
repl_ml_clock_from_text(const char *text)
{
	return DatumGetReplMlClockP(DirectFunctionCall1(repl_ml_vclock_in, CStringGetDatum(text)));
}

/*
 * vclock_in(cstring): reads {node:counter,...}, sorted by node, with or
 * without marks, blanks allowed around every token.  Refuses anything else.
 */
Datum
repl_ml_vclock_in(PG_FUNCTION_ARGS)
{
	ClockInput	input;

	input.text = input.next = PG_GETARG_CSTRING(0);
	input.last_node = 0;
	input.count = 0;
	input.marks.count = 0;

	expect_token(&input, '{');
	if (!skip_token(&input, '}'))
	{
		read_text_entry(&input);
		while (skip_token(&input, ','))
			read_text_entry(&input);
		if (skip_token(&input, ';'))
			read_text_marks(&input);
		if (!skip_token(&input, '}'))
			refuse_syntax(&input, "\",\" or \"}\"");
	}

	/* what follows would be lost without a word */
	skip_blanks(&input);
	if (*input.next != '\0')
		refuse_syntax(&input, "the end");
	PG_RETURN_POINTER(finish_input(&input));
}

/* Returns the text of a clock, palloc'd. */
char *
repl_ml_clock_to_text(const ReplMlClock *clock)
{
	return DatumGetCString(DirectFunctionCall1(repl_ml_vclock_out, PointerGetDatum(clock)));
}

/* vclock_out(vclock): the text vclock_in() reads, without blanks */
Datum
repl_ml_vclock_out(PG_FUNCTION_ARGS)
{
	ReplMlClock *clock = PG_GETARG_REPL_ML_CLOCK_P(0);
	int			count;
	ReplMlMarks marks;
	StringInfoData text;

	/* a text that no receiver takes */
	if (is_sent_damaged(clock))
		PG_RETURN_CSTRING(pstrdup("damaged"));
	count = repl_ml_clock_count(clock);
	marks = repl_ml_marks_read(clock);
	initStringInfo(&text);
	appendStringInfoChar(&text, '{');
	for (int i = 0; i < count; i++)
	{
		ReplMlClockEntry entry = repl_ml_clock_entry(clock, i);

		appendStringInfo(&text, "%s%u:" UINT64_FORMAT,
						 i > 0 ? "," : "", entry.node, entry.counter);
	}
	append_marks(&text, &marks);
	appendStringInfoChar(&text, '}');
	PG_RETURN_CSTRING(text.data);
}

/*
 * vclock_recv(internal): reads an int32 count, then an int32 node and an int64
 * counter for every entry, and of a clock with marks an int32 length and their
 * bytes.  Trusts nothing that comes over the wire.
 */
Datum
repl_ml_vclock_recv(PG_FUNCTION_ARGS)
{
	StringInfo	message = (StringInfo) PG_GETARG_POINTER(0);
	ClockInput	input;
	ReplMlClock *clock;
	int32		count;

	input.text = input.next = NULL;
	input.last_node = 0;
	input.count = 0;
	input.marks.count = 0;

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
	clock = finish_input(&input);
	if (message->cursor == message->len)
		PG_RETURN_POINTER(clock);
	read_binary_marks(&input, message, clock);
	PG_RETURN_POINTER(repl_ml_marks_attach(clock, &input.marks));
}

/* vclock_send(vclock): the bytes vclock_recv() reads */
Datum
repl_ml_vclock_send(PG_FUNCTION_ARGS)
{
	ReplMlClock *clock = PG_GETARG_REPL_ML_CLOCK_P(0);
	int			count;
	Size		marks_size;
	const uint8 *marks;
	StringInfoData message;

	pq_begintypsend(&message);

	/* a count that no receiver takes */
	if (is_sent_damaged(clock))
	{
		pq_sendint32(&message, -1);
		PG_RETURN_BYTEA_P(pq_endtypsend(&message));
	}
	count = repl_ml_clock_count(clock);
	marks = repl_ml_clock_marks(clock, &marks_size);
	pq_sendint32(&message, count);
	for (int i = 0; i < count; i++)
	{
		ReplMlClockEntry entry = repl_ml_clock_entry(clock, i);

		pq_sendint32(&message, entry.node);
		pq_sendint64(&message, entry.counter);
	}
	if (marks != NULL)
	{
		pq_sendint32(&message, marks_size);
		pq_sendbytes(&message, (const char *) marks, marks_size);
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

/* vclock = vclock: whether both have the same entries */
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

/* vclock <> vclock: whether an entry differs */
Datum
repl_ml_vclock_ne(PG_FUNCTION_ARGS)
{
	PG_RETURN_BOOL(!clocks_equal(PG_GETARG_REPL_ML_CLOCK_P(0),
								 PG_GETARG_REPL_ML_CLOCK_P(1)));
}

/*
 * Orders two clocks by the bytes of their entries, for indexes and sorts: any
 * total order will do in which equal clocks are equal.
 */
static int
compare_bytes(const ReplMlClock *a, const ReplMlClock *b)
{
	Size		a_size;
	Size		b_size;
	const uint8 *a_entries = repl_ml_clock_entries(a, &a_size);
	const uint8 *b_entries = repl_ml_clock_entries(b, &b_size);
	int			order = memcmp(a_entries, b_entries, Min(a_size, b_size));

	if (order != 0)
		return order < 0 ? -1 : 1;
	return a_size == b_size ? 0 : a_size < b_size ? -1 : 1;
}

/*
 * vclock_bytes_cmp(vclock, vclock): the order of indexes and sorts, which says
 * nothing of which write came first
 */
Datum
repl_ml_vclock_bytes_cmp(PG_FUNCTION_ARGS)
{
	PG_RETURN_INT32(compare_bytes(PG_GETARG_REPL_ML_CLOCK_P(0), PG_GETARG_REPL_ML_CLOCK_P(1)));
}

/* vclock *< vclock: before, in the order of bytes */
Datum
repl_ml_vclock_bytes_lt(PG_FUNCTION_ARGS)
{
	PG_RETURN_BOOL(compare_bytes(PG_GETARG_REPL_ML_CLOCK_P(0), PG_GETARG_REPL_ML_CLOCK_P(1)) < 0);
}

/* vclock *<= vclock: before or equal, in the order of bytes */
Datum
repl_ml_vclock_bytes_le(PG_FUNCTION_ARGS)
{
	PG_RETURN_BOOL(compare_bytes(PG_GETARG_REPL_ML_CLOCK_P(0), PG_GETARG_REPL_ML_CLOCK_P(1)) <= 0);
}

/* vclock *>= vclock: after or equal, in the order of bytes */
Datum
repl_ml_vclock_bytes_ge(PG_FUNCTION_ARGS)
{
	PG_RETURN_BOOL(compare_bytes(PG_GETARG_REPL_ML_CLOCK_P(0), PG_GETARG_REPL_ML_CLOCK_P(1)) >= 0);
}

/* vclock *> vclock: after, in the order of bytes */
Datum
repl_ml_vclock_bytes_gt(PG_FUNCTION_ARGS)
{
	PG_RETURN_BOOL(compare_bytes(PG_GETARG_REPL_ML_CLOCK_P(0), PG_GETARG_REPL_ML_CLOCK_P(1)) > 0);
}

/* hash support: equal clocks have equal hashes */
Datum
repl_ml_vclock_hash(PG_FUNCTION_ARGS)
{
	ReplMlClock *clock = PG_GETARG_REPL_ML_CLOCK_P(0);
	Size		size;
	const uint8 *entries = repl_ml_clock_entries(clock, &size);
	Datum		hash = hash_any(entries, size);

	PG_FREE_IF_COPY(clock, 0);
	PG_RETURN_DATUM(hash);
}

/* hash support with a seed; the low 32 bits with seed 0 are the hash above */
Datum
repl_ml_vclock_hash_extended(PG_FUNCTION_ARGS)
{
	ReplMlClock *clock = PG_GETARG_REPL_ML_CLOCK_P(0);
	Size		size;
	const uint8 *entries = repl_ml_clock_entries(clock, &size);
	Datum		hash = hash_any_extended(entries, size, PG_GETARG_INT64(1));

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
 * Says whether a walsender is about to send a damaged clock.  An error would
 * end its stream again and again, so it sends what the peer cannot read, and
 * the peer sets the row aside.
 */
static bool
is_sent_damaged(const ReplMlClock *clock)
{
	return am_walsender && MyReplicationSlot != NULL && !repl_ml_marks_clock_is_whole(clock);
}

/*
 * Says how the two clocks an SQL function is called with stand to each other.
 */
static ReplMlClockOrder
compare_arguments(FunctionCallInfo fcinfo)
{
	return repl_ml_clock_compare(PG_GETARG_REPL_ML_CLOCK_P(0),
								 PG_GETARG_REPL_ML_CLOCK_P(1));
}

/*
 * Says whether two clocks are the same, whatever their marks.  A clock has one
 * form, so this is whether the bytes of their entries are.
 */
static bool
clocks_equal(const ReplMlClock *a, const ReplMlClock *b)
{
	Size		a_size;
	Size		b_size;
	const uint8 *a_entries = repl_ml_clock_entries(a, &a_size);
	const uint8 *b_entries = repl_ml_clock_entries(b, &b_size);

	return a_size == b_size && memcmp(a_entries, b_entries, a_size) == 0;
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
					 psprintf("The counter of node " UINT64_FORMAT " is out of range; counters are "
							  "1 to " UINT64_FORMAT ".",
							  node, REPL_ML_MAX_COUNTER));
	/* a clock has one form only: equality and hash are those of the bytes */
	if (node == input->last_node)
		refuse_input(input, ERRCODE_INVALID_TEXT_REPRESENTATION,
					 psprintf("Node " UINT64_FORMAT " appears more than once.", node));
	if (node < input->last_node)
		refuse_input(input, ERRCODE_INVALID_TEXT_REPRESENTATION,
					 psprintf("Node " UINT64_FORMAT " comes after node "
							  UINT64_FORMAT "; nodes must be in ascending order.",
							  node, input->last_node));

	input->entries[input->count].node = (uint16) node;
	input->entries[input->count].counter = counter;
	input->last_node = node;
	input->count++;
}

/*
 * Reads marks, the first semicolon being read, up to what cannot be one.
 */
static void
read_text_marks(ClockInput *input)
{
	int			room = 4;

	input->marks.all = palloc(room * sizeof(ReplMlMark));
	do
	{
		if (input->marks.count == REPL_ML_MAX_MARKS)
			refuse_input(input, ERRCODE_INVALID_TEXT_REPRESENTATION,
						 psprintf("A clock can have at most %d marks.", REPL_ML_MAX_MARKS));
		if (input->marks.count == room)
			input->marks.all = repalloc(input->marks.all, (room *= 2) * sizeof(ReplMlMark));
		read_text_mark(input, &input->marks.all[input->marks.count++]);
	} while (skip_token(input, ';'));
}

/*
 * Reads the column's hash, "=", and what the mark says.
 */
static void
read_text_mark(ClockInput *input, ReplMlMark *mark)
{
	static const char *const digits = "0123456789abcdef";

	memset(mark, 0, sizeof(*mark));
	skip_blanks(input);
	if (strspn(input->next, digits) != 8)
		refuse_syntax(input, "eight hexadecimal digits");
	for (int i = 0; i < 8; i++)
		mark->column = mark->column << 4 | (uint32) (strchr(digits, *input->next++) - digits);
	expect_token(input, '=');
	mark->is_counter = skip_token(input, 'c');
	if (mark->is_counter)
		read_text_contributions(input, mark);
	else
	{
		if (!skip_token(input, 'i'))
			refuse_syntax(input, "\"c\" or \"i\"");
		mark->dot = read_mark_entry(input);
	}
}

/*
 * Reads node:counter=sum,...; there may be none.
 */
static void
read_text_contributions(ClockInput *input, ReplMlMark *mark)
{
	mark->contributions = palloc(REPL_ML_MAX_CLOCK_ENTRIES * sizeof(ReplMlContribution));
	skip_blanks(input);
	if (*input->next == ';' || *input->next == '}')
		return;
	do
	{
		ReplMlContribution *contribution = &mark->contributions[mark->count++];

		if (mark->count > REPL_ML_MAX_CLOCK_ENTRIES)
			refuse_input(input, ERRCODE_INVALID_TEXT_REPRESENTATION,
						 psprintf("A mark can have at most %d nodes.", REPL_ML_MAX_CLOCK_ENTRIES));
		contribution->write = read_mark_entry(input);
		expect_token(input, '=');
		contribution->sum = read_sum(input);
	} while (skip_token(input, ','));
}

/*
 * Reads node:counter of a mark.  Whether the clock knows of it is checked at
 * the end.
 */
static ReplMlClockEntry
read_mark_entry(ClockInput *input)
{
	ReplMlClockEntry entry;
	uint64		node = read_number(input);

	expect_token(input, ':');
	entry.counter = read_number(input);
	if (node > REPL_ML_MAX_NODE_ID)
		node = 0;
	entry.node = (uint16) node;
	return entry;
}

/*
 * Reads the characters of a sum.  Whether they are one is checked at the end.
 */
static char *
read_sum(ClockInput *input)
{
	size_t		length;
	char	   *sum;

	skip_blanks(input);
	length = strspn(input->next, *input->next == '[' ? "[]-.,0123456789" : "-.0123456789");
	if (*input->next == '[')
		length = Min(length, strcspn(input->next, "]") + 1);
	if (length == 0)
		refuse_syntax(input, "a number or \"[\"");
	sum = pnstrdup(input->next, length);
	input->next += length;
	return sum;
}

/* Appends the text form of marks, which read_text_marks reads. */
static void
append_marks(StringInfo text, const ReplMlMarks *marks)
{
	for (int i = 0; i < marks->count; i++)
	{
		const ReplMlMark *mark = &marks->all[i];

		appendStringInfo(text, ";%08x=%c", mark->column, mark->is_counter ? 'c' : 'i');
		if (!mark->is_counter)
			appendStringInfo(text, "%u:" UINT64_FORMAT, mark->dot.node, mark->dot.counter);
		for (int j = 0; j < mark->count; j++)
			appendStringInfo(text, "%s%u:" UINT64_FORMAT "=%s", j > 0 ? "," : "",
							 mark->contributions[j].write.node,
							 mark->contributions[j].write.counter,
							 mark->contributions[j].sum);
	}
}

/* Reads the rest of a binary clock: its marks, and checks them. */
static void
read_binary_marks(ClockInput *input, StringInfo message, const ReplMlClock *clock)
{
	int			rest = message->len - message->cursor;
	const char *problem;
	Size		size;

	if (rest <= 4 || (size = (Size) pq_getmsgint(message, 4)) != (Size) rest - 4)
		refuse_input(input, ERRCODE_INVALID_BINARY_REPRESENTATION,
					 psprintf("The last %d bytes are no marks.", rest));
	if (size > REPL_ML_MAX_MARKS_SIZE)
		refuse_input(input, ERRCODE_INVALID_BINARY_REPRESENTATION,
					 psprintf("The marks have %zu bytes; the limit is %d.", size,
							  REPL_ML_MAX_MARKS_SIZE));
	problem = repl_ml_marks_decode((const uint8 *) pq_getmsgbytes(message, size), size, clock,
								   &input->marks);
	if (problem != NULL)
		refuse_input(input, ERRCODE_INVALID_BINARY_REPRESENTATION, problem);
}

/*
 * Makes a clock of what was read, and checks its marks, which may come before
 * entries they name.
 */
static ReplMlClock *
finish_input(ClockInput *input)
{
	ReplMlClock *clock = repl_ml_clock_from_entries(input->entries, input->count);
	const char *problem;

	if (input->marks.count == 0)
		return clock;
	problem = repl_ml_marks_problem(&input->marks, clock);
	if (problem != NULL)
		refuse_input(input, ERRCODE_INVALID_TEXT_REPRESENTATION, problem);
	return repl_ml_marks_attach(clock, &input->marks);
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
 * Refuses input with a detail that says why.  Whatever is wrong with binary
 * input has the one SQLSTATE that clients know for it.
 */
static void
refuse_input(const ClockInput *input, int sqlstate, const char *detail)
{
	if (input->text == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_BINARY_REPRESENTATION),
				 errmsg("invalid binary vector clock"),
				 errdetail_internal("%s", detail),
				 errhint("Send it in the form that repl_ml.vclock_send() gives.")));
	ereport(ERROR,
			(errcode(sqlstate),
			 errmsg("invalid vector clock: \"%s\"", input->text),
			 errdetail_internal("%s", detail),
			 errhint("Write it as in '{1:829,3:830}', with the nodes in ascending order.")));
}
