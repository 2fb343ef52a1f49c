/*
 * algebra.c
 *		Tests the join of a row's versions without servers, by trying all there
 *		is: every history of a few events on three nodes, and every order in
 *		which they may arrive, however often.
 *
 * usage: algebra POLICY [all]
 *
 * The code under test is the real one: converge/row.c, converge/conflict.c,
 * converge/resolve.c and wire/clock.c, linked with a node (node.c) that keeps one
 * row in memory, and a few functions of the server (server.c).
 *
 * A history is up to five events: each a write or a deletion by one of three
 * nodes that had any of the earlier writes here (all of its own), or the
 * announcement that an earlier write lost a unique key.  Counters follow the
 * order of events, or those of some nodes are as low as what they had seen
 * allows, which reverses or equals the counters of concurrent writes.  With
 * four and five events some histories are left out that are much like others
 * (the parameters "reduced"), unless "all" is asked for.
 *
 * Of each history all states are found that a node can get into: from each
 * state of a node that has some of the events, each event arrives, also one
 * that it has.  So every order of arrival is tried, with every repetition.
 * Whatever the way, after the same events the node must have:
 *
 *	-	as clock, the greatest counter of each node that is known
 *	-	as versions, those that no other is based on; not from clocks but from
 *		who had seen whose write, an evicted one as a deletion
 *	-	as row, what the policy says of these: stated here once more, for sets
 *	-	in the history every version of these that lost, under the version
 *		that won; not the winner; and nobody who has never met a concurrent
 *		version or an eviction
 *
 * and an event that arrives again must change nothing, not even what is stale.
 * (Not tested: what the history keeps of an ordinary loser that was overwritten
 * since.  Some nodes have seen its conflict, others its successor first.)
 *
 * Seen failing, in the policy "default" where no other is named (545618 joins):
 * conflict.c without remove_known, 66500 joins with other versions; without
 * the rule for a version and its eviction ("twin"), 6182 with another row;
 * without asking what was seen, 302771; with only two versions kept, 29440;
 * clock.c with repl_ml_clock_covers off by one, 163264; with dots compared by
 * counters only, with versions not sorted, and resolve.c that lets no deletion
 * win: a crash; row.c that takes no record of a winner back ("node_priority"),
 * 472558.
 */
#include "postgres.h"

#include <signal.h>
#include <time.h>

#include "algebra.h"

#define MAX_REACHED		20000

/* A policy, and how to find the winner of a set. */
typedef struct Policy
{
	const char *name;
	ReplMlRule	rule;
	bool		is_default;		/* no rule at all */
	int			events;			/* at most, in a short run */
	bool		by_rank;
	uint16		priority[MAX_NODES];	/* nodes, the first one first; 0 ends it */
} Policy;

static char *rank_column[] = {"rank"};
static char *listed_nodes[] = {"2", "1"};

static const Policy policies[] = {
	{.name = "default",.events = 4,.is_default = true},
	{.name = "last_write",.events = 5,.rule = {.name = "last_write"}},
	{.name = "newest_by",.events = 5,.rule = {.name = "newest_by",.nargs = 1,.args = rank_column},.by_rank = true},
	{.name = "node_priority",.events = 5,.rule = {.name = "node_priority",.nargs = 2,.args = listed_nodes},
	.priority = {2, 1}},
	{.name = "keep_both",.events = 4,.rule = {.name = "keep_both"}},
};

/* What a node must have after some of the events. */
typedef struct Expected
{
	StoredClock clock;
	uint32		versions;		/* writes that no other is based on */
	uint32		deleted;		/* ... those of them that are deletions or evicted */
	uint32		evicted;		/* ... evicted, and here as a row before or after */
	uint32		met;			/* writes that have met a concurrent one, or their eviction */
	int			winner;
	int			row;			/* the event whose row is there, or -1 */
} Expected;

/* A state a node can get into, and how. */
typedef struct Reached
{
	NodeState	state;
	int			from;			/* the state before, or -1 */
	int			event;			/* what arrived then */
	int			next;			/* another one after the same events, or -1 */
} Reached;

/* How often something was wrong. */
typedef struct Problem
{
	const char *problem;
	uint64		times;
} Problem;

static const Policy *policy;
static History history;
static Expected expected[1 << MAX_EVENTS];
static Reached reached[MAX_REACHED];
static int	reached_count;
static int	first_reached[1 << MAX_EVENTS];
static int	last_reached[1 << MAX_EVENTS];
static int	current = -1;		/* the state from which an event arrives */
static int	arriving;
static uint64 histories;
static uint64 joins;
static Problem problems[20];
static int	problem_count;

