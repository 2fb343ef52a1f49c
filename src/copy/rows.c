/*
 * rows.c
 *		Joins the rows of a copied table, and parks those that do not fit.
 *
 * Rows are gathered and joined together in a subtransaction; where one fails they
 * are joined in smaller pieces, and then each by itself.  What does not fit is
 * parked as if it had come in the stream.  Tombstones and stored versions of
 * other tables, which a copy brings before the rows they are of, are joined as
 * what they are.
 *
 * Called by fetch.c; after it: converge/row.c and converge/deletion.c.  Runs in
 * the apply worker.  Locks: what joining rows takes (converge/), until the piece
 * ends (piece.c).
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/xact.h"
#include "catalog/pg_type.h"
#include "commands/copy.h"
#include "executor/executor.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"

#include "apply/apply.h"
#include "compat.h"
#include "converge/converge.h"
#include "copy/copy.h"
#include "row/row.h"
#include "server/server.h"
#include "wire/wire.h"

#define CHUNK_ROWS			500 /* that are joined together, and as long as all are ... */
#define MOST_CHUNK_ROWS		16000	/* ... so many: each chunk is a subtransaction */
#define PIECE_ROWS			2000	/* where each chunk is a transaction (piece.c) */
#define CHUNK_BYTES			(4 * 1024 * 1024)
#define MOST_FAILURES		1000	/* of rows, after which it is the table's */

/* How the rows of a copy become values of the table; lives as long as the copy. */
typedef struct RowReader
{
	ReplMlCopied *copied;
	bool		joining;		/* this node is */
	int			count;			/* of its stored columns, which the rows have */
	AttrNumber *attnums;
	FmgrInfo   *input;
	Oid		   *input_param;
	Datum	   *values;			/* of the row that was read last */
	bool	   *nulls;
	MemoryContext row_context;	/* of what these point to, and of joining it */
} RowReader;

/*
 * Rows of a copy that are joined together, as they came: if one fails, each by
 * itself; this file only.
 */
static struct
{
	MemoryContext context;		/* of the rows; reset with each chunk */
	List	   *rows;			/* of char **, the values as text, NULL for null */
	Size		size;
	int			enough;			/* rows */
	int			failures;		/* in a row that were not of the row's values */
} chunk;

/* Those of the gathered rows that are joined in one subtransaction. */
typedef struct RowsToJoin
{
	ReplMlApply *apply;
	RowReader  *reader;
	int			from;
	int			to;				/* the first one that is not */
} RowsToJoin;

/* A tombstone or stored version of a table that a copy brings. */
typedef struct CopiedVersion
{
	Oid			relid;
	Datum		columns;		/* the shape of its key */
	Datum		key;
	Datum		content;		/* 0 for a deletion */
	const char *eviction;
	ReplMlClock *clock;
	ReplMlSource source;
} CopiedVersion;

static RowReader *make_reader(ReplMlCopied *copied);
static void read_row(RowReader *reader, char **fields);
static void refuse_nulls(Relation rel, const bool *nulls);
static void join_one(ReplMlApply *apply, RowReader *reader, char **fields);
static void forget_chunk(void);
static void add_to_chunk(ReplMlApply *apply, RowReader *reader, char **fields);
static void join_chunk(ReplMlApply *apply, RowReader *reader);
static void join_singly(ReplMlApply *apply, RowReader *reader, int from, int to);
static ErrorData *try_to_join(ReplMlApply *apply, RowReader *reader, int from, int to);
static void join_some(void *argument);
static bool is_of_the_row(int sqlstate);
static void park_row(ReplMlApply *apply, RowReader *reader, char **fields, ErrorData *error);
static void join_copied_row(ReplMlApply *apply, Relation rel, Datum *values, bool *nulls);
static void join_tombstone(ReplMlApply *apply, Datum *values, bool *nulls);
static void join_version(ReplMlApply *apply, Datum *values, bool *nulls);
static void join_copied_deletion(void *argument);
static void join_copied_version(void *argument);
static bool try_copied(void (*step) (void *argument), CopiedVersion *copied);

/*
 * Called by fetch.c, in the copy's transaction: joins the rows of a table as
 * they come; returns their number.  With "careful" one that cannot be read or
 * joined is parked, and the others are joined.
 */
