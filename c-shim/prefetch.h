/* SPDX-License-Identifier: Apache-2.0 */
/*
 * prefetch.h - which missing pages to pull next, when no vCPU waits for them.
 *
 * Around each of the last faults, newest first: of the nearest missing page ahead and the nearest behind, both at
 * most PREFETCH_REACH pages from what was taken there already, the nearer (ahead when equal). A fault is worth
 * PREFETCH_NEAR pages; then, and when there is no such page, the sweep: from page 0 upwards.
 */
#ifndef GY_PREFETCH_H
#define GY_PREFETCH_H

#include "bitmap.h"

#define PREFETCH_FAULTS 8u
#define PREFETCH_NEAR 128u
#define PREFETCH_REACH 32u

struct prefetch_spot {
	uint64_t lo;	/* first page taken around this fault */
	uint64_t hi;	/* behind the last one */
	uint64_t left;	/* pages that this fault is still worth */
};

struct prefetch {
	/* Written by the fault thread alone, read by the others. */
	_Atomic(uint64_t) fault[PREFETCH_FAULTS];
	_Atomic(uint64_t) faults;
	/* Under the caller's lock. */
	uint64_t seen;
	struct prefetch_spot spot[PREFETCH_FAULTS];
	uint64_t sweep;
};

/* Fault thread only; takes no lock. */
void prefetch_fault(struct prefetch *prefetch, uint64_t page);
/*
 * Claims (clears in @missing) a run of at most @max pages. Returns its length, 0 when nothing is missing.
 * Others may claim single pages at the same time; a page is never given to two.
 */
uint32_t prefetch_claim(struct prefetch *prefetch, gy_word *missing, uint64_t pages, uint32_t max, uint64_t *first);
/* The sweep alone: pre-copy's order. Does not wrap: 0 once @*cursor has passed the last page. */
uint32_t prefetch_sweep(gy_word *missing, uint64_t pages, uint32_t max, uint64_t *cursor, uint64_t *first);

#endif
