/*
 * compat.h
 *		What differs between the PostgreSQL majors repl_ml builds on.
 *
 * The only file that tests PG_VERSION_NUM.  Each wrapper has the newest
 * signature and ends in _compat; its comment names the major that changed it.
 */
#ifndef REPL_ML_COMPAT_H
#define REPL_ML_COMPAT_H

#include "postgres.h"

#if PG_VERSION_NUM < 150000
#error "repl_ml needs PostgreSQL 15 or later"
#endif

#include "access/genam.h"
#include "access/xlog.h"
#include "catalog/pg_namespace.h"
#include "executor/executor.h"
#include "miscadmin.h"
#include "nodes/makefuncs.h"
#include "replication/logicalproto.h"
#include "replication/message.h"
#include "replication/origin.h"
#include "replication/reorderbuffer.h"
#include "replication/syncrep.h"
#include "replication/walreceiver.h"
#include "replication/walsender.h"
#include "replication/walsender_private.h"
#include "storage/bufmgr.h"
#include "storage/condition_variable.h"
#include "storage/latch.h"
#include "storage/lock.h"
#include "storage/proc.h"
#include "utils/acl.h"
#include "utils/memutils.h"
#include "utils/regproc.h"
#include "utils/rel.h"
#include "utils/relcache.h"
#include "utils/wait_event.h"
#if PG_VERSION_NUM >= 180000
#include "access/htup_details.h"
#include "catalog/pg_constraint.h"
#include "rewrite/rewriteHandler.h"
#endif
#if PG_VERSION_NUM >= 170000
#include "utils/resowner.h"
#endif
#if PG_VERSION_NUM >= 160000
#include "parser/parse_relation.h"
#include "utils/guc_hooks.h"
#include "varatt.h"
#endif

/* _PG_init and the plugin entry point have prototypes in core from 16 on */
extern PGDLLEXPORT void _PG_init(void);

/* TestForOldSnapshot: 17 did away with old_snapshot_threshold */
static inline void
test_for_old_snapshot_compat(Snapshot snapshot, Relation rel, Page page)
{
#if PG_VERSION_NUM < 170000
	TestForOldSnapshot(snapshot, rel, page);
#endif
}

/* walrcv_connect: 16 added must_use_password, 17 added replication */
static inline WalReceiverConn *
walrcv_connect_compat(const char *conninfo, const char *appname, char **err)
{
#if PG_VERSION_NUM >= 170000
	return walrcv_connect(conninfo, true, true, false, appname, err);
#elif PG_VERSION_NUM >= 160000
	return walrcv_connect(conninfo, true, false, appname, err);
#else
	return walrcv_connect(conninfo, true, appname, err);
#endif
}

/* replorigin_session_setup: 16 added acquired_by */
static inline void
replorigin_session_setup_compat(RepOriginId node)
{
#if PG_VERSION_NUM >= 160000
	replorigin_session_setup(node, 0);
#else
	replorigin_session_setup(node);
#endif
}

/* EvalPlanQualInit: 16 added resultRelations */
static inline void
EvalPlanQualInit_compat(EPQState *epqstate, EState *estate)
{
#if PG_VERSION_NUM >= 160000
	EvalPlanQualInit(epqstate, estate, NULL, NIL, -1, NIL);
#else
	EvalPlanQualInit(epqstate, estate, NULL, NIL, -1);
#endif
}

/* ExecInitRangeTable: 16 added permission infos, 18 added unpruned relids */
static inline void
ExecInitRangeTable_compat(EState *estate, RangeTblEntry *rte)
{
#if PG_VERSION_NUM >= 160000
	List	   *perminfos = NIL;

	addRTEPermissionInfo(&perminfos, rte);
#if PG_VERSION_NUM >= 180000
	ExecInitRangeTable(estate, list_make1(rte), perminfos, bms_make_singleton(1));
#else
	ExecInitRangeTable(estate, list_make1(rte), perminfos);
#endif
#else
	ExecInitRangeTable(estate, list_make1(rte));
#endif
}

/* the states of a table's CHECK constraints: 18 renamed ri_ConstraintExprs */
static inline ExprState ***
check_states_compat(ResultRelInfo *result)
{
#if PG_VERSION_NUM >= 180000
	return &result->ri_CheckConstraintExprs;
#else
	return &result->ri_ConstraintExprs;
#endif
}

