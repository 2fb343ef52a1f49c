/*
 * compare.c
 *		Compares a table on all members: which keys have rows that seem to differ.
 *
 * A backend does it, for report.c.  All members hash their rows at the same
 * time, each under a snapshot of its own: for each chunk of keys there is a sum
 * of hashes (image.c, part.c).  Chunks with other sums are looked into: the
 * members tell the key, the hash and the clock of each of their rows, and keys
 * that are not the same everywhere are suspects.  Why they are, and whether it
 * is only that a change is still on its way, is settle.c's.
 *
 * A difference that stays is in both passes and so is found; one that is gone
 * in the second pass was on its way.  Chunks are looked into by as many as have
 * some 50,000 rows, so that memory is bounded whatever differs; the members read
 * only pages that had rows of these (places.c).
 *
 * Members are asked over one connection each, which stays open until the
 * transaction ends: for all questions of a comparison, and for all tables that are
 * compared in it.
 *
 * Not here: what one node does (part.c, known.c).  No locks of ours are held while the
 * others are waited for.
 */
#include "postgres.h"

#include "access/table.h"
#include "access/xact.h"
#include "catalog/pg_type.h"
#include "common/hashfn.h"
#include "libpq/pqformat.h"
#include "miscadmin.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"

#include "commit/commit.h"
#include "verify/verify.h"

#define CONNECT_MS			10000
#define LEAST_CONNECT_MS	3000
#define HOPELESS_MS			30000	/* a member that has been cut off so long */
#define SILENCE_US			60000000	/* so long a statement does not ask a member
										 * again that has not answered it */
#define BATCH_ROWS			50000
#define SAME_VERSION		REPL_ML_SAME_VERSION_HINT
#define UNREADABLE			"Its answer cannot be read."

/* A key in the second pass: its rows on the members. */
typedef struct KeyEntry
{
	ReplMlDigest digest;		/* hash key, of the texts */
	char	  **key;
	ReplMlSight *sights;
	int		   *rows;			/* of each member: one, unless its index is damaged */
} KeyEntry;

/* While members are asked: what is done here, and who has been silent since when. */
typedef struct Asking
{
	ReplMlPartQuestion *question;
	ReplMlComparison *comparison;
	StringInfo	own;			/* this node's answer */
	int		   *asked;			/* their places among the members */
	TimestampTz *cut_off;		/* since when each is */
} Asking;

/*
 * The members that have not answered a backend's statement: set by note_silence,
 * so that who compares many tables waits once for them, not for each table.
 */
static List *silent_nodes = NIL;
static TimestampTz silent_statement;	/* when that began */
static uint64 silent_until;		/* then they are asked again */

/* ---- silent members ---- */

/* Forgets who was silent before this statement, or long ago. */
static void
forget_silence(void)
{
	if (silent_statement == GetCurrentStatementStartTimestamp() &&
		repl_ml_monotonic_now() < silent_until)
		return;
	list_free(silent_nodes);
	silent_nodes = NIL;
	silent_statement = GetCurrentStatementStartTimestamp();
	silent_until = repl_ml_monotonic_now() + SILENCE_US;
}

/* Notes that a member has not answered. */
static void
note_silence(int node_id)
{
	MemoryContext old = MemoryContextSwitchTo(TopMemoryContext);

	forget_silence();
	silent_nodes = list_append_unique_int(silent_nodes, node_id);
	MemoryContextSwitchTo(old);
}

/* Says whether a member has not answered this statement, and is not asked again so soon. */
static bool
is_silent(int node_id)
{
	forget_silence();
	return list_member_int(silent_nodes, node_id);
}

/* ---- asking ---- */

/* Says whether the table of this member is compared. */
bool
repl_ml_compare_is_compared(const ReplMlComparison *comparison, int i)
{
	return comparison->members[i].problem == NULL;
}

/* Keeps, for as long as the comparison, why a member is not compared. */
static void
set_problem(ReplMlComparison *comparison, int i, const char *problem, const char *hint)
{
	ReplMlCompared *member = &comparison->members[i];

	member->problem = MemoryContextStrdup(comparison->context, problem);
	member->hint = hint == NULL ? NULL : MemoryContextStrdup(comparison->context, hint);
}

