/*
 * number.c
 *		Numbers of sequences that the group shares: a client gets only those of
 *		ranges that are this node's.
 *
 * A number is drawn as ever, so that currval(), lastval(), caches and locks are as
 * ever, and looked at afterwards: one that is in no range of this node is not given, the
 * sequence moves to the next range, and another is drawn.  So it does not matter how many
 * draw at once, or where setval() and RESTART have moved the sequence.
 *
 * COPY computes defaults without a plan.  There repl_ml.tick(), the default of the
 * clock, looks at each row's number, and moves the sequence on before the range ends.
 *
 * Called by what nextval.c has put into plans, and by statement.c and stamp.c for COPY.
 * Not here: which ranges there are, and how more are got (range.c).
 *
 * Locks: an advisory lock of a kind of our own for who moves a sequence, and waits for
 * a session of ours meanwhile; it takes no lock that a client's transaction could hold.
 */
#include "postgres.h"

#include "access/table.h"
#include "catalog/pg_authid.h"
#include "commands/sequence.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "nodes/nodeFuncs.h"
#include "rewrite/rewriteHandler.h"
#include "storage/lmgr.h"
#include "storage/lock.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/fmgrprotos.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"

#include "compat.h"
#include "row/row.h"
#include "server/server.h"
#include "write/write.h"

#define LOCK_KIND			9	/* of our advisory locks */
#define LEAST_SIZE			64	/* of a range, in numbers */
#define COPY_LEAST_SIZE		1024	/* ... for COPY */

/* A default of a COPY that runs. */
typedef struct CopyDefault
{
	Oid			sequence;
	bool		behind_clock;	/* computed after the row's clock */
} CopyDefault;

/* The COPY that runs in this process; written by repl_ml_number_copy_begin and _end. */
static List *copy_defaults = NIL;
static uint64 copy_rows = 0;

static void get_next(Oid sequence, int64 place);
static int64 margin(const ReplMlNumbers *numbers);
static bool is_ours(const ReplMlNumbers *numbers, int64 place);
static int64 settle(Oid sequence, int64 number, bool check_permissions);
static int64 draw_elsewhere(ReplMlNumbers before, int64 number, bool check_permissions);
static void move_sequence(const ReplMlNumbers *numbers);
static void lock_numbers(Oid sequence, LOCKTAG *tag);
static void make_room(Oid sequence);

PG_FUNCTION_INFO_V1(repl_ml_nextval);

/* repl_ml.nextval(sequence): what the planner puts in the place of PostgreSQL's own. */
Datum
repl_ml_nextval(PG_FUNCTION_ARGS)
{
	Oid			sequence = PG_GETARG_OID(0);

	PG_RETURN_INT64(settle(sequence, nextval_internal(sequence, true), true));
}

PG_FUNCTION_INFO_V1(repl_ml_identity_number);

/*
 * repl_ml.identity_number(number): what the planner puts around an identity column's
 * number, which takes no right to the sequence.  So nothing else may be the argument.
 */
Datum
repl_ml_identity_number(PG_FUNCTION_ARGS)
{
	Node	   *call = fcinfo->flinfo->fn_expr;

	if (call == NULL || !IsA(call, FuncExpr) || list_length(((FuncExpr *) call)->args) != 1 ||
		!IsA(linitial(((FuncExpr *) call)->args), NextValueExpr))
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("function \"%s\" cannot be called", "identity_number"),
				 errhint("Use nextval().")));
	PG_RETURN_INT64(settle(((NextValueExpr *) linitial(((FuncExpr *) call)->args))->seqid,
						   PG_GETARG_INT64(0), false));
}

/* Returns the number that was just drawn, or another one if that is not this node's. */
static int64
settle(Oid sequence, int64 number, bool check_permissions)
{
	ReplMlNumbers *numbers = repl_ml_range_known(sequence);
	int64		place = numbers->descending ? -number : number;

	if (!numbers->shared)
		return number;
	if (!is_ours(numbers, place))
		return draw_elsewhere(*numbers, number, check_permissions);
	/* what is at the end of a range is for those who cannot look first */
	if (place > numbers->last - margin(numbers) &&
		pg_atomic_read_u32(&repl_ml_shared->copies) > 0)
		make_room(sequence);
	else if (place > numbers->half && !numbers->has_next)
		get_next(sequence, place);
	return number;
}

/*
 * Gets the range behind the one in hand, while there is some of this one left; one
 * session does, and the others do not wait for it.
 */
static void
get_next(Oid sequence, int64 place)
{
	LOCKTAG		tag;
	ReplMlNumbers *numbers;
	bool		again;

	SET_LOCKTAG_ADVISORY(tag, MyDatabaseId, 0, sequence, LOCK_KIND);
	if (LockAcquire(&tag, ExclusiveLock, false, true) == LOCKACQUIRE_NOT_AVAIL)
		return;
	AcceptInvalidationMessages();
	numbers = repl_ml_range_known(sequence);
	if (numbers->shared && place > numbers->half && !numbers->has_next &&
		repl_ml_range_get(sequence, NULL, LEAST_SIZE, &again) != NULL)
	{
		/* not at each number, where too few members can be reached */
		numbers = repl_ml_range_known(sequence);
		numbers->half = numbers->last - (numbers->last - place) / 2;
	}
	LockRelease(&tag, ExclusiveLock, false);
}

