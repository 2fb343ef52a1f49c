/*
 * supervisor.c
 *		One process a member database: keeps an apply worker running for each
 *		peer, a verifier when a table is due, and a process for large transactions;
 *		clears away what dropped peers
 *		leave, beats the heart, finishes a join, tells what the tables are, removes
 *		tombstones and old conflicts.
 *
 * All of it is driven by the catalogs' state, again and again, so that nothing
 * is lost by a crash in between.
 *
 * Not what an apply worker does (worker.c), nor which tombstones may go as SQL
 * has it (repl_ml.collect_tombstones).  Locks: repl_ml_shared->lock, for the
 * slots of workers; in the catalogs those of the SQL functions it calls.
 */
#include "postgres.h"

#include <signal.h>

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "replication/origin.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/proc.h"
#include "tcop/tcopprot.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/inval.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"

#include "commit/commit.h"
#include "compat.h"
#include "group/group.h"
#include "server/server.h"
#include "wire/wire.h"

#define COMPARISON_INTERVAL_MS	1000
#define HOUSEKEEPING_BEATS	10	/* heartbeats between two collections */
#define HEALTH_BEATS		30	/* ... looks at health, where nothing seems to change */
#define TELL_BEATS			5	/* ... that tell how this node is */
#define SEQUENCE_BEATS		2	/* ... looks at sequences where relations have changed, */
#define SEQUENCE_REST_BEATS	6	/* and where they have not */
#define COUNT_BEATS			3	/* ... that count conflicts */
#define CHECK_BEATS			60	/* ... looks at what nobody should have changed */
#define CLASS_STEP_MS		50	/* between two looks at tables that change their class, and */
#define CLASS_RETRY_MS		5000	/* after an error */
#define SEQUENCES_PAUSE_MS	1000	/* until it is asked again, */
#define SEQUENCES_REST_MS	500 /* where it had done all */
#define TEND_SEQUENCES	"DO 'BEGIN WHILE repl_ml.tend_sequence() LOOP COMMIT; END LOOP; END'"
#define SEQUENCES_MS		50	/* for a session to do what is due, and */
#define SEQUENCES_SENT_MS	500 /* to hear of it: it goes on by itself */

static ReplMlWorker *me = NULL; /* our slot; set once at start */
static MemoryContext work_context = NULL;	/* reset each round */
static bool acts = false;		/* as the node, as far as the last round knows */
static bool release_slot = false;	/* at exit: nothing to do in this database */

/* What relations may have changed since it was looked at; set by relations_invalidated. */
static bool sequences_changed = true;
static bool triggers_changed = true;

static void detach_supervisor(int code, Datum arg);
static bool prepare_supervisor(void);
static void end_for_good(uint64 seen);
static bool round_of_work(bool called);
static bool tend_peers(bool joining);
static void bury_peer(int node_id);
static void order_comparisons(void);
static void show_fence(const ReplMlIdentity *self);
static void note_start(void);
static void watch_relations(void);
static void tend_sequences(bool anew);
static void come_back(void);
static bool rest(TimestampTz until);
static bool change_classes(void);
static bool end_apply_workers(void);
static void finish_join(uint16 self);
static void count_conflicts(void);
static void collect_tombstones(void);
static void mend_catalogs(bool all);
static void collect_garbage(void);

/*
 * The supervisor; the argument is its slot in shared memory.  The launcher
 * starts it again as long as the database is a member.
 */
void
repl_ml_supervisor_main(Datum arg)
{
	TimestampTz next = 0;
	bool		called = true;
	uint64		seen;

	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	pqsignal(SIGTERM, die);
	me = &repl_ml_shared->workers[DatumGetInt32(arg)];
	LWLockAcquire(repl_ml_shared->lock, LW_EXCLUSIVE);
	me->pid = MyProcPid;
	me->latch = MyLatch;
	me->start_time = GetCurrentTimestamp();
	me->state = REPL_ML_WORKER_STARTING;
	me->failing = false;
	LWLockRelease(repl_ml_shared->lock);
	before_shmem_exit(detach_supervisor, (Datum) 0);
	BackgroundWorkerUnblockSignals();
	BackgroundWorkerInitializeConnectionByOid(me->database, InvalidOid, 0);
	seen = repl_ml_shmem_memberships();
	if (!prepare_supervisor())
		end_for_good(seen);

	for (;;)
	{
		MemoryContextReset(work_context);
		MemoryContextSwitchTo(work_context);
		seen = repl_ml_shmem_memberships();
		if (!round_of_work(called))
			end_for_good(seen);
		repl_ml_shmem_set_member(MyDatabaseId);
		me->state = REPL_ML_WORKER_STREAMING;
		me->round_time = repl_ml_monotonic_now();

		/* a heartbeat each interval, and a round whenever somebody calls */
		next = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), repl_ml_heartbeat_interval);
		called = rest(next);
		if (ConfigReloadPending)
		{
			ConfigReloadPending = false;
			ProcessConfigFile(PGC_SIGHUP);
		}
	}
}

