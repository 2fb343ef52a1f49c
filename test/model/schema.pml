/*
 * schema.pml
 *		Changes of the schema: each node runs all of them, in one order, and reads no row whose
 *		table it does not have yet.
 *
 * A node makes a change when it ran the lease, which comes when it ran run all that were made
 * before.  Its WAL ran changes of its own, rows of its clients, and "schema k"
 * for each change of another's that it ran run, written before that is visible.  Every other
 * node reads it from the beginning to the end, and may fail at a change: that is tried again,
 * or parked and tried again later.  At "schema k" it waits until it ran run, or parked, k.
 *
 * README says how to run this, and what each -D switches off.
 */
#ifdef PARKING
#define PARKED		1
#endif
#ifndef N
#define N			3
#endif
#ifndef CHANGES
#define CHANGES		2
#endif
#ifndef ROWS
#define ROWS		1			/* so many are written, by whichever node */
#endif
#ifndef FAILURES
#define FAILURES	0			/* of a change that was about to be run: nothing of it stays but words */
#endif
#ifndef PARKED
#define PARKED		0			/* so many are parked */
#endif
#define LENGTH		(2 * CHANGES + ROWS + FAILURES)

#define BIT(k)			(1 << ((k) - 1))
#define UP_TO(k)		(BIT((k) + 1) - 1)
#define SAID			10		/* in a WAL: a change that was run there */
#define ROW				20		/* ... of tables as so many changes have made them */
#define WAL(i, p)		wal[(i) * LENGTH + (p)]
#define READ(i, j)		seen[(i) * N + (j)]
#define SETTLED(i)		(ran[i] | parked[i])

byte made;						/* changes, by whichever nodes */
byte maker[CHANGES + 1];			/* who ran made it, plus 1 */
byte rows = ROWS;
byte failures = FAILURES;
byte parks = PARKED;

byte wal[N * LENGTH];
byte end_of[N];
byte seen[N * N];				/* of j's WAL by i */
byte ran[N];					/* changes that it ran run */
byte parked[N];
byte to_say[N];					/* ran been run, and not been said */

hidden byte k;
hidden byte e;

#define CHECK(holds, name)	if :: holds -> skip :: else -> assert(name) fi

/* The names say what is wrong when an assertion fails. */
hidden byte row_of_an_unknown_table, changes_out_of_order, made_without_the_former;

inline write(i, what)
{
	WAL(i, end_of[i]) = what;
	end_of[i]++
}

/* A client's row is of tables as they are here: those of the changes up to the first that is lacking. */
inline insert(i)
{
	k = 0;
	do
	:: k < CHANGES && (ran[i] & BIT(k + 1)) -> k++
	:: else -> break
	od;
	k = ROW + k;
	write(i, k);
	rows--
}

inline make(i)
{
	made++;
	CHECK((ran[i] & UP_TO(made - 1)) == UP_TO(made - 1), made_without_the_former);
	maker[made] = i + 1;
	ran[i] = ran[i] | BIT(made);
	write(i, made)
}

inline run_change(i, number)
{
	CHECK((UP_TO(number - 1) & ~SETTLED(i)) == 0, changes_out_of_order);
	ran[i] = ran[i] | BIT(number);
	parked[i] = parked[i] & ~BIT(number);
#ifdef SAID_LATER
	to_say[i] = to_say[i] | BIT(number)
#else
	k = SAID + number;
	write(i, k)
#endif
}

#ifdef NO_LEASE
#define MAY_MAKE(i)		true
#else
#define MAY_MAKE(i)		(ran[i] == UP_TO(made))
#endif
#ifdef NOT_AWAITED
#define PASSES(i, number)	true
#else
#define PASSES(i, number)	(SETTLED(i) & BIT(number))
#endif
#define NEXT(i, j)		(READ(i, j) < end_of[j] -> WAL(j, READ(i, j)) : 0)
#define FIRST(m)		((m) & 1 -> 1 : ((m) & 2 -> 2 : 3))
#define IS_CHANGE(e)	((e) > 0 && (e) < SAID)
#define IS_SAID(e)		((e) > SAID && (e) < ROW)
#define ENDS(j)			(made == CHANGES && rows == 0 && ran[j] == UP_TO(CHANGES) && to_say[j] == 0)

/* clients of node i */
proctype Clients(byte i)
{
	do
	:: d_step { made < CHANGES && MAY_MAKE(i) -> make(i) }
	:: d_step { rows > 0 -> insert(i) }
	:: d_step { to_say[i] -> e = SAID + FIRST(to_say[i]); write(i, e); to_say[i] = to_say[i] & (to_say[i] - 1) }
	:: made == CHANGES && rows == 0 && ENDS(i) -> break
	od
}

/* node i reads the WAL of node j */
proctype Reader(byte i; byte j)
{
	do
	:: d_step { IS_CHANGE(NEXT(i, j)) ->
		if
		:: ran[i] & BIT(NEXT(i, j)) -> skip
		:: else -> e = NEXT(i, j); run_change(i, e)
		fi;
		READ(i, j)++ }
	:: d_step { IS_CHANGE(NEXT(i, j)) && !(ran[i] & BIT(NEXT(i, j))) && failures > 0 ->
		failures--; e = SAID + NEXT(i, j); write(i, e) }
	:: d_step { IS_CHANGE(NEXT(i, j)) && !(ran[i] & BIT(NEXT(i, j))) && parks > 0 ->
		parks--; parked[i] = parked[i] | BIT(NEXT(i, j)); READ(i, j)++ }
	:: d_step { IS_SAID(NEXT(i, j)) && PASSES(i, NEXT(i, j) - SAID) -> READ(i, j)++ }
	:: d_step { NEXT(i, j) >= ROW ->
		/* where something is parked rows that do not fit are parked, too */
		CHECK(parked[i] || (UP_TO(NEXT(i, j) - ROW) & ~ran[i]) == 0, row_of_an_unknown_table);
		READ(i, j)++ }
	:: d_step { parked[i] -> e = FIRST(parked[i]); run_change(i, e) }
	:: ENDS(j) && NEXT(i, j) == 0 && parked[i] == 0 -> break
	od
}

init
{
	atomic {
		run Clients(0); run Clients(1); run Clients(2);
		run Reader(0, 1); run Reader(0, 2); run Reader(1, 0); run Reader(1, 2); run Reader(2, 0); run Reader(2, 1)
	}
}
