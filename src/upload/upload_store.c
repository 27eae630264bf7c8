/*
 * upload_store.c
 *	  The tables of module upload, and the transactions of a run.
 *
 * A run is a procedure: between two of its transactions it is in none, which
 * is when it uses the network.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/guc.h"
#include "utils/memutils.h"

#include "base/compat.h"
#include "base/fault.h"
#include "base/procedure.h"
#include "base/spi.h"
#include "upload/upload_int.h"

static void store_file(SwarmUploadFile *file, SPIPlanPtr *plan);
static void store_left(SwarmUpload *upload);
static SwarmFileState state_named(const char *name);
static Datum text_or_null(const char *text, char *null);

/*
 * swarm_upload_leave: commit, as COMMIT in a procedure does, but begin no new
 * transaction yet.  Not `durable`: files need not wait for the disk.
 */
void
swarm_upload_leave(SwarmUpload *upload, bool durable)
{
	if (!durable)
		(void) set_config_option("synchronous_commit", "off", PGC_USERSET, PGC_S_SESSION,
								 GUC_ACTION_LOCAL, true, 0, false);
	swarm_procedure_leave(upload->context);
	swarm_s3_owner_begin();
}

void
swarm_upload_enter(SwarmUpload *upload)
{
	swarm_s3_owner_end();
	swarm_procedure_enter(upload->context);
}

/*
 * swarm_upload_store: write what the table does not know yet.
 */
void
swarm_upload_store(SwarmUpload *upload)
{
	SPIPlanPtr	plan = NULL;
	SwarmSpi	spi;

	if (upload->batch == 0)
		return;
	swarm_spi_begin(&spi);
	for (int i = upload->first; i < upload->top; i++)
	{
		if (upload->files[i].dirty)
			store_file(&upload->files[i], &plan);
		upload->files[i].dirty = false;
	}
	store_left(upload);
	swarm_spi_end(&spi);
	MemoryContextSwitchTo(upload->context);
	upload->flush_ms = 0;
	SWARM_FAULT("upload.store");
}

static Datum
text_or_null(const char *text, char *null)
{
	*null = text == NULL || *text == '\0' ? 'n' : ' ';

	return *null == 'n' ? (Datum) 0 : CStringGetTextDatum(text);
}

/* store_file: *plan is kept for the next one. */
static void
store_file(SwarmUploadFile *file, SPIPlanPtr *plan)
{
	int			rc;
	bool		done = file->state == FILE_DONE;
	bool		final = file->state >= FILE_DONE;
	Oid			types[] = {INT8OID, INT4OID, TEXTOID, INT8OID, TEXTOID, INT4OID, INT4OID, TEXTOID, TEXTOID,
	TEXTOID, INT8OID, BOOLOID, BOOLOID, TEXTOID};
	Datum		values[14];
	char		nulls[15] = "              ";

	values[0] = Int64GetDatum(file->upload->batch);
	values[1] = Int32GetDatum(file->no);
	values[2] = CStringGetTextDatum(final ? swarm_file_state_name(file->state) : "running");
	values[3] = Int64GetDatum(file->size);
	nulls[3] = file->size < 0 ? 'n' : ' ';
	values[4] = text_or_null(file->etag, &nulls[4]);
	values[5] = Int32GetDatum(file->attempts);
	values[6] = Int32GetDatum(file->status);
	values[7] = text_or_null(file->code, &nulls[7]);
	values[8] = text_or_null(file->error, &nulls[8]);
	values[9] = text_or_null(file->upload_id, &nulls[9]);
	values[10] = Int64GetDatum(file->ms);
	values[11] = BoolGetDatum(done);
	values[12] = BoolGetDatum(final);
	values[13] = text_or_null(file->server_name, &nulls[13]);
	if (*plan == NULL)
		*plan = SPI_prepare("UPDATE swarm._s3_file SET state = $3, size = coalesce($4, size), etag = $5, "
							"attempts = $6, status = $7, code = $8, error = $9, upload_id = $10, ms = $11, "
							"data = CASE WHEN $12 THEN NULL ELSE data END, "
							"started_at = coalesce(started_at, swarm._now()), "
							"finished_at = CASE WHEN $13 THEN swarm._now() END, server = $14 "
							"WHERE batch = $1 AND no = $2", 14, types);
	rc = *plan ? SPI_execute_plan(*plan, values, nulls, false, 0) : SPI_result;
	if (rc != SPI_OK_UPDATE)
		elog(ERROR, "could not store an outcome: %s", SPI_result_code_string(rc));
}

/* store_left: multipart uploads that files have left behind at another server. */
static void
store_left(SwarmUpload *upload)
{
	Oid			types[] = {INT8OID, INT4OID, TEXTOID, TEXTOID};
	ListCell   *lc;

	foreach(lc, upload->left)
	{
		SwarmUploadLeft *left = lfirst(lc);
		Datum		values[] = {Int64GetDatum(upload->batch), Int32GetDatum(left->no),
		CStringGetTextDatum(left->server_name), CStringGetTextDatum(left->upload_id)};

		if (!left->stored)
			swarm_spi_execute("INSERT INTO swarm._s3_left (batch, no, server, upload_id) VALUES ($1, $2, $3, $4)",
							  4, types, values, NULL);
		left->stored = true;
	}
}

