/*
 * session.c
 *		What kind of session this is: three switches, and the settings of our own
 *		sessions, whatever the server, a database, a role or a connection string
 *		gives to clients.
 *
 * One list, for every process that works for the group: the launcher, the
 * supervisors, the join and apply workers, which settle themselves, and the
 * backends that serve other nodes (walsenders, copies, pg_dump, questions).
 * Those are settled as soon as they are authenticated, before the first
 * statement, known by their application name: a client that borrows the name
 * gets nothing but defaults.  Settings that decide what values look like are
 * also fixed for moments within clients' sessions.
 *
 * Not in the list: where things are stored (default_tablespace and the like) and
 * how much memory is used, which stay the operator's choice.  All of it belongs
 * to one process; no locks.
 */
#include "postgres.h"

/* what differs with these is not used, and spares the headers of Kerberos and OpenSSL */
#undef ENABLE_GSS
#undef USE_OPENSSL
#undef USE_SSL
#include "libpq/auth.h"
#include "libpq/libpq-be.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "utils/guc.h"

#include "server/server.h"
#include "wire/wire.h"

/* Does this process apply what came from elsewhere, which is not stamped? */
bool		repl_ml_applying = false;

/* How deep in triggers it applies: in conflict_policy's it resolves rows again. */
int			repl_ml_applying_depth = 0;

/* Is this one of our own workers, which write before the node is ready for users? */
bool		repl_ml_internal_write = false;

typedef struct FixedSetting
{
	const char *name;
	const char *value;
	bool		shapes_values;	/* input and output functions obey it */
} FixedSetting;

/* In a session of its own each has this value; not all majors know all of them. */
static const FixedSetting settings[] = {
	{"array_nulls", "on", true},
	{"bytea_output", "hex", true},
	{"datestyle", "ISO, MDY", true},
	{"default_transaction_deferrable", "off", false},
	{"default_transaction_isolation", "read committed", false},
	{"default_transaction_read_only", "off", false},
	{"exit_on_error", "off", false},
	{"extra_float_digits", "3", true},
	{"idle_in_transaction_session_timeout", "0", false},
	{"idle_session_timeout", "0", false},
	{"intervalstyle", "postgres", true},
	{"jit", "off", false},
	{"lc_monetary", "C", true},
	{"lock_timeout", "0", false},
	{"max_parallel_workers_per_gather", "0", false},
	{"plan_cache_mode", "auto", false},
	{"quote_all_identifiers", "off", true},
	{"repl_ml.read_consistency", "local", false},
	{"repl_ml.write_consistency", "one", false},
	{"restrict_nonsystem_relation_kind", "", false},
	{"role", "none", false},
	{"row_security", "off", false},
	{"search_path", "pg_catalog, pg_temp", true},
	{"session_replication_role", "origin", false},
	{"standard_conforming_strings", "on", true},
	{"statement_timeout", "0", false},
	{"synchronous_commit", "local", false},
	{"temp_file_limit", "-1", false},
	{"timezone", "GMT", true},
	{"transaction_timeout", "0", false},
	{"transform_null_equals", "off", false},
	{"xmlbinary", "base64", true},
	{"xmloption", "content", true},
};

static ClientAuthentication_hook_type previous_hook = NULL;

static void after_authentication(Port *port, int status);
static void impose_settings(void);
static bool has_value(const FixedSetting *setting);

/*
 * Called by _PG_init at server start: sessions of other nodes are settled from
 * now on.
 */
void
repl_ml_session_init(void)
{
	previous_hook = ClientAuthentication_hook;
	ClientAuthentication_hook = after_authentication;
}

/*
 * Called by a process of ours as soon as it has its database: nothing set for
 * clients counts in it.
 */
void
repl_ml_session_settle(void)
{
	impose_settings();
	/* what peers send is in it; receive functions and COPY convert from it */
	SetConfigOption("client_encoding", GetDatabaseEncodingName(), PGC_SUSET, PGC_S_OVERRIDE);
}

/*
 * A backend's hook: settles the session if it is another node's.  Settings of
 * the database, the role and the connection come after this and are weaker.
 */
static void
after_authentication(Port *port, int status)
{
	if (previous_hook)
		previous_hook(port, status);
	if (status == STATUS_OK && port->application_name != NULL &&
		strncmp(port->application_name, REPL_ML_APPLICATION, strlen(REPL_ML_APPLICATION)) == 0)
		impose_settings();
}

/*
 * Gives each setting of the list its value, above all that was or will be set.
 */
static void
impose_settings(void)
{
	for (int i = 0; i < lengthof(settings); i++)
	{
		if (GetConfigOption(settings[i].name, true, false) != NULL)
			SetConfigOption(settings[i].name, settings[i].value, PGC_SUSET, PGC_S_OVERRIDE);
	}
}

/*
 * Called in a client's session by whoever writes or reads values that all
 * nodes must read alike: fixes the settings that change their form, until
 * repl_ml_session_restore gets what this returns, or an abort.
 */
int
repl_ml_session_fix_values(void)
{
	int			level = 0;

	for (int i = 0; i < lengthof(settings); i++)
	{
		if (!settings[i].shapes_values || has_value(&settings[i]))
			continue;
		if (level == 0)
			level = NewGUCNestLevel();
		(void) set_config_option(settings[i].name, settings[i].value, PGC_USERSET,
								 PGC_S_SESSION, GUC_ACTION_SAVE, true, 0, false);
	}
	return level;
}

/*
 * Says whether the setting has this value anyway.  To look costs less than to
 * set it and back, for each row.
 */
static bool
has_value(const FixedSetting *setting)
{
	return strcmp(GetConfigOption(setting->name, false, false), setting->value) == 0;
}

/* Gives the session its own settings back. */
void
repl_ml_session_restore(int level)
{
	if (level != 0)
		AtEOXact_GUC(true, level);
}
