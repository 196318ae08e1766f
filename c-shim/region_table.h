/* SPDX-License-Identifier: Apache-2.0 */
/* region_table.h - where in the source's memory which page is, as the source says; it is not trusted. */
#ifndef GY_REGION_TABLE_H
#define GY_REGION_TABLE_H

#include <stdbool.h>
#include <stdint.h>

#include <linux/gyges.h>

#include "bitmap.h"

struct region_table {
	uint32_t count;
	struct gyges_region region[];	/* by first_page, without overlap, within the guest */
};

/*
 * Reads @len bytes, an array of struct gyges_region, for a guest of @pages. -EINVAL: not whole entries, not in order,
 * empty, overlapping, beyond the guest, or beyond the address space. -ENOMEM. free() frees it.
 */
int region_table_read(const uint8_t *bytes, uint64_t len, uint64_t pages, struct region_table **out);
/* The region of @page; NULL: the table has none. @table may be NULL. */
const struct gyges_region *region_table_find(const struct region_table *table, uint64_t page);
/* Whether every page of @set, over @pages pages, has a region. */
bool region_table_covers(const struct region_table *table, const gy_word *set, uint64_t pages);
/* Takes the pages that have no region out of @set. */
void region_table_clip(const struct region_table *table, gy_word *set, uint64_t pages);

#endif
