/*
 * ids.pml
 *		Ranges of numbers that a majority agrees to: no number is given twice, while
 *		nodes join and are dropped.
 *
 * A range is one number here.  A node that needs one asks the voters for their marks,
 * the highest number that each has promised to anybody, and proposes one behind; a
 * voter accepts what is beyond its mark, and raises it durably before it answers.
 * Each answer says whom that voter counts, and whom of these it knows to be dropped.
 * The number is the proposer's when, by the count of each that accepted, more than
 * half have.
 *
 * A node that joins is no voter before it has the marks of a majority, each of whom
 * counts it from its answer on.  One that is dropped may not know it; who counts it no
 * longer has gathered the marks of a majority of those who know of the drop first.
 *
 * Two nodes join one or, with DROP, two of five are dropped.
 * With one at a time, all majorities meet anyway.
 *
 * With ENROL the sequence begins as one that a node has by itself, and takes numbers of:
 * whoever adds it to the group's list stops that, and writes beside it what it has used.
 * Who has heard of the list gives only what a majority has agreed to, beyond that,
 * whether or not the others have heard of it.  With TWICE two nodes have one of that name,
 * and add theirs at once.  A voter that has one and has not heard of the list stops, too,
 * before it agrees, and agrees to nothing that it has used.
 *
 * Messages are steps: one that is late, lost or repeated is a step that comes later or
 * never.  A crash forgets proposals and what is in hand.
 */
#define N			5
#ifdef AGREES_ALONE
#define TWICE
#endif
#if defined(TWICE) || defined(GOES_ON_ALONE) || defined(FLOOR_NOT_TOLD)
#define ENROL
#endif
#if defined(DROP) || defined(DROPPED_AT_ONCE) || defined(DROPPED_ANSWER) || defined(DROPPED_TOLD)
#define NODES		5			/* that there are */
#define FOUNDERS	5			/* that are voters at the beginning */
#define DROPS		1
#define PROPOSES(p)	((p) == 0 || (p) == 4)
#elif defined(ENROL)
#define NODES		3
#define FOUNDERS	3
#define DROPS		0
#define CRASHES		0
#define NUMBERS		3
#define PROPOSES(p)	(alone[p] == 0)
#else
#define NODES		3
#define FOUNDERS	1
#define DROPS		0
#define PROPOSES(p)	true
#endif
#ifdef TWICE
#define TWO			1
#else
#define TWO			0
#endif
#ifndef NUMBERS
#define NUMBERS		2
#endif
#ifndef PROPOSALS
#define PROPOSALS	2
#endif
#ifndef CRASHES
#define CRASHES		(DROPS == 0)
#endif

/* A node, durably.  Sets are bits. */
byte mark[N];
byte counted[N];				/* whom it counts; 0: it is no voter */
byte dropped[N];				/* of whom it knows so */

/* ... and while its server runs */
byte asked[N];					/* its proposal; 0: none */
byte hand[N];					/* the number it may give; 0: none */

/* What has been said about a proposal, and about who joins or drops, by row. */
byte said_counted[N * N];
byte said_dropped[N * N];

/* The joiner's, and those of who settles a drop. */
byte heard[N];					/* who has sent his marks for that */
byte heard_mark[N];
byte heard_counted[N * N];

#ifdef IN_HAND_KEPT
byte backup[N];					/* what it had in hand when its storage was copied */
#endif
byte given;						/* numbers, a set */
#ifdef ENROL
byte alone[N];					/* it gives numbers by itself; else only what is agreed */
byte used[N];					/* the last one of these; 0: none */
byte listed;					/* who has heard of the list, a set */
byte floor[N];					/* ... and of what was used before */
byte given_before;				/* by the first node alone, a set */
byte agreed[N];					/* what it has agreed to, sets */
#endif
byte proposals = PROPOSALS;
byte crashes = CRASHES;
byte drops = DROPS;				/* that somebody may still order */

/* The names say what is wrong when an assertion fails. */
hidden byte number_is_given_twice;

inline must(what, name)
{
	if
	:: what
	:: else -> assert(name)
	fi
}

#define BIT(x)		(1 << (x))
#define SIZE(set)	(((set) & 1) + ((set) >> 1 & 1) + ((set) >> 2 & 1) + ((set) >> 3 & 1) + ((set) >> 4 & 1))
#ifdef MINORITY
#define MOST(part, all)	(SIZE(part) * 2 + 2 > SIZE(all))
#else
#define MOST(part, all)	(SIZE(part) * 2 > SIZE(all))
#endif

/* By what voter i says, enough of "set" have done it. */
#ifdef DROPPED_ANSWER
#define AGREES(p, i, set)	MOST(set & said_counted[(p) * N + i], said_counted[(p) * N + i])
#else
#define AGREES(p, i, set)	MOST(set & said_counted[(p) * N + i] & ~said_dropped[(p) * N + i], said_counted[(p) * N + i])
#endif
#define ALL_AGREE(p, set)	\
	((!(set & 1) || AGREES(p, 0, set)) && (!(set & 2) || AGREES(p, 1, set)) && \
	 (!(set & 4) || AGREES(p, 2, set)) && (!(set & 8) || AGREES(p, 3, set)) && \
	 (!(set & 16) || AGREES(p, 4, set)))

