/*
 * members.c
 *		The members of this database's group as this node's commits and reads
 *		see them: who counts, who can be reached, what each has acknowledged,
 *		and what each answered when it was last asked.
 *
 * The supervisor says who the members are, walsenders what their peers say,
 * apply workers what peers answer to barriers.  What follows from it for
 * commits that wait is in quorum.c and waiter.c; what the catalog knows of peers is
 * server/peer.c's.
 *
 * The lock is repl_ml_quorum->lock.
 */
#include "postgres.h"

#include "access/xlog.h"
#include "miscadmin.h"
#include "storage/ipc.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

#include "commit/commit.h"
#include "commit/quorum_private.h"
#include "compat.h"
#include "server/server.h"
#include "wire/wire.h"

#define HEARTBEATS_MISSED	2	/* after so many a silent peer counts as gone */
#define HEARS_US		UINT64CONST(1300000)	/* so long a peer that was heard is not gone */
#define ALIVE_US		UINT64CONST(20000)	/* that it is alive is told so often */
#define RECONNECTION_US		UINT64CONST(500000) /* so soon a worker that has
												 * lost a race is back */
#define PAUSE_TOLD_US		(UINT64CONST(3000) * REPL_ML_PAUSE_TOLD_MS) /* so long one is
																		 * believed */

static void detach_walsender(int code, Datum arg);

static ReplMlLink *served = NULL;	/* the place of the peer that this walsender
									 * serves; set by repl_ml_members_attach */

/*
 * Returns what the peer of a link answered, a clock, once link->answered is
 * set.
 */
static char *
answer_of(const ReplMlLink *link)
{
	return repl_ml_quorum->answers[repl_ml_link_index(link)];
}

/*
 * Returns the link of this database to a peer, made if there is room, else
 * NULL.  The caller holds the lock exclusively.
 */
static ReplMlLink *
find_link(int peer)
{
	ReplMlLink *unused = NULL;

	for (int i = 0; i < repl_ml_quorum->links_used; i++)
	{
		ReplMlLink *link = &repl_ml_quorum->links[i];

		if (link->database == MyDatabaseId && link->peer == peer)
			return link;
		if (unused == NULL && !OidIsValid(link->database))
			unused = link;
	}
	if (unused == NULL && repl_ml_quorum->links_used < REPL_ML_MAX_WORKERS)
		unused = &repl_ml_quorum->links[repl_ml_quorum->links_used++];
	if (unused == NULL)
		return NULL;

	/* what was known of the peer that had the place must not be this one's */
	memset(unused, 0, sizeof(ReplMlLink));
	repl_ml_quorum_forget_link(repl_ml_link_index(unused));
	unused->database = MyDatabaseId;
	unused->peer = peer;
	unused->since = GetCurrentTimestamp();
	return unused;
}

/*
 * Called by the supervisor: says who the ready members of this database's
 * group are, all at once (list of ReplMlMember); empty while this node is none
 * itself.  Commits that wait are measured against the new list from here on.
 */
void
repl_ml_members_set(List *members)
{
	ReplMlQuorumDatabase *database = repl_ml_quorum_database(MyDatabaseId);
	ListCell   *lc;

	if (database == NULL)
		return;
	LWLockAcquire(repl_ml_quorum->lock, LW_EXCLUSIVE);
	/* what the members until now have acknowledged is, whoever has left */
	repl_ml_unacknowledged_settle();
	foreach_link(link)
		link->counts = false;
	database->members = list_length(members);
	database->members_known = members != NIL;
	foreach(lc, members)
	{
		ReplMlMember *member = lfirst(lc);
		ReplMlLink *link;

		if (member->is_local)
		{
			database->local_name = member->node_name;
			continue;
		}
		link = find_link(member->node_id);
		if (link == NULL)
			continue;			/* it is missing, then, from each count */
		link->node_name = member->node_name;
		link->counts = true;
	}
	foreach_link(link)
	{
		if (!link->counts && link->walsender == 0)
			link->database = InvalidOid;
	}
	LWLockRelease(repl_ml_quorum->lock);
	(void) repl_ml_quorum_release();
	repl_ml_positions_advanced();
}

