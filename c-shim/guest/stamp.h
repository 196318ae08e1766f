/* SPDX-License-Identifier: Apache-2.0 */
/*
 * stamp.h - what a workload page holds, in closed form: every one of its 512 words follows from the page's
 * number and its version, so that the guest can check some of it at each touch and the host all of it.
 *
 * 64 lines of 64 bytes. Line 0 (header) and line 63 (tail) are rewritten at every version and begin with the
 * page's number and the version. The 62 body lines are rewritten in turn, one at each version, so a page that
 * missed any of its last 62 rewrites shows it, and the newest body line shows a page that missed the last.
 * Version 0 is a page never written: zeros. After UINT32_MAX comes 1, with the whole page filled anew.
 */
#ifndef GY_STAMP_H
#define GY_STAMP_H

#include <stdint.h>

#define GY_STAMP_MAGIC 0x47790001ull
#define GY_STAMP_LINES 64u
#define GY_STAMP_LINE_WORDS 8u
#define GY_STAMP_WORDS 512u
#define GY_STAMP_TAIL 63u
#define GY_STAMP_BODY_LINES 62u

/* The body line that is rewritten when a page gets @version. */
static inline uint32_t gy_stamp_body_line(uint32_t version)
{
	return 1 + version % GY_STAMP_BODY_LINES;
}

/* The version that @line holds in a page of @version. */
static inline uint32_t gy_stamp_line_version(uint32_t version, uint32_t line)
{
	uint32_t age;

	if (!line || line == GY_STAMP_TAIL)
		return version;
	age = (version % GY_STAMP_BODY_LINES + GY_STAMP_BODY_LINES - (line - 1)) % GY_STAMP_BODY_LINES;
	return version > age ? version - age : 1;
}

/* The finaliser of splitmix64: page, version and line spread over 64 bits. */
static inline uint64_t gy_stamp_mix(uint64_t page, uint32_t line_version, uint32_t line)
{
	uint64_t x = page * 0x9e3779b97f4a7c15ull + ((uint64_t)line_version << 6 | line);

	x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9ull;
	x = (x ^ x >> 27) * 0x94d049bb133111ebull;
	return x ^ x >> 31;
}

/* Word @word of @line, whose mix is @mix. */
static inline uint64_t gy_stamp_line_word(uint64_t page, uint32_t line_version, uint32_t line, uint64_t mix,
					  uint32_t word)
{
	if (word < 2 && (!line || line == GY_STAMP_TAIL))
		return word ? line_version : GY_STAMP_MAGIC << 32 | page;
	return mix + word * 0xd1342543de82ef95ull;
}

static inline int gy_stamp_line_good(const volatile uint64_t *words, uint64_t page, uint32_t line_version,
				     uint32_t line)
{
	uint64_t mix = gy_stamp_mix(page, line_version, line);
	uint64_t wrong = 0;

	for (uint32_t i = 0; i < GY_STAMP_LINE_WORDS; i++)
		wrong |= words[i] ^ gy_stamp_line_word(page, line_version, line, mix, i);
	return !wrong;
}

static inline void gy_stamp_line_write(volatile uint64_t *words, uint64_t page, uint32_t line_version,
				       uint32_t line)
{
	uint64_t mix = gy_stamp_mix(page, line_version, line);

	for (uint32_t i = 0; i < GY_STAMP_LINE_WORDS; i++)
		words[i] = gy_stamp_line_word(page, line_version, line, mix, i);
}

#endif
