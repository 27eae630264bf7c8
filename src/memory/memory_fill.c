/*
 * memory_fill.c
 *	  The job that fills keys of a namespace from its origin.
 *
 * A procedure, run by a runner as the owner of the namespace.  It reads what
 * it needs, leaves its transaction, fetches all keys at the same time, and
 * stores in another one what came and is still not there.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_foreign_server.h"
#include "catalog/pg_type.h"
#include "catalog/pg_user_mapping.h"
#include "common/string.h"
#include "executor/executor.h"
#include "foreign/foreign.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "nodes/parsenodes.h"
#include "pgstat.h"
#include "tcop/pquery.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/json.h"
#include "utils/jsonb.h"
#include "utils/memutils.h"
#include "utils/portal.h"
#include "utils/snapmgr.h"

#include "base/attempt.h"
#include "base/compat.h"
#include "base/export.h"
#include "base/fault.h"
#include "memory/memory_int.h"
#include "net/net.h"
#include "s3/s3.h"

#define JOB_ARGS		4		/* field of swarm.job */
#define ANSWER_LIMIT	(8 * 1024 * 1024)
#define HTTP_PARALLEL	16
#define NET_TURN_MS		60000

/* Where the keys come from: an S3 server and a bucket, or an HTTP server. */
typedef struct Origin
{
	char	   *server;
	char	   *path;			/* before each key; of S3 without the bucket */
	Interval	ttl;
	SwarmS3Server *s3;			/* or NULL */
	char	   *bucket;
	SwarmNetEndpoint *endpoint; /* HTTP */
	char	   *url;
	bool		literal;
	char	   *ca_file;
	char	   *authorization;	/* secret; or NULL */
	MemoryContextCallback wipe;
} Origin;

typedef struct FillKey
{
	struct Fill *fill;
	text	   *key;
	char	   *path;
	bool		good;			/* can be asked for */
	bool		ours;			/* nobody else is filling it */
	bool		stored;
	SwarmS3Call call;
	SwarmNetRequest *request;
} FillKey;

typedef struct Fill
{
	MemoryContext context;
	SwarmSpace	space;
	Origin		origin;
	int			n;
	FillKey    *keys;
	char	   *error;			/* the first; NULL: none */
	int			errors;
} Fill;

static void fill_keys(Fill *fill, Jsonb *args);
static void read_args(Fill *fill, Jsonb *args);
static void read_origin(Fill *fill);
static void read_http_server(Origin *origin);
static void wipe(void *arg);
static void choose(Fill *fill);
static bool good_path(const char *path);
static void fetch(Fill *fill);
static void prepare_http(SwarmNetRequest *request);
static void store(FillKey *k);
static void store_answer(void *arg);
static void note_error(Fill *fill, const char *error);
static void leave(Fill *fill);
static void enter(Fill *fill);
static void refuse(const char *endpoint);
static void check_any(const char *name, const char *value);
static void check_authorization(const char *name, const char *value);

static const SwarmNetOption http_options[] = {
	{"endpoint", ForeignServerRelationId, swarm_net_check_endpoint},
	{"ca_file", ForeignServerRelationId, swarm_net_check_file},
	{"allowed_prefix", ForeignServerRelationId, check_any},
	{"authorization", UserMappingRelationId, check_authorization}
};

static const SwarmNetWrapper http_wrapper = {
	.name = "swarm_http",
	.options = http_options,
	.noptions = lengthof(http_options),
	.options_hint = "Options of a server are endpoint, ca_file and allowed_prefix; of a user mapping authorization.",
	.secrets_hint = "Secrets belong to CREATE USER MAPPING.",
	.example = "https://api.example.org",
	.for_superusers = refuse
};

/*
 * swarm._memory_fill(job swarm.job): procedure, handler of kind memory_fill.
 */
