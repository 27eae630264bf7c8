/*
 * upload_sql.c
 *	  SQL functions for batches: upload, wait, cancel, retry.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/xact.h"
#include "catalog/namespace.h"
#include "catalog/pg_type.h"
#include "executor/executor.h"
#include "funcapi.h"
#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "tcop/utility.h"
#include "utils/acl.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/json.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "base/clock.h"
#include "base/export.h"
#include "base/shmem.h"
#include "base/spi.h"
#include "upload/upload_int.h"

#define ARGUMENT_BYTES	(512 * 1024 * 1024L)

/* Options of an upload that become a header as they are. */
static const struct
{
	const char *option;
	const char *header;
}			header_options[] = {
	{"storage_class", "x-amz-storage-class"}, {"encryption", "x-amz-server-side-encryption"},
	{"kms_key", "x-amz-server-side-encryption-aws-kms-key-id"}, {"cache_control", "cache-control"},
	{"content_disposition", "content-disposition"}, {"content_encoding", "content-encoding"},
	{"acl", "x-amz-acl"}
};

static void run_here(SwarmUpload *upload);
static SwarmUpload *upload_from_arguments(FunctionCallInfo fcinfo, char **fault);
static char *read_files(SwarmUpload *upload, ArrayType *array, Jsonb *options);
static void read_file(SwarmUploadFile *file, HeapTupleHeader row, const char *prefix);
static Jsonb *with_search_path(Jsonb *ref);
static void refuse_same_keys(const SwarmUpload *upload);
static char *size_fault(SwarmUpload *upload);
static void insert_batch(SwarmUpload *upload);
static void insert_file(const SwarmUploadFile *file, SPIPlanPtr *plan);
static SwarmUpload *load_visible(int64 batch, Oid *owner, int64 *job, bool *finished, int64 *ms);
static Jsonb *refusal(const char *message);
static void compress_object(SwarmUpload *upload, const char *name);
static char *tags_header(Jsonb *options);

/* ------------------------------------------------------------------------
 * Upload
 * ------------------------------------------------------------------------ */

/*
 * swarm.s3_upload(server, bucket, files, options) returns bigint
 */
SWARM_FUNCTION(swarm_s3_upload);
Datum
swarm_s3_upload(PG_FUNCTION_ARGS)
{
	char	   *fault;
	SwarmUpload *upload;

	PreventCommandIfReadOnly("s3_upload()");
	PreventCommandDuringRecovery("s3_upload()");
	upload = upload_from_arguments(fcinfo, &fault);
	if (fault != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE), errmsg("%s", fault)));
	swarm_upload_before(upload);
	insert_batch(upload);
	PG_RETURN_INT64(upload->batch);
}

/*
 * swarm.s3_upload_sync(server, bucket, files, options) returns jsonb
 */
SWARM_FUNCTION(swarm_s3_upload_sync);
Datum
swarm_s3_upload_sync(PG_FUNCTION_ARGS)
{
	char	   *fault;
	SwarmUpload *upload = upload_from_arguments(fcinfo, &fault);
	int64		started = swarm_net_ms();

	if (fault != NULL)
		PG_RETURN_JSONB_P(refusal(fault));
	upload->server = swarm_s3_server(upload->server_name);
	swarm_upload_options(upload, upload->options);
	swarm_upload_read_fallback(upload);
	upload->in_transaction = true;
	swarm_upload_before(upload);
	run_here(upload);
	swarm_upload_after(upload);
	PG_RETURN_JSONB_P(swarm_upload_result(upload, swarm_net_ms() - started, true));
}

/*
 * swarm.s3_export(server, bucket, key, query, format, options) returns jsonb
 */
