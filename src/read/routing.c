/*
 * routing.c
 *		Clients that look for a node to write on pass by one that is cut off.
 *
 * A client that may choose between servers (libpq: several hosts and
 * target_session_attrs) asks each for default_transaction_read_only, which the
 * server reports while the connection is made, or for transaction_read_only.
 * With repl_ml.fenced_read_only both are told "on" while this node cannot reach
 * a majority of its group.  Only told: no session is read-only, so nobody has to
 * be made writable when the majority is back, and nobody reads 25006 from us.
 * What cannot be written is refused by commit.c.
 *
 * Settings are reported where nothing of ours is called, so the method that
 * sends messages is ours from the authentication until the session has begun.
 * The client is told the setting's value again with its first answer.
 *
 * Whether the node is cut off members.c knows, under its lock; here is none.
 */
#include "postgres.h"

#include "access/xact.h"
/* what differs with these is not used, and spares the headers of Kerberos and OpenSSL */
#undef ENABLE_GSS
#undef USE_OPENSSL
#undef USE_SSL
#include "libpq/auth.h"
#include "libpq/libpq-be.h"
#include "miscadmin.h"
#include "replication/walsender.h"
#include "utils/guc.h"

#include "commit/commit.h"
#include "read/read.h"
#include "server/server.h"

#define REPORTED			"default_transaction_read_only"
#define REPORTED_OFF		REPORTED "\0off"
#define REPORTED_ON			REPORTED "\0on"
#define ASKED				"transaction_read_only"

static bool fenced_read_only = false;

static ClientAuthentication_hook_type previous_hook = NULL;

/* This session's beginning; this file only. */
static enum
{
	CONNECTING,
	BEGUN,						/* the client has not asked for anything yet */
	TOLD
}			phase = CONNECTING;
static bool said_on = false;
static bool watches = false;

static void watch_session(Port *port, int status);
static int	put_setting(char type, const char *data, size_t length);
static void step_aside(void);

static ReplMlWatcher watcher = {.putmessage = put_setting};

/*
 * Called by _PG_init: defines the setting and, at server start, installs the
 * hook.
 */
void
repl_ml_routing_init(void)
{
	DefineCustomBoolVariable("repl_ml.fenced_read_only",
							 "Tells clients that connect that this node is read-only while it "
							 "cannot reach a majority of its group.",
							 "So those that look for a server to write on "
							 "(target_session_attrs=read-write) go on to the next.",
							 &fenced_read_only,
							 false,
							 PGC_SIGHUP,
							 0,
							 NULL,
							 NULL,
							 NULL);
	if (!process_shared_preload_libraries_in_progress)
		return;
	previous_hook = ClientAuthentication_hook;
	ClientAuthentication_hook = watch_session;
}

/*
 * A backend's hook: sees the messages of a client that has been let in.  Of
 * which database it will be is not known yet.
 */
static void
watch_session(Port *port, int status)
{
	if (previous_hook)
		previous_hook(port, status);
	if (status != STATUS_OK || !fenced_read_only || am_walsender || watches)
		return;
	watches = true;
	repl_ml_messages_watch(&watcher);
}

/*
 * In place of core's method: tells the client that the setting is "on" if this
 * node is cut off, while the connection is made, and what it is with the first
 * answer.
 */
static int
put_setting(char type, const char *data, size_t length)
{
	if (phase == CONNECTING && type == 'S' && length == sizeof(REPORTED_OFF) &&
		memcmp(data, REPORTED_OFF, length) == 0 && repl_ml_members_is_cut_off())
	{
		said_on = true;
		return repl_ml_messages_put(&watcher, 'S', REPORTED_ON, sizeof(REPORTED_ON));
	}
	if (phase == CONNECTING && type == 'Z')
	{
		phase = BEGUN;
		if (!said_on)
			step_aside();
	}
	else if (phase == BEGUN)
	{
		step_aside();
		if (said_on && !DefaultXactReadOnly)
			(void) repl_ml_messages_put(&watcher, 'S', REPORTED_OFF, sizeof(REPORTED_OFF));
	}
	return repl_ml_messages_put(&watcher, type, data, length);
}

/* Leaves messages to core's method, which is as good as ours from here on. */
static void
step_aside(void)
{
	phase = TOLD;
	repl_ml_messages_leave(&watcher);
}

/*
 * Called by statement.c in place of SHOW, which "run" runs: clients that do not
 * look at what is reported ask so, first of all.
 */
void
repl_ml_routing_show(const VariableShowStmt *stmt, void (*run) (void *argument), void *argument)
{
	bool		read_only = XactReadOnly;

	if (!fenced_read_only || IsTransactionBlock() || strcmp(stmt->name, ASKED) != 0 ||
		!repl_ml_members_is_cut_off())
	{
		run(argument);
		return;
	}
	PG_TRY();
	{
		XactReadOnly = true;
		run(argument);
	}
	PG_FINALLY();
	{
		XactReadOnly = read_only;
	}
	PG_END_TRY();
}
