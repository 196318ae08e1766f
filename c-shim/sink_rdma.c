// SPDX-License-Identifier: Apache-2.0
/*
 * sink_rdma.c - pages by one-sided READs: the source's processor has no part in it.
 *
 * A request is read into its ring entry's place in the link's buffer, by one READ for each region that it touches, and
 * placed from there: a page that is read straight into guest memory could be seen half. READs of a queue pair complete
 * in the order in which they were posted, so what completes is always the next piece of the oldest request.
 */
#include <errno.h>
#include <stdlib.h>

#include "clock.h"
#include "rdma_link.h"
#include "region_table.h"
#include "sink_rdma.h"

/* A page in a region of its own is the worst that a table can bring. */
#define MAX_READS (SINK_MAX_REQUESTS * RDMA_READ_PAGES)

struct posted_read {
	uint64_t first;
	uint64_t offset;	/* in the buffer */
	uint32_t count;
};

struct rdma_sink_link {
	struct sink_link link;
	struct rdma_link *rdma;
	struct posted_read read[MAX_READS];	/* ring, in the order of the posts; its indices count on */
	uint64_t posted;
	uint64_t completed;
};

static struct rdma_sink_link *rdma_of(struct sink_link *link)
{
	return (struct rdma_sink_link *)link;
}

static uint32_t max_pages(bool demand)
{
	return demand ? 1 : RDMA_READ_PAGES;
}

uint64_t sink_rdma_bytes(bool demand)
{
	return (uint64_t)SINK_MAX_REQUESTS * max_pages(demand) * GY_PAGE_BYTES;
}

uint32_t sink_rdma_depth(bool demand)
{
	return SINK_MAX_REQUESTS * max_pages(demand);
}

static int post(struct rdma_sink_link *link, const struct gyges_region *region, const struct posted_read *read)
{
	uint64_t remote_addr = region->remote_addr + (read->first - region->first_page) * GY_PAGE_BYTES;
	int ret = rdma_link_read(link->rdma, read->offset, read->count * GY_PAGE_BYTES, remote_addr, region->rkey,
				 link->posted);

	if (!ret)
		link->read[link->posted++ % MAX_READS] = *read;
	return ret;
}

static int ask(struct sink_link *base, struct sink_conn *conn, uint32_t slot)
{
	struct rdma_sink_link *link = rdma_of(base);
	const struct sink_request *request = &conn->request[slot];
	uint64_t offset = (uint64_t)slot * base->max_pages * GY_PAGE_BYTES;

	pacer_enter(&conn->sink->pacer, (request->end - request->next) * GY_PAGE_BYTES, conn->demand);
	for (uint64_t page = request->next; page < request->end;) {
		const struct gyges_region *region = region_table_find(conn->sink->table, page);
		uint64_t end;
		int ret;

		/* Sets are held against the table when they come, so there is one. */
		if (!region)
			return -EPROTO;
		end = region->first_page + region->pages;
		if (end > request->end)
			end = request->end;
		ret = post(link, region, &(struct posted_read){
			.first = page,
			.offset = offset + (page - request->next) * GY_PAGE_BYTES,
			.count = (uint32_t)(end - page),
		});
		if (ret)
			return ret;
		page = end;
	}
	return 0;
}

static int64_t receive(struct sink_link *base, struct sink_conn *conn, short *events)
{
	struct rdma_sink_link *link = rdma_of(base);
	uint64_t ids[RDMA_READ_PAGES];
	int n = rdma_link_poll(link->rdma, ids, (int)RDMA_READ_PAGES);
	int64_t placed = 0;

	(void)events;
	for (int i = 0; i < n; i++) {
		struct posted_read *read = &link->read[link->completed % MAX_READS];
		int ret;

		if (ids[i] != link->completed++)
			return -EPROTO;
		sink_count(&conn->sink->stats.wire_bytes, read->count * GY_PAGE_BYTES);
		ret = sink_conn_arrived(conn, read->first, read->count, link->rdma->buffer + read->offset);
		if (ret)
			return ret;
		placed += read->count;
	}
	return n < 0 ? n : placed;
}

