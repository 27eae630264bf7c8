/*
 * job_role.c
 *	  A runner and its role.
 *
 * A runner works for one role, that of the first job or errand it takes, until
 * it ends (job_claim.c).  So what a handler can leave in a process that no
 * reset reaches, as the state of a procedural language, connections of an
 * extension, or plans, never meets another role's.
 *
 * The role is the session's user then, as if it had connected: session_user
 * says so, RESET ROLE leads to it, and its settings (ALTER ROLE ... SET) are
 * the session's.  It need not be able to log in.  What the runner does for
 * itself it does with the bootstrap superuser as the current user.
 */
#include "postgres.h"

#include "access/table.h"
#include "access/xact.h"
#include "catalog/pg_authid.h"
#include "catalog/pg_db_role_setting.h"
#include "miscadmin.h"
#include "utils/guc.h"
#include "utils/snapmgr.h"

#include "job/job_int.h"

static void apply_settings(Oid role);

/*
 * swarm_role_take: `settings`: the process will keep the role, and takes its
 * settings too, as far as they do not concern the runner itself
 * (swarm_worker_settings() goes before them).  A role that is gone is left to
 * who runs the job, who says so.
 */
void
swarm_role_take(Oid role, bool settings)
{
	static char taken[NAMEDATALEN] = "";	/* a role can be renamed */
	Oid			user;
	int			sec_context;
	char	   *name = GetUserNameFromId(role, true);
	bool		is_new = role != GetSessionUserId();

	if (name == NULL || (!is_new && strcmp(name, taken) == 0))
		return;
	GetUserIdAndSecContext(&user, &sec_context);
	Assert(user == BOOTSTRAP_SUPERUSERID && sec_context == 0);
	SetConfigOption("session_authorization", name, PGC_SUSET, PGC_S_OVERRIDE);
	strlcpy(taken, name, NAMEDATALEN);
	if (is_new && settings)
		apply_settings(role);
	SetUserIdAndSecContext(user, sec_context);
}

/*
 * apply_settings: what ALTER ROLE says, for this database and for all.
 */
static void
apply_settings(Oid role)
{
	Relation	rel = table_open(DbRoleSettingRelationId, AccessShareLock);
	Snapshot	snapshot = RegisterSnapshot(GetCatalogSnapshot(DbRoleSettingRelationId));

	/* a "role" among them would be another one */
	SetConfigOption("role", "none", PGC_SUSET, PGC_S_OVERRIDE);
	ApplySetting(snapshot, MyDatabaseId, role, rel, PGC_S_DATABASE_USER);
	ApplySetting(snapshot, InvalidOid, role, rel, PGC_S_USER);
	UnregisterSnapshot(snapshot);
	table_close(rel, AccessShareLock);
}
