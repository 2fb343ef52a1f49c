/*
 * return.pml
 *		A node whose storage is set back comes back under a new id, and no write of
 *		either time passes silently for newer than one it never saw, whoever has it.
 *
 * One row, three nodes.  Node A writes it; what it has written reaches P and Q,
 * each for itself, and either may be cut off from A, or from the other one, for as
 * long as it likes.  A's storage is set back to what it once was, perhaps twice, and
 * its server started; it may write before anybody has told it, and P and Q may have
 * that, and P writes above it.  A version is what its clock claims (for A's ids and
 * for P: the number of the last write it knows) and, as nobody but the model can
 * know, the writes it really was made with or in a logged conflict with: "seen".
 * Wherever a version takes the place of another one because its clock says so, it has
 * to have seen that one.
 *
 * Counters are wall time, so they go on.  Each write is a heartbeat, too.
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
	byte safe;					/* all of its own up to this counter are in there */
	byte starts					/* of which starts of its server it knows: a set */
}

Storage a;
Storage snapshot;
bool has_snapshot;
bool returning;					/* it knows that it was set back */
bool returned;					/* it is its second id */
byte boundary;					/* which of its starts was the first after that */
byte donor;						/* who has told it */

/* What A's server found at each start, and the counter that it began at */
byte below[STARTS];
byte from[STARTS];
byte line[STARTS];				/* it, and those that its storage had been through: a set */

/* P and Q, and then what A has become, whose row is in its storage */
Version row[2];
byte heard[3];					/* the counter of the heartbeat that came last */
byte starts[3];					/* of which starts of A's server it knows, itself or from another one */
bool linked[2];
bool knows[3];					/* what A has become */

byte now;						/* wall time, and the number of the next write */
byte started;					/* starts so far */
byte writes = WRITES;

/* The names say what is wrong when an assertion fails. */
hidden byte overwritten_unseen, members_differ_at_last;
hidden byte k;
hidden byte lost;				/* a start; STARTS: none */
byte told;						/* writes of which a person has been told */
hidden Version arriving;

#define CLAIMS(x, y)	(x.old >= y.old && x.new >= y.new && x.peer >= y.peer)
#define HAS_SEEN(x, y)	(((x.seen | told) & y.seen) == y.seen)
#define LATER(x, y)		(x > y -> x : y)
/* What was heard is not in what that start found, and was before it. */
#define LACKS(start, counter)	(below[start] < counter && counter < from[start])

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

inline copy_version(x, y)
{
	y.old = x.old; y.new = x.new; y.peer = x.peer; y.seen = x.seen
}

inline copy_storage(x, y)
{
	copy_version(x.row, y.row);
	y.safe = x.safe;
	y.starts = x.starts
}

/* The server starts: what it finds is noted. */
inline start_server()
{
	now++;
	below[started] = a.safe;
	from[started] = now;
#ifdef LAST_START_ONLY
	a.starts = 0;
#endif
	a.starts = a.starts | (1 << started);
	line[started] = a.starts;
	started++;
	linked[0] = false;
	linked[1] = false
}

/* Sets the first of these starts that shows that A was set back, given what was heard of it. */
inline find_lost(set, counter)
{
	lost = 0;
	do
	:: lost < STARTS && !((set & (1 << lost)) && LACKS(lost, counter)) -> lost++
	:: else -> break
	od
}

/* A peer connects and compares. */
inline connect(i)
{
#ifdef NOT_COMPARED
	lost = STARTS;
#else
	find_lost(a.starts, heard[i]);
#endif
	if
	:: !returned && lost < STARTS ->
		returning = true;
		boundary = lost;
		donor = i;
		linked[0] = false;
		linked[1] = false
	:: else ->
		starts[i] = starts[i] | a.starts;
		linked[i] = true
	fi
}

/* What was written since the boundary is the second id's, for who knows that: former.c */
inline rename(x)
{
	if
	:: returned && x.old > from[boundary] ->
		x.new = LATER(x.new, x.old);
		x.old = below[boundary]
	:: else
	fi
}

inline rename_known(i, x)
{
#ifdef NOT_STAMPED_ANEW
	skip
#else
	if
#ifdef RENAMED_BY_ITSELF_ONLY
	:: knows[i] && i == 2 -> rename(x)
#else
	:: knows[i] -> rename(x)
#endif
	:: else
	fi
#endif
}

