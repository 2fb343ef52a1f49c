/*
 * election.c
 *		How the lease of strong tables comes here: from who has it, or, where that is gone, by
 *		the votes of a majority.
 *
 * Whoever is asked and does not have it says where it went.  A holder that does not answer is
 * gone; then the node that has most of what was written stands for the next round.  It
 * is elected by more than half of those whom each voter counts (repl_ml.number_view), and
 * begins when as many have accepted the round with its base (sql/parts/strong.sql).
 *
 * The process of tenure.c.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "common/pg_prng.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

#include "commit/commit.h"
#include "compat.h"
#include "group/tenure_private.h"
#include "read/read.h"
#include "server/server.h"
#include "wire/wire.h"

#define SILENCE_MS			1000	/* a holder that has not answered by then is gone */
#define SURVEY_MS			500 /* so long others have to answer */
#define MOST_WAITS			2	/* for another candidate */
#define PATIENCE_US			UINT64CONST(2500000)	/* so long nobody is refused, if a majority can
													 * be reached */
#define GIFT_US				UINT64CONST(100000) /* who is mistaken for the holder asks so often */
#define TELL_US				UINT64CONST(1000000)	/* who has not heard is told so often */
#define TELL_MS				250

/* A round has the id of its candidate in it: no two nodes stand for the same. */
#define NEXT_ROUND(round, node) ((((round) >> 16) + 1) << 16 | (node))

/* A member that can be asked. */
typedef struct Voter
{
	int			node_id;
	char	   *node_name;
	char	   *dsn;
} Voter;

/* What a member says of the lease: repl_ml.lease_state(). */
typedef struct Word
{
	int			node;
	int64		promised;
	int64		accepted;
	Epoch		epoch;
	int			holder;
	bool		unclean;
	ReplMlClock *places;		/* up to where it has what each node wrote */
} Word;

static ReplMlTenure *const mine = &repl_ml_tenure;

/* The last tenure that it has heard of, and who is to be asked for it; 0: not known. */
static Epoch known_epoch = {0};
static int	known_holder = 0;

/* The members that have heard that a round of this node's has begun, and which that is. */
static List *told = NIL;
static int64 told_round = 0;

static bool outvoted = false;	/* some member has voted for a later round, see confirm */
static uint64 failing = 0;		/* since when nobody could be elected, monotonic µs; 0: it has
								 * not been tried in vain */

static List *list_voters(void);
static char **ask_voters(const List *voters, const char *query, int nparams,
						 const char *const *params, int patience, char ***errors);
static void ask_holder(void);
static Word *read_word(int node, const char *answer);
static void survey(void);
static void choose(List *words, const List *voters, int64 promised, int gone);
static char **tell(const List *voters, int patience);
static bool confirm(const List *voters);
static void stand(const List *voters, int64 round, int gone);

/* Called by tenure.c: the row of this node says so. */
void
repl_ml_election_note(Epoch epoch, int holder)
{
	if (is_after(known_epoch, epoch))
		return;
	known_epoch = epoch;
	known_holder = holder;
}

/* Gets the lease from where it is, finds out where that is, or stands for it. */
void
repl_ml_election_obtain(void)
{
	/* where a prepared transaction has it, it has been this node's before */
	(void) repl_ml_tenure_take_lock(true);
	/* who has voted for a later round takes no part in the one that it knows of */
	if (known_holder == 0 || known_holder == mine->self || repl_ml_tenure_has_forgotten() ||
		mine->state.promised > known_epoch.round)
		survey();
	else
		ask_holder();
}

