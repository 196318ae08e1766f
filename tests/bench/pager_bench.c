// SPDX-License-Identifier: Apache-2.0
/*
 * pager_bench.c - the user pager against the bare link, both measured in this run, over loopback in one process.
 *
 * Prints one JSON object a line; tests/bench/pager.ts makes the table. Arguments: megabytes for the bulk figures, and the
 * name of the only figure to take.
 *   ping_pong  a 32-byte request and a page back, two threads that spin: the link's own floor
 *   fault      a thread touches missing pages in a random order: fault read to page placed
 *   copy       bytes through one connection, 256 KiB a write
 *   pull       the same bytes as pages, by prefetch, placed by UFFDIO_COPY
 */
#include <errno.h>

#include "../shim/check.h"
#include "channel.h"
#include "clock.h"
#include "gyges.h"
#include "hist.h"
#include "page_proto.h"
#include "ram.h"
#include "spin.h"
#include "thread.h"

#define PING_PONGS 20000u
#define FAULT_PAGES 16384ull
#define PIECE (256u << 10)

static const uint8_t key[GY_KEY_BYTES] = { 7 };

struct ends {
	struct gy_channel *near;
	struct gy_channel *far;
};

struct accepting {
	struct gy_listener *listener;
	struct gy_channel *channel;
	uint32_t flags;
};

static void *accept_end(void *arg)
{
	struct accepting *accepting = arg;
	char err[128];

	CHECK(!gy_listener_accept(accepting->listener, 5000, &accepting->channel));
	CHECK(!gy_channel_secure(accepting->channel, key, GY_CHANNEL_SERVER | accepting->flags, 5000, err,
				 sizeof(err)));
	return NULL;
}

static struct ends make_ends(bool tls)
{
	struct accepting accepting = { .flags = tls ? GY_CHANNEL_TLS : 0 };
	struct ends ends;
	char err[128];
	pthread_t thread;

	CHECK(!gy_listener_create("127.0.0.1", 0, &accepting.listener));
	CHECK(!thread_start(&thread, "accept", accept_end, &accepting));
	CHECK(!gy_channel_connect("127.0.0.1", (uint32_t)gy_listener_port(accepting.listener), 5000, &ends.near));
	CHECK(!gy_channel_secure(ends.near, key, accepting.flags, 5000, err, sizeof(err)));
	CHECK(!pthread_join(thread, NULL));
	gy_listener_destroy(accepting.listener);
	ends.far = accepting.channel;
	return ends;
}

static void spin_read(struct gy_channel *channel, uint8_t *buf, uint64_t len)
{
	short events;

	while (len) {
		int64_t n = gy_channel_read_some(channel, buf, len, &events);

		CHECK(n > 0 || n == -EAGAIN);
		if (n > 0) {
			buf += n;
			len -= (uint64_t)n;
		}
	}
}

static void print_latency(const char *name, bool tls, const struct gy_hist *hist)
{
	printf("{\"name\":\"%s\",\"transport\":\"%s\",\"n\":%" PRIu64 ",\"p50_ns\":%" PRIu64 ",\"p99_ns\":%" PRIu64
	       ",\"max_ns\":%" PRIu64 "}\n", name, tls ? "tls" : "tcp", hist->n, gy_hist_percentile(hist, 5000),
	       gy_hist_percentile(hist, 9900), hist->max);
}

static void print_bulk(const char *name, bool tls, uint64_t bytes, uint64_t ns)
{
	printf("{\"name\":\"%s\",\"transport\":\"%s\",\"bytes\":%" PRIu64 ",\"ns\":%" PRIu64 "}\n", name,
	       tls ? "tls" : "tcp", bytes, ns);
}

/* ---- the bare link ---- */

static void *pong(void *arg)
{
	static uint8_t out[sizeof(struct page_reply) + GY_PAGE_BYTES];
	struct gy_channel *channel = arg;
	uint8_t in[sizeof(struct page_request)];

	for (uint32_t i = 0; i < PING_PONGS; i++) {
		spin_read(channel, in, sizeof(in));
		CHECK(!gy_channel_write_all(channel, out, sizeof(out), 5000));
	}
	return NULL;
}

static void ping_pong(bool tls)
{
	static uint8_t in[sizeof(struct page_reply) + GY_PAGE_BYTES];
	uint8_t out[sizeof(struct page_request)] = { 0 };
	struct ends ends = make_ends(tls);
	struct gy_hist hist = { 0 };
	pthread_t thread;

	CHECK(!thread_start(&thread, "pong", pong, ends.far));
	for (uint32_t i = 0; i < PING_PONGS; i++) {
		uint64_t from = now_ns();

		CHECK(!gy_channel_write_all(ends.near, out, sizeof(out), 5000));
		spin_read(ends.near, in, sizeof(in));
		gy_hist_add(&hist, now_ns() - from);
	}
	CHECK(!pthread_join(thread, NULL));
	print_latency("ping_pong", tls, &hist);
	gy_channel_destroy(ends.near);
	gy_channel_destroy(ends.far);
}

struct sending {
	struct gy_channel *channel;
	struct gy_ram *ram;
};

static void *send_ram(void *arg)
{
	struct sending *sending = arg;

	for (uint64_t at = 0; at < sending->ram->bytes; at += PIECE)
		CHECK(!gy_channel_write_all(sending->channel, sending->ram->alias + at, PIECE, 5000));
	return NULL;
}

