/*
 * retry.c
 *		Parked changes tried again without a person, and tables healed by a copy
 *		where trying again cannot help.
 *
 * What a change failed for goes away when a catalog changes, when a row arrives
 * that it waited for, or when a later version or a copy makes it superfluous.
 * So each apply worker goes through the parked changes of its peer (and of
 * nodes that have left), table by table and in order: soon after a catalog has
 * changed here or something was parked, else ever less often.  It does so
 * between transactions of the stream, for a moment at a time and without
 * waiting for locks, so that the stream is not held up.  Losers of conflicts are
 * a person's.  What took the server down (server/crash.c) is tried again once,
 * some minutes later, as it may have been killed for no fault of its own; if it
 * does so again, its table is a person's.
 *
 * A change whose columns are not those of the table any more, or that was
 * counted and not kept (park.c), needs what the row has become: the table is
 * copied from its peer as soon as it has the same columns there, and the copy
 * clears what was parked (fetch.c).  One that only lacks columns gets their
 * defaults then.
 *
 * Called by the apply worker (group/worker.c); uses apply/again.c.  Not what is
 * parked when (apply/change.c).  Locks: repl_ml_shared->lock for what the
 * worker is asked; those of a change it waits for a moment only.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "replication/origin.h"
#include "utils/builtins.h"
#include "utils/inval.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"

#include "apply/apply.h"
#include "compat.h"
#include "converge/converge.h"
#include "copy/copy.h"
#include "server/server.h"
#include "wire/wire.h"

#define FIRST_DELAY_MS		500 /* after a change of the catalogs, or parking */
#define LONGEST_DELAY_MS	60000
#define SLICE_MS			20	/* at a time, between transactions */
#define REST_MS				60	/* ... and then the stream has as long, if it
								 * brings anything */
#define MOST_REST			20	/* times what a round took that brought nothing,
								 * until the next one */
#define SHORT_REST			4	/* part of what one took, if it brought something
								 * or a catalog has changed */
#define BATCH				"50"
#define CRASH_REST			"'10 min'"	/* until what took the server down is tried
										 * again, once */
#define LOCK_PATIENCE_MS	10
#define SCHEMA_PATIENCE_MS	300 /* for one that changes the schema, which others stand behind */
#define LOCKED_DELAY_MS		100 /* after something has met a lock, and at least ... */
#define LONGEST_LOCKED_DELAY_MS 1000	/* ... that often as long as it does */

/* A table's columns, as the same text on both nodes if the table is the same. */
#define COLUMNS_OF_TABLE \
	"SELECT coalesce(pg_catalog.string_agg(pg_catalog.format('%%I %%s %%s', a.attname," \
	" pg_catalog.format_type(a.atttypid, a.atttypmod), l.label), ', '" \
	" ORDER BY a.attname COLLATE pg_catalog.\"C\"), '')" \
	" FROM pg_catalog.pg_attribute a LEFT JOIN pg_catalog.pg_seclabel l" \
	" ON l.provider OPERATOR(pg_catalog.=) 'repl_ml'" \
	" AND l.classoid OPERATOR(pg_catalog.=) 'pg_catalog.pg_class'::pg_catalog.regclass" \
	" AND l.objoid OPERATOR(pg_catalog.=) a.attrelid" \
	" AND l.objsubid OPERATOR(pg_catalog.=) a.attnum" \
	" AND a.attname OPERATOR(pg_catalog.<>) '__repl_clock'" \
	" JOIN pg_catalog.pg_class c ON c.oid OPERATOR(pg_catalog.=) a.attrelid" \
	" JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) c.relnamespace" \
	" WHERE n.nspname OPERATOR(pg_catalog.=) %s AND c.relname OPERATOR(pg_catalog.=) %s" \
	" AND a.attnum OPERATOR(pg_catalog.>) 0 AND NOT a.attisdropped" \
	" AND a.attgenerated OPERATOR(pg_catalog.=) ''"

/* A parked change, or what stands for those that were only counted. */
typedef struct Parked
{
	char	   *schema_name;
	char	   *table_name;
	int64		id;
	bool		counted;
	bool		crashed;		/* it took the server down, long ago */
	bool		only_lacks;		/* columns; it need not be copied */
} Parked;

/* Where the present round is; written by this file only. */
static struct
{
	bool		running;
	bool		only_locked;	/* tries just what has met a lock */
	bool		any;			/* something was there to try */
	bool		met_lock;
	bool		progressed;
	int			spent;			/* ms */
	NameData	schema_name;
	NameData	table_name;
	int64		id;
	List	   *unfit;			/* of Parked: one of each table to be copied */
} pass;
static MemoryContext pass_context = NULL;	/* of the list; reset at its end */
static List *trusted = NIL;		/* of Parked: tables whose columns were the same
								 * on the peer at the end of the last round */
