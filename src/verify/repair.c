/*
 * repair.c
 *		repl_ml.repair_table: makes rows that differ the same again.
 *
 * A backend compares the table (compare.c), decides for each row which member
 * lacks which other member's version, and asks these members to fetch and join
 * it (mend.c); its own part is in its own transaction.  The newest versions win,
 * as they would have if they had come: where none is the newest all are joined, and
 * the table's rules decide.  A deletion that a member remembers is a version, too;
 * a row that some lack, and whose deletion nobody remembers, is brought to them.  Of rows
 * that differ under one clock the content that most members have is right;
 * without one a person has to say whose.
 *
 * Not here: rows that are on their way, parked changes, other schemas; those
 * are told, and left.  Locks: see mend.c.
 */
#include "postgres.h"

#include "access/table.h"
#include "catalog/pg_type.h"
#include "funcapi.h"
#include "libpq/pqformat.h"
#include "miscadmin.h"
#include "utils/acl.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"

#include "verify/verify.h"

#define ADMIN_ROLE		"repl_ml_admin"
#define MAX_ROWS		10000
#define ROWS_AT_ONCE	50		/* in one order, and in memory */
#define ANSWER_MS		300000
#define CONNECT_MS		10000
#define RESULT_COLUMNS	7

/* That a member has to have another one's version of a row. */
typedef struct Step
{
	const ReplMlSuspect *suspect;
	int			target;
	int			source;
	bool		replace;
} Step;

/* One repair. */
typedef struct Repair
{
	ReplMlComparison comparison;
	ReplMlCaller caller;
	ReturnSetInfo *result;
	bool		dry_run;
	int			source;			/* of what nobody can decide; -1: none is named */
	List	   *steps;			/* of Step *, of the rows looked at now */
} Repair;

/* ---- results ---- */

/* Puts a row into the result. */
static void
put(Repair *repair, int member, const ReplMlSuspect *suspect, const char *action,
	const char *before, const char *after, const char *detail)
{
	Datum		values[RESULT_COLUMNS] = {0};
	bool		nulls[RESULT_COLUMNS] = {false};
	bool		may_read = repair->caller.may_read;
	NameData	name;

	nulls[0] = member < 0;
	if (member >= 0)
	{
		namestrcpy(&name, repair->comparison.members[member].name);
		values[0] = NameGetDatum(&name);
	}
	nulls[1] = !may_read;
	if (may_read)
		values[1] = repl_ml_report_key(&repair->comparison, &repair->caller, suspect);
	values[2] = CStringGetTextDatum(action);
	values[3] = CStringGetTextDatum(repl_ml_settle_verdict(&repair->comparison, suspect));
	nulls[4] = !may_read || before == NULL || before[0] == '\0';
	if (!nulls[4])
		values[4] = DirectFunctionCall1(jsonb_in, CStringGetDatum(before));
	nulls[5] = !may_read || after == NULL || after[0] == '\0';
	if (!nulls[5])
		values[5] = DirectFunctionCall1(jsonb_in, CStringGetDatum(after));
	nulls[6] = detail == NULL;
	if (detail != NULL)
		values[6] = CStringGetTextDatum(detail);
	tuplestore_putvalues(repair->result->setResult, repair->result->setDesc, values, nulls);
}

/* ---- deciding ---- */

/* Says whether the sight is of a version: a row, or a deletion, with a clock that can be read. */
static bool
is_version(const ReplMlSight *sight)
{
	return sight->kind != 0 && sight->kind != 'A' && sight->clock != NULL;
}

/* Says whether "a" knows the version "b", or is that version. */
static bool
knows(const ReplMlSight *a, const ReplMlSight *b)
{
	if (a->clock == NULL || !repl_ml_clock_is_within(b->clock, a->clock))
		return false;
	/* the eviction of a version stands above it */
	return !(b->kind == 'T' && a->kind == 'R' && repl_ml_clock_is_within(a->clock, b->clock));
}

