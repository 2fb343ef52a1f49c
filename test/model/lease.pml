/*
 * lease.pml
 *		Strong tables: one node at a time may write them, and what it has written
 *		is seen by nobody before a majority of the members has it.
 *
 * A member keeps the strong transactions in one order, its log: the same on all as
 * far as it is settled.  Who may write has a tenure.  Its epoch is a round, which a
 * majority has voted for, and a number within the round, which goes up with each
 * hand-over: that needs no vote, as only the holder can give what it has.  A tenure
 * says on which log it begins, its base, and who the voters are.  Whoever accepts
 * it has the base, all of it and nothing else: what he has of older tenures beyond
 * that is void.
 *
 * What nodes tell each other are facts, which stay true: "x stands for round r with
 * this log", "w votes for r", "e has begun on this base", "w has accepted e", "w
 * has t on its disk".  A member may act on a fact whenever it likes, as often as it
 * likes, or never.  So messages are lost, late, doubled and out of order, links are
 * cut and processes stopped for any time, all without a message in the model.  The
 * one order that there is, that of a holder's WAL, is said by "before": a member
 * takes no transaction before those that stand before it.
 *
 * Each transaction reads the list of its row and appends the next number.  Each step
 * is atomic and takes the state forward, so every run ends.  README says how to run
 * this, and what each -D switches off.
 */
/* other runs than the plain one, and those that a switch needs to be found in */
#ifdef THREE
#define TX			3
#define TENURES		1
#endif
#if defined(FIVE) || defined(SHOWN_WHEN_RECEIVED)
#define N			5
#define STANDERS	3
#define TENURES		1
#define CRASHES		0
#endif
#if defined(MEMBERS) || defined(NEW_VOTERS_ONLY) || defined(OLD_VOTERS_ONLY)
#define N			4
#define OUTSIDERS	1
#define CHANGES		1
#define TENURES		1
#define CRASHES		0
#endif
#if defined(ACCEPTED_WITH_VOTE)
#define N			5
#define ROUNDS		3
#define TENURES		1
#define CRASHES		0
#endif
#if defined(ASKERS_STAND_ONLY) || defined(STRAYS_STAY_OUT) || defined(GIVEN_A_ROUND)
#define ROUNDS		3
#define TENURES		1
#define CRASHES		0
#endif

#ifndef N
#define N			3			/* nodes, 3 to 5 */
#endif
#ifndef STANDERS
#define STANDERS	N			/* the first of them, which may stand for a round */
#endif
#ifndef TX
#define TX			2			/* transactions, 2 or 3 */
#endif
#ifndef ROUNDS
#define ROUNDS		2			/* that members may stand for, up to 4 */
#endif
#ifndef TENURES
#define TENURES		2			/* of one round: so many less one hand-overs, up to 3 */
#endif
#ifndef CRASHES
#define CRASHES		1
#endif
#ifndef OUTSIDERS
#define OUTSIDERS	0			/* the last nodes are no voters at first */
#endif
#ifndef CHANGES
#define CHANGES		0			/* rounds that bring other voters */
#endif

#define EPOCH(r, k)		((r) * TENURES + (k))
#define ROUND(e)		((e) / TENURES)
#define EPOCHS			EPOCH(ROUNDS + 1, 0)
#define BIT(i)			(1 << (i))
#define POP(m)			(((m) & 1) + (((m) >> 1) & 1) + (((m) >> 2) & 1) + (((m) >> 3) & 1) + (((m) >> 4) & 1))
#define MAJORITY(m, v)	(2 * POP((m) & (v)) > POP(v))
#define ALL_NODES		(BIT(N) - 1)

mtype = {
	wants,						/* its client waits for the lease */
	runs,						/* it has read, and holds the row's lock */
	waiting,					/* committed and durable at home, seen by nobody */
	acknowledged,				/* the client has read success */
	doubtful,					/* given up, or a crash has ended the wait: others at home would see it */
	settled,					/* ... if it had not turned out that a majority has it */
	undone,						/* ... or that it is void */
	refused						/* the client has read 57P03, or lost its connection before the commit */
};

/* ---- transactions ---- */