/* Who has accepted p's proposal: who has said whom it counts. */
#define ACCEPTED(p)	\
	((said_counted[(p) * N] != 0) + 2 * (said_counted[(p) * N + 1] != 0) + \
	 4 * (said_counted[(p) * N + 2] != 0) + 8 * (said_counted[(p) * N + 3] != 0) + \
	 16 * (said_counted[(p) * N + 4] != 0))

inline forget_proposal(p)
{
	asked[p] = 0;
	said_counted[p * N] = 0; said_counted[p * N + 1] = 0; said_counted[p * N + 2] = 0; said_counted[p * N + 3] = 0; said_counted[p * N + 4] = 0;
	said_dropped[p * N] = 0; said_dropped[p * N + 1] = 0; said_dropped[p * N + 2] = 0; said_dropped[p * N + 3] = 0; said_dropped[p * N + 4] = 0
}

inline forget_heard(p)
{
	heard[p] = 0;
	heard_mark[p] = 0;
	heard_counted[p * N] = 0; heard_counted[p * N + 1] = 0; heard_counted[p * N + 2] = 0; heard_counted[p * N + 3] = 0; heard_counted[p * N + 4] = 0
}

/* The number is beyond what p has heard of: any, as marks are read from anybody, at any time. */
inline propose(p, number)
{
	asked[p] = number;
	proposals--
}

inline accept(i, p)
{
#ifdef ENROL
#ifndef AGREES_ALONE
	alone[i] = 0;
#endif
	agreed[i] = agreed[i] | BIT(asked[p]);
#endif
	mark[i] = asked[p];
	said_counted[p * N + i] = counted[i];
	said_dropped[p * N + i] = dropped[i]
}

inline take(p)
{
	hand[p] = asked[p];
#ifdef IN_HAND_KEPT
	backup[p] = hand[p];
#endif
	forget_proposal(p)
}

#ifdef ENROL
/* Node p gives its next number by itself: nobody who is of the group has that. */
inline give_alone(p)
{
	used[p]++;
	must(!(agreed[p] & BIT(used[p])), number_is_given_twice);
#ifndef TWICE
	must(!(given & BIT(used[p])), number_is_given_twice);
#endif
	given_before = given_before | (p == 0 -> BIT(used[p]) : 0)
}

/* Somebody adds p's to the list. */
inline enrol(p)
{
#ifndef GOES_ON_ALONE
	alone[p] = 0;
#endif
	floor[p] = (used[p] > floor[p] -> used[p] : floor[p]);
	listed = listed | BIT(p)
}

/* Node i hears of the list from p; one that had none has it now. */
inline hear(i, p)
{
	listed = listed | BIT(i);
	alone[i] = 0;
#ifndef FLOOR_NOT_TOLD
	floor[i] = (floor[p] > floor[i] -> floor[p] : floor[i]);
#endif
	floor[i] = (used[i] > floor[i] -> used[i] : floor[i])
}

/* What was got before p had heard of the list may be what another one had used. */
inline give(p)
{
	if
	:: hand[p] > floor[p] && (listed & BIT(p)) ->
		must(!(given & BIT(hand[p])), number_is_given_twice);
#ifndef TWICE
		must(!(given_before & BIT(hand[p])), number_is_given_twice);
#endif
		must(hand[p] > used[p], number_is_given_twice);
		given = given | BIT(hand[p])
	:: else -> skip
	fi;
	hand[p] = 0
}
#else
inline give(p)
{
	must(!(given & BIT(hand[p])), number_is_given_twice);
	given = given | BIT(hand[p]);
	hand[p] = 0
}
#endif

/* The server ends, perhaps to go on with what its storage was before: what is in hand is of one start. */
inline crash(p)
{
	crashes--;
	forget_proposal(p);
	forget_heard(p);
#ifdef MARKS_IN_MEMORY
	mark[p] = 0;
#endif
#ifdef IN_HAND_KEPT
	hand[p] = backup[p]
#else
	hand[p] = 0
#endif
}

/* Member i sends its marks to p, who joins, and counts it. */
inline admit(i, p)
{
	heard[p] = heard[p] | BIT(i);
	heard_mark[p] = (mark[i] > heard_mark[p] -> mark[i] : heard_mark[p]);
	heard_counted[p * N + i] = counted[i];
	counted[i] = counted[i] | BIT(p)
}

/* As before it counted p; the votes of who was counted and is dropped are not heard. */
#define HEARD_AGREES(p, i)	MOST(heard[p] & heard_counted[(p) * N + i], heard_counted[(p) * N + i])
#define HEARD_ENOUGH(p)	\
	(heard[p] != 0 && (!(heard[p] & 1) || HEARD_AGREES(p, 0)) && (!(heard[p] & 2) || HEARD_AGREES(p, 1)) && \
	 (!(heard[p] & 4) || HEARD_AGREES(p, 2)) && (!(heard[p] & 8) || HEARD_AGREES(p, 3)) && (!(heard[p] & 16) || HEARD_AGREES(p, 4)))

