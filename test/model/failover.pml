/*
 * failover.pml
 *		The lease of strong tables, as it is built: given by who has it, or voted for by a
 *		majority, where who has it is gone.  What a majority does not count then is void: it is
 *		passed over by peers, and undone where it is in the tables.
 *
 * Peers apply a strong transaction when it comes, as any other, and say so.  A vote ends that
 * for transactions of older rounds, until it is known what of these counts: the base of the
 * round, which has all that the voters have.  So what a majority has acknowledged is in each
 * later base.  Each node has a row, durably: the last round it has voted for, the last one
 * whose base it has accepted, and the last tenure that it had or gave away.
 *
 * Messages are facts, as in lease.pml: what a row says may be read at any moment, or never.  A
 * transaction counts the rows that it sees, and gets the next number.
 *
 * README says how to run this, and what each -D switches off.
 */
/* other runs than the plain one, and those that a switch needs to be found in */
#if defined(TWICE) || defined(OLDER_ROUND_WINS) || defined(MENDED_FROM_ANYBODY) || \
	defined(DONOR_LACKS) || defined(SKIPPED_WHEN_ACCEPTED) || defined(MENDED_UNNOTED) || \
	defined(MENDED_AFTER_VOTE)
#define ROUNDS		2
#define TURNS		1
#define CRASHES		0
#endif
#if defined(READERS) || defined(SHOWN_UNACKNOWLEDGED) || defined(MENDED_AFTER_VOTE) || \
	defined(MENDED_UNNOTED)
#define READ
#endif
#if defined(NOT_CLOSED) || defined(HOLDER_VOTES)
#define CLOSING
#endif
#if defined(FIVE)
#define N			5
#define STANDERS	2
#define TURNS		1
#define CRASHES		0
#endif
#ifndef N
#define N			3
#endif
#ifndef STANDERS
#define STANDERS	N
#endif
#ifndef TX
#define TX			2
#endif
#ifndef ROUNDS
#define ROUNDS		1			/* of votes, after the first tenure */
#endif
#ifndef TURNS
#define TURNS		2			/* tenures of a round: so many less one times it is given */
#endif
#ifndef CRASHES
#define CRASHES		1
#endif

#define EPOCH(r, k)		((r) * TURNS + (k))
#define ROUND(e)		((e) / TURNS)
#define EPOCHS			EPOCH(ROUNDS + 1, 0)
#define BIT(i)			(1 << (i))
#define POP(m)			(((m) & 1) + (((m) >> 1) & 1) + (((m) >> 2) & 1) + (((m) >> 3) & 1) + (((m) >> 4) & 1))
#define IS_MAJORITY(m)	(2 * POP(m) > N)
#define HAS(m, i)		(((m) & BIT(i)) != 0)

/* ---- transactions ---- */

byte next;						/* so many have begun */
byte home[TX];					/* the node that committed it, plus 1 */
byte round_of[TX];				/* in which it was written: a message in its home's WAL says so */
byte number[TX];
byte saw[TX];					/* whose rows it has seen */
byte acks[TX];					/* who has it and has said so */
byte told;						/* those that were acknowledged */
#ifdef READ
byte seen;						/* those that a reader has seen */
#endif

/* ---- what a node has on its disk ---- */

byte promised[N];
byte accepted[N];				/* the last round whose base it knows */
byte opened[N];					/* the last round of which it knows that a majority has accepted it */
byte epoch[N];
byte whose[N];					/* the node of this tenure, plus 1; 0: it knows of none */
byte rows[N];					/* transactions that are in its tables */
byte counts[N];					/* those of them that it answers for */
byte passed[N];					/* those that its streams are past */
bool unclean[N];				/* something void may be in its tables */

/* ---- and in its memory ---- */

bool holds[N];
#ifdef CLOSING
byte commits_in[N];				/* the round of a client that is about to commit, plus 1 */
#endif

/* ---- facts ---- */

