// SPDX-License-Identifier: Apache-2.0
/* region_table_test.c - what the source says of its memory is taken in whole or not at all, and found again. */
#include <errno.h>

#include "../../c-shim/region_table.h"
#include "check.h"

#define PAGES 1000u

static int read_table(const struct gyges_region *region, uint32_t n, struct region_table **table)
{
	return region_table_read((const uint8_t *)region, n * sizeof(*region), PAGES, table);
}

static void refuses_what_cannot_be_right(void)
{
	static const struct gyges_region wrong[][2] = {
		{ { .first_page = 0, .pages = 0 } },
		{ { .first_page = PAGES, .pages = 1 } },
		{ { .first_page = PAGES - 1, .pages = 2 } },
		{ { .first_page = UINT64_MAX, .pages = 1 } },
		{ { .first_page = 0, .pages = UINT32_MAX } },
		{ { .first_page = 0, .pages = 2, .remote_addr = UINT64_MAX - 2 * 4096 + 2 } },
		{ { .first_page = 0, .pages = 10 }, { .first_page = 9, .pages = 1 } },
		{ { .first_page = 20, .pages = 1 }, { .first_page = 10, .pages = 1 } },
		{ { .first_page = 20, .pages = 1 }, { .first_page = 20, .pages = 1 } },
	};
	struct gyges_region many[PAGES + 1];
	struct region_table *table;

	for (uint32_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++)
		CHECK_EQUAL(read_table(wrong[i], wrong[i][1].pages ? 2 : 1, &table), -EINVAL);
	for (uint32_t i = 0; i <= PAGES; i++)
		many[i] = (struct gyges_region){ .first_page = i, .pages = 1 };
	CHECK_EQUAL(read_table(many, PAGES + 1, &table), -EINVAL);
	CHECK_EQUAL(region_table_read((const uint8_t *)many, sizeof(many[0]) + 1, PAGES, &table), -EINVAL);
	CHECK_EQUAL(region_table_read((const uint8_t *)many, sizeof(many[0]) - 1, PAGES, &table), -EINVAL);
	/* The control: as many entries as there are pages are right. */
	CHECK_EQUAL(read_table(many, PAGES, &table), 0);
	free(table);
}

static void takes_the_last_byte_of_the_address_space(void)
{
	const struct gyges_region region = { .pages = 2, .remote_addr = UINT64_MAX - 2 * 4096 + 1 };
	struct region_table *table;

	CHECK_EQUAL(read_table(&region, 1, &table), 0);
	free(table);
}

/* Against the plain answer, page by page, over tables with and without gaps. */
static void finds_each_page_in_its_region(void)
{
	uint64_t seed = 7;

	for (int round = 0; round < 200; round++) {
		struct gyges_region region[PAGES];
		uint64_t owner[PAGES] = { 0 };
		struct region_table *table;
		uint64_t at = 0;
		uint32_t n = 0;

		while (at < PAGES) {
			uint64_t gap = random_below(&seed, 3) ? 0 : random_below(&seed, 20);
			uint64_t pages = 1 + random_below(&seed, 40);

			at += gap;
			if (at + pages > PAGES)
				break;
			region[n] = (struct gyges_region){ .first_page = at, .pages = (uint32_t)pages, .rkey = n + 1 };
			n++;
			for (uint64_t i = 0; i < pages; i++)
				owner[at + i] = n;
			at += pages;
		}
		CHECK_EQUAL(read_table(region, n, &table), 0);
		for (uint64_t page = 0; page < PAGES; page++) {
			const struct gyges_region *found = region_table_find(table, page);

			CHECK_EQUAL(found ? found->rkey : 0, owner[page]);
		}
		for (uint64_t page = 0; page < PAGES; page++) {
			gy_word set[(PAGES + 63) / 64] = { 0 };

			bitmap_set(set, page);
			CHECK_EQUAL(region_table_covers(table, set, PAGES), owner[page] != 0);
		}
		free(table);
	}
}

static void without_a_table_covers_nothing_but_the_empty_set(void)
{
	gy_word set[(PAGES + 63) / 64] = { 0 };

	CHECK(!region_table_find(NULL, 0));
	CHECK(region_table_covers(NULL, set, PAGES));
	bitmap_set(set, PAGES - 1);
	CHECK(!region_table_covers(NULL, set, PAGES));
}

int main(void)
{
	refuses_what_cannot_be_right();
	takes_the_last_byte_of_the_address_space();
	finds_each_page_in_its_region();
	without_a_table_covers_nothing_but_the_empty_set();
	return 0;
}
