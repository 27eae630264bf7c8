/*
 * s3_server.c
 *	  Foreign servers of wrapper swarm_s3: their options, and reading them.
 *
 * What everybody may see is in the server's options; secrets are in user
 * mappings only, and leave them only into a SwarmS3Server at the moment of
 * use.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/reloptions.h"
#include "catalog/pg_foreign_data_wrapper.h"
#include "catalog/pg_foreign_server.h"
#include "catalog/pg_user_mapping.h"
#include "commands/defrem.h"
#include "common/string.h"
#include "foreign/foreign.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "nodes/makefuncs.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/syscache.h"
#include "utils/varlena.h"

#include "base/compat.h"
#include "base/export.h"
#include "s3/s3.h"
#include "s3/s3_int.h"

#define DEFAULT_PARALLEL	20
#define MAX_PARALLEL		256

typedef struct KnownOption
{
	const char *name;
	Oid			catalog;
	void		(*check) (const char *name, const char *value);
} KnownOption;

typedef struct Secrets
{
	SwarmS3Server *server;
	MemoryContextCallback callback;
} Secrets;

char	   *swarm_s3_allowed_endpoints = NULL;

static void check_endpoint(const char *name, const char *value);
static void check_region(const char *name, const char *value);
static void check_bool(const char *name, const char *value);
static void check_parallel(const char *name, const char *value);
static void check_file(const char *name, const char *value);
static void check_bucket(const char *name, const char *value);
static void check_prefix(const char *name, const char *value);
static void check_secret(const char *name, const char *value);
static void require_trust(const char *endpoint, const char *ca_file);
static const char *bucket_fault(const char *bucket);
static void key_fault(const char *key);
static void read_mapping(Oid serverid, SwarmS3Server *server);
static void wipe(void *arg);
static void forget(SwarmS3Server *server);
static char *option(List *options, const char *name);

static const KnownOption known_options[] = {
	{"endpoint", ForeignServerRelationId, check_endpoint},
	{"region", ForeignServerRelationId, check_region},
	{"path_style", ForeignServerRelationId, check_bool},
	{"sign_payload", ForeignServerRelationId, check_bool},
	{"max_parallel", ForeignServerRelationId, check_parallel},
	{"ca_file", ForeignServerRelationId, check_file},
	{"allowed_bucket", ForeignServerRelationId, check_bucket},
	{"allowed_prefix", ForeignServerRelationId, check_prefix},
	{"access_key_id", UserMappingRelationId, check_secret},
	{"secret_access_key", UserMappingRelationId, check_secret},
	{"session_token", UserMappingRelationId, check_secret}
};

/* check_endpoints: check hook of pg_swarm.s3_allowed_endpoints. */
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

void
swarm_s3_init(void)
{
	DefineCustomStringVariable("pg_swarm.s3_allowed_endpoints",
							   "Endpoints that roles without superuser rights may create servers for, separated by commas.", NULL,
							   &swarm_s3_allowed_endpoints, "",
							   PGC_SUSET, GUC_LIST_INPUT, check_endpoints, NULL, NULL);
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
					 errhint("Everybody can read the options of a server. Secrets belong to CREATE USER MAPPING FOR PUBLIC.") :
					 known != NULL ? errhint("It is an option of the server.") :
					 errhint("Options of a server are endpoint, region, path_style, sign_payload, max_parallel, ca_file, allowed_bucket and allowed_prefix; of a user mapping access_key_id, secret_access_key and session_token.")));
		known->check(def->defname, defGetString(def));
	}
	if (catalog == ForeignServerRelationId)
	{
		if (option(options, "endpoint") == NULL)
			ereport(ERROR,
					(errcode(ERRCODE_FDW_OPTION_NAME_NOT_FOUND),
					 errmsg("a server of wrapper \"swarm_s3\" needs the option \"endpoint\""),
					 errhint("For example: endpoint 'https://s3.eu-central-1.amazonaws.com'.")));
		require_trust(option(options, "endpoint"), option(options, "ca_file"));
	}
	if (catalog == UserMappingRelationId &&
		(option(options, "access_key_id") == NULL) != (option(options, "secret_access_key") == NULL))
		ereport(ERROR,
				(errcode(ERRCODE_FDW_OPTION_NAME_NOT_FOUND),
				 errmsg("access_key_id and secret_access_key come together")));
	PG_RETURN_VOID();
}

/*
 * require_trust: who creates a server decides where data goes, and which file
 * the server process reads.
 */
static void
require_trust(const char *endpoint, const char *ca_file)
{
	char	   *listed = pstrdup(swarm_s3_allowed_endpoints ? swarm_s3_allowed_endpoints : "");
	List	   *list;
	ListCell   *lc;

	if (superuser())
		return;
	if (swarm_s3_split_folder(endpoint) != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("only superusers may use a folder as an endpoint")));
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
			 errhint("A superuser can create the server, or add the endpoint to pg_swarm.s3_allowed_endpoints.")));
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

	if (swarm_s3_split_folder(value) == NULL && !swarm_net_split_endpoint(value, &https, &host))
		invalid(name, value, "It has the form http://host:port or https://host:port, without path, query or user, or file:///folder outside of the data directory.");
}