static MemoryContext trusted_context = NULL;	/* of that list */
static TimestampTz next_try = 0;
static int	delay = FIRST_DELAY_MS;
static TimestampTz rest_until = 0;	/* a change of the catalogs waits so long */
static TimestampTz next_locked = 0; /* the next round of what has met a lock; 0:
									 * nothing has */
static int	locked_delay = LOCKED_DELAY_MS;
static bool changed = false;	/* catalogs, since the last round began */

static void listen_to_catalogs(void);
static List *load_next_changes(ReplMlApply *apply);
static void try_change(ReplMlApply *apply, Parked *change);
static void begin_pass(TimestampTz now);
static void plan_next_pass(TimestampTz now);
static void finish_pass(ReplMlApply *apply);
static void heal_table(ReplMlApply *apply, Parked *table);

/*
 * Returns, for the apply worker's wait, after how many milliseconds there is
 * something to do.
 */
int
repl_ml_retry_due(void)
{
	TimestampTz due = next_locked == 0 ? next_try : Min(next_try, next_locked);

	return (int) Min(TimestampDifferenceMilliseconds(GetCurrentTimestamp(), due), LONGEST_DELAY_MS);
}

/* Called by core when a relation has changed. */
static void
catalogs_have_changed(Datum arg, Oid relid)
{
	changed = true;
}

/* Called by core when one of the other catalogs has changed. */
static void
syscache_has_changed(Datum arg, int cache, uint32 hash)
{
	changed = true;
}

/*
 * Makes core tell, once, of whatever a change may have failed for: tables, and
 * what they are made of.
 */
static void
listen_to_catalogs(void)
{
	static bool listening = false;
	static const int caches[] = {PROCOID, TYPEOID, CONSTROID, ENUMOID, NAMESPACEOID, OPEROID,
	COLLOID, AUTHOID};

	if (listening)
		return;
	listening = true;
	pass_context = AllocSetContextCreate(TopMemoryContext, "repl_ml tables to heal",
										 ALLOCSET_SMALL_SIZES);
	trusted_context = AllocSetContextCreate(TopMemoryContext, "repl_ml tables that fit",
											ALLOCSET_SMALL_SIZES);
	CacheRegisterRelcacheCallback(catalogs_have_changed, (Datum) 0);
	for (int i = 0; i < lengthof(caches); i++)
		CacheRegisterSyscacheCallback(caches[i], syscache_has_changed, (Datum) 0);
}

/* Says whether somebody wants us to try at once, and forgets that. */
static bool
is_asked(ReplMlApply *apply)
{
	bool		asked;

	LWLockAcquire(repl_ml_shared->lock, LW_EXCLUSIVE);
	asked = apply->worker->retry_parked;
	apply->worker->retry_parked = false;
	LWLockRelease(repl_ml_shared->lock);
	return asked;
}

/*
 * Says whether this node is still joining: then tables may be there that are
 * not enrolled yet, and have to stay empty until they are.
 */
static bool
is_joining(ReplMlApply *apply)
{
	bool		joining;

	repl_ml_begin();
	joining = repl_ml_identity_require()->joining;
	repl_ml_commit();
	MemoryContextSwitchTo(apply->message_context);
	return joining;
}

/*
 * Goes on with the round, if it is time; called by the apply worker outside
 * transactions of the stream.
 */
