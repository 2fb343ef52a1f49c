/*
 * settle.c
 *		Tells differences from changes that are on their way, by the clocks of the
 *		rows and what each member has applied; and says what a difference is.
 *
 * Called by compare.c with keys whose rows were not the same in two scans that
 * did not see the same moment.  They are looked at again, in rounds.  In each
 * round every member says what it has under these keys, a row or a tombstone
 * and its clock; after it, all say which positions they have, and before the
 * next round each waits until it has all of these.  So in that round member B
 * has everything that member A had in the last one.  If what B has then knows
 * A's version, or is A's version with the same content, nothing was lost on
 * the way from A to B, however often the row is written.  If that holds between
 * all members the key is settled, as it is when all have the same.  If B does
 * not know what A had, in two rounds in a row, it is a difference.
 *
 * That B has it and does not show it yet is no difference, either: a commit that
 * waits to be acknowledged is applied elsewhere before it is visible on its own
 * node (B tells the counter up to which its own have ended); an evicted row is
 * gone before its eviction is announced (A says so); a change whose row a client
 * has locked is put aside until he lets it go (B says so); a deletion whose tombstone
 * has been removed everywhere is not known any more (B tells up to where).
 * Such a round says nothing, and one is made again.  What no round has decided
 * when the time is over is on its way, and said to be.  The time is that of the
 * whole comparison: where members are written faster than they catch up, it is not
 * spent for each batch anew.
 *
 * Not here: what a member knows of a key (known.c).  No locks.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "libpq/pqformat.h"
#include "miscadmin.h"
#include "storage/latch.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"
#include "utils/wait_event.h"

#include "compat.h"
#include "read/read.h"
#include "verify/verify.h"

#define FAILURES_NEEDED		2
#define ANSWER_MS			30000	/* beside what it takes to catch up */
#define LEAST_PATIENCE_MS	1
#define CONFIRM_MS			5000	/* at least, to confirm what one round has
									 * found */
#define CONFIRMATIONS_MS	15000	/* beyond the deadline, for all keys that have
									 * failed a round */
#define PAUSE_MS			50	/* between rounds that decide nothing, growing */
#define LONGEST_PAUSE_MS	500

/* What has to be known of a member to judge what it shows, in one round. */
typedef struct Standing
{
	const ReplMlClock *lacking; /* positions it has not caught up with */
	uint64		safe;			/* all of its own writes up to it are shown */
	bool		announces;		/* it has evictions to announce */
	const ReplMlClock *floor;	/* tombstones up to it may be gone */
} Standing;

/* How two sights of a key, at A before and at B now, are related. */
typedef enum PairResult
{
	PASSED,						/* B knows what A had */
	FAILED,
	UNCLEAR
} PairResult;

/* One round's question to this node. */
typedef struct OwnRound
{
	ReplMlComparison *comparison;
	ArrayType  *keys;
	const ReplMlClock *wanted;
	int			patience;
	ReplMlDetails details;
} OwnRound;

static PairResult judge_pair(const ReplMlComparison *comparison, const ReplMlSuspect *suspect,
							 const Standing *before, const Standing *now, int a, int b);

/* ---- equality ---- */

/* Says whether two clocks are the same to the byte, with what they keep for columns. */
bool
repl_ml_settle_same_clocks(const ReplMlClock *a, const ReplMlClock *b)
{
	return a != NULL && b != NULL && VARSIZE_ANY_EXHDR(a) == VARSIZE_ANY_EXHDR(b) &&
		memcmp(VARDATA_ANY(a), VARDATA_ANY(b), VARSIZE_ANY_EXHDR(a)) == 0;
}

/* Says whether two rows have the same content. */
static bool
have_same_content(const ReplMlSight *a, const ReplMlSight *b)
{
	return a->content.lane[0] == b->content.lane[0] && a->content.lane[1] == b->content.lane[1];
}