mtype state[TX];
byte home[TX];					/* the node of its client */
byte number[TX];				/* what it appends to its row's list */
byte tenure[TX];				/* the epoch in which it has begun */
byte before[TX];				/* what stands before it in the log of its home */
byte has[TX];					/* fact: who has said that it is on his disk */

/* The third transaction is of another row: it may commit while one of the others waits. */
#define ROW(t)			((t) == 2 -> 4 : 3)
#define COUNT_OF(log, t) POP((log) & ROW(t))

/* ---- what a member has on its disk ---- */

byte promised[N];				/* it acknowledges nothing of a round below this one */
byte accepted[N];				/* the last tenure it has accepted */
byte log[N];					/* transactions */

/* ---- and in its memory ---- */

byte holds[N];					/* the tenure in which its clients may write; 0: none */
byte stands[N];					/* the round it stands for; 0: none */

/* ---- facts ---- */

byte candidate[ROUNDS + 1];		/* whose round it is, plus 1; 0: nobody's yet */
byte ahead[ROUNDS + 1];			/* the last tenure that the candidate had accepted */
byte votes[ROUNDS + 1];
byte base[EPOCHS];				/* the log on which the tenure begins */
byte owner[EPOCHS];				/* whose it is, plus 1; 0: it has not begun */
byte accepters[EPOCHS];
byte certain;					/* transactions that stand in the base of a tenure a majority has accepted */

#if OUTSIDERS > 0 || CHANGES > 0
#define MEMBERS_CHANGE
byte electorate[EPOCHS];
byte opened;					/* the last tenure that has, of all */
byte changes = CHANGES;
#define VOTERS(e)		electorate[e]
#define NOW_VOTERS		electorate[opened]
#else
#define VOTERS(e)		ALL_NODES
#define NOW_VOTERS		ALL_NODES
#endif

/* A majority is known to have it.  Whoever has it may show it then. */
#define IS_SETTLED(t)	(MAJORITY(has[t], VOTERS(tenure[t])) || (certain & BIT(t)))

/* ---- faults that may still come ---- */

byte crashes = CRASHES;

/* ---- what only the properties look at ---- */

byte kept;						/* transactions that somebody may have been told of, or have seen */
#ifdef EPOCH_IN_MEMORY
byte said[N];					/* the greatest round it has ever promised */
#define SAID(i)			said[i]
#define SAY(i)			said[i] = promised[i]
#else
#define SAID(i)			promised[i]
#define SAY(i)			skip
#endif

hidden byte c;					/* within one step */

/* The names say what is wrong when an assertion fails. */
hidden byte acknowledged_is_lost, number_is_given_twice, number_is_not_the_next, two_can_commit, old_epoch_is_acknowledged;
hidden byte undone_counts, members_differ_at_last, something_waits_for_ever;

/* Committed at home, and not part of the log there any more: a tenure has begun without it. */
#ifdef UNDONE_WHEN_OUTVOTED
#define IS_OUT(t)		(promised[home[t]] > ROUND(tenure[t]))
#else
#define IS_OUT(t)		!(log[home[t]] & BIT(t))
#endif
#define IS_VOID(t)		((state[t] == waiting || state[t] == doubtful) && IS_OUT(t))
#define DOUBT(t, i)		(home[t] == i && (state[t] == doubtful || IS_VOID(t)))
#define VOID(t, i)		(home[t] == i && IS_VOID(t))
#define BUSY(t, i)		(home[t] == i && (state[t] == runs || state[t] == waiting || state[t] == doubtful))
#define RUNS(t, i)		(home[t] == i && state[t] == runs)
#define WANTS(t, i)		(home[t] == i && state[t] == wants)
#define OPEN(t)			(state[t] == wants || state[t] == runs || state[t] == waiting || state[t] == doubtful)
#if TX == 2
#define ANY(of, i)		(of(0, i) || of(1, i))
#define ANY_OPEN		(OPEN(0) || OPEN(1))
#else
#define ANY(of, i)		(of(0, i) || of(1, i) || of(2, i))
#define ANY_OPEN		(OPEN(0) || OPEN(1) || OPEN(2))
#endif

