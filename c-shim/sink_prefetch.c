// SPDX-License-Identifier: Apache-2.0
/* sink_prefetch.c - the threads that pull ranges: pre-copy rounds, then the background of post-copy. */
#include <errno.h>
#include <poll.h>

#include "clock.h"
#include "sink.h"

/*
 * After a fault, less at once for a while: the next fault may be for a page that is in flight already, and then it
 * waits for all that was asked for before.
 */
#define QUIET_NS (2 * NS_PER_MS)

static bool is_busy(const struct gy_sink *sink)
{
	return sink_phase(sink) == SINK_RUNNING &&
	       now_ns() - atomic_load_explicit(&sink->last_fault_ns, memory_order_relaxed) < QUIET_NS;
}

static uint64_t window_pages(const struct gy_sink *sink)
{
	uint64_t bytes = sink_phase(sink) == SINK_ROUND ? sink->config.precopy_window_bytes
							: sink->config.postcopy_window_bytes;
	uint64_t pages = bytes / GY_PAGE_BYTES / (sink->n_conns ? sink->n_conns : 1) / (is_busy(sink) ? 2 : 1);

	return pages ? pages : 1;
}

/* Two requests fill the window: each is a message each way, which over TCP costs as much as ten pages. */
static uint32_t chunk_pages(const struct sink_link *link, uint64_t window)
{
	uint64_t chunk = window / 2 ? window / 2 : 1;

	return (uint32_t)(chunk < link->max_pages ? chunk : link->max_pages);
}

/*
 * Without prefetch pages come by faults, until there has been none for a while: what a guest does not touch would
 * otherwise keep its source alive for ever.
 */
#define SETTLED_NS NS_PER_S

static bool may_prefetch(const struct gy_sink *sink)
{
	return sink->config.prefetch ||
	       now_ns() - atomic_load_explicit(&sink->last_fault_ns, memory_order_relaxed) > SETTLED_NS;
}

/* Claims the next run for this phase, under the lock; counts it as in flight. 0: nothing to ask for now. */
static uint32_t claim_locked(struct gy_sink *sink, uint32_t max, uint64_t *first)
{
	uint64_t pages = sink->ram->pages;
	uint32_t n = 0;

	if (sink_phase(sink) == SINK_ROUND && !sink->round_ended) {
		if (now_ns() < sink->round_deadline_ns)
			n = prefetch_sweep(sink->want, pages, max, &sink->round_cursor, first);
		sink->round_ended = !n;
	} else if (sink_phase(sink) == SINK_RUNNING && may_prefetch(sink)) {
		n = prefetch_claim(&sink->prefetch, sink->want, pages, max, first);
	}
	sink->requests_in_flight += n != 0;
	return n;
}

/* A round is over when nothing more will be asked for and nothing is under way. */
void sink_end_round_locked(struct gy_sink *sink)
{
	if (sink_phase(sink) != SINK_ROUND || !sink->round_ended || sink->requests_in_flight)
		return;
	atomic_store(&sink->phase, SINK_IDLE);
	events_raise(&sink->events, GY_EVENT_ROUND_DONE);
}

/* Demand first: while a fault is being answered each connection keeps one request under way, not more. */
static bool held_back(const struct sink_conn *conn)
{
	return conn->n_requests && atomic_load(&conn->sink->waiters.asked);
}

/* 1: more may be asked for after a look at what has come. 0: nothing more for now. */
static int ask_more(struct sink_conn *conn)
{
	struct gy_sink *sink = conn->sink;
	int ret = 0;

	while (!ret && conn->n_requests < SINK_MAX_REQUESTS && !held_back(conn)) {
		uint64_t first, window = window_pages(sink);
		uint32_t n = chunk_pages(conn->link, window);

		if (conn->n_requests && conn->pages_in_flight + n > window)
			break;
		pthread_mutex_lock(&sink->lock);
		n = claim_locked(sink, n, &first);
		sink_end_round_locked(sink);
		pthread_mutex_unlock(&sink->lock);
		if (!n)
			break;
		ret = sink_conn_ask(conn, first, n);
		if (!ret && conn->link->paced)
			return 1;
	}
	return ret;
}

static int wait_ms(const struct gy_sink *sink)
{
	/* With no reply to wake it, a round must still end at its deadline. */
	return sink_phase(sink) == SINK_ROUND ? ms_until(sink->round_deadline_ns) + 1 : 1000;
}

static void wait_for_work(struct sink_conn *conn, short events)
{
	struct pollfd p[2] = {
		{ .fd = conn->link->fd, .events = events },
		{ .fd = conn->wake_fd, .events = POLLIN },
	};
	int n;

	atomic_fetch_sub(&conn->sink->awake, 1);
	n = poll(p, 2, wait_ms(conn->sink));
	atomic_fetch_add(&conn->sink->awake, 1);
	if (n > 0 && p[1].revents)
		sink_conn_clear_wake(conn);
}

void *sink_prefetch_thread(void *arg)
{
	struct sink_conn *conn = arg;
	struct gy_sink *sink = conn->sink;
	int64_t ret = 0;

	atomic_fetch_add(&sink->awake, 1);
	while (ret >= 0 && !atomic_load(&conn->stop)) {
		short events = POLLIN;
		int more = ask_more(conn);

		ret = more < 0 ? more : sink_conn_receive(conn, &events);
		if (!ret && !more && !atomic_load(&conn->stop))
			wait_for_work(conn, events);
	}
	atomic_fetch_sub(&sink->awake, 1);
	conn->link->ops->shutdown(conn->link);
	sink_conn_hand_back(conn);
	/* What this connection had in flight must be asked for anew: by the others, and for whoever waits for it. */
	pthread_mutex_lock(&sink->lock);
	sink_end_round_locked(sink);
	sink_wake_prefetch_locked(sink);
	pthread_mutex_unlock(&sink->lock);
	sink_conn_wake(&sink->fault);
	if (!atomic_load(&conn->stop) && !atomic_load(&sink->failed))
		events_raise(&sink->events, ret == -EPROTO ? GY_EVENT_FAILED : GY_EVENT_LINK_LOST);
	return NULL;
}
