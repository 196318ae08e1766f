// SPDX-License-Identifier: GPL-2.0
/* stats.c - counters and histograms of one RAM file. */
#include <linux/slab.h>

#include "gyges_internal.h"

int gyges_measures_make(struct gyges_inode *gi)
{
	lockdep_assert_held(&gi->ctl);
	if (gi->measures)
		return 0;
	gi->measures = kvzalloc(sizeof(*gi->measures), GFP_KERNEL_ACCOUNT | __GFP_NOWARN);
	return gi->measures ? 0 : -ENOMEM;
}

static unsigned int bucket_of(u64 value)
{
	unsigned int exponent, bucket;

	if (value < 8)
		return value;
	exponent = fls64(value) - 1;
	bucket = (exponent - 2) * 8 + ((value >> (exponent - 3)) & 7);
	return min_t(unsigned int, bucket, GYGES_HIST_BUCKETS - 1);
}

void gyges_hist_add(struct gyges_histogram *hist, u64 value)
{
	s64 max = atomic64_read(&hist->max);

	atomic64_inc(&hist->bucket[bucket_of(value)]);
	atomic64_add(value, &hist->sum);
	atomic64_inc(&hist->n);
	while (value > max && !atomic64_try_cmpxchg(&hist->max, &max, value))
		;
}

static void fill_hist(struct gyges_hist *to, const struct gyges_histogram *from)
{
	unsigned int i;

	to->n = atomic64_read(&from->n);
	to->sum = atomic64_read(&from->sum);
	to->max = atomic64_read(&from->max);
	for (i = 0; i < GYGES_HIST_BUCKETS; i++)
		to->bucket[i] = atomic64_read(&from->bucket[i]);
}

static void fill_counters(struct gyges_stats *stats, const struct gyges_counters *count)
{
	stats->precopy_pages = atomic64_read(&count->precopy_pages);
	stats->postcopy_pages = atomic64_read(&count->postcopy_pages);
	stats->demand_faults = atomic64_read(&count->demand_faults);
	stats->prefetched_pages = atomic64_read(&count->prefetched_pages);
	stats->zero_pages = atomic64_read(&count->zero_pages);
	stats->duplicate_pages = atomic64_read(&count->duplicate_pages);
	stats->wire_bytes = atomic64_read(&count->wire_bytes);
	stats->blocktime_ns = atomic64_read(&count->blocktime_ns);
	stats->discarded_pages = atomic64_read(&count->discarded_pages);
	stats->nowait_faults = atomic64_read(&count->nowait_faults);
	stats->nowait_slept = atomic64_read(&count->nowait_slept);
	stats->demand_reads = atomic64_read(&count->demand_reads);
	stats->prefetch_reads = atomic64_read(&count->prefetch_reads);
	stats->failed_reads = atomic64_read(&count->failed_reads);
	stats->joined_faults = atomic64_read(&count->joined_faults);
	stats->pinned_pages = atomic64_read(&count->pinned_pages);
	stats->registered_pieces = atomic64_read(&count->registered_pieces);
}

void gyges_stats_fill(struct gyges_inode *gi, struct gyges_stats *stats)
{
	struct gyges_import *imp = gi->import;

	lockdep_assert_held(&gi->ctl);
	memset(stats, 0, sizeof(*stats));
	stats->total_pages = gyges_pages(gi);
	if (gi->measures) {
		fill_counters(stats, &gi->measures->count);
		fill_hist(&stats->fault_latency, &gi->measures->fault_latency);
		fill_hist(&stats->read_latency, &gi->measures->read_latency);
	}
	stats->missing_pages = imp ? atomic64_read(&imp->n_missing) : 0;
	stats->present_pages = stats->total_pages - stats->missing_pages;
}
