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
#include "storage/fd.h"
#include "utils/builtins.h"
#include "utils/memutils.h"

#include "base/attempt.h"
#include "base/fault.h"
#include "upload/upload_int.h"

#define OPEN_AHEAD		2		/* times max_parallel files are open */
#define OPEN_PART		6		/* of the descriptors at most; curl needs more */
#define FLUSH_MS		100		/* outcomes are stored at least so often */
#define PROGRESS_MS		50
#define AWAIT_MS		5000	/* for an id, when all is given up */
#define TURN_MS			1000
#define IDLE_MS			25		/* without an event the network is idle */
#define OPEN_BYTES		(8 * 1024 * 1024)	/* are read between two turns */
#define SEARCHES		3		/* for what lost runs have begun */

const SwarmFileEdge swarm_upload_edges[] = {
	{FILE_WAITING, FILE_EVENT_STALE, FILE_CLEANING, "a lost run left a multipart upload that is not needed any more"},
	{FILE_WAITING, FILE_EVENT_RESUME, FILE_LISTING, "a lost run left a multipart upload: which parts are there?"},
	{FILE_WAITING, FILE_EVENT_SEARCH, FILE_SEARCHING, "a lost run may have begun one and died before it had the id"},
	{FILE_WAITING, FILE_EVENT_SMALL, FILE_PUTTING, "fits into one request"},
	{FILE_WAITING, FILE_EVENT_LARGE, FILE_CREATING, "larger than a part"},
	{FILE_WAITING, FILE_EVENT_FAIL, FILE_FAILED, "its source cannot be read"},
	{FILE_WAITING, FILE_EVENT_STOP, FILE_CANCELLED, "the batch is cancelled"},
	{FILE_SEARCHING, FILE_EVENT_STALE, FILE_CLEANING, "it had: it has no parts, abort it"},
	{FILE_SEARCHING, FILE_EVENT_OK, FILE_CREATING, "it had not"},
	{FILE_SEARCHING, FILE_EVENT_FAIL, FILE_CREATING, "the server does not tell"},
	{FILE_SEARCHING, FILE_EVENT_STOP, FILE_CANCELLED, "the batch is cancelled"},
	{FILE_LISTING, FILE_EVENT_OK, FILE_PARTS, "what is there and equal is not sent again"},
	{FILE_LISTING, FILE_EVENT_GONE, FILE_CREATING, "it was completed, or aborted: start afresh"},
	{FILE_LISTING, FILE_EVENT_FAIL, FILE_CLEANING, "the server does not tell: start afresh"},
	{FILE_LISTING, FILE_EVENT_STOP, FILE_ABORTING, "the batch is cancelled"},
	{FILE_CLEANING, FILE_EVENT_OK, FILE_WAITING, "aborted"},
	{FILE_CLEANING, FILE_EVENT_GONE, FILE_WAITING, "there was nothing left to abort"},
	{FILE_CLEANING, FILE_EVENT_FAIL, FILE_FAILED, "its id stays noted"},
	{FILE_CLEANING, FILE_EVENT_MOVE, FILE_WAITING, "its id stays noted; the fallback takes the file"},
	{FILE_PUTTING, FILE_EVENT_OK, FILE_DONE, "stored"},
	{FILE_PUTTING, FILE_EVENT_FAIL, FILE_FAILED, "refused, or all attempts failed"},
	{FILE_PUTTING, FILE_EVENT_MOVE, FILE_WAITING, "its server is left alone: the fallback takes it"},
	{FILE_PUTTING, FILE_EVENT_STOP, FILE_CANCELLED, "given up; a server keeps nothing of half a body"},
	{FILE_CREATING, FILE_EVENT_OK, FILE_NOTING, "it has an id, which must be committed before the first part"},
	{FILE_CREATING, FILE_EVENT_FAIL, FILE_FAILED, "refused, or all attempts failed"},
	{FILE_CREATING, FILE_EVENT_MOVE, FILE_WAITING, "its server is left alone: the fallback takes it"},
	{FILE_NOTING, FILE_EVENT_OK, FILE_PARTS, "committed"},
	{FILE_NOTING, FILE_EVENT_STOP, FILE_ABORTING, "the batch is cancelled"},
	{FILE_PARTS, FILE_EVENT_OK, FILE_COMPLETING, "the last part is there"},
	{FILE_PARTS, FILE_EVENT_FAIL, FILE_ABORTING, "a part could not be sent"},
	{FILE_PARTS, FILE_EVENT_MOVE, FILE_WAITING, "its server is left alone: the fallback takes it; what was begun is aborted later"},
	{FILE_PARTS, FILE_EVENT_STOP, FILE_ABORTING, "the batch is cancelled"},
	{FILE_COMPLETING, FILE_EVENT_OK, FILE_DONE, "stored"},
	{FILE_COMPLETING, FILE_EVENT_GONE, FILE_CHECKING, "an answer may be lost, or it had no ETag: look at the object"},
	{FILE_COMPLETING, FILE_EVENT_FAIL, FILE_ABORTING, "refused, or all attempts failed"},
	{FILE_COMPLETING, FILE_EVENT_MOVE, FILE_WAITING, "its server is left alone: the fallback takes it; what was begun is aborted later"},
	{FILE_CHECKING, FILE_EVENT_OK, FILE_DONE, "the object is what was sent"},
	{FILE_CHECKING, FILE_EVENT_FAIL, FILE_FAILED, "it is not"},
	{FILE_CHECKING, FILE_EVENT_MOVE, FILE_WAITING, "its server is left alone: the fallback takes it"},
	{FILE_ABORTING, FILE_EVENT_OK, FILE_FAILED, "or cancelled: nothing is left"},
	{FILE_ABORTING, FILE_EVENT_GONE, FILE_FAILED, "or cancelled: nothing was left"},
	{FILE_ABORTING, FILE_EVENT_FAIL, FILE_FAILED, "or cancelled: its id stays noted, a job of its own tries again"}
};
const int	swarm_upload_nedges = lengthof(swarm_upload_edges);

