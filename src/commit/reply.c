/*
 * reply.c
 *		The walsender that serves a peer hears what the peer has, and lets
 *		commits go that waited for it.
 *
 * Core's walsender reads the replies itself and has no hook there.  But after
 * it has read them, and before it waits, it always flushes its output: the
 * communication method it does that with is ours (server/messages.c).
 *
 * The same place decides when what output.c has written leaves: not while more
 * WAL is there to be decoded, because each packet wakes the peer.  For the same
 * reason keepalives that tell nothing do not leave at all.
 *
 * Not here: what is sent (write/output.c), and what follows for commits that
 * wait (quorum.c, which takes the lock of commit/).  Everything here belongs to
 * one walsender.
 */
#include "postgres.h"

#include "access/xlog.h"
#include "miscadmin.h"
#include "port/pg_bswap.h"
#include "replication/slot.h"
#include "replication/walsender.h"
#include "replication/walsender_private.h"
#include "storage/latch.h"
#include "utils/builtins.h"
#include "utils/timeout.h"

#include "commit/commit.h"
#include "compat.h"
#include "server/server.h"

#define AGAIN_MS	1
#define LAST_PATIENCE_MS	5000	/* for a peer's answer when the server ends */
#define HELD_BYTES	8192		/* so much leaves in any case */

/* Written since the last flush, and since it was counted; and whether that is held on purpose. */
static Size written = 0;
static Size uncounted = 0;
static bool holding = false;

static XLogRecPtr told = InvalidXLogRecPtr; /* of the last message of a change */

static int	flush_if_writable(void);
static int	putmessage(char type, const char *data, size_t length);
static void putmessage_noblock(char type, const char *data, size_t length);
static bool is_send_pending(void);
static bool may_hold(void);
static void hear_parked(void);
static void listen_to_peer(void);
static void hurry_at_end(void);
static void wake_walsender(void);

/* Set once, by repl_ml_reply_watch. */
static int	peer = 0;
static TimeoutId timeout_id;
static ReplMlWatcher watcher = {
	.putmessage = putmessage,
	.putmessage_noblock = putmessage_noblock,
	.flush_if_writable = flush_if_writable,
	.is_send_pending = is_send_pending
};

/*
 * Called in a walsender that begins to serve a slot: if the slot is a peer's,
 * its replies count from now on.
 */
void
repl_ml_reply_watch(void)
{
	Oid			database;
	int			node_id;

	if (peer != 0 || !am_walsender || MyReplicationSlot == NULL || repl_ml_shared == NULL ||
		!repl_ml_origin_parse(NameStr(MyReplicationSlot->data.name), &database, &node_id) ||
		database != MyDatabaseId)
		return;
	peer = node_id;
	repl_ml_members_attach(peer);
	timeout_id = RegisterTimeout(USER_TIMEOUT, wake_walsender);
	repl_ml_messages_watch(&watcher);
}

/* Returns the peer that this walsender serves; 0: none. */
int
repl_ml_reply_peer(void)
{
	return peer;
}

/* Called by output.c: so many bytes have been put into the output buffer. */
void
repl_ml_reply_written(Size bytes)
{
	written += bytes;
	uncounted += bytes;
}

/*
 * In place of core's method: looks at what has been read, and then flushes, or
 * not yet.
 */
static int
flush_if_writable(void)
{
	int			status;

	listen_to_peer();
	hurry_at_end();
	holding = may_hold();
	if (holding)
		return 0;
	written = 0;
	status = repl_ml_messages_flush_if_writable();
	walsender_enlist_compat();
	return status;
}

/*
 * In place of core's method: sends everything but a keepalive that asks for
 * nothing and tells no position that the peer does not know from the commit
 * before it: it would wake the peer once more.  Once the peer has said that it
 * has received that, core sends keepalives only as answers to peers that ask
 * whether we are there.  The numbers are in the places the replication
 * protocol gives them.
 */
static void
putmessage_noblock(char type, const char *data, size_t length)
{
	uint64		position;

	hear_parked();
	if (type == 'd' && length > 1 + sizeof(position))
	{
		memcpy(&position, data + 1, sizeof(position));
		position = pg_ntoh64(position);
		if (data[0] == 'w')
			told = position;
		else if (data[0] == 'k' && data[length - 1] == 0 && position == told &&
				 MyWalSnd->write < told)
			return;
	}
	repl_ml_messages_put_noblock(type, data, length);
}

/*
 * Sees what the walsender says outside the stream: of an error, which ends that,
 * it notes the SQLSTATE, which the peer does not get to know of core's client
 * (copy/link.c).  The fields of the message are those of the protocol.
 */
static int
putmessage(char type, const char *data, size_t length)
{
	const char *end = data + length;

	for (const char *field = data; type == 'E' && field < end && *field != '\0';
		 field += strnlen(field, end - field) + 1)
	{
		if (*field == PG_DIAG_SQLSTATE && end - field > 1 + 5)
			repl_ml_members_set_ended(MAKE_SQLSTATE(field[1], field[2], field[3], field[4],
													field[5]));
	}
	return repl_ml_messages_put(&watcher, type, data, length);
}

