// SPDX-License-Identifier: Apache-2.0
/*
 * pager_hostile_test.c - peers that hold the key and lie. Whatever they answer: the right event, no page taken that
 * was not asked for, every page still in one place, and honest connections bring the guest to its end.
 */
#include "bitmap.h"
#include "page_proto.h"
#include "pager_fixture.h"

/* ---- a source that lies ---- */

enum lie {
	LIE_NONE,
	LIE_MAGIC, LIE_TAG, LIE_FIRST_BEFORE, LIE_FIRST_AFTER, LIE_FIRST_FAR, LIE_COUNT_ZERO, LIE_COUNT_MORE, LIE_COUNT_HUGE,
	LIE_BYTES_LESS, LIE_BYTES_MORE, LIE_BYTES_OF_ZERO_PAGES, LIE_ENCODING_ZERO, LIE_ENCODING_UNKNOWN, LIE_RESERVED,
	LIE_TWICE, LIE_UNASKED, LIE_NOISE,
	LIE_LINK,	/* from here on it is the link that fails */
	LIE_CUT_IN_HEAD = LIE_LINK, LIE_CUT_IN_PAGE, LIE_CLOSE, LIE_END,
	LIE_SILENCE = LIE_END,	/* which is no event: the guest waits */
};

static struct page_reply reply_to(const struct page_request *request)
{
	return (struct page_reply){
		.magic = PAGE_REPLY_MAGIC, .tag = request->tag, .first_page = request->first_page,
		.count = request->count, .encoding = PAGE_RAW, .bytes = request->count * GY_PAGE_BYTES,
	};
}

static void distort(struct page_reply *reply, enum lie lie)
{
	switch (lie) {
	case LIE_MAGIC: reply->magic ^= 1; break;
	case LIE_TAG: reply->tag++; break;
	case LIE_FIRST_BEFORE: reply->first_page--; break;
	case LIE_FIRST_AFTER: reply->first_page++; break;
	case LIE_FIRST_FAR: reply->first_page += PAGES; break;
	case LIE_COUNT_ZERO: reply->count = reply->bytes = 0; break;
	case LIE_COUNT_MORE: reply->count++; reply->bytes += GY_PAGE_BYTES; break;
	/* The product with the page size is 4096 again in 32 bits. */
	case LIE_COUNT_HUGE: reply->count = (1u << 20) + 1; reply->bytes = GY_PAGE_BYTES; break;
	case LIE_BYTES_LESS: reply->bytes--; break;
	case LIE_BYTES_MORE: reply->bytes = UINT32_MAX; break;
	case LIE_BYTES_OF_ZERO_PAGES: reply->encoding = PAGE_ZERO; break;
	case LIE_ENCODING_ZERO: reply->encoding = reply->bytes = 0; break;
	case LIE_ENCODING_UNKNOWN: reply->encoding = 3; reply->bytes = 0; break;
	case LIE_RESERVED: reply->reserved = 1; break;
	default: break;
	}
}

static void send_bytes(struct gy_channel *channel, const void *buf, uint64_t len)
{
	/* The sink may have hung up meanwhile. */
	gy_channel_write_all(channel, buf, len, SOON_MS);
}

/* Bytes that look like pages of this guest and must not become any. */
static uint8_t wrong_bytes[(PAGE_REQUEST_MAX + 1) * GY_PAGE_BYTES];

/* An honest reply, as far as it goes. */
static void answer_well(struct gy_channel *channel, const struct page_request *request)
{
	struct page_reply reply = reply_to(request);
	static uint8_t bytes[PAGE_REQUEST_MAX * GY_PAGE_BYTES];

	for (uint32_t i = 0; i < request->count; i++)
		fill_page(bytes + i * GY_PAGE_BYTES, request->first_page + i);
	send_bytes(channel, &reply, sizeof(reply));
	send_bytes(channel, bytes, reply.bytes);
}

