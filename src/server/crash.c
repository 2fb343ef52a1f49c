/*
 * crash.c
 *		What was being applied when the server went down, in a file that
 *		survives it.
 *
 * A table's owner can let anything run on the way of a row: code that ends the
 * process takes the server down, and when it is up again the peer sends the same
 * row.  Shared memory does not outlive that, and a transaction cannot say that
 * it ended in the middle.  So each apply worker notes what it is doing in its
 * entry of a small file that all processes have mapped: a few writes to memory
 * for each transaction, and no I/O, because the server's own crash loses nothing
 * of a mapped file.  (A crash of the machine does, but that is nobody's row.)
 * Who ends in an orderly way, after whatever error, takes the note back, but for
 * a worker that has sent itself a SIGTERM in the middle of a row: code of the row
 * did it, and would again.
 *
 * A note that is left is blame, so two kinds of end must not leave one.  When
 * another process crashes, or the server is stopped at once, the postmaster
 * sends SIGQUIT: the worker's handler takes the note back.  When all processes
 * are killed at once nobody does; but then no postmaster was there to see a
 * crash, which the launcher's handler would have noted: at the next start notes
 * without that count for nothing.
 *
 * What follows of blame: a transaction that was at it twice is applied row by
 * row, with a note of the table (apply/change.c).  The table whose row was
 * at it then is banned: its changes are parked and its copies left, until one of
 * them was tried again with success, or the server was stopped in order and
 * started again.  Who kills a process from outside, for want of memory perhaps,
 * chooses what is innocent: so a worker tries the first of them again, once, some
 * minutes later (copy/retry.c).  A parked change that took the server down when it
 * was tried again is a person's, and so are then all of its table.
 *
 * A file that is missing, damaged or another server's starts empty; entries of
 * a copied one fit no transaction.  Entries are the workers' own; bans are
 * changed under repl_ml_shared->lock and read without.
 */
#include "postgres.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "storage/fd.h"
#include "storage/lwlock.h"
#include "storage/pmsignal.h"
#include "tcop/tcopprot.h"
#include "utils/elog.h"

#include "compat.h"
#include "server/server.h"

#define CRASH_FILE		"repl_ml.applying"
#define CRASH_MAGIC		0x52504D43
#define MAX_BANNED		64

typedef enum Doing
{
	RESTS,
	APPLIES,
	COPIES,
	RETRIES
} Doing;

/* One apply worker's; the place is that of the worker in shared memory. */
typedef struct Entry
{
	Oid			database;
	int32		peer;
	/* what it is doing; written by it and by its SIGQUIT handler */
	volatile uint32 doing;
	volatile uint32 careful;
	volatile XLogRecPtr first;	/* final LSN of the first and the last of the
								 * peer's transactions in ours */
	volatile XLogRecPtr last;
	volatile int64 parked;		/* ... or id of the parked change */
	volatile Oid relid;			/* the table, while one of its rows is at it */
	/* what has come of notes that were left; written when it starts */
	int32		crashes;		/* of one of these transactions */
	XLogRecPtr	blamed_first;
	XLogRecPtr	blamed_last;
	Oid			copied;			/* the table whose copy was at it last */
	int32		copy_crashes;
	int64		retried;		/* parked change that was at it, 0: none */
} Entry;

typedef struct Ban
{
	Oid			database;
	Oid			relid;
} Ban;

typedef struct CrashFile
{
	uint32		magic;
	uint32		size;
	volatile uint32 crash_seen; /* by the launcher: the postmaster deals with one */
	int32		banned;
	Ban			bans[MAX_BANNED];
	Entry		entries[REPL_ML_MAX_WORKERS];
} CrashFile;

/* Written by the postmaster only; NULL where there is no file. */
static CrashFile *file = NULL;

/* This process's entry, in an apply worker. */
static Entry *own = NULL;
static emit_log_hook_type previous_log_hook = NULL;

/* Written by the SIGTERM handler: who ended the worker was not itself, so not code of a row. */
static volatile sig_atomic_t ended_by_others = false;

/* Does what is tried again, after so long, pass by the bans?  Written by repl_ml_crash_retries. */
static bool passes_bans = false;

