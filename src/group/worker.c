/*
 * worker.c
 *		The apply worker's main loop: connect, prepare the link, read the
 *		stream, tell the peer how far we are; after an error, say so and begin
 *		again.
 *
 * The process stays through errors: it shows the error in shared memory, backs
 * off and reconnects, from the position its replication origin holds.  It ends
 * when the supervisor ends it.  Three memory contexts: the process's, the
 * message's (reset here, after each message) and the executor's per row.
 *
 * Not here: what a message does (apply/dispatch.c), what is kept of it for
 * another try (apply/replay.c), how a link is prepared (copy/link.c).  Locks:
 * repl_ml_shared->lock, for what the worker shows of itself.
 */
#include "postgres.h"

#include "access/xact.h"
#include "access/xlog.h"
#include "executor/spi.h"
#include "libpq/pqformat.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "replication/origin.h"
#include "replication/walreceiver.h"
#include "storage/ipc.h"
#include "storage/proc.h"
#include "tcop/tcopprot.h"
#include "utils/guc.h"
#include "utils/memutils.h"

#include "apply/apply.h"
#include "commit/commit.h"
#include "compat.h"
#include "converge/converge.h"
#include "copy/copy.h"
#include "group/group.h"
#include "read/read.h"
#include "server/server.h"
#include "wire/wire.h"

#define UNFINISHED_MS	1000	/* of silence in a transaction that others wait for */
#define FIRST_DELAY_MS		200
#define STATUS_INTERVAL_MS	1000
#define QUIET_STATUS_MS		50	/* the same, while the peer's WAL goes on with
								 * nothing for us */
#define LONGEST_BATCH_MS	2	/* what somebody waits for is told that soon,
								 * also while more comes */
#define SOON_MS				3	/* the same, where others are asked to be faster */
#define GATHER_MS			1	/* so long more may come before it is applied, where
								 * nobody waits */
#define FLUSH_DELAY_MS		50	/* what nobody waits for may be lost by a crash
								 * that long, and is sent again then */
#define CLOCK_WINDOW_US		10000000	/* a peer's clock is measured anew that often */
#define BULK_LOOK_MS		50	/* between two looks for a large transaction that is
								 * awaited */
#define SCHEMA_PATIENCE_MS	5000	/* so long the node that made one may take to bring it */
#define SCHEMA_LOOK_MS		20	/* at whether a change of the schema has been run */
#define ASIDE_DELAY_MS		5	/* between two tries of changes put aside */
#define TELL_PATIENCE_MS	1000	/* how long a peer may take to hear that we are paused */
#define PROBE_MS			900 /* a network that is back is noticed within so long */
#define MOST_PROBES			5	/* where TCP takes longer than that, they tell nothing */
#define KEPT_BEHIND		(16 * 1024 * 1024)	/* so much WAL without anything for us the peer
											 * need not keep */
#define DEADLOCK_TIMEOUT	"10ms"	/* applying looks first, and so loses */

static ReplMlApply apply;		/* the process's state; this file only */
static bool started = false;	/* it has tried to connect; written by run_and_recover */
static bool silent = false;		/* it could not, the last time; the same */
static TimestampTz last_enrolment = 0;	/* when follow_catalogs ran last */
static WaitEventSet *wait_set = NULL;	/* of the connection; made by
										 * wait_for_stream, freed by
										 * disconnect */

static void attach_slot(int slot);
static void detach_worker(int code, Datum arg);
static void forget_commit(int code, Datum arg);
static void show_crash(char *message);
static bool run_and_recover(void);
static void await_network(void);
static void run_connection(void);
static void read_stream(XLogRecPtr from);
static void show_streaming(void);
static void reload_if_asked(void);
static void receive_all(void);
static void handle_stream_message(char *data, int length);
static void measure_clock(int64 sent);
static void follow_catalogs(void);
static void connect_beside(void);
static void compare_if_asked(void);
static bool is_at_rest(void);
static void finish_batch(void);
static void show_received(void);
static void show_covered(XLogRecPtr lsn);
static void keep_received(void);
static void acknowledge(bool reply_wanted);
static void acknowledge_news(void);
static void wait_for_data(pgsocket fd);
static bool await_bulk(void);
static bool await_schema(void);
static void fetch_schema(void);
static void count_race(void);
static int	race_delay(void);
static void pause_between(TimestampTz began, int delay);
static void give_way(void);
static bool recover_from_error(void);
static void add_context(void *arg);

/*
 * The apply worker; the argument is its slot in shared memory.  The supervisor
 * starts it again as long as its peer is a member.
 */
void
repl_ml_apply_main(Datum arg)
{
	int			delay = 0;

	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	pqsignal(SIGTERM, die);
	attach_slot(DatumGetInt32(arg));
	show_crash(repl_ml_crash_attach(DatumGetInt32(arg)));
	apply.retry.aside = true;			/* perhaps: of a former process */
	BackgroundWorkerUnblockSignals();
	BackgroundWorkerInitializeConnectionByOid(apply.worker->database, InvalidOid, 0);
	/* runs before the server's own callback, which aborts the transaction */
	before_shmem_exit(forget_commit, (Datum) 0);
	repl_ml_worker_prepare(&apply);
	apply.give_way = give_way;

	for (;;)
	{
		TimestampTz began = GetCurrentTimestamp();
		bool		again_at_once = run_and_recover();

		/* the longer nothing gets better, the longer we wait */
		if (again_at_once)
			delay = race_delay();
		else if (delay == 0 || apply.connection.progressed)
			delay = FIRST_DELAY_MS;
		else
			delay = Min(delay * 2, repl_ml_max_apply_delay);
		if (apply.retry.aside)
			delay = Min(delay, ASIDE_DELAY_MS);
		if (delay > 0)
			pause_between(began, delay);
		CHECK_FOR_INTERRUPTS();
	}
}