/*
 * Waits until then, and does meanwhile what there is to be done for tables that change their
 * class; returns whether somebody has called.
 */
static bool
rest(TimestampTz until)
{
	bool		changing;
	long		wait;
	int			events;

	do
	{
		changing = change_classes();
		wait = TimestampDifferenceMilliseconds(GetCurrentTimestamp(), until);
		events = WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
						   changing ? Min(wait, CLASS_STEP_MS) : wait,
						   wait_event_compat("ReplMlSupervisorMain"));
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
	} while (changing && (events & WL_LATCH_SET) == 0 && wait > CLASS_STEP_MS);
	return (events & WL_LATCH_SET) != 0;
}

/*
 * Takes a step for each table that is to change its class, if there is any; returns whether
 * there is.  An error is logged, and it is tried again after a while; the supervisor goes on.
 */
static bool
change_classes(void)
{
	static SPIPlanPtr plan = NULL;
	static TimestampTz failed_at = 0;
	MemoryContext context = CurrentMemoryContext;
	volatile bool changing = false;

	if (!acts || repl_ml_level_none_is_strong() ||
		(failed_at != 0 &&
		 !TimestampDifferenceExceeds(failed_at, GetCurrentTimestamp(), CLASS_RETRY_MS)))
		return false;
	failed_at = 0;
	PG_TRY();
	{
		repl_ml_begin();
		changing = repl_ml_level_any_strong() && repl_ml_level_any_changing();
		if (changing)
			SPI_execute_plan(repl_ml_spi_plan(&plan, "SELECT repl_ml.change_classes()", 0, NULL),
							 NULL, NULL, false, 1);
		repl_ml_commit();
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(context);
		EmitErrorReport();
		FlushErrorState();
		AbortOutOfAnyTransaction();
		failed_at = GetCurrentTimestamp();
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
	return changing;
}

/*
 * Ends the supervisor of a database that was no member when it looked: nobody starts it
 * again, unless that has changed since.
 */
static void
end_for_good(uint64 seen)
{
	repl_ml_shmem_end_member(MyDatabaseId, seen);
	release_slot = true;
	proc_exit(0);
}

/*
 * Gives the slot back when the supervisor ends, so that the launcher starts
 * another one.
 */
static void
detach_supervisor(int code, Datum arg)
{
	LWLockAcquire(repl_ml_shared->lock, LW_EXCLUSIVE);
	me->pid = 0;
	me->latch = NULL;
	me->launch_time = 0;
	me->state = REPL_ML_WORKER_STOPPED;
	if (release_slot)
		me->database = InvalidOid;
	LWLockRelease(repl_ml_shared->lock);
}

/*
 * Makes the settings, and finds which tables have deleted rows; returns false
 * if this database is no member, as most that the launcher probes are not:
 * these take no entry.
 */
static bool
prepare_supervisor(void)
{
	ReplMlDatabase *database;
	XLogRecPtr	end;
	bool		member;

	repl_ml_internal_write = true;
	repl_ml_session_settle();
	/* what it writes is known to be lost by a crash, or written again */
	SetConfigOption("synchronous_commit", "off", PGC_SUSET, PGC_S_OVERRIDE);
	work_context = AllocSetContextCreate(TopMemoryContext, "repl_ml supervisor",
										 ALLOCSET_DEFAULT_SIZES);
	watch_relations();

	repl_ml_begin();
	member = repl_ml_identity()->member;
	repl_ml_commit();
	if (!member)
		return false;
	database = repl_ml_shmem_take_database(MyDatabaseId);
	if (database == NULL)
		ereport(FATAL,
				(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
				 errmsg("repl_ml serves at most %d databases of a server", REPL_ML_MAX_DATABASES),
				 errhint("Run SELECT repl_ml.leave_group() in a database that need not be a "
						 "member.")));
	/* before the members are known, and commits can wait for them */
	(void) repl_ml_unacknowledged_recall_begin(&end);
	if (database->tombstones_known)
		return true;
	repl_ml_begin();
	if (OidIsValid(repl_ml_schema_oid()))
	{
		SPI_execute("SELECT DISTINCT c.oid FROM repl_ml.tombstone t JOIN pg_catalog.pg_namespace n"
					" ON n.nspname OPERATOR(pg_catalog.=) t.schema_name"
					" JOIN pg_catalog.pg_class c ON c.relnamespace OPERATOR(pg_catalog.=) n.oid"
					" AND c.relname OPERATOR(pg_catalog.=) t.table_name", true, 0);
		for (uint64 i = 0; i < SPI_processed; i++)
			repl_ml_shmem_mark_tombstone(strtoul(repl_ml_spi_text(i, 0), NULL, 10));
	}
	repl_ml_commit();
	pg_write_barrier();
	database->tombstones_known = true;
	return true;
}

/*
 * Looks at everything once; returns false if this database is no longer a
 * member.  The catalogs change, and workers end, only with a call.
 */
static bool
round_of_work(bool called)
{
	static int	beats = 0;
	static bool unfinished = false;
	const ReplMlIdentity *self;
	ReplMlIdentity copy;

	StartTransactionCommand();
	PushActiveSnapshot(GetTransactionSnapshot());
	self = repl_ml_identity();
	copy = *self;
	PopActiveSnapshot();
	CommitTransactionCommand();
	MemoryContextSwitchTo(work_context);
	if (!copy.member)
		return false;

	acts = !copy.fenced && !copy.dropped && !copy.set_back;
	/* it must not touch what is the node's, which may be running elsewhere */
	if (copy.fenced || copy.dropped)
	{
		(void) end_apply_workers();
		show_fence(&copy);
		return true;
	}
	note_start();
	if (copy.set_back)
	{
		repl_ml_members_set(NIL);
		if (end_apply_workers())
			SetLatch(MyLatch);
		else
			come_back();
		return true;
	}

	if (called || unfinished || copy.joining || beats % HOUSEKEEPING_BEATS == 0)
		unfinished = tend_peers(copy.joining);

	/* what commits of before the start are unacknowledged, a piece a round */
	if (repl_ml_recall())
		SetLatch(MyLatch);
	MemoryContextSwitchTo(work_context);
	repl_ml_heartbeat_write(copy.node_id, called || beats % TELL_BEATS == 0);
	MemoryContextSwitchTo(work_context);
	if (copy.joining)
		finish_join(copy.node_id);
	else
	{
		repl_ml_shape_tell(called);
		repl_ml_lacking_ask();
		repl_ml_verifier_tend();
		repl_ml_tenure_tend();
	}
	if (called || beats % (sequences_changed ? SEQUENCE_BEATS : SEQUENCE_REST_BEATS) == 0)
		tend_sequences(called || beats % CHECK_BEATS == 0);
	repl_ml_beside_tend();
	MemoryContextSwitchTo(work_context);
	repl_ml_health_tell(called || beats % HEALTH_BEATS == 0);
	MemoryContextSwitchTo(work_context);
	if (++beats % HOUSEKEEPING_BEATS == 1)
		mend_catalogs(beats % CHECK_BEATS == 1);
	if (beats % COUNT_BEATS == 0)
		count_conflicts();
	if (beats % HOUSEKEEPING_BEATS == 0)
		collect_garbage();
	return true;
}

/* Notes what this server has found when it was started, if nobody has yet. */
static void
note_start(void)
{
	static bool noted = false;

	if (noted)
		return;
	repl_ml_begin();
	SPI_execute(psprintf("SELECT repl_ml.note_start(" UINT64_FORMAT ")",
						 repl_ml_shared->start_counter), false, 1);
	/* before anything that a peer could hear */
	ForceSyncCommit();
	repl_ml_commit();
	MemoryContextSwitchTo(work_context);
	noted = true;
}

/* Called by core when a relation, or how a sequence counts, has changed. */
static void
relations_invalidated(Datum arg, Oid relid)
{
	sequences_changed = triggers_changed = true;
}

/* The same, of the catalog of sequences. */
static void
sequences_invalidated(Datum arg, int cache, uint32 hash)
{
	sequences_changed = true;
}

/* Makes core tell of changes: what takes long is looked at where it may have changed. */
static void
watch_relations(void)
{
	CacheRegisterRelcacheCallback(relations_invalidated, (Datum) 0);
	CacheRegisterSyscacheCallback(SEQRELID, sequences_invalidated, (Datum) 0);
}

/*
 * Has a session of this node's do what is due about sequences, and does not wait for
 * it: it asks members, who may be silent, and commits by itself.  What tables own is
 * looked at with "anew" and where relations have changed.
 */
static void
tend_sequences(bool anew)
{
	static SPIPlanPtr plan = NULL;
	static TimestampTz again = 0;
	Oid			type = BOOLOID;
	Datum		value;
	TimestampTz started;
	char	   *dsn = NULL;
	char	   *answer;
	char	   *error;
	ReplMlQuestions all = {.count = 1,.dsns = &dsn,.query = TEND_SEQUENCES,.answers = &answer,
	.errors = &error};

	sequences_changed |= anew;
	/* it goes on by itself, where it takes longer than this one waits */
	if (GetCurrentTimestamp() < again)
		return;
	repl_ml_begin();
	value = BoolGetDatum(sequences_changed);
	sequences_changed = false;
	SPI_execute_plan(repl_ml_spi_plan(&plan,
									  "SELECT m.dsn FROM repl_ml.member m"
									  " JOIN repl_ml.local_node l"
									  " ON l.node_id OPERATOR(pg_catalog.=) m.node_id"
									  " WHERE (SELECT repl_ml.sequences_due($1))", 1, &type),
					 &value, NULL, true, 1);
	if (SPI_processed > 0)
		dsn = MemoryContextStrdup(work_context, repl_ml_spi_text(0, 0));
	repl_ml_commit();
	MemoryContextSwitchTo(work_context);
	if (dsn == NULL)
		return;
	dsn = repl_ml_stream_conninfo(dsn, "question", NULL);
	started = GetCurrentTimestamp();
	StartTransactionCommand();
	MemoryContextSwitchTo(work_context);
	all.sent_by = TimestampTzPlusMilliseconds(started, SEQUENCES_SENT_MS);
	all.deadline = TimestampTzPlusMilliseconds(started, SEQUENCES_MS);
	repl_ml_ask_beside(&all);
	CommitTransactionCommand();
	MemoryContextSwitchTo(work_context);
	again = TimestampTzPlusMilliseconds(started, error == NULL ? SEQUENCES_REST_MS :
										SEQUENCES_PAUSE_MS);
	sequences_changed = true;
}

/*
 * Says once why the node takes no part in its group.  If it was dropped, its
 * slots go; if it may just have been moved or promoted, the other members are asked, in each
 * round, until they agree.
 */
static void
show_fence(const ReplMlIdentity *self)
{
	static char told[REPL_ML_ERROR_LENGTH] = "";
	const char *reason = self->dropped ? "it has been dropped" : "this data directory is a copy";

	repl_ml_begin();
	if (self->moved && !self->dropped)
	{
		SPI_execute("SELECT repl_ml.claim_identity()", false, 1);
		reason = repl_ml_spi_text(0, 0);
	}

	/* nobody reads from it any more, and they would keep its WAL for ever */
	if (self->dropped && !self->fenced)
		SPI_execute("SELECT pg_catalog.pg_drop_replication_slot(slot_name)"
					" FROM pg_catalog.pg_replication_slots"
					" WHERE plugin OPERATOR(pg_catalog.=) '" REPL_ML_PLUGIN "'"
					" AND database OPERATOR(pg_catalog.=) pg_catalog.current_database()"
					" AND NOT active", false, 0);
	if (reason == NULL)
		ereport(LOG,
				(errmsg("node \"%s\" goes on in another place: the other members agree",
						NameStr(self->node_name))));
	else if (strncmp(told, reason, sizeof(told) - 1) != 0)
		ereport(LOG,
				(errmsg("node \"%s\" does not take part in its group: %s", NameStr(self->node_name),
						reason),
				 errhint("See the hint of SELECT repl_ml.barrier('1 s').")));
	strlcpy(told, reason == NULL ? "" : reason, sizeof(told));
	repl_ml_commit();
	MemoryContextSwitchTo(work_context);
}

/*
 * Ends the apply workers of a node that is fenced, perhaps while they ran: it
 * reads nothing from peers, whose slots are the node's.  Nor does it compare
 * anything.  Returns true while some still run.
 */
static bool
end_apply_workers(void)
{
	bool		running = false;

	LWLockAcquire(repl_ml_shared->lock, LW_SHARED);
	foreach_worker(worker, MyDatabaseId)
	{
		if (worker->peer == 0 || worker->pid == 0)
			continue;
		kill(worker->pid, SIGTERM);
		running = true;
	}
	LWLockRelease(repl_ml_shared->lock);
	running |= repl_ml_verifier_end();
	running |= repl_ml_tenure_end();
	running |= repl_ml_beside_end();
	return running;
}

/* Forgets the apply workers, of which none runs: they were those of a former id. */
static void
forget_apply_workers(void)
{
	LWLockAcquire(repl_ml_shared->lock, LW_EXCLUSIVE);
	foreach_worker(worker, MyDatabaseId)
	{
		if (worker->peer != 0 && worker->pid == 0)
			worker->database = InvalidOid;
	}
	LWLockRelease(repl_ml_shared->lock);
}

/* Shows an error in repl_ml.health, and in the log when it is a new one. */
static void
show_error(const ErrorData *error)
{
	bool		new;

	LWLockAcquire(repl_ml_shared->lock, LW_EXCLUSIVE);
	new = strcmp(me->error_message, error->message) != 0;
	me->errors++;
	me->failing = true;
	me->error_time = GetCurrentTimestamp();
	me->error_sqlstate = error->sqlerrcode;
	snprintf(me->error_message, REPL_ML_ERROR_LENGTH, "%s", error->message);
	strlcpy(me->error_hint, error->hint ? error->hint : "", REPL_ML_ERROR_LENGTH);
	LWLockRelease(repl_ml_shared->lock);
	if (new)
		ereport(LOG,
				(errmsg("this node could not come back to its group yet: %s", error->message),
				 error->detail ? errdetail_internal("%s", error->detail) : 0,
				 error->hint ? errhint("%s", error->hint) : 0));
}

/*
 * Tries to make this node, which was set back, a member again under its next id
 * (join.c).  Either way this process ends: the next one knows the new id, or
 * tries again.
 */
static void
come_back(void)
{
	PG_TRY();
	{
		repl_ml_come_back();
		forget_apply_workers();
	}
	PG_CATCH();
	{
		ErrorData  *error;

		MemoryContextSwitchTo(TopMemoryContext);
		error = CopyErrorData();
		FlushErrorState();
		AbortOutOfAnyTransaction();
		show_error(error);
	}
	PG_END_TRY();
	proc_exit(0);
}

/*
 * Keeps an apply worker for each peer, and none for one that was dropped, and
 * says who counts for commits.  Returns true if there are dropped ones, which
 * take several rounds.
 */
static bool
tend_peers(bool joining)
{
	static SPIPlanPtr mend = NULL;
	static SPIPlanPtr list = NULL;
	List	   *alive = NIL;
	List	   *dropped = NIL;
	List	   *ready = NIL;
	ListCell   *lc;

	repl_ml_begin();
	SPI_execute_plan(repl_ml_spi_plan(&mend, "SELECT repl_ml.mend_members()", 0, NULL), NULL, NULL,
					 false, 0);
	SPI_execute_plan(repl_ml_spi_plan(&list,
									  "SELECT m.node_id, m.state, m.node_name,"
									  " m.node_id OPERATOR(pg_catalog.=) l.node_id"
									  " FROM repl_ml.member m, repl_ml.local_node l", 0, NULL),
					 NULL, NULL, true, 0);
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		MemoryContext old = MemoryContextSwitchTo(work_context);
		int			node_id = atoi(repl_ml_spi_text(i, 0));
		const char *state = repl_ml_spi_text(i, 1);
		bool		is_local = strcmp(repl_ml_spi_text(i, 3), "t") == 0;

		if (strcmp(state, "ready") == 0)
		{
			ReplMlMember *member = palloc0(sizeof(ReplMlMember));

			member->node_id = node_id;
			namestrcpy(&member->node_name, repl_ml_spi_text(i, 2));
			member->is_local = is_local;
			ready = lappend(ready, member);
		}
		if (!is_local && strcmp(state, "dropped") == 0)
			dropped = lappend_int(dropped, node_id);
		else if (!is_local)
			alive = lappend_int(alive, node_id);
		MemoryContextSwitchTo(old);
	}
	repl_ml_commit();
	MemoryContextSwitchTo(work_context);

	/* as long as we are joining nobody counts for our commits */
	repl_ml_members_set(joining ? NIL : ready);

	foreach(lc, alive)
		(void) repl_ml_worker_start(MyDatabaseId, lfirst_int(lc));
	foreach(lc, dropped)
		bury_peer(lfirst_int(lc));
	if (dropped != NIL)
		order_comparisons();
	return dropped != NIL;
}

