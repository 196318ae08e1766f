/* SPDX-License-Identifier: Apache-2.0 */
/*
 * sink.h - the destination's half of the user pager.
 *
 * Every page is in exactly one place:
 *
 *   wanted    missing here, nobody has asked for it      (bit in want)
 *   in flight a connection has asked for it              (no bit)
 *   received  its content is here                        (bit in received)
 *   zero      known to be zero at the source             (bit in zero)
 *
 * A page leaves "wanted" by one atomic test-and-clear: whoever cleared the bit asks for it, nobody else does. It
 * enters "received" after its content is in place, never before. A connection that fails hands what it had in
 * flight back to "wanted".
 *
 *              round()            last reply, or deadline
 *   IDLE ------------------> ROUND ---------------------> IDLE        pre-copy: pages go into the file directly
 *   IDLE -- arm() --> ARMED -- run() --> RUNNING -- last page --> DONE -- disarm()
 *
 * Locks: sink->lock (claims by prefetch threads, phase changes, connection list) > waiters.lock. The fault thread
 * takes neither while it resolves a fault on a page that nobody else has in flight, except waiters.lock.
 */
#ifndef GY_SINK_H
#define GY_SINK_H

#include <pthread.h>

#include "bitmap.h"
#include "channel.h"
#include "events.h"
#include "gyges.h"
#include "pacer.h"
#include "prefetch.h"
#include "ram.h"
#include "uffd.h"

#define SINK_MAX_CONNS 16u	/* for prefetch */
#define SINK_MAX_REQUESTS 64u	/* under way on one connection */
#define SINK_MAX_WAITERS 256u	/* faults seen and not yet resolved */

enum sink_phase { SINK_IDLE, SINK_ROUND, SINK_ARMED, SINK_RUNNING, SINK_DONE };

/* A thread that waits in a fault. */
struct waiter {
	uint64_t page;
	uint64_t seen_ns;
	bool used;
	bool asked;	/* the demand connection has the page in flight */
};

struct waiters {
	pthread_mutex_t lock;
	struct waiter entry[SINK_MAX_WAITERS];
	_Atomic(uint32_t) n;
	_Atomic(uint32_t) asked;
};

struct sink_request {
	uint32_t tag;
	uint64_t next;	/* first page that has not come yet */
	uint64_t end;
};

struct sink_conn;
struct sink_link;

/* How pages are asked for and come in: sink_tcp.c and sink_rdma.c. All but shutdown: the connection's thread only. */
struct sink_link_ops {
	/* Asks for the request in ring entry @slot; it waits for the link's pace, not for pages. */
	int (*ask)(struct sink_link *link, struct sink_conn *conn, uint32_t slot);
	/*
	 * Places what has arrived, see sink_conn_receive(). After 0, @fd is readable, or has the @events that are set,
	 * as soon as there may be more.
	 */
	int64_t (*receive)(struct sink_link *link, struct sink_conn *conn, short *events);
	/* Any thread: ends an ask() that waits. */
	void (*shutdown)(struct sink_link *link);
	void (*destroy)(struct sink_link *link);
};

struct sink_link {
	const struct sink_link_ops *ops;
	int fd;
	uint32_t max_pages;	/* of one request */
	bool paced;		/* ask() waits for the sink's pacer: after each one, a look at what has come */
};

/* One page connection with what it has in flight. Used by one thread. */
struct sink_conn {
	struct gy_sink *sink;
	struct sink_link *link;
	int wake_fd;
	bool demand;
	pthread_t thread;
	_Atomic(bool) stop;
	struct sink_request request[SINK_MAX_REQUESTS];	/* ring, oldest at head */
	uint32_t head;
	uint32_t n_requests;
	uint64_t pages_in_flight;
	uint32_t next_tag;
};

struct gy_sink {
	struct gy_ram *ram;
	struct gy_sink_config config;
	struct uffd uffd;
	struct events events;
	/* Page state. Whoever takes over has none of it: see find_present() in sink.c. */
	void *state;
	uint64_t state_bytes;
	gy_word *want;
	gy_word *received;
	gy_word *zero;
	gy_word *stored;	/* pages that pre-copy has put into the file */
	_Atomic(uint64_t) missing;	/* after arm(): wanted or in flight */
	_Atomic(uint32_t) phase;	/* enum sink_phase */
	_Atomic(bool) failed;