static bool
is_in(int event, uint32 set)
{
	return (set >> event & 1) != 0;
}

/* The writes that the node has, as rows or deletions, or just as evicted. */
static uint32
writes_of(uint32 arrived)
{
	uint32		writes = 0;

	for (int i = 0; i < history.count; i++)
	{
		if (is_in(i, arrived))
			writes |= 1 << (history.events[i].evicts < 0 ? i : history.events[i].evicts);
	}
	return writes;
}

static bool
is_evicted(int write, uint32 arrived)
{
	for (int i = history.writes; i < history.count; i++)
	{
		if (is_in(i, arrived) && history.events[i].evicts == write)
			return true;
	}
	return false;
}

/* Is one write older than another?  By counters, then by nodes. */
static bool
is_older(int a, int b)
{
	const Event *x = &history.events[a];
	const Event *y = &history.events[b];

	return x->counter != y->counter ? x->counter < y->counter : x->node < y->node;
}

/* ---- what is expected ---- */

/* The bytes of the clock that knows of these writes, as wire/clock.c describes them. */
static void
pack_clock(uint32 known, StoredClock *clock)
{
	uint8	   *to = clock->bytes + VARHDRSZ;

	memset(clock, 0, sizeof(StoredClock));
	for (uint16 node = 1; node <= MAX_NODES; node++)
	{
		uint64		counter = 0;

		for (int i = 0; i < history.writes; i++)
		{
			if (is_in(i, known) && history.events[i].node == node)
				counter = Max(counter, history.events[i].counter);
		}
		if (counter == 0)
			continue;
		to[1] = node;
		to[8] = counter;
		to += 9;
	}
	SET_VARSIZE(clock, to - clock->bytes);
}

static uint32
known_by(uint32 writes)
{
	uint32		known = 0;

	for (int i = 0; i < history.writes; i++)
		known |= is_in(i, writes) ? history.events[i].known : 0;
	return known;
}

static int
priority_of(int write)
{
	int			place = 0;

	while (policy->priority[place] != 0 && policy->priority[place] != history.events[write].node)
		place++;
	return place;
}

/* Does the policy prefer b?  Both are of the kind it chooses from. */
static bool
is_better(int b, int a)
{
	if (policy->priority[0] != 0 && priority_of(a) != priority_of(b))
		return priority_of(b) < priority_of(a);
	if (policy->by_rank && history.events[a].rank != history.events[b].rank)
		return history.events[b].rank > history.events[a].rank;
	return is_older(a, b);
}

/* A deletion wins if it is the last write; or by its node, if nodes have priorities. */
static int
choose_winner(const Expected *e)
{
	int			last = -1;
	int			best = -1;

	for (int i = 0; i < history.writes; i++)
	{
		if (!is_in(i, e->versions))
			continue;
		if (last < 0 || is_older(last, i))
			last = i;
		if (is_in(i, e->deleted) && policy->priority[0] == 0)
			continue;
		if (best < 0 || is_better(i, best))
			best = i;
	}
	return last >= 0 && is_in(last, e->deleted) && policy->priority[0] == 0 ? last : best;
}

static void
find_expected(uint32 arrived)
{
	Expected   *e = &expected[arrived];
	uint32		writes = writes_of(arrived);

	memset(e, 0, sizeof(*e));
	for (int i = 0; i < history.writes; i++)
	{
		bool		is_based_on = false;
		bool		evicted = is_evicted(i, arrived);

		if (!is_in(i, writes))
			continue;
		for (int j = 0; j < history.writes; j++)
		{
			if (j == i || !is_in(j, writes))
				continue;
			is_based_on |= is_in(i, history.events[j].known);
			if (!is_in(i, history.events[j].known) && !is_in(j, history.events[i].known))
				e->met |= 1 << i;
		}
		if (evicted)
			e->met |= 1 << i;
		if (is_based_on)
			continue;
		e->versions |= 1 << i;
		if (evicted || history.events[i].deleted)
			e->deleted |= 1 << i;
		if (evicted && is_in(i, arrived))
			e->evicted |= 1 << i;
	}
	pack_clock(known_by(writes), &e->clock);
	e->winner = choose_winner(e);
	e->row = e->winner >= 0 && !is_in(e->winner, e->deleted) ? e->winner : -1;
}

/* ---- what is there ---- */

