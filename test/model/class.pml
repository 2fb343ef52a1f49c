/*
 * class.pml
 *		A table that has rows changes its class, from eventual to strong or (FROM_STRONG) back.
 *
 * Somebody orders it, and each node comes to know that.  It lets its transactions that have
 * written the table end, lets none begin, and says so (ENDED): in its WAL, behind what they
 * wrote, which each other node reads from the beginning to the end.  Who has read that of all
 * has all that was ever written in the old way, unless it has put something aside; it says so,
 * too (have).  Who has heard that of all writes in the new way (done).  As anybody may do a
 * thing late, when it is heard of what has been ordered, and of who has all, is no matter.
 *
 * Of the two ways one is strong: who writes so has all that was written so before (the lease).
 * One strong commit may be in doubt: nobody reads beyond it before it is known whether it
 * counts; if it does not its node is unclean, learns it at some time, and all that is strong
 * there is made as it is on a node that has all of that.  Another node may become unclean
 * because it has missed something; what it reads later of what it has been given then is
 * passed over.
 *
 * README says how to run this, and what each -D switches off.
 */
#ifdef HAS_IN_DOUBT
#define DOUBTED
#endif
#ifdef DOUBTED
#define FROM_STRONG
#define DOUBTS		1
#endif
#ifdef ASIDE_COUNTS
#define ASIDES		1
#endif
#if defined(ANY_DONOR) || defined(ONE_IS_ENOUGH)
#define MISSES		1
#endif
#ifdef MISSED_OF_STRONG
#define FROM_STRONG
#define MISSES		1
#endif
#ifndef N
#define N			3
#endif
#ifndef OLDS
#define OLDS		1
#endif
#define NEWS		1
#ifndef DOUBTS
#define DOUBTS		0
#endif
#ifndef MISSES
#define MISSES		0
#endif
#ifndef ASIDES
#define ASIDES		0
#endif
#define LENGTH		(OLDS + NEWS + 1)

#define BIT(k)			(1 << (k))
#define OLD				(BIT(OLDS) - 1)	/* of a set of writes, those made in the old way */
#define NEW				(((BIT(NEWS)) - 1) << OLDS)
#define ALL_NODES		(BIT(N) - 1)
#define ENDED			10		/* in a WAL, beside the numbers of writes */

#define WAL(i, p)		wal[(i) * LENGTH + (p)]
#define READ(i, j)		seen[(i) * N + (j)]
#define HAS_READ(i, j)	(READ(i, j) == end_of[j])
#define NEXT(i, j)		(READ(i, j) < end_of[j] -> WAL(j, READ(i, j)) : 255)

#ifdef FROM_STRONG
#define STRONG			OLD
#define IS_STRONG(i)	(!done[i])	/* in that node's list */
#else
#define STRONG			NEW
#define IS_STRONG(i)	(done[i])
#endif

byte olds, news;				/* written so far */
byte committed;					/* writes that are, and count */
byte in_doubt = 255;			/* a write that may not count, */
byte doubter;					/* and whose it is */
byte voided;
byte doubts = DOUBTS;
byte misses = MISSES;
byte asides = ASIDES;
byte have;						/* nodes that have said that they have all */

byte wal[N * LENGTH];
byte end_of[N];
byte seen[N * N];				/* of j's WAL by i */
byte has[N];					/* writes */
byte aside[N];
byte passed_over[N];			/* what a copy has brought is not read again */
byte open[N];					/* transactions that have begun in the old way */
byte ended[N];					/* nodes that it knows to have said so */
bit done[N];
bit unclean[N];

hidden byte e;

#define CHECK(holds, name)	if :: holds -> skip :: else -> assert(name) fi

/* The names say what is wrong when an assertion fails. */
hidden byte two_ways_at_once, a_write_is_lost, void_write_stays, members_differ_at_last;

inline write(i, what)
{
	WAL(i, end_of[i]) = what;
	end_of[i]++
}

/* Has the node nothing of the table that does not count, or that may turn out not to? */
#ifdef HAS_IN_DOUBT
#define IS_SETTLED(i)	(!unclean[i])
#else
#define IS_SETTLED(i)	(!unclean[i] && !(in_doubt != 255 && doubter == i))
#endif
#ifdef BEFORE_ALL_END
#define MAY_END(i)		true
#else
#define MAY_END(i)		(open[i] == 0)
#endif
#ifdef ASIDE_COUNTS
#define LACKS(i)		false
#else
#define LACKS(i)		(aside[i] != 0)
#endif
#ifdef ONE_IS_ENOUGH
#define MAY_DO(i)		(have != 0)
#else
#define MAY_DO(i)		(have == ALL_NODES)
#endif
#ifdef UNREAD
#define ALL_ENDED(i)	(ended[i] & BIT(i))
#else
#define ALL_ENDED(i)	(ended[i] == ALL_NODES)
#endif
#ifdef ANY_DONOR
#define SAME_LIST(i, d)	true
#else
#define SAME_LIST(i, d)	(done[i] == done[d])
#endif

/* The lease: who writes in the strong way has all that was. */
#define MAY_WRITE(i, kind)	((kind) != STRONG || (!unclean[i] && in_doubt == 255 && (committed & STRONG & ~has[i]) == 0))

