/*
 * row.c
 *		Joins a version of a row, or its deletion, into the table.
 *
 * The same for a change from the stream, a row of an initial copy and a parked
 * change tried again: a join may be repeated and reordered.  A version whose
 * clock is before what is here is dropped, one whose clock is after it is
 * taken.  Otherwise the two are concurrent: conflict.c says which versions
 * remain, resolve.c what the row becomes of them.  All of it runs with the
 * rights of the table's owner; only the history is written with the caller's
 * own, which are the apply worker's, or those of whoever tries a change again.
 *
 * Not here: which rows a deletion is of (deletion.c), and how a row is found
 * and written (row/store.c).  On the way of a change apply/change.c comes
 * before this, and copy/rows.c for copies; row/store.c after it.
 *
 * Locks: the row, where it is here; where something is known of its deletion,
 * its key (repl_ml_version_lock).  Both are held until the transaction ends.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "executor/executor.h"
#include "utils/array.h"

#include "compat.h"
#include "converge/converge.h"
#include "row/row.h"
#include "server/server.h"
#include "wire/wire.h"

static void join_former_deletion(ReplMlJoin *join, uint16 writer);
static const ReplMlClock *find_deletion(ReplMlJoin *join, uint16 writer);
static int	update_history(ReplMlJoin *join, List *no_longer);
static void join_row(ReplMlJoin *join);
static void join_into_row(ReplMlJoin *join);
static void join_into_nothing(ReplMlJoin *join, const ReplMlClock *dead, uint16 writer);
static void note_no_loser(ReplMlJoin *join, const ReplMlClock *clock);
static bool load_versions(ReplMlJoin *join, const ReplMlClock *here, bool row_is_here,
						  ReplMlVersions *versions);
static void forget_evictions(ReplMlJoin *join, const ReplMlClock *here, bool row_is_here);
static int	join_deletion(ReplMlTarget *root, Datum key_array, const ReplMlBurial *burial,
						  void (*step) (ReplMlJoin *join));
static void bury_row(ReplMlJoin *join);
static void bury_found_row(ReplMlJoin *join);
static bool counts_for_found(const ReplMlJoin *join);
static void join_deletion_with_row(ReplMlJoin *join);
static void join_concurrent(ReplMlJoin *join, const ReplMlClock *here, bool row_is_here);
static void join_with_newcomer(ReplMlJoin *join);
static void log_eviction(ReplMlJoin *join, TupleTableSlot *row, const ReplMlClock *clock);
static void log_late_eviction(ReplMlJoin *join, const ReplMlClock *here);
static void count_equal_write(ReplMlJoin *join, const ReplMlVersions *versions,
							  const ReplMlResolution *resolution);
static void log_losers(ReplMlJoin *join, const ReplMlVersions *versions,
					   const ReplMlResolution *resolution, bool again);
static bool store_row(ReplMlJoin *join, TupleTableSlot *row, const ReplMlClock *clock,
					  bool row_is_here, const ReplMlVersions *versions);
static TupleTableSlot *put_under_clock(ReplMlTarget *target, TupleTableSlot *slot,
									   const ReplMlClock *clock);
static const ReplMlClock *read_clock(ReplMlTarget *target, TupleTableSlot *slot);

/* Counts what has become of the arriving version, if it comes from a peer's stream. */
static void
count(const ReplMlJoin *join, ReplMlCount what)
{
	if (join->source->counts != NULL)
		join->source->counts->of[what]++;
}

/* Counts a conflict by its type. */
static void
count_conflict(const ReplMlJoin *join, const char *type)
{
	static const struct
	{
		const char *type;
		ReplMlCount count;
	}			types[] = {
		{"insert_exists", REPL_ML_CONFL_INSERT_EXISTS},
		{"update_origin_differs", REPL_ML_CONFL_UPDATE_ORIGIN_DIFFERS},
		{"update_exists", REPL_ML_CONFL_UPDATE_EXISTS},
		{"update_deleted", REPL_ML_CONFL_UPDATE_DELETED},
		{"delete_origin_differs", REPL_ML_CONFL_DELETE_ORIGIN_DIFFERS},
	};

	for (int i = 0; i < lengthof(types); i++)
	{
		if (strcmp(types[i].type, type) == 0)
			count(join, types[i].count);
	}
}