/* Notes that a member is to have another one's version. */
static void
add_step(Repair *repair, const ReplMlSuspect *suspect, int target, int source, bool replace)
{
	Step	   *step = palloc(sizeof(Step));

	*step = (Step) {.suspect = suspect,.target = target,.source = source,.replace = replace};
	repair->steps = lappend(repair->steps, step);
}

/* Says whether what member "i" has is needed: no other one has more, or the same before it. */
static bool
is_newest(const ReplMlComparison *comparison, const ReplMlSight *sights, int i)
{
	for (int j = 0; j < comparison->count; j++)
	{
		if (j == i || !is_version(&sights[j]))
			continue;
		if (knows(&sights[j], &sights[i]) && (!knows(&sights[i], &sights[j]) || j < i))
			return false;
	}
	return true;
}

/* Decides by the clocks: all members are to know the newest versions. */
static void
decide_by_clocks(Repair *repair, const ReplMlSuspect *suspect)
{
	const ReplMlComparison *comparison = &repair->comparison;
	const ReplMlSight *sights = suspect->now;

	for (int source = 0; source < comparison->count; source++)
	{
		if (!is_version(&sights[source]) || !is_newest(comparison, sights, source))
			continue;
		for (int target = 0; target < comparison->count; target++)
		{
			if (target == source || sights[target].kind == 0 || sights[target].damaged ||
				knows(&sights[target], &sights[source]) ||
				(sights[source].kind == 'T' && sights[target].kind == 'A'))
				continue;
			add_step(repair, suspect, target, source, false);
		}
	}
}

/* Says whether two rows are the same under the same clock. */
static bool
are_same(const ReplMlSight *a, const ReplMlSight *b)
{
	return a->kind == 'R' && b->kind == 'R' && a->content.lane[0] == b->content.lane[0] &&
		a->content.lane[1] == b->content.lane[1] &&
		repl_ml_settle_same_clocks(a->clock, b->clock);
}

/* Says whether nobody has a newer version than member "i". */
static bool
has_greatest_clock(const ReplMlComparison *comparison, const ReplMlSight *sights, int i)
{
	for (int j = 0; j < comparison->count; j++)
	{
		if (is_version(&sights[j]) && !repl_ml_clock_is_within(sights[j].clock, sights[i].clock))
			return false;
	}
	return true;
}

/*
 * Returns the member whose row is right, of rows that differ under one clock:
 * the one that was named, or one of more than half that have the same; -1 if
 * nobody can tell.
 */
static int
choose_source(const Repair *repair, const ReplMlSight *sights)
{
	const ReplMlComparison *comparison = &repair->comparison;
	int			compared = 0;

	for (int i = 0; i < comparison->count; i++)
		compared += sights[i].kind != 0;
	for (int i = 0; i < comparison->count; i++)
	{
		int			same = 0;

		if (sights[i].kind != 'R' || sights[i].clock == NULL ||
			!has_greatest_clock(comparison, sights, i) ||
			(repair->source >= 0 && repair->source != i))
			continue;
		for (int j = 0; j < comparison->count; j++)
			same += are_same(&sights[i], &sights[j]);
		if (repair->source == i || same * 2 > compared)
			return i;
	}
	return -1;
}

/* Decides about rows that differ under one clock, or whose clock cannot be read. */
static void
decide_by_majority(Repair *repair, const ReplMlSuspect *suspect)
{
	const ReplMlSight *sights = suspect->now;
	int			source = choose_source(repair, sights);

	if (source < 0)
	{
		put(repair, -1, suspect, "none", NULL, NULL, repair->source < 0 ?
			"No more than half of the members have the same row: say whose is right, as in "
			"source => 'n1'." :
			"The member that was named does not have the newest row.");
		return;
	}
	for (int i = 0; i < repair->comparison.count; i++)
	{
		bool		replace = sights[i].kind == 'R' &&
			(sights[i].damaged || repl_ml_clock_is_within(sights[source].clock, sights[i].clock));

		if (i == source || sights[i].kind == 0 || are_same(&sights[source], &sights[i]))
			continue;
		add_step(repair, suspect, i, source, replace);
	}
}