/*
 * Sleeps between two connections.  To have waited in vain for an answer, as of a
 * network that swallows everything, has been a pause, too.
 */
static void
pause_between(TimestampTz began, int delay)
{
	long		rest = apply.connection.answered ? delay :
		TimestampDifferenceMilliseconds(GetCurrentTimestamp(),
										TimestampTzPlusMilliseconds(began, delay));

	(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, rest,
					 wait_event_compat("ReplMlApplyDelay"));
	ResetLatch(MyLatch);
}

/* Runs one connection; returns true if the next one may follow at once. */
static bool
run_and_recover(void)
{
	volatile bool at_once = false;

	silent = started && !apply.connection.answered;
	started = true;
	apply.connection.progressed = apply.connection.answered = false;
	PG_TRY();
	{
		run_connection();
	}
	PG_CATCH();
	{
		at_once = recover_from_error();
	}
	PG_END_TRY();
	return at_once;
}

/* Shows in the worker's slot that this process is it. */
static void
attach_slot(int slot)
{
	apply.worker = &repl_ml_shared->workers[slot];
	LWLockAcquire(repl_ml_shared->lock, LW_EXCLUSIVE);
	apply.worker->pid = MyProcPid;
	apply.worker->latch = MyLatch;
	apply.worker->start_time = GetCurrentTimestamp();
	apply.worker->state = REPL_ML_WORKER_STARTING;
	apply.worker->failing = false;
	LWLockRelease(repl_ml_shared->lock);
	before_shmem_exit(detach_worker, (Datum) 0);
}

/* Closes both connections to the peer. */
static void
disconnect(void)
{
	if (wait_set != NULL)
		FreeWaitEventSet(wait_set);
	wait_set = NULL;
	repl_ml_stream_disconnect(apply.connection.stream);
	apply.connection.stream = NULL;
	repl_ml_stream_disconnect(apply.connection.copy);
	apply.connection.copy = NULL;
}

/*
 * Gives the slot back when the worker ends, and wakes the supervisor, which
 * starts another one.
 */
static void
detach_worker(int code, Datum arg)
{
	disconnect();
	repl_ml_network_ended(&apply, "the apply worker ended");
	LWLockAcquire(repl_ml_shared->lock, LW_EXCLUSIVE);
	repl_ml_crash_detach(apply.worker->stop ? 0 : code);
	apply.worker->pid = 0;
	apply.worker->latch = NULL;
	apply.worker->state = REPL_ML_WORKER_STOPPED;
	apply.worker->failing = false;
	apply.worker->copy_relation = InvalidOid;
	LWLockRelease(repl_ml_shared->lock);
	repl_ml_shmem_wake_supervisor(apply.worker->database);
}

/*
 * Forgets, before an abort, how far the transaction would have moved the
 * origin: from 16 on an abort moves it, too, and past a commit that failed
 * what was in it would be lost.
 */
static void
forget_commit(int code, Datum arg)
{
	replorigin_session_origin_lsn = InvalidXLogRecPtr;
	replorigin_session_origin_timestamp = 0;
}

/*
 * Says, in the log and in repl_ml.stat_apply, what the last process of this
 * worker died of; NULL: of nothing.
 */
static void
show_crash(char *message)
{
	ErrorData	error = {
		.sqlerrcode = ERRCODE_EXTERNAL_ROUTINE_EXCEPTION,
		.message = message,
		.hint = "See the server log, and SELECT * FROM repl_ml.parked_changes."
	};

	if (message == NULL)
		return;
	ereport(LOG,
			(errmsg_internal("%s", message)));
	repl_ml_apply_show_error(&apply, &error);
}

/*
 * Makes the settings that hold for all that is applied, and the contexts; for
 * the process that applies beside, too.
 */
void
repl_ml_worker_prepare(ReplMlApply *applying)
{
	ErrorContextCallback *context = MemoryContextAlloc(TopMemoryContext,
													   sizeof(ErrorContextCallback));

	repl_ml_applying = true;
	repl_ml_internal_write = true;
	repl_ml_session_settle();
	SetConfigOption("session_replication_role", "replica", PGC_SUSET, PGC_S_OVERRIDE);
	/* what is applied is flushed when somebody waits for it, see settle_received */
	SetConfigOption("synchronous_commit", "off", PGC_SUSET, PGC_S_OVERRIDE);
	repl_ml_locked_settle();
	/* ... also before one that has been waiting for long when we begin to */
	SetConfigOption("deadlock_timeout", DEADLOCK_TIMEOUT, PGC_SUSET, PGC_S_OVERRIDE);
	SetConfigOption("log_lock_waits", "off", PGC_SUSET, PGC_S_OVERRIDE);

	applying->message_context = AllocSetContextCreate(TopMemoryContext, "repl_ml message",
													  ALLOCSET_DEFAULT_SIZES);
	MemoryContextSwitchTo(applying->message_context);
	context->callback = add_context;
	context->arg = applying;
	context->previous = NULL;
	error_context_stack = context;
}

/*
 * Called by core with each error: says in its context what was being applied.
 */
static void
add_context(void *arg)
{
	const ReplMlApply *applying = arg;

	if (applying->doing == NULL || applying->peer == NULL)
		return;
	if (applying->table != NULL)
		errcontext("applying %s on table \"%s\" from node \"%s\", transaction %u that ends at "
				   "%X/%X",
				   applying->doing, applying->table, applying->peer->node_name,
				   applying->transaction.xid, LSN_FORMAT_ARGS(applying->transaction.final_lsn));
	else
		errcontext("reading %s from node \"%s\"", applying->doing, applying->peer->node_name);
}

/*
 * Tells the peer that we read nothing because somebody wants that, or it would
 * take us for one that is down.  Whether it hears that makes no difference here.
 */