SWARM_FUNCTION(swarm_memory_fill);
Datum
swarm_memory_fill(PG_FUNCTION_ARGS)
{
	MemoryContext before = CurrentMemoryContext;
	Fill	   *fill;
	Jsonb	   *args;
	Datum		datum;
	bool		isnull;

	if (PG_ARGISNULL(0) || MyBackendType != B_BG_WORKER || fcinfo->context == NULL ||
		!IsA(fcinfo->context, CallContext) || ((CallContext *) fcinfo->context)->atomic)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("only a runner can fill a namespace from its origin")));
	datum = GetAttributeByNum(PG_GETARG_HEAPTUPLEHEADER(0), JOB_ARGS, &isnull);
	if (isnull)
		PG_RETURN_NULL();
	args = DatumGetJsonbP(datum);
	fill = MemoryContextAllocZero(before, sizeof(Fill));
	fill->context = AllocSetContextCreate(before, "pg_swarm fill", ALLOCSET_DEFAULT_SIZES);
	MemoryContextSwitchTo(fill->context);
	PG_TRY();
	{
		fill_keys(fill, args);
	}
	PG_FINALLY();
	{
		swarm_s3_owner_end();
		for (int i = 0; i < fill->n; i++)
		{
			if (fill->keys[i].ours)
				swarm_origin_fill_end(fill->space.id, fill->keys[i].key, fill->keys[i].stored);
		}
		fill->n = 0;
	}
	PG_END_TRY();
	if (fill->errors > 0)
	{
		/* what was stored is committed */
		leave(fill);
		enter(fill);
		ereport(ERROR,
				(errcode(ERRCODE_CONNECTION_FAILURE),
				 errmsg("could not fill %d keys from server \"%s\"", fill->errors, fill->origin.server),
				 errdetail("The first failed with: %s", fill->error)));
	}
	MemoryContextSwitchTo(before);
	MemoryContextDelete(fill->context);
	PG_RETURN_VOID();
}

static void
fill_keys(Fill *fill, Jsonb *args)
{
	read_args(fill, args);
	read_origin(fill);
	choose(fill);
	leave(fill);
	SWARM_FAULT("memory.fetch");
	fetch(fill);
	enter(fill);
	/* what it was may have changed meanwhile, or it be gone */
	if (!swarm_space_by_id(fill->space.id, &fill->space) ||
		!swarm_space_may(fill->space.id, GetUserId(), NEED_OWN))
		return;
	for (int i = 0; i < fill->n; i++)
	{
		if (fill->keys[i].request != NULL)
			store(&fill->keys[i]);
	}
	/* told to others only once it can be seen */
	leave(fill);
	enter(fill);
}

/* ------------------------------------------------------------------------
 * What is to be done
 * ------------------------------------------------------------------------ */

static void
read_args(Fill *fill, Jsonb *args)
{
	JsonbValue	space;
	JsonbValue	keys;

	if (!JB_ROOT_IS_OBJECT(args) ||
		getKeyJsonValueFromContainer(&args->root, "namespace", 9, &space) == NULL || space.type != jbvNumeric ||
		getKeyJsonValueFromContainer(&args->root, "keys", 4, &keys) == NULL || keys.type != jbvBinary ||
		!JsonContainerIsArray(keys.val.binary.data) ||
		JsonContainerSize(keys.val.binary.data) > SWARM_FILL_BATCH)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("a job of kind \"memory_fill\" needs \"namespace\" and up to %d \"keys\" in its args", SWARM_FILL_BATCH)));
	if (!swarm_space_by_id(DatumGetInt32(DirectFunctionCall1(numeric_int4, NumericGetDatum(space.val.numeric))), &fill->space) ||
		!swarm_space_may(fill->space.id, GetUserId(), NEED_OWN))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("namespace does not exist, or is not of role \"%s\"", GetUserNameFromId(GetUserId(), false))));
	fill->keys = palloc0(sizeof(FillKey) * SWARM_FILL_BATCH);
	for (int i = 0; i < JsonContainerSize(keys.val.binary.data); i++)
	{
		JsonbValue *v = getIthJsonbValueFromContainer(keys.val.binary.data, i);

		if (v->type != jbvString || v->val.string.len > SWARM_KEY_MAX_BYTES)
			continue;
		fill->keys[fill->n].fill = fill;
		fill->keys[fill->n++].key = cstring_to_text_with_len(v->val.string.val, v->val.string.len);
	}
}

static void
read_origin(Fill *fill)
{
	Origin	   *o = &fill->origin;
	SwarmSpi	spi;
	Oid			types[] = {INT4OID};
	Datum		values[] = {Int32GetDatum(fill->space.id)};
	ForeignServer *server;
	bool		isnull;

	swarm_spi_begin(&spi);
	if (swarm_spi_query("SELECT origin, coalesce(origin_path, ''), coalesce(origin_ttl, '86400 s') "
						"FROM swarm._namespace WHERE id = $1 AND origin IS NOT NULL", 1, types, values, NULL) == 0)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE), errmsg("namespace has no origin")));
	o->server = MemoryContextStrdup(fill->context, swarm_spi_text(0, 1));
	o->path = MemoryContextStrdup(fill->context, swarm_spi_text(0, 2));
	o->ttl = *DatumGetIntervalP(swarm_spi_column(0, 3, &isnull));
	swarm_spi_end(&spi);
	MemoryContextSwitchTo(fill->context);

	server = GetForeignServerByName(o->server, true);
	if (server != NULL && strcmp(GetForeignDataWrapper(server->fdwid)->fdwname, "swarm_http") == 0)
		read_http_server(o);
	else
	{
		char	   *slash = strchr(o->path, '/');

		o->s3 = swarm_s3_server(o->server);
		o->bucket = slash ? pnstrdup(o->path, slash - o->path) : o->path;
		o->path = slash ? slash + 1 : "";
	}
}

