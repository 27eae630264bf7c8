/*
 * s3_server.c
 *	  Foreign servers of wrapper swarm_s3: their options, and reading them.
 *
 * What everybody may see is in the server's options; secrets are in user
 * mappings only, and leave them only into a SwarmS3Server at the moment of
 * use.
 */
#include "postgres.h"

#include "catalog/pg_foreign_server.h"
#include "catalog/pg_user_mapping.h"
#include "common/string.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/memutils.h"

#include "base/export.h"
#include "s3/s3.h"
#include "s3/s3_int.h"

#define DEFAULT_PARALLEL	20

typedef struct Secrets
{
	SwarmS3Server *server;
	MemoryContextCallback callback;
} Secrets;

char	   *swarm_s3_allowed_endpoints = NULL;

static void check_endpoint(const char *name, const char *value);
static void check_region(const char *name, const char *value);
static void check_bool(const char *name, const char *value);
static void check_bucket(const char *name, const char *value);
static void check_prefix(const char *name, const char *value);
static void check_secret(const char *name, const char *value);
static void refuse_folder(const char *endpoint);
static const char *bucket_fault(const char *bucket);
static void key_fault(const char *key);
static void read_mapping(const ForeignServer *foreign, SwarmS3Server *server);
static void wipe(void *arg);
static void forget(SwarmS3Server *server);

static const SwarmNetOption known_options[] = {
	{"endpoint", ForeignServerRelationId, check_endpoint},
	{"region", ForeignServerRelationId, check_region},
	{"path_style", ForeignServerRelationId, check_bool},
	{"sign_payload", ForeignServerRelationId, check_bool},
	{"max_parallel", ForeignServerRelationId, swarm_net_check_parallel},
	{"ca_file", ForeignServerRelationId, swarm_net_check_file},
	{"allowed_bucket", ForeignServerRelationId, check_bucket},
	{"allowed_prefix", ForeignServerRelationId, check_prefix},
	{"access_key_id", UserMappingRelationId, check_secret},
	{"secret_access_key", UserMappingRelationId, check_secret},
	{"session_token", UserMappingRelationId, check_secret}
};

static const SwarmNetWrapper wrapper = {
	.name = "swarm_s3",
	.options = known_options,
	.noptions = lengthof(known_options),
	.options_hint = "Options of a server are endpoint, region, path_style, sign_payload, max_parallel, ca_file, allowed_bucket and allowed_prefix; of a user mapping access_key_id, secret_access_key and session_token.",
	.secrets_hint = "Secrets belong to CREATE USER MAPPING FOR PUBLIC.",
	.example = "https://s3.eu-central-1.amazonaws.com",
	.setting = "pg_swarm.s3_allowed_endpoints",
	.allowed = &swarm_s3_allowed_endpoints,
	.for_superusers = refuse_folder
};

void
swarm_s3_init(void)
{
	swarm_net_define_allowed(&wrapper);
}

/* ------------------------------------------------------------------------
 * Validator
 * ------------------------------------------------------------------------ */

/*
 * swarm._s3_validator(text[], oid): options of wrapper swarm_s3.
 */
SWARM_FUNCTION(swarm_s3_validator);
Datum
swarm_s3_validator(PG_FUNCTION_ARGS)
{
	List	   *options = swarm_net_options(&wrapper, PG_GETARG_DATUM(0), PG_GETARG_OID(1));

	if (PG_GETARG_OID(1) == UserMappingRelationId &&
		(swarm_net_option(options, "access_key_id") == NULL) != (swarm_net_option(options, "secret_access_key") == NULL))
		ereport(ERROR,
				(errcode(ERRCODE_FDW_OPTION_NAME_NOT_FOUND),
				 errmsg("access_key_id and secret_access_key come together")));
	PG_RETURN_VOID();
}

static void
refuse_folder(const char *endpoint)
{
	if (swarm_s3_split_folder(endpoint) != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("only superusers may use a folder as an endpoint")));
}

static void
check_endpoint(const char *name, const char *value)
{
	bool		https;
	char	   *host;

	if (swarm_s3_split_folder(value) == NULL && !swarm_net_split_endpoint(value, &https, &host))
		swarm_net_option_invalid(name, value, "It has the form http://host:port or https://host:port, without path, query or user, or file:///folder outside of the data directory.");
}

