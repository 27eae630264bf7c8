/*
 * upload_fallback.c
 *	  Which server a file goes to: that of the batch, or its fallback while the
 *	  circuit breaker of the first is open.
 *
 * A file changes its server at most once in a run.  What it has begun where it
 * was, a multipart upload, is left behind: noted, to be aborted there later.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "utils/memutils.h"

#include "base/attempt.h"
#include "base/spi.h"
#include "upload/upload_int.h"

static SwarmS3Server *read_server(SwarmUpload *upload, const char *name, bool check, char **fault);
static SwarmS3Server *server_named(SwarmUpload *upload, const char *name);
static bool is_open(const SwarmS3Server *server);
static SwarmS3Server *usable_fallback(SwarmUpload *upload);
static void leave_behind(SwarmUploadFile *file);

/*
 * swarm_upload_read_fallback: as the policy of the batch's server names it.
 * In a transaction.  One that is not there, or that the current user or these
 * keys may not use, is none: it makes nothing worse.
 */
void
swarm_upload_read_fallback(SwarmUpload *upload)
{
	const char *name = upload->server->policy.fallback;

	upload->fallback = NULL;
	upload->fallback_fault = NULL;
	if (name != NULL && strcmp(name, upload->server->name) != 0)
		upload->fallback = read_server(upload, name, true, &upload->fallback_fault);
}

/*
 * swarm_upload_read_servers: where lost runs have sent the files of a batch
 * whose server is read.
 */
void
swarm_upload_read_servers(SwarmUpload *upload)
{
	for (int i = 0; i < upload->nfiles; i++)
	{
		SwarmUploadFile *file = &upload->files[i];

		if (file->state < FILE_DONE)
			file->server = server_named(upload, file->server_name);
	}
}

/* A server that is read; check: for all keys of the batch. */
typedef struct Reading
{
	SwarmUpload *upload;
	const char *name;
	bool		check;
	SwarmS3Server *server;
} Reading;

static void
read_it(void *arg)
{
	Reading    *r = arg;

	r->server = swarm_s3_server(r->name);
	for (int i = 0; r->check && i < r->upload->nfiles; i++)
		swarm_s3_check_object(r->server, r->upload->bucket, r->upload->files[i].key);
}

/* read_server: NULL if it cannot be used, *fault says why. */
static SwarmS3Server *
read_server(SwarmUpload *upload, const char *name, bool check, char **fault)
{
	Reading		reading = {.upload = upload, .name = name, .check = check};
	ErrorData  *edata = swarm_attempt(read_it, &reading, upload->context);

	if (edata == NULL)
		return reading.server;
	*fault = edata->message;
	return NULL;
}

/* server_named: NULL is the batch's; NULL if it cannot be used.  In a transaction. */
static SwarmS3Server *
server_named(SwarmUpload *upload, const char *name)
{
	ListCell   *lc;
	SwarmS3Server *server;
	MemoryContext old;
	char	   *fault;

	if (upload->server != NULL && (name == NULL || strcmp(name, upload->server->name) == 0))
		return upload->server;
	if (name == NULL)
		name = upload->server_name;
	if (upload->fallback != NULL && strcmp(name, upload->fallback->name) == 0)
		return upload->fallback;
	foreach(lc, upload->other_servers)
	{
		server = lfirst(lc);
		if (strcmp(name, server->name) == 0)
			return server;
	}
	server = read_server(upload, name, false, &fault);
	old = MemoryContextSwitchTo(upload->context);
	if (server != NULL)
		upload->other_servers = lappend(upload->other_servers, server);
	MemoryContextSwitchTo(old);
	return server;
}

static bool
is_open(const SwarmS3Server *server)
{
	return swarm_net_endpoint_is_open(server->endpoint);
}

/* usable_fallback: NULL if there is none, or it is left alone as well. */
static SwarmS3Server *
usable_fallback(SwarmUpload *upload)
{
	if (upload->fallback_fault != NULL)
	{
		ereport(WARNING,
				(errmsg("fallback \"%s\" of server \"%s\" is not used: %s", upload->server->policy.fallback,
						upload->server->name, upload->fallback_fault)));
		upload->fallback_fault = NULL;	/* said once */
	}
	return upload->fallback == NULL || is_open(upload->fallback) ? NULL : upload->fallback;
}

/*
 * swarm_upload_choose_server: for a file that is about to be opened.  What was
 * begun somewhere goes on there, unless that server is left alone.
 */