static void one_turn(SwarmUpload *upload);
static bool is_idle(const SwarmUpload *upload);
static void advance(SwarmUpload *upload);
static bool needs_transaction(SwarmUpload *upload);
static SwarmUploadFile *next_to_open(SwarmUpload *upload);
static bool has_room(const SwarmUpload *upload, const SwarmUploadFile *file);
static bool must_survive(const SwarmUpload *upload);
static void open_sources(SwarmUpload *upload);
static void open_source(SwarmUploadFile *file);
static SwarmFileEvent opened_as(const SwarmUploadFile *file);
static void renew_credentials(SwarmUpload *upload);
static void go_on(SwarmUploadFile *file);
static void release(SwarmUploadFile *file);
static void finished(SwarmUploadFile *file);
static void stop_all(SwarmUpload *upload);
static void show_progress(SwarmUpload *upload);

const char *
swarm_file_state_name(SwarmFileState state)
{
	static const char *const names[] = {"waiting", "searching", "listing", "cleaning", "sending", "creating", "noting", "parts",
	"completing", "checking", "aborting", "done", "failed", "cancelled"};

	return names[state];
}

const char *
swarm_file_event_name(SwarmFileEvent what)
{
	static const char *const names[] = {"leftover", "resume", "search", "small", "large", "ok", "gone", "failure", "moved", "stop"};

	return names[what];
}

static bool
is_final(SwarmFileState state)
{
	return state >= FILE_DONE;
}

static bool
is_open(SwarmFileState state)
{
	return state > FILE_WAITING && !is_final(state);
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
	upload->open = 0;
	upload->first = 0;
	upload->top = 0;
	upload->idle_ms = 0;
	for (int i = 0; i < upload->nfiles; i++)
	{
		SwarmUploadFile *file = &upload->files[i];

		file->progress = -1;
		upload->unfinished += !is_final(file->state);
		if (file->state == FILE_WAITING)
			continue;
		upload->top = i + 1;
		if (file->state != FILE_ABORTING)
			continue;
		upload->open++;
		go_on(file);
	}
	for (;;)
	{
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
		advance(upload);
		if (upload->unfinished == 0 && upload->flush_ms == 0)
			break;
		if (IsTransactionState() && !upload->in_transaction)
			swarm_upload_leave(upload, must_survive(upload));
		for (int i = upload->first; i < upload->top; i++)
		{
			SwarmUploadFile *file = &upload->files[i];

			if (file->state == FILE_NOTING && !file->dirty)
				swarm_upload_event(file, FILE_EVENT_OK);
			if (file->state == FILE_PARTS && file->parts_done == file->parts)
				swarm_upload_event(file, FILE_EVENT_OK);
			else if (file->state == FILE_PARTS)
				swarm_upload_send_parts(file);
		}
		SWARM_FAULT("upload.turn");
		one_turn(upload);
		show_progress(upload);
	}
	if (!IsTransactionState())
		swarm_upload_enter(upload);
}

