/*
 * commit.pml
 *		Transactions of one node, from the commit to the client's answer, and a
 *		barrier read on another node.
 *
 * Node 0 is the origin: its clients commit TX transactions of the levels quorum
 * and all.  The other nodes read its WAL, each by a stream of its own, and
 * acknowledge positions.  The last node runs repl_ml.barrier().  Servers crash,
 * and a minority is lost for good and dropped.  A link that is cut for a while is
 * one on which nothing happens; stream.pml looks into the links.  Each step is
 * atomic and takes the state forward, so every run ends; what has to happen at
 * last is looked at there.
 *
 * A position is the number of a transaction in the origin's WAL: 1, 2, ...; 0 is
 * none.  What is in the sources has the same name here.  README says how to run
 * this, and what each -D switches off.
 */
#ifndef N
#define N			3			/* nodes, 3 to 5 */
#endif
#ifndef TX
#define TX			2			/* transactions of the origin */
#endif
#ifndef CRASHES
#define CRASHES		1
#endif
#if defined(PARKING) || defined(PARKED_COUNTS)
#define PARKS		1			/* transactions that some peer cannot apply */
#define DEATHS		0
#endif
#ifndef PARKS
#define PARKS		0
#endif
#ifndef DEATHS
#define DEATHS		((N - 1) / 2)	/* for good: a minority */
#endif

#define ORIGIN		0
#define READER		(N - 1)

mtype = { quorum_level, all_level };
mtype = {
	idle,						/* not begun */
	waiting,					/* committed and durable here, in core's queue */
	acknowledged,				/* the client has read success */
	failed,						/* the client has read error 40003 */
	refused,					/* the client has read error 57P03 */
	lost						/* the client has lost its connection */
};

/* ---- the origin ---- */

mtype level[TX];
mtype state[TX];
byte pos[TX];					/* where it is in the WAL */
bool visible[TX];				/* others see it on the origin */
bool counted[TX];				/* shown as visible and not acknowledged */
byte wal_end;					/* durable */
byte heard[N];					/* what each peer has acknowledged: in memory only */
byte told[N];					/* what each peer says it has parked, before it acknowledges that */
byte position[2];				/* up to where each level is acknowledged: in memory only */

#define QUORUM		0
#define ALL			1
#define POSITION(t)	position[(level[t] == all_level -> ALL : QUORUM)]

/* ---- the members: the same list on all nodes ---- */

bool member[N];
byte members = N;
bool alive[N];

#define MAJORITY		(members / 2 + 1)
#define REQUIRED(level)	((level) == all_level -> members : MAJORITY)

/* ---- the peers ---- */

byte applied[N];				/* the peer has everything up to here ... */
byte durable[N];				/* ... and up to here on its disk */
byte aside[N];					/* this one is put aside, not in the table; 0: none */
byte parked[N];					/* this one is parked, not in the table, until somebody mends it */
byte compared[N];				/* with which others, after the origin was dropped */
#ifdef BARRIER_TRUSTS_MEMORY
byte known[N];					/* as applied, but forgotten by a restart until the link is up */
#define KNOWN(p, k)		known[p] = k
#else
#define KNOWN(p, k)		skip
#endif

/* ---- the barrier read ---- */

mtype = { not_called, asking, over };
mtype barrier = not_called;
bool answered[N];
byte target;					/* the greatest answer */

#ifdef BARRIER_TRUSTS_MEMORY
#define OWN_POSITION(i)	known[i]
#else
#define OWN_POSITION(i)	applied[i]
#endif
#ifdef BARRIER_ASKS_MINORITY
#define ENOUGH_ANSWERS	(MAJORITY - 1)
#else
#define ENOUGH_ANSWERS	MAJORITY
#endif
#ifdef BARRIER_TAKES_OLD_ANSWERS
#define MAY_ANSWER		(barrier == asking || barrier == not_called)
#else
#define MAY_ANSWER		(barrier == asking)
#endif