/* Counts a user's row that was not here, as nobody has had it here so far. */
static void
count_missing(const ReplMlJoin *join, ReplMlCount what)
{
	if (strcmp(NameStr(join->target->table->schema_name), REPL_ML_SCHEMA) != 0)
		count(join, what);
}

/*
 * Says whether two clocks are of the same write, whatever else they know of.
 */
static bool
have_same_dot(const ReplMlClock *a, const ReplMlClock *b)
{
	ReplMlClockEntry x = repl_ml_clock_dot(a);
	ReplMlClockEntry y = repl_ml_clock_dot(b);

	return x.node == y.node && x.counter == y.counter;
}

/*
 * Joins a row of the enrolled table "relid" into it, for apply/change.c and
 * copy/rows.c.  Returns by how many conflicts the history has grown; it
 * shrinks where the row shows that the one its transaction had with an earlier
 * version is none.
 */
int
repl_ml_row_join(Oid relid, TupleTableSlot *incoming, const ReplMlSource *source)
{
	ReplMlTarget *root = repl_ml_targets_get(relid);
	ReplMlJoin	join = {.source = source};
	List	   *no_longer;
	ReplMlUser	saved;

	/* what follows may take the server down, or run code of the owner's */
	repl_ml_crash_writes(relid);
	repl_ml_become_owner(root->rel, &saved);
	join.target = repl_ml_targets_route(root, incoming, &join.arriving.row);
	repl_ml_key_from_slot(join.target->table, join.arriving.row, join.key);
	join.searched = join.arriving.row;
	join.arriving.clock = read_clock(join.target, join.arriving.row);
	join.arriving.dot = repl_ml_clock_dot(join.arriving.clock);
	join.winner_clock = join.arriving.clock;
	/* the lock of each row would cost WAL, and wait for clients */
	if (source->copied && join.target->table->former_count == 0 &&
		repl_ml_target_has(join.target, join.arriving.row, join.arriving.clock))
	{
		repl_ml_become_self(&saved);
		return 0;
	}
	no_longer = repl_ml_history_find_void(join.target->table, join.key, join.arriving.clock,
										  source);
	/* what this node writes from now on is above what it has seen */
	repl_ml_ticker_observe(repl_ml_clock_max_counter(join.arriving.clock));
	join_row(&join);
	join_former_deletion(&join, source->late ? 0 : join.arriving.dot.node);
	repl_ml_become_self(&saved);
	return update_history(&join, no_longer);
}

/*
 * Begins the join of a deletion of the row with the key in join->key: sets the
 * target, a partition perhaps, and the row to search for.
 */
static void
aim_at_key(ReplMlJoin *join, ReplMlTarget *root)
{
	TupleTableSlot *slot = root->scratch;

	ExecClearTuple(slot);
	ExecStoreAllNullTuple(slot);
	for (int i = 0; i < root->table->key_natts; i++)
	{
		slot->tts_values[root->table->key_attnums[i] - 1] = join->key[i];
		slot->tts_isnull[root->table->key_attnums[i] - 1] = false;
	}
	join->target = repl_ml_targets_route(root, slot, &slot);
	repl_ml_key_from_slot(join->target->table, slot, join->key);
	join->searched = slot;
}

/*
 * Finds, for verify/mend.c and with the owner's rights, the row with this key
 * and locks it.  Returns its target, or NULL if there is no such row.
 */
ReplMlTarget *
repl_ml_row_find(ReplMlTarget *root, Datum key_array)
{
	ReplMlJoin	join = {0};

	repl_ml_key_from_array(root->table, key_array, join.key);
	aim_at_key(&join, root);
	return repl_ml_target_find(join.target, join.searched) ? join.target : NULL;
}

/*
 * Makes the deletion the arriving version, and lets the node's counter follow
 * its clock.
 */