/*
 * Makes the apply workers compare with their peers what these had of a dropped
 * node, now and then until all have: a peer tells when it has let go of it.
 */
static void
order_comparisons(void)
{
	static TimestampTz last = 0;
	List	   *peers = NIL;

	if (!TimestampDifferenceExceeds(last, GetCurrentTimestamp(), COMPARISON_INTERVAL_MS))
		return;
	repl_ml_begin();
	SPI_execute("SELECT m.node_id FROM repl_ml.member m"
				" WHERE m.state OPERATOR(pg_catalog.=) 'ready'"
				" AND EXISTS (SELECT FROM repl_ml.dropped_node d"
				" WHERE m.node_id OPERATOR(pg_catalog.<>) ALL (d.compared))", true, 0);
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		MemoryContext old = MemoryContextSwitchTo(work_context);

		peers = lappend_int(peers, pg_strtoint32(repl_ml_spi_text(i, 0)));
		MemoryContextSwitchTo(old);
	}
	repl_ml_commit();
	MemoryContextSwitchTo(work_context);

	LWLockAcquire(repl_ml_shared->lock, LW_EXCLUSIVE);
	foreach_worker(worker, MyDatabaseId)
	{
		/* another one compares before it streams */
		if (!list_member_int(peers, worker->peer) || worker->pid == 0 ||
			worker->state != REPL_ML_WORKER_STREAMING)
			continue;
		worker->compare = true;
		SetLatch(worker->latch);
		last = GetCurrentTimestamp();
	}
	LWLockRelease(repl_ml_shared->lock);
}

