/*
 * stream.pml
 *		One link between two nodes: what the origin hears is durable on the peer,
 *		and the peer misses nothing, also where its disk has lost what it had
 *		acknowledged.
 *
 * The origin's WAL, the slot and its walsender; messages on their way in both
 * directions; the peer's worker, that applies and flushes.  The connection is
 * cut, both servers crash.  What commit.pml takes for granted of a link is what
 * holds here.  Positions as there: the number of a transaction, 0 for none.
 *
 * One transaction is large: it comes in pieces while those before it commit, is put
 * aside when it commits, and applied beside the stream.  One has nothing for the
 * peer, so that applying it does not move the peer's origin.  The slot is told where
 * the origin is on disk, and the commits that wait hear of all that is durable: so
 * who finds a slot ahead of the origin has lost something, and only then.
 */
#ifndef TX
#define TX			4			/* transactions of the origin */
#endif
#ifndef CUTS
#define CUTS		2
#endif
#ifndef CRASHES
#define CRASHES		2
#endif

#ifndef SET_BACKS
#define SET_BACKS	1			/* of the peer's disk, to what it once was */
#endif

#define LARGE		3			/* the number of the large one */
#define EMPTY		2			/* ... of the one with nothing for the peer */
#define PIECES		2
#define PIECE		100			/* in the stream: one of its pieces */

/* the origin */
byte wal_end;					/* durable */
byte confirmed;					/* of the slot */
byte confirmed_on_disk;			/* written now and then, by checkpoints */
byte heard;						/* repl_ml_quorum_heard */
byte sent;
byte pieces_sent;				/* over this connection */

/* the connection */
bool up;
chan stream = [2] of { byte };
chan replies = [2] of { byte, byte };

/* the peer */
byte applied;					/* in this order, and committed without a flush */
byte durable;					/* of that */
byte origin;					/* progress of the replication origin */
byte origin_on_disk;
byte told;
byte told_origin;
byte pieces;					/* that have come over this connection */
bool aside;						/* the large one is kept, whole */
bool aside_durable;
bool visible;					/* it has been applied */
bool visible_durable;
bool missed;					/* a transaction has been left out */
bool lost;						/* the slot was found to be ahead of the origin */

/* a copy of the peer's disk */
bool is_copied;
byte copied_origin;
bool copied_aside;
bool copied_visible;
byte set_backs = SET_BACKS;

byte cuts = CUTS;
byte crashes = CRASHES;

/* The names say what is wrong when an assertion fails. */
hidden byte heard_is_not_durable, a_transaction_is_missed, not_all_arrives, covered_is_not_there;
hidden byte lost_without_reason;
hidden byte k, m;

/* The last transaction up to a position that has something for the peer. */
#define LAST(p)		(p == EMPTY -> EMPTY - 1 : p)

inline cut()
{
	do
	:: stream?_
	:: empty(stream) -> break
	od;
	do
	:: replies?_,_
	:: empty(replies) -> break
	od;
	up = false
}

/* A flush of the peer's WAL. */
inline flush()
{
	durable = applied;
	origin_on_disk = origin;
	aside_durable = aside;
	visible_durable = visible
}

/* START_REPLICATION: from where the worker asks, or from the slot's position if that is greater. */
inline connect()
{
#ifndef CONNECTED_WITHOUT_FLUSH
	flush();					/* replorigin_session_get_progress(true) */
#endif
	applied = origin;
	durable = origin_on_disk;
#ifndef SLOT_NOT_COMPARED
	if
	:: confirmed > origin ->
		/* copy/link.c: the link is made anew, and all that is there is copied */
		lost = true;
		applied = wal_end;
		origin = wal_end;
		visible = visible || wal_end >= LARGE;
		flush();
		confirmed = wal_end;
		confirmed_on_disk = wal_end
	:: else
	fi;
#endif
#ifndef RESUMED_WHERE_SENT
	sent = (origin > confirmed -> origin : confirmed);
#endif
#ifndef PIECES_RESUMED
	pieces_sent = 0;			/* what runs is decoded again from its beginning */
#endif
	pieces = 0;					/* repl_ml_pieces_forget */
	told = 0;
	told_origin = 0;
	up = true
}

