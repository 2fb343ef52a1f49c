/*
 * repl_ml.c
 *		_PG_init: settings, shared memory, hooks, the launcher.  Nothing else.
 *
 * Not here: the settings of a room, its hooks and what it keeps in shared
 * memory; each has an init function for that.  Takes no lock.
 */
#include "postgres.h"

#include <limits.h>

#include "fmgr.h"
#include "miscadmin.h"
#include "utils/guc.h"

#include "commit/commit.h"
#include "compat.h"
#include "group/group.h"
#include "read/read.h"
#include "repl_ml.h"
#include "row/row.h"
#include "server/server.h"
#include "verify/verify.h"
#include "write/write.h"

PG_MODULE_MAGIC;

/* settings: default, minimum, maximum */
#define APPLY_LOCK_TIMEOUT		3000, 0, INT_MAX	/* ms */
#define HEARTBEAT_INTERVAL		1000, 100, 60000	/* ms */
#define MAX_CLOCK_SKEW			10000, 0, 86400000	/* ms */
#define CONFLICT_RETENTION		(30 * 24 * 60), -1, INT_MAX /* minutes */
#define MAX_APPLY_DELAY			5000, 200, 600000	/* ms */
#define PARKED_LIMIT			1024, 0, INT_MAX	/* MB */

int			repl_ml_heartbeat_interval;
int			repl_ml_log_equal_writes = REPL_ML_LOG_EQUAL_NONE;
int			repl_ml_max_clock_skew;
int			repl_ml_conflict_retention;
int			repl_ml_apply_lock_timeout;
int			repl_ml_max_apply_delay;
int			repl_ml_parked_limit;

/* What rooms keep in shared memory of their own; one lock guards both. */
static const ReplMlSegment segments[] = {
	{"repl_ml quorum", repl_ml_quorum_shmem_size, repl_ml_quorum_shmem_init},
	{"repl_ml unacknowledged", repl_ml_unacknowledged_shmem_size,
	 repl_ml_unacknowledged_shmem_init},
	{"repl_ml backlog", repl_ml_backlog_shmem_size, repl_ml_backlog_shmem_init},
	{"repl_ml lease", repl_ml_lease_shmem_size, repl_ml_lease_shmem_init},
	{"repl_ml verify", repl_ml_verify_shmem_size, repl_ml_verify_shmem_init},
};

static const struct config_enum_entry log_equal_options[] = {
	{"none", REPL_ML_LOG_EQUAL_NONE, false},
	{"updates", REPL_ML_LOG_EQUAL_UPDATES, false},
	{"all", REPL_ML_LOG_EQUAL_ALL, false},
	{NULL, 0, false}
};

/*
 * Called by _PG_init: defines the settings that belong to no room of their
 * own.
 */
static void
define_settings(void)
{
	DefineCustomIntVariable("repl_ml.apply_lock_timeout",
							"How long what a peer wrote waits for a lock of this node's clients, "
							"before the change is parked and the others go on.",
							NULL,
							&repl_ml_apply_lock_timeout,
							APPLY_LOCK_TIMEOUT,
							PGC_SIGHUP,
							GUC_UNIT_MS,
							NULL,
							NULL,
							NULL);
	DefineCustomIntVariable("repl_ml.conflict_retention",
							"How long resolved conflicts are kept; -1 keeps them for ever.",
							NULL,
							&repl_ml_conflict_retention,
							CONFLICT_RETENTION,
							PGC_SIGHUP,
							GUC_UNIT_MIN,
							NULL,
							NULL,
							NULL);
	DefineCustomIntVariable("repl_ml.heartbeat_interval",
							"Time between two heartbeats of this node, from which lag is measured.",
							NULL,
							&repl_ml_heartbeat_interval,
							HEARTBEAT_INTERVAL,
							PGC_SIGHUP,
							GUC_UNIT_MS,
							NULL,
							NULL,
							NULL);
	DefineCustomEnumVariable("repl_ml.log_equal_writes",
							 "Which concurrent writes that wrote the same are recorded as "
							 "conflicts.",
							 "They are counted in repl_ml.stat_apply in any case.",
							 &repl_ml_log_equal_writes,
							 REPL_ML_LOG_EQUAL_NONE,
							 log_equal_options,
							 PGC_SIGHUP,
							 0,
							 NULL,
							 NULL,
							 NULL);
	DefineCustomIntVariable("repl_ml.max_apply_delay",
							"Longest time an apply worker waits before it tries again after an "
							"error.",
							NULL,
							&repl_ml_max_apply_delay,
							MAX_APPLY_DELAY,
							PGC_SIGHUP,
							GUC_UNIT_MS,
							NULL,
							NULL,
							NULL);
	DefineCustomIntVariable("repl_ml.max_clock_skew",
							"How far ahead of this node's wall clock another node's may be before "
							"this node's no longer follows.",
							NULL,
							&repl_ml_max_clock_skew,
							MAX_CLOCK_SKEW,
							PGC_SIGHUP,
							GUC_UNIT_MS,
							NULL,
							NULL,
							NULL);
	DefineCustomIntVariable("repl_ml.parked_limit",
							"How much of the disk parked changes may take; beyond it they are "
							"counted, and their tables copied when that is possible.",
							NULL,
							&repl_ml_parked_limit,
							PARKED_LIMIT,
							PGC_SIGHUP,
							GUC_UNIT_MB,
							NULL,
							NULL,
							NULL);
}

/*
 * Called by the server when it loads the library.  Loaded later than at server
 * start it has settings and guards statements, but neither shared memory nor
 * workers.
 */
void
_PG_init(void)
{
	define_settings();
	repl_ml_guard_init();
	repl_ml_statement_init();
	repl_ml_schema_change_init();
	repl_ml_own_init();
	repl_ml_whole_row_init();
	repl_ml_nextval_init();
	repl_ml_level_init();
	repl_ml_lease_init();
	repl_ml_commit_init();
	repl_ml_definition_init();
	repl_ml_strong_init();
	repl_ml_read_init();
	repl_ml_routing_init();
	repl_ml_size_init();
	repl_ml_column_init();
	repl_ml_throttle_init();
	repl_ml_verifier_init();
	MarkGUCPrefixReserved("repl_ml");
	if (!process_shared_preload_libraries_in_progress)
		return;
	repl_ml_session_init();
	repl_ml_shmem_init(segments, lengthof(segments));
	repl_ml_launcher_register();
}
