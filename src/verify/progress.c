/*
 * progress.c
 *		How far comparisons are: what the view stat_progress_verify shows.
 *
 * Each backend has a place of its own in shared memory, by its number, and
 * writes it alone; whoever reads may see one number newer than the next, which
 * is no harm.  So there is no lock.  A place is free when its process is not at
 * it any more, however it ended: the backend that gets the number next clears
 * it, and one whose process is another's now is not shown.
 */
#include "postgres.h"

#include "funcapi.h"
#include "miscadmin.h"
#include "storage/proc.h"
#include "storage/procarray.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "verify/verify.h"

#define PROGRESS_COLUMNS	8

/* One backend's comparison, or its part of one. */
typedef struct Progress
{
	pid_t		pid;			/* 0: none */
	Oid			database;
	Oid			relation;
	ReplMlVerifyPhase phase;
	int64		chunks_total;
	int64		chunks_done;
	int64		rows;
	int64		differences;
	TimestampTz since;
} Progress;

static Progress *places = NULL;

/* Returns the size of the places, for shmem.c. */
Size
repl_ml_verify_shmem_size(void)
{
	return mul_size(MaxBackends, sizeof(Progress));
}

/* Called by shmem.c when the space is there, all zeros. */
void
repl_ml_verify_shmem_init(void *space, LWLock *lock)
{
	places = space;
}

/* Returns this backend's place; NULL where the library was not preloaded. */
static Progress *
my_place(void)
{
	return places == NULL ? NULL : &places[my_proc_number_compat()];
}

/* Begins to show a comparison of a table. */
void
repl_ml_verify_begin(Oid relation, int64 chunks)
{
	Progress   *place = my_place();

	if (place == NULL)
		return;
	*place = (Progress) {.database = MyDatabaseId,.relation = relation,
	.phase = REPL_ML_VERIFY_HASHING,.chunks_total = chunks,.since = GetCurrentTimestamp()};
	pg_write_barrier();
	place->pid = MyProcPid;
}

/*
 * Shows the part of a comparison that this process does: of its own one, which is
 * shown already, or of another member's.
 */
void
repl_ml_verify_join(Oid relation, int64 chunks, ReplMlVerifyPhase phase)
{
	Progress   *place = my_place();

	if (place == NULL || place->pid == MyProcPid)
		return;
	repl_ml_verify_begin(relation, chunks);
	place->phase = phase;
}

/* Shows what a comparison is at now. */
void
repl_ml_verify_phase(ReplMlVerifyPhase phase)
{
	Progress   *place = my_place();

	if (place != NULL)
		place->phase = phase;
}

/* Returns what is shown of the phase. */
ReplMlVerifyPhase
repl_ml_verify_phase_now(void)
{
	Progress   *place = my_place();

	return place == NULL ? REPL_ML_VERIFY_NONE : place->phase;
}

/* Shows how far it is; what is negative stays as it is. */
void
repl_ml_verify_progress(int64 chunks_done, int64 rows, int64 differences)
{
	Progress   *place = my_place();

	if (place == NULL)
		return;
	if (chunks_done >= 0)
		place->chunks_done = chunks_done;
	if (rows >= 0)
		place->rows = rows;
	if (differences >= 0)
		place->differences = differences;
}

/* Shows nothing more: at the end, and after an error. */
void
repl_ml_verify_end(void)
{
	Progress   *place = my_place();

	if (place != NULL)
		place->pid = 0;
}

/* Returns the name of a phase. */
static const char *
phase_name(ReplMlVerifyPhase phase)
{
	static const char *const names[] = {
		[REPL_ML_VERIFY_NONE] = "",
		[REPL_ML_VERIFY_HASHING] = "hashing rows",
		[REPL_ML_VERIFY_WAITING] = "waiting for members",
		[REPL_ML_VERIFY_NAMING] = "naming rows",
		[REPL_ML_VERIFY_RECHECKING] = "rechecking rows",
		[REPL_ML_VERIFY_RESTING] = "resting (verify_max_rate)",
		[REPL_ML_VERIFY_PAUSED] = "paused (verify_max_lag)"
	};

	return names[phase];
}

PG_FUNCTION_INFO_V1(repl_ml_verify_progress_rows);

/*
 * repl_ml.verify_progress(): returns a row for each comparison that is going
 * on in this database.
 */
Datum
repl_ml_verify_progress_rows(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *result = (ReturnSetInfo *) fcinfo->resultinfo;

	repl_ml_shmem_require();
	InitMaterializedSRF(fcinfo, 0);
	for (int i = 0; i < MaxBackends; i++)
	{
		Progress	place = places[i];
		Datum		values[PROGRESS_COLUMNS] = {Int32GetDatum(place.pid),
			ObjectIdGetDatum(place.relation), CStringGetTextDatum(phase_name(place.phase)),
			Int64GetDatum(place.chunks_total), Int64GetDatum(place.chunks_done),
			Int64GetDatum(place.rows), Int64GetDatum(place.differences),
		TimestampTzGetDatum(place.since)};
		bool		nulls[PROGRESS_COLUMNS] = {false};

		PGPROC	   *proc = place.pid == 0 ? NULL : BackendPidGetProc(place.pid);

		/* a place that its process has left behind is not shown */
		if (proc != NULL && proc_number_compat(proc) == i && place.database == MyDatabaseId)
			tuplestore_putvalues(result->setResult, result->setDesc, values, nulls);
	}
	return (Datum) 0;
}
