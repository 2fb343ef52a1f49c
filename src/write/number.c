/*
 * number.c
 *		Numbers of sequences that the group shares: a client gets only those of
 *		ranges that are this node's.
 *
 * The planner's hook puts repl_ml.nextval() in the place of PostgreSQL's own, and a
 * call of repl_ml.identity_number() around what identity columns get.  Both draw a
 * number as ever, so that currval(), lastval(), caches and locks are as ever, and look
 * at it afterwards: one that is in no range of this node is not given, the sequence
 * moves to the next range, and another is drawn.  So it does not matter how many draw
 * at once, or where setval() and RESTART have moved the sequence.
 *
 * COPY computes defaults without a plan.  There repl_ml.tick(), the default of the
 * clock, looks at each row's number, and moves the sequence on before the range ends.
 *
 * Ranges are in repl_ml.sequence_mark, and are got by a session of its own over this
 * node's connection string (repl_ml.get_range), since they must stay whatever becomes
 * of the client's transaction.  What members agree to is in sql/parts/sequences.sql.
 *
 * Locks: an advisory lock of a kind of our own for who moves a sequence, and waits for
 * that session meanwhile; it takes no lock that a client's transaction could hold.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/xact.h"
#include "catalog/pg_authid.h"
#include "catalog/pg_language.h"
#include "catalog/pg_proc.h"
#include "catalog/pg_sequence.h"
#include "catalog/pg_type.h"
#include "commands/sequence.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "nodes/makefuncs.h"
#include "nodes/nodeFuncs.h"
#include "optimizer/optimizer.h"
#include "optimizer/planner.h"
#include "rewrite/rewriteHandler.h"
#include "storage/latch.h"
#include "storage/lmgr.h"
#include "storage/lock.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/fmgrprotos.h"
#include "utils/hsearch.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/syscache.h"
#include "utils/timestamp.h"
#include "utils/wait_event.h"

#include "compat.h"
#include "row/row.h"
#include "server/server.h"
#include "wire/wire.h"
#include "write/write.h"

#define LOCK_KIND			9	/* of our advisory locks */
#define PATIENCE_MS			5000	/* for a range that is being got */
#define PAUSE_MS			20
#define ANSWER_MS			15000	/* a session of ours answers by then */
#define LEAST_SIZE			64	/* of a range, in numbers */
#define COPY_LEAST_SIZE		1024	/* ... for COPY */

#define MARK_TABLE			"sequence_mark"
#define MEMBER_TABLE		"member"

enum
{
	Anum_mark_sequence = 3,
	Anum_mark_state,
	Anum_mark_descending,
	Anum_mark_promised,
	Anum_mark_server_start,
	Anum_mark_first,
	Anum_mark_last,
	Anum_mark_next_first,
	Anum_mark_next_last,
	Anum_mark_size,
	Anum_mark_obtained,
	Anum_mark_obtained_at,
	Anum_mark_in_vain,
	Natts_mark = Anum_mark_in_vain
};

enum
{
	Anum_member_node_id = 1,
	Anum_member_dsn = 3
};

/* What this process knows of a sequence; places are as in repl_ml.sequence_facts(). */
typedef struct Numbers
{
	Oid			sequence;		/* hash key */
	bool		valid;
	bool		shared;			/* one of the group; else nothing else is set */
	bool		descending;
	bool		in_hand;		/* first to last are ours */
	bool		has_next;		/* next_first and more are, too */
	int64		first;
	int64		last;
	int64		next_first;
	int64		half;			/* beyond it more is to be got */
	int64		size;			/* of what was got last */
	int64		step;			/* the increment, without its sign */
} Numbers;

/* A default of a COPY that runs. */
typedef struct CopyDefault
{
	Oid			sequence;
	bool		behind_clock;	/* computed after the row's clock */
} CopyDefault;

/* What a replacement has to know, and tells. */
typedef struct Replacement
{
	Oid			nextval;
	Oid			identity_number;
	List	   *functions;		/* whose bodies or defaults are in the plan now */
} Replacement;

static HTAB *sequences = NULL;

/* The COPY that runs in this process; written by repl_ml_number_copy_begin and _end. */
static List *copy_defaults = NIL;
static uint64 copy_rows = 0;

static planner_hook_type previous_hook = NULL;