/* a CHECK constraint's expression: 18 added virtual generated columns */
static inline Expr *
check_expression_compat(Relation rel, const char *text)
{
#if PG_VERSION_NUM >= 180000
	return (Expr *) expand_generated_columns_in_expr(stringToNode(text), rel, 1);
#else
	return stringToNode(text);
#endif
}

/* the column of a NOT NULL constraint, which 18 made one; InvalidAttrNumber for other kinds */
static inline AttrNumber
not_null_column_compat(HeapTuple constraint)
{
#if PG_VERSION_NUM >= 180000
	if (((Form_pg_constraint) GETSTRUCT(constraint))->contype == CONSTRAINT_NOTNULL)
		return extractNotNullColumn(constraint);
#endif
	return InvalidAttrNumber;
}

/* stringToQualifiedNameList: 16 added escontext */
static inline List *
stringToQualifiedNameList_compat(const char *string)
{
#if PG_VERSION_NUM >= 160000
	return stringToQualifiedNameList(string, NULL);
#else
	return stringToQualifiedNameList(string);
#endif
}

/* ExecCheckIndexConstraints: 18 added tupleid */
static inline bool
ExecCheckIndexConstraints_compat(ResultRelInfo *result, TupleTableSlot *slot, EState *estate,
								 ItemPointer conflict, List *arbiters)
{
#if PG_VERSION_NUM >= 180000
	ItemPointerData none;

	ItemPointerSetInvalid(&none);
	return ExecCheckIndexConstraints(result, slot, estate, conflict, &none, arbiters);
#else
	return ExecCheckIndexConstraints(result, slot, estate, conflict, arbiters);
#endif
}

/* RelationGetPrimaryKeyIndex: 18 added deferrable_ok */
static inline Oid
RelationGetPrimaryKeyIndex_compat(Relation rel)
{
#if PG_VERSION_NUM >= 180000
	return RelationGetPrimaryKeyIndex(rel, false);
#else
	return RelationGetPrimaryKeyIndex(rel);
#endif
}

/* test of the right to use a schema: 16 replaced pg_namespace_aclcheck */
static inline bool
schema_may_use_compat(Oid schema, Oid roleid)
{
#if PG_VERSION_NUM >= 160000
	return object_aclcheck(NamespaceRelationId, schema, roleid, ACL_USAGE) == ACLCHECK_OK;
#else
	return pg_namespace_aclcheck(schema, roleid, ACL_USAGE) == ACLCHECK_OK;
#endif
}

/* relation's owner privilege test: 16 replaced pg_class_ownercheck */
static inline bool
table_ownercheck_compat(Oid relid, Oid roleid)
{
#if PG_VERSION_NUM >= 160000
	return object_ownercheck(RelationRelationId, relid, roleid);
#else
	return pg_class_ownercheck(relid, roleid);
#endif
}

/* LockHeldByMe: 17 added orstronger */
static inline bool
LockHeldByMe_compat(const LOCKTAG *tag, LOCKMODE mode)
{
#if PG_VERSION_NUM >= 170000
	return LockHeldByMe(tag, mode, false);
#else
	return LockHeldByMe(tag, mode);
#endif
}

/* this backend's number in 0 .. MaxBackends - 1: 17 replaced pgprocno */
static inline int
my_proc_number_compat(void)
{
#if PG_VERSION_NUM >= 170000
	return GetNumberFromPGProc(MyProc);
#else
	return MyProc->pgprocno;
#endif
}

/* any backend's number: 17 replaced pgprocno */
static inline int
proc_number_compat(PGPROC *proc)
{
#if PG_VERSION_NUM >= 170000
	return GetNumberFromPGProc(proc);
#else
	return proc->pgprocno;
#endif
}

/* a decoded change's new version: 17 did away with the buffer around it */
static inline HeapTuple
change_tuple_compat(ReorderBufferChange *change)
{
#if PG_VERSION_NUM >= 170000
	return change->data.tp.newtuple;
#else
	return change->data.tp.newtuple == NULL ? NULL : &change->data.tp.newtuple->tuple;
#endif
}