/* Answers one request with a lie. */
static void answer(struct gy_channel *channel, const struct page_request *request, enum lie lie)
{
	struct page_reply reply = reply_to(request);

	distort(&reply, lie);
	if (lie == LIE_CUT_IN_HEAD) {
		send_bytes(channel, &reply, sizeof(reply) / 2);
	} else if (lie == LIE_CUT_IN_PAGE) {
		send_bytes(channel, &reply, sizeof(reply));
		send_bytes(channel, wrong_bytes, GY_PAGE_BYTES / 2);
	} else if (lie == LIE_COUNT_ZERO) {
		/* One that says nothing, before one that is right. */
		send_bytes(channel, &reply, sizeof(reply));
		answer_well(channel, request);
	} else if (lie == LIE_NOISE) {
		send_bytes(channel, wrong_bytes, sizeof(reply) * 3);
	} else if (lie < LIE_LINK) {
		send_bytes(channel, &reply, sizeof(reply));
		send_bytes(channel, wrong_bytes, reply.bytes ? (uint64_t)request->count * GY_PAGE_BYTES : 0);
	}
	if (lie >= LIE_LINK && lie < LIE_END)
		gy_channel_shutdown(channel);
}

struct guest {
	const uint8_t *base;
	pthread_t thread;
};

/* One fault far from where prefetch begins. */
static void *touch_last(void *arg)
{
	const struct guest *guest = arg;

	CHECK(page_is_right(guest->base, PAGES - 1));
	return NULL;
}

/* How many pages a lie leaves taken: those of the honest replies before it. */
static uint64_t lie_over(struct gy_channel *channel, enum lie lie)
{
	struct page_request request;
	uint64_t taken = 0;

	if (lie == LIE_UNASKED) {
		struct page_request unasked = { .first_page = 3, .count = 1, .tag = 1 };

		answer_well(channel, &unasked);
		return 0;
	}
	CHECK(!gy_channel_read_all(channel, &request, sizeof(request), deadline_after_ms(SOON_MS)));
	CHECK(request.magic == PAGE_REQUEST_MAGIC && request.count && request.count <= PAGE_REQUEST_MAX);
	if (lie == LIE_TWICE) {
		answer_well(channel, &request);
		answer_well(channel, &request);
		taken = request.count;
	} else {
		answer(channel, &request, lie);
	}
	return taken;
}

static void check_event(struct gy_sink *sink, enum lie lie)
{
	int got = gy_sink_wait(sink, lie == LIE_SILENCE ? 50 : SOON_MS);
	int want = lie < LIE_LINK ? (int)GY_EVENT_FAILED : lie < LIE_END ? (int)GY_EVENT_LINK_LOST : -ETIMEDOUT;

	if (got != want)
		fprintf(stderr, "pager_hostile_test: lie %d brought event %d and not %d\n", lie, got, want);
	CHECK(got == want);
}

/* Every page is wanted or received, none both, and only honest bytes were taken. */
static void check_places(struct gy_sink *sink, uint64_t received)
{
	CHECK_EQUAL(bitmap_count(sink->received, PAGES), received);
	CHECK_EQUAL(bitmap_count(sink->want, PAGES), PAGES - received);
	for (uint64_t w = 0; w < bitmap_words(PAGES); w++)
		CHECK(!(sink->want[w] & sink->received[w]));
	CHECK_EQUAL(sink->requests_in_flight, 0);
	CHECK_EQUAL(atomic_load(&sink->waiters.asked), 0);
	CHECK_EQUAL(gy_ram_allocated(sink->ram), received * GY_PAGE_BYTES);
}

enum when { IN_ROUND, BY_PREFETCH, BY_FAULT };

static void begin(struct gy_sink *sink, enum when when, struct guest *guest)
{
	uint8_t set[16];

	if (when == IN_ROUND) {
		CHECK_EQUAL(gy_sink_round(sink, set, all_pages(set), 60000), PAGES);
		return;
	}
	want_all(sink);
	CHECK_EQUAL(gy_sink_arm(sink), PAGES);
	if (when == BY_PREFETCH)
		CHECK(!gy_sink_run(sink));
	else
		CHECK(!thread_start(&guest->thread, "guest", touch_last, guest));
}