	pthread_mutex_t lock;
	struct prefetch prefetch;
	uint64_t round_cursor;
	_Atomic(uint64_t) round_deadline_ns;	/* also read without the lock */
	bool round_ended;
	uint32_t requests_in_flight;	/* over all prefetch connections */
	struct sink_conn *conn[SINK_MAX_CONNS];
	_Atomic(uint32_t) n_conns;		/* also read without the lock */
	_Atomic(uint32_t) awake;		/* threads of prefetch that wait for nothing */

	struct waiters waiters;
	_Atomic(uint64_t) last_fault_ns;
	struct sink_conn fault;		/* the fault thread and its demand connection */
	bool fault_full;		/* a fault found no room to be asked for; the fault thread's own */
	pthread_mutex_t fault_lock;	/* handing a connection to the fault thread and taking it back */
	pthread_cond_t fault_taken;
	struct sink_link *fault_next;
	bool fault_drop;

	/* RDMA: where pages are at the source. Changes between rounds only, when nobody asks for any. */
	bool rdma;
	struct region_table *table;
	struct pacer pacer;		/* what is asked for over RDMA, where the source has no part in it */

	struct gy_page_stats stats;
};

static inline enum sink_phase sink_phase(const struct gy_sink *sink)
{
	return (enum sink_phase)atomic_load(&sink->phase);
}

static inline void sink_count(uint64_t *counter, uint64_t n)
{
	__atomic_fetch_add(counter, n, __ATOMIC_RELAXED);
}

/* There may be something to ask for. Holds sink->lock. */
void sink_wake_prefetch_locked(struct gy_sink *sink);

/* ---- sink_conn.c: one connection ---- */

int sink_conn_init(struct sink_conn *conn, struct gy_sink *sink, bool demand);
void sink_conn_exit(struct sink_conn *conn);
void sink_conn_wake(struct sink_conn *conn);
void sink_conn_clear_wake(struct sink_conn *conn);
/* Asks for pages that the caller has claimed; on failure they are in flight all the same, see hand_back. */
int sink_conn_ask(struct sink_conn *conn, uint64_t first, uint32_t count);
/* Takes in what has arrived and places it. Pages placed, 0 for nothing new, or -errno: the connection is dead. */
int64_t sink_conn_receive(struct sink_conn *conn, short *events);
/*
 * A link's receive() brings @count pages from @first, the next of the oldest request, at @data (NULL: they are zero; the
 * bytes may be changed). They are placed and taken off the request. -EPROTO: they are not what was asked for.
 */
int sink_conn_arrived(struct sink_conn *conn, uint64_t first, uint32_t count, uint8_t *data);
/* Returns everything in flight to the wanted set. */
void sink_conn_hand_back(struct sink_conn *conn);

/* ---- sink_tcp.c: a link over a channel ---- */

/* Owns @channel, on success. NULL: no memory. */
struct sink_link *sink_tcp_link(struct gy_channel *channel);

static inline void sink_link_destroy(struct sink_link *link)
{
	if (link)
		link->ops->destroy(link);
}

/* Takes @link over, also on failure. */
int sink_add_link(struct gy_sink *sink, struct sink_link *link, uint32_t role);

/* ---- sink_place.c: a page arrives ---- */

/* @data is NULL for zero pages; may be changed. */
int sink_place(struct gy_sink *sink, bool demand, uint64_t first, uint32_t count, uint8_t *data);
/*
 * The waiters of these pages are accounted for and forgotten: the pages are in place now, or, with @zero, marked as
 * zero and given to each waiter here.
 */
int sink_release_waiters(struct gy_sink *sink, uint64_t first, uint64_t count, bool zero);
/* The guest's memory cannot be had any more: nothing is resolved from now on, and JavaScript is told. */
void sink_fail(struct gy_sink *sink);

/* ---- sink_prefetch.c, sink_fault.c: the threads ---- */

/* Ends the round if nothing more will be asked for and nothing is under way. Holds sink->lock. */
void sink_end_round_locked(struct gy_sink *sink);
void *sink_prefetch_thread(void *conn);
void *sink_fault_thread(void *conn);

#endif