SWARM_FUNCTION(swarm_s3_export);
Datum
swarm_s3_export(PG_FUNCTION_ARGS)
{
	static const char *const types[][2] = {{"csv", "text/csv"}, {"text", "text/tab-separated-values"},
	{"json", "application/x-ndjson"}, {"binary", "application/octet-stream"}};
	SwarmUpload *upload = palloc0(sizeof(SwarmUpload));
	SwarmUploadFile *file = palloc0(sizeof(SwarmUploadFile));
	SwarmSpool *spool;
	Jsonb	   *options;
	char	   *compress;
	char	   *arguments[5];
	int64		started = swarm_net_ms();

	for (int i = 0; i < lengthof(arguments); i++)
	{
		if (PG_ARGISNULL(i))
			ereport(ERROR,
					(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
					 errmsg("only the options of s3_export() may be null")));
		arguments[i] = i == 0 ? pstrdup(NameStr(*PG_GETARG_NAME(0))) : text_to_cstring(PG_GETARG_TEXT_PP(i));
	}
	upload->context = CurrentMemoryContext;
	upload->place = -1;
	upload->in_transaction = true;
	upload->server_name = arguments[0];
	upload->bucket = arguments[1];
	upload->server = swarm_s3_server(upload->server_name);
	upload->nfiles = 1;
	upload->files = file;
	swarm_s3_check_object(upload->server, upload->bucket, arguments[2]);
	options = PG_ARGISNULL(5) ? NULL : PG_GETARG_JSONB_P(5);
	compress = swarm_json_text(options, "compress");
	if (compress != NULL)
	{
		compress_object(upload, compress);
		options = DatumGetJsonbP(DirectFunctionCall2(jsonb_delete, JsonbPGetDatum(options),
													 CStringGetTextDatum("compress")));
	}
	spool = swarm_spool_create(CurrentMemoryContext, swarm_s3_max_file_kb * INT64CONST(1024),
							   compress ? swarm_codec_begin(CurrentMemoryContext, compress, true) : NULL);
	swarm_source_query(spool, arguments[3], arguments[4], options);
	file->upload = upload;
	file->no = 1;
	file->name = file->key = arguments[2];
	file->content_type = "application/octet-stream";
	for (int i = 0; i < lengthof(types); i++)
	{
		if (strcmp(types[i][0], arguments[4]) == 0)
			file->content_type = (char *) types[i][1];
	}
	file->source.kind = "spool";
	file->source.spool = spool;
	swarm_upload_before(upload);
	run_here(upload);
	swarm_upload_after(upload);
	if (file->state != FILE_DONE)
		ereport(ERROR,
				(errcode(file->status > 0 ? ERRCODE_EXTERNAL_ROUTINE_EXCEPTION : ERRCODE_CONNECTION_FAILURE),
				 errmsg("could not store \"%s\" in bucket \"%s\": %s", file->key, upload->bucket, file->error),
				 errdetail("Error %s, status %d, %d attempts.", file->code, file->status, file->attempts)));
	PG_RETURN_JSONB_P(swarm_upload_result(upload, swarm_net_ms() - started, true));
}

/*
 * run_here: an error, a cancelled statement above all, must leave no parts
 * behind: abort what was begun, then raise it.
 */
static void
run_here(SwarmUpload *upload)
{
	PG_TRY();
	{
		swarm_upload_run(upload);
	}
	PG_CATCH();
	{
		ErrorData  *edata;

		MemoryContextSwitchTo(upload->context);
		edata = CopyErrorData();
		FlushErrorState();
		swarm_upload_await_ids(upload);
		swarm_upload_drop(upload);
		upload->cancelled = true;
		for (int i = 0; i < upload->nfiles; i++)
		{
			SwarmUploadFile *file = &upload->files[i];

			file->outcome = FILE_CANCELLED;
			if (file->state < FILE_DONE)
				file->state = file->upload_id ? FILE_ABORTING : FILE_CANCELLED;
		}
		swarm_upload_run(upload);
		swarm_upload_end_here(upload);
		ReThrowError(edata);
	}
	PG_END_TRY();
	swarm_upload_end_here(upload);
}

/*
 * upload_from_arguments: check everything that can be checked before anything
 * is sent.  *fault: why it is refused, in words for the application; other
 * faults are errors.
 */
