/*
 * origin.h
 *		What runs in the writing backend and in its walsender.
 */
#ifndef REPL_ML_ORIGIN_H
#define REPL_ML_ORIGIN_H

#include "repl_ml.h"

/* in guard.c */
extern void repl_ml_guard_init(void);

#endif							/* REPL_ML_ORIGIN_H */