/* One member says how far it has the origin's WAL; what it put aside it has. */
#define ANSWER(i) \
	:: d_step { \
			MAY_ANSWER && member[i] && alive[i] && !answered[i] && SUM(ANSWERED) < ENOUGH_ANSWERS -> \
			answered[i] = true; \
			if \
			:: i == ORIGIN && target < wal_end -> target = wal_end \
			:: i != ORIGIN && target < OWN_POSITION(i) -> target = OWN_POSITION(i) \
			:: else \
			fi \
		}

#if N == 3
#define SUM(of)			(of(0) + of(1) + of(2))
#elif N == 4
#define SUM(of)			(of(0) + of(1) + of(2) + of(3))
#else
#define SUM(of)			(of(0) + of(1) + of(2) + of(3) + of(4))
#endif

#define IS_ASIDE(i)		(aside[i] > 0)
#define ANSWERED(i)		(answered[i] && member[i])
#define NOT_COMPARED(i)	(i != ORIGIN && i != READER && member[i] && !(compared[READER] & (1 << i)))

/* Has the reader what it waits for?  What a dropped origin wrote comes from the other members. */
#ifdef BARRIER_COUNTS_ASIDE
#define NOTHING_ASIDE	true
#else
#define NOTHING_ASIDE	(aside[READER] == 0 || aside[READER] > target)
#endif
#ifdef BARRIER_FORGETS_DROPPED
#define HAS_OF_DROPPED	true
#else
#define HAS_OF_DROPPED	(SUM(NOT_COMPARED) == 0)
#endif
#define HAS_WAITED		(NOTHING_ASIDE && ((member[ORIGIN] && applied[READER] >= target) || (!member[ORIGIN] && HAS_OF_DROPPED)))

/* ---- faults that may still come ---- */

byte crashes = CRASHES;
byte deaths = DEATHS;
byte parks = PARKS;

/* ---- what only the properties look at ---- */

bool promised[TX];				/* somebody may have been told that it is acknowledged */
bool expected[TX];				/* and had been before the barrier was called */
byte lacks[N];					/* this one was passed over: it will never come */
bool stale;						/* the barrier has returned without something expected */

hidden byte c, n, k;			/* within one step */

/* these take the counting away that IS_ACKNOWLEDGED would do again */
#if defined(FIRST_ANSWER_IS_ENOUGH) || PARKS == 0
#define WORD_FOR_ALL	true
#else
#define WORD_FOR_ALL	false
#endif

#ifdef DROPPED_ONES_COUNT
#define COUNTS(i)		true
#else
#define COUNTS(i)		member[i]
#endif

/* As repl_ml_quorum_has: a peer's position is its word for all but what it has parked. */
#ifdef PARKED_COUNTS
#define LACKS(i, t)		false
#else
#define LACKS(i, t)		(told[i] == pos[t])
#endif
#define SAYS_IT_HAS(i)	(i != ORIGIN && COUNTS(i) && heard[i] >= pos[t] && !LACKS(i, t))
#define MAY_COME(i)		(i != ORIGIN && member[i] && !LACKS(i, t))
#define IS_ACKNOWLEDGED	(pos[t] <= POSITION(t) && (WORD_FOR_ALL || 1 + SUM(SAYS_IT_HAS) >= REQUIRED(level[t])))

/* As repl_ml_quorum_release: up to where enough members have acknowledged. */
inline release()
{
	k = wal_end;
	do
	:: k == 0 -> break
	:: else ->
		n = 1;
		for (c : 1 .. N - 1) {
			if
			:: COUNTS(c) && heard[c] >= k -> n++
			:: else
			fi
		}
#ifdef FIRST_ANSWER_IS_ENOUGH
		if
		:: n > 1 -> n = N
		:: else
		fi;
#endif
		if
		:: n >= REQUIRED(quorum_level) && position[QUORUM] < k -> position[QUORUM] = k
		:: else
		fi;
		if
		:: n >= REQUIRED(all_level) && position[ALL] < k -> position[ALL] = k
		:: else
		fi;
		k--
	od;
	for (c : 0 .. TX - 1) {
		k = 1;
		for (n : 1 .. N - 1) {
			if
			:: COUNTS(n) && heard[n] >= pos[c] && !LACKS(n, c) -> k++
			:: else
			fi
		}
		if
		:: pos[c] > 0 && pos[c] <= POSITION(c) && (k >= REQUIRED(level[c]) || WORD_FOR_ALL) -> counted[c] = false; promised[c] = true
		:: else
		fi
	}
	n = 0; c = 0; k = 0
}

