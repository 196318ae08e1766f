/* SPDX-License-Identifier: Apache-2.0 */
/*
 * guest_abi.h - what the guest program and the host agree on: where things lie in guest RAM, the pages they
 * share, and the doorbell.
 *
 * A guest virtual address is the offset in the RAM file; guest-physical it lies GY_GUEST_GPA higher, clear of
 * everything KVM puts below 4 GiB. All of it, page tables included, migrates as ordinary pages.
 *
 *	page  0			not mapped: a NULL dereference ends the guest
 *	page  1			struct gy_guest_boot, written by the host, read by the guest
 *	pages 2..9		struct gy_guest_account, one for each vCPU
 *	pages 10..25		stacks: for each vCPU an unmapped guard page and a stack page
 *	pages 26..41		guest program
 *	pages 42..		page tables: 5 and one for each GiB of RAM
 *	then			shadow table: the version of every page of RAM, u32 each
 *	then			workload pages; those of the working set carry stamps (stamp.h)
 */
#ifndef GY_GUEST_ABI_H
#define GY_GUEST_ABI_H

#include "../gyges.h"

#define GY_GUEST_GPA 0x100000000ull
#define GY_GUEST_MAX_BYTES (1ull << 39)		/* one PDPT */

#define GY_GUEST_BOOT_PAGE 1u
#define GY_GUEST_ACCOUNT_PAGE 2u
#define GY_GUEST_STACK_PAGE 10u
#define GY_GUEST_IMAGE_PAGE 26u
#define GY_GUEST_IMAGE_PAGES 16u
#define GY_GUEST_TABLES_PAGE 42u

/* Page tables, counted from GY_GUEST_TABLES_PAGE. */
enum gy_guest_table {
	GY_GUEST_PML4 = 0,
	GY_GUEST_PDPT = 1,
	GY_GUEST_PT_LOW = 2,		/* first 2 MiB in 4 KiB pages: page 0 and the guards are absent */
	GY_GUEST_PDPT_DOORBELL = 3,
	GY_GUEST_PD_DOORBELL = 4,
	GY_GUEST_PD = 5,		/* the first of one for each GiB */
};

_Static_assert(GY_GUEST_IMAGE_PAGE * GY_PAGE_BYTES == 0x1a000, "guest.ld links the program at 0x1a000");
_Static_assert(GY_GUEST_STACK_PAGE == GY_GUEST_ACCOUNT_PAGE + GY_VM_MAX_VCPUS, "an account page for each vCPU");
_Static_assert(GY_GUEST_IMAGE_PAGE == GY_GUEST_STACK_PAGE + 2 * GY_VM_MAX_VCPUS, "a stack for each vCPU");

/*
 * Doorbell: 2 MiB of guest-physical addresses without memory. Writes of 8 bytes go to the registers below;
 * reading 8 bytes at IDLE + 8 n lets the host put the vCPU to sleep for n microseconds and gives back how many
 * nanoseconds of these it slept: less where a stop cut the sleep short, so that no stall hides in a sleep.
 */
#define GY_DOORBELL_GPA 0xd0000000ull
#define GY_DOORBELL_VA (1ull << 39)
#define GY_DOORBELL_BYTES (2ull << 20)
#define GY_DOORBELL_BOOTED 0x0u			/* any value: this vCPU has filled its pages */
#define GY_DOORBELL_CORRUPT 0x8u		/* number of corrupt pages so far */
#define GY_DOORBELL_FAILED 0x10u		/* enum gy_guest_failure; the vCPU does not go on */
#define GY_DOORBELL_IDLE 0x100000u
#define GY_DOORBELL_IDLE_MAX_US 131071u

enum gy_guest_failure {
	GY_GUEST_FAILURE_BOOT_PAGE = 1,		/* boot page without magic */
	GY_GUEST_FAILURE_REGISTERS = 2,		/* general registers do not continue the account */
	GY_GUEST_FAILURE_XMM = 3,		/* vector registers do not */
	GY_GUEST_FAILURE_GS = 4,		/* segment base is another vCPU's */
};

#define GY_GUEST_BOOT_MAGIC 0x746f6f6273677967ull
#define GY_GUEST_ACCOUNT_MAGIC 0x7472706573677967ull

struct gy_guest_boot {
	uint64_t magic;
	uint32_t vcpus;
	uint32_t workload;		/* enum gy_workload */
	uint32_t write_per_1024;
	uint32_t tsc_khz;
	uint64_t ns_per_cycle;		/* in 1/2^32 ns */
	uint64_t seed;
	uint64_t shadow_va;
	uint64_t first_page;		/* first workload page */
	uint64_t slice_pages;		/* pages of the working set that each vCPU owns: every vcpus-th */
	uint64_t scatter;		/* coprime to slice_pages: spreads zipf ranks over the slice */
	uint64_t batch_touches;		/* touches between two looks at the rate; 0: no limit */
	uint64_t batch_cycles;		/* what a batch may take at the least */
	uint64_t catch_up_cycles;	/* being later than this is forgiven, not caught up */
	/* Raised by the host, also while the guest runs: forget the stalls so far. */
	uint32_t stall_generation;
	uint32_t reserved;
};

struct gy_guest_account {
	uint64_t magic;
	uint64_t vcpu;
	uint64_t touches;
	uint64_t filled_pages;
	uint64_t written_pages;		/* rewrites after the fill */
	uint64_t wraps;			/* versions that went from UINT32_MAX to 1 */
	/* Page number + 1 of the page in the middle of a rewrite: it may hold words of two versions. */
	uint64_t inflight;
	uint64_t corrupt;
	uint64_t first_corrupt_page;	/* valid when corrupt > 0 */
	uint64_t clock_backsteps;
	uint32_t stall_generation;	/* last one obeyed */
	uint32_t reserved;
	struct gy_hist stall;		/* ns */
};

_Static_assert(sizeof(struct gy_guest_account) <= GY_PAGE_BYTES, "an account is one page");

static inline uint64_t gy_guest_account_va(uint64_t vcpu)
{
	return (GY_GUEST_ACCOUNT_PAGE + vcpu) * GY_PAGE_BYTES;
}

/* End of the stack, which grows down. */
static inline uint64_t gy_guest_stack_va(uint64_t vcpu)
{
	return (GY_GUEST_STACK_PAGE + 2 * vcpu + 2) * GY_PAGE_BYTES;
}

#endif