static void
tell_pause(void)
{
	const ReplMlIdentity *self;
	ReplMlPeer *peer;
	char	   *question;
	char	   *answer = NULL;

	repl_ml_begin();
	self = repl_ml_identity_require();
	/* asked after the transaction */
	MemoryContextSwitchTo(apply.message_context);
	question = psprintf("SET statement_timeout = '1s'; SELECT repl_ml.hear_pause(%d)::text",
						self->node_id);
	peer = repl_ml_peer_load(apply.worker->peer);
	repl_ml_commit();
	MemoryContextSwitchTo(apply.message_context);
	repl_ml_ask(1, &peer->dsn, question,
				TimestampTzPlusMilliseconds(GetCurrentTimestamp(), TELL_PATIENCE_MS), &answer);
	MemoryContextReset(apply.message_context);
}

/* Stays here, between connections, as long as somebody wants us to pause. */
static void
wait_while_paused(void)
{
	TimestampTz told = 0;

	while (repl_ml_apply_is_to_pause(&apply))
	{
		repl_ml_apply_set_state(&apply, REPL_ML_WORKER_PAUSED);
		if (TimestampDifferenceExceeds(told, GetCurrentTimestamp(), REPL_ML_PAUSE_TOLD_MS))
		{
			told = GetCurrentTimestamp();
			tell_pause();
		}
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
						 REPL_ML_PAUSE_TOLD_MS, wait_event_compat("ReplMlPaused"));
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
	}
}

/*
 * Returns how far this node was with the peer, from the origin, unless somebody
 * has moved that; 0/0 before there is a link.
 */
static XLogRecPtr
find_applied(void)
{
	XLogRecPtr	lsn = InvalidXLogRecPtr;
	RepOriginId origin;

	StartTransactionCommand();
	origin = replorigin_by_name(repl_ml_origin_name(MyDatabaseId, apply.worker->peer), true);
	if (origin != InvalidRepOriginId)
		lsn = replorigin_get_progress(origin, false);
	CommitTransactionCommand();
	MemoryContextSwitchTo(apply.message_context);
	LWLockAcquire(repl_ml_shared->lock, LW_SHARED);
	if (apply.worker->reached_lsn != InvalidXLogRecPtr)
		lsn = Min(lsn, apply.worker->reached_lsn);
	LWLockRelease(repl_ml_shared->lock);
	return lsn;
}

/*
 * Comes back, where the last connection could not be made, as soon as the peer's kernel
 * answers: TCP, as long as it has no answer, asks ever more rarely, so begin anew.
 */
static void
await_network(void)
{
	for (int i = 0; i < MOST_PROBES && silent; i++)
		silent = !repl_ml_ask_reaches(apply.peer->dsn,
									  TimestampTzPlusMilliseconds(GetCurrentTimestamp(),
																  PROBE_MS));
}

/* Runs one connection, from connecting to the error or pause that ends it. */
static void
run_connection(void)
{
	XLogRecPtr	from;
	const ReplMlIdentity *self;
	NameData	name;

	wait_while_paused();
	MemoryContextSwitchTo(apply.message_context);
	repl_ml_apply_set_state(&apply, REPL_ML_WORKER_CONNECTING);
	repl_ml_begin();
	self = repl_ml_identity_require();
	apply.self = self->node_id;
	apply.group_id = self->group_id;
	/* a copy: what is tried again below resets contexts and reads the identity */
	name = self->node_name;
	apply.peer = repl_ml_peer_load(apply.worker->peer);
	apply.connection.incomplete = repl_ml_heard_is_incomplete(&apply);
	repl_ml_commit();
	/* a server that was just started may have lost what it had, as the peer's slot tells */
	if (!apply.connection.incomplete && (apply.connection.compared || apply.worker->covered_known))
		show_covered(find_applied());
	repl_ml_relation_forget_all();

	/* what can be tried again without the peer, while it is perhaps down */
	apply.late = false;
	repl_ml_bulk_apply_here(&apply);
	repl_ml_aside_retry(&apply);
	repl_ml_retry_step(&apply);

	MemoryContextSwitchTo(apply.message_context);
	await_network();
	apply.connection.stream = repl_ml_stream_connect(apply.peer->dsn, NameStr(name));
	apply.connection.answered = true;
	repl_ml_apply_set_state(&apply, REPL_ML_WORKER_PREPARING);

	/*
	 * what the stream relies on comes first: the link, the group's list, the
	 * tables
	 */
	from = repl_ml_link_prepare(&apply);
	apply.connection.compared = true;
	if (!apply.connection.incomplete)
		show_covered(from);
	repl_ml_sync_catalogs(&apply, apply.connection.stream);
	apply.catalogs_behind = false;
	repl_ml_starts_await(&apply);
	repl_ml_await_donor(&apply);
	repl_ml_enrol_pending(&apply);
	if (repl_ml_missed_is_due(&apply))
	{
		repl_ml_missed_fetch(&apply, apply.connection.stream, PG_INT64_MAX, true);
		apply.transaction.catalogs_changed = false;
		repl_ml_enrol_pending(&apply);
	}
	repl_ml_dropped_compare(&apply, apply.connection.stream);
	repl_ml_sync_tables(&apply);
	repl_ml_heard_complete(&apply);
	repl_ml_unique_announce();
	repl_ml_pieces_forget(&apply);
	apply.awaits_bulk = true;
	apply.awaits_schema = 0;

	/* all before it is here, and durable: it is sent no more */
	apply.progress.received = apply.progress.applied = from;
	apply.progress.durable = apply.progress.kept = from;
	apply.progress.volatile_since = 0;
	apply.progress.urgency = REPL_ML_WHENEVER;
	read_stream(from);
	repl_ml_network_ended(&apply, repl_ml_apply_is_to_pause(&apply) ? "applying was paused here" :
						  "there is a large transaction to be applied");
	disconnect();
}

