// SPDX-License-Identifier: Apache-2.0
/*
 * soft_dirty_test.c - writes of another process found by soft-dirty bits, also of pages whose mark is gone. Where the kernel
 * has no such bits, that it is refused, and the rule alone.
 */
#include <fcntl.h>

#include "pagemap.h"
#include "remote_fixture.h"
#include "soft_dirty.h"

#define PAGES (PIECES * PIECE_PAGES)

static int64_t collect(struct soft_dirty *soft, gy_word *bitmap)
{
	memset((void *)bitmap, 0, PAGES / 8);
	return soft_dirty_collect(soft, bitmap);
}

static void order(const struct other *other, char what, uint64_t page, uint8_t value)
{
	ask(other, what, page, value);
	answer(other);
}

static uint64_t word_of(const struct other *other, uint64_t page)
{
	uint64_t word, at = other->base[page / PIECE_PAGES] / GY_PAGE_BYTES + page % PIECE_PAGES;
	char path[64];
	int fd;

	snprintf(path, sizeof(path), "/proc/%d/pagemap", other->pid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	CHECK(fd >= 0 && pread(fd, &word, sizeof(word), (off_t)(at * sizeof(word))) == sizeof(word));
	close(fd);
	return word;
}

static void test_the_rule(void)
{
	static const struct {
		struct soft_dirty_page page;
		bool written;
	} cases[] = {
		{ { .held = true, .content = true, .theirs = PAGEMAP_PRESENT }, false },
		{ { .held = true, .content = true, .theirs = PAGEMAP_PRESENT | PAGEMAP_SOFT_DIRTY }, true },
		/* Being moved. */
		{ { .held = true, .content = true, .theirs = PAGEMAP_SWAPPED }, true },
		/* Never touched by it; touched and dropped. */
		{ { .held = true, .content = true }, false },
		{ { .held = true, .content = true, .was_mapped = true, .had_content = true }, true },
		/* Present without a mark, but not without a break. */
		{ { .content = true, .had_content = true, .theirs = PAGEMAP_PRESENT }, true },
		{ { .content = true }, true },
		/* A hole: punched, or as ever. */
		{ { .had_content = true }, true },
		{ { .theirs = 0 }, false },
	};

	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
		CHECK_EQUAL(soft_dirty_written(&cases[i].page), cases[i].written);
}

static void test_writes_are_found(struct soft_dirty *soft, const struct other *other, gy_word *bitmap)
{
	CHECK_EQUAL(collect(soft, bitmap), 0);
	/* One that was there, one that was not, one of the other piece, one only read. */
	order(other, 'w', 5, 2);
	order(other, 'w', 6, 2);
	order(other, 'w', PIECE_PAGES + 9, 2);
	order(other, 'r', 8, 0);
	CHECK_EQUAL(collect(soft, bitmap), 3);
	CHECK(bitmap_test(bitmap, 5) && bitmap_test(bitmap, 6) && bitmap_test(bitmap, PIECE_PAGES + 9));
	CHECK_EQUAL(collect(soft, bitmap), 0);
	/* The same, with the half that may be done before. */
	order(other, 'w', 5, 3);
	order(other, 'w', 10, 3);
	CHECK(!soft_dirty_prepare(soft));
	order(other, 'r', 11, 0);
	CHECK_EQUAL(collect(soft, bitmap), 2);
	CHECK(bitmap_test(bitmap, 5) && bitmap_test(bitmap, 10));
}

/* A page that is new since the last look goes from the page table, and is mapped again by a read. */
static void test_a_lost_mark_loses_no_write(struct soft_dirty *soft, const struct other *other, gy_word *bitmap)
{
	CHECK_EQUAL(collect(soft, bitmap), 0);
	order(other, 'w', 20, 4);
	order(other, 'p', 20, 0);
	CHECK(!(word_of(other, 20) & PAGEMAP_PRESENT));
	order(other, 'r', 20, 0);
	/* Control: the mark alone does not tell. */
	CHECK(word_of(other, 20) & PAGEMAP_PRESENT && !(word_of(other, 20) & PAGEMAP_SOFT_DIRTY));
	CHECK_EQUAL(collect(soft, bitmap), 1);
	CHECK(bitmap_test(bitmap, 20));
	CHECK_EQUAL(collect(soft, bitmap), 0);
	/* From then on it is held. */
	order(other, 'w', 20, 5);
	order(other, 'p', 20, 0);
	CHECK(word_of(other, 20) & PAGEMAP_PRESENT && word_of(other, 20) & PAGEMAP_SOFT_DIRTY);
	order(other, 'r', 20, 0);
	CHECK_EQUAL(collect(soft, bitmap), 1);
	CHECK(bitmap_test(bitmap, 20));
}

/* Somebody gives pages back; somebody else, as RDMA does, makes zeros of holes. */
static void test_holes(struct soft_dirty *soft, struct gy_ram *ram, const struct other *other, gy_word *bitmap)
{
	CHECK_EQUAL(collect(soft, bitmap), 0);
	CHECK(!gy_ram_punch(ram, 5 * GY_PAGE_BYTES, 2 * GY_PAGE_BYTES));
	order(other, 'r', 6, 0);
	*(volatile uint8_t *)(ram->alias + 30 * GY_PAGE_BYTES) = 0;
	CHECK_EQUAL(collect(soft, bitmap), 2);
	CHECK(bitmap_test(bitmap, 5) && bitmap_test(bitmap, 6));
	CHECK_EQUAL(collect(soft, bitmap), 0);
	order(other, 'w', 30, 1);
	CHECK_EQUAL(collect(soft, bitmap), 1);
	CHECK(bitmap_test(bitmap, 30));
}

int main(void)
{
	static gy_word bitmap[PAGES / 64];
	char words[512] = "";
	const struct gy_err err = { words, sizeof(words) };
	struct other other = start_other();
	struct gy_ram *ram = attach(&other);
	struct soft_dirty *soft;
	int ret;

	test_the_rule();
	order(&other, 'w', 5, 1);
	ret = soft_dirty_open(ram, &soft, &err);
	if (ret == -ENOTSUP) {
		CHECK(strstr(words, "no asynchronous write protection (Linux 6.7 has), and no soft-dirty bits"));
		puts("soft_dirty_test: refused, as it must be by this kernel; the lab has one where writes are found");
	} else {
		CHECK(!ret);
		CHECK_EQUAL(soft_dirty_collect(soft, NULL), 0);
		test_writes_are_found(soft, &other, bitmap);
		test_a_lost_mark_loses_no_write(soft, &other, bitmap);
		test_holes(soft, ram, &other, bitmap);
		soft_dirty_close(soft);
		puts("soft_dirty_test: passed");
	}
	gy_ram_destroy(ram);
	end_other(&other);
	return 0;
}
