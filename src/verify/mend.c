/*
 * mend.c
 *		What one node does about rows that differ: it fetches the versions that
 *		another member has, and joins them.
 *
 * A backend does it, for repair.c, or as the function that this calls on the
 * member that lacks something.  Versions are joined as those from a stream are
 * (converge/): what is here and newer stays, nothing that clients write
 * meanwhile is lost, and doing it twice does no harm.  Only a row that is wrong
 * under its own clock, which a join would take for the same, is replaced, only
 * while it is just what it was seen to be, and only by the same version.  All
 * of it stays on this node: each member has its own orders.  Who gives an order
 * says whose versions, never what they are; so the right to ask for repairs is
 * no right to write.
 *
 * Each key is a subtransaction; what is changed becomes a row of
 * repl_ml.repair_history.
 *
 * Not here: which member needs what (repair.c).  Locks: the rows, and what a
 * join locks, until the transaction ends; nobody waits for a lock for long.
 */
#include "postgres.h"

#include "access/table.h"
#include "access/xact.h"
#include "catalog/pg_type.h"
#include "executor/executor.h"
#include "executor/spi.h"
#include "libpq/pqformat.h"
#include "miscadmin.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"

#include "converge/converge.h"
#include "verify/verify.h"

#define ANSWER_MS		60000
#define LOCK_TIMEOUT	"5s"
#define LONGEST_ROW		(1024 * 1024)	/* that is kept in the history */

/* One key of an order, and what has become of it. */
typedef struct Mending
{
	Oid			relid;
	Datum		key;			/* text[], in the order of the index */
	const char *verdict;
	int			source;
	bool		replace;
	ReplMlSight seen;			/* if it is to be replaced */
	StringInfo	versions;		/* of the source; read from the cursor on */
	const char *action;
	char	   *before;			/* JSON, NULL: none */
	char	   *after;
	char	   *detail;			/* why nothing was done */
} Mending;

/* All keys of an order. */
typedef struct Mendings
{
	int			count;
	Mending    *all;
} Mendings;

/* ---- what the source has ---- */

/* Returns the connection string of the member whose versions are wanted. */
static char *
find_source(int node_id)
{
	MemoryContext context = CurrentMemoryContext;
	char	   *dsn;

	SPI_connect();
	dsn = MemoryContextStrdup(context, repl_ml_peer_load(node_id)->dsn);
	SPI_finish();
	return dsn;
}

/* Asks the source for its versions of the keys. */
static StringInfo
fetch_versions(const ReplMlInquiry *inquiry, const ReplMlOrder *order)
{
	Oid			output;
	bool		is_varlena;
	const char *params[6] = {inquiry->schema_name, inquiry->table_name, inquiry->signature,
	psprintf("%d", inquiry->chunks)};
	StringInfo	answer;

	getTypeOutputInfo(TEXTARRAYOID, &output, &is_varlena);
	params[4] = OidOutputFunctionCall(output, PointerGetDatum(order->keys));
	params[5] = order->replace ? "t" : "f";
	answer = repl_ml_compare_read_hex(
		repl_ml_ask_one(find_source(order->source),
						"SELECT " REPL_ML_SCHEMA ".repair_source($1, $2, $3, $4, $5, $6)",
						6, params, TimestampTzPlusMilliseconds(GetCurrentTimestamp(), ANSWER_MS)));
	if (pq_getmsgbyte(answer) != REPL_ML_PART_IS_THERE)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("table \"%s.%s\" is not the same on node %d", inquiry->schema_name,
						inquiry->table_name, order->source),
				 errhint("See SELECT * FROM repl_ml.shape_differences.")));
	return answer;
}

/* Reads bytes with their length; NULL for none. */
static char *
read_bytes(StringInfo answer, int *size)
{
	*size = (int) pq_getmsgint(answer, 4);
	return *size < 0 ? NULL : pnstrdup(pq_getmsgbytes(answer, *size), *size);
}

/* Goes over the versions of one key, to those of the next one. */
static void
skip_versions(StringInfo answer)
{
	int			size;

	while (pq_getmsgbyte(answer) != REPL_ML_ITEM_END)
	{
		(void) read_bytes(answer, &size);
		(void) read_bytes(answer, &size);
	}
}

/* ---- the rows here ---- */

/* What is here of a key. */
typedef struct Here
{
	ReplMlTarget *target;		/* whose "found" is the row; NULL: none */
	char	   *row;			/* JSON; NULL also where that cannot be shown */
	bytea	   *clock;			/* NULL: none */
} Here;