static void *map_file(void);
static void empty_file(void);
static void quit_without_blame(SIGNAL_ARGS);
static void note_who_ends(int signal, siginfo_t *info, void *context);
static void spare_panic(ErrorData *error);
static char *conclude_from_note(void);
static char *blame_transaction(void);
static bool ban_table(Oid relid);

/*
 * Called by the postmaster, at its start and after each crash: maps the file,
 * and forgets the notes that no crash explains.
 */
void
repl_ml_crash_startup(void)
{
	bool		first = file == NULL;

	if (!IsPostmasterEnvironment)
		return;
	if (file != NULL)
		(void) munmap(file, sizeof(CrashFile));
	file = map_file();
	if (file == NULL)
		return;
	if (file->magic != CRASH_MAGIC || file->size != sizeof(CrashFile) ||
		file->banned < 0 || file->banned > MAX_BANNED ||
		(first && !file->crash_seen))
		empty_file();
	file->crash_seen = false;
}

/*
 * Returns the mapped file, made if need be; NULL, and logged, if that fails:
 * then nothing is noted.
 */
static void *
map_file(void)
{
	void	   *result = MAP_FAILED;
	struct stat status;
	int			fd = BasicOpenFile(CRASH_FILE, O_RDWR | O_CREAT | PG_BINARY);

	if (fd >= 0 && fstat(fd, &status) == 0)
	{
		/* written out, as a hole in the file would be a crash when the disk is full */
		if (status.st_size != sizeof(CrashFile))
		{
			char	   *zeros = palloc0(sizeof(CrashFile));

			errno = 0;
			if (ftruncate(fd, 0) != 0 ||
				pg_pwrite(fd, zeros, sizeof(CrashFile), 0) != sizeof(CrashFile))
			{
				errno = errno ? errno : ENOSPC;
				(void) close(fd);
				fd = -1;
			}
			pfree(zeros);
		}
		if (fd >= 0)
			result = mmap(NULL, sizeof(CrashFile), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	}
	if (result == MAP_FAILED)
		ereport(LOG,
				(errcode_for_file_access(),
				 errmsg("could not prepare file \"%s\": %m", CRASH_FILE),
				 errdetail("A change that takes the server down will not be recognized.")));
	if (fd >= 0)
		(void) close(fd);
	return result == MAP_FAILED ? NULL : result;
}

/* Gives the mapped file no notes and no bans. */
static void
empty_file(void)
{
	memset(file, 0, sizeof(CrashFile));
	file->magic = CRASH_MAGIC;
	file->size = sizeof(CrashFile);
}

/*
 * Called by the launcher, which is always there: it notes when the postmaster
 * ends all processes because of a crash.
 */
void
repl_ml_crash_watch(void)
{
	pqsignal(SIGQUIT, quit_without_blame);
}

/*
 * The SIGQUIT handler of the launcher and of apply workers: does as the
 * server's own, but first clears this process of blame.
 */
static void
quit_without_blame(SIGNAL_ARGS)
{
	QuitSignalReason reason = GetQuitSignalReason();

	if (file != NULL && reason == PMQUIT_FOR_CRASH)
		file->crash_seen = true;
	if (own != NULL && reason != PMQUIT_NOT_SENT)
		own->doing = RESTS;
	_exit(2);
}

/*
 * The SIGTERM handler of an apply worker: does as the server's own, but first
 * notes who sent it.
 */
static void
note_who_ends(int signal, siginfo_t *info, void *context)
{
	int			saved = errno;

	if (info->si_pid != MyProcPid)
		ended_by_others = true;
	die(signal);
	errno = saved;
}

/*
 * Called by an apply worker that starts, with its place in shared memory:
 * finds its entry, and draws the conclusions from a note that was left there.
 * Returns what it says, as a message, or NULL.
 */
char *
repl_ml_crash_attach(int worker)
{
	const ReplMlWorker *self = &repl_ml_shared->workers[worker];
	struct sigaction action = {.sa_sigaction = note_who_ends,.sa_flags = SA_RESTART | SA_SIGINFO};
	char	   *message;

	if (file == NULL)
		return NULL;
	LWLockAcquire(repl_ml_shared->lock, LW_EXCLUSIVE);
	for (int i = 0; i < REPL_ML_MAX_WORKERS; i++)
	{
		Entry		found = file->entries[i];

		if (i == worker || found.database != self->database || found.peer != self->peer)
			continue;
		/* places change with a restart; nobody uses this one, which is ours */
		file->entries[i] = file->entries[worker];
		file->entries[worker] = found;
	}
	own = &file->entries[worker];
	if (own->database != self->database || own->peer != self->peer)
		memset(own, 0, sizeof(Entry));
	own->database = self->database;
	own->peer = self->peer;
	message = conclude_from_note();
	own->doing = RESTS;
	LWLockRelease(repl_ml_shared->lock);

	pqsignal(SIGQUIT, quit_without_blame);
	(void) sigaction(SIGTERM, &action, NULL);
	previous_log_hook = emit_log_hook;
	emit_log_hook = spare_panic;
	return message;
}

/*
 * An apply worker's hook: takes the note back before a panic for want of disk
 * or memory, which is nobody's row.
 */
static void
spare_panic(ErrorData *error)
{
	int			category = ERRCODE_TO_CATEGORY(error->sqlerrcode);

	if (previous_log_hook)
		previous_log_hook(error);
	if (error->elevel >= PANIC &&
		(category == ERRCODE_TO_CATEGORY(ERRCODE_INSUFFICIENT_RESOURCES) ||
		 category == ERRCODE_TO_CATEGORY(ERRCODE_SYSTEM_ERROR)))
		own->doing = RESTS;
}

/*
 * Draws, for repl_ml_crash_attach, the conclusions from what the worker's last
 * process was doing, and returns them as a message; NULL: it was doing
 * nothing.
 */
static char *
conclude_from_note(void)
{
	switch (own->doing)
	{
		case APPLIES:
			return blame_transaction();
		case COPIES:
			own->copy_crashes = own->copied == own->relid ? own->copy_crashes + 1 : 1;
			own->copied = own->relid;
			if (own->copy_crashes >= REPL_ML_CRASHES_CAREFUL && OidIsValid(own->relid))
				(void) ban_table(own->relid);
			return psprintf("the apply worker died while it copied the table with OID %u from node "
							"%d, %d times in a row",
							own->relid, own->peer, own->copy_crashes);
		case RETRIES:
			own->retried = own->parked;
			return psprintf("the apply worker died while it tried the parked change "
							INT64_FORMAT " again", own->parked);
		default:
			return NULL;
	}
}

/*
 * Counts the crash for the transaction that was being applied, and bans the
 * table if a row of it was; returns what to log.
 */
static char *
blame_transaction(void)
{
	bool		same = own->crashes > 0 && own->first <= own->blamed_last &&
		own->last >= own->blamed_first;

	own->crashes = same ? own->crashes + 1 : 1;
	own->blamed_first = own->first;
	own->blamed_last = own->last;
	/* row by row one table is at it; if it is none, or was banned, the transaction is parked */
	if (own->careful && !(OidIsValid(own->relid) && ban_table(own->relid)))
		own->crashes = REPL_ML_CRASHES_PARK;
	return psprintf("the apply worker died while it applied the transaction that ends at %X/%X of "
					"node %d, %d times in a row",
					LSN_FORMAT_ARGS(own->last), own->peer, own->crashes);
}

/*
 * Bans a table from being written by apply; returns false if it is already, or
 * if there are too many.
 */
static bool
ban_table(Oid relid)
{
	for (int i = 0; i < file->banned; i++)
	{
		if (file->bans[i].database == own->database && file->bans[i].relid == relid)
			return false;
	}
	if (file->banned == MAX_BANNED)
		return false;
	file->bans[file->banned] = (Ban) {.database = own->database,.relid = relid};
	file->banned++;
	return true;
}

/*
 * Called by an apply worker that begins to apply, or goes on with, the
 * transaction with that final LSN.
 */
void
repl_ml_crash_applies(XLogRecPtr lsn, bool careful)
{
	if (own == NULL)
		return;
	if (own->doing != APPLIES)
		own->first = lsn;
	own->last = lsn;
	own->careful = careful;
	own->doing = APPLIES;
}

/*
 * Called by an apply worker that begins to copy; of which table,
 * repl_ml_crash_writes tells.
 */
void
repl_ml_crash_copies(void)
{
	if (own == NULL)
		return;
	own->relid = InvalidOid;
	own->doing = COPIES;
}

/*
 * Called by an apply worker that tries a parked change again; "banned": also
 * one of a banned table.
 */
void
repl_ml_crash_retries(int64 parked, bool banned)
{
	if (own == NULL)
		return;
	passes_bans = banned;
	own->parked = parked;
	own->doing = RETRIES;
}

/*
 * Called before a row of the table is written, and after it with InvalidOid.
 * Does nothing where no apply worker writes.
 */
void
repl_ml_crash_writes(Oid relid)
{
	if (own != NULL)
		own->relid = relid;
}

/*
 * Called by an apply worker that ends, with the status it exits with: takes
 * the note back, unless it ended itself, and so code that runs for a row did
 * it.
 */
void
repl_ml_crash_detach(int status)
{
	if (own == NULL)
		return;
	if (status == 0 || !OidIsValid(own->relid) || ended_by_others)
		repl_ml_crash_rests();
}

/*
 * Called by an apply worker when what it noted has ended in an orderly way,
 * however: takes the note back.
 */
void
repl_ml_crash_rests(void)
{
	if (own == NULL)
		return;
	own->doing = RESTS;
	own->relid = InvalidOid;
}

/*
 * Called by an apply worker when what the peer wrote up to "end" is committed.
 */
void
repl_ml_crash_survived(XLogRecPtr end)
{
	repl_ml_crash_rests();
	if (own != NULL && own->crashes > 0 && own->blamed_last < end)
		own->crashes = 0;
}

/*
 * Returns how often the transaction has taken the server down, as far as
 * anybody knows; an apply worker then applies it with care.
 */
int
repl_ml_crash_count(XLogRecPtr lsn)
{
	if (own == NULL || own->crashes == 0 || lsn < own->blamed_first || lsn > own->blamed_last)
		return 0;
	return own->crashes;
}

/*
 * Returns, once, the parked change with which the server went down; 0 if there
 * is none.
 */
int64
repl_ml_crash_retried(void)
{
	int64		result = own == NULL ? 0 : own->retried;

	if (own != NULL)
		own->retried = 0;
	return result;
}

/*
 * Says whether apply must leave the table alone.  In a client's session it
 * never must, as a person tries; nor where a banned table's change is tried
 * once more.
 */
bool
repl_ml_crash_is_banned(Oid relid)
{
	if (own != NULL && own->doing == RETRIES && passes_bans)
		return false;
	for (int i = 0; own != NULL && i < file->banned; i++)
	{
		if (file->bans[i].database == MyDatabaseId && file->bans[i].relid == relid)
			return true;
	}
	return false;
}

/*
 * Returns the banned tables of this database as the text of an array of OIDs.
 */
char *
repl_ml_crash_banned(void)
{
	StringInfoData list;

	initStringInfo(&list);
	appendStringInfoChar(&list, '{');
	for (int i = 0; own != NULL && i < file->banned; i++)
	{
		if (file->bans[i].database == MyDatabaseId)
			appendStringInfo(&list, "%s%u", list.len > 1 ? "," : "", file->bans[i].relid);
	}
	appendStringInfoChar(&list, '}');
	return list.data;
}

/*
 * Called when a change of the table has been applied after all: lifts its ban.
 */
void
repl_ml_crash_pardon(Oid relid)
{
	if (file == NULL || file->banned == 0)
		return;
	LWLockAcquire(repl_ml_shared->lock, LW_EXCLUSIVE);
	for (int i = file->banned - 1; i >= 0; i--)
	{
		if (file->bans[i].database == MyDatabaseId && file->bans[i].relid == relid)
			file->bans[i] = file->bans[--file->banned];
	}
	LWLockRelease(repl_ml_shared->lock);
}
