/*
 * differing.c
 *		Which rows of a table a copy has to move: those that differ.
 *
 * A table that is copied again has nearly all of the peer's rows, as after a
 * slot was lost.  So this node and the peer add up their rows in chunks
 * (digests.c), and for the chunks that differ the peer is told what is here; it
 * answers with its other rows of them, which are joined as those of any copy.  Rows that
 * only this node has are none of a copy's business: the peer gets them from this
 * node, and deletions travel as tombstones, which are copied before.
 *
 * The sums cost 16 bytes a chunk, what is told about 9 bytes for each row of a chunk that
 * differs, a third more as text.  A table that is small, or differs a lot, is
 * copied whole, and so is one that has a row here or there that cannot be read.
 *
 * Called by fetch.c, in the copy's transaction.  Not here: what a digest is
 * (digests.c).  Locks: ACCESS SHARE on partitions; the caller has locked the
 * table.
 */
#include "postgres.h"

#include <math.h>

#include "catalog/pg_type.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/memutils.h"
#include "utils/rel.h"

#include "copy/copy.h"
#include "server/server.h"
#include "verify/verify.h"
#include "wire/wire.h"

#define LEAST_ROWS			800	/* below that a copy costs less than sums */
#define ROWS_OF_CHUNK		16	/* as long as there are not too many chunks */
#define LEAST_CHUNKS		64
#define ROW_BYTES			32	/* that a row takes of maintenance_work_mem, as its
								 * digest may be moved to a place twice as large */
#define MOST_BATCHES		16	/* each reads the table, here and there */
#define TELL_BYTES			(1024 * 1024)	/* of a statement to the peer */

struct ReplMlDiffering
{
	WalReceiverConn *conn;
	int			chunks;
	ReplMlDigest *sums;			/* of this node */
	int64	   *rows;			/* of this node, in each chunk */
	bool	   *wanted;			/* chunks of the present batch */
	bool	   *differs;
	int			next;			/* the first chunk behind that batch */
	int64		bytes;			/* that have travelled for this */
	ReplMlRowDigest *have;		/* what is here of the batch */
	int64		have_count;
	MemoryContext context;		/* of what is told; reset with each batch */
};

/* Returns how many rows are told together: 2 million, with 64 MB. */
static int64
batch_rows(void)
{
	return maintenance_work_mem * INT64CONST(1024) / ROW_BYTES;
}

/* ---- sums ---- */

/* Returns into how many chunks a table of so many rows is cut. */
int
repl_ml_differing_chunks(double rows)
{
	int			chunks = LEAST_CHUNKS;

	while (chunks < REPL_ML_MAX_CHUNKS && chunks < rows / ROWS_OF_CHUNK)
		chunks *= 2;
	return chunks;
}

/*
 * Asks the peer for its sums, also for meet.c; returns NULL where it has none.
 * They travel as base64: a third more than they are, and no hexadecimal's
 * double.
 */
ReplMlDigest *
repl_ml_differing_ask(WalReceiverConn *conn, Relation rel, int chunks, int64 *bytes)
{
	static const Oid types[1] = {TEXTOID};
	Size		size = chunks * sizeof(ReplMlDigest);
	char	   *sql = psprintf("SELECT pg_catalog.encode(repl_ml.chunk_sums("
							   "%s::pg_catalog.regclass, %s, %d), 'base64')",
							   quote_literal_cstr(repl_ml_fetch_name(rel)),
							   quote_literal_cstr(repl_ml_image_signature(rel)), chunks);
	ReplMlResult *result = repl_ml_stream_query(conn, sql, 1, types);
	bytea	   *sums = NULL;

	if (repl_ml_stream_next(result) &&
		(slot_getallattrs(result->slot), !result->slot->tts_isnull[0]))
	{
		Datum		text = result->slot->tts_values[0];

		*bytes += VARSIZE_ANY_EXHDR(DatumGetPointer(text));
		sums = DatumGetByteaPCopy(DirectFunctionCall2(binary_decode, text,
													  CStringGetTextDatum("base64")));
	}
	repl_ml_stream_free(result);
	if (sums != NULL && VARSIZE_ANY_EXHDR(sums) != size)
		ereport(ERROR,
				(errcode(ERRCODE_PROTOCOL_VIOLATION),
				 errmsg("the peer sent %zu bytes of sums instead of %zu", VARSIZE_ANY_EXHDR(sums),
						size),
				 errhint(REPL_ML_SAME_VERSION_HINT)));
	return sums == NULL ? NULL : (ReplMlDigest *) VARDATA(sums);
}

/*
 * Notes which chunks differ; returns false if so many do that a copy of all
 * costs less.  A chunk of which the peer has no row needs nothing.
 */
