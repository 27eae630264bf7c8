/*
 * net_address.c
 *	  May this process connect to that address?
 *
 * Judged on what a name has resolved to, in the callback that makes the
 * socket, so that a name cannot change between the look and the connection.
 * Called from curl: no error, no palloc.
 */
#include "postgres.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include "net/net_int.h"

typedef struct Network
{
	int			family;
	uint8		bytes[16];
	int			bits;
} Network;

/* Refused unless listed in pg_swarm.net_allowed_addresses. */
static const char *const refused[] = {
	"0.0.0.0/8", "169.254.0.0/16", "224.0.0.0/4", "240.0.0.0/4", "100.100.100.200/32", "::/128",
	"fe80::/10", "ff00::/8", "fd00:ec2::/32"
};

/* These as well, unless the endpoint names the address itself. */
static const char *const loopback[] = {"127.0.0.0/8", "::1/128"};

static bool parse_network(const char *text, size_t length, Network *network);
static bool contains(const Network *network, int family, const uint8 *bytes);
static bool any_contains(const char *const *texts, int n, int family, const uint8 *bytes);
static bool listed(int family, const uint8 *bytes);

bool
swarm_net_address_allowed(const struct sockaddr *address, bool literal)
{
	static const uint8 mapped[12] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff};
	const uint8 *bytes;
	int			family = address->sa_family;

	if (family == AF_INET)
		bytes = (const uint8 *) &((const struct sockaddr_in *) address)->sin_addr;
	else if (family == AF_INET6)
		bytes = (const uint8 *) &((const struct sockaddr_in6 *) address)->sin6_addr;
	else
		return false;
	if (family == AF_INET6 && memcmp(bytes, mapped, sizeof(mapped)) == 0)
	{
		family = AF_INET;
		bytes += sizeof(mapped);
	}
	if (!any_contains(refused, lengthof(refused), family, bytes) &&
		(literal || !any_contains(loopback, lengthof(loopback), family, bytes)))
		return true;
	return listed(family, bytes);
}

static bool
any_contains(const char *const *texts, int n, int family, const uint8 *bytes)
{
	for (int i = 0; i < n; i++)
	{
		Network		network;

		if (parse_network(texts[i], strlen(texts[i]), &network) &&
			contains(&network, family, bytes))
			return true;
	}
	return false;
}

/* listed: is the address in pg_swarm.net_allowed_addresses? */
static bool
listed(int family, const uint8 *bytes)
{
	const char *p = swarm_net_allowed_addresses;

	while (p != NULL && *p)
	{
		size_t		length = strcspn(p, ",");
		Network		network;

		if (parse_network(p, length, &network) && contains(&network, family, bytes))
			return true;
		p += length;
		p += *p == ',';
	}
	return false;
}

static bool
contains(const Network *network, int family, const uint8 *bytes)
{
	int			whole = network->bits / 8;
	int			rest = network->bits % 8;

	if (network->family != family || memcmp(network->bytes, bytes, whole) != 0)
		return false;
	return rest == 0 ||
		((network->bytes[whole] ^ bytes[whole]) & (0xff << (8 - rest)) & 0xff) == 0;
}

/* parse_network: "address" or "address/bits", blanks around it ignored. */
static bool
parse_network(const char *text, size_t length, Network *network)
{
	char		copy[64];
	char	   *slash;
	int			most;

	while (length > 0 && *text == ' ')
		text	  ++,
					length--;

	while (length > 0 && text[length - 1] == ' ')
		length--;
	if (length == 0 || length >= sizeof(copy))
		return false;
	memcpy(copy, text, length);
	copy[length] = '\0';
	slash = strchr(copy, '/');
	if (slash != NULL)
		*slash = '\0';
	network->family = strchr(copy, ':') ? AF_INET6 : AF_INET;
	if (inet_pton(network->family, copy, network->bytes) != 1)
		return false;
	most = network->family == AF_INET ? 32 : 128;
	network->bits = most;
	if (slash != NULL)
	{
		char	   *end;

		network->bits = (int) strtol(slash + 1, &end, 10);
		if (end == slash + 1 || *end || network->bits < 0 || network->bits > most)
			return false;
	}
	return true;
}

/* swarm_net_check_addresses: check hook of pg_swarm.net_allowed_addresses. */
bool
swarm_net_check_addresses(char **value, void **extra, int source)
{
	const char *p = *value;

	while (p != NULL && *p)
	{
		size_t		length = strcspn(p, ",");
		Network		network;

		if (!parse_network(p, length, &network))
			return false;
		p += length;
		p += *p == ',';
	}
	return true;
}
