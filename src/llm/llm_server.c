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

#include "catalog/pg_foreign_server.h"
#include "catalog/pg_type.h"
#include "catalog/pg_user_mapping.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "base/export.h"
#include "base/spi.h"
#include "job/job.h"
#include "llm/llm_int.h"

#define DEFAULT_PARALLEL	8
#define DEFAULT_STALL_MS	60000
#define DEFAULT_VERSION		"2023-06-01"

typedef struct Secret
{
	SwarmLlmServer *server;
	MemoryContextCallback callback;
} Secret;

char	   *swarm_llm_allowed_endpoints = NULL;
int			swarm_llm_max_answer_kb = 16 * 1024;
static char *default_server = NULL;

static void check_dialect(const char *name, const char *value);
static void check_path(const char *name, const char *value);
static void check_duration(const char *name, const char *value);
static void check_version(const char *name, const char *value);
static void check_key(const char *name, const char *value);
static void read_mapping(const ForeignServer *foreign, SwarmLlmServer *server);
static void wipe(void *arg);

static const SwarmNetOption known_options[] = {
	{"endpoint", ForeignServerRelationId, swarm_net_check_endpoint},
	{"dialect", ForeignServerRelationId, check_dialect},
	{"path", ForeignServerRelationId, check_path},
	{"timeout", ForeignServerRelationId, check_duration},
	{"stall_timeout", ForeignServerRelationId, check_duration},
	{"max_parallel", ForeignServerRelationId, swarm_net_check_parallel},
	{"ca_file", ForeignServerRelationId, swarm_net_check_file},
	{"version", ForeignServerRelationId, check_version},
	{"api_key", UserMappingRelationId, check_key}
};

static const SwarmNetWrapper wrapper = {
	.name = "swarm_llm",
	.options = known_options,
	.noptions = lengthof(known_options),
	.options_hint = "Options of a server are endpoint, dialect, path, timeout, stall_timeout, max_parallel, ca_file and version; of a user mapping api_key.",
	.secrets_hint = "Keys belong to CREATE USER MAPPING.",
	.example = "https://api.anthropic.com",
	.setting = "pg_swarm.llm_allowed_endpoints",
	.allowed = &swarm_llm_allowed_endpoints
};

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
	swarm_net_define_allowed(&wrapper);
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
	(void) swarm_net_options(&wrapper, PG_GETARG_DATUM(0), PG_GETARG_OID(1));
	PG_RETURN_VOID();
}

static void
check_dialect(const char *name, const char *value)
{
	if (strcmp(value, "anthropic") != 0 && strcmp(value, "openai") != 0)
		swarm_net_option_invalid(name, value, "It is anthropic or openai.");
}

static void
check_path(const char *name, const char *value)
{
	size_t		length = strlen(value);

	if (length > 128 || (length > 0 && (value[0] != '/' || value[length - 1] == '/')) ||
		strspn(value, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._~/") != length ||
		strstr(value, "..") != NULL)
		swarm_net_option_invalid(name, value, "It is what stands before /messages or /chat/completions, for example /v1.");
}

static void
check_duration(const char *name, const char *value)
{
	int			ms;

	if (!parse_int(value, &ms, GUC_UNIT_MS, NULL) || ms < 1)
		swarm_net_option_invalid(name, value, "It is a duration such as 90s or 10min.");
}

static void
check_version(const char *name, const char *value)
{
	if (*value == '\0' || strlen(value) > 32 ||
		strspn(value, "abcdefghijklmnopqrstuvwxyz0123456789-.") != strlen(value))
		swarm_net_option_invalid(name, value, "For example: " DEFAULT_VERSION ".");
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

/*
 * swarm._llm_server_check(name) returns text: the dialect of a server that the
 * current user may use, or an error.
 */
SWARM_FUNCTION(swarm_llm_server_check);
Datum
swarm_llm_server_check(PG_FUNCTION_ARGS)
{
	ForeignServer *server = swarm_net_server(&wrapper, text_to_cstring(PG_GETARG_TEXT_PP(0)));
	char	   *dialect = swarm_net_option(server->options, "dialect");

	PG_RETURN_TEXT_P(cstring_to_text(dialect ? dialect : "anthropic"));
}

static int
duration(List *options, const char *name, int otherwise)
{
	char	   *value = swarm_net_option(options, name);
	int			ms = otherwise;

	if (value != NULL)
		(void) parse_int(value, &ms, GUC_UNIT_MS, NULL);
	return ms;
}

SwarmLlmServer *
swarm_llm_server(const char *name)
{
	ForeignServer *foreign = swarm_net_server(&wrapper, name);
	SwarmLlmServer *server = palloc0(sizeof(SwarmLlmServer));
	char	   *value = swarm_net_option(foreign->options, "endpoint");
	char	   *path = swarm_net_option(foreign->options, "path");
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
	value = swarm_net_option(foreign->options, "dialect");
	server->dialect = value != NULL && strcmp(value, "openai") == 0 ? LLM_OPENAI : LLM_ANTHROPIC;
	value = swarm_net_option(foreign->options, "version");
	server->version = pstrdup(value ? value : DEFAULT_VERSION);
	server->timeout_ms = duration(foreign->options, "timeout", 0);
	server->stall_ms = duration(foreign->options, "stall_timeout", DEFAULT_STALL_MS);
	value = swarm_net_option(foreign->options, "max_parallel");
	server->max_parallel = DEFAULT_PARALLEL;
	if (value != NULL)
		(void) parse_int(value, &server->max_parallel, 0, NULL);	/* as its check */
	server->ca_file = swarm_net_option(foreign->options, "ca_file");
	read_mapping(foreign, server);
	server->endpoint = swarm_net_endpoint(origin);
	swarm_policy_of_server(name, &server->policy);
	return server;
}

/*
 * read_mapping: the key of the current user, or of PUBLIC.  A server without a
 * mapping is asked without a key.
 */
static void
read_mapping(const ForeignServer *foreign, SwarmLlmServer *server)
{
	List	   *options;
	Secret	   *secret;

	if (!swarm_net_mapping(foreign, &options))
		return;
	secret = palloc0(sizeof(Secret));
	secret->server = server;
	secret->callback.func = wipe;
	secret->callback.arg = secret;
	MemoryContextRegisterResetCallback(CurrentMemoryContext, &secret->callback);
	server->api_key = swarm_net_option(options, "api_key");
}

/* wipe: the context ends: leave no key in freed memory. */
static void
wipe(void *arg)
{
	SwarmLlmServer *server = ((Secret *) arg)->server;

	if (server->api_key)
		explicit_bzero(server->api_key, strlen(server->api_key));
}