/* Reads and applies until a pause is asked for. */
static void
read_stream(XLogRecPtr from)
{
	char	   *slot = repl_ml_origin_name(apply.connection.peer_database, apply.self);

	apply.connection.listening = true;
	repl_ml_stream_start(apply.connection.stream, slot, from, REPL_ML_PUBLICATION);
	apply.connection.listening = false;
	apply.connection.last_message_time = GetCurrentTimestamp();
	/* what the peer cannot do shows only now, so it streams when it has spoken */
	apply.connection.streams = false;
	apply.connection.pinged = 0;
	acknowledge(false);
	for (;;)
	{
		CHECK_FOR_INTERRUPTS();
		apply.worker->round_time = repl_ml_monotonic_now();
		if (!await_bulk() && !await_schema())
			receive_all();
		if (is_at_rest() && (repl_ml_apply_is_to_pause(&apply) || repl_ml_bulk_is_refused()))
			return;
		reload_if_asked();
	}
}

/* Reads the configuration again after SIGHUP. */
static void
reload_if_asked(void)
{
	if (!ConfigReloadPending)
		return;
	ConfigReloadPending = false;
	ProcessConfigFile(PGC_SIGHUP);
	repl_ml_locked_settle();
}

/* Returns how often the peer has to hear that we are there, ms. */
static int
status_interval(void)
{
	return Min(STATUS_INTERVAL_MS, repl_ml_heartbeat_interval);
}

/* Says whether no transaction is open, neither the peer's nor ours. */
static bool
is_at_rest(void)
{
	return !apply.transaction.open && apply.batch.count == 0;
}

/* Commits the transactions that have ended, unless another one has begun. */
static void
finish_batch(void)
{
	if (!apply.transaction.open && apply.batch.count > 0)
		repl_ml_replay_finish(&apply, apply.progress.urgency == REPL_ML_NOW);
}

/*
 * Returns how long what has been applied may stay volatile while more comes,
 * ms.
 */
static int
flush_delay(void)
{
	switch (apply.progress.urgency)
	{
		case REPL_ML_NOW:
			return LONGEST_BATCH_MS;
		case REPL_ML_SOON:
			return SOON_MS;
		case REPL_ML_WHENEVER:
			return FLUSH_DELAY_MS;
	}
	return FLUSH_DELAY_MS;		/* keep the compiler quiet */
}

/* Returns in how many milliseconds what is volatile is to be flushed, at least 1. */
static int
flush_due(void)
{
	TimestampTz due = TimestampTzPlusMilliseconds(apply.progress.volatile_since, flush_delay());

	/* also where the clock has been set back meanwhile */
	return Max(1, Min(TimestampDifferenceMilliseconds(GetCurrentTimestamp(), due),
					  REPL_ML_HEARTBEAT_LEISURE_MS + FLUSH_DELAY_MS));
}

/* Returns the length of the next message of the stream, 0 if none is there yet. */
static int
receive(char **data, pgsocket *fd)
{
	int			length;

	apply.connection.listening = true;
	length = walrcv_receive(apply.connection.stream, data, fd);
	apply.connection.listening = false;
	return length;
}

/* Handles a message, and counts how long and how large it was. */
static void
handle_timed(char *data, int length)
{
	uint64		began = repl_ml_monotonic_now();
	uint64		took;

	handle_stream_message(data, length);
	took = repl_ml_monotonic_now() - began;
	repl_ml_network_busy(took);
	apply.times.applying += took;
	apply.received_bytes += length;
}

/* Shows that the stream goes on, once something has come over the connection. */
static void
show_streaming(void)
{
	if (apply.connection.streams)
		return;
	apply.connection.streams = true;
	repl_ml_network_connected(&apply);
	repl_ml_apply_set_state(&apply, REPL_ML_WORKER_STREAMING);
}

/* Handles what has arrived; then acknowledges and waits for more. */
static void
receive_all(void)
{
	TimestampTz now;
	pgsocket	fd = PGINVALID_SOCKET;
	char	   *data;
	int			length;

	while ((length = receive(&data, &fd)) != 0)
	{
		CHECK_FOR_INTERRUPTS();
		repl_ml_check_server();
		if (length < 0)
			ereport(ERROR,
					(errcode(ERRCODE_CONNECTION_FAILURE),
					 errmsg("node \"%s\" ended the stream", apply.peer->node_name),
					 errhint("The apply worker connects again by itself; if that goes on, see the "
							 "server log of that node.")));
		handle_timed(data, length);
		apply.worker->round_time = repl_ml_monotonic_now();
		show_streaming();
		now = apply.connection.last_message_time = GetCurrentTimestamp();
		repl_ml_members_alive(apply.peer->node_id);
		if (is_at_rest())
			repl_ml_unique_announce();
		if (TimestampDifferenceExceeds(apply.progress.told_at, now, status_interval()) ||
			(apply.progress.urgency != REPL_ML_WHENEVER &&
			 TimestampDifferenceExceeds(apply.progress.waited_since, now, flush_delay())))
		{
			finish_batch();
			acknowledge(false);
			/* also where the stream never pauses */
			if (is_at_rest())
				repl_ml_retry_step(&apply);
			compare_if_asked();
		}
		if (is_at_rest() && (apply.awaits_bulk || apply.awaits_schema != 0 ||
							 repl_ml_apply_is_to_pause(&apply)))
			return;
	}
	finish_batch();
	acknowledge_news();

	/* nothing more is here: now there is time for the others */
	if (apply.progress.asked && is_at_rest())
	{
		apply.progress.asked = false;
		repl_ml_barrier_answer(&apply.group_id, apply.self);
	}
	if (is_at_rest())
	{
		repl_ml_aside_retry(&apply);
		repl_ml_retry_step(&apply);
	}
	if (apply.tables_pending && is_at_rest() &&
		TimestampDifferenceExceeds(last_enrolment, GetCurrentTimestamp(), repl_ml_max_apply_delay))
		follow_catalogs();
	compare_if_asked();
	wait_for_data(fd);
}