/* Says whether two sights are of the same row, or both of none. */
static bool
are_same(const ReplMlSight *a, const ReplMlSight *b)
{
	if (a->kind != 'R' || b->kind != 'R')
		return a->kind != 'R' && b->kind != 'R';
	return have_same_content(a, b) && repl_ml_settle_same_clocks(a->clock, b->clock);
}

/* Says whether all members that are compared have the same. */
bool
repl_ml_settle_is_equal(const ReplMlComparison *comparison, const ReplMlSight *sights)
{
	for (int i = 1; i < comparison->count; i++)
	{
		if (repl_ml_compare_is_compared(comparison, i) && !are_same(&sights[0], &sights[i]))
			return false;
	}
	return true;
}

/* ---- a round ---- */

/* Returns the keys as an array of all of their texts. */
ArrayType *
repl_ml_settle_key_array(const ReplMlComparison *comparison, List *suspects)
{
	int			natts = comparison->key_natts;
	Datum	   *texts = palloc(Max(list_length(suspects), 1) * natts * sizeof(Datum));
	int			count = 0;
	ListCell   *lc;

	foreach(lc, suspects)
	{
		for (int i = 0; i < natts; i++)
			texts[count++] = CStringGetTextDatum(((ReplMlSuspect *) lfirst(lc))->key[i]);
	}
	return construct_array(texts, count, TEXTOID, -1, false, TYPALIGN_INT);
}

/* This node's part of a round. */
static StringInfo
look_here(void *argument)
{
	OwnRound   *round = argument;
	StringInfo	answer;

	/* the verifier has none; queries take their own on top of it */
	PushActiveSnapshot(GetTransactionSnapshot());
	answer = repl_ml_known_keys(&round->comparison->inquiry, round->keys, round->wanted,
								round->patience, round->details);
	PopActiveSnapshot();
	return answer;
}

/* Reads a text with its length. */
static char *
read_text(StringInfo answer)
{
	int			size = (int) pq_getmsgint(answer, 4);

	return pnstrdup(pq_getmsgbytes(answer, size), size);
}

/* Reads what a member knows of one key, of a table with so many columns. */
static void
read_sight(StringInfo answer, ReplMlSight *sight, ReplMlDetails details, int columns)
{
	*sight = (ReplMlSight) {.kind = pq_getmsgbyte(answer)};
	if (sight->kind == 'R')
		sight->content = repl_ml_compare_read_digest(answer);
	if (sight->kind != 'A')
		repl_ml_compare_read_clock(answer, sight);
	sight->waits = pq_getmsgbyte(answer) != 0;
	if (details == REPL_ML_DETAILS_NONE)
		return;
	sight->parked = pq_getmsgint64(answer);
	if (sight->kind != 'R' || details == REPL_ML_DETAILS_PARKED)
		return;
	sight->columns = palloc(columns * sizeof(uint64));
	for (int i = 0; i < columns; i++)
		sight->columns[i] = pq_getmsgint64(answer);
	sight->row = read_text(answer);
}

/* Returns how many columns a row has, by its signature. */
static int
count_columns(const ReplMlComparison *comparison)
{
	int			count = 0;

	for (const char *c = comparison->inquiry.signature; *c != '\0'; c++)
		count += *c == '\n';
	return count;
}

/* Takes member "i"'s answer of a round into the suspects' sights. */
static void
read_round(ReplMlComparison *comparison, int i, StringInfo answer, List *suspects,
		   Standing *standing, ReplMlDetails details)
{
	int			columns = count_columns(comparison);
	ListCell   *lc;

	standing->lacking = repl_ml_clock_from_text(read_text(answer));
	standing->safe = pq_getmsgint64(answer);
	foreach(lc, suspects)
		read_sight(answer, &((ReplMlSuspect *) lfirst(lc))->now[i], details, columns);
	standing->announces = pq_getmsgbyte(answer) != 0;
	standing->floor = repl_ml_clock_from_text(read_text(answer));
}

