/*
 * tenure.pml
 *		How the lease of strong tables comes from one node to another, as it is built:
 *		given by who has it, or voted for by all members, where nobody has it or a dropped
 *		node had.  (lease.pml is what is to come: without a dropped node, and with less.)
 *
 * Each node has a row, durably: the last tenure that it had or gave away, whose that is,
 * and the last round it has voted for.  Messages are facts, as in lease.pml: what a row
 * says may be read at any moment, or never.  A transaction counts the rows that it sees,
 * and gets the next number.  A person drops one node, whether it is down or not; the others
 * hear of it one after the other, let go of it, and compare what they have of it.
 *
 * README says how to run this, and what each -D switches off.
 */
/* other runs than the plain one, and those that a switch needs to be found in */
#if defined(RESTORED) || defined(TRUSTS_THE_GIVER) || defined(OWN_NOT_AWAITED) || \
	defined(VOTED_FOR_DROPPED)
#define CRASHES		0
#define RESTORES	1			/* a row goes back to what it was at first: a backup, a standby that is promoted */
#endif
#ifndef N
#define N			3
#endif
#ifndef TX
#define TX			2
#endif
#ifndef ROUNDS
#define ROUNDS		2
#endif
#ifndef TURNS
#define TURNS		3			/* tenures of a round: so many less one times it is given */
#endif
#ifndef CRASHES
#define CRASHES		1
#endif
#ifndef RESTORES
#define RESTORES	0
#endif

#define EPOCH(r, k)		((r) * TURNS + (k))
#define ROUND(e)		((e) / TURNS)
#define EPOCHS			EPOCH(ROUNDS + 1, 0)
#define BIT(i)			(1 << (i))
#define POP(m)			(((m) & 1) + (((m) >> 1) & 1) + (((m) >> 2) & 1))
#define ALL_NODES		(BIT(N) - 1)
#define HAS(m, i)		(((m) & BIT(i)) != 0)

/* ---- transactions ---- */

byte next;						/* so many have begun */
byte home[TX];					/* the node that committed it, plus 1 */
byte number[TX];
byte acks[TX];					/* who has it and has said so */
byte told;						/* those that were acknowledged */

/* ---- what a node has on its disk ---- */

byte promised[N];
byte epoch[N];
byte whose[N];					/* the node of this tenure, plus 1; 0: it knows of none */
byte rows[N];					/* transactions */
byte let_go[N];					/* dropped nodes that nothing comes of any more */
byte compared[N];				/* with whom it has compared what it has of them */
bool forgot[N];					/* it may have given away what it does not know of */

/* ---- and in its memory ---- */

bool holds[N];

/* ---- facts ---- */

byte candidate[ROUNDS + 1];		/* plus 1 */
byte voters[ROUNDS + 1];		/* the members when it stood, all of which have to vote */
byte votes[ROUNDS + 1];
byte gone[ROUNDS + 1];			/* the last holder the candidate had heard of, plus 1 */
byte begins_on[ROUNDS + 1];		/* what the voters know to be needed */
byte base[EPOCHS];				/* what has to be there before the tenure may be used */
byte dropped;
byte crashes = CRASHES;
byte restores = RESTORES;
byte kept_epoch[N];				/* what a row was, for who has given in memory only */
byte kept_whose[N];

hidden byte c;
hidden byte newest;
hidden byte of_whom;

/* The names say what is wrong when an assertion fails. */
hidden byte acknowledged_is_lost, number_is_given_twice;

#define OF_HOME(m, h)	(((m) & 1 && home[0] == (h) + 1 -> 1 : 0) | ((m) & 2 && home[1] == (h) + 1 -> 2 : 0))
#define MEMBERS(i)		(ALL_NODES & ~let_go[i])
/* Of these, the transactions of the node that is dropped: the others compare what they have of them. */
#define OF_DROPPED(i, m) (let_go[i] == 0 -> 0 : (HAS(let_go[i], 0) -> OF_HOME(m, 0) : OF_HOME(m, 1)))
#ifdef NOT_COMPARED
#define SETTLED(i)		true
#else
#define SETTLED(i)		(let_go[i] == 0 || ((compared[i] | BIT(i)) & MEMBERS(i)) == MEMBERS(i))
#endif
#ifdef BASE_NOT_AWAITED
#define IS_HERE(i)		true
#else
#define IS_HERE(i)		((base[epoch[i]] & ~rows[i] & ~OF_DROPPED(i, base[epoch[i]])) == 0)
#endif
#define OWN_ARE_TOLD(i)	((OF_HOME(rows[i], i) & ~told) == 0)

