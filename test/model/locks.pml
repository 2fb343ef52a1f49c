/*
 * locks.pml
 *		Commits on two nodes that write the same rows and wait for each other.
 *
 * On each node two clients write rows, one or two of three and in any order, and
 * commit; the commit waits, its rows locked, until the other node has it.  That
 * one's worker applies transactions in the order of commits.  A row that is
 * locked there by a commit that itself waits is put aside: kept durably, and
 * applied when it is free.  Nobody gives up a wait here: every run has to end
 * with all commits acknowledged.
 *
 * Locks of workers are not modelled: a worker that cannot have all of its rows
 * gives back those it has (lock_timeout) and begins again.
 */
#define CLIENTS		4			/* 0 and 1 on node 0; 2 and 3 on node 1 */
#define ROWS		3
#define NODE(i)		((i) / 2)
#define OTHER(m)	(1 - (m))
#define NOBODY		CLIENTS

mtype = { open, blocked, waiting, done };

mtype state[CLIENTS];
byte held[CLIENTS];				/* rows, a bit each */
byte wants[CLIENTS];			/* the row it is blocked on */
byte pos[CLIENTS];				/* of its commit in the node's WAL */

byte holder[2 * ROWS];			/* by node and row: a client, or NOBODY */
byte wal[4];					/* by node and position: rows of a transaction */
byte wal_end[2];
byte applied[2];				/* by node: of the other's WAL */
byte aside[2];					/* by node: rows with a change put aside */

#define HOLDER(m, r)	holder[(m) * ROWS + (r)]
#define WAL(m, k)		wal[(m) * 2 + (k) - 1]
#define HAS(set, r)		(((set) >> (r)) & 1)

/* The names say what is wrong when an assertion fails. */
hidden byte commits_wait_for_each_other, put_aside_for_ever;
hidden byte r;

#define WAITS(i)		(state[i] == waiting)
#ifdef NOTHING_PUT_ASIDE
#define IS_IN_THE_WAY(m, h)	false
#else
#ifdef DIRECT_BLOCKERS_ONLY
#define IS_IN_THE_WAY(m, h)	WAITS(h)
#else
/* or waits for a row of one that waits */
#define IS_IN_THE_WAY(m, h)	(WAITS(h) || (state[h] == blocked && HOLDER(m, wants[h]) != NOBODY && WAITS(HOLDER(m, wants[h]))))
#endif
#endif

/* Can the worker do without the row's lock for now? */
#define IS_FREE(m, r)	(HOLDER(m, r) == NOBODY)
#define PASSES(m, r)	(!HAS(WAL(OTHER(m), applied[m] + 1), r) || IS_FREE(m, r) || IS_IN_THE_WAY(m, HOLDER(m, r)))

/* The end of a transaction. */
inline let_go(i)
{
	for (r : 0 .. ROWS - 1) {
		if
		:: HOLDER(NODE(i), r) == i -> HOLDER(NODE(i), r) = NOBODY
		:: else
		fi
	}
	r = 0;
	held[i] = 0;
	wants[i] = 0;
	state[i] = done
}

inline take(i, row)
{
	if
	:: IS_FREE(NODE(i), row) ->
		HOLDER(NODE(i), row) = i;
		held[i] = held[i] | (1 << row);
		wants[i] = 0;
		state[i] = open
	:: else ->
		wants[i] = row;
		state[i] = blocked
	fi
}

#define HOLDS_ONE(i)	(held[i] == 1 || held[i] == 2 || held[i] == 4)
#define HAS_BEGUN(i)	(held[i] != 0 || state[i] != open)
#define MAY_TAKE(i)		(state[i] == open && (HOLDS_ONE(i) || (held[i] == 0 && (i % 2 == 0 || HAS_BEGUN(i - 1)))))

proctype Client(byte i)
{
end:
	do
	/* another row; of two clients that have done nothing yet the first begins, they are alike */
	:: d_step { MAY_TAKE(i) && !HAS(held[i], 0) -> take(i, 0) }
	:: d_step { MAY_TAKE(i) && !HAS(held[i], 1) -> take(i, 1) }
	:: d_step { MAY_TAKE(i) && !HAS(held[i], 2) -> take(i, 2) }
	:: d_step { state[i] == blocked && IS_FREE(NODE(i), wants[i]) -> take(i, wants[i]) }
	/* PostgreSQL's deadlock detector: two clients of a node have what the other wants */
	:: d_step {
			state[i] == blocked && HOLDER(NODE(i), wants[i]) != NOBODY && state[HOLDER(NODE(i), wants[i])] == blocked &&
			HOLDER(NODE(i), wants[HOLDER(NODE(i), wants[i])]) == i ->
			let_go(i)
		}
	/* the commit begins to wait */
	:: d_step {
			state[i] == open && held[i] != 0 ->
			wal_end[NODE(i)]++;
			WAL(NODE(i), wal_end[NODE(i)]) = held[i];
			pos[i] = wal_end[NODE(i)];
			state[i] = waiting
		}
	/* the other node has it */
	:: d_step { state[i] == waiting && applied[OTHER(NODE(i))] >= pos[i] -> let_go(i) }
	od
}

/* On node m, for the other node's WAL. */
proctype Worker(byte m)
{
end:
	do
	:: d_step {
			applied[m] < wal_end[OTHER(m)] && PASSES(m, 0) && PASSES(m, 1) && PASSES(m, 2) ->
			for (r : 0 .. ROWS - 1) {
				if
				:: HAS(WAL(OTHER(m), applied[m] + 1), r) && !IS_FREE(m, r) -> aside[m] = aside[m] | (1 << r)
				:: else
				fi
			}
			r = 0;
			applied[m]++
		}
	:: d_step { HAS(aside[m], 0) && IS_FREE(m, 0) -> aside[m] = aside[m] & 6 }
	:: d_step { HAS(aside[m], 1) && IS_FREE(m, 1) -> aside[m] = aside[m] & 5 }
	:: d_step { HAS(aside[m], 2) && IS_FREE(m, 2) -> aside[m] = aside[m] & 3 }
	od
}

/* Never takes a step as long as all is well. */
proctype Properties()
{
end:
	do
	:: atomic { timeout && (WAITS(0) || WAITS(1) || WAITS(2) || WAITS(3)) -> assert(commits_wait_for_each_other) }
	:: atomic { timeout && (aside[0] != 0 || aside[1] != 0) -> assert(put_aside_for_ever) }
	od
}

init
{
	byte i;

	atomic {
		for (i : 0 .. 2 * ROWS - 1) {
			holder[i] = NOBODY
		}
		for (i : 0 .. CLIENTS - 1) {
			state[i] = open;
			run Client(i)
		}
		run Worker(0);
		run Worker(1);
		run Properties()
	}
}
