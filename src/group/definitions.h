/*
 * definitions.h
 *		What of the definitions that a member sends is run on another one.
 */
#ifndef REPL_ML_DEFINITIONS_H
#define REPL_ML_DEFINITIONS_H

#include "postgres.h"
#include "nodes/pg_list.h"

extern void repl_ml_definitions_check(const char *text, List *tables);
extern void repl_ml_definitions_check_code(List *tables);

#endif							/* REPL_ML_DEFINITIONS_H */