/* ---- clients ---- */

inline write(i)
{
	home[next] = i + 1;
	number[next] = POP(rows[i]) + 1;
	acks[next] = BIT(i);
	rows[i] = rows[i] | BIT(next);
	next++
}

inline acknowledge(t)
{
	told = told | BIT(t);
	for (c : 0 .. TX - 1) {
		if
		:: c != t && HAS(told, c) && number[c] == number[t] -> assert(number_is_given_twice)
		:: else
		fi
	}
	c = 0
}

#define ACKNOWLEDGE(t) \
	:: atomic { t < next && home[t] == i + 1 && !HAS(told, t) && 2 * POP(acks[t] & MEMBERS(i)) > POP(MEMBERS(i)) -> acknowledge(t) }

/* In the order of its home's WAL; a dropped node's no more. */
#define APPLY(t) \
	:: atomic { \
			t < next && home[t] != i + 1 && !HAS(rows[i], t) && !HAS(let_go[i], home[t] - 1) && !HAS(let_go[home[t] - 1], i) && \
			(t == 0 || home[0] != home[t] || HAS(rows[i], 0)) -> \
			rows[i] = rows[i] | BIT(t); \
			acks[t] = acks[t] | BIT(i) \
		}

/* ---- the lease ---- */

/* Its clients have ended, and a majority has what they wrote: with more nodes than here that matters. */
#define GIVE(j) \
	:: atomic { \
			i != j && whose[i] == i + 1 && !forgot[i] && promised[i] <= ROUND(epoch[i]) && OWN_ARE_TOLD(i) && \
			epoch[i] + 1 < EPOCH(ROUND(epoch[i]) + 1, 0) -> \
			base[epoch[i] + 1] = base[epoch[i]] | OF_HOME(rows[i], i); \
			kept_epoch[i] = epoch[i]; \
			kept_whose[i] = whose[i]; \
			epoch[i] = epoch[i] + 1; \
			whose[i] = j + 1; \
			holds[i] = false \
		}

#ifdef TRUSTS_THE_GIVER
#define MAY_TAKE(i)		true
#else
#define MAY_TAKE(i)		!forgot[i]
#endif

#ifdef TAKEN_AFTER_VOTE
#define IS_BOUND(i, e)	false
#else
#define IS_BOUND(i, e)	(promised[i] > ROUND(e))
#endif

/* It asks g, and g's row says that it is its. */
#define TAKE(g) \
	:: atomic { \
			g != i && whose[g] == i + 1 && !HAS(let_go[g], i) && epoch[g] > epoch[i] && !IS_BOUND(i, epoch[g]) && MAY_TAKE(i) -> \
			kept_epoch[i] = epoch[i]; \
			kept_whose[i] = whose[i]; \
			epoch[i] = epoch[g]; \
			whose[i] = i + 1; \
			forgot[i] = false \
		}

#define OPEN \
	:: atomic { \
			whose[i] == i + 1 && !forgot[i] && !holds[i] && IS_HERE(i) && SETTLED(i) -> \
			if \
			:: !HAS(dropped, i) && (told & ~rows[i]) != 0 -> assert(acknowledged_is_lost) \
			:: else \
			fi; \
			holds[i] = true \
		}

/* The last tenure that anybody of its members knows of. */
inline survey(i)
{
	newest = 0;
	of_whom = 0;
	for (c : 0 .. N - 1) {
		if
		:: HAS(MEMBERS(i), c) && epoch[c] > newest -> newest = epoch[c]; of_whom = whose[c]
		:: else
		fi
	}
	c = 0;
	newest = 0
}

#define IS_NOBODYS(w, i, candidate) ((w) == 0 || (w) == (candidate) + 1 || HAS(let_go[i], (w) - 1))

/* Its round is above all that members have voted for, as all are asked. */
#define IS_NEW(i, j, r)	(!HAS(MEMBERS(i), j) || promised[j] < (r))

