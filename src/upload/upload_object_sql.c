/*
 * upload_object_sql.c
 *	  SQL functions for single objects, export and import, and for the views.
 *
 * They use the network in the transaction of the statement that calls them:
 * a function cannot leave it.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/table.h"
#include "access/xact.h"
#include "catalog/namespace.h"
#include "catalog/pg_type.h"
#include "commands/copy.h"
#include "commands/defrem.h"
#include "common/int.h"
#include "executor/spi.h"
#include "funcapi.h"
#include "lib/stringinfo.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "parser/parse_relation.h"
#include "tcop/utility.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/json.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/rls.h"
#include "utils/timestamp.h"

#include <unistd.h>

#include "base/export.h"
#include "upload/upload_int.h"

#define LIST_ANSWER		(4 * 1024 * 1024)
#define LIST_PAGE		1000
#define PRESIGN_MAX_S	(7 * 24 * 3600)
#define LINE_LONGEST		(256 * 1024 * 1024)

/*
 * Where COPY FROM reads from; its callback has no argument.  A trigger of the
 * table may import as well: who sets it sets it back.
 */
static SwarmNetBody *import_body = NULL;

static char *argument(FunctionCallInfo fcinfo, int i, const char *name);
static SwarmNetRequest *perform(SwarmS3Call *call, int sink, int64 limit);
static void call_object(SwarmS3Call *call, FunctionCallInfo fcinfo, const char *method);
static void fetch(SwarmS3Call *call, SwarmNetBody *body);
static void decompress(const SwarmNetBody *from, const char *encoding, SwarmNetBody *body);
static int	read_body(SwarmNetBody *body, void *buffer, int most);
static int	read_import(void *buffer, int least, int most);
static void check_target(Oid table, const char *format);
static uint64 import_copy(Relation rel, SwarmNetBody *body, const char *format, Jsonb *options);
static char *stored_columns(Relation rel);
static uint64 import_lines(Relation rel, SwarmNetBody *body);
static void import_line(SPIPlanPtr plan, MemoryContext context, char *line, size_t length);

static char *
argument(FunctionCallInfo fcinfo, int i, const char *name)
{
	if (PG_ARGISNULL(i))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED), errmsg("argument \"%s\" must not be null", name)));
	return text_to_cstring(PG_GETARG_TEXT_PP(i));
}

static char *
server_argument(FunctionCallInfo fcinfo)
{
	if (PG_ARGISNULL(0))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED), errmsg("argument \"server\" must not be null")));
	return NameStr(*PG_GETARG_NAME(0));
}

/* call_object: server, bucket and key are the first three arguments. */
static void
call_object(SwarmS3Call *call, FunctionCallInfo fcinfo, const char *method)
{
	memset(call, 0, sizeof(*call));
	call->server = swarm_s3_server(server_argument(fcinfo));
	call->bucket = argument(fcinfo, 1, "bucket");
	call->key = argument(fcinfo, 2, "key");
	call->method = method;
	call->body.fd = -1;
	swarm_s3_check_object(call->server, call->bucket, call->key);
}

static SwarmNetRequest *
perform(SwarmS3Call *call, int sink, int64 limit)
{
	SwarmNetRequest *request = swarm_s3_request(CurrentMemoryContext, call);

	request->sink = sink;
	request->answer_limit = limit;
	swarm_net_perform(request);
	return request;
}

/*
 * swarm.s3_head(server, bucket, key) returns jsonb; NULL if there is no such
 * object
 */
