// SPDX-License-Identifier: Apache-2.0
/*
 * sink_fault.c - one thread reads faults and answers them over a connection of its own. It never waits for anything but
 * its own three descriptors.
 */
#include <errno.h>
#include <poll.h>
#include <sched.h>

#include "clock.h"
#include "sink.h"
#include "spin.h"
#include "thread.h"

#define SPIN_NS 50000ull	/* for an answer, and for the next fault after it: see spin.h */
#define BATCH 16u

static bool is_here(const struct gy_sink *sink, uint64_t page)
{
	return bitmap_test(sink->received, page) || bitmap_test(sink->zero, page);
}

/*
 * Lets a thread go on whose page is here already. Where it was placed and is not there any more, the guest has given it
 * back (a balloon, free page reporting), and touches it anew: zeros, as they would be without a pager. Only waking it
 * would bring the same fault for ever.
 */
static void resolve_here(struct gy_sink *sink, uint64_t page)
{
	int ret = uffd_zero(&sink->uffd, page);

	/* Once all pages are here the range may be unregistered under us, which wakes everybody. */
	if (ret && sink_phase(sink) != SINK_DONE)
		sink_fail(sink);
}

static struct waiter *add_waiter(struct gy_sink *sink, uint64_t page, uint64_t seen_ns)
{
	struct waiters *waiters = &sink->waiters;
	struct waiter *waiter = NULL;

	pthread_mutex_lock(&waiters->lock);
	for (uint32_t i = 0; i < SINK_MAX_WAITERS && !waiter; i++) {
		if (!waiters->entry[i].used)
			waiter = &waiters->entry[i];
	}
	/* There is room: faults are only read while there is. */
	*waiter = (struct waiter){ .page = page, .seen_ns = seen_ns, .used = true };
	atomic_fetch_add(&waiters->n, 1);
	pthread_mutex_unlock(&waiters->lock);
	return waiter;
}

/*
 * Asks for the page of a waiter if nobody has it in flight; called without the lock, so the waiter may be served
 * by another connection meanwhile: the claim decides.
 */
static int ask_for(struct sink_conn *conn, struct waiter *waiter, uint64_t page)
{
	struct gy_sink *sink = conn->sink;
	bool full = conn->n_requests == SINK_MAX_REQUESTS;

	sink->fault_full |= full;
	if (!conn->link || full || !bitmap_clear(sink->want, page))
		return 0;
	waiter->asked = true;
	atomic_fetch_add(&sink->waiters.asked, 1);
	return sink_conn_ask(conn, page, 1);
}

static int handle_fault(struct sink_conn *conn, const struct uffd_fault *fault)
{
	struct gy_sink *sink = conn->sink;
	uint64_t now = now_ns();
	struct waiter *waiter;
	int ret;

	if (is_here(sink, fault->page)) {
		sink_count(bitmap_test(sink->zero, fault->page) ? &sink->stats.local_zero_faults
								: &sink->stats.late_faults, 1);
		resolve_here(sink, fault->page);
		return 0;
	}
	atomic_store_explicit(&sink->last_fault_ns, now, memory_order_relaxed);
	prefetch_fault(&sink->prefetch, fault->page);
	waiter = add_waiter(sink, fault->page, now);
	ret = ask_for(conn, waiter, fault->page);
	/* It may have been placed between the look and the entry; see install() for the other half. */
	if (is_here(sink, fault->page)) {
		resolve_here(sink, fault->page);
		sink_release_waiters(sink, fault->page, 1, false);
	}
	return ret;
}

/* For whoever waits for a page that nobody has in flight. */
static int ask_again(struct sink_conn *conn)
{
	struct waiters *waiters = &conn->sink->waiters;
	int ret = 0;

	conn->sink->fault_full = false;
	for (uint32_t i = 0; i < SINK_MAX_WAITERS && !ret; i++) {
		struct waiter copy;

		pthread_mutex_lock(&waiters->lock);
		copy = waiters->entry[i];
		pthread_mutex_unlock(&waiters->lock);
		if (copy.used && !copy.asked)
			ret = ask_for(conn, &waiters->entry[i], copy.page);
	}
	return ret;
}

/* The link is gone or to be given back: what it had in flight is wanted again, its waiters unasked. */
static void drop_link_locked(struct sink_conn *conn)
{
	struct waiters *waiters = &conn->sink->waiters;

	if (!conn->link)
		return;
	sink_conn_hand_back(conn);
	pthread_mutex_lock(&waiters->lock);
	for (uint32_t i = 0; i < SINK_MAX_WAITERS; i++)
		waiters->entry[i].asked = false;
	atomic_store(&waiters->asked, 0);
	pthread_mutex_unlock(&waiters->lock);
	sink_link_destroy(conn->link);
	conn->link = NULL;
}

/*
 * What other threads asked of this one: a new link, or to let go of the old; or, with @woken, to ask for what another
 * connection has handed back. Nobody says when replies have made room for a fault that found none. 1: the link is another.
 */