static void
set_deletion(ReplMlJoin *join, const ReplMlBurial *burial)
{
	join->arriving.clock = burial->clock;
	join->arriving.dot = repl_ml_clock_dot(burial->clock);
	join->arriving.deleted = true;
	join->arriving.eviction = burial->eviction;
	repl_ml_ticker_observe(repl_ml_clock_max_counter(burial->clock));
}

/*
 * Joins, for deletion.c, the deletion of the row with this key, which is of
 * the table's shape.  Returns what repl_ml_row_join does.
 */
int
repl_ml_row_bury(ReplMlTarget *root, Datum key_array, const ReplMlBurial *burial)
{
	return join_deletion(root, key_array, burial, bury_row);
}

/*
 * Joins a deletion that deletion.c has recorded by another key with a row that
 * it is of.  Returns what repl_ml_row_join does.
 */
int
repl_ml_row_bury_found(ReplMlTarget *root, Datum key_array, const ReplMlBurial *burial)
{
	return join_deletion(root, key_array, burial, bury_found_row);
}

/*
 * Joins a deletion of the row with this key: "step" does it, with the owner's
 * rights, and the history is written after it with the caller's.
 */
static int
join_deletion(ReplMlTarget *root, Datum key_array, const ReplMlBurial *burial,
			  void (*step) (ReplMlJoin *join))
{
	ReplMlJoin	join = {.source = burial->source,.eviction = burial->eviction};
	List	   *no_longer;
	ReplMlUser	saved;

	repl_ml_become_owner(root->rel, &saved);
	repl_ml_key_from_array(root->table, key_array, join.key);
	aim_at_key(&join, root);
	no_longer = repl_ml_history_find_void(join.target->table, join.key, burial->clock,
										  burial->source);
	set_deletion(&join, burial);
	step(&join);
	repl_ml_become_self(&saved);
	return update_history(&join, no_longer);
}

/*
 * Says, for deletion.c and with the owner's rights, whether the row with this
 * key is part of the clock's history, or not here.  It is locked then.
 */
bool
repl_ml_row_is_older(ReplMlTarget *root, Datum key_array, const ReplMlClock *clock)
{
	ReplMlJoin	join = {0};

	repl_ml_key_from_array(root->table, key_array, join.key);
	aim_at_key(&join, root);
	return !repl_ml_target_find(join.target, join.searched) ||
		repl_ml_clock_is_within(read_clock(join.target, join.target->found), clock);
}

/*
 * Joins the row that has just been joined with the deletions by another key
 * whose values it has, unless its writer knew them.  "writer" is as in
 * repl_ml_tombstone_find.
 */
static void
join_former_deletion(ReplMlJoin *join, uint16 writer)
{
	ReplMlTable *table = join->target->table;
	ReplMlClock *dead;

	if (table->former_count == 0 || !repl_ml_target_find(join->target, join->searched))
		return;
	dead = repl_ml_tombstone_find_former(table, join->target->found, writer);
	if (dead == NULL ||
		repl_ml_clock_is_within(dead, read_clock(join->target, join->target->found)))
		return;
	repl_ml_version_lock(table, join->key);
	join->arriving = (ReplMlVersion) {.clock = dead,.dot = repl_ml_clock_dot(dead),.deleted = true};
	join_deletion_with_row(join);
}

/*
 * Says, for a parked change before it is tried again, whether the version with
 * this key and clock is here, or something that is here knew it.  The key is
 * text, in the order of the index; a NULL in it is not known, and the answer
 * is no.
 */
bool
repl_ml_row_is_known(Oid relid, char **key, const ReplMlClock *clock)
{
	ReplMlTarget *root = repl_ml_targets_get(relid);
	ReplMlTable *table = root->table;
	ReplMlJoin	join = {0};
	const ReplMlClock *here;
	ReplMlUser	saved;

	for (int i = 0; i < table->key_natts; i++)
	{
		if (key[i] == NULL)
			return false;
	}
	repl_ml_become_owner(root->rel, &saved);
	for (int i = 0; i < table->key_natts; i++)
		join.key[i] = InputFunctionCall(&table->key_in[i], key[i], table->key_ioparams[i],
										table->key_typmods[i]);

	/* the row's clock, or its deletion's, knows all that came before */
	aim_at_key(&join, root);
	here = repl_ml_target_find(join.target, join.searched) ?
		read_clock(join.target, join.target->found) :
		repl_ml_tombstone_find(join.target->table, join.key, 0);
	repl_ml_become_self(&saved);
	return here != NULL && repl_ml_clock_is_within(repl_ml_late_rename(clock, NULL), here);
}