/*
 * Ends a dropped peer's apply worker, then forgets its slot here and its
 * origin.
 */
static void
bury_peer(int node_id)
{
	char	   *origin = repl_ml_origin_name(MyDatabaseId, node_id);
	XLogRecPtr	acknowledged = repl_ml_unacknowledged_position(REPL_ML_QUORUM);
	bool		running = false;

	LWLockAcquire(repl_ml_shared->lock, LW_EXCLUSIVE);
	foreach_worker(worker, MyDatabaseId)
	{
		if (worker->peer != node_id)
			continue;
		running = worker->pid != 0;
		if (running)
			kill(worker->pid, SIGTERM);
		else
			worker->database = InvalidOid;
	}
	LWLockRelease(repl_ml_shared->lock);
	if (running)
		return;					/* next round; its exit wakes us */

	repl_ml_begin();

	/*
	 * for good now: what a peer has beyond it is copied from there, see
	 * copy/dropped.c
	 */
	SPI_execute(psprintf("INSERT INTO repl_ml.dropped_node (node_id, applied_lsn,"
						 " acknowledged_lsn, server_start, sequence)"
						 " SELECT %d, repl_ml.received_lsn(%d), '%X/%X', h.server_start, h.sequence"
						 " FROM (SELECT) one LEFT JOIN repl_ml.heard h"
						 " ON h.node_id OPERATOR(pg_catalog.=) %d"
						 " ON CONFLICT (node_id) DO NOTHING",
						 node_id, node_id, LSN_FORMAT_ARGS(acknowledged), node_id), false, 0);
	SPI_execute(psprintf("SELECT pg_catalog.pg_terminate_backend(active_pid)"
						 " FROM pg_catalog.pg_replication_slots"
						 " WHERE slot_name OPERATOR(pg_catalog.=) '%s' AND active_pid IS NOT NULL",
						 origin), false, 0);
	SPI_execute(psprintf("SELECT pg_catalog.pg_drop_replication_slot(slot_name)"
						 " FROM pg_catalog.pg_replication_slots"
						 " WHERE slot_name OPERATOR(pg_catalog.=) '%s' AND active_pid IS NULL",
						 origin), false, 0);
	SPI_execute(psprintf("SELECT pg_catalog.pg_replication_origin_drop(roname)"
						 " FROM pg_catalog.pg_replication_origin"
						 " WHERE roname OPERATOR(pg_catalog.=) '%s'", origin), false, 0);
	SPI_execute(psprintf("DELETE FROM repl_ml.table_sync WHERE node_id OPERATOR(pg_catalog.=) %d",
						 node_id), false, 0);
	SPI_execute(psprintf("DELETE FROM repl_ml.unsent WHERE node_id OPERATOR(pg_catalog.=) %d",
						 node_id), false, 0);
	SPI_execute(psprintf("DELETE FROM repl_ml.bulk_piece b"
						 " WHERE b.origin_node OPERATOR(pg_catalog.=) %d"
						 " AND NOT EXISTS (SELECT FROM repl_ml.parked_change p"
						 " WHERE p.id OPERATOR(pg_catalog.=) b.id)", node_id), false, 0);
	SPI_execute(psprintf("DELETE FROM repl_ml.heard WHERE node_id OPERATOR(pg_catalog.=) %d",
						 node_id), false, 0);
	SPI_execute("SELECT repl_ml.forget_failures()", false, 0);
	repl_ml_commit();
	MemoryContextSwitchTo(work_context);
}

