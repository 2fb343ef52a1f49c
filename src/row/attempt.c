/*
 * attempt.c
 *		A step that may fail, and what it failed with.
 *
 * For whatever calls functions of users' types on values that it has not made:
 * their error is about a value, and the transaction goes on.  Which errors are,
 * the caller knows; he raises the others again.
 *
 * Runs wherever a transaction does.  Locks: those that the step has taken are
 * let go with it if it fails.
 */
#include "postgres.h"

#include "access/xact.h"
#include "utils/memutils.h"
#include "utils/resowner.h"

#include "row/row.h"

/*
 * Does a step in a subtransaction of its own.  Returns the error that it failed
 * with, in the caller's memory context, or NULL; what a step that failed has
 * done is undone.
 */
ErrorData *
repl_ml_attempt(void (*step) (void *argument), void *argument)
{
	MemoryContext context = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	ErrorData  *volatile error = NULL;

	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(context);
	PG_TRY();
	{
		step(argument);
		ReleaseCurrentSubTransaction();
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(context);
		error = CopyErrorData();
		FlushErrorState();
		RollbackAndReleaseCurrentSubTransaction();
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
	CurrentResourceOwner = owner;
	return error;
}
