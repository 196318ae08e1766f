// SPDX-License-Identifier: Apache-2.0
/* sink.c - the destination's page sets, and what moves a sink from phase to phase. See sink.h. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "clock.h"
#include "inject.h"
#include "page_set.h"
#include "region_table.h"
#include "sink.h"
#include "thread.h"

/* ---- life ---- */

static int make_state(struct gy_sink *sink)
{
	uint64_t words = bitmap_words(sink->ram->pages);

	sink->state_bytes = 4 * words * sizeof(gy_word);
	sink->state = mmap(NULL, sink->state_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (sink->state == MAP_FAILED)
		return -errno;
	sink->want = sink->state;
	sink->received = sink->want + words;
	sink->zero = sink->received + words;
	sink->stored = sink->zero + words;
	return 0;
}

static void free_state(struct gy_sink *sink)
{
	munmap(sink->state, sink->state_bytes);
}

static int start_fault_thread(struct gy_sink *sink)
{
	int ret = sink_conn_init(&sink->fault, sink, true);

	if (ret)
		return ret;
	ret = thread_start(&sink->fault.thread, "gy-fault", sink_fault_thread, &sink->fault);
	if (ret)
		sink_conn_exit(&sink->fault);
	return ret;
}

int gy_sink_create(struct gy_ram *ram, const struct gy_sink_config *config, struct gy_sink **out, char *err,
		   uint32_t err_bytes)
{
	struct gy_sink *sink;
	int ret;

	if (config->take_over > 1 || (config->take_over && !ram->pid))
		return -EINVAL;
	sink = calloc(1, sizeof(*sink));
	if (!sink)
		return -ENOMEM;
	sink->ram = ram;
	sink->config = *config;
	sink->stats.total_pages = ram->pages;
	ret = make_state(sink);
	if (ret)
		goto err_free;
	ret = events_init(&sink->events);
	if (ret)
		goto err_state;
	pthread_mutex_init(&sink->lock, NULL);
	pthread_mutex_init(&sink->waiters.lock, NULL);
	pthread_mutex_init(&sink->fault_lock, NULL);
	pthread_cond_init(&sink->fault_taken, NULL);
	ret = pacer_init(&sink->pacer, config->rate);
	if (ret)
		goto err_events;
	ret = config->take_over ? uffd_take_over(&sink->uffd, ram, err, err_bytes)
				: uffd_open(&sink->uffd, ram, err, err_bytes);
	if (ret)
		goto err_pacer;
	ret = start_fault_thread(sink);
	if (ret)
		goto err_uffd;
	*out = sink;
	return 0;

err_uffd:
	uffd_close(&sink->uffd);
err_pacer:
	pacer_destroy(&sink->pacer);
err_events:
	events_destroy(&sink->events);
err_state:
	free_state(sink);
err_free:
	free(sink);
	return ret;
}

void gy_sink_destroy(struct gy_sink *sink)
{
	if (!sink)
		return;
	gy_sink_drop_channels(sink);
	atomic_store(&sink->fault.stop, true);
	sink_conn_wake(&sink->fault);
	pthread_join(sink->fault.thread, NULL);
	sink_link_destroy(sink->fault_next);
	sink_conn_exit(&sink->fault);
	uffd_close(&sink->uffd);
	pacer_destroy(&sink->pacer);
	free(sink->table);
	pthread_cond_destroy(&sink->fault_taken);
	pthread_mutex_destroy(&sink->fault_lock);
	pthread_mutex_destroy(&sink->waiters.lock);
	pthread_mutex_destroy(&sink->lock);
	events_destroy(&sink->events);
	free_state(sink);
	free(sink);
}

/* ---- connections ---- */

static int add_demand(struct gy_sink *sink, struct sink_link *link)
{
	struct sink_link *old;

	pthread_mutex_lock(&sink->fault_lock);
	old = sink->fault_next;
	sink->fault_next = link;
	pthread_mutex_unlock(&sink->fault_lock);
	sink_link_destroy(old);
	sink_conn_wake(&sink->fault);
	return 0;
}

static int add_prefetch_locked(struct gy_sink *sink, struct sink_link *link)
{
	struct sink_conn *conn;
	int ret;

	if (sink->n_conns == SINK_MAX_CONNS)
		return -ENOSPC;
	conn = calloc(1, sizeof(*conn));
	if (!conn)
		return -ENOMEM;
	ret = sink_conn_init(conn, sink, false);
	if (ret)
		goto err_free;
	conn->link = link;
	ret = thread_start(&conn->thread, "gy-prefetch", sink_prefetch_thread, conn);
	if (ret)
		goto err_conn;
	sink->conn[sink->n_conns++] = conn;
	return 0;

err_conn:
	conn->link = NULL;
	sink_conn_exit(conn);
err_free:
	free(conn);
	return ret;
}

int sink_add_link(struct gy_sink *sink, struct sink_link *link, uint32_t role)
{
	int ret;

	if (role == GY_ROLE_DEMAND)
		return add_demand(sink, link);
	pthread_mutex_lock(&sink->lock);
	ret = role == GY_ROLE_PREFETCH ? add_prefetch_locked(sink, link) : -EINVAL;
	pthread_mutex_unlock(&sink->lock);
	if (ret)
		sink_link_destroy(link);
	return ret;
}

int gy_sink_add(struct gy_sink *sink, struct gy_channel *channel, uint32_t role)
{
	struct sink_link *link = sink_tcp_link(channel);

	if (link)
		return sink_add_link(sink, link, role);
	gy_channel_destroy(channel);
	return -ENOMEM;
}

/* The list is emptied under the lock and joined without it: the threads take it to hand back their claims. */
static void drop_prefetch(struct gy_sink *sink)
{
	struct sink_conn *conn[SINK_MAX_CONNS];
	uint32_t n;

	pthread_mutex_lock(&sink->lock);
	n = sink->n_conns;
	memcpy(conn, sink->conn, n * sizeof(conn[0]));
	sink->n_conns = 0;
	pthread_mutex_unlock(&sink->lock);
	for (uint32_t i = 0; i < n; i++) {
		atomic_store(&conn[i]->stop, true);
		conn[i]->link->ops->shutdown(conn[i]->link);
		sink_conn_wake(conn[i]);
	}
	for (uint32_t i = 0; i < n; i++) {
		pthread_join(conn[i]->thread, NULL);
		sink_conn_exit(conn[i]);
		free(conn[i]);
	}
}

void gy_sink_drop_channels(struct gy_sink *sink)
{
	pacer_stop(&sink->pacer);
	drop_prefetch(sink);
	pthread_mutex_lock(&sink->fault_lock);
	sink_link_destroy(sink->fault_next);
	sink->fault_next = NULL;
	sink->fault_drop = true;
	/* The thread may be stuck in a write to a dead link. */
	if (sink->fault.link)
		sink->fault.link->ops->shutdown(sink->fault.link);
	sink_conn_wake(&sink->fault);
	while (sink->fault_drop)
		pthread_cond_wait(&sink->fault_taken, &sink->fault_lock);
	pthread_mutex_unlock(&sink->fault_lock);
	pacer_restart(&sink->pacer);
	/* The fate of the old channels must not be taken for that of the next. */
	events_forget(&sink->events, GY_EVENT_LINK_LOST | (atomic_load(&sink->failed) ? 0 : GY_EVENT_FAILED));
}

void sink_wake_prefetch_locked(struct gy_sink *sink)
{
	for (uint32_t i = 0; i < sink->n_conns; i++)
		sink_conn_wake(sink->conn[i]);
}

/* ---- pre-copy ---- */

/* These pages changed at the source: whatever is here of them is stale. */
static void want_run(void *arg, uint64_t first, uint64_t count)
{
	struct gy_sink *sink = arg;
	uint64_t spared;

	for (uint64_t page = first; page < first + count; page++) {
		if (bitmap_test(sink->received, page) && inject_take(GY_INJECT_STALE_PAGE, page, 1, &spared))
			continue;
		bitmap_clear(sink->received, page);
		bitmap_set(sink->want, page);
	}
}

static int64_t want_set(struct gy_sink *sink, const uint8_t *set, uint64_t len)
{
	int64_t ret = gy_set_for_each(set, len, sink->ram->pages, want_run, sink);

	if (ret < 0)
		return ret;
	/* A page that no region has could never come. */
	if (sink->rdma && !region_table_covers(sink->table, sink->want, sink->ram->pages))
		return -ERANGE;
	return (int64_t)bitmap_count(sink->want, sink->ram->pages);
}

int64_t gy_sink_round(struct gy_sink *sink, const uint8_t *set, uint64_t len, uint32_t deadline_ms)
{
	int64_t wanted;

	pthread_mutex_lock(&sink->lock);
	if (sink_phase(sink) != SINK_IDLE) {
		pthread_mutex_unlock(&sink->lock);
		return -EBUSY;
	}
	wanted = want_set(sink, set, len);
	if (wanted >= 0) {
		sink->round_cursor = 0;
		sink->round_ended = false;
		sink->round_deadline_ns = deadline_after_ms(deadline_ms);
		atomic_store(&sink->phase, SINK_ROUND);
		sink_wake_prefetch_locked(sink);
	}
	pthread_mutex_unlock(&sink->lock);
	return wanted;
}

int gy_sink_end_round(struct gy_sink *sink)
{
	pthread_mutex_lock(&sink->lock);
	sink->round_ended = true;
	/* With every connection lost nobody else would. */
	sink_end_round_locked(sink);
	sink_wake_prefetch_locked(sink);
	pthread_mutex_unlock(&sink->lock);
	return 0;
}

/* Drops the stored copies of pages that are not received. Runs of neighbours cost one call. */
static int drop_stale(struct gy_sink *sink)
{
	uint64_t pages = sink->ram->pages;
	uint64_t first = bitmap_next_except(sink->stored, sink->received, 0, pages, true);

	while (first < pages) {
		uint64_t end = bitmap_next_except(sink->stored, sink->received, first, pages, false);
		int ret = gy_ram_punch(sink->ram, first * GY_PAGE_BYTES, (end - first) * GY_PAGE_BYTES);

		if (ret)
			return ret;
		sink_count(&sink->stats.discarded_pages, end - first);
		for (; first < end; first++)
			bitmap_clear(sink->stored, first);
		first = bitmap_next_except(sink->stored, sink->received, end, pages, true);
	}
	return 0;
}

int64_t gy_sink_discard(struct gy_sink *sink, const uint8_t *set, uint64_t len)
{
	int64_t wanted = -EBUSY;
	int ret;

	pthread_mutex_lock(&sink->lock);
	if (sink_phase(sink) == SINK_IDLE) {
		wanted = want_set(sink, set, len);
		ret = wanted < 0 ? 0 : drop_stale(sink);
		if (ret)
			wanted = ret;
	}
	pthread_mutex_unlock(&sink->lock);
	return wanted;
}

/* ---- post-copy ---- */

/* Drops the pages of [page, end) that pre-copy did not store; neighbours cost one call. */
static int drop_unstored(struct gy_sink *sink, uint64_t page, uint64_t end)
{
	while ((page = bitmap_next(sink->stored, page, end, false)) < end) {
		uint64_t run_end = bitmap_next(sink->stored, page, end, true);
		int ret = gy_ram_punch(sink->ram, page * GY_PAGE_BYTES, (run_end - page) * GY_PAGE_BYTES);

		if (ret)
			return ret;
		page = run_end;
	}
	return 0;
}

/* Drops every allocated page that pre-copy did not store: the waiting VM, or anybody else, made it. */
static int drop_foreign(struct gy_sink *sink)
{
	int64_t at = 0;

	for (;;) {
		int64_t end;
		int ret;

		at = gy_ram_seek(sink->ram, (uint64_t)at, 1);
		if (at < 0 || (uint64_t)at >= sink->ram->bytes)
			return at < 0 ? (int)at : 0;
		end = gy_ram_seek(sink->ram, (uint64_t)at, 0);
		if (end < 0)
			return (int)end;
		ret = drop_unstored(sink, (uint64_t)at / GY_PAGE_BYTES, (uint64_t)end / GY_PAGE_BYTES);
		if (ret)
			return ret;
		at = end;
	}
}

/* Looking at every page of a large guest would take a tenth of a second of downtime; counting them does not. */
static int drop_unvouched(struct gy_sink *sink)
{
	int64_t allocated;
	int ret = drop_stale(sink);

	if (ret)
		return ret;
	allocated = gy_ram_allocated(sink->ram);
	if (allocated < 0)
		return (int)allocated;
	if ((uint64_t)allocated / GY_PAGE_BYTES == bitmap_count(sink->stored, sink->ram->pages))
		return 0;
	return drop_foreign(sink);
}

static void want_absent(struct gy_sink *sink, uint64_t first, uint64_t end)
{
	uint64_t spared;

	for (uint64_t page = first; page < end; page++)
		bitmap_set(sink->want, page);
	if (first < end && inject_take(GY_INJECT_ABSENT_PAGE, first, end - first, &spared)) {
		bitmap_clear(sink->want, spared);
		bitmap_set(sink->received, spared);
	}
}

/*
 * After a take-over the file itself says what is here: what was in it when the pager was armed was vouched for, and a
 * page that came since is in it whole or not at all. No hole is filled meanwhile, as whoever touches one waits. Which of
 * the absent pages are zero the source will tell; only those that it has no region for are known to be. (hugetlbfs,
 * where a hole looks like data, cannot be registered: see uffd.c.)
 */
static int find_present(struct gy_sink *sink)
{
	uint64_t pages = sink->ram->pages, page = 0;

	while (page < pages) {
		int64_t data = gy_ram_seek(sink->ram, page * GY_PAGE_BYTES, 1), hole;

		if (data < 0)
			return (int)data;
		want_absent(sink, page, (uint64_t)data / GY_PAGE_BYTES);
		hole = gy_ram_seek(sink->ram, (uint64_t)data, 0);
		if (hole < 0)
			return (int)hole;
		for (page = (uint64_t)data / GY_PAGE_BYTES; page < (uint64_t)hole / GY_PAGE_BYTES; page++)
			bitmap_set(sink->received, page);
	}
	if (sink->table)
		region_table_clip(sink->table, sink->want, pages);
	return 0;
}

static uint64_t mark_zero_pages(struct gy_sink *sink)
{
	uint64_t zero = 0;

	for (uint64_t w = 0; w < bitmap_words(sink->ram->pages); w++) {
		uint64_t word = ~(atomic_load(&sink->want[w]) | atomic_load(&sink->received[w]));

		atomic_store(&sink->zero[w], word);
		zero += (uint64_t)__builtin_popcountll(word);
	}
	return zero;
}

static int64_t arm_locked(struct gy_sink *sink)
{
	uint64_t missing;
	int ret;

	if (sink_phase(sink) != SINK_IDLE)
		return -EBUSY;
	ret = sink->config.take_over ? find_present(sink) : drop_unvouched(sink);
	if (ret)
		return ret;
	missing = bitmap_count(sink->want, sink->ram->pages);
	sink->stats.zero_pages = mark_zero_pages(sink);
	sink->stats.missing_pages = missing;
	sink->stats.present_pages = sink->ram->pages - missing;
	atomic_store(&sink->missing, missing);
	atomic_store(&sink->phase, SINK_ARMED);
	return (int64_t)missing;
}

int64_t gy_sink_arm(struct gy_sink *sink)
{
	int64_t ret;

	pthread_mutex_lock(&sink->lock);
	ret = arm_locked(sink);
	pthread_mutex_unlock(&sink->lock);
	if (ret < 0)
		return ret;
	sink_conn_wake(&sink->fault);
	if (sink->config.take_over) {
		int err = uffd_wake_all(&sink->uffd);

		if (err)
			return err;
	}
	return ret;
}

int gy_sink_run(struct gy_sink *sink)
{
	uint32_t running = SINK_RUNNING;
	int ret = 0;

	pthread_mutex_lock(&sink->lock);
	if (sink_phase(sink) == SINK_ARMED) {
		/* Without prefetch the guest has its first second to show what it touches. */
		atomic_store(&sink->last_fault_ns, now_ns());
		atomic_store(&sink->phase, SINK_RUNNING);
		sink_wake_prefetch_locked(sink);
	} else {
		ret = -EBUSY;
	}
	pthread_mutex_unlock(&sink->lock);
	/* Nothing was missing, or the last page came while it was armed. */
	if (!ret && !atomic_load(&sink->missing) &&
	    atomic_compare_exchange_strong(&sink->phase, &running, SINK_DONE))
		events_raise(&sink->events, GY_EVENT_COMPLETE);
	return ret;
}

int gy_sink_disarm(struct gy_sink *sink)
{
	if (sink_phase(sink) != SINK_DONE)
		return -EBUSY;
	return uffd_unregister(&sink->uffd);
}

struct gy_page_stats *gy_sink_stats(struct gy_sink *sink)
{
	return &sink->stats;
}

int gy_sink_wait(struct gy_sink *sink, uint32_t timeout_ms)
{
	return events_wait(&sink->events, timeout_ms);
}

void gy_sink_wake(struct gy_sink *sink)
{
	events_raise(&sink->events, GY_EVENT_WAKE);
}
