/* SPDX-License-Identifier: Apache-2.0 */
/* bitmap.h - page bitmaps that several threads change at once; bit i of word w is page 64 w + i. */
#ifndef GY_BITMAP_H
#define GY_BITMAP_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef _Atomic(uint64_t) gy_word;

static inline uint64_t bitmap_words(uint64_t pages)
{
	return (pages + 63) / 64;
}

static inline bool bitmap_test(const gy_word *map, uint64_t page)
{
	return atomic_load(&map[page / 64]) >> (page % 64) & 1;
}

/* Both return whether this call changed the bit: the one atomic operation by which a page is claimed. */
static inline bool bitmap_set(gy_word *map, uint64_t page)
{
	uint64_t bit = 1ull << (page % 64);

	return !(atomic_fetch_or(&map[page / 64], bit) & bit);
}

static inline bool bitmap_clear(gy_word *map, uint64_t page)
{
	uint64_t bit = 1ull << (page % 64);

	return atomic_fetch_and(&map[page / 64], ~bit) & bit;
}

/*
 * First page in [from, end) for which "in @map and not in @except" is @value; @end if there is none. @except may be
 * NULL. A hint only, while others write.
 */
static inline uint64_t bitmap_next_except(const gy_word *map, const gy_word *except, uint64_t from, uint64_t end,
					  bool value)
{
	uint64_t flip = value ? 0 : ~0ull;

	while (from < end) {
		uint64_t word = atomic_load_explicit(&map[from / 64], memory_order_relaxed);

		if (except)
			word &= ~atomic_load_explicit(&except[from / 64], memory_order_relaxed);
		word = (word ^ flip) >> (from % 64);
		if (word) {
			from += (uint64_t)__builtin_ctzll(word);
			return from < end ? from : end;
		}
		from = (from / 64 + 1) * 64;
	}
	return end;
}

static inline uint64_t bitmap_next(const gy_word *map, uint64_t from, uint64_t end, bool value)
{
	return bitmap_next_except(map, NULL, from, end, value);
}

static inline uint64_t bitmap_count(const gy_word *map, uint64_t pages)
{
	uint64_t n = 0;

	for (uint64_t w = 0; w < bitmap_words(pages); w++)
		n += (uint64_t)__builtin_popcountll(atomic_load_explicit(&map[w], memory_order_relaxed));
	return n;
}

#endif
