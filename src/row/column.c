/*
 * column.c
 *		Which column is which: the identities that columns of replicated tables
 *		have on all nodes.
 *
 * Columns have names and types, but those may mean another column on one node
 * than on the next: one was dropped and added again, names were swapped, or all
 * values were computed anew (ALTER TYPE ... USING), and the other node has not
 * got so far.  So each column has an identity, a random number that it is given
 * when it appears, and keeps when it is renamed.  It is stored as the security
 * label of the provider "repl_ml" on the column: so it is in the catalogs, as
 * these were when a change was written, for whoever decodes the WAL; a dump
 * brings it to the nodes that are created from one; and it goes with its column.
 *
 * What is added on two nodes has two identities at first.  They are joined as
 * soon as the nodes know of each other: then the column has both.  So the
 * identity is a set, and two columns of one name are the same unless one of the
 * nodes has had an identity of the other's, and has it no more under this name.
 * For that the label of the clock column lists all identities there have ever been
 * in the table on this node.
 *
 * What a change of the schema adds that all nodes run (write/schema_change.c) has one identity
 * on all of them, made of its number: two columns that changes have made are the same if they
 * have it in common, and never joined otherwise.
 *
 * A node that alters a table again before it has heard of another's first time
 * takes that for its second.  It finds out when a third node's column, which it has
 * had, is joined with that one: then its column gets an identity of its own again.
 *
 * Called by backends that alter tables (write/guard.c), the walsender
 * (write/output.c), who applies what it sends (apply/relation.c), and SQL.
 * Labels are written under a lock of the table that keeps out ALTER TABLE
 * (SHARE UPDATE EXCLUSIVE or more).  Not here: where a column is in a peer's message,
 * and what becomes of one that does not fit (apply/relation.c).
 */
#include "postgres.h"

#include "access/relation.h"
#include "access/table.h"
#include "access/xact.h"
#include "catalog/dependency.h"
#include "catalog/pg_class.h"
#include "catalog/pg_type.h"
#include "commands/seclabel.h"
#include "common/hashfn.h"
#include "libpq/pqformat.h"
#include "storage/lmgr.h"
#include "utils/builtins.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/syscache.h"

#include "compat.h"
#include "row/row.h"
#include "server/server.h"

#define PROVIDER		"repl_ml"
#define IDENTITY_DIGITS	16
#define MADE_BY_CHANGE	(UINT64CONST(1) << 63)	/* the first digit tells: 8 or more */

/* The change of the schema that is run; 0: none is.  Written by repl_ml_column_follow. */
static int64 change = 0;

static char *make_identity(void);
static void check_label(const ObjectAddress *object, const char *label);
static char *join_identities(const char *a, const char *b);

/* Makes SECURITY LABEL FOR repl_ml known; called at server start. */
void
repl_ml_column_init(void)
{
	register_label_provider(PROVIDER, check_label);
}

/* Returns a column's address, as labels have it. */
static ObjectAddress
make_address(Oid relid, AttrNumber attnum)
{
	ObjectAddress address;

	ObjectAddressSubSet(address, RelationRelationId, relid, attnum);
	return address;
}

/*
 * Returns the identities of a column, of the clock column all there have ever
 * been in the table; empty if there are none.
 */
char *
repl_ml_column_identity(Oid relid, AttrNumber attnum)
{
	ObjectAddress address = make_address(relid, attnum);
	char	   *label = GetSecurityLabel(&address, PROVIDER);

	return label == NULL ? pstrdup("") : label;
}

PG_FUNCTION_INFO_V1(repl_ml_seen_columns);

/* repl_ml.seen_columns(table): returns all identities that columns of it have ever had here. */
Datum
repl_ml_seen_columns(PG_FUNCTION_ARGS)
{
	Oid			relid = PG_GETARG_OID(0);
	AttrNumber	clock = get_attnum(relid, REPL_ML_CLOCK_COLUMN);
	char	   *seen = "";

	if (clock != InvalidAttrNumber)
		seen = repl_ml_column_identity(relid, clock);
	if (seen[0] == '\0')
		PG_RETURN_NULL();
	PG_RETURN_TEXT_P(cstring_to_text(seen));
}