/*
 * Says whether all our streams have reached what the peers had when we
 * connected.
 */
static bool
streams_are_current(void)
{
	bool		current = true;

	LWLockAcquire(repl_ml_shared->lock, LW_SHARED);
	foreach_worker(worker, MyDatabaseId)
	{
		if (worker->peer != 0 && worker->pid != 0 &&
			worker->errors == 0 &&
			(worker->state != REPL_ML_WORKER_STREAMING ||
			 worker->received_lsn < worker->target_lsn))
			current = false;
	}
	LWLockRelease(repl_ml_shared->lock);
	return current;
}

/*
 * Makes a joining node ready when everything is copied, the streams have
 * caught up, and every member that is up reads from us: so whatever users
 * write from then on reaches all.
 */
static void
finish_join(uint16 self)
{
	bool		done;

	repl_ml_begin();
	done = repl_ml_query_int("SELECT 1 WHERE repl_ml.may_become_ready()") != 0 &&
		streams_are_current();
	if (done)
		SPI_execute("SELECT repl_ml.become_ready()", false, 0);
	repl_ml_commit();
	MemoryContextSwitchTo(work_context);
	if (done)
	{
		ereport(LOG, (errmsg("node %d has joined the group and is ready", self)));
		/* the members are read again now: until then nobody counts here for commits and barriers */
		SetLatch(MyLatch);
	}
}

