/*
 * identity.pml
 *		Several servers that could each be one node: its primary, and two standbys
 *		that were promoted.  What the members have of the node is always a part of
 *		what the server has from which they read it.
 *
 * A server is what it has of the node, a set of writes.  Server 0 starts as the node; 1 and 2 replay its WAL, up to any point, until they are
 * promoted.  A promoted one asks the members P and Q whether it may be the node
 * (repl_ml.vouch_for), and is its next incarnation if enough agree.
 * Members read from any server that they find, after they have compared incarnation,
 * start and position (copy/link.c); one that lacks something has been set back, and
 * goes on under another id, which is return.pml's.
 *
 * Positions are numbers, as in the code: of two histories the same number stands for
 * different writes.
 */
#ifndef WRITES
#define WRITES		2
#endif
#ifndef TIMES
#define TIMES		2
#endif
#define SERVERS		3

/* A server */
byte has[SERVERS];				/* the node's writes: a set */
byte found[SERVERS];			/* the position at which it became the node */
byte incarnation[SERVERS];
bool standby[SERVERS];
bool member[SERVERS];			/* it takes itself for the node */
bool gone[SERVERS];				/* fenced for good, or under another id */

/* What members have said to one that asks; a majority of them is both. */
byte proposed[SERVERS];
byte agreed[SERVERS];			/* a set of members */
bool less[SERVERS];				/* one of them has more */

/* P and Q */
byte applied[2];				/* the node's writes */
byte known[2];					/* the node's incarnation */
byte vouched[2];				/* the last incarnation that it has agreed to */
byte linked[2];					/* the server it reads from; SERVERS: none */

byte writes = WRITES;
byte times = TIMES;				/* that somebody may begin to ask */

/* The names say what is wrong when an assertion fails. */
hidden byte applied_what_the_node_lacks;

#define ACTS(x)		(member[x] && !gone[x])
/* A position is a number of writes. */
#define POSITION(set)	((set & 1) + (set >> 1 & 1) + (set >> 2 & 1))
#ifdef END_OF_ALL_WAL
#define REACHES(x)	(POSITION(has[x]) + 2)
#else
#define REACHES(x)	POSITION(has[x])
#endif

inline must(what, name)
{
	if
	:: what
	:: else -> assert(name)
	fi
}

/* Enough have agreed. */
#ifdef ASKER_COUNTS
#define ENOUGH(x)	(agreed[x] != 0)
#else
#define ENOUGH(x)	(agreed[x] == 3)
#endif

/* Member i is asked by server x.  An objection ends the asking. */
inline ask(i, x)
{
	if
	:: known[i] > incarnation[x] -> agreed[x] = 0; proposed[x] = 0
	:: linked[i] != SERVERS && linked[i] != x -> agreed[x] = 0; proposed[x] = 0
#ifndef SAME_NUMBER
	/* somebody was that incarnation, perhaps: the minute is over */
	:: vouched[i] >= proposed[x] -> agreed[x] = 0; proposed[x] = (proposed[x] == incarnation[x] + 1 -> vouched[i] + 1 : 0)
#endif
	:: else ->
		vouched[i] = proposed[x];
		agreed[x] = agreed[x] | (1 << i);
		less[x] = less[x] || POSITION(applied[i]) > REACHES(x)
	fi
}

/* Fenced for good, or under another id: nothing more is asked of it. */
inline leave(x)
{
	gone[x] = true;
	member[x] = false;
	has[x] = 0;
	found[x] = 0;
	incarnation[x] = 0;
	proposed[x] = 0;
	agreed[x] = 0;
	less[x] = false;
	if
	:: linked[0] == x -> linked[0] = SERVERS
	:: else
	fi;
	if
	:: linked[1] == x -> linked[1] = SERVERS
	:: else
	fi
}

inline decide(x)
{
	incarnation[x] = proposed[x];
	if
	:: less[x] -> leave(x)
	:: else ->
		member[x] = true;
		found[x] = REACHES(x);
		agreed[x] = 0;
		proposed[x] = 0
	fi
}

