/* SPDX-License-Identifier: Apache-2.0 */
/*
 * stamp.h - what the pages of a test are full of. A page's stamp is made of its number and a seed, all over the page, so
 * that a page that is old, torn or another is found.
 */
#ifndef STAMP_H
#define STAMP_H

#include <stdint.h>

#define PAGE 4096ull
#define WORDS_PER_PAGE (PAGE / 8)

static inline uint64_t stamp(uint64_t page, uint64_t seed, uint64_t word)
{
	uint64_t x = page * 0x9e3779b97f4a7c15ull + seed * 0xbf58476d1ce4e5b9ull + word;

	x ^= x >> 31;
	return x * 0x94d049bb133111ebull | 1;
}

static inline void fill_page(uint64_t *at, uint64_t page, uint64_t seed)
{
	for (uint64_t i = 0; i < WORDS_PER_PAGE; i++)
		at[i] = stamp(page, seed, i);
}

#endif
