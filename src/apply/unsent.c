/*
 * unsent.c
 *		Rows that the peer has and could not send: noted by name, and missed
 *		until something newer of them arrives or a copy brings them.
 *
 * The peer's walsender says so in place of the change (write/output.c), and its
 * backend after a copy that left rows out (copy/donor.c).  A note is written in
 * the transaction that lacks the row.  It goes with the next change of the same row
 * that does arrive, from this peer, or from another with a clock that is not
 * before; and it makes the table be copied again, once in a while.  The heartbeat
 * tells the others that there are some.
 *
 * Not why a row could not be sent (write/output.c, copy/donor.c).  No locks
 * but those of the notes' rows.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/fmgrprotos.h"
#include "utils/pg_lsn.h"
#include "utils/snapmgr.h"

#include "apply/apply.h"
#include "row/row.h"
#include "server/server.h"
#include "wire/wire.h"

#define FIELDS		5			/* schema, table, key, clock or nothing, error */

static bool split_lines(char *content, char **fields);
static void add_note(ReplMlApply *apply, char **fields, bool of_transaction);
static void forget_notes(const ReplMlApply *apply, const char *schema_name, const char *table_name,
						 Datum key, const ReplMlClock *clock);

/*
 * Says, between transactions, now and then, whether there are notes of this
 * peer, and orders that their tables be copied again where it is time.  The
 * longer a row is missed, the later.
 */
bool
repl_ml_unsent_order_copies(ReplMlApply *apply)
{
	Oid			types[1] = {INT4OID};
	Datum		values[1] = {Int32GetDatum(apply->peer->node_id)};
	bool		any;

	StartTransactionCommand();
	if (repl_ml_spi_execute("SELECT FROM repl_ml.unsent LIMIT 1", 0, NULL, NULL, NULL) > 0)
		repl_ml_shmem_mark_unsent();
	any = repl_ml_spi_execute("SELECT FROM repl_ml.unsent WHERE node_id OPERATOR(pg_catalog.=) $1"
							  " LIMIT 1", 1, types, values, NULL) > 0;

	/* as long again as it has been missed, but ten minutes to a day */
	if (any)
		repl_ml_spi_execute("WITH due AS (UPDATE repl_ml.unsent"
							" SET tried_at = pg_catalog.clock_timestamp()"
							" WHERE node_id OPERATOR(pg_catalog.=) $1"
							" AND tried_at OPERATOR(pg_catalog.+) least(greatest(tried_at"
							" OPERATOR(pg_catalog.-) noted_at, '10 min'::pg_catalog.interval),"
							" '1 day'::pg_catalog.interval)"
							" OPERATOR(pg_catalog.<) pg_catalog.clock_timestamp() RETURNING"
							" schema_name, table_name)"
							" SELECT repl_ml.order_copy($1, d.schema_name, d.table_name)"
							" FROM (SELECT DISTINCT schema_name, table_name FROM due) d",
							1, types, values, NULL);
	CommitTransactionCommand();
	MemoryContextSwitchTo(apply->message_context);
	return any;
}

/* Says whether the message is about a change that is not coming. */
bool
repl_ml_unsent_is_meant(const char *content)
{
	return strncmp(content, REPL_ML_UNSENT "\n", strlen(REPL_ML_UNSENT) + 1) == 0;
}

/*
 * Notes the change that is not coming, for dispatch.c, in the transaction that
 * lacks it.
 */
void
repl_ml_unsent_note(ReplMlApply *apply, char *content)
{
	char	   *fields[FIELDS];

	if (!split_lines(content + strlen(REPL_ML_UNSENT) + 1, fields))
		ereport(ERROR,
				(errcode(ERRCODE_PROTOCOL_VIOLATION),
				 errmsg("the peer sent a message about a row it could not send that has too few "
						"lines"),
				 errhint(REPL_ML_SAME_VERSION_HINT)));
	add_note(apply, fields, true);
	ereport(LOG,
			(errmsg("node \"%s\" could not send a row of table \"%s.%s\": %s",
					apply->peer->node_name, fields[0], fields[1], fields[4]),
			 errdetail("Its key is %s.", fields[2]),
			 errhint("See SELECT * FROM repl_ml.health.")));
}

/* Sets the lines of a message; returns false if there are too few. */
static bool
split_lines(char *content, char **fields)
{
	for (int i = 0; i < FIELDS; i++)
	{
		char	   *end = strchr(content, '\n');

		if (end == NULL)
			return false;
		*end = '\0';
		fields[i] = content;
		content = end + 1;
	}
	return true;
}

/*
 * Notes, in a transaction that copies from the peer, when all rows that could
 * be sent of a table have come, those that could not.
 */
void
repl_ml_unsent_ask(ReplMlApply *apply, WalReceiverConn *conn)
{
	static const Oid types[FIELDS] = {TEXTOID, TEXTOID, TEXTOID, TEXTOID, TEXTOID};
	ReplMlResult *result = repl_ml_stream_query(conn,
												"SELECT schema_name, table_name, key,"
												" coalesce(clock, ''), message"
												" FROM repl_ml.rows_left_out()", FIELDS, types);

	while (repl_ml_stream_next(result))
	{
		char	   *fields[FIELDS];

		slot_getallattrs(result->slot);
		for (int i = 0; i < FIELDS; i++)
			fields[i] = TextDatumGetCString(result->slot->tts_values[i]);
		add_note(apply, fields, false);
	}
	repl_ml_stream_free(result);
}

