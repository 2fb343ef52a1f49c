/*
 * return.pml
 *		A node whose storage is set back comes back under a new id, and no write of
 *		either time passes silently for newer than one it never saw.
 *
 * One row, three nodes.  Node A writes it; what it has written reaches P and Q,
 * each for itself.  Its storage is set back to what it once was, perhaps twice,
 * and its server started; it may write before anybody has told it.  A version is
 * what its clock claims (for A's ids and for P: the number of the last write it
 * knows) and, as nobody but the model can know, the writes it really was made
 * with or in a logged conflict with: "seen".  Wherever a version takes the place of
 * another one because its clock says so, it has to have seen that one.
 *
 * That a peer knows what the other one has heard of A is taken for granted here:
 * heartbeats tell it (repl_ml.known_of).  Counters are wall time, so they go on.
 */
#ifndef WRITES
#define WRITES		3			/* of all nodes together; each is a bit of "seen" */
#endif
#ifndef STARTS
#define STARTS		3			/* of A's server, the first one included */
#endif

typedef Version {
	byte old;					/* the last write of A's first id it claims to know */
	byte new;					/* ... of its second id */
	byte peer;					/* ... of P */
	byte seen					/* a set of writes */
}

/* A's storage */
typedef Storage {
	Version row;
	byte count;					/* the number of its last heartbeat: one a write */
	byte safe;					/* all of its own up to this counter are in there */
	byte starts;				/* how many starts of its server it knows of ... */
	byte start[STARTS];			/* ... which they were ... */
	byte found[STARTS];			/* ... the heartbeat each found ... */
	byte below[STARTS];			/* ... its "safe" then ... */
	byte from[STARTS]			/* ... and the counter that each began at */
}

Storage a;
Storage snapshot;
bool has_snapshot;
bool returning;					/* it knows that it was set back */
bool returned;					/* it is its second id */
byte boundary;					/* which of its starts was the first after that */

/* P and Q */
Version row[2];
byte heard[2];					/* the heartbeat that came last */
byte known[2];					/* the start of A that it came from */
bool linked[2];

byte now;						/* wall time, and the number of the next write */
byte started;					/* starts so far */
byte writes = WRITES;

/* The names say what is wrong when an assertion fails. */
hidden byte overwritten_unseen, members_differ_at_last;
hidden byte k;

#define CLAIMS(x, y)	(x.old >= y.old && x.new >= y.new && x.peer >= y.peer)
#define HAS_SEEN(x, y)	((x.seen & y.seen) == y.seen)
#define LATER(x, y)		(x > y -> x : y)

inline must(what, name)
{
	if
	:: what
	:: else -> assert(name)
	fi
}

/* Joins x into y: as converge/row.c does; a conflict is logged, and so has both. */
inline join(x, y)
{
	if
	:: CLAIMS(x, y) ->
		must(HAS_SEEN(x, y), overwritten_unseen);
		y.seen = x.seen
	:: !CLAIMS(x, y) && CLAIMS(y, x) ->
		must(HAS_SEEN(y, x), overwritten_unseen)
	:: else ->
		y.seen = y.seen | x.seen
	fi;
	y.old = LATER(x.old, y.old);
	y.new = LATER(x.new, y.new);
	y.peer = LATER(x.peer, y.peer)
}

inline copy_storage(x, y)
{
	y.row.old = x.row.old; y.row.new = x.row.new; y.row.peer = x.row.peer; y.row.seen = x.row.seen;
	y.count = x.count;
	y.safe = x.safe;
	y.starts = x.starts;
	for (k : 0 .. STARTS - 1) {
		y.start[k] = x.start[k];
		y.found[k] = x.found[k];
		y.below[k] = x.below[k];
		y.from[k] = x.from[k]
	}
	k = 0
}

/* The server starts: what it finds is noted. */
inline start_server()
{
	started++;
	now++;
#ifdef LAST_START_ONLY
	a.starts = 0;
#endif
	a.start[a.starts] = started;
	a.found[a.starts] = a.count;
	a.below[a.starts] = a.safe;
	a.from[a.starts] = now;
	a.starts++;
	linked[0] = false;
	linked[1] = false
}

#ifdef ONLY_OWN_WORD
#define HEARD(i)	heard[i]
#else
#define HEARD(i)	LATER(heard[0], heard[1])
#endif

/* A peer connects and compares: the first start that it does not know must have found what was heard. */
inline connect(i)
{
	k = 0;
	do
	:: k < a.starts && a.start[k] <= known[i] -> k++
	:: else -> break
	od;
	if
#ifndef NOT_COMPARED
	:: !returned && k < a.starts && a.found[k] < HEARD(i) ->
		returning = true;
		boundary = k;
		linked[0] = false;
		linked[1] = false
#endif
	:: else ->
		known[i] = a.start[a.starts - 1];
		linked[i] = true
	fi;
	k = 0
}

/* A takes its second id.  What it wrote since the boundary is that id's; then all that the group has comes. */
inline come_back()
{
#ifndef NOT_STAMPED_ANEW
	if
	:: a.row.old > a.from[boundary] ->
		a.row.new = a.row.old;
		a.row.old = a.below[boundary]
	:: else
	fi;
#endif
	/* what P and Q have of a dropped node they compare, too: copy/dropped.c */
	join(row[0], row[1]);
	join(row[1], row[0]);
	join(row[0], a.row);
	returning = false;
	returned = true;
	boundary = 0
}

inline write_a()
{
	now++;
	writes--;
	a.row.seen = a.row.seen | (1 << writes);
	if
	:: returned -> a.row.new = now
	:: else -> a.row.old = now; a.safe = now
	fi;
	a.count++
}

init {
	atomic { start_server() };
	do
	:: atomic { writes > 0 && !returning -> write_a() }
	:: atomic { writes > 0 -> now++; writes--; row[0].seen = row[0].seen | (1 << writes); row[0].peer = now }
	:: atomic { !returning && !linked[0] -> connect(0) }
	:: atomic { !returning && !linked[1] -> connect(1) }
	/* the stream: what A has, and its heartbeat */
	:: atomic { linked[0] -> join(a.row, row[0]); heard[0] = a.count; join(row[0], a.row) }
	:: atomic { linked[1] -> join(a.row, row[1]); heard[1] = a.count }
	/* P and Q */
	:: atomic { join(row[0], row[1]) }
	:: atomic { !returned && !returning && !has_snapshot -> copy_storage(a, snapshot); has_snapshot = true }
	:: atomic { !returned && has_snapshot && started < STARTS -> copy_storage(snapshot, a); returning = false; start_server() }
	:: atomic { !returned && started < STARTS -> start_server() }
	:: atomic { returning -> come_back() }
	:: atomic { writes == 0 -> break }
	od;
	/* at last: links are healed */
	atomic {
		if
		:: !returning && !linked[0] -> connect(0)
		:: else
		fi;
		if
		:: !returning && !linked[1] -> connect(1)
		:: else
		fi;
#ifndef NEVER_BACK
		if
		:: returning -> come_back()
		:: else
		fi;
#endif
		if
		:: linked[0] || returned -> join(a.row, row[0])
		:: else
		fi;
		join(row[0], row[1]);
		if
		:: linked[1] || returned -> join(a.row, row[1])
		:: else
		fi;
		must(HAS_SEEN(row[1], a.row), members_differ_at_last)
	}
}