/*
 * one_turn: of the network, and what has come of it.  Where the next file
 * waits for memory we look whether the network has anything to do meanwhile.
 */
static void
one_turn(SwarmUpload *upload)
{
	SwarmUploadFile *next = next_to_open(upload);
	SwarmNetRequest *request;
	long		most = upload->flush_ms != 0 ? FLUSH_MS / 2 : TURN_MS;
	int64		began = swarm_net_ms();

	if (next != NULL)
		most = has_room(upload, next) ? 0 : Max(IDLE_MS - upload->idle_ms, 0);
	if (swarm_net_turn(most))
		upload->idle_ms = 0;
	else
		upload->idle_ms += swarm_net_ms() - began;	/* it ends early for
													 * curl's timers */
	while ((request = swarm_net_next()) != NULL)
	{
		upload->idle_ms = 0;
		swarm_upload_answered(request);
	}
}

/* is_idle: have we waited for the network for a while, and nothing came? */
static bool
is_idle(const SwarmUpload *upload)
{
	return upload->idle_ms >= IDLE_MS;
}

/* advance: past the files at the beginning that are done with. */
static void
advance(SwarmUpload *upload)
{
	while (upload->first < upload->top && is_final(upload->files[upload->first].state) &&
		   !upload->files[upload->first].dirty)
		upload->first++;
}

/*
 * swarm_upload_await_ids: an upload that is being begun can be aborted only
 * when its id has come.  Give the server a while to say it.
 */
void
swarm_upload_await_ids(SwarmUpload *upload)
{
	int64		until = swarm_net_ms() + AWAIT_MS;
	bool		awaited = true;

	while (awaited && swarm_net_ms() < until)
	{
		SwarmNetRequest *request;

		awaited = false;
		for (int i = 0; i < upload->top; i++)
		{
			SwarmUploadFile *file = &upload->files[i];

			if (file->state == FILE_CREATING && file->requests != NIL)
				awaited |= swarm_net_pending(((SwarmUploadStep *) linitial(file->requests))->request);
		}
		if (!awaited)
			break;
		(void) swarm_net_turn(AWAIT_MS / 10);
		while ((request = swarm_net_next()) != NULL)
			swarm_upload_answered(request);
	}
}

/* swarm_upload_drop: end all requests; for the way of an error. */
void
swarm_upload_drop(SwarmUpload *upload)
{
	for (int i = 0; i < upload->top; i++)
	{
		swarm_upload_drop_requests(&upload->files[i]);
		swarm_upload_progress_give(upload->files[i].progress);
		upload->files[i].progress = -1;
	}
}

/*
 * needs_transaction: something to open, an id to commit, or outcomes that
 * have waited long enough.
 */
static bool
needs_transaction(SwarmUpload *upload)
{
	SwarmUploadFile *next;

	if (upload->expired != NIL)
		return true;
	if (upload->flush_ms != 0 &&
		(upload->unfinished == 0 || swarm_net_ms() - upload->flush_ms >= FLUSH_MS))
		return true;
	for (int i = upload->first; i < upload->top; i++)
	{
		const SwarmUploadFile *file = &upload->files[i];

		if (file->state == FILE_NOTING && file->dirty)
			return true;
	}
	next = next_to_open(upload);
	return next != NULL && (has_room(upload, next) || is_idle(upload));
}

/* next_to_open: NULL if as many are open as may be, or none waits. */
static SwarmUploadFile *
next_to_open(SwarmUpload *upload)
{
	int			most = Min(upload->server->max_parallel * OPEN_AHEAD, Max(max_safe_fds / OPEN_PART, 1));

	if (upload->unfinished == upload->open || upload->open >= most)
		return NULL;
	for (int i = upload->first; i < upload->nfiles; i++)
	{
		if (upload->files[i].state == FILE_WAITING)
			return &upload->files[i];
	}
	return NULL;
}

