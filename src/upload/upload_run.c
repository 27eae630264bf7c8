/*
 * upload_run.c
 *	  A batch on its way: every file walks the table of states below, many at
 *	  the same time, in one process.
 *
 * The loop alternates between a short transaction, in which sources are
 * opened and outcomes are stored, and the network, for which no transaction
 * is open.  A batch that is not in a table (s3_upload_sync) stays in its
 * caller's.
 */
#include "postgres.h"

#include <unistd.h>

#include "access/xact.h"
#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/resowner.h"

#include "base/fault.h"
#include "upload/upload_int.h"

#define OPEN_AHEAD		2		/* times max_parallel files are open */
#define PARTS_AT_ONCE	4		/* of one file */
#define FLUSH_MS		100		/* outcomes are stored at least so often */
#define PROGRESS_MS		50
#define TURN_MS			1000
#define STOP_STALL_MS	5000	/* a cancelled batch waits no longer to abort */

const SwarmFileEdge swarm_upload_edges[] = {
	{FILE_WAITING, FILE_EVENT_STALE, FILE_CLEANING, "a lost run left a multipart upload: abort it, then start afresh"},
	{FILE_WAITING, FILE_EVENT_SMALL, FILE_PUTTING, "fits into one request"},
	{FILE_WAITING, FILE_EVENT_LARGE, FILE_CREATING, "larger than a part"},
	{FILE_WAITING, FILE_EVENT_FAIL, FILE_FAILED, "its source cannot be read"},
	{FILE_WAITING, FILE_EVENT_STOP, FILE_CANCELLED, "the batch is cancelled"},
	{FILE_CLEANING, FILE_EVENT_OK, FILE_WAITING, "aborted"},
	{FILE_CLEANING, FILE_EVENT_GONE, FILE_WAITING, "there was nothing left to abort"},
	{FILE_CLEANING, FILE_EVENT_FAIL, FILE_FAILED, "its id stays noted"},
	{FILE_PUTTING, FILE_EVENT_OK, FILE_DONE, "stored"},
	{FILE_PUTTING, FILE_EVENT_FAIL, FILE_FAILED, "refused, or all attempts failed"},
	{FILE_PUTTING, FILE_EVENT_STOP, FILE_CANCELLED, "given up; a server keeps nothing of half a body"},
	{FILE_CREATING, FILE_EVENT_OK, FILE_NOTING, "it has an id, which must be committed before the first part"},
	{FILE_CREATING, FILE_EVENT_FAIL, FILE_FAILED, "refused, or all attempts failed"},
	{FILE_NOTING, FILE_EVENT_OK, FILE_PARTS, "committed"},
	{FILE_NOTING, FILE_EVENT_STOP, FILE_ABORTING, "the batch is cancelled"},
	{FILE_PARTS, FILE_EVENT_OK, FILE_COMPLETING, "the last part is there"},
	{FILE_PARTS, FILE_EVENT_FAIL, FILE_ABORTING, "a part could not be sent"},
	{FILE_PARTS, FILE_EVENT_STOP, FILE_ABORTING, "the batch is cancelled"},
	{FILE_COMPLETING, FILE_EVENT_OK, FILE_DONE, "stored"},
	{FILE_COMPLETING, FILE_EVENT_GONE, FILE_CHECKING, "an earlier answer may be lost, or it had no ETag: look at the object"},
	{FILE_COMPLETING, FILE_EVENT_FAIL, FILE_ABORTING, "refused, or all attempts failed"},
	{FILE_CHECKING, FILE_EVENT_OK, FILE_DONE, "the object is what was sent"},
	{FILE_CHECKING, FILE_EVENT_FAIL, FILE_FAILED, "it is not"},
	{FILE_ABORTING, FILE_EVENT_OK, FILE_FAILED, "or cancelled: nothing is left"},
	{FILE_ABORTING, FILE_EVENT_GONE, FILE_FAILED, "or cancelled: nothing was left"},
	{FILE_ABORTING, FILE_EVENT_FAIL, FILE_FAILED, "or cancelled: its id stays noted, a job of its own tries again"}
};
const int	swarm_upload_nedges = lengthof(swarm_upload_edges);

