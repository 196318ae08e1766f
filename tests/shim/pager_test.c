// SPDX-License-Identifier: Apache-2.0
/*
 * pager_test.c - the user pager over real loopback connections and a real userfaultfd, both ends in one process:
 * the "guest" is a thread that reads the sink's RAM.
 */
#include <errno.h>
#include <stdbool.h>

#include "check.h"
#include "clock.h"
#include "gyges.h"
#include "ram.h"
#include "spin.h"
#include "thread.h"

#define PAGES 8192ull
#define RAM_BYTES (PAGES * GY_PAGE_BYTES)
#define HOLE_FIRST 6000ull
#define HOLE_END 7000ull

static const uint8_t key[GY_KEY_BYTES] = { 1, 2, 3 };

struct pair {
	struct gy_ram *from;
	struct gy_ram *to;
	struct gy_source *source;
	struct gy_sink *sink;
	struct gy_listener *listener;
	uint64_t set[PAGES / 64];
	uint8_t encoded[8 + PAGES / 8];
	uint32_t tls;
};

static uint64_t stamp(uint64_t page, uint64_t version)
{
	return (page + 1) * 0x9e3779b97f4a7c15ull + version;
}

static void write_page(struct gy_ram *ram, uint64_t page, uint64_t version)
{
	uint64_t *word = (uint64_t *)(ram->alias + page * GY_PAGE_BYTES);

	for (uint32_t i = 0; i < GY_PAGE_BYTES / 8; i++)
		word[i] = stamp(page, version) ^ i;
}

static bool page_is(const uint8_t *base, uint64_t page, uint64_t version)
{
	const volatile uint64_t *word = (const volatile uint64_t *)(base + page * GY_PAGE_BYTES);

	for (uint32_t i = 0; i < GY_PAGE_BYTES / 8; i++) {
		if (word[i] != (version ? stamp(page, version) ^ i : 0))
			return false;
	}
	return true;
}

struct accept_job {
	struct gy_listener *listener;
	struct gy_channel *channel;
	uint32_t tls;
};

static void *accept_one(void *arg)
{
	struct accept_job *job = arg;
	char err[128] = "";

	CHECK(!gy_listener_accept(job->listener, 5000, &job->channel));
	CHECK(!gy_channel_secure(job->channel, key, GY_CHANNEL_SERVER | job->tls, 5000, err, sizeof(err)));
	return NULL;
}

static void connect_role(struct pair *pair, uint32_t role)
{
	struct accept_job job = { .listener = pair->listener, .tls = pair->tls };
	struct gy_channel *channel;
	char err[128] = "";
	pthread_t thread;

	CHECK(!thread_start(&thread, "accept", accept_one, &job));
	CHECK(!gy_channel_connect("127.0.0.1", (uint32_t)gy_listener_port(pair->listener), 5000, &channel));
	CHECK(!gy_channel_secure(channel, key, pair->tls, 5000, err, sizeof(err)));
	pthread_join(thread, NULL);
	CHECK(!gy_source_add(pair->source, channel, role));
	CHECK(!gy_sink_add(pair->sink, job.channel, role));
}

static void connect_all(struct pair *pair)
{
	connect_role(pair, GY_ROLE_DEMAND);
	connect_role(pair, GY_ROLE_PREFETCH);
	connect_role(pair, GY_ROLE_PREFETCH);
}

static void setup(struct pair *pair, uint32_t tls, uint64_t rate, uint32_t prefetch)
{
	struct gy_sink_config config = {
		.precopy_window_bytes = 1 << 20, .postcopy_window_bytes = 1 << 18, .prefetch = prefetch,
	};
	char err[128] = "";

	memset(pair, 0, sizeof(*pair));
	pair->tls = tls ? GY_CHANNEL_TLS : 0;
	CHECK(!gy_ram_create(RAM_BYTES, &pair->from));
	CHECK(!gy_ram_create(RAM_BYTES, &pair->to));
	for (uint64_t page = 0; page < PAGES; page++) {
		if (page < HOLE_FIRST || page >= HOLE_END)
			write_page(pair->from, page, 1);
	}
	memset(pair->from->alias + 10 * GY_PAGE_BYTES, 0, GY_PAGE_BYTES);	/* allocated and yet zero */
	CHECK(!gy_source_create(pair->from, rate, &pair->source));
	CHECK(!gy_sink_create(pair->to, &config, &pair->sink, err, sizeof(err)));
	CHECK(!gy_listener_create("127.0.0.1", 0, &pair->listener));
	connect_all(pair);
}

