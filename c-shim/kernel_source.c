// SPDX-License-Identifier: Apache-2.0
/*
 * kernel_source.c - the kernel pager's source side: gygesfs exports a RAM file and tracks what the guest writes.
 *
 * No thread and no page of ours takes part: the destination reads by itself.
 */
#include <stdbool.h>
#include <stdlib.h>
#include <unistd.h>

#include "bitmap.h"
#include "gyges.h"
#include "kernel_ioctl.h"
#include "local_addr.h"
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
	source->fd = gy_kernel_reopen(ram->piece[0].fd);
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

/* What local_addr_find() is to try. */
struct listening {
	struct gy_kernel_source *source;
	uint32_t port;
	const uint8_t *token;
};

static int try_address(void *arg, const char *host)
{
	struct listening *listening = arg;

	return listen_at(listening->source, host, listening->port, listening->token);
}

int gy_kernel_source_listen(struct gy_kernel_source *source, const char *host, uint32_t port, const char *towards,
			    const uint8_t *token, char *address, uint32_t address_bytes)
{
	struct listening listening = { .source = source, .port = port, .token = token };

	if (source->exporting)
		return -EBUSY;
	if (!host)
		return local_addr_find(towards, try_address, &listening, address, address_bytes);
	snprintf(address, address_bytes, "%s", host);
	return listen_at(source, host, port, token);
}

int gy_kernel_source_is_read(struct gy_kernel_source *source)
{
	struct gyges_state state;
	int ret = gy_kernel_order(source->fd, GYGES_IOC_STATE, &state);

	return ret ? ret : !!(state.flags & GYGES_EXPORT_READ);
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
