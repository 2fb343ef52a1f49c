/*
 * node.c
 *		One row of one table on one node, in memory: what converge/row.c calls to
 *		find, store and remember it.
 *
 * Does what the files of src/row and src/apply say of the functions of the
 * same names, as far as one key, transactions of one change and no removal of
 * tombstones need it.  The history keeps of each loser who it lost to.
 */
#include "postgres.h"

#include "executor/executor.h"
#include "fmgr.h"

#include "algebra.h"
#include "server/server.h"

enum
{
	Anum_id = 1,
	Anum_event,
	Anum_rank,
	Anum_clock
};

const char *algebra_problem = NULL; /* what the code under test did wrong */

static const ReplMlPolicy *the_policy;
static const History *the_history;
static NodeState *the_node;

/* the tombstone this event has written, if any, and what there was before it */
static const ReplMlClock *inserted;
static bool had_tombstone;
static StoredClock dead_before;

static ReplMlTable the_table = {.schema_name = {"public"},.table_name = {"t"},.clock_attnum = Anum_clock,
	.key_natts = 1,.key_attnums = {Anum_id}};
static FormData_pg_class the_class;
static RelationData the_relation = {.rd_rel = &the_class};
static ReplMlTarget the_target = {.rel = &the_relation,.table = &the_table};

/* Makes the target's slots, which are never freed. */
static TupleTableSlot *
copy_forever(TupleTableSlot *slot)
{
	int			natts = slot->tts_tupleDescriptor->natts;
	TupleTableSlot *copy = malloc(sizeof(TupleTableSlot));

	memcpy(copy, slot, sizeof(TupleTableSlot));
	copy->tts_values = calloc(natts, sizeof(Datum));
	copy->tts_isnull = calloc(natts, sizeof(bool));
	return copy;
}

/* Which policy is in force, always; to be called once for each. */
void
algebra_node_setup(const ReplMlPolicy *policy)
{
	TupleTableSlot *slot = algebra_make_slot(false);

	the_policy = policy;
	the_relation.rd_att = slot->tts_tupleDescriptor;
	the_target.found = copy_forever(slot);
	the_target.scratch = copy_forever(slot);
	algebra_free_all();
}

/* A node that has nothing of the row. */
void
algebra_node_start(NodeState *state)
{
	memset(state, 0, sizeof(NodeState));
	state->row = -1;
	memset(state->stored, -1, sizeof(state->stored));
	memset(state->lost_to, NOT_LOST, sizeof(state->lost_to));
}

/* The row of an event, without its clock. */
TupleTableSlot *
algebra_node_row(int event, int rank)
{
	TupleTableSlot *slot = algebra_make_slot(true);

	memset(slot->tts_isnull, false, 3 * sizeof(bool));
	slot->tts_values[Anum_id - 1] = Int32GetDatum(1);
	slot->tts_values[Anum_event - 1] = Int32GetDatum(event);
	slot->tts_values[Anum_rank - 1] = Int32GetDatum(rank);
	return slot;
}

/* Lets an event arrive. */
void
algebra_node_join(NodeState *state, const History *history, int event)
{
	const Event *arriving = &history->events[event];
	ReplMlSource source = {.node = arriving->node};

	the_node = state;
	the_history = history;
	inserted = NULL;
	if (arriving->deleted)
	{
		ReplMlBurial burial = {.clock = arriving->clock,.eviction = arriving->evicts < 0 ? NULL : "told",.source = &source};

		(void) repl_ml_row_bury(repl_ml_targets_get(1), (Datum) 0, &burial);
	}
	else
	{
		TupleTableSlot *row = arriving->row;

		row->tts_values[Anum_clock - 1] = PointerGetDatum(arriving->clock);
		row->tts_isnull[Anum_clock - 1] = false;
		(void) repl_ml_row_join(1, row, &source);
	}
	algebra_free_all();
}

static void
complain(const char *problem)
{
	if (algebra_problem == NULL)
		algebra_problem = problem;
}

static void
set_clock(StoredClock *stored, const ReplMlClock *clock)
{
	if (VARSIZE_ANY(clock) > CLOCK_ROOM)
		algebra_give_up("a clock is too long");
	memset(stored, 0, sizeof(StoredClock));
	memcpy(stored, clock, VARSIZE_ANY(clock));
}

static bool
same_clock(const ReplMlClock *a, const ReplMlClock *b)
{
	return VARSIZE_ANY(a) == VARSIZE_ANY(b) && memcmp(a, b, VARSIZE_ANY(a)) == 0;
}

/* The write with this dot. */
static int
event_of(ReplMlClockEntry dot)
{
	for (int i = 0; i < the_history->writes; i++)
	{
		if (the_history->events[i].node == dot.node && the_history->events[i].counter == dot.counter)
			return i;
	}
	complain("a version has a dot that no write has");
	return 0;
}

static int
event_of_row(TupleTableSlot *row)
{
	return DatumGetInt32(row->tts_values[Anum_event - 1]);
}

/* The target */

ReplMlTarget *
repl_ml_targets_get(Oid relid)
{
	return &the_target;
}

