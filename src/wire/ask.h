/*
 * ask.h
 *		One query to several servers at once, with an end.
 */
#ifndef REPL_ML_ASK_H
#define REPL_ML_ASK_H

#include "postgres.h"
#include "utils/timestamp.h"

extern void repl_ml_ask(int count, char *const *dsns, const char *query, TimestampTz deadline, char **answers);
extern char *repl_ml_ask_one(const char *dsn, const char *query, int nparams, const char *const *params, TimestampTz deadline);

#endif							/* REPL_ML_ASK_H */
