// SPDX-License-Identifier: Apache-2.0
/* local_addr.c - see local_addr.h. */
#include <errno.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stdbool.h>
#include <stddef.h>
#include <sys/socket.h>
#include <unistd.h>

#include "local_addr.h"

/* This host's end of the way to @towards, in digits; false where there is none. Sends nothing. */
static bool local_end_towards(const char *towards, char *address, uint32_t bytes)
{
	struct addrinfo hints = { .ai_socktype = SOCK_DGRAM }, *found;
	struct sockaddr_storage own;
	socklen_t len = sizeof(own);
	bool known = false;
	int fd;

	if (getaddrinfo(towards, "9", &hints, &found))
		return false;
	fd = socket(found->ai_family, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	if (fd >= 0) {
		known = !connect(fd, found->ai_addr, found->ai_addrlen) &&
			!getsockname(fd, (struct sockaddr *)&own, &len) &&
			!getnameinfo((struct sockaddr *)&own, len, address, bytes, NULL, 0, NI_NUMERICHOST);
		close(fd);
	}
	freeaddrinfo(found);
	return known;
}

int local_addr_find(const char *towards, local_addr_fn *fn, void *arg, char *address, uint32_t bytes)
{
	struct ifaddrs *all;
	int ret = -ENODEV;

	if (towards && local_end_towards(towards, address, bytes))
		ret = fn(arg, address);
	if (ret >= 0)
		return ret;
	if (getifaddrs(&all))
		return -errno;
	for (const struct ifaddrs *one = all; one && ret < 0; one = one->ifa_next) {
		sa_family_t family = one->ifa_addr ? one->ifa_addr->sa_family : AF_UNSPEC;
		socklen_t len = family == AF_INET6 ? sizeof(struct sockaddr_in6) : sizeof(struct sockaddr_in);

		if ((family != AF_INET && family != AF_INET6) || one->ifa_flags & IFF_LOOPBACK ||
		    getnameinfo(one->ifa_addr, len, address, bytes, NULL, 0, NI_NUMERICHOST))
			continue;
		ret = fn(arg, address);
	}
	freeifaddrs(all);
	return ret;
}