/* Sets a column's label; NULL removes it. */
static void
set_label(Oid relid, AttrNumber attnum, const char *label)
{
	ObjectAddress address = make_address(relid, attnum);

	SetSecurityLabel(&address, PROVIDER, label);
}

/* Notes that the identities are, or were, those of a column of the table. */
static void
note_seen(Oid relid, const char *identities)
{
	AttrNumber	clock = repl_ml_table_clock_attnum(relid);
	char	   *seen;
	char	   *joined;

	if (clock == InvalidAttrNumber)
		return;
	seen = repl_ml_column_identity(relid, clock);
	joined = join_identities(seen, identities);
	if (strcmp(seen, joined) != 0)
		set_label(relid, clock, joined);
	/* whoever has told or heard of the columns has to look again */
	CacheInvalidateRelcacheByRelid(relid);
}

/*
 * Says whether the text is a list of identities: they have all the same
 * length, and a comma stands between two.
 */
static bool
is_identity_list(const char *identities)
{
	Size		length = strlen(identities);

	if (length % (IDENTITY_DIGITS + 1) != IDENTITY_DIGITS)
		return false;
	for (Size i = 0; i < length; i++)
	{
		if (i % (IDENTITY_DIGITS + 1) == IDENTITY_DIGITS ? identities[i] != ',' :
			strchr("0123456789abcdef", identities[i]) == NULL)
			return false;
	}
	return true;
}

/*
 * Called by core before a statement, or the script of a dump, sets a label:
 * only columns have one, and what a column is called from now on has been
 * seen.
 */
static void
check_label(const ObjectAddress *object, const char *label)
{
	if (object->classId != RelationRelationId || object->objectSubId <= 0)
		ereport(ERROR,
				(errcode(ERRCODE_WRONG_OBJECT_TYPE),
				 errmsg("only columns have labels of the provider \"%s\"", PROVIDER),
				 errhint("Leave these labels to the extension, which sets them itself.")));
	if (label == NULL)
		return;
	if (!is_identity_list(label))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("invalid identity of a column: \"%s\"", label),
				 errhint("Copy it from \"identity of column ...\" in repl_ml.shape_differences.")));
	if (object->objectSubId != repl_ml_table_clock_attnum(object->objectId))
		note_seen(object->objectId, label);
}

/*
 * Returns the identities in a list, as a List of char *; of what is none, an
 * empty one.
 */
static List *
split_identities(const char *identities)
{
	List	   *all = NIL;

	if (is_identity_list(identities))
	{
		const char *end = identities + strlen(identities);

		for (const char *at = identities; at < end; at += IDENTITY_DIGITS + 1)
			all = lappend(all, pnstrdup(at, IDENTITY_DIGITS));
	}
	return all;
}

/* Orders identities, for list_sort. */
static int
compare_identities(const ListCell *a, const ListCell *b)
{
	return strcmp(lfirst(a), lfirst(b));
}

/* Returns what is in one of the lists, sorted: both nodes come to the same. */
static char *
join_identities(const char *a, const char *b)
{
	List	   *all = list_concat(split_identities(a), split_identities(b));
	StringInfoData joined;
	const char *last = "";
	ListCell   *lc;

	list_sort(all, compare_identities);
	initStringInfo(&joined);
	foreach(lc, all)
	{
		if (strcmp(lfirst(lc), last) != 0)
			appendStringInfo(&joined, "%s%s", joined.len > 0 ? "," : "", (char *) lfirst(lc));
		last = lfirst(lc);
	}
	return joined.data;
}

/*
 * Says whether a node that has seen "seen", and has "own" now, has had one of these
 * identities and has it no more.
 */
static bool
has_had(const char *seen, const char *own, const char *identities)
{
	List	   *all = split_identities(identities);
	ListCell   *lc;
	bool		found = false;

	foreach(lc, all)
		found |= strstr(seen, lfirst(lc)) != NULL && strstr(own, lfirst(lc)) == NULL;
	list_free_deep(all);
	return found;
}

