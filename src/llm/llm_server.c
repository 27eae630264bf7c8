/*
 * llm_server.c
 *	  Settings, and foreign servers of wrapper swarm_llm: their options, and
 *	  reading them.
 *
 * What everybody may see is in the server's options; the key is in user
 * mappings only, and leaves them only into a SwarmLlmServer at the moment of
 * use.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/reloptions.h"
#include "catalog/pg_foreign_data_wrapper.h"
#include "catalog/pg_foreign_server.h"
#include "catalog/pg_type.h"
#include "catalog/pg_user_mapping.h"
#include "commands/defrem.h"
#include "foreign/foreign.h"
#include "miscadmin.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/syscache.h"
#include "utils/varlena.h"

#include "base/compat.h"
#include "base/export.h"
#include "base/spi.h"
#include "job/job.h"
#include "llm/llm_int.h"

#define DEFAULT_PARALLEL	8
#define MAX_PARALLEL		256
#define DEFAULT_STALL_MS	60000
#define DEFAULT_VERSION		"2023-06-01"

typedef struct KnownOption
{
	const char *name;
	Oid			catalog;
	void		(*check) (const char *name, const char *value);
} KnownOption;

typedef struct Secret
{
	SwarmLlmServer *server;
	MemoryContextCallback callback;
} Secret;

char	   *swarm_llm_allowed_endpoints = NULL;
int			swarm_llm_max_answer_kb = 16 * 1024;
static char *default_server = NULL;

static void check_endpoint(const char *name, const char *value);
static void check_dialect(const char *name, const char *value);
static void check_path(const char *name, const char *value);
static void check_duration(const char *name, const char *value);
static void check_parallel(const char *name, const char *value);
static void check_file(const char *name, const char *value);
static void check_version(const char *name, const char *value);
static void check_key(const char *name, const char *value);
static void require_trust(const char *endpoint, const char *ca_file);
static SwarmLlmServer *read_server(const char *name);
static void read_mapping(Oid serverid, SwarmLlmServer *server);
static void wipe(void *arg);
static char *option(List *options, const char *name);

static const KnownOption known_options[] = {
	{"endpoint", ForeignServerRelationId, check_endpoint},
	{"dialect", ForeignServerRelationId, check_dialect},
	{"path", ForeignServerRelationId, check_path},
	{"timeout", ForeignServerRelationId, check_duration},
	{"stall_timeout", ForeignServerRelationId, check_duration},
	{"max_parallel", ForeignServerRelationId, check_parallel},
	{"ca_file", ForeignServerRelationId, check_file},
	{"version", ForeignServerRelationId, check_version},
	{"api_key", UserMappingRelationId, check_key}
};

/* check_endpoints: check hook of pg_swarm.llm_allowed_endpoints. */
static bool
check_endpoints(char **value, void **extra, GucSource source)
{
	char	   *copy = pstrdup(*value ? *value : "");
	List	   *list;
	bool		ok = SplitGUCList(copy, ',', &list);

	list_free(list);
	pfree(copy);
	return ok;
}

/* old_history: conversations go with the history of jobs. */
static void
old_history(TimestampTz before)
{
	SwarmSpi	spi;
	Oid			types[] = {TIMESTAMPTZOID};
	Datum		values[] = {TimestampTzGetDatum(before)};

	swarm_spi_begin(&spi);
	swarm_spi_execute("SELECT swarm._llm_prune($1)", 1, types, values, NULL);
	swarm_spi_end(&spi);
}