static PlannedStmt *plan_query(Query *parse, const char *query_string, int cursor_options,
							   ParamListInfo params);
static bool has_number(Node *node, void *context);
static bool may_hide_number(FuncExpr *call);
static Node *replace_numbers(Node *node, void *context);
static Node *replace_identity(NextValueExpr *number, Replacement *replacement);
static bool find_replacement(Replacement *replacement);
static Numbers *get_numbers(Oid sequence);
static void load_numbers(Numbers *numbers);
static int64 step_of(Oid sequence);
static void get_next(Oid sequence, int64 place);
static int64 margin(const Numbers *numbers);
static bool is_ours(const Numbers *numbers, int64 place);
static int64 settle(Oid sequence, int64 number, bool check_permissions);
static int64 draw_elsewhere(Numbers before, int64 number, bool check_permissions);
static char *get_range(Oid sequence, const int64 *beyond, int least_size, bool *again);
static void require_range(Oid sequence, const int64 *beyond, int least_size);
static void raise_shortage(Oid sequence, const char *reason);
static void move_sequence(const Numbers *numbers);
static void lock_numbers(Oid sequence, LOCKTAG *tag);
static bool rename_nextval(Node *node, void *context);
static void make_room(Oid sequence);

/* Called by _PG_init: installs the hook. */
void
repl_ml_number_init(void)
{
	previous_hook = planner_hook;
	planner_hook = plan_query;
}

/* ---- queries ---- */

/* The planner's hook: numbers in the query are ours. */
static PlannedStmt *
plan_query(Query *parse, const char *query_string, int cursor_options, ParamListInfo params)
{
	Replacement replacement = {0};
	PlannedStmt *result;
	ListCell   *lc;

	if (repl_ml_shared != NULL && IsTransactionState() && OidIsValid(repl_ml_schema_oid()) &&
		has_number((Node *) parse, NULL) && find_replacement(&replacement))
		parse = (Query *) replace_numbers((Node *) parse, &replacement);
	result = (previous_hook ? previous_hook : standard_planner)
		(parse, query_string, cursor_options, params);

	/* as for functions that the planner has put in itself */
	foreach(lc, replacement.functions)
	{
		PlanInvalItem *item = makeNode(PlanInvalItem);

		item->cacheId = PROCOID;
		item->hashValue = GetSysCacheHashValue1(PROCOID, ObjectIdGetDatum(lfirst_oid(lc)));
		result->invalItems = lappend(result->invalItems, item);
	}
	return result;
}

/* Says whether a query or expression takes a number of a sequence, perhaps within a function. */
static bool
has_number(Node *node, void *context)
{
	if (node == NULL)
		return false;
	if (IsA(node, NextValueExpr))
		return true;
	if (IsA(node, FuncExpr) && (((FuncExpr *) node)->funcid == F_NEXTVAL ||
								may_hide_number((FuncExpr *) node)))
		return true;
	if (IsA(node, Query))
		return query_tree_walker((Query *) node, has_number, context, 0);
	return expression_tree_walker(node, has_number, context);
}

/*
 * Says whether the planner may put something else in the place of a call: the body
 * of a function in SQL, or defaults of arguments.
 */
static bool
may_hide_number(FuncExpr *call)
{
	HeapTuple	tuple;
	Form_pg_proc function;
	bool		result;

	if (call->funcid < FirstNormalObjectId)
		return false;
	tuple = SearchSysCache1(PROCOID, ObjectIdGetDatum(call->funcid));
	if (!HeapTupleIsValid(tuple))
		return false;
	function = (Form_pg_proc) GETSTRUCT(tuple);
	result = function->provolatile == PROVOLATILE_VOLATILE &&
		(function->prolang == SQLlanguageId || function->pronargs > list_length(call->args));
	ReleaseSysCache(tuple);
	return result;
}

/* Finds our functions; returns false where the extension has none. */
static bool
find_replacement(Replacement *replacement)
{
	Oid			regclass = REGCLASSOID;
	Oid			number = INT8OID;
	Oid			schema = repl_ml_schema_oid();

	replacement->nextval = GetSysCacheOid3(PROCNAMEARGSNSP, Anum_pg_proc_oid,
										   CStringGetDatum("nextval"),
										   PointerGetDatum(buildoidvector(&regclass, 1)),
										   ObjectIdGetDatum(schema));
	replacement->identity_number = GetSysCacheOid3(PROCNAMEARGSNSP, Anum_pg_proc_oid,
												   CStringGetDatum("identity_number"),
												   PointerGetDatum(buildoidvector(&number, 1)),
												   ObjectIdGetDatum(schema));
	return OidIsValid(replacement->nextval) && OidIsValid(replacement->identity_number);
}