SWARM_FUNCTION(swarm_s3_head);
Datum
swarm_s3_head(PG_FUNCTION_ARGS)
{
	static const struct
	{
		const char *header;
		const char *field;
	}			fields[] = {{"content-type", "type"}, {"last-modified", "modified"},
	{"x-amz-storage-class", "storageClass"}, {"x-amz-version-id", "version"},
	{"x-amz-server-side-encryption", "encryption"}, {"cache-control", "cacheControl"},
	{"content-encoding", "contentEncoding"}};
	SwarmS3Call call;
	SwarmNetRequest *request;
	StringInfoData out;
	int			position = 0;
	int			n = 0;
	char	   *name;
	char	   *value;

	call_object(&call, fcinfo, "HEAD");
	request = perform(&call, -1, LIST_ANSWER);
	if (!request->succeeded && request->status == 404)
		PG_RETURN_NULL();
	if (!request->succeeded)
		swarm_s3_raise(request, call.bucket, call.key);
	initStringInfo(&out);
	value = swarm_net_answer_header(request, "content-length");
	appendStringInfo(&out, "{\"size\": %lld, \"etag\": ", value ? strtoll(value, NULL, 10) : -1);
	escape_json(&out, swarm_s3_etag(swarm_net_answer_header(request, "etag")));
	for (int i = 0; i < lengthof(fields); i++)
	{
		value = swarm_net_answer_header(request, fields[i].header);
		if (value == NULL)
			continue;
		appendStringInfo(&out, ", \"%s\": ", fields[i].field);
		escape_json(&out, pg_any_to_server(value, strlen(value), PG_UTF8));
	}
	appendStringInfoString(&out, ", \"metadata\": {");
	while (swarm_net_answer_headers(request, "x-amz-meta-", &position, &name, &value))
	{
		appendStringInfoString(&out, n++ ? ", " : "");
		for (char *p = name; *p; p++)
			*p = pg_ascii_tolower(*p);
		escape_json(&out, pg_any_to_server(name + 11, strlen(name + 11), PG_UTF8));
		appendStringInfoString(&out, ": ");
		escape_json(&out, pg_any_to_server(value, strlen(value), PG_UTF8));
	}
	appendStringInfoString(&out, "}}");
	return DirectFunctionCall1(jsonb_in, CStringGetDatum(out.data));
}

/*
 * swarm.s3_list(server, bucket, prefix, max_keys, start_after) returns setof
 * record
 */
SWARM_FUNCTION(swarm_s3_list);
Datum
swarm_s3_list(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	char	   *prefix = argument(fcinfo, 2, "prefix");
	int64		most = PG_ARGISNULL(3) ? PG_INT64_MAX : PG_GETARG_INT64(3);
	char	   *after = PG_ARGISNULL(4) ? NULL : text_to_cstring(PG_GETARG_TEXT_PP(4));
	char	   *next = NULL;
	SwarmS3Call call = {.method = "GET", .answer_root = "ListBucketResult"};
	MemoryContext page;
	MemoryContext caller;

	InitMaterializedSRF(fcinfo, 0);
	call.server = swarm_s3_server(server_argument(fcinfo));
	call.bucket = argument(fcinfo, 1, "bucket");
	call.body.fd = -1;
	page = AllocSetContextCreate(CurrentMemoryContext, "pg_swarm page", ALLOCSET_DEFAULT_SIZES);
	swarm_s3_check_prefix(call.server, call.bucket, prefix);
	prefix = pg_server_to_any(prefix, strlen(prefix), PG_UTF8);
	if (after != NULL)
		after = pg_server_to_any(after, strlen(after), PG_UTF8);
	while (most > 0)
	{
		SwarmNetRequest *request;
		const char *position = NULL;
		char	   *item;
		char	   *truncated;
		char	   *token;

		caller = MemoryContextSwitchTo(page);
		call.query = list_make3(swarm_s3_pair("list-type", "2"), swarm_s3_pair("prefix", prefix),
								swarm_s3_pair("max-keys", psprintf("%d", (int) Min(most, LIST_PAGE))));
		if (next != NULL)
			call.query = lappend(call.query, swarm_s3_pair("continuation-token", next));
		else if (after != NULL)
			call.query = lappend(call.query, swarm_s3_pair("start-after", after));
		request = perform(&call, -1, LIST_ANSWER);
		if (!request->succeeded)
			swarm_s3_raise(request, call.bucket, NULL);
		while (most > 0 && (item = swarm_s3_xml_inner(request->answer, "Contents", &position)) != NULL)
		{
			char	   *key = swarm_s3_xml_text(item, "Key", NULL);
			char	   *size = swarm_s3_xml_text(item, "Size", NULL);
			char	   *modified = swarm_s3_xml_text(item, "LastModified", NULL);
			char	   *etag = swarm_s3_xml_text(item, "ETag", NULL);
			char	   *class = swarm_s3_xml_text(item, "StorageClass", NULL);
			Datum		values[5];
			bool		nulls[5] = {key == NULL, size == NULL, modified == NULL, etag == NULL, class == NULL};

			if (key == NULL)
				continue;
			values[0] = CStringGetTextDatum(pg_any_to_server(key, strlen(key), PG_UTF8));
			values[1] = Int64GetDatum(size ? strtoll(size, NULL, 10) : 0);
			values[2] = modified ? DirectFunctionCall3(timestamptz_in, CStringGetDatum(modified),
													   ObjectIdGetDatum(InvalidOid), Int32GetDatum(-1)) : (Datum) 0;
			values[3] = etag ? CStringGetTextDatum(swarm_s3_etag(etag)) : (Datum) 0;
			values[4] = class ? CStringGetTextDatum(pg_any_to_server(class, strlen(class), PG_UTF8)) : (Datum) 0;
			tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
			most--;
		}
		truncated = swarm_s3_xml_text(request->answer, "IsTruncated", NULL);
		token = swarm_s3_xml_text(request->answer, "NextContinuationToken", NULL);
		MemoryContextSwitchTo(caller);
		if (next != NULL)
			pfree(next);
		next = token ? pstrdup(token) : NULL;
		if (truncated == NULL || strcmp(truncated, "true") != 0 || next == NULL || *next == '\0')
			break;
		MemoryContextReset(page);
	}
	return (Datum) 0;
}

