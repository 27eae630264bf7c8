/*
 * chore.c
 *	  The kinds of background work, and asking for it.
 */
#include "postgres.h"

#include "miscadmin.h"

#include "base/chore.h"
#include "base/doorbell.h"

#define MAX_CHORES	8

typedef struct Request
{
	int			chore;
	Oid			object;
} Request;

void		(*swarm_chore_hook) (Oid database, int chore, Oid object) = NULL;

static struct
{
	const char *name;
	SwarmChoreRun run;
}			chores[MAX_CHORES];
static int	nchores = 0;

static void ring(void *item);
static void ring_if_prepared(void *item);

int
swarm_chore_register(const char *name, SwarmChoreRun run)
{
	if (nchores == MAX_CHORES)
		elog(ERROR, "too many kinds of background work");
	chores[nchores].name = name;
	chores[nchores].run = run;
	return nchores++;
}

void
swarm_chore_ask(int chore, Oid object)
{
	Request		request = {.chore = chore, .object = object};

	if (swarm_chore_hook != NULL)
		swarm_doorbell_add(ring, ring_if_prepared, &request, sizeof(request));
}

static void
ring(void *item)
{
	const Request *request = item;

	swarm_chore_hook(MyDatabaseId, request->chore, request->object);
}

/* What a prepared transaction asks for need not wait for its end. */
static void
ring_if_prepared(void *item)
{
	if (swarm_doorbell_preparing)
		ring(item);
}

const char *
swarm_chore_name(int chore)
{
	return chores[chore].name;
}

SwarmChoreResult
swarm_chore_call(int chore, Oid object)
{
	return chores[chore].run(object);
}
