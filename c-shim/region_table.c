// SPDX-License-Identifier: Apache-2.0
/* region_table.c - see region_table.h. */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "gyges.h"
#include "region_table.h"

static_assert(sizeof(struct gyges_region) == 24, "wire format, see lib/wire/messages.ts");

static bool is_valid(const struct region_table *table, uint64_t pages)
{
	uint64_t end = 0;

	for (uint32_t i = 0; i < table->count; i++) {
		const struct gyges_region *region = &table->region[i];
		uint64_t last;

		if (!region->pages || region->first_page < end || region->first_page >= pages ||
		    region->pages > pages - region->first_page)
			return false;
		if (__builtin_add_overflow(region->remote_addr, (uint64_t)region->pages * GY_PAGE_BYTES - 1, &last))
			return false;
		end = region->first_page + region->pages;
	}
	return true;
}

int region_table_read(const uint8_t *bytes, uint64_t len, uint64_t pages, struct region_table **out)
{
	struct region_table *table;

	/* A region has a page at least, so a right table has no more entries than that. */
	if (len % sizeof(table->region[0]) || len / sizeof(table->region[0]) > pages)
		return -EINVAL;
	table = malloc(sizeof(*table) + len);
	if (!table)
		return -ENOMEM;
	table->count = (uint32_t)(len / sizeof(table->region[0]));
	memcpy(table->region, bytes, len);
	if (!is_valid(table, pages)) {
		free(table);
		return -EINVAL;
	}
	*out = table;
	return 0;
}

const struct gyges_region *region_table_find(const struct region_table *table, uint64_t page)
{
	uint32_t lo = 0, hi = table ? table->count : 0;

	while (lo < hi) {
		uint32_t mid = lo + (hi - lo) / 2;
		const struct gyges_region *region = &table->region[mid];

		if (page < region->first_page)
			hi = mid;
		else if (page - region->first_page < region->pages)
			return region;
		else
			lo = mid + 1;
	}
	return NULL;
}

bool region_table_covers(const struct region_table *table, const gy_word *set, uint64_t pages)
{
	uint64_t from = 0;

	for (uint32_t i = 0; table && i < table->count; i++) {
		const struct gyges_region *region = &table->region[i];

		if (bitmap_next(set, from, region->first_page, true) < region->first_page)
			return false;
		from = region->first_page + region->pages;
	}
	return bitmap_next(set, from, pages, true) >= pages;
}

static void clear_range(gy_word *set, uint64_t first, uint64_t end)
{
	for (; first < end; first++)
		bitmap_clear(set, first);
}

void region_table_clip(const struct region_table *table, gy_word *set, uint64_t pages)
{
	uint64_t end = 0;

	for (uint32_t i = 0; i < table->count; i++) {
		clear_range(set, end, table->region[i].first_page);
		end = table->region[i].first_page + table->region[i].pages;
	}
	clear_range(set, end, pages);
}