static void teardown(struct pair *pair)
{
	gy_source_destroy(pair->source);
	gy_sink_destroy(pair->sink);
	gy_listener_destroy(pair->listener);
	gy_ram_destroy(pair->from);
	gy_ram_destroy(pair->to);
}

static int64_t encode(struct pair *pair)
{
	return gy_set_encode(pair->set, PAGES, pair->encoded, sizeof(pair->encoded));
}

/* As a full migration begins: no page has come. */
static void arm_full(struct pair *pair)
{
	CHECK(gy_source_scan_present(pair->source, pair->set, PAGES / 64) > 0);
	CHECK(gy_sink_discard(pair->sink, pair->encoded, (uint64_t)encode(pair)) > 0);
	CHECK(gy_sink_arm(pair->sink) > 0);
}

static void wait_for(struct pair *pair, int event)
{
	int got = gy_sink_wait(pair->sink, 20000);

	if (got != event)
		fprintf(stderr, "waited for event %d, got %d\n", event, got);
	CHECK(got == event);
}

static void *touch_at_random(void *arg)
{
	const struct pair *pair = arg;
	uint64_t bad = 0;

	for (uint64_t i = 0; i < PAGES; i++) {
		uint64_t page = i * 4099 % PAGES;
		uint64_t version = (page >= HOLE_FIRST && page < HOLE_END) || page == 10 ? 0 : 1;

		bad += !page_is(pair->to->guest, page, version);
	}
	return (void *)bad;
}

static void full(uint32_t tls, uint64_t rate, uint32_t prefetch)
{
	struct gy_page_stats *stats;
	struct pair pair;
	pthread_t guest[2];
	void *bad;

	setup(&pair, tls, rate, prefetch);
	CHECK(gy_source_scan_present(pair.source, pair.set, PAGES / 64) == PAGES - (HOLE_END - HOLE_FIRST));
	/* The guest wrote into a hole after the first look. */
	write_page(pair.from, HOLE_FIRST + 7, 1);
	CHECK(gy_source_scan_present(pair.source, pair.set, PAGES / 64) == PAGES - (HOLE_END - HOLE_FIRST) + 1);
	memset(pair.from->alias + (HOLE_FIRST + 7) * GY_PAGE_BYTES, 0, GY_PAGE_BYTES);
	CHECK(gy_sink_discard(pair.sink, pair.encoded, (uint64_t)encode(&pair)) > 0);
	/* Somebody touched the waiting machine's RAM: arming has to drop that. */
	memset(pair.to->alias, 0xee, 3 * GY_PAGE_BYTES);
	CHECK(gy_sink_arm(pair.sink) == PAGES - (HOLE_END - HOLE_FIRST) + 1);
	CHECK(gy_sink_disarm(pair.sink) == -EBUSY);
	for (int i = 0; i < 2; i++)
		CHECK(!thread_start(&guest[i], "guest", touch_at_random, &pair));
	CHECK(!gy_sink_run(pair.sink));
	for (int i = 0; i < 2; i++) {
		CHECK(!pthread_join(guest[i], &bad));
		CHECK(!bad);
	}
	wait_for(&pair, GY_EVENT_COMPLETE);
	CHECK(!gy_sink_disarm(pair.sink));
	stats = gy_sink_stats(pair.sink);
	CHECK(STAT(stats, demand_faults) > 0);
	CHECK(!STAT(stats, duplicate_pages));
	CHECK(!STAT(stats, missing_pages));
	CHECK(STAT(stats, postcopy_pages) == PAGES - (HOLE_END - HOLE_FIRST) - 1);
	CHECK(prefetch ? STAT(stats, prefetched_pages) > 0 : !STAT(stats, prefetched_pages));
	CHECK(STAT(stats, fault_latency.n) == STAT(stats, demand_faults));
	printf("full tls=%u prefetch=%u: faults %lu prefetched %lu local zero %lu late %lu latency max %lu us\n", tls,
	       prefetch, STAT(stats, demand_faults), STAT(stats, prefetched_pages), STAT(stats, local_zero_faults), STAT(stats, late_faults),
	       STAT(stats, fault_latency.max) / 1000);
	teardown(&pair);
}