void
repl_ml_retry_step(ReplMlApply *apply)
{
	static XLogRecPtr received = InvalidXLogRecPtr; /* at the end of the last slice */
	TimestampTz start = GetCurrentTimestamp();
	bool		idle = apply->progress.received == received;

	listen_to_catalogs();

	/*
	 * why it may be time: something was parked, met a lock, was asked for, or
	 * a catalog has changed
	 */
	if (repl_ml_apply_retry_is_wanted())
	{
		delay = FIRST_DELAY_MS;
		changed = true;
		pass.any = true;
	}
	if (repl_ml_apply_retry_is_locked() && next_locked == 0)
	{
		locked_delay = LOCKED_DELAY_MS;
		next_locked = TimestampTzPlusMilliseconds(start, locked_delay);
	}
	if (is_asked(apply))
		next_try = 0;
	else if (changed && pass.any && !pass.running)
	{
		delay = FIRST_DELAY_MS;
		next_try = Min(next_try,
					   Max(rest_until, TimestampTzPlusMilliseconds(start, FIRST_DELAY_MS)));
	}
	if (repl_ml_retry_due() > 0)
		return;
	if (!pass.running && is_joining(apply))
	{
		next_try = TimestampTzPlusMilliseconds(start, FIRST_DELAY_MS);
		next_locked = 0;
		return;
	}
	if (!pass.running)
		begin_pass(start);

	/* a slice, so that the stream is not held up */
	while (pass.running && !TimestampDifferenceExceeds(start, GetCurrentTimestamp(), SLICE_MS))
	{
		List	   *changes = load_next_changes(apply);
		ListCell   *lc;

		foreach(lc, changes)
		{
			try_change(apply, lfirst(lc));
			if (TimestampDifferenceExceeds(start, GetCurrentTimestamp(), SLICE_MS))
				break;
		}
		if (changes == NIL)
			finish_pass(apply);
		MemoryContextReset(apply->message_context);
	}
	pass.spent += TimestampDifferenceMilliseconds(start, GetCurrentTimestamp());
	received = apply->progress.received;
	if (pass.running && pass.only_locked)
		next_locked = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), idle ? 0 : REST_MS);
	else if (pass.running)
		next_try = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), idle ? 0 : REST_MS);
	else
		plan_next_pass(GetCurrentTimestamp());
}

/*
 * Begins a round: of all, if it is time for that, or of what has met a lock.
 */
static void
begin_pass(TimestampTz now)
{
	bool		any = pass.any;

	memset(&pass, 0, sizeof(pass));
	pass.running = true;
	pass.only_locked = now < next_try;
	if (pass.only_locked)
		pass.any = any;
	else
		changed = false;
}

/*
 * Says when the next round begins: the longer one takes, and the less it
 * brings, the later.  A lock is looked after often, as long as anything meets
 * one.
 */
static void
plan_next_pass(TimestampTz now)
{
	int			pause = pass.progressed ? pass.spent / SHORT_REST :
		Min(pass.spent, INT_MAX / MOST_REST) * MOST_REST;

	locked_delay = pass.progressed ? LOCKED_DELAY_MS :
		Min(locked_delay * 2, LONGEST_LOCKED_DELAY_MS);
	next_locked = pass.met_lock ?
		TimestampTzPlusMilliseconds(now,
									Max(locked_delay, Min(pass.spent, LONGEST_LOCKED_DELAY_MS))) :
									0;
	if (pass.only_locked)
		return;
	/* one may have waited for another that has been applied now */
	delay = pass.progressed ? FIRST_DELAY_MS : Min(delay * 2, LONGEST_DELAY_MS);
	next_try = TimestampTzPlusMilliseconds(now, Max(delay, pause));
	rest_until = TimestampTzPlusMilliseconds(now, pass.spent / SHORT_REST);
}

/*
 * Returns the next parked changes behind where the round is, which are this
 * worker's to try.
 */