/*
 * Resolves the row of a key again from its stored versions, for reconsider.c:
 * another rule is in force.  Leaves a key of another shape than the table has
 * alone.
 */
void
repl_ml_row_resolve_again(Oid relid, Datum columns, Datum key_array, const ReplMlSource *source)
{
	ReplMlTarget *root = repl_ml_targets_get(relid);
	ReplMlJoin	join = {.source = source};
	const ReplMlClock *here;
	bool		found;
	ReplMlUser	saved;

	if (!repl_ml_shape_is(root->table, columns))
		return;
	repl_ml_become_owner(root->rel, &saved);
	repl_ml_key_from_array(root->table, key_array, join.key);
	aim_at_key(&join, root);
	/* nobody adds a version meanwhile */
	repl_ml_version_lock(join.target->table, join.key);
	found = repl_ml_target_find(join.target, join.searched);
	here = found ? read_clock(join.target, join.target->found) :
		repl_ml_tombstone_find(join.target->table, join.key, 0);
	if (here != NULL)
		join_concurrent(&join, here, found);
	repl_ml_become_self(&saved);
	(void) update_history(&join, NIL);
}

/*
 * Writes what a join has noted, with the caller's rights, and takes back what
 * is none.  Returns by how many conflicts the history has grown.
 */
static int
update_history(ReplMlJoin *join, List *no_longer)
{
	int			grown = 0;
	ListCell   *lc;

	foreach(lc, list_concat(no_longer, join->no_losers))
		grown -= repl_ml_history_take_back(lfirst(lc));
	foreach(lc, join->conflicts)
	{
		const ReplMlConflict *conflict = lfirst(lc);
		int			recorded = repl_ml_history_record(conflict, join->source);

		if (recorded > 0)
			count_conflict(join, conflict->type);
		grown += recorded;
	}
	return grown;
}

/*
 * Joins the arriving row with what is here: the row, or what is known of its
 * deletion.
 */
static void
join_row(ReplMlJoin *join)
{
	ReplMlTable *table = join->target->table;
	/* what the writer has removed since it wrote a late row does count */
	uint16		writer = join->source->late ? 0 : join->arriving.dot.node;
	const ReplMlClock *dead = NULL;

	/* where there is no row to lock, the key is: then look again */
	for (bool locked = false;; locked = true)
	{
		if (repl_ml_target_find(join->target, join->arriving.row))
		{
			join_into_row(join);
			return;
		}
		dead = find_deletion(join, writer);
		if (dead == NULL || locked)
			break;
		repl_ml_version_lock(table, join->key);
	}
	join_into_nothing(join, dead, writer);
}

/*
 * Returns the clock of what is known of the deletion of the arriving row, by
 * its key or a former one; NULL if nothing is.
 */
static const ReplMlClock *
find_deletion(ReplMlJoin *join, uint16 writer)
{
	ReplMlTable *table = join->target->table;
	ReplMlClock *dead = repl_ml_tombstone_find(table, join->key, writer);
	ReplMlClock *former = table->former_count == 0 ? NULL :
		repl_ml_tombstone_find_former(table, join->arriving.row, writer);

	if (dead == NULL || former == NULL)
		return dead == NULL ? former : dead;
	return repl_ml_clock_merge(dead, former);
}

/*
 * Joins the arriving row with the one that is here, in target->found, and
 * locked.
 */
