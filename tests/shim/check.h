/* SPDX-License-Identifier: Apache-2.0 */
/* check.h - what tests of the shim share: checks that end the test, and random numbers that come again. */
#ifndef CHECK_H
#define CHECK_H

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define CHECK(cond) \
	do { \
		if (!(cond)) { \
			fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #cond); \
			exit(1); \
		} \
	} while (0)

/* Shows both values when they differ. */
#define CHECK_EQUAL(have, want) \
	do { \
		int64_t have_ = (int64_t)(have), want_ = (int64_t)(want); \
		if (have_ != want_) { \
			fprintf(stderr, "%s:%d: %s is %" PRId64 ", must be %" PRId64 "\n", __FILE__, __LINE__, #have, \
				have_, want_); \
			exit(1); \
		} \
	} while (0)

#define CHECK_WORDS(text, part) \
	do { \
		if (!strstr(text, part)) { \
			fprintf(stderr, "%s:%d: \"%s\" must contain \"%s\"\n", __FILE__, __LINE__, text, part); \
			exit(1); \
		} \
	} while (0)

/* Counters are written by other threads while they are read. */
#define STAT(stats, name) __atomic_load_n(&(stats)->name, __ATOMIC_RELAXED)

/* xorshift64*; @state is not 0. */
static inline uint64_t random_next(uint64_t *state)
{
	*state ^= *state >> 12;
	*state ^= *state << 25;
	*state ^= *state >> 27;
	return *state * 0x2545f4914f6cdd1dull;
}

/* 0..below - 1 */
static inline uint64_t random_below(uint64_t *state, uint64_t below)
{
	return random_next(state) % below;
}

static inline void nap_ms(uint32_t ms)
{
	struct timespec nap = { .tv_sec = ms / 1000, .tv_nsec = (long)(ms % 1000) * 1000000 };

	nanosleep(&nap, NULL);
}

#endif
