// SPDX-License-Identifier: Apache-2.0
/*
 * kernel_sink.c - the kernel pager's destination side: orders to gygesfs, and what becomes of them.
 *
 * Faults, READs and prefetch are the kernel's; what is here may die at any time after the commit point, and the guest
 * does not notice.
 */
#include <assert.h>
#include <poll.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "bitmap.h"
#include "clock.h"
#include "gyges.h"
#include "kernel_ioctl.h"
#include "ram.h"

static_assert(sizeof(struct gyges_hist) == sizeof(struct gy_hist), "a histogram of the kernel is one of the shim");

struct gy_kernel_sink {
	struct gy_ram *ram;
	struct gy_kernel_sink_config config;
	int fd;
	int wake_fd;
	bool importing;
	pthread_mutex_t lock;		/* told */
	struct gyges_state told;	/* what gy_kernel_sink_wait() has reported */
	struct gyges_stats raw;
	struct gy_page_stats stats;
};

int gy_kernel_sink_create(struct gy_ram *ram, const struct gy_kernel_sink_config *config, struct gy_kernel_sink **out)
{
	struct gy_kernel_sink *sink = calloc(1, sizeof(*sink));
	int ret;

	if (!sink)
		return -ENOMEM;
	sink->ram = ram;
	sink->config = *config;
	sink->stats.total_pages = ram->pages;
	pthread_mutex_init(&sink->lock, NULL);
	sink->wake_fd = eventfd(0, EFD_CLOEXEC);
	ret = sink->wake_fd < 0 ? -errno : 0;
	sink->fd = gy_kernel_reopen(ram->piece[0].fd);
	if (sink->fd < 0)
		ret = sink->fd;
	if (ret) {
		gy_kernel_sink_destroy(sink);
		return ret;
	}
	*out = sink;
	return 0;
}

void gy_kernel_sink_destroy(struct gy_kernel_sink *sink)
{
	if (!sink)
		return;
	/* With pages missing the import cannot end: nobody is to read zeros for them. */
	if (sink->importing && gy_kernel_order(sink->fd, GYGES_IOC_IMPORT_END, NULL) == -EBUSY)
		gy_kernel_order(sink->fd, GYGES_IOC_IMPORT_ABANDON, NULL);
	if (sink->fd >= 0)
		close(sink->fd);
	if (sink->wake_fd >= 0)
		close(sink->wake_fd);
	pthread_mutex_destroy(&sink->lock);
	free(sink);
}

/* ---- link ---- */

static int configure(struct gy_kernel_sink *sink)
{
	struct gyges_prefetch prefetch = {
		.flags = sink->config.prefetch ? 0 : GYGES_PREFETCH_OFF,
		.precopy_window_pages = sink->config.precopy_window_pages,
		.postcopy_window_pages = sink->config.postcopy_window_pages,
		.rate_bytes_per_s = sink->config.rate,
	};

	return gy_kernel_order(sink->fd, GYGES_IOC_PREFETCH, &prefetch);
}

int gy_kernel_sink_connect(struct gy_kernel_sink *sink, const char *host, uint32_t port, const uint8_t *token,
			   uint32_t timeout_ms)
{
	struct gyges_endpoint endpoint;
	int ret = gy_kernel_endpoint(&endpoint, host, port, token);

	if (ret)
		return ret;
	endpoint.timeout_ms = timeout_ms;
	/* The waiting machine may have touched pages; ARM drops them. */
	endpoint.flags = GYGES_IMPORT_OVERWRITE;
	ret = gy_kernel_order(sink->fd, GYGES_IOC_IMPORT, &endpoint);
	if (ret || sink->importing)
		return ret;
	sink->importing = true;
	return configure(sink);
}

int gy_kernel_sink_drop(struct gy_kernel_sink *sink)
{
	struct gyges_state state;
	int ret = gy_kernel_order(sink->fd, GYGES_IOC_IMPORT_DROP, NULL);

	if (!ret)
		ret = gy_kernel_order(sink->fd, GYGES_IOC_STATE, &state);
	if (ret)
		return ret;
	pthread_mutex_lock(&sink->lock);
	/* A completion is news for good. */
	state.phase = sink->told.phase;
	sink->told = state;
	pthread_mutex_unlock(&sink->lock);
	return 0;
}

int gy_kernel_sink_regions(struct gy_kernel_sink *sink, const uint8_t *table, uint64_t len)
{
	struct gyges_regions arg = {
		.regions_ptr = (uintptr_t)table,
		.capacity = (uint32_t)(len / sizeof(struct gyges_region)),
	};

	if (len % sizeof(struct gyges_region) || len / sizeof(struct gyges_region) > UINT32_MAX)
		return -EINVAL;
	return gy_kernel_order(sink->fd, GYGES_IOC_IMPORT_REGIONS, &arg);
}

/* ---- page sets ---- */

/* Gives an encoded set to ROUND, or without a deadline to DISCARD. Pages missing then. */
static int64_t want(struct gy_kernel_sink *sink, const uint8_t *set, uint64_t len, const uint32_t *deadline_ms)
{
	struct gyges_round round = { .set.words = bitmap_words(sink->ram->pages) };
	uint64_t *bits = calloc(round.set.words, sizeof(*bits));
	int64_t ret;

	if (!bits)
		return -ENOMEM;
	round.set.words_ptr = (uintptr_t)bits;
	ret = gy_set_decode(set, len, bits, sink->ram->pages);
	if (ret >= 0 && deadline_ms) {
		round.deadline_ms = *deadline_ms;
		ret = gy_kernel_order(sink->fd, GYGES_IOC_IMPORT_ROUND, &round);
	} else if (ret >= 0) {
		ret = gy_kernel_order(sink->fd, GYGES_IOC_IMPORT_DISCARD, &round.set);
	}
	free(bits);
	return ret < 0 ? ret : (int64_t)round.set.pages;
}

