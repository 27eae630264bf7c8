/*
 * upload_hook.c
 *	  Hooks of users around a batch of uploads: before it is accepted, and
 *	  after every file has its outcome.
 */
#include "postgres.h"

#include "miscadmin.h"

#include "base/hook.h"
#include "upload/upload_int.h"

static void describe(SwarmHookData *data, const SwarmUpload *upload);

static void
describe(SwarmHookData *data, const SwarmUpload *upload)
{
	swarm_hook_data(data);
	if (upload->batch != 0)
		swarm_hook_int64(data, "batch", upload->batch);
	swarm_hook_text(data, "server", upload->server_name);
	swarm_hook_text(data, "bucket", upload->bucket);
	swarm_hook_int64(data, "files", upload->nfiles);
	swarm_hook_text(data, "first_key", upload->nfiles > 0 ? upload->files[0].key : NULL);
}

void
swarm_upload_before(const SwarmUpload *upload)
{
	SwarmHookData data;

	if (!swarm_hook_wanted("upload", SWARM_HOOK_BEFORE))
		return;
	describe(&data, upload);
	swarm_hook_before("upload", GetUserId(), &data);
}

void
swarm_upload_after(const SwarmUpload *upload)
{
	SwarmHookData data;
	int			done = 0;

	if (!swarm_hook_wanted("upload", SWARM_HOOK_AFTER))
		return;
	for (int i = 0; i < upload->nfiles; i++)
		done += upload->files[i].state == FILE_DONE;
	describe(&data, upload);
	swarm_hook_int64(&data, "done", done);
	swarm_hook_int64(&data, "failed", upload->nfiles - done);
	swarm_hook_after("upload", GetUserId(), &data);
}