/* What a request is for. */
typedef struct Step
{
	SwarmUploadFile *file;
	int			part;			/* from 1; 0 = no part */
	MemoryContext context;
	SwarmNetRequest *request;
	SwarmS3Call call;
} Step;

static bool needs_transaction(const SwarmUpload *upload);
static void open_sources(SwarmUpload *upload);
static void open_source(SwarmUploadFile *file);
static void renew_credentials(SwarmUpload *upload);
static void go_on(SwarmUploadFile *file);
static bool event(SwarmUploadFile *file, SwarmFileEvent what);
static void finished(SwarmUploadFile *file);
static void stop_all(SwarmUpload *upload);
static void answered(SwarmNetRequest *request);
static void part_sent(Step *step);
static void completed(Step *step);
static void note_failure(SwarmUploadFile *file, const SwarmNetRequest *request);
static Step *new_step(SwarmUploadFile *file, const char *method);
static void submit(Step *step);
static void drop_requests(SwarmUploadFile *file);
static void send_put(SwarmUploadFile *file);
static void send_create(SwarmUploadFile *file);
static void send_parts(SwarmUploadFile *file);
static void send_complete(SwarmUploadFile *file);
static void send_check(SwarmUploadFile *file);
static void send_abort(SwarmUploadFile *file);
static List *object_headers(SwarmUploadFile *file);
static void show_progress(SwarmUpload *upload);

const char *
swarm_file_state_name(SwarmFileState state)
{
	static const char *const names[] = {"waiting", "cleaning", "sending", "creating", "noting", "parts",
	"completing", "checking", "aborting", "done", "failed", "cancelled"};

	return names[state];
}

const char *
swarm_file_event_name(SwarmFileEvent what)
{
	static const char *const names[] = {"leftover", "small", "large", "ok", "gone", "failure", "stop"};

	return names[what];
}

static bool
is_final(SwarmFileState state)
{
	return state >= FILE_DONE;
}

/*
 * swarm_upload_run: until every file has its outcome.  Called in a
 * transaction, returns in one.  On an error all requests are dropped with
 * the upload's memory context.
 */
void
swarm_upload_run(SwarmUpload *upload)
{
	upload->started_ms = swarm_net_ms();
	upload->unfinished = 0;
	for (int i = 0; i < upload->nfiles; i++)
	{
		upload->files[i].progress = -1;
		upload->unfinished += !is_final(upload->files[i].state);
		if (upload->files[i].state == FILE_ABORTING)
			go_on(&upload->files[i]);
	}
	for (;;)
	{
		SwarmNetRequest *request;
		bool		more = true;

		MemoryContextSwitchTo(upload->context);
		if (!upload->cancelled && swarm_upload_stop_asked(upload->place))
			upload->cancelled = true;
		if (upload->cancelled)
			stop_all(upload);
		if (needs_transaction(upload))
		{
			/* the first time we are in one */
			if (!IsTransactionState())
				swarm_upload_enter(upload);
			renew_credentials(upload);
			open_sources(upload);
			swarm_upload_store(upload);
		}
		if (IsTransactionState() && !upload->in_transaction)
			swarm_upload_leave(upload);
		for (int i = 0; i < upload->nfiles; i++)
		{
			SwarmUploadFile *file = &upload->files[i];

			if (file->state == FILE_NOTING && !file->dirty)
				event(file, FILE_EVENT_OK);
			else if (file->state == FILE_PARTS)
				send_parts(file);
		}
		if (upload->unfinished == 0 && upload->flush_ms == 0)
			break;
		SWARM_FAULT("upload.turn");
		swarm_net_turn(upload->flush_ms != 0 ? FLUSH_MS / 2 : TURN_MS);
		while (more)
		{
			request = swarm_net_next();
			more = request != NULL;
			if (more)
				answered(request);
		}
		show_progress(upload);
	}
	if (!IsTransactionState())
		swarm_upload_enter(upload);
}

/* swarm_upload_drop: end all requests; for the way of an error. */
void
swarm_upload_drop(SwarmUpload *upload)
{
	for (int i = 0; i < upload->nfiles; i++)
	{
		drop_requests(&upload->files[i]);
		swarm_upload_progress_give(upload->files[i].progress);
		upload->files[i].progress = -1;
	}
}

/*
 * needs_transaction: something to open, an id to commit, or outcomes that
 * have waited long enough.
 */
