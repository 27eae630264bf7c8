/*
 * hook.h
 *	  Hooks around the operations of all modules: calling those that users have
 *	  made with swarm.hook_create().
 *
 * What a hook is and who may make one is module agent's; its rows are in
 * swarm._hook.  Here is how an operation asks whether there is one, which must
 * cost nothing where there is none: a copy of the rows in the process, which a
 * change of the table invalidates as if its definition had changed, at commit
 * and in all processes.
 *
 *		if (swarm_hook_wanted("memory_store", SWARM_HOOK_BEFORE))
 *		{
 *			SwarmHookData data;
 *
 *			swarm_hook_data(&data);
 *			swarm_hook_text(&data, "namespace", name);
 *			swarm_hook_before("memory_store", GetUserId(), &data);
 *		}
 */
#ifndef SWARM_BASE_HOOK_H
#define SWARM_BASE_HOOK_H

#include "lib/stringinfo.h"

typedef enum SwarmHookPhase
{
	SWARM_HOOK_BEFORE,
	SWARM_HOOK_AFTER
} SwarmHookPhase;

/* What a hook is told: an object that is being written. */
typedef struct SwarmHookData
{
	StringInfoData json;
} SwarmHookData;

/* One that somebody has made, as the table has it. */
typedef struct SwarmHook
{
	int32		id;
	char	   *event;
	SwarmHookPhase phase;
	char	   *schema;			/* of the function, NULL: none */
	char	   *function;
	Oid			owner;			/* whose rights it has */
	int64		timeout_us;
	bool		failed;			/* when this process called it last */
} SwarmHook;

/*
 * Set by module agent: call them for each of n operations, as long as none of them
 * refuses it, and count.  vetoes[i] is why that operation must not be, in
 * CurrentMemoryContext, or NULL.
 */
extern void (*swarm_hook_call) (SwarmHook **hooks, int nhooks, const Datum *payloads, int n,
								char **vetoes);

/* Is there a hook of that event and phase?  False inside of a hook. */
extern bool swarm_hook_wanted(const char *event, SwarmHookPhase phase);

/* The object, field after field; value NULL, or a Datum 0: null. */
extern void swarm_hook_data(SwarmHookData *data);
extern void swarm_hook_text(SwarmHookData *data, const char *key, const char *value);
extern void swarm_hook_int64(SwarmHookData *data, const char *key, int64 value);
extern void swarm_hook_jsonb(SwarmHookData *data, const char *key, Datum value);
extern void swarm_hook_ms(SwarmHookData *data, const char *key, int64 us);

/*
 * Call the hooks before an operation of `role`.  _ask returns why it must not
 * be, in CurrentMemoryContext, or NULL; _before raises it as 38000.
 */
extern char *swarm_hook_ask(const char *event, Oid role, SwarmHookData *data);
extern void swarm_hook_before(const char *event, Oid role, SwarmHookData *data);

/* Call the hooks after one. */
extern void swarm_hook_after(const char *event, Oid role, SwarmHookData *data);

#endif							/* SWARM_BASE_HOOK_H */