/* Decides about one row, or says why nothing is done about it. */
static void
decide(Repair *repair, const ReplMlSuspect *suspect)
{
	const char *verdict = repl_ml_settle_verdict(&repair->comparison, suspect);

	if (strcmp(verdict, "parked") == 0)
		put(repair, -1, suspect, "none", NULL, NULL,
			"A change of it is parked: see repl_ml.diff_rows, and run repl_ml.retry_parked there.");
	else if (suspect->on_its_way)
		put(repair, -1, suspect, "none", NULL, NULL,
			"Not all members have caught up with what the others had.");
	else if (suspect->astray != NULL)
		put(repair, -1, suspect, "none", NULL, NULL,
			"The index of a node's primary key does not lead to all rows with this key: see "
			"repl_ml.diff_rows, and run REINDEX there, after removing what is wrong if the key is "
			"there twice.");
	else if (strcmp(verdict, "corrupt") == 0)
		decide_by_majority(repair, suspect);
	else
		decide_by_clocks(repair, suspect);
}

/* ---- doing ---- */

/* Returns the steps that go into one order with the first, and takes them off the list. */
static List *
take_steps(Repair *repair)
{
	Step	   *first = linitial(repair->steps);
	List	   *taken = NIL;
	List	   *left = NIL;
	ListCell   *lc;

	foreach(lc, repair->steps)
	{
		Step	   *step = lfirst(lc);

		if (step->target == first->target && step->source == first->source &&
			step->replace == first->replace)
			taken = lappend(taken, step);
		else
			left = lappend(left, step);
	}
	repair->steps = left;
	return taken;
}

/* Says what steps would do. */
static void
foretell(Repair *repair, List *steps)
{
	ListCell   *lc;

	foreach(lc, steps)
	{
		Step	   *step = lfirst(lc);
		const ReplMlSight *here = &step->suspect->now[step->target];
		const ReplMlSight *there = &step->suspect->now[step->source];
		bool		joins = !step->replace && is_version(here) && !knows(there, here);
		const char *action = step->replace ? "replace" : joins ? "join" :
			there->kind == 'T' ? "delete" : here->kind == 'R' ? "update" : "insert";

		put(repair, step->target, step->suspect, action, here->kind == 'R' ? here->row : NULL,
			!joins && there->kind == 'R' ? there->row : NULL, NULL);
	}
}

/* Returns what rows were seen to be, for those that are to be replaced. */
static bytea *
make_seen(List *steps)
{
	StringInfoData bytes;
	ListCell   *lc;
	bytea	   *result;

	initStringInfo(&bytes);
	foreach(lc, steps)
	{
		Step	   *step = lfirst(lc);
		const ReplMlSight *sight = &step->suspect->now[step->target];
		const ReplMlClock *clock = sight->clock;

		pq_sendint64(&bytes, sight->content.lane[0]);
		pq_sendint64(&bytes, sight->content.lane[1]);
		pq_sendint32(&bytes, clock == NULL ? -1 : (int) VARSIZE_ANY_EXHDR(clock));
		if (clock != NULL)
			pq_sendbytes(&bytes, VARDATA_ANY(clock), VARSIZE_ANY_EXHDR(clock));
	}
	result = palloc(VARHDRSZ + bytes.len);
	SET_VARSIZE(result, VARHDRSZ + bytes.len);
	memcpy(VARDATA(result), bytes.data, bytes.len);
	return result;
}