static bool
needs_transaction(const SwarmUpload *upload)
{
	int			open = 0;
	int			waiting = 0;

	if (upload->expired != NIL)
		return true;
	if (upload->flush_ms != 0 &&
		(upload->unfinished == 0 || swarm_net_ms() - upload->flush_ms >= FLUSH_MS))
		return true;
	for (int i = 0; i < upload->nfiles; i++)
	{
		const SwarmUploadFile *file = &upload->files[i];

		if (file->state == FILE_NOTING && file->dirty)
			return true;
		waiting += file->state == FILE_WAITING;
		open += file->state > FILE_WAITING && !is_final(file->state);
	}
	return waiting > 0 && open < upload->server->max_parallel * OPEN_AHEAD;
}

/* ------------------------------------------------------------------------
 * In a transaction
 * ------------------------------------------------------------------------ */

static void
open_sources(SwarmUpload *upload)
{
	int			open = 0;

	for (int i = 0; i < upload->nfiles; i++)
		open += upload->files[i].state > FILE_WAITING && !is_final(upload->files[i].state);
	for (int i = 0; i < upload->nfiles && open < upload->server->max_parallel * OPEN_AHEAD; i++)
	{
		SwarmUploadFile *file = &upload->files[i];

		if (file->state != FILE_WAITING)
			continue;
		if (file->started_ms == 0)
			file->started_ms = swarm_net_ms();
		if (file->progress < 0)
			file->progress = swarm_upload_progress_take(upload->batch, file->no);
		if (file->upload_id != NULL)
			event(file, FILE_EVENT_STALE);
		else
			open_source(file);
		open += !is_final(file->state);
	}
}

/*
 * open_source: in a subtransaction, so that a source that cannot be read costs
 * one file.
 */
static void
open_source(SwarmUploadFile *file)
{
	SwarmUpload *upload = file->upload;
	ResourceOwner owner = CurrentResourceOwner;
	MemoryContext scratch = AllocSetContextCreate(upload->context, "pg_swarm source", ALLOCSET_DEFAULT_SIZES);
	MemoryContext old;
	ErrorData  *edata = NULL;

	file->context = AllocSetContextCreate(upload->context, "pg_swarm file", ALLOCSET_SMALL_SIZES);
	BeginInternalSubTransaction(NULL);
	old = MemoryContextSwitchTo(scratch);
	PG_TRY();
	{
		SWARM_FAULT("upload.open");
		swarm_source_open(&file->source, file->context, swarm_s3_max_file_kb * INT64CONST(1024),
						  &file->body);
		ReleaseCurrentSubTransaction();
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(upload->context);
		edata = CopyErrorData();
		FlushErrorState();
		RollbackAndReleaseCurrentSubTransaction();
	}
	PG_END_TRY();
	CurrentResourceOwner = owner;
	MemoryContextSwitchTo(old);
	MemoryContextSwitchTo(upload->context);
	MemoryContextDelete(scratch);
	if (edata != NULL)
	{
		if (edata->sqlerrcode == ERRCODE_QUERY_CANCELED || edata->sqlerrcode == ERRCODE_ADMIN_SHUTDOWN)
			ReThrowError(edata);
		strlcpy(file->code, unpack_sql_state(edata->sqlerrcode), sizeof(file->code));
		strlcpy(file->error, edata->message ? edata->message : "missing error text", sizeof(file->error));
		FreeErrorData(edata);
		event(file, FILE_EVENT_FAIL);
		return;
	}
	file->size = file->body.length;
	file->part_size = swarm_s3_part_kb * INT64CONST(1024);
	while ((file->size + file->part_size - 1) / file->part_size > SWARM_S3_PARTS_MAX)
		file->part_size *= 2;
	file->parts = (int) ((file->size + file->part_size - 1) / file->part_size);
	event(file, file->size > file->part_size ? FILE_EVENT_LARGE : FILE_EVENT_SMALL);
}

/* renew_credentials: those that have expired; once for each file. */
static void
renew_credentials(SwarmUpload *upload)
{
	SwarmS3Server *fresh;
	ListCell   *lc;

	if (upload->expired == NIL)
		return;
	fresh = swarm_s3_server(upload->server_name);
	upload->server->access_key = fresh->access_key;
	upload->server->secret_key = fresh->secret_key;
	upload->server->session_token = fresh->session_token;
	foreach(lc, upload->expired)
		swarm_net_submit(lfirst(lc));
	upload->expired = NIL;
}