static void
read_http_server(Origin *o)
{
	ForeignServer *server = swarm_net_server(&http_wrapper, o->server);
	char	   *endpoint = swarm_net_option(server->options, "endpoint");
	char	   *prefix = swarm_net_option(server->options, "allowed_prefix");
	bool		https;
	char	   *host;
	List	   *options;

	if (endpoint == NULL || !swarm_net_split_endpoint(endpoint, &https, &host))
		ereport(ERROR,
				(errcode(ERRCODE_FDW_OPTION_NAME_NOT_FOUND),
				 errmsg("server \"%s\" has no endpoint", server->servername)));
	if (prefix != NULL && strncmp(o->path, prefix, strlen(prefix)) != 0)
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("server \"%s\" does not allow path \"%s\"", server->servername, o->path)));
	o->url = psprintf("%s://%s", https ? "https" : "http", host);
	o->endpoint = swarm_net_endpoint(o->url);
	o->ca_file = swarm_net_option(server->options, "ca_file");
	o->literal = swarm_net_host_is_literal(host);
	if (swarm_net_mapping(server, &options))
		o->authorization = swarm_net_option(options, "authorization");
	o->wipe.func = wipe;
	o->wipe.arg = o;
	MemoryContextRegisterResetCallback(CurrentMemoryContext, &o->wipe);
}

/* wipe: the context ends: leave no secret in freed memory. */
static void
wipe(void *arg)
{
	Origin	   *o = arg;

	if (o->authorization)
		explicit_bzero(o->authorization, strlen(o->authorization));
}

/*
 * choose: the keys that are not there, that nobody else is filling, and that
 * can be part of a path.
 */
static void
choose(Fill *fill)
{
	SwarmMemoryReader reader;
	SwarmMemoryRow row;

	swarm_memory_reader_open(&reader, &fill->space);
	for (int i = 0; i < fill->n; i++)
	{
		FillKey    *k = &fill->keys[i];

		if (swarm_memory_read(&reader, k->key, &row))
			continue;
		k->path = psprintf("%s%s", fill->origin.path, text_to_cstring(k->key));
		k->good = good_path(k->path);
		if (k->good && fill->origin.s3 != NULL)
			swarm_s3_check_object(fill->origin.s3, fill->origin.bucket, k->path);
		k->ours = swarm_origin_fill_begin(fill->space.id, k->key);
	}
	swarm_memory_reader_close(&reader);
}

/*
 * good_path: without a segment that servers and proxies take for another
 * folder, or what no request line can have.
 */
static bool
good_path(const char *path)
{
	const char *segment = path;

	if (*path == '\0' || strlen(path) > SWARM_S3_KEY_MAX ||
		(GetDatabaseEncoding() != PG_UTF8 && !pg_is_ascii(path)))
		return false;
	for (const char *p = path; *p; p++)
	{
		if ((unsigned char) *p < 0x20 || *p == 0x7f)
			return false;
	}
	while (segment != NULL)
	{
		size_t		length = strcspn(segment, "/");

		if ((length == 1 && segment[0] == '.') || (length == 2 && segment[0] == '.' && segment[1] == '.'))
			return false;
		segment = segment[length] == '/' ? segment + length + 1 : NULL;
	}
	return true;
}

/* ------------------------------------------------------------------------
 * Fetching: in no transaction
 * ------------------------------------------------------------------------ */

static void
fetch(Fill *fill)
{
	Origin	   *o = &fill->origin;

	for (int i = 0; i < fill->n; i++)
	{
		FillKey    *k = &fill->keys[i];

		if (!k->ours || !k->good)
			continue;
		if (o->s3 != NULL)
		{
			k->call = (SwarmS3Call)
			{
				.server = o->s3, .method = "GET", .bucket = o->bucket, .key = k->path, .body.fd = -1
			};
			k->request = swarm_s3_request(fill->context, &k->call);
		}
		else
		{
			k->request = swarm_net_request(fill->context);
			k->request->method = "GET";
			k->request->endpoint = o->endpoint;
			k->request->parallel = HTTP_PARALLEL;
			k->request->ca_file = o->ca_file;
			k->request->host_is_literal = o->literal;
			k->request->body.fd = -1;
			k->request->prepare = prepare_http;
			k->request->caller = k;
		}
		k->request->answer_limit = ANSWER_LIMIT;
		swarm_net_submit(k->request);
	}
	for (int i = 0; i < fill->n; i++)
	{
		while (fill->keys[i].request != NULL && !fill->keys[i].request->finished)
			swarm_net_turn(NET_TURN_MS);
	}
	/* they are ours, not for others who ask for what has finished */
	while (swarm_net_next() != NULL)
		;
}