static List *
load_next_changes(ReplMlApply *apply)
{
	static SPIPlanPtr plan = NULL;
	List	   *changes = NIL;
	Oid			types[5] = {INT4OID, NAMEOID, NAMEOID, INT8OID, BOOLOID};
	Datum		values[5] = {Int32GetDatum(apply->peer->node_id), NameGetDatum(&pass.schema_name),
	NameGetDatum(&pass.table_name), Int64GetDatum(pass.id), BoolGetDatum(pass.only_locked)};

	repl_ml_begin();

	/*
	 * what took the server down rests first; what a node has left behind is
	 * anybody's; of a transaction that changes the schema that change stands for all
	 */
	SPI_execute_plan(repl_ml_spi_plan(&plan,
									  "SELECT p.schema_name, p.table_name, p.id,"
									  " p.action OPERATOR(pg_catalog.=) 'counted',"
									  " p.sqlstate OPERATOR(pg_catalog.=) '38000'"
									  " FROM repl_ml.parked_change p"
									  " WHERE ROW(p.schema_name, p.table_name, p.id)"
									  " OPERATOR(pg_catalog.>) ROW($2, $3, $4)"
									  " AND NOT p.put_aside"
									  " AND (ROW(p.schema_name, p.table_name)"
									  " OPERATOR(pg_catalog.=) ROW('repl_ml', 'schema_change')"
									  " OR NOT EXISTS (SELECT FROM repl_ml.parked_change f"
									  " WHERE f.origin_node OPERATOR(pg_catalog.=) p.origin_node"
									  " AND f.origin_lsn OPERATOR(pg_catalog.=) p.origin_lsn"
									  " AND f.schema_name OPERATOR(pg_catalog.=) 'repl_ml'"
									  " AND f.table_name OPERATOR(pg_catalog.=) 'schema_change'"
									  " AND NOT f.put_aside))"
									  " AND (NOT $5 OR p.sqlstate OPERATOR(pg_catalog.=) '55P03')"
									  " AND p.action OPERATOR(pg_catalog.=) ANY"
									  " ('{insert,update,delete,counted}')"
									  " AND (p.sqlstate OPERATOR(pg_catalog.<>) '38000'"
									  " OR (p.parked_at OPERATOR(pg_catalog.<)"
									  " (pg_catalog.clock_timestamp() OPERATOR(pg_catalog.-)"
									  " " CRASH_REST "::pg_catalog.interval)"
									  " AND NOT EXISTS (SELECT FROM repl_ml.parked_change f"
									  " WHERE f.schema_name OPERATOR(pg_catalog.=) p.schema_name"
									  " AND f.table_name OPERATOR(pg_catalog.=) p.table_name"
									  " AND f.sqlstate OPERATOR(pg_catalog.=) '38000'"
									  " AND f.message OPERATOR(pg_catalog.=)"
									  " '" REPL_ML_CRASHED_AGAIN "')))"
									  " AND (p.origin_node OPERATOR(pg_catalog.=) $1"
									  " OR NOT EXISTS (SELECT FROM repl_ml.member m"
									  " WHERE m.node_id OPERATOR(pg_catalog.=) p.origin_node"
									  " AND m.state OPERATOR(pg_catalog.<>) 'dropped'))"
									  " ORDER BY p.schema_name, p.table_name, p.id LIMIT " BATCH, 5,
									  types), values, NULL, true, 0);
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		MemoryContext old = MemoryContextSwitchTo(apply->message_context);
		Parked	   *change = palloc(sizeof(Parked));

		change->schema_name = pstrdup(repl_ml_spi_text(i, 0));
		change->table_name = pstrdup(repl_ml_spi_text(i, 1));
		change->id = strtoll(repl_ml_spi_text(i, 2), NULL, 10);
		change->counted = strcmp(repl_ml_spi_text(i, 3), "t") == 0;
		change->crashed = strcmp(repl_ml_spi_text(i, 4), "t") == 0;
		changes = lappend(changes, change);
		MemoryContextSwitchTo(old);
	}
	repl_ml_commit();
	MemoryContextSwitchTo(apply->message_context);
	return changes;
}

/* Returns the entry of the change's table in the list, or NULL. */
static Parked *
find_table(List *tables, const Parked *change)
{
	ListCell   *lc;

	foreach(lc, tables)
	{
		Parked	   *other = lfirst(lc);

		if (strcmp(other->schema_name, change->schema_name) == 0 &&
			strcmp(other->table_name, change->table_name) == 0)
			return other;
	}
	return NULL;
}

/* Adds the change's table to a list in "context". */
static Parked *
add_table(List **tables, const Parked *change, MemoryContext context)
{
	MemoryContext old = MemoryContextSwitchTo(context);
	Parked	   *added = palloc(sizeof(Parked));

	*added = *change;
	added->schema_name = pstrdup(change->schema_name);
	added->table_name = pstrdup(change->table_name);
	*tables = lappend(*tables, added);
	MemoryContextSwitchTo(old);
	return added;
}

/* Notes that the change needs its table to be healed. */
static void
note_unfit(const Parked *change, bool only_lacks)
{
	Parked	   *table = find_table(pass.unfit, change);

	if (table == NULL)
	{
		table = add_table(&pass.unfit, change, pass_context);
		table->only_lacks = true;
	}
	table->only_lacks &= only_lacks;
}

/*
 * Goes on behind the change, or, with "whole_table", behind all of its table.
 */
static void
go_on_behind(const Parked *change, bool whole_table)
{
	namestrcpy(&pass.schema_name, change->schema_name);
	namestrcpy(&pass.table_name, change->table_name);
	pass.id = whole_table ? PG_INT64_MAX : change->id;
}

/* Says whether it was the whole table that the change found locked. */
static bool
is_table_locked(const Parked *change)
{
	bool		whole;

	StartTransactionCommand();
	whole = OidIsValid(repl_ml_locked_table(change->schema_name, change->table_name));
	CommitTransactionCommand();
	return whole;
}

/* Says whether it changes the schema. */
static bool
is_of_schema(const Parked *change)
{
	return strcmp(change->schema_name, REPL_ML_SCHEMA) == 0 &&
		strcmp(change->table_name, "schema_change") == 0;
}

/*
 * Tries one parked change, unless what stands before it of its table has shown
 * that it is no use.
 */