byte candidate[ROUNDS + 1];		/* plus 1 */
byte ahead[ROUNDS + 1];			/* the last round that the candidate had accepted */
byte votes[ROUNDS + 1];
byte begins_on[ROUNDS + 1];		/* what voters have */
byte base[EPOCHS];				/* what has to be there before the tenure may be used; of a first one: all that counts of older rounds */
bool elected[ROUNDS + 1];
byte chain[ROUNDS + 1];			/* the rounds whose bases count with it */
byte accepters[ROUNDS + 1];
byte crashes = CRASHES;

hidden byte c;

/* The names say what is wrong when an assertion fails. */
hidden byte acknowledged_is_lost, number_is_given_twice, void_was_read, void_was_seen;

#define OF_HOME_1(m, h, t) (HAS(m, t) && home[t] == (h) + 1 -> BIT(t) : 0)
#if TX == 2
#define OF_HOME(m, h)	(OF_HOME_1(m, h, 0) | OF_HOME_1(m, h, 1))
#else
#define OF_HOME(m, h)	(OF_HOME_1(m, h, 0) | OF_HOME_1(m, h, 1) | OF_HOME_1(m, h, 2))
#endif

/* By the base of round r, of those that are later than the transaction's and that "known" has. */
#define IS_VOID_BY(t, r, known) (HAS(known, r) && (r) > round_of[t] && !HAS(base[EPOCH(r, 0)], t))
#if ROUNDS == 1
#define IS_VOID(t, known) IS_VOID_BY(t, 1, known)
#elif ROUNDS == 2
#define IS_VOID(t, known) (IS_VOID_BY(t, 1, known) || IS_VOID_BY(t, 2, known))
#else
#define IS_VOID(t, known) (IS_VOID_BY(t, 1, known) || IS_VOID_BY(t, 2, known) || IS_VOID_BY(t, 3, known))
#endif
#define VALID_1(m, known, t) (HAS(m, t) && !IS_VOID(t, known) -> BIT(t) : 0)
#if TX == 2
#define VALID(m, known)	(VALID_1(m, known, 0) | VALID_1(m, known, 1))
#else
#define VALID(m, known)	(VALID_1(m, known, 0) | VALID_1(m, known, 1) | VALID_1(m, known, 2))
#endif

/* It knows a position of each stream: who has one of a node's has all that were before, but for what is void. */
#define CLAIM_1(i, t, u) (u < next && HAS(counts[i], u) && home[t] == home[u] -> BIT(t) : 0)
#if TX == 2
#define CLAIM(i)		(counts[i] | CLAIM_1(i, 0, 1))
#else
#define CLAIM(i)		(counts[i] | CLAIM_1(i, 0, 1) | CLAIM_1(i, 0, 2) | CLAIM_1(i, 1, 2))
#endif
#define IS_HERE(i)		((base[epoch[i]] & ~CLAIM(i)) == 0)

/* Nobody has got a later round yet: what is acknowledged is so in this round, or in an older one. */
#define BOUND_1(i, r)	(promised[i] > (r) -> BIT(i) : 0)
#if N == 3
#define IS_LAST(r)		!IS_MAJORITY(BOUND_1(0, r) | BOUND_1(1, r) | BOUND_1(2, r))
#else
#define IS_LAST(r)		!IS_MAJORITY(BOUND_1(0, r) | BOUND_1(1, r) | BOUND_1(2, r) | BOUND_1(3, r) | BOUND_1(4, r))
#endif


/* ---- clients ---- */

inline write(i, r)
{
	if
	:: IS_LAST(r) && VALID(rows[i], chain[accepted[i]]) != rows[i] -> assert(void_was_read)
	:: else
	fi;
	home[next] = i + 1;
	round_of[next] = r;
	saw[next] = rows[i];
	number[next] = POP(rows[i]) + 1;
	acks[next] = BIT(i);
	rows[i] = rows[i] | BIT(next);
	counts[i] = counts[i] | BIT(next);
	next++
}

/* A client looks that it has the lease, and commits a moment later, whatever has become of that. */
#ifdef CLOSING
#define WRITE \
	:: atomic { holds[i] && next < TX && !COMMITS(i) -> commits_in[i] = ROUND(epoch[i]) + 1 } \
	:: atomic { COMMITS(i) && next < TX -> write(i, commits_in[i] - 1); commits_in[i] = 0 } \
	:: atomic { COMMITS(i) && !holds[i] -> commits_in[i] = 0 }
