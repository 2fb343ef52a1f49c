/*
 * ask.h
 *		One query to several servers at once, with an end.
 */
#ifndef REPL_ML_ASK_H
#define REPL_ML_ASK_H

#include "postgres.h"
#include "utils/timestamp.h"

extern void repl_ml_ask(int count, char *const *dsns, const char *query, TimestampTz deadline, char **answers);

#endif							/* REPL_ML_ASK_H */