/* Makes an order of steps that are of one kind. */
static ReplMlOrder
make_order(Repair *repair, List *steps)
{
	Step	   *first = linitial(steps);
	int			natts = repair->comparison.key_natts;
	int			count = list_length(steps);
	Datum	   *texts = palloc(count * natts * sizeof(Datum));
	Datum	   *verdicts = palloc(count * sizeof(Datum));
	ListCell   *lc;

	foreach(lc, steps)
	{
		const ReplMlSuspect *suspect = ((Step *) lfirst(lc))->suspect;
		int			i = foreach_current_index(lc);

		for (int j = 0; j < natts; j++)
			texts[i * natts + j] = CStringGetTextDatum(suspect->key[j]);
		verdicts[i] = CStringGetTextDatum(repl_ml_settle_verdict(&repair->comparison, suspect));
	}
	return (ReplMlOrder)
	{
		.keys = construct_array(texts, count * natts, TEXTOID, -1, false, TYPALIGN_INT),
			.source = repair->comparison.members[first->source].node_id,
			.replace = first->replace,.seen = make_seen(steps),
			.verdicts = construct_array(verdicts, count, TEXTOID, -1, false, TYPALIGN_INT)
	};
}

/* Gives an order to another member; returns its answer, or sets the error. */
static StringInfo
order_there(const ReplMlComparison *comparison, int target, const ReplMlOrder *order,
			char **error)
{
	const ReplMlInquiry *inquiry = &comparison->inquiry;
	Oid			output;
	bool		is_varlena;
	const char *params[9] = {inquiry->schema_name, inquiry->table_name, inquiry->signature,
		psprintf("%d", inquiry->chunks), NULL, psprintf("%d", order->source),
	order->replace ? "t" : "f"};
	char	   *answer = NULL;
	char	   *dsn = comparison->members[target].dsn;
	ReplMlQuestions all = {.count = 1,.dsns = &dsn,.nparams = 9,.params = params,
		.query = "SELECT " REPL_ML_SCHEMA ".repair_rows($1, $2, $3, $4, $5, $6, $7, $8, $9)",
		.sent_by = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), CONNECT_MS),
		.deadline = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), ANSWER_MS),
	.keeps = true,.answers = &answer,.errors = error};

	getTypeOutputInfo(TEXTARRAYOID, &output, &is_varlena);
	params[4] = OidOutputFunctionCall(output, PointerGetDatum(order->keys));
	params[7] = DatumGetCString(DirectFunctionCall1(byteaout, PointerGetDatum(order->seen)));
	params[8] = OidOutputFunctionCall(output, PointerGetDatum(order->verdicts));
	repl_ml_ask_beside(&all);
	return answer == NULL ? NULL : repl_ml_compare_read_hex(answer);
}

/* Reads a text of an answer; NULL for none. */
static char *
read_text(StringInfo answer)
{
	int			size = (int) pq_getmsgint(answer, 4);

	return size < 0 ? NULL : pnstrdup(pq_getmsgbytes(answer, size), size);
}

/* Has steps of one kind done, and puts what came of it into the result. */
static void
carry_out(Repair *repair, List *steps)
{
	int			target = ((Step *) linitial(steps))->target;
	ReplMlOrder order = make_order(repair, steps);
	char	   *error = NULL;
	StringInfo	answer = target == 0 ? repl_ml_mend(&repair->comparison.inquiry, &order) :
		order_there(&repair->comparison, target, &order, &error);
	ListCell   *lc;

	if (answer != NULL && pq_getmsgbyte(answer) != REPL_ML_PART_IS_THERE)
		answer = NULL;
	foreach(lc, steps)
	{
		const ReplMlSuspect *suspect = ((Step *) lfirst(lc))->suspect;

		if (answer == NULL)
			put(repair, target, suspect, "none", NULL, NULL,
				error == NULL ? "Its answer cannot be read." : error);
		else
		{
			char	   *action = read_text(answer);
			char	   *before = read_text(answer);
			char	   *after = read_text(answer);

			put(repair, target, suspect, action, before, after, read_text(answer));
		}
	}
}

/* Repairs some rows, or says what would be done; looks at them once more before. */
static void
repair_some(Repair *repair, List *some)
{
	ListCell   *lc;

	repl_ml_settle_details(&repair->comparison, some);
	repair->steps = NIL;
	foreach(lc, some)
	{
		ReplMlSuspect *suspect = lfirst(lc);

		if (suspect->astray != NULL ||
			!repl_ml_settle_is_equal(&repair->comparison, suspect->now))
			decide(repair, suspect);
	}
	while (repair->steps != NIL)
	{
		List	   *steps = take_steps(repair);

		if (repair->dry_run)
			foretell(repair, steps);
		else
			carry_out(repair, steps);
	}
}

