// SPDX-License-Identifier: Apache-2.0
/* guest_stamp.c - a page that says which page it is and how new, in every one of its words. */
#include "guest.h"

#define STEP 0x9e3779b97f4a7c15ull
#define FIRST 3
#define CHECK (PAGE_WORDS - 1)

/* What the words between the head and the check word count up from. */
static uint64_t seed(struct stamp stamp)
{
	return mix(stamp.page << 32 ^ mix(stamp.version + STEP));
}

/* Of all words before it. */
static uint64_t check_word(const uint64_t *words)
{
	uint64_t sum = STEP;

	for (unsigned int i = 0; i < CHECK; i++)
		sum = (sum << 1 | sum >> 63) ^ words[i];
	return sum;
}

void stamp_write(uint64_t *words, struct stamp stamp)
{
	uint64_t value = seed(stamp);
	uint64_t sum = STEP;

	words[0] = STAMP_MAGIC;
	words[1] = stamp.page;
	words[2] = stamp.version;
	for (unsigned int i = 0; i < FIRST; i++)
		sum = (sum << 1 | sum >> 63) ^ words[i];
	for (unsigned int i = FIRST; i < CHECK; i++, value += STEP) {
		words[i] = value;
		sum = (sum << 1 | sum >> 63) ^ value;
	}
	words[CHECK] = sum;
}

static bool is_stamp(const uint64_t *words, struct stamp stamp)
{
	uint64_t value = seed(stamp);
	uint64_t wrong = (words[0] ^ STAMP_MAGIC) | (words[1] ^ stamp.page) | (words[2] ^ stamp.version);

	for (unsigned int i = FIRST; i < CHECK; i++, value += STEP)
		wrong |= words[i] ^ value;
	return !wrong && words[CHECK] == check_word(words);
}

static bool is_zero(const uint64_t *words)
{
	uint64_t any = 0;

	for (unsigned int i = 0; i < PAGE_WORDS; i++)
		any |= words[i];
	return !any;
}

enum damage stamp_check(const uint64_t *words, struct stamp want, struct stamp *got)
{
	if (is_stamp(words, want))
		return WHOLE;
	*got = (struct stamp){ .page = words[1], .version = words[2] };
	if (is_stamp(words, *got))
		return STALE;
	return is_zero(words) ? ZERO : TORN;
}

const char *damage_name(enum damage damage)
{
	static const char *const NAMES[] = { "whole", "stale", "zero", "torn" };

	return NAMES[damage];
}