/* The versions a node has, by what it stores of them and by its row. */
static void
read_versions(const NodeState *state, uint32 arrived, uint32 *versions, uint32 *deleted)
{
	uint32		writes = 0;

	*deleted = 0;
	for (int i = 0; i < state->stored_count; i++)
	{
		writes |= 1 << state->stored[i];
		*deleted |= (state->stored_deleted >> i & 1) << state->stored[i];
	}
	*versions = writes;
	if (writes != 0 && known_by(writes) == known_by(writes_of(arrived)))
		return;

	/* what is stored is stale: there is one version, the last write */
	*versions = 0;
	for (int i = 0; i < history.writes; i++)
	{
		if (is_in(i, known_by(writes_of(arrived))) && (*versions == 0 || is_older(pg_leftmost_one_pos32(*versions), i)))
			*versions = 1 << i;
	}
	*deleted = state->row < 0 ? *versions : 0;
}

static const char *
history_problem(const NodeState *state, uint32 arrived, const Expected *e)
{
	for (int i = 0; i < history.writes; i++)
	{
		int			lost_to = state->lost_to[i];
		int			right = NOT_LOST;

		if (lost_to != NOT_LOST && !is_in(i, e->met))
			return "a conflict is recorded for a version that has met no concurrent one";
		if (!is_in(i, e->versions) && lost_to == EVICTED)
			return "an eviction is recorded of a row that was overwritten";
		if (!is_in(i, e->versions))
			continue;
		if (is_in(i, e->evicted))
			right = EVICTED;
		else if (!is_evicted(i, arrived) && i != e->winner && (e->row >= 0 || !is_in(i, e->deleted)))
			right = e->winner;
		if (lost_to == right)
			continue;
		if (right == EVICTED)
			return lost_to == NOT_LOST ? "an evicted row is not recorded" : "an evicted row is recorded as another loser";
		if (right == NOT_LOST)
			return i == e->winner ? "the winner is recorded as a loser" : "a deletion is recorded that did not lose";
		return lost_to == NOT_LOST ? "a loser is not recorded" : "a loser is recorded under another winner";
	}
	return NULL;
}

/* What is wrong with a node's state; NULL if nothing is. */
static const char *
state_problem(const NodeState *state, uint32 arrived)
{
	const Expected *e = &expected[arrived];
	uint32		versions;
	uint32		deleted;

	if (algebra_problem != NULL)
		return algebra_problem;
	if (state->row != e->row)
		return "the row is another one";
	if (memcmp(state->row >= 0 ? &state->row_clock : &state->dead, &e->clock, sizeof(StoredClock)) != 0)
		return "the clock is another one";
	read_versions(state, arrived, &versions, &deleted);
	if (versions != e->versions)
		return "the versions are others";
	if (deleted != e->deleted)
		return "the versions that are deletions are others";
	return history_problem(state, arrived, e);
}

/* ---- telling of a failure ---- */

static void
print_set(const char *title, uint32 set)
{
	printf("%s {", title);
	for (int i = 0; i < history.count; i++)
	{
		if (is_in(i, set))
			printf(" %d", i);
	}
	printf(" }");
}

static void
print_history(void)
{
	for (int i = 0; i < history.count; i++)
	{
		const Event *event = &history.events[i];

		if (event->evicts >= 0)
		{
			printf("  event %d: eviction of %d\n", i, event->evicts);
			continue;
		}
		printf("  event %d: %s on n%d, counter %d, rank %d", i, event->deleted ? "deletion" : "write",
			   event->node, (int) event->counter, event->rank);
		print_set(", had seen", event->seen);
		printf("\n");
	}
}

static void
print_way(int to)
{
	if (to < 0 || reached[to].from < 0)
		return;
	print_way(reached[to].from);
	printf(" %d", reached[to].event);
}

static void
print_state(const NodeState *state)
{
	printf("  the node has: row of event %d,", state->row);
	for (int i = 0; i < state->stored_count; i++)
		printf(" %s%d", state->stored_deleted >> i & 1 ? "deleted " : "", state->stored[i]);
	printf(" stored; losers:");
	for (int i = 0; i < history.writes; i++)
	{
		if (state->lost_to[i] != NOT_LOST)
			printf(" %d to %d", i, state->lost_to[i]);
	}
	printf("\n");
}

static void
print_expected(uint32 arrived)
{
	const Expected *e = &expected[arrived];

	printf("  expected: row of event %d,", e->row);
	print_set(" versions", e->versions);
	print_set(", deleted", e->deleted);
	printf(", winner %d\n", e->winner);
}

