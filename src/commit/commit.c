/*
 * commit.c
 *		Commits that mean it: how many members have a transaction before its
 *		commit returns.
 *
 * Before the commit the level is settled and, where too few members can be
 * reached, the transaction is refused.  Then core's own wait for synchronous
 * replication is set up: synchronous_commit is raised for this commit, or
 * lowered where there is nothing to wait for (the library itself gives
 * synchronous_standby_names its value, so every other commit of the server
 * would wait).  After the commit we look whether the wait ended because the
 * members have the transaction.  If not (a timeout, a cancel), the client must
 * not read success: the message that would say so is replaced by an error.
 *
 * Next on the way: write/output.c sends the transaction to the peers, reply.c
 * hears them, quorum.c lets the commit go.  Not here: which level a transaction
 * needs (level.c), and who has what (members.c).  This file takes no lock; what
 * it calls in quorum.c takes that of commit/.
 */
#include "postgres.h"

#include "access/xact.h"
#include "access/xlog.h"
#include "catalog/pg_type.h"
#include "miscadmin.h"
#include "replication/message.h"
#include "replication/syncrep.h"
#include "storage/latch.h"
#include "tcop/dest.h"
#include "tcop/tcopprot.h"
#include "utils/builtins.h"
#include "utils/elog.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/snapmgr.h"
#include "utils/timeout.h"

#include "commit/commit.h"
#include "compat.h"
#include "row/row.h"
#include "server/server.h"

/* repl_ml.write_timeout: default, minimum, maximum, ms */
#define WRITE_TIMEOUT		10000, 0, INT_MAX

static int	write_timeout;

/* The commit under way in this backend. */
typedef struct Commit
{
	bool		waits;			/* announced to commit/waiter.c */
	ReplMlLevel level;
	bool		strong;			/* a prepared transaction that has written strong tables */
	int			timeout;		/* ms; 0: none */
	char		parked_on[4 * NAMEDATALEN]; /* members, where it ended for that */
	bool		changed;		/* synchronous_commit is not the user's */
	int			synchronous_commit; /* the user's */
} Commit;

static Commit commit;
static volatile sig_atomic_t timed_out = false; /* by cancel_wait */
static TimeoutId timeout_id = MAX_TIMEOUTS; /* until it is registered */

/* The commit that could not be acknowledged, until the client has been told. */
static struct
{
	Commit		commit;
	ReplMlOutcome outcome;
	XLogRecPtr	lsn;
	bool		watches;		/* there is something to tell */
} untold;

static emit_log_hook_type previous_log_hook = NULL;

static void handle_xact_event(XactEvent event, void *arg);
static void before_commit(void);
static void begin_wait(ReplMlLevel level, TransactionId xid);
static void tell_level(ReplMlLevel level);
static ReplMlOutcome end_wait(XLogRecPtr lsn, bool committed);
static ReplMlLevel level_of_prepared(const char *gid, TransactionId *xid);
static void mark_commit(ReplMlLevel level);
static void set_synchronous_commit(int value);
static void after_commit(XLogRecPtr lsn, bool committed);
static void start_timeout(void);
static void cancel_wait(void);
static void tell_client_later(ReplMlOutcome outcome, XLogRecPtr lsn);
static int	replace_success(char type, const char *data, size_t length);
static void raise_unacknowledged(const Commit *given_up, ReplMlOutcome outcome, XLogRecPtr lsn);
static void silence_core(ErrorData *error);

/*
 * Called by _PG_init: defines the setting and, at server start, installs the
 * callbacks and takes synchronous_standby_names.
 */