ReplMlTarget *
repl_ml_targets_route(ReplMlTarget *root, TupleTableSlot *slot, TupleTableSlot **leaf_slot)
{
	*leaf_slot = slot;
	return root;
}

void
repl_ml_crash_writes(Oid relid)
{
}

ReplMlClock *
repl_ml_table_clock(const ReplMlTable *table, Datum value, bool isnull)
{
	return DatumGetReplMlClockP(value);
}

void
repl_ml_become_owner(Relation rel, ReplMlUser *saved)
{
}

void
repl_ml_become_self(const ReplMlUser *saved)
{
}

bool
repl_ml_target_find(ReplMlTarget *target, TupleTableSlot *searched)
{
	TupleTableSlot *found = target->found;

	if (the_node->row < 0)
		return false;
	memcpy(found->tts_values, the_history->events[the_node->row].row->tts_values, 3 * sizeof(Datum));
	memset(found->tts_isnull, false, 4 * sizeof(bool));
	/* a copy: what is read stays what it was when the row changes */
	found->tts_values[Anum_clock - 1] = PointerGetDatum(memcpy(palloc(CLOCK_ROOM), &the_node->row_clock, CLOCK_ROOM));
	return true;
}

/* only copies ask, which are not tried here */
bool
repl_ml_target_has(ReplMlTarget *target, TupleTableSlot *searched, const ReplMlClock *clock)
{
	return false;
}

void
repl_ml_target_insert(ReplMlTarget *target, TupleTableSlot *slot)
{
	if (the_node->row >= 0)
		complain("a row was inserted where one was");
	the_node->row = event_of_row(slot);
	set_clock(&the_node->row_clock, (ReplMlClock *) DatumGetPointer(slot->tts_values[Anum_clock - 1]));
}

void
repl_ml_target_update(ReplMlTarget *target, TupleTableSlot *slot)
{
	if (the_node->row < 0)
		complain("a row was updated where none was");
	the_node->row = event_of_row(slot);
	set_clock(&the_node->row_clock, (ReplMlClock *) DatumGetPointer(slot->tts_values[Anum_clock - 1]));
}

void
repl_ml_target_delete(ReplMlTarget *target)
{
	if (the_node->row < 0)
		complain("a row was deleted where none was");
	the_node->row = -1;
	memset(&the_node->row_clock, 0, sizeof(StoredClock));
}

/* Keys: there is one. */

void
repl_ml_key_from_slot(ReplMlTable *table, TupleTableSlot *slot, Datum *key)
{
	key[0] = Int32GetDatum(1);
}

void
repl_ml_key_from_array(ReplMlTable *table, Datum array, Datum *key)
{
	key[0] = Int32GetDatum(1);
}

/* Former ids: no node here has been set back */

const ReplMlClock *
repl_ml_late_rename(const ReplMlClock *clock, bool *counted)
{
	if (counted != NULL)
		*counted = false;
	return clock;
}

/* Tombstones */

ReplMlClock *
repl_ml_tombstone_find(ReplMlTable *table, Datum *key, uint16 writer)
{
	if (!the_node->has_tombstone)
		return NULL;
	return repl_ml_clock_merge(&the_node->dead.clock, &the_node->dead.clock);
}

/* Asked for right after the insertion of "except" only. */
ReplMlClock *
repl_ml_tombstone_find_others(ReplMlTable *table, Datum *key, uint16 writer, const ReplMlClock *except)
{
	if (inserted == NULL || !same_clock(except, inserted))
		return repl_ml_tombstone_find(table, key, writer);
	return had_tombstone ? repl_ml_clock_merge(&dead_before.clock, &dead_before.clock) : NULL;
}

void
repl_ml_tombstone_insert_merged(ReplMlTable *table, Datum *key, const ReplMlClock *clock)
{
	repl_ml_tombstone_insert(table, key, clock, NULL);
}

void
repl_ml_tombstone_insert(ReplMlTable *table, Datum *key, const ReplMlClock *clock, const char *eviction)
{
	inserted = clock;
	had_tombstone = the_node->has_tombstone;
	dead_before = the_node->dead;
	if (eviction != NULL)
		the_node->told |= 1 << event_of(repl_ml_clock_dot(clock));
	set_clock(&the_node->dead, the_node->has_tombstone ? repl_ml_clock_merge(&the_node->dead.clock, clock) : clock);
	the_node->has_tombstone = true;
}

bool
repl_ml_tombstone_collected(uint16 node, const ReplMlClock *clock)
{
	return false;
}

bool
repl_ml_shmem_may_have_tombstone(Oid table)
{
	return true;
}

bool
repl_ml_history_is_reused(ReplMlTable *table, Datum *key, const ReplMlSource *source)
{
	return false;
}

char *
repl_ml_tombstone_eviction(ReplMlTable *table, Datum *key, const ReplMlClock *evicted)
{
	int			event = event_of(repl_ml_clock_dot(evicted));

	return (the_node->told & 1 << event) && same_clock(evicted, the_history->events[event].clock) ? "told" : NULL;
}

/* Concurrent versions */

void
repl_ml_version_lock(ReplMlTable *table, Datum *key)
{
}