/*
 * Handles one message of the streaming protocol, and forgets what was
 * allocated for it.
 */
static void
handle_stream_message(char *data, int length)
{
	StringInfoData message = {.data = data,.len = length,.maxlen = -1};
	XLogRecPtr	start;
	XLogRecPtr	end;
	char		type;

	MemoryContextSwitchTo(apply.message_context);
	type = pq_getmsgbyte(&message);
	if (type == 'w')
	{
		start = pq_getmsgint64(&message);
		end = pq_getmsgint64(&message);
		measure_clock(pq_getmsgint64(&message));
		apply.message_lsn = start;
		apply.progress.received = Max(apply.progress.received, Max(start, end));
		if (!repl_ml_pieces_receive(&apply, &message))
			repl_ml_replay_dispatch(&apply, &message);
	}
	else if (type == 'k')
	{
		end = pq_getmsgint64(&message);
		measure_clock(pq_getmsgint64(&message));
		apply.progress.received = Max(apply.progress.received, end);
		if (pq_getmsgbyte(&message))
		{
			keep_received();
			acknowledge(false);
		}
	}
	else if (type == REPL_ML_ECHO)
	{
		TimestampTz time = pq_getmsgint64(&message);

		repl_ml_network_echo(&apply, time, pq_getmsgint64(&message));
	}
	else
		ereport(ERROR,
				(errcode(ERRCODE_PROTOCOL_VIOLATION),
				 errmsg("the peer sent a replication message of the unknown type %d",
						(unsigned char) type),
				 errhint("Check that the connection string of that node leads to the PostgreSQL "
						 "server itself, and not to a connection pooler.")));

	MemoryContextReset(apply.message_context);

	/* what has come may be a table, a member, a rule */
	if (is_at_rest() && apply.transaction.catalogs_changed)
	{
		apply.transaction.catalogs_changed = false;
		repl_ml_shmem_wake_supervisor(MyDatabaseId);
		follow_catalogs();
	}
}

/*
 * Leaves the stream alone while a large transaction is applied beside that
 * changes what is replicated; tells the peer that we are there.  Returns false as
 * soon as there is none.
 */
static bool
await_bulk(void)
{
	static bool waited = false;

	if (!apply.awaits_bulk)
		return false;
	finish_batch();
	apply.awaits_bulk = repl_ml_bulk_is_awaited(&apply);
	if (apply.awaits_bulk)
	{
		waited = true;
		show_streaming();
		acknowledge_news();
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, BULK_LOOK_MS,
						 wait_event_compat("ReplMlBulk"));
		ResetLatch(MyLatch);
		/* what the peer has sent meanwhile is not silence */
		apply.connection.last_message_time = GetCurrentTimestamp();
		return true;
	}
	if (waited)
	{
		waited = false;
		repl_ml_shmem_wake_supervisor(MyDatabaseId);
		follow_catalogs();
	}
	return false;
}

/*
 * Fetches changes of the schema from the peer, once in a while, that the stream of who made
 * them does not bring now.
 */
static void
fetch_schema(void)
{
	static TimestampTz last = 0;
	TimestampTz now = GetCurrentTimestamp();

	if (apply.schema_waited == 0)
		apply.schema_waited = now;
	if (!TimestampDifferenceExceeds(apply.schema_waited, now, SCHEMA_PATIENCE_MS) ||
		!TimestampDifferenceExceeds(last, now, SCHEMA_PATIENCE_MS))
		return;
	connect_beside();
	repl_ml_missed_fetch(&apply, apply.connection.copy, apply.awaits_schema, false);
	last = GetCurrentTimestamp();
	if (apply.transaction.catalogs_changed)
	{
		apply.transaction.catalogs_changed = false;
		follow_catalogs();
	}
}

/*
 * Leaves the stream alone until a change of the schema has been run here that the peer has
 * run by now, or that was put aside just now; not for longer than for a lock, if some client's
 * keeps it.  Returns false as soon as there is nothing to wait for.
 */
static bool
await_schema(void)
{
	if (apply.awaits_schema == 0)
		return false;
	finish_batch();
	if (!is_at_rest())
		return false;
	MemoryContextSwitchTo(apply.message_context);
	if (repl_ml_schema_change_is_settled(apply.awaits_schema) ||
		(apply.awaits_since != 0 &&
		 TimestampDifferenceExceeds(apply.awaits_since, GetCurrentTimestamp(),
									repl_ml_apply_lock_timeout)))
	{
		apply.awaits_schema = 0;
		apply.schema_waited = 0;
		return false;
	}
	MemoryContextSwitchTo(apply.message_context);
	show_streaming();
	acknowledge_news();
	repl_ml_aside_retry(&apply);
	repl_ml_retry_step(&apply);
	fetch_schema();
	(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, SCHEMA_LOOK_MS,
					 wait_event_compat("ReplMlSchemaChange"));
	ResetLatch(MyLatch);
	/* what the peer has sent meanwhile is not silence */
	apply.connection.last_message_time = GetCurrentTimestamp();
	MemoryContextReset(apply.message_context);
	return true;
}

/*
 * Brings our tables in line with the group's list, between transactions of the
 * stream.
 */
static void
follow_catalogs(void)
{
	last_enrolment = GetCurrentTimestamp();
	if (apply.catalogs_behind)
	{
		connect_beside();
		repl_ml_sync_catalogs(&apply, apply.connection.copy);
		apply.catalogs_behind = false;
	}
	repl_ml_enrol_pending(&apply);
	repl_ml_sync_tables(&apply);
	repl_ml_apply_set_state(&apply, REPL_ML_WORKER_STREAMING);
}

/*
 * Connects beside the stream, whose connection is in use; sync_tables closes
 * this one.
 */
static void
connect_beside(void)
{
	if (apply.connection.copy == NULL)
		apply.connection.copy = repl_ml_stream_connect(apply.peer->dsn, "copy");
}