/* logicalrep_read_stream_abort: 16 put what it reads into a struct, and may read more */
static inline void
read_stream_abort_compat(StringInfo message, TransactionId *xid, TransactionId *subxid)
{
#if PG_VERSION_NUM >= 160000
	LogicalRepStreamAbortData abort;

	logicalrep_read_stream_abort(message, &abort, false);
	*xid = abort.xid;
	*subxid = abort.subxid;
#else
	logicalrep_read_stream_abort(message, xid, subxid);
#endif
}

/* LogLogicalMessage: 17 added flush */
static inline XLogRecPtr
LogLogicalMessage_compat(const char *prefix, const char *message, size_t size, bool transactional)
{
#if PG_VERSION_NUM >= 170000
	return LogLogicalMessage(prefix, message, size, transactional, false);
#else
	return LogLogicalMessage(prefix, message, size, transactional);
#endif
}

/*
 * core's queue of commits that wait for standbys, the next one after "proc" or
 * the first: 16 made it a dlist
 */
static inline PGPROC *
sync_rep_next_compat(int mode, PGPROC *proc)
{
#if PG_VERSION_NUM >= 160000
	dlist_head *queue = &WalSndCtl->SyncRepQueue[mode];

	if (proc == NULL)
		return dlist_is_empty(queue) ? NULL : dlist_head_element(PGPROC, syncRepLinks, queue);
	return dlist_has_next(queue, &proc->syncRepLinks) ?
		dlist_container(PGPROC, syncRepLinks, dlist_next_node(queue, &proc->syncRepLinks)) : NULL;
#else
	SHM_QUEUE  *queue = &WalSndCtl->SyncRepQueue[mode];

	return (PGPROC *) SHMQueueNext(queue, proc == NULL ? queue : &proc->syncRepLinks,
								   offsetof(PGPROC, syncRepLinks));
#endif
}

/* wakes all walsenders: 16 tells physical and logical ones apart */
static inline void
wake_walsenders_compat(void)
{
#if PG_VERSION_NUM >= 160000
	WalSndWakeup(true, true);
#else
	WalSndWakeup();
#endif
}

/*
 * To be called by a logical walsender between core's look at how much WAL is
 * flushed and its sleep.  16 replaced the walsenders' latches, which remember,
 * by a condition variable, which wakes only those that are in its list, and
 * core enters the list after its look: what is flushed in between would wait
 * for whatever comes next.  So be in the list, and let core look once more.
 */
static inline void
walsender_enlist_compat(void)
{
#if PG_VERSION_NUM >= 160000
	static XLogRecPtr seen = InvalidXLogRecPtr;
	XLogRecPtr	flushed;

	ConditionVariablePrepareToSleep(&WalSndCtl->wal_replay_cv);
	flushed = GetFlushRecPtr(NULL);
	if (flushed > MyWalSnd->sentPtr && flushed != seen)
		SetLatch(MyLatch);
	seen = flushed;
#endif
}

/* takes a process out of that queue */
static inline void
sync_rep_unlink_compat(PGPROC *proc)
{
#if PG_VERSION_NUM >= 160000
	dlist_delete_thoroughly(&proc->syncRepLinks);
#else
	SHMQueueDelete(&proc->syncRepLinks);
#endif
}

/*
 * CreateWaitEventSet: 17 replaced the memory context by a resource owner.  One
 * that is not kept is freed before the end of the transaction; 17 does so even
 * after an error.
 */
static inline WaitEventSet *
CreateWaitEventSet_compat(bool kept, int nevents)
{
#if PG_VERSION_NUM >= 170000
	return CreateWaitEventSet(kept ? NULL : CurrentResourceOwner, nevents);
#else
	return CreateWaitEventSet(kept ? TopMemoryContext : CurrentMemoryContext, nevents);
#endif
}

/* named wait events: 17 added WaitEventExtensionNew */
static inline uint32
wait_event_compat(const char *name)
{
#if PG_VERSION_NUM >= 170000
	return WaitEventExtensionNew(name);
#else
	return PG_WAIT_EXTENSION;
#endif
}

/* Since 18 a scan of an index may be told where to count for EXPLAIN. */
#if PG_VERSION_NUM >= 180000
#define index_beginscan_compat(heap, index, snapshot, nkeys) \
	index_beginscan(heap, index, snapshot, NULL, nkeys, 0)
#else
#define index_beginscan_compat(heap, index, snapshot, nkeys) \
	index_beginscan(heap, index, snapshot, nkeys, 0)
#endif

#endif							/* REPL_ML_COMPAT_H */