static void hybrid(void)
{
	struct gy_page_stats *stats;
	struct pair pair;

	setup(&pair, 1, 0, 1);
	CHECK(gy_source_scan_present(pair.source, pair.set, PAGES / 64) > 0);
	CHECK(gy_sink_round(pair.sink, pair.encoded, (uint64_t)encode(&pair), 60000) == 7192);
	CHECK(gy_sink_round(pair.sink, pair.encoded, 8, 1) == -EBUSY);
	CHECK(gy_sink_arm(pair.sink) == -EBUSY);
	wait_for(&pair, GY_EVENT_ROUND_DONE);
	stats = gy_sink_stats(pair.sink);
	CHECK(STAT(stats, precopy_pages) == 7191 && STAT(stats, zero_pages) == 1);
	/* Dirtied since: pages 100..299 twice over, and a page that becomes zero. */
	memset(pair.set, 0, sizeof(pair.set));
	for (uint64_t page = 100; page < 300; page++) {
		write_page(pair.from, page, 2);
		pair.set[page / 64] |= 1ull << (page % 64);
	}
	memset(pair.from->alias + 299 * GY_PAGE_BYTES, 0, GY_PAGE_BYTES);
	CHECK(gy_sink_round(pair.sink, pair.encoded, (uint64_t)encode(&pair), 60000) == 200);
	wait_for(&pair, GY_EVENT_ROUND_DONE);
	for (uint64_t page = 100; page < 150; page++)
		write_page(pair.from, page, 3);
	CHECK(gy_sink_discard(pair.sink, pair.encoded, (uint64_t)encode(&pair)) == 200);
	CHECK(gy_sink_arm(pair.sink) == 200);
	CHECK(page_is(pair.to->guest, 5000, 1));
	CHECK(page_is(pair.to->guest, 120, 3));
	CHECK(page_is(pair.to->guest, 160, 2));
	CHECK(page_is(pair.to->guest, 299, 0));
	CHECK(page_is(pair.to->guest, 10, 0));
	CHECK(!gy_sink_run(pair.sink));
	wait_for(&pair, GY_EVENT_COMPLETE);
	CHECK(!gy_sink_disarm(pair.sink));
	for (uint64_t page = 0; page < PAGES; page++) {
		uint64_t version = page == 10 || page == 299 || (page >= HOLE_FIRST && page < HOLE_END) ? 0
				   : page >= 100 && page < 150 ? 3 : page >= 150 && page < 300 ? 2 : 1;

		CHECK(page_is(pair.to->guest, page, version));
	}
	teardown(&pair);
}

/* A round ends at its deadline, and what is left stays wanted. */
static void deadline(void)
{
	struct pair pair;
	int64_t left;

	setup(&pair, 0, 20000000, 1);
	CHECK(gy_source_scan_present(pair.source, pair.set, PAGES / 64) > 0);
	CHECK(gy_sink_round(pair.sink, pair.encoded, (uint64_t)encode(&pair), 200) > 0);
	wait_for(&pair, GY_EVENT_ROUND_DONE);
	memset(pair.set, 0, sizeof(pair.set));
	left = gy_sink_discard(pair.sink, pair.encoded, (uint64_t)encode(&pair));
	CHECK(left > 4000 && left < 7192 - 500);
	teardown(&pair);
}

static struct gy_page_stats *cut(struct pair *pair)
{
	gy_source_drop_channels(pair->source);
	wait_for(pair, GY_EVENT_LINK_LOST);
	gy_sink_drop_channels(pair->sink);
	return gy_sink_stats(pair->sink);
}

