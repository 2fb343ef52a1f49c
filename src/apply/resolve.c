/*
 * resolve.c
 *		Who wins a conflict: a table of policies.
 *
 * A policy sees both versions alike and must not depend on which of them is
 * here: every node has to choose the same one.
 */
#include "postgres.h"

#include "apply/apply.h"

typedef struct Resolver
{
	const char *name;			/* as in repl_ml.replicated_table.resolver */
	bool		(*arriving_wins) (const ReplMlClock *here, const ReplMlClock *arriving);
} Resolver;

/*
 * The write with the greater counter, then the greater node id of the writer.
 * Counters follow causality and, between nodes, the wall clock.
 */
static bool
last_write(const ReplMlClock *here, const ReplMlClock *arriving)
{
	ReplMlClockEntry a = repl_ml_clock_dot(here);
	ReplMlClockEntry b = repl_ml_clock_dot(arriving);

	return b.counter != a.counter ? b.counter > a.counter : b.node > a.node;
}

static const Resolver resolvers[] = {
	{.name = "last_write",.arriving_wins = last_write},
};

/* Does the version that arrives win under this policy? */
bool
repl_ml_resolve_arriving_wins(const char *resolver, const ReplMlClock *here, const ReplMlClock *arriving)
{
	for (int i = 0; i < lengthof(resolvers); i++)
	{
		if (strcmp(resolvers[i].name, resolver) == 0)
			return resolvers[i].arriving_wins(here, arriving);
	}
	ereport(ERROR,
			(errcode(ERRCODE_UNDEFINED_OBJECT),
			 errmsg("conflict resolver \"%s\" does not exist", resolver)));
	return false;				/* keep the compiler quiet */
}