int64_t gy_kernel_sink_round(struct gy_kernel_sink *sink, const uint8_t *set, uint64_t len, uint32_t deadline_ms)
{
	return want(sink, set, len, &deadline_ms);
}

int gy_kernel_sink_end_round(struct gy_kernel_sink *sink)
{
	return gy_kernel_order(sink->fd, GYGES_IOC_IMPORT_END_ROUND, NULL);
}

int64_t gy_kernel_sink_discard(struct gy_kernel_sink *sink, const uint8_t *set, uint64_t len)
{
	return want(sink, set, len, NULL);
}

int64_t gy_kernel_sink_arm(struct gy_kernel_sink *sink)
{
	struct gyges_state state;
	int ret = gy_kernel_order(sink->fd, GYGES_IOC_IMPORT_ARM, NULL);

	if (!ret)
		ret = gy_kernel_order(sink->fd, GYGES_IOC_STATE, &state);
	return ret ? ret : (int64_t)state.missing_pages;
}

int gy_kernel_sink_run(struct gy_kernel_sink *sink)
{
	return gy_kernel_order(sink->fd, GYGES_IOC_IMPORT_RUN, NULL);
}

int gy_kernel_sink_disarm(struct gy_kernel_sink *sink)
{
	int ret = gy_kernel_order(sink->fd, GYGES_IOC_IMPORT_END, NULL);

	sink->importing = sink->importing && ret;
	return ret;
}

/* ---- what becomes of it ---- */

int gy_kernel_sink_refresh(struct gy_kernel_sink *sink)
{
	const struct gyges_stats *raw = &sink->raw;
	int ret = gy_kernel_order(sink->fd, GYGES_IOC_STATS, &sink->raw);

	if (ret)
		return ret;
	sink->stats = (struct gy_page_stats){
		.total_pages = raw->total_pages,
		.present_pages = raw->present_pages,
		.missing_pages = raw->missing_pages,
		.precopy_pages = raw->precopy_pages,
		.postcopy_pages = raw->postcopy_pages,
		.demand_faults = raw->demand_faults,
		.prefetched_pages = raw->prefetched_pages,
		.zero_pages = raw->zero_pages,
		.duplicate_pages = raw->duplicate_pages,
		.wire_bytes = raw->wire_bytes,
		.blocktime_ns = raw->blocktime_ns,
		.discarded_pages = raw->discarded_pages,
	};
	memcpy(&sink->stats.fault_latency, &raw->fault_latency, sizeof(raw->fault_latency));
	return 0;
}

struct gy_page_stats *gy_kernel_sink_stats(struct gy_kernel_sink *sink)
{
	return &sink->stats;
}

/* What has happened since it was last told. A mask, or -errno. */
static int news(struct gy_kernel_sink *sink)
{
	struct gyges_state state;
	int mask = 0;
	int ret = gy_kernel_order(sink->fd, GYGES_IOC_STATE, &state);

	if (ret)
		return ret;
	pthread_mutex_lock(&sink->lock);
	if (state.rounds_done > sink->told.rounds_done)
		mask |= GY_EVENT_ROUND_DONE;
	if (state.links_lost > sink->told.links_lost)
		mask |= GY_EVENT_LINK_LOST;
	if (state.phase != sink->told.phase && state.phase == GYGES_PHASE_COMPLETE)
		mask |= GY_EVENT_COMPLETE;
	if (state.phase != sink->told.phase && state.phase == GYGES_PHASE_ABANDONED)
		mask |= GY_EVENT_FAILED;
	sink->told = state;
	pthread_mutex_unlock(&sink->lock);
	return mask;
}

static bool woken(int fd)
{
	uint64_t count;

	return read(fd, &count, sizeof(count)) == sizeof(count);
}

int gy_kernel_sink_wait(struct gy_kernel_sink *sink, uint32_t timeout_ms)
{
	uint64_t deadline = deadline_after_ms(timeout_ms);

	for (;;) {
		struct pollfd fds[] = {
			{ .fd = sink->fd, .events = POLLIN },
			{ .fd = sink->wake_fd, .events = POLLIN },
		};
		int mask = news(sink);
		int ready;

		if (mask)
			return mask;
		ready = poll(fds, 2, ms_until(deadline));
		if (ready < 0 && errno != EINTR)
			return -errno;
		if (ready > 0 && fds[1].revents && woken(sink->wake_fd))
			return GY_EVENT_WAKE;
		if (!ready)
			return -ETIMEDOUT;
	}
}

void gy_kernel_sink_wake(struct gy_kernel_sink *sink)
{
	uint64_t one = 1;

	/* It fails only where a wake-up waits already. */
	(void)!write(sink->wake_fd, &one, sizeof(one));
}

int gy_kernel_sink_phase(struct gy_kernel_sink *sink, uint32_t *linked)
{
	struct gyges_state state;
	int ret = gy_kernel_order(sink->fd, GYGES_IOC_STATE, &state);

	if (ret)
		return ret;
	*linked = !!(state.flags & GYGES_LINK_UP);
	return (int)state.phase;
}
