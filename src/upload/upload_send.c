/*
 * upload_send.c
 *	  The requests of a file on its way: what each state of it sends.
 */
#include "postgres.h"

#include "lib/stringinfo.h"
#include "utils/memutils.h"

#include "base/fault.h"
#include "upload/upload_int.h"

#define PARTS_AT_ONCE	4		/* of one file */
#define STOP_STALL_MS	5000	/* a cancelled batch waits no longer to abort */

static SwarmUploadStep *new_step(SwarmUploadFile *file, const char *method);
static void submit(SwarmUploadStep *step);
static List *object_headers(SwarmUploadFile *file);
static void send_put(SwarmUploadFile *file);
static void send_search(SwarmUploadFile *file);
static void send_list(SwarmUploadFile *file);
static void send_create(SwarmUploadFile *file);
static void send_complete(SwarmUploadFile *file);
static void send_abort(SwarmUploadFile *file);

/* swarm_upload_send: what belongs to the state the file is in. */
void
swarm_upload_send(SwarmUploadFile *file)
{
	switch (file->state)
	{
		case FILE_PUTTING:
			send_put(file);
			break;
		case FILE_SEARCHING:
			send_search(file);
			break;
		case FILE_LISTING:
			send_list(file);
			break;
		case FILE_CREATING:
			send_create(file);
			break;
		case FILE_PARTS:
			swarm_upload_send_parts(file);
			break;
		case FILE_COMPLETING:
			send_complete(file);
			break;
		case FILE_CHECKING:
			submit(new_step(file, "HEAD"));
			break;
		case FILE_CLEANING:
		case FILE_ABORTING:
			send_abort(file);
			break;
		default:
			elog(ERROR, "nothing to send for a file that is %s", swarm_file_state_name(file->state));
	}
}

/* swarm_upload_part: the bytes of a part; it counts from 1. */
SwarmNetBody
swarm_upload_part(const SwarmUploadFile *file, int part)
{
	int64		offset = (part - 1) * file->part_size;
	SwarmNetBody body = file->body;

	body.length = Min(file->part_size, file->size - offset);
	body.offset = offset;
	return body;
}

static SwarmUploadStep *
new_step(SwarmUploadFile *file, const char *method)
{
	MemoryContext context;
	SwarmUploadStep *step;

	if (file->context == NULL)
		file->context = AllocSetContextCreate(file->upload->context, "pg_swarm file", ALLOCSET_SMALL_SIZES);
	context = AllocSetContextCreate(file->context, "pg_swarm step", ALLOCSET_SMALL_SIZES);
	step = MemoryContextAllocZero(context, sizeof(SwarmUploadStep));
	step->file = file;
	step->context = context;
	step->call.server = file->server;
	step->call.method = method;
	step->call.bucket = file->upload->bucket;
	step->call.key = file->key;
	step->call.body.fd = -1;
	step->call.caller = step;
	MemoryContextSwitchTo(context);
	return step;
}

static void
submit(SwarmUploadStep *step)
{
	SwarmUpload *upload = step->file->upload;
	MemoryContext files = step->file->context;

	step->request = swarm_s3_request(step->context, &step->call);
	step->request->answer_limit = 1024 * 1024;
	if (upload->cancelled)
	{
		step->request->stall_ms = STOP_STALL_MS;
		step->request->max_attempts = 2;
	}
	MemoryContextSwitchTo(files);
	step->file->requests = lappend(step->file->requests, step);
	swarm_net_submit(step->request);
}

/* swarm_upload_drop_requests: give up what is under way for a file. */
void
swarm_upload_drop_requests(SwarmUploadFile *file)
{
	ListCell   *lc;

	foreach(lc, file->requests)
	{
		SwarmUploadStep *step = lfirst(lc);

		file->upload->expired = list_delete_ptr(file->upload->expired, step->request);
		swarm_net_free(step->request);
	}
	file->requests = NIL;
	file->parts_under_way = 0;
}

/* object_headers: what an object is stored with. */
static List *
object_headers(SwarmUploadFile *file)
{
	List	   *headers = list_copy(file->upload->headers);
	JsonbIterator *it;
	JsonbValue	v;
	JsonbIteratorToken token;
	char	   *name = NULL;

	headers = lappend(headers, swarm_s3_pair("content-type", file->content_type));
	if (file->metadata == NULL)
		return headers;
	it = JsonbIteratorInit(&file->metadata->root);
	while ((token = JsonbIteratorNext(&it, &v, true)) != WJB_DONE)
	{
		if (token == WJB_KEY)
		{
			name = psprintf("x-amz-meta-%.*s", v.val.string.len, v.val.string.val);
			for (char *p = name; *p; p++)
				*p = pg_ascii_tolower(*p);
		}
		else if (token == WJB_VALUE && name != NULL && v.type == jbvString)
			headers = lappend(headers, swarm_s3_pair(name, pnstrdup(v.val.string.val, v.val.string.len)));
	}
	return headers;
}