/* Its strong tables can be read and written: nothing in them is doubtful. */
#ifdef SHOWN_AFTER_CRASH
#define IS_CLEAN(i)		!ANY(VOID, i)
#else
#define IS_CLEAN(i)		!ANY(DOUBT, i)
#endif

/* Another one of the row that is under way on the same node has the row's lock. */
#define HAS_LOCK(u, t)	(u != t && home[u] == home[t] && (ROW(u) & ROW(t)) && (state[u] == runs || state[u] == waiting))
#if TX == 2
#define IS_LOCKED(t)	(HAS_LOCK(0, t) || HAS_LOCK(1, t))
#else
#define IS_LOCKED(t)	(HAS_LOCK(0, t) || HAS_LOCK(1, t) || HAS_LOCK(2, t))
#endif

/* The last number of the row's list here. */
#ifdef VOID_NOT_UNDONE
#define ROWS_OF(i, t)	(COUNT_OF(log[i], t) + rows_left[i])
byte rows_left[N];
#else
#define ROWS_OF(i, t)	COUNT_OF(log[i], t)
#endif

/* Who has it need not be counted any more. */
inline keep(t)
{
	kept = kept | BIT(t);
	has[t] = ALL_NODES
}

/* ---- a transaction, and its client ---- */

#ifdef HANDED_OVER_WHILE_RUNNING
#define MAY_COMMIT(t)	(accepted[home[t]] == tenure[t] && promised[home[t]] <= ROUND(tenure[t]))
#elif defined(COMMITS_AFTER_PROMISE)
#define MAY_COMMIT(t)	(accepted[home[t]] == tenure[t])
#else
#define MAY_COMMIT(t)	(holds[home[t]] == tenure[t])
#endif

proctype Transaction(byte t)
{
#ifdef SNAPSHOT_BEFORE_LEASE
	number[t] = ROWS_OF(home[t], t) + 1;
#endif
end:
	do
	/* the first statement that writes: the lease, then the snapshot */
	:: atomic {
			state[t] == wants && holds[home[t]] > 0 && IS_CLEAN(home[t]) && !IS_LOCKED(t) ->
			tenure[t] = holds[home[t]];
#ifndef SNAPSHOT_BEFORE_LEASE
			number[t] = ROWS_OF(home[t], t) + 1;
#endif
			state[t] = runs
		}
	/* the commit: if the lease is gone, nothing is written */
	:: atomic {
			state[t] == runs ->
			if
			:: MAY_COMMIT(t) ->
				before[t] = log[home[t]];
				log[home[t]] = log[home[t]] | BIT(t);
				has[t] = BIT(home[t]);
				state[t] = waiting
			:: else ->
				tenure[t] = 0;
				number[t] = 0;
				state[t] = refused
			fi
		}
	/* enough have it */
	:: atomic { state[t] == waiting && IS_SETTLED(t) -> keep(t); state[t] = acknowledged }
	/* given up; who waits for its row must not go on with what it has written, nor anybody see it */
	:: atomic {
			state[t] == waiting && !IS_SETTLED(t) ->
			state[t] = doubtful;
#ifdef SHOWN_AFTER_CRASH
			kept = kept | BIT(t);
#endif
			for (c : 0 .. TX - 1) {
				if
				:: RUNS(c, home[t]) -> tenure[c] = 0; number[c] = 0; state[c] = refused
				:: else
				fi
			}
			c = 0
		}
	:: atomic { state[t] == doubtful && IS_SETTLED(t) && !IS_VOID(t) -> keep(t); state[t] = settled }
	/* void: the client reads 57P03, and others will never have seen it */
	:: atomic {
			IS_VOID(t) ->
			state[t] = undone;
			number[t] = 0;
#ifdef VOID_NOT_UNDONE
			rows_left[home[t]]++
#endif
		}
	od
}

/* ---- a member ---- */

/* It stands for no round any more: nobody counts who is for it. */
inline sit_down(i)
{
	votes[stands[i]] = 0;
	accepters[EPOCH(stands[i], 0)] = 0;
	stands[i] = 0
}