/*
 * swarm.s3_delete(server, bucket, key) returns void
 */
SWARM_FUNCTION(swarm_s3_delete);
Datum
swarm_s3_delete(PG_FUNCTION_ARGS)
{
	SwarmS3Call call;
	SwarmNetRequest *request;

	call_object(&call, fcinfo, "DELETE");
	request = perform(&call, -1, LIST_ANSWER);
	if (!request->succeeded)
		swarm_s3_raise(request, call.bucket, call.key);
	PG_RETURN_VOID();
}

/*
 * fetch: the object into a temporary file; decompressed, if it was stored so
 * and is wanted whole.
 */
static void
fetch(SwarmS3Call *call, SwarmNetBody *body)
{
	int64		limit = swarm_s3_max_file_kb * INT64CONST(1024);
	SwarmSpool *spool = swarm_spool_create(CurrentMemoryContext, limit, NULL);
	SwarmNetRequest *request = perform(call, swarm_spool_descriptor(spool), limit);
	char	   *encoding;
	char	   *chunked;

	if (!request->succeeded)
		swarm_s3_raise(request, call->bucket, call->key);
	chunked = swarm_net_answer_header(request, "transfer-encoding");
	if (swarm_net_answer_header(request, "content-length") == NULL &&
		(chunked == NULL || pg_strcasecmp(chunked, "chunked") != 0))
		ereport(ERROR,
				(errcode(ERRCODE_CONNECTION_FAILURE),
				 errmsg("the server does not say where object \"%s\" ends", call->key)));
	memset(body, 0, sizeof(*body));
	body->fd = spool->fd;
	body->length = request->received;
	encoding = swarm_net_answer_header(request, "content-encoding");
	if (encoding != NULL && swarm_codec_known(encoding) && request->status == 200)
	{
		SwarmNetBody stored = *body;

		decompress(&stored, encoding, body);
	}
}

static void
write_spool(void *arg, const char *data, size_t length)
{
	swarm_spool_write(arg, data, length);
}

/* decompress: what comes out is as large as an object may be, at most. */
static void
decompress(const SwarmNetBody *from, const char *encoding, SwarmNetBody *body)
{
	SwarmSpool *spool = swarm_spool_create(CurrentMemoryContext, swarm_s3_max_file_kb * INT64CONST(1024), NULL);
	SwarmCodec *codec = swarm_codec_begin(CurrentMemoryContext, encoding, false);
	SwarmNetBody in = *from;
	char	   *buffer = palloc(64 * 1024);
	int			n;

	while ((n = read_body(&in, buffer, 64 * 1024)) > 0)
		swarm_codec_write(codec, buffer, n, write_spool, spool);
	swarm_codec_end(codec, write_spool, spool);
	swarm_codec_free(codec);
	pfree(buffer);
	swarm_spool_finish(spool, body);
}

