/*
 * net_server.c
 *	  Foreign servers that stand for endpoints: their options, who may create
 *	  one, who may use it.
 *
 * What everybody may see is in the server's options; secrets are in user
 * mappings only.  Which options a wrapper has, and what their values may be, its
 * module says in a SwarmNetWrapper.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/reloptions.h"
#include "catalog/pg_foreign_server.h"
#include "catalog/pg_user_mapping.h"
#include "commands/defrem.h"
#include "foreign/foreign.h"
#include "miscadmin.h"
#include "utils/acl.h"
#include "utils/guc.h"
#include "utils/syscache.h"
#include "utils/varlena.h"

#include "base/compat.h"
#include "net/net.h"

#define MAX_PARALLEL	256

static void require_trust(const SwarmNetWrapper *wrapper, List *options);

/* ------------------------------------------------------------------------
 * Options are validated
 * ------------------------------------------------------------------------ */

List *
swarm_net_options(const SwarmNetWrapper *wrapper, Datum datum, Oid catalog)
{
	List	   *options = untransformRelOptions(datum);
	ListCell   *lc;

	foreach(lc, options)
	{
		DefElem    *def = lfirst(lc);
		const SwarmNetOption *known = NULL;

		for (int i = 0; i < wrapper->noptions; i++)
		{
			if (strcmp(wrapper->options[i].name, def->defname) == 0)
				known = &wrapper->options[i];
		}
		if (known == NULL || known->catalog != catalog)
			ereport(ERROR,
					(errcode(ERRCODE_FDW_INVALID_OPTION_NAME),
					 errmsg("invalid option \"%s\"", def->defname),
					 known != NULL && known->catalog == UserMappingRelationId ?
					 errhint("Everybody can read the options of a server. %s", wrapper->secrets_hint) :
					 known != NULL ? errhint("It is an option of the server.") :
					 errhint("%s", wrapper->options_hint)));
		known->check(def->defname, defGetString(def));
	}
	if (catalog == ForeignServerRelationId)
	{
		if (swarm_net_option(options, "endpoint") == NULL)
			ereport(ERROR,
					(errcode(ERRCODE_FDW_OPTION_NAME_NOT_FOUND),
					 errmsg("a server of wrapper \"%s\" needs the option \"endpoint\"", wrapper->name),
					 errhint("For example: endpoint '%s'.", wrapper->example)));
		require_trust(wrapper, options);
	}
	return options;
}

/*
 * require_trust: who creates a server decides where data goes, and which file
 * the server process reads.
 */
static void
require_trust(const SwarmNetWrapper *wrapper, List *options)
{
	const char *endpoint = swarm_net_option(options, "endpoint");
	List	   *list;
	ListCell   *lc;

	if (superuser())
		return;
	if (wrapper->for_superusers != NULL)
		wrapper->for_superusers(endpoint);
	if (swarm_net_option(options, "ca_file") != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("only superusers may set the option \"ca_file\"")));
	if (SplitGUCList(pstrdup(*wrapper->allowed ? *wrapper->allowed : ""), ',', &list))
	{
		foreach(lc, list)
		{
			if (strcmp(lfirst(lc), endpoint) == 0)
				return;
		}
	}
	ereport(ERROR,
			(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
			 errmsg("endpoint \"%s\" is not allowed", endpoint),
			 errhint("A superuser can create the server, or add the endpoint to %s.", wrapper->setting)));
}

void
swarm_net_option_invalid(const char *name, const char *value, const char *hint)
{
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("invalid value for option \"%s\": \"%s\"", name, value),
			 errhint("%s", hint)));
}

void
swarm_net_check_endpoint(const char *name, const char *value)
{
	bool		https;
	char	   *host;

	if (!swarm_net_split_endpoint(value, &https, &host))
		swarm_net_option_invalid(name, value, "It has the form http://host:port or https://host:port, without path, query or user.");
}

void
swarm_net_check_parallel(const char *name, const char *value)
{
	int			n;

	if (!parse_int(value, &n, 0, NULL) || n < 1 || n > MAX_PARALLEL)
		swarm_net_option_invalid(name, value, "It is a number from 1 to 256.");
}

void
swarm_net_check_file(const char *name, const char *value)
{
	if (!is_absolute_path(value))
		swarm_net_option_invalid(name, value, "It is the absolute path of a file with certificates on the server.");
}

/* check_endpoints: check hook of the list of endpoints that are allowed. */
static bool
check_endpoints(char **value, void **extra, GucSource source)
{
	char	   *copy = pstrdup(*value ? *value : "");
	List	   *list;
	bool		ok = SplitGUCList(copy, ',', &list);

	list_free(list);
	pfree(copy);
	return ok;
}

void
swarm_net_define_allowed(const SwarmNetWrapper *wrapper)
{
	DefineCustomStringVariable(wrapper->setting,
							   "Endpoints that roles without superuser rights may create servers for, separated by commas.", NULL,
							   wrapper->allowed, "",
							   PGC_SUSET, GUC_LIST_INPUT, check_endpoints, NULL, NULL);
}

/* ------------------------------------------------------------------------
 * A server is read
 * ------------------------------------------------------------------------ */

char *
swarm_net_option(List *options, const char *name)
{
	ListCell   *lc;

	foreach(lc, options)
	{
		DefElem    *def = lfirst(lc);

		if (strcmp(def->defname, name) == 0)
			return defGetString(def);
	}
	return NULL;
}

ForeignServer *
swarm_net_server(const SwarmNetWrapper *wrapper, const char *name)
{
	ForeignServer *server = GetForeignServerByName(name, true);
	AclResult	acl;

	if (server == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("server \"%s\" does not exist", name),
				 errhint("Use CREATE SERVER ... FOREIGN DATA WRAPPER %s.", wrapper->name)));
	if (strcmp(GetForeignDataWrapper(server->fdwid)->fdwname, wrapper->name) != 0)
		ereport(ERROR,
				(errcode(ERRCODE_WRONG_OBJECT_TYPE),
				 errmsg("server \"%s\" is not a server of wrapper \"%s\"", name, wrapper->name)));
	acl = swarm_server_aclcheck(server->serverid, GetUserId(), ACL_USAGE);
	if (acl != ACLCHECK_OK)
		aclcheck_error(acl, OBJECT_FOREIGN_SERVER, name);
	return server;
}

bool
swarm_net_mapping(const ForeignServer *server, List **options)
{
	HeapTuple	tuple = SearchSysCache2(USERMAPPINGUSERSERVER, ObjectIdGetDatum(GetUserId()),
										ObjectIdGetDatum(server->serverid));
	Datum		datum;
	bool		isnull;

	*options = NIL;
	if (!HeapTupleIsValid(tuple))
		tuple = SearchSysCache2(USERMAPPINGUSERSERVER, ObjectIdGetDatum(InvalidOid),
								ObjectIdGetDatum(server->serverid));
	if (!HeapTupleIsValid(tuple))
		return false;
	datum = SysCacheGetAttr(USERMAPPINGUSERSERVER, tuple, Anum_pg_user_mapping_umoptions, &isnull);
	if (!isnull)
		*options = untransformRelOptions(datum);
	ReleaseSysCache(tuple);
	return true;
}