inline become_voter(p)
{
#ifndef JOINED_WITHOUT_MARKS
	mark[p] = heard_mark[p];
#endif
	counted[p] = heard_counted[p * N] | heard_counted[p * N + 1] | heard_counted[p * N + 2] | heard_counted[p * N + 3] | heard_counted[p * N + 4] | BIT(p);
	forget_heard(p)
}

/* Member i, who knows of the drop too, sends its marks to p, itself perhaps. */
inline tell(i, p)
{
	heard[p] = heard[p] | BIT(i);
	heard_mark[p] = (mark[i] > heard_mark[p] -> mark[i] : heard_mark[p]);
	heard_counted[p * N + i] = counted[i]
}

inline settle(p)
{
	mark[p] = (heard_mark[p] > mark[p] -> heard_mark[p] : mark[p]);
	counted[p] = counted[p] & ~dropped[p];
	forget_heard(p)
}

#define LIVES(i)	(counted[i] != 0)
#ifdef ANYTHING_ACCEPTED
#define BEYOND(number, mark)	(number >= mark)
#else
#define BEYOND(number, mark)	(number > mark)
#endif
#ifdef ENROL
#define UNUSED(number, i)	(number > floor[i] && number > used[i])
#else
#define UNUSED(number, i)	true
#endif

/* All that are left have, where a person has left no majority. */
#define HEARD_ALL(p)	((counted[p] & ~dropped[p] & ~heard[p]) == 0)
#ifdef DROPPED_TOLD
#define KNOWS(i, p)		true
#else
#define KNOWS(i, p)		((dropped[p] & ~dropped[i]) == 0)
#endif

active proctype group()
{
	byte i;
	byte p;

	d_step {
		do
		:: i < FOUNDERS -> counted[i] = BIT(FOUNDERS) - 1; i++
		:: else -> break
		od;
#ifdef ENROL
		alone[0] = 1;
		alone[1] = TWO;
#endif
		i = 0
	}
end:
	do
	:: atomic { true -> select(p : 0 .. NODES - 1); select(i : 0 .. NODES - 1);
		if
		:: d_step { PROPOSES(p) && LIVES(p) && asked[p] == 0 && hand[p] == 0 && proposals > 0 && i >= mark[p] && i < NUMBERS && UNUSED(i + 1, p) -> propose(p, i + 1) }
		:: d_step { asked[p] != 0 && LIVES(i) && said_counted[p * N + i] == 0 && !(dropped[i] & BIT(p)) && BEYOND(asked[p], mark[i]) && UNUSED(asked[p], i) -> accept(i, p) }
		:: d_step { asked[p] != 0 && i == 0 && ACCEPTED(p) != 0 && ALL_AGREE(p, ACCEPTED(p)) -> take(p) }
		:: d_step { hand[p] != 0 && i == 0 -> give(p) }
		:: d_step { crashes > 0 && i == 0 && LIVES(p) -> crash(p) }
		/* p joins */
		:: d_step { counted[p] == 0 && LIVES(i) && !(heard[p] & BIT(i)) -> admit(i, p) }
		:: d_step { counted[p] == 0 && i == 0 && HEARD_ENOUGH(p) -> become_voter(p) }
		/* a person drops the last two on node 0, and others learn of it */
		:: d_step { drops > 0 && p == 0 && i == 0 -> drops--; dropped[p] = BIT(3) | BIT(4) }
		:: d_step { p != i && (dropped[i] & ~dropped[p]) && !(dropped[i] & BIT(p)) -> dropped[p] = dropped[p] | dropped[i]; forget_heard(p) }
		/* and p counts it no longer */
		:: d_step { LIVES(p) && (dropped[p] & counted[p]) && LIVES(i) && !(dropped[p] & BIT(i)) && KNOWS(i, p) && !(heard[p] & BIT(i)) -> tell(i, p) }
#ifdef DROPPED_AT_ONCE
		:: d_step { LIVES(p) && (dropped[p] & counted[p]) && i == 0 -> settle(p) }
#else
		:: d_step { LIVES(p) && (dropped[p] & counted[p]) && i == 0 && (HEARD_ENOUGH(p) || HEARD_ALL(p)) -> settle(p) }
#endif
#ifdef ENROL
		:: d_step { i == 0 && alone[p] && used[p] < NUMBERS - 1 -> give_alone(p) }
		:: d_step { i == 0 && p <= TWO && !(listed & BIT(p)) -> enrol(p) }
		:: d_step { p != i && (listed & BIT(p)) && (!(listed & BIT(i)) || floor[i] < floor[p]) -> hear(i, p) }
#endif
		:: else
		fi;
		p = 0; i = 0 }
	od
}