static void
print_failure(const char *problem)
{
	printf("%s:\n", problem);
	print_history();
	printf("  order of arrival:");
	print_way(current);
	if (current >= 0)
		printf(" %d", arriving);
	printf("\n");
}

/* Is this the first problem of its kind?  Counts them. */
static bool
is_news(const char *problem)
{
	int			i = 0;

	algebra_problem = NULL;
	while (i < problem_count && problems[i].problem != problem)
		i++;
	if (i == problem_count)
		problems[problem_count++].problem = problem;
	return problems[i].times++ == 0;
}

/* For problems from which there is no way back. */
void
algebra_give_up(const char *problem)
{
	print_failure(problem);
	exit(1);
}

static void
crash(SIGNAL_ARGS)
{
	algebra_give_up("a crash");
}

/* ---- all orders ---- */

/* Notes a state, unless it is known. */
static void
add_reached(uint32 arrived, const NodeState *state)
{
	Reached    *new = &reached[reached_count];

	for (int i = first_reached[arrived]; i >= 0; i = reached[i].next)
	{
		if (memcmp(&reached[i].state, state, sizeof(NodeState)) == 0)
			return;
	}
	if (reached_count == MAX_REACHED)
		algebra_give_up("there are too many states");
	new->state = *state;
	new->from = current;
	new->event = arriving;
	new->next = -1;
	if (first_reached[arrived] < 0)
		first_reached[arrived] = reached_count;
	else
		reached[last_reached[arrived]].next = reached_count;
	last_reached[arrived] = reached_count++;
}

static void
join_one(uint32 arrived)
{
	uint32		after = arrived | 1 << arriving;
	NodeState	state = reached[current].state;
	const char *problem;

	algebra_node_join(&state, &history, arriving);
	joins++;
	problem = state_problem(&state, after);
	if (problem == NULL && after == arrived && memcmp(&state, &reached[current].state, sizeof(NodeState)) != 0)
		problem = "an event that arrived again has changed something";
	if (problem != NULL && is_news(problem))
	{
		print_failure(problem);
		print_state(&state);
		print_expected(after);
	}
	add_reached(after, &state);
}

/* All states of a node that has the first events only come before those with more. */
static void
try_all_orders(void)
{
	NodeState	nothing;

	histories++;
	reached_count = 0;
	current = -1;
	for (uint32 arrived = 0; arrived < 1u << history.count; arrived++)
	{
		first_reached[arrived] = -1;
		find_expected(arrived);
	}
	algebra_node_start(&nothing);
	add_reached(0, &nothing);
	for (uint32 arrived = 0; arrived < 1u << history.count; arrived++)
	{
		for (current = first_reached[arrived]; current >= 0; current = reached[current].next)
		{
			for (arriving = 0; arriving < history.count; arriving++)
				join_one(arrived);
		}
	}
	current = -1;
}

/* ---- all histories ---- */

/* Makes the events' clocks and rows, and tries them. */
static void
run_history(void)
{
	StoredClock packed;

	algebra_forget_kept();
	for (int i = 0; i < history.count; i++)
	{
		Event	   *event = &history.events[i];
		ReplMlClock *clock = repl_ml_clock_empty();

		if (event->evicts >= 0)
		{
			event->clock = history.events[event->evicts].clock;
			continue;
		}
		for (int j = 0; j < i; j++)
		{
			if (is_in(j, event->seen))
				clock = repl_ml_clock_merge(clock, history.events[j].clock);
		}
		clock = repl_ml_clock_advance(clock, event->node, event->counter);
		event->clock = memcpy(algebra_keep(VARSIZE(clock)), clock, VARSIZE(clock));
		event->row = event->deleted ? NULL : algebra_node_row(i, event->rank);
		pack_clock(event->known, &packed);
		if (memcmp(clock, &packed, VARSIZE(&packed)) != 0)
			algebra_give_up("an event's clock does not say what it knows");
		algebra_free_all();
	}
	try_all_orders();
}

/* The ranks: falling, so that they contradict the counters, or with equal ones; reduced, by turns. */
static void
rank_events(bool reduced)
{
	int			variants = policy->by_rank ? 2 : 1;
	int			first = reduced ? histories % variants : 0;

	for (int variant = first; variant < (reduced ? first + 1 : variants); variant++)
	{
		for (int i = 0; i < history.writes; i++)
			history.events[i].rank = variant == 0 ? MAX_EVENTS - i : (i + 1) % 3;
		run_history();
	}
}

