/*
 * session.h
 *		Settings of our sessions, whatever clients' are.
 */
#ifndef REPL_ML_SESSION_H
#define REPL_ML_SESSION_H

#include "postgres.h"

extern void repl_ml_session_init(void);
extern void repl_ml_session_settle(void);
extern int	repl_ml_session_fix_values(void);
extern void repl_ml_session_restore(int level);

#endif							/* REPL_ML_SESSION_H */
