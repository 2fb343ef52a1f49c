/*
 * group.h
 *		The processes of a member and its membership: launcher, supervisor, apply
 *		workers, joining.  The last room but one: whatever these processes do to
 *		rows, streams and commits is in the rooms before it.
 */
#ifndef REPL_ML_GROUP_H
#define REPL_ML_GROUP_H

#include "repl_ml.h"
#include "apply/apply.h"
#include "replication/walreceiver.h"
#include "server/server.h"

/* in launcher.c */
extern void repl_ml_launcher_register(void);
extern PGDLLEXPORT void repl_ml_launcher_main(Datum arg);
extern bool repl_ml_worker_start(Oid database, int peer);
extern bool repl_ml_process_start(const char *function, const char *type, const char *name);

/* in supervisor.c */
extern PGDLLEXPORT void repl_ml_supervisor_main(Datum arg);

/* in heartbeat.c */
extern void repl_ml_heartbeat_write(uint16 self, bool tells);

/* in tenure.c */
extern void repl_ml_tenure_tend(void);
extern bool repl_ml_tenure_end(void);
extern PGDLLEXPORT void repl_ml_tenure_main(Datum arg);

/* in verifier.c */
extern void repl_ml_verifier_init(void);
extern void repl_ml_verifier_tend(void);
extern bool repl_ml_verifier_end(void);
extern PGDLLEXPORT void repl_ml_verifier_main(Datum arg);

/* in beside.c */
extern void repl_ml_beside_tend(void);
extern bool repl_ml_beside_end(void);
extern bool repl_ml_beside_is_at(int node);
extern PGDLLEXPORT void repl_ml_beside_main(Datum arg);

/* in worker.c */
extern void repl_ml_worker_prepare(ReplMlApply *apply);
extern PGDLLEXPORT void repl_ml_apply_main(Datum arg);

/* in request.c */
extern void repl_ml_request_answer(const ReplMlJoinRequest *asked, ReplMlJoinState state,
								   const ErrorData *error);

/* in join.c */
extern PGDLLEXPORT void repl_ml_join_main(Datum arg);
extern void repl_ml_come_back(void);

/* in admission.c */
extern void repl_ml_admission_check(WalReceiverConn *donor, bool copy_data, bool is_told);

/* in shape.c */
extern void repl_ml_shape_tell(bool called);

/* in health.c */
extern void repl_ml_health_tell(bool due);

#endif							/* REPL_ML_GROUP_H */
