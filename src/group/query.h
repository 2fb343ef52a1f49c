/*
 * query.h
 *		Our own catalogs through SQL, for processes without a client.
 */
#ifndef REPL_ML_QUERY_H
#define REPL_ML_QUERY_H

#include "postgres.h"
#include "executor/spi.h"

extern void repl_ml_refuse_nulls(FunctionCallInfo fcinfo);
extern uint64 repl_ml_spi_execute(const char *sql, int nargs, Oid *types, Datum *values, const char *nulls);
extern SPIPlanPtr repl_ml_spi_plan(SPIPlanPtr *plan, const char *sql, int nargs, Oid *types);
extern void repl_ml_check_server(void);
extern void repl_ml_begin(void);
extern void repl_ml_commit(void);
extern Oid	repl_ml_clock_type(void);
extern char *repl_ml_spi_text(uint64 row, int column);
extern int64 repl_ml_query_int(const char *sql);

#endif							/* REPL_ML_QUERY_H */