#define COMMITS(i)		(commits_in[i] != 0)
#define MAY_WRITE(i)	(whose[i] == i + 1)
#define END_COMMIT(i)	commits_in[i] = 0
#else
#define WRITE			:: atomic { holds[i] && next < TX -> write(i, ROUND(epoch[i])) }
#define COMMITS(i)		false
#define MAY_WRITE(i)	false
#define END_COMMIT(i)	skip
#endif
#ifdef NOT_CLOSED
#define IS_CLOSED(i)	true
#else
#define IS_CLOSED(i)	!COMMITS(i)
#endif

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

/* Of its own a node shows what was acknowledged: while its commit waits, and when the wait was given up. */
#ifdef SHOWN_UNACKNOWLEDGED
#define SHOWN(i)		rows[i]
#else
#define SHOWN(i)		(rows[i] & ~(OF_HOME(rows[i], i) & ~told))
#endif

#ifdef READ
#define SELECT			:: atomic { !unclean[i] && (SHOWN(i) & ~seen) != 0 -> seen = seen | SHOWN(i) }
#define CHECK_SEEN(i)	if :: IS_LAST(ROUND(epoch[i])) && (seen & ~rows[i]) != 0 -> assert(void_was_seen) :: else fi;
#else
#define SELECT
#define CHECK_SEEN(i)
#endif

#define ACKNOWLEDGE(t) \
	:: atomic { t < next && home[t] == i + 1 && !HAS(told, t) && IS_MAJORITY(acks[t]) -> acknowledge(t) }

#ifdef OLD_ROUND_APPLIED
#define IS_TAKEN(t)		true
#else
#define IS_TAKEN(t)		(!unclean[i] && accepted[i] >= round_of[t] && promised[i] == accepted[i] && !IS_VOID(t, chain[accepted[i]]))
#endif
#ifdef SKIPPED_WHEN_ACCEPTED
#define IS_SKIPPED(t)	(accepted[i] == promised[i] && IS_VOID(t, chain[accepted[i]]))
#else
#define IS_SKIPPED(t)	(accepted[i] == promised[i] && opened[i] == accepted[i] && IS_VOID(t, chain[accepted[i]]))
#endif
#ifdef SKIPPED_COUNTS
#define SKIP_ACK(t)		acks[t] = acks[t] | BIT(i)
#else
#define SKIP_ACK(t)		skip
#endif

#define COMES_NEXT(t) \
	(t < next && home[t] != i + 1 && !HAS(passed[i], t) && \
	 (t < 1 || home[0] != home[t] || HAS(passed[i], 0)) && (t < 2 || home[1] != home[t] || HAS(passed[i], 1)))

/* In the order of its home's WAL: what counts is applied, what is void passed over, and it waits while neither is known. */
#define APPLY(t) \
	:: atomic { \
			COMES_NEXT(t) && IS_TAKEN(t) -> \
			rows[i] = rows[i] | BIT(t); \
			counts[i] = counts[i] | BIT(t); \
			passed[i] = passed[i] | BIT(t); \
			acks[t] = acks[t] | BIT(i) \
		} \
	:: atomic { COMES_NEXT(t) && IS_SKIPPED(t) -> passed[i] = passed[i] | BIT(t); SKIP_ACK(t) }

/* ---- the lease is given ---- */

#define OWN_ARE_TOLD(i)	(!COMMITS(i) && (OF_HOME(counts[i], i) & ~told) == 0)
#define MAY_GIVE(i)		(promised[i] <= ROUND(epoch[i]))

#define GIVE(j) \
	:: atomic { \
			i != j && whose[i] == i + 1 && MAY_GIVE(i) && OWN_ARE_TOLD(i) && epoch[i] + 1 < EPOCH(ROUND(epoch[i]) + 1, 0) -> \
			base[epoch[i] + 1] = base[epoch[i]] | OF_HOME(counts[i], i); \
			epoch[i] = epoch[i] + 1; \
			whose[i] = j + 1; \
			holds[i] = false \
		}