/* Called by a walsender: it serves the peer from now on, until it ends. */
void
repl_ml_members_attach(int peer)
{
	ReplMlLink *link;

	LWLockAcquire(repl_ml_quorum->lock, LW_EXCLUSIVE);
	link = find_link(peer);
	if (link != NULL)
	{
		link->walsender = MyProcPid;
		link->heard = repl_ml_monotonic_now();
		link->paused = 0;
		link->connections++;
		link->decides = true;
		link->ended_with = 0;
	}
	served = link;
	LWLockRelease(repl_ml_quorum->lock);
	repl_ml_news_count_walsender(1);
	before_shmem_exit(detach_walsender, Int32GetDatum(peer));
}

/*
 * Runs when a walsender ends: its peer is lost, unless another one serves it.
 */
static void
detach_walsender(int code, Datum arg)
{
	ReplMlLink *link;

	repl_ml_news_count_walsender(-1);
	LWLockAcquire(repl_ml_quorum->lock, LW_EXCLUSIVE);
	link = find_link(DatumGetInt32(arg));
	if (link != NULL && link->walsender == MyProcPid)
	{
		link->walsender = 0;
		link->lost = repl_ml_monotonic_now();
		if (!link->counts)
			link->database = InvalidOid;
	}
	LWLockRelease(repl_ml_quorum->lock);
}

/*
 * Called in a walsender, which holds the lock exclusively: the peer has
 * spoken, and has everything before a position.
 */
void
repl_ml_members_heard(int peer, XLogRecPtr acknowledged)
{
	ReplMlLink *link = find_link(peer);

	if (link == NULL)
		return;
	link->heard = repl_ml_monotonic_now();
	link->acknowledged = Max(link->acknowledged, acknowledged);
	if (link->heard - link->samples[link->newest].time < REPL_ML_LINK_SAMPLE_US)
		return;
	link->newest = (link->newest + 1) % REPL_ML_LINK_SAMPLES;
	link->samples[link->newest] =
		(ReplMlLinkSample) {.time = link->heard,.lsn = link->acknowledged};
}

/*
 * Returns how many bytes of this node's WAL the peer has come on with in a second,
 * over the last minute; -1: not known.  The caller holds the lock.
 */
static double
find_rate(const ReplMlLink *link)
{
	uint64		now = repl_ml_monotonic_now();
	const ReplMlLinkSample *oldest = NULL;

	if (link->samples[link->newest].time == 0)
		return -1;
	for (int i = 0; i < REPL_ML_LINK_SAMPLES; i++)
	{
		const ReplMlLinkSample *sample = &link->samples[i];

		if (sample->time != 0 &&
			now - sample->time <= (REPL_ML_LINK_SAMPLES + 1) * REPL_ML_LINK_SAMPLE_US &&
			(oldest == NULL || sample->time < oldest->time))
			oldest = sample;
	}
	/* it has not spoken since */
	if (oldest == NULL)
		return 0;
	return oldest->time == now || oldest->lsn == InvalidXLogRecPtr ? -1 :
		(link->acknowledged - oldest->lsn) / ((now - oldest->time) / 1e6);
}

/*
 * Returns the peer's place in sets of peers; -1 if it has none.  The caller
 * holds the lock exclusively.
 */
int
repl_ml_members_index(int peer)
{
	ReplMlLink *link = find_link(peer);

	return link == NULL ? -1 : repl_ml_link_index(link);
}

/*
 * Writes the ids of the peers of a set that count into an array of
 * REPL_ML_MAX_WORKERS; returns how many.  The caller holds the lock.
 */
int
repl_ml_members_of_set(const ReplMlPeerSet *set, int *peers)
{
	int			count = 0;

	foreach_counting_link(link)
	{
		if (repl_ml_peer_set_has(set, repl_ml_link_index(link)))
			peers[count++] = link->peer;
	}
	return count;
}

/*
 * Writes the names of the peers of a set, "n2, n3", as far as there is room.
 * The caller holds the lock.
 */
void
repl_ml_members_name_set(const ReplMlPeerSet *set, char *names, Size size)
{
	names[0] = '\0';
	foreach_link(link)
	{
		if (!repl_ml_peer_set_has(set, repl_ml_link_index(link)))
			continue;
		if (names[0] != '\0')
			strlcat(names, ", ", size);
		strlcat(names, NameStr(link->node_name), size);
	}
}