/* Returns how long members may still wait to look at these keys, in ms. */
static int
find_patience(const ReplMlComparison *comparison, List *suspects)
{
	long		left = TimestampDifferenceMilliseconds(GetCurrentTimestamp(), comparison->deadline);
	long		least = LEAST_PATIENCE_MS;
	ListCell   *lc;

	foreach(lc, suspects)
	{
		if (((ReplMlSuspect *) lfirst(lc))->failures > 0)
			least = CONFIRM_MS;
	}
	return (int) Max(Min(left, INT_MAX / 2), least);
}

/*
 * Lets all members look at the suspects' keys, as soon as they have what is
 * wanted; sets the sights "now", and their standings.
 */
static void
look_everywhere(ReplMlComparison *comparison, List *suspects, const ReplMlClock *wanted,
				Standing *standings, ReplMlDetails details)
{
	OwnRound	own = {.comparison = comparison,
		.keys = repl_ml_settle_key_array(comparison, suspects),
	.wanted = wanted,.patience = find_patience(comparison, suspects),.details = details};
	Oid			output;
	bool		is_varlena;
	ReplMlPartQuestion question = {.function = "verify_keys",.nparams = 4,.local = look_here,
		.argument = &own,
		.deadline = TimestampTzPlusMilliseconds(GetCurrentTimestamp(),
												(int64) own.patience + ANSWER_MS),
		.params = {NULL, repl_ml_clock_to_text(wanted), psprintf("%d", own.patience),
		psprintf("%d", details)}};
	ListCell   *lc;

	getTypeOutputInfo(TEXTARRAYOID, &output, &is_varlena);
	question.params[0] = OidOutputFunctionCall(output, PointerGetDatum(own.keys));
	repl_ml_compare_ask(comparison, &question);
	foreach(lc, suspects)
		((ReplMlSuspect *) lfirst(lc))->now = palloc0(comparison->count * sizeof(ReplMlSight));
	for (int i = 0; i < comparison->count; i++)
	{
		if (question.answers[i] != NULL)
			read_round(comparison, i, question.answers[i], suspects, &standings[i], details);
	}
}

/* ---- positions ---- */

/* Returns these positions without those of nodes that are not waited for. */
static ReplMlClock *
of_members(const ReplMlComparison *comparison, const ReplMlClock *positions)
{
	int			count = 0;
	ReplMlClockEntry *entries =
		palloc(Max(repl_ml_clock_count(positions), 1) * sizeof(ReplMlClockEntry));

	for (int i = 0; i < repl_ml_clock_count(positions); i++)
	{
		ReplMlClockEntry entry = repl_ml_clock_entry(positions, i);
		bool		is_member = false;

		for (int j = 0; j < comparison->count; j++)
			is_member |= comparison->members[j].node_id == entry.node &&
				!comparison->members[j].joins;
		if (is_member)
			entries[count++] = entry;
	}
	return repl_ml_clock_from_entries(entries, count);
}

/* Asked beside the others: this node's own positions. */
static void
take_positions(void *argument)
{
	*(ReplMlClock **) argument = repl_ml_positions_to_share(true);
}

/* Returns the positions that all members have now, taken together. */
static ReplMlClock *
ask_positions(ReplMlComparison *comparison)
{
	char	  **dsns = palloc(comparison->count * sizeof(char *));
	char	  **answers = palloc0(comparison->count * sizeof(char *));
	ReplMlClock *joined = NULL;
	ReplMlQuestions all = {.dsns = dsns,.answers = answers,
		.query = "SELECT " REPL_ML_SCHEMA ".verify_positions()",.meanwhile = take_positions,
		.argument = &joined,.keeps = true,
	.sent_by = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), ANSWER_MS)};

	all.deadline = all.sent_by;
	for (int i = 1; i < comparison->count; i++)
	{
		if (repl_ml_compare_is_compared(comparison, i))
			dsns[all.count++] = comparison->members[i].dsn;
	}
	repl_ml_ask_beside(&all);
	for (int i = 0; i < all.count; i++)
	{
		/* who has not answered will not in the next round, either */
		if (answers[i] != NULL)
			joined = repl_ml_clock_merge(joined, repl_ml_clock_from_text(answers[i]));
	}
	return of_members(comparison, joined);
}

