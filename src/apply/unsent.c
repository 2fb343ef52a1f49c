/*
 * unsent.c
 *		Rows that the peer has and could not send: noted by name, and missed
 *		until something newer of them arrives or a copy brings them.
 *
 * The peer's walsender says so in place of the change (write/output.c).  A note is
 * written in the transaction that lacks the row, goes with the next change of the
 * same row that does arrive, and makes the table be copied again, once in a while,
 * when the nodes connect.  The heartbeat tells the others that there are some.
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

#define FIELDS		4			/* schema, table, key, error */

/* Are there notes of this peer?  Set when it is connected to, and by notes. */
static bool any = false;

static bool split(char *content, char **fields);
static void add(ReplMlApply *apply, const char *schema_name, const char *table_name, Datum key, const char *message);
static void forget(const ReplMlApply *apply, const char *schema_name, const char *table_name, Datum key);

/* At a new connection: are there notes, and is it time to try their tables again? */
void
repl_ml_unsent_begin(ReplMlApply *apply)
{
	Oid			types[1] = {INT4OID};
	Datum		values[1] = {Int32GetDatum(apply->peer->node_id)};

	StartTransactionCommand();
	any = repl_ml_spi_execute("SELECT FROM repl_ml.unsent WHERE node_id OPERATOR(pg_catalog.=) $1 LIMIT 1", 1, types, values, NULL) > 0;
	if (any)
		repl_ml_spi_execute("WITH due AS (UPDATE repl_ml.unsent SET tried_at = pg_catalog.clock_timestamp() WHERE node_id OPERATOR(pg_catalog.=) $1"
							" AND tried_at OPERATOR(pg_catalog.<) (pg_catalog.clock_timestamp() OPERATOR(pg_catalog.-) '10 min'::pg_catalog.interval)"
							" RETURNING schema_name, table_name)"
							" UPDATE repl_ml.table_sync y SET state = 'pending', rows = NULL FROM due WHERE y.node_id OPERATOR(pg_catalog.=) $1"
							" AND y.schema_name OPERATOR(pg_catalog.=) due.schema_name AND y.table_name OPERATOR(pg_catalog.=) due.table_name",
							1, types, values, NULL);
	CommitTransactionCommand();
	MemoryContextSwitchTo(apply->message_context);
}

/* Is the message about a change that is not coming? */
bool
repl_ml_unsent_is_meant(const char *content)
{
	return strncmp(content, REPL_ML_UNSENT "\n", strlen(REPL_ML_UNSENT) + 1) == 0;
}

/* Notes it, in the transaction that lacks the change. */
void
repl_ml_unsent_note(ReplMlApply *apply, char *content)
{
	char	   *fields[FIELDS];

	if (!split(content + strlen(REPL_ML_UNSENT) + 1, fields))
		ereport(ERROR,
				(errcode(ERRCODE_PROTOCOL_VIOLATION),
				 errmsg("the peer sent a message about a row it could not send that has too few lines")));
	add(apply, fields[0], fields[1], OidInputFunctionCall(F_ARRAY_IN, fields[2], TEXTOID, -1), fields[3]);
	ereport(LOG,
			(errmsg("node \"%s\" could not send a row of table \"%s.%s\": %s", apply->peer->node_name, fields[0], fields[1], fields[3]),
			 errdetail("Its key is %s.", fields[2]),
			 errhint("See SELECT * FROM repl_ml.health.")));
}

/* The lines of a message. */
static bool
split(char *content, char **fields)
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

/* Writes a note, in place of one for the same row. */
static void
add(ReplMlApply *apply, const char *schema_name, const char *table_name, Datum key, const char *message)
{
	Oid			types[7] = {INT4OID, TEXTOID, TEXTOID, TEXTARRAYOID, TEXTOID, XIDOID, PG_LSNOID};
	Datum		values[7] = {Int32GetDatum(apply->peer->node_id), CStringGetTextDatum(schema_name),
	CStringGetTextDatum(table_name), key, CStringGetTextDatum(message),
	TransactionIdGetDatum(apply->transaction.xid), LSNGetDatum(apply->transaction.final_lsn)};

	forget(apply, schema_name, table_name, key);
	repl_ml_spi_execute("INSERT INTO repl_ml.unsent (node_id, schema_name, table_name, key, message, origin_xid, origin_lsn)"
						" VALUES ($1, $2, $3, $4, $5, $6, $7)", 7, types, values, NULL);
	CommandCounterIncrement();
	apply->transaction.lacks = true;
	any = true;
}

/* Something of this row has arrived from the peer. */
void
repl_ml_unsent_arrived(const ReplMlApply *apply, const char *schema_name, const char *table_name, Datum key)
{
	if (any)
		forget(apply, schema_name, table_name, key);
}

/* The same of a row in a local table's slot. */
void
repl_ml_unsent_row_arrived(const ReplMlApply *apply, ReplMlTable *table, TupleTableSlot *slot)
{
	Datum		key[INDEX_MAX_KEYS];

	if (!any)
		return;
	repl_ml_key_from_slot(table, slot, key);
	forget(apply, NameStr(table->schema_name), NameStr(table->table_name), repl_ml_key_to_array(table, key));
}

static void
forget(const ReplMlApply *apply, const char *schema_name, const char *table_name, Datum key)
{
	Oid			types[4] = {INT4OID, TEXTOID, TEXTOID, TEXTARRAYOID};
	Datum		values[4] = {Int32GetDatum(apply->peer->node_id), CStringGetTextDatum(schema_name),
	CStringGetTextDatum(table_name), key};

	repl_ml_spi_execute("DELETE FROM repl_ml.unsent WHERE node_id OPERATOR(pg_catalog.=) $1 AND schema_name OPERATOR(pg_catalog.=) $2::pg_catalog.name"
						" AND table_name OPERATOR(pg_catalog.=) $3::pg_catalog.name AND key OPERATOR(pg_catalog.=) $4",
						4, types, values, NULL);
}

/* A copy has brought all of the peer's rows of a table. */
void
repl_ml_unsent_copied(const ReplMlApply *apply, const char *schema_name, const char *table_name)
{
	Oid			types[3] = {INT4OID, TEXTOID, TEXTOID};
	Datum		values[3] = {Int32GetDatum(apply->peer->node_id), CStringGetTextDatum(schema_name),
	CStringGetTextDatum(table_name)};

	if (any)
		repl_ml_spi_execute("DELETE FROM repl_ml.unsent WHERE node_id OPERATOR(pg_catalog.=) $1 AND schema_name OPERATOR(pg_catalog.=) $2::pg_catalog.name"
							" AND table_name OPERATOR(pg_catalog.=) $3::pg_catalog.name", 3, types, values, NULL);
}