/* Notes that a member has no answer, and why; "error" is NULL if it has said nothing in it. */
static void
take_failure(ReplMlComparison *comparison, int i, const char *error)
{
	if (error == NULL)
		set_problem(comparison, i, UNREADABLE, SAME_VERSION);
	else
	{
		if (strcmp(error, REPL_ML_ASK_SILENT) == 0)
			note_silence(comparison->members[i].node_id);
		set_problem(comparison, i, error, NULL);
	}
}

/* What is done here while the others work. */
static void
do_own_part(void *argument)
{
	Asking	   *asking = argument;

	asking->own = asking->question->local(asking->question->argument);
	repl_ml_verify_phase(REPL_ML_VERIFY_WAITING);
}

/* Says whether a member that was asked has been cut off from this node for long. */
static bool
is_hopeless(int i, void *argument)
{
	Asking	   *asking = argument;
	ReplMlMemberState *states = palloc((REPL_ML_MAX_WORKERS + 1) * sizeof(ReplMlMemberState));
	int			count = repl_ml_members_states(states);
	TimestampTz now = GetCurrentTimestamp();
	bool		cut_off = false;

	repl_ml_throttle_look();
	for (int j = 0; j < count; j++)
		cut_off |= states[j].node_id == asking->comparison->members[asking->asked[i]].node_id &&
			!states[j].reachable;
	pfree(states);
	if (!cut_off)
		asking->cut_off[i] = 0;
	else if (asking->cut_off[i] == 0)
		asking->cut_off[i] = now;
	return cut_off && TimestampDifferenceExceeds(asking->cut_off[i], now, HOPELESS_MS);
}

/* Returns the bytes that an answer, as text, stands for. */
StringInfo
repl_ml_compare_read_hex(const char *text)
{
	StringInfo	bytes = makeStringInfo();
	Size		length = strlen(text);

	if (strncmp(text, "\\x", 2) != 0)
		ereport(ERROR,
				(errcode(ERRCODE_PROTOCOL_VIOLATION),
				 errmsg("a member has not answered in bytes"),
				 errhint(SAME_VERSION)));
	enlargeStringInfo(bytes, (length - 2) / 2);
	bytes->len = hex_decode(text + 2, length - 2, bytes->data);
	bytes->data[bytes->len] = '\0';
	return bytes;
}

/*
 * Takes a member's answer: notes why it cannot be compared, or leaves the
 * answer to be read on.
 */
static void
take_answer(ReplMlComparison *comparison, int i, StringInfo answer)
{
	switch (pq_getmsgbyte(answer))
	{
		case REPL_ML_PART_IS_THERE:
			return;
		case REPL_ML_PART_MISSING:
			set_problem(comparison, i, "It does not have the table.",
						"See SELECT * FROM repl_ml.tables.");
			return;
		case REPL_ML_PART_COPIED:
			set_problem(comparison, i, "The table is still to be copied there.",
						"See SELECT * FROM repl_ml.health on that node.");
			return;
		case REPL_ML_PART_DIFFERS:
			comparison->members[i].signature =
				MemoryContextStrdup(comparison->context, answer->data + answer->cursor);
			set_problem(comparison, i, "Its table has other columns or another key.",
						"See SELECT * FROM repl_ml.shape_differences.");
			return;
		default:
			set_problem(comparison, i, UNREADABLE, SAME_VERSION);
	}
}

/* Returns the statement that asks a question. */
static char *
make_statement(const ReplMlPartQuestion *question, ReplMlPace pace)
{
	StringInfoData sql;

	initStringInfo(&sql);
	appendStringInfo(&sql, "%s %s.%s($1, $2, $3, $4", question->is_scan ? "CALL" : "SELECT",
					 REPL_ML_SCHEMA, question->function);
	for (int i = 0; i < question->nparams; i++)
		appendStringInfo(&sql, ", $%d", i + 5);
	if (question->is_scan)
		appendStringInfo(&sql, ", %d, %d, NULL", pace.rate, pace.max_lag_ms);
	appendStringInfoChar(&sql, ')');
	return sql.data;
}

/*
 * Returns what asks one of two questions in a transaction, which is more than one
 * statement: the first one begins it, the last one ends it.
 */