/* ---- judging ---- */

/* Says whether B, now, has to show a write with this clock of its own, or may not yet. */
static bool
may_be_hidden(const ReplMlComparison *comparison, const ReplMlClock *clock, int b,
			  const Standing *standing)
{
	return repl_ml_clock_counter(clock, comparison->members[b].node_id) > standing->safe;
}

/*
 * Says whether what makes B know a version may not have come to it yet.  A row
 * comes from those who wrote it, what is known of a deletion from anybody, as
 * evictions are announced by whoever has found them.
 */
static bool
may_be_on_its_way(const ReplMlSight *had, const ReplMlSight *has, const Standing *standing)
{
	if (had->kind == 'T')
		return repl_ml_clock_count(standing->lacking) > 0;
	for (int i = 0; i < repl_ml_clock_count(had->clock); i++)
	{
		ReplMlClockEntry entry = repl_ml_clock_entry(had->clock, i);

		if ((has->clock == NULL || !repl_ml_clock_covers(has->clock, entry)) &&
			repl_ml_clock_counter(standing->lacking, entry.node) != 0)
			return true;
	}
	return false;
}

/*
 * Says whether two rows with this clock may have been resolved under different
 * rules, of which one has not come yet.
 */
static bool
may_be_resolved(const ReplMlSight *had, const Standing *standing)
{
	return repl_ml_clock_count(had->clock) > 1 && repl_ml_clock_count(standing->lacking) > 0;
}

/*
 * Judges, for judge_pair, a version that A had and that is not part of what B
 * has now.
 */
static PairResult
judge_unknown(const ReplMlSuspect *suspect, const Standing *now, int a, int b)
{
	const ReplMlSight *had = &suspect->before[a];
	const ReplMlSight *has = &suspect->now[b];

	/* both have none, and one of them remembers why */
	if (had->kind == 'T' && has->kind == 'A')
		return PASSED;
	/* a row that was written where the tombstone was gone does not know it */
	if (had->kind == 'T' && has->kind == 'R' && repl_ml_clock_is_within(had->clock, now[b].floor) &&
		!repl_ml_clock_is_within(has->clock, had->clock))
		return PASSED;
	/* it was deleted, perhaps, and the tombstone is gone as well */
	if (has->kind == 'A' && repl_ml_clock_is_within(had->clock, now[b].floor) &&
		!(suspect->now[a].kind == had->kind &&
		  repl_ml_settle_same_clocks(suspect->now[a].clock, had->clock)))
		return UNCLEAR;
	return FAILED;
}

/* Says whether B, in this round, has what A had in the last one. */
static PairResult
judge_pair(const ReplMlComparison *comparison, const ReplMlSuspect *suspect,
		   const Standing *before, const Standing *now, int a, int b)
{
	const ReplMlSight *had = &suspect->before[a];
	const ReplMlSight *has = &suspect->now[b];

	if (had->kind == 0 || had->kind == 'A')
		return PASSED;
	if (had->damaged || has->damaged)
		return are_same(had, has) ? PASSED : FAILED;
	if (has->waits || before[a].announces || (now[b].announces && has->kind == 'A') ||
		may_be_on_its_way(had, has, &now[b]) || may_be_hidden(comparison, had->clock, b, &now[b]))
		return UNCLEAR;
	if (has->clock == NULL || !repl_ml_clock_is_within(had->clock, has->clock))
		return judge_unknown(suspect, now, a, b);
	if (!repl_ml_clock_is_within(has->clock, had->clock))
		return PASSED;
	/* the same version, or its eviction */
	if (had->kind == 'R' && has->kind == 'R')
		return are_same(had, has) ? PASSED :
			may_be_resolved(had, &now[b]) ? UNCLEAR : FAILED;
	return had->kind == 'T' && has->kind == 'R' ? FAILED : PASSED;
}