/* Returns the ready members but this one, of Voter; in the work context. */
static List *
list_voters(void)
{
	static SPIPlanPtr select = NULL;
	List	   *voters = NIL;
	Oid			types[1] = {INT4OID};
	Datum		values[1] = {Int32GetDatum(mine->self)};

	repl_ml_begin();
	(void) repl_ml_spi_plan(&select, "SELECT m.node_id, m.node_name, m.dsn FROM repl_ml.member m"
							" WHERE m.state OPERATOR(pg_catalog.=) 'ready'"
							" AND m.node_id OPERATOR(pg_catalog.<>) $1 ORDER BY m.node_id",
							1, types);
	SPI_execute_plan(select, values, NULL, false, 0);
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		MemoryContext old = MemoryContextSwitchTo(mine->context);
		Voter	   *voter = palloc(sizeof(Voter));

		voter->node_id = pg_strtoint32(repl_ml_spi_text(i, 0));
		voter->node_name = repl_ml_spi_text(i, 1);
		voter->dsn = repl_ml_spi_text(i, 2);
		voters = lappend(voters, voter);
		MemoryContextSwitchTo(old);
	}
	repl_ml_commit();
	MemoryContextSwitchTo(mine->context);
	return voters;
}

/*
 * Asks these members one question; returns an answer for each, NULL where there is none in
 * time, and sets why.
 */
static char **
ask_voters(const List *voters, const char *query, int nparams, const char *const *params,
		   int patience, char ***errors)
{
	int			count = list_length(voters);
	char	  **dsns = palloc((count + 1) * sizeof(char *));
	char	  **answers = palloc0((count + 1) * sizeof(char *));
	TimestampTz deadline = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), patience);
	ReplMlQuestions all = {.count = count,.dsns = dsns,.query = query,.nparams = nparams,
		.params = params,.sent_by = deadline,.deadline = deadline,.keeps = true,
	.answers = answers};

	*errors = palloc0((count + 1) * sizeof(char *));
	all.errors = *errors;
	for (int i = 0; i < count; i++)
		dsns[i] = ((Voter *) list_nth(voters, i))->dsn;
	repl_ml_ask_beside(&all);
	return answers;
}

/* Returns the member with this id; NULL if it is none. */
static Voter *
find_voter(const List *voters, int node)
{
	ListCell   *lc;

	foreach(lc, voters)
	{
		if (((Voter *) lfirst(lc))->node_id == node)
			return lfirst(lc);
	}
	return NULL;
}

/* Follows a pointer to another holder; one that is not newer than what is known leads nowhere. */
static void
follow(Epoch epoch, int holder)
{
	known_holder = 0;
	if (is_after(epoch, known_epoch))
	{
		known_epoch = epoch;
		known_holder = holder;
	}
	else
		/* who has it has not heard yet that it was given it: it asks now */
		pg_usleep(1000);
}

/* Accepts what that member has accepted, if it is later. */
static void
accept_from(Voter *voter)
{
	char	  **errors;
	char	   *answer = ask_voters(list_make1(voter), "SELECT repl_ml.lease_round()", 0, NULL,
									SURVEY_MS, &errors)[0];
	Oid			types[1] = {TEXTOID};
	Datum		values[1];

	if (answer == NULL)
		return;
	values[0] = CStringGetTextDatum(answer);
	repl_ml_begin();
	SPI_execute_with_args("SELECT repl_ml.lease_accept($1::pg_catalog.jsonb)", 1, types, values,
						  NULL, false, 1);
	repl_ml_commit();
	repl_ml_tenure_load();
}

/*
 * Asks the holder, as far as is known who that is, and takes the lease if it gives it.  If it
 * does not answer the others are asked.
 */
