/*
 * shape.c
 *		What the replicated tables are on this node, told to the group.
 *
 * Run by the supervisor.  SQL describes the tables (repl_ml.describe_table)
 * into repl_ml.table_shape, which is replicated; views compare.  That is done
 * when the catalogs may have changed, as invalidations tell: at once for the
 * replicated tables themselves, after a while for types, which also come and go
 * with every temporary table.
 *
 * Not the shape of a key (row/shape.c).  No locks but those of the catalogs,
 * until the transaction ends.
 */
#include "postgres.h"

#include "access/xact.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "utils/inval.h"
#include "utils/memutils.h"
#include "utils/syscache.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "group/group.h"
#include "server/server.h"

#define TYPES_INTERVAL_MS	5000	/* between two looks because of types */
#define RETRY_MS			5000	/* after an error */

static bool tables_changed = true;	/* set by invalidations, cleared by repl_ml_shape_tell */
static bool types_changed = false;	/* the same */
static TimestampTz last_look = 0;	/* when describe_tables last ran */
static TimestampTz failed_at = 0;	/* when it last failed; 0: it worked */

/*
 * What is watched: replicated tables and their partitions, sorted; all tables
 * while one is missing.
 */
static Oid *watched = NULL;
static int	watched_count = 0;
static bool watch_all = true;

static void watch_catalogs(void);
static void find_watched(void);
static int	compare_oids(const void *a, const void *b);
static void table_invalidated(Datum arg, Oid relid);
static void type_invalidated(Datum arg, int cache, uint32 hash);
static void describe_tables(void);

/*
 * Tells the group, in the supervisor, what the tables are, if that may have
 * changed; "called" says that the group's list may have.  An error is logged
 * once and tried again; the supervisor goes on.
 */
void
repl_ml_shape_tell(bool called)
{
	MemoryContext context = CurrentMemoryContext;
	TimestampTz now = GetCurrentTimestamp();

	watch_catalogs();
	if (called)
		tables_changed = true;
	if (!tables_changed &&
		!(types_changed && TimestampDifferenceExceeds(last_look, now, TYPES_INTERVAL_MS)))
		return;
	if (failed_at != 0 && !TimestampDifferenceExceeds(failed_at, now, RETRY_MS))
		return;
	tables_changed = types_changed = false;
	last_look = now;
	PG_TRY();
	{
		describe_tables();
		failed_at = 0;
	}
	PG_CATCH();
	{
		/* a table may have been dropped while it was described */
		MemoryContextSwitchTo(context);
		if (failed_at == 0)
			EmitErrorReport();
		FlushErrorState();
		AbortOutOfAnyTransaction();
		tables_changed = true;
		failed_at = now;
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
}

/* Makes core tell of changes, once. */
static void
watch_catalogs(void)
{
	static bool registered = false;

	if (registered)
		return;
	CacheRegisterRelcacheCallback(table_invalidated, (Datum) 0);
	CacheRegisterSyscacheCallback(TYPEOID, type_invalidated, (Datum) 0);
	CacheRegisterSyscacheCallback(ENUMOID, type_invalidated, (Datum) 0);
	CacheRegisterSyscacheCallback(CONSTROID, type_invalidated, (Datum) 0);
	registered = true;
}

/* Called by core when a relation has changed. */
static void
table_invalidated(Datum arg, Oid relid)
{
	if (!OidIsValid(relid) || watch_all ||
		bsearch(&relid, watched, watched_count, sizeof(Oid), compare_oids) != NULL)
		tables_changed = true;
}

/* Called by core when a type, an enum or a constraint has changed. */
static void
type_invalidated(Datum arg, int cache, uint32 hash)
{
	types_changed = true;
}

/* Orders OIDs, for qsort and bsearch. */
static int
compare_oids(const void *a, const void *b)
{
	Oid			left = *(const Oid *) a;
	Oid			right = *(const Oid *) b;

	return left < right ? -1 : left > right;
}

/*
 * Finds what to watch first, then describes the tables: what changes in
 * between is looked at again.
 */
static void
describe_tables(void)
{
	repl_ml_begin();
	find_watched();
	SPI_execute("SELECT repl_ml.tell_shapes()", false, 0);
	/* what it changes we tell next time; where a table is locked we try again then */
	SPI_execute("SELECT repl_ml.agree_on_columns()", false, 0);
	tables_changed |= strcmp(repl_ml_spi_text(0, 0), "f") == 0;
	repl_ml_commit();
}

/*
 * Finds the tables to watch.  Where one is not here yet all are watched:
 * nobody knows which it will be.
 */
static void
find_watched(void)
{
	Oid		   *tables;
	bool		missing = false;

	SPI_execute("SELECT p.relid FROM repl_ml.replicated_table t"
				" LEFT JOIN (pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n"
				" ON n.oid OPERATOR(pg_catalog.=) c.relnamespace)"
				" ON n.nspname OPERATOR(pg_catalog.=) t.schema_name"
				" AND c.relname OPERATOR(pg_catalog.=) t.table_name"
				" LEFT JOIN LATERAL (SELECT c.oid UNION SELECT x.relid"
				" FROM repl_ml.partitions(c.oid) x) p (relid) ON true"
				" WHERE t.state OPERATOR(pg_catalog.=) 'enrolled' ORDER BY 1", true, 0);
	tables = MemoryContextAlloc(TopMemoryContext, Max(SPI_processed, 1) * sizeof(Oid));
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		char	   *relid = repl_ml_spi_text(i, 0);

		tables[i] = relid == NULL ? InvalidOid : strtoul(relid, NULL, 10);
		missing |= relid == NULL;
	}
	qsort(tables, SPI_processed, sizeof(Oid), compare_oids);
	if (watched != NULL)
		pfree(watched);
	watched = tables;
	watched_count = SPI_processed;
	watch_all = missing;
}