/* Judges a key after a round: whether any member lacks what another one had. */
static PairResult
judge(const ReplMlComparison *comparison, const ReplMlSuspect *suspect, const Standing *before,
	  const Standing *now)
{
	PairResult	result = PASSED;

	for (int a = 0; a < comparison->count; a++)
	{
		for (int b = 0; b < comparison->count; b++)
		{
			PairResult	pair;

			if (a == b || !repl_ml_compare_is_compared(comparison, a) ||
				!repl_ml_compare_is_compared(comparison, b))
				continue;
			pair = judge_pair(comparison, suspect, before, now, a, b);
			if (pair == FAILED)
				return FAILED;
			if (pair == UNCLEAR)
				result = UNCLEAR;
		}
	}
	return result;
}

/* Returns a copy of a suspect that lasts as long as the comparison. */
static ReplMlSuspect *
keep_suspect(ReplMlComparison *comparison, const ReplMlSuspect *suspect)
{
	MemoryContext old = MemoryContextSwitchTo(comparison->context);
	ReplMlSuspect *kept = palloc0(sizeof(ReplMlSuspect));

	kept->on_its_way = suspect->failures < FAILURES_NEEDED;
	if (suspect->astray != NULL)
		kept->astray = memcpy(palloc(comparison->count * sizeof(bool)), suspect->astray,
							  comparison->count * sizeof(bool));
	kept->key = palloc(comparison->key_natts * sizeof(char *));
	for (int i = 0; i < comparison->key_natts; i++)
		kept->key[i] = pstrdup(suspect->key[i]);
	kept->now = palloc(comparison->count * sizeof(ReplMlSight));
	memcpy(kept->now, suspect->now, comparison->count * sizeof(ReplMlSight));
	for (int i = 0; i < comparison->count; i++)
	{
		const ReplMlClock *clock = kept->now[i].clock;

		if (clock != NULL)
			kept->now[i].clock = memcpy(palloc(VARSIZE_ANY(clock)), clock, VARSIZE_ANY(clock));
	}
	MemoryContextSwitchTo(old);
	return kept;
}

/* Notes a key that differs, or is on its way when the time is over. */
static void
note_difference(ReplMlComparison *comparison, const ReplMlSuspect *suspect)
{
	MemoryContext old;

	if (list_length(comparison->suspects) >= comparison->max_rows)
	{
		comparison->has_more = true;
		return;
	}
	old = MemoryContextSwitchTo(comparison->context);
	comparison->suspects = lappend(comparison->suspects, keep_suspect(comparison, suspect));
	MemoryContextSwitchTo(old);
	comparison->on_its_way += suspect->failures < FAILURES_NEEDED;
	repl_ml_verify_progress(-1, -1, list_length(comparison->suspects));
}

/*
 * Notes, for compare.c, a key of which some member has rows that its index does
 * not lead to; no round could tell, as it goes by the index.
 */
void
repl_ml_settle_astray(ReplMlComparison *comparison, ReplMlSuspect *suspect)
{
	suspect->failures = FAILURES_NEEDED;
	note_difference(comparison, suspect);
}

/*
 * Marks the members whose scan has found the row of a key that is a difference,
 * though they say that they have none.
 */
static void
mark_astray(const ReplMlComparison *comparison, ReplMlSuspect *suspect)
{
	for (int i = 0; i < comparison->count && suspect->scanned != NULL; i++)
	{
		if (suspect->scanned[i] == 0 || suspect->now[i].kind != 'A')
			continue;
		if (suspect->astray == NULL)
			suspect->astray = palloc0(comparison->count * sizeof(bool));
		suspect->astray[i] = true;
	}
}