static void
join_into_row(ReplMlJoin *join)
{
	const ReplMlClock *here = read_clock(join->target, join->target->found);

	if (repl_ml_clock_is_within(join->arriving.clock, here))
	{
		count(join, have_same_dot(join->arriving.clock, here) ? REPL_ML_DUPLICATE :
			  REPL_ML_DOMINATED);
		log_late_eviction(join, here);
		return;
	}
	if (repl_ml_clock_is_within(here, join->arriving.clock))
	{
		forget_evictions(join, here, true);
		store_row(join, join->arriving.row, join->arriving.clock, true, NULL);
	}
	else
		join_concurrent(join, here, true);
}

/*
 * Notes that a version is no loser, whatever was recorded: it is the winner
 * now, or was evicted and has been overwritten since.
 */
static void
note_no_loser(ReplMlJoin *join, const ReplMlClock *clock)
{
	join->no_losers = lappend(join->no_losers,
							  repl_ml_history_describe_void(join->target->table, join->key, clock));
}

/*
 * Notes that evicted versions which the arriving one knew have lost nothing,
 * as they were overwritten: what was recorded of them is to be taken back.
 */
static void
forget_evictions(ReplMlJoin *join, const ReplMlClock *here, bool row_is_here)
{
	ReplMlTarget *target = join->target;
	ReplMlVersions versions = {0};

	if (!repl_ml_shmem_may_have_tombstone(target->table->root))
		return;
	(void) load_versions(join, here, row_is_here, &versions);
	for (int i = 0; i < versions.count; i++)
	{
		if (versions.all[i].eviction == NULL ||
			have_same_dot(versions.all[i].clock, join->arriving.clock) ||
			repl_ml_history_is_reused(target->table, join->key, join->source))
			continue;
		if (repl_ml_clock_covers(join->arriving.clock, versions.all[i].dot))
			note_no_loser(join, versions.all[i].clock);
	}
}

/*
 * Joins the arriving row where none is: there never was one, or it was
 * deleted.  "dead" is what find_deletion returned.
 */
static void
join_into_nothing(ReplMlJoin *join, const ReplMlClock *dead, uint16 writer)
{
	ReplMlTable *table = join->target->table;
	const ReplMlClock *clock = join->arriving.clock;
	const ReplMlClock *known;

	if (dead != NULL && have_same_dot(clock, dead))
	{
		/* this very version was evicted, and joined with others perhaps */
		join->eviction = repl_ml_tombstone_eviction(table, join->key, clock);
		log_eviction(join, join->arriving.row, clock);
		if (!repl_ml_clock_is_within(clock, dead))
			repl_ml_tombstone_insert_merged(table, join->key, repl_ml_clock_merge(clock, dead));
		return;
	}
	/* also by a tombstone that the writer has removed: not before he wrote what it knows */
	known = repl_ml_tombstone_find(table, join->key, 0);
	if (known != NULL && repl_ml_clock_is_within(clock, known))
	{
		count(join, REPL_ML_MET_TOMBSTONE);
		log_late_eviction(join, known);
		return;
	}
	if (dead != NULL && !repl_ml_clock_is_within(dead, clock))
	{
		join_concurrent(join, dead, false);
		return;
	}
	/* an old version is evicted only for a row whose writer knew a later one: this one */
	if (dead == NULL)
		dead = known;
	if (dead != NULL && repl_ml_clock_is_within(dead, clock))
		forget_evictions(join, dead, false);
	/* a row that has just got this key has the clock of a new one, as it is */
	if (dead == NULL && !join->source->inserted && repl_ml_clock_count(clock) > 1)
		count_missing(join, REPL_ML_CONFL_UPDATE_MISSING);
	if (!store_row(join, join->arriving.row, clock, false, NULL))
		return;

	/* a deletion that another worker is applying may not have seen the row */
	dead = repl_ml_tombstone_find(table, join->key, writer);
	if (dead != NULL && (!repl_ml_clock_is_within(dead, clock) || have_same_dot(dead, clock)))
	{
		join->arriving = (ReplMlVersion) {.clock = dead,.dot = repl_ml_clock_dot(dead),
		.deleted = true};
		join_deletion_with_row(join);
	}
}

/*
 * Records the deletion first, and looks for the row after that: whoever
 * inserts it meanwhile finds the tombstone (row/tombstone.c).
 */