/*
 * Compares with the peer, between transactions of the stream, what each has of
 * nodes that were dropped while it streams, and copies what is lacking.
 */
static void
compare_if_asked(void)
{
	if (!is_at_rest() || !repl_ml_apply_is_to_compare(&apply))
		return;
	MemoryContextSwitchTo(apply.message_context);
	connect_beside();
	repl_ml_dropped_compare(&apply, apply.connection.copy);
	repl_ml_sync_tables(&apply);
	repl_ml_apply_set_state(&apply, REPL_ML_WORKER_STREAMING);
}

/*
 * Takes the peer's wall clock when it sent a message as a measure of it now:
 * as messages take their time, it is at least so far ahead of our monotonic
 * clock.  The fastest message of the last windows tells most.
 */
static void
measure_clock(int64 sent)
{
	uint64		now = repl_ml_monotonic_now();
	int64		clock = (int64) ((uint64) sent - now);

	apply.connection.sent_time = sent;

	if (now - apply.connection.clock_since > CLOCK_WINDOW_US)
	{
		apply.connection.former_clock = apply.connection.clock;
		apply.connection.clock = clock;
		apply.connection.clock_since = now;
	}
	else
		apply.connection.clock = Max(apply.connection.clock, clock);
}

/* Shows in repl_ml.stat_apply what has come. */
static void
show_received(void)
{
	LWLockAcquire(repl_ml_shared->lock, LW_EXCLUSIVE);
	apply.worker->received_lsn = apply.progress.received;
	apply.worker->peer_lsn = Max(apply.worker->peer_lsn, apply.progress.received);
	apply.worker->last_message_time = apply.connection.last_message_time;
	apply.worker->peer_clock = Max(apply.connection.clock, apply.connection.former_clock);
	apply.worker->received_bytes += apply.received_bytes;
	repl_ml_rate_note(&apply.worker->network.rate, apply.worker->received_bytes);
	apply.worker->times.applying += apply.times.applying;
	apply.worker->times.flushing += apply.times.flushing;
	/* a new connection may have brought none so far */
	if (apply.connection.sent_time != 0)
		apply.worker->sent_time = apply.connection.sent_time;
	apply.worker->told_lsn = apply.progress.told;
	apply.worker->told_time = apply.progress.told_at;
	LWLockRelease(repl_ml_shared->lock);
	apply.received_bytes = 0;
	memset(&apply.times, 0, sizeof(apply.times));
}

/* Tells this server's processes how far we are, see read/position.c. */
static void
show_covered(XLogRecPtr lsn)
{
	bool		advanced = false;

	LWLockAcquire(repl_ml_shared->lock, LW_EXCLUSIVE);
	if (!apply.worker->covered_known || apply.worker->covered_lsn < lsn)
	{
		apply.worker->covered_known = true;
		apply.worker->covered_lsn = Max(apply.worker->covered_lsn, lsn);
		advanced = true;
	}
	LWLockRelease(repl_ml_shared->lock);
	if (advanced)
		repl_ml_positions_advanced();
}

/*
 * Makes everything applied count as durable, when it has been flushed.  The peer is
 * told of both: of that, for commits that wait, and of where the origin is on disk,
 * for its slot, which so is never beyond that, however much WAL had nothing for us.
 */
static void
note_durable(void)
{
	apply.progress.volatile_since = 0;
	apply.progress.durable = apply.progress.applied;
	apply.progress.kept = replorigin_session_get_progress(true);
}

/*
 * Moves the origin, durably, over what had nothing for us, between transactions:
 * where the peer asks how far we are, as it does before its server ends, or would
 * keep much WAL.  Otherwise its next transaction, a heartbeat perhaps, does it.
 */
static void
keep_received(void)
{
	if (!is_at_rest() || apply.progress.kept >= apply.progress.received)
		return;
	repl_ml_apply_reaches(&apply, apply.progress.received);
	StartTransactionCommand();
	/* without that nothing is written */
	(void) GetCurrentTransactionId();
	replorigin_session_origin_lsn = apply.progress.received;
	replorigin_session_origin_timestamp = 0;
	CommitTransactionCommand();
	forget_commit(0, (Datum) 0);
	MemoryContextSwitchTo(apply.message_context);
	repl_ml_news_flush(XactLastCommitEnd);
	apply.progress.kept = apply.progress.received;
}

/*
 * Makes everything received count as applied, outside transactions: what is
 * not ours to apply needs no keeping.  It is made durable if somebody waits
 * for it, or if it has not been for a while: one flush for all that has come.
 */
static void
settle_received(bool at_once)
{
	show_received();
	if (!is_at_rest())
		return;
	if (apply.progress.volatile_since != 0 &&
		(apply.progress.urgency == REPL_ML_NOW || at_once ||
		 GetFlushRecPtr(NULL) >= XactLastCommitEnd ||
		 TimestampDifferenceExceeds(apply.progress.volatile_since, GetCurrentTimestamp(),
									flush_delay())))
	{
		uint64		began = repl_ml_monotonic_now();

		repl_ml_news_flush(XactLastCommitEnd);
		apply.times.flushing += repl_ml_monotonic_now() - began;
		apply.progress.volatile_since = 0;
	}
	apply.progress.applied = Max(apply.progress.applied, apply.progress.received);
	if (apply.progress.volatile_since == 0)
	{
		note_durable();
		if (apply.progress.received - apply.progress.kept > KEPT_BEHIND)
			keep_received();
		/* whoever hurried us will again */
		if (apply.progress.urgency == REPL_ML_NOW)
			apply.progress.seen = apply.batch.end;
		apply.progress.urgency = REPL_ML_WHENEVER;
	}
	show_covered(apply.progress.applied);
}

/*
 * Sends the peer how far we are, as it is noted.  As often as it has to hear that
 * we are there it is asked for an echo: so a silent peer is known from one that has
 * nothing to say.
 */
