// SPDX-License-Identifier: Apache-2.0
/* sink_conn.c - what one page connection has asked for and not yet got, whatever link it goes over. */
#include <errno.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "sink.h"

int sink_conn_init(struct sink_conn *conn, struct gy_sink *sink, bool demand)
{
	*conn = (struct sink_conn){ .sink = sink, .demand = demand };
	conn->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	return conn->wake_fd < 0 ? -errno : 0;
}

void sink_conn_exit(struct sink_conn *conn)
{
	sink_link_destroy(conn->link);
	close(conn->wake_fd);
}

void sink_conn_wake(struct sink_conn *conn)
{
	uint64_t one = 1;
	ssize_t n = write(conn->wake_fd, &one, sizeof(one));

	/* EAGAIN: the counter is full, so the thread is woken already. */
	(void)n;
}

void sink_conn_clear_wake(struct sink_conn *conn)
{
	uint64_t value;
	ssize_t n = read(conn->wake_fd, &value, sizeof(value));

	(void)n;
}

int sink_conn_ask(struct sink_conn *conn, uint64_t first, uint32_t count)
{
	uint32_t slot = (conn->head + conn->n_requests++) % SINK_MAX_REQUESTS;

	conn->request[slot] = (struct sink_request){ .tag = ++conn->next_tag, .next = first, .end = first + count };
	conn->pages_in_flight += count;
	return conn->link->ops->ask(conn->link, conn, slot);
}

static void retire(struct sink_conn *conn, uint32_t count)
{
	struct sink_request *oldest = &conn->request[conn->head];

	oldest->next += count;
	conn->pages_in_flight -= count;
	if (oldest->next < oldest->end)
		return;
	conn->head = (conn->head + 1) % SINK_MAX_REQUESTS;
	conn->n_requests--;
	if (conn->demand)
		return;
	pthread_mutex_lock(&conn->sink->lock);
	conn->sink->requests_in_flight--;
	pthread_mutex_unlock(&conn->sink->lock);
}

int sink_conn_arrived(struct sink_conn *conn, uint64_t first, uint32_t count, uint8_t *data)
{
	const struct sink_request *oldest = &conn->request[conn->head];
	int ret;

	if (!conn->n_requests || first != oldest->next || !count || count > oldest->end - oldest->next)
		return -EPROTO;
	ret = sink_place(conn->sink, conn->demand, first, count, data);
	if (!ret)
		retire(conn, count);
	return ret;
}

int64_t sink_conn_receive(struct sink_conn *conn, short *events)
{
	return conn->link->ops->receive(conn->link, conn, events);
}

void sink_conn_hand_back(struct sink_conn *conn)
{
	struct gy_sink *sink = conn->sink;

	for (uint32_t i = 0; i < conn->n_requests; i++) {
		struct sink_request *request = &conn->request[(conn->head + i) % SINK_MAX_REQUESTS];

		for (uint64_t page = request->next; page < request->end; page++)
			bitmap_set(sink->want, page);
	}
	if (!conn->demand) {
		pthread_mutex_lock(&sink->lock);
		sink->requests_in_flight -= conn->n_requests;
		pthread_mutex_unlock(&sink->lock);
	}
	conn->n_requests = 0;
	conn->head = 0;
	conn->pages_in_flight = 0;
}
