/*
 * lease_fair.pml
 *		Who wants to write a strong table comes to write it, whoever else wants to.
 *
 * No faults here: lease.pml has them, and is about what is written.  Here clients
 * come without end, on all nodes.  The lease is on one node, and carries the line of
 * nodes that have asked for it.  As soon as somebody stands in line, the holder
 * lets in whoever waits there already, and nobody else; when they have ended, the
 * first in line gets it, and whoever waits here stands behind the others.  Node 0
 * is the preferred writer: between two others it has a turn, and it gets the lease
 * back when nobody stands in line.
 *
 * Claimed is: whoever waits writes at last, if no process that can go on stands
 * still for ever.  In steps: a node waits for at most as many turns as there are
 * nodes before it in line, and as many of node 0, and each of them for those who
 * waited when it began.
 */
#ifndef N
#define N			3
#endif
#define CLIENTS		4			/* the first two on node 0, the others on one each */
#define HOME(c)		((c) < 2 -> 0 : (c) - 1)
#define PREFERRED	0

mtype = { away, waits, writes };

mtype client[CLIENTS];
bool let_in[CLIENTS];			/* may begin, though somebody stands in line */
byte holder;
bool closing;					/* somebody stands in line: no others begin */
bool others_turn;				/* the last turn was not the preferred node's */
chan line = [N] of { byte };
bool in_line[N];
byte watched;
hidden byte c;

#define WAITS(i)	((HOME(0) == i && client[0] == waits) || (HOME(1) == i && client[1] == waits) || \
					 (HOME(2) == i && client[2] == waits) || (HOME(3) == i && client[3] == waits))
#define MAY_BEGIN(c) (holder == HOME(c) && (!closing || let_in[c]))
#define GOES_ON(c)	(client[c] == writes || let_in[c])
#define TURN_IS_OVER (!GOES_ON(0) && !GOES_ON(1) && !GOES_ON(2) && !GOES_ON(3))

/* Whoever waits here now shares this turn; who comes later does not. */
inline begin_turn()
{
	for (c : 0 .. CLIENTS - 1) {
		let_in[c] = HOME(c) == holder && client[c] == waits
	}
	c = 0
}

proctype Client(byte me)
{
	do
	:: client[me] == away -> client[me] = waits
	:: client[me] == away -> skip
	:: atomic { client[me] == waits && MAY_BEGIN(me) -> client[me] = writes; let_in[me] = false }
	:: client[me] == writes -> client[me] = away
	od
}

inline give(to)
{
	holder = to;
	others_turn = to != PREFERRED;
	closing = nempty(line) || (WAITS(PREFERRED) && to != PREFERRED);
	begin_turn()
}

proctype Node(byte i)
{
	byte next;

	do
	/* it asks for the lease */
#ifdef LAST_COMES_FIRST
	:: atomic { holder != i && WAITS(i) && !in_line[i] && i != PREFERRED && len(line) == 1 -> line ? next; line ! i; line ! next; next = 0; in_line[i] = true }
	:: atomic { holder != i && WAITS(i) && !in_line[i] && i != PREFERRED && empty(line) -> line ! i; in_line[i] = true }
#else
	:: atomic { holder != i && WAITS(i) && !in_line[i] && i != PREFERRED -> line ! i; in_line[i] = true }
#endif
	/* the holder hears that somebody stands in line, or that the preferred node waits */
	:: atomic {
			holder == i && !closing && (nempty(line) || (i != PREFERRED && WAITS(PREFERRED))) ->
			closing = true;
			begin_turn()
		}
	/* its turn is over */
#ifdef HOLDER_LETS_IN
	:: atomic { holder == i && closing && TURN_IS_OVER && WAITS(i) -> begin_turn() }
#endif
#ifdef PREFERRED_ALWAYS
	:: atomic { holder == i && closing && TURN_IS_OVER && WAITS(PREFERRED) -> give(PREFERRED) }
	:: atomic { holder == i && closing && TURN_IS_OVER && !WAITS(PREFERRED) && nempty(line) -> line ? next; in_line[next] = false; give(next); next = 0 }
#else
	:: atomic { holder == i && closing && TURN_IS_OVER && others_turn && WAITS(PREFERRED) -> give(PREFERRED) }
	:: atomic {
			holder == i && closing && TURN_IS_OVER && !(others_turn && WAITS(PREFERRED)) && nempty(line) ->
			line ? next;
			in_line[next] = false;
			give(next);
			next = 0
		}
#endif
	/* nobody waits anywhere: home */
	:: atomic { holder == i && i != PREFERRED && TURN_IS_OVER && empty(line) && !WAITS(i) -> give(PREFERRED) }
	/* whoever it had closed for has had a turn */
	:: atomic { holder == i && closing && TURN_IS_OVER && empty(line) && !(others_turn && WAITS(PREFERRED)) -> closing = false }
	od
}

ltl who_waits_comes_to_write { [] ((client[watched] == waits) -> <> (client[watched] == writes)) }

init
{
	byte i;

	atomic {
		for (i : 0 .. CLIENTS - 1) {
			client[i] = away
		}
		if
		:: watched = 0
		:: watched = 1
		:: watched = 2
		:: watched = 3
		fi;
		for (i : 0 .. CLIENTS - 1) {
			run Client(i)
		}
		for (i : 0 .. N - 1) {
			run Node(i)
		}
		i = 0
	}
}