/* ------------------------------------------------------------------------
 * States
 * ------------------------------------------------------------------------ */

/*
 * event: walk an edge of the table and begin what belongs to the new state.
 * False if there is no such edge: the event does not concern this state.
 */
static bool
event(SwarmUploadFile *file, SwarmFileEvent what)
{
	for (int i = 0; i < swarm_upload_nedges; i++)
	{
		const SwarmFileEdge *edge = &swarm_upload_edges[i];
		SwarmFileState from = file->state;

		if (edge->from != from || edge->event != what)
			continue;
		file->state = edge->to;
		if (from == FILE_ABORTING)
			file->state = file->outcome;
		else if (edge->to == FILE_ABORTING)
			file->outcome = what == FILE_EVENT_STOP ? FILE_CANCELLED : FILE_FAILED;
		go_on(file);
		return true;
	}
	return false;
}

static void
go_on(SwarmUploadFile *file)
{
	SwarmUpload *upload = file->upload;

	switch (file->state)
	{
		case FILE_WAITING:
			break;
		case FILE_PUTTING:
			send_put(file);
			break;
		case FILE_CREATING:
			send_create(file);
			break;
		case FILE_NOTING:
			file->dirty = true;
			if (upload->batch == 0)
				file->dirty = false;
			break;
		case FILE_PARTS:
			file->etags = MemoryContextAllocZero(file->context, file->parts * sizeof(char *));
			send_parts(file);
			break;
		case FILE_COMPLETING:
			send_complete(file);
			break;
		case FILE_CHECKING:
			send_check(file);
			break;
		case FILE_CLEANING:
		case FILE_ABORTING:
			send_abort(file);
			break;
		case FILE_DONE:
		case FILE_FAILED:
		case FILE_CANCELLED:
			finished(file);
			break;
		default:
			elog(ERROR, "unknown state %d of a file", file->state);
	}
}

/* finished: the file has its outcome; free what it held. */
static void
finished(SwarmUploadFile *file)
{
	SwarmUpload *upload = file->upload;

	drop_requests(file);
	if (file->started_ms != 0)
		file->ms = swarm_net_ms() - file->started_ms;
	if (file->state == FILE_CANCELLED && file->code[0] == '\0')
	{
		strlcpy(file->code, "Cancelled", sizeof(file->code));
		strlcpy(file->error, "the batch was cancelled", sizeof(file->error));
	}
	if (file->state == FILE_DONE)
		file->code[0] = file->error[0] = '\0';
	swarm_upload_progress_give(file->progress);
	file->progress = -1;
	MemoryContextSwitchTo(upload->context);
	if (file->context != NULL)
		MemoryContextDelete(file->context);
	file->context = NULL;
	file->dirty = upload->batch != 0;
	if (file->dirty && upload->flush_ms == 0)
		upload->flush_ms = swarm_net_ms();
	upload->unfinished--;
}

static void
stop_all(SwarmUpload *upload)
{
	for (int i = 0; i < upload->nfiles; i++)
	{
		if (!is_final(upload->files[i].state))
			event(&upload->files[i], FILE_EVENT_STOP);
	}
}

/* ------------------------------------------------------------------------
 * Answers
 * ------------------------------------------------------------------------ */

