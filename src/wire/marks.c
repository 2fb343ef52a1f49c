/*
 * marks.c
 *		Marks: what a row's clock keeps for columns with the merge rules
 *		"counter" and "independent".
 *
 * A clock says of a whole row which writes it knows of.  These two rules need
 * to know more of a column:
 *
 *	independent	the write that last changed the column: its column dot
 *	counter		of every node that changed it, the last write that did, and
 *				the sum of what the node's writes have added
 *
 * A column without a mark has the values that a row has when it is inserted:
 * its column dot is the row's own, or, of a counter, all of its value was
 * added by the row's last write.  So most rows need no mark, and a row that
 * was written by somebody who did not know of the rule has a meaning, too.
 *
 * A sum is exact: a decimal number without exponent, or, for a column that is
 * an array, [number,...], element by element.
 *
 * The bytes, all numbers big-endian; columns sorted, nodes sorted, so that the
 * same marks have the same bytes:
 *
 *	column		4 bytes, then 'i' or 'c'
 *	i			the column dot, as an entry of the clock: 9 bytes
 *	c			1 byte: number of nodes; for each an entry of the clock, 4
 *				bytes of length, and the sum as text
 *
 * Where they are in the clock is clock.c's, their text form vclock.c's; what
 * they are used for is row/share.c's and converge/merge.c's.  No locks, no
 * catalogs, no state.
 */
#include "postgres.h"

#include "lib/stringinfo.h"

#include "compat.h"
#include "wire/wire.h"

#define ENTRY_SIZE	REPL_ML_CLOCK_ENTRY_SIZE

/* bytes while they are read */
typedef struct Input
{
	const uint8 *next;
	Size		left;
} Input;

static bool read_mark(Input *input, ReplMlMark *mark);
static bool read_contributions(Input *input, ReplMlMark *mark);
static const uint8 *take_bytes(Input *input, Size size);
static bool read_uint32(Input *input, uint32 *result);
static bool read_entry(Input *input, ReplMlClockEntry *result);
static const char *mark_problem(const ReplMlMark *mark, const ReplMlClock *clock);
static const char *write_problem(ReplMlClockEntry write, const ReplMlClock *clock);
static bool is_sum(const char *text);
static const char *skip_number(const char *text);
static void write_mark(StringInfo bytes, const ReplMlMark *mark);
static void write_uint32(StringInfo bytes, uint32 value);
static void write_clock_entry(StringInfo bytes, ReplMlClockEntry entry);
static int	compare_marks(const void *a, const void *b);

/*
 * Returns the number by which marks name a column.  Attribute numbers differ
 * between nodes, so it is a hash of the name: FNV-1a, the same on every
 * machine for ever.
 */
uint32
repl_ml_marks_column(const char *name)
{
	uint32		hash = 2166136261u;

	for (; *name != '\0'; name++)
		hash = (hash ^ (uint8) *name) * 16777619u;
	return hash;
}

/*
 * Says whether vclock's input would accept the clock, marks and all.
 * Walsenders and triggers ask it of values that may be damaged, so it never
 * raises an error.
 */
bool
repl_ml_marks_clock_is_whole(const ReplMlClock *clock)
{
	ReplMlMarks marks;
	Size		size;
	const uint8 *bytes;

	if (!repl_ml_clock_is_whole(clock))
		return false;
	bytes = repl_ml_clock_marks(clock, &size);
	return bytes == NULL || repl_ml_marks_decode(bytes, size, clock, &marks) == NULL;
}

/* Returns the marks of a clock; raises an error if they are damaged. */
ReplMlMarks
repl_ml_marks_read(const ReplMlClock *clock)
{
	ReplMlMarks marks = {0};
	Size		size;
	const uint8 *bytes = repl_ml_clock_marks(clock, &size);
	const char *problem;

	if (bytes == NULL)
		return marks;
	problem = repl_ml_marks_decode(bytes, size, clock, &marks);
	if (problem != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_DATA_CORRUPTED),
				 errmsg("stored marks of a vector clock are damaged"),
				 errdetail_internal("%s", problem),
				 errhint(REPL_ML_DAMAGED_HINT)));
	return marks;
}

/* Returns a column's mark; NULL if it has none. */
const ReplMlMark *
repl_ml_marks_find(const ReplMlMarks *marks, uint32 column)
{
	for (int i = 0; i < marks->count; i++)
	{
		if (marks->all[i].column == column)
			return &marks->all[i];
	}
	return NULL;
}

