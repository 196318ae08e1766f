// SPDX-License-Identifier: Apache-2.0
/* prefetch.c - see prefetch.h. */
#include "prefetch.h"

static uint64_t at_most(uint64_t a, uint64_t b)
{
	return a < b ? a : b;
}

void prefetch_fault(struct prefetch *prefetch, uint64_t page)
{
	uint64_t n = atomic_load_explicit(&prefetch->faults, memory_order_relaxed);

	atomic_store_explicit(&prefetch->fault[n % PREFETCH_FAULTS], page, memory_order_relaxed);
	atomic_store_explicit(&prefetch->faults, n + 1, memory_order_release);
}

static void take_up_faults(struct prefetch *prefetch)
{
	uint64_t n = atomic_load_explicit(&prefetch->faults, memory_order_acquire);

	if (n - prefetch->seen > PREFETCH_FAULTS)
		prefetch->seen = n - PREFETCH_FAULTS;
	for (; prefetch->seen < n; prefetch->seen++) {
		uint64_t page = atomic_load_explicit(&prefetch->fault[prefetch->seen % PREFETCH_FAULTS],
						     memory_order_relaxed);

		prefetch->spot[prefetch->seen % PREFETCH_FAULTS] =
			(struct prefetch_spot){ .lo = page, .hi = page + 1, .left = PREFETCH_NEAR };
	}
}

static uint32_t claim_up(gy_word *missing, uint64_t from, uint64_t end, uint32_t max)
{
	uint32_t n = 0;

	while (n < max && from + n < end && bitmap_clear(missing, from + n))
		n++;
	return n;
}

static uint32_t claim_down(gy_word *missing, uint64_t from, uint64_t begin, uint32_t max)
{
	uint32_t n = 0;

	while (n < max && from >= begin + n && bitmap_clear(missing, from - n))
		n++;
	return n;
}

/* Nearest missing page below @lo, at most PREFETCH_REACH away; false if there is none. */
static bool nearest_below(const gy_word *missing, uint64_t lo, uint64_t *page)
{
	uint64_t begin = lo > PREFETCH_REACH ? lo - PREFETCH_REACH : 0;

	for (uint64_t at = lo; at > begin; at--) {
		if (bitmap_test(missing, at - 1)) {
			*page = at - 1;
			return true;
		}
	}
	return false;
}

static uint32_t claim_near(struct prefetch_spot *spot, gy_word *missing, uint64_t pages, uint32_t max, uint64_t *first)
{
	uint64_t end = at_most(spot->hi + PREFETCH_REACH, pages);
	uint64_t above, below;
	bool down;
	uint32_t n;

	while (spot->left) {
		above = bitmap_next(missing, spot->hi, end, true);
		down = nearest_below(missing, spot->lo, &below);
		if (down && (above == end || spot->lo - 1 - below < above - spot->hi)) {
			n = claim_down(missing, below, 0, (uint32_t)at_most(max, spot->left));
			spot->lo = n ? below - n + 1 : below;
			*first = spot->lo;
		} else if (above < end) {
			n = claim_up(missing, above, pages, (uint32_t)at_most(max, spot->left));
			spot->hi = above + (n ? n : 1);
			*first = above;
		} else {
			spot->left = 0;
			return 0;
		}
		end = at_most(spot->hi + PREFETCH_REACH, pages);
		spot->left -= n;
		/* Nothing claimed: the fault thread was quicker with this very page; look on. */
		if (n)
			return n;
	}
	return 0;
}

uint32_t prefetch_sweep(gy_word *missing, uint64_t pages, uint32_t max, uint64_t *cursor, uint64_t *first)
{
	uint32_t n;

	do {
		*first = bitmap_next(missing, *cursor, pages, true);
		n = claim_up(missing, *first, pages, max);
		*cursor = *first < pages ? *first + (n ? n : 1) : pages;
	} while (!n && *cursor < pages);
	return n;
}

uint32_t prefetch_claim(struct prefetch *prefetch, gy_word *missing, uint64_t pages, uint32_t max, uint64_t *first)
{
	uint32_t n;

	take_up_faults(prefetch);
	for (uint64_t i = 1; i <= at_most(prefetch->seen, PREFETCH_FAULTS); i++) {
		n = claim_near(&prefetch->spot[(prefetch->seen - i) % PREFETCH_FAULTS], missing, pages, max, first);
		if (n)
			return n;
	}
	n = prefetch_sweep(missing, pages, max, &prefetch->sweep, first);
	if (n)
		return n;
	/* Pages handed back by a lost connection lie behind the sweep. */
	prefetch->sweep = 0;
	return prefetch_sweep(missing, pages, max, &prefetch->sweep, first);
}