/* Counts the conflicts that have been found since this was done last. */
static void
count_conflicts(void)
{
	static SPIPlanPtr plan = NULL;

	repl_ml_begin();
	SPI_execute_plan(repl_ml_spi_plan(&plan, "SELECT repl_ml.count_conflicts()"
									  " WHERE EXISTS (SELECT FROM repl_ml.conflict_news)",
									  0, NULL), NULL, NULL, false, 0);
	repl_ml_commit();
	MemoryContextSwitchTo(work_context);
}

/* Says whether there is anything for collect_tombstones. */
static bool
is_anything_to_collect(void)
{
	static SPIPlanPtr plan = NULL;

	SPI_execute_plan(repl_ml_spi_plan(&plan,
									  "SELECT WHERE EXISTS (SELECT FROM repl_ml.tombstone)"
									  " OR EXISTS (SELECT FROM repl_ml.concurrent_version)"
									  " OR EXISTS (SELECT FROM repl_ml.key_shape k WHERE k.in_use"
									  " GROUP BY k.schema_name, k.table_name"
									  " HAVING pg_catalog.count(*) OPERATOR(pg_catalog.>) 1)",
									  0, NULL), NULL, NULL, true, 1);
	return SPI_processed > 0;
}

/*
 * Removes tombstones that can no longer decide anything.
 *
 * A tombstone is stable when every member has applied it and, after that,
 * every member has applied everything each of them wrote before.  So two
 * rounds: what all have now ("candidate") may go once all have read a
 * heartbeat of each member that is newer than the one that said so ("proof").
 * The members do not remove it at the same moment, so each tells the others
 * what it has removed (repl_ml.collection): see tombstone.c.  A node that
 * joins gets rows and tombstones of different moments, a parked change may be
 * tried again, and a copy brings what the stream did not, though heartbeats say
 * that it has been applied: so all wait for a member that joins, has anything
 * parked or is to copy a table.
 */
