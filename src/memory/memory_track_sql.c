/*
 * memory_track_sql.c
 *	  What the activity tracker asks of the system, and its counters.
 */
#include "postgres.h"

#include <sys/resource.h>
#include <unistd.h>

#include "access/htup_details.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "storage/fd.h"
#include "utils/builtins.h"

#include "base/export.h"
#include "memory/memory_int.h"

static int64 local_recorded = 0;	/* without preload: of this session */
static int64 local_dropped = 0;

static int64 resident_bytes(void);

/*
 * swarm._process_usage(): CPU seconds, resident bytes and seconds of life of
 * this process; bytes NULL where the system does not tell.
 */
SWARM_FUNCTION(swarm__process_usage);
Datum
swarm__process_usage(PG_FUNCTION_ARGS)
{
	struct rusage usage;
	Datum		values[3];
	bool		nulls[3] = {false};
	TupleDesc	desc;
	int64		bytes = resident_bytes();

	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	if (getrusage(RUSAGE_SELF, &usage) != 0)
		ereport(ERROR,
				(errcode(ERRCODE_SYSTEM_ERROR), errmsg("could not read the usage of this process: %m")));
	values[0] = Float8GetDatum(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec +
							   (usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e6);
	values[1] = Int64GetDatum(bytes);
	nulls[1] = bytes == 0;
	values[2] = Float8GetDatum((GetCurrentTimestamp() - MyStartTimestamp) / 1e6);
	return HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(desc), values, nulls));
}

/*
 * resident_bytes: second field of /proc/self/statm, in pages; 0 without it.
 */
static int64
resident_bytes(void)
{
	FILE	   *file = AllocateFile("/proc/self/statm", "r");
	long		total;
	long		resident = 0;

	if (file == NULL)
		return 0;
	if (fscanf(file, "%ld %ld", &total, &resident) != 2)
		resident = 0;
	FreeFile(file);
	return (int64) resident * sysconf(_SC_PAGESIZE);
}

/*
 * swarm._track_count(error) returns void: NULL: a record was kept.
 */
SWARM_FUNCTION(swarm__track_count);
Datum
swarm__track_count(PG_FUNCTION_ARGS)
{
	static bool warned = false;
	bool		kept = PG_ARGISNULL(0);

	if (swarm_memory_shared != NULL)
		pg_atomic_fetch_add_u64(kept ? &swarm_memory_shared->recorded :
								&swarm_memory_shared->dropped, 1);
	else if (kept)
		local_recorded++;
	else
		local_dropped++;
	if (!kept && !warned)
	{
		warned = true;
		ereport(WARNING,
				(errcode(ERRCODE_WARNING),
				 errmsg("could not keep a record of an agent: %s", text_to_cstring(PG_GETARG_TEXT_PP(0))),
				 errdetail("Further ones of this session are counted in swarm.stat_tracker only.")));
	}
	PG_RETURN_VOID();
}

/*
 * swarm._track_counts(): records kept and dropped
 */
SWARM_FUNCTION(swarm__track_counts);
Datum
swarm__track_counts(PG_FUNCTION_ARGS)
{
	SwarmMemoryShared *s = swarm_memory_shared;
	Datum		values[2];
	bool		nulls[2] = {false};
	TupleDesc	desc;

	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	values[0] = Int64GetDatum(s ? (int64) pg_atomic_read_u64(&s->recorded) : local_recorded);
	values[1] = Int64GetDatum(s ? (int64) pg_atomic_read_u64(&s->dropped) : local_dropped);
	return HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(desc), values, nulls));
}
