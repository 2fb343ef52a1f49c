/*
 * barrier.c
 *		Reads that are never older than what was acknowledged before: asking a
 *		majority how far it is, and catching up with that.
 *
 * What was acknowledged by a majority is on some member of every majority.  So
 * who reads asks all members, by a message in its own WAL; each answers in its
 * WAL with the positions of all nodes it has received, as soon as it reads the
 * question.  When more than half of the members, this one included, have
 * answered, everything acknowledged before the question is below the greatest
 * of these positions, and is visible here when this node has that much of each.
 *
 * A node that was dropped cannot send what it had; the members compare what
 * they have of it instead (copy/dropped.c), and a majority of that is waited for.
 *
 * Not here: up to where this node has what (position.c), and which transactions
 * read so (read.c).  No lock of ours is held while a reader waits.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/xlog.h"
#include "access/xloginsert.h"
#include "catalog/pg_type.h"
#include "miscadmin.h"
#include "replication/origin.h"
#include "storage/condition_variable.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

#include "commit/commit.h"
#include "compat.h"
#include "read/read.h"
#include "server/server.h"
#include "wire/wire.h"

#define QUESTION			"ask"
#define ANSWER				"at"

#define MEMBER_TABLE		"member"
#define DROPPED_TABLE		"dropped_node"
#define COPIES_TABLE		"table_sync"

enum
{
	Anum_member_node_id = 1,
	Anum_member_state = 8
};

enum
{
	Anum_dropped_node_id = 1,
	Anum_dropped_compared = 3
};

enum
{
	Anum_copy_node_id = 1,
	Anum_copy_state = 4
};

static int	dropped_members(int *nodes, int room);
static int	compared_members(int dropped, int *members);
static ReplMlClock *without_dropped(const ReplMlClock *wanted);
static bool all_dropped_are_compared(void);
static int	without_due_copies(const int *peers, int count, int *copied);

/*
 * Returns what a message begins with: "ask <group>" or "at <group>
 * <positions>".  Everybody can write messages into the WAL, but not everybody
 * knows the id of the group.
 */
static char *
message_head(const char *verb, const pg_uuid_t *group)
{
	return psprintf("%s %s", verb,
					DatumGetCString(DirectFunctionCall1(uuid_out, UUIDPGetDatum(group))));
}

/*
 * Reads the positions of an answer; returns NULL if it is none.  Who knows the
 * group's id can write anything, and an error would end the stream again and
 * again.
 */
static ReplMlClock *
read_positions(const char *text)
{
	MemoryContext context = CurrentMemoryContext;
	ReplMlClock *volatile positions = NULL;

	PG_TRY();
	{
		positions = repl_ml_clock_from_text(text);
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(context);
		if (geterrcode() == ERRCODE_OUT_OF_MEMORY || geterrcode() == ERRCODE_QUERY_CANCELED)
			PG_RE_THROW();
		FlushErrorState();
	}
	PG_END_TRY();
	return positions;
}

/*
 * Called by an apply worker, outside transactions, with a peer's message:
 * keeps an answer, to whomever; returns true if the message is a question.
 */
bool
repl_ml_barrier_read(const pg_uuid_t *group, int peer, const char *message)
{
	char	   *answer = message_head(ANSWER, group);

	if (strncmp(message, answer, strlen(answer)) == 0)
	{
		ReplMlClock *positions = read_positions(message + strlen(answer));

		if (positions != NULL && repl_ml_members_set_answer(peer, positions))
			repl_ml_positions_advanced();
		return false;
	}
	return strcmp(message, message_head(QUESTION, group)) == 0;
}

/*
 * Called by an apply worker that has read a question, outside transactions:
 * tells all peers how far this node is.
 */
void
repl_ml_barrier_answer(const pg_uuid_t *group, uint16 self)
{
	bool		complete;
	ReplMlClock *positions = repl_ml_positions_received(self, &complete);

	/* who does not know must not answer: the asker waits for others */
	if (complete)
		(void) repl_ml_news_write(psprintf("%s %s", message_head(ANSWER, group),
										   repl_ml_clock_to_text(positions)));
}

/*
 * Called by a backend: returns when everything acknowledged anywhere before
 * the call is visible to new snapshots here; raises an error at the deadline.
 * Takes no transaction snapshot.
 */