void
swarm_llm_init(void)
{
	swarm_job_history_register(old_history);
	DefineCustomStringVariable("pg_swarm.llm_allowed_endpoints",
							   "Endpoints that roles without superuser rights may create servers for, separated by commas.", NULL,
							   &swarm_llm_allowed_endpoints, "",
							   PGC_SUSET, GUC_LIST_INPUT, check_endpoints, NULL, NULL);
	DefineCustomStringVariable("pg_swarm.llm_server",
							   "Server of the models that name none.", NULL,
							   &default_server, "",
							   PGC_USERSET, 0, NULL, NULL, NULL);
	DefineCustomIntVariable("pg_swarm.llm_max_answer",
							"Largest answer of a model that is accepted.", NULL,
							&swarm_llm_max_answer_kb, 16 * 1024, 64, 1024 * 1024,
							PGC_SUSET, GUC_UNIT_KB, NULL, NULL, NULL);
}

/* ------------------------------------------------------------------------
 * Validator
 * ------------------------------------------------------------------------ */

/*
 * swarm._llm_validator(text[], oid): options of wrapper swarm_llm.
 */
SWARM_FUNCTION(swarm_llm_validator);
Datum
swarm_llm_validator(PG_FUNCTION_ARGS)
{
	List	   *options = untransformRelOptions(PG_GETARG_DATUM(0));
	Oid			catalog = PG_GETARG_OID(1);
	ListCell   *lc;

	foreach(lc, options)
	{
		DefElem    *def = lfirst(lc);
		const KnownOption *known = NULL;

		for (int i = 0; i < lengthof(known_options); i++)
		{
			if (strcmp(known_options[i].name, def->defname) == 0)
				known = &known_options[i];
		}
		if (known == NULL || known->catalog != catalog)
			ereport(ERROR,
					(errcode(ERRCODE_FDW_INVALID_OPTION_NAME),
					 errmsg("invalid option \"%s\"", def->defname),
					 known != NULL && known->catalog == UserMappingRelationId ?
					 errhint("Everybody can read the options of a server. Keys belong to CREATE USER MAPPING.") :
					 known != NULL ? errhint("It is an option of the server.") :
					 errhint("Options of a server are endpoint, dialect, path, timeout, stall_timeout, max_parallel, ca_file and version; of a user mapping api_key.")));
		known->check(def->defname, defGetString(def));
	}
	if (catalog == ForeignServerRelationId)
	{
		if (option(options, "endpoint") == NULL)
			ereport(ERROR,
					(errcode(ERRCODE_FDW_OPTION_NAME_NOT_FOUND),
					 errmsg("a server of wrapper \"swarm_llm\" needs the option \"endpoint\""),
					 errhint("For example: endpoint 'https://api.anthropic.com'.")));
		require_trust(option(options, "endpoint"), option(options, "ca_file"));
	}
	PG_RETURN_VOID();
}

/*
 * require_trust: who creates a server decides where conversations go, and
 * which file the server process reads.
 */
static void
require_trust(const char *endpoint, const char *ca_file)
{
	char	   *listed = pstrdup(swarm_llm_allowed_endpoints ? swarm_llm_allowed_endpoints : "");
	List	   *list;
	ListCell   *lc;

	if (superuser())
		return;
	if (ca_file != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("only superusers may set the option \"ca_file\"")));
	if (SplitGUCList(listed, ',', &list))
	{
		foreach(lc, list)
		{
			if (strcmp(lfirst(lc), endpoint) == 0)
				return;
		}
	}
	ereport(ERROR,
			(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
			 errmsg("endpoint \"%s\" is not allowed", endpoint),
			 errhint("A superuser can create the server, or add the endpoint to pg_swarm.llm_allowed_endpoints.")));
}

static void
invalid(const char *name, const char *value, const char *hint)
{
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("invalid value for option \"%s\": \"%s\"", name, value),
			 errhint("%s", hint)));
}

static void
check_endpoint(const char *name, const char *value)
{
	bool		https;
	char	   *host;

	if (!swarm_net_split_endpoint(value, &https, &host))
		invalid(name, value, "It has the form http://host:port or https://host:port, without path, query or user.");
}

static void
check_dialect(const char *name, const char *value)
{
	if (strcmp(value, "anthropic") != 0 && strcmp(value, "openai") != 0)
		invalid(name, value, "It is anthropic or openai.");
}

