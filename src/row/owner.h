/*
 * owner.h
 *		Running what a table's owner has written with his rights; see owner.c.
 */
#ifndef REPL_ML_OWNER_H
#define REPL_ML_OWNER_H

#include "postgres.h"
#include "storage/lockdefs.h"
#include "utils/rel.h"

/* Who we were before we became a table's owner. */
typedef struct ReplMlUser
{
	Oid			user;
	int			context;
	int			guc_level;
} ReplMlUser;

extern void repl_ml_become_owner(Relation rel, ReplMlUser *saved);
extern void repl_ml_become_self(const ReplMlUser *saved);
extern bool repl_ml_has_rows(Oid relid, LOCKMODE lockmode);

#endif							/* REPL_ML_OWNER_H */