static SwarmUpload *
upload_from_arguments(FunctionCallInfo fcinfo, char **fault)
{
	static const char *const names[] = {"server", "bucket", "files"};
	SwarmUpload *upload = palloc0(sizeof(SwarmUpload));
	Jsonb	   *options = PG_ARGISNULL(3) ? NULL : PG_GETARG_JSONB_P(3);
	SwarmS3Server *server;

	for (int i = 0; i < lengthof(names); i++)
	{
		if (PG_ARGISNULL(i))
			ereport(ERROR,
					(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
					 errmsg("argument \"%s\" must not be null", names[i])));
	}
	upload->context = CurrentMemoryContext;
	upload->place = -1;
	upload->server_name = pstrdup(NameStr(*PG_GETARG_NAME(0)));
	upload->bucket = text_to_cstring(PG_GETARG_TEXT_PP(1));
	upload->options = options;
	server = swarm_s3_server(upload->server_name);
	swarm_upload_options(upload, options);
	swarm_s3_check_object(server, upload->bucket, NULL);
	*fault = read_files(upload, PG_GETARG_ARRAYTYPE_P(2), options);
	if (*fault == NULL)
	{
		for (int i = 0; i < upload->nfiles; i++)
			swarm_s3_check_object(server, upload->bucket, upload->files[i].key);
		refuse_same_keys(upload);
		*fault = size_fault(upload);
	}
	return upload;
}

static char *
read_files(SwarmUpload *upload, ArrayType *array, Jsonb *options)
{
	Datum	   *elements;
	bool	   *nulls;
	int			n;
	char		prefix[64] = "";

	deconstruct_array(array, ARR_ELEMTYPE(array), -1, false, TYPALIGN_DOUBLE, &elements, &nulls, &n);
	if (n == 0)
		return pstrdup("No files uploaded");
	if (n > swarm_s3_max_files)
		return psprintf("Maximum %d files allowed", swarm_s3_max_files);
	if (swarm_upload_option_timestamped(options))
	{
		/*
		 * as the original: new Date().toISOString().replace(/[:.]/g,
		 * '-').slice(0, 19)
		 */
		pg_time_t	now = timestamptz_to_time_t(swarm_now());
		struct pg_tm *t = pg_gmtime(&now);

		snprintf(prefix, sizeof(prefix), "uploads/%04d-%02d-%02dT%02d-%02d-%02d_",
				 t->tm_year + 1900, t->tm_mon + 1, t->tm_mday, t->tm_hour, t->tm_min, t->tm_sec);
	}
	upload->nfiles = n;
	upload->files = MemoryContextAllocExtended(CurrentMemoryContext, n * sizeof(SwarmUploadFile),
											   MCXT_ALLOC_HUGE | MCXT_ALLOC_ZERO);
	for (int i = 0; i < n; i++)
	{
		SwarmUploadFile *file = &upload->files[i];

		file->upload = upload;
		file->no = i + 1;
		file->progress = -1;
		if (nulls[i])
			ereport(ERROR,
					(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED), errmsg("file %d is null", i + 1)));
		read_file(file, DatumGetHeapTupleHeader(elements[i]), prefix);
	}
	return NULL;
}

/* read_file: a value of type swarm.s3_file. */
static void
read_file(SwarmUploadFile *file, HeapTupleHeader row, const char *prefix)
{
	bool		isnull;
	Datum		d = GetAttributeByNum(row, 1, &isnull);
	HeapTupleHeader source;

	if (isnull)
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED), errmsg("the key of file %d is null", file->no)));
	file->name = TextDatumGetCString(d);
	file->key = psprintf("%s%s", prefix, file->name);
	d = GetAttributeByNum(row, 2, &isnull);
	if (isnull)
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED), errmsg("file \"%s\" has no source", file->name)));
	source = DatumGetHeapTupleHeader(d);
	d = GetAttributeByNum(row, 3, &isnull);
	file->content_type = isnull ? pstrdup("application/octet-stream") : TextDatumGetCString(d);
	swarm_s3_check_header("a content type", file->content_type);
	d = GetAttributeByNum(row, 4, &isnull);
	file->metadata = isnull ? NULL : DatumGetJsonbP(d);
	swarm_upload_check_metadata(file->metadata);

	d = GetAttributeByNum(source, 1, &isnull);
	if (isnull)
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED), errmsg("file \"%s\" has no source", file->name)));
	file->source.kind = TextDatumGetCString(d);
	d = GetAttributeByNum(source, 2, &isnull);
	file->source.data = isnull ? NULL : (bytea *) DatumGetPointer(d);
	d = GetAttributeByNum(source, 3, &isnull);
	file->source.ref = isnull ? NULL : DatumGetJsonbP(d);
	if (strcmp(file->source.kind, "query") == 0 && file->source.ref != NULL)
		file->source.ref = with_search_path(file->source.ref);
}