/* Returns a query or expression in which numbers are ours. */
static Node *
replace_numbers(Node *node, void *context)
{
	Replacement *replacement = context;

	if (node == NULL)
		return NULL;
	if (IsA(node, NextValueExpr))
		return replace_identity((NextValueExpr *) node, replacement);
	if (IsA(node, FuncExpr) && may_hide_number((FuncExpr *) node))
	{
		/* what the planner would make of it, if that has numbers */
		Node	   *simple = eval_const_expressions(NULL, node);

		if (!equal(simple, node) && has_number(simple, NULL))
		{
			replacement->functions = lappend_oid(replacement->functions,
												 ((FuncExpr *) node)->funcid);
			if (IsA(simple, FuncExpr) && ((FuncExpr *) simple)->funcid ==
				((FuncExpr *) node)->funcid)
				return expression_tree_mutator(simple, replace_numbers, context);
			return replace_numbers(simple, context);
		}
	}
	if (IsA(node, Query))
		return (Node *) query_tree_mutator((Query *) node, replace_numbers, context, 0);
	node = expression_tree_mutator(node, replace_numbers, context);
	if (IsA(node, FuncExpr) && ((FuncExpr *) node)->funcid == F_NEXTVAL)
		((FuncExpr *) node)->funcid = replacement->nextval;
	return node;
}

/* Returns an identity column's number with a call of repl_ml.identity_number() around it. */
static Node *
replace_identity(NextValueExpr *number, Replacement *replacement)
{
	NextValueExpr *drawn = copyObject(number);
	Node	   *result;

	drawn->typeId = INT8OID;
	result = (Node *) makeFuncExpr(replacement->identity_number, INT8OID, list_make1(drawn),
								   InvalidOid, InvalidOid, COERCE_EXPLICIT_CALL);
	if (number->typeId == INT4OID)
		return (Node *) makeFuncExpr(F_INT4_INT8, INT4OID, list_make1(result), InvalidOid,
									 InvalidOid, COERCE_IMPLICIT_CAST);
	if (number->typeId == INT2OID)
		return (Node *) makeFuncExpr(F_INT2_INT8, INT2OID, list_make1(result), InvalidOid,
									 InvalidOid, COERCE_IMPLICIT_CAST);
	return result;
}

/*
 * Called by statement.c: arguments of CALL and EXECUTE are computed without the
 * planner.  The statement is a copy.
 */
void
repl_ml_number_arguments(Node *stmt)
{
	Replacement replacement = {0};

	if (IsA(stmt, ExecuteStmt))
		(void) rename_nextval((Node *) ((ExecuteStmt *) stmt)->params, NULL);
	else
	{
		FuncExpr   *call = castNode(CallStmt, stmt)->funcexpr;

		if (has_number((Node *) call->args, NULL) && find_replacement(&replacement))
			call->args = (List *) replace_numbers((Node *) call->args, &replacement);
	}
}

/* Has arguments that are not analyzed yet call ours: PostgreSQL's own is found first. */
static bool
rename_nextval(Node *node, void *context)
{
	if (node == NULL)
		return false;
	if (IsA(node, FuncCall))
	{
		FuncCall   *call = (FuncCall *) node;
		int			names = list_length(call->funcname);

		if (strcmp(strVal(llast(call->funcname)), "nextval") == 0 &&
			(names == 1 || strcmp(strVal(linitial(call->funcname)), "pg_catalog") == 0))
			call->funcname = list_make2(makeString(REPL_ML_SCHEMA), makeString("nextval"));
	}
	return raw_expression_tree_walker(node, rename_nextval, context);
}