void
repl_ml_barrier_run(TimestampTz deadline)
{
	const ReplMlIdentity *self = repl_ml_identity_require();
	uint16		node_id = self->node_id;
	bool		complete;
	ReplMlClock *wanted;
	ReplMlClock *own;
	char	   *lacking;
	XLogRecPtr	question;

	if (self->joining)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("node \"%s\" is still joining the group", NameStr(self->node_name)),
				 errhint("Wait with SELECT repl_ml.wait_for_node(%s, '10 min').",
						 quote_literal_cstr(NameStr(self->node_name)))));

	/* this node's own answer, which it need not send */
	own = repl_ml_positions_received(node_id, &complete);
	(void) repl_ml_news_write(message_head(QUESTION, &self->group_id));
	question = ProcLastRecPtr;

	while (!repl_ml_members_answered(node_id, question, &wanted))
	{
		if (!repl_ml_position_wait(deadline, "ReplMlBarrierAnswers"))
		{
			char	   *silent = repl_ml_members_silent(node_id, question);

			ereport(ERROR,
					(errcode(ERRCODE_QUERY_CANCELED),
					 errmsg("too few members have answered to read what has been acknowledged"),
					 silent[0] != '\0' ? errdetail("No answer from: %s.", silent) :
					 errdetail("It is not known yet who the members are."),
					 errhint("See SELECT * FROM repl_ml.health.")));
		}
	}

	/* what some member has, this one must show */
	wanted = repl_ml_clock_merge(wanted, own);
	while (!repl_ml_barrier_covers(wanted, &lacking))
	{
		if (!repl_ml_position_wait(deadline, "ReplMlBarrierApply"))
			ereport(ERROR,
					(errcode(ERRCODE_QUERY_CANCELED),
					 errmsg("this node does not have everything that has been acknowledged yet"),
					 lacking != NULL ? errdetail("It has %s.", lacking) :
					 errdetail("What is left of a dropped node has not been compared with the "
							   "other members yet."),
					 errhint("See SELECT * FROM repl_ml.stat_apply.")));
	}
	ConditionVariableCancelSleep();
}

/*
 * Says whether everything wanted is here, for readers and for who takes the lease of
 * strong tables.  If not, "lacking" says what is missing, or NULL: a comparison.
 */
bool
repl_ml_barrier_covers(const ReplMlClock *wanted, char **lacking)
{
	*lacking = NULL;
	if (!all_dropped_are_compared())
		return false;
	*lacking = repl_ml_positions_lacking(without_dropped(wanted), repl_ml_positions());
	return *lacking == NULL;
}

/*
 * Returns what is wanted without that of dropped nodes, with which nobody gets
 * further: what they left has been compared.
 */
static ReplMlClock *
without_dropped(const ReplMlClock *wanted)
{
	int			nodes[REPL_ML_MAX_CLOCK_ENTRIES];
	int			node_count = dropped_members(nodes, lengthof(nodes));
	int			count = 0;
	ReplMlClockEntry *entries =
		palloc(Max(repl_ml_clock_count(wanted), 1) * sizeof(ReplMlClockEntry));

	for (int i = 0; i < repl_ml_clock_count(wanted); i++)
	{
		ReplMlClockEntry entry = repl_ml_clock_entry(wanted, i);
		bool		dropped = false;

		for (int j = 0; j < node_count; j++)
			dropped |= nodes[j] == entry.node;
		if (!dropped)
			entries[count++] = entry;
	}
	return repl_ml_clock_from_entries(entries, count);
}

/*
 * Says whether what each dropped node left has been compared with enough
 * members.  What had been acknowledged is on more than half of those there
 * were before the drops, so on some of the members that are left: this node
 * must have been compared with one of these.  A drop is over once all members
 * have been.
 */
static bool
all_dropped_are_compared(void)
{
	int			nodes[REPL_ML_MAX_CLOCK_ENTRIES];
	int			compared[REPL_ML_MAX_CLOCK_ENTRIES];
	int			count = dropped_members(nodes, lengthof(nodes));
	int			members = 0;
	int			drops = 0;
	int			owners;

	for (int i = 0; i < count; i++)
	{
		compared[i] = compared_members(nodes[i], &members);
		if (compared[i] < members)
			drops++;
	}

	/* it is not known yet who the members are, or nothing has been compared */
	if (count > 0 && members == 0)
		return false;
	owners = Max((members + drops) / 2 + 1 - drops, 1);
	for (int i = 0; i < count; i++)
	{
		if (compared[i] <= members - owners)
			return false;
	}
	return true;
}

