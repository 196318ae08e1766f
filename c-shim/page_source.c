// SPDX-License-Identifier: Apache-2.0
/*
 * page_source.c - serves pages of a RAM file to whoever holds a page connection.
 *
 * One thread a connection answers requests in order. Nothing here knows whether the guest runs: a page that changes
 * while it is copied is dirty, and its reader will be told to drop it.
 */
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>

#include "bitmap.h"
#include "channel.h"
#include "clock.h"
#include "events.h"
#include "inject.h"
#include "local_addr.h"
#include "pacer.h"
#include "page_proto.h"
#include "ram.h"
#include "rdma_lib.h"
#include "rdma_source.h"
#include "spin.h"
#include "thread.h"

#define MAX_SERVERS 17u		/* one demand connection and 16 for prefetch */
#define MAX_HOLES 4096u		/* holes kept for the second look; pages of further ones count as present */
#define REPLY_IDLE_MS 30000u	/* a destination that takes nothing for so long is gone */
#define SPIN_NS 30000ull	/* for the next fault after one, see spin.h */

struct server {
	struct gy_source *source;
	struct gy_channel *channel;
	pthread_t thread;
	bool demand;
	uint64_t spin_ns;
	uint8_t *out;			/* a reply under construction */
};

struct hole {
	uint64_t first;
	uint64_t end;
};

struct gy_source {
	struct gy_ram *ram;
	struct pacer pacer;
	struct events events;
	pthread_mutex_t lock;		/* servers[] and n_servers */
	struct server servers[MAX_SERVERS];
	uint32_t n_servers;
	_Atomic(bool) dropping;
	gy_word *allocated;		/* pages known to be allocated, which they stay; others must be looked up */
	struct hole *holes;
	uint32_t n_holes;
	bool scanned;
	struct rdma_source *rdma;	/* NULL: it does not listen */
	struct gy_page_stats stats;
};

static void count(uint64_t *counter, uint64_t n)
{
	__atomic_fetch_add(counter, n, __ATOMIC_RELAXED);
}

/* ---- present set ---- */

static void set_range(gy_word *bitmap, uint64_t first, uint64_t end)
{
	while (first < end) {
		uint64_t bit = first % 64;
		uint64_t n = 64 - bit < end - first ? 64 - bit : end - first;
		uint64_t mask = n == 64 ? ~0ull : ((1ull << n) - 1) << bit;

		atomic_fetch_or(&bitmap[first / 64], mask);
		first += n;
	}
}

/* Marks the allocated pages in [first, end); remembers the holes between them when @remember. */
static int scan_range(struct gy_source *source, uint64_t *bitmap, uint64_t first, uint64_t end, bool remember)
{
	while (first < end) {
		int64_t data = gy_ram_seek(source->ram, first * GY_PAGE_BYTES, 1);
		int64_t hole;
		uint64_t from, to;

		if (data < 0)
			return (int)data;
		from = (uint64_t)data / GY_PAGE_BYTES;
		if (from > end)
			from = end;
		if (remember && from > first) {
			if (source->n_holes < MAX_HOLES)
				source->holes[source->n_holes++] = (struct hole){ first, from };
			else
				set_range((gy_word *)bitmap, first, from);
		}
		if (from == end)
			return 0;
		hole = gy_ram_seek(source->ram, (uint64_t)data, 0);
		if (hole < 0)
			return (int)hole;
		to = (uint64_t)hole / GY_PAGE_BYTES;
		if (to > end)
			to = end;
		set_range((gy_word *)bitmap, from, to);
		set_range(source->allocated, from, to);
		first = to;
	}
	return 0;
}

/* Pages only ever go from hole to allocated while a guest runs, so the second look needs the holes alone. */
int64_t gy_source_scan_present(struct gy_source *source, uint64_t *bitmap, uint64_t words)
{
	int ret = 0;

	if (words != bitmap_words(source->ram->pages))
		return -EINVAL;
	if (!source->scanned)
		ret = scan_range(source, bitmap, 0, source->ram->pages, true);
	for (uint32_t i = 0; source->scanned && !ret && i < source->n_holes; i++)
		ret = scan_range(source, bitmap, source->holes[i].first, source->holes[i].end, false);
	if (ret)
		return ret;
	source->scanned = true;
	return gy_set_count(bitmap, source->ram->pages);
}

/* ---- serving ---- */

/* Sends one reply: @pages of the run from @first, all zero or all as they are. */
static int reply(struct server *server, uint32_t tag, uint64_t first, uint32_t pages, bool zero)
{
	struct gy_source *source = server->source;
	struct page_reply head = {
		.magic = PAGE_REPLY_MAGIC,
		.tag = tag,
		.first_page = first,
		.count = pages,
		.encoding = zero ? PAGE_ZERO : PAGE_RAW,
		.bytes = zero ? 0 : pages * GY_PAGE_BYTES,
	};
	uint64_t total = sizeof(head) + head.bytes;

	pacer_enter(&source->pacer, total, server->demand);
	memcpy(server->out, &head, sizeof(head));
	if (!zero)
		memcpy(server->out + sizeof(head), source->ram->alias + first * GY_PAGE_BYTES, head.bytes);
	count(&source->stats.wire_bytes, total);
	count(zero ? &source->stats.zero_pages : &source->stats.postcopy_pages, pages);
	return gy_channel_write_all(server->channel, server->out, total, REPLY_IDLE_MS);
}