static char *
make_statements(const ReplMlPartQuestion *question, const char *const *params)
{
	StringInfoData sql;

	initStringInfo(&sql);
	if (question->turn == REPL_ML_TURN_FIRST)
		appendStringInfoString(&sql, "BEGIN ISOLATION LEVEL REPEATABLE READ;"
							   " SET LOCAL idle_in_transaction_session_timeout = 0; ");
	appendStringInfo(&sql, "SELECT %s.%s(", REPL_ML_SCHEMA, question->function);
	for (int i = 0; i < 4 + question->nparams; i++)
		appendStringInfo(&sql, "%s%s", i > 0 ? ", " : "", quote_literal_cstr(params[i]));
	appendStringInfo(&sql, ")%s", question->turn == REPL_ML_TURN_FIRST ? "" : "; COMMIT");
	return sql.data;
}

/* Returns how long a member may take to be asked: no longer than the caller waits for any. */
static int64
connect_patience(const ReplMlComparison *comparison)
{
	return Min(CONNECT_MS, Max(comparison->patience_ms, LEAST_CONNECT_MS));
}

/* Asks the others, and does this node's part; answers and errors are one for each asked. */
static void
ask_others(Asking *asking, int count, char **answers, char **errors)
{
	ReplMlPartQuestion *question = asking->question;
	ReplMlComparison *comparison = asking->comparison;
	const ReplMlInquiry *inquiry = &comparison->inquiry;
	char	  **dsns = palloc((count + 1) * sizeof(char *));
	const char *params[8] = {inquiry->schema_name, inquiry->table_name, inquiry->signature,
	psprintf("%d", inquiry->chunks)};
	ReplMlQuestions all = {.count = count,.dsns = dsns,
		.query = make_statement(question, inquiry->pace),
		.nparams = 4 + question->nparams,.params = params,
		.sent_by = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), connect_patience(comparison)),
		.deadline = question->deadline,.meanwhile = do_own_part,.is_hopeless = is_hopeless,
		.argument = asking,.keeps = true,.goes_on = question->turn == REPL_ML_TURN_LAST,
	.answers = answers,.errors = errors};

	for (int i = 0; i < count; i++)
		dsns[i] = comparison->members[asking->asked[i]].dsn;
	memcpy(params + 4, question->params, question->nparams * sizeof(char *));
	if (question->turn != REPL_ML_TURN_ONLY)
	{
		all.query = make_statements(question, params);
		all.params = NULL;
	}
	repl_ml_ask_beside(&all);
}

/*
 * Asks all members that are compared, this node among them, at the same time.
 * Who has no answer is not compared any more, and it is noted why.
 */
void
repl_ml_compare_ask(ReplMlComparison *comparison, ReplMlPartQuestion *question)
{
	Asking		asking = {.question = question,.comparison = comparison};
	char	  **answers = palloc0(comparison->count * sizeof(char *));
	char	  **errors = palloc0(comparison->count * sizeof(char *));
	ReplMlVerifyPhase phase = repl_ml_verify_phase_now();
	int			count = 0;

	asking.asked = palloc0(comparison->count * sizeof(int));
	asking.cut_off = palloc0(comparison->count * sizeof(TimestampTz));
	question->answers = palloc0(comparison->count * sizeof(StringInfo));
	for (int i = 1; i < comparison->count; i++)
	{
		if (repl_ml_compare_is_compared(comparison, i))
			asking.asked[count++] = i;
	}
	ask_others(&asking, count, answers, errors);
	repl_ml_verify_phase(phase);
	question->answers[0] = asking.own;
	for (int i = 0; i < count; i++)
	{
		if (answers[i] == NULL)
			take_failure(comparison, asking.asked[i], errors[i]);
		else
		{
			question->answers[asking.asked[i]] = repl_ml_compare_read_hex(answers[i]);
			pfree(answers[i]);
		}
	}
	for (int i = 0; i < comparison->count; i++)
	{
		if (question->answers[i] != NULL)
			take_answer(comparison, i, question->answers[i]);
		if (!repl_ml_compare_is_compared(comparison, i))
			question->answers[i] = NULL;
	}
	/* the table here has been altered since the comparison began */
	if (!repl_ml_compare_is_compared(comparison, 0))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("table \"%s.%s\" cannot be compared now", comparison->inquiry.schema_name,
						comparison->inquiry.table_name),
				 errdetail_internal("%s", comparison->members[0].problem),
				 errhint("Try it again, or see SELECT * FROM repl_ml.tables.")));
}

/* ---- first pass ---- */

/* This node's part of the first pass. */
static StringInfo
sum_here(void *argument)
{
	ReplMlComparison *comparison = argument;

	return repl_ml_part_sums(&comparison->inquiry, repl_ml_clock_from_text(comparison->stable));
}