static void copy(bool tls, struct gy_ram *ram)
{
	struct ends ends = make_ends(tls);
	struct sending sending = { .channel = ends.far, .ram = ram };
	uint8_t *in = malloc(PIECE);
	uint64_t from = now_ns();
	pthread_t thread;

	CHECK(in);
	CHECK(!thread_start(&thread, "send", send_ram, &sending));
	for (uint64_t at = 0; at < ram->bytes; at += PIECE)
		CHECK(!gy_channel_read_all(ends.near, in, PIECE, deadline_after_ms(60000)));
	print_bulk("copy", tls, ram->bytes, now_ns() - from);
	CHECK(!pthread_join(thread, NULL));
	free(in);
	gy_channel_destroy(ends.near);
	gy_channel_destroy(ends.far);
}

/* ---- the pager ---- */

struct pager {
	struct gy_ram *to;
	struct gy_source *source;
	struct gy_sink *sink;
};

static void join(struct pager *pager, bool tls, uint32_t role)
{
	struct ends ends = make_ends(tls);

	CHECK(!gy_source_add(pager->source, ends.near, role));
	CHECK(!gy_sink_add(pager->sink, ends.far, role));
}

/* A destination that misses @missing pages of @from and may begin to pull them. */
static struct pager make_pager(bool tls, bool prefetch, struct gy_ram *from, uint64_t missing)
{
	struct gy_sink_config config = {
		.precopy_window_bytes = 4 << 20, .postcopy_window_bytes = 1 << 19, .prefetch = prefetch,
	};
	uint64_t words = from->pages / 64;
	uint64_t *bitmap = calloc(words, 8);
	uint8_t *set = malloc(gy_set_bound(from->pages));
	struct pager pager;
	char err[128];
	int64_t len;

	CHECK(bitmap && set);
	CHECK(!gy_ram_create(from->bytes, &pager.to));
	CHECK(!gy_source_create(from, 0, &pager.source));
	CHECK(!gy_sink_create(pager.to, &config, &pager.sink, err, sizeof(err)));
	join(&pager, tls, GY_ROLE_DEMAND);
	join(&pager, tls, GY_ROLE_PREFETCH);
	join(&pager, tls, GY_ROLE_PREFETCH);
	CHECK(gy_source_scan_present(pager.source, bitmap, words) > 0);
	for (uint64_t page = missing; page < from->pages; page++)
		bitmap[page / 64] &= ~(1ull << (page % 64));
	len = gy_set_encode(bitmap, from->pages, set, gy_set_bound(from->pages));
	CHECK(len > 0);
	CHECK(gy_sink_discard(pager.sink, set, (uint64_t)len) >= 0);
	CHECK(gy_sink_arm(pager.sink) >= 0);
	free(bitmap);
	free(set);
	return pager;
}

static void end_pager(struct pager *pager)
{
	gy_source_destroy(pager->source);
	gy_sink_destroy(pager->sink);
	gy_ram_destroy(pager->to);
}

static void *touch(void *arg)
{
	struct pager *pager = arg;

	for (uint64_t i = 0; i < FAULT_PAGES; i++)
		(void)*(volatile uint8_t *)(pager->to->guest + i * 6151 % FAULT_PAGES * GY_PAGE_BYTES);
	return NULL;
}

static void fault(const char *name, bool tls, bool prefetch, struct gy_ram *from)
{
	struct pager pager = make_pager(tls, prefetch, from, prefetch ? from->pages : FAULT_PAGES);
	pthread_t thread;

	CHECK(!thread_start(&thread, "touch", touch, &pager));
	CHECK(!gy_sink_run(pager.sink));
	CHECK(!pthread_join(thread, NULL));
	CHECK(gy_sink_wait(pager.sink, 60000) == GY_EVENT_COMPLETE);
	print_latency(name, tls, &gy_sink_stats(pager.sink)->fault_latency);
	end_pager(&pager);
}

/* As on a machine with more CPUs than this may have. */
static void fault_spinning(bool tls, struct gy_ram *from)
{
	spin_pretend_cpus(SPIN_CPUS);
	fault("fault_spinning", tls, false, from);
	spin_pretend_cpus(0);
}

static void pull(bool tls, struct gy_ram *from)
{
	struct pager pager = make_pager(tls, true, from, from->pages);
	uint64_t begin = now_ns();

	CHECK(!gy_sink_run(pager.sink));
	CHECK(gy_sink_wait(pager.sink, 60000) == GY_EVENT_COMPLETE);
	print_bulk("pull", tls, from->bytes, now_ns() - begin);
	end_pager(&pager);
}

static bool wanted(const char *only, const char *name)
{
	return !only || !strcmp(only, name);
}

int main(int argc, char **argv)
{
	uint64_t megabytes = argc > 1 ? strtoull(argv[1], NULL, 10) : 512;
	const char *only = argc > 2 ? argv[2] : NULL;
	uint64_t seed = 1;
	struct gy_ram *ram;

	CHECK(!gy_ram_create(megabytes << 20, &ram));
	for (uint64_t at = 0; at < ram->bytes; at += 8)
		*(uint64_t *)(ram->alias + at) = random_next(&seed);
	for (int tls = 0; tls < 2; tls++) {
		if (wanted(only, "ping_pong"))
			ping_pong(tls);
		if (wanted(only, "fault"))
			fault("fault", tls, false, ram);
		if (wanted(only, "fault_spinning"))
			fault_spinning(tls, ram);
		if (wanted(only, "fault_with_prefetch"))
			fault("fault_with_prefetch", tls, true, ram);
		if (wanted(only, "copy"))
			copy(tls, ram);
		if (wanted(only, "pull"))
			pull(tls, ram);
	}
	gy_ram_destroy(ram);
	return 0;
}
