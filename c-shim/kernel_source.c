// SPDX-License-Identifier: Apache-2.0
/*
 * kernel_source.c - the kernel pager's source side: gygesfs exports a RAM file and tracks what the guest writes.
 *
 * No thread and no page of ours takes part: the destination reads by itself.
 */
#include <ifaddrs.h>
#include <net/if.h>
#include <stdbool.h>
#include <stdlib.h>
#include <unistd.h>

#include "bitmap.h"
#include "gyges.h"
#include "kernel_ioctl.h"
#include "ram.h"

struct gy_kernel_source {
	struct gy_ram *ram;
	int fd;
	bool exporting;
	bool tracking;
	uint32_t told;			/* regions of the table that was told last */
};

int gy_kernel_source_create(struct gy_ram *ram, struct gy_kernel_source **out)
{
	struct gy_kernel_source *source = calloc(1, sizeof(*source));

	if (!source)
		return -ENOMEM;
	source->ram = ram;
	source->fd = gy_kernel_reopen(ram->fd);
	if (source->fd < 0) {
		int ret = source->fd;

		free(source);
		return ret;
	}
	*out = source;
	return 0;
}

void gy_kernel_source_destroy(struct gy_kernel_source *source)
{
	if (!source)
		return;
	gy_kernel_source_dirty_stop(source);
	if (source->exporting)
		gy_kernel_order(source->fd, GYGES_IOC_EXPORT_END, NULL);
	close(source->fd);
	free(source);
}

/* ---- where to listen ---- */

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

/* Listens at one address. The port, or -errno. */
static int listen_at(struct gy_kernel_source *source, const char *host, uint32_t port, const uint8_t *token)
{
	struct gyges_endpoint endpoint;
	struct sockaddr_in bound;
	int ret = gy_kernel_endpoint(&endpoint, host, port, token);

	if (!ret)
		ret = gy_kernel_order(source->fd, GYGES_IOC_EXPORT, &endpoint);
	if (ret)
		return ret;
	source->exporting = true;
	/* Both families have their port in the same place. */
	memcpy(&bound, endpoint.addr, sizeof(bound));
	return ntohs(bound.sin_port);
}

/* Listens at the first address of this host that will do. */
static int listen_anywhere(struct gy_kernel_source *source, uint32_t port, const uint8_t *token, char *address,
			   uint32_t bytes)
{
	struct ifaddrs *all;
	int ret = -ENODEV;

	if (getifaddrs(&all))
		return -errno;
	for (const struct ifaddrs *one = all; one && ret < 0; one = one->ifa_next) {
		sa_family_t family = one->ifa_addr ? one->ifa_addr->sa_family : AF_UNSPEC;
		socklen_t len = family == AF_INET6 ? sizeof(struct sockaddr_in6) : sizeof(struct sockaddr_in);

		if ((family != AF_INET && family != AF_INET6) || one->ifa_flags & IFF_LOOPBACK ||
		    getnameinfo(one->ifa_addr, len, address, bytes, NULL, 0, NI_NUMERICHOST))
			continue;
		ret = listen_at(source, address, port, token);
	}
	freeifaddrs(all);
	return ret;
}

int gy_kernel_source_listen(struct gy_kernel_source *source, const char *host, uint32_t port, const char *towards,
			    const uint8_t *token, char *address, uint32_t address_bytes)
{
	int ret = -ENODEV;

	if (source->exporting)
		return -EBUSY;
	if (host) {
		snprintf(address, address_bytes, "%s", host);
		return listen_at(source, host, port, token);
	}
	if (towards && local_end_towards(towards, address, address_bytes))
		ret = listen_at(source, address, port, token);
	return ret < 0 ? listen_anywhere(source, port, token, address, address_bytes) : ret;
}

/* ---- page sets ---- */

/* An order that fills a bitmap of its own, ORed into the caller's. Pages in the order's. */
static int64_t collect(struct gy_kernel_source *source, unsigned long order, uint64_t *bitmap, uint64_t words)
{
	struct gyges_bitmap arg = { .words = words };
	uint64_t *found;
	int ret;

	if (words != bitmap_words(source->ram->pages))
		return -EINVAL;
	found = calloc(words, sizeof(*found));
	if (!found)
		return -ENOMEM;
	arg.words_ptr = (uintptr_t)found;
	ret = gy_kernel_order(source->fd, order, &arg);
	for (uint64_t i = 0; !ret && i < words; i++)
		bitmap[i] |= found[i];
	free(found);
	return ret ? ret : (int64_t)arg.pages;
}

int64_t gy_kernel_source_scan_present(struct gy_kernel_source *source, uint64_t *bitmap, uint64_t words)
{
	return collect(source, GYGES_IOC_PRESENT, bitmap, words);
}

int gy_kernel_source_dirty_start(struct gy_kernel_source *source)
{
	int ret = gy_kernel_order(source->fd, GYGES_IOC_DIRTY_START, NULL);

	source->tracking = source->tracking || !ret;
	return ret;
}

int64_t gy_kernel_source_dirty_collect(struct gy_kernel_source *source, uint64_t *bitmap, uint64_t words)
{
	return collect(source, GYGES_IOC_DIRTY_ROUND, bitmap, words);
}

int gy_kernel_source_dirty_stop(struct gy_kernel_source *source)
{
	if (!source->tracking)
		return 0;
	source->tracking = false;
	return gy_kernel_order(source->fd, GYGES_IOC_DIRTY_STOP, NULL);
}

int64_t gy_kernel_source_regions(struct gy_kernel_source *source, uint8_t *table, uint64_t cap, uint32_t *changed)
{
	struct gyges_regions arg = {
		.regions_ptr = (uintptr_t)table,
		.capacity = (uint32_t)(cap / sizeof(struct gyges_region)),
	};
	int ret = gy_kernel_order(source->fd, GYGES_IOC_EXPORT_REGIONS, &arg);

	if (ret)
		return ret;
	/* What was registered by a call that had no room is news to the next one. */
	if (arg.changed)
		source->told = UINT32_MAX;
	*changed = source->told != arg.count;
	if (arg.count <= arg.capacity)
		source->told = arg.count;
	return (int64_t)arg.count * (int64_t)sizeof(struct gyges_region);
}