/* Finds and locks the row of a key, with the owner's rights. */
static Here
look(Mending *mending)
{
	ReplMlTarget *root = repl_ml_targets_get(mending->relid);
	Here		here = {0};
	ReplMlUser	saved;

	repl_ml_become_owner(root->rel, &saved);
	here.target = repl_ml_row_find(root, mending->key);
	if (here.target != NULL)
	{
		AttrNumber	attnum = here.target->table->clock_attnum;
		bool		isnull;
		Datum		clock = slot_getattr(here.target->found, attnum, &isnull);

		here.clock = isnull ? NULL : DatumGetByteaPCopy(clock);
		here.row = repl_ml_history_row_as_json(here.target->rel, attnum, here.target->found);
		if (here.row != NULL && strlen(here.row) > LONGEST_ROW)
			here.row = NULL;
	}
	repl_ml_become_self(&saved);
	return here;
}

/* Returns what the content says of the row, under a clock, for a target. */
static TupleTableSlot *
make_row(ReplMlTarget *target, const char *content, const ReplMlClock *clock)
{
	Oid			input;
	Oid			param;
	TupleTableSlot *row;

	getTypeInputInfo(TEXTARRAYOID, &input, &param);
	row = repl_ml_version_to_slot(OidInputFunctionCall(input, unconstify(char *, content), param,
													   -1),
								  RelationGetDescr(target->rel));
	row->tts_values[target->table->clock_attnum - 1] = PointerGetDatum(clock);
	row->tts_isnull[target->table->clock_attnum - 1] = false;
	return row;
}

/* ---- joining ---- */

/* Joins a row of the source. */
static void
join_row(Mending *mending, const ReplMlClock *clock, const char *content,
		 const ReplMlSource *source)
{
	ReplMlTarget *target = repl_ml_targets_get(mending->relid);
	ReplMlUser	saved;

	repl_ml_become_owner(target->rel, &saved);
	ExecCopySlot(target->incoming, make_row(target, content, clock));
	repl_ml_become_self(&saved);
	(void) repl_ml_row_join(mending->relid, target->incoming, source);
}

/* Joins all versions of the source. */
static void
join_versions(Mending *mending)
{
	ReplMlSource source = {.node = mending->source};
	char		kind;

	while ((kind = pq_getmsgbyte(mending->versions)) != REPL_ML_ITEM_END)
	{
		ReplMlSight sight;
		int			size;
		char	   *content;

		repl_ml_compare_read_clock(mending->versions, &sight);
		content = read_bytes(mending->versions, &size);
		if (sight.clock == NULL)
			continue;
		if (kind == REPL_ML_ITEM_DELETION)
			(void) repl_ml_deletion_join(mending->relid,
										 repl_ml_targets_get(mending->relid)->table->key_columns,
										 mending->key, sight.clock, content, &source);
		else
			join_row(mending, sight.clock, content, &source);
	}
}

/* ---- replacing ---- */

/* Says whether the row that is here is what it was seen to be. */
static bool
is_as_seen(const Mending *mending, const Here *here)
{
	ReplMlImage *image = repl_ml_image_open(here->target->rel);
	const ReplMlClock *clock = (const ReplMlClock *) here->clock;
	ReplMlDigest digest;

	(void) repl_ml_image_key(image, here->target->found);
	digest = repl_ml_image_row(image, here->target->found, false);
	repl_ml_image_close(image);
	if (digest.lane[0] != mending->seen.content.lane[0] ||
		digest.lane[1] != mending->seen.content.lane[1])
		return false;
	if (mending->seen.damaged)
		return clock == NULL || !repl_ml_clock_is_whole(clock);
	return repl_ml_settle_same_clocks(clock, mending->seen.clock);
}

/* Replaces the row by that of the source, unless it has been written since. */
static void
replace_row(Mending *mending, const Here *here)
{
	ReplMlSight sight;
	char	   *content;
	int			size;
	ReplMlUser	saved;

	if (here->target == NULL || !is_as_seen(mending, here) ||
		pq_getmsgbyte(mending->versions) != REPL_ML_ITEM_ROW)
	{
		mending->detail = "The row has been written since it was compared.";
		return;
	}
	repl_ml_compare_read_clock(mending->versions, &sight);
	content = read_bytes(mending->versions, &size);
	/* another version is for a join, which knows which of the two is newer */
	if (sight.clock == NULL ||
		(!mending->seen.damaged &&
		 repl_ml_clock_compare(sight.clock, mending->seen.clock) != REPL_ML_CLOCK_EQUAL))
	{
		mending->detail = "The row has been written on the source since it was compared.";
		return;
	}
	repl_ml_become_owner(here->target->rel, &saved);
	repl_ml_target_update(here->target, make_row(here->target, content, sight.clock));
	repl_ml_become_self(&saved);
}

