// SPDX-License-Identifier: Apache-2.0
/*
 * guest_load.c - what boot writes to guest RAM: boot page, accounts, program and page tables. One function makes
 * a page, so that the check of all RAM compares with exactly what was loaded.
 */
#include <errno.h>
#include <string.h>

#include "guest/guest_abi.h"
#include "kvm.h"

#define PTE_PRESENT (1ull << 0)
#define PTE_WRITE (1ull << 1)
#define PTE_USER (1ull << 2)
#define PTE_ACCESSED (1ull << 5)
#define PTE_DIRTY (1ull << 6)
#define PTE_LARGE (1ull << 7)
#define PTE_NO_EXECUTE (1ull << 63)
/* Accessed and dirty from the start: no walk of the tables ever writes to them. */
#define PTE_TABLE (PTE_PRESENT | PTE_WRITE | PTE_USER | PTE_ACCESSED)
#define PTE_READ (PTE_PRESENT | PTE_USER | PTE_ACCESSED | PTE_DIRTY)
#define PTE_DATA (PTE_READ | PTE_WRITE | PTE_NO_EXECUTE)

#define TABLE_ENTRIES 512u
#define LARGE_BYTES (2ull << 20)
/* A vCPU that is later than this, after a stop or on a busy host, does not run faster to make up for it. */
#define CATCH_UP_MS 20u

extern const uint8_t gy_guest_image[], gy_guest_image_end[];

enum gy_page_kind gy_guest_page_kind(const struct gy_vm *vm, uint64_t page)
{
	if (!page)
		return GY_PAGE_ABSENT;
	if (page == GY_GUEST_BOOT_PAGE)
		return GY_PAGE_BOOT;
	if (page < GY_GUEST_STACK_PAGE)
		return GY_PAGE_ACCOUNT;
	if (page < GY_GUEST_IMAGE_PAGE)
		return (page - GY_GUEST_STACK_PAGE) % 2 ? GY_PAGE_STACK : GY_PAGE_ABSENT;
	if (page < GY_GUEST_TABLES_PAGE)
		return GY_PAGE_IMAGE;
	if (page < vm->layout.shadow_page)
		return GY_PAGE_TABLES;
	return page < vm->layout.first_page ? GY_PAGE_SHADOW : GY_PAGE_WORKLOAD;
}

/* ---- page tables ---- */

static uint64_t table_gpa(enum gy_guest_table table)
{
	return GY_GUEST_GPA + (GY_GUEST_TABLES_PAGE + table) * GY_PAGE_BYTES;
}

/* The first 2 MiB, where every page has the rights that it needs and no more. */
static uint64_t low_entry(const struct gy_vm *vm, uint64_t page)
{
	uint64_t gpa = GY_GUEST_GPA + page * GY_PAGE_BYTES;

	switch (gy_guest_page_kind(vm, page)) {
	case GY_PAGE_ABSENT:
	case GY_PAGE_TABLES:
		return 0;
	case GY_PAGE_BOOT:
		return gpa | PTE_READ | PTE_NO_EXECUTE;
	case GY_PAGE_IMAGE:
		return gpa | PTE_READ;
	default:
		return gpa | PTE_DATA;
	}
}

static void make_pd(const struct gy_vm *vm, uint64_t gib, uint64_t *words)
{
	for (uint64_t i = 0; i < TABLE_ENTRIES; i++) {
		uint64_t offset = (gib << 30) + i * LARGE_BYTES;

		if (offset < vm->ram->bytes)
			words[i] = (GY_GUEST_GPA + offset) | PTE_DATA | PTE_LARGE;
	}
	if (!gib)
		words[0] = table_gpa(GY_GUEST_PT_LOW) | PTE_TABLE;
}

static void make_table(const struct gy_vm *vm, uint64_t table, uint64_t *words)
{
	switch (table) {
	case GY_GUEST_PML4:
		words[0] = table_gpa(GY_GUEST_PDPT) | PTE_TABLE;
		words[GY_DOORBELL_VA >> 39] = table_gpa(GY_GUEST_PDPT_DOORBELL) | PTE_TABLE;
		return;
	case GY_GUEST_PDPT:
		for (uint64_t i = 0; i < vm->layout.table_pages - GY_GUEST_PD; i++)
			words[i] = (table_gpa(GY_GUEST_PD) + i * GY_PAGE_BYTES) | PTE_TABLE;
		return;
	case GY_GUEST_PT_LOW:
		for (uint64_t i = 0; i < TABLE_ENTRIES; i++)
			words[i] = low_entry(vm, i);
		return;
	case GY_GUEST_PDPT_DOORBELL:
		words[0] = table_gpa(GY_GUEST_PD_DOORBELL) | PTE_TABLE;
		return;
	case GY_GUEST_PD_DOORBELL:
		words[0] = GY_DOORBELL_GPA | PTE_DATA | PTE_LARGE;
		return;
	default:
		make_pd(vm, table - GY_GUEST_PD, words);
	}
}