void
repl_ml_commit_init(void)
{
	DefineCustomIntVariable("repl_ml.write_timeout",
							"How long a commit waits for other members to have it; 0 waits for "
							"ever.",
							"A commit that is given up is an error, though the transaction is "
							"committed on this node.",
							&write_timeout,
							WRITE_TIMEOUT,
							PGC_USERSET,
							GUC_UNIT_MS,
							NULL,
							NULL,
							NULL);
	if (!process_shared_preload_libraries_in_progress)
		return;
	/* a value of the administrator's has precedence */
	SetConfigOption("synchronous_standby_names", REPL_ML_STANDBY_NAME, PGC_POSTMASTER,
					PGC_S_DYNAMIC_DEFAULT);
	RegisterXactCallback(handle_xact_event, NULL);
	previous_log_hook = emit_log_hook;
	emit_log_hook = silence_core;
}

/* A backend's callback: begins a wait before a commit, and ends it after. */
static void
handle_xact_event(XactEvent event, void *arg)
{
	switch (event)
	{
		case XACT_EVENT_PRE_COMMIT:
			before_commit();
			repl_ml_backlog_note();
			break;
		case XACT_EVENT_PRE_PREPARE:
			repl_ml_backlog_note();
			/* whoever commits it waits, and tells the level */
			if (repl_ml_token_is_out() && repl_ml_ticker_used())
				tell_level(repl_ml_level_wanted());
			(void) repl_ml_lease_check();
			repl_ml_lease_mark();
			if (repl_ml_quorum_owns_waits() && synchronous_commit > SYNCHRONOUS_COMMIT_LOCAL_FLUSH)
				set_synchronous_commit(SYNCHRONOUS_COMMIT_LOCAL_FLUSH);
			break;
		case XACT_EVENT_COMMIT:
			after_commit(XactLastCommitEnd, true);
			break;
		case XACT_EVENT_ABORT:
		case XACT_EVENT_PREPARE:
			after_commit(InvalidXLogRecPtr, false);
			break;
		default:
			break;
	}
}

/* Settles the level of the commit that begins, and whether it may. */
static void
before_commit(void)
{
	TransactionId xid = GetTopTransactionIdIfAny();
	ReplMlLevel level = REPL_ML_ONE;

	if (TransactionIdIsValid(xid) && !repl_ml_internal_write && !repl_ml_applying &&
		repl_ml_ticker_used())
		level = repl_ml_level_wanted();
	/* it may have waited for the lock of a row whose commit was given up, and shown that */
	if (repl_ml_lease_check() && level == REPL_ML_ONE)
		repl_ml_gate_pass(InvalidSnapshot, write_timeout);

	/*
	 * also without an id: NOTIFY and temporary tables make the transaction take
	 * one after this, and core would let it wait
	 */
	begin_wait(level, xid);
	if (!TransactionIdIsValid(xid))
		return;
	if (!repl_ml_applying || replorigin_session_origin == InvalidRepOriginId)
		repl_ml_news_begin();
	if (repl_ml_token_is_out() && repl_ml_ticker_used())
		tell_level(level);
	repl_ml_lease_mark();
}

/*
 * Writes a message into the transaction, for those who apply it and may be
 * asked about it.
 */
static void
tell_level(ReplMlLevel level)
{
	char	   *message = repl_ml_record_of_transaction(level);

	LogLogicalMessage_compat(REPL_ML_MESSAGE_PREFIX, message, strlen(message), true);
}

/*
 * Sets up core's wait for the commit of a transaction with this level; raises
 * an error where the level cannot be reached.
 */
static void
begin_wait(ReplMlLevel level, TransactionId xid)
{
	/* nobody would end core's wait */
	if (level == REPL_ML_ONE || repl_ml_members_is_alone())
	{
		if (synchronous_commit > SYNCHRONOUS_COMMIT_LOCAL_FLUSH && repl_ml_quorum_owns_waits())
			set_synchronous_commit(SYNCHRONOUS_COMMIT_LOCAL_FLUSH);
		return;
	}
	if (!repl_ml_quorum_owns_waits())
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("write consistency \"%s\" is not possible while \"%s\" is set to something "
						"else",
						repl_ml_level_name(level), "synchronous_standby_names"),
				 errdetail("Commits wait where they would wait for standbys."),
				 errhint("Remove %s from the server's configuration and restart it, or set it to "
						 "%s and reload the configuration.",
						 "synchronous_standby_names", REPL_ML_STANDBY_NAME)));
	repl_ml_waiter_begin(level, xid);
	commit.waits = true;
	commit.level = level;
	mark_commit(level);
	start_timeout();
}

