// SPDX-License-Identifier: Apache-2.0
/* inject.c - see inject.h. */
#include <errno.h>
#include <stdatomic.h>

#include "bitmap.h"
#include "inject.h"

static _Atomic(uint32_t) armed;
static _Atomic(uint64_t) at_page;
static _Atomic(uint64_t) end_page;

int gy_inject(uint32_t what, uint64_t page, uint64_t pages)
{
	if (what > GY_INJECT_ABSENT_PAGE || page + pages < page)
		return -EINVAL;
	atomic_store(&at_page, page);
	atomic_store(&end_page, page + pages);
	atomic_store(&armed, what);
	return 0;
}

bool inject_take(enum gy_inject what, uint64_t first, uint64_t count, uint64_t *page)
{
	uint32_t expected = what;
	uint64_t at;

	if (atomic_load_explicit(&armed, memory_order_relaxed) != what)
		return false;
	at = atomic_load(&at_page);
	if (at >= first + count || (what == GY_INJECT_ZERO_PAGE && at < first))
		return false;
	*page = at < first ? first : at;
	return atomic_compare_exchange_strong(&armed, &expected, GY_INJECT_NONE);
}

int gy_inject_skip_dirty(uint64_t *bitmap, uint64_t pages)
{
	uint64_t page = atomic_load(&at_page), end = atomic_load(&end_page), taken;

	if (atomic_load(&armed) != GY_INJECT_SKIP_DIRTY)
		return 0;
	if (end - page > 1) {
		for (; page < end && page < pages; page++)
			bitmap_clear((gy_word *)bitmap, page);
		return 0;
	}
	page = bitmap_next((gy_word *)bitmap, page, pages, true);
	if (page < pages && inject_take(GY_INJECT_SKIP_DIRTY, page, 1, &taken))
		bitmap_clear((gy_word *)bitmap, taken);
	return 0;
}