inline read(i)
{
	must((applied[i] & has[linked[i]]) == applied[i], applied_what_the_node_lacks);
	applied[i] = has[linked[i]]
}

/* Member i connects to server x, and each to what the other one knows. */
inline connect(i, x)
{
	if
	:: incarnation[x] < known[i] -> leave(x)
	/* the first that it hears of this server, which comes from the first incarnation */
#ifndef ONLY_POSITIONS
	:: incarnation[x] > known[i] && known[i] > 1 -> leave(x)
#endif
	:: incarnation[x] > known[i] && POSITION(applied[i]) > found[x] -> leave(x)
	:: else ->
		known[i] = incarnation[x];
		linked[i] = x;
		read(i)
	fi
}

init {
	atomic {
		member[0] = true;
		standby[1] = true;
		standby[2] = true;
		incarnation[0] = 1; incarnation[1] = 1; incarnation[2] = 1;
		known[0] = 1; known[1] = 1;
		vouched[0] = 1; vouched[1] = 1;
		linked[0] = SERVERS; linked[1] = SERVERS
	};
	do
	/* a user writes */
	:: atomic { ACTS(0) && writes > 0 -> writes--; has[0] = has[0] | (1 << writes) }
	/* a user writes */
	:: atomic { ACTS(1) && writes > 0 -> writes--; has[1] = has[1] | (1 << writes) }
	:: atomic { !standby[1] && !member[1] && !gone[1] && proposed[1] == 0 && times > 0 -> times--; proposed[1] = incarnation[1] + 1; less[1] = false }
	:: atomic { proposed[1] != 0 && !(agreed[1] & 1) -> ask(0, 1) }
	:: atomic { proposed[1] != 0 && !(agreed[1] & 2) -> ask(1, 1) }
	:: atomic { proposed[1] != 0 && ENOUGH(1) -> decide(1) }
	:: atomic { standby[1] -> standby[1] = false }
	/* a standby replays what its primary has */
	:: atomic { standby[1] && !gone[0] && has[1] != has[0] -> has[1] = has[0] }
	/* a user writes */
	:: atomic { ACTS(2) && writes > 0 -> writes--; has[2] = has[2] | (1 << writes) }
	:: atomic { !standby[2] && !member[2] && !gone[2] && proposed[2] == 0 && times > 0 -> times--; proposed[2] = incarnation[2] + 1; less[2] = false }
	:: atomic { proposed[2] != 0 && !(agreed[2] & 1) -> ask(0, 2) }
	:: atomic { proposed[2] != 0 && !(agreed[2] & 2) -> ask(1, 2) }
	:: atomic { proposed[2] != 0 && ENOUGH(2) -> decide(2) }
	:: atomic { standby[2] && !standby[1] -> standby[2] = false }
	/* a standby replays what its primary has */
	:: atomic { standby[2] && !gone[0] && has[2] != has[0] -> has[2] = has[0] }
	:: atomic { linked[0] == SERVERS && ACTS(0) -> connect(0, 0) }
	:: atomic { linked[0] == SERVERS && ACTS(1) -> connect(0, 1) }
	:: atomic { linked[0] == SERVERS && ACTS(2) -> connect(0, 2) }
	:: atomic { linked[0] != SERVERS && applied[0] != has[linked[0]] -> read(0) }
	:: atomic { linked[0] != SERVERS -> linked[0] = SERVERS }
	:: atomic { linked[1] == SERVERS && ACTS(0) -> connect(1, 0) }
	:: atomic { linked[1] == SERVERS && ACTS(1) -> connect(1, 1) }
	:: atomic { linked[1] == SERVERS && ACTS(2) -> connect(1, 2) }
	:: atomic { linked[1] != SERVERS && applied[1] != has[linked[1]] -> read(1) }
	:: atomic { linked[1] != SERVERS -> linked[1] = SERVERS }
	:: else -> break
	od
}