/*
 * Lets the commit wait in the queue of its level.  Two bits of the commit
 * record, which mean little else, tell the level to recall.c: a record of its
 * own would be decoded and sent with every transaction.
 */
static void
mark_commit(ReplMlLevel level)
{
	set_synchronous_commit(SYNCHRONOUS_COMMIT_REMOTE_APPLY);
	if (level == REPL_ML_ALL)
		ForceSyncCommit();
	else
		assign_synchronous_commit(SYNCHRONOUS_COMMIT_REMOTE_FLUSH, NULL);
}

/*
 * Sets synchronous_commit until end_wait; not through the setting, whose own
 * changes it must survive.
 */
static void
set_synchronous_commit(int value)
{
	if (!commit.changed)
		commit.synchronous_commit = synchronous_commit;
	commit.changed = true;
	synchronous_commit = value;
	assign_synchronous_commit(value, NULL);
}

/*
 * Ends what before_commit began: takes everything back, and sees to it that
 * the client hears the truth.
 */
static void
after_commit(XLogRecPtr lsn, bool committed)
{
	bool		waited = commit.waits;
	ReplMlOutcome outcome;

	if (waited && committed)
		repl_ml_lease_gives_up(lsn, false);
	outcome = end_wait(lsn, committed);

	repl_ml_level_forget();
	repl_ml_token_forget();
	if (waited &&
		(outcome == REPL_ML_TIMED_OUT || outcome == REPL_ML_CANCELLED || outcome == REPL_ML_PARKED))
		tell_client_later(outcome, lsn);
}

/* Takes back what begin_wait set up, and says what became of the wait. */
static ReplMlOutcome
end_wait(XLogRecPtr lsn, bool committed)
{
	repl_ml_news_end();
	if (commit.changed)
	{
		synchronous_commit = commit.synchronous_commit;
		assign_synchronous_commit(commit.synchronous_commit, NULL);
		commit.changed = false;
	}
	if (!commit.waits)
		return REPL_ML_ACKNOWLEDGED;
	commit.waits = false;
	if (timeout_id != MAX_TIMEOUTS)
		disable_timeout(timeout_id, false);

	/* fired too late to be seen by the wait: it is nobody's cancel */
	if (timed_out && committed)
		QueryCancelPending = false;
	return repl_ml_waiter_end(lsn, !committed ? REPL_ML_ABORTED :
							  timed_out ? REPL_ML_TIMED_OUT : REPL_ML_CANCELLED,
							  commit.parked_on, sizeof(commit.parked_on));
}

/* Starts the time after which the wait is given up. */
static void
start_timeout(void)
{
	timed_out = false;
	/* SET LOCAL ends with the transaction, the error comes after it */
	commit.timeout = write_timeout;
	if (write_timeout <= 0)
		return;
	if (timeout_id == MAX_TIMEOUTS)
		timeout_id = RegisterTimeout(USER_TIMEOUT, cancel_wait);
	enable_timeout_after(timeout_id, write_timeout);
}

/*
 * The timeout's handler: cancels the wait, because core's wait ends on a
 * cancel only.
 */
static void
cancel_wait(void)
{
	timed_out = true;
	InterruptPending = true;
	QueryCancelPending = true;
	SetLatch(MyLatch);
}

static ReplMlWatcher untold_watcher = {.putmessage = replace_success};

/*
 * Makes the next message that tells the client of success become the error:
 * none may be raised inside a commit that has happened.
 */
