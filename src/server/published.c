/*
 * published.c
 *		From SQL: which relation has a name, and whether it is in our publication; for
 *		views of many tables, which are looked at all the time.
 *
 * By the system caches: a join would read all of pg_class.  Not here: what is wrong
 * with the publication (sql/parts/membership.sql).  No locks, so that nobody who
 * looks is in anybody's way: what is found may be gone a moment later.
 */
#include "postgres.h"

#include "catalog/namespace.h"
#include "catalog/pg_publication.h"
#include "fmgr.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/syscache.h"

#include "server/server.h"

PG_FUNCTION_INFO_V1(repl_ml_find_table);

/* repl_ml.find_table(schema_name, table_name): returns the relation of that name, or NULL. */
Datum
repl_ml_find_table(PG_FUNCTION_ARGS)
{
	Oid			schema = get_namespace_oid(NameStr(*PG_GETARG_NAME(0)), true);
	Oid			relid = InvalidOid;

	if (OidIsValid(schema))
		relid = get_relname_relid(NameStr(*PG_GETARG_NAME(1)), schema);
	if (!OidIsValid(relid))
		PG_RETURN_NULL();
	PG_RETURN_OID(relid);
}

static Oid publication = InvalidOid;	/* ours; of find_publication */
static bool publication_known = false;	/* cleared when a publication has changed */

/* Called by core when a publication has changed. */
static void
publication_invalidated(Datum arg, int cache, uint32 hash)
{
	publication_known = false;
}

/*
 * Returns our publication, InvalidOid if there is none: looked up once, as whoever
 * asks of a thousand tables would otherwise look it up as often.
 */
static Oid
find_publication(void)
{
	static bool registered = false;

	if (!registered)
		CacheRegisterSyscacheCallback(PUBLICATIONOID, publication_invalidated, (Datum) 0);
	registered = true;
	if (!publication_known)
	{
		/* what changes while it is looked up makes it unknown again */
		publication_known = true;
		publication = get_publication_oid(REPL_ML_PUBLICATION, true);
	}
	return publication;
}

PG_FUNCTION_INFO_V1(repl_ml_is_published);

/* repl_ml.is_published(relation): says whether our publication has it; not of NULL. */
Datum
repl_ml_is_published(PG_FUNCTION_ARGS)
{
	if (PG_ARGISNULL(0))
		PG_RETURN_BOOL(false);
	PG_RETURN_BOOL(OidIsValid(find_publication()) &&
				   SearchSysCacheExists2(PUBLICATIONRELMAP, ObjectIdGetDatum(PG_GETARG_OID(0)),
										 ObjectIdGetDatum(publication)));
}