static void
ask_holder(void)
{
	Voter	   *voter = find_voter(list_voters(), known_holder);
	char	  **errors;
	char	   *answer;
	const char *params[1] = {psprintf("%d", mine->self)};
	long long	round;
	long long	turn;
	int			holder;
	int			base = 0;

	/* it was dropped, or this node has not heard of it yet */
	answer = voter == NULL ? NULL :
		ask_voters(list_make1(voter), "SELECT repl_ml.lease_ask($1)", 1, params, SILENCE_MS,
				   &errors)[0];
	if (answer == NULL)
	{
		known_holder = 0;
		survey();
	}
	else if (sscanf(answer, "given %lld %lld %n", &round, &turn, &base) == 2 && base > 0)
	{
		/* that was before this node gave it back, of which nobody there has heard yet */
		if (!is_after((Epoch) {round, turn}, mine->state.epoch))
			(void) ask_voters(list_make1(voter), "SELECT repl_ml.lease_want()", 0, NULL, SURVEY_MS,
							  &errors);
		if (round > mine->state.accepted)
			accept_from(voter);
		/* what it was given before it forgot, it may have given away as well */
		if ((repl_ml_tenure_has_forgotten() &&
			 !is_after((Epoch) {round, turn}, known_epoch)) ||
			!repl_ml_tenure_write((Epoch) {round, turn}, mine->self,
								  repl_ml_clock_from_text(answer + base)))
			known_holder = 0;
	}
	else if (sscanf(answer, "elsewhere %lld %lld %d", &round, &turn, &holder) == 3)
		follow((Epoch) {round, turn}, holder);
	/* else it closes: it is asked again as long as somebody waits */
}

/*
 * Called by tenure.c where others take this node for the holder: it may have been given the
 * lease when nobody here waited for it any more, so that nobody has asked for it since.
 */
void
repl_ml_election_find_gift(void)
{
	static uint64 last = 0;
	List	   *voters;
	char	  **answers;
	char	  **errors;

	if (repl_ml_monotonic_now() - last < GIFT_US)
		return;
	mine->lease->mistaken = false;
	voters = list_voters();
	answers = ask_voters(voters, "SELECT repl_ml.lease_state()", 0, NULL, SURVEY_MS, &errors);
	for (int i = 0; i < list_length(voters); i++)
	{
		Voter	   *voter = list_nth(voters, i);
		Word	   *word = read_word(voter->node_id, answers[i]);

		if (word == NULL || word->holder != mine->self ||
			!is_after(word->epoch, mine->state.epoch))
			continue;
		known_epoch = word->epoch;
		known_holder = voter->node_id;
		ask_holder();
		break;
	}
	last = repl_ml_monotonic_now();
}

/* Reads what a member has said; returns NULL if it has said nothing. */
static Word *
read_word(int node, const char *answer)
{
	Word	   *word = palloc0(sizeof(Word));
	long long	numbers[4];
	int			unclean;
	int			at = 0;

	if (answer == NULL ||
		sscanf(answer, "%lld %lld %lld %lld %d %d %n", &numbers[0], &numbers[1], &numbers[2],
			   &numbers[3], &word->holder, &unclean, &at) != 6 || at == 0)
		return NULL;
	word->node = node;
	word->promised = numbers[0];
	word->accepted = numbers[1];
	word->epoch = (Epoch) {numbers[2], numbers[3]};
	word->unclean = unclean != 0;
	word->places = repl_ml_clock_from_text(answer + at);
	return word;
}

/* Returns what this node itself would say. */
static Word *
own_word(void)
{
	Word	   *word;

	repl_ml_begin();
	SPI_execute("SELECT repl_ml.lease_state()", false, 1);
	MemoryContextSwitchTo(mine->context);
	word = read_word(mine->self, repl_ml_spi_text(0, 0));
	repl_ml_commit();
	MemoryContextSwitchTo(mine->context);
	if (word == NULL)
		elog(ERROR, "no row in repl_ml.lease_state");
	return word;
}

/* Returns those members that have said something: nobody waits for the others any more. */
static List *
leave_out_silent(const List *voters, const List *words)
{
	List	   *result = NIL;
	ListCell   *lc;

	foreach(lc, words)
	{
		Voter	   *voter = find_voter(voters, ((Word *) lfirst(lc))->node);

		if (voter != NULL)
			result = lappend(result, voter);
	}
	return result;
}

/* Of two that stand at once one is first the next time. */
static void
stand_back(void)
{
	pg_usleep(1000 + pg_prng_uint64(&pg_global_prng_state) % 30000);
}

/*
 * Nobody can be elected now: those who wait are told if that has been so for a while, or at
 * once where too few members can be reached.
 */
