/*
 * stream.pml
 *		One link between two nodes: what the origin hears is durable on the peer,
 *		and the peer misses nothing.
 *
 * The origin's WAL, the slot and its walsender; messages on their way in both
 * directions; the peer's worker, that applies and flushes.  The connection is
 * cut, both servers crash.  What commit.pml takes for granted of a link is what
 * holds here.  Positions as there: the number of a transaction, 0 for none.
 *
 * One transaction is large: it comes in pieces while those before it commit, is put
 * aside when it commits, and applied beside the stream.
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

#define LARGE		3			/* the number of the large one */
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
chan replies = [2] of { byte };

/* the peer */
byte applied;					/* in this order, and committed without a flush */
byte durable;					/* progress of the replication origin on disk */
byte told;
byte pieces;					/* that have come over this connection */
bool aside;						/* the large one is kept, whole */
bool aside_durable;
bool visible;					/* it has been applied */
bool visible_durable;
bool missed;					/* a transaction has been left out */

byte cuts = CUTS;
byte crashes = CRASHES;

/* The names say what is wrong when an assertion fails. */
hidden byte heard_is_not_durable, a_transaction_is_missed, not_all_arrives, covered_is_not_there;
hidden byte k;

inline cut()
{
	do
	:: stream?_
	:: empty(stream) -> break
	od;
	do
	:: replies?_
	:: empty(replies) -> break
	od;
	up = false
}

/* A flush of the peer's WAL. */
inline flush()
{
	durable = applied;
	aside_durable = aside;
	visible_durable = visible
}

/* START_REPLICATION: from where the worker asks, or from the slot's position if that is greater. */
inline connect()
{
#ifndef CONNECTED_WITHOUT_FLUSH
	flush();					/* replorigin_session_get_progress(true) */
#endif
#ifndef RESUMED_WHERE_SENT
	sent = (applied > confirmed -> applied : confirmed);
#endif
#ifndef PIECES_RESUMED
	pieces_sent = 0;			/* what runs is decoded again from its beginning */
#endif
	pieces = 0;					/* repl_ml_pieces_forget */
	told = 0;
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
			replies?k;
			confirmed = (k > confirmed -> k : confirmed);
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
				applied = (k > applied -> k : applied)
			fi
		}
	:: d_step { durable < applied || aside_durable != aside || visible_durable != visible -> flush() }
	/* beside.c; the crash of its server leaves what is aside */
	:: d_step { aside && !missed -> aside = false; visible = true }
	:: d_step { up && told < DURABLE && nfull(replies) -> told = DURABLE; replies!told }
	:: d_step { cuts > 0 && up -> cuts--; cut() }
	:: d_step {
			crashes > 0 ->
			crashes--;
			cut();
			applied = durable;
#ifdef ASIDE_IN_MEMORY
			aside = false;
#else
			aside = aside_durable;
#endif
			visible = visible_durable
		}
	od
}

/* Never takes a step as long as all is well. */
active proctype Properties()
{
end:
	do
	:: atomic { heard > durable || confirmed > durable -> assert(heard_is_not_durable) }
	:: atomic { missed -> assert(a_transaction_is_missed) }
	:: atomic { COVERED >= LARGE && !visible -> assert(covered_is_not_there) }
	:: atomic { timeout && (durable < TX || heard < TX || !visible) -> assert(not_all_arrives) }
	od
}