/* ... but those of which it is known what A has become since */
inline find_uncovered(i, counter)
{
	lost = 0;
	do
	:: lost < STARTS && !((starts[i] & (1 << lost)) && LACKS(lost, counter) && !(knows[i] && (line[lost] & (1 << boundary)))) -> lost++
	:: else -> break
	od
}

/*
 * Member "i" reads what "j" has.  First it hears of which starts of A that knows, and
 * compares what either has heard: what was lost may be there, or here, as what is newer.
 * Then it reads nothing until it knows what A has become.  Where A has come back
 * without having had that start, a person is told of the rows.
 */
inline read(i, j, x, y)
{
	starts[i] = starts[i] | starts[j];
	knows[i] = knows[i] || knows[j];
	lost = STARTS;
#ifndef NOT_ASKED
	find_uncovered(i, heard[i]);
	if
	:: lost == STARTS -> find_uncovered(i, heard[j])
	:: else
	fi;
#endif
	if
	:: lost < STARTS && !knows[i]
	:: else ->
#ifndef NOBODY_TOLD
		told = told | (lost < STARTS -> x.seen ^ y.seen : 0);
#endif
		rename_known(i, x);
		copy_version(y, arriving);
#ifndef RENAMED_WHERE_KEPT
		rename_known(i, arriving);
#endif
		join(arriving, x);
		/* heartbeats tell */
		heard[i] = LATER(heard[i], heard[j])
	fi
}

/* A takes its second id.  What it wrote since the boundary is that id's; then what its donor has comes. */
inline come_back()
{
	returning = false;
	returned = true;
	knows[donor] = true;
	knows[2] = true;
	starts[2] = a.starts;
	heard[2] = a.safe;
	if
	:: donor == 0 -> read(2, 0, a.row, row[0])
	:: else -> read(2, 1, a.row, row[1])
	fi;
	a.starts = 0;
	a.safe = 0;
}

/* The stream of A */
inline stream(i)
{
	heard[i] = a.safe;
	join(a.row, row[i])
}

/* What A has become reads, too, and is read. */
inline exchange(i)
{
	read(i, 2, row[i], a.row);
	read(2, i, a.row, row[i])
}

inline write_a()
{
	now++;
	writes--;
	a.row.seen = a.row.seen | (1 << writes);
	if
	:: returned -> a.row.new = now
	:: else -> a.row.old = now; a.safe = now
	fi
}

init {
	atomic { start_server() };
	do
	:: atomic { writes > 0 && !returning -> write_a() }
	:: atomic { writes > 0 -> now++; writes--; row[0].seen = row[0].seen | (1 << writes); row[0].peer = now }
	:: atomic { !returned && !returning && !linked[0] -> connect(0) }
	:: atomic { !returned && !returning && !linked[1] -> connect(1) }
	:: atomic { !returned && linked[0] -> stream(0); join(row[0], a.row) }
	:: atomic { !returned && linked[1] -> stream(1) }
	:: atomic { returned -> exchange(0) }
	:: atomic { returned -> exchange(1) }
	/* P writes, and Q reads it; what they have of a dropped node they compare, too: copy/dropped.c */
	:: atomic { read(1, 0, row[1], row[0]) }
	:: atomic { returned -> read(0, 1, row[0], row[1]) }
	:: atomic { !returned && !returning && !has_snapshot -> copy_storage(a, snapshot); has_snapshot = true }
	:: atomic { !returned && has_snapshot && started < STARTS -> copy_storage(snapshot, a); returning = false; start_server() }
	:: atomic { !returned && started < STARTS -> start_server() }
	:: atomic { returning -> come_back() }
	:: atomic { writes == 0 -> break }
	od;
	/* at last: links are healed */
	atomic {
		if
		:: !returned && !returning && !linked[0] -> connect(0)
		:: else
		fi;
		if
		:: !returned && !returning && !linked[1] -> connect(1)
		:: else
		fi;
#ifndef NEVER_BACK
		if
		:: returning -> come_back()
		:: else
		fi;
#endif
		if
		:: returned -> exchange(0); exchange(1); exchange(0)
		:: !returned && linked[0] && linked[1] -> stream(0); stream(1); read(1, 0, row[1], row[0]); join(row[0], a.row)
		:: else
		fi;
		must(HAS_SEEN(row[1], a.row) && HAS_SEEN(row[0], a.row) && HAS_SEEN(row[1], row[0]), members_differ_at_last)
	}
}