/* Reads a member's sums. */
static void
read_sums(ReplMlComparison *comparison, ReplMlCompared *member, StringInfo answer)
{
	member->rows = pq_getmsgint64(answer);
	comparison->hashed_rows += member->rows;
	member->chunks = palloc(comparison->inquiry.chunks * sizeof(ReplMlChunk));
	for (int i = 0; i < comparison->inquiry.chunks; i++)
	{
		member->chunks[i].rows = pq_getmsgint64(answer);
		member->chunks[i].sum.lane[0] = pq_getmsgint64(answer);
		member->chunks[i].sum.lane[1] = pq_getmsgint64(answer);
	}
}

/* Says whether two sums are the same. */
bool
repl_ml_compare_are_equal(const ReplMlChunk *a, const ReplMlChunk *b)
{
	return a->rows == b->rows && a->sum.lane[0] == b->sum.lane[0] &&
		a->sum.lane[1] == b->sum.lane[1];
}

/* Lets all members sum up their rows. */
static void
sum_everywhere(ReplMlComparison *comparison)
{
	ReplMlPartQuestion question = {.function = "verify_sums",.nparams = 1,
		.params = {comparison->stable},.is_scan = true,.local = sum_here,
	.argument = comparison,.deadline = DT_NOEND};

	repl_ml_compare_ask(comparison, &question);
	for (int i = 0; i < comparison->count; i++)
	{
		if (question.answers[i] == NULL)
			continue;
		read_sums(comparison, &comparison->members[i], question.answers[i]);
		pfree(question.answers[i]->data);
	}
	repl_ml_verify_progress(comparison->inquiry.chunks, comparison->members[0].rows, 0);
}

/*
 * Returns how many rows a chunk has, at most, if it is not the same on all
 * members; -1 if it is.
 */
static int64
differing_rows(const ReplMlComparison *comparison, int chunk)
{
	const ReplMlChunk *first = &comparison->members[0].chunks[chunk];
	int64		most = first->rows;
	bool		differs = false;

	for (int i = 1; i < comparison->count; i++)
	{
		const ReplMlChunk *other;

		if (!repl_ml_compare_is_compared(comparison, i))
			continue;
		other = &comparison->members[i].chunks[chunk];
		differs |= !repl_ml_compare_are_equal(first, other);
		most = Max(most, other->rows);
	}
	return differs ? most : -1;
}

/* ---- second pass ---- */

/* The chunks that are looked into at once. */
typedef struct Batch
{
	ReplMlComparison *comparison;
	bytea	   *wanted;
} Batch;

/* This node's part of the second pass. */
static StringInfo
name_here(void *argument)
{
	Batch	   *batch = argument;

	return repl_ml_part_rows(&batch->comparison->inquiry, batch->wanted);
}

/* Returns bytes of an answer as a clock; NULL if they cannot be one. */
static const ReplMlClock *
make_clock(const char *data, int size)
{
	ReplMlClock *clock = palloc(VARHDRSZ + size);

	SET_VARSIZE(clock, VARHDRSZ + size);
	memcpy(VARDATA(clock), data, size);
	return repl_ml_clock_is_whole(clock) ? clock : NULL;
}

/* Reads the clock of a row, or of a deletion, for this file and settle.c. */
void
repl_ml_compare_read_clock(StringInfo answer, ReplMlSight *sight)
{
	int			size = (int) pq_getmsgint(answer, 4);

	sight->clock = size < 0 ? NULL : make_clock(pq_getmsgbytes(answer, size), size);
	sight->damaged = sight->clock == NULL;
}

/* Reads a hash. */
ReplMlDigest
repl_ml_compare_read_digest(StringInfo answer)
{
	ReplMlDigest digest;

	digest.lane[0] = pq_getmsgint64(answer);
	digest.lane[1] = pq_getmsgint64(answer);
	return digest;
}

/* Reads the texts of a key; "digest" becomes their hash. */
char **
repl_ml_compare_read_key(int natts, StringInfo answer, ReplMlDigest *digest)
{
	char	  **key = palloc(natts * sizeof(char *));
	int			start = answer->cursor;
	const unsigned char *data = (unsigned char *) answer->data + start;

	for (int i = 0; i < natts; i++)
	{
		int			size = (int) pq_getmsgint(answer, 4);

		key[i] = pnstrdup(pq_getmsgbytes(answer, size), size);
	}
	digest->lane[0] = hash_bytes_extended(data, answer->cursor - start, 0);
	digest->lane[1] = hash_bytes_extended(data, answer->cursor - start, 1);
	return key;
}

