/*
 * doorbell.c
 *	  Ring at commit.
 *
 * The items of a transaction form a list, newest first, in its top memory
 * context; each carries the nesting level that owns it.  The callbacks are
 * registered once for the life of the process.
 */
#include "postgres.h"

#include "access/xact.h"
#include "utils/memutils.h"

#include "base/doorbell.h"

typedef struct DoorbellItem
{
	struct DoorbellItem *older;
	int			level;			/* transaction nesting level that owns it */
	SwarmRing	ring;
	SwarmRing	undo;
	char		data[FLEXIBLE_ARRAY_MEMBER];
} DoorbellItem;

#define DATA_OFFSET		MAXALIGN(offsetof(DoorbellItem, data))
#define ITEM_DATA(i)	((void *) ((char *) (i) + DATA_OFFSET))

static DoorbellItem *newest = NULL;
static bool callbacks_registered = false;
bool		swarm_doorbell_preparing = false;

static void at_transaction_end(XactEvent event, void *arg);
static void at_savepoint_end(SubXactEvent event, SubTransactionId mine,
							 SubTransactionId parent, void *arg);
static void undo_down_to(int level);
static void ring_all(void);

void
swarm_doorbell_add(SwarmRing ring, SwarmRing undo, const void *item, Size size)
{
	DoorbellItem *added;

	if (!callbacks_registered)
	{
		RegisterXactCallback(at_transaction_end, NULL);
		RegisterSubXactCallback(at_savepoint_end, NULL);
		callbacks_registered = true;
	}

	added = MemoryContextAlloc(TopTransactionContext, DATA_OFFSET + size);
	added->older = newest;
	added->level = GetCurrentTransactionNestLevel();
	added->ring = ring;
	added->undo = undo;
	memcpy(ITEM_DATA(added), item, size);
	newest = added;
}

static void
at_transaction_end(XactEvent event, void *arg)
{
	switch (event)
	{
		case XACT_EVENT_COMMIT:
			ring_all();
			break;
		case XACT_EVENT_PREPARE:
			swarm_doorbell_preparing = true;
			undo_down_to(0);
			swarm_doorbell_preparing = false;
			break;
		case XACT_EVENT_ABORT:
			undo_down_to(0);
			break;
		default:
			break;
	}
}

/*
 * at_savepoint_end: a rolled back level takes its items with it, a released
 * one hands them to its parent.  A level's items are always the newest ones.
 */
static void
at_savepoint_end(SubXactEvent event, SubTransactionId mine,
				 SubTransactionId parent, void *arg)
{
	int			level = GetCurrentTransactionNestLevel();

	if (event == SUBXACT_EVENT_ABORT_SUB)
		undo_down_to(level);
	else if (event == SUBXACT_EVENT_COMMIT_SUB)
	{
		for (DoorbellItem *i = newest; i && i->level >= level; i = i->older)
			i->level = level - 1;
	}
}

/*
 * undo_down_to: forget the items that `level` and the levels inside it own.
 */
static void
undo_down_to(int level)
{
	while (newest && newest->level >= level)
	{
		DoorbellItem *gone = newest;

		newest = gone->older;
		if (gone->undo)
			gone->undo(ITEM_DATA(gone));
	}
}

/*
 * ring_all: oldest first, so that a parent job is pushed before its child.
 */
static void
ring_all(void)
{
	DoorbellItem *oldest = NULL;

	while (newest)
	{
		DoorbellItem *next = newest->older;

		newest->older = oldest;
		oldest = newest;
		newest = next;
	}
	for (DoorbellItem *i = oldest; i; i = i->older)
		i->ring(ITEM_DATA(i));
}
