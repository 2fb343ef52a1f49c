/*
 * places.c
 *		On which pages the rows of each chunk were: noted by the first pass of a
 *		comparison, so that the second one reads no others.
 *
 * For each page, in its order, how many rows were seen, and the chunk of each: two
 * bytes a row, in a temporary file, so that memory is bounded.  A process keeps
 * them of one first pass, which is the one it has made last; so who asks has both
 * passes made in one session, and forgets the notes when he is done (compare.c).
 * Where there are none, as of relations that are no heaps or have another file by
 * now, or temporary files are limited, the second pass reads all.
 *
 * The second pass sees another moment.  A row that was written meanwhile may be on
 * a page that is not read; it looks as if it were missing and is looked at by its
 * key, as all that was written meanwhile.  A difference that stays is of a row
 * that nobody writes, and that is where it was; see src/README.
 *
 * Not here: who reads pages (part.c).  No locks.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "storage/buffile.h"
#include "storage/fd.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/rel.h"

#include "verify/verify.h"

/* of what a process may have in temporary files, if that is limited */
#define SHARE_OF_LIMIT	4

/* The pages of one relation. */
typedef struct Leaf
{
	Oid			relid;
	Oid			file;
	BlockNumber pages;			/* so many are noted, from the first on */
	int			part;			/* of the temporary file, where they begin */
	off_t		offset;
} Leaf;

/* What this process has noted; written by the functions below. */
static struct
{
	MemoryContext context;		/* of all of it; NULL: nothing is noted */
	Oid			root;
	int			chunks;
	BufFile    *file;
	int64		size;			/* of that */
	bool		complete;		/* all leaves are noted that can be */
	List	   *leaves;			/* of Leaf */
	Leaf	   *leaf;			/* at hand: written or read; NULL: none is */
	BlockNumber next;			/* ... its page that is read next */
	uint16		count;			/* of rows on the page that is written */
	uint16		chunk[MaxHeapTuplesPerPage];	/* ... of these */
}			places;

StaticAssertDecl(REPL_ML_MAX_CHUNKS - 1 <= PG_UINT16_MAX, "a chunk's number has two bytes");

/* Forgets what this process has noted. */
void
repl_ml_places_forget(void)
{
	MemoryContext context = places.context;

	if (context == NULL)
		return;
	places.context = NULL;
	BufFileClose(places.file);
	MemoryContextDelete(context);
}

/* Begins to note where the rows of a table are, for the first pass. */
void
repl_ml_places_begin(Oid root, int chunks)
{
	MemoryContext context;
	MemoryContext old;

	repl_ml_places_forget();
	context = AllocSetContextCreate(TopMemoryContext, "repl_ml places of rows",
									ALLOCSET_SMALL_SIZES);
	old = MemoryContextSwitchTo(context);
	memset(&places, 0, sizeof(places));
	places.root = root;
	places.chunks = chunks;
	places.file = BufFileCreateTemp(true);
	places.context = context;
	MemoryContextSwitchTo(old);
}

/* Begins to note the pages of a relation; those that follow, up to the next one, are its. */
void
repl_ml_places_begin_leaf(Relation rel)
{
	MemoryContext old;

	if (places.context == NULL)
		return;
	old = MemoryContextSwitchTo(places.context);
	places.leaf = palloc0(sizeof(Leaf));
	places.leaf->relid = RelationGetRelid(rel);
	places.leaf->file = rel->rd_rel->relfilenode;
	BufFileTell(places.file, &places.leaf->part, &places.leaf->offset);
	places.leaves = lappend(places.leaves, places.leaf);
	places.count = 0;
	MemoryContextSwitchTo(old);
}

/* Notes that a row of the page at hand is in this chunk. */
void
repl_ml_places_add_row(uint64 chunk)
{
	if (places.context != NULL && places.count < MaxHeapTuplesPerPage)
		places.chunk[places.count++] = (uint16) chunk;
}

/* Says whether there is room for more temporary files. */
static bool
is_within_limit(void)
{
	return temp_file_limit < 0 || places.size / 1024 < temp_file_limit / SHARE_OF_LIMIT;
}

/* Ends the page at hand, which is the next one of its relation. */
void
repl_ml_places_end_page(void)
{
	Size		size = places.count * sizeof(uint16);

	if (places.context == NULL)
		return;
	if (!is_within_limit())
	{
		repl_ml_places_forget();
		return;
	}
	BufFileWrite(places.file, &places.count, sizeof(places.count));
	BufFileWrite(places.file, places.chunk, size);
	places.size += sizeof(places.count) + size;
	places.leaf->pages++;
	places.count = 0;
}

/* Notes that the first pass has come to its end. */
void
repl_ml_places_end(void)
{
	places.complete = true;
	places.leaf = NULL;
}

/*
 * Prepares, for the second pass, to say which pages of a relation to read, from
 * the first one on; returns false if all are to be.
 */
bool
repl_ml_places_find(Oid root, int chunks, Relation rel)
{
	ListCell   *lc;

	places.leaf = NULL;
	if (places.context == NULL || !places.complete || places.root != root ||
		places.chunks != chunks)
		return false;
	foreach(lc, places.leaves)
	{
		Leaf	   *leaf = lfirst(lc);

		if (leaf->relid != RelationGetRelid(rel) || leaf->file != rel->rd_rel->relfilenode)
			continue;
		if (BufFileSeek(places.file, leaf->part, leaf->offset, SEEK_SET) != 0)
			return false;
		places.leaf = leaf;
		places.next = 0;
		return true;
	}
	return false;
}

/* Reads so many bytes. */
static void
read_noted(void *data, Size size)
{
	if (size > 0 && BufFileRead(places.file, data, size) != size)
		ereport(ERROR,
				(errcode_for_file_access(),
				 errmsg("could not read the temporary file of a comparison: %m")));
}

/*
 * Says whether a page had rows of chunks that are wanted, a bit for each.  Asked
 * of each page of the relation that has been found, in their order.
 */
bool
repl_ml_places_is_wanted(BlockNumber block, const uint8 *wanted)
{
	bool		is_wanted = false;

	/* what is there since then has come since then */
	if (block >= places.leaf->pages)
		return false;
	Assert(block == places.next);
	places.next++;
	read_noted(&places.count, sizeof(places.count));
	read_noted(places.chunk, places.count * sizeof(uint16));
	for (int i = 0; i < places.count && !is_wanted; i++)
		is_wanted = (wanted[places.chunk[i] / 8] & (1 << places.chunk[i] % 8)) != 0;
	places.count = 0;
	return is_wanted;
}