/* with_search_path: a query shall find what it would find now. */
static Jsonb *
with_search_path(Jsonb *ref)
{
	StringInfoData path;

	initStringInfo(&path);
	appendStringInfoString(&path, "{\"search_path\": ");
	escape_json(&path, namespace_search_path);
	appendStringInfoChar(&path, '}');
	return DatumGetJsonbP(DirectFunctionCall2(jsonb_concat, JsonbPGetDatum(ref),
											  DirectFunctionCall1(jsonb_in, CStringGetDatum(path.data))));
}

static int
compare_keys(const void *a, const void *b)
{
	return strcmp(*(char *const *) a, *(char *const *) b);
}

/* refuse_same_keys: of two files with one key, one would be lost. */
static void
refuse_same_keys(const SwarmUpload *upload)
{
	char	  **keys = palloc(upload->nfiles * sizeof(char *));

	for (int i = 0; i < upload->nfiles; i++)
		keys[i] = upload->files[i].key;
	qsort(keys, upload->nfiles, sizeof(char *), compare_keys);
	for (int i = 1; i < upload->nfiles; i++)
	{
		if (strcmp(keys[i - 1], keys[i]) == 0)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("two files have the key \"%s\"", keys[i])));
	}
}

static char *
size_fault(SwarmUpload *upload)
{
	int64		limit = swarm_s3_max_file_kb * INT64CONST(1024);
	int64		arguments = 0;

	for (int i = 0; i < upload->nfiles; i++)
	{
		SwarmUploadFile *file = &upload->files[i];

		file->size = swarm_source_check(&file->source, file->name);
		if (file->size > limit)
			return psprintf("Validation failed: File %s exceeds %dMB limit", file->name,
							swarm_s3_max_file_kb / 1024);
		if (file->source.data != NULL)
			arguments += file->size;
	}
	if (arguments > ARGUMENT_BYTES)
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("the data of the files are too large to be passed as arguments"),
				 errhint("Pass references: swarm.from_column(), swarm.from_large_object(), swarm.from_file() or swarm.from_query().")));
	return NULL;
}

static void
insert_batch(SwarmUpload *upload)
{
	SwarmSpi	spi;
	Oid			types[] = {OIDOID, TEXTOID, TEXTOID, JSONBOID};
	Datum		values[] = {ObjectIdGetDatum(GetUserId()), CStringGetTextDatum(upload->server_name),
	CStringGetTextDatum(upload->bucket), (Datum) 0};
	Oid			job_types[] = {INT8OID, INT8OID};
	Datum		job_values[2];
	SPIPlanPtr	plan = NULL;

	values[3] = upload->options ? JsonbPGetDatum(upload->options) :
		DirectFunctionCall1(jsonb_in, CStringGetDatum("{}"));
	swarm_spi_begin(&spi);
	swarm_spi_execute("INSERT INTO swarm._s3_batch (owner, server, bucket, options) "
					  "VALUES ($1::regrole, $2, $3, $4) RETURNING id", 4, types, values, NULL);
	upload->batch = swarm_spi_int64(0, 1);
	for (int i = 0; i < upload->nfiles; i++)
		insert_file(&upload->files[i], &plan);
	swarm_spi_end(&spi);
	job_values[0] = Int64GetDatum(upload->batch);
	job_values[1] = Int64GetDatum(swarm_upload_enqueue(upload->batch, false));
	swarm_spi_begin(&spi);
	swarm_spi_execute("UPDATE swarm._s3_batch SET job = $2 WHERE id = $1", 2, job_types, job_values, NULL);
	swarm_spi_end(&spi);
}