/*
 * Called by a walsender: changes are to be sent to the peer one by one, as one
 * could not be sent, or no longer.
 */
void
repl_ml_members_set_careful(int peer, bool careful)
{
	ReplMlLink *link;

	LWLockAcquire(repl_ml_quorum->lock, LW_EXCLUSIVE);
	link = find_link(peer);
	if (link != NULL)
		link->careful = careful;
	LWLockRelease(repl_ml_quorum->lock);
}

/*
 * Says whether a former walsender found that changes are to be sent one by
 * one.
 */
bool
repl_ml_members_is_careful(int peer)
{
	ReplMlLink *link;
	bool		careful;

	LWLockAcquire(repl_ml_quorum->lock, LW_EXCLUSIVE);
	link = find_link(peer);
	careful = link != NULL && link->careful;
	LWLockRelease(repl_ml_quorum->lock);
	return careful;
}

/*
 * Called by a walsender whose stream ends with an error.  Takes no lock, as it may
 * still hold whatever it held then; the place is its own as long as it serves the
 * peer.
 */
void
repl_ml_members_set_ended(int sqlstate)
{
	if (served != NULL && served->walsender == MyProcPid)
		served->ended_with = sqlstate;
}

/* Returns the error with which the last walsender of the peer ended; 0: none. */
int
repl_ml_members_ended(int peer)
{
	int			sqlstate = 0;

	LWLockAcquire(repl_ml_quorum->lock, LW_SHARED);
	foreach_link(link)
	{
		if (link->peer == peer)
			sqlstate = link->ended_with;
	}
	LWLockRelease(repl_ml_quorum->lock);
	return sqlstate;
}

/*
 * Says whether the peer is among those that the level quorum needs.  Looks
 * without a lock: a hint.
 */
bool
repl_ml_members_decides(int peer)
{
	foreach_link(link)
	{
		if (link->peer == peer)
			return link->decides;
	}
	return true;
}

/*
 * Called by a walsender: the peer gets a change up to here that it may be long
 * in applying, without a word.
 */
void
repl_ml_members_set_busy(int peer, XLogRecPtr lsn)
{
	ReplMlLink *link;

	LWLockAcquire(repl_ml_quorum->lock, LW_EXCLUSIVE);
	link = find_link(peer);
	if (link != NULL)
		link->busy = Max(link->busy, lsn);
	LWLockRelease(repl_ml_quorum->lock);
}

/*
 * Called by an apply worker: something has come from the peer, its heartbeat
 * perhaps.  Tells it no oftener than it counts.
 */
void
repl_ml_members_alive(int peer)
{
	static uint64 told = 0;
	uint64		now = repl_ml_monotonic_now();
	ReplMlLink *link;

	if (now - told < ALIVE_US)
		return;
	told = now;
	LWLockAcquire(repl_ml_quorum->lock, LW_EXCLUSIVE);
	link = find_link(peer);
	if (link != NULL)
		link->alive = now;
	LWLockRelease(repl_ml_quorum->lock);
}

PG_FUNCTION_INFO_V1(repl_ml_hears);

/*
 * repl_ml.hears(node): called by who is asked to vote for another node: whether this one is
 * connected with that and has just heard from it.
 */
Datum
repl_ml_hears(PG_FUNCTION_ARGS)
{
	int			peer = PG_GETARG_INT32(0);
	uint64		now = repl_ml_monotonic_now();
	bool		hears = false;
	bool		streams = false;

	repl_ml_shmem_require();
	LWLockAcquire(repl_ml_quorum->lock, LW_SHARED);
	foreach_link(link)
		hears |= link->peer == peer && link->alive != 0 && now - Min(now, link->alive) < HEARS_US;
	LWLockRelease(repl_ml_quorum->lock);
	LWLockAcquire(repl_ml_shared->lock, LW_SHARED);
	foreach_worker(worker, MyDatabaseId)
		streams |= worker->peer == peer && worker->state == REPL_ML_WORKER_STREAMING;
	LWLockRelease(repl_ml_shared->lock);
	PG_RETURN_BOOL(hears && streams);
}

