/*
 * fault.c
 *	  Named points where a test makes the code fail.
 *
 * Armed faults live in a small table in shared memory, so that one session
 * arms what another process meets.
 */
#include "postgres.h"

#include <signal.h>
#include <unistd.h>

#include "miscadmin.h"
#include "storage/latch.h"
#include "utils/builtins.h"

#include "base/compat.h"
#include "base/export.h"
#include "base/fault.h"
#include "base/shmem.h"

#define FAULT_SLOTS		8
#define FAULT_NAME		48
#define FAULT_POLL_MS	5

typedef enum FaultAction
{
	FAULT_NONE = 0,
	FAULT_ERROR,
	FAULT_FATAL,
	FAULT_KILL,
	FAULT_WAIT
} FaultAction;

static const char *const action_names[] = {"none", "error", "fatal", "kill", "wait"};

typedef struct Fault
{
	char		name[FAULT_NAME];
	FaultAction action;
	int			skip;			/* pass this many times first */
	int			times;			/* then fire this often; -1 for ever */
} Fault;

typedef struct FaultTable
{
	pg_atomic_uint32 armed;		/* number of slots in use */
	Fault		faults[FAULT_SLOTS];
} FaultTable;

static FaultTable *table = NULL;
static LWLock *table_lock = NULL;
pg_atomic_uint32 *swarm_fault_armed = NULL;

static Size fault_size(void);
static void fault_attach(void *memory, bool found);
static FaultAction fault_take(const char *point);
static Fault *fault_find(const char *name);
static void wait_until_disarmed(const char *point);

static SwarmShmemPiece fault_piece = {
	.name = "pg_swarm faults",
	.size = fault_size,
	.init = fault_attach,
	.pointer = (void **) &table,
	.lock = &table_lock
};

void
swarm_fault_init(void)
{
	swarm_shmem_register(&fault_piece);
}

/*
 * swarm_fault_reached: the slow half of SWARM_FAULT().
 */
void
swarm_fault_reached(const char *point)
{
	switch (fault_take(point))
	{
		case FAULT_NONE:
			break;
		case FAULT_ERROR:
			ereport(ERROR,
					(errcode(ERRCODE_INTERNAL_ERROR),
					 errmsg("fault point \"%s\" was reached", point)));
			break;
		case FAULT_FATAL:
			ereport(FATAL,
					(errcode(ERRCODE_INTERNAL_ERROR),
					 errmsg("fault point \"%s\" was reached", point)));
			break;
		case FAULT_KILL:
			kill(MyProcPid, SIGKILL);
			pg_usleep(1000000L);
			break;
		case FAULT_WAIT:
			wait_until_disarmed(point);
			break;
	}
}

static Size
fault_size(void)
{
	return sizeof(FaultTable);
}

static void
fault_attach(void *memory, bool found)
{
	FaultTable *t = memory;

	if (!found)
		pg_atomic_init_u32(&t->armed, 0);
	swarm_fault_armed = &t->armed;
}

/*
 * fault_take: what to do at this point now; counts the visit.
 */
static FaultAction
fault_take(const char *point)
{
	FaultAction action = FAULT_NONE;
	Fault	   *f;

	LWLockAcquire(table_lock, LW_EXCLUSIVE);
	f = fault_find(point);
	if (f != NULL && f->skip > 0)
		f->skip--;
	else if (f != NULL && f->times != 0)
	{
		action = f->action;
		if (f->times > 0)
			f->times--;
	}
	LWLockRelease(table_lock);
	return action;
}

/* fault_find: the armed fault of that name, or NULL; caller holds the lock. */
static Fault *
fault_find(const char *name)
{
	for (int i = 0; i < FAULT_SLOTS; i++)
	{
		if (table->faults[i].action != FAULT_NONE &&
			strcmp(table->faults[i].name, name) == 0)
			return &table->faults[i];
	}
	return NULL;
}

static void
wait_until_disarmed(const char *point)
{
	for (;;)
	{
		bool		armed;

		LWLockAcquire(table_lock, LW_SHARED);
		armed = fault_find(point) != NULL;
		LWLockRelease(table_lock);
		if (!armed)
			return;
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
						 FAULT_POLL_MS, PG_WAIT_EXTENSION);
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
	}
}

/*
 * swarm._fault_arm(name text, action text, skip int, times int): arm a fault,
 * or disarm it with action 'none'; name NULL disarms all.
 */
SWARM_FUNCTION(swarm_fault_arm);
Datum
swarm_fault_arm(PG_FUNCTION_ARGS)
{
	char	   *name;
	char	   *action_name;
	FaultAction action = FAULT_NONE;
	Fault	   *f;
	int			in_use = 0;

	swarm_require_preload("arming a fault point");
	LWLockAcquire(table_lock, LW_EXCLUSIVE);
	if (PG_ARGISNULL(0))
	{
		memset(table->faults, 0, sizeof(table->faults));
		pg_atomic_write_u32(&table->armed, 0);
		LWLockRelease(table_lock);
		PG_RETURN_VOID();
	}
	LWLockRelease(table_lock);

	name = text_to_cstring(PG_GETARG_TEXT_PP(0));
	action_name = PG_ARGISNULL(1) ? "none" : text_to_cstring(PG_GETARG_TEXT_PP(1));
	while (action <= FAULT_WAIT && strcmp(action_names[action], action_name) != 0)
		action++;
	if (action > FAULT_WAIT || strlen(name) >= FAULT_NAME)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("invalid fault point \"%s\" or action \"%s\"", name, action_name)));

	LWLockAcquire(table_lock, LW_EXCLUSIVE);
	f = fault_find(name);
	for (int i = 0; f == NULL && i < FAULT_SLOTS; i++)
	{
		if (table->faults[i].action == FAULT_NONE)
			f = &table->faults[i];
	}
	if (f != NULL)
	{
		strlcpy(f->name, name, FAULT_NAME);
		f->action = action;
		f->skip = PG_ARGISNULL(2) ? 0 : PG_GETARG_INT32(2);
		f->times = PG_ARGISNULL(3) ? 1 : PG_GETARG_INT32(3);
	}
	for (int i = 0; i < FAULT_SLOTS; i++)
		in_use += table->faults[i].action != FAULT_NONE;
	pg_atomic_write_u32(&table->armed, in_use);
	LWLockRelease(table_lock);

	if (f == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
				 errmsg("too many armed fault points")));
	PG_RETURN_VOID();
}