/* Says whether a change of the schema, which all nodes run, has made the column. */
static bool
is_made_by_change(const char *identities)
{
	List	   *all = split_identities(identities);
	ListCell   *lc;
	bool		found = false;

	foreach(lc, all)
		found |= *(char *) lfirst(lc) >= '8';
	list_free_deep(all);
	return found;
}

/* Says, for apply/relation.c, whether the two have an identity in common. */
bool
repl_ml_column_shares(const char *identities, const char *others)
{
	List	   *all = split_identities(identities);
	ListCell   *lc;
	bool		found = false;

	foreach(lc, all)
		found |= strstr(others, lfirst(lc)) != NULL;
	list_free_deep(all);
	return found;
}

/*
 * Says, for apply/relation.c and for copies, whether a column there and one
 * here, which have one name, are the same, given what has been seen there and
 * here.  See the head of this file.
 */
bool
repl_ml_column_is_same(const char *theirs, const char *seen_there, const char *ours,
					   const char *seen_here)
{
	/* tables of our own have none */
	if (theirs[0] == '\0' || ours[0] == '\0')
		return theirs[0] == ours[0];
	if (is_made_by_change(theirs) && is_made_by_change(ours))
		return repl_ml_column_shares(theirs, ours);
	return !has_had(seen_here, ours, theirs) && !has_had(seen_there, theirs, ours);
}

/* Says whether the name is one of those up to the NULL. */
static bool
is_one_of(const char *name, const char *const *names)
{
	while (*names != NULL)
	{
		if (strcmp(name, *names++) == 0)
			return true;
	}
	return false;
}

/*
 * Says whether every value of a column there is one of the column here, the
 * very same or refused, so that nothing becomes another value on its way.
 */
bool
repl_ml_column_takes(const ReplMlColumn *theirs, const ReplMlColumn *ours)
{
	static const char *const integers[] = {"int2", "int4", "int8", NULL};
	static const char *const strings[] = {"text", "varchar", NULL};
	static const char *const lengths[] = {"varchar", "varbit", NULL};
	bool		any_length = ours->typmod == -1;

	if (strcmp(theirs->type, ours->type) != 0)
		return (is_one_of(theirs->type, integers) && is_one_of(ours->type, integers)) ||
			(any_length && is_one_of(theirs->type, strings) && is_one_of(ours->type, strings));
	if (any_length || theirs->typmod == ours->typmod)
		return true;
	if (is_one_of(ours->type, lengths))
		return theirs->typmod != -1 && theirs->typmod <= ours->typmod;
	/* of the same scale */
	return strcmp(ours->type, "numeric") == 0 && theirs->typmod != -1 &&
		((theirs->typmod ^ ours->typmod) & 0xFFFF) == 0 && theirs->typmod <= ours->typmod;
}

/*
 * Returns what a column of a table here is; palloc'd.  Types go by their names
 * alone: extensions may be in another schema elsewhere.
 */
ReplMlColumn
repl_ml_column_describe(Oid relid, Form_pg_attribute att)
{
	ReplMlColumn column = {.name = pstrdup(NameStr(att->attname)),.type = "",
	.typmod = att->atttypmod};
	HeapTuple	tuple = SearchSysCache1(TYPEOID,
										ObjectIdGetDatum(getBaseTypeAndTypmod(att->atttypid,
																			  &column.typmod)));

	if (HeapTupleIsValid(tuple))
	{
		column.type = pstrdup(NameStr(((Form_pg_type) GETSTRUCT(tuple))->typname));
		ReleaseSysCache(tuple);
	}
	column.identity = repl_ml_column_identity(relid, att->attnum);
	return column;
}

/* Says whether the stream has values of the column. */
static bool
is_sent(Form_pg_attribute att)
{
	return !att->attisdropped && att->attgenerated == '\0';
}

/*
 * Returns the attribute numbers of the table's primary key; NULL if it has
 * none.
 */