/* read_body: the next bytes of an object that was fetched; 0 at its end. */
static int
read_body(SwarmNetBody *body, void *buffer, int most)
{
	int64		n = most;
	const char *piece = swarm_net_body_at(body, body->read, &n);

	if (n <= 0)
		return 0;
	if (piece != NULL)
		memcpy(buffer, piece, n);
	else
	{
		n = pread(body->fd, buffer, n, body->read);
		if (n <= 0)
			ereport(ERROR,
					(errcode_for_file_access(), errmsg("could not read a temporary file: %m")));
	}
	body->read += n;
	return (int) n;
}

/*
 * swarm.s3_get(server, bucket, key, first, length) returns bytea
 */
SWARM_FUNCTION(swarm_s3_get);
Datum
swarm_s3_get(PG_FUNCTION_ARGS)
{
	SwarmS3Call call;
	SwarmNetBody body;
	bytea	   *result;
	int			n;
	int64		first = PG_ARGISNULL(3) ? 0 : PG_GETARG_INT64(3);
	int64		last;

	call_object(&call, fcinfo, "GET");
	if (first < 0 || (!PG_ARGISNULL(4) && PG_GETARG_INT64(4) < 1))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("the first byte must not be less than 0, the length not less than 1")));
	/* a length of all there could be is none */
	if (!PG_ARGISNULL(4) && !pg_add_s64_overflow(first, PG_GETARG_INT64(4) - 1, &last))
		call.headers = list_make1(swarm_s3_pair("range", psprintf("bytes=" INT64_FORMAT "-" INT64_FORMAT, first, last)));
	else if (first > 0)
		call.headers = list_make1(swarm_s3_pair("range", psprintf("bytes=" INT64_FORMAT "-", first)));
	fetch(&call, &body);
	if (body.length > (int64) (MaxAllocSize - VARHDRSZ))
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("object \"%s\" is too large for a bytea", call.key),
				 errhint("Get it in ranges.")));
	result = palloc(body.length + VARHDRSZ);
	SET_VARSIZE(result, body.length + VARHDRSZ);
	for (int64 done = 0; done < body.length; done += n)
	{
		CHECK_FOR_INTERRUPTS();
		n = read_body(&body, VARDATA(result) + done, 1 << 20);
	}
	PG_RETURN_BYTEA_P(result);
}

/*
 * swarm.s3_presign(server, bucket, key, method, expires) returns text
 */
SWARM_FUNCTION(swarm_s3_presign);
Datum
swarm_s3_presign(PG_FUNCTION_ARGS)
{
	SwarmS3Call call;
	char	   *method = argument(fcinfo, 3, "method");
	Interval   *expires = PG_ARGISNULL(4) ? NULL : PG_GETARG_INTERVAL_P(4);
	int64		seconds;

	call_object(&call, fcinfo, "GET");
	if (strcmp(method, "GET") != 0 && strcmp(method, "PUT") != 0 && strcmp(method, "HEAD") != 0 &&
		strcmp(method, "DELETE") != 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("unknown method \"%s\"", method), errhint("Methods are GET, PUT, HEAD and DELETE.")));
	seconds = expires == NULL ? 3600 :
		expires->time / USECS_PER_SEC + (expires->day + expires->month * INT64CONST(30)) * SECS_PER_DAY;
	if (seconds < 1 || seconds > PRESIGN_MAX_S)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("a presigned URL expires after 1 second to 7 days")));
	PG_RETURN_TEXT_P(cstring_to_text(swarm_s3_presign_url(call.server, method, call.bucket, call.key,
														  (int) seconds, NULL)));
}

/* ------------------------------------------------------------------------
 * Import
 * ------------------------------------------------------------------------ */

/* read_import: data source of COPY FROM. */
static int
read_import(void *buffer, int least, int most)
{
	return read_body(import_body, buffer, most);
}

/*
 * swarm.s3_import(server, bucket, key, target, format, options) returns bigint
 */