static void
send_put(SwarmUploadFile *file)
{
	SwarmUploadStep *step = new_step(file, "PUT");

	step->call.headers = object_headers(file);
	step->call.body = file->body;
	if (file->size == 0)
		step->call.body.memory = "";
	step->call.checksum_crc32c = file->upload->crc32c;
	step->call.checksum_sha256 = file->upload->sha256;
	step->call.verify_etag = true;
	submit(step);
}

/* send_search: multipart uploads that were begun for keys like this one. */
static void
send_search(SwarmUploadFile *file)
{
	SwarmUploadStep *step = new_step(file, "GET");

	file->searches++;
	step->call.key = NULL;
	step->call.query = list_make2(swarm_s3_pair("uploads", ""), swarm_s3_pair("prefix", file->key));
	step->call.answer_root = "ListMultipartUploadsResult";
	submit(step);
}

/* send_list: the parts that are there, from the one after parts_listed. */
static void
send_list(SwarmUploadFile *file)
{
	SwarmUploadStep *step = new_step(file, "GET");

	if (file->etags == NULL)
	{
		file->etags = MemoryContextAllocZero(file->context, file->parts * sizeof(char *));
		file->parts_listed = 0;
	}
	step->call.query = list_make1(swarm_s3_pair("uploadId", file->upload_id));
	if (file->parts_listed > 0)
		step->call.query = lappend(step->call.query,
								   swarm_s3_pair("part-number-marker", psprintf("%d", file->parts_listed)));
	step->call.answer_root = "ListPartsResult";
	submit(step);
}

static void
send_create(SwarmUploadFile *file)
{
	SwarmUploadStep *step = new_step(file, "POST");

	step->call.query = list_make1(swarm_s3_pair("uploads", ""));
	step->call.headers = object_headers(file);
	if (file->upload->crc32c)
		step->call.headers = lappend(step->call.headers, swarm_s3_pair("x-amz-checksum-algorithm", "CRC32C"));
	if (file->upload->sha256)
		step->call.headers = lappend(step->call.headers, swarm_s3_pair("x-amz-checksum-algorithm", "SHA256"));
	step->call.answer_root = "InitiateMultipartUploadResult";
	submit(step);
}

/* swarm_upload_send_parts: some of them at the same time, not all: other files wait too. */
void
swarm_upload_send_parts(SwarmUploadFile *file)
{
	if (file->etags == NULL)
		file->etags = MemoryContextAllocZero(file->context, file->parts * sizeof(char *));
	while (file->parts_under_way < PARTS_AT_ONCE && file->next_part < file->parts)
	{
		int			part = ++file->next_part;
		SwarmUploadStep *step;

		if (file->etags[part - 1] != NULL)
			continue;			/* a lost run has sent it */
		step = new_step(file, "PUT");
		step->part = part;
		step->call.query = list_make2(swarm_s3_pair("partNumber", psprintf("%d", step->part)),
									  swarm_s3_pair("uploadId", file->upload_id));
		step->call.body = swarm_upload_part(file, part);
		step->call.checksum_crc32c = file->upload->crc32c;
		step->call.checksum_sha256 = file->upload->sha256;
		step->call.verify_etag = true;
		file->parts_under_way++;
		submit(step);
	}
}

static void
send_complete(SwarmUploadFile *file)
{
	SwarmUploadStep *step = new_step(file, "POST");
	StringInfoData xml;

	SWARM_FAULT("upload.complete");
	initStringInfo(&xml);
	appendStringInfoString(&xml, "<CompleteMultipartUpload xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">");
	for (int i = 0; i < file->parts; i++)
		appendStringInfo(&xml, "<Part><PartNumber>%d</PartNumber><ETag>&quot;%s&quot;</ETag></Part>",
						 i + 1, swarm_s3_xml_escape(file->etags[i]));
	appendStringInfoString(&xml, "</CompleteMultipartUpload>");
	step->call.query = list_make1(swarm_s3_pair("uploadId", file->upload_id));
	step->call.headers = list_make1(swarm_s3_pair("content-type", "application/xml"));
	step->call.body.memory = xml.data;
	step->call.body.length = xml.len;
	step->call.answer_root = "CompleteMultipartUploadResult";
	submit(step);
}

static void
send_abort(SwarmUploadFile *file)
{
	SwarmUploadStep *step;

	swarm_upload_drop_requests(file);
	step = new_step(file, "DELETE");
	SWARM_FAULT("upload.abort");
	step->call.query = list_make1(swarm_s3_pair("uploadId", file->upload_id));
	submit(step);
}