#ifdef ACKNOWLEDGED_BEFORE_FLUSH
#define DURABLE		applied
#else
#ifdef CONNECTED_WITHOUT_FLUSH
#define DURABLE		(told == 0 -> applied : durable)	/* "from" passes for durable */
#else
#define DURABLE		durable
#endif
#endif

#ifdef EMPTY_CONFIRMED
#define KEPT		DURABLE
#else
#ifdef ACKNOWLEDGED_BEFORE_FLUSH
#define KEPT		origin
#else
#define KEPT		origin_on_disk
#endif
#endif

/* What current_vector and wait_for_vector take for being here. */
#ifdef TOKEN_COUNTS_ASIDE
#define COVERED		applied
#else
#define COVERED		(aside && applied >= LARGE -> LARGE - 1 : applied)
#endif

active proctype Origin()
{
end:
	do
	:: atomic { wal_end < TX -> wal_end++ }
	:: d_step {
			up && sent < LARGE && pieces_sent < PIECES && nfull(stream) ->
			pieces_sent++;
			stream!PIECE
		}
	:: d_step {
			up && sent < wal_end && nfull(stream) && (sent + 1 != LARGE || pieces_sent == PIECES) ->
			sent++;
			stream!sent
		}
	:: d_step {
			up && nempty(replies) ->
			replies?k,m;
			confirmed = (m > confirmed -> m : confirmed);
			heard = (k > heard -> k : heard)
		}
	:: atomic { confirmed_on_disk < confirmed -> confirmed_on_disk = confirmed }
	:: d_step { crashes > 0 -> crashes--; cut(); confirmed = confirmed_on_disk; heard = 0 }
	od
}

active proctype Peer()
{
end:
	do
	:: d_step { !up -> connect() }
	:: d_step {
			up && nempty(stream) ->
			stream?k;
			if
			:: k == PIECE -> pieces++
			:: k != PIECE ->
				if
				:: k > applied + 1 || (k == LARGE && applied < k && pieces != PIECES) -> missed = true
				:: else
				fi;
				aside = aside || (k == LARGE && applied < k);
				/* what came twice is known already */
				applied = (k > applied -> k : applied);
				origin = (k > origin && k != EMPTY -> k : origin)
			fi
		}
	:: d_step {
			durable < applied || origin_on_disk < origin || aside_durable != aside || visible_durable != visible ->
			flush()
		}
	/* where the origin's server is about to end, and asks */
	:: d_step { up && origin < applied -> origin = applied; flush() }
	/* beside.c; the crash of its server leaves what is aside */
	:: d_step { aside && !missed -> aside = false; visible = true }
	:: d_step {
			up && (told < DURABLE || told_origin < KEPT) && nfull(replies) ->
			told = DURABLE;
			told_origin = KEPT;
			replies!told,told_origin
		}
	:: d_step { cuts > 0 && up -> cuts--; cut() }
	:: d_step {
			crashes > 0 ->
			crashes--;
			cut();
			origin = origin_on_disk;
			applied = origin;
			durable = origin;
#ifdef ASIDE_IN_MEMORY
			aside = false;
#else
			aside = aside_durable;
#endif
			visible = visible_durable
		}
	:: d_step {
			!is_copied && set_backs > 0 ->
			is_copied = true;
			copied_origin = origin_on_disk;
			copied_aside = aside_durable;
			copied_visible = visible_durable
		}
	:: d_step {
			set_backs > 0 && is_copied ->
			set_backs--;
			cut();
			origin = copied_origin;
			applied = origin;
			aside = copied_aside;
			visible = copied_visible;
			flush()
		}
	od
}

/* Never takes a step as long as all is well. */
active proctype Properties()
{
end:
	do
	:: atomic {
			set_backs == SET_BACKS && (LAST(heard) > origin_on_disk || LAST(confirmed) > origin_on_disk) ->
			assert(heard_is_not_durable)
		}
	:: atomic { set_backs == SET_BACKS && lost -> assert(lost_without_reason) }
	:: atomic { missed -> assert(a_transaction_is_missed) }
	:: atomic { COVERED >= LARGE && !visible -> assert(covered_is_not_there) }
	:: atomic { timeout && (origin_on_disk < TX || heard < TX || !visible) -> assert(not_all_arrives) }
	od
}