static void
send_status(bool reply_wanted)
{
	uint64		now = repl_ml_monotonic_now();
	bool		is_ping = now - apply.connection.pinged >= (uint64) status_interval() * 1000;
	TimestampTz time;

	time = repl_ml_stream_status(apply.connection.stream, apply.progress.received,
								 apply.progress.durable, apply.progress.kept, reply_wanted,
								 is_ping);
	if (is_ping)
	{
		apply.connection.pinged = now;
		repl_ml_network_ping(&apply, time, now);
	}
	apply.progress.told = apply.progress.durable;
	apply.progress.told_at = GetCurrentTimestamp();
	apply.progress.committed = false;
}

/*
 * Tells the peer how far we are, and asks for an answer where that is wanted.
 */
static void
acknowledge(bool reply_wanted)
{
	settle_received(reply_wanted);
	send_status(reply_wanted);
}

/*
 * Returns how long it may take, ms, until the peer is told how far we are, where
 * nobody waits for that.  What is not durable yet is not worth a message.
 */
static int
status_patience(void)
{
	return apply.progress.volatile_since == 0 && apply.progress.told < apply.progress.received ?
		QUIET_STATUS_MS : status_interval();
}

/*
 * Tells the peer how far we are, if there is something to tell: transactions
 * that are durable now, or that we are still there.  That the peer's WAL has
 * gone on without any for us, as it does with every change of ours that it has
 * applied, or what nobody waits for, can wait a moment.
 */
static void
acknowledge_news(void)
{
	settle_received(false);
	if ((apply.progress.committed && apply.progress.told < apply.progress.durable) ||
		TimestampDifferenceExceeds(apply.progress.told_at, GetCurrentTimestamp(),
								   status_patience()))
		send_status(false);
	repl_ml_news_settle();
}

/* Returns when there is something to do again, if nothing comes, ms. */
static int
find_longest_wait(void)
{
	int			wait = status_patience();

	if (apply.retry.aside)
		wait = Min(wait, ASIDE_DELAY_MS);
	if (apply.progress.volatile_since != 0)
		wait = Min(wait, flush_due());
	wait = Min(wait, repl_ml_retry_due());
	return repl_ml_news_due() < 0 ? wait : Min(wait, repl_ml_news_due());
}

/*
 * Returns how long more may come before what is here is looked after, ms:
 * where nobody waits for it just now, many small transactions cost as much as
 * one.  Never twice in a row without anything having come or become due: what
 * looks after a silent peer is the wait for the stream.
 */
static int
find_leisure(void)
{
	/* what is volatile at rest is flushed soon, and that ends it; heartbeats come singly */
	if (apply.progress.volatile_since == 0 || !is_at_rest() ||
		apply.progress.volatile_since > GetCurrentTimestamp() ||
		apply.progress.urgency == REPL_ML_NOW || repl_ml_position_is_awaited())
		return 0;
	if (apply.progress.urgency == REPL_ML_SOON)
		return SOON_MS;
	return apply.batch.end != apply.progress.seen ? GATHER_MS : 0;
}

/* Waits that long, or for the latch, and not for the stream. */
static void
let_more_come(int wait)
{
	(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, wait,
					 wait_event_compat("ReplMlApplyMain"));
	ResetLatch(MyLatch);
}

/*
 * Waits for the stream, the latch or as long as nothing is due; returns what
 * has happened.
 */
static int
wait_for_stream(pgsocket fd)
{
	WaitEvent	occurred[2];
	int			count;
	int			events = 0;

	/* one for the life of the connection: to make it costs more than to wait */
	if (wait_set == NULL)
	{
		wait_set = CreateWaitEventSet_compat(true, 3);
		AddWaitEventToSet(wait_set, WL_LATCH_SET, PGINVALID_SOCKET, MyLatch, NULL);
		AddWaitEventToSet(wait_set, WL_EXIT_ON_PM_DEATH, PGINVALID_SOCKET, NULL, NULL);
		AddWaitEventToSet(wait_set, WL_SOCKET_READABLE, fd, NULL, NULL);
	}
	count = WaitEventSetWait(wait_set, find_longest_wait(), occurred, lengthof(occurred),
							 wait_event_compat("ReplMlApplyMain"));
	for (int i = 0; i < count; i++)
		events |= occurred[i].events;
	return events;
}

/*
 * Ends the connection with a peer of which a part of a transaction has come, and then nothing
 * for a while, if somebody waits for what that has locked here: it comes again as a whole.
 */
static void
end_unfinished(TimestampTz last)
{
	TransactionId xid = apply.transaction.open && IsTransactionState() ?
		GetTopTransactionIdIfAny() : InvalidTransactionId;
	LOCKTAG		tag;

	if (!TransactionIdIsValid(xid) ||
		!TimestampDifferenceExceeds(last, GetCurrentTimestamp(), UNFINISHED_MS))
		return;
	SET_LOCKTAG_TRANSACTION(tag, xid);
	if (!LockHasWaiters(&tag, ExclusiveLock, false))
		return;
	ereport(ERROR,
			(errcode(ERRCODE_CONNECTION_FAILURE),
			 errmsg("node \"%s\" has been silent for more than %d ms in a transaction",
					apply.peer->node_name, UNFINISHED_MS),
			 errdetail("Others wait for rows that it has written."),
			 errhint("The transaction comes again when the node can be reached; check the "
					 "network to it.")));
}

/*
 * Waits for more, and looks after a silent peer: asks it once whether it is
 * there, and ends the connection if it does not answer.
 */