static Bitmapset *
find_key_columns(Relation rel)
{
	Oid			index_id = RelationGetPrimaryKeyIndex_compat(rel);
	Relation	index = OidIsValid(index_id) ? RelationIdGetRelation(index_id) : NULL;
	Bitmapset  *key = NULL;

	if (index == NULL)
		return NULL;
	for (int i = 0; i < IndexRelationGetNumberOfKeyAttributes(index); i++)
		key = bms_add_member(key, index->rd_index->indkey.values[i]);
	RelationClose(index);
	return key;
}

/*
 * Appends, for the walsender and for copies, what the table's columns are to a
 * message.
 */
void
repl_ml_column_send(StringInfo message, Relation rel)
{
	TupleDesc	desc = RelationGetDescr(rel);
	Bitmapset  *key = find_key_columns(rel);
	int			count = 0;

	for (int i = 0; i < desc->natts; i++)
		count += is_sent(TupleDescAttr(desc, i));
	pq_sendint16(message, count);
	for (int i = 0; i < desc->natts; i++)
	{
		ReplMlColumn column;

		if (!is_sent(TupleDescAttr(desc, i)))
			continue;
		column = repl_ml_column_describe(RelationGetRelid(rel), TupleDescAttr(desc, i));
		pq_sendstring(message, column.name);
		pq_sendstring(message, column.identity);
		pq_sendstring(message, column.type);
		pq_sendint32(message, column.typmod);
		pq_sendbyte(message, bms_is_member(TupleDescAttr(desc, i)->attnum, key));
	}
}

/*
 * Reads what repl_ml_column_send has written: a List of ReplMlColumn *,
 * palloc'd.
 */
List *
repl_ml_column_receive(StringInfo message)
{
	int			count = pq_getmsgint(message, 2);
	List	   *columns = NIL;

	for (int i = 0; i < count; i++)
	{
		ReplMlColumn *column = palloc0(sizeof(ReplMlColumn));

		column->name = pstrdup(pq_getmsgstring(message));
		column->identity = pstrdup(pq_getmsgstring(message));
		column->type = pstrdup(pq_getmsgstring(message));
		column->typmod = (int32) pq_getmsgint(message, 4);
		column->in_key = pq_getmsgbyte(message) != 0;
		columns = lappend(columns, column);
	}
	return columns;
}

/*
 * Called by write/schema_change.c: until it is called with 0 a change of the schema with this
 * number is run, as on all nodes.
 */
void
repl_ml_column_follow(int64 number)
{
	change = number;
}

/*
 * Returns a new identity of a column that this statement has added: where all nodes run it,
 * the same on all of them.
 */
static char *
make_identity_of(Oid relid, const char *name)
{
	const ReplMlIdentity *self = repl_ml_identity();
	char	   *schema;
	char	   *text;

	if (change == 0)
		return make_identity();
	/* what is quoted depends on settings and on the major */
	schema = get_namespace_name(get_rel_namespace(relid));
	text = psprintf(INT64_FORMAT " %zu %s.%zu %s.%s", change, strlen(schema), schema,
					strlen(get_rel_name(relid)), get_rel_name(relid), name);
	return psprintf("%016llx", (unsigned long long) MADE_BY_CHANGE |
					hash_bytes_extended((const unsigned char *) text, (int) strlen(text),
										hash_bytes_extended(self->group_id.data, UUID_LEN, 0)));
}

/* Returns a new identity, which no other column of any node has. */
static char *
make_identity(void)
{
	uint64		number;

	if (!pg_strong_random(&number, sizeof(number)))
		ereport(ERROR,
				(errcode(ERRCODE_INTERNAL_ERROR),
				 errmsg("could not generate a random number")));
	return psprintf("%016llx", (unsigned long long) (number & ~MADE_BY_CHANGE));
}

/*
 * Gives an identity to each column that has none, and another one to those
 * "rewritten" (attribute numbers); in the transaction that altered the table.
 * Returns the names of those that had none, palloc'd.
 */
