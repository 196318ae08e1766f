/* SPDX-License-Identifier: Apache-2.0 */
/* stats.h - blocks of counters that JavaScript reads without a call; part of gyges.h. */
#ifndef GY_STATS_H
#define GY_STATS_H

#include <stdint.h>

/*
 * Log-linear histogram: values below 8 have a bucket each; above, every power of two is divided in 8.
 * Bucket of v >= 8: e = 63 - clz(v); (e - 2) * 8 + ((v >> (e - 3)) & 7).
 */
#define GY_HIST_BUCKETS 320u

struct gy_hist {
	uint64_t n;
	uint64_t sum;
	uint64_t max;
	uint64_t bucket[GY_HIST_BUCKETS];
};

/* Counters of one side of one migration; each is written by C threads with relaxed atomics. */
struct gy_page_stats {
	uint64_t total_pages;
	uint64_t present_pages;		/* received, or known to be zero */
	uint64_t missing_pages;		/* still at the source */
	uint64_t precopy_pages;		/* pages pulled in pre-copy, with repeats */
	uint64_t postcopy_pages;	/* pages pulled after the switch */
	uint64_t demand_faults;		/* faults that waited for a page from the source */
	uint64_t prefetched_pages;	/* post-copy pages that no fault asked for */
	uint64_t zero_pages;		/* pages known to be zero, never on the wire */
	uint64_t duplicate_pages;	/* pages pulled again after the switch: must stay 0 */
	uint64_t wire_bytes;		/* page connections, both ways, headers included, before TLS */
	uint64_t blocktime_ns;		/* sum over vCPUs of time blocked on a missing page */
	uint64_t local_zero_faults;	/* faults answered here because the page is known to be zero */
	uint64_t late_faults;		/* fault messages whose page had arrived meanwhile */
	uint64_t discarded_pages;	/* pre-copied pages dropped again because the guest rewrote them */
	uint64_t reserved[2];
	struct gy_hist fault_latency;	/* ns, fault read to page placed */
};

#endif
