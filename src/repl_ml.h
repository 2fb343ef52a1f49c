/*
 * repl_ml.h
 *		Names, sizes and settings every part of repl_ml shares.
 */
#ifndef REPL_ML_H
#define REPL_ML_H

#include "postgres.h"
#include "utils/timestamp.h"

#define REPL_ML_VERSION			"1.0"
#define REPL_ML_SCHEMA			"repl_ml"
#define REPL_ML_PUBLICATION		"repl_ml"
#define REPL_ML_PLUGIN			"repl_ml"
#define REPL_ML_CLOCK_COLUMN	"__repl_clock"
#define REPL_ML_MESSAGE_PREFIX	"repl_ml"	/* of messages in the WAL */

/* settings (repl_ml.c owns the definitions) */
extern int	repl_ml_heartbeat_interval; /* ms */
/* which equal concurrent writes are recorded as conflicts */
typedef enum ReplMlLogEqual
{
	REPL_ML_LOG_EQUAL_NONE,
	REPL_ML_LOG_EQUAL_UPDATES,
	REPL_ML_LOG_EQUAL_ALL
} ReplMlLogEqual;

extern int	repl_ml_log_equal_writes;
extern int	repl_ml_max_clock_skew; /* ms */
extern int	repl_ml_conflict_retention; /* minutes, -1 keeps for ever */
extern int	repl_ml_parked_limit;	/* MB of the disk for parked changes */
extern int	repl_ml_apply_lock_timeout; /* ms until what is locked is parked */
extern int	repl_ml_max_apply_delay;	/* ms between two tries after an error */

#endif							/* REPL_ML_H */