static void
wait_for_data(pgsocket fd)
{
	static TimestampTz asked = 0;	/* the last message when we asked the peer
									 * whether it is there */
	TimestampTz last;
	int			events;

	if (find_leisure() > 0)
	{
		let_more_come(find_leisure());
		apply.progress.seen = apply.batch.end;
		return;
	}
	apply.progress.seen = apply.batch.end;
	events = wait_for_stream(fd);
	if (events & WL_LATCH_SET)
		ResetLatch(MyLatch);
	last = apply.connection.last_message_time;
	if ((events & WL_SOCKET_READABLE) == 0)
		end_unfinished(last);
	if (events & WL_SOCKET_READABLE || wal_receiver_timeout <= 0)
		return;

	/* asked, and no answer */
	if (TimestampDifferenceExceeds(last, GetCurrentTimestamp(), wal_receiver_timeout) &&
		asked == last)
		ereport(ERROR,
				(errcode(ERRCODE_CONNECTION_FAILURE),
				 errmsg("node \"%s\" has been silent for more than %d ms",
						apply.peer->node_name, wal_receiver_timeout),
				 errhint("Check the network to that node, or raise \"%s\".",
						 "wal_receiver_timeout")));
	if (asked != last &&
		TimestampDifferenceExceeds(last, GetCurrentTimestamp(), wal_receiver_timeout / 2))
	{
		acknowledge(true);
		asked = last;
	}
}

/* Notes that a transaction met others' locks. */
static void
count_race(void)
{
	apply.retry.races++;
	LWLockAcquire(repl_ml_shared->lock, LW_EXCLUSIVE);
	apply.worker->retries++;
	LWLockRelease(repl_ml_shared->lock);
}

/* Returns how long the others then have before it is tried again, ms. */
static int
race_delay(void)
{
	return Min(FIRST_DELAY_MS / 4 * Max(apply.retry.races - 1, 0), FIRST_DELAY_MS * 5);
}

/*
 * Called by replay.c, outside a transaction, before what met others' locks is
 * applied again: tells the peer what has been committed before it, and that we
 * are there, and lets the others go on.
 */
static void
give_way(void)
{
	int			delay;

	count_race();
	delay = apply.retry.aside ? Min(race_delay(), ASIDE_DELAY_MS) : race_delay();
	if (apply.progress.volatile_since != 0)
		repl_ml_news_flush(XactLastCommitEnd);
	note_durable();
	show_covered(apply.progress.applied);
	send_status(false);
	repl_ml_aside_retry(&apply);
	reload_if_asked();
	/* what the transaction that is tried again waits for may be a copy */
	compare_if_asked();
	if (delay > 0)
	{
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
						 delay, wait_event_compat("ReplMlApplyDelay"));
		ResetLatch(MyLatch);
	}
	CHECK_FOR_INTERRUPTS();
}

/*
 * Counts what ends the peer's stream again and again, for copy/link.c, and
 * forgets that when something has been applied.
 */
static void
count_failure(int sqlstate)
{
	if (apply.connection.progressed)
		apply.connection.failures = apply.connection.patience = 0;
	if (apply.connection.listening)
	{
		apply.connection.failures++;
		apply.connection.failure = sqlstate;
	}
	apply.connection.listening = false;
}

/*
 * Shows an error, gives everything back and remembers which transaction it
 * hit.  Returns true if the same may be tried again at once.
 */
static bool
recover_from_error(void)
{
	ErrorData  *error;
	XLogRecPtr	hit = apply.transaction.open && apply.blame_transaction ?
		apply.transaction.final_lsn : InvalidXLogRecPtr;
	bool		impatient = apply.transaction.impatient;
	bool		race;
	bool		blocked;
	bool		locked;

	HOLD_INTERRUPTS();
	MemoryContextSwitchTo(TopMemoryContext);
	error = CopyErrorData();
	repl_ml_network_ended(&apply, error->message);
	blocked = repl_ml_locked_by_commit(error->sqlerrcode);
	locked = !apply.batch.crowded && repl_ml_locked_is_race(error->sqlerrcode);
	/* also a key, in the stream or a copy, that has been inserted since we looked */
	race = locked || blocked || apply.batch.crowded ||
		(error->sqlerrcode == ERRCODE_UNIQUE_VIOLATION &&
		 (hit != InvalidXLogRecPtr ? apply.retry.failures : apply.retry.races) == 0);
	if (!race)
		EmitErrorReport();
	count_failure(error->sqlerrcode);
	/* one that has just been started itself will say soon whether it has more of us */
	apply.connection.compared |= error->sqlerrcode != ERRCODE_CANNOT_CONNECT_NOW;
	FlushErrorState();
	forget_commit(0, (Datum) 0);
	AbortOutOfAnyTransaction();
	repl_ml_round_unblock();
	repl_ml_dispatch_reset(&apply);
	repl_ml_replay_forget();
	/* what was in one transaction is sent again, and one of it may fail again */
	apply.batch.single_until = Max(apply.batch.single_until, apply.progress.received);
	disconnect();
	repl_ml_applying = true;
	repl_ml_enrol_unlock();
	MemoryContextReset(apply.message_context);
	MemoryContextSwitchTo(apply.message_context);

	if (blocked)
		apply.retry.blocked_lsn = hit;
	if (hit != InvalidXLogRecPtr && locked)
		repl_ml_dispatch_locked(&apply, hit, error->sqlerrcode);
	repl_ml_locked_unwatch();
	if (hit != InvalidXLogRecPtr &&
		(locked ? impatient : repl_ml_dispatch_is_permanent(error->sqlerrcode)))
		repl_ml_dispatch_blame(&apply, hit, error);

	if (race)
		count_race();
	else
	{
		bool		copying = apply.worker->state == REPL_ML_WORKER_COPYING;

		repl_ml_apply_set_state(&apply, REPL_ML_WORKER_WAITING);
		repl_ml_apply_show_error(&apply, error);
		if (copying)
			repl_ml_apply_count_sync_error(&apply);
	}
	if (error != apply.retry.failure)
		FreeErrorData(error);
	RESUME_INTERRUPTS();
	return race;
}