/*
 * In place of core's method: what is held on purpose is not pending, or the
 * walsender would wait for the socket instead of decoding.
 */
static bool
is_send_pending(void)
{
	return !holding && repl_ml_messages_is_send_pending();
}

/*
 * Says whether there is more WAL to decode, and the walsender has just come
 * from decoding.  Otherwise it is about to wait.
 */
static bool
may_hold(void)
{
	static XLogRecPtr decoded = InvalidXLogRecPtr;
	bool		advanced = MyWalSnd->sentPtr != decoded;

	decoded = MyWalSnd->sentPtr;
	return written > 0 && written < HELD_BYTES && advanced && GetFlushRecPtr(NULL) > decoded;
}

/*
 * Tells quorum.c of a transaction that the peer has parked something of.  The
 * peer says so before it acknowledges that: in a message whose position
 * "applied" is the end of that transaction, and beyond what it says it has
 * received (group/worker.c).  It says it twice and asks for a keepalive the
 * second time.  Core writes that before it reads on, so here is where we see
 * each such message.
 */
static void
hear_parked(void)
{
	static XLogRecPtr heard = InvalidXLogRecPtr;

	if (MyWalSnd->apply <= MyWalSnd->write || MyWalSnd->apply == heard)
		return;
	heard = MyWalSnd->apply;
	repl_ml_quorum_parked(peer, heard);
}

/*
 * Sends back the time of a status that wants that, and ours: see REPL_ML_ECHO.
 */
static void
echo(TimestampTz time)
{
	char		message[1 + 2 * sizeof(int64)] = {REPL_ML_ECHO};
	uint64		times[2] = {pg_hton64(time), pg_hton64(GetCurrentTimestamp())};

	if ((time & 1) == 0)
		return;
	memcpy(message + 1, times, sizeof(times));
	repl_ml_messages_put_noblock('d', message, sizeof(message));
}

/*
 * Tells quorum.c if the peer has spoken since the last call; what may go for
 * it goes.  What the peer calls applied is durable there; what it calls flushed is
 * where its origin is, which WAL that has nothing for it does not move: that is for
 * the slot.
 */
static void
listen_to_peer(void)
{
	static XLogRecPtr acknowledged = InvalidXLogRecPtr;
	static TimestampTz reply_time = 0;
	static bool again = false;
	XLogRecPtr	durable;

	hear_parked();
	if (uncounted > 0)
	{
		repl_ml_members_sent(peer, uncounted);
		uncounted = 0;
	}
	/* nobody but this process writes these; what is parked is no acknowledgement */
	durable = MyWalSnd->apply <= MyWalSnd->write ? MyWalSnd->apply : acknowledged;
	if (MyWalSnd->replyTime != reply_time || durable != acknowledged)
	{
		if (MyWalSnd->replyTime != reply_time)
			echo(MyWalSnd->replyTime);
		reply_time = MyWalSnd->replyTime;
		acknowledged = durable;
		again = repl_ml_quorum_heard(peer, acknowledged);
	}
	else if (again)
		again = repl_ml_quorum_release();
	if (again)
		enable_timeout_after(timeout_id, AGAIN_MS);
}

/*
 * Does not let a peer that gives no answer hold up the server's end for all of
 * wal_sender_timeout: its slot keeps what it has not confirmed.  Nothing says
 * that the server ends but that our launcher has, which otherwise runs again
 * at once.
 */
static void
hurry_at_end(void)
{
	static int	usual = 0;
	bool		ends = repl_ml_shared->launcher_pid == 0;

	if (ends && usual == 0 && (wal_sender_timeout <= 0 || wal_sender_timeout > LAST_PATIENCE_MS))
	{
		usual = Max(wal_sender_timeout, 0) + 1;
		wal_sender_timeout = LAST_PATIENCE_MS;
	}
	else if (!ends && usual > 0)
	{
		wal_sender_timeout = usual - 1;
		usual = 0;
	}
}

/* The timeout's handler: wakes the walsender, so that it looks again. */
static void
wake_walsender(void)
{
	SetLatch(MyLatch);
}

PG_FUNCTION_INFO_V1(repl_ml_stream_ended_with);

/* repl_ml.stream_ended_with(of_node): the SQLSTATE, or null. */
Datum
repl_ml_stream_ended_with(PG_FUNCTION_ARGS)
{
	int			sqlstate;

	repl_ml_shmem_require();
	sqlstate = repl_ml_members_ended(PG_GETARG_INT32(0));
	if (sqlstate == 0)
		PG_RETURN_NULL();
	PG_RETURN_TEXT_P(cstring_to_text(unpack_sql_state(sqlstate)));
}
