/* SPDX-License-Identifier: Apache-2.0 */
/*
 * gyges.h - everything that libgyges.so exports.
 *
 * Conventions, for every function unless it says otherwise:
 *   - the result is >= 0 on success and -errno on failure; errno itself means nothing;
 *   - handles are opaque; xxx_destroy() takes NULL and half-built objects and is called once;
 *   - a call that may block takes timeout_ms (0: do not wait) and answers -ETIMEDOUT;
 *   - may be called from any thread, but one handle only from one thread at a time, except where noted;
 *   - structs are shared with ffi/layouts.ts: fixed width, padded explicitly, sizes asserted.
 *
 * Page numbers count 4 KiB pages from the start of the RAM file. A bitmap over n pages is ceil(n / 64)
 * little-endian u64 words; bit i of word w is page 64 w + i.
 */
#ifndef GYGES_H
#define GYGES_H

#include <stddef.h>
#include <stdint.h>

#define GY_ABI_VERSION 1u
#define GY_PAGE_BYTES 4096u
#define GY_EXPORT __attribute__((visibility("default")))

GY_EXPORT uint32_t gy_abi_version(void);

/* ---- statistics: one block of memory that JavaScript reads without a call ---------------------- */

/*
 * Log-linear histogram: values below 8 have a bucket each; above, every power of two is divided in 8.
 * Bucket of v >= 8: e = 63 - clz(v); (e - 2) * 8 + ((v >> (e - 3)) & 7).
 */
#define GY_HIST_BUCKETS 320u

struct gy_hist {
	uint64_t n;
	uint64_t sum;
	uint64_t max;
	uint64_t bucket[GY_HIST_BUCKETS];
};

/* Counters of one side of one migration; each is written by C threads with relaxed atomics. */
struct gy_page_stats {
	uint64_t total_pages;
	uint64_t present_pages;		/* received, or known to be zero */
	uint64_t missing_pages;		/* still at the source */
	uint64_t precopy_pages;		/* pages pulled in pre-copy, with repeats */
	uint64_t postcopy_pages;	/* pages pulled after the switch */
	uint64_t demand_faults;		/* faults that waited for a page from the source */
	uint64_t prefetched_pages;	/* post-copy pages that no fault asked for */
	uint64_t zero_pages;		/* pages known to be zero, never on the wire */
	uint64_t duplicate_pages;	/* pages pulled again after the switch: must stay 0 */
	uint64_t wire_bytes;		/* page connections, both ways, headers included, before TLS */
	uint64_t blocktime_ns;		/* sum over vCPUs of time blocked on a missing page */
	uint64_t local_zero_faults;	/* faults answered here because the page is known to be zero */
	uint64_t late_faults;		/* fault messages whose page had arrived meanwhile */
	uint64_t discarded_pages;	/* pre-copied pages dropped again because the guest rewrote them */
	uint64_t reserved[2];
	struct gy_hist fault_latency;	/* ns, fault read to page placed */
};

/* ---- RAM file ---------------------------------------------------------------------------------- */

struct gy_ram;

/*
 * gy_ram_create() - make an anonymous RAM file (memfd) of @bytes and map it shared, twice.
 * @bytes: multiple of 2 MiB. The first mapping is the guest's (userfaultfd is registered on it); the second
 *         ("alias") belongs to the agent. Reading a page through either allocates it: use gy_ram_read() where
 *         a page may be missing.
 * Errors: EINVAL size, ENOMEM, EFBIG, EMFILE.
 */
GY_EXPORT int gy_ram_create(uint64_t bytes, struct gy_ram **out);
GY_EXPORT void gy_ram_destroy(struct gy_ram *ram);
GY_EXPORT uint64_t gy_ram_bytes(const struct gy_ram *ram);
/* Reads without allocating: holes read as zeros. Returns bytes read. Any thread. */
GY_EXPORT int64_t gy_ram_read(struct gy_ram *ram, uint64_t offset, void *buf, uint64_t len);
/* Writes, for tests that damage RAM on purpose. */
GY_EXPORT int64_t gy_ram_write(struct gy_ram *ram, uint64_t offset, const void *buf, uint64_t len);
/* Bytes of the file that are allocated. */
GY_EXPORT int64_t gy_ram_allocated(struct gy_ram *ram);

/* ---- micro-VM ---------------------------------------------------------------------------------- */

struct gy_vm;

enum gy_workload { GY_WORKLOAD_UNIFORM = 1, GY_WORKLOAD_SEQUENTIAL = 2, GY_WORKLOAD_ZIPF = 3 };

#define GY_VM_MAX_VCPUS 8u
#define GY_VM_IRQCHIP 1u	/* flags: in-kernel interrupt controller */