static void finish(struct gy_sink *sink, struct gy_source *source, enum when when, struct guest *guest)
{
	join(source, sink, GY_ROLE_DEMAND);
	join(source, sink, GY_ROLE_PREFETCH);
	if (when == IN_ROUND) {
		/* What was handed back behind the sweep is for the next round, or for post-copy. */
		CHECK_EQUAL(gy_sink_wait(sink, SOON_MS), GY_EVENT_ROUND_DONE);
		arm_and_run(sink);
	} else if (when == BY_FAULT) {
		CHECK(!gy_sink_run(sink));
	}
	CHECK_EQUAL(gy_sink_wait(sink, SOON_MS), GY_EVENT_COMPLETE);
	if (when == BY_FAULT)
		pthread_join(guest->thread, NULL);
	check_complete(sink);
}

static void lying_source(struct gy_ram *from, enum when when, enum lie lie)
{
	struct gy_ram *to = make_ram(false);
	struct gy_sink *sink = make_sink(to, true, 64);
	struct guest guest = { .base = to->guest };
	struct link link = make_link();
	struct gy_source *source;
	uint64_t taken;

	CHECK(!gy_source_create(from, 0, &source));
	if (lie == LIE_UNASKED)
		lie_over(link.source, lie);
	CHECK(!gy_sink_add(sink, link.sink, when == BY_FAULT ? GY_ROLE_DEMAND : GY_ROLE_PREFETCH));
	/* What nobody asked for must not get in, and must not get in the way of asking either. */
	if (lie == LIE_UNASKED) {
		check_event(sink, lie);
		gy_sink_drop_channels(sink);
		begin(sink, when, &guest);
		taken = 0;
	} else {
		begin(sink, when, &guest);
		taken = lie_over(link.source, lie);
		check_event(sink, lie);
		gy_sink_drop_channels(sink);
	}
	check_places(sink, taken);
	gy_channel_destroy(link.source);
	finish(sink, source, when, &guest);
	gy_source_destroy(source);
	gy_sink_destroy(sink);
	gy_ram_destroy(to);
}

/* Given up in the middle of everything: nothing may leak. */
static void destroyed_amid_lies(enum when when, enum lie lie)
{
	struct gy_ram *to = make_ram(false);
	struct gy_sink *sink = make_sink(to, true, 64);
	struct link link = make_link();

	CHECK(!gy_sink_add(sink, link.sink, GY_ROLE_PREFETCH));
	begin(sink, when, NULL);
	lie_over(link.source, lie);
	gy_sink_destroy(sink);
	gy_channel_destroy(link.source);
	gy_ram_destroy(to);
}

/* ---- a destination that asks for what it must not ---- */

static void wrong_request(struct gy_source *source, const void *bytes, uint64_t len, int event)
{
	struct link link = make_link();
	uint8_t byte;

	CHECK(!gy_source_add(source, link.source, GY_ROLE_DEMAND));
	CHECK(!gy_channel_write_all(link.sink, bytes, len, SOON_MS));
	if (event == (int)GY_EVENT_LINK_LOST)
		gy_channel_shutdown(link.sink);
	CHECK_EQUAL(gy_source_wait(source, SOON_MS), event);
	/* Not a byte of the guest's memory came back. */
	CHECK_EQUAL(gy_channel_read_all(link.sink, &byte, 1, deadline_after_ms(SOON_MS)), -ECONNABORTED);
	gy_source_drop_channels(source);
	gy_channel_destroy(link.sink);
}