/*
 * Returns a copy of the clock with these marks, which are valid ones of its
 * columns, in any order; they are sorted here.
 */
ReplMlClock *
repl_ml_marks_attach(const ReplMlClock *clock, ReplMlMarks *marks)
{
	StringInfoData bytes;
	ReplMlClock *result;

	if (marks->count > 1)
		qsort(marks->all, marks->count, sizeof(ReplMlMark), compare_marks);
	Assert(repl_ml_marks_problem(marks, clock) == NULL);

	initStringInfo(&bytes);
	for (int i = 0; i < marks->count; i++)
		write_mark(&bytes, &marks->all[i]);
	result = repl_ml_clock_with_marks(clock, (uint8 *) bytes.data, bytes.len);
	pfree(bytes.data);
	return result;
}

/*
 * Reads the bytes of the marks of a clock.  Returns NULL, or a sentence that
 * says what is wrong with them.
 */
const char *
repl_ml_marks_decode(const uint8 *bytes, Size size, const ReplMlClock *clock, ReplMlMarks *marks)
{
	Input		input = {bytes, size};
	int			room = 4;

	marks->count = 0;
	marks->all = palloc(room * sizeof(ReplMlMark));
	while (input.left > 0)
	{
		if (marks->count == REPL_ML_MAX_MARKS)
			return "There are more marks than a table can have columns.";
		if (marks->count == room)
			marks->all = repalloc(marks->all, (room *= 2) * sizeof(ReplMlMark));
		if (!read_mark(&input, &marks->all[marks->count++]))
			return "The bytes of the marks do not have the form of marks.";
	}
	return repl_ml_marks_problem(marks, clock);
}

/*
 * Returns a sentence that says what is wrong with marks that are to be a
 * clock's; NULL if nothing is.
 */
const char *
repl_ml_marks_problem(const ReplMlMarks *marks, const ReplMlClock *clock)
{
	if (marks->count > 0 && repl_ml_clock_count(clock) == 0)
		return "A clock without entries has no marks.";
	for (int i = 0; i < marks->count; i++)
	{
		const char *problem = mark_problem(&marks->all[i], clock);

		if (problem != NULL)
			return problem;
		if (i > 0 && marks->all[i].column <= marks->all[i - 1].column)
			return "The columns of the marks are not in ascending order.";
	}
	return NULL;
}

/* Reads one mark; returns false at bytes that are none. */
static bool
read_mark(Input *input, ReplMlMark *mark)
{
	const uint8 *kind;

	memset(mark, 0, sizeof(*mark));
	if (!read_uint32(input, &mark->column) || (kind = take_bytes(input, 1)) == NULL)
		return false;
	mark->is_counter = *kind == 'c';
	if (mark->is_counter)
		return read_contributions(input, mark);
	return *kind == 'i' && read_entry(input, &mark->dot);
}

/*
 * Reads what each node has added to a counter; returns false at bytes that are
 * something else.
 */
static bool
read_contributions(Input *input, ReplMlMark *mark)
{
	const uint8 *count = take_bytes(input, 1);

	if (count == NULL || *count > REPL_ML_MAX_CLOCK_ENTRIES)
		return false;
	mark->count = *count;
	mark->contributions = palloc(Max(mark->count, 1) * sizeof(ReplMlContribution));
	for (int i = 0; i < mark->count; i++)
	{
		ReplMlContribution *contribution = &mark->contributions[i];
		const uint8 *text;
		uint32		length;

		if (!read_entry(input, &contribution->write) || !read_uint32(input, &length) ||
			(text = take_bytes(input, length)) == NULL)
			return false;

		/* a zero byte would hide what follows it */
		contribution->sum = pnstrdup((const char *) text, length);
		if (strlen(contribution->sum) != length)
			return false;
	}
	return true;
}

/* Returns the next bytes and goes past them; NULL if there are not so many. */
static const uint8 *
take_bytes(Input *input, Size size)
{
	const uint8 *result = input->next;

	if (size > input->left)
		return NULL;
	input->next += size;
	input->left -= size;
	return result;
}

/* Reads a number of four bytes; returns false if there are fewer. */
static bool
read_uint32(Input *input, uint32 *result)
{
	const uint8 *bytes = take_bytes(input, 4);

	if (bytes == NULL)
		return false;
	*result = (uint32) bytes[0] << 24 | (uint32) bytes[1] << 16 | (uint32) bytes[2] << 8 | bytes[3];
	return true;
}