/* ---- one key after the other ---- */

/*
 * Keeps what was done about a row of the table as a row of
 * repl_ml.repair_history; copy/meet.c does, too.  Rows are JSON, NULL for none.
 */
void
repl_ml_mend_record(ReplMlTable *table, Datum key, const char *action, const char *verdict,
					int source, const char *before, const char *after)
{
	Oid			types[8] = {TEXTOID, TEXTOID, TEXTARRAYOID, TEXTOID, TEXTOID, INT4OID, TEXTOID,
	TEXTOID};
	Datum		values[8] = {CStringGetTextDatum(NameStr(table->schema_name)),
		CStringGetTextDatum(NameStr(table->table_name)), key, CStringGetTextDatum(action),
	CStringGetTextDatum(verdict), Int32GetDatum(source)};
	char		nulls[9] = "        ";

	if (before != NULL && strlen(before) > LONGEST_ROW)
		before = NULL;
	if (after != NULL && strlen(after) > LONGEST_ROW)
		after = NULL;
	nulls[6] = before == NULL ? 'n' : ' ';
	if (before != NULL)
		values[6] = CStringGetTextDatum(before);
	nulls[7] = after == NULL ? 'n' : ' ';
	if (after != NULL)
		values[7] = CStringGetTextDatum(after);
	repl_ml_spi_execute("INSERT INTO repl_ml.row_repair (schema_name, table_name, key, action,"
						" verdict, source_node, before, after) VALUES ($1::pg_catalog.name,"
						" $2::pg_catalog.name, $3, $4, $5, $6, $7::pg_catalog.jsonb,"
						" $8::pg_catalog.jsonb)", 8, types, values, nulls);
}

/* Returns what has become of a row, by a word. */
static const char *
name_action(const Mending *mending, const Here *before, const Here *after)
{
	if (before->target == NULL)
		return after->target == NULL ? "none" : "insert";
	if (after->target == NULL)
		return "delete";
	if (mending->replace)
		return mending->detail == NULL ? "replace" : "none";
	return repl_ml_settle_same_clocks((ReplMlClock *) before->clock,
									  (ReplMlClock *) after->clock) ? "none" : "update";
}

/* Does about one key what is to be done: a step in a subtransaction. */
static void
mend(void *argument)
{
	Mending    *mending = argument;
	Here		before = look(mending);
	Here		after;

	if (mending->replace)
		replace_row(mending, &before);
	else
		join_versions(mending);
	after = look(mending);
	mending->before = before.row;
	mending->after = after.row;
	mending->action = name_action(mending, &before, &after);
	if (strcmp(mending->action, "none") != 0)
		repl_ml_mend_record(repl_ml_targets_get(mending->relid)->table, mending->key,
							mending->action, mending->verdict, mending->source, mending->before,
							mending->after);
}

/* Does all that is to be done; an error is one key's. */
static void
mend_all(void *argument)
{
	Mendings   *mendings = argument;

	for (int i = 0; i < mendings->count; i++)
	{
		Mending    *mending = &mendings->all[i];
		ErrorData  *error;

		CHECK_FOR_INTERRUPTS();
		error = repl_ml_targets_try(mend, mending);
		if (error == NULL)
			continue;
		if (error->sqlerrcode == ERRCODE_QUERY_CANCELED ||
			error->sqlerrcode == ERRCODE_ADMIN_SHUTDOWN)
			ReThrowError(error);
		mending->action = "none";
		mending->detail = error->message;
		mending->before = mending->after = NULL;
	}
}

/* ---- orders ---- */

/* Reads what the row of a key was seen to be. */
static void
read_seen(StringInfo seen, Mending *mending)
{
	mending->seen.content = repl_ml_compare_read_digest(seen);
	repl_ml_compare_read_clock(seen, &mending->seen);
}