void
swarm_upload_choose_server(SwarmUploadFile *file)
{
	SwarmUpload *upload = file->upload;
	SwarmS3Server *chosen = upload->server;

	if (file->moved || (file->upload_id != NULL && file->server != NULL && !is_open(file->server)))
		return;
	if (is_open(upload->server))
	{
		SwarmS3Server *fallback = usable_fallback(upload);

		if (fallback != NULL)
			chosen = fallback;
	}
	if (file->upload_id != NULL && chosen != file->server)
		leave_behind(file);
	file->server = chosen;
	file->server_name = chosen == upload->server ? NULL : chosen->name;
	file->dirty |= upload->batch != 0 && file->server_name != NULL;
}

/* swarm_upload_can_move: a request of the file has failed for good: elsewhere it may not. */
bool
swarm_upload_can_move(SwarmUploadFile *file)
{
	SwarmUpload *upload = file->upload;

	return !file->moved && !upload->cancelled && file->server == upload->server &&
		is_open(upload->server) && usable_fallback(upload) != NULL;
}

/* swarm_upload_move: to the fallback; what the file has begun is left behind. */
void
swarm_upload_move(SwarmUploadFile *file)
{
	SwarmUpload *upload = file->upload;

	if (file->upload_id != NULL)
		leave_behind(file);
	file->moved = true;
	file->server = upload->fallback;
	file->server_name = upload->fallback->name;
	file->attempts_before = file->attempts;
	file->dirty = upload->batch != 0;
}

/* leave_behind: a multipart upload, to be aborted where it is. */
static void
leave_behind(SwarmUploadFile *file)
{
	SwarmUpload *upload = file->upload;
	MemoryContext old = MemoryContextSwitchTo(upload->context);
	SwarmUploadLeft *left = palloc0(sizeof(SwarmUploadLeft));

	left->no = file->no;
	left->key = file->key;
	left->server_name = pstrdup(file->server_name ? file->server_name : upload->server_name);
	left->upload_id = file->upload_id;
	upload->left = lappend(upload->left, left);
	MemoryContextSwitchTo(old);
	file->upload_id = NULL;
	file->dirty = upload->batch != 0;
}

/*
 * swarm_upload_abort_left: try to abort what is in `left`, each at its server.
 * Called in a transaction, which it leaves while it waits unless the upload
 * stays in its caller's.  Returns how many could not be aborted; the others
 * are marked.
 */
int
swarm_upload_abort_left(SwarmUpload *upload, List *left)
{
	SwarmUpload *run;
	ListCell   *lc;
	int			n = 0;

	MemoryContextSwitchTo(upload->context);
	run = palloc0(sizeof(SwarmUpload));
	run->context = upload->context;
	run->place = -1;
	run->bucket = upload->bucket;
	run->in_transaction = upload->in_transaction;
	run->cancelled = upload->in_transaction;	/* does not wait for long */
	run->files = palloc0(Max(list_length(left), 1) * sizeof(SwarmUploadFile));
	foreach(lc, left)
	{
		SwarmUploadLeft *one = lfirst(lc);
		SwarmUploadFile *file = &run->files[run->nfiles];
		SwarmS3Server *server = server_named(upload, one->server_name);

		one->file = NULL;
		if (server == NULL)
			continue;
		file->upload = run;
		file->no = one->no;
		file->name = file->key = one->key;
		file->server = run->server = server;
		file->upload_id = one->upload_id;
		file->state = FILE_ABORTING;
		file->outcome = FILE_DONE;
		one->file = file;
		run->nfiles++;
	}
	if (run->nfiles > 0)
		swarm_upload_run(run);
	foreach(lc, left)
	{
		SwarmUploadLeft *one = lfirst(lc);

		one->aborted = one->file != NULL && one->file->upload_id == NULL;
		n += !one->aborted;
	}
	MemoryContextSwitchTo(upload->context);
	return n;
}

/*
 * swarm_upload_end_here: of an upload that is not in a table: nobody else will
 * abort what it has left behind.
 */
void
swarm_upload_end_here(SwarmUpload *upload)
{
	ListCell   *lc;

	if (upload->left == NIL || swarm_upload_abort_left(upload, upload->left) == 0)
		return;
	foreach(lc, upload->left)
	{
		SwarmUploadLeft *one = lfirst(lc);

		if (!one->aborted)
			ereport(WARNING,
					(errmsg("could not abort a multipart upload of \"%s\" in bucket \"%s\" of server \"%s\"",
							one->key, upload->bucket, one->server_name),
					 errhint("A lifecycle rule of the bucket removes it.")));
	}
}