/* insert_file: *plan is kept for the next one. */
static void
insert_file(const SwarmUploadFile *file, SPIPlanPtr *plan)
{
	Oid			types[] = {INT8OID, INT4OID, TEXTOID, TEXTOID, TEXTOID, JSONBOID, BYTEAOID, TEXTOID, JSONBOID,
	INT8OID};
	Datum		values[10];
	char		nulls[11] = "          ";
	int			rc;
	bool		is_bytea = strcmp(file->source.kind, "bytea") == 0;

	values[0] = Int64GetDatum(file->upload->batch);
	values[1] = Int32GetDatum(file->no);
	values[2] = CStringGetTextDatum(file->name);
	values[3] = CStringGetTextDatum(file->key);
	values[4] = CStringGetTextDatum(file->source.kind);
	nulls[5] = file->source.ref ? ' ' : 'n';
	values[5] = PointerGetDatum(file->source.ref);
	nulls[6] = is_bytea ? ' ' : 'n';
	values[6] = PointerGetDatum(file->source.data);
	values[7] = CStringGetTextDatum(file->content_type);
	nulls[8] = file->metadata ? ' ' : 'n';
	values[8] = PointerGetDatum(file->metadata);
	nulls[9] = file->size >= 0 ? ' ' : 'n';
	values[9] = Int64GetDatum(file->size);
	if (*plan == NULL)
		*plan = SPI_prepare("INSERT INTO swarm._s3_file (batch, no, name, key, kind, ref, data, content_type, metadata, size) "
							"VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)", 10, types);
	rc = *plan ? SPI_execute_plan(*plan, values, nulls, false, 0) : SPI_result;
	if (rc != SPI_OK_INSERT)
		elog(ERROR, "could not store a file: %s", SPI_result_code_string(rc));
}

/* ------------------------------------------------------------------------
 * Options
 * ------------------------------------------------------------------------ */

static char *
string_of(const JsonbValue *v)
{
	return v->type == jbvString ? pnstrdup(v->val.string.val, v->val.string.len) : NULL;
}

/*
 * swarm_upload_options: check them, and keep what they mean for requests.
 */
void
swarm_upload_options(SwarmUpload *upload, Jsonb *options)
{
	JsonbIterator *it;
	JsonbValue	v;
	JsonbIteratorToken token;
	char	   *key = NULL;

	upload->headers = NIL;
	upload->crc32c = upload->sha256 = false;
	upload->compress = NULL;
	if (options == NULL)
		return;
	if (!JB_ROOT_IS_OBJECT(options))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE), errmsg("the options must be a JSON object")));
	it = JsonbIteratorInit(&options->root);
	while ((token = JsonbIteratorNext(&it, &v, true)) != WJB_DONE)
	{
		bool		known = false;

		if (token == WJB_KEY)
			key = string_of(&v);
		if (token != WJB_VALUE)
			continue;
		for (int i = 0; i < lengthof(header_options); i++)
		{
			if (strcmp(key, header_options[i].option) == 0 && v.type == jbvString)
			{
				known = true;
				swarm_s3_check_header(key, string_of(&v));
				upload->headers = lappend(upload->headers,
										  swarm_s3_pair(header_options[i].header, string_of(&v)));
			}
		}
		if (strcmp(key, "timestamped") == 0)
			known = v.type == jbvBool;
		else if (strcmp(key, "checksum") == 0 && v.type == jbvString)
		{
			upload->crc32c = strcmp(string_of(&v), "crc32c") == 0;
			upload->sha256 = strcmp(string_of(&v), "sha256") == 0;
			known = upload->crc32c || upload->sha256;
		}
		else if (strcmp(key, "compress") == 0 && v.type == jbvString)
		{
			compress_object(upload, string_of(&v));
			known = true;
		}
		else if (strcmp(key, "tags") == 0 && v.type == jbvBinary)
		{
			known = true;
			upload->headers = lappend(upload->headers, swarm_s3_pair("x-amz-tagging", tags_header(options)));
		}
		if (!known)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("unknown option \"%s\", or its value is not possible", key),
					 errhint("Options are timestamped, compress (gzip or zstd), checksum (crc32c or sha256), tags (an object), encryption, kms_key, storage_class, cache_control, content_disposition, content_encoding and acl.")));
	}
	if (upload->compress != NULL && swarm_json_text(options, "content_encoding") != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("options \"compress\" and \"content_encoding\" exclude each other")));
}

/* compress_object: what is sent is compressed, and says so. */
static void
compress_object(SwarmUpload *upload, const char *name)
{
	if (strcmp(name, "gzip") != 0 && strcmp(name, "zstd") != 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("unknown compression \"%s\"", name), errhint("It is gzip or zstd.")));
	swarm_codec_check(name);
	upload->compress = strcmp(name, "gzip") == 0 ? "gzip" : "zstd";
	upload->headers = lappend(upload->headers, swarm_s3_pair("content-encoding", name));
}

