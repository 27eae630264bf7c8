/*
 * upload.c
 *	  Settings of module upload, and what its runs share: which batches are
 *	  under way, who wants one stopped, how far each file is.
 *
 * Nothing here is needed for correctness: without room in shared memory a
 * batch runs without being watched.
 */
#include "postgres.h"

#include "miscadmin.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/lwlock.h"
#include "storage/proc.h"
#include "utils/guc.h"

#include "base/doorbell.h"
#include "base/shmem.h"
#include "job/job.h"
#include "upload/upload_int.h"

#define RUNS		64
#define FILES		1024

typedef struct Run
{
	Oid			database;		/* InvalidOid = free */
	int64		batch;
	int			pid;
	Latch	   *latch;
	bool		stop;
} Run;

typedef struct Runs
{
	Run			runs[RUNS];
	SwarmUploadProgress files[FILES];
} Runs;

typedef struct StopWish
{
	Oid			database;
	int64		batch;
} StopWish;

int			swarm_s3_max_files = 20;
int			swarm_s3_max_file_kb = 100 * 1024;
int			swarm_s3_part_kb = 8 * 1024;

static Runs *shared = NULL;
static LWLock *shared_lock = NULL;

static Size runs_size(void);
static void runs_attach(void *memory, bool found);
static void ring_stop(void *item);
static void leave_at_exit(int code, Datum arg);

static SwarmShmemPiece runs_piece = {
	.name = "pg_swarm uploads",
	.size = runs_size,
	.init = runs_attach,
	.pointer = (void **) &shared,
	.lock = &shared_lock
};

void
swarm_upload_init(void)
{
	DefineCustomIntVariable("pg_swarm.s3_max_files",
							"Most files in a batch.", NULL,
							&swarm_s3_max_files, 20, 1, 100000,
							PGC_SUSET, 0, NULL, NULL, NULL);
	DefineCustomIntVariable("pg_swarm.s3_max_file_size",
							"Largest file.", NULL,
							&swarm_s3_max_file_kb, 100 * 1024, 1, INT_MAX,
							PGC_SUSET, GUC_UNIT_KB, NULL, NULL, NULL);
	DefineCustomIntVariable("pg_swarm.s3_part_size",
							"Files larger than this are sent in parts of this size.",
							"It grows by itself for files that would have more than 10000 parts.",
							&swarm_s3_part_kb, 8 * 1024, SWARM_S3_PART_MIN / 1024, 4 * 1024 * 1024,
							PGC_USERSET, GUC_UNIT_KB, NULL, NULL, NULL);
	swarm_shmem_register(&runs_piece);
	swarm_job_history_register(swarm_upload_prune);
}

static Size
runs_size(void)
{
	return sizeof(Runs);
}

static void
runs_attach(void *memory, bool found)
{
}

/* swarm_upload_register: a batch is under way in this process. */
int
swarm_upload_register(int64 batch)
{
	static bool exit_registered = false;
	int			place = -1;
	bool		twice = false;

	if (shared == NULL)
		return -1;
	if (!exit_registered)
		before_shmem_exit(leave_at_exit, (Datum) 0);
	exit_registered = true;
	LWLockAcquire(shared_lock, LW_EXCLUSIVE);
	for (int i = 0; i < RUNS; i++)
	{
		Run		   *run = &shared->runs[i];

		if (run->database == MyDatabaseId && run->batch == batch)
			twice = true;
		else if (run->database == InvalidOid && place < 0)
			place = i;
	}
	if (!twice && place >= 0)
	{
		Run		   *run = &shared->runs[place];

		run->database = MyDatabaseId;
		run->batch = batch;
		run->pid = MyProcPid;
		run->latch = MyLatch;
		run->stop = false;
	}
	LWLockRelease(shared_lock);
	if (twice)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_IN_USE),
				 errmsg("batch " INT64_FORMAT " is being uploaded already", batch)));
	if (place < 0)
		ereport(ERROR,
				(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
				 errmsg("too many batches are being uploaded at the same time")));
	return place;
}

