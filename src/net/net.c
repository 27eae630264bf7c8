/*
 * net.c
 *	  Settings of module net.
 */
#include "postgres.h"

#include <limits.h>

#include "utils/guc.h"

#include "net/net_int.h"

int			swarm_net_connect_timeout_ms = 10000;
int			swarm_net_stall_timeout_ms = 30000;
int			swarm_net_timeout_ms = 900000;
int			swarm_net_max_attempts = 5;
int			swarm_net_backoff_ms = 200;
int			swarm_net_backoff_max_ms = 20000;
int			swarm_net_breaker_harms = 10;
int			swarm_net_breaker_pause_ms = 5000;
char	   *swarm_net_proxy = NULL;
char	   *swarm_net_allowed_addresses = NULL;

void
swarm_net_init(void)
{
	DefineCustomIntVariable("pg_swarm.net_connect_timeout",
							"Time to connect to a remote server, TLS included.", NULL,
							&swarm_net_connect_timeout_ms, 10000, 1, INT_MAX,
							PGC_USERSET, GUC_UNIT_MS, NULL, NULL, NULL);
	DefineCustomIntVariable("pg_swarm.net_stall_timeout",
							"Time without a byte in either direction after which a request is given up.",
							"Rounded up to whole seconds.",
							&swarm_net_stall_timeout_ms, 30000, 1, INT_MAX,
							PGC_USERSET, GUC_UNIT_MS, NULL, NULL, NULL);
	DefineCustomIntVariable("pg_swarm.net_timeout",
							"Time for one attempt of a request; 0 means no limit.", NULL,
							&swarm_net_timeout_ms, 900000, 0, INT_MAX,
							PGC_USERSET, GUC_UNIT_MS, NULL, NULL, NULL);
	DefineCustomIntVariable("pg_swarm.net_max_attempts",
							"Attempts of a request, the first one included.", NULL,
							&swarm_net_max_attempts, 5, 1, 100,
							PGC_USERSET, 0, NULL, NULL, NULL);
	DefineCustomIntVariable("pg_swarm.net_backoff",
							"Pause after the first failed attempt of a request; it doubles with each.", NULL,
							&swarm_net_backoff_ms, 200, 1, INT_MAX,
							PGC_USERSET, GUC_UNIT_MS, NULL, NULL, NULL);
	DefineCustomIntVariable("pg_swarm.net_backoff_max",
							"Longest pause between two attempts, also if the server asks for more.", NULL,
							&swarm_net_backoff_max_ms, 20000, 1, INT_MAX,
							PGC_USERSET, GUC_UNIT_MS, NULL, NULL, NULL);
	DefineCustomIntVariable("pg_swarm.net_breaker_failures",
							"Failures in a row after which an endpoint is left alone for a while.", NULL,
							&swarm_net_breaker_harms, 10, 1, INT_MAX,
							PGC_SUSET, 0, NULL, NULL, NULL);
	DefineCustomIntVariable("pg_swarm.net_breaker_pause",
							"For how long it is left alone; doubles up to eight times as long while it does not recover.", NULL,
							&swarm_net_breaker_pause_ms, 5000, 1, INT_MAX / 16,
							PGC_SUSET, GUC_UNIT_MS, NULL, NULL, NULL);
	DefineCustomStringVariable("pg_swarm.net_proxy",
							   "Proxy for all requests; the proxy variables of the environment are not heeded.", NULL,
							   &swarm_net_proxy, "",
							   PGC_SUSET, GUC_SUPERUSER_ONLY, NULL, NULL, NULL);
	DefineCustomStringVariable("pg_swarm.net_allowed_addresses",
							   "Networks that may be connected to although they are refused by default, separated by commas.",
							   "Refused are link-local, metadata, multicast and unspecified addresses, and names that resolve to loopback.",
							   &swarm_net_allowed_addresses, "",
							   PGC_SUSET, 0,
							   (GucStringCheckHook) swarm_net_check_addresses, NULL, NULL);
	swarm_breaker_init();
}