static void
check_path(const char *name, const char *value)
{
	size_t		length = strlen(value);

	if (length > 128 || (length > 0 && (value[0] != '/' || value[length - 1] == '/')) ||
		strspn(value, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._~/") != length ||
		strstr(value, "..") != NULL)
		invalid(name, value, "It is what stands before /messages or /chat/completions, for example /v1.");
}

static void
check_duration(const char *name, const char *value)
{
	int			ms;

	if (!parse_int(value, &ms, GUC_UNIT_MS, NULL) || ms < 1)
		invalid(name, value, "It is a duration such as 90s or 10min.");
}

static void
check_parallel(const char *name, const char *value)
{
	int			n;

	if (!parse_int(value, &n, 0, NULL) || n < 1 || n > MAX_PARALLEL)
		invalid(name, value, "It is a number from 1 to 256.");
}

static void
check_file(const char *name, const char *value)
{
	if (!is_absolute_path(value))
		invalid(name, value, "It is the absolute path of a file with certificates on the server.");
}

static void
check_version(const char *name, const char *value)
{
	if (*value == '\0' || strlen(value) > 32 ||
		strspn(value, "abcdefghijklmnopqrstuvwxyz0123456789-.") != strlen(value))
		invalid(name, value, "For example: " DEFAULT_VERSION ".");
}

/* check_key: its value is in no message. */
static void
check_key(const char *name, const char *value)
{
	for (const char *p = value; *p; p++)
	{
		if (*p <= ' ' || *p > '~')
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("option \"%s\" must have printable ASCII characters without blanks only", name)));
	}
	if (*value == '\0' || strlen(value) > 4096)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("option \"%s\" must have 1 to 4096 characters", name)));
}

/* ------------------------------------------------------------------------
 * Reading a server
 * ------------------------------------------------------------------------ */

static char *
option(List *options, const char *name)
{
	ListCell   *lc;

	foreach(lc, options)
	{
		DefElem    *def = lfirst(lc);

		if (strcmp(def->defname, name) == 0)
			return defGetString(def);
	}
	return NULL;
}

/* find_server: the server of that name, which the current user may use. */
static ForeignServer *
find_server(const char *name)
{
	ForeignServer *server = GetForeignServerByName(name, true);
	ForeignDataWrapper *wrapper = server ? GetForeignDataWrapper(server->fdwid) : NULL;
	AclResult	acl;

	if (server == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("server \"%s\" does not exist", name),
				 errhint("Use CREATE SERVER ... FOREIGN DATA WRAPPER swarm_llm.")));
	if (strcmp(wrapper->fdwname, "swarm_llm") != 0)
		ereport(ERROR,
				(errcode(ERRCODE_WRONG_OBJECT_TYPE),
				 errmsg("server \"%s\" is not a server of wrapper \"swarm_llm\"", name)));
	acl = swarm_server_aclcheck(server->serverid, GetUserId(), ACL_USAGE);
	if (acl != ACLCHECK_OK)
		aclcheck_error(acl, OBJECT_FOREIGN_SERVER, name);
	return server;
}

/*
 * swarm._llm_server_check(name) returns text: the dialect of a server that the
 * current user may use, or an error.
 */
SWARM_FUNCTION(swarm_llm_server_check);
Datum
swarm_llm_server_check(PG_FUNCTION_ARGS)
{
	ForeignServer *server = find_server(text_to_cstring(PG_GETARG_TEXT_PP(0)));
	char	   *dialect = option(server->options, "dialect");

	PG_RETURN_TEXT_P(cstring_to_text(dialect ? dialect : "anthropic"));
}

static int
duration(List *options, const char *name, int otherwise)
{
	char	   *value = option(options, name);
	int			ms = otherwise;

	if (value != NULL)
		(void) parse_int(value, &ms, GUC_UNIT_MS, NULL);
	return ms;
}