PG_FUNCTION_INFO_V1(repl_ml_dropped_are_settled);

/*
 * repl_ml.dropped_are_settled(): whether this node has let go of each dropped node, and
 * has what every other member had of it: nothing of it comes here any more.
 */
Datum
repl_ml_dropped_are_settled(PG_FUNCTION_ARGS)
{
	int			nodes[REPL_ML_MAX_CLOCK_ENTRIES];
	int			count = dropped_members(nodes, lengthof(nodes));
	bool		settled = true;

	for (int i = 0; i < count && settled; i++)
	{
		int			members = 0;

		settled = compared_members(nodes[i], &members) == members && members > 0;
	}
	PG_RETURN_BOOL(settled);
}

/*
 * Reads the ids of dropped nodes, as far as there is room; returns how many.
 */
static int
dropped_members(int *nodes, int room)
{
	Relation	rel = table_open(repl_ml_catalog_oid(MEMBER_TABLE), AccessShareLock);
	SysScanDesc scan = systable_beginscan(rel, InvalidOid, false, NULL, 0, NULL);
	HeapTuple	tuple;
	int			count = 0;

	while (count < room && HeapTupleIsValid(tuple = systable_getnext(scan)))
	{
		bool		isnull;
		TupleDesc	desc = RelationGetDescr(rel);
		char	   *state =
			TextDatumGetCString(heap_getattr(tuple, Anum_member_state, desc, &isnull));

		if (strcmp(state, "dropped") == 0)
			nodes[count++] = DatumGetInt32(heap_getattr(tuple, Anum_member_node_id, desc, &isnull));
		pfree(state);
	}
	systable_endscan(scan);
	table_close(rel, AccessShareLock);
	return count;
}

/*
 * Returns with how many members, itself included, this node has compared what
 * a dropped one left; 0 if with none yet.
 */
static int
compared_members(int dropped, int *members)
{
	Relation	rel = table_open(repl_ml_catalog_oid(DROPPED_TABLE), AccessShareLock);
	SysScanDesc scan = systable_beginscan(rel, InvalidOid, false, NULL, 0, NULL);
	HeapTuple	tuple;
	int			result = 0;

	while (result == 0 && HeapTupleIsValid(tuple = systable_getnext(scan)))
	{
		bool		isnull;
		TupleDesc	desc = RelationGetDescr(rel);
		ArrayType  *compared;
		int			copied[REPL_ML_MAX_CLOCK_ENTRIES];
		int			count;

		if (DatumGetInt32(heap_getattr(tuple, Anum_dropped_node_id, desc, &isnull)) != dropped)
			continue;
		compared = DatumGetArrayTypeP(heap_getattr(tuple, Anum_dropped_compared, desc, &isnull));
		count = without_due_copies((int *) ARR_DATA_PTR(compared),
								   ArrayGetNItems(ARR_NDIM(compared), ARR_DIMS(compared)), copied);
		result = repl_ml_members_among(copied, count, members);
	}
	systable_endscan(scan);
	table_close(rel, AccessShareLock);
	return result;
}

/*
 * Returns how many of these peers are compared with and, where they had more,
 * have been copied from, and which: the copies are ordered with the comparison
 * and made later.
 */
static int
without_due_copies(const int *peers, int count, int *copied)
{
	Relation	rel = table_open(repl_ml_catalog_oid(COPIES_TABLE), AccessShareLock);
	SysScanDesc scan = systable_beginscan(rel, InvalidOid, false, NULL, 0, NULL);
	HeapTuple	tuple;
	int			result = Min(count, REPL_ML_MAX_CLOCK_ENTRIES);

	memcpy(copied, peers, result * sizeof(int));
	while (HeapTupleIsValid(tuple = systable_getnext(scan)))
	{
		bool		isnull;
		TupleDesc	desc = RelationGetDescr(rel);
		char	   *state =
			TextDatumGetCString(heap_getattr(tuple, Anum_copy_state, desc, &isnull));
		int			peer = DatumGetInt32(heap_getattr(tuple, Anum_copy_node_id, desc, &isnull));

		/* a peer whose copy is due does not count */
		for (int i = 0; i < result && strcmp(state, "copied") != 0; i++)
		{
			if (copied[i] == peer)
				copied[i--] = copied[--result];
		}
		pfree(state);
	}
	systable_endscan(scan);
	table_close(rel, AccessShareLock);
	return result;
}