/* Returns how many places are left when those who cannot look at a number go to the next range. */
static int64
margin(const ReplMlNumbers *numbers)
{
	return Min(MaxConnections * numbers->step, numbers->size / 4);
}

/* Says whether a place is in a range of this node. */
static bool
is_ours(const ReplMlNumbers *numbers, int64 place)
{
	return numbers->in_hand && place >= numbers->first && place <= numbers->last;
}

/*
 * Returns a number in the place of one that is in no range: the same if it is in the
 * range that is got then, else one of where the sequence has been moved to, by this or
 * another session.
 */
static int64
draw_elsewhere(ReplMlNumbers before, int64 number, bool check_permissions)
{
	Oid			sequence = before.sequence;
	LOCKTAG		tag;

	lock_numbers(sequence, &tag);
	for (;;)
	{
		ReplMlNumbers *numbers = repl_ml_range_known(sequence);
		int64		place = numbers->descending ? -number : number;

		CHECK_FOR_INTERRUPTS();
		if (numbers->shared && is_ours(numbers, place))
			break;
		if (numbers->shared && numbers->in_hand == before.in_hand &&
			numbers->first == before.first && numbers->last == before.last)
		{
			repl_ml_range_require(sequence, &place, LEAST_SIZE);
			numbers = repl_ml_range_known(sequence);
			if (numbers->shared && is_ours(numbers, place))
				break;
			if (numbers->shared && numbers->in_hand)
				move_sequence(numbers);
		}
		before = *numbers;
		number = nextval_internal(sequence, check_permissions);
		/* an ordinary one again: it has been moved behind all that was given */
		if (!numbers->shared)
			break;
	}
	LockRelease(&tag, ExclusiveLock, false);
	return number;
}

/* Waits until nobody else moves the sequence; sees what they have done. */
static void
lock_numbers(Oid sequence, LOCKTAG *tag)
{
	SET_LOCKTAG_ADVISORY(*tag, MyDatabaseId, 0, sequence, LOCK_KIND);
	(void) LockAcquire(tag, ExclusiveLock, false, false);
	AcceptInvalidationMessages();
}

/* Has the sequence go on at the beginning of the range in hand, whatever its user may do to it. */
static void
move_sequence(const ReplMlNumbers *numbers)
{
	int64		number = numbers->descending ? -numbers->first : numbers->first;
	Oid			user;
	int			context;

	GetUserIdAndSecContext(&user, &context);
	SetUserIdAndSecContext(BOOTSTRAP_SUPERUSERID, context | SECURITY_LOCAL_USERID_CHANGE);
	(void) DirectFunctionCall3(setval3_oid, ObjectIdGetDatum(numbers->sequence),
							   Int64GetDatum(number), BoolGetDatum(false));
	SetUserIdAndSecContext(user, context);
}

/* ---- COPY ---- */

/* Returns the sequence that a column's default takes a number of, whatever it is cast to then. */
static Oid
default_sequence(Relation rel, AttrNumber attnum)
{
	Node	   *value = build_column_default(rel, attnum);

	while (value != NULL && IsA(value, FuncExpr) && ((FuncExpr *) value)->args != NIL)
	{
		Node	   *argument = linitial(((FuncExpr *) value)->args);

		if (((FuncExpr *) value)->funcid == F_NEXTVAL)
			return IsA(argument, Const) ? DatumGetObjectId(((Const *) argument)->constvalue) :
				InvalidOid;
		value = argument;
	}
	return value != NULL && IsA(value, NextValueExpr) ? ((NextValueExpr *) value)->seqid :
		InvalidOid;
}

/* Says whether COPY gives the column no default. */
static bool
is_copied(CopyStmt *stmt, Form_pg_attribute att)
{
	ListCell   *lc;

	foreach(lc, stmt->attlist)
	{
		if (strcmp(strVal(lfirst(lc)), NameStr(att->attname)) == 0)
			return true;
	}
	return att->attisdropped || att->attgenerated != '\0' ||
		(!att->atthasdef && att->attidentity == '\0');
}

/*
 * Called by statement.c before COPY FROM: finds what sequences the defaults of columns
 * that it does not list take numbers of, and makes room in them.
 */