/*
 * has_room: in memory, or it needs none.  Without room a file goes to the
 * disk, which is worth it only while nothing else can be done.
 */
static bool
has_room(const SwarmUpload *upload, const SwarmUploadFile *file)
{
	int64		memory = swarm_source_memory(&file->source, file->size, upload->compress);

	return upload->open == 0 || !swarm_spool_fits(memory) || swarm_spool_has_room(memory);
}

/*
 * must_survive: is a crash right after the commit no reason to forget it?  Of
 * outcomes it is: such a file is sent again.  An id, and that uploads are
 * being begun, must be known then.
 */
static bool
must_survive(const SwarmUpload *upload)
{
	for (int i = upload->first; i < upload->top; i++)
	{
		if (upload->files[i].state == FILE_NOTING || upload->files[i].state == FILE_CREATING)
			return true;
	}
	return false;
}

/* ------------------------------------------------------------------------
 * In a transaction
 * ------------------------------------------------------------------------ */

static void
open_sources(SwarmUpload *upload)
{
	SwarmUploadFile *file;
	int64		bytes = 0;

	while (bytes < OPEN_BYTES && (file = next_to_open(upload)) != NULL)
	{
		if (!has_room(upload, file) && !is_idle(upload))
			break;
		upload->top = Max(upload->top, (int) (file - upload->files) + 1);
		if (file->started_ms == 0)
			file->started_ms = swarm_net_ms();
		if (file->progress < 0)
			file->progress = swarm_upload_progress_take(upload->batch, file->no);
		open_source(file);
		bytes += file->body.fd < 0 ? file->size : 0;
	}
}

/* read_source: what reading takes goes with the subtransaction if it fails. */
static void
read_source(void *arg)
{
	SwarmUploadFile *file = arg;
	MemoryContext scratch = AllocSetContextCreate(CurTransactionContext, "pg_swarm source", ALLOCSET_DEFAULT_SIZES);
	MemoryContext old = MemoryContextSwitchTo(scratch);

	SWARM_FAULT("upload.open");
	swarm_source_open(&file->source, file->context, swarm_s3_max_file_kb * INT64CONST(1024),
					  file->size, file->upload->compress, &file->body);
	MemoryContextSwitchTo(old);
	MemoryContextDelete(scratch);
}

/*
 * open_source: in a subtransaction, so that a source that cannot be read costs
 * one file.
 */
static void
open_source(SwarmUploadFile *file)
{
	SwarmUpload *upload = file->upload;
	ErrorData  *edata;

	swarm_upload_choose_server(file);
	release(file);				/* of its way to here */
	file->context = AllocSetContextCreate(upload->context, "pg_swarm file", ALLOCSET_SMALL_SIZES);
	file->requests = NIL;
	file->etags = NULL;
	file->next_part = file->parts_done = 0;
	file->bytes_done = 0;
	edata = swarm_attempt(read_source, file, upload->context);
	MemoryContextSwitchTo(upload->context);
	if (edata != NULL)
	{
		strlcpy(file->code, unpack_sql_state(edata->sqlerrcode), sizeof(file->code));
		swarm_net_text(file->error, sizeof(file->error), edata->message ? edata->message : "missing error text");
		FreeErrorData(edata);
		swarm_upload_event(file, FILE_EVENT_FAIL);
		return;
	}
	file->size = file->body.length;
	file->part_size = swarm_s3_part_kb * INT64CONST(1024);
	if (file->server->folder != NULL)
		file->part_size = Max(file->part_size, file->size);
	while ((file->size + file->part_size - 1) / file->part_size > SWARM_S3_PARTS_MAX)
		file->part_size *= 2;
	file->parts = (int) ((file->size + file->part_size - 1) / file->part_size);
	swarm_upload_event(file, opened_as(file));
}

/* opened_as: what is to be done with a file that can be read. */
static SwarmFileEvent
opened_as(const SwarmUploadFile *file)
{
	bool		large = file->size > file->part_size;

	if (file->upload_id != NULL)
		return large ? FILE_EVENT_RESUME : FILE_EVENT_STALE;
	if (large && file->upload->since != 0 && file->searches < SEARCHES)
		return FILE_EVENT_SEARCH;
	return large ? FILE_EVENT_LARGE : FILE_EVENT_SMALL;
}