/*
 * Decides what a round can decide, and returns the keys that are left.
 * "before" is NULL after the first round.
 */
static List *
decide(ReplMlComparison *comparison, List *suspects, const Standing *before, const Standing *now)
{
	List	   *left = NIL;
	ListCell   *lc;

	foreach(lc, suspects)
	{
		ReplMlSuspect *suspect = lfirst(lc);
		PairResult	result = repl_ml_settle_is_equal(comparison, suspect->now) ? PASSED :
			before == NULL ? UNCLEAR : judge(comparison, suspect, before, now);

		suspect->failures = result == FAILED ? suspect->failures + 1 : 0;
		if (result == PASSED)
			comparison->rechecked++;
		else if (suspect->failures >= FAILURES_NEEDED)
		{
			mark_astray(comparison, suspect);
			note_difference(comparison, suspect);
		}
		else
			left = lappend(left, suspect);
	}
	return left;
}

/* Lets some time go by, as what a key waits for is no position. */
static void
pause_before_round(int round)
{
	(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
					 Min(round * PAUSE_MS, LONGEST_PAUSE_MS),
					 wait_event_compat("ReplMlVerifyRound"));
	ResetLatch(MyLatch);
	CHECK_FOR_INTERRUPTS();
}

/*
 * Says whether rounds are to end though some keys are undecided: when the time
 * is over.  What one round has found is confirmed beyond it, but not for ever:
 * where members are busy other keys may fail in each round.
 */
static bool
is_time_over(const ReplMlComparison *comparison, int failing)
{
	TimestampTz end = comparison->deadline;

	if (failing > 0)
		end = TimestampTzPlusMilliseconds(end, CONFIRMATIONS_MS);
	return GetCurrentTimestamp() >= end;
}

/* Notes which members had not caught up in a round. */
static void
note_who_lags(ReplMlComparison *comparison, const Standing *standings)
{
	for (int i = 0; i < comparison->count; i++)
		comparison->members[i].lags = standings[i].lacking != NULL &&
			repl_ml_clock_count(standings[i].lacking) > 0;
}

/* Makes the sights of a round those of the last one; returns how many keys have failed it. */
static int
end_round(List *suspects)
{
	int			failing = 0;
	ListCell   *lc;

	foreach(lc, suspects)
	{
		ReplMlSuspect *suspect = lfirst(lc);

		failing += suspect->failures > 0;
		suspect->before = suspect->now;
	}
	return failing;
}

/*
 * Looks at suspects until each is found to differ or to be the same, or the
 * time is over; notes what differs.  The current memory context is the batch's.
 */
void
repl_ml_settle(ReplMlComparison *comparison, List *suspects)
{
	Standing   *before = NULL;
	ReplMlClock *wanted = repl_ml_clock_empty();
	ListCell   *lc;

	if (comparison->deadline == 0)
		comparison->deadline = TimestampTzPlusMilliseconds(GetCurrentTimestamp(),
														   comparison->patience_ms);
	repl_ml_verify_phase(REPL_ML_VERIFY_RECHECKING);
	for (int round = 1; suspects != NIL; round++)
	{
		Standing   *now = palloc0(comparison->count * sizeof(Standing));
		int			failing;

		look_everywhere(comparison, suspects, wanted, now, REPL_ML_DETAILS_NONE);
		suspects = decide(comparison, suspects, before, now);
		failing = end_round(suspects);
		if (suspects == NIL)
			break;
		note_who_lags(comparison, now);
		if (before != NULL && is_time_over(comparison, failing))
			break;
		if (before != NULL && failing == 0)
			pause_before_round(round);
		before = now;
		wanted = ask_positions(comparison);
	}
	foreach(lc, suspects)
		note_difference(comparison, lfirst(lc));
}

