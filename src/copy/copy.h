/*
 * copy.h
 *		What the stream does not bring: the link, definitions and rows of tables, and
 *		parked changes that are tried again.
 */
#ifndef REPL_ML_COPY_H
#define REPL_ML_COPY_H

#include "repl_ml.h"
#include "apply/apply.h"
#include "catalog/pg_attribute.h"
#include "commands/copy.h"
#include "nodes/pg_list.h"
#include "replication/walreceiver.h"

#define REPL_ML_COPIED_TABLE_ID	2	/* as which relation.c knows a table that is
									 * copied, for a moment */

/* Says whether the column has values that are stored, and so are copied. */
static inline bool
repl_ml_copy_is_stored(Form_pg_attribute att)
{
	return !att->attisdropped && att->attgenerated == '\0';
}

/* in link.c */
extern XLogRecPtr repl_ml_link_prepare(ReplMlApply *apply);

/* in sync.c */
extern void repl_ml_sync_catalogs(ReplMlApply *apply, WalReceiverConn *conn);
extern void repl_ml_sync_tables(ReplMlApply *apply);

/* in fetch.c */
extern void repl_ml_fetch_table(ReplMlApply *apply, WalReceiverConn *conn,
								const char *schema_name, const char *table_name);

/* in rows.c */
extern int64 repl_ml_rows_join(ReplMlApply *apply, Relation rel, CopyFromState copy, bool careful);

/* in dropped.c */
extern void repl_ml_dropped_compare(ReplMlApply *apply);

/* in await.c */
extern void repl_ml_await_donor(ReplMlApply *apply);

/* in enrol.c */
extern void repl_ml_enrol_pending(ReplMlApply *apply);
extern void repl_ml_enrol_unlock(void);
extern void repl_ml_table_failed(ReplMlApply *apply, const char *schema_name,
								 const char *table_name, const char *action, ErrorData *error);

/* in schema.c */
extern bool repl_ml_schema_is_empty(void);
extern void repl_ml_schema_copy_all(const char *dsn);
extern void repl_ml_schema_copy(const char *dsn, List *schemas, List *tables);

/* in definitions.c */
extern void repl_ml_definitions_check(const char *text, List *tables);
extern void repl_ml_definitions_check_code(List *tables);

/* in retry.c */
extern void repl_ml_retry_step(ReplMlApply *apply);
extern int	repl_ml_retry_due(void);

#endif							/* REPL_ML_COPY_H */
