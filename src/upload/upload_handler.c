/*
 * upload_handler.c
 *	  The job that uploads a batch: a procedure, run by a runner as the role
 *	  that called swarm.s3_upload().
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "executor/executor.h"
#include "miscadmin.h"
#include "nodes/parsenodes.h"
#include "utils/builtins.h"
#include "utils/memutils.h"

#include "base/attempt.h"
#include "base/export.h"
#include "base/fault.h"
#include "base/spi.h"
#include "upload/upload_int.h"

#define JOB_ID		1			/* fields of swarm.job */
#define JOB_ARGS	4

static Datum run_job(FunctionCallInfo fcinfo);
static void upload_batch(SwarmUpload **upload, MemoryContext context, int place,
						 int64 batch, int64 job, bool clean);
static void clean_up(SwarmUpload *upload);
static bool prepare_server(SwarmUpload *upload);
static void fail_files(SwarmUpload *upload, const ErrorData *edata);
static void end_cancelled(SwarmUpload *upload);
static void mark_started(SwarmUpload *upload);

/*
 * swarm._s3_run(job swarm.job): procedure, handler of kind s3_upload.
 */
SWARM_FUNCTION(swarm_upload_job);
Datum
swarm_upload_job(PG_FUNCTION_ARGS)
{
	if (PG_ARGISNULL(0) || MyBackendType != B_BG_WORKER || fcinfo->context == NULL ||
		!IsA(fcinfo->context, CallContext) || ((CallContext *) fcinfo->context)->atomic)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("only a runner can upload a batch"),
				 errhint("Use swarm.s3_upload() or swarm.s3_upload_sync().")));
	return run_job(fcinfo);
}

static Datum
run_job(FunctionCallInfo fcinfo)
{
	HeapTupleHeader row = PG_GETARG_HEAPTUPLEHEADER(0);
	bool		isnull;
	int64		job = DatumGetInt64(GetAttributeByNum(row, JOB_ID, &isnull));
	Datum		datum = GetAttributeByNum(row, JOB_ARGS, &isnull);
	Jsonb	   *args = isnull ? NULL : DatumGetJsonbP(datum);
	char	   *batch_text = swarm_json_text(args, "batch");
	char	   *clean = swarm_json_text(args, "clean");
	int64		batch;
	int			place;
	MemoryContext before = CurrentMemoryContext;
	MemoryContext context;
	SwarmUpload *volatile upload = NULL;

	if (batch_text == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("a job of kind \"s3_upload\" needs \"batch\" in its args")));
	batch = DatumGetInt64(DirectFunctionCall1(int8in, CStringGetDatum(batch_text)));

	/* who cancels from now on finds us, and what was cancelled before we read */
	place = swarm_upload_register(batch);
	context = AllocSetContextCreate(before, "pg_swarm upload", ALLOCSET_DEFAULT_SIZES);
	PG_TRY();
	{
		upload_batch((SwarmUpload **) &upload, context, place, batch, job,
					 clean != NULL && strcmp(clean, "true") == 0);
	}
	PG_CATCH();
	{
		ErrorData  *edata;

		MemoryContextSwitchTo(before);
		edata = CopyErrorData();
		FlushErrorState();
		swarm_s3_owner_end();
		if (upload != NULL)
			swarm_upload_drop(upload);
		swarm_upload_unregister(place);
		if (edata->sqlerrcode == ERRCODE_QUERY_CANCELED && upload != NULL &&
			upload->server != NULL && !IsTransactionState())
			end_cancelled(upload);
		MemoryContextSwitchTo(before);
		MemoryContextDelete(context);
		ReThrowError(edata);
	}
	PG_END_TRY();
	swarm_upload_unregister(place);
	MemoryContextSwitchTo(before);
	MemoryContextDelete(context);
	PG_RETURN_VOID();
}