/* tags_header: {"a": "b"} as a=b, encoded. */
static char *
tags_header(Jsonb *options)
{
	JsonbValue	buffer;
	JsonbValue *tags = getKeyJsonValueFromContainer(&options->root, "tags", 4, &buffer);
	JsonbIterator *it;
	JsonbValue	v;
	JsonbIteratorToken token;
	List	   *pairs = NIL;
	char	   *key = NULL;

	it = JsonbIteratorInit(tags->val.binary.data);
	while ((token = JsonbIteratorNext(&it, &v, true)) != WJB_DONE)
	{
		if (token == WJB_KEY)
			key = string_of(&v);
		else if (token == WJB_VALUE && key != NULL && v.type == jbvString)
			pairs = lappend(pairs, swarm_s3_pair(key, string_of(&v)));
		else if (token == WJB_VALUE || token == WJB_ELEM)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE), errmsg("tags must be an object of strings")));
	}
	return swarm_s3_query(pairs);
}

bool
swarm_upload_option_timestamped(Jsonb *options)
{
	char	   *value = swarm_json_text(options, "timestamped");

	return value != NULL && strcmp(value, "true") == 0;
}

/* swarm_upload_check_metadata: names and values will stand in headers. */
void
swarm_upload_check_metadata(Jsonb *metadata)
{
	JsonbIterator *it;
	JsonbValue	v;
	JsonbIteratorToken token;
	int			total = 0;

	if (metadata == NULL)
		return;
	if (!JB_ROOT_IS_OBJECT(metadata))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE), errmsg("metadata must be a JSON object")));
	it = JsonbIteratorInit(&metadata->root);
	while ((token = JsonbIteratorNext(&it, &v, true)) != WJB_DONE)
	{
		char	   *text = token == WJB_KEY || token == WJB_VALUE ? string_of(&v) : NULL;

		if (token == WJB_VALUE && text == NULL)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE), errmsg("values of metadata must be strings")));
		if (text == NULL)
			continue;
		total += strlen(text);
		swarm_s3_check_header("metadata", text);
		if (token == WJB_KEY &&
			(*text == '\0' || strspn(text, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_") != strlen(text)))
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("name \"%s\" of metadata is not possible", text),
					 errhint("Names consist of letters, digits, hyphens and underscores.")));
	}
	if (total > 2048)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE), errmsg("metadata has more than 2048 bytes")));
}

/* ------------------------------------------------------------------------
 * Results
 * ------------------------------------------------------------------------ */

static void
append_json(StringInfo out, const char *name, const char *value)
{
	appendStringInfo(out, ", \"%s\": ", name);
	if (value == NULL || *value == '\0')
		appendStringInfoString(out, "null");
	else
		escape_json(out, value);
}

static Jsonb *
refusal(const char *message)
{
	StringInfoData out;

	initStringInfo(&out);
	appendStringInfoString(&out, "{\"status\": 400, \"success\": false, \"count\": 0, \"files\": [], \"failed\": []");
	append_json(&out, "message", message);
	appendStringInfoChar(&out, '}');
	return DatumGetJsonbP(DirectFunctionCall1(jsonb_in, CStringGetDatum(out.data)));
}

/*
 * swarm_upload_result: what the original endpoint answered.  `finished` false:
 * 202, with what there is so far.
 */