/* Every choice of "left" live writes, from "next" on, is announced as evicted. */
static void
evict(int next, int left, bool reduced)
{
	if (left == 0)
		rank_events(reduced);
	for (int i = next; left > 0 && i < history.writes; i++)
	{
		if (history.events[i].deleted)
			continue;
		history.events[history.count++] = (Event) {.evicts = i,.node = history.events[i].node,.deleted = true};
		evict(i + 1, left - 1, reduced);
		history.count--;
	}
}

/* Counters in the order of events; of a slow node, just above what it has seen. */
static void
set_counters(uint32 slow)
{
	for (int i = 0; i < history.writes; i++)
	{
		Event	   *event = &history.events[i];
		uint64		seen = 0;

		for (int j = 0; j < i; j++)
		{
			if (is_in(j, event->known))
				seen = Max(seen, history.events[j].counter);
		}
		event->counter = is_in(event->node, slow) ? seen + 1 : i + 1;
	}
}

/* A complete choice of writes: with all counters, and so many evictions. */
static void
finish_writes(int evictions, bool reduced)
{
	uint32		nodes = 0;

	for (int i = 0; i < history.writes; i++)
		nodes |= 1 << history.events[i].node;
	for (uint32 slow = 0; slow <= nodes; slow += 2)
	{
		if ((slow & ~nodes) != 0 || (reduced && slow != 0 && slow != nodes))
			continue;
		set_counters(slow);
		history.count = history.writes;
		evict(0, evictions, reduced);
	}
}

/* What a node knows that has seen these writes. */
static uint32
close_over(uint32 seen, int writes)
{
	uint32		known = 0;

	for (int i = 0; i < writes; i++)
		known |= is_in(i, seen) ? history.events[i].known : 0;
	return known;
}

/*
 * Adds the remaining writes in every way.  With "reduced", nodes are numbered
 * in the order in which they first write, and what a node has seen includes
 * what those writes are based on: clocks are the same without.
 */
static void
enumerate_writes(int writes, int evictions, bool reduced)
{
	int			i = history.writes;
	Event	   *event = &history.events[i];
	uint16		most = 0;

	if (i == writes)
	{
		finish_writes(evictions, reduced);
		return;
	}
	for (int j = 0; j < i; j++)
		most = Max(most, history.events[j].node);
	history.writes++;
	for (uint16 node = 1; node <= (reduced ? Min(most + 1, MAX_NODES) : MAX_NODES); node++)
	{
		uint32		own = 0;

		for (int j = 0; j < i; j++)
			own |= (uint32) (history.events[j].node == node) << j;
		for (uint32 seen = 0; seen < 1u << i; seen++)
		{
			uint32		known = close_over(seen, i);

			if ((seen & own) != own || (reduced && known != seen))
				continue;
			*event = (Event) {.node = node,.evicts = -1,.seen = seen,.known = known | 1 << i};
			enumerate_writes(writes, evictions, reduced);
			event->deleted = true;
			enumerate_writes(writes, evictions, reduced);
		}
	}
	history.writes--;
}

int
main(int argc, char **argv)
{
	bool		leave_out = argc < 3 || strcmp(argv[2], "all") != 0;
	ReplMlPolicy in_force = {0};
	clock_t		start = clock();

	for (int i = 0; argc > 1 && i < lengthof(policies); i++)
	{
		if (strcmp(policies[i].name, argv[1]) == 0)
			policy = &policies[i];
	}
	if (policy == NULL)
	{
		fprintf(stderr, "usage: %s POLICY [all]\n", argv[0]);
		return 2;
	}
	signal(SIGSEGV, crash);
	in_force.resolver = policy->is_default ? NULL : &policy->rule;
	algebra_node_setup(&in_force);
	for (int count = 1; count <= (leave_out ? policy->events : 5); count++)
	{
		for (int writes = (count + 1) / 2; writes <= count; writes++)
			enumerate_writes(writes, count - writes, leave_out && count > 3);
	}
	printf(UINT64_FORMAT " histories, " UINT64_FORMAT " joins, %.1f s\n", histories, joins,
		   (double) (clock() - start) / CLOCKS_PER_SEC);
	for (int i = 0; i < problem_count; i++)
		printf(UINT64_FORMAT " times %s\n", problems[i].times, problems[i].problem);
	return problem_count > 0;
}