/* Returns the entry of a key, a new one if need be. */
static KeyEntry *
get_entry(const ReplMlComparison *comparison, HTAB *keys, char **key, const ReplMlDigest *digest)
{
	bool		found;
	KeyEntry   *entry = hash_search(keys, digest, HASH_ENTER, &found);

	if (found)
		return entry;
	entry->key = key;
	entry->sights = palloc0(comparison->count * sizeof(ReplMlSight));
	entry->rows = palloc0(comparison->count * sizeof(int));
	for (int i = 0; i < comparison->count; i++)
		entry->sights[i].kind = 'A';
	return entry;
}

/*
 * Puts the rows that member "i" has told into the table of keys.  Of a scan that
 * has rested, and so has several snapshots, a row that was written meanwhile may
 * come twice, under two clocks.
 */
static void
collect_rows(ReplMlComparison *comparison, int i, StringInfo answer, HTAB *keys)
{
	bool		is_one_snapshot = comparison->inquiry.pace.rate < 0;

	while (answer->cursor < answer->len)
	{
		ReplMlDigest digest;
		char	  **key = repl_ml_compare_read_key(comparison->key_natts, answer, &digest);
		KeyEntry   *entry = get_entry(comparison, keys, key, &digest);
		ReplMlSight sight = {.kind = 'R',.content = repl_ml_compare_read_digest(answer)};

		CHECK_FOR_INTERRUPTS();
		repl_ml_compare_read_clock(answer, &sight);
		if (entry->rows[i] == 0 || is_one_snapshot ||
			repl_ml_settle_same_clocks(entry->sights[i].clock, sight.clock))
			entry->rows[i]++;
		entry->sights[i] = sight;
	}
}

/* Says whether some member has more than one row with the key. */
static bool
is_doubled(const ReplMlComparison *comparison, const KeyEntry *entry)
{
	for (int i = 0; i < comparison->count; i++)
	{
		if (entry->rows[i] > 1)
			return true;
	}
	return false;
}

/* Returns the keys whose rows are not the same everywhere, or are more than one. */
static List *
find_suspects(ReplMlComparison *comparison, HTAB *keys)
{
	HASH_SEQ_STATUS scan;
	KeyEntry   *entry;
	List	   *suspects = NIL;

	hash_seq_init(&scan, keys);
	while ((entry = hash_seq_search(&scan)) != NULL)
	{
		ReplMlSuspect *suspect;

		if (repl_ml_settle_is_equal(comparison, entry->sights) && !is_doubled(comparison, entry))
			continue;
		suspect = palloc0(sizeof(ReplMlSuspect));
		suspect->key = entry->key;
		suspect->now = entry->sights;
		suspect->scanned = entry->rows;
		suspects = lappend(suspects, suspect);
	}
	return suspects;
}

/* A key as the table's own equality sees it. */
typedef struct DistinctKey
{
	uint64		hash;			/* hash key */
	List	   *keys;			/* of Datum *: those that share it */
} DistinctKey;

/* Says whether the key is equal to one of a list. */
static bool
is_listed(ReplMlTable *table, List *keys, Datum *key)
{
	ListCell   *lc;

	foreach(lc, keys)
	{
		if (repl_ml_key_equal(table, lfirst(lc), key))
			return true;
	}
	return false;
}

/*
 * Returns the suspects without those whose key is equal to another's, though
 * not the same to the byte: 1.0 and 1.00 are one row.
 */
