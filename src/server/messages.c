/*
 * messages.c
 *		The one place that puts something before core's methods of sending
 *		messages to the client, or of a walsender to its peer.
 *
 * Core has no hook there, so its table of methods (PqCommMethods) is replaced
 * by ours as long as somebody watches.  Watchers stand one before the other,
 * the last that came first; each sees a message, and sends it on, another one
 * instead, or none.  They may come and go in any order, also while they see a
 * message.  All of it belongs to one process; no locks.  What watchers do with
 * messages is theirs: commit/commit.c, commit/reply.c, read/routing.c.
 */
#include "postgres.h"

/* what differs with these is not used, and spares the headers of Kerberos and OpenSSL */
#undef ENABLE_GSS
#undef USE_OPENSSL
#undef USE_SSL
#include "libpq/libpq.h"

#include "server/server.h"

static ReplMlWatcher *first = NULL;
static const PQcommMethods *core = NULL;	/* core's, while ours are installed */
static PQcommMethods ours;

static int	put_message(char type, const char *data, size_t length);
static int	put_from(const ReplMlWatcher *watcher, char type, const char *data, size_t length);

/*
 * Called by a backend or walsender: "watcher", which has to live as long as it
 * watches, stands before all others from now on.
 */
void
repl_ml_messages_watch(ReplMlWatcher *watcher)
{
	if (core == NULL)
	{
		core = PqCommMethods;
		ours = *core;
		ours.putmessage = put_message;
		PqCommMethods = &ours;
	}
	watcher->next = first;
	first = watcher;
	if (watcher->putmessage_noblock != NULL)
		ours.putmessage_noblock = watcher->putmessage_noblock;
	if (watcher->flush_if_writable != NULL)
		ours.flush_if_writable = watcher->flush_if_writable;
	if (watcher->is_send_pending != NULL)
		ours.is_send_pending = watcher->is_send_pending;
}

/*
 * Takes away a watcher that sees only putmessage; nothing if it does not watch.
 * After the last one core's methods are back, unless somebody else has put his
 * own before ours, which then only pass on.
 */
void
repl_ml_messages_leave(ReplMlWatcher *watcher)
{
	ReplMlWatcher **place = &first;

	while (*place != NULL && *place != watcher)
		place = &(*place)->next;
	if (*place == NULL)
		return;
	*place = watcher->next;
	if (first == NULL && PqCommMethods == &ours)
	{
		PqCommMethods = core;
		core = NULL;
	}
}

/*
 * Called by a watcher with what is to be sent: the next watcher sees it, after
 * the last one core sends it.
 */
int
repl_ml_messages_put(const ReplMlWatcher *watcher, char type, const char *data, size_t length)
{
	return put_from(watcher->next, type, data, length);
}

/*
 * Passes on to core's method.  The only watcher of this method in a process, a
 * walsender's reply.c, calls it, and the next two.
 */
void
repl_ml_messages_put_noblock(char type, const char *data, size_t length)
{
	core->putmessage_noblock(type, data, length);
}

/* Passes on to core's method. */
int
repl_ml_messages_flush_if_writable(void)
{
	return core->flush_if_writable();
}

/* Passes on to core's method. */
bool
repl_ml_messages_is_send_pending(void)
{
	return core->is_send_pending();
}

/* In place of core's method: shows the message to the first watcher. */
static int
put_message(char type, const char *data, size_t length)
{
	return put_from(first, type, data, length);
}

/*
 * Shows a message to this watcher, or the next one that wants to see it; sends
 * it by core's method if none is left.
 */
static int
put_from(const ReplMlWatcher *watcher, char type, const char *data, size_t length)
{
	while (watcher != NULL && watcher->putmessage == NULL)
		watcher = watcher->next;
	if (watcher != NULL)
		return watcher->putmessage(type, data, length);
	return (core != NULL ? core : PqCommMethods)->putmessage(type, data, length);
}
