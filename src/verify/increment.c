/*
 * increment.c
 *		Compares a table by what has changed since it was compared last: at a cost in
 *		proportion to that.
 *
 * A backend does it, for compare.c, which makes a full pass if this one does not
 * tell that nothing differs but some keys.  All members add up all rows that they
 * see, each under a snapshot that it keeps, but read only pages that have changed
 * (changes.c); and tell the keys of what is news.  Then all say, under the same
 * snapshots, what they have under any of these keys, and that is taken away from
 * the sums.  If what is left is the same everywhere, all rows are but those with
 * these keys, but for a collision of 128 bits; they are looked at by themselves,
 * by settle.c if they are not the same.
 *
 * A version that a member sees and another does not is above what all members
 * have, so it is news where it is seen: what is on its way makes no full pass.
 * What is not on its way does: the rows left differ.  Only a row that has
 * changed without its page being written is not seen.
 *
 * Both questions are asked in one transaction of each member.  No locks of ours
 * are held while the others are waited for.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "libpq/pqformat.h"
#include "miscadmin.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/hsearch.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"

#include "verify/verify.h"

#define MOST_NEWS		50000	/* keys, of all members */
#define END_MS			10000

/* One such comparison. */
typedef struct Increment
{
	ReplMlComparison *comparison;
	Snapshot	snapshot;		/* this node's */
	ReplMlChunk *left;			/* of each member, the rows without the keys */
	HTAB	   *seen;			/* of these keys' hashes */
	List	   *news;			/* of ReplMlSuspect: a key each */
	ArrayType  *keys;			/* of all of them */
	const char *why;			/* there is to be a full pass; NULL: there is not */
} Increment;

/* ---- sums ---- */

/* This node's part of the first question. */
static StringInfo
sum_here(void *argument)
{
	Increment  *increment = argument;

	return repl_ml_changes_sum(&increment->comparison->inquiry,
							   repl_ml_clock_from_text(increment->comparison->stable),
							   increment->snapshot);
}

/* Takes the keys that a member has told; returns false if they are too many. */
static bool
read_news(Increment *increment, StringInfo answer)
{
	while (answer->cursor < answer->len)
	{
		ReplMlDigest digest;
		char	  **key = repl_ml_compare_read_key(increment->comparison->key_natts, answer,
												   &digest);
		ReplMlSuspect *suspect;
		bool		found;

		CHECK_FOR_INTERRUPTS();
		(void) hash_search(increment->seen, &digest, HASH_ENTER, &found);
		if (found)
			continue;
		suspect = palloc0(sizeof(ReplMlSuspect));
		suspect->key = key;
		increment->news = lappend(increment->news, suspect);
	}
	return list_length(increment->news) <= MOST_NEWS;
}

/* Takes a member's sum; returns why there is to be a full pass, or NULL. */
static const char *
read_sum(Increment *increment, int i, StringInfo answer)
{
	ReplMlCompared *member = &increment->comparison->members[i];

	switch (pq_getmsgbyte(answer))
	{
		case REPL_ML_CHANGES_ADDED:
			break;
		case REPL_ML_CHANGES_UNKNOWN:
			return psprintf("node \"%s\" does not know what has changed", member->name);
		default:
			return psprintf("too much has changed on node \"%s\"", member->name);
	}
	increment->comparison->hashed_rows += pq_getmsgint64(answer);
	increment->left[i].rows = pq_getmsgint64(answer);
	increment->left[i].sum = repl_ml_compare_read_digest(answer);
	member->rows = increment->left[i].rows;
	return read_news(increment, answer) ? NULL : "too much has changed";
}

/* Lets all members add up their rows; returns why there is to be a full pass, or NULL. */
static const char *
sum_everywhere(Increment *increment)
{
	ReplMlComparison *comparison = increment->comparison;
	ReplMlPartQuestion question = {.function = "verify_changes",.nparams = 1,
		.params = {comparison->stable},.local = sum_here,.argument = increment,
	.deadline = DT_NOEND,.turn = REPL_ML_TURN_FIRST};
	const char *why = NULL;

	repl_ml_compare_ask(comparison, &question);
	for (int i = 0; i < comparison->count && why == NULL; i++)
	{
		if (question.answers[i] != NULL)
			why = read_sum(increment, i, question.answers[i]);
	}
	return why;
}

/* ---- news ---- */

/* This node's part of the second question. */
static StringInfo
look_here(void *argument)
{
	Increment  *increment = argument;

	return repl_ml_known_rows(&increment->comparison->inquiry, increment->keys,
							  increment->snapshot);
}

/* Takes what a member has under the keys, and takes it away from its sum. */
static void
read_rows(Increment *increment, int i, StringInfo answer)
{
	ReplMlChunk *left = &increment->left[i];
	ListCell   *lc;

	foreach(lc, increment->news)
	{
		ReplMlSight *sight = &((ReplMlSuspect *) lfirst(lc))->now[i];
		ReplMlDigest row;

		sight->kind = pq_getmsgbyte(answer);
		if (sight->kind != 'R')
			continue;
		row = repl_ml_compare_read_digest(answer);
		left->rows--;
		left->sum.lane[0] -= row.lane[0];
		left->sum.lane[1] -= row.lane[1];
		sight->content = repl_ml_compare_read_digest(answer);
		repl_ml_compare_read_clock(answer, sight);
	}
}