static void
answered(SwarmNetRequest *request)
{
	Step	   *step = ((SwarmS3Call *) request->caller)->caller;
	SwarmUploadFile *file = step->file;
	MemoryContext context = step->context;
	MemoryContext old = MemoryContextSwitchTo(context);
	bool		gone = strcmp(request->error_name, "NoSuchUpload") == 0 || request->status == 404;

	if (file->state != FILE_ABORTING && file->state != FILE_CLEANING)
		file->attempts = Max(file->attempts, request->attempts);
	if (!request->succeeded && !file->reloaded &&
		(strcmp(request->error_name, "ExpiredToken") == 0 || strcmp(request->error_name, "TokenRefreshRequired") == 0))
	{
		MemoryContextSwitchTo(file->upload->context);
		file->reloaded = true;
		file->upload->expired = lappend(file->upload->expired, request);
		MemoryContextSwitchTo(old);
		return;
	}
	file->requests = list_delete_ptr(file->requests, step);
	if (file->state != FILE_ABORTING && file->state != FILE_CLEANING)
		file->status = request->status;
	if (!request->succeeded && file->state != FILE_ABORTING)
		note_failure(file, request);
	switch (file->state)
	{
		case FILE_PUTTING:
			file->etag = MemoryContextStrdup(file->upload->context,
											 swarm_s3_etag(swarm_net_answer_header(request, "etag")));
			event(file, request->succeeded ? FILE_EVENT_OK : FILE_EVENT_FAIL);
			break;
		case FILE_CREATING:
			if (request->succeeded)
			{
				char	   *id = swarm_s3_xml_text(request->answer, "UploadId", NULL);

				if (id == NULL || *id == '\0' || strlen(id) > 1024)
				{
					strlcpy(file->code, "UnexpectedAnswer", sizeof(file->code));
					strlcpy(file->error, "the server gave no upload id", sizeof(file->error));
					event(file, FILE_EVENT_FAIL);
					break;
				}
				file->upload_id = MemoryContextStrdup(file->upload->context, id);
			}
			event(file, request->succeeded ? FILE_EVENT_OK : FILE_EVENT_FAIL);
			break;
		case FILE_PARTS:
			file->parts_under_way--;
			if (request->succeeded)
				part_sent(step);
			else
			{
				drop_requests(file);
				event(file, FILE_EVENT_FAIL);
			}
			break;
		case FILE_COMPLETING:
			if (request->succeeded)
				completed(step);
			else
				event(file, gone && request->attempts > 1 ? FILE_EVENT_GONE : FILE_EVENT_FAIL);
			break;
		case FILE_CHECKING:
			completed(step);
			break;
		case FILE_CLEANING:
		case FILE_ABORTING:
			if (request->succeeded || gone)
				file->upload_id = NULL;
			event(file, request->succeeded ? FILE_EVENT_OK : gone ? FILE_EVENT_GONE : FILE_EVENT_FAIL);
			break;
		default:
			break;				/* an answer that nobody waits for any more */
	}
	MemoryContextSwitchTo(old);
	if (file->context != NULL)
		MemoryContextDelete(context);	/* else it is gone with the file's */
}

static void
note_failure(SwarmUploadFile *file, const SwarmNetRequest *request)
{
	strlcpy(file->code, request->error_name, sizeof(file->code));
	strlcpy(file->error, request->error_text, sizeof(file->error));
}

static void
part_sent(Step *step)
{
	SwarmUploadFile *file = step->file;

	file->etags[step->part - 1] = MemoryContextStrdup(file->context,
													  swarm_s3_etag(swarm_net_answer_header(step->request, "etag")));
	file->parts_done++;
	file->bytes_done += step->call.body.length;
	SWARM_FAULT("upload.part");
	if (file->parts_done == file->parts)
		event(file, FILE_EVENT_OK);
	else
		send_parts(file);
}

/* completed: the ETag of the whole, by the answer or by looking at the object. */
static void
completed(Step *step)
{
	SwarmUploadFile *file = step->file;
	SwarmNetRequest *request = step->request;
	char	   *etag = NULL;

	if (file->state == FILE_COMPLETING)
	{
		etag = swarm_s3_xml_text(request->answer, "ETag", NULL);
		if (etag == NULL || *etag == '\0')
		{
			event(file, FILE_EVENT_GONE);
			return;
		}
	}
	else if (request->succeeded)
	{
		char	   *length = swarm_net_answer_header(request, "content-length");
		char	   *suffix = psprintf("-%d", file->parts);
		char	   *dash;

		etag = swarm_s3_etag(swarm_net_answer_header(request, "etag"));
		dash = strchr(etag, '-');
		if (length == NULL || strtoll(length, NULL, 10) != file->size ||
			(dash != NULL && strcmp(dash, suffix) != 0))
		{
			strlcpy(file->code, "NoSuchUpload", sizeof(file->code));
			strlcpy(file->error, "the multipart upload is gone, and the object is not what was sent",
					sizeof(file->error));
			event(file, FILE_EVENT_FAIL);
			return;
		}
	}
	else
	{
		event(file, FILE_EVENT_FAIL);
		return;
	}
	file->upload_id = NULL;
	file->etag = MemoryContextStrdup(file->upload->context, swarm_s3_etag(etag));
	event(file, FILE_EVENT_OK);
}