/* ---- numbers ---- */

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
	Numbers    *numbers = get_numbers(sequence);
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
	Numbers    *numbers;
	bool		again;

	SET_LOCKTAG_ADVISORY(tag, MyDatabaseId, 0, sequence, LOCK_KIND);
	if (LockAcquire(&tag, ExclusiveLock, false, true) == LOCKACQUIRE_NOT_AVAIL)
		return;
	AcceptInvalidationMessages();
	numbers = get_numbers(sequence);
	if (numbers->shared && place > numbers->half && !numbers->has_next &&
		get_range(sequence, NULL, LEAST_SIZE, &again) != NULL)
	{
		/* not at each number, where too few members can be reached */
		numbers = get_numbers(sequence);
		numbers->half = numbers->last - (numbers->last - place) / 2;
	}
	LockRelease(&tag, ExclusiveLock, false);
}

/* Returns how many places are left when those who cannot look at a number go to the next range. */
static int64
margin(const Numbers *numbers)
{
	return Min(MaxConnections * numbers->step, numbers->size / 4);
}

/* Says whether a place is in a range of this node. */
static bool
is_ours(const Numbers *numbers, int64 place)
{
	return numbers->in_hand && place >= numbers->first && place <= numbers->last;
}

/*
 * Returns a number in the place of one that is in no range: the same if it is in the
 * range that is got then, else one of where the sequence has been moved to, by this or
 * another session.
 */
static int64
draw_elsewhere(Numbers before, int64 number, bool check_permissions)
{
	Oid			sequence = before.sequence;
	LOCKTAG		tag;

	lock_numbers(sequence, &tag);
	for (;;)
	{
		Numbers    *numbers = get_numbers(sequence);
		int64		place = numbers->descending ? -number : number;

		CHECK_FOR_INTERRUPTS();
		if (!numbers->shared || is_ours(numbers, place))
			break;
		if (numbers->in_hand == before.in_hand && numbers->first == before.first &&
			numbers->last == before.last)
		{
			require_range(sequence, &place, LEAST_SIZE);
			numbers = get_numbers(sequence);
			if (!numbers->shared || is_ours(numbers, place))
				break;
			move_sequence(numbers);
		}
		before = *numbers;
		number = nextval_internal(sequence, check_permissions);
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
move_sequence(const Numbers *numbers)
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

/* Returns how members reach this node, which is how it reaches itself; NULL if it is no member. */
static char *
own_dsn(void)
{
	int			self = repl_ml_identity()->node_id;
	Relation	rel = table_open(repl_ml_catalog_oid(MEMBER_TABLE), AccessShareLock);
	SysScanDesc scan = systable_beginscan(rel, InvalidOid, false, NULL, 0, NULL);
	HeapTuple	tuple;
	char	   *result = NULL;

	while (result == NULL && HeapTupleIsValid(tuple = systable_getnext(scan)))
	{
		bool		isnull;
		TupleDesc	desc = RelationGetDescr(rel);

		if (DatumGetInt32(heap_getattr(tuple, Anum_member_node_id, desc, &isnull)) == self)
			result = TextDatumGetCString(heap_getattr(tuple, Anum_member_dsn, desc, &isnull));
	}
	systable_endscan(scan);
	table_close(rel, AccessShareLock);
	return result;
}

/*
 * Gets one more range, behind the one in hand, or in its place and beyond a place.
 * Returns NULL, or why there is none, and whether to try again soon.
 */
static char *
get_range(Oid sequence, const int64 *beyond, int least_size, bool *again)
{
	char	   *dsn = own_dsn();
	char	   *answer = NULL;
	char	   *error = NULL;
	char	   *place = beyond == NULL ? pstrdup("NULL") : psprintf("'" INT64_FORMAT "'", *beyond);
	ReplMlQuestions all = {.count = 1,.dsns = &dsn,.answers = &answer,.errors = &error};

	*again = false;
	if (dsn == NULL)
		return pstrdup("free");
	dsn = repl_ml_stream_conninfo(dsn, "question", NULL);
	all.query = psprintf("SELECT coalesce(repl_ml.get_range(%u, %s, %d), 'ok')", sequence, place,
						 least_size);
	all.deadline = all.sent_by = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), ANSWER_MS);
	repl_ml_ask_beside(&all);
	AcceptInvalidationMessages();
	*again = answer == NULL || strcmp(answer, "wait") == 0 || strcmp(answer, "not covered") == 0;
	if (answer == NULL)
		return psprintf("this node asked itself by its own connection string, and that failed: %s",
						error);
	return strcmp(answer, "ok") == 0 ? NULL : answer;
}