/*
 * Looks at some differences once more, with all that views show of them.  The
 * sights are palloc'd in the current memory context.
 */
void
repl_ml_settle_details(ReplMlComparison *comparison, List *suspects)
{
	Standing   *standings = palloc0(comparison->count * sizeof(Standing));

	look_everywhere(comparison, suspects, repl_ml_clock_empty(), standings, REPL_ML_DETAILS_ALL);
}

/* Finds which of some differences a parked change explains; the rest of their sights stays. */
void
repl_ml_settle_parked(ReplMlComparison *comparison, List *suspects)
{
	Standing   *standings = palloc0(comparison->count * sizeof(Standing));
	List	   *looks = NIL;
	ListCell   *kept;
	ListCell   *look;

	foreach(kept, suspects)
	{
		ReplMlSuspect *copy = palloc0(sizeof(ReplMlSuspect));

		copy->key = ((ReplMlSuspect *) lfirst(kept))->key;
		looks = lappend(looks, copy);
	}
	look_everywhere(comparison, looks, repl_ml_clock_empty(), standings, REPL_ML_DETAILS_PARKED);
	forboth(kept, suspects, look, looks)
	{
		ReplMlSuspect *suspect = lfirst(kept);

		for (int i = 0; i < comparison->count; i++)
			suspect->now[i].parked = ((ReplMlSuspect *) lfirst(look))->now[i].parked;
	}
}

/* ---- verdicts ---- */

/* What a verdict depends on. */
typedef struct Summary
{
	int			rows;
	int			absent;
	bool		parked;
	bool		corrupt;
	bool		buried;			/* a member's tombstone knows a row of another */
	bool		concurrent;
} Summary;

/* Adds how the sights of two members are related. */
static void
summarize_pair(const ReplMlSight *a, const ReplMlSight *b, Summary *summary)
{
	bool		a_knows;
	bool		b_knows;

	if (a->clock == NULL || b->clock == NULL)
		return;
	a_knows = repl_ml_clock_is_within(b->clock, a->clock);
	b_knows = repl_ml_clock_is_within(a->clock, b->clock);
	summary->concurrent |= !a_knows && !b_knows;
	summary->corrupt |= a_knows && b_knows && a->kind == 'R' && b->kind == 'R' && !are_same(a, b);
	summary->buried |= (a->kind == 'T' && b->kind == 'R' && a_knows) ||
		(b->kind == 'T' && a->kind == 'R' && b_knows);
}

/* Returns what the compared members' sights amount to. */
static Summary
summarize(const ReplMlComparison *comparison, const ReplMlSight *sights)
{
	Summary		summary = {0};

	for (int i = 0; i < comparison->count; i++)
	{
		if (sights[i].kind == 0)
			continue;
		summary.rows += sights[i].kind == 'R';
		summary.absent += sights[i].kind != 'R';
		summary.parked |= sights[i].parked != 0;
		summary.corrupt |= sights[i].damaged;
		for (int j = i + 1; j < comparison->count; j++)
		{
			if (sights[j].kind != 0)
				summarize_pair(&sights[i], &sights[j], &summary);
		}
	}
	return summary;
}

/* Returns what kind of difference it is, by a word that views show. */
const char *
repl_ml_settle_verdict(const ReplMlComparison *comparison, const ReplMlSuspect *suspect)
{
	Summary		summary = summarize(comparison, suspect->now);

	if (summary.parked)
		return "parked";
	if (suspect->on_its_way)
		return "lagging";
	if (summary.corrupt || suspect->astray != NULL)
		return "corrupt";
	if (summary.buried)
		return "extra";
	if (summary.concurrent)
		return "concurrent";
	if (summary.absent == 0)
		return "lagging";
	/* nobody remembers a deletion: who has it alone against most has too much */
	return summary.rows < summary.absent ? "extra" : "missing";
}