static void
tell_client_later(ReplMlOutcome outcome, XLogRecPtr lsn)
{
	if (whereToSendOutput != DestRemote)
	{
		ereport(WARNING,
				(errcode(ERRCODE_T_R_STATEMENT_COMPLETION_UNKNOWN),
				 errmsg("a transaction is committed on this node but not acknowledged by write "
						"consistency \"%s\"",
						repl_ml_level_name(commit.level)),
				 errhint("It will reach the other members when they can be reached; see SELECT * "
						 "FROM repl_ml.health.")));
		return;
	}
	untold.commit = commit;
	untold.outcome = outcome;
	untold.lsn = lsn;
	if (untold.watches)
		return;
	untold.watches = true;
	repl_ml_messages_watch(&untold_watcher);
}

/*
 * In place of core's method: passes everything on but CommandComplete, or
 * ReadyForQuery where the commit came with a Sync, instead of which it raises
 * the error.
 */
static int
replace_success(char type, const char *data, size_t length)
{
	if (type != 'C' && type != 'Z')
		return repl_ml_messages_put(&untold_watcher, type, data, length);
	repl_ml_messages_leave(&untold_watcher);
	untold.watches = false;
	raise_unacknowledged(&untold.commit, untold.outcome, untold.lsn);
	return 0;					/* not reached */
}

/*
 * Raises the error for a transaction that is committed here and not
 * acknowledged.
 */
static void
raise_unacknowledged(const Commit *given_up, ReplMlOutcome outcome, XLogRecPtr lsn)
{
	char	   *missing = repl_ml_members_missing(lsn);
	StringInfoData detail;

	/* who cannot have it yet, then why nobody waits for the others */
	initStringInfo(&detail);
	if (given_up->parked_on[0] != '\0')
		appendStringInfo(&detail,
						 _("Something of it is parked on %s, or could not be sent there. "),
						 given_up->parked_on);
	if (outcome == REPL_ML_TIMED_OUT)
		appendStringInfo(&detail, _("No answer within %d ms (repl_ml.write_timeout) from: %s."),
						 given_up->timeout, missing);
	else if (outcome == REPL_ML_CANCELLED)
		appendStringInfo(&detail, _("The wait was cancelled; no answer yet from: %s."), missing);
	else
		appendStringInfo(&detail, _("Too few other members are left."));
	ereport(ERROR,
			(errcode(ERRCODE_T_R_STATEMENT_COMPLETION_UNKNOWN),
			 errmsg("transaction is committed on this node but not acknowledged by write "
					"consistency \"%s\"",
					repl_ml_level_name(given_up->level)),
			 errdetail_internal("%s", detail.data),
			 outcome == REPL_ML_PARKED ?
			 errhint("See SELECT * FROM repl_ml.parked_changes and repl_ml.health on those nodes; "
					 "once the cause is mended, repl_ml.retry_parked(id) applies it there. With "
					 "repl_ml.transaction_token() in a transaction, SELECT "
					 "repl_ml.transaction_status(token) tells what became of it.") :
			 errhint("It will reach the other members when they can be reached. With "
					 "repl_ml.transaction_token() in a transaction, SELECT "
					 "repl_ml.transaction_status(token) tells what became of it.")));
}

/* Returns for how long a commit waits, ms; 0: as long as it takes. */
int
repl_ml_write_timeout(void)
{
	return write_timeout;
}

/*
 * Called by statement.c in place of COMMIT PREPARED and ROLLBACK PREPARED, which
 * have no callbacks of their own: "run" runs them, and the commit waits as
 * others do.  The level is that of the setting and of the tables that the
 * prepared transaction has locked for writing, or for TRUNCATE.
 */
