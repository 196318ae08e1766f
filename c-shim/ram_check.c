// SPDX-License-Identifier: Apache-2.0
/*
 * ram_check.c - the check of the stopped machine's whole RAM, from the host: every byte of every page but the
 * stacks is compared with what the guest must have left there.
 *
 * A page that the guest has found corrupt and mended looks right here afterwards; its account still counts it.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "guest/guest_abi.h"
#include "guest/stamp.h"
#include "kvm.h"
#include "workload.h"

#define CHUNK_PAGES 256u
#define PAGE_WORDS (GY_PAGE_BYTES / sizeof(uint64_t))

struct check {
	struct gy_vm *vm;
	struct gy_ram_check *result;
	uint32_t *shadow;		/* version of every page of RAM */
	struct gy_guest_account account[GY_VM_MAX_VCPUS];
	uint64_t version_sum[GY_VM_MAX_VCPUS];
	uint64_t *chunk;
};

static const uint64_t zero_page[PAGE_WORDS];

static void bad(struct check *check, uint64_t page)
{
	check->result->bad_pages++;
	if (page < check->result->first_bad_page)
		check->result->first_bad_page = page;
}

static bool all_zero(const uint64_t *words)
{
	return words == zero_page || !memcmp(words, zero_page, GY_PAGE_BYTES);
}

/* ---- workload pages ---- */

static uint64_t word_of(uint64_t page, uint32_t version, uint32_t line, uint32_t word)
{
	uint32_t line_version = gy_stamp_line_version(version, line);

	if (!version)
		return 0;
	return gy_stamp_line_word(page, line_version, line, gy_stamp_mix(page, line_version, line), word);
}

static bool stamp_good(const uint64_t *words, uint64_t page, uint32_t version)
{
	for (uint32_t line = 0; line < GY_STAMP_LINES; line++) {
		if (!gy_stamp_line_good(words + line * GY_STAMP_LINE_WORDS, page,
					gy_stamp_line_version(version, line), line))
			return false;
	}
	return true;
}

/* The guest was stopped between two stores to this page: each word is that of one version or of the next. */
static bool inflight_good(const uint64_t *words, uint64_t page, uint32_t version)
{
	uint32_t next = version == UINT32_MAX ? 1 : version + 1;

	for (uint32_t i = 0; i < GY_STAMP_WORDS; i++) {
		uint32_t line = i / GY_STAMP_LINE_WORDS, word = i % GY_STAMP_LINE_WORDS;

		if (words[i] != word_of(page, version, line, word) && words[i] != word_of(page, next, line, word))
			return false;
	}
	return true;
}

static void check_workload_page(struct check *check, uint64_t page, const uint64_t *words)
{
	const struct gy_guest_layout *layout = &check->vm->layout;
	uint32_t version = check->shadow[page];
	uint64_t vcpu = (page - layout->first_page) % check->vm->config.vcpus;

	if (page >= layout->set_end_page) {
		if (version || !all_zero(words))
			bad(check, page);
		else
			check->result->zero_pages++;
		return;
	}
	check->version_sum[vcpu] += version;
	if (check->account[vcpu].inflight == page + 1) {
		check->result->filled_pages++;
		if (!inflight_good(words, page, version))
			bad(check, page);
	} else if (version) {
		check->result->filled_pages++;
		if (!stamp_good(words, page, version))
			bad(check, page);
	} else if (all_zero(words)) {
		check->result->zero_pages++;
	} else {
		bad(check, page);
	}
}

/* ---- the pages below ---- */

static void check_boot_page(struct check *check, uint64_t page, const uint64_t *words)
{
	uint64_t expected[PAGE_WORDS];

	gy_guest_page_make(check->vm, page, expected);
	((struct gy_guest_boot *)expected)->stall_generation =
		((const struct gy_guest_boot *)words)->stall_generation;
	if (memcmp(words, expected, GY_PAGE_BYTES))
		bad(check, page);
}

static void check_made_page(struct check *check, uint64_t page, const uint64_t *words)
{
	uint64_t expected[PAGE_WORDS];

	gy_guest_page_make(check->vm, page, expected);
	if (memcmp(words, expected, GY_PAGE_BYTES))
		bad(check, page);
}

static void check_account_page(struct check *check, uint64_t page, const uint64_t *words)
{
	const struct gy_guest_account *account = (const void *)words;
	uint64_t vcpu = page - GY_GUEST_ACCOUNT_PAGE;

	if (vcpu >= check->vm->config.vcpus) {
		if (!all_zero(words))
			bad(check, page);
	} else if (account->magic != GY_GUEST_ACCOUNT_MAGIC || account->vcpu != vcpu) {
		bad(check, page);
	}
}