int64
repl_ml_rows_join(ReplMlApply *apply, ReplMlCopied *copied, CopyFromState copy, bool careful)
{
	RowReader  *reader = make_reader(copied);
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext, "repl_ml copy",
												  ALLOCSET_DEFAULT_SIZES);
	MemoryContext old = MemoryContextSwitchTo(context);
	int64		rows = 0;
	char	  **fields;
	int			count;

	/* a copy that failed may have left some behind */
	forget_chunk();
	chunk.enough = CHUNK_ROWS;
	chunk.failures = 0;
	for (;;)
	{
		CHECK_FOR_INTERRUPTS();
		repl_ml_check_server();
		MemoryContextReset(context);
		if (!NextCopyFromRawFields(copy, &fields, &count))
			break;
		if (count != reader->count)
			ereport(ERROR,
					(errcode(ERRCODE_PROTOCOL_VIOLATION),
					 errmsg("the peer sent a row of table \"%s\" with %d columns instead of %d",
							RelationGetRelationName(copied->rel), count, reader->count),
					 errhint(REPL_ML_SAME_VERSION_HINT)));
		repl_ml_targets_renew();
		if (careful)
			add_to_chunk(apply, reader, fields);
		else
		{
			repl_ml_piece_turn(copied);
			join_one(apply, reader, fields);
		}
		if (++rows % 1000 == 0)
			repl_ml_apply_show_copy(apply, RelationGetRelid(copied->rel), rows);
		if (!careful && rows % PIECE_ROWS == 0)
			repl_ml_piece_next(copied);
	}
	if (careful)
		join_chunk(apply, reader);
	MemoryContextSwitchTo(old);
	MemoryContextDelete(context);
	MemoryContextDelete(reader->row_context);
	return rows;
}

/* Returns what reads rows of the table, made in the copy's transaction. */
static RowReader *
make_reader(ReplMlCopied *copied)
{
	TupleDesc	desc = RelationGetDescr(copied->rel);
	RowReader  *reader = palloc0(sizeof(RowReader));

	reader->copied = copied;
	reader->joining = repl_ml_identity_require()->joining;
	reader->attnums = palloc(desc->natts * sizeof(AttrNumber));
	reader->input = palloc(desc->natts * sizeof(FmgrInfo));
	reader->input_param = palloc(desc->natts * sizeof(Oid));
	reader->values = palloc0(desc->natts * sizeof(Datum));
	reader->nulls = palloc(desc->natts * sizeof(bool));
	reader->row_context = AllocSetContextCreate(CurrentMemoryContext, "repl_ml copied row",
												ALLOCSET_DEFAULT_SIZES);
	for (int i = 0; i < desc->natts; i++)
	{
		Form_pg_attribute att = TupleDescAttr(desc, i);
		Oid			function;

		reader->nulls[i] = true;
		if (!repl_ml_copy_is_stored(att))
			continue;
		getTypeInputInfo(att->atttypid, &function, &reader->input_param[reader->count]);
		fmgr_info(function, &reader->input[reader->count]);
		reader->attnums[reader->count++] = att->attnum;
	}
	return reader;
}

/*
 * Sets the values of a row, with the rights of the table's owner, whose types
 * read them.  A null is one, also of a domain that has none, as in the stream.
 */
static void
read_row(RowReader *reader, char **fields)
{
	Relation	rel = reader->copied->rel;
	ReplMlUser	saved;

	repl_ml_become_owner(rel, &saved);
	for (int i = 0; i < reader->count; i++)
	{
		int			column = reader->attnums[i] - 1;

		reader->nulls[column] = fields[i] == NULL;
		reader->values[column] = fields[i] == NULL ? (Datum) 0 :
			InputFunctionCall(&reader->input[i], fields[i], reader->input_param[i],
							  TupleDescAttr(RelationGetDescr(rel), column)->atttypmod);
	}
	repl_ml_become_self(&saved);
}

/*
 * Refuses a row of a table of ours that lacks a value: what COPY reads is as
 * yet what the peer says, not what the table allows.
 */
static void
refuse_nulls(Relation rel, const bool *nulls)
{
	for (int i = 0; i < RelationGetNumberOfAttributes(rel); i++)
	{
		Form_pg_attribute att = TupleDescAttr(RelationGetDescr(rel), i);

		if (att->attnotnull && nulls[i])
			ereport(ERROR,
					(errcode(ERRCODE_PROTOCOL_VIOLATION),
					 errmsg("the peer sent a row of table \"%s.%s\" without column \"%s\"",
							REPL_ML_SCHEMA, RelationGetRelationName(rel), NameStr(att->attname)),
					 errhint("Look at this table on the peer.")));
	}
}