/* ------------------------------------------------------------------------
 * Requests
 * ------------------------------------------------------------------------ */

static Step *
new_step(SwarmUploadFile *file, const char *method)
{
	MemoryContext context;
	Step	   *step;

	if (file->context == NULL)
		file->context = AllocSetContextCreate(file->upload->context, "pg_swarm file", ALLOCSET_SMALL_SIZES);
	context = AllocSetContextCreate(file->context, "pg_swarm step", ALLOCSET_SMALL_SIZES);
	step = MemoryContextAllocZero(context, sizeof(Step));
	step->file = file;
	step->context = context;
	step->call.server = file->upload->server;
	step->call.method = method;
	step->call.bucket = file->upload->bucket;
	step->call.key = file->key;
	step->call.body.fd = -1;
	step->call.caller = step;
	MemoryContextSwitchTo(context);
	return step;
}

static void
submit(Step *step)
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

static void
drop_requests(SwarmUploadFile *file)
{
	ListCell   *lc;

	foreach(lc, file->requests)
	{
		Step	   *step = lfirst(lc);

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
	Step	   *step = new_step(file, "PUT");

	step->call.headers = object_headers(file);
	step->call.body = file->body;
	if (file->size == 0)
		step->call.body.memory = "";
	step->call.checksum_crc32c = file->upload->crc32c;
	step->call.checksum_sha256 = file->upload->sha256;
	step->call.verify_etag = true;
	submit(step);
}

static void
send_create(SwarmUploadFile *file)
{
	Step	   *step = new_step(file, "POST");

	step->call.query = list_make1(swarm_s3_pair("uploads", ""));
	step->call.headers = object_headers(file);
	if (file->upload->crc32c)
		step->call.headers = lappend(step->call.headers, swarm_s3_pair("x-amz-checksum-algorithm", "CRC32C"));
	if (file->upload->sha256)
		step->call.headers = lappend(step->call.headers, swarm_s3_pair("x-amz-checksum-algorithm", "SHA256"));
	step->call.answer_root = "InitiateMultipartUploadResult";
	submit(step);
}

/* send_parts: some of them at the same time, not all: other files wait too. */
static void
send_parts(SwarmUploadFile *file)
{
	while (file->parts_under_way < PARTS_AT_ONCE && file->next_part < file->parts)
	{
		Step	   *step = new_step(file, "PUT");
		int64		offset = file->next_part * file->part_size;

		step->part = ++file->next_part;
		step->call.query = list_make2(swarm_s3_pair("partNumber", psprintf("%d", step->part)),
									  swarm_s3_pair("uploadId", file->upload_id));
		step->call.body = file->body;
		step->call.body.length = Min(file->part_size, file->size - offset);
		if (file->body.memory != NULL)
			step->call.body.memory = file->body.memory + offset;
		else
			step->call.body.offset = offset;
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
	Step	   *step = new_step(file, "POST");
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
send_check(SwarmUploadFile *file)
{
	submit(new_step(file, "HEAD"));
}

static void
send_abort(SwarmUploadFile *file)
{
	Step	   *step;

	drop_requests(file);
	step = new_step(file, "DELETE");
	SWARM_FAULT("upload.abort");
	step->call.query = list_make1(swarm_s3_pair("uploadId", file->upload_id));
	submit(step);
}

/* show_progress: for the view, a few times a second. */
static void
show_progress(SwarmUpload *upload)
{
	int64		now = swarm_net_ms();

	if (upload->batch == 0 || now - upload->progress_ms < PROGRESS_MS)
		return;
	upload->progress_ms = now;
	for (int i = 0; i < upload->nfiles; i++)
	{
		SwarmUploadFile *file = &upload->files[i];
		int64		sent = file->bytes_done;
		ListCell   *lc;

		if (file->progress < 0)
			continue;
		foreach(lc, file->requests)
		{
			Step	   *step = lfirst(lc);

			if (file->state == FILE_PUTTING || step->part > 0)
				sent += step->request->body.read;
		}
		swarm_upload_progress_set(file->progress, sent, file->size, now - file->started_ms,
								  swarm_file_state_name(file->state));
	}
}