static void
fail(const char *reason)
{
	static uint64 last = 0;
	uint64		now = repl_ml_monotonic_now();

	if (failing == 0 || now - last > PATIENCE_US)
		failing = now;
	last = now;
	if (now - failing > PATIENCE_US || repl_ml_members_is_cut_off())
		repl_ml_tenure_refuse(reason);
}

/*
 * Finds out where the lease is by asking everybody; where it is nobody's, or of a node that
 * does not answer, this one stands for it, or the one that has more.
 */
static void
survey(void)
{
	List	   *voters = list_voters();
	char	  **errors;
	char	  **answers = ask_voters(voters, "SELECT repl_ml.lease_state()", 0, NULL, SURVEY_MS,
									 &errors);
	static int	waits = 0;
	Word	   *last = own_word();
	List	   *words = list_make1(last);
	int64		promised = last->promised;
	bool		answered = false;
	ListCell   *lc;

	foreach(lc, voters)
	{
		Word	   *word = read_word(((Voter *) lfirst(lc))->node_id,
									 answers[foreach_current_index(lc)]);

		if (word == NULL)
			continue;
		words = lappend(words, word);
		promised = Max(promised, word->promised);
		if (is_after(word->epoch, last->epoch))
			last = word;
	}
	foreach(lc, words)
		answered |= ((Word *) lfirst(lc))->node == last->holder;
	known_epoch = last->epoch;
	known_holder = answered && last->holder != mine->self ? last->holder : 0;
	/* it has been given it, and not been told yet */
	if (last->holder == mine->self && last->node != mine->self && !repl_ml_tenure_has_forgotten() &&
		last->epoch.round >= mine->state.promised)
		known_holder = last->node;
	/* a holder whose round is over has to be voted for anew, or another one */
	if (known_holder != 0 && last->epoch.round >= promised)
		return;
	known_holder = 0;
	/* somebody may just be being voted for */
	if (promised > last->epoch.round && waits++ < MOST_WAITS)
	{
		stand_back();
		return;
	}
	waits = 0;
	choose(words, leave_out_silent(voters, words), promised, answered ? 0 : last->holder);
}

/* Says whether one has something of a node that has not answered, which the other lacks. */
static bool
has_more(const Word *one, const Word *other, const List *words)
{
	if (one->accepted != other->accepted)
		return one->accepted > other->accepted;
	for (int i = 0; i < repl_ml_clock_count(one->places); i++)
	{
		ReplMlClockEntry entry = repl_ml_clock_entry(one->places, i);
		bool		answers = false;
		ListCell   *lc;

		foreach(lc, words)
			answers |= ((Word *) lfirst(lc))->node == entry.node;
		if (!answers && entry.counter > repl_ml_clock_counter(other->places, entry.node))
			return true;
	}
	return false;
}

/* Stands for the lease, or has the member do so that has most of what was written. */
static void
choose(List *words, const List *voters, int64 promised, int gone)
{
	Word	   *best = linitial(words);
	char	  **errors;
	ListCell   *lc;

	foreach(lc, words)
	{
		Word	   *word = lfirst(lc);

		if (word->unclean)
			continue;
		if (best->unclean || (has_more(word, best, words) && !has_more(best, word, words)))
			best = word;
	}
	if (best->unclean)
		fail(_("The node that had the lease of strong tables does not answer, and no member that "
			   "does has them as they are to be."));
	else if (best->node == mine->self)
		stand(voters, NEXT_ROUND(promised, mine->self), gone);
	else
	{
		/* when it has it, it is asked for it */
		(void) ask_voters(list_make1(find_voter(voters, best->node)),
						  "SELECT repl_ml.lease_want()", 0, NULL, SURVEY_MS, &errors);
		pg_usleep(20000);
	}
}

/* Returns the answers that there are as an array of jsonb, for SPI. */
static Datum
make_array(char **answers, int count)
{
	Datum	   *texts = palloc((count + 1) * sizeof(Datum));
	int			found = 0;

	for (int i = 0; i < count; i++)
	{
		if (answers[i] != NULL)
			texts[found++] = CStringGetTextDatum(answers[i]);
	}
	return PointerGetDatum(construct_array(texts, found, TEXTOID, -1, false, TYPALIGN_INT));
}