/* Who waits in ask() waits for the sink's pacer, and is woken by whoever drops the links. */
static void shut_down(struct sink_link *base)
{
	(void)base;
}

static void destroy(struct sink_link *base)
{
	rdma_link_close(rdma_of(base)->rdma);
	free(rdma_of(base));
}

static const struct sink_link_ops rdma_ops = {
	.ask = ask,
	.receive = receive,
	.shutdown = shut_down,
	.destroy = destroy,
};

struct sink_link *sink_rdma_link(struct rdma_link *rdma, bool demand)
{
	struct rdma_sink_link *link = calloc(1, sizeof(*link));

	if (!link)
		return NULL;
	link->link = (struct sink_link){
		.ops = &rdma_ops,
		.fd = rdma->fd,
		.max_pages = max_pages(demand),
		.paced = true,
	};
	link->rdma = rdma;
	return &link->link;
}

/* ---- what JavaScript calls ---- */

static int dial_link(const struct rdma_dial *dial, struct sink_link **out, const struct gy_err *err)
{
	bool demand = dial->role == GYGES_ROLE_DEMAND;
	struct rdma_dial whole = *dial;
	struct rdma_link *rdma;
	int ret;

	whole.depth = sink_rdma_depth(demand);
	whole.bytes = sink_rdma_bytes(demand);
	ret = rdma_link_dial(&whole, &rdma, err);
	if (ret)
		return ret;
	*out = sink_rdma_link(rdma, demand);
	if (*out)
		return 0;
	rdma_link_close(rdma);
	return -ENOMEM;
}

static int add_links(struct gy_sink *sink, struct sink_link **link, uint32_t n)
{
	int ret = 0;

	pthread_mutex_lock(&sink->lock);
	sink->rdma = true;
	pthread_mutex_unlock(&sink->lock);
	for (uint32_t i = 0; i < n; i++) {
		/* Once one has failed the others are of no use; each is taken over all the same. */
		if (ret)
			sink_link_destroy(link[i]);
		else
			ret = sink_add_link(sink, link[i], i ? GY_ROLE_PREFETCH : GY_ROLE_DEMAND);
	}
	return ret;
}

int gy_sink_dial(struct gy_sink *sink, const char *host, uint32_t port, const uint8_t *token, uint32_t prefetch_links,
		 uint32_t timeout_ms, char *err, uint32_t err_bytes)
{
	struct gy_err words = { err, err_bytes };
	struct sink_link *link[1 + SINK_MAX_CONNS];
	struct rdma_dial dial = {
		.host = host,
		.port = port,
		.token = token,
		.deadline_ns = deadline_after_ms(timeout_ms),
	};

	if (!prefetch_links || prefetch_links > SINK_MAX_CONNS)
		return -EINVAL;
	for (uint32_t i = 0; i < 1 + prefetch_links; i++) {
		int ret;

		dial.role = i ? GYGES_ROLE_PREFETCH : GYGES_ROLE_DEMAND;
		ret = dial_link(&dial, &link[i], &words);
		if (!ret)
			continue;
		while (i)
			sink_link_destroy(link[--i]);
		return ret;
	}
	return add_links(sink, link, 1 + prefetch_links);
}

int gy_sink_regions(struct gy_sink *sink, const uint8_t *bytes, uint64_t len)
{
	struct region_table *table, *old;
	int ret = region_table_read(bytes, len, sink->ram->pages, &table);

	if (ret)
		return ret;
	pthread_mutex_lock(&sink->lock);
	old = table;
	/* Whoever asks for pages reads the table without the lock, but nobody does between rounds. */
	if (sink_phase(sink) == SINK_IDLE) {
		old = sink->table;
		sink->table = table;
	} else {
		ret = -EBUSY;
	}
	pthread_mutex_unlock(&sink->lock);
	free(old);
	return ret;
}