/* One client of the origin. */
proctype Client(byte t)
{
end:
	do
	/* repl_ml_quorum_begin: it seems that too few members can be reached, rightly or not */
	:: atomic { state[t] == idle && alive[ORIGIN] -> state[t] = refused }
	/*
	 * It seems that enough can be reached, rightly or not: the commit, durable here
	 * before anything is sent.  Transactions are numbered as they commit.
	 */
	:: d_step {
			state[t] == idle && alive[ORIGIN] && (t == 0 || state[t - 1] != idle) ->
			wal_end++;
			pos[t] = wal_end;
			state[t] = waiting;
#ifdef VISIBLE_BEFORE_WAIT
			visible[t] = true;
#endif
			release()
		}
#ifdef REFUSED_AFTER_COMMIT
	:: atomic { state[t] == waiting && alive[ORIGIN] -> state[t] = refused }
#endif
	/* the members have it: let go by a walsender, or found out when the wait was given up */
	:: atomic {
			state[t] == waiting && alive[ORIGIN] && IS_ACKNOWLEDGED ->
			visible[t] = true;
			state[t] = acknowledged
		}
#if PARKS > 0
	/* let go, because too few are left that have not parked it */
	:: atomic {
			state[t] == waiting && alive[ORIGIN] && 1 + SUM(MAY_COME) < REQUIRED(level[t]) ->
			visible[t] = true;
			counted[t] = true;
			state[t] = failed
		}
#endif
#ifndef NO_TIMEOUT
	/* given up, by repl_ml.write_timeout or a cancel */
	:: atomic {
			state[t] == waiting && alive[ORIGIN] && !IS_ACKNOWLEDGED ->
			visible[t] = true;
			counted[t] = true;
#ifdef GIVING_UP_IS_SUCCESS
			state[t] = acknowledged;
			promised[t] = true
#else
			state[t] = failed
#endif
		}
#endif
	od
}

/*
 * The peer copies the tables of another member that may have more of the dropped
 * origin; not before that one's are whole and durable.  That it is done is in the WAL behind
 * what was applied before.
 */
#ifdef COPIED_WITHOUT_ASIDE
#define IS_WHOLE(q)		true
#else
#define IS_WHOLE(q)		(aside[q] == 0 && durable[q] == applied[q])
#endif
#ifdef COMPARED_BEFORE_COPIED
#define COPY(p)			ordered[p]
byte ordered[N];				/* what the copy will bring */
#else
#define COPY(p)			applied[p]
#endif
#define COMPARE(q) \
	:: d_step { \
			!member[ORIGIN] && p != q && alive[p] && alive[q] && !(compared[p] & (1 << q)) && IS_WHOLE(q) -> \
			compared[p] = compared[p] | (1 << q); \
			if \
			:: applied[p] < applied[q] -> \
				if \
				:: aside[q] > applied[p] -> lacks[p] = aside[q] \
				:: else \
				fi; \
				COPY(p) = applied[q] \
			:: else \
			fi; \
			durable[p] = applied[p] \
		}

inline end_barrier()
{
	barrier = over;
	target = 0;
	for (c : 0 .. TX - 1) {
		expected[c] = false
	}
	for (c : 0 .. N - 1) {
		answered[c] = false
	}
	c = 0
}

#ifdef ACKNOWLEDGED_BEFORE_FLUSH
#define ACKNOWLEDGED(p)	applied[p]
#else
#define ACKNOWLEDGED(p)	durable[p]
#endif

#if PARKS > 0
#define TELL(p)			if :: parked[p] > 0 -> told[p] = parked[p] :: else fi
#else
#define TELL(p)			skip
#endif