/* Runs a query of our own with one array of answers; returns its value as text, or NULL. */
static char *
evaluate(const char *query, char **answers, int count)
{
	Oid			types[1] = {TEXTARRAYOID};
	Datum		values[1] = {make_array(answers, count)};
	char	   *result = NULL;

	repl_ml_begin();
	SPI_execute_with_args(query, 1, types, values, NULL, false, 1);
	if (SPI_processed == 1 && repl_ml_spi_text(0, 0) != NULL)
		result = MemoryContextStrdup(mine->context, repl_ml_spi_text(0, 0));
	repl_ml_commit();
	MemoryContextSwitchTo(mine->context);
	return result;
}

/*
 * Asks the other members for their votes; returns NULL if a majority, with this node's own, has
 * voted for it, and the round has begun; else why not.
 */
static char *
win(const List *voters, int64 round, int gone)
{
	char	   *question = evaluate(psprintf("SELECT repl_ml.lease_question(" INT64_FORMAT ", %d)"
											 " WHERE $1 IS NOT NULL", round, gone), NULL, 0);
	char	  **errors;
	char	  **answers = ask_voters(voters, question, 0, NULL, SURVEY_MS, &errors);
	char	   *reason = evaluate(psprintf("SELECT repl_ml.lease_win(" INT64_FORMAT
										   ", $1::pg_catalog.jsonb[])", round), answers,
								  list_length(voters));

	repl_ml_tenure_load();
	return reason;
}

/*
 * Begins a round if a majority votes for this node; its first tenure is opened when a majority
 * has accepted it.  "gone" is the last holder that anybody knows of.
 */
static void
stand(const List *voters, int64 round, int gone)
{
	char	   *reason;

	/* its own vote, as any other */
	reason = evaluate(psprintf("SELECT repl_ml.lease_stand(" INT64_FORMAT ", %d)"
							   " WHERE $1 IS NOT NULL", round, gone), NULL, 0);
	repl_ml_tenure_load();
	if (reason == NULL)
		reason = win(voters, round, gone);
	if (reason == NULL)
	{
		mine->lease->elected++;
		mine->confirmed = false;
		(void) confirm(voters);
	}
	else if (strcmp(reason, "later") == 0)
		stand_back();
	else
	{
		fail(psprintf(_("No node has the lease of strong tables, or it does not answer, and too "
						"few members vote for this one. %s"), reason));
		stand_back();
	}
}

/* Tells members of the round that this node has accepted; notes those that have it. */
static char **
tell(const List *voters, int patience)
{
	const char *params[1];
	char	  **errors;
	char	  **answers;
	ListCell   *lc;

	params[0] = evaluate("SELECT repl_ml.lease_round()::pg_catalog.text WHERE $1 IS NOT NULL", NULL,
						 0);
	answers = palloc0((list_length(voters) + 1) * sizeof(char *));
	if (params[0] != NULL)
		answers = ask_voters(voters, "SELECT repl_ml.lease_accept($1::pg_catalog.jsonb)", 1, params,
							 patience, &errors);
	if (told_round != mine->state.opened)
	{
		list_free(told);
		told = NIL;
		told_round = mine->state.opened;
	}
	foreach(lc, voters)
	{
		const char *answer = answers[foreach_current_index(lc)];
		MemoryContext old;

		/* one that has accepted a later round needs nothing of this node either */
		if (answer == NULL || mine->state.opened < mine->state.accepted)
			continue;
		old = MemoryContextSwitchTo(TopMemoryContext);
		told = list_append_unique_int(told, ((Voter *) lfirst(lc))->node_id);
		MemoryContextSwitchTo(old);
	}
	return answers;
}

/*
 * Called by holding.c, too, before a tenure is opened that this process has not begun itself:
 * returns whether a majority has accepted its round, and nobody has voted for a later one.
 */
