/*
 * net_endpoint.c
 *	  The text of an endpoint: scheme://host:port.
 */
#include "postgres.h"

#include "utils/guc.h"

#include "net/net.h"

/*
 * swarm_net_split_endpoint: scheme and host[:port] of an endpoint; false if it
 * is none.
 */
bool
swarm_net_split_endpoint(const char *endpoint, bool *https, char **host)
{
	const char *p = endpoint;
	size_t		length;
	char	   *port;

	if (strncmp(p, "https://", 8) == 0)
		*https = true, p += 8;
	else if (strncmp(p, "http://", 7) == 0)
		*https = false, p += 7;
	else
		return false;
	length = strlen(p);
	if (length > 0 && p[length - 1] == '/')
		length--;
	if (length == 0 || length > SWARM_NET_ENDPOINT_NAME - 16)
		return false;
	if (strspn(p, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-:[]") < length)
		return false;
	*host = pnstrdup(p, length);
	port = strrchr(*host, ':');
	if (port != NULL && strchr(port, ']') == NULL)
	{
		int			n;

		if (!parse_int(port + 1, &n, 0, NULL) || n < 1 || n > 65535 || port == *host ||
			strspn(port + 1, "0123456789") != strlen(port + 1))
			return false;
	}
	return (**host == '[') == (strchr(*host, ']') != NULL);
}

bool
swarm_net_host_is_literal(const char *host)
{
	size_t		length = host[0] == '[' ? 1 : strcspn(host, ":");

	return host[0] == '[' || (length == 9 && strncmp(host, "localhost", 9) == 0) ||
		strspn(host, "0123456789.") == length;
}