#define STAND(r) \
	:: atomic { \
			candidate[r] == 0 && IS_NEW(i, 0, r) && IS_NEW(i, 1, r) && IS_NEW(i, 2, r) && !holds[i] && SETTLED(i) && (whose[i] != i + 1 || forgot[i]) -> \
			survey(i); \
			if \
			:: IS_NOBODYS(of_whom, i, i) -> \
				candidate[r] = i + 1; \
				gone[r] = of_whom; \
				promised[i] = r; \
				begins_on[r] = base[epoch[i]]; \
				voters[r] = MEMBERS(i); \
				votes[r] = BIT(i) \
			:: else \
			fi; \
			of_whom = 0 \
		}

#ifdef VOTED_FOR_DROPPED
#define NOT_FOR_DROPPED(i, cand) true
#else
#define NOT_FOR_DROPPED(i, cand) !HAS(let_go[i], cand)
#endif
#ifdef VOTED_BY_THE_HOLDER
#define MAY_VOTE(i, r, cand) true
#else
#define MAY_VOTE(i, r, cand) (NOT_FOR_DROPPED(i, cand) && whose[i] != i + 1 && IS_NOBODYS(whose[i], i, cand) && IS_NOBODYS(gone[r], i, cand) && SETTLED(i))
#endif

/* What it has written since a tenure that it has forgotten. */
#ifdef OWN_NOT_AWAITED
#define OWN_ROWS(i)		0
#else
#define OWN_ROWS(i)		OF_HOME(rows[i], i)
#endif

#define VOTE(r) \
	:: atomic { \
			candidate[r] != 0 && candidate[r] != i + 1 && promised[i] < r && MAY_VOTE(i, r, candidate[r] - 1) -> \
			promised[i] = r; \
			begins_on[r] = begins_on[r] | base[epoch[i]] | OWN_ROWS(i); \
			votes[r] = votes[r] | BIT(i) \
		}

#ifdef MAJORITY_VOTES
#define IS_ELECTED(i, r) (2 * POP(votes[r]) > N)
#elif defined(MEMBERS_OF_THE_END)
#define IS_ELECTED(i, r) ((votes[r] & MEMBERS(i)) == MEMBERS(i))
#else
#define IS_ELECTED(i, r) ((votes[r] & voters[r]) == voters[r])
#endif

#define WIN(r) \
	:: atomic { \
			candidate[r] == i + 1 && promised[i] == r && ROUND(epoch[i]) < r && IS_ELECTED(i, r) -> \
			base[EPOCH(r, 0)] = begins_on[r]; \
			epoch[i] = EPOCH(r, 0); \
			whose[i] = i + 1; \
			forgot[i] = false \
		}

/* ---- persons and faults ---- */

#define DROP(d) \
	:: atomic { d != i && dropped == 0 -> dropped = BIT(d); let_go[i] = BIT(d) }

#define COMPARE(j) \
	:: atomic { \
			j != i && let_go[i] != 0 && HAS(MEMBERS(i), j) && let_go[j] == let_go[i] && !HAS(compared[i], j) -> \
			rows[i] = rows[i] | OF_DROPPED(i, rows[j]); \
			compared[i] = compared[i] | BIT(j) \
		}

proctype Node(byte i)
{
end:
	do
	:: atomic { holds[i] && next < TX -> write(i) }
	ACKNOWLEDGE(0)
	ACKNOWLEDGE(1)
	APPLY(0)
	APPLY(1)
	GIVE(0)
	GIVE(1)
	GIVE(2)
	TAKE(0)
	TAKE(1)
	TAKE(2)
	OPEN
	STAND(1)
	STAND(2)
	VOTE(1)
	VOTE(2)
	WIN(1)
	WIN(2)
	DROP(0)
	DROP(1)
	:: atomic { dropped != 0 && !HAS(dropped, i) && let_go[i] == 0 -> let_go[i] = dropped }
	COMPARE(0)
	COMPARE(1)
	COMPARE(2)
	:: atomic {
			crashes > 0 ->
			crashes--;
#ifdef GIVEN_IN_MEMORY
			epoch[i] = kept_epoch[i];
			whose[i] = kept_whose[i];
#endif
			holds[i] = false
		}
	:: atomic {
			restores > 0 && !HAS(dropped, i) ->
			restores--;
			promised[i] = 0;
			epoch[i] = 0;
			whose[i] = 0;
			forgot[i] = true;
			holds[i] = false
		}
	od
}

init
{
	atomic {
		run Node(0);
		run Node(1);
		run Node(2)
	}
}