/* The server is killed, and has started again: what was not durable is not there. */
inline restart(p)
{
	applied[p] = durable[p];
	KNOWN(p, 0);
	if
	:: aside[p] > durable[p] -> aside[p] = 0
	:: else
	fi;
	if
	:: parked[p] > durable[p] -> parked[p] = 0; parks++
	:: else
	fi;
	if
	:: p == READER && barrier == asking -> end_barrier()
	:: else
	fi
}

/* One peer: its worker, the walsender that serves it, and its faults. */
proctype Peer(byte p)
{
end:
	do
	/* the stream brings the next transaction, which is applied or put aside */
	:: atomic { alive[p] && alive[ORIGIN] && applied[p] < wal_end -> applied[p]++; KNOWN(p, applied[p]) }
	:: atomic { alive[p] && alive[ORIGIN] && applied[p] < wal_end && SUM(IS_ASIDE) == 0 -> applied[p]++; KNOWN(p, applied[p]); aside[p] = applied[p] }
	/* the commit in the way has been let go */
	:: atomic { alive[p] && aside[p] > 0 -> aside[p] = 0 }
	/* one flush for all that came */
	:: atomic { alive[p] && durable[p] < applied[p] -> durable[p] = applied[p] }
	/* acknowledge(), and repl_ml_quorum_heard: the peer has no less for good when that is heard late */
	:: d_step { alive[p] && alive[ORIGIN] && heard[p] < ACKNOWLEDGED(p) -> TELL(p); heard[p] = ACKNOWLEDGED(p); release() }
#if PARKS > 0
	/* the next transaction cannot be applied, and is parked */
	:: atomic { alive[p] && alive[ORIGIN] && applied[p] < wal_end && parks > 0 -> parks--; applied[p]++; parked[p] = applied[p] }
	/* somebody mends it; the origin asks (lacking.c) */
	:: atomic { alive[p] && parked[p] > 0 -> parked[p] = 0 }
	:: d_step { alive[p] && alive[ORIGIN] && told[p] > 0 && parked[p] == 0 && durable[p] >= told[p] -> told[p] = 0; release() }
#endif

#ifdef BARRIER_TRUSTS_MEMORY
	/* the worker has connected again */
	:: atomic { alive[p] && alive[ORIGIN] && known[p] < applied[p] -> known[p] = applied[p] }
#endif
	/* the server is killed, and starts again */
	:: d_step {
			crashes > 0 && alive[p] ->
			crashes--;
			restart(p)
		}
	/* it is lost for good, and dropped */
	:: d_step { deaths > 0 && alive[p] -> deaths--; restart(p); alive[p] = false }
	:: d_step { !alive[p] && member[p] -> member[p] = false; members--; release() }

	/* the origin was dropped: the tables are copied from who may have more of it */
	COMPARE(1)
	COMPARE(2)
#if N > 3
	COMPARE(3)
#endif
#if N > 4
	COMPARE(4)
#endif
#ifdef COMPARED_BEFORE_COPIED
	:: atomic { alive[p] && ordered[p] > applied[p] -> applied[p] = ordered[p] }
#endif
	od
}

/* The origin's server is killed, and starts again: who waited is visible, and has lost its client. */
inline restart_origin()
{
	for (c : 1 .. N - 1) {
		heard[c] = 0;
		/* who asks what became of something of before asks the peers */
		told[c] = parked[c]
	}
	position[QUORUM] = 0;
	position[ALL] = 0;
	for (c : 0 .. TX - 1) {
		if
		:: state[c] == waiting -> state[c] = lost
		:: else
		fi;
		if
		:: pos[c] > 0 ->
			visible[c] = true;
#ifndef FORGOTTEN_BY_CRASH
			counted[c] = true
#endif
		:: else
		fi
	}
	release()
}

/* The origin's faults. */
proctype Origin()
{
end:
	do
	:: d_step { crashes > 0 && alive[ORIGIN] -> crashes--; restart_origin() }
	:: d_step { deaths > 0 && alive[ORIGIN] -> deaths--; restart_origin(); alive[ORIGIN] = false }
	:: atomic { !alive[ORIGIN] && member[ORIGIN] -> member[ORIGIN] = false; members-- }
	od
}