Jsonb *
swarm_upload_result(SwarmUpload *upload, int64 ms, bool finished)
{
	StringInfoData files,
				failed,
				out;
	int			ndone = 0;
	int			nfailed = 0;
	int64		bytes = 0;
	const char *first_error = "";
	char	   *message;
	int			status;

	initStringInfo(&files);
	initStringInfo(&failed);
	initStringInfo(&out);
	for (int i = 0; i < upload->nfiles; i++)
	{
		SwarmUploadFile *file = &upload->files[i];

		if (file->state == FILE_DONE)
		{
			appendStringInfoString(&files, ndone++ ? ", {\"originalName\": " : "{\"originalName\": ");
			escape_json(&files, file->name);
			append_json(&files, "path", file->key);
			appendStringInfo(&files, ", \"size\": " INT64_FORMAT, file->size);
			append_json(&files, "type", file->content_type);
			append_json(&files, "etag", file->etag);
			append_json(&files, "server", file->server_name ? file->server_name : upload->server_name);
			appendStringInfo(&files, ", \"attempts\": %d, \"ms\": " INT64_FORMAT "}", file->attempts, file->ms);
			bytes += file->size;
		}
		else if (file->state > FILE_DONE)
		{
			if (nfailed == 0)
				first_error = file->error;
			appendStringInfoString(&failed, nfailed++ ? ", {\"originalName\": " : "{\"originalName\": ");
			escape_json(&failed, file->name);
			append_json(&failed, "error", file->error);
			append_json(&failed, "code", file->code);
			append_json(&failed, "server", file->server_name ? file->server_name : upload->server_name);
			appendStringInfo(&failed, ", \"http\": %d, \"attempts\": %d}", file->status, file->attempts);
		}
	}
	if (!finished)
	{
		status = 202;
		message = psprintf("still uploading: %d of %d files", ndone, upload->nfiles);
	}
	else if (nfailed == 0)
	{
		status = 200;
		message = psprintf("%d uploaded", ndone);
	}
	else if (ndone > 0)
	{
		status = 207;
		message = psprintf("%d uploaded, %d failed", ndone, nfailed);
	}
	else
	{
		status = 500;
		message = psprintf("All uploads failed: %s", first_error);
	}
	appendStringInfo(&out, "{\"status\": %d, \"success\": %s, \"count\": %d, \"files\": [%s], \"failed\": [%s]",
					 status, status == 200 || status == 207 ? "true" : "false", ndone, files.data, failed.data);
	append_json(&out, "message", message);
	appendStringInfo(&out, ", \"ms\": " INT64_FORMAT ", \"bytes\": " INT64_FORMAT ", \"rate\": " INT64_FORMAT "}",
					 ms, bytes, ms > 0 ? bytes * 1000 / ms : bytes);
	return DatumGetJsonbP(DirectFunctionCall1(jsonb_in, CStringGetDatum(out.data)));
}

/* ------------------------------------------------------------------------
 * Wait, cancel, retry
 * ------------------------------------------------------------------------ */

/* load_visible: a batch that the caller may see; error 42704 otherwise. */
static SwarmUpload *
load_visible(int64 batch, Oid *owner, int64 *job, bool *finished, int64 *ms)
{
	SwarmUpload *upload;

	CommandCounterIncrement();
	upload = swarm_upload_load(CurrentMemoryContext, batch, owner, job, finished, ms);
	if (upload == NULL || !has_privs_of_role(GetUserId(), *owner))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT), errmsg("batch " INT64_FORMAT " does not exist", batch)));
	return upload;
}

/*
 * swarm.s3_wait(batch, timeout) returns jsonb
 */
SWARM_FUNCTION(swarm_s3_wait);
Datum
swarm_s3_wait(PG_FUNCTION_ARGS)
{
	int64		batch = PG_GETARG_INT64(0);
	Oid			types[] = {INT8OID, INTERVALOID};
	Datum		values[] = {0, PG_GETARG_DATUM(1)};
	char		nulls[] = {' ', PG_ARGISNULL(1) ? 'n' : ' '};
	int64		job;
	int64		ms;
	bool		finished;
	Oid			owner;
	SwarmUpload *upload;

	(void) swarm_wait_deadline(fcinfo, 1);
	if (PG_ARGISNULL(0))
		PG_RETURN_NULL();
	upload = load_visible(batch, &owner, &job, &finished, &ms);
	if (!finished)
	{
		MemoryContext caller = CurrentMemoryContext;
		bool		live = false;
		SwarmSpi	spi;

		values[0] = Int64GetDatum(job);
		SPI_connect();
		if (SPI_execute_with_args("SELECT swarm.job_wait($1, $2)", 2, types, values, nulls, false, 1) != SPI_OK_SELECT)
			elog(ERROR, "could not wait for job " INT64_FORMAT, job);
		SPI_finish();
		upload = load_visible(batch, &owner, &job, &finished, &ms);
		values[0] = Int64GetDatum(job);
		swarm_spi_begin(&spi);
		live = swarm_spi_query("SELECT FROM swarm._job WHERE id = $1", 1, types, values, NULL) > 0;
		swarm_spi_end(&spi);
		MemoryContextSwitchTo(caller);
		for (int i = 0; !finished && !live && i < upload->nfiles; i++)
		{
			SwarmUploadFile *file = &upload->files[i];

			if (file->state >= FILE_DONE)
				continue;
			file->state = FILE_FAILED;
			strlcpy(file->code, "JobEnded", sizeof(file->code));
			strlcpy(file->error, "the job that uploads the batch has ended without it", sizeof(file->error));
		}
		finished = finished || !live;
	}
	PG_RETURN_JSONB_P(swarm_upload_result(upload, ms, finished));
}