static void
bury_row(ReplMlJoin *join)
{
	ReplMlTable *table = join->target->table;
	const ReplMlClock *clock = join->arriving.clock;
	const ReplMlClock *dead = repl_ml_tombstone_find(table, join->key, 0);
	bool		known;

	/* an old copy of one we have removed: of what is here it can only know old copies, too */
	if (!join->source->late &&
		repl_ml_tombstone_collected(repl_ml_identity()->node_id, clock))
	{
		if (repl_ml_target_find(join->target, join->searched) &&
			repl_ml_clock_is_within(read_clock(join->target, join->target->found), clock))
			join_deletion_with_row(join);
		return;
	}
	if (dead != NULL)
	{
		repl_ml_version_lock(table, join->key);
		dead = repl_ml_tombstone_find(table, join->key, 0);
	}
	known = dead != NULL && repl_ml_clock_is_within(clock, dead);
	if (known)
		count(join, have_same_dot(clock, dead) ? REPL_ML_DUPLICATE : REPL_ML_DOMINATED);
	if (!known ||
		(join->eviction != NULL && repl_ml_tombstone_eviction(table, join->key, clock) == NULL))
		repl_ml_tombstone_insert(table, join->key, clock, join->eviction);

	if (repl_ml_target_find(join->target, join->searched))
	{
		if (counts_for_found(join))
			join_deletion_with_row(join);
		return;
	}
	if (!known && join->eviction == NULL)
		count_missing(join, REPL_ML_CONFL_DELETE_MISSING);

	/*
	 * A client may have deleted it while we waited for him.  Of one that comes
	 * again its own tombstone is part of what was here.
	 */
	dead = known ? repl_ml_tombstone_find(table, join->key, 0) :
		repl_ml_tombstone_find_others(table, join->key, 0, clock);
	if (dead != NULL && !repl_ml_clock_is_within(dead, clock))
		join_concurrent(join, dead, false);
	else if (dead != NULL && !have_same_dot(dead, clock))
		forget_evictions(join, dead, false);
}

/*
 * Joins the deletion with the row, unless that has gone since deletion.c found
 * it.  Its tombstone is written already, by another key.
 */
static void
bury_found_row(ReplMlJoin *join)
{
	repl_ml_version_lock(join->target->table, join->key);
	if (repl_ml_target_find(join->target, join->searched) && counts_for_found(join))
		join_deletion_with_row(join);
}

/*
 * Says whether the deletion counts for the row in target->found: it does not
 * where the row's writer had removed the tombstone before he wrote.  One that
 * was parked always counts: the writer may have removed the tombstone since; so
 * does one that knows the row, which a copy may have brought after all.
 */
static bool
counts_for_found(const ReplMlJoin *join)
{
	const ReplMlClock *here = read_clock(join->target, join->target->found);

	return join->source->late || repl_ml_clock_is_within(here, join->arriving.clock) ||
		!repl_ml_tombstone_collected(repl_ml_clock_dot(here).node, join->arriving.clock);
}

/*
 * Deletes the row if the deletion knew of it; otherwise the two are concurrent,
 * or the deletion is the eviction of just this version.  Does nothing where the
 * row is not here: then the tombstone says all.
 */
static void
join_deletion_with_row(ReplMlJoin *join)
{
	ReplMlTarget *target = join->target;
	const ReplMlClock *here;

	if (!repl_ml_target_find(target, join->searched))
		return;
	here = read_clock(target, target->found);
	if (repl_ml_clock_is_within(here, join->arriving.clock) &&
		!have_same_dot(here, join->arriving.clock))
	{
		forget_evictions(join, here, true);
		repl_ml_target_delete(target);
	}
	else
		join_concurrent(join, here, true);
}

/*
 * Loads the concurrent versions of what is here: a row in target->found, or a
 * deletion.  Returns whether they are stored; if not, what is here is the only
 * one.
 */