/* Only workload pages have versions. */
static void check_shadow_page(struct check *check, uint64_t page, const uint64_t *words)
{
	const uint32_t *versions = (const uint32_t *)words;
	uint64_t first = (page - check->vm->layout.shadow_page) * GY_PAGE_BYTES / sizeof(uint32_t);

	for (uint64_t i = 0; first + i < check->vm->layout.first_page && i < GY_PAGE_BYTES / sizeof(uint32_t); i++) {
		if (versions[i]) {
			bad(check, page);
			return;
		}
	}
}

static void check_page(struct check *check, uint64_t page, const uint64_t *words)
{
	switch (gy_guest_page_kind(check->vm, page)) {
	case GY_PAGE_WORKLOAD:
		check_workload_page(check, page, words);
		return;
	case GY_PAGE_SHADOW:
		check_shadow_page(check, page, words);
		return;
	case GY_PAGE_BOOT:
		check_boot_page(check, page, words);
		return;
	case GY_PAGE_ACCOUNT:
		check_account_page(check, page, words);
		return;
	case GY_PAGE_STACK:
		return;
	case GY_PAGE_ABSENT:
	case GY_PAGE_IMAGE:
	case GY_PAGE_TABLES:
		check_made_page(check, page, words);
		return;
	}
}

/*
 * A page, its versions and nothing else stale would agree with each other; the account would not: versions
 * only change with what it counts. A guest that mended pages has lost count, and pages known to be bad say enough.
 */
static void check_version_sums(struct check *check)
{
	for (uint32_t i = 0; i < check->vm->config.vcpus; i++) {
		const struct gy_guest_account *account = &check->account[i];
		uint64_t sum = account->filled_pages + account->written_pages - account->wraps * UINT32_MAX;
		uint64_t ahead = check->version_sum[i] - sum;

		if (account->corrupt || !ahead || (account->inflight && ahead == 1))
			continue;
		bad(check, GY_GUEST_ACCOUNT_PAGE + i);
	}
}

/* ---- all of RAM ---- */

static int read_shadow(struct check *check)
{
	int64_t n = gy_ram_read(check->vm->ram, check->vm->layout.shadow_page * GY_PAGE_BYTES, check->shadow,
				check->vm->ram->pages * sizeof(uint32_t));

	return n < 0 ? (int)n : 0;
}

static int read_accounts(struct check *check)
{
	for (uint32_t i = 0; i < check->vm->config.vcpus; i++) {
		int ret = gy_workload_account(check->vm, i, &check->account[i]);

		if (ret && ret != -ENODATA)
			return ret;
	}
	return 0;
}

static int check_data(struct check *check, uint64_t first, uint64_t end)
{
	for (uint64_t page = first; page < end; page += CHUNK_PAGES) {
		uint64_t n = end - page < CHUNK_PAGES ? end - page : CHUNK_PAGES;
		int64_t ret = gy_ram_read(check->vm->ram, page * GY_PAGE_BYTES, check->chunk, n * GY_PAGE_BYTES);

		if (ret < 0)
			return (int)ret;
		for (uint64_t i = 0; i < n; i++)
			check_page(check, page + i, check->chunk + i * PAGE_WORDS);
	}
	return 0;
}

/* Holes are zeros without being read: most of a large and little used RAM. */
static int check_all(struct check *check)
{
	uint64_t bytes = check->vm->ram->bytes;

	for (uint64_t at = 0; at < bytes;) {
		int64_t data = gy_ram_seek(check->vm->ram, at, 1);
		int64_t hole = data < 0 ? data : gy_ram_seek(check->vm->ram, (uint64_t)data, 0);
		int ret;

		if (hole < 0)
			return (int)hole;
		for (uint64_t page = at / GY_PAGE_BYTES; page < (uint64_t)data / GY_PAGE_BYTES; page++)
			check_page(check, page, zero_page);
		ret = check_data(check, (uint64_t)data / GY_PAGE_BYTES, (uint64_t)hole / GY_PAGE_BYTES);
		if (ret)
			return ret;
		at = (uint64_t)hole;
	}
	if (!check->result->bad_pages)
		check_version_sums(check);
	return 0;
}

int gy_vm_check_ram(struct gy_vm *vm, struct gy_ram_check *result)
{
	struct check check = { .vm = vm, .result = result };
	int ret;

	if (gy_vm_running(vm))
		return -EBUSY;
	*result = (struct gy_ram_check){ .pages = vm->ram->pages, .first_bad_page = UINT64_MAX };
	check.shadow = malloc(vm->ram->pages * sizeof(uint32_t));
	check.chunk = malloc((uint64_t)CHUNK_PAGES * GY_PAGE_BYTES);
	ret = check.shadow && check.chunk ? 0 : -ENOMEM;
	if (!ret)
		ret = read_shadow(&check);
	if (!ret)
		ret = read_accounts(&check);
	if (!ret)
		ret = check_all(&check);
	free(check.chunk);
	free(check.shadow);
	return ret;
}