static void
collect_tombstones(void)
{
	static char candidate[8192] = "";
	static char proof[8192] = "";
	char	   *text;

	if (!is_anything_to_collect() ||
		repl_ml_query_int("SELECT 1 FROM repl_ml.member m LEFT JOIN repl_ml.heartbeat h"
						  " ON h.node_id OPERATOR(pg_catalog.=) m.node_id"
						  " WHERE m.state OPERATOR(pg_catalog.=) 'joining'"
						  " OR (m.state OPERATOR(pg_catalog.=) 'ready' AND h.parked)"
						  " UNION ALL SELECT 1 WHERE repl_ml.holds_late_changes() LIMIT 1") != 0)
	{
		candidate[0] = '\0';
		return;
	}

	/* round two: the proof has come */
	if (candidate[0] != '\0' &&
		repl_ml_query_int(psprintf("SELECT 1"
								   " WHERE '%s'::repl_ml.vclock OPERATOR(repl_ml.<@)"
								   " repl_ml.stable_vector()", proof)) != 0)
	{
		SPI_execute(psprintf("SELECT repl_ml.collect_tombstones('%s')", candidate), false, 0);
		SPI_execute(psprintf("SELECT repl_ml.collect_versions('%s')", candidate), false, 0);
		SPI_execute("SELECT repl_ml.retire_key_shapes()", false, 0);
		candidate[0] = '\0';
	}

	/* round one */
	if (candidate[0] == '\0')
	{
		SPI_execute("SELECT repl_ml.stable_vector(), repl_ml.next_heartbeats()", true, 1);
		text = SPI_processed == 1 ? repl_ml_spi_text(0, 0) : NULL;

		if (text != NULL && strlen(text) < sizeof(candidate))
		{
			strlcpy(candidate, text, sizeof(candidate));
			strlcpy(proof, repl_ml_spi_text(0, 1), sizeof(proof));
		}
	}
}