static bool
load_versions(ReplMlJoin *join, const ReplMlClock *here, bool row_is_here, ReplMlVersions *versions)
{
	ReplMlTarget *target = join->target;
	ReplMlVersion *version;

	if (repl_ml_version_load(target->table, join->key, RelationGetDescr(target->rel), here,
							 versions))
		return true;
	version = repl_ml_conflict_insert(versions, repl_ml_clock_dot(here));
	version->clock = here;
	version->deleted = !row_is_here;
	if (row_is_here)
		version->row = target->found;
	else
		version->eviction = repl_ml_tombstone_eviction(target->table, join->key, here);
	return false;
}

/*
 * Joins the arriving version with those here that did not know it, or, where
 * none arrives, resolves those here again.  The set, the row and the history
 * are the same on every node that has seen the same versions.
 */
static void
join_concurrent(ReplMlJoin *join, const ReplMlClock *here, bool row_is_here)
{
	ReplMlTarget *target = join->target;
	ReplMlVersions versions = {0};
	const ReplMlClock *clock = here;
	ReplMlResolution *resolution;
	bool		loaded = load_versions(join, here, row_is_here, &versions);

	if (join->arriving.clock != NULL)
	{
		/*
		 * the arriving deletion may be the eviction of a version that is here
		 */
		for (int i = 0; join->eviction != NULL && i < versions.count; i++)
		{
			if (!versions.all[i].deleted &&
				have_same_dot(versions.all[i].clock, join->arriving.clock))
				log_eviction(join, versions.all[i].row, versions.all[i].clock);
		}
		forget_evictions(join, here, row_is_here);
		clock = repl_ml_clock_merge(here, join->arriving.clock);
		if (!repl_ml_conflict_add(&versions, here, &join->arriving) &&
			repl_ml_clock_compare(clock, here) == REPL_ML_CLOCK_EQUAL)
			return;
	}
	/* the row and the history are made of the whole set, never of two of it */
	resolution = repl_ml_resolve(target, &versions, clock);
	join->winner_clock = resolution->winner->clock;
	count_equal_write(join, &versions, resolution);
	log_losers(join, &versions, resolution, loaded);
	repl_ml_version_save(target->table, join->key, &versions);
	if (!resolution->deleted)
	{
		store_row(join, resolution->row, resolution->clock, row_is_here, &versions);
		return;
	}
	/* no row is left of the set: what stands for that stays on this node */
	if (row_is_here)
		repl_ml_target_delete(target);
	here = repl_ml_tombstone_find(target->table, join->key, 0);
	if (here == NULL || !repl_ml_clock_is_within(clock, here))
		repl_ml_tombstone_insert_merged(target->table, join->key, clock);
	if (!row_is_here && join->arriving.clock != NULL)
		join_with_newcomer(join);
}

/*
 * Joins the arriving version with a row that a client has inserted after it
 * looked for tombstones, but before the one just written: the client knows
 * what was here, but not what arrives.
 */
static void
join_with_newcomer(ReplMlJoin *join)
{
	if (!repl_ml_target_find(join->target, join->searched))
		return;
	if (join->arriving.deleted)
		join_deletion_with_row(join);
	else
		join_into_row(join);
}

/*
 * Notes that the version lost a unique key, as join->eviction tells; does
 * nothing if that is NULL.
 */
static void
log_eviction(ReplMlJoin *join, TupleTableSlot *row, const ReplMlClock *clock)
{
	if (join->eviction != NULL)
		join->conflicts = lappend(join->conflicts,
								  repl_ml_history_describe_told_eviction(join->target, join->key,
																		 row, clock,
																		 join->eviction));
}

/*
 * Notes the loss of an arriving version that the group knows to have lost a
 * unique key.  Only its eviction stood for it so far, among what was resolved
 * to "here".
 */
static void
log_late_eviction(ReplMlJoin *join, const ReplMlClock *here)
{
	ReplMlTarget *target = join->target;
	ReplMlVersions versions = {0};

	if (!repl_ml_shmem_may_have_tombstone(target->table->root) ||
		!repl_ml_version_load(target->table, join->key, RelationGetDescr(target->rel), here,
							  &versions))
		return;
	for (int i = 0; i < versions.count; i++)
	{
		if (!have_same_dot(versions.all[i].clock, join->arriving.clock))
			continue;
		join->eviction = versions.all[i].eviction;
		log_eviction(join, join->arriving.row, join->arriving.clock);
	}
}