/*
 * Is the page allocated? A hole is zero without being read, and reading it through the mapping would allocate it.
 * Only SEEK_DATA is cheap here: SEEK_HOLE walks to the end of what is allocated.
 */
static int is_allocated(struct gy_source *source, uint64_t page)
{
	int64_t data;

	if (bitmap_test(source->allocated, page))
		return 1;
	data = gy_ram_seek(source->ram, page * GY_PAGE_BYTES, 1);
	if (data < 0)
		return (int)data;
	if ((uint64_t)data != page * GY_PAGE_BYTES)
		return 0;
	bitmap_set(source->allocated, page);
	return 1;
}

/* 1: the page is zero, allocated or not. 0: it is not. */
static int page_is_zero(struct gy_source *source, uint64_t page)
{
	int ret = is_allocated(source, page);

	return ret <= 0 ? (ret ? ret : 1) : ram_is_zero(source->ram->alias + page * GY_PAGE_BYTES);
}

/* Answers a request by runs of pages that are all zero or all not. */
static int serve_run(struct server *server, uint32_t tag, uint64_t first, uint64_t end)
{
	struct gy_source *source = server->source;
	uint64_t piece = source->pacer.rate ? PACER_PIECE_PAGES : PAGE_REQUEST_MAX;
	int zero = page_is_zero(source, first);

	while (first < end) {
		uint64_t stop = zero || end - first < piece ? end : first + piece;
		uint64_t at = first + 1;
		int next = zero, ret;

		while (at < stop && next == zero) {
			next = page_is_zero(source, at);
			at += next == zero;
		}
		if (zero < 0 || next < 0)
			return zero < 0 ? zero : next;
		ret = reply(server, tag, first, (uint32_t)(at - first), zero);
		if (ret)
			return ret;
		/* A run that ended at a piece's limit goes on; its next page has not been looked at. */
		zero = next == zero && at < end ? page_is_zero(source, at) : next;
		first = at;
	}
	return 0;
}

static int check_request(const struct gy_ram *ram, const struct page_request *request)
{
	if (request->magic != PAGE_REQUEST_MAGIC || request->region || request->reserved)
		return -EPROTO;
	if (!request->count || request->count > PAGE_REQUEST_MAX)
		return -EPROTO;
	if (request->first_page >= ram->pages || request->count > ram->pages - request->first_page)
		return -EPROTO;
	return 0;
}

/* Waits without limit for the next request: a guest may go for hours without a fault. Keepalive finds dead peers. */
static int next_request(struct server *server, struct page_request *request)
{
	uint64_t spin_until = now_ns() + server->spin_ns;
	uint8_t *buf = (uint8_t *)request;
	uint64_t have = 0;
	short events;

	while (have < sizeof(*request)) {
		int64_t n = gy_channel_read_some(server->channel, buf + have, sizeof(*request) - have, &events);

		if (n > 0)
			have += (uint64_t)n;
		else if (n != -EAGAIN)
			return (int)n;
		else if (now_ns() >= spin_until)
			gy_fd_wait(server->channel->fd, events, now_ns() + NS_PER_S);
	}
	count(&server->source->stats.wire_bytes, sizeof(*request));
	return check_request(server->source->ram, request);
}

static void *serve(void *arg)
{
	struct server *server = arg;
	struct gy_source *source = server->source;
	struct page_request request;
	int ret;

	if (server->demand) {
		server->spin_ns = spin_ns(SPIN_NS);
		thread_be_urgent();
	}
	do {
		ret = next_request(server, &request);
		if (!ret)
			ret = serve_run(server, request.tag, request.first_page, request.first_page + request.count);
	} while (!ret);
	gy_channel_shutdown(server->channel);
	if (!atomic_load(&source->dropping))
		events_raise(&source->events, ret == -EPROTO ? GY_EVENT_FAILED : GY_EVENT_LINK_LOST);
	return NULL;
}

/* ---- life ---- */

int gy_source_create(struct gy_ram *ram, uint64_t rate, struct gy_source **out)
{
	struct gy_source *source = calloc(1, sizeof(*source));
	int ret = -ENOMEM;

	if (!source)
		return ret;
	source->ram = ram;
	source->stats.total_pages = ram->pages;
	source->holes = calloc(MAX_HOLES, sizeof(*source->holes));
	if (!source->holes)
		goto err_free;
	source->allocated = calloc(bitmap_words(ram->pages), sizeof(*source->allocated));
	if (!source->allocated)
		goto err_holes;
	ret = pacer_init(&source->pacer, rate);
	if (ret)
		goto err_allocated;
	ret = events_init(&source->events);
	if (ret)
		goto err_pacer;
	pthread_mutex_init(&source->lock, NULL);
	*out = source;
	return 0;

err_pacer:
	pacer_destroy(&source->pacer);
err_allocated:
	free(source->allocated);
err_holes:
	free(source->holes);
err_free:
	free(source);
	return ret;
}