#define ENDS			(news == NEWS && in_doubt == 255 && done[0] && done[1] && done[2])

/* clients of node i */
proctype Clients(byte i)
{
	do
	:: d_step { olds + open[0] + open[1] + open[2] < OLDS && !done[i] && !(ended[i] & BIT(i)) -> open[i]++ }
	:: d_step { open[i] > 0 && MAY_WRITE(i, OLD) ->
		open[i]--;
		CHECK((committed & NEW & ~has[i]) == 0, two_ways_at_once);
		has[i] = has[i] | BIT(olds);
		committed = committed | BIT(olds);
		write(i, olds);
		olds++ }
#ifdef FROM_STRONG
	/* it is committed here, and who was to acknowledge it is not there */
	:: d_step { open[i] > 0 && doubts > 0 && MAY_WRITE(i, OLD) ->
		open[i]--; doubts--;
		in_doubt = olds; doubter = i;
		has[i] = has[i] | BIT(olds);
		write(i, olds);
		olds++ }
#endif
	:: d_step { done[i] && news < NEWS && MAY_WRITE(i, NEW) ->
		CHECK((committed & OLD & ~has[i]) == 0, two_ways_at_once);
		has[i] = has[i] | BIT(OLDS + news);
		committed = committed | BIT(OLDS + news);
		e = OLDS + news;
		write(i, e);
		news++ }
	:: ENDS -> break
	od
}

/* the process of node i that changes the class */
proctype Changer(byte i)
{
	do
	:: d_step { !(ended[i] & BIT(i)) && MAY_END(i) -> ended[i] = ended[i] | BIT(i); write(i, ENDED) }
	:: d_step { ALL_ENDED(i) && !(have & BIT(i)) && !LACKS(i) && IS_SETTLED(i) -> have = have | BIT(i) }
	:: d_step { MAY_DO(i) && !done[i] -> done[i] = 1 }
	:: done[i] -> break
	od
}

#define IS_WRITE(i, j)	(NEXT(i, j) < ENDED && NEXT(i, j) != in_doubt && !(unclean[i] && (BIT(NEXT(i, j)) & STRONG)))
#define COUNTS(i, j)	(!((voided | passed_over[i]) & BIT(NEXT(i, j))))

/* node i reads the WAL of node j */
proctype Reader(byte i; byte j)
{
	do
	:: d_step { IS_WRITE(i, j) ->
		e = NEXT(i, j);
		done[i] = done[i] | (e >= OLDS);	/* that comes before it */
		if
		:: COUNTS(i, j) -> has[i] = has[i] | BIT(e)
		:: else -> CHECK((has[i] | voided) & BIT(e), a_write_is_lost)
		fi;
		READ(i, j)++ }
	:: d_step { IS_WRITE(i, j) && COUNTS(i, j) && asides > 0 ->
		done[i] = done[i] | (NEXT(i, j) >= OLDS);
		asides--; aside[i] = aside[i] | BIT(NEXT(i, j)); READ(i, j)++ }
	:: d_step { NEXT(i, j) == ENDED -> ended[i] = ended[i] | BIT(j); READ(i, j)++ }
	:: NEXT(i, j) == 255 && ENDS -> break
	od
}

#define MAY_MEND(i, d)	(unclean[i] && !unclean[d] && SAME_LIST(i, d) && in_doubt == 255 && aside[d] == 0 && \
						 (committed & STRONG & ~has[d]) == 0)

/* All that is strong on node i is made as it is on node d, whatever else that has. */
inline mend(i, d)
{
	if
	:: IS_STRONG(i) ->
		CHECK((has[i] & committed & ~has[d]) == 0, a_write_is_lost);
		has[i] = has[d];
		aside[i] = aside[i] & ~STRONG
	:: else -> skip
	fi;
	CHECK((has[i] & voided) == 0, void_write_stays);
	passed_over[i] = committed & STRONG;
	unclean[i] = 0
}

/* node i tries again what it has put aside, hears whether its commit counts, is mended */
proctype Mender(byte i)
{
	do
	:: d_step { aside[i] -> has[i] = has[i] | aside[i]; aside[i] = 0 }
	:: d_step { in_doubt != 255 && doubter == i -> committed = committed | BIT(in_doubt); in_doubt = 255 }
	:: d_step { in_doubt != 255 && doubter == i -> voided = BIT(in_doubt); unclean[i] = 1; in_doubt = 255 }
	:: d_step { misses > 0 && !ENDS -> misses--; unclean[i] = 1 }
	:: d_step { MAY_MEND(i, (i + 1) % N) -> mend(i, (i + 1) % N) }
	:: d_step { MAY_MEND(i, (i + 2) % N) -> mend(i, (i + 2) % N) }
	:: d_step { ENDS && !aside[i] && !unclean[i] && HAS_READ(i, (i + 1) % N) && HAS_READ(i, (i + 2) % N) ->
		CHECK(has[i] == committed, members_differ_at_last) } -> break
	od
}

init
{
	atomic {
		run Clients(0); run Clients(1); run Clients(2);
		run Changer(0); run Changer(1); run Changer(2);
		run Mender(0); run Mender(1); run Mender(2);
		run Reader(0, 1); run Reader(0, 2); run Reader(1, 0); run Reader(1, 2); run Reader(2, 0); run Reader(2, 1)
	}
}