List *
repl_ml_column_identify(Oid relid, List *rewritten)
{
	Relation	rel;
	char	   *added = "";
	List	   *names = NIL;

	CommandCounterIncrement();
	rel = try_relation_open(relid, AccessShareLock);
	if (rel == NULL)
		return NIL;
	for (int i = 0; i < RelationGetNumberOfAttributes(rel); i++)
	{
		Form_pg_attribute att = TupleDescAttr(RelationGetDescr(rel), i);
		char	   *identity;
		bool		is_new = repl_ml_column_identity(relid, att->attnum)[0] == '\0';

		/* the clock column's label is the list of what has been seen */
		if (att->attisdropped || att->attnum == repl_ml_table_clock_attnum(relid) ||
			(!list_member_int(rewritten, att->attnum) && !is_new))
			continue;
		if (is_new)
			names = lappend(names, pstrdup(NameStr(att->attname)));
		identity = make_identity_of(relid, NameStr(att->attname));
		set_label(relid, att->attnum, identity);
		added = join_identities(added, identity);
	}
	if (added[0] != '\0')
		note_seen(relid, added);
	relation_close(rel, NoLock);
	CommandCounterIncrement();
	return names;
}

/*
 * repl_ml.identify_columns(relation): gives identities to the columns of a
 * table that is being enrolled.
 */
PG_FUNCTION_INFO_V1(repl_ml_identify_columns);
Datum
repl_ml_identify_columns(PG_FUNCTION_ARGS)
{
	LockRelationOid(PG_GETARG_OID(0), ShareUpdateExclusiveLock);
	(void) repl_ml_column_identify(PG_GETARG_OID(0), NIL);
	PG_RETURN_VOID();
}

/*
 * repl_ml.forget_columns(relation): takes the identities back, where the table
 * is no longer replicated.
 */
PG_FUNCTION_INFO_V1(repl_ml_forget_columns);
Datum
repl_ml_forget_columns(PG_FUNCTION_ARGS)
{
	Relation	rel = table_open(PG_GETARG_OID(0), ShareUpdateExclusiveLock);

	for (int i = 0; i < RelationGetNumberOfAttributes(rel); i++)
		set_label(RelationGetRelid(rel), i + 1, NULL);
	table_close(rel, NoLock);
	PG_RETURN_VOID();
}

/*
 * repl_ml.agree_on_column(relation, column, ours, theirs): gives the column
 * the identities of another node's, too, if it still has just "ours"; or a new one,
 * if it was joined with what it is not.  Returns false if the table is busy, so that
 * the caller tries it later.
 */
PG_FUNCTION_INFO_V1(repl_ml_agree_on_column);
Datum
repl_ml_agree_on_column(PG_FUNCTION_ARGS)
{
	Oid			relid = PG_GETARG_OID(0);
	char	   *ours = text_to_cstring(PG_GETARG_TEXT_PP(2));
	char	   *theirs = text_to_cstring(PG_GETARG_TEXT_PP(3));
	AttrNumber	attnum;

	if (!ConditionalLockRelationOid(relid, ShareUpdateExclusiveLock))
		PG_RETURN_BOOL(false);
	attnum = get_attnum(relid, NameStr(*PG_GETARG_NAME(1)));
	if (attnum > 0 && strcmp(repl_ml_column_identity(relid, attnum), ours) == 0)
	{
		char	   *seen = repl_ml_column_identity(relid, repl_ml_table_clock_attnum(relid));
		char	   *agreed = has_had(seen, ours, theirs) ? make_identity() :
			join_identities(ours, theirs);

		set_label(relid, attnum, agreed);
		note_seen(relid, join_identities(agreed, theirs));
		CommandCounterIncrement();
	}
	PG_RETURN_BOOL(true);
}

/*
 * repl_ml.send_columns(relation): returns what a message of the stream says of
 * the columns, for a peer that copies the table.
 */
PG_FUNCTION_INFO_V1(repl_ml_send_columns);
Datum
repl_ml_send_columns(PG_FUNCTION_ARGS)
{
	Relation	rel = table_open(PG_GETARG_OID(0), AccessShareLock);
	StringInfoData message;

	pq_begintypsend(&message);
	repl_ml_column_send(&message, rel);
	table_close(rel, NoLock);
	PG_RETURN_BYTEA_P(pq_endtypsend(&message));
}
