/*
 * lacking.c
 *		Asks peers whether they have by now what they had parked something of.
 *
 * A commit whose changes a peer parked is not acknowledged by it (quorum.c).
 * If somebody mends the cause there, and the change is applied, the peer counts
 * again; it does not tell by itself, so the supervisor asks now and then, as long
 * as unacknowledged.c lists such a commit.  A change that is discarded is never
 * applied: the peer says so once, and is not asked about that commit again.
 *
 * Not here: the list itself, whose lock unacknowledged.c takes.  No lock is held
 * while a peer is asked.
 */
#include "postgres.h"

#include "executor/spi.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/pg_lsn.h"
#include "utils/timestamp.h"

#include "commit/commit.h"
#include "compat.h"
#include "server/server.h"
#include "wire/wire.h"

#define INTERVAL_MS		2000
#define PATIENCE_MS		500		/* how long the supervisor may wait for answers */
#define COMMITS_AT_ONCE	100

/* What one peer is asked. */
typedef struct Lacking
{
	int			peer;
	char	   *question;
} Lacking;

static int	collect_lacking(Lacking *lacking);
static char *load_dsn(int peer, int *self);
static void note_answer(int peer, const char *answer);

/*
 * Called by the supervisor, outside transactions: asks, if there is anything
 * to ask and it has not just been asked.
 */
void
repl_ml_lacking_ask(void)
{
	static TimestampTz last = 0;
	Lacking		lacking[REPL_ML_MAX_WORKERS];
	int			count;

	if (!TimestampDifferenceExceeds(last, GetCurrentTimestamp(), INTERVAL_MS))
		return;
	last = GetCurrentTimestamp();
	count = collect_lacking(lacking);
	for (int i = 0; i < count; i++)
	{
		char	   *answer = NULL;
		int			self;
		char	   *dsn = load_dsn(lacking[i].peer, &self);

		if (dsn == NULL)
			continue;

		/* the peer ends by itself what we do not wait for */
		repl_ml_ask(1, &dsn, psprintf("SET statement_timeout = '1s';"
									  " SELECT repl_ml.decided_commits(%d, '%s')",
									  self, lacking[i].question),
					TimestampTzPlusMilliseconds(GetCurrentTimestamp(), PATIENCE_MS), &answer);
		if (answer != NULL)
			note_answer(lacking[i].peer, answer);
	}
}

/*
 * Finds which peers lack which commits, as array literals, palloc'd; returns
 * how many peers.
 */
static int
collect_lacking(Lacking *lacking)
{
	int			peers[REPL_ML_MAX_WORKERS];
	int			peer_count = repl_ml_members_peers(peers);
	int			count = 0;

	for (int i = 0; i < peer_count; i++)
	{
		XLogRecPtr	commits[COMMITS_AT_ONCE];
		int			commit_count = repl_ml_unacknowledged_lacking(peers[i], commits,
																  COMMITS_AT_ONCE);
		StringInfoData question;

		if (commit_count == 0)
			continue;

		/* what has no room now is asked for when these are whole */
		initStringInfo(&question);
		for (int j = 0; j < commit_count; j++)
			appendStringInfo(&question, "%c%X/%X", j == 0 ? '{' : ',', LSN_FORMAT_ARGS(commits[j]));
		appendStringInfoChar(&question, '}');
		lacking[count++] = (Lacking) {.peer = peers[i],.question = question.data};
	}
	return count;
}

/*
 * Returns how to reach a peer, palloc'd in the caller's context, and this
 * node's id; NULL if it is none any more.
 */
static char *
load_dsn(int peer, int *self)
{
	MemoryContext context = CurrentMemoryContext;
	char	   *dsn = NULL;

	repl_ml_begin();
	*self = repl_ml_identity_require()->node_id;
	SPI_execute(psprintf("SELECT dsn FROM repl_ml.member"
						 " WHERE node_id OPERATOR(pg_catalog.=) %d"
						 " AND state OPERATOR(pg_catalog.=) 'ready'", peer), true, 1);
	if (SPI_processed == 1)
		dsn = MemoryContextStrdup(context, repl_ml_spi_text(0, 0));
	repl_ml_commit();
	MemoryContextSwitchTo(context);
	return dsn;
}

/*
 * Notes the commits that the peer says it has, and those of which it has
 * discarded something, "{0/1234,-0/5678}".  What is no such list is not
 * believed.
 */
static void
note_answer(int peer, const char *answer)
{
	char	   *list = pstrdup(answer);
	char	   *position = NULL;

	for (char *item = strtok_r(list, "{},", &position); item != NULL;
		 item = strtok_r(NULL, "{},", &position))
	{
		bool		error = false;
		bool		discarded = item[0] == '-';
		XLogRecPtr	commit = pg_lsn_in_internal(item + discarded, &error);

		if (!error)
			repl_ml_unacknowledged_is_decided(peer, commit, discarded);
	}
}
