/*
 * binary.h
 *		Values in their types' binary form.
 */
#ifndef REPL_ML_BINARY_H
#define REPL_ML_BINARY_H

#include "repl_ml.h"
#include "fmgr.h"
#include "lib/stringinfo.h"
#include "utils/rel.h"

extern bool repl_ml_binary_is_portable(Oid type);
extern bool repl_ml_binary_is_table_portable(Relation rel);
extern Datum repl_ml_binary_read(FmgrInfo *receive, Oid param, int32 typmod, StringInfo value);
extern char *repl_ml_binary_as_text(Oid type, StringInfo value);

#endif							/* REPL_ML_BINARY_H */