/* Reads and joins a row of whatever table is copied. */
static void
join_one(ReplMlApply *apply, RowReader *reader, char **fields)
{
	Oid			relid = RelationGetRelid(reader->copied->rel);
	MemoryContext old;

	MemoryContextReset(reader->row_context);
	old = MemoryContextSwitchTo(reader->row_context);
	read_row(reader, fields);

	/* users' tables have their own constraints, which the executor checks */
	if (RelationGetNamespace(reader->copied->rel) == repl_ml_schema_oid())
		refuse_nulls(reader->copied->rel, reader->nulls);
	if (relid == repl_ml_catalog_oid("tombstone"))
		join_tombstone(apply, reader->values, reader->nulls);
	else if (relid == repl_ml_catalog_oid(REPL_ML_VERSION_TABLE))
		join_version(apply, reader->values, reader->nulls);
	else
		join_copied_row(apply, reader->copied->rel, reader->values, reader->nulls);
	MemoryContextSwitchTo(old);
}

/* Forgets the rows that have been gathered. */
static void
forget_chunk(void)
{
	if (chunk.context == NULL)
		chunk.context = AllocSetContextCreate(TopMemoryContext, "repl_ml copied rows",
											  ALLOCSET_DEFAULT_SIZES);
	MemoryContextReset(chunk.context);
	chunk.rows = NIL;
	chunk.size = 0;
}

/* Gathers a row, and joins the gathered ones when they are enough. */
static void
add_to_chunk(ReplMlApply *apply, RowReader *reader, char **fields)
{
	MemoryContext old = MemoryContextSwitchTo(chunk.context);
	Size		size = reader->count * sizeof(char *);
	char	  **row;
	char	   *text;

	for (int i = 0; i < reader->count; i++)
		size += fields[i] == NULL ? 0 : strlen(fields[i]) + 1;
	row = MemoryContextAllocHuge(chunk.context, size);
	text = (char *) &row[reader->count];
	for (int i = 0; i < reader->count; i++)
	{
		row[i] = fields[i] == NULL ? NULL : text;
		if (fields[i] != NULL)
			text = stpcpy(text, fields[i]) + 1;
	}
	chunk.rows = lappend(chunk.rows, row);
	chunk.size += size;
	MemoryContextSwitchTo(old);
	if (list_length(chunk.rows) >= chunk.enough || chunk.size >= CHUNK_BYTES)
		join_chunk(apply, reader);
}

/*
 * Joins the rows that have been gathered: together, or, if that fails, in
 * parts, and a part that fails row by row.  What has been joined is committed
 * before somebody's lock is waited for again, who may wait for one of it.
 */
static void
join_chunk(ReplMlApply *apply, RowReader *reader)
{
	int			count = list_length(chunk.rows);
	int			most = reader->copied->in_pieces ? PIECE_ROWS : MOST_CHUNK_ROWS;

	if (count > 0)
		repl_ml_piece_turn(reader->copied);
	/* a subtransaction costs as much as some rows: the better it goes, the fewer there are */
	if (count == 0 || try_to_join(apply, reader, 0, count) == NULL)
	{
		chunk.failures = 0;
		chunk.enough = Min(chunk.enough * 2, most);
	}
	else
	{
		chunk.enough = CHUNK_ROWS;
		for (int from = 0; from < count; from += CHUNK_ROWS)
		{
			int			to = Min(from + CHUNK_ROWS, count);

			repl_ml_piece_turn(reader->copied);
			if (count <= CHUNK_ROWS || try_to_join(apply, reader, from, to) != NULL)
				join_singly(apply, reader, from, to);
			else
				chunk.failures = 0;
			repl_ml_piece_next(reader->copied);
		}
	}
	forget_chunk();
	repl_ml_piece_next(reader->copied);
}

/*
 * Joins some of the gathered rows each by itself, and parks those that fail.
 * Where many fail in a row, and not for their values, it is the table's error,
 * and raised.
 */
static void
join_singly(ReplMlApply *apply, RowReader *reader, int from, int to)
{
	for (int i = from; i < to; i++)
	{
		ErrorData  *error;

		repl_ml_piece_turn(reader->copied);
		error = try_to_join(apply, reader, i, i + 1);
		if (error == NULL)
			chunk.failures = 0;
		else if (!is_of_the_row(error->sqlerrcode) && ++chunk.failures > MOST_FAILURES)
			ReThrowError(error);
		else
			park_row(apply, reader, list_nth(chunk.rows, i), error);
		repl_ml_piece_next(reader->copied);
	}
}