bool
repl_ml_version_load(ReplMlTable *table, Datum *key, TupleDesc desc, const ReplMlClock *clock, ReplMlVersions *versions)
{
	ReplMlClockEntry last = repl_ml_clock_dot(clock);

	versions->count = 0;
	for (int i = 0; i < the_node->stored_count; i++)
	{
		const Event *event = &the_history->events[the_node->stored[i]];
		ReplMlVersion *version = repl_ml_conflict_insert(versions, repl_ml_clock_dot(event->clock));

		version->clock = event->clock;
		version->deleted = (the_node->stored_deleted >> i & 1) != 0;
		version->row = version->deleted ? NULL : algebra_make_slot(false);
		version->eviction = version->deleted && event->row != NULL ? "told" : NULL;
		if (!version->deleted)
		{
			memcpy(version->row->tts_values, event->row->tts_values, 3 * sizeof(Datum));
			memset(version->row->tts_isnull, false, 3 * sizeof(bool));
		}
	}
	if (versions->count > 0 && versions->all[versions->count - 1].dot.node == last.node &&
		versions->all[versions->count - 1].dot.counter == last.counter)
		return true;
	versions->count = 0;
	return false;
}

/* What cannot be stored as a number must be what its writer left. */
void
repl_ml_version_save(ReplMlTable *table, Datum *key, const ReplMlVersions *versions)
{
	the_node->stored_count = 0;
	the_node->stored_deleted = 0;
	memset(the_node->stored, -1, sizeof(the_node->stored));
	if (versions->count < 2)
		return;
	if (versions->count > the_history->writes)
	{
		complain("there are more versions than writes");
		return;
	}
	for (int i = 0; i < versions->count; i++)
	{
		const ReplMlVersion *version = &versions->all[i];
		int			event = event_of(version->dot);

		if (!same_clock(version->clock, the_history->events[event].clock))
			complain("a version was stored under another clock than its writer's");
		if (version->deleted != (version->row == NULL))
			complain("a deletion has a row, or a row has none");
		if (version->row != NULL && event_of_row(version->row) != event)
			complain("a version was stored with another one's row");
		if (i > 0 && !repl_ml_clock_dot_before(versions->all[i - 1].dot, version->dot))
			complain("the versions are not sorted by dot");
		the_node->stored[i] = event;
		the_node->stored_deleted |= version->deleted << i;
	}
	the_node->stored_count = versions->count;
}

/* The policy */

const ReplMlPolicy *
repl_ml_policy_at(ReplMlTable *table, ReplMlClockEntry dot)
{
	return the_policy;
}

/* Other unique keys: there are none; what other nodes announce of them arrives. */

bool
repl_ml_unique_make_room(ReplMlJoin *join, TupleTableSlot *row, const ReplMlClock *clock, bool replaces_found)
{
	return true;
}

/* The history: a description always has all there is to write. */

static ReplMlConflict *
make_conflict(const ReplMlClock *winner, const ReplMlClock *loser, const char *type)
{
	ReplMlConflict *conflict = palloc0(sizeof(ReplMlConflict));

	conflict->winner_clock = winner;
	conflict->loser_clock = loser;
	conflict->type = type;
	return conflict;
}

ReplMlConflict *
repl_ml_history_describe(ReplMlTarget *target, Datum *key, const ReplMlResolution *resolution, const ReplMlVersion *loser)
{
	if (loser->deleted && resolution->deleted)
		return NULL;
	return make_conflict(resolution->winner->clock, loser->clock, "");
}

ReplMlConflict *
repl_ml_history_describe_told_eviction(ReplMlTarget *target, Datum *key, TupleTableSlot *loser,
									   const ReplMlClock *loser_clock, const char *eviction)
{
	return make_conflict(NULL, loser_clock, "evicted");
}

ReplMlVoid *
repl_ml_history_describe_void(ReplMlTable *table, Datum *key, const ReplMlClock *clock)
{
	ReplMlVoid *version = palloc0(sizeof(ReplMlVoid));

	version->clock = clock;
	return version;
}

List *
repl_ml_history_find_void(ReplMlTable *table, Datum *key, const ReplMlClock *clock, const ReplMlSource *source)
{
	return NIL;
}

int
repl_ml_history_record(const ReplMlConflict *conflict, const ReplMlSource *source)
{
	int8	   *lost_to = &the_node->lost_to[event_of(repl_ml_clock_dot(conflict->loser_clock))];

	if (conflict->winner_clock == NULL)
		*lost_to = EVICTED;
	else if (*lost_to != EVICTED)
		*lost_to = event_of(repl_ml_clock_dot(conflict->winner_clock));
	return 1;
}

int
repl_ml_history_take_back(const ReplMlVoid *version)
{
	the_node->lost_to[event_of(repl_ml_clock_dot(version->clock))] = NOT_LOST;
	return 1;
}

/* The rest */

void
repl_ml_ticker_observe(uint64 counter)
{
}

const ReplMlIdentity *
repl_ml_identity(void)
{
	static const ReplMlIdentity identity = {.member = true,.node_id = 1};

	return &identity;
}