/* renew_credentials: those that have expired; once for each file. */
static void
renew_credentials(SwarmUpload *upload)
{
	List	   *renewed = NIL;
	ListCell   *lc;

	foreach(lc, upload->expired)
	{
		SwarmNetRequest *request = lfirst(lc);
		SwarmS3Server *server = ((SwarmS3Call *) request->caller)->server;

		if (!list_member_ptr(renewed, server))
			swarm_s3_server_renew(server);
		renewed = list_append_unique_ptr(renewed, server);
		swarm_net_submit(request);
	}
	list_free(renewed);
	upload->expired = NIL;
}

/* ------------------------------------------------------------------------
 * States
 * ------------------------------------------------------------------------ */

/*
 * swarm_upload_event: walk an edge of the table and begin what belongs to the
 * new state.  False if there is no such edge: the event does not concern this
 * state.
 */
bool
swarm_upload_event(SwarmUploadFile *file, SwarmFileEvent what)
{
	SwarmUpload *upload = file->upload;

	for (int i = 0; i < swarm_upload_nedges; i++)
	{
		const SwarmFileEdge *edge = &swarm_upload_edges[i];
		SwarmFileState from = file->state;

		if (edge->from != from || edge->event != what)
			continue;
		file->state = edge->to;
		if (from == FILE_ABORTING)
			file->state = file->outcome;
		upload->open += is_open(file->state) - is_open(from);
		if (edge->to == FILE_ABORTING)
			file->outcome = what == FILE_EVENT_STOP ? FILE_CANCELLED : FILE_FAILED;
		go_on(file);
		return true;
	}
	return false;
}

/* swarm_upload_failed: a request of the file has, after all its attempts. */
void
swarm_upload_failed(SwarmUploadFile *file)
{
	bool		moves = swarm_upload_can_move(file);

	if (moves)
		swarm_upload_move(file);
	swarm_upload_event(file, moves ? FILE_EVENT_MOVE : FILE_EVENT_FAIL);
}

/* release: what a file holds while it is under way. */
static void
release(SwarmUploadFile *file)
{
	MemoryContextSwitchTo(file->upload->context);
	if (file->context != NULL)
		MemoryContextDelete(file->context);
	file->context = NULL;
}

static void
go_on(SwarmUploadFile *file)
{
	SwarmUpload *upload = file->upload;

	switch (file->state)
	{
		case FILE_WAITING:
			swarm_upload_drop_requests(file);
			release(file);
			break;
		case FILE_NOTING:
			file->dirty = upload->batch != 0;
			break;
		case FILE_DONE:
		case FILE_FAILED:
		case FILE_CANCELLED:
			finished(file);
			break;
		default:
			swarm_upload_send(file);
			break;
	}
}

/* finished: the file has its outcome; free what it held. */
static void
finished(SwarmUploadFile *file)
{
	SwarmUpload *upload = file->upload;

	swarm_upload_drop_requests(file);
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
	release(file);
	file->dirty = upload->batch != 0;
	if (file->dirty && upload->flush_ms == 0)
		upload->flush_ms = swarm_net_ms();
	upload->unfinished--;
}

static void
stop_all(SwarmUpload *upload)
{
	upload->top = upload->nfiles;
	for (int i = upload->first; i < upload->nfiles; i++)
	{
		if (!is_final(upload->files[i].state))
			swarm_upload_event(&upload->files[i], FILE_EVENT_STOP);
	}
}

/* ------------------------------------------------------------------------
 * The view
 * ------------------------------------------------------------------------ */

/* show_progress: for the view, a few times a second. */
static void
show_progress(SwarmUpload *upload)
{
	int64		now = swarm_net_ms();

	if (upload->batch == 0 || now - upload->progress_ms < PROGRESS_MS)
		return;
	upload->progress_ms = now;
	for (int i = upload->first; i < upload->top; i++)
	{
		SwarmUploadFile *file = &upload->files[i];
		int64		sent = file->bytes_done;
		ListCell   *lc;

		if (file->progress < 0)
			continue;
		foreach(lc, file->requests)
		{
			SwarmUploadStep *step = lfirst(lc);

			if (file->state == FILE_PUTTING || step->part > 0)
				sent += step->request->body.read;
		}
		swarm_upload_progress_set(file->progress, sent, file->size, now - file->started_ms,
								  swarm_file_state_name(file->state));
	}
}