/*
 * swarm.s3_cancel(batch) returns boolean
 */
SWARM_FUNCTION(swarm_s3_cancel);
Datum
swarm_s3_cancel(PG_FUNCTION_ARGS)
{
	int64		batch = PG_GETARG_INT64(0);
	int64		job;
	int64		ms;
	bool		finished;
	SwarmSpi	spi;
	Oid			types[] = {INT8OID};
	Datum		values[] = {Int64GetDatum(batch)};
	Oid			owner;

	PreventCommandIfReadOnly("s3_cancel()");
	(void) load_visible(batch, &owner, &job, &finished, &ms);
	if (finished)
		PG_RETURN_BOOL(false);
	swarm_spi_begin(&spi);
	finished = swarm_spi_execute("UPDATE swarm._s3_batch SET cancelled = true WHERE id = $1 AND finished_at IS NULL",
								 1, types, values, NULL) == 0;
	swarm_spi_end(&spi);
	if (!finished)
		swarm_upload_ask_stop_at_commit(batch);
	PG_RETURN_BOOL(!finished);
}

/*
 * swarm.s3_retry(batch) returns int: the files that are uploaded again, with
 * the rights of the batch's owner, whoever of his role's members asks: what is
 * read and where it goes was his choice.
 */
SWARM_FUNCTION(swarm_s3_retry);
Datum
swarm_s3_retry(PG_FUNCTION_ARGS)
{
	int64		batch = PG_GETARG_INT64(0);
	int64		job;
	int64		ms;
	bool		finished;
	SwarmSpi	spi;
	Oid			types[] = {INT8OID, INT8OID};
	Datum		values[] = {Int64GetDatum(batch), 0};
	int			files;
	SwarmUpload *upload;
	Oid			owner;
	Oid			user;
	int			sec_context;

	PreventCommandIfReadOnly("s3_retry()");
	upload = load_visible(batch, &owner, &job, &finished, &ms);
	GetUserIdAndSecContext(&user, &sec_context);
	SetUserIdAndSecContext(owner, sec_context | SECURITY_LOCAL_USERID_CHANGE);
	swarm_s3_server_check(upload->server_name);
	SetUserIdAndSecContext(user, sec_context);
	swarm_spi_begin(&spi);
	values[1] = Int64GetDatum(job);
	if (!finished && swarm_spi_query("SELECT FROM swarm._job WHERE id = $2", 2, types, values, NULL) > 0)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("batch " INT64_FORMAT " is still being uploaded", batch),
				 errhint("Wait for it with swarm.s3_wait(), or cancel it with swarm.s3_cancel().")));
	if (swarm_spi_execute("SELECT FROM swarm._s3_batch WHERE id = $1 AND job = $2 FOR UPDATE",
						  2, types, values, NULL) == 0)
		ereport(ERROR,
				(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
				 errmsg("batch " INT64_FORMAT " was retried concurrently", batch)));
	files = (int) swarm_spi_execute("UPDATE swarm._s3_file SET state = 'waiting', code = NULL, error = NULL, "
									"status = NULL, finished_at = NULL, server = CASE WHEN upload_id IS NOT NULL THEN server END WHERE batch = $1 AND state <> 'done'",
									1, types, values, NULL);
	swarm_spi_end(&spi);
	if (files > 0)
	{
		SetUserIdAndSecContext(owner, sec_context | SECURITY_LOCAL_USERID_CHANGE);
		values[1] = Int64GetDatum(swarm_upload_enqueue(batch, false));
		SetUserIdAndSecContext(user, sec_context);
		swarm_spi_begin(&spi);
		swarm_spi_execute("UPDATE swarm._s3_batch SET job = $2, cancelled = false, finished_at = NULL, started_at = NULL "
						  "WHERE id = $1", 2, types, values, NULL);
		swarm_spi_end(&spi);
	}
	PG_RETURN_INT32(files);
}