/*
 * Writes a note, in place of one for the same row: of a row that the
 * transaction of the peer lacks, or a copy.
 */
static void
add_note(ReplMlApply *apply, char **fields, bool of_transaction)
{
	Oid			types[8] = {INT4OID, TEXTOID, TEXTOID, TEXTARRAYOID, TEXTOID, TEXTOID, XIDOID,
	PG_LSNOID};
	Datum		values[8] = {Int32GetDatum(apply->peer->node_id), CStringGetTextDatum(fields[0]),
	CStringGetTextDatum(fields[1]),
	OidInputFunctionCall(F_ARRAY_IN, fields[2], TEXTOID, -1), CStringGetTextDatum(fields[3]),
	CStringGetTextDatum(fields[4]),
	TransactionIdGetDatum(apply->transaction.xid), LSNGetDatum(apply->transaction.final_lsn)};
	char		nulls[8] = {' ', ' ', ' ', ' ', ' ', ' ', of_transaction ? ' ' : 'n',
	of_transaction ? ' ' : 'n'};

	repl_ml_spi_execute("WITH former AS (DELETE FROM repl_ml.unsent"
						" WHERE node_id OPERATOR(pg_catalog.=) $1"
						" AND schema_name OPERATOR(pg_catalog.=) $2::pg_catalog.name"
						" AND table_name OPERATOR(pg_catalog.=) $3::pg_catalog.name"
						" AND key OPERATOR(pg_catalog.=) $4 RETURNING noted_at)"
						" INSERT INTO repl_ml.unsent (node_id, schema_name, table_name, key, clock,"
						" message, origin_xid, origin_lsn, noted_at)"
						" VALUES ($1, $2, $3, $4, nullif($5, '')::repl_ml.vclock, $6, $7, $8,"
						" coalesce((SELECT pg_catalog.min(noted_at)"
						" FROM former), pg_catalog.clock_timestamp()))",
						8, types, values, nulls);
	CommandCounterIncrement();
	if (of_transaction)
		apply->transaction.lacks = true;
	repl_ml_shmem_mark_unsent();
}

/*
 * Forgets what was missed of this row, of which something has arrived from the
 * peer.
 */
void
repl_ml_unsent_arrived(const ReplMlApply *apply, const char *schema_name, const char *table_name,
					   Datum key, const ReplMlClock *clock)
{
	if (repl_ml_shmem_may_lack())
		forget_notes(apply, schema_name, table_name, key, clock);
}

/*
 * Forgets what was missed of the row in a local table's slot, which has
 * arrived from the peer.
 */
void
repl_ml_unsent_row_arrived(const ReplMlApply *apply, ReplMlTable *table, TupleTableSlot *slot)
{
	Datum		key[INDEX_MAX_KEYS];
	Datum		clock;
	bool		isnull;

	if (!repl_ml_shmem_may_lack())
		return;
	repl_ml_key_from_slot(table, slot, key);
	clock = slot_getattr(slot, table->clock_attnum, &isnull);
	forget_notes(apply, NameStr(table->schema_name), NameStr(table->table_name),
				 repl_ml_key_to_array(table, key), repl_ml_table_clock(table, clock, isnull));
}

/*
 * Forgets what this peer could not send before, and what another could not, if
 * this is the same version or a newer one.
 */
static void
forget_notes(const ReplMlApply *apply, const char *schema_name, const char *table_name, Datum key,
			 const ReplMlClock *clock)
{
	Oid			types[5] = {INT4OID, TEXTOID, TEXTOID, TEXTARRAYOID, TEXTOID};
	Datum		values[5] = {Int32GetDatum(apply->peer->node_id), CStringGetTextDatum(schema_name),
	CStringGetTextDatum(table_name), key, CStringGetTextDatum(repl_ml_clock_to_text(clock))};

	repl_ml_spi_execute("DELETE FROM repl_ml.unsent WHERE (node_id OPERATOR(pg_catalog.=) $1"
						" OR clock OPERATOR(repl_ml.<@) $5::repl_ml.vclock)"
						" AND schema_name OPERATOR(pg_catalog.=) $2::pg_catalog.name"
						" AND table_name OPERATOR(pg_catalog.=) $3::pg_catalog.name"
						" AND key OPERATOR(pg_catalog.=) $4",
						5, types, values, NULL);
}

/*
 * Forgets what was noted before a copy of a table and not in it; called in the
 * transaction that brings the peer's rows, before it ends.
 */
void
repl_ml_unsent_copied(const ReplMlApply *apply, const char *schema_name, const char *table_name)
{
	Oid			types[3] = {INT4OID, TEXTOID, TEXTOID};
	Datum		values[3] = {Int32GetDatum(apply->peer->node_id), CStringGetTextDatum(schema_name),
	CStringGetTextDatum(table_name)};

	if (repl_ml_shmem_may_lack())
		repl_ml_spi_execute("DELETE FROM repl_ml.unsent WHERE node_id OPERATOR(pg_catalog.=) $1"
							" AND schema_name OPERATOR(pg_catalog.=) $2::pg_catalog.name"
							" AND table_name OPERATOR(pg_catalog.=) $3::pg_catalog.name"
							" AND tried_at OPERATOR(pg_catalog.<) pg_catalog.now()", 3, types,
							values, NULL);
}