static SwarmFileState
state_named(const char *name)
{
	for (int i = FILE_DONE; i < FILE_STATES; i++)
	{
		if (strcmp(name, swarm_file_state_name(i)) == 0)
			return i;
	}
	return FILE_WAITING;
}

/* keep_jsonb: a copy in the current context, or NULL. */
static Jsonb *
keep_jsonb(uint64 row, int column)
{
	bool		isnull;
	Datum		d = swarm_spi_column(row, column, &isnull);

	return isnull ? NULL : (Jsonb *) PG_DETOAST_DATUM_COPY(d);
}

static char *
keep_text(uint64 row, int column)
{
	char	   *text = swarm_spi_text(row, column);

	return text == NULL ? NULL : pstrdup(text);
}

/*
 * swarm_upload_load: a batch and its files, in `context`; NULL if there is
 * none.  The contents of bytea sources stay in the table.
 */
SwarmUpload *
swarm_upload_load(MemoryContext context, int64 batch, Oid *owner, int64 *job, bool *finished, int64 *ms)
{
	SwarmSpi	spi;
	Oid			types[] = {INT8OID};
	Datum		values[] = {Int64GetDatum(batch)};
	SwarmUpload *upload = NULL;
	bool		isnull;

	swarm_spi_begin(&spi);
	if (swarm_spi_query("SELECT owner::oid, server, bucket, options, job, cancelled, finished_at IS NOT NULL, "
						"(extract(epoch FROM coalesce(finished_at, swarm._now()) - coalesce(started_at, created_at)) * 1000)::int8, started_at "
						"FROM swarm._s3_batch WHERE id = $1", 1, types, values, NULL) > 0)
	{
		MemoryContextSwitchTo(context);
		upload = palloc0(sizeof(SwarmUpload));
		upload->context = context;
		upload->batch = batch;
		upload->place = -1;
		*owner = DatumGetObjectId(swarm_spi_column(0, 1, &isnull));
		upload->server_name = keep_text(0, 2);
		upload->bucket = keep_text(0, 3);
		upload->options = keep_jsonb(0, 4);
		*job = DatumGetInt64(swarm_spi_column(0, 5, &isnull));
		upload->cancelled = swarm_spi_bool(0, 6);
		*finished = swarm_spi_bool(0, 7);
		*ms = swarm_spi_int64(0, 8);
		upload->since = DatumGetTimestampTz(swarm_spi_column(0, 9, &isnull));
		if (isnull)
			upload->since = 0;
		upload->nfiles = (int) swarm_spi_query(
											   "SELECT no, name, key, kind, ref, content_type, metadata, state, coalesce(size, -1), etag, "
											   "attempts, coalesce(status, 0), code, error, upload_id, coalesce(ms, 0), server "
											   "FROM swarm._s3_file WHERE batch = $1 ORDER BY no", 1, types, values, NULL);
		MemoryContextSwitchTo(context);
		upload->files = palloc0(Max(upload->nfiles, 1) * sizeof(SwarmUploadFile));
		for (int i = 0; i < upload->nfiles; i++)
		{
			SwarmUploadFile *file = &upload->files[i];
			char	   *text;

			file->upload = upload;
			file->no = swarm_spi_int32(i, 1);
			file->name = keep_text(i, 2);
			file->key = keep_text(i, 3);
			file->source.kind = keep_text(i, 4);
			file->source.ref = keep_jsonb(i, 5);
			file->source.batch = batch;
			file->source.no = file->no;
			file->content_type = keep_text(i, 6);
			file->metadata = keep_jsonb(i, 7);
			file->state = state_named(swarm_spi_text(i, 8));
			file->size = swarm_spi_int64(i, 9);
			file->etag = keep_text(i, 10);
			file->attempts = swarm_spi_int32(i, 11);
			file->status = swarm_spi_int32(i, 12);
			if ((text = swarm_spi_text(i, 13)) !=NULL)
				strlcpy(file->code, text, sizeof(file->code));
			if ((text = swarm_spi_text(i, 14)) !=NULL)
				strlcpy(file->error, text, sizeof(file->error));
			file->upload_id = keep_text(i, 15);
			file->ms = swarm_spi_int64(i, 16);
			file->server_name = keep_text(i, 17);
			file->progress = -1;
		}
	}
	swarm_spi_end(&spi);
	MemoryContextSwitchTo(context);
	return upload;
}

/*
 * swarm_upload_load_left: multipart uploads that runs of the batch could not
 * abort: of files that have ended, and what files left at another server.
 */