static void
try_change(ReplMlApply *apply, Parked *change)
{
	ReplMlParkedTry try = {.id = change->id,.crashed = change->crashed,
	.with_defaults = find_table(trusted, change) != NULL,.state = REPL_ML_PARKED_UNFIT};
	ErrorData  *error = NULL;
	bool		locked;

	if (strcmp(change->schema_name, NameStr(pass.schema_name)) == 0 &&
		strcmp(change->table_name, NameStr(pass.table_name)) == 0 && pass.id == PG_INT64_MAX)
		return;
	pass.any = true;
	if (is_of_schema(change))
		error = repl_ml_again_attempt(apply, &try, repl_ml_again_join_whole, SCHEMA_PATIENCE_MS);
	else if (!change->counted)
		error = repl_ml_again_attempt(apply, &try, repl_ml_again_join, LOCK_PATIENCE_MS);
	/* generated here now, say */
	if (error != NULL && error->sqlerrcode == ERRCODE_UNDEFINED_COLUMN && !is_of_schema(change))
		try.state = REPL_ML_PARKED_UNFIT;
	else if (error != NULL)
		try.state = REPL_ML_PARKED_GONE;
	if (!pass.only_locked &&
		(try.state == REPL_ML_PARKED_UNFIT || try.state == REPL_ML_PARKED_LACKS))
		note_unfit(change, try.state == REPL_ML_PARKED_LACKS);
	locked = error != NULL && error->sqlerrcode == ERRCODE_LOCK_NOT_AVAILABLE;
	pass.met_lock |= locked;
	/* one that can be applied may still stand behind one that cannot */
	go_on_behind(change, error != NULL && !is_of_schema(change) &&
				 (error->sqlerrcode == ERRCODE_UNDEFINED_TABLE ||
										   (locked && is_table_locked(change))));
	if (try.state == REPL_ML_PARKED_DONE)
		pass.progressed = true;
	/* that its table is banned is not what it was parked for */
	if (error != NULL && (locked || repl_ml_dispatch_is_permanent(error->sqlerrcode)) &&
		error->sqlerrcode != ERRCODE_EXTERNAL_ROUTINE_EXCEPTION)
		repl_ml_park_note(change->id, error);
}

/* Heals, at the end of a round, what it could not apply. */
static void
finish_pass(ReplMlApply *apply)
{
	ListCell   *lc;

	pass.running = false;
	if (pass.only_locked)
		return;
	trusted = NIL;
	MemoryContextReset(trusted_context);
	if (pass.unfit != NIL && apply->connection.stream != NULL)
	{
		foreach(lc, pass.unfit)
			heal_table(apply, lfirst(lc));
		repl_ml_sync_tables(apply);
		repl_ml_apply_set_state(apply, REPL_ML_WORKER_STREAMING);
	}
	pass.unfit = NIL;
	MemoryContextReset(pass_context);
}

/*
 * Orders a copy of the table, or has its changes tried again with defaults for
 * what they lack, if it has the same columns on the peer as here.
 */
static void
heal_table(ReplMlApply *apply, Parked *table)
{
	static const Oid types[1] = {TEXTOID};
	char	   *question = psprintf(COLUMNS_OF_TABLE, quote_literal_cstr(table->schema_name),
									quote_literal_cstr(table->table_name));
	ReplMlResult *result;
	char	   *theirs = NULL;
	bool		same;

	if (apply->connection.copy == NULL)
		apply->connection.copy = repl_ml_stream_connect(apply->peer->dsn, "copy");
	result = repl_ml_stream_query(apply->connection.copy, question, 1, types);
	if (repl_ml_stream_next(result) &&
		(slot_getallattrs(result->slot), !result->slot->tts_isnull[0]))
		theirs = MemoryContextStrdup(apply->message_context,
									 TextDatumGetCString(result->slot->tts_values[0]));
	repl_ml_stream_free(result);

	/* the same text means the same columns, with the same identities */
	repl_ml_begin();
	SPI_execute(question, true, 1);
	same = theirs != NULL && strcmp(theirs, repl_ml_spi_text(0, 0)) == 0;
	if (same && table->only_lacks)
	{
		(void) add_table(&trusted, table, trusted_context);
		pass.progressed = true;
	}
	else if (same)
		SPI_execute(psprintf("SELECT repl_ml.order_copy(%d, %s, %s)", apply->peer->node_id,
							 quote_literal_cstr(table->schema_name),
							 quote_literal_cstr(table->table_name)), false, 0);
	repl_ml_commit();
	MemoryContextSwitchTo(apply->message_context);
}