/* Nobody holds the lease for somebody who needs it, or a vote keeps a member out. */
#define IS_ASTRAY(i)	(promised[i] > ROUND(accepted[i]))
#ifdef ASKERS_STAND_ONLY
#define MAY_STAND(i)	(ANY(WANTS, i) && stands[i] == 0)
#elif defined(STRAYS_STAY_OUT)
#define MAY_STAND(i)	ANY_OPEN
#else
#define MAY_STAND(i)	(ANY_OPEN || SUM(IS_ASTRAY))
#endif
#if N == 3
#define SUM(of)			(of(0) + of(1) + of(2))
#elif N == 4
#define SUM(of)			(of(0) + of(1) + of(2) + of(3))
#else
#define SUM(of)			(of(0) + of(1) + of(2) + of(3) + of(4))
#endif
#ifdef MEMBERS_CHANGE
#define IS_ELECTOR(i)	(electorate[accepted[i]] & BIT(i))
#else
#define IS_ELECTOR(i)	(i < STANDERS)
#endif

/* It stands for a round: from here on it has nothing to do with older ones. */
#define STAND(r) \
	:: atomic { \
			candidate[r] == 0 && promised[i] < r && holds[i] == 0 && IS_ELECTOR(i) && MAY_STAND(i) -> \
			candidate[r] = i + 1; \
			ahead[r] = accepted[i]; \
			base[EPOCH(r, 0)] = log[i]; \
			promised[i] = r; SAY(i); \
			sit_down(i); \
			votes[r] = BIT(i); \
			stands[i] = r; \
			CHOOSE_VOTERS(r) \
		}

#ifdef MEMBERS_CHANGE
/* somebody is to join or to leave with this tenure: it is no other thing than to begin one */
#define CHOOSE_VOTERS(r) \
	electorate[EPOCH(r, 0)] = electorate[accepted[i]]; \
	if \
	:: true \
	:: changes > 0 -> changes--; electorate[EPOCH(r, 0)] = electorate[accepted[i]] ^ BIT(N - 1) \
	:: changes > 0 -> changes--; electorate[EPOCH(r, 0)] = electorate[accepted[i]] ^ BIT(0) \
	:: changes > 0 -> changes--; electorate[EPOCH(r, 0)] = electorate[accepted[i]] ^ (BIT(0) | BIT(N - 1)) \
	fi
#else
#define CHOOSE_VOTERS(r) skip
#endif

#ifdef OLDER_LOG_WINS
#define HAS_MORE(r)		false
#else
#define HAS_MORE(r)		(accepted[i] > ahead[r] || (accepted[i] == ahead[r] && (log[i] & ~base[EPOCH(r, 0)])))
#endif

#ifdef EPOCH_IN_MEMORY
#define FORGET_PROMISE(i) promised[i] = ROUND(accepted[i])
#else
#define FORGET_PROMISE(i) skip
#endif

#ifdef ACCEPTED_WITH_VOTE
#define ALSO_ACCEPT(r) \
	if \
	:: log[i] == base[EPOCH(r, 0)] -> accepted[i] = EPOCH(r, 0) \
	:: else \
	fi;
#else
#define ALSO_ACCEPT(r)
#endif

/* It votes, unless it has more than the candidate; if it is the holder, it is so no longer. */
#define VOTE(r) \
	:: atomic { \
			candidate[r] > 0 && promised[i] < r && !HAS_MORE(r) -> \
			promised[i] = r; SAY(i); \
			ALSO_ACCEPT(r) \
			if \
			:: stands[candidate[r] - 1] == r && votes[r] > 0 -> votes[r] = votes[r] | BIT(i) \
			:: else \
			fi; \
			holds[i] = 0; \
			sit_down(i) \
		}

#ifdef BASE_OF_MINORITY
#define IS_ELECTED(r)	true
#else
#define IS_ELECTED(r)	MAJORITY(votes[r], VOTERS(ahead[r]))
#endif