static void right_request(struct gy_source *source, uint64_t first, uint32_t count)
{
	struct page_request request = {
		.magic = PAGE_REQUEST_MAGIC, .tag = 77, .first_page = first, .count = count,
	};
	uint64_t deadline = deadline_after_ms(SOON_MS);
	struct link link = make_link();
	static uint8_t bytes[PAGE_REQUEST_MAX * GY_PAGE_BYTES];
	struct page_reply reply;

	CHECK(!gy_source_add(source, link.source, GY_ROLE_PREFETCH));
	CHECK(!gy_channel_write_all(link.sink, &request, sizeof(request), SOON_MS));
	for (uint64_t at = first; at < first + count; at += reply.count) {
		CHECK(!gy_channel_read_all(link.sink, &reply, sizeof(reply), deadline));
		CHECK(reply.magic == PAGE_REPLY_MAGIC && reply.tag == 77 && reply.first_page == at && !reply.reserved);
		CHECK(reply.encoding == PAGE_RAW && reply.count && reply.count <= first + count - at);
		CHECK_EQUAL(reply.bytes, reply.count * GY_PAGE_BYTES);
		CHECK(!gy_channel_read_all(link.sink, bytes, reply.bytes, deadline));
		for (uint32_t i = 0; i < reply.count; i++) {
			for (uint64_t word = 0, have; word < GY_PAGE_BYTES / 8; word++) {
				memcpy(&have, bytes + i * GY_PAGE_BYTES + word * 8, 8);
				CHECK(have == word_of(at + i, word));
			}
		}
	}
	gy_channel_destroy(link.sink);
	CHECK_EQUAL(gy_source_wait(source, SOON_MS), GY_EVENT_LINK_LOST);
	gy_source_drop_channels(source);
}

static void asking_destination(struct gy_ram *from, uint64_t rate)
{
	static const struct page_request wrong[] = {
		{ .magic = PAGE_REPLY_MAGIC, .count = 1 },
		{ .magic = PAGE_REQUEST_MAGIC, .count = 0 },
		{ .magic = PAGE_REQUEST_MAGIC, .count = PAGE_REQUEST_MAX + 1 },
		{ .magic = PAGE_REQUEST_MAGIC, .count = UINT32_MAX },
		{ .magic = PAGE_REQUEST_MAGIC, .count = 1, .region = 1 },
		{ .magic = PAGE_REQUEST_MAGIC, .count = 1, .reserved = 1 },
		{ .magic = PAGE_REQUEST_MAGIC, .count = 1, .first_page = PAGES },
		{ .magic = PAGE_REQUEST_MAGIC, .count = 2, .first_page = PAGES - 1 },
		{ .magic = PAGE_REQUEST_MAGIC, .count = 64, .first_page = UINT64_MAX - 63 },
		{ .magic = PAGE_REQUEST_MAGIC, .count = 1, .first_page = UINT64_MAX },
		{ .magic = PAGE_REQUEST_MAGIC, .count = 1, .first_page = UINT64_MAX / GY_PAGE_BYTES + 1 },
	};
	struct gy_source *source;

	CHECK(!gy_source_create(from, rate, &source));
	for (uint64_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++)
		wrong_request(source, &wrong[i], sizeof(wrong[i]), (int)GY_EVENT_FAILED);
	wrong_request(source, wrong_bytes, sizeof(struct page_request), (int)GY_EVENT_FAILED);
	wrong_request(source, &wrong[1], 0, (int)GY_EVENT_LINK_LOST);
	wrong_request(source, &wrong[1], sizeof(wrong[1]) / 2, (int)GY_EVENT_LINK_LOST);
	/* The last request that is right on each side of those that are not. */
	right_request(source, PAGES - 1, 1);
	right_request(source, PAGES - PAGE_REQUEST_MAX, PAGE_REQUEST_MAX);
	right_request(source, 0, 1);
	gy_source_destroy(source);
}

int main(void)
{
	struct gy_ram *from = make_ram(true);
	uint64_t seed = 8;

	for (uint64_t i = 0; i < sizeof(wrong_bytes); i++)
		wrong_bytes[i] = (uint8_t)random_next(&seed);
	for (enum when when = IN_ROUND; when <= BY_FAULT; when++) {
		for (enum lie lie = LIE_MAGIC; lie <= LIE_SILENCE; lie++)
			lying_source(from, when, lie);
	}
	destroyed_amid_lies(IN_ROUND, LIE_TAG);
	destroyed_amid_lies(BY_PREFETCH, LIE_CUT_IN_PAGE);
	destroyed_amid_lies(BY_PREFETCH, LIE_SILENCE);
	asking_destination(from, 0);
	asking_destination(from, 100000000);
	gy_ram_destroy(from);
	puts("pager_hostile_test: passed");
	return 0;
}