static void
upload_batch(SwarmUpload **result, MemoryContext context, int place,
			 int64 batch, int64 job, bool clean)
{
	Oid			owner;
	int64		current;
	int64		ms;
	bool		finished;
	SwarmUpload *upload = swarm_upload_load(context, batch, &owner, &current, &finished, &ms);

	if (upload == NULL || owner != GetUserId())
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT), errmsg("batch " INT64_FORMAT " does not exist", batch)));
	if (!clean && current != job)
		return;					/* swarm.s3_retry() has given it to another */
	*result = upload;
	upload->place = place;
	if (clean)
	{
		clean_up(upload);
		return;
	}
	mark_started(upload);
	if (prepare_server(upload))
		swarm_upload_run(upload);
	else
		swarm_upload_store(upload);
	swarm_upload_finish(upload);
	if (swarm_upload_load_left(upload) != NIL)
		(void) swarm_upload_enqueue(batch, true);
}

/* clean_up: abort the multipart uploads that runs of the batch could not. */
static void
clean_up(SwarmUpload *upload)
{
	List	   *left = swarm_upload_load_left(upload);
	int			n = swarm_upload_abort_left(upload, left);

	swarm_upload_forget_left(upload, left);
	if (n > 0)
	{
		/* the others need not be tried again */
		swarm_upload_leave(upload, false);
		swarm_upload_enter(upload);
		ereport(ERROR,
				(errcode(ERRCODE_CONNECTION_FAILURE),
				 errmsg("could not abort %d multipart uploads of batch " INT64_FORMAT, n, upload->batch)));
	}
}

static void
read_server(void *arg)
{
	SwarmUpload *upload = arg;

	upload->server = swarm_s3_server(upload->server_name);
	swarm_upload_options(upload, upload->options);
	for (int i = 0; i < upload->nfiles; i++)
		swarm_s3_check_object(upload->server, upload->bucket, upload->files[i].key);
}

/*
 * prepare_server: read the server, and see whether all this is still allowed.
 * False if no file can be sent; each has been told why.
 */
static bool
prepare_server(SwarmUpload *upload)
{
	ErrorData  *edata = swarm_attempt(read_server, upload, upload->context);

	MemoryContextSwitchTo(upload->context);
	if (edata == NULL)
	{
		swarm_upload_read_fallback(upload);
		swarm_upload_read_servers(upload);
		return true;
	}
	fail_files(upload, edata);
	return false;
}

static void
fail_files(SwarmUpload *upload, const ErrorData *edata)
{
	upload->first = 0;
	upload->top = upload->nfiles;
	for (int i = 0; i < upload->nfiles; i++)
	{
		SwarmUploadFile *file = &upload->files[i];

		if (file->state >= FILE_DONE)
			continue;
		file->state = upload->cancelled ? FILE_CANCELLED : FILE_FAILED;
		file->dirty = true;
		strlcpy(file->code, unpack_sql_state(edata->sqlerrcode), sizeof(file->code));
		swarm_net_text(file->error, sizeof(file->error), edata->message);
	}
}

/*
 * end_cancelled: the job was cancelled, by swarm.job_cancel(), while it waited
 * for the network: nobody will run it again.  Say so in the table, and have
 * another job abort what was begun.
 */
static void
end_cancelled(SwarmUpload *upload)
{
	swarm_upload_enter(upload);
	upload->first = 0;
	upload->top = upload->nfiles;
	for (int i = 0; i < upload->nfiles; i++)
	{
		SwarmUploadFile *file = &upload->files[i];

		if (file->state >= FILE_DONE)
			continue;
		file->state = FILE_CANCELLED;
		file->dirty = true;
		strlcpy(file->code, "Cancelled", sizeof(file->code));
		strlcpy(file->error, "the job was cancelled", sizeof(file->error));
	}
	swarm_upload_store(upload);
	swarm_upload_finish(upload);
	if (swarm_upload_load_left(upload) != NIL)
		(void) swarm_upload_enqueue(upload->batch, true);
	swarm_upload_leave(upload, true);
	swarm_s3_owner_end();
}

static void
mark_started(SwarmUpload *upload)
{
	SwarmSpi	spi;
	Oid			types[] = {INT8OID};
	Datum		values[] = {Int64GetDatum(upload->batch)};

	swarm_spi_begin(&spi);
	swarm_spi_execute("UPDATE swarm._s3_batch SET started_at = swarm._now() "
					  "WHERE id = $1 AND started_at IS NULL", 1, types, values, NULL);
	swarm_spi_end(&spi);
}