PG_FUNCTION_INFO_V1(repl_ml_covered_lsn);

/*
 * repl_ml.covered_lsn(node): up to which position of that node's WAL everything has come, and
 * has been applied or put aside, also where nothing was for this node; 0: not known.
 */
Datum
repl_ml_covered_lsn(PG_FUNCTION_ARGS)
{
	int			peer = PG_GETARG_INT32(0);
	XLogRecPtr	covered = 0;

	repl_ml_shmem_require();
	LWLockAcquire(repl_ml_shared->lock, LW_SHARED);
	foreach_worker(worker, MyDatabaseId)
	{
		if (worker->peer == peer && worker->covered_known)
			covered = worker->covered_lsn;
	}
	LWLockRelease(repl_ml_shared->lock);
	PG_RETURN_INT64((int64) covered);
}

PG_FUNCTION_INFO_V1(repl_ml_hear_pause);

/*
 * repl_ml.hear_pause(of_node): called by a peer's apply worker as long as it is
 * paused, so that nobody takes the peer for one that is down.
 */
Datum
repl_ml_hear_pause(PG_FUNCTION_ARGS)
{
	ReplMlLink *link;

	repl_ml_shmem_require();
	LWLockAcquire(repl_ml_quorum->lock, LW_EXCLUSIVE);
	link = find_link(PG_GETARG_INT32(0));
	if (link != NULL)
		link->paused = repl_ml_monotonic_now();
	LWLockRelease(repl_ml_quorum->lock);
	PG_RETURN_VOID();
}

/*
 * Says whether the peer reads nothing of this node because somebody there wants
 * that, as it has told lately.  The caller holds the lock.
 */
static bool
is_paused(const ReplMlLink *link)
{
	return link->walsender == 0 && link->paused != 0 &&
		repl_ml_monotonic_now() - link->paused <= PAUSE_TOLD_US;
}

/*
 * Says whether the peer is connected, or just connecting again, and has spoken
 * lately.  One that applies a large change says nothing meanwhile, but its
 * heartbeats still come.
 */
static bool
is_reachable(const ReplMlLink *link)
{
	uint64		now = repl_ml_monotonic_now();
	uint64		patience = (uint64) repl_ml_heartbeat_interval * HEARTBEATS_MISSED * 1000;

	return link->counts &&
		(link->walsender != 0 || now - link->lost <= RECONNECTION_US) &&
		(now - link->heard <= patience ||
		 (link->busy > link->acknowledged && now - Min(link->alive, now) <= patience));
}

/*
 * Returns how many members can be reached, this one included.  The caller
 * holds the lock.
 */
int
repl_ml_members_reachable(void)
{
	int			reachable = 1;

	foreach_counting_link(link)
	{
		if (is_reachable(link))
			reachable++;
	}
	return reachable;
}

/* Adds a member to a list of names: ", n3" after others. */
static void
add_name(StringInfo names, const ReplMlLink *link)
{
	appendStringInfo(names, "%s%s", names->len > 0 ? ", " : "", NameStr(link->node_name));
}

/*
 * Returns the names of the members that can be reached, or of those that
 * cannot, "n2, n3".  The caller holds the lock.
 */
char *
repl_ml_members_names(const ReplMlQuorumDatabase *database, bool reachable)
{
	StringInfoData names;

	initStringInfo(&names);
	if (reachable)
		appendStringInfoString(&names, NameStr(database->local_name));
	foreach_counting_link(link)
	{
		if (is_reachable(link) == reachable)
			add_name(&names, link);
	}
	return names.data;
}

/*
 * Writes the ids of the peers whose word counts into an array of
 * REPL_ML_MAX_WORKERS; returns how many.
 */
int
repl_ml_members_peers(int *peers)
{
	int			count = 0;

	LWLockAcquire(repl_ml_quorum->lock, LW_SHARED);
	foreach_counting_link(link)
		peers[count++] = link->peer;
	LWLockRelease(repl_ml_quorum->lock);
	return count;
}

/*
 * Called by an apply worker whose peer has said what it has received of each
 * node; returns false if that cannot be an answer.
 */
