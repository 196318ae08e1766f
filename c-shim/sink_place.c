// SPDX-License-Identifier: Apache-2.0
/* sink_place.c - a page has come: install it, then record it, then let go who waited for it. */
#include <errno.h>
#include <string.h>

#include "clock.h"
#include "hist.h"
#include "inject.h"
#include "sink.h"

void sink_fail(struct gy_sink *sink)
{
	atomic_store(&sink->failed, true);
	events_raise(&sink->events, GY_EVENT_FAILED);
}

static void swap_pages(uint8_t *a, uint8_t *b)
{
	uint8_t keep[GY_PAGE_BYTES];

	memcpy(keep, a, sizeof(keep));
	memcpy(a, b, sizeof(keep));
	memcpy(b, keep, sizeof(keep));
}

static void inject_damage(uint64_t first, uint32_t count, uint8_t *data)
{
	uint64_t page;

	if (inject_take(GY_INJECT_ZERO_PAGE, first, count, &page))
		memset(data + (page - first) * GY_PAGE_BYTES, 0, GY_PAGE_BYTES);
	if (count > 1 && inject_take(GY_INJECT_SWAP_PAGES, first, count - 1, &page)) {
		data += (page - first) * GY_PAGE_BYTES;
		swap_pages(data, data + GY_PAGE_BYTES);
	}
}

/* Pre-copy: nobody maps these pages yet, so they go straight into the file. */
static int store(struct gy_sink *sink, uint64_t first, uint32_t count, const uint8_t *data)
{
	if (data)
		memcpy(sink->ram->alias + first * GY_PAGE_BYTES, data, (uint64_t)count * GY_PAGE_BYTES);
	for (uint64_t page = first; page < first + count; page++) {
		if (data) {
			bitmap_set(sink->stored, page);
			bitmap_set(sink->received, page);
		} else if (bitmap_clear(sink->stored, page)) {
			/* It held something when it was pulled before; now it is zero, which a hole says best. */
			int ret = gy_ram_punch(sink->ram, page * GY_PAGE_BYTES, GY_PAGE_BYTES);

			if (ret)
				return ret;
		}
	}
	sink_count(data ? &sink->stats.precopy_pages : &sink->stats.zero_pages, count);
	return 0;
}

int sink_release_waiters(struct gy_sink *sink, uint64_t first, uint64_t count, bool zero)
{
	struct waiters *waiters = &sink->waiters;
	uint64_t now;
	int ret = 0;

	if (!atomic_load(&waiters->n))
		return 0;
	now = now_ns();
	pthread_mutex_lock(&waiters->lock);
	for (uint32_t i = 0; i < SINK_MAX_WAITERS; i++) {
		struct waiter *waiter = &waiters->entry[i];

		if (!waiter->used || waiter->page < first || waiter->page - first >= count)
			continue;
		if (zero && !ret)
			ret = uffd_zero(&sink->uffd, waiter->page);
		waiter->used = false;
		atomic_fetch_sub(&waiters->n, 1);
		if (waiter->asked)
			atomic_fetch_sub(&waiters->asked, 1);
		gy_hist_add(&sink->stats.fault_latency, now - waiter->seen_ns);
		sink_count(&sink->stats.blocktime_ns, now - waiter->seen_ns);
		sink_count(&sink->stats.demand_faults, 1);
	}
	pthread_mutex_unlock(&waiters->lock);
	return ret;
}

static void pages_arrived(struct gy_sink *sink, uint64_t count)
{
	uint32_t running = SINK_RUNNING;

	/* Before the counter that ends it all: whoever brings that to 0 finds these final. */
	sink_count(&sink->stats.present_pages, count);
	__atomic_fetch_sub(&sink->stats.missing_pages, count, __ATOMIC_RELAXED);
	if (atomic_fetch_sub(&sink->missing, count) != count)
		return;
	/* Before run() the last page may come by a demand fault of device loading: run() looks again, maybe now. */
	if (atomic_compare_exchange_strong(&sink->phase, &running, SINK_DONE))
		events_raise(&sink->events, GY_EVENT_COMPLETE);
}

/*
 * Post-copy. Zero pages are not allocated: marking them lets a later fault be answered here. A fault that comes
 * between is seen by one of two sides: the fault thread registers its waiter and then looks at the marks; this
 * thread marks and then looks at the waiters.
 */
static int install(struct gy_sink *sink, bool demand, uint64_t first, uint32_t count, const uint8_t *data)
{
	uint64_t existed = 0;
	int ret = data ? uffd_copy(&sink->uffd, first, count, data, &existed) : 0;

	if (ret)
		return ret;
	for (uint64_t page = first; page < first + count; page++)
		bitmap_set(data ? sink->received : sink->zero, page);
	ret = sink_release_waiters(sink, first, count, !data);
	if (ret)
		return ret;
	sink_count(&sink->stats.duplicate_pages, existed);
	sink_count(data ? &sink->stats.postcopy_pages : &sink->stats.zero_pages, count);
	if (!demand && data)
		sink_count(&sink->stats.prefetched_pages, count);
	pages_arrived(sink, count);
	return 0;
}

int sink_place(struct gy_sink *sink, bool demand, uint64_t first, uint32_t count, uint8_t *data)
{
	int ret;

	if (data)
		inject_damage(first, count, data);
	if (sink_phase(sink) <= SINK_ROUND)
		return store(sink, first, count, data);
	ret = install(sink, demand, first, count, data);
	/* The link is not to blame: the guest's address space is gone, or its memory is full. */
	if (ret)
		sink_fail(sink);
	return ret;
}