/*
 * Counts, for the view stat_apply, the arriving version if it, or one that it
 * beats, wrote just what the other wrote.
 */
static void
count_equal_write(ReplMlJoin *join, const ReplMlVersions *versions,
				  const ReplMlResolution *resolution)
{
	if (join->source->counts == NULL || join->arriving.clock == NULL)
		return;
	for (int i = 0; i < versions->count; i++)
	{
		const ReplMlVersion *loser = &versions->all[i];

		if (loser == resolution->winner ||
			!repl_ml_history_is_equal(join->target, resolution, loser) ||
			(!have_same_dot(loser->clock, join->arriving.clock) &&
			 !have_same_dot(resolution->winner->clock, join->arriving.clock)))
			continue;
		if (repl_ml_history_is_insert(resolution->winner, loser))
			count(join, REPL_ML_EQUAL_INSERTS);
		else
			count(join, REPL_ML_EQUAL_UPDATES);
		return;
	}
}

/*
 * Notes each version that lost something.  With "again" they had been resolved
 * before, and one that was a loser then may be none now.
 */
static void
log_losers(ReplMlJoin *join, const ReplMlVersions *versions, const ReplMlResolution *resolution,
		   bool again)
{
	for (int i = 0; i < versions->count; i++)
	{
		const ReplMlVersion *loser = &versions->all[i];
		ReplMlConflict *conflict = NULL;

		/* the loss of an evicted one is its eviction */
		if (loser != resolution->winner && loser->eviction == NULL)
			conflict = repl_ml_history_describe(join->target, join->key, resolution, loser);
		if (conflict != NULL)
			join->conflicts = lappend(join->conflicts, conflict);
		else if (again && loser->eviction == NULL)
			note_no_loser(join, loser->clock);
	}
}

/*
 * Stores the row under "clock", in place of target->found if that is here.
 * Returns false if another row has a unique key of it by right: then this one
 * is evicted.  "versions" are what it was resolved from, NULL for one alone.
 */
static bool
store_row(ReplMlJoin *join, TupleTableSlot *row, const ReplMlClock *clock, bool row_is_here,
		  const ReplMlVersions *versions)
{
	ReplMlTarget *target = join->target;
	TupleTableSlot *stored = put_under_clock(target, row, clock);

	if (!repl_ml_unique_make_room(join, stored, clock, row_is_here))
	{
		repl_ml_unique_evict(join->target, join->key, clock, versions, join->eviction);
		if (row_is_here)
			repl_ml_target_delete(target);
		return false;
	}
	if (row_is_here)
		repl_ml_target_update(target, stored);
	else
		repl_ml_target_insert(target, stored);
	return true;
}

/*
 * Returns the row in "slot" under another clock, in the target's scratch slot.
 */
static TupleTableSlot *
put_under_clock(ReplMlTarget *target, TupleTableSlot *slot, const ReplMlClock *clock)
{
	TupleTableSlot *result = target->scratch;
	int			natts = result->tts_tupleDescriptor->natts;

	slot_getallattrs(slot);
	ExecClearTuple(result);
	memcpy(result->tts_values, slot->tts_values, natts * sizeof(Datum));
	memcpy(result->tts_isnull, slot->tts_isnull, natts * sizeof(bool));
	result->tts_values[target->table->clock_attnum - 1] = PointerGetDatum(clock);
	result->tts_isnull[target->table->clock_attnum - 1] = false;
	return ExecStoreVirtualTuple(result);
}

/* Returns a version's clock, with late writes as whose they are; raises an error if it has none. */
static const ReplMlClock *
read_clock(ReplMlTarget *target, TupleTableSlot *slot)
{
	bool		isnull;
	Datum		value = slot_getattr(slot, target->table->clock_attnum, &isnull);

	return repl_ml_late_rename(repl_ml_table_clock(target->table, value, isnull), NULL);
}
