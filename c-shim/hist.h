/* SPDX-License-Identifier: Apache-2.0 */
/* hist.h - add to a struct gy_hist, and read percentiles from one. Also compiled into the guest: integers only. */
#ifndef GY_HIST_H
#define GY_HIST_H

#include "stats.h"

static inline uint32_t gy_hist_index(uint64_t value)
{
	uint32_t exponent, index;

	if (value < 8)
		return (uint32_t)value;
	exponent = 63u - (uint32_t)__builtin_clzll(value);
	index = (exponent - 2u) * 8u + (uint32_t)((value >> (exponent - 3u)) & 7u);
	/* The last bucket takes everything above 2^42: 73 minutes, in nanoseconds. */
	return index < GY_HIST_BUCKETS ? index : GY_HIST_BUCKETS - 1;
}

/* Largest value that falls in a bucket. */
static inline uint64_t gy_hist_bucket_max(uint32_t index)
{
	if (index < 8)
		return index;
	if (index >= GY_HIST_BUCKETS - 1)
		return UINT64_MAX;
	return ((9ull + index % 8) << (index / 8 - 1)) - 1;
}

/* Any number of writers; a reader may see one value counted in part of the fields. */
static inline void gy_hist_add(struct gy_hist *hist, uint64_t value)
{
	uint64_t max = __atomic_load_n(&hist->max, __ATOMIC_RELAXED);

	__atomic_fetch_add(&hist->bucket[gy_hist_index(value)], 1, __ATOMIC_RELAXED);
	__atomic_fetch_add(&hist->sum, value, __ATOMIC_RELAXED);
	__atomic_fetch_add(&hist->n, 1, __ATOMIC_RELAXED);
	while (value > max && !__atomic_compare_exchange_n(&hist->max, &max, value, 1, __ATOMIC_RELAXED,
							   __ATOMIC_RELAXED))
		;
}

/* Adds one histogram to another; @to has one writer and @from none. */
static inline void gy_hist_merge(struct gy_hist *to, const struct gy_hist *from)
{
	to->n += from->n;
	to->sum += from->sum;
	if (from->max > to->max)
		to->max = from->max;
	for (uint32_t i = 0; i < GY_HIST_BUCKETS; i++)
		to->bucket[i] += from->bucket[i];
}

/*
 * Value that @per_10000 of 10000 entries do not exceed (9990: p99.9): the upper edge of its bucket, at most
 * 1/8 too high, and never above the largest value seen. 0 for an empty histogram.
 */
static inline uint64_t gy_hist_percentile(const struct gy_hist *hist, uint32_t per_10000)
{
	uint64_t total = 0, rank, seen = 0, edge;

	for (uint32_t i = 0; i < GY_HIST_BUCKETS; i++)
		total += __atomic_load_n(&hist->bucket[i], __ATOMIC_RELAXED);
	if (!total)
		return 0;
	rank = total / 10000 * per_10000 + (total % 10000 * per_10000 + 9999) / 10000;
	for (uint32_t i = 0; i < GY_HIST_BUCKETS; i++) {
		seen += __atomic_load_n(&hist->bucket[i], __ATOMIC_RELAXED);
		if (seen < rank || !seen)
			continue;
		edge = gy_hist_bucket_max(i);
		return edge < hist->max ? edge : hist->max;
	}
	return hist->max;
}

#endif