static void
check_region(const char *name, const char *value)
{
	if (*value == '\0' || strlen(value) > 63 ||
		strspn(value, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_") != strlen(value))
		invalid(name, value, "For example: us-east-1.");
}

static void
check_bool(const char *name, const char *value)
{
	bool		b;

	if (!parse_bool(value, &b))
		invalid(name, value, "It is true or false.");
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
check_bucket(const char *name, const char *value)
{
	const char *fault = bucket_fault(value);

	if (fault != NULL)
		invalid(name, value, fault);
}

static void
check_prefix(const char *name, const char *value)
{
	if (strlen(value) > SWARM_S3_KEY_MAX)
		invalid(name, value, "A key has at most 1024 bytes.");
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
				 errhint("Use CREATE SERVER ... FOREIGN DATA WRAPPER swarm_s3.")));
	if (strcmp(wrapper->fdwname, "swarm_s3") != 0)
		ereport(ERROR,
				(errcode(ERRCODE_WRONG_OBJECT_TYPE),
				 errmsg("server \"%s\" is not a server of wrapper \"swarm_s3\"", name)));
	acl = swarm_server_aclcheck(server->serverid, GetUserId(), ACL_USAGE);
	if (acl != ACLCHECK_OK)
		aclcheck_error(acl, OBJECT_FOREIGN_SERVER, name);
	return server;
}

void
swarm_s3_server_check(const char *name)
{
	(void) find_server(name);
}

char *
swarm_s3_endpoint_of(List *options)
{
	char	   *endpoint = option(options, "endpoint");
	bool		https;
	char	   *host;

	if (endpoint == NULL)
		return NULL;
	if (swarm_s3_split_folder(endpoint) != NULL)
		return psprintf("file://%s", swarm_s3_split_folder(endpoint));
	if (!swarm_net_split_endpoint(endpoint, &https, &host))
		return NULL;
	return psprintf("%s://%s", https ? "https" : "http", host);
}

SwarmS3Server *
swarm_s3_server(const char *name)
{
	ForeignServer *foreign = find_server(name);
	SwarmS3Server *server = palloc0(sizeof(SwarmS3Server));
	char	   *value;

	server->name = pstrdup(name);
	value = option(foreign->options, "endpoint");
	server->folder = value ? swarm_s3_split_folder(value) : NULL;
	if (server->folder != NULL)
		server->host = pstrdup("");
	else if (value == NULL || !swarm_net_split_endpoint(value, &server->https, &server->host))
		ereport(ERROR,
				(errcode(ERRCODE_FDW_OPTION_NAME_NOT_FOUND),
				 errmsg("server \"%s\" has no endpoint", name)));
	server->literal = swarm_net_host_is_literal(server->host);
	value = option(foreign->options, "region");
	server->region = pstrdup(value ? value : "us-east-1");
	value = option(foreign->options, "path_style");
	server->path_style = true;
	if (value != NULL)
		(void) parse_bool(value, &server->path_style);
	value = option(foreign->options, "sign_payload");
	server->sign_payload = !server->https;
	if (value != NULL)
		(void) parse_bool(value, &server->sign_payload);
	value = option(foreign->options, "max_parallel");
	server->max_parallel = DEFAULT_PARALLEL;
	if (value != NULL)
		(void) parse_int(value, &server->max_parallel, 0, NULL);	/* as its check */
	server->ca_file = option(foreign->options, "ca_file");
	server->allowed_bucket = option(foreign->options, "allowed_bucket");
	server->allowed_prefix = option(foreign->options, "allowed_prefix");
	if (server->folder == NULL)
		read_mapping(foreign->serverid, server);
	server->endpoint = swarm_net_endpoint(swarm_s3_endpoint_of(foreign->options));
	swarm_policy_of_server(name, &server->policy);
	return server;
}

/*
 * read_mapping: the credentials of the current user, or of PUBLIC.
 */
static void
read_mapping(Oid serverid, SwarmS3Server *server)
{
	HeapTuple	tuple = SearchSysCache2(USERMAPPINGUSERSERVER, ObjectIdGetDatum(GetUserId()),
										ObjectIdGetDatum(serverid));
	Secrets    *secrets;
	Datum		datum;
	bool		isnull;
	List	   *options;
	char	   *value;

	if (!HeapTupleIsValid(tuple))
		tuple = SearchSysCache2(USERMAPPINGUSERSERVER, ObjectIdGetDatum(InvalidOid),
								ObjectIdGetDatum(serverid));
	if (!HeapTupleIsValid(tuple))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("server \"%s\" has no user mapping for role \"%s\"", server->name,
						GetUserNameFromId(GetUserId(), false)),
				 errhint("Use CREATE USER MAPPING FOR PUBLIC SERVER %s OPTIONS (access_key_id ..., secret_access_key ...).",
						 quote_identifier(server->name))));
	datum = SysCacheGetAttr(USERMAPPINGUSERSERVER, tuple, Anum_pg_user_mapping_umoptions, &isnull);
	options = isnull ? NIL : untransformRelOptions(datum);
	ReleaseSysCache(tuple);

	secrets = palloc0(sizeof(Secrets));
	secrets->server = server;
	secrets->callback.func = wipe;
	secrets->callback.arg = secrets;
	MemoryContextRegisterResetCallback(CurrentMemoryContext, &secrets->callback);
	server->access_key = option(options, "access_key_id");
	server->secret_key = option(options, "secret_access_key");
	value = option(options, "session_token");
	server->session_token = value;
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