static void
prepare_http(SwarmNetRequest *request)
{
	FillKey    *k = request->caller;
	const Origin *o = &k->fill->origin;

	swarm_net_url(request, psprintf("%s/%s", o->url, swarm_s3_encode(k->path, true)));
	swarm_net_header(request, "accept", "application/json, text/*, */*;q=0.1");
	if (o->authorization != NULL)
		swarm_net_header(request, "authorization", o->authorization);
}

/* ------------------------------------------------------------------------
 * Storing
 * ------------------------------------------------------------------------ */

/*
 * store: what came for a key.  What fails is noted, and costs one key.
 */
static void
store(FillKey *k)
{
	SwarmNetRequest *request = k->request;
	ErrorData  *edata;

	if (!request->succeeded)
	{
		if (request->status != 410 &&
			(request->status != 404 || strcmp(request->error_name, "NoSuchBucket") == 0))
			note_error(k->fill, request->error_text[0] ? request->error_text : request->error_name);
		return;
	}
	edata = swarm_attempt(store_answer, k, k->fill->context);
	MemoryContextSwitchTo(k->fill->context);
	if (edata != NULL)
	{
		k->stored = false;
		note_error(k->fill, edata->message);
	}
}

/*
 * store_answer: JSON as it is, anything else as a string.
 */
static void
store_answer(void *arg)
{
	FillKey    *k = arg;
	SwarmNetRequest *request = k->request;
	char	   *type = swarm_net_answer_header(request, "content-type");
	size_t		length = strlen(k->path);
	bool		json = length >= 5 && strcmp(k->path + length - 5, ".json") == 0;
	char	   *text;
	SwarmMemoryStore what = {0};

	if (type != NULL)
	{
		type[strcspn(type, "; \t")] = '\0';
		length = strlen(type);
		json |= pg_strcasecmp(type, "application/json") == 0 ||
			(length >= 5 && pg_strcasecmp(type + length - 5, "+json") == 0);
	}
	if (memchr(request->answer, '\0', request->answer_length) != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_UNTRANSLATABLE_CHARACTER), errmsg("the answer is no text")));
	text = pg_any_to_server(request->answer, request->answer_length, PG_UTF8);

	if (!json)
	{
		StringInfoData quoted;

		initStringInfo(&quoted);
		escape_json(&quoted, text);
		text = quoted.data;
	}
	what.key = k->key;
	what.value = DirectFunctionCall1(jsonb_in, CStringGetDatum(text));
	what.has_ttl = true;
	what.ttl = k->fill->origin.ttl;
	what.if_absent = true;
	(void) swarm_memory_store_entry(&k->fill->space, GetUserId(), &what);
	k->stored = true;
}

static void
note_error(Fill *fill, const char *error)
{
	if (fill->errors++ == 0)
		fill->error = MemoryContextStrdup(fill->context, error);
}

/* ------------------------------------------------------------------------
 * Transactions
 * ------------------------------------------------------------------------ */

/*
 * leave: commit, as COMMIT in a procedure does, but begin no new transaction
 * yet.
 */
static void
leave(Fill *fill)
{
	HoldPinnedPortals();
	ForgetPortalSnapshots();
	CommitTransactionCommand();
	MemoryContextSwitchTo(fill->context);
	pgstat_report_stat(false);
	swarm_s3_owner_begin();
}

static void
enter(Fill *fill)
{
	swarm_s3_owner_end();
	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	EnsurePortalSnapshotExists();
	MemoryContextSwitchTo(fill->context);
}

/* ------------------------------------------------------------------------
 * Foreign servers of wrapper swarm_http
 * ------------------------------------------------------------------------ */

/*
 * swarm._http_validator(text[], oid): options of wrapper swarm_http.
 */
SWARM_FUNCTION(swarm_http_validator);
Datum
swarm_http_validator(PG_FUNCTION_ARGS)
{
	(void) swarm_net_options(&http_wrapper, PG_GETARG_DATUM(0), PG_GETARG_OID(1));
	PG_RETURN_VOID();
}

/* refuse: who creates a server decides where this one connects. */
static void
refuse(const char *endpoint)
{
	ereport(ERROR,
			(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
			 errmsg("only superusers may create a server of wrapper \"swarm_http\"")));
}

static void
check_any(const char *name, const char *value)
{
}

/* check_authorization: its value is in no message. */
static void
check_authorization(const char *name, const char *value)
{
	for (const char *p = value; *p; p++)
	{
		if ((unsigned char) *p < ' ' || (unsigned char) *p >= 127)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("invalid value for option \"%s\"", name),
					 errhint("It consists of printable ASCII characters.")));
	}
}
