// SPDX-License-Identifier: Apache-2.0
/*
 * ring0_stamp.c - the same head as the Linux guest's stamps, and one value of it in all the words behind: written and
 * compared by one instruction each, as some KVMs emulate what ring 0 does, one instruction after the other.
 */
#include "guest.h"

#define HEAD 3u /* words: magic, page, version */
#define BODY (PAGE_WORDS - HEAD)

/* Other for each page and version, and never 0. */
static uint64_t value_of(struct stamp stamp)
{
	return mix(stamp.page << 32 ^ stamp.version) | 1;
}

/* Whether all of the body is `value`. */
static bool is_all(const uint64_t *words, uint64_t value)
{
	const uint64_t *at = words + HEAD;
	uint64_t left = BODY;
	bool same;

	__asm__ volatile("repe scasq" : "+D"(at), "+c"(left), "=@ccz"(same) : "a"(value) : "memory");
	return same;
}

void stamp_write(uint64_t *words, struct stamp stamp)
{
	uint64_t *at = words + HEAD;
	uint64_t left = BODY;

	words[0] = STAMP_MAGIC;
	words[1] = stamp.page;
	words[2] = stamp.version;
	__asm__ volatile("rep stosq" : "+D"(at), "+c"(left) : "a"(value_of(stamp)) : "memory");
}

static bool is_stamp(const uint64_t *words, struct stamp stamp)
{
	return words[0] == STAMP_MAGIC && words[1] == stamp.page && words[2] == stamp.version &&
	       is_all(words, value_of(stamp));
}

enum damage stamp_check(const uint64_t *words, struct stamp want, struct stamp *got)
{
	if (is_stamp(words, want))
		return WHOLE;
	*got = (struct stamp){ .page = words[1], .version = words[2] };
	if (is_stamp(words, *got))
		return STALE;
	return words[0] || words[1] || words[2] || !is_all(words, 0) ? TORN : ZERO;
}

const char *damage_name(enum damage damage)
{
	static const char *const NAMES[] = { "whole", "stale", "zero", "torn" };

	return NAMES[damage];
}