static void
check_region(const char *name, const char *value)
{
	if (*value == '\0' || strlen(value) > 63 ||
		strspn(value, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_") != strlen(value))
		swarm_net_option_invalid(name, value, "For example: us-east-1.");
}

static void
check_bool(const char *name, const char *value)
{
	bool		b;

	if (!parse_bool(value, &b))
		swarm_net_option_invalid(name, value, "It is true or false.");
}

static void
check_bucket(const char *name, const char *value)
{
	const char *fault = bucket_fault(value);

	if (fault != NULL)
		swarm_net_option_invalid(name, value, fault);
}

static void
check_prefix(const char *name, const char *value)
{
	if (strlen(value) > SWARM_S3_KEY_MAX)
		swarm_net_option_invalid(name, value, "A key has at most 1024 bytes.");
}

/* check_secret: it will stand in a header; the value is not repeated. */
static void
check_secret(const char *name, const char *value)
{
	bool		ok = *value != '\0';

	for (const char *p = value; *p; p++)
		ok = ok && *p > ' ' && (unsigned char) *p < 127;
	if (!ok)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("invalid value for option \"%s\"", name),
				 errhint("It consists of printable ASCII characters.")));
}

char *
swarm_s3_split_folder(const char *endpoint)
{
	char	   *path;
	char	   *data = pstrdup(DataDir);

	if (strncmp(endpoint, "file:///", 8) != 0 || strlen(endpoint) > SWARM_NET_ENDPOINT_NAME - 16)
		return NULL;
	path = pstrdup(endpoint + 7);
	for (const char *p = path; *p; p++)
	{
		if ((unsigned char) *p < 0x20 || *p == 0x7f || *p == '%' || *p == '?' || *p == '#')
			return NULL;
	}
	for (const char *p = strstr(path, "/.."); p != NULL; p = strstr(p + 1, "/.."))
	{
		if (p[3] == '/' || p[3] == '\0')
			return NULL;
	}
	canonicalize_path(path);
	canonicalize_path(data);
	if (strcmp(path, "/") == 0 ||
		path_is_prefix_of_path(data, path) || path_is_prefix_of_path(path, data))
		return NULL;
	return path;
}

/* ------------------------------------------------------------------------
 * Reading a server
 * ------------------------------------------------------------------------ */

void
swarm_s3_server_check(const char *name)
{
	(void) swarm_net_server(&wrapper, name);
}

SwarmS3Server *
swarm_s3_server(const char *name)
{
	ForeignServer *foreign = swarm_net_server(&wrapper, name);
	SwarmS3Server *server = palloc0(sizeof(SwarmS3Server));
	char	   *value;

	server->name = pstrdup(name);
	value = swarm_net_option(foreign->options, "endpoint");
	server->folder = value ? swarm_s3_split_folder(value) : NULL;
	if (server->folder != NULL)
		server->host = pstrdup("");
	else if (value == NULL || !swarm_net_split_endpoint(value, &server->https, &server->host))
		ereport(ERROR,
				(errcode(ERRCODE_FDW_OPTION_NAME_NOT_FOUND),
				 errmsg("server \"%s\" has no endpoint", name)));
	server->literal = swarm_net_host_is_literal(server->host);
	value = swarm_net_option(foreign->options, "region");
	server->region = pstrdup(value ? value : "us-east-1");
	value = swarm_net_option(foreign->options, "path_style");
	server->path_style = true;
	if (value != NULL)
		(void) parse_bool(value, &server->path_style);
	value = swarm_net_option(foreign->options, "sign_payload");
	server->sign_payload = !server->https;
	if (value != NULL)
		(void) parse_bool(value, &server->sign_payload);
	value = swarm_net_option(foreign->options, "max_parallel");
	server->max_parallel = DEFAULT_PARALLEL;
	if (value != NULL)
		(void) parse_int(value, &server->max_parallel, 0, NULL);	/* as its check */
	server->ca_file = swarm_net_option(foreign->options, "ca_file");
	server->allowed_bucket = swarm_net_option(foreign->options, "allowed_bucket");
	server->allowed_prefix = swarm_net_option(foreign->options, "allowed_prefix");
	if (server->folder == NULL)
		read_mapping(foreign, server);
	server->endpoint = swarm_net_endpoint(server->folder ? psprintf("file://%s", server->folder) :
										  psprintf("%s://%s", server->https ? "https" : "http", server->host));
	swarm_policy_of_server(name, &server->policy);
	return server;
}

/*
 * read_mapping: the credentials of the current user, or of PUBLIC.
 */
static void
read_mapping(const ForeignServer *foreign, SwarmS3Server *server)
{
	List	   *options;
	Secrets    *secrets;

	if (!swarm_net_mapping(foreign, &options))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("server \"%s\" has no user mapping for role \"%s\"", server->name,
						GetUserNameFromId(GetUserId(), false)),
				 errhint("Use CREATE USER MAPPING FOR PUBLIC SERVER %s OPTIONS (access_key_id ..., secret_access_key ...).",
						 quote_identifier(server->name))));
	secrets = palloc0(sizeof(Secrets));
	secrets->server = server;
	secrets->callback.func = wipe;
	secrets->callback.arg = secrets;
	MemoryContextRegisterResetCallback(CurrentMemoryContext, &secrets->callback);
	server->access_key = swarm_net_option(options, "access_key_id");
	server->secret_key = swarm_net_option(options, "secret_access_key");
	server->session_token = swarm_net_option(options, "session_token");
}