/*
 * Joins some of the gathered rows in a subtransaction; returns the error that it failed with
 * for good, or NULL.  For a lock it waits once: the copy holds others' up.  But
 * a node that joins has nothing else to do, and copies again rather than be
 * ready without the row.
 */
static ErrorData *
try_to_join(ReplMlApply *apply, RowReader *reader, int from, int to)
{
	RowsToJoin	some = {.apply = apply,.reader = reader,.from = from,.to = to};
	ErrorData  *error = repl_ml_targets_try(join_some, &some);

	if (error != NULL && !reader->joining && repl_ml_locked_is_race(error->sqlerrcode))
	{
		repl_ml_locked_note(0);
		repl_ml_locked_unwatch();
		(void) repl_ml_locked_describe(error);
		return error;
	}
	repl_ml_locked_unwatch();
	if (error != NULL && (repl_ml_locked_is_race(error->sqlerrcode) ||
						  !repl_ml_dispatch_is_permanent(error->sqlerrcode)))
		ReThrowError(error);
	return error;
}

/* Joins some of the gathered rows, as the step of try_to_join. */
static void
join_some(void *argument)
{
	RowsToJoin *some = argument;

	if (!some->reader->joining)
		repl_ml_locked_watch(false);
	for (int i = some->from; i < some->to; i++)
	{
		CHECK_FOR_INTERRUPTS();
		join_one(some->apply, some->reader, list_nth(chunk.rows, i));
	}
	repl_ml_locked_unwatch();
}

/* Says whether the error is of a row's values, so that others may fit. */
static bool
is_of_the_row(int sqlstate)
{
	return ERRCODE_TO_CATEGORY(sqlstate) == ERRCODE_DATA_EXCEPTION ||
		ERRCODE_TO_CATEGORY(sqlstate) == ERRCODE_INTEGRITY_CONSTRAINT_VIOLATION;
}

/* Parks a copied row as if it had come in the stream. */
static void
park_row(ReplMlApply *apply, RowReader *reader, char **fields, ErrorData *error)
{
	Relation	rel = reader->copied->rel;
	ReplMlSource source = {.node = apply->peer->node_id};
	LogicalRepRelation remote = {.remoteid = REPL_ML_COPIED_TABLE_ID,.natts = reader->count};
	LogicalRepTupleData row = {.ncols = reader->count};
	List	   *columns = NIL;

	/* as the peer would describe the table: require_same_table() has compared them */
	remote.nspname = get_namespace_name(RelationGetNamespace(rel));
	remote.relname = RelationGetRelationName(rel);
	remote.attnames = palloc(reader->count * sizeof(char *));
	remote.atttyps = palloc(reader->count * sizeof(Oid));
	row.colvalues = palloc0(reader->count * sizeof(StringInfoData));
	row.colstatus = palloc(reader->count);
	for (int i = 0; i < reader->count; i++)
	{
		Form_pg_attribute att = TupleDescAttr(RelationGetDescr(rel), reader->attnums[i] - 1);
		ReplMlColumn *column = palloc0(sizeof(ReplMlColumn));

		remote.attnames[i] = NameStr(att->attname);
		remote.atttyps[i] = att->atttypid;
		row.colstatus[i] = fields[i] == NULL ? LOGICALREP_COLUMN_NULL : LOGICALREP_COLUMN_TEXT;
		row.colvalues[i].data = fields[i];
		row.colvalues[i].len = fields[i] == NULL ? 0 : strlen(fields[i]);
		*column = repl_ml_column_describe(RelationGetRelid(rel), att);
		columns = lappend(columns, column);
	}
	repl_ml_relation_remember(&remote, columns, false);
	repl_ml_park(&source, repl_ml_relation_find(REPL_ML_COPIED_TABLE_ID), 'I', &row, error, false);
	CommandCounterIncrement();
}