SWARM_FUNCTION(swarm_s3_import);
Datum
swarm_s3_import(PG_FUNCTION_ARGS)
{
	SwarmS3Call call;
	SwarmNetBody body;
	char	   *format = argument(fcinfo, 4, "format");
	Jsonb	   *options = PG_ARGISNULL(5) ? NULL : PG_GETARG_JSONB_P(5);
	Relation	rel;
	uint64		rows;

	PreventCommandIfReadOnly("s3_import()");
	swarm_check_format(format);
	if (PG_ARGISNULL(3))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED), errmsg("argument \"target\" must not be null")));
	call_object(&call, fcinfo, "GET");
	check_target(PG_GETARG_OID(3), format);
	fetch(&call, &body);
	rel = table_open(PG_GETARG_OID(3), RowExclusiveLock);
	/* the network takes its time: what was allowed then may not be now */
	check_target(PG_GETARG_OID(3), format);
	rows = strcmp(format, "json") == 0 ? import_lines(rel, &body) : import_copy(rel, &body, format, options);
	table_close(rel, NoLock);
	PG_RETURN_INT64(rows);
}

/*
 * check_target: may the caller's rows go there?  COPY, as it is used here,
 * does not look.
 */
static void
check_target(Oid table, const char *format)
{
	if (pg_class_aclcheck(table, GetUserId(), ACL_INSERT) != ACLCHECK_OK)
		aclcheck_error(ACLCHECK_NO_PRIV, OBJECT_TABLE, get_rel_name(table));
	if (check_enable_rls(table, InvalidOid, false) == RLS_ENABLED && strcmp(format, "json") != 0)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("format %s is not possible for a table with row-level security", format),
				 errhint("Use format json.")));
}

static uint64
import_copy(Relation rel, SwarmNetBody *body, const char *format, Jsonb *options)
{
	SwarmNetBody *before = import_body;
	ParseState *pstate = make_parsestate(NULL);
	CopyFromState copy;
	volatile uint64 rows = 0;

	(void) addRangeTableEntryForRelation(pstate, rel, RowExclusiveLock, NULL, false, false);
	PG_TRY();
	{
		import_body = body;
		copy = BeginCopyFrom(pstate, rel, NULL, NULL, false, read_import, NIL,
							 swarm_copy_options(format, options));
		rows = CopyFrom(copy);
		EndCopyFrom(copy);
	}
	PG_FINALLY();
	{
		import_body = before;
	}
	PG_END_TRY();
	free_parsestate(pstate);
	return rows;
}

/*
 * stored_columns: those that a row has, by name, as COPY has them: what is
 * generated is computed again, an identity is the one that comes.
 */
static char *
stored_columns(Relation rel)
{
	TupleDesc	desc = RelationGetDescr(rel);
	StringInfoData columns;

	initStringInfo(&columns);
	for (int i = 0; i < desc->natts; i++)
	{
		Form_pg_attribute column = TupleDescAttr(desc, i);

		if (column->attisdropped || column->attgenerated)
			continue;
		appendStringInfo(&columns, "%s%s", columns.len > 0 ? ", " : "",
						 quote_identifier(NameStr(column->attname)));
	}
	return columns.data;
}

/* import_lines: each line a JSON object whose fields are columns. */
static uint64
import_lines(Relation rel, SwarmNetBody *body)
{
	Oid			types[] = {JSONBOID};
	char	   *table = quote_qualified_identifier(get_namespace_name(RelationGetNamespace(rel)),
												   RelationGetRelationName(rel));
	char	   *buffer = palloc(64 * 1024);
	char	   *columns;
	StringInfoData line;
	SPIPlanPtr	plan;
	MemoryContext context;
	uint64		rows = 0;
	int			n;

	initStringInfo(&line);
	SPI_connect();
	context = AllocSetContextCreate(CurrentMemoryContext, "pg_swarm line", ALLOCSET_DEFAULT_SIZES);
	columns = stored_columns(rel);
	plan = SPI_prepare(psprintf("INSERT INTO %s (%s) OVERRIDING SYSTEM VALUE "
								"SELECT %s FROM pg_catalog.jsonb_populate_record(NULL::%s, $1)",
								table, columns, columns, table), 1, types);
	if (plan == NULL)
		elog(ERROR, "could not prepare the import: %s", SPI_result_code_string(SPI_result));
	while ((n = read_body(body, buffer, 64 * 1024)) > 0)
	{
		char	   *p = buffer;

		while (n > 0)
		{
			char	   *end = memchr(p, '\n', n);
			int			length = end ? end - p : n;

			if (line.len + length > LINE_LONGEST)
				ereport(ERROR,
						(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED), errmsg("a line is too long")));
			appendBinaryStringInfo(&line, p, length);
			p += length + (end != NULL);
			n -= length + (end != NULL);
			if (end == NULL)
				break;
			if (line.len > 0)
			{
				import_line(plan, context, line.data, line.len);
				rows++;
			}
			resetStringInfo(&line);
			CHECK_FOR_INTERRUPTS();
		}
	}
	if (line.len > 0)
	{
		import_line(plan, context, line.data, line.len);
		rows++;
	}
	SPI_finish();
	return rows;
}