static bool
compare_sums(ReplMlDiffering *differing, const ReplMlDigest *theirs)
{
	int64		rows = 0;
	int64		to_tell = 0;
	int			count = 0;
	double		changed;

	for (int i = 0; i < differing->chunks; i++)
	{
		const ReplMlDigest *ours = &differing->sums[i];

		rows += differing->rows[i];
		differing->differs[i] = memcmp(ours, &theirs[i], sizeof(ReplMlDigest)) != 0 &&
			(theirs[i].lane[0] != 0 || theirs[i].lane[1] != 0);
		if (!differing->differs[i])
			continue;
		count++;
		to_tell += differing->rows[i];
	}

	/* so many rows that differ, thrown at random, hit so many chunks */
	changed = count == differing->chunks ? differing->chunks * log(differing->chunks) :
		-differing->chunks * log(1 - (double) count / differing->chunks);
	return changed <= rows / 3.0 && to_tell <= batch_rows() * MOST_BATCHES;
}

/*
 * Compares the table with the peer's; returns NULL if all its rows are to be
 * copied.
 */
ReplMlDiffering *
repl_ml_differing_begin(WalReceiverConn *conn, Relation rel)
{
	ReplMlDiffering *differing = palloc0(sizeof(ReplMlDiffering));
	double		rows = repl_ml_digests_rows(rel);
	ReplMlDigest *theirs;

	differing->conn = conn;
	if (rows < LEAST_ROWS)
		return NULL;
	differing->chunks = repl_ml_differing_chunks(rows);
	differing->sums = palloc0(differing->chunks * sizeof(ReplMlDigest));
	differing->rows = palloc0(differing->chunks * sizeof(int64));
	differing->wanted = palloc0(differing->chunks * sizeof(bool));
	differing->differs = palloc0(differing->chunks * sizeof(bool));
	differing->context = AllocSetContextCreate(CurrentMemoryContext, "repl_ml digests to tell",
											   ALLOCSET_DEFAULT_SIZES);
	if (!repl_ml_digests_sum(rel, differing->chunks, differing->sums, differing->rows))
		return NULL;
	theirs = repl_ml_differing_ask(conn, rel, differing->chunks, &differing->bytes);
	return theirs != NULL && compare_sums(differing, theirs) ? differing : NULL;
}

/* Returns how many bytes have travelled so far, beside rows. */
int64
repl_ml_differing_bytes(const ReplMlDiffering *differing)
{
	return differing->bytes;
}

/* ---- what is told ---- */

/*
 * Takes the next chunks that differ, as many as memory allows; returns false if
 * there are none.
 */
static bool
choose_batch(ReplMlDiffering *differing)
{
	int64		rows = 0;
	bool		any = false;

	memset(differing->wanted, 0, differing->chunks * sizeof(bool));
	for (; differing->next < differing->chunks && rows < batch_rows(); differing->next++)
	{
		if (!differing->differs[differing->next])
			continue;
		differing->wanted[differing->next] = any = true;
		rows += differing->rows[differing->next];
	}
	return any;
}

/* Tells the peer what is packed; with NULL it forgets what it was told before. */
static void
tell(WalReceiverConn *conn, int chunks, const bytea *packed, int64 *bytes)
{
	static const Oid types[1] = {BOOLOID};
	char	   *sql;

	if (packed == NULL)
		sql = psprintf("SELECT repl_ml.note_digests(%d, NULL)", chunks);
	else
		sql = psprintf("SELECT repl_ml.note_digests(%d, pg_catalog.decode('%s', 'base64'))",
					   chunks,
					   TextDatumGetCString(DirectFunctionCall2(binary_encode,
															   PointerGetDatum(packed),
															   CStringGetTextDatum("base64"))));
	*bytes += strlen(sql);
	repl_ml_stream_free(repl_ml_stream_query(conn, sql, 1, types));
	pfree(sql);
}

/*
 * Tells the peer these digests of rows in the chunks that are wanted, also for
 * meet.c.
 */
void
repl_ml_differing_tell(WalReceiverConn *conn, int chunks, const bool *wanted,
					   const ReplMlRowDigest *have, int64 count, int64 *bytes)
{
	const ReplMlRowDigest *next = have;
	int			from = 0;

	tell(conn, chunks, NULL, bytes);
	while (from < chunks)
	{
		CHECK_FOR_INTERRUPTS();
		tell(conn, chunks, repl_ml_digests_pack(wanted, chunks, &from, &next, have + count,
												TELL_BYTES), bytes);
	}
}

/*
 * Tells the peer what is here of the next chunks that differ, so that it sends
 * what is not; returns false if there are no more.
 */
bool
repl_ml_differing_next(ReplMlDiffering *differing, Relation rel)
{
	MemoryContext old;

	if (!choose_batch(differing))
		return false;
	MemoryContextReset(differing->context);
	old = MemoryContextSwitchTo(differing->context);
	/* one that cannot be read has come since: then all of them are sent */
	(void) repl_ml_digests_collect(rel, differing->chunks, differing->wanted,
								   REPL_ML_OF_ROW, &differing->have, &differing->have_count);
	repl_ml_differing_tell(differing->conn, differing->chunks, differing->wanted, differing->have,
						   differing->have_count, &differing->bytes);
	MemoryContextSwitchTo(old);
	return true;
}
