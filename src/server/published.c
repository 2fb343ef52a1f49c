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

PG_FUNCTION_INFO_V1(repl_ml_is_published);

/* repl_ml.is_published(relation): says whether our publication has it; not of NULL. */
Datum
repl_ml_is_published(PG_FUNCTION_ARGS)
{
	Oid			publication;

	if (PG_ARGISNULL(0))
		PG_RETURN_BOOL(false);
	publication = get_publication_oid(REPL_ML_PUBLICATION, true);
	PG_RETURN_BOOL(OidIsValid(publication) &&
				   SearchSysCacheExists2(PUBLICATIONRELMAP, ObjectIdGetDatum(PG_GETARG_OID(0)),
										 ObjectIdGetDatum(publication)));
}