/* Reads an entry of the clock; returns false if there are too few bytes. */
static bool
read_entry(Input *input, ReplMlClockEntry *result)
{
	const uint8 *bytes = take_bytes(input, ENTRY_SIZE);

	if (bytes == NULL)
		return false;
	*result = repl_ml_clock_unpack(bytes);
	return true;
}

/*
 * Returns a sentence that says what is wrong with one mark of this clock; NULL
 * if nothing is.
 */
static const char *
mark_problem(const ReplMlMark *mark, const ReplMlClock *clock)
{
	const char *problem = mark->is_counter ? NULL : write_problem(mark->dot, clock);

	for (int i = 0; i < mark->count && problem == NULL; i++)
	{
		problem = write_problem(mark->contributions[i].write, clock);
		if (problem == NULL && i > 0 &&
			mark->contributions[i].write.node <= mark->contributions[i - 1].write.node)
			problem = "The nodes of a counter's mark are not in ascending order.";
		if (problem == NULL && !is_sum(mark->contributions[i].sum))
			problem =
				"A sum of a counter's mark is not a plain decimal number, nor a list of them.";
	}
	return problem;
}

/*
 * Returns a sentence that says why a mark of this clock cannot name that
 * write; NULL if it can.
 */
static const char *
write_problem(ReplMlClockEntry write, const ReplMlClock *clock)
{
	if (write.node == 0 || write.counter == 0)
		return "A mark has node or counter 0.";
	if (!repl_ml_clock_covers(clock, write))
		return "A mark has a write that the clock does not know of.";
	return NULL;
}

/* Says whether the text is a number, or [number,...]. */
static bool
is_sum(const char *text)
{
	const char *next = text;

	if (*text != '[')
	{
		next = skip_number(text);
		return next != NULL && *next == '\0';
	}
	if (strcmp(text, "[]") == 0)
		return true;
	do
	{
		next = skip_number(next + 1);
	} while (next != NULL && *next == ',');
	return next != NULL && strcmp(next, "]") == 0;
}

/*
 * Returns what follows a number in the one form that numbers have here: no
 * exponent, no plus, no needless zero in front, no negative zero.  NULL if
 * there is none.
 */
static const char *
skip_number(const char *text)
{
	const char *start = text + (*text == '-');
	const char *end = start + strspn(start, "0123456789");

	if (end == start || (*start == '0' && end > start + 1))
		return NULL;
	if (*end == '.')
	{
		size_t		digits = strspn(end + 1, "0123456789");

		if (digits == 0)
			return NULL;
		end += 1 + digits;
	}
	if (start > text && strspn(start, "0.") >= (size_t) (end - start))
		return NULL;
	return end;
}

/* Appends the bytes of a mark, which read_mark reads. */
static void
write_mark(StringInfo bytes, const ReplMlMark *mark)
{
	write_uint32(bytes, mark->column);
	appendStringInfoChar(bytes, mark->is_counter ? 'c' : 'i');
	if (!mark->is_counter)
	{
		write_clock_entry(bytes, mark->dot);
		return;
	}
	appendStringInfoChar(bytes, (char) mark->count);
	for (int i = 0; i < mark->count; i++)
	{
		write_clock_entry(bytes, mark->contributions[i].write);
		write_uint32(bytes, strlen(mark->contributions[i].sum));
		appendStringInfoString(bytes, mark->contributions[i].sum);
	}
}

/* Appends a number as four bytes. */
static void
write_uint32(StringInfo bytes, uint32 value)
{
	for (int shift = 24; shift >= 0; shift -= 8)
		appendStringInfoChar(bytes, (char) (value >> shift));
}

/* Appends an entry of the clock. */
static void
write_clock_entry(StringInfo bytes, ReplMlClockEntry entry)
{
	uint8		packed[ENTRY_SIZE];

	repl_ml_clock_pack(packed, entry);
	appendBinaryStringInfo(bytes, (char *) packed, ENTRY_SIZE);
}

/* Orders marks by column, for qsort: the same marks have the same bytes. */
static int
compare_marks(const void *a, const void *b)
{
	uint32		x = ((const ReplMlMark *) a)->column;
	uint32		y = ((const ReplMlMark *) b)->column;

	return x < y ? -1 : x > y;
}
