/*
 * worker_inflight.c
 *	  Which jobs ran when the server crashed.
 *
 * A runner writes the job it is about to run into its own record of a small
 * file, without fsync: the record survives the death of all processes (it is
 * in the kernel's page cache), which is what a job can cause.  When shared
 * memory is fresh, the launcher reads the file; the schedulers count the
 * crash as an attempt of each job that is still live.  A record of a job that
 * had just committed does no harm: the job is not live any more.
 *
 * The file is in pg_stat_tmp, which base backups leave out.
 */
#include "postgres.h"

#include <fcntl.h>
#include <unistd.h>

#include "miscadmin.h"
#include "storage/fd.h"

#include "base/clock.h"
#include "worker/worker_int.h"

#define INFLIGHT_FILE	"pg_stat_tmp/pg_swarm.inflight"
#define INFLIGHT_MAGIC	0x53574d31	/* SWM1 */

typedef struct InflightRecord
{
	uint32		magic;
	Oid			database;
	int64		id;				/* 0 = nothing */
	int32		attempt;
	char		pad[64 - 20];
} InflightRecord;

StaticAssertDecl(sizeof(InflightRecord) == 64, "one record is 64 bytes");

static int	inflight_fd = -1;
static int	inflight_slot = -1;
static bool inflight_noted = false;

/*
 * swarm_inflight_read: once per life of shared memory, by the launcher before
 * it starts anything: remember the suspects and empty the file.
 */
void
swarm_inflight_read(void)
{
	InflightRecord record;
	int			n = 0;
	int			fd;

	if (swarm_worker_shared->inflight_read)
		return;
	fd = BasicOpenFile(INFLIGHT_FILE, O_RDWR | O_CREAT | PG_BINARY);
	if (fd < 0)
	{
		ereport(WARNING,
				(errcode_for_file_access(),
				 errmsg("could not open file \"%s\": %m", INFLIGHT_FILE),
				 errdetail("Jobs that crash the server will not be counted.")));
		return;
	}
	while (n < swarm_max_slots && read(fd, &record, sizeof(record)) == sizeof(record))
	{
		if (record.magic != INFLIGHT_MAGIC || record.id == 0)
			continue;
		swarm_worker_shared->suspects[n].database = record.database;
		swarm_worker_shared->suspects[n].attempt = record.attempt;
		swarm_worker_shared->suspects[n].id = record.id;
		n++;
	}
	if (ftruncate(fd, 0) != 0)
		ereport(WARNING,
				(errcode_for_file_access(),
				 errmsg("could not truncate file \"%s\": %m", INFLIGHT_FILE)));
	close(fd);
	swarm_worker_shared->inflight_read = true;
}

/*
 * swarm_inflight_open: for who runs jobs: its record is number `slot` from now
 * on.
 */
void
swarm_inflight_open(int slot)
{
	inflight_slot = slot;
	if (inflight_fd < 0)
		inflight_fd = BasicOpenFile(INFLIGHT_FILE, O_RDWR | O_CREAT | PG_BINARY);
}

/*
 * swarm_inflight_note: this process is about to run that attempt of a job;
 * id 0: nothing.
 */
void
swarm_inflight_note(int64 id, int attempt)
{
	InflightRecord record = {INFLIGHT_MAGIC, MyDatabaseId, id, attempt, {0}};

	if (inflight_fd < 0 || (id == 0 && !inflight_noted))
		return;
	inflight_noted = id != 0;
	if (pwrite(inflight_fd, &record, sizeof(record),
			   (off_t) inflight_slot * sizeof(record)) != sizeof(record))
		ereport(LOG,
				(errcode_for_file_access(),
				 errmsg("could not write file \"%s\": %m", INFLIGHT_FILE)));
}