/* Does that, and raises an error if there is none; waits for what is under way. */
static void
require_range(Oid sequence, const int64 *beyond, int least_size)
{
	TimestampTz deadline = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), PATIENCE_MS);
	char	   *reason;
	bool		again;

	(void) repl_ml_identity_require();
	while ((reason = get_range(sequence, beyond, least_size, &again)) != NULL)
	{
		/* it is none of the group's any more */
		if (strcmp(reason, "free") == 0)
			return;
		if (!again || GetCurrentTimestamp() > deadline)
			raise_shortage(sequence, reason);
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, PAUSE_MS,
						 wait_event_compat("ReplMlNumbers"));
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
	}
}

/* Raises the error that there are no numbers, and says why. */
static void
raise_shortage(Oid sequence, const char *reason)
{
	char	   *name = get_rel_name(sequence);

	if (strcmp(reason, "exhausted") == 0)
		ereport(ERROR,
				(errcode(ERRCODE_SEQUENCE_GENERATOR_LIMIT_EXCEEDED),
				 errmsg("no numbers are left of sequence \"%s\" for this node", name),
				 errdetail("All have been given, or are in the hands of other members."),
				 errhint("SELECT * FROM repl_ml.sequences says who has some left. On all nodes "
						 "make the column a bigint, and run ALTER SEQUENCE ... AS bigint.")));
	ereport(ERROR,
			(errcode(ERRCODE_CANNOT_CONNECT_NOW),
			 errmsg("no numbers of sequence \"%s\" are in hand, and no more can be had now", name),
			 errdetail("More than half of the members have to agree to more: %s.",
					   strcmp(reason, "not covered") == 0 ?
					   "not all have taken up the sequence yet" :
					   strcmp(reason, "wait") == 0 ? "it takes too long" : reason),
			 errhint("See SELECT * FROM repl_ml.health; try again, or write on another node.")));
}

/* ---- what is known of a sequence ---- */

/* Called by core when a relation has changed, or anything. */
static void
invalidate(Datum arg, Oid relid)
{
	HASH_SEQ_STATUS scan;
	Numbers    *numbers;

	if (relid != InvalidOid)
	{
		numbers = hash_search(sequences, &relid, HASH_FIND, NULL);
		if (numbers != NULL)
			numbers->valid = false;
		return;
	}
	hash_seq_init(&scan, sequences);
	while ((numbers = hash_seq_search(&scan)) != NULL)
		numbers->valid = false;
}

/* Returns what is known of a sequence, read again if that has changed. */
static Numbers *
get_numbers(Oid sequence)
{
	Numbers    *numbers;
	bool		found;

	if (sequences == NULL)
	{
		HASHCTL		ctl = {.keysize = sizeof(Oid),.entrysize = sizeof(Numbers)};

		sequences = hash_create("repl_ml sequences", 64, &ctl, HASH_ELEM | HASH_BLOBS);
		CacheRegisterRelcacheCallback(invalidate, (Datum) 0);
	}
	numbers = hash_search(sequences, &sequence, HASH_ENTER, &found);
	if (!found)
		numbers->valid = false;
	if (!numbers->valid)
		load_numbers(numbers);
	return numbers;
}

/* Returns by how much a sequence counts, up or down. */
static int64
step_of(Oid sequence)
{
	HeapTuple	tuple = SearchSysCache1(SEQRELID, ObjectIdGetDatum(sequence));
	int64		step = 1;

	if (HeapTupleIsValid(tuple))
	{
		step = ((Form_pg_sequence) GETSTRUCT(tuple))->seqincrement;
		ReleaseSysCache(tuple);
	}
	return step < 0 ? -step : step;
}

