// SPDX-License-Identifier: Apache-2.0
/* sink_tcp.c - pages over a channel: requests out, replies in, in order. See page_proto.h. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "page_proto.h"
#include "sink.h"

/* Room for the largest reply, and for as much again so that compacting is rare. */
#define RX_BYTES (2 * (sizeof(struct page_reply) + PAGE_REQUEST_MAX * GY_PAGE_BYTES))
#define ASK_IDLE_MS 30000u

struct tcp_link {
	struct sink_link link;
	struct gy_channel *channel;
	uint32_t rx_head;
	uint32_t rx_tail;
	uint8_t rx[RX_BYTES];
};

static struct tcp_link *tcp_of(struct sink_link *link)
{
	return (struct tcp_link *)link;
}

static int ask(struct sink_link *link, struct sink_conn *conn, uint32_t slot)
{
	const struct sink_request *asked = &conn->request[slot];
	struct page_request request = {
		.magic = PAGE_REQUEST_MAGIC,
		.tag = asked->tag,
		.first_page = asked->next,
		.count = (uint32_t)(asked->end - asked->next),
	};

	sink_count(&conn->sink->stats.wire_bytes, sizeof(request));
	return gy_channel_write_all(tcp_of(link)->channel, &request, sizeof(request), ASK_IDLE_MS);
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

/* Places every whole reply in the buffer. Pages placed or -errno. */
static int64_t place_replies(struct tcp_link *tcp, struct sink_conn *conn)
{
	int64_t placed = 0;

	while (tcp->rx_tail - tcp->rx_head >= sizeof(struct page_reply)) {
		uint8_t *at = tcp->rx + tcp->rx_head;
		struct page_reply reply;
		int ret;

		memcpy(&reply, at, sizeof(reply));
		ret = check_reply(conn, &reply);
		if (ret)
			return ret;
		if (tcp->rx_tail - tcp->rx_head < sizeof(reply) + reply.bytes)
			break;
		/* Before its pages are counted: with the last one the figures are final. */
		sink_count(&conn->sink->stats.wire_bytes, sizeof(reply) + reply.bytes);
		ret = sink_conn_arrived(conn, reply.first_page, reply.count, reply.bytes ? at + sizeof(reply) : NULL);
		if (ret)
			return ret;
		tcp->rx_head += (uint32_t)sizeof(reply) + reply.bytes;
		placed += reply.count;
	}
	return placed;
}

static void compact(struct tcp_link *tcp)
{
	uint32_t have = tcp->rx_tail - tcp->rx_head;

	if (tcp->rx_head && (!have || tcp->rx_tail == RX_BYTES)) {
		memmove(tcp->rx, tcp->rx + tcp->rx_head, have);
		tcp->rx_head = 0;
		tcp->rx_tail = have;
	}
}

/* Goes on until something is placed or the channel is empty: TLS may hold bytes that poll() does not know of. */
static int64_t receive(struct sink_link *link, struct sink_conn *conn, short *events)
{
	struct tcp_link *tcp = tcp_of(link);
	int64_t n, placed = 0;

	while (!placed) {
		compact(tcp);
		n = gy_channel_read_some(tcp->channel, tcp->rx + tcp->rx_tail, RX_BYTES - tcp->rx_tail, events);
		if (n == -EAGAIN)
			return 0;
		if (n < 0)
			return n;
		tcp->rx_tail += (uint32_t)n;
		placed = place_replies(tcp, conn);
	}
	return placed;
}

static void shut_down(struct sink_link *link)
{
	gy_channel_shutdown(tcp_of(link)->channel);
}

static void destroy(struct sink_link *link)
{
	gy_channel_destroy(tcp_of(link)->channel);
	free(tcp_of(link));
}

static const struct sink_link_ops tcp_ops = {
	.ask = ask,
	.receive = receive,
	.shutdown = shut_down,
	.destroy = destroy,
};

struct sink_link *sink_tcp_link(struct gy_channel *channel)
{
	struct tcp_link *tcp = malloc(sizeof(*tcp));

	if (!tcp)
		return NULL;
	tcp->link = (struct sink_link){ .ops = &tcp_ops, .fd = channel->fd, .max_pages = PAGE_REQUEST_MAX };
	tcp->channel = channel;
	tcp->rx_head = 0;
	tcp->rx_tail = 0;
	return &tcp->link;
}