/*
 * swarm_llm_server: while its circuit breaker is open, the fallback of its
 * retry policy, if that speaks the same dialect.
 */
SwarmLlmServer *
swarm_llm_server(const char *name)
{
	SwarmLlmServer *server = read_server(name);
	SwarmLlmServer *other;

	if (server->policy.fallback == NULL || !swarm_net_endpoint_is_open(server->endpoint))
		return server;
	other = read_server(server->policy.fallback);
	return other->dialect == server->dialect ? other : server;
}

static SwarmLlmServer *
read_server(const char *name)
{
	ForeignServer *foreign = find_server(name);
	SwarmLlmServer *server = palloc0(sizeof(SwarmLlmServer));
	char	   *value = option(foreign->options, "endpoint");
	char	   *path = option(foreign->options, "path");
	char	   *origin;
	bool		https;
	char	   *host;

	server->name = pstrdup(name);
	if (value == NULL || !swarm_net_split_endpoint(value, &https, &host))
		ereport(ERROR,
				(errcode(ERRCODE_FDW_OPTION_NAME_NOT_FOUND),
				 errmsg("server \"%s\" has no endpoint", name)));
	origin = psprintf("%s://%s", https ? "https" : "http", host);
	server->base = psprintf("%s%s", origin, path ? path : "/v1");
	server->literal = swarm_net_host_is_literal(host);
	value = option(foreign->options, "dialect");
	server->dialect = value != NULL && strcmp(value, "openai") == 0 ? LLM_OPENAI : LLM_ANTHROPIC;
	value = option(foreign->options, "version");
	server->version = pstrdup(value ? value : DEFAULT_VERSION);
	server->timeout_ms = duration(foreign->options, "timeout", 0);
	server->stall_ms = duration(foreign->options, "stall_timeout", DEFAULT_STALL_MS);
	value = option(foreign->options, "max_parallel");
	server->max_parallel = DEFAULT_PARALLEL;
	if (value != NULL)
		(void) parse_int(value, &server->max_parallel, 0, NULL);	/* as its check */
	server->ca_file = option(foreign->options, "ca_file");
	read_mapping(foreign->serverid, server);
	server->endpoint = swarm_net_endpoint(origin);
	swarm_policy_of_server(name, &server->policy);
	return server;
}

/*
 * read_mapping: the key of the current user, or of PUBLIC.  A server without a
 * mapping is asked without a key.
 */
static void
read_mapping(Oid serverid, SwarmLlmServer *server)
{
	HeapTuple	tuple = SearchSysCache2(USERMAPPINGUSERSERVER, ObjectIdGetDatum(GetUserId()),
										ObjectIdGetDatum(serverid));
	Secret	   *secret;
	Datum		datum;
	bool		isnull;

	if (!HeapTupleIsValid(tuple))
		tuple = SearchSysCache2(USERMAPPINGUSERSERVER, ObjectIdGetDatum(InvalidOid),
								ObjectIdGetDatum(serverid));
	if (!HeapTupleIsValid(tuple))
		return;
	secret = palloc0(sizeof(Secret));
	secret->server = server;
	secret->callback.func = wipe;
	secret->callback.arg = secret;
	MemoryContextRegisterResetCallback(CurrentMemoryContext, &secret->callback);
	datum = SysCacheGetAttr(USERMAPPINGUSERSERVER, tuple, Anum_pg_user_mapping_umoptions, &isnull);
	if (!isnull)
		server->api_key = option(untransformRelOptions(datum), "api_key");
	ReleaseSysCache(tuple);
}

/* wipe: the context ends: leave no key in freed memory. */
static void
wipe(void *arg)
{
	SwarmLlmServer *server = ((Secret *) arg)->server;

	if (server->api_key)
		explicit_bzero(server->api_key, strlen(server->api_key));
}
