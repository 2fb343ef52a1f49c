/*
 * crash.h
 *		What was being applied when the server went down.
 */
#ifndef REPL_ML_CRASH_H
#define REPL_ML_CRASH_H

#include "repl_ml.h"
#include "access/xlogdefs.h"

/* How often a transaction takes the server down before it is applied row by row ... */
#define REPL_ML_CRASHES_CAREFUL	2
/* ... and what stands for: even so, and nobody knows which of its rows it is */
#define REPL_ML_CRASHES_PARK	100

/* in crash.c */
extern void repl_ml_crash_startup(void);
extern void repl_ml_crash_watch(void);
extern char *repl_ml_crash_attach(int worker);
extern void repl_ml_crash_applies(XLogRecPtr lsn, bool careful);
extern void repl_ml_crash_copies(void);
extern void repl_ml_crash_retries(int64 parked);
extern void repl_ml_crash_writes(Oid relid);
extern void repl_ml_crash_rests(void);
extern void repl_ml_crash_detach(int status);
extern void repl_ml_crash_survived(XLogRecPtr end);
extern int	repl_ml_crash_count(XLogRecPtr lsn);
extern int64 repl_ml_crash_retried(void);
extern bool repl_ml_crash_is_banned(Oid relid);
extern char *repl_ml_crash_banned(void);
extern void repl_ml_crash_pardon(Oid relid);

#endif							/* REPL_ML_CRASH_H */
