/*
 * memory_hook.c
 *	  Hooks of users around the changes of entries.
 */
#include "postgres.h"

#include "miscadmin.h"
#include "utils/builtins.h"

#include "base/hook.h"
#include "memory/memory_int.h"

/*
 * swarm_memory_hook: of a function whose first argument is the namespace.
 */
void
swarm_memory_hook(SwarmHookPhase phase, const char *event, FunctionCallInfo fcinfo, text *key, Datum value)
{
	SwarmHookData data;

	if (!swarm_hook_wanted(event, phase))
		return;
	swarm_hook_data(&data);
	swarm_hook_text(&data, "namespace", text_to_cstring(PG_GETARG_TEXT_PP(0)));
	swarm_hook_text(&data, "key", text_to_cstring(key));
	if (value != (Datum) 0)
		swarm_hook_jsonb(&data, "value", value);
	if (phase == SWARM_HOOK_BEFORE)
		swarm_hook_before(event, GetUserId(), &data);
	else
		swarm_hook_after(event, GetUserId(), &data);
}
