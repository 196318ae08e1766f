/* SPDX-License-Identifier: Apache-2.0 */
/* clock.h - the one clock of the shim: CLOCK_MONOTONIC in nanoseconds. */
#ifndef GY_CLOCK_H
#define GY_CLOCK_H

#include <stdint.h>
#include <time.h>

#define NS_PER_MS 1000000ull
#define NS_PER_S 1000000000ull

static inline uint64_t now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * NS_PER_S + (uint64_t)t.tv_nsec;
}

static inline uint64_t deadline_after_ms(uint32_t ms)
{
	return now_ns() + ms * NS_PER_MS;
}

/* Milliseconds left for poll(), rounded up; 0 once the deadline has passed. */
static inline int ms_until(uint64_t deadline_ns)
{
	uint64_t now = now_ns();
	uint64_t ms = deadline_ns > now ? (deadline_ns - now + NS_PER_MS - 1) / NS_PER_MS : 0;

	return ms > 1000000 ? 1000000 : (int)ms;
}

#endif