bool
repl_ml_election_confirm(void)
{
	(void) confirm(list_voters());
	/* who has voted for a later round takes part in none before, and has to be counted in again */
	if (outvoted)
	{
		mine->confirmed = false;
		stand_back();
		known_holder = 0;
		survey();
	}
	return mine->confirmed;
}

/*
 * Called by tenure.c where clients here may write: says whether no member that answers has
 * voted for a later round.  Those that have acknowledge nothing of this one, and may not be
 * able to elect anybody without this node.
 */
bool
repl_ml_election_counts(void)
{
	(void) confirm(list_voters());
	return !outvoted;
}

/*
 * Tells these members of the round; returns whether a majority has accepted it, and notes
 * whether one knows of a later one.
 */
static bool
confirm(const List *voters)
{
	char	  **answers = tell(voters, SURVEY_MS);
	char	   *accepted = evaluate("SELECT repl_ml.lease_open($1::pg_catalog.jsonb[])::"
									"pg_catalog.int4", answers, list_length(voters));
	bool		was_open = mine->state.opened == mine->state.accepted;

	mine->confirmed = accepted != NULL && strcmp(accepted, "1") == 0;
	if (mine->confirmed)
		failing = 0;
	outvoted = false;
	for (int i = 0; i < list_length(voters); i++)
		outvoted |= answers[i] != NULL && strstr(answers[i], "\"later\"") != NULL;
	repl_ml_tenure_load();
	/* whoever waits to know what counts */
	if (mine->confirmed && !was_open)
		(void) tell(voters, TELL_MS);
	return mine->confirmed;
}

/*
 * Called by tenure.c when there is nothing else to do: tells of the round those members that
 * have not heard that it has begun, as the former holder, when it is back.
 */
void
repl_ml_election_tell(void)
{
	static uint64 last = 0;
	List	   *voters = NIL;
	ListCell   *lc;

	if (mine->state.accepted == 0 || mine->state.opened < mine->state.accepted ||
		(mine->state.accepted & 0xFFFF) != mine->self || repl_ml_monotonic_now() - last < TELL_US)
		return;
	last = repl_ml_monotonic_now();
	foreach(lc, list_voters())
	{
		if (told_round != mine->state.opened ||
			!list_member_int(told, ((Voter *) lfirst(lc))->node_id))
			voters = lappend(voters, lfirst(lc));
	}
	if (voters != NIL)
		(void) tell(voters, TELL_MS);
}

/* Returns the id of a member that is a preferred writer, and that this node hears; 0: none. */
static int
find_preferred(void)
{
	static SPIPlanPtr select = NULL;
	Oid			types[1] = {INT4OID};
	Datum		values[1] = {Int32GetDatum(mine->self)};
	int			node = 0;

	repl_ml_begin();
	(void) repl_ml_spi_plan(&select, "SELECT m.node_id FROM repl_ml.member m"
							" WHERE m.preferred_writer AND m.state OPERATOR(pg_catalog.=) 'ready'"
							" AND NOT EXISTS (SELECT FROM repl_ml.member s"
							" WHERE s.node_id OPERATOR(pg_catalog.=) $1 AND s.preferred_writer)"
							" AND repl_ml.hears(m.node_id) ORDER BY m.node_id LIMIT 1", 1, types);
	SPI_execute_plan(select, values, NULL, false, 1);
	if (SPI_processed == 1)
		node = pg_strtoint32(repl_ml_spi_text(0, 0));
	repl_ml_commit();
	MemoryContextSwitchTo(mine->context);
	return node;
}

/*
 * Called by tenure.c where clients here have not written for a while: has the preferred writer
 * ask for the lease, unless this node is one, or some client has the lease all the same.
 */
void
repl_ml_election_offer(void)
{
	int			node = find_preferred();
	Voter	   *voter = node == 0 ? NULL : find_voter(list_voters(), node);
	char	  **errors;

	if (voter == NULL || !repl_ml_tenure_take_lock(true))
		return;
	repl_ml_tenure_let_go();
	(void) ask_voters(list_make1(voter), "SELECT repl_ml.lease_want()", 0, NULL, TELL_MS, &errors);
}