List *
swarm_upload_load_left(SwarmUpload *upload)
{
	SwarmSpi	spi;
	Oid			types[] = {INT8OID};
	Datum		values[] = {Int64GetDatum(upload->batch)};
	List	   *list = NIL;
	uint64		n;

	swarm_spi_begin(&spi);
	n = swarm_spi_query("SELECT f.no, f.key, coalesce(f.server, b.server), f.upload_id "
						"FROM swarm._s3_file f JOIN swarm._s3_batch b ON b.id = f.batch "
						"WHERE f.batch = $1 AND f.upload_id IS NOT NULL AND f.state IN ('done', 'failed', 'cancelled') "
						"UNION ALL SELECT l.no, f.key, l.server, l.upload_id "
						"FROM swarm._s3_left l JOIN swarm._s3_file f ON f.batch = l.batch AND f.no = l.no "
						"WHERE l.batch = $1 ORDER BY 1", 1, types, values, NULL);
	MemoryContextSwitchTo(upload->context);
	for (uint64 i = 0; i < n; i++)
	{
		SwarmUploadLeft *left = palloc0(sizeof(SwarmUploadLeft));

		left->no = swarm_spi_int32(i, 1);
		left->key = keep_text(i, 2);
		left->server_name = keep_text(i, 3);
		left->upload_id = keep_text(i, 4);
		list = lappend(list, left);
	}
	swarm_spi_end(&spi);
	MemoryContextSwitchTo(upload->context);
	return list;
}

/* swarm_upload_forget_left: those that were aborted. */
void
swarm_upload_forget_left(SwarmUpload *upload, List *list)
{
	SwarmSpi	spi;
	Oid			types[] = {INT8OID, INT4OID, TEXTOID};
	ListCell   *lc;

	swarm_spi_begin(&spi);
	foreach(lc, list)
	{
		SwarmUploadLeft *left = lfirst(lc);
		Datum		values[] = {Int64GetDatum(upload->batch), Int32GetDatum(left->no),
		CStringGetTextDatum(left->upload_id)};

		if (!left->aborted)
			continue;
		swarm_spi_execute("UPDATE swarm._s3_file SET upload_id = NULL WHERE batch = $1 AND no = $2 AND upload_id = $3",
						  3, types, values, NULL);
		swarm_spi_execute("DELETE FROM swarm._s3_left WHERE batch = $1 AND no = $2 AND upload_id = $3",
						  3, types, values, NULL);
	}
	swarm_spi_end(&spi);
	MemoryContextSwitchTo(upload->context);
}

/* swarm_upload_finish: every file has its outcome. */
void
swarm_upload_finish(SwarmUpload *upload)
{
	SwarmSpi	spi;
	Oid			types[] = {INT8OID};
	Datum		values[] = {Int64GetDatum(upload->batch)};

	swarm_spi_begin(&spi);
	swarm_spi_execute("UPDATE swarm._s3_batch SET finished_at = swarm._now() WHERE id = $1",
					  1, types, values, NULL);
	swarm_spi_end(&spi);
	swarm_upload_after(upload);
}

/*
 * swarm_upload_prune: batches go with the history of their jobs, but for those
 * whose multipart uploads nobody could abort.
 */
void
swarm_upload_prune(TimestampTz before)
{
	SwarmSpi	spi;
	Oid			types[] = {TIMESTAMPTZOID};
	Datum		values[] = {TimestampTzGetDatum(before)};

	swarm_spi_begin(&spi);
	swarm_spi_execute("DELETE FROM swarm._s3_batch WHERE id IN ("
					  "SELECT id FROM swarm._s3_batch b WHERE coalesce(finished_at, created_at) < $1 "
					  "AND NOT EXISTS (SELECT FROM swarm._job j WHERE j.id = b.job) "
					  "AND NOT EXISTS (SELECT FROM swarm._s3_file f WHERE f.batch = b.id AND f.upload_id IS NOT NULL) "
					  "AND NOT EXISTS (SELECT FROM swarm._s3_left l WHERE l.batch = b.id) "
					  "FOR UPDATE SKIP LOCKED)", 1, types, values, NULL);
	swarm_spi_end(&spi);
}

/*
 * swarm_upload_enqueue: a job of the current user for the batch; `clean`: only
 * to abort what is left of it.  Returns the job's id.
 */
int64
swarm_upload_enqueue(int64 batch, bool clean)
{
	Oid			types[] = {INT8OID, BOOLOID};
	Datum		values[] = {Int64GetDatum(batch), BoolGetDatum(clean)};
	int64		job;
	bool		isnull;

	SPI_connect();
	if (SPI_execute_with_args("SELECT swarm.job_enqueue('s3_upload', pg_catalog.jsonb_build_object('batch', $1, 'clean', $2), "
							  "max_attempts => CASE WHEN $2 THEN 1000 ELSE 20 END, timeout => NULL)",
							  2, types, values, NULL, false, 1) != SPI_OK_SELECT || SPI_processed != 1)
		elog(ERROR, "could not enqueue the job of batch " INT64_FORMAT, batch);
	job = DatumGetInt64(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull));
	SPI_finish();
	return job;
}