static int take_orders(struct sink_conn *conn, bool woken)
{
	struct gy_sink *sink = conn->sink;
	bool changed = false;
	int ret = 0;

	pthread_mutex_lock(&sink->fault_lock);
	if (sink->fault_drop || sink->fault_next) {
		drop_link_locked(conn);
		conn->link = sink->fault_next;
		sink->fault_next = NULL;
		sink->fault_drop = false;
		changed = true;
		pthread_cond_broadcast(&sink->fault_taken);
	}
	pthread_mutex_unlock(&sink->fault_lock);
	if (changed || ((woken || sink->fault_full) && atomic_load(&sink->waiters.n)))
		ret = ask_again(conn);
	return ret ? ret : changed;
}

static int64_t take_faults(struct sink_conn *conn)
{
	struct gy_sink *sink = conn->sink;
	struct uffd_fault fault[BATCH];
	int64_t done = 0;
	int n = 0;

	if (sink_phase(sink) >= SINK_ARMED && atomic_load(&sink->waiters.n) + BATCH <= SINK_MAX_WAITERS)
		n = uffd_read(&sink->uffd, fault, BATCH);
	if (n < 0) {
		sink_fail(sink);
		n = 0;
	}
	for (int i = 0; i < n; i++) {
		int ret = handle_fault(conn, &fault[i]);

		/* The other faults of the batch still become waiters: none may be forgotten. */
		if (ret)
			done = ret;
	}
	return done ? done : n;
}

/* To the last reply: only then does the link's descriptor tell of the next. */
static int64_t take_replies(struct sink_conn *conn, short *events)
{
	int64_t placed = 0, n = 0;

	while (conn->link && (n = sink_conn_receive(conn, events)) > 0)
		placed += n;
	return n < 0 ? n : placed;
}

/* What there is to do, as far as is known. A vCPU waits, so nothing is looked at in vain: each look is a system call. */
#define READY_FAULT 1u
#define READY_REPLY 2u
#define READY_ORDER 4u
#define READY_ALL   7u

/* > 0 if something was done. */
static int64_t work(struct sink_conn *conn, unsigned int ready, short *events)
{
	int64_t faults = ready & READY_FAULT ? take_faults(conn) : 0;
	int64_t placed = faults >= 0 && ready & READY_REPLY ? take_replies(conn, events) : 0;

	if (faults < 0)
		return faults;
	return placed < 0 ? placed : faults + placed;
}

static unsigned int wait_for_work(struct sink_conn *conn, short events)
{
	struct gy_sink *sink = conn->sink;
	struct pollfd p[3] = {
		{ .fd = conn->wake_fd, .events = POLLIN },
		{ .fd = sink_phase(sink) >= SINK_ARMED ? sink->uffd.fd : -1, .events = POLLIN },
		{ .fd = conn->link ? conn->link->fd : -1, .events = events },
	};

	if (poll(p, 3, 1000) <= 0)
		return READY_ALL;
	if (p[0].revents)
		sink_conn_clear_wake(conn);
	return (p[0].revents ? READY_ORDER : 0) | (p[1].revents ? READY_FAULT : 0) | (p[2].revents ? READY_REPLY : 0);
}

static void lose_link(struct sink_conn *conn, int64_t why)
{
	pthread_mutex_lock(&conn->sink->fault_lock);
	drop_link_locked(conn);
	pthread_mutex_unlock(&conn->sink->fault_lock);
	/* Without this connection its pages can still come in the background. */
	pthread_mutex_lock(&conn->sink->lock);
	sink_wake_prefetch_locked(conn->sink);
	pthread_mutex_unlock(&conn->sink->lock);
	if (!atomic_load(&conn->stop) && !atomic_load(&conn->sink->failed))
		events_raise(&conn->sink->events, why == -EPROTO ? GY_EVENT_FAILED : GY_EVENT_LINK_LOST);
}

/* A vCPU that waits leaves its CPU to whoever fetches its page, and so does a prefetch that waits for the link. */
static bool may_spin(const struct sink_conn *conn, bool always)
{
	return always || (atomic_load(&conn->sink->waiters.asked) && !atomic_load(&conn->sink->awake));
}

void *sink_fault_thread(void *arg)
{
	struct sink_conn *conn = arg;
	bool always = spin_ns(SPIN_NS) > 0;
	unsigned int ready = READY_ALL;
	uint64_t spin_until = 0;
	short events = POLLIN;

	thread_be_urgent();
	while (!atomic_load(&conn->stop)) {
		int64_t ret = work(conn, ready, &events);

		if (ret > 0)
			spin_until = now_ns() + SPIN_NS;
		if (ret >= 0 && may_spin(conn, always) && now_ns() < spin_until) {
			ready |= READY_FAULT | READY_REPLY;
			if (!ret)
				sched_yield();
			continue;
		}
		if (ret >= 0)
			ret = take_orders(conn, ready & READY_ORDER);
		if (ret < 0)
			lose_link(conn, ret);
		/* A link tells of replies once it has been asked for them. */
		ready = ret ? READY_ALL : wait_for_work(conn, events);
	}
	pthread_mutex_lock(&conn->sink->fault_lock);
	drop_link_locked(conn);
	pthread_mutex_unlock(&conn->sink->fault_lock);
	return NULL;
}
