/* SPDX-License-Identifier: Apache-2.0 */
/* pager_fixture.h - small RAM files with known content, and channels between two ends in one process. */
#ifndef PAGER_FIXTURE_H
#define PAGER_FIXTURE_H

#include <errno.h>
#include <stdbool.h>

#include "channel.h"
#include "check.h"
#include "clock.h"
#include "ram.h"
#include "sink.h"
#include "thread.h"

#define PAGES 512ull
#define SOON_MS 20000u		/* only a hang takes so long */
#define PROMPT_NS (NS_PER_S / 2)	/* less than the second after which every thread looks again by itself */

static inline uint64_t word_of(uint64_t page, uint64_t i)
{
	return (page + 1) * 0x9e3779b97f4a7c15ull ^ i;
}

static inline void fill_page(uint8_t *at, uint64_t page)
{
	for (uint64_t i = 0; i < GY_PAGE_BYTES / 8; i++)
		memcpy(at + i * 8, &(uint64_t){ word_of(page, i) }, 8);
}

static inline bool page_is_right(const uint8_t *base, uint64_t page)
{
	const volatile uint64_t *word = (const volatile uint64_t *)(base + page * GY_PAGE_BYTES);

	for (uint64_t i = 0; i < GY_PAGE_BYTES / 8; i++) {
		if (word[i] != word_of(page, i))
			return false;
	}
	return true;
}

/* A RAM file of PAGES pages, all of them filled if @filled. */
static inline struct gy_ram *make_ram(bool filled)
{
	struct gy_ram *ram;

	CHECK(!gy_ram_create(PAGES * GY_PAGE_BYTES, &ram));
	for (uint64_t page = 0; filled && page < PAGES; page++)
		fill_page(ram->alias + page * GY_PAGE_BYTES, page);
	return ram;
}

struct link {
	struct gy_channel *source;
	struct gy_channel *sink;
};

/* Not secured: what the pager does with a peer is the same, and the handshake has a test of its own. */
static inline struct link make_link(void)
{
	struct gy_listener *listener;
	struct link link;

	CHECK(!gy_listener_create("127.0.0.1", 0, &listener));
	CHECK(!gy_channel_connect("127.0.0.1", (uint32_t)gy_listener_port(listener), SOON_MS, &link.source));
	CHECK(!gy_listener_accept(listener, SOON_MS, &link.sink));
	gy_listener_destroy(listener);
	return link;
}

static inline struct gy_sink *make_sink(struct gy_ram *ram, bool prefetch, uint64_t window_pages)
{
	struct gy_sink_config config = {
		.precopy_window_bytes = window_pages * GY_PAGE_BYTES,
		.postcopy_window_bytes = window_pages * GY_PAGE_BYTES,
		.prefetch = prefetch,
	};
	char err[128] = "";
	struct gy_sink *sink;

	CHECK(!gy_sink_create(ram, &config, &sink, err, sizeof(err)));
	return sink;
}

/* Every page, as an encoded set. */
static inline uint64_t all_pages(uint8_t set[16])
{
	static const uint32_t words[4] = { 2, 1, 0, PAGES };

	memcpy(set, words, sizeof(words));
	return sizeof(words);
}

static inline void want_all(struct gy_sink *sink)
{
	uint8_t set[16];

	CHECK_EQUAL(gy_sink_discard(sink, set, all_pages(set)), PAGES);
}

static inline void arm_and_run(struct gy_sink *sink)
{
	CHECK_EQUAL(gy_sink_arm(sink), bitmap_count(sink->want, PAGES));
	CHECK(!gy_sink_run(sink));
}

/* Adds one connection between an honest source and the sink. */
static inline void join(struct gy_source *source, struct gy_sink *sink, uint32_t role)
{
	struct link link = make_link();

	CHECK(!gy_source_add(source, link.source, role));
	CHECK(!gy_sink_add(sink, link.sink, role));
}

/* Links may be lost meanwhile; nothing may fail. */
static inline void wait_complete(struct gy_sink *sink)
{
	uint64_t deadline = deadline_after_ms(SOON_MS);
	int got;

	do {
		got = gy_sink_wait(sink, SOON_MS);
		CHECK(got > 0 && now_ns() < deadline);
		CHECK(!(got & (int)GY_EVENT_FAILED));
	} while (!(got & (int)GY_EVENT_COMPLETE));
}

/* All pages are here, each is right, each came once, and the books are closed. */
static inline void check_complete(struct gy_sink *sink)
{
	struct gy_page_stats *stats = gy_sink_stats(sink);

	CHECK_EQUAL(STAT(stats, missing_pages), 0);
	CHECK_EQUAL(STAT(stats, present_pages), PAGES);
	CHECK_EQUAL(STAT(stats, duplicate_pages), 0);
	CHECK_EQUAL(STAT(stats, precopy_pages) + STAT(stats, postcopy_pages), PAGES);
	CHECK(STAT(stats, wire_bytes) > PAGES * GY_PAGE_BYTES);
	CHECK_EQUAL(bitmap_count(sink->received, PAGES), PAGES);
	CHECK_EQUAL(bitmap_count(sink->want, PAGES), 0);
	CHECK_EQUAL(atomic_load(&sink->waiters.n), 0);
	CHECK_EQUAL(atomic_load(&sink->waiters.asked), 0);
	CHECK(!gy_sink_disarm(sink));
	for (uint64_t page = 0; page < PAGES; page++)
		CHECK(page_is_right(sink->ram->guest, page));
	gy_sink_drop_channels(sink);
	CHECK_EQUAL(sink->requests_in_flight, 0);
}

#endif
