// SPDX-License-Identifier: Apache-2.0
/*
 * page_set.c - page sets on the wire.
 *
 * u32 kind, u32 count, then
 *   kind 1: ceil(pages / 64) u64 words of bitmap (count: words)
 *   kind 2: count runs of { u32 gap, u32 length } in pages, gap counted from the end of the run before
 * A run or gap of 2^32 pages is 16 TiB; gy_set_encode() refuses larger RAM.
 */
#include <errno.h>
#include <string.h>

#include "bitmap.h"
#include "gyges.h"
#include "page_set.h"

enum { SET_BITMAP = 1, SET_RUNS = 2 };

struct set_header {
	uint32_t kind;
	uint32_t count;
};

struct set_run {
	uint32_t gap;
	uint32_t length;
};

uint64_t gy_set_bound(uint64_t pages)
{
	return sizeof(struct set_header) + bitmap_words(pages) * 8;
}

int64_t gy_set_count(const uint64_t *bitmap, uint64_t pages)
{
	return (int64_t)bitmap_count((const gy_word *)bitmap, pages);
}

/* Runs written, or -ENOSPC when they take more than @max. */
static int64_t encode_runs(const gy_word *map, uint64_t pages, uint8_t *out, uint64_t max)
{
	uint64_t end = 0, n = 0;

	for (;;) {
		uint64_t first = bitmap_next(map, end, pages, true);
		struct set_run run;

		if (first == pages)
			return (int64_t)n;
		if (n == max)
			return -ENOSPC;
		run.gap = (uint32_t)(first - end);
		end = bitmap_next(map, first, pages, false);
		run.length = (uint32_t)(end - first);
		memcpy(out + n++ * sizeof(run), &run, sizeof(run));
	}
}

int64_t gy_set_encode(const uint64_t *bitmap, uint64_t pages, uint8_t *out, uint64_t cap)
{
	uint64_t words = bitmap_words(pages);
	struct set_header header = { .kind = SET_RUNS };
	int64_t runs;

	if (pages > UINT32_MAX)
		return -EFBIG;
	if (cap < gy_set_bound(pages))
		return -ENOSPC;
	runs = encode_runs((const gy_word *)bitmap, pages, out + sizeof(header), words);
	if (runs < 0) {
		header.kind = SET_BITMAP;
		header.count = (uint32_t)words;
		memcpy(out + sizeof(header), bitmap, words * 8);
	} else {
		header.count = (uint32_t)runs;
	}
	memcpy(out, &header, sizeof(header));
	return (int64_t)(sizeof(header) + header.count * 8ull);
}

static int64_t walk_bitmap(const uint8_t *in, uint64_t words, uint64_t pages, gy_set_fn *fn, void *arg)
{
	uint64_t n = 0;

	if (words != bitmap_words(pages))
		return -EBADMSG;
	for (uint64_t w = 0; w < words; w++) {
		uint64_t word;

		memcpy(&word, in + w * 8, 8);
		if (w == words - 1 && pages % 64 && word >> (pages % 64))
			return -EBADMSG;
		n += (uint64_t)__builtin_popcountll(word);
		while (word && fn) {
			uint64_t bit = (uint64_t)__builtin_ctzll(word);
			uint64_t rest = ~(word >> bit);
			uint64_t len = rest ? (uint64_t)__builtin_ctzll(rest) : 64 - bit;

			fn(arg, w * 64 + bit, len);
			word = bit + len == 64 ? 0 : word & ~0ull << (bit + len);
		}
	}
	return (int64_t)n;
}

static int64_t walk_runs(const uint8_t *in, uint64_t runs, uint64_t pages, gy_set_fn *fn, void *arg)
{
	uint64_t end = 0, n = 0;

	for (uint64_t i = 0; i < runs; i++) {
		struct set_run run;

		memcpy(&run, in + i * sizeof(run), sizeof(run));
		/* Neighbouring runs would be one: a second form of the same set is refused, as is an empty run. */
		if (!run.length || (i && !run.gap) || end + run.gap + run.length > pages)
			return -EBADMSG;
		if (fn)
			fn(arg, end + run.gap, run.length);
		end += (uint64_t)run.gap + run.length;
		n += run.length;
	}
	return (int64_t)n;
}

static int64_t walk(const uint8_t *in, uint64_t len, uint64_t pages, gy_set_fn *fn, void *arg)
{
	struct set_header header;

	if (len < sizeof(header))
		return -EBADMSG;
	memcpy(&header, in, sizeof(header));
	in += sizeof(header);
	if (len != sizeof(header) + header.count * 8ull)
		return -EBADMSG;
	if (header.kind == SET_BITMAP)
		return walk_bitmap(in, header.count, pages, fn, arg);
	if (header.kind == SET_RUNS)
		return walk_runs(in, header.count, pages, fn, arg);
	return -EBADMSG;
}

int64_t gy_set_for_each(const uint8_t *in, uint64_t len, uint64_t pages, gy_set_fn *fn, void *arg)
{
	int64_t n = walk(in, len, pages, NULL, NULL);

	/* Two passes: a set that is malformed at its end must change nothing at its start. */
	return n < 0 ? n : walk(in, len, pages, fn, arg);
}

static void or_run(void *arg, uint64_t first, uint64_t count)
{
	uint64_t *bitmap = arg;

	for (uint64_t page = first; page < first + count; page++)
		bitmap[page / 64] |= 1ull << (page % 64);
}

int64_t gy_set_decode(const uint8_t *in, uint64_t len, uint64_t *bitmap, uint64_t pages)
{
	return gy_set_for_each(in, len, pages, or_run, bitmap);
}