/*
 * swarm_s3_server_renew: the credentials of the server as they are now.  They
 * belong to its endpoint as it is now: error 55000 if that is another one.
 */
void
swarm_s3_server_renew(SwarmS3Server *server)
{
	SwarmS3Server *fresh = swarm_s3_server(server->name);

	if (fresh->endpoint != server->endpoint || fresh->https != server->https ||
		strcmp(fresh->host, server->host) != 0)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("server \"%s\" has got another endpoint meanwhile", server->name)));
	forget(server);
	server->access_key = fresh->access_key;
	server->secret_key = fresh->secret_key;
	server->session_token = fresh->session_token;
}

/* wipe: the context ends: leave no secret in freed memory. */
static void
wipe(void *arg)
{
	forget(((Secrets *) arg)->server);
}

static void
forget(SwarmS3Server *server)
{
	if (server->secret_key)
		explicit_bzero(server->secret_key, strlen(server->secret_key));
	if (server->session_token)
		explicit_bzero(server->session_token, strlen(server->session_token));
}

/* ------------------------------------------------------------------------
 * Buckets, keys, headers
 * ------------------------------------------------------------------------ */

/* bucket_fault: what is wrong with the name of a bucket, or NULL. */
static const char *
bucket_fault(const char *bucket)
{
	size_t		length = strlen(bucket);

	if (length < 3 || length > 63)
		return "The name of a bucket has 3 to 63 characters.";
	if (strspn(bucket, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-_") != length ||
		!isalnum((unsigned char) bucket[0]) || strstr(bucket, "..") != NULL)
		return "The name of a bucket consists of letters, digits, dots and hyphens, and begins with a letter or digit.";
	return NULL;
}

/*
 * key_fault: error 22023 for what no server stores under exactly that key.
 */
static void
key_fault(const char *key)
{
	const char *segment = key;

	if (*key == '\0' || strlen(key) > SWARM_S3_KEY_MAX)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("a key must have 1 to %d bytes", SWARM_S3_KEY_MAX)));
	for (const char *p = key; *p; p++)
	{
		if ((unsigned char) *p < 0x20 || *p == 0x7f)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("a key must not have control characters")));
	}
	if (GetDatabaseEncoding() != PG_UTF8 && !pg_is_ascii(key))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("a key with other than ASCII characters needs a database with encoding UTF8")));
	while (segment != NULL)
	{
		size_t		length = strcspn(segment, "/");

		if ((length == 1 && segment[0] == '.') || (length == 2 && segment[0] == '.' && segment[1] == '.'))
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("key \"%s\" has a segment \"%.*s\"", key, (int) length, segment),
					 errhint("Servers and proxies may take such a segment for another folder.")));
		segment = segment[length] == '/' ? segment + length + 1 : NULL;
	}
}

void
swarm_s3_check_object(const SwarmS3Server *server, const char *bucket, const char *key)
{
	const char *fault = bucket_fault(bucket);

	if (fault != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("invalid bucket name \"%s\"", bucket), errhint("%s", fault)));
	if (key != NULL)
		key_fault(key);
	if (server->allowed_bucket != NULL && strcmp(server->allowed_bucket, bucket) != 0)
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("server \"%s\" does not allow bucket \"%s\"", server->name, bucket),
				 errhint("It allows bucket \"%s\".", server->allowed_bucket)));
	if (key != NULL && server->allowed_prefix != NULL &&
		strncmp(server->allowed_prefix, key, strlen(server->allowed_prefix)) != 0)
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("server \"%s\" does not allow key \"%s\"", server->name, key),
				 errhint("It allows keys that begin with \"%s\".", server->allowed_prefix)));
}

void
swarm_s3_check_prefix(const SwarmS3Server *server, const char *bucket, const char *prefix)
{
	swarm_s3_check_object(server, bucket, NULL);
	if (server->allowed_prefix != NULL &&
		strncmp(server->allowed_prefix, prefix, strlen(server->allowed_prefix)) != 0)
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("server \"%s\" does not allow to list keys that begin with \"%s\"", server->name, prefix),
				 errhint("It allows keys that begin with \"%s\".", server->allowed_prefix)));
}

void
swarm_s3_check_header(const char *what, const char *value)
{
	for (const char *p = value; *p; p++)
	{
		if ((unsigned char) *p < 0x20 || *p == 0x7f)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("%s must not have control characters", what)));
	}
	if (strlen(value) > 2048)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("%s must not be longer than 2048 bytes", what)));
}