void
repl_ml_number_copy_begin(CopyStmt *stmt)
{
	Relation	rel;
	AttrNumber	clock;
	Oid			relid;
	ListCell   *lc;

	if (!stmt->is_from || stmt->relation == NULL || repl_ml_shared == NULL ||
		!repl_ml_guard_is_enrolled(stmt->relation, &relid))
		return;
	rel = table_open(relid, AccessShareLock);
	clock = get_attnum(relid, REPL_ML_CLOCK_COLUMN);
	for (int i = 0; i < RelationGetNumberOfAttributes(rel); i++)
	{
		Oid			sequence = is_copied(stmt, TupleDescAttr(RelationGetDescr(rel), i)) ?
			InvalidOid : default_sequence(rel, i + 1);
		MemoryContext old;
		CopyDefault *found;

		if (!OidIsValid(sequence) || !repl_ml_range_known(sequence)->shared)
			continue;
		old = MemoryContextSwitchTo(TopMemoryContext);
		found = palloc(sizeof(CopyDefault));
		found->sequence = sequence;
		found->behind_clock = i + 1 > clock;
		copy_defaults = lappend(copy_defaults, found);
		MemoryContextSwitchTo(old);
	}
	table_close(rel, NoLock);
	copy_rows = 0;
	if (copy_defaults != NIL)
		pg_atomic_fetch_add_u32(&repl_ml_shared->copies, 1);
	foreach(lc, copy_defaults)
		make_room(((CopyDefault *) lfirst(lc))->sequence);
}

/* Returns the last number that this session, or with "anybody" anybody, has taken. */
static bool
last_place(const ReplMlNumbers *numbers, bool anybody, int64 *place)
{
	Oid			user;
	int			context;
	LOCAL_FCINFO(call, 1);
	Datum		number;

	GetUserIdAndSecContext(&user, &context);
	SetUserIdAndSecContext(BOOTSTRAP_SUPERUSERID, context | SECURITY_LOCAL_USERID_CHANGE);
	InitFunctionCallInfoData(*call, NULL, 1, InvalidOid, NULL, NULL);
	call->args[0].value = ObjectIdGetDatum(numbers->sequence);
	call->args[0].isnull = false;
	number = anybody ? pg_sequence_last_value(call) : currval_oid(call);
	SetUserIdAndSecContext(user, context);
	*place = numbers->descending ? -DatumGetInt64(number) : DatumGetInt64(number);
	return !call->isnull;
}

/*
 * Sees to it that a few numbers can be taken without being looked at, by COPY: goes to
 * the next range if the one in hand is near its end.
 */
static void
make_room(Oid sequence)
{
	LOCKTAG		tag;
	ReplMlNumbers *numbers;
	int64		place;
	bool		again;

	lock_numbers(sequence, &tag);
	for (int i = 0; i < 3; i++)
	{
		bool		enough;

		numbers = repl_ml_range_known(sequence);
		if (!numbers->shared)
			break;
		if (!last_place(numbers, true, &place))
			place = numbers->in_hand ? numbers->first - 1 : 0;
		enough = i > 0 || numbers->size >= COPY_LEAST_SIZE * numbers->step;
		if (is_ours(numbers, place + 1) && numbers->last - place > margin(numbers) && enough)
			break;
		/* behind it, where the sequence need not move */
		if (i == 0 && is_ours(numbers, place + 1) && !numbers->has_next &&
			repl_ml_range_get(sequence, NULL, COPY_LEAST_SIZE, &again) == NULL)
			continue;
		/* rather less room than none */
		if (is_ours(numbers, place + 1) && !numbers->has_next &&
			numbers->last - place > numbers->step)
			break;
		place = is_ours(numbers, place + 1) ? numbers->last + 1 : place + 1;
		repl_ml_range_require(sequence, &place, COPY_LEAST_SIZE);
		numbers = repl_ml_range_known(sequence);
		if (!numbers->shared)
			break;
		move_sequence(numbers);
	}
	LockRelease(&tag, ExclusiveLock, false);
}

/*
 * Looks at the number that a row of COPY has got.  One that is not this node's is
 * refused; that takes more sessions at once than there are numbers in the margin.
 */
static void
check_copied(Oid sequence)
{
	ReplMlNumbers *numbers = repl_ml_range_known(sequence);
	int64		place;

	if (!numbers->shared || !last_place(numbers, false, &place))
		return;
	if (!is_ours(numbers, place))
	{
		AcceptInvalidationMessages();
		numbers = repl_ml_range_known(sequence);
	}
	if (!is_ours(numbers, place) && numbers->shared)
		ereport(ERROR,
				(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
				 errmsg("a row got a number of sequence \"%s\" that is not this node's",
						get_rel_name(sequence)),
				 errhint("Run the COPY again.")));
	if (numbers->last - place <= margin(numbers))
		make_room(sequence);
}

/* Called by repl_ml.tick() for each row that gets the default of its clock. */
void
repl_ml_number_tick(void)
{
	ListCell   *lc;

	foreach(lc, copy_defaults)
	{
		CopyDefault *copied = lfirst(lc);

		if (!copied->behind_clock || copy_rows > 0)
			check_copied(copied->sequence);
	}
	copy_rows++;
}

/* Called by statement.c when COPY has ended, or failed. */
void
repl_ml_number_copy_end(bool done)
{
	List	   *defaults = copy_defaults;
	ListCell   *lc;

	copy_defaults = NIL;
	if (defaults != NIL)
		pg_atomic_fetch_sub_u32(&repl_ml_shared->copies, 1);
	foreach(lc, defaults)
	{
		if (done && copy_rows > 0 && ((CopyDefault *) lfirst(lc))->behind_clock)
			check_copied(((CopyDefault *) lfirst(lc))->sequence);
	}
	list_free_deep(defaults);
}