bool
repl_ml_members_set_answer(int peer, const ReplMlClock *positions)
{
	ReplMlLink *link;

	if (VARSIZE_ANY(positions) > REPL_ML_ANSWER_BYTES)
		return false;
	LWLockAcquire(repl_ml_quorum->lock, LW_EXCLUSIVE);
	link = find_link(peer);
	if (link != NULL)
	{
		memcpy(answer_of(link), positions, VARSIZE_ANY(positions));
		link->answered = true;
	}
	LWLockRelease(repl_ml_quorum->lock);
	return true;
}

/*
 * Says whether the peer has said anything since it read the question at this
 * position of our WAL.
 */
static bool
has_answered(const ReplMlLink *link, uint16 self, XLogRecPtr question)
{
	return link->answered &&
		repl_ml_clock_counter((const ReplMlClock *) answer_of(link), self) > question;
}

/*
 * Says whether more than half of the members, this one included, have answered
 * a question.  Then *positions is the merge of the answers, palloc'd.
 */
bool
repl_ml_members_answered(uint16 self, XLogRecPtr question, ReplMlClock **positions)
{
	ReplMlQuorumDatabase *database = repl_ml_quorum_database(MyDatabaseId);
	ReplMlClock *merged = repl_ml_clock_empty();
	char		(*copies)[REPL_ML_ANSWER_BYTES] =
		palloc(REPL_ML_MAX_WORKERS * REPL_ML_ANSWER_BYTES);
	int			answers = 0;
	bool		enough;

	LWLockAcquire(repl_ml_quorum->lock, LW_SHARED);
	foreach_counting_link(link)
	{
		if (has_answered(link, self, question))
			memcpy(copies[answers++], answer_of(link), REPL_ML_ANSWER_BYTES);
	}
	enough = database != NULL && database->members_known &&
		answers + 1 >= repl_ml_quorum_required(database, REPL_ML_QUORUM);
	LWLockRelease(repl_ml_quorum->lock);

	/* from copies, so that nobody waits for the lock meanwhile */
	for (int i = 0; enough && i < answers; i++)
		merged = repl_ml_clock_merge(merged, (const ReplMlClock *) copies[i]);
	pfree(copies);
	*positions = merged;
	return enough;
}

/*
 * Returns the names of the peers that have not answered a question, "n2, n3".
 */
char *
repl_ml_members_silent(uint16 self, XLogRecPtr question)
{
	StringInfoData names;

	initStringInfo(&names);
	LWLockAcquire(repl_ml_quorum->lock, LW_SHARED);
	foreach_counting_link(link)
	{
		if (!has_answered(link, self, question))
			add_name(&names, link);
	}
	LWLockRelease(repl_ml_quorum->lock);
	return names.data;
}

/*
 * Returns how many of the members these peers and this node are; sets *members
 * to how many there are, 0 if that is not known.
 */
int
repl_ml_members_among(const int *peers, int count, int *members)
{
	ReplMlQuorumDatabase *database = repl_ml_quorum_database(MyDatabaseId);
	int			result = 1;

	LWLockAcquire(repl_ml_quorum->lock, LW_SHARED);
	foreach_counting_link(link)
	{
		for (int i = 0; i < count; i++)
		{
			if (link->peer == peers[i])
				result++;
		}
	}
	*members = database != NULL && database->members_known ? database->members : 0;
	LWLockRelease(repl_ml_quorum->lock);
	return result;
}

/* Says whether any peer reads from that database now. */
bool
repl_ml_members_is_served(Oid database)
{
	bool		served = false;

	LWLockAcquire(repl_ml_quorum->lock, LW_SHARED);
	for (int i = 0; i < repl_ml_quorum->links_used; i++)
		served |= repl_ml_quorum->links[i].database == database &&
			repl_ml_quorum->links[i].walsender != 0;
	LWLockRelease(repl_ml_quorum->lock);
	return served;
}

/* Says whether this node is known to be its group's only member. */
bool
repl_ml_members_is_alone(void)
{
	ReplMlQuorumDatabase *database = repl_ml_quorum_database(MyDatabaseId);
	bool		alone;

	LWLockAcquire(repl_ml_quorum->lock, LW_SHARED);
	alone = database != NULL && database->members_known && database->members == 1;
	LWLockRelease(repl_ml_quorum->lock);
	return alone;
}