/* A statement that the supervisor runs now and then; to plan it takes longer than to run it. */
typedef struct Chore
{
	const char *statement;
	SPIPlanPtr	plan;
} Chore;

/* Runs it, with a number as its parameter, which it may ignore. */
static void
do_chore(Chore *chore, int number)
{
	Oid			type = INT4OID;
	Datum		value = Int32GetDatum(number);

	SPI_execute_plan(repl_ml_spi_plan(&chore->plan, chore->statement, 1, &type), &value, NULL,
					 false, 0);
}

/*
 * Makes what peers read, and the triggers that stamp rows, what they were, also
 * where they were changed while this library was not loaded; and lets the
 * planner know how small our tables are.  Triggers are looked at with "all" and where
 * relations have changed.
 */
static void
mend_catalogs(bool all)
{
	static Chore publication = {.statement = "SELECT repl_ml.mend_publication()"};
	static Chore triggers = {.statement = "SELECT repl_ml.mend_triggers()"};
	static Chore statistics = {.statement = "SELECT repl_ml.analyze_catalogs()"};

	repl_ml_begin();
	do_chore(&publication, 0);
	if (all || triggers_changed)
	{
		triggers_changed = false;
		do_chore(&triggers, 0);
	}
	do_chore(&statistics, 0);
	repl_ml_commit();
	MemoryContextSwitchTo(work_context);
}

/*
 * Removes what has served its time: tombstones, conflicts, counts of hours, and records
 * of transactions past their retention.
 */
static void
collect_garbage(void)
{
	/* $1: repl_ml.conflict_retention, in minutes */
	static Chore retained[] = {
		{.statement = "DELETE FROM repl_ml.conflict_history WHERE $1 OPERATOR(pg_catalog.>=) 0"
			" AND detected_at OPERATOR(pg_catalog.<) (pg_catalog.now() OPERATOR(pg_catalog.-)"
		" ($1 OPERATOR(pg_catalog.*) '1 min'::pg_catalog.interval))"},
		{.statement = "DELETE FROM repl_ml.conflict_count WHERE $1 OPERATOR(pg_catalog.>=) 0"
			" AND span OPERATOR(pg_catalog.=) 'hour' AND since OPERATOR(pg_catalog.<)"
			" (pg_catalog.now() OPERATOR(pg_catalog.-)"
			" ($1 OPERATOR(pg_catalog.*) '1 min'::pg_catalog.interval)"
		" OPERATOR(pg_catalog.-) '1 h'::pg_catalog.interval)"},
		{.statement = "DELETE FROM repl_ml.row_repair WHERE $1 OPERATOR(pg_catalog.>=) 0"
			" AND repaired_at OPERATOR(pg_catalog.<) (pg_catalog.now() OPERATOR(pg_catalog.-)"
		" ($1 OPERATOR(pg_catalog.*) '1 min'::pg_catalog.interval))"},
		{.statement = "DELETE FROM repl_ml.conflict_count"
			" WHERE span OPERATOR(pg_catalog.=) 'minute' AND since OPERATOR(pg_catalog.<)"
		" (pg_catalog.now() OPERATOR(pg_catalog.-) '1 h'::pg_catalog.interval)"},
		{.statement = "DELETE FROM repl_ml.void_transaction WHERE $1 OPERATOR(pg_catalog.>=) 0"
			" AND undone_at OPERATOR(pg_catalog.<) (pg_catalog.now() OPERATOR(pg_catalog.-)"
		" ($1 OPERATOR(pg_catalog.*) '1 min'::pg_catalog.interval))"},
		{.statement = "DELETE FROM repl_ml.discarded_transaction"
			" WHERE discarded_at OPERATOR(pg_catalog.<)"
		" (pg_catalog.now() OPERATOR(pg_catalog.-) '2 days'::pg_catalog.interval)"},
		/* what comparisons remember of tables that have been dropped */
		{.statement = "DELETE FROM repl_ml.verified_page p WHERE NOT EXISTS"
		" (SELECT FROM pg_catalog.pg_class c WHERE c.oid OPERATOR(pg_catalog.=) p.relid)"},
		/* twice as long as transaction_status relies on them */
		{.statement = "DELETE FROM repl_ml.transaction_record"
			" WHERE recorded_at OPERATOR(pg_catalog.<)"
		" (pg_catalog.now() OPERATOR(pg_catalog.-) '2 days'::pg_catalog.interval)"}};

	repl_ml_begin();
	collect_tombstones();
	for (int i = 0; i < lengthof(retained); i++)
		do_chore(&retained[i], repl_ml_conflict_retention);
	repl_ml_commit();
	MemoryContextSwitchTo(work_context);
}
