/*
 * group.h
 *		Membership: who we are, who the peers are, which worker serves whom.
 */
#ifndef REPL_ML_GROUP_H
#define REPL_ML_GROUP_H

#include "repl_ml.h"
#include "group/shmem.h"
#include "nodes/pg_list.h"
#include "replication/walreceiver.h"
#include "utils/uuid.h"

/* This database in its group; see identity.c. */
typedef struct ReplMlIdentity
{
	bool		member;			/* false: nothing else is set */
	bool		fenced;			/* a copy of the node that joined */
	bool		moved;			/* ... perhaps: nothing but the device differs */
	bool		joining;		/* not ready for users' writes yet */
	bool		dropped;		/* the others have removed us */
	uint16		node_id;
	int			incarnation;	/* see repl_ml.claim_identity() */
	NameData	node_name;
	NameData	group_name;
	pg_uuid_t	group_id;
} ReplMlIdentity;

/* A peer as the catalog knows it; see repl_ml_peer_load. */
typedef struct ReplMlPeer
{
	uint16		node_id;
	char	   *node_name;
	char	   *dsn;
	char	   *state;			/* joining, ready, dropped */
	int			incarnation;	/* of which this node knows */
} ReplMlPeer;

/* in identity.c */
extern const ReplMlIdentity *repl_ml_identity(void);
extern const ReplMlIdentity *repl_ml_identity_require(void);

/* in launcher.c */
extern void repl_ml_launcher_register(void);
extern PGDLLEXPORT void repl_ml_launcher_main(Datum arg);
extern bool repl_ml_worker_start(Oid database, int peer);

/* in supervisor.c */
extern PGDLLEXPORT void repl_ml_supervisor_main(Datum arg);

/* in join.c */
extern PGDLLEXPORT void repl_ml_join_main(Datum arg);

/* in admission.c */
extern void repl_ml_admission_check(WalReceiverConn *donor, bool copy_data);

/* in peer.c */
extern char *repl_ml_origin_name(Oid database, int peer);
extern bool repl_ml_origin_parse(const char *name, Oid *database, int *peer);
extern RepOriginId repl_ml_origin_create(const char *name);
extern bool repl_ml_origin_is_ours(RepOriginId id);
extern ReplMlPeer *repl_ml_peer_load(int node_id);

/* in schema.c */
extern bool repl_ml_schema_is_empty(void);
extern void repl_ml_schema_copy_all(const char *dsn);
extern void repl_ml_schema_copy(const char *dsn, List *schemas, List *tables);

#endif							/* REPL_ML_GROUP_H */
