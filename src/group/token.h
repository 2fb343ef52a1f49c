/*
 * token.h
 *		Transactions that clients have a token of, and what the WAL says of a
 *		transaction's level.
 */
#ifndef REPL_ML_TOKEN_H
#define REPL_ML_TOKEN_H

#include "repl_ml.h"
#include "access/transam.h"
#include "group/quorum.h"
#include "utils/uuid.h"

/* A message in the WAL that tells a transaction's level. */
typedef struct ReplMlRecord
{
	ReplMlLevel level;
	bool		of_prepared;	/* before a COMMIT PREPARED, not in the
								 * transaction */
	FullTransactionId xid;
	char		group_id[UUID_LEN * 2 + 5]; /* as text */
} ReplMlRecord;

/* in token.c */
extern bool repl_ml_token_is_out(void);
extern void repl_ml_token_forget(void);
extern char *repl_ml_record_of_transaction(ReplMlLevel level);
extern char *repl_ml_record_of_prepared(ReplMlLevel level, TransactionId xid);
extern bool repl_ml_record_parse(const char *text, ReplMlRecord *record);

#endif							/* REPL_ML_TOKEN_H */