int gy_source_add(struct gy_source *source, struct gy_channel *channel, uint32_t role)
{
	struct server *server;
	int ret = -ENOSPC;

	pthread_mutex_lock(&source->lock);
	if (source->n_servers == MAX_SERVERS)
		goto err_unlock;
	server = &source->servers[source->n_servers];
	*server = (struct server){ .source = source, .channel = channel, .demand = role == GY_ROLE_DEMAND };
	ret = -ENOMEM;
	server->out = malloc(sizeof(struct page_reply) + PAGE_REQUEST_MAX * GY_PAGE_BYTES);
	if (!server->out)
		goto err_unlock;
	ret = thread_start(&server->thread, server->demand ? "gy-serve-demand" : "gy-serve", serve, server);
	if (ret)
		goto err_out;
	source->n_servers++;
	pthread_mutex_unlock(&source->lock);
	return 0;

err_out:
	free(server->out);
err_unlock:
	pthread_mutex_unlock(&source->lock);
	gy_channel_destroy(channel);
	return ret;
}

void gy_source_drop_channels(struct gy_source *source)
{
	pthread_mutex_lock(&source->lock);
	atomic_store(&source->dropping, true);
	pacer_stop(&source->pacer);
	for (uint32_t i = 0; i < source->n_servers; i++)
		gy_channel_shutdown(source->servers[i].channel);
	for (uint32_t i = 0; i < source->n_servers; i++) {
		pthread_join(source->servers[i].thread, NULL);
		gy_channel_destroy(source->servers[i].channel);
		free(source->servers[i].out);
	}
	source->n_servers = 0;
	pacer_restart(&source->pacer);
	/* The fate of the old channels must not be taken for that of the next. */
	events_forget(&source->events, GY_EVENT_LINK_LOST | GY_EVENT_FAILED);
	atomic_store(&source->dropping, false);
	pthread_mutex_unlock(&source->lock);
}

void gy_source_destroy(struct gy_source *source)
{
	if (!source)
		return;
	gy_source_drop_channels(source);
	rdma_source_close(source->rdma);
	pthread_mutex_destroy(&source->lock);
	events_destroy(&source->events);
	pacer_destroy(&source->pacer);
	free(source->allocated);
	free(source->holes);
	free(source);
}

/* What local_addr_find() is to try. */
struct listening {
	struct gy_source *source;
	uint32_t port;
	const uint8_t *token;
	struct gy_err err;
};

/* The port, or -errno. */
static int listen_at(void *arg, const char *host)
{
	struct listening *listening = arg;
	struct gy_source *source = listening->source;
	int ret = rdma_source_open(source->ram, &source->events, host, listening->port, listening->token,
				   &source->rdma, &listening->err);

	return ret ? ret : (int)rdma_source_port(source->rdma);
}

int gy_source_listen(struct gy_source *source, const char *host, uint32_t port, const char *towards,
		     const uint8_t *token, char *address, uint32_t address_bytes, char *err, uint32_t err_bytes)
{
	struct listening listening = { .source = source, .port = port, .token = token, .err = { err, err_bytes } };
	int ret;

	if (source->rdma)
		return -EBUSY;
	/* What is the same at every address is told first. */
	ret = gy_rdma_usable(err, err_bytes);
	if (!ret)
		ret = rdma_may_pin(source->ram->bytes, &listening.err);
	if (ret)
		return ret;
	if (!host) {
		ret = local_addr_find(towards, listen_at, &listening, address, address_bytes);
		return ret != -ENODEV ? ret : gy_err_set(&listening.err, ret, "no RDMA device has an address");
	}
	snprintf(address, address_bytes, "%s", host);
	return listen_at(&listening, host);
}

int gy_source_region(struct gy_source *source, uint8_t *region, char *err, uint32_t err_bytes)
{
	struct gy_err words = { err, err_bytes };
	struct gyges_region whole;
	int ret;

	if (!source->rdma || !source->scanned)
		return -EINVAL;
	ret = rdma_source_region(source->rdma, &whole, &words);
	if (!ret)
		memcpy(region, &whole, sizeof(whole));
	return ret;
}

int gy_source_broken(struct gy_source *source)
{
	return source->rdma ? rdma_source_broken(source->rdma) : 0;
}

struct gy_page_stats *gy_source_stats(struct gy_source *source)
{
	return &source->stats;
}

int gy_source_wait(struct gy_source *source, uint32_t timeout_ms)
{
	return events_wait(&source->events, timeout_ms);
}

void gy_source_wake(struct gy_source *source)
{
	events_raise(&source->events, GY_EVENT_WAKE);
}