/* Connections die in the middle; new ones take their place; no page is lost and none comes twice. */
static void reconnect(void)
{
	struct gy_page_stats *stats;
	struct pair pair;
	pthread_t guest;
	void *bad;

	setup(&pair, 1, 50000000, 1);
	arm_full(&pair);
	CHECK(!thread_start(&guest, "guest", touch_at_random, &pair));
	CHECK(!gy_sink_run(pair.sink));
	for (int i = 0; i < 3; i++) {
		struct timespec nap = { .tv_nsec = 50 * NS_PER_MS };

		nanosleep(&nap, NULL);
		stats = cut(&pair);
		CHECK(STAT(stats, missing_pages) > 0);
		connect_all(&pair);
	}
	CHECK(!pthread_join(guest, &bad));
	CHECK(!bad);
	wait_for(&pair, GY_EVENT_COMPLETE);
	CHECK(!STAT(stats, duplicate_pages));
	CHECK(STAT(stats, postcopy_pages) == 7191);
	teardown(&pair);
}

static void *touch_again(void *arg)
{
	const struct pair *pair = arg;

	return (void *)(uint64_t)page_is(pair->to->guest, 20, 0);
}

/* As a balloon does: the guest gives a page back that has come, while others are still missing, and takes it anew. */
static void given_back(void)
{
	struct timespec late;
	struct pair pair;
	pthread_t guest;
	void *zero;

	setup(&pair, 0, 0, 0);
	arm_full(&pair);
	CHECK(!gy_sink_run(pair.sink));
	CHECK(page_is(pair.to->guest, 20, 1));
	CHECK(!gy_ram_punch(pair.to, 20 * GY_PAGE_BYTES, GY_PAGE_BYTES));
	CHECK(!thread_start(&guest, "guest", touch_again, &pair));
	clock_gettime(CLOCK_REALTIME, &late);
	late.tv_sec += 20;
	CHECK(!pthread_timedjoin_np(guest, &zero, &late));
	CHECK(zero);
	CHECK(STAT(gy_sink_stats(pair.sink), missing_pages) > 0);
	CHECK(!STAT(gy_sink_stats(pair.sink), duplicate_pages));
	teardown(&pair);
}

/* Positive controls: each kind of damage must be visible to a reader. */
static uint64_t damaged(uint32_t what)
{
	struct pair pair;
	uint64_t bad = 0;

	setup(&pair, 0, 0, 1);
	CHECK(gy_source_scan_present(pair.source, pair.set, PAGES / 64) > 0);
	CHECK(gy_sink_round(pair.sink, pair.encoded, (uint64_t)encode(&pair), 60000) > 0);
	wait_for(&pair, GY_EVENT_ROUND_DONE);
	memset(pair.set, 0, sizeof(pair.set));
	for (uint64_t page = 100; page < 300; page++) {
		write_page(pair.from, page, 2);
		pair.set[page / 64] |= 1ull << (page % 64);
	}
	CHECK(!gy_inject(what, 150, 1));
	CHECK(!gy_inject_skip_dirty(pair.set, PAGES));
	CHECK(gy_sink_discard(pair.sink, pair.encoded, (uint64_t)encode(&pair)) >= 0);
	CHECK(gy_sink_arm(pair.sink) >= 0);
	CHECK(!gy_sink_run(pair.sink));
	wait_for(&pair, GY_EVENT_COMPLETE);
	for (uint64_t page = 100; page < 300; page++)
		bad += !page_is(pair.to->guest, page, 2);
	CHECK(!gy_inject(GY_INJECT_NONE, 0, 0));
	teardown(&pair);
	return bad;
}

int main(void)
{
	/* Threads that sleep at once, and such as spin. */
	for (uint32_t cpus = 1; cpus <= SPIN_CPUS; cpus += SPIN_CPUS - 1) {
		spin_pretend_cpus(cpus);
		full(0, 0, 1);
		full(1, 0, 1);
		full(1, 0, 0);
		full(1, 100000000, 1);
		hybrid();
		deadline();
		reconnect();
		given_back();
	}
	CHECK(damaged(GY_INJECT_NONE) == 0);
	CHECK(damaged(GY_INJECT_ZERO_PAGE) == 1);
	CHECK(damaged(GY_INJECT_SWAP_PAGES) == 2);
	CHECK(damaged(GY_INJECT_STALE_PAGE) == 1);
	CHECK(damaged(GY_INJECT_SKIP_DIRTY) == 1);
	puts("pager_test: passed");
	return 0;
}