List *
repl_ml_compare_distinct(const ReplMlComparison *comparison, List *suspects)
{
	HASHCTL		ctl = {.keysize = sizeof(uint64),.entrysize = sizeof(DistinctKey),
	.hcxt = comparison->batch};
	HTAB	   *seen = hash_create("repl_ml distinct keys", 1024, &ctl,
								   HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	Relation	rel = table_open(comparison->relid, AccessShareLock);
	ReplMlTable *table = repl_ml_table_get(rel);
	List	   *distinct = NIL;
	int			order[INDEX_MAX_KEYS];
	ReplMlUser	saved;
	ListCell   *lc;

	(void) repl_ml_image_key_order(table, RelationGetDescr(rel), order);
	PushActiveSnapshot(GetTransactionSnapshot());
	repl_ml_become_owner(rel, &saved);
	foreach(lc, suspects)
	{
		Datum	   *key = palloc(INDEX_MAX_KEYS * sizeof(Datum));
		uint64		hash;
		bool		found;
		DistinctKey *entry;

		if (!repl_ml_known_read_key(rel, table, order, ((ReplMlSuspect *) lfirst(lc))->key, key))
		{
			distinct = lappend(distinct, lfirst(lc));
			continue;
		}
		hash = repl_ml_key_hash(table, key);
		entry = hash_search(seen, &hash, HASH_ENTER, &found);
		if (!found)
			entry->keys = NIL;
		if (is_listed(table, entry->keys, key))
			continue;
		entry->keys = lappend(entry->keys, key);
		distinct = lappend(distinct, lfirst(lc));
	}
	repl_ml_become_self(&saved);
	PopActiveSnapshot();
	table_close(rel, AccessShareLock);
	return distinct;
}

/* Has all members name the rows in the chunks of a batch; returns what they have by key. */
static HTAB *
name_rows(Batch *batch)
{
	ReplMlComparison *comparison = batch->comparison;
	HASHCTL		ctl = {.keysize = sizeof(ReplMlDigest),.entrysize = sizeof(KeyEntry),
	.hcxt = comparison->batch};
	HTAB	   *keys = hash_create("repl_ml keys", 1024, &ctl,
								   HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	ReplMlPartQuestion question = {.function = "verify_rows",.is_scan = true,.nparams = 1,
		.local = name_here,.argument = batch,.deadline = DT_NOEND,
		.params = {DatumGetCString(DirectFunctionCall1(byteaout, PointerGetDatum(batch->wanted)))}
	};

	repl_ml_verify_phase(REPL_ML_VERIFY_NAMING);
	repl_ml_compare_ask(comparison, &question);
	for (int i = 0; i < comparison->count; i++)
	{
		if (question.answers[i] != NULL)
			collect_rows(comparison, i, question.answers[i], keys);
	}
	return keys;
}

/* Returns the entry of a key; NULL if no member has named it. */
static const KeyEntry *
find_entry(const ReplMlComparison *comparison, HTAB *keys, char **key)
{
	StringInfoData texts;
	ReplMlDigest digest;

	initStringInfo(&texts);
	for (int i = 0; i < comparison->key_natts; i++)
		repl_ml_part_send_bytes(&texts, key[i], strlen(key[i]));
	(void) repl_ml_compare_read_key(comparison->key_natts, &texts, &digest);
	return hash_search(keys, &digest, HASH_FIND, NULL);
}

/*
 * Keeps the marks of those members whose scan finds more rows with the key than
 * the index has led to, once more; says whether there are any.
 */
static bool
confirm_astray(const ReplMlComparison *comparison, HTAB *keys, ReplMlSuspect *suspect)
{
	const KeyEntry *entry = find_entry(comparison, keys, suspect->key);
	bool		any = false;

	for (int i = 0; i < comparison->count; i++)
	{
		suspect->astray[i] = suspect->astray[i] && entry != NULL &&
			entry->rows[i] > (suspect->now[i].kind == 'R' ? 1 : 0);
		any |= suspect->astray[i];
	}
	if (!any)
		suspect->astray = NULL;
	return any;
}

/* Takes the keys off the list of which some member has several rows, and returns them. */
static List *
take_doubled(const ReplMlComparison *comparison, List **suspects)
{
	List	   *doubled = NIL;
	List	   *others = NIL;
	ListCell   *lc;

	foreach(lc, *suspects)
	{
		ReplMlSuspect *suspect = lfirst(lc);
		bool		is_one = false;

		for (int i = 0; i < comparison->count; i++)
			is_one |= suspect->scanned[i] > 1;
		if (!is_one)
		{
			others = lappend(others, suspect);
			continue;
		}
		suspect->astray = palloc(comparison->count * sizeof(bool));
		for (int i = 0; i < comparison->count; i++)
			suspect->astray[i] = suspect->scanned[i] > 1;
		doubled = lappend(doubled, suspect);
	}
	*suspects = others;
	return doubled;
}

/*
 * Looks once more at keys whose rows and index do not seem to agree: those that
 * are doubled, and of the differences noted since "first" those that are marked.
 */
static void
look_at_indexes(Batch *batch, List *doubled, int first)
{
	ReplMlComparison *comparison = batch->comparison;
	List	   *others = NIL;
	HTAB	   *keys;
	bool		any = doubled != NIL;
	ListCell   *lc;

	for_each_from(lc, comparison->suspects, first)
		any |= ((ReplMlSuspect *) lfirst(lc))->astray != NULL;
	if (!any)
		return;
	keys = name_rows(batch);
	for_each_from(lc, comparison->suspects, first)
	{
		if (((ReplMlSuspect *) lfirst(lc))->astray != NULL)
			(void) confirm_astray(comparison, keys, lfirst(lc));
	}
	foreach(lc, doubled)
	{
		if (confirm_astray(comparison, keys, lfirst(lc)))
			repl_ml_settle_astray(comparison, lfirst(lc));
		else
			others = lappend(others, lfirst(lc));
	}
	repl_ml_settle(comparison, others);
}

/*
 * Looks into the chunks of a batch; what differs in the end is noted by settle.c,
 * which finds rows by their index.  A row that the index does not lead to, or
 * that is there twice, is in a scan only.
 */
static void
look_into(Batch *batch)
{
	ReplMlComparison *comparison = batch->comparison;
	int			first = list_length(comparison->suspects);
	List	   *suspects = repl_ml_compare_distinct(comparison,
											 find_suspects(comparison, name_rows(batch)));
	List	   *doubled = take_doubled(comparison, &suspects);

	repl_ml_settle(comparison, suspects);
	look_at_indexes(batch, doubled, first);
}

/*
 * Chooses, from chunk "next" on, some that differ; returns the one behind them,
 * and sets *empty to true if there is none.
 */
static int
choose_chunks(const ReplMlComparison *comparison, int next, Batch *batch, bool *empty)
{
	Size		size = VARHDRSZ + (comparison->inquiry.chunks + 7) / 8;
	int64		rows = 0;
	uint8	   *bits;

	batch->wanted = palloc0(size);
	SET_VARSIZE(batch->wanted, size);
	bits = (uint8 *) VARDATA(batch->wanted);
	*empty = true;
	for (; next < comparison->inquiry.chunks && rows < BATCH_ROWS; next++)
	{
		int64		most = differing_rows(comparison, next);

		if (most < 0)
			continue;
		bits[next / 8] |= 1 << next % 8;
		rows += most;
		*empty = false;
	}
	return next;
}

/* Says whether the time for members to catch up is over. */
static bool
is_time_over(const ReplMlComparison *comparison)
{
	return comparison->deadline != 0 && GetCurrentTimestamp() >= comparison->deadline;
}

/* Counts the chunks that differ, from one on, and are left as they are. */
static void
leave_chunks(ReplMlComparison *comparison, int next)
{
	for (; next < comparison->inquiry.chunks; next++)
		comparison->left_chunks += differing_rows(comparison, next) >= 0;
}

/*
 * Looks into all chunks that differ, a batch at a time, until the time for
 * members to catch up is over.
 */
static void
look_into_chunks(ReplMlComparison *comparison)
{
	int			next = 0;

	while (next < comparison->inquiry.chunks && !comparison->has_more && !is_time_over(comparison))
	{
		MemoryContext old = MemoryContextSwitchTo(comparison->batch);
		Batch		batch = {.comparison = comparison};
		bool		empty;

		next = choose_chunks(comparison, next, &batch, &empty);
		if (!empty)
			look_into(&batch);
		MemoryContextSwitchTo(old);
		MemoryContextReset(comparison->batch);
	}
	if (!comparison->has_more)
		leave_chunks(comparison, next);
}

/*
 * Compares the table, by what has changed if that is wanted and tells enough: sets
 * which members have been compared, and what differs.
 * The current memory context is the comparison's.
 */
void
repl_ml_compare(ReplMlComparison *comparison)
{
	comparison->context = CurrentMemoryContext;
	comparison->batch = AllocSetContextCreate(CurrentMemoryContext, "repl_ml batch to compare",
											  ALLOCSET_DEFAULT_SIZES);
	repl_ml_verify_begin(comparison->relid, comparison->inquiry.chunks);
	for (int i = 1; i < comparison->count; i++)
	{
		if (repl_ml_compare_is_compared(comparison, i) && is_silent(comparison->members[i].node_id))
			set_problem(comparison, i, REPL_ML_ASK_SILENT, NULL);
	}
	if (comparison->incremental && repl_ml_increment_compare(comparison))
		return;
	sum_everywhere(comparison);
	look_into_chunks(comparison);
}