/* Repairs all that differs, some rows at a time, with the extension's rights. */
static void
repair_all(Repair *repair)
{
	ReplMlComparison *comparison = &repair->comparison;
	int			count = list_length(comparison->suspects);
	ReplMlUser	saved;

	repl_ml_report_become_extension(&saved);
	for (int i = 0; i < count; i += ROWS_AT_ONCE)
	{
		MemoryContext old = MemoryContextSwitchTo(comparison->batch);
		List	   *some = NIL;

		for (int j = i; j < Min(i + ROWS_AT_ONCE, count); j++)
			some = lappend(some, list_nth(comparison->suspects, j));
		repair_some(repair, some);
		MemoryContextSwitchTo(old);
		MemoryContextReset(comparison->batch);
	}
	SetUserIdAndSecContext(saved.user, saved.context);
}

/* ---- repair_table ---- */

/* Raises an error unless the caller may repair tables. */
static void
require_admin(void)
{
	Oid			admin = get_role_oid(ADMIN_ROLE, true);

	if (!OidIsValid(admin) || !has_privs_of_role(GetUserId(), admin))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("permission denied to repair tables"),
				 errhint("Run GRANT %s TO %s.", ADMIN_ROLE,
						 quote_identifier(GetUserNameFromId(GetUserId(), false)))));
}

/* Returns the place of the member of this name; raises an error if it is not compared. */
static int
find_member(const ReplMlComparison *comparison, const char *name)
{
	for (int i = 0; i < comparison->count; i++)
	{
		if (strcmp(comparison->members[i].name, name) == 0 &&
			repl_ml_compare_is_compared(comparison, i))
			return i;
	}
	ereport(ERROR,
			(errcode(ERRCODE_UNDEFINED_OBJECT),
			 errmsg("node \"%s\" is not a member that can be compared", name),
			 errhint("Run SELECT node_name, state FROM repl_ml.nodes.")));
}

PG_FUNCTION_INFO_V1(repl_ml_repair_table);

/*
 * repl_ml.repair_table(relation, dry_run, source, timeout): returns a row for each thing
 * that is done, would be done, or cannot be.
 */
Datum
repl_ml_repair_table(PG_FUNCTION_ARGS)
{
	Repair		repair = {.result = (ReturnSetInfo *) fcinfo->resultinfo,.source = -1};

	if (PG_ARGISNULL(0) || PG_ARGISNULL(1) || PG_ARGISNULL(3))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("relation, dry_run and timeout must not be null"),
				 errhint("Give each a value.")));
	require_admin();
	InitMaterializedSRF(fcinfo, 0);
	repair.dry_run = PG_GETARG_BOOL(1);
	repair.caller = repl_ml_report_begin(PG_GETARG_OID(0), &repair.comparison, MAX_ROWS,
										 repl_ml_report_patience(PG_GETARG_DATUM(3)));
	repl_ml_report_compare(&repair.comparison);
	if (!PG_ARGISNULL(2))
		repair.source = find_member(&repair.comparison, NameStr(*PG_GETARG_NAME(2)));
	repair_all(&repair);
	for (int i = 0; i < repair.comparison.count; i++)
	{
		if (!repl_ml_compare_is_compared(&repair.comparison, i))
			ereport(WARNING,
					(errmsg("node \"%s\" is neither compared nor repaired",
							repair.comparison.members[i].name),
					 errdetail_internal("%s", repair.comparison.members[i].problem)));
	}
	if (repair.comparison.has_more)
		ereport(NOTICE,
				(errmsg("there are more differences than %d", MAX_ROWS),
				 errhint("Run it again afterwards.")));
	return (Datum) 0;
}