/* The candidate has the votes: the tenure begins, but nobody writes yet. */
#define WIN(r) \
	:: atomic { \
			stands[i] == r && promised[i] == r && accepted[i] < EPOCH(r, 0) && IS_ELECTED(r) -> \
			accepted[i] = EPOCH(r, 0); \
			votes[r] = 0; \
			owner[EPOCH(r, 0)] = i + 1; \
			accepters[EPOCH(r, 0)] = BIT(i) \
		}

#ifdef MEMBERS_CHANGE
#ifdef NEW_VOTERS_ONLY
#define OLD_VOTERS_HAVE(e)	true
#else
#define OLD_VOTERS_HAVE(e)	MAJORITY(accepters[e], VOTERS(ahead[ROUND(e)]))
#endif
#define NOTE_OPENED(e) \
	if \
	:: opened < e -> opened = e \
	:: else \
	fi
#else
#define OLD_VOTERS_HAVE(e)	true
#define NOTE_OPENED(e)	skip
#endif

#ifdef OLD_VOTERS_ONLY
#define NEW_VOTERS_HAVE(e)	true
#else
#define NEW_VOTERS_HAVE(e)	MAJORITY(accepters[e], VOTERS(e))
#endif

#ifdef OPENED_WHEN_ELECTED
#define MAY_OPEN(e)		true
#else
#define MAY_OPEN(e)		(NEW_VOTERS_HAVE(e) && OLD_VOTERS_HAVE(e))
#endif

/* A majority has the base: it is settled, the new holder applies it, and its clients write. */
#define OPEN_TENURE(r) \
	:: atomic { \
			stands[i] == r && accepted[i] == EPOCH(r, 0) && promised[i] == r && MAY_OPEN(EPOCH(r, 0)) -> \
			sit_down(i); \
			certain = certain | base[EPOCH(r, 0)]; \
			kept = kept | base[EPOCH(r, 0)]; \
			NOTE_OPENED(EPOCH(r, 0)); \
			if \
			:: !ANY(VOID, i) -> holds[i] = EPOCH(r, 0) \
			:: else \
			fi \
		}

#ifdef BASE_NOT_AWAITED
#define BASE(e)			(base[e] & log[i])
#else
#define BASE(e)			base[e]
#endif

/* It accepts a tenure that has begun: it gets what it lacks of the base, and lets go of what is not in it. */
#define ACCEPT(e) \
	:: atomic { \
			owner[e] > 0 && owner[e] != i + 1 && accepted[i] < e && promised[i] <= ROUND(e) -> \
			log[i] = BASE(e); \
			accepted[i] = e; \
			promised[i] = ROUND(e); SAY(i); \
			if \
			:: accepters[e] > 0 -> accepters[e] = accepters[e] | BIT(i) \
			:: else \
			fi; \
			holds[i] = 0; \
			sit_down(i) \
		}

#ifdef HANDED_OVER_WHILE_RUNNING
#define NOBODY_RUNS(i)	true
#else
#define NOBODY_RUNS(i)	!ANY(BUSY, i)
#endif

#ifdef GIVEN_A_ROUND
#define NEXT(e)			EPOCH(ROUNDS, 0)
#define IS_GIVEN(e)		(e == EPOCH(ROUNDS, 0))
#define CAN_GIVE(e)		(ROUND(e) < ROUNDS && candidate[ROUNDS] == 0)
#else
#define NEXT(e)			(e + 1)
#define IS_GIVEN(e)		(e != EPOCH(ROUND(e), 0))
#define CAN_GIVE(e)		(NEXT(e) < EPOCH(ROUND(e) + 1, 0) && owner[NEXT(e)] == 0)
#endif

/* The holder gives the lease to a node that has asked: the last word of its tenure, in its WAL. */
#define GIVE(j) \
	:: atomic { \
			i != j && holds[i] > 0 && CAN_GIVE(holds[i]) && ANY(WANTS, j) && NOBODY_RUNS(i) -> \
			owner[NEXT(holds[i])] = j + 1; \
			base[NEXT(holds[i])] = log[i]; \
			GIVE_VOTERS(holds[i]); \
			holds[i] = 0 \
		}

#ifdef MEMBERS_CHANGE
#define GIVE_VOTERS(e)	electorate[e + 1] = electorate[e]
#else
#define GIVE_VOTERS(e)	skip
#endif

