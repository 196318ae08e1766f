// SPDX-License-Identifier: Apache-2.0
/* sink_conn.c - one page connection: requests out, replies in, in order. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "sink.h"

/* Room for the largest reply, and for as much again so that compacting is rare. */
#define RX_BYTES (2 * (sizeof(struct page_reply) + PAGE_REQUEST_MAX * GY_PAGE_BYTES))
#define ASK_IDLE_MS 30000u

int sink_conn_init(struct sink_conn *conn, struct gy_sink *sink, bool demand)
{
	*conn = (struct sink_conn){ .sink = sink, .demand = demand };
	conn->rx = malloc(RX_BYTES);
	if (!conn->rx)
		return -ENOMEM;
	conn->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (conn->wake_fd >= 0)
		return 0;
	free(conn->rx);
	return -errno;
}

void sink_conn_exit(struct sink_conn *conn)
{
	gy_channel_destroy(conn->channel);
	close(conn->wake_fd);
	free(conn->rx);
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
	struct page_request request = {
		.magic = PAGE_REQUEST_MAGIC,
		.tag = ++conn->next_tag,
		.first_page = first,
		.count = count,
	};

	conn->request[(conn->head + conn->n_requests++) % SINK_MAX_REQUESTS] =
		(struct sink_request){ .tag = request.tag, .next = first, .end = first + count };
	conn->pages_in_flight += count;
	sink_count(&conn->sink->stats.wire_bytes, sizeof(request));
	return gy_channel_write_all(conn->channel, &request, sizeof(request), ASK_IDLE_MS);
}

/* The peer is not trusted: a reply must be the next piece of the oldest request, and nothing else. */
static int check_reply(const struct sink_conn *conn, const struct page_reply *reply)
{
	const struct sink_request *oldest = &conn->request[conn->head];
	uint32_t bytes = reply->encoding == PAGE_RAW ? reply->count * GY_PAGE_BYTES : 0;

	if (!conn->n_requests || reply->magic != PAGE_REPLY_MAGIC || reply->tag != oldest->tag || reply->reserved)
		return -EPROTO;
	if (reply->first_page != oldest->next || !reply->count || reply->count > oldest->end - oldest->next)
		return -EPROTO;
	if ((reply->encoding != PAGE_RAW && reply->encoding != PAGE_ZERO) || reply->bytes != bytes)
		return -EPROTO;
	return 0;
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

/* Places every whole reply in the buffer. Pages placed or -errno. */
static int64_t place_replies(struct sink_conn *conn)
{
	int64_t placed = 0;

	while (conn->rx_tail - conn->rx_head >= sizeof(struct page_reply)) {
		uint8_t *at = conn->rx + conn->rx_head;
		struct page_reply reply;
		int ret;

		memcpy(&reply, at, sizeof(reply));
		ret = check_reply(conn, &reply);
		if (ret)
			return ret;
		if (conn->rx_tail - conn->rx_head < sizeof(reply) + reply.bytes)
			break;
		ret = sink_place(conn->sink, conn->demand, reply.first_page, reply.count,
				 reply.bytes ? at + sizeof(reply) : NULL);
		if (ret)
			return ret;
		sink_count(&conn->sink->stats.wire_bytes, sizeof(reply) + reply.bytes);
		conn->rx_head += (uint32_t)sizeof(reply) + reply.bytes;
		retire(conn, reply.count);
		placed += reply.count;
	}
	return placed;
}

static void compact(struct sink_conn *conn)
{
	uint32_t have = conn->rx_tail - conn->rx_head;

	if (conn->rx_head && (!have || conn->rx_tail == RX_BYTES)) {
		memmove(conn->rx, conn->rx + conn->rx_head, have);
		conn->rx_head = 0;
		conn->rx_tail = have;
	}
}

/* Goes on until something is placed or the channel is empty: TLS may hold bytes that poll() does not know of. */
int64_t sink_conn_receive(struct sink_conn *conn, short *events)
{
	int64_t n, placed = 0;

	while (!placed) {
		compact(conn);
		n = gy_channel_read_some(conn->channel, conn->rx + conn->rx_tail, RX_BYTES - conn->rx_tail, events);
		if (n == -EAGAIN)
			return 0;
		if (n < 0)
			return n;
		conn->rx_tail += (uint32_t)n;
		placed = place_replies(conn);
	}
	return placed;
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
	conn->rx_head = 0;
	conn->rx_tail = 0;
}