/* Takes an order apart: a mending for each key. */
static Mendings
read_order(Oid relid, const int *key_order, int natts, const ReplMlOrder *order,
		   StringInfo versions)
{
	Mendings	mendings;
	Datum	   *texts;
	Datum	   *verdicts;
	int			count;
	StringInfoData seen;

	deconstruct_array(order->keys, TEXTOID, -1, false, TYPALIGN_INT, &texts, NULL, &count);
	deconstruct_array(order->verdicts, TEXTOID, -1, false, TYPALIGN_INT, &verdicts, NULL,
					  &mendings.count);
	mendings.count = Min(mendings.count, count / natts);
	mendings.all = palloc0(Max(mendings.count, 1) * sizeof(Mending));
	initStringInfo(&seen);
	appendBinaryStringInfo(&seen, VARDATA_ANY(order->seen), VARSIZE_ANY_EXHDR(order->seen));
	for (int i = 0; i < mendings.count; i++)
	{
		Mending    *mending = &mendings.all[i];
		Datum		in_order[INDEX_MAX_KEYS];

		for (int j = 0; j < natts; j++)
			in_order[key_order[j]] = texts[i * natts + j];
		*mending = (Mending) {.relid = relid,.source = order->source,.replace = order->replace,
			.verdict = TextDatumGetCString(verdicts[i]),.versions = makeStringInfo(),
			.key = PointerGetDatum(construct_array(in_order, natts, TEXTOID, -1, false,
												   TYPALIGN_INT))
		};
		if (order->replace)
			read_seen(&seen, mending);
		/* each reads its own, also where another one fails */
		*mending->versions = *versions;
		skip_versions(versions);
	}
	return mendings;
}

/* Appends a text, or that there is none. */
static void
send_text(StringInfo answer, const char *text)
{
	pq_sendint32(answer, text == NULL ? -1 : strlen(text));
	if (text != NULL)
		pq_sendbytes(answer, text, strlen(text));
}

/* Raises an error unless the table is still what the order is about. */
static Oid
require_table(const ReplMlInquiry *inquiry, int *key_order, int *natts)
{
	Oid			relid = repl_ml_table_local(inquiry->schema_name, inquiry->table_name);
	Relation	rel = OidIsValid(relid) ? table_open(relid, NoLock) : NULL;

	if (rel == NULL || strcmp(repl_ml_image_signature(rel), inquiry->signature) != 0)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("table \"%s.%s\" is another one on this node", inquiry->schema_name,
						inquiry->table_name),
				 errhint("See SELECT * FROM repl_ml.shape_differences.")));
	*natts = repl_ml_image_key_order(repl_ml_table_get(rel), RelationGetDescr(rel), key_order);
	table_close(rel, NoLock);
	return relid;
}

/*
 * Carries out an order on this node; returns, for each key, what was done, the
 * row before and after it, and why nothing was done.
 */
StringInfo
repl_ml_mend(const ReplMlInquiry *inquiry, const ReplMlOrder *order)
{
	StringInfo	answer = makeStringInfo();
	int			key_order[INDEX_MAX_KEYS];
	int			natts;
	Oid			relid = require_table(inquiry, key_order, &natts);
	Mendings	mendings = read_order(relid, key_order, natts, order,
									  fetch_versions(inquiry, order));
	int			level = NewGUCNestLevel();

	/* a client that keeps a row locked holds up neither the others nor us */
	(void) set_config_option("lock_timeout", LOCK_TIMEOUT, PGC_USERSET, PGC_S_SESSION,
							 GUC_ACTION_SAVE, true, 0, false);
	repl_ml_targets_in_session(mend_all, &mendings);
	AtEOXact_GUC(true, level);
	pq_sendbyte(answer, REPL_ML_PART_IS_THERE);
	for (int i = 0; i < mendings.count; i++)
	{
		send_text(answer, mendings.all[i].action);
		send_text(answer, mendings.all[i].before);
		send_text(answer, mendings.all[i].after);
		send_text(answer, mendings.all[i].detail);
	}
	return answer;
}

PG_FUNCTION_INFO_V1(repl_ml_repair_rows);

/*
 * repl_ml.repair_rows(schema_name, table_name, signature, chunks, keys, source,
 * replace, seen, verdicts): see repl_ml_mend.
 */
Datum
repl_ml_repair_rows(PG_FUNCTION_ARGS)
{
	ReplMlInquiry inquiry = repl_ml_part_inquiry(fcinfo);
	ReplMlOrder order = {
		.keys = PG_GETARG_ARRAYTYPE_P(4),.source = PG_GETARG_INT32(5),
		.replace = PG_GETARG_BOOL(6),.seen = PG_GETARG_BYTEA_PP(7),
		.verdicts = PG_GETARG_ARRAYTYPE_P(8)
	};

	return repl_ml_part_answer(repl_ml_mend(&inquiry, &order));
}