void
repl_ml_commit_prepared(const char *gid, bool is_commit, void (*run) (void *argument),
						void *argument)
{
	ReplMlOutcome outcome = REPL_ML_ACKNOWLEDGED;
	TransactionId xid = InvalidTransactionId;
	ReplMlLevel level = is_commit ? level_of_prepared(gid, &xid) : REPL_ML_ONE;
	char	   *message = level == REPL_ML_ONE ? "" : repl_ml_record_of_prepared(level, xid);

	if (is_commit)
		repl_ml_lease_commits_prepared();
	begin_wait(level, xid);
	repl_ml_news_begin();

	/* a wait that nobody ends would stay on the list of those that wait */
	PG_TRY();
	{
		if (commit.waits)
			LogLogicalMessage_compat(REPL_ML_MESSAGE_PREFIX, message, strlen(message), false);
		run(argument);
	}
	PG_CATCH();
	{
		(void) end_wait(InvalidXLogRecPtr, false);
		PG_RE_THROW();
	}
	PG_END_TRY();
	if (commit.waits)
		repl_ml_lease_gives_up(XactLastRecEnd, commit.strong);
	outcome = end_wait(XactLastRecEnd, true);
	if (outcome != REPL_ML_ACKNOWLEDGED)
		raise_unacknowledged(&commit, outcome, XactLastRecEnd);
}

/*
 * Returns the level that a prepared transaction's commit needs now, and its
 * id.
 */
static ReplMlLevel
level_of_prepared(const char *gid, TransactionId *xid)
{
	Oid			types[1] = {TEXTOID};
	Datum		values[1] = {CStringGetTextDatum(gid)};
	List	   *written = NIL;
	MemoryContext context = CurrentMemoryContext;
	ReplMlLevel level;
	ListCell   *lc;

	if (!OidIsValid(repl_ml_schema_oid()))
		return REPL_ML_ONE;
	PushActiveSnapshot(GetTransactionSnapshot());
	SPI_connect();
	/* what a prepared transaction has locked is found by its lock of itself */
	SPI_execute_with_args("SELECT l.relation, p.transaction FROM pg_catalog.pg_prepared_xacts p"
						  " JOIN pg_catalog.pg_locks x"
						  " ON x.locktype OPERATOR(pg_catalog.=) 'transactionid'"
						  " AND x.transactionid OPERATOR(pg_catalog.=) p.transaction"
						  " AND x.pid IS NULL"
						  " JOIN pg_catalog.pg_locks l"
						  " ON l.virtualtransaction OPERATOR(pg_catalog.=) x.virtualtransaction"
						  " AND l.pid IS NULL"
						  " WHERE p.gid OPERATOR(pg_catalog.=) $1"
						  " AND l.locktype OPERATOR(pg_catalog.=) 'relation'"
						  " AND l.mode OPERATOR(pg_catalog.=)"
						  " ANY ('{RowExclusiveLock,AccessExclusiveLock}')"
						  " AND l.database OPERATOR(pg_catalog.=)"
						  " (SELECT d.oid FROM pg_catalog.pg_database d"
						  " WHERE d.datname OPERATOR(pg_catalog.=) pg_catalog.current_database())",
						  1, types, values, NULL, true, 0);
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		Oid			relid = strtoul(repl_ml_spi_text(i, 0), NULL, 10);
		MemoryContext old;

		*xid = strtoul(repl_ml_spi_text(i, 1), NULL, 10);
		if (repl_ml_table_clock_attnum(relid) == InvalidAttrNumber)
			continue;
		old = MemoryContextSwitchTo(context);
		written = lappend_oid(written, repl_ml_table_root(relid));
		MemoryContextSwitchTo(old);
	}
	SPI_finish();
	PopActiveSnapshot();
	commit.strong = false;
	foreach(lc, written)
		commit.strong |= repl_ml_level_is_strong(lfirst_oid(lc));
	level = written == NIL ? REPL_ML_ONE : repl_ml_level_of_tables(written);
	return level;
}

/*
 * A hook of the log: leaves out core's warning of a cancelled wait, which says
 * less than our error, and blames the user for a timeout.
 */
static void
silence_core(ErrorData *error)
{
	if (commit.waits && error->elevel == WARNING && error->message_id != NULL &&
		strcmp(error->message_id,
			   "canceling wait for synchronous replication due to user request") == 0)
	{
		error->output_to_server = false;
		error->output_to_client = false;
	}
	if (previous_log_hook)
		previous_log_hook(error);
}