/* import_line: `context` is for what it takes to read one, and empty after it. */
static void
import_line(SPIPlanPtr plan, MemoryContext context, char *line, size_t length)
{
	MemoryContext old = MemoryContextSwitchTo(context);
	char	   *text = pg_any_to_server(line, length, PG_UTF8);
	Datum		values[] = {DirectFunctionCall1(jsonb_in, CStringGetDatum(text))};
	int			rc = SPI_execute_plan(plan, values, NULL, false, 0);

	if (rc < 0)
		elog(ERROR, "could not insert a row: %s", SPI_result_code_string(rc));
	MemoryContextSwitchTo(old);
	MemoryContextReset(context);
}

/* ------------------------------------------------------------------------
 * For the views, the documentation and the tests
 * ------------------------------------------------------------------------ */

/*
 * swarm._s3_progress() returns setof record
 */
SWARM_FUNCTION(swarm_s3_progress);
Datum
swarm_s3_progress(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	SwarmUploadProgress *p;
	int			n = swarm_upload_progress_copy(&p);

	InitMaterializedSRF(fcinfo, 0);
	for (int i = 0; i < n; i++)
	{
		Datum		values[6] = {Int64GetDatum(p[i].batch), Int32GetDatum(p[i].no), Int64GetDatum(p[i].sent),
		Int64GetDatum(p[i].total), Int64GetDatum(p[i].ms), CStringGetTextDatum(p[i].step)};
		bool		nulls[6] = {0};

		tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
	}
	return (Datum) 0;
}

/*
 * swarm._s3_endpoints() returns setof record
 */
SWARM_FUNCTION(swarm_s3_endpoint_list);
Datum
swarm_s3_endpoint_list(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	SwarmNetEndpoint *e = palloc(SWARM_NET_ENDPOINTS * sizeof(SwarmNetEndpoint));
	int			n = swarm_net_endpoints(e);

	InitMaterializedSRF(fcinfo, 0);
	for (int i = 0; i < n; i++)
	{
		Datum		values[13];
		bool		nulls[13] = {0};

		values[0] = CStringGetTextDatum(e[i].name);
		values[1] = CStringGetTextDatum(swarm_breaker_state_name(e[i].state));
		nulls[2] = e[i].state == SWARM_BREAKER_CLOSED;
		values[2] = TimestampTzGetDatum(e[i].until);
		values[3] = Int32GetDatum(e[i].harms);
		values[4] = Int32GetDatum(e[i].running);
		nulls[5] = e[i].limit < 1;
		values[5] = Int32GetDatum((int) e[i].limit);
		values[6] = Int64GetDatum(e[i].requests);
		values[7] = Int64GetDatum(e[i].failures);
		values[8] = Int64GetDatum(e[i].slowdowns);
		values[9] = Int64GetDatum(e[i].bytes_sent);
		values[10] = Int64GetDatum(e[i].bytes_received);
		values[11] = Float8GetDatum(e[i].latency_ms);
		values[12] = Float8GetDatum(e[i].latency_max_ms);
		tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
	}
	return (Datum) 0;
}

/*
 * swarm._s3_decisions() returns setof record: the tables of module net and s3
 */
