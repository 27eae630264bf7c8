/*
 * upload_answer.c
 *	  What the end of a request means for its file.
 */
#include "postgres.h"

#include "utils/memutils.h"

#include "base/fault.h"
#include "upload/upload_int.h"

static void part_sent(SwarmUploadStep *step);
static void completed(SwarmUploadStep *step);
static bool is_printable(const char *text);
static void note_failure(SwarmUploadFile *file, const SwarmNetRequest *request);

/* swarm_upload_answered: the request belongs to a step of a file. */
void
swarm_upload_answered(SwarmNetRequest *request)
{
	SwarmUploadStep *step = ((SwarmS3Call *) request->caller)->caller;
	SwarmUploadFile *file = step->file;
	MemoryContext context = step->context;
	MemoryContext old = MemoryContextSwitchTo(context);
	bool		gone = strcmp(request->error_name, "NoSuchUpload") == 0 || request->status == 404;

	if (file->state != FILE_ABORTING && file->state != FILE_CLEANING)
		file->attempts = Max(file->attempts, file->attempts_before + request->attempts);
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
			if (request->succeeded)
				swarm_upload_event(file, FILE_EVENT_OK);
			else
				swarm_upload_failed(file);
			break;
		case FILE_CREATING:
			if (request->succeeded)
			{
				char	   *id = swarm_s3_xml_text(request->answer, "UploadId", NULL);

				if (id == NULL || *id == '\0' || strlen(id) > UPLOAD_ID_MAX || !is_printable(id))
				{
					strlcpy(file->code, "UnexpectedAnswer", sizeof(file->code));
					strlcpy(file->error, "the server gave no upload id", sizeof(file->error));
					swarm_upload_event(file, FILE_EVENT_FAIL);
					break;
				}
				file->upload_id = MemoryContextStrdup(file->upload->context, id);
				swarm_upload_event(file, FILE_EVENT_OK);
			}
			else
				swarm_upload_failed(file);
			break;
		case FILE_SEARCHING:
			swarm_upload_event(file, request->succeeded ? swarm_upload_searched(step) : FILE_EVENT_FAIL);
			break;
		case FILE_LISTING:
			if (request->succeeded && swarm_upload_listed(step))
				swarm_upload_event(file, FILE_EVENT_OK);
			else if (request->succeeded)
				swarm_upload_send(file);	/* the next page */
			else
			{
				if (gone)
				{
					/* parts on pages that came are gone as well */
					file->upload_id = NULL;
					file->etags = NULL;
					file->parts_done = 0;
					file->bytes_done = 0;
				}
				swarm_upload_event(file, gone ? FILE_EVENT_GONE : FILE_EVENT_FAIL);
			}
			break;
		case FILE_PARTS:
			file->parts_under_way--;
			if (request->succeeded)
				part_sent(step);
			else
			{
				swarm_upload_drop_requests(file);
				swarm_upload_failed(file);
			}
			break;
		case FILE_COMPLETING:
			if (request->succeeded)
				completed(step);
			else if (gone)
				swarm_upload_event(file, FILE_EVENT_GONE);
			else
				swarm_upload_failed(file);
			break;
		case FILE_CHECKING:
			completed(step);
			break;
		case FILE_CLEANING:
		case FILE_ABORTING:
			if (request->succeeded || gone)
				file->upload_id = NULL;
			if (!request->succeeded && !gone && file->state == FILE_CLEANING)
				swarm_upload_failed(file);
			else
				swarm_upload_event(file, request->succeeded ? FILE_EVENT_OK : gone ? FILE_EVENT_GONE : FILE_EVENT_FAIL);
			break;
		default:
			break;				/* an answer that nobody waits for any more */
	}
	MemoryContextSwitchTo(old);
	if (file->context != NULL)
		MemoryContextDelete(context);	/* else it is gone with the file's */
}

static bool
is_printable(const char *text)
{
	for (const char *p = text; *p; p++)
	{
		if (*p < ' ' || *p > '~')
			return false;
	}
	return true;
}

static void
note_failure(SwarmUploadFile *file, const SwarmNetRequest *request)
{
	strlcpy(file->code, request->error_name, sizeof(file->code));
	strlcpy(file->error, request->error_text, sizeof(file->error));
}

static void
part_sent(SwarmUploadStep *step)
{
	SwarmUploadFile *file = step->file;

	file->etags[step->part - 1] = MemoryContextStrdup(file->context,
													  swarm_s3_etag(swarm_net_answer_header(step->request, "etag")));
	file->parts_done++;
	file->bytes_done += step->call.body.length;
	SWARM_FAULT("upload.part");
	if (file->parts_done == file->parts)
		swarm_upload_event(file, FILE_EVENT_OK);
	else
		swarm_upload_send_parts(file);
}

/* completed: the ETag of the whole, by the answer or by looking at the object. */
static void
completed(SwarmUploadStep *step)
{
	SwarmUploadFile *file = step->file;
	SwarmNetRequest *request = step->request;
	char	   *etag = NULL;

	if (file->state == FILE_COMPLETING)
	{
		etag = swarm_s3_xml_text(request->answer, "ETag", NULL);
		if (etag == NULL || *etag == '\0')
		{
			swarm_upload_event(file, FILE_EVENT_GONE);
			return;
		}
	}
	else if (request->succeeded)
	{
		char	   *length = swarm_net_answer_header(request, "content-length");

		etag = swarm_s3_etag(swarm_net_answer_header(request, "etag"));
		if (length == NULL || strtoll(length, NULL, 10) != file->size ||
			!swarm_upload_etag_fits(step, etag))
		{
			strlcpy(file->code, "NoSuchUpload", sizeof(file->code));
			strlcpy(file->error, "the multipart upload is gone, and the object is not what was sent",
					sizeof(file->error));
			swarm_upload_event(file, FILE_EVENT_FAIL);
			return;
		}
	}
	else
	{
		swarm_upload_failed(file);
		return;
	}
	file->upload_id = NULL;
	file->etag = MemoryContextStrdup(file->upload->context, swarm_s3_etag(etag));
	swarm_upload_event(file, FILE_EVENT_OK);
}