/* ---- the other pages ---- */

static uint64_t greatest_common_divisor(uint64_t a, uint64_t b)
{
	while (b) {
		uint64_t rest = a % b;

		a = b;
		b = rest;
	}
	return a;
}

/* About 0.618 of the slice, so that neighbours in rank land far apart. */
static uint64_t scatter_for(uint64_t slice_pages)
{
	uint64_t scatter = slice_pages * 618 / 1000 | 1;

	while (greatest_common_divisor(scatter, slice_pages) != 1)
		scatter += 2;
	return scatter;
}

static void set_rate(const struct gy_vm *vm, struct gy_guest_boot *boot)
{
	uint64_t rate = vm->config.rate_pages_per_s;
	uint64_t per_ms = rate / vm->config.vcpus / 1000;
	unsigned __int128 cycles;

	if (!rate)
		return;
	boot->batch_touches = per_ms ? per_ms : 1;
	cycles = (unsigned __int128)boot->batch_touches * vm->config.vcpus * vm->tsc_khz * 1000 / rate;
	boot->batch_cycles = (uint64_t)cycles;
	boot->catch_up_cycles = (uint64_t)vm->tsc_khz * CATCH_UP_MS;
}

static void make_boot_page(const struct gy_vm *vm, struct gy_guest_boot *boot)
{
	*boot = (struct gy_guest_boot){
		.magic = GY_GUEST_BOOT_MAGIC,
		.vcpus = vm->config.vcpus,
		.workload = vm->config.workload,
		.write_per_1024 = vm->config.write_per_1024,
		.tsc_khz = vm->tsc_khz,
		.ns_per_cycle = (1000000ull << 32) / vm->tsc_khz,
		.seed = vm->config.seed,
		.shadow_va = vm->layout.shadow_page * GY_PAGE_BYTES,
		.first_page = vm->layout.first_page,
		.slice_pages = vm->layout.slice_pages,
		.scatter = scatter_for(vm->layout.slice_pages),
	};
	set_rate(vm, boot);
}

static void make_account(const struct gy_vm *vm, uint64_t vcpu, struct gy_guest_account *account)
{
	if (vcpu >= vm->config.vcpus)
		return;
	account->magic = GY_GUEST_ACCOUNT_MAGIC;
	account->vcpu = vcpu;
}

static void make_image_page(uint64_t index, void *words)
{
	size_t bytes = (size_t)(gy_guest_image_end - gy_guest_image);
	size_t offset = index * GY_PAGE_BYTES;

	if (offset < bytes)
		memcpy(words, gy_guest_image + offset,
		       bytes - offset < GY_PAGE_BYTES ? bytes - offset : GY_PAGE_BYTES);
}

void gy_guest_page_make(const struct gy_vm *vm, uint64_t page, uint64_t *words)
{
	memset(words, 0, GY_PAGE_BYTES);
	switch (gy_guest_page_kind(vm, page)) {
	case GY_PAGE_BOOT:
		make_boot_page(vm, (struct gy_guest_boot *)words);
		return;
	case GY_PAGE_ACCOUNT:
		make_account(vm, page - GY_GUEST_ACCOUNT_PAGE, (struct gy_guest_account *)words);
		return;
	case GY_PAGE_IMAGE:
		make_image_page(page - GY_GUEST_IMAGE_PAGE, words);
		return;
	case GY_PAGE_TABLES:
		make_table(vm, page - GY_GUEST_TABLES_PAGE, words);
		return;
	default:
		return;
	}
}

int gy_guest_load(struct gy_vm *vm)
{
	uint64_t words[GY_PAGE_BYTES / sizeof(uint64_t)];
	int ret;

	ret = gy_ram_punch(vm->ram, 0, vm->ram->bytes);
	for (uint64_t page = GY_GUEST_BOOT_PAGE; !ret && page < vm->layout.shadow_page; page++) {
		enum gy_page_kind kind = gy_guest_page_kind(vm, page);
		int64_t n;

		if (kind == GY_PAGE_ABSENT || kind == GY_PAGE_STACK)
			continue;
		gy_guest_page_make(vm, page, words);
		n = gy_ram_write(vm->ram, page * GY_PAGE_BYTES, words, GY_PAGE_BYTES);
		ret = n < 0 ? (int)n : 0;
	}
	return ret;
}