/*
 * Says whether this database is a member that cannot reach a majority of its
 * group.  A database that is none, or not known as one yet, is not.
 */
bool
repl_ml_members_is_cut_off(void)
{
	if (repl_ml_quorum == NULL || !OidIsValid(MyDatabaseId))
		return false;
	for (int i = 0; i < REPL_ML_MAX_DATABASES; i++)
	{
		ReplMlQuorumDatabase *database = &repl_ml_quorum->databases[i];
		bool		cut_off;

		if (repl_ml_shared->databases[i].database != MyDatabaseId ||
			!repl_ml_shared->databases[i].member)
			continue;
		LWLockAcquire(repl_ml_quorum->lock, LW_SHARED);
		cut_off = !database->members_known ||
			repl_ml_members_reachable() < repl_ml_quorum_required(database, REPL_ML_QUORUM);
		LWLockRelease(repl_ml_quorum->lock);
		return cut_off;
	}
	return false;
}

/*
 * Returns the names of the members that have not acknowledged everything
 * before "lsn", "n2, n3".
 */
char *
repl_ml_members_missing(XLogRecPtr lsn)
{
	StringInfoData names;

	initStringInfo(&names);
	LWLockAcquire(repl_ml_quorum->lock, LW_SHARED);
	foreach_counting_link(link)
	{
		if (link->acknowledged < lsn)
			add_name(&names, link);
	}
	LWLockRelease(repl_ml_quorum->lock);
	return names.data;
}

/*
 * Writes the ready members of this database's group, this node first, into an
 * array of REPL_ML_MAX_WORKERS + 1; returns how many, 0 while they are not
 * known.
 */
int
repl_ml_members_states(ReplMlMemberState *states)
{
	ReplMlQuorumDatabase *database = repl_ml_quorum_database(MyDatabaseId);
	int			count = 0;

	LWLockAcquire(repl_ml_quorum->lock, LW_SHARED);
	if (database != NULL && database->members_known)
	{
		uint64		now = repl_ml_monotonic_now();

		states[count++] =
			(ReplMlMemberState) {.reachable = true,.acknowledged = GetFlushRecPtr(NULL)};
		foreach_counting_link(link)
			states[count++] = (ReplMlMemberState)
			{
				.node_id = link->peer,
					.reachable = is_reachable(link),
					.acknowledged = link->acknowledged,
					.silent = link->heard == 0 ? -1 : (int64) (now - Min(link->heard, now))
			};
	}
	LWLockRelease(repl_ml_quorum->lock);
	return count;
}

/* Called by a walsender now and then: so much has been sent to the peer since. */
void
repl_ml_members_sent(int peer, Size bytes)
{
	ReplMlLink *link;

	LWLockAcquire(repl_ml_quorum->lock, LW_EXCLUSIVE);
	link = find_link(peer);
	if (link != NULL)
	{
		link->sent_bytes += bytes;
		repl_ml_rate_note(&link->rate, link->sent_bytes);
	}
	LWLockRelease(repl_ml_quorum->lock);
}

/*
 * Writes the links to peers of this database into an array of
 * REPL_ML_MAX_WORKERS; returns how many.
 */
int
repl_ml_members_links(ReplMlLinkState *states)
{
	uint64		now = repl_ml_monotonic_now();
	int			count = 0;

	LWLockAcquire(repl_ml_quorum->lock, LW_SHARED);
	foreach_link(link)
		states[count++] = (ReplMlLinkState)
	{
		.peer = link->peer,
			.paused = is_paused(link),
			.known = link->counts,
			.reachable = is_reachable(link),
			.silent = link->heard == 0 ? -1 : (int64) (now - Min(link->heard, now)),
			.rate = find_rate(link),
			.connections = link->connections,
			.sent_bytes = link->sent_bytes,
			.sent_rate = link->walsender == 0 ? 0 : repl_ml_rate_get(&link->rate, link->sent_bytes),
			.since = link->since
	};
	LWLockRelease(repl_ml_quorum->lock);
	return count;
}
