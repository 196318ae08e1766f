// SPDX-License-Identifier: Apache-2.0
/* hold_test.c - pages that somebody has punched out of a RAM file are missed by a mapping that holds them, in both ways. */
#include <errno.h>
#include <sys/mman.h>

#include "check.h"
#include "hold.h"
#include "ram.h"

/* More than one read and one page table have. */
#define BYTES (64ull << 20)
#define PAGES (BYTES / GY_PAGE_BYTES)

/* The kernel may not know one of the ways. */
static void check_broken(const struct hold *hold, int broken)
{
	int scanned = hold_scan(hold);

	if (scanned != -ENOTTY)
		CHECK_EQUAL(scanned, broken);
	CHECK_EQUAL(hold_read(hold), broken);
	CHECK_EQUAL(hold_broken(hold), broken);
}

static void fill(struct gy_ram *ram, uint64_t page)
{
	*(volatile uint8_t *)(ram->guest + page * GY_PAGE_BYTES) = 1;
}

static void test_page(uint64_t page)
{
	struct gy_ram *ram;
	struct hold hold;

	CHECK(!gy_ram_create(BYTES, &ram));
	for (uint64_t i = 0; i < PAGES; i++)
		fill(ram, i);
	CHECK(!madvise(ram->alias, BYTES, MADV_POPULATE_READ));
	CHECK(!hold_begin(&hold, ram->alias, BYTES, NULL));
	check_broken(&hold, 0);
	/* Writes are none of its business, nor what another mapping has. */
	fill(ram, page);
	CHECK(!madvise(ram->guest, BYTES, MADV_DONTNEED));
	check_broken(&hold, 0);
	CHECK(!gy_ram_punch(ram, page * GY_PAGE_BYTES, GY_PAGE_BYTES));
	check_broken(&hold, 1);
	/* Another page has come in its place, and its neighbours are looked at. */
	for (uint64_t i = 0; i < PAGES; i++)
		fill(ram, i);
	CHECK_EQUAL(gy_ram_allocated(ram), BYTES);
	check_broken(&hold, 1);
	hold_end(&hold);
	gy_ram_destroy(ram);
}

static void test_end(void)
{
	struct gy_ram *ram;
	struct hold hold;

	CHECK(!gy_ram_create(BYTES, &ram));
	CHECK(!hold_begin(&hold, ram->alias, BYTES, NULL));
	/* Nothing has come by the lock itself. */
	CHECK_EQUAL(gy_ram_allocated(ram), 0);
	check_broken(&hold, 1);
	hold_end(&hold);
	/* It can be had again. */
	CHECK(!hold_begin(&hold, ram->alias, BYTES, NULL));
	hold_end(&hold);
	gy_ram_destroy(ram);
}

int main(void)
{
	test_page(0);
	test_page(PAGES / 2 + 7);
	test_page(PAGES - 1);
	test_end();
	puts("hold_test: passed");
	return 0;
}