#ifdef TAKEN_AFTER_VOTE
#define MAY_TAKE(i, e)	true
#else
#define MAY_TAKE(i, e)	(promised[i] <= ROUND(e) && accepted[i] == ROUND(e))
#endif

/* It asks g, and g's row says that it is its. */
#define TAKE(g) \
	:: atomic { \
			g != i && whose[g] == i + 1 && epoch[g] > epoch[i] && MAY_TAKE(i, epoch[g]) -> \
			epoch[i] = epoch[g]; \
			whose[i] = i + 1 \
		}

/* ---- it is voted for ---- */

#define IS_CLEAN(i)		!unclean[i]

#define STAND(r) \
	:: atomic { \
			candidate[r] == 0 && i < STANDERS && promised[i] < r && IS_CLEAN(i) && IS_CLOSED(i) -> \
			candidate[r] = i + 1; \
			ahead[r] = accepted[i]; \
			promised[i] = r; \
			begins_on[r] = CLAIM(i) | base[epoch[i]] | base[EPOCH(accepted[i], 0)]; \
			votes[r] = BIT(i); \
			holds[i] = false \
		}

#ifdef OLDER_ROUND_WINS
#define MAY_VOTE(r)		true
#else
#define MAY_VOTE(r)		(accepted[i] <= ahead[r])
#endif
#ifdef VOTED_WITHOUT_ROWS
#define TELL(r)			0
#else
#define TELL(r)			(VALID(CLAIM(i), chain[ahead[r]]) | base[EPOCH(accepted[i], 0)])
#endif
#ifdef HOLDER_WRITES_ON
#define LET_GO(i)		skip
#else
#define LET_GO(i)		holds[i] = false
#endif

/* A holder does not: its clients may be about to commit. */
#if defined(CLOSING) && !defined(HOLDER_VOTES)
#define IS_HOLDER(i)	(whose[i] == i + 1 && ROUND(epoch[i]) >= promised[i])
#else
#define IS_HOLDER(i)	false
#endif

/* All that it has is on its disk, and nothing older is added from here on. */
#define VOTE(r) \
	:: atomic { \
			candidate[r] != 0 && candidate[r] != i + 1 && promised[i] < r && MAY_VOTE(r) && !IS_HOLDER(i) -> \
			promised[i] = r; \
			begins_on[r] = begins_on[r] | TELL(r); \
			votes[r] = votes[r] | BIT(i); \
			LET_GO(i) \
		}

#ifdef MINORITY_ELECTS
#define IS_ELECTED(r)	(2 * POP(votes[r]) >= N - 1)
#else
#define IS_ELECTED(r)	IS_MAJORITY(votes[r])
#endif

#define WIN(r) \
	:: atomic { \
			candidate[r] == i + 1 && promised[i] == r && accepted[i] < r && IS_ELECTED(r) -> \
			base[EPOCH(r, 0)] = begins_on[r]; \
			chain[r] = chain[accepted[i]] | BIT(r); \
			elected[r] = true; \
			votes[r] = 0; \
			accepted[i] = r; \
			accepters[r] = BIT(i); \
			epoch[i] = EPOCH(r, 0); \
			whose[i] = i + 1 \
		}

/* It knows the base: what it has beyond that, or is just writing, is void, and nobody else's until it is undone. */
#define ACCEPT(r) \
	:: atomic { \
			elected[r] && accepted[i] < r && promised[i] <= r -> \
			accepted[i] = r; \
			promised[i] = r; \
			accepters[r] = accepters[r] | BIT(i); \
			if \
			:: MAY_WRITE(i) || VALID(counts[i], chain[r]) != counts[i] -> unclean[i] = true \
			:: else \
			fi; \
			counts[i] = VALID(counts[i], chain[r]); \
			holds[i] = false \
		}

#define IS_ACCEPTED(r)	IS_MAJORITY(accepters[r])

#define NOTE_OPENED(r) \
	:: atomic { accepted[i] == r && opened[i] < r && IS_ACCEPTED(r) && elected[r] -> opened[i] = r }