void
swarm_upload_unregister(int place)
{
	if (shared == NULL || place < 0)
		return;
	LWLockAcquire(shared_lock, LW_EXCLUSIVE);
	memset(&shared->runs[place], 0, sizeof(Run));
	LWLockRelease(shared_lock);
}

static void
leave_at_exit(int code, Datum arg)
{
	LWLockAcquire(shared_lock, LW_EXCLUSIVE);
	for (int i = 0; i < RUNS; i++)
	{
		if (shared->runs[i].pid == MyProcPid)
			memset(&shared->runs[i], 0, sizeof(Run));
	}
	for (int i = 0; i < FILES; i++)
	{
		if (shared->files[i].pid == MyProcPid)
			memset(&shared->files[i], 0, sizeof(SwarmUploadProgress));
	}
	LWLockRelease(shared_lock);
}

bool
swarm_upload_stop_asked(int place)
{
	/* a flag that is only ever set while it is ours */
	return shared != NULL && place >= 0 && shared->runs[place].stop;
}

/*
 * swarm_upload_ask_stop_at_commit: tell the run, if there is one, that the
 * batch is cancelled.  One that starts later finds it in the table.
 */
void
swarm_upload_ask_stop_at_commit(int64 batch)
{
	StopWish	wish = {MyDatabaseId, batch};

	if (shared != NULL)
		swarm_doorbell_add(ring_stop, NULL, &wish, sizeof(wish));
}

static void
ring_stop(void *item)
{
	StopWish   *wish = item;

	LWLockAcquire(shared_lock, LW_EXCLUSIVE);
	for (int i = 0; i < RUNS; i++)
	{
		Run		   *run = &shared->runs[i];

		if (run->database == wish->database && run->batch == wish->batch)
		{
			run->stop = true;
			SetLatch(run->latch);
		}
	}
	LWLockRelease(shared_lock);
}

int
swarm_upload_progress_take(int64 batch, int no)
{
	int			place = -1;

	if (shared == NULL || batch == 0)
		return -1;
	LWLockAcquire(shared_lock, LW_EXCLUSIVE);
	for (int i = 0; i < FILES && place < 0; i++)
	{
		SwarmUploadProgress *p = &shared->files[i];

		if (p->database != InvalidOid)
			continue;
		place = i;
		p->database = MyDatabaseId;
		p->batch = batch;
		p->no = no;
		p->pid = MyProcPid;
		p->sent = p->total = p->ms = 0;
		p->step[0] = '\0';
	}
	LWLockRelease(shared_lock);
	return place;
}

void
swarm_upload_progress_set(int place, int64 sent, int64 total, int64 ms, const char *step)
{
	if (shared == NULL || place < 0)
		return;
	LWLockAcquire(shared_lock, LW_EXCLUSIVE);
	shared->files[place].sent = sent;
	shared->files[place].total = total;
	shared->files[place].ms = ms;
	strlcpy(shared->files[place].step, step, sizeof(shared->files[place].step));
	LWLockRelease(shared_lock);
}

void
swarm_upload_progress_give(int place)
{
	if (shared == NULL || place < 0)
		return;
	LWLockAcquire(shared_lock, LW_EXCLUSIVE);
	memset(&shared->files[place], 0, sizeof(SwarmUploadProgress));
	LWLockRelease(shared_lock);
}

/* swarm_upload_progress_copy: files of this database that are under way. */
int
swarm_upload_progress_copy(SwarmUploadProgress **copies)
{
	int			n = 0;

	*copies = palloc(FILES * sizeof(SwarmUploadProgress));
	if (shared == NULL)
		return 0;
	LWLockAcquire(shared_lock, LW_SHARED);
	for (int i = 0; i < FILES; i++)
	{
		if (shared->files[i].database == MyDatabaseId)
			(*copies)[n++] = shared->files[i];
	}
	LWLockRelease(shared_lock);
	return n;
}