/* Lets all members look at the keys that are news. */
static void
look_everywhere(Increment *increment)
{
	ReplMlComparison *comparison = increment->comparison;
	ReplMlPartQuestion question = {.function = "verify_news",.nparams = 1,.local = look_here,
	.argument = increment,.deadline = DT_NOEND,.turn = REPL_ML_TURN_LAST};
	Oid			output;
	bool		is_varlena;
	ListCell   *lc;

	increment->keys = repl_ml_settle_key_array(comparison, increment->news);
	getTypeOutputInfo(TEXTARRAYOID, &output, &is_varlena);
	question.params[0] = OidOutputFunctionCall(output, PointerGetDatum(increment->keys));
	foreach(lc, increment->news)
		((ReplMlSuspect *) lfirst(lc))->now = palloc0(comparison->count * sizeof(ReplMlSight));
	repl_ml_compare_ask(comparison, &question);
	for (int i = 0; i < comparison->count; i++)
	{
		if (question.answers[i] != NULL)
			read_rows(increment, i, question.answers[i]);
	}
}

/* Ends the members' transactions, in which they have written what they remember. */
static void
end_transactions(Increment *increment)
{
	ReplMlComparison *comparison = increment->comparison;
	char	  **dsns = palloc(comparison->count * sizeof(char *));
	char	  **answers = palloc0(comparison->count * sizeof(char *));
	ReplMlQuestions all = {.dsns = dsns,.answers = answers,.query = "COMMIT",
	.keeps = true,.goes_on = true};

	for (int i = 1; i < comparison->count; i++)
	{
		if (repl_ml_compare_is_compared(comparison, i))
			dsns[all.count++] = comparison->members[i].dsn;
	}
	all.sent_by = all.deadline = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), END_MS);
	repl_ml_ask_beside(&all);
}

/* Says whether what is left is the same on all members that are compared. */
static bool
is_left_equal(const Increment *increment)
{
	for (int i = 1; i < increment->comparison->count; i++)
	{
		if (repl_ml_compare_is_compared(increment->comparison, i) &&
			!repl_ml_compare_are_equal(&increment->left[0], &increment->left[i]))
			return false;
	}
	return true;
}

/* Asks the two questions; returns why there is to be a full pass, or NULL. */
static const char *
ask(Increment *increment)
{
	const char *why = sum_everywhere(increment);

	if (why == NULL && increment->news != NIL)
		look_everywhere(increment);
	else
		end_transactions(increment);
	if (why == NULL && !is_left_equal(increment))
		why = "rows differ that are not on their way";
	return why;
}

/* ---- all of it ---- */

/* Asks, and leaves no transaction of others and no snapshot behind, whatever happens. */
static void
ask_and_end(Increment *increment)
{
	increment->snapshot = RegisterSnapshot(GetLatestSnapshot());
	PG_TRY();
	{
		increment->why = ask(increment);
	}
	PG_CATCH();
	{
		repl_ml_ask_end();
		PG_RE_THROW();
	}
	PG_END_TRY();
	UnregisterSnapshot(increment->snapshot);
}

/* Returns those of the keys whose rows are not the same everywhere. */
static List *
find_suspects(const Increment *increment)
{
	List	   *suspects = NIL;
	ListCell   *lc;

	foreach(lc, increment->news)
	{
		ReplMlSuspect *suspect = lfirst(lc);

		if (!repl_ml_settle_is_equal(increment->comparison, suspect->now))
			suspects = lappend(suspects, suspect);
	}
	return suspects;
}

/*
 * Compares the table by what has changed; returns false if a full pass is to be
 * made, and sets why.  The current memory context is the comparison's.
 */
bool
repl_ml_increment_compare(ReplMlComparison *comparison)
{
	MemoryContext old = MemoryContextSwitchTo(comparison->batch);
	HASHCTL		ctl = {.keysize = sizeof(ReplMlDigest),.entrysize = sizeof(ReplMlDigest),
	.hcxt = comparison->batch};
	Increment	increment = {.comparison = comparison,
		.left = palloc0(comparison->count * sizeof(ReplMlChunk)),
		.seen = hash_create("repl_ml keys that are news", 1024, &ctl,
							HASH_ELEM | HASH_BLOBS | HASH_CONTEXT)
	};

	ask_and_end(&increment);
	if (increment.why == NULL)
		repl_ml_settle(comparison, repl_ml_compare_distinct(comparison,
															find_suspects(&increment)));
	else
		comparison->became_full = MemoryContextStrdup(comparison->context, increment.why);
	MemoryContextSwitchTo(old);
	MemoryContextReset(comparison->batch);
	return increment.why == NULL;
}