/* Joins a row of a user's table, or of one of our lists. */
static void
join_copied_row(ReplMlApply *apply, Relation rel, Datum *values, bool *nulls)
{
	ReplMlSource source = {.node = apply->peer->node_id,.copied = !repl_ml_identity()->joining};
	TupleTableSlot *slot = repl_ml_targets_get(RelationGetRelid(rel))->incoming;
	int			natts = slot->tts_tupleDescriptor->natts;

	ExecClearTuple(slot);
	memcpy(slot->tts_values, values, natts * sizeof(Datum));
	memcpy(slot->tts_isnull, nulls, natts * sizeof(bool));
	ExecStoreVirtualTuple(slot);
	if (RelationGetRelid(rel) == repl_ml_catalog_oid("replicated_table"))
		repl_ml_relation_meet(slot);
	if (RelationGetNamespace(rel) != repl_ml_schema_oid() && repl_ml_meet_is_due())
		repl_ml_meet_row(RelationGetRelid(rel), slot, &source);
	else
		repl_ml_row_join(RelationGetRelid(rel), slot, &source);
}

/*
 * Joins a row of repl_ml.tombstone.  One whose key cannot be looked for here,
 * because the table has other columns now, is kept as it came.
 */
static void
join_tombstone(ReplMlApply *apply, Datum *values, bool *nulls)
{
	CopiedVersion copied = {
		.relid = repl_ml_table_local(NameStr(*DatumGetName(values[0])),
									 NameStr(*DatumGetName(values[1]))),
		.key = values[2],.columns = values[3],
		.eviction = nulls[6] ? NULL : DatumGetCString(DirectFunctionCall1(jsonb_out, values[6])),
		.clock = DatumGetReplMlClockP(values[8]),
		.source = {.node = apply->peer->node_id}
	};
	ReplMlTable *table;

	if (!OidIsValid(copied.relid))
		return;
	table = repl_ml_targets_get(copied.relid)->table;
	if (repl_ml_shape_is(table, copied.columns))
		join_copied_deletion(&copied);
	else if (!try_copied(join_copied_deletion, &copied))
		repl_ml_tombstone_keep(repl_ml_targets_get(copied.relid)->table, copied.columns, copied.key,
							   copied.clock, copied.eviction);
}

/*
 * Joins a row of repl_ml.concurrent_version: what one of the copied rows was
 * resolved from.  Joined by itself, so that it is resolved here as well; of
 * one that does not fit the table as it is now there is the row only.  One that
 * is older than the tombstones that this node has removed has been here: where
 * it is not any more, the peer's set is stale.
 */
static void
join_version(ReplMlApply *apply, Datum *values, bool *nulls)
{
	CopiedVersion copied = {
		.relid = repl_ml_table_local(NameStr(*DatumGetName(values[0])),
									 NameStr(*DatumGetName(values[1]))),
		.key = values[2],.columns = values[3],.content = nulls[5] ? (Datum) 0 : values[5],
		.eviction = nulls[6] ? NULL : DatumGetCString(DirectFunctionCall1(jsonb_out, values[6])),
		.clock = DatumGetReplMlClockP(values[7]),
		.source = {.node = apply->peer->node_id}
	};

	if (OidIsValid(copied.relid) &&
		!repl_ml_tombstone_collected(repl_ml_identity()->node_id, copied.clock))
		(void) try_copied(nulls[5] ? join_copied_deletion : join_copied_version, &copied);
}

/* Joins a deletion, as a step of try_copied. */
static void
join_copied_deletion(void *argument)
{
	CopiedVersion *copied = argument;

	repl_ml_deletion_join(copied->relid, copied->columns, copied->key, copied->clock,
						  copied->eviction, &copied->source);
}

/* Joins a live version, as a step of try_copied. */
static void
join_copied_version(void *argument)
{
	CopiedVersion *copied = argument;
	ReplMlTarget *target = repl_ml_targets_get(copied->relid);
	TupleTableSlot *row;
	ReplMlUser	saved;

	repl_ml_become_owner(target->rel, &saved);
	row = repl_ml_version_to_slot(copied->content, RelationGetDescr(target->rel));
	row->tts_values[target->table->clock_attnum - 1] = PointerGetDatum(copied->clock);
	row->tts_isnull[target->table->clock_attnum - 1] = false;
	ExecCopySlot(target->incoming, row);
	repl_ml_become_self(&saved);
	repl_ml_row_join(copied->relid, target->incoming, &copied->source);
}

/*
 * Does a step in a subtransaction; returns false if it fails in a way that
 * trying again would not mend.
 */
static bool
try_copied(void (*step) (void *argument), CopiedVersion *copied)
{
	ErrorData  *error = repl_ml_targets_try(step, copied);

	if (error != NULL && !repl_ml_dispatch_is_permanent(error->sqlerrcode))
		ReThrowError(error);
	return error == NULL;
}