SWARM_FUNCTION(swarm_s3_decisions);
Datum
swarm_s3_decisions(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;

	InitMaterializedSRF(fcinfo, 0);
	for (int i = 0; i < swarm_s3_nrules + swarm_net_nrules; i++)
	{
		const SwarmNetRule *rule = i < swarm_s3_nrules ? &swarm_s3_rules[i] :
		&swarm_net_rules[i - swarm_s3_nrules];
		const char *what = rule->name ? rule->name : rule->from == rule->to ? psprintf("%d", rule->from) :
		psprintf("%d-%d", rule->from, rule->to);
		Datum		values[5] = {CStringGetTextDatum(swarm_net_layer_name(rule->layer)), CStringGetTextDatum(what),
		CStringGetTextDatum(swarm_net_verdict_name(rule->verdict)), BoolGetDatum(rule->harms), CStringGetTextDatum(rule->why)};
		bool		nulls[5] = {0};

		tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
	}
	return (Datum) 0;
}

/*
 * swarm._s3_states() returns setof record: machine, from, event, to, why
 */
SWARM_FUNCTION(swarm_s3_states);
Datum
swarm_s3_states(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;

	InitMaterializedSRF(fcinfo, 0);
	for (int i = 0; i < swarm_upload_nedges + swarm_breaker_nedges; i++)
	{
		Datum		values[5];
		bool		nulls[5] = {0};

		if (i < swarm_upload_nedges)
		{
			const SwarmFileEdge *e = &swarm_upload_edges[i];

			values[0] = CStringGetTextDatum("file");
			values[1] = CStringGetTextDatum(swarm_file_state_name(e->from));
			values[2] = CStringGetTextDatum(swarm_file_event_name(e->event));
			values[3] = CStringGetTextDatum(swarm_file_state_name(e->to));
			values[4] = CStringGetTextDatum(e->why);
		}
		else
		{
			const SwarmBreakerEdge *e = &swarm_breaker_edges[i - swarm_upload_nedges];

			values[0] = CStringGetTextDatum("breaker");
			values[1] = CStringGetTextDatum(swarm_breaker_state_name(e->from));
			values[2] = CStringGetTextDatum(swarm_breaker_event_name(e->event));
			values[3] = CStringGetTextDatum(swarm_breaker_state_name(e->to));
			values[4] = CStringGetTextDatum(e->why);
		}
		tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
	}
	return (Datum) 0;
}

/* pairs_of: the fields of a JSON object of strings. */
static List *
pairs_of(Jsonb *object)
{
	JsonbIterator *it = JsonbIteratorInit(&object->root);
	JsonbValue	v;
	JsonbIteratorToken token;
	List	   *pairs = NIL;
	char	   *name = NULL;

	while ((token = JsonbIteratorNext(&it, &v, true)) != WJB_DONE)
	{
		if (token == WJB_KEY)
			name = pnstrdup(v.val.string.val, v.val.string.len);
		else if (token == WJB_VALUE && v.type == jbvString)
			pairs = lappend(pairs, swarm_s3_pair(name, pnstrdup(v.val.string.val, v.val.string.len)));
	}
	return pairs;
}

/*
 * swarm._s3_sign(method, path, query jsonb, headers jsonb, payload hash, stamp,
 * region, access key, secret key) returns record(canonical, authorization):
 * the signer, for test vectors
 */
SWARM_FUNCTION(swarm_s3_sign);
Datum
swarm_s3_sign(PG_FUNCTION_ARGS)
{
	SwarmS3Sign sign = {
		.method = text_to_cstring(PG_GETARG_TEXT_PP(0)),
		.path = swarm_s3_encode(text_to_cstring(PG_GETARG_TEXT_PP(1)), true),
		.query = pairs_of(PG_GETARG_JSONB_P(2)),
		.headers = pairs_of(PG_GETARG_JSONB_P(3)),
		.payload_hash = text_to_cstring(PG_GETARG_TEXT_PP(4)),
		.stamp = text_to_cstring(PG_GETARG_TEXT_PP(5)),
		.region = text_to_cstring(PG_GETARG_TEXT_PP(6)),
		.access_key = text_to_cstring(PG_GETARG_TEXT_PP(7)),
		.secret_key = text_to_cstring(PG_GETARG_TEXT_PP(8))
	};
	char	   *canonical;
	char	   *authorization = swarm_s3_authorization(&sign, &canonical);
	Datum		values[2] = {CStringGetTextDatum(canonical), CStringGetTextDatum(authorization)};
	bool		nulls[2] = {0};
	TupleDesc	desc;

	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	return HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(desc), values, nulls));
}
