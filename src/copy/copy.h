/*
 * copy.h
 *		What the stream does not bring: the link, definitions and rows of tables, and
 *		parked changes that are tried again.
 */
#ifndef REPL_ML_COPY_H
#define REPL_ML_COPY_H

#include "repl_ml.h"
#include "apply/apply.h"
#include "nodes/pg_list.h"
#include "replication/walreceiver.h"

/* in link.c */
extern XLogRecPtr repl_ml_link_prepare(ReplMlApply *apply);

/* in sync.c */
extern void repl_ml_sync_catalogs(ReplMlApply *apply, WalReceiverConn *conn);
extern void repl_ml_sync_await_donor(ReplMlApply *apply);
extern void repl_ml_sync_dropped(ReplMlApply *apply);
extern void repl_ml_sync_tables(ReplMlApply *apply);

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