/* Reads the row of repl_ml.sequence_mark.  Ranges of a server that has ended do not count. */
static void
load_numbers(Numbers *numbers)
{
	Oid			sequence = numbers->sequence;
	Oid			relid = repl_ml_catalog_oid(MARK_TABLE);
	Relation	rel;
	SysScanDesc scan;
	HeapTuple	tuple;

	memset(numbers, 0, sizeof(*numbers));
	numbers->sequence = sequence;
	if (!repl_ml_identity()->member || !OidIsValid(relid))
	{
		numbers->valid = true;
		return;
	}

	/* what changes while it is read has it read again */
	numbers->valid = true;
	rel = table_open(relid, AccessShareLock);
	if (RelationGetNumberOfAttributes(rel) != Natts_mark)
		elog(ERROR, "table \"%s\" has unexpected columns", MARK_TABLE);
	scan = systable_beginscan(rel, InvalidOid, false, NULL, 0, NULL);
	while (HeapTupleIsValid(tuple = systable_getnext(scan)))
	{
		Datum		values[Natts_mark];
		bool		nulls[Natts_mark];

		heap_deform_tuple(tuple, RelationGetDescr(rel), values, nulls);
		if (nulls[Anum_mark_sequence - 1] ||
			DatumGetObjectId(values[Anum_mark_sequence - 1]) != sequence ||
			strcmp(TextDatumGetCString(values[Anum_mark_state - 1]), "free") == 0)
			continue;
		numbers->shared = true;
		numbers->descending = DatumGetBool(values[Anum_mark_descending - 1]);
		if (nulls[Anum_mark_server_start - 1] || nulls[Anum_mark_first - 1] ||
			DatumGetTimestampTz(values[Anum_mark_server_start - 1]) != PgStartTime)
			break;
		numbers->in_hand = true;
		numbers->first = DatumGetInt64(values[Anum_mark_first - 1]);
		numbers->last = DatumGetInt64(values[Anum_mark_last - 1]);
		numbers->size = DatumGetInt64(values[Anum_mark_size - 1]);
		numbers->step = step_of(sequence);
		numbers->half = numbers->last - numbers->size / 2;
		numbers->has_next = !nulls[Anum_mark_next_first - 1];
		if (numbers->has_next)
			numbers->next_first = DatumGetInt64(values[Anum_mark_next_first - 1]);
		break;
	}
	systable_endscan(scan);
	table_close(rel, AccessShareLock);
}

PG_FUNCTION_INFO_V1(repl_ml_sequence_changed);

/*
 * repl_ml.sequence_changed(sequence): every process reads again what it may give; what
 * is promised is on the disk before anybody hears of it, whatever the session's settings.
 */
Datum
repl_ml_sequence_changed(PG_FUNCTION_ARGS)
{
	ForceSyncCommit();
	if (SearchSysCacheExists1(RELOID, PG_GETARG_DATUM(0)))
		CacheInvalidateRelcacheByRelid(PG_GETARG_OID(0));
	PG_RETURN_VOID();
}

PG_FUNCTION_INFO_V1(repl_ml_lock_sequence);

/*
 * repl_ml.lock_sequence(sequence): waits for all transactions that have taken numbers
 * from it, and lets nobody take more until this one ends.
 */
Datum
repl_ml_lock_sequence(PG_FUNCTION_ARGS)
{
	LockRelationOid(PG_GETARG_OID(0), ShareRowExclusiveLock);
	PG_RETURN_VOID();
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

		if (!OidIsValid(sequence) || !get_numbers(sequence)->shared)
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
last_place(const Numbers *numbers, bool anybody, int64 *place)
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
	Numbers    *numbers;
	int64		place;
	bool		again;

	lock_numbers(sequence, &tag);
	for (int i = 0; i < 3; i++)
	{
		bool		enough;

		numbers = get_numbers(sequence);
		if (!numbers->shared)
			break;
		if (!last_place(numbers, true, &place))
			place = numbers->in_hand ? numbers->first - 1 : 0;
		enough = i > 0 || numbers->size >= COPY_LEAST_SIZE * numbers->step;
		if (is_ours(numbers, place + 1) && numbers->last - place > margin(numbers) && enough)
			break;
		/* behind it, where the sequence need not move */
		if (i == 0 && is_ours(numbers, place + 1) && !numbers->has_next &&
			get_range(sequence, NULL, COPY_LEAST_SIZE, &again) == NULL)
			continue;
		/* rather less room than none */
		if (is_ours(numbers, place + 1) && !numbers->has_next &&
			numbers->last - place > numbers->step)
			break;
		place = is_ours(numbers, place + 1) ? numbers->last + 1 : place + 1;
		require_range(sequence, &place, COPY_LEAST_SIZE);
		numbers = get_numbers(sequence);
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
	Numbers    *numbers = get_numbers(sequence);
	int64		place;

	if (!numbers->shared || !last_place(numbers, false, &place))
		return;
	if (!is_ours(numbers, place))
	{
		AcceptInvalidationMessages();
		numbers = get_numbers(sequence);
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