#ifdef ASKER_NOT_CAUGHT_UP
#define GIVEN(e)		(base[e] & log[i])
#else
#define GIVEN(e)		base[e]
#endif

#ifdef TAKEN_TWICE
#define IS_NEW(e)		(accepted[i] <= e && holds[i] == 0)
#else
#define IS_NEW(e)		(accepted[i] < e)
#endif

/* The asker has read that, and so all that stands before it, and has applied it.  Once only. */
#define TAKE(e) \
	:: atomic { \
			owner[e] == i + 1 && IS_GIVEN(e) && IS_NEW(e) && promised[i] <= ROUND(e) -> \
			log[i] = GIVEN(e); \
			accepted[i] = e; \
			promised[i] = ROUND(e); SAY(i); \
			sit_down(i); \
			if \
			:: !ANY(VOID, i) -> holds[i] = e \
			:: else \
			fi \
		}

#ifdef OLD_EPOCH_ACKNOWLEDGED
#define MAY_TAKE(t)		true
#else
#define MAY_TAKE(t)		(accepted[i] == tenure[t] && promised[i] <= ROUND(tenure[t]))
#endif
#ifdef SHOWN_WHEN_RECEIVED
#define SHOW(t)			kept = kept | BIT(t)
#else
#define SHOW(t)			skip
#endif

/* The stream brings a transaction of the tenure it has accepted: it is durable here, and told. */
#define ACKNOWLEDGE(t) \
	:: atomic { \
			has[t] > 0 && (has[t] & (log[i] & BIT(t) -> BIT(i) : 0)) == 0 && (before[t] & ~log[i]) == 0 && MAY_TAKE(t) -> \
			must(SAID(i) <= ROUND(tenure[t]), old_epoch_is_acknowledged); \
			log[i] = log[i] | BIT(t); \
			has[t] = has[t] | BIT(i); \
			SHOW(t) \
		}

inline must(what, name)
{
	if
	:: what
	:: else -> assert(name)
	fi
}

/* The server is killed, and starts again: it holds nothing, and what waited is visible, behind the gate. */
inline restart(i)
{
	crashes--;
	holds[i] = 0;
	sit_down(i);
	FORGET_PROMISE(i);
#ifdef SET_BACK
	log[i] = 0;
	accepted[i] = 0;
	promised[i] = 0;
#endif
	for (c : 0 .. TX - 1) {
		if
		:: home[c] == i && (state[c] == wants || state[c] == runs) -> tenure[c] = 0; number[c] = 0; state[c] = refused
		:: home[c] == i && state[c] == waiting ->
			state[c] = doubtful;
#ifdef SHOWN_AFTER_CRASH
			kept = kept | BIT(c)
#endif
		:: else
		fi
	}
	c = 0
}

proctype Member(byte i)
{
end:
	do
	:: atomic { crashes > 0 -> restart(i) }
	STAND(1) VOTE(1) WIN(1) OPEN_TENURE(1) ACCEPT(EPOCH(1, 0))
#if TENURES > 1
	ACCEPT(EPOCH(1, 1)) TAKE(EPOCH(1, 1))
#endif
#if TENURES > 2
	ACCEPT(EPOCH(1, 2)) TAKE(EPOCH(1, 2))
#endif
#if ROUNDS > 1
	STAND(2) VOTE(2) WIN(2) OPEN_TENURE(2) ACCEPT(EPOCH(2, 0))
#if TENURES > 1
	ACCEPT(EPOCH(2, 1)) TAKE(EPOCH(2, 1))
#endif
#if TENURES > 2
	ACCEPT(EPOCH(2, 2)) TAKE(EPOCH(2, 2))
#endif
#endif
#if ROUNDS > 2
	STAND(3) VOTE(3) WIN(3) OPEN_TENURE(3) ACCEPT(EPOCH(3, 0))
#if TENURES > 1
	ACCEPT(EPOCH(3, 1)) TAKE(EPOCH(3, 1))
#endif
#endif
#if ROUNDS > 3
	STAND(4) VOTE(4) WIN(4) OPEN_TENURE(4) ACCEPT(EPOCH(4, 0))
#endif
#ifdef GIVEN_A_ROUND
	TAKE(EPOCH(ROUNDS, 0))
#endif
#if TENURES > 1 || defined(GIVEN_A_ROUND)
	GIVE(0) GIVE(1) GIVE(2)
#if N > 3
	GIVE(3)
#endif
#if N > 4
	GIVE(4)
#endif
#endif
	ACKNOWLEDGE(0) ACKNOWLEDGE(1)
#if TX > 2
	ACKNOWLEDGE(2)
#endif
	od
}

