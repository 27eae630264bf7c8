/*
 * chore.h
 *	  Work in the background that a module asks for: an object that wants
 *	  looking after, nothing that must not get lost.
 *
 * A chore is a kind of work, registered once, and the OID of an object in the
 * current database.  Whoever finds that the object wants it asks; when his
 * transaction has ended, a background process of that database calls the
 * function that was registered, soon and once for all who have asked
 * meanwhile.  Without preloading, on a database that is not served, when there
 * is no room or after a crash nothing happens: so ask again whenever it is
 * found.
 */
#ifndef SWARM_BASE_CHORE_H
#define SWARM_BASE_CHORE_H

/* What came of a call. */
typedef enum SwarmChoreResult
{
	SWARM_CHORE_DONE,			/* or there is nothing (more) to do */
	SWARM_CHORE_MORE,			/* a piece is done: call again */
	SWARM_CHORE_LATER			/* somebody is in the way: call in a while */
} SwarmChoreResult;

/*
 * Called in a transaction of its own, without a snapshot, as the bootstrap
 * superuser: become whom the object belongs to.  Shall do a piece of work of
 * a second or so, never wait for a lock, and let interrupts in.  An error is
 * reported, and the call repeated later; one of SQLSTATE 57014 or 55P03 is as
 * SWARM_CHORE_LATER.
 */
typedef SwarmChoreResult (*SwarmChoreRun) (Oid object);

/*
 * Register a kind of work, from the module's init function; returns its
 * number, the same in all processes.  `name` is shown to users.
 */
extern int	swarm_chore_register(const char *name, SwarmChoreRun run);

/*
 * Ask when the current transaction commits, or is prepared; not when the
 * transaction or the savepoint is rolled back.
 */
extern void swarm_chore_ask(int chore, Oid object);

extern const char *swarm_chore_name(int chore);
extern SwarmChoreResult swarm_chore_call(int chore, Oid object);

/*
 * Set by whoever runs chores, where there is shared memory.  It must not
 * raise an error and must not allocate.
 */
extern void (*swarm_chore_hook) (Oid database, int chore, Oid object);

#endif							/* SWARM_BASE_CHORE_H */