#ifdef BASE_NOT_AWAITED
#define MAY_OPEN(i)		true
#else
#define MAY_OPEN(i)		IS_HERE(i)
#endif
#ifdef OPENED_AFTER_VOTE
#define IS_BOUND(i)		false
#else
#define IS_BOUND(i)		(promised[i] != ROUND(epoch[i]))
#endif
#ifdef VOID_NOT_UNDONE
#define IS_UNDONE(i)	true
#else
#define IS_UNDONE(i)	!unclean[i]
#endif

#define OPEN \
	:: atomic { \
			whose[i] == i + 1 && !holds[i] && MAY_OPEN(i) && !IS_BOUND(i) && opened[i] == ROUND(epoch[i]) && IS_UNDONE(i) -> \
			if \
			:: IS_LAST(ROUND(epoch[i])) && (told & ~rows[i]) != 0 -> assert(acknowledged_is_lost) \
			:: else \
			fi; \
			CHECK_SEEN(i) \
			for (c : 0 .. TX - 1) { \
				if \
				:: IS_LAST(ROUND(epoch[i])) && HAS(told, c) && (saw[c] & ~rows[i]) != 0 -> assert(void_was_read) \
				:: else \
				fi \
			} \
			c = 0; \
			holds[i] = true \
		}

/* ---- what differs is made equal ---- */

/* What comes then is not in its vote. */
#ifdef MENDED_AFTER_VOTE
#define HAS_VOTED(i)	false
#else
#define HAS_VOTED(i)	(promised[i] != accepted[i])
#endif

#ifdef MENDED_FROM_ANYBODY
#define MAY_MEND(i, j)	true
#elif defined(DONOR_LACKS)
#define MAY_MEND(i, j)	(!unclean[j] && accepted[j] == accepted[i] && opened[i] == accepted[i])
#else
#define MAY_MEND(i, j)	(!unclean[j] && accepted[j] == accepted[i] && opened[i] == accepted[i] && !HAS_VOTED(i) && (base[EPOCH(accepted[i], 0)] & ~CLAIM(j)) == 0 && \
						 (counts[i] & ~CLAIM(j)) == 0)
#endif

/* It knows what came with j's rows; j may show of its own what nobody else has. */
#ifdef MENDED_UNNOTED
#define NOTED(i, j)		((counts[i] | base[EPOCH(accepted[i], 0)]) & counts[j])
#else
#define NOTED(i, j)		counts[j]
#endif

/* Its tables become j's: what is void goes, and what came to j alone from one that is gone comes. */
#define MEND(j) \
	:: atomic { \
			i != j && !holds[i] && !COMMITS(i) && (unclean[i] || (base[EPOCH(accepted[i], 0)] & ~CLAIM(i)) != 0) && MAY_MEND(i, j) -> \
			rows[i] = rows[j]; \
			counts[i] = NOTED(i, j); \
			unclean[i] = false \
		}

proctype Node(byte i)
{
end:
	do
	WRITE
	ACKNOWLEDGE(0)
	ACKNOWLEDGE(1)
	APPLY(0)
	APPLY(1)
#if TX > 2
	ACKNOWLEDGE(2)
	APPLY(2)
#endif
#if TURNS > 1
	GIVE(0)
	GIVE(1)
	GIVE(2)
	TAKE(0)
	TAKE(1)
	TAKE(2)
#endif
	SELECT
	OPEN
	STAND(1) VOTE(1) WIN(1) ACCEPT(1) NOTE_OPENED(1)
#if ROUNDS > 1
	STAND(2) VOTE(2) WIN(2) ACCEPT(2) NOTE_OPENED(2)
#endif
#if ROUNDS > 2
	STAND(3) VOTE(3) WIN(3) ACCEPT(3) NOTE_OPENED(3)
#endif
	MEND(0)
	MEND(1)
	MEND(2)
#if N > 3
	MEND(3)
	MEND(4)
#endif
	:: atomic {
			crashes > 0 ->
			crashes--;
#ifdef VOTE_IN_MEMORY
			promised[i] = accepted[i];
#endif
			END_COMMIT(i);
			holds[i] = false
		}
	od
}

init
{
	byte i;

	atomic {
		/* who has voted for the first tenure has accepted it */
		whose[0] = 1;
		chain[0] = BIT(0);
		for (i : 0 .. N - 1) {
			run Node(i)
		}
		i = 0
	}
}