/* repl_ml.barrier() on the last node, once something is acknowledged. */
proctype Reader()
{
end:
	do
	:: d_step {
			barrier == not_called && alive[READER] && (promised[0] || promised[TX - 1]) ->
			barrier = asking;
			for (c : 0 .. TX - 1) {
				expected[c] = promised[c]
			}
			c = 0
		}
	ANSWER(0)
	ANSWER(1)
	ANSWER(2)
#if N > 3
	ANSWER(3)
#endif
#if N > 4
	ANSWER(4)
#endif
	:: d_step {
			barrier == asking && alive[READER] && SUM(ANSWERED) >= ENOUGH_ANSWERS && HAS_WAITED ->
			for (c : 0 .. TX - 1) {
				if
				:: expected[c] && (applied[READER] < pos[c] || aside[READER] == pos[c] || lacks[READER] == pos[c]) ->
					stale = true
				:: else
				fi
			}
			end_barrier()
		}
	od
}

/* ---- what has to hold ---- */

/* members that have everything up to the position on their disks; one that is lost counts until it is dropped */
#define HAS(i)			(member[i] && (i == ORIGIN -> pos[t] <= wal_end : pos[t] <= durable[i] && lacks[i] != pos[t] && parked[i] != pos[t]))
#define HAS_ALIVE(i)	(HAS(i) && alive[i])
#define UNFINISHED(i)	(alive[i] && i != ORIGIN && \
						 (aside[i] > 0 || parked[i] > 0 || lacks[i] > 0 || (alive[ORIGIN] && applied[i] < wal_end) || applied[i] < applied[READER]))
#define UNDER_WAY(t)	(state[t] == idle || state[t] == waiting)

/* The names say what is wrong when an assertion fails. */
hidden byte acknowledged_is_lost, acknowledged_is_not_in_each_majority, acknowledged_is_not_on_all;
hidden byte refused_is_committed, seen_before_the_wait_ended, visible_is_not_counted, barrier_is_stale;
hidden byte something_waits_for_ever, members_differ_at_last, counted_for_ever;

/* Never takes a step as long as all is well. */
proctype Properties(byte t)
{
end:
	do
	:: atomic { promised[t] && SUM(HAS_ALIVE) == 0 -> assert(acknowledged_is_lost) }
	:: atomic { promised[t] && SUM(HAS) + MAJORITY <= members -> assert(acknowledged_is_not_in_each_majority) }
	:: atomic { promised[t] && level[t] == all_level && SUM(HAS) < members -> assert(acknowledged_is_not_on_all) }
	:: atomic { state[t] == refused && pos[t] > 0 -> assert(refused_is_committed) }
	:: atomic { visible[t] && UNDER_WAY(t) -> assert(seen_before_the_wait_ended) }
	:: atomic { visible[t] && alive[ORIGIN] && !promised[t] && !counted[t] -> assert(visible_is_not_counted) }
	:: atomic { stale -> assert(barrier_is_stale) }
	/* no fault is left and nobody can do anything more */
	:: atomic { timeout && ((alive[ORIGIN] && UNDER_WAY(t)) || (alive[READER] && barrier == asking)) -> assert(something_waits_for_ever) }
	:: atomic { timeout && alive[READER] && SUM(UNFINISHED) > 0 -> assert(members_differ_at_last) }
	:: atomic { timeout && alive[ORIGIN] && counted[t] -> assert(counted_for_ever) }
	od
}

init
{
	byte i;

	atomic {
		for (i : 0 .. N - 1) {
			alive[i] = true;
			member[i] = true
		}
		for (i : 1 .. N - 1) {
			run Peer(i)
		}
		for (i : 0 .. TX - 1) {
			state[i] = idle;
			if
			:: level[i] = quorum_level
			:: level[i] = all_level
			fi;
			run Client(i);
			run Properties(i)
		}
		run Origin();
		run Reader()
	}
}