struct gy_vm_config {
	uint32_t vcpus;			/* 1..8 */
	uint32_t flags;
	uint32_t workload;		/* enum gy_workload */
	uint32_t write_per_1024;	/* share of touches that rewrite */
	uint64_t working_set_bytes;	/* 0: three quarters of RAM */
	uint64_t rate_pages_per_s;	/* 0: no limit; over all vCPUs */
	uint64_t seed;
	uint64_t reserved[2];		/* 0 */
};

/* The guest's account of itself, summed over its vCPUs. */
struct gy_guest_report {
	uint64_t vcpus;
	uint64_t booted;		/* 1 once every vCPU has filled its pages */
	uint64_t running;		/* 1 while vCPUs may run */
	uint64_t passes;
	uint64_t verified_pages;
	uint64_t written_pages;
	uint64_t corrupt;
	uint64_t first_corrupt_page;	/* UINT64_MAX: none */
	uint64_t largest_stall_ns;	/* since boot or gy_vm_reset_stall() */
	uint64_t clock_backsteps;
	uint64_t unread_vcpus;		/* vCPUs whose report page is still at the source */
	uint64_t reserved;
	struct gy_hist stall;		/* ns between two touches of one vCPU */
};

struct gy_ram_check {
	uint64_t pages;			/* all pages of the RAM file */
	uint64_t filled_pages;		/* pages that carry a stamp */
	uint64_t zero_pages;		/* workload pages never written, seen to be zero */
	uint64_t bad_pages;
	uint64_t first_bad_page;	/* UINT64_MAX: none */
	uint64_t reserved[3];
};

enum gy_vm_event { GY_VM_EVENT_NONE = 0, GY_VM_EVENT_BOOTED = 1, GY_VM_EVENT_CORRUPT = 2, GY_VM_EVENT_FAILED = 3 };

/*
 * gy_vm_create() - KVM machine with its vCPU threads parked; @ram must outlive it.
 * Makes everything that takes time (VM, irqchip, vCPUs) so that a restore later costs only state.
 * @err: NUL-terminated text of what failed; may be NULL.
 */
GY_EXPORT int gy_vm_create(struct gy_ram *ram, const struct gy_vm_config *config, struct gy_vm **out,
			   char *err, uint32_t err_bytes);
GY_EXPORT void gy_vm_destroy(struct gy_vm *vm);
/* Loads the guest program into RAM and sets the vCPUs to its entry. */
GY_EXPORT int gy_vm_boot(struct gy_vm *vm);
/* Lets the vCPUs run. Does not block. */
GY_EXPORT int gy_vm_run(struct gy_vm *vm);
/*
 * Stops every vCPU: when it returns 0 no vCPU runs, no exit is half done, and RAM is final.
 * -ETIMEDOUT: a vCPU waits for a page that does not come; all that can still run are running again.
 */
GY_EXPORT int gy_vm_stop(struct gy_vm *vm, uint32_t timeout_ms);
/* State of the stopped machine: versioned, checksummed. Returns bytes; -ENOSPC with too small a buffer. */
GY_EXPORT int64_t gy_vm_save(struct gy_vm *vm, void *buf, uint64_t cap, char *err, uint32_t err_bytes);
/* Upper bound for gy_vm_save(). */
GY_EXPORT int64_t gy_vm_state_bytes(struct gy_vm *vm);
/* Loads a state into a machine of the same shape. -EBADMSG damaged, -EPROTO foreign version, -EINVAL shape. */
GY_EXPORT int gy_vm_restore(struct gy_vm *vm, const void *buf, uint64_t len, char *err, uint32_t err_bytes);
/* Any thread. Never allocates guest memory. */
GY_EXPORT int gy_vm_report(struct gy_vm *vm, struct gy_guest_report *report);
/* Forgets the largest stall seen so far, so that the next one is this migration's. Guest running or not. */
GY_EXPORT int gy_vm_reset_stall(struct gy_vm *vm);
/* Checks every page of the stopped machine's RAM. -EBUSY while it runs. */
GY_EXPORT int gy_vm_check_ram(struct gy_vm *vm, struct gy_ram_check *check);
/* Waits for an event; returns enum gy_vm_event or -ETIMEDOUT. On FAILED, @err says what the vCPU did. Any thread. */
GY_EXPORT int gy_vm_wait(struct gy_vm *vm, uint32_t timeout_ms, char *err, uint32_t err_bytes);

/* Dirty tracking by KVM's dirty log with manual protect. */
GY_EXPORT int gy_vm_dirty_start(struct gy_vm *vm);
GY_EXPORT int gy_vm_dirty_stop(struct gy_vm *vm);
/*
 * ORs into @bitmap (words u64 words over all RAM pages) the pages written since the last collect and
 * write-protects them again. Returns how many there were.
 */
GY_EXPORT int64_t gy_vm_dirty_collect(struct gy_vm *vm, uint64_t *bitmap, uint64_t words);

#endif