/* ---- what has to hold ---- */

#define HAS(i)			(((log[i] >> t) & 1) << i)
#define MAY_ACK(i)		((promised[i] <= ROUND(e) && accepted[i] <= e) << i)
#define IS_BEHIND(i)	(log[i] != log[u] && (NOW_VOTERS & BIT(i)))
#define IS_LAST(i)		(accepted[i] >= accepted[u])

/* Never takes a step as long as all is well. */
proctype Lost(byte t)
{
end:
	do
	:: atomic { (kept & BIT(t)) && !MAJORITY(SUM(HAS), NOW_VOTERS) -> assert(acknowledged_is_lost) }
	/* nobody can do anything more, and there still is a round to stand for */
	:: atomic { timeout && candidate[ROUNDS] == 0 && OPEN(t) -> assert(something_waits_for_ever) }
	/* it has read what stands before it, and nothing else */
	:: atomic { (kept & BIT(t)) && number[t] != COUNT_OF(before[t], t) + 1 -> assert(number_is_not_the_next) }
	:: atomic { state[t] == undone && (log[home[t]] & BIT(t)) -> assert(undone_counts) }
	od
}

proctype Twice(byte t; byte u)
{
end:
	do
	:: atomic {
			(kept & BIT(t)) && (kept & BIT(u)) && (ROW(t) & ROW(u)) && number[t] == number[u] ->
			assert(number_is_given_twice)
		}
	od
}

#define CAN_COMMIT(j)	(holds[j] > 0 && MAJORITY(ACKS_OF(holds[j]), VOTERS(holds[j])))
#define ACKS1(j, e)		((promised[j] <= ROUND(e) && accepted[j] <= e -> BIT(j) : 0))
#if N == 3
#define ACKS_OF(e)		(ACKS1(0, e) | ACKS1(1, e) | ACKS1(2, e))
#elif N == 4
#define ACKS_OF(e)		(ACKS1(0, e) | ACKS1(1, e) | ACKS1(2, e) | ACKS1(3, e))
#else
#define ACKS_OF(e)		(ACKS1(0, e) | ACKS1(1, e) | ACKS1(2, e) | ACKS1(3, e) | ACKS1(4, e))
#endif

proctype Pair(byte i; byte u)
{
end:
	do
	:: atomic { CAN_COMMIT(i) && CAN_COMMIT(u) -> assert(two_can_commit) }
	:: atomic { timeout && candidate[ROUNDS] == 0 && (NOW_VOTERS & BIT(u)) && IS_BEHIND(i) -> assert(members_differ_at_last) }
	od
}

init
{
	byte i;
	byte j;

	atomic {
		for (i : 0 .. TX - 1) {
			state[i] = wants
		}
		/* nodes are alike: the first transaction is at home on the first */
		if
		:: home[1] = 0
		:: home[1] = 1
		fi;
#if TX > 2
		if
		:: home[2] = 0
		:: home[2] = 1
		:: home[1] == 1 -> home[2] = 2
		fi;
#endif
#ifdef MEMBERS_CHANGE
		electorate[0] = BIT(N - OUTSIDERS) - 1;
#endif
		for (i : 0 .. N - 1) {
			run Member(i);
			for (j : i + 1 .. N - 1) {
				run Pair(i, j)
			}
		}
		for (i : 0 .. TX - 1) {
			run Transaction(i);
			run Lost(i);
			for (j : i + 1 .. TX - 1) {
				run Twice(i, j)
			}
		}
		i = 0; j = 0
	}
}
